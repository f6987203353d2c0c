//! What the file holds, without asking a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteRow;

use super::machine::{Life, Monotonic, Process};
use super::script::{Script, int, int_or_null, json_list, text};
use super::settle::unshare;
use super::writer::Writer;
use super::{Shared, doctor, fault, register};
use crate::broker::{Error, Finding, Inspect, KnownQueue, QueueStatus, may_forget};
use crate::message::QueueName;
use crate::time::Timestamp;

/// Dead letters that one transaction removes.
const CHUNK: i64 = 500;

/// Reads, and the few things that operators change.
pub(super) struct Reading {
    pub(super) shared: Arc<Shared>,
}

impl Inspect for Reading {
    fn status<'a>(&'a self, queues: &'a [QueueName]) -> BoxFuture<'a, Result<Vec<QueueStatus>, Error>> {
        Box::pin(status(&self.shared, queues))
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<KnownQueue>, Error>> {
        Box::pin(async move {
            let mut script = Script::default();
            script.add(
                "SELECT q.id, q.name, (SELECT json_group_array(t.name) FROM subscription s JOIN topic t ON t.id = s.topic \
                 WHERE s.queue = q.id ORDER BY t.name) FROM queue q WHERE q.forgotten = 0 ORDER BY q.name",
            );
            script.add(WORKERS);
            let answers = self.shared.read(script).await?;
            let workers = attached(&answers[1].rows, &Monotonic::beside(&self.shared.clock));
            let known = answers[0].rows.iter().filter_map(|row| {
                Some(KnownQueue {
                    name: QueueName::new(&text(row, 1)).ok()?,
                    topics: serde_json::from_str(&text(row, 2)).unwrap_or_default(),
                    workers: Some(workers.get(&int(row, 0)).map_or(0, |workers| workers.count)),
                })
            });
            Ok(known.collect())
        })
    }

    fn forget<'a>(&'a self, queue: &'a QueueName, even_with_jobs: bool) -> BoxFuture<'a, Result<u64, Error>> {
        let queue = queue.clone();
        Box::pin(self.shared.call(move |writer| Box::pin(async move { forget(writer, &queue, even_with_jobs).await })))
    }

    fn doctor(&self) -> BoxFuture<'_, Result<Vec<Finding>, Error>> {
        Box::pin(doctor::examine(&self.shared))
    }

    fn present<'a>(&'a self, queues: &'a [(QueueName, usize)]) -> BoxFuture<'a, Result<(), Error>> {
        let slots: Vec<(String, i64)> = queues.iter().map(|(name, slots)| (name.to_string(), *slots as i64)).collect();
        Box::pin(self.shared.call(move |writer| {
            Box::pin(async move {
                let result = register::present(writer, slots).await;
                result.map_err(|error| fault::explain(&error, &writer.path))
            })
        }))
    }

    fn expire_dead(&self) -> BoxFuture<'_, Result<Vec<(QueueName, u64)>, Error>> {
        Box::pin(async move {
            let mut total: BTreeMap<QueueName, u64> = BTreeMap::new();
            loop {
                // A chunk at a time, so that jobs do not wait for it.
                let chunk = self.shared.call(move |writer| {
                    Box::pin(async move {
                        let result = expire_chunk(writer).await;
                        result.map_err(|error| fault::explain(&error, &writer.path))
                    })
                });
                let (expired, more) = chunk.await?;
                for (queue, count) in expired {
                    *total.entry(queue).or_default() += count;
                }
                if !more {
                    return Ok(total.into_iter().collect());
                }
            }
        })
    }
}

/// Workers and what they attached to.
pub(super) const WORKERS: &str = "SELECT a.queue, a.slots, w.boot, w.pidns, w.pid, w.born, w.lease, w.id, w.name FROM worker w LEFT JOIN attached a ON a.worker = w.id";

/// The workers of one queue.
#[derive(Default)]
pub(super) struct Attached {
    pub(super) count: u64,
    slots: Option<u64>,
}

