//! From an address and `[kafka]` to librdkafka's settings; what would lose jobs is refused by name.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::super::{Error, KafkaOptions, Options};
use super::login::{Login, Secret};

/// Settings that are ours to make, and why each is.
const REFUSED: &[(&str, &str)] = &[
    ("enable.auto.commit", "offsets are committed when jobs are done"),
    ("enable.auto.offset.store", "offsets are committed when jobs are done"),
    ("auto.offset.reset", "set `start` of the queue instead"),
    ("group.id", "the group is NAMESPACE.QUEUE"),
    ("group.instance.id", "set kafka.instance_id instead"),
    ("group.protocol", "set kafka.group_protocol instead"),
    ("group.protocol.type", "it is `consumer`"),
    ("partition.assignment.strategy", "cooperative-sticky is what drains without running jobs twice"),
    ("isolation.level", "records of aborted transactions would run"),
    ("acks", "a publication counts as stored when all in-sync replicas have it"),
    ("request.required.acks", "a publication counts as stored when all in-sync replicas have it"),
    ("enable.idempotence", "publications would be doubled"),
    ("transactional.id", "moves have transactions of their own"),
    ("bootstrap.servers", "write them into the broker's address"),
    ("metadata.broker.list", "write them into the broker's address"),
    ("session.timeout.ms", "set worker.lease instead"),
    ("enable.partition.eof", "it would be taken for an error"),
    ("allow.auto.create.topics", "set kafka.create instead"),
    ("check.crcs", "torn records would run"),
];

/// What every client of ours is made from.
#[derive(Clone)]
pub struct Settings {
    common: ClientConfig,
    options: KafkaOptions,
    login: Login,
    lease: Duration,
    timeout: Duration,
    /// The address without its password.
    pub shown: String,
}

