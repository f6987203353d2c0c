//! The driver: workers in runtimes of their own, whose stopped clocks are moved together, and what became of it all.

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::time::Instant;
use windlass::app::RunOptions;
use windlass::config::{self, Config};
use windlass::message::{JobName, QueueName, Topic};
use windlass::shutdown::Shutdown;
use windlass::time::Clock;
use windlass::worker::handle::Control;
use windlass::worker::{Worker, retry};
use windlass::{App, Registry};

use super::broker::Connection;
use super::chance::Chance;
use super::job::Job;
use super::law::{Broken, Law};
use super::schedule::{self, Fault, Schedule, Shape};
use super::world::{Order, World, wall};
use crate::ledger::judge::{self, Rules, Story};
use crate::ledger::record;

/// The queues' names.
pub const QUEUES: [&str; 3] = ["a", "b", "k"];
/// So long after the last fault everything must have ended.
const PATIENCE: u64 = 60_000;
/// How far clocks are moved at a time where several workers are awake and something is in hand.
const STEP: std::ops::Range<u64> = 1..12;
/// How far at most, whatever happens or not.
const STRIDE: u64 = 200;

/// What became of a schedule.
pub struct Outcome {
    /// What was played.
    pub schedule: Schedule,
    /// What was wrong, the first first.
    pub broken: Vec<Broken>,
    /// What handlers wrote.
    pub records: Vec<record::Record>,
    /// The dead letters.
    pub letters: Vec<judge::Letter>,
    /// Every step, where it was asked for.
    pub story: Vec<(u64, String)>,
    /// The same for the same schedule and choices, and hardly for others.
    pub print: u64,
    /// Runs in all.
    pub runs: usize,
    /// Runs again that a fault explains.
    pub explained: usize,
    /// Processes that were started.
    pub workers: usize,
    /// How often a worker asked for deliveries.
    pub asked: u32,
    /// When everything had ended.
    pub over: u64,
    /// What was chosen, for the next script.
    pub chance: Chance,
}

impl Outcome {
    /// The laws that were broken.
    pub fn laws(&self) -> Vec<Law> {
        let mut laws: Vec<Law> = self.broken.iter().map(|broken| broken.law).collect();
        laws.sort_unstable();
        laws.dedup();
        laws
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.broken.iter().take(10).try_for_each(|broken| writeln!(f, "  {broken}"))?;
        self.story.iter().try_for_each(|(at, step)| writeln!(f, "  {at:>6} ms  {step}"))
    }
}

/// A worker's process.
struct Process {
    index: usize,
    runtime: Runtime,
    running: tokio::task::JoinHandle<()>,
    worker: Worker,
    shutdown: Shutdown,
    /// It did something that may lead to more before its time is over.
    stirred: Arc<Notify>,
    born: u64,
    since: Instant,
}

/// Plays a schedule with its own seed.
pub fn play(schedule: &Schedule, told: bool) -> Outcome {
    play_with(schedule, Chance::seeded(schedule.seed, schedule.mischief), told)
}

/// Plays a schedule with these choices.
pub fn play_with(schedule: &Schedule, chance: Chance, told: bool) -> Outcome {
    fastrand::seed(schedule.seed);
    let world = Arc::new(Mutex::new(World::new(schedule.clone(), chance, told)));
    let mut site = Site { config: configuration(&schedule.shape), world, now: 0, processes: Vec::new() };
    site.play(schedule.faults.iter().map(|fault| fault.over()).max().unwrap_or(0) + PATIENCE);
    site.processes.clear();
    let Ok(world) = Arc::try_unwrap(site.world).map(Mutex::into_inner) else {
        unreachable!("every runtime that held the world is gone")
    };
    judged(schedule, world)
}

struct Site {
    config: Config,
    world: Arc<Mutex<World>>,
    now: u64,
    processes: Vec<Process>,
}

impl Site {
    fn play(&mut self, deadline: u64) {
        let mut leaving = false;
        loop {
            let orders = self.world.lock().happen(self.now);
            for order in orders {
                self.carry_out(order);
            }
            if self.now > deadline || self.world.lock().broken.len() > 20 {
                return;
            }
            if !leaving && self.world.lock().is_over() {
                // What had ended is looked at once more after a while: nothing may come back.
                leaving = true;
                self.world.lock().over = self.now;
                for process in &self.processes {
                    let mut world = self.world.lock();
                    if world.workers[process.index].leaving.is_none() {
                        world.leave(self.now, process.index);
                    }
                }
                continue;
            }
            if leaving && self.processes.is_empty() && self.world.lock().next_event().is_none() {
                return;
            }
            self.now = match self.awake()[..] {
                [alone] => self.advance_alone(alone),
                ref all => self.advance_together(all),
            };
            self.bury();
        }
    }

