//! What the server holds, read without a worker: figures of queues, presence, what may be forgotten.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::{self, Stream};
use super::wire::{self, header};
use super::{Inner, doctor, letters};
use crate::broker::{Error, Finding, Inspect, KnownQueue, QueueStatus, may_forget};
use crate::message::{Binding, QueueName, record};
use crate::time::Timestamp;

/// Records that are read to say what waits for its time.
const SCAN: usize = 1_000;

/// See the module.
pub struct NatsInspect(pub Arc<Inner>);

/// A worker that is present.
struct Worker {
    queues: Vec<(String, u64)>,
}

impl Inspect for NatsInspect {
    fn status<'a>(&'a self, queues: &'a [QueueName]) -> BoxFuture<'a, Result<Vec<QueueStatus>, Error>> {
        Box::pin(async move {
            let failed = |error: api::Error| error.into_broker("read what the server holds");
            let known = self.names().await.map_err(failed)?;
            let wanted: Vec<QueueName> = if queues.is_empty() {
                known.iter().cloned().collect()
            } else if let Some(unknown) = queues.iter().find(|queue| !known.contains(*queue)) {
                return Err(Error::NotFound(format!("no queue {unknown} is known, here or at {}", self.0.address)));
            } else {
                queues.to_vec()
            };
            let workers = self.workers().await.map_err(failed)?;
            let streams = self.streams(&wanted).await.map_err(failed)?;
            let work = self.0.api.stream(&self.0.names.work()).await.map_err(failed)?;
            let dead = self.0.api.stream(&self.0.names.dead()).await.map_err(failed)?;
            let ours = (work.as_ref(), dead.as_ref());
            let mut all = Vec::with_capacity(wanted.len());
            for queue in &wanted {
                all.push(self.figures(queue, &streams, ours, &workers).await.map_err(failed)?);
            }
            Ok(all)
        })
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<KnownQueue>, Error>> {
        Box::pin(async move {
            let failed = |error: api::Error| error.into_broker("read the queues");
            let names: Vec<QueueName> = self.names().await.map_err(failed)?.into_iter().collect();
            let workers = self.workers().await.map_err(failed)?;
            let streams = self.streams(&names).await.map_err(failed)?;
            let mut known = Vec::new();
            for name in names {
                let mut topics = BTreeSet::new();
                for stream in &streams {
                    let durable = self.0.names.durable(&name);
                    if let Some(info) = self.0.api.consumer(&stream.name, &durable).await.map_err(failed)? {
                        topics.extend(filters(&info));
                    }
                }
                known.push(KnownQueue {
                    workers: Some(attached(&workers, &name).0),
                    topics: topics.into_iter().collect(),
                    name,
                });
            }
            Ok(known)
        })
    }

    fn forget<'a>(&'a self, queue: &'a QueueName, even_with_jobs: bool) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            let failed = |error: api::Error| error.into_broker(&format!("forget the queue {queue}"));
            let status = self.status(std::slice::from_ref(queue)).await?;
            let status = status.into_iter().next().unwrap_or_default();
            let count = |figure: Option<u64>| figure.unwrap_or(0);
            let jobs = count(status.ready) + count(status.running) + count(status.retrying) + count(status.scheduled);
            may_forget(queue, count(status.workers), jobs, even_with_jobs)?;
            let inner = &self.0;
            let durable = inner.names.durable(queue);
            let streams = self.streams(std::slice::from_ref(queue)).await.map_err(failed)?;
            for stream in &streams {
                inner.api.delete_consumer(&stream.name, &durable).await.map_err(failed)?;
            }
            let work = inner.names.work();
            inner.api.delete_consumer(&work, &durable).await.map_err(failed)?;
            let namespace = &inner.names.namespace;
            for filter in [format!("{namespace}.work.{queue}.>"), format!("{namespace}.state.{queue}.>")] {
                inner.api.purge(&work, &filter).await.map_err(failed)?;
            }
            Ok(jobs)
        })
    }

    fn doctor(&self) -> BoxFuture<'_, Result<Vec<Finding>, Error>> {
        Box::pin(async move {
            let names: Vec<QueueName> =
                self.names().await.map_err(|e| e.into_broker("read the queues"))?.into_iter().collect();
            let streams = self.streams(&names).await.map_err(|e| e.into_broker("read the streams"))?;
            doctor::examine(&self.0, &names, &streams).await.map_err(|e| e.into_broker("examine the server"))
        })
    }

    fn present<'a>(&'a self, queues: &'a [(QueueName, usize)]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let inner = &self.0;
            let features = inner.work().await?;
            let mut presence = inner.presence.lock().await;
            if inner.closed.is_cancelled() {
                return Ok(());
            }
            let subject = inner.names.worker(&inner.options.worker);
            let lease = inner.options.lease;
            let until = inner.options.clock.now().after(lease);
            let slots: serde_json::Map<String, Value> =
                queues.iter().map(|(queue, slots)| (queue.to_string(), json!(slots))).collect();
            let body = json!({
                "until": until.as_millis(), "queues": slots, "instance": &*inner.instance, "version": env!("CARGO_PKG_VERSION"),
            });
            let mut headers = async_nats::HeaderMap::new();
            headers.insert(header::MESSAGE_ID, uuid::Uuid::now_v7().to_string().as_str());
            if features.ttl {
                headers.insert(header::TTL, format!("{}s", lease.as_secs() + 2).as_str());
            }
            let deadline = Instant::now() + inner.options.timeout;
            let ack = inner.api.store(&subject, headers, body.to_string().into(), deadline).await;
            let ack = ack.map_err(|error| error.into_broker("renew this worker's presence"))?;
            if let Some(before) = presence.replace(ack.seq) {
                // What stays ends with its time to live, and is not counted after it.
                let _ = inner.api.delete(&inner.names.work(), before).await;
            }
            Ok(())
        })
    }

    fn expire_dead(&self) -> BoxFuture<'_, Result<Vec<(QueueName, u64)>, Error>> {
        Box::pin(async move {
            let mut all = Vec::new();
            for queue in &self.0.options.queues {
                let Some(keep) = queue.keep_dead else { continue };
                let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
                let limit = Timestamp::from_millis(self.0.options.clock.now().as_millis().saturating_sub(keep));
                let removed = letters::expire(&self.0, &queue.name, limit).await;
                all.push((queue.name.clone(), removed.map_err(|e| e.into_broker("remove old dead letters"))?));
            }
            Ok(all)
        })
    }
}

