//! Dead letters: records of `dlq.N.Q`, less those that a mark says are gone.
//!
//! A letter's id is where it lies, `PARTITION-OFFSET`, or what an import says. A replay is one transaction: the record
//! on the queue's own topic and the mark.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use parking_lot::Mutex;

use super::super::{DeadLetters, Error, Letter, LetterQuery, Mend, ReplayGuard};
use super::config::Settings;
use super::index::{self, Entry, Index};
use super::marks::{self, Marks};
use super::native::Arrived;
use super::publish::KafkaPublisher;
use super::topics::{Kind, Topics, blocking};
use super::transaction::Transactor;
use super::{names, outgoing};
use crate::message::record::{self, Dead};
use crate::message::{Binding, Message, Namespace, Origin, Place, QueueName, attribute, cloudevents, decode};
use crate::time::Clock;

/// The header under which an imported letter keeps its id.
const ID: &str = "__dlq.errors.windlass.id";
/// Letters in one transaction.
const CHUNK: usize = 200;
/// Letters read at once for a listing, and their bytes unless one alone has more.
const PAGE: usize = 200;
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// See the module's documentation.
#[derive(Clone)]
pub struct KafkaDead {
    /// For clients of its own.
    pub settings: Settings,
    /// The namespace.
    pub namespace: Namespace,
    /// Topics.
    pub topics: Arc<Topics>,
    /// For marks that stand alone.
    pub publisher: Arc<KafkaPublisher>,
    /// The wall clock.
    pub clock: Clock,
    /// How long a claim lasts unless it is renewed.
    pub lease: Duration,
    /// How long dead letters are kept.
    pub keep: Vec<(QueueName, Option<Duration>)>,
    transactor: Arc<Mutex<Option<Transactor>>>,
    /// Where the letters lie that were listed.
    places: Places,
}

type Places = Arc<Mutex<BTreeMap<(QueueName, String), (i32, i64)>>>;

impl KafkaDead {
    /// With these parts.
    pub fn new(
        settings: &Settings,
        namespace: &Namespace,
        topics: &Arc<Topics>,
        publisher: &Arc<KafkaPublisher>,
        clock: &Clock,
        lease: Duration,
        keep: Vec<(QueueName, Option<Duration>)>,
    ) -> Self {
        Self {
            settings: settings.clone(),
            namespace: namespace.clone(),
            topics: topics.clone(),
            publisher: publisher.clone(),
            clock: clock.clone(),
            lease,
            keep,
            transactor: Arc::default(),
            places: Arc::default(),
        }
    }

    /// The queues that have a topic of dead letters.
    async fn queues(&self, only: Option<&QueueName>) -> Result<Vec<QueueName>, Error> {
        let cluster = self.topics.cluster().await?;
        let all = cluster.topics.keys().filter_map(|topic| names::queue_of_dead(&self.namespace, topic));
        Ok(all.filter(|queue| only.is_none_or(|only| only == queue)).collect())
    }

    async fn marks(&self) -> Result<Marks, Error> {
        let (settings, namespace) = (self.settings.clone(), self.namespace.clone());
        blocking(move || Marks::read(&settings, &namespace)).await
    }

    /// Where the letters of a queue lie that are there, each id once.
    async fn index(&self, queue: &QueueName, marks: &Arc<Marks>) -> Result<Index, Error> {
        let (settings, namespace, queue) = (self.settings.clone(), self.namespace.clone(), queue.clone());
        let (marks, places) = (marks.clone(), self.places.clone());
        blocking(move || {
            let index = Index::read(&settings, &namespace, &queue, &marks)?;
            let mut places = places.lock();
            places.retain(|(of, _), _| *of != queue);
            places.extend(index.entries.iter().map(|entry| ((queue.clone(), entry.id.clone()), entry.at)));
            drop(places);
            Ok(index)
        })
        .await
    }

