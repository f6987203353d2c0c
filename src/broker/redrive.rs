//! Replaying and purging many dead letters: what is meant is decided once, at the start, and then carried out in
//! batches, the oldest first, at a rate. The command line and the admin port share it.
//!
//! A replay that was killed is resumed by starting it again: what was replayed is no dead letter any more. One that
//! fails again meanwhile is a new letter, which the selection does not hold.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::selector::{Resolved, Resolver, Selector};
use super::{DeadLetters, Error, Letter, LetterQuery, Mend};
use crate::message::QueueName;

/// Letters of one queue, decided upon.
pub struct Selection {
    queue: QueueName,
    query: LetterQuery,
    held: Held,
    /// Ids that were asked for and name nothing; ids that begin several letters' ids.
    pub unresolved: Unresolved,
}

/// Ids that were asked for in vain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unresolved {
    /// They name no letter.
    pub missing: Vec<String>,
    /// They are the beginning of several letters' ids, with how many.
    pub ambiguous: Vec<(String, usize)>,
}

/// Letters are kept while they are few; of many only the ids are, and they are read again.
enum Held {
    Letters(Vec<Letter>),
    Ids(HashSet<String>),
}

/// Bytes of letters that a selection keeps.
const KEEP: usize = 8 * 1_024 * 1_024;

impl Selection {
    /// The letters of `queue` that `selector` selects and, where `ids` are given, that these name.
    pub async fn decide(
        dead: &dyn DeadLetters,
        queue: &QueueName,
        ids: Option<Vec<String>>,
        selector: &Selector,
    ) -> Result<Self, Error> {
        let query = selector.query(Some(queue), true);
        let limit = selector.limit.unwrap_or(usize::MAX);
        let mut held = Collector::default();
        let mut unresolved = Unresolved::default();
        if let Some(ids) = ids {
            // Ids are looked up among all letters, so that one that another selector excludes is not called missing.
            let mut resolver = Resolver::new(ids);
            let mut letters =
                dead.list(LetterQuery { queue: Some(queue.clone()), oldest_first: true, ..Default::default() });
            while !resolver.settled()
                && let Some(letter) = letters.next().await.transpose()?
            {
                if resolver.offer(&letter) && selector.matches(&letter) {
                    held.add(letter);
                }
            }
            let Resolved { ids, missing, ambiguous } = resolver.finish();
            unresolved = Unresolved { missing, ambiguous };
            held.retain(&ids.into_iter().collect());
        } else {
            let mut letters = dead.list(query.clone());
            while held.ids.len() < limit
                && let Some(letter) = letters.next().await.transpose()?
            {
                if selector.matches(&letter) {
                    held.add(letter);
                }
            }
        }
        held.truncate(limit);
        Ok(Self { queue: queue.clone(), query, held: held.finish(), unresolved })
    }

    /// How many letters.
    pub fn len(&self) -> usize {
        match &self.held {
            Held::Letters(letters) => letters.len(),
            Held::Ids(ids) => ids.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The queue.
    pub fn queue(&self) -> &QueueName {
        &self.queue
    }

    /// The letters, the oldest first. One that is gone meanwhile is left out.
    pub fn letters<'a>(&'a self, dead: &'a dyn DeadLetters) -> BoxStream<'a, Result<Letter, Error>> {
        match &self.held {
            Held::Letters(letters) => futures_util::stream::iter(letters.iter().cloned().map(Ok)).boxed(),
            Held::Ids(ids) => dead
                .list(self.query.clone())
                .filter(|letter| {
                    let meant = letter.as_ref().map_or(true, |letter| ids.contains(&letter.id));
                    async move { meant }
                })
                .take(ids.len())
                .boxed(),
        }
    }
}

#[derive(Default)]
struct Collector {
    letters: Vec<Letter>,
    ids: Vec<String>,
    bytes: usize,
}

impl Collector {
    fn add(&mut self, letter: Letter) {
        self.ids.push(letter.id.clone());
        self.bytes += letter.message.size() + letter.failure.error.len() + 512;
        if self.bytes <= KEEP {
            self.letters.push(letter);
        } else {
            self.letters = Vec::new();
        }
    }

    fn retain(&mut self, meant: &HashSet<String>) {
        self.ids.retain(|id| meant.contains(id));
        self.letters.retain(|letter| meant.contains(&letter.id));
    }

    fn truncate(&mut self, limit: usize) {
        self.ids.truncate(limit);
        self.letters.truncate(limit);
    }

    fn finish(self) -> Held {
        if self.bytes <= KEEP { Held::Letters(self.letters) } else { Held::Ids(self.ids.into_iter().collect()) }
    }
}

/// How many letters in how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    letters: NonZeroU32,
    per: Duration,
}

impl Rate {
    /// A hundred a second.
    pub const DEFAULT: Self =
        Self { letters: NonZeroU32::new(100).expect("100 is not 0"), per: Duration::from_secs(1) };

