//! Tests of partitions over the death of their owners: what one commits is all that the next one knows.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::{Channel, Delivery, Disposition, Lane, Leases, Lost, Settled, Token};
use super::batch::Batch;
use super::memo::{self, Memo};
use super::native::Arrived;
use super::partition::{Partition, Setup, Snapshot};
use super::state::State;
use crate::message::record::Record;
use crate::message::{Attempt, Binding, Failure, Message, Place};
use crate::time::Timestamp;

/// Of records that are only looked at.
struct NoLease;

impl Leases for NoLease {
    fn release(&self, _: Token) {}
    fn lost(&self, _: Token) -> Lost {
        Lost::new()
    }
}

pub(super) const NOW: Timestamp = Timestamp::from_millis(1_000_000);

pub(super) fn partition(id: u64, committed: i64, memo: Option<Memo>, ordered: bool) -> Partition {
    of_lane(Lane::Fresh, id, committed, memo, ordered)
}

/// A partition of the queue's own topic.
pub(super) fn retries(id: u64) -> Partition {
    of_lane(Lane::Retry, id, 0, None, false)
}

fn of_lane(lane: Lane, id: u64, committed: i64, memo: Option<Memo>, ordered: bool) -> Partition {
    let place = Arc::new(Place {
        position: "kafka:t:0".to_owned(),
        source: "kafka://t".to_owned(),
        topic: Some("t".into()),
        binding: Binding::Kafka,
    });
    let [first, again] =
        [lane, Lane::Retry].map(|lane| Arc::new(Channel { lane, place: place.clone(), leases: Arc::new(NoLease) }));
    let topic = if lane == Lane::Fresh { "t" } else { "work" };
    // Each is another worker's, unless a test says otherwise.
    let owner = id as u32;
    let topic = topic.into();
    Partition::new(Setup {
        id,
        topic,
        number: 0,
        first,
        again,
        committed,
        memo,
        owner,
        ordered,
        max_crashes: 3,
        limit: memo::LIMIT,
    })
}

/// The next owner, who knows what was committed and reads the log from there.
fn next_owner(id: u64, snapshot: &Snapshot, log: i64, ordered: bool) -> Partition {
    let memo = Memo::read(&snapshot.metadata, snapshot.offset);
    assert!(memo.is_some(), "our own metadata is read");
    let mut partition = partition(id, snapshot.offset, memo, ordered);
    read(&mut partition, snapshot.offset..log);
    open(&mut partition);
    partition.judge();
    partition
}

pub(super) fn read(partition: &mut Partition, offsets: std::ops::Range<i64>) {
    let records = offsets.map(|offset| Arrived {
        offset,
        at: NOW,
        message: Message {
            body: Some(Bytes::from_static(b"1")),
            key: Some(Bytes::from(vec![(offset % 3) as u8])),
            ..Message::default()
        },
    });
    partition.arrive(records, |_| None, |_| Ok(None), NOW);
}

pub(super) fn commit(partition: &mut Partition) -> Snapshot {
    let snapshot = partition.snapshot(memo::LIMIT, &[], false);
    partition.confirmed(&snapshot);
    snapshot
}

pub(super) fn open(partition: &mut Partition) -> Snapshot {
    commit(partition)
}

pub(super) fn hand(partition: &mut Partition, jobs: usize) -> Vec<Delivery> {
    let mut into = Vec::new();
    let (mut bytes, mut suspect) = (1 << 20, true);
    let retries = partition.hand(Lane::Retry, jobs, &mut bytes, &mut suspect, &mut into);
    partition.hand(Lane::Fresh, jobs - retries, &mut bytes, &mut suspect, &mut into);
    into
}

pub(super) fn offset(delivery: &Delivery) -> i64 {
    delivery.token.1 as i64
}

/// Settles as the settler does; dropping a delivery of these tests releases nothing.
fn ack(partition: &mut Partition, delivery: Delivery) -> tokio::sync::oneshot::Receiver<Vec<Settled>> {
    let (batch, receiver) = Batch::new(1);
    let at = offset(&delivery);
    drop(delivery.settle(Disposition::Ack).take());
    assert!(partition.finish(at, batch.part(0, 1)).is_ok());
    receiver
}

/// The same where nobody asks whether it is stored.
pub(super) fn finish(partition: &mut Partition, delivery: Delivery) {
    drop(ack(partition, delivery));
}

