//! Changing dead letters: replay, purge, import. What is meant is decided once, at the start.
//!
//! The answer comes when all is done. A client that goes away ends it between two batches, and may ask again: what
//! was replayed is no dead letter any more.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::Context;
use super::extract::{Asked, InQueue, Json as Payload};
use super::letters::{Wanted, check_known};
use super::problem::Problem;
use crate::broker::letter::Line;
use crate::broker::redrive::{Deed, Ended, Progress, Rate, Selection, carry_out};
use crate::broker::selector::Selector;
use crate::broker::shape::Imported;
use crate::broker::{self, DeadLetters, Letter, Mend};
use crate::message::{JobName, QueueName};
use crate::time::Timestamp;

/// Which dead letters, and what is done with them. `ids`, `all` or a condition is needed.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Order {
    /// Dead letters' ids, unique beginnings of them, or events' ids.
    ids: Option<Vec<String>>,
    /// All of the queue.
    all: bool,
    /// `exhausted`, `permanent`, `malformed`, `unroutable`, `expired` or `crashed`
    reason: Option<String>,
    /// Part of the error or its type, in any case.
    error: Option<String>,
    /// A fingerprint, or the beginning of one.
    fingerprint: Option<String>,
    /// The job that ran or would have run.
    job: Option<String>,
    /// The topic it was published to.
    topic: Option<String>,
    /// The ordering key.
    key: Option<String>,
    /// The event's id.
    event: Option<String>,
    /// Last failed since then: RFC 3339, or so long ago (`2h`).
    since: Option<String>,
    /// Last failed before then: likewise.
    until: Option<String>,
    /// At most so many, the oldest.
    limit: Option<usize>,
    /// Say how many it would be, and do nothing.
    dry_run: bool,
    /// Needed for more than 1,000.
    yes: bool,
    /// Of a replay: how fast, such as `100/s` (which it is without it) or `none`.
    rate: Option<String>,
    /// Of a replay of one: another body.
    body: Option<String>,
    /// The same, base64.
    body_base64: Option<String>,
    /// Of a replay of one: another job.
    as_job: Option<String>,
    /// Of a replay of one: another queue.
    to: Option<String>,
}

/// So many are changed without `yes`.
const WITHOUT_YES: usize = 1_000;

