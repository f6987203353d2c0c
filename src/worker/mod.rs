//! The worker: receive -> decode -> admit -> execute -> decide -> settle.
//!
//! [`Worker::run`] is the story of a process; `lane` is the story of a delivery. The rest are its parts, one idea a
//! file: who gets a slot (`admission`), what is in hand (`pool`), what runs it (`route`), one attempt (`execute`),
//! what happened ([`outcome`]), what follows ([`retry`]), carrying it out (`settle`).
//!
//! Invariants: a delivery is started only with a slot; nothing is settled before its handler has ended; a slot is
//! given back exactly once, when the handler has ended; a broker is never named here.

mod admission;
#[cfg(feature = "seeded-bugs")]
mod bent;
mod execute;
pub mod handle;
mod lane;
pub mod outcome;
mod pool;
mod presence;
pub mod retry;
mod route;
mod running;
mod settle;
#[cfg(test)]
mod tests;
mod watch;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use admission::Admission;
use handle::{Control, QueueState, Running};
use pool::{Pool, Queue};
pub use route::{Route, Routes};

use crate::broker::{self, Broker, Opened};
use crate::message::QueueName;
use crate::seeded;
use crate::shutdown::Shutdown;
use crate::telemetry::events;
use crate::telemetry::meter::{QueueMeter, Why};
use crate::time::Clock;

/// From the end of the grace to leaving whatever still runs.
const LEAVE_WITHIN: Duration = Duration::from_millis(1_800);
/// What a second signal leaves for giving back.
const FORCED_WITHIN: Duration = Duration::from_millis(60);
/// What is left for a last word to the broker that is on its way already.
const SIGN_OFF: Duration = Duration::from_millis(100);

/// What a worker needs to know; see INTERFACE 2 `[worker]`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Jobs running at once, over all queues.
    pub slots: NonZeroUsize,
    /// Bytes of payload in flight.
    pub bytes_in_flight: usize,
    /// What running jobs get when leaving.
    pub grace: Duration,
    /// A third of it is how often presence is renewed.
    pub lease: Duration,
    /// Tasks of a queue that receive, start and settle; `None`: one for each core. No queue has more than slots.
    pub lanes: Option<NonZeroUsize>,
}

/// A queue to be worked.
pub struct QueueConfig {
    /// As the broker knows it.
    pub spec: broker::Queue,
    /// Its share when queues compete.
    pub weight: usize,
    /// So long a job that nobody registered here is put back.
    pub unroutable_after: Duration,
    /// What it can run.
    pub routes: Routes,
    /// As the broker opened it.
    pub opened: Opened,
}

/// A worker, ready to run. Cheap to clone: a clone asks about the same worker.
#[derive(Clone)]
pub struct Worker {
    config: Config,
    pool: Arc<Pool>,
    queues: Arc<[Arc<Queue>]>,
}

impl Worker {
    /// Puts opened queues on a pool of slots.
    pub fn new(config: Config, queues: Vec<QueueConfig>, shutdown: Shutdown, clock: Clock) -> Self {
        let more = NonZeroUsize::new(if seeded::bug("slots-over") { 2 } else { 1 }).expect("neither is 0");
        let slots = |slots: NonZeroUsize| slots.saturating_mul(more);
        let shares: Vec<_> = queues.iter().map(|queue| (slots(queue.spec.slots), queue.weight)).collect();
        let pool = Pool::new(
            Admission::new(slots(config.slots), config.bytes_in_flight, &shares),
            shutdown,
            clock,
            config.lease,
        );
        let queues = queues.into_iter().enumerate().map(|(index, queue)| {
            let jobs: Vec<_> = queue.routes.all().iter().map(|route| route.job.clone()).collect();
            let meter = QueueMeter::new(&queue.spec.name, &queue.spec.job, &jobs);
            for note in &queue.opened.notes {
                events::QueueOpened { queue: &queue.spec.name, note }.emit();
            }
            let opened = (queue.opened.source, queue.opened.settler);
            Queue::new(index, queue.spec, queue.routes, queue.unroutable_after, opened, meter, pool.clone())
        });
        let queues = queues.collect();
        Self { config, pool, queues }
    }

    /// Works until the shutdown's intake token is cancelled, then drains. `io` is the runtime of broker I/O.
    pub async fn run(&self, broker: Arc<dyn Broker>, io: &tokio::runtime::Handle) {
        let left = CancellationToken::new();
        let mut presence = io.spawn(presence::run(self.clone(), broker.inspect(), left.clone()));
        let watch = io.spawn(watch::run(self.clone(), broker));
        let mut lanes = tokio::task::JoinSet::new();
        let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let most = self.config.lanes.unwrap_or_else(cores);
        for queue in self.queues.iter() {
            for _ in 0..most.min(queue.spec.slots).get() {
                lanes.spawn(tokio::task::unconstrained(lane::Lane::new(queue.clone()).run()));
            }
        }
        while let Some(ended) = lanes.join_next().await {
            // A lane never panics for a handler's sake; if it does for ours, the worker must not go on half deaf.
            if let Err(error) = ended
                && let Ok(panic) = error.try_into_panic()
            {
                std::panic::resume_unwind(panic);
            }
        }
        self.drain().await;
        left.cancel();
        if tokio::time::timeout(SIGN_OFF, &mut presence).await.is_err() {
            presence.abort();
        }
        watch.abort();
    }

