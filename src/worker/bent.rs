//! What the seeded bugs make of a delivery; see [`crate::seeded`].

use std::sync::Arc;

use super::execute::{self, Attempt};
use super::outcome::Outcome;
use super::pool::Queue;
use super::retry::Facts;
use super::route::Route;
use super::settle;
use crate::broker::{Delivery, Disposition};
use crate::handler::{Context, Verdict};
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
    match disposition {
        Disposition::Release if bug("attempt-used-by-interruption") && matches!(outcome, Outcome::Interrupted) => {
            Disposition::Retry { at: facts.now, attempt: facts.attempt.next(), failure: None, unroutable_since: None }
        }
        Disposition::Retry { at, failure, unroutable_since, .. } if bug("attempt-kept") => {
            Disposition::Retry { at, attempt: facts.attempt, failure, unroutable_since }
        }
        Disposition::Retry { attempt, failure, unroutable_since, .. } if bug("retry-early") => {
            Disposition::Retry { at: facts.now, attempt, failure, unroutable_since }
        }
        Disposition::DeadLetter { failure, reason: Reason::Permanent, .. }
            if bug("permanent-retried")
                && matches!(outcome, Outcome::Failed(error) if error.verdict() == Verdict::Permanent) =>
        {
            Disposition::Retry {
                at: facts.now.after(facts.policy.first),
                attempt: facts.attempt.next(),
                failure: Some(failure),
                unroutable_since: None,
            }
        }
        Disposition::DeadLetter { .. } if bug("dead-letter-lost") => Disposition::Ack,
        Disposition::DeadLetter { .. } => {
            again(facts, queue, route, delivery);
            disposition
        }
        disposition => disposition,
    }
}

/// Sends out what becomes a dead letter a second time.
fn again(facts: &Facts<'_>, queue: &Queue, route: &Route, delivery: &Delivery) {
    let (client, id) = (route.shared.client.clone(), facts.event_id.unwrap_or("none").to_owned());
    let body = delivery.message.body.clone().unwrap_or_default();
    if bug("dead-letter-twice") {
        let queue = queue.name().to_string();
        // Once is enough: its letter sends out nothing, having no topic.
        if delivery.channel.place.topic.is_some() {
            tokio::spawn(async move { client.enqueue_bytes(&queue, None, body).id(id).await });
        }
    } else if bug("dead-letter-elsewhere")
        && let Some(topic) = delivery.channel.place.topic.clone()
    {
        tokio::spawn(async move { client.publish_bytes(&topic, body).id(format!("{id}-again")).await });
    }
}

/// What a job is settled with before it runs, if it is.
pub fn before_run() -> Option<Disposition> {
    if bug("ack-before-run") {
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
    settle::one(queue, delivery.settle(disposition), bytes).await;
    let attempt = match pending {
        Some(pending) => Ok(pending),
        None => Attempt::new(route, cx.clone()).and_then(Attempt::poll_once),
    };
    if let Ok(attempt) = attempt {
        execute::drive(queue, route, attempt, &cx, None).await;
    }
    queue.lane_done(lane);
    queue.pool.give(queue.index, 1);
}
