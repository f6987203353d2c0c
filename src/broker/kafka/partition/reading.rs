//! How records come into a partition: how many there is room for, and where each of them waits.

use super::super::memo;
use super::super::native::Arrived;
use super::super::order::Gate;
use super::super::tracker::{Arrival, Limits};
use super::{Held, Partition, Phase, WAITING};
use crate::broker::Lane;
use crate::message::Failure;
use crate::message::record::Record;
use crate::time::Timestamp;

/// What of a partition may be read and not finished: so many records, and so many offsets ahead of its watermark, which
/// is what its bitmap may cost, in bits.
const LIMITS: Limits = Limits { open: 65_536, span: 1 << 20 };

impl Partition {
    /// How many records may be read now, given that `records` and `bytes` may be held.
    pub fn room(&self, records: usize, bytes: usize) -> usize {
        let full = self.phase != Phase::Owned
            || !self.overflow.is_empty()
            || self.used >= memo::NARROW
            || self.window.open() >= LIMITS.open
            || self.window.span() >= LIMITS.span
            || self.waiting.len() >= 3 * WAITING
            || self.buffered_bytes >= bytes;
        if full && self.phase == Phase::Owned && !self.missing.is_empty() {
            // What fills it may be waiting for exactly what has to be read again.
            return 64;
        }
        let left = records.saturating_sub(self.buffered());
        // Reading a few costs as much as reading many.
        if full || left < records / 4 { 0 } else { left }
    }

    /// Arrived and not handed out.
    pub fn buffered(&self) -> usize {
        self.buffer.len() + self.ready.len() + self.early.len() + self.gate.as_ref().map_or(0, Gate::parked)
    }

    /// Records arrived, in order. `known` tells whether an earlier assignment's delivery of one still runs here;
    /// `read` gives what our own records say.
    pub fn arrive(
        &mut self,
        records: impl Iterator<Item = Arrived>,
        known: impl Fn(i64) -> Option<u64>,
        read: impl Fn(&mut Arrived) -> Result<Option<Box<Record>>, Box<str>>,
        now: Timestamp,
    ) {
        for mut arrived in records {
            let record = if self.lane == Lane::Retry { read(&mut arrived) } else { Ok(None) };
            let record = record.unwrap_or_else(|why| {
                self.unreadable.insert(arrived.offset, why);
                None
            });
            let held = Held { arrived, record };
            if self.overflow.is_empty() && self.window.admits(held.arrived.offset, LIMITS) {
                self.admit(held, &known, now);
            } else {
                self.overflow.push_back(held);
            }
        }
    }

    fn admit(&mut self, held: Held, known: &impl Fn(i64) -> Option<u64>, now: Timestamp) {
        let offset = held.arrived.offset;
        match self.window.arrive(offset) {
            Arrival::Finished => {
                self.waiting.remove(&offset);
                self.started.remove(&offset);
                self.dirty = true;
                return;
            }
            Arrival::Known => {
                if !self.missing.remove(&offset) {
                    return;
                }
                if self.waiting.contains_key(&offset) {
                    // A retry in place: what is read again does not say which attempt it is.
                    self.queue(held, false, now);
                } else {
                    self.buffered_bytes += held.size();
                    self.ready.push_back(held);
                }
                return;
            }
            Arrival::New => {}
        }
        let held = match (&mut self.gate, &held.arrived.message.key) {
            (Some(gate), Some(key)) => {
                let key = gate.key(key);
                self.keys.insert(offset, key);
                let size = held.size();
                match gate.enter(key, held) {
                    Some(held) => held,
                    None => {
                        self.buffered_bytes += size;
                        return;
                    }
                }
            }
            _ => held,
        };
        if let Some(run) = known(offset) {
            // It still runs here, under a token of an earlier assignment: that run is this delivery's.
            self.joined.insert(offset, run);
            self.in_hand += 1;
            return;
        }
        self.queue(held, false, now);
    }

    /// Puts a record where it will be handed out from: at once, or when it is due.
    pub(super) fn queue(&mut self, held: Held, first: bool, now: Timestamp) {
        let offset = held.arrived.offset;
        self.buffered_bytes += held.size();
        if let Some((waiting, place, stored)) = self.waiting.get_mut(&offset) {
            *place = Some(held);
            if *stored {
                self.timers.insert((waiting.due, offset));
            }
            return;
        }
        if let Some(due) = held.record.as_ref().and_then(|record| record.not_before).filter(|due| *due > now) {
            self.early.insert(offset, held);
            self.timers.insert((due, offset));
            return;
        }
        if first { self.buffer.push_front(held) } else { self.buffer.push_back(held) }
    }

    /// Moves what is due to where it is handed out from, and says when the next is due.
    pub fn promote(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.see_head(now);
        while let Some((due, offset)) = self.timers.first().copied() {
            if due > now {
                return Some(due);
            }
            self.timers.pop_first();
            if let Some(held) = self.early.remove(&offset) {
                self.ready.push_back(held);
                continue;
            }
            let Some((waiting, place, _)) = self.waiting.get_mut(&offset) else { continue };
            let Some(mut held) = place.take() else { continue };
            let fresh = held.record.is_none();
            let record = held.record.get_or_insert_default();
            record.attempt = waiting.attempt;
            record.not_before = Some(waiting.due);
            if let (true, Some(first)) = (fresh, waiting.first_failed) {
                // What an earlier owner knew of it: metadata has no room for the text.
                record.failure = Some(Failure::new("unknown", "failed under an earlier worker", first, first));
            }
            self.ready.push_back(held);
        }
        None
    }
}
