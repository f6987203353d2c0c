//! Workers: production's writer, whose turns are taken one by one, and what the engine would have in hand of it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::settle::Settling;
use super::{At, Job, MAX_CRASHES, World, plain, target};
use crate::broker::schedule::{Broken, Choices};
use crate::broker::sqlite::command::{Command, Mark, Post};
use crate::broker::sqlite::desk::Desk;
use crate::broker::sqlite::tests::{body, message};
use crate::broker::sqlite::writer::{Start, Writer};
use crate::broker::sqlite::{machine::Process, register};
use crate::broker::{Credit, Delivery, Destination, Error, Published, Role};
use crate::message::Topic;

/// Whether the start of a delivery is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    No,
    /// It was asked for, and not answered.
    Asked,
    /// It is not: the worker had lost it.
    Refused,
    Yes,
}

/// What a worker has in hand.
pub struct Held {
    pub number: u32,
    pub delivery: Delivery,
    pub begun: Begun,
    /// Its worker knows that it lost it.
    pub lost: bool,
}

/// What a publisher waits for.
type Posted = oneshot::Receiver<Vec<Result<Published, Error>>>;

/// The wish of a source that waits.
pub struct Receiving {
    jobs: usize,
    suspect: bool,
    answer: BoxFuture<'static, Result<Vec<Delivery>, Error>>,
}

/// A worker's process.
pub struct Worker {
    /// Its number among all that ever were.
    pub id: u64,
    pub writer: Writer,
    pub commands: mpsc::UnboundedSender<Command>,
    pub desk: Arc<Desk>,
    pub receiving: Option<Receiving>,
    pub held: Vec<Held>,
    pub settling: Vec<Settling>,
    marking: Option<(u32, oneshot::Receiver<Vec<bool>>)>,
    posting: Option<(u32, Posted)>,
    pub frozen: bool,
    /// It has been, and did not renew its lease since.
    pub was_frozen: bool,
    /// Its lease lasts until then, by the clock of leases.
    until: i64,
    renew_at: Instant,
}

impl Worker {
    /// Its lease may have been taken, for it was frozen until after its end.
    pub fn may_have_lost(&self) -> bool {
        self.was_frozen && self.until < self.writer.monotonic.now()
    }

    /// What it has not settled: its number, whether it began, whether it knows that it lost it.
    fn unsettled(&self) -> impl Iterator<Item = (u32, Begun, bool)> {
        let settling = self.settling.iter().map(|settling| (settling.number, settling.begun, settling.lost));
        self.held.iter().map(|held| (held.number, held.begun, held.lost)).chain(settling)
    }

    /// It has this no more, or may have lost it.
    pub fn has_lost(&self, number: u32) -> bool {
        self.may_have_lost() || self.unsettled().all(|(other, _, lost)| other != number || lost)
    }

    fn lose_all(&mut self) {
        self.held.iter_mut().for_each(|held| held.lost = true);
        self.settling.iter_mut().for_each(|settling| settling.lost = true);
    }
}

impl World {
    /// One more worker comes.
    pub async fn join(&mut self) {
        if self.locked {
            // It could not open the file, and would be started again.
            return;
        }
        self.born += 1;
        let (sender, commands) = mpsc::unbounded_channel();
        let mut options = plain();
        options.worker = self.born.to_string().into();
        options.clock = self.clock.clone();
        options.queues = vec![self.queue.clone()];
        let target = target(&self.path());
        let connection = target.open_writer().await.expect("it is ours");
        let mut writer = Writer::new(Start {
            connection,
            path: target.path.clone(),
            clock: options.clock.clone(),
            name: options.worker.clone(),
            lease: options.lease,
            commands,
            connected: Arc::new(AtomicBool::new(true)),
        });
        if self.apart {
            let this = Process::this();
            writer.process = Process { pidns: this.pidns + self.born as i64, ..this };
        }
        register::process(&mut writer, &options.queues, Role::Worker).await.expect("nobody has the lock");
        let desk = writer.open(self.queue.clone(), sender.downgrade()).await.expect("it is a worker");
        let until = writer.monotonic.now() + options.lease.as_millis() as i64;
        let renew_at = writer.renew_at;
        self.workers.push(Worker {
            id: self.born,
            writer,
            commands: sender,
            desk,
            receiving: None,
            held: Vec::new(),
            settling: Vec::new(),
            marking: None,
            posting: None,
            frozen: false,
            was_frozen: false,
            until,
            renew_at,
        });
    }

    /// A turn of the writer, and what it answered.
    pub async fn turn(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        if self.workers[at].frozen {
            return Ok(());
        }
        // What is polled below has a budget, which is given anew after this.
        tokio::task::yield_now().await;
        let worker = &mut self.workers[at];
        let (row, excused, lease) = (worker.writer.worker, worker.may_have_lost(), worker.writer.lease);
        worker.writer.take_commands().await;
        worker.writer.turn().await;
        if worker.writer.worker != row {
            worker.lose_all();
            if !excused {
                return Err(("evicted", format!("worker {} was not frozen, and lost its lease", worker.id)));
            }
        }
        // A refusal sets a nearer time than this.
        if worker.writer.renew_at != worker.renew_at && worker.writer.renew_at == Instant::now() + lease / 3 {
            (worker.renew_at, worker.was_frozen) = (worker.writer.renew_at, false);
            worker.until = worker.writer.monotonic.now() + lease.as_millis() as i64;
        }
        self.posted(at);
        self.settled(choices, at).await?;
        self.marked(at);
        self.arrived(choices, at).await
    }

