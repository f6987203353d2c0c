//! A lane: one of a queue's tasks that receive, start and settle. The story of a delivery is read here.
//!
//! A queue has as many lanes as the machine has cores (or the queue slots). They share the source, one receiving at
//! a time, and what is in hand. A job that is done at its first poll costs no task; one that pends, or whose first
//! polls take long, becomes one.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::execute::{self, Attempt};
use super::outcome::Outcome;
use super::pool::{Queue, Taken};
use super::retry::{self, Facts};
use super::route::{Polls, Route};
use super::settle::{self, Subjects};
use crate::broker::{Credit, Delivery, Disposition, Lane as LaneName, Settlement};
use crate::handler::{Context, Shared, Threading};
use crate::message::attribute::TRACEPARENT;
use crate::message::{Event, decode};
use crate::seeded;
use crate::telemetry::events;
use crate::telemetry::meter::{JobTally, Why};
use crate::time::Timestamp;

/// Deliveries started between two looks at what else there is to do.
const CHUNK: usize = 16;
/// How long a paused queue waits before it looks again by itself.
const PAUSED_LOOK: Duration = Duration::from_millis(100);
/// How long what is in hand without a slot waits before it looks again by itself.
const BLOCKED_LOOK: Duration = Duration::from_millis(10);
/// Full for so long is worth saying.
const FULL_FOR: Duration = Duration::from_millis(50);

/// One of a queue's lanes.
pub struct Lane {
    queue: Arc<Queue>,
    tallies: Vec<JobTally>,
    polls: Vec<Polls>,
    /// What runs of each route share, a copy of its own for each lane: lanes that count references to the same thing at
    /// each job slow each other down.
    shared: Vec<Arc<Shared>>,
    chunk: usize,
}

/// A chunk of deliveries on their way, with what they share.
struct Chunk {
    settlements: Vec<Settlement>,
    subjects: Subjects,
    bytes: usize,
    slots: usize,
    fresh: usize,
    retry: usize,
    /// When the job that starts next starts: the end of the one before.
    instant: Instant,
    wall: Timestamp,
    began: Instant,
    /// When a job of it last succeeded.
    succeeded: Option<Timestamp>,
}

impl Chunk {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(
            self.wall.as_millis() + self.instant.saturating_duration_since(self.began).as_millis() as i64,
        )
    }
}

impl Lane {
    /// A lane of `queue`.
    pub fn new(queue: Arc<Queue>) -> Self {
        let tallies = queue.routes.all().iter().map(|route| queue.meter.tally(&route.job)).collect();
        let polls = queue.routes.all().iter().map(|_| Polls::default()).collect();
        let shared = queue.routes.all().iter().map(|route| Arc::new(Shared::clone(&route.shared))).collect();
        let chunk = CHUNK.min(queue.spec.slots.get().div_ceil(4));
        Self { queue, tallies, polls, shared, chunk }
    }

    /// Works until intake ends.
    pub async fn run(mut self) {
        let intake = self.queue.pool.shutdown.intake.clone();
        while !intake.is_cancelled() {
            match self.queue.take_ready(self.chunk) {
                Taken::Some(ready) => {
                    self.start(ready);
                    tokio::task::yield_now().await;
                }
                // Leaving first: a source that always has something must not keep it from being seen.
                Taken::Nothing => tokio::select! {
                    biased;
                    () = intake.cancelled() => break,
                    () = receive(&self.queue) => {}
                },
                Taken::Blocked => tokio::select! {
                    biased;
                    () = intake.cancelled() => break,
                    () = self.queue.pool.changed(|| false) => {}
                    () = tokio::time::sleep(BLOCKED_LOOK) => {}
                },
            }
        }
    }

