//! Publishing and enqueueing by HTTP: 202 once the broker has confirmed that it is stored.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Context;
use super::extract::{Asked, InQueue, InTopic, Payload, duration, time};
use super::incoming::{self, Defaults, Incoming};
use super::problem::Problem;
use crate::broker::shape::{Enqueued, Published};
use crate::broker::{self, Broker, Destination, Publication};
use crate::message::{JobName, QueueName, Topic};

#[utoipa::path(post, path = "/api/v1/topics/{topic}", tag = "publish",
    params(
        ("topic" = String, Path, description = "The topic"),
        ("Idempotency-Key" = Option<String>, Header, description = "The event's id, where it has none of its own"),
    ),
    request_body(content = serde_json::Value, description = "A CloudEvent in binary or structured mode, or plain bytes", content_type = "application/json"),
    responses(
        (status = 202, description = "Stored", body = Published),
        (status = 400, description = "No event", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "It will never be taken: no queue hears the topic, or it is too large for the broker", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "It cannot be stored now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn publish(
    State(context): State<Context>,
    InTopic(topic): InTopic,
    headers: HeaderMap,
    Payload(body): Payload,
) -> Result<(StatusCode, Json<Published>), Problem> {
    let topic = Topic::new(&topic).map_err(Problem::bad_request)?;
    let broker = context.require_broker()?;
    let source = format!("windlass://{}", context.namespace());
    let incoming = read(&context, &**broker, &headers, body, topic.as_str(), &source)?;
    let id = incoming.id.clone();
    let queues = store(&**broker, incoming, Destination::Topic(topic.clone())).await?.queues;
    Ok((StatusCode::ACCEPTED, Json(Published { id: Some(id), topic: topic.to_string(), queues })))
}

/// Which job, and when.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Enqueue {
    /// The job to run; without it the queue's own.
    job: Option<String>,
    /// Not before so long from now, such as `10m`.
    r#in: Option<String>,
    /// Not before this, RFC 3339.
    at: Option<String>,
}

#[utoipa::path(post, path = "/api/v1/queues/{queue}/jobs", tag = "publish",
    params(
        ("queue" = String, Path, description = "The queue"),
        Enqueue,
        ("Idempotency-Key" = Option<String>, Header, description = "The event's id, where it has none of its own"),
    ),
    request_body(content = serde_json::Value, description = "The job's argument: a CloudEvent in binary or structured mode, or plain bytes", content_type = "application/json"),
    responses(
        (status = 202, description = "Stored", body = Enqueued),
        (status = 400, description = "No event", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Neither the configuration nor the broker knows the queue", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "It cannot be stored now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn enqueue(
    State(context): State<Context>,
    InQueue(queue): InQueue,
    Asked(asked): Asked<Enqueue>,
    headers: HeaderMap,
    Payload(body): Payload,
) -> Result<(StatusCode, Json<Enqueued>), Problem> {
    let not_before = match (&asked.r#in, &asked.at) {
        (Some(_), Some(_)) => return Err(Problem::bad_request("in and at exclude each other")),
        (Some(delay), None) => Some(context.clock().now().after(duration("in", delay)?)),
        (None, Some(at)) => Some(time("at", at)?),
        (None, None) => None,
    };
    let named = asked.job.as_deref().map(JobName::new).transpose().map_err(Problem::bad_request)?;
    let broker = context.require_broker()?;
    let job = match (named, context.job_of(queue.as_str())) {
        (Some(named), Some(_)) => Some(named),
        (None, Some(own)) => Some(own.clone()),
        (named, None) => {
            known(&**broker, &queue).await?;
            named
        }
    };
    let source = format!("windlass://{}/{queue}", context.namespace());
    let kind = job.as_ref().map_or(queue.as_str(), JobName::as_str);
    let incoming = read(&context, &**broker, &headers, body, kind, &source)?;
    let id = incoming.id.clone();
    store(&**broker, incoming, Destination::Queue { queue: queue.clone(), job, not_before }).await?;
    let not_before = not_before.map(|at| at.to_rfc3339());
    Ok((StatusCode::ACCEPTED, Json(Enqueued { id, queue: queue.to_string(), not_before })))
}

fn read(
    context: &Context,
    broker: &dyn Broker,
    headers: &HeaderMap,
    body: bytes::Bytes,
    kind: &str,
    source: &str,
) -> Result<Incoming, Problem> {
    let defaults = Defaults { kind, source, binding: broker.publisher().binding(), now: context.clock().now() };
    incoming::read(headers, body, &defaults)
}

/// A job for a queue that nobody has would wait for ever.
async fn known(broker: &dyn Broker, queue: &QueueName) -> Result<(), Problem> {
    let queues = broker.inspect().queues().await?;
    if queues.iter().any(|known| known.name == *queue) {
        return Ok(());
    }
    Err(Problem::not_found(format!("neither the configuration nor the broker knows a queue {queue}")))
}

async fn store(
    broker: &dyn Broker,
    incoming: Incoming,
    destination: Destination,
) -> Result<broker::Published, Problem> {
    let Incoming { message, id } = incoming;
    let publication = Publication { destination, message, id, allow_unheard: false };
    let stored = broker.publisher().publish(vec![publication]).await.pop();
    Ok(stored.unwrap_or_else(|| Err(broker::Error::Unavailable("the broker gave no answer".to_owned())))?)
}
