//! Marks: which jobs were running when a worker died.
//!
//! From its second delivery on, a job's start is marked, under its key in the stream of work. The mark is cleared
//! when the run is settled or given back; one that is left over, by a worker that is not present any more, is a
//! crash. Giving back keeps what earlier runs left over.
//!
//! A worker that was cut off from the server for longer than its presence lasts left a mark too, and has not died. So a
//! mark names all who left one, and who of them is present is asked each time; before it condemns a job a worker asks
//! twice, with time for the living to show themselves in between.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::Error;
use super::context::Context;
use super::wire::header;
use crate::time::Timestamp;

/// What is known of a job's crashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// See [`super::names::key`].
    pub key: String,
    /// Crashes so far: those who left it over and are not present.
    pub crashes: u32,
    /// Who left it over, present or not: workers and their instances.
    pub left: Vec<(String, String)>,
    /// The stored mark, whosever it is.
    pub seq: Option<u64>,
    /// The stored mark says that this process runs it.
    pub ours: bool,
}

fn named(mark: &Mark) -> Vec<Value> {
    mark.left.iter().map(|(worker, by)| json!({ "worker": worker, "by": by })).collect()
}

impl Context {
    /// The crashes of a job that was delivered before.
    pub async fn crashes(&self, key: String) -> Result<Mark, Error> {
        let subject = self.names.state(&self.queue.name, &format!("mark.{key}"));
        let Some(stored) = self.api.last(&self.names.work(), &subject).await? else {
            return Ok(Mark { key, crashes: 0, left: Vec::new(), seq: None, ours: false });
        };
        let body: Value = serde_json::from_slice(&stored.payload).unwrap_or_default();
        let who = |value: &Value| Some((value["worker"].as_str()?.to_owned(), value["by"].as_str()?.to_owned()));
        let before = body["left"].as_array().into_iter().flatten();
        let mut left: Vec<(String, String)> = Vec::new();
        for one in before.chain([&body]).filter_map(who) {
            // It dies once.
            if one.1 != *self.instance && !left.contains(&one) {
                left.push(one);
            }
        }
        let first = left.len().saturating_sub(2 * self.queue.max_crashes as usize);
        left.drain(..first);
        let mut crashes = 0;
        for (worker, by) in &left {
            crashes += u32::from(!self.is_present(worker, by).await?);
        }
        Ok(Mark { key, crashes, left, seq: Some(stored.seq), ours: false })
    }

    /// Likewise; where they condemn the job only after all who live have had the time to say so. `None`: this worker
    /// leaves first.
    pub async fn crashes_for_certain(&self, key: String) -> Result<Option<Mark>, Error> {
        let found = self.crashes(key).await?;
        if found.crashes < self.queue.max_crashes {
            return Ok(Some(found));
        }
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Ok(None),
            () = tokio::time::sleep(self.lease) => self.crashes(found.key).await.map(Some),
        }
    }

    async fn is_present(&self, worker: &str, instance: &str) -> Result<bool, Error> {
        let subject = self.names.worker(worker);
        let Some(stored) = self.api.last(&self.names.work(), &subject).await? else { return Ok(false) };
        let body: Value = serde_json::from_slice(&stored.payload).unwrap_or_default();
        let until = Timestamp::from_millis(body["until"].as_i64().unwrap_or(0));
        Ok(body["instance"] == instance && until > self.clock.now())
    }

    /// Stores that a job is about to start; the new mark's sequence.
    pub async fn start(&self, mark: &Mark) -> Result<u64, Error> {
        let body = json!({ "left": named(mark), "by": &*self.instance, "worker": &*self.worker });
        self.write(mark, &body).await
    }

    /// Likewise, and whether it may start: what was looked up may have waited for a slot since, and who had it before may
    /// have stored what follows it. Such a one is given back, and acknowledged when it comes again.
    pub async fn start_unless_followed(&self, mark: &Mark, hop: u64) -> Result<(u64, bool), Error> {
        let seq = self.start(mark).await?;
        // In key order what follows stays in hand, and is remembered elsewhere.
        if self.queue.ordered {
            return Ok((seq, true));
        }
        let may_start = match self.has_successor(&mark.key, hop).await {
            Ok(found) => !found,
            Err(error) => {
                tracing::warn!(queue = %self.queue.name, error = %error, "failed to look for what follows a job");
                false
            }
        };
        Ok((seq, may_start))
    }

    /// The run has ended: `settled`, or given back. Failing is harmless while this process is present.
    pub async fn clear(&self, mark: &Mark, settled: bool) {
        let cleared = if !settled && !mark.left.is_empty() {
            self.write(mark, &json!({ "left": named(mark) })).await.map(drop)
        } else {
            match mark.seq {
                Some(seq) => self.api.delete(&self.names.work(), seq).await.map(drop),
                None => Ok(()),
            }
        };
        if let Err(error) = cleared {
            tracing::warn!(queue = %self.queue.name, error = %error, "failed to clear a mark");
        }
    }

    async fn write(&self, mark: &Mark, body: &Value) -> Result<u64, Error> {
        let subject = self.names.state(&self.queue.name, &format!("mark.{}", mark.key));
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(header::MESSAGE_ID, uuid::Uuid::now_v7().to_string().as_str());
        if self.features.ttl {
            // What is left of a job that was removed by hand; longer than any job is retried.
            headers.insert(header::TTL, "720h");
        }
        let deadline = Instant::now() + self.lease / 3;
        let ack = self.api.store(&subject, headers, body.to_string().into(), deadline).await?;
        if let Some(before) = mark.seq {
            self.api.delete(&self.names.work(), before).await?;
        }
        Ok(ack.seq)
    }
}
