//! Every ten seconds a line a queue: what it did, and how long jobs waited. An idle queue says nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::events::{self, Summary};
use super::exposition;
use super::meter::{QueueMeter, Totals};

/// How often a summary is written.
const EVERY: Duration = Duration::from_secs(10);

/// Writes summaries until `stop` is cancelled, and what was left of one then. Also ticks what else telemetry needs
/// a clock for: the throttle of [`events`] and the recorder's upkeep. Owner: the worker; it cannot fail.
pub async fn run(meters: Vec<Arc<QueueMeter>>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Vec<Totals> = meters.iter().map(|meter| meter.totals()).collect();
    let mut since = Instant::now();
    loop {
        // Leaving first: a tick that is due as well can wait for ever.
        let leaving = tokio::select! {
            biased;
            () = stop.cancelled() => true,
            _ = tick.tick() => false,
        };
        events::tick();
        if leaving || since.elapsed() >= EVERY {
            for (meter, last) in meters.iter().zip(&mut last) {
                summarise(meter, last, since.elapsed());
            }
            since = Instant::now();
            exposition::upkeep();
        }
        if leaving {
            return;
        }
    }
}

fn summarise(meter: &QueueMeter, last: &mut Totals, over: Duration) {
    let now = meter.totals();
    if now.ended != last.ended || now.in_flight > 0 || now.dead != last.dead {
        let wait = now.wait.since(&last.wait);
        Summary {
            queue: meter.queue(),
            over,
            done: now.done - last.done,
            retried: now.retried - last.retried,
            dead: now.dead - last.dead,
            in_flight: now.in_flight,
            wait_p50: wait.quantile(0.5),
            wait_p99: wait.quantile(0.99),
        }
        .emit();
    }
    *last = now;
}
