//! Workers: production's state, settler and choice of moves, and in place of the poll thread the steps of the schedule.

mod trouble;

use std::collections::{BTreeMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use trouble::gone;

use super::log::Log;
use super::{MAX_CRASHES, Shape, World, namespace, queue};
use crate::broker::kafka::batch::Batch;
use crate::broker::kafka::load::{Choice, Ended, Load};
use crate::broker::kafka::memo::{Memo, short_name};
use crate::broker::kafka::names;
use crate::broker::kafka::native::{Arrived, Wake};
use crate::broker::kafka::partition::{Partition, Phase, Setup, Snapshot};
use crate::broker::kafka::settle::KafkaSettler;
use crate::broker::kafka::state::{Lease, Shared, State};
use crate::broker::kafka::transaction::Refusal;
use crate::broker::schedule::{Broken, Choices};
use crate::broker::{Channel, Credit, Delivery, Disposition, Lane, Settled, Settler};
use crate::message::{Attempt, Binding, Failure, JobName, Place, Reason, record};
use crate::time::{Clock, Stopped, Timestamp};

/// Whoever was cut off for less is back before a job is condemned.
const SESSION: i64 = 3_000;
/// Beyond its grace, so long may what has ended take to be stored.
const STORE: i64 = 10_000;

/// Something the engine has in hand.
pub struct Run {
    /// Place of its log, and its offset.
    pub at: (usize, i64),
    stage: Stage,
    /// Its partition went away: somebody else may run it.
    orphan: bool,
    /// It would run: nobody may run it beside this one.
    live: bool,
}

enum Stage {
    /// Its start is being stored.
    Marking(Delivery, oneshot::Receiver<Vec<Settled>>),
    Running(Delivery),
    Settling(BoxFuture<'static, Vec<Settled>>, Asked),
}

/// What the engine asked for.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Ack,
    Retry(u32),
    Dead,
    Release,
}

/// On its way to the broker or back.
struct Commit {
    generation: u64,
    parts: Vec<(u64, usize, Snapshot)>,
    /// What the broker said; `None`: it has not got it yet.
    said: Option<bool>,
}

struct Moving {
    generation: u64,
    load: Load,
    parts: Vec<(usize, i64, String)>,
    ended: Option<Ended>,
}

struct Drain {
    logs: Vec<usize>,
    deadline: i64,
}

/// A worker's process.
pub struct Member {
    /// Its number among all that ever were.
    pub number: usize,
    shared: Arc<Shared>,
    settler: KafkaSettler,
    choice: Choice,
    /// By place of the log: the partition's id, and what is read next.
    seats: BTreeMap<usize, (u64, i64)>,
    /// When each partition was taken.
    taken: BTreeMap<u64, i64>,
    drains: Vec<Drain>,
    next_id: u64,
    /// The group's, as it knows it.
    generation: u64,
    pub frozen: bool,
    /// The group has given its partitions to others, and it has not noticed.
    expelled: bool,
    commit: Option<Commit>,
    moving: Option<Moving>,
    pub runs: Vec<Run>,
    epoch: Instant,
}

impl Run {
    /// Whether the engine still has something to do with it.
    pub fn goes_on(&self) -> bool {
        !matches!(self.stage, Stage::Settling(..))
    }
}

impl Member {
    pub fn new(number: usize, clock: &Stopped, shape: Shape, generation: u64) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            arrived: Notify::new(),
            wake: Arc::<Wake>::default(),
            clock: Clock::Stopped(clock.clone()),
            ordered: shape.ordered,
        });
        let settler = KafkaSettler {
            shared: shared.clone(),
            namespace: namespace(),
            queue: queue(),
            in_place: shape.in_place,
            worker: "w".into(),
        };
        Self {
            number,
            shared,
            settler,
            choice: Choice::default(),
            seats: BTreeMap::new(),
            taken: BTreeMap::new(),
            drains: Vec::new(),
            next_id: 1,
            generation,
            frozen: false,
            expelled: false,
            commit: None,
            moving: None,
            runs: Vec::new(),
            epoch: Instant::now(),
        }
    }

    /// Takes a partition, as `assign` of the poll thread does.
    fn take(&mut self, place: usize, log: &Log, shape: Shape, present: &HashSet<u16>, now: i64) {
        let (committed, memo) = (log.last().0, Memo::read(&log.last().1, log.last().0));
        let at = Arc::new(Place {
            position: format!("kafka:{}", log.name()),
            source: format!("kafka://{}", log.topic),
            topic: (log.lane == Lane::Fresh).then(|| log.topic.clone()),
            binding: Binding::Kafka,
        });
        let leases = Arc::new(Lease::of(&self.shared));
        let channel = |lane| Arc::new(Channel { lane, place: at.clone(), leases: leases.clone() });
        let (first, again) = (channel(log.lane), channel(Lane::Retry));
        let (id, topic, number, max_crashes) = (self.next_id, log.topic.clone(), log.number, MAX_CRASHES);
        self.next_id += 1;
        let (Shape { ordered, limit, .. }, owner) = (shape, self.number as u32);
        let setup = Setup { id, topic, number, first, again, committed, memo, owner, ordered, max_crashes, limit };
        let mut partition = Partition::new(setup);
        partition.acquit(present);
        self.shared.state.lock().add(partition);
        self.seats.insert(place, (id, committed));
        self.taken.insert(id, now);
    }

    /// Its partition is gone: what runs of it is nobody's.
    fn lose(&mut self, place: usize) {
        if let Some((id, _)) = self.seats.remove(&place) {
            self.shared.state.lock().remove(id);
        }
    }

    /// The process dies: nothing of it reaches anybody any more.
    fn die(self) {
        for run in self.runs {
            match run.stage {
                Stage::Marking(delivery, _) | Stage::Running(delivery) => {
                    drop(delivery.settle(Disposition::Release).take());
                }
                Stage::Settling(..) => {}
            }
        }
    }

    /// By the poll thread's clock.
    fn instant(&self, now: i64) -> Instant {
        self.epoch + Duration::from_millis(now as u64)
    }
}

