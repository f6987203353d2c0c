//! What runs a job: compiled functions, blocking functions, HTTP endpoints, and the built-in jobs.
//!
//! Reading order: [`Handler`] is what the worker calls; [`Registry`] names handlers; [`Context`] is what a
//! handler is given; [`Error`] is what it may answer.

mod builtin;
mod context;
mod error;
#[cfg(test)]
mod fixture;
mod function;
pub mod http;
mod registry;

use futures_util::future::BoxFuture;

pub use context::{Context, Shared};
pub use error::{Error, Verdict};
pub use function::{Arguments, IntoHandler};
pub use registry::{Entry, Registry, Threading};

/// What a handler answers when it is done: nothing, unless somebody asked for the result
/// ([`Context::wants_result`]), in which case it is its JSON form.
pub type Output = Option<serde_json::Value>;

/// Runs one attempt of a job.
pub trait Handler: Send + Sync + 'static {
    /// One attempt. The event is in the context. Panics are caught by the worker. A handler registered by
    /// [`Registry::handler`] gets only events whose JSON content is JSON.
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Output, Error>>;
}
