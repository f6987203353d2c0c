//! Retries and dead letters: what replaces a delivery is stored first; the pump acknowledges the delivery after.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject;
use tokio::time::Instant;

use super::api::{Error, code};
use super::context::{Context, Draft};
use super::link::RequestError;
use super::names;
use super::shared::Shared;
use crate::broker::{Delivery, Disposition, Leases};
use crate::message::record::{Dead, Record};

/// How a move ended.
pub enum Moved {
    /// What replaces the delivery is stored.
    Stored,
    /// It stays in hand, in key order, and runs again as this record says.
    Held(Box<Record>),
    /// The lease ended first: nothing may be done any more.
    Lost,
    /// It can never be stored; why.
    Refused(String),
}

/// Stores what `disposition` asks for, for as long as the lease lasts.
pub async fn carry_out(
    context: &Context,
    shared: &Arc<Shared>,
    delivery: Delivery,
    disposition: Disposition,
    reply: Subject,
    hop: u64,
) -> Moved {
    let lost = shared.lost(delivery.token);
    let origin = delivery.origin().to_string();
    let key = names::key_of(delivery.record.as_deref(), &origin);
    let mut record = match &delivery.record {
        Some(record) => (**record).clone(),
        None => Record::fresh(&delivery.origin()),
    };
    record.origin.get_or_insert(origin);
    record.first_seen.get_or_insert(context.clock.now());
    let mut trouble = None;
    let mut delay = Duration::from_millis(50);
    loop {
        if lost.is_cancelled() {
            return Moved::Lost;
        }
        let deadline = Instant::now() + Duration::from_secs(5).min(context.lease / 3);
        let (done, is_letter) = match &disposition {
            Disposition::Retry { at, attempt, failure, unroutable_since } => {
                let record = record.clone().again(*at, *attempt, failure.clone(), *unroutable_since);
                if context.queue.ordered {
                    match context.remember(&record, &key, hop + 1, deadline).await {
                        Ok(()) => return Moved::Held(Box::new(record)),
                        Err(error) => (Err(error), false),
                    }
                } else {
                    let draft = Draft {
                        record: &record,
                        original: &delivery.message,
                        key: &key,
                        hop: hop + 1,
                        replaces: Some(reply.as_str()),
                    };
                    (context.store(&draft, deadline).await, false)
                }
            }
            Disposition::DeadLetter { reason, failure, attempts, event_id, job } => {
                let mut record = record.clone();
                record.event_id.clone_from(event_id);
                record.failure = Some(failure.clone());
                let dead = Dead {
                    reason: *reason,
                    attempts: *attempts,
                    job: job.clone(),
                    queue: context.queue.name.clone(),
                    partition: None,
                    offset: Some(delivery.seq),
                    worker: Some(context.worker.to_string()),
                };
                (context.bury(&record, &dead, &delivery.message, &key, deadline).await.map(drop), true)
            }
            // The pump carries these out itself.
            Disposition::Ack | Disposition::Release => return Moved::Stored,
        };
        let error = match done {
            Ok(()) => return Moved::Stored,
            Err(error) => error,
        };
        if let Error::Answer(why) = &error {
            return Moved::Refused(why.clone());
        }
        let what = if is_letter { context.names.dead() } else { context.names.work() };
        let why = match &error {
            error if error.err_code() == code::FULL => format!("the stream {what} is full: {error}"),
            Error::Request(RequestError::Denied(why)) => why.clone(),
            error => format!("nothing can be stored in the stream {what}: {error}"),
        };
        if is_letter && trouble.is_none() {
            trouble = Some(shared.dead_letter_trouble(why));
        } else if !is_letter {
            tracing::warn!(queue = %context.queue.name, error = %why, "a retry cannot be stored; trying again");
        }
        tokio::select! {
            biased;
            () = lost.cancelled() => {}
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(Duration::from_secs(2));
    }
}
