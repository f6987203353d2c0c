//! The engine on `memory://`: no-op jobs with a typed argument and six headers, and jobs of 20 us, each beside a loop
//! that spawns a task for every job, in the same run. Prints one line a measurement; ratios are what to look at.
//!
//! `cargo bench --no-default-features --bench engine [-- JOBS] [noop]`

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::Semaphore;
use windlass::broker::{self, Broker, Destination, Options, Publication, Queue, Role, Start};
use windlass::client::Client;
use windlass::handler::{Registry, Shared};
use windlass::message::{Headers, JobName, Message, Namespace, QueueName, Topic};
use windlass::shutdown::Shutdown;
use windlass::time::Clock;
use windlass::worker::retry::Policy;
use windlass::worker::{Config, QueueConfig, Route, Routes, Worker};

const SLOTS: usize = 64;

#[derive(Deserialize)]
#[expect(dead_code, reason = "what is measured is reading them")]
struct Report {
    report_id: u64,
    timestamp: String,
    patient_id: String,
}

static DONE: AtomicU64 = AtomicU64::new(0);

async fn noop(_: Report) -> Result<(), windlass::Error> {
    DONE.fetch_add(1, Relaxed);
    Ok(())
}

async fn compute(_: Report) -> Result<(), windlass::Error> {
    burn(Duration::from_micros(20));
    DONE.fetch_add(1, Relaxed);
    Ok(())
}

