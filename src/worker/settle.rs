//! Settle: hands dispositions to the broker and keeps count of what is not confirmed yet.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::pool::Queue;
use crate::broker::{Delivery, Disposition, Settled, Settlement};
use crate::message::attribute::TRACEPARENT;
use crate::message::{JobName, Reason};
use crate::telemetry::events;

/// What is counted once a disposition is stored.
enum Kind {
    Done,
    Retried(JobName),
    Dead(JobName, Reason),
    Released,
}

/// What became of so many settlements of a chunk that were all acknowledgements, or of each where they were not.
enum Kinds {
    AllDone(usize),
    Mixed(Vec<Kind>),
}

/// Settlements that the broker was handed, and what is to be said and counted once it has answered.
struct Handed {
    answer: BoxFuture<'static, Vec<Settled>>,
    kinds: Kinds,
    subjects: Subjects,
    bytes: usize,
    began: Instant,
}

impl Handed {
    /// They are counted as unconfirmed already.
    fn new(queue: &Queue, settlements: Vec<Settlement>, subjects: Subjects, bytes: usize) -> Self {
        let count = settlements.len();
        let kinds = if settlements.iter().all(|settlement| settlement.disposition == Disposition::Ack) {
            Kinds::AllDone(count)
        } else {
            Kinds::Mixed(settlements.iter().map(|settlement| kind(queue, settlement)).collect())
        };
        let began = Instant::now();
        Self { answer: queue.settler.settle(settlements), kinds, subjects, bytes, began }
    }

    fn account(&self, queue: &Queue, results: &[Settled]) {
        account(queue, &self.kinds, &self.subjects, results, self.bytes, self.began);
    }

    #[expect(clippy::manual_async_fn, reason = "what an async fn takes by value lies in its future twice")]
    fn answered(mut self, queue: Arc<Queue>) -> impl Future<Output = ()> + Send {
        async move {
            let results = (&mut self.answer).await;
            self.account(&queue, &results);
        }
    }
}

/// Settles what ended at its first poll. Most adapters take it at once; what is not confirmed at once is awaited by
/// a task.
pub fn batch(queue: &Arc<Queue>, settlements: Vec<Settlement>, subjects: Subjects, bytes: usize) {
    queue.settling(settlements.len());
    let mut handed = Handed::new(queue, settlements, subjects, bytes);
    match (&mut handed.answer).now_or_never() {
        Some(results) => handed.account(queue, &results),
        None => drop(tokio::spawn(queue.pool.tasks.track_future(handed.answered(queue.clone())))),
    }
}

/// What succeeded in tasks of its own and is to be acknowledged together: an acknowledgement alone costs an adapter as much
/// as many at once.
#[derive(Default)]
pub struct Pile(Mutex<Option<Piled>>);

struct Piled {
    settlements: Vec<Settlement>,
    subjects: Subjects,
    bytes: usize,
}

/// As many are acknowledged together at the most.
const PILE: usize = 64;
/// So many have room from the start.
const FEW: usize = 8;

/// What whoever adds to a pile has to see to.
enum Duty {
    /// Nothing: somebody else does.
    Nothing,
    /// The pile, when its task's turn comes again.
    Later,
    /// This one, which is full.
    Now(Piled),
}

impl Pile {
    fn add(&self, queue: &Queue, settlement: Settlement, event_id: &str, bytes: usize) -> Duty {
        let mut pile = self.0.lock();
        let is_first = pile.is_none();
        let piled = pile.get_or_insert_with(|| Piled {
            settlements: Vec::with_capacity(FEW),
            subjects: Subjects::new(queue, FEW),
            bytes: 0,
        });
        piled.subjects.push(&settlement.delivery, event_id);
        piled.settlements.push(settlement);
        piled.bytes += bytes;
        if piled.settlements.len() == PILE {
            return pile.take().map_or(Duty::Nothing, Duty::Now);
        }
        if is_first { Duty::Later } else { Duty::Nothing }
    }
}

impl Piled {
    fn hand(self, queue: &Queue) -> Handed {
        Handed::new(queue, self.settlements, self.subjects, self.bytes)
    }
}

/// Settles one delivery; resolves when it is confirmed or cannot be any more, or when another one's task sees to it. An
/// acknowledgement waits for those of the tasks that run next.
pub fn one(
    queue: &Arc<Queue>,
    settlement: Settlement,
    event_id: &str,
    bytes: usize,
) -> impl Future<Output = ()> + Send + use<> {
    queue.settling(1);
    let (mut handed, mut waits) = (None, false);
    if settlement.disposition == Disposition::Ack {
        match queue.pile.add(queue, settlement, event_id, bytes) {
            Duty::Nothing => {}
            Duty::Later => waits = true,
            Duty::Now(piled) => handed = Some(piled.hand(queue)),
        }
    } else {
        let mut subjects = Subjects::new(queue, 1);
        subjects.push(&settlement.delivery, event_id);
        handed = Some(Handed::new(queue, vec![settlement], subjects, bytes));
    }
    settle(queue.clone(), handed, waits)
}

