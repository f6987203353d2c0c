//! The vocabulary, and what a message is.
//!
//! | word | meaning |
//! |---|---|
//! | topic | where events are published: a NATS subject, a Kafka topic, a SQLite topic |
//! | queue | a durable subscription to one or more topics, with its own slots, retries and dead letters |
//! | job | a named unit of work with typed arguments: what a handler implements |
//! | event | what was published: CloudEvents attributes and a body |
//! | delivery | one handing-over of an event to this worker, with the right and the duty to settle it |
//! | attempt | how often a handler has run this job, counted in our own record |
//! | slot | room for one running job in a queue's pool |
//! | outcome | what happened: done, failed, timed out, panicked, interrupted, malformed, expired, unroutable, snoozed |
//! | disposition | what we do about it: ack, retry, dead-letter, release |
//! | settle | carry the disposition out at the broker |
//! | dead letter | a delivery that cannot succeed, kept whole with the reason |
//! | replay | put a dead letter back on its queue |

pub mod attribute;
pub mod headers;

mod decode;
mod envelope;
pub use decode::{Malformed, decode};

pub mod cloudevents;
mod event;
pub(crate) use event::is_json;
pub use event::{Event, Mode, guess_content_type};

pub mod record;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;

pub use headers::Headers;

use crate::time::Timestamp;

/// What a broker stores and hands over: headers, body and key, byte for byte as they were published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Names and values as on the wire.
    pub headers: Headers,
    /// The payload. `None` is a Kafka null value; every other broker gives `Some`.
    pub body: Option<Bytes>,
    /// The record key: Kafka's own, `--key` on SQLite; elsewhere `None` (see [`Event::key`]).
    pub key: Option<Bytes>,
}

impl Message {
    /// Bytes of headers, body and key: what counts against `bytes_in_flight`.
    pub fn size(&self) -> usize {
        self.headers.size() + self.body.as_ref().map_or(0, Bytes::len) + self.key.as_ref().map_or(0, Bytes::len)
    }
}

/// How CloudEvents attributes are spelt in a broker's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// `ce-id`, values percent-encoded: the HTTP and NATS bindings, used for SQLite and memory too.
    Dash,
    /// `ce_id`, values plain UTF-8, `content-type` without a prefix: the Kafka binding.
    Kafka,
}

/// Where a message came from, when it has to be said: the id of a message that has none, and `origin`.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// `nats:STREAM`, `kafka:TOPIC:PARTITION` or `sqlite:TOPIC`; with `:SEQ` behind it an event id.
    pub position: String,
    /// The `source` of plain events: `nats://STREAM`, `kafka://TOPIC`, `sqlite://TOPIC`.
    pub source: String,
    /// The topic that the message was published to; `None` for a job enqueued for one queue.
    pub topic: Option<Arc<str>>,
    /// How attributes are spelt in its headers.
    pub binding: Binding,
}

/// One message's origin: the place, the number there, and when the broker stored it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The same for all messages of one place.
    pub place: &'a Place,
    /// Stream sequence, offset or row.
    pub seq: u64,
    /// When the broker stored it.
    pub at: Timestamp,
}

impl Origin<'_> {
    /// The id of an event that was published without one: `sqlite:reports.finalized:17`.
    pub fn event_id(&self) -> String {
        // Each plain event needs one: of the very length, without the formatter.
        [&self.place.position, ":", &self.seq.to_string()].concat()
    }
}

impl fmt::Display for Origin<'_> {
    /// The `origin` attribute: `sqlite:reports.finalized:17:1763719200000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.place.position, self.seq, self.at.as_millis())
    }
}

/// Validated UTF-8 that shares the buffer it was read from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Text(Bytes);

impl Text {
    /// Text that is part of the program.
    pub const fn from_static(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }

    /// Shares `bytes` where they are UTF-8.
    pub fn from_utf8(bytes: Bytes) -> Option<Self> {
        std::str::from_utf8(&bytes).ok()?;
        Some(Self(bytes))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // SAFETY: every constructor takes a `str` or checks the bytes, and nothing changes them afterwards.
        unsafe { std::str::from_utf8_unchecked(&self.0) }
    }
}

impl serde::Serialize for Text {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl std::ops::Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Bytes::from(text))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<Arc<str>> for Text {
    fn from(text: Arc<str>) -> Self {
        struct Owner(Arc<str>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }
        Self(Bytes::from_owner(Owner(text)))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// A name whose form was checked; the doc comment of each says the form.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the form.
            pub fn new(text: &str) -> Result<Self, String> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(format!(concat!("expected ", $expected, ", found {:?}"), text))
                }
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name, shared.
            pub fn shared(&self) -> Arc<str> {
                self.0.clone()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                Self::new(text)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

fn is_slug(text: &str, max: usize, underscore: bool) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (underscore && b == b'_');
    (1..=max).contains(&text.len()) && text.bytes().all(allowed)
}

name!(
    /// A queue's name: `[a-z0-9][a-z0-9_-]{0,63}`.
    QueueName,
    |t| is_slug(t, 64, true) && t.as_bytes()[0].is_ascii_alphanumeric(),
    "a queue name of lower-case letters, digits, `_` and `-` (at most 64, beginning with a letter or digit)"
);
name!(
    /// What begins the name of all that we create at a broker: `[a-z0-9-]{1,32}`.
    Namespace,
    |t| is_slug(t, 32, false),
    "a namespace of 1 to 32 lower-case letters, digits and `-`"
);
name!(
    /// A job's name: 1 to 128 visible ASCII characters.
    JobName,
    |t| (1..=128).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_graphic()),
    "a job name of 1 to 128 visible ASCII characters"
);
name!(
    /// A topic's name: 1 to 249 characters without spaces or control characters.
    Topic,
    |t| (1..=249).contains(&t.len()) && !t.chars().any(|c| c.is_whitespace() || c.is_control()),
    "a topic of 1 to 249 characters without spaces"
);

/// How often a handler has run this job, this time included; the first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(NonZeroU32);

impl Attempt {
    /// The first attempt.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// `None` for 0.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The one after this.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a delivery became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// Attempts ran out.
    Exhausted,
    /// The job said that trying again is of no use.
    Permanent,
    /// The bytes are not what they say they are.
    Malformed,
    /// No worker registered the job for `unroutable_after`.
    Unroutable,
    /// `expirytime` passed before it could start.
    Expired,
    /// It was running, alone among suspects, when its worker died.
    Crashed,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Exhausted, Self::Permanent, Self::Malformed, Self::Unroutable, Self::Expired, Self::Crashed];

    /// As headers, columns and JSON spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Permanent => "permanent",
            Self::Malformed => "malformed",
            Self::Unroutable => "unroutable",
            Self::Expired => "expired",
            Self::Crashed => "crashed",
        }
    }

    /// Reads what [`Reason::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// What went wrong in the last attempt, and since when attempts fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Low-cardinality name of the error: a type's name, `timeout`, `panic`, `http 503`.
    pub error_type: String,
    /// The message, at most [`Failure::MAX_ERROR`] bytes, cut at a character.
    pub error: String,
    /// When the first failure was.
    pub first: Timestamp,
    /// When the last failure was.
    pub last: Timestamp,
}

impl Failure {
    /// The longest error text that is kept: 1 KiB.
    pub const MAX_ERROR: usize = 1_024;

    /// Cuts `error` to [`Failure::MAX_ERROR`].
    pub fn new(error_type: impl Into<String>, error: impl Into<String>, first: Timestamp, last: Timestamp) -> Self {
        let mut error = error.into();
        let mut end = error.len().min(Self::MAX_ERROR);
        while !error.is_char_boundary(end) {
            end -= 1;
        }
        error.truncate(end);
        Self { error_type: error_type.into(), error, first, last }
    }
}