    /// What a query gives, in its order: queues and entries.
    async fn select(&self, query: &LetterQuery) -> Result<VecDeque<(QueueName, Entry)>, Error> {
        let marks = Arc::new(self.marks().await?);
        let mut selected = Vec::new();
        for queue in self.queues(query.queue.as_ref()).await? {
            let entries = self.index(&queue, &marks).await?.entries.into_iter();
            let wanted = entries.filter(|entry| {
                query.since.is_none_or(|since| entry.last >= since)
                    && query.until.is_none_or(|until| entry.last < until)
            });
            selected.extend(wanted.map(|entry| (queue.clone(), entry)));
        }
        selected.sort_by(|(_, a), (_, b)| a.last.cmp(&b.last).then_with(|| a.id.cmp(&b.id)));
        if !query.oldest_first {
            selected.reverse();
        }
        Ok(selected.into())
    }

    /// The next letters of a selection, so many that they are few and small.
    async fn page(&self, selected: &mut VecDeque<(QueueName, Entry)>) -> Result<Vec<Letter>, Error> {
        let mut bytes = 0;
        let mut taken: Vec<(QueueName, Entry)> = Vec::new();
        while let Some((_, entry)) = selected.front()
            && taken.len() < PAGE
            && (bytes + entry.size <= PAGE_BYTES || taken.is_empty())
        {
            bytes += entry.size;
            taken.extend(selected.pop_front());
        }
        let mut wanted: BTreeMap<QueueName, BTreeSet<(i32, i64)>> = BTreeMap::new();
        for (queue, entry) in &taken {
            wanted.entry(queue.clone()).or_default().insert(entry.at);
        }
        let (settings, namespace) = (self.settings.clone(), self.namespace.clone());
        blocking(move || {
            let mut read = BTreeMap::new();
            for (queue, places) in wanted {
                let letters = index::fetch(&settings, &namespace, &queue, &places)?;
                read.extend(letters.into_iter().map(|(at, letter)| ((queue.clone(), at), letter)));
            }
            Ok(taken.into_iter().filter_map(|(queue, entry)| read.remove(&(queue, entry.at))).collect())
        })
        .await
    }

    /// Where these letters lie, by queue and id; what is gone is absent.
    async fn places(&self, letters: &[Letter]) -> Result<BTreeMap<(QueueName, String), (i32, i64)>, Error> {
        let marks = Arc::new(self.marks().await?);
        let mut places = BTreeMap::new();
        let queues: BTreeSet<&QueueName> = letters.iter().map(|letter| &letter.queue).collect();
        for queue in queues {
            let of_queue = || letters.iter().filter(|letter| letter.queue == *queue);
            // What was listed by this process is where it was, unless it is gone; an id alone does not say, since an
            // import keeps the id that a letter had elsewhere.
            let known: Vec<_> = {
                let places = self.places.lock();
                of_queue().map(|letter| places.get(&(queue.clone(), letter.id.clone())).copied()).collect()
            };
            if known.iter().all(|at| at.is_some_and(|at| !marks.is_gone(queue, at))) {
                places.extend(of_queue().zip(known).filter_map(|(l, at)| Some(((queue.clone(), l.id.clone()), at?))));
                continue;
            }
            for entry in self.index(queue, &marks).await?.entries {
                places.insert((queue.clone(), entry.id), entry.at);
            }
        }
        Ok(places)
    }

    /// Writes these in one transaction, where the broker lets us have one.
    async fn write(&self, records: Vec<(String, Message)>) -> Result<(), Error> {
        let this = self.clone();
        blocking(move || {
            let mut transactor = this.transactor.lock();
            let transactor = transactor.get_or_insert_with(|| {
                let id = format!("{}._letters.{}", this.namespace, uuid::Uuid::now_v7());
                Transactor::new(this.settings.mover(&id), this.settings.login(), this.clock.clone())
            });
            let records: Vec<_> = records.iter().map(|(topic, message)| (topic.as_str(), message)).collect();
            transactor.write(&records, None).map(|_| ()).map_err(|refusal| Error::Unavailable(refusal.why))
        })
        .await
    }

