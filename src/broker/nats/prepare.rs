//! What has to be known of a delivery before it may run: the record it is, whether it is due, what it replaces, and
//! whether what follows it is stored already.

use std::time::Duration;

use async_nats::HeaderMap;

use super::context::Context;
use super::mark::Mark;
use super::names;
use super::part;
use super::wire::{self, header};
use crate::broker::{Delivery, Disposition, Lane};
use crate::message::Binding;
use crate::message::record::{self, Record};

/// What to do with a delivery.
pub enum Prepared {
    /// Hand it over.
    Run {
        /// As it is to be run.
        delivery: Box<Delivery>,
        /// Its crashes, where its start is to be marked.
        mark: Option<Mark>,
        /// Where the end of its body lies, to be removed with it.
        part: Option<String>,
        /// How many records of it there were before.
        hop: u64,
    },
    /// What follows it is stored: acknowledge it, and nothing more.
    Succeeded,
    /// Give it back, to come again after so long.
    Later(Duration),
}

/// So long a record that cannot be read or whose past cannot be looked up waits.
const AGAIN: Duration = Duration::from_secs(1);
/// So long a record of another version waits for a worker that can read it.
const FOREIGN: Duration = Duration::from_secs(30);

/// Looks a delivery up for a queue in key order, where it must stay in hand: until it succeeds.
pub async fn insist(
    context: &Context,
    delivery: Delivery,
    headers: Option<HeaderMap>,
    lane: Lane,
    hop: u64,
    again: bool,
) -> Prepared {
    // The pump has it in hand; copies are looked up.
    let (original, _) = delivery.settle(Disposition::Release).take();
    loop {
        let Delivery { message, channel, seq, at, redelivered, token, .. } = &original;
        let mut copy = Delivery::new(message.clone(), channel.clone(), *seq, *at, *token);
        copy.redelivered = *redelivered;
        match prepare(context, copy, headers.clone(), lane, hop, again).await {
            Prepared::Later(wait) => tokio::time::sleep(wait.min(AGAIN)).await,
            prepared => return prepared,
        }
    }
}

/// Looks a delivery up. `again`: it was delivered before.
pub async fn prepare(
    context: &Context,
    mut delivery: Delivery,
    headers: Option<HeaderMap>,
    lane: Lane,
    mut hop: u64,
    again: bool,
) -> Prepared {
    if lane == Lane::Retry {
        match record::read(&delivery.message.headers, Binding::Dash) {
            Ok(stored) => {
                delivery.message.headers = stored.original;
                delivery.record = Some(Box::new(stored.record));
            }
            // Somebody published to the subject of our records by hand: a job for this queue.
            Err(record::Error::Foreign(_)) => delivery.record = Some(Box::new(Record::default())),
            Err(error @ record::Error::Version(_)) => {
                tracing::error!(queue = %context.queue.name, seq = delivery.seq, error = %error, "a record cannot be read");
                return later(delivery, FOREIGN);
            }
            Err(error) => return unreadable(context, delivery, &error).await,
        }
        // What it replaces is acknowledged before anything else: two of one job are never on their way.
        if let Some(replaces) = wire::text(headers.as_ref(), header::REPLACES)
            && let Err(error) = context.acknowledge(replaces).await
        {
            tracing::warn!(queue = %context.queue.name, error = %error, "failed to acknowledge what a record replaces");
            return later(delivery, AGAIN);
        }
        let due = delivery.record.as_ref().and_then(|record| record.not_before);
        let wait = due.map_or(Duration::ZERO, |due| context.clock.now().until(due));
        if !wait.is_zero() && !context.queue.ordered {
            return later(delivery, wait);
        }
    }
    let part = wire::text(headers.as_ref(), header::PART).filter(|_| lane == Lane::Retry).map(str::to_owned);
    if part.is_some() {
        let body = delivery.message.body.take().unwrap_or_default();
        match part::whole(&context.api, &context.names.work(), headers.as_ref(), body).await {
            Ok(Some(body)) => delivery.message.body = Some(body),
            Ok(None) | Err(_) => {
                tracing::error!(queue = %context.queue.name, seq = delivery.seq, "the end of a body cannot be read");
                return later(delivery, AGAIN);
            }
        }
    }
    let (mut mark, from) = (None, hop);
    if again {
        let origin = delivery.origin().to_string();
        let key = names::key_of(delivery.record.as_deref(), &origin);
        if context.queue.ordered {
            match context.remembered(&key).await {
                Ok(Some((record, before))) => {
                    delivery.record = Some(Box::new(record));
                    hop = before;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(queue = %context.queue.name, error = %error, "failed to look up a job's attempts");
                    return later(delivery, AGAIN);
                }
            }
        }
        // In this order: whoever runs what follows has acknowledged this one before.
        let followed = match context.has_successor(&key, from).await {
            Ok(false) => context.is_settled(&delivery).await,
            found => found,
        };
        match followed {
            Ok(false) => match context.crashes_for_certain(key).await {
                Ok(None) => return later(delivery, AGAIN),
                Ok(Some(found)) => {
                    let most = context.queue.max_crashes;
                    delivery.condemned = found.crashes >= most;
                    delivery.suspect = !delivery.condemned && found.crashes + 1 >= most;
                    delivery.needs_mark = true;
                    mark = Some(found);
                }
                Err(error) => {
                    tracing::warn!(queue = %context.queue.name, error = %error, "failed to count a job's crashes");
                    return later(delivery, AGAIN);
                }
            },
            Ok(true) => {
                let _taken = delivery.settle(Disposition::Ack).take();
                return Prepared::Succeeded;
            }
            Err(error) => {
                tracing::warn!(queue = %context.queue.name, error = %error, "failed to look up a delivery that came again");
                return later(delivery, AGAIN);
            }
        }
    }
    Prepared::Run { delivery: Box::new(delivery), mark, part, hop }
}

/// No worker will ever read it: a dead letter with all its bytes and headers.
async fn unreadable(context: &Context, delivery: Delivery, error: &record::Error) -> Prepared {
    tracing::error!(queue = %context.queue.name, seq = delivery.seq, error = %error, "a record cannot be read");
    match context.bury_unreadable(&delivery.origin(), &delivery.message, error.to_string()).await {
        Ok(()) => {
            let _taken = delivery.settle(Disposition::Ack).take();
            Prepared::Succeeded
        }
        Err(error) => {
            tracing::error!(queue = %context.queue.name, error = %error, "a dead letter cannot be stored");
            later(delivery, AGAIN)
        }
    }
}

/// The pump gives it back, so that dropping it must not.
fn later(delivery: Delivery, wait: Duration) -> Prepared {
    let _taken = delivery.settle(Disposition::Release).take();
    Prepared::Later(wait)
}
