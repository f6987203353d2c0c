//! The thin path: publish, receive, settle.

use super::*;

#[tokio::test]
async fn what_is_published_is_handed_over_once_and_ends_with_its_ack() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let invoice = queue("invoice", &["reports"]);
    let (broker, mut opened) = worker(&path, &invoice).await;
    publish(&broker, "reports", &["a", "b", "c"]).await;
    let got = receive(&mut opened, 2).await;
    assert_eq!(bodies(&got), ["a", "b"]);
    assert_eq!(got[0].origin().event_id(), "sqlite:reports:1");
    assert_eq!(got[0].message.headers.get("ce-id"), Some(&b"a"[..]));
    let more = receive(&mut opened, 2).await;
    assert_eq!(bodies(&more), ["c"]);
    let all = got.into_iter().chain(more).map(|delivery| delivery.settle(Disposition::Ack)).collect();
    assert_eq!(opened.settler.settle(all).await, vec![Settled::Stored; 3]);
    assert!(nothing(&mut opened).await);
    broker.close().await;
}

#[tokio::test]
async fn each_queue_of_a_topic_gets_each_event_and_a_restart_loses_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (one, two) = (queue("one", &["t"]), queue("two", &["t"]));
    let producer = connect(&path, options(Role::Producer, &[one.clone(), two.clone()])).await;
    let published = producer.publisher().publish(vec![to_topic("t", "x")]).await;
    assert_eq!(published[0].as_ref().expect("stored").queues, Some(2));
    producer.close().await;
    for queue in [one, two] {
        let (broker, mut opened) = worker(&path, &queue).await;
        let got = receive(&mut opened, 9).await;
        assert_eq!(bodies(&got), ["x"]);
        for delivery in got {
            opened.settler.settle(vec![delivery.settle(Disposition::Ack)]).await;
        }
        broker.close().await;
    }
}

#[tokio::test]
async fn a_retry_comes_again_when_it_is_due_with_its_record_and_a_release_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (broker, mut opened) = worker(&path, &queue("q", &["t"])).await;
    publish(&broker, "t", &["a"]).await;
    let now = Clock::System.now();
    let first = receive(&mut opened, 1).await.pop().expect("one");
    let failure = Failure::new("kind", "text", now, now);
    let at = now.after(Duration::from_millis(120));
    let retry = Disposition::Retry {
        at,
        attempt: Attempt::new(2).expect("not 0"),
        failure: Some(failure.clone()),
        unroutable_since: None,
    };
    assert_eq!(opened.settler.settle(vec![first.settle(retry)]).await, [Settled::Stored]);
    let second = receive(&mut opened, 1).await.pop().expect("one");
    assert!(Clock::System.now() >= at);
    assert_eq!(second.attempt().get(), 2);
    assert_eq!(second.lane(), crate::broker::Lane::Retry);
    assert_eq!(second.record.as_ref().and_then(|record| record.failure.clone()), Some(failure));
    assert_eq!(second.origin().event_id(), "sqlite:t:1");
    drop(second);
    let third = receive(&mut opened, 1).await.pop().expect("released at once");
    assert_eq!(third.attempt().get(), 2);
    let dead = Disposition::DeadLetter {
        reason: Reason::Permanent,
        failure: Failure::new("kind", "no", now, Timestamp::from_millis(7)),
        attempts: 2,
        event_id: Some("a".into()),
        job: JobName::new("job").expect("a name"),
    };
    assert_eq!(opened.settler.settle(vec![third.settle(dead)]).await, [Settled::Stored]);
    assert!(nothing(&mut opened).await);
    broker.close().await;
}

#[tokio::test]
async fn what_is_enqueued_for_later_waits_and_names_its_job() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (broker, mut opened) = worker(&path, &queue("q", &[])).await;
    let due = Clock::System.now().after(Duration::from_millis(100));
    let enqueued = Publication {
        destination: Destination::Queue {
            queue: QueueName::new("q").expect("a name"),
            job: Some(JobName::new("other").expect("a name")),
            not_before: Some(due),
        },
        ..to_topic("t", "x")
    };
    broker.publisher().publish(vec![enqueued]).await.pop().expect("one").expect("stored");
    let got = receive(&mut opened, 1).await.pop().expect("one");
    assert!(Clock::System.now() >= due);
    assert_eq!(got.record.as_ref().and_then(|record| record.job.clone()).expect("a job").as_str(), "other");
    assert_eq!(got.origin().place.topic, None);
    broker.close().await;
}

#[tokio::test]
async fn an_unheard_topic_is_rejected_with_the_nearest() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let producer = connect(&path, options(Role::Producer, &[queue("q", &["reports.finalized"])])).await;
    let mut unheard = to_topic("reports.finalised", "x");
    let error = producer.publisher().publish(vec![unheard.clone()]).await.pop().expect("one").expect_err("unheard");
    assert!(error.to_string().contains("reports.finalized") && error.exit_code() == 1, "{error}");
    unheard.allow_unheard = true;
    let published = producer.publisher().publish(vec![unheard]).await.pop().expect("one").expect("allowed");
    assert_eq!(published.queues, Some(0));
}
