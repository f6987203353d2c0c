//! Jobs by name.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Context, Error, Handler, IntoHandler, Output, builtin, function};
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

    /// Registers something that implements [`Handler`] itself. It does not run for JSON content that is not JSON.
    ///
    /// # Panics
    /// As [`Registry::job`].
    pub fn handler(self, name: &str, handler: Arc<dyn Handler>) -> Self {
        self.insert(name, Arc::new(Checked(handler)), Threading::Async)
    }

    /// Registers a job, in place of one of that name where there is one: what a configuration says comes before what
    /// is compiled in.
    pub(crate) fn replace(mut self, name: &JobName, handler: Arc<dyn Handler>) -> Self {
        let entry = Entry { handler, threading: Threading::Async, timeout: None, retry: None };
        self.jobs.insert(name.clone(), entry);
        self
    }

    /// Every job, built-in ones included, within what `wrap` makes of its handler.
    pub(crate) fn wrapped(&self, wrap: impl Fn(Arc<dyn Handler>) -> Arc<dyn Handler>) -> Self {
        let jobs = self.names().into_iter().filter_map(|name| {
            let entry = self.get(&name)?;
            Some((JobName::new(&name).ok()?, Entry { handler: wrap(entry.handler), ..entry }))
        });
        Self { jobs: jobs.collect(), state: self.state.clone() }
    }

    /// The timeout of a registered job.
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

/// Checks what a typed function finds out by parsing.
struct Checked(Arc<dyn Handler>);

impl Handler for Checked {
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Output, Error>> {
        match cx.event().check() {
            Ok(()) => self.0.call(cx),
            Err(malformed) => Box::pin(std::future::ready(Err(Error::malformed(malformed)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::{Verdict, fixture};
    use crate::message::Event;

    #[derive(serde::Deserialize)]
    struct Report {
        report_id: u64,
    }

    async fn doubled(report: Report, cx: Context) -> Result<u64, Error> {
        Ok(report.report_id * 2 * u64::from(cx.attempt()))
    }

    async fn length(event: Event) -> Result<usize, Error> {
        Ok(event.data.len())
    }

    async fn nothing((): ()) -> Result<(), Error> {
        Ok(())
    }

    fn blocking(report: Report, _: Context) -> Result<u64, Error> {
        let number: u64 = "x".parse().or_else(|error| if report.report_id == 7 { Err(error) } else { Ok(1) })?;
        Ok(number)
    }

    struct Raw;

    impl Handler for Raw {
        fn call(&self, cx: Context) -> BoxFuture<'static, Result<Output, Error>> {
            Box::pin(async move { Ok(Some(cx.event().data.len().into())) })
        }
    }

    fn registry() -> Registry {
        Registry::new()
            .job("doubled", doubled)
            .job("length", length)
            .job("nothing", nothing)
            .blocking("blocking", blocking)
            .blocking("short", |number: u64| -> Result<u64, Error> { Ok(number + 1) })
            .handler("raw", Arc::new(Raw))
    }

    async fn run(job: &str, content_type: Option<&str>, body: &[u8]) -> Result<Output, Error> {
        let headers: Vec<_> = content_type.into_iter().map(|content_type| ("content-type", content_type)).collect();
        let cx = fixture::context(fixture::event(&headers, body), 3, true).await;
        registry().get(job).expect("registered").handler.call(cx).await
    }

    #[tokio::test]
    async fn functions_get_what_they_ask_for() {
        assert_eq!(run("doubled", None, b"{\"report_id\":7,\"more\":[]}").await.expect("done"), Some(42.into()));
        assert_eq!(run("length", Some("image/png"), b"\xff\xff").await.expect("done"), Some(2.into()));
        assert_eq!(run("nothing", None, b"").await.expect("done"), Some(serde_json::Value::Null));
        assert_eq!(run("raw", None, b"hello").await.expect("done"), Some(5.into()));
        assert_eq!(run("blocking", None, b"{\"report_id\":1}").await.expect("done"), Some(1.into()));
        assert_eq!(run("short", None, b"7").await.expect("done"), Some(8.into()));
        let error = run("blocking", None, b"{\"report_id\":7}").await.expect_err("no number");
        assert_eq!((error.verdict(), error.kind()), (Verdict::Retry, "num::ParseIntError"));
    }

    #[tokio::test]
    async fn what_does_not_fit_is_malformed_for_every_kind_of_job() {
        for (job, content_type, body) in [
            ("doubled", None, &b"{\"report_id\":\"x\"}"[..]),
            ("doubled", None, b"hello"),
            ("doubled", None, b""),
            ("doubled", Some("application/json"), b"{\"report_id\":7} x"),
            ("nothing", None, b"1"),
            ("length", Some("application/json"), b"{"),
            ("raw", Some("application/json"), b"{"),
            ("log", Some("application/json"), b"{"),
            ("blocking", None, b"[]"),
        ] {
            let error = run(job, content_type, body).await.expect_err(job);
            assert_eq!(error.verdict(), Verdict::Malformed, "{job}: {}", error.message());
        }
        let error = run("doubled", None, b"{}").await.expect_err("a field is missing");
        assert_eq!(error.message(), "arguments do not fit job job: missing field `report_id` at line 1 column 2");
        let error = run("doubled", None, b"").await.expect_err("nothing is there");
        assert!(error.message().starts_with("arguments do not fit job job: "), "{}", error.message());
        for (job, content_type) in [("doubled", None), ("length", Some("application/json")), ("log", Some("text/json"))]
        {
            let error = run(job, content_type, b"{\"report_id\":\n7,}").await.expect_err("no JSON");
            let expected = "the body is not JSON, which job job takes: key must be a string at line 2 column 3";
            assert_eq!(error.message(), expected, "{job}");
        }
    }

    #[test]
    fn names_are_known_built_in_ones_included() {
        assert_eq!(
            registry().names(),
            ["blocking", "doubled", "fail", "length", "log", "nothing", "raw", "short", "sleep"]
        );
        assert_eq!(registry().get("blocking").map(|entry| entry.threading), Some(Threading::Blocking));
        assert!(registry().get("absent").is_none());
        let own = Registry::new().job("log", nothing).timeout("log", Duration::from_secs(1));
        assert_eq!(own.get("log").and_then(|entry| entry.timeout), Some(Duration::from_secs(1)));
    }

    #[test]
    #[should_panic(expected = "registered twice")]
    fn a_name_is_taken_once() {
        let _ = Registry::new().job("a", nothing).job("a", nothing);
    }
}
