//! The group's protocols beside the usual one: KIP-848, and members that keep their name over a restart (KIP-345).

use std::time::Duration;

use windlass::broker::{Disposition, Opened, Settled, Trouble};

use super::desk::{Desk, SOON, body, credit, take};
use crate::support::{wait, worker};

async fn one_by_one(desk: &mut Desk, name: &str) {
    let queue = desk.queue(name, &[name]);
    let broker = desk.connect().await;
    desk.publish(&broker, name, &[("1", None), ("2", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    let mut taken = take(&mut opened, 2).await;
    let first = taken.remove(0);
    let kept = body(&taken[0]);
    assert_eq!(opened.settler.settle(vec![first.settle(Disposition::Ack)]).await, [Settled::Stored]);
    drop(taken);
    broker.close().await;
    let broker = desk.connect().await;
    let mut opened = broker.open(&queue).await.unwrap();
    let again = take(&mut opened, 1).await.remove(0);
    assert_eq!(body(&again), kept, "what was stored is not run again");
    assert_eq!(opened.settler.settle(vec![again.settle(Disposition::Ack)]).await, [Settled::Stored]);
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_protocol_works_with_and_without_names_that_last() {
    let Some(mut desk) = Desk::new() else { return };
    desk.kafka.group_protocol_consumer = true;
    one_by_one(&mut desk, "q").await;
    desk.kafka.instance_id = Some("one".to_owned());
    one_by_one(&mut desk, "r").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_a_name_that_lasts_restarts_without_a_rebalance() {
    let Some(mut desk) = Desk::new() else { return };
    let queue = desk.queue("q", &["a"]);
    let topic = desk.topic("a");
    // Of the queue's own there is one, so that each gets some of these.
    desk.create(&format!("{}.work.q", desk.namespace), 1, &[]).await;
    desk.create(&topic, 4, &[]).await;
    desk.kafka.instance_id = Some("one".to_owned());
    let first = desk.connect().await;
    let mut one = first.open(&queue).await.unwrap();
    desk.kafka.instance_id = Some("two".to_owned());
    let second = desk.connect().await;
    let mut two = second.open(&queue).await.unwrap();
    let both = async |one: &mut Opened, two: &mut Opened| {
        for number in 0..8 {
            desk.produce(&topic, number % 4, &[], &format!("\"{number}\"")).await;
        }
        let mut ran = [0, 0];
        while ran[0] + ran[1] < 8 {
            let (who, taken) = tokio::select! {
                biased;
                taken = one.source.receive(credit(8)) => (0, taken),
                taken = two.source.receive(credit(8)) => (1, taken),
                () = tokio::time::sleep(SOON) => panic!("they do not come: {ran:?}"),
            };
            let taken = taken.unwrap();
            ran[who] += taken.len();
            let settler = if who == 0 { &one.settler } else { &two.settler };
            let settled = settler.settle(taken.into_iter().map(|d| d.settle(Disposition::Ack)).collect()).await;
            assert!(settled.iter().all(|settled| *settled == Settled::Stored), "{settled:?}");
        }
        assert!(ran[0] > 0 && ran[1] > 0 && ran[0] + ran[1] == 8, "{ran:?}");
    };
    wait::until_async("both are members, and at rest", SOON, async || {
        let at_rest = |opened: &Opened| opened.settler.trouble() != Some(Trouble::Rebalance);
        desk.members("q").len() == 2 && desk.owned("q") == [2, 3] && at_rest(&one) && at_rest(&two)
    })
    .await;
    both(&mut one, &mut two).await;
    one.source.stop().await;
    first.close().await;
    assert_eq!(desk.members("q").len(), 2, "it did not leave: its place is kept for a lease");
    let mut returned = desk.again();
    returned.kafka.instance_id = Some("one".to_owned());
    let first = returned.connect().await;
    let mut one = first.open(&queue).await.unwrap();
    both(&mut one, &mut two).await;
    assert!(two.settler.trouble().is_none(), "the other was not asked for anything");
    first.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_are_options_of_the_file() {
    let Some(desk) = Desk::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let topic = desk.topic("a");
    desk.create(&topic, 1, &[]).await;
    desk.produce(&topic, 0, &[], "\"1\"").await;
    let config = format!(
        "broker = \"{}\"\nnamespace = \"{}\"\n[kafka]\ngroup_protocol = \"consumer\"\ninstance_id = \"w-1\"\n\
         [queues.hello]\ntopics = [\"{topic}\"]\njob = \"log\"\n",
        desk.address, desk.namespace
    );
    std::fs::write(dir.path().join("windlass.toml"), config).unwrap();
    let run = move || worker::succeed(dir.path(), &["run", "--burst", "--format", "json"]);
    let out = tokio::time::timeout(Duration::from_secs(120), tokio::task::spawn_blocking(run)).await.unwrap().unwrap();
    assert!(out.contains(r#""done":1,"retried":0,"dead":0"#), "{out}");
}
