//! What the engine must never do, at any step; beside what the ledger's judge says of the whole.

use std::fmt;

use crate::ledger::judge::Rule;

/// A law.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Law {
    /// What is in hand and what was asked for exceed the slots.
    Credit,
    /// Settled while it ran, before it ran, or as something that it was not.
    EarlySettlement,
    /// Settled twice.
    Twice,
    /// Started without holding it: the adapter had said that it was lost.
    Unowned,
    /// Started without the mark that it needs.
    Unmarked,
    /// Started though it was condemned.
    Condemned,
    /// Two suspects at once in one process.
    TwoSuspects,
    /// An attempt that is not the one stored, or a retry that counts wrong.
    Attempt,
    /// Started after the worker was told to leave.
    StartedLeaving,
    /// A worker left and held jobs that nothing kept it from giving back.
    Stranded,
    /// A worker took longer to leave than its grace and three seconds.
    Leaving,
    /// Slots, bytes or settlements are still counted when nothing is in hand.
    Leak,
    /// The engine panicked.
    Panic,
    /// A rule of the ledger's judge.
    Judged(Rule),
}

/// A law that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub law: Law,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.law, self.what)
    }
}
