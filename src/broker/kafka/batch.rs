//! A batch of settlements on its way: resolves when the commit that covers the last of it is confirmed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::super::Settled;

/// Results of one `settle` call. They read `Stored` unless somebody says otherwise before the last part is done.
pub struct Batch {
    results: Mutex<Vec<Settled>>,
    open: AtomicUsize,
    done: Mutex<Option<oneshot::Sender<Vec<Settled>>>>,
}

impl Batch {
    /// Of `size` settlements; it is open until [`Part`]s and this handle's own part are dropped.
    pub fn new(size: usize) -> (Arc<Self>, oneshot::Receiver<Vec<Settled>>) {
        let (sender, receiver) = oneshot::channel();
        let batch = Self {
            results: Mutex::new(vec![Settled::Stored; size]),
            open: AtomicUsize::new(0),
            done: Mutex::new(Some(sender)),
        };
        (Arc::new(batch), receiver)
    }

    /// Settlements `from..to` of it.
    pub fn part(self: &Arc<Self>, from: usize, to: usize) -> Part {
        self.open.fetch_add(1, Ordering::Relaxed);
        Part { batch: self.clone(), from, to }
    }
}

/// Some settlements of a batch that wait for the same thing. Dropping it says that they are through.
pub struct Part {
    batch: Arc<Batch>,
    from: usize,
    to: usize,
}

impl Part {
    /// They ended otherwise than stored.
    pub fn fail(self, settled: &Settled) {
        let mut results = self.batch.results.lock();
        for result in &mut results[self.from..self.to] {
            *result = settled.clone();
        }
    }

    /// One more settlement waits with these; `false` where it is not the next of the same batch.
    pub fn extend(&mut self, batch: &Arc<Batch>, index: usize) -> bool {
        let next = Arc::ptr_eq(&self.batch, batch) && self.to == index;
        if next {
            self.to += 1;
        }
        next
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.batch.open.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = self.batch.done.lock().take()
        {
            let results = std::mem::take(&mut *self.batch.results.lock());
            // Nobody waits for the answer any more: the settlement itself is done.
            let _ = done.send(results);
        }
    }
}
