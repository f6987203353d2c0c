//! How CloudEvents 1.0 attributes become headers, and headers attributes.
//!
//! Sources: CloudEvents 1.0.2 "HTTP Protocol Binding" 3.1.3 (header values, which the NATS binding takes over) and
//! "Kafka Protocol Binding" 3.2.3.

use std::borrow::Cow;

use super::headers::Builder;
use super::{Binding, Headers, attribute};
use crate::time::Timestamp;

/// The attributes of an event that is written in binary mode.
#[derive(Clone, Debug, Default)]
pub struct Attributes<'a> {
    /// `id`
    pub id: &'a str,
    /// `source`
    pub source: &'a str,
    /// `type`
    pub kind: &'a str,
    /// `datacontenttype`
    pub content_type: Option<&'a str>,
    /// `time`
    pub time: Option<Timestamp>,
    /// `partitionkey`
    pub key: Option<&'a str>,
    /// `expirytime`
    pub expires: Option<Timestamp>,
    /// `traceparent`, a plain header.
    pub traceparent: Option<&'a str>,
    /// Further attributes by their bare names.
    pub extensions: &'a [(String, String)],
    /// Headers that are no attributes, written as they are.
    pub headers: &'a [(String, String)],
}

/// Headers of an event in binary mode, in this binding.
pub fn write(attributes: &Attributes<'_>, binding: Binding) -> Headers {
    let mut writer = Writer::new(binding, 320);
    writer.attribute(attribute::SPECVERSION, "1.0");
    writer.attribute(attribute::ID, attributes.id);
    writer.attribute(attribute::SOURCE, attributes.source);
    writer.attribute(attribute::TYPE, attributes.kind);
    if let Some(time) = attributes.time {
        writer.attribute(attribute::TIME, &time.to_rfc3339());
    }
    if let Some(content_type) = attributes.content_type {
        writer.content_type(content_type);
    }
    if let Some(key) = attributes.key {
        writer.attribute(attribute::PARTITIONKEY, key);
    }
    if let Some(expires) = attributes.expires {
        writer.attribute(attribute::EXPIRYTIME, &expires.to_rfc3339());
    }
    for (name, value) in attributes.extensions {
        writer.attribute(name, value);
    }
    if let Some(traceparent) = attributes.traceparent {
        writer.header(attribute::TRACEPARENT, traceparent.as_bytes());
    }
    for (name, value) in attributes.headers {
        writer.header(name, value.as_bytes());
    }
    writer.finish()
}

/// The headers without the attribute `name`: a replay is published without `expirytime`. Of a structured event
/// the envelope stays as it is; [`decode`](super::decode) obeys no expiry of a replay.
pub fn without(headers: &Headers, binding: Binding, name: &str) -> Headers {
    let bears = |header: &str| {
        header.eq_ignore_ascii_case(name) || bare(header, binding).is_some_and(|bare| bare.eq_ignore_ascii_case(name))
    };
    if headers.iter().any(|(header, _)| bears(header)) {
        headers.iter().filter(|(header, _)| !bears(header)).collect()
    } else {
        headers.clone()
    }
}

/// Writes attributes as headers, one after the other.
pub(crate) struct Writer {
    binding: Binding,
    builder: Builder,
    name: String,
    value: String,
}

impl Writer {
    pub(crate) fn new(binding: Binding, room: usize) -> Self {
        Self { binding, builder: Builder::with_capacity(room), name: String::new(), value: String::new() }
    }

    /// An attribute, by its bare name.
    pub(crate) fn attribute(&mut self, name: &str, value: &str) {
        self.name.clear();
        self.name.push_str(prefix(self.binding));
        self.name.push_str(name);
        match self.binding {
            Binding::Kafka => self.builder.push(&self.name, value.as_bytes()),
            Binding::Dash => {
                self.value.clear();
                encode_into(value, &mut self.value);
                self.builder.push(&self.name, self.value.as_bytes());
            }
        }
    }

    /// The media type of the body, which Kafka has without a prefix.
    pub(crate) fn content_type(&mut self, value: &str) {
        match self.binding {
            Binding::Kafka => self.header(attribute::CONTENT_TYPE, value.as_bytes()),
            Binding::Dash => self.attribute(attribute::DATACONTENTTYPE, value),
        }
    }

    /// A header that is no attribute.
    pub(crate) fn header(&mut self, name: &str, value: &[u8]) {
        self.builder.push(name, value);
    }

    pub(crate) fn finish(mut self) -> Headers {
        self.builder.finish()
    }
}

/// What stands before an attribute's name.
pub const fn prefix(binding: Binding) -> &'static str {
    match binding {
        Binding::Dash => "ce-",
        Binding::Kafka => "ce_",
    }
}

/// The attribute's name in a header's, in the header's own case; `None` where it is no attribute.
pub fn bare(header: &str, binding: Binding) -> Option<&str> {
    let (head, name) = header.split_at_checked(3)?;
    head.eq_ignore_ascii_case(prefix(binding)).then_some(name)
}

