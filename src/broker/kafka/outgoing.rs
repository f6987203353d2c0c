//! What we write: headers in librdkafka's form, dead letters with the headers that other tools read.
//!
//! A dead letter keeps key, bytes and headers; ours are CloudEvents attributes. Beside them stand the headers of
//! Spring Kafka's `DeadLetterPublishingRecoverer` (partition as four bytes, offset and timestamp as eight, big-endian)
//! and those of KIP-1191 (text).

#[cfg(feature = "kafka")]
use rdkafka::message::{Header, OwnedHeaders};

use crate::message::headers::Builder;
use crate::message::record::Dead;
use crate::message::record::Record;
use crate::message::{Headers, Message, QueueName};

/// The header that tells the delay lane whose record it is.
pub const DESTINATION: &str = "retry_topic-windlass-queue";

/// In librdkafka's form.
#[cfg(feature = "kafka")]
pub fn headers(headers: &Headers) -> OwnedHeaders {
    headers.iter().fold(OwnedHeaders::new_with_capacity(8), |owned, (key, value)| {
        // Names end at a NUL on the wire of no client; the binding would panic.
        if key.contains('\0') { owned } else { owned.insert(Header { key, value: Some(value) }) }
    })
}

/// Headers, and one more behind them.
pub fn with(headers: &Headers, more: &[(&str, &[u8])]) -> Headers {
    let mut builder = Builder::with_capacity(headers.size() + 256);
    for (name, value) in headers.iter() {
        builder.push(name, value);
    }
    for (name, value) in more {
        builder.push(name, value);
    }
    builder.finish()
}

/// Where a record lay, in numbers.
pub struct Lay<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The record's time.
    pub at: crate::time::Timestamp,
}

/// What other tools read of a dead letter.
pub fn foreign(headers: &Headers, lay: &Lay<'_>, group: &str, record: &Record, dead: &Dead) -> Headers {
    let failure = record.failure.as_ref();
    let class = failure.map_or("", |failure| failure.error_type.as_str());
    let text = failure.map_or("", |failure| failure.error.as_str());
    let numbers = [lay.partition.to_string(), lay.offset.to_string(), dead.attempts.to_string()];
    with(
        headers,
        &[
            ("kafka_dlt-original-topic", lay.topic.as_bytes()),
            ("kafka_dlt-original-partition", &lay.partition.to_be_bytes()),
            ("kafka_dlt-original-offset", &lay.offset.to_be_bytes()),
            ("kafka_dlt-original-timestamp", &lay.at.as_millis().to_be_bytes()),
            ("kafka_dlt-original-timestamp-type", b"CreateTime"),
            ("kafka_dlt-original-consumer-group", group.as_bytes()),
            ("kafka_dlt-exception-fqcn", class.as_bytes()),
            ("kafka_dlt-exception-message", text.as_bytes()),
            ("__dlq.errors.topic", lay.topic.as_bytes()),
            ("__dlq.errors.partition", numbers[0].as_bytes()),
            ("__dlq.errors.offset", numbers[1].as_bytes()),
            ("__dlq.errors.group", group.as_bytes()),
            ("__dlq.errors.delivery.count", numbers[2].as_bytes()),
            ("__dlq.errors.message", text.as_bytes()),
        ],
    )
}

/// A record for the delay lane: the same, and whose it is.
pub fn delayed(message: Message, queue: &QueueName) -> Message {
    let headers = with(&message.headers, &[(DESTINATION, queue.as_str().as_bytes())]);
    Message { headers, ..message }
}

/// The same without the header that only the delay lane reads.
pub fn arrived(message: Message) -> Message {
    let headers = message.headers.iter().filter(|(name, _)| *name != DESTINATION).collect();
    Message { headers, ..message }
}

/// The queue of a record in the delay lane.
pub fn destination(message: &Message) -> Option<String> {
    std::str::from_utf8(message.headers.get(DESTINATION)?).ok().map(str::to_owned)
}

/// The numbers in the text of an origin, `kafka:TOPIC:PARTITION:OFFSET:MS`.
pub fn parse_lay(origin: &str) -> Option<Lay<'_>> {
    let mut parts = origin.strip_prefix("kafka:")?.rsplitn(4, ':');
    let at = crate::time::Timestamp::from_millis(parts.next()?.parse().ok()?);
    let offset = parts.next()?.parse().ok()?;
    let partition = parts.next()?.parse().ok()?;
    Some(Lay { topic: parts.next()?, partition, offset, at })
}
