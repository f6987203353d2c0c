//! What one queue of this process holds: its partitions, shared by the poll thread, the source and the settler.
//!
//! One lock, held for a batch at a time and never across I/O. Partitions are found by the first half of a token; a
//! delivery that outlived its assignment finds the partition's new one, if the same process got it back and the
//! record came again (it then joined that run).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::consumer::ConsumerGroupMetadata;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::super::{Credit, Delivery, Error, Head, Lane, Leases, Lost, Overtaken, Token, Trouble};
use super::batch::Part;
use super::native::Wake;
use super::partition::{Partition, Phase};
use crate::message::Message;
use crate::seeded;
use crate::time::{Clock, Timestamp};

/// Records held and not handed out, over all partitions.
const READ_AHEAD: usize = 16_384;
/// Their bytes.
const READ_AHEAD_BYTES: usize = 16 * 1024 * 1024;

/// A record that replaces another, to be written in one transaction with the commit that ends that one.
pub struct Move {
    /// The delivery that it ends.
    pub token: Token,
    /// The partition that it leaves: its delivery's, or that of a later assignment which its run has joined.
    pub partition: u64,
    /// Where it goes.
    pub topic: String,
    /// What is written.
    pub message: Message,
    /// Whether it is a dead letter: what keeps it from being stored stops the queue.
    pub dead: bool,
    /// Who waits.
    pub part: Part,
}

impl Move {
    /// The offset of what it replaces.
    pub fn offset(&self) -> i64 {
        self.token.1 as i64
    }
}

/// What poll thread, source and settler share.
pub struct Shared {
    /// Everything else.
    pub state: Mutex<State>,
    /// Something may be handed out.
    pub arrived: Notify,
    /// Wakes the poll thread.
    pub wake: Arc<Wake>,
    /// The wall clock.
    pub clock: Clock,
    /// Deliveries of an ordered queue.
    pub ordered: bool,
}

/// What a queue holds.
#[derive(Default)]
pub struct State {
    /// By id.
    pub partitions: HashMap<u64, Partition, foldhash::fast::RandomState>,
    /// Ids, in the order in which they are served next.
    rotation: Vec<u64>,
    /// Runs that outlived their assignment: topic and partition, offset, the id they run under.
    ghosts: HashMap<(Arc<str>, i32), HashMap<i64, u64>>,
    /// There may be some, or partitions that are asked back: for who asks without the lock.
    outlived: Arc<AtomicBool>,
    /// Settled by a move, not yet taken by the mover.
    pub moves: Vec<Move>,
    /// Intake has ended.
    pub stopping: bool,
    /// The poll thread is to leave now, whatever is in hand.
    pub closing: bool,
    /// Something to say to the source even though nothing arrived.
    pub news: bool,
    /// What ended the source.
    pub fatal: Option<Error>,
    /// What retention removed before it was handed out, since the engine asked last.
    pub overtaken: Vec<Overtaken>,
    /// What keeps us from settling.
    pub trouble: Option<Trouble>,
    /// Nothing could be handed out for a while, because partitions are full of what waits for its key or behind one
    /// that does not end.
    pub waits_for_order: bool,
    /// Deliveries handed out so far.
    pub handed: u64,
    /// Whether the group's coordinator has answered.
    pub connected: bool,
    /// Last lane that got the odd one.
    odd: bool,
}

/// Group metadata of the consumer at the time of a transaction.
pub type Generation = ConsumerGroupMetadata;

impl State {
    /// Adds a partition that was just assigned. One of an assignment that ended without a word ends now.
    pub fn add(&mut self, partition: Partition) {
        if let Some(before) = self.at(&partition.topic.clone(), partition.number).map(|before| before.id) {
            self.remove(before);
        }
        self.rotation.push(partition.id);
        self.partitions.insert(partition.id, partition);
    }

