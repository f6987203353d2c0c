//! What `status`, `queues`, `forget` and `doctor` say.

use std::time::Duration;

use windlass::broker::{Destination, Disposition, Publication};
use windlass::message::{Attempt, Failure, JobName, Message, Reason};
use windlass::time::Clock;

use super::desk::{Desk, nothing_within, take};

#[tokio::test]
async fn status_counts_what_is_left() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("1", None), ("2", None), ("3", None), ("4", None), ("5", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    broker.inspect().present(&[(queue.name.clone(), 16)]).await.unwrap();
    let mut taken = take(&mut opened, 3).await;
    let now = Clock::System.now();
    let failure = Failure::new("E", "no", now, now);
    let dead = Disposition::DeadLetter {
        reason: Reason::Permanent,
        failure: failure.clone(),
        attempts: 1,
        event_id: None,
        job: JobName::new("q").unwrap(),
    };
    let again = Disposition::Retry {
        at: now.after(Duration::from_secs(20)),
        attempt: Attempt::new(2).unwrap(),
        failure: Some(failure),
        unroutable_since: None,
    };
    let batch =
        vec![taken.remove(0).settle(Disposition::Ack), taken.remove(0).settle(dead), taken.remove(0).settle(again)];
    opened.settler.settle(batch).await;
    let later = Publication {
        destination: Destination::Queue {
            queue: queue.name.clone(),
            job: None,
            not_before: Some(now.after(Duration::from_secs(600))),
        },
        message: Message { body: Some("{}".into()), ..Message::default() },
        id: "later".to_owned(),
        allow_unheard: false,
    };
    broker.publisher().publish(vec![later]).await.remove(0).unwrap();
    opened.source.stop().await;
    let inspect = broker.inspect();
    let status = inspect.status(std::slice::from_ref(&queue.name)).await.unwrap().remove(0);
    assert_eq!(
        (status.ready, status.retrying, status.scheduled, status.dead, status.workers, status.slots),
        (Some(2), Some(1), Some(1), Some(1), Some(1), Some(16)),
        "{status:?}"
    );
    assert!(status.retry_due.is_some() && status.oldest_age.unwrap() < Duration::from_secs(60));
    let known = inspect.queues().await.unwrap();
    assert_eq!((known.len(), &known[0].topics), (1, &vec![desk.topic("a")]));
    let refused = inspect.forget(&queue.name, true).await;
    assert!(refused.is_err(), "a worker is attached");
    let doctor = inspect.doctor().await.unwrap();
    assert!(doctor.iter().all(|finding| finding.severity != windlass::broker::Severity::Error), "{doctor:?}");
    broker.close().await;

    let other = desk.connect().await;
    assert!(other.inspect().forget(&queue.name, false).await.is_err(), "there are jobs");
    assert_eq!(other.inspect().forget(&queue.name, true).await.unwrap(), 4);
    assert!(other.dead_letters().begin_replay(&queue.name).await.is_ok());
    other.close().await;
}

#[tokio::test]
async fn mode_22_a_drained_queue_is_empty_whatever_markers_lie_behind() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("1", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    let delivery = take(&mut opened, 1).await.remove(0);
    let now = Clock::System.now();
    let dead = Disposition::DeadLetter {
        reason: Reason::Permanent,
        failure: Failure::new("E", "no", now, now),
        attempts: 1,
        event_id: None,
        job: JobName::new("q").unwrap(),
    };
    opened.settler.settle(vec![delivery.settle(dead)]).await;
    // Its replay and what follows are transactions: their markers lie in the queue's own topic.
    let letters = broker.dead_letters();
    let letter = {
        use futures_util::StreamExt as _;
        letters.list(Default::default()).next().await.unwrap().unwrap()
    };
    assert!(letters.replay(&[letter], &Default::default()).await.remove(0).unwrap());
    let delivery = take(&mut opened, 1).await.remove(0);
    opened.settler.settle(vec![delivery.settle(Disposition::Ack)]).await;
    assert!(nothing_within(&mut opened, Duration::from_millis(200)).await);
    let status = broker.inspect().status(std::slice::from_ref(&queue.name)).await.unwrap().remove(0);
    assert_eq!((status.ready, status.retrying, status.dead), (Some(0), Some(0), Some(0)), "{status:?}");
    broker.close().await;
}
