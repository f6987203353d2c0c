//! The raw loops that `windlass bench` measures beside the worker, written a second time and by other means of the same
//! clients, to see whether those are each client's honest best: nothing here is of Windlass.
//!
//! `BENCH_URL=nats://.. cargo bench --bench raw`, or `kafka://HOST:PORT`, or `sqlite:///path/of/a/folder`. 200-byte
//! messages, `BENCH_MESSAGES` of them, `BENCH_ROUNDS` times each. Printed is a JSON a line: which loop of the bench it is to
//! be held against, the median of the rounds, lowest and highest. The rate is taken between a tenth and nine tenths of the
//! messages, as there. `scripts/bench-all` runs it on each server that it measures.

use std::time::Instant;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Tells how fast the middle was.
struct Middle {
    count: usize,
    seen: usize,
    from: Option<Instant>,
    rate: Option<f64>,
}

impl Middle {
    fn new(count: usize) -> Self {
        Self { count, seen: 0, from: None, rate: None }
    }

    fn one(&mut self) {
        self.seen += 1;
        if self.seen == self.count / 10 {
            self.from = Some(Instant::now());
        } else if self.seen == self.count / 10 * 9 {
            let took = self.from.map(|from| from.elapsed().as_secs_f64());
            self.rate = took.map(|took| (self.count / 10 * 8) as f64 / took);
        }
    }

    fn ended(&self) -> bool {
        self.seen >= self.count
    }
}

fn say(beside: &str, what: &str, mut rates: Vec<f64>) {
    rates.sort_by(f64::total_cmp);
    let (low, median, high) = (rates[0], rates[rates.len() / 2], rates[rates.len() - 1]);
    let range = serde_json::json!([low.round(), high.round()]);
    println!("{}", serde_json::json!({ "beside": beside, "name": what, "per_s": median.round(), "range": range }));
}

fn main() -> Result<(), Failure> {
    let Ok(url) = std::env::var("BENCH_URL") else {
        println!("no broker: set BENCH_URL to nats://.., kafka://.. or sqlite:///folder");
        return Ok(());
    };
    let (scheme, rest) = url.split_once("://").ok_or("BENCH_URL is not a URL")?;
    let rounds = number("BENCH_ROUNDS", 3);
    match scheme {
        #[cfg(feature = "nats")]
        "nats" => nats::all(&url, number("BENCH_MESSAGES", 400_000), rounds),
        #[cfg(feature = "kafka")]
        "kafka" => kafka::all(rest, number("BENCH_MESSAGES", 2_000_000), rounds),
        #[cfg(feature = "sqlite")]
        "sqlite" => sqlite::all(rest, number("BENCH_MESSAGES", 100_000), rounds),
        _ => Err(format!("{scheme}://{rest} is not measured here").into()),
    }
}

#[cfg(feature = "nats")]
mod nats {
    use async_nats::jetstream::{self, AckKind, consumer, stream};
    use futures_util::StreamExt;
    use futures_util::stream::FuturesUnordered;
    use tokio::runtime::{Builder, Runtime};

    use super::{Failure, Middle, say};

    const STREAM: &str = "raw-check";

    /// The client's own stream of pulled messages, on one thread or two.
    pub fn all(url: &str, count: usize, rounds: usize) -> Result<(), Failure> {
        let one = Builder::new_current_thread().enable_all().build()?;
        let two = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        two.block_on(fill(url, count))?;
        for (threads, runtime) in [("one thread", &one), ("two threads", &two)] {
            for (batch, confirmed) in [(256, false), (1_000, false), (1_000, true)] {
                let measured: Result<Vec<f64>, Failure> =
                    (0..rounds).map(|_| turn(runtime, url, count, batch, confirmed)).collect();
                let (beside, how) = match confirmed {
                    true => ("async-nats, confirmed one by one", "double_ack(), 256 in flight"),
                    false => ("async-nats, plain acknowledgements", "ack()"),
                };
                say(beside, &format!("stream(), {batch} a pull, {how}, {threads}"), measured?);
            }
        }
        two.block_on(async {
            jetstream::new(async_nats::connect(url).await?).delete_stream(STREAM).await?;
            Ok(())
        })
    }