    /// Reads `100/s`, `5/m`, `1000/h`; a bare number is a second's; `None` is `none`, without a limit.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let fault = || format!("expected a rate such as \"100/s\", \"30/m\" or \"none\", found {text:?}");
        if text == "none" {
            return Ok(None);
        }
        let (number, unit) = text.split_once('/').unwrap_or((text, "s"));
        let letters = number.trim().parse().map_err(|_| fault())?;
        let per = match unit.trim() {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3_600),
            _ => return Err(fault()),
        };
        Ok(Some(Self { letters, per }))
    }

    /// How many are stored at once: a tenth of a second's worth, so that the rate holds within a second too.
    fn batch(self) -> usize {
        let a_second = f64::from(self.letters.get()) / self.per.as_secs_f64();
        (a_second / 10.0).clamp(1.0, BATCH as f64) as usize
    }

    /// How long `count` letters take.
    fn time_of(self, count: usize) -> Duration {
        self.per.mul_f64(count as f64 / f64::from(self.letters.get()))
    }
}

/// The most letters that are given to the broker at once.
const BATCH: usize = 100;

/// What is done with each letter.
#[derive(Clone, Debug)]
pub enum Deed {
    /// Put back on its queue.
    Replay {
        /// How fast; `None`: as fast as it goes.
        rate: Option<Rate>,
        /// What differs from the letter.
        mend: Mend,
    },
    /// Removed.
    Purge,
}

/// How far it is: the shape of `dlq replay` and `dlq purge`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Progress {
    /// Letters that were meant.
    pub selected: u64,
    /// Replayed or removed.
    pub done: u64,
    /// Could not be.
    pub failed: u64,
    /// Whether nothing was to be done.
    pub dry_run: bool,
}

/// How it ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// The counts.
    pub progress: Progress,
    /// Letters that somebody else replayed or removed meanwhile.
    pub gone: u64,
    /// The first failures, with the letter's id.
    pub failures: Vec<(String, Error)>,
    /// What ended it early: the broker does not answer, or refuses.
    pub stopped: Option<Error>,
    /// `stop` was cancelled.
    pub interrupted: bool,
}

/// Failures that are kept by text.
const FAILURES: usize = 10;

/// Carries a selection out. Between batches it looks at `stop`, and tells `report` how far it is. A letter that cannot
/// be stored is counted and passed over; a broker that is down or refuses ends it.
///
/// A replay takes the right to the queue's replays first: [`Ended::stopped`] where somebody has it.
pub async fn carry_out(
    dead: &dyn DeadLetters,
    selection: &Selection,
    deed: &Deed,
    stop: &CancellationToken,
    report: &mut (dyn FnMut(&Progress) + Send),
) -> Ended {
    let mut ended = Ended::default();
    ended.progress.selected = selection.len() as u64;
    let (guard, rate) = match deed {
        Deed::Replay { rate, .. } => match dead.begin_replay(selection.queue()).await {
            Ok(guard) => (Some(guard), *rate),
            Err(error) => {
                ended.stopped = Some(error);
                return ended;
            }
        },
        Deed::Purge => (None, None),
    };
    let mut letters = selection.letters(dead).chunks(rate.map_or(BATCH, Rate::batch));
    let mut due = Instant::now();
    loop {
        tokio::select! {
            // Leaving first: a slow rate must not hold up whoever wants to leave.
            biased;
            () = stop.cancelled() => {
                ended.interrupted = true;
                break;
            }
            () = tokio::time::sleep_until(due) => {}
        }
        let Some(batch) = letters.next().await else { break };
        let batch = match batch.into_iter().collect::<Result<Vec<Letter>, Error>>() {
            Ok(batch) => batch,
            Err(error) => {
                ended.stopped = Some(error);
                break;
            }
        };
        if let Some(rate) = rate {
            due = due.max(Instant::now()) + rate.time_of(batch.len());
        }
        let results = match deed {
            Deed::Replay { mend, .. } => dead.replay(&batch, mend).await,
            Deed::Purge => dead.purge(&batch).await,
        };
        ended.count(&batch, results);
        report(&ended.progress);
        if ended.stopped.is_some() {
            break;
        }
    }
    drop(guard);
    ended
}

