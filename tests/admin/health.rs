//! What probes and scrapers see.

use serde_json::json;
use windlass::telemetry::meter::Why;

use super::Fixture;

#[test]
fn health_is_there_before_the_broker_and_ready_after_it() {
    let fixture = Fixture::starting();
    for path in ["/health", "/healthz", "/livez"] {
        assert_eq!(fixture.get(path).ok(200).json(), json!({"status": "ok"}));
    }
    let ready = fixture.get("/ready").ok(503).json();
    assert_eq!(ready["status"], "not ready");
    assert_eq!(ready["checks"][1], json!({"name": "broker", "status": "failed", "detail": "not connected yet"}));
    fixture.get("/api/v1/status").problem(503);
    fixture.get("/api/v1/running").problem(503);
    fixture.post("/api/v1/topics/reports.finalized", "{}").problem(503);

    fixture.connect();
    for path in ["/ready", "/readyz"] {
        let ready = fixture.get(path).ok(200).json();
        assert_eq!(ready["status"], "ready");
        assert_eq!(ready["checks"][2], json!({"name": "queue:invoice", "status": "ok", "detail": null}));
    }
}

#[test]
fn readiness_follows_the_queues() {
    let fixture = Fixture::working();
    let with = |paused: &[Why], consuming, trouble: Option<&str>| {
        fixture.worker.set(|state| {
            state.paused = paused.to_vec();
            state.consuming = consuming;
            state.trouble = trouble.map(str::to_owned);
        });
        let answer = fixture.get("/ready");
        (answer.status, answer.json()["checks"][2]["detail"].clone())
    };
    assert_eq!(with(&[], true, None).0, 200);
    for why in [Why::Full, Why::Bytes, Why::Operator, Why::Rebalance, Why::Order] {
        assert_eq!(with(&[why], true, Some("busy")).0, 200, "{why:?}");
        assert_eq!(with(&[why], false, None).0, 200, "{why:?} before anything was received");
    }
    assert_eq!(with(&[], false, None).0, 503);
    assert_eq!(with(&[Why::DeadLetter], true, Some("disk full")), (503, "disk full".into()));
    assert_eq!(with(&[Why::Full, Why::Broker], true, None).0, 503);
    assert_eq!(with(&[], true, None).0, 200);

    fixture.shutdown.intake.cancel();
    let ready = fixture.get("/ready").ok(503).json();
    assert_eq!(ready["checks"][0], json!({"name": "intake", "status": "failed", "detail": "draining"}));
    fixture.get("/health").ok(200);
}

#[test]
fn metrics_show_what_the_broker_holds() {
    let fixture = Fixture::working();
    fixture.post("/api/v1/topics/reports.finalized", "{}").ok(202);
    let metrics = fixture.get("/metrics").ok(200);
    assert!(metrics.head.contains("content-type: text/plain; version=0.0.4"), "{}", metrics.head);
    for line in [
        "windlass_queue_ready{queue=\"invoice\"} ",
        "windlass_dead_letter_depth{queue=\"invoice\"} ",
        "# TYPE windlass_job_duration_seconds histogram",
        "windlass_broker_connected 1",
        "windlass_build_info{",
    ] {
        assert!(metrics.text().contains(line), "{line} is missing in\n{}", metrics.text());
    }
}
