//! What the writer is asked to do.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::desk::Desk;
use super::writer::Writer;
use crate::broker::delivery::Delivery;
use crate::broker::{Disposition, Error, Publication, Published, Settled};

/// A wish of one of the handles.
pub enum Command {
    /// A source waits for deliveries.
    Want,
    /// Settlements of one queue.
    Settle(Vec<Item>),
    /// The starts of these are to be stored.
    Mark(Mark),
    /// A delivery was dropped.
    Release {
        /// Its queue.
        queue: i64,
        /// Its event.
        event: i64,
    },
    /// Messages to be stored.
    Publish(Post),
    /// Anything rare, in a transaction of its own.
    Call(Call),
    /// Give everything back and end.
    Close(oneshot::Sender<()>),
}

/// Something rare that needs the writer's connection.
pub type Call = Box<dyn for<'a> FnOnce(&'a mut Writer) -> BoxFuture<'a, ()> + Send>;

/// Starts to be stored.
pub struct Mark {
    /// Their queue.
    pub desk: Arc<Desk>,
    /// Their events.
    pub events: Vec<i64>,
    /// Whether each was.
    pub reply: oneshot::Sender<Vec<bool>>,
}

/// One settlement on its way.
pub struct Item {
    /// Its queue.
    pub desk: Arc<Desk>,
    /// What is settled; its duty is ours.
    pub delivery: Delivery,
    /// How.
    pub disposition: Disposition,
    /// Where the result goes.
    pub ticket: Arc<Ticket<Settled>>,
    /// Its place there.
    pub index: usize,
}

/// Publications on their way, which are stored together.
pub struct Post {
    /// What is to be stored.
    pub batch: Vec<Publication>,
    /// Where the results go.
    pub reply: oneshot::Sender<Vec<Result<Published, Error>>>,
    /// After this trying again ends.
    pub deadline: tokio::time::Instant,
}

/// Collects results of a batch whose members may end at different times.
pub struct Ticket<T> {
    state: Mutex<Collected<T>>,
}

struct Collected<T> {
    results: Vec<Option<T>>,
    missing: usize,
    reply: Option<oneshot::Sender<Vec<T>>>,
}

impl<T> Ticket<T> {
    /// For so many results.
    pub fn new(count: usize, reply: oneshot::Sender<Vec<T>>) -> Arc<Self> {
        let results = std::iter::repeat_with(|| None).take(count).collect();
        Arc::new(Self { state: Mutex::new(Collected { results, missing: count, reply: Some(reply) }) })
    }

    /// One result; the last one sends them all.
    pub fn put(&self, index: usize, result: T) {
        let mut state = self.state.lock();
        if state.results[index].replace(result).is_none() {
            state.missing -= 1;
        }
        if state.missing == 0 {
            let results = std::mem::take(&mut state.results);
            if let Some(reply) = state.reply.take() {
                // Whoever asked may have lost interest; the settlement is stored all the same.
                let _ = reply.send(results.into_iter().flatten().collect());
            }
        }
    }
}
