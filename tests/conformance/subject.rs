//! The brokers under test, and what the suite must know of each to be fair to it.

use std::time::Duration;

/// A broker under test, with nothing in it.
pub trait Subject: Sized + Send + 'static {
    /// What it is called in messages.
    const NAME: &'static str;

    /// Whether it outlives the process that made it. What does not has one connection, which every worker shares,
    /// and neither restarts nor dead workers.
    const LASTING: bool = true;

    /// The lease that the tests run with: the shortest that this broker admits.
    const LEASE: Duration;

    /// Whether freezing the runtime of a connection freezes the connection: not where a client library goes on with
    /// threads of its own.
    const FREEZES: bool = true;

    /// Whether headers keep the order in which they were published. Those of NATS are a map (ADR-4), as each of its
    /// clients reads them; values of one name keep theirs.
    const ORDERED_HEADERS: bool = true;

    /// What happened so shortly before its server is killed may be forgotten; a worker that was there knows better, one
    /// that has come since cannot. NATS writes down what consumers were given and acknowledged up to 100 ms later.
    const FORGETS: Duration = Duration::ZERO;

    /// Whether a worker that joins is given partitions, which move away from others.
    const MOVES: bool = false;

    /// The longest that a finished job may be unconfirmed on a slow machine.
    #[cfg_attr(not(feature = "seeded-bugs"), expect(dead_code, reason = "only the ledger's judge is told"))]
    const UNCONFIRMED: Duration = Duration::from_secs(2);

    /// Whether the ledger's stories are short enough to be told without being asked for.
    #[cfg_attr(not(feature = "seeded-bugs"), expect(dead_code, reason = "only the ledger's stories are told"))]
    const SHORT: bool = true;

    /// Whether `order = "key"` can be had.
    const ORDERED_KEYS: bool = true;

    /// Whether what was given back is known to have been handed out before, which takes a write.
    const NOTES_RELEASES: bool = true;

    /// A fresh one; `None`, reported, where it is not on this machine.
    fn fresh() -> Option<Self>;

    /// Its address.
    fn address(&self) -> String;

    /// Kills its server and starts it again on the same data; `false` where there is no server.
    fn restart(&mut self) -> bool {
        false
    }

    /// Says that a promise is not this broker's to break: past what catches a passing test's output, so that whoever
    /// reads the run sees what it did not show.
    fn inapplicable(why: &str) {
        use std::io::Write;
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // There is nobody left to tell.
        let _ = writeln!(std::io::stderr(), "not applicable to {}: {test}: {why}", Self::NAME);
    }

    /// Cuts every connection to it and serves new ones; `false` where there are no connections. Fails the test
    /// where there were none to cut.
    fn cut(&mut self) -> bool {
        false
    }

    /// What goes over its connections vanishes for so long, both ways, and they break after; `false` as above.
    #[cfg_attr(not(feature = "seeded-bugs"), expect(dead_code, reason = "only campaigns do that"))]
    fn swallow(&mut self, _lasting: Duration) -> bool {
        false
    }

    /// What goes over its connections is held up by a fifth of a second, for so long; `false` as above.
    #[cfg_attr(not(feature = "seeded-bugs"), expect(dead_code, reason = "only campaigns do that"))]
    fn delay(&mut self, _lasting: Duration) -> bool {
        false
    }

    /// What it keeps for those who use it, by name: nothing of it may grow with the jobs that are done.
    #[cfg_attr(
        not(all(feature = "sqlite", feature = "nats", feature = "kafka")),
        expect(dead_code, reason = "only the soak looks")
    )]
    fn objects(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// It takes no dead letters of the namespace `ledger` for so long; `false`: nothing can be told so.
    #[cfg_attr(not(feature = "seeded-bugs"), expect(dead_code, reason = "only campaigns do that"))]
    fn refuse_letters(&mut self, _lasting: Duration) -> bool {
        false
    }
}

/// What [`Subject::delay`] holds up everything by.
#[cfg(any(feature = "nats", feature = "kafka"))]
const HELD_UP: Duration = Duration::from_millis(200);

/// Waits so long, which is what is meant: a fault lasts.
#[cfg(any(feature = "nats", feature = "kafka"))]
fn last(lasting: Duration) {
    std::thread::sleep(lasting);
}