    pub async fn publish(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        // One at a time, so that what is published later is stored later.
        if self.workers[at].frozen || self.workers.iter().any(|worker| worker.posting.is_some()) {
            return Ok(());
        }
        let number = self.jobs.len() as u32 + 1;
        let (key, enqueued) = (choices.pick(3) as u8, choices.once_in(4));
        let later = if enqueued { [0, 300][choices.pick(2)] } else { 0 };
        let key = (key < 2).then_some(key);
        let due = self.now() + later;
        choices.tell(|| format!("job {number} is published, key {key:?}, enqueued {enqueued}, due in {later} ms"));
        let destination = if enqueued {
            let not_before = (later > 0).then(|| crate::time::Timestamp::from_millis(due));
            Destination::Queue { queue: self.queue.name.clone(), job: None, not_before }
        } else {
            Destination::Topic(Topic::new("t").expect("a topic"))
        };
        let mut message = message(&number.to_string());
        message.key = key.map(|key| bytes::Bytes::from(vec![key]));
        let id = number.to_string();
        let batch = vec![crate::broker::Publication { destination, message, id, allow_unheard: false }];
        let (reply, answer) = oneshot::channel();
        let post = Post { batch, reply, deadline: Instant::now() + Duration::from_secs(3_600) };
        let line = key.map(|key| (enqueued, key));
        self.jobs.insert(number, Job { line, at: At::Waits(due), attempt: 1, crashes: (0, 0) });
        self.workers[at].posting = Some((number, answer));
        self.ask(at, Command::Publish(post));
        self.turn(choices, at).await
    }

    fn ask(&self, at: usize, command: Command) {
        assert!(self.workers[at].commands.send(command).is_ok(), "the writer is there");
    }

    fn posted(&mut self, at: usize) {
        if let Some((_, answer)) = &mut self.workers[at].posting
            && let Ok(results) = answer.try_recv()
        {
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            self.workers[at].posting = None;
        }
    }

    /// The source waits for deliveries, where it does not yet, and the writer has a turn.
    pub async fn receive(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        let credit = 1 + choices.pick(3);
        let shy = choices.once_in(6);
        let worker = &mut self.workers[at];
        if worker.frozen {
            return Ok(());
        }
        let alone = worker.held.iter().all(|held| !held.delivery.suspect);
        // The engine asks anew when a suspect may come that its credit ruled out.
        worker.receiving.take_if(|receiving| alone && !receiving.suspect);
        if worker.receiving.is_none() {
            let suspect = !shy && alone;
            let credit = Credit { jobs: credit, fresh_floor: 1, retry_floor: 1, bytes: 1 << 30, suspect };
            let desk = worker.desk.clone();
            let answer = Box::pin(async move { desk.receive(credit).await });
            worker.receiving = Some(Receiving { jobs: credit.jobs, suspect, answer });
        }
        // It says what it wants once it is polled.
        self.arrived(choices, at).await?;
        self.turn(choices, at).await
    }

    /// Looks whether the source has an answer: every law on who may be given what.
    async fn arrived(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        let worker = &mut self.workers[at];
        let Some(receiving) = &mut worker.receiving else { return Ok(()) };
        let std::task::Poll::Ready(received) = futures_util::poll!(&mut receiving.answer) else { return Ok(()) };
        let (credit, id) = (receiving.jobs, worker.id);
        worker.receiving = None;
        let received = received.map_err(|error| ("failed", error.to_string()))?;
        if received.len() > credit {
            return Err(("credit", format!("worker {id} asked for {credit} and got {}", received.len())));
        }
        for delivery in received {
            let number: u32 = body(&delivery).parse().expect("a number");
            choices.tell(|| {
                let (suspect, condemned) = (delivery.suspect, delivery.condemned);
                let attempt = delivery.attempt();
                format!(
                    "worker {id} receives job {number}, attempt {attempt}, suspect {suspect}, condemned {condemned}"
                )
            });
            self.lawful(id, number, &delivery)?;
            self.jobs.get_mut(&number).expect("known").at = At::Held(id);
            self.workers[at].held.push(Held { number, delivery, begun: Begun::No, lost: false });
        }
        Ok(())
    }

