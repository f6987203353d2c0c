//! Typed functions as handlers.

use std::future::{Future, ready};
use std::marker::PhantomData;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::{Context, Error, Handler, Output};
use crate::message::{Event, Malformed};

/// A function that can be registered as a job: `async fn(Args, Context) -> Result<T, Error>`, or without the
/// context; likewise without `async` for [`Registry::blocking`](super::Registry::blocking).
///
/// - `Args` is anything that deserialises from the event's JSON (`serde_json::Value` takes any), or the [`Event`]
///   itself, to read bytes. An event without a body is `null`: `()` and `Option<..>` take it.
/// - `T` is anything that serialises: what `windlass try` prints. Nothing else reads it.
///
/// ```
/// use windlass::{Context, Error, Registry};
/// use windlass::message::Event;
///
/// #[derive(serde::Deserialize)]
/// struct Report { report_id: u64 }
///
/// async fn invoice(report: Report, cx: Context) -> Result<u64, Error> {
///     tracing::info!(report.report_id, attempt = cx.attempt(), "invoicing");
///     Ok(report.report_id)
/// }
///
/// async fn archive(event: Event) -> Result<(), Error> {
///     std::fs::write(format!("/archive/{}", event.id), &event.data)?;
///     Ok(())
/// }
///
/// fn render(report: Report, cx: Context) -> Result<(), Error> {
///     while !cx.is_cancelled() && report.report_id == 0 {}
///     Ok(())
/// }
///
/// let registry = Registry::new().job("invoice", invoice).job("archive", archive).blocking("render", render);
/// ```
///
/// What cannot be a job does not compile, and the compiler says what was expected:
///
/// ```compile_fail
/// struct Report; // cannot be deserialised
/// async fn invoice(report: Report) -> Result<(), windlass::Error> { Ok(()) }
/// windlass::Registry::new().job("invoice", invoice);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a job",
    label = "expected `async fn(Args) -> Result<T, windlass::Error>` or `async fn(Args, Context) -> Result<T, windlass::Error>`",
    note = "`Args` must implement `serde::Deserialize` (or be `windlass::message::Event`), `T` must implement `serde::Serialize`, and the future must be `Send`",
    note = "a function that blocks is registered with `.blocking(name, function)`"
)]
pub trait IntoHandler<A>: Send + Sync + 'static {
    /// The handler.
    fn into_handler(self) -> impl Handler;
}

struct Function<F, A>(Arc<F>, PhantomData<fn(A)>);

/// Marks the signature `(Args, Context)`.
pub struct WithContext<A>(PhantomData<fn(A)>);
/// Marks the signature `(Args)`.
pub struct ArgsOnly<A>(PhantomData<fn(A)>);

impl<F, Fut, A, T> IntoHandler<WithContext<(A, T)>> for F
where
    F: Fn(A, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, Error>> + Send + 'static,
    A: Arguments,
    T: Serialize + 'static,
{
    fn into_handler(self) -> impl Handler {
        Function::<_, WithContext<(A, T)>>(Arc::new(self), PhantomData)
    }
}

impl<F, Fut, A, T> Handler for Function<F, WithContext<(A, T)>>
where
    F: Fn(A, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, Error>> + Send + 'static,
    A: Arguments,
    T: Serialize + 'static,
{
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Output, Error>> {
        let wants = cx.wants_result();
        let args = match arguments(&cx) {
            Ok(args) => args,
            Err(error) => return Box::pin(ready(Err(error))),
        };
        let running = self.0(args, cx);
        Box::pin(async move { output(&running.await?, wants) })
    }
}

impl<F, Fut, A, T> IntoHandler<ArgsOnly<(A, T)>> for F
where
    F: Fn(A) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, Error>> + Send + 'static,
    A: Arguments,
    T: Serialize + 'static,
{
    fn into_handler(self) -> impl Handler {
        Function::<_, ArgsOnly<(A, T)>>(Arc::new(self), PhantomData)
    }
}

impl<F, Fut, A, T> Handler for Function<F, ArgsOnly<(A, T)>>
where
    F: Fn(A) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, Error>> + Send + 'static,
    A: Arguments,
    T: Serialize + 'static,
{
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Output, Error>> {
        let wants = cx.wants_result();
        let args = match arguments(&cx) {
            Ok(args) => args,
            Err(error) => return Box::pin(ready(Err(error))),
        };
        let running = self.0(args);
        Box::pin(async move { output(&running.await?, wants) })
    }
}

/// A blocking function on its way to be registered.
pub struct Blocking<F>(pub(super) F);

impl<F, A, T> IntoHandler<(A, T)> for Blocking<F>
where
    F: Fn(A, Context) -> Result<T, Error> + Send + Sync + 'static,
    A: Arguments,
    T: Serialize + 'static,
{
    fn into_handler(self) -> impl Handler {
        Function::<_, (A, T)>(Arc::new(self.0), PhantomData)
    }
}

impl<F, A, T> Handler for Function<F, (A, T)>
where
    F: Fn(A, Context) -> Result<T, Error> + Send + Sync + 'static,
    A: Arguments,
    T: Serialize + 'static,
{
    /// The future blocks at its first poll; the worker polls it on a thread of the blocking pool.
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Output, Error>> {
        let function = self.0.clone();
        Box::pin(async move {
            let args = arguments(&cx)?;
            let wants = cx.wants_result();
            let result = function(args, cx)?;
            output(&result, wants)
        })
    }
}

impl<F, A, T> IntoHandler<ArgsOnly<(A, T)>> for Blocking<F>
where
    F: Fn(A) -> Result<T, Error> + Send + Sync + 'static,
    A: Arguments,
    T: Serialize + 'static,
{
    fn into_handler(self) -> impl Handler {
        let function = self.0;
        Function::<_, (A, T)>(Arc::new(move |args, _: Context| function(args)), PhantomData)
    }
}

/// What a job takes: anything that deserialises from JSON, or the [`Event`].
pub trait Arguments: Send + Sized + 'static {
    /// Reads the event's data. This is where JSON content that is not JSON is found out, with the one parse that a
    /// typed job needs anyway.
    fn read(event: &Event) -> Result<Self, Malformed>;
}

impl<A: DeserializeOwned + Send + 'static> Arguments for A {
    fn read(event: &Event) -> Result<Self, Malformed> {
        let bytes: &[u8] = if event.data.is_empty() { b"null" } else { &event.data };
        serde_json::from_slice(bytes).map_err(|error| Malformed(error.to_string()))
    }
}

impl Arguments for Event {
    fn read(event: &Event) -> Result<Self, Malformed> {
        event.check()?;
        Ok(event.clone())
    }
}

fn arguments<A: Arguments>(cx: &Context) -> Result<A, Error> {
    A::read(cx.event()).map_err(|malformed| {
        let (data, job) = (&cx.event().data, cx.job());
        // Bytes that are no JSON at all are another fault than JSON of another shape, and another person's.
        match serde_json::from_slice::<IgnoredAny>(data) {
            Err(error) if !data.is_empty() => {
                Error::malformed(format_args!("the body is not JSON, which job {job} takes: {error}"))
            }
            _ => Error::malformed(format_args!("arguments do not fit job {job}: {malformed}")),
        }
    })
}

fn output<T: Serialize>(result: &T, wanted: bool) -> Result<Output, Error> {
    if !wanted {
        return Ok(None);
    }
    serde_json::to_value(result)
        .map(Some)
        .map_err(|error| Error::permanent(format_args!("the result cannot be written as JSON: {error}")))
}
