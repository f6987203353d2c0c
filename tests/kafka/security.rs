//! Who is let in, by which mechanism, and what those hear who are not.

use std::time::Duration;

use windlass::broker::{Broker, Disposition, KafkaOptions, Letter, Settled, Severity};

use super::desk::{Desk, SOON, body, dead, take};
use crate::support::kafka::Kafka;
use crate::support::proxy::{Cut, Proxy};
use crate::support::{wait, worker};

const PROPERTIES: &str = r#"
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:SASL_PLAINTEXT
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="admin" password="of-admin" user_admin="of-admin" user_alice="of-alice";
listener.name.plaintext.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.plaintext.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.plaintext.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="admin";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
super.users=User:admin;User:ANONYMOUS
"#;

const SCRAM: [&str; 4] = [
    "--add-scram",
    "SCRAM-SHA-256=[name=scram,password=of-scram]",
    "--add-scram",
    "SCRAM-SHA-512=[name=scram,password=of-scram]",
];

/// A client of the administrator's.
fn admin(servers: &str) -> rdkafka::producer::BaseProducer {
    rdkafka::ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("security.protocol", "sasl_plaintext")
        .set("sasl.mechanism", "PLAIN")
        .set("sasl.username", "admin")
        .set("sasl.password", "of-admin")
        .create()
        .unwrap()
}