impl World {
    /// The coordinator gives what nobody has to whom it is meant for.
    pub fn assign(&mut self, choices: &mut Choices) {
        let (now, present) = (self.now(), self.present());
        for place in 0..self.logs.len() {
            let wanted = self.logs[place].wanted % self.members.len();
            let member = &mut self.members[wanted];
            if self.logs[place].owner.is_some() || member.frozen || member.expelled {
                continue;
            }
            self.logs[place].owner = Some(member.number);
            member.take(place, &self.logs[place], self.shape, &present, now);
            choices.tell(|| format!("worker {} gets {}", member.number, self.logs[place].name()));
        }
    }

    /// Who is a member of the group now.
    fn present(&self) -> HashSet<u16> {
        self.members.iter().filter(|member| !member.expelled).map(|member| short_name(member.number as u32)).collect()
    }

    /// Whoever lives had the time to come back, as `judge` of the poll thread has it: jobs may be condemned.
    fn judge(&mut self, at: usize) {
        let (now, present, member) = (self.now(), self.present(), &self.members[at]);
        let mut state = member.shared.state.lock();
        for (place, (id, _)) in &member.seats {
            let Some(partition) = state.partitions.get_mut(id).filter(|_| member.taken[id] + SESSION <= now) else {
                continue;
            };
            if partition.accuses(true) {
                partition.acquit(&present);
                partition.judge();
                for entry in self.logs[*place].entries.values_mut() {
                    entry.died.retain(|number| !present.contains(&short_name(*number as u32)));
                }
            }
        }
    }