    fn lawful(&mut self, id: u64, number: u32, delivery: &Delivery) -> Result<(), Broken> {
        let now = self.now();
        let job = &self.jobs[&number];
        let broken = |law: &'static str| Err((law, format!("worker {id} got job {number}: {job:?}")));
        let mut doubted = 0;
        match job.at {
            At::Done | At::Dead => return broken("repeated"),
            At::Waits(due) if due > now => return broken("early"),
            At::Waits(_) => {}
            At::Held(owner) if owner == id => return broken("twice"),
            At::Held(owner) => {
                if let Some(owner) = self.workers.iter().find(|worker| worker.id == owner) {
                    let its = owner.unsettled().find(|(other, ..)| *other == number);
                    let Some((_, begun, lost)) = its else { return broken("two owners") };
                    if !lost && !owner.may_have_lost() {
                        return broken("two owners");
                    }
                    doubted = u32::from(self.apart && begun != Begun::No);
                }
            }
        }
        if delivery.attempt().get() != job.attempt {
            return broken("attempt");
        }
        let before = |(other, it): (&u32, &Job)| *other < number && it.line == job.line && !it.has_ended();
        if self.queue.ordered && job.line.is_some() && self.jobs.iter().any(before) {
            return broken("order");
        }
        let (certain, possible) = (job.crashes.0, job.crashes.1 + doubted);
        if delivery.condemned && possible < MAX_CRASHES || delivery.suspect && possible < MAX_CRASHES - 1 {
            return broken("condemned");
        }
        if !delivery.condemned && certain >= MAX_CRASHES
            || !delivery.condemned && !delivery.suspect && certain >= MAX_CRASHES - 1
        {
            return broken("uncounted");
        }
        self.jobs.get_mut(&number).expect("known").crashes.1 = possible;
        Ok(())
    }

    /// One that is in hand begins: its start is stored, where it has to be.
    pub async fn begin(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        let worker = &mut self.workers[at];
        if worker.frozen || worker.marking.is_some() {
            return Ok(());
        }
        let unbegun =
            |held: &&mut Held| held.begun == Begun::No && held.delivery.needs_mark && !held.delivery.condemned;
        let Some(held) = worker.held.iter_mut().find(unbegun) else { return Ok(()) };
        held.begun = Begun::Asked;
        let (reply, answer) = oneshot::channel();
        let events = vec![held.delivery.token.0 as i64];
        worker.marking = Some((held.number, answer));
        choices.tell(|| format!("worker {} marks job {}", worker.id, held.number));
        let mark = Mark { desk: worker.desk.clone(), events, reply };
        self.ask(at, Command::Mark(mark));
        self.turn(choices, at).await
    }

    fn marked(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        let Some((number, answer)) = &mut worker.marking else { return };
        let Ok(stored) = answer.try_recv() else { return };
        let begun = if stored == [true] { Begun::Yes } else { Begun::Refused };
        worker.held.iter_mut().filter(|held| held.number == *number).for_each(|held| held.begun = begun);
        worker.marking = None;
    }

    pub fn freeze(&mut self, choices: &mut Choices, at: usize) {
        let worker = &mut self.workers[at];
        choices.tell(|| format!("worker {} is frozen", worker.id));
        (worker.frozen, worker.was_frozen) = (true, true);
    }

    pub fn thaw(&mut self, choices: &mut Choices, at: usize) {
        let worker = &mut self.workers[at];
        if std::mem::take(&mut worker.frozen) {
            choices.tell(|| format!("worker {} goes on", worker.id));
        }
    }

    /// `kill -9`: it does not exist any more, and others in its namespace see that.
    pub async fn kill(&mut self, choices: &mut Choices, at: usize) {
        let worker = self.workers.remove(at);
        choices.tell(|| format!("worker {} is killed", worker.id));
        let may_have_lost = worker.may_have_lost();
        for (number, begun, lost) in worker.unsettled() {
            let job = self.jobs.get_mut(&number).expect("known");
            if job.at == At::Held(worker.id) && begun != Begun::No {
                job.crashes.0 += u32::from(begun == Begun::Yes && !lost && !may_have_lost);
                job.crashes.1 += 1;
            }
        }
        if let Some((number, _)) = &worker.posting {
            self.jobs.remove(number);
        }
        self.unlock(choices).await;
        let gone = sqlx::query("UPDATE worker SET born = born - 1 WHERE id = ?").bind(worker.writer.worker);
        gone.execute(&mut self.beside).await.expect("nobody has the lock");
    }

    /// Told to leave, and its grace is over: what it has in hand goes back.
    pub async fn leave(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        if self.workers[at].frozen {
            return Ok(());
        }
        self.turn(choices, at).await?;
        let mut worker = self.workers.remove(at);
        choices.tell(|| format!("worker {} leaves", worker.id));
        let (id, now, excused) = (worker.id, self.now(), worker.may_have_lost());
        let unsettled: Vec<_> = worker.unsettled().collect();
        worker.receiving = None;
        worker.writer.close().await;
        for mut settling in worker.settling {
            self.ended(choices, id, &mut settling, excused).await?;
        }
        for (number, begun, _) in unsettled {
            let job = self.jobs.get_mut(&number).expect("known");
            if job.at == At::Held(id) {
                // Where the file was locked it could not sign off: its lease runs out, which may count.
                job.crashes.1 += u32::from(self.locked && begun != Begun::No);
                job.at = At::Waits(now);
            }
        }
        if let Some((number, answer)) = &mut worker.posting
            && !answer.try_recv().is_ok_and(|results| results.iter().all(Result::is_ok))
        {
            self.jobs.remove(number);
        }
        Ok(())
    }
}
