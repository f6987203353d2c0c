//! The writer: one task that owns the one connection which writes, and commits for everybody at once.
//!
//! It gathers what publishers, settlers and sources want, says it in one transaction (settle, give back, store, then
//! look and claim, so that a claim sees what was just stored), and answers all when that is committed. What fails
//! stays and is tried again, part by part, so that a dead letter that does not fit on the disk keeps nobody else.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::command::{Command, Item, Mark, Post};
use super::desk::Desk;
use super::housekeeping::Housekeeping;
use super::machine::{Monotonic, Process};
use super::peer::Peers;
use super::publish::Directory;
use super::script::Script;
use super::{fault, register};
use crate::broker::delivery::Channel;
use crate::broker::{Disposition, Error, Queue, Role, Settled};
use crate::time::Clock;

/// How often a waiting source looks whether another process has written: from, to.
const POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// Acknowledgements alone wait so long for a claim to share their commit: the slots are free already.
const LINGER: Duration = Duration::from_millis(1);
/// So many do not wait.
const MANY: usize = 256;
/// Publishers that wait for their confirmations ask again when they have it: so long the next commit waits for as
/// many as the last one had.
const RETURN: Duration = Duration::from_micros(200);
/// How long to wait after a failure: from, to.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The task's state.
pub struct Writer {
    /// The one connection that writes.
    pub connection: SqliteConnection,
    /// Where the file is, for messages.
    pub path: PathBuf,
    /// The wall clock.
    pub clock: Clock,
    /// The clock of leases.
    pub monotonic: Monotonic,
    /// This process.
    pub process: Process,
    /// Our row in `worker`, where this process works.
    pub worker: Option<i64>,
    /// Our name there.
    pub name: Arc<str>,
    /// How long our row counts.
    pub lease: Duration,
    /// What the file knows of topics and queues.
    pub directory: Directory,
    /// The other workers.
    pub peers: Peers,
    /// What this process works: names and slots, as the engine says.
    pub slots: Vec<(String, i64)>,
    /// The same as the file says: numbers and slots.
    pub attached: Vec<(i64, i64)>,
    /// Replays that this process holds the right to: queue and holder.
    pub replays: BTreeMap<i64, i64>,
    pub(super) stations: BTreeMap<i64, Station>,
    pub(super) channels: HashMap<(i64, Option<i64>, bool), Arc<Channel>>,
    commands: mpsc::UnboundedReceiver<Command>,
    pub(super) connected: Arc<AtomicBool>,
    pub(super) pending: Pending,
    pub(super) retry_at: Option<Instant>,
    pub(super) backoff: Duration,
    pub(super) cautious: bool,
    /// Until when acknowledgements wait for company.
    pub(super) linger_until: Option<Instant>,
    /// Posts of the last commit.
    expected: usize,
    /// When to renew our lease.
    pub(super) renew_at: Instant,
    poll_at: Instant,
    polled_at: Instant,
    poll: Duration,
    data_version: i64,
    housekeeping: Housekeeping,
    closing: Option<oneshot::Sender<()>>,
}

/// A desk, and whether looking is worth while.
pub(super) struct Station {
    pub(super) desk: Arc<Desk>,
    /// Something may be there that was not looked at.
    pub(super) dirty: bool,
    /// The last look left the suspects out.
    pub(super) shy: bool,
    /// When the next one becomes due, by the wall clock.
    pub(super) next_due: Option<i64>,
}

/// What was asked for and is not done yet.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) items: Vec<Item>,
    pub(super) released: Vec<(i64, i64)>,
    pub(super) marks: Vec<Mark>,
    pub(super) posts: VecDeque<Post>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.items.is_empty() && self.released.is_empty() && self.marks.is_empty() && self.posts.is_empty()
    }
}

/// What a writer begins with.
pub struct Start {
    /// An open connection to a file of our form.
    pub connection: SqliteConnection,
    /// Where that is.
    pub path: PathBuf,
    /// The wall clock.
    pub clock: Clock,
    /// Our name.
    pub name: Arc<str>,
    /// How long our row counts.
    pub lease: Duration,
    /// What the handles ask.
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// What [`Broker::connected`](crate::broker::Broker::connected) says.
    pub connected: Arc<AtomicBool>,
}

