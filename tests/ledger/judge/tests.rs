//! Each rule holds for a story in which it holds, and is broken by one in which it is not.

use super::*;

const MS: u64 = 1_000_000;

/// A story under construction: job 1 of queue `q`, run by worker 7.
struct Tale(Story, u32);

fn tale(ends: Ends, attempts: u32) -> Tale {
    let mut tale = Tale(Story::default(), 0);
    tale.job(1, None, ends, attempts);
    tale
}

impl Tale {
    fn job(&mut self, number: u64, key: Option<(&str, u64)>, ends: Ends, attempts: u32) {
        let key = key.map(|(key, place)| (key.to_owned(), place));
        self.0.jobs.push(Job { number, queue: "q".into(), key, ends, attempts, body: b"body".to_vec() });
    }

    /// A run of `job` by `pid` from and to these milliseconds.
    fn run(mut self, job: u64, pid: u32, attempt: u32, from: u64, to: Option<(u64, What)>) -> Self {
        self.1 += 1;
        let record = |what, at| Record { what, job, queue: "q".into(), attempt, pid, serial: self.1, at: at * MS };
        self.0.records.push(record(What::Start, from));
        self.0.records.extend(to.map(|(at, what)| record(what, at)));
        self
    }

    fn fault(mut self, kind: Kind, pid: Option<u32>, from: u64, to: u64) -> Self {
        self.0.faults.push(Fault { pid, from: from * MS, to: to * MS, kind });
        self
    }

    fn letter(mut self, reason: &str, attempts: u32, body: &[u8]) -> Self {
        let letter =
            Letter { number: 1, queue: "q".into(), reason: reason.into(), attempts, replays: 0, body: body.to_vec() };
        self.0.letters.push(letter);
        self
    }

    #[track_caller]
    fn breaks(self, rules: &[Rule]) {
        let verdict = judge(&self.0);
        assert_eq!(verdict.rules(), rules.iter().copied().collect(), "{verdict}");
    }
}

fn done(at: u64) -> Option<(u64, What)> {
    Some((at, What::Done))
}

fn failed(at: u64) -> Option<(u64, What)> {
    Some((at, What::Failed))
}

#[test]
fn nothing_is_wrong_with_a_plain_story() {
    tale(Ends::Done, 1).run(1, 7, 1, 0, done(5)).breaks(&[]);
    tale(Ends::Done, 2).run(1, 7, 1, 0, failed(5)).run(1, 7, 2, 110, done(120)).breaks(&[]);
    let exhausted = tale(Ends::Dead("exhausted"), 2).run(1, 7, 1, 0, failed(5)).run(1, 8, 2, 110, failed(120));
    exhausted.letter("exhausted", 2, b"body").breaks(&[]);
    tale(Ends::Dead("malformed"), 0).letter("malformed", 0, b"body").breaks(&[]);
}

#[test]
fn lost_is_what_is_nowhere() {
    tale(Ends::Done, 1).breaks(&[Rule::Lost]);
    tale(Ends::Done, 2).run(1, 7, 1, 0, failed(5)).breaks(&[Rule::Lost]);
    tale(Ends::Done, 1).run(1, 7, 1, 0, None).fault(Kind::Killed, Some(7), 3, 3).breaks(&[Rule::Lost]);
}

#[test]
fn stuck_is_what_somebody_still_has() {
    let mut held = tale(Ends::Done, 1);
    held.0.left.insert("q".into(), 1);
    held.breaks(&[Rule::Stuck]);
    tale(Ends::Done, 1).run(1, 7, 1, 0, None).breaks(&[Rule::Stuck]);
}

