//! The embedded queue beside a raw sqlx loop in the same run, directly on the broker's traits.
//!
//! `cargo bench --no-default-features --features sqlite --bench sqlite -- [drain] [publish] [latency] [depth]`
//!
//! - `drain`: a backlog of 100,000, no-op jobs, 64 in hand; raw: claim 100 and delete 100 in one transaction.
//! - `publish`: 64 producers, each awaiting its confirmation; raw: one loop that inserts 64 and commits.
//! - `latency`: 500 events a second, from the call of publish to having the delivery.
//! - `depth`: 1,000,000 ready and 1,000,000 delayed: memory, and how long `status` takes.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Row};
use windlass::broker::{
    self, Broker, Credit, Destination, Disposition, KafkaOptions, NatsOptions, Options, Publication, Queue, Role,
    SqliteOptions, Start,
};
use windlass::message::{Headers, JobName, Message, Namespace, QueueName, Topic};
use windlass::time::Clock;

type Any = Box<dyn std::error::Error + Send + Sync>;

const BACKLOG: usize = 100_000;
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
            if wants("drain") {
                let raw = raw_drain(&dir.path().join(format!("raw-drain-{synchronous}.db")), normal).await?;
                let ours = drain(&dir.path().join(format!("drain-{synchronous}.db")), normal).await?;
                println!("drain   {synchronous:6} {ours:8.0}/s raw {raw:8.0}/s ratio {:.2}", ours / raw);
            }
            if wants("publish") {
                let raw = raw_publish(&dir.path().join(format!("raw-publish-{synchronous}.db")), normal).await?;
                let ours = publish(&dir.path().join(format!("publish-{synchronous}.db")), normal).await?;
                println!("publish {synchronous:6} {ours:8.0}/s raw {raw:8.0}/s ratio {:.2}", ours / raw);
            }
        }
        if wants("latency") {
            latency(&dir.path().join("latency.db")).await?;
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

async fn raw_drain(path: &Path, normal: bool) -> Result<f64, Any> {
    let mut connection = raw(path, normal).await?;
    sqlx::query(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
         INSERT INTO job (state, payload) SELECT 0, ? FROM n",
    )
    .bind(BACKLOG as i64)
    .bind(&PAYLOAD[..])
    .execute(&mut connection)
    .await?;
    let began = Instant::now();
    let mut done = 0;
    let mut finished = String::from("[]");
    while done < BACKLOG {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await?;
        sqlx::query("DELETE FROM job WHERE id IN (SELECT value FROM json_each(?))")
            .bind(&finished)
            .execute(&mut connection)
            .await?;
        let rows = sqlx::query(
            "UPDATE job SET state = 1 WHERE id IN (SELECT id FROM job WHERE state = 0 ORDER BY id LIMIT 100)
             RETURNING id, payload",
        )
        .fetch_all(&mut connection)
        .await?;
        sqlx::query("COMMIT").execute(&mut connection).await?;
        let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        done += ids.len();
        finished = serde_json::to_string(&ids)?;
    }
    Ok(BACKLOG as f64 / began.elapsed().as_secs_f64())
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

async fn drain(path: &Path, normal: bool) -> Result<f64, Any> {
    let broker = open(path, normal).await?;
    fill(&broker, BACKLOG, &Destination::Topic(Topic::new("events")?)).await?;
    let mut opened = broker.open(&queue()?).await?;
    let began = Instant::now();
    let mut done = 0;
    let mut settling = None;
    while done < BACKLOG {
        let got = opened.source.receive(credit(64)).await?;
        if let Some(settling) = settling.take() {
            let _: Vec<broker::Settled> = settling_done(settling).await;
        }
        done += got.len();
        let batch = got.into_iter().map(|delivery| delivery.settle(Disposition::Ack)).collect();
        // A slot is free when its handler has ended: the next claim goes out beside the settlement.
        settling = Some(opened.settler.settle(batch));
    }
    if let Some(settling) = settling {
        settling_done(settling).await;
    }
    let rate = BACKLOG as f64 / began.elapsed().as_secs_f64();
    broker.close().await;
    Ok(rate)
}

async fn settling_done(settling: impl Future<Output = Vec<broker::Settled>>) -> Vec<broker::Settled> {
    let settled = settling.await;
    assert!(settled.iter().all(|settled| *settled == broker::Settled::Stored), "{settled:?}");
    settled
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

async fn latency(path: &Path) -> Result<(), Any> {
    const COUNT: usize = 2_500;
    let broker = open(path, false).await?;
    let mut opened = broker.open(&queue()?).await?;
    let publisher = broker.publisher();
    let destination = Destination::Topic(Topic::new("events")?);
    let zero = Instant::now();
    let producer = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        for _ in 0..COUNT {
            tick.tick().await;
            let sent = zero.elapsed().as_nanos() as u64;
            let mut publication = publication(&headers(), destination.clone());
            publication.message.body = Some(Bytes::copy_from_slice(&sent.to_le_bytes()));
            let publisher = publisher.clone();
            tokio::spawn(async move { publisher.publish(vec![publication]).await });
        }
    });
    let mut took: Vec<f64> = Vec::with_capacity(COUNT);
    while took.len() < COUNT {
        let got = opened.source.receive(credit(64)).await?;
        let now = zero.elapsed().as_nanos() as u64;
        for delivery in &got {
            let sent: [u8; 8] = delivery.message.body.as_deref().unwrap_or_default().try_into()?;
            took.push((now - u64::from_le_bytes(sent)) as f64 / 1e6);
        }
        let batch = got.into_iter().map(|delivery| delivery.settle(Disposition::Ack)).collect();
        // Proceeds without being awaited.
        drop(opened.settler.settle(batch));
    }
    producer.await?;
    took.sort_by(f64::total_cmp);
    println!(
        "latency full   p50 {:.2} ms p99 {:.2} ms max {:.2} ms",
        took[COUNT / 2],
        took[COUNT * 99 / 100],
        took[COUNT - 1]
    );
    broker.close().await;
    Ok(())
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
