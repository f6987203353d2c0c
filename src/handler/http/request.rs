//! The headers of a request.
//!
//! Source: CloudEvents 1.0.2 "HTTP Protocol Binding" 3.1: `ce-` and the attribute's name, values percent-encoded,
//! `datacontenttype` as `Content-Type`.

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use crate::message::{Event, attribute, cloudevents, guess_content_type};

/// Passed on from hop to hop (W3C Trace Context, W3C Baggage).
const TRACING: [&str; 3] = [attribute::TRACEPARENT, "tracestate", "baggage"];

/// The headers of this attempt.
pub fn headers(event: &Event, attempt: u32) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(12);
    for (name, value) in event.extensions() {
        put(&mut headers, name, value);
    }
    if !headers.contains_key("ce-partitionkey")
        && let Some(key) = event.key.as_ref().and_then(|key| std::str::from_utf8(key).ok())
    {
        put(&mut headers, attribute::PARTITIONKEY, key);
    }
    // Of a plain message it is no attribute, and is obeyed all the same; a replay has none.
    match event.expires {
        Some(expires) if !headers.contains_key("ce-expirytime") => {
            put(&mut headers, attribute::EXPIRYTIME, &expires.to_rfc3339());
        }
        Some(_) => {}
        None => {
            headers.remove("ce-expirytime");
        }
    }
    // Ours come last and replace a producer's of the same name.
    headers.insert("ce-specversion", HeaderValue::from_static("1.0"));
    put(&mut headers, attribute::ID, &event.id);
    put(&mut headers, attribute::SOURCE, &event.source);
    put(&mut headers, attribute::TYPE, &event.kind);
    headers.insert("ce-attempt", HeaderValue::from(attempt));
    for name in TRACING {
        let value = event.headers.get_str_ignore_case(name).or_else(|| event.attribute(name));
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
        }
    }
    // Servers parse a body by its type: what has none is called what it looks like.
    let content_type = event.content_type.as_deref().or_else(|| guess_content_type(&event.data));
    if let Some(value) = content_type.and_then(|value| HeaderValue::from_str(value).ok()) {
        headers.insert(CONTENT_TYPE, value);
    }
    headers
}

/// An attribute; one whose name is no name of a header is left out.
fn put(headers: &mut HeaderMap, name: &str, value: &str) {
    let name = HeaderName::from_bytes([b"ce-", name.as_bytes()].concat().as_slice());
    let value = HeaderValue::from_str(&cloudevents::encode(value));
    if let (Ok(name), Ok(value)) = (name, value) {
        headers.insert(name, value);
    }
}
