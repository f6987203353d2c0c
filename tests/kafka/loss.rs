//! What could be lost without a word: records that cannot be read, logs that move from under their readers, groups that
//! forget where they were, topics of ours that grow for ever.

use std::time::Duration;

use windlass::broker::{Disposition, Overtaken, Settled, Start};

use super::desk::{Desk, SOON, body, dead, take};
use crate::support::{wait, worker};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mode_18_a_record_that_cannot_be_read_becomes_a_dead_letter_with_its_bytes_and_blocks_nothing() {
    let Some(desk) = Desk::new() else { return };
    let work = format!("{}.work.hello", desk.namespace);
    desk.create(&work, 1, &[]).await;
    desk.produce(&work, 0, &[("ce_windlassrecord", "9"), ("ce_attempt", "3"), ("x", "y")], "from the future").await;
    desk.produce(&work, 0, &[("ce_windlassrecord", "1"), ("ce_attempt", "none")], "torn").await;
    desk.produce(&work, 0, &[], "\"by hand\"").await;
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "broker = \"{}\"\nnamespace = \"{}\"\n[queues.hello]\ntopics = []\njob = \"log\"\n",
        desk.address, desk.namespace
    );
    std::fs::write(dir.path().join("windlass.toml"), config).unwrap();
    let (out, list) = tokio::task::spawn_blocking(move || {
        let out = worker::succeed(dir.path(), &["run", "--burst", "--format", "json"]);
        (out, worker::succeed(dir.path(), &["dlq", "export", "hello"]))
    })
    .await
    .unwrap();
    assert!(out.contains(r#""done":1,"retried":0,"dead":2"#), "{out}");
    let letters: Vec<serde_json::Value> = list.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let future = letters.iter().find(|letter| letter["body"] == "from the future").expect("its bytes are kept");
    assert_eq!((future["reason"].as_str(), future["attempts"].as_u64()), (Some("malformed"), Some(0)));
    assert!(future["error"].as_str().unwrap().contains("version 9"), "{future}");
    assert_eq!((&future["headers"]["ce_attempt"], &future["headers"]["x"]), (&"3".into(), &"y".into()));
    assert!(letters.iter().any(|letter| letter["body"] == "torn"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mode_20_what_retention_removed_is_counted_and_the_rest_runs() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let topic = desk.topic("a");
    desk.create(&topic, 1, &[]).await;
    let broker = desk.connect().await;
    let bodies: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    let batch: Vec<(&str, Option<&str>)> = bodies.iter().map(|body| (body.as_str(), None)).collect();
    desk.publish(&broker, "a", &batch).await;
    let mut opened = broker.open(&queue).await.unwrap();
    let taken = take(&mut opened, 3).await;
    opened.settler.settle(taken.into_iter().map(|d| d.settle(Disposition::Ack)).collect()).await;
    opened.source.stop().await;
    broker.close().await;
    desk.remove(&topic, 0, 8).await;
    let broker = desk.connect().await;
    let mut opened = broker.open(&queue).await.unwrap();
    let left: Vec<String> = take(&mut opened, 2).await.iter().map(body).collect();
    assert_eq!(left, ["8", "9"]);
    let place = format!("{topic}:0, offsets 3 to 7");
    assert_eq!(opened.settler.overtaken(), [Overtaken { place, events: 5 }]);
    assert!(opened.settler.overtaken().is_empty(), "each loss is said once");
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mode_23_a_group_whose_offsets_have_expired_does_not_begin_afresh_unless_it_is_told_to() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("1", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    let delivery = take(&mut opened, 1).await.remove(0);
    opened.settler.settle(vec![delivery.settle(Disposition::Ack)]).await;
    broker.inspect().present(&[(queue.name.clone(), 16)]).await.unwrap();
    opened.source.stop().await;
    broker.close().await;
    let admin: rdkafka::admin::AdminClient<_> = desk.client().create().unwrap();
    let group = format!("{}.q", desk.namespace);
    wait::until_async("the group is empty", SOON, async || {
        let deleted = admin.delete_groups(&[&group], &rdkafka::admin::AdminOptions::new()).await.unwrap();
        deleted.into_iter().all(|result| result.is_ok())
    })
    .await;
    let broker = desk.connect().await;
    let refused = broker.open(&queue).await.err().expect("it has lost its place").to_string();
    assert!(refused.contains("--from") && refused.contains(&desk.topic("a")), "{refused}");
    broker.close().await;
    desk.kafka.from = Some(Start::Earliest);
    let broker = desk.connect().await;
    let mut opened = broker.open(&queue).await.unwrap();
    assert_eq!(body(&take(&mut opened, 1).await[0]), "1");
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_of_ours_are_trimmed_and_a_mark_goes_when_the_log_has_passed_its_letter() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    desk.kafka.partitions = Some(1);
    let dlq = format!("dlq.{}.q", desk.namespace);
    desk.create(&dlq, 1, &[("segment.bytes", "1048576"), ("retention.ms", "-1")]).await;
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("1", None), ("2", None), ("3", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    for delivery in take(&mut opened, 3).await {
        assert_eq!(opened.settler.settle(vec![delivery.settle(dead())]).await, [Settled::Stored]);
    }
    let letters = async |broker: &std::sync::Arc<dyn windlass::broker::Broker>| {
        use futures_util::StreamExt as _;
        let query = windlass::broker::LetterQuery { oldest_first: true, ..Default::default() };
        broker.dead_letters().list(query).map(|letter| letter.unwrap()).collect::<Vec<_>>().await
    };
    let all = letters(&broker).await;
    assert_eq!(all.len(), 3);
    // The second is purged: the first holds the log, so the mark stays.
    broker.dead_letters().purge(&all[1..2]).await.remove(0).unwrap();
    broker.inspect().expire_dead().await.unwrap();
    let low = |topic: &str| desk.bounds(topic, 0).unwrap().0;
    assert_eq!(low(&dlq), 0);
    assert_eq!(letters(&broker).await.len(), 2);
    // The first is replayed: both are passed, and no mark is needed to keep them from coming back.
    broker.dead_letters().replay(&all[..1], &Default::default()).await.remove(0).unwrap();
    broker.inspect().expire_dead().await.unwrap();
    assert!(low(&dlq) >= 2, "what is gone from the beginning on is removed");
    let left = letters(&broker).await;
    assert_eq!(left.iter().map(|letter| &letter.id).collect::<Vec<_>>(), [&all[2].id]);
    // Jobs of ours that have run are removed too.
    let work = format!("{}.work.q", desk.namespace);
    let delivery = take(&mut opened, 1).await.remove(0);
    opened.settler.settle(vec![delivery.settle(Disposition::Ack)]).await;
    wait::until_async("the work topic is trimmed", SOON, async || {
        broker.inspect().expire_dead().await.unwrap();
        low(&work) > 0
    })
    .await;
    tokio::time::timeout(Duration::from_secs(60), broker.close()).await.unwrap();
}
