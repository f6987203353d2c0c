//! An HTTP request as an event: a CloudEvent in binary or structured mode (HTTP binding of CloudEvents 1.0.2), or
//! plain bytes.
//!
//! What cannot be read is refused here with 400, instead of becoming a dead letter later.

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;

use super::extract::time;
use super::problem::Problem;
use crate::message::cloudevents::{self, Attributes};
use crate::message::{Binding, Event, Headers, Message, Origin, Place, attribute, decode, guess_content_type};
use crate::time::Timestamp;

/// What an event has that does not say so itself.
pub(super) struct Defaults<'a> {
    /// `type`
    pub(super) kind: &'a str,
    /// `source`
    pub(super) source: &'a str,
    /// How the broker spells attributes.
    pub(super) binding: Binding,
    /// The time now.
    pub(super) now: Timestamp,
}

/// A message to be stored, and the id of its event.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The message.
    pub(super) message: Message,
    /// The event's id.
    pub(super) id: String,
}

/// Reads a request. The id is the event's own, else `Idempotency-Key`, else a UUIDv7; where both are given they must
/// be the same.
pub(super) fn read(headers: &HeaderMap, body: Bytes, defaults: &Defaults<'_>) -> Result<Incoming, Problem> {
    let key = idempotency_key(headers)?;
    // As workers read it, spaces around it do not count.
    let content_type = text(headers, attribute::CONTENT_TYPE)?.map(str::trim);
    let is = |prefix: &str| {
        content_type.and_then(|found| found.get(..prefix.len())).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
    };
    if is("application/cloudevents-batch") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "batches are not taken; send one event a request",
        ));
    }
    if is(attribute::STRUCTURED) {
        structured(headers, content_type.unwrap_or_default(), body, key, defaults)
    } else if headers.contains_key("ce-specversion") {
        binary(headers, content_type, body, key, defaults)
    } else {
        plain(headers, content_type, body, key, defaults)
    }
}

/// The envelope is stored as it came: `data` keeps its bytes.
fn structured(
    headers: &HeaderMap,
    content_type: &str,
    body: Bytes,
    key: Option<String>,
    defaults: &Defaults<'_>,
) -> Result<Incoming, Problem> {
    let mut pairs = vec![(attribute::CONTENT_TYPE, content_type)];
    pairs.extend(text(headers, attribute::TRACEPARENT)?.map(|value| (attribute::TRACEPARENT, value)));
    let message = Message { headers: pairs.into_iter().collect(), body: Some(body), key: None };
    let event = check(&message, defaults)?;
    let id = own_id(&event.id, key)?;
    Ok(Incoming { message: Message { key: event.key, ..message }, id })
}

fn binary(
    headers: &HeaderMap,
    content_type: Option<&str>,
    body: Bytes,
    key: Option<String>,
    defaults: &Defaults<'_>,
) -> Result<Incoming, Problem> {
    let mut found = Found::default();
    for name in headers.keys() {
        let Some(bare) = cloudevents::bare(name.as_str(), Binding::Dash) else { continue };
        let value = headers.get(name).and_then(|value| cloudevents::decode_value(value.as_bytes(), Binding::Dash));
        let value = value.ok_or_else(|| malformed(&format!("the value of {name} is not UTF-8")))?.into_owned();
        found.take(bare, value)?;
    }
    let id = match (found.id, key) {
        (Some(own), key) => own_id(&own, key)?,
        (None, Some(key)) => key,
        (None, None) => return Err(malformed("ce-id is missing; send it or Idempotency-Key")),
    };
    write(
        Attributes {
            id: &id,
            source: found.source.as_deref().ok_or_else(|| malformed("ce-source is missing"))?,
            kind: found.kind.as_deref().ok_or_else(|| malformed("ce-type is missing"))?,
            content_type,
            time: None,
            key: found.key.as_deref(),
            expires: found.expires,
            traceparent: text(headers, attribute::TRACEPARENT)?,
            extensions: &found.extensions,
            headers: &[],
        },
        body,
        defaults,
    )
}

/// The attributes of a binary event.
#[derive(Default)]
struct Found {
    id: Option<String>,
    source: Option<String>,
    kind: Option<String>,
    key: Option<String>,
    expires: Option<Timestamp>,
    /// `time` and `subject` too: they are passed on as they came.
    extensions: Vec<(String, String)>,
}

