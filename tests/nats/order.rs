//! Key order: over several workers, and when somebody reads who should not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use windlass::broker::{self, Broker, Delivery, Disposition, NatsOptions, Options, Queue};

use super::kit::{self, Behind, LEASE, SOON, connect, open, options, queue, run, unopened};
use crate::support::nats::{Nats, Release};
use crate::support::proxy::{Cut, Proxy, Toward};

fn ordered() -> Queue {
    Queue { ordered: true, ..queue("ledger", &["entries"]) }
}

/// Published as `KEY NUMBER` by somebody who has never heard of us.
async fn entries(behind: &Behind, entries: &[&str]) {
    for entry in entries {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("partitionkey", entry.split(' ').next().unwrap_or_default());
        let body = Bytes::copy_from_slice(entry.as_bytes());
        behind.0.publish_with_headers("entries", headers, body).await.expect("published");
    }
    behind.0.flush().await.expect("sent");
}

fn body(delivery: &Delivery) -> String {
    String::from_utf8_lossy(delivery.message.body.as_deref().unwrap_or_default()).into_owned()
}

#[test]
fn a_server_without_schedules_cannot_keep_order() {
    let Some(server) = Nats::start(Release::Old) else { return };
    run(async {
        let broker = connect(&server.url(), &[ordered()]).await;
        let error = unopened(&broker, &ordered()).await;
        assert_eq!(error.exit_code(), 78);
        assert!(error.to_string().contains("2.12"), "{error}");
        broker.close().await;
    });
}

#[test]
fn another_worker_takes_over_in_order() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ENTRIES", "entries", "limits").await;
        entries(&behind, &["ada 1", "ada 2", "ada 3", "bob 1", "bob 2"]).await;
        let mut first = kit::doomed(&server.url(), &ordered()).await;
        let mut in_hand = first.work.take(2).await;
        in_hand.sort_by_key(body);
        assert_eq!(in_hand.iter().map(body).collect::<Vec<_>>(), ["ada 1", "bob 1"]);
        first.work.stored(in_hand.remove(0), kit::retry(2)).await;
        let again = first.work.one().await;
        assert_eq!((body(&again), again.attempt().get()), ("ada 1".to_owned(), 2));
        // A second one stands by: it gets nothing while the first lives.
        let broker = connect(&server.url(), &[ordered()]).await;
        let mut second = open(&broker, &ordered()).await;
        assert!(second.within(1, LEASE * 3 / 2).await.is_empty(), "one worker at a time");
        in_hand.push(again);
        first.die(in_hand);
        let mut order = Vec::new();
        for _ in 0..5 {
            let delivery = second.one().await;
            assert_eq!(delivery.attempt().get(), if body(&delivery) == "ada 1" { 2 } else { 1 }, "{delivery:?}");
            order.push(body(&delivery));
            second.stored(delivery, Disposition::Ack).await;
        }
        let of = |key: &str| order.iter().filter(|body| body.starts_with(key)).cloned().collect::<Vec<_>>();
        assert_eq!(of("ada"), ["ada 1", "ada 2", "ada 3"]);
        assert_eq!(of("bob"), ["bob 1", "bob 2"]);
        broker.close().await;
    });
}

/// Connects with a lease that no test waits for.
async fn with_a_long_lease(url: &str) -> Arc<dyn Broker> {
    let options = Options { lease: Duration::from_secs(600), ..options(NatsOptions::default(), &[ordered()]) };
    broker::connect(url, options).await.expect("the server can be reached")
}

