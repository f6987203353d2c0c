//! Key order, across workers, retries, dead letters and what is enqueued.

use super::*;

fn keyed(topic: &str, key: &str, body: &str) -> Publication {
    let mut publication = to_topic(topic, body);
    publication.message.key = Some(bytes::Bytes::copy_from_slice(key.as_bytes()));
    publication
}

async fn put(broker: &Arc<dyn Broker>, batch: Vec<Publication>) {
    for result in broker.publisher().publish(batch).await {
        result.expect("stored");
    }
}

fn ordered() -> Queue {
    Queue { ordered: true, ..queue("q", &["t", "u"]) }
}

#[tokio::test]
async fn one_of_a_key_at_a_time_and_in_order_over_two_workers() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (one, mut first) = worker(&path, &ordered()).await;
    let (_two, mut second) = worker(&path, &ordered()).await;
    put(&one, vec![keyed("t", "k", "k1"), keyed("t", "k", "k2"), keyed("t", "l", "l1"), keyed("u", "k", "other")])
        .await;
    put(&one, vec![keyed("t", "k", "k3"), to_topic("t", "free1"), to_topic("t", "free2")]).await;
    let held = receive(&mut first, 8).await;
    assert_eq!(bodies(&held), ["k1", "l1", "other", "free1", "free2"]);
    assert!(held.iter().all(|delivery| delivery.needs_mark));
    assert!(nothing(&mut second).await);
    let mut held = held.into_iter();
    let k1 = held.next().expect("k1");
    assert_eq!(settle(&first, vec![k1], &Disposition::Ack).await, [Settled::Stored]);
    let k2 = receive(&mut second, 8).await;
    assert_eq!(bodies(&k2), ["k2"]);
    // A retry keeps its key waiting, a dead letter lets it go on.
    let at = Clock::System.now().after(Duration::from_millis(200));
    settle(&second, k2, &retry_at(at, 2)).await;
    let k2 = receive(&mut first, 8).await;
    assert_eq!(bodies(&k2), ["k2"]);
    assert!(Clock::System.now() >= at);
    settle(&first, k2, &dead(Reason::Permanent, "k2")).await;
    let k3 = receive(&mut second, 8).await;
    assert_eq!(bodies(&k3), ["k3"]);
    settle(&second, k3, &Disposition::Ack).await;
    settle(&first, held.collect(), &Disposition::Ack).await;
    assert_eq!(beside(&path, "SELECT count(*) FROM head").await, 0);
    assert_eq!(beside(&path, "SELECT count(*) FROM event").await, 1, "the dead letter's");
}

#[tokio::test]
async fn what_is_enqueued_is_in_order_among_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (one, mut first) = worker(&path, &ordered()).await;
    let enqueue = |body: &str| Publication {
        destination: Destination::Queue { queue: QueueName::new("q").expect("a name"), job: None, not_before: None },
        ..keyed("t", "k", body)
    };
    put(&one, vec![enqueue("e1"), enqueue("e2"), keyed("t", "k", "t1")]).await;
    let held = receive(&mut first, 8).await;
    let mut both = bodies(&held);
    both.sort();
    assert_eq!(both, ["e1", "t1"]);
    settle(&first, held, &Disposition::Ack).await;
    assert_eq!(bodies(&receive(&mut first, 8).await), ["e2"]);
}

#[tokio::test]
async fn a_released_head_comes_again_before_what_is_behind_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (one, mut first) = worker(&path, &ordered()).await;
    put(&one, vec![keyed("t", "k", "k1"), keyed("t", "k", "k2")]).await;
    for _ in 0..3 {
        let held = receive(&mut first, 8).await;
        assert_eq!(bodies(&held), ["k1"]);
        drop(held);
    }
    one.close().await;
}

#[tokio::test]
async fn a_queue_can_be_put_in_order_and_freed_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let loose = queue("q", &["t"]);
    let producer = connect(&path, options(Role::Producer, std::slice::from_ref(&loose))).await;
    put(&producer, vec![keyed("t", "k", "k1"), keyed("t", "k", "k2"), to_topic("t", "free")]).await;
    let strict = Queue { ordered: true, ..loose.clone() };
    let (one, mut first) = worker(&path, &strict).await;
    let held = receive(&mut first, 8).await;
    assert_eq!(bodies(&held), ["k1", "free"]);
    drop(held);
    one.close().await;
    let (_two, mut second) = worker(&path, &loose).await;
    let held = receive(&mut second, 8).await;
    let mut all = bodies(&held);
    all.extend(if held.len() < 3 { bodies(&receive(&mut second, 8).await) } else { Vec::new() });
    all.sort();
    assert_eq!(all, ["free", "k1", "k2"]);
}
