//! Whose a delivery is, and for how long.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use windlass::broker::{Disposition, Settled};
use windlass::message::Reason;

use super::Subject;
use super::bench::{Bench, Site, Work, bodies, body, dead, numbered, refs, retry, sorted};

pub async fn dead_worker<S: Subject>(mut bench: Bench<S>) {
    if !S::LASTING || !S::FREEZES {
        return S::inapplicable(
            "it dies with its worker, or only a whole process can die (its ledger kills processes)",
        );
    }
    let queue = bench.queue("invoice", &["orders"]);
    let first = bench.connect().await;
    let mut dying = first.open(&queue).await;
    let events = numbered("e", 30);
    first.publish("orders", &refs(&events)).await;
    let mut in_hand = dying.take(10).await;
    let settled = in_hand.split_off(6);
    let mut seen = bodies(&settled);
    dying.ack(settled).await;
    first.die(vec![dying], in_hand);
    let second = bench.connect().await;
    let mut work = second.open(&queue).await;
    let deliveries = work.take(26).await;
    assert!(deliveries.iter().all(|delivery| delivery.attempt().get() == 1), "a crash uses no attempt");
    assert!(deliveries.iter().all(|delivery| !delivery.condemned), "one crash condemns nothing");
    seen.extend(bodies(&deliveries));
    seen.sort();
    assert_eq!(seen, events);
    work.ack(deliveries).await;
    second.close().await;
}

pub async fn outlives_lease<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let first = bench.connect().await;
    let mut long = first.open(&queue).await;
    let second = bench.connect().await;
    let mut other = second.open(&queue).await;
    if S::MOVES {
        both_have_had_something(&first, &mut long, &mut other).await;
    }
    first.publish("orders", &["long"]).await;
    // Whoever gets it keeps it.
    let (mut deliveries, owner, idle) = tokio::select! {
        deliveries = long.take(1) => (deliveries, &long, &mut other),
        deliveries = other.take(1) => (deliveries, &other, &mut long),
    };
    let delivery = deliveries.remove(0);
    let lost = delivery.lost();
    idle.nothing_for(S::LEASE * 3).await;
    assert!(!lost.is_cancelled(), "the lease was extended all the while");
    owner.ack(vec![delivery]).await;
    idle.nothing_for(S::LEASE + Duration::from_millis(300)).await;
    first.close().await;
    second.close().await;
}

/// Publishes until each of two workers has got something: then nothing moves from one to the other any more.
async fn both_have_had_something(site: &Site, one: &mut Work, two: &mut Work) {
    let (mut published, mut done, mut had) = (0, HashSet::new(), (false, false));
    while had != (true, true) || done.len() < published {
        if had != (true, true) {
            let more: Vec<String> = (published..published + 4).map(|number| format!("before-{number}")).collect();
            site.publish("orders", &refs(&more)).await;
            published += 4;
        }
        let soon = Duration::from_millis(500);
        let (first, second) = tokio::join!(one.take_within(4, soon), two.take_within(4, soon));
        had = (had.0 || !first.is_empty(), had.1 || !second.is_empty());
        for (work, deliveries) in [(&*one, first), (&*two, second)] {
            let bodies = bodies(&deliveries);
            // What moves away in between comes again there.
            let settled = work.settle(deliveries, || Disposition::Ack).await;
            done.extend(
                bodies.into_iter().zip(settled).filter(|(_, how)| *how == Settled::Stored).map(|(body, _)| body),
            );
        }
    }
}

pub async fn stale_changes_nothing<S: Subject>(mut bench: Bench<S>) {
    if !S::LASTING || !S::FREEZES {
        return S::inapplicable(
            "nobody else could own a delivery, or only a whole process can be frozen (its ledger freezes processes)",
        );
    }
    let queue = bench.queue("invoice", &["orders"]);
    let first = bench.connect().await;
    let mut frozen = first.open(&queue).await;
    let second = bench.connect().await;
    first.publish("orders", &["a", "b", "c", "d"]).await;
    let mut in_hand = frozen.take(4).await;
    let lost: Vec<_> = in_hand.iter().map(|delivery| delivery.lost()).collect();
    let mut taker = second.open(&queue).await;
    first.freeze(S::LEASE * 4);
    // While the first one sleeps its leases run out, and the second gets the jobs.
    let taken = taker.take(4).await;
    assert_eq!(sorted(&taken), ["a", "b", "c", "d"]);
    assert!(taken.iter().all(|delivery| delivery.attempt().get() == 1), "a lost lease uses no attempt");
    // The first wakes up and settles as if nothing had happened, but for one that has not begun.
    let waiting = in_hand.pop().expect("there are four");
    let dispositions = |delivery: &windlass::broker::Delivery| match body(&delivery.message).as_str() {
        "a" => retry(Duration::ZERO, 2),
        "b" => dead(Reason::Permanent, 1, Some("b"), "invoice"),
        _ => Disposition::Release,
    };
    let batch = in_hand.into_iter().map(|delivery| {
        let disposition = dispositions(&delivery);
        delivery.settle(disposition)
    });
    let settled = frozen.settler.settle(batch.collect()).await;
    assert!(!settled.contains(&Settled::Stored), "nothing of a stale settlement is stored: {settled:?}");
    assert!(second.letters().await.is_empty(), "a stale settlement dead-letters nothing");
    assert!(!waiting.channel.leases.may_begin(waiting.token), "what was lost before it began does not begin");
    drop(waiting);
    taker.nothing_for(Duration::from_millis(500)).await;
    assert!(lost.iter().all(|lost| lost.is_cancelled()), "whoever lost a lease is told");
    taker.ack(taken).await;
    frozen.nothing_for(S::LEASE + Duration::from_millis(300)).await;
    second.close().await;
    first.close().await;
}

pub async fn drain_strands_nothing<S: Subject>(mut bench: Bench<S>) {
    let queue = bench.queue("invoice", &["orders"]);
    let lease = bench.longer_lease();
    let first = bench.connect().await;
    let mut leaving = first.open(&queue).await;
    let second = bench.connect().await;
    let events = numbered("e", 60);
    first.publish("orders", &refs(&events)).await;
    let mut deliveries = leaving.take(20).await;
    let running = deliveries.split_off(15);
    leaving.source.stop().await;
    // What was not started goes back; what runs is finished.
    drop(deliveries);
    let mut seen = bodies(&running);
    leaving.ack(running).await;
    let begun = Instant::now();
    let mut work = second.open(&queue).await;
    if S::LASTING {
        drop(leaving);
        first.close().await;
    }
    let rest = work.take(55).await;
    if S::FREEZES {
        assert!(begun.elapsed() < lease / 2, "nobody waits for a lease: {:?}", begun.elapsed());
    }
    assert!(rest.iter().all(|delivery| delivery.attempt().get() == 1));
    seen.extend(bodies(&rest));
    seen.sort();
    assert_eq!(seen, events);
    work.ack(rest).await;
    second.close().await;
}
