//! The other workers on this file: whose process is gone, and whose lease has run out, gives back what it held.
//!
//! A crash is counted where the process is gone. Where only its lease has run out and nobody can see whether it
//! lives, it is counted too, in doubt: should it turn up again, it takes that back. A process that is seen alive and
//! only slept past its lease did not crash.

use std::time::Duration;

use tokio::time::Instant;

use super::machine::{Life, Process};
use super::script::{Script, int, text};
use super::settle::give_back;
use super::writer::Writer;

/// How often the processes of others are looked at.
const VISIT: Duration = Duration::from_millis(250);
/// How often at the least the table is read again.
const READ: Duration = Duration::from_secs(5);

/// What is known of the other workers.
pub struct Peers {
    known: Vec<Peer>,
    next: Instant,
    read_at: Instant,
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
        Self { known: Vec::new(), next: now + VISIT, read_at: now }
    }

    /// When to look next: seldom where nobody else is known.
    pub fn next(&self) -> Instant {
        if self.known.is_empty() { self.read_at.max(self.next) } else { self.next }
    }

    /// Whether it is time.
    pub fn is_time(&self) -> bool {
        self.next() <= Instant::now()
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
    let dead: Vec<(i64, bool, bool, String)> = writer
        .peers
        .known
        .iter()
        .filter(|peer| suspicious(peer))
        .map(|peer| {
            let life = this.sees(&peer.process);
            (peer.id, life != Life::Alive, life == Life::Unknown, peer.name.clone())
        })
        .collect();
    for (id, counts, doubtful, name) in &dead {
        tracing::warn!(worker = %name, "a worker is gone; its jobs are given back");
        bury(writer, *id, *counts, *doubtful).await?;
    }
    writer.peers.known.retain(|peer| !dead.iter().any(|(id, ..)| *id == peer.id));
    Ok(dead.len())
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

/// Gives back what `worker` held, unless it renewed its lease meanwhile or another was quicker.
async fn bury(writer: &mut Writer, worker: i64, counts: bool, doubtful: bool) -> Result<(), sqlx::Error> {
    let ticks = writer.monotonic.now();
    let mut script = Script::begin();
    // A guess, and a lease that has just been renewed: nothing below finds anything.
    let still = if counts && !doubtful {
        "owner = ?"
    } else {
        "owner = (SELECT id FROM worker w WHERE w.id = ? AND w.lease < CAST(? AS INTEGER))"
    };
    let exact = counts && !doubtful;
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
    Ok(())
}
