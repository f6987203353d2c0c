//! The other workers on this file: whose process is gone, and whose lease has run out, gives back what it held.
//!
//! A crash is counted where the process is gone. Where only its lease has run out and nobody can see whether it
//! lives, it is counted too, in doubt: should it turn up again, it takes that back. A process that is seen alive and
//! only slept past its lease did not crash.
//!
//! Whoever holds the file's lock keeps everybody from renewing. A lease therefore counts as run out only for a worker
//! that could itself write in time: where it could not, the others get a third of a lease to catch up. Who has just
//! come cannot know, and is as patient, but for leases that ran out long ago.

use std::time::Duration;

use tokio::time::Instant;

use super::machine::{Life, Process};
use super::script::{Script, int, rollback, text};
use super::settle::give_back;
use super::writer::Writer;
use crate::seeded;

/// How often the processes of others are looked at.
const VISIT: Duration = Duration::from_millis(250);
/// How often at the least the table is read again.
const READ: Duration = Duration::from_secs(5);
/// Who has not renewed for so many leases was not kept from it by a lock that has just been given back.
const LONG_AGO: i64 = 10;

/// What is known of the other workers.
pub struct Peers {
    known: Vec<Peer>,
    next: Instant,
    read_at: Instant,
    /// Until when a lease that has run out says nothing: its owner may have been kept from renewing, as we were.
    patient_until: Option<Instant>,
    /// Until when we have just come.
    new_until: Option<Instant>,
}

struct Peer {
    id: i64,
    process: Process,
    lease: i64,
    name: String,
}

impl Peers {
    /// Nothing is known.
    pub fn new(now: Instant) -> Self {
        Self { known: Vec::new(), next: now + VISIT, read_at: now, patient_until: None, new_until: None }
    }

    /// When to look next: seldom where nobody else is known.
    pub fn next(&self) -> Instant {
        if self.known.is_empty() { self.read_at.max(self.next) } else { self.next }
    }

    /// Whether it is time.
    pub fn is_time(&self) -> bool {
        self.next() <= Instant::now()
    }

    /// Something that was due at `due` could be written only now: if that is long ago, others had to wait as well.
    pub fn wrote(&mut self, due: Instant, lease: Duration) {
        let now = Instant::now();
        if now > due + VISIT {
            self.patient_until = Some(now + lease / 3);
        }
    }

    /// Our renewal was refused, as on a full disk: nor could the others write, who try again at other times than we.
    pub fn refused(&mut self, lease: Duration) {
        self.patient_until = Some(Instant::now() + lease / 2);
    }

    /// We have just come: others may have been kept from renewing until a moment ago.
    pub fn joined(&mut self, lease: Duration) {
        self.new_until = Some(Instant::now() + lease / 3);
    }

    /// Whether a lease that ran out so many milliseconds ago says nothing yet.
    fn is_patient(&self, ago: i64, lease: Duration) -> bool {
        if seeded::bug("patience-forgotten") {
            return false;
        }
        let now = Instant::now();
        let recent = ago < LONG_AGO * lease.as_millis() as i64;
        self.patient_until.is_some_and(|until| now < until) || recent && self.new_until.is_some_and(|until| now < until)
    }

    /// Another process has written: the table may have changed.
    pub fn stale(&mut self) {
        self.read_at = self.read_at.min(Instant::now() + VISIT);
    }
}

