//! Who reads a queue in key order: one worker at a time, by a record that it renews.
//!
//! The record lies in the stream of work and is replaced by compare and set. It is over when somebody has watched it
//! unchanged for a lease, by a clock of his own, so that no two machines need the same time. The owner counts from
//! when it sent its last renewal, which is earlier. What a former owner still does is caught elsewhere (see
//! [`super::order`]): this only keeps two from taking each other's messages.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::api::{Error, code};
use super::context::Context;
use super::wire::header;

/// The owner renews its record at least so often.
const RENEW: Duration = Duration::from_secs(5);
/// Whoever stands by looks at it at least so often: an owner that leaves removes it.
const LOOK: Duration = Duration::from_millis(500);

/// Until when this worker owns the queue; `None`: somebody else does, or nobody yet.
pub type Until = Option<Instant>;

/// Strives for the ownership and keeps it until `leave`, then gives it up.
pub async fn hold(context: Arc<Context>, until: watch::Sender<Until>, leave: CancellationToken) {
    let (mut mine, mut seen): (Option<u64>, Option<(u64, Instant)>) = (None, None);
    while !leave.is_cancelled() {
        let sent = Instant::now();
        // Not cut short: what was claimed must be known, to be given up.
        match step(&context, &mut mine, &mut seen).await {
            Ok(()) if mine.is_some() => drop(until.send_replace(Some(sent + context.lease))),
            Ok(()) => drop(until.send_replace(None)),
            Err(error) => tracing::debug!(queue = %context.queue.name, error = %error, "failed to look who owns it"),
        }
        let pause = if mine.is_some() { (context.lease / 4).min(RENEW) } else { (context.lease / 10).min(LOOK) };
        tokio::select! {
            biased;
            () = leave.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    until.send_replace(None);
    if let Some(seq) = mine {
        // It ends with its lease where it cannot be withdrawn.
        let _ = context.api.delete(&context.names.work(), seq).await;
    }
}

async fn step(context: &Context, mine: &mut Option<u64>, seen: &mut Option<(u64, Instant)>) -> Result<(), Error> {
    if let Some(seq) = *mine {
        match claim(context, seq).await {
            // Somebody else's by now, or ours by a renewal whose answer was lost: look.
            Err(error) if code::WRONG_SEQUENCE.contains(&error.err_code()) => *mine = None,
            claimed => {
                *mine = Some(claimed?);
                return Ok(());
            }
        }
    }
    let subject = context.names.state(&context.queue.name, "owner");
    let after = match context.api.last(&context.names.work(), &subject).await? {
        None => 0,
        Some(stored) => {
            let body: Value = serde_json::from_slice(&stored.payload).unwrap_or_default();
            let known = seen.filter(|(seq, _)| *seq == stored.seq);
            let (_, since) = *seen.insert(known.unwrap_or((stored.seq, Instant::now())));
            if body["instance"] != *context.instance && since.elapsed() < context.lease {
                return Ok(());
            }
            stored.seq
        }
    };
    match claim(context, after).await {
        Ok(seq) => {
            tracing::info!(queue = %context.queue.name, "this worker reads the queue from now on");
            *mine = Some(seq);
            Ok(())
        }
        Err(error) if code::WRONG_SEQUENCE.contains(&error.err_code()) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Replaces the record `after`, or makes the first; its sequence.
async fn claim(context: &Context, after: u64) -> Result<u64, Error> {
    let subject = context.names.state(&context.queue.name, "owner");
    let body = json!({ "instance": &*context.instance, "worker": &*context.worker });
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(header::MESSAGE_ID, uuid::Uuid::now_v7().to_string().as_str());
    headers.insert(header::EXPECTED, after.to_string().as_str());
    headers.insert(header::ROLLUP, "sub");
    let deadline = Instant::now() + context.lease / 4;
    Ok(context.api.store(&subject, headers, body.to_string().into(), deadline).await?.seq)
}
