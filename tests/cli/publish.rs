//! `publish`, `enqueue`, `status`, `queues`.

use super::{Place, keys, objects};

#[test]
fn publish_prints_the_id_that_the_broker_confirmed() {
    let place = Place::new();
    let given = place.run(["publish", "reports.finalized", "{\"a\":1}", "--id", "evt 1"]);
    assert_eq!((given.code, given.out.as_str(), given.err.as_str()), (0, "evt 1\n", ""), "{given:?}");
    let made = place.ok(["publish", "reports.finalized", "{}"]);
    assert_eq!(made.trim().len(), 36, "a UUID: {made}");
    let json = place.ok(["publish", "reports.finalized", "{}", "--id", "x", "-o", "json"]);
    assert_eq!(json, "{\"id\":\"x\",\"topic\":\"reports.finalized\",\"queues\":2}\n");
    assert_eq!(place.figure("invoice", "ready"), 3);
    assert_eq!(place.figure("analytics", "ready"), 3);
    assert_eq!(place.figure("nightly", "ready"), 0);
}

#[test]
fn bodies_come_from_three_places() {
    let place = Place::new();
    place.write("body.json", "{\"a\":1}");
    place.ok(["publish", "reports.finalized", "@body.json"]);
    assert_eq!(place.feed(["publish", "reports.finalized", "-"], b"{}").code, 0);
    assert_eq!(place.feed(["pub", "reports.finalized"], b"{}").code, 0);
    assert_eq!(place.run(["publish", "reports.finalized", "--empty"]).code, 0);
    // Nothing at all is not meant to be an empty body.
    let empty = place.feed(["publish", "reports.finalized"], b"");
    assert_eq!(empty.code, 2, "{empty:?}");
    assert!(empty.err.contains("--empty"), "{empty:?}");
    assert_eq!(place.run(["publish", "reports.finalized", "@absent.json"]).code, 1);
    assert_eq!(place.figure("invoice", "ready"), 4);
}

#[test]
fn a_topic_that_no_queue_hears_is_refused() {
    let place = Place::new();
    let left = place.run(["publish", "reports.finalised", "1"]);
    assert_eq!((left.code, left.out.as_str()), (1, ""), "{left:?}");
    assert!(left.err.contains("reports.finalized"), "names the nearest: {left:?}");
    place.ok(["publish", "reports.finalised", "1", "--allow-unheard"]);
}

