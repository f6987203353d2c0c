//! Config -> build -> App -> run; the only file that knows every module.

use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};

use crate::admin;
use crate::broker::{self, Broker, Inspect, Opened, Options, Queue, QueueStatus, Role};
use crate::client::Client;
use crate::config::{self, Config};
use crate::handler::{Registry, Shared, http};
use crate::message::{JobName, QueueName};
use crate::process;
use crate::seeded;
use crate::shutdown::Shutdown;
#[cfg(target_os = "linux")]
use crate::systemd;
use crate::telemetry::{events, log};
use crate::time::{Clock, Timestamp};
use crate::worker::handle::Control;
use crate::worker::{self, QueueConfig, Route, Routes, Worker};

/// What keeps an application from starting or ended it early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker.
    #[error("{0}")]
    Broker(#[from] broker::Error),
    /// The admin port.
    #[error("{0}")]
    Admin(#[from] admin::Error),
    /// A person must change something; exit code 78.
    #[error("{0}")]
    Config(String),
    /// The system refused a thread or a signal handler.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
}

impl Error {
    /// The exit code of INTERFACE 5.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Broker(error) => error.exit_code(),
            Self::Admin(error) => error.exit_code(),
            Self::Config(_) => 78,
            Self::System(_) => 69,
        }
    }
}

/// From the end of the grace until a broker has been said goodbye to: with the process's own end, under 3 s.
const LEAVE_WITHIN: Duration = Duration::from_millis(2_800);
/// How long a broker is given at least.
const CLOSE_WITHIN: Duration = Duration::from_millis(900);
/// The same after a second signal: with what the worker takes, under 200 ms.
const CLOSE_FORCED_WITHIN: Duration = Duration::from_millis(60);

/// The broker options that a configuration says, for a process in this role.
pub fn options(config: &Config, role: Role) -> Options {
    Options {
        namespace: config.namespace.clone(),
        namespace_set: config.namespace_set,
        role,
        timeout: Duration::from_secs(5),
        lease: config.worker.lease,
        grace: config.worker.grace,
        queues: config.queues.keys().map(|name| queue(config, name)).collect(),
        worker: log::worker_name().into(),
        clock: Clock::System,
        sqlite: config.sqlite.clone(),
        nats: config.nats.clone(),
        kafka: config.kafka.clone(),
    }
}

fn queue(config: &Config, name: &QueueName) -> Queue {
    let of = &config.queues[name];
    Queue {
        name: name.clone(),
        topics: of.topics.clone(),
        job: of.job.clone(),
        slots: config.slots(name),
        ordered: of.ordered && !seeded::bug("order-ignored"),
        start: of.start,
        max_crashes: of.max_crashes,
        keep_dead: of.keep_dead,
    }
}

/// Connects to the configured broker in this role. Must be called within a tokio runtime, which the broker's own
/// tasks live on.
pub async fn connect(config: &Config, role: Role) -> Result<Arc<dyn Broker>, broker::Error> {
    broker::connect(&config.broker, options(config, role)).await
}

/// What a worker did, for `run --burst`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Jobs done.
    pub done: u64,
    /// Attempts that will be made again.
    pub retried: u64,
    /// Dead letters.
    pub dead: u64,
}

/// How a worker runs beside what its configuration says.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Only these queues; all where empty.
    pub queues: Vec<QueueName>,
    /// Leave once nothing is ready, running or to be retried within this time.
    pub burst: Option<Duration>,
    /// How long one request to the broker may take; 5 s where nobody says.
    pub timeout: Option<Duration>,
    /// `--from`: where a queue without a place of its own begins (seen for the first time, or its offsets have
    /// expired), whatever its `start` says.
    pub from: Option<broker::Start>,
    /// Tasks of a queue that receive, start and settle; one for each core where nobody says.
    pub lanes: Option<NonZeroUsize>,
}

/// An application: a checked configuration and its jobs.
pub struct App {
    config: Config,
    registry: Registry,
    options: RunOptions,
    broker: Option<Arc<dyn Broker>>,
}

