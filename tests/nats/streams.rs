//! Streams: theirs are read where they are and never changed, ours are made, and what cannot work is refused.

use std::time::Duration;

use serde_json::{Value, json};
use windlass::broker::{
    self, Destination, Disposition, NatsOptions, Publication, Role, Settled, Severity, Start, Trouble,
};
use windlass::message::{Message, Topic};

use super::kit::{self, Behind, connect, open, options, publish, queue, run, unopened};
use crate::support::nats::{Nats, Release};

#[test]
fn a_server_that_is_too_old_is_refused() {
    let Some(server) = Nats::start(Release::Refused) else { return };
    run(async {
        let error = kit::refusal(&server.url(), NatsOptions::default()).await;
        assert_eq!(error.exit_code(), 78);
        assert!(error.to_string().contains("2.10.4"), "{error}");
    });
}

#[test]
fn a_topic_of_theirs_is_read_where_it_is() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        for (name, retention) in [("LIM", "limits"), ("INT", "interest"), ("WQ", "workqueue")] {
            behind.stream(name, &format!("{}.*", name.to_lowercase()), retention).await;
        }
        let invoice = queue("invoice", &["lim.a", "lim.b", "int.a", "wq.*"]);
        let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        // Producers that have never heard of us: core NATS.
        for subject in ["lim.a", "lim.b", "lim.c", "int.a", "wq.x"] {
            behind.0.publish(subject, "{}".into()).await.expect("published");
        }
        behind.0.flush().await.expect("sent");
        let deliveries = work.take(4).await;
        let mut topics: Vec<_> = deliveries.iter().filter_map(|d| d.channel.place.topic.clone()).collect();
        topics.sort();
        assert_eq!(topics.iter().map(|topic| &**topic).collect::<Vec<_>>(), ["int.a", "lim.a", "lim.b", "wq.x"]);
        for delivery in deliveries {
            work.stored(delivery, Disposition::Ack).await;
        }
        assert!(work.within(1, Duration::from_millis(300)).await.is_empty(), "lim.c is not heard");
        let names = behind.api("STREAM.NAMES", Value::Null).await;
        assert_eq!(names["streams"], json!(["INT", "LIM", "WQ", "t_dead", "t_work"]), "no t_events was needed");
        let info = behind.api("STREAM.INFO.WQ", Value::Null).await;
        assert_eq!(info["state"]["messages"], 0, "an acknowledgement removes from a work queue");
        broker.close().await;
    });
}

#[test]
fn a_work_queue_of_theirs_takes_one_queue_from_its_beginning() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("WQ", "wq.>", "workqueue").await;
        let (one, other) = (queue("one", &["wq.a"]), queue("other", &["wq.a"]));
        let mut latest = queue("latest", &["wq.b"]);
        latest.start = Start::Latest;
        let broker = connect(&server.url(), &[one.clone(), other.clone(), latest.clone()]).await;
        let _first = open(&broker, &one).await;
        let second = unopened(&broker, &other).await;
        assert_eq!(second.exit_code(), 78);
        assert!(second.to_string().contains("WQ") && second.to_string().contains("two queues"), "{second}");
        let late = unopened(&broker, &latest).await;
        assert_eq!(late.exit_code(), 78);
        assert!(late.to_string().contains("earliest"), "{late}");
        broker.close().await;
    });
}

#[test]
fn what_nobody_stores_whole_is_refused_and_what_nobody_stores_is_ours() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("EU", "orders.eu", "limits").await;
        let partly = queue("partly", &["orders.*"]);
        let ours = queue("ours", &["reports.*"]);
        let broker = connect(&server.url(), &[partly.clone(), ours.clone()]).await;
        let error = unopened(&broker, &partly).await;
        assert_eq!(error.exit_code(), 78);
        assert!(error.to_string().contains("in part") && error.to_string().contains("EU"), "{error}");
        // Published before anybody heard it, and heard under a wildcard later.
        publish(&broker, "reports.finalized", &["1"]).await;
        let mut work = open(&broker, &ours).await;
        assert_eq!(work.notes[0], "starts with 1 old events of t_events");
        publish(&broker, "reports.drafted", &["2"]).await;
        assert_eq!(work.take(2).await.len(), 2);
        let info = behind.api("STREAM.INFO.t_events", Value::Null).await;
        assert_eq!(info["config"]["subjects"], json!(["reports.*"]), "the wildcard has taken the subject in");
        assert_eq!(info["config"]["discard"], "new");
        broker.close().await;
    });
}

