//! What probes and scrapers read: `/health`, `/ready`, `/metrics`. Open to everybody who reaches the port.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use super::Context;
use crate::message::QueueName;
use crate::telemetry::exposition;
use crate::telemetry::meter::Why;
use crate::worker::handle::QueueState;

pub(super) fn routes() -> Router<Context> {
    let mut router = Router::new().route("/metrics", get(metrics));
    for path in ["/health", "/healthz", "/livez"] {
        router = router.route(path, get(health));
    }
    for path in ["/ready", "/readyz"] {
        router = router.route(path, get(ready));
    }
    router
}

/// The process lives.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Health {
    /// `ok`
    status: &'static str,
}

/// Whether the worker works.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Readiness {
    /// `ready` or `not ready`
    status: &'static str,
    /// All that must hold.
    checks: Vec<Check>,
}

/// One condition of readiness.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Check {
    /// `broker`, `intake`, `worker` or `queue:NAME`
    name: String,
    /// `ok` or `failed`
    status: &'static str,
    /// What is known.
    detail: Option<String>,
}

impl Check {
    fn new(name: impl Into<String>, failure: Option<String>) -> Self {
        let status = if failure.is_some() { "failed" } else { "ok" };
        Self { name: name.into(), status, detail: failure }
    }
}

#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, description = "The process lives; never the broker's state. Also /healthz and /livez.", body = Health)))]
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

#[utoipa::path(get, path = "/ready", tag = "health", responses(
    (status = 200, description = "Connected and consuming. Also /readyz.", body = Readiness),
    (status = 503, description = "Not connected, not consuming, waiting for a dead-letter queue, or draining", body = Readiness),
))]
pub(super) async fn ready(State(context): State<Context>) -> impl IntoResponse {
    let checks = checks(&context);
    let failed = checks.iter().any(|check| check.status == "failed");
    let (code, status) =
        if failed { (StatusCode::SERVICE_UNAVAILABLE, "not ready") } else { (StatusCode::OK, "ready") };
    (code, Json(Readiness { status, checks }))
}

fn checks(context: &Context) -> Vec<Check> {
    let draining = context.shutdown().intake.is_cancelled();
    let broker = match context.broker() {
        None => Some("not connected yet".to_owned()),
        Some(broker) if !broker.connected() => Some(format!("{} does not answer", broker.address())),
        Some(_) => None,
    };
    let mut checks = vec![Check::new("intake", draining.then(|| "draining".to_owned())), Check::new("broker", broker)];
    match context.worker() {
        None => checks.push(Check::new("worker", Some("not started yet".to_owned()))),
        Some(worker) => {
            let queues = worker.queues();
            checks.extend(queues.iter().map(|queue| Check::new(format!("queue:{}", queue.name), trouble(queue))));
        }
    }
    checks
}

/// Why a queue is not ready. One that is full, paused by an operator, or without partitions is.
fn trouble(queue: &QueueState) -> Option<String> {
    let paused = |why| queue.paused.contains(&why);
    let detail = |default: &str| Some(queue.trouble.clone().unwrap_or_else(|| default.to_owned()));
    if paused(Why::DeadLetter) {
        detail("a dead letter cannot be stored")
    } else if paused(Why::Broker) {
        detail("the broker does not answer")
    } else if !queue.consuming && queue.paused.is_empty() {
        Some("nothing was received from the broker yet".to_owned())
    } else {
        None
    }
}

#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, description = "Prometheus' text format, version 0.0.4", body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(context): State<Context>) -> impl IntoResponse {
    exposition::set_connected(context.broker().is_some_and(|broker| broker.connected()));
    if let Some(broker) = context.broker() {
        let queues: Vec<QueueName> =
            context.worker().map(|worker| worker.queues()).into_iter().flatten().map(|queue| queue.name).collect();
        context.depths().refresh(broker, &queues).await;
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], exposition::render())
}