#[test]
fn whoever_leaves_hands_over_at_once() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ENTRIES", "entries", "limits").await;
        let (one, other) = (with_a_long_lease(&server.url()).await, with_a_long_lease(&server.url()).await);
        let mut first = open(&one, &ordered()).await;
        entries(&behind, &["ada 1", "ada 2", "bob 1", "bob 2", "eve 1"]).await;
        let mut in_hand = first.take(3).await;
        in_hand.sort_by_key(body);
        let mut second = open(&other, &ordered()).await;
        // One ends while it leaves, one waits for its retry, one is given back; two were never begun.
        first.stored(in_hand.remove(0), Disposition::Ack).await;
        first.stored(in_hand.remove(0), kit::retry(2)).await;
        first.source.stop().await;
        drop(in_hand);
        one.close().await;
        let mut order = Vec::new();
        for _ in 0..4 {
            let delivery = second.within(1, SOON * 3).await.pop().unwrap_or_else(|| panic!("stuck after {order:?}"));
            let attempt = delivery.attempt().get();
            order.push((body(&delivery), attempt));
            second.stored(delivery, Disposition::Ack).await;
        }
        let of = |key: &str| order.iter().filter(|(body, _)| body.starts_with(key)).cloned().collect::<Vec<_>>();
        assert_eq!(of("ada"), [("ada 2".to_owned(), 1)]);
        assert_eq!(of("bob"), [("bob 1".to_owned(), 2), ("bob 2".to_owned(), 1)]);
        assert_eq!(of("eve"), [("eve 1".to_owned(), 1)]);
        other.close().await;
    });
}

#[test]
fn what_is_lost_with_a_connection_comes_again_at_once() {
    let Some(server) = Nats::start(Release::New) else { return };
    let proxy = Proxy::to(server.port());
    run(async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ENTRIES", "entries", "limits").await;
        let broker = with_a_long_lease(&format!("nats://{}", proxy.host())).await;
        let mut work = open(&broker, &ordered()).await;
        entries(&behind, &["ada 0", "bob 0"]).await;
        let mut running = work.take(2).await;
        running.sort_by_key(body);
        work.stored(running.remove(0), Disposition::Ack).await;
        for round in 1..=3 {
            // Delivered, and on its way for ever.
            let mut asked = 0;
            let delivered = async || {
                let info = behind.api("CONSUMER.INFO.ENTRIES.t_ledger", Value::Null).await;
                info["num_ack_pending"].as_u64().expect("a count") > 1
            };
            proxy.swallow(Toward::Client);
            while !delivered().await {
                asked += 1;
                entries(&behind, &[&format!("ada {round}-{asked:03}")]).await;
            }
            proxy.cut(Cut::Reset);
            proxy.pass();
            for number in 1..=asked {
                let delivery = work.within(1, SOON * 3).await.pop().unwrap_or_else(|| panic!("stuck at {number}"));
                assert_eq!(body(&delivery), format!("ada {round}-{number:03}"));
                work.stored(delivery, Disposition::Ack).await;
            }
        }
        // It was here all the time, and is not called back from ourselves.
        work.stored(running.remove(0), Disposition::Ack).await;
        assert!(work.within(1, LEASE).await.is_empty());
        broker.close().await;
    });
}

#[test]
fn what_somebody_else_took_holds_back_what_follows() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ENTRIES", "entries", "limits").await;
        let broker = connect(&server.url(), &[ordered()]).await;
        let mut work = open(&broker, &ordered()).await;
        entries(&behind, &["bob 0"]).await;
        let delivery = work.one().await;
        work.stored(delivery, Disposition::Ack).await;
        // A reader that was thought dead asks for messages, among ours, and gets some of them.
        let next = "$JS.API.CONSUMER.MSG.NEXT.ENTRIES.t_ledger";
        let mut thief = behind.0.subscribe("thief").await.expect("subscribed");
        let mut stolen: Vec<String> = Vec::new();
        let mut number = 0;
        while stolen.is_empty() {
            let ask = json!({ "batch": 1, "expires": 5_000_000_000u64 }).to_string();
            behind.0.publish_with_reply(next, "thief", ask.into()).await.expect("asked");
            behind.0.flush().await.expect("sent");
            for _ in 0..8 {
                number += 1;
                entries(&behind, &[&format!("ada {number:04}")]).await;
            }
            let got = tokio::time::timeout(Duration::from_millis(300), futures_util::StreamExt::next(&mut thief)).await;
            stolen.extend(got.ok().flatten().map(|message| String::from_utf8_lossy(&message.payload).into_owned()));
        }
        let mut order = Vec::new();
        while order.len() < number {
            let delivery = work.within(1, SOON).await.pop().unwrap_or_else(|| panic!("stuck after {order:?}"));
            order.push(body(&delivery));
            work.stored(delivery, Disposition::Ack).await;
        }
        let expected: Vec<String> = (1..=number).map(|number| format!("ada {number:04}")).collect();
        assert_eq!(order, expected, "{stolen:?} was somebody else's for a while");
        broker.close().await;
    });
}
