//! `try JOB [DATA | @FILE | -]`: one attempt here, without a broker.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Done;
use super::fault::Fault;
use super::input::Input;
use super::session::{Session, did_you_mean, runtime};
use crate::broker::{self, Publication, Published, Publisher};
use crate::client::Client;
use crate::config::Config;
use crate::handler::{Context, Entry, Error, Output, Registry, Shared, Threading, Verdict, http};
use crate::message::record::Record;
use crate::message::{self, Attempt, Binding, JobName, Origin, Place, QueueName};
use crate::time::{Clock, format_duration};

/// Flags of `try`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass try invoice '{\"report_id\":17}'
  windlass try invoice @report.json | jq .price
  windlass dlq show invoice 7Fq2 --raw | windlass try invoice -

The result is written to stdout as JSON. Publishing and enqueueing by the job is refused:
there is no broker.")]
pub struct Arguments {
    /// The job: compiled in, or under [jobs] of the configuration
    job: JobName,
    /// Its argument, @FILE, or - for stdin; without it stdin is read, unless it is a terminal
    #[arg(value_name = "DATA|@FILE|-")]
    data: Option<String>,
    /// Without an argument
    #[arg(long, conflicts_with = "data")]
    empty: bool,
}

/// Tries.
pub fn run(session: Session, registry: Registry, arguments: Arguments) -> Done {
    let config = session.load()?;
    let job = &arguments.job;
    let entry = find(&registry, &config, job)?;
    let data = if arguments.empty { Vec::new() } else { Input::of(arguments.data.as_deref())?.read()? };
    let queue = config.queues.iter().find(|(_, queue)| queue.job == *job).map(|(name, _)| name.clone());
    let queue = match queue {
        Some(queue) => queue,
        None => QueueName::new("try").map_err(Fault::failed)?,
    };
    let timeout = config.timeout(&queue, job, Some(&entry));
    let attempts = config.policy(&queue, job, Some(&entry)).attempts.get();
    let result = runtime()?.block_on(async {
        let client = Client::new(Arc::new(NoBroker), config.namespace.clone());
        let draft = client.enqueue_bytes(queue.as_str(), Some(job.as_str()), data);
        let event = decode(draft.publication()?)?;
        let shared = Arc::new(Shared {
            queue: queue.clone(),
            job: job.clone(),
            attempts,
            client,
            state: registry.shared_state(),
        });
        let deadline = tokio::time::Instant::now() + timeout;
        let context = Context::new(event, Attempt::FIRST, Some(deadline), true, shared);
        attempt(entry, context, timeout).await
    });
    let output = result.map_err(|fault| Fault::failed(format!("{job}: {fault}")))?;
    let mut out = session.output();
    let value = output.unwrap_or_default();
    if session.json() {
        out.json(&value)?;
    } else {
        let text = serde_json::to_string_pretty(&value);
        out.line(text.map_err(|error| Fault::failed(format!("writing the result: {error}")))?)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn find(registry: &Registry, config: &Config, job: &JobName) -> Result<Entry, Fault> {
    if let Some(http) = config.jobs.get(job).and_then(|job| job.http.as_ref()) {
        let handler = http::handler(http).map_err(|error| Fault::new(super::fault::CONFIG, error))?;
        return Ok(Entry { handler, threading: Threading::Async, timeout: None, retry: None });
    }
    registry.get(job.as_str()).ok_or_else(|| {
        let names = registry.names();
        let over_http = config.jobs.iter().filter(|(_, job)| job.http.is_some()).map(|(name, _)| name.as_str());
        let known: Vec<&str> = names.iter().map(String::as_str).chain(over_http).collect();
        let near = did_you_mean(job.as_str(), known.iter().copied());
        Fault::failed(format!(
            "no job {job} is compiled into this binary or under [jobs]{near} (known: {})",
            known.join(", ")
        ))
    })
}

fn decode(publication: Publication) -> Result<message::Event, Failed> {
    let place =
        Place { position: "try".to_owned(), source: "windlass://try".to_owned(), topic: None, binding: Binding::Dash };
    let origin = Origin { place: &place, seq: 1, at: Clock::System.now() };
    message::decode(&publication.message, &origin, Some(&Record::default()))
        .map_err(|error| Failed(format!("malformed: {error}")))
}

/// Why the attempt did not succeed: a fragment for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

impl From<broker::Error> for Failed {
    fn from(error: broker::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        // What the error is called, such as `http 422`, unless its text says so itself.
        let (kind, message) = (error.kind(), error.message());
        let code = kind.strip_prefix("http ").unwrap_or(kind);
        let text = if kind.is_empty() || message.starts_with(code) {
            message.to_owned()
        } else {
            format!("{kind}: {message}")
        };
        Self(match error.verdict() {
            Verdict::Retry => format!("{text} (a worker would try again)"),
            Verdict::RetryAfter(delay) => {
                format!("{text} (a worker would try again after {})", format_duration(delay))
            }
            Verdict::Permanent => format!("{text} (permanent: a dead letter)"),
            Verdict::Malformed => format!("{text} (malformed: a dead letter)"),
            Verdict::Snooze(delay) => format!("not yet (a worker would try again after {})", format_duration(delay)),
        })
    }
}

async fn attempt(entry: Entry, context: Context, timeout: Duration) -> Result<Output, Failed> {
    let cancellation = context.cancellation();
    let work = async move { std::panic::AssertUnwindSafe(entry.handler.call(context)).catch_unwind().await };
    let done = match entry.threading {
        Threading::Async => tokio::time::timeout(timeout, work).await,
        Threading::Blocking => {
            let handle = tokio::runtime::Handle::current();
            let thread = tokio::task::spawn_blocking(move || handle.block_on(work));
            let thread = thread.map(|joined| joined.unwrap_or_else(|error| Err(Box::new(error.to_string()))));
            tokio::time::timeout(timeout, thread).await
        }
    };
    match done {
        Ok(Ok(result)) => Ok(result?),
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(Failed(format!("panicked: {}", text.as_deref().unwrap_or("without a message"))))
        }
        Err(_) => {
            cancellation.cancel();
            Err(Failed(format!("timed out after {}", format_duration(timeout))))
        }
    }
}

/// What a job publishes to when it is tried.
struct NoBroker;

impl Publisher for NoBroker {
    fn binding(&self) -> Binding {
        Binding::Dash
    }

    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Published, broker::Error>>> {
        let refused = || broker::Error::Rejected("`windlass try` has no broker to publish to".to_owned());
        async move { batch.iter().map(|_| Err(refused())).collect() }.boxed()
    }
}
