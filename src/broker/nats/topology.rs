//! Streams and durables: what is there, what is theirs, what we create, and what we refuse.
//!
//! A topic that a stream of theirs covers is consumed from there and that stream is never changed. A topic that no
//! stream covers becomes a subject of `N_events`. A server accepts configuration that it does not know and ignores
//! it, so what a feature needs is read from the echo, never from the absence of an error.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::api::{Api, Error, Host, Stream, code};
use super::names::Names;
use super::wire::{covers, overlap};
use crate::broker::{self, NatsOptions, Queue, Start};
use crate::message::Topic;

/// Window in which the server drops a message whose id it has seen.
const DUPLICATES: Duration = Duration::from_secs(120);
/// Deliveries that may be unsettled at once, over all workers; those that wait for their time count.
const MAX_ACK_PENDING: u64 = 1_000_000;
/// Pull requests that may wait at once. It cannot be changed later.
const MAX_WAITING: u64 = 4_096;

/// What a queue reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The stream.
    pub stream: String,
    /// The durable.
    pub durable: String,
    /// When the stream was made.
    pub created: crate::time::Timestamp,
    /// Whether stream and durable live on a single server.
    pub single: bool,
    /// Events that wait there at the start.
    pub pending: u64,
    /// What to make it of where somebody removes it under a running worker. `None` where it may not be made, or where
    /// the stream keeps what was settled too, so that all of it would run again: that is for a person to decide.
    pub again: Option<Value>,
}

/// Finds and makes streams and durables.
pub struct Topology<'a> {
    /// JetStream.
    pub api: &'a Api,
    /// Our names.
    pub names: &'a Names,
    /// `[nats]`
    pub options: &'a NatsOptions,
    /// Whether this process may create what is missing.
    pub create: bool,
}

/// What the stream of work can do, by its echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The server publishes a record when it is due (2.12).
    pub schedules: bool,
    /// A record may have a time to live (2.11).
    pub ttl: bool,
}

