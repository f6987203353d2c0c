//! A raw `BaseConsumer` loop that stores each offset, with the settings that were measured to be fastest: a queue of
//! 4 MiB a partition, and 2 ms of pause where it is full.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message as _;

use super::config::Settings;
use super::topics::{Kind, Topics, blocking};
use crate::broker::yardstick::{Seen, Yardstick};
use crate::broker::{Error, Options};

/// A broker that sends nothing for so long has lost something.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a group is waited for whose members are leaving.
const LEAVING: Duration = Duration::from_secs(3);

/// See the module's documentation.
pub struct KafkaYardstick {
    address: String,
    settings: Settings,
    topics: Arc<Topics>,
    timeout: Duration,
}

impl KafkaYardstick {
    /// Connects with the first question.
    pub fn new(address: &str, options: &Options) -> Result<Self, Error> {
        let settings = Settings::new(address, options)?;
        let topics = Topics::new(&settings, true, options)?;
        Ok(Self { address: address.to_owned(), settings, topics, timeout: options.timeout })
    }

    fn drain(&self, topic: &str, count: usize, seen: Seen<'_>) -> Result<(), Error> {
        let failed = |error: rdkafka::error::KafkaError| self.topics.error("read by a raw loop", &error);
        let mut config = self.settings.admin();
        config
            .set("group.id", format!("{topic}.raw"))
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("queued.max.messages.kbytes", "4096")
            .set("fetch.queue.backoff.ms", "2");
        let consumer: BaseConsumer = config.create().map_err(failed)?;
        consumer.subscribe(&[topic]).map_err(failed)?;
        let (mut done, mut last) = (0, Instant::now());
        while done < count {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    seen(message.payload().unwrap_or_default());
                    consumer.store_offset(topic, message.partition(), message.offset()).map_err(failed)?;
                    done += 1;
                    if done % 1_024 == 0 {
                        last = Instant::now();
                    }
                }
                Some(Err(error)) => return Err(failed(error)),
                None if last.elapsed() > SILENCE => {
                    return Err(Error::Unavailable(format!("{}: nothing more came", self.settings.shown)));
                }
                None => {}
            }
        }
        consumer.commit_consumer_state(CommitMode::Sync).map_err(failed)
    }

    /// Topics and groups whose names begin so, those of dead letters by what stands behind `dlq.`.
    async fn names(&self, prefix: &str) -> Result<(Vec<String>, Vec<String>), Error> {
        let bare = |name: &str| name.strip_prefix("dlq.").unwrap_or(name).starts_with(prefix);
        let topics = self.topics.cluster().await?.topics.into_keys().filter(|name| bare(name)).collect();
        let (settings, timeout) = (self.settings.clone(), self.timeout);
        let groups = blocking(move || {
            let failed = |error| super::topics::classify("list the groups", &error, &settings.shown);
            let client: BaseConsumer = settings.admin().create().map_err(failed)?;
            let list = client.fetch_group_list(None, timeout).map_err(failed)?;
            Ok(list.groups().iter().map(|group| group.name().to_owned()).collect::<Vec<_>>())
        });
        let groups = groups.await?.into_iter().filter(|name| bare(name)).collect();
        Ok((topics, groups))
    }
}

impl Yardstick for KafkaYardstick {
    fn loops(&self) -> &'static [&'static str] {
        &["BaseConsumer, offsets stored"]
    }

    fn address(&self, _: &str) -> String {
        self.address.clone()
    }

    fn create<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.topics.ensure(topic, Kind::Events, None).await.map(drop) })
    }

    fn consume<'a>(
        &'a self,
        topic: &'a str,
        _: usize,
        count: usize,
        seen: Seen<'a>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.drain(topic, count, seen) })
    }

    fn runs<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, Error>> {
        Box::pin(async move {
            let (topics, groups) = self.names(prefix).await?;
            let run = |name: &String| {
                let name = name.strip_prefix("dlq.").unwrap_or(name);
                name.split('.').next().unwrap_or(name).to_owned()
            };
            let runs: BTreeSet<String> = topics.iter().chain(&groups).map(run).collect();
            Ok(runs.into_iter().collect())
        })
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let (topics, groups) = self.names(name).await?;
            if !topics.is_empty() {
                self.topics.delete(&topics.iter().map(String::as_str).collect::<Vec<_>>()).await?;
            }
            for group in groups {
                // A member that is just leaving keeps its group for a moment; one that was killed, until its session
                // has ended. The broker forgets an empty group by itself after `offsets.retention.minutes`.
                let deadline = Instant::now() + LEAVING;
                while let Err(error) = self.topics.delete_group(&group).await {
                    if Instant::now() > deadline {
                        tracing::debug!(group, %error, "the group stays");
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            Ok(())
        })
    }
}