pub(super) fn again(partition: &mut Partition, delivery: Delivery, attempt: u32, due: Timestamp) {
    let (batch, _) = Batch::new(1);
    let at = offset(&delivery);
    let (mut delivery, _) = delivery.settle(Disposition::Release).take();
    let record = delivery.record.take().unwrap_or_default();
    let failure = Failure::new("E", "no", NOW, NOW);
    let attempt = Attempt::new(attempt).expect("not 0");
    let record: Box<Record> = Box::new(record.again(due, attempt, Some(failure), None));
    partition.retry(at, std::mem::take(&mut delivery.message), NOW, record, batch.part(0, 1));
}

#[test]
fn nothing_is_handed_out_before_the_first_commit_says_that_somebody_works_here() {
    let mut partition = partition(1, 0, None, false);
    read(&mut partition, 0..3);
    assert!(hand(&mut partition, 3).is_empty());
    open(&mut partition);
    assert_eq!(hand(&mut partition, 3).len(), 3);
}

#[test]
fn a_settlement_is_stored_when_the_commit_that_covers_it_is_confirmed_and_not_before() {
    let mut partition = partition(1, 0, None, false);
    read(&mut partition, 0..3);
    open(&mut partition);
    let mut taken = hand(&mut partition, 3);
    let late = taken.remove(2);
    let mut stored = ack(&mut partition, late);
    let snapshot = partition.snapshot(memo::LIMIT, &[], false);
    let mut after = ack(&mut partition, taken.remove(1));
    assert!(stored.try_recv().is_err());
    partition.confirmed(&snapshot);
    assert_eq!(stored.try_recv(), Ok(vec![Settled::Stored]), "it was above the watermark, and in the metadata");
    assert!(after.try_recv().is_err(), "it ended after the snapshot");
    assert_eq!(snapshot.offset, 0);
    commit(&mut partition);
    assert_eq!(after.try_recv(), Ok(vec![Settled::Stored]));
}

#[test]
fn a_retry_in_place_starts_its_timer_when_it_is_stored_and_survives_its_owner() {
    let due = NOW.after(Duration::from_secs(5));
    let mut first = partition(1, 0, None, false);
    read(&mut first, 0..2);
    open(&mut first);
    let failing = hand(&mut first, 1).remove(0);
    again(&mut first, failing, 2, due);
    assert_eq!(first.promote(due), None, "not stored yet: it has no timer");
    assert_eq!(hand(&mut first, 5).len(), 1, "only the other");
    let snapshot = commit(&mut first);
    assert_eq!(first.promote(NOW), Some(due));
    let mut second = next_owner(2, &snapshot, 2, false);
    assert_eq!(second.promote(NOW), Some(due), "never early");
    assert_eq!(hand(&mut second, 5).iter().map(offset).collect::<Vec<_>>(), [1]);
    second.promote(due);
    let delivery = hand(&mut second, 5).remove(0);
    assert_eq!((offset(&delivery), delivery.attempt().get(), delivery.lane()), (0, 2, Lane::Retry));
}

#[test]
fn a_retry_in_place_that_is_dropped_comes_back_as_the_same_attempt() {
    let mut owner = partition(1, 0, None, false);
    read(&mut owner, 0..1);
    open(&mut owner);
    let failing = hand(&mut owner, 1).remove(0);
    again(&mut owner, failing, 2, NOW);
    commit(&mut owner);
    owner.promote(NOW);
    drop(hand(&mut owner, 1).remove(0).settle(Disposition::Release).take());
    // Dropped without its bytes: it is read again.
    owner.release(0, None);
    assert_eq!(owner.reread_from(), Some(0));
    read(&mut owner, 0..1);
    owner.promote(NOW);
    assert_eq!(hand(&mut owner, 1).remove(0).attempt().get(), 2);
}