#[test]
fn a_duplicate_needs_a_cause() {
    let twice = || tale(Ends::Done, 1).run(1, 7, 1, 0, done(5)).run(1, 8, 1, 5_000, done(5_005));
    twice().breaks(&[Rule::Duplicate]);
    // Finished and not yet confirmed when its worker was killed.
    twice().fault(Kind::Killed, Some(7), 100, 100).breaks(&[]);
    twice().fault(Kind::Broker, None, 100, 200).breaks(&[]);
    // Another worker's death explains nothing, one long after it was confirmed neither.
    twice().fault(Kind::Killed, Some(9), 100, 100).breaks(&[Rule::Duplicate]);
    twice().fault(Kind::Killed, Some(7), 4_000, 4_000).breaks(&[Rule::Duplicate]);
    // One kill explains one more run, not two.
    let thrice = twice().run(1, 8, 1, 9_000, done(9_005)).fault(Kind::Killed, Some(7), 100, 100);
    thrice.breaks(&[Rule::Duplicate]);
}

#[test]
fn a_killed_run_is_run_again() {
    let killed = || tale(Ends::Done, 1).run(1, 7, 1, 0, None).run(1, 8, 1, 1_500, done(1_505));
    killed().fault(Kind::Killed, Some(7), 10, 10).breaks(&[]);
    // Its worker lives: then two own it.
    killed().breaks(&[Rule::Duplicate, Rule::Owners]);
}

#[test]
fn a_drain_explains_only_what_outlived_the_grace() {
    let cancelled =
        |at| tale(Ends::Done, 1).run(1, 7, 1, 0, Some((at, What::Cancelled))).run(1, 8, 1, 9_000, done(9_005));
    cancelled(5_100).fault(Kind::Left, Some(7), 50, 50).breaks(&[]);
    cancelled(200).fault(Kind::Left, Some(7), 50, 50).breaks(&[Rule::Duplicate]);
    cancelled(5_100).breaks(&[Rule::Duplicate]);
    // The grace ended and then its time, both while the process slept: it was given back all the same. What had used its
    // time up within the grace is a failure like any other.
    let late = |at| tale(Ends::Done, 1).run(1, 7, 1, 0, Some((at, What::TimedOut))).run(1, 8, 1, 9_000, done(9_005));
    late(5_600).fault(Kind::Left, Some(7), 50, 50).fault(Kind::Frozen, Some(7), 5_000, 5_600).breaks(&[]);
    late(5_000)
        .fault(Kind::Left, Some(7), 50, 50)
        .fault(Kind::Frozen, Some(7), 4_400, 5_000)
        .breaks(&[Rule::Duplicate]);
    late(5_600).fault(Kind::Frozen, Some(7), 5_000, 5_600).breaks(&[Rule::Duplicate]);
}

#[test]
fn a_silence_of_two_thirds_of_a_lease_may_end_it() {
    // The lease, of a second, was extended up to a third of it before.
    let silent = |lasting: u64| {
        let tale = tale(Ends::Done, 1).run(1, 7, 1, 0, done(105)).run(1, 8, 1, 5_000, done(5_005));
        tale.fault(Kind::Frozen, Some(7), 100, 100 + lasting)
    };
    silent(667).breaks(&[]);
    silent(660).breaks(&[Rule::Duplicate]);
}

#[test]
fn attempts_are_counted_one_by_one() {
    // Skipped.
    tale(Ends::Done, 3).run(1, 7, 1, 0, failed(5)).run(1, 7, 3, 900, done(905)).breaks(&[Rule::Attempt]);
    // Used up by a crash.
    let crashed = tale(Ends::Done, 2).run(1, 7, 1, 0, None).run(1, 8, 2, 1_500, done(1_505));
    crashed.fault(Kind::Killed, Some(7), 10, 10).breaks(&[Rule::Attempt]);
    // Given back.
    let back = tale(Ends::Done, 2).run(1, 7, 1, 0, failed(5)).run(1, 7, 2, 200, None).run(1, 8, 1, 1_500, done(1_505));
    back.fault(Kind::Killed, Some(7), 250, 250).breaks(&[Rule::Attempt]);
    // Forgotten by a broker that was killed just after it had confirmed the failure.
    let again = || {
        let tale = tale(Ends::Done, 3).run(1, 7, 1, 0, failed(5)).run(1, 7, 2, 200, failed(205));
        tale.run(1, 7, 3, 500, failed(505)).run(1, 8, 2, 900, done(905))
    };
    again().fault(Kind::Broker, None, 300, 310).breaks(&[]);
    again().breaks(&[Rule::Attempt, Rule::Duplicate]);
    // One too many.
    tale(Ends::Done, 1).run(1, 7, 1, 0, failed(5)).run(1, 7, 2, 900, done(905)).breaks(&[Rule::Attempt]);
    // A dead letter that says otherwise.
    let says = tale(Ends::Dead("permanent"), 1).run(1, 7, 1, 0, Some((5, What::Refused)));
    says.letter("permanent", 2, b"body").breaks(&[Rule::Attempt]);
}

