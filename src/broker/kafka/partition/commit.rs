//! What is committed of a partition, and what a confirmed commit lets go.

use super::super::memo::{self, Memo, Started, Waiting};
use super::Partition;
use crate::seeded;

/// A commit to be sent for a partition.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The next offset to be read by whoever comes next.
    pub offset: i64,
    /// Its metadata.
    pub metadata: String,
    /// What finished below this is in it.
    covers: i64,
    /// Waiters up to here may be released by it.
    waiters: u64,
    /// Retries whose due time it stores.
    stored: Vec<i64>,
}

/// Metadata below this length is not worth slowing down for.
const LEAST: usize = 256;

impl Partition {
    /// What to commit now. `moved` counts as finished already; `last` says that the owner leaves in good order.
    pub fn snapshot(&mut self, limit: usize, moved: &[i64], last: bool) -> Snapshot {
        let (offset, finished) = if moved.is_empty() {
            (self.window.watermark(), self.window.finished())
        } else {
            let mut window = self.window.clone();
            for offset in moved {
                window.finish(*offset);
            }
            (window.watermark(), window.finished())
        };
        let waiting: Vec<Waiting> =
            self.waiting.values().map(|(waiting, ..)| *waiting).filter(|w| !moved.contains(&w.offset)).collect();
        let stored = self.waiting.iter().filter(|(_, (_, _, stored))| !stored).map(|(offset, _)| *offset).collect();
        // Who leaves in good order leaves nothing behind that could be taken for a crash.
        let started =
            self.started.range(offset..).map(|(_, s)| Started { running: s.running && !last, ..s.clone() }).collect();
        let clean = last;
        let guarded_to = if self.guarded_to > offset { self.guarded_to } else { 0 };
        let memo = Memo { owner: self.owner, clean, guarded_to, finished, waiting, started };
        let written = memo.write(offset, limit.min(memo::LIMIT));
        self.limit = limit;
        // Where the broker takes next to none, there is nothing to wait for.
        self.used = if self.window.open() == 0 || limit < LEAST { 0 } else { written.used };
        self.dirty = false;
        self.urgent = false;
        self.fresh_finished = 0;
        Snapshot {
            offset: offset.max(self.committed),
            metadata: written.text,
            covers: written.covers,
            waiters: self.waiters_released + self.waiters.len() as u64,
            stored,
        }
    }

    /// A commit of `snapshot` was confirmed.
    pub fn confirmed(&mut self, snapshot: &Snapshot) {
        self.committed = self.committed.max(snapshot.offset);
        self.opened = true;
        for offset in &snapshot.stored {
            if let Some((waiting, held, stored)) = self.waiting.get_mut(offset) {
                *stored = true;
                if held.is_some() {
                    self.timers.insert((waiting.due, *offset));
                }
            }
        }
        let count = snapshot.waiters.saturating_sub(self.waiters_released) as usize;
        let mut uncovered = Vec::new();
        for waiter in self.waiters.drain(..count.min(self.waiters.len())) {
            self.waiters_released += 1;
            let covered = waiter.max < snapshot.offset || waiter.max < snapshot.covers;
            if !covered && !seeded::bug("watermark-early") {
                uncovered.push(waiter);
            }
        }
        for waiter in uncovered.into_iter().rev() {
            self.waiters_released -= 1;
            self.waiters.push_front(waiter);
        }
    }
}
