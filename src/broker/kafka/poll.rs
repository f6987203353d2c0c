//! The poll thread of a queue: the only one that talks to its consumer. It never blocks for long: it serves events,
//! reads what there is room for, sends commits and takes their results, and parks until one of these has something.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::super::{Channel, Error, Lane, Start, Trouble};
use super::context::{self, Change, Context};
use super::memo::{self, Memo};
use super::mover::Mover;
use super::native::{Batch, Commits, PartitionQueue};
use super::partition::{Partition, Phase, Setup, Snapshot};
use super::state::{self, Lease, READ_AHEAD, READ_AHEAD_BYTES, Shared};
use crate::message::{Binding, Place, record};

/// Commits are at most this far behind.
const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// So many finished records are committed at once.
const COMMIT_AFTER: usize = 8_192;
/// So long a partition is full before the broker is told to send nothing.
const PAUSE_AFTER: Duration = Duration::from_secs(2);
/// Reading goes back at most so often.
const SEEK_EVERY: Duration = Duration::from_secs(1);
/// Records a read.
const READ: usize = 2_048;
/// How long one question to the broker about an assignment may take.
const ASK: Duration = Duration::from_secs(5);
/// How long the client's close may take.
const CLOSE: Duration = Duration::from_secs(3);

/// What a poll thread is made of.
pub struct Poll {
    /// The consumer's settings.
    pub config: ClientConfig,
    /// OAUTHBEARER's.
    pub token_command: Option<String>,
    /// The topics of the fresh lane.
    pub topics: Vec<String>,
    /// The queue's own topic.
    pub work: String,
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
}

