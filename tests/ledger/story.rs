//! Makes a story for the judge: publishes, starts workers, breaks things, and gathers what came of it.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use windlass::Client;
use windlass::broker::{self, Broker, LetterQuery, Options, Queue, Role, Start};
use windlass::message::{JobName, Namespace, QueueName, Topic};
use windlass::time::{Clock, format_duration};

use super::judge::{self, Ends, Fault, Job, Kind, Letter, Rules, Story, Verdict};
use super::record::{self, What};
use crate::conformance::subject::Subject;
use crate::support::wait;
use crate::support::worker::{self, Worker};

/// Attempts that every queue allows.
const ATTEMPTS: u32 = 4;
const MIXED: [&str; 2] = ["mixed", "copy"];
const KEYED: &str = "keyed";
const KEYS: u64 = 24;
/// The level that workers log at, for whoever looks for a cause: what they wrote is kept then.
const LOG: &str = "LEDGER_LOG";

/// Long enough that a worker which the machine lets wait does not look frozen.
pub fn lease<S: Subject>() -> Duration {
    S::LEASE.max(Duration::from_secs(3))
}

/// A site where jobs are worked: a broker, a folder, workers, and what was done to them.
pub struct Site<S: Subject> {
    /// The broker.
    pub subject: S,
    /// Random numbers by seed, so that a run can be told again.
    pub random: fastrand::Rng,
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    broker: Arc<dyn Broker>,
    client: Client,
    workers: Vec<Worker>,
    started: usize,
    bug: Option<&'static str>,
    ledger: File,
    story: Story,
    ended: HashSet<(String, u64)>,
    /// Runs that began, of all chapters.
    begun: usize,
    /// Jobs of the chapters that were judged.
    judged: u64,
    next: u64,
    /// Before this the broker is not asked again what it holds: asking costs some of them much.
    rests: Instant,
}

impl<S: Subject> Site<S> {
    /// A site with nothing published and nobody working; `None`: the broker is not on this machine. `bug`: one that
    /// the workers have.
    pub fn new(seed: u64, bug: Option<&'static str>) -> Option<Self> {
        Some(Self::with(S::fresh()?, seed, bug))
    }

