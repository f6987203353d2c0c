//! What a disposition does once it is stored, and what it does not.

use std::time::{Duration, Instant};

use bytes::Bytes;
use windlass::broker::{Disposition, Mend, Settled};
use windlass::message::{Attempt, Headers, Message, Reason};
use windlass::time::Clock;

use super::Subject;
use super::bench::{Bench, bodies, body, dead, numbered, refs, retry, sorted};

const PAUSE: Duration = Duration::from_millis(300);

pub async fn acknowledged_stays_gone<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    site.publish("orders", &refs(&numbered("e", 50))).await;
    let mut deliveries = work.take(50).await;
    let held = deliveries.split_off(45);
    let kept = sorted(&held);
    // Out of order, and with some left unsettled between.
    deliveries.reverse();
    work.ack(deliveries).await;
    drop(held);
    let site = if S::LASTING {
        drop(work);
        bench.restart(site).await
    } else {
        site
    };
    let mut work = site.open(&queue).await;
    let again = work.take(5).await;
    assert_eq!(sorted(&again), kept);
    work.ack(again).await;
    work.nothing_for(S::LEASE + PAUSE).await;
    site.close().await;
}

pub async fn released_comes_back<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let lease = bench.longer_lease();
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    site.publish("orders", &["first"]).await;
    let dropped = work.one().await;
    drop(dropped);
    for _ in 0..3 {
        let begun = Instant::now();
        let delivery = work.one().await;
        assert!(begun.elapsed() < lease / 2, "a release waits for no lease: {:?}", begun.elapsed());
        assert_eq!((body(&delivery.message).as_str(), delivery.attempt().get()), ("first", 1));
        let settled = work.settle(vec![delivery], || Disposition::Release).await;
        assert_eq!(settled, [Settled::Stored]);
    }
    let delivery = work.one().await;
    assert!(!delivery.suspect && !delivery.condemned, "a release is no crash");
    if S::NOTES_RELEASES {
        assert!(delivery.redelivered, "it was handed out before");
        work.stored(vec![delivery], || retry(Duration::ZERO, 2)).await;
        let delivery = work.one().await;
        assert!(!delivery.redelivered, "its own retry is no redelivery");
        return work.ack(vec![delivery]).await;
    }
    work.ack(vec![delivery]).await;
    site.close().await;
}

pub async fn retried_when_due<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    site.publish("orders", &["a", "b"]).await;
    let mut deliveries = work.take(2).await;
    let (second, first) = (deliveries.pop().expect("two"), deliveries.pop().expect("two"));
    let (slow, quick) = (body(&first.message), body(&second.message));
    let begun = Clock::System.now();
    work.stored(vec![first], || retry(Duration::from_millis(1_500), 2)).await;
    work.stored(vec![second], || retry(Duration::from_millis(300), 7)).await;
    for (name, after, attempt) in [(quick, 300, 7), (slow, 1_500, 2)] {
        let delivery = work.one().await;
        let due = begun.after(Duration::from_millis(after));
        assert!(Clock::System.now() >= due, "{name} came before {due}");
        assert_eq!((body(&delivery.message), delivery.attempt().get()), (name, attempt));
        let record = delivery.record.as_deref().expect("a retry is a record of ours");
        let failed = record.failure.as_ref().expect("it says what went wrong");
        assert_eq!((failed.error_type.as_str(), failed.error.as_str()), ("test::Error", "it did not work"));
        assert_eq!(record.topic.as_deref().or(delivery.channel.place.topic.as_deref()), Some("orders"));
        work.ack(vec![delivery]).await;
    }
    work.nothing_for(PAUSE).await;
    site.close().await;
}

pub async fn retry_survives_restart<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    site.publish("orders", &["again"]).await;
    let delivery = work.one().await;
    let due = Clock::System.now().after(Duration::from_millis(2_500));
    let at = |attempt| Disposition::Retry { at: due, attempt, failure: None, unroutable_since: None };
    work.stored(vec![delivery], || at(Attempt::new(3).expect("not 0"))).await;
    let site = if S::LASTING {
        drop(work);
        bench.restart(site).await
    } else {
        site
    };
    let mut work = site.open(&queue).await;
    let delivery = work.one().await;
    let now = Clock::System.now();
    assert!(now >= due, "it came before {due}: {delivery:?}");
    assert_eq!((body(&delivery.message).as_str(), delivery.attempt().get()), ("again", 3));
    work.ack(vec![delivery]).await;
    work.nothing_for(PAUSE).await;
    site.close().await;
}

