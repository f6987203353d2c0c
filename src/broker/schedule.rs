//! Schedules for the simulations of adapters' state machines: a list of numbers, from which every choice is taken.
//!
//! A schedule is made from a seed, or one of all short ones. Where one breaks a law it is made small (fewer numbers,
//! smaller ones) and played once more with its story told. Beside [`tests/sim`](../../tests/sim), which plays the whole
//! engine against a simulated broker, these play what lies behind the traits.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The choices of one schedule. A number that is missing is 0.
pub struct Choices {
    numbers: Vec<u32>,
    at: usize,
    /// How many answers each question had, for going through all of them.
    widths: Vec<u32>,
    story: Option<Vec<String>>,
}

/// A law that was broken: its name, and what was seen.
pub type Broken = (&'static str, String);

/// Plays a schedule to its end.
pub type Play = fn(&mut Choices) -> Result<(), Broken>;

impl Choices {
    fn new(numbers: Vec<u32>, told: bool) -> Self {
        Self { numbers, at: 0, widths: Vec::new(), story: told.then(Vec::new) }
    }

    /// No number: every answer is the first.
    pub fn none() -> Self {
        Self::new(Vec::new(), false)
    }

    /// Whether the schedule goes on; what follows is its peaceful end.
    pub fn more(&self) -> bool {
        self.at < self.numbers.len()
    }

    /// One of `count` answers.
    pub fn pick(&mut self, count: usize) -> usize {
        let number = self.numbers.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        self.widths.push(count as u32);
        number as usize % count.max(1)
    }

    /// Likewise, `true` once in `count` times.
    pub fn once_in(&mut self, count: usize) -> bool {
        self.pick(count) == count - 1
    }

    /// One step of the story.
    pub fn tell(&mut self, step: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(step());
        }
    }
}

/// Plays the schedules of these seeds, each of so many numbers.
///
/// # Panics
/// Where one breaks a law, with the story of the smallest that was found to break the same.
pub fn campaign(seeds: Range<u64>, numbers: usize, play: Play) {
    let (count, from) = (seeds.end - seeds.start, seeds.start);
    for seed in seeds {
        if let Some((law, what)) = breaks(&drawn(seed, numbers), play) {
            panic!("seed {seed} breaks {law}: {what}\n{}", story(law, drawn(seed, numbers), play));
        }
    }
    eprintln!("{count} schedules from {from}: no law was broken");
}

/// The first of these seeds whose schedule breaks a law, and which.
pub fn caught(seeds: Range<u64>, numbers: usize, play: Play) -> Option<(u64, &'static str)> {
    let mut broken = seeds.map(|seed| (seed, breaks(&drawn(seed, numbers), play)));
    broken.find_map(|(seed, broken)| Some((seed, broken?.0)))
}

