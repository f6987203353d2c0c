//! The one JSON object that is a structured CloudEvent: attributes and data together.
//!
//! Source: CloudEvents 1.0.2 "JSON Event Format", 3.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Malformed, Text, attribute};

/// What stands in an envelope. Attributes are strings, numbers or booleans, and are kept as text; null is as good as
/// absent.
#[derive(Default)]
pub(super) struct Envelope<'a> {
    pub(super) specversion: Option<String>,
    pub(super) id: Option<String>,
    pub(super) source: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) content_type: Option<String>,
    /// `data`, the bytes that it is.
    data: Option<&'a RawValue>,
    base64: Option<String>,
    /// All other attributes, names in lower case.
    pub(super) further: Vec<(Text, Text)>,
}

/// What an envelope holds.
pub(super) enum Data {
    /// JSON, byte for byte as it stood there.
    Json(Bytes),
    /// What `data_base64` says.
    Decoded(Bytes),
}

impl<'a> Envelope<'a> {
    /// Reads the whole body.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(body).map_err(unreadable)?;
        let mut json = serde_json::Deserializer::from_str(text);
        let envelope = json.deserialize_map(EnvelopeVisitor).map_err(unreadable)?;
        json.end().map_err(unreadable)?;
        Ok(envelope)
    }

    /// The data, sharing `body`.
    pub(super) fn data(&self, body: &Bytes) -> Result<Option<Data>, Malformed> {
        use base64::Engine as _;
        match (self.data, &self.base64) {
            (Some(_), Some(_)) => Err(unreadable("both data and data_base64 are there")),
            (Some(raw), None) => Ok(Some(Data::Json(body.slice_ref(raw.get().as_bytes())))),
            (None, Some(encoded)) => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.as_bytes());
                let decoded = decoded.map_err(|error| unreadable(format_args!("data_base64: {error}")))?;
                Ok(Some(Data::Decoded(Bytes::from(decoded))))
            }
            (None, None) => Ok(None),
        }
    }

    /// The attribute `name` of those without a field.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.further.iter().find(|(found, _)| found.as_str() == name).map(|(_, value)| value.as_str())
    }
}

struct EnvelopeVisitor;

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object with the event's attributes")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut envelope = Envelope::default();
        while let Some(Key(name)) = map.next_key()? {
            let field = match &*name {
                "data" => {
                    envelope.data = Some(map.next_value()?);
                    continue;
                }
                "data_base64" => &mut envelope.base64,
                attribute::SPECVERSION => &mut envelope.specversion,
                attribute::ID => &mut envelope.id,
                attribute::SOURCE => &mut envelope.source,
                attribute::TYPE => &mut envelope.kind,
                attribute::DATACONTENTTYPE => &mut envelope.content_type,
                _ => {
                    if let Scalar(Some(value)) = map.next_value()? {
                        envelope.further.push((name.to_ascii_lowercase().into(), value.into()));
                    }
                    continue;
                }
            };
            let Scalar(value) = map.next_value()?;
            *field = value;
        }
        Ok(envelope)
    }
}

/// An object's key, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// An attribute's value as text; `None` for null, and for arrays and objects, which no attribute can be.
struct Scalar(Option<String>);

impl<'de> serde::Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an attribute: a string, a number or a boolean")
    }

    fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
        Ok(Scalar(Some(value.to_owned())))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
        Ok(Scalar(Some(value.to_string())))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
        Ok(Scalar(Some(value.to_string())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
        Ok(Scalar(Some(value.to_string())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
        Ok(Scalar(Some(value.to_string())))
    }

    fn visit_unit<E>(self) -> Result<Scalar, E> {
        Ok(Scalar(None))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar(None))
    }
}

fn unreadable(why: impl fmt::Display) -> Malformed {
    Malformed(format!("the structured CloudEvent cannot be read: {why}"))
}
