//! What librdkafka tells us on its own account: log lines, errors, and that partitions come or go.
//!
//! A rebalance is only noted here. librdkafka waits for the assign or unassign that answers it, for as long as the
//! poll thread needs to finish what is in hand, and keeps the session alive meanwhile; so nothing ever blocks in a
//! callback.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};

/// That partitions come or go.
#[derive(Debug)]
pub enum Change {
    /// They are ours once we say so.
    Assigned(Vec<(String, i32)>),
    /// They are to be given back.
    Revoked {
        /// Which.
        partitions: Vec<(String, i32)>,
        /// They are somebody else's already: nothing may be committed.
        lost: bool,
    },
}

/// One client's own account.
#[derive(Default)]
pub struct Context {
    changes: Mutex<Vec<Change>>,
    closing: AtomicBool,
    /// When it was last said that no broker answers; it is said again for as long as that is so.
    down: Mutex<Option<Instant>>,
    /// What a person must change: a wrong password, a certificate that is not trusted.
    refused: Mutex<Option<String>>,
    /// What a person might look at where nobody answers.
    hint: Mutex<Option<&'static str>>,
    /// We join the group, or wait for its leader to say who gets what.
    joining: AtomicBool,
    /// The last commit was sent while our own join was on its way.
    behind: AtomicBool,
    token_command: Option<String>,
}

impl Context {
    /// A context whose OAUTHBEARER tokens come from this command.
    pub fn new(token_command: Option<String>) -> Self {
        Self { token_command, ..Self::default() }
    }

    /// What was noted since the last call.
    pub fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.changes.lock())
    }

    /// From now on partitions are given back without asking, and none is taken.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Whether we join the group just now. The broker answers the requests of one connection one after the other, and a
    /// join waits for all members: a commit would wait behind it.
    pub fn is_joining(&self) -> bool {
        self.joining.load(Ordering::Acquire)
    }

    /// Whether the last commit was sent behind our own join: when that is answered the group has a new generation, in
    /// which the commit is refused. One that waits behind a synchronisation is of the generation that comes of it, and
    /// will be taken.
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Acquire)
    }

    /// Takes from librdkafka's own log what it tells in no other way. Where a line is not there any more, commits are
    /// later and nothing else.
    fn read(&self, facility: &str, text: &str) {
        if facility == "JOIN" && text.contains("Joining group ") {
            self.joining.store(true, Ordering::Release);
        } else if facility == "COMMIT" && text.contains("Committing offsets ") {
            self.behind.store(text.contains(" in join-state wait-join"), Ordering::Release);
        }
    }

    /// Whether no broker answers.
    pub fn is_down(&self) -> bool {
        self.down.lock().is_some_and(|said| said.elapsed() < Duration::from_secs(3))
    }

    /// What a person might look at where nobody answers.
    pub fn hint(&self) -> Option<&'static str> {
        *self.hint.lock()
    }

    /// It was let in: whatever had to be changed has been.
    pub fn admitted(&self) {
        *self.refused.lock() = None;
    }

    /// What a person must change, if something was found.
    pub fn refused(&self) -> Option<String> {
        self.refused.lock().clone()
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.read(facility, text);
        match level {
            // Several a second, for our own use.
            RDKafkaLogLevel::Debug if facility == "COMMIT" => tracing::trace!(facility, text, "librdkafka says"),
            RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                tracing::debug!(facility, text, "librdkafka says");
            }
            // What it calls errors it retries by itself; what matters comes by `error`.
            _ => tracing::info!(facility, text, "librdkafka warns"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                *self.down.lock() = Some(Instant::now());
            }
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed) => {
                *self.refused.lock() = Some(format!("the broker does not let us in: {}", plain(reason)));
            }
            Some(RDKafkaErrorCode::SSL) => {
                *self.refused.lock() = Some(format!("no TLS connection: {}", plain(reason)));
            }
            // With TLS 1.3 the broker judges our certificate when the handshake is over already on our side.
            Some(RDKafkaErrorCode::BrokerTransportFailure) if reason.contains("SSL alert") => {
                *self.refused.lock() = Some(format!(
                    "no TLS connection: the broker does not take our certificate (kafka.tls.cert_file and key_file): {}",
                    plain(reason)
                ));
            }
            // A broker that goes away just then looks the same.
            Some(RDKafkaErrorCode::BrokerTransportFailure) if reason.contains("connecting to a SSL listener") => {
                *self.hint.lock() = Some("it may want TLS: write kafka+tls:// and not kafka://");
            }
            _ => {}
        }
        tracing::trace!(%error, reason, "librdkafka reports an error");
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        let command = self.token_command.as_deref().ok_or("kafka.sasl.token_command is not set")?;
        super::config::token(command)
    }
}