    /// The same on this broker.
    pub fn with(subject: S, seed: u64, bug: Option<&'static str>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let rules = Rules {
            lease: lease::<S>(),
            // Where partitions come and go, no job outlives it, nor one that a busy machine lets wait.
            grace: if S::LEASE < Duration::from_secs(5) { Duration::from_millis(300) } else { Duration::from_secs(3) },
            unconfirmed: S::UNCONFIRMED,
            one_lock: S::NAME == "sqlite",
            forgets: S::NAME != "sqlite",
            moves_first: S::NAME == "kafka",
            ..Rules::default()
        };
        std::fs::write(dir.path().join("windlass.toml"), config(&subject.address(), &rules, S::ORDERED_KEYS))
            .expect("a file");
        let path = dir.path().join("ledger");
        std::fs::write(&path, "").expect("a file");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be built");
        let namespace = Namespace::new("ledger").expect("a name");
        let options = options(&namespace, &rules, S::ORDERED_KEYS);
        let address = subject.address();
        let connected = runtime.block_on(async { broker::connect(&address, options).await });
        let broker = connected.expect("the broker can be reached");
        let client = Client::new(broker.publisher(), namespace);
        eprintln!("{} with seed {seed}", S::NAME);
        Self {
            subject,
            random: fastrand::Rng::with_seed(seed),
            ledger: File::open(&path).expect("it was just written"),
            dir,
            runtime,
            broker,
            client,
            workers: Vec::new(),
            started: 0,
            bug,
            story: Story { rules, ..Story::default() },
            ended: HashSet::new(),
            begun: 0,
            judged: 0,
            next: 1,
            rests: Instant::now(),
        }
    }

    /// Publishes so many jobs of mixed behaviour, which two queues hear, and so many in key order; all confirmed.
    pub fn publish(&mut self, mixed: usize, keyed: usize) {
        self.publish_planned(mixed, keyed, None);
    }

    /// Publishes jobs that succeed and keep their thread for so long.
    pub fn publish_rude(&mut self, jobs: usize, lasting: Duration) {
        self.publish_planned(jobs, 0, Some(lasting.as_millis() as u64));
    }

    fn publish_planned(&mut self, mixed: usize, keyed: usize, rude: Option<u64>) {
        let mut drafts = Vec::new();
        for index in 0..mixed + keyed {
            let (number, in_order) = (self.next, index >= mixed);
            self.next += 1;
            let plan = match rude {
                Some(ms) => Plan { done_at: 1, fails: "block", ms, ends: Ends::Done, attempts: 1 },
                None => plan(&mut self.random, in_order),
            };
            let body = plan.body(number);
            let key = (in_order && S::ORDERED_KEYS).then(|| (format!("k{}", number % KEYS), number));
            let topic = if in_order { "keyed" } else { "mixed" };
            let draft = self.client.publish_bytes(topic, body.clone()).id(format!("L{number}"));
            let draft = draft.content_type("application/json");
            drafts.push(match &key {
                Some((key, _)) => draft.key(key.clone()),
                None => draft,
            });
            for queue in if in_order { &[KEYED][..] } else { &MIXED } {
                let job = Job {
                    number,
                    queue: (*queue).to_owned(),
                    key: key.clone(),
                    ends: plan.ends,
                    attempts: plan.attempts,
                    body: body.clone(),
                };
                self.story.jobs.push(job);
            }
        }
        let receipts = self.runtime.block_on(self.client.publish_many(drafts));
        receipts.into_iter().for_each(|receipt| drop(receipt.expect("the broker confirms")));
    }

    /// Starts a worker.
    pub fn start(&mut self) {
        self.started += 1;
        let mut command = Command::new(env!("CARGO_BIN_EXE_ledger-worker"));
        worker::clean(&mut command, self.dir.path());
        command.arg("run").env("LEDGER_FILE", self.dir.path().join("ledger")).env("RUST_BACKTRACE", "0");
        command.env("WINDLASS_SEEDED_CLOCK", self.dir.path().join("clock"));
        if let Some(bug) = self.bug {
            command.env("WINDLASS_SEEDED_BUG", bug);
        }
        self.workers.push(Worker::spawn(self.dir.path(), &format!("w{}", self.started), command));
    }

    /// How many work.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The worker of this place, for memory and the like.
    pub fn worker(&mut self, index: usize) -> &mut Worker {
        &mut self.workers[index]
    }

    /// `kill -9`.
    pub fn kill(&mut self, index: usize) {
        let mut worker = self.workers.swap_remove(index);
        let (pid, from) = (worker.process.pid(), record::now());
        assert!(worker.process.poll().is_none(), "it ended by itself\n{}", worker.process.tail());
        worker.process.kill();
        self.fault(Kind::Killed, Some(pid), from);
    }

    /// SIGSTOP, and SIGCONT after so long.
    pub fn freeze(&mut self, index: usize, lasting: Duration) {
        let (pid, from) = (self.workers[index].process.pid(), record::now());
        self.workers[index].process.freeze();
        let begun = Instant::now();
        wait::until("it is time to thaw", lasting * 2, || begun.elapsed() >= lasting);
        self.workers[index].process.thaw();
        self.fault(Kind::Frozen, Some(pid), from);
    }

    /// SIGTERM; it must leave with 0, at most 3 s after the grace.
    pub fn drain(&mut self, index: usize) {
        let mut worker = self.workers.swap_remove(index);
        worker.hears();
        self.fault(Kind::Left, Some(worker.process.pid()), record::now());
        let code = worker.drain(self.story.rules.grace + Duration::from_secs(3));
        assert_eq!(code, 0, "a drain ends with 0\n{}", worker.process.tail());
    }

    /// Kills the broker's server and starts it again; `false` where there is none.
    pub fn restart_broker(&mut self) -> bool {
        self.hit(Kind::Broker, S::restart)
    }

    /// What was broken so far.
    pub fn faults(&self) -> &[Fault] {
        &self.story.faults
    }

    /// All that the judge will be told, so far.
    pub fn story(&self) -> &Story {
        &self.story
    }

    /// Waits until every job has ended, or so long.
    pub fn settle(&mut self, deadline: Duration) {
        let begun = Instant::now();
        while !self.is_settled() && begun.elapsed() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sets the wall clock of every worker, by so many milliseconds from the true time.
    pub fn set_clock(&mut self, off: i64) {
        let from = record::now();
        let (new, clock) = (self.dir.path().join("clock.new"), self.dir.path().join("clock"));
        std::fs::write(&new, off.to_string()).expect("a file");
        // At once: nobody reads half a number.
        std::fs::rename(new, clock).expect("a name");
        self.fault(Kind::Stepped, None, from);
    }

    /// Cuts every connection to the broker; `false` where there are none.
    pub fn cut(&mut self) -> bool {
        self.hit(Kind::Broker, S::cut)
    }

    /// What goes to the broker and back vanishes for so long; `false` where there is no connection.
    pub fn swallow(&mut self, lasting: Duration) -> bool {
        self.hit(Kind::Broker, |subject| subject.swallow(lasting))
    }

    /// What goes to the broker and back is held up, for so long; `false` where there is no connection.
    pub fn delay(&mut self, lasting: Duration) -> bool {
        self.hit(Kind::Delayed, |subject| subject.delay(lasting))
    }

    /// The broker takes no dead letters for so long; `false` where it cannot be told so.
    pub fn refuse_letters(&mut self, lasting: Duration) -> bool {
        self.hit(Kind::Refused, |subject| subject.refuse_letters(lasting))
    }

    /// Does it to the broker; `false` where that cannot be done to this one, and is no fault then.
    fn hit(&mut self, kind: Kind, how: impl FnOnce(&mut S) -> bool) -> bool {
        let from = record::now();
        let is_done = how(&mut self.subject);
        if is_done {
            self.fault(kind, None, from);
        }
        is_done
    }

    /// Does something that no worker and no broker could do anything about: whatever it hit is explained.
    pub fn disturb(&mut self, disturb: impl FnOnce(&mut Self)) {
        let from = record::now();
        disturb(self);
        self.fault(Kind::Broker, None, from);
    }

    /// Where the workers' configuration is.
    #[cfg(feature = "sqlite")]
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    fn fault(&mut self, kind: Kind, pid: Option<u32>, from: u64) {
        self.story.faults.push(Fault { pid, from, to: record::now(), kind });
    }

    /// Reads what was written since, and gives the count of runs that began since the start.
    pub fn runs(&mut self) -> usize {
        let records = record::read(&mut self.ledger).expect("the ledger can be read");
        let done = records.iter().filter(|record| record.what == What::Done);
        self.ended.extend(done.map(|record| (record.queue.clone(), record.job)));
        self.begun += records.iter().filter(|record| record.what == What::Start).count();
        self.story.records.extend(records);
        self.begun
    }

    /// Waits until so many more runs have begun, or nothing is left to run. Where they do not begin by the deadline
    /// the story goes on: what sticks is the judge's to say.
    pub fn advance(&mut self, more: usize, deadline: Duration) {
        let goal = self.runs() + more;
        let begun = Instant::now();
        let mut looked = begun;
        while self.runs() < goal && begun.elapsed() < deadline {
            // What a broker holds is dearer to ask for than what was written.
            if looked.elapsed() >= Duration::from_millis(100) {
                if self.is_settled() {
                    return;
                }
                looked = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_settled(&mut self) -> bool {
        for worker in &mut self.workers {
            assert!(worker.process.poll().is_none(), "a worker left by itself\n{}", worker.process.tail());
        }
        self.runs();
        let begun = Instant::now();
        if begun < self.rests {
            return false;
        }
        let (left, dead) = self.held();
        self.rests = Instant::now() + begun.elapsed() * 5;
        let published = self.judged + self.story.jobs.len() as u64;
        left.values().all(|left| *left == 0) && self.ended.len() as u64 + dead >= published
    }

    /// What the broker holds of each queue, and dead letters in all.
    fn held(&self) -> (BTreeMap<String, u64>, u64) {
        let inspect = self.broker.inspect();
        let status = self.runtime.block_on(async { inspect.status(&[]).await }).expect("the broker says what it holds");
        let dead = status.iter().filter_map(|queue| queue.dead).sum();
        let left = status.into_iter().map(|queue| {
            let waiting = [queue.ready, queue.running, queue.retrying, queue.scheduled];
            (queue.name, waiting.into_iter().flatten().sum())
        });
        (left.collect(), dead)
    }

    /// Waits until every job has ended, lets the workers leave, and judges. What has not ended by the deadline is
    /// the judge's to say.
    pub fn verdict(mut self, deadline: Duration) -> Verdict {
        let (verdict, _) = self.chapter(deadline);
        self.runtime.block_on(self.broker.close());
        verdict
    }

    /// The same, and the story goes on with nobody working: what was judged is forgotten but by the broker, so that a
    /// run of it in a later chapter is one of something unknown. Also whether everything had ended; where not, there is
    /// nothing to go on with.
    pub fn chapter(&mut self, deadline: Duration) -> (Verdict, bool) {
        self.settle(deadline);
        self.rests = Instant::now();
        let settled = self.is_settled();
        while !self.workers.is_empty() && settled {
            self.drain(0);
        }
        let tails: Vec<String> = self.workers.iter().map(|worker| worker.process.tail()).collect();
        self.story.left = self.held().0;
        self.workers.clear();
        self.runs();
        let first = self.story.jobs.first().map_or(self.next, |job| job.number);
        self.story.letters = self.runtime.block_on(letters(&*self.broker, first));
        let verdict = judge::judge(&self.story);
        eprintln!("{verdict}");
        if !settled || !verdict.findings.is_empty() {
            tails.iter().take(1).for_each(|tail| eprintln!("{tail}"));
            // What is no line of the log is a panic.
            let odd = tails.iter().skip(1).flat_map(|tail| tail.lines()).filter(|line| !line.starts_with('{'));
            odd.for_each(|line| eprintln!("{line}"));
        }
        self.judged += self.story.jobs.len() as u64;
        self.story = Story { rules: self.story.rules.clone(), ..Story::default() };
        (verdict, settled)
    }

    /// Removes what the workers wrote so far, none of whom may be working.
    pub fn forget_logs(&self) {
        let entries = std::fs::read_dir(self.dir.path()).expect("its own folder").map(|entry| entry.expect("an entry"));
        for path in entries.map(|entry| entry.path()) {
            if path.extension().is_some_and(|end| end == "out" || end == "err") {
                std::fs::remove_file(path).expect("a file of its own");
            }
        }
    }
}

impl<S: Subject> Drop for Site<S> {
    fn drop(&mut self) {
        if std::env::var_os(LOG).is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("what the workers wrote is in {}", self.dir.path().display());
        }
    }
}

/// The dead letters of the jobs from this number on. What has none, or none that can be read, is of all chapters.
async fn letters(broker: &dyn Broker, first: u64) -> Vec<Letter> {
    let dead = broker.dead_letters();
    let listed = dead.list(LetterQuery { oldest_first: true, ..LetterQuery::default() });
    let letters = listed.map(|letter| {
        let letter = letter.expect("letters can be listed");
        let headers = &letter.message.headers;
        let id = headers.get("ce-id").or_else(|| headers.get("ce_id")).unwrap_or_default();
        let number = std::str::from_utf8(id).unwrap_or_default().trim_start_matches('L');
        Letter {
            number: number.parse().unwrap_or(0),
            queue: letter.queue.to_string(),
            reason: letter.reason.as_str().to_owned(),
            attempts: letter.attempts,
            replays: letter.record.replays,
            body: letter.message.body.as_deref().unwrap_or_default().to_vec(),
        }
    });
    let letters: Vec<Letter> = letters.collect().await;
    letters.into_iter().filter(|letter| letter.number >= first || letter.number == 0).collect()
}

/// What a job is to do, and how it therefore ends.
struct Plan {
    done_at: u32,
    fails: &'static str,
    ms: u64,
    ends: Ends,
    attempts: u32,
}

impl Plan {
    fn body(&self, number: u64) -> Vec<u8> {
        if self.fails == "malformed" {
            return format!("{{\"job\": {number}, this is no JSON").into_bytes();
        }
        let Self { done_at, fails, ms, .. } = self;
        format!(r#"{{"job":{number},"done_at":{done_at},"fails":"{fails}","ms":{ms}}}"#).into_bytes()
    }
}

fn plan(random: &mut fastrand::Rng, in_order: bool) -> Plan {
    let done = |done_at, fails, ms| Plan { done_at, fails, ms, ends: Ends::Done, attempts: done_at };
    let dead = |reason, fails, ms, attempts| Plan { done_at: 0, fails, ms, ends: Ends::Dead(reason), attempts };
    let ms = random.u64(..8);
    match random.u32(..if in_order { 60 } else { 20 }) {
        0 => dead("exhausted", "error", ms, ATTEMPTS),
        1 => dead("permanent", "permanent", ms, 1),
        2 => dead("malformed", "malformed", 0, 0),
        3 => done(2, "panic", ms),
        4 => done(2, "timeout", ms),
        5 => done(3, "error", ms),
        6 => done(1, "error", 450),
        7..=9 => done(2, "error", ms),
        10..=13 => done(1, "error", 0),
        _ => done(1, "error", ms),
    }
}

fn config(address: &str, rules: &Rules, orders: bool) -> String {
    let (first, factor, max) = rules.retry;
    let retry = format!(
        "retry = {{ attempts = {ATTEMPTS}, first = \"{}\", factor = {factor:?}, max = \"{}\", jitter = 0.2 }}",
        format_duration(first),
        format_duration(max)
    );
    let queue = |name: &str, topic: &str, order: &str| {
        format!(
            "[queues.{name}]\ntopics = [\"{topic}\"]\njob = \"ledger\"\ntimeout = \"1s\"\norder = \"{order}\"\n{retry}\n"
        )
    };
    format!(
        "broker = \"{address}\"\nnamespace = \"ledger\"\n[worker]\nslots = {}\ngrace = \"{}\"\nlease = \"{}\"\n\
         [log]\nlevel = \"{}\"\n[kafka]\nin_place = \"150ms\"\n{}{}{}",
        rules.slots,
        format_duration(rules.grace),
        format_duration(rules.lease),
        std::env::var(LOG).as_deref().unwrap_or("warn"),
        queue(MIXED[0], "mixed", "none"),
        queue(MIXED[1], "mixed", "none"),
        queue(KEYED, "keyed", if orders { "key" } else { "none" }),
    )
}

fn options(namespace: &Namespace, rules: &Rules, orders: bool) -> Options {
    let queue = |name: &str, topic: &str| Queue {
        name: QueueName::new(name).expect("a name"),
        topics: vec![Topic::new(topic).expect("a topic")],
        job: JobName::new("ledger").expect("a name"),
        slots: NonZeroUsize::new(rules.slots).expect("not 0"),
        ordered: orders && name == KEYED,
        start: Start::Earliest,
        max_crashes: rules.max_crashes as u32,
        keep_dead: None,
    };
    Options {
        namespace: namespace.clone(),
        namespace_set: true,
        role: Role::Producer,
        timeout: Duration::from_secs(10),
        lease: rules.lease,
        grace: rules.grace,
        queues: vec![queue(MIXED[0], "mixed"), queue(MIXED[1], "mixed"), queue(KEYED, "keyed")],
        worker: "publisher".into(),
        clock: Clock::System,
        sqlite: Default::default(),
        nats: Default::default(),
        kafka: Default::default(),
    }
}