#[test]
fn a_retry_waits_until_it_is_due() {
    tale(Ends::Done, 2).run(1, 7, 1, 0, failed(5)).run(1, 7, 2, 60, done(65)).breaks(&[Rule::Early]);
    // The second delay is longer than the first, and capped.
    let third = |at| {
        let tale = tale(Ends::Done, 3).run(1, 7, 1, 0, failed(5)).run(1, 7, 2, 110, failed(120));
        tale.run(1, 7, 3, at, done(at + 1))
    };
    third(300).breaks(&[Rule::Early]);
    third(330).breaks(&[]);
    // The wall clock was set while it waited; set after it had begun, it explains nothing.
    let set = |at| {
        tale(Ends::Done, 2).run(1, 7, 1, 0, failed(5)).run(1, 7, 2, 60, done(65)).fault(Kind::Stepped, None, at, at)
    };
    set(30).breaks(&[]);
    set(62).breaks(&[Rule::Early]);
}

#[test]
fn a_key_is_in_order() {
    let keyed = |second_from: u64, first_to: u64| {
        let mut tale = Tale(Story::default(), 0);
        tale.job(1, Some(("k", 0)), Ends::Done, 1);
        tale.job(2, Some(("k", 1)), Ends::Done, 1);
        tale.run(1, 7, 1, 0, done(first_to)).run(2, 8, 1, second_from, done(second_from + 5))
    };
    keyed(10, 5).breaks(&[]);
    keyed(3, 5).breaks(&[Rule::Order]);
    // A worker that was frozen past its lease may still be at it.
    keyed(1_500, 3_000).fault(Kind::Frozen, Some(7), 10, 2_000).breaks(&[]);
    // What had ended and was not confirmed when its worker died runs again in order.
    let killed = || {
        let mut tale = Tale(Story::default(), 0);
        tale.job(1, Some(("k", 0)), Ends::Done, 1);
        tale.job(2, Some(("k", 1)), Ends::Done, 1);
        tale.run(1, 7, 1, 0, done(5)).run(2, 7, 1, 6, done(9)).run(1, 8, 1, 50, done(55)).run(2, 8, 1, 60, done(65))
    };
    killed().fault(Kind::Killed, Some(7), 10, 10).breaks(&[]);
    killed().breaks(&[Rule::Duplicate, Rule::Order]);
    // A retry of the first after the second.
    let mut tale = Tale(Story::default(), 0);
    tale.job(1, Some(("k", 0)), Ends::Done, 2);
    tale.job(2, Some(("k", 1)), Ends::Done, 1);
    let tale = tale.run(1, 7, 1, 0, failed(5)).run(2, 7, 1, 10, done(15)).run(1, 7, 2, 200, done(205));
    tale.breaks(&[Rule::Order]);
}

