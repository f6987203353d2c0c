//! NATS JetStream: `nats://`, `nats+tls://`, `tls://`.
//!
//! A queue is a durable pull consumer on each stream that stores one of its topics, and one more on the stream of
//! our own records (retries, enqueued jobs). The client's own pull streams are not used: what is asked for, what is
//! acknowledged, and what a reply proves is kept in state machines without I/O ([`credit`], [`confirm`], [`held`]),
//! and [`pump`], a task of the I/O runtime, is the only one that acts for a queue.
//!
//! What a server cannot promise is said where it is found: below 2.12 nothing is scheduled by the server, so what
//! waits for its time is given back with a delay; below 2.10.4 the server is refused.

pub(super) mod address;
pub(super) mod api;
mod bundle;
mod confirm;
mod context;
mod credit;
mod doctor;
mod held;
mod inspect;
mod letters;
mod link;
mod mark;
mod moves;
mod names;
mod order;
mod owner;
mod part;
mod prepare;
mod publisher;
mod pump;
mod shared;
#[cfg(test)]
mod sim;
mod topology;
mod unreadable;
pub(super) mod wire;
mod yardstick;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::address::Address;
use self::api::Api;
use self::context::Context;
use self::inspect::NatsInspect;
use self::letters::NatsLetters;
use self::link::Link;
use self::names::Names;
use self::publisher::NatsPublisher;
use self::pump::Pump;
use self::shared::{NatsSource, Shared};
use self::topology::{Features, Topology};
use super::{Broker, DeadLetters, Error, Inspect, Opened, Options, Publisher, Queue, Role};
use crate::message::{QueueName, Topic};

/// The oldest server that keeps what it confirms: older ones lose jobs of full work queues silently
/// (nats-server#4771), and ignore the reason of a `+TERM`.
const OLDEST: (u64, u64, u64) = (2, 10, 4);
/// What a close waits for pull requests to end and settlements to be confirmed.
const CLOSE: Duration = Duration::from_millis(2_600);

/// What all parts of the adapter share.
struct Inner {
    address: String,
    options: Options,
    names: Names,
    link: Arc<Link>,
    api: Api,
    covered: Mutex<HashSet<Topic>>,
    work: Mutex<Option<Features>>,
    /// The sequence of this worker's presence record; locked while it is written, so that none is written after the
    /// last was withdrawn.
    presence: tokio::sync::Mutex<Option<u64>>,
    instance: Arc<str>,
    closed: CancellationToken,
    tasks: TaskTracker,
}

/// A connection to JetStream.
struct Nats(Arc<Inner>);

/// The raw loops beside which a worker is measured.
pub(super) async fn yardstick(address: &str, options: &Options) -> Result<yardstick::NatsYardstick, Error> {
    yardstick::NatsYardstick::connect(address, options).await
}

/// What connecting would refuse before it asks a server.
pub fn check(address: &str, options: &Options) -> Result<(), Error> {
    link::check(&Address::parse(address)?, options)
}

/// Connects, and refuses a server that would lose jobs.
pub async fn connect(address: &str, options: Options) -> Result<Arc<dyn Broker>, Error> {
    let parsed = Address::parse(address)?;
    let shown = crate::broker::shown_address(address);
    if !parsed.is_loopback() && !options.namespace_set {
        return Err(Error::Refused(format!(
            "{shown} may be shared with others, and no namespace is set: set namespace = \"..\", which begins the name of \
             everything that windlass creates there"
        )));
    }
    let link = Link::connect(&parsed, &shown, &options).await?;
    let info = link.client().server_info();
    let version = parse_version(&info.version);
    if version.is_none_or(|version| version < OLDEST) {
        link.close().await;
        return Err(Error::Refused(format!(
            "nats-server {} at {shown} loses jobs; 2.10.4 or newer is needed, 2.12.5 or newer is recommended",
            info.version
        )));
    }
    let api = Api { link: link.clone() };
    if let Err(error) = api.call("INFO", &serde_json::Value::Null).await {
        let error = match &error {
            api::Error::Request(link::RequestError::NoResponders(_)) if !info.jetstream => Error::Refused(format!(
                "JetStream is not enabled at {shown}; enable it in the server's configuration (jetstream {{}})"
            )),
            _ => error.into_broker("reach JetStream"),
        };
        link.close().await;
        return Err(error);
    }
    let names = Names { namespace: options.namespace.clone() };
    Ok(Arc::new(Nats(Arc::new(Inner {
        address: shown,
        options,
        names,
        link,
        api,
        covered: Mutex::default(),
        work: Mutex::default(),
        presence: tokio::sync::Mutex::default(),
        instance: uuid::Uuid::now_v7().to_string().into(),
        closed: CancellationToken::new(),
        tasks: TaskTracker::new(),
    }))))
}

/// `2.15.2`, `2.12.0-RC.1`.
fn parse_version(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.split(['.', '-', '+']).map(str::parse::<u64>);
    Some((parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?))
}

