//! What a process makes known when it connects: its queues, and itself as a worker.

use sqlx::sqlite::SqliteConnection;

use super::peer;
use super::publish::{Directory, Hearer};
use super::script::{Script, int, text};
use super::settle::{give_back, place_moved};
use super::writer::Writer;
use crate::broker::{Queue, Role};
use crate::time::Timestamp;

/// Makes known this process: its queues, and itself where it works them.
pub async fn process(writer: &mut Writer, queues: &[Queue], role: Role) -> Result<(), sqlx::Error> {
    self::queues(writer, queues, role).await?;
    if role == Role::Worker {
        worker(writer).await?;
    }
    Ok(())
}

/// Makes known what a configuration says of queues. A worker's word replaces what was known of a queue's topics; a
/// producer only adds, so that one with an older file takes nothing away.
pub async fn queues(writer: &mut Writer, queues: &[Queue], role: Role) -> Result<(), sqlx::Error> {
    writer.reload().await?;
    if role == Role::Reader || queues.iter().all(|queue| is_known(&writer.directory, queue, role)) {
        return Ok(());
    }
    let now = writer.clock.now();
    for queue in queues {
        queue_known(&mut writer.connection, queue, role, now).await?;
    }
    writer.reload().await
}

fn is_known(directory: &Directory, queue: &Queue, role: Role) -> bool {
    let Some(known) = directory.queues.get(queue.name.as_str()).filter(|known| !known.forgotten) else { return false };
    let hears = |topic: &str| {
        directory.topics.get(topic).is_some_and(|(_, hearers)| hearers.iter().any(|hearer| hearer.id == known.id))
    };
    let all = queue.topics.iter().all(|topic| hears(topic.as_str()));
    let heard = directory.topics.values().filter(|(_, hearers)| hearers.iter().any(|hearer| hearer.id == known.id));
    all && (role == Role::Producer || (heard.count() == queue.topics.len() && known.same_settings(queue)))
}

impl Hearer {
    fn same_settings(&self, queue: &Queue) -> bool {
        self.ordered == queue.ordered
            && self.max_crashes == i64::from(queue.max_crashes)
            && self.keep_dead == keep_dead(queue)
    }
}

fn keep_dead(queue: &Queue) -> Option<i64> {
    queue.keep_dead.map(|keep| i64::try_from(keep.as_millis()).unwrap_or(i64::MAX))
}

async fn queue_known(
    connection: &mut SqliteConnection,
    queue: &Queue,
    role: Role,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let name = queue.name.as_str();
    let topics: Vec<&str> = queue.topics.iter().map(crate::message::Topic::as_str).collect();
    let topics = serde_json::to_string(&topics).expect("names always serialize");
    let mut script = Script::begin();
    let was = script.add("SELECT id, ordered FROM queue WHERE name = ?");
    script.bind(name);
    let update = if role == Role::Worker {
        "DO UPDATE SET ordered = excluded.ordered, max_crashes = excluded.max_crashes, keep_dead = excluded.keep_dead, forgotten = 0"
    } else {
        "DO UPDATE SET forgotten = 0"
    };
    script.add(&format!(
        "INSERT INTO queue (name, ordered, max_crashes, keep_dead, created) VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) {update}"
    ));
    script.bind(name).bind(i64::from(queue.ordered)).bind(i64::from(queue.max_crashes));
    script.bind(keep_dead(queue)).bind(now.as_millis());
    script.add("INSERT INTO topic (name) SELECT value FROM json_each(?) WHERE true ON CONFLICT (name) DO NOTHING");
    script.bind(topics.clone());
    script.add(
        "INSERT INTO subscription (topic, queue) SELECT t.id, q.id FROM json_each(?) j CROSS JOIN topic t ON t.name = j.value \
         CROSS JOIN queue q ON q.name = ? WHERE true ON CONFLICT (topic, queue) DO NOTHING",
    );
    script.bind(topics.clone()).bind(name);
    if role == Role::Worker {
        script.add(
            "DELETE FROM subscription WHERE queue = (SELECT id FROM queue WHERE name = ?) \
             AND topic NOT IN (SELECT t.id FROM json_each(?) j CROSS JOIN topic t ON t.name = j.value)",
        );
        script.bind(name).bind(topics);
    }
    script.add("UPDATE meta SET generation = generation + 1");
    let answers = match script.run(connection).await {
        Ok(answers) => answers,
        Err(error) => {
            super::script::rollback(connection).await;
            return Err(error);
        }
    };
    let mut script = Script::default();
    if let Some(row) = answers[was].rows.first() {
        let (id, ordered) = (int(row, 0), int(row, 1) != 0);
        if role == Role::Worker && ordered != queue.ordered {
            if queue.ordered { put_in_order(&mut script, id) } else { free_from_order(&mut script, id) }
        }
    }
    script.run_whole(connection).await.map(|_| ())
}

