//! What is in hand: deliveries that were received and are not settled, and their leases. No I/O, no clock.
//!
//! A lease runs from the earliest moment at which the server may have sent a message, or from the moment a renewal
//! was *sent* that the server answered; it ends `lease` later. Until then the server gives the message to nobody else. After it nothing may be
//! sent but a success: a late refusal would hand out a third time what somebody else is working on.
//!
//! A message that comes again while it is in hand joins: its newer reply subject and lease replace the old ones. One
//! that comes again after it was done is acknowledged again from a memory of what is done, without running.

use std::collections::HashMap;
use std::time::Duration;

use super::credit::Moment;
use crate::seeded;

/// A delivery in hand, by its consumer's number here and its sequence in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub u64, pub u64);

/// How far a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Being looked up, waiting to be handed over, running, or being replaced by a record or a dead letter.
    Owned,
    /// Only its acknowledgement is not confirmed yet. Its lease is not renewed any more: a server that has forgotten
    /// the delivery renews it and ignores the acknowledgement, for ever.
    Acknowledging,
}

/// A delivery in hand.
#[derive(Debug)]
pub struct Held<R> {
    /// Where acknowledgements go.
    pub reply: R,
    /// When the server stored the message, in nanoseconds: a stream that was made anew counts from 1 again.
    pub stored: i64,
    /// The connection that it was received on.
    pub epoch: u64,
    /// How far it is.
    pub stage: Stage,
    /// The lease has ended.
    pub lost: bool,
    /// It is being settled: by which call, and its place there.
    pub settling: Option<(u64, u32)>,
    ends: Moment,
    renewed: Moment,
}

/// What to make of a message that came.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<R> {
    /// It is new here: it is in hand from now on.
    New,
    /// It is in hand already; the newer lease has replaced the older.
    Joined,
    /// It was done here: acknowledge it again, there.
    Done(R),
    /// It was on its way for so long that its lease may have ended: it is somebody else's, or comes again.
    Late,
}

/// The deliveries in hand.
pub struct Hand<R> {
    lease: Duration,
    held: HashMap<Key, Held<R>, foldhash::fast::FixedState>,
    /// By consumer and the sequence's remainder: neighbours in a stream are neighbours here. A sequence that was not
    /// done is 0, which no stream has.
    done: Vec<Vec<(u64, i64)>>,
    checked: Moment,
}

/// How many finished deliveries of a consumer are remembered: the last of each remainder.
const REMEMBERED: usize = 8_192;

impl<R: Clone> Hand<R> {
    /// Nothing in hand; leases last `lease`.
    pub fn new(lease: Duration) -> Self {
        let held = HashMap::with_hasher(foldhash::fast::FixedState::default());
        Self { lease, held, done: Vec::new(), checked: Moment::ZERO }
    }

    /// Deliveries in hand.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// A message came that the server sent us at `since` or later: its lease began then.
    pub fn arrive(&mut self, key: Key, reply: R, stored: i64, epoch: u64, since: Moment, now: Moment) -> Arrival<R> {
        let since = if seeded::bug("lease-from-arrival") { now } else { since };
        let ends = since + self.lease;
        if now >= ends {
            return Arrival::Late;
        }
        if let Some(held) = self.held.get_mut(&key)
            && held.stored == stored
        {
            held.reply = reply;
            held.epoch = epoch;
            held.lost = false;
            held.renewed = since;
            held.ends = ends;
            return Arrival::Joined;
        }
        if self.done.get(key.0 as usize).and_then(|done| done.get(place(key))) == Some(&(key.1, stored)) {
            return Arrival::Done(reply);
        }
        let (stage, renewed) = (Stage::Owned, since);
        self.held.insert(key, Held { reply, stored, epoch, stage, lost: false, settling: None, ends, renewed });
        Arrival::New
    }

    /// The call that settles it, and its place there; told once.
    pub fn take_settling(&mut self, key: Key) -> Option<(u64, u32)> {
        self.held.get_mut(&key)?.settling.take()
    }

    /// What is known of a delivery in hand.
    pub fn get(&self, key: Key) -> Option<&Held<R>> {
        self.held.get(&key)
    }

    /// Likewise, to act on it now: whether its lease has ended is looked at anew, and `lost` told the first time.
    pub fn act(&mut self, key: Key, now: Moment, lost: impl FnOnce()) -> Option<&mut Held<R>> {
        let held = self.held.get_mut(&key)?;
        if !held.lost && now >= held.ends && !seeded::bug("lease-endless") {
            held.lost = true;
            lost();
        }
        Some(held)
    }

    /// All in hand that is more than an acknowledgement.
    pub fn owned(&self) -> impl Iterator<Item = Key> {
        self.held.iter().filter(|(_, held)| held.stage == Stage::Owned).map(|(key, _)| *key)
    }

    /// Its disposition is stored, or it is given back: out of hand. `done`: remember it.
    pub fn remove(&mut self, key: Key, done: bool) -> Option<Held<R>> {
        let held = self.held.remove(&key)?;
        if done {
            self.remember(key, held.stored);
        }
        Some(held)
    }

    /// Remembers that a message needs no more than an acknowledgement.
    pub fn remember(&mut self, key: Key, stored: i64) {
        let consumer = key.0 as usize;
        if self.done.len() <= consumer {
            self.done.resize_with(consumer + 1, Vec::new);
        }
        let done = &mut self.done[consumer];
        if done.is_empty() {
            done.resize(REMEMBERED, (0, 0));
        }
        done[place(key)] = (key.1, stored);
    }

