//! Kafka: concurrency beyond partitions, committed in order.
//!
//! The way of a record: the [`poll`] thread reads it from its partition's queue ([`native`]) into its [`partition`],
//! which knows by its [`tracker`] what is unfinished; the [`source`] hands it over; the [`settle`]r says how it ended;
//! the poll thread commits what is finished, with a [`memo`] for whoever comes next, or lets the [`mover`] write what
//! replaces it. What partitions hold is pure: no I/O, no clock; the poll thread does the I/O.

mod tracker;

mod span;

pub(super) mod memo;

mod order;

mod partition;

mod batch;

mod state;

mod names;

mod login;

mod config;

mod context;

mod arena;

mod native;

mod poll;

mod source;

mod settle;

mod transaction;

mod load;

mod mover;

pub(super) mod outgoing;

mod topics;

mod publish;

mod delay;

mod scan;

mod marks;

mod index;

mod dead;

mod doctor;

mod begun;

mod held;

mod later;

mod inspect;

mod yardstick;

#[cfg(test)]
mod takeover;

#[cfg(test)]
mod modes;
#[cfg(test)]
mod sim;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Broker, DeadLetters, Error, Inspect, Opened, Options, Publisher, Queue, Role};
use config::Settings;
use topics::{Kind, Topics};

/// Retries up to this wait in place, unless the configuration says otherwise.
const IN_PLACE: Duration = Duration::from_secs(30);

/// A cluster that answers.
struct Kafka {
    settings: Settings,
    options: Options,
    topics: Arc<Topics>,
    publisher: Arc<publish::KafkaPublisher>,
    inspect: inspect::KafkaInspect,
    open: Mutex<Vec<(Arc<state::Shared>, CancellationToken)>>,
    delay: Mutex<Option<delay::Stop>>,
}

/// The raw loop beside which a worker is measured.
pub(super) fn yardstick(address: &str, options: &Options) -> Result<yardstick::KafkaYardstick, Error> {
    yardstick::KafkaYardstick::new(address, options)
}

/// What connecting would refuse before it asks a broker.
pub fn check(address: &str, options: &Options) -> Result<(), Error> {
    Settings::new(address, options).map(drop)
}

/// What librdkafka says against this property.
pub fn option_fault(name: &str, value: &str) -> Option<String> {
    config::option_fault(name, value)
}

/// Connects to the cluster at `address`.
pub async fn connect(address: &str, options: Options) -> Result<Arc<dyn Broker>, Error> {
    let settings = Settings::new(address, &options)?;
    let may_create = options.role != Role::Reader && !options.kafka.no_create;
    let topics = Topics::new(&settings, may_create, &options)?;
    topics.cluster().await?;
    let publisher =
        publish::KafkaPublisher::new(&settings, &topics, &options.namespace, &options.clock, options.timeout)?;
    let publisher = Arc::new(publisher);
    let keep = options.queues.iter().map(|queue| (queue.name.clone(), queue.keep_dead)).collect();
    let (namespace, clock) = (&options.namespace, &options.clock);
    let dead = dead::KafkaDead::new(&settings, namespace, &topics, &publisher, clock, options.lease, keep);
    let queues = Arc::new(options.queues.clone());
    let inspect = inspect::KafkaInspect {
        dead,
        queues,
        worker: options.worker.clone(),
        present: Arc::default(),
        begun: Arc::default(),
        later: later::Counter::default(),
    };
    Ok(Arc::new(Kafka {
        settings,
        options,
        topics,
        publisher,
        inspect,
        open: Mutex::default(),
        delay: Mutex::default(),
    }))
}

