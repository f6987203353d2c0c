//! Dead letters.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::Shared;
use crate::broker::{DeadLetters, Error, Letter, LetterQuery, Mend, ReplayGuard};
use crate::message::QueueName;

pub(super) struct Letters {
    pub(super) shared: Arc<Shared>,
}

impl DeadLetters for Letters {
    fn list(&self, _query: LetterQuery) -> BoxStream<'_, Result<Letter, Error>> {
        Box::pin(futures_util::stream::empty())
    }
    fn begin_replay<'a>(&'a self, _queue: &'a QueueName) -> BoxFuture<'a, Result<ReplayGuard, Error>> {
        Box::pin(async move { Ok(ReplayGuard::new(|| {})) })
    }
    fn replay<'a>(&'a self, letters: &'a [Letter], _mend: &'a Mend) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        Box::pin(async move { letters.iter().map(|_| Ok(false)).collect() })
    }
    fn purge<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        Box::pin(async move { letters.iter().map(|_| Ok(false)).collect() })
    }
    fn import<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<(), Error>>> {
        Box::pin(async move { letters.iter().map(|_| Ok(())).collect() })
    }
}
