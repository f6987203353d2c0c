//! The catalogue of log lines: one struct is one line. Messages are constant sentences, data goes into fields,
//! ERROR means that someone must act. No line carries a payload.
//!
//! Field names are those of INTERFACE 7: `queue job event_id attempt outcome duration_ms error_type error trace_id`;
//! `timestamp level message worker` are put there by [`log`](super::log).
//!
//! Counters are not touched here: [`meter`](super::meter) counts every job, this file says only what a person should
//! read, and at most so many lines a second (see [`throttle`](super::throttle)).

use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tracing::Level;

use super::meter::{OutcomeLabel, Why};
use super::throttle::{Kind, Throttle};
use crate::broker::Disposition;
use crate::message::{Failure, JobName, QueueName, Reason};
use crate::time::Timestamp;

static THROTTLE: LazyLock<Throttle> = LazyLock::new(Throttle::default);

/// Lines of done jobs that may still be written at info until the next [`tick`]; none unless people watch.
static DONE_LINES: AtomicI64 = AtomicI64::new(0);

/// What [`DONE_LINES`] is filled up to.
static DONE_REFILL: AtomicI64 = AtomicI64::new(0);

/// How many done jobs a second a person at a terminal is shown.
const DONE_ON_A_TERMINAL: i64 = 10;

/// What [`DONE_REFILL`] is where every outcome is a line.
const EVERY: i64 = i64::MAX / 2;

/// Who reads the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// A collector: done jobs at debug.
    Machine,
    /// A person at a terminal: some of the done jobs at info.
    Terminal,
    /// A developer: every outcome is a line, nothing is thinned.
    Developer,
}

/// Sets who reads.
pub fn set_audience(audience: Audience) {
    let refill = match audience {
        Audience::Machine => 0,
        Audience::Terminal => DONE_ON_A_TERMINAL,
        Audience::Developer => EVERY,
    };
    DONE_REFILL.store(refill, Relaxed);
    DONE_LINES.store(refill, Relaxed);
}

/// Says what was suppressed, and lets a person see some more done jobs. To be called once a second.
pub fn tick() {
    DONE_LINES.store(DONE_REFILL.load(Relaxed), Relaxed);
    for suppressed in THROTTLE.take_suppressed(Instant::now()) {
        tracing::warn!(
            queue = suppressed.queue,
            kind = suppressed.kind.as_str(),
            count = suppressed.count,
            "more of these lines were left out"
        );
    }
}

/// Whether [`Done::emit`] would write anything; a few nanoseconds.
#[inline]
pub fn done_enabled() -> bool {
    DONE_LINES.load(Relaxed) > 0 || tracing::enabled!(Level::DEBUG)
}

fn admits(queue: &QueueName, kind: Kind) -> bool {
    DONE_REFILL.load(Relaxed) == EVERY || THROTTLE.admits(queue.as_str(), kind, Instant::now())
}

/// Milliseconds with three decimals, which is what a person and a dashboard can use.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The trace id of a W3C `traceparent` (`00-TRACE-SPAN-FLAGS`), where it has the right form.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    let id = traceparent.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

/// Which attempt a line is about.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// The job that ran or would have run.
    pub job: &'a JobName,
    /// The event's id; of what could not be decoded, its origin.
    pub event_id: &'a str,
    /// The attempt.
    pub attempt: u32,
    /// See [`trace_id`].
    pub trace_id: Option<&'a str>,
}

/// A line about an attempt.
macro_rules! line {
    ($level:ident, $run:expr, { $($fields:tt)* }, $message:literal) => {
        tracing::$level!(
            queue = $run.queue.as_str(),
            job = $run.job.as_str(),
            event_id = $run.event_id,
            attempt = $run.attempt,
            trace_id = $run.trace_id,
            $($fields)*
            $message
        )
    };
}

/// A job succeeded. Ask [`done_enabled`] first.
pub struct Done<'a> {
    /// The attempt.
    pub run: Run<'a>,
    /// How long it ran.
    pub took: Duration,
}