impl Settings {
    /// Reads an address and the options.
    pub fn new(address: &str, options: &Options) -> Result<Self, Error> {
        let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
        let rest = rest.trim_end_matches('/');
        let (login, hosts) = rest.rsplit_once('@').map_or((None, rest), |(login, hosts)| (Some(login), hosts));
        let hosts: Vec<String> = hosts
            .split(',')
            .filter(|host| !host.is_empty())
            .map(|host| if has_port(host) { host.to_owned() } else { format!("{host}:9092") })
            .collect();
        if hosts.is_empty() || hosts.iter().any(|host| host.contains('/')) {
            return Err(Error::Usage(format!(
                "{} names no host; expected kafka://HOST:9092[,HOST:9092]",
                shown(scheme, login, rest)
            )));
        }
        let local = hosts.iter().all(|host| {
            let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
            name == "localhost" || name.starts_with("127.") || name == "[::1]"
        });
        if !local && !options.namespace_set {
            return Err(Error::Refused(
                "namespace must be set where the broker is not on this machine: it begins the names of topics and \
                 groups that others could share"
                    .to_owned(),
            ));
        }
        let kafka = &options.kafka;
        for (name, _) in &kafka.options {
            if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| refused == name) {
                return Err(Error::Refused(format!("kafka.options: {name:?} may not be set: {why}")));
            }
        }
        let mut common = ClientConfig::new();
        common
            .set("bootstrap.servers", hosts.join(","))
            .set("client.id", format!("windlass-{}", options.worker))
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "2000")
            .set("allow.auto.create.topics", "false");
        let secret = secure(&mut common, scheme == "kafka+tls", login, kafka)?;
        for (name, value) in &kafka.options {
            common.set(name, value);
            if name == "debug" {
                // Else it says nothing of what it was asked to say; our own log's level decides who reads it.
                common.set_log_level(RDKafkaLogLevel::Debug);
            }
        }
        Ok(Self {
            common,
            options: kafka.clone(),
            login: Login { token_command: kafka.sasl_token_command.clone(), secret },
            lease: options.lease,
            timeout: options.timeout,
            shown: shown(scheme, login, &hosts.join(",")),
        })
    }

    /// What changes of how clients log in.
    pub fn login(&self) -> Login {
        self.login.clone()
    }

    /// For a member of `group`.
    pub fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.common.clone();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // What the log has no more is never passed over silently.
            .set("auto.offset.reset", "error");
        // A reader's memory is bounded by kilobytes a partition; a bound by count was measured to cost two thirds. Where
        // all partitions that have something are read ahead of, the client asks for the others only, such as those of the
        // queue's own topic: the broker must not hold that question longer than what was read ahead lasts.
        for (name, value) in
            [("queued.max.messages.kbytes", "2048"), ("fetch.queue.backoff.ms", "4"), ("fetch.wait.max.ms", "50")]
        {
            if config.get(name).is_none() {
                config.set(name, value);
            }
        }
        if self.options.group_protocol_consumer {
            config.set("group.protocol", "consumer");
        } else {
            // Brokers refuse less than 6 s unless they are told otherwise.
            let session = self.lease.as_millis().clamp(6_000, 1_800_000);
            config
                .set("partition.assignment.strategy", "cooperative-sticky")
                .set("session.timeout.ms", session.to_string())
                .set("heartbeat.interval.ms", (session / 10).clamp(500, 3_000).to_string());
        }
        // Its log says when it joins its group: see `Context`.
        let debug = config.get("debug").map_or_else(|| "consumer".to_owned(), |set| format!("{set},consumer"));
        config.set("debug", debug).set_log_level(RDKafkaLogLevel::Debug);
        if let Some(instance) = &self.options.instance_id {
            config.set("group.instance.id", format!("{instance}-{group}"));
        }
        config
    }

    /// For a reader that belongs to no group's members.
    pub fn reader(&self, group: &str) -> ClientConfig {
        let mut config = self.common.clone();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            // Of no meaning to it, but `max.poll.interval.ms` may not be less, which a user may have set.
            .set("session.timeout.ms", "6000")
            // What is read ahead of a partition: with little, and little wait where it is full, a long topic is read as
            // fast, in a worker that is to stay small.
            .set("queued.max.messages.kbytes", "512")
            .set("fetch.message.max.bytes", "524288")
            .set("fetch.queue.backoff.ms", "4")
            .set("enable.partition.eof", "true");
        config
    }

    /// For publishing: what is confirmed is on all in-sync replicas, once.
    pub fn producer(&self) -> ClientConfig {
        let mut config = self.common.clone();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", self.timeout.as_millis().max(1_000).to_string());
        for (name, value) in [("linger.ms", "2"), ("message.max.bytes", "33554432")] {
            if config.get(name).is_none() {
                config.set(name, value);
            }
        }
        config
    }

    /// For moves in transactions.
    pub fn mover(&self, id: &str) -> ClientConfig {
        let mut config = self.producer();
        config.set("transactional.id", id).set("transaction.timeout.ms", "10000").set("message.timeout.ms", "8000");
        config
    }

    /// For looking at the cluster.
    pub fn admin(&self) -> ClientConfig {
        self.common.clone()
    }
}

/// What librdkafka says against this property, if it knows it at all.
pub fn option_fault(name: &str, value: &str) -> Option<String> {
    let mut config = ClientConfig::new();
    config.set(name, value);
    match config.create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Some("librdkafka has no such property".to_owned())
        }
        Err(KafkaError::ClientConfig(_, said, ..)) => Some(format!("librdkafka refuses it: {said}")),
        Err(error) => Some(format!("librdkafka refuses it: {error}")),
    }
}

fn shown(scheme: &str, login: Option<&str>, hosts: &str) -> String {
    match login {
        Some(login) => format!("{scheme}://{}@{hosts}", login.split_once(':').map_or(login, |(user, _)| user)),
        None => format!("{scheme}://{hosts}"),
    }
}

