//! Makes a schedule that breaks a law small, and tells it.

use super::law::Law;
use super::schedule::{Act, Schedule};
use super::site::{self, Outcome};

/// How many choices are tried for each smaller schedule.
const TRIES: u64 = 24;

/// The story of the smallest schedule that was found to break the same law.
pub fn story(outcome: &Outcome) -> String {
    let (law, schedule) = (outcome.laws()[0], &outcome.schedule);
    let small = shrink(schedule, law);
    let told = site::play(&small, true);
    let first: Vec<_> = outcome.broken.iter().take(3).map(ToString::to_string).collect();
    format!("seed {}: {}\nmade small:\n{small}{told}", schedule.seed, first.join("; "))
}

/// The smallest schedule found that breaks `law`.
pub fn shrink(schedule: &Schedule, law: Law) -> Schedule {
    let mut best = schedule.clone();
    loop {
        let smaller = candidates(&best).into_iter().find_map(|candidate| breaks(candidate, law));
        match smaller {
            Some(smaller) => best = smaller,
            None => return best,
        }
    }
}

/// With whichever choices it breaks the law, if it does.
fn breaks(mut candidate: Schedule, law: Law) -> Option<Schedule> {
    let seed = candidate.seed;
    let tries = (0..TRIES).map(|add| seed.wrapping_add(add * 0x9e37_79b9));
    for seed in tries {
        candidate.seed = seed;
        if site::play(&candidate, false).laws().contains(&law) {
            return Some(candidate);
        }
        if candidate.mischief == 0 && candidate.faults.is_empty() {
            break;
        }
    }
    None
}

/// Schedules that are a little smaller, the greatest steps first.
fn candidates(of: &Schedule) -> Vec<Schedule> {
    let mut all = Vec::new();
    let mut add = |change: &dyn Fn(&mut Schedule)| {
        let mut smaller = of.clone();
        change(&mut smaller);
        all.push(smaller);
    };
    for index in 0..of.faults.len() {
        add(&|s| _ = s.faults.remove(index));
    }
    for index in 0..of.jobs.len() {
        add(&|s| _ = s.jobs.remove(index));
    }
    if of.mischief > 0 {
        add(&|s| s.mischief = 0);
    }
    if of.mischief > 30 {
        add(&|s| s.mischief /= 2);
    }
    if of.shape.workers > 1 {
        add(&|s| s.shape.workers -= 1);
    }
    if of.shape.lanes > 1 {
        add(&|s| s.shape.lanes = 1);
    }
    if of.shape.slots > of.shape.queues {
        add(&|s| {
            s.shape.slots -= 1;
            s.shape.queue_slots = s.shape.queue_slots.min(s.shape.slots);
        });
    }
    if of.shape.over_credit {
        add(&|s| s.shape.over_credit = false);
    }
    if of.shape.marks_all {
        add(&|s| s.shape.marks_all = false);
    }
    for index in 0..of.jobs.len() {
        if of.jobs[index].key.is_some() {
            add(&|s| s.jobs[index].key = None);
        }
        if of.jobs[index].at > 0 {
            add(&|s| s.jobs[index].at = 0);
        }
        if of.jobs[index].size > 0 {
            add(&|s| s.jobs[index].size = 0);
        }
        if of.jobs[index].act != Act::Succeeds(0) {
            add(&|s| s.jobs[index].act = Act::Succeeds(0));
        }
    }
    all
}
