//! The I/O side of an open queue: one task that pulls, renews leases, and carries settlements out.
//!
//! All messages of the queue come over one inbox. The inbox is made anew with each connection, and whenever a
//! consumer has been silent for too long: what was asked for over the old one can then no longer reach us, and what
//! comes over the new one was received on a connection that is known by its number.
//!
//! Order within a turn: commands first, because they free credit and end leases; then what came; then time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::confirm::{Confirm, GROUP, GROUPS, Item, SINGLES, Verdict};
use super::context::Context;
use super::credit::{self, Credit, End, Moment};
use super::held::{Arrival, Hand, Key, Stage};
use super::mark::Mark;
use super::moves::{self, Moved};
use super::prepare::{self, Prepared};
use super::shared::{Command, Shared};
use super::topology::Subscription;
use super::wire::{self, header};
use crate::broker::{Channel, Delivery, Disposition, Lane, Settled, Token};
use crate::message::headers::Builder;
use crate::message::{Binding, Place};

const ACK: Bytes = Bytes::from_static(b"+ACK");
const NAK: Bytes = Bytes::from_static(b"-NAK");
const PROGRESS: Bytes = Bytes::from_static(b"+WPI");
/// The longest time between two looks at the clock.
const TURN: Duration = Duration::from_millis(100);
/// Subjects of one consumer whose channel is kept.
const CHANNELS: usize = 1_024;
/// How far behind the last delivery that came here others may have got theirs when a server died.
const DOUBTFUL: u64 = 4_096;