    /// A planned rebalance: a partition is to go to somebody else.
    pub fn revoke(&mut self, choices: &mut Choices) {
        let (place, to) = (choices.pick(self.logs.len()), choices.pick(self.members.len()));
        let now = self.now();
        self.logs[place].wanted = to;
        let owner = self.logs[place].owner;
        let Some(member) = self.members.iter_mut().find(|member| Some(member.number) == owner) else { return };
        if member.frozen || member.drains.iter().any(|drain| drain.logs.contains(&place)) {
            return;
        }
        choices.tell(|| format!("worker {} is asked to give {} back", member.number, self.logs[place].name()));
        let id = member.seats[&place].0;
        member.shared.state.lock().drain(id);
        let deadline = now + self.shape.grace.as_millis() as i64;
        member.drains.push(Drain { logs: vec![place], deadline });
    }

    /// Partitions whose work is through, or whose time is, are given back, as `finish_drains` does.
    pub fn give_back(&mut self, choices: &mut Choices) {
        let now = self.now();
        for member in self.members.iter_mut().filter(|member| !member.frozen) {
            for drain in std::mem::take(&mut member.drains) {
                let mut state = member.shared.state.lock();
                let mut of = |place: usize, look: fn(&Partition) -> bool| {
                    member.seats.get(&place).and_then(|(id, _)| state.partitions.get_mut(id)).map(|p| look(p))
                };
                let through = drain.logs.iter().all(|at| of(*at, |p| p.in_hand() == 0 && p.settled()).unwrap_or(true));
                let storing = drain.logs.iter().any(|at| of(*at, Partition::storing).unwrap_or(false));
                let given_up = now >= drain.deadline && !storing || now >= drain.deadline + STORE;
                drop(state);
                if member.commit.is_some() && now < drain.deadline + STORE || !through && !given_up {
                    member.drains.push(drain);
                    continue;
                }
                for place in drain.logs {
                    choices.tell(|| format!("worker {} gives {} back", member.number, self.logs[place].name()));
                    member.lose(place);
                    let log = &mut self.logs[place];
                    // Where its session has ended meanwhile it may be another's already.
                    if log.owner == Some(member.number) {
                        gone(log, place, member, true);
                        log.owner = None;
                    }
                }
            }
        }
    }

    /// Reads what there is room for, as `read` and `reread` do.
    pub fn read(&mut self, choices: &mut Choices, at: usize) {
        let (now, member) = (self.clock.now(), &mut self.members[at]);
        if member.frozen {
            return;
        }
        for (place, (id, next)) in &mut member.seats {
            let log = &self.logs[*place];
            let mut state = member.shared.state.lock();
            let state = &mut *state;
            let ghosts = state.ghosts(&log.topic, log.number).cloned();
            let Some(partition) = state.partitions.get_mut(id) else { continue };
            if let Some(back) = partition.reread_from().filter(|_| partition.phase == Phase::Owned) {
                *next = back;
            }
            let room = partition.room(64, 1 << 20).min(1 + choices.pick(5));
            let records: Vec<Arrived> = log
                .entries
                .range(*next..)
                .take(room)
                .map(|(offset, entry)| Arrived { offset: *offset, at: entry.at, message: entry.message.clone() })
                .collect();
            let Some(last) = records.last() else { continue };
            *next = last.offset + 1;
            choices.tell(|| format!("worker {} reads {} up to {}", member.number, log.name(), *next - 1));
            partition.arrive(
                records.into_iter(),
                |offset| ghosts.as_ref().and_then(|runs| runs.get(&offset).copied()),
                |arrived| match record::read(&arrived.message.headers, Binding::Kafka) {
                    Ok(stored) => {
                        arrived.message.headers = stored.original;
                        Ok(Some(Box::new(stored.record)))
                    }
                    Err(_) => Ok(None),
                },
                now,
            );
            if ghosts.is_some() {
                let adopted = partition.adopted();
                state.adopt(&log.topic, log.number, &adopted);
            }
        }
    }

