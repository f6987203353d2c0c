//! What our own records say beside the original: attempt, due time, job, failure.
//!
//! A retry, an enqueued job, a dead letter and a replay are records of ours. Brokers that have columns keep
//! these fields there; brokers that have only headers write them with [`write()`] and read them with [`read`]:
//!
//! - the original's headers come first, in their order and unchanged;
//! - one whose name the record needs for itself is called `windlass-orig-NAME` instead: our attributes (`ce-attempt`,
//!   in any case), headers that the broker obeys or adds (`nats-..`), and the dead-letter headers of other tools
//!   (`kafka_dlt-..`), which an adapter may add to a record;
//! - ours follow, with the binding's prefix; `windlassrecord` is the version of this form.
//!
//! Reading gives back what was written, the original's headers byte for byte. What an adapter or the broker added
//! under one of the names above is left out.

use std::sync::Arc;

use super::cloudevents::{self, Writer};
use super::headers::Builder;
use super::{Attempt, Binding, Failure, Headers, JobName, Origin, QueueName, Reason, attribute};
use crate::time::Timestamp;

/// The version of the form that [`write()`] writes. [`read`] knows the one before it too.
pub const VERSION: u32 = 1;

/// The fields of a record of ours. A message fresh from a topic has none (see [`Record::fresh`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The job it names, if it names one.
    pub job: Option<JobName>,
    /// The attempt that runs next.
    pub attempt: Attempt,
    /// Not to be started before this.
    pub not_before: Option<Timestamp>,
    /// When the event was first handed out.
    pub first_seen: Option<Timestamp>,
    /// Since when no worker knew its job.
    pub unroutable_since: Option<Timestamp>,
    /// The `origin` attribute of the original, where this record replaces one.
    pub origin: Option<String>,
    /// The id of the event, where the original had none of its own (a plain message).
    pub event_id: Option<String>,
    /// The original's `source`, likewise.
    pub event_source: Option<String>,
    /// The topic of the original.
    pub topic: Option<Arc<str>>,
    /// The last attempt's failure.
    pub failure: Option<Failure>,
    /// How often the event was replayed from the dead letters of this queue.
    pub replays: u32,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            job: None,
            attempt: Attempt::FIRST,
            not_before: None,
            first_seen: None,
            unroutable_since: None,
            origin: None,
            event_id: None,
            event_source: None,
            topic: None,
            failure: None,
            replays: 0,
        }
    }
}

impl Record {
    /// The record of an event that is fresh from its topic, when one has to be stored: where it lay, and what a
    /// plain message does not say itself.
    pub fn fresh(origin: &Origin<'_>) -> Self {
        Self {
            origin: Some(origin.to_string()),
            event_id: Some(origin.event_id()),
            event_source: Some(origin.place.source.clone()),
            topic: origin.place.topic.clone(),
            ..Self::default()
        }
    }

    /// The record of the same job's next run, as [`Disposition::Retry`](crate::broker::Disposition::Retry) says. An
    /// earlier failure is kept where there is no new one.
    #[must_use]
    pub fn again(
        mut self,
        at: Timestamp,
        attempt: Attempt,
        failure: Option<Failure>,
        unroutable_since: Option<Timestamp>,
    ) -> Self {
        self.not_before = Some(at);
        self.attempt = attempt;
        self.failure = failure.or(self.failure);
        self.unroutable_since = unroutable_since;
        self
    }

    /// The record of a dead letter's replay: attempt 1, at once, its failure forgotten; `job` where it was mended.
    #[must_use]
    pub fn replayed(mut self, job: Option<JobName>) -> Self {
        self.job = job.or(self.job);
        self.attempt = Attempt::FIRST;
        self.not_before = None;
        self.first_seen = None;
        self.unroutable_since = None;
        self.failure = None;
        self.replays = self.replays.saturating_add(1);
        self
    }
}

/// What a dead letter says beside its [`Record`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// Why.
    pub reason: Reason,
    /// Attempts made: 0 for malformed ones.
    pub attempts: u32,
    /// The job that ran or would have run.
    pub job: JobName,
    /// Its queue.
    pub queue: QueueName,
    /// The partition of the original (Kafka).
    pub partition: Option<i32>,
    /// Offset or stream sequence of the original.
    pub offset: Option<u64>,
    /// The worker that gave up.
    pub worker: Option<String>,
}

/// A record of ours, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The original's headers.
    pub original: Headers,
    /// Our fields.
    pub record: Record,
    /// Those of a dead letter.
    pub dead: Option<Dead>,
}