/// Whether the worker of this row of [`WORKERS`] holds its lease, as far as can be seen.
pub(super) fn lives(row: &SqliteRow, this: &Process, now: i64) -> bool {
    let process = Process { boot: text(row, 2), pidns: int(row, 3), pid: int(row, 4), born: int(row, 5) };
    int(row, 6) >= now && this.sees(&process) != Life::Gone
}

/// Living workers by queue.
pub(super) fn attached(rows: &[SqliteRow], monotonic: &Monotonic) -> BTreeMap<i64, Attached> {
    let (this, now) = (Process::this(), monotonic.now());
    let mut queues: BTreeMap<i64, Attached> = BTreeMap::new();
    for row in rows.iter().filter(|row| lives(row, &this, now)) {
        let Some(queue) = int_or_null(row, 0) else { continue };
        let entry = queues.entry(queue).or_default();
        entry.count += 1;
        if let Some(slots) = int_or_null(row, 1) {
            *entry.slots.get_or_insert(0) += slots as u64;
        }
    }
    queues
}

/// What the workers of one queue have, or had, in hand.
#[derive(Clone, Copy, Default)]
struct InHand {
    /// Under a lease.
    running: u64,
    /// Of workers whose lease has ended: whoever comes takes it over.
    ready: u64,
    /// When the oldest of these was published.
    oldest_ready: Option<i64>,
}

/// By queue; `running`: queue, owner, how many, the oldest.
fn in_hand(running: &[SqliteRow], workers: &[SqliteRow], monotonic: &Monotonic) -> BTreeMap<i64, InHand> {
    let (boot, now) = (Process::this().boot, monotonic.now());
    // A lease counts from the boot: one of another boot has ended.
    let leased: BTreeSet<i64> =
        workers.iter().filter(|row| text(row, 2) == boot && int(row, 6) >= now).map(|row| int(row, 7)).collect();
    let mut queues: BTreeMap<i64, InHand> = BTreeMap::new();
    for row in running {
        let hand = queues.entry(int(row, 0)).or_default();
        if leased.contains(&int(row, 1)) {
            hand.running += int(row, 2) as u64;
        } else {
            hand.ready += int(row, 2) as u64;
            hand.oldest_ready = hand.oldest_ready.into_iter().chain(int_or_null(row, 3)).min();
        }
    }
    queues
}

