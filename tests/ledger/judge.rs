//! The judge: from what was published, run and broken to what is wrong with it. Pure.
//!
//! It knows nothing of the worker but what its fine print promises (INTERFACE 8), and believes nothing that the
//! worker says of itself.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::record::{Record, What};

/// All that the judge is told.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// What the broker confirmed, once for each queue that had to get it.
    pub jobs: Vec<Job>,
    /// What handlers wrote.
    pub records: Vec<Record>,
    /// What was broken on purpose.
    pub faults: Vec<Fault>,
    /// The dead letters at the end.
    pub letters: Vec<Letter>,
    /// What the broker says it still holds of each queue at the end, dead letters aside.
    pub left: BTreeMap<String, u64>,
    /// What the workers were told.
    pub rules: Rules,
}

/// A job as its publisher knows it.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its number.
    pub number: u64,
    /// The queue that has to run it.
    pub queue: String,
    /// Where the queue is in key order: the key, and its place among those of its key.
    pub key: Option<(String, u64)>,
    /// How it has to end.
    pub ends: Ends,
    /// After so many attempts.
    pub attempts: u32,
    /// The payload, byte for byte.
    pub body: Vec<u8>,
}

/// How a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// It succeeds.
    Done,
    /// It becomes a dead letter with this reason.
    Dead(&'static str),
}

/// A dead letter as the broker gives it.
#[derive(Clone, Debug)]
pub struct Letter {
    /// The job's number, by its event id.
    pub number: u64,
    /// Its queue.
    pub queue: String,
    /// Its reason.
    pub reason: String,
    /// The attempts that it says were made.
    pub attempts: u32,
    /// How often it was replayed before.
    pub replays: u32,
    /// The payload.
    pub body: Vec<u8>,
}

/// Something that was broken on purpose. Times are of the records' clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The worker it hit; `None`: every worker, because the broker was hit.
    pub pid: Option<u32>,
    /// From when.
    pub from: u64,
    /// Until when; of a kill the same.
    pub to: u64,
    /// What.
    pub kind: Kind,
}

/// What was done to a worker, or to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `kill -9`.
    Killed,
    /// Stopped, or cut off from the broker.
    Frozen,
    /// Told to leave.
    Left,
    /// The broker was killed, restarted or changed its leader, its disk was full, or every worker was cut off from it.
    Broker,
    /// The wall clock was set.
    Stepped,
    /// All bytes were held up for a moment.
    Delayed,
    /// Dead letters were refused.
    Refused,
}

/// What the workers were told.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Slots of one worker, over all queues.
    pub slots: usize,
    /// Its lease.
    pub lease: Duration,
    /// Its grace.
    pub grace: Duration,
    /// The delay after the first failed attempt, by how much it grows, and the longest.
    pub retry: (Duration, f64, Duration),
    /// Crashes that condemn a job.
    pub max_crashes: usize,
    /// The longest that a finished job may be unconfirmed on a slow machine.
    pub unconfirmed: Duration,
    /// Whether a frozen worker may hold what the others need to store anything: the lock of a file.
    pub one_lock: bool,
    /// Whether a server that is killed may give out anew what somebody works on.
    pub forgets: bool,
    /// Whether what is done waits for what is moved, a transaction of several round trips: a partition's offset.
    pub moves_first: bool,
    /// What was about to begin when its worker was frozen writes that it has begun so long after the thaw; zero: never.
    pub thaw: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            slots: 8,
            lease: Duration::from_secs(1),
            grace: Duration::from_secs(5),
            retry: (Duration::from_millis(100), 2.0, Duration::from_secs(1)),
            max_crashes: 3,
            unconfirmed: Duration::from_secs(2),
            one_lock: false,
            forgets: true,
            moves_first: false,
            thaw: Duration::from_millis(20),
        }
    }
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// It neither succeeded nor is it a dead letter, and the broker has it no more.
    Lost,
    /// It did not end, and the broker or a worker still has it.
    Stuck,
    /// It was run again, and nothing explains why.
    Duplicate,
    /// An attempt was skipped, counted twice, used up by a crash or given back.
    Attempt,
    /// A retry began before it was due.
    Early,
    /// A key's later job began before the earlier one had ended.
    Order,
    /// Two workers, or one twice, ran it at the same time.
    Owners,
    /// It ended otherwise than it should have.
    Ending,
    /// Two dead letters of one failure.
    LetterTwice,
    /// A dead letter that is not, byte for byte, what was published.
    LetterBytes,
    /// More jobs at once than slots.
    Slots,
    /// A run of something that was never published, or for a queue that should not have it.
    Unknown,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which rule.
    pub rule: Rule,
    /// What was seen.
    pub what: String,
}

