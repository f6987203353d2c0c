//! Dead letters: a subject each in `N_dead`, kept until somebody replays or removes them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::api::{self, Api, PubAck, Stored, code};
use super::names::{self, Names};
use super::part;
use super::wire::{self, header};
use crate::broker::{DeadLetters, Error, Letter, LetterQuery, Mend, ReplayGuard};
use crate::message::record::{self, Dead, Record};
use crate::message::{Binding, Message, QueueName};
use crate::seeded;
use crate::time::Timestamp;

/// Letters of one page, where they are read from the newest on.
const PAGE: u64 = 128;
/// Sequences that a page may look back over.
const WIDEST: u64 = 1 << 20;
/// Replays and removals in flight.
const IN_FLIGHT: usize = 32;

/// Stores a dead letter under its key. One that is there already, from a try whose answer was lost, counts.
#[allow(clippy::too_many_arguments)]
pub async fn bury(
    api: &Api,
    names: &Names,
    record: &Record,
    dead: &Dead,
    original: &Message,
    key: &str,
    deadline: Instant,
) -> Result<PubAck, api::Error> {
    let headers = record::write(&original.headers, record, Some(dead), Binding::Dash);
    let mut headers = wire::headers_out(&headers).map_err(api::Error::Answer)?;
    let subject = names.letter(&dead.queue, key);
    let id = match &record.event_id {
        Some(event) if seeded::bug("letter-of-event") => event.clone(),
        _ => format!("{}:{key}", dead.queue),
    };
    headers.insert(header::MESSAGE_ID, id.as_str());
    let body = original.body.clone().unwrap_or_default();
    let tail = names.letter_part(&dead.queue, key);
    let ack = part::store(api, &subject, &tail, headers.clone(), body.clone(), deadline).await?;
    if !ack.duplicate || seeded::bug("letter-of-event") {
        return Ok(ack);
    }
    if api.get(&ack.stream, ack.seq).await?.is_some_and(|stored| stored.subject == subject) {
        return Ok(ack);
    }
    // It was there, and was purged or replayed meanwhile; this one is a letter of its own.
    headers.insert(header::MESSAGE_ID, format!("{id}:{}", uuid::Uuid::now_v7()).as_str());
    part::store(api, &subject, &tail, headers, body, deadline).await
}

/// See the module.
pub struct NatsLetters(pub Arc<Inner>);

impl DeadLetters for NatsLetters {
    fn list(&self, query: LetterQuery) -> BoxStream<'_, Result<Letter, Error>> {
        let (since, until) = (query.since, query.until);
        let within = move |letter: &Letter| {
            since.is_none_or(|since| letter.failure.last >= since)
                && until.is_none_or(|until| letter.failure.last < until)
        };
        let reader = Reader {
            inner: self.0.clone(),
            filter: query.queue.as_ref().map_or_else(
                || format!("{}.dead.*.*", self.0.names.namespace),
                |queue| self.0.names.letter(queue, "*"),
            ),
            oldest_first: query.oldest_first,
            bounds: None,
            width: PAGE,
            page: VecDeque::new(),
        };
        let letters = stream::unfold(Some(reader), |reader| async {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(letter)) => Some((Ok(letter), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error.into_broker("read dead letters")), None)),
            }
        });
        letters.filter(move |letter| std::future::ready(letter.as_ref().map_or(true, within))).boxed()
    }

    fn begin_replay<'a>(&'a self, queue: &'a QueueName) -> BoxFuture<'a, Result<ReplayGuard, Error>> {
        Box::pin(claim(self.0.clone(), queue))
    }

    fn replay<'a>(&'a self, letters: &'a [Letter], mend: &'a Mend) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        Box::pin(
            async move { in_order(letters.iter().map(|letter| self.replay_one(letter, mend).boxed()).collect()).await },
        )
    }

    fn purge<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        Box::pin(async move {
            let removed = |letter| async move {
                self.remove(letter).await.map_err(|error| error.into_broker("remove a dead letter"))
            };
            in_order(letters.iter().map(|letter| removed(letter).boxed()).collect()).await
        })
    }

    fn import<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<(), Error>>> {
        Box::pin(async move { in_order(letters.iter().map(|letter| self.import_one(letter).boxed()).collect()).await })
    }
}

