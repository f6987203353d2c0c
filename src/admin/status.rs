//! `/api/v1/status`, `/api/v1/running`.

use axum::Json;
use axum::extract::State;

use super::Context;
use super::problem::Problem;
use super::shape::{Status, Worker};
use crate::broker::shape::QueueStatus;
use crate::worker::handle::Running;

#[utoipa::path(get, path = "/api/v1/status", tag = "worker", responses(
    (status = 200, description = "What the broker holds, as `windlass status`, and this process' part", body = Status),
    (status = 503, description = "The broker does not answer", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn status(State(context): State<Context>) -> Result<Json<Status>, Problem> {
    let broker = context.require_broker()?;
    let mut queues = broker.inspect().status(&[]).await?;
    queues.sort_by(|a, b| a.name.cmp(&b.name));
    let here = context.worker().map(|worker| worker.queues()).unwrap_or_default();
    Ok(Json(Status {
        broker: broker.address().to_owned(),
        queues: queues.iter().map(QueueStatus::from).collect(),
        worker: Worker {
            draining: context.shutdown().intake.is_cancelled(),
            queues: here.into_iter().map(Into::into).collect(),
        },
    }))
}

#[utoipa::path(get, path = "/api/v1/running", tag = "worker", responses(
    (status = 200, description = "Jobs running in this process, the oldest first", body = Vec<Running>),
    (status = 503, description = "The worker has not started", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn running(State(context): State<Context>) -> Result<Json<Vec<Running>>, Problem> {
    Ok(Json(context.require_worker()?.running()))
}