impl Found {
    fn take(&mut self, name: &str, value: String) -> Result<(), Problem> {
        match name {
            attribute::SPECVERSION if value != "1.0" => {
                return Err(malformed(&format!("ce-specversion: expected 1.0, found {value:?}")));
            }
            // The HTTP binding has the content type in its own header.
            attribute::SPECVERSION | attribute::DATACONTENTTYPE => {}
            attribute::ID => self.id = Some(value),
            attribute::SOURCE => self.source = Some(value),
            attribute::TYPE => self.kind = Some(value),
            attribute::PARTITIONKEY => self.key = Some(value),
            attribute::EXPIRYTIME => self.expires = Some(time("ce-expirytime", &value)?),
            _ => self.extensions.push((name.to_owned(), value)),
        }
        Ok(())
    }
}

fn plain(
    headers: &HeaderMap,
    content_type: Option<&str>,
    body: Bytes,
    key: Option<String>,
    defaults: &Defaults<'_>,
) -> Result<Incoming, Problem> {
    // What curl says of `--data` unasked tells nothing of the body.
    let said = content_type.filter(|said| !said.eq_ignore_ascii_case("application/x-www-form-urlencoded"));
    let id = key.unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    write(
        Attributes {
            id: &id,
            source: defaults.source,
            kind: defaults.kind,
            content_type: said.or_else(|| guess_content_type(&body)),
            time: Some(defaults.now),
            key: text(headers, attribute::PARTITIONKEY)?,
            expires: text(headers, attribute::EXPIRYTIME)?.map(|value| time("expirytime", value)).transpose()?,
            traceparent: text(headers, attribute::TRACEPARENT)?,
            extensions: &[],
            headers: &[],
        },
        body,
        defaults,
    )
}

fn write(attributes: Attributes<'_>, body: Bytes, defaults: &Defaults<'_>) -> Result<Incoming, Problem> {
    let headers: Headers = cloudevents::write(&attributes, defaults.binding);
    let key = attributes.key.map(|key| Bytes::copy_from_slice(key.as_bytes()));
    let message = Message { headers, body: Some(body), key };
    check(&message, defaults)?;
    Ok(Incoming { message, id: attributes.id.to_owned() })
}

/// Reads the message as a worker will.
fn check(message: &Message, defaults: &Defaults<'_>) -> Result<Event, Problem> {
    let place = Place { position: "http".to_owned(), source: String::new(), topic: None, binding: defaults.binding };
    let origin = Origin { place: &place, seq: 0, at: defaults.now };
    let event = decode(message, &origin, None).map_err(|fault| malformed(&fault.0))?;
    event.check().map_err(|fault| malformed(&fault.0))?;
    Ok(event)
}

fn own_id(own: &str, key: Option<String>) -> Result<String, Problem> {
    match key {
        Some(key) if key != own => Err(Problem::bad_request(format!(
            "Idempotency-Key {key:?} is not the event's own id {own:?}; leave one of them out"
        ))),
        _ => Ok(own.to_owned()),
    }
}

/// The longest `Idempotency-Key`, in bytes: it becomes a header and a key at the broker.
const LONGEST_KEY: usize = 512;

/// A string, with or without the quotes that draft-ietf-httpapi-idempotency-key-header asks for.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = text(headers, "idempotency-key")? else { return Ok(None) };
    let value = value.trim();
    let key = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    if key.is_empty() || key.len() > LONGEST_KEY {
        return Err(Problem::bad_request(format!("Idempotency-Key: expected 1 to {LONGEST_KEY} characters")));
    }
    Ok(Some(key.to_owned()))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    std::str::from_utf8(value.as_bytes())
        .map(Some)
        .map_err(|_| Problem::bad_request(format!("the value of {name} is not UTF-8")))
}

