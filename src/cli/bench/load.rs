//! Publishing: in bulk, by producers that await each confirmation, or at a rate.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::board::now;
use super::body;
use crate::broker::{Error, Publication};
use crate::client::Client;

/// Messages that are published at once, in bulk.
const BULK: u64 = 500;
/// So many times.
const FLYING: usize = 8;
/// Producers that keep a rate.
const PACERS: usize = 16;

/// Where the jobs go, and how they look.
#[derive(Clone)]
pub struct Load {
    /// By this client.
    pub client: Client,
    /// To this topic.
    pub topic: Arc<str>,
    /// Bytes of an argument.
    pub size: usize,
    /// Keys; 0 is none.
    pub keys: usize,
    /// Without attributes.
    pub bare: bool,
}

impl Load {
    fn publication(&self, id: u64, sent: Option<u64>) -> Result<Publication, Error> {
        let draft = self.client.publish_bytes(&self.topic, body::write(id, sent, self.size)).id(id.to_string());
        let draft = if self.keys > 0 { draft.key(format!("k{}", id % self.keys as u64)) } else { draft };
        if self.bare { draft.bare() } else { draft.content_type("application/json") }.publication()
    }

    async fn publish(&self, batch: Vec<Publication>) -> Result<(), Error> {
        for confirmed in self.client.publish_all(batch).await {
            confirmed?;
        }
        Ok(())
    }

    /// As fast as it can be; `told` hears how many are confirmed.
    pub async fn bulk(&self, ids: Range<u64>, told: impl Fn(u64) + Clone + Send + 'static) -> Result<(), Error> {
        self.share(ids, FLYING, BULK, told).await
    }

    /// By so many producers, of which each awaits each confirmation.
    pub async fn each(
        &self,
        ids: Range<u64>,
        producers: usize,
        told: impl Fn(u64) + Clone + Send + 'static,
    ) -> Result<(), Error> {
        self.share(ids, producers, 1, told).await
    }

    async fn share(
        &self,
        ids: Range<u64>,
        producers: usize,
        batch: u64,
        told: impl Fn(u64) + Clone + Send + 'static,
    ) -> Result<(), Error> {
        // Messages of one key stay in order only within one producer.
        let producers = if self.keys > 0 { 1 } else { producers };
        let next = Arc::new(AtomicU64::new(ids.start));
        let mut tasks = JoinSet::new();
        for _ in 0..producers {
            let (load, next, told, end) = (self.clone(), next.clone(), told.clone(), ids.end);
            tasks.spawn(async move {
                loop {
                    let from = next.fetch_add(batch, Ordering::Relaxed);
                    if from >= end {
                        return Ok(());
                    }
                    let to = end.min(from + batch);
                    let publications = (from..to).map(|id| load.publication(id, None)).collect::<Result<_, _>>()?;
                    load.publish(publications).await?;
                    told(to - from);
                }
            });
        }
        ended(tasks).await
    }

    /// So many a second, whether or not the ones before are confirmed. `waits`: how long they wait counts.
    pub async fn pace(&self, ids: Range<u64>, rate: f64, waits: bool) -> Result<(), Error> {
        let producers = if self.keys > 0 { 1 } else { PACERS };
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for producer in 0..producers as u64 {
            let (load, ids) = (self.clone(), ids.clone());
            tasks.spawn(async move {
                let mut tick = tokio::time::interval_at(
                    began + Duration::from_secs_f64(producer as f64 / rate),
                    Duration::from_secs_f64(producers as f64 / rate),
                );
                // One that had to wait for its confirmation catches up.
                tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
                for id in ids.skip(producer as usize).step_by(producers) {
                    tick.tick().await;
                    let publication = load.publication(id, waits.then(now))?;
                    load.publish(vec![publication]).await?;
                }
                Ok(())
            });
        }
        ended(tasks).await
    }
}

async fn ended(mut tasks: JoinSet<Result<(), Error>>) -> Result<(), Error> {
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| Error::Unavailable(format!("a producer ended early: {error}")))??;
    }
    Ok(())
}