#[test]
fn the_job_that_ran_at_each_death_is_condemned_and_the_one_beside_it_is_not() {
    let mut owner = partition(1, 0, None, false);
    read(&mut owner, 0..40);
    let mut committed = open(&mut owner);
    let mut deaths = 0;
    loop {
        let mut in_hand = hand(&mut owner, 40);
        let mut bad = None;
        for delivery in in_hand.drain(..) {
            if offset(&delivery) == 7 {
                bad = Some(delivery);
            } else {
                assert!(!delivery.condemned && !delivery.suspect, "{}", offset(&delivery));
                // It may run: its start is stored first where that is needed.
                if delivery.needs_mark {
                    owner.start(offset(&delivery));
                }
                ack(&mut owner, delivery);
            }
        }
        let bad = bad.expect("it comes again");
        if bad.condemned {
            break;
        }
        assert_eq!(bad.suspect, deaths >= 3, "alone once it is suspected");
        if bad.needs_mark {
            owner.start(7);
        }
        committed = commit(&mut owner);
        deaths += 1;
        owner = next_owner(1 + deaths, &committed, 40, false);
    }
    assert_eq!(deaths, 4, "the first is not counted: nothing was marked");
    assert_eq!(committed.offset, 7);
}

#[test]
fn who_gets_its_own_back_after_its_session_was_lost_has_not_crashed() {
    let mut owner = partition(1, 0, None, false);
    read(&mut owner, 0..4);
    open(&mut owner);
    for _ in 0..6 {
        let taken = hand(&mut owner, 1);
        assert!(!taken[0].suspect && !taken[0].condemned && !taken[0].needs_mark);
        owner.start(0);
        let committed = commit(&mut owner);
        // The same worker: it is another assignment, and no other life.
        let memo = Memo::read(&committed.metadata, committed.offset);
        owner = partition(1, committed.offset, memo, false);
        read(&mut owner, 0..4);
        open(&mut owner);
    }
}

#[test]
fn nobody_is_condemned_for_whom_is_back_nor_before_it_was_asked() {
    let (mut owner, mut committed) = (partition(1, 0, None, false), None);
    for next in 2..6 {
        read(&mut owner, 0..1);
        open(&mut owner);
        hand(&mut owner, 1);
        owner.start(0);
        let last = commit(&mut owner);
        owner = partition(next, last.offset, Memo::read(&last.metadata, last.offset), false);
        committed = Some(last);
    }
    read(&mut owner, 0..1);
    open(&mut owner);
    // The first takeover knew of no start, or it is one of these.
    assert!(owner.accuses(true), "{committed:?}");
    assert!(hand(&mut owner, 1).is_empty(), "three count as dead, and may be back yet");
    let back = HashSet::from([memo::short_name(2), memo::short_name(3)]);
    owner.acquit(&back);
    owner.judge();
    let delivery = hand(&mut owner, 1).remove(0);
    assert_eq!((delivery.suspect, delivery.condemned), (true, false), "two of four are left");
    // Those that are left count in the memo of whoever comes next, too.
    let last = commit(&mut owner);
    let mut next = partition(9, last.offset, Memo::read(&last.metadata, last.offset), false);
    assert!(next.accuses(false) && !next.accuses(true));
    next.acquit(&[1, 4, 5].map(memo::short_name).into());
    assert!(!next.accuses(false));
}

#[test]
fn who_leaves_in_good_order_makes_nobody_a_suspect() {
    let mut owner = partition(1, 0, None, false);
    read(&mut owner, 0..4);
    open(&mut owner);
    for id in 2..8 {
        let mut taken = hand(&mut owner, 1);
        assert!(!taken[0].suspect && !taken[0].needs_mark);
        owner.start(0);
        owner.drain();
        let (mut delivery, _) = taken.remove(0).settle(Disposition::Release).take();
        owner.release(0, Some((std::mem::take(&mut delivery.message), NOW, None)));
        let last = owner.snapshot(memo::LIMIT, &[], true);
        owner = next_owner(id, &last, 4, false);
    }
}

#[test]
fn what_was_forgotten_at_a_loss_does_not_count_as_running() {
    let mut partition = partition(9, 0, None, true);
    read(&mut partition, 0..12);
    open(&mut partition);
    let taken = hand(&mut partition, 2);
    let mut expected: Vec<i64> = taken.iter().map(offset).collect();
    expected.sort_unstable();
    partition.drain();
    let mut running: Vec<i64> = partition.end().into_keys().collect();
    running.sort_unstable();
    assert_eq!(running, expected);
}

