//! What would lose, double or stall jobs, as far as configuration shows it.

use std::time::Duration;

use serde_json::Value;

use super::api::{self, Stream};
use super::inspect::filters;
use super::{Inner, topology};
use crate::broker::{Finding, Severity};
use crate::message::QueueName;
use crate::time::{Timestamp, format_duration};

/// Looks at the server, at the streams that these queues read, and at ours.
pub async fn examine(inner: &Inner, queues: &[QueueName], theirs: &[Stream]) -> Result<Vec<Finding>, api::Error> {
    let mut findings = Findings(Vec::new());
    let info = inner.link.client().server_info();
    let version = super::parse_version(&info.version).unwrap_or_default();
    let server = format!("nats-server {}", info.version);
    if version < (2, 12, 5) {
        findings.warn(
            &server,
            "servers before 2.12.5 may lose messages of replicated work queues (nats-server#7817)",
            "run 2.12.5 or newer",
        );
    }
    let mut ours = Vec::new();
    for name in [inner.names.events(), inner.names.work(), inner.names.dead()] {
        ours.extend(inner.api.stream(&name).await?);
    }
    if let Some(work) = ours.iter().find(|stream| stream.name == inner.names.work())
        && !work.flag("allow_msg_schedules")
    {
        findings.warn(
            &work.name,
            "no schedules: jobs that wait for their time are put off by workers, which is sound up to about 100,000",
            "run nats-server 2.12 or newer; the next worker that starts switches them on",
        );
    }
    if info.cluster.is_none() {
        findings.add(
            Severity::Info,
            &server,
            "a single server: what it has confirmed may be lost in a power cut unless sync_interval is \"always\", which is \
             not visible from here",
            "set jetstream { sync_interval: always }, or use three servers that do not share their power",
        );
    }
    for stream in &ours {
        storage(stream, info.cluster.is_some(), &mut findings);
    }
    let now = inner.options.clock.now();
    for stream in theirs.iter().filter(|stream| !ours.iter().any(|our| our.name == stream.name)) {
        storage(stream, info.cluster.is_some(), &mut findings);
        limits(stream, &mut findings);
        for queue in queues {
            let durable = inner.names.durable(queue);
            if let Some(consumer) = inner.api.consumer(&stream.name, &durable).await? {
                backlog(inner, stream, &consumer, now, &mut findings).await?;
            }
        }
    }
    if let Some(events) = ours.iter().find(|stream| stream.name == inner.names.events()) {
        for queue in queues {
            let durable = inner.names.durable(queue);
            if let Some(consumer) = inner.api.consumer(&events.name, &durable).await? {
                backlog(inner, events, &consumer, now, &mut findings).await?;
            }
        }
        for consumer in inner.api.consumers(&events.name).await? {
            orphan(inner, &events.name, &consumer, &mut findings);
        }
    }
    for queue in &inner.options.queues {
        for topic in &queue.topics {
            if inner.api.names(topic.as_str()).await?.is_empty() {
                findings.warn(
                    topic.as_str(),
                    "no stream stores this topic: what is published to it now is lost",
                    "start a worker, or publish through windlass, which makes the stream",
                );
            }
        }
        let dead = inner.api.next(&inner.names.dead(), 1, &inner.names.letter(&queue.name, "*")).await?;
        if let (Some(keep), Some(first)) = (queue.keep_dead, dead) {
            let left = keep.saturating_sub(first.at.until(now));
            if left < Duration::from_secs(3 * 86_400) && keep > Duration::from_secs(3 * 86_400) {
                findings.warn(
                    queue.name.as_str(),
                    &format!(
                        "dead letters are removed within {}",
                        format_duration(Duration::from_secs(left.as_secs()))
                    ),
                    "look at them (windlass dlq list), or set dead_letter.keep",
                );
            }
        }
    }
    for consumer in inner.api.consumers(&inner.names.work()).await.or_else(none_there)? {
        orphan(inner, &inner.names.work(), &consumer, &mut findings);
    }
    if let Some(denied) = inner.link.denied() {
        findings.add(Severity::Error, &inner.address, &denied, "give this user the permissions of docs/nats.md");
    }
    Ok(findings.0)
}

fn none_there(error: api::Error) -> Result<Vec<Value>, api::Error> {
    if error.err_code() == api::code::NO_STREAM { Ok(Vec::new()) } else { Err(error) }
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, subject: &str, finding: &str, fix: &str) {
        self.0.push(Finding {
            severity,
            subject: subject.to_owned(),
            finding: finding.to_owned(),
            fix: fix.to_owned(),
        });
    }

    fn warn(&mut self, subject: &str, finding: &str, fix: &str) {
        self.add(Severity::Warn, subject, finding, fix);
    }
}

