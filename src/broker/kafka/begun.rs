//! Whether a group still knows where it was, and whether its topics are what they were.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::{Error, Queue};
use super::config::Settings;
use super::inspect::places;
use super::marks::Marks;
use super::names;
use super::topics::blocking;
use crate::message::Namespace;

/// Topics whose first offsets were committed and that are not marked yet: queue and topic, and how many partitions.
pub type Begun = Arc<Mutex<BTreeMap<(String, String), usize>>>;

/// Refuses a queue that has lost its place in one of its topics, unless a person has said where it goes on. Gives what
/// an operator should know of the others. `partitions` are those of each topic now.
pub async fn check(
    settings: &Settings,
    namespace: &Namespace,
    queue: &Queue,
    partitions: &BTreeMap<String, usize>,
    told: bool,
) -> Result<Vec<String>, Error> {
    let (settings, namespace, name) = (settings.clone(), namespace.clone(), queue.name.clone());
    let (partitions, ordered) = (partitions.clone(), queue.ordered);
    blocking(move || {
        let marks = Marks::read(&settings, &namespace)?;
        let begun: BTreeMap<&String, usize> = partitions
            .keys()
            .filter_map(|topic| Some((topic, *marks.begun.get(&(name.to_string(), topic.clone()))?)))
            .collect();
        let group = names::group(&namespace, &name);
        // Asked for in any case: who may not read the group learns it here and not while working.
        let all: Vec<(String, i32)> = partitions
            .keys()
            .flat_map(|topic| (0..partitions[topic]).map(|number| (topic.clone(), i32::try_from(number).unwrap_or(0))))
            .collect();
        let known: BTreeSet<String> = places(&settings, &group, &all)?.into_keys().map(|(topic, _)| topic).collect();
        if let Some(topic) = begun.keys().find(|topic| !known.contains(**topic))
            && !told
        {
            return Err(Error::Refused(format!(
                "group {group} has no offsets in topic {topic} any more: they have expired (offsets.retention.minutes of \
                 the broker) or were removed, and nobody knows which of its events have run; say where it goes on: \
                 windlass run --from earliest (runs all that is there), --from latest (runs none of it) or --from TIME"
            )));
        }
        let grown = begun.iter().filter(|(topic, count)| ordered && partitions[**topic] > **count);
        Ok(grown.map(|(topic, count)| grown_note(topic, *count, partitions[*topic])).collect())
    })
    .await
}

/// What more partitions mean for key order.
pub fn grown_note(topic: &str, before: usize, now: usize) -> String {
    format!(
        "topic {topic} has {now} partitions, and had {before}: events of one key that were published before and after \
         may lie in two of them, and run in order only among those of each"
    )
}