    /// Starts deliveries that have their slots; settles those that are done at once.
    fn start(&mut self, ready: Vec<Delivery>) {
        let began = Instant::now();
        let mut chunk = Chunk {
            settlements: Vec::with_capacity(ready.len()),
            subjects: Subjects::new(&self.queue, ready.len()),
            bytes: 0,
            slots: 0,
            fresh: 0,
            retry: 0,
            instant: began,
            wall: self.queue.pool.clock.now(),
            began,
            succeeded: None,
        };
        for delivery in ready {
            if !delivery.channel.leases.may_begin(delivery.token) && !seeded::bug("lost-begins") {
                self.queue.give_back(delivery);
            } else if delivery.suspect || delivery.needs_mark {
                tokio::spawn(self.queue.pool.tasks.track_future(run_marked(self.queue.clone(), delivery)));
            } else {
                self.start_one(delivery, &mut chunk);
            }
        }
        for tally in &mut self.tallies {
            tally.flush();
        }
        for (polls, route) in self.polls.iter_mut().zip(self.queue.routes.all()) {
            polls.flush(route.first_poll());
        }
        if let Some(at) = chunk.succeeded {
            self.queue.succeeded(at);
        }
        self.queue.lanes_done(chunk.fresh, chunk.retry);
        self.queue.pool.give(self.queue.index, chunk.slots);
        if !chunk.settlements.is_empty() {
            settle::batch(&self.queue, chunk.settlements, chunk.subjects, chunk.bytes);
        }
    }

    fn start_one(&mut self, delivery: Delivery, chunk: &mut Chunk) {
        let now = chunk.now();
        let prepared = prepare(&self.queue, &delivery, now, chunk.instant, |route| &self.shared[route.index]);
        let (route, cx) = match prepared {
            Ok(prepared) => prepared,
            Err(refused) => {
                let job = self.queue.routes.default();
                let route = refused.route.as_ref().unwrap_or(job);
                let wait = delivery.ready_at().until(now);
                self.tallies[route.index].record(refused.outcome.label(), wait, Duration::ZERO);
                let Refused { outcome, event, .. } = *refused;
                let id = refused_id(event, &delivery);
                chunk.subjects.push(&delivery, &id);
                chunk.push(conclude(&self.queue, route, delivery, &outcome, &id, Duration::ZERO, now));
                return;
            }
        };
        // As late as can be: a process that was frozen meanwhile must not start what others own by now.
        let start = Instant::now();
        if self.queue.is_stale(start - chunk.began) {
            self.queue.give_back(delivery);
            return;
        }
        if route.threading == Threading::Blocking || route.first_poll().is_rude() {
            spawn(self.queue.clone(), route.clone(), delivery, cx, None, start);
            return;
        }
        let polled = Attempt::new(route, cx.clone()).and_then(Attempt::poll_once);
        let end = Instant::now();
        let took = end - start;
        self.polls[route.index].observe(route.first_poll(), took);
        match polled {
            Ok(pending) => spawn(self.queue.clone(), route.clone(), delivery, cx, Some(pending), start),
            Err(outcome) => {
                let wait = delivery.ready_at().until(now);
                self.tallies[route.index].record(outcome.label(), wait, took);
                chunk.instant = end;
                let ended = chunk.now();
                if matches!(outcome, Outcome::Done) {
                    chunk.succeeded = Some(ended);
                    say_done(&cx, took);
                }
                chunk.subjects.push(&delivery, cx.event_id());
                chunk.push(conclude(&self.queue, route, delivery, &outcome, cx.event_id(), took, ended));
            }
        }
        chunk.instant = end;
    }
}

impl Chunk {
    fn push(&mut self, settlement: Settlement) {
        self.slots += 1;
        match settlement.delivery.lane() {
            LaneName::Fresh => self.fresh += 1,
            LaneName::Retry => self.retry += 1,
        }
        self.bytes += settlement.delivery.message.size();
        self.settlements.push(settlement);
    }
}

/// A broker that was asked and has neither given nor refused anything for so long has nothing: an idle queue is
/// consuming too.
const NOTHING_FOR: Duration = Duration::from_millis(100);

