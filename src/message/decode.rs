//! Bytes and headers to an event.
//!
//! Three forms are read: CloudEvents binary mode (there is a `specversion` among the headers), structured mode (the
//! content type begins with `application/cloudevents`), and plain messages of somebody who has never heard of us.
//! The order is that of the bindings: structured first. One pass over the headers; an event shares their buffer.
//!
//! What is [`Malformed`] here never runs. One check is left to whoever reads the data, so that it costs one parse:
//! JSON content that is not JSON (see [`Event::check`]).

use std::sync::Arc;

use bytes::Bytes;

use super::envelope::{Data, Envelope};
use super::event::{self, Mode};
use super::headers::Span;
use super::record::Record;
use super::{Binding, Event, Headers, JobName, Message, Origin, Text, attribute, cloudevents};
use crate::time::Timestamp;

/// Why bytes are not what they say they are: a lower-case fragment for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// Decodes what lay at `origin`. Where it was a record of ours, `message` is the original, and `record` supplies
/// the id, source and topic that it has not itself.
pub fn decode(message: &Message, origin: &Origin<'_>, record: Option<&Record>) -> Result<Event, Malformed> {
    let found = Found::read(&message.headers, origin.place.binding);
    let original = Original { message, origin, record, binding: origin.place.binding };
    // Each makes the whole event where it is to lie: it is too large to be moved about.
    if found.content_type.found().is_some_and(|span| is_structured(message.headers.value(span))) {
        original.structured()
    } else if found.specversion {
        original.binary(found)
    } else {
        original.plain(found)
    }
}

/// What one pass over the headers finds; of several under one name the first counts.
#[derive(Default)]
struct Found {
    specversion: bool,
    id: Span,
    source: Span,
    kind: Span,
    datacontenttype: Span,
    content_type: Span,
    partitionkey: Span,
    expirytime: Span,
    /// Without the prefix: obeyed on plain messages.
    plain_partitionkey: Span,
    plain_expirytime: Span,
    /// Other attributes whose value is encoded.
    encoded: Vec<(Text, Text)>,
}

impl Found {
    fn read(headers: &Headers, binding: Binding) -> Self {
        let prefix = cloudevents::prefix(binding).as_bytes();
        let mut found = Self::default();
        for (name, span) in headers.spans() {
            let bare = match name.split_first_chunk::<3>() {
                Some((head, bare)) if head.eq_ignore_ascii_case(prefix) => bare,
                _ => {
                    found.read_plain(name, span);
                    continue;
                }
            };
            // Nearly everybody writes lower case, which compares as whole words.
            let mut lower = [0; attribute::DATACONTENTTYPE.len()];
            let field = match lower_case(bare, &mut lower) {
                b"id" => &mut found.id,
                b"source" => &mut found.source,
                b"type" => &mut found.kind,
                b"specversion" => {
                    found.specversion = true;
                    continue;
                }
                b"datacontenttype" => &mut found.datacontenttype,
                b"partitionkey" => &mut found.partitionkey,
                b"expirytime" => &mut found.expirytime,
                _ => {
                    found.read_encoded(bare, headers.value(span), binding);
                    continue;
                }
            };
            if field.is_none() {
                *field = span;
            }
        }
        found
    }

    fn read_plain(&mut self, name: &[u8], span: Span) {
        let mut lower = [0; attribute::DATACONTENTTYPE.len()];
        let field = match lower_case(name, &mut lower) {
            b"content-type" => &mut self.content_type,
            b"partitionkey" => &mut self.plain_partitionkey,
            b"expirytime" => &mut self.plain_expirytime,
            _ => return,
        };
        if field.is_none() {
            *field = span;
        }
    }

    fn read_encoded(&mut self, bare: &[u8], value: &[u8], binding: Binding) {
        if binding != Binding::Dash || !cloudevents::is_encoded(value) {
            return;
        }
        // A value that decodes to no text stays in the headers as it is.
        if let (Ok(name), Some(value)) = (std::str::from_utf8(bare), cloudevents::decode_value(value, binding)) {
            self.encoded.push((name.to_ascii_lowercase().into(), value.into_owned().into()));
        }
    }
}

