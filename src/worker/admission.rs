//! Who gets the next slot: a state machine without I/O or clock.
//!
//! A slot is held from the moment a delivery may arrive for it (credit) until its handler has ended. What is in hand
//! or may still arrive never exceeds the slots; each queue keeps one slot that no other can take; what is left goes
//! to hungry queues by weight. Bytes of payload are counted from receipt to confirmation.

use std::num::NonZeroUsize;

/// Slots and bytes of one process.
#[derive(Debug)]
pub struct Admission {
    total: usize,
    bytes_limit: usize,
    bytes: usize,
    /// Of these bytes, those of deliveries that were received and not started.
    waiting: usize,
    queues: Vec<Share>,
}

#[derive(Debug)]
struct Share {
    limit: usize,
    weight: usize,
    /// Slots held: in hand, running, or out as credit.
    used: usize,
    /// It asked for more than it got, and is not known to have no more than that.
    hungry: bool,
    /// Its source gave nothing the last time that it was asked, or less than it was asked for.
    sated: bool,
}

impl Admission {
    /// `queues`: the limit and the weight of each.
    pub fn new(total: NonZeroUsize, bytes_limit: usize, queues: &[(NonZeroUsize, usize)]) -> Self {
        let queues = queues
            .iter()
            .map(|&(limit, weight)| Share {
                limit: limit.get(),
                weight: weight.max(1),
                used: 0,
                hungry: false,
                sated: false,
            })
            .collect();
        Self { total: total.get(), bytes_limit: bytes_limit.max(1), bytes: 0, waiting: 0, queues }
    }

    /// Takes up to `want` slots for `queue`. With fewer than that, it is remembered as hungry, unless its source had no
    /// more to give: queues that wait for work do not make room for each other, and take one slot only where another
    /// could use the rest.
    pub fn take(&mut self, queue: usize, want: usize) -> usize {
        let waits = self.queues[queue].sated && self.wanted_by_others(queue);
        let got = self.available(queue).min(if waits { 1 } else { want });
        let share = &mut self.queues[queue];
        share.used += got;
        share.hungry = got < want && share.used < share.limit && !share.sated;
        got
    }

    /// Gives `count` slots back.
    pub fn give(&mut self, queue: usize, count: usize) {
        let share = &mut self.queues[queue];
        debug_assert!(share.used >= count, "more slots given back than taken");
        share.used = share.used.saturating_sub(count);
    }

    /// The queue has no more work than it has slots.
    pub fn sated(&mut self, queue: usize) {
        let share = &mut self.queues[queue];
        (share.hungry, share.sated) = (false, true);
    }

    /// The queue waits for something else than slots.
    pub fn not_hungry(&mut self, queue: usize) {
        self.queues[queue].hungry = false;
    }

    /// The queue got as much work as it asked for: there may be more.
    pub fn filled(&mut self, queue: usize) {
        self.queues[queue].sated = false;
    }

    /// Whether some other queue waits for a slot that this one may be holding as credit beyond its first.
    pub fn wanted_by_others(&self, queue: usize) -> bool {
        self.queues.iter().enumerate().any(|(other, share)| other != queue && share.hungry)
    }

    /// How many slots the queue could take now.
    pub fn available(&self, queue: usize) -> usize {
        let used: usize = self.queues.iter().map(|share| share.used).sum();
        let others = || self.queues.iter().enumerate().filter(|&(other, _)| other != queue).map(|(_, share)| share);
        let kept = others().filter(|share| share.used == 0).count();
        let me = &self.queues[queue];
        let free = self.total.saturating_sub(used + kept).min(me.limit.saturating_sub(me.used));
        if !others().any(|share| share.hungry) {
            return free;
        }
        let weights: usize = me.weight + others().filter(|share| share.hungry).map(|share| share.weight).sum::<usize>();
        let fair = |share: &Share| (self.total * share.weight / weights).max(1).min(share.limit);
        let owed: usize =
            others().filter(|share| share.hungry).map(|share| fair(share).saturating_sub(share.used)).sum();
        free.min(fair(me).saturating_sub(me.used).max(free.saturating_sub(owed)))
    }