/// Why headers are no record that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no version: somebody else wrote it.
    #[error("no record of windlass: it has no header {0}")]
    Foreign(String),
    /// A newer worker, or one that is too old, wrote it.
    #[error(
        "a record of version {0}, this worker reads {VERSION}; run the version of windlass that wrote it, or a newer one"
    )]
    Version(String),
    /// A field is not what we write.
    #[error("the header {name} of a record cannot be read: {value:?}")]
    Field {
        /// The header.
        name: String,
        /// What stands there.
        value: String,
    },
}

/// Headers of a record of ours: those of the original, `record`, and what a dead letter says besides. An adapter
/// may push further headers behind them if [`is_reserved`] knows their names.
pub fn write(original: &Headers, record: &Record, dead: Option<&Dead>, binding: Binding) -> Headers {
    let mut fields = Fields(Writer::new(binding, original.size() + 512));
    for (name, value) in original.iter() {
        if is_reserved(name, binding) {
            fields.0.header(&format!("{}{name}", attribute::KEPT), value);
        } else {
            fields.0.header(name, value);
        }
    }
    fields.text(attribute::RECORD, VERSION);
    fields.some(attribute::JOB, record.job.as_ref());
    fields.text(attribute::ATTEMPT, record.attempt);
    fields.some(attribute::NOTBEFORE, record.not_before);
    fields.some(attribute::FIRSTSEEN, record.first_seen);
    fields.some(attribute::UNROUTABLESINCE, record.unroutable_since);
    fields.some(attribute::ORIGIN, record.origin.as_ref());
    fields.some(attribute::TOPIC, record.topic.as_ref());
    fields.some(attribute::EVENTID, record.event_id.as_ref());
    fields.some(attribute::EVENTSOURCE, record.event_source.as_ref());
    if let Some(failure) = &record.failure {
        fields.text(attribute::DLQERRORTYPE, &failure.error_type);
        fields.text(attribute::DLQERROR, &failure.error);
        fields.text(attribute::DLQFIRSTFAILED, failure.first);
        fields.text(attribute::DLQLASTFAILED, failure.last);
    }
    if record.replays > 0 {
        fields.text(attribute::DLQREPLAYS, record.replays);
    }
    if let Some(dead) = dead {
        fields.text(attribute::DLQREASON, dead.reason.as_str());
        fields.text(attribute::DLQATTEMPTS, dead.attempts);
        fields.text(attribute::DLQJOB, &dead.job);
        fields.text(attribute::DLQSOURCE, record.topic.as_deref().unwrap_or(dead.queue.as_str()));
        fields.text(attribute::DLQGROUP, &dead.queue);
        fields.some(attribute::DLQPARTITION, dead.partition);
        fields.some(attribute::DLQOFFSET, dead.offset);
        fields.some(attribute::DLQWORKER, dead.worker.as_ref());
    }
    fields.0.finish()
}

/// Reads what [`write()`] wrote.
pub fn read(headers: &Headers, binding: Binding) -> Result<Stored, Error> {
    let mut original = Builder::with_capacity(headers.size());
    let mut found = Found { binding, values: [const { None }; attribute::OURS.len()] };
    for (name, value) in headers.iter() {
        if let Some(kept) = name.strip_prefix(attribute::KEPT) {
            original.push(kept, value);
        } else if let Some(ours) = ours(name, binding) {
            found.values[ours].get_or_insert(value);
        } else if !is_reserved(name, binding) {
            original.push(name, value);
        }
    }
    let version = found.text(attribute::RECORD)?;
    let version =
        version.ok_or_else(|| Error::Foreign(format!("{}{}", cloudevents::prefix(binding), attribute::RECORD)))?;
    if !version.parse::<u32>().is_ok_and(|number| number == VERSION || (number >= 1 && number + 1 == VERSION)) {
        return Err(Error::Version(version));
    }
    let record = Record {
        job: found.parse(attribute::JOB, |text| JobName::new(text).ok())?,
        attempt: found
            .parse(attribute::ATTEMPT, |text| text.parse().ok().and_then(Attempt::new))?
            .unwrap_or(Attempt::FIRST),
        not_before: found.parse(attribute::NOTBEFORE, time)?,
        first_seen: found.parse(attribute::FIRSTSEEN, time)?,
        unroutable_since: found.parse(attribute::UNROUTABLESINCE, time)?,
        origin: found.text(attribute::ORIGIN)?,
        event_id: found.text(attribute::EVENTID)?,
        event_source: found.text(attribute::EVENTSOURCE)?,
        topic: found.text(attribute::TOPIC)?.map(Arc::from),
        failure: found.failure()?,
        replays: found.parse(attribute::DLQREPLAYS, |text| text.parse().ok())?.unwrap_or(0),
    };
    Ok(Stored { original: original.finish(), record, dead: found.dead()? })
}

