//! Publishing events and enqueueing jobs.

use std::sync::Arc;

use crate::broker::{self, Destination, Publication, Published, Publisher};
use crate::message::{JobName, Message, Namespace, QueueName, Topic};
use crate::time::Timestamp;

/// Publishes events and enqueues jobs. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    publisher: Arc<dyn Publisher>,
    namespace: Namespace,
}

impl Client {
    /// A client on a connected broker.
    pub fn new(publisher: Arc<dyn Publisher>, namespace: Namespace) -> Self {
        Self { publisher, namespace }
    }
}