pub async fn retry_stays_in_its_queue<S: Subject>(mut bench: Bench<S>) {
    let notify = bench.queue("notify", &["orders"]);
    let invoice = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut notified = site.open(&notify).await;
    let mut invoiced = site.open(&invoice).await;
    site.publish("orders", &["event"]).await;
    let delivery = notified.one().await;
    notified.ack(vec![delivery]).await;
    let delivery = invoiced.one().await;
    invoiced.stored(vec![delivery], || retry(Duration::from_millis(100), 2)).await;
    let delivery = invoiced.one().await;
    assert_eq!(delivery.attempt().get(), 2);
    notified.nothing_for(PAUSE).await;
    invoiced.ack(vec![delivery]).await;
    site.close().await;
}

pub async fn snoozed_uses_no_attempt<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    site.publish("orders", &["event"]).await;
    let delivery = work.one().await;
    work.stored(vec![delivery], || retry(Duration::from_millis(50), 2)).await;
    let since = Clock::System.now();
    let delivery = work.one().await;
    let at = || Disposition::Retry {
        at: Clock::System.now().after(Duration::from_millis(50)),
        attempt: Attempt::new(2).expect("not 0"),
        failure: None,
        unroutable_since: Some(since),
    };
    work.stored(vec![delivery], at).await;
    let delivery = work.one().await;
    assert_eq!(delivery.attempt().get(), 2);
    let record = delivery.record.as_deref().expect("a retry is a record of ours");
    assert!(record.failure.is_some(), "an earlier failure is kept");
    assert_eq!(record.unroutable_since, Some(since));
    work.ack(vec![delivery]).await;
    site.close().await;
}

/// A message with all that a dead letter must keep.
fn laden() -> Message {
    let headers: Headers =
        [("content-type", "application/json"), ("x-team", "billing"), ("dlqreason", "none of yours"), ("x-team", "2")]
            .into_iter()
            .collect();
    Message { headers, body: Some(Bytes::from_static(b"[1, 2,   3]")), key: None }
}

/// Names and values, by name where the broker keeps no order.
pub fn pairs<S: Subject>(headers: &Headers) -> Vec<(String, Vec<u8>)> {
    let mut pairs: Vec<_> = headers.iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
    if !S::ORDERED_HEADERS {
        pairs.sort_by(|one, other| one.0.cmp(&other.0));
    }
    pairs
}

pub async fn dead_letter_is_whole<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    site.publish_raw("orders", laden()).await;
    let delivery = work.one().await;
    work.stored(vec![delivery], || retry(Duration::from_millis(20), 2)).await;
    let delivery = work.one().await;
    let origin = delivery.record.as_deref().and_then(|record| record.origin.clone());
    work.stored(vec![delivery], || dead(Reason::Exhausted, 2, Some("event-1"), "invoice")).await;
    let letters = site.letters().await;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!(letter.message.body, laden().body);
    let kept: Vec<_> = pairs::<S>(&letter.message.headers)
        .into_iter()
        .filter(|pair| pairs::<S>(&laden().headers).contains(pair))
        .collect();
    assert_eq!(kept, pairs::<S>(&laden().headers));
    assert_eq!(letter.queue, queue.name);
    assert_eq!((letter.reason, letter.attempts), (Reason::Exhausted, 2));
    assert_eq!((letter.job.as_str(), letter.event_id.as_deref()), ("invoice", Some("event-1")));
    assert_eq!(letter.failure.error_type, "test::Error");
    assert_eq!(letter.record.topic.as_deref(), Some("orders"));
    assert!(letter.id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'), "{}", letter.id);
    assert!(origin.is_none() || letter.record.origin == origin, "the origin is the event's, not the retry's");
    let id = letter.id.clone();
    let site = if S::LASTING {
        drop(work);
        bench.restart(site).await
    } else {
        site
    };
    let mut work = site.open(&queue).await;
    work.nothing_for(S::LEASE + PAUSE).await;
    let letters = site.letters().await;
    assert_eq!(letters.iter().map(|letter| &letter.id).collect::<Vec<_>>(), [&id], "one letter, by the same id");
    site.close().await;
}

