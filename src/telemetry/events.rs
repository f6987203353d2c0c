//! The catalogue: one struct is one log line and its metrics. Messages are constant sentences, data goes into
//! fields, ERROR means that someone must act.

use crate::message::QueueName;

/// The worker takes nothing more of a queue for the moment.
pub struct IntakePaused<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// Why.
    pub why: super::meter::Why,
}

impl IntakePaused<'_> {
    /// Logs and counts it.
    pub fn emit(&self) {
        tracing::info!(queue = %self.queue, why = self.why.as_str(), "intake is paused");
    }
}
