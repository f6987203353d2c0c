//! Properties of librdkafka that a user may not set: those that would lose or repeat jobs, and those that have a key
//! of ours.

use super::value::Value;

/// Property, the values that do no harm, and why others are refused.
const REFUSED: &[(&str, &[&str], &str)] = &[
    ("enable.auto.commit", &["false"], "would lose jobs: an offset is committed once its job is settled, by us"),
    ("auto.commit.enable", &["false"], "would lose jobs: an offset is committed once its job is settled, by us"),
    ("auto.commit.interval.ms", &[], "would lose jobs: an offset is committed once its job is settled, by us"),
    ("enable.auto.offset.store", &["false"], "would lose jobs: it counts as finished what was only handed over"),
    ("offset.store.method", &["broker"], "would lose jobs: offsets are kept by the group"),
    ("offset.store.path", &[], "would lose jobs: offsets are kept by the group"),
    ("offset.store.sync.interval.ms", &[], "would lose jobs: offsets are kept by the group"),
    (
        "acks",
        &["all", "-1"],
        "would lose jobs: a retry or dead letter counts as stored once all replicas in sync have it",
    ),
    (
        "request.required.acks",
        &["all", "-1"],
        "would lose jobs: a retry or dead letter counts as stored once all replicas in sync have it",
    ),
    ("enable.idempotence", &["true"], "would repeat and reorder what we publish"),
    ("max.in.flight", &["1", "2", "3", "4", "5"], "would reorder what we publish"),
    ("max.in.flight.requests.per.connection", &["1", "2", "3", "4", "5"], "would reorder what we publish"),
    ("isolation.level", &["read_committed"], "would run records of moves that were given up"),
    ("delivery.report.only.error", &["false"], "would lose jobs: nothing counts as stored before its report"),
    (
        "auto.offset.reset",
        &[],
        "would skip jobs of a group whose offsets have expired: set `start` of the queue, or `run --from`",
    ),
    (
        "topic.auto.offset.reset",
        &[],
        "would skip jobs of a group whose offsets have expired: set `start` of the queue, or `run --from`",
    ),
    (
        "partition.assignment.strategy",
        &["cooperative-sticky"],
        "would take running jobs from a worker at every rebalance",
    ),
    ("enable.partition.eof", &["false"], "is not understood by the worker"),
    ("check.crcs", &["true"], "would run damaged records"),
    ("group.id", &[], "is made of the namespace and the queue: set `namespace`"),
    ("group.instance.id", &[], "set `kafka.instance_id`"),
    ("group.protocol", &[], "set `kafka.group_protocol`"),
    ("session.timeout.ms", &[], "set `worker.lease`"),
    ("transactional.id", &[], "is ours: it fences the moves of retries and dead letters"),
    ("bootstrap.servers", &[], "set `broker`"),
    ("metadata.broker.list", &[], "set `broker`"),
    ("security.protocol", &[], "follows from kafka+tls:// and `kafka.sasl`"),
    ("sasl.mechanism", &[], "set `kafka.sasl.mechanism`"),
    ("sasl.mechanisms", &[], "set `kafka.sasl.mechanism`"),
    ("sasl.username", &[], "set `kafka.sasl.user`"),
    ("sasl.password", &[], "set `kafka.sasl.password_file`: a secret stands in a file of its own"),
    ("ssl.ca.location", &[], "set `kafka.tls.ca_file`"),
    ("ssl.certificate.location", &[], "set `kafka.tls.cert_file`"),
    ("ssl.key.location", &[], "set `kafka.tls.key_file`"),
];

/// Why this option is not passed on, if it is not.
pub(super) fn refused(name: &str, value: &Value) -> Option<String> {
    let Some((_, harmless, why)) = REFUSED.iter().find(|(refused, _, _)| refused.eq_ignore_ascii_case(name)) else {
        return crate::broker::kafka_option_fault(name, &text(value));
    };
    let text = text(value).to_lowercase();
    (!harmless.contains(&text.as_str())).then(|| format!("refused: {why}"))
}

/// An option's value as librdkafka reads it.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Text(text) | Value::Date(text) | Value::Odd(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Array(_) | Value::Table(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_loses_jobs_is_refused_and_what_we_set_anyway_is_not() {
        for (name, bad, good) in [
            ("enable.auto.commit", Value::Bool(true), Some(Value::Bool(false))),
            ("acks", Value::Integer(1), Some(Value::Text("all".into()))),
            ("ACKS", Value::Integer(0), Some(Value::Integer(-1))),
            ("isolation.level", Value::Text("read_uncommitted".into()), Some(Value::Text("read_committed".into()))),
            ("auto.offset.reset", Value::Text("earliest".into()), None),
        ] {
            assert!(refused(name, &bad).is_some(), "{name}");
            if let Some(good) = good {
                assert_eq!(refused(name, &good), None, "{name}");
            }
        }
        assert_eq!(refused("fetch.min.bytes", &Value::Integer(1)), None);
    }

    #[test]
    #[cfg(feature = "kafka")]
    fn what_the_client_does_not_know_or_take_is_a_fault() {
        let said = |name, value| refused(name, &value).unwrap_or_default();
        assert!(said("bogus", Value::Integer(1)).contains("no such property"));
        assert!(said("fetch.min.bytes", Value::Integer(-1)).contains("fetch.min.bytes"));
        assert!(said("fetch.min.bytes", Value::Text("many".into())).contains("fetch.min.bytes"));
    }
}