/// What the judge found.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// All that is wrong.
    pub findings: Vec<Finding>,
    /// Runs in all.
    pub runs: usize,
    /// Runs beyond the first of an attempt, each explained by a fault.
    pub explained: usize,
    /// Dead letters.
    pub letters: usize,
}

impl Verdict {
    /// The rules that were broken.
    pub fn rules(&self) -> HashSet<Rule> {
        self.findings.iter().map(|finding| finding.rule).collect()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { findings, runs, explained, letters } = self;
        write!(f, "{runs} runs, {explained} of them again and explained, {letters} dead letters, ")?;
        writeln!(f, "{} wrong", findings.len())?;
        findings.iter().take(40).try_for_each(|finding| writeln!(f, "  {:?}: {}", finding.rule, finding.what))
    }
}

/// A run, put together from its records.
#[derive(Clone, Debug)]
struct Run {
    attempt: u32,
    pid: u32,
    start: u64,
    /// When it ended or its worker was killed; `u64::MAX`: never.
    end: u64,
    /// How it ended; `None`: its worker was killed, or it still runs.
    how: Option<What>,
    /// It is to end as a dead letter.
    last: bool,
}

impl Run {
    fn failed(&self) -> bool {
        matches!(self.how, Some(What::Failed | What::Refused | What::Panicked | What::TimedOut))
    }
}

type Runs = HashMap<(String, u64), Vec<Run>>;

/// Jobs that end at once share one look at the wall clock: so old it may be when it becomes a due time.
const READ_ONCE: u64 = 250_000_000;

/// A wall clock in milliseconds stands between a failure and its retry, and the two clocks drift a little.
const CLOCKS: u64 = 2_000_000;

/// Judges.
pub fn judge(story: &Story) -> Verdict {
    let runs = runs(story);
    let mut verdict =
        Verdict { runs: runs.values().map(Vec::len).sum(), letters: story.letters.len(), ..Verdict::default() };
    let mut known = HashSet::new();
    let mut kept_of: HashMap<(&str, u64), Vec<&Letter>> = HashMap::new();
    for letter in &story.letters {
        kept_of.entry((&letter.queue, letter.number)).or_default().push(letter);
    }
    for job in &story.jobs {
        let id = (job.queue.clone(), job.number);
        let runs = runs.get(&id).map_or(&[][..], Vec::as_slice);
        let letters = kept_of.get(&(job.queue.as_str(), job.number)).map_or(&[][..], Vec::as_slice);
        ending(story, job, runs, letters, &mut verdict);
        again(story, job, runs, &mut verdict);
        attempts(story, job, runs, letters, &mut verdict);
        early(story, job, runs, &mut verdict);
        owners(story, job, runs, &mut verdict);
        kept(job, letters, &mut verdict);
        known.insert(id);
    }
    order(story, &runs, &mut verdict);
    slots(story, &runs, &mut verdict);
    let strangers = runs.keys().filter(|id| !known.contains(*id));
    verdict.findings.extend(strangers.map(|(queue, number)| Finding {
        rule: Rule::Unknown,
        what: format!("job {number} ran on {queue}, which was never to have it"),
    }));
    verdict.findings.sort_by_key(|finding| finding.rule);
    for finding in &mut verdict.findings {
        finding.what.push_str(&history(story, &runs, &finding.what));
    }
    verdict
}

