//! One partition in one assignment: what arrived, what is in hand, what waits, and what may be committed. No I/O.

mod reading;

mod head;

mod commit;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;
use tokio_util::sync::CancellationToken;

use super::super::{Channel, Delivery, Lane, Settled, Token};
use super::batch::Part;
use super::memo::{self, Memo, Started, Waiting};
use super::native::Arrived;
use super::order::{Gate, Key};
use super::tracker::Window;
use crate::message::Message;
use crate::message::record::Record;
use crate::seeded;
use crate::time::Timestamp;
pub use commit::Snapshot;

/// So many finished records are committed at once.
pub const COMMIT_AFTER: usize = 4_096;
/// Retries of one partition that may wait in place where the broker takes all the metadata that it does by default: a
/// quarter of it holds as many.
const WAITING: usize = memo::LIMIT / WAITING_SIZE;
/// Characters of metadata for each of them: four times what one takes, so that the others find room too.
const WAITING_SIZE: usize = 85;

/// A record with what our own records say of it.
#[derive(Debug)]
struct Held {
    arrived: Arrived,
    record: Option<Box<Record>>,
}

impl Held {
    fn size(&self) -> usize {
        self.arrived.message.size()
    }
}

/// What waits for a commit to be confirmed.
struct Waiter {
    /// The highest offset that the commit must cover.
    max: i64,
    part: Part,
}

/// What a partition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is ours.
    Owned,
    /// It was asked back: nothing more is handed out, what is in hand may still finish.
    Draining,
}

/// See the module's documentation.
pub struct Partition {
    /// Unique in the process; the first half of its deliveries' tokens.
    pub id: u64,
    /// Its topic.
    pub topic: Arc<str>,
    /// Its number in the topic.
    pub number: i32,
    /// The lane its records come by.
    pub lane: Lane,
    /// Where it stands.
    pub phase: Phase,
    /// Its first commit, which says that somebody works here, is confirmed: before that nothing is handed out.
    pub opened: bool,
    owner: u32,
    first: Arc<Channel>,
    again: Arc<Channel>,
    window: Window,
    /// Arrived, in order, not handed out.
    buffer: VecDeque<Held>,
    buffered_bytes: usize,
    /// Due again, released, or next of their key: before the buffer.
    ready: VecDeque<Held>,
    /// Beyond what the window admits.
    overflow: VecDeque<Held>,
    gate: Option<Gate<Held>>,
    /// Keys of what is in hand or waits, where order matters.
    keys: HashMap<i64, Key, RandomState>,
    /// Retries in place, until their run has ended: a commit that forgot one would give its attempt back. With the
    /// record while it waits, and whether a commit has stored it.
    waiting: BTreeMap<i64, (Waiting, Option<Held>, bool)>,
    /// Records of ours that cannot be read, and why.
    unreadable: HashMap<i64, Box<str>>,
    /// Records of ours that are not due yet by their own word.
    early: BTreeMap<i64, Held>,
    timers: BTreeSet<(Timestamp, i64)>,
    started: BTreeMap<i64, Started>,
    /// Who counts as dead was asked for long enough after we took over: jobs may be condemned for it.
    judged: bool,
    guarded_to: i64,
    max_crashes: u32,
    in_hand: usize,
    /// In hand in an earlier assignment, and running still: its token's first half.
    joined: HashMap<i64, u64>,
    lost: HashMap<i64, CancellationToken>,
    /// Arrived, and forgotten when the partition was asked back: they do not run.
    forgotten: HashSet<i64>,
    /// Given back without their bytes: to be read again.
    missing: BTreeSet<i64>,
    /// Offsets whose move is on its way.
    moving: HashSet<i64>,
    waiters: VecDeque<Waiter>,
    waiters_released: u64,
    committed: i64,
    dirty: bool,
    /// Finished since the last snapshot.
    pub fresh_finished: usize,
    used: usize,
    /// Characters of metadata that the broker takes, as the last commit had it.
    limit: usize,
    /// Something waits for the next commit that should not wait long.
    pub urgent: bool,
    /// No commit of this partition but the mover's until it is through.
    pub frozen: bool,
    /// The poll thread found no room in it.
    pub full: bool,
    /// The lowest unfinished offset, and when it was first seen to be that.
    head: Option<(i64, Timestamp)>,
}

