//! Names at the broker (INTERFACE 8): groups `N.Q` and `N._delay`; topics `N.work.Q`, `N.delay.<tier>`, `dlq.N.Q`,
//! `N.marks`.

use std::time::Duration;

use crate::message::{Namespace, QueueName};

/// The group of a queue.
pub fn group(namespace: &Namespace, queue: &QueueName) -> String {
    format!("{namespace}.{queue}")
}

/// The group that reads the delay topics of all queues.
pub fn delay_group(namespace: &Namespace) -> String {
    format!("{namespace}._delay")
}

/// The topic of jobs that are for one queue alone.
pub fn work(namespace: &Namespace, queue: &QueueName) -> String {
    format!("{namespace}.work.{queue}")
}

/// The topic of a queue's dead letters.
pub fn dead(namespace: &Namespace, queue: &QueueName) -> String {
    format!("dlq.{namespace}.{queue}")
}

/// The topic of what lay among the delayed jobs and names no queue. No queue's name begins so.
pub fn lost_property(namespace: &Namespace) -> String {
    format!("dlq.{namespace}._delay")
}

/// The compacted topic that says which dead letters are gone, and which groups have begun.
pub fn marks(namespace: &Namespace) -> String {
    format!("{namespace}.marks")
}

/// The topic of a delay tier.
pub fn delay(namespace: &Namespace, tier: Duration) -> String {
    format!("{namespace}.delay.{}", crate::time::format_duration(tier))
}

/// Whether a topic's name is one of those that we create.
pub fn is_ours(namespace: &Namespace, topic: &str) -> bool {
    let tier = topic.strip_prefix(namespace.as_str()).and_then(|rest| rest.strip_prefix(".delay."));
    topic == marks(namespace)
        || topic == lost_property(namespace)
        || tier.is_some_and(|tier| crate::time::parse_duration(tier).is_ok())
        || queue_of_work(namespace, topic).is_some()
        || queue_of_dead(namespace, topic).is_some()
}

/// The queue of a work topic.
pub fn queue_of_work(namespace: &Namespace, topic: &str) -> Option<QueueName> {
    QueueName::new(topic.strip_prefix(namespace.as_str())?.strip_prefix(".work.")?).ok()
}

/// The queue of a dead-letter topic.
pub fn queue_of_dead(namespace: &Namespace, topic: &str) -> Option<QueueName> {
    QueueName::new(topic.strip_prefix("dlq.")?.strip_prefix(namespace.as_str())?.strip_prefix('.')?).ok()
}

/// The delays of the tiers, ascending. A record waits in the largest that is not longer than what is left, so it is
/// never late by more than a hop takes; each tier is twice the one before, so each is passed at most once below the
/// last.
pub const TIERS: [Duration; 12] = {
    let mut tiers = [Duration::ZERO; 12];
    let mut index = 0;
    while index < tiers.len() {
        tiers[index] = Duration::from_secs(30 << index);
        index += 1;
    }
    tiers
};

/// The tier for what is left; `None`: it is short enough to wait with its queue.
pub fn tier(left: Duration) -> Option<Duration> {
    TIERS.iter().rev().find(|tier| **tier <= left).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_takes_at_most_twelve_hops_up_to_a_day() {
        for seconds in (0..=86_400).step_by(7) {
            let mut left = Duration::from_secs(seconds);
            let mut hops = 0;
            while let Some(tier) = tier(left) {
                left -= tier;
                hops += 1;
            }
            assert!(hops <= 12 && left < TIERS[0], "{seconds} s took {hops} hops");
        }
    }

    #[test]
    fn names_are_read_back() {
        let (namespace, queue) = (Namespace::new("n").expect("valid"), QueueName::new("q-1").expect("valid"));
        assert_eq!(queue_of_work(&namespace, &work(&namespace, &queue)), Some(queue.clone()));
        assert_eq!(queue_of_dead(&namespace, &dead(&namespace, &queue)), Some(queue));
        assert_eq!(queue_of_dead(&namespace, "dlq.other.q"), None);
        assert!(
            is_ours(&namespace, "n.delay.1m") && is_ours(&namespace, "n.marks") && !is_ours(&namespace, "n.orders")
        );
    }
}
