//! Killed between every two steps of a move: one chain of a job is left, whatever had reached the server.
//!
//! The connection ends at a byte of the move's requests, and the process with it. Which byte separates which steps is
//! not asked: the bytes are swept, and the promise is the same everywhere.

use std::time::Duration;

use futures_util::FutureExt;
use serde_json::{Value, json};
use windlass::broker::{Delivery, Disposition};

use super::kit::{self, Behind, Doomed, LEASE, SOON, connect, open, publish, queue, run_for};
use crate::support::nats::{Nats, Release};
use crate::support::proxy::{Proxy, Toward};
use crate::support::tool;

/// How far the bytes of a retry or a dead letter reach, with its acknowledgement, and how far apart the cuts are.
fn bytes() -> impl Iterator<Item = u64> {
    (1..1_400).step_by(if tool::full() { 40 } else { 400 })
}

/// Settles with `disposition` and dies when so many bytes have gone to the server.
async fn dies_after(proxy: &Proxy, bytes: u64, worker: Doomed, delivery: Delivery, disposition: Disposition) {
    let before = proxy.counts();
    // It does not come back.
    proxy.refuse();
    proxy.cut_after(Toward::Server, bytes);
    let settling = worker.work.settler.settle(vec![delivery.settle(disposition)]);
    let end = tokio::time::Instant::now() + SOON;
    let mut settling = std::pin::pin!(settling.fuse());
    while proxy.counts().cut == before.cut && tokio::time::Instant::now() < end {
        // Renewals and requests for more go on where the move itself was shorter.
        let _ = tokio::time::timeout(Duration::from_millis(2), &mut settling).await;
        tokio::task::yield_now().await;
    }
    worker.die(Vec::new());
}

async fn settled(behind: &Behind) {
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let info = behind.api("CONSUMER.INFO.ORDERS.t_invoice", Value::Null).await;
        let work = behind.api("STREAM.INFO.t_work", json!({ "subjects_filter": "t.work.>" })).await;
        if info["num_ack_pending"] == 0 && info["num_pending"] == 0 && work["state"]["subjects"].is_null() {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "something is left: {info} {work}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_retry_leaves_one_chain() {
    let Some(mut server) = Nats::start(Release::New) else { return };
    let proxy = Proxy::to(server.port());
    run_for(Duration::from_secs(600), async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ORDERS", "orders", "limits").await;
        let invoice = queue("invoice", &["orders"]);
        for (round, cut) in bytes().enumerate() {
            proxy.pass();
            let mut first = kit::doomed(&format!("nats://{}", proxy.host()), &invoice).await;
            behind.0.publish("orders", "{}".into()).await.expect("published");
            let delivery = first.work.one().await;
            // Due before the lease has ended, and after.
            let wait = if round % 2 == 0 { LEASE / 4 } else { LEASE * 2 };
            let mut retry = kit::retry(2);
            if let Disposition::Retry { at, .. } = &mut retry {
                *at = at.after(wait);
            }
            dies_after(&proxy, cut, first, delivery, retry).await;
            if round % 3 == 2 {
                server.restart();
            }
            let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
            let mut work = open(&broker, &invoice).await;
            let delivery = work.one().await;
            let attempt = delivery.attempt().get();
            assert!(attempt <= 2, "cut after {cut}");
            work.stored(delivery, Disposition::Ack).await;
            let more = work.within(1, LEASE * 2).await;
            assert!(more.is_empty(), "cut after {cut}: attempt {attempt} succeeded, and {more:?} came");
            settled(&behind).await;
            broker.close().await;
        }
    });
}

#[test]
fn a_dead_letter_is_stored_once() {
    let Some(mut server) = Nats::start(Release::New) else { return };
    let proxy = Proxy::to(server.port());
    run_for(Duration::from_secs(600), async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ORDERS", "orders", "limits").await;
        let invoice = queue("invoice", &["orders"]);
        for (round, cut) in bytes().enumerate() {
            proxy.pass();
            let mut first = kit::doomed(&format!("nats://{}", proxy.host()), &invoice).await;
            behind.0.publish("orders", "{}".into()).await.expect("published");
            let delivery = first.work.one().await;
            dies_after(&proxy, cut, first, delivery, kit::dead("invoice")).await;
            if round % 3 == 2 {
                server.restart();
            }
            let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
            let mut work = open(&broker, &invoice).await;
            for delivery in work.within(1, LEASE * 2).await {
                work.stored(delivery, kit::dead("invoice")).await;
            }
            settled(&behind).await;
            assert_eq!(kit::letters(&broker).await.len(), round + 1, "cut after {cut}");
            broker.close().await;
        }
    });
}

#[test]
fn a_replay_loses_nothing_and_doubles_at_most_itself() {
    let Some(server) = Nats::start(Release::New) else { return };
    let proxy = Proxy::to(server.port());
    run_for(Duration::from_secs(600), async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ORDERS", "orders", "limits").await;
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        for cut in bytes() {
            publish(&broker, "orders", &["{}"]).await;
            let delivery = work.one().await;
            work.stored(delivery, kit::dead("invoice")).await;
            let letters = kit::letters(&broker).await;
            proxy.pass();
            let cuts = proxy.counts().cut;
            let operator = connect(&format!("nats://{}", proxy.host()), std::slice::from_ref(&invoice)).await;
            proxy.refuse();
            proxy.cut_after(Toward::Server, cut);
            let dead = operator.dead_letters();
            // Killed: what it would have said nobody hears, and it does not connect again.
            let mend = Default::default();
            let replay = dead.replay(&letters, &mend);
            let watch = async {
                while proxy.counts().cut == cuts {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                biased;
                () = watch => {}
                _ = replay => {}
            }
            drop(operator);
            // Whatever of it is left is replayed once more.
            let left = kit::letters(&broker).await;
            let again = broker.dead_letters().replay(&left, &Default::default()).await;
            assert!(again.iter().all(Result::is_ok), "{again:?}");
            let delivery = work.one().await;
            assert_eq!(delivery.attempt().get(), 1);
            work.stored(delivery, Disposition::Ack).await;
            for second in work.within(1, Duration::from_millis(500)).await {
                assert!(!left.is_empty(), "cut after {cut}: the letter was gone, and it came twice");
                work.stored(second, Disposition::Ack).await;
            }
            assert!(kit::letters(&broker).await.is_empty(), "cut after {cut}");
        }
        broker.close().await;
    });
}
