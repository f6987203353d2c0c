//! Messages, records, headers and exported letters.

use bytes::Bytes;

use super::head_and_body;
use crate::broker::letter::Line;
use crate::message::headers::Builder;
use crate::message::record::{self, Record};
use crate::message::{Binding, Headers, Message, Origin, Place, QueueName, decode};
use crate::time::Timestamp;

/// The first line begins with `K` for Kafka's spelling, and `k=` in it is the record key; headers and body follow.
fn read(input: &[u8]) -> (Message, Binding) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (first, rest) = (&input[..end], input.get(end + 1..).unwrap_or_default());
    let binding = if first.first() == Some(&b'K') { Binding::Kafka } else { Binding::Dash };
    let key = first.windows(2).position(|pair| pair == b"k=").map(|at| Bytes::copy_from_slice(&first[at + 2..]));
    let (pairs, body) = head_and_body(rest);
    let body = (!body.is_empty() || binding == Binding::Dash).then(|| Bytes::copy_from_slice(body));
    (Message { headers: pairs.into_iter().collect(), body, key }, binding)
}

/// Decoding a message, as a retry keeps it too.
pub fn message(input: &[u8]) {
    let (message, binding) = read(input);
    let place = Place { position: "p".to_owned(), source: "s".to_owned(), topic: Some("t".into()), binding };
    let origin = Origin { place: &place, seq: 7, at: Timestamp::from_millis(1_700_000_000_000) };
    let event = decode(&message, &origin, None);
    if let Ok(event) = &event {
        let body = message.body.as_ref().map_or(0, Bytes::len);
        assert!(event.data.len() <= body, "what a job reads is part of the body");
        let json = event.to_json().to_string();
        assert!(json.len() <= 256 + 12 * (message.size() + 64), "{} bytes became {}", message.size(), json.len());
        // A job that checks and one that does not must come to the same end each time.
        assert_eq!(event.check().is_ok(), event.check().is_ok());
    }
    let stored = Record::fresh(&origin);
    let headers = record::write(&message.headers, &stored, None, binding);
    let back = record::read(&headers, binding).expect("what was just written can be read");
    assert_eq!((&back.original, &back.record), (&message.headers, &stored), "the original's headers are kept");
    let again = decode(&Message { headers: back.original, ..message.clone() }, &origin, Some(&stored));
    match (&event, &again) {
        (Ok(first), Ok(second)) => assert_eq!((&first.id, &first.data), (&second.id, &second.data)),
        (first, second) => assert_eq!(first.is_ok(), second.is_ok(), "a retry is read as the original was"),
    }
}

/// Reading a record of ours.
pub fn record(input: &[u8]) {
    let (message, binding) = read(input);
    let Ok(stored) = record::read(&message.headers, binding) else { return };
    let written = record::write(&stored.original, &stored.record, stored.dead.as_ref(), binding);
    let again = record::read(&written, binding).expect("what was just written can be read");
    assert_eq!(again, stored);
}

/// The buffer of headers, as SQLite stores it.
pub fn headers(input: &[u8]) {
    let Some(headers) = Headers::from_buffer(Bytes::copy_from_slice(input)) else { return };
    let mut builder = Builder::with_capacity(input.len());
    headers.iter().for_each(|(name, value)| builder.push(name, value));
    assert_eq!(builder.finish(), headers);
}

/// A line of `dlq export`, as `dlq import` and the admin port read it.
pub fn letter(input: &[u8]) {
    let Ok(line) = serde_json::from_slice::<Line>(input) else { return };
    let queue = QueueName::new("q").expect("a name");
    let Ok(letter) = line.into_letter(&queue, Timestamp::from_millis(0)) else { return };
    let written = serde_json::to_string(&Line::from(&letter)).expect("a line is JSON");
    let line: Line = serde_json::from_str(&written).expect("what was just written can be read");
    let again = line.into_letter(&queue, Timestamp::from_millis(1)).expect("it is a letter");
    assert_eq!((&again.message, &again.id, again.binding), (&letter.message, &letter.id, letter.binding), "{written}");
    assert_eq!((&again.job, again.reason, again.attempts), (&letter.job, letter.reason, letter.attempts), "{written}");
    assert_eq!((&again.record, &again.failure), (&letter.record, &letter.failure), "{written}");
}