    /// A renewal that was sent at `sent` was answered.
    pub fn renewed(&mut self, key: Key, sent: Moment) {
        if let Some(held) = self.held.get_mut(&key)
            && !held.lost
        {
            held.ends = held.ends.max(sent + self.lease);
        }
    }

    /// Which leases to renew now, and which have ended. Looks at every delivery in hand, ten times a lease at most.
    pub fn check(&mut self, now: Moment, renew: &mut Vec<Key>, lost: &mut Vec<Key>) {
        if now < self.next_check() {
            return;
        }
        self.checked = now;
        for (key, held) in &mut self.held {
            if held.lost {
                continue;
            }
            if now >= held.ends && !seeded::bug("lease-endless") {
                held.lost = true;
                lost.push(*key);
            } else if held.stage == Stage::Owned && now >= held.renewed + self.lease / 3 {
                held.renewed = now;
                renew.push(*key);
            }
        }
    }

    /// When [`Hand::check`] looks next.
    pub fn next_check(&self) -> Moment {
        self.checked + self.lease / 10
    }
}

fn place(key: Key) -> usize {
    key.1 as usize % REMEMBERED
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: Duration = Duration::from_secs(30);

    proptest! {
        /// A delivery is lost exactly when no renewal was answered for a lease, give or take the time between two
        /// looks, and is renewed at a third of its lease.
        #[test]
        fn leases_end_when_nobody_answers(answers in proptest::collection::vec(any::<bool>(), 1..60)) {
            let mut hand = Hand::new(LEASE);
            let key = Key(0, 1);
            hand.arrive(key, (), 1, 1, Moment::ZERO, Moment::ZERO);
            let (mut last_sure, mut answers) = (Moment::ZERO, answers.into_iter());
            let (mut now, mut renew, mut lost) = (Moment::ZERO, Vec::new(), Vec::new());
            'alive: loop {
                now += LEASE / 10;
                hand.check(now, &mut renew, &mut lost);
                for key in renew.drain(..) {
                    match answers.next() {
                        Some(true) => {
                            hand.renewed(key, now);
                            last_sure = now;
                        }
                        Some(false) => {}
                        None => break 'alive,
                    }
                }
                if !lost.is_empty() {
                    prop_assert!(now >= last_sure + LEASE);
                    prop_assert!(now <= last_sure + LEASE + LEASE / 10);
                    break;
                }
                prop_assert!(now < last_sure + LEASE);
            }
        }

        #[test]
        fn memory_of_what_is_done_is_bounded(seqs in proptest::collection::vec(0u64..40_000, 0..20_000)) {
            let mut hand = Hand::<()>::new(LEASE);
            for &seq in &seqs {
                hand.remember(Key(0, seq + 1), 1);
            }
            prop_assert!(hand.done.iter().all(|done| done.len() <= REMEMBERED));
            // Those that nothing of the same place has come after.
            let mut places = std::collections::HashSet::new();
            for &seq in seqs.iter().rev() {
                let known = hand.arrive(Key(0, seq + 1), (), 1, 1, Moment::ZERO, Moment::ZERO) == Arrival::Done(());
                let is_last = places.insert(place(Key(0, seq + 1)));
                prop_assert!(known || !is_last);
            }
        }
    }

    #[test]
    fn what_comes_again_joins_or_is_done() {
        let mut hand = Hand::new(LEASE);
        let key = Key(0, 7);
        assert_eq!(hand.arrive(key, "a", 1, 1, Moment::ZERO, Moment::ZERO), Arrival::New);
        let (mut renew, mut lost) = (Vec::new(), Vec::new());
        hand.check(LEASE, &mut renew, &mut lost);
        assert_eq!(lost, [key]);
        assert_eq!(hand.arrive(key, "b", 1, 2, LEASE, LEASE), Arrival::Joined);
        let held = hand.get(key).expect("in hand");
        assert_eq!((held.reply, held.lost, held.epoch), ("b", false, 2));
        hand.remove(key, true);
        assert_eq!(hand.arrive(key, "c", 1, 2, LEASE, LEASE), Arrival::Done("c"));
        assert_eq!(hand.arrive(key, "d", 2, 2, LEASE, LEASE), Arrival::New, "the stream was made anew");
    }

    #[test]
    fn what_was_too_long_on_its_way_is_not_ours() {
        let mut hand = Hand::new(LEASE);
        let key = Key(0, 7);
        assert_eq!(hand.arrive(key, (), 1, 1, Moment::ZERO, LEASE), Arrival::Late);
        assert!(hand.get(key).is_none());
        assert_eq!(hand.arrive(key, (), 1, 1, Moment::ZERO, LEASE / 2), Arrival::New);
        let (mut renew, mut lost) = (Vec::new(), Vec::new());
        hand.check(LEASE / 2, &mut renew, &mut lost);
        assert_eq!(renew, [key], "half of its lease is over already");
    }

    #[test]
    fn what_was_given_back_is_not_done() {
        let mut hand = Hand::new(LEASE);
        let key = Key(1, 7);
        hand.arrive(key, (), 1, 1, Moment::ZERO, Moment::ZERO);
        hand.remove(key, false);
        assert_eq!(hand.arrive(key, (), 1, 1, Moment::ZERO, Moment::ZERO), Arrival::New);
    }
}