fn burn(duration: Duration) {
    let until = Instant::now() + duration;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

fn message() -> Message {
    let pairs = [
        ("ce-specversion", "1.0"),
        ("ce-id", "0191f0c4-8f4e-7c3e-9a3b-2f8f1e6f7a11"),
        ("ce-source", "urn:laboratory"),
        ("ce-type", "reports.finalized"),
        ("ce-time", "2026-11-21T10:00:00.000Z"),
        ("ce-datacontenttype", "application/json"),
    ];
    let headers: Headers = pairs.into_iter().collect();
    let body = r#"{"report_id":17,"timestamp":"2026-11-21T10:00:00.000Z","patient_id":"p-0042","pad":"PAD"}"#
        .replace("PAD", &"x".repeat(110));
    Message { headers, body: Some(body.into()), key: None }
}

fn cpu() -> f64 {
    // SAFETY: getrusage writes only the struct that it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

struct Figure {
    per_s: f64,
    cpu_per_1k: f64,
}

async fn windlass(jobs: u64, registry: Registry) -> Figure {
    let name = QueueName::new("q").expect("valid");
    let spec = Queue {
        name: name.clone(),
        topics: vec![Topic::new("t").expect("valid")],
        job: JobName::new("job").expect("valid"),
        slots: NonZeroUsize::new(SLOTS).expect("not 0"),
        ordered: false,
        start: Start::Earliest,
        max_crashes: 3,
        keep_dead: None,
    };
    let namespace = Namespace::new("bench").expect("valid");
    let options = Options {
        namespace: namespace.clone(),
        namespace_set: true,
        role: Role::Worker,
        timeout: Duration::from_secs(5),
        lease: Duration::from_secs(30),
        grace: Duration::from_secs(25),
        queues: vec![spec.clone()],
        worker: "bench".into(),
        clock: Clock::System,
        sqlite: Default::default(),
        nats: Default::default(),
        kafka: Default::default(),
    };
    let broker: Arc<dyn Broker> = broker::connect("memory://", options).await.expect("memory");
    // As many messages as a reader would have at hand, each with buffers of its own: one shared by all jobs would
    // measure its reference count, millions of them the memory.
    let messages: Vec<Message> = (0..4_096).map(|_| message()).collect();
    let publication = |message: &Message| Publication {
        destination: Destination::Topic(Topic::new("t").expect("valid")),
        message: message.clone(),
        id: "1".to_owned(),
        allow_unheard: false,
    };
    for batch in 0..jobs / 1_000 {
        let from = messages.iter().cycle().skip(batch as usize * 1_000 % messages.len());
        broker.publisher().publish(from.take(1_000).map(publication).collect()).await;
    }
    let entry = registry.get("job").expect("registered");
    let policy = Policy::default();
    let shared = Arc::new(Shared {
        queue: name,
        job: spec.job.clone(),
        attempts: policy.attempts.get(),
        client: Client::new(broker.publisher(), namespace),
        state: Default::default(),
    });
    let route = Route::new(entry.handler, entry.threading, Duration::from_secs(300), policy, shared);
    let queue = QueueConfig {
        weight: 1,
        unroutable_after: Duration::from_secs(900),
        routes: Routes::new(&spec.job, vec![route]).expect("registered"),
        opened: broker.open(&spec).await.expect("memory"),
        spec,
    };
    let config = Config {
        slots: NonZeroUsize::new(SLOTS).expect("not 0"),
        bytes_in_flight: 256 << 20,
        grace: Duration::from_secs(25),
        lease: Duration::from_secs(30),
        lanes: None,
    };
    let shutdown = Shutdown::default();
    let worker = Worker::new(config, vec![queue], shutdown.clone(), Clock::System);
    DONE.store(0, Relaxed);
    let (began, cpu_began) = (Instant::now(), cpu());
    let working = worker.clone();
    let io = tokio::runtime::Handle::current();
    let run = tokio::spawn(async move { working.run(broker, &io).await });
    while worker.counts().0 < jobs {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (took, cpu_took) = (began.elapsed().as_secs_f64(), cpu() - cpu_began);
    assert_eq!(DONE.load(Relaxed), jobs, "each job ran once");
    shutdown.drain();
    run.await.expect("no panic");
    Figure { per_s: jobs as f64 / took, cpu_per_1k: cpu_took / jobs as f64 * 1e3 }
}

/// What anybody would write first: a permit and a task for each job.
async fn spawned(jobs: u64, work: fn()) -> Figure {
    let slots = Arc::new(Semaphore::new(SLOTS));
    let body = message().body.expect("a body");
    let (began, cpu_began) = (Instant::now(), cpu());
    for _ in 0..jobs {
        let permit = slots.clone().acquire_owned().await.expect("open");
        let body = body.clone();
        tokio::spawn(async move {
            let _report: Report = serde_json::from_slice(&body).expect("JSON");
            work();
            drop(permit);
        });
    }
    let _all = slots.acquire_many(SLOTS as u32).await.expect("open");
    let (took, cpu_took) = (began.elapsed().as_secs_f64(), cpu() - cpu_began);
    Figure { per_s: jobs as f64 / took, cpu_per_1k: cpu_took / jobs as f64 * 1e3 }
}

fn report(what: &str, ours: &Figure, other: &Figure) {
    println!(
        "{what}: {:.0} jobs/s, {:.5} CPU-s per 1,000; a task each: {:.0} jobs/s, {:.5}; ratio {:.2}",
        ours.per_s,
        ours.cpu_per_1k,
        other.per_s,
        other.cpu_per_1k,
        ours.per_s / other.per_s
    );
}

fn main() {
    let jobs = std::env::args().skip(1).find_map(|text| text.parse().ok()).unwrap_or(2_000_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for _ in 0..3 {
            let ours = tokio::spawn(windlass(jobs, Registry::new().job("job", noop))).await.expect("no panic");
            let other = tokio::spawn(spawned(jobs / 4, || {})).await.expect("no panic");
            report("no-op", &ours, &other);
        }
        if std::env::args().any(|text| text == "noop") {
            return;
        }
        for _ in 0..3 {
            let ours = tokio::spawn(windlass(jobs / 10, Registry::new().job("job", compute))).await.expect("no panic");
            let other = tokio::spawn(spawned(jobs / 10, || burn(Duration::from_micros(20)))).await.expect("no panic");
            report("20 us", &ours, &other);
        }
    });
}