/// Gives the user of SCRAM-SHA-256 another password.
fn change(servers: &str, password: &str) {
    use rdkafka::producer::Producer as _;
    use rdkafka_sys as sys;
    let admin = admin(servers);
    let client = admin.client().native_ptr();
    // SAFETY: the client lives; user and password are copied by the first call, the change by the request; event, queue
    // and change are ours and given back once.
    unsafe {
        let change = sys::rd_kafka_UserScramCredentialUpsertion_new(
            c"scram".as_ptr(),
            sys::rd_kafka_ScramMechanism_t::RD_KAFKA_SCRAM_MECHANISM_SHA_256,
            4_096,
            password.as_ptr(),
            password.len(),
            std::ptr::null(),
            0,
        );
        let queue = sys::rd_kafka_queue_new(client);
        let mut all = [change];
        sys::rd_kafka_AlterUserScramCredentials(client, all.as_mut_ptr(), 1, std::ptr::null(), queue);
        let event = sys::rd_kafka_queue_poll(queue, 30_000);
        assert!(!event.is_null(), "the broker answers");
        assert_eq!(sys::rd_kafka_event_error(event), sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
        sys::rd_kafka_event_destroy(event);
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_UserScramCredentialAlteration_destroy(change);
    }
}

/// A worker whose password is changed goes on by itself once its file says the new one: what it reads by, publishes by
/// and moves by.
async fn a_password_that_changes(proxy: &Proxy, mut desk: Desk, servers: &str, file: &std::path::Path) {
    let queue = desk.queue("q", &["a"]);
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("1", None), ("2", None), ("3", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    let mut taken = take(&mut opened, 3).await;
    assert_eq!(opened.settler.settle(vec![taken.remove(0).settle(dead())]).await, [Settled::Stored]);
    change(servers, "changed");
    proxy.cut(Cut::Reset);
    wait::until_async("nobody is let in any more", SOON, async || !broker.connected()).await;
    let moving = tokio::spawn(opened.settler.settle(vec![taken.remove(0).settle(dead())]));
    std::fs::write(file, "changed\n").unwrap();
    wait::until_async("it is let in again", SOON, async || broker.connected()).await;
    assert_eq!(moving.await.unwrap(), [Settled::Stored]);
    assert_eq!(opened.settler.settle(vec![taken.remove(0).settle(Disposition::Ack)]).await, [Settled::Stored]);
    desk.publish(&broker, "a", &[("4", None)]).await;
    assert_eq!(body(&take(&mut opened, 1).await[0]), "4");
    assert_eq!(listed(&broker).await.len(), 2);
    let status = broker.inspect().status(std::slice::from_ref(&queue.name)).await.unwrap().remove(0);
    assert_eq!((status.ready, status.dead), (Some(1), Some(2)), "{status:?}");
    broker.close().await;
}

/// Allows this to the administrator, and so denies it to everybody else.
fn reserve(servers: &str, kind: rdkafka_sys::rd_kafka_ResourceType_t, name: &str) {
    use rdkafka::producer::Producer as _;
    use rdkafka_sys as sys;
    let producer = admin(servers);
    let text = |text: &str| std::ffi::CString::new(text).unwrap();
    let (name, principal, host) = (text(name), text("User:admin"), text("*"));
    let client = producer.client().native_ptr();
    // SAFETY: the client lives; the strings are copied by the first call, the binding by the request; event, queue
    // and binding are ours and given back once.
    unsafe {
        let acl = sys::rd_kafka_AclBinding_new(
            kind,
            name.as_ptr(),
            sys::rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_LITERAL,
            principal.as_ptr(),
            host.as_ptr(),
            sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_ALL,
            sys::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW,
            std::ptr::null_mut(),
            0,
        );
        assert!(!acl.is_null());
        let queue = sys::rd_kafka_queue_new(client);
        let mut all = [acl];
        sys::rd_kafka_CreateAcls(client, all.as_mut_ptr(), 1, std::ptr::null(), queue);
        let event = sys::rd_kafka_queue_poll(queue, 30_000);
        assert!(!event.is_null(), "the broker answers");
        assert_eq!(sys::rd_kafka_event_error(event), sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
        sys::rd_kafka_event_destroy(event);
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_AclBinding_destroy(acl);
    }
}

async fn listed(broker: &std::sync::Arc<dyn Broker>) -> Vec<Letter> {
    use futures_util::StreamExt as _;
    broker.dead_letters().list(Default::default()).map(|letter| letter.unwrap()).collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mechanisms_denials_and_life_without_transactions() {
    // Its runtime may not be made on one of another.
    let proxy = tokio::task::spawn_blocking(|| Proxy::to(0)).await.unwrap();
    let properties = format!("{PROPERTIES}advertised.listeners=PLAINTEXT://{}\n", proxy.host());
    let Some(kafka) = Kafka::formatted(1, &properties, &SCRAM) else { return };
    proxy.lead_to(kafka.nodes[0].port());
    let servers = proxy.host();
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "of-scram\n").unwrap();
    // An unsecured token, which this broker takes: {"alg":"none"}, {"sub":"token","iat":..,"exp":..}, no signature.
    let token = "h=$(printf '{\"alg\":\"none\"}' | base64 | tr -d '=\n'); n=$(date +%s); \
                 c=$(printf '{\"sub\":\"token\",\"iat\":%s,\"exp\":%s}' $n $((n+600)) | base64 | tr -d '=\n' | tr '+/' '-_'); \
                 printf '%s.%s.\n' $h $c";
    let scram = |mechanism: &str| KafkaOptions {
        sasl_mechanism: Some(mechanism.to_owned()),
        sasl_user: Some("scram".to_owned()),
        sasl_password_file: Some(password.clone()),
        ..KafkaOptions::default()
    };
    let ways = [
        ("alice:of-alice@", KafkaOptions::default()),
        ("", scram("SCRAM-SHA-256")),
        ("", scram("scram-sha-512")),
        ("", KafkaOptions { sasl_token_command: Some(token.to_owned()), ..KafkaOptions::default() }),
    ];
    for (login, options) in ways {
        let mut desk = Desk::at(format!("kafka://{login}{servers}"));
        desk.kafka = options;
        let queue = desk.queue("q", &["a"]);
        let broker = desk.connect().await;
        desk.publish(&broker, "a", &[("in", None)]).await;
        let mut opened = broker.open(&queue).await.unwrap();
        let delivery = take(&mut opened, 1).await.remove(0);
        assert_eq!(body(&delivery), "in");
        assert_eq!(opened.settler.settle(vec![delivery.settle(Disposition::Ack)]).await, [Settled::Stored]);
        broker.close().await;
    }
    let mut desk = Desk::at(format!("kafka://{servers}"));
    desk.kafka = scram("SCRAM-SHA-256");
    a_password_that_changes(&proxy, desk, &servers, &password).await;

    let config = |user: &str, namespace: &str| {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "broker = \"kafka://{user}@{servers}\"\nnamespace = \"{namespace}\"\n[worker]\nconnect = \"5s\"\n\
             [queues.hello]\ntopics = []\njob = \"log\"\n"
        );
        std::fs::write(dir.path().join("windlass.toml"), text).unwrap();
        dir
    };
    let run = |dir: tempfile::TempDir| {
        tokio::task::spawn_blocking(move || {
            let output = worker::run(dir.path(), &["run", "--burst"]);
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        })
    };
    let (code, said) = run(config("alice:wrong", "denied")).await.unwrap();
    assert_eq!(code, Some(78), "{said}");
    assert!(said.lines().last().unwrap().contains("the broker does not let us in"), "{said}");
    reserve(&servers, rdkafka_sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_GROUP, "denied.hello");
    let (code, said) = run(config("alice:of-alice", "denied")).await.unwrap();
    assert_eq!(code, Some(78), "{said}");
    assert!(said.lines().last().unwrap().contains("denied.hello"), "{said}");

    // Transactions are for the administrator alone: moves are written, confirmed and committed one after the other.
    reserve(&servers, rdkafka_sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TRANSACTIONAL_ID, "*");
    let mut desk = Desk::at(format!("kafka://alice:of-alice@{servers}"));
    let queue = desk.queue("q", &["a"]);
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("bad", None), ("good", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    for delivery in take(&mut opened, 2).await {
        let disposition = if body(&delivery) == "good" { Disposition::Ack } else { dead() };
        assert_eq!(opened.settler.settle(vec![delivery.settle(disposition)]).await, [Settled::Stored]);
    }
    let letters = listed(&broker).await;
    assert_eq!(letters.len(), 1);
    let found = broker.inspect().doctor().await.unwrap();
    let denied = found.iter().find(|finding| finding.finding.contains("transactions")).expect("doctor warns");
    assert_eq!(denied.severity, Severity::Warn);
    // A kill between the two leaves the letter twice; it is one, and stays gone.
    let dlq = format!("dlq.{}.q", desk.namespace);
    double(&desk, &dlq).await;
    let letters = listed(&broker).await;
    assert_eq!(letters.len(), 1, "one failure is one letter");
    assert!(broker.dead_letters().purge(&letters).await.remove(0).unwrap());
    assert!(listed(&broker).await.is_empty(), "its double does not come to light");
    wait::until_async("the group has committed it", Duration::from_secs(60), async || {
        let status = broker.inspect().status(std::slice::from_ref(&queue.name)).await.unwrap().remove(0);
        status.ready == Some(0)
    })
    .await;
    broker.close().await;
}

/// Writes each record of a topic once more.
async fn double(desk: &Desk, topic: &str) {
    use rdkafka::Message as _;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::producer::{FutureProducer, FutureRecord};
    let mut config = rdkafka::ClientConfig::new();
    config
        .set("bootstrap.servers", desk.address.rsplit('@').next().unwrap())
        .set("security.protocol", "sasl_plaintext")
        .set("sasl.mechanism", "PLAIN")
        .set("sasl.username", "admin")
        .set("sasl.password", "of-admin")
        .set("auto.offset.reset", "earliest")
        .set("group.id", "double");
    let reader = config.clone();
    let name = topic.to_owned();
    let record = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = reader.create().unwrap();
        consumer.subscribe(&[&name]).unwrap();
        wait::until_some("the record", Duration::from_secs(60), || consumer.poll(Duration::from_millis(100)))
            .unwrap()
            .detach()
    })
    .await
    .unwrap();
    let producer: FutureProducer = config.create().unwrap();
    let again: FutureRecord<'_, [u8], [u8]> =
        FutureRecord { headers: record.headers().cloned(), ..FutureRecord::to(topic) };
    let again = again.partition(record.partition()).payload(record.payload().unwrap());
    producer.send(again, Duration::from_secs(30)).await.map_err(|(error, _)| error).unwrap();
}
