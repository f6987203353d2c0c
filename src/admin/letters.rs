//! Reading dead letters: list with selectors and paging, groups, show, raw, export.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::{IntoParams, ToSchema};

use super::Context;
use super::extract::{Asked, InQueue, WithId};
use super::problem::Problem;
use super::shape::{Groups, Letters};
use crate::broker::letter::{Line, Row};
use crate::broker::redrive::Selection;
use crate::broker::selector::{self, Selector};
use crate::broker::{self, DeadLetters, Letter};
use crate::message::{QueueName, Reason};
use crate::time::{Timestamp, parse_duration};

/// Which dead letters: those that meet every condition given.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// `exhausted`, `permanent`, `malformed`, `unroutable`, `expired` or `crashed`
    pub(super) reason: Option<String>,
    /// Part of the error or its type, in any case.
    pub(super) error: Option<String>,
    /// A fingerprint, or the beginning of one.
    pub(super) fingerprint: Option<String>,
    /// The job that ran or would have run.
    pub(super) job: Option<String>,
    /// The topic it was published to.
    pub(super) topic: Option<String>,
    /// The ordering key.
    pub(super) key: Option<String>,
    /// The event's id.
    pub(super) event: Option<String>,
    /// Last failed since then: RFC 3339, or so long ago (`2h`).
    pub(super) since: Option<String>,
    /// Last failed before then: likewise.
    pub(super) until: Option<String>,
    /// At most so many; a page of a listing has 100 without it, and never more than 1,000.
    pub(super) limit: Option<usize>,
    /// Of a listing: where the last page ended.
    pub(super) cursor: Option<String>,
}

impl Wanted {
    /// The conditions, checked.
    pub(super) fn selector(self, now: Timestamp) -> Result<Selector, Problem> {
        let reason =
            self.reason.as_deref().map(|text| Reason::parse(text).ok_or_else(|| no_reason(text))).transpose()?;
        Ok(Selector {
            reason,
            error: self.error,
            fingerprint: self.fingerprint,
            job: self.job,
            topic: self.topic,
            key: self.key,
            event: self.event,
            since: self.since.as_deref().map(|text| moment("since", text, now)).transpose()?,
            until: self.until.as_deref().map(|text| moment("until", text, now)).transpose()?,
            limit: self.limit,
        })
    }
}

fn no_reason(text: &str) -> Problem {
    let known = Reason::ALL.map(Reason::as_str).join(", ");
    Problem::bad_request(format!("reason: expected one of {known}, found {text:?}"))
}

fn moment(name: &str, text: &str, now: Timestamp) -> Result<Timestamp, Problem> {
    if let Ok(ago) = parse_duration(text) {
        let millis = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        return Ok(Timestamp::from_millis(now.as_millis().saturating_sub(millis)));
    }
    Timestamp::parse_rfc3339(text).ok_or_else(|| {
        Problem::bad_request(format!("{name}: expected RFC 3339 or a duration such as 2h, found {text:?}"))
    })
}

/// Letters a page without a limit, and at most.
const PAGE: usize = 100;
const LARGEST_PAGE: usize = 1_000;

#[utoipa::path(get, path = "/api/v1/queues/{queue}/dlq", tag = "dead letters",
    params(("queue" = String, Path, description = "The queue"), Wanted),
    responses(
        (status = 200, description = "A page, the newest first", body = Letters),
        (status = 400, description = "A condition cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such queue", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The broker does not answer", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn list(
    State(context): State<Context>,
    InQueue(queue): InQueue,
    Asked(wanted): Asked<Wanted>,
) -> Result<Json<Letters>, Problem> {
    let after = wanted.cursor.as_deref().map(Cursor::parse).transpose()?;
    let size = wanted.limit.unwrap_or(PAGE).clamp(1, LARGEST_PAGE);
    let selector = wanted.selector(context.clock().now())?;
    let dead = context.require_broker()?.dead_letters();
    let mut page = page(&*dead, &queue, &selector, after, size + 1).await?;
    if page.is_empty() {
        check_known(&context, &queue).await?;
    }
    let more = page.len() > size;
    page.truncate(size);
    let next = page.last().filter(|_| more).map(|(cursor, _)| cursor.to_text());
    Ok(Json(Letters { letters: page.into_iter().map(|(_, row)| row).collect(), next }))
}

/// Where a page ended: the listing's order is the last failure, newest first, then the id.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cursor {
    last: Timestamp,
    id: String,
}

impl Cursor {
    fn of(letter: &Letter) -> Self {
        Self { last: letter.failure.last, id: letter.id.clone() }
    }

    fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}:{}", self.last.as_millis(), self.id))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let fault = || Problem::bad_request("cursor: expected what the last page gave as next");
        let plain = URL_SAFE_NO_PAD.decode(text).map_err(|_| fault())?;
        let plain = String::from_utf8(plain).map_err(|_| fault())?;
        let (last, id) = plain.split_once(':').ok_or_else(fault)?;
        Ok(Self { last: Timestamp::from_millis(last.parse().map_err(|_| fault())?), id: id.to_owned() })
    }
}

/// The first `size` letters after the cursor. Letters of one millisecond are put in the order of their ids, which no
/// broker promises; of such a run no more are held than the page needs.
async fn page(
    dead: &dyn DeadLetters,
    queue: &QueueName,
    selector: &Selector,
    after: Option<Cursor>,
    size: usize,
) -> Result<Vec<(Cursor, Row)>, Problem> {
    let mut query = selector.query(Some(queue), false);
    if let Some(after) = &after {
        let end = Timestamp::from_millis(after.last.as_millis().saturating_add(1));
        query.until = Some(query.until.map_or(end, |until| until.min(end)));
    }
    let mut letters = dead.list(query);
    let mut page = Vec::new();
    let mut run: BTreeMap<String, (Cursor, Row)> = BTreeMap::new();
    let mut run_at = None;
    while let Some(letter) = letters.next().await.transpose()? {
        if run_at != Some(letter.failure.last) {
            page.extend(std::mem::take(&mut run).into_values());
            if page.len() >= size {
                break;
            }
            run_at = Some(letter.failure.last);
        }
        let given = after.as_ref().is_some_and(|after| after.last == letter.failure.last && letter.id <= after.id);
        if !given && selector.matches(&letter) {
            run.insert(letter.id.clone(), (Cursor::of(&letter), Row::from(&letter)));
            if page.len() + run.len() > size {
                run.pop_last();
            }
        }
    }
    page.extend(run.into_values());
    page.truncate(size);
    Ok(page)
}

