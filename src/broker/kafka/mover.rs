//! Moves: a record that replaces another, in one transaction with the commit that counts the other as finished.
//!
//! The poll thread decides what goes into a transaction, since it alone knows what may be committed; a thread of its
//! own carries it out, since the calls wait for the broker. While a partition has a move on its way it has no other
//! commit. The transaction is fenced by the group's generation (KIP-447): a worker that lost its partition writes
//! nothing. Where transactions are denied, the record is written and confirmed first and the offset committed then.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

use super::super::{Settled, Trouble};
use super::context::Context;
use super::native::Wake;
use super::outgoing;
use super::partition::Snapshot;
use super::state::{Generation, Move, Shared};

/// Moves in one transaction.
const MOVES: usize = 512;
/// Between two tries of what the broker did not take.
const PAUSE: Duration = Duration::from_millis(200);
/// How long one step of a transaction may take.
const STEP: Duration = Duration::from_secs(9);

/// One transaction's worth.
struct Work {
    moves: Vec<Move>,
    snapshots: Vec<(u64, Snapshot)>,
    offsets: TopicPartitionList,
    generation: Option<Generation>,
}

enum Ended {
    /// Records and offsets are stored.
    Committed,
    /// Records are stored; offsets are still to be committed.
    Written,
    /// Nothing is stored.
    Failed(String),
}

type Results = Arc<Mutex<Option<(Work, Ended)>>>;

/// The poll thread's side.
pub struct Mover {
    sender: Option<mpsc::Sender<Work>>,
    results: Results,
    busy: bool,
    resting: Option<Instant>,
    /// So many moves go one by one, because one of them failed in company.
    singly: usize,
}

