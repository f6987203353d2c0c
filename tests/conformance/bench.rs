//! What the promises are written with: connections as workers have them, deliveries by their bodies.

use std::collections::BTreeMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use windlass::broker::{
    self, Broker, Credit, DeadLetters, Delivery, Destination, Disposition, Letter, LetterQuery, Options, Publication,
    Published, Queue, Role, Settled, Settler, Source, Start,
};
use windlass::message::{Attempt, Failure, Headers, JobName, Message, Namespace, QueueName, Reason, Topic};
use windlass::time::{Clock, Timestamp};

use super::subject::Subject;
use futures_util::StreamExt;

/// No promise takes longer on a slow machine; a hang is a failure and not a stuck run.
const LONGEST: Duration = Duration::from_secs(180);
/// What is there comes within this, on a slow machine, whatever has to be elected or rebalanced before.
pub const SOON: Duration = Duration::from_secs(30);

/// Runs a promise on a runtime of its own, as handlers have one.
pub fn run(promise: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    runtime.block_on(async { tokio::time::timeout(LONGEST, promise).await.expect("a promise holds or fails in time") });
}

/// A broker, the queues that the test is about, and the connections to it.
pub struct Bench<S: Subject> {
    /// The broker; restart or cut it here.
    pub subject: S,
    namespace: Namespace,
    queues: Vec<Queue>,
    workers: AtomicU32,
    shared: Option<Arc<dyn Broker>>,
    lease: Duration,
}

impl<S: Subject> Bench<S> {
    /// A fresh broker, or `None` where it is not on this machine.
    pub fn new() -> Option<Self> {
        Some(Self {
            subject: S::fresh()?,
            namespace: Namespace::new("conformance").expect("a name"),
            queues: Vec::new(),
            workers: AtomicU32::new(0),
            shared: None,
            lease: S::LEASE,
        })
    }

    /// From now on leases last so much longer, and a wait for one is no slow machine. How long that is.
    pub fn longer_lease(&mut self) -> Duration {
        self.lease = S::LEASE * 15;
        self.lease
    }

    /// A queue on these topics.
    pub fn queue(&mut self, name: &str, topics: &[&str]) -> Queue {
        self.add(name, topics, false)
    }

    /// A queue in key order.
    pub fn ordered(&mut self, name: &str, topics: &[&str]) -> Queue {
        self.add(name, topics, true)
    }

    fn add(&mut self, name: &str, topics: &[&str], ordered: bool) -> Queue {
        let queue = Queue {
            name: QueueName::new(name).expect("a name"),
            topics: topics.iter().map(|topic| Topic::new(topic).expect("a topic")).collect(),
            job: JobName::new(name).expect("a name"),
            slots: NonZeroUsize::new(16).expect("not 0"),
            ordered,
            start: Start::Earliest,
            max_crashes: 3,
            keep_dead: None,
        };
        self.queues.push(queue.clone());
        queue
    }

    /// A worker's connection. Where the broker lives in this process only, all workers share one.
    pub async fn connect(&mut self) -> Site {
        if let Some(broker) = &self.shared {
            return Site { broker: broker.clone(), io: Io::new() };
        }
        let number = self.workers.fetch_add(1, Ordering::Relaxed) + 1;
        let options = Options {
            namespace: self.namespace.clone(),
            namespace_set: true,
            role: Role::Worker,
            timeout: Duration::from_secs(10),
            lease: self.lease,
            grace: Duration::from_secs(5),
            queues: self.queues.clone(),
            worker: format!("w{number}").into(),
            clock: Clock::System,
            sqlite: Default::default(),
            nats: Default::default(),
            kafka: Default::default(),
        };
        let (io, address) = (Io::new(), self.subject.address());
        let connected = io.handle().spawn(async move { broker::connect(&address, options).await }).await;
        let broker = connected.expect("connecting does not panic").expect("the broker can be reached");
        if !S::LASTING {
            self.shared = Some(broker.clone());
        }
        Site { broker, io }
    }

    /// Leaves in good order, kills the server where there is one, and comes back. Where the broker lives in this
    /// process only, nothing happens.
    pub async fn restart(&mut self, site: Site) -> Site {
        if !S::LASTING {
            return site;
        }
        site.close().await;
        // Whoever knew has left.
        tokio::time::sleep(S::FORGETS).await;
        self.subject.restart();
        self.connect().await
    }
}

/// The runtime that a connection does its I/O on: one thread, so that a test can freeze it.
struct Io(Option<tokio::runtime::Runtime>);