#[utoipa::path(get, path = "/api/v1/queues/{queue}/dlq/groups", tag = "dead letters",
    params(("queue" = String, Path, description = "The queue"), Wanted),
    responses(
        (status = 200, description = "Dead letters grouped by the fingerprint of their error, the largest group first", body = Groups),
        (status = 404, description = "No such queue", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn groups(
    State(context): State<Context>,
    InQueue(queue): InQueue,
    Asked(wanted): Asked<Wanted>,
) -> Result<Json<Groups>, Problem> {
    let selector = wanted.selector(context.clock().now())?;
    let dead = context.require_broker()?.dead_letters();
    let groups = selector::groups(&*dead, Some(&queue), &selector).await?;
    if groups.is_empty() {
        check_known(&context, &queue).await?;
    }
    Ok(Json(Groups { groups }))
}

#[utoipa::path(get, path = "/api/v1/queues/{queue}/dlq/{id}", tag = "dead letters",
    params(("queue" = String, Path, description = "The queue"), ("id" = String, Path, description = "A dead letter's id, a unique beginning of one, or an event's id")),
    responses(
        (status = 200, description = "The dead letter whole: a line of an export", body = Line),
        (status = 404, description = "No such dead letter", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The id names several; `candidates` lists them", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn show(
    State(context): State<Context>,
    InQueue(queue): InQueue,
    WithId(id): WithId,
) -> Result<Json<Line>, Problem> {
    let letter = one(&context, &queue, id).await?;
    Ok(Json(Line::from(&letter)))
}

#[utoipa::path(get, path = "/api/v1/queues/{queue}/dlq/{id}/raw", tag = "dead letters",
    params(("queue" = String, Path, description = "The queue"), ("id" = String, Path, description = "As of show")),
    responses(
        (status = 200, description = "Exactly the bytes that were published", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "No such dead letter", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The id names several; `candidates` lists them", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn raw(
    State(context): State<Context>,
    InQueue(queue): InQueue,
    WithId(id): WithId,
) -> Result<impl IntoResponse, Problem> {
    let letter = one(&context, &queue, id).await?;
    // What the bytes say they are is not repeated: a browser must not run what somebody published.
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], letter.message.body.unwrap_or_default()))
}

/// The one letter that an id names.
async fn one(context: &Context, queue: &QueueName, id: String) -> Result<Letter, Problem> {
    let dead = context.require_broker()?.dead_letters();
    let selection = Selection::decide(&*dead, queue, Some(vec![id.clone()]), &Selector::default()).await?;
    if let Some((_, count)) = selection.unresolved.ambiguous.first() {
        let detail = format!("{id:?} is the beginning of the ids of {count} dead letters; give more of it");
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    let mut letters: Vec<Letter> = selection.letters(&*dead).take(CANDIDATES).try_collect().await?;
    match (letters.pop(), letters.is_empty()) {
        (None, _) => Err(Problem::not_found(format!("queue {queue} has no dead letter {id:?}"))),
        (Some(letter), true) => Ok(letter),
        (Some(last), false) => {
            letters.push(last);
            let detail = format!("event {id:?} has {} dead letters; name one of candidates", selection.len());
            let ids = letters.into_iter().map(|letter| letter.id).collect();
            Err(Problem::new(StatusCode::CONFLICT, detail).with_candidates(ids))
        }
    }
}

/// How many letters are named where an id means several.
const CANDIDATES: usize = 20;

#[utoipa::path(get, path = "/api/v1/queues/{queue}/dlq/export", tag = "dead letters",
    params(("queue" = String, Path, description = "The queue"), Wanted),
    responses(
        (status = 200, description = "A line a dead letter, the oldest first, headers and body included; an answer that was cut off is not whole", body = String, content_type = "application/x-ndjson"),
        (status = 404, description = "No such queue", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn export(
    State(context): State<Context>,
    InQueue(queue): InQueue,
    Asked(wanted): Asked<Wanted>,
) -> Result<impl IntoResponse, Problem> {
    let selector = wanted.selector(context.clock().now())?;
    let dead = context.require_broker()?.dead_letters();
    let (sender, mut lines) = mpsc::channel(8);
    // Its fate: it ends with the letters, or when the client is gone and nobody receives.
    tokio::spawn(lines_of(dead, queue.clone(), selector, sender));
    // The first line decides the status: what cannot be listed at all is a problem, not a torn answer.
    let first = match lines.recv().await {
        Some(Err(error)) => return Err(error.into()),
        Some(Ok(line)) => Some(Ok(line)),
        None => {
            check_known(&context, &queue).await?;
            None
        }
    };
    let rest =
        futures_util::stream::unfold(lines, |mut lines| async move { lines.recv().await.map(|line| (line, lines)) });
    let body = Body::from_stream(futures_util::stream::iter(first).chain(rest));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body))
}

/// Nothing was found: is that because there is no such queue?
pub(super) async fn check_known(context: &Context, queue: &QueueName) -> Result<(), Problem> {
    let inspect = context.require_broker()?.inspect();
    Ok(inspect.status(std::slice::from_ref(queue)).await.map(drop)?)
}

async fn lines_of(
    dead: Arc<dyn DeadLetters>,
    queue: QueueName,
    selector: Selector,
    sender: mpsc::Sender<Result<Bytes, broker::Error>>,
) {
    let mut left = selector.limit.unwrap_or(usize::MAX);
    let mut letters = dead.list(selector.query(Some(&queue), true));
    while left > 0
        && let Some(letter) = letters.next().await
    {
        let line = match letter {
            Ok(letter) if !selector.matches(&letter) => continue,
            Ok(letter) => {
                left -= 1;
                let mut line = serde_json::to_vec(&Line::from(&letter)).expect("a line has only strings for keys");
                line.push(b'\n');
                Ok(Bytes::from(line))
            }
            Err(error) => Err(error),
        };
        let failed = line.is_err();
        if sender.send(line).await.is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip_and_nonsense_is_refused() {
        let cursor = Cursor { last: Timestamp::from_millis(1_763_719_200_000), id: "a:b_-".to_owned() };
        assert_eq!(Cursor::parse(&cursor.to_text()), Ok(cursor));
        for bad in ["", "!", "bm90aGluZw", "YTpi"] {
            assert!(Cursor::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn conditions_are_read() {
        let now = Timestamp::from_millis(1_763_719_200_000);
        let wanted = Wanted { reason: Some("permanent".to_owned()), since: Some("2h".to_owned()), ..Wanted::default() };
        let selector = wanted.selector(now).expect("read");
        assert_eq!(selector.reason, Some(Reason::Permanent));
        assert_eq!(selector.since, Some(Timestamp::from_millis(1_763_719_200_000 - 7_200_000)));
        for (reason, until) in [(Some("bad"), None), (None, Some("yesterday"))] {
            let wanted =
                Wanted { reason: reason.map(str::to_owned), until: until.map(str::to_owned), ..Wanted::default() };
            assert!(wanted.selector(now).is_err());
        }
    }
}
