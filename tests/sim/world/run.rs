//! Runs: what handlers did, and whether they might.

use super::*;

impl World {
    /// A handler begins; `None`: its process is dead.
    pub fn run(&mut self, now: u64, worker: usize, queue: usize, number: u64, attempt: u32) -> Option<u32> {
        if !self.call(now, worker) {
            return None;
        }
        let serial = self.records.len() as u32;
        self.tell(now, format_args!("worker {worker} runs job {number} of queue {queue}, attempt {attempt}"));
        self.record(now, worker, queue, number, attempt, serial, What::Start);
        if let Some(what) = self.look_at_start(now, worker, queue, number, attempt) {
            self.wrong(now, what.law, what.what);
        }
        Some(serial)
    }

    pub(super) fn look_at_start(
        &mut self,
        now: u64,
        worker: usize,
        queue: usize,
        number: u64,
        attempt: u32,
    ) -> Option<Broken> {
        let left = self.workers[worker].leaving.filter(|since| now > *since);
        let broken = |law, what: &str| Some(Broken { law, what: format!("worker {worker} ran job {number} {what}") });
        let other_suspect = self.entries.iter().any(|entry| {
            let Place::Held(hold) = &entry.place else { return false };
            let other = entry.number != number || entry.queue != queue;
            other && hold.worker == worker && hold.suspect && hold.run.is_some_and(|run| run.ended.is_none())
        });
        let entry = self.entries.iter_mut().find(|entry| {
            let same = entry.number == number && entry.queue == queue;
            same && matches!(&entry.place, Place::Held(hold) if hold.worker == worker && hold.run.is_none())
        });
        let Some(entry) = entry else { return broken(Law::Unowned, "without holding it") };
        let stored = entry.attempt();
        let Place::Held(hold) = &mut entry.place else { return None };
        hold.run = Some(Run { ended: None });
        if hold.settling {
            return broken(Law::EarlySettlement, "after it had settled it");
        }
        if hold.needs_mark && !hold.marked {
            return broken(Law::Unmarked, "without having marked it");
        }
        if hold.condemned {
            return broken(Law::Condemned, "though it was condemned");
        }
        if hold.suspect && other_suspect {
            return broken(Law::TwoSuspects, "beside another suspect");
        }
        if stored != attempt {
            return broken(Law::Attempt, &format!("as attempt {attempt}, which was stored as {stored}"));
        }
        if let Some(since) = left {
            return broken(Law::StartedLeaving, &format!("{} ms after it was told to leave", now - since));
        }
        None
    }

    /// A handler ended.
    #[expect(clippy::too_many_arguments, reason = "what a record says")]
    pub fn ran(&mut self, now: u64, worker: usize, queue: usize, number: u64, attempt: u32, serial: u32, how: What) {
        if self.workers[worker].dead {
            return;
        }
        self.tell(now, format_args!("worker {worker} ended job {number} of queue {queue}: {how:?}"));
        self.record(now, worker, queue, number, attempt, serial, how);
        let mine = |entry: &&mut Entry| entry.number == number && entry.queue == queue;
        for entry in self.entries.iter_mut().filter(mine) {
            if let Place::Held(hold) = &mut entry.place
                && hold.worker == worker
                && let Some(run) = &mut hold.run
            {
                run.ended = Some(how);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a record says")]
    pub(super) fn record(
        &mut self,
        now: u64,
        worker: usize,
        queue: usize,
        job: u64,
        attempt: u32,
        serial: u32,
        what: What,
    ) {
        let at = ns(now) + self.steps;
        let queue = QUEUES[queue].to_owned();
        self.records.push(record::Record { what, job, queue, attempt, pid: worker as u32, serial, at });
    }
}