/// Something async, on a thread and a runtime of its own.
#[cfg(any(feature = "sqlite", feature = "nats", feature = "kafka"))]
fn aside<R: Send + 'static>(work: impl Future<Output = R> + Send + 'static) -> R {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be built").block_on(work)
    });
    thread.join().expect("it works")
}

/// `memory://`
pub struct Memory;

impl Subject for Memory {
    const NAME: &'static str = "memory";
    const LASTING: bool = false;
    const LEASE: Duration = Duration::from_millis(200);

    fn fresh() -> Option<Self> {
        Some(Self)
    }

    fn address(&self) -> String {
        "memory://".to_owned()
    }
}

/// `sqlite://PATH`
#[cfg(feature = "sqlite")]
pub struct Sqlite(tempfile::TempDir);

#[cfg(feature = "sqlite")]
impl Sqlite {
    /// A fresh one in a folder of its own within `folder`.
    #[cfg_attr(not(feature = "seeded-bugs"), expect(dead_code, reason = "only the ledger chooses where it lies"))]
    pub fn within(folder: &std::path::Path) -> Self {
        Self(tempfile::tempdir_in(folder).expect("a folder"))
    }
}

#[cfg(feature = "sqlite")]
impl Subject for Sqlite {
    const NAME: &'static str = "sqlite";
    const LEASE: Duration = Duration::from_secs(1);

    fn fresh() -> Option<Self> {
        Some(Self(tempfile::tempdir().expect("a temporary folder")))
    }

    fn address(&self) -> String {
        format!("sqlite://{}", self.0.path().join("queue.db").display())
    }

    /// Somebody else locks the file, for longer than the lease: the nearest thing to a broker that is away.
    fn cut(&mut self) -> bool {
        use sqlx::ConnectOptions;
        let file = sqlx::sqlite::SqliteConnectOptions::new().filename(self.0.path().join("queue.db"));
        let locking = async move {
            let mut connection = file.busy_timeout(Duration::from_secs(30)).connect().await.expect("it can be opened");
            sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.expect("it can be locked");
            tokio::time::sleep(Self::LEASE * 2).await;
            sqlx::query("ROLLBACK").execute(&mut connection).await.expect("it was locked");
        };
        aside(locking);
        true
    }

    /// Pages of the file that hold something: a backlog leaves empty ones behind, which are used again.
    fn objects(&self) -> Vec<(String, u64)> {
        use sqlx::{ConnectOptions, Row};
        let file = sqlx::sqlite::SqliteConnectOptions::new().filename(self.0.path().join("queue.db"));
        let pages = aside(async move {
            let mut connection = file.busy_timeout(Duration::from_secs(30)).connect().await.expect("it can be opened");
            let used = "SELECT (SELECT page_count FROM pragma_page_count) - (SELECT freelist_count FROM pragma_freelist_count)";
            sqlx::query(used).fetch_one(&mut connection).await.expect("it is there").get::<i64, _>(0)
        });
        vec![("used pages".to_owned(), u64::try_from(pages).unwrap_or(0))]
    }

    /// By a trigger, which is what an operator could do.
    fn refuse_letters(&mut self, lasting: Duration) -> bool {
        use sqlx::ConnectOptions;
        let file = sqlx::sqlite::SqliteConnectOptions::new().filename(self.0.path().join("queue.db"));
        aside(async move {
            let mut connection = file.busy_timeout(Duration::from_secs(30)).connect().await.expect("it can be opened");
            let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON dead BEGIN SELECT RAISE(ABORT, 'no letters'); END";
            sqlx::query(refuse).execute(&mut connection).await.expect("a trigger");
            tokio::time::sleep(lasting).await;
            sqlx::query("DROP TRIGGER refuse").execute(&mut connection).await.expect("it is there");
        });
        true
    }
}

/// `nats://127.0.0.1:PORT`, through a proxy
#[cfg(feature = "nats")]
pub struct Nats {
    server: crate::support::nats::Nats,
    proxy: crate::support::proxy::Proxy,
}

