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
    /// What its runs share.
    pub shared: Arc<Shared>,
    /// Its place in a lane's tallies.
    pub index: usize,
    first_poll: FirstPoll,
}

impl Route {
    /// A route; see the fields.
    pub fn new(
        handler: Arc<dyn Handler>,
        threading: Threading,
        timeout: Duration,
        policy: Policy,
        shared: Arc<Shared>,
    ) -> Self {
        let job = shared.job.clone();
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
    /// Takes a measurement.
    pub fn observe(&self, took: Duration) {
        self.observe_mean(capped(took), 1);
    }

    /// Takes so many measurements by their mean. A race between lanes loses one, which an average bears.
    fn observe_mean(&self, mean: u64, count: u64) {
        let average = self.0.load(Ordering::Relaxed);
        let share = |distance: u64| distance * count / (count + 15);
        let next = if mean > average { average + share(mean - average) } else { average - share(average - mean) };
        self.0.store(next, Ordering::Relaxed);
    }

    /// Whether it should become a task before it is polled.
    pub fn is_rude(&self) -> bool {
        self.0.load(Ordering::Relaxed) > RUDE
    }
}

fn capped(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(MOST).min(MOST)
}

/// First polls that one lane has seen and not told yet: lanes that write the same average at each job slow each other
/// down. What is rude is told at once.
#[derive(Default)]
pub struct Polls {
    nanos: u64,
    count: u64,
}

impl Polls {
    /// Takes a measurement.
    pub fn observe(&mut self, of: &FirstPoll, took: Duration) {
        let took = capped(took);
        self.nanos += took;
        self.count += 1;
        if took > RUDE {
            self.flush(of);
        }
    }

    /// Tells what was seen.
    pub fn flush(&mut self, of: &FirstPoll) {
        if let Some(mean) = self.nanos.checked_div(self.count) {
            of.observe_mean(mean, self.count);
        }
        *self = Self::default();
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
    fn what_a_lane_saw_counts_once_it_is_told_and_rudeness_at_once() {
        let (poll, mut lane) = (FirstPoll::default(), Polls::default());
        for _ in 0..100 {
            lane.observe(&poll, Duration::from_micros(1));
        }
        assert!(poll.is_rude(), "nothing was told yet");
        lane.flush(&poll);
        let told = poll.0.load(Ordering::Relaxed);
        lane.flush(&poll);
        assert_eq!(poll.0.load(Ordering::Relaxed), told, "nothing is told twice");
        assert!(!poll.is_rude());
        lane.observe(&poll, Duration::from_millis(1));
        lane.observe(&poll, Duration::from_millis(1));
        assert!(poll.is_rude(), "two long ones are enough");
    }

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