    /// The processes that do anything: all but the stopped ones.
    fn awake(&self) -> Vec<usize> {
        let world = self.world.lock();
        let awake = |index: &usize| world.workers[self.processes[*index].index].frozen <= self.now;
        (0..self.processes.len()).filter(awake).collect()
    }

    /// One process goes on until it does something that has consequences, or something happens to it.
    fn advance_alone(&self, index: usize) -> u64 {
        let process = &self.processes[index];
        let until = {
            let mut world = self.world.lock();
            let until = world.next_event().unwrap_or(u64::MAX).clamp(self.now + 1, self.now + STRIDE);
            world.watch = Some((until, process.stirred.clone()));
            until
        };
        // What stirred before this is known.
        let _ = process.stirred.notified().now_or_never();
        let reached = self.advance(index, until, true);
        self.world.lock().watch = None;
        reached.clamp(self.now, until)
    }

    /// Several take turns in small steps: what one does the others learn a few milliseconds later.
    fn advance_together(&self, all: &[usize]) -> u64 {
        let until = {
            let mut world = self.world.lock();
            let event = world.next_event().unwrap_or(u64::MAX).max(self.now + 1);
            let leaving = self.processes.iter().any(|process| world.workers[process.index].leaving.is_some());
            let busy = !all.is_empty() && (world.is_busy() || leaving);
            event.min(self.now + if busy { world.chance.millis(STEP) } else { STRIDE })
        };
        for index in all {
            self.advance(*index, until, false);
        }
        until
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Start(place) => {
                if !self.world.lock().is_over() {
                    self.start(place);
                }
            }
            Order::Leave(worker) => self.with(worker, |process| process.shutdown.drain()),
            Order::Pause(worker, queue, lasting) => self.with(worker, |process| {
                let lasting = Duration::from_millis(lasting);
                process.worker.pause(QUEUES[queue], Some(lasting));
            }),
            Order::Slots(worker, queue, slots) => self.with(worker, |process| {
                process.worker.set_slots(QUEUES[queue], NonZeroUsize::new(slots).expect("drawn from 1"));
            }),
        }
    }

    fn with(&self, worker: usize, act: impl FnOnce(&Process)) {
        let process = self.processes.iter().find(|process| process.index == worker);
        if let Some(process) = process {
            let _within = process.runtime.enter();
            act(process);
        }
    }

    fn start(&mut self, place: usize) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without I/O");
        let index = self.world.lock().start(self.now, place);
        let (born, world) = (self.now, self.world.clone());
        let config = self.config.clone();
        let lanes = NonZeroUsize::new(self.world.lock().shape().lanes);
        let shutdown = Shutdown::default();
        let leave = shutdown.clone();
        let stirred = Arc::new(Notify::new());
        let left = stirred.clone();
        let (worker, running, since) = runtime.block_on(async move {
            let connection = Connection::new(world, index, born);
            let clock = Clock::Tokio { base: wall(born), since: Instant::now() };
            let registry = Registry::new().handler("job", Arc::new(Job(connection.clone())));
            let app = App::new(config, registry).with(RunOptions { lanes, ..RunOptions::default() });
            let worker = app.worker(&connection, &leave, clock).await.expect("it opens");
            let (working, since) = (worker.clone(), Instant::now());
            let running = tokio::spawn(async move {
                working.run(Arc::new(connection), &tokio::runtime::Handle::current()).await;
                left.notify_one();
            });
            (worker, running, since)
        });
        self.processes.push(Process { index, runtime, running, worker, shutdown, stirred, born, since });
    }

    /// Lets a worker run until `until`, or until it stirs; says until when it ran. One that was stopped finds its clock
    /// moved.
    fn advance(&self, index: usize, until: u64, stirs: bool) -> u64 {
        let process = &self.processes[index];
        let target = process.since + Duration::from_millis(until - process.born);
        let behind = Duration::from_millis(self.now - process.born);
        process.runtime.block_on(async {
            let gap = (process.since + behind).saturating_duration_since(Instant::now());
            if !gap.is_zero() {
                tokio::time::advance(gap).await;
            }
            tokio::select! {
                biased;
                () = process.stirred.notified(), if stirs => {}
                () = tokio::time::sleep_until(target) => {}
            }
            process.born + process.since.elapsed().as_millis() as u64
        })
    }

    /// What died is dropped, what left is looked at.
    fn bury(&mut self) {
        let now = self.now;
        let world = self.world.clone();
        self.processes.retain_mut(|process| {
            if world.lock().workers[process.index].dead {
                return false;
            }
            if !process.running.is_finished() {
                return true;
            }
            let ended = process.runtime.block_on(&mut process.running);
            let queues = {
                let _within = process.runtime.enter();
                process.worker.queues()
            };
            let mut world = world.lock();
            if let Err(error) = ended {
                world.broken.push(Broken { law: Law::Panic, what: error.to_string() });
            }
            let forgotten = 30;
            for queue in queues {
                let (unconfirmed, bytes, running) = (queue.unconfirmed, queue.bytes_in_flight, queue.in_flight);
                let hindered = world.schedule.faults.iter().any(|fault| {
                    matches!(fault, Fault::Cut(..) | Fault::Broker(..) | Fault::DeadRefused(..) | Fault::Freeze(..))
                });
                if unconfirmed + bytes + running > 0 && !hindered {
                    let what = format!("{queue:?}");
                    world.broken.push(Broken { law: Law::Leak, what });
                }
            }
            world.gone(now, process.index, forgotten);
            false
        });
    }
}

