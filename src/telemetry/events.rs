//! The catalogue: one struct is one log line and its metrics. Messages are constant sentences, data goes into
//! fields, ERROR means that someone must act.

use std::time::Duration;

use super::meter::{OutcomeLabel, Why};
use crate::broker::{self, Disposition};
use crate::message::{JobName, QueueName};

/// A queue was opened, and there is something to say about its start.
pub struct QueueOpened<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// What the broker said: "starts with 1,204 old events".
    pub note: &'a str,
}

impl QueueOpened<'_> {
    /// Logs it.
    pub fn emit(&self) {
        tracing::info!(queue = %self.queue, note = self.note, "queue is open");
    }
}

/// The worker takes nothing more of a queue for the moment.
pub struct IntakePaused<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// Why.
    pub why: Why,
}

impl IntakePaused<'_> {
    /// Logs it.
    pub fn emit(&self) {
        tracing::debug!(queue = %self.queue, why = self.why.as_str(), "intake is paused");
    }
}

/// The worker takes again.
pub struct IntakeResumed<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// Why it had paused.
    pub why: Why,
    /// For how long.
    pub after: Duration,
}

impl IntakeResumed<'_> {
    /// Logs it.
    pub fn emit(&self) {
        tracing::debug!(
            queue = %self.queue,
            why = self.why.as_str(),
            after_ms = self.after.as_millis() as u64,
            "intake goes on"
        );
    }
}

/// Receiving failed; it is tried again.
pub struct ReceiveFailed<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// What the broker said.
    pub error: &'a broker::Error,
}

impl ReceiveFailed<'_> {
    /// Logs it.
    pub fn emit(&self) {
        tracing::warn!(queue = %self.queue, error = %self.error, "receiving failed");
    }
}

/// A delivery ended other than well, and what was decided about it.
pub struct Concluded<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// The job.
    pub job: &'a JobName,
    /// The event's id; empty where it could not be read.
    pub event_id: &'a str,
    /// The attempt.
    pub attempt: u32,
    /// What happened.
    pub outcome: OutcomeLabel,
    /// What follows.
    pub disposition: &'a Disposition,
}

impl Concluded<'_> {
    /// Logs it: a retry as a warning, a dead letter as an error.
    pub fn emit(&self) {
        match self.disposition {
            Disposition::Retry { at, failure, .. } => tracing::warn!(
                queue = %self.queue,
                job = %self.job,
                event_id = self.event_id,
                attempt = self.attempt,
                error_type = failure.as_ref().map(|failure| failure.error_type.as_str()),
                error = failure.as_ref().map(|failure| failure.error.as_str()),
                retry_at = %at,
                "job will be run again"
            ),
            Disposition::DeadLetter { reason, failure, .. } => tracing::error!(
                queue = %self.queue,
                job = %self.job,
                event_id = self.event_id,
                attempt = self.attempt,
                reason = reason.as_str(),
                error_type = failure.error_type,
                error = failure.error,
                "job is a dead letter"
            ),
            Disposition::Ack | Disposition::Release => tracing::debug!(
                queue = %self.queue,
                job = %self.job,
                event_id = self.event_id,
                attempt = self.attempt,
                "job was given back"
            ),
        }
    }
}

/// A suspect runs, with no other suspect in the process.
pub struct Isolated<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// The attempt.
    pub attempt: u32,
}

impl Isolated<'_> {
    /// Logs it.
    pub fn emit(&self) {
        tracing::warn!(queue = %self.queue, attempt = self.attempt, "a job that was there when workers died runs alone among suspects");
    }
}

/// Somebody else owns the job now; nothing was changed.
pub struct StaleSettlement<'a> {
    /// The queue.
    pub queue: &'a QueueName,
}

impl StaleSettlement<'_> {
    /// Logs it.
    pub fn emit(&self) {
        tracing::warn!(queue = %self.queue, "a settlement came too late: the lease was lost meanwhile");
    }
}

/// A settlement could not be confirmed; the job comes again.
pub struct SettlementUnconfirmed<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// Why.
    pub error: &'a str,
}

impl SettlementUnconfirmed<'_> {
    /// Logs it.
    pub fn emit(&self) {
        tracing::warn!(queue = %self.queue, error = self.error, "a settlement could not be confirmed; the job comes again");
    }
}

/// The drain begins.
pub struct DrainStarted {
    /// Slots in use.
    pub running: usize,
    /// What they get.
    pub grace: Duration,
}

impl DrainStarted {
    /// Logs it.
    pub fn emit(&self) {
        tracing::info!(running = self.running, grace_s = self.grace.as_secs_f64(), "draining");
    }
}

/// Nothing runs any more.
pub struct DrainFinished {
    /// How long it took.
    pub took: Duration,
}

impl DrainFinished {
    /// Logs it.
    pub fn emit(&self) {
        tracing::info!(took_ms = self.took.as_millis() as u64, "drained");
    }
}

/// Jobs did not end when they were cancelled; the process leaves without them, they come again elsewhere.
pub struct Abandoned {
    /// How many.
    pub count: usize,
}

impl Abandoned {
    /// Logs it.
    pub fn emit(&self) {
        tracing::error!(count = self.count, "jobs did not end when they were cancelled and are left to other workers");
    }
}

/// Dead letters were removed because they had been kept long enough.
pub struct DeadLettersExpired<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// How many.
    pub count: u64,
}

impl DeadLettersExpired<'_> {
    /// Logs it.
    pub fn emit(&self) {
        tracing::warn!(queue = %self.queue, count = self.count, "dead letters were kept long enough and are removed");
    }
}

/// The presence record could not be renewed, or dead letters not expired; it is tried again.
pub struct PresenceFailed<'a> {
    /// What the broker said.
    pub error: &'a broker::Error,
}

impl PresenceFailed<'_> {
    /// Logs it.
    pub fn emit(&self) {
        tracing::debug!(error = %self.error, "presence could not be renewed");
    }
}