/// What a partition is made of.
pub struct Setup {
    /// See [`Partition::id`].
    pub id: u64,
    /// Its topic.
    pub topic: Arc<str>,
    /// Its number.
    pub number: i32,
    /// Channel of what comes for the first time.
    pub first: Arc<Channel>,
    /// Channel of what comes again.
    pub again: Arc<Channel>,
    /// The committed offset.
    pub committed: i64,
    /// What its last owner left.
    pub memo: Option<Memo>,
    /// Who we are to those who come after us; never 0.
    pub owner: u32,
    /// Whether keys are in order.
    pub ordered: bool,
    /// See [`Queue::max_crashes`](super::super::Queue::max_crashes).
    pub max_crashes: u32,
    /// Characters of metadata that the broker takes with a commit, as far as is known.
    pub limit: usize,
}

impl Partition {
    /// A partition that was just assigned.
    pub fn new(setup: Setup) -> Self {
        // Whoever gets its own back has lost its session and not its life: what it ran has not crashed.
        let unclean = setup.memo.as_ref().is_some_and(|memo| !memo.clean && memo.owner != setup.owner);
        let memo = setup.memo.unwrap_or_default();
        let last = memo.finished.iter().last().map_or(setup.committed, |(_, to)| to);
        let waiting = memo.waiting.into_iter().map(|waiting| (waiting.offset, (waiting, None, true))).collect();
        let started = memo
            .started
            .into_iter()
            .map(|mut started| {
                let owner = memo::short_name(memo.owner);
                // It ran when its worker died.
                if started.running && unclean && !started.died.contains(&owner) {
                    started.died.push(owner);
                }
                started.running = false;
                (started.offset, started)
            })
            .filter(|(_, started)| !started.died.is_empty())
            .collect();
        // What was in flight lay at most a window beyond what is known to be finished.
        let guarded_to = if unclean { memo.guarded_to.max(last + GUARD) } else { memo.guarded_to };
        Self {
            id: setup.id,
            topic: setup.topic,
            number: setup.number,
            lane: setup.first.lane,
            phase: Phase::Owned,
            opened: false,
            owner: setup.owner,
            first: setup.first,
            again: setup.again,
            window: Window::new(
                setup.committed,
                if seeded::bug("memo-ignored") { Default::default() } else { memo.finished },
            ),
            buffer: VecDeque::new(),
            buffered_bytes: 0,
            ready: VecDeque::new(),
            overflow: VecDeque::new(),
            gate: setup.ordered.then(Gate::default),
            keys: HashMap::default(),
            waiting,
            unreadable: HashMap::new(),
            early: BTreeMap::new(),
            timers: BTreeSet::new(),
            started,
            judged: false,
            guarded_to,
            max_crashes: setup.max_crashes,
            in_hand: 0,
            joined: HashMap::new(),
            lost: HashMap::new(),
            forgotten: HashSet::new(),
            missing: BTreeSet::new(),
            moving: HashSet::new(),
            waiters: VecDeque::new(),
            waiters_released: 0,
            committed: setup.committed,
            dirty: true,
            fresh_finished: 0,
            used: 0,
            limit: setup.limit,
            urgent: false,
            frozen: false,
            full: false,
            head: None,
        }
    }

    /// Whether something of `lane` could be handed out.
    pub fn has(&self, lane: Lane) -> bool {
        if !self.opened || self.phase != Phase::Owned {
            return false;
        }
        !self.ready.is_empty() && lane == Lane::Retry || !self.buffer.is_empty() && lane == self.lane
    }