/// The configuration of a shape, as somebody would have written it.
pub fn configuration(shape: &Shape) -> Config {
    static PLAIN: std::sync::LazyLock<Config> = std::sync::LazyLock::new(|| {
        let text = "broker = \"memory://\"\nnamespace = \"sim\"\n[admin]\nlisten = \"none\"\n";
        config::load(config::Source::new().text("windlass.toml", text)).expect("it is valid").config
    });
    let mut config = PLAIN.clone();
    let slots = |slots| NonZeroUsize::new(slots).expect("drawn from 1");
    config.worker.slots = slots(shape.slots);
    config.worker.bytes_in_flight = shape.bytes;
    config.worker.grace = shape.grace;
    config.worker.lease = shape.lease;
    for (index, name) in QUEUES.iter().enumerate().take(shape.queues) {
        let name = QueueName::new(name).expect("a name");
        let mut queue = config::Queue::new(&name);
        queue.topics = vec![Topic::new(if index < 2 { "t" } else { "u" }).expect("a topic")];
        queue.job = JobName::new("job").expect("a name");
        queue.slots = Some(slots(shape.queue_slots));
        queue.timeout = shape.timeout;
        queue.ordered = shape.ordered && index == 2;
        queue.max_crashes = shape.max_crashes;
        queue.unroutable_after = schedule::UNROUTABLE_AFTER;
        queue.retry = retry::Partial {
            attempts: NonZeroU32::new(shape.attempts),
            first: Some(shape.first),
            factor: Some(2.0),
            max: Some(schedule::MAX_DELAY),
            jitter: Some(0.2),
        };
        config.queues.insert(name, queue);
    }
    config
}

fn judged(schedule: &Schedule, world: World) -> Outcome {
    let shape = &schedule.shape;
    let jobs = schedule.jobs.iter().flat_map(|job| {
        let (ends, attempts) = job.ends(shape);
        let lane = if matches!(job.to, schedule::To::Queue(..)) { "enqueued" } else { "published" };
        job.queues(shape).into_iter().map(move |queue| judge::Job {
            number: job.number,
            queue: QUEUES[queue].to_owned(),
            key: job.key.filter(|_| queue == 2 && shape.ordered).map(|key| (format!("{lane} {key}"), place(job))),
            ends,
            attempts,
            body: job.body(),
        })
    });
    let rules = Rules {
        slots: shape.slots,
        lease: shape.lease,
        grace: shape.grace,
        retry: (shape.first, 2.0, schedule::MAX_DELAY),
        max_crashes: shape.max_crashes as usize,
        unconfirmed: Duration::from_millis(400),
        moves_first: false,
        one_lock: false,
        forgets: false,
        // Nobody writes down late when a run began.
        thaw: Duration::ZERO,
    };
    let left: BTreeMap<String, u64> =
        world.left().into_iter().enumerate().map(|(queue, left)| (QUEUES[queue].to_owned(), left)).collect();
    let chance = world.chance;
    let story = Story {
        jobs: jobs.collect(),
        records: world.records,
        faults: world.faults,
        letters: world.letters,
        left,
        rules,
    };
    let verdict = judge::judge(&story);
    let mut broken = world.broken;
    broken.extend(
        verdict.findings.into_iter().map(|finding| Broken { law: Law::Judged(finding.rule), what: finding.what }),
    );
    Outcome {
        schedule: schedule.clone(),
        broken,
        records: story.records,
        letters: story.letters,
        story: world.story.unwrap_or_default(),
        print: world.print,
        runs: verdict.runs,
        explained: verdict.explained,
        workers: world.workers.len(),
        asked: world.asked,
        over: world.over,
        chance,
    }
}

/// A job's place among those of its key: by when it was published.
fn place(job: &schedule::Job) -> u64 {
    job.at * 1_000 + job.number
}
