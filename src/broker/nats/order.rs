//! Key order on one consumer: what may be handed out now. No I/O, no clock.
//!
//! One worker at a time reads an ordered queue (see [`super::owner`]), and hands out the first of each key only. That
//! is not enough: what another worker received before, or what was lost with a connection, is older than what comes
//! now, and nobody knows its key. So there is a gate. It is shut whenever somebody else may hold a message that is
//! not settled, and opens once the server counts exactly as many unsettled deliveries as are in hand here: then all
//! of them are. While it is open the consumer's own sequence, which counts deliveries one by one, shows a delivery
//! that went elsewhere at the next one that comes here; the gate shuts before that one is handed out.
//!
//! Once it was open, and for as long as the same worker owns the queue, nobody else begins a job: what is then missing
//! was lost on its way here, with a connection or an inbox, or lies with a reader that hands nothing out. It is called
//! back, so that the queue does not stand still until its leases have ended.
//!
//! A job that waits for its retry stays in hand and keeps its key waiting; so does one that was given back.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use crate::time::Timestamp;

/// Counts in a row that found fewer unsettled deliveries at the server than are in hand, until what waits is given
/// back: the server has forgotten some, or somebody else has settled them.
const SHORT: u32 = 10;
/// Counts in a row that found more there than are in hand, while nothing came, until what is missing is called back.
const LACKING: u32 = 4;

struct Entry<T> {
    key: Option<Bytes>,
    bytes: usize,
    /// What is handed out; `None` until it is known.
    value: Option<T>,
    out: bool,
    due: Option<Timestamp>,
}

/// What a count of the server's unsettled deliveries says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// All are in hand here: the gate is open.
    Open,
    /// Not yet, or something changed meanwhile: count again.
    Again,
    /// What is not handed out is better given back: see [`Line::waiting`].
    GiveBack,
    /// What is unsettled and not in hand is nobody's: it may be called back at once.
    CallBack,
}

/// Deliveries of one consumer, in the order of the stream.
pub struct Line<T> {
    entries: BTreeMap<u64, Entry<T>>,
    keys: HashMap<Bytes, BTreeSet<u64>, foldhash::fast::FixedState>,
    /// Those that may have become ready.
    look: BTreeSet<u64>,
    timed: BTreeSet<(Timestamp, u64)>,
    open: bool,
    /// The consumer's sequence at the last delivery that counts.
    last: u64,
    changes: u64,
    missing: usize,
    short: u32,
    lacking: u32,
    /// The gate was open since this worker owns the queue.
    whole: bool,
    /// Of payload that is not handed out.
    bytes: usize,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            keys: HashMap::default(),
            look: BTreeSet::new(),
            timed: BTreeSet::new(),
            open: false,
            last: 0,
            changes: 0,
            missing: 0,
            short: 0,
            lacking: 0,
            whole: false,
            bytes: 0,
        }
    }
}

impl<T: Clone> Line<T> {
    /// Deliveries in hand.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of payload that are in hand and not handed out.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether everything that is unsettled is in hand here.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// How many more to ask for, where `window` may be in hand.
    pub fn room(&self, window: usize) -> usize {
        let room = window.saturating_sub(self.entries.len());
        if self.open { room } else { room.max(self.missing).max(1) }
    }

    /// A delivery went elsewhere, or may have.
    pub fn shut(&mut self) {
        self.open = false;
        self.changes += 1;
        self.short = 0;
    }

    /// Somebody else owned the queue, or may have.
    pub fn foreign(&mut self) {
        self.whole = false;
        self.shut();
    }

    /// Whether it is in hand.
    pub fn holds(&self, seq: u64) -> bool {
        self.entries.contains_key(&seq)
    }

    /// A delivery came, whichever it is; its number among the consumer's deliveries.
    pub fn seen(&mut self, sequence: u64) {
        if sequence == self.last + 1 {
            self.last = sequence;
        } else if sequence > self.last {
            self.shut();
        }
        self.changes += 1;
    }

    /// A message of so many bytes is in hand, and not yet known well enough to be handed out.
    pub fn arrive(&mut self, seq: u64, key: Option<Bytes>, bytes: usize) {
        self.changes += 1;
        self.bytes += bytes;
        if let Some(key) = &key {
            self.keys.entry(key.clone()).or_default().insert(seq);
        }
        self.entries.insert(seq, Entry { key, bytes, value: None, out: false, due: None });
    }

