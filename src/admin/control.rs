//! What an operator does to this process: pause and resume a queue, change its slots, drain.

use std::num::NonZeroUsize;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::Context;
use super::extract::{Asked, InQueue, Json as Body, duration};
use super::problem::Problem;
use super::shape::{Draining, WorkerQueue};
use crate::message::QueueName;

/// For how long.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Pause {
    /// Ends by itself after this, such as `10m`; without it, when it is resumed.
    r#for: Option<String>,
}

/// How many.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Slots {
    /// Jobs that may run at once in this process; at least 1.
    #[schema(value_type = usize, minimum = 1)]
    slots: NonZeroUsize,
}

#[utoipa::path(post, path = "/api/v1/queues/{queue}/pause", tag = "worker", params(("queue" = String, Path, description = "The queue"), Pause), responses(
    (status = 200, description = "This process takes nothing more of the queue", body = WorkerQueue),
    (status = 404, description = "This process does not work the queue", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn pause(
    State(context): State<Context>,
    InQueue(queue): InQueue,
    Asked(pause): Asked<Pause>,
) -> Result<Json<WorkerQueue>, Problem> {
    let lasting = pause.r#for.as_deref().map(|text| duration("for", text)).transpose()?;
    let known = context.require_worker()?.pause(queue.as_str(), lasting);
    let state = state(&context, &queue, known)?;
    let for_s = lasting.map(|lasting| lasting.as_secs_f64());
    tracing::info!(queue = queue.as_str(), for_s, "an operator paused the queue");
    Ok(state)
}

#[utoipa::path(post, path = "/api/v1/queues/{queue}/resume", tag = "worker", params(("queue" = String, Path, description = "The queue")), responses(
    (status = 200, description = "This process takes from the queue again", body = WorkerQueue),
    (status = 404, description = "This process does not work the queue", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn resume(
    State(context): State<Context>,
    InQueue(queue): InQueue,
) -> Result<Json<WorkerQueue>, Problem> {
    let known = context.require_worker()?.resume(queue.as_str());
    let state = state(&context, &queue, known)?;
    tracing::info!(queue = queue.as_str(), "an operator resumed the queue");
    Ok(state)
}

#[utoipa::path(put, path = "/api/v1/queues/{queue}/slots", tag = "worker", params(("queue" = String, Path, description = "The queue")), request_body = Slots, responses(
    (status = 200, description = "The queue has so many slots in this process; jobs that run over them end first", body = WorkerQueue),
    (status = 400, description = "No number of slots", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "This process does not work the queue", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn set_slots(
    State(context): State<Context>,
    InQueue(queue): InQueue,
    Body(Slots { slots }): Body<Slots>,
) -> Result<Json<WorkerQueue>, Problem> {
    let known = context.require_worker()?.set_slots(queue.as_str(), slots);
    let state = state(&context, &queue, known)?;
    tracing::info!(queue = queue.as_str(), slots, "an operator set the slots of the queue");
    Ok(state)
}

#[utoipa::path(post, path = "/api/v1/drain", tag = "worker", responses((status = 202, description = "The worker takes nothing new, lets running jobs finish within the grace, and leaves: as SIGTERM", body = Draining)))]
pub(super) async fn drain(State(context): State<Context>) -> (StatusCode, Json<Draining>) {
    tracing::info!("an operator asked for a drain");
    context.shutdown().drain();
    (StatusCode::ACCEPTED, Json(Draining { status: "draining" }))
}

fn state(context: &Context, queue: &QueueName, known: bool) -> Result<Json<WorkerQueue>, Problem> {
    let state = context.require_worker()?.queues().into_iter().find(|state| known && state.name == *queue);
    match state {
        Some(state) => Ok(Json(state.into())),
        None => Err(Problem::not_found(format!("this process does not work a queue {queue}"))),
    }
}