async fn status(shared: &Shared, queues: &[QueueName]) -> Result<Vec<QueueStatus>, Error> {
    let now = shared.clock.now();
    let mut script = Script::default();
    script.add("BEGIN");
    script.add(
        "SELECT id, name, keep_dead FROM queue WHERE forgotten = 0 OR id IN (SELECT queue FROM dead) ORDER BY name",
    );
    script.add(WORKERS);
    script.add(
        "SELECT r.queue, r.owner, count(*), min(e.at) FROM running r LEFT JOIN event e ON e.id = r.event \
         GROUP BY r.queue, r.owner",
    );
    script.add("SELECT queue, count(*), min(last) FROM dead GROUP BY queue");
    // Each is a range of a small tree, counted without looking at a column.
    script.add(
        "SELECT q.id, (SELECT count(*) FROM blocked b WHERE b.queue = q.id), \
         (SELECT count(*) FROM fresh f WHERE f.queue = q.id), \
         (SELECT e.at FROM event e WHERE e.id = (SELECT min(event) FROM fresh f WHERE f.queue = q.id)) FROM queue q",
    );
    script.add(
        "SELECT q.id, \
         (SELECT count(*) FROM later l WHERE l.queue = q.id AND l.class = 0 AND l.due <= ?1), \
         (SELECT count(*) FROM later l WHERE l.queue = q.id AND l.class = 0 AND l.due > ?1), \
         (SELECT count(*) FROM later l WHERE l.queue = q.id AND l.class = 1 AND l.kind <> 2), \
         (SELECT count(*) FROM later l WHERE l.queue = q.id AND l.kind = 2), \
         (SELECT count(*) FROM later l WHERE l.queue = q.id AND l.kind = 2 AND l.class = 0 AND l.due <= ?1), \
         (SELECT min(due) FROM later l WHERE l.queue = q.id AND l.kind = 2 AND (l.class = 1 OR l.due > ?1)), \
         (SELECT min(l.due) FROM later l WHERE l.queue = q.id AND l.class = 0 AND l.due <= ?1), \
         (SELECT count(*) FROM later l WHERE l.queue = q.id AND l.kind = 2 AND l.class = 1) \
         FROM queue q"
            .replace("?1", &now.as_millis().to_string())
            .as_str(),
    );
    script.add("COMMIT");
    let answers = shared.read(script).await?;
    let of = |statement: usize| -> BTreeMap<i64, &SqliteRow> {
        answers[statement].rows.iter().map(|row| (int(row, 0), row)).collect()
    };
    let monotonic = Monotonic::beside(&shared.clock);
    let workers = attached(&answers[2].rows, &monotonic);
    let in_hand = in_hand(&answers[3].rows, &answers[2].rows, &monotonic);
    let (dead, fresh, later) = (of(4), of(5), of(6));
    let count = |row: Option<&&SqliteRow>, column| row.map_or(0, |row| int_or_null(row, column).unwrap_or(0) as u64);
    let all = answers[1].rows.iter().map(|row| {
        let id = int(row, 0);
        let oldest_fresh = fresh.get(&id).and_then(|row| int_or_null(row, 3));
        let oldest_due = later.get(&id).and_then(|row| int_or_null(row, 7));
        let later_count = |column| count(later.get(&id), column);
        let (due, not_due, suspects, retries, due_retries) =
            (later_count(1), later_count(2), later_count(3), later_count(4), later_count(5));
        // Retries of suspects are in none of the first two.
        let suspect_retries = later_count(8);
        let hand = in_hand.get(&id).copied().unwrap_or_default();
        let oldest = [oldest_fresh, oldest_due, hand.oldest_ready].into_iter().flatten().min();
        let dead_oldest = dead.get(&id).and_then(|row| int_or_null(row, 2));
        let age = |millis: Option<i64>| Some(millis.map_or(Duration::ZERO, |at| Timestamp::from_millis(at).until(now)));
        let mut notes = Vec::new();
        if let Some(note) = doctor::near_expiry(dead_oldest, int_or_null(row, 2), now) {
            notes.push(note);
        }
        let workers = workers.get(&id);
        QueueStatus {
            name: text(row, 1),
            ready: Some(count(fresh.get(&id), 1) + count(fresh.get(&id), 2) + due + suspects + hand.ready),
            running: Some(hand.running),
            // What is due is ready, whatever it waited for.
            retrying: Some(retries.saturating_sub(due_retries)),
            scheduled: Some((not_due + due_retries + suspect_retries).saturating_sub(retries)),
            retry_due: later.get(&id).and_then(|row| int_or_null(row, 6)).map(Timestamp::from_millis),
            dead: Some(count(dead.get(&id), 1)),
            oldest_age: age(oldest),
            dead_oldest_age: age(dead_oldest),
            workers: Some(workers.map_or(0, |workers| workers.count)),
            slots: workers.map_or(Some(0), |workers| workers.slots),
            notes,
        }
    });
    let all: Vec<QueueStatus> = all.collect();
    if queues.is_empty() {
        return Ok(all);
    }
    let named = queues.iter().map(|name| {
        all.iter().find(|status| status.name == name.as_str()).cloned().ok_or_else(|| no_queue(&all, name))
    });
    named.collect()
}

fn no_queue(all: &[QueueStatus], name: &QueueName) -> Error {
    let near = all.iter().min_by_key(|status| strsim::damerau_levenshtein(&status.name, name.as_str()));
    Error::NotFound(match near {
        Some(near) => format!("there is no queue {name}; the nearest is {}", near.name),
        None => format!("there is no queue {name}; no queue is known here yet"),
    })
}

