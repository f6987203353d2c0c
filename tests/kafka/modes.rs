//! Ways in which others lost, repeated or stalled jobs, each shown not to be ours, by the numbers of the project's
//! notes on Kafka. Those that need no broker are in the adapter itself.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::producer::{FutureProducer, FutureRecord};
use windlass::broker::{Broker, Disposition, Opened, Settled, Trouble};
use windlass::message::{Attempt, Failure};
use windlass::time::Clock;

use super::desk::{Desk, SOON, body, credit, dead, take};
use crate::support::kafka::Kafka;
use crate::support::proxy::Proxy;
use crate::support::{tool, wait};

fn in_an_hour() -> Disposition {
    let now = Clock::System.now();
    Disposition::Retry {
        at: now.after(Duration::from_secs(3_600)),
        attempt: Attempt::new(2).unwrap(),
        failure: Some(Failure::new("E", "no", now, now)),
        unroutable_since: None,
    }
}

/// Lets time pass in which nobody asks for work.
async fn leave_alone(time: Duration) {
    let begun = Instant::now();
    wait::until_async("it is time", time * 10, async || begun.elapsed() >= time).await;
}

/// Records of so many bytes, in turn on each partition; the body begins with the number.
async fn fill(desk: &Desk, topic: &str, partitions: i32, records: usize, size: usize) {
    // One by one: of a batch too, a broker sends as much as fits.
    let producer: FutureProducer = desk.client().set("batch.num.messages", "1").create().unwrap();
    let send = |number: usize| {
        let producer = producer.clone();
        async move {
            let mut body = format!("\"{number}\"");
            body.extend(std::iter::repeat_n(' ', size - body.len()));
            let record = FutureRecord::<(), str>::to(topic).partition(number as i32 % partitions).payload(&body);
            producer.send(record, SOON).await.map_err(|(error, _)| error).unwrap();
        }
    };
    for first in (0..records).step_by(64) {
        futures_util::future::join_all((first..records.min(first + 64)).map(send)).await;
    }
}

fn number(body: &str) -> usize {
    body.trim().trim_matches('"').parse().unwrap()
}

/// Takes and acknowledges until each of `0..count` came; says how many came twice.
async fn drain(opened: &mut Opened, count: usize) -> usize {
    let mut seen = BTreeSet::new();
    let mut again = 0;
    while seen.len() < count {
        let got =
            tokio::time::timeout(SOON, opened.source.receive(credit(16))).await.expect("they come in time").unwrap();
        again += got.iter().filter(|delivery| !seen.insert(number(&body(delivery)))).count();
        opened.settler.settle(got.into_iter().map(|d| d.settle(Disposition::Ack)).collect()).await;
    }
    again
}

#[tokio::test]
async fn mode_2_what_was_delivered_and_not_settled_is_not_committed() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let topic = desk.topic("a");
    desk.create(&topic, 1, &[]).await;
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("1", None), ("2", None), ("3", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    let taken = take(&mut opened, 3).await;
    opened.source.stop().await;
    broker.close().await;
    assert_eq!(desk.committed("q", &topic, 1), [Some(0)]);
    drop(taken);
}

