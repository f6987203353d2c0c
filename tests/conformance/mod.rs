//! What a broker promises, written once and run on every broker.
//!
//! The fifteen promises of the design, against the traits of `windlass::broker` alone: what holds here holds for the
//! worker, whichever broker it runs on. A new broker is a [`Subject`](subject::Subject) and a line at the end of
//! this file.
//!
//! What a broker cannot show is printed, `not applicable to BROKER: PROMISE: WHY`, in a run that passes too.
//!
//! The same promises over whole processes are the ledger's, whose judge sees what handlers did: 1, 3, 5, 6, 7, 10, 11
//! and 12 by `kill -9` of workers and restarts of brokers, 4 and 14 by drains under load, 8 by handlers that keep
//! every thread for longer than the lease, 9 by workers frozen past their lease, 13 by backlogs many times the slots,
//! 15 by restarts, cuts and full disks. Of 2 the judge sees the slots; bytes are shown here alone. The verbs are in
//! `tests/cli`.

pub mod subject;

mod bench;

mod intake;

mod settlement;

mod lease;

mod order;

mod outage;

use subject::Subject;

/// A test of each promise for one broker. The numbers are the design's.
macro_rules! promises {
    ($($(#[$when:meta])* $broker:ident: $subject:ty),* $(,)?) => { $(
        $(#[$when])*
        mod $broker {
            use super::*;
            type Bench = bench::Bench<$subject>;

            fn bench() -> Option<Bench> {
                Bench::new()
            }

            promises! { @each
                p01_a_confirmed_publish_survives_restarts => intake::survives_restarts,
                p02_never_more_than_the_credit_in_jobs => intake::within_credit,
                p02_never_more_than_the_credit_in_bytes => intake::within_bytes,
                p03_what_was_acknowledged_is_not_delivered_again => settlement::acknowledged_stays_gone,
                p04_release_brings_it_back_promptly_and_uses_no_attempt => settlement::released_comes_back,
                p05_a_retry_is_never_early_and_counts_its_attempt => settlement::retried_when_due,
                p05_a_retry_survives_a_restart => settlement::retry_survives_restart,
                p05_a_retry_is_seen_by_its_queue_alone => settlement::retry_stays_in_its_queue,
                p05_a_snooze_uses_no_attempt => settlement::snoozed_uses_no_attempt,
                p06_a_dead_letter_is_stored_whole => settlement::dead_letter_is_whole,
                p06_two_queues_that_fail_on_one_event_are_two_letters => settlement::two_queues_two_letters,
                p06_a_replay_that_fails_again_is_another_letter => settlement::replay_fails_again,
                p06_a_replay_begins_anew_and_removes_the_letter => settlement::replay_begins_anew,
                p07_a_dead_worker_leaves_nothing_behind => lease::dead_worker,
                p08_a_handler_that_outlives_the_lease_is_not_run_twice => lease::outlives_lease,
                p09_a_stale_settlement_changes_nothing => lease::stale_changes_nothing,
                p10_two_queues_on_one_topic_each_get_every_event => intake::every_queue_gets_each,
                p10_an_enqueued_job_goes_to_its_queue_alone => intake::enqueued_for_one,
                p10_an_enqueued_job_waits_until_it_is_due => intake::enqueued_for_later,
                p11_undecodable_bytes_do_not_block_what_is_behind => settlement::undecodable_is_a_letter,
                p11_a_body_and_headers_come_as_they_were_published => intake::as_published,
                p12_a_key_is_handed_out_one_at_a_time_in_order => order::one_at_a_time,
                p12_a_retry_holds_its_key_back => order::retry_holds_key,
                p12_order_survives_a_restart => order::survives_restart,
                p13_a_full_worker_stays_alive_and_resumes => intake::full_and_resumes,
                p13_receive_can_be_dropped_without_loss => intake::cancel_safe,
                p14_a_drain_strands_nothing => lease::drain_strands_nothing,
                p15_consumption_resumes_after_a_restart => outage::restart_resumes,
                p15_consumption_resumes_after_a_cut => outage::cut_resumes,
                verbs_a_queue_is_forgotten_only_when_nobody_works_it => intake::forgotten_when_idle,
            }
        }
    )* };
    (@each $($name:ident => $promise:path),* $(,)?) => { $(
        #[test]
        fn $name() {
            if let Some(bench) = bench() {
                bench::run($promise(bench));
            }
        }
    )* };
}

promises! {
    memory: subject::Memory,
    #[cfg(feature = "sqlite")]
    sqlite: subject::Sqlite,
    #[cfg(feature = "nats")]
    nats: subject::Nats,
    #[cfg(feature = "nats")]
    nats_old: subject::NatsOld,
    #[cfg(feature = "nats")]
    nats_2_12: subject::Nats212,
    #[cfg(feature = "nats")]
    nats_2_14: subject::Nats214,
    #[cfg(feature = "kafka")]
    kafka: subject::Kafka,
}
