//! What would lose, double or stall jobs, seen from the settings of topics. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::{Finding, Severity};
use super::topics::Cluster;

/// Settings of each topic, by name.
pub type Settings = BTreeMap<String, BTreeMap<String, String>>;

fn finding(severity: Severity, topic: &str, finding: String, fix: &str) -> Finding {
    Finding { severity, subject: format!("topic {topic}"), finding, fix: fix.to_owned() }
}

/// A topic that a queue hears is not there.
pub fn missing(topic: &str) -> Finding {
    finding(
        Severity::Warn,
        topic,
        "is not there: nothing was published to it".to_owned(),
        "create it, or start a worker with kafka.create = true",
    )
}

/// The broker denies transactions.
pub fn no_transactions(address: &str) -> Finding {
    Finding {
        severity: Severity::Warn,
        subject: address.to_owned(),
        finding: "denies us transactions: a retry, a dead letter or a replay may be stored twice by a kill".to_owned(),
        fix: "allow Write and Describe on the transactional ids that begin with the namespace".to_owned(),
    }
}

/// Examines topics. `ages` is the age of the oldest waiting event of each; `own` tells which topics are ours.
pub fn examine(
    cluster: &Cluster,
    settings: &Settings,
    ages: &BTreeMap<String, Duration>,
    own: impl Fn(&str) -> bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut single = 0;
    for (topic, settings) in settings {
        let get = |name: &str| settings.get(name).map(String::as_str);
        let copies =
            cluster.topics.get(topic).and_then(|seats| seats.iter().map(|seat| seat.replicas).min()).unwrap_or(1);
        if copies < 2 && cluster.brokers > 1 {
            findings.push(finding(
                Severity::Error,
                topic,
                format!("has one copy on a cluster of {} brokers: a broker's disk is a job's life", cluster.brokers),
                "raise its replication factor to 3 (kafka-reassign-partitions.sh)",
            ));
        } else if copies < 2 {
            single += 1;
        }
        let least: usize = get("min.insync.replicas").and_then(|value| value.parse().ok()).unwrap_or(1);
        if copies >= 2 && least < 2 {
            findings.push(finding(
                Severity::Warn,
                topic,
                "confirms what only one replica has (min.insync.replicas = 1)".to_owned(),
                "set min.insync.replicas=2",
            ));
        }
        if get("unclean.leader.election.enable") == Some("true") {
            findings.push(finding(
                Severity::Error,
                topic,
                "may elect a leader that lacks confirmed records".to_owned(),
                "set unclean.leader.election.enable=false",
            ));
        }
        let policy = get("cleanup.policy").unwrap_or("delete");
        let retention = get("retention.ms").and_then(|value| value.parse::<i64>().ok()).unwrap_or(-1);
        let bytes = get("retention.bytes").and_then(|value| value.parse::<i64>().ok()).unwrap_or(-1);
        if own(topic) {
            let marks = topic.ends_with(".marks");
            if !marks && (retention >= 0 || bytes >= 0) {
                findings.push(finding(
                    Severity::Error,
                    topic,
                    "removes jobs or dead letters by age or size".to_owned(),
                    "set retention.ms=-1 and retention.bytes=-1",
                ));
            }
            if marks != policy.contains("compact") {
                findings.push(finding(
                    Severity::Error,
                    topic,
                    format!("has cleanup.policy={policy}"),
                    if marks { "set cleanup.policy=compact" } else { "set cleanup.policy=delete" },
                ));
            }
            continue;
        }
        if policy.contains("compact") {
            findings.push(finding(
                Severity::Warn,
                topic,
                "is compacted: of several events with one key only the last is sure to be seen".to_owned(),
                "set cleanup.policy=delete where every event is a job",
            ));
        }
        if let (Ok(retention), Some(age)) = (u64::try_from(retention), ages.get(topic))
            && age.as_millis() as u64 * 2 >= retention
            && retention > 0
        {
            findings.push(finding(
                Severity::Warn,
                topic,
                format!(
                    "the oldest waiting event is {} old, its retention is {}",
                    crate::time::format_duration(Duration::from_secs(age.as_secs())),
                    crate::time::format_duration(Duration::from_millis(retention))
                ),
                "add workers, or raise retention.ms",
            ));
        }
    }
    if single > 0 {
        findings.push(Finding {
            severity: Severity::Info,
            subject: "cluster".to_owned(),
            finding: "one broker: what its disk loses is lost".to_owned(),
            fix: "three brokers, replication 3, min.insync.replicas 2".to_owned(),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::topics::Seat;
    use super::*;

    fn look(brokers: usize, replicas: usize, topic: &str, settings: &[(&str, &str)], age: u64) -> Vec<Severity> {
        let seats = vec![Seat { number: 0, replicas }];
        let cluster = Cluster { brokers, topics: [(topic.to_owned(), seats)].into() };
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let ages = [(topic.to_owned(), Duration::from_secs(age))].into();
        let findings =
            examine(&cluster, &[(topic.to_owned(), settings)].into(), &ages, |topic| topic.starts_with("n."));
        findings.into_iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn finds_what_loses_jobs_and_nothing_else() {
        use Severity::{Error, Info, Warn};
        let safe = ("min.insync.replicas", "2");
        assert_eq!(look(3, 3, "a", &[safe], 0), []);
        assert_eq!(look(3, 1, "a", &[], 0), [Error]);
        assert_eq!(look(1, 1, "a", &[], 0), [Info]);
        assert_eq!(look(3, 3, "a", &[], 0), [Warn]);
        assert_eq!(look(3, 3, "a", &[safe, ("unclean.leader.election.enable", "true")], 0), [Error]);
        assert_eq!(look(3, 3, "a", &[safe, ("retention.ms", "100000")], 49), []);
        assert_eq!(look(3, 3, "a", &[safe, ("retention.ms", "100000")], 50), [Warn]);
        assert_eq!(look(3, 3, "n.work.q", &[safe, ("retention.ms", "100000")], 0), [Error]);
        assert_eq!(look(3, 3, "n.marks", &[safe, ("cleanup.policy", "compact"), ("retention.ms", "1")], 0), []);
    }
}
