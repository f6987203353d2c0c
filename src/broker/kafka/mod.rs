//! Kafka: concurrency beyond partitions, committed in order.
//!
//! The way of a record: the [`poll`] thread reads it from its partition's queue ([`native`]) into its [`partition`],
//! which knows by its [`tracker`] what is unfinished; the [`source`] hands it over; the [`settle`]r says how it ended;
//! the poll thread commits what is finished, with a [`memo`] for whoever comes next, or lets the [`mover`] write what
//! replaces it. What partitions hold is pure: no I/O, no clock; the poll thread does the I/O.

mod tracker;

mod span;

mod memo;

mod order;

mod partition;

mod batch;

mod state;

mod names;

mod config;

mod context;

mod native;

mod poll;

mod source;

mod settle;

mod mover;

mod outgoing;

mod topics;

mod publish;

mod dead;

mod inspect;

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
    open: Mutex<Vec<(Arc<state::Shared>, CancellationToken)>>,
}

/// Connects to the cluster at `address`.
pub async fn connect(address: &str, options: Options) -> Result<Arc<dyn Broker>, Error> {
    let settings = Settings::new(address, &options)?;
    let may_create = options.role != Role::Reader && !options.kafka.no_create;
    let kafka = &options.kafka;
    let topics = Topics::new(&settings, options.timeout, may_create, kafka.replication, kafka.partitions)?;
    topics.cluster().await?;
    let publisher =
        publish::KafkaPublisher::new(&settings, &topics, &options.namespace, &options.clock, options.timeout)?;
    let publisher = Arc::new(publisher);
    Ok(Arc::new(Kafka { settings, options, topics, publisher, open: Mutex::default() }))
}

impl Kafka {
    async fn open(&self, queue: &Queue) -> Result<Opened, Error> {
        let namespace = &self.options.namespace;
        let mut like = None;
        for topic in &queue.topics {
            let count = self.topics.ensure(topic.as_str(), Kind::Events, None).await?;
            like = like.max(Some(count));
        }
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
        let token_command = self.settings.token_command();
        let mover = mover::Mover::spawn(self.settings.mover(&id), token_command.clone(), shared.wake.clone())
            .map_err(|error| Error::Unavailable(format!("no thread for moves: {error}")))?;
        let left = CancellationToken::new();
        poll::Poll {
            config: self.settings.consumer(&names::group(namespace, &queue.name)),
            token_command,
            topics: queue.topics.iter().map(|topic| topic.as_str().to_owned()).collect(),
            work,
            start: queue.start,
            grace: self.options.grace,
            max_crashes: queue.max_crashes.max(2),
            shared: shared.clone(),
            mover,
            left: left.clone(),
        }
        .spawn()?;
        self.open.lock().push((shared.clone(), left));
        let settler = settle::KafkaSettler {
            shared: shared.clone(),
            namespace: namespace.clone(),
            queue: queue.name.clone(),
            in_place: self.options.kafka.in_place.unwrap_or(IN_PLACE),
            worker: self.options.worker.clone(),
        };
        Ok(Opened { source: Box::new(source::KafkaSource { shared }), settler: Arc::new(settler), notes: Vec::new() })
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
        Arc::new(dead::Dead)
    }

    fn inspect(&self) -> Arc<dyn Inspect> {
        Arc::new(inspect::Look)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let open = std::mem::take(&mut *self.open.lock());
            for (shared, _) in &open {
                shared.state.lock().closing = true;
                shared.wake.wake();
            }
            for (_, left) in &open {
                left.cancelled().await;
            }
            self.publisher.flush().await;
        })
    }
}