impl App {
    /// Takes a configuration and the jobs compiled in; those of `[jobs]` that run over HTTP are added to them.
    pub fn new(config: Config, registry: Registry) -> Self {
        Self { config, registry, options: RunOptions::default(), broker: None }
    }

    /// With these options.
    #[must_use]
    pub fn with(mut self, options: RunOptions) -> Self {
        self.options = options;
        self
    }

    /// On a broker that is connected already, as a worker with the options of this configuration; it is closed at the
    /// end. The only way to share a `memory://`.
    #[must_use]
    pub fn on(mut self, broker: Arc<dyn Broker>) -> Self {
        self.broker = Some(broker);
        self
    }

    /// Works until `shutdown` says to leave, a signal comes, or the burst is over. Blocks this thread; makes its own
    /// runtimes: one for handlers, one for broker I/O and leases, one thread for the admin port.
    pub fn run(self, shutdown: Shutdown) -> Result<Tally, Error> {
        self.run_with(shutdown, true)
    }

    /// Works until `signal` resolves, then drains: for embedding a worker in a program of your own, which keeps its
    /// own signal handling. Runs on threads of its own.
    pub async fn run_until(self, signal: impl Future<Output = ()>) -> Result<Tally, Error> {
        let shutdown = Shutdown::default();
        let (ended, mut end) = tokio::sync::oneshot::channel();
        let working = shutdown.clone();
        std::thread::Builder::new().name("windlass".to_owned()).spawn(move || {
            // Nobody waits any more where the receiver is gone: the program leaves.
            let _ = ended.send(self.run_with(working, false));
        })?;
        // An end by itself first: it is what there is to answer.
        tokio::select! {
            biased;
            end = &mut end => return end.unwrap_or_else(|_| Err(Error::Config("the worker panicked".to_owned()))),
            () = signal => shutdown.drain(),
        }
        end.await.unwrap_or_else(|_| Err(Error::Config("the worker panicked".to_owned())))
    }

    fn run_with(self, shutdown: Shutdown, signals: bool) -> Result<Tally, Error> {
        config::check_run(&self.config, &self.options.queues, &|job| self.registry.get(job).is_some())
            .map_err(|faults| Error::Config(faults.to_string()))?;
        let registry = self.registry_with_http()?;
        process::raise_file_limit();
        let io = runtime("windlass-io", 1, 4)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let work = runtime("windlass-work", cores, self.config.worker.slots.get() + 64)?;
        let result = self.work(&registry, &shutdown, signals, &io, &work);
        // Whatever still runs in there was given back; nothing of it may keep the process.
        work.shutdown_background();
        io.shutdown_background();
        result
    }

    fn work(
        &self,
        registry: &Registry,
        shutdown: &Shutdown,
        signals: bool,
        io: &Runtime,
        work: &Runtime,
    ) -> Result<Tally, Error> {
        if signals {
            let _within = io.enter();
            shutdown.listen(self.config.worker.grace)?;
        }
        let jobs = self.config.queues.iter().map(|(name, queue)| (name.clone(), queue.job.clone())).collect();
        let context = admin::Context::new(self.config.namespace.clone(), jobs, shutdown.clone());
        // Dropped last: `/health` answers to the end.
        let _admin = admin::start(&self.config.admin, context.clone())?;
        let connected = match &self.broker {
            Some(broker) => Some(broker.clone()),
            None => io.block_on(self.connect_patiently(shutdown))?,
        };
        let Some(broker) = connected else { return Ok(Tally::default()) };
        context.set_broker(broker.clone());
        let worker = io.block_on(self.worker_with(registry, &*broker, shutdown, Clock::System))?;
        context.set_worker(Arc::new(worker.clone()));
        let names: Vec<QueueName> = worker.queues().into_iter().map(|queue| queue.name).collect();
        let slots = self.config.worker.slots.get();
        events::WorkerStarted { broker: broker.address(), queues: names.len(), slots }.emit();
        #[cfg(target_os = "linux")]
        if let Some(manager) = systemd::Manager::from_environment()?.filter(|_| signals) {
            let working = worker.clone();
            io.spawn(manager.keep(move || working.queues().iter().all(|queue| queue.consuming), shutdown.clone()));
        }
        #[cfg(target_os = "linux")]
        if signals {
            // The process is ours alone.
            io.spawn(process::forget_start());
        }
        if let Some(linger) = self.options.burst {
            io.spawn(end_burst(worker.clone(), broker.inspect(), names, linger, shutdown.clone()));
        }
        let grace_over = io.spawn({
            let over = shutdown.work.clone();
            async move {
                over.cancelled().await;
                Instant::now()
            }
        });
        work.block_on(worker.run(broker.clone(), io.handle()));
        let (done, retried, dead) = worker.counts();
        io.block_on(async {
            // A drain ends the grace. Where nothing had to be given back there is time for all that a broker has under way,
            // such as requests that its server holds for a second.
            let since = grace_over.await.unwrap_or_else(|_| Instant::now());
            let within = CLOSE_WITHIN.max(LEAVE_WITHIN.saturating_sub(since.elapsed()));
            // A broker that does not answer must not keep the process; what it holds of ours comes back by its lease.
            tokio::select! {
                biased;
                () = broker.close() => {}
                () = async { shutdown.now.cancelled().await; sleep(CLOSE_FORCED_WITHIN).await } => {}
                () = sleep(within) => {}
            }
        });
        Ok(Tally { done, retried, dead })
    }

