//! What somebody who wrote an unknown key may have meant: by spelling, and by what other systems call it.

use super::key;

/// Names from elsewhere, and what they are here. The first that fits the table it was written in is taken; a target
/// with a dot is a whole path, one without is a key (or table) of the same table.
const WORDS: &[(&[&str], &[&str], &str)] = &[
    (
        &[
            "concurrency",
            "max_concurrency",
            "worker_concurrency",
            "threads",
            "workers",
            "parallelism",
            "pool_size",
            "max_in_flight",
            "max_jobs",
        ],
        &["slots", "worker.slots"],
        "",
    ),
    (
        &[
            "prefetch",
            "prefetch_count",
            "prefetch_multiplier",
            "worker_prefetch_multiplier",
            "max_ack_pending",
            "batch_size",
            "max_poll_records",
        ],
        &["slots", "worker.slots"],
        "nothing is fetched ahead: in hand are at most the slots",
    ),
    (
        &["max_retries", "retries", "max_retry", "retry_count", "retry_limit"],
        &["attempts", "retry.attempts"],
        "counts the first: 3 retries are 4",
    ),
    (
        &["max_attempts", "attempts", "max_tries", "tries", "max_deliver", "max_receive_count"],
        &["attempts", "retry.attempts"],
        "counts the first: 3 retries are 4",
    ),
    (
        &[
            "retry_delay",
            "default_retry_delay",
            "initial_interval",
            "initial_delay",
            "delay",
            "backoff",
            "retry_first",
            "min",
        ],
        &["first", "retry.first"],
        "",
    ),
    (
        &["retry_backoff", "multiplier", "backoff_factor", "exponent", "retry_factor", "base"],
        &["factor", "retry.factor"],
        "",
    ),
    (&["retry_backoff_max", "max_delay", "max_interval", "max_backoff", "retry_max", "cap"], &["max", "retry.max"], ""),
    (&["retry_jitter"], &["jitter", "retry.jitter"], ""),
    (
        &[
            "visibility_timeout",
            "ack_wait",
            "ack_timeout",
            "session_timeout",
            "session_timeout_ms",
            "lock_duration",
            "lease_time",
            "heartbeat_timeout",
            "lease",
        ],
        &["lease", "worker.lease"],
        "",
    ),
    (
        &[
            "time_limit",
            "task_time_limit",
            "soft_time_limit",
            "task_soft_time_limit",
            "job_timeout",
            "timeout_ms",
            "timeout_seconds",
            "deadline",
        ],
        &["timeout"],
        "",
    ),
    (
        &["dlq", "dead_letter_queue", "deadletter", "dead_letters", "dead_letter_topic", "dead", "dlq_topic"],
        &["dead_letter"],
        "every queue has its dead letters, by itself",
    ),
    (&["retention", "ttl", "max_age", "dlq_retention", "keep_for", "keep"], &["keep", "dead_letter.keep"], ""),
    (&["url", "endpoint", "webhook", "uri", "address"], &["http", "broker"], ""),
    (
        &[
            "broker_url",
            "servers",
            "bootstrap_servers",
            "brokers",
            "connection",
            "dsn",
            "database",
            "database_url",
            "nats_url",
            "kafka_url",
        ],
        &["broker"],
        "",
    ),
    (&["subject", "subjects", "topic", "stream", "streams", "routing_key", "events"], &["topics"], ""),
    (&["handler", "task", "function", "runs"], &["job"], ""),
    (&["priority", "share"], &["weight"], ""),
    (&["fifo", "ordered", "ordering", "order_by"], &["order"], ""),
    (&["auto_offset_reset", "offset", "deliver_policy", "from", "start_from", "begin"], &["start"], ""),
    (
        &["grace_period", "shutdown_timeout", "stop_timeout", "termination_grace_period", "drain_timeout", "grace"],
        &["grace", "worker.grace"],
        "",
    ),
    (&["connect_timeout", "connection_timeout"], &["connect", "worker.connect"], ""),
    (&["max_memory", "memory", "max_bytes", "memory_limit"], &["bytes_in_flight", "worker.bytes_in_flight"], ""),
    (
        &["port", "bind", "host", "http_port", "metrics_port", "health_port", "listen_address"],
        &["listen", "admin.listen"],
        "",
    ),
    (&["log_level", "loglevel", "verbosity"], &["level", "log.level"], ""),
    (&["log_format"], &["format", "log.format"], ""),
    (&["token", "tokens", "api_key"], &["token_file", "bearer_file"], "a secret stands in a file of its own"),
    (&["password", "pass"], &["password_file"], "a secret stands in a file of its own"),
    (&["bearer", "authorization", "auth"], &["bearer_file"], "a secret stands in a file of its own"),
    (&["username", "login"], &["user", "sasl.user"], ""),
    (&["credentials", "creds", "creds_file"], &["credentials_file"], ""),
    (&["nkey", "seed"], &["nkey_file"], "a secret stands in a file of its own"),
    (&["ca", "ca_cert", "cafile", "ca_location", "root_ca"], &["ca_file", "tls.ca_file"], ""),
    (&["cert", "certificate", "client_cert"], &["cert_file", "tls.cert_file"], ""),
    (&["private_key", "client_key"], &["key_file", "tls.key_file"], ""),
    (&["ssl"], &["tls"], ""),
    (
        &["group", "group_id", "prefix", "app", "consumer_group"],
        &["namespace"],
        "groups and durables are named after namespace and queue",
    ),
    (&["max_redeliveries", "max_crash"], &["max_crashes"], ""),
    (&["queue"], &["queues"], "a queue is a table: [queues.NAME]"),
    (&["task_routes", "tasks"], &["jobs"], "a job is a table: [jobs.NAME]"),
    (&["fsync", "sync", "durability"], &["synchronous", "sqlite.synchronous"], ""),
    (&["replication_factor", "num_replicas"], &["replicas", "replication"], ""),
];