impl Writer {
    /// A writer that has not begun.
    pub fn new(start: Start) -> Self {
        let now = Instant::now();
        Self {
            connection: start.connection,
            path: start.path,
            monotonic: Monotonic::beside(&start.clock),
            clock: start.clock,
            process: Process::this(),
            worker: None,
            name: start.name,
            lease: start.lease,
            directory: Directory::default(),
            peers: Peers::new(now),
            slots: Vec::new(),
            attached: Vec::new(),
            replays: BTreeMap::new(),
            stations: BTreeMap::new(),
            channels: HashMap::new(),
            commands: start.commands,
            connected: start.connected,
            pending: Pending::default(),
            retry_at: None,
            backoff: BACKOFF.0,
            cautious: false,
            linger_until: None,
            expected: 0,
            renew_at: now + start.lease / 3,
            poll_at: now,
            polled_at: now,
            poll: POLL.0,
            data_version: 0,
            housekeeping: Housekeeping::new(now),
            closing: None,
        }
    }

    /// Works until it is told to close, or nobody can ask any more.
    pub async fn run(mut self) {
        while self.gather().await {
            self.turn().await;
        }
        let closing = self.closing.take();
        self.close().await;
        if let Some(reply) = closing {
            // Whoever closes may have lost patience.
            let _ = reply.send(());
        }
    }

    /// Does what there is to do now.
    pub(super) async fn turn(&mut self) {
        self.renew().await;
        self.watch().await;
        if self.is_due() {
            self.await_publishers().await;
            self.commit().await;
        }
        self.housekeep().await;
    }

    /// Waits for something to do, and takes all that is there; `false`: it is time to close.
    async fn gather(&mut self) -> bool {
        if !self.is_due() {
            let wake = self.next_timer();
            tokio::select! {
                biased;
                // First: whoever asks is waiting. Timers are looked at in any case afterwards.
                command = self.commands.recv() => match command {
                    Some(command) => self.accept(command).await,
                    None => return false,
                },
                () = tokio::time::sleep_until(wake) => {}
            }
        }
        self.take_commands().await
    }

    /// Takes all that was asked for, without waiting; `false`: it is time to close.
    pub(super) async fn take_commands(&mut self) -> bool {
        while self.closing.is_none() {
            match self.commands.try_recv() {
                Ok(command) => self.accept(command).await,
                Err(_) => return true,
            }
        }
        false
    }

    async fn accept(&mut self, command: Command) {
        self.housekeeping.busy();
        match command {
            // That a desk has a wish is seen on the desk. Another process may have written since the last one; to ask
            // the file for each job would cost as much as the job, and make what is published just now wait.
            Command::Want => {
                self.poll = POLL.0;
                self.poll_at = self.poll_at.min(self.polled_at + POLL.0);
                for station in self.stations.values_mut().filter(|station| station.shy) {
                    station.dirty |= station.desk.wish().is_some_and(|credit| credit.suspect);
                }
            }
            Command::Settle(items) => {
                self.pending.items.extend(items);
                self.linger_until.get_or_insert_with(|| Instant::now() + LINGER);
            }
            Command::Mark(mark) => self.pending.marks.push(mark),
            Command::Release { queue, event } => self.pending.released.push((queue, event)),
            Command::Publish(post) => self.pending.posts.push_back(post),
            Command::Close(reply) => self.closing = Some(reply),
            Command::Call(call) => {
                call(self).await;
                self.stir();
            }
        }
    }

