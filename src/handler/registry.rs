//! Jobs by name.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::{Handler, IntoHandler, builtin, function};
use crate::message::JobName;
use crate::worker::retry;

/// The jobs that a binary can run, and the state that they share.
#[derive(Clone, Default)]
pub struct Registry {
    jobs: BTreeMap<JobName, Entry>,
    state: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

/// One registered job.
#[derive(Clone)]
pub struct Entry {
    /// What runs it.
    pub handler: Arc<dyn Handler>,
    /// Where it runs.
    pub threading: Threading,
    /// The timeout given in code; `[jobs.X]` comes before it, the queue's after.
    pub timeout: Option<Duration>,
    /// Retry settings given in code, likewise.
    pub retry: Option<retry::Partial>,
}

/// Where a job's attempts run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threading {
    /// On the worker's runtime; must not block for long.
    Async,
    /// On a thread of the blocking pool: its future blocks at its first poll.
    Blocking,
}

impl Registry {
    /// A registry with no jobs but the built-in `log`, `sleep` and `fail`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers an async function `async fn name(args: Args, cx: Context) -> Result<T, Error>`; `Args` is
    /// anything that can be deserialised from the event's JSON, or [`Event`](crate::message::Event) itself.
    ///
    /// # Panics
    /// Where the name is no job name, or is taken.
    pub fn job<A, H: IntoHandler<A>>(self, name: &str, handler: H) -> Self {
        self.insert(name, Arc::new(handler.into_handler()), Threading::Async)
    }

    /// Registers a blocking function `fn name(args: Args, cx: Context) -> Result<T, Error>`. It runs on a thread of
    /// its own pool, within the same slots; when it times out it keeps its slot until it returns.
    ///
    /// # Panics
    /// As [`Registry::job`].
    pub fn blocking<A, F>(self, name: &str, function: F) -> Self
    where
        function::Blocking<F>: IntoHandler<A>,
    {
        self.insert(name, Arc::new(function::Blocking(function).into_handler()), Threading::Blocking)
    }

    /// Registers something that implements [`Handler`] itself.
    ///
    /// # Panics
    /// As [`Registry::job`].
    pub fn handler(self, name: &str, handler: Arc<dyn Handler>) -> Self {
        self.insert(name, handler, Threading::Async)
    }

    /// The timeout of the job registered last.
    pub fn timeout(mut self, name: &str, timeout: Duration) -> Self {
        self.entry_mut(name).timeout = Some(timeout);
        self
    }

    /// Retry settings of a registered job.
    pub fn retry(mut self, name: &str, retry: retry::Partial) -> Self {
        self.entry_mut(name).retry = Some(retry);
        self
    }

    /// Shares `state` with every handler: [`Context::state`](super::Context::state).
    pub fn state<T: Send + Sync + 'static>(mut self, state: T) -> Self {
        self.state.insert(TypeId::of::<T>(), Arc::new(state));
        self
    }

    /// What runs `job`, built-in jobs included.
    pub fn get(&self, job: &str) -> Option<Entry> {
        self.jobs.get(job).cloned().or_else(|| builtin::get(job))
    }

    /// Names of all jobs, built-in ones included.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.jobs.keys().map(ToString::to_string).collect();
        names.extend(builtin::NAMES.iter().map(ToString::to_string));
        names.sort();
        names.dedup();
        names
    }

    pub(crate) fn shared_state(&self) -> Arc<HashMap<TypeId, Arc<dyn Any + Send + Sync>>> {
        Arc::new(self.state.clone())
    }

    fn entry_mut(&mut self, name: &str) -> &mut Entry {
        self.jobs.get_mut(name).unwrap_or_else(|| panic!("no job {name:?} was registered before its settings"))
    }

    fn insert(mut self, name: &str, handler: Arc<dyn Handler>, threading: Threading) -> Self {
        let name = JobName::new(name).unwrap_or_else(|error| panic!("{error}"));
        let entry = Entry { handler, threading, timeout: None, retry: None };
        assert!(self.jobs.insert(name.clone(), entry).is_none(), "job {name:?} is registered twice");
        self
    }
}