fn has_port(host: &str) -> bool {
    host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Sets how clients connect; gives the password's file where it has one.
fn secure(
    config: &mut ClientConfig,
    tls: bool,
    login: Option<&str>,
    kafka: &KafkaOptions,
) -> Result<Option<Secret>, Error> {
    let mut secret = None;
    let (mut user, mut password) = match login {
        Some(login) => {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            (Some(decode(user)), (!password.is_empty()).then(|| decode(password)))
        }
        None => (None, None),
    };
    if let Some(set) = &kafka.sasl_user {
        user = Some(set.clone());
    }
    if let Some(file) = &kafka.sasl_password_file {
        let found = Secret { user: user.clone().unwrap_or_default(), file: file.clone() };
        password = Some(found.password().map_err(Error::Refused)?);
        secret = Some(found);
    }
    let mechanism = match kafka.sasl_mechanism.as_deref().map(str::to_ascii_uppercase) {
        Some(name) if ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"].contains(&name.as_str()) => Some(name),
        Some(other) => {
            return Err(Error::Refused(format!(
                "kafka.sasl.mechanism: expected PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER, found {other:?}"
            )));
        }
        None if kafka.sasl_token_command.is_some() => Some("OAUTHBEARER".to_owned()),
        None if user.is_some() => Some("PLAIN".to_owned()),
        None => None,
    };
    if let Some(mechanism) = &mechanism {
        config.set("sasl.mechanism", mechanism);
        if mechanism == "OAUTHBEARER" {
            secret = None;
            if kafka.sasl_token_command.is_none() {
                return Err(Error::Refused(
                    "kafka.sasl.mechanism OAUTHBEARER needs kafka.sasl.token_command, which prints a token".to_owned(),
                ));
            }
        } else {
            let (Some(user), Some(password)) = (user, password) else {
                return Err(Error::Refused(format!(
                    "kafka.sasl.mechanism {mechanism} needs a user and a password: in the address, or kafka.sasl.user \
                     and kafka.sasl.password_file"
                )));
            };
            config.set("sasl.username", user).set("sasl.password", password);
        }
    }
    config.set(
        "security.protocol",
        match (tls, mechanism.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        },
    );
    let files = [
        ("ssl.ca.location", &kafka.tls.ca_file),
        ("ssl.certificate.location", &kafka.tls.cert_file),
        ("ssl.key.location", &kafka.tls.key_file),
    ];
    for (name, file) in files {
        let Some(file) = file else { continue };
        if !tls {
            return Err(Error::Refused("kafka.tls is set, but the address is not kafka+tls://".to_owned()));
        }
        if let Err(error) = std::fs::File::open(file) {
            return Err(Error::Refused(format!("kafka.tls: {} cannot be read: {error}", file.display())));
        }
        config.set(name, file.display().to_string());
    }
    Ok(secret)
}

/// Percent-decodes what an address cannot hold as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok()))
            .flatten();
        match byte {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Runs the token command. Its first line is the token, a JWT whose `exp` and `sub` say how long it lives and whose it
/// is (RFC 7519); without an `exp` it is asked for again in five minutes.
pub fn token(command: &str) -> Result<OAuthToken, Box<dyn std::error::Error>> {
    use base64::Engine as _;
    let output = std::process::Command::new("/bin/sh").arg("-c").arg(command).output()?;
    if !output.status.success() {
        return Err(format!("kafka.sasl.token_command ended with {}", output.status).into());
    }
    let token = String::from_utf8(output.stdout)?.lines().next().unwrap_or_default().trim().to_owned();
    let claims = token.split('.').nth(1).unwrap_or_default().trim_end_matches('=');
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap_or_default();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap_or_default();
    let lifetime_ms = match claims.get("exp").and_then(serde_json::Value::as_f64) {
        Some(seconds) => (seconds * 1_000.0) as i64,
        None => crate::time::Clock::System.now().as_millis() + 300_000,
    };
    let principal_name = claims.get("sub").and_then(|sub| sub.as_str()).unwrap_or("windlass").to_owned();
    Ok(OAuthToken { token, principal_name, lifetime_ms })
}