impl Ended {
    fn count(&mut self, batch: &[Letter], results: Vec<Result<bool, Error>>) {
        for (letter, result) in batch.iter().zip(results) {
            match result {
                Ok(true) => self.progress.done += 1,
                Ok(false) => self.gone += 1,
                Err(error) => {
                    self.progress.failed += 1;
                    match error {
                        Error::Unavailable(_) | Error::Taken(_) | Error::Refused(_) | Error::Usage(_) => {
                            self.stopped = Some(error);
                        }
                        Error::NotFound(_) | Error::Rejected(_) if self.failures.len() < FAILURES => {
                            self.failures.push((letter.id.clone(), error));
                        }
                        Error::NotFound(_) | Error::Rejected(_) => {}
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Arc;

    use super::*;
    use crate::broker::letter::tests::letter;
    use crate::broker::{Broker, KafkaOptions, NatsOptions, Options, Queue, Role, SqliteOptions, Start, connect};
    use crate::message::{JobName, Namespace};
    use crate::time::{Clock, Timestamp};

    #[test]
    fn rates_are_read() {
        let rate = |text| Rate::parse(text).expect("a rate").expect("not none");
        assert_eq!(rate("100/s"), Rate::DEFAULT);
        assert_eq!(rate("100"), Rate::DEFAULT);
        assert_eq!(rate("30/m").time_of(1), Duration::from_secs(2));
        assert_eq!(Rate::parse("none"), Ok(None));
        for bad in ["", "0/s", "-1", "5/d", "fast"] {
            assert!(Rate::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!((rate("100/s").batch(), rate("1/h").batch(), rate("99999").batch()), (10, 1, BATCH));
    }

    fn name() -> QueueName {
        QueueName::new("invoice").expect("a queue")
    }

    /// A broker in memory with letters `L0000`, `L0001`, .. of queue `invoice`, the first the oldest.
    async fn letters(count: usize, body: usize) -> Arc<dyn Broker> {
        let queue = Queue {
            name: name(),
            topics: Vec::new(),
            job: JobName::new("invoice").expect("a job"),
            slots: NonZeroUsize::MIN,
            ordered: false,
            start: Start::Earliest,
            max_crashes: 3,
            keep_dead: None,
        };
        let options = Options {
            namespace: Namespace::new("n").expect("a namespace"),
            namespace_set: true,
            role: Role::Worker,
            timeout: Duration::from_secs(5),
            lease: Duration::from_secs(30),
            grace: Duration::from_secs(1),
            queues: vec![queue],
            worker: "w".into(),
            clock: Clock::tokio(),
            sqlite: SqliteOptions::default(),
            nats: NatsOptions::default(),
            kafka: KafkaOptions::default(),
        };
        let broker = connect("memory://", options).await.expect("in memory");
        add(&*broker, 0..count, body).await;
        broker
    }

    async fn add(broker: &dyn Broker, numbers: std::ops::Range<usize>, body: usize) {
        let letters: Vec<Letter> = numbers
            .map(|number| {
                let mut letter = letter(&format!("L{number:04}"), "no report");
                letter.failure.last = letter.failure.first.after(Duration::from_secs(number as u64));
                letter.message.body = Some(vec![b'x'; body].into());
                letter
            })
            .collect();
        for stored in broker.dead_letters().import(&letters).await {
            stored.expect("stored");
        }
    }

    async fn left(broker: &dyn Broker) -> Vec<String> {
        let dead = broker.dead_letters();
        let query = LetterQuery { queue: Some(name()), oldest_first: true, ..Default::default() };
        dead.list(query).map(|letter| letter.expect("a letter").id).collect().await
    }

    fn fast() -> Deed {
        Deed::Replay { rate: None, mend: Mend::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_holds() {
        let broker = letters(250, 1).await;
        let dead = broker.dead_letters();
        let selection = Selection::decide(&*dead, &name(), None, &Selector::default()).await.expect("decided");
        let began = Instant::now();
        let mut seen = Vec::new();
        let deed = Deed::Replay { rate: Some(Rate::DEFAULT), mend: Mend::default() };
        let mut report = |progress: &Progress| seen.push((began.elapsed(), progress.done));
        let ended = carry_out(&*dead, &selection, &deed, &CancellationToken::new(), &mut report).await;
        assert_eq!((ended.progress.selected, ended.progress.done, ended.progress.failed), (250, 250, 0));
        for (after, done) in seen {
            // A batch is let out at the beginning of its time.
            let allowed = after.as_secs_f64() * 100.0 + 10.0 + 1e-6;
            assert!(done as f64 <= allowed, "{done} after {after:?}");
        }
        assert!(began.elapsed() >= Duration::from_millis(2_390), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn what_comes_later_is_not_meant() {
        // Kept whole, and by their ids alone where they are too large for that.
        for body in [1, KEEP / 10] {
            let broker = letters(20, body).await;
            let dead = broker.dead_letters();
            let selector = Selector { limit: Some(15), ..Selector::default() };
            let selection = Selection::decide(&*dead, &name(), None, &selector).await.expect("decided");
            assert_eq!(matches!(selection.held, Held::Ids(_)), body > 1);
            add(&*broker, 20..22, 1).await;
            let ended = carry_out(&*dead, &selection, &fast(), &CancellationToken::new(), &mut |_| ()).await;
            assert_eq!((ended.progress.selected, ended.progress.done, ended.gone), (15, 15, 0));
            let expected: Vec<String> = (15..22).map(|number| format!("L{number:04}")).collect();
            assert_eq!(left(&*broker).await, expected, "the oldest went");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_stops_between_batches_and_is_resumed() {
        let broker = letters(100, 1).await;
        let dead = broker.dead_letters();
        let stop = CancellationToken::new();
        let selection = Selection::decide(&*dead, &name(), None, &Selector::default()).await.expect("decided");
        let deed = Deed::Replay { rate: Some(Rate::DEFAULT), mend: Mend::default() };
        let mut report = |progress: &Progress| {
            if progress.done >= 30 {
                stop.cancel();
            }
        };
        let ended = carry_out(&*dead, &selection, &deed, &stop, &mut report).await;
        assert_eq!((ended.interrupted, ended.progress.done), (true, 30));
        assert_eq!(left(&*broker).await.len(), 70);
        // The old selection again: those that are gone are counted apart.
        let ended = carry_out(&*dead, &selection, &fast(), &CancellationToken::new(), &mut |_| ()).await;
        assert_eq!((ended.progress.done, ended.gone), (70, 30));
        assert!(left(&*broker).await.is_empty());
    }

    #[tokio::test]
    async fn one_replay_of_a_queue_at_a_time() {
        let broker = letters(3, 1).await;
        let dead = broker.dead_letters();
        let selection = Selection::decide(&*dead, &name(), None, &Selector::default()).await.expect("decided");
        let queue = name();
        let first = dead.begin_replay(&queue).await.expect("the right");
        let refused = carry_out(&*dead, &selection, &fast(), &CancellationToken::new(), &mut |_| ()).await;
        assert!(refused.stopped.is_some_and(|error| error.exit_code() == 69));
        drop(first);
        let ended = carry_out(&*dead, &selection, &fast(), &CancellationToken::new(), &mut |_| ()).await;
        assert_eq!(ended.progress.done, 3);
    }

    #[tokio::test]
    async fn ids_and_selectors_narrow_each_other() {
        let broker = letters(12, 1).await;
        let dead = broker.dead_letters();
        let ids = ["L0003", "L0001", "L001", "nope", "L0009", "L00"].map(str::to_owned).to_vec();
        let selector =
            Selector { until: Some(Timestamp::from_millis(1_763_719_200_000 + 5_000)), ..Selector::default() };
        let selection = Selection::decide(&*dead, &name(), Some(ids), &selector).await.expect("decided");
        let found: Vec<String> = selection.letters(&*dead).map(|letter| letter.expect("a letter").id).collect().await;
        // L001 begins L0010 and L0011, L0009 is too young.
        assert_eq!(found, ["L0001", "L0003"]);
        assert_eq!(selection.unresolved.missing, ["nope"]);
        assert_eq!(selection.unresolved.ambiguous, [("L001".to_owned(), 2), ("L00".to_owned(), 12)]);
        let purged = carry_out(&*dead, &selection, &Deed::Purge, &CancellationToken::new(), &mut |_| ()).await;
        assert_eq!((purged.progress.done, left(&*broker).await.len()), (2, 10));
    }
}
