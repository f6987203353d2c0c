//! The I/O side of an open queue: one task that pulls, renews leases, and carries settlements out.
//!
//! All messages of the queue come over one inbox. The inbox is made anew with each connection, and whenever a
//! consumer has been silent for too long: what was asked for over the old one can then no longer reach us, and what
//! comes over the new one was received on a connection that is known by its number.
//!
//! The rest of it: [`intake`] is what comes and what is asked for, [`settling`] how deliveries leave the hand, and
//! [`ordered`] what a queue in key order does otherwise.
//!
//! Order within a turn: commands first, because they free credit and end leases; then what came; then time.

mod intake;
mod ordered;
mod settling;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::ordered::Ordered;
use super::bundle::Bundle;
use super::confirm::{Confirm, GROUP, GROUPS, Item, SINGLES};
use super::context::Context;
use super::credit::{Credit, Moment};
use super::held::{Hand, Key, Stage};
use super::mark::Mark;
use super::moves::Moved;
use super::owner::Until;
use super::prepare::Prepared;
use super::shared::{Command, Shared};
use super::topology::Subscription;
use super::{unreadable, wire};
use crate::broker::{Channel, Delivery, Disposition, Lane, Settled, Token};
use crate::message::headers::Builder;

const ACK: Bytes = Bytes::from_static(b"+ACK");
const NAK: Bytes = Bytes::from_static(b"-NAK");
const PROGRESS: Bytes = Bytes::from_static(b"+WPI");
/// The longest time between two looks at the clock.
const TURN: Duration = Duration::from_millis(100);
/// Subjects of one consumer whose channel is kept.
const CHANNELS: usize = 1_024;
/// Messages taken between two looks at what else there is to do.
const TAKEN: usize = 1_024;
/// How far behind the last delivery that came here others may have got theirs when a server died.
const DOUBTFUL: u64 = 4_096;
/// A connection that has not lived for so long, or for four leases, may have ended at what ended the one before it.
const SOON: Duration = Duration::from_secs(60);
/// Messages that the client cannot read, of one consumer, which are remembered.
const UNREADABLE: usize = 1_024;

/// One durable that is read.
struct Consumer {
    subscription: Subscription,
    lane: Lane,
    credit: Credit,
    /// Messages that waited behind the last one.
    waiting: u64,
    next: Subject,
    channels: HashMap<Box<str>, Arc<Channel>, foldhash::fast::FixedState>,
    /// That of the last message.
    channel: Option<(Subject, Arc<Channel>)>,
    /// Looks for it that found nothing, in a row; and whether one is under way.
    missing: u32,
    checking: bool,
    /// It cannot be made anew, because its stream is gone, too: says so.
    gone: Option<String>,
    /// The last message that came, by its sequence.
    highest: u64,
    /// Up to here a server that died may have forgotten what it had delivered and what was settled.
    doubtful: u64,
    /// What the client cannot read is being looked for; and what was found, the newest.
    searching: bool,
    unreadable: BTreeSet<u64>,
}

struct Inbox {
    messages: Subscriber,
    prefix: String,
    epoch: u64,
}

/// Settlements of one call that are answered together.
struct Batch {
    settled: Vec<Settled>,
    left: usize,
    answer: Option<oneshot::Sender<Vec<Settled>>>,
}

/// The sequence of a start's mark, where it needs one, and whether it may start.
type Marked = Result<Option<(u64, bool)>, super::api::Error>;

/// What a task of the pump brings back.
enum Done {
    Prepared(Key, Prepared),
    Moved(Key, Moved),
    Looked(usize, Result<bool, String>),
    Counted(usize, u64, Result<ordered::Counts, super::api::Error>),
    Marked(Vec<(Key, Marked)>, oneshot::Sender<Vec<bool>>),
    Cleared,
    Made(usize, Result<(), super::api::Error>),
    /// Of a connection, by its number.
    Searched(usize, u64, BTreeSet<u64>, Result<(), super::api::Error>),
}