    /// The engine takes what it has room for.
    pub fn hand(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        let (now, jobs) = (self.clock.now(), 1 + choices.pick(3));
        if self.members[at].frozen {
            return Ok(());
        }
        self.judge(at);
        let suspect = !self.members[at].runs.iter().any(|run| match &run.stage {
            Stage::Marking(delivery, _) | Stage::Running(delivery) => delivery.suspect,
            Stage::Settling(..) => false,
        });
        let credit = Credit { jobs, fresh_floor: 1, retry_floor: usize::from(jobs > 1), bytes: 1 << 20, suspect };
        let deliveries = {
            let mut state = self.members[at].shared.state.lock();
            state.promote(now);
            state.hand(credit)
        };
        if deliveries.len() > jobs {
            return Err(("credit", format!("{} deliveries for {jobs} slots", deliveries.len())));
        }
        deliveries.into_iter().try_for_each(|delivery| self.take(choices, at, delivery, now))
    }

    /// The laws of a delivery that is handed out.
    fn take(&mut self, choices: &mut Choices, at: usize, delivery: Delivery, now: Timestamp) -> Result<(), Broken> {
        let (offset, attempt) = (delivery.token.1 as i64, delivery.attempt().get());
        let (number, id) = (self.members[at].number, delivery.token.0);
        let found = self.members[at].seats.iter().find(|(_, seat)| seat.0 == id);
        let place = *found.expect("a delivery comes from a partition that is there").0;
        let log = &self.logs[place];
        let what = format!("offset {offset} of {}, attempt {attempt}, by worker {number}", log.name());
        choices.tell(|| format!("{what} is handed out{}", if delivery.condemned { ", condemned" } else { "" }));
        let entry = &log.entries[&offset];
        // Who has not learned that its session is over works on what others have, and change, by now: it is cut off.
        let cut_off = self.members[at].expelled;
        let forgetful = self.shape.forgetful || cut_off;
        // In key order a retry has nowhere else to wait, however little the broker takes, and needs the room of others.
        let has_room = !self.shape.ordered || self.shape.has_room();
        if entry.confirmed && !forgetful && has_room {
            return Err(("repeated", format!("{what}: its end was confirmed")));
        }
        let (sure, most) = entry.attempts;
        if !(sure..=most).contains(&attempt) && !forgetful && has_room {
            return Err(("attempt", format!("{what}: {sure} is stored, {most} was asked for")));
        }
        if entry.due.get(&attempt).is_some_and(|due| now < *due) {
            return Err(("early", what));
        }
        if attempt > entry.base && !forgetful && has_room && log.waits(offset) < Some(attempt) {
            return Err(("unstored", format!("{what}: that attempt is nowhere")));
        }
        if delivery.condemned && entry.died.len() < MAX_CRASHES as usize {
            return Err(("condemned", format!("{what}: {} workers died over it", entry.died.len())));
        }
        // Whoever lost the partition does not count; this worker itself always does.
        let (place_of, beside) = (|run: &Run| run.live && run.at.0 == place, |run: &Run| !run.orphan);
        let runs = || self.members.iter().flat_map(|member| member.runs.iter().map(move |run| (member.number, run)));
        if let Some((other, _)) = runs()
            .find(|(other, run)| place_of(run) && run.at.1 == offset && (beside(run) && !cut_off || *other == number))
        {
            return Err(("twice", format!("{what}: worker {other} has it in hand")));
        }
        if self.shape.ordered && !cut_off && entry.message.key.is_some() {
            let same = |(_, other): &(&i64, &super::log::Entry)| other.message.key == entry.message.key;
            if let Some((before, _)) = log.entries.range(..offset).filter(same).find(|(_, entry)| !entry.ended) {
                return Err(("order", format!("{what}: {before} of the same key has not ended")));
            }
            let same = |run: &Run| log.entries[&run.at.1].message.key == entry.message.key;
            if let Some((other, run)) =
                runs().find(|(_, run)| place_of(run) && beside(run) && same(run) && run.at.1 > offset)
            {
                return Err(("order", format!("{what}: worker {other} has {} of the same key", run.at.1)));
            }
        }
        let token = delivery.token;
        let member = &mut self.members[at];
        let stage = if delivery.needs_mark && !delivery.condemned {
            // As the settler's `mark`, whose future borrows the delivery.
            let (batch, receiver) = Batch::new(1);
            let part = batch.part(0, 1);
            match member.shared.state.lock().of(token) {
                Some(partition) if partition.owns(offset) => {
                    partition.start(offset);
                    partition.confirm_start(part);
                }
                _ => part.fail(&Settled::Stale),
            }
            Stage::Marking(delivery, receiver)
        } else {
            Stage::Running(delivery)
        };
        member.runs.push(Run { at: (place, offset), stage, orphan: cut_off, live: true });
        Ok(())
    }

