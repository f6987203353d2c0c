//! The poll thread of a queue: the only one that talks to its consumer. It never blocks for long: it serves events,
//! reads what there is room for, sends commits and takes their results, and parks until one of these has something.

mod assignment;

mod presence;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::super::{Channel, Error, Start, Trouble};
use super::begun::{Begun, grown_note};
use super::context::{self, Change, Context};
use super::login::{Login, Renewal};
use super::memo;
use super::mover::Mover;
use super::native::{Batch, Commits, Events, PartitionQueue};
use super::partition::{COMMIT_AFTER, Partition, Phase, Snapshot};
use super::state::{self, Shared};
use crate::message::{Binding, record};

/// Commits are at most this far behind.
const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// After so long without an answer a commit waits behind our own member's join, where it was sent behind one, which
/// waits for as long as a dead member's session lasts: brokers answer the requests of one connection one after the
/// other. It comes to nothing, and until it is answered the mover commits, whose connections are its own. Any other
/// commit that has no answer yet may still be taken, and would put back what was committed meanwhile.
const STALLED: Duration = Duration::from_millis(400);
/// So long a partition is full before the broker is told to send nothing. What is not read is not fetched either; a
/// pause frees what was read ahead, and has it fetched again: where jobs are slow it must be rare.
const PAUSE_AFTER: Duration = Duration::from_secs(10);
/// So long nothing can be handed out of what was read before that is said.
const ORDER_AFTER: Duration = Duration::from_secs(1);
/// Reading goes back at most so often.
const SEEK_EVERY: Duration = Duration::from_secs(1);
/// Records a read.
const READ: usize = 2_048;
/// How long one question to the broker about an assignment may take.
const ASK: Duration = Duration::from_secs(5);
/// How long beyond the grace what has ended may take to be stored before its partition is given back.
const STORE: Duration = Duration::from_secs(10);
/// The same when the worker leaves, and how long the client's close may take: together less than the 3 s of INTERFACE
/// 8, Leaving.
const LAST: Duration = Duration::from_secs(1);
const CLOSE: Duration = Duration::from_millis(1_500);

/// What a poll thread is made of.
pub struct Poll {
    /// The consumer's settings.
    pub config: ClientConfig,
    /// How it logs in.
    pub login: Login,
    /// The topics of the fresh lane.
    pub topics: Vec<String>,
    /// The queue.
    pub queue: String,
    /// The queue's own topic.
    pub work: String,
    /// Partitions of each topic, when the queue was opened.
    pub partitions: BTreeMap<String, usize>,
    /// Takes what was begun to be read.
    pub begun: Begun,
    /// Where it begins where nothing was committed.
    pub start: Start,
    /// How long what is in hand may take when a partition is asked back.
    pub grace: Duration,
    /// See [`Queue::max_crashes`](super::super::Queue::max_crashes).
    pub max_crashes: u32,
    /// Shared with source and settler.
    pub shared: Arc<Shared>,
    /// Carries moves out.
    pub mover: Mover,
    /// Cancelled when the thread has left.
    pub left: CancellationToken,
    /// Topics that were handed to `begun`.
    pub marked: HashSet<String>,
}

/// A partition's queue, and whether the broker was told to send nothing.
struct Seat {
    id: u64,
    since: Instant,
    queue: PartitionQueue<Context>,
    full_since: Option<Instant>,
    paused: bool,
    /// When reading last went back. A seek throws away what the client has read ahead, so it is given time.
    sought: Option<Instant>,
}

struct Drain {
    partitions: Vec<(String, i32)>,
    deadline: Instant,
}

/// A commit on its way.
struct Flight {
    snapshots: Vec<(u64, Snapshot)>,
    since: Instant,
    /// It was given up: what it says is committed otherwise meanwhile. Where it is taken after all (a coordinator that
    /// was lost has it sent anew), all of it is committed once more.
    stalled: bool,
}

