//! Dead letters as other tools read them, and what becomes of them.

use std::time::Duration;

use futures_util::StreamExt as _;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers as _, Message as _};
use windlass::broker::{Disposition, Letter, Settled};
use windlass::message::{Failure, JobName, Reason};
use windlass::time::Clock;

use super::desk::{Desk, SOON, body, take};

fn dead() -> Disposition {
    let now = Clock::System.now();
    Disposition::DeadLetter {
        reason: Reason::Permanent,
        failure: Failure::new("lab::NoPatient", "no such patient", now, now),
        attempts: 3,
        event_id: Some("e1".to_owned()),
        job: JobName::new("q").unwrap(),
    }
}

async fn listed(broker: &std::sync::Arc<dyn windlass::broker::Broker>) -> Vec<Letter> {
    broker.dead_letters().list(Default::default()).map(|letter| letter.unwrap()).collect().await
}

#[tokio::test]
async fn another_tool_reads_the_headers_of_spring_and_kip_1191() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("first", Some("k")), ("second", Some("k"))]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    let taken = take(&mut opened, 2).await;
    let second = taken.into_iter().find(|delivery| body(delivery) == "second").unwrap();
    let (seq, at) = (second.seq, second.at);
    let partition: i32 = second.channel.place.position.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(opened.settler.settle(vec![second.settle(dead())]).await, [Settled::Stored]);
    let servers = desk.address.trim_start_matches("kafka://").to_owned();
    let topic = format!("dlq.{}.q", desk.namespace);
    let group = format!("{}.q", desk.namespace);
    let read = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", servers)
            .set("group.id", "another-tool")
            .set("auto.offset.reset", "earliest")
            .create()
            .unwrap();
        consumer.subscribe(&[&topic]).unwrap();
        let deadline = std::time::Instant::now() + SOON;
        loop {
            assert!(std::time::Instant::now() < deadline, "no dead letter came");
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                return message.detach();
            }
        }
    });
    let message = read.await.unwrap();
    assert_eq!((message.key(), message.payload()), (Some(&b"k"[..]), Some(&b"second"[..])));
    let headers = message.headers().unwrap();
    let get = |name: &str| headers.iter().find(|header| header.key == name).and_then(|header| header.value).unwrap();
    assert_eq!(get("kafka_dlt-original-topic"), desk.topic("a").as_bytes());
    assert_eq!(get("kafka_dlt-original-partition"), partition.to_be_bytes());
    assert_eq!(get("kafka_dlt-original-offset"), seq.to_be_bytes());
    assert_eq!(get("kafka_dlt-original-timestamp"), at.as_millis().to_be_bytes());
    assert_eq!(get("kafka_dlt-original-consumer-group"), group.as_bytes());
    assert_eq!(get("kafka_dlt-exception-fqcn"), b"lab::NoPatient");
    assert_eq!(get("kafka_dlt-exception-message"), b"no such patient");
    assert_eq!(get("__dlq.errors.offset"), seq.to_string().as_bytes());
    assert_eq!(get("__dlq.errors.partition"), partition.to_string().as_bytes());
    assert_eq!(get("__dlq.errors.delivery.count"), b"3");
    assert_eq!(get("ce_dlqreason"), b"permanent");
    broker.close().await;
}

#[tokio::test]
async fn purged_exported_and_imported_under_the_same_id() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("1", None), ("2", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    for delivery in take(&mut opened, 2).await {
        opened.settler.settle(vec![delivery.settle(dead())]).await;
    }
    let letters = listed(&broker).await;
    assert_eq!(letters.len(), 2);
    let verbs = broker.dead_letters();
    assert!(verbs.purge(&letters[..1]).await.remove(0).unwrap());
    assert!(!verbs.purge(&letters[..1]).await.remove(0).unwrap(), "it was gone already");
    assert_eq!(listed(&broker).await.len(), 1);
    for result in verbs.import(&letters).await {
        result.unwrap();
    }
    let again = listed(&broker).await;
    let ids = |letters: &[Letter]| {
        let mut ids: Vec<_> = letters.iter().map(|l| (l.id.clone(), l.message.body.clone())).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&again), ids(&letters), "one that exists is replaced");
    for result in verbs.replay(&again, &Default::default()).await {
        assert!(result.unwrap(), "an imported letter is found by its id");
    }
    assert!(listed(&broker).await.is_empty());
    let mut bodies: Vec<String> = take(&mut opened, 2).await.iter().map(body).collect();
    bodies.sort();
    assert_eq!(bodies, ["1", "2"]);
    broker.close().await;
}

#[tokio::test]
async fn mode_13_a_dead_letter_that_cannot_be_stored_keeps_its_origin() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("1", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    let delivery = take(&mut opened, 1).await.remove(0);
    // Room for a few bytes only: the broker refuses the letter.
    let admin: rdkafka::admin::AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", desk.address.trim_start_matches("kafka://")).create().unwrap();
    let topic = format!("dlq.{}.q", desk.namespace);
    let limit = |bytes: &'static str| {
        let topic = topic.clone();
        let admin = &admin;
        async move {
            let resource = rdkafka::admin::ResourceSpecifier::Topic(&topic);
            let change = rdkafka::admin::AlterConfig::new(resource).set("max.message.bytes", bytes);
            admin.alter_configs(&[change], &rdkafka::admin::AdminOptions::new()).await.unwrap();
        }
    };
    limit("100").await;
    let settled = tokio::spawn(opened.settler.settle(vec![delivery.settle(dead())]));
    crate::support::wait::until_async("the queue waits for its dead-letter queue", SOON, async || {
        matches!(opened.settler.trouble(), Some(windlass::broker::Trouble::DeadLetter(_)))
    })
    .await;
    assert!(!settled.is_finished());
    limit("1000000").await;
    assert_eq!(settled.await.unwrap(), [Settled::Stored], "it goes on by itself");
    assert_eq!(listed(&broker).await.len(), 1);
    assert_eq!(opened.settler.trouble(), None);
    broker.close().await;
}