    fn broker_options(&self) -> Options {
        let mut options = options(&self.config, Role::Worker);
        options.timeout = self.options.timeout.unwrap_or(options.timeout);
        options.queues.iter_mut().for_each(|queue| queue.start = self.options.from.unwrap_or(queue.start));
        options.kafka.from = self.options.from;
        options
    }

    fn registry_with_http(&self) -> Result<Registry, Error> {
        let mut registry = self.registry.clone();
        for (name, job) in &self.config.jobs {
            if let Some(http) = &job.http {
                let handler = http::handler(http).map_err(|error| Error::Config(format!("jobs.{name}: {error}")))?;
                registry = registry.replace(name, handler);
            }
        }
        Ok(registry)
    }

    /// Waits for a broker that is not there, as long as the configuration says; `None`: told to leave meanwhile.
    async fn connect_patiently(&self, shutdown: &Shutdown) -> Result<Option<Arc<dyn Broker>>, Error> {
        let deadline = Instant::now() + self.config.worker.connect;
        let mut pause = Duration::from_millis(100);
        let mut lost = None;
        loop {
            // Leaving first: nobody waits for a broker in order to leave it.
            let error = tokio::select! {
                biased;
                () = shutdown.intake.cancelled() => return Ok(None),
                connected = broker::connect(&self.config.broker, self.broker_options()) => match connected {
                    Ok(broker) => {
                        if let Some(since) = lost {
                            let after = Instant::now() - since;
                            events::BrokerBack { broker: broker.address(), after }.emit();
                        }
                        return Ok(Some(broker));
                    }
                    Err(error) => error,
                }
            };
            if !error.is_transient() || Instant::now() + pause >= deadline {
                return Err(error.into());
            }
            if lost.is_none() {
                let shown = config::shown_address(&self.config.broker);
                events::BrokerLost { broker: &shown, error: &error.to_string() }.emit();
                lost = Some(Instant::now());
            }
            tokio::select! {
                biased;
                () = shutdown.intake.cancelled() => return Ok(None),
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Opens the queues on a broker that is connected, for a worker that is ready to run: what [`App::run`] does once
    /// it has a broker. For brokers and clocks that no address names, such as those of a simulation.
    pub async fn worker(&self, broker: &dyn Broker, shutdown: &Shutdown, clock: Clock) -> Result<Worker, Error> {
        self.worker_with(&self.registry_with_http()?, broker, shutdown, clock).await
    }

    async fn worker_with(
        &self,
        registry: &Registry,
        broker: &dyn Broker,
        shutdown: &Shutdown,
        clock: Clock,
    ) -> Result<Worker, Error> {
        let settings = worker::Config {
            slots: self.config.worker.slots,
            bytes_in_flight: self.config.worker.bytes_in_flight,
            grace: self.config.worker.grace,
            lease: self.config.worker.lease,
            lanes: self.options.lanes,
        };
        let queues = self.open(registry, broker, shutdown, &clock).await?;
        Ok(Worker::new(settings, queues, shutdown.clone(), clock))
    }

    async fn open(
        &self,
        registry: &Registry,
        broker: &dyn Broker,
        shutdown: &Shutdown,
        clock: &Clock,
    ) -> Result<Vec<QueueConfig>, Error> {
        let deadline = Instant::now() + self.config.worker.connect;
        let state = registry.shared_state();
        let client = Client::new(broker.publisher(), self.config.namespace.clone()).with_clock(clock.clone());
        let mut queues = Vec::new();
        for (name, of) in &self.config.queues {
            if !self.options.queues.is_empty() && !self.options.queues.contains(name) {
                continue;
            }
            let route = |job: String| {
                let entry = registry.get(&job)?;
                let job = JobName::new(&job).ok()?;
                let policy = self.config.policy(name, &job, Some(&entry));
                let timeout = self.config.timeout(name, &job, Some(&entry));
                let shared = Shared {
                    queue: name.clone(),
                    job,
                    attempts: policy.attempts.get(),
                    client: client.clone(),
                    state: state.clone(),
                };
                Some(Route::new(entry.handler, entry.threading, timeout, policy, Arc::new(shared)))
            };
            let routes = registry.names().into_iter().filter_map(route).collect();
            let spec = queue(&self.config, name);
            let spec = Queue { start: self.options.from.unwrap_or(spec.start), ..spec };
            let missing = || Error::Config(format!("queues.{name}: no job {} is registered", of.job));
            queues.push(QueueConfig {
                weight: usize::try_from(of.weight.get()).unwrap_or(1),
                unroutable_after: of.unroutable_after,
                routes: Routes::new(&of.job, routes).ok_or_else(missing)?,
                opened: open_patiently(broker, &spec, shutdown, deadline).await?,
                spec,
            });
        }
        Ok(queues)
    }
}

/// Opens a queue, and tries again until then where the broker went away after it had answered, unless told to leave.
async fn open_patiently(
    broker: &dyn Broker,
    queue: &Queue,
    shutdown: &Shutdown,
    until: Instant,
) -> Result<Opened, broker::Error> {
    loop {
        let error = match broker.open(queue).await {
            Err(error) if error.is_transient() && Instant::now() < until => error,
            answer => return answer,
        };
        tracing::debug!(queue = %queue.name, %error, "a queue cannot be opened yet");
        tokio::select! {
            biased;
            () = shutdown.intake.cancelled() => return Err(error),
            () = sleep(Duration::from_millis(500)) => {}
        }
    }
}

/// How long a broker that cannot count what is ready must have given nothing before a burst is over.
const QUIET_FOR: Duration = Duration::from_secs(2);
/// How often a burst looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(50);

async fn end_burst(
    worker: Worker,
    inspect: Arc<dyn Inspect>,
    queues: Vec<QueueName>,
    linger: Duration,
    shutdown: Shutdown,
) {
    let mut idle_since: Option<(Instant, (u64, u64, u64))> = None;
    loop {
        sleep(LOOK_EVERY).await;
        if !worker.is_idle() {
            idle_since = None;
            continue;
        }
        let Ok(statuses) = inspect.status(&queues).await else { continue };
        let horizon = Clock::System.now().after(linger);
        if !statuses.iter().all(|status| nothing_left(status, horizon)) || !worker.is_idle() {
            idle_since = None;
            continue;
        }
        let counts = worker.counts();
        let (since, before) = *idle_since.get_or_insert((Instant::now(), counts));
        if before != counts {
            idle_since = None;
            continue;
        }
        let known = statuses.iter().all(|status| status.ready.is_some());
        if since.elapsed() >= if known { LOOK_EVERY } else { QUIET_FOR } {
            return shutdown.drain();
        }
    }
}

fn nothing_left(status: &QueueStatus, horizon: Timestamp) -> bool {
    let none = |count: Option<u64>| count.unwrap_or(0) == 0;
    none(status.ready) && none(status.running) && status.retry_due.is_none_or(|due| due > horizon)
}

fn runtime(name: &str, threads: usize, blocking: usize) -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(blocking)
        .thread_name(name)
        .enable_all()
        .build()
}
