//! What the seeded bugs make of a delivery; see [`crate::seeded`].

use std::sync::Arc;

use super::execute::{self, Attempt};
use super::outcome::Outcome;
use super::pool::Queue;
use super::retry::Facts;
use super::route::Route;
use super::settle;
use crate::broker::{Delivery, Disposition, Lost};
use crate::handler::Context;
use crate::message::Reason;
use crate::seeded::bug;

/// What is done with a success.
pub fn success(disposition: Disposition) -> Disposition {
    if bug("success-released") && fastrand::u8(..10) == 0 { Disposition::Release } else { disposition }
}

/// What is done about an outcome, where the right answer is `disposition`.
pub fn disposition(
    disposition: Disposition,
    outcome: &Outcome,
    facts: &Facts<'_>,
    queue: &Queue,
    route: &Route,
    delivery: &Delivery,
) -> Disposition {
    let dropped = (bug("panic-is-done") && matches!(outcome, Outcome::Panicked { .. }))
        || (bug("timeout-is-done") && matches!(outcome, Outcome::TimedOut { .. }))
        || (bug("malformed-dropped") && matches!(outcome, Outcome::Malformed(_)))
        || (bug("retry-dropped") && matches!(disposition, Disposition::Retry { .. }) && fastrand::u8(..5) == 0);
    match disposition {
        _ if dropped => Disposition::Ack,
        Disposition::DeadLetter { reason: Reason::Exhausted, failure, .. } if bug("attempts-unlimited") => {
            Disposition::Retry {
                at: facts.now.after(facts.policy.delay(facts.attempt, 0.0)),
                attempt: facts.attempt.next(),
                failure: Some(failure),
                unroutable_since: None,
            }
        }
        Disposition::Retry { at, attempt, failure: Some(failure), unroutable_since } if bug("attempt-skipped") => {
            Disposition::Retry { at, attempt: attempt.next(), failure: Some(failure), unroutable_since }
        }
        Disposition::DeadLetter { failure, attempts, event_id, job, .. } if bug("letter-reason") => {
            Disposition::DeadLetter { reason: Reason::Permanent, failure, attempts, event_id, job }
        }
        Disposition::DeadLetter { reason, failure, attempts, event_id, job } if bug("letter-attempts") => {
            Disposition::DeadLetter { reason, failure, attempts: attempts + 1, event_id, job }
        }
        Disposition::Release if bug("attempt-used-by-interruption") && matches!(outcome, Outcome::Interrupted) => {
            Disposition::Retry { at: facts.now, attempt: facts.attempt.next(), failure: None, unroutable_since: None }
        }
        Disposition::Retry { at, failure, unroutable_since, .. } if bug("attempt-kept") => {
            Disposition::Retry { at, attempt: facts.attempt, failure, unroutable_since }
        }
        Disposition::Retry { attempt, failure, unroutable_since, .. } if bug("retry-early") => {
            Disposition::Retry { at: facts.now, attempt, failure, unroutable_since }
        }
        Disposition::DeadLetter { failure, reason: Reason::Permanent, attempts, event_id, job }
            if bug("permanent-retried") =>
        {
            if facts.attempt.get() >= facts.policy.attempts.get() {
                return Disposition::DeadLetter { failure, reason: Reason::Exhausted, attempts, event_id, job };
            }
            Disposition::Retry {
                at: facts.now.after(facts.policy.delay(facts.attempt, 0.0)),
                attempt: facts.attempt.next(),
                failure: Some(failure),
                unroutable_since: None,
            }
        }
        Disposition::DeadLetter { .. } if bug("dead-letter-lost") => Disposition::Ack,
        Disposition::DeadLetter { .. } => {
            // What it sent out itself has no topic, and sends out nothing more.
            let Some(topic) = delivery.channel.place.topic.clone() else { return disposition };
            let client = route.shared.client.clone();
            let (queue, id) = (queue.name().to_string(), facts.event_id.unwrap_or("none").to_owned());
            let mut body = delivery.message.body.as_deref().unwrap_or_default().to_vec();
            if bug("dead-letter-bytes") {
                body.push(b' ');
                tokio::spawn(async move { client.enqueue_bytes(&queue, None, body).id(id).await });
                return Disposition::Ack;
            } else if bug("dead-letter-twice") {
                tokio::spawn(async move { client.enqueue_bytes(&queue, None, body).id(id).await });
            } else if bug("dead-letter-elsewhere") && &*topic != "mixed" {
                tokio::spawn(async move { client.publish_bytes("mixed", body).id(id).await });
            }
            disposition
        }
        disposition => disposition,
    }
}

/// What a job is settled with before it runs, if it is.
pub fn before_run() -> Option<Disposition> {
    if bug("ack-before-run") || (bug("success-without-run") && fastrand::u8(..20) == 0) {
        Some(Disposition::Ack)
    } else if bug("release-before-run") && fastrand::u8(..10) == 0 {
        Some(Disposition::Release)
    } else {
        None
    }
}

/// Settles first and runs then.
pub async fn run(
    queue: &Arc<Queue>,
    route: &Route,
    delivery: Delivery,
    cx: Context,
    pending: Option<Attempt>,
    disposition: Disposition,
) {
    let (lane, bytes) = (delivery.lane(), delivery.message.size());
    settle::one(queue, delivery.settle(disposition), cx.event_id(), bytes).await;
    let attempt = match pending {
        Some(pending) => Ok(pending),
        None if bug("success-without-run") => {
            queue.lane_done(lane);
            return queue.pool.give(queue.index, 1);
        }
        None => Attempt::new(route, cx.clone()).and_then(Attempt::poll_once),
    };
    if let Ok(attempt) = attempt {
        execute::drive(queue, route, attempt, &cx, tokio::time::Instant::now(), Lost::new).await;
    }
    queue.lane_done(lane);
    queue.pool.give(queue.index, 1);
}