    /// The desk of a queue that is to be worked.
    pub async fn open(
        &mut self,
        queue: Queue,
        commands: mpsc::WeakUnboundedSender<Command>,
    ) -> Result<Arc<Desk>, Error> {
        if self.worker.is_none() {
            return Err(Error::Usage("only a worker opens queues".to_owned()));
        }
        register::queues(self, std::slice::from_ref(&queue), Role::Worker)
            .await
            .map_err(|error| fault::explain(&error, &self.path))?;
        let id = self.directory.queues[queue.name.as_str()].id;
        register::attach_also(self, queue.name.as_str(), queue.slots.get() as i64)
            .await
            .map_err(|error| fault::explain(&error, &self.path))?;
        if let Some(station) = self.stations.get(&id) {
            station.desk.reopen(&queue);
            return Ok(station.desk.clone());
        }
        let desk = Arc::new(Desk::new(&queue, id, commands));
        self.stations.insert(id, Station { desk: desk.clone(), dirty: true, shy: false, next_due: None });
        Ok(desk)
    }

    /// Something may have become claimable.
    pub fn stir(&mut self) {
        for station in self.stations.values_mut() {
            station.dirty = true;
        }
    }

    /// Whether to write now.
    fn is_due(&self) -> bool {
        match self.retry_at {
            Some(at) => at <= Instant::now(),
            None => self.is_urgent() || self.linger_until.is_some_and(|until| until <= Instant::now()),
        }
    }

    /// Whether there is anything that should not wait for company.
    fn is_urgent(&self) -> bool {
        let Pending { items, released, marks, posts } = &self.pending;
        let waits = || items.len() < MANY && items.iter().all(|item| item.disposition == Disposition::Ack);
        !(released.is_empty() && marks.is_empty() && posts.is_empty() && waits())
            || self.stations.values().any(|station| station.dirty && station.desk.is_wanted())
    }

    /// Lets the publishers that were just answered come back, so that one commit serves them all again.
    async fn await_publishers(&mut self) {
        let expected = std::mem::replace(&mut self.expected, self.pending.posts.len());
        if self.pending.posts.is_empty() || self.pending.posts.len() >= expected || self.cautious {
            return;
        }
        let until = Instant::now() + RETURN;
        while self.pending.posts.len() < expected && self.closing.is_none() && Instant::now() < until {
            tokio::task::yield_now().await;
            while let Ok(command) = self.commands.try_recv() {
                self.accept(command).await;
            }
        }
        self.expected = self.pending.posts.len();
    }

    fn next_timer(&self) -> Instant {
        let lingering = self.linger_until.unwrap_or(self.renew_at);
        let mut wake = self.retry_at.unwrap_or(lingering).min(self.housekeeping.next());
        if self.worker.is_some() {
            wake = wake.min(self.renew_at).min(self.peers.next());
        }
        if self.retry_at.is_none() {
            let now = self.clock.now().as_millis();
            for station in self.stations.values().filter(|station| station.desk.is_wanted()) {
                wake = wake.min(self.poll_at);
                if let Some(due) = station.next_due {
                    // Looked at again each second, because the wall clock may be set.
                    let wait = Duration::from_millis((due - now).clamp(0, 1_000) as u64);
                    wake = wake.min(Instant::now() + wait);
                }
            }
        }
        wake
    }

    /// Looks whether another process has written, and whether something has become due.
    async fn watch(&mut self) {
        let now = self.clock.now().as_millis();
        for station in self.stations.values_mut() {
            if station.next_due.is_some_and(|due| due <= now) {
                station.dirty = true;
            }
        }
        if Instant::now() < self.poll_at || !self.stations.values().any(|s| !s.dirty && s.desk.is_wanted()) {
            return;
        }
        let mut script = Script::default();
        script.add("PRAGMA data_version");
        if let Ok(answers) = script.run(&mut self.connection).await {
            let version = super::script::int(&answers[0].rows[0], 0);
            if std::mem::replace(&mut self.data_version, version) != version {
                self.poll = POLL.0;
                self.peers.stale();
                self.stir();
            } else {
                self.poll = (self.poll * 5 / 4).min(POLL.1);
            }
        }
        self.polled_at = Instant::now();
        self.poll_at = self.polled_at + self.poll;
    }

    /// Somebody gave back what we held: tells who runs on, and begins anew.
    pub(super) async fn lost_everything(&mut self) -> Result<(), sqlx::Error> {
        tracing::warn!(worker = %self.name, "every lease was lost; the jobs in hand go to others");
        for station in self.stations.values_mut() {
            station.desk.lose_all();
            station.dirty = true;
        }
        register::again(self).await
    }

