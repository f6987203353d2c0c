//! What the port can see. It is filled as things come to exist.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::depth::Depths;
use super::problem::Problem;
use crate::broker::Broker;
use crate::message::{JobName, Namespace, QueueName};
use crate::shutdown::Shutdown;
use crate::time::Clock;
use crate::worker::handle::Control;

/// What the port can see and do. Cheap to clone; clones share what is filled in later.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    namespace: Namespace,
    shutdown: Shutdown,
    jobs: BTreeMap<QueueName, JobName>,
    clock: Clock,
    broker: OnceLock<Arc<dyn Broker>>,
    worker: OnceLock<Arc<dyn Control>>,
    depths: Depths,
}

impl Context {
    /// A context without broker and worker. `jobs`: the configured queues and what runs their events, which is what
    /// a job enqueued without a name runs.
    pub fn new(namespace: Namespace, jobs: BTreeMap<QueueName, JobName>, shutdown: Shutdown) -> Self {
        Self(Arc::new(Inner {
            namespace,
            shutdown,
            jobs,
            clock: Clock::System,
            broker: OnceLock::new(),
            worker: OnceLock::new(),
            depths: Depths::default(),
        }))
    }

    /// The broker is connected. Only the first one counts.
    pub fn set_broker(&self, broker: Arc<dyn Broker>) {
        // A process connects once; a second one would be a mistake that must not swap brokers under requests.
        let _ = self.0.broker.set(broker);
    }

    /// The worker works. Only the first one counts.
    pub fn set_worker(&self, worker: Arc<dyn Control>) {
        // As above.
        let _ = self.0.worker.set(worker);
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    pub(super) fn shutdown(&self) -> &Shutdown {
        &self.0.shutdown
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    pub(super) fn depths(&self) -> &Depths {
        &self.0.depths
    }

    /// What runs the events of a configured queue.
    pub(super) fn job_of(&self, queue: &str) -> Option<&JobName> {
        self.0.jobs.get(queue)
    }

    pub(super) fn broker(&self) -> Option<&Arc<dyn Broker>> {
        self.0.broker.get()
    }

    pub(super) fn worker(&self) -> Option<&Arc<dyn Control>> {
        self.0.worker.get()
    }

    pub(super) fn require_broker(&self) -> Result<&Arc<dyn Broker>, Problem> {
        self.broker().ok_or_else(|| Problem::unavailable("the broker is not connected yet"))
    }

    pub(super) fn require_worker(&self) -> Result<&Arc<dyn Control>, Problem> {
        self.worker().ok_or_else(|| Problem::unavailable("the worker has not started yet"))
    }
}