/// What waits already is put in key order: the first of each key stays, the others wait behind it.
fn put_in_order(script: &mut Script, queue: i64) {
    script.add(
        "INSERT INTO blocked (queue, grp, key, event) \
         SELECT u.queue, coalesce(e.topic, 0), e.key, u.event FROM \
         (SELECT queue, event FROM fresh WHERE queue = ?1 UNION ALL SELECT queue, event FROM later WHERE queue = ?1 \
          UNION ALL SELECT queue, event FROM running WHERE queue = ?1) u \
         JOIN event e ON e.id = u.event WHERE e.key IS NOT NULL"
            .replace("?1", &queue.to_string())
            .as_str(),
    );
    // What runs or has failed before goes first: it is the head already.
    script.add(
        "INSERT INTO head (queue, grp, key, event, moved) SELECT b.queue, b.grp, b.key, \
         coalesce(min(CASE WHEN EXISTS (SELECT 1 FROM running r WHERE r.queue = b.queue AND r.event = b.event) \
           OR EXISTS (SELECT 1 FROM record x WHERE x.queue = b.queue AND x.event = b.event AND (x.data IS NOT NULL OR x.crashes > 0)) THEN b.event END), min(b.event)), 0 \
         FROM blocked b WHERE b.queue = ? GROUP BY b.grp, b.key",
    );
    script.bind(queue);
    script.add(
        "DELETE FROM blocked WHERE queue = ? AND EXISTS (SELECT 1 FROM head h WHERE h.queue = blocked.queue \
         AND h.grp = blocked.grp AND h.key = blocked.key AND h.event = blocked.event)",
    );
    script.bind(queue);
    for table in ["fresh", "later"] {
        script.add(&format!(
            "DELETE FROM {table} WHERE queue = ? AND event IN (SELECT event FROM blocked b WHERE b.queue = ? \
             AND NOT EXISTS (SELECT 1 FROM record x WHERE x.queue = b.queue AND x.event = b.event AND x.data IS NOT NULL))"
        ));
        script.bind(queue).bind(queue);
    }
    // A second one that had failed before keeps its due time rather than its place in the line.
    script.add(
        "DELETE FROM blocked WHERE queue = ? AND EXISTS (SELECT 1 FROM record x WHERE x.queue = blocked.queue \
         AND x.event = blocked.event AND x.data IS NOT NULL)",
    );
    script.bind(queue);
    script.add(
        "DELETE FROM blocked WHERE queue = ? AND EXISTS (SELECT 1 FROM running r WHERE r.queue = blocked.queue \
         AND r.event = blocked.event)",
    );
    script.bind(queue);
}

/// Nothing waits behind its key any more.
fn free_from_order(script: &mut Script, queue: i64) {
    script.add("DELETE FROM head WHERE queue = ?");
    script.bind(queue);
    script.add("INSERT INTO head (queue, grp, key, event, moved) SELECT queue, 0, event, event, 1 FROM blocked WHERE queue = ?");
    script.bind(queue);
    place_moved(script);
    for table in ["blocked", "head"] {
        script.add(&format!("DELETE FROM {table} WHERE queue = ?"));
        script.bind(queue);
    }
}

/// What the file knows now.
pub async fn read(connection: &mut SqliteConnection) -> Result<Directory, sqlx::Error> {
    let mut script = Script::default();
    script.add("SELECT generation, salt FROM meta");
    script.add("SELECT id, name, ordered, max_crashes, keep_dead, forgotten FROM queue WHERE forgotten = 0 OR id IN (SELECT queue FROM dead)");
    script.add(
        "SELECT t.id, t.name, s.queue FROM topic t LEFT JOIN subscription s ON s.topic = t.id ORDER BY t.id, s.queue",
    );
    let answers = script.run(connection).await?;
    let meta = &answers[0].rows[0];
    let mut directory = Directory { generation: int(meta, 0), salt: int(meta, 1), ..Directory::default() };
    for row in &answers[1].rows {
        let hearer = Hearer {
            id: int(row, 0),
            name: text(row, 1),
            ordered: int(row, 2) != 0,
            max_crashes: int(row, 3),
            keep_dead: super::script::int_or_null(row, 4),
            forgotten: int(row, 5) != 0,
        };
        directory.queues.insert(hearer.name.clone(), hearer);
    }
    for row in &answers[2].rows {
        let (_, hearers) = directory.topics.entry(text(row, 1)).or_insert_with(|| (int(row, 0), Vec::new()));
        if let Some(queue) = super::script::int_or_null(row, 2) {
            hearers.extend(directory.queues.values().find(|hearer| hearer.id == queue).cloned());
        }
    }
    Ok(directory)
}