    pub(super) async fn is_registered(&mut self) -> Result<bool, sqlx::Error> {
        let Some(worker) = self.worker else { return Ok(true) };
        let mut script = Script::default();
        script.add("SELECT 1 FROM worker WHERE id = ?");
        script.bind(worker);
        Ok(!script.run(&mut self.connection).await?[0].rows.is_empty())
    }

    /// Reads topics and queues again.
    pub async fn reload(&mut self) -> Result<(), sqlx::Error> {
        self.directory = register::read(&mut self.connection).await?;
        Ok(())
    }

    /// Renews our lease, and the rights to replay, when it is time.
    async fn renew(&mut self) {
        if Instant::now() < self.renew_at {
            return;
        }
        let due = std::mem::replace(&mut self.renew_at, Instant::now() + self.lease / 3);
        if self.worker.is_none() && self.replays.is_empty() {
            return;
        }
        let written = self.write_lease().await;
        self.peers.wrote(due, self.lease);
        match written {
            Ok(0) if self.worker.is_some() => {
                if self.lost_everything().await.is_err() {
                    self.renew_at = Instant::now() + BACKOFF.1;
                }
            }
            Ok(_) => {}
            // As long as our row is there the leases hold; somebody else must be able to write to remove it.
            Err(_) => {
                self.peers.refused(self.lease);
                self.renew_at = Instant::now() + (self.lease / 10).min(BACKOFF.1);
            }
        }
        if self.worker.is_some() && self.peers.is_time() {
            self.visit_peers().await;
        }
    }

    /// Says until when our leases hold, counted from when the lock is ours; whether our row is still there.
    async fn write_lease(&mut self) -> Result<u64, sqlx::Error> {
        Script::begin().run(&mut self.connection).await?;
        let until = self.monotonic.now() + self.lease.as_millis() as i64;
        let mut script = Script::default();
        let renewed = script.add("UPDATE worker SET lease = ? WHERE id = ?");
        script.bind(until).bind(self.worker);
        for (queue, holder) in &self.replays {
            script.add("UPDATE replay SET lease = ? WHERE queue = ? AND holder = ?");
            script.bind(until).bind(*queue).bind(*holder);
        }
        Ok(script.run_whole(&mut self.connection).await?[renewed].changed)
    }

    async fn visit_peers(&mut self) {
        match super::peer::reap(self).await {
            Ok(0) => {}
            Ok(_) => self.stir(),
            Err(error) => tracing::debug!(%error, "the other workers could not be looked at"),
        }
    }

    async fn housekeep(&mut self) {
        if self.worker.is_some() && self.peers.is_time() {
            self.visit_peers().await;
        }
        if self.pending.is_empty() {
            self.housekeeping.run(&mut self.connection).await;
        }
    }

    /// Gives everything back, takes our row away, and leaves the file tidy.
    pub(super) async fn close(mut self) {
        for station in self.stations.values() {
            station.desk.stop();
        }
        // What the desks have just given back, and what was settled last.
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Close(_) | Command::Call(_) => {}
                command => self.accept(command).await,
            }
        }
        self.cautious = !self.pending.is_empty();
        self.commit().await;
        if let Err(error) = register::leave(&mut self).await {
            tracing::warn!(%error, "this worker could not sign off; its lease will run out");
        }
        for item in self.pending.items.drain(..) {
            item.ticket.put(item.index, Settled::Unconfirmed("the broker was closed".to_owned()));
        }
        for station in self.stations.values() {
            station.desk.lose_all();
            station.desk.fail(Error::Unavailable("the broker was closed".to_owned()));
        }
        let mut script = Script::default();
        script.add("PRAGMA wal_checkpoint(TRUNCATE)");
        // Another process that reads keeps it from truncating, and will do it when it leaves.
        let _ = script.run(&mut self.connection).await;
        // Everything is committed; what closing could still say changes nothing.
        let _ = self.connection.close().await;
    }
}