#[test]
fn without_create_the_command_that_creates_is_named() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let invoice = queue("invoice", &["orders"]);
        let nats = NatsOptions { no_create: true, ..NatsOptions::default() };
        let strict =
            broker::connect(&server.url(), options(nats, std::slice::from_ref(&invoice))).await.expect("reached");
        let behind = Behind::connect(&server.url()).await;
        // Whoever obeys each refusal ends with a worker that runs.
        for step in 0..10 {
            let error = match strict.open(&invoice).await {
                Ok(_) => break,
                Err(error) => error.to_string(),
            };
            assert!(step < 9, "{error}");
            let (_, command) = error.split_once("nats request '").expect("the command is named");
            let (subject, body) = command.split_once("' '").expect("a subject and a body");
            let body: Value = serde_json::from_str(body.trim_end_matches('\'')).expect("JSON");
            behind.api(subject.trim_start_matches("$JS.API."), body).await;
        }
        strict.close().await;
    });
}

#[test]
fn an_unknown_queue_is_not_found_and_a_reader_creates_nothing() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        let reader = broker::Options { role: Role::Reader, ..options(NatsOptions::default(), &[]) };
        let broker = broker::connect(&server.url(), reader).await.expect("reached");
        assert!(broker.inspect().status(&[]).await.expect("nothing is there").is_empty());
        let unknown = [windlass::message::QueueName::new("nope").expect("a name")];
        assert_eq!(broker.inspect().status(&unknown).await.expect_err("unknown").exit_code(), 1);
        assert!(kit::letters(&broker).await.is_empty());
        assert!(behind.api("STREAM.NAMES", Value::Null).await["streams"].as_array().is_none_or(Vec::is_empty));
        broker.close().await;
    });
}

#[test]
fn status_tells_what_waits_runs_and_is_dead() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        publish(&broker, "orders", &["1", "2", "3", "4", "5"]).await;
        let mut deliveries = work.take(3).await;
        work.stored(deliveries.remove(0), kit::dead("invoice")).await;
        let later = windlass::time::Clock::System.now().after(Duration::from_secs(600));
        let mut again = kit::retry(2);
        if let Disposition::Retry { at, .. } = &mut again {
            *at = later;
        }
        work.stored(deliveries.remove(0), again).await;
        let inspect = broker.inspect();
        inspect.present(&[(invoice.name.clone(), 16)]).await.expect("presence is stored");
        let status = inspect.status(&[]).await.expect("a status").remove(0);
        assert_eq!((status.ready, status.running, status.retrying), (Some(2), Some(1), Some(1)), "{status:?}");
        assert_eq!((status.dead, status.workers, status.slots), (Some(1), Some(1), Some(16)), "{status:?}");
        assert_eq!(status.retry_due, Some(later));
        let refused = inspect.forget(&invoice.name, true).await.expect_err("a worker is attached");
        assert_eq!(refused.exit_code(), 69);
        let findings = inspect.doctor().await.expect("findings");
        let errors: Vec<_> = findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
        assert!(errors.is_empty(), "{errors:?}");
        drop(deliveries);
        drop(work);
        broker.close().await;
        let reader = connect(&server.url(), &[]).await;
        let known = reader.inspect().queues().await.expect("queues");
        assert_eq!((known[0].name.as_str(), known[0].workers), ("invoice", Some(0)));
        assert_eq!(known[0].topics, ["orders"]);
        assert_eq!(reader.inspect().forget(&invoice.name, false).await.expect_err("jobs are left").exit_code(), 1);
        assert_eq!(reader.inspect().forget(&invoice.name, true).await.expect("forgotten"), 4);
        assert_eq!(kit::letters(&reader).await.len(), 1, "its dead letters stay");
        reader.close().await;
    });
}

