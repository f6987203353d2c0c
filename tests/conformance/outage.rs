//! The broker goes away and comes back: consumption resumes by itself.

use std::collections::BTreeSet;

use windlass::broker::{Disposition, Settled};

use super::Subject;
use super::bench::{Bench, SOON, bodies, numbered, refs};

pub async fn restart_resumes<S: Subject>(bench: Bench<S>) {
    resumes(bench, S::restart).await;
}

pub async fn cut_resumes<S: Subject>(bench: Bench<S>) {
    resumes(bench, S::cut).await;
}

async fn resumes<S: Subject>(mut bench: Bench<S>, fault: impl Fn(&mut S) -> bool) {
    let queue = bench.queue("invoice", &["orders"]);
    let site = bench.connect().await;
    let mut work = site.open(&queue).await;
    let before = numbered("before", 40);
    site.publish("orders", &refs(&before)).await;
    let mut settled = work.take(20).await;
    let in_hand = settled.split_off(10);
    let mut ended: BTreeSet<String> = bodies(&settled).into_iter().collect();
    work.ack(settled).await;
    if !fault(&mut bench.subject) {
        return S::inapplicable("there is nothing that could go away");
    }
    let after = numbered("after", 20);
    site.publish("orders", &refs(&after)).await;
    // What was in hand is settled after all, or comes again.
    let names = bodies(&in_hand);
    let answers = work.settle(in_hand, || Disposition::Ack).await;
    let kept = names.into_iter().zip(answers).filter(|(_, answer)| *answer == Settled::Stored);
    ended.extend(kept.map(|(name, _)| name));
    let all: BTreeSet<String> = before.into_iter().chain(after).collect();
    while ended.len() < all.len() {
        let deliveries = work.take_within(16, SOON).await;
        let left: Vec<_> = all.difference(&ended).collect();
        assert!(!deliveries.is_empty(), "consumption did not resume: {left:?} never came");
        let again: Vec<_> = bodies(&deliveries).into_iter().filter(|body| ended.contains(body)).collect();
        assert!(again.is_empty(), "settled, confirmed, and delivered again: {again:?}");
        ended.extend(bodies(&deliveries));
        work.ack(deliveries).await;
    }
    assert!(site.broker.connected());
    site.close().await;
}