/// A short name in lower case; a longer one as it is, which is none of those looked for.
fn lower_case<'a>(name: &'a [u8], room: &'a mut [u8; 15]) -> &'a [u8] {
    match room.get_mut(..name.len()) {
        Some(room) if name.iter().any(u8::is_ascii_uppercase) => {
            room.copy_from_slice(name);
            room.make_ascii_lowercase();
            room
        }
        _ => name,
    }
}

/// A message, and what is known of it besides.
struct Original<'a> {
    message: &'a Message,
    origin: &'a Origin<'a>,
    record: Option<&'a Record>,
    binding: Binding,
}

impl Original<'_> {
    fn binary(&self, found: Found) -> Result<Event, Malformed> {
        // The Kafka and HTTP bindings know only `content-type`; NATS has `ce-datacontenttype`.
        let content_type = match found.datacontenttype.or(found.content_type).found() {
            Some(span) => Some(self.text(span).ok_or_else(|| not_text(attribute::DATACONTENTTYPE))?),
            None => None,
        };
        let id = self.required(found.id, attribute::ID)?;
        let source = self.required(found.source, attribute::SOURCE)?;
        let kind = self.required(found.kind, attribute::TYPE)?;
        Ok(Event {
            unchecked: content_type.as_ref().is_some_and(|content_type| event::is_json(content_type)),
            id,
            source,
            kind,
            content_type,
            key: self.key(|| self.value(found.partitionkey)),
            expires: self.expires(|| self.time(found.expirytime)),
            topic: self.topic().cloned(),
            headers: self.message.headers.clone(),
            attributes: found.encoded,
            data: self.body(),
            binding: self.binding,
            mode: Mode::Binary,
        })
    }

    fn plain(&self, found: Found) -> Result<Event, Malformed> {
        let place = &self.origin.place;
        let content_type = match found.content_type.or(found.datacontenttype).found() {
            Some(span) => Some(self.text(span).ok_or_else(|| not_text(attribute::CONTENT_TYPE))?),
            None => None,
        };
        let data = self.body();
        if must_be_text(content_type.as_deref())
            && let Err(error) = std::str::from_utf8(&data)
        {
            return Err(Malformed(format!(
                "the body is not UTF-8 ({error}) and no content type says that it is binary; give it one, such as application/octet-stream"
            )));
        }
        let record = self.record;
        let topic = self.topic().cloned();
        Ok(Event {
            id: match record.and_then(|record| record.event_id.as_deref()) {
                Some(id) => id.into(),
                None => self.origin.event_id().into(),
            },
            source: record.and_then(|record| record.event_source.as_deref()).unwrap_or(&place.source).into(),
            kind: match &topic {
                // A copy: one that is shared is counted by every lane.
                Some(topic) => Text::from(&**topic),
                None => record
                    .and_then(|record| record.job.as_ref())
                    .map_or(place.position.as_str(), JobName::as_str)
                    .into(),
            },
            unchecked: content_type.as_ref().is_some_and(|content_type| event::is_json(content_type)),
            content_type,
            key: self.key(|| self.value(found.partitionkey.or(found.plain_partitionkey))),
            expires: self.expires(|| self.time(found.expirytime.or(found.plain_expirytime))),
            topic,
            headers: self.message.headers.clone(),
            attributes: Vec::new(),
            data,
            binding: self.binding,
            mode: Mode::Plain,
        })
    }

    fn structured(&self) -> Result<Event, Malformed> {
        let body = self.body();
        let envelope = Envelope::read(&body)?;
        let data = envelope.data(&body)?;
        let key = self.key(|| envelope.get(attribute::PARTITIONKEY).map(|key| Bytes::copy_from_slice(key.as_bytes())));
        let expires = self.expires(|| envelope.get(attribute::EXPIRYTIME).and_then(Timestamp::parse_rfc3339));
        let required = |value: Option<String>, name| match value {
            Some(text) if !text.is_empty() => Ok(Text::from(text)),
            _ => Err(missing(name)),
        };
        required(envelope.specversion, attribute::SPECVERSION)?;
        let content_type = envelope.content_type.map(Text::from);
        let (data, content_type, unchecked) = match data {
            // "If the datacontenttype is unspecified, [data is] application/json" (JSON Event Format 3.1).
            Some(Data::Json(data)) => (data, content_type.or(Some(Text::from_static("application/json"))), false),
            Some(Data::Decoded(data)) => {
                let unchecked = content_type.as_deref().is_some_and(event::is_json);
                (data, content_type, unchecked)
            }
            None => (Bytes::new(), content_type, false),
        };
        Ok(Event {
            id: required(envelope.id, attribute::ID)?,
            source: required(envelope.source, attribute::SOURCE)?,
            kind: required(envelope.kind, attribute::TYPE)?,
            content_type,
            key,
            expires,
            topic: self.topic().cloned(),
            headers: self.message.headers.clone(),
            attributes: envelope.further,
            data,
            binding: self.binding,
            mode: Mode::Structured,
            unchecked,
        })
    }

    fn body(&self) -> Bytes {
        self.message.body.clone().unwrap_or_default()
    }

    fn topic(&self) -> Option<&Arc<str>> {
        self.record.and_then(|record| record.topic.as_ref()).or(self.origin.place.topic.as_ref())
    }

    /// The record's own key, else the attribute.
    fn key(&self, attribute: impl FnOnce() -> Option<Bytes>) -> Option<Bytes> {
        self.message.key.clone().or_else(attribute)
    }

    /// The attribute, but for a replay, which has none.
    fn expires(&self, attribute: impl FnOnce() -> Option<Timestamp>) -> Option<Timestamp> {
        if self.record.is_some_and(|record| record.replays > 0) { None } else { attribute() }
    }

    /// A value as the binding means it; it shares the headers' buffer where it stands there as it is.
    fn text(&self, span: Span) -> Option<Text> {
        let headers = &self.message.headers;
        match cloudevents::Value::of(headers.value(span), self.binding) {
            cloudevents::Value::Ascii => Some(Text(headers.share(span))),
            cloudevents::Value::Other => Text::from_utf8(headers.share(span)),
            cloudevents::Value::Encoded(text) => text.map(Text::from),
        }
    }

    fn required(&self, span: Span, name: &str) -> Result<Text, Malformed> {
        let span = span.found().ok_or_else(|| missing(name))?;
        match self.text(span) {
            Some(text) if !text.0.is_empty() => Ok(text),
            Some(_) => Err(missing(name)),
            None => Err(not_text(name)),
        }
    }

    fn value(&self, span: Span) -> Option<Bytes> {
        let span = span.found()?;
        let headers = &self.message.headers;
        match cloudevents::Value::of(headers.value(span), self.binding) {
            cloudevents::Value::Ascii | cloudevents::Value::Other => Some(headers.share(span)),
            cloudevents::Value::Encoded(text) => text.map(Bytes::from),
        }
    }

    /// A time that cannot be read is none: it does not keep the event from running.
    fn time(&self, span: Span) -> Option<Timestamp> {
        let value = self.message.headers.value(span.found()?);
        cloudevents::decode_value(value, self.binding).and_then(|text| Timestamp::parse_rfc3339(&text))
    }
}

