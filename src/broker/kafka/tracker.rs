//! What of a partition is unfinished: records finish in any order, offsets are committed in order.
//!
//! A [`Window`] belongs to one partition in one assignment (an epoch is an object: a partition that is lost and
//! regained gets a new window, and what the old one's deliveries report never reaches it). Only records that arrived
//! can be unfinished, so the gaps that compaction and transaction markers leave never hold the watermark back. It is
//! a bitmap from the watermark to the highest record: a bit a record, no allocation a record, no I/O, no clock.

use std::collections::VecDeque;

use super::span::Spans;

/// How far a partition may run ahead of its watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records received and not finished.
    pub open: usize,
    /// Offsets from the watermark to the highest record.
    pub span: u64,
}

/// What a record that arrived is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// New: it is unfinished now.
    New,
    /// An earlier owner finished it and said so in the commit's metadata.
    Finished,
    /// It arrived before in this assignment.
    Known,
}

/// The unfinished offsets of one partition.
#[derive(Clone, Debug)]
pub struct Window {
    /// The lowest offset that is not finished: what may be committed.
    watermark: i64,
    /// One past the highest offset that arrived.
    next: i64,
    /// Offset of the first bit of `words`; a multiple of 64, at most `watermark`.
    origin: i64,
    /// A set bit is finished, or is a gap.
    words: VecDeque<u64>,
    /// Arrived and unfinished.
    open: usize,
    /// Finished by an earlier owner, at `next` or above.
    restored: Spans,
}

impl Window {
    /// A window of a partition whose committed offset is `committed`, and of which `restored` was finished beyond.
    pub fn new(committed: i64, restored: Spans) -> Self {
        let mut restored = restored;
        restored.cut_below(committed);
        Self {
            watermark: committed,
            next: committed,
            origin: floor(committed),
            words: VecDeque::new(),
            open: 0,
            restored,
        }
    }

    /// What may be committed: everything below is finished.
    pub fn watermark(&self) -> i64 {
        if crate::seeded::bug("watermark-highest") {
            return self.next;
        }
        self.watermark
    }

    /// One past the highest offset that arrived.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// Records that arrived and are not finished.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Offsets from the watermark to the highest record.
    pub fn span(&self) -> u64 {
        (self.next - self.watermark).max(0) as u64
    }

    /// Whether a record at `offset` fits. One always fits where nothing is open.
    pub fn admits(&self, offset: i64, limits: Limits) -> bool {
        self.open == 0
            || offset < self.next
            || (self.open < limits.open && (offset.saturating_sub(self.watermark)) as u64 <= limits.span)
    }

    /// A record arrived. What lies between the one before and this one was never there: it counts as finished.
    pub fn arrive(&mut self, offset: i64) -> Arrival {
        if offset < self.next {
            return Arrival::Known;
        }
        if self.open == 0 {
            // Nothing is held: jump, however wide the gap.
            self.words.clear();
            self.origin = floor(offset);
            self.watermark = offset;
        } else {
            self.finish_span(self.next, offset);
        }
        self.next = offset + 1;
        self.grow(offset);
        let finished = self.restored.take_below(offset);
        if finished {
            self.finish_span(offset, offset + 1);
            self.advance();
            return Arrival::Finished;
        }
        self.open += 1;
        Arrival::New
    }

    /// What would come next lies at `offset` or beyond: the log has nothing before it any more. Gives how many of the
    /// offsets between were not finished by an earlier owner.
    pub fn skip_to(&mut self, offset: i64) -> u64 {
        if offset <= self.next {
            return 0;
        }
        let finished: i64 = self.restored.iter().map(|(from, to)| (to.min(offset) - from.max(self.next)).max(0)).sum();
        let lost = offset - self.next - finished;
        self.restored.cut_below(offset);
        if self.open == 0 {
            self.words.clear();
            self.origin = floor(offset);
            self.watermark = offset;
        } else {
            self.finish_span(self.next, offset);
        }
        self.next = offset;
        lost as u64
    }

    /// Whether a record arrived and is unfinished.
    pub fn has(&self, offset: i64) -> bool {
        offset < self.next && !self.is_finished(offset)
    }

    /// A record is finished. `false`: it never arrived here, or was finished already.
    pub fn finish(&mut self, offset: i64) -> bool {
        if offset < self.watermark || offset >= self.next {
            return false;
        }
        let (word, bit) = self.index(offset);
        if self.words[word] & bit != 0 {
            return false;
        }
        self.words[word] |= bit;
        self.open -= 1;
        if offset == self.watermark {
            self.advance();
        }
        true
    }

