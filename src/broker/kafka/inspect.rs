//! What the cluster holds, read without a worker: backlogs from offsets and from what commits say beside them.
//!
//! A group's lag counts what is finished above the watermark and the markers of transactions. So the finished ones
//! are taken off by the commit's metadata, and a short backlog is counted by reading it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::super::{Error, Finding, Inspect, KnownQueue, QueueStatus, may_forget};
use super::begun::Begun;
use super::config::Settings;
use super::context::Context;
use super::dead::KafkaDead;
use super::held::{Held, is_held_up};
use super::later::{ByQueue, Counter, Tier};
use super::marks::{self, Marks};
use super::memo::Memo;
use super::scan::scan_from;
use super::topics::{Cluster, Kind, blocking, classify};
use super::{doctor, names};
use crate::message::record::read;
use crate::message::{Binding, Namespace, QueueName, Topic};
use crate::time::Timestamp;

/// Backlogs of a partition up to this are counted by reading them.
const COUNTED: i64 = 2_000;
/// How long one question may take.
const ASK: Duration = Duration::from_secs(10);
/// The same of one try.
const TRY: Duration = Duration::from_secs(3);
/// Between two tries of what an election holds up.
const AGAIN: Duration = Duration::from_millis(50);

/// See the module's documentation.
#[derive(Clone)]
pub struct KafkaInspect {
    /// Dead letters, topics, marks.
    pub dead: KafkaDead,
    /// What the configuration says of each queue.
    pub queues: Arc<Vec<super::super::Queue>>,
    /// Names this process.
    pub worker: Arc<str>,
    /// Whether this worker has said that it is there.
    pub present: Arc<AtomicBool>,
    /// What queues of this process have begun to read, and nobody has marked.
    pub begun: Begun,
    /// What waits in the delay topics.
    pub later: Counter,
}

/// What one partition of a queue holds.
struct Backlog {
    topic: String,
    number: i32,
    committed: i64,
    high: i64,
    memo: Memo,
    /// Whether much has ended behind a record that has not.
    held_up: bool,
}

impl Backlog {
    /// Offsets beyond the committed one that have ended.
    fn behind(&self) -> i64 {
        self.memo.finished.iter().map(|(from, to)| to - from).sum()
    }
}

/// Figures of the records in a backlog.
#[derive(Default)]
struct Figures {
    ready: u64,
    retrying: u64,
    scheduled: u64,
    retry_due: Option<Timestamp>,
    oldest: Option<Timestamp>,
    held: Vec<Held>,
}

impl KafkaInspect {
    /// Takes back that this worker is there, if it ever said so.
    pub async fn absent(&self) {
        if !self.present.swap(false, Ordering::Relaxed) {
            return;
        }
        let topic = names::marks(self.namespace());
        if let Err(error) = self.dead.publisher.confirm(&topic, &marks::worker(&self.worker, None, &[])).await {
            tracing::debug!(%error, "this worker's presence ends by itself, with its lease");
        }
    }

    fn namespace(&self) -> &Namespace {
        &self.dead.namespace
    }

    /// Queues that have a topic of their own at the broker.
    fn known(&self, cluster: &Cluster) -> BTreeSet<QueueName> {
        let topics = cluster.topics.keys();
        topics
            .filter_map(|topic| {
                names::queue_of_work(self.namespace(), topic).or_else(|| names::queue_of_dead(self.namespace(), topic))
            })
            .collect()
    }

    async fn marks(&self) -> Result<Marks, Error> {
        let (settings, namespace) = (self.dead.settings.clone(), self.namespace().clone());
        blocking(move || Marks::read(&settings, &namespace)).await
    }

    /// What each partition that a queue reads holds.
    async fn backlogs(&self, queue: &QueueName, cluster: &Cluster) -> Result<Vec<Backlog>, Error> {
        let settings = self.dead.settings.clone();
        let group = names::group(self.namespace(), queue);
        let work = names::work(self.namespace(), queue);
        let heard: BTreeSet<String> = self
            .queues
            .iter()
            .filter(|known| known.name == *queue)
            .flat_map(|known| known.topics.iter().map(|topic| topic.as_str().to_owned()))
            .collect();
        let partitions: Vec<(String, i32)> = cluster
            .topics
            .iter()
            .filter(|(topic, _)| !topic.starts_with("__"))
            .flat_map(|(topic, seats)| seats.iter().map(|seat| (topic.clone(), seat.number)))
            .collect();
        blocking(move || backlogs(&settings, &group, &work, &heard, &partitions)).await
    }