    /// Writes what each letter needs, a chunk in a transaction.
    async fn each(
        &self,
        letters: &[Letter],
        records: impl Fn(&Letter, (i32, i64)) -> Vec<(String, Message)>,
    ) -> Vec<Result<bool, Error>> {
        let prepared = async {
            self.topics.ensure(&names::marks(&self.namespace), Kind::Marks, None).await?;
            self.places(letters).await
        };
        let places = match prepared.await {
            Ok(places) => places,
            Err(error) => return letters.iter().map(|_| Err(again(&error))).collect(),
        };
        let mut results = Vec::with_capacity(letters.len());
        for chunk in letters.chunks(CHUNK) {
            let found: Vec<_> =
                chunk.iter().map(|letter| places.get(&(letter.queue.clone(), letter.id.clone())).copied()).collect();
            let all: Vec<_> =
                chunk.iter().zip(&found).filter_map(|(letter, at)| Some(records(letter, (*at)?))).flatten().collect();
            let written = if all.is_empty() { Ok(()) } else { self.write(all).await };
            results.extend(found.iter().map(|at| match &written {
                Ok(()) => Ok(at.is_some()),
                Err(error) if at.is_some() => Err(again(error)),
                Err(_) => Ok(false),
            }));
        }
        results
    }

    /// Marks what is older than its queue keeps, and says how many of each that was. Removes from the log what is gone
    /// from its beginning on, and takes away the marks of what is in the log no more.
    pub async fn expire(&self) -> Result<Vec<(QueueName, u64)>, Error> {
        let now = self.clock.now();
        let there = self.queues(None).await?;
        let mut marks = Arc::new(self.marks().await?);
        let mut counts = Vec::new();
        for (queue, keep) in self.keep.iter().filter(|(queue, _)| there.contains(queue)) {
            let mut index = self.index(queue, &marks).await?;
            let until = keep.map(|keep| {
                let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
                crate::time::Timestamp::from_millis(now.as_millis().saturating_sub(keep))
            });
            let old = index.entries.iter().filter(|entry| until.is_some_and(|until| entry.last < until));
            let old: Vec<_> = old.map(|entry| entry.at).collect();
            let mark = |at: &(i32, i64)| (names::marks(&self.namespace), marks::gone(queue, *at, Some(now)));
            let double = |at: &(i32, i64)| (names::marks(&self.namespace), marks::double(queue, *at));
            let gone: Vec<_> = old.iter().map(mark).chain(index.doubles.iter().map(double)).collect();
            if !gone.is_empty() {
                self.topics.ensure(&names::marks(&self.namespace), Kind::Marks, None).await?;
                for chunk in gone.chunks(CHUNK) {
                    self.write(chunk.to_vec()).await?;
                }
                marks = Arc::new(self.marks().await?);
                index = self.index(queue, &marks).await?;
            }
            if !old.is_empty() {
                counts.push((queue.clone(), old.len() as u64));
            }
            self.trim(queue, &index, &marks).await?;
        }
        Ok(counts)
    }

    /// Removes from the log what is gone from its beginning on, and the marks of what the log has no more.
    async fn trim(&self, queue: &QueueName, index: &Index, marks: &Marks) -> Result<(), Error> {
        let topic = names::dead(&self.namespace, queue);
        let ends: Vec<_> = index.ends.iter().map(|(number, end)| (topic.clone(), *number, *end)).collect();
        let mut starts = index.starts.clone();
        for ((_, number, _), start) in ends.iter().zip(self.topics.trim(&ends).await?) {
            starts.insert(*number, start);
        }
        let of_queue = marks.gone.get(queue.as_str()).into_iter().flatten();
        let passed: Vec<_> = of_queue
            .filter(|(number, offset)| starts.get(number).is_some_and(|start| offset < start))
            .map(|at| (names::marks(&self.namespace), marks::gone(queue, *at, None)))
            .collect();
        for chunk in passed.chunks(CHUNK) {
            self.write(chunk.to_vec()).await?;
        }
        Ok(())
    }

    /// Whether the broker denies us transactions, with which it cannot say that a record replaces another.
    pub async fn transactions_denied(&self) -> Result<bool, Error> {
        let this = self.clone();
        blocking(move || {
            let id = format!("{}._doctor", this.namespace);
            Transactor::new(this.settings.mover(&id), this.settings.login(), this.clock.clone())
                .is_denied()
                .map_err(Error::Unavailable)
        })
        .await
    }

