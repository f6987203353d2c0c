//! `memory://`: in this process only. The same promises as every broker's, but for restarts; what tests, benches and
//! the test kit run on.

mod letters;
mod store;
mod yardstick;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;

use super::{
    Broker, Credit, DeadLetters, Delivery, Destination, Error, Finding, Inspect, KnownQueue, Opened, Options,
    Publication, Published, Publisher, Queue, QueueStatus, Settled, Settlement, Settler, Source, Trouble, may_forget,
};
use crate::message::{Binding, QueueName, Topic};
use crate::time::{Clock, Timestamp};
use store::Store;

/// A broker in memory.
pub(super) struct Memory {
    address: String,
    clock: Clock,
    queues: Mutex<BTreeMap<QueueName, Arc<Store>>>,
}

pub(super) fn connect(address: &str, options: Options) -> Arc<dyn Broker> {
    let (broker, _) = connect_with_timetable(address, options);
    broker
}

/// A broker, and when what waits in it is due: for the test kit, which moves the clock there.
pub(crate) fn connect_with_timetable(address: &str, options: Options) -> (Arc<dyn Broker>, Timetable) {
    let memory = Memory { address: address.to_owned(), clock: options.clock, queues: Mutex::default() };
    for queue in &options.queues {
        memory.know(queue);
    }
    let memory = Arc::new(memory);
    (Arc::new(Handle(memory.clone())), Timetable(memory))
}

/// When what waits is due.
pub(crate) struct Timetable(Arc<Memory>);

impl Timetable {
    /// The earliest due time of all queues; `None` where nothing waits for its time.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.0.stores().iter().filter_map(|store| store.next_due()).min()
    }

    /// Whether nothing is handed out, and nothing could be now.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.0.stores().iter().all(|store| store.is_at_rest())
    }
}

/// The loop beside which a worker is measured.
pub(super) fn yardstick(options: &Options) -> yardstick::MemoryYardstick {
    yardstick::MemoryYardstick::new(options)
}

#[derive(Clone)]
struct Handle(Arc<Memory>);

impl Memory {
    fn know(&self, queue: &Queue) -> Arc<Store> {
        let mut queues = self.queues.lock();
        let store = queues
            .entry(queue.name.clone())
            .or_insert_with(|| Store::new(queue.name.clone(), queue.ordered, self.clock.clone()));
        store.hear(&queue.topics);
        store.clone()
    }

    fn store(&self, name: &QueueName) -> Result<Arc<Store>, Error> {
        self.queues.lock().get(name).cloned().ok_or_else(|| Error::NotFound(format!("no queue {name}")))
    }

    fn stores(&self) -> Vec<Arc<Store>> {
        self.queues.lock().values().cloned().collect()
    }

    fn publish(&self, publication: Publication) -> Result<Published, Error> {
        match publication.destination {
            Destination::Queue { queue, job, not_before } => {
                self.store(&queue)?.enqueue(publication.message, job, not_before);
                Ok(Published { queues: Some(1), id: None })
            }
            Destination::Topic(topic) => {
                let hearing: Vec<_> = self.stores().into_iter().filter(|store| store.hears(&topic)).collect();
                if hearing.is_empty() && !publication.allow_unheard {
                    return Err(self.unheard(&topic));
                }
                for store in &hearing {
                    store.publish(&topic, publication.message.clone());
                }
                // Each queue numbers for itself.
                Ok(Published { queues: u32::try_from(hearing.len()).ok(), id: None })
            }
        }
    }

    fn unheard(&self, topic: &Topic) -> Error {
        let nearest = self
            .stores()
            .iter()
            .flat_map(|store| store.topics())
            .map(|known| (strsim::damerau_levenshtein(&known, topic.as_str()), known))
            .min();
        let hint = nearest.map_or_else(String::new, |(_, known)| format!("; did you mean {known}?"));
        Error::Rejected(format!("no queue hears topic {topic}{hint}"))
    }
}

