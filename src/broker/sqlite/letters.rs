//! Dead letters: listed in pages, replayed, purged and imported each in one transaction a batch.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use sqlx::sqlite::SqliteRow;

use super::command::Command;
use super::publish::{self, NO_BODY};
use super::script::{Script, bytes, int, json_list, rollback, text, text_or_null};
use super::settle::{Dead, insert_dead, unshare};
use super::writer::Writer;
use super::{Shared, fault, stored};
use crate::broker::{DeadLetters, Destination, Error, Letter, LetterQuery, Mend, Publication, ReplayGuard};
use crate::message::record::Record;
use crate::message::{Binding, Failure, Headers, JobName, Message, QueueName, Reason};
use crate::time::Timestamp;

/// Letters of one page.
const PAGE: i64 = 200;
/// Bytes of payload that are read at once, but for one letter.
const PAGE_BYTES: i64 = 8 * 1_024 * 1_024;
/// Letters of one transaction.
const BATCH: usize = 500;

/// The dead-letter verbs.
pub(super) struct Letters {
    pub(super) shared: Arc<Shared>,
}

impl DeadLetters for Letters {
    fn list(&self, query: LetterQuery) -> BoxStream<'_, Result<Letter, Error>> {
        let pages = Pages { shared: &self.shared, query, after: None, rows: VecDeque::new(), ready: VecDeque::new() };
        stream::try_unfold(pages, |mut pages| async move {
            let letter = pages.next().await?;
            Ok(letter.map(|letter| (letter, pages)))
        })
        .boxed()
    }

    fn begin_replay<'a>(&'a self, queue: &'a QueueName) -> BoxFuture<'a, Result<ReplayGuard, Error>> {
        Box::pin(async move {
            let name = queue.clone();
            let claim = self.shared.call(move |writer| Box::pin(async move { begin(writer, &name).await }));
            let (queue, holder) = claim.await?;
            let commands = self.shared.commands.clone();
            Ok(ReplayGuard::new(move || {
                let call: super::command::Call = Box::new(move |writer| Box::pin(end(writer, queue, holder)));
                // Where the writer has ended it gave the right back itself.
                let _ = commands.send(Command::Call(call));
            }))
        })
    }

    fn replay<'a>(&'a self, letters: &'a [Letter], mend: &'a Mend) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        Box::pin(self.in_batches(letters, Verb::Replay(mend.clone())))
    }

    fn purge<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        Box::pin(self.in_batches(letters, Verb::Purge))
    }

    fn import<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<(), Error>>> {
        Box::pin(async move {
            let results = self.in_batches(letters, Verb::Import).await;
            results.into_iter().map(|result| result.map(|_| ())).collect()
        })
    }
}

/// What is done with letters.
#[derive(Clone)]
enum Verb {
    Replay(Mend),
    Purge,
    Import,
}

impl Letters {
    /// Has the writer do it, some letters a transaction.
    async fn in_batches(&self, letters: &[Letter], verb: Verb) -> Vec<Result<bool, Error>> {
        let mut results = Vec::with_capacity(letters.len());
        for batch in letters.chunks(BATCH) {
            let (batch, verb) = (batch.to_vec(), verb.clone());
            let count = batch.len();
            let done = self.shared.call(move |writer| Box::pin(async move { carry_out(writer, &batch, &verb).await }));
            match done.await {
                Ok(done) => results.extend(done),
                Err(error) => results.extend((0..count).map(|_| Err(again(&error)))),
            }
        }
        results
    }
}

/// The same error for each letter of a batch.
fn again(error: &Error) -> Error {
    match error {
        Error::Unavailable(text) => Error::Unavailable(text.clone()),
        Error::Taken(text) => Error::Taken(text.clone()),
        Error::Refused(text) => Error::Refused(text.clone()),
        Error::NotFound(text) => Error::NotFound(text.clone()),
        Error::Rejected(text) => Error::Rejected(text.clone()),
        Error::Usage(text) => Error::Usage(text.clone()),
    }
}

/// One transaction: which of the letters are there, then what is done with those.
async fn carry_out(writer: &mut Writer, letters: &[Letter], verb: &Verb) -> Result<Vec<Result<bool, Error>>, Error> {
    let path = writer.path.clone();
    writer.reload().await.map_err(|error| fault::explain(&error, &path))?;
    let result = carry_out_whole(writer, letters, verb).await;
    if result.is_err() {
        rollback(&mut writer.connection).await;
    }
    result.map_err(|error| fault::explain(&error, &path))
}