/// A partition's queue, and whether the broker was told to send nothing.
struct Seat {
    id: u64,
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

struct Running {
    setup: Poll,
    consumer: Rc<BaseConsumer<Context>>,
    context: Arc<Context>,
    commits: Commits<Context>,
    queues: HashMap<(String, i32), Seat>,
    places: HashMap<String, [Arc<Channel>; 2]>,
    pending: Vec<(String, i32)>,
    drains: Vec<Drain>,
    in_flight: Option<(Vec<(u64, Snapshot)>, Instant)>,
    last_commit: Instant,
    failing_since: Option<Instant>,
    connected: bool,
    metadata_limit: usize,
    next_id: u64,
    batch: Batch,
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
                // A panic must not leave the queue waiting for ever.
                let guard = left.drop_guard();
                if let Err(error) = self.run() {
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
        let context = Context::new(self.token_command.clone());
        let wake = self.shared.wake.clone();
        let mut consumer: BaseConsumer<Context> =
            self.config.create_with_context(context).map_err(|error| Error::Refused(format!("kafka: {error}")))?;
        consumer.set_nonempty_callback(move || wake.wake());
        let consumer = Rc::new(consumer);
        let mut topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        topics.push(&self.work);
        consumer.subscribe(&topics).map_err(|error| Error::Refused(format!("kafka: {error}")))?;
        let mut running = Running {
            context: consumer.context().clone(),
            commits: Commits::new(&consumer, &self.shared.wake),
            consumer,
            setup: self,
            queues: HashMap::new(),
            places: HashMap::new(),
            pending: Vec::new(),
            drains: Vec::new(),
            in_flight: None,
            last_commit: Instant::now(),
            failing_since: None,
            connected: false,
            metadata_limit: memo::LIMIT,
            next_id: 1,
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
            self.finish_drains();
            let read = self.read();
            self.reread();
            self.commit();
            self.move_records();
            let (any, due) = {
                let mut state = self.setup.shared.state.lock();
                let promoted = state.promote(self.setup.shared.clock.now());
                if (state.stopping && state.in_hand() == 0 && state.settled() && self.in_flight.is_none())
                    || state.closing
                {
                    return;
                }
                if state.stopping {
                    for partition in state.partitions.values_mut().filter(|p| p.phase == Phase::Owned) {
                        partition.drain();
                    }
                }
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
        if self.setup.shared.state.lock().partitions.values().any(Partition::dirty) && self.in_flight.is_none() {
            wait = wait.min(COMMIT_EVERY.saturating_sub(self.last_commit.elapsed()));
        }
        if !self.drains.is_empty() || !self.pending.is_empty() {
            wait = wait.min(Duration::from_millis(20));
        }
        std::thread::park_timeout(wait);
    }

    /// Serves what librdkafka has to tell; records do not come this way.
    fn serve(&mut self) -> bool {
        let mut served = false;
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            served = true;
            let Err(error) = event else {
                tracing::error!("a record came outside of its partition's queue");
                continue;
            };
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure) => {}
                Some(RDKafkaErrorCode::PollExceeded) => tracing::error!("the poll thread was held up"),
                _ => tracing::warn!(%error, "the consumer reports an error"),
            }
            if matches!(error, rdkafka::error::KafkaError::MessageConsumptionFatal(_)) {
                let mut state = self.setup.shared.state.lock();
                state.fatal = Some(Error::Refused(format!("the broker shut this member out: {error}")));
                state.closing = true;
                drop(state);
                self.setup.shared.arrived.notify_one();
            }
        }
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
                    if partitions.is_empty() {
                        context::assign(&self.consumer, &[]);
                    }
                    self.pending.extend(partitions);
                    self.news();
                }
                Change::Revoked { partitions, lost } => {
                    let mut state = self.setup.shared.state.lock();
                    self.pending.retain(|pending| !partitions.contains(pending));
                    for (topic, number) in &partitions {
                        if let Some(partition) = state.at(topic, *number) {
                            partition.drain();
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

    /// Takes what was assigned: where each begins, what its last owner left, a queue of its own.
    fn assign(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::new();
        for (topic, number) in &self.pending {
            list.add_partition(topic, *number);
        }
        // The one wait of this thread: the broker answers within a round trip, heartbeats go on beside it.
        let committed = match self.consumer.committed_offsets(list, ASK) {
            Ok(committed) => committed,
            Err(error) => {
                tracing::warn!(%error, "the committed offsets cannot be read yet");
                return;
            }
        };
        let mut assigned = Vec::new();
        let mut partitions = Vec::new();
        for element in committed.elements() {
            let (topic, number) = (element.topic().to_owned(), element.partition());
            let (offset, memo) = match element.offset() {
                Offset::Offset(offset) if element.error().is_ok() => (offset, Memo::read(element.metadata(), offset)),
                _ if element.error().is_err() => {
                    tracing::warn!(topic, number, "a committed offset cannot be read yet");
                    return;
                }
                _ => match self.begin(&topic, number) {
                    Ok(offset) => (offset, None),
                    Err(error) => {
                        tracing::warn!(%error, topic, number, "where a partition begins cannot be read yet");
                        return;
                    }
                },
            };
            let shared = &self.setup.shared;
            let Some(queue) = PartitionQueue::split(&self.consumer, &topic, number, &shared.wake) else { return };
            let id = self.next_id;
            self.next_id += 1;
            let [first, again] = self.channels(&topic, number);
            partitions.push(Partition::new(Setup {
                id,
                topic: Arc::from(topic.as_str()),
                number,
                first,
                again,
                committed: offset,
                memo,
                ordered: self.setup.shared.ordered,
                max_crashes: self.setup.max_crashes,
            }));
            assigned.push((topic.clone(), number, offset));
            self.queues.insert((topic, number), Seat { id, queue, full_since: None, paused: false, sought: None });
        }
        self.pending.clear();
        context::assign(&self.consumer, &assigned);
        // A pause outlives its assignment: what is ours anew begins as we wish it.
        let mut list = TopicPartitionList::new();
        for (topic, number, _) in &assigned {
            list.add_partition(topic, *number);
        }
        if let Err(error) = self.consumer.resume(&list) {
            tracing::warn!(%error, "a partition cannot be resumed");
        }
        let mut state = self.setup.shared.state.lock();
        for partition in partitions {
            state.add(partition);
        }
        if self.drains.is_empty() && state.trouble == Some(Trouble::Rebalance) {
            state.trouble = None;
        }
        drop(state);
        self.news();
    }

    /// Where a partition begins that nobody has committed anything of.
    fn begin(&self, topic: &str, number: i32) -> rdkafka::error::KafkaResult<i64> {
        let (low, high) = self.consumer.fetch_watermarks(topic, number, ASK)?;
        // `start` means the partitions that were there when the queue began: one that was added later begins at its
        // beginning, or what was published before we saw it would be lost.
        if self.setup.start != Start::Earliest && self.has_begun(topic)? {
            return Ok(low);
        }
        let work = topic == self.setup.work;
        match self.setup.start {
            Start::At(at) if !work => {
                let mut list = TopicPartitionList::new();
                list.add_partition_offset(topic, number, Offset::Offset(at.as_millis()))?;
                let found = self.consumer.offsets_for_times(list, ASK)?;
                Ok(found
                    .elements()
                    .first()
                    .and_then(|e| match e.offset() {
                        Offset::Offset(offset) => Some(offset),
                        _ => None,
                    })
                    .unwrap_or(high))
            }
            Start::Latest if !work => Ok(high),
            _ => Ok(low),
        }
    }

    /// Whether anything of this topic was ever committed by the group.
    fn has_begun(&self, topic: &str) -> rdkafka::error::KafkaResult<bool> {
        let metadata = self.consumer.fetch_metadata(Some(topic), ASK)?;
        let mut list = TopicPartitionList::new();
        for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
            list.add_partition(topic, partition.id());
        }
        let committed = self.consumer.committed_offsets(list, ASK)?;
        Ok(committed.elements().iter().any(|element| matches!(element.offset(), Offset::Offset(_))))
    }

    fn channels(&mut self, topic: &str, number: i32) -> [Arc<Channel>; 2] {
        let name = format!("{topic}:{number}");
        let setup = &self.setup;
        let make = || {
            let work = topic == setup.work;
            let leases = Arc::new(Lease(Arc::downgrade(&setup.shared)));
            let place = Arc::new(Place {
                position: format!("kafka:{topic}:{number}"),
                source: format!("kafka://{topic}"),
                topic: (!work).then(|| Arc::from(topic)),
                binding: Binding::Kafka,
            });
            [if work { Lane::Retry } else { Lane::Fresh }, Lane::Retry]
                .map(|lane| Arc::new(Channel { lane, place: place.clone(), leases: leases.clone() }))
        };
        self.places.entry(name).or_insert_with(make).clone()
    }

    /// Gives partitions back whose work is through, or whose time is.
    fn finish_drains(&mut self) {
        let mut left = Vec::new();
        for drain in std::mem::take(&mut self.drains) {
            let mut state = self.setup.shared.state.lock();
            let lost = self.consumer.assignment_lost();
            let overdue = lost || Instant::now() >= drain.deadline;
            let through = drain.partitions.iter().all(|(topic, number)| {
                state.at(topic, *number).is_none_or(|partition| partition.in_hand() == 0 && partition.settled())
            });
            // The last commit of what is through goes out even when time is up, unless it is lost already.
            let last_words = !lost && Instant::now() < drain.deadline + COMMIT_EVERY * 5;
            let unsaid = drain
                .partitions
                .iter()
                .any(|(topic, number)| state.at(topic, *number).is_some_and(|partition| partition.dirty()));
            if !(through && self.in_flight.is_none())
                && !(overdue && !(last_words && (unsaid || self.in_flight.is_some())))
            {
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
        let count = self.queues.len().max(1);
        let (records, bytes) = ((READ_AHEAD / count).max(64), (READ_AHEAD_BYTES / count).max(256 * 1024));
        let mut any = false;
        let mut starved = false;
        for ((topic, number), seat) in &mut self.queues {
            let id = &seat.id;
            let room = shared.state.lock().partitions.get(id).map_or(0, |partition| partition.room(records, bytes));
            // Not reading is what stops it; the broker is told only when that lasts, and told to go on only when
            // there is room for many, since each time throws away what the client has read ahead.
            if room == 0 {
                starved = true;
                let since = *seat.full_since.get_or_insert_with(Instant::now);
                if !seat.paused && since.elapsed() >= PAUSE_AFTER {
                    seat.paused = paused(&self.consumer, topic, *number, true);
                }
                continue;
            }
            if seat.paused {
                if room < records / 2 {
                    starved = true;
                    continue;
                }
                seat.paused = !paused(&self.consumer, topic, *number, false);
            }
            seat.full_since = None;
            seat.queue.read(&mut self.batch, room);
            for error in &self.batch.errors {
                tracing::warn!(%error, "a partition reports an error");
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
                |arrived| {
                    let stored = record::read(&arrived.message.headers, Binding::Kafka).ok()?;
                    arrived.message.headers = stored.original;
                    Some(Box::new(stored.record))
                },
                shared.clock.now(),
            );
            if ghosts.is_some() {
                let adopted = partition.adopted();
                state.adopt(&topic, number, &adopted);
            }
        }
        if starved {
            shared.state.lock().starved = true;
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
            let Some((snapshots, _)) = self.in_flight.take() else { continue };
            let mut state = self.setup.shared.state.lock();
            let mut failed = None;
            for (id, snapshot) in snapshots {
                let Some(partition) = state.partitions.get_mut(&id) else { continue };
                let result = results
                    .iter()
                    .find(|result| result.partition == partition.number && *result.topic == *partition.topic)
                    .map_or(Err(RDKafkaErrorCode::Unknown), |result| result.result);
                match result {
                    Ok(()) => partition.confirmed(&snapshot),
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
        if self.in_flight.is_some() {
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
            let last = partition.phase == Phase::Draining
                && (partition.in_hand() == 0
                    || self.drains.iter().any(|drain| {
                        now >= drain.deadline
                            && drain.partitions.iter().any(|(t, n)| *n == partition.number && **t == *partition.topic)
                    }));
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
            Ok(()) => self.in_flight = Some((snapshots, now)),
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

    fn move_records(&mut self) {
        self.setup.mover.step(&self.setup.shared, &self.consumer, self.metadata_limit, self.in_flight.is_some());
    }

    /// Commits what is through, and leaves the group. What hangs is left behind: the process must go on.
    fn leave(mut self) {
        let deadline = Instant::now() + Duration::from_secs(1);
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
            if self.in_flight.is_none() {
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
        self.context.close();
        // Queues first: a queue that outlives its consumer's close keeps it from ending.
        let Self { queues, commits, consumer, setup, .. } = self;
        drop(queues);
        drop(commits);
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
