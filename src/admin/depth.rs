//! What the broker holds, for `/metrics`: asked for when somebody scrapes, at most every few seconds and for a
//! bounded time. A worker that nobody scrapes asks nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::broker::{Broker, QueueStatus};
use crate::message::QueueName;
use crate::telemetry::exposition::{self, Depth};

/// How old figures may be before they are asked for again.
const FRESH: Duration = Duration::from_secs(3);

/// How long a scrape waits for the broker; then it shows the last known figures.
const WAIT: Duration = Duration::from_secs(2);

/// How old figures may be before they are shown no more: absent is better than wrong.
const STALE: Duration = Duration::from_secs(30);

/// When the broker was last asked, and when it last answered.
#[derive(Default)]
pub(super) struct Depths(Mutex<Times>);

#[derive(Default)]
struct Times {
    asked: Option<Instant>,
    answered: Option<Instant>,
}

impl Depths {
    /// Brings the figures of these queues up to date.
    pub(super) async fn refresh(&self, broker: &Arc<dyn Broker>, queues: &[QueueName]) {
        // Whoever scrapes beside somebody else shows what that one finds.
        let Ok(mut times) = self.0.try_lock() else { return };
        let older = |time: Option<Instant>, than| time.is_none_or(|time: Instant| time.elapsed() >= than);
        if queues.is_empty() || !older(times.asked, FRESH) {
            return;
        }
        times.asked = Some(Instant::now());
        match tokio::time::timeout(WAIT, broker.inspect().status(queues)).await {
            Ok(Ok(statuses)) => {
                times.answered = Some(Instant::now());
                exposition::set_depths(statuses.iter().map(depth).collect());
            }
            // Why is in `broker_connected` and `/ready`; a line a scrape would only repeat it.
            Ok(Err(_)) | Err(_) if older(times.answered, STALE) => exposition::set_depths(Vec::new()),
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

fn depth(status: &QueueStatus) -> Depth {
    Depth {
        queue: status.name.clone(),
        ready: status.ready,
        retrying: status.retrying,
        scheduled: status.scheduled,
        oldest_age: status.oldest_age,
        dead: status.dead,
    }
}
