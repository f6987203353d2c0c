//! Workers: production's credit, hand and confirmation, and the pump's steps without its I/O.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::server::{Down, FRESH, Kind, Message, Up, WORK};
use super::{Job, LEASE, SLOTS, World};
use crate::broker::nats::confirm::{Confirm, Item, Verdict};
use crate::broker::nats::credit::{Credit, End, Moment, SILENCE};
use crate::broker::nats::held::{Arrival, Hand, Key, Stage};
use crate::broker::schedule::{Broken, Choices};

/// Nothing begins where leases were not looked at for so long, as in `shared.rs`.
const STALE: Duration = Duration::from_millis(500);

struct Run {
    key: Key,
    message: Message,
}

/// A worker's process.
pub struct Worker {
    /// Its number among all that ever were.
    number: u64,
    /// Connections made so far.
    epoch: u64,
    connected: bool,
    /// It believes that it is connected, and nothing comes or goes.
    half_open: bool,
    /// Its number, and the connection that it was made on.
    inbox: Option<(u64, u64)>,
    inboxes: u64,
    credit: [Credit; 2],
    waiting: [bool; 2],
    hand: Hand<()>,
    messages: BTreeMap<Key, Message>,
    confirm: Confirm<Key>,
    renewals: BTreeMap<u64, (Key, Moment)>,
    renewed: u64,
    ready: VecDeque<Key>,
    runs: Vec<Run>,
    moving: Vec<Run>,
    settling: Vec<Key>,
    checked: Moment,
    unheard: Option<Moment>,
    silences: u32,
    unanswered: bool,
    /// It gave more credit once, because an acknowledgement went without an answer.
    generous: bool,
    frozen: bool,
    /// Starts of the server that it has seen, and the first connection to the last of them.
    boots: u64,
    server: u64,
}

impl Worker {
    pub fn new(number: u64, grouping: bool) -> Self {
        let mut confirm = Confirm::new();
        confirm.set_grouping(grouping);
        Self {
            number,
            epoch: 0,
            connected: false,
            half_open: false,
            inbox: None,
            inboxes: 0,
            credit: [Credit::default(), Credit::default()],
            waiting: [false; 2],
            hand: Hand::new(LEASE),
            messages: BTreeMap::new(),
            confirm,
            renewals: BTreeMap::new(),
            renewed: 0,
            ready: VecDeque::new(),
            runs: Vec::new(),
            moving: Vec::new(),
            settling: Vec::new(),
            checked: Moment::ZERO,
            unheard: None,
            silences: 0,
            unanswered: false,
            generous: false,
            frozen: false,
            boots: 0,
            server: 0,
        }
    }

    fn drop_from_hand(&mut self, key: Key, done: bool) {
        self.hand.remove(key, done);
        self.messages.remove(&key);
        self.ready.retain(|other| *other != key);
    }

    fn unknown(&mut self, items: Vec<Item<Key>>) {
        for mut item in items {
            let Some(held) = self.hand.get(item.token) else { continue };
            if held.lost {
                self.drop_from_hand(item.token, false);
                continue;
            }
            item.epoch = held.epoch;
            self.confirm.offer(item);
            self.unanswered = true;
        }
    }

    /// All that is left is to acknowledge it.
    fn acknowledging(&mut self, key: Key, now: Moment, alone: bool) {
        let Some(held) = self.hand.act(key, now, || {}) else { return };
        held.stage = Stage::Acknowledging;
        let (epoch, alone) = (held.epoch, alone || held.lost);
        self.confirm.offer(Item { token: key, epoch, alone });
    }

    fn reopen(&mut self) {
        self.inboxes += 1;
        self.inbox = Some((self.inboxes, self.epoch));
        self.credit.iter_mut().for_each(Credit::forget);
        self.renewals.clear();
    }

    /// By its own clock, it may act on this.
    fn owns(&mut self, key: Key, now: Moment) -> bool {
        let server = self.server;
        self.hand.act(key, now, || {}).is_some_and(|held| !held.lost && held.epoch >= server)
    }
}

impl World {
    /// A turn of the pump: what came, leases, acknowledgements, pulls.
    pub fn turn(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        let now = self.now;
        if self.workers[at].frozen {
            return Ok(());
        }
        self.inbox(at);
        let late = choices.more() && choices.once_in(5);
        while !late && let Some(down) = self.next_down(at) {
            self.received(choices, at, down)?;
        }
        self.leases(choices, at);
        let worker = &mut self.workers[at];
        worker.checked = now;
        if !worker.connected {
            return Ok(());
        }
        let epoch = worker.epoch;
        let overdue = if worker.confirm.flying() { worker.confirm.overdue(epoch, now) } else { Vec::new() };
        worker.unknown(overdue);
        worker.unanswered &= !worker.confirm.is_empty();
        self.carry_moves(choices, at);
        self.acknowledge(choices, at);
        self.pull(choices, at);
        self.credit(at)
    }

