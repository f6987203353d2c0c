//! A dead letter as JSON: the row of a listing, and the line of an export, which holds the letter whole.
//!
//! A line is a row with `headers` and `body` (or `body_base64`) and, under `record`, what only an import needs. A line
//! written by hand may leave `record` out, and everything else but `id`, `reason` and a body.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use super::fingerprint::fingerprint;
use super::{Letter, selector};
use crate::message::record::Record;
use crate::message::{Attempt, Binding, Failure, Headers, JobName, Message, QueueName, Reason};
use crate::time::Timestamp;

/// A row of `dlq list`. Times are RFC 3339.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Row {
    /// The letter's id.
    pub id: String,
    /// Its queue.
    pub queue: String,
    /// The event's id; `null` where it could not be decoded.
    pub event_id: Option<String>,
    /// The job that ran or would have run.
    pub job: String,
    /// The topic it was published to; `null` for an enqueued job.
    pub topic: Option<String>,
    /// Its ordering key.
    pub key: Option<String>,
    /// Why it is here.
    pub reason: String,
    /// Low-cardinality name of the error.
    pub error_type: String,
    /// The error.
    pub error: String,
    /// Attempts made.
    pub attempts: u32,
    /// The first failure.
    pub first_failed: String,
    /// The last failure.
    pub last_failed: String,
    /// See [`fingerprint`].
    pub fingerprint: String,
    /// How often it was replayed.
    pub replays: u32,
}

impl From<&Letter> for Row {
    fn from(letter: &Letter) -> Self {
        Self {
            id: letter.id.clone(),
            queue: letter.queue.to_string(),
            event_id: letter.event_id.clone(),
            job: letter.job.to_string(),
            topic: letter.record.topic.as_deref().map(str::to_owned),
            key: selector::key(letter).map(|key| String::from_utf8_lossy(&key).into_owned()),
            reason: letter.reason.as_str().to_owned(),
            error_type: letter.failure.error_type.clone(),
            error: letter.failure.error.clone(),
            attempts: letter.attempts,
            first_failed: letter.failure.first.to_rfc3339(),
            last_failed: letter.failure.last.to_rfc3339(),
            fingerprint: fingerprint(letter),
            replays: letter.record.replays,
        }
    }
}

/// A line of `dlq export`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Line {
    /// What a listing shows.
    #[serde(flatten)]
    pub row: Row,
    /// The original's headers.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub headers: HeaderObject,
    /// The body, where it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The body, where it is not. Without either the original had none (a Kafka null value).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// What only an import needs.
    #[serde(default)]
    pub record: Kept,
}

/// What a row does not say of a letter, and an import must know. Bytes are base64.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Kept {
    /// How the headers spell attributes: `dash` (`ce-id`) or `kafka` (`ce_id`).
    pub binding: Spelling,
    /// The job that the original named, if it named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The record's own key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// The `origin` attribute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The event's id, where the original had none of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// The original's `source`, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_source: Option<String>,
    /// When the event was first handed out, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_seen: Option<String>,
    /// All headers as pairs of name and base64, where an object cannot hold them: a name occurs twice, or ends in
    /// `:base64` itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Vec<String>>)]
    pub headers: Vec<(String, String)>,
}

/// [`Binding`] in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Spelling {
    /// [`Binding::Dash`]
    #[default]
    Dash,
    /// [`Binding::Kafka`]
    Kafka,
}

/// Headers as an object of strings in the order they were written; a value that is not UTF-8 is base64 and its name
/// ends in `:base64`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderObject(pub Vec<(String, String)>);

/// What the name of a header ends in whose value is base64.
const ENCODED: &str = ":base64";

impl HeaderObject {
    /// The object, and whether it says everything.
    pub fn of(headers: &Headers) -> (Self, bool) {
        let mut pairs: Vec<(String, String)> = Vec::new();
        let mut whole = true;
        for (name, value) in headers.iter() {
            let pair = match std::str::from_utf8(value) {
                Ok(text) => (name.to_owned(), text.to_owned()),
                Err(_) => (format!("{name}{ENCODED}"), BASE64.encode(value)),
            };
            whole &= !name.ends_with(ENCODED);
            if pairs.iter().any(|(other, _)| *other == pair.0) {
                whole = false;
            } else {
                pairs.push(pair);
            }
        }
        (Self(pairs), whole)
    }

