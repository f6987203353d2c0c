//! Dead letters.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::super::{DeadLetters, Error, Letter, LetterQuery, Mend, ReplayGuard};
use crate::message::QueueName;

/// Being built.
pub struct Dead;

fn later() -> Error {
    Error::Usage("not on Kafka yet".to_owned())
}

impl DeadLetters for Dead {
    fn list(&self, _: LetterQuery) -> BoxStream<'_, Result<Letter, Error>> {
        Box::pin(futures_util::stream::iter([Err(later())]))
    }

    fn begin_replay<'a>(&'a self, _: &'a QueueName) -> BoxFuture<'a, Result<ReplayGuard, Error>> {
        Box::pin(async { Err(later()) })
    }

    fn replay<'a>(&'a self, letters: &'a [Letter], _: &'a Mend) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        Box::pin(async { letters.iter().map(|_| Err(later())).collect() })
    }

    fn purge<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        Box::pin(async { letters.iter().map(|_| Err(later())).collect() })
    }

    fn import<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<(), Error>>> {
        Box::pin(async { letters.iter().map(|_| Err(later())).collect() })
    }
}
