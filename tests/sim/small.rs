//! Small cases: gone through one and all, or written down because a seed once found something.

use std::time::Duration;

use super::chance::Chance;
use super::law::Law;
use super::schedule::{Act, Fault, Job, Schedule, Shape, To};
use super::shrink;
use super::site::{self, Outcome};
use crate::support::tool;

/// One worker with one queue, roomy and patient.
fn plain(jobs: Vec<Job>, faults: Vec<Fault>) -> Schedule {
    let shape = Shape {
        workers: 1,
        slots: 2,
        lanes: 1,
        queues: 1,
        ordered: false,
        queue_slots: 2,
        bytes: 1 << 20,
        lease: Duration::from_millis(300),
        grace: Duration::from_millis(100),
        attempts: 2,
        first: Duration::from_millis(10),
        timeout: Duration::from_millis(200),
        max_crashes: 3,
        unconfirmed: 256,
        marks_all: false,
        over_credit: false,
    };
    Schedule { seed: 1, mischief: 0, shape, jobs, faults }
}

fn job(number: u64, act: Act) -> Job {
    Job { number, at: 0, to: To::T, key: None, act, size: 0 }
}

#[track_caller]
fn clean(schedule: &Schedule) -> Outcome {
    let outcome = site::play(schedule, false);
    assert!(outcome.broken.is_empty(), "{}", shrink::story(&outcome));
    outcome
}

/// Plays a schedule with every combination of answers to its first `depth` questions; how many there were.
#[track_caller]
fn all_scripts(schedule: &Schedule, depth: usize) -> usize {
    let (mut script, mut count) = (Some(Vec::new()), 0);
    while let Some(answers) = script {
        let outcome = site::play_with(schedule, Chance::script(answers.clone(), depth), false);
        if !outcome.broken.is_empty() {
            let told = site::play_with(schedule, Chance::script(answers.clone(), depth), true);
            panic!("with answers {answers:?}:\n{schedule}{told}");
        }
        count += 1;
        script = outcome.chance.next_script();
    }
    count
}

#[test]
fn a_schedule_is_the_same_each_time() {
    for seed in 0..40 {
        let schedule = Schedule::from_seed(seed);
        let (one, two) = (site::play(&schedule, false), site::play(&schedule, true));
        assert_eq!(one.print, two.print, "seed {seed}\n{two}");
    }
}

/// Each misbehaviour of each of the first calls, with everything that jobs do.
#[test]
fn every_answer_of_the_broker() {
    let acts = [Act::Succeeds(2), Act::Fails(1, 0), Act::Refuses, Act::Panics(9)];
    let depth = if tool::full() { 8 } else { 5 };
    let mut count = 0;
    for pair in acts.windows(2) {
        count += all_scripts(&plain(vec![job(1, pair[0]), job(2, pair[1])], Vec::new()), depth);
    }
    assert!(count > 300, "{count} scripts");
}

/// A crash at each of the first calls, and a broker that misbehaves in each way at the first of the others.
#[test]
fn a_crash_between_any_two_calls() {
    let mut workers = 0;
    for call in 1..=24 {
        for act in [Act::Succeeds(2), Act::Fails(1, 2), Act::Refuses] {
            let schedule = plain(vec![job(1, act), job(2, Act::Succeeds(0))], vec![Fault::KillAtCall(call, 0)]);
            workers += clean(&schedule).workers;
            all_scripts(&schedule, if tool::full() { 4 } else { 1 });
        }
    }
    assert!(workers > 40, "most of the crashes came: {workers} processes");
}

/// A late acknowledgement, a rebalance, a drain and a timeout, in each order.
#[test]
fn a_rebalance_and_a_drain_at_any_moment() {
    let step = if tool::full() { 1 } else { 3 };
    for (moves, leaves) in (0..13).step_by(step).flat_map(|a| (0..13).step_by(step).map(move |b| (a, b))) {
        for act in [Act::Succeeds(5), Act::Hangs(1, false), Act::Finishes] {
            let faults = vec![Fault::Rebalance(1 + moves, 0, 0), Fault::Leave(1 + leaves, 0)];
            let mut schedule = plain(vec![job(1, act), job(2, Act::Succeeds(6))], faults);
            schedule.shape.timeout = Duration::from_millis(7);
            clean(&schedule);
            for late in [30, 200] {
                schedule.mischief = late;
                clean(&schedule);
            }
        }
    }
}

/// A handler whose destructor panicked took its slot, its bytes and its settlement with it.
#[test]
fn a_destructor_that_panics_costs_one_attempt() {
    let outcome = clean(&plain(vec![job(1, Act::DiesHard(9)), job(2, Act::DiesHard(1))], Vec::new()));
    assert_eq!(outcome.runs, 4, "each attempt ran once");
    clean(&plain(vec![job(1, Act::DiesHard(1))], vec![Fault::Leave(20, 0)]));
}

/// A start whose mark was stored after the worker was told to leave ran all the same.
#[test]
fn nothing_starts_once_the_worker_is_told_to_leave() {
    let mut schedule = plain(vec![job(1, Act::Succeeds(0))], vec![Fault::Leave(1, 0)]);
    schedule.shape.marks_all = true;
    for seed in 0..20 {
        schedule.seed = seed;
        clean(&schedule);
    }
}

/// Two queues that had nothing asked again every five milliseconds, each to make room for the other.
#[test]
fn queues_that_have_nothing_do_not_ask() {
    let late = Job { at: 3_000, ..job(1, Act::Succeeds(0)) };
    let mut schedule = plain(vec![late], Vec::new());
    (schedule.shape.queues, schedule.shape.slots, schedule.shape.queue_slots) = (2, 4, 4);
    let outcome = clean(&schedule);
    let told = outcome.asked > 20;
    assert!(!told, "asked {} times in three seconds\n{}", outcome.asked, site::play(&schedule, true));
}

/// Two messages larger than all that may be in flight, both in hand, waited for each other until their leases ended.
#[test]
fn two_huge_messages_do_not_wait_for_each_other() {
    let huge = |number| Job { size: 4_000, ..job(number, Act::Succeeds(3)) };
    let mut schedule = plain(vec![huge(1), huge(2)], Vec::new());
    (schedule.shape.bytes, schedule.shape.over_credit) = (1_000, true);
    for seed in 0..20 {
        schedule.seed = seed;
        let outcome = clean(&schedule);
        assert!(outcome.over < 250, "over after {} ms\n{}", outcome.over, site::play(&schedule, true));
    }
}

/// A judge that sees nothing proves nothing: a broker that delivers what it has stored as done is seen.
#[test]
fn the_laws_are_looked_at() {
    let schedule = plain(vec![job(1, Act::Succeeds(0))], vec![Fault::Broker(3, 10)]);
    let seen = (0..40).map(|seed| site::play(&Schedule { seed, ..schedule.clone() }, false));
    let (runs, explained) = seen.fold((0, 0), |(runs, explained), outcome| {
        assert_eq!(outcome.laws(), Vec::<Law>::new());
        (runs + outcome.runs, explained + outcome.explained)
    });
    assert!(runs > 40 && explained > 0, "{runs} runs, {explained} explained: a leader that forgets was seen");
}
