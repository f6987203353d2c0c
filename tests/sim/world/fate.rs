//! What befalls workers and the broker, and what becomes of leases then.

use super::*;

impl World {
    /// A process begins at this place.
    pub fn start(&mut self, now: u64, place: usize) -> usize {
        let first = !self.workers.iter().any(|worker| worker.place == place);
        let mut calls = self.schedule.faults.iter().filter_map(|fault| match fault {
            Fault::KillAtCall(call, at) if *at == place => Some(*call),
            _ => None,
        });
        let kill_at_call = if first { calls.next() } else { None };
        let queues = self.shape().queues;
        self.workers.push(Worker {
            place,
            dead: false,
            leaving: None,
            left: false,
            frozen: 0,
            cut: 0,
            calls: 0,
            kill_at_call,
            moving: vec![None; queues],
            wake: (0..queues).map(|_| Arc::new(Notify::new())).collect(),
        });
        let worker = self.workers.len() - 1;
        self.tell(now, format_args!("worker {worker} starts"));
        worker
    }

    /// A worker has left by itself: it may hold nothing, unless an answer is still on its way.
    pub fn gone(&mut self, now: u64, worker: usize, within: u64) {
        self.tell(now, format_args!("worker {worker} has left"));
        let hindered = self.workers[worker].cut > 0 || self.down > 0 || self.refusing > 0;
        let forced = self.shape().grace.as_millis() as u64 + 3_000;
        let since = self.workers[worker].leaving.unwrap_or(now);
        if now.saturating_sub(since) > forced + within {
            self.wrong(now, Law::Leaving, format!("worker {worker} took {} ms to leave", now - since));
        }
        let held = |entry: &&Entry| matches!(&entry.place, Place::Held(hold) if hold.worker == worker);
        let stranded: Vec<u64> = self.entries.iter().filter(held).map(|entry| entry.number).collect();
        if !stranded.is_empty() && !hindered {
            self.wrong(now, Law::Stranded, format!("worker {worker} left and still held jobs {stranded:?}"));
        }
        self.workers[worker].left = true;
        self.die(now, worker);
        let fault = judge::Fault { pid: Some(worker as u32), from: ns(since), to: ns(now), kind: judge::Kind::Left };
        self.faults.push(fault);
        if !self.is_over() {
            let place = self.workers[worker].place;
            self.push(now, Event::Start(place));
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self, now: u64, worker: usize) {
        if self.workers[worker].dead {
            return;
        }
        self.tell(now, format_args!("worker {worker} is killed"));
        // Between the run that began last and whatever comes next.
        let at = ns(now) + self.steps;
        self.faults.push(judge::Fault { pid: Some(worker as u32), from: at, to: at, kind: judge::Kind::Killed });
        self.die(now, worker);
        let (place, pause) = (self.workers[worker].place, self.chance.millis(1..300));
        self.push(now + pause, Event::Start(place));
    }

    pub(super) fn die(&mut self, now: u64, worker: usize) {
        self.workers[worker].dead = true;
        self.stir(now);
        for op in 0..self.ops.len() {
            if self.ops[op].worker == worker && self.ops[op].applied.is_none() && self.chance.coin() {
                // What was sent may have left the machine or not.
                self.ops[op].applied = Some(Settled::Stale);
            }
        }
        self.silence(now, worker);
    }

    /// A worker is silent from now on: its leases end unless it is heard again.
    pub(super) fn silence(&mut self, now: u64, worker: usize) {
        let lease = self.shape().lease.as_millis() as u64;
        for index in 0..self.entries.len() {
            if let Place::Held(hold) = &self.entries[index].place
                && hold.worker == worker
            {
                let renewed = now.saturating_sub(self.chance.millis(0..lease / 3)).max(hold.taken);
                let token = hold.token;
                self.push(renewed + lease, Event::LeaseEnd(index, token));
            }
        }
    }

    pub(super) fn is_silent(&self, now: u64, worker: usize) -> bool {
        let worker = &self.workers[worker];
        worker.dead || worker.frozen > now || worker.cut > now
    }

    /// The worker that works at a place now.
    pub(super) fn at_place(&self, place: usize) -> Option<usize> {
        self.workers.iter().rposition(|worker| worker.place == place && !worker.dead)
    }

    pub(super) fn befall(&mut self, now: u64, fault: Fault) {
        self.tell(now, format_args!("{fault:?}"));
        match fault {
            Fault::Kill(_, place) => {
                if let Some(worker) = self.at_place(place) {
                    self.kill(now, worker);
                }
            }
            Fault::KillAtCall(..) => {}
            Fault::Leave(_, place) => {
                if let Some(worker) = self.at_place(place)
                    && self.workers[worker].leaving.is_none()
                {
                    self.leave(now, worker);
                }
            }
            Fault::Freeze(_, place, lasting) => {
                if let Some(worker) = self.at_place(place) {
                    self.workers[worker].frozen = now + lasting;
                    self.away(now, Some(worker), now + lasting, judge::Kind::Frozen);
                }
            }
            Fault::Cut(_, place, lasting) => {
                if let Some(worker) = self.at_place(place) {
                    self.workers[worker].cut = now + lasting;
                    self.away(now, Some(worker), now + lasting, judge::Kind::Frozen);
                }
            }
            Fault::Broker(_, lasting) => {
                self.down = now + lasting;
                self.away(now, None, now + lasting, judge::Kind::Broker);
                self.forget(now);
            }
            Fault::DeadRefused(_, lasting) => {
                self.refusing = now + lasting;
                let (from, to) = (ns(now), ns(now + lasting));
                self.faults.push(judge::Fault { pid: None, from, to, kind: judge::Kind::Refused });
                self.push(now + lasting, Event::Look);
            }
            Fault::Rebalance(_, place, queue) => {
                if let Some(worker) = self.at_place(place) {
                    let until = now + self.shape().grace.as_millis() as u64;
                    self.workers[worker].moving[queue] = Some(until);
                    self.push(until, Event::Moved(worker, queue));
                }
            }
            Fault::Pause(_, place, queue, lasting) => {
                if let Some(worker) = self.at_place(place) {
                    self.orders.push(Order::Pause(worker, queue, lasting));
                }
            }
            Fault::Slots(_, place, queue, slots) => {
                if let Some(worker) = self.at_place(place) {
                    self.orders.push(Order::Slots(worker, queue, slots));
                }
            }
        }
    }

    /// Tells a worker to leave.
    pub fn leave(&mut self, now: u64, worker: usize) {
        self.tell(now, format_args!("worker {worker} is told to leave"));
        self.workers[worker].leaving = Some(now);
        self.orders.push(Order::Leave(worker));
    }

    pub(super) fn away(&mut self, now: u64, worker: Option<usize>, until: u64, kind: judge::Kind) {
        let pid = worker.map(|worker| worker as u32);
        // A leader that forgets does so with what it answered before.
        let from = if worker.is_none() { now.saturating_sub(FORGETS) } else { now };
        let (from, to) = (ns(from), ns(until));
        // Two that overlap are one longer one.
        let before =
            |fault: &&mut judge::Fault| pid.is_some() && fault.pid == pid && fault.kind == kind && fault.to >= from;
        match self.faults.iter_mut().find(before) {
            Some(before) => before.to = before.to.max(to),
            None => self.faults.push(judge::Fault { pid, from, to, kind }),
        }
        if let Some(worker) = worker {
            self.silence(now, worker);
        }
        self.push(until, Event::Look);
    }

    /// A new leader does not know what the old one had acknowledged and not stored.
    pub(super) fn forget(&mut self, now: u64) {
        for index in 0..self.entries.len() {
            if let Place::Done(at) = self.entries[index].place
                && at + FORGETS > now
                && self.chance.coin()
            {
                let entry = &mut self.entries[index];
                entry.place = Place::Ready(now);
                entry.redelivered = true;
                let (number, queue) = (entry.number, entry.queue);
                self.tell(now, format_args!("the new leader forgets that job {number} was done"));
                self.wake(queue, now);
            }
        }
    }

    pub(super) fn lease_end(&mut self, now: u64, index: usize, token: u64) {
        let Place::Held(hold) = &self.entries[index].place else { return };
        if hold.token != token || !self.is_silent(now, hold.worker) {
            return;
        }
        if self.down > now {
            // A broker that is away ends no lease; one that comes back gives each its whole length.
            let at = self.down + self.shape().lease.as_millis() as u64;
            return self.push(at, Event::LeaseEnd(index, token));
        }
        let worker = hold.worker;
        // A run counts as a crash where it was neither settled nor given back when its worker died.
        let crashed = self.workers[worker].dead && !self.workers[worker].left && hold.run.is_some();
        let counted = crashed && hold.marked;
        self.take_away(now, index, format_args!("the lease of job {{}} ended with worker {worker}"));
        self.entries[index].crashes += u32::from(counted);
    }

    /// Its holder has it no more; it is ready for others.
    pub(super) fn take_away(&mut self, now: u64, index: usize, why: std::fmt::Arguments<'_>) {
        let entry = &mut self.entries[index];
        let why = why.to_string().replace("{}", &entry.number.to_string());
        let queue = entry.queue;
        let before = std::mem::replace(&mut entry.place, Place::Ready(now));
        entry.redelivered = true;
        self.tell(now, format_args!("{why}"));
        if let Place::Held(hold) = before {
            hold.lost.cancel();
            self.unconfirmed(now, index, hold.token);
        }
        self.wake(queue, now);
    }

    /// A settlement that is still on its way when the lease ends is answered as unconfirmed; it may yet arrive.
    pub(super) fn unconfirmed(&mut self, now: u64, entry: usize, token: u64) {
        let op = self.ops.iter_mut().find(|op| op.entry == entry && op.token == token && op.applied.is_none());
        if let Some(answer) = op.and_then(|op| op.answer.take()) {
            self.tell(now, format_args!("a settlement of entry {entry} could not be confirmed"));
            // A worker that is gone waits for no answer.
            let _ = answer.send(Settled::Unconfirmed("the lease ended".to_owned()));
        }
    }

    pub(super) fn moved(&mut self, now: u64, worker: usize, queue: usize) {
        if self.workers[worker].moving[queue].take().is_none() {
            return;
        }
        let mut running = false;
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            if let Place::Held(hold) = &entry.place
                && hold.worker == worker
                && entry.queue == queue
            {
                running |= hold.run.is_some();
                self.take_away(now, index, format_args!("job {{}} moves away from worker {worker}"));
            }
        }
        if running {
            let since = now.saturating_sub(self.shape().grace.as_millis() as u64);
            let fault = judge::Fault {
                pid: Some(worker as u32),
                from: ns(since),
                // What was told to go on may do so for as long as it is allowed to run.
                to: ns(now + self.shape().timeout.as_millis() as u64 + 1_000),
                kind: judge::Kind::Broker,
            };
            self.faults.push(fault);
        }
        self.wake_all();
    }