    async fn fill(url: &str, count: usize) -> Result<(), Failure> {
        let context = jetstream::new(async_nats::connect(url).await?);
        let config = stream::Config { name: STREAM.into(), subjects: vec!["raw.check".into()], ..Default::default() };
        context.create_stream(config).await?;
        let mut flying = FuturesUnordered::new();
        for _ in 0..count {
            if flying.len() >= 1_000 {
                flying.next().await.transpose()?;
            }
            let stored = context.publish("raw.check", vec![b'x'; 200].into()).await?;
            flying.push(std::future::IntoFuture::into_future(stored));
        }
        while flying.next().await.transpose()?.is_some() {}
        Ok(())
    }

    fn turn(runtime: &Runtime, url: &str, count: usize, batch: usize, confirmed: bool) -> Result<f64, Failure> {
        runtime.block_on(async {
            let context = jetstream::new(async_nats::connect(url).await?);
            let config = consumer::pull::Config { max_ack_pending: 100_000, ..Default::default() };
            let consumer = context.get_stream(STREAM).await?.create_consumer(config).await?;
            let mut messages = consumer.stream().max_messages_per_batch(batch).messages().await?;
            let (mut middle, mut flying) = (Middle::new(count), FuturesUnordered::new());
            while !middle.ended() {
                if flying.len() < 256
                    && let Some(message) = messages.next().await.transpose()?
                {
                    if confirmed {
                        flying.push(async move { message.double_ack_with(AckKind::Ack).await });
                        middle.one();
                    } else {
                        message.ack().await?;
                        middle.one();
                    }
                } else {
                    flying.next().await.transpose()?;
                }
            }
            while flying.next().await.transpose()?.is_some() {}
            middle.rate.ok_or_else(|| "too few messages".into())
        })
    }
}

#[cfg(feature = "kafka")]
mod kafka {
    use std::time::Duration;

    use rdkafka::ClientConfig;
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    use rdkafka::client::DefaultClientContext;
    use rdkafka::consumer::{BaseConsumer, Consumer, StreamConsumer};
    use rdkafka::error::KafkaError;
    use rdkafka::message::Message;
    use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
    use rdkafka::types::RDKafkaErrorCode;
    use tokio::runtime::{Builder, Runtime};

    use super::{Failure, Middle, say};

    const TOPIC: &str = "raw-check";