impl NatsInspect {
    /// Every queue of the namespace: configured here, or with a durable on the stream of work.
    async fn names(&self) -> Result<BTreeSet<QueueName>, api::Error> {
        let mut names: BTreeSet<QueueName> = self.0.options.queues.iter().map(|queue| queue.name.clone()).collect();
        let consumers = match self.0.api.consumers(&self.0.names.work()).await {
            Ok(consumers) => consumers,
            Err(error) if error.err_code() == api::code::NO_STREAM => Vec::new(),
            Err(error) => return Err(error),
        };
        names.extend(consumers.iter().filter_map(|info| self.0.names.queue_of(info["name"].as_str()?)));
        Ok(names)
    }

    /// The streams that these queues may read from: those of their topics where all are configured here, else all.
    async fn streams(&self, queues: &[QueueName]) -> Result<Vec<Stream>, api::Error> {
        let inner = &self.0;
        let configured: Vec<_> = inner.options.queues.iter().filter(|queue| queues.contains(&queue.name)).collect();
        let ours = [inner.names.work(), inner.names.dead()];
        if configured.len() < queues.len() {
            let all = inner.api.all_streams().await?;
            return Ok(all.into_iter().filter(|stream| !ours.contains(&stream.name)).collect());
        }
        let mut names = BTreeSet::new();
        for topic in configured.iter().flat_map(|queue| &queue.topics) {
            names.extend(inner.api.names(topic.as_str()).await?);
        }
        let mut streams = Vec::new();
        for name in names.iter().filter(|name| !ours.contains(name)) {
            streams.extend(inner.api.stream(name).await?);
        }
        Ok(streams)
    }

