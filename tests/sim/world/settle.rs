//! Settlements on their way: late, lost, doubled, refused, stored, answered.

use super::*;

impl World {
    /// A worker settles; the answer comes by the channel.
    pub fn settle(
        &mut self,
        now: u64,
        worker: usize,
        index: usize,
        token: u64,
        disposition: Disposition,
        answer: oneshot::Sender<Settled>,
    ) {
        if !self.call(now, worker) {
            return;
        }
        let number = self.entries[index].number;
        self.tell(now, format_args!("worker {worker} settles job {number}: {}", brief(&disposition)));
        self.look_at_settlement(now, worker, index, token, &disposition);
        if let Some(hold) = self.holding(worker, index, token) {
            hold.settling = true;
        }
        self.ops.push(Op { entry: index, token, worker, disposition, answer: Some(answer), applied: None });
        let op = self.ops.len() - 1;
        if self.holding(worker, index, token).is_none() {
            // The adapter knows that it has lost it.
            return self.apply(now, op);
        }
        let delay = match self.chance.misbehaves(3) {
            1 => self.chance.millis(5..60),
            2 => self.chance.millis(60..200),
            // The request is lost: it is sent again.
            3 => self.chance.millis(PATIENCE),
            _ => self.chance.millis(0..3),
        };
        self.push(now + delay, Event::Apply(op));
    }

    pub(super) fn look_at_settlement(
        &mut self,
        now: u64,
        worker: usize,
        index: usize,
        token: u64,
        disposition: &Disposition,
    ) {
        let (number, attempt) = (self.entries[index].number, self.entries[index].attempt());
        let twice = self.ops.iter().any(|op| op.worker == worker && op.entry == index && op.token == token);
        if twice {
            self.wrong(now, Law::Twice, format!("worker {worker} settled job {number} twice"));
        }
        let Some(hold) = self.holding(worker, index, token) else { return };
        let run = hold.run.map(|run| run.ended);
        let wrong = match (run, disposition) {
            (Some(None), _) => Some("while it ran"),
            (None, Disposition::Ack) => Some("as done, and had not run it"),
            (Some(Some(how)), Disposition::Ack) if how != What::Done => Some("as done, which it was not"),
            (Some(Some(What::Done)), disposition) if *disposition != Disposition::Ack => Some("otherwise than as done"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            let what = format!("worker {worker} settled job {number} {wrong}: {}", brief(disposition));
            self.wrong(now, Law::EarlySettlement, what);
        }
        if let Disposition::Retry { attempt: next, failure, .. } = disposition
            && next.get() != attempt + u32::from(failure.is_some())
        {
            let what = format!("job {number} goes from attempt {attempt} to {next} with {failure:?}");
            self.wrong(now, Law::Attempt, what);
        }
    }

    pub(super) fn apply(&mut self, now: u64, op: usize) {
        let (worker, index, token) = (self.ops[op].worker, self.ops[op].entry, self.ops[op].token);
        if self.ops[op].applied.is_some() {
            return self.push(now, Event::Answer(op));
        }
        let away = self.down.max(if self.workers[worker].dead { 0 } else { self.workers[worker].cut });
        if away > now {
            let later = self.chance.millis(0..5);
            return self.push(away + later, Event::Apply(op));
        }
        let refused = matches!(self.ops[op].disposition, Disposition::DeadLetter { .. }) && self.refusing > now;
        if refused && self.holding(worker, index, token).is_some() {
            if self.workers[worker].dead {
                return;
            }
            return self.push(self.refusing, Event::Apply(op));
        }
        let settled = self.carry_out(now, op);
        self.ops[op].applied = Some(settled);
        let delay = match self.chance.misbehaves(2) {
            1 => self.chance.millis(5..100),
            // The answer is lost: it is asked for again, and the broker says the same.
            2 => self.chance.millis(PATIENCE),
            _ => self.chance.millis(0..2),
        };
        self.push(now + delay, Event::Answer(op));
        self.check_moving(now, worker);
    }

    pub(super) fn carry_out(&mut self, now: u64, op: usize) -> Settled {
        let (worker, index, token) = (self.ops[op].worker, self.ops[op].entry, self.ops[op].token);
        let disposition = self.ops[op].disposition.clone();
        let number = self.entries[index].number;
        if self.holding(worker, index, token).is_none() {
            let late = disposition == Disposition::Ack && matches!(self.entries[index].place, Place::Ready(_));
            if late && self.chance.coin() {
                self.entries[index].place = Place::Done(now);
                self.tell(now, format_args!("a late success of worker {worker} ends job {number}"));
            }
            return Settled::Stale;
        }
        self.tell(now, format_args!("stored: {} of job {number}", brief(&disposition)));
        let entry = &mut self.entries[index];
        match disposition {
            Disposition::Ack => entry.place = Place::Done(now),
            Disposition::Release => {
                entry.place = Place::Ready(now);
            }
            Disposition::Retry { at, attempt, failure, unroutable_since } => {
                let since = (at.as_millis() - BEGINNING).max(0) as u64;
                let record = entry.record.take().unwrap_or_default();
                entry.record = Some(record.again(at, attempt, failure, unroutable_since));
                entry.place = Place::Ready(since.max(now));
                // A retry is a new record: nobody has handed it out yet.
                entry.redelivered = false;
            }
            Disposition::DeadLetter { reason, attempts, .. } => {
                entry.place = Place::Dead;
                self.letters.push(judge::Letter {
                    number,
                    queue: QUEUES[entry.queue].to_owned(),
                    reason: reason.as_str().to_owned(),
                    attempts,
                    replays: 0,
                    body: entry.message.body.as_deref().unwrap_or_default().to_vec(),
                });
            }
        }
        let (queue, at) = (self.entries[index].queue, self.next_ready(now, self.entries[index].queue));
        self.wake(queue, at.unwrap_or(now));
        Settled::Stored
    }

    pub(super) fn answer(&mut self, now: u64, op: usize) {
        let worker = self.ops[op].worker;
        if self.workers[worker].dead {
            return;
        }
        if self.workers[worker].cut > now {
            return self.push(self.workers[worker].cut, Event::Answer(op));
        }
        if let (Some(answer), Some(settled)) = (self.ops[op].answer.take(), self.ops[op].applied.clone()) {
            // A worker that is gone waits for no answer.
            let _ = answer.send(settled);
        }
    }

    /// A rebalance goes on as soon as nothing of the queue is in hand.
    pub(super) fn check_moving(&mut self, now: u64, worker: usize) {
        for queue in 0..self.shape().queues {
            let held = self.entries.iter().any(|entry| {
                entry.queue == queue && matches!(&entry.place, Place::Held(hold) if hold.worker == worker)
            });
            if self.workers[worker].moving[queue].is_some() && !held {
                self.workers[worker].moving[queue] = None;
                self.tell(now, format_args!("worker {worker} has handed queue {queue} over"));
                self.wake_all();
            }
        }
    }
}
