//! Model against reality: the same schedules on the simulated broker and on real ones.
//!
//! Without faults what a job goes through is settled by what its handler does and by the policy: which attempts run, in
//! which order, how each ends, and whether a dead letter is left and why. What a real broker made of it must be what the
//! simulated one allows. (With faults the real one is judged by the ledger; see `tests/ledger`.)

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::time::Instant;
use windlass::app::{self, RunOptions};
use windlass::broker::{self, Broker, Destination, LetterQuery, Publication, Role};
use windlass::message::{Message, QueueName, Topic};
use windlass::shutdown::Shutdown;
use windlass::time::Clock;
use windlass::{App, Registry};

use super::broker::Connection;
use super::chance::Chance;
use super::job::{self, Job};
use super::schedule::{Act, Schedule, To};
use super::site::{self, QUEUES};
use super::world::{World, wall};
use crate::ledger::judge;
use crate::ledger::record::{Record, What};

/// What became of each job of each queue: how each run ended, by attempt, and its dead letters.
type Fates = BTreeMap<(u64, String), (Vec<(u32, What)>, Vec<(String, u32)>)>;

/// The schedules of these seeds, without what real brokers are not asked to do here.
fn schedules(seeds: std::ops::Range<u64>) -> impl Iterator<Item = Schedule> {
    seeds.map(|seed| {
        let mut schedule = Schedule::from_seed(seed);
        (schedule.mischief, schedule.shape.workers) = (0, 1);
        schedule.faults.clear();
        schedule.shape.over_credit = false;
        // A lease that is as long as a real worker's; nobody loses one here.
        schedule.shape.lease = Duration::from_secs(30);
        for job in &mut schedule.jobs {
            (job.at, job.size) = (0, 0);
            if matches!(job.act, Act::Crashes(_) | Act::Expired | Act::DiesHard(_)) {
                job.act = Act::Succeeds(1);
            }
        }
        schedule
    })
}

fn fates(records: &[Record], letters: &[judge::Letter]) -> Fates {
    let mut fates = Fates::new();
    for record in records.iter().filter(|record| record.what != What::Start) {
        let fate = fates.entry((record.job, record.queue.clone())).or_default();
        fate.0.push((record.attempt, record.what));
    }
    for letter in letters {
        let fate = fates.entry((letter.number, letter.queue.clone())).or_default();
        fate.1.push((letter.reason.clone(), letter.attempts));
    }
    fates
}

/// What the simulated broker makes of it.
fn simulated(schedule: &Schedule) -> Fates {
    let outcome = site::play(schedule, false);
    assert!(outcome.broken.is_empty(), "{schedule}{outcome}");
    fates(&outcome.records, &outcome.letters)
}

