//! Counting on the hot path. A [`JobTally`] belongs to one task, costs a few additions a job, and is flushed to
//! the shared meter once a batch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge};

use super::exposition::{counter, gauge, histogram};
use super::histogram::{Histogram, Local, Snapshot};
use crate::message::{JobName, QueueName, Reason};

/// What happened, as the label of `jobs_total` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutcomeLabel {
    /// `done`
    Done,
    /// `failed`
    Failed,
    /// `timed_out`
    TimedOut,
    /// `panicked`
    Panicked,
    /// `interrupted`
    Interrupted,
    /// `malformed`
    Malformed,
    /// `expired`
    Expired,
    /// `unroutable`
    Unroutable,
    /// `snoozed`
    Snoozed,
}

impl OutcomeLabel {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Done,
        Self::Failed,
        Self::TimedOut,
        Self::Panicked,
        Self::Interrupted,
        Self::Malformed,
        Self::Expired,
        Self::Unroutable,
        Self::Snoozed,
    ];

    /// As the label spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Panicked => "panicked",
            Self::Interrupted => "interrupted",
            Self::Malformed => "malformed",
            Self::Expired => "expired",
            Self::Unroutable => "unroutable",
            Self::Snoozed => "snoozed",
        }
    }

    /// Whether a handler was called at all: what never started has no duration and no wait.
    const fn ran(self) -> bool {
        !matches!(self, Self::Malformed | Self::Expired | Self::Unroutable)
    }
}

/// Why intake is paused, as the label of `intake_paused` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Every slot is busy.
    Full,
    /// Payload bytes in flight are at their limit.
    Bytes,
    /// A dead letter cannot be stored.
    DeadLetter,
    /// An ordered queue waits for a key.
    Order,
    /// An operator said so.
    Operator,
    /// Partitions are moving.
    Rebalance,
    /// The broker does not answer.
    Broker,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Full, Self::Bytes, Self::DeadLetter, Self::Order, Self::Operator, Self::Rebalance, Self::Broker];

    /// As the label spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Bytes => "bytes",
            Self::DeadLetter => "dead_letter",
            Self::Order => "order",
            Self::Operator => "operator",
            Self::Rebalance => "rebalance",
            Self::Broker => "broker",
        }
    }
}

/// The label `job` of names that nobody registered: a producer may write any name, and labels must stay bounded.
const OTHER: &str = "other";

/// The figures of one queue. Setting a gauge is an atomic store.
pub struct QueueMeter {
    queue: QueueName,
    slots: Gauge,
    in_flight: Gauge,
    /// Beside the gauge, which cannot be read back.
    running: AtomicUsize,
    bytes_in_flight: Gauge,
    unconfirmed: Gauge,
    paused: [Gauge; Why::ALL.len()],
    redeliveries: Counter,
    dead_expired: Counter,
    lost: Counter,
    head_age: Gauge,
    head_span: Gauge,
    settle: Arc<Histogram>,
    jobs: HashMap<JobName, Arc<JobMeter>>,
    /// Jobs that are not among `jobs`.
    other: Arc<JobMeter>,
}

/// The figures of one job of one queue, which are shown from its first attempt in this queue on.
struct JobMeter {
    queue: QueueName,
    job: Arc<str>,
    /// Whether it ever runs; [`OTHER`] does not.
    runs: bool,
    shown: OnceLock<Shown>,
}

/// What a job has measured.
struct Shown {
    outcomes: [Counter; OutcomeLabel::ALL.len()],
    retries: Counter,
    dead: [Counter; Reason::ALL.len()],
    /// `None` where it never runs.
    times: Option<Times>,
    /// The same counts once more, for the summary: a counter cannot be read back.
    done: AtomicU64,
    ended: AtomicU64,
    retried: AtomicU64,
    dead_lettered: AtomicU64,
}

struct Times {
    last_success: Gauge,
    duration: Arc<Histogram>,
    wait: Arc<Histogram>,
}

/// What a queue had counted at one moment, over all its jobs.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Attempts that succeeded.
    pub done: u64,
    /// Attempts that ended, however.
    pub ended: u64,
    /// Retries stored.
    pub retried: u64,
    /// Dead letters stored.
    pub dead: u64,
    /// Jobs running now.
    pub in_flight: usize,
    /// From when jobs could have started to when they did.
    pub wait: Snapshot,
}

