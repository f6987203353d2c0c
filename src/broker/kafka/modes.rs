//! Ways in which others lost, repeated or stalled jobs, each shown not to be ours: those that need no broker. The
//! numbers are those of the project's notes on Kafka; the others are told in `tests/kafka`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::super::{Credit, Delivery, Disposition, Lane, Settled, Settler};
use super::partition::Partition;
use super::settle::KafkaSettler;
use super::state::{Shared, State};
use super::takeover::{NOW, again, commit, finish, hand, offset, open, partition, read, retries};
use crate::message::{Attempt, Failure, JobName, Namespace, QueueName, Reason};
use crate::time::Clock;

/// Records and bytes that one partition may hold.
const ROOM: (usize, usize) = (16_384, 16 << 20);

/// A partition that hands out `0..count`.
fn opened(mut partition: Partition, count: i64) -> Partition {
    read(&mut partition, 0..count);
    open(&mut partition);
    partition
}

fn credit(jobs: usize) -> Credit {
    Credit { jobs, fresh_floor: 0, retry_floor: 0, bytes: 1 << 20, suspect: true }
}

fn settler(state: State, ordered: bool) -> KafkaSettler {
    let shared = Shared {
        state: Mutex::new(state),
        arrived: Notify::new(),
        wake: Arc::default(),
        clock: Clock::System,
        ordered,
    };
    KafkaSettler {
        shared: Arc::new(shared),
        namespace: Namespace::new("n").expect("a name"),
        queue: QueueName::new("q").expect("a name"),
        in_place: Duration::from_secs(30),
        worker: "w".into(),
    }
}

fn retry_in(wait: Duration, attempt: u32) -> Disposition {
    let now = Clock::System.now();
    Disposition::Retry {
        at: now.after(wait),
        attempt: Attempt::new(attempt).expect("not 0"),
        failure: Some(Failure::new("E", "no", now, now)),
        unroutable_since: None,
    }
}

#[tokio::test]
async fn mode_6_a_late_result_of_a_lost_partition_is_answered_at_once_and_leaves_nothing_behind() {
    let mut state = State::default();
    state.add(opened(partition(1, 0, None, false), 4));
    let mut taken = state.hand(credit(4));
    state.remove(1);
    assert!(state.ghosts(&"t".into(), 0).is_some_and(|runs| runs.len() == 4), "they run still");
    let settler = settler(state, false);
    let (acked, failed) = (taken.remove(0), taken.remove(0));
    let batch = vec![acked.settle(Disposition::Ack), failed.settle(retry_in(Duration::from_secs(1), 2))];
    assert_eq!(settler.settle(batch).await, [Settled::Stale, Settled::Stale], "no slot waits for them");
    for delivery in taken {
        settler.settle(vec![delivery.settle(Disposition::Release)]).await;
    }
    let state = settler.shared.state.lock();
    assert!(state.ghosts(&"t".into(), 0).is_none());
    assert_eq!((state.in_hand(), state.moves.len()), (0, 0));
    assert!(state.settled());
}

#[test]
fn mode_8_partitions_that_come_while_the_pool_is_full_hand_out_nothing_and_are_read_no_further_than_their_share() {
    let mut state = State::default();
    state.add(opened(partition(1, 0, None, false), 100));
    assert_eq!(state.hand(credit(10)).len(), 10);
    // The pool is full: it asks for nothing. Partitions come, as many as there are.
    let (records, bytes) = (2_048, 2 << 20);
    for id in 2..=8 {
        let mut partition = partition(id, 0, None, false);
        assert_eq!(partition.room(records, bytes), records);
        read(&mut partition, 0..records as i64);
        open(&mut partition);
        assert_eq!(partition.room(records, bytes), 0, "its share is read");
        state.add(partition);
    }
    assert!(state.hand(credit(0)).is_empty());
    assert!(state.partitions.values().map(Partition::buffered).sum::<usize>() <= 8 * records);
    assert_eq!(state.hand(credit(3)).len(), 3, "what is given is never more than was asked for");
}

#[tokio::test]
async fn mode_15_retries_keep_their_key_waiting_count_on_and_never_starve_what_is_fresh() {
    // In key order a retry never leaves its partition, however long it waits.
    let mut ordered = State::default();
    ordered.add(opened(partition(1, 0, None, true), 6));
    let first = ordered.hand(credit(1)).remove(0);
    assert_eq!(offset(&first), 0);
    let settler = settler(ordered, true);
    let _stored = settler.settle(vec![first.settle(retry_in(Duration::from_secs(3_600), 2))]);
    {
        let mut state = settler.shared.state.lock();
        assert!(state.moves.is_empty(), "it was not published anew");
        commit(state.at("t", 0).expect("it is ours"));
        let others: Vec<i64> = state.hand(credit(10)).iter().map(offset).collect();
        assert_eq!(others, [1, 2], "0 and 3 are of one key; 4 and 5 wait for 1 and 2");
        let later = Clock::System.now().after(Duration::from_secs(3_700));
        state.promote(later);
        let delivery = state.hand(credit(10)).remove(0);
        assert_eq!((offset(&delivery), delivery.attempt().get(), delivery.lane()), (0, 2, Lane::Retry));
    }
    // A storm of retries leaves what is fresh its part of the slots.
    let mut state = State::default();
    state.add(opened(partition(1, 0, None, false), 100));
    state.add(opened(retries(2), 100));
    let credit = Credit { jobs: 10, fresh_floor: 3, retry_floor: 2, bytes: 1 << 20, suspect: true };
    let taken = state.hand(credit);
    let of = |lane: Lane| taken.iter().filter(|delivery: &&Delivery| delivery.lane() == lane).count();
    assert_eq!(taken.len(), 10);
    assert!(of(Lane::Fresh) >= 3 && of(Lane::Retry) >= 2, "{} and {}", of(Lane::Fresh), of(Lane::Retry));
}

