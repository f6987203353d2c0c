//! The worker, on a queue in memory.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::JoinHandle;

use super::run::{Log, Run};
use super::sent::{Outbox, Sent};
use crate::app::{self, App, Tally};
use crate::broker::{self, Broker, Letter, LetterQuery, Options, Role, Timetable};
use crate::client::{Client, Draft, ToQueue, ToTopic};
use crate::config::{self, Source};
use crate::handler::{Registry, http};
use crate::message::{JobName, QueueName};
use crate::shutdown::Shutdown;
use crate::time::{Clock, Stopped, Timestamp};
use crate::worker;
use crate::worker::handle::Control;

/// A worker on `memory://` whose clock stands still; see the [module](super).
///
/// It runs on the test's own runtime, beside the test. Handlers run in real time, so that real databases and servers
/// can be used: timeouts and leases are those of the machine's clock, and only due times (retries, snoozes, what was
/// enqueued for later) go by the clock that stands still. Retry delays have no jitter here.
///
/// Methods panic where a test should fail, and say why.
pub struct Worker {
    broker: Arc<dyn Broker>,
    timetable: Timetable,
    clock: Stopped,
    began: Timestamp,
    client: Client,
    worker: worker::Worker,
    shutdown: Shutdown,
    running: JoinHandle<()>,
    outbox: Outbox,
    log: Log,
    /// What was told of what came of the jobs: done, retried, dead.
    told: Mutex<(u64, u64, u64)>,
}

/// How long a drain waits, in real time, for handlers to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of real time, between two looks, at most.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A drain that runs more often than this has a job that never comes to its end.
const MOST_RUNS: usize = 100_000;

impl Worker {
    /// Starts a worker with these jobs and this configuration, which is TOML as in `windlass.toml`; its `broker` is not
    /// looked at. Must be called within a tokio runtime.
    ///
    /// # Panics
    /// Where the configuration has faults (each is told), or names a job that is not registered.
    pub async fn start(configuration: &str, registry: Registry) -> Self {
        let source = Source::new().text("the test's configuration", configuration);
        let loaded = config::load(source.flag("the test kit", "broker", "memory://"));
        let mut config = loaded.unwrap_or_else(|faults| panic!("{faults}")).config;
        config::check_run(&config, &[], &|job| registry.get(job).is_some()).unwrap_or_else(|faults| panic!("{faults}"));

        // A job's own word comes before all others.
        let mut registry = registry;
        for job in registry.names() {
            let job = JobName::new(&job).expect("a registered job has a job's name");
            config.jobs.entry(job).or_default().retry.jitter = Some(0.0);
        }
        for (name, job) in &mut config.jobs {
            job.retry.jitter = Some(0.0);
            if let Some(http) = job.http.take() {
                let handler = http::handler(&http).unwrap_or_else(|error| panic!("jobs.{name}: {error}"));
                registry = registry.replace(name, handler);
            }
        }
        let began = Clock::System.now();
        let clock = Stopped::at(began);
        let shown = Clock::Stopped(clock.clone());
        let log = Log::default();
        let registry = registry.wrapped(|handler| log.around(handler, clock.clone()));

        let options = Options { clock: shown.clone(), ..app::options(&config, Role::Worker) };
        let (broker, timetable) = broker::connect_with_timetable("memory://", options);
        let outbox = Outbox::before(Some(broker.publisher()), shown.clone());
        let watched = outbox.watching(broker.clone());
        let shutdown = Shutdown::default();
        let client = Client::new(broker.publisher(), config.namespace.clone()).with_clock(shown.clone());
        let app = App::new(config, registry);
        let worker = app.worker(&*watched, &shutdown, shown).await.unwrap_or_else(|error| panic!("{error}"));
        let working = worker.clone();
        let running = tokio::spawn(async move { working.run(watched, &tokio::runtime::Handle::current()).await });
        let told = Mutex::default();
        Self { broker, timetable, clock, began, client, worker, shutdown, running, outbox, log, told }
    }