/// Where the stream keeps only what is unsettled, a durable that somebody removes is made anew.
#[test]
fn a_durable_that_is_removed_is_made_anew_where_nothing_runs_again() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ORDERS", "orders", "workqueue").await;
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        kit::publish(&broker, "orders", &["1", "2"]).await;
        let mut both = work.take(2).await;
        work.stored(both.remove(0), Disposition::Ack).await;
        behind.api("CONSUMER.DELETE.ORDERS.t_invoice", Value::Null).await;
        kit::publish(&broker, "orders", &["3"]).await;
        let third = work.one().await;
        assert_eq!(third.message.body.as_deref(), Some(&b"3"[..]), "what is in hand stays there");
        work.stored(both.remove(0), Disposition::Ack).await;
        work.stored(third, Disposition::Ack).await;
        let left = behind.api("STREAM.INFO.ORDERS", Value::Null).await["state"]["messages"].clone();
        assert_eq!(left, 0);
        broker.close().await;
    });
}

/// The server drops what bears the message id of something it stored a moment ago. That must be the same event.
#[test]
fn an_event_is_told_from_others_by_its_topic_source_and_id() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let invoice = queue("invoice", &["made", "paid"]);
        let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        let publish = async |topic: &str, source: &str, id: &str| {
            let headers = [("ce-specversion", "1.0"), ("ce-id", "e-1"), ("ce-type", "t"), ("ce-source", source)];
            let message =
                Message { headers: headers.into_iter().collect(), body: Some("{}".into()), ..Message::default() };
            let destination = Destination::Topic(Topic::new(topic).expect("a topic"));
            let publication = Publication { destination, message, id: id.to_owned(), allow_unheard: false };
            broker.publisher().publish(vec![publication]).await.remove(0).expect("stored")
        };
        let first = publish("made", "/shop", "e-1").await;
        let others = [("paid", "/shop", "e-1"), ("made", "/bank", "e-1"), ("made", "/shop", "e-1\r\nX: 1")];
        for (topic, source, id) in others {
            assert_ne!(publish(topic, source, id).await.id, first.id, "{topic} {source} {id}");
        }
        // A structured event says in its body where it comes from.
        let structured = async |source: &str| {
            let headers = [("content-type", "application/cloudevents+json")].into_iter().collect();
            let body = json!({ "specversion": "1.0", "id": "s", "type": "t", "source": source }).to_string().into();
            let message = Message { headers, body: Some(body), ..Message::default() };
            let destination = Destination::Topic(Topic::new("made").expect("a topic"));
            let publication = Publication { destination, message, id: "s".to_owned(), allow_unheard: false };
            broker.publisher().publish(vec![publication]).await.remove(0).expect("stored").id
        };
        assert_ne!(structured("/shop").await, structured("/bank").await);
        // One that is published twice is stored once within the stream's window.
        assert_eq!(publish("made", "/shop", "e-1").await.id, first.id);
        for delivery in work.take(6).await {
            work.stored(delivery, Disposition::Ack).await;
        }
        assert!(work.within(1, Duration::from_millis(200)).await.is_empty());
        broker.close().await;
    });
}

/// Nor can anything be read from a stream that somebody removes: that is told, and ends by itself when it is back.
#[test]
fn a_stream_that_is_removed_is_missed_until_it_is_back() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ORDERS", "orders", "workqueue").await;
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        kit::publish(&broker, "orders", &["1"]).await;
        let delivery = work.one().await;
        work.stored(delivery, Disposition::Ack).await;
        behind.api("STREAM.DELETE.ORDERS", Value::Null).await;
        // Whoever asks for jobs notices.
        let missed =
            |work: &kit::Work| matches!(work.settler.trouble(), Some(Trouble::Broker(why)) if why.contains("ORDERS"));
        while !missed(&work) {
            assert!(work.within(1, Duration::from_millis(50)).await.is_empty(), "there is nothing to deliver");
        }
        behind.stream("ORDERS", "orders", "workqueue").await;
        behind.0.publish("orders", "2".into()).await.expect("published");
        let delivery = work.within(1, kit::SOON * 3).await.pop().expect("it goes on by itself");
        assert_eq!(delivery.message.body.as_deref(), Some(&b"2"[..]));
        work.stored(delivery, Disposition::Ack).await;
        assert_eq!(work.settler.trouble(), None);
        broker.close().await;
    });
}