    /// A partition is asked back: nothing more of it begins, not even what the engine has in hand. It would have less than
    /// the grace to end.
    pub fn drain(&mut self, id: u64) {
        if let Some(partition) = self.partitions.get_mut(&id) {
            partition.drain();
            self.outlived.store(true, Ordering::Release);
        }
    }

    /// Removes a partition that went away; what still runs of it may join when it comes back.
    pub fn remove(&mut self, id: u64) {
        if crate::seeded::bug("commit-after-revocation") {
            return;
        }
        let Some(partition) = self.partitions.remove(&id) else { return };
        self.rotation.retain(|other| *other != id);
        let place = (partition.topic.clone(), partition.number);
        let running = partition.end();
        self.outlived.fetch_or(!running.is_empty(), Ordering::Release);
        if !running.is_empty() && !seeded::bug("run-forgotten") {
            self.ghosts.entry(place).or_default().extend(running);
        }
    }

    /// The run of an earlier assignment that still has this record, if there is one.
    pub fn ghosts(&self, topic: &Arc<str>, number: i32) -> Option<&HashMap<i64, u64>> {
        self.ghosts.get(&(topic.clone(), number))
    }

    /// The runs of an earlier assignment were taken over by a new one.
    pub fn adopt(&mut self, topic: &Arc<str>, number: i32, offsets: &[i64]) {
        if let Some(runs) = self.ghosts.get_mut(&(topic.clone(), number)) {
            for offset in offsets {
                runs.remove(offset);
            }
        }
    }

    /// The partition at this place.
    pub fn at(&mut self, topic: &str, number: i32) -> Option<&mut Partition> {
        self.partitions.values_mut().find(|partition| partition.number == number && &*partition.topic == topic)
    }

    /// The partition that a delivery belongs to now.
    pub fn of(&mut self, token: Token) -> Option<&mut Partition> {
        let offset = token.1 as i64;
        if self.partitions.contains_key(&token.0) {
            return self.partitions.get_mut(&token.0);
        }
        if crate::seeded::bug("epoch-forgotten") {
            return self.partitions.values_mut().find(|partition| partition.owns(offset));
        }
        self.partitions.values_mut().find(|partition| partition.runs_as(offset) == Some(token.0))
    }

    /// Forgets a run that ended without its partition having come back.
    pub fn forget(&mut self, token: Token) {
        for runs in self.ghosts.values_mut() {
            if runs.get(&(token.1 as i64)) == Some(&token.0) {
                runs.remove(&(token.1 as i64));
            }
        }
        self.ghosts.retain(|_, runs| !runs.is_empty());
    }

