//! Counting on the hot path. A [`JobTally`] belongs to one task, costs a few additions a job, and is flushed to
//! the shared meter once a batch.

use std::sync::Arc;
use std::time::Duration;

use crate::message::{JobName, QueueName, Reason};

/// What happened, as the label of `jobs_total` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutcomeLabel {
    /// `done`
    Done,
    /// `failed`
    Failed,
    /// `timed_out`
    TimedOut,
    /// `panicked`
    Panicked,
    /// `interrupted`
    Interrupted,
    /// `malformed`
    Malformed,
    /// `expired`
    Expired,
    /// `unroutable`
    Unroutable,
    /// `snoozed`
    Snoozed,
}

/// Why intake is paused, as the label of `intake_paused` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Every slot is busy.
    Full,
    /// Payload bytes in flight are at their limit.
    Bytes,
    /// A dead letter cannot be stored.
    DeadLetter,
    /// An ordered queue waits for a key.
    Order,
    /// An operator said so.
    Operator,
    /// Partitions are moving.
    Rebalance,
    /// The broker does not answer.
    Broker,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Full, Self::Bytes, Self::DeadLetter, Self::Order, Self::Operator, Self::Rebalance, Self::Broker];

    /// As the label spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Bytes => "bytes",
            Self::DeadLetter => "dead_letter",
            Self::Order => "order",
            Self::Operator => "operator",
            Self::Rebalance => "rebalance",
            Self::Broker => "broker",
        }
    }
}

/// The figures of one queue. Setting a gauge is one atomic store.
#[derive(Default)]
pub struct QueueMeter {}

impl QueueMeter {
    /// The meter of a queue; every label set of it is present at 0 from here on.
    pub fn new(_queue: &QueueName, _jobs: &[JobName]) -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// `slots`
    pub fn set_slots(&self, _slots: usize) {}
    /// `in_flight`
    pub fn set_in_flight(&self, _jobs: usize) {}
    /// `bytes_in_flight`
    pub fn set_bytes_in_flight(&self, _bytes: usize) {}
    /// `unconfirmed`
    pub fn set_unconfirmed(&self, _deliveries: usize) {}
    /// `intake_paused{why}`: 1 or 0.
    pub fn set_paused(&self, _why: Why, _paused: bool) {}
    /// `job_retries_total`
    pub fn add_retries(&self, _job: &JobName, _count: u64) {}
    /// `dead_letters_total`
    pub fn add_dead(&self, _job: &JobName, _reason: Reason) {}
    /// `dead_letters_expired_total`
    pub fn add_dead_expired(&self, _count: u64) {}
    /// `redeliveries_total`
    pub fn add_redeliveries(&self, _count: u64) {}
    /// `settle_duration_seconds`, for `count` settlements that took this long together.
    pub fn observe_settle(&self, _took: Duration, _count: usize) {}
    /// A tally for one task, of one job of this queue.
    pub fn tally(self: &Arc<Self>, _job: &JobName) -> JobTally {
        JobTally {}
    }
}

/// Counts of one job by one task; flush it once a batch (dropping it flushes too).
pub struct JobTally {}

impl JobTally {
    /// Counts one attempt: `jobs_total`, `job_duration_seconds`, `job_wait_seconds` (from when it could first
    /// have started to when it did).
    pub fn record(&mut self, _outcome: OutcomeLabel, _wait: Duration, _ran: Duration) {}
    /// Adds what was counted to the shared meter.
    pub fn flush(&mut self) {}
}
