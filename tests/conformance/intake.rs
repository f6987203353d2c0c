//! What is published comes, to whom it should, and never more than was asked for.

use std::time::Duration;

use bytes::Bytes;
use windlass::message::{Headers, Message};
use windlass::time::Clock;

use super::Subject;
use super::bench::{Bench, bodies, body, credit, numbered, refs, sorted, tally};

pub async fn survives_restarts<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    drop(site.open(&queue).await);
    let events = numbered("e", 40);
    site.publish("orders", &refs(&events)).await;
    let site = bench.restart(site).await;
    let mut work = site.open(&queue).await;
    let deliveries = work.take(40).await;
    assert_eq!(sorted(&deliveries), events);
    assert!(deliveries.iter().all(|delivery| delivery.attempt().get() == 1));
    work.ack(deliveries).await;
    site.close().await;
}

pub async fn within_credit<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    site.publish("orders", &refs(&numbered("e", 300))).await;
    let mut in_hand = Vec::new();
    // Nothing is settled meanwhile: what one call may give does not depend on what others gave.
    for jobs in [1, 2, 5, 1, 20, 7] {
        let received = tokio::time::timeout(super::bench::SOON, work.source.receive(credit(jobs)));
        let received = received.await.expect("there is a backlog").expect("the source goes on");
        assert!(received.len() <= jobs + 1, "credit for {jobs} gave {}", received.len());
        in_hand.extend(received);
    }
    let tally = tally(bodies(&in_hand));
    assert!(tally.values().all(|count| *count == 1), "handed out twice at once: {tally:?}");
    work.ack(in_hand).await;
    site.close().await;
}

pub async fn within_bytes<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    let large = "x".repeat(1_000);
    let events: Vec<String> = numbered("e", 40).into_iter().map(|event| format!("{event}{large}")).collect();
    site.publish("orders", &refs(&events)).await;
    let mut taken = 0;
    while taken < 40 {
        let asked = windlass::broker::Credit { bytes: 4_000, ..credit(40) };
        let received = tokio::time::timeout(super::bench::SOON, work.source.receive(asked));
        let received = received.await.expect("there is a backlog").expect("the source goes on");
        let bytes: usize = received.iter().map(|delivery| delivery.message.size()).sum();
        let most = received.iter().map(|delivery| delivery.message.size()).max().unwrap_or(0);
        assert!(bytes <= 4_000 + most, "4,000 bytes of credit gave {bytes}");
        taken += received.len();
        work.ack(received).await;
    }
    site.close().await;
}

pub async fn every_queue_gets_each<S: Subject>(mut bench: Bench<S>) {
    let notify = bench.queue("notify", &["orders"]);
    let invoice = bench.queue("invoice", &["orders", "returns"]);
    let site = bench.connect().await;
    let mut notified = site.open(&notify).await;
    let mut invoiced = site.open(&invoice).await;
    let (orders, returns) = (numbered("o", 30), numbered("r", 10));
    let queues = site.publish("orders", &refs(&orders)).await;
    assert!(queues.is_none_or(|queues| queues == 2), "it says {queues:?} queues");
    site.publish("returns", &refs(&returns)).await;
    let deliveries = notified.take(30).await;
    assert_eq!(sorted(&deliveries), orders);
    notified.ack(deliveries).await;
    let deliveries = invoiced.take(40).await;
    assert_eq!(sorted(&deliveries), [orders, returns].concat());
    assert!(deliveries.iter().all(|delivery| {
        let topic = if body(&delivery.message).starts_with('o') { "orders" } else { "returns" };
        delivery.channel.place.topic.as_deref() == Some(topic)
    }));
    invoiced.ack(deliveries).await;
    site.close().await;
}

pub async fn enqueued_for_one<S: Subject>(mut bench: Bench<S>) {
    let notify = bench.queue("notify", &["orders"]);
    let invoice = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut notified = site.open(&notify).await;
    let mut invoiced = site.open(&invoice).await;
    site.enqueue(&invoice, "alone", Some("other"), None).await;
    let delivery = invoiced.one().await;
    assert_eq!(body(&delivery.message), "alone");
    assert_eq!(delivery.attempt().get(), 1);
    let record = delivery.record.as_deref().expect("an enqueued job is a record of ours");
    assert_eq!(record.job.as_ref().map(|job| job.as_str()), Some("other"));
    notified.nothing_for(Duration::from_millis(300)).await;
    invoiced.ack(vec![delivery]).await;
    site.close().await;
}

