//! How deliveries leave the hand: settled, given back, or given up.

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{ACK, Batch, Done, NAK, Pump};
use crate::broker::nats::confirm::Item;
use crate::broker::nats::credit::Moment;
use crate::broker::nats::held::{Key, Stage};
use crate::broker::nats::{moves, wire};
use crate::broker::{Delivery, Disposition, Settled, Token};

const ENDED: &str = "the lease ended before the server answered";

impl Pump {
    pub(super) fn acknowledge_all(&mut self, tokens: &[Token], answer: oneshot::Sender<Vec<Settled>>) {
        let id = self.batch(tokens.len(), answer);
        let now = self.now();
        for (index, &token) in tokens.iter().enumerate() {
            self.acknowledge_one(token, (id, index as u32), now);
        }
    }

    fn acknowledge_one(&mut self, token: Token, place: (u64, u32), now: Moment) {
        let key = Key(token.0, token.1);
        let shared = &self.shared;
        let Some(held) = self.hand.act(key, now, || shared.lose(token)) else {
            return self.finish(place, Settled::Stale);
        };
        held.stage = Stage::Acknowledging;
        held.settling = Some(place);
        self.confirm.offer(Item { token: key, epoch: held.epoch, alone: held.lost });
    }

    fn batch(&mut self, left: usize, answer: oneshot::Sender<Vec<Settled>>) -> u64 {
        self.next_batch += 1;
        if left > 0 {
            let batch = Batch { settled: vec![Settled::Stored; left], left, answer: Some(answer) };
            self.batches.insert(self.next_batch, batch);
        }
        self.next_batch
    }

    pub(super) async fn settle(&mut self, items: Vec<(Delivery, Disposition)>, answer: oneshot::Sender<Vec<Settled>>) {
        let (id, now) = (self.batch(items.len(), answer), self.now());
        for (index, (delivery, disposition)) in items.into_iter().enumerate() {
            let place = (id, index as u32);
            if disposition == Disposition::Ack {
                self.acknowledge_one(delivery.token, place, now);
                continue;
            }
            let key = Key(delivery.token.0, delivery.token.1);
            let shared = &self.shared;
            let Some(held) = self.hand.act(key, now, || shared.lose(delivery.token)) else {
                self.finish(place, Settled::Stale);
                continue;
            };
            let lost = held.lost;
            match disposition {
                Disposition::Release => {
                    self.release(key, NAK).await;
                    self.finish(place, if lost { Settled::Stale } else { Settled::Stored });
                }
                _ if lost => {
                    self.drop_from_hand(key, false);
                    self.finish(place, Settled::Stale);
                }
                moved => {
                    held.settling = Some(place);
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

    pub(super) fn finish(&mut self, (batch, index): (u64, u32), settled: Settled) {
        let Some(entry) = self.batches.get_mut(&batch) else { return };
        entry.settled[index as usize] = settled;
        entry.left -= 1;
        if entry.left == 0
            && let Some(mut entry) = self.batches.remove(&batch)
            && let Some(answer) = entry.answer.take()
        {
            // The engine need not wait for it.
            let _ = answer.send(entry.settled);
        }
    }

    /// Says how its settlement ended. While it is in hand, and it goes with that.
    pub(super) fn finish_key(&mut self, key: Key, settled: Settled) {
        if let Some(place) = self.hand.take_settling(key) {
            self.finish(place, settled);
        }
    }

    pub(super) fn drop_from_hand(&mut self, key: Key, done: bool) {
        let settling = self.hand.remove(key, done).and_then(|held| held.settling);
        if let Some(place) = settling {
            let ended = if done { Settled::Stored } else { Settled::Unconfirmed(ENDED.to_owned()) };
            self.finish(place, ended);
        }
        self.shared.forget(Token(key.0, key.1));
        let hop = if self.hops.is_empty() { None } else { self.hops.remove(&key) };
        self.leave_line(key, hop, done);
        self.unmark(key, done);
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

    /// Its run has ended, `settled` or given back: its mark is cleared.
    pub(super) fn unmark(&mut self, key: Key, settled: bool) {
        if !self.marks.is_empty()
            && let Some(mark) = self.marks.remove(&key)
            && (settled || mark.ours)
        {
            let context = self.context.clone();
            self.tasks.spawn(async move {
                context.clear(&mark, settled).await;
                Done::Cleared
            });
        }
    }

    /// Gives a delivery back at once, or after the delay that `how` says; a lost one is only let go.
    pub(super) async fn release(&mut self, key: Key, how: Bytes) {
        let (shared, now) = (&self.shared, self.now());
        let Some(held) = self.hand.act(key, now, || shared.lose(Token(key.0, key.1))) else { return };
        let foreign = held.epoch < self.server.1 && self.ordered.is_none();
        let (lost, reply) = (held.lost || foreign, held.reply.clone());
        if !lost && how == NAK && self.put_back(key) {
            return;
        }
        // What the client sends now it would send on the next connection, when somebody else may have the job.
        if !lost && !self.is_known() {
            return self.returning.push((key, how));
        }
        if !lost {
            self.publish(reply, how).await;
        }
        self.drop_from_hand(key, false);
    }

    /// All that is left to do is to acknowledge it; the connection it came on.
    pub(super) fn acknowledging(&mut self, key: Key) -> Option<u64> {
        let now = self.now();
        let shared = &self.shared;
        let held = self.hand.act(key, now, || shared.lose(Token(key.0, key.1)))?;
        held.stage = Stage::Acknowledging;
        Some(held.epoch)
    }

    pub(super) fn confirmed(&mut self, key: Key) {
        self.drop_from_hand(key, true);
    }

    /// Acknowledgements of which nothing is known go out again for as long as the lease lasts.
    pub(super) fn unknown(&mut self, items: Vec<Item<Key>>, gone: bool) {
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

    /// Nobody confirmed it while the lease lasted. Where only its acknowledgement was missing it is remembered: should it
    /// come again, and come here, it need not run again.
    pub(super) fn give_up(&mut self, key: Key) {
        let acknowledging = self.hand.get(key).filter(|held| held.stage == Stage::Acknowledging);
        if let Some(stored) = acknowledging.map(|held| held.stored) {
            self.hand.remember(key, stored);
        }
        self.drop_from_hand(key, false);
    }

    pub(super) async fn acknowledge(&mut self, epoch: u64, now: Moment) {
        let Some(prefix) = self.inbox.as_ref().filter(|inbox| inbox.epoch == epoch).map(|i| i.prefix.clone()) else {
            return;
        };
        while let Some(flight) = self.confirm.next(epoch, now) {
            self.unheard.get_or_insert(now);
            let mut replies = flight.items.iter().filter_map(|item| self.hand.get(item.token)).peekable();
            while let Some(held) = replies.next() {
                let is_last = replies.peek().is_none();
                let reply = is_last.then(|| wire::subject(format!("{prefix}.a.0.{}", flight.ticket)));
                self.bundle.push(&held.reply, reply, ACK);
            }
        }
        self.bundle.send(&self.context.link.client()).await;
    }
}