fn is_structured(content_type: &[u8]) -> bool {
    content_type
        .trim_ascii_start()
        .split_at_checked(attribute::STRUCTURED.len())
        .is_some_and(|(head, _)| head.eq_ignore_ascii_case(attribute::STRUCTURED.as_bytes()))
}

/// Whether a plain body under this content type has to be UTF-8: where there is none, and where it says text and
/// names no other character set.
fn must_be_text(content_type: Option<&str>) -> bool {
    let Some(content_type) = content_type else { return true };
    let lower = content_type.to_ascii_lowercase();
    let charset = lower.split(';').skip(1).find_map(|parameter| parameter.trim().strip_prefix("charset="));
    lower.trim_start().starts_with("text/")
        && charset.is_none_or(|charset| matches!(charset.trim_matches('"'), "utf-8" | "utf8" | "us-ascii"))
}

fn missing(name: &str) -> Malformed {
    Malformed(format!("the CloudEvent has no {name}"))
}

fn not_text(name: &str) -> Malformed {
    Malformed(format!("the value of {name} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::super::Place;
    use super::super::cloudevents::Attributes;
    use super::*;
    use proptest::option::of;
    use proptest::prelude::*;

    fn origin(binding: Binding) -> Origin<'static> {
        static PLACES: LazyLock<[Place; 2]> = LazyLock::new(|| [Binding::Dash, Binding::Kafka].map(place));
        let place = PLACES.iter().find(|place| place.binding == binding).expect("one of the two");
        Origin { place, seq: 17, at: Timestamp::from_millis(1_763_719_200_000) }
    }

    fn place(binding: Binding) -> Place {
        Place {
            position: "sqlite:reports".to_owned(),
            source: "sqlite://reports".to_owned(),
            topic: Some("reports".into()),
            binding,
        }
    }

    fn message(headers: &[(&str, &str)], body: &[u8]) -> Message {
        Message { headers: headers.iter().copied().collect(), body: Some(Bytes::copy_from_slice(body)), key: None }
    }

    fn dash(headers: &[(&str, &str)], body: &[u8]) -> Result<Event, Malformed> {
        decode(&message(headers, body), &origin(Binding::Dash), None)
    }

    const BINARY: [(&str, &str); 4] =
        [("ce-specversion", "1.0"), ("ce-id", "a1"), ("ce-source", "/lab"), ("ce-type", "report.done")];

    fn binary_with(further: &[(&str, &str)], body: &[u8]) -> Result<Event, Malformed> {
        dash(&[&BINARY[..], further].concat(), body)
    }

    #[test]
    fn binary_mode_is_read_in_both_bindings() {
        let headers = [
            ("CE-SpecVersion", "1.0"),
            ("Ce-Id", "a%201"),
            ("ce-source", "/lab"),
            ("ce-TYPE", "report.done"),
            ("ce-datacontenttype", "application/json"),
            ("ce-partitionkey", "p%C3%A4t"),
            ("ce-expirytime", "2026-11-21T12:00:00+02:00"),
            ("ce-subject", "x%20y"),
            ("ce-Sequence", "5"),
            ("traceparent", "00-1-2-01"),
        ];
        let event = dash(&headers, b"{}").expect("valid");
        assert_eq!(
            (event.mode, &*event.id, &*event.source, &*event.kind),
            (Mode::Binary, "a 1", "/lab", "report.done")
        );
        assert_eq!(event.content_type.as_deref(), Some("application/json"));
        assert_eq!(event.key.as_deref(), Some("pät".as_bytes()));
        assert_eq!(event.expires, Timestamp::parse_rfc3339("2026-11-21T10:00:00Z"));
        assert_eq!(event.topic.as_deref(), Some("reports"));
        assert_eq!((event.attribute("subject"), event.attribute("sequence")), (Some("x y"), Some("5")));
        assert_eq!((event.attribute("id"), event.traceparent()), (None, Some("00-1-2-01")));
        assert!(event.unchecked && event.check().is_ok());

        let headers = [
            ("ce_specversion", "1.0"),
            ("ce_id", "a%201"),
            ("ce_source", "/lab"),
            ("ce_type", "ä"),
            ("Content-Type", "text/plain"),
            ("ce_subject", "x%20y"),
        ];
        let mut message = message(&headers, b"hello");
        message.key = Some(Bytes::from_static(b"\xff"));
        let event = decode(&message, &origin(Binding::Kafka), None).expect("valid");
        assert_eq!((&*event.id, &*event.kind, event.content_type.as_deref()), ("a%201", "ä", Some("text/plain")));
        assert_eq!((event.attribute("subject"), event.key.as_deref()), (Some("x%20y"), Some(&b"\xff"[..])));
        assert!(!event.unchecked);
    }

    #[test]
    fn binary_mode_needs_its_attributes_and_nothing_else() {
        for missing in ["id", "source", "type"] {
            let name = format!("ce-{missing}");
            let headers: Vec<_> = BINARY.into_iter().filter(|(header, _)| *header != name).collect();
            let error = dash(&headers, b"").expect_err(missing);
            assert!(error.0.ends_with(missing), "{error}");
            let empty: Vec<_> = BINARY.into_iter().map(|(h, v)| (h, if h == name { "" } else { v })).collect();
            assert_eq!(dash(&empty, b"").expect_err(missing), error);
        }
        assert!(
            dash(&[("ce-specversion", "1.0"), ("ce-id", "%FF"), ("ce-source", "s"), ("ce-type", "t")], b"").is_err()
        );
        // Any bytes will do where no content type says otherwise, and a time that is none is no reason not to run.
        let event = binary_with(&[("ce-expirytime", "tomorrow")], b"\xff\xfe").expect("valid");
        assert_eq!((event.expires, &event.data[..]), (None, &b"\xff\xfe"[..]));
    }

    #[test]
    fn json_content_is_json() {
        for (content_type, body, fits) in [
            ("application/json", &b"{\"a\": 1}"[..], true),
            ("application/json; charset=utf-8", b"{\"a\": 1", false),
            ("APPLICATION/JSON", b"hello", false),
            ("application/problem+json", b"{} {}", false),
            ("application/json", b"\"\xff\"", false),
            ("application/json", b"", true),
            ("text/plain", b"hello", true),
            ("application/octet-stream", b"\xff", true),
        ] {
            let binary = binary_with(&[("content-type", content_type)], body).expect("headers are whole");
            assert_eq!(binary.check().is_ok(), fits, "{content_type} {body:?}");
            let plain = dash(&[("Content-Type", content_type)], body).expect("headers are whole");
            assert_eq!(plain.check().is_ok(), fits, "{content_type} {body:?}");
        }
    }

    #[test]
    fn plain_messages_are_json_text_empty_or_null() {
        let event =
            dash(&[("PartitionKey", "k"), ("expirytime", "2026-11-21T10:00:00Z")], b"{\"a\":1}").expect("valid");
        assert_eq!(
            (event.mode, &*event.id, &*event.source, &*event.kind),
            (Mode::Plain, "sqlite:reports:17", "sqlite://reports", "reports")
        );
        assert_eq!(event.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(event.expires, Timestamp::parse_rfc3339("2026-11-21T10:00:00Z"));
        assert_eq!((event.content_type.as_deref(), event.unchecked), (None, false));

        let event = dash(&[("ce-partitionkey", "a%20b"), ("ce-id", "ignored")], b"hello").expect("valid");
        assert_eq!((event.key.as_deref(), &*event.id), (Some(&b"a b"[..]), "sqlite:reports:17"));
        assert_eq!(event.attribute("partitionkey"), None);

        let null = Message { headers: Headers::new(), body: None, key: None };
        assert!(decode(&null, &origin(Binding::Kafka), None).expect("valid").data.is_empty());

        for (content_type, fits) in [
            (None, false),
            (Some("text/plain"), false),
            (Some("text/csv; charset=UTF-8"), false),
            (Some("text/plain; charset=iso-8859-1"), true),
            (Some("application/octet-stream"), true),
            (Some("image/png"), true),
        ] {
            let headers: Vec<_> = content_type.into_iter().map(|content_type| ("content-type", content_type)).collect();
            assert_eq!(dash(&headers, b"\xff\xd8").is_ok(), fits, "{content_type:?}");
        }
    }

    #[test]
    fn a_record_says_what_a_plain_original_does_not() {
        let record = Record {
            event_id: Some("nats:S:3".to_owned()),
            event_source: Some("nats://S".to_owned()),
            topic: Some("other".into()),
            ..Record::default()
        };
        let plain = message(&[("expirytime", "2026-11-21T10:00:00Z")], b"1");
        let event = decode(&plain, &origin(Binding::Dash), Some(&record)).expect("valid");
        assert_eq!(
            (&*event.id, &*event.source, &*event.kind, event.topic.as_deref()),
            ("nats:S:3", "nats://S", "other", Some("other"))
        );
        assert!(event.expires.is_some());

        let event = decode(&message(&BINARY, b"1"), &origin(Binding::Dash), Some(&record)).expect("valid");
        assert_eq!((&*event.id, event.topic.as_deref()), ("a1", Some("other")));

        // A replay has no expiry, whatever its original says.
        let replayed = record.replayed(None);
        assert_eq!(decode(&plain, &origin(Binding::Dash), Some(&replayed)).expect("valid").expires, None);

        let mut enqueued = origin(Binding::Dash);
        let place =
            Place { topic: None, position: "sqlite:".to_owned(), source: String::new(), ..place(Binding::Dash) };
        enqueued.place = &place;
        let record = Record { job: Some(JobName::new("invoice").expect("fits")), ..Record::default() };
        let event = decode(&plain, &enqueued, Some(&record)).expect("valid");
        assert_eq!((&*event.kind, event.topic), ("invoice", None));
    }

    fn structured(body: &str) -> Result<Event, Malformed> {
        dash(&[("content-TYPE", "Application/CloudEvents+json; charset=UTF-8")], body.as_bytes())
    }

    #[test]
    fn structured_mode_keeps_the_bytes_of_data() {
        let event = structured(
            r#"{"specversion":"1.0","id":"a\u00e4","source":"/s","type":"t","partitionkey":"k","sequence":3,"urgent":true,"none":null,"data":{ "b": 1.50, "a":2 },"expirytime":"2026-11-21T10:00:00Z"}"#,
        )
        .expect("valid");
        assert_eq!((event.mode, &*event.id, &*event.source, &*event.kind), (Mode::Structured, "aä", "/s", "t"));
        assert_eq!(&event.data[..], br#"{ "b": 1.50, "a":2 }"#);
        assert_eq!(event.content_type.as_deref(), Some("application/json"));
        assert_eq!(
            (event.attribute("sequence"), event.attribute("urgent"), event.attribute("none")),
            (Some("3"), Some("true"), None)
        );
        assert_eq!(event.key.as_deref(), Some(&b"k"[..]));
        assert!(event.expires.is_some() && !event.unchecked);

        let whole = |rest: &str| format!(r#"{{"specversion":"1.0","id":"a","source":"/s","type":"t"{rest}}}"#);
        let event = structured(&whole(r#","datacontenttype":"application/json","data_base64":"/w==""#)).expect("valid");
        assert_eq!(&event.data[..], b"\xff");
        assert!(event.check().is_err());
        assert_eq!(&structured(&whole(r#","data":"text""#)).expect("valid").data[..], b"\"text\"");
        assert!(structured(&whole("")).expect("valid").data.is_empty());

        for bad in [
            whole(r#","data":1,"data_base64":"/w==""#),
            whole(r#","data_base64":"?""#),
            whole(r#","data":{"#),
            whole("") + "x",
            r#"{"specversion":"1.0","id":"","source":"/s","type":"t"}"#.to_owned(),
            r#"{"specversion":"1.0","id":"a","source":"/s"}"#.to_owned(),
            r#"{"id":"a","source":"/s","type":"t"}"#.to_owned(),
            r#"[{"specversion":"1.0","id":"a","source":"/s","type":"t"}]"#.to_owned(),
            String::new(),
        ] {
            assert!(structured(&bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn structured_comes_before_binary() {
        let envelope = br#"{"specversion":"1.0","id":"inner","source":"/s","type":"t"}"#;
        let event = binary_with(&[("content-type", "application/cloudevents+json")], envelope).expect("valid");
        assert_eq!(&*event.id, "inner");
    }

    fn hostile_headers() -> impl Strategy<Value = Headers> {
        let name = (
            proptest::sample::select(vec!["ce-", "ce_", "CE-", ""]),
            proptest::sample::select(vec![
                "specversion",
                "id",
                "source",
                "type",
                "datacontenttype",
                "content-type",
                "partitionkey",
                "expirytime",
                "x",
                "",
            ]),
        )
            .prop_map(|(prefix, name)| format!("{prefix}{name}"));
        let value = prop_oneof![
            proptest::sample::select(vec![
                &b"1.0"[..],
                b"application/json",
                b"application/cloudevents+json",
                b"%",
                b"%e4",
                b"\"a\\"
            ])
            .prop_map(<[u8]>::to_vec),
            proptest::collection::vec(any::<u8>(), 0..12),
        ];
        proptest::collection::vec((name, value), 0..10).prop_map(|pairs| pairs.into_iter().collect())
    }

    proptest! {
        #[test]
        fn decoding_never_panics(
            headers in hostile_headers(),
            body in of(prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..60),
                r#"[\{\}\[\]":,a-z0-9 ]{0,60}"#.prop_map(String::into_bytes),
                r#"\{"specversion":"1.0","id":[0-9"]{1,3},"source":"s","type":"t","data(_base64)?":.{0,9}\}"#.prop_map(String::into_bytes),
            ]),
            key in of(proptest::collection::vec(any::<u8>(), 0..4)),
            kafka: bool,
        ) {
            let message = Message { headers, body: body.map(Bytes::from), key: key.map(Bytes::from) };
            let binding = if kafka { Binding::Kafka } else { Binding::Dash };
            if let Ok(event) = decode(&message, &origin(binding), None) {
                prop_assert!(!event.id.is_empty() || event.mode == Mode::Plain);
                let _ = (event.check(), event.to_json(), event.traceparent());
            }
        }

        #[test]
        fn what_is_written_is_read(
            id in ".{1,12}", source in ".{1,12}", kind in ".{1,12}", content_type in of("[a-z]{1,5}/[a-z]{1,5}"),
            key in of(".{0,8}"), expires in of(0i64..4_000_000_000_000), subject in ".{0,8}", extra in ".{0,8}", kafka: bool,
        ) {
            let binding = if kafka { Binding::Kafka } else { Binding::Dash };
            let expires = expires.map(Timestamp::from_millis);
            let extensions = [("subject".to_owned(), subject.clone())];
            let further = [("x-extra".to_owned(), extra.clone())];
            let headers = cloudevents::write(&Attributes {
                id: &id, source: &source, kind: &kind, content_type: content_type.as_deref(), key: key.as_deref(), expires,
                extensions: &extensions, headers: &further, traceparent: Some("00-1-2-01"), time: None,
            }, binding);
            let message = Message { headers, body: Some(Bytes::from_static(b"1")), key: None };
            let event = decode(&message, &origin(binding), None).expect("just written");
            prop_assert_eq!((&*event.id, &*event.source, &*event.kind), (&id[..], &source[..], &kind[..]));
            prop_assert_eq!(event.content_type.as_deref(), content_type.as_deref());
            prop_assert_eq!(event.key.as_deref(), key.as_deref().map(str::as_bytes));
            prop_assert_eq!(event.expires, expires);
            prop_assert_eq!(event.attribute("subject"), Some(&subject[..]));
            prop_assert_eq!(event.headers.get("x-extra"), Some(extra.as_bytes()));
            prop_assert_eq!(event.traceparent(), Some("00-1-2-01"));
        }
    }
}