/// Waits for room, then for deliveries.
async fn receive(queue: &Arc<Queue>) {
    let mut source = queue.source.lock().await;
    if queue.has_ready() {
        return;
    }
    let credit = match queue.credit() {
        Ok(credit) => credit,
        Err(why) => {
            drop(source);
            wait_for_room(queue, why).await;
            return;
        }
    };
    queue.meter.set_paused(Why::Full, false);
    let reserved = Reserved { queue, jobs: credit.jobs };
    // What arrived first: a change of the pool only shortens the wait. That the broker has nothing shows last.
    let answer = tokio::select! {
        biased;
        answer = source.receive(credit) => Some(answer),
        () = give_way(queue, credit) => None,
        () = tokio::time::sleep(NOTHING_FOR), if !queue.consuming.load(Ordering::Acquire) => {
            queue.consuming.store(true, Ordering::Release);
            None
        }
    };
    match answer {
        Some(Ok(deliveries)) => {
            queue.consuming.store(true, Ordering::Release);
            let redelivered = deliveries.iter().filter(|delivery| delivery.redelivered).count();
            if redelivered > 0 {
                queue.meter.add_redeliveries(redelivered as u64);
            }
            reserved.received(deliveries);
        }
        Some(Err(error)) => {
            drop(reserved);
            queue.consuming.store(false, Ordering::Release);
            events::ReceiveFailed { queue: queue.name(), error: &error }.emit();
            drop(source);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        None => reserved.received(Vec::new()),
    }
}

/// Slots held for a credit; dropped with the receiving (a drain, another queue's need), they go back.
struct Reserved<'a> {
    queue: &'a Arc<Queue>,
    jobs: usize,
}

impl Reserved<'_> {
    fn received(self, deliveries: Vec<Delivery>) {
        let jobs = self.jobs;
        let queue = self.queue;
        std::mem::forget(self);
        queue.received(jobs, deliveries);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.queue.received(self.jobs, Vec::new());
    }
}

/// Resolves when another queue is hungry and this one waits with more credit than its first slot, when intake is
/// paused, or when a suspect may come that this credit rules out.
async fn give_way(queue: &Arc<Queue>, credit: Credit) {
    let pool = &queue.pool;
    let must = || {
        (credit.jobs > 1 && pool.admission(|admission| admission.wanted_by_others(queue.index)))
            || (!credit.suspect && !pool.has_suspects())
            || queue.paused().is_some()
    };
    // A source that waits a moment with its credit is no idle one, and has no more than it gave: others need not make
    // room for it until it has.
    tokio::time::sleep(Duration::from_millis(5)).await;
    queue.consuming.store(true, Ordering::Release);
    pool.admission(|admission| admission.sated(queue.index));
    while !must() {
        tokio::select! {
            biased;
            () = pool.changed(must) => {}
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
        }
    }
}

/// Intake stops until there is room, and says so once it has lasted.
async fn wait_for_room(queue: &Arc<Queue>, why: Why) {
    let pool = &queue.pool;
    let room = || {
        queue.paused().is_none()
            && queue.unconfirmed() < queue.settler.unconfirmed_limit()
            && pool.admission(|admission| admission.bytes_left() > 0 && admission.available(queue.index) > 0)
    };
    let since = Instant::now();
    let mut said = false;
    // Each lane waits here; one of them speaks for the queue.
    let mut speaks = None;
    loop {
        tokio::select! {
            biased;
            () = pool.changed(room) => {}
            () = tokio::time::sleep(if said { PAUSED_LOOK } else { FULL_FOR }) => {}
        }
        if !said && since.elapsed() >= FULL_FOR {
            said = true;
            speaks = Speaks::for_queue(queue);
            if speaks.is_some() {
                queue.meter.set_paused(why, true);
                events::IntakePaused { queue: queue.name(), why }.emit();
            }
        }
        if room() {
            break;
        }
    }
    if speaks.is_some() {
        queue.meter.set_paused(why, false);
        events::IntakeResumed { queue: queue.name(), why, after: since.elapsed() }.emit();
    }
}

/// Held by the one lane that says for its queue that intake stops and goes on.
struct Speaks<'a>(&'a Queue);

impl<'a> Speaks<'a> {
    fn for_queue(queue: &'a Queue) -> Option<Self> {
        // Not made where another has it: dropping it would take it from that one.
        (!queue.full.swap(true, Ordering::AcqRel)).then(|| Self(queue))
    }
}

impl Drop for Speaks<'_> {
    fn drop(&mut self) {
        self.0.full.store(false, Ordering::Release);
    }
}

/// Why a delivery is not run.
struct Refused {
    outcome: Outcome,
    event: Option<Event>,
    route: Option<Arc<Route>>,
}

/// The id that what was refused is found by: the event's; where it cannot be read, one of where it lies, which is what
/// its publisher was told.
fn refused_id(event: Option<Event>, delivery: &Delivery) -> String {
    event.map_or_else(|| delivery.origin().event_id(), |event| event.id.to_string())
}