/// One durable that is read.
struct Consumer {
    subscription: Subscription,
    lane: Lane,
    credit: Credit,
    /// Messages that waited behind the last one.
    waiting: u64,
    next: Subject,
    channels: HashMap<Box<str>, Arc<Channel>, foldhash::fast::FixedState>,
    /// Looks for it that found nothing, in a row; and whether one is under way.
    missing: u32,
    checking: bool,
    /// The last message that came, by its sequence.
    highest: u64,
    /// Up to here a server that died may have forgotten what it had delivered and what was settled.
    doubtful: u64,
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

/// What a task of the pump brings back.
enum Done {
    Prepared(Key, Prepared),
    Moved(Key, Moved),
    Looked(usize, Result<bool, String>),
    Marked(Vec<(Key, Result<Option<u64>, super::api::Error>)>, oneshot::Sender<Vec<bool>>),
    Cleared,
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
    settling: HashMap<Key, (u64, usize), foldhash::fast::FixedState>,
    batches: HashMap<u64, Batch, foldhash::fast::FixedState>,
    next_batch: u64,
    renewals: HashMap<u64, (Key, Moment), foldhash::fast::FixedState>,
    next_renewal: u64,
    tasks: JoinSet<Done>,
    preparing: usize,
    inbox: Option<Inbox>,
    /// The server, and the first connection to it.
    server: (String, u64),
    /// How often an inbox was made anew for silence since anything was heard.
    silences: u32,
    started: Instant,
    /// An acknowledgement went without an answer: the server may have forgotten the delivery, and must be able to
    /// deliver it again although no slot is free.
    unanswered: bool,
    stopping: bool,
    stopped: Option<oneshot::Sender<()>>,
    headers: Builder,
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
        closed: CancellationToken,
    ) -> Self {
        let single =
            fresh.iter().chain([&work]).all(|s| s.single) && context.link.client.server_info().cluster.is_none();
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
                missing: 0,
                checking: false,
                highest: 0,
                doubtful: 0,
            })
            .collect();
        let mut confirm = Confirm::new();
        confirm.set_grouping(single);
        shared.set_limit(if single { GROUP * GROUPS } else { SINGLES });
        Self {
            hand: Hand::new(context.lease),
            server: (context.link.client.server_info().server_id, 0),
            context,
            shared,
            commands,
            consumers,
            hops: HashMap::default(),
            marks: HashMap::default(),
            parts: HashMap::default(),
            confirm,
            settling: HashMap::default(),
            batches: HashMap::default(),
            next_batch: 0,
            renewals: HashMap::default(),
            next_renewal: 0,
            tasks: JoinSet::new(),
            preparing: 0,
            inbox: None,
            silences: 0,
            started: Instant::now(),
            unanswered: false,
            stopping: false,
            stopped: None,
            headers: Builder::default(),
            shares: Vec::new(),
            closed,
        }
    }

    /// Runs until it is closed.
    pub async fn run(mut self) {
        let mut came = Vec::new();
        loop {
            if self.closed.is_cancelled() && self.idle() {
                return;
            }
            self.connection().await;
            let shared = self.shared.clone();
            let next = async {
                match &mut self.inbox {
                    Some(inbox) => inbox.messages.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(command) = self.commands.recv() => {
                    self.command(command).await;
                    while let Ok(command) = self.commands.try_recv() {
                        self.command(command).await;
                    }
                }
                message = next => match message {
                    Some(message) => came.push(message),
                    None => self.inbox = None,
                },
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => self.done(done).await,
                () = shared.demand.notified() => {}
                () = tokio::time::sleep(TURN) => {}
            }
            while let Some(message) = self.inbox.as_mut().and_then(|i| i.messages.next().now_or_never()).flatten() {
                came.push(message);
                if came.len() >= 1_024 {
                    break;
                }
            }
            self.received(&mut came).await;
            self.turn().await;
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
            && self.confirm.len() == 0
            && (coming == 0 || !self.connected())
    }

    fn connected(&self) -> bool {
        self.context.link.connected()
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
        let prefix = self.context.link.client.new_inbox();
        // The old one is dropped first: its requests lose their way, and their credit with it.
        self.inbox = None;
        for consumer in &mut self.consumers {
            consumer.credit.forget();
        }
        self.renewals.clear();
        let server = self.context.link.client.server_info().server_id;
        if server != self.server.0 {
            self.server = (server, epoch);
            self.forgotten();
        }
        match self.context.link.client.subscribe(format!("{prefix}.*.*.*")).await {
            Ok(messages) => self.inbox = Some(Inbox { messages, prefix, epoch }),
            Err(error) => tracing::warn!(error = %error, "failed to subscribe to an inbox"),
        }
    }

    /// The server is another one, or was started again: it may have forgotten what it delivered last, and give it to
    /// somebody else. What has not begun here does not begin: it comes again. It is not given back either, which
    /// would take it from whoever has it by now.
    fn forgotten(&mut self) {
        for token in self.shared.take_back(|_| false) {
            self.drop_from_hand(Key(token.0, token.1), false);
        }
        for consumer in &mut self.consumers {
            consumer.doubtful = consumer.highest + DOUBTFUL;
        }
    }

    /// Whether its lease has ended, or the server that delivered it may have forgotten that it did.
    fn is_lost(&mut self, key: Key) -> bool {
        let (now, shared) = (self.now(), &self.shared);
        let held = self.hand.act(key, now, || shared.lose(Token(key.0, key.1)));
        held.is_none_or(|held| held.lost || held.epoch < self.server.1)
    }

    async fn publish(&self, subject: Subject, payload: Bytes) {
        // A publication that fails is one that was not confirmed; whoever needs it confirmed tries again.
        let _ = self.context.link.client.publish(subject, payload).await;
    }

    async fn ask(&self, subject: Subject, reply: String, payload: Bytes) {
        // Likewise.
        let _ = self.context.link.client.publish_with_reply(subject, wire::subject(reply), payload).await;
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Settle(items, answer) => self.settle(items, answer).await,
            Command::Release(token) => self.release(Key(token.0, token.1), NAK).await,
            Command::Mark(tokens, answer) => {
                let context = self.context.clone();
                let mut marks = Vec::with_capacity(tokens.len());
                for key in tokens.iter().map(|token| Key(token.0, token.1)) {
                    // One whose lease has ended is not ours to start, and needs no mark to be refused.
                    let mark = if self.is_lost(key) { None } else { self.marks.get(&key).cloned() };
                    marks.push((key, mark));
                }
                self.tasks.spawn(async move {
                    let starts = marks.into_iter().map(|(key, mark)| {
                        let context = context.clone();
                        async move {
                            match mark {
                                Some(mark) => (key, context.start(&mark).await.map(Some)),
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

    async fn settle(&mut self, items: Vec<(Delivery, Disposition)>, answer: oneshot::Sender<Vec<Settled>>) {
        self.next_batch += 1;
        let (id, now) = (self.next_batch, self.now());
        let left = items.len();
        self.batches.insert(id, Batch { settled: vec![Settled::Stored; left], left, answer: Some(answer) });
        if left == 0 {
            self.batches.remove(&id);
        }
        for (index, (delivery, disposition)) in items.into_iter().enumerate() {
            let key = Key(delivery.token.0, delivery.token.1);
            let shared = &self.shared;
            let Some(held) = self.hand.act(key, now, || shared.lose(delivery.token)) else {
                self.finish(id, index, Settled::Stale);
                continue;
            };
            let (lost, epoch) = (held.lost, held.epoch);
            match disposition {
                Disposition::Ack => {
                    held.stage = Stage::Acknowledging;
                    self.settling.insert(key, (id, index));
                    self.confirm.offer(Item { token: key, epoch, alone: lost });
                }
                Disposition::Release => {
                    self.release(key, NAK).await;
                    self.finish(id, index, if lost { Settled::Stale } else { Settled::Stored });
                }
                _ if lost => {
                    self.drop_from_hand(key, false);
                    self.finish(id, index, Settled::Stale);
                }
                moved => {
                    self.settling.insert(key, (id, index));
                    let hop = self.hops.get(&key).copied().unwrap_or(0);
                    let (context, shared) = (self.context.clone(), self.shared.clone());
                    let reply = held.reply.clone();
                    self.tasks.spawn(async move {
                        Done::Moved(key, moves::carry_out(&context, &shared, delivery, moved, reply, hop).await)
                    });
                }
            }
        }
    }

    fn finish(&mut self, batch: u64, index: usize, settled: Settled) {
        let Some(entry) = self.batches.get_mut(&batch) else { return };
        entry.settled[index] = settled;
        entry.left -= 1;
        if entry.left == 0
            && let Some(mut entry) = self.batches.remove(&batch)
            && let Some(answer) = entry.answer.take()
        {
            // The engine need not wait for it.
            let _ = answer.send(entry.settled);
        }
    }

    fn finish_key(&mut self, key: Key, settled: Settled) {
        if let Some((batch, index)) = self.settling.remove(&key) {
            self.finish(batch, index, settled);
        }
    }

    fn drop_from_hand(&mut self, key: Key, done: bool) {
        self.hand.remove(key, done);
        self.shared.forget(Token(key.0, key.1));
        if !self.hops.is_empty() {
            self.hops.remove(&key);
        }
        if !self.marks.is_empty()
            && let Some(mark) = self.marks.remove(&key)
            && (done || mark.ours)
        {
            let context = self.context.clone();
            self.tasks.spawn(async move {
                context.clear(&mark, done).await;
                Done::Cleared
            });
        }
        if !self.parts.is_empty()
            && let Some(part) = self.parts.remove(&key)
            && done
        {
            let context = self.context.clone();
            self.tasks.spawn(async move {
                // What stays is found by nobody, and goes with the queue.
                let _ = context.api.purge(&context.names.work(), &part).await;
                Done::Cleared
            });
        }
    }

    /// Gives a delivery back at once, or after the delay that `how` says; a lost one is only let go.
    async fn release(&mut self, key: Key, how: Bytes) {
        let (shared, now) = (&self.shared, self.now());
        let Some(held) = self.hand.act(key, now, || shared.lose(Token(key.0, key.1))) else { return };
        let (lost, reply) = (held.lost || held.epoch < self.server.1, held.reply.clone());
        // On a lost connection it would wait and go out on the next one, when somebody else may have the job.
        if !lost && self.connected() {
            self.publish(reply, how).await;
        }
        self.drop_from_hand(key, false);
    }

    async fn received(&mut self, came: &mut Vec<Message>) {
        if came.is_empty() {
            return;
        }
        let now = self.now();
        let Some(epoch) = self.inbox.as_ref().map(|inbox| inbox.epoch) else { return came.clear() };
        self.silences = 0;
        let mut fresh = Vec::with_capacity(came.len());
        for message in came.drain(..) {
            match message.reply.clone() {
                Some(reply) if message.status.is_none() && reply.starts_with("$JS.ACK.") => {
                    if let Some(delivery) = self.delivery(message, reply, epoch, now).await {
                        fresh.push(delivery);
                    }
                }
                _ => self.answer(&message, now).await,
            }
        }
        if !fresh.is_empty() {
            self.shared.push(fresh.into_iter());
        }
    }

    /// A message of a consumer: in hand from now on, or known already.
    async fn delivery(&mut self, message: Message, reply: Subject, epoch: u64, now: Moment) -> Option<Delivery> {
        let said = wire::delivered(&reply)?;
        let index = self.consumers.iter().position(|consumer| consumer.subscription.stream == said.stream)?;
        let consumer = &mut self.consumers[index];
        consumer.credit.received();
        consumer.waiting = said.pending;
        consumer.missing = 0;
        consumer.highest = consumer.highest.max(said.seq);
        let (since, doubtful) = (consumer.credit.since(), said.seq <= consumer.doubtful);
        let key = Key(index as u64, said.seq);
        if self.stopping && self.hand.get(key).is_none() {
            self.publish(reply, NAK).await;
            return None;
        }
        match self.hand.arrive(key, reply.clone(), said.stored, epoch, since, now) {
            Arrival::Late => return None,
            Arrival::Joined => {
                // A server that forgot the first delivery takes an acknowledgement of this one only.
                if self.hand.get(key).is_some_and(|held| held.stage == Stage::Acknowledging) {
                    self.confirm.offer(Item { token: key, epoch, alone: true });
                }
                return None;
            }
            Arrival::Done => {
                self.publish(reply, ACK).await;
                return None;
            }
            Arrival::New => {}
        }
        let channel = self.channel(index, &message.subject);
        let headers = wire::headers_in(message.headers.as_ref(), &mut self.headers);
        let original = crate::message::Message { headers, body: Some(message.payload), key: None };
        let token = Token(key.0, key.1);
        let mut delivery = Delivery::new(original, channel, said.seq, said.at(), token);
        let lane = self.consumers[index].lane;
        if lane == Lane::Fresh && said.count == 1 && !doubtful {
            return Some(delivery);
        }
        delivery.redelivered = said.count > 1;
        let hop = super::names::hop(message.headers.as_ref());
        self.hops.insert(key, hop);
        self.preparing += 1;
        let context = self.context.clone();
        let again = said.count > 1 || doubtful;
        self.tasks.spawn(async move {
            Done::Prepared(key, prepare::prepare(&context, delivery, message.headers, lane, hop, again).await)
        });
        None
    }

    fn channel(&mut self, index: usize, subject: &Subject) -> Arc<Channel> {
        let consumer = &mut self.consumers[index];
        if let Some(channel) = consumer.channels.get(subject.as_str()) {
            return channel.clone();
        }
        let stream = &consumer.subscription.stream;
        let place = Place {
            position: format!("nats:{stream}"),
            source: format!("nats://{stream}"),
            topic: (consumer.lane == Lane::Fresh).then(|| Arc::from(subject.as_str())),
            binding: Binding::Dash,
        };
        let channel = Arc::new(Channel { lane: consumer.lane, place: Arc::new(place), leases: self.shared.clone() });
        if consumer.lane == Lane::Fresh && consumer.channels.len() < CHANNELS {
            consumer.channels.insert(subject.as_str().into(), channel.clone());
        }
        channel
    }

    /// A status of a pull request, or the reply to an acknowledgement or a renewal.
    async fn answer(&mut self, message: &Message, now: Moment) {
        let mut tokens = message.subject.rsplit('.');
        let (Some(id), Some(index), Some(kind)) = (tokens.next(), tokens.next(), tokens.next()) else { return };
        let Ok(id) = id.parse::<u64>() else { return };
        let failed = message.status.is_some_and(|status| status != StatusCode::OK);
        match kind {
            "a" => {
                let epoch = self.context.link.epoch();
                if let Some(sent) = self.confirm.sent(id) {
                    self.heard(sent);
                }
                match self.confirm.replied(id, failed, epoch) {
                    Some(Verdict::Confirmed(items)) => items.into_iter().for_each(|item| self.confirmed(item.token)),
                    Some(Verdict::Unknown(items)) => self.unknown(items, failed),
                    None => {}
                }
            }
            "w" => {
                if let Some((key, sent)) = self.renewals.remove(&id) {
                    self.heard(sent);
                    if !failed {
                        self.hand.renewed(key, sent);
                    }
                }
            }
            _ => {
                if let Ok(index) = index.parse::<usize>()
                    && index < self.consumers.len()
                {
                    self.status(index, id, message, now);
                }
            }
        }
    }

    fn heard(&mut self, sent: Moment) {
        self.consumers.iter_mut().for_each(|consumer| consumer.credit.heard(sent));
    }

    /// All that is left to do is to acknowledge it; the connection it came on.
    fn acknowledging(&mut self, key: Key) -> Option<u64> {
        let now = self.now();
        let shared = &self.shared;
        let held = self.hand.act(key, now, || shared.lose(Token(key.0, key.1)))?;
        held.stage = Stage::Acknowledging;
        Some(held.epoch)
    }

    fn confirmed(&mut self, key: Key) {
        self.drop_from_hand(key, true);
        self.finish_key(key, Settled::Stored);
    }

    /// Acknowledgements of which nothing is known go out again for as long as the lease lasts.
    fn unknown(&mut self, items: Vec<Item<Key>>, gone: bool) {
        for mut item in items {
            let Some(held) = self.hand.get(item.token) else { continue };
            if held.lost || gone && held.epoch != item.epoch {
                self.give_up(item.token);
                continue;
            }
            item.epoch = held.epoch;
            self.confirm.offer(item);
            self.unanswered = true;
        }
    }

    fn give_up(&mut self, key: Key) {
        self.drop_from_hand(key, false);
        self.finish_key(key, Settled::Unconfirmed("the lease ended before the server answered".to_owned()));
    }

    /// Source: ADR-37 and nats-server's consumer.go.
    fn status(&mut self, index: usize, id: u64, message: &Message, now: Moment) {
        let status = message.status.map_or(0, |status| status.as_u16());
        let text = message.description.as_deref().unwrap_or_default().to_lowercase();
        let consumer = &mut self.consumers[index];
        let end = match status {
            100 => {
                consumer.missing = 0;
                return consumer.credit.heartbeat(id);
            }
            404 | 408 => End::Over {
                unused: wire::text(message.headers.as_ref(), header::UNUSED).and_then(|text| text.parse().ok()),
            },
            409 if text.contains("maxwaiting") || text.contains("batch completed") => End::Refused,
            409 if text.contains("message size") => End::Over { unused: None },
            409 if text.contains("consumer deleted") || text.contains("push based") => {
                self.look(index);
                End::Lost
            }
            // A new leader, a server that leaves.
            409 => End::Lost,
            // A pin that is no longer ours; a request that this server does not understand.
            423 | 400 => {
                tracing::warn!(status, text, "a pull request was refused");
                End::Refused
            }
            503 => {
                self.look(index);
                End::Refused
            }
            _ => End::Over { unused: None },
        };
        let consumer = &mut self.consumers[index];
        if matches!(end, End::Over { .. }) {
            consumer.waiting = 0;
        }
        consumer.credit.ended(id, end, now);
    }

    /// Nobody answered for a consumer: is it still there?
    fn look(&mut self, index: usize) {
        let consumer = &mut self.consumers[index];
        if consumer.checking {
            return;
        }
        consumer.checking = true;
        let (context, subscription) = (self.context.clone(), consumer.subscription.clone());
        self.tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let found = context.api.consumer(&subscription.stream, &subscription.durable).await;
            Done::Looked(index, found.map(|found| found.is_some()).map_err(|error| error.to_string()))
        });
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
                    Prepared::Run(delivery, ..) if self.is_lost(key) => {
                        let _taken = delivery.settle(Disposition::Release).take();
                        self.drop_from_hand(key, false);
                    }
                    Prepared::Run(delivery, ..) if self.stopping => drop(delivery),
                    Prepared::Run(delivery, mark, part) => {
                        self.marks.extend(mark.map(|mark| (key, mark)));
                        self.parts.extend(part.map(|part| (key, part)));
                        self.shared.push(std::iter::once(*delivery));
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
            Done::Moved(key, moved) => match (moved, self.acknowledging(key)) {
                (Moved::Stored, Some(epoch)) => {
                    self.confirm.offer(Item { token: key, epoch, alone: true });
                }
                (Moved::Lost, _) => {
                    self.drop_from_hand(key, false);
                    self.finish_key(key, Settled::Stale);
                }
                (Moved::Refused(why), _) => {
                    self.release(key, NAK).await;
                    self.finish_key(key, Settled::Unconfirmed(why));
                }
                (Moved::Stored, None) => self.finish_key(key, Settled::Stored),
            },
            Done::Looked(index, found) => {
                let consumer = &mut self.consumers[index];
                consumer.checking = false;
                match found {
                    Ok(true) => consumer.missing = 0,
                    Ok(false) => {
                        consumer.missing += 1;
                        if consumer.missing >= 3 {
                            self.confirm.doubt();
                            let Subscription { stream, durable, .. } = &consumer.subscription;
                            let why = format!(
                                "the consumer {durable} on the stream {stream} was removed while this worker reads it; \
                                 start the worker again to make it anew"
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
                    stored.push(result.is_ok() && !self.is_lost(key));
                    match (result, self.marks.get_mut(&key)) {
                        (Ok(seq), Some(mark)) => {
                            mark.seq = seq.or(mark.seq);
                            mark.ours = true;
                        }
                        (Ok(_), None) => {}
                        (Err(error), _) => tracing::warn!(error = %error, "a start cannot be marked"),
                    }
                }
                // The engine may have given up waiting.
                let _ = answer.send(stored);
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
            (None, true) => None,
        });
        if !link.connected() {
            return;
        }
        let epoch = link.epoch();
        let overdue = if self.confirm.flying() { self.confirm.overdue(epoch, now) } else { Vec::new() };
        self.unknown(overdue, false);
        self.unanswered &= self.confirm.len() > 0;
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
        for key in renew {
            let Some(held) = self.hand.get(key) else { continue };
            self.next_renewal += 1;
            let reply = format!("{prefix}.w.0.{}", self.next_renewal);
            self.renewals.insert(self.next_renewal, (key, now));
            self.ask(held.reply.clone(), reply, PROGRESS).await;
        }
    }

    async fn acknowledge(&mut self, epoch: u64, now: Moment) {
        let Some(prefix) = self.inbox.as_ref().filter(|inbox| inbox.epoch == epoch).map(|i| i.prefix.clone()) else {
            return;
        };
        while let Some(flight) = self.confirm.next(epoch, now) {
            let last = flight.items.len() - 1;
            for (index, item) in flight.items.iter().enumerate() {
                let Some(held) = self.hand.get(item.token) else { continue };
                let subject = held.reply.clone();
                if index == last {
                    self.ask(subject, format!("{prefix}.a.0.{}", flight.ticket), ACK).await;
                } else {
                    self.publish(subject, ACK).await;
                }
            }
        }
    }

    async fn pull(&mut self, epoch: u64, now: Moment) {
        let mut silent = false;
        for consumer in &mut self.consumers {
            silent |= consumer.credit.tick(now);
        }
        if silent {
            tracing::debug!(queue = %self.context.queue.name, "a consumer is silent; its inbox is made anew");
            self.silences += 1;
            if self.silences >= 2 {
                // Half open: what we send arrives nowhere, and nobody says so.
                self.silences = 0;
                tracing::warn!("the NATS server does not answer; connecting anew");
                // Where the client's own task is gone there is nothing to connect.
                let _ = self.context.link.client.force_reconnect().await;
                return;
            }
            self.reopen(epoch).await;
        }
        if self.stopping {
            return;
        }
        let Some(prefix) = self.inbox.as_ref().filter(|inbox| inbox.epoch == epoch).map(|i| i.prefix.clone()) else {
            return;
        };
        let demand = self.shared.demand(self.preparing);
        let state: smallvec::SmallVec<[(bool, bool); 4]> =
            self.consumers.iter().map(|c| (c.waiting > 0, c.lane == Lane::Retry)).collect();
        let mut shares = std::mem::take(&mut self.shares);
        credit::share(demand.jobs, demand.fresh_floor, demand.retry_floor, &state, &mut shares);
        for (index, &share) in shares.iter().enumerate() {
            let share = share.max(usize::from(self.unanswered));
            let Some(pull) = self.consumers[index].credit.ask(share, now) else { continue };
            let body = format!(
                "{{\"batch\":{},\"expires\":{},\"idle_heartbeat\":{}}}",
                pull.batch,
                credit::EXPIRES.as_nanos(),
                credit::HEARTBEAT.as_nanos()
            );
            self.ask(self.consumers[index].next.clone(), format!("{prefix}.p.{index}.{}", pull.id), Bytes::from(body))
                .await;
        }
        self.shares = shares;
    }
}