/// All that happened to a job, for whoever has to find out why; times from the first record on.
fn history(story: &Story, runs: &Runs, what: &str) -> String {
    let mut words = what.split([' ', ':']);
    let (Some("job"), Some(number), Some("of"), Some(queue)) = (words.next(), words.next(), words.next(), words.next())
    else {
        return String::new();
    };
    let id = (queue.to_owned(), number.parse().unwrap_or(0));
    let begun = story.records.iter().map(|record| record.at).min().unwrap_or(0);
    let since = |at: u64| at.saturating_sub(begun) as f64 / 1e9;
    let mut lines: Vec<(u64, String)> = Vec::new();
    for run in runs.get(&id).into_iter().flatten() {
        let Run { attempt, pid, start, how, .. } = run;
        let end = if run.end == u64::MAX { f64::INFINITY } else { since(run.end) };
        lines.push((*start, format!("{:.3}-{end:.3} attempt {attempt} at {pid}: {how:?}", since(*start))));
    }
    for Fault { pid, from, to, kind } in &story.faults {
        lines.push((*from, format!("{:.3}-{:.3} {kind:?} {pid:?}", since(*from), since(*to))));
    }
    lines.sort();
    lines.into_iter().map(|(_, line)| format!("\n      {line}")).collect()
}

impl Verdict {
    fn add(&mut self, rule: Rule, job: &Job, what: impl fmt::Display) {
        self.findings.push(Finding { rule, what: format!("job {} of {}: {what}", job.number, job.queue) });
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

fn runs(story: &Story) -> Runs {
    let last: HashMap<(&str, u64), u32> = story
        .jobs
        .iter()
        .filter(|job| job.ends != Ends::Done)
        .map(|job| ((job.queue.as_str(), job.number), job.attempts))
        .collect();
    let mut runs: Runs = HashMap::new();
    let mut open: HashMap<(u32, u32), ((String, u64), usize)> = HashMap::new();
    for record in &story.records {
        let (id, tag) = ((record.queue.clone(), record.job), (record.pid, record.serial));
        if record.what == What::Start {
            let list = runs.entry(id.clone()).or_default();
            open.insert(tag, (id, list.len()));
            let last = last.get(&(record.queue.as_str(), record.job)) == Some(&record.attempt);
            list.push(Run {
                attempt: record.attempt,
                pid: record.pid,
                start: record.at,
                end: u64::MAX,
                how: None,
                last,
            });
        } else if let Some((id, index)) = open.remove(&tag) {
            let run = &mut runs.get_mut(&id).expect("it was opened")[index];
            (run.end, run.how) = (record.at, Some(record.what));
        }
    }
    for (id, index) in open.into_values() {
        let run = &mut runs.get_mut(&id).expect("it was opened")[index];
        let killed = story.faults.iter().find(|f| f.kind == Kind::Killed && f.pid == Some(run.pid));
        // It died between the two; the earlier is nearer, and a run may have begun after it.
        let killed = killed.filter(|fault| run.start <= fault.to);
        run.end = killed.map_or(u64::MAX, |fault| fault.from.max(run.start));
    }
    for list in runs.values_mut() {
        let asleep: Vec<Option<u64>> = list.iter().map(|run| asleep_since(story, list, run)).collect();
        list.iter_mut().zip(asleep).for_each(|(run, since)| run.start = since.unwrap_or(run.start));
        list.sort_by_key(|run| run.start);
    }
    runs
}

/// Where a run was about to begin when its worker was frozen, and was run elsewhere meanwhile: since when it was.
fn asleep_since(story: &Story, list: &[Run], run: &Run) -> Option<u64> {
    if story.rules.thaw.is_zero() {
        return None;
    }
    let thawed = |fault: &&Fault| {
        // Whoever thaws it writes that down when it runs again already.
        let just = (fault.from..=fault.to + nanos(story.rules.thaw)).contains(&run.start);
        fault.kind == Kind::Frozen && fault.pid == Some(run.pid) && just
    };
    let slept = story.faults.iter().find(thawed)?;
    let meanwhile = |other: &Run| other.attempt >= run.attempt && (slept.from..run.start).contains(&other.start);
    list.iter().any(meanwhile).then_some(slept.from)
}

/// How many runs a fault met: those that were going on when it came, or had ended and were possibly unconfirmed.
#[cfg_attr(not(feature = "seeded-bugs"), expect(dead_code, reason = "only campaigns ask"))]
pub fn met(story: &Story, fault: &Fault) -> usize {
    let is_met = |run: &Run| {
        fault.pid.is_none_or(|pid| pid == run.pid)
            && run.start <= fault.to
            && run.end.saturating_add(nanos(story.rules.unconfirmed)) >= fault.from
    };
    runs(story).values().flatten().filter(|run| is_met(run)).count()
}

/// Whether a fault explains that this run's ending did not count, so that the job may be run once more.
fn explains(story: &Story, run: &Run) -> bool {
    [Kind::Killed, Kind::Broker, Kind::Frozen, Kind::Left].into_iter().any(|kind| hit(story, run, kind))
}

/// Whether such a fault came while this run was going on, or finished and possibly not yet confirmed.
fn hit(story: &Story, run: &Run, kind: Kind) -> bool {
    let (rules, unconfirmed_until) = (&story.rules, unconfirmed_until(story, run));
    story.faults.iter().filter(|fault| fault.kind == kind).any(|fault| {
        let its = fault.pid.is_none_or(|pid| pid == run.pid);
        let open = run.start <= fault.to && unconfirmed_until >= fault.from;
        its && match kind {
            Kind::Killed | Kind::Broker => open,
            // A lease ends so long after it was last extended, which is done each third of it.
            Kind::Frozen => {
                (open || run.start <= fault.to && run.end >= fault.to)
                    && fault.to - fault.from >= nanos(rules.lease) * 2 / 3
            }
            // Its time may have been over too when it was cancelled: a process that slept finds out both at once.
            Kind::Left => {
                matches!(run.how, Some(What::Cancelled | What::TimedOut)) && run.end >= fault.from + nanos(rules.grace)
            }
            // Leases are on another clock, and nothing but due times on this one. What waits is not lost.
            Kind::Stepped | Kind::Delayed | Kind::Refused => false,
        }
    })
}

/// Whether a broker that was killed may have forgotten what it had confirmed of an earlier run of this attempt: then it
/// comes once more, whatever that run has led to by now.
fn forgotten(story: &Story, runs: &[Run], run: &Run) -> bool {
    runs.iter().any(|other| other.attempt == run.attempt && other.start < run.start && hit(story, other, Kind::Broker))
}

/// Until when the end of a run may be unconfirmed: while the broker is down, its own worker sleeps, or somebody sleeps on
/// the lock, it is not, nor while dead letters are refused where it is to be one. Where moves go first every end waits for
/// them: while they are refused, and for transactions while bytes are held up.
fn unconfirmed_until(story: &Story, run: &Run) -> u64 {
    let rules = &story.rules;
    let mut until = run.end.saturating_add(nanos(rules.unconfirmed));
    let mut stops: Vec<&Fault> = story
        .faults
        .iter()
        .filter(|fault| match fault.kind {
            Kind::Broker => true,
            Kind::Frozen => rules.one_lock || fault.pid == Some(run.pid),
            Kind::Refused => run.last || rules.moves_first,
            Kind::Delayed => rules.moves_first,
            Kind::Killed | Kind::Left | Kind::Stepped => false,
        })
        .filter(|fault| fault.to > run.end)
        .collect();
    stops.sort_by_key(|fault| fault.from);
    for stop in stops {
        if stop.from <= until {
            until = until.max(stop.to.saturating_add(nanos(rules.unconfirmed)));
        }
    }
    until
}

/// Whether this run's worker could not know that it had lost the job: what it still does counts for nothing.
fn blind(story: &Story, run: &Run) -> bool {
    story.faults.iter().any(|fault| {
        matches!(fault.kind, Kind::Frozen | Kind::Broker)
            && fault.pid.is_none_or(|pid| pid == run.pid)
            && run.start <= fault.to
            && run.end >= fault.from
    })
}

fn ending(story: &Story, job: &Job, runs: &[Run], letters: &[&Letter], verdict: &mut Verdict) {
    let done = runs.iter().any(|run| run.how == Some(What::Done));
    let crashes = if job.ends == Ends::Dead("malformed") {
        // A handler that cannot read its argument writes nothing down: any death may have been in a run of it.
        story.faults.iter().filter(|fault| fault.kind == Kind::Killed).count()
    } else {
        runs.iter().filter(|run| hit(story, run, Kind::Killed)).count()
    };
    match (done, letters.first()) {
        (true, None) if job.ends == Ends::Done => {}
        (false, None) => {
            let alive = runs.iter().any(|run| run.end == u64::MAX);
            let held = story.left.get(&job.queue).is_some_and(|left| *left > 0);
            if alive || held {
                verdict.add(Rule::Stuck, job, format_args!("it did not end, with {} runs", runs.len()));
            } else {
                verdict.add(Rule::Lost, job, format_args!("it did not end and is nowhere, with {} runs", runs.len()));
            }
        }
        (_, Some(letter)) if letter.reason == "crashed" && crashes >= story.rules.max_crashes => {}
        (_, Some(letter)) if job.ends != Ends::Dead(reason(&letter.reason)) => {
            let what = format_args!("a dead letter, {}, not {:?}, with {crashes} crashes", letter.reason, job.ends);
            verdict.add(Rule::Ending, job, what);
        }
        (true, _) => verdict.add(Rule::Ending, job, format_args!("it succeeded, not {:?}", job.ends)),
        (false, Some(_)) => {}
    }
}

fn reason(text: &str) -> &'static str {
    let known = ["exhausted", "permanent", "malformed", "unroutable", "expired", "crashed"];
    known.into_iter().find(|reason| *reason == text).unwrap_or("unknown")
}

/// Each run of an attempt but the last must have ended in a way that a fault explains.
fn again(story: &Story, job: &Job, runs: &[Run], verdict: &mut Verdict) {
    for (index, run) in runs.iter().enumerate() {
        let more = runs[index + 1..].iter().any(|later| later.attempt == run.attempt);
        if !more || run.how == Some(What::Snoozed) {
            continue;
        }
        if explains(story, run) {
            verdict.explained += 1;
        } else {
            let later = &runs[index + 1];
            let Run { attempt, pid, how, .. } = run;
            let after = later.start.checked_sub(run.end).map(Duration::from_nanos);
            let what =
                format_args!("attempt {attempt} ended {how:?} at {pid}, ran again at {} after {after:?}", later.pid);
            verdict.add(Rule::Duplicate, job, what);
        }
    }
    // After a success nothing may run, unless the success may not have counted.
    if let Some(done) = runs.iter().position(|run| run.how == Some(What::Done))
        && let Some(later) =
            runs[done + 1..].iter().find(|run| run.attempt != runs[done].attempt && !forgotten(story, runs, run))
        && !explains(story, &runs[done])
    {
        verdict.add(Rule::Duplicate, job, format_args!("attempt {} ran after a success", later.attempt));
    }
}

fn attempts(story: &Story, job: &Job, runs: &[Run], letters: &[&Letter], verdict: &mut Verdict) {
    let mut highest = 0;
    for run in runs {
        let failed_before =
            || runs.iter().any(|other| other.attempt + 1 == run.attempt && other.failed() && other.end <= run.start);
        if run.attempt < highest && !blind(story, run) && !forgotten(story, runs, run) {
            let what = format_args!("attempt {} ran after attempt {highest}", run.attempt);
            verdict.add(Rule::Attempt, job, what);
        } else if run.attempt > 1 && !failed_before() {
            verdict.add(Rule::Attempt, job, format_args!("attempt {} ran, and none before it failed", run.attempt));
        } else if run.attempt > job.attempts {
            let what = format_args!("attempt {} of {} ran", run.attempt, job.attempts);
            verdict.add(Rule::Attempt, job, what);
        }
        highest = highest.max(run.attempt);
    }
    for letter in letters.iter().filter(|letter| letter.reason != "crashed") {
        if letter.attempts != job.attempts {
            let what = format_args!("its dead letter says {} attempts, not {}", letter.attempts, job.attempts);
            verdict.add(Rule::Attempt, job, what);
        }
    }
}

fn early(story: &Story, job: &Job, runs: &[Run], verdict: &mut Verdict) {
    let (first, factor, max) = story.rules.retry;
    for run in runs.iter().filter(|run| run.attempt > 1) {
        let failures = runs.iter().filter(|other| other.attempt + 1 == run.attempt && other.failed());
        let Some(failed) = failures.map(|failure| failure.end).filter(|end| *end <= run.start).min() else { continue };
        let grown = first.as_secs_f64() * factor.powi(run.attempt as i32 - 2);
        let delay = Duration::from_secs_f64(grown.min(max.as_secs_f64()));
        // Due times are by the wall clock: what waited while it was set forward is due at once.
        let set =
            |fault: &Fault| fault.kind == Kind::Stepped && fault.to + READ_ONCE >= failed && fault.from <= run.start;
        if run.start + CLOCKS < failed + nanos(delay) && !story.faults.iter().any(set) {
            let after = Duration::from_nanos(run.start - failed);
            let what = format_args!("attempt {} began after {after:?} and not after {delay:?}", run.attempt);
            verdict.add(Rule::Early, job, what);
        }
    }
}

fn owners(story: &Story, job: &Job, runs: &[Run], verdict: &mut Verdict) {
    for (index, run) in runs.iter().enumerate() {
        let beside = runs[index + 1..].iter().find(|later| later.start < run.end);
        // It was itself begun beside one that no longer counted and could not know it, or that a killed server had
        // forgotten and whose settlement was not confirmed: what that one led to is beside it.
        let forked = runs[..index].iter().filter(|other| other.attempt == run.attempt).any(|other| {
            let is_forgotten = story.rules.forgets
                && story
                    .faults
                    .iter()
                    .any(|fault| fault.kind == Kind::Broker && other.start <= fault.to && fault.from <= run.start);
            other.end > run.start && blind(story, other) || is_forgotten && unconfirmed_until(story, other) > run.start
        });
        if let Some(later) = beside
            && !blind(story, run)
            && !forked
        {
            let what = format_args!("worker {} began attempt {} while {} ran it", later.pid, later.attempt, run.pid);
            verdict.add(Rule::Owners, job, what);
        }
    }
}

fn kept(job: &Job, letters: &[&Letter], verdict: &mut Verdict) {
    let mut replays = HashSet::new();
    for letter in letters {
        if !replays.insert(letter.replays) {
            verdict.add(Rule::LetterTwice, job, "two dead letters of one failure");
        }
        if letter.body != job.body {
            let (kept, published) = (letter.body.len(), job.body.len());
            verdict.add(Rule::LetterBytes, job, format_args!("{kept} bytes kept, {published} published, not the same"));
        }
    }
}

fn order(story: &Story, runs: &Runs, verdict: &mut Verdict) {
    let mut keys: BTreeMap<(&str, &str), Vec<&Job>> = BTreeMap::new();
    for job in &story.jobs {
        if let Some((key, _)) = &job.key {
            keys.entry((&job.queue, key)).or_default().push(job);
        }
    }
    for jobs in keys.values_mut() {
        jobs.sort_by_key(|job| job.key.as_ref().map(|(_, place)| *place));
        for pair in jobs.windows(2) {
            let of = |job: &Job| runs.get(&(job.queue.clone(), job.number)).map_or(&[][..], Vec::as_slice);
            let Some(began) = of(pair[1]).iter().map(|run| run.start).min() else { continue };
            // What had ended before, and was not confirmed when a fault came, runs again in the order of its key.
            let ended = of(pair[0]).iter().filter(|run| run.end <= began && run.how.is_some());
            let again = ended.map(|run| explains(story, run)).next_back().unwrap_or(false);
            let late =
                of(pair[0]).iter().any(|run| run.end > began && !blind(story, run) && !(again && run.start > began));
            let never = of(pair[0]).is_empty() && pair[0].attempts > 0;
            if late || never {
                verdict.add(Rule::Order, pair[1], format_args!("it began before job {} had ended", pair[0].number));
            }
        }
    }
}

fn slots(story: &Story, runs: &Runs, verdict: &mut Verdict) {
    let mut events: HashMap<u32, Vec<(u64, i64)>> = HashMap::new();
    for run in runs.values().flatten() {
        let worker = events.entry(run.pid).or_default();
        worker.push((run.start, 1));
        worker.push((run.end, -1));
    }
    for (pid, mut events) in events {
        // An end before a start of the same instant.
        events.sort_unstable();
        let mut running = 0i64;
        let mut most = 0;
        for (_, change) in events {
            running += change;
            most = most.max(running);
        }
        if most > story.rules.slots as i64 {
            let what = format!("worker {pid} ran {most} jobs at once on {} slots", story.rules.slots);
            verdict.findings.push(Finding { rule: Rule::Slots, what });
        }
    }
}

#[cfg(test)]
mod tests;
