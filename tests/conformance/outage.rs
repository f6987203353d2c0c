//! The broker goes away and comes back: consumption resumes by itself.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

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
    // What was in hand is settled after all, or comes again, or, where nobody could be told that it was done, is settled by
    // whoever remembers it when it comes.
    let names = bodies(&in_hand);
    let answers = work.settle(in_hand, || Disposition::Ack).await;
    let (kept, unconfirmed): (Vec<_>, Vec<_>) =
        names.into_iter().zip(answers).partition(|(_, answer)| *answer == Settled::Stored);
    ended.extend(kept.into_iter().map(|(name, _)| name));
    let mut due: BTreeSet<String> = before.into_iter().chain(after).collect();
    due.retain(|body| !ended.contains(body) && unconfirmed.iter().all(|(name, _)| name != body));
    let begun = Instant::now();
    loop {
        let limit = if due.is_empty() { Duration::from_millis(50) } else { SOON };
        let deliveries = work.take_within(16, limit).await;
        assert!(due.is_empty() || !deliveries.is_empty(), "consumption did not resume: {due:?} never came");
        let came = bodies(&deliveries);
        let again: Vec<_> = came.iter().filter(|body| ended.contains(*body)).collect();
        assert!(again.is_empty(), "settled, confirmed, and delivered again: {again:?}");
        due.retain(|body| !came.contains(body));
        ended.extend(came);
        work.ack(deliveries).await;
        let status = site.broker.inspect().status(std::slice::from_ref(&queue.name)).await.expect("a status");
        let left: u64 = [status[0].ready, status[0].running].into_iter().flatten().sum();
        if due.is_empty() && left == 0 {
            break;
        }
        assert!(begun.elapsed() < 3 * SOON, "the broker still has {left}: {status:?}");
    }
    assert!(site.broker.connected());
    site.close().await;
}
