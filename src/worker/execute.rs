//! One attempt: polled in line first, and a task only if it pends.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Once;
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::outcome::Outcome;
use super::pool::Queue;
use super::route::Route;
use crate::broker::Lost;
use crate::handler::{self, Context, Output, Threading};
use crate::message::attribute::TRACEPARENT;
use crate::telemetry::events;

type Answer = Result<Output, handler::Error>;

/// How long a handler that watches its cancellation gets to end by itself.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// A handler's future; panics become outcomes, and those of its destructors nothing: what is cancelled still has its
/// slot to give back and its delivery to settle. `None` only while it is dropped.
pub struct Attempt(Option<BoxFuture<'static, Answer>>);

impl Attempt {
    /// Calls the handler; nothing of it runs before the first poll unless the handler wants it so.
    pub fn new(route: &Route, cx: Context) -> Result<Self, Outcome> {
        catching(|| route.handler.call(cx)).map(|future| Self(Some(future)))
    }

    /// Polls once without a waker: `Err` is the outcome of an attempt that is done, `Ok` one that has to be driven.
    pub fn poll_once(mut self) -> Result<Self, Outcome> {
        let mut cx = std::task::Context::from_waker(Waker::noop());
        match Pin::new(&mut self).poll(&mut cx) {
            Poll::Ready(outcome) => Err(outcome),
            Poll::Pending => Ok(self),
        }
    }
}

impl Future for Attempt {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Outcome> {
        let future = self.0.as_mut().expect("it is there until it is dropped");
        match catching(|| future.as_mut().poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(_))) => Poll::Ready(Outcome::Done),
            Ok(Poll::Ready(Err(error))) => Poll::Ready(Outcome::from_error(error)),
            Err(panicked) => Poll::Ready(panicked),
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let future = self.0.take();
        // Its outcome is known already; a panic adds nothing to it.
        let _ = catching(|| drop(future));
    }
}

/// Drives an attempt that pended, or one that is to be a task from the start, to its outcome. `lost`: asked for what tells
/// that its lease is lost, once it has pended.
pub async fn drive(
    queue: &Queue,
    route: &Route,
    attempt: Attempt,
    cx: &Context,
    start: Instant,
    lost: impl Fn() -> Lost,
) -> Outcome {
    match route.threading {
        Threading::Async => drive_async(queue, route, attempt, cx, start, lost).await,
        // Apart, since it is the larger one: the other is what ten thousand waiting jobs hold.
        Threading::Blocking => {
            let _entry = queue.running.enter(cx.clone(), start);
            Box::pin(drive_blocking(queue, route, attempt, cx, lost())).await
        }
    }
}

async fn drive_async(
    queue: &Queue,
    route: &Route,
    mut attempt: Attempt,
    cx: &Context,
    start: Instant,
    lost: impl Fn() -> Lost,
) -> Outcome {
    // Nothing of what follows begins before the attempt has pended: one that ends at once is known to nobody else.
    let interrupted = async {
        let _entry = queue.running.enter(cx.clone(), start);
        queue.pool.shutdown.work.cancelled().await;
    };
    tokio::pin!(interrupted);
    let mut told = false;
    let ended = loop {
        // A finished handler first: what it did counts, whatever else happened in the same instant.
        tokio::select! {
            biased;
            outcome = &mut attempt => return outcome,
            () = &mut interrupted => break Outcome::Interrupted,
            () = async { lost().cancelled().await }, if !told => {
                say_lost(cx);
                // Under key order somebody else may run the key's next job. Otherwise it is told and runs on: a late
                // success may still end the job.
                if queue.spec.ordered {
                    break Outcome::Interrupted;
                }
                told = true;
                cx.cancel();
            }
            () = until(cx.deadline()) => break Outcome::TimedOut { limit: route.timeout },
        }
    };
    if !cx.cancel() {
        return ended;
    }
    // It watches: let it clean up. If it succeeds after all, the job is done.
    match tokio::time::timeout(CANCEL_GRACE, attempt).await {
        Ok(Outcome::Done) => Outcome::Done,
        _ => ended,
    }
}

fn say_lost(cx: &Context) {
    let trace_id = cx.event().headers.get_str_ignore_case(TRACEPARENT).and_then(events::trace_id);
    let run =
        events::Run { queue: cx.queue(), job: cx.job(), event_id: cx.event_id(), attempt: cx.attempt(), trace_id };
    events::LeaseLost { run }.emit();
}

/// The future blocks at its first poll, so it gets a thread. Nothing can stop it: once its time is over it is told,
/// and keeps its slot until it returns.
async fn drive_blocking(queue: &Queue, route: &Route, attempt: Attempt, cx: &Context, lost: Lost) -> Outcome {
    let mut thread = tokio::task::spawn_blocking(move || match attempt.poll_once() {
        Err(outcome) => outcome,
        Ok(_) => Outcome::Panicked {
            message: "a blocking handler's future pended; it must be done when it returns".to_owned(),
            place: "windlass".to_owned(),
        },
    });
    let (mut timed_out, mut interrupted, mut told) = (false, false, false);
    loop {
        let deadline = if timed_out { None } else { cx.deadline() };
        tokio::select! {
            biased;
            joined = &mut thread => {
                let outcome = joined.unwrap_or(Outcome::Interrupted);
                return match outcome {
                    Outcome::Done => Outcome::Done,
                    _ if timed_out => Outcome::TimedOut { limit: route.timeout },
                    _ if interrupted => Outcome::Interrupted,
                    outcome => outcome,
                };
            }
            () = queue.pool.shutdown.work.cancelled(), if !interrupted => {
                interrupted = true;
                cx.cancel();
            }
            () = lost.cancelled(), if !told => {
                say_lost(cx);
                told = true;
                interrupted |= queue.spec.ordered;
                cx.cancel();
            }
            // The process leaves: the thread dies with it, and the job goes to others.
            () = queue.pool.shutdown.abandoned.cancelled() => return Outcome::Interrupted,
            () = until(deadline) => {
                timed_out = true;
                cx.cancel();
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

thread_local! {
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
    static CATCHING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs `f`; a panic becomes an outcome with its message and place, and is not printed.
fn catching<R>(f: impl FnOnce() -> R) -> Result<R, Outcome> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if CATCHING.get() {
                let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
                PLACE.with_borrow_mut(|slot| *slot = place);
            } else {
                previous(info);
            }
        }));
    });
    let outer = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(outer);
    result.map_err(|payload| Outcome::Panicked {
        message: message(&*payload),
        place: PLACE.with_borrow_mut(Option::take).unwrap_or_else(|| "an unknown place".to_owned()),
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}
