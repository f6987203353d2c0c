//! The worker on `memory://`, with a stopped clock: what happens to a delivery, whatever its handler does.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::*;
use crate::broker::{
    self, Broker, Credit, Delivery, Destination, Letter, LetterQuery, Options, Overtaken, Publication, Role, Settled,
    Settlement, Settler, Source, Start, Trouble,
};
use crate::client::Client;
use crate::handler::{Context, Error, Registry, Shared};
use crate::message::{JobName, Message, Namespace, Reason, Topic};
use crate::telemetry::log;
use crate::worker::retry::Policy;

/// A worker with one queue a name, on topic `t`.
struct Rig {
    broker: Arc<dyn Broker>,
    shutdown: Shutdown,
    running: Option<tokio::task::JoinHandle<()>>,
    worker: Worker,
}

struct Setup {
    registry: Registry,
    queues: Vec<(&'static str, usize)>,
    slots: usize,
    policy: Policy,
    timeout: Duration,
    ordered: bool,
    bytes: usize,
    trouble: Troubled,
    /// How often the last queue's source was asked for more.
    asked: Arc<AtomicUsize>,
    lanes: Option<NonZeroUsize>,
}

/// What a broker says that memory never does.
#[derive(Clone, Default)]
struct Troubled {
    /// What its retention removed.
    overtaken: Vec<Overtaken>,
    /// What it answers to every settlement, though it stores it.
    settled: Option<Settled>,
}

/// A settler with troubles.
struct Settling(Arc<dyn Settler>, Mutex<Troubled>);

impl Settler for Settling {
    fn settle(&self, batch: Vec<Settlement>) -> BoxFuture<'static, Vec<Settled>> {
        let answer = self.1.lock().settled.clone();
        let settling = self.0.settle(batch);
        Box::pin(async move {
            let settled = settling.await;
            settled.into_iter().map(|settled| answer.clone().unwrap_or(settled)).collect()
        })
    }

    fn mark<'a>(&'a self, starting: &'a [&'a Delivery]) -> BoxFuture<'a, Vec<bool>> {
        self.0.mark(starting)
    }

    fn unconfirmed_limit(&self) -> usize {
        if self.1.lock().settled.is_some() { 100 } else { self.0.unconfirmed_limit() }
    }

    fn trouble(&self) -> Option<Trouble> {
        self.0.trouble()
    }

    fn overtaken(&self) -> Vec<Overtaken> {
        std::mem::take(&mut self.1.lock().overtaken)
    }
}

/// A source that counts how often it is asked.
struct Counting(Box<dyn Source>, Arc<AtomicUsize>);

impl Source for Counting {
    fn receive(&mut self, credit: Credit) -> BoxFuture<'_, Result<Vec<Delivery>, broker::Error>> {
        self.1.fetch_add(1, SeqCst);
        self.0.receive(credit)
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        self.0.stop()
    }
}

impl Setup {
    fn new(registry: Registry) -> Self {
        let attempts = NonZeroU32::new(3).expect("not 0");
        Self {
            registry,
            queues: vec![("q", 4)],
            slots: 4,
            policy: Policy { attempts, jitter: 0.0, ..Policy::default() },
            timeout: Duration::from_secs(60),
            ordered: false,
            bytes: 1 << 20,
            trouble: Troubled::default(),
            asked: Arc::default(),
            lanes: None,
        }
    }