/// See the module.
pub struct Pump {
    context: Arc<Context>,
    shared: Arc<Shared>,
    commands: mpsc::UnboundedReceiver<Command>,
    consumers: Vec<Consumer>,
    hand: Hand<Subject>,
    hops: HashMap<Key, u64, foldhash::fast::FixedState>,
    marks: HashMap<Key, Mark, foldhash::fast::FixedState>,
    parts: HashMap<Key, String, foldhash::fast::FixedState>,
    confirm: Confirm<Key>,
    batches: HashMap<u64, Batch, foldhash::fast::FixedState>,
    next_batch: u64,
    renewals: HashMap<u64, (Key, Moment), foldhash::fast::FixedState>,
    next_renewal: u64,
    tasks: JoinSet<Done>,
    preparing: usize,
    /// Given back while there was no connection, and how: they go out on the next one, if they are still ours then.
    returning: Vec<(Key, Bytes)>,
    inbox: Option<Inbox>,
    /// The server, and the first connection to it.
    server: (String, u64),
    /// The connection after whose beginning was looked for what the client cannot read, and when that was.
    searched: (u64, Moment),
    ordered: Option<Ordered>,
    /// How often an inbox was made anew for silence since anything was heard.
    silences: u32,
    /// When something was sent that asks for an answer, since anything was heard.
    unheard: Option<Moment>,
    started: Instant,
    /// An acknowledgement went without an answer: the server may have forgotten the delivery, and must be able to
    /// deliver it again although no slot is free.
    unanswered: bool,
    stopping: bool,
    stopped: Option<oneshot::Sender<()>>,
    headers: Builder,
    /// What goes out at once.
    bundle: Bundle,
    /// Deliveries on their way to the engine.
    fresh: Vec<Delivery>,
    shares: Vec<usize>,
    closed: CancellationToken,
}

impl Pump {
    /// Reads `fresh` and `work`; ends once `closed` is cancelled and nothing more is to be carried out.
    pub fn new(
        context: Arc<Context>,
        shared: Arc<Shared>,
        commands: mpsc::UnboundedReceiver<Command>,
        fresh: Vec<Subscription>,
        work: Subscription,
        ownership: Option<(watch::Receiver<Until>, CancellationToken)>,
        closed: CancellationToken,
    ) -> Self {
        let single =
            fresh.iter().chain([&work]).all(|s| s.single) && context.link.client().server_info().cluster.is_none();
        let lanes = fresh.into_iter().map(|s| (s, Lane::Fresh)).chain([(work, Lane::Retry)]);
        let consumers = lanes
            .map(|(subscription, lane)| Consumer {
                next: wire::subject(format!(
                    "$JS.API.CONSUMER.MSG.NEXT.{}.{}",
                    subscription.stream, subscription.durable
                )),
                waiting: subscription.pending,
                subscription,
                lane,
                credit: Credit::default(),
                channels: HashMap::default(),
                channel: None,
                missing: 0,
                checking: false,
                gone: None,
                highest: 0,
                doubtful: 0,
                searching: false,
                unreadable: BTreeSet::new(),
            })
            .collect();
        let consumers: Vec<Consumer> = consumers;
        let ordered = ownership.map(|(until, leave)| Ordered::new(consumers.len(), until, leave));
        let mut confirm = Confirm::new();
        confirm.set_grouping(single);
        shared.set_limit(if single { GROUP * GROUPS } else { SINGLES });
        Self {
            hand: Hand::new(context.lease),
            server: (context.link.client().server_info().server_id, 0),
            context,
            shared,
            commands,
            consumers,
            hops: HashMap::default(),
            marks: HashMap::default(),
            parts: HashMap::default(),
            confirm,
            batches: HashMap::default(),
            next_batch: 0,
            renewals: HashMap::default(),
            next_renewal: 0,
            tasks: JoinSet::new(),
            preparing: 0,
            returning: Vec::new(),
            inbox: None,
            searched: (0, Moment::ZERO),
            ordered,
            silences: 0,
            unheard: None,
            started: Instant::now(),
            unanswered: false,
            stopping: false,
            stopped: None,
            headers: Builder::default(),
            bundle: Bundle::default(),
            fresh: Vec::new(),
            shares: Vec::new(),
            closed,
        }
    }