/// A header's value as this binding means it; `None` where it is not UTF-8.
pub fn decode_value(value: &[u8], binding: Binding) -> Option<Cow<'_, str>> {
    match binding {
        Binding::Dash if is_encoded(value) => percent_decode(value).map(Cow::Owned),
        _ => std::str::from_utf8(value).ok().map(Cow::Borrowed),
    }
}

/// What there is to do to read a header's value as text.
pub(crate) enum Value {
    /// Nothing: it is ASCII and stands there as it is.
    Ascii,
    /// It has to be looked at: not ASCII, and not encoded.
    Other,
    /// It was encoded; `None` where it does not decode to text.
    Encoded(Option<String>),
}

impl Value {
    /// One look at each byte.
    pub(crate) fn of(value: &[u8], binding: Binding) -> Self {
        let high = value.iter().fold(0, |high, byte| high | byte) & 0x80 != 0;
        if binding == Binding::Dash {
            let percent = value.iter().fold(false, |found, byte| found | (*byte == b'%'));
            if percent || value.first() == Some(&b'"') {
                return Self::Encoded(percent_decode(value));
            }
        }
        if high { Self::Other } else { Self::Ascii }
    }
}

/// Whether decoding a `Dash` value changes it.
pub(crate) fn is_encoded(value: &[u8]) -> bool {
    value.first() == Some(&b'"') || value.contains(&b'%')
}

/// An attribute's value as an HTTP or NATS header: space, `"`, `%` and all outside U+0021 to U+007E as `%XX`.
pub fn encode(value: &str) -> Cow<'_, str> {
    if value.bytes().all(is_plain) {
        return Cow::Borrowed(value);
    }
    let mut encoded = String::with_capacity(value.len() + 16);
    encode_into(value, &mut encoded);
    Cow::Owned(encoded)
}

fn encode_into(value: &str, encoded: &mut String) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    for byte in value.bytes() {
        if is_plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.extend(['%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && byte != b'"' && byte != b'%'
}

/// One round: a quoted string loses its quotes and backslashes, then `%XX` becomes the byte it names. What is no
/// `%XX` stays as it is.
fn percent_decode(value: &[u8]) -> Option<String> {
    let unquoted = match value {
        [b'"', inner @ .., b'"'] => Cow::Owned(unquote(inner)),
        _ => Cow::Borrowed(value),
    };
    let mut decoded = Vec::with_capacity(unquoted.len());
    let mut rest = &unquoted[..];
    while let Some((&byte, tail)) = rest.split_first() {
        let escape = match tail {
            [high, low, ..] if byte == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = escape {
            decoded.push(high << 4 | low);
            rest = &tail[2..];
        } else {
            decoded.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(decoded).ok()
}

fn unquote(inner: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        let escaped = if byte == b'\\' { bytes.next() } else { None };
        plain.push(escaped.copied().unwrap_or(byte));
    }
    plain
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_encoded_as_the_binding_says() {
        // The example of the HTTP binding, 3.1.3.2.
        assert_eq!(encode("Euro € 😀"), "Euro%20%E2%82%AC%20%F0%9F%98%80");
        for (wire, value) in [
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
            ("\"quoted \\\" and \\\\\"", "quoted \" and \\"),
            ("\"a%20b\"", "a b"),
            ("50%", "50%"),
            ("%zz", "%zz"),
            ("%2541", "%41"),
        ] {
            assert_eq!(decode_value(wire.as_bytes(), Binding::Dash).as_deref(), Some(value), "{wire}");
        }
        assert_eq!(decode_value(b"%FF", Binding::Dash), None);
        assert_eq!(decode_value(b"a%20b", Binding::Kafka).as_deref(), Some("a%20b"));
    }

    #[test]
    fn an_attribute_can_be_left_out() {
        let headers: Headers =
            [("ce-id", "1"), ("CE-ExpiryTime", "x"), ("expirytime", "x"), ("other", "y")].into_iter().collect();
        let left = without(&headers, Binding::Dash, attribute::EXPIRYTIME);
        assert_eq!(left, [("ce-id", "1"), ("other", "y")].into_iter().collect());
    }

    proptest! {
        #[test]
        fn encoding_round_trips(value in ".{0,40}") {
            let encoded = encode(&value);
            prop_assert!(encoded.bytes().all(|b| b.is_ascii_graphic()));
            let decoded = decode_value(encoded.as_bytes(), Binding::Dash);
            prop_assert_eq!(decoded.as_deref(), Some(&value[..]));
        }

        #[test]
        fn decoding_never_panics(value in proptest::collection::vec(prop_oneof![Just(b'%'), Just(b'"'), Just(b'\\'), any::<u8>()], 0..24)) {
            let _ = decode_value(&value, Binding::Dash);
        }
    }
}