/// A subject without a stream answers as one whose stream has no leader: it is asked again, and not for ever.
#[test]
fn a_topic_that_nobody_stores_is_refused_where_no_stream_may_be_made() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let nats = NatsOptions { no_create: true, ..NatsOptions::default() };
        let strict = broker::connect(&server.url(), options(nats, &[])).await.expect("reached");
        let error = kit::try_publish(&strict, "orders", "{}".into()).await.expect_err("nobody stores it");
        assert_eq!(error.exit_code(), 78);
        assert!(error.to_string().contains("orders"), "{error}");
        // Known to be stored, and not any more.
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ORDERS", "orders", "limits").await;
        kit::publish(&strict, "orders", &["1"]).await;
        behind.api("STREAM.DELETE.ORDERS", Value::Null).await;
        let error = kit::try_publish(&strict, "orders", "{}".into()).await.expect_err("nobody stores it");
        assert!([69, 78].contains(&error.exit_code()), "{error}");
        behind.stream("ORDERS", "orders", "limits").await;
        kit::publish(&strict, "orders", &["2"]).await;
        strict.close().await;
    });
}

/// Where the stream keeps what was settled too, all of it would run again: that is for a person to decide.
#[test]
fn a_durable_that_is_removed_under_a_log_ends_the_queue() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ORDERS", "orders", "limits").await;
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        behind.api("CONSUMER.DELETE.ORDERS.t_invoice", Value::Null).await;
        let Err(error) = work.source.receive(kit::credit(1)).await else { panic!("there is nothing to deliver") };
        assert!(error.to_string().contains("was removed while this worker reads it"), "{error}");
        broker.close().await;
    });
}

/// The server answers such an acknowledgement with "nobody is here": that is no confirmation.
#[test]
fn an_acknowledgement_to_a_consumer_that_is_gone_is_not_confirmed() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ORDERS", "orders", "limits").await;
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        kit::publish(&broker, "orders", &["1", "2", "3"]).await;
        let mut deliveries = work.take(3).await;
        // While there is a consumer it counts.
        work.stored(deliveries.remove(0), Disposition::Ack).await;
        behind.api("CONSUMER.DELETE.ORDERS.t_invoice", Value::Null).await;
        // Alone, and in a group that one answer would do for.
        let batch = deliveries.into_iter().map(|delivery| delivery.settle(Disposition::Ack)).collect();
        let settled = work.settler.settle(batch).await;
        let confirmed = settled.iter().filter(|settled| **settled == Settled::Stored).count();
        assert_eq!((confirmed, settled.len()), (0, 2), "{settled:?}");
        broker.close().await;
    });
}

/// A server that stands alone calls itself the leader of a stream that it had before; it is no cluster for that.
#[test]
fn a_single_server_confirms_groups_and_one_of_a_cluster_each() {
    for (extra, most, grouped) in [("", 1_024, true), ("cluster { name: one }", 256, false)] {
        for release in [Release::New, Release::Old] {
            let Some(server) = Nats::with(release, extra) else { return };
            run(async {
                let behind = Behind::connect(&server.url()).await;
                behind.stream("ORDERS", "orders", "limits").await;
                let mut invoice = queue("invoice", &["orders"]);
                invoice.slots = 640.try_into().expect("not 0");
                // Its streams are there when it is opened for the second time.
                let first = connect(&server.url(), std::slice::from_ref(&invoice)).await;
                open(&first, &invoice).await;
                first.close().await;
                let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
                let mut work = open(&broker, &invoice).await;
                assert_eq!(work.settler.unconfirmed_limit(), most);
                for _ in 0..640 {
                    behind.0.publish("orders", "{}".into()).await.expect("published");
                }
                let deliveries = work.take(640).await;
                let answered = || server.page("/varz")["out_msgs"].as_u64().expect("a count");
                let before = answered();
                let batch = deliveries.into_iter().map(|delivery| delivery.settle(Disposition::Ack)).collect();
                assert!(work.settler.settle(batch).await.iter().all(|settled| *settled == Settled::Stored));
                let answers = answered() - before;
                assert_eq!(answers < 320, grouped, "{answers} answers to 640 acknowledgements");
                broker.close().await;
            });
        }
    }
}

