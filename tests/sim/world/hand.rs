//! Handing out: who gets which delivery, and what the engine may ask for.

use super::*;

impl World {
    /// A worker asks for deliveries. `again`: the same call looks once more.
    pub fn take(&mut self, now: u64, worker: usize, queue: usize, credit: Credit, again: bool) -> Take {
        if self.workers[worker].dead {
            return Take::Dead;
        }
        if !again {
            if !self.call(now, worker) {
                return Take::Dead;
            }
            self.look_at_credit(now, worker, queue, credit);
            match self.chance.misbehaves(3) {
                1 => return Take::Error,
                2 => return Take::Empty,
                3 => return Take::Nothing(Some(now + self.chance.millis(1..30))),
                _ => {}
            }
        }
        if let Err(until) = self.reaches(now, worker) {
            return Take::Nothing(Some(until));
        }
        if self.workers[worker].moving[queue].is_some() {
            return Take::Nothing(None);
        }
        let mut over = self.shape().over_credit && self.chance.coin();
        let mut jobs = credit.jobs;
        let mut given: Vec<Given> = Vec::new();
        let (mut bytes, mut suspect) = (0, credit.suspect);
        let retry: Vec<usize> = self.ready(now, queue, Lane::Retry);
        let fresh: Vec<usize> = self.ready(now, queue, Lane::Fresh);
        let first = credit.retry_floor.min(retry.len());
        let order = retry[..first].iter().chain(&fresh).chain(&retry[first..]).copied().collect::<Vec<_>>();
        for index in order {
            let size = self.entries[index].message.size();
            let full = jobs == 0 || (bytes > 0 && bytes + size > credit.bytes);
            // One for each consumer that is read may come beyond the credit, in jobs or in bytes.
            if full && !std::mem::take(&mut over) {
                break;
            }
            let is_suspect = self.entries[index].crashes + 1 >= self.shape().max_crashes;
            let condemned = self.entries[index].crashes >= self.shape().max_crashes;
            if is_suspect && !condemned {
                if !suspect {
                    continue;
                }
                suspect = false;
            }
            // Entries of a key that were ready together: the first of them was just taken.
            if !self.is_first_of_key(index) {
                continue;
            }
            bytes += size;
            jobs = jobs.saturating_sub(1);
            given.push(self.hold(now, worker, index, is_suspect && !condemned, condemned));
        }
        if given.is_empty() { Take::Nothing(self.next_ready(now, queue)) } else { Take::Some(given) }
    }

    /// What is in hand, and what may still arrive, never exceeds the slots.
    pub(super) fn look_at_credit(&mut self, now: u64, worker: usize, queue: usize, credit: Credit) {
        self.asked += 1;
        let in_hand = |entry: &&Entry| {
            let Place::Held(hold) = &entry.place else { return false };
            hold.worker == worker && !hold.settling && hold.run.is_none_or(|run| run.ended.is_none())
        };
        let in_hand = self.entries.iter().filter(in_hand).count();
        let more = if self.shape().over_credit { self.shape().queues } else { 0 };
        if credit.jobs == 0 || credit.fresh_floor + credit.retry_floor > credit.jobs {
            self.wrong(now, Law::Credit, format!("worker {worker} asks for {credit:?}"));
        }
        if in_hand + credit.jobs > self.shape().slots + more {
            let slots = self.shape().slots;
            let what = format!("worker {worker} has {in_hand} in hand and asks for {} on {slots} slots", credit.jobs);
            self.wrong(now, Law::Credit, what);
        }
        self.tell(now, format_args!("worker {worker} asks queue {queue} for {}", credit.jobs));
    }

    pub(super) fn ready(&self, now: u64, queue: usize, lane: Lane) -> Vec<usize> {
        let ready = |(index, entry): (usize, &Entry)| {
            let fits = entry.queue == queue && entry.lane() == lane;
            let ready = fits && matches!(entry.place, Place::Ready(since) if since <= now);
            (ready && self.is_first_of_key(index)).then_some(index)
        };
        self.entries.iter().enumerate().filter_map(ready).collect()
    }

