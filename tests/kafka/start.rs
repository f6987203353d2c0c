//! Where a queue begins that is seen for the first time.

use windlass::broker::{Disposition, Start};

use super::desk::{Desk, body, take};

#[tokio::test]
async fn mode_23_latest_is_of_the_partitions_that_were_there_and_later_ones_begin_at_their_beginning() {
    let Some(mut desk) = Desk::new() else { return };
    let mut queue = desk.queue("q", &["a"]);
    queue.start = Start::Latest;
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("old", None), ("older", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    // The group has us once it says so, with nothing to hand out.
    assert!(opened.source.receive(super::desk::credit(1)).await.unwrap().is_empty());
    crate::support::wait::until_async("the positions are committed", super::desk::SOON, async || {
        let status = broker.inspect().status(std::slice::from_ref(&queue.name)).await.unwrap().remove(0);
        status.ready == Some(0)
    })
    .await;
    desk.publish(&broker, "a", &[("new", None)]).await;
    let delivery = take(&mut opened, 1).await.remove(0);
    assert_eq!(body(&delivery), "new");
    opened.settler.settle(vec![delivery.settle(Disposition::Ack)]).await;
    opened.source.stop().await;
    broker.close().await;

    let topic = desk.topic("a");
    let admin: rdkafka::admin::AdminClient<_> = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", desk.address.trim_start_matches("kafka://"))
        .create()
        .unwrap();
    let more = rdkafka::admin::NewPartitions::new(&topic, 5);
    admin.create_partitions([&more], &rdkafka::admin::AdminOptions::new()).await.unwrap();
    let broker = desk.connect().await;
    // Onto the new partition, before any worker has seen it.
    let servers = desk.address.trim_start_matches("kafka://").to_owned();
    let sent = topic.clone();
    tokio::task::spawn_blocking(move || {
        use rdkafka::producer::Producer as _;
        let producer: rdkafka::producer::BaseProducer =
            rdkafka::ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
        let record = rdkafka::producer::BaseRecord::<(), str>::to(&sent).payload("grown").partition(4);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(super::desk::SOON).unwrap();
    })
    .await
    .unwrap();
    let mut opened = broker.open(&queue).await.unwrap();
    assert_eq!(body(&take(&mut opened, 1).await[0]), "grown");
    broker.close().await;
}