    /// It may be handed out when its turn has come, and not before `due`: at first, or again.
    pub fn wait(&mut self, seq: u64, value: T, due: Option<Timestamp>) {
        if let Some(entry) = self.entries.get_mut(&seq) {
            self.bytes += if entry.out { entry.bytes } else { 0 };
            (entry.value, entry.out, entry.due) = (Some(value), false, due);
            self.look.insert(seq);
        }
    }

    /// It was handed out and comes back as it was.
    pub fn put_back(&mut self, seq: u64) {
        if let Some(entry) = self.entries.get_mut(&seq) {
            self.bytes += if entry.out { entry.bytes } else { 0 };
            entry.out = false;
            self.look.insert(seq);
        }
    }

    /// What it was handed out as.
    pub fn value(&self, seq: u64) -> Option<&T> {
        self.entries.get(&seq).and_then(|entry| entry.value.as_ref())
    }

    /// It is out of hand. `settled`: for good; otherwise it comes again, and until then nothing is handed out.
    pub fn remove(&mut self, seq: u64, settled: bool) {
        let Some(entry) = self.entries.remove(&seq) else { return };
        self.changes += 1;
        self.bytes -= if entry.out { 0 } else { entry.bytes };
        if let Some(key) = entry.key
            && let Some(queue) = self.keys.get_mut(&key)
        {
            queue.remove(&seq);
            match queue.first() {
                Some(&next) => drop(self.look.insert(next)),
                None => drop(self.keys.remove(&key)),
            }
        }
        if !settled {
            self.shut();
        }
    }

    /// Those whose turn has come, in the order of the stream. They are out from now on.
    pub fn ready(&mut self, now: Timestamp) -> Vec<(u64, T)> {
        let mut ready = Vec::new();
        if !self.open {
            return ready;
        }
        while let Some(&(due, seq)) = self.timed.first()
            && due <= now
        {
            self.timed.pop_first();
            self.look.insert(seq);
        }
        for seq in std::mem::take(&mut self.look) {
            let Some(entry) = self.entries.get(&seq).filter(|entry| !entry.out) else { continue };
            let first = entry.key.as_ref().and_then(|key| self.keys.get(key)).and_then(|queue| queue.first());
            let Some(value) = entry.value.clone().filter(|_| first.is_none_or(|&first| first == seq)) else { continue };
            match entry.due {
                Some(due) if due > now => drop(self.timed.insert((due, seq))),
                _ => {
                    if let Some(entry) = self.entries.get_mut(&seq) {
                        entry.out = true;
                        self.bytes -= entry.bytes;
                    }
                    ready.push((seq, value));
                }
            }
        }
        ready
    }

    /// Those that are not handed out.
    pub fn waiting(&self) -> Vec<u64> {
        self.entries.iter().filter(|(_, entry)| !entry.out).map(|(&seq, _)| seq).collect()
    }