    /// Runs until it is closed.
    pub async fn run(mut self) {
        let mut looks = tokio::time::interval(TURN);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shared = self.shared.clone();
        loop {
            if self.closed.is_cancelled() && self.idle() {
                return;
            }
            self.connection().await;
            let next = async {
                match &mut self.inbox {
                    Some(inbox) => inbox.messages.next().await,
                    None => std::future::pending().await,
                }
            };
            let mut came = None;
            tokio::select! {
                biased;
                Some(command) = self.commands.recv() => {
                    self.command(command).await;
                    while let Ok(command) = self.commands.try_recv() {
                        self.command(command).await;
                    }
                }
                message = next => {
                    came = message;
                    if came.is_none() {
                        self.inbox = None;
                    }
                }
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    // What it brings may be of a connection that is newer than this turn.
                    self.connection().await;
                    self.done(done).await;
                }
                () = shared.demand.notified() => {}
                _ = looks.tick() => {}
            }
            self.received(came).await;
            self.turn().await;
            self.in_order().await;
        }
    }

    fn now(&self) -> Moment {
        self.started.elapsed()
    }

    /// Nothing is left that must be carried out or could still arrive.
    fn idle(&self) -> bool {
        let coming: usize = self.consumers.iter().map(|consumer| consumer.credit.outstanding()).sum();
        self.batches.is_empty()
            && self.tasks.is_empty()
            && self.confirm.is_empty()
            && (coming == 0 || !self.connected())
    }

    fn connected(&self) -> bool {
        self.context.link.connected()
    }

    /// There is a connection, and it is the inbox's.
    fn is_known(&self) -> bool {
        self.connected() && self.inbox.as_ref().is_some_and(|inbox| inbox.epoch == self.context.link.epoch())
    }

    /// A connection of another number than the inbox's, and no inbox, ask for a new one.
    async fn connection(&mut self) {
        let link = &self.context.link;
        let epoch = link.epoch();
        if !link.connected() || self.inbox.as_ref().is_some_and(|inbox| inbox.epoch == epoch) {
            return;
        }
        self.reopen(epoch).await;
    }

    async fn reopen(&mut self, epoch: u64) {
        let prefix = self.context.link.client().new_inbox();
        // The old one is dropped first: its requests lose their way, and their credit with it.
        self.inbox = None;
        for consumer in &mut self.consumers {
            consumer.credit.forget();
        }
        self.renewals.clear();
        (0..self.consumers.len()).for_each(|index| self.line_shut(index));
        let server = self.context.link.client().server_info();
        if server.cluster.is_some() {
            // It stood alone when it was opened, perhaps.
            self.confirm.set_grouping(false);
            self.shared.set_limit(SINGLES);
        }
        if server.server_id != self.server.0 {
            self.server = (server.server_id, epoch);
            self.forgotten();
        }
        match self.context.link.client().subscribe(format!("{prefix}.*.*.*")).await {
            Ok(messages) => {
                self.inbox = Some(Inbox { messages, prefix, epoch });
                for (key, how) in std::mem::take(&mut self.returning) {
                    self.release(key, how).await;
                }
                self.shared.connected(epoch);
            }
            // The client has stopped: there will be another one, or this was the end.
            Err(error) => tracing::debug!(error = %error, "failed to subscribe"),
        }
        let (before, since) = self.searched;
        if epoch != before {
            let now = self.now();
            self.searched = (epoch, now);
            // What comes again and again comes once a lease.
            let soon = now.saturating_sub(since) < SOON.max(4 * self.context.lease);
            if before != 0 {
                (0..self.consumers.len()).for_each(|index| self.search(index, soon));
            }
        }
    }

    /// A connection has begun, perhaps because the one before ended at a message that the client cannot read. `soon`:
    /// after the one before had begun, so that it may be one that comes again, from anywhere.
    fn search(&mut self, index: usize, soon: bool) {
        let consumer = &mut self.consumers[index];
        if !std::mem::replace(&mut consumer.searching, true) {
            let (context, subscription, lane) = (self.context.clone(), consumer.subscription.clone(), consumer.lane);
            let (epoch, mut known) = (self.searched.0, consumer.unreadable.clone());
            let range = if soon { unreadable::Range::All } else { unreadable::Range::Behind(consumer.highest) };
            self.tasks.spawn(async move {
                let found = unreadable::bury(&context, &subscription, lane, range, &mut known).await;
                Done::Searched(index, epoch, known, found)
            });
        }
    }

    /// The server is another one, or was started again: it may have forgotten what it delivered last, and give it to
    /// somebody else. What has not begun here does not begin: it comes again. It is not given back either, which
    /// would take it from whoever has it by now.
    fn forgotten(&mut self) {
        if self.ordered.is_none() {
            for token in self.shared.take_back(|_| false) {
                self.drop_from_hand(Key(token.0, token.1), false);
            }
            // Nor does what waits for a slot, in the engine's hands.
            self.shared.bar(self.hand.owned().map(|key| Token(key.0, key.1)));
        }
        for consumer in &mut self.consumers {
            consumer.doubtful = consumer.highest + DOUBTFUL;
        }
    }

    /// Whether its lease has ended, or the server that delivered it may have forgotten that it did.
    fn is_lost(&mut self, key: Key) -> bool {
        let (now, shared) = (self.now(), &self.shared);
        let held = self.hand.act(key, now, || shared.lose(Token(key.0, key.1)));
        held.is_none_or(|held| held.lost || held.epoch < self.server.1 && self.ordered.is_none())
    }

    async fn publish(&self, subject: Subject, payload: Bytes) {
        // A publication that fails is one that was not confirmed; whoever needs it confirmed tries again.
        let _ = self.context.link.client().publish(subject, payload).await;
    }

    async fn ask(&self, subject: Subject, reply: String, payload: Bytes) {
        // Likewise.
        let _ = self.context.link.client().publish_with_reply(subject, wire::subject(reply), payload).await;
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Acknowledge(tokens, answer) => self.acknowledge_all(&tokens, answer),
            Command::Settle(items, answer) => self.settle(items, answer).await,
            Command::Release(token) => self.release(Key(token.0, token.1), NAK).await,
            Command::Mark(tokens, answer) => {
                let context = self.context.clone();
                let mut marks = Vec::with_capacity(tokens.len());
                for key in tokens.iter().map(|token| Key(token.0, token.1)) {
                    // One whose lease has ended is not ours to start, and needs no mark to be refused.
                    let mark = if self.is_lost(key) { None } else { self.marks.get(&key).cloned() };
                    marks.push((key, mark, self.hops.get(&key).copied().unwrap_or(0)));
                }
                self.tasks.spawn(async move {
                    let starts = marks.into_iter().map(|(key, mark, hop)| {
                        let context = context.clone();
                        async move {
                            match mark {
                                Some(mark) => (key, context.start_unless_followed(&mark, hop).await.map(Some)),
                                None => (key, Ok(None)),
                            }
                        }
                    });
                    Done::Marked(futures_util::future::join_all(starts).await, answer)
                });
            }
            Command::Stop(answer) => {
                self.stopping = true;
                self.stopped = Some(answer);
            }
        }
    }

    async fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let done = match done {
            Ok(done) => done,
            // A task of ours panics only by a bug; the lease brings the delivery back.
            Err(error) => return tracing::error!(error = %error, "a settlement ended in a panic"),
        };
        match done {
            Done::Prepared(key, prepared) => {
                self.preparing -= 1;
                match prepared {
                    Prepared::Run { delivery, .. } if self.is_lost(key) => {
                        let _taken = delivery.settle(Disposition::Release).take();
                        self.drop_from_hand(key, false);
                    }
                    Prepared::Run { delivery, .. } if self.stopping => drop(delivery),
                    Prepared::Run { delivery, mark, part, hop } => {
                        self.hops.insert(key, hop);
                        self.marks.extend(mark.map(|mark| (key, mark)));
                        self.parts.extend(part.map(|part| (key, part)));
                        if let Some(delivery) = self.line_wait(key, *delivery) {
                            self.shared.push(std::iter::once(delivery));
                        }
                    }
                    Prepared::Succeeded => {
                        if let Some(epoch) = self.acknowledging(key) {
                            self.confirm.offer(Item { token: key, epoch, alone: true });
                        }
                    }
                    Prepared::Later(delay) => {
                        let how = format!("-NAK {{\"delay\":{}}}", delay.as_nanos());
                        self.release(key, Bytes::from(how)).await;
                    }
                }
            }
            Done::Moved(key, Moved::Held(record)) => self.hold(key, *record).await,
            Done::Moved(key, moved) => match (moved, self.acknowledging(key)) {
                (Moved::Stored, Some(epoch)) => {
                    self.confirm.offer(Item { token: key, epoch, alone: true });
                }
                (Moved::Lost, _) => {
                    self.finish_key(key, Settled::Stale);
                    self.drop_from_hand(key, false);
                }
                (Moved::Refused(why), _) => {
                    self.finish_key(key, Settled::Unconfirmed(why));
                    self.release(key, NAK).await;
                }
                // One that is out of hand has been told how it ended.
                (Moved::Held(_), _) | (Moved::Stored, None) => {}
            },
            Done::Counted(index, changes, counted) => self.line_counted(index, changes, counted).await,
            Done::Looked(index, found) => {
                let consumer = &mut self.consumers[index];
                consumer.checking = false;
                match found {
                    Ok(true) => (consumer.missing, consumer.gone) = (0, None),
                    Ok(false) => {
                        consumer.missing += 1;
                        if consumer.missing >= 3 {
                            self.confirm.doubt();
                            if consumer.subscription.again.is_some() {
                                return self.make_again(index);
                            }
                            let Subscription { stream, durable, .. } = &consumer.subscription;
                            let why = format!(
                                "the consumer {durable} on the stream {stream} was removed while this worker reads it; \
                                 start the worker again to make it anew, from where the queue's start says"
                            );
                            return self.shared.fail(why);
                        }
                        self.look(index);
                    }
                    Err(error) => tracing::debug!(error, "failed to look for a consumer"),
                }
            }
            Done::Marked(marked, answer) => {
                let mut stored = Vec::with_capacity(marked.len());
                for (key, result) in marked {
                    // One whose lease ended meanwhile is not ours to start.
                    let may_start = result.as_ref().is_ok_and(|marked| marked.is_none_or(|(_, may_start)| may_start));
                    stored.push(may_start && !self.is_lost(key));
                    match (result, self.marks.get_mut(&key)) {
                        (Ok(marked), Some(mark)) => {
                            mark.seq = marked.map(|(seq, _)| seq).or(mark.seq);
                            mark.ours = true;
                        }
                        (Ok(_), None) => {}
                        (Err(error), _) => tracing::warn!(error = %error, "a start cannot be marked"),
                    }
                }
                // The engine may have given up waiting.
                let _ = answer.send(stored);
            }
            Done::Made(index, Ok(())) => {
                let consumer = &mut self.consumers[index];
                (consumer.checking, consumer.missing, consumer.gone) = (false, 0, None);
                // It delivers all that is not settled anew, and calls each the first time.
                consumer.doubtful = consumer.highest + DOUBTFUL;
            }
            Done::Made(index, Err(error)) => {
                let consumer = &mut self.consumers[index];
                let Subscription { stream, durable, .. } = &consumer.subscription;
                let why = format!(
                    "the consumer {durable} on the stream {stream} was removed, and cannot be made anew: {error}"
                );
                if consumer.gone.is_none() {
                    tracing::error!(queue = %self.context.queue.name, error = %why, "a queue is not read");
                }
                (consumer.checking, consumer.gone) = (false, Some(why));
                self.look(index);
            }
            Done::Searched(index, epoch, mut known, found) => {
                while known.len() > UNREADABLE {
                    known.pop_first();
                }
                let consumer = &mut self.consumers[index];
                (consumer.searching, consumer.unreadable) = (false, known);
                // Another connection ended meanwhile, perhaps at what was handed out after the search had begun.
                if epoch != self.searched.0 {
                    self.search(index, true);
                }
                if let Err(error) = found {
                    tracing::warn!(queue = %self.context.queue.name, error = %error, "failed to look for what cannot be read");
                }
            }
            Done::Cleared => {}
        }
    }

    /// What time and room ask for: leases, acknowledgements, pulls.
    async fn turn(&mut self) {
        let now = self.now();
        self.leases(now).await;
        let link = self.context.link.clone();
        self.shared.set_broker_trouble(match (link.denied(), link.connected()) {
            (Some(denied), _) => Some(denied),
            (None, false) => Some("the connection to NATS is lost".to_owned()),
            (None, true) => self.consumers.iter().find_map(|consumer| consumer.gone.clone()),
        });
        if !link.connected() {
            return;
        }
        let epoch = link.epoch();
        let overdue = if self.confirm.flying() { self.confirm.overdue(epoch, now) } else { Vec::new() };
        self.unknown(overdue, false);
        self.unanswered &= !self.confirm.is_empty();
        self.acknowledge(epoch, now).await;
        self.pull(epoch, now).await;
        if self.stopping {
            let coming: usize = self.consumers.iter().map(|consumer| consumer.credit.outstanding()).sum();
            if let Some(stopped) = self.stopped.take() {
                // Whoever stopped need not wait; what still comes is given back as it comes.
                let _ = stopped.send(());
                tracing::debug!(coming, "intake has stopped");
            }
        }
    }

    async fn leases(&mut self, now: Moment) {
        if self.hand.len() == 0 {
            return self.shared.checked();
        }
        let (mut renew, mut lost) = (Vec::new(), Vec::new());
        self.hand.check(now, &mut renew, &mut lost);
        if !lost.is_empty() {
            let hand = &self.hand;
            for token in self.shared.take_back(|token| hand.get(Key(token.0, token.1)).is_some_and(|held| !held.lost)) {
                self.drop_from_hand(Key(token.0, token.1), false);
            }
        }
        self.shared.checked();
        for key in lost {
            self.shared.lose(Token(key.0, key.1));
            // A success may still be sent and end the job, while there is somebody to send it to.
            let acknowledging = self.hand.get(key).is_some_and(|held| held.stage == Stage::Acknowledging);
            if acknowledging && !self.connected() {
                self.give_up(key);
            }
        }
        let Some(prefix) = self.inbox.as_ref().map(|inbox| inbox.prefix.clone()) else { return };
        if !self.connected() {
            return;
        }
        if !renew.is_empty() {
            self.unheard.get_or_insert(now);
        }
        for key in renew {
            let Some(held) = self.hand.get(key) else { continue };
            self.next_renewal += 1;
            let reply = format!("{prefix}.w.0.{}", self.next_renewal);
            self.renewals.insert(self.next_renewal, (key, now));
            self.bundle.push(&held.reply, Some(wire::subject(reply)), PROGRESS);
        }
        self.bundle.send(&self.context.link.client()).await;
    }
}