async fn carry_out_whole(
    writer: &mut Writer,
    letters: &[Letter],
    verb: &Verb,
) -> Result<Vec<Result<bool, Error>>, sqlx::Error> {
    let queue_of = |name: &QueueName| writer.directory.queues.get(name.as_str()).map(|queue| queue.id);
    let keys: Vec<(i64, &str)> = letters.iter().map(|l| (queue_of(&l.queue).unwrap_or(0), l.id.as_str())).collect();
    let mut script = Script::begin();
    script.add(
        "SELECT d.queue, d.letter, d.event FROM json_each(?) j \
         CROSS JOIN dead d ON d.queue = j.value ->> 0 AND d.letter = j.value ->> 1",
    );
    script.bind(serde_json::to_string(&keys).expect("numbers and text always serialize"));
    let answers = script.run(&mut writer.connection).await?;
    let there = answers[1].rows.iter().map(|row| ((int(row, 0), text(row, 1)), int(row, 2)));
    let there: HashMap<(i64, String), i64> = there.collect();

    let mut script = Script::default();
    let mut removed: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    let mut results = Vec::with_capacity(letters.len());
    let mut seen = HashSet::new();
    let now = writer.clock.now();
    let mut batch = publish::Batch::default();
    let mut records = Vec::new();
    let mut imported: Vec<(i64, &Letter)> = Vec::new();
    for letter in letters {
        let queue = queue_of(&letter.queue);
        let found = there.get(&(queue.unwrap_or(0), letter.id.clone())).copied();
        let first = seen.insert((&letter.queue, letter.id.as_str()));
        let result = match (verb, queue, found) {
            (Verb::Import, None, _) => Err(writer.directory.no_queue(letter.queue.as_str())),
            (Verb::Import, Some(_), _) if !first => Ok(true),
            (Verb::Import, Some(queue), _) => {
                imported.push((queue, letter));
                Ok(true)
            }
            (_, _, None) => Ok(false),
            (_, _, Some(_)) if !first => Ok(false),
            (Verb::Purge, ..) => Ok(true),
            (Verb::Replay(mend), ..) => {
                let publication = replayed(letter, mend);
                match writer.directory.route(&publication) {
                    Ok(route) => {
                        records.push((batch.len() as i64, route.first(), stored::write(&record_of(letter, mend))));
                        batch.push(&publication, &route, now);
                        Ok(true)
                    }
                    Err(error) => Err(error),
                }
            }
        };
        if let (Ok(true), Some(queue), Some(event)) = (&result, queue, found) {
            removed.entry(queue).or_default().push(event);
        }
        results.push(result);
    }
    for (queue, events) in removed {
        let list = json_list(events);
        script.add("DELETE FROM dead WHERE queue = ? AND event IN (SELECT value FROM json_each(?))");
        script.bind(queue).bind(list.clone());
        unshare(&mut script, &list);
    }
    if !records.is_empty() {
        // Before the batch, which moves `meta.next` on.
        script.add(
            "INSERT INTO record (event, queue, crashes, data) \
             SELECT m.next + (j.value ->> 0), j.value ->> 1, 0, j.value ->> 2 FROM meta m CROSS JOIN json_each(?) j",
        );
        script.bind(serde_json::to_string(&records).expect("numbers and text always serialize"));
    }
    batch.write(&mut script, now);
    write_imported(&mut script, imported, now);
    script.commit();
    script.run(&mut writer.connection).await?;
    Ok(results)
}

/// The letter as a message for its queue alone.
fn replayed(letter: &Letter, mend: &Mend) -> Publication {
    let headers = match letter.binding {
        Binding::Dash => letter.message.headers.clone(),
        Binding::Kafka => letter.message.headers.iter().map(|(name, value)| dashed(name, value)).collect(),
    };
    let body = mend.body.clone().map(Some).unwrap_or_else(|| letter.message.body.clone());
    Publication {
        destination: Destination::Queue {
            queue: mend.queue.clone().unwrap_or_else(|| letter.queue.clone()),
            job: mend.job.clone().or_else(|| letter.record.job.clone()),
            not_before: None,
        },
        message: Message { headers, body, key: letter.message.key.clone() },
        id: letter.event_id.clone().unwrap_or_default(),
        allow_unheard: false,
    }
}