    /// Whether a record that arrived is finished; what lies below the watermark is.
    pub fn is_finished(&self, offset: i64) -> bool {
        if offset < self.watermark {
            return true;
        }
        if offset >= self.next {
            return false;
        }
        let (word, bit) = self.index(offset);
        self.words[word] & bit != 0
    }

    /// What is finished above the watermark, the restored part included.
    pub fn finished(&self) -> Spans {
        let mut spans = Spans::default();
        self.each_run(|from, to| spans.push(from, to));
        for (from, to) in self.restored.iter() {
            spans.push(from.max(self.next), to);
        }
        spans
    }

    /// The unfinished offsets that arrived, ascending.
    pub fn unfinished(&self) -> Vec<i64> {
        let mut at = self.watermark;
        let mut open = Vec::with_capacity(self.open);
        self.each_run(|from, to| {
            open.extend(at..from);
            at = to;
        });
        open.extend(at..self.next);
        open
    }

    /// Calls `run` with each maximal run of finished offsets in `[watermark, next)`.
    fn each_run(&self, mut run: impl FnMut(i64, i64)) {
        let mut start: Option<i64> = None;
        let mut offset = self.watermark;
        while offset < self.next {
            let (word, _) = self.index(offset);
            let shift = (offset - self.origin).rem_euclid(64) as u32;
            let bits = self.words[word] >> shift;
            let left = i64::from(64 - shift).min(self.next - offset);
            // How many of the next bits are alike.
            let alike = if bits & 1 == 1 { bits.trailing_ones() } else { bits.trailing_zeros() };
            let alike = i64::from(alike).min(left);
            match (bits & 1 == 1, start) {
                (true, None) => start = Some(offset),
                (false, Some(from)) => {
                    run(from, offset);
                    start = None;
                }
                _ => {}
            }
            offset += alike;
        }
        if let Some(from) = start {
            run(from, self.next);
        }
    }

    fn index(&self, offset: i64) -> (usize, u64) {
        let distance = (offset - self.origin) as u64;
        ((distance / 64) as usize, 1 << (distance % 64))
    }

    fn grow(&mut self, offset: i64) {
        let (word, _) = self.index(offset);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
    }

    fn finish_span(&mut self, from: i64, to: i64) {
        if from >= to {
            return;
        }
        self.grow(to - 1);
        let mut offset = from;
        while offset < to {
            let (word, _) = self.index(offset);
            let shift = (offset - self.origin).rem_euclid(64) as u32;
            let count = i64::from(64 - shift).min(to - offset);
            let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << shift };
            self.words[word] |= mask;
            offset += count;
        }
    }

    /// Moves the watermark over what is finished, and forgets the words below it.
    fn advance(&mut self) {
        while self.watermark < self.next {
            let (word, _) = self.index(self.watermark);
            let shift = (self.watermark - self.origin).rem_euclid(64) as u32;
            let ones = i64::from((self.words[word] >> shift).trailing_ones()).min(i64::from(64 - shift));
            if ones == 0 {
                break;
            }
            self.watermark = (self.watermark + ones).min(self.next);
        }
        while self.watermark - self.origin >= 64 && !self.words.is_empty() {
            self.words.pop_front();
            self.origin += 64;
        }
    }
}

