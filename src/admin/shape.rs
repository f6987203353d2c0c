//! The JSON that only the API answers with; what the command line writes too is in
//! [`broker::shape`](crate::broker::shape).

use serde::Serialize;
use utoipa::ToSchema;

use crate::broker;
use crate::broker::shape::QueueStatus;
use crate::worker::handle::QueueState;

/// `/api/v1/status`: what the broker holds, and this process' part.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Status {
    /// The broker's address, without passwords.
    pub(super) broker: String,
    /// What the broker holds.
    pub(super) queues: Vec<QueueStatus>,
    /// This process.
    pub(super) worker: Worker,
}

/// This process.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Worker {
    /// Whether it takes nothing new and will leave.
    pub(super) draining: bool,
    /// The queues that it works.
    pub(super) queues: Vec<WorkerQueue>,
}

/// A queue of this process.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WorkerQueue {
    /// Its name.
    name: String,
    /// Jobs that may run at once here.
    slots: usize,
    /// Jobs running here.
    in_flight: usize,
    /// Bytes of payload in hand.
    bytes_in_flight: usize,
    /// Finished and not yet confirmed.
    unconfirmed: usize,
    /// Why nothing is taken from the broker, in the words of the metric `intake_paused`; empty while it is.
    paused: Vec<&'static str>,
    /// Whether the broker has answered since the last reconnect.
    consuming: bool,
    /// What is wrong, if something is.
    trouble: Option<String>,
    /// When a job last succeeded here, RFC 3339.
    last_success: Option<String>,
}

impl From<QueueState> for WorkerQueue {
    fn from(state: QueueState) -> Self {
        Self {
            name: state.name.to_string(),
            slots: state.slots,
            in_flight: state.in_flight,
            bytes_in_flight: state.bytes_in_flight,
            unconfirmed: state.unconfirmed,
            paused: state.paused.into_iter().map(|why| why.as_str()).collect(),
            consuming: state.consuming,
            trouble: state.trouble,
            last_success: state.last_success.map(|at| at.to_rfc3339()),
        }
    }
}

/// A drain that has begun.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Draining {
    /// `draining`
    pub(super) status: &'static str,
}

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Letters {
    /// The newest first.
    pub(super) letters: Vec<broker::letter::Row>,
    /// Give it as `cursor` for the next page; `null` on the last one.
    pub(super) next: Option<String>,
}

/// Dead letters that failed alike.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Groups {
    /// The largest first.
    pub(super) groups: Vec<broker::selector::Group>,
}
