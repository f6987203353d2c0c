//! What happened to one delivery.

use std::time::Duration;

use crate::handler::{self, Verdict};
use crate::telemetry::meter::OutcomeLabel;

/// What happened. What we do about it is a [`Disposition`](crate::broker::Disposition), decided in
/// [`retry::decide`](super::retry::decide) and nowhere else.
#[derive(Debug)]
pub enum Outcome {
    /// The handler succeeded.
    Done,
    /// The handler answered with an error (one that asks for a retry, or says that none is of use).
    Failed(handler::Error),
    /// The attempt took longer than allowed.
    TimedOut {
        /// What was allowed.
        limit: Duration,
    },
    /// The handler panicked.
    Panicked {
        /// The panic's message.
        message: String,
        /// `file:line` of it.
        place: String,
    },
    /// It was cancelled by a shutdown, or given back before it started. Uses no attempt.
    Interrupted,
    /// The bytes are not what they say they are. Never runs, never retries.
    Malformed(String),
    /// `expirytime` passed before it could start.
    Expired,
    /// No handler of that name is registered here.
    Unroutable,
    /// The handler asked to be run again later, without using an attempt.
    Snoozed(Duration),
    /// It was running, alone among suspects, when its worker died: condemned without another run.
    Crashed,
}

impl Outcome {
    /// What a handler's error amounts to.
    pub fn from_error(error: handler::Error) -> Self {
        match error.verdict() {
            Verdict::Malformed => Self::Malformed(error.message().to_owned()),
            Verdict::Snooze(delay) => Self::Snoozed(delay),
            Verdict::Retry | Verdict::RetryAfter(_) | Verdict::Permanent => Self::Failed(error),
        }
    }

    /// The label of `jobs_total`. A crash is the end of a job whose attempts were interrupted.
    pub fn label(&self) -> OutcomeLabel {
        match self {
            Self::Done => OutcomeLabel::Done,
            Self::Failed(_) => OutcomeLabel::Failed,
            Self::TimedOut { .. } => OutcomeLabel::TimedOut,
            Self::Panicked { .. } => OutcomeLabel::Panicked,
            Self::Interrupted | Self::Crashed => OutcomeLabel::Interrupted,
            Self::Malformed(_) => OutcomeLabel::Malformed,
            Self::Expired => OutcomeLabel::Expired,
            Self::Unroutable => OutcomeLabel::Unroutable,
            Self::Snoozed(_) => OutcomeLabel::Snoozed,
        }
    }
}
