//! Publishing and enqueueing: an idempotent producer, confirmed by all in-sync replicas.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};

use super::super::{Destination, Error, Publication, Published, Publisher};
use super::config::Settings;
use super::login::Renewal;
use super::names;
use super::outgoing;
use super::topics::{Kind, Topics, blocking, classify};
use crate::message::record::{Record, write};
use crate::message::{Binding, Message, Namespace};
use crate::time::Clock;

/// A producer's own account goes to the log.
#[derive(Clone)]
pub struct Quiet {
    token_command: Option<String>,
}

impl ClientContext for Quiet {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, facility: &str, text: &str) {
        tracing::debug!(facility, text, "librdkafka says");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::trace!(%error, reason, "librdkafka reports an error");
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        super::config::token(self.token_command.as_deref().ok_or("kafka.sasl.token_command is not set")?)
    }
}

/// See the module's documentation.
pub struct KafkaPublisher {
    producer: FutureProducer<Quiet>,
    renewal: Mutex<Renewal>,
    topics: Arc<Topics>,
    namespace: Namespace,
    settings: Settings,
    clock: Clock,
    timeout: Duration,
}

impl KafkaPublisher {
    /// With a client of its own.
    pub fn new(
        settings: &Settings,
        topics: &Arc<Topics>,
        namespace: &Namespace,
        clock: &Clock,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let context = Quiet { token_command: settings.login().token_command };
        let producer = settings.producer().create_with_context(context);
        let producer = producer.map_err(|error| Error::Refused(format!("kafka: {error}")))?;
        Ok(Self {
            producer,
            renewal: Mutex::new(Renewal::new(&settings.login())),
            topics: topics.clone(),
            namespace: namespace.clone(),
            settings: settings.clone(),
            clock: clock.clone(),
            timeout,
        })
    }

    fn error(&self, topic: &str, error: &KafkaError) -> Error {
        classify(&format!("publish to {topic}"), error, &self.settings.shown)
    }

    /// Sends, and waits until the broker has confirmed. A full send buffer is waited for.
    pub async fn confirm(&self, topic: &str, message: &Message) -> Result<(), Error> {
        let sent = self.queue(topic, message).await?;
        self.wait(topic, sent).await.map(drop)
    }

    async fn queue(&self, topic: &str, message: &Message) -> Result<DeliveryFuture, Error> {
        self.renewal.lock().renew(self.producer.client());
        let deadline = tokio::time::Instant::now() + self.timeout;
        loop {
            let mut record: FutureRecord<'_, [u8], [u8]> =
                FutureRecord::to(topic).headers(outgoing::headers(&message.headers));
            record.timestamp = Some(self.clock.now().as_millis());
            record.payload = message.body.as_deref();
            record.key = message.key.as_deref();
            match self.producer.send_result(record) {
                Ok(sent) => return Ok(sent),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _))
                    if tokio::time::Instant::now() < deadline => {}
                Err((error, _)) => return Err(self.error(topic, &error)),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn wait(&self, topic: &str, sent: DeliveryFuture) -> Result<Delivery, Error> {
        match sent.await {
            Ok(Ok(delivery)) => Ok(delivery),
            Ok(Err((error, _))) => {
                if matches!(
                    error.rdkafka_error_code(),
                    Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition)
                ) {
                    self.topics.forget(topic);
                }
                Err(self.error(topic, &error))
            }
            Err(_) => Err(Error::Unavailable("the producer was closed".to_owned())),
        }
    }

    /// Where a publication goes, and what is written there.
    async fn place(&self, publication: Publication) -> Result<(String, Message), Error> {
        let Publication { destination, message, .. } = publication;
        match destination {
            Destination::Topic(topic) => {
                self.topics.ensure(topic.as_str(), Kind::Events, None).await?;
                Ok((topic.as_str().to_owned(), message))
            }
            Destination::Queue { queue, job, not_before } => {
                let record = Record { job, not_before, ..Record::default() };
                let headers = write(&message.headers, &record, None, Binding::Kafka);
                let message = Message { headers, ..message };
                let left = not_before.map_or(Duration::ZERO, |due| self.clock.now().until(due));
                match names::tier(left) {
                    None => {
                        let topic = names::work(&self.namespace, &queue);
                        self.topics.ensure(&topic, Kind::Work, None).await?;
                        Ok((topic, message))
                    }
                    Some(tier) => {
                        let topic = names::delay(&self.namespace, tier);
                        self.topics.ensure(&topic, Kind::Delay, None).await?;
                        Ok((topic, outgoing::delayed(message, &queue)))
                    }
                }
            }
        }
    }

    /// Waits until everything that was sent is confirmed.
    pub async fn flush(&self) {
        let (producer, timeout) = (self.producer.clone(), self.timeout);
        let flushed =
            blocking(move || producer.flush(timeout).map_err(|error| Error::Unavailable(format!("flush: {error}"))));
        if let Err(error) = flushed.await {
            tracing::warn!(%error, "the producer was closed with messages unconfirmed");
        }
    }
}

impl Publisher for KafkaPublisher {
    fn binding(&self) -> Binding {
        Binding::Kafka
    }

    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Published, Error>>> {
        Box::pin(async move {
            let mut sent = Vec::with_capacity(batch.len());
            for publication in batch {
                let is_event = matches!(publication.destination, Destination::Topic(_));
                sent.push(match self.place(publication).await {
                    Ok((topic, message)) => self.queue(&topic, &message).await.map(|future| (topic, is_event, future)),
                    Err(error) => Err(error),
                });
            }
            let mut results = Vec::with_capacity(sent.len());
            for one in sent {
                results.push(match one {
                    Ok((topic, is_event, future)) => {
                        self.wait(&topic, future).await.map(|Delivery { partition, offset, .. }| {
                            let id = is_event.then(|| format!("kafka:{topic}:{partition}:{offset}"));
                            Published { queues: None, id }
                        })
                    }
                    Err(error) => Err(error),
                });
            }
            results
        })
    }
}
