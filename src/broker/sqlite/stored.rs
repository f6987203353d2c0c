//! Records as the file keeps them: JSON that carries a version.

use serde::{Deserialize, Serialize};

use crate::message::record::Record;
use crate::message::{Attempt, Failure, JobName};
use crate::time::Timestamp;

/// The version of the form below. A reader knows the one before it too.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize, Default)]
struct Stored {
    v: u32,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    job: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    not_before: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    first_seen: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    unroutable_since: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    origin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    event_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    event_source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    failure: Option<StoredFailure>,
    #[serde(default)]
    replays: u32,
}

#[derive(Serialize, Deserialize)]
struct StoredFailure {
    kind: String,
    error: String,
    first: i64,
    last: i64,
}

/// As text for a column.
pub fn write(record: &Record) -> String {
    let stored = Stored {
        v: VERSION,
        attempt: record.attempt.get(),
        job: record.job.as_ref().map(ToString::to_string),
        not_before: record.not_before.map(Timestamp::as_millis),
        first_seen: record.first_seen.map(Timestamp::as_millis),
        unroutable_since: record.unroutable_since.map(Timestamp::as_millis),
        origin: record.origin.clone(),
        event_id: record.event_id.clone(),
        event_source: record.event_source.clone(),
        topic: record.topic.as_deref().map(str::to_owned),
        failure: record.failure.as_ref().map(|failure| StoredFailure {
            kind: failure.error_type.clone(),
            error: failure.error.clone(),
            first: failure.first.as_millis(),
            last: failure.last.as_millis(),
        }),
        replays: record.replays,
    };
    serde_json::to_string(&stored).expect("strings and numbers always serialize")
}

/// Whether [`give_back`](super::settle::give_back) noted since that the unit came back.
pub fn came_back(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Note {
        #[serde(default)]
        back: u8,
    }
    serde_json::from_str(text).is_ok_and(|Note { back }| back == 1)
}

/// Reads what [`write`] wrote. What cannot be read is a first attempt: the job must not be lost over it.
pub fn read(text: &str) -> Record {
    let stored: Stored = serde_json::from_str(text).unwrap_or_default();
    Record {
        job: stored.job.and_then(|name| JobName::new(&name).ok()),
        attempt: Attempt::new(stored.attempt).unwrap_or(Attempt::FIRST),
        not_before: stored.not_before.map(Timestamp::from_millis),
        first_seen: stored.first_seen.map(Timestamp::from_millis),
        unroutable_since: stored.unroutable_since.map(Timestamp::from_millis),
        origin: stored.origin,
        event_id: stored.event_id,
        event_source: stored.event_source,
        topic: stored.topic.map(Into::into),
        failure: stored.failure.map(|failure| {
            let (first, last) = (Timestamp::from_millis(failure.first), Timestamp::from_millis(failure.last));
            Failure::new(failure.kind, failure.error, first, last)
        }),
        replays: stored.replays,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_round_trip(attempt in 1u32.., job in proptest::option::of("[a-z]{1,9}"), due in proptest::option::of(0i64..9_999_999_999_999),
                              error in proptest::option::of(".{0,200}"), replays in 0u32..9, id in proptest::option::of(".{0,20}")) {
            let record = Record {
                job: job.map(|name| JobName::new(&name).expect("a name")),
                attempt: Attempt::new(attempt).expect("not 0"),
                not_before: due.map(Timestamp::from_millis),
                failure: error.map(|error| Failure::new("kind", error, Timestamp::from_millis(1), Timestamp::from_millis(2))),
                event_id: id,
                topic: Some("t".into()),
                replays,
                ..Record::default()
            };
            prop_assert_eq!(read(&write(&record)), record);
        }

        #[test]
        fn reading_never_panics(text in ".{0,80}") {
            let _ = read(&text);
        }
    }
}
