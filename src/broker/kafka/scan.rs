//! Reads a topic from its beginning to its end, outside of any group: dead letters and marks.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::super::Error;
use super::config::Settings;
use super::context::Context;
use super::native::{Arrived, Batch, PartitionQueue, Wake};
use super::topics::classify;

/// So long without a record, and the broker is taken for gone.
const SILENCE: Duration = Duration::from_secs(10);

/// First and next offset of each partition.
pub type Bounds = Vec<(i32, i64, i64)>;

/// Reads what is in `topic` now, in the order of each partition, and gives each record to `each`. Only what is
/// committed is seen. Blocks.
pub fn scan(
    settings: &Settings,
    group: &str,
    topic: &str,
    mut each: impl FnMut(i32, Arrived),
) -> Result<Bounds, Error> {
    scan_from(settings, group, topic, &BTreeMap::new(), |number, arrived| {
        each(number, arrived);
        true
    })
}

/// The same from these offsets, where a partition has one; `each` says whether it wants more of that partition.
pub fn scan_from(
    settings: &Settings,
    group: &str,
    topic: &str,
    from: &BTreeMap<i32, i64>,
    mut each: impl FnMut(i32, Arrived) -> bool,
) -> Result<Bounds, Error> {
    let failed = |error| classify(&format!("read topic {topic}"), &error, &settings.shown);
    let context = Context::new(settings.login().token_command);
    let consumer: BaseConsumer<Context> =
        settings.reader(group).create_with_context(context).map_err(|error| Error::Refused(error.to_string()))?;
    settings.login().enter(consumer.client()).map_err(Error::Refused)?;
    let consumer = Rc::new(consumer);
    let metadata = consumer.fetch_metadata(Some(topic), SILENCE).map_err(failed)?;
    let numbers: Vec<i32> =
        metadata.topics().iter().flat_map(|topic| topic.partitions()).map(|partition| partition.id()).collect();
    let wake = Arc::new(Wake::default());
    wake.here();
    let mut open = Vec::new();
    let mut bounds = Bounds::new();
    let mut list = TopicPartitionList::new();
    for number in numbers {
        let (low, high) = consumer.fetch_watermarks(topic, number, SILENCE).map_err(failed)?;
        bounds.push((number, low, high));
        let start = from.get(&number).map_or(low, |from| (*from).max(low));
        if start < high {
            let queue = PartitionQueue::split(&consumer, topic, number, &wake);
            open.push((number, high, queue));
            list.add_partition_offset(topic, number, Offset::Offset(start)).map_err(failed)?;
        }
    }
    if open.is_empty() {
        return Ok(bounds);
    }
    consumer.assign(&list).map_err(failed)?;
    let mut batch = Batch::new(512);
    let mut heard = Instant::now();
    while !open.is_empty() {
        while consumer.poll(Duration::ZERO).is_some() {}
        let before = heard;
        open.retain(|(number, high, queue)| {
            let Some(queue) = queue else { return false };
            queue.read(&mut batch, 512);
            let mut ended = batch.errors.contains(&RDKafkaErrorCode::PartitionEOF);
            if ended || !batch.records.is_empty() {
                heard = Instant::now();
            }
            let mut wanted = true;
            for arrived in batch.records.drain(..) {
                ended |= arrived.offset + 1 >= *high;
                if arrived.offset < *high && wanted {
                    wanted = each(*number, arrived);
                    ended |= !wanted;
                }
            }
            !ended
        });
        if heard.elapsed() > SILENCE {
            return Err(Error::Unavailable(format!("topic {topic} cannot be read: the broker does not answer")));
        }
        if before == heard && !open.is_empty() {
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
    drop(open);
    // Not by the consumer's own drop, which would leave a group that was never joined.
    consumer.context().close();
    Ok(bounds)
}
