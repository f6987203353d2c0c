//! Dead letters in memory.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::{self, BoxStream, StreamExt};

use super::Memory;
use crate::broker::{DeadLetters, Error, Letter, LetterQuery, Mend, ReplayGuard};
use crate::message::{Message, QueueName, attribute, cloudevents};

pub(super) struct Letters(pub(super) Arc<Memory>);

impl Letters {
    fn replay_one(&self, letter: &Letter, mend: &Mend) -> Result<bool, Error> {
        let from = self.0.store(&letter.queue)?;
        if !from.has_letter(&letter.id) {
            return Ok(false);
        }
        let to = self.0.store(mend.queue.as_ref().unwrap_or(&letter.queue))?;
        let message = Message {
            body: mend.body.clone().or_else(|| letter.message.body.clone()),
            headers: cloudevents::without(&letter.message.headers, letter.binding, attribute::EXPIRYTIME),
            key: letter.message.key.clone(),
        };
        to.store(message, letter.record.clone().replayed(mend.job.clone()));
        Ok(from.remove_letter(&letter.id))
    }
}

impl DeadLetters for Letters {
    fn list(&self, query: LetterQuery) -> BoxStream<'_, Result<Letter, Error>> {
        let wanted = |letter: &Letter| {
            query.since.is_none_or(|since| letter.failure.last >= since)
                && query.until.is_none_or(|until| letter.failure.last < until)
        };
        let stores = match &query.queue {
            Some(queue) => match self.0.store(queue) {
                Ok(store) => vec![store],
                Err(error) => return stream::iter([Err(error)]).boxed(),
            },
            None => self.0.stores(),
        };
        let mut letters: Vec<Letter> = stores.iter().flat_map(|store| store.letters()).filter(wanted).collect();
        letters.sort_by_key(|letter| letter.failure.last);
        if !query.oldest_first {
            letters.reverse();
        }
        stream::iter(letters.into_iter().map(Ok)).boxed()
    }

    fn begin_replay<'a>(&'a self, queue: &'a QueueName) -> BoxFuture<'a, Result<ReplayGuard, Error>> {
        let begin = || {
            let store = self.0.store(queue)?;
            if !store.begin_replay() {
                return Err(Error::Taken(format!("a replay of queue {queue} is under way")));
            }
            Ok(ReplayGuard::new(move || store.end_replay()))
        };
        ready(begin()).boxed()
    }

    fn replay<'a>(&'a self, letters: &'a [Letter], mend: &'a Mend) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        ready(letters.iter().map(|letter| self.replay_one(letter, mend)).collect()).boxed()
    }

    fn purge<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        let purge = |letter: &Letter| Ok(self.0.store(&letter.queue)?.remove_letter(&letter.id));
        ready(letters.iter().map(purge).collect()).boxed()
    }

    fn import<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<(), Error>>> {
        let import = |letter: &Letter| {
            self.0.store(&letter.queue)?.put_letter(letter.clone());
            Ok(())
        };
        ready(letters.iter().map(import).collect()).boxed()
    }
}