    /// An event for every queue that hears `topic`: await it, or say more of it before, such as its id.
    pub fn publish<T: Serialize + ?Sized>(&self, topic: &str, data: &T) -> Draft<'_, ToTopic> {
        self.client.publish(topic, data)
    }

    /// A job for one queue: await it, or say more of it before, such as when.
    pub fn enqueue<T: Serialize + ?Sized>(&self, queue: &str, job: &str, data: &T) -> Draft<'_, ToQueue> {
        self.client.enqueue(queue, job, data)
    }

    /// The client of the test itself, for whatever else is to be sent (bytes that are no JSON, many at once).
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The broker, to look at whatever the rest does not show.
    pub fn broker(&self) -> &dyn Broker {
        &*self.broker
    }

    /// Runs everything to its end: jumps to each retry, snooze and job enqueued for later when it is due, until nothing
    /// waits any more. Gives what came of all that since the last time that it was told.
    ///
    /// # Panics
    /// Where a handler has not ended after a minute of real time, or a job never comes to its end.
    pub async fn drain(&self) -> Tally {
        self.until(None).await
    }

    /// Runs what is due now; the clock stands still.
    ///
    /// # Panics
    /// As [`Worker::drain`].
    pub async fn work(&self) -> Tally {
        self.until(Some(self.clock.now())).await
    }

    /// Lets so much time pass, and runs what becomes due on the way, each when it does.
    ///
    /// # Panics
    /// As [`Worker::drain`].
    pub async fn advance(&self, by: Duration) -> Tally {
        self.until(Some(self.clock.now().after(by))).await
    }

    /// What the clock shows.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Attempts that ended in success, of this queue, in the order in which they began.
    pub fn done(&self, queue: &str) -> Vec<Run> {
        let mut runs = self.runs(queue);
        runs.retain(|run| matches!(run.result, Some(Ok(_))));
        runs
    }

    /// Every attempt of this queue, in the order in which they began.
    pub fn runs(&self, queue: &str) -> Vec<Run> {
        let mut runs = self.log.all(self.began);
        runs.retain(|run| run.queue == queue);
        runs
    }

    /// The dead letters of this queue, oldest first.
    ///
    /// # Panics
    /// Where there is no such queue.
    pub async fn dead(&self, queue: &str) -> Vec<Letter> {
        let queue = QueueName::new(queue).unwrap_or_else(|error| panic!("{error}"));
        let query = LetterQuery { queue: Some(queue), oldest_first: true, ..LetterQuery::default() };
        let letters = self.broker.dead_letters().list(query).try_collect().await;
        letters.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What the jobs published and enqueued, in order; not what the test did.
    pub fn sent(&self) -> Vec<Sent> {
        self.outbox.sent()
    }

    /// That a job enqueued `job` for `queue` with exactly this argument, whether it has run since or not.
    ///
    /// # Panics
    /// Where none did, with what was sent instead.
    #[track_caller]
    pub fn assert_enqueued<T: Serialize + ?Sized>(&self, queue: &str, job: &str, data: &T) {
        self.outbox.assert_enqueued(queue, job, data);
    }

    /// That a job published an event to `topic` with exactly this data.
    ///
    /// # Panics
    /// Where none did, with what was sent instead.
    #[track_caller]
    pub fn assert_published<T: Serialize + ?Sized>(&self, topic: &str, data: &T) {
        self.outbox.assert_published(topic, data);
    }

    /// Works, and moves the clock from due time to due time: up to `end`, or as far as there are any.
    async fn until(&self, end: Option<Timestamp>) -> Tally {
        let most = self.log.len() + MOST_RUNS;
        loop {
            self.rest().await;
            assert!(self.log.len() < most, "more than {MOST_RUNS} attempts: {}", self.log.last());
            match self.timetable.next().filter(|due| end.is_none_or(|end| *due <= end)) {
                Some(due) => self.clock.move_to(due),
                None => break,
            }
        }
        if let Some(end) = end {
            self.clock.move_to(end);
        }
        let (done, retried, dead) = self.worker.counts();
        let before = std::mem::replace(&mut *self.told.lock(), (done, retried, dead));
        Tally { done: done - before.0, retried: retried - before.1, dead: dead - before.2 }
    }

    /// Resolves when nothing runs, and nothing could.
    async fn rest(&self) {
        let began = std::time::Instant::now();
        let (mut looks, mut pause) = (0, Duration::from_millis(1));
        let mut counted = None;
        loop {
            assert!(!self.running.is_finished(), "the worker has ended; a panic of its own is above");
            let resting = self.timetable.is_at_rest() && self.worker.is_idle();
            // What was settled an instant ago may not be counted yet.
            let counts = resting.then(|| self.worker.counts());
            if resting && counts == counted {
                return;
            }
            counted = counts;
            let waited = began.elapsed() > PATIENCE;
            assert!(!waited, "after {} s these still run: {:?}", PATIENCE.as_secs(), self.worker.running());
            looks += 1;
            if looks < 64 {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_EVERY);
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The test is over: nothing of it goes on.
        self.shutdown.drain();
        self.shutdown.work.cancel();
        self.running.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::{Context, Error};
    use crate::message::Reason;

    async fn fails(until: u32, cx: Context) -> Result<u32, Error> {
        if cx.attempt() < until { Err(Error::retry("io", "not yet")) } else { Ok(cx.attempt()) }
    }

    fn seconds(runs: &[Run]) -> Vec<u64> {
        runs.iter().map(|run| run.after.as_secs()).collect()
    }

    #[tokio::test]
    async fn a_drain_jumps_over_hours_of_retries() {
        let text = "queues.q = { topics = ['t'], job = 'fails', retry = { attempts = 20 } }";
        let worker = Worker::start(text, Registry::new().job("fails", fails)).await;
        worker.publish("t", &99).id("never").await.expect("published");
        assert_eq!(worker.drain().await, Tally { done: 0, retried: 19, dead: 1 });
        let after = seconds(&worker.runs("q"));
        assert_eq!((after.len(), &after[..5]), (20, &[0, 1, 3, 7, 15][..]));
        assert!((7 * 3_600..9 * 3_600).contains(&after[19]), "{after:?}");
        let dead = worker.dead("q").await;
        assert_eq!(
            (dead[0].reason, dead[0].attempts, dead[0].event_id.as_deref()),
            (Reason::Exhausted, 20, Some("never"))
        );
        assert!(worker.done("q").is_empty());
    }

    #[tokio::test]
    async fn time_passes_when_it_is_told_to() {
        async fn tick((): (), cx: Context) -> Result<(), Error> {
            if cx.attempt() == 1 && cx.event_id() == "snoozes" && cx.event().attribute("woken").is_none() {
                return Err(Error::snooze(Duration::from_secs(600)));
            }
            Ok(())
        }
        let worker = Worker::start("queues.q.job = 'tick'", Registry::new().job("tick", tick)).await;
        worker.enqueue("q", "tick", &()).id("later").in_(Duration::from_secs(3_600)).await.expect("enqueued");
        worker.enqueue("q", "tick", &()).id("now").await.expect("enqueued");
        assert_eq!(worker.work().await, Tally { done: 1, ..Tally::default() });
        assert_eq!(worker.advance(Duration::from_secs(3_599)).await, Tally::default());
        assert_eq!(worker.advance(Duration::from_secs(1)).await, Tally { done: 1, ..Tally::default() });
        worker.enqueue("q", "tick", &()).id("snoozes").await.expect("enqueued");
        worker.work().await;
        worker.advance(Duration::from_secs(1_800)).await;
        let snoozed: Vec<Run> = worker.runs("q").into_iter().filter(|run| run.event_id == "snoozes").collect();
        assert_eq!(seconds(&snoozed), [3_600, 4_200, 4_800, 5_400]);
        assert!(snoozed.iter().all(|run| run.attempt == 1));
    }

    #[tokio::test]
    async fn a_key_keeps_its_order_over_retries() {
        async fn once(number: u32, cx: Context) -> Result<u32, Error> {
            if number == 1 && cx.attempt() < 3 { Err(Error::retry("io", "not yet")) } else { Ok(number) }
        }
        let text = "queues.q = { topics = ['t'], job = 'once', order = 'key' }";
        let worker = Worker::start(text, Registry::new().job("once", once)).await;
        for number in 1..=3 {
            worker.publish("t", &number).key("k").await.expect("published");
        }
        assert_eq!(worker.drain().await, Tally { done: 3, retried: 2, dead: 0 });
        let results: Vec<_> = worker.done("q").into_iter().filter_map(|run| run.result?.ok()).collect();
        assert_eq!(results, [1, 2, 3]);
    }

    #[tokio::test]
    async fn blocking_jobs_panics_and_built_in_jobs_are_seen() {
        fn panics(_: serde_json::Value) -> Result<(), Error> {
            panic!("no")
        }
        let text = "queues.p = { topics = ['t'], job = 'panics', retry = { attempts = 1 } }\n\
                    queues.s = { topics = ['t'], job = 'sleep' }";
        let worker = Worker::start(text, Registry::new().blocking("panics", panics)).await;
        worker.publish("t", "1ms").await.expect("published");
        worker.client().publish_bytes("t", &b"\xff\xfe"[..]).content_type("application/json").await.expect("published");
        worker.drain().await;
        let results: Vec<_> = worker.runs("p").into_iter().map(|run| run.result).collect();
        assert!(results.contains(&None), "a panic returns nothing: {results:?}");
        assert!(results.iter().flatten().all(|result| result.is_err()), "{results:?}");
        let reasons = |dead: Vec<Letter>| dead.iter().map(|letter| letter.reason).collect::<Vec<_>>();
        let mut dead = reasons(worker.dead("p").await);
        dead.sort_by_key(|reason| reason.as_str());
        assert_eq!(dead, [Reason::Exhausted, Reason::Malformed]);
        assert_eq!((worker.done("s").len(), reasons(worker.dead("s").await)), (1, vec![Reason::Malformed]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_on_two_threads_are_all_counted() {
        let worker =
            Worker::start("queues.q = { topics = ['t'], job = 'fails' }", Registry::new().job("fails", fails)).await;
        for number in 0..500 {
            worker.publish("t", &(number % 3)).await.expect("published");
        }
        assert_eq!(worker.drain().await, Tally { done: 500, retried: 166, dead: 0 });
    }

    #[tokio::test]
    #[should_panic(expected = "queues.q.job: job \"nothing\" is not compiled in")]
    async fn a_job_that_is_missing_is_told() {
        Worker::start("queues.q.job = 'nothing'", Registry::new()).await;
    }

    #[tokio::test]
    #[should_panic(expected = "max_retries")]
    async fn a_fault_of_the_configuration_is_told() {
        Worker::start("queues.q = { job = 'log', max_retries = 3 }", Registry::new()).await;
    }
}