#[tokio::test]
async fn mode_7_a_pause_ends_with_the_assignment_that_it_was_for() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let topic = desk.topic("a");
    desk.create(&topic, 2, &[]).await;
    fill(&desk, &topic, 2, 16, 900_000).await;
    let first = desk.connect().await;
    let mut opened = first.open(&queue).await.unwrap();
    // Nobody asks for what was read ahead, until the broker is told to send nothing.
    leave_alone(Duration::from_secs(11)).await;
    let second = desk.connect().await;
    let mut other = second.open(&queue).await.unwrap();
    drop(take(&mut other, 1).await);
    other.source.stop().await;
    second.close().await;
    assert_eq!(drain(&mut opened, 16).await, 0);
    first.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mode_9_10_and_26_a_full_pool_neither_leaves_the_group_nor_fetches_twice_and_a_dead_broker_holds_up_no_close() {
    // Its runtime may not be made on one of another.
    let proxy = tokio::task::spawn_blocking(|| Proxy::to(0)).await.unwrap();
    let advertised = format!("advertised.listeners=PLAINTEXT://{}", proxy.host());
    let Some(kafka) = Kafka::with(1, &advertised) else { return };
    proxy.lead_to(kafka.nodes[0].port());
    let mut desk = Desk::at(format!("kafka://{}", proxy.host()));
    // A poll thread that stood still while the pool is full would be thrown out.
    desk.kafka.options = vec![("max.poll.interval.ms".to_owned(), "6000".to_owned())];
    let queue = desk.queue("q", &["a"]);
    let topic = desk.topic("a");
    desk.create(&topic, 2, &[]).await;
    // A broker sends up to a MiB of a partition and cuts where that ends, which for large records is much for nothing.
    let (records, size) = if tool::full() { (6_000, 45_000) } else { (60, 900_000) };
    fill(&desk, &topic, 2, records, size).await;
    let broker = desk.connect().await;
    let before = proxy.counts().to_client;
    let mut opened = broker.open(&queue).await.unwrap();
    let first = take(&mut opened, 1).await.remove(0);
    let members = desk.members("q");
    assert_eq!(members.len(), 1);
    leave_alone(Duration::from_secs(if tool::full() { 60 } else { 8 })).await;
    opened.settler.settle(vec![first.settle(Disposition::Ack)]).await;
    assert_eq!(drain(&mut opened, records - 1).await, 0);
    let (received, used) = (proxy.counts().to_client - before, (records * size) as u64);
    assert_eq!(desk.members("q"), members, "it never left");
    // A pause throws away what the client has read ahead, 4 MiB a partition; on a slow machine there may be some.
    let most = if tool::full() { used * 11 / 10 } else { used * 3 / 2 };
    assert!(received <= most, "{received} bytes came for {used}");
    eprintln!("{received} bytes came for {used}");
    proxy.swallow_all();
    tokio::time::timeout(Duration::from_secs(60), broker.close()).await.expect("it leaves although nobody answers");
}