/// Makes this process known as a worker, after giving back what dead ones held.
pub async fn worker(writer: &mut Writer) -> Result<(), sqlx::Error> {
    writer.peers.joined(writer.lease);
    peer::reap(writer).await?;
    enter(writer).await?;
    // That may have waited for the lock.
    writer.peers.joined(writer.lease);
    // Doubts about jobs that have ended concern nobody any more.
    let mut script = Script::begin();
    script.add(
        "DELETE FROM doubt WHERE NOT EXISTS \
         (SELECT 1 FROM record x WHERE x.event = doubt.event AND x.queue = doubt.queue)",
    );
    script.run_whole(&mut writer.connection).await.map(|_| ())
}

async fn enter(writer: &mut Writer) -> Result<(), sqlx::Error> {
    let process = writer.process.clone();
    let until = writer.monotonic.now() + writer.lease.as_millis() as i64;
    let mut script = Script::begin();
    let inserted = script.add(
        "INSERT INTO worker (name, boot, pidns, pid, born, lease, schema, since) VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
    );
    script.bind(&*writer.name.clone()).bind(process.boot).bind(process.pidns).bind(process.pid).bind(process.born);
    script.bind(until).bind(super::schema::MIGRATIONS.len() as i64).bind(writer.clock.now().as_millis());
    let answers = script.run_whole(&mut writer.connection).await?;
    writer.worker = answers[inserted].rows.first().map(|row| int(row, 0));
    Ok(())
}

/// Makes known which queues this process works, with how many slots.
pub async fn present(writer: &mut Writer, slots: Vec<(String, i64)>) -> Result<(), sqlx::Error> {
    writer.slots = slots;
    attach(writer).await
}

/// Writes what [`present`] was told, where that is not what the file says.
async fn attach(writer: &mut Writer) -> Result<(), sqlx::Error> {
    let Some(worker) = writer.worker else { return Ok(()) };
    let known = |name: &String| writer.directory.queues.get(name).map(|queue| queue.id);
    let mut wanted: Vec<(i64, i64)> =
        writer.slots.iter().filter_map(|(name, slots)| Some((known(name)?, *slots))).collect();
    wanted.sort_unstable();
    if writer.attached == wanted {
        return Ok(());
    }
    let mut script = Script::begin();
    script.add("DELETE FROM attached WHERE worker = ?");
    script.bind(worker);
    script.add(
        "INSERT INTO attached (worker, queue, slots) SELECT w.id, j.value ->> 0, j.value ->> 1 \
         FROM worker w CROSS JOIN json_each(?) j WHERE w.id = ?",
    );
    script.bind(serde_json::to_string(&wanted).expect("numbers always serialize")).bind(worker);
    script.run_whole(&mut writer.connection).await?;
    writer.attached = wanted;
    Ok(())
}

/// This process works one queue more.
pub async fn attach_also(writer: &mut Writer, name: &str, slots: i64) -> Result<(), sqlx::Error> {
    if !writer.slots.iter().any(|(known, _)| known == name) {
        writer.slots.push((name.to_owned(), slots));
    }
    attach(writer).await
}

/// Our row was taken away while we were frozen. Crashes that were counted on a guess are taken back: we live.
pub async fn again(writer: &mut Writer) -> Result<(), sqlx::Error> {
    let Some(before) = writer.worker else { return Ok(()) };
    let mut script = Script::begin();
    script.add(
        "UPDATE record SET crashes = crashes - 1 WHERE crashes > 0 \
         AND (event, queue) IN (SELECT event, queue FROM doubt WHERE worker = ?)",
    );
    script.bind(before);
    script.add("DELETE FROM doubt WHERE worker = ?");
    script.bind(before);
    script.add("DELETE FROM attached WHERE worker = ?");
    script.bind(before);
    script.run_whole(&mut writer.connection).await?;
    enter(writer).await?;
    writer.attached.clear();
    attach(writer).await
}

/// Gives back what is in hand, and takes our row away.
pub async fn leave(writer: &mut Writer) -> Result<(), sqlx::Error> {
    if writer.worker.is_none() && writer.replays.is_empty() {
        return Ok(());
    }
    let mut script = Script::begin();
    if let Some(worker) = writer.worker {
        give_back(&mut script, "owner = ?", |script| {
            script.bind(worker);
        });
        for statement in ["DELETE FROM attached WHERE worker = ?", "DELETE FROM worker WHERE id = ?"] {
            script.add(statement);
            script.bind(worker);
        }
    }
    for (queue, holder) in &writer.replays {
        script.add("DELETE FROM replay WHERE queue = ? AND holder = ?");
        script.bind(*queue).bind(*holder);
    }
    script.run_whole(&mut writer.connection).await?;
    writer.worker = None;
    Ok(())
}
