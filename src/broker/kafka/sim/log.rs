//! The broker: logs, and what is committed of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::broker::Lane;
use crate::broker::kafka::memo::Memo;
use crate::broker::schedule::Broken;
use crate::message::Message;
use crate::time::Timestamp;

/// How a job goes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// So many attempts fail.
    pub fails: u32,
    /// Then it is refused for good, and succeeds otherwise.
    pub dead: bool,
    /// How long a retry waits: not at all, shortly, longer than in place.
    pub wait: usize,
}

/// A record, and the truth about its job.
pub struct Entry {
    pub message: Message,
    pub at: Timestamp,
    pub plan: Plan,
    /// It succeeded, or what replaces it is stored.
    pub ended: bool,
    /// Somebody was told that its end is stored.
    pub confirmed: bool,
    /// The attempt that is known to be stored, and the last that anybody asked to store.
    pub attempts: (u32, u32),
    /// The attempt that its record says.
    pub base: u32,
    /// When each attempt is due.
    pub due: BTreeMap<u32, Timestamp>,
    /// Workers that may have died over it.
    pub died: BTreeSet<usize>,
    /// What replaced it.
    pub letters: u32,
    /// Likewise.
    pub copies: u32,
}

/// A partition.
pub struct Log {
    pub topic: Arc<str>,
    pub number: i32,
    pub lane: Lane,
    pub entries: BTreeMap<i64, Entry>,
    /// The next offset.
    pub next: i64,
    /// Offset and metadata, the last one last.
    pub committed: Vec<(i64, String)>,
    /// Who has it, by the process' number.
    pub owner: Option<usize>,
    /// The place of who is to have it.
    pub wanted: usize,
}

impl Log {
    pub fn new(topic: String, number: i32, lane: Lane) -> Self {
        let (entries, committed) = (BTreeMap::new(), vec![(0, String::new())]);
        Self { topic: super::arc(&topic), number, lane, entries, next: 0, committed, owner: None, wanted: 0 }
    }

    pub fn name(&self) -> String {
        format!("{}:{}", self.topic, self.number)
    }

    pub fn append(&mut self, message: Message, at: Timestamp, plan: Plan, attempt: u32) -> i64 {
        let offset = self.next;
        self.next += 1;
        let (attempts, due) = ((attempt, attempt), BTreeMap::new());
        let entry = Entry {
            message,
            at,
            plan,
            ended: false,
            confirmed: false,
            attempts,
            base: attempt,
            due,
            died: BTreeSet::new(),
            letters: 0,
            copies: 0,
        };
        self.entries.insert(offset, entry);
        offset
    }

    /// What is committed now.
    pub fn last(&self) -> &(i64, String) {
        self.committed.last().expect("the first is never taken away")
    }

    /// A commit is stored. Law: what it says is finished has ended.
    pub fn commit(&mut self, offset: i64, metadata: String) -> Result<(), Broken> {
        let open = |entry: (&i64, &Entry)| (!entry.1.ended).then_some(*entry.0);
        if let Some(lost) = self.entries.range(..offset).find_map(open) {
            return Err(("lost", format!("{offset} of {} is committed, and {lost} has not ended", self.name())));
        }
        if let Some(memo) = Memo::read(&metadata, offset) {
            for (from, to) in memo.finished.iter() {
                if let Some(lost) = self.entries.range(from..to).find_map(open) {
                    return Err(("lost", format!("{lost} of {} is said to be finished, and is not", self.name())));
                }
            }
        } else if !metadata.is_empty() {
            return Err(("memo", format!("metadata of {} cannot be read: {metadata}", self.name())));
        }
        self.committed.push((offset, metadata));
        Ok(())
    }

    /// The attempt that is stored of a retry in place.
    pub fn waits(&self, offset: i64) -> Option<u32> {
        let (committed, metadata) = self.last();
        let memo = Memo::read(metadata, *committed)?;
        memo.waiting.iter().find(|waiting| waiting.offset == offset).map(|waiting| waiting.attempt.get())
    }

    /// Everything in it has ended, and that is committed.
    pub fn is_through(&self) -> bool {
        self.entries.keys().last().is_none_or(|last| self.last().0 > *last)
    }

    pub fn left(&self) -> String {
        let open: Vec<_> = self.entries.iter().filter(|(_, entry)| !entry.ended).map(|(offset, _)| offset).collect();
        format!("{}: open {open:?}, committed {}, next {}", self.name(), self.last().0, self.next)
    }
}
