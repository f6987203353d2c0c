//! The broker goes away and comes back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use windlass::broker::{Broker, Destination, Disposition, Opened, Publication, Settled};
use windlass::message::{Message, Topic};

use super::desk::{Desk, body, credit, take};
use crate::support::kafka::Kafka;
use crate::support::{tool, wait};

#[tokio::test]
async fn what_was_read_ahead_is_handed_out_after_a_restart() {
    let Some(mut kafka) = Kafka::start() else { return };
    let mut desk = Desk::at(kafka.url());
    let queue = desk.queue("q", &["a"]);
    let broker = desk.connect().await;
    let bodies: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let batch: Vec<(&str, Option<&str>)> = bodies.iter().map(|body| (body.as_str(), None)).collect();
    desk.publish(&broker, "a", &batch).await;
    let mut opened = broker.open(&queue).await.unwrap();
    let mut taken = take(&mut opened, 20).await;
    let in_hand = taken.split_off(10);
    let mut done: BTreeSet<String> = taken.iter().map(body).collect();
    opened.settler.settle(taken.into_iter().map(|d| d.settle(Disposition::Ack)).collect()).await;
    kafka.nodes[0].restart();
    done.extend(in_hand.iter().map(body));
    let answers = opened.settler.settle(in_hand.into_iter().map(|d| d.settle(Disposition::Ack)).collect()).await;
    tracing::info!(?answers, "settled what was in hand");
    while done.len() < 40 {
        let got = take(&mut opened, 1).await;
        done.extend(got.iter().map(body));
        opened.settler.settle(got.into_iter().map(|d| d.settle(Disposition::Ack)).collect()).await;
    }
    broker.close().await;
}

/// What was published and confirmed, and what was settled and confirmed; and what came again after that.
#[derive(Default)]
struct Ledger {
    published: BTreeSet<String>,
    ran: BTreeSet<String>,
    delivered: u32,
    stored: BTreeSet<String>,
    wrong: Vec<String>,
}

type Shared = Arc<Mutex<Ledger>>;

/// Works everything off, for as long as it may.
async fn work(mut opened: Opened, ledger: Shared) {
    loop {
        for delivery in opened.source.receive(credit(64)).await.unwrap() {
            let (name, ledger) = (body(&delivery), ledger.clone());
            {
                let mut ledger = ledger.lock();
                ledger.delivered += 1;
                ledger.ran.insert(name.clone());
                if ledger.stored.contains(&name) {
                    ledger.wrong.push(name.clone());
                }
            }
            let settling = opened.settler.settle(vec![delivery.settle(Disposition::Ack)]);
            tokio::spawn(async move {
                if settling.await == [Settled::Stored] {
                    ledger.lock().stored.insert(name);
                }
            });
        }
    }
}

/// Publishes one after the other until it is told to stop; what cannot be confirmed may be there or not.
async fn publish(broker: Arc<dyn Broker>, topic: Topic, ledger: Shared, until: Instant) {
    let publisher = broker.publisher();
    for number in 0.. {
        if Instant::now() >= until {
            return;
        }
        let batch = (0..4).map(|part| format!("{number}-{part}")).map(|name| Publication {
            destination: Destination::Topic(topic.clone()),
            message: Message { body: Some(Bytes::from(name.clone())), ..Message::default() },
            id: name,
            allow_unheard: true,
        });
        let batch: Vec<Publication> = batch.collect();
        let names: Vec<String> = batch.iter().map(|one| one.id.clone()).collect();
        let answers = publisher.publish(batch).await;
        let confirmed = names.into_iter().zip(answers).filter(|(_, answer)| answer.is_ok()).map(|(name, _)| name);
        ledger.lock().published.extend(confirmed);
        // The load: four each time.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Two of three brokers, each a controller too, stand still for 20 s: nothing can be elected, nor stored everywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_without_majority_loses_nothing_and_what_was_stored_never_comes_again() {
    if !tool::full() {
        return;
    }
    let started = tokio::task::spawn_blocking(|| Kafka::with(3, "")).await.unwrap();
    let Some(mut kafka) = started else { return };
    let mut desk = Desk::at(kafka.url());
    let queue = desk.queue("q", &["a"]);
    let ledger = Shared::default();
    let mut workers = Vec::new();
    for _ in 0..2 {
        let broker = desk.connect().await;
        let opened = broker.open(&queue).await.unwrap();
        workers.push((broker, tokio::spawn(work(opened, ledger.clone()))));
    }
    let until = Instant::now() + Duration::from_secs(50);
    let publishing = tokio::spawn(publish(workers[0].0.clone(), queue.topics[0].clone(), ledger.clone(), until));
    let some = Duration::from_secs(60);
    wait::until_async("it goes", some, async || ledger.lock().stored.len() > 200).await;
    kafka.nodes[1..].iter_mut().for_each(|node| node.process().freeze());
    let (frozen, before) = (Instant::now(), ledger.lock().stored.len());
    wait::until_async("it is time", some, async || frozen.elapsed() >= Duration::from_secs(20)).await;
    let during = ledger.lock().stored.len() - before;
    kafka.nodes[1..].iter_mut().for_each(|node| node.process().thaw());
    wait::until_async("it goes on", some, async || ledger.lock().stored.len() > before + during + 200).await;
    publishing.await.unwrap();
    wait::until_async("all that was confirmed has run", some * 2, async || {
        let ledger = ledger.lock();
        ledger.published.is_subset(&ledger.ran)
    })
    .await;
    {
        let ledger = ledger.lock();
        let [published, ran, stored] = [&ledger.published, &ledger.ran, &ledger.stored].map(BTreeSet::len);
        let again = ledger.delivered as usize - ran;
        eprintln!("{published} confirmed, {ran} ran, {stored} of them stored, {during} meanwhile; {again} came again");
        assert_eq!(ledger.wrong, Vec::<String>::new(), "these had been stored");
    }
    for (broker, working) in workers {
        working.abort();
        broker.close().await;
    }
}