#[test]
fn one_owner_at_a_time() {
    let both = || tale(Ends::Done, 1).run(1, 7, 1, 0, done(3_000)).run(1, 8, 1, 1_500, done(1_600));
    both().breaks(&[Rule::Owners, Rule::Duplicate]);
    both().fault(Kind::Frozen, Some(7), 10, 2_500).breaks(&[]);
    // About to begin when it was frozen, it says so just after the thaw; what begins later has no excuse.
    let thawed = |at| tale(Ends::Done, 1).run(1, 8, 1, 1_500, done(1_600)).run(1, 7, 1, at, done(at + 1));
    thawed(2_505).fault(Kind::Frozen, Some(7), 10, 2_500).breaks(&[]);
    thawed(2_499).fault(Kind::Frozen, Some(7), 10, 2_500).breaks(&[]);
    thawed(2_600).fault(Kind::Frozen, Some(7), 10, 2_500).breaks(&[Rule::Duplicate]);
    // Frozen for less than the lease explains no second run.
    both().fault(Kind::Frozen, Some(7), 10, 200).breaks(&[Rule::Duplicate]);
    // The broker was killed under the first and gave it out once more; what either led to is beside the other.
    let forked = || {
        let tale = tale(Ends::Done, 2).run(1, 7, 1, 0, failed(1_000)).run(1, 8, 1, 500, failed(1_500));
        tale.run(1, 9, 2, 1_130, done(1_131))
    };
    forked().fault(Kind::Broker, None, 20, 37).breaks(&[]);
    forked().breaks(&[Rule::Duplicate, Rule::Owners]);
    // Begun when the first had ended, it is the only owner, but where the broker was killed under the first and what the
    // first led to may not have been stored yet.
    let alone = |again: u64| {
        let tale = tale(Ends::Done, 2).run(1, 7, 1, 0, failed(400)).run(1, 8, 1, again, failed(again + 1_000));
        tale.run(1, 9, 2, again + 630, done(again + 631))
    };
    alone(500).fault(Kind::Broker, None, 20, 37).breaks(&[]);
    alone(500).fault(Kind::Broker, None, 420, 437).breaks(&[]);
    alone(500).breaks(&[Rule::Duplicate, Rule::Owners]);
    alone(2_500).fault(Kind::Broker, None, 20, 37).breaks(&[Rule::Owners]);
}

#[test]
fn what_a_killed_broker_forgot_comes_once_more() {
    // Failed and confirmed so; the broker was killed, its successor ran and succeeded, and then it came again.
    let tale = || {
        let tale = tale(Ends::Done, 2).run(1, 7, 1, 0, failed(5)).run(1, 8, 2, 1_300, done(1_310));
        tale.run(1, 8, 1, 2_800, failed(2_810))
    };
    tale().fault(Kind::Broker, None, 10, 80).breaks(&[]);
    tale().breaks(&[Rule::Duplicate, Rule::Attempt]);
    // Killed long after, it had not forgotten it.
    tale().fault(Kind::Broker, None, 3_000, 3_100).breaks(&[Rule::Duplicate, Rule::Attempt]);
}

#[test]
fn it_ends_as_it_should() {
    let done_instead = tale(Ends::Dead("exhausted"), 1).run(1, 7, 1, 0, done(5));
    done_instead.breaks(&[Rule::Ending]);
    let other = tale(Ends::Dead("exhausted"), 1).run(1, 7, 1, 0, failed(5)).letter("permanent", 1, b"body");
    other.breaks(&[Rule::Ending]);
    let both = tale(Ends::Done, 1).run(1, 7, 1, 0, done(5)).letter("exhausted", 1, b"body");
    both.breaks(&[Rule::Ending]);
}

#[test]
fn what_another_sleeps_on_is_unconfirmed_for_as_long() {
    let again = |one_lock| {
        let tale = tale(Ends::Done, 1).run(1, 7, 1, 0, done(100)).run(1, 8, 1, 10_000, done(10_100));
        let mut tale = tale.fault(Kind::Frozen, Some(9), 120, 4_600).fault(Kind::Frozen, Some(7), 4_700, 9_000);
        tale.0.rules.one_lock = one_lock;
        tale
    };
    again(true).breaks(&[]);
    again(false).breaks(&[Rule::Duplicate]);
}

