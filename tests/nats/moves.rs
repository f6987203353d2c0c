//! Retries and dead letters: at the server's limit, into a full stream, cut in two, and of jobs that kill.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use windlass::broker::{Delivery, Disposition, Trouble};

use super::kit::{self, Behind, LEASE, SOON, connect, open, publish, queue, run};
use crate::support::nats::{Nats, Release};

#[test]
fn a_body_at_the_servers_limit_is_retried_dead_lettered_and_replayed_whole() {
    let Some(server) = Nats::with(Release::New, "max_payload: 64KB") else { return };
    run(async {
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        let behind = Behind::connect(&server.url()).await;
        let body = Bytes::from((0..65_536u32).map(|n| b'a' + (n % 23) as u8).collect::<Vec<u8>>());
        behind.0.publish("orders", body.clone()).await.expect("it is within the limit");
        behind.0.flush().await.expect("sent");
        let delivery = work.one().await;
        work.stored(delivery, kit::retry(2)).await;
        let again = work.one().await;
        assert_eq!((again.attempt().get(), again.message.body.as_ref()), (2, Some(&body)));
        work.stored(again, kit::dead("invoice")).await;
        let letters = kit::letters(&broker).await;
        assert_eq!(letters.len(), 1);
        assert_eq!(letters[0].message.body.as_ref(), Some(&body));
        let replayed = broker.dead_letters().replay(&letters, &Default::default()).await;
        assert!(matches!(replayed[..], [Ok(true)]), "{replayed:?}");
        let last = work.one().await;
        assert_eq!((last.attempt().get(), last.message.body.as_ref()), (1, Some(&body)));
        work.stored(last, Disposition::Ack).await;
        let too_large = kit::try_publish(&broker, "orders", Bytes::from(vec![b'a'; 70_000])).await;
        assert_eq!(too_large.expect_err("above the limit").exit_code(), 1);
        broker.close().await;
        // Nothing is left behind, not even parts.
        for stream in ["t_work", "t_dead"] {
            let info = behind.api(&format!("STREAM.INFO.{stream}"), json!({ "subjects_filter": ">" })).await;
            assert_eq!(info["state"]["messages"], 0, "{info}");
        }
    });
}

#[test]
fn a_full_dead_letter_stream_holds_its_queue_and_goes_on_by_itself() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        let behind = Behind::connect(&server.url()).await;
        let limit = async |most: i64| {
            let mut config = behind.api("STREAM.INFO.t_dead", Value::Null).await["config"].clone();
            config["max_msgs"] = json!(most);
            behind.api("STREAM.UPDATE.t_dead", config).await;
        };
        limit(1).await;
        publish(&broker, "orders", &["1", "2"]).await;
        let mut deliveries = work.take(2).await;
        work.stored(deliveries.remove(0), kit::dead("invoice")).await;
        let settler = work.settler.clone();
        let waiting = deliveries.remove(0).settle(kit::dead("invoice"));
        let settled = tokio::spawn(async move { settler.settle(vec![waiting]).await });
        let full = || matches!(work.settler.trouble(), Some(Trouble::DeadLetter(why)) if why.contains("full"));
        tokio::time::timeout(SOON, async {
            while !full() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the trouble is told");
        // Longer than the lease: it is kept all the same.
        assert!(work.within(1, LEASE * 3 / 2).await.is_empty(), "its origin is not handed out again");
        limit(-1).await;
        let settled = tokio::time::timeout(SOON, settled).await.expect("it goes on by itself").expect("no panic");
        assert_eq!(settled, [windlass::broker::Settled::Stored]);
        assert_eq!(work.settler.trouble(), None);
        assert_eq!(kit::letters(&broker).await.len(), 2);
        broker.close().await;
    });
}

#[test]
fn what_comes_again_although_its_successor_is_stored_is_only_acknowledged() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let (one, two) = (queue("one", &["orders"]), queue("two", &["orders"]));
        let mut first = kit::doomed(&server.url(), &one).await;
        let second = connect(&server.url(), &[one.clone(), two.clone()]).await;
        publish(&second, "orders", &["retried", "buried"]).await;
        let deliveries = first.work.take(2).await;
        // What a worker does that is killed between storing and acknowledging: it stores, and its lease runs out.
        let behind = Behind::connect(&server.url()).await;
        for delivery in &deliveries {
            follow(&behind, delivery, if delivery.seq == 1 { "work.one.run" } else { "dead.one" }).await;
        }
        first.die(deliveries);
        // Another worker, to which both come again after the lease.
        let mut work = open(&second, &one).await;
        let came = work.within(2, LEASE * 3).await;
        assert_eq!(came.iter().map(|d| (d.seq, d.attempt().get())).collect::<Vec<_>>(), [(1, 2)], "one chain alone");
        for delivery in came {
            work.stored(delivery, Disposition::Ack).await;
        }
        second.close().await;
        let info = behind.api("CONSUMER.INFO.t_events.t_one", Value::Null).await;
        assert_eq!((&info["num_ack_pending"], &info["num_pending"]), (&json!(0), &json!(0)), "both are acknowledged");
    });
}

