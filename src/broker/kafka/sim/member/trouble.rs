//! What befalls workers: kills, stops, sessions that end, leaders that forget.

use super::super::World;
use super::super::log::Log;
use super::Member;
use crate::broker::schedule::{Broken, Choices};

impl World {
    /// `kill -9`: what it had sent may still arrive, and its place is taken by another process.
    pub fn crash(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        choices.tell(|| format!("worker {} is killed", self.members[at].number));
        if choices.pick(2) == 1 {
            // What it had sent arrives, before the group knows.
            self.answer(&mut Choices::none(), at)?;
        }
        self.born += 1;
        let fresh = Member::new(self.born, &self.clock, self.shape, self.generation);
        let mut dead = std::mem::replace(&mut self.members[at], fresh);
        let number = dead.number;
        for (place, log) in self.logs.iter_mut().enumerate().filter(|(_, log)| log.owner == Some(number)) {
            log.owner = None;
            gone(log, place, &mut dead, false);
        }
        for run in dead.runs.iter().filter(|run| run.live && run.orphan) {
            let entry = self.logs[run.at.0].entries.get_mut(&run.at.1).expect("it was handed out");
            entry.died.insert(number);
        }
        dead.die();
        self.rebalanced();
        Ok(())
    }

    /// The group has a new generation: whoever is there joins it.
    fn rebalanced(&mut self) {
        self.generation += 1;
        for member in self.members.iter_mut().filter(|member| !member.frozen && !member.expelled) {
            member.generation = self.generation;
        }
    }

    /// SIGSTOP.
    pub fn freeze(&mut self, choices: &mut Choices, at: usize) {
        choices.tell(|| format!("worker {} is stopped", self.members[at].number));
        self.members[at].frozen = true;
    }

    /// Its session ends: its partitions go to others.
    pub fn expel(&mut self, choices: &mut Choices, at: usize) {
        let member = &mut self.members[at];
        if member.expelled {
            return;
        }
        choices.tell(|| format!("worker {} is held to be dead", member.number));
        member.expelled = true;
        let number = member.number;
        for (place, log) in self.logs.iter_mut().enumerate().filter(|(_, log)| log.owner == Some(number)) {
            log.owner = None;
            gone(log, place, member, true);
        }
        self.rebalanced();
    }

    /// SIGCONT; it learns what it lost, and joins anew.
    pub fn thaw(&mut self, choices: &mut Choices, at: usize) {
        let member = &mut self.members[at];
        if member.frozen && member.expelled && choices.once_in(2) {
            // It goes on for a while before it learns.
            member.frozen = false;
            return choices.tell(|| format!("worker {} goes on, and knows of nothing", member.number));
        }
        member.frozen = false;
        if member.expelled {
            choices.tell(|| format!("worker {} learns what it lost", member.number));
            let places: Vec<usize> = member.seats.keys().copied().collect();
            places.into_iter().for_each(|place| member.lose(place));
            member.drains.clear();
            member.expelled = false;
        }
        member.generation = self.generation;
    }

    /// The coordinator's leader changes, and the new one has not heard of the last commit.
    pub fn forget(&mut self, choices: &mut Choices) {
        let log = choices.pick(self.logs.len());
        let log = &mut self.logs[log];
        if log.committed.len() > 1 {
            log.committed.pop();
            choices.tell(|| format!("the last commit of {} is forgotten", log.name()));
        }
    }
}

/// A partition left a worker: whatever ran of it there may be run by others, and may count as crashed.
pub(super) fn gone(log: &mut Log, place: usize, member: &mut Member, lives: bool) {
    for run in member.runs.iter_mut().filter(|run| run.at.0 == place) {
        if run.live && !run.orphan {
            log.entries.get_mut(&run.at.1).expect("it was handed out").died.insert(member.number);
        }
        run.orphan |= lives;
    }
}