/// A header of the Kafka binding as the HTTP binding writes it (CloudEvents HTTP binding 3.1.3.2: what is not
/// printable ASCII, `"`, `%` and space are percent-encoded).
fn dashed(name: &str, value: &[u8]) -> (String, Vec<u8>) {
    let Some(attribute) = name.strip_prefix("ce_") else { return (name.to_owned(), value.to_vec()) };
    let mut encoded = Vec::with_capacity(value.len());
    for &byte in value {
        if byte.is_ascii_graphic() && byte != b'"' && byte != b'%' {
            encoded.push(byte);
        } else {
            encoded.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    (format!("ce-{attribute}"), encoded)
}

/// It begins again at attempt 1, under the same event id. (That it expires no more is what decoding makes of a record
/// with replays; the headers stay as they were published.)
fn record_of(letter: &Letter, mend: &Mend) -> Record {
    let mut record = letter.record.clone().replayed(mend.job.clone());
    record.event_id = record.event_id.or_else(|| letter.event_id.clone());
    record.event_source =
        record.event_source.or_else(|| record.topic.as_ref().map(|topic| format!("sqlite://{topic}")));
    record
}

fn write_imported(script: &mut Script, imported: Vec<(i64, &Letter)>, now: Timestamp) {
    for (queue, letter) in imported {
        let (head, content) = publish::pack(&letter.message);
        script.add("INSERT INTO event (id, at, key, head, content) SELECT next, ?, ?, ?, ? FROM meta");
        script.bind(now.as_millis()).bind(letter.message.key.as_ref().map(|key| key.to_vec())).bind(head).bind(content);
        let record = Record { failure: Some(letter.failure.clone()), ..letter.record.clone() };
        let dead = Dead {
            event: 0,
            letter: letter.id.clone(),
            last: letter.failure.last.as_millis(),
            reason: letter.reason.as_str(),
            attempts: letter.attempts,
            event_id: letter.event_id.clone(),
            job: letter.job.to_string(),
            binding: i64::from(letter.binding == Binding::Kafka),
            data: stored::write(&record),
        };
        insert_dead(script, queue, &[dead]);
        script.add("UPDATE dead SET event = (SELECT next FROM meta) WHERE queue = ? AND letter = ?");
        script.bind(queue).bind(letter.id.clone());
        script.add("UPDATE meta SET next = next + 1");
    }
}

/// Reads letters page by page, so that no listing, however slow, keeps the log from being folded.
struct Pages<'a> {
    shared: &'a Shared,
    query: LetterQuery,
    after: Option<(i64, i64)>,
    rows: VecDeque<SqliteRow>,
    ready: VecDeque<Letter>,
}

impl Pages<'_> {
    async fn next(&mut self) -> Result<Option<Letter>, Error> {
        loop {
            if let Some(letter) = self.ready.pop_front() {
                return Ok(Some(letter));
            }
            if self.rows.is_empty() && !self.page().await? {
                return Ok(None);
            }
            self.fill().await?;
        }
    }

    /// The next page, without bodies; `false`: there is none.
    async fn page(&mut self) -> Result<bool, Error> {
        let (order, than) = if self.query.oldest_first { ("ASC", ">") } else { ("DESC", "<") };
        let start = if self.query.oldest_first { (i64::MIN, 0) } else { (i64::MAX, i64::MAX) };
        let (last, id) = self.after.unwrap_or(start);
        let mut script = Script::default();
        let which = if self.query.queue.is_some() { "d.queue = (SELECT id FROM queue WHERE name = ?)" } else { "true" };
        script.add(&format!(
            "SELECT d.id, d.last, d.event, length(e.content), d.letter, d.reason, d.attempts, d.event_id, d.job, d.binding, \
             d.data, e.key, e.head, (SELECT name FROM queue q WHERE q.id = d.queue) \
             FROM dead d CROSS JOIN event e ON e.id = d.event \
             WHERE {which} AND (d.last, d.id) {than} (?, ?) AND d.last >= ? AND d.last < ? \
             ORDER BY d.last {order}, d.id {order} LIMIT ?"
        ));
        if let Some(queue) = &self.query.queue {
            script.bind(queue.to_string());
        }
        script.bind(last).bind(id);
        script.bind(self.query.since.map_or(i64::MIN, Timestamp::as_millis));
        script.bind(self.query.until.map_or(i64::MAX, Timestamp::as_millis));
        script.bind(PAGE);
        self.rows = self.shared.read(script).await?.swap_remove(0).rows.into();
        if let Some(row) = self.rows.back() {
            self.after = Some((int(row, 1), int(row, 0)));
        }
        Ok(!self.rows.is_empty())
    }

    /// Bodies for as many rows as fit.
    async fn fill(&mut self) -> Result<(), Error> {
        let (mut count, mut size) = (0, 0);
        for row in &self.rows {
            size += int(row, 3);
            if count > 0 && size > PAGE_BYTES {
                break;
            }
            count += 1;
        }
        let rows: Vec<SqliteRow> = self.rows.drain(..count).collect();
        let mut script = Script::default();
        script.add("SELECT id, content FROM event WHERE id IN (SELECT value FROM json_each(?))");
        script.bind(json_list(rows.iter().map(|row| int(row, 2))));
        let answers = self.shared.read(script).await?;
        let contents = answers[0].rows.iter().map(|row| (int(row, 0), bytes(row, 1).unwrap_or_default()));
        let contents: HashMap<i64, &[u8]> = contents.collect();
        // One that was replayed or purged between the two reads is left out.
        let letters = rows.iter().filter_map(|row| letter_of(row, contents.get(&int(row, 2))?));
        self.ready.extend(letters);
        Ok(())
    }
}