    /// Slots that the queue holds.
    pub fn used(&self, queue: usize) -> usize {
        self.queues[queue].used
    }

    /// The queue's own limit.
    pub fn limit(&self, queue: usize) -> usize {
        self.queues[queue].limit
    }

    /// Changes the queue's limit; what runs beyond it ends by itself.
    pub fn set_limit(&mut self, queue: usize, limit: NonZeroUsize) {
        self.queues[queue].limit = limit.get();
    }

    /// Bytes that may still be received; 0 where the limit is reached.
    pub fn bytes_left(&self) -> usize {
        self.bytes_limit.saturating_sub(self.bytes)
    }

    /// Bytes in flight.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The limit of bytes in flight.
    pub fn bytes_limit(&self) -> usize {
        self.bytes_limit
    }

    /// `bytes` of payload were received, to be started later.
    pub fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.waiting += bytes;
    }

    /// `bytes` of what was received are started, or given back.
    pub fn start(&mut self, bytes: usize) {
        debug_assert!(self.waiting >= bytes, "more bytes started than received");
        self.waiting = self.waiting.saturating_sub(bytes);
    }

    /// Whether nothing is in flight but what waits to be started: what is larger than the limit may start then. Such
    /// ones must not count each other, or each would wait for the other for good.
    pub fn is_alone(&self) -> bool {
        self.bytes == self.waiting
    }

    /// `bytes` of payload were settled, confirmed.
    pub fn remove_bytes(&mut self, bytes: usize) {
        debug_assert!(self.bytes >= bytes, "more bytes given back than received");
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// How many of `jobs` are for the fresh and for the retry lane where they have work: with both at work each gets at
/// least a quarter of the queue's slots; with fewer slots than that needs they take turns.
pub fn floors(slots: usize, fresh_held: usize, retry_held: usize, jobs: usize, retry_turn: bool) -> (usize, usize) {
    let quarter = slots.div_ceil(4);
    let fresh = quarter.saturating_sub(fresh_held).min(jobs);
    let retry = quarter.saturating_sub(retry_held).min(jobs);
    if fresh + retry <= jobs {
        return (fresh, retry);
    }
    if retry_turn { (jobs - retry, retry) } else { (fresh, jobs - fresh) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slots(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).expect("not 0")
    }

    #[test]
    fn a_hungry_queue_gets_its_share_back() {
        let mut admission = Admission::new(slots(10), 1, &[(slots(10), 1), (slots(10), 1)]);
        assert_eq!(admission.take(0, 10), 9, "one slot stays the other queue's own");
        assert_eq!(admission.take(1, 10), 1);
        for _ in 0..4 {
            admission.give(0, 1);
            assert_eq!(admission.take(0, 1), 0, "the other is owed this one");
            assert_eq!(admission.take(1, 10), 1);
        }
        admission.give(0, 1);
        assert_eq!(admission.take(0, 1), 1, "each has its half");
    }

    #[test]
    fn a_queue_that_waits_for_work_leaves_the_slots_to_one_that_has_it() {
        let mut admission = Admission::new(slots(10), 1, &[(slots(10), 1), (slots(10), 1)]);
        assert_eq!(admission.take(1, 10), 9, "nobody else wants them");
        admission.sated(1);
        assert_eq!(admission.take(0, 10), 1);
        assert!(admission.wanted_by_others(1));
        admission.give(1, 9);
        assert_eq!(admission.take(1, 10), 1, "it waits with one");
        assert_eq!(admission.take(0, 10), 8, "the other has the rest");
        admission.filled(1);
        assert_eq!(admission.take(1, 10), 0);
        admission.give(0, 5);
        assert_eq!(admission.take(1, 10), 4, "its work has come: it has its share again");
    }

    #[test]
    fn a_queue_that_cannot_work_is_owed_nothing() {
        let mut admission = Admission::new(slots(10), 1, &[(slots(10), 1), (slots(10), 1)]);
        assert_eq!(admission.take(0, 10), 9);
        assert_eq!(admission.take(1, 10), 1);
        assert!(admission.wanted_by_others(0));
        admission.not_hungry(1);
        assert!(!admission.wanted_by_others(0));
        admission.give(0, 5);
        assert_eq!(admission.take(0, 5), 5);
    }

    #[test]
    fn lanes_take_turns_on_one_slot() {
        assert_eq!(floors(1, 0, 0, 1, true), (0, 1));
        assert_eq!(floors(1, 0, 0, 1, false), (1, 0));
        assert_eq!(floors(64, 0, 0, 64, false), (16, 16));
        assert_eq!(floors(64, 63, 0, 1, false), (0, 1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(usize, usize),
        Give(usize, usize),
        Sated(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0usize..4, 1usize..20).prop_map(|(q, n)| Step::Take(q, n)),
            (0usize..4, 1usize..20).prop_map(|(q, n)| Step::Give(q, n)),
            (0usize..4).prop_map(Step::Sated),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Never more than the slots, never more than a queue's limit, and a queue that holds none always gets one.
        #[test]
        fn slots_are_never_exceeded_and_nobody_starves(
            total in 4usize..40, limits in proptest::collection::vec(1usize..40, 4),
            weights in proptest::collection::vec(1usize..5, 4), steps in steps(),
        ) {
            let queues: Vec<_> = limits.iter().zip(&weights).map(|(&l, &w)| (slots(l), w)).collect();
            let mut admission = Admission::new(slots(total), 1, &queues);
            let mut model = [0usize; 4];
            for step in steps {
                match step {
                    Step::Take(q, want) => {
                        let got = admission.take(q, want);
                        prop_assert!(got <= want);
                        prop_assert!(model[q] > 0 || got > 0, "queue {} holds none and got none", q);
                        model[q] += got;
                    }
                    Step::Give(q, n) => {
                        let n = n.min(model[q]);
                        admission.give(q, n);
                        model[q] -= n;
                    }
                    Step::Sated(q) => admission.sated(q),
                }
                prop_assert!(model.iter().sum::<usize>() <= total);
                for q in 0..4 {
                    prop_assert_eq!(model[q], admission.used(q));
                    prop_assert!(model[q] <= limits[q]);
                }
            }
        }

        /// Queues that always want more end at their weighted shares.
        #[test]
        fn hungry_queues_end_at_their_shares(weights in proptest::collection::vec(1usize..6, 2..4)) {
            let total = 60;
            let queues: Vec<_> = weights.iter().map(|&w| (slots(total), w)).collect();
            let mut admission = Admission::new(slots(total), 1, &queues);
            for round in 0..500 {
                for q in 0..weights.len() {
                    let _ = admission.take(q, total);
                    if round < 499 && admission.used(q) > 0 {
                        admission.give(q, 1);
                    }
                }
            }
            let sum: usize = weights.iter().sum();
            for (q, weight) in weights.iter().enumerate() {
                let fair = total * weight / sum;
                let used = admission.used(q);
                prop_assert!(used + 2 >= fair.max(1), "queue {} has {} of a fair {}", q, used, fair);
            }
        }

        /// The floors never promise more than there is, and a lane under its quarter is served.
        #[test]
        fn floors_fit(slots in 1usize..200, fresh in 0usize..200, retry in 0usize..200, jobs in 1usize..200, turn: bool) {
            let (f, r) = floors(slots, fresh, retry, jobs, turn);
            prop_assert!(f + r <= jobs);
            if jobs >= 2 * slots.div_ceil(4) {
                prop_assert!(fresh + f >= slots.div_ceil(4) && retry + r >= slots.div_ceil(4));
            }
        }
    }
}