    /// What a count has to be compared with: see [`Line::counted`].
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The server has `pending` unsettled deliveries and has made `sequence` in all; `changes` is from before it was
    /// asked.
    pub fn counted(&mut self, changes: u64, pending: usize, sequence: u64) -> Count {
        let lacking = std::mem::take(&mut self.lacking) + 1;
        if changes != self.changes {
            return Count::Again;
        }
        self.missing = pending.saturating_sub(self.entries.len());
        if pending == self.entries.len() {
            (self.open, self.last, self.short, self.whole) = (true, sequence, 0, true);
            self.look.extend(self.entries.keys());
            return Count::Open;
        }
        if pending > self.entries.len() {
            self.short = 0;
            if self.whole && lacking >= LACKING {
                return Count::CallBack;
            }
            self.lacking = lacking;
            return Count::Again;
        }
        self.short += 1;
        if self.short < SHORT {
            return Count::Again;
        }
        self.short = 0;
        Count::GiveBack
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A consumer of a server: what it has delivered to whom and what was settled.
    #[derive(Default)]
    struct Server {
        keys: Vec<u8>,
        next: usize,
        sequence: u64,
        /// Unsettled, and whether it is queued to be delivered again.
        pending: BTreeMap<u64, bool>,
        settled: BTreeSet<u64>,
    }

    impl Server {
        /// Delivers one: (sequence of the stream, of the consumer, whether it came before).
        fn deliver(&mut self) -> Option<(u64, u64)> {
            let again = self.pending.iter().find(|(_, queued)| **queued).map(|(&seq, _)| seq);
            let seq = again.or_else(|| (self.next < self.keys.len()).then_some(self.next as u64 + 1))?;
            self.next = self.next.max(seq as usize);
            self.pending.insert(seq, false);
            self.sequence += 1;
            Some((seq, self.sequence))
        }

        fn settle(&mut self, seq: u64) {
            self.pending.remove(&seq);
            self.settled.insert(seq);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Publish(u8),
        /// Delivered to us.
        Fetch,
        /// Delivered to us, and lost on its way.
        Drop,
        /// Delivered to somebody who should not read any more.
        Elsewhere,
        /// Somebody else owned the queue for a moment, and runs a job of it.
        Foreign,
        /// What others have comes back; or they settle it.
        Expire,
        LateSuccess,
        Count,
        /// One of ours ends: acknowledged, put back, to be retried, given back.
        Ack(usize),
        PutBack(usize),
        Retry(usize),
        GiveBack(usize),
        Tick,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u8..4).prop_map(Step::Publish),
            8 => Just(Step::Fetch),
            1 => Just(Step::Drop),
            1 => Just(Step::Elsewhere),
            1 => Just(Step::Foreign),
            2 => Just(Step::Expire),
            1 => Just(Step::LateSuccess),
            6 => Just(Step::Count),
            6 => (0usize..8).prop_map(Step::Ack),
            2 => (0usize..8).prop_map(Step::PutBack),
            2 => (0usize..8).prop_map(Step::Retry),
            1 => (0usize..8).prop_map(Step::GiveBack),
            3 => Just(Step::Tick),
        ]
    }

    struct World {
        server: Server,
        line: Line<u64>,
        /// Handed out.
        out: Vec<u64>,
        elsewhere: BTreeSet<u64>,
        /// Of these, what a former owner runs.
        theirs: BTreeSet<u64>,
        now: i64,
    }

    impl World {
        fn hand_out(&mut self) -> Result<(), TestCaseError> {
            for (seq, value) in self.line.ready(Timestamp::from_millis(self.now)) {
                prop_assert_eq!(seq, value);
                let key = self.server.keys[seq as usize - 1];
                let before = (1..seq).filter(|s| self.server.keys[*s as usize - 1] == key);
                for earlier in before {
                    prop_assert!(self.server.settled.contains(&earlier), "{seq} before {earlier} of its key");
                }
                self.out.push(seq);
            }
            Ok(())
        }

