//! The embedded queue beside a raw sqlx loop in the same run, directly on the broker's traits.
//!
//! What `windlass bench` does not show. Draining and waits, through the whole worker, are there.
//!
//! `cargo bench --no-default-features --features sqlite --bench sqlite -- [publish] [depth]`
//!
//! - `publish`: 64 producers, each awaiting its confirmation; raw: one loop that inserts 64 and commits.
//! - `depth`: 1,000,000 ready and 1,000,000 delayed: memory, and how long `status` takes.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use windlass::broker::{
    self, Broker, Credit, Destination, KafkaOptions, NatsOptions, Options, Publication, Queue, Role, SqliteOptions,
    Start,
};
use windlass::message::{Headers, JobName, Message, Namespace, QueueName, Topic};
use windlass::time::Clock;

type Any = Box<dyn std::error::Error + Send + Sync>;

const PUBLISHED: usize = 50_000;
const PRODUCERS: usize = 64;
const PAYLOAD: [u8; 200] = [b'x'; 200];

fn main() -> Result<(), Any> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |what: &str| wanted.is_empty() || wanted.iter().any(|name| name == what);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let dir = tempfile::tempdir()?;
        for normal in [false, true] {
            let synchronous = if normal { "normal" } else { "full" };
            if wants("publish") {
                let raw = raw_publish(&dir.path().join(format!("raw-publish-{synchronous}.db")), normal).await?;
                let ours = publish(&dir.path().join(format!("publish-{synchronous}.db")), normal).await?;
                println!("publish {synchronous:6} {ours:8.0}/s raw {raw:8.0}/s ratio {:.2}", ours / raw);
            }
        }
        if wanted.iter().any(|name| name == "depth") {
            depth(&dir.path().join("depth.db")).await?;
        }
        Ok(())
    })
}

async fn raw(path: &Path, normal: bool) -> Result<SqliteConnection, Any> {
    let synchronous = if normal { SqliteSynchronous::Normal } else { SqliteSynchronous::Full };
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .disable_statement_logging()
        .connect()
        .await?;
    sqlx::raw_sql(
        "CREATE TABLE job (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, payload BLOB NOT NULL);
         CREATE INDEX ready ON job (id) WHERE state = 0;",
    )
    .execute(&mut connection)
    .await?;
    Ok(connection)
}

async fn raw_publish(path: &Path, normal: bool) -> Result<f64, Any> {
    let mut connection = raw(path, normal).await?;
    let began = Instant::now();
    for _ in 0..PUBLISHED / PRODUCERS {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await?;
        for _ in 0..PRODUCERS {
            sqlx::query("INSERT INTO job (state, payload) VALUES (0, ?)")
                .bind(&PAYLOAD[..])
                .execute(&mut connection)
                .await?;
        }
        sqlx::query("COMMIT").execute(&mut connection).await?;
    }
    Ok((PUBLISHED / PRODUCERS * PRODUCERS) as f64 / began.elapsed().as_secs_f64())
}

fn queue() -> Result<Queue, Any> {
    Ok(Queue {
        name: QueueName::new("bench")?,
        topics: vec![Topic::new("events")?],
        job: JobName::new("bench")?,
        slots: NonZeroUsize::new(64).ok_or("not 0")?,
        ordered: false,
        start: Start::Earliest,
        max_crashes: 3,
        keep_dead: None,
    })
}

async fn open(path: &Path, normal: bool) -> Result<Arc<dyn Broker>, Any> {
    let options = Options {
        namespace: Namespace::new("bench")?,
        namespace_set: false,
        role: Role::Worker,
        timeout: Duration::from_secs(10),
        lease: Duration::from_secs(30),
        grace: Duration::from_secs(1),
        queues: vec![queue()?],
        worker: "bench".into(),
        clock: Clock::System,
        sqlite: SqliteOptions { synchronous_normal: normal },
        nats: NatsOptions::default(),
        kafka: KafkaOptions::default(),
    };
    Ok(broker::connect(&format!("sqlite://{}", path.display()), options).await?)
}

fn publication(headers: &Headers, destination: Destination) -> Publication {
    Publication {
        destination,
        message: Message { headers: headers.clone(), body: Some(Bytes::from_static(&PAYLOAD)), key: None },
        id: String::new(),
        allow_unheard: false,
    }
}

/// The headers of a CloudEvent as our own client writes them.
fn headers() -> Headers {
    [
        ("ce-specversion", "1.0"),
        ("ce-id", "01930e3c-8a9e-7b6f-9d2e-0a1b2c3d4e5f"),
        ("ce-source", "windlass://bench"),
        ("ce-type", "events"),
        ("ce-time", "2026-11-21T10:00:00.000Z"),
        ("content-type", "application/json"),
    ]
    .into_iter()
    .collect()
}

async fn fill(broker: &Arc<dyn Broker>, count: usize, destination: &Destination) -> Result<(), Any> {
    let publisher = broker.publisher();
    let headers = headers();
    let mut left = count;
    while left > 0 {
        let each = left.min(500);
        let batch = (0..each).map(|_| publication(&headers, destination.clone())).collect();
        for result in publisher.publish(batch).await {
            result?;
        }
        left -= each;
    }
    Ok(())
}

fn credit(jobs: usize) -> Credit {
    Credit { jobs, fresh_floor: jobs / 4, retry_floor: jobs / 4, bytes: 256 << 20, suspect: true }
}

async fn publish(path: &Path, normal: bool) -> Result<f64, Any> {
    let broker = open(path, normal).await?;
    let began = Instant::now();
    let mut producers = tokio::task::JoinSet::new();
    for _ in 0..PRODUCERS {
        let publisher = broker.publisher();
        let destination = Destination::Topic(Topic::new("events")?);
        producers.spawn(async move {
            let headers = headers();
            for _ in 0..PUBLISHED / PRODUCERS {
                let results = publisher.publish(vec![publication(&headers, destination.clone())]).await;
                results.into_iter().for_each(|result| assert!(result.is_ok(), "{result:?}"));
            }
        });
    }
    while let Some(ended) = producers.join_next().await {
        ended?;
    }
    let rate = (PUBLISHED / PRODUCERS * PRODUCERS) as f64 / began.elapsed().as_secs_f64();
    broker.close().await;
    Ok(rate)
}

async fn depth(path: &Path) -> Result<(), Any> {
    const MANY: usize = 1_000_000;
    let broker = open(path, true).await?;
    let later = Destination::Queue {
        queue: QueueName::new("bench")?,
        job: None,
        not_before: Some(Clock::System.now().after(Duration::from_secs(86_400))),
    };
    for (what, destination) in [("ready", Destination::Topic(Topic::new("events")?)), ("delayed", later)] {
        fill(&broker, MANY, &destination).await?;
        let began = Instant::now();
        let status = broker.inspect().status(&[]).await?;
        let took = began.elapsed();
        println!("depth {what}: status {took:.1?} {:?}/{:?}, {}", status[0].ready, status[0].scheduled, memory());
    }
    let began = Instant::now();
    let mut opened = broker.open(&queue()?).await?;
    let got = opened.source.receive(credit(64)).await?;
    println!("depth: first {} of 2,000,000 after {:.1?}, {}", got.len(), began.elapsed(), memory());
    drop(got);
    broker.close().await;
    Ok(())
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS")).collect::<Vec<_>>().join(", ")
}
