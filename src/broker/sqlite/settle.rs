//! Settlements as statements: what a transaction says of the units of one queue that this worker had in hand.
//!
//! Nothing here asks row by row who owns it: the whole transaction stands under [`guard`], and as long as a
//! worker's row is there nobody else may touch what it owns.

use serde_json::json;

use super::desk::Hand;
use super::script::{Script, json_list};
use super::{letter, stored};
use crate::broker::Disposition;
use crate::broker::delivery::Delivery;
use crate::message::record::Record;
use crate::seeded;

/// Fails the script where the worker's row is gone (somebody gave back what we owned), or where queues are not what
/// we take them for.
pub fn guard(script: &mut Script, worker: i64, generation: i64) {
    script.add(
        "SELECT json('a guard fell') WHERE NOT EXISTS (SELECT 1 FROM worker WHERE id = ?) \
         OR (SELECT generation FROM meta) <> ?",
    );
    script.bind(worker).bind(generation);
}

/// The settlements of one queue in one transaction.
#[derive(Default)]
pub struct Batch {
    acked: Vec<i64>,
    released: Vec<i64>,
    retried: Vec<serde_json::Value>,
    retried_events: Vec<i64>,
    dead: Vec<Dead>,
    /// Of those that end here: their events that only this queue heard, those that others heard too, those with
    /// a record.
    alone: Vec<i64>,
    shared: Vec<i64>,
    recorded: Vec<i64>,
}

/// A dead letter to be written.
pub struct Dead {
    /// Its event.
    pub event: i64,
    /// Its id.
    pub letter: String,
    /// When it failed last.
    pub last: i64,
    /// Why.
    pub reason: &'static str,
    /// Attempts made.
    pub attempts: u32,
    /// The event's id.
    pub event_id: Option<String>,
    /// The job.
    pub job: String,
    /// How its headers spell attributes: 0 dash, 1 Kafka.
    pub binding: i64,
    /// Its record.
    pub data: String,
}

impl Batch {
    /// Gives back, without a delivery.
    pub fn release(&mut self, event: i64) {
        self.released.push(event);
    }

    /// Adds one. `salt` is the file's.
    pub fn push(&mut self, delivery: &Delivery, disposition: &Disposition, hand: &Hand, salt: i64) {
        let event = delivery.token.0 as i64;
        match disposition {
            Disposition::Ack => {
                self.acked.push(event);
                if hand.shared {
                    self.shared.push(event)
                } else {
                    self.alone.push(event)
                }
                if hand.recorded {
                    self.recorded.push(event);
                }
            }
            Disposition::Release => self.released.push(event),
            Disposition::Retry { at, attempt, failure, unroutable_since } => {
                let record = record_of(delivery, hand).again(*at, *attempt, failure.clone(), *unroutable_since);
                let data = stored::write(&record);
                self.retried.push(json!([event, at.as_millis(), i64::from(hand.suspect), data]));
                self.retried_events.push(event);
            }
            Disposition::DeadLetter { reason, failure, attempts, event_id, job } => {
                let record = Record { failure: Some(failure.clone()), not_before: None, ..record_of(delivery, hand) };
                self.dead.push(Dead {
                    event,
                    letter: letter::id(salt, event),
                    last: failure.last.as_millis(),
                    reason: reason.as_str(),
                    attempts: *attempts,
                    event_id: event_id.clone(),
                    job: job.to_string(),
                    binding: 0,
                    data: stored::write(&record),
                });
                if hand.recorded {
                    self.recorded.push(event);
                }
            }
        }
    }

    /// Writes the statements.
    pub fn write(&self, script: &mut Script, worker: i64, queue: i64, ordered: bool) {
        if !self.released.is_empty() {
            give_back(script, "owner = ? AND queue = ? AND event IN (SELECT value FROM json_each(?))", |script| {
                script.bind(worker).bind(queue).bind(json_list(self.released.iter().copied()));
            });
        }
        if !self.retried.is_empty() {
            let list = serde_json::Value::from(self.retried.clone()).to_string();
            script.add(
                "INSERT INTO record (event, queue, crashes, data) SELECT value ->> 0, ?, 0, value ->> 3 FROM json_each(?) \
                 WHERE true ON CONFLICT (event, queue) DO UPDATE SET data = excluded.data",
            );
            script.bind(queue).bind(list.clone());
            script.add(
                "INSERT INTO later (queue, class, due, event, kind) \
                 SELECT ?, value ->> 2, value ->> 1, value ->> 0, 2 FROM json_each(?)",
            );
            script.bind(queue).bind(list);
        }
        insert_dead(script, queue, &self.dead);
        let dead = self.dead.iter().map(|dead| dead.event);
        let left = self.acked.iter().copied().chain(self.retried_events.iter().copied()).chain(dead.clone());
        let mut left: Vec<i64> = left.collect();
        if !left.is_empty() {
            among(script, "DELETE FROM running WHERE owner = ? AND queue = ?", "event", &mut left, |script| {
                script.bind(worker).bind(queue);
            });
        }
        if !self.recorded.is_empty() {
            script.add("DELETE FROM record WHERE queue = ? AND event IN (SELECT value FROM json_each(?))");
            script.bind(queue).bind(json_list(self.recorded.iter().copied()));
        }
        if !self.alone.is_empty() {
            among(script, "DELETE FROM event WHERE true", "id", &mut self.alone.clone(), |_| {});
        }
        if !self.shared.is_empty() {
            unshare(script, &json_list(self.shared.iter().copied()));
        }
        if ordered && !(self.acked.is_empty() && self.dead.is_empty()) {
            let ended = self.acked.iter().copied().chain(dead);
            next_heads(script, queue, &json_list(ended));
        }
    }
}

