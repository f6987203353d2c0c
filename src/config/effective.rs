//! What holds for a queue and a job once defaults, tables and code are laid over each other, and what a worker must
//! have before it starts.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::build::DEFAULT_HTTP_SLOTS;
use super::fault::{Fault, Faults, Place};
use super::{Config, Queue};
use crate::broker::is_loopback;
use crate::handler::Entry;
use crate::message::{JobName, QueueName};
use crate::worker::retry;

impl Config {
    /// How many jobs of this queue run at once here: its own `slots`, else `worker.slots`, 8 where its job is HTTP;
    /// never more than `worker.slots`.
    pub fn slots(&self, queue: &QueueName) -> NonZeroUsize {
        let all = self.worker.slots;
        let Some(queue) = self.queues.get(queue) else { return all };
        let over_http = || self.jobs.get(&queue.job).is_some_and(|job| job.http.is_some());
        let own = queue.slots.or_else(|| over_http().then(|| NonZeroUsize::new(DEFAULT_HTTP_SLOTS)).flatten());
        own.map_or(all, |own| own.min(all))
    }

    /// The retry policy of `job` in `queue`: `[jobs.X]` before the job's own in code (`entry`), before the queue's,
    /// before the defaults; key by key.
    pub fn policy(&self, queue: &QueueName, job: &JobName, entry: Option<&Entry>) -> retry::Policy {
        let of_queue = self.queues.get(queue).map(|queue| queue.retry).unwrap_or_default();
        let of_code = entry.and_then(|entry| entry.retry).unwrap_or_default();
        let of_job = self.jobs.get(job).map(|job| job.retry).unwrap_or_default();
        retry::Policy::default().with(&of_queue).with(&of_code).with(&of_job)
    }

    /// How long one attempt of `job` in `queue` may take, likewise.
    pub fn timeout(&self, queue: &QueueName, job: &JobName, entry: Option<&Entry>) -> Duration {
        let of_job = self.jobs.get(job).and_then(|job| job.timeout);
        let of_code = || entry.and_then(|entry| entry.timeout);
        let of_queue = || self.queues.get(queue).map_or(super::build::DEFAULT_TIMEOUT, |queue| queue.timeout);
        of_job.or_else(of_code).unwrap_or_else(of_queue)
    }

    fn file_place(&self) -> Place {
        self.file.as_ref().map_or(Place::Default, |file| Place::Whole(file.to_string_lossy().into()))
    }
}

/// What keeps `run` from working these queues (all where `selected` is empty); `known` says whether a job is compiled
/// in. An unknown queue in `selected` is a fault too.
pub fn check_run(config: &Config, selected: &[QueueName], known: &dyn Fn(&str) -> bool) -> Result<(), Faults> {
    let place = config.file_place();
    let mut faults = Vec::new();
    if config.queues.is_empty() {
        let fault = Fault::new(&place, "", "there is no queue to work");
        faults.push(fault.hint(
            "`windlass config init` writes a file with one, and `windlass run --topic TOPIC --http URL` needs no file",
        ));
    }
    for name in selected.iter().filter(|name| !config.queues.is_empty() && !config.queues.contains_key(*name)) {
        let all: Vec<&str> = config.queues.keys().map(QueueName::as_str).collect();
        let fault = Fault::new(&place, format!("queues.{name}"), "there is no such queue");
        faults.push(fault.hint(match super::meaning::nearest(name.as_str(), all.iter().copied()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("there are: {}", all.join(", ")),
        }));
    }
    let runs = |name: &QueueName| selected.is_empty() || selected.contains(name);
    let running: Vec<(&QueueName, &Queue)> = config.queues.iter().filter(|(name, _)| runs(name)).collect();
    for (name, queue) in &running {
        let table = config.jobs.get(&queue.job);
        if table.is_some_and(|job| job.http.is_some()) || known(queue.job.as_str()) {
            continue;
        }
        let job = super::walk::quoted(queue.job.as_str());
        let message = match table {
            Some(_) => format!(
                "job {:?} is not compiled into this binary, and [jobs.{job}] names no `http`",
                queue.job.as_str()
            ),
            None => {
                format!("job {:?} is not compiled into this binary, and there is no [jobs.{job}]", queue.job.as_str())
            }
        };
        let hint = format!("register it in `main`, or write [jobs.{job}] with http = \"http://..\"");
        faults.push(Fault::new(&place, format!("queues.{name}.job"), message).hint(hint));
    }
    for (name, queue) in &running {
        for topic in &queue.topics {
            if let Some(message) = super::refusal::unfit(&config.broker, topic) {
                faults.push(Fault::new(&place, format!("queues.{name}.topics"), message));
            }
        }
    }
    let slots = config.worker.slots.get();
    if slots < running.len() {
        let message =
            format!("{slots} slots for {} queues: every queue keeps one that no other can take", running.len());
        let hint = format!("set worker.slots to at least {}, or choose queues with --queue", running.len());
        faults.push(Fault::new(&place, "worker.slots", message).hint(hint));
    }
    faults.extend(check_namespace(config));
    if faults.is_empty() { Ok(()) } else { Err(Faults::of(faults)) }
}

/// Off loopback on NATS and Kafka the namespace must be set, so that two applications never share their queues by
/// accident.
pub fn check_namespace(config: &Config) -> Option<Fault> {
    if config.namespace_set || is_loopback(&config.broker) {
        return None;
    }
    let message = format!("must be set where the broker is shared ({})", super::shown_address(&config.broker));
    let fault = Fault::new(&config.file_place(), "namespace", message);
    Some(fault.hint("it begins the name of all that we create there: write namespace = \"your-application\""))
}
