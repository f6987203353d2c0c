//! What comes over the inbox, and what is asked for.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subject};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};

use super::{ACK, CHANNELS, DOUBTFUL, Done, NAK, Pump, TAKEN};
use crate::broker::nats::confirm::{Item, Verdict};
use crate::broker::nats::credit::{self, End, Moment, SILENCE};
use crate::broker::nats::held::{Arrival, Key, Stage};
use crate::broker::nats::wire::{self, header};
use crate::broker::nats::{names, prepare};
use crate::broker::{Channel, Delivery, Lane, Token};
use crate::message::{Binding, Place};

impl Pump {
    /// Takes what came, `first`, and all that is there behind it.
    pub(super) async fn received(&mut self, first: Option<Message>) {
        let Some(epoch) = self.inbox.as_ref().map(|inbox| inbox.epoch) else { return };
        let mut next = first.or_else(|| self.waiting());
        if next.is_none() {
            return;
        }
        let now = self.now();
        (self.silences, self.unheard) = (0, None);
        let mut fresh = std::mem::take(&mut self.fresh);
        for _ in 0..TAKEN {
            let Some(mut message) = next else { break };
            match message.reply.take() {
                Some(reply) if message.status.is_none() && reply.starts_with("$JS.ACK.") => {
                    fresh.extend(self.delivery(message, reply, epoch, now));
                }
                _ => self.answer(&message, now),
            }
            next = self.waiting();
        }
        self.bundle.send(&self.context.link.client()).await;
        if !fresh.is_empty() {
            self.shared.push(fresh.drain(..));
        }
        self.fresh = fresh;
    }

    fn waiting(&mut self) -> Option<Message> {
        self.inbox.as_mut().and_then(|inbox| inbox.messages.next().now_or_never()).flatten()
    }

    /// A message of a consumer: in hand from now on, or known already.
    fn delivery(&mut self, message: Message, reply: Subject, epoch: u64, now: Moment) -> Option<Delivery> {
        let said = wire::delivered(&reply)?;
        let index = self.consumers.iter().position(|consumer| consumer.subscription.stream == said.stream)?;
        let (seq, count, stored, at) = (said.seq, said.count, said.stored, said.at());
        let consumer = &mut self.consumers[index];
        consumer.credit.received();
        consumer.waiting = said.pending;
        consumer.missing = 0;
        consumer.highest = consumer.highest.max(said.seq);
        let (since, doubtful) = (consumer.credit.since(), said.seq <= consumer.doubtful);
        let key = Key(index as u64, said.seq);
        let reads = self.line_seen(index, said.sequence);
        if (self.stopping || !reads) && self.hand.get(key).is_none() {
            self.bundle.push(&reply, None, NAK);
            self.line_shut(index);
            return None;
        }
        match self.hand.arrive(key, reply, stored, epoch, since, now) {
            Arrival::Late => {
                self.line_shut(index);
                return None;
            }
            Arrival::Joined => {
                // A server that forgot the first delivery takes an acknowledgement of this one only.
                if self.hand.get(key).is_some_and(|held| held.stage == Stage::Acknowledging) {
                    self.confirm.offer(Item { token: key, epoch, alone: true });
                }
                return None;
            }
            Arrival::Done(reply) => {
                self.bundle.push(&reply, None, ACK);
                return None;
            }
            Arrival::New => {}
        }
        let channel = self.channel(index, &message.subject);
        let headers = wire::headers_in(message.headers.as_ref(), &mut self.headers);
        let original = crate::message::Message { headers, body: Some(message.payload), key: None };
        let token = Token(key.0, key.1);
        let mut delivery = Delivery::new(original, channel, seq, at, token);
        let lane = self.consumers[index].lane;
        self.line_arrived(key, &delivery);
        if lane == Lane::Fresh && count == 1 && !doubtful {
            return self.line_wait(key, delivery);
        }
        delivery.redelivered = count > 1;
        let hop = names::hop(message.headers.as_ref());
        self.hops.insert(key, hop);
        self.preparing += 1;
        let context = self.context.clone();
        let again = count > 1 || doubtful;
        self.tasks.spawn(async move {
            let prepared = if context.queue.ordered {
                prepare::insist(&context, delivery, message.headers, lane, hop, again).await
            } else {
                prepare::prepare(&context, delivery, message.headers, lane, hop, again).await
            };
            Done::Prepared(key, prepared)
        });
        None
    }

    pub(super) fn channel(&mut self, index: usize, subject: &Subject) -> Arc<Channel> {
        let consumer = &mut self.consumers[index];
        if let Some((last, channel)) = &consumer.channel
            && last == subject
        {
            return channel.clone();
        }
        if let Some(channel) = consumer.channels.get(subject.as_str()) {
            consumer.channel = Some((subject.clone(), channel.clone()));
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
    fn answer(&mut self, message: &Message, now: Moment) {
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

    pub(super) fn heard(&mut self, sent: Moment) {
        self.consumers.iter_mut().for_each(|consumer| consumer.credit.heard(sent));
    }

    /// Source: ADR-37 and nats-server's consumer.go.
    pub(super) fn status(&mut self, index: usize, id: u64, message: &Message, now: Moment) {
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
            409 => {
                self.led_anew(index);
                End::Lost
            }
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
        if end == End::Lost {
            self.line_shut(index);
        }
    }

    /// Nobody answered for a consumer: is it still there?
    pub(super) fn look(&mut self, index: usize) {
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

    /// It was removed, and only what is unsettled would come again: it is made anew.
    pub(super) fn make_again(&mut self, index: usize) {
        let consumer = &mut self.consumers[index];
        let (context, subscription) = (self.context.clone(), consumer.subscription.clone());
        let Some(config) = subscription.again.filter(|_| !std::mem::replace(&mut consumer.checking, true)) else {
            return;
        };
        let (stream, durable) = (subscription.stream, subscription.durable);
        if consumer.gone.is_none() {
            tracing::warn!(queue = %context.queue.name, stream, durable, "a consumer was removed; it is made anew");
        }
        self.tasks.spawn(async move {
            Done::Made(index, context.api.put_consumer(&stream, "create", &config).await.map(drop))
        });
    }

    /// Its leader is another one, which may not know all that the one before had delivered and heard of.
    fn led_anew(&mut self, index: usize) {
        let consumer = &mut self.consumers[index];
        if !consumer.subscription.single {
            consumer.doubtful = consumer.highest + DOUBTFUL;
        }
    }

    pub(super) async fn pull(&mut self, epoch: u64, now: Moment) {
        let mut silent = self.unheard.is_some_and(|since| now.saturating_sub(since) > SILENCE);
        for consumer in &mut self.consumers {
            silent |= consumer.credit.tick(now);
        }
        if silent {
            tracing::debug!(queue = %self.context.queue.name, "a consumer is silent; its inbox is made anew");
            self.silences += 1;
            self.unheard = None;
            if self.silences >= 2 {
                // Half open: what we send arrives nowhere, and nobody says so.
                self.silences = 0;
                tracing::warn!("the NATS server does not answer; connecting anew");
                // Where the client's own task is gone there is nothing to connect.
                let _ = self.context.link.client().force_reconnect().await;
                return;
            }
            (0..self.consumers.len()).for_each(|index| self.led_anew(index));
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
        if !self.line_rooms(&mut shares) {
            credit::share(demand.jobs, demand.fresh_floor, demand.retry_floor, &state, &mut shares);
        }
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