    /// A call of a worker to its broker or its handlers; `false`: it is dead.
    pub fn call(&mut self, now: u64, worker: usize) -> bool {
        if self.workers[worker].dead {
            return false;
        }
        self.workers[worker].calls += 1;
        if self.workers[worker].kill_at_call.is_some_and(|at| self.workers[worker].calls >= at) {
            self.kill(now, worker);
        }
        !self.workers[worker].dead
    }

    /// Whether this worker reaches the broker now; else when to look again.
    pub fn reaches(&self, now: u64, worker: usize) -> Result<(), u64> {
        let until = self.down.max(self.workers[worker].cut);
        if until > now { Err(until) } else { Ok(()) }
    }

    /// What keeps a queue of this worker from settling.
    pub fn trouble(&self, now: u64, worker: usize, queue: usize) -> Option<windlass::broker::Trouble> {
        use windlass::broker::Trouble;
        if self.refusing > now && self.ops.iter().any(|op| self.is_refused(op, worker, queue)) {
            return Some(Trouble::DeadLetter("refused".to_owned()));
        }
        if self.reaches(now, worker).is_err() {
            return Some(Trouble::Broker("away".to_owned()));
        }
        self.workers[worker].moving[queue].map(|_| Trouble::Rebalance)
    }

    pub(super) fn is_refused(&self, op: &Op, worker: usize, queue: usize) -> bool {
        let dead = matches!(op.disposition, Disposition::DeadLetter { .. });
        dead && op.worker == worker && op.applied.is_none() && self.entries[op.entry].queue == queue
    }
}
