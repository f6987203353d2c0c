//! Looking at a worker and steering it.

use serde_json::json;

use super::Fixture;

#[test]
fn status_is_that_of_the_command_with_this_process_beside_it() {
    let fixture = Fixture::working();
    let status = fixture.get("/api/v1/status").ok(200).json();
    assert_eq!(status["broker"], "memory://");
    let queue = status["queues"][0].as_object().expect("an object");
    let mut names: Vec<_> = queue.keys().map(String::as_str).collect();
    names.sort_unstable();
    let mut expected = [
        "name",
        "ready",
        "running",
        "retrying",
        "scheduled",
        "dead",
        "oldest_age_s",
        "dead_oldest_age_s",
        "workers",
        "slots",
        "paused",
    ];
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!(
        status["worker"],
        json!({"draining": false, "queues": [{
            "name": "invoice", "slots": 4, "in_flight": 1, "bytes_in_flight": 10, "unconfirmed": 0, "paused": [],
            "consuming": true, "trouble": null, "last_success": null,
        }]})
    );
    assert_eq!(
        fixture.get("/api/v1/running").ok(200).json(),
        json!([{"queue": "invoice", "job": "bill", "event_id": "e-1", "attempt": 2, "for_s": 1.5}])
    );
}

#[test]
fn a_queue_is_paused_resumed_and_given_slots() {
    let fixture = Fixture::working();
    let answer = fixture.post("/api/v1/queues/invoice/pause?for=10m", "").ok(200).json();
    assert_eq!(answer["name"], "invoice");
    fixture.post("/api/v1/queues/invoice/pause", "").ok(200);
    fixture.post("/api/v1/queues/invoice/resume", "").ok(200);
    fixture.call("PUT", "/api/v1/queues/invoice/slots", &[], br#"{"slots": 8}"#).ok(200);
    assert_eq!(
        fixture.worker.told(),
        ["pause invoice Some(600s)", "pause invoice None", "resume invoice", "slots invoice 8"]
    );

    fixture.post("/api/v1/queues/invoice/pause?for=ever", "").problem(400);
    for body in [r#"{"slots": 0}"#, r#"{"slots": -1}"#, "{}", "8x", r#"{"slots": 1, "lots": 2}"#] {
        fixture.call("PUT", "/api/v1/queues/invoice/slots", &[], body.as_bytes()).problem(400);
    }
    assert!(fixture.worker.told().is_empty(), "what cannot be read is not carried out");
    fixture.post("/api/v1/queues/nobody/pause", "").problem(404);
    fixture.post("/api/v1/queues/nobody/resume", "").problem(404);
    fixture.call("PUT", "/api/v1/queues/nobody/slots", &[], br#"{"slots": 8}"#).problem(404);
}

#[test]
fn a_drain_is_what_sigterm_does() {
    let fixture = Fixture::working();
    assert_eq!(fixture.post("/api/v1/drain", "").ok(202).json(), json!({"status": "draining"}));
    assert!(fixture.shutdown.intake.is_cancelled());
    assert!(!fixture.shutdown.work.is_cancelled(), "running jobs have their grace");
    fixture.get("/ready").ok(503);
    assert_eq!(fixture.get("/api/v1/status").json()["worker"]["draining"], true);
}
