//! What every task of an open queue needs: the connection, the names, and how records of ours are stored.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::api::{Api, Error, PubAck, Stored};
use super::letters;
use super::link::Link;
use super::names::{self, Names};
use super::part;
use super::topology::Features;
use super::wire::{self, header};
use crate::broker::{Delivery, Lane, Queue};
use crate::message::headers::Builder;
use crate::message::record::{self, Dead, Record};
use crate::message::{Binding, Failure, Headers, Message, Origin, Reason};
use crate::time::{Clock, Timestamp};

/// Retries sooner than this are stored as due at once and put off by whoever receives them: a schedule is late by up
/// to a quarter of a second, and costs a message more.
const SHORT: Duration = Duration::from_secs(3);

/// See the module.
pub struct Context {
    /// The connection.
    pub link: Arc<Link>,
    /// JetStream.
    pub api: Api,
    /// Our names.
    pub names: Names,
    /// The queue.
    pub queue: Queue,
    /// `worker.lease`
    pub lease: Duration,
    /// What the stream of work can do.
    pub features: Features,
    /// When the streams that this queue reads were made, by name.
    pub created: Vec<(String, Timestamp)>,
    /// The wall clock.
    pub clock: Clock,
    /// This process, as people call it.
    pub worker: Arc<str>,
    /// This process, told from every other that was ever called so.
    pub instance: Arc<str>,
    /// This process leaves.
    pub closed: CancellationToken,
}

/// A record to be stored in the stream of work.
pub struct Draft<'a> {
    /// What it says.
    pub record: &'a Record,
    /// The original.
    pub original: &'a Message,
    /// See [`names::key`].
    pub key: &'a str,
    /// How many records came before it.
    pub hop: u64,
    /// The acknowledgement subject of what it replaces.
    pub replaces: Option<&'a str>,
}

impl Context {
    /// Stores a record of this queue until `deadline`; a record that is stored already counts.
    pub async fn store(&self, draft: &Draft<'_>, deadline: Instant) -> Result<(), Error> {
        let queue = &self.queue.name;
        let record = draft.record;
        let id = format!("{queue}:{}:{}:{}", draft.key, record.attempt, draft.hop);
        let mut headers = wire::headers_out(&record::write(&draft.original.headers, record, None, Binding::Dash))
            .map_err(Error::Answer)?;
        headers.insert(header::MESSAGE_ID, id.as_str());
        headers.insert(header::HOP, draft.hop.to_string().as_str());
        if let Some(replaces) = draft.replaces {
            headers.insert(header::REPLACES, replaces);
        }
        let run = self.names.record(queue, "run", draft.key);
        let wait = record.not_before.map_or(Duration::ZERO, |due| self.clock.now().until(due));
        let subject = if self.features.schedules && wait > SHORT {
            let due = record.not_before.unwrap_or_default();
            headers.insert(header::SCHEDULE, format!("@at {}", due.to_rfc3339()).as_str());
            headers.insert(header::TARGET, run.as_str());
            self.names.record(queue, "wait", draft.key)
        } else {
            run
        };
        let body = draft.original.body.clone().unwrap_or_default();
        let tail = self.names.record(queue, "part", &format!("{}-{}", draft.key, draft.hop));
        let ack = part::store(&self.api, &subject, &tail, headers.clone(), body.clone(), deadline).await?;
        if !ack.duplicate {
            return Ok(());
        }
        // The id names the record, so what is there under it is the record, or it was, and has run. Anything else
        // under this id is stored beside it.
        let same = |stored: Stored| stored.subject == subject && names::hop(stored.headers.as_ref()) == draft.hop;
        if self.api.get(&ack.stream, ack.seq).await?.is_none_or(same) {
            return Ok(());
        }
        headers.insert(header::MESSAGE_ID, format!("{id}:{}", uuid::Uuid::now_v7()).as_str());
        part::store(&self.api, &subject, &tail, headers, body, deadline).await.map(drop)
    }

    /// Stores what the next run of a job in key order is to be told; the job itself stays where it is.
    pub async fn remember(&self, record: &Record, key: &str, hop: u64, deadline: Instant) -> Result<(), Error> {
        let queue = &self.queue.name;
        let mut headers =
            wire::headers_out(&record::write(&Headers::new(), record, None, Binding::Dash)).map_err(Error::Answer)?;
        headers.insert(header::MESSAGE_ID, format!("{queue}:{key}:held:{}:{hop}", record.attempt).as_str());
        headers.insert(header::HOP, hop.to_string().as_str());
        headers.insert(header::ROLLUP, "sub");
        // What is left of a job whose worker died just then; longer than any job is retried.
        headers.insert(header::TTL, "720h");
        self.api.store(&self.names.record(queue, "held", key), headers, Bytes::new(), deadline).await.map(drop)
    }

