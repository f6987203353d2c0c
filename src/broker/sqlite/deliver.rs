//! Deliveries: what was claimed becomes what the engine takes in hand.

use std::collections::VecDeque;
use std::sync::Arc;

use super::claim::{self, Candidate};
use super::desk::{Desk, Hand};
use super::publish::NO_BODY;
use super::stored;
use super::writer::Writer;
use crate::broker::delivery::{Channel, Delivery, Lane, Token};
use crate::message::record::Record;
use crate::message::{Binding, Headers, JobName, Message, Place};
use crate::time::Timestamp;

impl Writer {
    /// Makes deliveries of what was claimed, and takes them in hand.
    pub(super) fn deliver(&mut self, desk: &Arc<Desk>, chosen: Vec<Candidate>, now: Timestamp) -> Vec<Delivery> {
        let max = desk.max_crashes();
        let mut deliveries = Vec::with_capacity(chosen.len());
        for candidate in chosen {
            let channel = self.channel(desk, candidate.topic, candidate.kind != 0);
            let record = record_of(&candidate);
            let attempt = record.as_ref().map_or(1, |record| record.attempt.get());
            let hand = Hand {
                attempt,
                suspect: candidate.class == 1,
                due: if candidate.kind == 0 && candidate.class == 0 { 0 } else { candidate.due },
                shared: candidate.shared,
                recorded: candidate.recorded,
                claimed: now,
                stale: false,
                lost: None,
            };
            desk.hands(|hands| hands.insert(candidate.event, hand));
            let message = unpack(&candidate);
            let token = Token(candidate.event as u64, desk.id as u64);
            let at = Timestamp::from_millis(candidate.at);
            let mut delivery = Delivery::new(message, channel, candidate.event as u64, at, token);
            delivery.record = record.map(Box::new);
            delivery.condemned = candidate.crashes >= max;
            delivery.suspect = !delivery.condemned && candidate.crashes >= max - 1;
            delivery.redelivered = came_back(&candidate);
            // A mark for every first start would cost each job a write.
            delivery.needs_mark =
                desk.is_ordered() || delivery.redelivered || candidate.crashes > 0 || candidate.kind == claim::RETRY;
            deliveries.push(delivery);
        }
        deliveries
    }

    fn channel(&mut self, desk: &Arc<Desk>, topic: Option<i64>, retry: bool) -> Arc<Channel> {
        let directory = &self.directory;
        let channel = self.channels.entry((desk.id, topic, retry)).or_insert_with(|| {
            let name = topic.and_then(|id| directory.topics.iter().find(|(_, (known, _))| *known == id));
            let name: Option<Arc<str>> = name.map(|(name, _)| name.as_str().into());
            let shown = name.clone().unwrap_or_else(|| desk.name.shared());
            Arc::new(Channel {
                lane: if retry { Lane::Retry } else { Lane::Fresh },
                place: Arc::new(Place {
                    position: format!("sqlite:{shown}"),
                    source: format!("sqlite://{shown}"),
                    topic: name,
                    binding: Binding::Dash,
                }),
                leases: desk.clone(),
            })
        });
        channel.clone()
    }
}

/// Takes out of what was found what this process still runs: the same attempt joins that run, another one waits
/// until it has ended.
pub(super) fn join(desk: &Desk, found: &mut claim::Found) -> Vec<Candidate> {
    let mut joined = Vec::new();
    desk.hands(|hands| {
        let mut sort = |lane: &mut VecDeque<Candidate>| {
            if !hands.values().any(|hand| hand.stale) {
                return;
            }
            for candidate in std::mem::take(lane) {
                match hands.get(&candidate.event).filter(|hand| hand.stale) {
                    None => lane.push_back(candidate),
                    Some(hand) => {
                        let attempt = candidate.data.as_deref().map_or(1, |data| stored::read(data).attempt.get());
                        if attempt == hand.attempt {
                            joined.push(candidate);
                        }
                    }
                }
            }
        };
        sort(&mut found.fresh);
        sort(&mut found.later);
        let mut suspects: VecDeque<Candidate> = found.suspect.take().into_iter().collect();
        sort(&mut suspects);
        found.suspect = suspects.pop_front();
    });
    joined
}

fn record_of(candidate: &Candidate) -> Option<Record> {
    let due = Timestamp::from_millis(candidate.due);
    match &candidate.data {
        Some(data) => Some(stored::read(data)),
        None if candidate.topic.is_none() => Some(Record {
            job: candidate.job.as_deref().and_then(|name| JobName::new(name).ok()),
            not_before: (candidate.due > candidate.at).then_some(due),
            ..Record::default()
        }),
        None => None,
    }
}

/// Whether it was handed out before and given back, by whoever had it or on its behalf: see
/// [`give_back`](super::settle::give_back).
fn came_back(candidate: &Candidate) -> bool {
    candidate.recorded && candidate.data.as_deref().is_none_or(stored::came_back)
}

fn unpack(candidate: &Candidate) -> Message {
    let content = candidate.content.clone().unwrap_or_default();
    let (head, has_body) = if candidate.head < 0 { (candidate.head + NO_BODY, false) } else { (candidate.head, true) };
    let head = (head as usize).min(content.len());
    Message {
        headers: Headers::from_buffer(content.slice(..head)).unwrap_or_default(),
        body: has_body.then(|| content.slice(head..)),
        key: candidate.key.clone(),
    }
}