/// Some at a time, results in the order given.
async fn in_order<T>(each: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    stream::iter(each).buffered(IN_FLIGHT).collect().await
}

impl NatsLetters {
    async fn find(&self, letter: &Letter) -> Result<Option<Stored>, api::Error> {
        self.0.api.last(&self.0.names.dead(), &self.0.names.letter(&letter.queue, &letter.id)).await
    }

    async fn delete(&self, stored: &Stored) -> Result<bool, api::Error> {
        let deleted = self.0.api.delete(&self.0.names.dead(), stored.seq).await?;
        if let Some(part) = wire::text(stored.headers.as_ref(), header::PART) {
            self.0.api.purge(&self.0.names.dead(), part).await?;
        }
        Ok(deleted)
    }

    async fn remove(&self, letter: &Letter) -> Result<bool, api::Error> {
        match self.find(letter).await? {
            Some(stored) => self.delete(&stored).await,
            None => Ok(false),
        }
    }

    async fn replay_one(&self, letter: &Letter, mend: &Mend) -> Result<bool, Error> {
        let doing = format!("replay {}", letter.id);
        let inner = &self.0;
        let failed = |error: api::Error| error.into_broker(&doing);
        let Some(stored) = self.find(letter).await.map_err(failed)? else { return Ok(false) };
        let queue = mend.queue.as_ref().unwrap_or(&letter.queue);
        let mut record = letter.record.clone().replayed(mend.job.clone());
        let origin = record.origin.get_or_insert_with(|| letter.id.clone()).clone();
        let key = names::key(&origin, record.replays);
        let headers = record::write(&letter.message.headers, &record, None, letter.binding);
        let mut headers = wire::headers_out(&headers).map_err(Error::Rejected)?;
        let mended = mend.body.is_some() || mend.job.is_some();
        let once = if mended { format!(":{}", uuid::Uuid::now_v7()) } else { String::new() };
        let id = format!("{queue}:{key}:1:0{once}");
        headers.insert(header::MESSAGE_ID, id.as_str());
        headers.insert(header::HOP, "0");
        let body = mend.body.clone().or_else(|| letter.message.body.clone()).unwrap_or_default();
        let subject = inner.names.record(queue, "run", &key);
        let deadline = Instant::now() + inner.options.timeout;
        let tail = inner.names.record(queue, "part", &format!("{key}-0"));
        let store = |headers| part::store(&inner.api, &subject, &tail, headers, body.clone(), deadline);
        let ack = store(headers.clone()).await.map_err(failed)?;
        if ack.duplicate {
            let there = inner.api.get(&ack.stream, ack.seq).await.map_err(failed)?;
            if there.is_none_or(|there| there.subject != subject) {
                headers.insert(header::MESSAGE_ID, format!("{id}:{}", uuid::Uuid::now_v7()).as_str());
                store(headers).await.map_err(failed)?;
            }
        }
        self.delete(&stored).await.map_err(failed)?;
        Ok(true)
    }