impl Io {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Self(Some(runtime.expect("a runtime can be built")))
    }

    fn handle(&self) -> tokio::runtime::Handle {
        self.0.as_ref().expect("it is there until it is dropped").handle().clone()
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// One worker's connection to the broker.
pub struct Site {
    /// The connection.
    pub broker: Arc<dyn Broker>,
    io: Io,
}

impl Site {
    /// Opens a queue for work.
    pub async fn open(&self, queue: &Queue) -> Work {
        let (broker, spec) = (self.broker.clone(), queue.clone());
        let opened = self.io.handle().spawn(async move { broker.open(&spec).await }).await;
        let opened = opened.expect("opening does not panic").expect("the queue can be opened");
        Work { source: opened.source, settler: opened.settler }
    }

    /// Publishes JSON bodies to a topic, awaits every confirmation, and gives the count of queues of the last.
    pub async fn publish(&self, topic: &str, bodies: &[&str]) -> Option<u32> {
        self.publish_keyed(topic, &bodies.iter().map(|body| ("", *body)).collect::<Vec<_>>()).await
    }

    /// Publishes with a key each; `""` is none.
    pub async fn publish_keyed(&self, topic: &str, events: &[(&str, &str)]) -> Option<u32> {
        let batch = events.iter().map(|(key, body)| {
            let destination = Destination::Topic(Topic::new(topic).expect("a topic"));
            publication(destination, keyed(key, body, self.broker.publisher().binding()))
        });
        self.store(batch.collect()).await.queues
    }

    /// Publishes a message as it is, and gives what was confirmed.
    pub async fn publish_raw(&self, topic: &str, message: Message) -> Published {
        let destination = Destination::Topic(Topic::new(topic).expect("a topic"));
        self.store(vec![publication(destination, message)]).await
    }

    /// Enqueues a JSON body for one queue.
    pub async fn enqueue(&self, queue: &Queue, body: &str, job: Option<&str>, not_before: Option<Timestamp>) {
        let job = job.map(|job| JobName::new(job).expect("a name"));
        let destination = Destination::Queue { queue: queue.name.clone(), job, not_before };
        self.store(vec![publication(destination, plain(body))]).await;
    }

    /// What was confirmed of the last.
    async fn store(&self, batch: Vec<Publication>) -> Published {
        let publisher = self.broker.publisher();
        let results = self.io.handle().spawn(async move { publisher.publish(batch).await }).await;
        let results = results.expect("publishing does not panic");
        // Each is looked at.
        let confirmed = results.into_iter().map(|result| result.expect("the broker confirms"));
        confirmed.fold(Published::default(), |_, last| last)
    }

    /// All dead letters, the oldest first.
    pub async fn letters(&self) -> Vec<Letter> {
        let dead = self.dead();
        let query = LetterQuery { oldest_first: true, ..LetterQuery::default() };
        dead.list(query).map(|letter| letter.expect("letters can be listed")).collect().await
    }

    /// The dead-letter verbs.
    pub fn dead(&self) -> Arc<dyn DeadLetters> {
        self.broker.dead_letters()
    }

    /// Blocks this connection's runtime: no lease is extended, nothing is sent.
    pub fn freeze(&self, lasting: Duration) {
        self.io.handle().spawn(async move { std::thread::sleep(lasting) });
    }

    /// Leaves in good order.
    pub async fn close(self) {
        self.broker.close().await;
    }

    /// Dies: nothing is released, flushed or withdrawn. Give it what it had in hand.
    pub fn die(self, works: Vec<Work>, in_hand: Vec<Delivery>) {
        // Neither may run its drop, which would give everything back in good order.
        std::mem::forget(works);
        std::mem::forget(in_hand);
        drop(self.io);
        std::mem::forget(self.broker);
    }
}

/// A queue that was opened.
pub struct Work {
    /// Where deliveries come from.
    pub source: Box<dyn Source>,
    /// Where they are settled.
    pub settler: Arc<dyn Settler>,
}

/// Credit for so many jobs of any size, shared by both lanes.
pub fn credit(jobs: usize) -> Credit {
    let floor = jobs.div_ceil(4).min(jobs / 2);
    Credit { jobs, fresh_floor: floor, retry_floor: floor, bytes: 64 << 20, suspect: true }
}

impl Work {
    /// Receives until there are `count`, and fails where they do not come.
    pub async fn take(&mut self, count: usize) -> Vec<Delivery> {
        let deliveries = self.take_within(count, SOON).await;
        assert_eq!(deliveries.len(), count, "of {count} deliveries came {:?}", bodies(&deliveries));
        deliveries
    }

    /// Receives one.
    pub async fn one(&mut self) -> Delivery {
        self.take(1).await.remove(0)
    }

    /// Receives up to `count` within `limit`.
    pub async fn take_within(&mut self, count: usize, limit: Duration) -> Vec<Delivery> {
        let end = Instant::now() + limit;
        let mut deliveries = Vec::new();
        while deliveries.len() < count {
            let left = end.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.source.receive(credit(count - deliveries.len()))).await {
                Ok(received) => deliveries.extend(received.expect("the source goes on")),
                Err(_) => break,
            }
        }
        deliveries
    }

    /// Asserts that nothing comes for so long.
    pub async fn nothing_for(&mut self, lasting: Duration) {
        let deliveries = self.take_within(usize::MAX / 2, lasting).await;
        assert!(deliveries.is_empty(), "nothing should come, but {:?} did", bodies(&deliveries));
    }

    /// Settles each in the same way and gives the answers.
    pub async fn settle(&self, deliveries: Vec<Delivery>, disposition: impl Fn() -> Disposition) -> Vec<Settled> {
        let batch = deliveries.into_iter().map(|delivery| delivery.settle(disposition())).collect();
        self.settler.settle(batch).await
    }

    /// Settles each, which must be stored.
    pub async fn stored(&self, deliveries: Vec<Delivery>, disposition: impl Fn() -> Disposition) {
        let count = deliveries.len();
        let settled = self.settle(deliveries, disposition).await;
        assert_eq!(settled, vec![Settled::Stored; count]);
    }

    /// Acknowledges each, which must be stored.
    pub async fn ack(&self, deliveries: Vec<Delivery>) {
        self.stored(deliveries, || Disposition::Ack).await;
    }
}

