//! The dead-letter verbs by HTTP.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Fixture;

const DLQ: &str = "/api/v1/queues/invoice/dlq";

/// Puts letters there, as an import by hand does.
fn import(fixture: &Fixture, lines: impl IntoIterator<Item = Value>) {
    let lines: Vec<String> = lines.into_iter().map(|line| line.to_string()).collect();
    let answer = fixture.post(&format!("{DLQ}/import"), &lines.join("\n")).ok(200).json();
    assert_eq!(answer, json!({"selected": lines.len(), "done": lines.len(), "failed": 0, "dry_run": false}));
}

fn line(id: &str, reason: &str, error: &str, last_failed: &str) -> Value {
    json!({"id": id, "event_id": format!("evt-{id}"), "job": "bill", "topic": "reports.finalized", "reason": reason,
        "error_type": "io::Error", "error": error, "attempts": 3, "first_failed": "2026-11-20T00:00:00Z",
        "last_failed": last_failed, "headers": {"x-team": "billing"}, "body": format!("{{\"id\":\"{id}\"}}")})
}

fn ids(answer: &Value) -> Vec<String> {
    let letters = answer["letters"].as_array().expect("letters");
    letters.iter().map(|letter| letter["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn pages_neither_skip_nor_repeat() {
    let fixture = Fixture::working();
    // Runs of one millisecond that pages end within.
    let at = |n: usize| format!("2026-11-21T10:00:0{}.000Z", n % 3);
    import(&fixture, (0..250).map(|n| line(&format!("L{n:03}"), "permanent", "no report", &at(n))));
    let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = fixture.get(&format!("{DLQ}?limit=40{cursor}")).ok(200).json();
        seen.extend(ids(&page));
        pages += 1;
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
        // What arrives while somebody turns pages is newer, and does not shift what is on them.
        import(&fixture, [line(&format!("new{pages}"), "permanent", "late", "2026-11-21T11:00:00Z")]);
    }
    assert_eq!((seen.len(), pages), (250, 7));
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 250);
    let newest: BTreeSet<_> = (0..250).filter(|n| n % 3 == 2).map(|n| format!("L{n:03}")).collect();
    assert_eq!(seen.into_iter().take(newest.len()).collect::<BTreeSet<_>>(), newest, "the newest first");

    assert_eq!(ids(&fixture.get(DLQ).ok(200).json()).len(), 100, "a page without a limit");
    fixture.get(&format!("{DLQ}?cursor=nonsense")).problem(400);
    fixture.get("/api/v1/queues/nobody/dlq").problem(404);
}

#[test]
fn conditions_select_and_groups_count() {
    let fixture = Fixture::working();
    let at = "2026-11-21T10:00:00Z";
    let letters = [("a1", "permanent", "no report 17"), ("a2", "permanent", "no report 18"), ("b1", "expired", "late")];
    import(&fixture, letters.map(|(id, reason, error)| line(id, reason, error, at)));
    assert_eq!(ids(&fixture.get(&format!("{DLQ}?reason=expired")).ok(200).json()), ["b1"]);
    assert_eq!(ids(&fixture.get(&format!("{DLQ}?error=REPORT%2018")).ok(200).json()), ["a2"]);
    assert_eq!(ids(&fixture.get(&format!("{DLQ}?until=2026-11-21T10:00:00Z")).ok(200).json()).len(), 0);
    fixture.get(&format!("{DLQ}?reason=bad")).problem(400);
    fixture.get(&format!("{DLQ}?resaon=expired")).problem(400);

    let groups = fixture.get(&format!("{DLQ}/groups")).ok(200).json();
    let counts: Vec<_> = groups["groups"].as_array().expect("groups").iter().map(|group| &group["count"]).collect();
    assert_eq!(counts, [2, 1]);
    let row = &fixture.get(&format!("{DLQ}?event=evt-a1")).ok(200).json()["letters"][0];
    assert_eq!(row["fingerprint"], groups["groups"][0]["fingerprint"]);
}

#[test]
fn a_letter_is_shown_whole_and_raw() {
    let fixture = Fixture::working();
    let at = "2026-11-21T10:00:00Z";
    let mut twin = line("b2", "permanent", "x", at);
    twin["event_id"] = "evt-b1".into();
    import(&fixture, [line("a1", "permanent", "x", at), line("b1", "permanent", "x", at), twin]);
    for id in ["a1", "a", "evt-a1"] {
        let shown = fixture.get(&format!("{DLQ}/{id}")).ok(200).json();
        assert_eq!((&shown["id"], &shown["headers"]), (&json!("a1"), &json!({"x-team": "billing"})), "{id}");
    }
    let raw = fixture.get(&format!("{DLQ}/a1/raw")).ok(200);
    assert_eq!(raw.text(), "{\"id\":\"a1\"}");
    assert!(raw.head.contains("content-type: application/octet-stream"), "{}", raw.head);
    assert!(raw.head.contains("x-content-type-options: nosniff"), "{}", raw.head);
    fixture.get(&format!("{DLQ}/zz")).problem(404);
    fixture.get(&format!("{DLQ}/b")).problem(409);
    let several = fixture.get(&format!("{DLQ}/evt-b1"));
    several.problem(409);
    let candidates = several.json()["candidates"].clone();
    assert_eq!(candidates.as_array().map(Vec::len), Some(2), "{candidates}");
}

