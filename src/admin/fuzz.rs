//! See [`crate::fuzz`]: bodies that the admin port is sent.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use super::incoming::{self, Defaults};
use crate::message::{Binding, Origin, Place, decode};
use crate::time::Timestamp;

/// What is taken can be read by a worker.
pub fn body(input: &[u8]) {
    let (pairs, body) = crate::fuzz::head_and_body(input);
    let pair =
        |(name, value): (&str, &[u8])| Some((HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(value).ok()?));
    let headers: HeaderMap = pairs.into_iter().filter_map(pair).collect();
    for binding in [Binding::Dash, Binding::Kafka] {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let defaults = Defaults { kind: "t", source: "windlass://n/q", binding, now };
        let Ok(incoming) = incoming::read(&headers, Bytes::copy_from_slice(body), &defaults) else { continue };
        assert_eq!(incoming.message.body.as_deref(), Some(body), "the body is kept");
        let place = Place { position: "p".to_owned(), source: "s".to_owned(), topic: None, binding };
        let event = decode(&incoming.message, &Origin { place: &place, seq: 1, at: now }, None);
        let event = event.expect("what is taken can be read");
        assert_eq!(&*event.id, incoming.id, "under the id that was answered");
    }
}
