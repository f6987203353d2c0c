//! Names of attributes and headers, each once.
//!
//! Attribute names are bare (`attempt`); a binding puts its prefix before them (`ce-attempt`,
//! `ce_attempt`). Ours count only in records that we wrote; on a topic they are the producer's.

/// CloudEvents 1.0, required.
pub const ID: &str = "id";
/// CloudEvents 1.0, required.
pub const SOURCE: &str = "source";
/// CloudEvents 1.0, required; its presence is what makes a message binary mode.
pub const SPECVERSION: &str = "specversion";
/// CloudEvents 1.0, required.
pub const TYPE: &str = "type";
/// CloudEvents 1.0: the media type of the data.
pub const DATACONTENTTYPE: &str = "datacontenttype";
/// CloudEvents 1.0: when it happened.
pub const TIME: &str = "time";
/// CloudEvents 1.0: what it is about.
pub const SUBJECT: &str = "subject";
/// CloudEvents extension "partitioning": the ordering key.
pub const PARTITIONKEY: &str = "partitionkey";
/// CloudEvents extension "expirytime": not to be started after this (RFC 3339).
pub const EXPIRYTIME: &str = "expirytime";

/// W3C Trace Context; a plain header on every broker.
pub const TRACEPARENT: &str = "traceparent";
/// The media type of the body: Kafka binding, structured mode, plain messages.
pub const CONTENT_TYPE: &str = "content-type";
/// What `Content-Type` begins with in structured mode.
pub const STRUCTURED: &str = "application/cloudevents";

/// Ours: the version of the record's form. A reader knows the one before it too.
pub const RECORD: &str = "windlassrecord";
/// Ours: the job to run.
pub const JOB: &str = "job";
/// Ours: the number of the attempt that runs next, decimal.
pub const ATTEMPT: &str = "attempt";
/// Ours: not to be started before this (RFC 3339, UTC, milliseconds).
pub const NOTBEFORE: &str = "notbefore";
/// Ours: when this job was first handed out (RFC 3339, UTC, milliseconds).
pub const FIRSTSEEN: &str = "firstseen";
/// Ours: since when no worker knew the job.
pub const UNROUTABLESINCE: &str = "unroutablesince";
/// Ours: where the original lay: `sqlite:TOPIC:ROW:MS`.
pub const ORIGIN: &str = "origin";
/// Ours: the topic of the original.
pub const TOPIC: &str = "topic";
/// Ours: the event's id, where the original has none of its own.
pub const EVENTID: &str = "eventid";
/// Ours: the event's source, likewise.
pub const EVENTSOURCE: &str = "eventsource";
/// Dead letter: a [`Reason`](super::Reason).
pub const DLQREASON: &str = "dlqreason";
/// Dead letter: the job that ran or would have run.
pub const DLQJOB: &str = "dlqjob";
/// Dead letter and retry: low-cardinality error name.
pub const DLQERRORTYPE: &str = "dlqerrortype";
/// Dead letter and retry: the error, at most 1 KiB.
pub const DLQERROR: &str = "dlqerror";
/// Dead letter: attempts made.
pub const DLQATTEMPTS: &str = "dlqattempts";
/// Dead letter: the topic, or the queue of an enqueued job.
pub const DLQSOURCE: &str = "dlqsource";
/// Dead letter: the partition (Kafka).
pub const DLQPARTITION: &str = "dlqpartition";
/// Dead letter: offset, stream sequence or row.
pub const DLQOFFSET: &str = "dlqoffset";
/// Dead letter: the queue.
pub const DLQGROUP: &str = "dlqgroup";
/// Dead letter and retry: first failure.
pub const DLQFIRSTFAILED: &str = "dlqfirstfailed";
/// Dead letter and retry: last failure.
pub const DLQLASTFAILED: &str = "dlqlastfailed";
/// Dead letter: the worker that gave up.
pub const DLQWORKER: &str = "dlqworker";
/// Dead letter and replay: how often it was replayed.
pub const DLQREPLAYS: &str = "dlqreplays";

/// What begins the name under which a record of ours keeps an original header that bears one of our names.
pub const KEPT: &str = "windlass-orig-";

/// Every attribute name of ours.
pub const OURS: [&str; 23] = [
    RECORD,
    JOB,
    ATTEMPT,
    NOTBEFORE,
    FIRSTSEEN,
    UNROUTABLESINCE,
    ORIGIN,
    TOPIC,
    EVENTID,
    EVENTSOURCE,
    DLQREASON,
    DLQJOB,
    DLQERRORTYPE,
    DLQERROR,
    DLQATTEMPTS,
    DLQSOURCE,
    DLQPARTITION,
    DLQOFFSET,
    DLQGROUP,
    DLQFIRSTFAILED,
    DLQLASTFAILED,
    DLQWORKER,
    DLQREPLAYS,
];