    async fn import_one(&self, letter: &Letter) -> Result<(), Error> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if letter.id.is_empty() || !letter.id.bytes().all(plain) {
            return Err(Error::Rejected(format!("{:?} is no id of a dead letter", letter.id)));
        }
        let doing = format!("import {}", letter.id);
        let inner = &self.0;
        inner.topology_as_producer().dead().await?;
        let before = self.find(letter).await.map_err(|e| e.into_broker(&doing))?;
        let mut record = letter.record.clone();
        record.failure = Some(letter.failure.clone());
        record.event_id.clone_from(&letter.event_id);
        let dead = Dead {
            reason: letter.reason,
            attempts: letter.attempts,
            job: letter.job.clone(),
            queue: letter.queue.clone(),
            partition: None,
            offset: None,
            worker: None,
        };
        let headers = record::write(&letter.message.headers, &record, Some(&dead), Binding::Dash);
        let mut headers = wire::headers_out(&headers).map_err(Error::Rejected)?;
        let id = format!("{}:{}:{}", letter.queue, letter.id, uuid::Uuid::now_v7());
        headers.insert(header::MESSAGE_ID, id.as_str());
        let subject = inner.names.letter(&letter.queue, &letter.id);
        let body = letter.message.body.clone().unwrap_or_default();
        let deadline = Instant::now() + inner.options.timeout;
        let tail = format!("{}-{}", inner.names.letter_part(&letter.queue, &letter.id), uuid::Uuid::now_v7());
        let stored = part::store(&inner.api, &subject, &tail, headers, body, deadline).await;
        stored.map_err(|e| e.into_broker(&doing))?;
        if let Some(before) = before {
            self.delete(&before).await.map_err(|e| e.into_broker(&doing))?;
        }
        Ok(())
    }
}

/// Reads letters one after the other, or backwards in pages.
struct Reader {
    inner: Arc<Inner>,
    filter: String,
    oldest_first: bool,
    /// Sequences that are still to be looked at: from, and up to but not including.
    bounds: Option<(u64, u64)>,
    width: u64,
    page: VecDeque<Letter>,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Letter>, api::Error> {
        let stream = self.inner.names.dead();
        let (mut from, mut to) = match self.bounds {
            Some(bounds) => bounds,
            None => match self.inner.api.stream(&stream).await? {
                Some(found) => {
                    let state = |name: &str| found.state[name].as_u64().unwrap_or(0);
                    (state("first_seq"), state("last_seq") + 1)
                }
                None => (0, 0),
            },
        };
        loop {
            if let Some(letter) = self.page.pop_back() {
                return Ok(Some(letter));
            }
            if from >= to {
                return Ok(None);
            }
            if self.oldest_first {
                let Some(stored) = self.inner.api.next(&stream, from, &self.filter).await? else { return Ok(None) };
                if stored.seq >= to {
                    return Ok(None);
                }
                from = stored.seq + 1;
                self.bounds = Some((from, to));
                let letter = self.letter(stored).await?;
                self.page.extend(letter);
            } else {
                let low = to.saturating_sub(self.width).max(from);
                let mut at = low;
                let mut found = 0;
                while at < to {
                    let Some(stored) = self.inner.api.next(&stream, at, &self.filter).await? else { break };
                    if stored.seq >= to {
                        break;
                    }
                    at = stored.seq + 1;
                    found += 1;
                    let letter = self.letter(stored).await?;
                    self.page.extend(letter);
                }
                // Letters may lie far apart; a page grows until it has some.
                self.width = if found == 0 { (self.width * 4).min(WIDEST) } else { PAGE };
                to = low;
                self.bounds = Some((from, to));
            }
        }
    }

    async fn letter(&self, mut stored: Stored) -> Result<Option<Letter>, api::Error> {
        let subject = stored.subject.clone();
        let (stream, headers) = (self.inner.names.dead(), stored.headers.as_ref());
        let Some(body) = part::whole(&self.inner.api, &stream, headers, stored.payload.clone()).await? else {
            tracing::error!(subject, "the end of a dead letter's body is gone");
            return Ok(None);
        };
        stored.payload = body;
        let letter = letter(&self.inner.names, stored);
        if letter.is_none() {
            tracing::warn!(subject, "what lies among the dead letters is none of windlass");
        }
        Ok(letter)
    }
}