impl Done<'_> {
    /// Debug; on a terminal info, thinned.
    pub fn emit(&self) {
        let (run, duration_ms) = (self.run, millis(self.took));
        if DONE_LINES.fetch_sub(1, Relaxed) > 0 && tracing::enabled!(Level::INFO) {
            line!(info, run, { outcome = "done", duration_ms, }, "job is done");
        } else {
            line!(debug, run, { outcome = "done", duration_ms, }, "job is done");
        }
    }
}

/// A delivery ended other than well, and what was decided about it.
pub struct Concluded<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// The job that ran or would have run.
    pub job: &'a JobName,
    /// The event's id; empty where it could not be read.
    pub event_id: &'a str,
    /// The attempt.
    pub attempt: u32,
    /// What happened.
    pub outcome: OutcomeLabel,
    /// How long it ran; zero where it never started.
    pub took: Duration,
    /// See [`trace_id`].
    pub trace_id: Option<&'a str>,
    /// What follows.
    pub disposition: &'a Disposition,
}

impl Concluded<'_> {
    /// A retry is warn, a dead letter error, both throttled; what was only put back is debug.
    pub fn emit(&self) {
        match self.disposition {
            Disposition::DeadLetter { reason, failure, .. } => self.dead(*reason, failure),
            Disposition::Retry { at, failure: Some(failure), .. } => self.retry(*at, failure),
            Disposition::Retry { at, failure: None, .. } if self.outcome == OutcomeLabel::Unroutable => {
                self.unroutable(*at);
            }
            Disposition::Retry { .. } | Disposition::Ack | Disposition::Release => {
                let duration_ms = millis(self.took);
                line!(debug, self.run(), { outcome = self.outcome.as_str(), duration_ms, }, "job was put back");
            }
        }
    }

    fn run(&self) -> Run<'_> {
        Run {
            queue: self.queue,
            job: self.job,
            event_id: self.event_id,
            attempt: self.attempt,
            trace_id: self.trace_id,
        }
    }

    fn dead(&self, reason: Reason, failure: &Failure) {
        if admits(self.queue, Kind::DeadLetter) {
            line!(error, self.run(), {
                outcome = self.outcome.as_str(),
                duration_ms = millis(self.took),
                reason = reason.as_str(),
                error_type = failure.error_type,
                error = failure.error,
            }, "job became a dead letter");
        }
    }

    fn retry(&self, at: Timestamp, failure: &Failure) {
        if admits(self.queue, Kind::Retry) {
            line!(warn, self.run(), {
                outcome = self.outcome.as_str(),
                duration_ms = millis(self.took),
                error_type = failure.error_type,
                error = failure.error,
                retry_at = %at,
            }, "job failed and is tried again");
        }
    }

    fn unroutable(&self, at: Timestamp) {
        if admits(self.queue, Kind::Unroutable) {
            line!(warn, self.run(), {
                outcome = self.outcome.as_str(),
                retry_at = %at,
            }, "no job of this name is registered here; it is put back");
        }
    }
}

/// A running job's lease was lost: it runs on, and may run elsewhere too.
pub struct LeaseLost<'a> {
    /// The attempt.
    pub run: Run<'a>,
}

impl LeaseLost<'_> {
    /// Warn, throttled.
    pub fn emit(&self) {
        if admits(self.run.queue, Kind::Settlement) {
            line!(warn, self.run, {}, "lease was lost while the job ran");
        }
    }
}

/// Somebody else owns the job now; nothing was changed.
pub struct StaleSettlement<'a> {
    /// The attempt that was settled.
    pub run: Run<'a>,
}

impl StaleSettlement<'_> {
    /// Warn, throttled.
    pub fn emit(&self) {
        if admits(self.run.queue, Kind::Settlement) {
            line!(warn, self.run, {}, "settlement is stale: another worker owns the job");
        }
    }
}

/// The broker did not confirm a settlement before the lease ended: the job comes again.
pub struct SettlementUnconfirmed<'a> {
    /// The attempt that was settled.
    pub run: Run<'a>,
    /// What is known.
    pub error: &'a str,
}

impl SettlementUnconfirmed<'_> {
    /// Warn, throttled.
    pub fn emit(&self) {
        if admits(self.run.queue, Kind::Settlement) {
            line!(warn, self.run, { error = self.error, }, "settlement was not confirmed; the job comes again");
        }
    }
}