#[utoipa::path(post, path = "/api/v1/queues/{queue}/dlq/replay", tag = "dead letters",
    params(("queue" = String, Path, description = "The queue")), request_body = Order,
    responses(
        (status = 200, description = "Replayed, the oldest first", body = Progress),
        (status = 400, description = "Nothing was selected, or it cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such queue or dead letter; nothing was done", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "More than 1,000 without `yes`, an ambiguous id, or somebody else replays from this queue now; nothing was done", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The broker does not answer; how many were done is said", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn replay(
    State(context): State<Context>,
    InQueue(queue): InQueue,
    Payload(order): Payload<Order>,
) -> Result<Json<Progress>, Problem> {
    let rate = match order.rate.as_deref() {
        Some(text) => Rate::parse(text).map_err(Problem::bad_request)?,
        None => Some(Rate::DEFAULT),
    };
    let mend = order.mend()?;
    change(&context, &queue, order, Deed::Replay { rate, mend }).await
}

#[utoipa::path(post, path = "/api/v1/queues/{queue}/dlq/purge", tag = "dead letters",
    params(("queue" = String, Path, description = "The queue")), request_body = Order,
    responses(
        (status = 200, description = "Removed", body = Progress),
        (status = 400, description = "Nothing was selected, or it cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such queue or dead letter; nothing was done", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "More than 1,000 without `yes`, or an ambiguous id; nothing was done", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The broker does not answer; how many were done is said", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn purge(
    State(context): State<Context>,
    InQueue(queue): InQueue,
    Payload(order): Payload<Order>,
) -> Result<Json<Progress>, Problem> {
    if order.rate.is_some() || order.is_mended() {
        return Err(Problem::bad_request("rate, body, body_base64, as_job and to are for a replay"));
    }
    change(&context, &queue, order, Deed::Purge).await
}

impl Order {
    fn is_mended(&self) -> bool {
        self.body.is_some() || self.body_base64.is_some() || self.as_job.is_some() || self.to.is_some()
    }

    fn mend(&self) -> Result<Mend, Problem> {
        let body = match (&self.body, &self.body_base64) {
            (Some(_), Some(_)) => return Err(Problem::bad_request("body and body_base64 exclude each other")),
            (Some(text), None) => Some(Bytes::from(text.clone())),
            (None, Some(text)) => {
                let bytes = BASE64.decode(text);
                Some(bytes.map_err(|error| Problem::bad_request(format!("body_base64: {error}")))?.into())
            }
            (None, None) => None,
        };
        let job = self.as_job.as_deref().map(JobName::new).transpose().map_err(Problem::bad_request)?;
        let queue = self.to.as_deref().map(QueueName::new).transpose().map_err(Problem::bad_request)?;
        Ok(Mend { body, job, queue })
    }

    fn selector(&self, now: Timestamp) -> Result<Selector, Problem> {
        let order = self.clone();
        let wanted = Wanted {
            reason: order.reason,
            error: order.error,
            fingerprint: order.fingerprint,
            job: order.job,
            topic: order.topic,
            key: order.key,
            event: order.event,
            since: order.since,
            until: order.until,
            limit: order.limit,
            cursor: None,
        };
        wanted.selector(now)
    }
}

async fn change(context: &Context, queue: &QueueName, order: Order, deed: Deed) -> Result<Json<Progress>, Problem> {
    let selector = order.selector(context.clock().now())?;
    let conditions = Selector { limit: None, ..selector.clone() };
    if order.ids.as_ref().is_none_or(Vec::is_empty) && !order.all && conditions.is_empty() {
        return Err(Problem::bad_request("say which: ids, a condition such as reason, or \"all\": true"));
    }
    let ids = order.ids.clone().filter(|ids| !ids.is_empty());
    if ids.is_some() && order.all {
        return Err(Problem::bad_request("ids and all exclude each other"));
    }
    let dead = context.require_broker()?.dead_letters();
    let selection = Selection::decide(&*dead, queue, ids, &selector).await?;
    if selection.is_empty() {
        check_known(context, queue).await?;
    }
    resolved(queue, &selection)?;
    if order.is_mended() && selection.len() != 1 {
        return Err(Problem::bad_request(format!(
            "body, body_base64, as_job and to are for one dead letter; {} are selected",
            selection.len()
        )));
    }
    if order.dry_run {
        return Ok(Json(Progress { selected: selection.len() as u64, dry_run: true, ..Progress::default() }));
    }
    if selection.len() > WITHOUT_YES && !order.yes {
        let detail = format!("{} dead letters are selected; say \"yes\": true if that is meant", selection.len());
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    let ended = carry_out(&*dead, &selection, &deed, &context.shutdown().intake, &mut |_| {}).await;
    said(ended).map(Json)
}

/// Nothing is done where an id names nothing: a slip must not become half a replay.
fn resolved(queue: &QueueName, selection: &Selection) -> Result<(), Problem> {
    let unresolved = &selection.unresolved;
    if let Some((id, count)) = unresolved.ambiguous.first() {
        let detail = format!("{id:?} is the beginning of the ids of {count} dead letters; give more of it");
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    if !unresolved.missing.is_empty() {
        let shown: Vec<_> = unresolved.missing.iter().take(10).map(|id| format!("{id:?}")).collect();
        return Err(Problem::not_found(format!(
            "queue {queue} has no dead letter {} ({} ids name none)",
            shown.join(", "),
            unresolved.missing.len()
        )));
    }
    Ok(())
}

fn said(ended: Ended) -> Result<Progress, Problem> {
    let Progress { selected, done, .. } = ended.progress;
    match ended.stopped {
        None if ended.interrupted => {
            Err(Problem::unavailable(format!("{done} of {selected} are done; the worker leaves, ask another one")))
        }
        None => Ok(ended.progress),
        Some(error) if done == 0 => Err(error.into()),
        Some(error) => Err(Problem::unavailable(format!("{done} of {selected} are done; then: {error}"))),
    }
}

/// How.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Import {
    /// Read all lines, and store nothing.
    #[serde(default)]
    dry_run: bool,
}

/// The longest line of an import, 64 MiB.
const LONGEST_LINE: usize = 64 * 1_024 * 1_024;

/// Letters, and bytes of them, that are given to the broker at once.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 4 * 1_024 * 1_024;

#[utoipa::path(post, path = "/api/v1/queues/{queue}/dlq/import", tag = "dead letters",
    params(("queue" = String, Path, description = "The queue"), Import),
    request_body(content = Option<String>, description = "Lines of an export; one whose id exists is replaced; no lines import nothing", content_type = "application/x-ndjson"),
    responses(
        (status = 200, description = "Stored", body = Imported),
        (status = 400, description = "A line cannot be read; what was stored before it is said", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such queue", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The broker does not answer; what was stored is said", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn import(
    State(context): State<Context>,
    InQueue(queue): InQueue,
    Asked(how): Asked<Import>,
    body: Body,
) -> Result<Json<Imported>, Problem> {
    let dead = context.require_broker()?.dead_letters();
    let mut import = Importing {
        dead: &*dead,
        queue,
        now: context.clock().now(),
        batch: Vec::new(),
        bytes: 0,
        imported: Imported { dry_run: how.dry_run, ..Imported::default() },
    };
    let mut body = body.into_data_stream();
    let mut rest = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| import.stopped(StatusCode::BAD_REQUEST, &error))?;
        // Only what is new can hold a line's end.
        let mut searched = rest.len();
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest[searched..].iter().position(|byte| *byte == b'\n') {
            let line = rest.split_to(searched + end + 1);
            searched = 0;
            import.line(&line).await?;
        }
        if rest.len() > LONGEST_LINE {
            return Err(import.stopped(StatusCode::PAYLOAD_TOO_LARGE, &"a line is longer than 64 MiB"));
        }
    }
    import.line(&rest).await?;
    import.store().await?;
    Ok(Json(import.imported))
}

struct Importing<'a> {
    dead: &'a dyn DeadLetters,
    queue: QueueName,
    now: Timestamp,
    batch: Vec<Letter>,
    bytes: usize,
    imported: Imported,
}

impl Importing<'_> {
    async fn line(&mut self, line: &[u8]) -> Result<(), Problem> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        self.imported.selected += 1;
        let read = serde_json::from_slice::<Line>(line).map_err(|error| error.to_string());
        let letter = match read.and_then(|line| line.into_letter(&self.queue, self.now)) {
            Ok(letter) => letter,
            Err(fault) => {
                // What stands before it is stored, so that what is said is true.
                let number = self.imported.selected;
                self.store().await?;
                return Err(self.stopped(StatusCode::BAD_REQUEST, &format!("line {number}: {fault}")));
            }
        };
        if self.imported.dry_run {
            return Ok(());
        }
        self.bytes += letter.message.size();
        self.batch.push(letter);
        if self.batch.len() >= BATCH || self.bytes >= BATCH_BYTES {
            self.store().await?;
        }
        Ok(())
    }

    async fn store(&mut self) -> Result<(), Problem> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        if batch.is_empty() {
            return Ok(());
        }
        let mut fatal = None;
        for result in self.dead.import(&batch).await {
            match result {
                Ok(()) => self.imported.done += 1,
                Err(broker::Error::Rejected(_)) => self.imported.failed += 1,
                Err(error) => fatal = Some(error),
            }
        }
        match fatal {
            None => Ok(()),
            Some(error) if self.imported.done == 0 => Err(error.into()),
            Some(error) => Err(self.stopped(StatusCode::SERVICE_UNAVAILABLE, &error)),
        }
    }

    fn stopped(&self, status: StatusCode, why: &dyn std::fmt::Display) -> Problem {
        Problem::new(status, format!("{} dead letters were stored; then: {why}", self.imported.done))
    }
}