/// A stored message as a letter; `None` where it is none.
fn letter(names: &Names, stored: Stored) -> Option<Letter> {
    let rest = stored.subject.strip_prefix(names.namespace.as_str())?.strip_prefix(".dead.")?;
    let (queue, id) = rest.split_once('.')?;
    let headers = wire::headers_in(stored.headers.as_ref(), &mut crate::message::headers::Builder::default());
    let read = record::read(&headers, Binding::Dash).ok()?;
    let dead = read.dead?;
    let failure = read.record.failure.clone()?;
    let message = Message { headers: read.original, body: Some(stored.payload), key: None };
    Some(Letter {
        id: id.to_owned(),
        queue: QueueName::new(queue).ok()?,
        message,
        binding: Binding::Dash,
        event_id: read.record.event_id.clone(),
        job: dead.job,
        reason: dead.reason,
        attempts: dead.attempts,
        failure,
        record: read.record,
    })
}

/// Takes the right to replay from a queue: a message that may be written only where there is none, or where the one
/// there has not been renewed for a lease.
async fn claim(inner: Arc<Inner>, queue: &QueueName) -> Result<ReplayGuard, Error> {
    let doing = format!("take the right to replay from {queue}");
    let failed = |error: api::Error| error.into_broker(&doing);
    let subject = inner.names.state(queue, "replay");
    let stream = inner.names.work();
    let before = inner.api.last(&stream, &subject).await.map_err(failed)?;
    if let Some(before) = &before {
        let body: Value = serde_json::from_slice(&before.payload).unwrap_or_default();
        let until = Timestamp::from_millis(body["until"].as_i64().unwrap_or(0));
        if inner.options.clock.now() < until {
            let by = body["by"].as_str().unwrap_or("somebody");
            return Err(Error::Taken(format!(
                "{by} is replaying from {queue}; if it was killed, its claim ends at {}",
                until.to_rfc3339()
            )));
        }
    }
    let mut seq =
        write_claim(&inner, &subject, before.as_ref().map_or(0, |before| before.seq)).await.map_err(|error| {
            if code::WRONG_SEQUENCE.contains(&error.err_code()) {
                Error::Taken(format!("somebody else began to replay from {queue} just now"))
            } else {
                failed(error)
            }
        })?;
    let ended = CancellationToken::new();
    let guard = ended.clone();
    let every = inner.options.lease / 3;
    inner.clone().tasks.spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = ended.cancelled() => break,
                () = inner.closed.cancelled() => break,
                () = tokio::time::sleep(every) => {}
            }
            match write_claim(&inner, &subject, seq).await {
                Ok(next) => seq = next,
                Err(error) => tracing::warn!(error = %error, "failed to renew the right to replay"),
            }
        }
        // Where it cannot be removed it ends with its lease.
        let _ = inner.api.delete(&stream, seq).await;
    });
    Ok(ReplayGuard::new(move || guard.cancel()))
}

async fn write_claim(inner: &Inner, subject: &str, before: u64) -> Result<u64, api::Error> {
    let until = inner.options.clock.now().after(inner.options.lease);
    let body = json!({ "by": &*inner.options.worker, "until": until.as_millis() }).to_string();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(header::MESSAGE_ID, uuid::Uuid::now_v7().to_string().as_str());
    headers.insert(header::EXPECTED, before.to_string().as_str());
    let deadline = Instant::now() + inner.options.timeout.min(Duration::from_secs(5));
    let ack = inner.api.store(subject, headers, body.into(), deadline).await?;
    if before > 0 {
        inner.api.delete(&inner.names.work(), before).await?;
    }
    Ok(ack.seq)
}

/// Removes letters of `queue` that were stored before `limit`; how many.
pub async fn expire(inner: &Inner, queue: &QueueName, limit: Timestamp) -> Result<u64, api::Error> {
    let (stream, filter) = (inner.names.dead(), inner.names.letter(queue, "*"));
    let mut removed = 0;
    let mut from = 1;
    while let Some(stored) = inner.api.next(&stream, from, &filter).await? {
        if stored.at >= limit {
            break;
        }
        from = stored.seq + 1;
        if let Some(part) = wire::text(stored.headers.as_ref(), header::PART) {
            inner.api.purge(&stream, part).await?;
        }
        removed += u64::from(inner.api.delete(&stream, stored.seq).await?);
    }
    Ok(removed)
}