/// Whether a record needs this name for itself, so that an original header that bears it is kept under another.
pub fn is_reserved(name: &str, binding: Binding) -> bool {
    let begins = |prefix: &&str| {
        name.as_bytes().get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    let foreign: &[&str] = match binding {
        Binding::Dash => &["nats-"],
        Binding::Kafka => &["kafka_dlt-", "retry_topic-", "__connect.errors.", "__dlq.errors.", "__streams.errors."],
    };
    begins(&attribute::KEPT) || foreign.iter().any(begins) || ours(name, binding).is_some()
}

/// The place in [`attribute::OURS`] of the attribute that a header bears, in any case.
fn ours(name: &str, binding: Binding) -> Option<usize> {
    let bare = cloudevents::bare(name, binding)?;
    attribute::OURS.iter().position(|ours| ours.eq_ignore_ascii_case(bare))
}

fn time(text: &str) -> Option<Timestamp> {
    // Times that RFC 3339 cannot say are written as a number; see the `Display` of `Timestamp`.
    let millis = || text.strip_suffix("ms").and_then(|number| number.parse().ok()).map(Timestamp::from_millis);
    Timestamp::parse_rfc3339(text).or_else(millis)
}

/// Writes our fields.
struct Fields(Writer);

impl Fields {
    fn text(&mut self, name: &str, value: impl ToString) {
        self.0.attribute(name, &value.to_string());
    }

    fn some(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }
}

/// Our fields as they stand in the headers; of several under one name the first counts.
struct Found<'a> {
    binding: Binding,
    values: [Option<&'a [u8]>; attribute::OURS.len()],
}

impl Found<'_> {
    fn text(&self, name: &str) -> Result<Option<String>, Error> {
        self.parse(name, |text| Some(text.to_owned()))
    }

    fn parse<T>(&self, name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Error> {
        let place = attribute::OURS.iter().position(|ours| *ours == name).expect("every name of ours is in OURS");
        let Some(value) = self.values[place] else { return Ok(None) };
        let parsed = cloudevents::decode_value(value, self.binding).and_then(|text| parse(&text));
        parsed.map(Some).ok_or_else(|| Error::Field {
            name: format!("{}{name}", cloudevents::prefix(self.binding)),
            value: String::from_utf8_lossy(value).into_owned(),
        })
    }

    fn failure(&self) -> Result<Option<Failure>, Error> {
        let error_type = self.text(attribute::DLQERRORTYPE)?;
        let error = self.text(attribute::DLQERROR)?;
        let first = self.parse(attribute::DLQFIRSTFAILED, time)?;
        let last = self.parse(attribute::DLQLASTFAILED, time)?;
        Ok(error_type.zip(error).zip(first.zip(last)).map(|((error_type, error), (first, last))| Failure {
            error_type,
            error,
            first,
            last,
        }))
    }

    fn dead(&self) -> Result<Option<Dead>, Error> {
        let reason = self.parse(attribute::DLQREASON, Reason::parse)?;
        let attempts = self.parse(attribute::DLQATTEMPTS, |text| text.parse().ok())?;
        let job = self.parse(attribute::DLQJOB, |text| JobName::new(text).ok())?;
        let queue = self.parse(attribute::DLQGROUP, |text| QueueName::new(text).ok())?;
        let (Some(reason), Some(attempts), Some(job), Some(queue)) = (reason, attempts, job, queue) else {
            return Ok(None);
        };
        Ok(Some(Dead {
            reason,
            attempts,
            job,
            queue,
            partition: self.parse(attribute::DLQPARTITION, |text| text.parse().ok())?,
            offset: self.parse(attribute::DLQOFFSET, |text| text.parse().ok())?,
            worker: self.text(attribute::DLQWORKER)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::option::of;
    use proptest::prelude::*;

    fn binding() -> impl Strategy<Value = Binding> {
        prop_oneof![Just(Binding::Dash), Just(Binding::Kafka)]
    }

    /// Names that a record has trouble with, and any other.
    fn header_name() -> impl Strategy<Value = String> {
        let ours = proptest::sample::select(attribute::OURS.to_vec());
        let hostile = (
            proptest::sample::select(vec!["", "windlass-orig-", "windlass-orig-windlass-orig-", "Windlass-Orig-"]),
            proptest::sample::select(vec![
                "ce-",
                "ce_",
                "CE-",
                "Ce_",
                "",
                "Nats-",
                "nats-",
                "kafka_dlt-",
                "__dlq.errors.",
            ]),
            prop_oneof![
                ours.clone().prop_map(str::to_owned),
                ours.prop_map(str::to_uppercase),
                ".{0,8}".prop_map(String::from)
            ],
        );
        prop_oneof![
            hostile.prop_map(|(kept, prefix, name)| format!("{kept}{prefix}{name}")),
            ".{0,12}".prop_map(String::from)
        ]
    }

    fn headers() -> impl Strategy<Value = Headers> {
        let value = proptest::collection::vec(any::<u8>(), 0..20);
        proptest::collection::vec((header_name(), value), 0..8).prop_map(|pairs| pairs.into_iter().collect())
    }

    fn at() -> impl Strategy<Value = Timestamp> {
        prop_oneof![any::<i64>(), 0i64..4_000_000_000_000].prop_map(Timestamp::from_millis)
    }

    fn job() -> impl Strategy<Value = JobName> {
        "[!-~]{1,20}".prop_map(|name| JobName::new(&name).expect("visible ASCII"))
    }

    fn failure() -> impl Strategy<Value = Failure> {
        (".{0,20}", ".{0,60}", at(), at()).prop_map(|(kind, error, first, last)| Failure::new(kind, error, first, last))
    }

    prop_compose! {
        fn record()(
            job in of(job()), attempt in 1u32.., not_before in of(at()), first_seen in of(at()),
            unroutable_since in of(at()), origin in of(".{0,20}"), event_id in of(".{0,20}"),
            event_source in of(".{0,20}"), topic in of(".{0,20}"), failure in of(failure()), replays: u32,
        ) -> Record {
            Record {
                job, attempt: Attempt::new(attempt).expect("not 0"), not_before, first_seen, unroutable_since, origin,
                event_id, event_source, topic: topic.map(Arc::from), failure, replays,
            }
        }
    }

    prop_compose! {
        fn dead()(
            reason in proptest::sample::select(Reason::ALL.to_vec()), attempts: u32, job in job(),
            queue in "[a-z0-9][a-z0-9_-]{0,20}", partition in of(any::<i32>()), offset in of(any::<u64>()),
            worker in of(".{0,12}"),
        ) -> Dead {
            Dead { reason, attempts, job, queue: QueueName::new(&queue).expect("fits"), partition, offset, worker }
        }
    }

    proptest! {
        #[test]
        fn a_record_reads_back(original in headers(), record in record(), dead in of(dead()), binding in binding()) {
            let written = write(&original, &record, dead.as_ref(), binding);
            let stored = read(&written, binding).expect("just written");
            prop_assert_eq!(stored, Stored { original, record, dead });
        }

        #[test]
        fn what_brokers_and_adapters_add_is_left_out(original in headers(), record in record(), binding in binding()) {
            let written = write(&original, &record, None, binding);
            let added = match binding {
                Binding::Dash => [("Nats-Scheduler", "s"), ("nats-msg-id", "m")],
                Binding::Kafka => [("kafka_dlt-original-topic", "t"), ("__dlq.errors.topic", "t")],
            };
            let all: Headers = written.iter().map(|(n, v)| (n, v.to_vec())).chain(added.map(|(n, v)| (n, v.as_bytes().to_vec()))).collect();
            prop_assert_eq!(read(&all, binding).expect("just written"), Stored { original, record, dead: None });
        }

        #[test]
        fn records_of_records_unwrap_one_by_one(original in headers(), inner in record(), outer in record(), binding in binding()) {
            let once = write(&original, &inner, None, binding);
            let twice = write(&once, &outer, None, binding);
            prop_assert_eq!(read(&twice, binding).expect("just written").original, once);
        }

        #[test]
        fn reading_never_panics(headers in headers(), binding in binding()) {
            let _ = read(&headers, binding);
        }
    }

    #[test]
    fn originals_stand_unchanged_but_for_our_names() {
        let original: Headers =
            [("ce-id", "7"), ("ce-attempt", "9"), ("traceparent", "00-.."), ("Nats-Msg-Id", "m")].into_iter().collect();
        let record = Record { attempt: Attempt::new(2).expect("2"), ..Record::default() };
        let written = write(&original, &record, None, Binding::Dash);
        let names: Vec<_> = written.iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "ce-id",
                "windlass-orig-ce-attempt",
                "traceparent",
                "windlass-orig-Nats-Msg-Id",
                "ce-windlassrecord",
                "ce-attempt"
            ]
        );
        assert_eq!(written.get("ce-attempt"), Some(&b"2"[..]));
    }

    #[test]
    fn versions_and_strangers_are_told_apart() {
        let headers = |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<Headers>();
        assert!(matches!(read(&headers(&[("ce-id", "1")]), Binding::Dash), Err(Error::Foreign(_))));
        for version in ["2", "0", "", "one"] {
            let error = read(&headers(&[("ce_windlassrecord", version)]), Binding::Kafka).expect_err(version);
            assert_eq!(error, Error::Version(version.to_owned()));
        }
        let torn = headers(&[("ce-windlassrecord", "1"), ("ce-attempt", "0")]);
        assert!(matches!(read(&torn, Binding::Dash), Err(Error::Field { name, .. }) if name == "ce-attempt"));
    }
}
