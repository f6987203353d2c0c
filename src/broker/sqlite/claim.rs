//! Claiming: look at the head of each lane, choose under the credit, move what was chosen to `running`.
//!
//! Content up to 64 KiB comes with the look; what is larger is fetched once it was chosen.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::json;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, TypeInfo, ValueRef};

use super::desk::Desk;
use super::script::{Answer, Script, bytes, int, int_or_null, json_list, text_or_null};
use super::settle::among;
use crate::broker::Credit;
use crate::seeded;

/// Rows of a lane that one look reads, whatever the credit: bounds the memory of a look.
const MOST: usize = 512;

/// The kind of what waits to be tried again.
pub const RETRY: i64 = 2;

/// A unit that could be claimed.
pub struct Candidate {
    /// Its event.
    pub event: i64,
    /// Its topic; none where it was enqueued or replayed.
    pub topic: Option<i64>,
    /// When it was stored.
    pub at: i64,
    /// When it is due: `at` in the fresh lane.
    pub due: i64,
    /// The job it names, where it was enqueued.
    pub job: Option<String>,
    /// The record key.
    pub key: Option<Bytes>,
    /// Length of the headers in `content`, less 2^40 where there is no body.
    pub head: i64,
    /// Headers and body; none where it is too large to be looked at.
    pub content: Option<Bytes>,
    /// Length of the content.
    pub size: usize,
    /// Its record.
    pub data: Option<String>,
    /// How often a worker died over it.
    pub crashes: i64,
    /// Whether there is a row of `record`.
    pub recorded: bool,
    /// Whether several queues heard it.
    pub shared: bool,
    /// 0 fresh, 1 enqueued or replayed, 2 retry.
    pub kind: i64,
    /// 1 for suspects.
    pub class: i64,
}

/// Where the answers to a look are.
pub struct Look {
    fresh: usize,
    later: usize,
    suspect: Option<usize>,
    next_due: usize,
}

/// What was found.
pub struct Found {
    /// The fresh lane, oldest first.
    pub fresh: VecDeque<Candidate>,
    /// The retry lane, the longest due first.
    pub later: VecDeque<Candidate>,
    /// A suspect of either lane.
    pub suspect: Option<Candidate>,
    /// When the next one becomes due.
    pub next_due: Option<i64>,
    /// More than was looked at may be there.
    pub more: bool,
}

// `LIMIT +?`, because SQLite plans by the value of a bare `LIMIT ?` (sqlite3ExprIsInteger, since 3.48): it would compile
// the statement anew each time another is bound.

/// Writes the look at a queue's lanes. `skipped`: so many more rows than the credit, because we may not take them.
pub fn look(script: &mut Script, desk: &Desk, credit: &Credit, skipped: usize, now: i64) -> Look {
    let limit = (credit.jobs.min(MOST) + skipped) as i64;
    let fresh = script.add(
        "SELECT f.event, e.topic, e.at, e.key, e.head, \
         CASE WHEN length(e.content) <= 65536 THEN e.content ELSE length(e.content) END, x.data, x.crashes, s.refs \
         FROM fresh f CROSS JOIN event e ON e.id = f.event \
         LEFT JOIN record x ON x.event = f.event AND x.queue = f.queue LEFT JOIN shared s ON s.event = f.event \
         WHERE f.queue = ? ORDER BY f.event LIMIT +?",
    );
    script.bind(desk.id).bind(limit);
    let later = look_later(script, desk, 0, now, limit);
    let suspect = credit.suspect.then(|| look_later(script, desk, 1, now, 1 + skipped as i64));
    let next_due = script.add(
        "SELECT (SELECT min(due) FROM later WHERE queue = ? AND class = 0), \
         (SELECT min(due) FROM later WHERE queue = ? AND class = 1)",
    );
    script.bind(desk.id).bind(desk.id);
    Look { fresh, later, suspect, next_due }
}

fn look_later(script: &mut Script, desk: &Desk, class: i64, now: i64, limit: i64) -> usize {
    let statement = script.add(
        "SELECT l.event, e.topic, e.at, e.key, e.head, \
         CASE WHEN length(e.content) <= 65536 THEN e.content ELSE length(e.content) END, x.data, x.crashes, s.refs, \
         l.due, l.kind, e.job \
         FROM later l CROSS JOIN event e ON e.id = l.event \
         LEFT JOIN record x ON x.event = l.event AND x.queue = l.queue LEFT JOIN shared s ON s.event = l.event \
         WHERE l.queue = ? AND l.class = ? AND l.due <= ? ORDER BY l.due, l.event LIMIT +?",
    );
    let now = due_by(now);
    script.bind(desk.id).bind(class).bind(now).bind(limit);
    statement
}

/// Up to when what is due is handed out.
fn due_by(now: i64) -> i64 {
    if seeded::bug("due-early") { now + 500 } else { now }
}

impl Look {
    /// Reads the answers. The look was written before it waited for the lock: what is not due at `now` any more, because
    /// the clock was set back meanwhile, stays.
    pub fn read(&self, answers: &[Answer], credit: &Credit, now: i64) -> Found {
        let (limit, now) = (credit.jobs.min(MOST), due_by(now));
        let lane = |statement: usize, class: i64| -> VecDeque<Candidate> {
            let candidates = answers[statement].rows.iter().map(|row| candidate(row, class));
            candidates.filter(|candidate| candidate.kind == 0 || candidate.due <= now).collect()
        };
        let due = &answers[self.next_due].rows[0];
        let dues = [int_or_null(due, 0), if self.suspect.is_some() { int_or_null(due, 1) } else { None }];
        let (fresh, later) = (lane(self.fresh, 0), lane(self.later, 0));
        let more = fresh.len() >= limit || later.len() >= limit;
        let suspect = self.suspect.and_then(|statement| lane(statement, 1).pop_front());
        Found { fresh, later, suspect, next_due: dues.into_iter().flatten().min(), more }
    }
}

