//! The writer: one task that owns the one connection which writes, and commits for everybody at once.
//!
//! It gathers what publishers, settlers and sources want, says it in one transaction (settle, give back, store, then
//! look and claim, so that a claim sees what was just stored), and answers all when that is committed. What fails
//! stays and is tried again, part by part, so that a dead letter that does not fit on the disk keeps nobody else.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::claim::{self, Candidate};
use super::command::{Command, Item, Post};
use super::desk::{Desk, Hand};
use super::machine::{Monotonic, Process};
use super::peer::Peers;
use super::publish::{self, Directory, NO_BODY};
use super::script::{Script, rollback};
use super::settle::{self, guard_worker};
use super::{fault, housekeeping::Housekeeping, register, stored};
use crate::broker::delivery::{Channel, Delivery, Lane, Token};
use crate::broker::{Credit, Disposition, Error, Published, Queue, Role, Settled, Trouble};
use crate::message::record::Record;
use crate::message::{Binding, Headers, JobName, Message, Place};
use crate::time::{Clock, Timestamp};

/// Messages that one transaction stores at most, and their bytes.
const POSTS: usize = 512;
const POST_BYTES: usize = 16 * 1_024 * 1_024;
/// How often a waiting source looks whether another process has written: from, to.
const POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// How long to wait after a failure: from, to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

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
    stations: BTreeMap<i64, Station>,
    channels: HashMap<(i64, Option<i64>, bool), Arc<Channel>>,
    commands: mpsc::UnboundedReceiver<Command>,
    connected: Arc<AtomicBool>,
    pending: Pending,
    retry_at: Option<Instant>,
    backoff: Duration,
    cautious: bool,
    renew_at: Instant,
    poll_at: Instant,
    poll: Duration,
    data_version: i64,
    housekeeping: Housekeeping,
    closing: Option<oneshot::Sender<()>>,
}

/// A desk, and whether looking is worth while.
struct Station {
    desk: Arc<Desk>,
    /// Something may be there that was not looked at.
    dirty: bool,
    /// When the next one becomes due, by the wall clock.
    next_due: Option<i64>,
}

/// What was asked for and is not done yet.
#[derive(Default)]
struct Pending {
    items: Vec<Item>,
    released: Vec<(i64, i64)>,
    marks: Vec<(Arc<Desk>, Vec<i64>, oneshot::Sender<Vec<bool>>)>,
    posts: VecDeque<Post>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.items.is_empty() && self.released.is_empty() && self.marks.is_empty() && self.posts.is_empty()
    }
}

/// What a transaction is to contain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Everything,
    Settlements,
    DeadLetters,
    Posts,
    Claims,
}

impl Part {
    fn has(self, part: Part) -> bool {
        self == Part::Everything || self == part
    }
}

