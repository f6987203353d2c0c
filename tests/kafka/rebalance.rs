//! Partitions come and go: what is in hand finishes where it runs, and nothing runs twice.

use std::collections::BTreeMap;
use std::time::Duration;

use windlass::broker::{Disposition, Settled};

use super::desk::{Desk, body, credit, take};
use crate::support::wait;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_worker_gets_its_share_of_what_a_queue_hears() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let topic = desk.topic("a");
    desk.create(&topic, 4, &[]).await;
    let mut workers = Vec::new();
    for shares in [vec![4], vec![2, 2], vec![1, 1, 2]] {
        let broker = desk.connect().await;
        let opened = broker.open(&queue).await.unwrap();
        workers.push((broker, opened));
        wait::until_async("it is shared out", super::desk::SOON, async || {
            desk.shares("q", |name| name == topic) == shares
        })
        .await;
    }
    for (broker, _) in workers {
        broker.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_join_and_leave_run_nothing_twice() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let first = desk.connect().await;
    let bodies: Vec<String> = (0..240).map(|number| number.to_string()).collect();
    let batch: Vec<(&str, Option<&str>)> = bodies.iter().map(|body| (body.as_str(), None)).collect();
    desk.publish(&first, "a", &batch).await;
    let runs = std::sync::Arc::new(std::sync::Mutex::new(BTreeMap::<String, u32>::new()));
    let stop = tokio_util::sync::CancellationToken::new();
    let work = |broker: std::sync::Arc<dyn windlass::broker::Broker>, stop: tokio_util::sync::CancellationToken| {
        let (queue, runs) = (queue.clone(), runs.clone());
        tokio::spawn(async move {
            let mut opened = broker.open(&queue).await.unwrap();
            let mut got_any = false;
            loop {
                let got = tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    got = opened.source.receive(credit(4)) => got.unwrap(),
                };
                got_any |= !got.is_empty();
                for delivery in &got {
                    *runs.lock().unwrap().entry(body(delivery)).or_default() += 1;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                let settled = opened.settler.settle(got.into_iter().map(|d| d.settle(Disposition::Ack)).collect());
                assert!(settled.await.iter().all(|one| *one == Settled::Stored));
            }
            opened.source.stop().await;
            broker.close().await;
            got_any
        })
    };
    let one = work(first, stop.clone());
    wait::until_async("the first works", super::desk::SOON, async || runs.lock().unwrap().len() > 20).await;
    let leave = tokio_util::sync::CancellationToken::new();
    let two = work(desk.connect().await, leave.clone());
    let before = runs.lock().unwrap().len();
    wait::until_async("both work", super::desk::SOON, async || runs.lock().unwrap().len() > before + 100).await;
    leave.cancel();
    assert!(two.await.unwrap(), "the second had its share");
    wait::until_async("all ran", super::desk::SOON, async || runs.lock().unwrap().len() == 240).await;
    stop.cancel();
    one.await.unwrap();
    let twice: Vec<_> = runs.lock().unwrap().iter().filter(|(_, runs)| **runs > 1).map(|(id, _)| id.clone()).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[tokio::test]
async fn mode_4_and_5_a_settlement_after_the_partition_went_changes_nothing() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let first = desk.connect().await;
    desk.publish(&first, "a", &[("x", None), ("y", None)]).await;
    let mut opened = first.open(&queue).await.unwrap();
    let taken = take(&mut opened, 2).await;
    // The worker leaves without having settled: what it says later is nobody's.
    first.close().await;
    let settled = opened.settler.settle(taken.into_iter().map(|d| d.settle(Disposition::Ack)).collect()).await;
    assert!(settled.iter().all(|one| *one != Settled::Stored), "{settled:?}");
    let second = desk.connect().await;
    let mut opened = second.open(&queue).await.unwrap();
    let mut again: Vec<String> = take(&mut opened, 2).await.iter().map(body).collect();
    again.sort();
    assert_eq!(again, ["x", "y"]);
    second.close().await;
}