/// A job was running when workers died: it runs with no other suspect beside it.
pub struct Isolated<'a> {
    /// The attempt.
    pub run: Run<'a>,
}

impl Isolated<'_> {
    /// Warn, throttled.
    pub fn emit(&self) {
        if admits(self.run.queue, Kind::Crash) {
            line!(warn, self.run, {}, "job may have killed its worker; it runs with no other suspect");
        }
    }
}

/// Receiving failed; it is tried again.
pub struct ReceiveFailed<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// What the broker said.
    pub error: &'a dyn fmt::Display,
}

impl ReceiveFailed<'_> {
    /// Warn, throttled.
    pub fn emit(&self) {
        if admits(self.queue, Kind::Receive) {
            tracing::warn!(queue = self.queue.as_str(), error = %self.error, "receiving failed; it is tried again");
        }
    }
}

/// The presence record could not be renewed, or dead letters not expired; it is tried again.
pub struct PresenceFailed<'a> {
    /// What the broker said.
    pub error: &'a dyn fmt::Display,
}

impl PresenceFailed<'_> {
    /// Debug: that the broker is away is said elsewhere.
    pub fn emit(&self) {
        tracing::debug!(error = %self.error, "presence was not renewed");
    }
}

/// Dead letters were removed because they had been kept long enough.
pub struct DeadLettersExpired<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// How many.
    pub count: u64,
}

impl DeadLettersExpired<'_> {
    /// Warn.
    pub fn emit(&self) {
        tracing::warn!(
            queue = self.queue.as_str(),
            count = self.count,
            "dead letters were kept long enough and removed"
        );
    }
}

/// Events were gone before they could be handed over.
pub struct EventsLost<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// Where they lay.
    pub place: &'a str,
    /// How many, at most.
    pub count: u64,
}

impl EventsLost<'_> {
    /// Error: the topic's retention is too short for how far this queue lags.
    pub fn emit(&self) {
        tracing::error!(
            queue = self.queue.as_str(),
            place = self.place,
            count = self.count,
            "events were lost: their topic's retention removed them before they could run"
        );
    }
}

/// The worker takes nothing more of a queue for the moment.
pub struct IntakePaused<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// Why.
    pub why: Why,
}

impl IntakePaused<'_> {
    /// Info; throttled, for a saturated queue pauses often.
    pub fn emit(&self) {
        if admits(self.queue, Kind::Intake) {
            tracing::info!(queue = self.queue.as_str(), why = self.why.as_str(), "intake is paused");
        }
    }
}

/// The worker takes from a queue again.
pub struct IntakeResumed<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// Why it had paused.
    pub why: Why,
    /// For how long.
    pub after: Duration,
}

impl IntakeResumed<'_> {
    /// Info, throttled.
    pub fn emit(&self) {
        if admits(self.queue, Kind::Intake) {
            let duration_ms = millis(self.after);
            tracing::info!(queue = self.queue.as_str(), why = self.why.as_str(), duration_ms, "intake goes on");
        }
    }
}

/// A dead letter cannot be stored: its queue waits, and `/ready` says so.
pub struct DeadLetterTrouble<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// What the broker answered.
    pub error: &'a str,
}

impl DeadLetterTrouble<'_> {
    /// Error.
    pub fn emit(&self) {
        tracing::error!(
            queue = self.queue.as_str(),
            error = self.error,
            "dead letters cannot be stored; the queue waits"
        );
    }
}

/// Dead letters can be stored again.
pub struct DeadLetterRecovered<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// For how long they could not.
    pub after: Duration,
}

impl DeadLetterRecovered<'_> {
    /// Info.
    pub fn emit(&self) {
        let duration_ms = millis(self.after);
        tracing::info!(queue = self.queue.as_str(), duration_ms, "dead letters are stored again");
    }
}

/// One job that does not end keeps everything behind it in its partition.
pub struct HeldUp<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// Where its event lies.
    pub place: &'a str,
    /// For how long it has held the others up.
    pub age: Duration,
    /// How far behind it was read.
    pub span: u64,
}

impl HeldUp<'_> {
    /// Warn: other partitions go on, this one does when that job has ended.
    pub fn emit(&self) {
        let (duration_ms, span) = (millis(self.age), self.span);
        let (queue, place) = (self.queue.as_str(), self.place);
        tracing::warn!(queue, place, duration_ms, span, "one job holds up everything behind it in its partition");
    }
}