    /// Workers whose presence record is not older than a lease.
    async fn workers(&self) -> Result<Vec<Worker>, api::Error> {
        let inner = &self.0;
        let (stream, filter) = (inner.names.work(), format!("{}.state._worker.*", inner.names.namespace));
        let now = inner.options.clock.now().as_millis();
        let mut newest = std::collections::HashMap::new();
        let mut from = 1;
        while let Some(stored) = inner.api.next(&stream, from, &filter).await? {
            from = stored.seq + 1;
            newest.insert(stored.subject, stored.payload);
        }
        let read = |payload: bytes::Bytes| {
            let body: Value = serde_json::from_slice(&payload).ok()?;
            if body["until"].as_i64()? <= now {
                return None;
            }
            let queues = body["queues"].as_object()?.iter();
            Some(Worker { queues: queues.map(|(queue, slots)| (queue.clone(), slots.as_u64().unwrap_or(0))).collect() })
        };
        Ok(newest.into_values().filter_map(read).collect())
    }

    async fn figures(
        &self,
        queue: &QueueName,
        streams: &[Stream],
        (records, dead): (Option<&Stream>, Option<&Stream>),
        workers: &[Worker],
    ) -> Result<QueueStatus, api::Error> {
        let inner = &self.0;
        let durable = inner.names.durable(queue);
        let (work, now) = (inner.names.work(), inner.options.clock.now());
        let mut status = QueueStatus { name: queue.to_string(), ..QueueStatus::default() };
        let (mut ready, mut running) = (0, 0);
        let mut oldest: Option<Timestamp> = None;
        // What was delivered of the records and is not settled lies between these.
        let mut delivered = None;
        for (stream, fresh) in streams.iter().map(|s| (s.name.as_str(), true)).chain([(work.as_str(), false)]) {
            let Some(info) = inner.api.consumer(stream, &durable).await? else {
                // Nobody has opened it yet: what waits for whoever does.
                let (count, first) = match (fresh, records) {
                    (true, _) => self.unread(queue, stream).await?,
                    (false, Some(records)) => {
                        let filter = inner.names.record(queue, "run", "*");
                        (inner.api.count(records, &filter).await?, inner.api.next(stream, 1, &filter).await?)
                    }
                    (false, None) => (0, None),
                };
                ready += count;
                oldest = oldest.into_iter().chain(first.map(|first| first.at)).min();
                continue;
            };
            let pending = info["num_pending"].as_u64().unwrap_or(0);
            ready += pending;
            let unsettled = info["num_ack_pending"].as_u64().unwrap_or(0);
            running += unsettled;
            let at = |place: &str| info[place]["stream_seq"].as_u64().unwrap_or(0);
            if !fresh && unsettled > 0 {
                delivered = Some((at("ack_floor") + 1, at("delivered")));
            }
            if pending > 0 {
                let from = info["delivered"]["stream_seq"].as_u64().unwrap_or(0) + 1;
                for filter in filters(&info) {
                    let first = inner.api.next(stream, from, &filter).await?;
                    oldest = oldest.into_iter().chain(first.map(|first| first.at)).min();
                }
            }
        }
        let waiting = match records {
            Some(records) => self.waiting(queue, records, delivered, now).await?,
            None => Waiting::default(),
        };
        // What was put off by its receiver counts as unacknowledged at the server, and is not running.
        let put_off = waiting.put_off_retries + waiting.put_off_jobs;
        status.ready = Some(ready);
        status.running = Some(running.saturating_sub(put_off));
        status.retrying = Some(waiting.retries + waiting.put_off_retries);
        status.scheduled = Some(waiting.jobs + waiting.put_off_jobs);
        status.retry_due = waiting.due;
        status.oldest_age = Some(oldest.map_or(Duration::ZERO, |oldest| oldest.until(now)));
        let letters = inner.names.letter(queue, "*");
        status.dead = Some(match dead {
            Some(dead) => inner.api.count(dead, &letters).await?,
            None => 0,
        });
        let first = inner.api.next(&inner.names.dead(), 1, &letters).await?;
        status.dead_oldest_age = Some(first.map_or(Duration::ZERO, |first| first.at.until(now)));
        let (count, slots) = attached(workers, queue);
        status.workers = Some(count);
        status.slots = Some(slots);
        if let Some(features) = *inner.work.lock()
            && !features.schedules
        {
            status.notes.push(
                "the server has no schedules (2.12 and later have): what waits for its time is put off by workers, soundly up \
                 to about 100,000 jobs"
                    .to_owned(),
            );
        }
        Ok(status)
    }

