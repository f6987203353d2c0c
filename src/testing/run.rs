//! What handlers did.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use crate::handler::{Context, Error, Handler, Output};
use crate::time::{Stopped, Timestamp};

/// One attempt, as a test sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The queue.
    pub queue: String,
    /// The job.
    pub job: String,
    /// The event's id.
    pub event_id: String,
    /// Which attempt it was; the first is 1.
    pub attempt: u32,
    /// How long after the worker's start it began, by the worker's own clock.
    pub after: Duration,
    /// What the handler returned, as JSON, or its error's message. `None`: it has not returned (a panic, a timeout).
    pub result: Option<Result<serde_json::Value, String>>,
}

/// All attempts. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<(Timestamp, Run)>>>);

impl Log {
    /// A handler whose attempts are written down here.
    pub(super) fn around(&self, handler: Arc<dyn Handler>, clock: Stopped) -> Arc<dyn Handler> {
        Arc::new(Logged { handler, log: self.clone(), clock })
    }

    /// In the order in which they began, counted from `began`.
    pub(super) fn all(&self, began: Timestamp) -> Vec<Run> {
        let runs = self.0.lock();
        runs.iter().map(|(at, run)| Run { after: began.until(*at), ..run.clone() }).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// The last one, for a message.
    pub(super) fn last(&self) -> String {
        self.0.lock().last().map_or_else(|| "none".to_owned(), |(_, run)| format!("the last is {run:?}"))
    }

    fn begin(&self, cx: &Context, at: Timestamp) -> usize {
        let mut runs = self.0.lock();
        let run = Run {
            queue: cx.queue().to_string(),
            job: cx.job().to_string(),
            event_id: cx.event_id().to_owned(),
            attempt: cx.attempt(),
            after: Duration::ZERO,
            result: None,
        };
        runs.push((at, run));
        runs.len() - 1
    }

    fn end(&self, index: usize, result: &Result<Output, Error>) {
        let told = match result {
            Ok(output) => Ok(output.clone().unwrap_or_default()),
            Err(error) => Err(error.message().to_owned()),
        };
        self.0.lock()[index].1.result = Some(told);
    }
}

struct Logged {
    handler: Arc<dyn Handler>,
    log: Log,
    clock: Stopped,
}

impl Handler for Logged {
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Output, Error>> {
        cx.want_result();
        let index = self.log.begin(&cx, self.clock.now());
        let log = self.log.clone();
        self.handler.call(cx).inspect(move |result| log.end(index, result)).boxed()
    }
}
