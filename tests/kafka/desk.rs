//! One broker for all of these tests, each with topics and a namespace of its own, and workers on it.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use windlass::broker::{
    self, Broker, Credit, Delivery, Destination, Disposition, Opened, Options, Publication, Queue, Role, Start,
};
use windlass::message::{Failure, Headers, JobName, Message, Namespace, QueueName, Reason, Topic};
use windlass::time::Clock;

use crate::support::kafka::Kafka;

/// Whatever has to be elected or rebalanced before.
pub const SOON: Duration = Duration::from_secs(60);

/// A namespace on the shared broker.
pub struct Desk {
    /// The broker's address.
    pub address: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// Settings that a test may change before it connects.
    pub kafka: broker::KafkaOptions,
    /// By how much the clocks of those who connect from now on are ahead.
    pub ahead: Duration,
    queues: Vec<Queue>,
    workers: AtomicU32,
}

impl Desk {
    /// `None`: Kafka is not here.
    pub fn new() -> Option<Self> {
        static BROKER: OnceLock<Option<Kafka>> = OnceLock::new();
        let address = match std::env::var("WINDLASS_TEST_KAFKA_URL") {
            Ok(url) => url,
            Err(_) => BROKER.get_or_init(Kafka::start).as_ref()?.url(),
        };
        Some(Self::at(address))
    }

    /// On a broker of the test's own.
    pub fn at(address: String) -> Self {
        static NAMES: AtomicU32 = AtomicU32::new(0);
        if std::env::var_os("RUST_LOG").is_some() {
            let filter = tracing_subscriber::EnvFilter::from_default_env();
            // A second test finds it set.
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
        let name = format!("t{}-{}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed));
        Self {
            address,
            namespace: Namespace::new(&name).unwrap(),
            kafka: broker::KafkaOptions::default(),
            ahead: Duration::ZERO,
            queues: Vec::new(),
            workers: AtomicU32::new(0),
        }
    }

    /// The same namespace for others, with no queue yet.
    pub fn again(&self) -> Self {
        Self {
            address: self.address.clone(),
            namespace: self.namespace.clone(),
            kafka: self.kafka.clone(),
            ahead: self.ahead,
            queues: Vec::new(),
            workers: AtomicU32::new(self.workers.load(Ordering::Relaxed)),
        }
    }

    /// A topic's name that no other test has.
    pub fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.namespace)
    }

    /// A queue on these topics.
    pub fn queue(&mut self, name: &str, topics: &[&str]) -> Queue {
        let queue = Queue {
            name: QueueName::new(name).unwrap(),
            topics: topics.iter().map(|topic| Topic::new(&self.topic(topic)).unwrap()).collect(),
            job: JobName::new(name).unwrap(),
            slots: NonZeroUsize::new(16).unwrap(),
            ordered: false,
            start: Start::Earliest,
            max_crashes: 3,
            keep_dead: None,
        };
        self.queues.push(queue.clone());
        queue
    }

    /// The clock of those who connect now.
    pub fn clock(&self) -> Clock {
        match self.ahead {
            Duration::ZERO => Clock::System,
            ahead => Clock::Tokio { base: Clock::System.now().after(ahead), since: tokio::time::Instant::now() },
        }
    }

    /// The options of those who connect now.
    pub fn options(&self) -> Options {
        let worker = self.workers.fetch_add(1, Ordering::Relaxed);
        Options {
            namespace: self.namespace.clone(),
            namespace_set: true,
            role: Role::Worker,
            timeout: Duration::from_secs(10),
            lease: Duration::from_secs(6),
            grace: Duration::from_secs(3),
            queues: self.queues.clone(),
            worker: format!("w{worker}").into(),
            clock: self.clock(),
            sqlite: broker::SqliteOptions::default(),
            nats: broker::NatsOptions::default(),
            kafka: self.kafka.clone(),
        }
    }

    /// A client of librdkafka's own, for what another tool would do.
    pub fn client(&self) -> rdkafka::ClientConfig {
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", self.address.trim_start_matches("kafka://"));
        config
    }

    /// The first and the next offset of a partition; `None`: the topic is not there.
    pub fn bounds(&self, topic: &str, partition: i32) -> Option<(i64, i64)> {
        use rdkafka::consumer::Consumer as _;
        let consumer: rdkafka::consumer::BaseConsumer = self.client().set("group.id", "bounds").create().unwrap();
        consumer.fetch_watermarks(topic, partition, SOON).ok()
    }

    /// What the group of a queue has committed of each partition of a topic.
    pub fn committed(&self, queue: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
        use rdkafka::consumer::Consumer as _;
        let group = format!("{}.{queue}", self.namespace);
        let consumer: rdkafka::consumer::BaseConsumer = self.client().set("group.id", group).create().unwrap();
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_range(topic, 0, partitions - 1);
        let committed = consumer.committed_offsets(list, SOON).unwrap();
        let offset = |offset| if let rdkafka::Offset::Offset(offset) = offset { Some(offset) } else { None };
        committed.elements().iter().map(|element| offset(element.offset())).collect()
    }

    /// The names that the broker gave to the members of a queue's group.
    pub fn members(&self, queue: &str) -> Vec<String> {
        use rdkafka::consumer::Consumer as _;
        let group = format!("{}.{queue}", self.namespace);
        let consumer: rdkafka::consumer::BaseConsumer = self.client().set("group.id", "members").create().unwrap();
        let list = consumer.fetch_group_list(Some(&group), SOON).unwrap();
        let members = list.groups().iter().flat_map(|group| group.members());
        let mut names: Vec<String> = members.map(|member| member.id().to_owned()).collect();
        names.sort();
        names
    }

