//! Moves: a record that replaces another, in one transaction with the commit that counts the other as finished.
//!
//! The poll thread decides what goes into a transaction, since it alone knows what may be committed; a thread of its
//! own carries it out, since the calls wait for the broker. While a partition has a move on its way it has no other
//! commit. The transaction is fenced by the group's generation (KIP-447): a worker that lost its partition writes
//! nothing. Where transactions are denied, the record is written and confirmed first and the offset committed then.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use parking_lot::Mutex;
use rdkafka::consumer::BaseConsumer;
use rdkafka::{Offset, TopicPartitionList};

use super::context::Context;
use super::load::{Choice, Ended, Load};
use super::native::{self, Wake};
use super::partition::Partition;
use super::state::{Generation, Shared};
use super::topics::Ensure;
use super::transaction::{Refusal, Transactor};

/// One transaction's worth.
struct Work {
    load: Load,
    offsets: TopicPartitionList,
    generation: Option<Generation>,
}

type Results = Arc<Mutex<Option<(Work, Ended)>>>;

/// The poll thread's side.
pub struct Mover {
    sender: Option<mpsc::Sender<Work>>,
    results: Results,
    busy: bool,
    choice: Choice,
}

impl Mover {
    /// Starts the thread that carries moves out; its client is made when the first one comes.
    pub fn spawn(transactor: Transactor, ensure: Ensure, wake: Arc<Wake>) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let results = Results::default();
        let carrier = Carrier { transactor, ensure, results: results.clone(), wake };
        std::thread::Builder::new().name("kafka-moves".to_owned()).spawn(move || carrier.run(&receiver))?;
        Ok(Self { sender: Some(sender), results, busy: false, choice: Choice::default() })
    }

    /// Partitions whose first commit was made here since the last call.
    pub fn take_opened(&mut self) -> Vec<(Arc<str>, i32)> {
        self.choice.take_opened()
    }

    /// Takes what has ended, and sends what waits, unless a commit is on its way. With `all` that is every partition
    /// which has something to commit, moves or none; it tells whether a commit is a partition's last. Says whether
    /// something was sent.
    pub fn step(
        &mut self,
        shared: &Shared,
        consumer: &BaseConsumer<Context>,
        limit: usize,
        committing: bool,
        all: Option<&dyn Fn(&Partition) -> bool>,
    ) -> bool {
        let ended = self.results.lock().take();
        if let Some((work, ended)) = ended {
            self.busy = false;
            self.choice.end(&mut shared.state.lock(), work.load, ended, Instant::now());
            shared.arrived.notify_one();
        }
        if self.busy || committing {
            return false;
        }
        let mut state = shared.state.lock();
        let Some(load) = self.choice.next(&mut state, limit, Instant::now(), all) else { return false };
        let mut offsets = TopicPartitionList::new();
        for (id, snapshot) in &load.snapshots {
            let Some(partition) = state.partitions.get(id) else { continue };
            let mut element = offsets.add_partition(&partition.topic, partition.number);
            // Offsets are never negative.
            let _ = element.set_offset(Offset::Offset(snapshot.offset));
            element.set_metadata(&snapshot.metadata);
        }
        drop(state);
        let work = Work { load, offsets, generation: native::generation(consumer) };
        if let Some(sender) = &self.sender
            && sender.send(work).is_ok()
        {
            self.busy = true;
        }
        self.busy
    }

    /// No more moves: the thread ends after the one on its way.
    pub fn close(mut self) {
        self.sender = None;
    }
}

/// The carrying thread.
struct Carrier {
    transactor: Transactor,
    ensure: Ensure,
    results: Results,
    wake: Arc<Wake>,
}

impl Carrier {
    fn run(mut self, receiver: &mpsc::Receiver<Work>) {
        while let Ok(work) = receiver.recv() {
            let records: Vec<_> = work.load.moves.iter().map(|one| (one.topic.as_str(), &one.message)).collect();
            let there = records.iter().try_for_each(|(topic, _)| (self.ensure)(topic));
            let ended = match (there, &work.generation) {
                (Err(why), _) => Err(Refusal { why, rebalanced: false }),
                (Ok(()), Some(generation)) => self.transactor.write(&records, Some((&work.offsets, generation))),
                (Ok(()), None) => Err(Refusal { why: "the group has no generation".to_owned(), rebalanced: true }),
            };
            let ended = match ended {
                Ok(true) => Ended::Committed,
                Ok(false) => Ended::Written,
                Err(why) => Ended::Failed(why),
            };
            *self.results.lock() = Some((work, ended));
            self.wake.wake();
        }
    }
}