fn storage(stream: &Stream, clustered: bool, findings: &mut Findings) {
    let config = &stream.config;
    if config["storage"] == "memory" {
        findings.add(
            Severity::Error,
            &stream.name,
            "the stream lies in memory: a restart of the server loses what waits in it",
            "make it anew with storage: file",
        );
    }
    if clustered && config["num_replicas"].as_u64().unwrap_or(1) < 3 {
        findings.warn(
            &stream.name,
            "the stream has one replica in a cluster: while its server is away nothing is handed out, and its disk is the only \
             copy",
            "nats stream edit --replicas 3",
        );
    }
    if config["persist_mode"] == "async" {
        findings.add(
            Severity::Error,
            &stream.name,
            "persist_mode async confirms what is not written: a crash of the server loses it",
            "make the stream anew without it",
        );
    }
    if config["no_ack"] == true {
        findings.add(
            Severity::Error,
            &stream.name,
            "no_ack: publications are not confirmed, so producers lose events without noticing",
            "nats stream edit --ack",
        );
    }
}

fn limits(stream: &Stream, findings: &mut Findings) {
    let config = &stream.config;
    let limited = topology::limits(stream);
    if config["discard"] == "old" && stream.retention() != "limits" && !limited.is_empty() {
        findings.add(
            Severity::Error,
            &stream.name,
            &format!(
                "a {} stream with discard: old and {}: jobs that nobody has run are deleted when it is full",
                stream.retention(),
                limited.join(", ")
            ),
            "nats stream edit --discard new",
        );
    }
    for (limit, used) in [("max_msgs", "messages"), ("max_bytes", "bytes")] {
        let (most, now) = (config[limit].as_i64().unwrap_or(-1), stream.state[used].as_i64().unwrap_or(0));
        if most > 0 && now.saturating_mul(10) > most.saturating_mul(8) && config["discard"] == "new" {
            findings.warn(
                &stream.name,
                &format!("{now} of {limit} {most} are used: when it is full, publishing fails"),
                "raise the limit, or start more workers",
            );
        }
    }
}

/// The oldest waiting event beside what the stream's limits let live.
async fn backlog(
    inner: &Inner,
    stream: &Stream,
    consumer: &Value,
    now: Timestamp,
    findings: &mut Findings,
) -> Result<(), api::Error> {
    let durable = consumer["name"].as_str().unwrap_or_default();
    let config = &consumer["config"];
    let subject = format!("{} on {}", durable, stream.name);
    if config["max_deliver"].as_i64().is_some_and(|most| most > 0) {
        findings.add(
            Severity::Error,
            &subject,
            "max_deliver is set: after so many deliveries a job is silently not handed out any more",
            "start a worker with nats.create = true, which takes it away",
        );
    }
    let pending = config["max_ack_pending"].as_i64().unwrap_or(-1);
    if pending > 0 && consumer["num_ack_pending"].as_i64().unwrap_or(0) >= pending {
        findings.add(
            Severity::Error,
            &subject,
            "max_ack_pending is reached: nothing more is handed out until something is settled",
            "raise max_ack_pending",
        );
    }
    if config["max_waiting"].as_i64().is_some_and(|most| most < 512) {
        findings.warn(&subject, "max_waiting is small: workers beyond it are turned away", "make the consumer anew");
    }
    let age = stream.config["max_age"].as_u64().unwrap_or(0);
    if age > 0 && consumer["num_pending"].as_u64().unwrap_or(0) > 0 {
        let from = consumer["delivered"]["stream_seq"].as_u64().unwrap_or(0) + 1;
        for filter in filters(consumer) {
            let Some(first) = inner.api.next(&stream.name, from, &filter).await? else { continue };
            let waited = first.at.until(now);
            if waited * 2 > Duration::from_nanos(age) {
                findings.warn(
                    &subject,
                    &format!(
                        "the oldest waiting event is {} old, and the stream keeps events for {}: it will be lost",
                        format_duration(Duration::from_secs(waited.as_secs())),
                        format_duration(Duration::from_nanos(age))
                    ),
                    "start more workers, or let the stream keep events longer",
                );
            }
        }
    }
    Ok(())
}

/// A durable of this namespace that nobody reads.
fn orphan(inner: &Inner, stream: &str, consumer: &Value, findings: &mut Findings) {
    let durable = consumer["name"].as_str().unwrap_or_default();
    let Some(queue) = inner.names.queue_of(durable) else { return };
    let configured = inner.options.queues.iter().any(|known| known.name == queue);
    let waiting = consumer["num_pending"].as_u64().unwrap_or(0) + consumer["num_ack_pending"].as_u64().unwrap_or(0);
    if consumer["num_waiting"].as_u64().unwrap_or(0) == 0 && waiting > 0 && !configured {
        findings.warn(
            &format!("{durable} on {stream}"),
            &format!("nobody reads this consumer, and {waiting} messages wait for it"),
            &format!("start a worker for the queue {queue}, or forget it: windlass queues forget {queue}"),
        );
    }
}
