//! Publishing to topics, and enqueueing for one queue.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};
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
            let mut results = Vec::with_capacity(batch.len());
            let mut flying = FuturesOrdered::new();
            for publication in batch {
                if flying.len() >= IN_FLIGHT {
                    results.extend(flying.next().await);
                }
                flying.push_back(self.one(publication));
            }
            while let Some(result) = flying.next().await {
                results.push(result);
            }
            results
        })
    }
}

impl NatsPublisher {
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
            return Err(Error::Rejected(format!("{topic} is no subject that can be published to")));
        }
        let mut headers = wire::headers_out(&publication.message.headers).map_err(Error::Rejected)?;
        if headers.get(header::MESSAGE_ID).is_none() {
            headers.insert(header::MESSAGE_ID, publication.id.as_str());
        }
        let body = publication.message.body.clone().unwrap_or_default();
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