impl Kafka {
    async fn open(&self, queue: &Queue) -> Result<Opened, Error> {
        let namespace = &self.options.namespace;
        let mut partitions = BTreeMap::new();
        for topic in &queue.topics {
            let count = self.topics.ensure(topic.as_str(), Kind::Events, None).await?;
            partitions.insert(topic.as_str().to_owned(), count);
        }
        let like = partitions.values().max().copied();
        let told = self.options.kafka.from.is_some();
        let notes = begun::check(&self.settings, namespace, queue, &partitions, told).await?;
        let work = names::work(namespace, &queue.name);
        self.topics.ensure(&work, Kind::Work, like).await?;
        self.topics.ensure(&names::dead(namespace, &queue.name), Kind::Dead, like).await?;
        let shared = Arc::new(state::Shared {
            state: Mutex::default(),
            arrived: tokio::sync::Notify::new(),
            wake: Arc::default(),
            clock: self.options.clock.clone(),
            ordered: queue.ordered,
        });
        let id = format!("{}.{}", names::group(namespace, &queue.name), uuid::Uuid::now_v7());
        let login = self.settings.login();
        let transactor =
            transaction::Transactor::new(self.settings.mover(&id), login.clone(), self.options.clock.clone());
        let ensure = topics::ensure(&self.topics, namespace);
        let mover = mover::Mover::spawn(transactor, ensure, shared.wake.clone())
            .map_err(|error| Error::Unavailable(format!("no thread for moves: {error}")))?;
        let left = CancellationToken::new();
        poll::Poll {
            config: self.settings.consumer(&names::group(namespace, &queue.name)),
            login,
            topics: queue.topics.iter().map(|topic| topic.as_str().to_owned()).collect(),
            queue: queue.name.to_string(),
            work,
            partitions,
            begun: self.inspect.begun.clone(),
            start: queue.start,
            grace: self.options.grace,
            max_crashes: queue.max_crashes.max(2),
            shared: shared.clone(),
            mover,
            left: left.clone(),
            marked: std::collections::HashSet::new(),
        }
        .spawn()?;
        // It answered just now; the poll thread says when it does not.
        shared.state.lock().connected = true;
        self.open.lock().push((shared.clone(), left));
        self.start_delay()?;
        let settler = settle::KafkaSettler {
            shared: shared.clone(),
            namespace: namespace.clone(),
            queue: queue.name.clone(),
            in_place: self.options.kafka.in_place.unwrap_or(IN_PLACE),
            worker: self.options.worker.clone(),
        };
        Ok(Opened { source: Box::new(source::KafkaSource { shared }), settler: Arc::new(settler), notes })
    }
}

impl Kafka {
    /// Starts the delay lane with the first queue.
    fn start_delay(&self) -> Result<(), Error> {
        let mut delay = self.delay.lock();
        if delay.is_some() {
            return Ok(());
        }
        let namespace = &self.options.namespace;
        let id = format!("{}.{}", names::delay_group(namespace), uuid::Uuid::now_v7());
        let lane = delay::Delay {
            config: self.settings.consumer(&names::delay_group(namespace)),
            login: self.settings.login(),
            transactor: transaction::Transactor::new(
                self.settings.mover(&id),
                self.settings.login(),
                self.options.clock.clone(),
            ),
            ensure: topics::ensure(&self.topics, namespace),
            namespace: namespace.clone(),
            clock: self.options.clock.clone(),
        };
        *delay = Some(lane.spawn().map_err(|error| Error::Unavailable(format!("no thread for delays: {error}")))?);
        Ok(())
    }
}

impl Broker for Kafka {
    fn address(&self) -> &str {
        &self.settings.shown
    }

    fn connected(&self) -> bool {
        self.open.lock().iter().all(|(shared, left)| shared.state.lock().connected && !left.is_cancelled())
    }

    fn open<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<Opened, Error>> {
        Box::pin(Kafka::open(self, queue))
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(self.inspect.dead.clone())
    }

    fn inspect(&self) -> Arc<dyn Inspect> {
        Arc::new(self.inspect.clone())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let open = std::mem::take(&mut *self.open.lock());
            for (shared, _) in &open {
                shared.state.lock().closing = true;
                shared.wake.wake();
            }
            if let Some(delay) = self.delay.lock().take() {
                delay.stop();
            }
            for (_, left) in &open {
                left.cancelled().await;
            }
            self.inspect.absent().await;
            self.publisher.flush().await;
        })
    }
}