        fn step(&mut self, step: Step) {
            let pick = |out: &mut Vec<u64>, n: usize| (n < out.len()).then(|| out.swap_remove(n));
            match step {
                Step::Publish(key) => self.server.keys.push(key),
                Step::Fetch => {
                    if let Some((seq, sequence)) = self.server.deliver() {
                        self.line.seen(sequence);
                        if self.line.entries.contains_key(&seq) {
                            return;
                        }
                        let key = self.server.keys[seq as usize - 1];
                        self.line.arrive(seq, Some(Bytes::from(vec![key])), 1);
                        self.line.wait(seq, seq, None);
                    }
                }
                Step::Drop | Step::Elsewhere => {
                    self.elsewhere.extend(self.server.deliver().map(|(seq, _)| seq));
                }
                Step::Foreign => {
                    self.line.foreign();
                    if let Some((seq, _)) = self.server.deliver() {
                        self.elsewhere.insert(seq);
                        self.theirs.insert(seq);
                    }
                }
                Step::Expire => {
                    self.theirs.clear();
                    for seq in std::mem::take(&mut self.elsewhere) {
                        self.server.pending.entry(seq).and_modify(|queued| *queued = true);
                    }
                }
                Step::LateSuccess => {
                    if let Some(seq) = self.elsewhere.pop_first() {
                        self.theirs.remove(&seq);
                        self.server.settle(seq);
                    }
                }
                Step::Count => {
                    let changes = self.line.changes();
                    let (pending, sequence) = (self.server.pending.len(), self.server.sequence);
                    if self.line.is_open() {
                        return;
                    }
                    match self.line.counted(changes, pending, sequence) {
                        Count::GiveBack => {
                            for seq in self.line.waiting() {
                                self.line.remove(seq, false);
                                self.server.pending.entry(seq).and_modify(|queued| *queued = true);
                            }
                        }
                        Count::CallBack => {
                            for (seq, queued) in &mut self.server.pending {
                                if !self.line.holds(*seq) {
                                    assert!(!self.theirs.contains(seq), "{seq} runs elsewhere");
                                    *queued = true;
                                    // Nobody has it, so nobody can succeed with it late.
                                    self.elsewhere.remove(seq);
                                }
                            }
                        }
                        Count::Open | Count::Again => {}
                    }
                }
                Step::Ack(n) => {
                    if let Some(seq) = pick(&mut self.out, n) {
                        self.server.settle(seq);
                        self.line.remove(seq, true);
                    }
                }
                Step::PutBack(n) => {
                    if let Some(seq) = pick(&mut self.out, n) {
                        self.line.put_back(seq);
                    }
                }
                Step::Retry(n) => {
                    if let Some(seq) = pick(&mut self.out, n) {
                        self.line.wait(seq, seq, Some(Timestamp::from_millis(self.now + 3)));
                    }
                }
                Step::GiveBack(n) => {
                    if let Some(seq) = pick(&mut self.out, n) {
                        self.server.pending.entry(seq).and_modify(|queued| *queued = true);
                        self.line.remove(seq, false);
                    }
                }
                Step::Tick => self.now += 1,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Whoever else reads, whatever is lost, given back or settled late: what is handed out has nothing unsettled
        /// of its key before it; and in the end everything is run.
        #[test]
        fn a_key_is_in_order_whatever_happens(steps in proptest::collection::vec(step(), 0..250)) {
            let (server, line) = (Server::default(), Line::default());
            let mut world = World { server, line, out: Vec::new(), elsewhere: BTreeSet::new(), theirs: BTreeSet::new(), now: 0 };
            for step in steps {
                world.step(step);
                world.hand_out()?;
            }
            for _ in 0..600 {
                for step in [Step::Expire, Step::Fetch, Step::Count, Step::Tick, Step::Ack(0)] {
                    world.step(step);
                    world.hand_out()?;
                }
            }
            prop_assert_eq!(world.server.settled.len(), world.server.keys.len(), "stuck");
        }
    }

    #[test]
    fn what_went_elsewhere_holds_back_what_comes_after_it() {
        let mut line = Line::default();
        assert_eq!(line.counted(0, 0, 7), Count::Open);
        // The eighth delivery went to somebody else.
        line.seen(9);
        line.arrive(12, Some(Bytes::from_static(b"k")), 1);
        line.wait(12, (), None);
        assert!(line.ready(Timestamp::from_millis(0)).is_empty());
        assert_eq!(line.counted(line.changes(), 2, 9), Count::Again, "two are unsettled, and one is in hand");
        assert_eq!(line.room(1), 1, "the other one must be able to come");
        line.seen(10);
        line.arrive(11, Some(Bytes::from_static(b"k")), 1);
        line.wait(11, (), None);
        assert_eq!(line.counted(line.changes(), 2, 10), Count::Open);
        assert_eq!(line.ready(Timestamp::from_millis(0)), [(11, ())]);
        line.remove(11, true);
        assert_eq!(line.ready(Timestamp::from_millis(0)), [(12, ())]);
    }

    #[test]
    fn what_is_lost_is_called_back_by_whoever_alone_can_have_it() {
        let mut line: Line<()> = Line::default();
        let counts = |line: &mut Line<()>, pending: usize| -> Vec<Count> {
            (0..2 * LACKING).map(|_| line.counted(line.changes(), pending, 3)).collect()
        };
        assert!(!counts(&mut line, 1).contains(&Count::CallBack), "a former owner may run it");
        assert_eq!(line.counted(line.changes(), 0, 3), Count::Open);
        line.shut();
        let lost = counts(&mut line, 1);
        assert_eq!(lost.iter().filter(|count| **count == Count::CallBack).count(), 2, "{lost:?}");
        line.foreign();
        assert!(!counts(&mut line, 1).contains(&Count::CallBack), "the owner was another one meanwhile");
    }

    #[test]
    fn what_has_no_key_waits_for_nothing() {
        let mut line = Line::default();
        assert_eq!(line.counted(0, 0, 0), Count::Open);
        for seq in [1, 2] {
            line.seen(seq);
            line.arrive(seq, None, 1);
            line.wait(seq, (), None);
        }
        assert_eq!(line.ready(Timestamp::from_millis(0)).len(), 2);
    }
}