#[test]
fn lines_are_events() {
    let place = Place::new();
    let text = "{\"n\":1}\n\n{\"n\":2}\n{\"n\":3}\n";
    let left = place.feed(["publish", "reports.finalized", "-", "--lines", "--json"], text.as_bytes());
    assert_eq!(left.code, 0, "{left:?}");
    let ids: std::collections::HashSet<String> =
        objects(&left.out).iter().map(|event| event["id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(ids.len(), 3);
    let rest = place.feed(["publish", "reports.finalized", "-", "--lines", "--skip", "3"], text.as_bytes());
    assert_eq!((rest.code, rest.out.lines().count()), (0, 1), "{rest:?}");
    let stopped = place.feed(["publish", "nobody.hears", "-", "--lines"], text.as_bytes());
    assert_eq!((stopped.code, stopped.out.as_str()), (1, ""), "{stopped:?}");
    assert!(stopped.err.contains("line 1: ") && stopped.err.contains("--skip 0"), "{stopped:?}");
    assert_eq!(place.figure("invoice", "ready"), 4);
    // Many: stored in batches, and all of them.
    let many: String = (0..1_000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let left = place.feed(["publish", "reports.finalized", "-", "--lines"], many.as_bytes());
    assert_eq!((left.code, left.out.lines().count()), (0, 1_000));
    assert_eq!(place.figure("invoice", "ready"), 1_004);
}

#[test]
fn nobody_who_reads_the_ids_is_no_reason_to_send_no_more() {
    let place = Place::new();
    let many: String = (0..1_000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    place.write("many.jsonl", many);
    let mut command = place.command(["publish", "reports.finalized", "@many.jsonl", "--lines"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("the binary starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert_eq!(place.figure("invoice", "ready"), 1_000);
}

/// Lines go out many at once: what lies behind one that is refused may be stored. Whoever does what is said then has
/// each line stored once.
#[test]
#[cfg(feature = "nats")]
fn a_line_that_is_refused_stops_the_rest_and_what_is_said_neither_loses_nor_doubles() {
    use crate::support::nats::{Nats, Release};
    const BAD: [usize; 2] = [150, 170];
    let Some(server) = Nats::with(Release::New, "max_payload: 64KB\n") else { return };
    let place = Place::with(&format!(
        "broker = \"nats://{}\"\nnamespace = \"t\"\n[queues.q]\ntopics = [\"orders\"]\njob = \"log\"\n",
        server.host()
    ));
    let line = |n: usize, size: usize| format!("{{\"n\":\"{n:04}\",\"x\":\"{}\"}}\n", "x".repeat(size));
    let text: String = (1..=300).map(|n| line(n, if BAD.contains(&n) { 70_000 } else { 0 })).collect();
    place.write("lines", &text);
    let mut skip = 0_u64;
    let mut stops = 0;
    loop {
        let skipped = skip.to_string();
        let left = place.run(["publish", "orders", "@lines", "--lines", "--skip", &skipped]);
        if left.code == 0 {
            break;
        }
        stops += 1;
        assert!(left.code == 1 && stops <= 2, "{left:?}");
        assert!(left.err.contains("error: line 1"), "{left:?}");
        let stored = format!("stored: {}", left.out.lines().count());
        assert!(left.err.contains(&stored), "{stored}: {left:?}");
        let word = |text: &str| {
            let (_, rest) = left.err.split_once(text)?;
            rest.split(|c: char| !c.is_ascii_digit() && c != 'p' && c != ';').next().map(str::to_owned)
        };
        skip = word("--skip ").and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no --skip: {left:?}"));
        // What it leaves out is sent by itself, mended; what stands behind is mended where it stands.
        let mut apart = String::new();
        for number in word("sed -n '").iter().flat_map(|script| script.split(';')) {
            let number: usize = number.trim_end_matches('p').parse().expect("a line's number");
            assert!(BAD.contains(&number), "{left:?}");
            apart += &line(number, 0);
        }
        place.write("lines", text.replace(&"x".repeat(70_000), ""));
        if !apart.is_empty() {
            assert_eq!(place.feed(["publish", "orders", "-", "--lines"], apart.as_bytes()).code, 0);
        }
    }
    assert!(stops > 0, "nothing was refused");
    let run = place.run(["run", "--burst", "--json", "--set", "log.format=json", "--set", "admin.listen=none"]);
    assert_eq!((run.code, &objects(&run.out)[0]["done"]), (0, &300.into()), "{}", run.out);
    for number in 1..=300 {
        let body = format!("\\\"n\\\":\\\"{number:04}\\\"");
        assert_eq!(run.err.matches(&body).count(), 1, "line {number} of {} bytes of log", run.err.len());
    }
}

#[test]
fn doubtful_bodies_are_mentioned() {
    let place = Place::new();
    let left = place.run(["publish", "reports.finalized", "{\"a\":"]);
    assert_eq!(left.code, 0, "{left:?}");
    assert!(left.err.contains("looks like JSON and is not"), "{left:?}");
    let said =
        place.run(["publish", "reports.finalized", "{\"a\":", "--content-type", "application/json", "--dry-run"]);
    assert!(said.err.contains("is not JSON, which its --content-type says"), "{said:?}");
    let bare = place.feed(["publish", "reports.finalized", "--bare"], b"\xff\xfe");
    assert_eq!((bare.code, bare.out.as_str()), (0, "sqlite:reports.finalized:2\n"), "{bare:?}");
    assert!(bare.err.contains("not UTF-8"), "{bare:?}");
    let json = place.ok(["publish", "reports.finalized", "1", "--bare", "--json"]);
    assert_eq!(json, "{\"id\":\"sqlite:reports.finalized:3\",\"topic\":\"reports.finalized\",\"queues\":2}\n");
}

#[test]
fn what_has_a_flag_is_no_header() {
    let place = Place::new();
    for (header, flag) in [("Content-Type: text/csv", "--content-type"), ("ce-id=1", "--id"), ("ce_type=t", "--type")] {
        let left = place.run(["publish", "reports.finalized", "1", "-H", header]);
        assert_eq!(left.code, 2, "{left:?}");
        assert!(left.err.contains(flag), "{left:?}");
    }
    assert!(!place.path().join("windlass.db").exists(), "nothing was stored");
    // What no flag says is a header, and so is all of it where nothing else is sent.
    place.ok(["publish", "reports.finalized", "1", "-H", "ce-subject=s"]);
    place.ok(["publish", "reports.finalized", "1", "--bare", "-H", "ce-id=1"]);
}

#[test]
fn a_dry_run_stores_nothing() {
    let place = Place::new();
    place.ok(["publish", "reports.finalized", "1"]);
    let left = place.run(["publish", "reports.finalized", "1", "--dry-run", "--json"]);
    assert_eq!(left.code, 0, "{left:?}");
    assert_eq!(objects(&left.out)[0]["queues"], 2);
    assert_eq!(place.run(["publish", "reports.finalised", "1", "--dry-run"]).code, 1);
    place.ok(["enqueue", "nightly", "1", "--dry-run"]);
    assert_eq!((place.figure("invoice", "ready"), place.figure("nightly", "ready")), (1.into(), 0.into()));
}

#[test]
fn enqueue_is_for_one_queue() {
    let place = Place::new();
    let now = place.ok(["enqueue", "nightly", "{}", "--id", "j1", "--json"]);
    assert_eq!(now, "{\"id\":\"j1\",\"queue\":\"nightly\",\"not_before\":null}\n");
    let later = place.json(["enqueue", "nightly", "{}", "--in", "10m"]);
    assert!(later[0]["not_before"].as_str().is_some_and(|at| at.ends_with('Z')), "{later:?}");
    let at = place.json(["enqueue", "nightly", "--empty", "--at", "2036-12-01T06:00:00Z"]);
    assert_eq!(at[0]["not_before"], "2036-12-01T06:00:00.000Z");
    place.ok(["enqueue", "nightly", "{}", "--job", "sleep", "-k", "k", "-H", "x-a: 1", "--expires", "1h"]);
    assert_eq!(place.figure("nightly", "ready"), 2);
    assert_eq!(place.figure("nightly", "scheduled"), 2);
    assert_eq!(place.figure("invoice", "ready"), 0);
    // However far ahead: a time that can be read again.
    let far = place.json(["enqueue", "nightly", "{}", "--in", "36500000d"]);
    assert_eq!(far[0]["not_before"], "9999-12-30T22:00:00.000Z");
    assert_eq!(place.figure("nightly", "scheduled"), 3);
    let unknown = place.run(["enqueue", "nigthly", "{}"]);
    assert_eq!((unknown.code, unknown.out.as_str()), (1, ""), "{unknown:?}");
    assert!(unknown.err.contains("nightly"), "{unknown:?}");
}

#[test]
fn enqueue_finds_a_queue_that_only_the_broker_knows() {
    let place = Place::new();
    place.ok(["publish", "reports.finalized", "1"]);
    std::fs::remove_file(place.path().join("windlass.toml")).expect("removed");
    place.ok(["enqueue", "invoice", "1"]);
    assert_eq!(place.run(["enqueue", "other", "1"]).code, 1);
    assert_eq!(place.figure("invoice", "ready"), 2);
}

#[test]
fn status_has_the_shape() {
    let place = Place::new();
    place.ok(["publish", "reports.finalized", "1"]);
    let text = place.ok(["status", "--json"]);
    assert_eq!(text.lines().count(), 1);
    assert_eq!(keys(&text), ["broker", "queues"]);
    let status = &objects(&text)[0];
    assert_eq!(status["broker"], "sqlite://windlass.db");
    let names: Vec<_> = status["queues"].as_array().expect("an array").iter().map(|q| q["name"].clone()).collect();
    assert_eq!(names, ["analytics", "invoice", "nightly"]);
    let queue = serde_json::to_string(&status["queues"][0]).expect("JSON");
    let at = text.find("{\"name\"").expect("a queue");
    let queue_text = &text[at..=at + text[at..].find('}').expect("its end")];
    assert_eq!(
        keys(queue_text),
        [
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
            "paused"
        ],
        "{queue}"
    );
    let table = place.ok(["status", "invoice"]);
    assert!(table.contains("QUEUE") && table.contains("invoice") && !table.contains("nightly"), "{table}");
    assert!(!table.contains('\x1b'), "no colour off a terminal: {table:?}");
    assert_eq!(place.run(["status", "absent"]).code, 1);
}

#[test]
fn fail_if_leaves_with_1() {
    let place = Place::new();
    place.ok(["publish", "reports.finalized", "1"]);
    place.ok(["status", "--fail-if", "dead>0,ready>10000,age>5m"]);
    let left = place.run(["status", "--fail-if", "dead>0,ready>=1", "--json"]);
    assert_eq!(left.code, 1, "{left:?}");
    assert_eq!(objects(&left.out).len(), 1, "the data is there all the same");
    assert!(left.err.contains("invoice: ready>=1 (it is 1)"), "{left:?}");
    assert_eq!(place.run(["status", "--fail-if", "workers<1"]).code, 1);
    place.ok(["status", "nightly", "--fail-if", "ready>=1"]);
    // --watch ends where a condition holds.
    assert_eq!(place.run(["status", "--watch=100ms", "--fail-if", "ready>0"]).code, 1);
}

#[test]
fn queues_are_listed_and_forgotten() {
    let place = Place::new();
    place.ok(["publish", "reports.finalized", "1"]);
    let queues = place.json(["queues", "list"]);
    let shown: Vec<_> = queues.iter().map(|q| (q["name"].clone(), q["topics"].clone())).collect();
    assert_eq!(shown[1], ("invoice".into(), serde_json::json!(["reports.finalized"])), "{shown:?}");
    assert!(place.ok(["queues", "ls"]).contains("nightly"));
    assert_eq!(place.run(["queues", "forget", "absent"]).code, 1);
    let left = place.run(["queues", "forget", "invoice"]);
    assert_ne!(left.code, 0, "it holds a job: {left:?}");
    assert!(left.err.contains("--yes"), "{left:?}");
    let dry = place.run(["queues", "forget", "invoice", "--dry-run"]);
    assert!(dry.code == 0 && dry.err.contains("holds 1 job, which would be lost"), "{dry:?}");
    assert_eq!(place.figure("invoice", "ready"), 1);
    let gone = place.json(["queues", "forget", "invoice", "--yes"]);
    assert_eq!(gone[0], serde_json::json!({"queue": "invoice", "jobs": 1, "dry_run": false}));
    assert_eq!(place.run(["status", "invoice"]).code, 1);
}

#[test]
fn doctor_speaks_in_findings() {
    let place = Place::new();
    place.ok(["publish", "reports.finalized", "1"]);
    let left = place.run(["doctor", "--json"]);
    assert!(left.code == 0, "{left:?}");
    for line in left.out.lines() {
        assert_eq!(keys(line), ["severity", "subject", "finding", "fix"]);
    }
    assert!(left.out.contains("synchronous") || !left.out.contains("\"error\""));
    let normal = place.run(["doctor", "--set", "sqlite.synchronous=normal"]);
    assert!(normal.out.contains("sqlite.synchronous"), "{normal:?}");
}
