//! Status, queues, forgetting, doctor, presence; and that files give space back.

use super::*;
use crate::broker::Severity;

#[tokio::test]
async fn status_counts_what_is_where() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let (broker, mut opened) = worker(&path, &q).await;
    publish(&broker, "t", &["a", "b", "c", "d", "e"]).await;
    let in_an_hour = Clock::System.now().after(Duration::from_secs(3_600));
    for not_before in [None, Some(in_an_hour)] {
        let destination = Destination::Queue { queue: q.name.clone(), job: None, not_before };
        let publication = Publication { destination, ..to_topic("t", "x") };
        broker.publisher().publish(vec![publication]).await.pop().expect("one").expect("stored");
    }
    let floor = Credit { retry_floor: 0, ..credit(3) };
    let mut got = opened.source.receive(floor).await.expect("works");
    settle(&opened, vec![got.remove(0)], &retry_at(in_an_hour, 2)).await;
    settle(&opened, vec![got.remove(0)], &dead(Reason::Permanent, "b")).await;
    let status = broker.inspect().status(&[]).await.expect("a status").pop().expect("one");
    assert_eq!(
        (status.ready, status.running, status.retrying, status.scheduled, status.dead),
        (Some(3), Some(1), Some(1), Some(1), Some(1))
    );
    assert_eq!(status.retry_due, Some(in_an_hour));
    assert_eq!((status.workers, status.slots), (Some(1), Some(8)));
    broker.inspect().present(&[(q.name.clone(), 5)]).await.expect("stored");
    let reader = connect(&path, options(Role::Reader, &[])).await;
    let status = reader.inspect().status(std::slice::from_ref(&q.name)).await.expect("a status");
    assert_eq!(status[0].slots, Some(5));
    let unknown = reader.inspect().status(&[QueueName::new("qq").expect("a name")]).await.expect_err("unknown");
    assert_eq!(unknown.exit_code(), 1);
    assert!(unknown.to_string().contains("nearest is q"), "{unknown}");
    let known = reader.inspect().queues().await.expect("known");
    assert_eq!((known[0].topics.clone(), known[0].workers), (vec!["t".to_owned()], Some(1)));
    drop(got);
    broker.close().await;
    let status = reader.inspect().status(&[]).await.expect("a status");
    assert_eq!((status[0].workers, status[0].running, status[0].ready), (Some(0), Some(0), Some(4)));
}

#[tokio::test]
async fn a_queue_is_forgotten_only_without_workers_and_jobs() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (q, other) = (queue("q", &["t"]), queue("other", &["t"]));
    let (broker, opened) = worker(&path, &q).await;
    let reader = connect(&path, options(Role::Producer, std::slice::from_ref(&other))).await;
    publish(&reader, "t", &["a"]).await;
    let worked = reader.inspect().forget(&q.name, true).await.expect_err("a worker is there");
    assert!(worked.to_string().contains("worker"), "{worked}");
    drop(opened);
    broker.close().await;
    let full = reader.inspect().forget(&q.name, false).await.expect_err("a job is there");
    assert_eq!(full.exit_code(), 1);
    assert_eq!(reader.inspect().forget(&q.name, true).await.expect("forgotten"), 1);
    let published = reader.publisher().publish(vec![to_topic("t", "b")]).await.pop().expect("one").expect("stored");
    assert_eq!(published.queues, Some(1));
    assert_eq!(reader.inspect().queues().await.expect("known").len(), 1);
    assert_eq!(beside(&path, "SELECT count(*) FROM event").await, 2);
    // It is known again as soon as somebody names it again.
    connect(&path, options(Role::Producer, std::slice::from_ref(&q))).await.close().await;
    assert_eq!(reader.inspect().queues().await.expect("known").len(), 2);
}

#[tokio::test]
async fn doctor_finds_what_nobody_works_and_what_is_kept_weakly() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let producer = connect(&path, options(Role::Producer, &[queue("q", &["t"])])).await;
    publish(&producer, "t", &["a"]).await;
    let findings = producer.inspect().doctor().await.expect("examined");
    let has = |severity, part: &str| findings.iter().any(|f| f.severity == severity && f.finding.contains(part));
    assert!(has(Severity::Warn, "1 job(s) wait and no worker"), "{findings:?}");
    assert!(has(Severity::Warn, "synchronous"), "{findings:?}");
    assert!(!findings.iter().any(|f| f.severity == Severity::Error && f.finding.contains("damaged")), "{findings:?}");
}

#[tokio::test]
async fn the_file_gives_space_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (broker, mut opened) = worker(&path, &queue("q", &["t"])).await;
    let body = "x".repeat(64 << 10);
    publish(&broker, "t", &vec![body.as_str(); 200]).await;
    let mut done = 0;
    while done < 200 {
        let got = receive(&mut opened, 64).await;
        done += got.len();
        settle(&opened, got, &Disposition::Ack).await;
    }
    let size = || {
        let path = path.clone();
        async move { std::fs::metadata(&path).map_or(u64::MAX, |meta| meta.len()) < 4 << 20 }
    };
    until("the file has shrunk", size).await;
    broker.close().await;
}

#[tokio::test]
async fn a_producer_with_an_older_file_takes_no_topic_away_and_a_worker_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    connect(&path, options(Role::Worker, &[queue("q", &["t", "u"])])).await.close().await;
    let producer = connect(&path, options(Role::Producer, &[queue("q", &["t"])])).await;
    publish(&producer, "u", &["a"]).await;
    connect(&path, options(Role::Worker, &[queue("q", &["t"])])).await.close().await;
    let result = producer.publisher().publish(vec![to_topic("u", "b")]).await.pop().expect("one");
    assert_eq!(result.expect_err("nobody hears it").exit_code(), 1);
}