fn letter_of(row: &SqliteRow, content: &[u8]) -> Option<Letter> {
    let content = Bytes::copy_from_slice(content);
    let head = int(row, 12);
    let (head, has_body) = if head < 0 { (head + NO_BODY, false) } else { (head, true) };
    let head = (head as usize).min(content.len());
    let record = stored::read(&text(row, 10));
    let last = Timestamp::from_millis(int(row, 1));
    let failure = record.failure.clone().unwrap_or_else(|| Failure::new("unknown", "", last, last));
    Some(Letter {
        id: text(row, 4),
        queue: QueueName::new(&text_or_null(row, 13)?).ok()?,
        message: Message {
            headers: Headers::from_buffer(content.slice(..head)).unwrap_or_default(),
            body: has_body.then(|| content.slice(head..)),
            key: bytes(row, 11).map(Bytes::copy_from_slice),
        },
        binding: if int(row, 9) == 1 { Binding::Kafka } else { Binding::Dash },
        event_id: text_or_null(row, 7),
        job: JobName::new(&text(row, 8)).ok()?,
        reason: Reason::parse(&text(row, 5))?,
        attempts: u32::try_from(int(row, 6)).unwrap_or(u32::MAX),
        failure,
        record,
    })
}

/// Takes the right to replay; the queue's number and the holder's.
async fn begin(writer: &mut Writer, name: &QueueName) -> Result<(i64, i64), Error> {
    let path = writer.path.clone();
    let said = |error: sqlx::Error| fault::explain(&error, &path);
    writer.reload().await.map_err(said)?;
    let Some(queue) = writer.directory.queues.get(name.as_str()).map(|queue| queue.id) else {
        return Err(writer.directory.no_queue(name.as_str()));
    };
    let holder = fastrand::i64(..);
    let now = writer.monotonic.now();
    let mut script = Script::begin();
    script.add("DELETE FROM replay WHERE queue = ? AND (lease <= ? OR boot <> ?)");
    script.bind(queue).bind(now).bind(writer.process.boot.clone());
    let taken =
        script.add("INSERT INTO replay (queue, holder, boot, lease) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING");
    script.bind(queue).bind(holder).bind(writer.process.boot.clone()).bind(now + writer.lease.as_millis() as i64);
    // What is replayed waits there, and must be seen: a queue that was forgotten is known again.
    script.add("UPDATE queue SET forgotten = 0 WHERE id = ?");
    script.bind(queue);
    let answers = script.run_whole(&mut writer.connection).await.map_err(said)?;
    if answers[taken].changed == 0 {
        return Err(Error::Taken(format!(
            "somebody replays from the dead letters of {name} already; wait until that is done, or {} s if it was killed",
            writer.lease.as_secs()
        )));
    }
    writer.replays.insert(queue, holder);
    Ok((queue, holder))
}

async fn end(writer: &mut Writer, queue: i64, holder: i64) {
    writer.replays.remove(&queue);
    let mut script = Script::begin();
    script.add("DELETE FROM replay WHERE queue = ? AND holder = ?");
    script.bind(queue).bind(holder);
    // Should it fail, the claim ends with its lease.
    let _ = script.run_whole(&mut writer.connection).await;
}
