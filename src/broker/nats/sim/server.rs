//! The server: two work queues with a durable each, and what is on its way to and from each connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::LEASE;
use crate::broker::nats::credit::EXPIRES;
use crate::broker::schedule::Broken;

/// So long beyond its time a request is believed in.
const LATE: Duration = Duration::from_millis(500);

/// The durable of the topics, and that of records.
pub const FRESH: usize = 0;
/// Likewise.
pub const WORK: usize = 1;

/// What a message is: a job's number and attempt.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub job: u32,
    pub attempt: u32,
}

/// To a worker, over one inbox.
#[derive(Clone, Debug)]
pub enum Down {
    Message {
        durable: usize,
        seq: u64,
        count: u32,
        message: Message,
    },
    /// A pull request is over; what of it did not come.
    Over {
        durable: usize,
        pull: u64,
        unused: usize,
    },
    Heartbeat {
        durable: usize,
        pull: u64,
    },
    /// All requests are gone.
    Lost {
        durable: usize,
    },
    /// The answer to an acknowledgement or a renewal.
    Answer(Kind, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ack,
    Renewal,
}

/// From a worker.
#[derive(Clone, Debug)]
pub enum Up {
    Pull { durable: usize, inbox: u64, pull: u64, batch: usize, sent: Duration },
    Ack { durable: usize, seq: u64, answer: Option<(u64, u64)> },
    Nak { durable: usize, seq: u64, sent: Duration },
    Progress { durable: usize, seq: u64, inbox: u64, number: u64 },
}

struct Pending {
    until: Duration,
    /// The worker that got it last, and when.
    owner: u64,
    given: Duration,
}

struct Pull {
    inbox: u64,
    worker: u64,
    id: u64,
    left: usize,
    expires: Duration,
}

#[derive(Default)]
pub struct Durable {
    pub messages: BTreeMap<u64, Message>,
    counts: BTreeMap<u64, u32>,
    pending: BTreeMap<u64, Pending>,
    pulls: Vec<Pull>,
    next: u64,
}

impl Durable {
    /// Whether a request of this worker is there.
    pub fn is_asked_by(&self, worker: u64) -> bool {
        self.pulls.iter().any(|pull| pull.worker == worker)
    }

    pub fn left(&self) -> Vec<(u64, Message)> {
        self.messages.iter().map(|(seq, message)| (*seq, *message)).collect()
    }
}

/// What is on its way on one connection; the inbox is the worker's present one.
#[derive(Default)]
pub struct Pipe {
    pub up: VecDeque<Up>,
    pub down: VecDeque<(u64, Down)>,
}

pub struct Server {
    pub durables: [Durable; 2],
    pub pipes: BTreeMap<u64, Pipe>,
    /// Ids of what was stored, for duplicates.
    ids: BTreeSet<String>,
    /// A restart may forget what was delivered and acknowledged last.
    pub forgetful: bool,
    /// What was acknowledged, and when: to be forgotten.
    acked: Vec<(Duration, usize, u64, Message)>,
    now: Duration,
    /// Something was forgotten, or came so late that others may run what somebody has.
    pub forgot: bool,
    /// A request was on its way for so long that its worker held it to be over: it may get one batch too many.
    pub late: bool,
    /// How often it was started.
    pub boots: u64,
}

impl Server {
    pub fn new(forgetful: bool) -> Self {
        Self {
            durables: [FRESH, WORK].map(|_| Durable { next: 1, ..Durable::default() }),
            pipes: BTreeMap::new(),
            ids: BTreeSet::new(),
            forgetful,
            acked: Vec::new(),
            now: Duration::ZERO,
            forgot: false,
            late: false,
            boots: 1,
        }
    }

    /// Stores a message once under its id; whether it is new.
    pub fn store(&mut self, durable: usize, job: u32, attempt: u32, id: String, now: Duration) -> bool {
        self.now = now;
        let is_new = self.ids.insert(id);
        if is_new {
            let durable = &mut self.durables[durable];
            durable.messages.insert(durable.next, Message { job, attempt });
            durable.next += 1;
        }
        is_new
    }

    /// Stores a dead letter once.
    pub fn bury(&mut self, job: u32) -> bool {
        self.ids.insert(format!("d{job}"))
    }

