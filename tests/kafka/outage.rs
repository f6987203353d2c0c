//! The broker goes away and comes back.

use std::collections::BTreeSet;

use windlass::broker::Disposition;

use super::desk::{Desk, body, take};
use crate::support::kafka::Kafka;

#[tokio::test]
async fn what_was_read_ahead_is_handed_out_after_a_restart() {
    let Some(mut kafka) = Kafka::start() else { return };
    let mut desk = Desk::at(kafka.url());
    let queue = desk.queue("q", &["a"]);
    let broker = desk.connect().await;
    let bodies: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let batch: Vec<(&str, Option<&str>)> = bodies.iter().map(|body| (body.as_str(), None)).collect();
    desk.publish(&broker, "a", &batch).await;
    let mut opened = broker.open(&queue).await.unwrap();
    let mut taken = take(&mut opened, 20).await;
    let in_hand = taken.split_off(10);
    let mut done: BTreeSet<String> = taken.iter().map(body).collect();
    opened.settler.settle(taken.into_iter().map(|d| d.settle(Disposition::Ack)).collect()).await;
    kafka.nodes[0].restart();
    done.extend(in_hand.iter().map(body));
    let answers = opened.settler.settle(in_hand.into_iter().map(|d| d.settle(Disposition::Ack)).collect()).await;
    tracing::info!(?answers, "settled what was in hand");
    while done.len() < 40 {
        let got = take(&mut opened, 1).await;
        done.extend(got.iter().map(body));
        opened.settler.settle(got.into_iter().map(|d| d.settle(Disposition::Ack)).collect()).await;
    }
    broker.close().await;
}
