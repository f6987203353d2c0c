//! Each rule of the judge is shown to catch a bug in a worker that was put there for it; and the same story without
//! a bug is clean, which `chaos` shows.

use std::time::Duration;

use super::judge::Rule;
use super::story::Site;
use crate::conformance::subject::{Sqlite, Subject};

/// Two workers with this bug, one of which is drained and one killed under load.
#[track_caller]
fn caught(bug: &'static str, by: Rule) {
    let Some(mut site) = Site::<Sqlite>::new(7, Some(bug)) else { return };
    site.start();
    site.start();
    site.publish(120, 60);
    site.advance(60, Duration::from_secs(5));
    site.drain(0);
    site.start();
    site.publish(120, 60);
    site.advance(40, Duration::from_secs(5));
    site.kill(0);
    site.start();
    let verdict = site.verdict(Duration::from_secs(8));
    assert!(verdict.rules().contains(&by), "{bug} should be caught by {by:?}: {verdict}");
}

/// One worker with this bug and jobs of every behaviour, without any fault: what a bug in plain work takes.
#[track_caller]
fn found<S: Subject>(bug: &'static str, by: Rule) {
    let Some(mut site) = Site::<S>::new(7, Some(bug)) else { return };
    site.start();
    site.publish(60, 20);
    let verdict = site.verdict(Duration::from_secs(8));
    assert!(verdict.rules().contains(&by), "{bug} should be caught by {by:?}: {verdict}");
}

macro_rules! bugs {
    ($how:path, $($name:ident: $bug:literal => $rule:ident),* $(,)?) => { $(
        #[test]
        fn $name() {
            $how($bug, Rule::$rule);
        }
    )* };
}

bugs! { found::<Sqlite>,
    a_panic_that_counts_as_a_success_loses: "panic-is-done" => Lost,
    a_timeout_that_counts_as_a_success_loses: "timeout-is-done" => Lost,
    what_cannot_be_read_and_is_dropped_is_lost: "malformed-dropped" => Lost,
    a_retry_that_is_not_stored_is_lost: "retry-dropped" => Lost,
    attempts_without_an_end_are_too_many: "attempts-unlimited" => Attempt,
    a_number_that_is_left_out_is_missed: "attempt-skipped" => Attempt,
    a_letter_with_another_reason_ends_wrong: "letter-reason" => Ending,
    a_letter_that_counts_wrong_is_seen: "letter-attempts" => Attempt,
    what_is_handed_out_before_it_is_due_is_early: "due-early" => Early,
}

#[cfg(feature = "nats")]
bugs! { found::<crate::conformance::subject::Nats>,
    a_letter_named_by_its_event_alone_loses_the_second_queues: "letter-of-event" => Lost,
}

bugs! { caught,
    ack_before_run_loses: "ack-before-run" => Lost,
    a_lost_dead_letter_is_lost: "dead-letter-lost" => Lost,
    a_slot_that_is_not_returned_sticks: "slot-not-returned" => Stuck,
    a_success_that_is_given_back_runs_twice: "success-released" => Duplicate,
    an_attempt_that_is_kept_runs_twice: "attempt-kept" => Duplicate,
    a_drain_that_uses_an_attempt_counts_wrong: "attempt-used-by-interruption" => Attempt,
    a_retry_that_is_due_at_once_is_early: "retry-early" => Early,
    a_queue_without_its_order_is_out_of_order: "order-ignored" => Order,
    a_job_given_back_while_it_runs_has_two_owners: "release-before-run" => Owners,
    a_permanent_error_that_is_retried_ends_wrong: "permanent-retried" => Ending,
    a_letter_and_a_retry_make_two_letters: "dead-letter-twice" => LetterTwice,
    a_letter_with_other_bytes_is_seen: "dead-letter-bytes" => LetterBytes,
    an_event_published_again_is_unknown_elsewhere: "dead-letter-elsewhere" => Unknown,
    twice_the_slots_are_too_many: "slots-over" => Slots,
    what_is_given_back_and_forgotten_is_lost: "given-back-dropped" => Lost,
}