/// What the broker at `address` makes of it.
async fn real(schedule: &Schedule, address: &str, clock: Clock) -> Fates {
    let shape = &schedule.shape;
    let mut config = site::configuration(shape);
    config.broker = address.to_owned();
    let options = broker::Options { clock: clock.clone(), ..app::options(&config, Role::Worker) };
    let broker = broker::connect(address, options).await.expect("it can be reached");
    // Only what handlers write is asked of this world: it holds no message.
    let world = Arc::new(Mutex::new(World::new(schedule.clone(), Chance::seeded(0, 0), false)));
    world.lock().start(0, 0);
    let connection = Connection::new(world.clone(), 0, 0);
    let registry = Registry::new().handler("job", Arc::new(Job(connection.clone())));
    let app = App::new(config, registry).with(RunOptions { lanes: None, ..RunOptions::default() });
    let shutdown = Shutdown::default();
    let worker = app.worker(&*broker, &shutdown, clock.clone()).await.expect("it opens");
    publish(schedule, &*broker, &clock).await;
    let (working, on) = (worker.clone(), broker.clone());
    let running = tokio::spawn(async move { working.run(on, &tokio::runtime::Handle::current()).await });
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = broker.inspect().status(&[]).await.expect("it says what it holds");
        let left = |queue: &broker::QueueStatus| {
            [queue.ready, queue.running, queue.retrying, queue.scheduled].into_iter().flatten().sum::<u64>()
        };
        if status.iter().map(left).sum::<u64>() == 0 && worker.is_idle() {
            break;
        }
        assert!(Instant::now() < deadline, "{address} has not ended after a minute: {status:?}\n{schedule}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let letters = letters(&*broker).await;
    shutdown.drain();
    running.await.expect("the worker leaves");
    broker.close().await;
    let records = std::mem::take(&mut world.lock().records);
    fates(&records, &letters)
}

async fn publish(schedule: &Schedule, broker: &dyn Broker, clock: &Clock) {
    let mut batch = Vec::new();
    for job in &schedule.jobs {
        let destination = match job.to {
            To::T => Destination::Topic(Topic::new("t").expect("a topic")),
            To::U => Destination::Topic(Topic::new("u").expect("a topic")),
            To::Queue(queue, delay) => Destination::Queue {
                queue: QueueName::new(QUEUES[queue]).expect("a name"),
                job: (job.act == Act::Unroutable).then(|| "nobody".parse().expect("a name")),
                not_before: (delay > 0).then(|| clock.now().after(Duration::from_millis(delay))),
            },
        };
        let key = job.key.map(|key| bytes::Bytes::from(vec![b'k', key]));
        let message = Message { headers: Default::default(), body: Some(job.body().into()), key };
        batch.push(Publication { destination, message, id: format!("L{}", job.number), allow_unheard: false });
    }
    for published in broker.publisher().publish(batch).await {
        published.expect("it is stored");
    }
}

async fn letters(broker: &dyn Broker) -> Vec<judge::Letter> {
    let dead = broker.dead_letters();
    let listed = dead.list(LetterQuery { oldest_first: true, ..LetterQuery::default() });
    let letters = listed.map(|letter| {
        let letter = letter.expect("letters can be listed");
        let body = letter.message.body.as_deref().unwrap_or_default().to_vec();
        judge::Letter {
            number: job::number(&body).expect("a payload of ours"),
            queue: letter.queue.to_string(),
            reason: letter.reason.as_str().to_owned(),
            attempts: letter.attempts,
            replays: letter.record.replays,
            body,
        }
    });
    letters.collect().await
}

#[test]
fn the_memory_broker_does_what_the_simulated_one_allows() {
    for schedule in schedules(0..150) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let made = runtime.expect("a runtime").block_on(async {
            let clock = Clock::Tokio { base: wall(0), since: Instant::now() };
            real(&schedule, "memory://", clock).await
        });
        assert_eq!(made, simulated(&schedule), "{schedule}");
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn the_embedded_queue_does_what_the_simulated_one_allows() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let played = runtime.expect("a runtime").block_on(async {
        let mut playing = tokio::task::JoinSet::new();
        for mut schedule in schedules(0..24) {
            // A slow machine must not make an attempt that ends look like one that does not.
            schedule.shape.timeout = Duration::from_secs(2);
            playing.spawn(async move {
                let folder = tempfile::tempdir().expect("a folder");
                let address = format!("sqlite://{}/jobs.db", folder.path().display());
                (real(&schedule, &address, Clock::System).await, schedule)
            });
        }
        playing.join_all().await
    });
    for (made, schedule) in played {
        assert_eq!(made, simulated(&schedule), "{schedule}");
    }
}

/// Schedules one after the other, each on a server of its own.
#[cfg(any(feature = "nats", feature = "kafka"))]
fn on<S: crate::conformance::subject::Subject>(seeds: std::ops::Range<u64>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    for mut schedule in schedules(seeds) {
        let Some(subject) = S::fresh() else { return };
        schedule.shape.timeout = Duration::from_secs(2);
        for job in &mut schedule.jobs {
            // A key is text there.
            job.key = None;
        }
        let made = runtime.block_on(real(&schedule, &subject.address(), Clock::System));
        assert_eq!(made, simulated(&schedule), "{schedule}");
    }
}

#[cfg(feature = "nats")]
#[test]
fn nats_does_what_the_simulated_one_allows() {
    on::<crate::conformance::subject::Nats>(0..if crate::support::tool::full() { 40 } else { 4 });
}

#[cfg(feature = "kafka")]
#[test]
fn kafka_does_what_the_simulated_one_allows() {
    if crate::support::tool::full() {
        on::<crate::conformance::subject::Kafka>(0..8);
    }
}