#[test]
fn what_ends_just_before_its_worker_sleeps_is_unconfirmed_for_as_long() {
    let again = |asleep| {
        let tale = tale(Ends::Done, 1).run(1, 7, 1, 0, done(100)).run(1, 8, 1, 5_000, done(5_100));
        tale.fault(Kind::Frozen, Some(asleep), 1_900, 2_400).fault(Kind::Killed, Some(7), 3_000, 3_000)
    };
    again(7).breaks(&[]);
    again(9).breaks(&[Rule::Duplicate]);
}

#[test]
fn while_letters_are_refused_what_ends_as_one_is_unconfirmed() {
    let again = |attempts| {
        let tale = tale(Ends::Dead("permanent"), attempts).run(1, 7, 1, 0, Some((5, What::Refused)));
        let mut tale = tale.run(1, 8, 1, 9_000, Some((9_005, What::Refused))).fault(Kind::Refused, None, 500, 6_000);
        if attempts == 2 {
            tale = tale.run(1, 8, 2, 9_500, Some((9_505, What::Refused)));
        }
        tale.letter("permanent", attempts, b"body")
    };
    again(1).breaks(&[Rule::Duplicate]);
    again(1).fault(Kind::Broker, None, 5_000, 8_000).breaks(&[]);
    again(2).fault(Kind::Broker, None, 5_000, 8_000).breaks(&[Rule::Duplicate]);
}

#[test]
fn held_up_bytes_hold_up_the_ends_that_wait_for_moves() {
    let again = |moves_first| {
        let tale = tale(Ends::Done, 1).run(1, 7, 1, 0, done(100)).run(1, 8, 1, 9_000, done(9_100));
        let mut tale = tale.fault(Kind::Delayed, None, 50, 5_000).fault(Kind::Killed, Some(7), 5_500, 5_500);
        tale.0.rules.moves_first = moves_first;
        tale
    };
    again(true).breaks(&[]);
    again(false).breaks(&[Rule::Duplicate]);
}

#[test]
fn a_job_is_condemned_for_its_crashes_only() {
    let crashing = |kills: u32| {
        let mut tale = tale(Ends::Done, 1);
        for kill in 0..kills {
            let at = u64::from(kill) * 2_000;
            tale = tale.run(1, kill, 1, at, None).fault(Kind::Killed, Some(kill), at + 10, at + 10);
        }
        tale.letter("crashed", 0, b"body")
    };
    crashing(3).breaks(&[]);
    crashing(2).breaks(&[Rule::Ending]);
}

#[test]
fn what_cannot_be_read_may_have_crashed_in_any_death() {
    let unread = |kills: u32| {
        let killed = |tale: Tale, pid| tale.fault(Kind::Killed, Some(pid), 10 + u64::from(pid), 10 + u64::from(pid));
        (0..kills).fold(tale(Ends::Dead("malformed"), 0), killed).letter("crashed", 0, b"body")
    };
    unread(3).breaks(&[]);
    unread(2).breaks(&[Rule::Ending]);
}

#[test]
fn a_dead_letter_is_one_and_whole() {
    let refused = || tale(Ends::Dead("permanent"), 1).run(1, 7, 1, 0, Some((5, What::Refused)));
    refused().letter("permanent", 1, b"body").letter("permanent", 1, b"body").breaks(&[Rule::LetterTwice]);
    refused().letter("permanent", 1, b"bodY").breaks(&[Rule::LetterBytes]);
}

#[test]
fn never_more_than_the_slots() {
    let crowd = |count: u64| {
        let mut tale = Tale(Story::default(), 0);
        for number in 1..=count {
            tale.job(number, None, Ends::Done, 1);
        }
        (1..=count).fold(tale, |tale, number| tale.run(number, 7, 1, number, done(1_000)))
    };
    crowd(8).breaks(&[]);
    crowd(9).breaks(&[Rule::Slots]);
}

#[test]
fn nobody_runs_what_was_never_published() {
    tale(Ends::Done, 1).run(1, 7, 1, 0, done(5)).run(2, 7, 1, 0, done(5)).breaks(&[Rule::Unknown]);
}
