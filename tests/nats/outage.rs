//! What lies between a worker and its server: bytes that vanish, connections that are cut under acknowledgements,
//! servers that are killed or leave.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::json;
use windlass::broker::{self, Disposition, NatsOptions, Options, Settled};

use super::kit::{Behind, LEASE, SOON, invoicing, open, options, publish, queue, run, run_for, try_publish};
use crate::support::nats::{Cluster, Nats, Release};
use crate::support::proxy::{Cut, Proxy, Toward};
use crate::support::{http, tool, wait};

#[test]
fn a_connection_on_which_everything_vanishes_is_given_up() {
    let Some(server) = Nats::start(Release::New) else { return };
    let proxy = Proxy::to(server.port());
    run(async {
        let behind = Behind::with_orders(&server.url(), "orders").await;
        let (broker, mut work) = invoicing(&format!("nats://{}", proxy.host()), "orders").await;
        for toward in [None, Some(Toward::Client), Some(Toward::Server)] {
            let publish = async |body: &'static str| {
                behind.0.publish("orders", body.into()).await.expect("published");
                behind.0.flush().await.expect("sent");
            };
            publish("before").await;
            let delivery = work.one().await;
            work.stored(delivery, Disposition::Ack).await;
            let before = proxy.counts();
            match toward {
                None => proxy.swallow_all(),
                Some(toward) => proxy.swallow(toward),
            }
            publish("after").await;
            // Nobody tells it: the connection stands. It looks for another one by itself.
            while proxy.counts().connections == before.connections {
                let early = work.within(1, Duration::from_millis(50)).await;
                assert!(early.is_empty(), "what vanishes does not come");
            }
            assert!(proxy.counts().swallowed > before.swallowed, "something vanished");
            proxy.pass();
            let delivery = work.within(1, SOON * 2).await.pop().expect("it goes on by itself");
            work.stored(delivery, Disposition::Ack).await;
        }
        broker.close().await;
    });
}