#[test]
fn a_move_that_was_begun_goes_on_in_the_assignment_that_its_run_has_joined() {
    let mut state = State::default();
    let mut first = partition(1, 0, None, false);
    read(&mut first, 0..2);
    open(&mut first);
    let token = hand(&mut first, 1).remove(0).token;
    assert!(first.begin_move(0));
    state.add(first);
    state.remove(1);
    // The same worker gets it back, and what is on its way is not handed out a second time.
    let mut second = partition(2, 0, None, false);
    let runs = state.ghosts(&second.topic.clone(), 0).cloned().expect("one runs still");
    let records = (0..2).map(|offset| Arrived { offset, at: NOW, message: Message::default() });
    second.arrive(records, |offset| runs.get(&offset).copied(), |_| Ok(None), NOW);
    open(&mut second);
    assert_eq!(hand(&mut second, 5).iter().map(offset).collect::<Vec<_>>(), [1]);
    state.add(second);
    let partition = state.of(token).expect("its run has joined");
    partition.keep_move(0);
    let snapshot = partition.snapshot(memo::LIMIT, &[0], false);
    assert_eq!(snapshot.offset, 1);
    partition.end_move(0);
    partition.confirmed(&snapshot);
    assert_eq!((partition.in_hand(), partition.owns(0)), (1, false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Owners die at any point. Nothing that was not settled is lost, nothing that was confirmed comes again, retries
    /// keep their attempt, and keys stay in order where that is asked for.
    #[test]
    fn nothing_is_lost_over_any_number_of_deaths(
        ordered in any::<bool>(),
        steps in proptest::collection::vec((0u8..12, any::<usize>()), 1..250),
    ) {
        const LOG: i64 = 60;
        let mut owner = partition(1, 0, None, ordered);
        read(&mut owner, 0..LOG);
        let mut committed = open(&mut owner);
        let mut id = 1;
        let mut in_hand: Vec<Delivery> = Vec::new();
        let mut attempts = std::collections::BTreeMap::<i64, u32>::new();
        let mut stored_attempts = attempts.clone();
        let mut waiting = Vec::new();
        let mut confirmed = std::collections::BTreeSet::new();
        for (step, pick) in steps {
            match step {
                0..=3 => {
                    owner.promote(NOW);
                    for delivery in hand(&mut owner, 1 + pick % 4) {
                        let at = offset(&delivery);
                        prop_assert!(!confirmed.contains(&at), "{at} was confirmed, and came again");
                        prop_assert_eq!(delivery.attempt().get(), attempts.get(&at).copied().unwrap_or(1));
                        if ordered {
                            let same = |other: &Delivery| other.message.key == delivery.message.key;
                            prop_assert!(!in_hand.iter().any(same), "two of a key");
                        }
                        in_hand.push(delivery);
                    }
                }
                4..=7 if !in_hand.is_empty() => {
                    let delivery = in_hand.swap_remove(pick % in_hand.len());
                    waiting.push((offset(&delivery), ack(&mut owner, delivery)));
                }
                8 if !in_hand.is_empty() && owner.may_wait() => {
                    let delivery = in_hand.swap_remove(pick % in_hand.len());
                    let attempt = delivery.attempt().get() + 1;
                    attempts.insert(offset(&delivery), attempt);
                    again(&mut owner, delivery, attempt, NOW);
                }
                9 | 10 => {
                    committed = commit(&mut owner);
                    stored_attempts = attempts.clone();
                    waiting.retain_mut(|(at, receiver)| match receiver.try_recv() {
                        Ok(settled) => {
                            assert_eq!(settled, [Settled::Stored]);
                            confirmed.insert(*at);
                            false
                        }
                        Err(_) => true,
                    });
                    prop_assert!((0..committed.offset).all(|at| confirmed.contains(&at)), "committed past the unfinished");
                }
                11 => {
                    for delivery in in_hand.drain(..) {
                        drop(delivery.settle(Disposition::Release).take());
                    }
                    waiting.clear();
                    attempts = stored_attempts.clone();
                    id += 1;
                    owner = next_owner(id, &committed, LOG, ordered);
                }
                _ => {}
            }
        }
        // Whoever is left ends everything.
        for delivery in in_hand.drain(..) {
            ack(&mut owner, delivery);
        }
        for _ in 0..LOG * 2 {
            commit(&mut owner);
            owner.promote(NOW);
            for delivery in hand(&mut owner, 100) {
                ack(&mut owner, delivery);
            }
        }
        prop_assert_eq!(commit(&mut owner).offset, LOG, "all ended");
    }
}