    /// Events for a queue that is configured and that nobody has opened yet, and the first of them.
    async fn unread(&self, queue: &QueueName, stream: &str) -> Result<(u64, Option<api::Stored>), api::Error> {
        let configured = self.0.options.queues.iter().find(|known| known.name == *queue);
        let Some(queue) = configured.filter(|queue| queue.start == crate::broker::Start::Earliest) else {
            return Ok((0, None));
        };
        let (mut total, mut first) = (0, None::<api::Stored>);
        for topic in &queue.topics {
            let body = json!({ "subjects_filter": topic.as_str() });
            let info = self.0.api.call(&format!("STREAM.INFO.{stream}"), &body).await?;
            let counts = info["state"]["subjects"].as_object().into_iter().flatten();
            total += counts.filter_map(|(_, count)| count.as_u64()).sum::<u64>();
            let next = self.0.api.next(stream, 1, topic.as_str()).await?;
            first = first.into_iter().chain(next).min_by_key(|stored| stored.seq);
        }
        Ok((total, first))
    }

    /// What waits for its time. `delivered`: between which sequences records lie that were delivered and not settled.
    async fn waiting(
        &self,
        queue: &QueueName,
        records: &Stream,
        delivered: Option<(u64, u64)>,
        now: Timestamp,
    ) -> Result<Waiting, api::Error> {
        let inner = &self.0;
        let mut waiting = Waiting::default();
        for (kind, count) in [("wait", &mut waiting.retries), ("later", &mut waiting.jobs)] {
            let filter = inner.names.record(queue, kind, "*");
            *count = inner.api.count(records, &filter).await?;
        }
        for kind in ["wait", "held", "run"] {
            // Of those that are due only the delivered ones may have been put off.
            let (mut from, last) = match (kind, delivered) {
                ("wait", _) if waiting.retries == 0 => continue,
                ("run", None) => continue,
                ("run", Some(range)) => range,
                _ => (1, u64::MAX),
            };
            let filter = inner.names.record(queue, kind, "*");
            for _ in 0..SCAN {
                let Some(stored) = inner.api.next(&records.name, from, &filter).await? else { break };
                if stored.seq > last {
                    break;
                }
                from = stored.seq + 1;
                let headers = wire::headers_in(stored.headers.as_ref(), &mut Default::default());
                let Ok(read) = record::read(&headers, Binding::Dash) else { continue };
                let Some(due) = read.record.not_before else { continue };
                let retry = kind != "run" || read.record.first_seen.is_some();
                if kind == "held" && due <= now {
                    // It runs, or has run.
                    continue;
                }
                if retry {
                    waiting.due = waiting.due.into_iter().chain([due]).min();
                }
                if kind != "wait" && due > now {
                    *(if retry { &mut waiting.put_off_retries } else { &mut waiting.put_off_jobs }) += 1;
                }
            }
        }
        if waiting.retries + waiting.put_off_retries == 0 {
            waiting.due = None;
        }
        Ok(waiting)
    }
}

#[derive(Default)]
struct Waiting {
    retries: u64,
    jobs: u64,
    put_off_retries: u64,
    put_off_jobs: u64,
    due: Option<Timestamp>,
}

/// How many of the workers serve a queue, and with how many slots.
fn attached(workers: &[Worker], queue: &QueueName) -> (u64, u64) {
    let slots = workers.iter().flat_map(|worker| &worker.queues).filter(|(name, _)| name == queue.as_str());
    slots.fold((0, 0), |(count, total), (_, slots)| (count + 1, total + slots))
}

/// The subjects that a consumer takes.
pub fn filters(info: &Value) -> Vec<String> {
    let config = &info["config"];
    let one = config["filter_subject"].as_str().filter(|filter| !filter.is_empty());
    let many = config["filter_subjects"].as_array().into_iter().flatten().filter_map(Value::as_str);
    one.into_iter().chain(many).map(str::to_owned).collect()
}
