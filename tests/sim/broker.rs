//! The simulated broker as one worker sees it: the traits of `windlass::broker` over the [`World`](super::world).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use windlass::broker::{
    Broker, Channel, Credit, DeadLetters, Delivery, Destination, Error, Finding, Inspect, KnownQueue, Lane, Leases,
    Letter, LetterQuery, Lost, Mend, Opened, Publication, Published, Publisher, Queue, QueueStatus, ReplayGuard,
    Settled, Settlement, Settler, Source, Token, Trouble,
};
use windlass::message::{Binding, Place, QueueName};

use super::site::QUEUES;
use super::world::{Given, Take, World};

/// By the queue and what tells its lanes apart.
type Channels = HashMap<(usize, bool, bool), Arc<Channel>>;

/// One worker's connection.
#[derive(Clone)]
pub struct Connection {
    seat: Seat,
    channels: Arc<Mutex<Channels>>,
}

/// Where a worker meets the world.
#[derive(Clone)]
struct Seat {
    world: Arc<Mutex<World>>,
    worker: usize,
    /// The moment of the schedule at which the worker's clock read `since`.
    born: u64,
    since: Instant,
}

impl Seat {
    fn now(&self) -> u64 {
        self.born + self.since.elapsed().as_millis() as u64
    }
}

impl Connection {
    /// A connection of a worker that starts at `born`; within its runtime.
    pub fn new(world: Arc<Mutex<World>>, worker: usize, born: u64) -> Self {
        Self { seat: Seat { world, worker, born, since: Instant::now() }, channels: Arc::default() }
    }

    /// The worker.
    pub fn worker(&self) -> usize {
        self.seat.worker
    }

    /// Now, by this worker's clock.
    pub fn now(&self) -> u64 {
        self.seat.now()
    }

    /// The world.
    pub fn world<R>(&self, look: impl FnOnce(&mut World) -> R) -> R {
        look(&mut self.seat.world.lock())
    }

    fn channel(&self, queue: usize, given: &Given) -> Arc<Channel> {
        let retry = given.lane == Lane::Retry;
        let make = || {
            let topic = if queue < 2 { "t" } else { "u" };
            let place = Place {
                position: format!("sim:{}", QUEUES[queue]),
                source: format!("sim://{}", QUEUES[queue]),
                topic: given.by_topic.then(|| topic.into()),
                binding: Binding::Dash,
            };
            Arc::new(Channel { lane: given.lane, place: Arc::new(place), leases: Arc::new(self.seat.clone()) })
        };
        self.channels.lock().entry((queue, retry, given.by_topic)).or_insert_with(make).clone()
    }

    fn deliver(&self, queue: usize, given: Given) -> Delivery {
        let channel = self.channel(queue, &given);
        let token = Token(given.entry as u64, given.token);
        let mut delivery = Delivery::new(given.message, channel, given.entry as u64, given.at, token);
        delivery.record = given.record.map(Box::new);
        delivery.redelivered = given.redelivered;
        delivery.suspect = given.suspect;
        delivery.condemned = given.condemned;
        delivery.needs_mark = given.needs_mark;
        delivery
    }
}

impl Leases for Seat {
    fn release(&self, token: Token) {
        let now = self.now();
        self.world.lock().release(now, self.worker, token.0 as usize, token.1);
    }

    fn may_begin(&self, token: Token) -> bool {
        !self.lost(token).is_cancelled()
    }

    fn lost(&self, token: Token) -> Lost {
        self.world.lock().lost(self.worker, token.0 as usize, token.1)
    }
}

impl Broker for Connection {
    fn address(&self) -> &str {
        "sim://"
    }

    fn connected(&self) -> bool {
        let now = self.now();
        self.world(|world| world.reaches(now, self.seat.worker).is_ok())
    }

    fn open<'a>(&'a self, spec: &'a Queue) -> BoxFuture<'a, Result<Opened, Error>> {
        let index = QUEUES.iter().position(|name| *name == spec.name.as_str());
        let Some(queue) = index else { return ready(Err(Error::NotFound("no such queue".to_owned()))).boxed() };
        self.world(|world| world.ordered |= spec.ordered);
        let side = Side { connection: self.clone(), queue, stopped: false };
        let settler = Arc::new(side.clone());
        ready(Ok(Opened { source: Box::new(side), settler, notes: Vec::new() })).boxed()
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(self.clone())
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(self.clone())
    }

