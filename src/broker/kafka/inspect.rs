//! What the cluster holds.

use futures_util::future::BoxFuture;

use super::super::{Error, Finding, Inspect, KnownQueue, QueueStatus};
use crate::message::QueueName;

/// Being built.
pub struct Look;

fn later() -> Error {
    Error::Usage("not on Kafka yet".to_owned())
}

impl Inspect for Look {
    fn status<'a>(&'a self, _: &'a [QueueName]) -> BoxFuture<'a, Result<Vec<QueueStatus>, Error>> {
        Box::pin(async { Err(later()) })
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<KnownQueue>, Error>> {
        Box::pin(async { Err(later()) })
    }

    fn forget<'a>(&'a self, _: &'a QueueName, _: bool) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async { Err(later()) })
    }

    fn doctor(&self) -> BoxFuture<'_, Result<Vec<Finding>, Error>> {
        Box::pin(async { Err(later()) })
    }

    fn present<'a>(&'a self, _: &'a [(QueueName, usize)]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn expire_dead(&self) -> BoxFuture<'_, Result<Vec<(QueueName, u64)>, Error>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
