//! The path of a record: assigned, received, settled, committed.

use std::time::Duration;

use windlass::broker::{Disposition, Settled};

use super::desk::{Desk, body, nothing_within, take};

#[tokio::test]
async fn what_was_acknowledged_is_gone_and_what_was_not_comes_back() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let broker = desk.connect().await;
    let bodies: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let batch: Vec<(&str, Option<&str>)> = bodies.iter().map(|body| (body.as_str(), None)).collect();
    desk.publish(&broker, "a", &batch).await;
    let mut opened = broker.open(&queue).await.unwrap();
    let taken = take(&mut opened, 20).await;
    let (odd, even): (Vec<_>, Vec<_>) = taken.into_iter().partition(|d| body(d).parse::<u32>().unwrap() % 2 == 1);
    let settled = opened.settler.settle(odd.into_iter().map(|d| d.settle(Disposition::Ack)).collect()).await;
    assert!(settled.iter().all(|one| *one == Settled::Stored), "{settled:?}");
    drop(even);
    opened.source.stop().await;
    broker.close().await;

    let again = desk.connect().await;
    let mut opened = again.open(&queue).await.unwrap();
    let taken = take(&mut opened, 10).await;
    let mut left: Vec<u32> = taken.iter().map(|d| body(d).parse().unwrap()).collect();
    left.sort_unstable();
    assert_eq!(left, (0..20).filter(|number| number % 2 == 0).collect::<Vec<u32>>(), "nothing runs twice");
    assert!(nothing_within(&mut opened, Duration::from_millis(300)).await);
    drop(taken);
    again.close().await;
}
