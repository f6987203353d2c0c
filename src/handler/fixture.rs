//! Contexts for the tests of handlers.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{Context, Shared};
use crate::client::Client;
use crate::message::{Attempt, Binding, Event, JobName, Message, Namespace, Origin, Place, QueueName, decode};
use crate::time::Timestamp;

/// An event that was published to `reports` with these headers, in the `ce-` binding.
pub fn event(headers: &[(&str, &str)], body: &[u8]) -> Event {
    let place = Place {
        position: "sqlite:reports".to_owned(),
        source: "sqlite://reports".to_owned(),
        topic: Some("reports".into()),
        binding: Binding::Dash,
    };
    let origin = Origin { place: &place, seq: 17, at: Timestamp::from_millis(0) };
    let message =
        Message { headers: headers.iter().copied().collect(), body: Some(Bytes::copy_from_slice(body)), key: None };
    decode(&message, &origin, None).expect("whole")
}

/// The context of an attempt at it, by job `job` of queue `queue`.
pub async fn context(event: Event, attempt: u32, wants_result: bool) -> Context {
    let namespace = Namespace::new("test").expect("fits");
    let client = Client::connect_in("memory://", namespace).await.expect("memory is there");
    let job = JobName::new("job").expect("fits");
    let queue = QueueName::new("queue").expect("fits");
    let shared = Arc::new(Shared { queue, job, attempts: 20, client, state: Arc::new(HashMap::new()) });
    let attempt = Attempt::new(attempt).expect("not 0");
    Context::new(event, attempt, None, wants_result, shared)
}
