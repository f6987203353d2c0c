//! From a delivery to what runs it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::retry::Policy;
use crate::handler::{Handler, Shared, Threading};
use crate::message::JobName;

/// A job as one queue runs it.
pub struct Route {
    /// The job.
    pub job: JobName,
    /// What runs it.
    pub handler: Arc<dyn Handler>,
    /// Where it runs.
    pub threading: Threading,
    /// Of one attempt.
    pub timeout: Duration,
    /// When it runs again.
    pub policy: Policy,
    /// What handlers of this queue share.
    pub shared: Arc<Shared>,
    /// Its place in a lane's tallies.
    pub index: usize,
    first_poll: FirstPoll,
}

impl Route {
    /// A route; see the fields.
    pub fn new(
        job: JobName,
        handler: Arc<dyn Handler>,
        threading: Threading,
        timeout: Duration,
        policy: Policy,
        shared: Arc<Shared>,
    ) -> Self {
        Self { job, handler, threading, timeout, policy, shared, index: 0, first_poll: FirstPoll::default() }
    }

    /// How long its first polls take.
    pub fn first_poll(&self) -> &FirstPoll {
        &self.first_poll
    }
}

/// The running average of a job's first polls, which decides whether it is polled in line (cheapest when it is done
/// at once) or becomes a task from the start (fairest when it computes).
///
/// It begins as a task: a job that nobody knows must not block a lane, and with it what is in hand behind it.
pub struct FirstPoll(AtomicU64);

/// Polls on average longer than this many nanoseconds become tasks.
const RUDE: u64 = 10_000;
/// A measurement counts as at most this, so that one preemption does not make a quick job look rude.
const MOST: u64 = 10 * RUDE;

impl Default for FirstPoll {
    fn default() -> Self {
        Self(AtomicU64::new(2 * RUDE))
    }
}

impl FirstPoll {
    /// Takes a measurement. A race between lanes loses one, which an average bears.
    pub fn observe(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(MOST).min(MOST);
        let average = self.0.load(Ordering::Relaxed);
        let next = if took > average { average + (took - average) / 16 } else { average - (average - took) / 16 };
        self.0.store(next, Ordering::Relaxed);
    }

    /// Whether it should become a task before it is polled.
    pub fn is_rude(&self) -> bool {
        self.0.load(Ordering::Relaxed) > RUDE
    }
}

/// The jobs that one queue can run.
pub struct Routes {
    default: usize,
    all: Vec<Arc<Route>>,
    by_name: HashMap<JobName, usize>,
}

impl Routes {
    /// `default` is the queue's own job, which must be among `routes`.
    pub fn new(default: &JobName, routes: Vec<Route>) -> Option<Self> {
        let mut all = Vec::with_capacity(routes.len());
        let mut by_name = HashMap::with_capacity(routes.len());
        for (index, mut route) in routes.into_iter().enumerate() {
            route.index = index;
            by_name.insert(route.job.clone(), index);
            all.push(Arc::new(route));
        }
        let default = *by_name.get(default)?;
        Some(Self { default, all, by_name })
    }

    /// What runs a delivery whose record names `job`, or names none.
    pub fn find(&self, job: Option<&JobName>) -> Option<&Arc<Route>> {
        let index = match job {
            None => self.default,
            Some(job) => *self.by_name.get(job)?,
        };
        self.all.get(index)
    }

    /// All of them, by [`Route::index`].
    pub fn all(&self) -> &[Arc<Route>] {
        &self.all
    }

    /// The queue's own job.
    pub fn default(&self) -> &Arc<Route> {
        &self.all[self.default]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_preemption_makes_no_job_rude_and_computing_does() {
        let poll = FirstPoll::default();
        assert!(poll.is_rude(), "an unknown job");
        for _ in 0..32 {
            poll.observe(Duration::from_micros(1));
        }
        for n in 0..10_000u64 {
            poll.observe(if n % 100 == 99 { Duration::from_millis(20) } else { Duration::from_micros(1) });
            assert!(!poll.is_rude(), "after {n}");
        }
        for _ in 0..64 {
            poll.observe(Duration::from_micros(20));
        }
        assert!(poll.is_rude());
        for _ in 0..64 {
            poll.observe(Duration::from_micros(1));
        }
        assert!(!poll.is_rude(), "a job that mends its ways is polled in line again");
    }
}
