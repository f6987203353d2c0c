//! The laboratory's jobs, and how long their events had waited.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use windlass::time::{Clock, Timestamp};
use windlass::{Context, Error, Registry};
use windlass_lab::report::Report;
use windlass_lab::{Lab, analytics, archive, invoice};

use crate::stage::QUEUES;

/// Counts what the handlers see. Cheap to clone.
#[derive(Clone)]
pub struct Meter(Arc<Counts>);

#[derive(Default)]
struct Counts {
    /// Milliseconds from published to started, of first attempts.
    waits: Mutex<Vec<u64>>,
    /// Handlers that succeeded, by queue.
    done: [AtomicU64; QUEUES.len()],
}

impl Meter {
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// The laboratory's jobs, measured.
    pub fn registry(&self, lab: Lab) -> Registry {
        let (billing, counting, keeping) = (self.clone(), self.clone(), self.clone());
        Registry::new()
            .job("invoice", move |report: Report, cx: Context| {
                let meter = billing.clone();
                async move {
                    meter.start(&report, &cx);
                    meter.end(0, invoice::invoice(report, cx).await)
                }
            })
            .job("analytics", move |report: Report, cx: Context| {
                let meter = counting.clone();
                async move {
                    meter.start(&report, &cx);
                    meter.end(1, analytics::analytics(report, cx).await)
                }
            })
            .blocking("archive", move |report: Report, cx: Context| {
                keeping.start(&report, &cx);
                keeping.end(2, archive::archive(report, cx))
            })
            .state(lab)
    }

    fn start(&self, report: &Report, cx: &Context) {
        if cx.attempt() > 1 {
            return;
        }
        if let Some(published) = Timestamp::parse_rfc3339(&report.timestamp) {
            let wait = published.until(Clock::System.now()).as_millis();
            let mut waits = self.0.waits.lock().unwrap_or_else(PoisonError::into_inner);
            waits.push(u64::try_from(wait).unwrap_or(u64::MAX));
        }
    }

    fn end<T>(&self, queue: usize, result: Result<T, Error>) -> Result<T, Error> {
        if result.is_ok() {
            self.0.done[queue].fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// Handlers that succeeded, by queue.
    pub fn done(&self) -> [u64; QUEUES.len()] {
        std::array::from_fn(|queue| self.0.done[queue].load(Ordering::Relaxed))
    }

    /// What so many in a hundred waited at most.
    pub fn wait(&self, percent: usize) -> Duration {
        let mut waits = self.0.waits.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waits.sort_unstable();
        let rank = (waits.len() * percent).div_ceil(100).saturating_sub(1);
        Duration::from_millis(waits.get(rank).copied().unwrap_or(0))
    }
}