    /// A base consumer, and the client's asynchronous one.
    pub fn all(broker: &str, count: usize, rounds: usize) -> Result<(), Failure> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let admin: AdminClient<DefaultClientContext> = client(broker).create()?;
        let topic = NewTopic::new(TOPIC, 4, TopicReplication::Fixed(1));
        runtime.block_on(admin.create_topics([&topic], &AdminOptions::new()))?;
        fill(broker, count)?;
        for (what, name) in [("BaseConsumer::iter()", "base"), ("StreamConsumer", "stream")] {
            let rates: Result<Vec<f64>, Failure> = (0..rounds)
                .map(|round| {
                    let mut config = client(broker);
                    config
                        .set("group.id", format!("raw-check-{name}-{round}"))
                        .set("enable.auto.offset.store", "false")
                        .set("auto.offset.reset", "earliest")
                        .set("queued.max.messages.kbytes", "4096")
                        .set("fetch.queue.backoff.ms", "2");
                    if name == "base" { base(&config, count) } else { stream(&runtime, &config, count) }
                })
                .collect();
            say("BaseConsumer, offsets stored", what, rates?);
        }
        runtime.block_on(admin.delete_topics(&[TOPIC], &AdminOptions::new()))?;
        Ok(())
    }

    fn client(broker: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", broker);
        config
    }

    fn fill(broker: &str, count: usize) -> Result<(), Failure> {
        let mut config = client(broker);
        config.set("linger.ms", "5").set("queue.buffering.max.messages", "1000000");
        let producer: ThreadedProducer<DefaultProducerContext> = config.create()?;
        let body = [b'x'; 200];
        for number in 0..count {
            let partition = (number % 4) as i32;
            let mut record = BaseRecord::<(), [u8]>::to(TOPIC).partition(partition).payload(&body);
            loop {
                match producer.send(record) {
                    Ok(()) => break,
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                        std::thread::sleep(Duration::from_millis(5));
                        record = back;
                    }
                    Err((error, _)) => return Err(error.into()),
                }
            }
        }
        Ok(producer.flush(Duration::from_secs(60))?)
    }

    fn base(config: &ClientConfig, count: usize) -> Result<f64, Failure> {
        let consumer: BaseConsumer = config.create()?;
        consumer.subscribe(&[TOPIC])?;
        let mut middle = Middle::new(count);
        for message in consumer.iter() {
            let message = message?;
            std::hint::black_box(message.payload());
            consumer.store_offset(TOPIC, message.partition(), message.offset())?;
            middle.one();
            if middle.ended() {
                break;
            }
        }
        middle.rate.ok_or_else(|| "too few records".into())
    }

    fn stream(runtime: &Runtime, config: &ClientConfig, count: usize) -> Result<f64, Failure> {
        runtime.block_on(async {
            let consumer: StreamConsumer = config.create()?;
            consumer.subscribe(&[TOPIC])?;
            let mut middle = Middle::new(count);
            while !middle.ended() {
                let message = consumer.recv().await?;
                std::hint::black_box(message.payload());
                consumer.store_offset(TOPIC, message.partition(), message.offset())?;
                middle.one();
            }
            middle.rate.ok_or_else(|| "too few records".into())
        })
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
    use sqlx::{ConnectOptions, Row, SqlitePool};
    use tokio::runtime::{Builder, Runtime};

    use super::{Failure, Middle, say};

    /// Claims of 100 in the transaction that deletes the 100 before them, through a pool of one connection.
    pub fn all(folder: &str, count: usize, rounds: usize) -> Result<(), Failure> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        for (what, synchronous) in [("full", SqliteSynchronous::Full), ("normal", SqliteSynchronous::Normal)] {
            let rates: Result<Vec<f64>, Failure> =
                (0..rounds).map(|_| turn(&runtime, folder, count, synchronous)).collect();
            say(
                &format!("sqlx, 100 a transaction, synchronous {what}"),
                "a pool of one connection, ids in ranges",
                rates?,
            );
        }
        Ok(())
    }

    fn turn(runtime: &Runtime, folder: &str, count: usize, synchronous: SqliteSynchronous) -> Result<f64, Failure> {
        let folder = tempfile::tempdir_in(folder)?;
        runtime.block_on(async {
            let options = SqliteConnectOptions::new()
                .filename(folder.path().join("raw.db"))
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(synchronous)
                .disable_statement_logging();
            let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
            sqlx::raw_sql(
                "CREATE TABLE task (id INTEGER PRIMARY KEY AUTOINCREMENT, taken INTEGER NOT NULL DEFAULT 0, body BLOB);
                 CREATE INDEX free ON task (id) WHERE taken = 0;",
            )
            .execute(&pool)
            .await?;
            fill(&pool, count).await?;
            drain(&pool, count).await
        })
    }

    async fn fill(pool: &SqlitePool, count: usize) -> Result<(), Failure> {
        let mut transaction = pool.begin().await?;
        for _ in 0..count {
            let insert = sqlx::query("INSERT INTO task (body) VALUES (?)").bind(vec![b'x'; 200]);
            insert.execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn drain(pool: &SqlitePool, count: usize) -> Result<f64, Failure> {
        let (mut middle, mut before) = (Middle::new(count), Vec::<i64>::new());
        loop {
            let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
            if let (Some(first), Some(last)) = (before.first(), before.last()) {
                let delete = sqlx::query("DELETE FROM task WHERE id BETWEEN ? AND ? AND taken = 1");
                delete.bind(first).bind(last).execute(&mut *transaction).await?;
            }
            let claim =
                "UPDATE task SET taken = 1 WHERE id IN (SELECT id FROM task WHERE taken = 0 ORDER BY id LIMIT 100)
                         RETURNING id, body";
            let rows = sqlx::query(claim).fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            if rows.is_empty() && middle.ended() {
                return middle.rate.ok_or_else(|| "too few rows".into());
            }
            before.clear();
            for row in &rows {
                std::hint::black_box(row.get::<&[u8], _>(1));
                before.push(row.get(0));
                middle.one();
            }
            before.sort_unstable();
        }
    }
}