    /// Starts whose mark is stored begin; whether any is left that does not.
    pub fn marked(&mut self, at: usize) -> bool {
        let mut any = false;
        for run in &mut self.members[at].runs {
            let Stage::Marking(_, receiver) = &mut run.stage else { continue };
            let Ok(answer) = receiver.try_recv() else { continue };
            let Stage::Marking(delivery, _) = std::mem::replace(&mut run.stage, nothing()) else { continue };
            any = true;
            if answer == [Settled::Stored] {
                run.stage = Stage::Running(delivery);
            } else {
                // Not ours to start.
                run.live = false;
                drop(delivery);
            }
        }
        any || self.members[at].runs.iter().any(|run| matches!(run.stage, Stage::Running(_)))
    }

    /// A run ends, and is settled.
    pub fn finish(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        self.marked(at);
        let (now, member) = (self.clock.now(), &mut self.members[at]);
        if member.frozen {
            return Ok(());
        }
        let running: Vec<usize> =
            (0..member.runs.len()).filter(|run| matches!(member.runs[*run].stage, Stage::Running(_))).collect();
        if running.is_empty() {
            return Ok(());
        }
        let run = &mut member.runs[running[choices.pick(running.len())]];
        let release = choices.more() && choices.once_in(12);
        let Stage::Running(delivery) = std::mem::replace(&mut run.stage, nothing()) else { return Ok(()) };
        let entry = self.logs[run.at.0].entries.get_mut(&run.at.1).expect("it was handed out");
        let attempt = delivery.attempt().get();
        let failure = Failure::new("E", "no", now, now);
        let dead = |reason| Disposition::DeadLetter {
            reason,
            failure: failure.clone(),
            attempts: attempt,
            event_id: None,
            job: JobName::new("job").expect("a name"),
        };
        let (asked, disposition) = if delivery.condemned {
            (Asked::Dead, dead(Reason::Crashed))
        } else if release {
            (Asked::Release, Disposition::Release)
        } else if attempt <= entry.plan.fails {
            let wait = [0, 200, 600][entry.plan.wait % 3];
            let due = now.after(Duration::from_millis(wait));
            entry.attempts.1 = entry.attempts.1.max(attempt + 1);
            // A retry that a death forgot is made again, later.
            let kept = entry.due.entry(attempt + 1).or_insert(due);
            *kept = (*kept).min(due);
            let next = Attempt::new(attempt + 1).expect("not 0");
            let retry = Disposition::Retry { at: due, attempt: next, failure: Some(failure), unroutable_since: None };
            (Asked::Retry(attempt + 1), retry)
        } else if entry.plan.dead {
            (Asked::Dead, dead(Reason::Permanent))
        } else {
            // The handler has succeeded, whoever stores it.
            entry.ended = true;
            (Asked::Ack, Disposition::Ack)
        };
        choices.tell(|| format!("worker {}: offset {}, {asked:?}", member.number, run.at.1));
        run.live = false;
        let settled = member.settler.settle(vec![delivery.settle(disposition)]);
        run.stage = Stage::Settling(settled, asked);
        self.settled(at)
    }

