//! Settle: hands dispositions to the broker and keeps count of what is not confirmed yet.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::pool::Queue;
use crate::broker::{Channel, Disposition, Settled, Settlement};
use crate::message::attribute::TRACEPARENT;
use crate::message::record::Record;
use crate::message::{JobName, Message, Origin, Reason, decode};
use crate::telemetry::events;
use crate::time::Timestamp;

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
    subjects: Vec<Subject>,
    bytes: usize,
    began: Instant,
}

impl Handed {
    fn new(queue: &Queue, settlements: Vec<Settlement>, bytes: usize) -> Self {
        let count = settlements.len();
        let kinds = if settlements.iter().all(|settlement| settlement.disposition == Disposition::Ack) {
            Kinds::AllDone(count)
        } else {
            Kinds::Mixed(settlements.iter().map(|settlement| kind(queue, settlement)).collect())
        };
        let subjects = subjects(queue, &settlements);
        let began = Instant::now();
        queue.settling(count);
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
pub fn batch(queue: &Arc<Queue>, settlements: Vec<Settlement>, bytes: usize) {
    let mut handed = Handed::new(queue, settlements, bytes);
    match (&mut handed.answer).now_or_never() {
        Some(results) => handed.account(queue, &results),
        None => drop(tokio::spawn(queue.pool.tasks.track_future(handed.answered(queue.clone())))),
    }
}

/// Settles one delivery; resolves when it is confirmed or cannot be any more.
pub fn one(queue: &Arc<Queue>, settlement: Settlement, bytes: usize) -> impl Future<Output = ()> + Send + use<> {
    Handed::new(queue, vec![settlement], bytes).answered(queue.clone())
}

/// What a settlement was about, kept for the line that says it was not stored.
struct Subject {
    message: Message,
    channel: Arc<Channel>,
    seq: u64,
    at: Timestamp,
    record: Option<Box<Record>>,
}

/// None where the broker stores every settlement at once.
fn subjects(queue: &Queue, settlements: &[Settlement]) -> Vec<Subject> {
    if queue.settler.unconfirmed_limit() == usize::MAX {
        return Vec::new();
    }
    let subject = |Settlement { delivery, .. }: &Settlement| Subject {
        message: delivery.message.clone(),
        channel: delivery.channel.clone(),
        seq: delivery.seq,
        at: delivery.at,
        record: delivery.record.clone(),
    };
    settlements.iter().map(subject).collect()
}

impl Subject {
    /// Calls `say` with what a log line says of it.
    fn tell(&self, queue: &Queue, say: impl FnOnce(events::Run<'_>)) {
        let record = self.record.as_deref();
        let named = record.and_then(|record| record.job.as_ref());
        let origin = Origin { place: &self.channel.place, seq: self.seq, at: self.at };
        let event_id = match decode(&self.message, &origin, record) {
            Ok(event) => event.id.to_string(),
            Err(_) => origin.event_id(),
        };
        say(events::Run {
            queue: queue.name(),
            job: named.unwrap_or(&queue.routes.default().job),
            event_id: &event_id,
            attempt: record.map_or(1, |record| record.attempt.get()),
            trace_id: self.message.headers.get_str_ignore_case(TRACEPARENT).and_then(events::trace_id),
        });
    }
}

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

fn account(queue: &Queue, kinds: &Kinds, subjects: &[Subject], results: &[Settled], bytes: usize, began: Instant) {
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
    for (subject, result) in subjects.iter().zip(results) {
        match result {
            Settled::Stored => {}
            Settled::Stale => subject.tell(queue, |run| events::StaleSettlement { run }.emit()),
            Settled::Unconfirmed(error) => {
                subject.tell(queue, |run| events::SettlementUnconfirmed { run, error }.emit());
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