#[test]
fn mode_17_retries_that_wait_in_memory_are_bounded() {
    for ordered in [false, true] {
        let mut partition = opened(partition(1, 0, None, ordered), 0);
        let mut next = 0;
        let mut waiting = 0;
        while partition.room(64, 1 << 20) > 0 && (ordered || partition.may_wait()) {
            read(&mut partition, next..next + 1);
            next += 1;
            for delivery in hand(&mut partition, 1) {
                again(&mut partition, delivery, 2, NOW.after(Duration::from_secs(20)));
                waiting += 1;
            }
            commit(&mut partition);
        }
        assert!(next < 1_000, "ordered: {ordered}, {next} read, {waiting} wait");
        assert!(waiting > 0 && partition.buffered() <= next as usize);
    }
}

#[test]
fn mode_19_one_slow_job_stops_its_own_partition_at_a_bound_and_no_other() {
    let mut state = State::default();
    let mut slow = opened(partition(1, 0, None, false), 1);
    let head = hand(&mut slow, 1).remove(0);
    let (mut next, step) = (1, 8_192);
    while slow.room(ROOM.0, ROOM.1) > 0 {
        read(&mut slow, next..next + step);
        for delivery in hand(&mut slow, step as usize) {
            finish(&mut slow, delivery);
        }
        commit(&mut slow);
        next += step;
        assert!(next <= 4 << 20, "it stops somewhere");
    }
    assert!(next > 65_536, "and not early: {next}");
    let snapshot = commit(&mut slow);
    assert_eq!(snapshot.offset, 0, "what is unfinished is never passed");
    let other = partition(2, 0, None, false);
    assert!(other.room(ROOM.0, ROOM.1) > 0, "others go on");
    state.add(slow);
    // Its end opens the window again.
    let slow = state.at("t", 0).expect("it is ours");
    finish(slow, head);
    assert_eq!(commit(slow).offset, next);
    assert!(slow.room(ROOM.0, ROOM.1) > 0);
}

/// Each of these says whether a promise is kept; the seeded bugs show that it can say no.
type Law = fn() -> bool;

const LAWS: [(&str, Law); 4] = [
    ("mode 3: what only arrived is not committed", || {
        let mut partition = opened(partition(1, 0, None, false), 5);
        let taken = hand(&mut partition, 5);
        let kept = commit(&mut partition).offset == 0;
        taken.into_iter().for_each(|delivery| finish(&mut partition, delivery));
        kept && commit(&mut partition).offset == 5
    }),
    ("mode 4: what was given back is not committed", || {
        let mut state = State::default();
        state.add(opened(partition(1, 0, None, false), 5));
        state.remove(1);
        state.partitions.is_empty()
    }),
    ("mode 5: a late result changes nothing of the next assignment", || {
        let mut state = State::default();
        state.add(opened(partition(1, 0, None, false), 3));
        let token = state.hand(credit(1)).remove(0).token;
        state.remove(1);
        state.add(opened(partition(2, 0, None, false), 3));
        // It was redelivered, to a run of its own.
        let again = state.hand(credit(1)).remove(0);
        state.of(token).is_none() && state.of(again.token).is_some()
    }),
    ("mode 13: a job is not finished before its dead letter is stored", || {
        let mut state = State::default();
        state.add(opened(partition(1, 0, None, false), 1));
        let delivery = state.hand(credit(1)).remove(0);
        let settler = settler(state, false);
        let letter = Disposition::DeadLetter {
            reason: Reason::Permanent,
            failure: Failure::new("E", "no", NOW, NOW),
            attempts: 1,
            event_id: None,
            job: JobName::new("q").expect("a name"),
        };
        let _stored = settler.settle(vec![delivery.settle(letter)]);
        let mut state = settler.shared.state.lock();
        commit(state.at("t", 0).expect("it is ours")).offset == 0 && state.moves.len() == 1
    }),
];

/// Of the laws those that are broken.
fn broken() -> Vec<&'static str> {
    LAWS.iter().filter(|(_, law)| !law()).map(|(name, _)| *name).collect()
}

#[test]
fn the_laws_of_the_adapter_hold() {
    assert!(broken().is_empty(), "{:?}", broken());
}

#[cfg(feature = "seeded-bugs")]
#[test]
fn each_bug_of_the_adapter_is_caught_by_its_law() {
    let caught =
        [("watermark-highest", 0), ("commit-after-revocation", 1), ("epoch-forgotten", 2), ("letter-before-stored", 3)];
    for (bug, law) in caught {
        let broken = crate::seeded::with_bug(Some(bug), broken);
        assert!(broken.contains(&LAWS[law].0), "{bug} should break {:?}, and broke {broken:?}", LAWS[law].0);
    }
}