#[test]
fn what_is_followed_while_it_waits_for_a_slot_does_not_start() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let one = queue("one", &["orders"]);
        let mut first = kit::doomed(&server.url(), &one).await;
        let second = connect(&server.url(), std::slice::from_ref(&one)).await;
        publish(&second, "orders", &["retried"]).await;
        let held = first.work.take(1).await;
        let mut work = open(&second, &one).await;
        first.die(held);
        // It was looked up, and waits here; now whoever had it before has failed and stored its retry.
        let waiting = work.one().await;
        assert!(waiting.needs_mark && waiting.attempt().get() == 1);
        let behind = Behind::connect(&server.url()).await;
        follow(&behind, &waiting, "work.one.run").await;
        assert_eq!(work.settler.mark(&[&waiting]).await, [false]);
        drop(waiting);
        let next = work.one().await;
        assert_eq!(next.attempt().get(), 2);
        work.stored(next, Disposition::Ack).await;
        second.close().await;
        let info = behind.api("CONSUMER.INFO.t_events.t_one", Value::Null).await;
        assert_eq!((&info["num_ack_pending"], &info["num_pending"]), (&json!(0), &json!(0)), "it is acknowledged");
        let info = behind.api("STREAM.INFO.t_work", Value::Null).await;
        assert_eq!(info["state"]["messages"], 0, "no mark is left");
    });
}

/// What follows a delivery, as another worker stores it: its second attempt in a while, or its dead letter.
async fn follow(behind: &Behind, delivery: &Delivery, place: &str) {
    let origin = delivery.origin().to_string();
    let key = origin.trim_start_matches("nats:").replace(':', "-").replace('_', "_5f");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("ce-windlassrecord", "1");
    headers.insert("ce-attempt", "2");
    headers.insert("ce-origin", origin.as_str());
    headers.insert("Nats-Windlass-Hop", "1");
    if place.starts_with("work") {
        let later = windlass::time::Clock::System.now().after(Duration::from_secs(5));
        headers.insert("ce-notbefore", later.to_rfc3339().as_str());
    }
    behind.0.publish_with_headers(format!("t.{place}.{key}-0"), headers, "{}".into()).await.expect("published");
    behind.0.flush().await.expect("sent");
}

#[test]
fn a_job_that_kills_its_workers_is_found() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let invoice = queue("invoice", &["orders"]);
        let mut seen = Vec::new();
        let first = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        open(&first, &invoice).await;
        publish(&first, "orders", &["1"]).await;
        first.close().await;
        for _ in 0..4 {
            let mut worker = kit::doomed(&server.url(), &invoice).await;
            let delivery = worker.work.one().await;
            seen.push((delivery.needs_mark, delivery.suspect, delivery.condemned));
            if delivery.condemned {
                worker.work.stored(delivery, kit::dead("invoice")).await;
                worker.leave().await;
                break;
            }
            if delivery.needs_mark {
                assert_eq!(worker.work.settler.mark(&[&delivery]).await, [true]);
            }
            worker.die(vec![delivery]);
        }
        // Two crashes condemn; the first goes uncounted.
        assert_eq!(seen, [(false, false, false), (true, false, false), (true, true, false), (true, false, true)]);
        let behind = Behind::connect(&server.url()).await;
        let info = behind.api("STREAM.INFO.t_work", Value::Null).await;
        assert_eq!(info["state"]["messages"], 0, "the marks are gone");
    });
}

#[test]
fn a_worker_that_was_cut_off_and_comes_back_has_not_crashed() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let invoice = queue("invoice", &["orders"]);
        let first = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        open(&first, &invoice).await;
        publish(&first, "orders", &["1"]).await;
        first.close().await;
        for _ in 0..3 {
            let mut worker = kit::doomed(&server.url(), &invoice).await;
            let delivery = worker.work.one().await;
            if delivery.needs_mark {
                assert_eq!(worker.work.settler.mark(&[&delivery]).await, [true]);
            }
            worker.die(vec![delivery]);
        }
        let behind = Behind::connect(&server.url()).await;
        let stream = async_nats::jetstream::new(behind.0.clone()).get_stream("t_work").await.expect("it is there");
        let mark = stream.get_last_raw_message_by_subject("t.state.invoice.mark.>").await.expect("it is left over");
        let mark: Value = serde_json::from_slice(&mark.payload).expect("JSON");
        let before = mark["left"].as_array().expect("those before");
        assert_eq!(before.len(), 1, "and the last: two, which condemn: {mark}");
        // They show themselves when the next one has seen that they are not there.
        let mut asked = behind.0.subscribe("$JS.API.STREAM.MSG.GET.t_work").await.expect("subscribed");
        behind.0.flush().await.expect("sent");
        let last = format!("t.state._worker.{}", mark["worker"].as_str().expect("a name"));
        let mut worker = kit::doomed(&server.url(), &invoice).await;
        let back = async {
            while !String::from_utf8_lossy(&asked.next().await.expect("it is asked").payload).contains(&last) {}
            // What was asked before is answered before.
            behind.api("STREAM.INFO.t_work", Value::Null).await;
            for left in before.iter().chain([&mark]) {
                let until = windlass::time::Clock::System.now().after(SOON).as_millis();
                let body = json!({ "until": until, "queues": {}, "instance": left["by"] }).to_string();
                let subject = format!("t.state._worker.{}", left["worker"].as_str().expect("a name"));
                behind.0.publish(subject, body.into()).await.expect("published");
            }
            behind.0.flush().await.expect("sent");
        };
        let (delivery, ()) = tokio::join!(worker.work.one(), back);
        assert!(delivery.needs_mark && !delivery.condemned && !delivery.suspect);
        worker.work.stored(delivery, Disposition::Ack).await;
        worker.leave().await;
    });
}

#[test]
fn what_is_given_back_never_counts_as_a_crash() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        publish(&broker, "orders", &["1"]).await;
        for _ in 0..6 {
            let delivery = work.one().await;
            assert!(!delivery.suspect && !delivery.condemned);
            if delivery.needs_mark {
                assert_eq!(work.settler.mark(&[&delivery]).await, [true]);
            }
            work.stored(delivery, Disposition::Release).await;
        }
        broker.close().await;
    });
}