    /// Hands out at most `jobs` of a lane and about `bytes`; says how many bytes that was.
    pub fn hand(
        &mut self,
        lane: Lane,
        jobs: usize,
        bytes: &mut usize,
        suspect: &mut bool,
        into: &mut Vec<Delivery>,
    ) -> usize {
        let mut count = 0;
        while count < jobs && self.has(lane) && (*bytes > 0 || into.is_empty()) {
            let from_ready = lane == Lane::Retry && !self.ready.is_empty();
            let queue = if from_ready { &mut self.ready } else { &mut self.buffer };
            let Some(held) = queue.front() else { break };
            let offset = held.arrived.offset;
            let crashes = self.started.get(&offset).map_or(0, |started| started.died.len() as u32);
            let is_suspect = !self.started.is_empty() && crashes + 1 >= self.max_crashes;
            let waits = if crashes < self.max_crashes { !*suspect } else { !self.judged };
            if is_suspect && waits {
                break;
            }
            let Some(held) = queue.pop_front() else { break };
            let size = held.size();
            self.buffered_bytes = self.buffered_bytes.saturating_sub(size);
            *bytes = bytes.saturating_sub(size);
            self.in_hand += 1;
            count += 1;
            let channel = if from_ready { &self.again } else { &self.first };
            let Arrived { offset, at, message } = held.arrived;
            let token = Token(self.id, offset as u64);
            let mut delivery = Delivery::new(message, channel.clone(), offset as u64, at, token);
            delivery.record = held.record;
            if !self.unreadable.is_empty() {
                delivery.unreadable = self.unreadable.get(&offset).cloned();
            }
            if is_suspect {
                delivery.condemned = crashes >= self.max_crashes;
                delivery.suspect = !delivery.condemned;
                *suspect &= !delivery.suspect;
            }
            delivery.needs_mark = offset < self.guarded_to;
            delivery.redelivered = self.started.contains_key(&offset);
            into.push(delivery);
        }
        count
    }

    /// Whether a delivery is ours still and unfinished.
    pub fn owns(&self, offset: i64) -> bool {
        offset < self.window.next() && !self.window.is_finished(offset)
    }

    /// A job is done: its part resolves when a commit that covers it is confirmed.
    pub fn finish(&mut self, offset: i64, part: Part) -> Result<(), Part> {
        if !self.window.finish(offset) {
            return Err(part);
        }
        self.through(offset);
        self.wait(offset, part);
        Ok(())
    }

    /// The same for the next of the same batch, where its part can be extended.
    pub fn last_part(&mut self) -> Option<(&mut i64, &mut Part)> {
        self.waiters.back_mut().map(|waiter| (&mut waiter.max, &mut waiter.part))
    }

    /// As [`Partition::finish`], for a settlement whose part is the last waiter's already.
    pub fn finish_more(&mut self, offset: i64) -> bool {
        let finished = self.window.finish(offset);
        if finished {
            self.through(offset);
        }
        finished
    }

    /// What every end of a run does.
    fn through(&mut self, offset: i64) {
        self.in_hand = self.in_hand.saturating_sub(1);
        self.dirty = true;
        self.fresh_finished += 1;
        if !self.waiting.is_empty() {
            self.waiting.remove(&offset);
        }
        if !self.started.is_empty() {
            self.started.remove(&offset);
        }
        if !self.lost.is_empty() {
            self.lost.remove(&offset);
        }
        if !self.unreadable.is_empty() {
            self.unreadable.remove(&offset);
        }
        if !self.joined.is_empty() {
            self.joined.remove(&offset);
        }
        if self.gate.is_some() {
            self.let_next(offset);
        }
    }

    /// Lets the next of the key pass.
    fn let_next(&mut self, offset: i64) {
        let (Some(gate), Some(key)) = (&mut self.gate, self.keys.remove(&offset)) else { return };
        if let Some(next) = gate.leave(key) {
            self.buffered_bytes = self.buffered_bytes.saturating_sub(next.size());
            // Before all times: what has a due time of its own goes by the timers, due or not.
            self.queue(next, true, Timestamp::from_millis(i64::MIN));
        }
    }

    fn wait(&mut self, max: i64, part: Part) {
        self.waiters.push_back(Waiter { max, part });
    }

    /// Whether a retry may wait in place.
    pub fn may_wait(&self) -> bool {
        self.gate.is_some() || self.waiting.len() < (self.limit / WAITING_SIZE).min(WAITING)
    }