#[test]
fn replay_and_purge_do_what_was_meant_and_nothing_else() {
    let fixture = Fixture::working();
    let at = "2026-11-21T10:00:00Z";
    import(&fixture, (0..6).map(|n| line(&format!("p{n}"), "permanent", "x", at)));
    import(&fixture, (0..3).map(|n| line(&format!("e{n}"), "expired", "x", at)));
    let replay = |body: Value| fixture.post(&format!("{DLQ}/replay"), &body.to_string());
    let purge = |body: Value| fixture.post(&format!("{DLQ}/purge"), &body.to_string());

    for nothing in [
        json!({}),
        json!({"limit": 2}),
        json!({"ids": []}),
        json!({"idz": ["p0"]}),
        json!({"ids": ["p0"], "all": true}),
    ] {
        replay(nothing).problem(400);
    }
    purge(json!({"all": true, "rate": "5/s"})).problem(400);
    let missing = replay(json!({"ids": ["p0", "gone"]})).problem(404);
    assert!(missing.contains("\"gone\""), "{missing}");
    replay(json!({"ids": ["p"]})).problem(409);
    replay(json!({"all": true, "to": "other"})).problem(400);
    let dry = replay(json!({"all": true, "dry_run": true})).ok(200).json();
    assert_eq!(dry, json!({"selected": 9, "done": 0, "failed": 0, "dry_run": true}));
    assert_eq!(ids(&fixture.get(DLQ).json()).len(), 9, "nothing was done");

    let done = replay(json!({"ids": ["p0", "evt-p1"], "rate": "none"})).ok(200).json();
    assert_eq!(done, json!({"selected": 2, "done": 2, "failed": 0, "dry_run": false}));
    let mended = replay(json!({"ids": ["p2"], "body": "[]", "as_job": "remind"})).ok(200).json();
    assert_eq!(mended["done"], 1);
    assert_eq!(purge(json!({"reason": "expired"})).ok(200).json()["done"], 3);
    assert_eq!(ids(&fixture.get(DLQ).json()), ["p3", "p4", "p5"]);
    assert_eq!(fixture.get("/api/v1/status").json()["queues"][0]["ready"], 3);
}

#[test]
fn a_second_replay_of_a_queue_is_a_conflict() {
    let fixture = Fixture::working();
    import(&fixture, (0..3).map(|n| line(&format!("p{n}"), "permanent", "x", "2026-11-21T10:00:00Z")));
    let queue = super::queue_name("invoice");
    let dead = fixture.broker.dead_letters();
    let running = fixture.runtime.block_on(dead.begin_replay(&queue)).expect("the first has it");
    let replay = || fixture.post(&format!("{DLQ}/replay"), r#"{"all": true}"#);
    let detail = replay().problem(409);
    assert!(detail.contains("replay") && detail.contains("invoice"), "{detail}");
    assert_eq!(ids(&fixture.get(DLQ).json()).len(), 3, "nothing was done");
    drop(running);
    assert_eq!(replay().ok(200).json()["done"], 3);
}

#[test]
fn more_than_a_thousand_need_a_yes() {
    let fixture = Fixture::working();
    import(&fixture, (0..1_001).map(|n| line(&format!("m{n:04}"), "permanent", "x", "2026-11-21T10:00:00Z")));
    let detail = fixture.post(&format!("{DLQ}/purge"), r#"{"all": true}"#).problem(409);
    assert!(detail.contains("1001"), "{detail}");
    let done = fixture.post(&format!("{DLQ}/purge"), r#"{"all": true, "yes": true}"#).ok(200).json();
    assert_eq!(done["done"], 1_001);
}

#[test]
fn an_export_is_an_import() {
    let fixture = Fixture::working();
    let mut binary = line("b1", "malformed", "no JSON", "2026-11-21T10:00:01Z");
    binary["body"].take();
    binary["body_base64"] = "/wAB".into();
    import(&fixture, [line("a1", "permanent", "x", "2026-11-21T10:00:00Z"), binary]);
    let exported = fixture.get(&format!("{DLQ}/export")).ok(200);
    assert!(exported.head.contains("content-type: application/x-ndjson"), "{}", exported.head);
    let text = exported.text().to_owned();
    assert_eq!(text.lines().count(), 2);
    fixture.get("/api/v1/queues/nobody/dlq/export").problem(404);

    fixture.post(&format!("{DLQ}/purge"), r#"{"all": true}"#).ok(200);
    let dry = fixture.post(&format!("{DLQ}/import?dry_run=true"), &text).ok(200).json();
    assert_eq!((&dry["selected"], &dry["done"], &dry["dry_run"]), (&json!(2), &json!(0), &json!(true)));
    fixture.post(&format!("{DLQ}/import"), &text).ok(200);
    assert_eq!(fixture.get(&format!("{DLQ}/export")).ok(200).text(), text);
    assert_eq!(fixture.get(&format!("{DLQ}/b1/raw")).ok(200).body, [0xff, 0, 1]);

    let torn = format!("{}\n{{\"id\":", line("c1", "permanent", "x", "2026-11-21T10:00:00Z"));
    let detail = fixture.post(&format!("{DLQ}/import"), &torn).problem(400);
    assert!(detail.contains("1 dead letters were stored") && detail.contains("line 2"), "{detail}");
    fixture.get(&format!("{DLQ}/c1")).ok(200);
}
