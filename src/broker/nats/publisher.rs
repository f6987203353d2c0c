//! Publishing to topics, and enqueueing for one queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use super::Inner;
use super::api::{self, code};
use super::link::RequestError;
use super::names;
use super::part;
use super::wire::{self, header};
use crate::broker::{Destination, Error, Publication, Published, Publisher};
use crate::message::record::{self, Record};
use crate::message::{Binding, JobName, QueueName, Topic};
use crate::time::Timestamp;

/// Publications in flight of one batch.
const IN_FLIGHT: usize = 256;

/// See the module.
pub struct NatsPublisher(pub Arc<Inner>);

impl Publisher for NatsPublisher {
    fn binding(&self) -> Binding {
        Binding::Dash
    }

    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Published, Error>>> {
        Box::pin(async move {
            let mut results: Vec<_> = batch.iter().map(|_| None).collect();
            let mut flying = FuturesUnordered::new();
            for strand in strands(batch) {
                if flying.len() >= IN_FLIGHT
                    && let Some(done) = flying.next().await
                {
                    keep(&mut results, done);
                }
                flying.push(self.strand(strand));
            }
            while let Some(done) = flying.next().await {
                keep(&mut results, done);
            }
            results.into_iter().flatten().collect()
        })
    }
}

/// Publications that go one after the other, with their places in the batch.
type Strand = Vec<(usize, Publication)>;

/// Those of one key go one after the other: a try that is repeated may overtake what was sent after it.
fn strands(batch: Vec<Publication>) -> Vec<Strand> {
    let mut strands: Vec<Strand> = Vec::with_capacity(batch.len());
    let mut keys: HashMap<Vec<u8>, usize> = HashMap::new();
    for (index, publication) in batch.into_iter().enumerate() {
        let message = &publication.message;
        let named = || message.headers.get_str_ignore_case("ce-partitionkey").map(|key| key.as_bytes().to_vec());
        match message.key.as_ref().map(|key| key.to_vec()).or_else(named) {
            None => strands.push(vec![(index, publication)]),
            Some(key) => {
                let place = *keys.entry(key).or_insert(strands.len());
                if place == strands.len() {
                    strands.push(Vec::new());
                }
                strands[place].push((index, publication));
            }
        }
    }
    strands
}

type Done = Vec<(usize, Result<Published, Error>)>;

fn keep(results: &mut [Option<Result<Published, Error>>], done: Done) {
    for (index, result) in done {
        results[index] = Some(result);
    }
}

impl NatsPublisher {
    async fn strand(&self, strand: Strand) -> Done {
        let mut done = Vec::with_capacity(strand.len());
        for (index, publication) in strand {
            done.push((index, self.one(publication).await));
        }
        done
    }

    async fn one(&self, publication: Publication) -> Result<Published, Error> {
        match &publication.destination {
            Destination::Topic(topic) => self.to_topic(topic, &publication).await,
            Destination::Queue { queue, job, not_before } => {
                self.to_queue(queue, job.as_ref(), *not_before, &publication).await
            }
        }
    }

    async fn to_topic(&self, topic: &Topic, publication: &Publication) -> Result<Published, Error> {
        if topic.as_str().split('.').any(|token| token.is_empty() || token == "*" || token == ">") {
            return Err(Error::Rejected(format!(
                "{topic} is no subject that can be published to: a dot stands between two words, and wildcards are for those who \
                 hear"
            )));
        }
        if ["$JS.", "$SYS."].iter().any(|own| topic.as_str().starts_with(own)) {
            return Err(Error::Rejected(format!(
                "{topic} is the NATS server's own: what begins with $JS or $SYS is a request to it and no event; choose another \
                 topic"
            )));
        }
        let body = publication.message.body.clone().unwrap_or_default();
        let mut headers = wire::headers_out(&publication.message.headers).map_err(Error::Rejected)?;
        if headers.get(header::MESSAGE_ID).is_none() {
            // A structured event says in its body where it comes from.
            let source = publication.message.headers.get_str_ignore_case("ce-source");
            let source = source.map_or(&body[..], str::as_bytes);
            headers.insert(header::MESSAGE_ID, names::published(topic.as_str(), source, &publication.id).as_str());
        }
        let deadline = Instant::now() + self.0.options.timeout;
        let covered = self.0.covered.lock().contains(topic);
        // A subject that no stream covers answers like one whose stream has no leader: look before waiting.
        if !covered {
            self.0.topology().cover(topic).await?;
            self.0.covered.lock().insert(topic.clone());
        }
        match self.0.api.store(topic.as_str(), headers, body, deadline).await {
            Ok(stored) => Ok(Published { queues: None, id: Some(format!("nats:{}:{}", stored.stream, stored.seq)) }),
            Err(error) => {
                self.0.covered.lock().remove(topic);
                Err(failed(&format!("publish to {topic}"), error))
            }
        }
    }

    async fn to_queue(
        &self,
        queue: &QueueName,
        job: Option<&JobName>,
        not_before: Option<Timestamp>,
        publication: &Publication,
    ) -> Result<Published, Error> {
        let inner = &self.0;
        let features = inner.known_queue(queue).await?;
        let record = Record { job: job.cloned(), not_before, ..Record::default() };
        let key = names::enqueued(&publication.id);
        let mut headers = wire::headers_out(&record::write(&publication.message.headers, &record, None, Binding::Dash))
            .map_err(Error::Rejected)?;
        headers.insert(header::MESSAGE_ID, format!("{queue}:{key}").as_str());
        headers.insert(header::HOP, "0");
        let run = inner.names.record(queue, "run", &key);
        let wait = not_before.map_or(Duration::ZERO, |due| inner.options.clock.now().until(due));
        let subject = if features.schedules && !wait.is_zero() {
            headers.insert(header::SCHEDULE, format!("@at {}", not_before.unwrap_or_default().to_rfc3339()).as_str());
            headers.insert(header::TARGET, run.as_str());
            inner.names.record(queue, "later", &key)
        } else {
            run
        };
        let body = publication.message.body.clone().unwrap_or_default();
        let deadline = Instant::now() + inner.options.timeout;
        let tail = inner.names.record(queue, "part", &format!("{key}-0"));
        let stored = part::store(&inner.api, &subject, &tail, headers, body, deadline).await;
        stored
            .map(|_| Published { queues: Some(1), id: None })
            .map_err(|error| failed(&format!("enqueue for {queue}"), error))
    }
}

fn failed(doing: &str, error: api::Error) -> Error {
    match &error {
        api::Error::Request(RequestError::TooLarge(why)) => Error::Rejected(format!("failed to {doing}: {why}")),
        error if error.err_code() == 10_054 => Error::Rejected(format!("failed to {doing}: {error}")),
        error if error.err_code() == code::FULL => {
            Error::Unavailable(format!("failed to {doing}: the stream is full: {error}"))
        }
        _ => error.into_broker(doing),
    }
}
