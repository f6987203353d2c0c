//! What the file holds, without a worker.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::Shared;
use crate::broker::{Error, Finding, Inspect, KnownQueue, QueueStatus};
use crate::message::QueueName;

/// Reads.
pub(super) struct Reading {
    pub(super) shared: Arc<Shared>,
}

impl Inspect for Reading {
    fn status<'a>(&'a self, _queues: &'a [QueueName]) -> BoxFuture<'a, Result<Vec<QueueStatus>, Error>> {
        Box::pin(async move { Ok(Vec::new()) })
    }
    fn queues(&self) -> BoxFuture<'_, Result<Vec<KnownQueue>, Error>> {
        Box::pin(async move { Ok(Vec::new()) })
    }
    fn forget<'a>(&'a self, _queue: &'a QueueName, _even_with_jobs: bool) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move { Ok(0) })
    }
    fn doctor(&self) -> BoxFuture<'_, Result<Vec<Finding>, Error>> {
        Box::pin(async move { Ok(Vec::new()) })
    }
    fn present<'a>(&'a self, _queues: &'a [(QueueName, usize)]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { Ok(()) })
    }
    fn expire_dead(&self) -> BoxFuture<'_, Result<Vec<(QueueName, u64)>, Error>> {
        Box::pin(async move { Ok(Vec::new()) })
    }
}
