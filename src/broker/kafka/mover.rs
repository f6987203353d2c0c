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
use rdkafka::{Offset, TopicPartitionList};

use super::super::{Settled, Trouble};
use super::context::Context;
use super::native::Wake;
use super::partition::{Partition, Snapshot};
use super::state::{Generation, Move, Shared};
use super::topics::Ensure;
use super::transaction::{Refusal, Transactor};

/// Moves in one transaction.
const MOVES: usize = 512;
/// What a settlement is told whose record was written, and whose partition went before its offset was committed.
const GONE: &str = "the partition went to another worker";
/// Between two tries of what the broker did not take.
const PAUSE: Duration = Duration::from_millis(200);

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
    Failed(Refusal),
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
    /// Transactions are denied: offsets are not committed here.
    denied: bool,
    /// Partitions whose first commit was made here.
    opened: Vec<(Arc<str>, i32)>,
}

impl Mover {
    /// Starts the thread that carries moves out; its client is made when the first one comes.
    pub fn spawn(transactor: Transactor, ensure: Ensure, wake: Arc<Wake>) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let results = Results::default();
        let carrier = Carrier { transactor, ensure, results: results.clone(), wake };
        std::thread::Builder::new().name("kafka-moves".to_owned()).spawn(move || carrier.run(&receiver))?;
        let (busy, resting, singly, denied, opened) = (false, None, 0, false, Vec::new());
        Ok(Self { sender: Some(sender), results, busy, resting, singly, denied, opened })
    }

    /// Partitions whose first commit was made here since the last call.
    pub fn take_opened(&mut self) -> Vec<(Arc<str>, i32)> {
        std::mem::take(&mut self.opened)
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
        let all = all.filter(|_| !self.denied);
        let ended = self.results.lock().take();
        if let Some((work, ended)) = ended {
            self.busy = false;
            self.end(shared, work, ended);
        }
        if self.busy || committing || self.resting.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        self.resting = None;
        let mut state = shared.state.lock();
        if state.moves.is_empty() && all.is_none() {
            return false;
        }
        let most = if self.singly > 0 { 1 } else { MOVES };
        let count = state.moves.len().min(most);
        let taken: Vec<Move> = state.moves.drain(..count).collect();
        let mut moves: Vec<Move> = Vec::with_capacity(taken.len());
        for mut one in taken {
            if let Some(partition) = state.of(one.token) {
                partition.keep_move(one.offset());
                one.partition = partition.id;
                moves.push(one);
            } else {
                // It went to another worker, and the job with it.
                state.forget(one.token);
                one.part.fail(&Settled::Stale);
            }
        }
        let mut offsets = TopicPartitionList::new();
        let mut snapshots = Vec::new();
        for (id, partition) in &mut state.partitions {
            let moved: Vec<i64> = moves.iter().filter(|m| m.partition == *id).map(Move::offset).collect();
            let last = match all {
                Some(last) if moved.is_empty() && partition.dirty() => last(partition),
                _ if moved.is_empty() => continue,
                _ => false,
            };
            let snapshot = partition.snapshot(limit, &moved, last);
            partition.frozen = true;
            let mut element = offsets.add_partition(&partition.topic, partition.number);
            // Offsets are never negative.
            let _ = element.set_offset(Offset::Offset(snapshot.offset));
            element.set_metadata(&snapshot.metadata);
            snapshots.push((*id, snapshot));
        }
        drop(state);
        if snapshots.is_empty() {
            return false;
        }
        let work = Work { moves, snapshots, offsets, generation: consumer.group_metadata() };
        if let Some(sender) = &self.sender
            && sender.send(work).is_ok()
        {
            self.busy = true;
        }
        self.busy
    }

    fn end(&mut self, shared: &Shared, work: Work, ended: Ended) {
        let mut state = shared.state.lock();
        let stored = !matches!(ended, Ended::Failed(_));
        self.denied |= matches!(ended, Ended::Written);
        for (id, snapshot) in &work.snapshots {
            let Some(partition) = state.partitions.get_mut(id) else { continue };
            partition.frozen = false;
            match ended {
                Ended::Committed => {
                    if !partition.opened {
                        self.opened.push((partition.topic.clone(), partition.number));
                    }
                    partition.confirmed(snapshot);
                }
                Ended::Written | Ended::Failed(_) => partition.refused(),
            }
        }
        let mut failed = Vec::new();
        for one in work.moves {
            match state.of(one.token) {
                Some(partition) if matches!(ended, Ended::Written) => {
                    partition.end_move(one.offset());
                    partition.confirm(one.offset(), one.part);
                }
                Some(partition) if stored => partition.end_move(one.offset()),
                Some(_) => failed.push(one),
                None => {
                    state.forget(one.token);
                    match ended {
                        Ended::Committed => {}
                        Ended::Written => one.part.fail(&Settled::Unconfirmed(GONE.to_owned())),
                        Ended::Failed(_) => one.part.fail(&Settled::Stale),
                    }
                }
            }
        }
        match ended {
            Ended::Failed(why) => {
                let dead = failed.iter().any(|one| one.dead);
                state.trouble = Some(match why {
                    Refusal { rebalanced: true, .. } => Trouble::Rebalance,
                    Refusal { why, .. } if dead => Trouble::DeadLetter(why),
                    Refusal { why, .. } => Trouble::Broker(why),
                });
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
            let records: Vec<_> = work.moves.iter().map(|one| (one.topic.as_str(), &one.message)).collect();
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