#[expect(clippy::manual_async_fn, reason = "what an async fn takes by value lies in its future twice")]
fn settle(queue: Arc<Queue>, mut handed: Option<Handed>, waits: bool) -> impl Future<Output = ()> + Send {
    async move {
        if waits {
            tokio::task::yield_now().await;
            // It was full meanwhile, or is what was added since: then whoever waits for that finds nothing.
            let piled = queue.pile.0.lock().take();
            handed = piled.map(|piled| piled.hand(&queue));
        }
        if let Some(handed) = handed {
            handed.answered(queue).await;
        }
    }
}

/// What settlements were about, in their order, for the lines that say which of them were not stored. It is copied into
/// one text: kept as they are, messages would lie in memory until the last of their batch is confirmed.
pub struct Subjects {
    /// Nothing is, where the broker stores every settlement at once.
    kept: bool,
    text: String,
    each: Vec<Subject>,
}

struct Subject {
    /// Where its event's id begins in the text; its trace id stands behind.
    id: usize,
    trace: usize,
    end: usize,
    attempt: u32,
    /// `None`: the queue's own.
    job: Option<JobName>,
}

impl Subjects {
    /// Room for so many.
    pub fn new(queue: &Queue, count: usize) -> Self {
        let kept = queue.settler.unconfirmed_limit() != usize::MAX;
        let room = if kept { count } else { 0 };
        Self { kept, text: String::with_capacity(room * ID), each: Vec::with_capacity(room) }
    }

    /// One more.
    pub fn push(&mut self, delivery: &Delivery, event_id: &str) {
        if !self.kept {
            return;
        }
        let id = self.text.len();
        self.text.push_str(event_id);
        let trace = self.text.len();
        let headers = &delivery.message.headers;
        self.text.push_str(headers.get_str_ignore_case(TRACEPARENT).and_then(events::trace_id).unwrap_or_default());
        let job = delivery.record.as_ref().and_then(|record| record.job.clone());
        self.each.push(Subject { id, trace, end: self.text.len(), attempt: delivery.attempt().get(), job });
    }

    fn tell(&self, queue: &Queue, subject: &Subject, say: impl FnOnce(events::Run<'_>)) {
        say(events::Run {
            queue: queue.name(),
            job: subject.job.as_ref().unwrap_or(&queue.routes.default().job),
            event_id: &self.text[subject.id..subject.trace],
            attempt: subject.attempt,
            trace_id: Some(&self.text[subject.trace..subject.end]).filter(|trace| !trace.is_empty()),
        });
    }
}

/// Most ids are no longer.
const ID: usize = 40;

fn kind(queue: &Queue, settlement: &Settlement) -> Kind {
    let job = || {
        let named = settlement.delivery.record.as_ref().and_then(|record| record.job.as_ref());
        queue.routes.find(named).unwrap_or_else(|| queue.routes.default()).job.clone()
    };
    match &settlement.disposition {
        Disposition::Ack => Kind::Done,
        Disposition::Retry { .. } => Kind::Retried(job()),
        Disposition::DeadLetter { reason, .. } => Kind::Dead(job(), *reason),
        Disposition::Release => Kind::Released,
    }
}

fn account(queue: &Queue, kinds: &Kinds, subjects: &Subjects, results: &[Settled], bytes: usize, began: Instant) {
    queue.meter.observe_settle(began.elapsed(), results.len());
    match kinds {
        Kinds::AllDone(count) if results.iter().all(|result| *result == Settled::Stored) => {
            queue.counts.done.fetch_add(*count as u64, Ordering::Relaxed);
        }
        Kinds::AllDone(_) => results.iter().for_each(|result| account_one(queue, &Kind::Done, result)),
        Kinds::Mixed(kinds) => {
            kinds.iter().zip(results).for_each(|(kind, result)| account_one(queue, kind, result));
        }
    }
    for (subject, result) in subjects.each.iter().zip(results) {
        match result {
            Settled::Stored => {}
            Settled::Stale => subjects.tell(queue, subject, |run| events::StaleSettlement { run }.emit()),
            Settled::Unconfirmed(error) => {
                subjects.tell(queue, subject, |run| events::SettlementUnconfirmed { run, error }.emit());
            }
        }
    }
    queue.settled(results.len(), bytes);
}

fn account_one(queue: &Queue, kind: &Kind, result: &Settled) {
    match (result, kind) {
        (Settled::Stored, Kind::Done) => {
            queue.counts.done.fetch_add(1, Ordering::Relaxed);
        }
        (Settled::Stored, Kind::Retried(job)) => {
            queue.counts.retried.fetch_add(1, Ordering::Relaxed);
            queue.meter.add_retries(job, 1);
        }
        (Settled::Stored, Kind::Dead(job, reason)) => {
            queue.counts.dead.fetch_add(1, Ordering::Relaxed);
            queue.meter.add_dead(job, *reason);
        }
        (Settled::Stored, Kind::Released) | (Settled::Stale | Settled::Unconfirmed(_), _) => {}
    }
}