/// What was held up goes on.
pub struct GoesOn<'a> {
    /// The queue.
    pub queue: &'a QueueName,
}

impl GoesOn<'_> {
    /// Info.
    pub fn emit(&self) {
        tracing::info!(queue = self.queue.as_str(), "no partition is held up any more");
    }
}

/// The broker does not answer.
pub struct BrokerLost<'a> {
    /// Its address, without passwords.
    pub broker: &'a str,
    /// What is known.
    pub error: &'a str,
}

impl BrokerLost<'_> {
    /// Warn: the worker waits and goes on by itself.
    pub fn emit(&self) {
        tracing::warn!(broker = self.broker, error = self.error, "broker does not answer; waiting for it");
    }
}

/// The broker answers again.
pub struct BrokerBack<'a> {
    /// Its address, without passwords.
    pub broker: &'a str,
    /// For how long it was away.
    pub after: Duration,
}

impl BrokerBack<'_> {
    /// Info.
    pub fn emit(&self) {
        tracing::info!(broker = self.broker, duration_ms = millis(self.after), "broker answers again");
    }
}

/// The worker works.
pub struct WorkerStarted<'a> {
    /// The broker, without passwords.
    pub broker: &'a str,
    /// Its queues.
    pub queues: usize,
    /// Jobs that may run at once.
    pub slots: usize,
}

impl WorkerStarted<'_> {
    /// Info.
    pub fn emit(&self) {
        tracing::info!(
            broker = self.broker,
            queues = self.queues,
            slots = self.slots,
            version = env!("CARGO_PKG_VERSION"),
            "worker started"
        );
    }
}

/// A queue was opened: what its broker says of the start, such as with how many old events it begins.
pub struct QueueOpened<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// A sentence.
    pub note: &'a str,
}

impl QueueOpened<'_> {
    /// Info.
    pub fn emit(&self) {
        tracing::info!(queue = self.queue.as_str(), note = self.note, "queue is open");
    }
}

/// The first signal came: nothing new is taken.
pub struct DrainStarted {
    /// Jobs still running.
    pub running: usize,
    /// What they are given.
    pub grace: Duration,
}

impl DrainStarted {
    /// Info.
    pub fn emit(&self) {
        tracing::info!(in_flight = self.running, grace_ms = millis(self.grace), "drain started");
    }
}

/// Jobs did not end when they were cancelled; the process leaves without them, they come again elsewhere.
pub struct Abandoned {
    /// How many.
    pub count: usize,
}

impl Abandoned {
    /// Error: a handler that ignores its cancellation should be mended.
    pub fn emit(&self) {
        tracing::error!(count = self.count, "jobs did not end when they were cancelled and are left to other workers");
    }
}

/// Everything was settled or given back.
pub struct DrainFinished {
    /// How long it took.
    pub took: Duration,
}

impl DrainFinished {
    /// Info.
    pub fn emit(&self) {
        tracing::info!(duration_ms = millis(self.took), "drain finished");
    }
}

/// How a queue has been doing since the last summary.
pub struct Summary<'a> {
    /// The queue.
    pub queue: &'a QueueName,
    /// Since the last one.
    pub over: Duration,
    /// Jobs done.
    pub done: u64,
    /// Retries stored.
    pub retried: u64,
    /// Dead letters stored.
    pub dead: u64,
    /// Jobs running now.
    pub in_flight: usize,
    /// Half of the attempts had waited no longer.
    pub wait_p50: Option<Duration>,
    /// 99 of 100 attempts had waited no longer.
    pub wait_p99: Option<Duration>,
}

impl Summary<'_> {
    /// Info.
    pub fn emit(&self) {
        let per_s = (self.done as f64 / self.over.as_secs_f64().max(1e-3) * 10.0).round() / 10.0;
        tracing::info!(
            queue = self.queue.as_str(),
            done = self.done,
            per_s,
            retried = self.retried,
            dead = self.dead,
            in_flight = self.in_flight,
            wait_p50_ms = self.wait_p50.map(millis),
            wait_p99_ms = self.wait_p99.map(millis),
            "summary"
        );
    }
}