fn floor(offset: i64) -> i64 {
    offset.div_euclid(64) * 64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The same by sets: obviously right, and slow.
    #[derive(Default)]
    struct Naive {
        committed: i64,
        next: i64,
        arrived: BTreeSet<i64>,
        finished: BTreeSet<i64>,
        restored: BTreeSet<i64>,
    }

    impl Naive {
        fn watermark(&self) -> i64 {
            self.arrived.difference(&self.finished).next().copied().unwrap_or(self.next)
        }

        fn above(&self) -> BTreeSet<i64> {
            let watermark = self.watermark();
            let gaps = (self.committed..self.next).filter(|offset| !self.arrived.contains(offset));
            let done = self.finished.iter().copied();
            let later = self.restored.iter().copied().filter(|offset| *offset >= self.next);
            gaps.chain(done).filter(|offset| *offset >= watermark).chain(later).collect()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arrive(i64),
        Again(usize),
        Finish(usize),
        FinishAny(i64),
        Skip(i64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0i64..3).prop_map(Step::Arrive),
            1 => (0i64..200).prop_map(Step::Arrive),
            1 => any::<usize>().prop_map(Step::Again),
            4 => any::<usize>().prop_map(Step::Finish),
            1 => (-50i64..400).prop_map(Step::FinishAny),
            1 => (-20i64..80).prop_map(Step::Skip),
        ];
        proptest::collection::vec(step, 0..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn behaves_as_sets_do(
            committed in 0i64..200,
            restored in proptest::collection::btree_set(0i64..400, 0..40),
            steps in steps(),
        ) {
            let restored: BTreeSet<i64> = restored.into_iter().filter(|offset| *offset >= committed).collect();
            let mut naive = Naive { committed, next: committed, restored: restored.clone(), ..Naive::default() };
            let mut window = Window::new(committed, restored.iter().map(|o| (*o, *o + 1)).collect());
            for step in steps {
                match step {
                    Step::Arrive(skip) => {
                        let offset = naive.next + skip;
                        let expected = if restored.contains(&offset) { Arrival::Finished } else { Arrival::New };
                        prop_assert_eq!(window.arrive(offset), expected);
                        naive.next = offset + 1;
                        naive.arrived.insert(offset);
                        if expected == Arrival::Finished {
                            naive.finished.insert(offset);
                        }
                    }
                    Step::Again(pick) => {
                        if let Some(offset) = naive.arrived.iter().nth(pick % naive.arrived.len().max(1)) {
                            prop_assert_eq!(window.arrive(*offset), Arrival::Known);
                        }
                    }
                    Step::Finish(pick) => {
                        let offset = naive.arrived.iter().nth(pick % naive.arrived.len().max(1)).copied();
                        if let Some(offset) = offset {
                            prop_assert_eq!(window.finish(offset), naive.finished.insert(offset));
                        }
                    }
                    Step::Skip(by) => {
                        let to = naive.next + by;
                        let lost = (naive.next..to).filter(|offset| !restored.contains(offset)).count();
                        prop_assert_eq!(window.skip_to(to), lost as u64);
                        naive.next = naive.next.max(to);
                    }
                    Step::FinishAny(offset) => {
                        let counts = naive.arrived.contains(&offset) && !naive.finished.contains(&offset);
                        prop_assert_eq!(window.finish(offset), counts);
                        if counts {
                            naive.finished.insert(offset);
                        }
                    }
                }
                prop_assert_eq!(window.watermark(), naive.watermark());
                prop_assert_eq!(window.next(), naive.next);
                let open: Vec<i64> = naive.arrived.difference(&naive.finished).copied().collect();
                prop_assert_eq!(window.open(), open.len());
                prop_assert_eq!(window.unfinished(), open);
                let above: BTreeSet<i64> = window.finished().iter().flat_map(|(from, to)| from..to).collect();
                prop_assert_eq!(above, naive.above());
                prop_assert!(window.words.len() as u64 <= window.span() / 64 + 2, "words below the watermark are forgotten");
            }
        }
    }

    #[test]
    fn a_wide_gap_costs_nothing_where_nothing_is_open() {
        let mut window = Window::new(0, Spans::default());
        assert_eq!(window.arrive(1 << 50), Arrival::New);
        assert!(window.words.len() <= 1);
        let limits = Limits { open: 10, span: 1_000 };
        assert!(!window.admits(1 << 51, limits), "a gap beyond the span waits for what is open");
        assert!(window.finish(1 << 50));
        assert!(window.admits(1 << 51, limits));
        assert_eq!(window.watermark(), (1 << 50) + 1);
    }

    #[test]
    fn mode_1_the_lowest_unfinished_is_committed_and_not_the_highest_finished() {
        let mut window = Window::new(10, Spans::default());
        for offset in 10..20 {
            window.arrive(offset);
        }
        for offset in 11..20 {
            window.finish(offset);
        }
        assert_eq!(window.watermark(), 10);
        assert_eq!(window.finished().iter().collect::<Vec<_>>(), [(11, 20)]);
        window.finish(10);
        assert_eq!(window.watermark(), 20);
    }

    #[test]
    fn mode_3_what_only_arrived_is_never_committed() {
        let mut window = Window::new(5, Spans::default());
        window.arrive(7);
        assert_eq!(window.watermark(), 7, "5 and 6 are a gap");
        assert_eq!(window.finished().iter().count(), 0);
    }
}