/// Decode and route: the context of a run, or the outcome of a delivery that must not run.
fn prepare<'a>(
    queue: &'a Queue,
    delivery: &Delivery,
    now: Timestamp,
    start: Instant,
    shared: impl FnOnce(&'a Route) -> &'a Arc<Shared>,
) -> Result<(&'a Arc<Route>, Context), Box<Refused>> {
    let origin = delivery.origin();
    let record = delivery.record.as_deref();
    if let Some(why) = &delivery.unreadable {
        let outcome = Outcome::Malformed(why.to_string());
        return Err(Box::new(Refused { outcome, event: None, route: None }));
    }
    let event = match decode(&delivery.message, &origin, record) {
        Ok(event) => event,
        Err(malformed) => {
            return Err(Box::new(Refused { outcome: Outcome::Malformed(malformed.0), event: None, route: None }));
        }
    };
    let Some(route) = queue.routes.find(record.and_then(|record| record.job.as_ref())) else {
        return Err(Box::new(Refused { outcome: Outcome::Unroutable, event: Some(event), route: None }));
    };
    let refuse = |outcome, event| Err(Box::new(Refused { outcome, event: Some(event), route: Some(route.clone()) }));
    if delivery.condemned {
        return refuse(Outcome::Crashed, event);
    }
    if event.expires.is_some_and(|expires| expires <= now) {
        return refuse(Outcome::Expired, event);
    }
    let deadline = start.checked_add(route.timeout);
    Ok((route, Context::new(event, delivery.attempt(), deadline, false, shared(route).clone())))
}

/// A run becomes a task, with its slot.
fn spawn(
    queue: Arc<Queue>,
    route: Arc<Route>,
    delivery: Delivery,
    cx: Context,
    pending: Option<Attempt>,
    start: Instant,
) {
    let tasks = queue.pool.tasks.clone();
    tokio::spawn(tasks.track_future(run(queue, route, delivery, cx, pending, start)));
}

/// Runs a delivery whose start must be stored first, and a suspect with no other suspect beside it.
async fn run_marked(queue: Arc<Queue>, delivery: Delivery) {
    let shutdown = &queue.pool.shutdown;
    let suspect = delivery.suspect;
    let alone = if suspect && !delivery.condemned {
        // Leaving first: what has not started is given back at once.
        tokio::select! {
            biased;
            () = shutdown.intake.cancelled() => None,
            alone = queue.pool.isolation.acquire() => alone.ok(),
        }
    } else {
        None
    };
    let may_run = if suspect && !delivery.condemned && alone.is_none() {
        false
    } else if delivery.condemned || !delivery.needs_mark {
        true
    } else {
        let asked = Instant::now();
        let marked = queue.settler.mark(&[&delivery]).await == [true];
        // A process that was frozen past its lease meanwhile owns it no more, and one that was told to leave meanwhile
        // starts nothing.
        marked
            && asked.elapsed() < queue.pool.lease
            && !shutdown.intake.is_cancelled()
            && delivery.channel.leases.may_begin(delivery.token)
    };
    if may_run {
        let start = Instant::now();
        let now = queue.pool.clock.now();
        match prepare(&queue, &delivery, now, start, |route| &route.shared) {
            Ok((route, cx)) => {
                if suspect {
                    events::Isolated { run: run_of(&cx) }.emit();
                }
                run(queue.clone(), route.clone(), delivery, cx, None, start).await;
            }
            Err(refused) => {
                let Refused { outcome, event, route } = *refused;
                let route = route.as_ref().unwrap_or_else(|| queue.routes.default()).clone();
                let id = refused_id(event, &delivery);
                finish(&queue, &route, delivery, &outcome, &id, start, now).await;
            }
        }
    } else {
        queue.give_back(delivery);
        return;
    }
    drop(alone);
    if suspect {
        queue.suspect_done();
    }
}

