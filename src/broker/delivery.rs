//! A delivery: an event in hand, with the right and the duty to settle it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Disposition;
use crate::message::record::Record;
use crate::message::{Attempt, Message, Origin, Place};
use crate::time::Timestamp;

/// Which of a queue's two lanes a delivery came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The topics it is bound to.
    Fresh,
    /// Jobs that are due again, and jobs enqueued for this queue alone.
    Retry,
}

/// Names a delivery to its adapter. What the numbers mean is the adapter's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64, pub u64);

/// Resolves when a lease was lost.
pub type Lost = CancellationToken;

/// The adapter's side of a lease. The adapter extends each lease until its delivery is settled or released.
pub trait Leases: Send + Sync {
    /// A delivery was dropped unsettled: give it back at once, without using an attempt. Must not block.
    fn release(&self, token: Token);

    /// Whether a delivery that waited in hand may still be begun. False where its lease is known to be lost, or the
    /// broker to have forgotten that it gave it out, and gives it out again: the worker then gives it back.
    fn may_begin(&self, _token: Token) -> bool {
        true
    }

    /// A token that is cancelled when this lease is lost: extending it failed, or the partition went away. Asked
    /// for only by jobs that run long enough to care; a lease that is lost already gives a cancelled one.
    fn lost(&self, token: Token) -> Lost;
}

/// What the deliveries of one topic, partition or lane have in common; made once and shared.
pub struct Channel {
    /// The lane.
    pub lane: Lane,
    /// Where its messages lie.
    pub place: Arc<Place>,
    /// Who extends and releases.
    pub leases: Arc<dyn Leases>,
}

/// One handing-over of an event. Settles exactly once: [`Delivery::settle`] consumes it, dropping it releases it.
#[must_use = "dropping a delivery gives it back to the broker"]
pub struct Delivery {
    /// What was published, byte for byte.
    pub message: Message,
    /// What it has in common with others.
    pub channel: Arc<Channel>,
    /// Its number at [`Place`].
    pub seq: u64,
    /// When the broker stored it.
    pub at: Timestamp,
    /// What our record says; `None` for an event fresh from a topic.
    pub record: Option<Box<Record>>,
    /// It is a record of ours that cannot be read (torn, or of a version that this worker does not know), and why: it
    /// is malformed, and kept with all of its headers.
    pub unreadable: Option<Box<str>>,
    /// It was handed out before and came back unsettled: given back, or taken from who died, was cut off or lost its
    /// lease; not a retry of ours. For `redeliveries_total`. Kafka, where nothing is written of a delivery but its
    /// end, knows it only of what was marked as started.
    pub redelivered: bool,
    /// It was running or about to when a worker died, so often that it must run with no other suspect.
    pub suspect: bool,
    /// It has crashed as often as is allowed: dead-letter it without running it.
    pub condemned: bool,
    /// Its start must be stored before it runs ([`Settler::mark`](super::Settler::mark)).
    pub needs_mark: bool,
    /// The adapter's name for it.
    pub token: Token,
    owned: bool,
}

impl Delivery {
    /// A delivery of a message fresh from a topic; set the public fields where it is more than that.
    pub fn new(message: Message, channel: Arc<Channel>, seq: u64, at: Timestamp, token: Token) -> Self {
        Self {
            message,
            channel,
            seq,
            at,
            record: None,
            unreadable: None,
            redelivered: false,
            suspect: false,
            condemned: false,
            needs_mark: false,
            token,
            owned: true,
        }
    }

    /// The attempt that runs next.
    pub fn attempt(&self) -> Attempt {
        self.record.as_ref().map_or(Attempt::FIRST, |record| record.attempt)
    }

    /// The lane it came by.
    pub fn lane(&self) -> Lane {
        self.channel.lane
    }

    /// Where it lay.
    pub fn origin(&self) -> Origin<'_> {
        Origin { place: &self.channel.place, seq: self.seq, at: self.at }
    }

    /// When it could first have been started: its due time, else when it was stored.
    pub fn ready_at(&self) -> Timestamp {
        self.record.as_ref().and_then(|record| record.not_before).map_or(self.at, |due| due.max(self.at))
    }

    /// Resolves when the lease was lost.
    pub fn lost(&self) -> Lost {
        self.channel.leases.lost(self.token)
    }

    /// Says what is to be done with it.
    pub fn settle(self, disposition: Disposition) -> Settlement {
        Settlement { delivery: self, disposition }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if self.owned {
            self.channel.leases.release(self.token);
        }
    }
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery")
            .field("origin", &self.origin().to_string())
            .field("token", &self.token)
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

/// A delivery and what is to be done with it. Dropped before the adapter has taken it, it is released.
#[derive(Debug)]
#[must_use = "a settlement does nothing until a settler has it"]
pub struct Settlement {
    /// The delivery.
    pub delivery: Delivery,
    /// What is to be done.
    pub disposition: Disposition,
}

impl Settlement {
    /// The adapter takes the duty over: from here on dropping releases nothing, and the adapter itself sees to it
    /// that the job comes again unless the disposition is stored.
    pub fn take(mut self) -> (Delivery, Disposition) {
        self.delivery.owned = false;
        let disposition = std::mem::replace(&mut self.disposition, Disposition::Release);
        (self.delivery, disposition)
    }
}
