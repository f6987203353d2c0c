//! Dead letters: whole, listed, replayed once, purged, imported.

use futures_util::TryStreamExt;

use super::*;
use crate::broker::{Letter, LetterQuery, Mend};

async fn list(broker: &Arc<dyn Broker>) -> Vec<Letter> {
    let query = LetterQuery { oldest_first: true, ..LetterQuery::default() };
    broker.dead_letters().list(query).try_collect().await.expect("listed")
}

#[tokio::test]
async fn a_letter_is_whole_and_a_replay_brings_it_back_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (q, other) = (queue("q", &["t"]), queue("other", &["t"]));
    let (broker, mut opened) = worker(&path, &q).await;
    let _also = connect(&path, options(Role::Producer, std::slice::from_ref(&other))).await;
    let mut original = to_topic("t", "a");
    original.message.headers =
        [("ce-id", "a"), ("ce-expirytime", "2030-01-01T00:00:00Z"), ("x", "y")].into_iter().collect();
    broker.publisher().publish(vec![original.clone()]).await.pop().expect("one").expect("stored");
    let got = receive(&mut opened, 1).await;
    assert_eq!(settle(&opened, got, &dead(Reason::Exhausted, "a")).await, [Settled::Stored]);
    let letters = list(&broker).await;
    let letter = letters.first().expect("one");
    assert_eq!(letter.message, original.message);
    assert_eq!((letter.reason, letter.attempts, letter.queue.as_str()), (Reason::Exhausted, 1, "q"));
    assert_eq!(letter.record.topic.as_deref(), Some("t"));
    assert!(letter.record.origin.as_deref().is_some_and(|origin| origin.starts_with("sqlite:t:1:")));
    assert!(letter.id.bytes().all(|b| b.is_ascii_alphanumeric()));

    let replayed = broker.dead_letters().replay(&letters, &Mend::default()).await;
    assert!(matches!(replayed[..], [Ok(true)]));
    let replayed = broker.dead_letters().replay(&letters, &Mend::default()).await;
    assert!(matches!(replayed[..], [Ok(false)]), "it is gone already");
    let again = receive(&mut opened, 8).await;
    assert_eq!(bodies(&again), ["a"]);
    let record = again[0].record.as_ref().expect("a record");
    assert_eq!((record.attempt.get(), record.replays, record.job.clone()), (1, 1, None));
    let event = crate::message::decode(&again[0].message, &again[0].origin(), Some(record)).expect("whole");
    assert_eq!((event.id.as_str(), event.topic.as_deref(), event.expires), ("sqlite:t:1", Some("t"), None));
    assert_eq!(again[0].message, original.message);
    // It fails again, and is a letter again, with another id.
    settle(&opened, again, &dead(Reason::Exhausted, "a")).await;
    let letters_again = list(&broker).await;
    assert_eq!(letters_again.len(), 1);
    assert_eq!(letters_again[0].record.replays, 1);
    assert_ne!(letters_again[0].id, letters[0].id);
    assert!(matches!(broker.dead_letters().purge(&letters_again).await[..], [Ok(true)]));
    assert!(list(&broker).await.is_empty());
    assert_eq!(beside(&path, "SELECT count(*) FROM event").await, 1, "the other queue has not had it yet");
}

#[tokio::test]
async fn a_replay_can_be_mended_and_sent_elsewhere() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (broker, mut opened) = worker(&path, &queue("q", &["t"])).await;
    let other = queue("other", &[]);
    let mut elsewhere = broker.open(&other).await.expect("opens");
    publish(&broker, "t", &["a"]).await;
    let got = receive(&mut opened, 1).await;
    settle(&opened, got, &dead(Reason::Malformed, "a")).await;
    let mend = Mend {
        body: Some(bytes::Bytes::from_static(b"mended")),
        job: Some(JobName::new("another").expect("a name")),
        queue: Some(other.name.clone()),
    };
    broker.dead_letters().replay(&list(&broker).await, &mend).await.pop().expect("one").expect("replayed");
    let got = receive(&mut elsewhere, 1).await;
    assert_eq!(bodies(&got), ["mended"]);
    assert_eq!(got[0].record.as_ref().and_then(|record| record.job.clone()), mend.job);
}