    /// A job runs again here at `record.not_before`: its part resolves, and its timer starts, when a commit has
    /// stored that.
    pub fn retry(&mut self, offset: i64, message: Message, at: Timestamp, record: Box<Record>, part: Part) {
        self.in_hand = self.in_hand.saturating_sub(1);
        self.started.remove(&offset);
        self.lost.remove(&offset);
        self.joined.remove(&offset);
        let due = record.not_before.unwrap_or(Timestamp::from_millis(0));
        let first_failed = record.failure.as_ref().map(|failure| failure.first);
        let waiting = Waiting { offset, attempt: record.attempt, due, first_failed };
        let held = Held { arrived: Arrived { offset, at, message }, record: Some(record) };
        self.buffered_bytes += held.size();
        if seeded::bug("key-let-go") {
            self.let_next(offset);
        }
        self.waiting.insert(offset, (waiting, Some(held), false));
        if seeded::bug("retry-unstored") {
            self.timers.insert((due, offset));
        }
        self.wait(offset, part);
        self.dirty = true;
    }

    /// A delivery comes back without having used an attempt.
    pub fn release(&mut self, offset: i64, message: Option<(Message, Timestamp, Option<Box<Record>>)>) {
        if !self.owns(offset) {
            return;
        }
        self.in_hand = self.in_hand.saturating_sub(1);
        self.lost.remove(&offset);
        self.joined.remove(&offset);
        if let Some(started) = self.started.get_mut(&offset) {
            started.running = false;
            self.dirty = true;
        }
        if self.phase == Phase::Draining {
            // The next owner has it; the leaving commit may be due now.
            self.forgotten.insert(offset);
            self.dirty = true;
            return;
        }
        match message {
            Some((message, at, record)) => {
                let held = Held { arrived: Arrived { offset, at, message }, record };
                self.buffered_bytes += held.size();
                self.ready.push_front(held);
            }
            None => {
                self.missing.insert(offset);
            }
        }
    }

    /// What is to be read next.
    pub fn expects(&self) -> i64 {
        self.missing.first().copied().unwrap_or(self.window.next())
    }

    /// What lies below `offset` and did not arrive, or was to be read again, is in the log no more: gives how many
    /// offsets that were not finished.
    pub fn skip_to(&mut self, offset: i64) -> u64 {
        let gone = self.missing.split_off(&offset);
        let gone = std::mem::replace(&mut self.missing, gone);
        for offset in &gone {
            if self.window.finish(*offset) {
                self.in_hand += 1;
                self.through(*offset);
            }
        }
        let lost = self.window.skip_to(offset) + gone.len() as u64;
        let kept = self.waiting.split_off(&offset);
        let skipped = std::mem::replace(&mut self.waiting, kept);
        // Those that arrived are here still.
        self.waiting.extend(skipped.into_iter().filter(|(at, _)| self.window.has(*at)));
        self.dirty = true;
        lost
    }

    /// Where reading must begin again because deliveries were dropped with their bytes.
    pub fn reread_from(&self) -> Option<i64> {
        self.missing.first().copied()
    }

    /// Stores that a delivery is about to run.
    pub fn start(&mut self, offset: i64) {
        self.started.entry(offset).or_insert(Started { offset, died: Vec::new(), running: true }).running = true;
        self.dirty = true;
    }

    /// Whether somebody counts as dead; `condemned`: for so many crashes that a job waits for [`Partition::judge`].
    pub fn accuses(&self, condemned: bool) -> bool {
        let least = if condemned { self.max_crashes as usize } else { 1 };
        !self.judged && self.started.values().any(|started| started.died.len() >= least)
    }

    /// Who is there has not died: these members count no longer.
    pub fn acquit(&mut self, present: &HashSet<u16>) {
        self.started.retain(|_, started| {
            let before = started.died.len();
            started.died.retain(|name| !present.contains(name));
            self.dirty |= started.died.len() != before;
            started.running || !started.died.is_empty()
        });
    }