pub async fn two_queues_two_letters<S: Subject>(mut bench: Bench<S>) {
    let notify = bench.queue("notify", &["orders"]);
    let invoice = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut notified = site.open(&notify).await;
    let mut invoiced = site.open(&invoice).await;
    site.publish("orders", &["event"]).await;
    for work in [&mut notified, &mut invoiced] {
        let delivery = work.one().await;
        work.stored(vec![delivery], || dead(Reason::Permanent, 1, Some("event-1"), "job")).await;
    }
    let mut queues: Vec<_> = site.letters().await.into_iter().map(|letter| letter.queue.to_string()).collect();
    queues.sort();
    assert_eq!(queues, ["invoice", "notify"]);
    site.close().await;
}

pub async fn replay_fails_again<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    site.publish("orders", &["event"]).await;
    let mut ids = Vec::new();
    for replays in 0..3 {
        let delivery = work.one().await;
        work.stored(vec![delivery], || dead(Reason::Permanent, 1, Some("event-1"), "invoice")).await;
        let letters = site.letters().await;
        assert_eq!(letters.len(), 1, "failure {replays} leaves one letter");
        assert_eq!(letters[0].record.replays, replays);
        ids.push(letters[0].id.clone());
        let replayed = site.dead().replay(&letters, &Mend::default()).await;
        assert!(matches!(replayed.as_slice(), [Ok(true)]), "{replayed:?}");
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "each failure is a letter of its own");
    let delivery = work.one().await;
    work.ack(vec![delivery]).await;
    assert!(site.letters().await.is_empty());
    site.close().await;
}

pub async fn replay_begins_anew<S: Subject>(mut bench: Bench<S>) {
    let notify = bench.queue("notify", &["orders"]);
    let invoice = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut notified = site.open(&notify).await;
    let mut invoiced = site.open(&invoice).await;
    site.publish_raw("orders", laden()).await;
    let delivery = notified.one().await;
    notified.ack(vec![delivery]).await;
    let delivery = invoiced.one().await;
    invoiced.stored(vec![delivery], || retry(Duration::from_millis(20), 4)).await;
    let delivery = invoiced.one().await;
    invoiced.stored(vec![delivery], || dead(Reason::Exhausted, 4, Some("event-1"), "invoice")).await;
    let verbs = site.dead();
    let guard = verbs.begin_replay(&invoice.name).await.expect("nobody replays");
    let refused = verbs.begin_replay(&invoice.name).await;
    assert!(matches!(refused, Err(windlass::broker::Error::Taken(_))), "a second replay waits its turn");
    drop(refused);
    let letters = site.letters().await;
    let replayed = site.dead().replay(&letters, &Mend::default()).await;
    assert!(matches!(replayed.as_slice(), [Ok(true)]), "{replayed:?}");
    let again = site.dead().replay(&letters, &Mend::default()).await;
    assert!(matches!(again.as_slice(), [Ok(false)]), "what is gone is not replayed: {again:?}");
    drop(guard);
    let delivery = invoiced.one().await;
    assert_eq!(delivery.attempt().get(), 1, "a replay begins at 1 again");
    assert_eq!(delivery.message.body, laden().body);
    let record = delivery.record.as_deref().expect("a replay is a record of ours");
    assert_eq!((record.replays, &record.job), (1, &None), "it names a job only if the original did");
    notified.nothing_for(PAUSE).await;
    invoiced.ack(vec![delivery]).await;
    assert!(site.letters().await.is_empty());
    site.close().await;
}

pub async fn undecodable_is_a_letter<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    let garbage = Bytes::from_static(&[0xff, 0xfe, 0, 1, 0x80]);
    site.publish_raw("orders", Message { body: Some(garbage.clone()), ..Message::default() }).await;
    site.publish("orders", &["behind"]).await;
    let deliveries = work.take(2).await;
    let (bad, good): (Vec<_>, Vec<_>) =
        deliveries.into_iter().partition(|delivery| delivery.message.body.as_ref() == Some(&garbage));
    assert_eq!((bad.len(), bodies(&good)), (1, vec!["behind".to_owned()]));
    let decoded = windlass::message::decode(&bad[0].message, &bad[0].origin(), bad[0].record.as_deref());
    assert!(decoded.is_err(), "these bytes are no event");
    work.stored(bad, || dead(Reason::Malformed, 0, None, "invoice")).await;
    work.ack(good).await;
    let letters = site.letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].message.body, Some(garbage));
    assert_eq!((letters[0].reason, letters[0].attempts), (Reason::Malformed, 0));
    work.nothing_for(PAUSE).await;
    site.close().await;
}