    /// How many partitions each member of a queue's group owns, ascending.
    pub fn owned(&self, queue: &str) -> Vec<usize> {
        self.shares(queue, |_| true)
    }

    /// How many partitions of these topics each member of a queue's group owns, ascending.
    pub fn shares(&self, queue: &str, counts: impl Fn(&str) -> bool) -> Vec<usize> {
        use rdkafka::consumer::Consumer as _;
        let group = format!("{}.{queue}", self.namespace);
        let consumer: rdkafka::consumer::BaseConsumer = self.client().set("group.id", "members").create().unwrap();
        let list = consumer.fetch_group_list(Some(&group), SOON).unwrap();
        let members = list.groups().iter().flat_map(|group| group.members());
        let owned = |assignment: &[u8]| {
            let topics = topics(assignment);
            topics.into_iter().filter(|(topic, _)| counts(topic)).map(|(_, partitions)| partitions).sum()
        };
        let mut owned: Vec<usize> = members.map(|member| owned(member.assignment().unwrap_or_default())).collect();
        owned.sort_unstable();
        owned
    }

    /// Creates a topic as another tool would, with these settings.
    pub async fn create(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
        let admin: AdminClient<_> = self.client().create().unwrap();
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        admin.create_topics([&new], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    }

    /// Removes the records of a topic's partition below an offset.
    pub async fn remove(&self, topic: &str, partition: i32, below: i64) {
        use rdkafka::admin::{AdminClient, AdminOptions};
        let admin: AdminClient<_> = self.client().create().unwrap();
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(topic, partition, rdkafka::Offset::Offset(below)).unwrap();
        admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    }

    /// Produces a record as another tool would.
    pub async fn produce(&self, topic: &str, partition: i32, headers: &[(&str, &str)], body: &str) {
        use rdkafka::message::{Header, OwnedHeaders};
        use rdkafka::producer::{FutureProducer, FutureRecord};
        let producer: FutureProducer = self.client().create().unwrap();
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }));
        let record = FutureRecord::<(), str>::to(topic).partition(partition).headers(headers).payload(body);
        producer.send(record, SOON).await.map_err(|(error, _)| error).unwrap();
    }

    /// A connection, as a worker has one.
    pub async fn connect(&self) -> Arc<dyn Broker> {
        let options = self.options();
        broker::connect(&self.address, options).await.expect("the broker lets us in")
    }

    /// Publishes bodies to a topic of [`Desk::topic`], each under a key where one is given.
    pub async fn publish(&self, broker: &Arc<dyn Broker>, topic: &str, bodies: &[(&str, Option<&str>)]) {
        let batch = bodies.iter().enumerate().map(|(index, (body, key))| Publication {
            destination: Destination::Topic(Topic::new(&self.topic(topic)).unwrap()),
            message: Message {
                headers: Headers::new(),
                body: Some(Bytes::copy_from_slice(body.as_bytes())),
                key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
            },
            id: format!("{topic}-{index}"),
            allow_unheard: true,
        });
        for result in broker.publisher().publish(batch.collect()).await {
            result.expect("it is stored");
        }
    }
}

/// Room for so many.
pub fn credit(jobs: usize) -> Credit {
    Credit { jobs, fresh_floor: 0, retry_floor: 0, bytes: 64 << 20, suspect: true }
}

/// The next `count` deliveries, however many calls it takes.
pub async fn take(opened: &mut Opened, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    let deadline = tokio::time::Instant::now() + SOON;
    while taken.len() < count {
        let more = tokio::time::timeout_at(deadline, opened.source.receive(credit(count - taken.len()))).await;
        taken.extend(more.expect("they come in time").expect("the source is well"));
    }
    taken
}

/// To the dead letters, at the first attempt.
pub fn dead() -> Disposition {
    let now = Clock::System.now();
    Disposition::DeadLetter {
        reason: Reason::Permanent,
        failure: Failure::new("E", "no", now, now),
        attempts: 1,
        event_id: None,
        job: JobName::new("q").unwrap(),
    }
}

/// The body as text.
pub fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.as_deref().unwrap_or_default().to_vec()).unwrap()
}

/// Whether nothing comes within `time`.
pub async fn nothing_within(opened: &mut Opened, time: Duration) -> bool {
    let deadline = tokio::time::Instant::now() + time;
    loop {
        match tokio::time::timeout_at(deadline, opened.source.receive(credit(1))).await {
            Err(_) => return true,
            Ok(got) if got.as_ref().expect("the source is well").is_empty() => {}
            Ok(_) => return false,
        }
    }
}

/// How many partitions of each topic are in a member's assignment: version, then topics, each with a name and its
/// partitions.
fn topics(assignment: &[u8]) -> Vec<(String, usize)> {
    let number = |at: usize, size: usize| {
        assignment.get(at..at + size).map_or(0, |bytes| bytes.iter().fold(0, |all, byte| all << 8 | usize::from(*byte)))
    };
    let (mut at, mut topics) = (6, Vec::new());
    for _ in 0..number(2, 4) {
        let name = assignment.get(at + 2..at + 2 + number(at, 2)).unwrap_or_default();
        at += 2 + number(at, 2);
        topics.push((String::from_utf8_lossy(name).into_owned(), number(at, 4)));
        at += 4 + 4 * number(at, 4);
    }
    topics
}
