//! Publishing and enqueueing by HTTP.

use serde_json::json;
use windlass::broker::{Credit, Delivery};
use windlass::message::decode;

use super::{Fixture, spec};

/// What is waiting in the queue, in order.
fn received(fixture: &Fixture) -> Vec<Delivery> {
    fixture.runtime.block_on(async {
        let spec = spec();
        let mut opened = fixture.broker.open(&spec).await.expect("opened");
        let credit = Credit { jobs: 4, fresh_floor: 1, retry_floor: 1, bytes: 1 << 20, suspect: false };
        opened.source.receive(credit).await.expect("received")
    })
}

#[test]
fn an_event_is_stored_before_the_answer() {
    let fixture = Fixture::working();
    let headers = [("idempotency-key", "\"order-17\""), ("content-type", "application/json")];
    let answer = fixture.call("POST", "/api/v1/topics/reports.finalized", &headers, b"{\"a\": 1}").ok(202);
    assert_eq!(answer.text(), r#"{"id":"order-17","topic":"reports.finalized","queues":1}"#);

    let deliveries = received(&fixture);
    assert_eq!(deliveries.len(), 1);
    let event = decode(&deliveries[0].message, &deliveries[0].origin(), None).expect("an event");
    assert_eq!((&*event.id, &*event.kind, &event.data[..]), ("order-17", "reports.finalized", &b"{\"a\": 1}"[..]));
    assert_eq!(&*event.source, "windlass://windlass");
}

#[test]
fn cloud_events_come_in_both_modes() {
    let fixture = Fixture::working();
    let path = "/api/v1/topics/reports.finalized";
    let binary = [("ce-specversion", "1.0"), ("ce-id", "b-1"), ("ce-source", "/lab"), ("ce-type", "report")];
    assert_eq!(fixture.call("POST", path, &binary, b"1").ok(202).json()["id"], "b-1");
    let structured = [("content-type", "application/cloudevents+json")];
    let envelope = br#"{"specversion":"1.0","id":"s-1","source":"/lab","type":"report","data":{"x":1}}"#;
    assert_eq!(fixture.call("POST", path, &structured, envelope).ok(202).json()["id"], "s-1");
    let detail = fixture.call("POST", path, &structured, b"{}").problem(400);
    assert!(detail.contains("malformed event"), "{detail}");

    let deliveries = received(&fixture);
    let bodies: Vec<_> = deliveries.iter().map(|delivery| delivery.message.body.clone().expect("a body")).collect();
    assert_eq!((&bodies[0][..], &bodies[1][..]), (&b"1"[..], &envelope[..]));
}

#[test]
fn a_job_is_enqueued_for_one_queue() {
    let fixture = Fixture::working();
    let path = "/api/v1/queues/invoice/jobs";
    let answer = fixture.call("POST", path, &[("idempotency-key", "j-1")], b"[1]").ok(202);
    assert_eq!(answer.text(), r#"{"id":"j-1","queue":"invoice","not_before":null}"#);
    let named = format!("{path}?job=remind&in=10m");
    let answer = fixture.post(&named, "[2]").ok(202).json();
    assert!(answer["not_before"].as_str().is_some_and(|at| at.ends_with('Z')), "{answer}");
    let at = format!("{path}?at=2126-01-01T00:00:00%2B02:00");
    assert_eq!(fixture.post(&at, "[3]").ok(202).json()["not_before"], "2125-12-31T22:00:00.000Z");

    let status = fixture.get("/api/v1/status").ok(200).json();
    assert_eq!((&status["queues"][0]["ready"], &status["queues"][0]["scheduled"]), (&json!(1), &json!(2)));
    let deliveries = received(&fixture);
    let record = deliveries[0].record.as_ref().expect("a record of ours");
    assert_eq!(record.job.as_ref().map(|job| job.as_str()), Some("bill"), "the configured job is named");
    let event = decode(&deliveries[0].message, &deliveries[0].origin(), Some(record)).expect("an event");
    assert_eq!((&*event.kind, &*event.source), ("bill", "windlass://windlass/invoice"));
}

#[test]
fn what_cannot_be_taken_is_said() {
    let fixture = Fixture::working();
    let detail = fixture.post("/api/v1/topics/report.finalized", "1").problem(422);
    assert!(detail.contains("reports.finalized"), "the nearest topic is offered: {detail}");
    fixture.post("/api/v1/topics/two%20words", "1").problem(400);
    fixture.post("/api/v1/queues/nobody/jobs", "1").problem(404);
    fixture.post("/api/v1/queues/Not%20A%20Queue/jobs", "1").problem(404);
    fixture.post("/api/v1/queues/invoice/jobs?in=10m&at=2126-01-01T00:00:00Z", "1").problem(400);
    fixture.post("/api/v1/queues/invoice/jobs?in=soon", "1").problem(400);
    fixture.post("/api/v1/queues/invoice/jobs?jobb=x", "1").problem(400);
    let headers = [("content-type", "application/json")];
    fixture.call("POST", "/api/v1/queues/invoice/jobs", &headers, b"{").problem(400);
    let large = vec![b'x'; 16 * 1_024 * 1_024 + 1];
    fixture.call("POST", "/api/v1/topics/reports.finalized", &[], &large).problem(413);
    assert_eq!(fixture.get("/api/v1/status").json()["queues"][0]["ready"], 0, "nothing of it was stored");
}