/// Each of these bugs is caught by that law, within 10,000 schedules. The last is the first seed that did when somebody
/// last looked: there it is looked for first.
///
/// # Panics
/// Where one is not.
#[cfg(feature = "seeded-bugs")]
pub fn every_bug_is_caught(bugs: &[(&'static str, &'static str, u64)], numbers: usize, play: Play) {
    let mut missed = Vec::new();
    for (bug, law, first) in bugs {
        let mut seeds = std::iter::once(*first).chain(0..10_000);
        let by = |seed: &u64| breaks(&drawn(*seed, numbers), play).is_some_and(|(broken, _)| broken == *law);
        match crate::seeded::with_bug(Some(bug), || seeds.find(by)) {
            Some(seed) => eprintln!("| `{bug}` | {law} | {seed} |"),
            None => missed.push((bug, law)),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// Plays every schedule of so many numbers, in which each question gets each of its answers; how many there are.
///
/// # Panics
/// As [`campaign`] does.
pub fn exhaust(numbers: usize, play: Play) -> u64 {
    let (mut schedule, mut count) = (vec![0; numbers], 0);
    loop {
        count += 1;
        let mut choices = Choices::new(schedule.clone(), false);
        if let Some((law, what)) = told(&mut choices, play) {
            panic!("schedule {count} breaks {law}: {what}\n{}", story(law, schedule, play));
        }
        // The last number that has an answer left gets the next one; what follows begins anew.
        let widths = &choices.widths;
        let next = (0..numbers.min(widths.len())).rev().find(|&at| schedule[at] + 1 < widths[at]);
        let Some(at) = next else { return count };
        schedule[at] += 1;
        schedule[at + 1..].fill(0);
    }
}

/// How many schedules to play, and from which: as `SIM_SCHEDULES` and `SIM_SEED` say.
pub fn wanted(default: u64) -> Range<u64> {
    let of = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let from = of("SIM_SEED").unwrap_or(0);
    from..from + of("SIM_SCHEDULES").unwrap_or(default)
}

fn drawn(seed: u64, numbers: usize) -> Vec<u32> {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x0005_eed0);
    let length = random.usize(1..=numbers);
    (0..length).map(|_| random.u32(..1 << 20)).collect()
}

fn breaks(schedule: &[u32], play: Play) -> Option<Broken> {
    told(&mut Choices::new(schedule.to_vec(), false), play)
}

fn told(choices: &mut Choices, play: Play) -> Option<Broken> {
    catch_unwind(AssertUnwindSafe(|| play(choices).err())).unwrap_or(Some(("panic", "it panicked".to_owned())))
}

fn story(law: &'static str, schedule: Vec<u32>, play: Play) -> String {
    let small = shrink(law, schedule, play);
    let mut choices = Choices::new(small, true);
    let broken = told(&mut choices, play);
    let steps = choices.story.unwrap_or_default().join("\n  ");
    let what = broken.map_or_else(String::new, |(_, what)| what);
    format!("made small, {} numbers {:?}:\n  {steps}\n  !! {law}: {what}", choices.numbers.len(), choices.numbers)
}

fn shrink(law: &'static str, mut schedule: Vec<u32>, play: Play) -> Vec<u32> {
    let same = |schedule: &[u32]| breaks(schedule, play).is_some_and(|(other, _)| other == law);
    loop {
        let before = schedule.clone();
        let mut length = schedule.len().div_ceil(2);
        while length > 0 {
            let mut at = 0;
            while at < schedule.len() {
                let mut shorter = schedule.clone();
                shorter.drain(at..(at + length).min(schedule.len()));
                if same(&shorter) {
                    schedule = shorter;
                } else {
                    at += length;
                }
            }
            length /= 2;
        }
        for at in 0..schedule.len() {
            for smaller in [0, schedule[at] % 60, schedule[at] % 12, 1] {
                let mut other = schedule.clone();
                other[at] = smaller;
                if smaller < schedule[at] && same(&other) {
                    schedule = other;
                }
            }
        }
        if schedule == before {
            return schedule;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks its law where three answers in a row are 2.
    fn thrice(choices: &mut Choices) -> Result<(), Broken> {
        let mut twos = 0;
        while choices.more() {
            twos = if choices.pick(3) == 2 { twos + 1 } else { 0 };
            choices.tell(|| format!("{twos} in a row"));
            if twos == 3 {
                return Err(("thrice", "2 2 2".to_owned()));
            }
        }
        Ok(())
    }

    #[test]
    fn what_breaks_a_law_is_found_and_made_small() {
        let (seed, law) = caught(0..1_000, 60, thrice).expect("three in a row are soon drawn");
        assert_eq!(law, "thrice");
        let told = story(law, drawn(seed, 60), thrice);
        assert!(told.contains("made small, 3 numbers"), "{told}");
        assert!(told.contains("2 in a row\n  3 in a row\n  !! thrice: 2 2 2"), "{told}");
    }

    #[test]
    fn all_short_schedules_are_gone_through() {
        fn two(choices: &mut Choices) -> Result<(), Broken> {
            if choices.pick(3) > 0 {
                choices.pick(4);
            }
            Ok(())
        }
        assert_eq!(exhaust(2, two), 1 + 2 * 4);
        assert_eq!(exhaust(2, thrice), 9);
    }
}