fn malformed(what: &str) -> Problem {
    Problem::bad_request(format!("malformed event: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)], body: &str) -> Result<Incoming, Problem> {
        let headers = headers.iter().map(|(name, value)| {
            let name: axum::http::HeaderName = name.parse().expect("a name");
            (name, value.parse::<axum::http::HeaderValue>().expect("a value"))
        });
        let defaults = Defaults {
            kind: "reports.finalized",
            source: "windlass://windlass",
            binding: Binding::Dash,
            now: Timestamp::from_millis(1_763_719_200_000),
        };
        read(&headers.collect(), Bytes::from(body.to_owned()), &defaults)
    }

    fn event(incoming: &Incoming) -> Event {
        let place = Place { position: String::new(), source: String::new(), topic: None, binding: Binding::Dash };
        let origin = Origin { place: &place, seq: 0, at: Timestamp::default() };
        decode(&incoming.message, &origin, None).expect("an event")
    }

    #[test]
    fn plain_bytes_become_an_event_of_ours() {
        let incoming = request(&[("idempotency-key", "\"k-1\""), ("partitionkey", "p")], "{\"a\":1}").expect("taken");
        let event = event(&incoming);
        assert_eq!((incoming.id.as_str(), &*event.id), ("k-1", "k-1"));
        assert_eq!((&*event.kind, &*event.source), ("reports.finalized", "windlass://windlass"));
        assert_eq!(event.content_type.as_deref(), Some("application/json"));
        assert_eq!(incoming.message.key.as_deref(), Some(&b"p"[..]));
        let form = request(&[("content-type", "application/x-www-form-urlencoded")], "{}").expect("taken");
        assert_eq!(super::tests::event(&form).content_type.as_deref(), Some("application/json"));
        assert_ne!(request(&[], "1").expect("taken").id, request(&[], "1").expect("taken").id);
    }

    #[test]
    fn binary_events_keep_their_attributes() {
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-id", "e%201"),
            ("ce-source", "/lab"),
            ("ce-type", "report"),
            ("ce-subject", "r\u{e4}"),
            ("ce-time", "2026-11-21T10:00:00Z"),
            ("ce-partitionkey", "p"),
            ("content-type", "application/json"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ];
        let incoming = request(&headers, "[1]").expect("taken");
        let event = event(&incoming);
        assert_eq!((&*event.id, &*event.source, &*event.kind), ("e 1", "/lab", "report"));
        assert_eq!(event.attribute("subject"), Some("r\u{e4}"));
        assert_eq!(event.attribute("time"), Some("2026-11-21T10:00:00Z"));
        assert_eq!(event.traceparent(), Some(headers[8].1));
        assert_eq!(&event.data[..], b"[1]");
        assert_eq!(event.key.as_deref(), Some(&b"p"[..]));
        let with_key = [("ce-specversion", "1.0"), ("ce-source", "s"), ("ce-type", "t"), ("idempotency-key", "k")];
        assert_eq!(request(&with_key, "").expect("taken").id, "k");
    }

    #[test]
    fn structured_events_are_stored_as_they_came() {
        let body = r#"{"specversion":"1.0","id":"s-1","source":"/lab","type":"report","data":{"b": 2,  "a":1}}"#;
        let kind = ("content-type", "application/cloudevents+json; charset=utf-8");
        let incoming = request(&[kind], body).expect("taken");
        assert_eq!(incoming.id, "s-1");
        assert_eq!(incoming.message.body.as_deref(), Some(body.as_bytes()));
        assert_eq!(&event(&incoming).data[..], br#"{"b": 2,  "a":1}"#);
        assert!(request(&[kind, ("idempotency-key", "s-1")], body).is_ok());
        assert!(request(&[kind, ("idempotency-key", "other")], body).is_err());
    }

    #[test]
    fn what_would_be_a_dead_letter_is_refused() {
        let binary = [("ce-specversion", "1.0"), ("ce-source", "s"), ("ce-type", "t")];
        assert!(request(&binary, "").is_err(), "no id");
        assert!(request(&[("ce-specversion", "0.3"), ("ce-id", "i"), binary[1], binary[2]], "").is_err());
        assert!(request(&[binary[0], binary[1], ("ce-id", "i")], "").is_err(), "no type");
        assert!(request(&[("content-type", "application/json")], "{").is_err(), "not JSON");
        assert!(request(&[("content-type", "application/cloudevents+json")], "{}").is_err());
        assert!(request(&[("content-type", "application/cloudevents-batch+json")], "[]").is_err());
        assert!(request(&[("expirytime", "soon")], "1").is_err());
        assert!(request(&[("idempotency-key", "")], "1").is_err());
    }
}