/// A failure that happened now.
pub fn failure() -> Failure {
    let now = Clock::System.now();
    Failure::new("test::Error", "it did not work", now, now)
}

/// Again after `delay`, as attempt `attempt`.
pub fn retry(delay: Duration, attempt: u32) -> Disposition {
    Disposition::Retry {
        at: Clock::System.now().after(delay),
        attempt: Attempt::new(attempt).expect("not 0"),
        failure: Some(failure()),
        unroutable_since: None,
    }
}

/// It cannot succeed.
pub fn dead(reason: Reason, attempts: u32, event_id: Option<&str>, job: &str) -> Disposition {
    Disposition::DeadLetter {
        reason,
        failure: failure(),
        attempts,
        event_id: event_id.map(str::to_owned),
        job: JobName::new(job).expect("a name"),
    }
}

/// A plain JSON message without headers.
pub fn plain(body: &str) -> Message {
    Message { body: Some(Bytes::from(format!("\"{body}\""))), ..Message::default() }
}

/// A JSON message with a key, where the broker has record keys, and with `partitionkey` everywhere.
pub fn keyed(key: &str, body: &str, binding: windlass::message::Binding) -> Message {
    let mut message = plain(body);
    if !key.is_empty() {
        let prefix = match binding {
            windlass::message::Binding::Dash => "ce-",
            windlass::message::Binding::Kafka => "ce_",
        };
        message.headers = [(format!("{prefix}partitionkey"), key)].into_iter().collect::<Headers>();
        message.key = Some(Bytes::copy_from_slice(key.as_bytes()));
    }
    message
}

fn publication(destination: Destination, message: Message) -> Publication {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let id = format!("e{}", NEXT.fetch_add(1, Ordering::Relaxed));
    Publication { destination, message, id, allow_unheard: false }
}

/// The body of a JSON string.
pub fn body(message: &Message) -> String {
    String::from_utf8_lossy(message.body.as_deref().unwrap_or_default()).trim_matches('"').to_owned()
}

/// Bodies in the order received.
pub fn bodies(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| body(&delivery.message)).collect()
}

/// Bodies without their order.
pub fn sorted(deliveries: &[Delivery]) -> Vec<String> {
    let mut bodies = bodies(deliveries);
    bodies.sort();
    bodies
}

/// How often each body came.
pub fn tally(bodies: impl IntoIterator<Item = String>) -> BTreeMap<String, u32> {
    bodies.into_iter().fold(BTreeMap::new(), |mut tally, body| {
        *tally.entry(body).or_default() += 1;
        tally
    })
}

/// `PREFIX000` to so many.
pub fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number:03}")).collect()
}

/// Borrowed, for publishing.
pub fn refs(bodies: &[String]) -> Vec<&str> {
    bodies.iter().map(String::as_str).collect()
}