    /// Requests whose time is over end, and say so, unless their worker hears nothing.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        for (index, durable) in self.durables.iter_mut().enumerate() {
            for pull in durable.pulls.extract_if(.., |pull| pull.expires <= now) {
                if let Some(pipe) = self.pipes.get_mut(&pull.worker) {
                    let over = Down::Over { durable: index, pull: pull.id, unused: pull.left };
                    pipe.down.push_back((pull.inbox, over));
                }
            }
        }
    }

    /// Takes one thing that came. Laws: nobody gives back what is somebody else's, and nothing is acknowledged that
    /// has neither ended nor been replaced (`may_end`).
    pub fn take(&mut self, worker: u64, up: Up, may_end: impl Fn(Message) -> bool) -> Result<(), Broken> {
        match up {
            Up::Pull { durable, inbox, pull, batch, sent } => {
                let expires = self.now + EXPIRES;
                self.late |= self.now > sent + LATE;
                self.durables[durable].pulls.push(Pull { inbox, worker, id: pull, left: batch, expires });
            }
            Up::Ack { durable, seq, answer } => {
                let of = &mut self.durables[durable];
                // What was forgotten, and not delivered since, is not acknowledged.
                if of.pending.remove(&seq).is_some()
                    && let Some(message) = of.messages.remove(&seq)
                {
                    if !may_end(message) {
                        return Err(("lost", format!("{message:?} is acknowledged, and has not ended")));
                    }
                    self.acked.push((self.now, durable, seq, message));
                }
                if let Some((inbox, ticket)) = answer {
                    self.answer(worker, inbox, Down::Answer(Kind::Ack, ticket));
                }
            }
            Up::Nak { durable, seq, sent } => {
                let pending = &mut self.durables[durable].pending;
                if let Some(held) = pending.get_mut(&seq) {
                    if held.owner != worker && !self.forgot {
                        let owner = held.owner;
                        if held.given < sent {
                            let what = format!("worker {worker} gives {seq} back, which worker {owner} has");
                            return Err(("stolen", what));
                        }
                        // It was on its way for longer than the lease: whoever sent it was cut off, and that explains it.
                        self.forgot = true;
                    }
                    held.until = self.now;
                }
            }
            Up::Progress { durable, seq, inbox, number } => {
                let lease = self.now + LEASE;
                if let Some(held) = self.durables[durable].pending.get_mut(&seq) {
                    held.until = held.until.max(lease);
                }
                self.answer(worker, inbox, Down::Answer(Kind::Renewal, number));
            }
        }
        Ok(())
    }

    fn answer(&mut self, worker: u64, inbox: u64, down: Down) {
        if let Some(pipe) = self.pipes.get_mut(&worker) {
            pipe.down.push_back((inbox, down));
        }
    }

    /// Delivers one message to the request that has waited longest; `false`: there is nothing, or nobody asks.
    pub fn deliver(&mut self, index: usize) -> bool {
        let (now, durable) = (self.now, &mut self.durables[index]);
        let free = |seq: &u64| durable.pending.get(seq).is_none_or(|pending| pending.until <= now);
        let Some(seq) = durable.messages.keys().copied().find(free) else { return false };
        if durable.pulls.is_empty() {
            return false;
        }
        let mut pull = durable.pulls.remove(0);
        let count = durable.counts.entry(seq).or_default();
        *count += 1;
        let down = Down::Message { durable: index, seq, count: *count, message: durable.messages[&seq] };
        durable.pending.insert(seq, Pending { until: now + LEASE, owner: pull.worker, given: now });
        let (worker, inbox) = (pull.worker, pull.inbox);
        pull.left -= 1;
        if pull.left > 0 {
            durable.pulls.push(pull);
        }
        self.answer(worker, inbox, down);
        true
    }

    /// Whether what follows a message is stored, or it is settled.
    pub fn is_followed(&self, durable: usize, seq: u64, message: Message) -> bool {
        self.ids.contains(&format!("{}:{}", message.job, message.attempt + 1))
            || self.ids.contains(&format!("d{}", message.job))
            || !self.durables[durable].messages.contains_key(&seq)
    }

    /// Ids of what was stored.
    pub fn ids(&self) -> BTreeSet<String> {
        self.ids.clone()
    }

    /// Its connection is gone: nobody hears what its requests bring.
    pub fn forget_pulls(&mut self, worker: u64) {
        self.durables.iter_mut().for_each(|durable| durable.pulls.retain(|pull| pull.worker != worker));
    }

    /// Says of a request that it lives.
    pub fn heartbeat(&mut self, index: usize) {
        let Some(pull) = self.durables[index].pulls.first() else { return };
        let (worker, inbox, down) = (pull.worker, pull.inbox, Down::Heartbeat { durable: index, pull: pull.id });
        self.answer(worker, inbox, down);
    }

    /// All requests are gone, and their owners are told.
    pub fn drop_pulls(&mut self, told: bool) {
        for index in [FRESH, WORK] {
            for pull in std::mem::take(&mut self.durables[index].pulls) {
                if told {
                    self.answer(pull.worker, pull.inbox, Down::Lost { durable: index });
                }
            }
        }
    }

    /// Started again: what was delivered or acknowledged within the last 100 ms may be forgotten.
    pub fn restart(&mut self, now: Duration) {
        self.boots += 1;
        self.pipes.clear();
        self.drop_pulls(false);
        if !self.forgetful {
            return;
        }
        let since = now.saturating_sub(Duration::from_millis(100));
        for (_, durable, seq, message) in self.acked.extract_if(.., |acked| acked.0 >= since) {
            self.durables[durable].messages.insert(seq, message);
            self.forgot = true;
        }
        for durable in &mut self.durables {
            let recent: Vec<u64> =
                durable.pending.iter().filter(|(_, p)| p.until >= since + LEASE).map(|(seq, _)| *seq).collect();
            for seq in recent {
                durable.pending.remove(&seq);
                durable.counts.remove(&seq);
                self.forgot = true;
            }
        }
    }
}