    async fn figures(&self, backlogs: Vec<Backlog>) -> Result<Figures, Error> {
        let settings = self.dead.settings.clone();
        let now = self.dead.clock.now();
        let reader = format!("{}._reader", self.namespace());
        blocking(move || {
            let mut figures = Figures::default();
            let mut topics: BTreeMap<String, Vec<Backlog>> = BTreeMap::new();
            for backlog in backlogs {
                for waiting in &backlog.memo.waiting {
                    figures.retrying += 1;
                    figures.retry_due = Some(figures.retry_due.map_or(waiting.due, |due| due.min(waiting.due)));
                }
                topics.entry(backlog.topic.clone()).or_default().push(backlog);
            }
            for (topic, parts) in topics {
                count(&settings, &reader, &topic, &parts, now, &mut figures)?;
            }
            Ok(figures)
        })
        .await
    }

    /// What the broker holds of these queues, or of all, and what holds up their partitions.
    async fn look(&self, queues: &[QueueName]) -> Result<Vec<(QueueStatus, Vec<Held>)>, Error> {
        let cluster = self.dead.topics.cluster().await?;
        let known = self.known(&cluster);
        let wanted: Vec<QueueName> = if queues.is_empty() { known.iter().cloned().collect() } else { queues.to_vec() };
        if let Some(unknown) = wanted.iter().find(|queue| !known.contains(*queue)) {
            return Err(Error::NotFound(format!(
                "queue {unknown} is not known at {}; no worker has opened it yet",
                self.dead.settings.shown
            )));
        }
        let marks = self.marks().await?;
        let delayed = self.delayed(&cluster).await?;
        let now = self.dead.clock.now();
        let mut all = Vec::with_capacity(wanted.len());
        for queue in &wanted {
            let backlogs = self.backlogs(queue, &cluster).await?;
            let figures = self.figures(backlogs).await?;
            let later = delayed.get(queue.as_str());
            let (dead, dead_oldest_age) = self.dead.depth(queue).await?;
            let (workers, slots) = marks.workers(queue, now);
            let due = [figures.retry_due, later.and_then(|later| later.retry_due)];
            let status = QueueStatus {
                name: queue.to_string(),
                ready: Some(figures.ready),
                running: None,
                retrying: Some(figures.retrying + later.map_or(0, |later| later.retrying)),
                retry_due: due.into_iter().flatten().min(),
                scheduled: Some(figures.scheduled + later.map_or(0, |later| later.scheduled)),
                dead: Some(dead),
                oldest_age: Some(figures.oldest.map_or(Duration::ZERO, |oldest| oldest.until(now))),
                dead_oldest_age,
                workers: Some(workers),
                slots: Some(slots),
                notes: figures.held.iter().map(Held::note).collect(),
            };
            all.push((status, figures.held));
        }
        Ok(all)
    }

    /// Removes from our own topics what their readers have passed.
    async fn trim(&self) -> Result<(), Error> {
        let cluster = self.dead.topics.cluster().await?;
        let of = |topic: &str| -> Vec<(String, i32)> {
            let seats = cluster.topics.get(topic).into_iter().flatten();
            seats.map(|seat| (topic.to_owned(), seat.number)).collect()
        };
        let mut groups: Vec<(String, Vec<(String, i32)>)> = Vec::new();
        for queue in self.queues.iter() {
            let group = names::group(self.namespace(), &queue.name);
            groups.push((group, of(&names::work(self.namespace(), &queue.name))));
        }
        let prefix = format!("{}.delay.", self.namespace());
        let tiers = cluster.topics.keys().filter(|topic| topic.starts_with(&prefix));
        groups.push((names::delay_group(self.namespace()), tiers.flat_map(|topic| of(topic)).collect()));
        for (group, partitions) in groups.into_iter().filter(|(_, partitions)| !partitions.is_empty()) {
            let settings = self.dead.settings.clone();
            let passed = blocking(move || places(&settings, &group, &partitions)).await?;
            let ends: Vec<_> = passed.into_iter().map(|((topic, number), offset)| (topic, number, offset)).collect();
            self.dead.topics.trim(&ends).await?;
        }
        Ok(())
    }

