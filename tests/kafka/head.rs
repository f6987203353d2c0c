//! One job that does not end: it is found, and what it does not concern goes on.

use std::time::Duration;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use windlass::broker::{Disposition, Opened, Severity, Trouble};

use super::desk::{Desk, SOON, body, take};
use crate::support::wait;

/// More than a partition's share of what is read ahead, and enough to be told by `status`.
const MANY: usize = 12_000;

/// Many records with one key in partition 0, ten with another each in partition 1.
fn fill(desk: &Desk, topic: &str) {
    let producer: BaseProducer = desk.client().set("linger.ms", "20").create().unwrap();
    for number in 0..MANY + 10 {
        let (key, partition) = if number < MANY { ("k".to_owned(), 0) } else { (number.to_string(), 1) };
        let body = number.to_string();
        producer.send(BaseRecord::to(topic).partition(partition).key(&key).payload(&body)).unwrap();
    }
    producer.flush(SOON).unwrap();
}

async fn ack(opened: &Opened, deliveries: Vec<windlass::broker::Delivery>) {
    let batch = deliveries.into_iter().map(|delivery| delivery.settle(Disposition::Ack)).collect();
    opened.settler.settle(batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mode_19_a_job_that_holds_up_its_partition_is_found_and_the_others_go_on() {
    let Some(mut desk) = Desk::new() else { return };
    let plain = desk.queue("plain", &["a"]);
    let mut ordered = desk.queue("ordered", &["a"]);
    ordered.ordered = true;
    desk.kafka.partitions = Some(1);
    let topic = desk.topic("a");
    desk.create(&topic, 2, &[]).await;
    fill(&desk, &topic);
    let broker = desk.connect().await;

    let mut opened = broker.open(&plain).await.unwrap();
    let mut taken = take(&mut opened, MANY + 10).await;
    let first = taken.iter().position(|delivery| body(delivery) == "0").unwrap();
    let held = taken.swap_remove(first);
    ack(&opened, taken).await;
    assert_eq!(opened.settler.trouble(), None, "there is room for many more");
    let head = opened.settler.head().expect("one has not ended");
    assert_eq!((head.place, head.span, head.full), (format!("{topic}:0, offset 0"), MANY as u64, false));
    let inspect = broker.inspect();
    let said = format!("{topic}:0 is held up by offset 0, ");
    wait::until_async("the commit says it", SOON, async || {
        let status = inspect.status(std::slice::from_ref(&plain.name)).await.unwrap().remove(0);
        status.notes.iter().any(|note| note.starts_with(&said) && note.ends_with(": 11999 behind it have ended"))
    })
    .await;
    let found = inspect.doctor().await.unwrap();
    let found = found.iter().find(|finding| finding.finding.starts_with(&said)).expect("doctor says it too");
    assert_eq!((found.severity, &*found.subject), (Severity::Warn, "queue plain"));
    ack(&opened, vec![held]).await;
    wait::until_async("nothing is held up", SOON, async || opened.settler.head().is_none()).await;
    let status = inspect.status(std::slice::from_ref(&plain.name)).await.unwrap().remove(0);
    assert_eq!(status.notes, Vec::<String>::new());

    // In key order all of the first partition waits for one job, and fills what may be read ahead of it.
    let mut opened = broker.open(&ordered).await.unwrap();
    let mut taken = take(&mut opened, 11).await;
    let first = taken.iter().position(|delivery| body(delivery) == "0").expect("the other partition goes on beside it");
    let held = taken.swap_remove(first);
    ack(&opened, taken).await;
    wait::until_async("it waits for its key", SOON, async || opened.settler.trouble() == Some(Trouble::Order)).await;
    let head = opened.settler.head().expect("the one in hand");
    assert_eq!((head.place, head.full), (format!("{topic}:0, offset 0"), true));
    assert!(head.age >= Duration::from_millis(900), "{:?}", head.age);
    ack(&opened, vec![held]).await;
    assert_eq!(body(&take(&mut opened, 1).await[0]), "1");
    assert_eq!(opened.settler.trouble(), None);
    broker.close().await;
}
