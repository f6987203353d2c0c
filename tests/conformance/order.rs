//! Key order: one at a time, in the order published, whatever happens to the first.

use std::collections::HashMap;
use std::time::Duration;

use windlass::message::Reason;
use windlass::time::Clock;

use super::Subject;
use super::bench::{Bench, bodies, body, credit, dead, retry};

/// A broker that cannot keep the order of keys says so, before anything runs out of order.
async fn refused<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.ordered("ledger", &["entries"]);
    let site = bench.connect().await;
    let refused = site.broker.open(&queue).await.err().expect("it cannot keep this order");
    assert_eq!(refused.exit_code(), 78, "{refused}");
    S::inapplicable(&format!("it refuses such a queue: {refused}"));
    site.close().await;
}

pub async fn one_at_a_time<S: Subject>(mut bench: Bench<S>) {
    if !S::ORDERED_KEYS {
        return refused(bench).await;
    }
    let queue = bench.ordered("ledger", &["entries"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    let keys = ["ada", "bob", "cyd"];
    let events: Vec<(String, String)> =
        (0..30).map(|n| (keys[n % 3].to_owned(), format!("{}-{:02}", keys[n % 3], n / 3))).collect();
    let events: Vec<(&str, &str)> = events.iter().map(|(key, body)| (key.as_str(), body.as_str())).collect();
    site.publish_keyed("entries", &events).await;
    let mut next: HashMap<String, u32> = HashMap::new();
    let mut settled = 0;
    while settled < 30 {
        let received = tokio::time::timeout(super::bench::SOON, work.source.receive(credit(16)));
        let received = received.await.expect("there is a backlog").expect("the source goes on");
        let mut together: Vec<_> = bodies(&received).iter().map(|body| body[..3].to_owned()).collect();
        together.sort();
        let before = together.len();
        together.dedup();
        assert_eq!(together.len(), before, "a key twice in hand: {:?}", bodies(&received));
        for body in bodies(&received) {
            let (key, number) = body.split_once('-').expect("key-number");
            let expected = next.entry(key.to_owned()).or_default();
            assert_eq!(number.parse::<u32>().expect("a number"), *expected, "of {key}");
            *expected += 1;
        }
        settled += received.len();
        work.ack(received).await;
    }
    site.close().await;
}

pub async fn retry_holds_key<S: Subject>(mut bench: Bench<S>) {
    if !S::ORDERED_KEYS {
        return refused(bench).await;
    }
    let queue = bench.ordered("ledger", &["entries"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    site.publish_keyed("entries", &[("ada", "a1"), ("ada", "a2"), ("ada", "a3"), ("bob", "b1")]).await;
    let mut deliveries = work.take(2).await;
    deliveries.sort_by_key(|delivery| body(&delivery.message));
    assert_eq!(bodies(&deliveries), ["a1", "b1"]);
    let (b1, a1) = (deliveries.pop().expect("two"), deliveries.pop().expect("two"));
    let due = Clock::System.now().after(Duration::from_millis(700));
    work.stored(vec![a1], || retry(Duration::from_millis(700), 2)).await;
    work.ack(vec![b1]).await;
    let delivery = work.one().await;
    assert!(Clock::System.now() >= due, "nothing of ada's before her retry is due");
    assert_eq!((body(&delivery.message).as_str(), delivery.attempt().get()), ("a1", 2));
    // A dead letter lets the key go on.
    work.stored(vec![delivery], || dead(Reason::Exhausted, 2, Some("a1"), "ledger")).await;
    let delivery = work.one().await;
    assert_eq!(body(&delivery.message), "a2");
    // A release keeps its place.
    drop(delivery);
    let delivery = work.one().await;
    assert_eq!(body(&delivery.message), "a2");
    work.ack(vec![delivery]).await;
    let delivery = work.one().await;
    assert_eq!(body(&delivery.message), "a3");
    work.ack(vec![delivery]).await;
    site.close().await;
}

pub async fn survives_restart<S: Subject>(mut bench: Bench<S>) {
    if !S::ORDERED_KEYS {
        return refused(bench).await;
    }
    if !S::LASTING {
        return S::inapplicable("it does not restart");
    }
    let queue = bench.ordered("ledger", &["entries"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    site.publish_keyed("entries", &[("ada", "a1"), ("ada", "a2"), ("bob", "b1"), ("bob", "b2")]).await;
    let mut deliveries = work.take(2).await;
    deliveries.sort_by_key(|delivery| body(&delivery.message));
    assert_eq!(bodies(&deliveries), ["a1", "b1"]);
    let (b1, a1) = (deliveries.pop().expect("two"), deliveries.pop().expect("two"));
    work.stored(vec![a1], || retry(Duration::from_secs(2), 2)).await;
    drop(b1);
    drop(work);
    let site = bench.restart(site).await;
    let mut work = site.open(&queue).await;
    let mut order = Vec::new();
    for _ in 0..4 {
        let delivery = work.one().await;
        order.push(body(&delivery.message));
        work.ack(vec![delivery]).await;
    }
    let of = |key: char| order.iter().filter(|body| body.starts_with(key)).cloned().collect::<Vec<_>>();
    assert_eq!((of('a'), of('b')), (vec!["a1".into(), "a2".into()], vec!["b1".into(), "b2".into()]));
    site.close().await;
}