    fn inspect(&self) -> Arc<dyn Inspect> {
        Arc::new(self.clone())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

/// One queue of one worker.
#[derive(Clone)]
struct Side {
    connection: Connection,
    queue: usize,
    stopped: bool,
}

impl Source for Side {
    fn receive(&mut self, credit: Credit) -> BoxFuture<'_, Result<Vec<Delivery>, Error>> {
        assert!(!self.stopped, "nothing is received after the stop");
        async move {
            let connection = &self.connection;
            let worker = connection.worker();
            let wake = connection.world(|world| world.workers[worker].wake[self.queue].clone());
            let mut again = false;
            loop {
                let now = connection.now();
                let until = match connection.world(|world| world.take(now, worker, self.queue, credit, again)) {
                    Take::Some(given) => {
                        return Ok(given.into_iter().map(|given| connection.deliver(self.queue, given)).collect());
                    }
                    Take::Error => return Err(Error::Unavailable("as drawn".to_owned())),
                    Take::Empty => return Ok(Vec::new()),
                    Take::Dead => std::future::pending().await,
                    Take::Nothing(until) => until,
                };
                again = true;
                let wait = until.map_or(Duration::from_secs(3_600), |until| {
                    Duration::from_millis(until.saturating_sub(now).max(1))
                });
                tokio::select! {
                    biased;
                    () = wake.notified() => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
        .boxed()
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        self.stopped = true;
        ready(()).boxed()
    }
}

impl Settler for Side {
    fn settle(&self, batch: Vec<Settlement>) -> BoxFuture<'static, Vec<Settled>> {
        let now = self.connection.now();
        let worker = self.connection.worker();
        let answers: Vec<_> = batch
            .into_iter()
            .map(|settlement| {
                let (delivery, disposition) = settlement.take();
                let (answer, answered) = oneshot::channel();
                let (entry, token) = (delivery.token.0 as usize, delivery.token.1);
                self.connection.world(|world| world.settle(now, worker, entry, token, disposition, answer));
                answered
            })
            .collect();
        async move {
            let mut settled = Vec::with_capacity(answers.len());
            for answer in answers {
                match answer.await {
                    Ok(answer) => settled.push(answer),
                    // The process is dead.
                    Err(_) => std::future::pending().await,
                }
            }
            settled
        }
        .boxed()
    }

    fn mark<'a>(&'a self, starting: &'a [&'a Delivery]) -> BoxFuture<'a, Vec<bool>> {
        async move {
            let connection = &self.connection;
            let worker = connection.worker();
            let delay = connection.world(|world| world.chance.millis(0..4));
            tokio::time::sleep(Duration::from_millis(delay)).await;
            while let Err(until) = connection.world(|world| world.reaches(connection.now(), worker)) {
                tokio::time::sleep(Duration::from_millis(until.saturating_sub(connection.now()).max(1))).await;
            }
            let now = connection.now();
            let mark = |delivery: &&Delivery| {
                connection.world(|world| world.mark(now, worker, delivery.token.0 as usize, delivery.token.1))
            };
            let marked = starting.iter().map(mark).collect();
            if connection.world(|world| world.workers[worker].dead) {
                std::future::pending::<()>().await;
            }
            marked
        }
        .boxed()
    }

    fn unconfirmed_limit(&self) -> usize {
        self.connection.world(|world| world.shape().unconfirmed)
    }

    fn trouble(&self) -> Option<Trouble> {
        let now = self.connection.now();
        self.connection.world(|world| world.trouble(now, self.connection.worker(), self.queue))
    }
}

impl Publisher for Connection {
    fn binding(&self) -> Binding {
        Binding::Dash
    }

    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Published, Error>>> {
        let now = self.now();
        let publish = |publication: Publication| {
            let body = publication.message.body.clone().unwrap_or_default();
            let number = super::job::number(&body).unwrap_or(0);
            self.world(|world| match publication.destination {
                Destination::Queue { queue, .. } => {
                    let Some(queue) = QUEUES.iter().position(|name| *name == queue.as_str()) else { return };
                    world.add(now, number, queue, publication.message, Some(Default::default()), false);
                }
                Destination::Topic(_) => {
                    for queue in 0..world.shape().queues {
                        world.add(now, number, queue, publication.message.clone(), None, true);
                    }
                }
            });
            Ok(Published { queues: None, id: None })
        };
        ready(batch.into_iter().map(publish).collect()).boxed()
    }
}

impl Inspect for Connection {
    fn status<'a>(&'a self, _: &'a [QueueName]) -> BoxFuture<'a, Result<Vec<QueueStatus>, Error>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<KnownQueue>, Error>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn forget<'a>(&'a self, _: &'a QueueName, _: bool) -> BoxFuture<'a, Result<u64, Error>> {
        ready(Ok(0)).boxed()
    }

    fn doctor(&self) -> BoxFuture<'_, Result<Vec<Finding>, Error>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn present<'a>(&'a self, _: &'a [(QueueName, usize)]) -> BoxFuture<'a, Result<(), Error>> {
        let fails = self.world(|world| world.chance.misbehaves(1) == 1);
        ready(if fails { Err(Error::Unavailable("as drawn".to_owned())) } else { Ok(()) }).boxed()
    }

    fn expire_dead(&self) -> BoxFuture<'_, Result<Vec<(QueueName, u64)>, Error>> {
        ready(Ok(Vec::new())).boxed()
    }
}

/// No worker asks for these.
impl DeadLetters for Connection {
    fn list(&self, _: LetterQuery) -> BoxStream<'_, Result<Letter, Error>> {
        stream::empty().boxed()
    }

    fn begin_replay<'a>(&'a self, _: &'a QueueName) -> BoxFuture<'a, Result<ReplayGuard, Error>> {
        ready(Err(Error::Usage("simulated".to_owned()))).boxed()
    }

    fn replay<'a>(&'a self, _: &'a [Letter], _: &'a Mend) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        ready(Vec::new()).boxed()
    }

    fn purge<'a>(&'a self, _: &'a [Letter]) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        ready(Vec::new()).boxed()
    }

    fn import<'a>(&'a self, _: &'a [Letter]) -> BoxFuture<'a, Vec<Result<(), Error>>> {
        ready(Vec::new()).boxed()
    }
}
