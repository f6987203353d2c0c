//! Records in one transaction, with the offsets that they replace where there are such. Where transactions are
//! denied, the records are written and confirmed one by one.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext, TopicPartitionList};

use super::login::{Login, Renewal};
use super::outgoing;
use crate::message::Message;
use crate::time::{Clock, Timestamp};

/// How long one step of a transaction may take.
const STEP: Duration = Duration::from_secs(9);

/// What is written, and where.
pub type Records<'a> = [(&'a str, &'a Message)];

/// Why nothing was written.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the broker said.
    pub why: String,
    /// The group has a new generation, or is finding one: under that the same may be written.
    pub rebalanced: bool,
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self { why, rebalanced: false }
    }
}

impl From<KafkaError> for Refusal {
    fn from(error: KafkaError) -> Self {
        use RDKafkaErrorCode as Code;
        let rebalanced = matches!(
            error.rdkafka_error_code(),
            Some(Code::IllegalGeneration | Code::UnknownMemberId | Code::RebalanceInProgress | Code::StaleMemberEpoch)
        );
        Self { why: error.to_string(), rebalanced }
    }
}

/// What a producer was told about each record.
#[derive(Default)]
struct Deliveries {
    failed: Mutex<Option<(RDKafkaErrorCode, String)>>,
    token_command: Option<String>,
}

impl ClientContext for Deliveries {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<rdkafka::client::OAuthToken, Box<dyn std::error::Error>> {
        super::config::token(self.token_command.as_deref().ok_or("kafka.sasl.token_command is not set")?)
    }

    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, facility: &str, text: &str) {
        tracing::debug!(facility, text, "librdkafka says");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::trace!(%error, reason, "librdkafka reports an error");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result {
            use rdkafka::Message as _;
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
            self.failed.lock().get_or_insert((code, message.topic().to_owned()));
        }
    }
}

/// Writes in transactions; its client is made when it is needed first, and again when it has failed for good.
pub struct Transactor {
    config: ClientConfig,
    clock: Clock,
    login: Login,
    renewal: Renewal,
    producer: Option<BaseProducer<Deliveries>>,
    /// The broker does not let us have transactions.
    denied: bool,
}

impl Transactor {
    /// With settings of [`Settings::mover`](super::config::Settings::mover).
    pub fn new(config: ClientConfig, login: Login, clock: Clock) -> Self {
        let renewal = Renewal::new(&login);
        Self { config, clock, login, renewal, producer: None, denied: false }
    }

    /// Writes all or nothing, and commits the offsets with it. `Ok(false)`: transactions are denied; the records are
    /// written, the offsets are not.
    pub fn write(
        &mut self,
        records: &Records<'_>,
        offsets: Option<(&TopicPartitionList, &ConsumerGroupMetadata)>,
    ) -> Result<bool, Refusal> {
        let producer = match self.producer.take() {
            Some(producer) => producer,
            None => self.connect()?,
        };
        *producer.context().failed.lock() = None;
        self.renewal.renew(producer.client());
        let now = self.clock.now();
        let result = if self.denied {
            write(&producer, records, now).and_then(|()| flush(&producer)).map_err(|why| (why.into(), false))
        } else {
            transact(&producer, records, offsets, now)
        };
        // A producer that failed for good is replaced by the next try.
        if !matches!(result, Err((_, true))) {
            self.producer = Some(producer);
        }
        result.map(|()| !self.denied).map_err(|(why, _)| why)
    }

    /// Whether the broker denies transactions.
    pub fn is_denied(&mut self) -> Result<bool, String> {
        self.connect().map(|_| self.denied)
    }

    fn connect(&mut self) -> Result<BaseProducer<Deliveries>, String> {
        let context = || Deliveries { token_command: self.login.token_command.clone(), ..Deliveries::default() };
        self.renewal = Renewal::new(&self.login);
        if !self.denied {
            let producer: BaseProducer<Deliveries> =
                self.config.create_with_context(context()).map_err(|error| error.to_string())?;
            self.login.enter(producer.client())?;
            match producer.init_transactions(STEP) {
                Ok(()) => return Ok(producer),
                Err(error) if is_denied(&error) => {
                    tracing::warn!(%error, "transactions are denied: moves are written first and committed then");
                    self.denied = true;
                }
                Err(error) => return Err(format!("transactions cannot be begun: {error}")),
            }
        }
        let mut config = self.config.clone();
        config.remove("transactional.id");
        config.remove("transaction.timeout.ms");
        let producer: BaseProducer<Deliveries> =
            config.create_with_context(context()).map_err(|error| error.to_string())?;
        self.login.enter(producer.client())?;
        Ok(producer)
    }
}

fn is_denied(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::TransactionalIdAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::UnsupportedFeature
        )
    )
}

/// Each record bears the time of the clock by which it will be due: a delay tier counts from there.
fn write(producer: &BaseProducer<Deliveries>, records: &Records<'_>, now: Timestamp) -> Result<(), String> {
    for (topic, message) in records {
        let headers = outgoing::headers(&message.headers);
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).headers(headers).timestamp(now.as_millis());
        record.payload = message.body.as_deref();
        record.key = message.key.as_deref();
        let deadline = Instant::now() + STEP;
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < deadline =>
                {
                    record = back;
                    producer.poll(Duration::from_millis(20));
                }
                Err((error, _)) => return Err(format!("{topic}: {error}")),
            }
        }
        producer.poll(Duration::ZERO);
    }
    Ok(())
}

fn flush(producer: &BaseProducer<Deliveries>) -> Result<(), String> {
    producer.flush(STEP).map_err(|error| error.to_string())?;
    failed(producer)
}

fn failed(producer: &BaseProducer<Deliveries>) -> Result<(), String> {
    match producer.context().failed.lock().take() {
        Some((code, topic)) => Err(format!("{topic}: {code}")),
        None => Ok(()),
    }
}

/// One transaction; an error says whether the producer is of no more use.
fn transact(
    producer: &BaseProducer<Deliveries>,
    records: &Records<'_>,
    offsets: Option<(&TopicPartitionList, &ConsumerGroupMetadata)>,
    now: Timestamp,
) -> Result<(), (Refusal, bool)> {
    producer.begin_transaction().map_err(|error| (error.into(), true))?;
    let result = write(producer, records, now)
        .and_then(|()| flush(producer))
        .map_err(Refusal::from)
        .and_then(|()| match offsets {
            Some((list, generation)) => again(|| producer.send_offsets_to_transaction(list, generation, STEP)),
            None => Ok(()),
        })
        .and_then(|()| again(|| producer.commit_transaction(STEP)));
    result.map_err(|why| {
        let why = failed(producer).err().map_or(why, Refusal::from);
        let aborted = producer.abort_transaction(STEP);
        (why, aborted.is_err())
    })
}

/// Steps that may be repeated are repeated: a commit that timed out may have been carried out.
fn again(mut step: impl FnMut() -> Result<(), KafkaError>) -> Result<(), Refusal> {
    let deadline = Instant::now() + STEP * 3;
    loop {
        match step() {
            Ok(()) => return Ok(()),
            Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
            Err(error) => return Err(error.into()),
        }
    }
}
