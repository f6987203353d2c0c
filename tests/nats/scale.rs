//! Many workers, and many jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use windlass::broker::{self, Broker, Destination, Disposition, NatsOptions, Options, Publication, Settled};
use windlass::message::Message;
use windlass::time::Clock;

use super::kit::{Behind, LEASE, connect, open, options, publish, queue, run_for};
use super::security::permissions;
use crate::support::nats::{Nats, Release};
use crate::support::tool;

/// Bytes of memory that this process has.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux says so");
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages");
    pages * 4_096
}

#[test]
fn four_workers_share_a_queue() {
    let Some(server) = Nats::start(Release::New) else { return };
    let events = if tool::full() { 20_000 } else { 1_600 };
    run_for(Duration::from_secs(300), async {
        let mut invoice = queue("invoice", &["orders"]);
        invoice.slots = 8.try_into().expect("not 0");
        let mut brokers: Vec<Arc<dyn Broker>> = Vec::new();
        for _ in 0..4 {
            brokers.push(connect(&server.url(), std::slice::from_ref(&invoice)).await);
        }
        open(&brokers[0], &invoice).await.source.stop().await;
        let bodies = vec!["{}"; events];
        for chunk in bodies.chunks(400) {
            let publishing = chunk.iter().map(|body| publish(&brokers[0], "orders", std::slice::from_ref(body)));
            futures_util::future::join_all(publishing).await;
        }
        let left = Arc::new(AtomicUsize::new(events));
        let workers = brokers.iter().map(|broker| {
            let (broker, invoice, left) = (broker.clone(), invoice.clone(), left.clone());
            tokio::spawn(async move {
                let mut work = open(&broker, &invoice).await;
                let mut done = 0;
                while left.load(Ordering::Relaxed) > 0 {
                    let deliveries = work.within(8, Duration::from_millis(20)).await;
                    // As long for each worker, whatever the machine does besides.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    done += deliveries.len();
                    left.fetch_sub(deliveries.len(), Ordering::Relaxed);
                    let batch = deliveries.into_iter().map(|delivery| delivery.settle(Disposition::Ack)).collect();
                    drop(work.settler.settle(batch));
                }
                broker.close().await;
                done
            })
        });
        let done: Vec<usize> = futures_util::future::join_all(workers).await.into_iter().map(|d| d.unwrap()).collect();
        assert_eq!(done.iter().sum::<usize>(), events);
        let quarter = events / 4;
        let fair = done.iter().all(|&done| done.abs_diff(quarter) * 100 <= quarter * 15);
        assert!(fair, "each within 15 % of {quarter}: {done:?}");
    });
}

/// More than the client keeps for a subscription by default: what does not fit there it drops without a word to whoever
/// reads, and it comes again only after its lease.
#[test]
fn as_many_as_there_are_slots_come_at_once() {
    const EVENTS: usize = 80_000;
    let Some(server) = Nats::start(Release::New) else { return };
    run_for(Duration::from_secs(300), async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ORDERS", "orders", "limits").await;
        for _ in 0..EVENTS {
            behind.0.publish("orders", "{}".into()).await.expect("published");
        }
        behind.0.flush().await.expect("sent");
        while behind.api("STREAM.INFO.ORDERS", serde_json::Value::Null).await["state"]["messages"] != EVENTS {}
        let mut invoice = queue("invoice", &["orders"]);
        invoice.slots = EVENTS.try_into().expect("not 0");
        let options =
            Options { lease: Duration::from_secs(200), ..options(NatsOptions::default(), &[invoice.clone()]) };
        let broker = broker::connect(&server.url(), options).await.expect("the server can be reached");
        let mut work = open(&broker, &invoice).await;
        let deliveries = work.within(EVENTS, Duration::from_secs(150)).await;
        assert_eq!(deliveries.len(), EVENTS, "before the lease of any has ended");
        assert!(deliveries.iter().all(|delivery| !delivery.redelivered));
        let batch = deliveries.into_iter().map(|delivery| delivery.settle(Disposition::Ack)).collect();
        assert!(work.settler.settle(batch).await.iter().all(|settled| *settled == Settled::Stored));
        broker.close().await;
    });
}

/// Stores so many jobs for later, waits until the worker has seen what that costs it, and says what it grew by.
fn delayed(batches: u32) {
    let config = format!("authorization {{ users: [ {{ user: a, password: a, {} }} ] }}", permissions());
    let Some(server) = Nats::with(Release::New, &config) else { return };
    run_for(Duration::from_secs(1_500), async {
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&format!("nats://a:a@{}", server.host()), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        let publisher = broker.publisher();
        let later = Clock::System.now().after(Duration::from_secs(3_600));
        let before = resident();
        let mut storing = futures_util::stream::iter(0..batches)
            .map(|batch| {
                let publications = (0..1_000u32).map(|number| Publication {
                    destination: Destination::Queue { queue: invoice.name.clone(), job: None, not_before: Some(later) },
                    message: Message { body: Some("{}".into()), ..Message::default() },
                    id: format!("{batch}-{number}"),
                    allow_unheard: false,
                });
                publisher.publish(publications.collect())
            })
            .buffer_unordered(2);
        while let Some(stored) = storing.next().await {
            assert!(stored.iter().all(Result::is_ok), "{:?}", stored.into_iter().find(Result::is_err));
        }
        drop(storing);
        assert!(work.within(1, LEASE).await.is_empty(), "none is due");
        let asked = std::time::Instant::now();
        let status = broker.inspect().status(&[]).await.expect("a status").remove(0);
        let answered = asked.elapsed();
        let scheduled = u64::from(batches) * 1_000;
        assert_eq!((status.scheduled, status.ready, status.running), (Some(scheduled), Some(0), Some(0)), "{status:?}");
        assert_eq!((status.retrying, status.dead), (Some(0), Some(0)), "{status:?}");
        publish(&broker, "orders", &["now"]).await;
        let delivery = work.one().await;
        work.stored(delivery, Disposition::Ack).await;
        assert_eq!(work.settler.trouble(), None);
        let grown = resident().saturating_sub(before);
        eprintln!("{scheduled} delayed: {} KiB more, the status took {answered:?}", grown >> 10);
        assert!(grown < 64 << 20, "{} MiB more", grown >> 20);
        broker.close().await;
    });
}

/// More than a server counts by listing them.
#[test]
fn many_delayed_jobs_are_counted() {
    delayed(11);
}

#[test]
fn a_million_delayed_jobs_cost_a_worker_nothing() {
    if tool::full() {
        delayed(1_000);
    }
}