#[cfg(feature = "nats")]
impl Subject for Nats {
    const NAME: &'static str = "nats";
    const LEASE: Duration = Duration::from_secs(2);
    const FORGETS: Duration = Duration::from_millis(300);
    const ORDERED_HEADERS: bool = false;

    fn fresh() -> Option<Self> {
        let server = crate::support::nats::Nats::start(crate::support::nats::Release::New)?;
        let proxy = crate::support::proxy::Proxy::to(server.port());
        Some(Self { server, proxy })
    }

    fn address(&self) -> String {
        format!("nats://{}", self.proxy.host())
    }

    fn restart(&mut self) -> bool {
        self.server.restart();
        true
    }

    fn cut(&mut self) -> bool {
        cut(&self.proxy)
    }

    fn swallow(&mut self, lasting: Duration) -> bool {
        swallow(&self.proxy, lasting)
    }

    fn delay(&mut self, lasting: Duration) -> bool {
        delay(&self.proxy, lasting)
    }

    /// Streams, consumers, and messages of the streams but for those that are history.
    fn objects(&self) -> Vec<(String, u64)> {
        let (_, page) = crate::support::http::get(self.server.monitor(), "/jsz?streams=true").expect("it answers");
        let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
        let mut objects: Vec<(String, u64)> =
            ["streams", "consumers"].map(|name| (name.to_owned(), page[name].as_u64().unwrap_or(0))).to_vec();
        let details = page["account_details"].as_array().into_iter().flatten();
        for stream in details.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten()) {
            let name = stream["name"].as_str().unwrap_or_default();
            // Events stay for as long as the topic keeps them, whoever has heard them.
            if !name.ends_with("_events") {
                objects.push((format!("messages of {name}"), stream["state"]["messages"].as_u64().unwrap_or(0)));
            }
        }
        objects
    }

    /// Its stream has no room for one letter more.
    fn refuse_letters(&mut self, lasting: Duration) -> bool {
        let url = self.server.url();
        aside(async move {
            let client = async_nats::connect(url).await.expect("the server can be reached");
            let stream = async_nats::jetstream::new(client);
            let Ok(mut dead) = stream.get_stream("ledger_dead").await else { return false };
            let info = dead.info().await.expect("it is there").clone();
            let full = i64::try_from(info.state.messages.max(1)).unwrap_or(i64::MAX);
            let mut config = info.config.clone();
            config.max_messages = full;
            stream.update_stream(config).await.expect("it may be limited");
            tokio::time::sleep(lasting).await;
            stream.update_stream(info.config).await.expect("it may be as it was");
            true
        })
    }
}