pub async fn enqueued_for_later<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &[]);
    let site = bench.connect().await;
    drop(site.open(&queue).await);
    let due = Clock::System.now().after(Duration::from_secs(2));
    site.enqueue(&queue, "later", None, Some(due)).await;
    let site = bench.restart(site).await;
    let mut work = site.open(&queue).await;
    let delivery = work.one().await;
    assert!(Clock::System.now() >= due, "it came before {due}");
    assert_eq!(delivery.attempt().get(), 1);
    work.ack(vec![delivery]).await;
    site.close().await;
}

pub async fn as_published<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    let headers: Headers =
        [("Content-Type", "application/json"), ("X-Twice", "1"), ("X-Twice", "2"), ("attempt", "99"), ("empty", "")]
            .into_iter()
            .collect();
    let whole = Message { headers: headers.clone(), body: Some(Bytes::from_static(b"{\"a\": 1}")), key: None };
    let empty = Message { body: Some(Bytes::new()), ..Message::default() };
    let stored = site.publish_raw("orders", whole).await;
    site.publish_raw("orders", empty).await;
    let deliveries = work.take(2).await;
    assert_eq!(stored.id.is_some(), S::LASTING, "a broker says where it lies");
    assert!(
        stored.id.is_none_or(|id| deliveries
            .iter()
            .any(|d| d.origin().event_id() == id && d.message.body.as_deref() != Some(b""))),
        "an event without an id is known by the one that its publisher was told"
    );
    let of = |empty: bool| {
        let found = deliveries.iter().find(|d| d.message.body.as_ref().is_none_or(Bytes::is_empty) == empty);
        &found.expect("both came").message
    };
    assert_eq!(of(false).body.as_deref(), Some(&b"{\"a\": 1}"[..]));
    let pairs = super::settlement::pairs::<S>;
    let came: Vec<_> = pairs(&of(false).headers).into_iter().filter(|pair| pairs(&headers).contains(pair)).collect();
    assert_eq!(came, pairs(&headers), "headers come in order, repeated ones and foreign ones with names of ours too");
    assert!(deliveries.iter().all(|delivery| delivery.attempt().get() == 1), "a producer's attempt is not ours");
    work.ack(deliveries).await;
    site.close().await;
}

pub async fn forgotten_when_idle<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let working = bench.connect().await;
    let work = working.open(&queue).await;
    working.broker.inspect().present(&[(queue.name.clone(), 16)]).await.expect("presence");
    working.publish("orders", &["a", "b"]).await;
    let site = bench.connect().await;
    let inspect = site.broker.inspect();
    for even_with_jobs in [false, true] {
        let refused = inspect.forget(&queue.name, even_with_jobs).await.expect_err("a worker is attached");
        assert_eq!(refused.exit_code(), 69, "{refused}");
    }
    if !S::LASTING {
        return S::inapplicable("its only worker is there as long as it is");
    }
    drop(work);
    working.close().await;
    let refused = inspect.forget(&queue.name, false).await.expect_err("jobs are left");
    assert_eq!(refused.exit_code(), 1, "{refused}");
    assert_eq!(inspect.forget(&queue.name, true).await.expect("forgotten"), 2);
    site.close().await;
}

pub async fn full_and_resumes<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    let events = numbered("e", 120);
    site.publish("orders", &refs(&events)).await;
    let held = work.take(3).await;
    // Every slot is busy: nothing is asked for, much longer than the lease.
    tokio::time::sleep(S::LEASE * 2).await;
    assert!(site.broker.connected());
    let mut seen = bodies(&held);
    work.ack(held).await;
    while seen.len() < events.len() {
        let left = (events.len() - seen.len()).min(16);
        let deliveries = work.take(left).await;
        seen.extend(bodies(&deliveries));
        work.ack(deliveries).await;
    }
    seen.sort();
    assert_eq!(seen, events);
    work.nothing_for(Duration::from_millis(300)).await;
    site.close().await;
}

pub async fn cancel_safe<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    let events = numbered("e", 60);
    let mut seen = Vec::new();
    for chunk in events.chunks(6) {
        for event in chunk {
            site.publish("orders", &[event]).await;
            // Polled once, or for an instant, and dropped.
            for patience in [0, 2] {
                let received = work.source.receive(credit(3));
                if let Ok(received) = tokio::time::timeout(Duration::from_millis(patience), received).await {
                    let received = received.expect("the source goes on");
                    seen.extend(bodies(&received));
                    work.ack(received).await;
                }
            }
        }
    }
    let rest = work.take(events.len() - seen.len()).await;
    seen.extend(bodies(&rest));
    work.ack(rest).await;
    seen.sort();
    assert_eq!(seen, events);
    work.nothing_for(S::LEASE + Duration::from_millis(300)).await;
    site.close().await;
}
