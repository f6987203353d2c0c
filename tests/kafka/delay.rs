//! The delay lane end to end: by its tiers, never early, over the lives of workers, and past what nobody can run.

use std::time::Duration;

use windlass::broker::{Disposition, Settled};
use windlass::message::record::{Record, write};
use windlass::message::{Attempt, Binding, Failure, Headers};
use windlass::time::Clock;

use super::desk::{Desk, SOON, body, nothing_within, take};
use crate::support::wait;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mode_14_and_16_a_long_retry_passes_the_tiers_is_never_early_and_outlives_its_workers() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("later", Some("k")), ("sooner", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    let begun = Clock::System.now();
    let due = |seconds| begun.after(Duration::from_secs(seconds));
    let retries = take(&mut opened, 2).await.into_iter().map(|delivery| {
        let at = due(if body(&delivery) == "later" { 3_400 } else { 300 });
        let failure = Some(Failure::new("E", "no", begun, begun));
        let attempt = Attempt::new(2).unwrap();
        delivery.settle(Disposition::Retry { at, attempt, failure, unroutable_since: None })
    });
    assert_eq!(opened.settler.settle(retries.collect()).await, [Settled::Stored, Settled::Stored]);
    broker.close().await;

    // Each worker lives for one hop; their clocks are ahead of each other's.
    let looker = desk.again();
    let held = |tier: &str| {
        let topic = format!("{}.delay.{tier}", looker.namespace);
        (0..4).filter_map(|number| looker.bounds(&topic, number)).map(|(_, high)| high).sum::<i64>()
    };
    assert!(held("32m") > 0 && held("4m") > 0, "each waits in the largest tier that is not longer than it waits");
    let mut desk = desk.again();
    let queue = desk.queue("q", &["a"]);
    desk.ahead = Duration::from_secs(297);
    let broker = desk.connect().await;
    let mut opened = broker.open(&queue).await.unwrap();
    let delivery = take(&mut opened, 1).await.remove(0);
    assert!(desk.clock().now() >= due(300), "never early");
    assert_eq!((body(&delivery), delivery.attempt().get()), ("sooner".to_owned(), 2), "it passed what is due later");
    opened.settler.settle(vec![delivery.settle(Disposition::Ack)]).await;
    broker.close().await;

    desk.ahead = Duration::from_secs(2_850);
    let broker = desk.connect().await;
    let mut opened = broker.open(&queue).await.unwrap();
    wait::until_async("it hops", SOON, async || held("8m") > 0).await;
    assert!(nothing_within(&mut opened, Duration::from_millis(300)).await, "never early");
    broker.close().await;

    desk.ahead = Duration::from_secs(3_397);
    let broker = desk.connect().await;
    let mut opened = broker.open(&queue).await.unwrap();
    let delivery = take(&mut opened, 1).await.remove(0);
    assert!(desk.clock().now() >= due(3_400), "never early");
    assert_eq!((body(&delivery), delivery.attempt().get()), ("later".to_owned(), 2));
    assert_eq!(delivery.message.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(delivery.origin().to_string().split(':').nth(1), Some(&*format!("{}.work.q", desk.namespace)));
    let origin = delivery.record.as_ref().and_then(|record| record.origin.clone()).unwrap();
    assert!(origin.starts_with(&format!("kafka:{}:", desk.topic("a"))), "{origin}");
    opened.settler.settle(vec![delivery.settle(Disposition::Ack)]).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_names_no_queue_in_the_delay_lane_is_kept_and_blocks_nothing() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &[]);
    let (tier, kept) = (format!("{}.delay.500ms", desk.namespace), format!("dlq.{}._delay", desk.namespace));
    desk.create(&tier, 1, &[]).await;
    desk.produce(&tier, 0, &[("whose", "nobody's")], "stray").await;
    let headers = write(&Headers::new(), &Record::default(), None, Binding::Kafka);
    let mut headers: Vec<(&str, &str)> =
        headers.iter().map(|(name, value)| (name, std::str::from_utf8(value).unwrap())).collect();
    headers.push(("retry_topic-windlass-queue", "q"));
    desk.produce(&tier, 0, &headers, "1").await;
    // One that names its queue and cannot be read otherwise goes there: its reader judges it.
    desk.produce(&tier, 0, &[("retry_topic-windlass-queue", "q"), ("ce_windlassrecord", "9")], "2").await;
    let broker = desk.connect().await;
    let mut opened = broker.open(&queue).await.unwrap();
    let mut came: Vec<(String, bool)> =
        take(&mut opened, 2).await.iter().map(|d| (body(d), d.unreadable.is_some())).collect();
    came.sort();
    assert_eq!(came, [("1".to_owned(), false), ("2".to_owned(), true)]);
    let stored = (0..4).filter_map(|number| desk.bounds(&kept, number)).filter(|(low, high)| high > low).count();
    assert_eq!(stored, 1, "the stray one is kept");
    broker.close().await;
}