    async fn start(self) -> Rig {
        let clock = Clock::tokio();
        let specs: Vec<broker::Queue> = self.queues.iter().map(|(name, slots)| self.spec(name, *slots)).collect();
        let namespace = Namespace::new("test").expect("valid");
        let options = Options {
            namespace: namespace.clone(),
            namespace_set: true,
            role: Role::Worker,
            timeout: Duration::from_secs(5),
            lease: Duration::from_secs(30),
            grace: Duration::from_secs(25),
            queues: specs.clone(),
            worker: "test".into(),
            clock: clock.clone(),
            sqlite: Default::default(),
            nats: Default::default(),
            kafka: Default::default(),
        };
        let broker = broker::connect("memory://", options).await.expect("memory");
        let shutdown = Shutdown::default();
        let mut queues = Vec::new();
        let last = specs.len() - 1;
        for (place, spec) in specs.into_iter().enumerate() {
            let route = |name: &String| {
                let entry = self.registry.get(name).expect("registered");
                let name = JobName::new(name).expect("valid");
                let shared = Shared {
                    queue: spec.name.clone(),
                    job: name,
                    attempts: self.policy.attempts.get(),
                    client: Client::new(broker.publisher(), namespace.clone()),
                    state: self.registry.shared_state(),
                };
                Route::new(entry.handler, entry.threading, self.timeout, self.policy, Arc::new(shared))
            };
            let names = self.registry.names();
            let routes = names.iter().filter(|name| self.registry.get(name).is_some()).map(route).collect();
            let mut opened = broker.open(&spec).await.expect("memory");
            opened.settler = Arc::new(Settling(opened.settler, Mutex::new(self.trouble.clone())));
            if place == last {
                opened.source = Box::new(Counting(opened.source, self.asked.clone()));
            }
            queues.push(QueueConfig {
                weight: 1,
                unroutable_after: Duration::from_secs(10),
                routes: Routes::new(&spec.job, routes).expect("the queue's job is registered"),
                opened,
                spec,
            });
        }
        let config = Config {
            slots: NonZeroUsize::new(self.slots).expect("not 0"),
            bytes_in_flight: self.bytes,
            grace: Duration::from_secs(25),
            lease: Duration::from_secs(30),
            lanes: self.lanes,
        };
        let worker = Worker::new(config, queues, shutdown.clone(), clock);
        let (running, working) = (worker.clone(), broker.clone());
        let running = tokio::spawn(async move { running.run(working, &tokio::runtime::Handle::current()).await });
        Rig { broker, shutdown, running: Some(running), worker }
    }

    fn spec(&self, name: &str, slots: usize) -> broker::Queue {
        broker::Queue {
            name: QueueName::new(name).expect("valid"),
            topics: vec![Topic::new("t").expect("valid")],
            job: JobName::new("job").expect("valid"),
            slots: NonZeroUsize::new(slots).expect("not 0"),
            ordered: self.ordered,
            start: Start::Earliest,
            max_crashes: 3,
            keep_dead: None,
        }
    }
}

impl Rig {
    async fn publish(&self, body: impl Into<Bytes>) {
        self.publish_key(body, None).await;
    }

    async fn publish_key(&self, body: impl Into<Bytes>, key: Option<&'static str>) {
        let destination = Destination::Topic(Topic::new("t").expect("valid"));
        self.send(destination, Message { body: Some(body.into()), key: key.map(Into::into), ..Message::default() })
            .await;
    }

    async fn send(&self, destination: Destination, message: Message) {
        let publication = Publication { destination, message, id: "id".to_owned(), allow_unheard: false };
        for result in self.broker.publisher().publish(vec![publication]).await {
            result.expect("stored");
        }
    }

    async fn letters(&self) -> Vec<Letter> {
        use futures_util::TryStreamExt;
        self.broker.dead_letters().list(LetterQuery::default()).try_collect().await.expect("listed")
    }