    /// A connection of another number than the inbox's asks for a new one.
    fn inbox(&mut self, at: usize) {
        let (boots, worker) = (self.server.boots, &mut self.workers[at]);
        if !worker.connected || worker.inbox.is_some_and(|(_, epoch)| epoch == worker.epoch) {
            return;
        }
        worker.reopen();
        if boots != worker.boots {
            // Another server: what has not begun here does not begin.
            (worker.boots, worker.server) = (boots, worker.epoch);
            for key in std::mem::take(&mut worker.ready) {
                worker.drop_from_hand(key, false);
            }
        }
    }

    fn next_down(&mut self, at: usize) -> Option<Down> {
        let worker = &self.workers[at];
        if worker.half_open || !worker.connected {
            return None;
        }
        let pipe = self.server.pipes.get_mut(&worker.number)?;
        loop {
            let (inbox, down) = pipe.down.pop_front()?;
            if worker.inbox.is_some_and(|(mine, _)| mine == inbox) {
                return Some(down);
            }
        }
    }

    fn received(&mut self, choices: &mut Choices, at: usize, down: Down) -> Result<(), Broken> {
        let now = self.now;
        let worker = &mut self.workers[at];
        (worker.silences, worker.unheard) = (0, None);
        match down {
            Down::Message { durable, seq, count, message } => {
                worker.credit[durable].received();
                worker.waiting[durable] = true;
                let since = worker.credit[durable].since();
                let key = Key(durable as u64, seq);
                let arrival = worker.hand.arrive(key, (), 1, worker.epoch, since, now);
                choices
                    .tell(|| format!("worker {} receives {seq} of {durable}, {message:?}: {arrival:?}", worker.number));
                match arrival {
                    Arrival::Late => {}
                    Arrival::Joined => {
                        if worker.hand.get(key).is_some_and(|held| held.stage == Stage::Acknowledging) {
                            worker.confirm.offer(Item { token: key, epoch: worker.epoch, alone: true });
                        }
                    }
                    Arrival::Done(()) => self.send(at, Up::Ack { durable, seq, answer: None }),
                    Arrival::New => {
                        worker.messages.insert(key, message);
                        // Whether what follows it is stored already, as `prepare` looks.
                        let followed = durable == WORK || count > 1 || worker.server > 0;
                        if followed && self.server.is_followed(durable, seq, message) {
                            self.workers[at].acknowledging(key, now, true);
                        } else {
                            self.workers[at].ready.push_back(key);
                        }
                    }
                }
            }
            Down::Over { durable, pull, unused } => {
                worker.waiting[durable] = false;
                worker.credit[durable].ended(pull, End::Over { unused: Some(unused) }, now);
            }
            Down::Heartbeat { durable, pull } => worker.credit[durable].heartbeat(pull),
            Down::Lost { durable } => {
                worker.credit[durable].ended(0, End::Lost, now);
                // Who is told that all its requests are gone asks anew; one that was on its way then lives as well.
                let (number, flies) = (worker.number, |up: &Up| matches!(up, Up::Pull { .. }));
                let flies = self.server.pipes.get(&number).is_some_and(|pipe| pipe.up.iter().any(flies));
                let lives = self.server.durables[durable].is_asked_by(number);
                self.server.late |= flies || lives;
            }
            Down::Answer(Kind::Renewal, number) => {
                if let Some((key, sent)) = worker.renewals.remove(&number) {
                    worker.credit.iter_mut().for_each(|credit| credit.heard(sent));
                    worker.hand.renewed(key, sent);
                }
            }
            Down::Answer(Kind::Ack, ticket) => {
                if let Some(sent) = worker.confirm.sent(ticket) {
                    worker.credit.iter_mut().for_each(|credit| credit.heard(sent));
                }
                match worker.confirm.replied(ticket, false, worker.epoch) {
                    Some(Verdict::Confirmed(items)) => {
                        for item in items {
                            self.confirmed(choices, at, item.token)?;
                        }
                    }
                    Some(Verdict::Unknown(items)) => worker.unknown(items),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Law: what counts as confirmed is stored.
    fn confirmed(&mut self, choices: &mut Choices, at: usize, key: Key) -> Result<(), Broken> {
        let worker = &mut self.workers[at];
        choices.tell(|| format!("worker {}: {} of {} is confirmed", worker.number, key.1, key.0));
        if self.server.durables[key.0 as usize].messages.contains_key(&key.1) && !self.server.forgot {
            let what = format!("worker {} holds {} of {} to be acknowledged", worker.number, key.1, key.0);
            return Err(("unstored", what));
        }
        // A late success ends the job, though somebody else may have it in hand by then; what an attempt replaced, and
        // is acknowledged after it, is not its end.
        let late = worker.hand.get(key).is_none_or(|held| held.lost);
        if let Some(message) = worker.messages.get(&key)
            && !late
            && let Some(job) = self.jobs.get_mut(&message.job)
            && job.done
            && message.attempt > job.fails
        {
            job.confirmed = true;
        }
        worker.drop_from_hand(key, true);
        worker.settling.retain(|other| *other != key);
        Ok(())
    }

    fn leases(&mut self, choices: &mut Choices, at: usize) {
        let (now, worker) = (self.now, &mut self.workers[at]);
        let (mut renew, mut lost) = (Vec::new(), Vec::new());
        worker.hand.check(now, &mut renew, &mut lost);
        lost.sort_unstable();
        renew.sort_unstable();
        for key in lost {
            choices.tell(|| format!("worker {} loses {} of {}", worker.number, key.1, key.0));
            // What waits to be handed over is taken back; a success may still be sent while there is somebody to.
            let ended = worker.hand.get(key).is_some_and(|held| held.stage == Stage::Acknowledging);
            if worker.ready.contains(&key) || ended && !worker.connected {
                worker.drop_from_hand(key, false);
            }
        }
        let Some((inbox, _)) = worker.inbox.filter(|_| worker.connected) else { return };
        if !renew.is_empty() {
            worker.unheard.get_or_insert(now);
        }
        for key in renew {
            let worker = &mut self.workers[at];
            worker.renewed += 1;
            let number = worker.renewed;
            worker.renewals.insert(number, (key, now));
            self.send(at, Up::Progress { durable: key.0 as usize, seq: key.1, inbox, number });
        }
    }

    /// What replaces a delivery is stored, then the delivery is acknowledged.
    fn carry_moves(&mut self, choices: &mut Choices, at: usize) {
        let now = self.now;
        if self.workers[at].half_open {
            return;
        }
        for run in std::mem::take(&mut self.workers[at].moving) {
            if !self.workers[at].owns(run.key, now) {
                self.workers[at].drop_from_hand(run.key, false);
                continue;
            }
            let Message { job, attempt } = run.message;
            let truth = self.jobs.get_mut(&job).expect("it ran");
            if attempt > truth.fails {
                truth.letters += u32::from(self.server.bury(job));
                choices.tell(|| format!("a letter of job {job} is stored"));
            } else {
                let is_new = self.server.store(WORK, job, attempt + 1, format!("{job}:{}", attempt + 1), now);
                choices.tell(|| format!("attempt {} of job {job} is stored, new {is_new}", attempt + 1));
            }
            if choices.more() && choices.once_in(4) {
                // The answer is lost: it is stored again, under the same id.
                self.workers[at].moving.push(run);
            } else {
                self.workers[at].acknowledging(run.key, now, true);
            }
        }
    }

    fn acknowledge(&mut self, choices: &mut Choices, at: usize) {
        let now = self.now;
        let worker = &mut self.workers[at];
        let Some((inbox, epoch)) = worker.inbox.filter(|(_, epoch)| *epoch == worker.epoch) else { return };
        let mut out = Vec::new();
        while let Some(flight) = worker.confirm.next(epoch, now) {
            worker.unheard.get_or_insert(now);
            choices.tell(|| {
                let seqs: Vec<_> = flight.items.iter().map(|item| (item.token.0, item.token.1)).collect();
                format!("worker {} acknowledges {seqs:?}", worker.number)
            });
            let last = flight.items.len() - 1;
            for (index, item) in flight.items.iter().enumerate() {
                if worker.hand.get(item.token).is_none() {
                    continue;
                }
                let (durable, seq) = (item.token.0 as usize, item.token.1);
                out.push(Up::Ack { durable, seq, answer: (index == last).then_some((inbox, flight.ticket)) });
            }
        }
        out.into_iter().for_each(|up| self.send(at, up));
    }

    fn pull(&mut self, choices: &mut Choices, at: usize) {
        let (now, worker) = (self.now, &mut self.workers[at]);
        let mut silent = worker.unheard.is_some_and(|since| now.saturating_sub(since) > SILENCE);
        for credit in &mut worker.credit {
            silent |= credit.tick(now);
        }
        if silent {
            worker.silences += 1;
            worker.unheard = None;
            if worker.silences >= 2 {
                worker.silences = 0;
                choices.tell(|| format!("worker {} connects anew, for nobody answers", worker.number));
                self.cut(&mut Choices::none(), at);
                self.connect(choices, at);
                return;
            }
            worker.reopen();
        }
        let Some((inbox, _)) = worker.inbox.filter(|(_, epoch)| *epoch == worker.epoch) else { return };
        let demand = SLOTS.saturating_sub(worker.ready.len() + worker.runs.len());
        let state = [(worker.waiting[FRESH], false), (worker.waiting[WORK], true)];
        let mut shares = Vec::new();
        crate::broker::nats::credit::share(demand, 1.min(demand), 1.min(demand), &state, &mut shares);
        let mut out = Vec::new();
        for (durable, share) in shares.into_iter().enumerate() {
            worker.generous |= worker.unanswered;
            let Some(pull) = worker.credit[durable].ask(share.max(usize::from(worker.unanswered)), now) else {
                continue;
            };
            choices.tell(|| format!("worker {} asks {durable} for {}", worker.number, pull.batch));
            out.push(Up::Pull { durable, inbox, pull: pull.id, batch: pull.batch, sent: now });
        }
        out.into_iter().for_each(|up| self.send(at, up));
    }

    /// Law: what waits and runs is at most the slots, and one for each durable.
    fn credit(&self, at: usize) -> Result<(), Broken> {
        let worker = &self.workers[at];
        if self.server.late {
            return Ok(());
        }
        let most = SLOTS + 2 + if worker.generous || self.server.forgot { 2 } else { 0 };
        let held = worker.ready.len() + worker.runs.len();
        if held > most {
            return Err(("credit", format!("worker {} has {held} for {SLOTS} slots", worker.number)));
        }
        Ok(())
    }

    fn send(&mut self, at: usize, up: Up) {
        let worker = &self.workers[at];
        self.server.pipes.entry(worker.number).or_default().up.push_back(up);
    }

    /// The server takes some of what a worker sent, and delivers.
    pub fn serve(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        let (number, now) = (self.workers[at].number, self.now);
        self.server.tick(now);
        let open = self.workers[at].connected && !self.workers[at].half_open;
        let count = if choices.more() { choices.pick(6) } else { usize::MAX };
        for _ in 0..count {
            let Some(pipe) = self.server.pipes.get_mut(&number).filter(|_| open) else { break };
            let Some(up) = pipe.up.pop_front() else { break };
            let (jobs, ids) = (&self.jobs, self.server.ids());
            let may_end = |message: Message| {
                let job = &jobs[&message.job];
                let (next, letter) = (format!("{}:{}", message.job, message.attempt + 1), format!("d{}", message.job));
                job.done || ids.contains(&next) || ids.contains(&letter)
            };
            self.server.take(number, up, may_end)?;
        }
        let count = if choices.more() { choices.pick(4) } else { 8 };
        for index in [FRESH, WORK] {
            for _ in 0..count {
                if !self.server.deliver(index) {
                    self.server.heartbeat(index);
                    break;
                }
            }
        }
        Ok(())
    }

    /// The engine begins what waits. Law: nobody else runs it who may by his own clock.
    pub fn begin(&mut self, choices: &mut Choices, at: usize) -> Result<(), Broken> {
        let now = self.now;
        let worker = &mut self.workers[at];
        if worker.frozen || now.saturating_sub(worker.checked) >= STALE {
            return Ok(());
        }
        if worker.runs.len() >= SLOTS {
            return Ok(());
        }
        let Some(key) = worker.ready.pop_front() else { return Ok(()) };
        let message = worker.messages[&key];
        let what = format!("worker {} begins {} of {}, {message:?}", worker.number, key.1, key.0);
        choices.tell(|| what.clone());
        let job = &self.jobs[&message.job];
        if job.confirmed && !self.server.forgot {
            return Err(("repeated", format!("{what}: its end was confirmed")));
        }
        worker.runs.push(Run { key, message });
        let number = worker.number;
        if self.server.forgot {
            return Ok(());
        }
        for other in self.workers.iter_mut().filter(|other| other.number != number) {
            let same = |run: &Run| run.message.job == message.job;
            let running: Vec<Key> = other.runs.iter().filter(|run| same(run)).map(|run| run.key).collect();
            for key in running {
                if other.owns(key, now) {
                    return Err(("two owners", format!("{what}: worker {} runs it, by its clock", other.number)));
                }
            }
        }
        Ok(())
    }

    /// A run ends, and is settled.
    pub fn finish(&mut self, choices: &mut Choices, at: usize) {
        let (now, worker) = (self.now, &mut self.workers[at]);
        if worker.frozen || worker.runs.is_empty() {
            return;
        }
        let run = worker.runs.swap_remove(if choices.more() { choices.pick(worker.runs.len()) } else { 0 });
        let Message { job, attempt } = run.message;
        let truth: &mut Job = self.jobs.get_mut(&job).expect("it ran");
        let succeeds = attempt > truth.fails && !truth.dead;
        truth.done |= succeeds;
        choices.tell(|| format!("worker {} ends attempt {attempt} of job {job}, success {succeeds}", worker.number));
        let Some(held) = worker.hand.act(run.key, now, || {}) else { return };
        let lost = held.lost;
        if succeeds {
            worker.settling.push(run.key);
            worker.acknowledging(run.key, now, false);
        } else if lost {
            worker.drop_from_hand(run.key, false);
        } else {
            worker.moving.push(run);
        }
    }

    /// The engine gives one back.
    pub fn release(&mut self, choices: &mut Choices, at: usize) {
        let (now, worker) = (self.now, &mut self.workers[at]);
        if worker.frozen || worker.runs.is_empty() {
            return;
        }
        let run = worker.runs.swap_remove(0);
        choices.tell(|| format!("worker {} gives {} of {} back", worker.number, run.key.1, run.key.0));
        let may = worker.owns(run.key, now) && worker.connected;
        worker.drop_from_hand(run.key, false);
        if may {
            self.send(at, Up::Nak { durable: run.key.0 as usize, seq: run.key.1, sent: now });
        }
    }

    /// The connection breaks: what was written is lost with it, what was not goes out on the next one.
    pub fn cut(&mut self, choices: &mut Choices, at: usize) {
        let worker = &mut self.workers[at];
        if !worker.connected {
            return;
        }
        choices.tell(|| format!("worker {} is cut off", worker.number));
        (worker.connected, worker.half_open) = (false, false);
        let number = worker.number;
        self.server.forget_pulls(number);
        let pipe = self.server.pipes.entry(number).or_default();
        pipe.down.clear();
        let written = choices.pick(pipe.up.len() + 1);
        pipe.up.drain(..written);
    }

    /// Nothing comes or goes, and nobody says so.
    pub fn half_open(&mut self, choices: &mut Choices, at: usize) {
        choices.tell(|| format!("worker {} is connected to nobody", self.workers[at].number));
        self.workers[at].half_open = true;
    }

    /// It connects again.
    pub fn connect(&mut self, choices: &mut Choices, at: usize) {
        let worker = &mut self.workers[at];
        if worker.frozen || worker.connected && !worker.half_open {
            return;
        }
        if worker.half_open {
            self.cut(&mut Choices::none(), at);
        }
        let worker = &mut self.workers[at];
        choices.tell(|| format!("worker {} connects", worker.number));
        worker.connected = true;
        worker.epoch += 1;
    }

    /// SIGSTOP.
    pub fn freeze(&mut self, choices: &mut Choices, at: usize) {
        choices.tell(|| format!("worker {} is stopped", self.workers[at].number));
        self.workers[at].frozen = true;
    }

    /// SIGCONT.
    pub fn thaw(&mut self, _: &mut Choices, at: usize) {
        self.workers[at].frozen = false;
    }

    /// `kill -9`, and another process in its place.
    pub fn crash(&mut self, choices: &mut Choices, at: usize) {
        let number = self.workers[at].number;
        choices.tell(|| format!("worker {number} is killed"));
        self.server.forget_pulls(number);
        self.server.pipes.remove(&number);
        self.born += 1;
        self.workers[at] = Worker::new(self.born, self.grouping);
    }

    /// The server is killed and started again.
    pub fn restart(&mut self, choices: &mut Choices) {
        choices.tell(|| "the server starts again".to_owned());
        self.server.restart(self.now);
        for worker in &mut self.workers {
            (worker.connected, worker.half_open) = (false, false);
        }
    }

    /// Another server leads: all requests are gone.
    pub fn new_leader(&mut self, choices: &mut Choices) {
        let told = choices.pick(2) == 1;
        choices.tell(|| format!("a new leader, told {told}"));
        self.server.drop_pulls(told);
    }

    /// One thing on its way to a worker is lost.
    pub fn lose(&mut self, choices: &mut Choices, at: usize) {
        let number = self.workers[at].number;
        if let Some(pipe) = self.server.pipes.get_mut(&number)
            && let Some((_, down)) = pipe.down.pop_front()
        {
            choices.tell(|| format!("lost on its way to worker {number}: {down:?}"));
        }
    }
}
