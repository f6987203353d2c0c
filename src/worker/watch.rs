//! Watches the worker once a second and says what an operator should know: gauges, trouble at the broker, a summary.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Worker;
use crate::broker::{Broker, Overtaken, Trouble};
use crate::message::QueueName;
use crate::telemetry::meter::Totals;
use crate::telemetry::{events, exposition};

const EVERY: Duration = Duration::from_secs(1);
const SUMMARY_EVERY: Duration = Duration::from_secs(10);

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