impl Topology<'_> {
    /// The stream that stores all that `topic` covers; `None` where no stream stores any of it.
    pub async fn find(&self, topic: &Topic) -> Result<Option<Stream>, broker::Error> {
        let doing = || format!("find the stream of {topic}");
        let names = self.api.names(topic.as_str()).await.map_err(|e| e.into_broker(&doing()))?;
        let mut partly = Vec::new();
        for name in names {
            let Some(stream) = self.api.stream(&name).await.map_err(|e| e.into_broker(&doing()))? else { continue };
            if stream.subjects().iter().any(|subject| covers(subject, topic.as_str())) {
                return Ok(Some(stream));
            }
            if name != self.names.events() {
                partly.push(name);
            }
        }
        if partly.is_empty() {
            return Ok(None);
        }
        Err(broker::Error::Refused(format!(
            "{topic} is stored only in part, by {}; name topics that one stream stores whole",
            partly.join(", ")
        )))
    }

    /// The stream that stores `topic`, made where nobody has one.
    pub async fn cover(&self, topic: &Topic) -> Result<Stream, broker::Error> {
        if let Some(stream) = self.find(topic).await? {
            return Ok(stream);
        }
        let name = self.names.events();
        let doing = format!("have {topic} stored in {name}");
        if !self.create {
            return Err(self.must_exist(&format!("no stream stores {topic}"), &self.events_config(&[topic.as_str()])));
        }
        // Another worker may add a topic of its own at the same time: look, change, look again.
        for _ in 0..8 {
            let done = match self.api.stream(&name).await.map_err(|e| e.into_broker(&doing))? {
                None => self.make(self.events_config(&[topic.as_str()])).await,
                Some(stream) if stream.subjects().iter().any(|s| covers(s, topic.as_str())) => return Ok(stream),
                Some(stream) => {
                    let mut config = stream.config.clone();
                    let kept = stream.subjects().into_iter().filter(|subject| !covers(topic.as_str(), subject));
                    config["subjects"] = kept.chain([topic.as_str()]).collect();
                    self.api.put_stream("UPDATE", &config).await
                }
            };
            match done {
                Ok(stream) if stream.subjects().iter().any(|s| covers(s, topic.as_str())) => {
                    // Somebody who read before us may overwrite it just now; what counts is what stands after.
                    let again = self.api.stream(&name).await.map_err(|e| e.into_broker(&doing))?;
                    if let Some(stream) = again.filter(|s| s.subjects().iter().any(|s| covers(s, topic.as_str()))) {
                        tracing::info!(topic = %topic, stream = %name, "the topic is stored from now on");
                        return Ok(stream);
                    }
                }
                Ok(_) => {}
                Err(error) if matches!(error.err_code(), code::STREAM_EXISTS) => {}
                Err(error) => return Err(error.into_broker(&doing)),
            }
        }
        Err(broker::Error::Unavailable(format!("failed to {doing}: others keep changing it")))
    }

    /// `N_work`, made or brought up to what the server can do. A stream with schedules may not have `discard: new`
    /// (10052), so nothing may limit it: what has no limit discards nothing.
    pub async fn work(&self) -> Result<(Stream, Features), broker::Error> {
        let config = json!({
            "name": self.names.work(), "subjects": self.names.work_subjects(), "retention": "workqueue",
            "storage": "file", "discard": "old", "max_age": 0, "max_msgs": -1, "max_bytes": -1, "max_consumers": -1,
            "duplicate_window": DUPLICATES.as_nanos() as u64, "allow_direct": true,
            "allow_msg_ttl": true, "allow_msg_schedules": true,
        });
        let stream = self.ours(config).await?;
        let features = Features { schedules: stream.flag("allow_msg_schedules"), ttl: stream.flag("allow_msg_ttl") };
        Ok((stream, features))
    }

    /// `N_dead`
    pub async fn dead(&self) -> Result<Stream, broker::Error> {
        self.ours(json!({
            "name": self.names.dead(), "subjects": self.names.dead_subjects(), "retention": "limits",
            "storage": "file", "discard": "new", "max_age": 0, "max_msgs": -1, "max_bytes": -1, "max_consumers": -1,
            "duplicate_window": DUPLICATES.as_nanos() as u64, "allow_direct": true,
        }))
        .await
    }

    fn events_config(&self, topics: &[&str]) -> Value {
        let keep = self.options.keep.unwrap_or(Duration::from_secs(7 * 86_400));
        json!({
            "name": self.names.events(), "subjects": topics, "retention": "limits", "storage": "file",
            "discard": "new", "max_age": keep.as_nanos() as u64, "max_msgs": -1, "max_bytes": -1, "max_consumers": -1,
            "duplicate_window": DUPLICATES.min(keep).as_nanos() as u64, "allow_direct": true,
        })
    }

    /// A stream of ours as `wanted` says: made where it is missing; features that the server learnt are switched on.
    async fn ours(&self, wanted: Value) -> Result<Stream, broker::Error> {
        let name = wanted["name"].as_str().unwrap_or_default().to_owned();
        let doing = format!("open the stream {name}");
        let stream = match self.api.stream(&name).await.map_err(|e| e.into_broker(&doing))? {
            Some(stream) => stream,
            None if !self.create => return Err(self.must_exist(&format!("there is no stream {name}"), &wanted)),
            None => self.make(wanted.clone()).await.map_err(|e| e.into_broker(&doing))?,
        };
        if stream.retention() != wanted["retention"] {
            return Err(broker::Error::Refused(format!(
                "the stream {name} has {} retention, and {} is needed; is the namespace another application's?",
                stream.retention(),
                wanted["retention"]
            )));
        }
        let limits = limits(&stream);
        if stream.config["discard"] != "new" && !limits.is_empty() {
            return Err(broker::Error::Refused(format!(
                "the stream {name} has discard: old and {}: when it is full it would delete jobs; take the limit away",
                limits.join(", ")
            )));
        }
        let missing = ["allow_msg_ttl", "allow_msg_schedules"]
            .into_iter()
            .filter(|flag| wanted[*flag] == true && !stream.flag(flag))
            .count();
        let lacks = |subject: &&Value| !stream.config["subjects"].as_array().is_some_and(|all| all.contains(subject));
        let subjects = wanted["subjects"].as_array().into_iter().flatten().filter(lacks).count();
        if (missing > 0 || subjects > 0) && self.create {
            let mut config = stream.config.clone();
            for flag in ["allow_msg_ttl", "allow_msg_schedules"] {
                if wanted[flag] == true {
                    config[flag] = json!(true);
                }
            }
            config["subjects"] = wanted["subjects"].clone();
            // A server that knows no better leaves it as it was, and so do we.
            return match self.api.put_stream("UPDATE", &config).await {
                Ok(stream) => Ok(stream),
                Err(_) if subjects == 0 => Ok(stream),
                Err(error) => Err(error.into_broker(&doing)),
            };
        }
        Ok(stream)
    }

    /// Makes a stream with the replicas that were asked for, or as many as the cluster has, up to three.
    async fn make(&self, mut config: Value) -> Result<Stream, Error> {
        let wanted = self.options.replicas;
        let clustered = self.api.link.client().server_info().cluster.is_some();
        let first = wanted.unwrap_or(if clustered { 3 } else { 1 });
        config["num_replicas"] = json!(first);
        match self.api.put_stream("CREATE", &config).await {
            Err(error) if wanted.is_none() && first > 1 && code::NO_PEERS.contains(&error.err_code()) => {
                config["num_replicas"] = json!(1);
                self.api.put_stream("CREATE", &config).await
            }
            done => done,
        }
    }

    fn must_exist(&self, what: &str, config: &Value) -> broker::Error {
        let name = config["name"].as_str().unwrap_or_default();
        broker::Error::Refused(format!(
            "{what}, and nats.create = false (or this command may not create it); \
             create it: nats request '$JS.API.STREAM.CREATE.{name}' '{config}'"
        ))
    }

    /// Every durable of a queue: over the streams that store its topics, and over its records.
    pub async fn subscribe(
        &self,
        queue: &Queue,
        lease: Duration,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Subscription>, broker::Error> {
        let mut streams: BTreeMap<String, (Stream, Vec<String>)> = BTreeMap::new();
        for topic in &queue.topics {
            let stream = self.cover(topic).await?;
            streams.entry(stream.name.clone()).or_insert_with(|| (stream, Vec::new())).1.push(topic.to_string());
        }
        let mut subscriptions = Vec::new();
        for (stream, topics) in streams.into_values() {
            self.check_theirs(&stream, queue, notes)?;
            subscriptions.push(self.durable(&stream, queue, &topics, lease, notes).await?);
        }
        Ok(subscriptions)
    }

    fn check_theirs(&self, stream: &Stream, queue: &Queue, notes: &mut Vec<String>) -> Result<(), broker::Error> {
        if stream.name == self.names.events() {
            return Ok(());
        }
        let name = &stream.name;
        if stream.retention() == "workqueue" && queue.start != Start::Earliest {
            return Err(broker::Error::Refused(format!(
                "the stream {name} is a work queue, which delivers everything: queue {} cannot start elsewhere than at \
                 \"earliest\"",
                queue.name
            )));
        }
        if stream.flag("sealed") {
            notes.push(format!("the stream {name} is sealed: nothing new will come from it"));
        }
        if stream.flag("no_ack") {
            notes.push(format!("the stream {name} confirms no publication (no_ack): producers may lose events"));
        }
        let limited = limits(stream);
        if stream.retention() == "workqueue" && !limited.is_empty() && stream.config["discard"] == "old" {
            notes.push(format!(
                "the stream {name} is a work queue with discard: old and {}: when it is full it deletes jobs that nobody \
                 has run; set discard: new",
                limited.join(", ")
            ));
        }
        if stream.config["storage"] == "memory" {
            notes.push(format!("the stream {name} lies in memory: a restart of the server loses its events"));
        }
        Ok(())
    }

    /// The durable of `queue` on a stream, over these topics; made, or brought up to the configuration.
    pub async fn durable(
        &self,
        stream: &Stream,
        queue: &Queue,
        filters: &[String],
        lease: Duration,
        notes: &mut Vec<String>,
    ) -> Result<Subscription, broker::Error> {
        let durable = self.names.durable(&queue.name);
        let name = &stream.name;
        let doing = format!("open the consumer {durable} on {name}");
        // Of two filters one of which covers the other, the server takes only the wider.
        let wider = |filter: &&String| !filters.iter().any(|other| other != *filter && covers(other, filter));
        let mut filters: Vec<&String> = filters.iter().filter(wider).collect();
        filters.dedup();
        if let Some((one, other)) = filters
            .iter()
            .enumerate()
            .flat_map(|(i, one)| filters[i + 1..].iter().map(move |other| (one, other)))
            .find(|(one, other)| overlap(one, other))
        {
            return Err(broker::Error::Refused(format!(
                "the topics {one} and {other} of queue {} overlap, which NATS does not take; name one that covers both",
                queue.name
            )));
        }
        let mut wanted = json!({
            "durable_name": durable, "name": durable, "ack_policy": "explicit", "replay_policy": "instant",
            "ack_wait": lease.as_nanos() as u64, "max_deliver": -1, "max_ack_pending": MAX_ACK_PENDING,
            "max_waiting": MAX_WAITING, "deliver_policy": "all", "filter_subjects": filters,
            "metadata": { "windlass.namespace": self.names.namespace.as_str(), "windlass.queue": queue.name.as_str() },
        });
        match queue.start {
            _ if *name == self.names.work() => {}
            Start::Earliest => {}
            Start::Latest => wanted["deliver_policy"] = json!("new"),
            Start::At(at) => {
                wanted["deliver_policy"] = json!("by_start_time");
                wanted["opt_start_time"] = json!(at.to_rfc3339());
            }
        }
        let again = (self.create && stream.retention() != "limits").then(|| wanted.clone());
        let existing = self.api.consumer(name, &durable).await.map_err(|e| e.into_broker(&doing))?;
        let info = match existing {
            Some(info) => self.adapt(&info, wanted, name, &durable, notes).await?,
            None if !self.create => {
                return Err(broker::Error::Refused(format!(
                    "there is no consumer {durable} on the stream {name}, and nats.create = false; create it: \
                     nats request '$JS.API.CONSUMER.CREATE.{name}.{durable}' '{}'",
                    json!({ "stream_name": name, "config": wanted, "action": "create" })
                )));
            }
            None => {
                let made = self.api.put_consumer(name, "create", &wanted).await;
                let made = made.map_err(|error| match error.err_code() {
                    err if code::NOT_UNIQUE.contains(&err) => broker::Error::Refused(format!(
                        "the stream {name} is a work queue, which gives each message to one consumer alone, and another \
                         one already takes {}: two queues cannot both hear it; use a stream with limits or interest \
                         retention",
                        filters.iter().map(|f| f.as_str()).collect::<Vec<_>>().join(", ")
                    )),
                    err if err == code::DELIVER_ALL => broker::Error::Refused(format!(
                        "the stream {name} is a work queue, which delivers everything: start must be \"earliest\""
                    )),
                    _ => error.into_broker(&doing),
                })?;
                let old = made["num_pending"].as_u64().unwrap_or(0);
                if old > 0 && *name != self.names.work() {
                    notes.push(format!("starts with {old} old events of {name}"));
                }
                made
            }
        };
        check_echo(&info, &durable)?;
        let server = self.api.link.client().server_info().server_name;
        Ok(Subscription {
            stream: name.clone(),
            durable,
            created: stream.created,
            single: stream.host.is_alone(&server) && Host::of(&info).is_alone(&server),
            pending: info["num_pending"].as_u64().unwrap_or(0) + info["num_ack_pending"].as_u64().unwrap_or(0),
            again,
        })
    }

    /// Changes a durable of ours that is there to what is configured now: topics and lease follow the last worker.
    async fn adapt(
        &self,
        info: &Value,
        wanted: Value,
        stream: &str,
        durable: &str,
        notes: &mut Vec<String>,
    ) -> Result<Value, broker::Error> {
        let config = &info["config"];
        if !config["deliver_subject"].is_null() || config["ack_policy"] != "explicit" {
            return Err(broker::Error::Refused(format!(
                "the consumer {durable} on {stream} is not one of windlass: it pushes, or takes no acknowledgements; \
                 remove it or set another namespace"
            )));
        }
        let mut filters: Vec<Value> = config["filter_subjects"].as_array().cloned().unwrap_or_default();
        if config["filter_subject"].as_str().is_some_and(|filter| !filter.is_empty()) {
            filters.push(config["filter_subject"].clone());
        }
        let sorted = |mut list: Vec<Value>| {
            list.sort_by_key(Value::to_string);
            list
        };
        let same_filters = sorted(filters) == sorted(wanted["filter_subjects"].as_array().cloned().unwrap_or_default());
        let plain = ["ack_wait", "max_deliver", "max_ack_pending"].into_iter().all(|f| config[f] == wanted[f]);
        if same_filters && plain && config["backoff"].is_null() {
            return Ok(info.clone());
        }
        if !self.create {
            notes.push(format!(
                "the consumer {durable} on {stream} has other topics, lease or limits than this configuration, and \
                 nats.create = false leaves them"
            ));
            return Ok(info.clone());
        }
        let mut changed = config.clone();
        if let Some(fields) = changed.as_object_mut() {
            fields.remove("backoff");
            fields.remove("filter_subject");
        }
        for field in ["ack_wait", "max_deliver", "max_ack_pending", "filter_subjects"] {
            changed[field] = wanted[field].clone();
        }
        changed["durable_name"] = json!(durable);
        let doing = format!("change the consumer {durable} on {stream}");
        let info = self.api.put_consumer(stream, "update", &changed).await.map_err(|e| e.into_broker(&doing))?;
        notes.push(format!("the consumer {durable} on {stream} follows this worker's topics and lease from now on"));
        Ok(info)
    }
}

/// What limits a stream beside its disk.
pub fn limits(stream: &Stream) -> Vec<&'static str> {
    let limits = ["max_msgs", "max_bytes", "max_age", "max_msgs_per_subject"];
    limits.into_iter().filter(|limit| stream.config[*limit].as_i64().is_some_and(|limit| limit > 0)).collect()
}

/// What the server says it will do must be what jobs need.
fn check_echo(info: &Value, durable: &str) -> Result<(), broker::Error> {
    let config = &info["config"];
    let fault = if config["max_deliver"].as_i64().is_some_and(|max| max > 0) {
        Some("max_deliver: after so many deliveries it would silently stop to hand a job out")
    } else if config["backoff"].as_array().is_some_and(|list| !list.is_empty()) {
        Some("backoff: it would delay what is given back")
    } else if config["ack_policy"] != "explicit" {
        Some("ack_policy: jobs would be acknowledged that never ran")
    } else {
        None
    };
    match fault {
        Some(fault) => Err(broker::Error::Refused(format!("the consumer {durable} has {fault}; remove it"))),
        None => Ok(()),
    }
}