    /// What waits in the delay topics, by queue.
    async fn delayed(&self, cluster: &Cluster) -> Result<ByQueue, Error> {
        let prefix = format!("{}.delay.", self.namespace());
        let topics: BTreeSet<String> =
            cluster.topics.keys().filter(|topic| topic.starts_with(&prefix)).cloned().collect();
        if topics.is_empty() {
            return Ok(ByQueue::new());
        }
        let (settings, counter) = (self.dead.settings.clone(), self.later.clone());
        let group = names::delay_group(self.namespace());
        let reader = format!("{}._reader", self.namespace());
        let partitions: Vec<(String, i32)> = cluster
            .topics
            .iter()
            .filter(|(topic, _)| topics.contains(*topic))
            .flat_map(|(topic, seats)| seats.iter().map(|seat| (topic.clone(), seat.number)))
            .collect();
        blocking(move || {
            let tiers = backlogs(&settings, &group, "", &topics, &partitions)?.into_iter().map(|backlog| {
                let Backlog { topic, number, committed, high, .. } = backlog;
                Tier { topic, number, committed, high }
            });
            counter.count(&settings, &reader, &tiers.collect::<Vec<_>>())
        })
        .await
    }
}

/// Counts a short backlog by reading it, a long one by its offsets.
fn count(
    settings: &Settings,
    reader: &str,
    topic: &str,
    parts: &[Backlog],
    now: Timestamp,
    figures: &mut Figures,
) -> Result<(), Error> {
    let mut from = BTreeMap::new();
    for part in parts {
        let left = part.high - part.committed - part.behind() - part.memo.waiting.len() as i64;
        let look = left > 0 || part.held_up;
        from.insert(part.number, if look { part.committed } else { part.high });
        if left > 0 && part.high - part.committed > COUNTED {
            figures.ready += left as u64;
        }
    }
    let mut lowest = BTreeSet::new();
    let by_number: BTreeMap<i32, &Backlog> = parts.iter().map(|part| (part.number, part)).collect();
    scan_from(settings, reader, topic, &from, |number, arrived| {
        let Some(part) = by_number.get(&number) else { return false };
        let long = part.high - part.committed > COUNTED;
        let offset = arrived.offset;
        if part.memo.finished.iter().any(|(from, to)| (from..to).contains(&offset)) {
            return true;
        }
        let waiting = part.memo.waiting.iter().find(|waiting| waiting.offset == offset);
        if part.held_up && lowest.insert(number) {
            figures.held.push(Held {
                topic: topic.to_owned(),
                number,
                offset,
                age: arrived.at.until(now),
                due: waiting.map(|waiting| waiting.due),
                behind: part.behind(),
            });
        }
        if waiting.is_some() {
            return true;
        }
        let due = read(&arrived.message.headers, Binding::Kafka).ok().and_then(|stored| stored.record.not_before);
        match due.filter(|due| *due > now) {
            Some(_) if long => {}
            Some(_) => figures.scheduled += 1,
            None => {
                figures.ready += u64::from(!long);
                figures.oldest = Some(figures.oldest.map_or(arrived.at, |oldest| oldest.min(arrived.at)));
            }
        }
        !long
    })?;
    Ok(())
}

/// Committed offsets, asked for again while the group's coordinator is being elected or reads itself in.
fn committed(consumer: &BaseConsumer<Context>, list: &TopicPartitionList) -> KafkaResult<TopicPartitionList> {
    let deadline = Instant::now() + ASK;
    loop {
        let answer = consumer.committed_offsets(list.clone(), TRY);
        let Err(error) = &answer else { return answer };
        // Who may not read the group is told so beside the question, which is then never answered.
        while let Some(event) = consumer.poll(Duration::ZERO) {
            if let Err(denied) = event
                && denied.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
            {
                return Err(denied);
            }
        }
        if !moving(error) || Instant::now() >= deadline {
            return answer;
        }
        std::thread::sleep(AGAIN);
    }
}

