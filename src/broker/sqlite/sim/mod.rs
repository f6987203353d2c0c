//! Simulation of the SQLite adapter: all of it as production runs it (the writer's turns, leases, crashes, claims and
//! settlements, on a real file), with the clocks, the order of the workers' turns and what befalls them chosen by a
//! schedule.
//!
//! A [`worker`] is a writer whose turns are taken one by one, and the handles that the engine would have. Clocks stand
//! still between two steps, so that leases end when the schedule says so. What the file must hold is known by a list
//! that a child could keep, the [`Job`]s; the laws are looked at in what comes out of the handles.

mod settle;
mod worker;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};
use tokio::runtime::Builder;

use self::worker::Worker;
use super::tests::{options, queue};
use crate::broker::schedule::{self, Broken, Choices};
use crate::broker::{Options, Queue, Role};
use crate::time::{Clock, Timestamp};

/// Numbers of a schedule at the most.
const NUMBERS: usize = 160;
/// After so many rounds of a peaceful end everything must have ended.
const ROUNDS: usize = 200;
/// The lease.
const LEASE: Duration = Duration::from_millis(1_500);
/// Clocks are moved by so much at a time at the most, and whoever is not frozen has a turn.
const SLICE: u64 = 100;
/// Crashes that condemn.
const MAX_CRASHES: u32 = 2;

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// It may be handed out from this moment on.
    Waits(i64),
    /// The worker of this number has it.
    Held(u64),
    Done,
    Dead,
}

/// The truth about a job.
#[derive(Clone, Debug)]
struct Job {
    /// Published or enqueued, and its key, where it has one: whose order counts.
    line: Option<(bool, u8)>,
    at: At,
    attempt: u32,
    /// So many workers died over it for certain, and so many at the most.
    crashes: (u32, u32),
}

impl Job {
    fn has_ended(&self) -> bool {
        matches!(self.at, At::Done | At::Dead)
    }
}

/// The world of one schedule.
struct World {
    folder: tempfile::TempDir,
    queue: Queue,
    clock: Clock,
    /// Each worker is in a pid namespace of its own: only a lease tells whether it lives.
    apart: bool,
    workers: Vec<Worker>,
    jobs: BTreeMap<u32, Job>,
    born: u64,
    /// Beside all workers: kills, and holds the lock.
    beside: SqliteConnection,
    locked: bool,
}

/// The bytes of a file of ours without a queue: to make one takes longer than a schedule.
fn template() -> &'static [u8] {
    static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("q.db");
        // In a thread of its own: the schedule that asks first is in the middle of its own runtime.
        let make = || {
            let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime without I/O");
            runtime.block_on(async {
                let connection = target(&path).open_writer().await.expect("it is made");
                connection.close().await.expect("it is closed");
            });
        };
        std::thread::scope(|scope| scope.spawn(make).join()).expect("it is made");
        std::fs::read(&path).expect("it is there")
    })
}

fn target(path: &Path) -> super::file::Target {
    super::file::Target::parse(&format!("sqlite://{}", path.display()), &plain()).expect("an address")
}

/// Nobody waits for a lock: time that passed so would not be the schedule's.
fn plain() -> Options {
    Options { lease: LEASE, timeout: Duration::ZERO, ..options(Role::Worker, &[]) }
}

impl World {
    async fn new(choices: &mut Choices) -> Self {
        let (ordered, apart) = (choices.once_in(2), choices.once_in(3));
        choices.tell(|| format!("in order {ordered}, namespaces apart {apart}"));
        let count = 1 + choices.pick(2);
        Self::of(ordered, apart, count).await
    }

    async fn of(ordered: bool, apart: bool, count: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("q.db");
        std::fs::write(&path, template()).expect("it can be written");
        let beside = target(&path).open_writer().await.expect("it is ours");
        let clock = Clock::Tokio { base: Timestamp::from_millis(1_000_000), since: tokio::time::Instant::now() };
        let queue = Queue { ordered, max_crashes: MAX_CRASHES, ..queue("q", &["t"]) };
        let (workers, jobs) = (Vec::new(), BTreeMap::new());
        let mut world = Self { folder, queue, clock, apart, workers, jobs, born: 0, beside, locked: false };
        for _ in 0..count {
            world.join().await;
        }
        world
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("q.db")
    }

    fn now(&self) -> i64 {
        self.clock.now().as_millis()
    }

    async fn step(&mut self, choices: &mut Choices) -> Result<(), Broken> {
        if self.workers.is_empty() {
            self.unlock(choices).await;
            self.join().await;
        }
        let at = choices.pick(self.workers.len());
        match choices.pick(24) {
            0..=2 => self.publish(choices, at).await?,
            3..=7 => self.receive(choices, at).await?,
            8 | 9 => self.begin(choices, at).await?,
            10..=14 => self.finish(choices, at).await?,
            15..=17 => {
                let by = [1, 60, 500, 1_600][choices.pick(4)];
                self.pass(choices, by).await?;
            }
            18 | 19 => self.freeze(choices, at),
            20 => self.kill(choices, at).await,
            21 => match choices.pick(3) {
                0 => self.leave(choices, at).await?,
                1 => self.join().await,
                _ => self.workers[at].receiving = None,
            },
            22 => self.lock(choices).await,
            _ => self.thaw(choices, at),
        }
        Ok(())
    }

