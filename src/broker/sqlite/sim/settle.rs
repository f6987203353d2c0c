//! How runs end, and what the file makes of it.

use futures_util::future::BoxFuture;

use super::worker::{Begun, Held};
use super::{At, World};
use crate::broker::schedule::{Broken, Choices};
use crate::broker::sqlite::Settling as Handle;
use crate::broker::sqlite::tests::{dead, retry_at};
use crate::broker::{Disposition, Settled, Settler};
use crate::message::Reason;
use crate::time::Timestamp;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Done,
    /// Again, from this moment on.
    Again(i64),
    Dead,
    GivenBack,
}

/// A settlement on its way.
pub struct Settling {
    pub number: u32,
    attempt: u32,
    pub begun: Begun,
    /// Its worker knows that it lost it.
    pub lost: bool,
    how: How,
    answer: BoxFuture<'static, Vec<Settled>>,
}

impl World {
    /// A run of this worker ends.
    pub async fn finish(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        let now = self.now();
        let worker = &mut self.workers[at];
        if worker.frozen || worker.held.is_empty() {
            return Ok(());
        }
        let which = choices.pick(worker.held.len());
        let held = &worker.held[which];
        let starts = !held.delivery.needs_mark || held.begun == Begun::Yes;
        if held.begun == Begun::Asked {
            return Ok(());
        }
        let mut how = match choices.pick(10) {
            0..=3 => Some(How::Done),
            again @ 4..=6 => Some(How::Again(now + [0, 200, 1_000][again - 4])),
            7 => Some(How::Dead),
            8 => Some(How::GivenBack),
            _ => None,
        };
        if held.delivery.condemned {
            how = Some(How::Dead);
        } else if !starts {
            // What may not begin is given back.
            how = how.filter(|_| held.begun == Begun::No).map(|_| How::GivenBack);
        }
        let Held { number, delivery, begun, lost } = worker.held.remove(which);
        choices.tell(|| format!("worker {}: job {number} {}", worker.id, told(how)));
        let Some(how) = how else {
            self.dropped(at, number, begun);
            drop(delivery);
            return self.turn(choices, at).await;
        };
        let attempt = delivery.attempt().get();
        let disposition = match how {
            How::Done => Disposition::Ack,
            How::Again(due) => retry_at(Timestamp::from_millis(due), attempt + 1),
            How::Dead => dead(Reason::Permanent, "x"),
            How::GivenBack => Disposition::Release,
        };
        let handle = Handle { desk: worker.desk.clone(), commands: worker.commands.clone() };
        let answer = handle.settle(vec![delivery.settle(disposition)]);
        worker.settling.push(Settling { number, attempt, begun, lost, how, answer });
        if choices.once_in(3) { Ok(()) } else { self.turn(choices, at).await }
    }

    /// Nobody runs it any more, whatever the file says yet.
    fn dropped(&mut self, at: usize, number: u32, begun: Begun) {
        let (id, now) = (self.workers[at].id, self.now());
        let waits = self.locked || self.workers[at].writer.retry_at.is_some();
        let job = self.jobs.get_mut(&number).expect("known");
        if job.at == At::Held(id) {
            // A death before that is stored counts: the file says that it runs.
            job.crashes.1 += u32::from(waits && begun != Begun::No);
            job.at = At::Waits(now);
        }
    }

    /// Looks which settlements were answered.
    pub async fn settled(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        let id = self.workers[at].id;
        let excused = self.workers[at].may_have_lost();
        for mut settling in std::mem::take(&mut self.workers[at].settling) {
            if !self.ended(choices, id, &mut settling, excused).await? {
                self.workers[at].settling.push(settling);
            }
        }
        Ok(())
    }

    /// Whether it was answered; every law on what may be stored. `excused`: its worker may have lost all.
    pub async fn ended(
        &mut self,
        choices: &mut Choices,
        id: u64,
        settling: &mut Settling,
        excused: bool,
    ) -> Result<bool, Broken> {
        let std::task::Poll::Ready(answer) = futures_util::poll!(&mut settling.answer) else { return Ok(false) };
        let Settling { number, attempt, lost, how, .. } = *settling;
        choices.tell(|| format!("worker {id} is told of job {number}: {answer:?}"));
        let now = self.now();
        let job = self.jobs.get_mut(&number).expect("known");
        let broken = |law: &'static str| Err((law, format!("worker {id} settled job {number} as {how:?}: {job:?}")));
        let mine = job.at == At::Held(id);
        let owner = |id: u64| self.workers.iter().find(|worker| worker.id == id);
        let lives = matches!(job.at, At::Held(id) if owner(id).is_some_and(|owner| !owner.has_lost(number)));
        let left = job.attempt == attempt && matches!(job.at, At::Held(_)) && !lives;
        let waits = matches!(job.at, At::Waits(_)) && job.attempt == attempt;
        match answer.into_iter().next().expect("one was asked for") {
            // Of what it lost it may have taken back what nobody else had, or what its next owner lost as well.
            Settled::Stored if !mine && !(lost && (waits || left)) => return broken("stolen"),
            Settled::Stored => match how {
                How::Done => job.at = At::Done,
                How::Dead => job.at = At::Dead,
                How::GivenBack => job.at = At::Waits(now),
                How::Again(due) => (job.at, job.attempt) = (At::Waits(due), attempt + 1),
            },
            Settled::Stale if mine && !lost && !excused => return broken("evicted"),
            // A late success ends what waits for the same attempt; nothing else changes anything.
            Settled::Stale if how == How::Done && (mine || waits) => job.at = At::Done,
            Settled::Stale if mine => job.at = At::Waits(now),
            Settled::Stale => {}
            Settled::Unconfirmed(_) => return Ok(false),
        }
        Ok(true)
    }
}

fn told(how: Option<How>) -> String {
    match how {
        Some(How::Done) => "succeeds".to_owned(),
        Some(How::Again(due)) => format!("fails, and is due again at {due}"),
        Some(How::Dead) => "becomes a dead letter".to_owned(),
        Some(How::GivenBack) => "is given back".to_owned(),
        None => "is dropped".to_owned(),
    }
}
