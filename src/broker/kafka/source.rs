//! The source: hands over what the poll thread has read, within the credit.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::super::{Credit, Delivery, Error, Source};
use super::state::Shared;

/// See the module's documentation.
pub struct KafkaSource {
    /// Shared with the poll thread.
    pub shared: Arc<Shared>,
}

impl Source for KafkaSource {
    fn receive(&mut self, credit: Credit) -> BoxFuture<'_, Result<Vec<Delivery>, Error>> {
        Box::pin(async move {
            loop {
                let arrived = self.shared.arrived.notified();
                {
                    let mut state = self.shared.state.lock();
                    if let Some(error) = state.fatal.take() {
                        return Err(error);
                    }
                    let deliveries = state.hand(credit);
                    let wake = state.has_room_again();
                    let news = std::mem::take(&mut state.news);
                    drop(state);
                    if wake {
                        self.shared.wake.wake();
                    }
                    // An empty answer tells the engine that the group lets us work, with or without partitions.
                    if !deliveries.is_empty() || news {
                        return Ok(deliveries);
                    }
                }
                arrived.await;
            }
        })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.shared.state.lock().stopping = true;
            self.shared.wake.wake();
        })
    }
}