/// What was meant by `name` in the table `path` (with `*`), as the end of a sentence.
pub(super) fn meant(path: &str, name: &str) -> Option<String> {
    let plain = name.to_lowercase().replace('-', "_");
    for (words, targets, note) in WORDS {
        if !words.contains(&plain.as_str()) {
            continue;
        }
        if let Some(target) = targets.iter().find_map(|target| place(path, target)) {
            let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
            return Some(format!("here it is called {target:?}{note}"));
        }
    }
    spelt(path, name)
}

/// What was meant by spelling alone: a key of the same table, else one of the same name elsewhere.
fn spelt(path: &str, name: &str) -> Option<String> {
    let plain = name.to_lowercase().replace('-', "_");
    let siblings = key::children(path);
    if let Some(near) = nearest(&plain, siblings.iter().copied().filter(|child| *child != "*")) {
        return Some(format!("did you mean {near:?}?"));
    }
    let elsewhere = key::KEYS.iter().find(|key| key.path.rsplit('.').next() == Some(plain.as_str()));
    if let Some(key) = elsewhere {
        return Some(format!("did you mean {:?}?", shown(key.path)));
    }
    let known: Vec<&str> = siblings.into_iter().filter(|child| *child != "*" && !is_reserved(path, child)).collect();
    (!known.is_empty()).then(|| format!("known here: {}", known.join(", ")))
}

/// The one that is spelt most alike, where one is near enough.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = 1 + name.chars().count() / 4;
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How the target is written, seen from the table `path`; `None` where it does not exist from there.
fn place(path: &str, target: &str) -> Option<String> {
    let here = key::join(path, target);
    if key::find(&here).is_some() || key::is_table(&here) {
        return Some(target.to_owned());
    }
    let known = key::find(target).is_some() || key::is_table(target);
    (known && (target.contains('.') || path.is_empty() || target == "broker" || target == "namespace"))
        .then(|| target.to_owned())
}

fn is_reserved(path: &str, child: &str) -> bool {
    key::find(&key::join(path, child)).is_some_and(|key| key.kind == key::Kind::Reserved)
}

fn shown(path: &str) -> String {
    path.replace('*', "NAME")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_exists_from_some_table() {
        let tables = [
            "",
            "worker",
            "queues.*",
            "queues.*.retry",
            "queues.*.dead_letter",
            "jobs.*",
            "admin",
            "log",
            "nats",
            "nats.tls",
            "kafka",
            "kafka.sasl",
            "sqlite",
        ];
        for (words, targets, _) in WORDS {
            for target in *targets {
                assert!(tables.iter().any(|table| place(table, target).is_some()), "{words:?} -> {target}");
            }
        }
    }

    #[test]
    fn other_systems_words_are_understood() {
        let cases = [
            ("queues.*", "concurrency", "\"slots\""),
            ("worker", "concurrency", "\"slots\""),
            ("", "concurrency", "\"worker.slots\""),
            ("queues.*", "max_retries", "\"retry.attempts\" (counts the first: 3 retries are 4)"),
            ("queues.*", "visibility_timeout", "\"worker.lease\""),
            ("worker", "ack_wait", "\"lease\""),
            ("queues.*", "dlq", "\"dead_letter\""),
            ("jobs.*", "url", "\"http\""),
            ("", "url", "\"broker\""),
            ("queues.*", "prefetch", "\"slots\" (nothing is fetched ahead"),
            ("nats", "password", "\"password_file\""),
            ("worker", "slotz", "did you mean \"slots\"?"),
            ("queues.*", "time-out", "did you mean \"timeout\"?"),
            ("queues.*", "grace", "\"worker.grace\""),
            ("", "listen", "\"admin.listen\""),
        ];
        for (path, name, expected) in cases {
            let hint = meant(path, name).unwrap_or_default();
            assert!(hint.contains(expected), "{path}.{name}: {hint}");
        }
    }
}