/// Their stream is full of jobs and refuses more: its producers hear it, its workers make room.
#[test]
fn a_full_stream_refuses_producers_and_holds_no_worker() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        let config = json!({ "name": "ORDERS", "subjects": ["orders"], "retention": "workqueue", "storage": "file",
            "num_replicas": 1, "discard": "new", "max_msgs": 2 });
        behind.api("STREAM.CREATE.ORDERS", config).await;
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&server.url(), std::slice::from_ref(&invoice)).await;
        kit::publish(&broker, "orders", &["1", "2"]).await;
        let full = async || kit::try_publish(&broker, "orders", "more".into()).await;
        let error = full().await.expect_err("there is no room");
        assert_eq!(error.exit_code(), 69, "waiting helps");
        assert!(error.to_string().contains("full") && error.to_string().contains("orders"), "{error}");
        let mut work = open(&broker, &invoice).await;
        let mut deliveries = work.take(2).await;
        assert!(full().await.is_err(), "what runs takes its room");
        // Neither a retry nor a dead letter needs room where the original lies; both make some.
        work.stored(deliveries.remove(0), kit::retry(2)).await;
        work.stored(deliveries.remove(0), kit::dead("invoice")).await;
        let again = work.one().await;
        assert_eq!(again.attempt().get(), 2);
        kit::publish(&broker, "orders", &["3", "4"]).await;
        assert!(full().await.is_err(), "full again");
        // Nor does what goes back to its queue.
        let replayed = broker.dead_letters().replay(&kit::letters(&broker).await, &Default::default()).await;
        assert!(matches!(replayed[..], [Ok(true)]), "{replayed:?}");
        work.stored(again, Disposition::Ack).await;
        for delivery in work.take(3).await {
            work.stored(delivery, Disposition::Ack).await;
        }
        full().await.expect("there is room");
        broker.close().await;
    });
}

/// More workers than a durable of somebody else's making has room for: they take turns, and none spins.
#[test]
fn a_durable_with_little_room_serves_everybody_in_turn() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::connect(&server.url()).await;
        behind.stream("ORDERS", "orders", "limits").await;
        let config = json!({ "durable_name": "t_invoice", "ack_policy": "explicit", "max_waiting": 1, "max_deliver": -1,
            "deliver_policy": "all", "filter_subjects": ["orders"], "ack_wait": kit::LEASE.as_nanos() as u64 });
        let body = json!({ "stream_name": "ORDERS", "config": config, "action": "create" });
        behind.api("CONSUMER.CREATE.ORDERS.t_invoice", body).await;
        let invoice = queue("invoice", &["orders"]);
        let (one, other) = (
            connect(&server.url(), std::slice::from_ref(&invoice)).await,
            connect(&server.url(), std::slice::from_ref(&invoice)).await,
        );
        let (mut first, mut second) = (open(&one, &invoice).await, open(&other, &invoice).await);
        let asked = || server.page("/varz")["in_msgs"].as_u64().expect("a count");
        let before = asked();
        for round in 0..6 {
            kit::publish(&one, "orders", &[&round.to_string()]).await;
            let (work, delivery) = tokio::select! {
                delivery = first.one() => (&first, delivery),
                delivery = second.one() => (&second, delivery),
            };
            work.stored(delivery, Disposition::Ack).await;
        }
        let asked = asked() - before;
        assert!(asked < 2_000, "{asked} requests for six jobs");
        one.close().await;
        other.close().await;
    });
}