fn candidate(row: &SqliteRow, class: i64) -> Candidate {
    let fresh = row.len() == 9;
    let raw = row.try_get_raw(5).expect("the statement has this column");
    let (content, size) = if raw.type_info().name() == "INTEGER" {
        (None, int(row, 5) as usize)
    } else {
        let content = Bytes::copy_from_slice(bytes(row, 5).unwrap_or_default());
        let size = content.len();
        (Some(content), size)
    };
    let at = int(row, 2);
    let crashes = int_or_null(row, 7);
    Candidate {
        event: int(row, 0),
        topic: int_or_null(row, 1),
        at,
        due: if fresh { at } else { int(row, 9) },
        job: if fresh { None } else { text_or_null(row, 11) },
        key: bytes(row, 3).map(Bytes::copy_from_slice),
        head: int(row, 4),
        content,
        size,
        data: text_or_null(row, 6),
        crashes: crashes.unwrap_or(0),
        recorded: crashes.is_some(),
        shared: int_or_null(row, 8).is_some(),
        kind: if fresh { 0 } else { int(row, 10) },
        class,
    }
}

/// Chooses under the credit: each lane gets its floor, then who has been ready longest. Payload bytes are bounded,
/// but for the first.
pub fn choose(found: &mut Found, credit: &Credit) -> Vec<Candidate> {
    let mut chosen: Vec<Candidate> = Vec::with_capacity(credit.jobs.min(found.fresh.len() + found.later.len() + 1));
    let mut size = 0;
    let mut take = |candidate: Candidate, chosen: &mut Vec<Candidate>| {
        size += candidate.size;
        if !chosen.is_empty() && size > credit.bytes {
            return false;
        }
        chosen.push(candidate);
        true
    };
    let mut fresh_floor = credit.fresh_floor;
    let mut retry_floor = credit.retry_floor;
    if let Some(suspect) = found.suspect.take() {
        let floor = if suspect.kind == 0 { &mut fresh_floor } else { &mut retry_floor };
        *floor = floor.saturating_sub(1);
        take(suspect, &mut chosen);
    }
    while chosen.len() < credit.jobs {
        let (fresh, later) = (found.fresh.front(), found.later.front());
        let from_fresh = match (fresh, later) {
            (None, None) => break,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(_), Some(_)) if fresh_floor > 0 => true,
            (Some(_), Some(_)) if retry_floor > 0 => false,
            (Some(fresh), Some(later)) => fresh.due <= later.due,
        };
        let lane = if from_fresh { &mut found.fresh } else { &mut found.later };
        let floor = if from_fresh { &mut fresh_floor } else { &mut retry_floor };
        let Some(candidate) = lane.pop_front() else { break };
        *floor = floor.saturating_sub(1);
        if !take(candidate, &mut chosen) {
            found.more = true;
            break;
        }
    }
    chosen
}

/// Writes the move of what was chosen to `running`.
pub fn take(script: &mut Script, worker: i64, desk: &Desk, chosen: &[Candidate]) {
    let queue = desk.id;
    let mut fresh: Vec<i64> =
        chosen.iter().filter(|c| c.kind == 0 && c.class == 0).map(|candidate| candidate.event).collect();
    if !fresh.is_empty() {
        let insert = "INSERT INTO running (owner, queue, event, kind, class, due, started) \
                      SELECT ?, queue, event, 0, 0, 0, 0 FROM fresh WHERE queue = ?";
        among(script, insert, "event", &mut fresh, |script| {
            script.bind(worker).bind(queue);
        });
        among(script, "DELETE FROM fresh WHERE queue = ?", "event", &mut fresh, |script| {
            script.bind(queue);
        });
    }
    let others: Vec<serde_json::Value> = chosen
        .iter()
        .filter(|candidate| candidate.kind != 0 || candidate.class != 0)
        .map(|c| json!([c.event, c.kind, c.class, c.due]))
        .collect();
    if others.is_empty() {
        return;
    }
    let list = serde_json::Value::from(others).to_string();
    script.add(
        "INSERT INTO running (owner, queue, event, kind, class, due, started) \
         SELECT ?, ?, value ->> 0, value ->> 1, value ->> 2, value ->> 3, 0 FROM json_each(?)",
    );
    script.bind(worker).bind(queue).bind(list.clone());
    script.add(
        "DELETE FROM later WHERE queue = ? AND (class, due, event) IN \
         (SELECT value ->> 2, value ->> 3, value ->> 0 FROM json_each(?))",
    );
    script.bind(queue).bind(list);
}

/// Writes the fetching of contents that were too large to look at; the statement's number.
pub fn fetch_large(script: &mut Script, chosen: &[Candidate]) -> Option<usize> {
    let large: Vec<i64> = chosen.iter().filter(|c| c.content.is_none()).map(|c| c.event).collect();
    if large.is_empty() {
        return None;
    }
    let statement = script.add("SELECT id, content FROM event WHERE id IN (SELECT value FROM json_each(?))");
    script.bind(json_list(large));
    Some(statement)
}

/// Puts fetched contents where they belong.
pub fn fill_large(chosen: &mut [Candidate], rows: &[SqliteRow]) {
    for row in rows {
        if let Some(candidate) = chosen.iter_mut().find(|candidate| candidate.event == int(row, 0)) {
            candidate.content = Some(Bytes::copy_from_slice(bytes(row, 1).unwrap_or_default()));
        }
    }
}