/// What is known of a delivery so far, for the record that replaces it.
fn record_of(delivery: &Delivery, hand: &Hand) -> Record {
    let fresh = Record::fresh(&delivery.origin());
    let Some(record) = delivery.record.as_deref().cloned() else {
        return Record { first_seen: Some(hand.claimed), ..fresh };
    };
    Record {
        first_seen: record.first_seen.or(Some(hand.claimed)),
        origin: record.origin.or(fresh.origin),
        event_id: record.event_id.or(fresh.event_id),
        event_source: record.event_source.or(fresh.event_source),
        topic: record.topic.or(fresh.topic),
        ..record
    }
}

/// `STATEMENT AND COLUMN IN (...)`, as a range where the numbers have no gaps, which is what a backlog looks like.
pub fn among(script: &mut Script, statement: &str, column: &str, events: &mut [i64], bind: impl FnOnce(&mut Script)) {
    events.sort_unstable();
    let (first, last) = (events[0], events[events.len() - 1]);
    if last - first + 1 == events.len() as i64 {
        script.add(&format!("{statement} AND {column} BETWEEN ? AND ?"));
        bind(script);
        script.bind(first).bind(last);
    } else {
        script.add(&format!("{statement} AND {column} IN (SELECT value FROM json_each(?))"));
        bind(script);
        script.bind(json_list(events.iter().copied()));
    }
}

/// Puts units that `which` names back where they came from, and notes that they came back: in a record's data, which
/// the next retry writes anew, else as a record without any. `bind` binds its arguments, once for each statement.
pub fn give_back(script: &mut Script, which: &str, bind: impl Fn(&mut Script)) {
    script.add(&format!(
        "INSERT INTO record (event, queue, crashes) SELECT event, queue, 0 FROM running WHERE {which} \
         ON CONFLICT (event, queue) DO UPDATE SET data = json_set(data, '$.back', 1) WHERE data IS NOT NULL"
    ));
    bind(script);
    if seeded::bug("given-back-dropped") {
        script.add(&format!("DELETE FROM running WHERE {which}"));
        return bind(script);
    }
    script.add(&format!("INSERT INTO fresh SELECT queue, event FROM running WHERE {which} AND kind = 0 AND class = 0"));
    bind(script);
    script.add(&format!(
        "INSERT INTO later (queue, class, due, event, kind) \
         SELECT queue, class, due, event, kind FROM running WHERE {which} AND NOT (kind = 0 AND class = 0)"
    ));
    bind(script);
    script.add(&format!("DELETE FROM running WHERE {which}"));
    bind(script);
}

/// One queue less needs these events, of which others may still: each at most once in `list`.
pub fn unshare(script: &mut Script, list: &str) {
    script.add("UPDATE shared SET refs = refs - 1 WHERE event IN (SELECT value FROM json_each(?))");
    script.bind(list.to_owned());
    script.add(
        "DELETE FROM event WHERE id IN (SELECT value FROM json_each(?)) \
         AND NOT EXISTS (SELECT 1 FROM shared WHERE shared.event = event.id AND refs > 0)",
    );
    script.bind(list.to_owned());
    script.add("DELETE FROM shared WHERE event IN (SELECT value FROM json_each(?)) AND refs <= 0");
    script.bind(list.to_owned());
}

/// These events of a queue in key order have ended: the next of each key becomes its head.
pub fn next_heads(script: &mut Script, queue: i64, ended: &str) {
    script.add(
        "UPDATE head SET moved = 1, event = (SELECT min(b.event) FROM blocked b \
         WHERE b.queue = head.queue AND b.grp = head.grp AND b.key = head.key) \
         WHERE queue = ? AND event IN (SELECT value FROM json_each(?))",
    );
    script.bind(queue).bind(ended.to_owned());
    script.add("DELETE FROM head WHERE moved = 1 AND event IS NULL");
    place_moved(script);
}

/// New heads become claimable.
pub fn place_moved(script: &mut Script) {
    script.add(
        "INSERT INTO fresh SELECT h.queue, h.event FROM head h CROSS JOIN event e ON e.id = h.event \
         WHERE h.moved = 1 AND e.topic IS NOT NULL",
    );
    script.add(
        "INSERT INTO later (queue, class, due, event, kind) SELECT h.queue, 0, coalesce(e.due, e.at), h.event, 1 \
         FROM head h CROSS JOIN event e ON e.id = h.event WHERE h.moved = 1 AND e.topic IS NULL",
    );
    script.add(
        "DELETE FROM blocked WHERE (queue, grp, key, event) IN (SELECT queue, grp, key, event FROM head WHERE moved = 1)",
    );
    script.add("UPDATE head SET moved = 0 WHERE moved = 1");
}

/// Writes dead letters, in statements of 32 so that the text stays one of a few.
pub fn insert_dead(script: &mut Script, queue: i64, letters: &[Dead]) {
    const EACH: usize = 32;
    for chunk in letters.chunks(EACH) {
        let rows = if chunk.len() == 1 { 1 } else { EACH };
        script.add(&format!(
            "INSERT INTO dead (queue, letter, last, event, reason, attempts, event_id, job, binding, data) \
             SELECT * FROM (VALUES {}) WHERE column1 IS NOT NULL",
            vec!["(?,?,?,?,?,?,?,?,?,?)"; rows].join(",")
        ));
        for dead in chunk {
            script.bind(queue).bind(dead.letter.clone()).bind(dead.last).bind(dead.event);
            script.bind(dead.reason).bind(i64::from(dead.attempts)).bind(dead.event_id.clone());
            script.bind(dead.job.clone()).bind(dead.binding).bind(dead.data.clone());
        }
        for _ in 0..(rows - chunk.len()) * 10 {
            script.bind(None::<i64>);
        }
    }
}
