//! A worker's connection to a real server, and the server behind windlass's back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use windlass::broker::{
    self, Broker, Credit, Delivery, Destination, Disposition, Error, Letter, LetterQuery, NatsOptions, Options,
    Publication, Queue, Role, Settled, Settler, Source, Start,
};
use windlass::message::{Attempt, Failure, JobName, Message, Namespace, QueueName, Reason, Topic};
use windlass::time::Clock;

/// The lease of these tests.
pub const LEASE: Duration = Duration::from_secs(2);
/// So long anything may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Runs a test on a runtime of its own.
pub fn run(test: impl Future<Output = ()>) {
    run_for(Duration::from_secs(100), test);
}

/// Likewise one that may take longer.
pub fn run_for(limit: Duration, test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let limited = async { tokio::time::timeout(limit, test).await.expect("a test ends in time") };
    runtime.expect("a runtime can be built").block_on(Box::pin(limited));
}

/// A queue that hears these topics.
pub fn queue(name: &str, topics: &[&str]) -> Queue {
    Queue {
        name: QueueName::new(name).expect("a name"),
        topics: topics.iter().map(|topic| Topic::new(topic).expect("a topic")).collect(),
        job: JobName::new(name).expect("a name"),
        slots: 16.try_into().expect("not 0"),
        ordered: false,
        start: Start::Earliest,
        max_crashes: 2,
        keep_dead: None,
    }
}

/// What `connect` takes, in the namespace `t`.
pub fn options(nats: NatsOptions, queues: &[Queue]) -> Options {
    static WORKER: AtomicU32 = AtomicU32::new(1);
    Options {
        namespace: Namespace::new("t").expect("a name"),
        namespace_set: true,
        role: Role::Worker,
        timeout: Duration::from_secs(5),
        lease: LEASE,
        grace: Duration::from_secs(5),
        queues: queues.to_vec(),
        worker: format!("w{}", WORKER.fetch_add(1, Ordering::Relaxed)).into(),
        clock: Clock::System,
        sqlite: Default::default(),
        nats,
        kafka: Default::default(),
    }
}

/// Connects with default options.
pub async fn connect(url: &str, queues: &[Queue]) -> Arc<dyn Broker> {
    broker::connect(url, options(NatsOptions::default(), queues)).await.expect("the server can be reached")
}

/// The error that connecting ends with.
pub async fn refusal(url: &str, nats: NatsOptions) -> Error {
    match broker::connect(url, options(nats, &[])).await {
        Ok(_) => panic!("it connected"),
        Err(error) => error,
    }
}