/// The same on other lines of servers.
#[cfg(feature = "nats")]
macro_rules! nats_lines {
    ($($(#[$doc:meta])* $line:ident: $name:literal, $release:ident, $orders:literal, $when:expr;)*) => { $(
        $(#[$doc])*
        pub struct $line(Nats);

        impl Subject for $line {
            const NAME: &'static str = $name;
            const LEASE: Duration = Nats::LEASE;
            const FORGETS: Duration = Nats::FORGETS;
            const ORDERED_HEADERS: bool = false;
            const ORDERED_KEYS: bool = $orders;

            fn fresh() -> Option<Self> {
                let server = $when.then(|| crate::support::nats::Nats::start(crate::support::nats::Release::$release))??;
                let proxy = crate::support::proxy::Proxy::to(server.port());
                Some(Self(Nats { server, proxy }))
            }

            fn address(&self) -> String {
                self.0.address()
            }

            fn restart(&mut self) -> bool {
                self.0.restart()
            }

            fn cut(&mut self) -> bool {
                self.0.cut()
            }
        }
    )* };
}

#[cfg(feature = "nats")]
nats_lines! {
    /// The oldest line that is supported, which has no schedules.
    NatsOld: "nats, the oldest", Old, false, true;
    /// The first with schedules; in the full tests.
    Nats212: "nats 2.12", V2_12, true, crate::support::tool::full();
    /// The first with repeated schedules; in the full tests.
    Nats214: "nats 2.14", V2_14, true, crate::support::tool::full();
}

/// `kafka://127.0.0.1:PORT`, through a proxy which the broker advertises
#[cfg(feature = "kafka")]
pub struct Kafka {
    broker: crate::support::kafka::Kafka,
    proxy: crate::support::proxy::Proxy,
}

#[cfg(feature = "kafka")]
impl Subject for Kafka {
    const NAME: &'static str = "kafka";
    const MOVES: bool = true;
    const LEASE: Duration = Duration::from_secs(6);
    const FREEZES: bool = false;
    const NOTES_RELEASES: bool = false;
    const SHORT: bool = false;

    fn fresh() -> Option<Self> {
        let proxy = crate::support::proxy::Proxy::to(0);
        let advertised = format!("advertised.listeners=PLAINTEXT://{}", proxy.host());
        let broker = crate::support::kafka::Kafka::with(1, &advertised)?;
        proxy.lead_to(broker.nodes[0].port());
        Some(Self { broker, proxy })
    }

    fn address(&self) -> String {
        format!("kafka://{}", self.proxy.host())
    }

    fn restart(&mut self) -> bool {
        self.broker.nodes[0].restart();
        true
    }

    fn cut(&mut self) -> bool {
        cut(&self.proxy)
    }

    fn swallow(&mut self, lasting: Duration) -> bool {
        swallow(&self.proxy, lasting)
    }

    fn delay(&mut self, lasting: Duration) -> bool {
        delay(&self.proxy, lasting)
    }

    /// Topics.
    fn objects(&self) -> Vec<(String, u64)> {
        use rdkafka::consumer::{BaseConsumer, Consumer};
        let host = self.proxy.host();
        let client: BaseConsumer =
            rdkafka::ClientConfig::new().set("bootstrap.servers", host).create().expect("a client");
        let metadata = client.fetch_metadata(None, Duration::from_secs(10)).expect("the broker answers");
        let partitions = metadata.topics().iter().map(|topic| topic.partitions().len() as u64).sum();
        vec![("topics".to_owned(), metadata.topics().len() as u64), ("partitions".to_owned(), partitions)]
    }

    /// Its topics take nothing that is longer than a few bytes.
    fn refuse_letters(&mut self, lasting: Duration) -> bool {
        use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
        let host = self.proxy.host();
        aside(async move {
            let admin: AdminClient<_> =
                rdkafka::ClientConfig::new().set("bootstrap.servers", host).create().expect("a client");
            let topics = ["mixed", "copy", "keyed"].map(|queue| format!("dlq.ledger.{queue}"));
            let limit = async |bytes: &str| {
                let change = |topic| AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", bytes);
                let changes: Vec<_> = topics.iter().map(|topic| change(topic)).collect();
                let results = admin.alter_configs(&changes, &AdminOptions::new()).await.expect("the broker answers");
                results.iter().all(Result::is_ok)
            };
            // Where no letter was written yet there is no topic.
            let any = limit("100").await;
            tokio::time::sleep(lasting).await;
            limit("1000000").await;
            any
        })
    }
}

#[cfg(any(feature = "nats", feature = "kafka"))]
fn swallow(proxy: &crate::support::proxy::Proxy, lasting: Duration) -> bool {
    let before = proxy.counts();
    proxy.swallow_all();
    last(lasting);
    // What vanished is missing in the middle of a stream: it cannot go on.
    proxy.cut(crate::support::proxy::Cut::Reset);
    proxy.pass();
    assert!(proxy.counts().swallowed > before.swallowed, "something vanished: {:?}", proxy.counts());
    true
}

#[cfg(any(feature = "nats", feature = "kafka"))]
fn delay(proxy: &crate::support::proxy::Proxy, lasting: Duration) -> bool {
    let before = proxy.counts();
    proxy.delay(HELD_UP);
    last(lasting);
    proxy.pass();
    assert!(proxy.counts().held_up > before.held_up, "something was held up: {:?}", proxy.counts());
    true
}

#[cfg(any(feature = "nats", feature = "kafka"))]
fn cut(proxy: &crate::support::proxy::Proxy) -> bool {
    use crate::support::{proxy::Cut, wait};
    let before = proxy.counts();
    assert!(before.connections > before.cut, "there is no connection to cut: {before:?}");
    proxy.cut(Cut::Reset);
    wait::until("a connection was cut", Duration::from_secs(5), || proxy.counts().cut > before.cut);
    true
}