impl Broker for Handle {
    fn address(&self) -> &str {
        &self.0.address
    }

    fn connected(&self) -> bool {
        true
    }

    fn open<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<Opened, Error>> {
        let store = self.0.know(queue);
        let source = Box::new(MemorySource { store: store.clone(), stopped: false });
        ready(Ok(Opened { source, settler: Arc::new(MemorySettler(store)), notes: Vec::new() })).boxed()
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(self.clone())
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(letters::Letters(self.0.clone()))
    }

    fn inspect(&self) -> Arc<dyn Inspect> {
        Arc::new(self.clone())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

impl Publisher for Handle {
    fn binding(&self) -> Binding {
        Binding::Dash
    }

    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Published, Error>>> {
        ready(batch.into_iter().map(|publication| self.0.publish(publication)).collect()).boxed()
    }
}

struct MemorySource {
    store: Arc<Store>,
    stopped: bool,
}

impl Source for MemorySource {
    fn receive(&mut self, credit: Credit) -> BoxFuture<'_, Result<Vec<Delivery>, Error>> {
        let stopped = self.stopped;
        let first = if stopped { Vec::new() } else { self.store.take(credit) };
        if !first.is_empty() {
            return ready(Ok(first)).boxed();
        }
        async move {
            loop {
                if stopped {
                    std::future::pending::<()>().await;
                }
                self.store.changed().await;
                let deliveries = self.store.take(credit);
                if !deliveries.is_empty() {
                    return Ok(deliveries);
                }
            }
        }
        .boxed()
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        self.stopped = true;
        ready(()).boxed()
    }
}

struct MemorySettler(Arc<Store>);

impl Settler for MemorySettler {
    fn settle(&self, batch: Vec<Settlement>) -> BoxFuture<'static, Vec<Settled>> {
        ready(self.0.settle(batch)).boxed()
    }

    fn mark<'a>(&'a self, starting: &'a [&'a Delivery]) -> BoxFuture<'a, Vec<bool>> {
        ready(vec![true; starting.len()]).boxed()
    }

    fn unconfirmed_limit(&self) -> usize {
        usize::MAX
    }

    fn trouble(&self) -> Option<Trouble> {
        None
    }
}

impl Inspect for Handle {
    fn status<'a>(&'a self, queues: &'a [QueueName]) -> BoxFuture<'a, Result<Vec<QueueStatus>, Error>> {
        let status = if queues.is_empty() {
            Ok(self.0.stores().iter().map(|store| store.status()).collect())
        } else {
            queues.iter().map(|name| self.0.store(name).map(|store| store.status())).collect()
        };
        ready(status).boxed()
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<KnownQueue>, Error>> {
        let known = |store: &Arc<Store>| KnownQueue {
            name: store.name().clone(),
            topics: store.topics(),
            workers: Some(u64::from(store.slots() > 0)),
        };
        ready(Ok(self.0.stores().iter().map(known).collect())).boxed()
    }

    fn forget<'a>(&'a self, queue: &'a QueueName, even_with_jobs: bool) -> BoxFuture<'a, Result<u64, Error>> {
        let forget = || {
            let store = self.0.store(queue)?;
            let jobs = store.jobs();
            may_forget(queue, u64::from(store.slots() > 0), jobs, even_with_jobs)?;
            self.0.queues.lock().remove(queue);
            Ok(jobs)
        };
        ready(forget()).boxed()
    }

    fn doctor(&self) -> BoxFuture<'_, Result<Vec<Finding>, Error>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn present<'a>(&'a self, queues: &'a [(QueueName, usize)]) -> BoxFuture<'a, Result<(), Error>> {
        for (name, slots) in queues {
            if let Ok(store) = self.0.store(name) {
                store.set_slots(*slots);
            }
        }
        ready(Ok(())).boxed()
    }

    fn expire_dead(&self) -> BoxFuture<'_, Result<Vec<(QueueName, u64)>, Error>> {
        ready(Ok(Vec::new())).boxed()
    }
}
