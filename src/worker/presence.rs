//! Says at the broker that this worker is there, and carries out how long dead letters are kept.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Worker;
use crate::broker::Inspect;
use crate::telemetry::events;

/// How often dead letters that were kept long enough are removed.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);

/// Runs until `left`, on the runtime of broker I/O. What is on its way then is waited for: who is cut off between
/// saying that it is there and noting it has nothing to withdraw.
pub async fn run(worker: Worker, inspect: Arc<dyn Inspect>, left: CancellationToken) {
    let mut ticks = interval((worker.config.lease / 3).max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut expired_at = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = left.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = inspect.present(&worker.presence()).await {
            events::PresenceFailed { error: &error }.emit();
        }
        if expired_at.elapsed() < EXPIRE_EVERY {
            continue;
        }
        expired_at = Instant::now();
        match inspect.expire_dead().await {
            Ok(expired) => {
                for (name, count) in expired.into_iter().filter(|(_, count)| *count > 0) {
                    if let Some(queue) = worker.queue(name.as_str()) {
                        queue.meter.add_dead_expired(count);
                    }
                    events::DeadLettersExpired { queue: &name, count }.emit();
                }
            }
            Err(error) => events::PresenceFailed { error: &error }.emit(),
        }
    }
}