/// Gives back what dead workers held; how many were found.
pub async fn reap(writer: &mut Writer) -> Result<usize, sqlx::Error> {
    let now = Instant::now();
    let this = writer.process.clone();
    let ticks = writer.monotonic.now();
    writer.peers.next = now + VISIT;
    let suspicious = |peer: &Peer| this.sees(&peer.process) == Life::Gone || peer.lease < ticks;
    if now >= writer.peers.read_at || writer.peers.known.iter().any(suspicious) {
        writer.peers.read_at = now + READ;
        writer.peers.known = read(writer).await?;
    }
    // Our own renewal is late: nor could they.
    writer.peers.wrote(writer.renew_at, writer.lease);
    let seen = |peer: &Peer| {
        let patient = writer.peers.is_patient(ticks - peer.lease, writer.lease);
        (peer.id, this.sees(&peer.process), patient, peer.name.clone())
    };
    let dead: Vec<_> = writer.peers.known.iter().filter(|peer| suspicious(peer)).map(seen).collect();
    let mut buried = 0;
    for (id, life, patient, name) in dead {
        if (life == Life::Gone || !patient) && bury(writer, id, life).await? {
            tracing::warn!(worker = %name, "a worker is gone; its jobs are given back");
            writer.peers.known.retain(|peer| peer.id != id);
            buried += 1;
        }
    }
    Ok(buried)
}

async fn read(writer: &mut Writer) -> Result<Vec<Peer>, sqlx::Error> {
    let mut script = Script::default();
    script.add("SELECT id, boot, pidns, pid, born, lease, name FROM worker WHERE id IS NOT ?");
    script.bind(writer.worker);
    let answers = script.run(&mut writer.connection).await?;
    let peer = |row| Peer {
        id: int(row, 0),
        process: Process { boot: text(row, 1), pidns: int(row, 2), pid: int(row, 3), born: int(row, 4) },
        lease: int(row, 5),
        name: text(row, 6),
    };
    Ok(answers[0].rows.iter().map(peer).collect())
}

/// Gives back what `worker` held, unless it renewed its lease meanwhile or another was quicker; `false`: it may still
/// be there.
async fn bury(writer: &mut Writer, worker: i64, life: Life) -> Result<bool, sqlx::Error> {
    let (exact, doubtful) = (life == Life::Gone, life == Life::Unknown);
    let counts = match life {
        Life::Alive => seeded::bug("freeze-is-crash"),
        Life::Gone => !seeded::bug("crash-uncounted"),
        Life::Unknown => true,
    };
    let (ticks, asked) = (writer.monotonic.now(), Instant::now());
    Script::begin().run(&mut writer.connection).await?;
    writer.peers.wrote(asked, writer.lease);
    if !exact && asked.elapsed() > VISIT {
        rollback(&mut writer.connection).await;
        return Ok(false);
    }
    let mut script = Script::default();
    // A guess, and a lease that has just been renewed: nothing below finds anything.
    let still = if exact {
        "owner = ?"
    } else {
        "owner = (SELECT id FROM worker w WHERE w.id = ? AND w.lease < CAST(? AS INTEGER))"
    };
    let bind = |script: &mut Script| {
        script.bind(worker);
        if !exact {
            script.bind(ticks);
        }
    };
    if counts {
        script.add(&format!(
            "INSERT INTO record (event, queue, crashes) SELECT event, queue, 1 FROM running WHERE {still} AND started = 1 \
             ON CONFLICT (event, queue) DO UPDATE SET crashes = crashes + 1"
        ));
        bind(&mut script);
        if doubtful {
            script.add(&format!(
                "INSERT OR IGNORE INTO doubt (worker, queue, event) SELECT owner, queue, event FROM running WHERE {still} AND started = 1"
            ));
            bind(&mut script);
        }
        // Those one crash short of being condemned are suspects from now on.
        script.add(&format!(
            "UPDATE running SET class = (SELECT x.crashes = q.max_crashes - 1 FROM record x JOIN queue q ON q.id = x.queue \
             WHERE x.event = running.event AND x.queue = running.queue) WHERE {still} AND started = 1"
        ));
        bind(&mut script);
    }
    give_back(&mut script, still, bind);
    let which = if exact { "id = ?" } else { "id = ? AND lease < CAST(? AS INTEGER)" };
    script.add(&format!("DELETE FROM attached WHERE worker IN (SELECT id FROM worker WHERE {which})"));
    bind(&mut script);
    script.add(&format!("DELETE FROM worker WHERE {which}"));
    bind(&mut script);
    script.run_whole(&mut writer.connection).await?;
    Ok(true)
}