    /// What was stored last by [`Context::remember`], and how many there were.
    pub async fn remembered(&self, key: &str) -> Result<Option<(Record, u64)>, Error> {
        let held = self.names.record(&self.queue.name, "held", key);
        let Some(stored) = self.api.last(&self.names.work(), &held).await? else { return Ok(None) };
        let headers = wire::headers_in(stored.headers.as_ref(), &mut Builder::default());
        let read = record::read(&headers, Binding::Dash).map_err(|error| Error::Answer(error.to_string()))?;
        Ok(Some((read.record, names::hop(stored.headers.as_ref()))))
    }

    /// Stores a dead letter under its key, once.
    pub async fn bury(
        &self,
        record: &Record,
        dead: &Dead,
        original: &Message,
        key: &str,
        deadline: Instant,
    ) -> Result<PubAck, Error> {
        letters::bury(&self.api, &self.names, record, dead, original, key, deadline).await
    }

    /// Stores what no worker will ever read as a dead letter, with all that it holds; one that is stored already counts.
    pub async fn bury_unreadable(&self, origin: &Origin<'_>, original: &Message, why: String) -> Result<(), Error> {
        let key = names::key(&origin.to_string(), 0);
        if self.has_successor(&key, 0).await? {
            return Ok(());
        }
        let now = self.clock.now();
        let record =
            Record { failure: Some(Failure::new("windlass::Unreadable", why, now, now)), ..Record::fresh(origin) };
        let dead = Dead {
            reason: Reason::Malformed,
            attempts: 0,
            job: self.queue.job.clone(),
            queue: self.queue.name.clone(),
            partition: None,
            offset: Some(origin.seq),
            worker: Some(self.worker.to_string()),
        };
        let deadline = Instant::now() + Duration::from_secs(5).min(self.lease / 3);
        self.bury(&record, &dead, original, &key, deadline).await.map(drop)
    }

    /// Whether what follows the record of this number is stored: a later record of the job, or its dead letter.
    pub async fn has_successor(&self, key: &str, hop: u64) -> Result<bool, Error> {
        let queue = &self.queue.name;
        let (work, dead) = (self.names.work(), self.names.dead());
        let (run, wait, letter) = (
            self.names.record(queue, "run", key),
            self.names.record(queue, "wait", key),
            self.names.letter(queue, key),
        );
        let (run, wait, letter) =
            futures_util::join!(self.api.last(&work, &run), self.api.last(&work, &wait), self.api.last(&dead, &letter));
        let later = |stored: Option<Stored>| stored.is_some_and(|stored| names::hop(stored.headers.as_ref()) > hop);
        Ok(later(run?) || later(wait?) || letter?.is_some())
    }

    /// Whether the server knows that a delivery is settled, as far as it can say: a work queue has no such message any
    /// more; elsewhere only what lies below all that is unsettled is known.
    pub async fn is_settled(&self, delivery: &Delivery) -> Result<bool, Error> {
        if delivery.lane() == Lane::Retry {
            return Ok(self.api.get(&self.names.work(), delivery.seq).await?.is_none());
        }
        let stream = delivery.channel.place.position.trim_start_matches("nats:");
        let info = self.api.consumer(stream, &self.names.durable(&self.queue.name)).await?;
        Ok(info.is_some_and(|info| info["ack_floor"]["stream_seq"].as_u64() >= Some(delivery.seq)))
    }

    /// Acknowledges, confirmed, a delivery that a record has replaced. One whose consumer or stream is gone, or whose
    /// stream was made anew since, needs none.
    pub async fn acknowledge(&self, replaces: &str) -> Result<(), Error> {
        let reply = replaces;
        let Some(said) = wire::delivered(reply) else { return Ok(()) };
        let created = self.created.iter().find(|(stream, _)| stream == said.stream).map(|(_, at)| *at);
        if created.is_some_and(|created| said.at() < created && created.as_millis() - said.at().as_millis() > 1) {
            return Ok(());
        }
        for _ in 0..3 {
            match self.link.request(reply, None, Bytes::from_static(b"+ACK"), Duration::from_secs(2)).await {
                Ok(_) | Err(super::link::RequestError::NoResponders(_)) => return Ok(()),
                Err(super::link::RequestError::TimedOut(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(super::link::RequestError::TimedOut(reply.to_owned()).into())
    }
}