/// The error that opening ends with.
pub async fn unopened(broker: &Arc<dyn Broker>, queue: &Queue) -> Error {
    match broker.open(queue).await {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

/// Publishes bodies to a topic and awaits each confirmation.
pub async fn publish(broker: &Arc<dyn Broker>, topic: &str, bodies: &[&str]) {
    for body in bodies {
        let stored = try_publish(broker, topic, Bytes::copy_from_slice(body.as_bytes())).await;
        stored.expect("the server confirms");
    }
}

/// Publishes one body.
pub async fn try_publish(broker: &Arc<dyn Broker>, topic: &str, body: Bytes) -> Result<(), Error> {
    let publication = Publication {
        destination: Destination::Topic(Topic::new(topic).expect("a topic")),
        message: Message { body: Some(body), ..Message::default() },
        id: format!("id-{}", fastrand::u64(..)),
        allow_unheard: false,
    };
    broker.publisher().publish(vec![publication]).await.remove(0).map(drop)
}

/// A credit for so many jobs.
pub fn credit(jobs: usize) -> Credit {
    Credit { jobs, fresh_floor: 0, retry_floor: 0, bytes: 64 << 20, suspect: true }
}

/// An open queue.
pub struct Work {
    pub source: Box<dyn Source>,
    pub settler: Arc<dyn Settler>,
    pub notes: Vec<String>,
}

/// Opens a queue.
pub async fn open(broker: &Arc<dyn Broker>, queue: &Queue) -> Work {
    let opened = broker.open(queue).await.expect("the queue can be opened");
    Work { source: opened.source, settler: opened.settler, notes: opened.notes }
}

/// A worker of the queue `invoice`, which hears this topic.
pub async fn invoicing(url: &str, topic: &str) -> (Arc<dyn Broker>, Work) {
    let invoice = queue("invoice", &[topic]);
    let broker = connect(url, std::slice::from_ref(&invoice)).await;
    let work = open(&broker, &invoice).await;
    (broker, work)
}

impl Work {
    /// Receives until there are `count` or time is up.
    pub async fn within(&mut self, count: usize, limit: Duration) -> Vec<Delivery> {
        let end = tokio::time::Instant::now() + limit;
        let mut all = Vec::new();
        while all.len() < count {
            let jobs = count - all.len();
            match tokio::time::timeout_at(end, self.source.receive(credit(jobs))).await {
                Ok(deliveries) => all.extend(deliveries.expect("the source goes on")),
                Err(_) => break,
            }
        }
        all
    }

    /// Receives exactly so many.
    pub async fn take(&mut self, count: usize) -> Vec<Delivery> {
        let all = self.within(count, SOON).await;
        assert_eq!(all.len(), count);
        all
    }

    /// Receives one.
    pub async fn one(&mut self) -> Delivery {
        self.take(1).await.remove(0)
    }

    /// Settles one, which must be stored.
    pub async fn stored(&self, delivery: Delivery, disposition: Disposition) {
        let settled = self.settler.settle(vec![delivery.settle(disposition)]).await;
        assert_eq!(settled, [Settled::Stored]);
    }
}

/// A retry at once, as this attempt.
pub fn retry(attempt: u32) -> Disposition {
    Disposition::Retry {
        at: Clock::System.now(),
        attempt: Attempt::new(attempt).expect("not 0"),
        failure: Some(failure()),
        unroutable_since: None,
    }
}

/// A dead letter.
pub fn dead(job: &str) -> Disposition {
    Disposition::DeadLetter {
        reason: Reason::Permanent,
        failure: failure(),
        attempts: 1,
        event_id: None,
        job: JobName::new(job).expect("a name"),
    }
}

fn failure() -> Failure {
    let now = Clock::System.now();
    Failure::new("test::Error", "it broke", now, now)
}

/// All letters, the oldest first.
pub async fn letters(broker: &Arc<dyn Broker>) -> Vec<Letter> {
    let query = LetterQuery { oldest_first: true, ..LetterQuery::default() };
    broker.dead_letters().list(query).map(|letter| letter.expect("letters can be listed")).collect().await
}

/// The server, asked by a client that is not windlass.
pub struct Behind(pub async_nats::Client);

impl Behind {
    /// Connects.
    pub async fn connect(url: &str) -> Self {
        Self(async_nats::connect(url).await.expect("the server can be reached"))
    }

    /// Connects, and creates the stream `ORDERS` of this subject.
    pub async fn with_orders(url: &str, subject: &str) -> Self {
        let behind = Self::connect(url).await;
        behind.stream("ORDERS", subject, "limits").await;
        behind
    }

    /// A request to JetStream's API, which must succeed. What is lost in a change of leaders is asked again.
    pub async fn api(&self, verb: &str, body: serde_json::Value) -> serde_json::Value {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let asked = tokio::time::Instant::now();
        let answer = loop {
            match self.0.request(format!("$JS.API.{verb}"), body.clone()).await {
                Ok(answer) => break answer,
                Err(error) => assert!(asked.elapsed() < SOON * 2, "JetStream does not answer {verb}: {error}"),
            }
        };
        let value: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert!(value.get("error").is_none(), "{verb}: {value}");
        value
    }

    /// Creates a stream.
    pub async fn stream(&self, name: &str, subject: &str, retention: &str) {
        let config = serde_json::json!({
            "name": name, "subjects": [subject], "retention": retention, "storage": "file", "num_replicas": 1,
        });
        self.api(&format!("STREAM.CREATE.{name}"), config).await;
    }
}

/// A worker on a runtime of its own, to be killed with everything it does.
pub struct Doomed {
    runtime: tokio::runtime::Runtime,
    broker: Arc<dyn Broker>,
    /// Its open queue.
    pub work: Work,
}

/// Connects and opens a queue on a runtime of its own.
pub async fn doomed(url: &str, queue: &Queue) -> Doomed {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime can be built");
    let (url, queue) = (url.to_owned(), queue.clone());
    let opened = runtime.spawn(async move {
        let broker = connect(&url, std::slice::from_ref(&queue)).await;
        let work = open(&broker, &queue).await;
        (broker, work)
    });
    let (broker, work) = opened.await.expect("no panic");
    Doomed { runtime, broker, work }
}

impl Doomed {
    /// Leaves in good order instead.
    pub async fn leave(self) {
        self.broker.close().await;
        self.runtime.shutdown_background();
    }

    /// Dies: nothing is released, withdrawn or renewed.
    pub fn die(self, in_hand: Vec<Delivery>) {
        std::mem::forget(in_hand);
        std::mem::forget(self.work);
        std::mem::forget(self.broker);
        self.runtime.shutdown_background();
    }
}
