//! Watches the worker once a second and says what an operator should know: gauges, trouble at the broker, a summary.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Worker;
use crate::broker::{Broker, Head, Overtaken, Trouble};
use crate::message::QueueName;
use crate::telemetry::meter::{Totals, Why};
use crate::telemetry::{events, exposition};

const EVERY: Duration = Duration::from_secs(1);
const SUMMARY_EVERY: Duration = Duration::from_secs(10);
/// So long one event holds up its partition before that is worth a warning.
const HELD_UP: Duration = Duration::from_secs(30);

/// Runs until it is aborted, on the runtime of broker I/O.
pub async fn run(worker: Worker, broker: Arc<dyn Broker>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = Watch { worker, broker, seen: Seen::default() };
    loop {
        ticks.tick().await;
        watch.look();
    }
}

struct Watch {
    worker: Worker,
    broker: Arc<dyn Broker>,
    seen: Seen,
}

#[derive(Default)]
struct Seen {
    broker_lost: Option<Instant>,
    dead_letter_trouble: HashMap<QueueName, Instant>,
    waits_for_order: HashMap<QueueName, Instant>,
    held_up: HashMap<QueueName, String>,
    summary: Option<(Instant, Vec<Totals>)>,
}

impl Watch {
    fn look(&mut self) {
        events::tick();
        exposition::upkeep();
        self.look_at_broker();
        for queue in self.worker.queues.iter() {
            queue.meter.set_in_flight(queue.running.len());
        }
        self.look_at_trouble();
        self.look_at_order();
        self.look_at_heads();
        self.look_at_losses();
        self.summarise();
    }

    fn look_at_broker(&mut self) {
        let connected = self.broker.connected();
        exposition::set_connected(connected);
        match (connected, self.seen.broker_lost) {
            (false, None) => {
                self.seen.broker_lost = Some(Instant::now());
                events::BrokerLost { broker: self.broker.address(), error: "no connection" }.emit();
            }
            (true, Some(since)) => {
                self.seen.broker_lost = None;
                events::BrokerBack { broker: self.broker.address(), after: since.elapsed() }.emit();
            }
            _ => {}
        }
    }

    fn look_at_trouble(&mut self) {
        for queue in self.worker.queues.iter() {
            let trouble = match queue.settler.trouble() {
                Some(Trouble::DeadLetter(error)) => Some(error),
                _ => None,
            };
            let since = self.seen.dead_letter_trouble.get(queue.name()).copied();
            match (trouble, since) {
                (Some(error), None) => {
                    self.seen.dead_letter_trouble.insert(queue.name().clone(), Instant::now());
                    events::DeadLetterTrouble { queue: queue.name(), error: &error }.emit();
                }
                (None, Some(since)) => {
                    self.seen.dead_letter_trouble.remove(queue.name());
                    events::DeadLetterRecovered { queue: queue.name(), after: since.elapsed() }.emit();
                }
                _ => {}
            }
        }
    }

    /// Nobody stops asking for it, so it is said here and not where asking stops.
    fn look_at_order(&mut self) {
        for queue in self.worker.queues.iter() {
            let waits = queue.settler.trouble() == Some(Trouble::Order);
            let since = self.seen.waits_for_order.get(queue.name()).copied();
            match (waits, since) {
                (true, None) => {
                    self.seen.waits_for_order.insert(queue.name().clone(), Instant::now());
                    queue.meter.set_paused(Why::Order, true);
                    events::IntakePaused { queue: queue.name(), why: Why::Order }.emit();
                }
                (false, Some(since)) => {
                    self.seen.waits_for_order.remove(queue.name());
                    queue.meter.set_paused(Why::Order, false);
                    events::IntakeResumed { queue: queue.name(), why: Why::Order, after: since.elapsed() }.emit();
                }
                _ => {}
            }
        }
    }

    fn look_at_heads(&mut self) {
        for queue in self.worker.queues.iter() {
            let head = queue.settler.head();
            queue.meter.set_head(head.as_ref().map_or((Duration::ZERO, 0), |head| (head.age, head.span)));
            let before = self.seen.held_up.get(queue.name());
            match head.filter(|head| head.full && head.age >= HELD_UP) {
                Some(Head { place, age, span, .. }) if before != Some(&place) => {
                    events::HeldUp { queue: queue.name(), place: &place, age, span }.emit();
                    self.seen.held_up.insert(queue.name().clone(), place);
                }
                None if before.is_some() => {
                    self.seen.held_up.remove(queue.name());
                    events::GoesOn { queue: queue.name() }.emit();
                }
                _ => {}
            }
        }
    }

    fn look_at_losses(&self) {
        for queue in self.worker.queues.iter() {
            for Overtaken { place, events } in queue.settler.overtaken() {
                queue.meter.add_lost(events);
                events::EventsLost { queue: queue.name(), place: &place, count: events }.emit();
            }
        }
    }

    fn summarise(&mut self) {
        let totals = || self.worker.queues.iter().map(|queue| queue.meter.totals()).collect::<Vec<_>>();
        let Some((since, before)) = &self.seen.summary else {
            self.seen.summary = Some((Instant::now(), totals()));
            return;
        };
        let over = since.elapsed();
        if over < SUMMARY_EVERY {
            return;
        }
        let now = totals();
        for ((queue, now), before) in self.worker.queues.iter().zip(&now).zip(before) {
            let ended = now.ended - before.ended;
            let in_flight = queue.running.len();
            // An idle queue has nothing to say.
            if ended == 0 && in_flight == 0 {
                continue;
            }
            let wait = now.wait.since(&before.wait);
            events::Summary {
                queue: queue.name(),
                over,
                done: now.done - before.done,
                retried: now.retried - before.retried,
                dead: now.dead - before.dead,
                in_flight,
                wait_p50: wait.quantile(0.5),
                wait_p99: wait.quantile(0.99),
            }
            .emit();
        }
        self.seen.summary = Some((Instant::now(), now));
    }
}