    /// Letters of a queue, and the age of the oldest.
    pub async fn depth(&self, queue: &QueueName) -> Result<(u64, Option<Duration>), Error> {
        let query = LetterQuery { queue: Some(queue.clone()), oldest_first: true, ..LetterQuery::default() };
        let selected = self.select(&query).await?;
        let oldest = selected.front().map(|(_, entry)| entry.last.until(self.clock.now()));
        Ok((selected.len() as u64, oldest))
    }
}

fn again(error: &Error) -> Error {
    match error {
        Error::Unavailable(text) => Error::Unavailable(text.clone()),
        Error::Taken(text) => Error::Taken(text.clone()),
        Error::Refused(text) => Error::Refused(text.clone()),
        Error::NotFound(text) => Error::NotFound(text.clone()),
        Error::Rejected(text) => Error::Rejected(text.clone()),
        Error::Usage(text) => Error::Usage(text.clone()),
    }
}

/// A record of a dead-letter topic as a letter, and whether it was imported.
pub fn letter(topic: &str, queue: &QueueName, partition: i32, arrived: Arrived) -> Option<(Letter, bool)> {
    let Arrived { offset, at, message } = arrived;
    let imported = message.headers.get(ID).and_then(|id| std::str::from_utf8(id).ok()).map(str::to_owned);
    let stored = record::read(&message.headers, Binding::Kafka).ok()?;
    let dead = stored.dead?;
    let failure = stored.record.failure.clone()?;
    let message = Message { headers: stored.original, ..message };
    let place = Place {
        position: format!("kafka:{topic}:{partition}"),
        source: stored.record.event_source.clone().unwrap_or_default(),
        topic: stored.record.topic.clone(),
        binding: Binding::Kafka,
    };
    let origin = Origin { place: &place, seq: offset as u64, at };
    let event = decode(&message, &origin, Some(&stored.record));
    let is_imported = imported.is_some();
    let letter = Letter {
        id: imported.unwrap_or_else(|| format!("{partition}-{offset}")),
        queue: queue.clone(),
        event_id: event.ok().map(|event| event.id.to_string()).or_else(|| stored.record.event_id.clone()),
        message,
        binding: Binding::Kafka,
        job: dead.job,
        reason: dead.reason,
        attempts: dead.attempts,
        failure,
        record: stored.record,
    };
    Some((letter, is_imported))
}

