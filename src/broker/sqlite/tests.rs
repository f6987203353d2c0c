//! Behaviour of the whole adapter, on real files.

mod basic;
mod lease;
mod letters;
mod model;
mod order;
mod refuse;
mod view;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::super::{
    Broker, Credit, Destination, KafkaOptions, NatsOptions, Opened, Options, Publication, Queue, Role, SqliteOptions,
    Start,
};
use crate::broker::{Delivery, Disposition, Error, Settled};
use crate::message::{Attempt, Failure, Headers, JobName, Message, Namespace, QueueName, Reason, Topic};
use crate::time::{Clock, Timestamp};

/// A queue of that name that hears these topics.
pub fn queue(name: &str, topics: &[&str]) -> Queue {
    Queue {
        name: QueueName::new(name).expect("a name"),
        topics: topics.iter().map(|topic| Topic::new(topic).expect("a topic")).collect(),
        job: JobName::new("job").expect("a name"),
        slots: NonZeroUsize::new(8).expect("not 0"),
        ordered: false,
        start: Start::Earliest,
        max_crashes: 3,
        keep_dead: None,
    }
}

/// Options of a process that knows these queues.
pub fn options(role: Role, queues: &[Queue]) -> Options {
    Options {
        namespace: Namespace::new("test").expect("a name"),
        namespace_set: false,
        role,
        timeout: Duration::from_secs(5),
        lease: Duration::from_secs(30),
        grace: Duration::from_secs(1),
        queues: queues.to_vec(),
        worker: "worker".into(),
        clock: Clock::System,
        sqlite: SqliteOptions { synchronous_normal: true },
        nats: NatsOptions::default(),
        kafka: KafkaOptions::default(),
    }
}

pub async fn connect(path: &Path, options: Options) -> Arc<dyn Broker> {
    try_connect(path, options).await.expect("connects")
}

pub async fn try_connect(path: &Path, options: Options) -> Result<Arc<dyn Broker>, Error> {
    super::connect(&format!("sqlite://{}", path.display()), options).await
}

/// A worker on that file, and its one queue opened.
pub async fn worker(path: &Path, queue: &Queue) -> (Arc<dyn Broker>, Opened) {
    let broker = connect(path, options(Role::Worker, std::slice::from_ref(queue))).await;
    let opened = broker.open(queue).await.expect("opens");
    (broker, opened)
}

pub fn message(body: &str) -> Message {
    Message {
        headers: [("ce-id", body)].into_iter().collect::<Headers>(),
        body: Some(bytes::Bytes::copy_from_slice(body.as_bytes())),
        key: None,
    }
}

pub fn to_topic(topic: &str, body: &str) -> Publication {
    Publication {
        destination: Destination::Topic(Topic::new(topic).expect("a topic")),
        message: message(body),
        id: body.to_owned(),
        allow_unheard: false,
    }
}

pub async fn publish(broker: &Arc<dyn Broker>, topic: &str, bodies: &[&str]) {
    let batch = bodies.iter().map(|body| to_topic(topic, body)).collect();
    for result in broker.publisher().publish(batch).await {
        result.expect("stored");
    }
}

pub fn credit(jobs: usize) -> Credit {
    Credit { jobs, fresh_floor: 1, retry_floor: 1, bytes: 1 << 30, suspect: true }
}

/// Receives within five seconds, or fails.
pub async fn receive(opened: &mut Opened, jobs: usize) -> Vec<Delivery> {
    tokio::time::timeout(Duration::from_secs(5), opened.source.receive(credit(jobs)))
        .await
        .expect("something arrives in time")
        .expect("the source works")
}

/// True where nothing arrives for a moment.
pub async fn nothing(opened: &mut Opened) -> bool {
    tokio::time::timeout(Duration::from_millis(150), opened.source.receive(credit(64))).await.is_err()
}

pub fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.clone().expect("a body").to_vec()).expect("text")
}

pub fn bodies(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(body).collect()
}

/// Settles all, and says how each ended.
pub async fn settle(opened: &Opened, deliveries: Vec<Delivery>, disposition: &Disposition) -> Vec<Settled> {
    let batch = deliveries.into_iter().map(|delivery| delivery.settle(disposition.clone())).collect();
    opened.settler.settle(batch).await
}

pub fn dead(reason: Reason, event_id: &str) -> Disposition {
    let now = Clock::System.now();
    Disposition::DeadLetter {
        reason,
        failure: Failure::new("kind", "text", now, now),
        attempts: 1,
        event_id: Some(event_id.to_owned()),
        job: JobName::new("job").expect("a name"),
    }
}

pub fn retry_at(at: Timestamp, attempt: u32) -> Disposition {
    let failure = Some(Failure::new("kind", "text", at, at));
    Disposition::Retry { at, attempt: Attempt::new(attempt).expect("not 0"), failure, unroutable_since: None }
}

/// A connection beside all others, to look at the file or to play a trick on it.
pub async fn beside(path: &Path, sql: &'static str) -> i64 {
    use sqlx::{ConnectOptions, Row};
    let mut connection = sqlx::sqlite::SqliteConnectOptions::new().filename(path).connect().await.expect("connects");
    let row = sqlx::query(sql).fetch_optional(&mut connection).await.expect("runs");
    row.map_or(0, |row| row.try_get(0).unwrap_or(0))
}

/// Waits until it holds, at most five seconds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "{what} in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