impl Mover {
    /// Starts the thread that carries moves out; its client is made when the first one comes.
    pub fn spawn(config: ClientConfig, token_command: Option<String>, wake: Arc<Wake>) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let results = Results::default();
        let carrier = Carrier { config, token_command, results: results.clone(), wake, producer: None, denied: false };
        std::thread::Builder::new().name("kafka-moves".to_owned()).spawn(move || carrier.run(&receiver))?;
        Ok(Self { sender: Some(sender), results, busy: false, resting: None, singly: 0 })
    }

    /// Takes what has ended, and sends what waits, unless a commit is on its way.
    pub fn step(&mut self, shared: &Shared, consumer: &BaseConsumer<Context>, limit: usize, committing: bool) {
        let ended = self.results.lock().take();
        if let Some((work, ended)) = ended {
            self.busy = false;
            self.end(shared, work, ended);
        }
        if self.busy || committing || self.resting.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.resting = None;
        let mut state = shared.state.lock();
        if state.moves.is_empty() {
            return;
        }
        let most = if self.singly > 0 { 1 } else { MOVES };
        let count = state.moves.len().min(most);
        let taken: Vec<Move> = state.moves.drain(..count).collect();
        let mut moves: Vec<Move> = Vec::with_capacity(taken.len());
        for one in taken {
            if state.partitions.contains_key(&one.partition) {
                moves.push(one);
            } else {
                // It went to another worker, and the job with it.
                one.part.fail(&Settled::Stale);
            }
        }
        let mut offsets = TopicPartitionList::new();
        let mut snapshots = Vec::new();
        for (id, partition) in &mut state.partitions {
            let moved: Vec<i64> = moves.iter().filter(|m| m.partition == *id).map(|m| m.offset).collect();
            if moved.is_empty() {
                continue;
            }
            let snapshot = partition.snapshot(limit, &moved, false);
            partition.frozen = true;
            let mut element = offsets.add_partition(&partition.topic, partition.number);
            // Offsets are never negative.
            let _ = element.set_offset(Offset::Offset(snapshot.offset));
            element.set_metadata(&snapshot.metadata);
            snapshots.push((*id, snapshot));
        }
        drop(state);
        if moves.is_empty() {
            return;
        }
        let work = Work { moves, snapshots, offsets, generation: consumer.group_metadata() };
        if let Some(sender) = &self.sender
            && sender.send(work).is_ok()
        {
            self.busy = true;
        }
    }

    fn end(&mut self, shared: &Shared, work: Work, ended: Ended) {
        let mut state = shared.state.lock();
        let stored = !matches!(ended, Ended::Failed(_));
        for (id, snapshot) in &work.snapshots {
            let Some(partition) = state.partitions.get_mut(id) else { continue };
            partition.frozen = false;
            match ended {
                Ended::Committed => partition.confirmed(snapshot),
                Ended::Written | Ended::Failed(_) => partition.refused(),
            }
        }
        let mut failed = Vec::new();
        for one in work.moves {
            match state.partitions.get_mut(&one.partition) {
                Some(partition) if matches!(ended, Ended::Written) => {
                    partition.end_move(one.offset, true);
                    partition.confirm(one.offset, one.part);
                }
                Some(partition) if stored => partition.end_move(one.offset, true),
                Some(_) => failed.push(one),
                None if stored => {}
                None => one.part.fail(&Settled::Stale),
            }
        }
        match ended {
            Ended::Failed(why) => {
                let dead = failed.iter().any(|one| one.dead);
                state.trouble = Some(if dead { Trouble::DeadLetter(why) } else { Trouble::Broker(why) });
                // One that cannot be written must not keep the others: they go singly, it goes last.
                self.singly = if failed.len() > 1 { failed.len() } else { self.singly.saturating_sub(1) };
                if failed.len() == 1 {
                    state.moves.append(&mut failed);
                } else {
                    failed.append(&mut state.moves);
                    state.moves = failed;
                }
                self.resting = Some(Instant::now() + PAUSE);
            }
            Ended::Committed | Ended::Written => {
                self.singly = self.singly.saturating_sub(1);
                if matches!(state.trouble, Some(Trouble::DeadLetter(_) | Trouble::Broker(_))) {
                    state.trouble = None;
                }
            }
        }
        drop(state);
        shared.arrived.notify_one();
    }

    /// No more moves: the thread ends after the one on its way.
    pub fn close(mut self) {
        self.sender = None;
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
        tracing::debug!(%error, reason, "librdkafka reports an error");
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

/// The carrying thread.
struct Carrier {
    config: ClientConfig,
    token_command: Option<String>,
    results: Results,
    wake: Arc<Wake>,
    producer: Option<BaseProducer<Deliveries>>,
    /// The broker does not let us have transactions.
    denied: bool,
}

impl Carrier {
    fn run(mut self, receiver: &mpsc::Receiver<Work>) {
        while let Ok(work) = receiver.recv() {
            let ended = match self.carry(&work) {
                Ok(()) if self.denied => Ended::Written,
                Ok(()) => Ended::Committed,
                Err(why) => Ended::Failed(why),
            };
            *self.results.lock() = Some((work, ended));
            self.wake.wake();
        }
    }

    fn carry(&mut self, work: &Work) -> Result<(), String> {
        if self.producer.is_none() {
            self.producer = Some(self.connect()?);
        }
        let Some(producer) = &self.producer else { return Err("no producer".to_owned()) };
        *producer.context().failed.lock() = None;
        if self.denied {
            write(producer, work)?;
            return flush(producer);
        }
        let result = transact(producer, work);
        if let Err((_, lasting)) = &result
            && *lasting
        {
            // A producer that failed for good is replaced by the next try.
            self.producer = None;
        }
        result.map_err(|(why, _)| why)
    }

    fn connect(&mut self) -> Result<BaseProducer<Deliveries>, String> {
        let context = || Deliveries { token_command: self.token_command.clone(), ..Deliveries::default() };
        if !self.denied {
            let producer: BaseProducer<Deliveries> =
                self.config.create_with_context(context()).map_err(|error| error.to_string())?;
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
        config.create_with_context(context()).map_err(|error| error.to_string())
    }
}

fn is_denied(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed | RDKafkaErrorCode::UnsupportedFeature)
    )
}

fn write(producer: &BaseProducer<Deliveries>, work: &Work) -> Result<(), String> {
    for one in &work.moves {
        let headers = outgoing::headers(&one.message.headers);
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&one.topic).headers(headers);
        record.payload = one.message.body.as_deref();
        record.key = one.message.key.as_deref();
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
                Err((error, _)) => return Err(format!("{}: {error}", one.topic)),
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
fn transact(producer: &BaseProducer<Deliveries>, work: &Work) -> Result<(), (String, bool)> {
    let Some(generation) = &work.generation else { return Err(("the group has no generation".to_owned(), false)) };
    producer.begin_transaction().map_err(|error| (error.to_string(), true))?;
    let result = write(producer, work)
        .and_then(|()| flush(producer))
        .and_then(|()| again(|| producer.send_offsets_to_transaction(&work.offsets, generation, STEP)))
        .and_then(|()| again(|| producer.commit_transaction(STEP)));
    result.map_err(|why| {
        let why = failed(producer).err().unwrap_or(why);
        let aborted = producer.abort_transaction(STEP);
        (why, aborted.is_err())
    })
}

/// Steps that may be repeated are repeated: a commit that timed out may have been carried out.
fn again(mut step: impl FnMut() -> Result<(), KafkaError>) -> Result<(), String> {
    let deadline = Instant::now() + STEP * 3;
    loop {
        match step() {
            Ok(()) => return Ok(()),
            Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}
