//! What a handler is given.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::message::{Attempt, Event, JobName, QueueName};

/// What a handler is given beside its arguments. Cheap to clone.
#[derive(Clone)]
pub struct Context(Arc<Run>);

/// What all runs of one job of one queue in one process share.
#[derive(Clone)]
pub struct Shared {
    /// The queue.
    pub queue: QueueName,
    /// The job.
    pub job: JobName,
    /// How many attempts it gets in all.
    pub attempts: u32,
    /// For publishing and enqueueing.
    pub client: Client,
    /// The application's shared state, by type.
    pub state: Arc<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

struct Run {
    event: Event,
    attempt: Attempt,
    deadline: Option<Instant>,
    wants_result: AtomicBool,
    cancelled: OnceLock<CancellationToken>,
    /// The handler has asked for the token.
    watches: AtomicBool,
    shared: Arc<Shared>,
}

impl Context {
    pub(crate) fn new(
        event: Event,
        attempt: Attempt,
        deadline: Option<Instant>,
        wants_result: bool,
        shared: Arc<Shared>,
    ) -> Self {
        Self(Arc::new(Run {
            event,
            attempt,
            deadline,
            wants_result: AtomicBool::new(wants_result),
            cancelled: OnceLock::new(),
            watches: AtomicBool::new(false),
            shared,
        }))
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.0.event
    }

    /// The event's id: the same at each attempt and after a replay. Make effects idempotent by it.
    pub fn event_id(&self) -> &str {
        &self.0.event.id
    }

    /// The topic it was published to; `None` for a job enqueued for one queue.
    pub fn topic(&self) -> Option<&str> {
        self.0.event.topic.as_deref()
    }

    /// The ordering key.
    pub fn key(&self) -> Option<&[u8]> {
        self.0.event.key.as_deref()
    }

    /// The queue.
    pub fn queue(&self) -> &QueueName {
        &self.0.shared.queue
    }

    /// The job's name.
    pub fn job(&self) -> &JobName {
        &self.0.shared.job
    }

    /// How often this job has been run, this time included; the first is 1.
    pub fn attempt(&self) -> u32 {
        self.0.attempt.get()
    }

    /// How many attempts are allowed in all.
    pub fn attempts_allowed(&self) -> u32 {
        self.0.shared.attempts
    }

    /// When this attempt times out; `None` where there is no limit.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.deadline
    }

    /// What is left until the deadline.
    pub fn time_left(&self) -> Option<Duration> {
        self.0.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Resolves when the attempt should end: shutdown after the grace period, timeout, or a lost lease. A handler
    /// that does not look is dropped at its next await.
    pub async fn cancelled(&self) {
        self.cancellation().cancelled().await;
    }

    /// True once the attempt should end; for blocking jobs.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.get().is_some_and(CancellationToken::is_cancelled)
    }

    /// The token behind [`Context::cancelled`].
    pub fn cancellation(&self) -> CancellationToken {
        self.0.watches.store(true, Ordering::Release);
        self.0.cancelled.get_or_init(CancellationToken::new).clone()
    }

    /// Cancels the attempt; whether the handler watches for it.
    pub(crate) fn cancel(&self) -> bool {
        self.0.cancelled.get_or_init(CancellationToken::new).cancel();
        self.0.watches.load(Ordering::Acquire)
    }

    /// A client for publishing and enqueueing.
    pub fn client(&self) -> &Client {
        &self.0.shared.client
    }

    /// The application's shared state of type `T`, given by [`Registry::state`](super::Registry::state).
    ///
    /// # Panics
    /// Where no such state was given: a mistake in `main`, said by name.
    pub fn state<T: Send + Sync + 'static>(&self) -> &T {
        self.try_state().unwrap_or_else(|| {
            panic!("no shared state of type {}; give it with Registry::state in main", std::any::type_name::<T>())
        })
    }

    /// The application's shared state of type `T`, if it was given.
    pub fn try_state<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.0.shared.state.get(&TypeId::of::<T>()).and_then(|state| state.downcast_ref())
    }

    /// Whether somebody will read what the handler returns (`windlass try`, a test).
    pub fn wants_result(&self) -> bool {
        self.0.wants_result.load(Ordering::Relaxed)
    }

    /// Asks for the result: the test kit reads it.
    pub(crate) fn want_result(&self) {
        self.0.wants_result.store(true, Ordering::Relaxed);
    }

    /// A span with the fields that log lines carry: queue, job, event_id, attempt. Enter it, or instrument a
    /// future with it; it costs nothing unless you do.
    pub fn span(&self) -> tracing::Span {
        tracing::info_span!(
            "job",
            queue = %self.queue(),
            job = %self.job(),
            event_id = self.event_id(),
            attempt = self.attempt(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_handler_that_asked_for_the_token_watches() {
        let cx = Context::test();
        assert!(!cx.cancel() && !cx.cancel(), "to be told twice is not to watch");
        assert!(cx.is_cancelled() && !cx.cancel(), "nor is to look");
        assert!(cx.cancellation().is_cancelled() && cx.cancel());
    }
}
