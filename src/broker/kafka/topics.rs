//! Topics: which are there, and creating ours where we may.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::super::{Error, Options};
use super::config::Settings;
use super::context::Context;
use super::login::Renewal;
use super::names;
use crate::message::Namespace;

/// So long a token is used without asking for another.
const RENEW: Duration = Duration::from_secs(60);

/// So long a broker that does not answer is heard for a reason.
const HEAR: Duration = Duration::from_secs(1);

/// What the cluster says of itself.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// How many brokers there are.
    pub brokers: usize,
    /// Partitions of each topic.
    pub topics: BTreeMap<String, Vec<Seat>>,
}

/// A partition as the cluster describes it.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Its number.
    pub number: i32,
    /// Copies of it.
    pub replicas: usize,
}

/// Looks at topics and creates them.
pub struct Topics {
    admin: AdminClient<Context>,
    settings: Settings,
    timeout: Duration,
    known: Mutex<BTreeMap<String, usize>>,
    /// When it last got a token, and the password that it knows.
    login: Mutex<(Instant, Renewal)>,
    may_create: bool,
    replication: Option<i32>,
    partitions: Option<i32>,
    /// Topics of ours that have a partition each, unless the configuration says more.
    single: BTreeSet<String>,
}

/// The kinds of topics that we create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Where events are published.
    Events,
    /// Jobs of one queue: no time limit.
    Work,
    /// A delay tier: no time limit.
    Delay,
    /// Dead letters: no time limit, and room for a record at the limit with our headers on it.
    Dead,
    /// Marks: compacted, one partition.
    Marks,
}

impl Topics {
    /// Looks through a client of its own.
    pub fn new(settings: &Settings, may_create: bool, options: &Options) -> Result<Arc<Self>, Error> {
        use rdkafka::config::FromClientConfigAndContext as _;
        // A group shares out partitions by their number alone, topic after topic: were there as many of a queue's own
        // topic, the second worker would get all of what the queue hears, and the first would be left with its own.
        let hearing = options.queues.iter().filter(|queue| !queue.topics.is_empty());
        let single = hearing.map(|queue| names::work(&options.namespace, &queue.name));
        let context = Context::new(settings.login().token_command);
        let admin = AdminClient::from_config_and_context(&settings.admin(), context)
            .map_err(|error| Error::Refused(format!("kafka: {error}")))?;
        settings.login().enter(admin.inner()).map_err(Error::Refused)?;
        Ok(Arc::new(Self {
            admin,
            login: Mutex::new((Instant::now(), Renewal::new(&settings.login()))),
            settings: settings.clone(),
            timeout: options.timeout,
            known: Mutex::default(),
            may_create,
            replication: options.kafka.replication,
            partitions: options.kafka.partitions,
            single: single.collect(),
        }))
    }

    /// What the broker's answer means for us.
    pub fn error(&self, what: &str, error: &KafkaError) -> Error {
        if let Some(refused) = self.admin.inner().context().refused() {
            return Error::Refused(refused);
        }
        classify(what, error, &self.settings.shown)
    }

    /// The whole cluster.
    pub async fn cluster(self: &Arc<Self>) -> Result<Cluster, Error> {
        let this = self.clone();
        blocking(move || {
            let stale = {
                let mut login = this.login.lock();
                login.1.renew(this.admin.inner());
                let stale = login.0.elapsed() > RENEW;
                if stale {
                    login.0 = Instant::now();
                }
                stale
            };
            if stale && let Err(why) = this.settings.login().enter(this.admin.inner()) {
                tracing::warn!(why, "no new token");
            }
            let metadata = this.admin.inner().fetch_metadata(None, this.timeout);
            let metadata = metadata.map_err(|error| match refused(&this.settings) {
                (Some(why), _) => Error::Refused(format!("{why} ({})", this.settings.shown)),
                (None, hint) => match (this.error("read the cluster's metadata", &error), hint) {
                    (Error::Unavailable(text), Some(hint)) => Error::Unavailable(format!("{text}; {hint}")),
                    (error, _) => error,
                },
            })?;
            this.admin.inner().context().admitted();
            let mut cluster = Cluster { brokers: metadata.brokers().len(), ..Cluster::default() };
            for topic in metadata.topics() {
                let seats = topic
                    .partitions()
                    .iter()
                    .map(|partition| Seat { number: partition.id(), replicas: partition.replicas().len() })
                    .collect();
                cluster.topics.insert(topic.name().to_owned(), seats);
            }
            *this.known.lock() =
                cluster.topics.iter().map(|(name, seats): (_, &Vec<Seat>)| (name.clone(), seats.len())).collect();
            Ok(cluster)
        })
        .await
    }