#[tokio::test]
async fn one_replay_at_a_time_and_a_killed_ones_right_ends_with_its_lease() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let one = connect(&path, options(Role::Producer, std::slice::from_ref(&q))).await;
    let two = connect(&path, options(Role::Reader, &[])).await;
    let guard = one.dead_letters().begin_replay(&q.name).await.expect("free");
    let refused = two.dead_letters().begin_replay(&q.name).await.err().expect("taken");
    assert_eq!(refused.exit_code(), 69);
    drop(guard);
    until("the right is given back", || async { two.dead_letters().begin_replay(&q.name).await.is_ok() }).await;
    beside(&path, "INSERT OR REPLACE INTO replay VALUES (1, 7, 'another boot', 9000000000000)").await;
    two.dead_letters().begin_replay(&q.name).await.map(|_| ()).expect("the killed one is of another boot");
}

#[tokio::test]
async fn ten_thousand_letters_are_listed_replayed_and_purged_quickly() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (broker, mut opened) = worker(&path, &queue("q", &["t"])).await;
    let letters = 10_000;
    for chunk in (0..letters).collect::<Vec<_>>().chunks(500) {
        broker.publisher().publish(chunk.iter().map(|n| to_topic("t", &n.to_string())).collect()).await;
    }
    let mut done = 0;
    while done < letters {
        let got = receive(&mut opened, 500).await;
        done += got.len();
        let settled = settle(&opened, got, &dead(Reason::Exhausted, "x")).await;
        assert!(settled.iter().all(|settled| *settled == Settled::Stored));
    }
    let began = std::time::Instant::now();
    let all = list(&broker).await;
    assert_eq!(all.len(), letters);
    let ids: std::collections::HashSet<&str> = all.iter().map(|letter| letter.id.as_str()).collect();
    assert_eq!(ids.len(), letters);
    let replayed = broker.dead_letters().replay(&all[..5_000], &Mend::default()).await;
    assert!(replayed.iter().all(|result| matches!(result, Ok(true))));
    let purged = broker.dead_letters().purge(&all[5_000..]).await;
    assert!(purged.iter().all(|result| matches!(result, Ok(true))));
    assert!(list(&broker).await.is_empty());
    assert!(began.elapsed() < Duration::from_secs(20), "took {:?}", began.elapsed());
    let status = broker.inspect().status(&[]).await.expect("a status");
    assert_eq!((status[0].ready, status[0].dead), (Some(5_000), Some(0)));
}

#[tokio::test]
async fn what_was_exported_is_imported_and_replaces_its_like() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (broker, mut opened) = worker(&path, &queue("q", &["t"])).await;
    publish(&broker, "t", &["a"]).await;
    let got = receive(&mut opened, 1).await;
    settle(&opened, got, &dead(Reason::Exhausted, "a")).await;
    let mut exported = list(&broker).await;
    exported[0].attempts = 9;
    assert!(matches!(broker.dead_letters().import(&exported).await[..], [Ok(())]));
    let again = list(&broker).await;
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].attempts, &again[0].id), (9, &exported[0].id));
    assert_eq!(again[0].message, exported[0].message);
    assert_eq!(beside(&path, "SELECT count(*) FROM event").await, 1);
    exported[0].queue = QueueName::new("unknown").expect("a name");
    let refused = broker.dead_letters().import(&exported).await.pop().expect("one").expect_err("no such queue");
    assert_eq!(refused.exit_code(), 1);
}

#[tokio::test]
async fn letters_expire_after_their_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = Queue { keep_dead: Some(Duration::from_secs(60)), ..queue("q", &["t"]) };
    let (broker, mut opened) = worker(&path, &q).await;
    publish(&broker, "t", &["old", "new"]).await;
    let mut got = receive(&mut opened, 2).await;
    let young = got.pop().expect("two");
    settle(&opened, vec![young], &dead(Reason::Exhausted, "new")).await;
    let mut old = dead(Reason::Exhausted, "old");
    if let Disposition::DeadLetter { failure, .. } = &mut old {
        failure.last = Timestamp::from_millis(Clock::System.now().as_millis() - 61_000);
    }
    settle(&opened, got, &old).await;
    let expired = broker.inspect().expire_dead().await.expect("works");
    assert_eq!(expired, [(q.name.clone(), 1)]);
    let left = list(&broker).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].event_id.as_deref(), Some("new"));
}