struct Running {
    setup: Poll,
    consumer: Rc<BaseConsumer<Context>>,
    context: Arc<Context>,
    commits: Commits<Context>,
    events: Events<Context>,
    queues: HashMap<(String, i32), Seat>,
    places: HashMap<String, [Arc<Channel>; 2]>,
    pending: Vec<(String, i32)>,
    drains: Vec<Drain>,
    /// Partitions whose log no longer has what is to be read next.
    moved: Vec<(String, i32)>,
    in_flight: Option<Flight>,
    last_commit: Instant,
    /// Since when partitions are held up, and how many deliveries had been handed out then.
    held_up: Option<(Instant, u64)>,
    failing_since: Option<Instant>,
    connected: bool,
    metadata_limit: usize,
    next_id: u64,
    /// Who we are to those who come after us.
    owner: u32,
    /// When it was last asked who is a member, before a job is condemned.
    asked: Instant,
    batch: Batch,
    renewal: Renewal,
}

impl Poll {
    /// Starts the thread.
    pub fn spawn(self) -> Result<(), Error> {
        let name = format!("kafka-{}", self.work);
        let left = self.left.clone();
        std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || {
                let shared = self.shared.clone();
                let left = self.left.clone();
                let guard = left.drop_guard();
                // A panic must not leave the queue waiting for ever.
                let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run()));
                let ended = ended.unwrap_or_else(|_| Err(Error::Refused("the poll thread panicked: a bug".to_owned())));
                if let Err(error) = ended {
                    shared.state.lock().fatal = Some(error);
                    shared.arrived.notify_one();
                }
                drop(guard);
            })
            .map_err(|error| Error::Unavailable(format!("no thread for the poll loop: {error}")))?;
        drop(left);
        Ok(())
    }

    fn run(self) -> Result<(), Error> {
        self.shared.wake.here();
        let context = Context::new(self.login.token_command.clone());
        let wake = self.shared.wake.clone();
        let owner = (uuid::Uuid::now_v7().as_u128() as u32).max(1);
        let mut config = self.config.clone();
        config.set("client.id", presence::client_id(self.config.get("client.id"), owner));
        let mut consumer: BaseConsumer<Context> =
            config.create_with_context(context).map_err(|error| Error::Refused(format!("kafka: {error}")))?;
        consumer.set_nonempty_callback(move || wake.wake());
        let consumer = Rc::new(consumer);
        let mut topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        topics.push(&self.work);
        consumer.subscribe(&topics).map_err(|error| Error::Refused(format!("kafka: {error}")))?;
        let mut running = Running {
            renewal: Renewal::new(&self.login),
            context: consumer.context().clone(),
            commits: Commits::new(&consumer, &self.shared.wake),
            events: Events::new(&consumer),
            consumer,
            setup: self,
            queues: HashMap::new(),
            places: HashMap::new(),
            pending: Vec::new(),
            drains: Vec::new(),
            moved: Vec::new(),
            in_flight: None,
            last_commit: Instant::now(),
            held_up: None,
            failing_since: None,
            connected: false,
            metadata_limit: memo::LIMIT,
            next_id: 1,
            owner,
            asked: Instant::now(),
            batch: Batch::new(READ),
        };
        running.work();
        running.leave();
        Ok(())
    }
}

impl Running {
    fn work(&mut self) {
        loop {
            let served = self.serve();
            self.take_changes();
            self.assign();
            self.judge();
            self.finish_drains();
            let read = self.read();
            self.reread();
            self.commit();
            self.move_records();
            let (any, due) = {
                let mut state = self.setup.shared.state.lock();
                let promoted = state.promote(self.setup.shared.clock.now());
                if (state.stopping && state.in_hand() == 0 && state.settled() && !self.committing()) || state.closing {
                    return;
                }
                if state.stopping {
                    for partition in state.partitions.values_mut().filter(|p| p.phase == Phase::Owned) {
                        partition.drain();
                    }
                }
                self.held_up = match self.held_up {
                    _ if promoted.0 || !state.partitions.values().any(Partition::is_held_up) => None,
                    Some((since, handed)) if handed == state.handed => Some((since, handed)),
                    _ => Some((Instant::now(), state.handed)),
                };
                state.waits_for_order = self.held_up.is_some_and(|(since, _)| since.elapsed() >= ORDER_AFTER);
                promoted
            };
            if any {
                self.setup.shared.arrived.notify_one();
            }
            if !served && !read {
                self.park(due);
            }
        }
    }

