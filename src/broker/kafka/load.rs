//! Which moves go into the next transaction, and what its end means for them. No I/O, no clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::{Settled, Trouble};
use super::partition::{Partition, Snapshot};
use super::state::{Move, State};
use super::transaction::Refusal;
use crate::seeded;

/// Moves in one transaction.
const MOVES: usize = 512;
/// What a settlement is told whose record was written, and whose partition went before its offset was committed.
const GONE: &str = "the partition went to another worker";
/// Between two tries of what the broker did not take.
const PAUSE: Duration = Duration::from_millis(200);

/// What goes into one transaction: the records, and the commits of the partitions that they leave.
pub struct Load {
    /// None where only commits are made.
    pub moves: Vec<Move>,
    /// By the partition's id.
    pub snapshots: Vec<(u64, Snapshot)>,
}

/// How a transaction ended.
pub enum Ended {
    /// Records and offsets are stored.
    Committed,
    /// Records are stored; offsets are still to be committed.
    Written,
    /// Nothing is stored.
    Failed(Refusal),
}

/// What is remembered from one transaction to the next.
#[derive(Default)]
pub struct Choice {
    resting: Option<Instant>,
    /// So many moves go one by one, because one of them failed in company.
    singly: usize,
    /// Transactions are denied: offsets are not committed here.
    denied: bool,
    /// Partitions whose first commit was made here.
    opened: Vec<(Arc<str>, i32)>,
}

impl Choice {
    /// Partitions whose first commit was made here since the last call.
    pub fn take_opened(&mut self) -> Vec<(Arc<str>, i32)> {
        std::mem::take(&mut self.opened)
    }

    /// The next transaction, if there is anything to move and it is time. Its partitions have no other commit until
    /// [`Choice::end`]. With `all` every partition which has something to commit is in it; it tells whether a commit is a
    /// partition's last.
    pub fn next(
        &mut self,
        state: &mut State,
        limit: usize,
        now: Instant,
        all: Option<&dyn Fn(&Partition) -> bool>,
    ) -> Option<Load> {
        let all = all.filter(|_| !self.denied);
        if self.resting.is_some_and(|until| now < until) {
            return None;
        }
        self.resting = None;
        if state.moves.is_empty() && all.is_none() {
            return None;
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
        let mut snapshots = Vec::new();
        for (id, partition) in &mut state.partitions {
            let moved: Vec<i64> = moves.iter().filter(|m| m.partition == *id).map(Move::offset).collect();
            let last = match all {
                Some(last) if moved.is_empty() && partition.dirty() => last(partition),
                _ if moved.is_empty() => continue,
                _ => false,
            };
            snapshots.push((*id, partition.snapshot(limit, &moved, last)));
            partition.frozen = true;
        }
        if snapshots.is_empty() { None } else { Some(Load { moves, snapshots }) }
    }

    /// It has ended so.
    pub fn end(&mut self, state: &mut State, load: Load, ended: Ended, now: Instant) {
        let stored = !matches!(ended, Ended::Failed(_)) || seeded::bug("move-unstored");
        self.denied |= matches!(ended, Ended::Written);
        for (id, snapshot) in &load.snapshots {
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
        for one in load.moves {
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
                self.resting = Some(now + PAUSE);
            }
            Ended::Committed | Ended::Written => {
                self.singly = self.singly.saturating_sub(1);
                if matches!(state.trouble, Some(Trouble::DeadLetter(_) | Trouble::Broker(_))) {
                    state.trouble = None;
                }
            }
        }
    }
}