/// Why a transaction was not committed.
enum Failure {
    /// A guard did not hold; it was seen to, and trying again makes sense at once.
    Moved,
    /// SQLite refused.
    Sqlite(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sqlite(error)
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
            renew_at: now + start.lease / 3,
            poll_at: now,
            poll: POLL.0,
            data_version: 0,
            housekeeping: Housekeeping::new(now),
            closing: None,
        }
    }

    /// Works until it is told to close, or nobody can ask any more.
    pub async fn run(mut self) {
        loop {
            if !self.gather().await {
                break;
            }
            self.renew().await;
            self.watch().await;
            if self.retry_at.is_none_or(|at| at <= Instant::now()) {
                self.commit().await;
            }
            self.housekeep().await;
        }
        let closing = self.closing.take();
        self.close().await;
        if let Some(reply) = closing {
            // Whoever closes may have lost patience.
            let _ = reply.send(());
        }
    }

    /// Waits for something to do, and takes all that is there; `false`: it is time to close.
    async fn gather(&mut self) -> bool {
        if !self.has_work() {
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
            // That a desk has a wish is seen on the desk. Another process may have written since the last one.
            Command::Want => {
                self.poll = POLL.0;
                self.poll_at = Instant::now();
            }
            Command::Settle(items) => self.pending.items.extend(items),
            Command::Mark { desk, events, reply } => self.pending.marks.push((desk, events, reply)),
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
    pub async fn open(&mut self, queue: Queue, commands: mpsc::UnboundedSender<Command>) -> Result<Arc<Desk>, Error> {
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
            station.desk.reopen();
            return Ok(station.desk.clone());
        }
        let desk = Arc::new(Desk::new(queue, id, commands));
        self.stations.insert(id, Station { desk: desk.clone(), dirty: true, next_due: None });
        Ok(desk)
    }

    /// Something may have become claimable.
    pub fn stir(&mut self) {
        for station in self.stations.values_mut() {
            station.dirty = true;
        }
    }

    fn has_work(&self) -> bool {
        let wanted = || self.stations.values().any(|station| station.dirty && station.desk.is_wanted());
        self.retry_at.is_none() && (!self.pending.is_empty() || wanted())
    }

    fn next_timer(&self) -> Instant {
        let mut wake = self.retry_at.unwrap_or(self.renew_at).min(self.housekeeping.next());
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
        self.poll_at = Instant::now() + self.poll;
    }

    /// Does what is pending, all at once; after a failure part by part.
    async fn commit(&mut self) {
        self.retry_at = None;
        let mut failed = None;
        if self.cautious {
            for part in [Part::Settlements, Part::DeadLetters, Part::Posts, Part::Claims] {
                if let Err(error) = self.attempt(part).await {
                    failed = Some(error);
                }
            }
        } else if let Err(error) = self.attempt(Part::Everything).await {
            failed = Some(error);
        }
        match failed {
            None => {
                self.backoff = BACKOFF.0;
                self.cautious = false;
                self.connected.store(true, Ordering::Relaxed);
            }
            Some(error) => {
                if fault::is_full(&error) || !fault::is_busy(&error) {
                    self.connected.store(false, Ordering::Relaxed);
                }
                self.cautious = true;
                self.fail_overdue(&error);
                self.retry_at = Some(Instant::now() + self.backoff);
                self.backoff = (self.backoff * 2).min(BACKOFF.1);
            }
        }
    }

    /// One part, until no guard moves under it. Trouble is shown at the desks it concerns.
    async fn attempt(&mut self, part: Part) -> Result<(), sqlx::Error> {
        let result = loop {
            match self.transact(part).await {
                Ok(()) => break Ok(()),
                Err(Failure::Moved) => {}
                Err(Failure::Sqlite(error)) => break Err(error),
            }
        };
        let said = result.as_ref().err().map(|error| fault::explain(error, &self.path).to_string());
        for station in self.stations.values() {
            let waits = |item: &Item| item.desk.id == station.desk.id && is_dead(&item.disposition);
            let trouble = match &said {
                Some(said) if self.pending.items.iter().any(waits) => Some(Trouble::DeadLetter(said.clone())),
                Some(said) if part != Part::Posts => Some(Trouble::Broker(said.clone())),
                Some(_) => continue,
                None if part == Part::Posts || self.pending.items.iter().any(waits) => continue,
                None => None,
            };
            station.desk.set_trouble(trouble);
        }
        result
    }

    async fn transact(&mut self, part: Part) -> Result<(), Failure> {
        let now = self.clock.now();
        if part.has(Part::Settlements) || part.has(Part::DeadLetters) {
            self.settle_stale(part).await?;
        }
        if self.makes_work(part) {
            self.stir();
        }
        let mut script = Script::begin();
        let mut guarded = false;
        if let Some(worker) = self.worker {
            guarded = self.write_settlements(&mut script, part, worker);
        }
        let posts = if part.has(Part::Posts) { self.write_posts(&mut script, now).await? } else { Posted::default() };
        let looks = if part.has(Part::Claims) { self.write_looks(&mut script, guarded, now) } else { Vec::new() };
        if !guarded && posts.results.is_empty() && looks.is_empty() {
            return Ok(());
        }
        let claimed = match self.carry_out(script, &looks).await {
            Ok(claimed) => claimed,
            Err(error) => {
                rollback(&mut self.connection).await;
                for (desk, _, _) in looks {
                    desk.answer(Vec::new());
                }
                self.stir();
                return Err(self.see_to_guards(error).await);
            }
        };
        // From here on it is stored; nothing below can fail.
        self.settled(part);
        self.posted(posts);
        for (desk, chosen, now) in claimed {
            let deliveries = self.deliver(&desk, chosen, now);
            desk.answer(deliveries);
        }
        Ok(())
    }

    /// Whether what is about to be stored may be claimed at once: the looks of the same transaction see it.
    fn makes_work(&self, part: Part) -> bool {
        let again = |item: &Item| item.desk.queue.ordered || item.disposition != Disposition::Ack;
        (part.has(Part::Posts) && !self.pending.posts.is_empty())
            || (part.has(Part::Settlements) && !self.pending.released.is_empty())
            || self.pending.items.iter().any(|item| part.has(part_of(&item.disposition)) && again(item))
    }

    /// Says settlements, marks and releases; whether there were any.
    fn write_settlements(&self, script: &mut Script, part: Part, worker: i64) -> bool {
        let mut batches: BTreeMap<i64, (Arc<Desk>, settle::Batch)> = BTreeMap::new();
        let mut batch_of = |desk: &Arc<Desk>, add: &mut dyn FnMut(&mut settle::Batch)| {
            add(&mut batches.entry(desk.id).or_insert_with(|| (desk.clone(), settle::Batch::default())).1);
        };
        for item in self.pending.items.iter().filter(|item| part.has(part_of(&item.disposition))) {
            let Some(hand) = owned(&item.desk, item.delivery.token.0 as i64) else { continue };
            batch_of(&item.desk, &mut |batch| {
                batch.push(&item.delivery, &item.disposition, &hand, self.directory.salt)
            });
        }
        if part.has(Part::Settlements) {
            for (queue, event) in &self.pending.released {
                let Some(station) = self.stations.get(queue) else { continue };
                if owned(&station.desk, *event).is_some() {
                    batch_of(&station.desk, &mut |batch| batch.release(*event));
                }
            }
        }
        let marks = part.has(Part::Settlements) && !self.pending.marks.is_empty();
        if batches.is_empty() && !marks {
            return false;
        }
        guard_worker(script, worker);
        if marks {
            for (desk, events, _) in &self.pending.marks {
                let mut events = events.clone();
                let update = "UPDATE running SET started = 1 WHERE owner = ? AND queue = ?";
                settle::among(script, update, "event", &mut events, |script| {
                    script.bind(worker).bind(desk.id);
                });
            }
        }
        for (desk, batch) in batches.values() {
            batch.write(script, worker, desk);
        }
        true
    }

    /// What was said is stored: hands are empty, whoever waits is told.
    fn settled(&mut self, part: Part) {
        if self.worker.is_none() {
            return;
        }
        self.pending.items.retain(|item| {
            if !part.has(part_of(&item.disposition)) {
                return true;
            }
            item.desk.hands(|hands| hands.remove(&(item.delivery.token.0 as i64)));
            item.ticket.put(item.index, Settled::Stored);
            false
        });
        if part.has(Part::Settlements) {
            for (queue, event) in self.pending.released.drain(..) {
                if let Some(station) = self.stations.get(&queue) {
                    station.desk.hands(|hands| hands.remove(&event));
                }
            }
            for (desk, events, reply) in self.pending.marks.drain(..) {
                let held = events.iter().map(|event| owned(&desk, *event).is_some()).collect();
                // A worker that is leaving may not wait for it.
                let _ = reply.send(held);
            }
        }
    }

    /// Settlements whose lease was lost: nothing is changed, but a success ends a job that nobody has in hand.
    async fn settle_stale(&mut self, part: Part) -> Result<(), sqlx::Error> {
        let is_stale = |item: &Item| {
            part.has(part_of(&item.disposition)) && owned(&item.desk, item.delivery.token.0 as i64).is_none()
        };
        if self.pending.items.iter().any(is_stale) {
            let late: Vec<(Arc<Desk>, i64, u32)> = self
                .pending
                .items
                .iter()
                .filter(|item| is_stale(item) && item.disposition == Disposition::Ack)
                .map(|item| (item.desk.clone(), item.delivery.token.0 as i64, item.delivery.attempt().get()))
                .collect();
            for (desk, event, attempt) in late {
                self.end_late(&desk, event, attempt).await?;
            }
            self.pending.items.retain(|item| {
                if !is_stale(item) {
                    return true;
                }
                item.desk.hands(|hands| hands.remove(&(item.delivery.token.0 as i64)));
                item.ticket.put(item.index, Settled::Stale);
                false
            });
        }
        if part.has(Part::Settlements) {
            let stations = &self.stations;
            self.pending.released.retain(|(queue, event)| {
                let Some(station) = stations.get(queue) else { return false };
                let keep = owned(&station.desk, *event).is_some();
                if !keep {
                    station.desk.hands(|hands| hands.remove(event));
                }
                keep
            });
        }
        Ok(())
    }

    /// A success that came too late: the job ends where it waits for the very same attempt.
    async fn end_late(&mut self, desk: &Desk, event: i64, attempt: u32) -> Result<(), sqlx::Error> {
        let mut script = Script::begin();
        script.add(
            "SELECT (SELECT data FROM record WHERE event = ?1 AND queue = ?2), \
             EXISTS (SELECT 1 FROM fresh WHERE queue = ?2 AND event = ?1), \
             (SELECT min(due) FROM later WHERE queue = ?2 AND event = ?1)",
        );
        script.bind(event).bind(desk.id);
        let answers = match script.run(&mut self.connection).await {
            Ok(answers) => answers,
            Err(error) => {
                rollback(&mut self.connection).await;
                return Err(error);
            }
        };
        let row = &answers[1].rows[0];
        let waits_for = super::script::text_or_null(row, 0).map_or(1, |data| stored::read(&data).attempt.get());
        let waits = super::script::int(row, 1) == 1 || super::script::int_or_null(row, 2).is_some();
        let mut script = Script::default();
        if waits && waits_for == attempt {
            let list = super::script::json_list([event]);
            for table in ["fresh", "later", "record"] {
                script.add(&format!("DELETE FROM {table} WHERE queue = ? AND event = ?"));
                script.bind(desk.id).bind(event);
            }
            settle::unshare(&mut script, &list);
            settle::next_heads(&mut script, desk.id, &list);
        }
        let result = script.run_whole(&mut self.connection).await;
        result.map(|_| ())
    }

    async fn write_posts(&mut self, script: &mut Script, now: Timestamp) -> Result<Posted, sqlx::Error> {
        let mut posted = Posted::default();
        if self.pending.posts.is_empty() {
            return Ok(posted);
        }
        // A queue or topic that was made known meanwhile may be the one that hears.
        let unknown = |writer: &Self| {
            let mut all = writer.pending.posts.iter().flat_map(|post| &post.batch);
            all.any(|publication| writer.directory.route(publication).is_err())
        };
        if unknown(self) {
            self.reload().await?;
        }
        let mut batch = publish::Batch::default();
        let (mut count, mut bytes) = (0, 0);
        for post in &self.pending.posts {
            if count > 0 && (count + post.batch.len() > POSTS || bytes > POST_BYTES) {
                break;
            }
            count += post.batch.len();
            bytes += post.batch.iter().map(|publication| publication.message.size()).sum::<usize>();
            let results = post.batch.iter().map(|publication| {
                let route = self.directory.route(publication)?;
                batch.push(publication, &route, now);
                Ok(Published { queues: Some(route.queues()) })
            });
            posted.results.push(results.collect());
        }
        if !batch.is_empty() {
            script.add("SELECT json('queues have changed') FROM meta WHERE generation <> ?");
            script.bind(self.directory.generation);
            batch.write(script, now);
        }
        Ok(posted)
    }

    fn posted(&mut self, posted: Posted) {
        for results in posted.results {
            let post = self.pending.posts.pop_front().expect("a result was made for each");
            // A publisher that was dropped does not want to know.
            let _ = post.reply.send(results);
        }
    }

    /// Ends the tries of publishers whose time is over.
    fn fail_overdue(&mut self, error: &sqlx::Error) {
        let now = Instant::now();
        for _ in 0..self.pending.posts.len() {
            let Some(post) = self.pending.posts.pop_front() else { break };
            if post.deadline > now {
                self.pending.posts.push_back(post);
                continue;
            }
            let failures = post.batch.iter().map(|_| Err(fault::explain(error, &self.path))).collect();
            // A publisher that was dropped does not want to know.
            let _ = post.reply.send(failures);
        }
    }

    fn write_looks(&mut self, script: &mut Script, guarded: bool, now: Timestamp) -> Vec<Looking> {
        let Some(worker) = self.worker else { return Vec::new() };
        let mut looks = Vec::new();
        for station in self.stations.values_mut().filter(|station| station.dirty) {
            let Some(credit) = station.desk.take_wish() else { continue };
            if looks.is_empty() && !guarded {
                guard_worker(script, worker);
            }
            station.dirty = false;
            let skipped = station.desk.hands(|hands| hands.values().filter(|hand| hand.stale).count());
            let look = claim::look(script, &station.desk, &credit, skipped, now.as_millis());
            looks.push((station.desk.clone(), credit, look));
        }
        looks
    }

    /// Sends the script; where it looks, chooses and claims in a second trip before the commit.
    async fn carry_out(&mut self, mut script: Script, looks: &[Looking]) -> Result<Vec<Claimed>, sqlx::Error> {
        if looks.is_empty() {
            script.commit();
            script.run(&mut self.connection).await?;
            return Ok(Vec::new());
        }
        let worker = self.worker.expect("who looks is a worker");
        let answers = script.run(&mut self.connection).await?;
        let now = self.clock.now();
        let mut claims = Script::default();
        let mut claimed = Vec::with_capacity(looks.len());
        for (desk, credit, look) in looks {
            let mut found = look.read(&answers, credit.jobs);
            let joined = join(desk, &mut found);
            let mut chosen = claim::choose(&mut found, credit);
            let station = self.stations.get_mut(&desk.id).expect("a look has a station");
            station.dirty = found.more;
            station.next_due = found.next_due;
            if !joined.is_empty() {
                claim::take(&mut claims, worker, desk, &joined);
            }
            if !chosen.is_empty() {
                let large = claim::fetch_large(&mut claims, &chosen);
                if let Some(statement) = large {
                    let mut fetch = std::mem::take(&mut claims);
                    claim::take(&mut fetch, worker, desk, &chosen);
                    let answers = fetch.run(&mut self.connection).await?;
                    claim::fill_large(&mut chosen, &answers[statement].rows);
                } else {
                    claim::take(&mut claims, worker, desk, &chosen);
                }
            }
            claimed.push((desk.clone(), chosen, joined, now));
        }
        claims.commit();
        claims.run(&mut self.connection).await?;
        let joined = claimed.into_iter().map(|(desk, chosen, joined, now)| {
            desk.hands(|hands| {
                for candidate in joined {
                    if let Some(hand) = hands.get_mut(&candidate.event) {
                        hand.stale = false;
                    }
                }
            });
            (desk, chosen, now)
        });
        Ok(joined.collect())
    }

    /// Makes deliveries of what was claimed, and takes them in hand.
    fn deliver(&mut self, desk: &Arc<Desk>, chosen: Vec<Candidate>, now: Timestamp) -> Vec<Delivery> {
        let max = i64::from(desk.queue.max_crashes);
        let mut deliveries = Vec::with_capacity(chosen.len());
        for candidate in chosen {
            let channel = self.channel(desk, candidate.topic, candidate.kind != 0);
            let record = record_of(&candidate);
            let attempt = record.as_ref().map_or(1, |record| record.attempt.get());
            let hand = Hand {
                attempt,
                suspect: candidate.class == 1,
                shared: candidate.shared,
                recorded: candidate.recorded,
                claimed: now,
                stale: false,
                lost: None,
            };
            desk.hands(|hands| hands.insert(candidate.event, hand));
            let message = unpack(&candidate);
            let token = Token(candidate.event as u64, desk.id as u64);
            let at = Timestamp::from_millis(candidate.at);
            let mut delivery = Delivery::new(message, channel, candidate.event as u64, at, token);
            delivery.record = record.map(Box::new);
            delivery.condemned = candidate.crashes >= max;
            delivery.suspect = !delivery.condemned && candidate.crashes >= max - 1;
            delivery.needs_mark = desk.queue.ordered || candidate.crashes > 0;
            deliveries.push(delivery);
        }
        deliveries
    }

    fn channel(&mut self, desk: &Arc<Desk>, topic: Option<i64>, retry: bool) -> Arc<Channel> {
        let directory = &self.directory;
        let channel = self.channels.entry((desk.id, topic, retry)).or_insert_with(|| {
            let name = topic.and_then(|id| directory.topics.iter().find(|(_, (known, _))| *known == id));
            let name: Option<Arc<str>> = name.map(|(name, _)| name.as_str().into());
            let shown = name.clone().unwrap_or_else(|| desk.queue.name.shared());
            Arc::new(Channel {
                lane: if retry { Lane::Retry } else { Lane::Fresh },
                place: Arc::new(Place {
                    position: format!("sqlite:{shown}"),
                    source: format!("sqlite://{shown}"),
                    topic: name,
                    binding: Binding::Dash,
                }),
                leases: desk.clone(),
            })
        });
        channel.clone()
    }

    /// A script failed: was it a guard, and which one?
    async fn see_to_guards(&mut self, error: sqlx::Error) -> Failure {
        if fault::code(&error) != Some(fault::ERROR) {
            return Failure::Sqlite(error);
        }
        let before = self.directory.generation;
        if let Err(error) = self.reload().await {
            return Failure::Sqlite(error);
        }
        let lost = match self.is_registered().await {
            Ok(registered) => !registered,
            Err(error) => return Failure::Sqlite(error),
        };
        if lost && let Err(error) = self.lost_everything().await {
            return Failure::Sqlite(error);
        }
        if lost || self.directory.generation != before { Failure::Moved } else { Failure::Sqlite(error) }
    }

    /// Somebody gave back what we held: tells who runs on, and begins anew.
    async fn lost_everything(&mut self) -> Result<(), sqlx::Error> {
        tracing::warn!(worker = %self.name, "every lease was lost; the jobs in hand go to others");
        for station in self.stations.values_mut() {
            station.desk.lose_all();
            station.dirty = true;
        }
        register::again(self).await
    }

    async fn is_registered(&mut self) -> Result<bool, sqlx::Error> {
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
        self.renew_at = Instant::now() + self.lease / 3;
        if self.worker.is_none() && self.replays.is_empty() {
            return;
        }
        let until = self.monotonic.now() + self.lease.as_millis() as i64;
        let mut script = Script::begin();
        let renewed = script.add("UPDATE worker SET lease = ? WHERE id = ?");
        script.bind(until).bind(self.worker);
        for (queue, holder) in &self.replays {
            script.add("UPDATE replay SET lease = ? WHERE queue = ? AND holder = ?");
            script.bind(until).bind(*queue).bind(*holder);
        }
        match script.run_whole(&mut self.connection).await {
            Ok(answers) if self.worker.is_some() && answers[renewed].changed == 0 => {
                if self.lost_everything().await.is_err() {
                    self.renew_at = Instant::now() + BACKOFF.1;
                }
            }
            Ok(_) => {}
            // As long as our row is there the leases hold; somebody else must be able to write to remove it.
            Err(_) => self.renew_at = Instant::now() + (self.lease / 10).min(BACKOFF.1),
        }
        if self.worker.is_some() && self.peers.is_time() {
            self.visit_peers().await;
        }
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
    async fn close(mut self) {
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

type Looking = (Arc<Desk>, Credit, claim::Look);
type Claimed = (Arc<Desk>, Vec<Candidate>, Timestamp);

#[derive(Default)]
struct Posted {
    results: Vec<Vec<Result<Published, Error>>>,
}

fn part_of(disposition: &Disposition) -> Part {
    if is_dead(disposition) { Part::DeadLetters } else { Part::Settlements }
}

fn is_dead(disposition: &Disposition) -> bool {
    matches!(disposition, Disposition::DeadLetter { .. })
}

/// The hand that still owns this event.
fn owned(desk: &Desk, event: i64) -> Option<Hand> {
    desk.hands(|hands| hands.get(&event).filter(|hand| !hand.stale).cloned())
}

/// Takes out of what was found what this process still runs: the same attempt joins that run, another one waits
/// until it has ended.
fn join(desk: &Desk, found: &mut claim::Found) -> Vec<Candidate> {
    let mut joined = Vec::new();
    desk.hands(|hands| {
        let mut sort = |lane: &mut VecDeque<Candidate>| {
            if !hands.values().any(|hand| hand.stale) {
                return;
            }
            for candidate in std::mem::take(lane) {
                match hands.get(&candidate.event).filter(|hand| hand.stale) {
                    None => lane.push_back(candidate),
                    Some(hand) => {
                        let attempt = candidate.data.as_deref().map_or(1, |data| stored::read(data).attempt.get());
                        if attempt == hand.attempt {
                            joined.push(candidate);
                        }
                    }
                }
            }
        };
        sort(&mut found.fresh);
        sort(&mut found.later);
        let mut suspects: VecDeque<Candidate> = found.suspect.take().into_iter().collect();
        sort(&mut suspects);
        found.suspect = suspects.pop_front();
    });
    joined
}

fn record_of(candidate: &Candidate) -> Option<Record> {
    let due = Timestamp::from_millis(candidate.due);
    match &candidate.data {
        Some(data) => Some(stored::read(data)),
        None if candidate.topic.is_none() => Some(Record {
            job: candidate.job.as_deref().and_then(|name| JobName::new(name).ok()),
            not_before: (candidate.due > candidate.at).then_some(due),
            ..Record::default()
        }),
        None => None,
    }
}

fn unpack(candidate: &Candidate) -> Message {
    let content = candidate.content.clone().unwrap_or_default();
    let (head, has_body) = if candidate.head < 0 { (candidate.head + NO_BODY, false) } else { (candidate.head, true) };
    let head = (head as usize).min(content.len());
    Message {
        headers: Headers::from_buffer(content.slice(..head)).unwrap_or_default(),
        body: has_body.then(|| content.slice(head..)),
        key: candidate.key.clone(),
    }
}