    /// Parks until something happens or is due.
    fn park(&self, due: Option<crate::time::Timestamp>) {
        let mut wait = Duration::from_millis(500);
        if let Some(due) = due {
            wait = wait.min(state::until(&self.setup.shared.clock, due));
        }
        if self.setup.shared.state.lock().partitions.values().any(Partition::dirty) && !self.committing() {
            let next = COMMIT_EVERY.saturating_sub(self.last_commit.elapsed());
            // The mover may be resting, or be denied transactions.
            wait = wait.min(if self.moves_all() { next.max(Duration::from_millis(20)) } else { next });
        }
        if let Some(flight) = self.in_flight.as_ref().filter(|flight| !flight.stalled && self.context.is_behind()) {
            wait = wait.min(STALLED.saturating_sub(flight.since.elapsed()));
        }
        if !self.drains.is_empty() || !self.pending.is_empty() || !self.moved.is_empty() {
            wait = wait.min(Duration::from_millis(20));
        }
        std::thread::park_timeout(wait);
    }

    /// Serves what librdkafka has to tell; records do not come this way.
    fn serve(&mut self) -> bool {
        self.renewal.renew(self.consumer.client());
        let mut served = false;
        let shared = &self.setup.shared;
        self.events.serve(|event| {
            served = true;
            let Err(error) = event else {
                return tracing::error!("a record came outside of its partition's queue");
            };
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure) => {}
                Some(RDKafkaErrorCode::PollExceeded) => tracing::error!("the poll thread was held up"),
                _ => tracing::warn!(%error, "the consumer reports an error"),
            }
            if matches!(error, rdkafka::error::KafkaError::MessageConsumptionFatal(_)) {
                let mut state = shared.state.lock();
                state.fatal = Some(Error::Refused(format!("the broker shut this member out: {error}")));
                state.closing = true;
                drop(state);
                shared.arrived.notify_one();
            }
        });
        let connected = self.failing_since.is_none() && !self.context.is_down();
        if connected != self.connected {
            self.connected = connected;
            self.setup.shared.state.lock().connected = connected;
        }
        served
    }

    fn take_changes(&mut self) {
        for change in self.context.take_changes() {
            match change {
                Change::Assigned(partitions) => {
                    tracing::debug!(group = self.setup.work, ?partitions, "partitions come");
                    if partitions.is_empty() {
                        context::assign(&self.consumer, &[]);
                    }
                    self.pending.extend(partitions);
                    self.news();
                }
                Change::Revoked { partitions, lost } => {
                    tracing::debug!(group = self.setup.work, ?partitions, lost, "partitions are asked back");
                    let mut state = self.setup.shared.state.lock();
                    self.pending.retain(|pending| !partitions.contains(pending));
                    for (topic, number) in &partitions {
                        if let Some(id) = state.at(topic, *number).map(|partition| partition.id) {
                            state.drain(id);
                        }
                    }
                    state.trouble.get_or_insert(Trouble::Rebalance);
                    drop(state);
                    let grace = if lost { Duration::ZERO } else { self.setup.grace };
                    self.drains.push(Drain { partitions, deadline: Instant::now() + grace });
                }
            }
        }
    }

    fn news(&self) {
        self.setup.shared.state.lock().news = true;
        self.setup.shared.arrived.notify_one();
    }

    /// Gives partitions back whose work is through, or whose time is.
    fn finish_drains(&mut self) {
        let mut left = Vec::new();
        for drain in std::mem::take(&mut self.drains) {
            let mut state = self.setup.shared.state.lock();
            let (lost, now) = (self.consumer.assignment_lost(), Instant::now());
            let mut all = drain.partitions.iter();
            let through = all.all(|(topic, number)| {
                state.at(topic, *number).is_none_or(|partition| partition.in_hand() == 0 && partition.settled())
            });
            // What still runs when time is up is given up, but what has ended gets its time to be stored.
            let mut all = drain.partitions.iter();
            let storing = all.any(|(topic, number)| state.at(topic, *number).is_some_and(|p| p.storing()));
            let given_up = now >= drain.deadline && !storing || now >= drain.deadline + STORE;
            if !lost && (self.committing() && now < drain.deadline + STORE || !through && !given_up) {
                drop(state);
                left.push(drain);
                continue;
            }
            let mut list = TopicPartitionList::new();
            for (topic, number) in &drain.partitions {
                if let Some(seat) = self.queues.remove(&(topic.clone(), *number)) {
                    state.remove(seat.id);
                }
                list.add_partition(topic, *number);
            }
            drop(state);
            tracing::debug!(group = self.setup.work, partitions = ?drain.partitions, lost, through, "partitions are given back");
            context::unassign(&self.consumer, &list);
        }
        self.drains = left;
        if self.drains.is_empty() && self.pending.is_empty() {
            let mut state = self.setup.shared.state.lock();
            if state.trouble == Some(Trouble::Rebalance) {
                state.trouble = None;
            }
        }
    }

    /// Reads what there is room for, partition by partition.
    fn read(&mut self) -> bool {
        let shared = self.setup.shared.clone();
        let (records, bytes) = shared.state.lock().read_ahead();
        let mut any = false;
        let mut moved = Vec::new();
        for ((topic, number), seat) in &mut self.queues {
            let id = &seat.id;
            let room = {
                let mut state = shared.state.lock();
                let Some(partition) = state.partitions.get_mut(id) else { continue };
                // Each pause throws away what the client has read ahead: it ends when there is room for many.
                let again = !seat.paused
                    || partition.room(records, bytes / 2) >= records / 2
                    || partition.reread_from().is_some();
                let room = if again { partition.room(records, bytes) } else { 0 };
                partition.full = room == 0;
                room
            };
            // Not reading is what stops it; the broker is told only when that lasts.
            if room == 0 {
                let since = *seat.full_since.get_or_insert_with(Instant::now);
                if !seat.paused && since.elapsed() >= PAUSE_AFTER {
                    seat.paused = paused(&self.consumer, topic, *number, true);
                }
                continue;
            }
            if seat.paused {
                seat.paused = !paused(&self.consumer, topic, *number, false);
            }
            seat.full_since = None;
            seat.queue.read(&mut self.batch, room);
            for error in &self.batch.errors {
                if *error == RDKafkaErrorCode::AutoOffsetReset {
                    moved.push((topic.clone(), *number));
                } else {
                    tracing::warn!(%error, topic, number, "a partition reports an error");
                }
            }
            if self.batch.records.is_empty() {
                continue;
            }
            any = true;
            let mut state = shared.state.lock();
            let state = &mut *state;
            let Some((topic, number)) = state.partitions.get(id).map(|p| (p.topic.clone(), p.number)) else { continue };
            let ghosts = state.ghosts(&topic, number).cloned();
            let Some(partition) = state.partitions.get_mut(id) else { continue };
            partition.arrive(
                self.batch.records.drain(..),
                |offset| ghosts.as_ref().and_then(|runs| runs.get(&offset).copied()),
                |arrived| match record::read(&arrived.message.headers, Binding::Kafka) {
                    Ok(stored) => {
                        arrived.message.headers = stored.original;
                        Ok(Some(Box::new(stored.record)))
                    }
                    // Somebody published to our topic by hand: a job for this queue.
                    Err(record::Error::Foreign(_)) => Ok(None),
                    Err(unreadable) => Err(unreadable.to_string().into()),
                },
                shared.clock.now(),
            );
            if ghosts.is_some() {
                let adopted = partition.adopted();
                state.adopt(&topic, number, &adopted);
            }
        }
        self.moved.extend(moved);
        self.moved.retain(|place| self.queues.contains_key(place));
        for (topic, number) in std::mem::take(&mut self.moved) {
            if let Err(error) = self.overtaken(&topic, number) {
                tracing::warn!(%error, topic, number, "where a partition goes on cannot be read yet");
                self.moved.push((topic, number));
            }
        }
        if any {
            shared.arrived.notify_one();
        }
        any
    }

    /// Reads again what was dropped with its bytes.
    fn reread(&mut self) {
        let mut list = TopicPartitionList::new();
        {
            let mut state = self.setup.shared.state.lock();
            for seat in self.queues.values_mut() {
                let Some(partition) = state.partitions.get_mut(&seat.id) else { continue };
                let Some(offset) = partition.reread_from().filter(|_| partition.phase == Phase::Owned) else {
                    continue;
                };
                if seat.sought.is_some_and(|at| at.elapsed() < SEEK_EVERY) {
                    continue;
                }
                seat.sought = Some(Instant::now());
                // A list of our own making takes every offset.
                let _ = list.add_partition_offset(&partition.topic, partition.number, Offset::Offset(offset));
            }
        }
        if list.count() > 0
            && let Err(error) = self.consumer.seek_partitions(list, Duration::ZERO)
        {
            tracing::warn!(%error, "records that were given back cannot be read again yet");
        }
    }

    /// Takes the result of the commit on its way, and sends the next where one is due.
    fn commit(&mut self) {
        while let Some(results) = self.commits.poll() {
            let Some(Flight { snapshots, stalled, .. }) = self.in_flight.take() else { continue };
            let shared = self.setup.shared.clone();
            let mut state = shared.state.lock();
            let mut failed = None;
            for (id, snapshot) in snapshots {
                let Some(partition) = state.partitions.get_mut(&id) else { continue };
                let result = results
                    .iter()
                    .find(|result| result.partition == partition.number && *result.topic == *partition.topic)
                    .map_or(Err(RDKafkaErrorCode::Unknown), |result| result.result);
                match result {
                    Ok(()) if stalled => partition.refused(),
                    Ok(()) => {
                        let first = !partition.opened;
                        partition.confirmed(&snapshot);
                        let (topic, number) = (partition.topic.clone(), partition.number);
                        if first {
                            began(&mut self.setup, &topic, number);
                        }
                    }
                    Err(error) => {
                        partition.refused();
                        failed = Some(error);
                    }
                }
            }
            match failed {
                None => {
                    self.failing_since = None;
                    if matches!(state.trouble, Some(Trouble::Broker(_))) {
                        state.trouble = None;
                    }
                }
                Some(error) => {
                    if error == RDKafkaErrorCode::OffsetMetadataTooLarge {
                        self.metadata_limit /= 2;
                        tracing::warn!(limit = self.metadata_limit, "the broker takes less metadata with a commit");
                    }
                    let since = *self.failing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > Duration::from_secs(1) {
                        state.trouble = Some(Trouble::Broker(format!("offsets cannot be committed: {error}")));
                    }
                    tracing::debug!(%error, "a commit was refused and is sent again");
                }
            }
            drop(state);
            self.setup.shared.arrived.notify_one();
        }
        if let Some(flight) = &mut self.in_flight {
            if !flight.stalled && flight.since.elapsed() >= STALLED && self.context.is_behind() {
                flight.stalled = true;
                tracing::debug!(group = self.setup.work, "a commit hangs; the mover commits until it is answered");
                let mut state = self.setup.shared.state.lock();
                for (id, _) in &flight.snapshots {
                    if let Some(partition) = state.partitions.get_mut(id) {
                        partition.refused();
                    }
                }
            }
            return;
        }
        if self.context.is_joining() {
            // It would wait for everybody: the mover commits.
            return;
        }
        let elapsed = self.last_commit.elapsed();
        let failing = self.failing_since.is_some();
        let mut list = TopicPartitionList::new();
        let mut snapshots = Vec::new();
        let mut state = self.setup.shared.state.lock();
        let hurry = state.partitions.values().any(|partition| {
            partition.dirty()
                && (!partition.opened
                    || partition.urgent
                    || partition.phase == Phase::Draining
                    || partition.fresh_finished >= COMMIT_AFTER)
        });
        if elapsed < COMMIT_EVERY && (failing || !hurry) {
            return;
        }
        let now = Instant::now();
        for (id, partition) in &mut state.partitions {
            if !partition.dirty() {
                continue;
            }
            let last = leaves(&self.drains, partition, now);
            let snapshot = partition.snapshot(self.metadata_limit, &[], last);
            let mut element = list.add_partition(&partition.topic, partition.number);
            // Offsets are never negative.
            let _ = element.set_offset(Offset::Offset(snapshot.offset));
            element.set_metadata(&snapshot.metadata);
            snapshots.push((*id, snapshot));
        }
        drop(state);
        if snapshots.is_empty() {
            return;
        }
        self.last_commit = now;
        match self.commits.send(&list) {
            Ok(()) => self.in_flight = Some(Flight { snapshots, since: now, stalled: false }),
            Err(error) => {
                tracing::debug!(%error, "a commit could not be sent");
                let mut state = self.setup.shared.state.lock();
                for (id, _) in snapshots {
                    if let Some(partition) = state.partitions.get_mut(&id) {
                        partition.refused();
                    }
                }
            }
        }
    }

    /// Whether a commit is on its way whose answer is waited for.
    fn committing(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|flight| !flight.stalled)
    }

    /// Whether the mover commits, because the consumer's own commits would wait.
    fn moves_all(&self) -> bool {
        self.in_flight.is_some() || self.context.is_joining()
    }

    fn move_records(&mut self) {
        let now = Instant::now();
        let last = |partition: &Partition| leaves(&self.drains, partition, now);
        let committing = self.committing();
        let all = self.moves_all() && !committing && self.last_commit.elapsed() >= COMMIT_EVERY;
        let (shared, limit) = (&self.setup.shared, self.metadata_limit);
        if self.setup.mover.step(shared, &self.consumer, limit, committing, all.then_some(&last)) {
            self.last_commit = now;
        }
        for (topic, number) in self.setup.mover.take_opened() {
            began(&mut self.setup, &topic, number);
        }
    }

    /// Commits what is through, and leaves the group. What hangs is left behind: the process must go on.
    fn leave(mut self) {
        let deadline = Instant::now() + LAST;
        {
            let mut state = self.setup.shared.state.lock();
            for partition in state.partitions.values_mut().filter(|p| p.phase == Phase::Owned) {
                partition.drain();
            }
        }
        while Instant::now() < deadline {
            self.serve();
            self.last_commit = Instant::now() - COMMIT_EVERY;
            self.commit();
            self.move_records();
            if !self.committing() && !self.setup.shared.state.lock().partitions.values().any(Partition::storing) {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        {
            let mut state = self.setup.shared.state.lock();
            let ids: Vec<u64> = state.partitions.keys().copied().collect();
            for id in ids {
                state.remove(id);
            }
        }
        let going = self.drains.drain(..).flat_map(|drain| drain.partitions);
        context::leave(&self.consumer, !self.pending.is_empty(), going);
        // Queues first: a queue that outlives its consumer's close keeps it from ending.
        let Self { queues, commits, events, consumer, setup, .. } = self;
        drop(queues);
        drop(commits);
        drop(events);
        setup.mover.close();
        let Some(consumer) = Rc::into_inner(consumer) else { return };
        let (done, closed) = std::sync::mpsc::channel::<()>();
        let closer = std::thread::Builder::new().name("kafka-close".to_owned()).spawn(move || {
            drop(consumer);
            drop(done);
        });
        if closer.is_ok() && closed.recv_timeout(CLOSE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("the Kafka client does not close; it is left behind");
        }
        setup.shared.arrived.notify_one();
    }
}

/// Whether a commit now is the partition's last: its work is through, or its time is.
fn leaves(drains: &[Drain], partition: &Partition, now: Instant) -> bool {
    let over = |drain: &Drain| {
        now >= drain.deadline && drain.partitions.iter().any(|(t, n)| *n == partition.number && **t == *partition.topic)
    };
    partition.phase == Phase::Draining && (partition.in_hand() == 0 || drains.iter().any(over))
}

/// Notes that offsets of a topic are committed from now on, and whether it has more partitions than it had.
fn began(setup: &mut Poll, topic: &str, number: i32) {
    let Some(known) = setup.partitions.get_mut(topic) else { return };
    let now = usize::try_from(number).map_or(*known, |number| (number + 1).max(*known));
    let place = (setup.queue.clone(), topic.to_owned());
    if now > *known {
        if setup.shared.ordered {
            tracing::warn!(queue = setup.queue, "{}", grown_note(topic, *known, now));
        }
        *known = now;
    } else if !setup.marked.insert(topic.to_owned()) {
        return;
    }
    setup.begun.lock().insert(place, now);
}

/// Tells the broker to send nothing of a partition, or to go on; says whether that was taken.
fn paused(consumer: &BaseConsumer<Context>, topic: &str, number: i32, pause: bool) -> bool {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, number);
    let result = if pause { consumer.pause(&list) } else { consumer.resume(&list) };
    if let Err(error) = &result {
        tracing::debug!(%error, topic, number, "a partition cannot be paused or resumed now");
    }
    result.is_ok()
}