impl Inner {
    fn topology(&self) -> Topology<'_> {
        let create = match self.options.role {
            Role::Worker | Role::Producer => !self.options.nats.no_create,
            Role::Reader => false,
        };
        Topology { api: &self.api, names: &self.names, options: &self.options.nats, create }
    }

    /// Likewise, for a verb that writes where workers would have written.
    fn topology_as_producer(&self) -> Topology<'_> {
        let create = !self.options.nats.no_create;
        Topology { api: &self.api, names: &self.names, options: &self.options.nats, create }
    }

    /// What the stream of work can do; made where it is missing and may be made.
    async fn work(&self) -> Result<Features, Error> {
        if let Some(features) = *self.work.lock() {
            return Ok(features);
        }
        let (_, features) = self.topology().work().await?;
        *self.work.lock() = Some(features);
        Ok(features)
    }

    /// Whether a queue is known here or there; what the stream of work can do.
    async fn known_queue(&self, queue: &QueueName) -> Result<Features, Error> {
        let configured = self.options.queues.iter().any(|known| known.name == *queue);
        if !configured {
            let doing = format!("look for the queue {queue}");
            let durable = self.names.durable(queue);
            let found = self.api.consumer(&self.names.work(), &durable).await.map_err(|e| e.into_broker(&doing))?;
            if found.is_none() {
                return Err(Error::NotFound(format!("no queue {queue} is known, here or at {}", self.address)));
            }
        }
        self.work().await
    }

    async fn open(self: &Arc<Self>, queue: &Queue) -> Result<Opened, Error> {
        let topology = self.topology();
        let mut notes = Vec::new();
        let (work, features) = topology.work().await?;
        *self.work.lock() = Some(features);
        if queue.ordered && !(features.schedules && features.ttl) {
            return Err(Error::Refused(format!(
                "queue {}: order = \"key\" needs a NATS server that schedules messages (2.12 or newer), and this one does \
                 not; use order = \"none\", or a newer server",
                queue.name
            )));
        }
        topology.dead().await?;
        let lease = self.options.lease;
        let fresh = topology.subscribe(queue, lease, &mut notes).await?;
        let filter = [self.names.record(&queue.name, "run", ">")];
        let records = topology.durable(&work, queue, &filter, lease, &mut notes).await?;
        if !features.schedules {
            notes.push(
                "the NATS server has no schedules (2.12 and later have): jobs that wait for their time are given back with a \
                 delay, which is sound up to about 100,000 of them"
                    .to_owned(),
            );
        }
        let created = fresh.iter().chain([&records]).map(|s| (s.stream.clone(), s.created)).collect();
        let context = Arc::new(Context {
            link: self.link.clone(),
            api: self.api.clone(),
            names: self.names.clone(),
            queue: queue.clone(),
            lease,
            features,
            created,
            clock: self.options.clock.clone(),
            worker: self.options.worker.clone(),
            instance: self.instance.clone(),
            closed: self.closed.clone(),
        });
        if queue.ordered {
            notes.push(
                "order = \"key\": one worker at a time reads this queue; another one takes over when it leaves"
                    .to_owned(),
            );
        }
        let (shared, commands) = Shared::new(confirm::SINGLES, self.link.clone());
        let ownership = queue.ordered.then(|| {
            let (sender, until) = tokio::sync::watch::channel(None);
            let leave = self.closed.child_token();
            self.tasks.spawn(owner::hold(context.clone(), sender, leave.clone()));
            (until, leave)
        });
        let pump = Pump::new(context, shared.clone(), commands, fresh, records, ownership, self.closed.clone());
        self.tasks.spawn(pump.run());
        Ok(Opened { source: Box::new(NatsSource(shared.clone())), settler: shared, notes })
    }
}

impl Broker for Nats {
    fn address(&self) -> &str {
        &self.0.address
    }

    fn connected(&self) -> bool {
        self.0.link.connected()
    }

    fn open<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<Opened, Error>> {
        Box::pin(self.0.open(queue))
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(NatsPublisher(self.0.clone()))
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(NatsLetters(self.0.clone()))
    }

    fn inspect(&self) -> Arc<dyn Inspect> {
        Arc::new(NatsInspect(self.0.clone()))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.0.closed.cancel();
            self.0.tasks.close();
            if tokio::time::timeout(CLOSE, self.0.tasks.wait()).await.is_err() {
                tracing::warn!("closing before everything was confirmed; what was not comes again");
            }
            let withdraw = async {
                if let Some(seq) = self.0.presence.lock().await.take() {
                    // It ends with its lease where it cannot be withdrawn.
                    let _ = self.0.api.delete(&self.0.names.work(), seq).await;
                }
            };
            let _ = tokio::time::timeout(Duration::from_millis(300), withdraw).await;
            // A round trip: what was given back before it has reached the server. Where it fails, leases do it.
            let _ = self.0.link.request("$JS.API.INFO", None, bytes::Bytes::new(), Duration::from_millis(300)).await;
            self.0.link.close().await;
        })
    }
}