impl DeadLetters for KafkaDead {
    fn list(&self, query: LetterQuery) -> BoxStream<'_, Result<Letter, Error>> {
        let begun = async move { self.select(&query).await.map(|selected| (selected, VecDeque::new())) };
        let pages = stream::once(begun).flat_map(move |begun| match begun {
            Err(error) => stream::once(async { Err(error) }).left_stream(),
            Ok(begun) => stream::try_unfold(begun, move |(mut selected, mut page)| async move {
                while page.is_empty() && !selected.is_empty() {
                    page = VecDeque::from(self.page(&mut selected).await?);
                }
                Ok(page.pop_front().map(|letter| (letter, (selected, page))))
            })
            .right_stream(),
        });
        Box::pin(pages)
    }

    fn begin_replay<'a>(&'a self, queue: &'a QueueName) -> BoxFuture<'a, Result<ReplayGuard, Error>> {
        Box::pin(async move {
            let topic = names::marks(&self.namespace);
            self.topics.ensure(&topic, Kind::Marks, None).await?;
            let owner = uuid::Uuid::now_v7().simple().to_string();
            let until = || Some(self.clock.now().after(self.lease));
            self.publisher.confirm(&topic, &marks::claim(queue, &owner, None, until())).await?;
            let marks = self.marks().await?;
            let now = self.clock.now();
            let holder = marks.holder(queue, now).cloned();
            let Some(order) = holder.as_ref().filter(|holder| holder.owner == owner).map(|holder| holder.order) else {
                self.publisher.confirm(&topic, &marks::claim(queue, &owner, None, None)).await?;
                let left = holder.map_or(Duration::ZERO, |holder| now.until(holder.until));
                return Err(Error::Taken(format!(
                    "somebody replays from {queue} now; if that was killed, its claim ends in {} s",
                    left.as_secs() + 1
                )));
            };
            let (this, queue) = (self.clone(), queue.clone());
            let renewal = tokio::spawn({
                let (this, queue, owner, topic) = (this.clone(), queue.clone(), owner.clone(), topic.clone());
                async move {
                    loop {
                        tokio::time::sleep(this.lease / 3).await;
                        let until = this.clock.now().after(this.lease);
                        let message = marks::claim(&queue, &owner, Some(order), Some(until));
                        if let Err(error) = this.publisher.confirm(&topic, &message).await {
                            tracing::warn!(%error, "the right to replay could not be renewed");
                        }
                    }
                }
            });
            let runtime = tokio::runtime::Handle::current();
            Ok(ReplayGuard::new(move || {
                renewal.abort();
                runtime.spawn(async move {
                    let message = marks::claim(&queue, &owner, None, None);
                    if let Err(error) = this.publisher.confirm(&topic, &message).await {
                        tracing::warn!(%error, "the right to replay ends by itself, with its lease");
                    }
                });
            }))
        })
    }

    fn replay<'a>(&'a self, letters: &'a [Letter], mend: &'a Mend) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        Box::pin(async move {
            let queues: BTreeSet<&QueueName> =
                letters.iter().map(|letter| mend.queue.as_ref().unwrap_or(&letter.queue)).collect();
            for queue in queues {
                if let Err(error) = self.topics.ensure(&names::work(&self.namespace, queue), Kind::Work, None).await {
                    return letters.iter().map(|_| Err(again(&error))).collect();
                }
            }
            let now = self.clock.now();
            self.each(letters, |letter, at| {
                let original = cloudevents::without(&letter.message.headers, letter.binding, attribute::EXPIRYTIME);
                let record = letter.record.clone().replayed(mend.job.clone());
                let headers = record::write(&original, &record, None, Binding::Kafka);
                let body = mend.body.clone().or_else(|| letter.message.body.clone());
                let message = Message { headers, body, key: letter.message.key.clone() };
                let queue = mend.queue.as_ref().unwrap_or(&letter.queue);
                vec![
                    (names::work(&self.namespace, queue), message),
                    (names::marks(&self.namespace), marks::gone(&letter.queue, at, Some(now))),
                ]
            })
            .await
        })
    }

    fn purge<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<bool, Error>>> {
        Box::pin(async move {
            let now = self.clock.now();
            self.each(letters, |letter, at| {
                vec![(names::marks(&self.namespace), marks::gone(&letter.queue, at, Some(now)))]
            })
            .await
        })
    }

    fn import<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<(), Error>>> {
        Box::pin(async move {
            let prepared = async {
                self.topics.ensure(&names::marks(&self.namespace), Kind::Marks, None).await?;
                for letter in letters {
                    self.topics.ensure(&names::dead(&self.namespace, &letter.queue), Kind::Dead, None).await?;
                }
                self.places(letters).await
            };
            let places = match prepared.await {
                Ok(places) => places,
                Err(error) => return letters.iter().map(|_| Err(again(&error))).collect(),
            };
            let now = self.clock.now();
            let mut results = Vec::with_capacity(letters.len());
            for letter in letters {
                let lay = letter.record.origin.as_deref().and_then(outgoing::parse_lay);
                let dead = Dead {
                    reason: letter.reason,
                    attempts: letter.attempts,
                    job: letter.job.clone(),
                    queue: letter.queue.clone(),
                    partition: lay.as_ref().map(|lay| lay.partition),
                    offset: lay.as_ref().map(|lay| lay.offset as u64),
                    worker: None,
                };
                let mut record = letter.record.clone();
                record.failure = Some(letter.failure.clone());
                let headers = record::write(&letter.message.headers, &record, Some(&dead), Binding::Kafka);
                let headers = outgoing::with(&headers, &[(ID, letter.id.as_bytes())]);
                let message = Message { headers, ..letter.message.clone() };
                let mut records = vec![(names::dead(&self.namespace, &letter.queue), message)];
                if let Some(at) = places.get(&(letter.queue.clone(), letter.id.clone())) {
                    records.push((names::marks(&self.namespace), marks::gone(&letter.queue, *at, Some(now))));
                }
                results.push(self.write(records).await);
            }
            results
        })
    }
}
