//! What is running, for whoever asks: only what did not end at its first poll.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::handle::Running;
use crate::handler::Context;

/// The jobs of one queue that are running.
#[derive(Default)]
pub struct Registry(Mutex<State>);

#[derive(Default)]
struct State {
    next: u64,
    jobs: HashMap<u64, (Context, Instant), foldhash::fast::RandomState>,
}

/// Takes its job out of the registry when dropped.
pub struct Entry<'a> {
    registry: &'a Registry,
    id: u64,
}

impl Registry {
    /// Enters a job.
    pub fn enter(&self, cx: Context, since: Instant) -> Entry<'_> {
        let mut state = self.0.lock();
        state.next += 1;
        let id = state.next;
        state.jobs.insert(id, (cx, since));
        Entry { registry: self, id }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.lock().jobs.len()
    }

    /// All of them, unordered.
    pub fn list(&self) -> Vec<Running> {
        let now = Instant::now();
        let state = self.0.lock();
        let running = |(cx, since): &(Context, Instant)| Running {
            queue: cx.queue().to_string(),
            job: cx.job().to_string(),
            event_id: cx.event_id().to_owned(),
            attempt: cx.attempt(),
            for_s: now.saturating_duration_since(*since).as_secs_f64(),
        };
        state.jobs.values().map(running).collect()
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.registry.0.lock().jobs.remove(&self.id);
    }
}
