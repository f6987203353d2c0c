//! What others may ask of a running worker.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::message::QueueName;
use crate::telemetry::meter::Why;
use crate::time::Timestamp;

/// A running job, for `/api/v1/running`.
#[derive(Clone, Debug, serde::Serialize, utoipa::ToSchema)]
pub struct Running {
    /// The queue.
    pub queue: String,
    /// The job.
    pub job: String,
    /// The event's id.
    pub event_id: String,
    /// The attempt.
    pub attempt: u32,
    /// For how long it has been running, in seconds.
    pub for_s: f64,
}

/// One queue of this process.
#[derive(Clone, Debug)]
pub struct QueueState {
    /// The queue.
    pub name: QueueName,
    /// Its slots in this process.
    pub slots: usize,
    /// Jobs running now.
    pub in_flight: usize,
    /// Bytes of payload in hand.
    pub bytes_in_flight: usize,
    /// Finished and not yet confirmed.
    pub unconfirmed: usize,
    /// Why intake is paused, if it is.
    pub paused: Vec<Why>,
    /// Whether it has received from the broker, or was told that there is nothing, since the last reconnect.
    pub consuming: bool,
    /// What the adapter said is wrong, if something is.
    pub trouble: Option<String>,
    /// When a job last succeeded.
    pub last_success: Option<Timestamp>,
}

/// Asks a running worker. Cheap to clone; every answer is immediate.
pub trait Control: Send + Sync {
    /// All queues of this process.
    fn queues(&self) -> Vec<QueueState>;
    /// Jobs running now, the oldest first.
    fn running(&self) -> Vec<Running>;
    /// Stops taking from a queue, in this process; `false`: no such queue here. `lasting`: ends by itself.
    fn pause(&self, queue: &str, lasting: Option<Duration>) -> bool;
    /// Takes again.
    fn resume(&self, queue: &str) -> bool;
    /// Changes a queue's slots in this process.
    fn set_slots(&self, queue: &str, slots: NonZeroUsize) -> bool;
}
