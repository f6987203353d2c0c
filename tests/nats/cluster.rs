//! Three servers: leaders that step down and a node that is killed, under work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use windlass::broker::{Disposition, Settled};

use super::kit::{Behind, connect, open, queue, run, try_publish};
use crate::support::nats::{Cluster, Release};

const EVENTS: usize = 300;

#[test]
fn leaders_step_down_and_a_node_dies_under_work() {
    let Some(mut cluster) = Cluster::start(Release::New) else { return };
    run(async {
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&cluster.url(), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        let publisher = broker.clone();
        let publishing = tokio::spawn(async move {
            for number in 0..EVENTS {
                // Tried again by the adapter under one message id; what it gives up on is a new event here.
                while try_publish(&publisher, "orders", format!("{number}").into()).await.is_err() {}
            }
        });
        let leader = cluster.leader().expect("there is one");
        let survivor = (leader + 1) % 3;
        let behind = Behind::connect(&cluster.nodes[survivor].url()).await;
        let info = behind.api("STREAM.INFO.t_events", Value::Null).await;
        assert_eq!(info["config"]["num_replicas"], 3, "three nodes, three replicas");
        // By place in the stream: what the publisher gave up on and published anew may be stored twice, as two events.
        let mut confirmed: BTreeMap<u64, u32> = BTreeMap::new();
        let (mut done, mut fault) = (BTreeSet::new(), 0);
        while done.len() < EVENTS {
            let deliveries = work.within(8, Duration::from_secs(30)).await;
            assert!(!deliveries.is_empty(), "nothing comes any more; {} are done", done.len());
            let said: Vec<_> =
                deliveries.iter().map(|delivery| (delivery.seq, delivery.message.body.clone())).collect();
            let batch = deliveries.into_iter().map(|delivery| delivery.settle(Disposition::Ack)).collect();
            for ((seq, body), settled) in said.into_iter().zip(work.settler.settle(batch).await) {
                if settled == Settled::Stored {
                    *confirmed.entry(seq).or_default() += 1;
                    done.insert(body);
                }
            }
            if done.len() > (fault + 1) * EVENTS / 5 && fault < 3 {
                match fault {
                    0 => drop(behind.api("CONSUMER.LEADER.STEPDOWN.t_events.t_invoice", Value::Null).await),
                    1 => drop(behind.api("STREAM.LEADER.STEPDOWN.t_events", Value::Null).await),
                    _ => cluster.nodes[leader].kill(),
                }
                fault += 1;
            }
        }
        publishing.await.expect("no panic");
        assert_eq!(fault, 3, "every fault was made");
        confirmed.retain(|_, times| *times > 1);
        assert!(confirmed.is_empty(), "confirmed, and delivered again: {confirmed:?}");
        broker.close().await;
    });
}