#[test]
fn a_busy_worker_notices_too() {
    let Some(server) = Nats::start(Release::New) else { return };
    let proxy = Proxy::to(server.port());
    run(async {
        let (broker, mut work) = invoicing(&format!("nats://{}", proxy.host()), "orders").await;
        try_publish(&broker, "orders", "{}".into()).await.expect("stored");
        // Its only slot is taken: it asks for nothing but the lease.
        let delivery = work.one().await;
        let before = proxy.counts();
        proxy.swallow_all();
        while proxy.counts().connections == before.connections {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        proxy.pass();
        wait::until("it is connected again", SOON, || broker.connected());
        drop(delivery);
        broker.close().await;
    });
}

#[test]
fn what_waits_without_a_connection_does_not_begin_and_is_given_back_on_the_next_one() {
    let Some(server) = Nats::start(Release::New) else { return };
    let proxy = Proxy::to(server.port());
    run(async {
        let invoice = queue("invoice", &["orders"]);
        // Nothing comes again by its lease while this test lasts.
        let lease = Duration::from_secs(600);
        let options = Options { lease, ..options(NatsOptions::default(), std::slice::from_ref(&invoice)) };
        let url = format!("nats://{}", proxy.host());
        let broker = broker::connect(&url, options).await.expect("the server can be reached");
        let mut work = open(&broker, &invoice).await;
        publish(&broker, "orders", &["{}"]).await;
        let waiting = work.one().await;
        assert!(waiting.channel.leases.may_begin(waiting.token), "there is a connection");
        proxy.refuse();
        proxy.cut(Cut::Reset);
        wait::until("the loss is noticed", SOON, || !broker.connected());
        assert!(!waiting.channel.leases.may_begin(waiting.token), "nobody knows whose it is now");
        let seq = waiting.seq;
        drop(waiting);
        proxy.pass();
        let again = work.one().await;
        assert_eq!((again.seq, again.redelivered), (seq, true), "it was given back");
        assert!(again.channel.leases.may_begin(again.token), "there is a connection again");
        work.stored(again, Disposition::Ack).await;
        broker.close().await;
    });
}

#[test]
fn what_was_done_and_could_not_be_acknowledged_in_time_is_only_acknowledged_when_it_comes_again() {
    let Some(server) = Nats::start(Release::New) else { return };
    let proxy = Proxy::to(server.port());
    run(async {
        let behind = Behind::with_orders(&server.url(), "orders").await;
        let (broker, mut work) = invoicing(&format!("nats://{}", proxy.host()), "orders").await;
        publish(&broker, "orders", &["{}"]).await;
        let delivery = work.one().await;
        proxy.refuse();
        proxy.cut(Cut::Reset);
        wait::until("the loss is noticed", SOON, || !broker.connected());
        let settled = work.settler.settle(vec![delivery.settle(Disposition::Ack)]).await;
        assert!(matches!(settled[..], [Settled::Unconfirmed(_)]), "its lease ended first: {settled:?}");
        let consumer = async || behind.api("CONSUMER.INFO.ORDERS.t_invoice", serde_json::Value::Null).await;
        assert_eq!(consumer().await["num_ack_pending"], 1, "the server has not heard of it");
        proxy.pass();
        let mut state = consumer().await;
        while state["num_ack_pending"] != 0 {
            let again = work.within(1, Duration::from_millis(50)).await;
            assert!(again.is_empty(), "it was done");
            state = consumer().await;
        }
        assert_eq!(state["delivered"]["consumer_seq"], 2, "it came once more: {state}");
        broker.close().await;
    });
}

#[test]
fn a_slow_network_runs_nothing_twice() {
    let Some(server) = Nats::start(Release::New) else { return };
    let proxy = Proxy::to(server.port());
    run(async {
        let (broker, mut work) = invoicing(&format!("nats://{}", proxy.host()), "orders").await;
        proxy.delay(LEASE / 8);
        let mut seen = HashSet::new();
        for round in 0..2 {
            for number in 0..8 {
                try_publish(&broker, "orders", format!("{round}-{number}").into()).await.expect("stored");
            }
            let deliveries = work.take(8).await;
            for delivery in &deliveries {
                assert!(seen.insert(delivery.seq), "{} came twice", delivery.seq);
            }
            // Kept for longer than a lease, with renewals that take their time.
            tokio::time::sleep(LEASE * 3 / 2).await;
            let batch = deliveries.into_iter().map(|delivery| delivery.settle(Disposition::Ack)).collect();
            assert!(work.settler.settle(batch).await.into_iter().all(|settled| settled == Settled::Stored));
        }
        assert!(work.within(1, LEASE * 3 / 2).await.is_empty(), "nothing comes again");
        broker.close().await;
    });
}

/// Publishes so many numbers into a work queue.
async fn fill(behind: &Behind, count: usize) {
    behind.stream("ORDERS", "orders", "workqueue").await;
    let mut stored = FuturesUnordered::new();
    for number in 0..count {
        let client = behind.0.clone();
        stored.push(async move { client.request("orders", number.to_string().into()).await.expect("stored") });
        if stored.len() >= 256 {
            stored.next().await;
        }
    }
    while stored.next().await.is_some() {}
}

/// Works everything off while `fault` is made so often; what comes after it was counted as confirmed.
async fn unsound(url: &str, count: usize, faults: usize, fault: &mut (dyn FnMut() + Send)) -> Vec<u64> {
    let (broker, mut work) = invoicing(url, "orders").await;
    let (mut confirmed, mut again, mut made) = (HashSet::new(), Vec::new(), 0);
    let mut settling = FuturesUnordered::new();
    while confirmed.len() < count {
        let deliveries = work.within(64, Duration::from_millis(20)).await;
        again.extend(deliveries.iter().map(|delivery| delivery.seq).filter(|seq| confirmed.contains(seq)));
        let seqs: Vec<u64> = deliveries.iter().map(|delivery| delivery.seq).collect();
        let settled =
            work.settler.settle(deliveries.into_iter().map(|delivery| delivery.settle(Disposition::Ack)).collect());
        settling.push(async move { (seqs, settled.await) });
        while let Some(Some((seqs, settled))) = futures_util::FutureExt::now_or_never(settling.next()) {
            let stored = seqs.into_iter().zip(settled).filter(|(_, settled)| *settled == Settled::Stored);
            confirmed.extend(stored.map(|(seq, _)| seq));
        }
        if made < faults && confirmed.len() >= count * (made + 1) / (faults + 1) {
            made += 1;
            fault();
        }
    }
    assert_eq!(made, faults, "every fault was made");
    again.extend(work.within(1, LEASE * 3 / 2).await.iter().map(|delivery| delivery.seq));
    broker.close().await;
    again
}

#[test]
fn what_was_confirmed_stays_so_through_cuts_and_kills() {
    let (count, cuts, kills) = if tool::full() { (60_000, 200, 20) } else { (3_000, 10, 2) };
    let Some(mut server) = Nats::start(Release::New) else { return };
    let proxy = Proxy::to(server.port());
    run_for(Duration::from_secs(900), async {
        let behind = Behind::connect(&server.url()).await;
        fill(&behind, count).await;
        let url = format!("nats://{}", proxy.host());
        let mut random = fastrand::Rng::new();
        let mut cut = || match random.u8(..3) {
            0 => proxy.cut(Cut::Reset),
            // In the middle of a group, so that its first acknowledgements arrive and its last do not, or the other way.
            1 => proxy.cut_after(Toward::Server, random.u64(1..4_000)),
            _ => proxy.cut_after(Toward::Client, random.u64(1..4_000)),
        };
        let again = unsound(&url, count, cuts, &mut cut).await;
        assert!(again.is_empty(), "confirmed, and came again: {again:?}");
        assert!(proxy.counts().cut >= cuts as u64 / 2, "{:?}", proxy.counts());
        behind.api("STREAM.DELETE.ORDERS", serde_json::Value::Null).await;
        fill(&behind, count / 3).await;
        let again = unsound(&url, count / 3, kills, &mut || server.restart()).await;
        assert!(again.is_empty(), "confirmed, and came again after a kill: {again:?}");
    });
}

/// The rule that takes the answer to the last acknowledgement of a group for all of them, and asks nothing else.
#[test]
fn the_naive_rule_fails_the_same_faults() {
    let Some(server) = Nats::start(Release::New) else { return };
    let proxy = Proxy::to(server.port());
    run(async {
        let behind = Behind::connect(&server.url()).await;
        fill(&behind, 4_000).await;
        let consumer = json!({ "stream_name": "ORDERS", "action": "create", "config": {
            "durable_name": "naive", "ack_policy": "explicit", "ack_wait": 1_000_000_000u64, "max_ack_pending": 10_000,
        }});
        behind.api("CONSUMER.CREATE.ORDERS.naive", consumer).await;
        let client = async_nats::connect(proxy.host()).await.expect("reached");
        let inbox = client.new_inbox();
        let mut messages = client.subscribe(inbox.clone()).await.expect("subscribed");
        let mut confirmed = HashSet::new();
        let mut wrong = 0;
        let mut group = Vec::new();
        while wrong == 0 {
            let ask = r#"{"batch":64,"expires":300000000}"#;
            client
                .publish_with_reply("$JS.API.CONSUMER.MSG.NEXT.ORDERS.naive", inbox.clone(), ask.into())
                .await
                .expect("asked");
            let end = tokio::time::Instant::now() + Duration::from_millis(400);
            while group.len() < 64
                && let Ok(Some(message)) = tokio::time::timeout_at(end, messages.next()).await
            {
                let Some(reply) = message.reply.filter(|reply| reply.starts_with("$JS.ACK.")) else { continue };
                let seq: u64 = reply.split('.').nth(5).and_then(|seq| seq.parse().ok()).expect("a sequence");
                wrong += usize::from(confirmed.contains(&seq));
                group.push((seq, reply));
            }
            proxy.cut_after(Toward::Server, fastrand::u64(1..3_500));
            let Some((last, reply)) = group.pop() else { continue };
            for (_, reply) in &group {
                client.publish(reply.clone(), "+ACK".into()).await.expect("sent");
            }
            let answer = client.request(reply, "+ACK".into());
            if matches!(tokio::time::timeout(Duration::from_millis(800), answer).await, Ok(Ok(_))) {
                confirmed.extend(group.iter().map(|(seq, _)| *seq).chain([last]));
            }
            group.clear();
        }
    });
}

#[test]
fn a_server_that_leaves_is_left() {
    let Some(mut cluster) = Cluster::start(Release::New) else { return };
    run(async {
        let (broker, mut work) = invoicing(&cluster.url(), "orders").await;
        let here = |cluster: &Cluster| {
            // It may have left already.
            http::get(cluster.nodes[0].monitor(), "/connz").is_some_and(|(_, page)| page.contains("\"windlass w"))
        };
        assert!(here(&cluster), "the first of the address is the first tried");
        cluster.nodes[0].lame_duck();
        let mut number = 0;
        let mut left = false;
        while !left {
            left = !here(&cluster);
            number += 1;
            while try_publish(&broker, "orders", format!("{number}").into()).await.is_err() {}
            let delivery = work.within(1, SOON * 2).await.pop().expect("it works on");
            // A confirmation that was lost with the connection is no more than a repetition.
            work.settler.settle(vec![delivery.settle(Disposition::Ack)]).await;
        }
        wait::until("it is connected elsewhere", SOON, || broker.connected());
        broker.close().await;
    });
}