    /// Lets (stopped) time pass until `condition` holds.
    async fn until(&self, what: &str, condition: impl AsyncFn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(3_600);
        while !condition(self).await {
            assert!(
                Instant::now() < deadline,
                "waited an hour for: {what}; {:?} {:?}",
                self.worker.queues(),
                self.broker.inspect().status(&[]).await
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_empty(&self) {
        self.until("all jobs to be finished", async |rig| {
            let status = rig.broker.inspect().status(&[]).await.expect("status");
            let left = |s: &broker::QueueStatus| s.ready != Some(0) || s.running != Some(0) || s.retrying != Some(0);
            !status.iter().any(left) && rig.worker.is_idle()
        })
        .await;
    }

    async fn one_letter(&self) -> Letter {
        self.until("a dead letter", async |rig| rig.letters().await.len() == 1).await;
        self.letters().await.remove(0)
    }

    async fn leave(mut self) -> Duration {
        let began = Instant::now();
        self.shutdown.drain();
        self.running.take().expect("left once").await.expect("no panic");
        began.elapsed()
    }
}

type Log = Arc<Mutex<Vec<(u32, Instant, String)>>>;

/// A job that logs (attempt, time, body) and fails by `fail`.
fn logging(log: &Log, fail: impl Fn(u32) -> Option<Error> + Send + Sync + Clone + 'static) -> Registry {
    let log = log.clone();
    Registry::new().job("job", move |args: serde_json::Value, cx: Context| {
        let (log, fail) = (log.clone(), fail.clone());
        async move {
            log.lock().push((cx.attempt(), Instant::now(), args.to_string()));
            match fail(cx.attempt()) {
                Some(error) => Err(error),
                None => Ok(()),
            }
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_job_that_succeeds_is_gone() {
    let log = Log::default();
    let rig = Setup::new(logging(&log, |_| None)).start().await;
    for n in 0..100 {
        rig.publish(format!("{n}")).await;
    }
    rig.until_empty().await;
    assert_eq!(log.lock().len(), 100);
    assert_eq!(rig.worker.counts(), (100, 0, 0));
    assert!(rig.letters().await.is_empty());
    assert!(rig.leave().await < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_tried_again_not_before_it_is_due() {
    let log = Log::default();
    let rig = Setup::new(logging(&log, |n| (n < 3).then(|| Error::retry("io", "no")))).start().await;
    rig.publish("1").await;
    rig.until("three runs", async |_| log.lock().len() == 3).await;
    rig.until_empty().await;
    let runs = log.lock().clone();
    assert_eq!(runs.iter().map(|(n, ..)| *n).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(runs[1].1 - runs[0].1 >= Duration::from_secs(1));
    assert!(runs[2].1 - runs[1].1 >= Duration::from_secs(2));
    assert_eq!(rig.worker.counts(), (1, 2, 0));
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_never_succeeds_is_a_dead_letter_with_its_bytes() {
    let log = Log::default();
    let rig = Setup::new(logging(&log, |_| Some(Error::retry("io", "connection refused")))).start().await;
    rig.publish("{\"a\": 1}").await;
    let letter = rig.one_letter().await;
    assert_eq!((letter.reason, letter.attempts), (Reason::Exhausted, 3));
    assert_eq!(letter.message.body.as_deref(), Some(&b"{\"a\": 1}"[..]));
    assert_eq!((letter.failure.error_type.as_str(), letter.failure.error.as_str()), ("io", "connection refused"));
    assert!(letter.failure.last > letter.failure.first);
    assert_eq!(log.lock().len(), 3);
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn errors_say_what_they_ask_for() {
    for (error, reason, attempts) in [
        (Error::permanent as fn(&'static str) -> Error, Reason::Permanent, 1),
        (Error::malformed as fn(&'static str) -> Error, Reason::Malformed, 0),
    ] {
        let log = Log::default();
        let rig = Setup::new(logging(&log, move |_| Some(error("no")))).start().await;
        rig.publish("1").await;
        let letter = rig.one_letter().await;
        assert_eq!((letter.reason, letter.attempts), (reason, attempts));
        rig.leave().await;
    }
    let log = Log::default();
    let snoozed = Arc::new(AtomicUsize::new(0));
    let again = snoozed.clone();
    let fail = move |_| (again.fetch_add(1, SeqCst) < 10).then(|| Error::snooze(Duration::from_secs(7)));
    let rig = Setup::new(logging(&log, fail)).start().await;
    rig.publish("1").await;
    rig.until("eleven runs", async |_| log.lock().len() == 11).await;
    assert!(log.lock().iter().all(|(attempt, ..)| *attempt == 1), "a snooze uses no attempt");
    rig.until_empty().await;
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn bytes_that_cannot_be_read_are_a_dead_letter_and_block_nothing() {
    let log = Log::default();
    let rig = Setup::new(logging(&log, |_| None)).start().await;
    rig.publish(&b"\xff\xfe\x00"[..]).await;
    rig.publish("2").await;
    let letter = rig.one_letter().await;
    rig.until_empty().await;
    assert_eq!((letter.reason, letter.attempts), (Reason::Malformed, 0));
    assert_eq!(letter.message.body.as_deref(), Some(&b"\xff\xfe\x00"[..]));
    assert_eq!(log.lock().len(), 1);
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_an_outcome_with_its_message_and_place() {
    async fn bad(args: serde_json::Value) -> Result<(), Error> {
        if args == 1 {
            tokio::task::yield_now().await;
        }
        panic!("the answer was {args}");
    }
    for body in ["1", "2"] {
        let rig = Setup::new(Registry::new().job("job", bad)).start().await;
        rig.publish(body).await;
        let letter = rig.one_letter().await;
        assert_eq!((letter.reason, letter.attempts), (Reason::Exhausted, 3));
        assert_eq!(letter.failure.error_type, "panic");
        assert!(letter.failure.error.contains(&format!("the answer was {body}")), "{}", letter.failure.error);
        assert!(letter.failure.error.contains("worker/tests.rs:"), "{}", letter.failure.error);
        rig.leave().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_is_cancelled_and_tried_again() {
    async fn slow(_: serde_json::Value, cx: Context) -> Result<(), Error> {
        if cx.attempt() < 3 {
            tokio::time::sleep(Duration::from_secs(3_600)).await;
        }
        Ok(())
    }
    let rig = Setup::new(Registry::new().job("job", slow)).start().await;
    let began = Instant::now();
    rig.publish("1").await;
    rig.until("it to be done", async |rig| rig.worker.counts().0 == 1).await;
    assert_eq!(rig.worker.counts(), (1, 2, 0));
    assert!(began.elapsed() >= Duration::from_secs(60 + 1 + 60 + 2));
    rig.leave().await;
}

#[tokio::test]
async fn a_blocking_job_that_times_out_keeps_its_slot_until_it_returns() {
    static BUSY: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    fn block(_: serde_json::Value, cx: Context) -> Result<(), Error> {
        MOST.fetch_max(BUSY.fetch_add(1, SeqCst) + 1, SeqCst);
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while !cx.is_cancelled() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        TOLD.fetch_add(usize::from(cx.is_cancelled()), SeqCst);
        BUSY.fetch_sub(1, SeqCst);
        Err(Error::retry("late", "late"))
    }
    let mut setup = Setup::new(Registry::new().blocking("job", block));
    setup.queues = vec![("q", 1)];
    setup.timeout = Duration::from_millis(20);
    setup.policy.first = Duration::from_millis(1);
    let rig = setup.start().await;
    rig.publish("1").await;
    rig.publish("2").await;
    rig.until("two dead letters", async |rig| rig.letters().await.len() == 2).await;
    assert_eq!(MOST.load(SeqCst), 1, "one slot, one at a time, though each timed out");
    assert_eq!(TOLD.load(SeqCst), 6);
    assert!(rig.letters().await.iter().all(|letter| letter.failure.error_type == "timeout"));
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn slots_bound_what_runs_and_are_all_used() {
    let (busy, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (b, m) = (busy.clone(), most.clone());
    let job = move |_: serde_json::Value| {
        let (busy, most) = (b.clone(), m.clone());
        async move {
            most.fetch_max(busy.fetch_add(1, SeqCst) + 1, SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            busy.fetch_sub(1, SeqCst);
            Ok(())
        }
    };
    let mut setup = Setup::new(Registry::new().job("job", job));
    setup.queues = vec![("a", 8), ("b", 8)];
    setup.slots = 10;
    let rig = setup.start().await;
    let began = Instant::now();
    for n in 0..200 {
        rig.publish(format!("{n}")).await;
    }
    rig.until_empty().await;
    assert_eq!(most.load(SeqCst), 10, "all slots were used, and no more");
    assert_eq!(rig.worker.counts().0, 400);
    let took = began.elapsed();
    assert!(took < Duration::from_millis(400 / 10 * 50 * 13 / 10), "took {took:?}");
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_without_work_leaves_slots_to_one_that_has_it_and_is_still() {
    // As on one core, and on two.
    for lanes in [1, 2] {
        let registry = Registry::new().job("job", async |_: serde_json::Value| {
            tokio::time::sleep(Duration::from_secs(30)).await;
            Ok(())
        });
        let queues = vec![("busy", 8), ("idle", 8)];
        let setup = Setup { queues, slots: 8, lanes: NonZeroUsize::new(lanes), ..Setup::new(registry) };
        let asked = setup.asked.clone();
        let rig = setup.start().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        for job in 0..20 {
            let queue = QueueName::new("busy").expect("valid");
            let destination = Destination::Queue { queue, job: None, not_before: None };
            rig.send(destination, Message { body: Some(format!("{job}").into()), ..Message::default() }).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (running, before) = (rig.worker.running().len(), asked.load(SeqCst));
        tokio::time::sleep(Duration::from_secs(20)).await;
        let times = asked.load(SeqCst) - before;
        assert!(running == 7 && times <= 4, "{running} of 7 run, a queue that has nothing was asked {times} times");
        rig.until_empty().await;
        rig.leave().await;
    }
}

#[tokio::test(start_paused = true)]
async fn payload_bytes_bound_what_is_in_hand_and_a_huge_job_runs_alone() {
    let (busy, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let beside_huge = Arc::new(AtomicUsize::new(0));
    let (b, m, h) = (busy.clone(), most.clone(), beside_huge.clone());
    let job = move |text: String| {
        let (busy, most, beside_huge) = (b.clone(), m.clone(), h.clone());
        async move {
            let now = busy.fetch_add(text.len(), SeqCst) + text.len();
            if text.len() > 1_000 {
                beside_huge.fetch_add(now - text.len(), SeqCst);
            } else {
                most.fetch_max(now, SeqCst);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            busy.fetch_sub(text.len(), SeqCst);
            Ok(())
        }
    };
    let mut setup = Setup::new(Registry::new().job("job", job));
    setup.queues = vec![("q", 64)];
    setup.slots = 64;
    setup.bytes = 1_000;
    let rig = setup.start().await;
    for n in 0..60 {
        let size = if n % 20 == 10 { 5_000 } else { 98 };
        rig.publish(format!("\"{}\"", "x".repeat(size))).await;
    }
    rig.until_empty().await;
    assert_eq!(rig.worker.counts().0, 60);
    assert!(most.load(SeqCst) <= 1_100, "{} bytes at once", most.load(SeqCst));
    assert_eq!(beside_huge.load(SeqCst), 0, "a huge job had company");
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn neither_lane_starves() {
    let log = Log::default();
    let rig = {
        let log = log.clone();
        let job = move |args: serde_json::Value, cx: Context| {
            let log = log.clone();
            async move {
                log.lock().push((cx.topic().map_or(1, |_| 0), Instant::now(), args.to_string()));
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(())
            }
        };
        let mut setup = Setup::new(Registry::new().job("job", job));
        setup.queues = vec![("q", 4)];
        setup.start().await
    };
    let queue = QueueName::new("q").expect("valid");
    for n in 0..200 {
        rig.publish(format!("{n}")).await;
        let destination = Destination::Queue { queue: queue.clone(), job: None, not_before: None };
        rig.send(destination, Message { body: Some(format!("{n}").into()), ..Message::default() }).await;
    }
    rig.until_empty().await;
    let runs = log.lock().clone();
    assert_eq!(runs.len(), 400);
    for window in runs[..200].chunks(40) {
        let retry = window.iter().filter(|(lane, ..)| *lane == 1).count();
        assert!((10..=30).contains(&retry), "{retry} of {} were of the retry lane", window.len());
    }
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn keys_keep_their_order_whatever_fails() {
    let log = Log::default();
    let fail = |attempt| (attempt == 1).then(|| Error::retry("once", "once"));
    let mut setup = Setup::new(logging(&log, fail));
    setup.ordered = true;
    setup.policy.attempts = NonZeroU32::new(5).expect("not 0");
    let rig = setup.start().await;
    for n in 0..60 {
        rig.publish_key(format!("{n}"), Some(["a", "b", "c"][n % 3])).await;
    }
    rig.until_empty().await;
    let runs = log.lock().clone();
    assert_eq!(runs.len(), 120);
    for key in 0..3 {
        let seen: Vec<usize> =
            runs.iter().map(|(.., body)| body.parse().expect("a number")).filter(|n: &usize| n % 3 == key).collect();
        let mut sorted = seen.clone();
        sorted.sort_unstable();
        assert_eq!(seen, sorted, "each job's retry came before the key's next job");
    }
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_runs_and_gives_back_the_rest() {
    let log = Log::default();
    let rig = {
        let log = log.clone();
        let job = move |args: serde_json::Value, cx: Context| {
            let log = log.clone();
            async move {
                tokio::time::sleep(Duration::from_secs(10)).await;
                log.lock().push((cx.attempt(), Instant::now(), args.to_string()));
                Ok(())
            }
        };
        Setup::new(Registry::new().job("job", job)).start().await
    };
    for n in 0..20 {
        rig.publish(format!("{n}")).await;
    }
    rig.until("all slots to be busy", async |rig| rig.worker.running().len() == 4).await;
    let broker = rig.broker.clone();
    let took = rig.leave().await;
    assert!(took <= Duration::from_secs(11), "{took:?}");
    assert_eq!(log.lock().len(), 4);
    let status = broker.inspect().status(&[]).await.expect("status").remove(0);
    assert_eq!((status.ready, status.running), (Some(16), Some(0)));
}

#[tokio::test(start_paused = true)]
async fn what_outlives_the_grace_is_given_back_without_using_an_attempt() {
    let told = Arc::new(AtomicUsize::new(0));
    let rig = {
        let told = told.clone();
        let job = move |args: u32, cx: Context| {
            let told = told.clone();
            async move {
                if args == 0 {
                    cx.cancelled().await;
                    told.fetch_add(1, SeqCst);
                    return Err(Error::retry("cancelled", "cancelled"));
                }
                std::future::pending::<Result<(), Error>>().await
            }
        };
        let mut setup = Setup::new(Registry::new().job("job", job));
        setup.timeout = Duration::from_secs(3_600);
        setup.start().await
    };
    rig.publish("0").await;
    rig.publish("1").await;
    rig.until("both to run", async |rig| rig.worker.running().len() == 2).await;
    let broker = rig.broker.clone();
    let took = rig.leave().await;
    assert!(took >= Duration::from_secs(25) && took <= Duration::from_secs(28), "{took:?}");
    assert_eq!(told.load(SeqCst), 1);
    let status = broker.inspect().status(&[]).await.expect("status").remove(0);
    assert_eq!((status.ready, status.retrying, status.running), (Some(2), Some(0), Some(0)));
}

#[tokio::test(start_paused = true)]
async fn an_operator_pauses_and_resumes() {
    let log = Log::default();
    let rig = Setup::new(logging(&log, |_| None)).start().await;
    assert!(rig.worker.pause("q", None));
    assert!(!rig.worker.pause("unknown", None));
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.publish("1").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(log.lock().len(), 0);
    assert_eq!(rig.worker.queues()[0].paused, [Why::Operator]);
    assert!(rig.worker.resume("q"));
    rig.until_empty().await;
    assert_eq!(log.lock().len(), 1);
    assert!(rig.worker.pause("q", Some(Duration::from_secs(5))));
    // What arrives in the instant of the pause may still be taken.
    tokio::time::sleep(Duration::from_millis(300)).await;
    rig.publish("2").await;
    rig.until_empty().await;
    let runs = log.lock().clone();
    assert!(runs[1].1 - runs[0].1 >= Duration::from_secs(4), "the pause ended by itself");
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_job_is_put_back_and_then_a_dead_letter() {
    let log = Log::default();
    let rig = Setup::new(logging(&log, |_| None)).start().await;
    let queue = QueueName::new("q").expect("valid");
    let job = Some(JobName::new("newer").expect("valid"));
    let began = Instant::now();
    rig.send(
        Destination::Queue { queue, job, not_before: None },
        Message { body: Some("1".into()), ..Message::default() },
    )
    .await;
    let letter = rig.one_letter().await;
    assert_eq!((letter.reason, letter.attempts, letter.job.as_str()), (Reason::Unroutable, 0, "newer"));
    assert!(began.elapsed() >= Duration::from_secs(10));
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_overtaken_is_counted_once() {
    let lost = |events| Overtaken { place: "the stream orders, 4 to 6".to_owned(), events };
    let setup = Setup::new(logging(&Log::default(), |_| None));
    let setup = Setup {
        queues: vec![("overtaken", 4)],
        trouble: Troubled { overtaken: vec![lost(3), lost(2)], ..Troubled::default() },
        ..setup
    };
    let rig = setup.start().await;
    let counted = |count: u32| {
        crate::telemetry::exposition::render()
            .contains(&format!("windlass_lost_total{{queue=\"overtaken\"}} {count}\n"))
    };
    rig.until("the losses to be counted", async |_| counted(5)).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(counted(5), "each loss is said once");
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_settlement_that_was_not_stored_says_whose_it_was() {
    for (answer, queue) in [(Settled::Stale, "stale"), (Settled::Unconfirmed("cut off".to_owned()), "unconfirmed")] {
        let (_guard, lines) = log::capture("warn");
        let setup = Setup::new(logging(&Log::default(), |n| (n < 2).then(|| Error::retry("io", "no"))));
        let trouble = Troubled { settled: Some(answer), ..Troubled::default() };
        let rig = Setup { queues: vec![(queue, 4)], trouble, ..setup }.start().await;
        rig.publish("1").await;
        rig.until_empty().await;
        rig.leave().await;
        let lines = lines.lock();
        let of = |attempt: u32| {
            let said =
                |line: &&String| line.contains("\"settlement ") && line.contains(&format!("\"attempt\":{attempt}"));
            lines.iter().find(said).unwrap_or_else(|| panic!("nothing is said of attempt {attempt}: {lines:?}"))
        };
        for line in [of(1), of(2)] {
            assert!(line.contains("\"job\":\"job\"") && line.contains("\"event_id\":\"memory:t:1\""), "{line}");
        }
    }
}

/// With one lane that receives and others that start what it has just received.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lanes_on_several_threads_lose_no_count() {
    const JOBS: u64 = 4_000;
    let rig = Setup { queues: vec![("many", 8)], slots: 8, ..Setup::new(logging(&Log::default(), |_| None)) };
    let rig = rig.start().await;
    for chunk in 0..JOBS / 40 {
        for job in 0..40 {
            rig.publish(format!("{}", chunk * 40 + job)).await;
        }
        tokio::task::yield_now().await;
    }
    rig.until_empty().await;
    assert_eq!(rig.worker.counts().0, JOBS);
    assert_eq!(rig.worker.pool.admission(|admission| (admission.bytes(), admission.is_alone())), (0, true));
    rig.leave().await;
}