    /// Hands out within the credit, lane by lane and partition by partition in turn.
    pub fn hand(&mut self, credit: Credit) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        if self.stopping {
            return deliveries;
        }
        let both = [Lane::Fresh, Lane::Retry].map(|lane| self.partitions.values().any(|p| p.has(lane)));
        let mut quota = match both {
            [false, false] => return deliveries,
            [true, false] => [credit.jobs, 0],
            [false, true] => [0, credit.jobs],
            [true, true] => {
                let spare = credit.jobs.saturating_sub(credit.fresh_floor + credit.retry_floor);
                self.odd = !self.odd;
                let fresh = (credit.fresh_floor + spare.div_ceil(2)).min(credit.jobs);
                let retry = credit.jobs - fresh;
                // With one slot they take turns.
                if credit.jobs == 1 && self.odd { [0, 1] } else { [fresh, retry] }
            }
        };
        let there: usize = self.partitions.values().map(Partition::buffered).sum();
        deliveries.reserve(credit.jobs.min(there));
        let mut bytes = credit.bytes;
        let mut suspect = credit.suspect;
        // What one lane leaves, the other gets.
        for lane in [Lane::Retry, Lane::Fresh, Lane::Retry] {
            let index = usize::from(lane == Lane::Retry);
            let handed = self.hand_lane(lane, quota[index], &mut bytes, &mut suspect, &mut deliveries);
            let left = quota[index] - handed;
            quota[index] = 0;
            quota[1 - index] += if both[1 - index] { left } else { 0 };
        }
        self.handed += deliveries.len() as u64;
        self.waits_for_order &= deliveries.is_empty();
        deliveries
    }

    fn hand_lane(
        &mut self,
        lane: Lane,
        jobs: usize,
        bytes: &mut usize,
        suspect: &mut bool,
        into: &mut Vec<Delivery>,
    ) -> usize {
        let mut left = jobs;
        while left > 0 && (*bytes > 0 || into.is_empty()) {
            let ready = self.partitions.values().filter(|partition| partition.has(lane)).count();
            if ready == 0 {
                break;
            }
            let share = left.div_ceil(ready);
            let mut handed = 0;
            for turn in 0..self.rotation.len() {
                let Some(partition) = self.partitions.get_mut(&self.rotation[turn]) else { continue };
                handed += partition.hand(lane, share.min(left - handed), bytes, suspect, into);
                if handed == left {
                    // The next call begins behind this one.
                    self.rotation.rotate_left(turn + 1);
                    break;
                }
            }
            left -= handed;
            if handed == 0 {
                break;
            }
        }
        jobs - left
    }

    /// Moves what is due to where it is handed out from; says whether there is anything, and when the next is due.
    pub fn promote(&mut self, now: Timestamp) -> (bool, Option<Timestamp>) {
        let mut next: Option<Timestamp> = None;
        for partition in self.partitions.values_mut() {
            if let Some(due) = partition.promote(now) {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        let any = self.partitions.values().any(|p| p.has(Lane::Fresh) || p.has(Lane::Retry));
        (any, next)
    }

    /// Whether anything was settled that a commit has not confirmed.
    pub fn settled(&self) -> bool {
        self.moves.is_empty() && self.partitions.values().all(Partition::settled)
    }

    /// How many records and bytes each partition may hold that are not handed out.
    pub fn read_ahead(&self) -> (usize, usize) {
        let count = self.partitions.len().max(1);
        ((READ_AHEAD / count).max(64), (READ_AHEAD_BYTES / count).max(256 * 1024))
    }

    /// Whether a partition that the poll thread found full has room for many again. Says so once.
    pub fn has_room_again(&mut self) -> bool {
        let (records, bytes) = self.read_ahead();
        let mut any = false;
        for partition in self.partitions.values_mut().filter(|partition| partition.full) {
            partition.full = partition.room(records, bytes / 2) < records / 2;
            any |= !partition.full;
        }
        any
    }

    /// What has held up its partition for longest; one that lets nothing more be handed out before one that does.
    pub fn head(&self, now: Timestamp) -> Option<Head> {
        let heads = self.partitions.values().filter_map(|partition| partition.head(now));
        heads.max_by_key(|head| (head.full, head.age))
    }

    /// Deliveries in hand.
    pub fn in_hand(&self) -> usize {
        self.partitions.values().map(Partition::in_hand).sum()
    }
}

/// The leases of a queue's deliveries: theirs is the partition's, which the poll thread keeps by polling.
pub struct Lease {
    shared: Weak<Shared>,
    outlived: Arc<AtomicBool>,
}

impl Lease {
    /// The leases of this queue. Takes its lock.
    pub fn of(shared: &Arc<Shared>) -> Self {
        let outlived = shared.state.lock().outlived.clone();
        Self { shared: Arc::downgrade(shared), outlived }
    }
}

impl Leases for Lease {
    fn release(&self, token: Token) {
        let Some(shared) = self.shared.upgrade() else { return };
        {
            let mut state = shared.state.lock();
            match state.of(token) {
                Some(partition) => partition.release(token.1 as i64, None),
                None => state.forget(token),
            }
        }
        shared.wake.wake();
    }

    fn may_begin(&self, token: Token) -> bool {
        if !self.outlived.load(Ordering::Acquire) {
            return true;
        }
        let Some(shared) = self.shared.upgrade() else { return false };
        let mut state = shared.state.lock();
        let drains = |partition: &Partition| partition.phase == Phase::Draining;
        if state.ghosts.values().all(HashMap::is_empty) && !state.partitions.values().any(drains) {
            self.outlived.store(false, Ordering::Release);
        }
        state.of(token).is_some_and(|partition| !drains(partition))
    }

    fn lost(&self, token: Token) -> Lost {
        let gone = || {
            let token = CancellationToken::new();
            token.cancel();
            token
        };
        let Some(shared) = self.shared.upgrade() else { return gone() };
        let mut state = shared.state.lock();
        state.of(token).map_or_else(gone, |partition| partition.lost(token.1 as i64))
    }
}

/// How long until `at`, for a thread that parks.
pub fn until(clock: &Clock, at: Timestamp) -> Duration {
    clock.now().until(at)
}

#[cfg(test)]
mod tests {
    use super::super::native::Arrived;
    use super::super::takeover::{open, partition, read};
    use super::*;

    fn opened(number: i32) -> Partition {
        let mut partition = partition(number as u64, 0, None, false);
        partition.number = number;
        open(&mut partition);
        partition
    }

    #[test]
    fn a_full_partition_is_read_again_once_it_has_room_for_many() {
        let mut state = State::default();
        state.add(opened(1));
        state.add(opened(2));
        let (records, bytes) = state.read_ahead();
        let credit = |jobs| Credit { jobs, fresh_floor: 0, retry_floor: 0, bytes: usize::MAX, suspect: true };
        let one = state.partitions.get_mut(&1).expect("added");
        read(one, 0..(records * 3 / 4) as i64);
        assert_eq!(one.room(records, bytes), records - records * 3 / 4, "a quarter is worth a read");
        read(one, (records * 3 / 4) as i64..(records * 3 / 4 + 1) as i64);
        assert_eq!(one.room(records, bytes), 0, "less is not");
        one.full = true;
        assert!(!state.has_room_again());
        let mut out = state.hand(credit(records / 4));
        assert!(!state.has_room_again(), "half of it is still there");
        out.extend(state.hand(credit(1)));
        assert!(state.has_room_again());
        assert!(!state.has_room_again(), "it is said once");
    }

    #[test]
    fn what_outlived_its_assignment_does_not_begin_unless_it_joined_the_next() {
        let mut state = State::default();
        let mut first = opened(0);
        read(&mut first, 0..1);
        let topic = first.topic.clone();
        state.add(first);
        let credit = Credit { jobs: 1, fresh_floor: 0, retry_floor: 0, bytes: usize::MAX, suspect: true };
        let waiting = state.hand(credit).remove(0);
        let shared = Shared {
            state: Mutex::new(state),
            arrived: Notify::new(),
            wake: Arc::default(),
            clock: Clock::System,
            ordered: false,
        };
        let shared = Arc::new(shared);
        let lease = Lease::of(&shared);
        assert!(lease.may_begin(waiting.token));
        shared.state.lock().drain(0);
        assert!(!lease.may_begin(waiting.token), "it is asked back: what begins now might outlive the grace");
        shared.state.lock().remove(0);
        assert!(!lease.may_begin(waiting.token), "it may run elsewhere by now");
        // The same worker gets the partition back, and reads the record again.
        let runs = shared.state.lock().ghosts(&topic, 0).cloned().expect("it is still in hand");
        let mut second = partition(7, 0, None, false);
        let record = Arrived { offset: 0, at: Timestamp::from_millis(1), message: Message::default() };
        second.arrive(
            [record].into_iter(),
            |offset| runs.get(&offset).copied(),
            |_| Ok(None),
            Timestamp::from_millis(1),
        );
        open(&mut second);
        shared.state.lock().add(second);
        assert!(lease.may_begin(waiting.token), "it goes on in the new assignment");
        assert!(lease.may_begin(Token(7, 5)), "so does what is of the new one");
    }
}