fn moving(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(
            Code::NotCoordinator
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::OperationTimedOut
        )
    )
}

/// A consumer that reads as `group` without joining it, and the list of these partitions.
fn reader(
    settings: &Settings,
    group: &str,
    partitions: &[(String, i32)],
) -> Result<(BaseConsumer<Context>, TopicPartitionList), Error> {
    let context = Context::new(settings.login().token_command);
    let consumer: BaseConsumer<Context> =
        settings.reader(group).create_with_context(context).map_err(|error| Error::Refused(error.to_string()))?;
    consumer.context().close();
    settings.login().enter(consumer.client()).map_err(Error::Refused)?;
    let mut list = TopicPartitionList::new();
    for (topic, number) in partitions {
        list.add_partition(topic, *number);
    }
    Ok((consumer, list))
}

/// Which of these partitions the group has committed offsets of, and those. Blocks.
pub fn places(
    settings: &Settings,
    group: &str,
    partitions: &[(String, i32)],
) -> Result<BTreeMap<(String, i32), i64>, Error> {
    let failed = |error| classify(&format!("read the offsets of group {group}"), &error, &settings.shown);
    let (consumer, list) = reader(settings, group, partitions)?;
    let mut found = BTreeMap::new();
    for element in committed(&consumer, &list).map_err(failed)?.elements() {
        element.error().map_err(failed)?;
        if let Offset::Offset(offset) = element.offset() {
            found.insert((element.topic().to_owned(), element.partition()), offset);
        }
    }
    Ok(found)
}

/// Committed offsets and metadata of a group, for the partitions that it has committed, hears or owns. Blocks.
fn backlogs(
    settings: &Settings,
    group: &str,
    work: &str,
    heard: &BTreeSet<String>,
    partitions: &[(String, i32)],
) -> Result<Vec<Backlog>, Error> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |error| classify(&format!("read the offsets of group {group}"), &error, &settings.shown);
    let (consumer, list) = reader(settings, group, partitions)?;
    let mut backlogs = Vec::new();
    let committed = committed(&consumer, &list).map_err(failed)?;
    for element in committed.elements() {
        let (topic, number) = (element.topic(), element.partition());
        let (offset, memo) = match element.offset() {
            Offset::Offset(offset) => (Some(offset), Memo::read(element.metadata(), offset)),
            _ if heard.contains(topic) || topic == work => (None, None),
            _ => continue,
        };
        let (low, high) = consumer.fetch_watermarks(topic, number, ASK).map_err(failed)?;
        backlogs.push(Backlog {
            topic: topic.to_owned(),
            number,
            committed: offset.unwrap_or(low).max(low),
            high,
            held_up: false,
            memo: memo.unwrap_or_default(),
        });
        if let Some(backlog) = backlogs.last_mut() {
            backlog.held_up = is_held_up(backlog.behind(), element.metadata().len());
        }
    }
    Ok(backlogs)
}