    /// Whoever is not frozen has a turn every 100 ms at the least.
    async fn pass(&mut self, choices: &mut Choices, by: u64) -> Result<(), Broken> {
        choices.tell(|| format!("{by} ms pass"));
        let mut left = by;
        while left > 0 {
            let slice = left.min(SLICE);
            left -= slice;
            tokio::time::advance(Duration::from_millis(slice)).await;
            let first = if choices.more() { choices.pick(self.workers.len()) } else { 0 };
            for turn in 0..self.workers.len() {
                let at = (first + turn) % self.workers.len();
                self.turn(choices, at).await?;
            }
        }
        Ok(())
    }

    /// Somebody else takes the file's lock, or gives it back.
    async fn lock(&mut self, choices: &mut Choices) {
        self.locked = !self.locked;
        choices
            .tell(|| if self.locked { "the file is locked".to_owned() } else { "the lock is given back".to_owned() });
        let statement = if self.locked { "BEGIN IMMEDIATE" } else { "COMMIT" };
        sqlx::query(statement).execute(&mut self.beside).await.expect("nobody is in the middle of anything");
    }

    /// Whoever has it gives it back.
    pub async fn unlock(&mut self, choices: &mut Choices) {
        if self.locked {
            self.lock(choices).await;
        }
    }

    /// Everything heals, and whoever is left ends everything.
    async fn end(&mut self, choices: &mut Choices) -> Result<(), Broken> {
        choices.tell(|| "peace".to_owned());
        self.unlock(choices).await;
        if self.workers.is_empty() {
            self.join().await;
        }
        for at in 0..self.workers.len() {
            self.thaw(choices, at);
        }
        for _ in 0..ROUNDS {
            self.pass(choices, SLICE).await?;
            for at in 0..self.workers.len() {
                self.receive(choices, at).await?;
                for _ in 0..self.workers[at].held.len() {
                    self.begin(choices, at).await?;
                    self.finish(choices, at).await?;
                }
                self.turn(choices, at).await?;
            }
            if self.jobs.values().all(Job::has_ended) {
                return self.left().await;
            }
        }
        let left: Vec<_> = self.jobs.iter().filter(|(_, job)| !job.has_ended()).collect();
        Err(("stuck", format!("after {ROUNDS} rounds without a fault: {left:?}")))
    }

    /// The file holds the dead letters and nothing else.
    async fn left(&mut self) -> Result<(), Broken> {
        let dead = self.jobs.values().filter(|job| job.at == At::Dead).count() as i64;
        let counts = "SELECT (SELECT count(*) FROM dead), (SELECT count(*) FROM event), (SELECT count(*) FROM fresh) \
                      + (SELECT count(*) FROM later) + (SELECT count(*) FROM running) + (SELECT count(*) FROM blocked) \
                      + (SELECT count(*) FROM head) + (SELECT count(*) FROM shared) + (SELECT count(*) FROM record)";
        let row = sqlx::query(counts).fetch_one(&mut self.beside).await.expect("it can be read");
        let [letters, events, others] = [0, 1, 2].map(|column| row.get::<i64, _>(column));
        if (letters, events, others) != (dead, dead, 0) {
            let what = format!("{dead} dead letters, and the file has {letters}, {events} events, {others} other rows");
            return Err(("left", what));
        }
        Ok(())
    }
}

fn in_stopped_time<F: Future>(play: F) -> F::Output {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O").block_on(play)
}

fn play(choices: &mut Choices) -> Result<(), Broken> {
    in_stopped_time(async {
        let mut world = World::new(choices).await;
        while choices.more() {
            world.step(choices).await?;
        }
        world.end(choices).await
    })
}

/// One job that is tried twice and two workers, of whom the first freezes, dies, is kept from renewing, or is slow.
fn small(choices: &mut Choices) -> Result<(), Broken> {
    in_stopped_time(async {
        let mut nothing = Choices::none();
        let mut world = World::of(false, false, 2).await;
        world.publish(&mut nothing, 0).await?;
        world.receive(&mut nothing, 0).await?;
        while choices.more() {
            let alone = world.workers.len() == 1;
            match choices.pick(6) {
                0 => world.pass(&mut nothing, LEASE.as_millis() as u64 + 1).await?,
                1 if alone => world.join().await,
                1 => world.freeze(&mut nothing, 0),
                2 if !alone => world.kill(&mut nothing, 0).await,
                2 | 3 => world.lock(&mut nothing).await,
                4 => {
                    world.thaw(&mut nothing, 0);
                    world.finish(&mut nothing, 0).await?;
                }
                _ => {
                    let last = world.workers.len() - 1;
                    world.receive(&mut nothing, last).await?;
                    world.begin(&mut nothing, last).await?;
                }
            }
        }
        world.end(&mut nothing).await
    })
}

#[test]
fn no_schedule_breaks_a_law() {
    schedule::campaign(schedule::wanted(200), NUMBERS, play);
}

/// Each bug that was put into this adapter and concerns who may run what, and the law that sees it.
#[cfg(feature = "seeded-bugs")]
const CAUGHT: [(&str, &str, u64); 5] = [
    ("due-early", "early", 2),
    ("given-back-dropped", "stuck", 0),
    ("patience-forgotten", "two owners", 2_414),
    ("freeze-is-crash", "condemned", 2_218),
    ("crash-uncounted", "uncounted", 7),
];

#[cfg(feature = "seeded-bugs")]
#[test]
fn every_seeded_bug_of_leases_is_caught() {
    schedule::every_bug_is_caught(&CAUGHT, NUMBERS, play);
}

#[test]
fn no_small_schedule_breaks_a_law() {
    let count = schedule::exhaust(3, small);
    assert_eq!(count, 6_u64.pow(3));
}