impl QueueMeter {
    /// The meter of a queue that runs `own` unless an event names another one of `jobs`. Every label set of the queue
    /// and of `own` is present at 0 from here on; those of the others appear when such a job first runs here, for most
    /// never do, and queues times jobs are many.
    pub fn new(queue: &QueueName, own: &JobName, jobs: &[JobName]) -> Arc<Self> {
        let name = queue.as_str();
        let meter = |job: &JobName| (job.clone(), Arc::new(JobMeter::new(queue, job.shared(), true)));
        let jobs: HashMap<_, _> = jobs.iter().chain([own]).map(meter).collect();
        let other = JobMeter::new(queue, OTHER.into(), false);
        for shown in [&jobs[own], &other] {
            shown.show();
        }
        let here = [("queue", name)];
        Arc::new(Self {
            queue: queue.clone(),
            slots: gauge("windlass_slots", &here),
            in_flight: gauge("windlass_in_flight", &here),
            running: AtomicUsize::new(0),
            bytes_in_flight: gauge("windlass_bytes_in_flight", &here),
            unconfirmed: gauge("windlass_unconfirmed", &here),
            paused: Why::ALL.map(|why| gauge("windlass_intake_paused", &[("queue", name), ("why", why.as_str())])),
            redeliveries: counter("windlass_redeliveries_total", &here),
            dead_expired: counter("windlass_dead_letters_expired_total", &here),
            lost: counter("windlass_lost_total", &here),
            head_age: gauge("windlass_head_age_seconds", &here),
            head_span: gauge("windlass_head_span", &here),
            settle: histogram("windlass_settle_duration_seconds", &here),
            jobs,
            other: Arc::new(other),
        })
    }

    /// The queue.
    pub fn queue(&self) -> &QueueName {
        &self.queue
    }

    /// `slots`
    pub fn set_slots(&self, slots: usize) {
        self.slots.set(slots as f64);
    }

    /// `in_flight`
    pub fn set_in_flight(&self, jobs: usize) {
        self.running.store(jobs, Relaxed);
        self.in_flight.set(jobs as f64);
    }

    /// `bytes_in_flight`
    pub fn set_bytes_in_flight(&self, bytes: usize) {
        self.bytes_in_flight.set(bytes as f64);
    }

    /// `unconfirmed`
    pub fn set_unconfirmed(&self, deliveries: usize) {
        self.unconfirmed.set(deliveries as f64);
    }

    /// `intake_paused{why}`: 1 or 0.
    pub fn set_paused(&self, why: Why, paused: bool) {
        self.paused[why as usize].set(if paused { 1.0 } else { 0.0 });
    }

    /// `job_retries_total`
    pub fn add_retries(&self, job: &JobName, count: u64) {
        let job = self.job(job).show();
        job.retries.increment(count);
        job.retried.fetch_add(count, Relaxed);
    }

    /// `dead_letters_total`
    pub fn add_dead(&self, job: &JobName, reason: Reason) {
        let job = self.job(job).show();
        job.dead[reason as usize].increment(1);
        job.dead_lettered.fetch_add(1, Relaxed);
    }

    /// `dead_letters_expired_total`
    pub fn add_dead_expired(&self, count: u64) {
        self.dead_expired.increment(count);
    }

    /// `lost_total`: events that the topic's retention removed before they could run.
    pub fn add_lost(&self, count: u64) {
        self.lost.increment(count);
    }

    /// `head_age_seconds` and `head_span`
    pub fn set_head(&self, (age, span): (Duration, u64)) {
        self.head_age.set(age.as_secs_f64());
        self.head_span.set(span as f64);
    }

    /// `redeliveries_total`
    pub fn add_redeliveries(&self, count: u64) {
        self.redeliveries.increment(count);
    }

    /// `settle_duration_seconds`, for `count` settlements that took this long together.
    pub fn observe_settle(&self, took: Duration, count: usize) {
        self.settle.observe(took, count as u64);
    }

    /// A tally for one task, of one job of this queue.
    pub fn tally(self: &Arc<Self>, job: &JobName) -> JobTally {
        JobTally {
            job: self.job(job).clone(),
            outcomes: [0; OutcomeLabel::ALL.len()],
            touched: 0,
            duration: Local::default(),
            wait: Local::default(),
        }
    }

    /// What was counted so far.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals { in_flight: self.running.load(Relaxed), ..Totals::default() };
        for job in self.jobs.values().chain([&self.other]).filter_map(|job| job.shown.get()) {
            totals.done += job.done.load(Relaxed);
            totals.ended += job.ended.load(Relaxed);
            totals.retried += job.retried.load(Relaxed);
            totals.dead += job.dead_lettered.load(Relaxed);
            if let Some(times) = &job.times {
                totals.wait = totals.wait.plus(&times.wait.snapshot());
            }
        }
        totals
    }

    fn job(&self, job: &JobName) -> &Arc<JobMeter> {
        self.jobs.get(job).unwrap_or(&self.other)
    }
}

impl JobMeter {
    fn new(queue: &QueueName, job: Arc<str>, runs: bool) -> Self {
        Self { queue: queue.clone(), job, runs, shown: OnceLock::new() }
    }

    fn show(&self) -> &Shown {
        self.shown.get_or_init(|| Shown::new(self.queue.as_str(), &self.job, self.runs))
    }
}