    /// What the engine is told.
    fn settled(&mut self, at: usize) -> Result<(), Broken> {
        let (logs, mut told, has_room) = (&mut self.logs, Vec::new(), self.shape.has_room());
        self.members[at].runs.retain_mut(|run| {
            let Stage::Settling(future, asked) = &mut run.stage else { return true };
            match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => true,
                Poll::Ready(settled) => {
                    told.push((run.at, *asked, settled));
                    false
                }
            }
        });
        for ((place, offset), asked, settled) in told {
            let log = &mut logs[place];
            let name = log.name();
            let entry = log.entries.get_mut(&offset).expect("it was handed out");
            if settled != [Settled::Stored] {
                continue;
            }
            match asked {
                Asked::Ack => entry.confirmed = true,
                Asked::Dead if !entry.ended => {
                    return Err((
                        "lost",
                        format!("offset {offset} of {name}: its letter is confirmed, and not stored"),
                    ));
                }
                Asked::Dead => entry.confirmed |= has_room,
                Asked::Retry(attempt) if !entry.ended => entry.attempts.0 = entry.attempts.0.max(attempt),
                Asked::Retry(_) => entry.confirmed |= has_room && entry.copies > 0,
                Asked::Release => {}
            }
        }
        Ok(())
    }

    /// A delivery is dropped: its handler's task is gone.
    pub fn drop_one(&mut self, choices: &mut Choices, at: usize) {
        let member = &mut self.members[at];
        let Some(run) = member.runs.iter().position(Run::goes_on).filter(|_| !member.frozen) else { return };
        let run = member.runs.swap_remove(run);
        choices.tell(|| format!("worker {} drops offset {}", member.number, run.at.1));
    }

    /// Sends a commit, or what is to be moved, as `commit` and `move_records` do.
    pub fn send(&mut self, choices: &mut Choices, at: usize) {
        let (now, limit, member) = (self.now(), self.shape.limit, &mut self.members[at]);
        if member.frozen {
            return;
        }
        let mut state = member.shared.state.lock();
        if member.commit.is_none() {
            let mut parts = Vec::new();
            for (id, partition) in &mut state.partitions {
                let Some((place, _)) = member.seats.iter().find(|(_, seat)| seat.0 == *id) else { continue };
                if !partition.dirty() {
                    continue;
                }
                let over = member.drains.iter().any(|drain| now >= drain.deadline && drain.logs.contains(place));
                let last = partition.phase == Phase::Draining && (partition.in_hand() == 0 || over);
                parts.push((*id, *place, partition.snapshot(limit, &[], last)));
            }
            if !parts.is_empty() {
                parts.sort_by_key(|part| part.0);
                choices.tell(|| format!("worker {} commits {:?}", member.number, shown(&parts)));
                member.commit = Some(Commit { generation: member.generation, parts, said: None });
            }
        }
        if member.moving.is_none()
            && member.commit.is_none()
            && let now = member.epoch + Duration::from_millis(now as u64)
            && let Some(load) = member.choice.next(&mut state, limit, now, None)
        {
            let place = |id: u64| member.seats.iter().find(|(_, seat)| seat.0 == id).map(|(place, _)| *place);
            let parts = load.snapshots.iter().filter_map(|(id, s)| Some((place(*id)?, s.offset, s.metadata.clone())));
            let parts = parts.collect();
            choices.tell(|| {
                let offsets: Vec<i64> = load.moves.iter().map(|one| one.offset()).collect();
                format!("worker {} moves {offsets:?}", member.number)
            });
            member.moving = Some(Moving { generation: member.generation, load, parts, ended: None });
        }
    }

    /// What is on its way gets one hop on: to the broker, or back.
    pub fn answer(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        let trouble = if choices.more() { choices.pick(10) } else { 0 };
        if let Some(mut commit) = self.members[at].commit.take() {
            if let Some(stored) = commit.said {
                if self.members[at].frozen {
                    self.members[at].commit = Some(commit);
                    return Ok(());
                }
                let mut state = self.members[at].shared.state.lock();
                for (id, _, snapshot) in &commit.parts {
                    let Some(partition) = state.partitions.get_mut(id) else { continue };
                    if stored { partition.confirmed(snapshot) } else { partition.refused() }
                }
            } else {
                let fenced = commit.generation != self.generation;
                // The request is lost, the broker refuses it, or its answer is lost.
                let (stored, said) = match trouble {
                    _ if fenced => (false, false),
                    8 => (false, false),
                    9 => (true, false),
                    _ => (true, true),
                };
                choices.tell(|| format!("the broker: stored {stored}, answered {said}"));
                if stored {
                    for (_, place, snapshot) in &commit.parts {
                        self.logs[*place].commit(snapshot.offset, snapshot.metadata.clone())?;
                    }
                }
                commit.said = Some(said);
                self.members[at].commit = Some(commit);
            }
        } else if let Some(mut moving) = self.members[at].moving.take() {
            if let Some(ended) = moving.ended.take() {
                let now = self.now();
                let member = &mut self.members[at];
                if member.frozen {
                    moving.ended = Some(ended);
                    member.moving = Some(moving);
                    return Ok(());
                }
                let instant = member.instant(now);
                member.choice.end(&mut member.shared.state.lock(), moving.load, ended, instant);
            } else {
                moving.ended = Some(self.carry(choices, &moving, trouble)?);
                self.members[at].moving = Some(moving);
            }
        }
        self.settled(at)
    }

    /// A transaction at the broker.
    fn carry(&mut self, choices: &mut Choices, moving: &Moving, trouble: usize) -> Result<Ended, Broken> {
        let fenced = moving.generation != self.generation;
        if trouble >= 8 || fenced && self.shape.transactions {
            choices.tell(|| "the transaction is aborted".to_owned());
            return Ok(Ended::Failed(Refusal { why: "aborted".to_owned(), rebalanced: fenced }));
        }
        choices.tell(|| "what is moved is stored".to_owned());
        let now = self.clock.now();
        for one in &moving.load.moves {
            let id = one.partition;
            let index = moving.load.snapshots.iter().position(|(other, _)| *other == id);
            let (place, ..) = moving.parts[index.expect("its partition is in the load")];
            let entry = self.logs[place].entries.get_mut(&one.offset()).expect("it is there");
            let plan = entry.plan;
            entry.ended = true;
            if one.dead {
                entry.letters += 1;
                continue;
            }
            entry.copies += 1;
            let stored = record::read(&one.message.headers, Binding::Kafka);
            let attempt = stored.map_err(|error| ("memo", error.to_string()))?.record.attempt.get();
            let due = entry.due.get(&attempt).copied();
            assert_eq!(one.topic, names::work(&namespace(), &queue()), "no retry here is long enough for a tier");
            let work = &mut self.logs[2];
            let offset = work.append(one.message.clone(), now, plan, attempt);
            let entry = work.entries.get_mut(&offset).expect("just appended");
            entry.due.extend(due.map(|due| (attempt, due)));
        }
        if !self.shape.transactions {
            return Ok(Ended::Written);
        }
        for (place, offset, metadata) in &moving.parts {
            self.logs[*place].commit(*offset, metadata.clone())?;
        }
        Ok(Ended::Committed)
    }
}

fn nothing() -> Stage {
    Stage::Settling(Box::pin(std::future::ready(vec![Settled::Stale])), Asked::Release)
}

fn shown(parts: &[(u64, usize, Snapshot)]) -> Vec<(usize, i64)> {
    parts.iter().map(|(_, place, snapshot)| (*place, snapshot.offset)).collect()
}