    /// Intake has ended: gives back what was not started, lets what runs finish within the grace, cancels and gives
    /// back the rest.
    async fn drain(&self) {
        let shutdown = &self.pool.shutdown;
        let running: usize = self.queues.iter().map(|queue| self.pool.admission(|a| a.used(queue.index))).sum();
        events::DrainStarted { running, grace: self.config.grace }.emit();
        let began = tokio::time::Instant::now();
        futures_util::future::join_all(self.queues.iter().map(|queue| async {
            queue.release_ready();
            queue.source.lock().await.stop().await;
        }))
        .await;
        self.pool.tasks.close();
        // Done first: where all has ended there is nothing left to cancel.
        tokio::select! {
            biased;
            () = self.pool.tasks.wait() => {}
            () = shutdown.now.cancelled() => {}
            () = shutdown.work.cancelled() => {}
            () = tokio::time::sleep(self.config.grace) => {}
        }
        shutdown.work.cancel();
        let left = if shutdown.now.is_cancelled() { FORCED_WITHIN } else { LEAVE_WITHIN };
        // As above; then the second signal, which shortens the wait.
        tokio::select! {
            biased;
            () = self.pool.tasks.wait() => {}
            () = async { shutdown.now.cancelled().await; tokio::time::sleep(FORCED_WITHIN).await } => {}
            () = tokio::time::sleep(left) => {}
        }
        shutdown.abandoned.cancel();
        // What was abandoned still has to be given back: an instant, its settlement is one message.
        let abandoned = self.pool.tasks.len();
        if tokio::time::timeout(FORCED_WITHIN, self.pool.tasks.wait()).await.is_err() {
            events::Abandoned { count: abandoned }.emit();
        }
        events::DrainFinished { took: began.elapsed() }.emit();
    }

    /// Done, retried, dead since the start.
    pub fn counts(&self) -> (u64, u64, u64) {
        self.queues.iter().fold((0, 0, 0), |(done, retried, dead), queue| {
            (
                done + queue.counts.done.load(Ordering::Relaxed),
                retried + queue.counts.retried.load(Ordering::Relaxed),
                dead + queue.counts.dead.load(Ordering::Relaxed),
            )
        })
    }

    /// Nothing in hand, running or unconfirmed.
    pub fn is_idle(&self) -> bool {
        self.queues.iter().all(|queue| queue.unconfirmed() == 0 && !queue.has_ready()) && self.pool.tasks.is_empty()
    }

    fn queue(&self, name: &str) -> Option<&Arc<Queue>> {
        self.queues.iter().find(|queue| queue.name().as_str() == name)
    }

    fn presence(&self) -> Vec<(QueueName, usize)> {
        self.queues.iter().map(|queue| (queue.name().clone(), self.pool.admission(|a| a.limit(queue.index)))).collect()
    }
}

impl Control for Worker {
    fn queues(&self) -> Vec<QueueState> {
        let state = |queue: &Arc<Queue>| {
            let mut paused: Vec<Why> = queue.paused().into_iter().collect();
            let trouble = queue.settler.trouble();
            if trouble == Some(broker::Trouble::Order) {
                paused.push(Why::Order);
            }
            let (used, limit, bytes) =
                self.pool.admission(|a| (a.used(queue.index), a.limit(queue.index), a.bytes_left()));
            let in_flight = queue.running.len();
            if bytes == 0 {
                paused.push(Why::Bytes);
            } else if used >= limit && in_flight >= limit {
                paused.push(Why::Full);
            }
            QueueState {
                name: queue.name().clone(),
                slots: limit,
                in_flight,
                bytes_in_flight: queue.bytes(),
                unconfirmed: queue.unconfirmed(),
                paused,
                consuming: queue.consuming.load(Ordering::Acquire),
                trouble: trouble.map(|trouble| match trouble {
                    broker::Trouble::DeadLetter(what) | broker::Trouble::Broker(what) => what,
                    broker::Trouble::Rebalance => "partitions are moving".to_owned(),
                    broker::Trouble::Order => match queue.settler.head() {
                        Some(head) => format!("waits for {} to end; behind it were read {}", head.place, head.span),
                        None => "what was read ahead waits for its keys".to_owned(),
                    },
                }),
                last_success: queue.last_success(),
            }
        };
        self.queues.iter().map(state).collect()
    }

    fn running(&self) -> Vec<Running> {
        let mut running: Vec<Running> = self.queues.iter().flat_map(|queue| queue.running.list()).collect();
        running.sort_by(|a, b| b.for_s.total_cmp(&a.for_s));
        running
    }

    fn pause(&self, queue: &str, lasting: Option<Duration>) -> bool {
        let queue = self.queue(queue);
        queue.map(|queue| queue.pause(lasting)).is_some()
    }

    fn resume(&self, queue: &str) -> bool {
        let queue = self.queue(queue);
        queue.map(|queue| queue.resume()).is_some()
    }

    fn set_slots(&self, queue: &str, slots: NonZeroUsize) -> bool {
        let Some(queue) = self.queue(queue) else { return false };
        let slots = slots.min(self.config.slots);
        self.pool.admission(|admission| admission.set_limit(queue.index, slots));
        queue.meter.set_slots(slots.get());
        self.pool.wake();
        true
    }
}