impl Inspect for KafkaInspect {
    fn status<'a>(&'a self, queues: &'a [QueueName]) -> BoxFuture<'a, Result<Vec<QueueStatus>, Error>> {
        Box::pin(async move { Ok(self.look(queues).await?.into_iter().map(|(status, _)| status).collect()) })
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<KnownQueue>, Error>> {
        Box::pin(async move {
            let cluster = self.dead.topics.cluster().await?;
            let marks = self.marks().await?;
            let now = self.dead.clock.now();
            let mut known = Vec::new();
            for queue in self.known(&cluster) {
                let work = names::work(self.namespace(), &queue);
                let topics: BTreeSet<String> = self
                    .backlogs(&queue, &cluster)
                    .await?
                    .into_iter()
                    .map(|backlog| backlog.topic)
                    .filter(|topic| *topic != work)
                    .collect();
                let workers = Some(marks.workers(&queue, now).0);
                known.push(KnownQueue { name: queue, topics: topics.into_iter().collect(), workers });
            }
            Ok(known)
        })
    }

    fn forget<'a>(&'a self, queue: &'a QueueName, even_with_jobs: bool) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            let status = self.status(std::slice::from_ref(queue)).await?;
            let status = status.first().cloned().unwrap_or_default();
            let workers = status.workers.unwrap_or(0);
            let jobs = [status.ready, status.retrying, status.scheduled].into_iter().flatten().sum();
            may_forget(queue, workers, jobs, even_with_jobs)?;
            self.dead.topics.delete_group(&names::group(self.namespace(), queue)).await?;
            // Who comes next begins afresh, and is not taken for one that has lost its place.
            for (of, topic) in self.marks().await?.begun.keys().filter(|(of, _)| of == queue.as_str()) {
                let mark = marks::begun(of, topic, None);
                self.dead.publisher.confirm(&names::marks(self.namespace()), &mark).await?;
            }
            self.dead.topics.delete(&[&names::work(self.namespace(), queue)]).await?;
            let (dead, _) = self.dead.depth(queue).await?;
            if dead == 0 {
                self.dead.topics.delete(&[&names::dead(self.namespace(), queue)]).await?;
            }
            Ok(jobs)
        })
    }

    fn doctor(&self) -> BoxFuture<'_, Result<Vec<Finding>, Error>> {
        Box::pin(async move {
            let cluster = self.dead.topics.cluster().await?;
            let heard: BTreeSet<&Topic> = self.queues.iter().flat_map(|queue| &queue.topics).collect();
            let ours: Vec<String> = cluster
                .topics
                .keys()
                .filter(|topic| {
                    names::is_ours(self.namespace(), topic) || heard.iter().any(|heard| heard.as_str() == *topic)
                })
                .cloned()
                .collect();
            let settings = self.dead.topics.settings(&ours).await?;
            let mut ages = BTreeMap::new();
            let mut findings = Vec::new();
            for (status, held) in self.look(&[]).await? {
                findings.extend(held.iter().map(|held| held.finding(&status.name)));
                let topics = self.queues.iter().filter(|queue| queue.name.as_str() == status.name);
                for topic in topics.flat_map(|queue| &queue.topics) {
                    let age = status.oldest_age.unwrap_or_default();
                    let oldest: &mut Duration = ages.entry(topic.as_str().to_owned()).or_default();
                    *oldest = (*oldest).max(age);
                }
            }
            let own = |topic: &str| names::is_ours(self.namespace(), topic);
            findings.extend(doctor::examine(&cluster, &settings, &ages, own));
            if self.dead.transactions_denied().await? {
                findings.push(doctor::no_transactions(&self.dead.settings.shown));
            }
            for topic in heard.iter().filter(|topic| !cluster.topics.contains_key(topic.as_str())) {
                findings.push(doctor::missing(topic.as_str()));
            }
            Ok(findings)
        })
    }

    fn present<'a>(&'a self, queues: &'a [(QueueName, usize)]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let topic = names::marks(self.namespace());
            self.dead.topics.ensure(&topic, Kind::Marks, None).await?;
            let until = self.dead.clock.now().after(self.dead.lease);
            self.present.store(true, Ordering::Relaxed);
            self.dead.publisher.confirm(&topic, &marks::worker(&self.worker, Some(until), queues)).await?;
            let begun = std::mem::take(&mut *self.begun.lock());
            for ((queue, of), partitions) in begun {
                let mark = marks::begun(&queue, &of, Some(partitions));
                if let Err(error) = self.dead.publisher.confirm(&topic, &mark).await {
                    self.begun.lock().entry((queue, of)).or_insert(partitions);
                    return Err(error);
                }
            }
            Ok(())
        })
    }

    fn expire_dead(&self) -> BoxFuture<'_, Result<Vec<(QueueName, u64)>, Error>> {
        Box::pin(async move {
            let expired = self.dead.expire().await?;
            if let Err(error) = self.trim().await {
                tracing::debug!(%error, "what is done with stays in our topics for now");
            }
            Ok(expired)
        })
    }
}
