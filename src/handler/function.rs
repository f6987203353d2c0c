//! Typed functions as handlers.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Context, Error, Handler, Output};

/// A function that can be registered as a job: `async fn(Args, Context) -> Result<T, Error>`, or without the
/// context. `Args` is anything that deserialises from the event's JSON; use `serde_json::Value` to take any JSON,
/// or [`Event`](crate::message::Event) from [`Context::event`] to read bytes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a job",
    label = "expected `async fn(Args) -> Result<T, windlass::Error>` or `async fn(Args, Context) -> Result<T, windlass::Error>`",
    note = "`Args` must implement `serde::Deserialize`, `T` must implement `serde::Serialize`, and the future must be `Send`",
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
    A: DeserializeOwned + Send + 'static,
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
    A: DeserializeOwned + Send + 'static,
    T: Serialize + 'static,
{
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Output, Error>> {
        let function = self.0.clone();
        Box::pin(async move {
            let args = arguments(&cx)?;
            let wants = cx.wants_result();
            let result = function(args, cx).await?;
            output(&result, wants)
        })
    }
}

impl<F, Fut, A, T> IntoHandler<ArgsOnly<(A, T)>> for F
where
    F: Fn(A) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, Error>> + Send + 'static,
    A: DeserializeOwned + Send + 'static,
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
    A: DeserializeOwned + Send + 'static,
    T: Serialize + 'static,
{
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Output, Error>> {
        let function = self.0.clone();
        Box::pin(async move {
            let args = arguments(&cx)?;
            let result = function(args).await?;
            output(&result, cx.wants_result())
        })
    }
}

/// A blocking function on its way to be registered.
pub struct Blocking<F>(pub(super) F);

impl<F, A, T> IntoHandler<(A, T)> for Blocking<F>
where
    F: Fn(A, Context) -> Result<T, Error> + Send + Sync + 'static,
    A: DeserializeOwned + Send + 'static,
    T: Serialize + 'static,
{
    fn into_handler(self) -> impl Handler {
        Function::<_, (A, T)>(Arc::new(self.0), PhantomData)
    }
}

impl<F, A, T> Handler for Function<F, (A, T)>
where
    F: Fn(A, Context) -> Result<T, Error> + Send + Sync + 'static,
    A: DeserializeOwned + Send + 'static,
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

fn arguments<A: DeserializeOwned>(cx: &Context) -> Result<A, Error> {
    let data = &cx.event().data;
    let bytes: &[u8] = if data.is_empty() { b"null" } else { data };
    serde_json::from_slice(bytes)
        .map_err(|error| Error::malformed(format_args!("arguments do not fit job {}: {error}", cx.job())))
}

fn output<T: Serialize>(result: &T, wanted: bool) -> Result<Output, Error> {
    if !wanted {
        return Ok(None);
    }
    serde_json::to_value(result)
        .map(Some)
        .map_err(|error| Error::permanent(format_args!("the result cannot be written as JSON: {error}")))
}