    pub(super) fn next_ready(&self, now: u64, queue: usize) -> Option<u64> {
        let since = |entry: &Entry| match entry.place {
            Place::Ready(since) if entry.queue == queue && since > now => Some(since),
            _ => None,
        };
        self.entries.iter().filter_map(since).min()
    }

    /// Whether no earlier message of its key is unfinished, where that matters.
    pub(super) fn is_first_of_key(&self, index: usize) -> bool {
        let entry = &self.entries[index];
        if entry.queue != 2 || !self.ordered || entry.message.key.is_none() {
            return true;
        }
        let before = |other: &&Entry| {
            let same = other.queue == entry.queue && other.by_topic == entry.by_topic;
            same && other.message.key == entry.message.key && !matches!(other.place, Place::Done(_) | Place::Dead)
        };
        !self.entries[..index].iter().any(|other| before(&other))
    }

    pub(super) fn hold(&mut self, now: u64, worker: usize, index: usize, suspect: bool, condemned: bool) -> Given {
        let marks_all = self.shape().marks_all;
        let entry = &mut self.entries[index];
        entry.generation += 1;
        let needs_mark = marks_all || entry.redelivered;
        let lane = entry.lane();
        entry.place = Place::Held(Box::new(Hold {
            worker,
            token: entry.generation,
            taken: now,
            lost: CancellationToken::new(),
            needs_mark,
            marked: false,
            suspect,
            condemned,
            run: None,
            settling: false,
        }));
        let given = Given {
            entry: index,
            token: entry.generation,
            lane,
            message: entry.message.clone(),
            record: entry.record.clone(),
            at: wall(entry.at),
            by_topic: entry.by_topic,
            redelivered: entry.redelivered,
            suspect,
            condemned,
            needs_mark,
        };
        let (number, attempt) = (entry.number, entry.attempt());
        self.tell(now, format_args!("worker {worker} receives job {number}, attempt {attempt}"));
        given
    }

    pub(super) fn holding(&mut self, worker: usize, index: usize, token: u64) -> Option<&mut Hold> {
        match &mut self.entries.get_mut(index)?.place {
            Place::Held(hold) if hold.worker == worker && hold.token == token => Some(hold),
            _ => None,
        }
    }

    /// A delivery was dropped.
    pub fn release(&mut self, now: u64, worker: usize, index: usize, token: u64) {
        if !self.call(now, worker) {
            return;
        }
        let number = self.entries[index].number;
        self.tell(now, format_args!("worker {worker} gives job {number} back"));
        let Some(hold) = self.holding(worker, index, token) else { return };
        if hold.run.is_some_and(|run| run.ended.is_none()) {
            let what = format!("worker {worker} gave job {number} back while it ran it");
            self.wrong(now, Law::EarlySettlement, what);
        }
        self.entries[index].place = Place::Ready(now);
        self.wake(self.entries[index].queue, now);
        self.check_moving(now, worker);
    }

    /// The token that is cancelled when the lease is lost.
    pub fn lost(&mut self, worker: usize, index: usize, token: u64) -> CancellationToken {
        if let Some(hold) = self.holding(worker, index, token) {
            return hold.lost.clone();
        }
        let lost = CancellationToken::new();
        lost.cancel();
        lost
    }

    /// Stores that a delivery is about to start.
    pub fn mark(&mut self, now: u64, worker: usize, index: usize, token: u64) -> bool {
        if !self.call(now, worker) || self.chance.misbehaves(1) == 1 {
            return false;
        }
        let Some(hold) = self.holding(worker, index, token) else { return false };
        hold.marked = true;
        let number = self.entries[index].number;
        self.tell(now, format_args!("worker {worker} marks job {number}"));
        true
    }
}
