//! What anybody would write first in place of a worker: a permit and a task for each job.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::broker::yardstick::{Seen, Yardstick};
use crate::broker::{Error, Options};

/// Permits where the options name no queue.
const SLOTS: usize = 64;

/// See the module's documentation.
pub struct MemoryYardstick {
    slots: usize,
    bodies: Mutex<HashMap<String, Vec<Bytes>>>,
}

impl MemoryYardstick {
    /// With as many permits as the first queue has slots.
    pub fn new(options: &Options) -> Self {
        let slots = options.queues.first().map_or(SLOTS, |queue| queue.slots.get());
        Self { slots, bodies: Mutex::default() }
    }
}

impl Yardstick for MemoryYardstick {
    fn loops(&self) -> &'static [&'static str] {
        &["a task for each job"]
    }

    fn address(&self, _: &str) -> String {
        "memory://".to_owned()
    }

    fn create<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        ready(Ok(())).boxed()
    }

    fn fill<'a>(&'a self, topic: &'a str, bodies: Vec<Bytes>) -> BoxFuture<'a, Result<(), Error>> {
        self.bodies.lock().entry(topic.to_owned()).or_default().extend(bodies);
        ready(Ok(())).boxed()
    }

    fn consume<'a>(
        &'a self,
        topic: &'a str,
        _: usize,
        count: usize,
        seen: Seen<'a>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let bodies = self.bodies.lock().remove(topic).unwrap_or_default();
            let slots = Arc::new(Semaphore::new(self.slots));
            // A task must own what it uses, and `seen` is borrowed: each gives its body back.
            let (ended, mut done) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
            for body in bodies.into_iter().take(count) {
                let Ok(permit) = slots.clone().acquire_owned().await else { break };
                let ended = ended.clone();
                tokio::spawn(async move {
                    // The other end is gone only with the whole measurement.
                    let _ = ended.send(body);
                    drop(permit);
                });
                while let Ok(body) = done.try_recv() {
                    seen(&body);
                }
            }
            drop(ended);
            while let Some(body) = done.recv().await {
                seen(&body);
            }
            Ok(())
        })
    }

    fn runs<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<String>, Error>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        self.bodies.lock().retain(|topic, _| !topic.starts_with(name));
        ready(Ok(())).boxed()
    }
}