impl Shown {
    fn new(queue: &str, job: &str, runs: bool) -> Self {
        let here = [("queue", queue), ("job", job)];
        let with = |name, value| [("queue", queue), ("job", job), (name, value)];
        Self {
            outcomes: OutcomeLabel::ALL.map(|o| counter("windlass_jobs_total", &with("outcome", o.as_str()))),
            retries: counter("windlass_job_retries_total", &here),
            dead: Reason::ALL.map(|r| counter("windlass_dead_letters_total", &with("reason", r.as_str()))),
            times: runs.then(|| Times {
                last_success: gauge("windlass_last_success_timestamp_seconds", &here),
                duration: histogram("windlass_job_duration_seconds", &here),
                wait: histogram("windlass_job_wait_seconds", &here),
            }),
            done: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            dead_lettered: AtomicU64::new(0),
        }
    }
}

/// Counts of one job by one task; flush it once a batch (dropping it flushes too).
pub struct JobTally {
    job: Arc<JobMeter>,
    outcomes: [u32; OutcomeLabel::ALL.len()],
    /// A bit for each outcome that is not 0.
    touched: u16,
    duration: Local,
    wait: Local,
}

impl JobTally {
    /// Counts one attempt: `jobs_total`, `job_duration_seconds`, `job_wait_seconds` (from when it could first
    /// have started to when it did). What never started (malformed, expired, unroutable) counts as an outcome only.
    #[inline]
    pub fn record(&mut self, outcome: OutcomeLabel, wait: Duration, ran: Duration) {
        self.outcomes[outcome as usize] += 1;
        self.touched |= 1 << outcome as usize;
        if outcome.ran() {
            self.wait.record(wait);
            self.duration.record(ran);
        }
    }

    /// Adds what was counted to the shared meter.
    pub fn flush(&mut self) {
        if self.touched == 0 {
            return;
        }
        let mut touched = std::mem::take(&mut self.touched);
        let job = self.job.show();
        let mut ended = 0;
        while touched != 0 {
            let outcome = touched.trailing_zeros() as usize;
            touched &= touched - 1;
            let count = u64::from(std::mem::take(&mut self.outcomes[outcome]));
            ended += count;
            job.outcomes[outcome].increment(count);
            if outcome == OutcomeLabel::Done as usize {
                job.done.fetch_add(count, Relaxed);
                if let Some(times) = &job.times {
                    // A batch late at most, which is below what anybody alerts on.
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    times.last_success.set(now.as_secs_f64());
                }
            }
        }
        job.ended.fetch_add(ended, Relaxed);
        if let Some(times) = &job.times {
            self.wait.flush(&times.wait);
            self.duration.flush(&times.duration);
        }
    }
}

impl Drop for JobTally {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_indices() {
        for (n, outcome) in OutcomeLabel::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, n);
        }
        for (n, why) in Why::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, n);
        }
        for (n, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, n);
        }
    }

    #[test]
    fn tallies_add_up_whoever_counted_and_whenever_they_were_flushed() {
        let queue = QueueName::new("meter-adds-up").expect("valid");
        let job = JobName::new("a").expect("valid");
        let meter = QueueMeter::new(&queue, &job, &[]);
        let (mut one, mut two) = (meter.tally(&job), meter.tally(&job));
        for n in 0..10 {
            one.record(OutcomeLabel::Done, Duration::from_millis(n), Duration::from_millis(1));
            two.record(OutcomeLabel::Failed, Duration::ZERO, Duration::from_secs(1));
        }
        two.record(OutcomeLabel::Malformed, Duration::ZERO, Duration::ZERO);
        assert_eq!(meter.totals().ended, 0, "nothing was flushed");
        one.flush();
        one.flush();
        drop(two);
        let totals = meter.totals();
        assert_eq!((totals.done, totals.ended), (10, 21));
        assert_eq!(totals.wait.count(), 20, "a malformed message has no wait");
    }

    #[test]
    fn names_that_nobody_registered_share_one_label() {
        let queue = QueueName::new("meter-bounded").expect("valid");
        let job = |name: &str| JobName::new(name).expect("valid");
        let meter = QueueMeter::new(&queue, &job("a"), &[job("a"), job("b"), job("c")]);
        meter.tally(&job("b")).record(OutcomeLabel::Done, Duration::ZERO, Duration::ZERO);
        let _unused = meter.tally(&job("c"));
        for n in 0..1_000 {
            let job = JobName::new(&format!("made-up-{n}")).expect("valid");
            meter.tally(&job).record(OutcomeLabel::Unroutable, Duration::ZERO, Duration::ZERO);
            meter.add_dead(&job, Reason::Unroutable);
        }
        let text = super::super::exposition::render();
        assert!(!text.contains("made-up"));
        let shown = |job: &str| text.contains(&format!("{{queue=\"meter-bounded\",job=\"{job}\""));
        assert!(shown("a") && shown("b") && !shown("c"), "a job that never ran beside the queue's own is not shown");
        let line = r#"windlass_jobs_total{queue="meter-bounded",job="other",outcome="unroutable"} 1000"#;
        assert!(text.contains(line), "{text}");
    }
}