/// Two records of each of four partitions in hand of one worker, and another that has just joined. Each has to get some
/// of the four, since the queue's own topic has but one.
async fn joined(
    desk: &mut Desk,
) -> Option<(Vec<windlass::broker::Delivery>, [(std::sync::Arc<dyn Broker>, Opened); 2])> {
    let queue = desk.queue("q", &["a"]);
    let topic = desk.topic("a");
    desk.kafka.partitions = Some(1);
    desk.create(&format!("{}.work.q", desk.namespace), 1, &[]).await;
    desk.create(&topic, 4, &[]).await;
    fill(desk, &topic, 4, 8, 10).await;
    let first = desk.connect().await;
    let mut one = first.open(&queue).await.unwrap();
    let taken = take(&mut one, 8).await;
    let second = desk.connect().await;
    let two = second.open(&queue).await.unwrap();
    wait::until_async("partitions are asked back", SOON, async || one.settler.trouble() == Some(Trouble::Rebalance))
        .await;
    Some((taken, [(first, one), (second, two)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mode_11_what_ends_while_a_partition_is_asked_back_is_stored_before_it_goes() {
    let Some(mut desk) = Desk::new() else { return };
    let Some((mut taken, [(first, one), (second, mut two)])) = joined(&mut desk).await else { return };
    // Each of these needs the poll thread, which is asked for the partitions meanwhile.
    let dispositions =
        [in_an_hour(), dead(), Disposition::Ack, in_an_hour(), dead(), Disposition::Ack, dead(), in_an_hour()];
    let batch = dispositions.into_iter().map(|disposition| taken.remove(0).settle(disposition)).collect();
    assert_eq!(one.settler.settle(batch).await, vec![Settled::Stored; 8]);
    fill(&desk, &desk.topic("a"), 4, 8, 10).await;
    assert_eq!(take(&mut two, 2).await.len(), 2, "the other has its partitions");
    for (broker, _) in [(first, one), (second, two)] {
        broker.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mode_12_a_job_that_outlives_its_grace_holds_up_no_rebalance() {
    let Some(mut desk) = Desk::new() else { return };
    let Some((taken, [(first, mut one), (second, mut two)])) = joined(&mut desk).await else { return };
    let members = desk.members("q");
    let again: BTreeSet<usize> = take(&mut two, 2).await.iter().map(|delivery| number(&body(delivery))).collect();
    let mut counts = [0, 0];
    for delivery in taken {
        let comes_again = again.contains(&number(&body(&delivery)));
        let stored = one.settler.settle(vec![delivery.settle(Disposition::Ack)]).await == [Settled::Stored];
        assert!(!(stored && comes_again), "it was somebody else's already");
        counts[usize::from(stored)] += 1;
    }
    assert!(counts.iter().all(|count| *count >= 2), "some went and some stayed: {counts:?}");
    assert_eq!(desk.members("q"), members, "nobody was thrown out");
    fill(&desk, &desk.topic("a"), 4, 8, 10).await;
    assert_eq!(take(&mut one, 1).await.len(), 1);
    for (broker, _) in [(first, one), (second, two)] {
        broker.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mode_26_who_leaves_while_partitions_are_asked_back_keeps_nobody_waiting() {
    let Some(mut desk) = Desk::new() else { return };
    let Some((taken, [(first, one), (second, mut two)])) = joined(&mut desk).await else { return };
    // What is in hand will not end, so that the partitions asked back are not given when it leaves.
    first.close().await;
    wait::until_async("the other has all of them", SOON, async || desk.owned("q") == [5]).await;
    assert_eq!(take(&mut two, 8).await.len(), 8, "all of them, once more");
    drop((taken, one));
    second.close().await;
}

#[tokio::test]
async fn mode_24_more_partitions_under_a_queue_in_key_order_are_noticed_and_said() {
    let Some(mut desk) = Desk::new() else { return };
    let mut queue = desk.queue("q", &["a"]);
    queue.ordered = true;
    let topic = desk.topic("a");
    desk.create(&topic, 2, &[]).await;
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("1", Some("k"))]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    assert!(opened.notes.is_empty());
    let delivery = take(&mut opened, 1).await.remove(0);
    opened.settler.settle(vec![delivery.settle(Disposition::Ack)]).await;
    broker.inspect().present(&[(queue.name.clone(), 16)]).await.unwrap();
    opened.source.stop().await;
    broker.close().await;
    let admin: rdkafka::admin::AdminClient<_> = desk.client().create().unwrap();
    let more = rdkafka::admin::NewPartitions::new(&topic, 5);
    admin.create_partitions([&more], &rdkafka::admin::AdminOptions::new()).await.unwrap();
    let mut notes = Vec::new();
    wait::until_async("the topic has grown", SOON, async || {
        let broker = desk.connect().await;
        notes = broker.open(&queue).await.unwrap().notes;
        broker.close().await;
        !notes.is_empty()
    })
    .await;
    assert!(notes[0].contains("has 5 partitions, and had 2"), "{notes:?}");
}

#[tokio::test]
async fn mode_25_what_ends_after_intake_has_stopped_is_committed_before_the_group_is_left() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let topic = desk.topic("a");
    desk.create(&topic, 2, &[]).await;
    fill(&desk, &topic, 2, 20, 10).await;
    let broker = desk.connect().await;
    let mut opened = broker.open(&queue).await.unwrap();
    let mut taken = take(&mut opened, 11).await;
    let mut left: BTreeSet<usize> = (0..20).collect();
    taken.iter().for_each(|delivery| assert!(left.remove(&number(&body(delivery)))));
    opened.source.stop().await;
    let moved = taken.remove(0);
    let mut batch: Vec<_> = taken.into_iter().map(|d| d.settle(Disposition::Ack)).collect();
    // One that has to be written elsewhere first.
    batch.push(moved.settle(dead()));
    let settled = opened.settler.settle(batch).await;
    assert!(settled.iter().all(|one| *one == Settled::Stored), "{settled:?}");
    broker.close().await;
    let broker = desk.connect().await;
    let mut opened = broker.open(&queue).await.unwrap();
    let again: BTreeSet<usize> = take(&mut opened, left.len()).await.iter().map(|d| number(&body(d))).collect();
    assert_eq!(again, left);
    broker.close().await;
}