    /// Sees to it that a topic is there, and says how many partitions it has. `like`: as many as that topic has.
    pub async fn ensure(self: &Arc<Self>, topic: &str, kind: Kind, like: Option<usize>) -> Result<usize, Error> {
        if let Some(count) = self.known.lock().get(topic) {
            return Ok(*count);
        }
        let cluster = self.cluster().await?;
        if let Some(seats) = cluster.topics.get(topic) {
            return Ok(seats.len());
        }
        let partitions = match kind {
            Kind::Marks => 1,
            Kind::Work if self.single.contains(topic) => self.partitions.unwrap_or(1),
            _ => self.partitions.or(like.and_then(|like| i32::try_from(like).ok())).unwrap_or(4),
        };
        let replication = self.replication.unwrap_or(if cluster.brokers >= 3 { 3 } else { 1 });
        let settings: &[(&str, &str)] = match kind {
            Kind::Events => &[],
            Kind::Work | Kind::Delay | Kind::Dead => &[
                ("retention.ms", "-1"),
                ("retention.bytes", "-1"),
                ("max.message.bytes", LARGE),
                ("message.timestamp.type", "CreateTime"),
            ],
            Kind::Marks => &[("cleanup.policy", "compact")],
        };
        if !self.may_create {
            let configs: String = settings.iter().map(|(name, value)| format!(" --config {name}={value}")).collect();
            return Err(Error::Refused(format!(
                "topic {topic} is not there and may not be created by us; create it: kafka-topics.sh --create --topic \
                 {topic} --partitions {partitions} --replication-factor {replication}{configs}"
            )));
        }
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(self.timeout)).request_timeout(Some(self.timeout));
        let results = self.admin.create_topics([&new], &options).await;
        let results = results.map_err(|error| self.error(&format!("create topic {topic}"), &error))?;
        match results.into_iter().next() {
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | Some(Ok(_)) | None => {}
            Some(Err((_, code))) => {
                return Err(classify(
                    &format!("create topic {topic}"),
                    &KafkaError::AdminOp(code),
                    &self.settings.shown,
                ));
            }
        }
        tracing::info!(topic, partitions, replication, "topic created");
        // Its leaders are elected after the answer.
        let deadline = tokio::time::Instant::now() + self.timeout;
        loop {
            let cluster = self.cluster().await?;
            match cluster.topics.get(topic) {
                Some(seats) if !seats.is_empty() => return Ok(seats.len()),
                _ if tokio::time::Instant::now() > deadline => {
                    return Err(Error::Unavailable(format!("topic {topic} was created, but has no leader yet")));
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Forgets what is known of a topic: it may be gone.
    pub fn forget(&self, topic: &str) {
        self.known.lock().remove(topic);
    }

    /// Deletes topics; one that is not there is none.
    pub async fn delete(&self, topics: &[&str]) -> Result<(), Error> {
        let options = AdminOptions::new().operation_timeout(Some(self.timeout)).request_timeout(Some(self.timeout));
        let results = self.admin.delete_topics(topics, &options).await;
        for result in results.map_err(|error| self.error("delete topics", &error))? {
            if let Err((topic, code)) = result
                && code != RDKafkaErrorCode::UnknownTopicOrPartition
            {
                return Err(classify(
                    &format!("delete topic {topic}"),
                    &KafkaError::AdminOp(code),
                    &self.settings.shown,
                ));
            }
        }
        topics.iter().for_each(|topic| self.forget(topic));
        Ok(())
    }

    /// Deletes a group; one that is not there is none.
    pub async fn delete_group(&self, group: &str) -> Result<(), Error> {
        let options = AdminOptions::new().operation_timeout(Some(self.timeout)).request_timeout(Some(self.timeout));
        let results = self.admin.delete_groups(&[group], &options).await;
        for result in results.map_err(|error| self.error("delete the group", &error))? {
            if let Err((group, code)) = result
                && !matches!(code, RDKafkaErrorCode::GroupIdNotFound)
            {
                return Err(classify(
                    &format!("delete group {group}"),
                    &KafkaError::AdminOp(code),
                    &self.settings.shown,
                ));
            }
        }
        Ok(())
    }

    /// Removes what lies below these offsets (topic, partition, offset), and says where each log begins then.
    pub async fn trim(&self, ends: &[(String, i32, i64)]) -> Result<Vec<i64>, Error> {
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        let failed = |error: &KafkaError| self.error("remove what is done with", error);
        let mut list = TopicPartitionList::new();
        for (topic, number, end) in ends {
            list.add_partition_offset(topic, *number, Offset::Offset(*end)).map_err(|error| failed(&error))?;
        }
        let options = AdminOptions::new().operation_timeout(Some(self.timeout)).request_timeout(Some(self.timeout));
        let removed = self.admin.delete_records(&list, &options).await.map_err(|error| failed(&error))?;
        let start = |(topic, number, _): &(String, i32, i64)| {
            let element = removed.find_partition(topic, *number);
            // What was not removed begins where it did; 0 is a safe answer.
            element.and_then(|element| element.error().ok().and(element.offset().to_raw())).unwrap_or(0)
        };
        Ok(ends.iter().map(start).collect())
    }

    /// Settings of topics, by name.
    pub async fn settings(&self, topics: &[String]) -> Result<BTreeMap<String, BTreeMap<String, String>>, Error> {
        let resources: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let options = AdminOptions::new().request_timeout(Some(self.timeout));
        let results = self.admin.describe_configs(&resources, &options).await;
        let results = results.map_err(|error| self.error("read the settings of topics", &error))?;
        let mut found = BTreeMap::new();
        for resource in results.into_iter().flatten() {
            if let rdkafka::admin::OwnedResourceSpecifier::Topic(topic) = resource.specifier {
                let entries =
                    resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect();
                found.insert(topic, entries);
            }
        }
        Ok(found)
    }
}

/// What a person must change before a broker lets us in, if that is why it does not answer. An admin client hears
/// nothing of it; a consumer that is polled does. Blocks.
fn refused(settings: &Settings) -> (Option<String>, Option<&'static str>) {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    let context = Context::new(settings.login().token_command);
    let consumer: BaseConsumer<Context> = match settings.reader("_").create_with_context(context) {
        Ok(consumer) => consumer,
        Err(_) => return (None, None),
    };
    consumer.context().close();
    if let Err(why) = settings.login().enter(consumer.client()) {
        return (Some(why), None);
    }
    // What it answers is known; what it says beside that comes by the context.
    let _ = consumer.fetch_metadata(None, HEAR);
    let until = Instant::now() + HEAR;
    while Instant::now() < until && consumer.context().refused().is_none() {
        drop(consumer.poll(Duration::from_millis(50)));
    }
    (consumer.context().refused(), consumer.context().hint())
}

/// Sees to it that a topic of ours is there, from a thread outside of the runtime.
pub type Ensure = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Such a function; to be called on the runtime that its calls are to run on.
pub fn ensure(topics: &Arc<Topics>, namespace: &Namespace) -> Ensure {
    let (topics, runtime) = (topics.clone(), tokio::runtime::Handle::current());
    let (work, dead) = (format!("{namespace}.work."), format!("dlq.{namespace}."));
    Arc::new(move |topic| {
        if topics.known.lock().contains_key(topic) {
            return Ok(());
        }
        let kind = match topic {
            topic if topic.starts_with(&work) => Kind::Work,
            topic if topic.starts_with(&dead) => Kind::Dead,
            _ => Kind::Delay,
        };
        runtime.block_on(topics.ensure(topic, kind, None)).map(|_| ()).map_err(|error| error.to_string())
    })
}

/// 34 MiB: whatever a topic of theirs takes fits with our headers on it.
const LARGE: &str = "35651584";

/// Runs what waits for librdkafka off the runtime's threads.
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(error) => Err(Error::Unavailable(format!("the call ended early: {error}"))),
    }
}

/// What an answer of the broker means: 69 where waiting may help, 78 where a person must change something.
pub fn classify(what: &str, error: &KafkaError, address: &str) -> Error {
    use RDKafkaErrorCode as Code;
    let text = format!("could not {what} at {address}: {error}");
    match error.rdkafka_error_code() {
        Some(
            Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::SSL
            | Code::InvalidReplicationFactor
            | Code::InvalidConfig
            | Code::InvalidTopic
            | Code::PolicyViolation
            | Code::UnsupportedVersion
            | Code::InvalidArgument,
        ) => Error::Refused(text),
        Some(Code::MessageSizeTooLarge | Code::InvalidRecord) => Error::Rejected(text),
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::GroupIdNotFound) => Error::NotFound(text),
        _ => Error::Unavailable(text),
    }
}