    fn headers(&self) -> Result<Headers, String> {
        let pairs = self.0.iter().map(|(name, value)| match name.strip_suffix(ENCODED) {
            Some(name) => Ok((name, decode(&format!("headers.{name}{ENCODED}"), value)?)),
            None => Ok((name.as_str(), value.clone().into_bytes())),
        });
        pairs.collect::<Result<Vec<_>, String>>().map(|pairs| pairs.into_iter().collect())
    }
}

impl Serialize for HeaderObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for HeaderObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = HeaderObject;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderObject, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(HeaderObject(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl From<&Letter> for Line {
    fn from(letter: &Letter) -> Self {
        let (headers, whole) = HeaderObject::of(&letter.message.headers);
        let pairs = letter.message.headers.iter().map(|(name, value)| (name.to_owned(), BASE64.encode(value)));
        let (body, body_base64) = match letter.message.body.as_deref().map(std::str::from_utf8) {
            Some(Ok(text)) => (Some(text.to_owned()), None),
            Some(Err(_)) => (None, letter.message.body.as_ref().map(|body| BASE64.encode(body))),
            None => (None, None),
        };
        let record = &letter.record;
        Self {
            row: Row::from(letter),
            headers,
            body,
            body_base64,
            record: Kept {
                binding: match letter.binding {
                    Binding::Dash => Spelling::Dash,
                    Binding::Kafka => Spelling::Kafka,
                },
                job: record.job.as_ref().map(ToString::to_string),
                key_base64: letter.message.key.as_ref().map(|key| BASE64.encode(key)),
                origin: record.origin.clone(),
                event_id: record.event_id.clone(),
                event_source: record.event_source.clone(),
                first_seen: record.first_seen.map(Timestamp::to_rfc3339),
                headers: if whole { Vec::new() } else { pairs.collect() },
            },
        }
    }
}

impl Line {
    /// The letter, as one of `queue`; what is absent is filled in as of `now`. An error names the key that is wrong.
    pub fn into_letter(self, queue: &QueueName, now: Timestamp) -> Result<Letter, String> {
        let Self { row, headers, body, body_base64, record: kept } = self;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if row.id.is_empty() || !row.id.bytes().all(allowed) {
            return Err(format!("id: expected letters, digits, `_` and `-`, found {:?}", row.id));
        }
        let reason = Reason::parse(&row.reason).ok_or_else(|| {
            let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
            format!("reason: expected one of {}, found {:?}", known.join(", "), row.reason)
        })?;
        let time = |name: &str, text: &str| match text {
            "" => Ok(now),
            text => Timestamp::parse_rfc3339(text).ok_or_else(|| format!("{name}: expected RFC 3339, found {text:?}")),
        };
        let first = time("first_failed", &row.first_failed)?;
        let last = time("last_failed", &row.last_failed)?;
        let headers = if kept.headers.is_empty() {
            headers.headers()?
        } else {
            let pairs = kept.headers.iter().map(|(name, value)| Ok((name, decode("record.headers", value)?)));
            pairs.collect::<Result<Vec<_>, String>>()?.into_iter().collect()
        };
        let body = match (body, body_base64) {
            (Some(_), Some(_)) => return Err("body and body_base64 exclude each other".to_owned()),
            (Some(text), None) => Some(Bytes::from(text)),
            (None, Some(text)) => Some(Bytes::from(decode("body_base64", &text)?)),
            (None, None) => None,
        };
        let key = match (&kept.key_base64, &row.key) {
            (Some(text), _) => Some(Bytes::from(decode("record.key_base64", text)?)),
            // A line that we wrote: the key is an attribute among the headers.
            (None, Some(_)) if kept != Kept::default() => None,
            (None, key) => key.clone().map(Bytes::from),
        };
        let named =
            kept.job.as_deref().map(JobName::new).transpose().map_err(|error| format!("record.job: {error}"))?;
        let job = match row.job.as_str() {
            "" => named.clone().map_or_else(|| JobName::new(queue.as_str()), Ok),
            job => JobName::new(job),
        };
        let first_seen = kept.first_seen.as_deref().map(|text| time("record.first_seen", text)).transpose()?;
        Ok(Letter {
            id: row.id,
            queue: queue.clone(),
            message: Message { headers, body, key },
            binding: match kept.binding {
                Spelling::Dash => Binding::Dash,
                Spelling::Kafka => Binding::Kafka,
            },
            record: Record {
                job: named,
                attempt: Attempt::FIRST,
                first_seen,
                origin: kept.origin,
                event_id: kept.event_id,
                event_source: kept.event_source,
                topic: row.topic.map(Into::into),
                replays: row.replays,
                ..Record::default()
            },
            event_id: row.event_id,
            job: job.map_err(|error| format!("job: {error}"))?,
            reason,
            attempts: row.attempts,
            failure: Failure::new(row.error_type, row.error, first, last),
        })
    }
}

fn decode(name: &str, text: &str) -> Result<Vec<u8>, String> {
    BASE64.decode(text).map_err(|error| format!("{name}: expected base64: {error}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A letter of queue `invoice`.
    pub(crate) fn letter(id: &str, error: &str) -> Letter {
        let at = Timestamp::from_millis(1_763_719_200_000);
        Letter {
            id: id.to_owned(),
            queue: QueueName::new("invoice").expect("a queue"),
            message: Message {
                headers: [("ce-id", "evt-1"), ("x-team", "billing")].into_iter().collect(),
                body: Some(Bytes::from_static(b"{\"a\":1}")),
                key: Some(Bytes::from_static(b"k")),
            },
            binding: Binding::Dash,
            record: Record { topic: Some("reports.finalized".into()), ..Record::default() },
            event_id: Some("evt-1".to_owned()),
            job: JobName::new("invoice").expect("a job"),
            reason: Reason::Permanent,
            attempts: 5,
            failure: Failure::new("io::Error", error, at, at.after(std::time::Duration::from_secs(1))),
        }
    }

    #[test]
    fn a_line_is_the_shape_that_others_rely_on() {
        let line = serde_json::to_value(Line::from(&letter("L1", "no report 17"))).expect("JSON");
        let expected = serde_json::json!({
            "id": "L1", "queue": "invoice", "event_id": "evt-1", "job": "invoice", "topic": "reports.finalized",
            "key": "k", "reason": "permanent", "error_type": "io::Error", "error": "no report 17", "attempts": 5,
            "first_failed": "2025-11-21T10:00:00.000Z", "last_failed": "2025-11-21T10:00:01.000Z",
            "fingerprint": fingerprint(&letter("L1", "no report 18")), "replays": 0,
            "headers": {"ce-id": "evt-1", "x-team": "billing"}, "body": "{\"a\":1}",
            "record": {"binding": "dash", "key_base64": "aw=="},
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_line_by_hand_needs_little() {
        let line: Line = serde_json::from_str(r#"{"id":"x","reason":"permanent","key":"k","body":"1"}"#).expect("JSON");
        let queue = QueueName::new("invoice").expect("a queue");
        let letter = line.into_letter(&queue, Timestamp::from_millis(5)).expect("a letter");
        assert_eq!((letter.job.as_str(), letter.failure.last.as_millis()), ("invoice", 5));
        assert_eq!(letter.message.key.as_deref(), Some(&b"k"[..]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let queue = QueueName::new("invoice").expect("a queue");
        let fault = |text: &str| {
            let line: Line = serde_json::from_str(text).expect("JSON");
            line.into_letter(&queue, Timestamp::default()).expect_err("a fault")
        };
        assert!(fault(r#"{"id":"a b","reason":"permanent"}"#).starts_with("id: "));
        assert!(fault(r#"{"id":"a","reason":"bad"}"#).starts_with("reason: expected one of exhausted"));
        assert!(fault(r#"{"id":"a","reason":"permanent","body_base64":"!"}"#).starts_with("body_base64: "));
        assert!(fault(r#"{"id":"a","reason":"permanent","body_base64":"","body":""}"#).contains("exclude"));
        assert!(fault(r#"{"id":"a","reason":"permanent","last_failed":"soon"}"#).starts_with("last_failed: "));
    }

    proptest! {
        #[test]
        fn export_and_import_lose_nothing(
            headers in proptest::collection::vec(("[a-c](:base64)?", proptest::collection::vec(any::<u8>(), 0..4)), 0..5),
            body in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..4)),
            named in any::<bool>(),
            kafka in any::<bool>(),
        ) {
            let mut letter = letter("L1", "no report");
            letter.message = Message { headers: headers.into_iter().collect(), body: body.map(Into::into), key: key.map(Into::into) };
            letter.record.job = named.then(|| letter.job.clone());
            letter.binding = if kafka { Binding::Kafka } else { Binding::Dash };
            let text = serde_json::to_string(&Line::from(&letter)).expect("JSON");
            let line: Line = serde_json::from_str(&text).expect("our own line");
            let again = line.into_letter(&letter.queue, Timestamp::default()).expect("a letter");
            prop_assert_eq!(&again.message, &letter.message);
            prop_assert_eq!(&again.record, &letter.record);
            prop_assert_eq!(&again.failure, &letter.failure);
            prop_assert_eq!(again.binding, letter.binding);
        }
    }
}