    /// Whoever lives was given the time to come back.
    pub fn judge(&mut self) {
        self.judged = true;
    }

    /// A part that resolves with the next confirmed commit, whatever it covers: starts are always in it.
    pub fn confirm_start(&mut self, part: Part) {
        self.wait(i64::MIN, part);
        self.urgent = true;
        self.dirty = true;
    }

    /// A part that resolves with the next confirmed commit that covers `offset`.
    pub fn confirm(&mut self, offset: i64, part: Part) {
        self.wait(offset, part);
        self.urgent = true;
        self.dirty = true;
    }

    /// A move begins: what it replaces stays unfinished until the move is through.
    pub fn begin_move(&mut self, offset: i64) -> bool {
        self.owns(offset) && self.moving.insert(offset)
    }

    /// A move that began in an earlier assignment goes on in this one, which its run has joined.
    pub fn keep_move(&mut self, offset: i64) {
        self.moving.insert(offset);
    }

    /// A move is stored.
    pub fn end_move(&mut self, offset: i64) {
        self.moving.remove(&offset);
        if self.window.finish(offset) {
            self.through(offset);
        }
    }

    /// Whether something that has ended is still to be stored.
    pub fn storing(&self) -> bool {
        self.dirty || self.frozen || !self.moving.is_empty()
    }

    /// The id that a run of an earlier assignment has which joined this one.
    pub fn runs_as(&self, offset: i64) -> Option<u64> {
        self.joined.get(&offset).copied()
    }

    /// Offsets whose runs of an earlier assignment joined this one.
    pub fn adopted(&self) -> Vec<i64> {
        self.joined.keys().copied().collect()
    }

    /// Whether a commit would say something new.
    pub fn dirty(&self) -> bool {
        self.dirty && !self.frozen
    }

    /// In hand, moves included.
    pub fn in_hand(&self) -> usize {
        self.in_hand
    }

    /// Everything that was settled is confirmed.
    pub fn settled(&self) -> bool {
        self.waiters.is_empty() && self.moving.is_empty() && !self.dirty && !self.frozen
    }

    /// A commit did not get through: it is sent again.
    pub fn refused(&mut self) {
        self.dirty = true;
    }

    /// A token that is cancelled when the partition goes away.
    pub fn lost(&mut self, offset: i64) -> CancellationToken {
        if !self.owns(offset) {
            let gone = CancellationToken::new();
            gone.cancel();
            return gone;
        }
        self.lost.entry(offset).or_default().clone()
    }

    /// It is asked back: what was not handed out is forgotten, and comes to the next owner.
    pub fn drain(&mut self) {
        self.phase = Phase::Draining;
        let parked = self.gate.as_mut().into_iter().flat_map(Gate::clear);
        let forgotten = self.buffer.drain(..).chain(self.ready.drain(..)).chain(parked);
        self.forgotten.extend(forgotten.map(|held| held.arrived.offset));
        self.overflow.clear();
        self.buffered_bytes = 0;
        self.dirty = true;
    }

    /// It is gone: tells those who ask, fails what waits, and gives the offsets that still run here.
    pub fn end(mut self) -> HashMap<i64, u64> {
        for token in self.lost.values() {
            token.cancel();
        }
        let settled = Settled::Unconfirmed("the partition went to another worker".to_owned());
        for waiter in self.waiters.drain(..) {
            waiter.part.fail(&settled);
        }
        if self.in_hand == 0 {
            return HashMap::new();
        }
        self.drain();
        let held: HashSet<i64> = self
            .forgotten
            .iter()
            .copied()
            .chain(self.waiting.iter().filter(|(_, (_, held, _))| held.is_some()).map(|(offset, _)| *offset))
            .chain(self.early.keys().copied())
            .chain(self.missing.iter().copied())
            .collect();
        let mut running = HashMap::new();
        for offset in self.window.unfinished() {
            if !held.contains(&offset) {
                running.insert(offset, self.joined.get(&offset).copied().unwrap_or(self.id));
            }
        }
        running
    }
}

/// Starts stored beyond what is known to have been finished, after an unclean takeover.
const GUARD: i64 = 1_024;
