//! An event: what a job is run for.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::decode::Malformed;
use super::{Binding, Headers, Text, attribute, cloudevents};
use crate::time::Timestamp;

/// A decoded event: CloudEvents 1.0 attributes and the body that a job reads.
#[derive(Clone, Debug)]
pub struct Event {
    /// `id`; of a plain message `nats:STREAM:SEQ` and the like, the same at each delivery.
    pub id: Text,
    /// `source`; of a plain message `sqlite://TOPIC` and the like.
    pub source: Text,
    /// `type`; of a plain message the topic.
    pub kind: Text,
    /// `datacontenttype`, where one was given; `application/json` for the `data` of a structured event without one.
    pub content_type: Option<Text>,
    /// The ordering key: the record's own, else `partitionkey`.
    pub key: Option<Bytes>,
    /// `expirytime`: not to be started after this. A replay has none.
    pub expires: Option<Timestamp>,
    /// The topic it was published to; `None` for a job enqueued for one queue.
    pub topic: Option<Arc<str>>,
    /// All headers as on the wire.
    pub headers: Headers,
    /// Further attributes (`subject`, `time`, `dataschema`, extensions), by lower-case name, where they are
    /// not in the headers in plain form: those of a structured event, those that were percent-encoded. See
    /// [`Event::attribute`].
    pub attributes: Vec<(Text, Text)>,
    /// What the job reads: the body in binary and plain mode, `data` or the decoded `data_base64` of a
    /// structured event. Empty where there is none.
    pub data: Bytes,
    /// How `headers` spell attributes.
    pub binding: Binding,
    /// How it was published.
    pub mode: Mode,
    /// The content type says JSON, and nobody has parsed [`Event::data`] yet. A typed job parses it anyway; what
    /// takes bytes calls [`Event::check`] first.
    pub unchecked: bool,
}

/// How an event was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CloudEvents, attributes in headers.
    Binary,
    /// CloudEvents, attributes and data in one JSON object.
    Structured,
    /// No CloudEvent.
    Plain,
}

impl Event {
    /// An attribute beside `id`, `source`, `type` and `datacontenttype`, by its lower-case name: `subject`, `time`,
    /// an extension.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.extensions().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All attributes beside `specversion`, `id`, `source`, `type` and `datacontenttype`, names in their own case.
    pub fn extensions(&self) -> impl Iterator<Item = (&str, &str)> {
        let decoded = self.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let headers = self.headers.iter().filter_map(|(name, value)| {
            let name = cloudevents::bare(name, self.binding)?;
            // Encoded values stand decoded in `attributes`.
            let encoded = self.binding == Binding::Dash && cloudevents::is_encoded(value);
            if self.mode != Mode::Binary || encoded || is_core(name) {
                return None;
            }
            std::str::from_utf8(value).ok().map(|value| (name, value))
        });
        decoded.chain(headers)
    }

    /// The W3C trace context of the hop that published it.
    pub fn traceparent(&self) -> Option<&str> {
        self.headers.get_str_ignore_case(attribute::TRACEPARENT).or_else(|| self.attribute(attribute::TRACEPARENT))
    }

    /// Whether the content type says JSON: `application/json`, `text/json`, or what ends in `+json`.
    pub fn is_json(&self) -> bool {
        self.content_type.as_ref().is_some_and(|content_type| is_json(content_type))
    }

    /// Where the content type says JSON and nobody has parsed the data yet: whether it is JSON (RFC 8259).
    pub fn check(&self) -> Result<(), Malformed> {
        if !self.unchecked {
            return Ok(());
        }
        check_json(&self.data)
    }

    /// The event as CloudEvents JSON: attributes, and `data` (JSON as such, other text as a string) or `data_base64`.
    pub fn to_json(&self) -> serde_json::Value {
        let mut object = serde_json::Map::new();
        let mut put = |name: &str, value: &str| {
            object.insert(name.to_owned(), value.into());
        };
        put("specversion", "1.0");
        put("id", &self.id);
        put("source", &self.source);
        put("type", &self.kind);
        if let Some(content_type) = &self.content_type {
            put("datacontenttype", content_type);
        }
        if let Some(key) = self.key.as_ref().and_then(|key| std::str::from_utf8(key).ok()) {
            put(attribute::PARTITIONKEY, key);
        }
        for (name, value) in self.extensions() {
            put(&name.to_ascii_lowercase(), value);
        }
        if let Some(traceparent) = self.traceparent() {
            put(attribute::TRACEPARENT, traceparent);
        }
        let json =
            if self.content_type.is_none() || self.is_json() { serde_json::from_slice(&self.data).ok() } else { None };
        if let Some(json) = json {
            object.insert("data".to_owned(), json);
        } else if let Ok(text) = std::str::from_utf8(&self.data) {
            if !text.is_empty() {
                object.insert("data".to_owned(), text.into());
            }
        } else {
            use base64::Engine as _;
            let encoded = base64::engine::general_purpose::STANDARD.encode(&self.data);
            object.insert("data_base64".to_owned(), encoded.into());
        }
        object.into()
    }
}

/// Attributes that have a field of their own in [`Event`].
pub(super) fn is_core(name: &str) -> bool {
    [attribute::SPECVERSION, attribute::ID, attribute::SOURCE, attribute::TYPE, attribute::DATACONTENTTYPE]
        .iter()
        .any(|core| core.eq_ignore_ascii_case(name))
}

/// The media type without its parameters.
pub(crate) fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Whether a media type says JSON.
pub(crate) fn is_json(content_type: &str) -> bool {
    if content_type == "application/json" {
        return true;
    }
    let essence = essence(content_type);
    let ends_with = |suffix: &str| {
        let start = essence.len().checked_sub(suffix.len());
        start
            .and_then(|start| essence.as_bytes().get(start..))
            .is_some_and(|end| end.eq_ignore_ascii_case(suffix.as_bytes()))
    };
    ends_with("/json") || ends_with("+json")
}

/// Whether bytes are JSON, without building a tree. Nothing at all is no fault: an event may be empty.
pub(crate) fn check_json(data: &[u8]) -> Result<(), Malformed> {
    if data.is_empty() {
        return Ok(());
    }
    let text = std::str::from_utf8(data).map_err(|error| Malformed(format!("content is not JSON: {error}")))?;
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(Malformed(format!("content is not JSON: {error}"))),
    }
}

/// The content type of bytes that come without one: JSON, text, or binary; `None` for nothing.
pub fn guess_content_type(data: &[u8]) -> Option<&'static str> {
    if data.is_empty() {
        None
    } else if check_json(data).is_ok() {
        Some("application/json")
    } else if std::str::from_utf8(data).is_ok() {
        Some("text/plain; charset=utf-8")
    } else {
        Some("application/octet-stream")
    }
}