/// The reason without librdkafka's decoration (`sasl_plaintext://host:9092/bootstrap: `, timings).
fn plain(reason: &str) -> &str {
    let reason = reason.find("bootstrap: ").map_or(reason, |at| &reason[at + "bootstrap: ".len()..]);
    reason.find(" (after ").map_or(reason, |at| &reason[..at])
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        // The next join begins when this is answered, not earlier.
        self.joining.store(false, Ordering::Release);
        let assigned = kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Ordering::Acquire) {
            if assigned {
                assign(consumer, &[]);
            } else {
                unassign(consumer, partitions);
            }
            return;
        }
        let partitions =
            partitions.elements().iter().map(|element| (element.topic().to_owned(), element.partition())).collect();
        let lost = consumer.assignment_lost();
        let change = if assigned { Change::Assigned(partitions) } else { Change::Revoked { partitions, lost } };
        self.changes.lock().push(change);
    }
}

/// Tells librdkafka that these are ours, and where each begins.
pub fn assign(consumer: &BaseConsumer<Context>, partitions: &[(String, i32, i64)]) {
    let mut list = TopicPartitionList::new();
    for (topic, number, offset) in partitions {
        if let Err(error) = list.add_partition_offset(topic, *number, Offset::Offset(*offset)) {
            tracing::error!(%error, topic, "a partition cannot be read");
        }
    }
    one_by_one(&list, "assign", |list| consumer.incremental_assign(list));
}

/// Tells librdkafka that these are ours no more.
pub fn unassign(consumer: &BaseConsumer<Context>, partitions: &TopicPartitionList) {
    one_by_one(partitions, "unassign", |list| consumer.incremental_unassign(list));
}

/// Before the client is closed: answers what the group still waits for. librdkafka does not close, nor tell the group
/// that we leave, while an assignment is not taken (`coming`) or partitions that were asked back are not given
/// (`going`): the others would wait for them until the session ends.
pub fn leave(consumer: &BaseConsumer<Context>, mut coming: bool, going: impl Iterator<Item = (String, i32)>) {
    let context = consumer.context();
    context.close();
    let mut back: Vec<(String, i32)> = going.collect();
    let mut asked = !back.is_empty();
    for change in context.take_changes() {
        match change {
            Change::Assigned(_) => coming = true,
            Change::Revoked { partitions, .. } => {
                asked = true;
                back.extend(partitions);
            }
        }
    }
    if coming {
        assign(consumer, &[]);
    }
    if asked {
        let mut list = TopicPartitionList::new();
        for (topic, number) in &back {
            list.add_partition(topic, *number);
        }
        unassign(consumer, &list);
    }
}

/// A call for all, or where that is refused for each, and for none: the group waits until one is taken, and a
/// partition that was there or gone already must not hold up the others.
fn one_by_one(all: &TopicPartitionList, what: &str, call: impl Fn(&TopicPartitionList) -> KafkaResult<()>) {
    let Err(error) = call(all) else { return };
    tracing::warn!(%error, what, "the assignment is not what it was; it is changed partition by partition");
    for element in all.elements() {
        let mut list = TopicPartitionList::new();
        // A list of our own making takes every offset.
        let _ = list.add_partition_offset(element.topic(), element.partition(), element.offset());
        if let Err(error) = call(&list) {
            tracing::debug!(%error, what, topic = element.topic(), number = element.partition(), "it was so already");
        }
    }
    if let Err(error) = call(&TopicPartitionList::new()) {
        tracing::debug!(%error, what, "nothing waits for it any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_known_to_wait_behind_a_join_and_not_behind_what_follows_it() {
        let context = Context::new(None);
        let say = |facility: &str, text: &str| context.log(RDKafkaLogLevel::Debug, facility, text);
        let commit = |state: &str| {
            let text = "GroupCoordinator/1: Committing offsets for 2 partition(s) with generation-id 4 in join-state";
            say("COMMIT", &format!("[thrd:main]: {text} {state}: manual"));
            context.is_behind()
        };
        assert!(!context.is_joining() && !commit("steady"));
        say(
            "JOIN",
            "[thrd:main]: GroupCoordinator/1: Joining group \"n.q\" with 2 subscribed topic(s) and member id \"\"",
        );
        assert!(context.is_joining() && commit("wait-join"));
        assert!(!commit("wait-sync"));
    }
}