/// Drives one attempt to its outcome and settles it.
#[expect(clippy::manual_async_fn, reason = "ten thousand wait in it: what an async fn takes by value lies there twice")]
fn run(
    queue: Arc<Queue>,
    route: Arc<Route>,
    delivery: Delivery,
    cx: Context,
    pending: Option<Attempt>,
    start: Instant,
) -> impl Future<Output = ()> + Send {
    async move {
        let now = queue.pool.clock.now();
        #[cfg(feature = "seeded-bugs")]
        if let Some(disposition) = super::bent::before_run() {
            return super::bent::run(&queue, &route, delivery, cx, pending, disposition).await;
        }
        let outcome = {
            // A suspect has just been marked, and its caller counts it.
            if pending.is_none() && !delivery.suspect && queue.is_stale(start.elapsed()) {
                return queue.give_back(delivery);
            }
            let attempt = match pending {
                Some(pending) => Ok(pending),
                None if route.threading == Threading::Blocking => Attempt::new(&route, cx.clone()),
                None => {
                    let polling = Instant::now();
                    let polled = Attempt::new(&route, cx.clone()).and_then(Attempt::poll_once);
                    route.first_poll().observe(polling.elapsed());
                    polled
                }
            };
            match attempt {
                Ok(attempt) => execute::drive(&queue, &route, attempt, &cx, start, || delivery.lost()).await,
                Err(outcome) => outcome,
            }
        };
        if matches!(outcome, Outcome::Done) {
            queue.succeeded(queue.pool.clock.now());
            say_done(&cx, start.elapsed());
        }
        finish(&queue, &route, delivery, &outcome, cx.event_id(), start, now).await;
    }
}

fn say_done(cx: &Context, took: Duration) {
    if !events::done_enabled() {
        return;
    }
    events::Done { run: run_of(cx), took }.emit();
}

/// What a log line says of an attempt.
fn run_of(cx: &Context) -> events::Run<'_> {
    let trace_id = cx.event().headers.get_str_ignore_case(TRACEPARENT).and_then(events::trace_id);
    events::Run { queue: cx.queue(), job: cx.job(), event_id: cx.event_id(), attempt: cx.attempt(), trace_id }
}

/// The handler has ended: its slot is free, then its outcome is settled. What is returned awaits the confirmation.
fn finish(
    queue: &Arc<Queue>,
    route: &Route,
    delivery: Delivery,
    outcome: &Outcome,
    event_id: &str,
    start: Instant,
    started: Timestamp,
) -> impl Future<Output = ()> + Send + use<> {
    let wait = delivery.ready_at().until(started);
    let mut tally = queue.meter.tally(&route.job);
    let took = start.elapsed();
    tally.record(outcome.label(), wait, took);
    drop(tally);
    let bytes = delivery.message.size();
    queue.lane_done(delivery.lane());
    queue.pool.give(queue.index, if seeded::bug("slot-not-returned") { 0 } else { 1 });
    let settlement = conclude(queue, route, delivery, outcome, event_id, took, queue.pool.clock.now());
    settle::one(queue, settlement, event_id, bytes)
}

/// Decide: from what happened to what is to be done.
fn conclude(
    queue: &Queue,
    route: &Route,
    delivery: Delivery,
    outcome: &Outcome,
    event_id: &str,
    took: Duration,
    now: Timestamp,
) -> Settlement {
    if matches!(outcome, Outcome::Done) {
        let disposition = Disposition::Ack;
        #[cfg(feature = "seeded-bugs")]
        let disposition = super::bent::success(disposition);
        return delivery.settle(disposition);
    }
    let record = delivery.record.as_deref();
    let named = record.and_then(|record| record.job.as_ref());
    let facts = Facts {
        attempt: delivery.attempt(),
        policy: &route.policy,
        now,
        jitter: fastrand::f64(),
        first_failure: record.and_then(|record| record.failure.as_ref()).map(|failure| failure.first),
        unroutable_since: record.and_then(|record| record.unroutable_since),
        unroutable_after: queue.unroutable_after,
        event_id: Some(event_id),
        job: match outcome {
            Outcome::Unroutable => named.unwrap_or(&route.job),
            _ => &route.job,
        },
    };
    let disposition = retry::decide(outcome, &facts);
    #[cfg(feature = "seeded-bugs")]
    let disposition = super::bent::disposition(disposition, outcome, &facts, queue, route, &delivery);
    events::Concluded {
        queue: queue.name(),
        job: facts.job,
        event_id,
        attempt: facts.attempt.get(),
        outcome: outcome.label(),
        took,
        trace_id: delivery.message.headers.get_str_ignore_case(TRACEPARENT).and_then(events::trace_id),
        disposition: &disposition,
    }
    .emit();
    delivery.settle(disposition)
}