/// Removes a queue's work and that it hears anything. Its row stays, because dead letters name it.
async fn forget(writer: &mut Writer, name: &QueueName, even_with_jobs: bool) -> Result<u64, Error> {
    let path = writer.path.clone();
    let said = move |error: sqlx::Error| fault::explain(&error, &path);
    writer.reload().await.map_err(&said)?;
    let Some(queue) = writer.directory.queues.get(name.as_str()).map(|queue| queue.id) else {
        return Err(writer.directory.no_queue(name.as_str()));
    };
    let mut script = Script::begin();
    script.add(WORKERS);
    script.add(
        "SELECT (SELECT count(*) FROM fresh WHERE queue = ?1) + (SELECT count(*) FROM later WHERE queue = ?1) \
         + (SELECT count(*) FROM blocked WHERE queue = ?1) + (SELECT count(*) FROM running WHERE queue = ?1)"
            .replace("?1", &queue.to_string())
            .as_str(),
    );
    let result = async {
        let answers = script.run(&mut writer.connection).await.map_err(&said)?;
        let workers = attached(&answers[1].rows, &writer.monotonic);
        let jobs = int(&answers[2].rows[0], 0) as u64;
        may_forget(name, workers.get(&queue).map_or(0, |workers| workers.count), jobs, even_with_jobs)?;
        let mut script = Script::default();
        let units = ["fresh", "later", "blocked", "running"]
            .map(|table| format!("SELECT event FROM {table} WHERE queue = {queue}"));
        let units = units.join(" UNION ");
        script.add(&format!("UPDATE shared SET refs = refs - 1 WHERE event IN ({units})"));
        script.add(&format!(
            "DELETE FROM event WHERE id IN ({units}) \
             AND NOT EXISTS (SELECT 1 FROM shared WHERE shared.event = event.id AND refs > 0)"
        ));
        script.add("DELETE FROM shared WHERE refs <= 0");
        for table in ["fresh", "later", "blocked", "head", "running", "record", "subscription", "attached"] {
            script.add(&format!("DELETE FROM {table} WHERE queue = ?"));
            script.bind(queue);
        }
        script.add("UPDATE queue SET forgotten = 1 WHERE id = ?");
        script.bind(queue);
        script.add("UPDATE meta SET generation = generation + 1");
        script.commit();
        script.run(&mut writer.connection).await.map_err(&said)?;
        Ok(jobs)
    }
    .await;
    if result.is_err() {
        super::script::rollback(&mut writer.connection).await;
    }
    writer.reload().await.map_err(&said)?;
    result
}

/// Some of the letters that have been kept long enough; whether there are more.
async fn expire_chunk(writer: &mut Writer) -> Result<(Vec<(QueueName, u64)>, bool), sqlx::Error> {
    let now = writer.clock.now().as_millis();
    let mut script = Script::begin();
    script.add(
        "SELECT q.name, d.queue, d.event FROM queue q CROSS JOIN dead d ON d.queue = q.id AND d.last <= ? - q.keep_dead \
         WHERE q.keep_dead IS NOT NULL LIMIT ?",
    );
    script.bind(now).bind(CHUNK);
    let answers = match script.run(&mut writer.connection).await {
        Ok(answers) => answers,
        Err(error) => {
            super::script::rollback(&mut writer.connection).await;
            return Err(error);
        }
    };
    let rows = &answers[1].rows;
    let mut expired: BTreeMap<(i64, String), Vec<i64>> = BTreeMap::new();
    for row in rows {
        expired.entry((int(row, 1), text(row, 0))).or_default().push(int(row, 2));
    }
    let mut script = Script::default();
    for ((queue, _), events) in &expired {
        let list = json_list(events.iter().copied());
        script.add("DELETE FROM dead WHERE queue = ? AND event IN (SELECT value FROM json_each(?))");
        script.bind(*queue).bind(list.clone());
        unshare(&mut script, &list);
    }
    script.run_whole(&mut writer.connection).await?;
    let counts =
        expired.into_iter().filter_map(|((_, name), events)| Some((QueueName::new(&name).ok()?, events.len() as u64)));
    Ok((counts.collect(), rows.len() as i64 == CHUNK))
}
