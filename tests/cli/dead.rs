//! `dlq ..` on letters that were imported.

use super::{Place, keys, objects};

const LETTERS: &[(&str, &str, &str)] = &[
    ("aa1", "evt-1", "no report 17"),
    ("aa2", "evt-2", "no report 18"),
    ("ab3", "evt-3", "disk full"),
    ("bb4", "evt-3", "disk full"),
];

fn place() -> Place {
    let place = Place::new();
    place.letters("invoice", LETTERS);
    place
}

fn ids(values: &[serde_json::Value]) -> Vec<&str> {
    values.iter().map(|value| value["id"].as_str().expect("an id")).collect()
}

#[test]
fn list_is_newest_first_and_has_the_shape() {
    let place = place();
    let text = place.ok(["dlq", "list", "--json"]);
    assert_eq!(ids(&objects(&text)), ["bb4", "ab3", "aa2", "aa1"]);
    assert_eq!(
        keys(text.lines().next().expect("a line")),
        [
            "id",
            "queue",
            "event_id",
            "job",
            "topic",
            "key",
            "reason",
            "error_type",
            "error",
            "attempts",
            "first_failed",
            "last_failed",
            "fingerprint",
            "replays"
        ]
    );
    let row = &objects(&text)[3];
    assert_eq!((&row["queue"], &row["event_id"], &row["attempts"]), (&"invoice".into(), &"evt-1".into(), &3.into()));
    assert_eq!(row["last_failed"], "2026-11-01T11:00:00.000Z");
    let table = place.ok(["dlq", "ls", "invoice"]);
    assert!(table.contains("io::Error: no report 17") && table.contains("ago"), "{table}");
    assert!(place.ok(["dlq", "list", "analytics"]).is_empty());
}

#[test]
fn a_queue_that_is_not_there_has_no_clean_dead_letter_queue() {
    let place = place();
    for verb in ["list", "groups", "export"] {
        let left = place.run(["dlq", verb, "invoise"]);
        assert_eq!(left.code, 1, "{left:?}");
        assert!(left.err.contains("invoice"), "the nearest is named: {left:?}");
        place.ok(["dlq", verb, "analytics"]);
    }
}

#[test]
fn what_is_replayed_into_a_forgotten_queue_is_seen() {
    let place = place();
    place.ok(["queues", "forget", "invoice", "--yes"]);
    place.write("windlass.toml", "broker = \"sqlite://windlass.db\"\n[queues.nightly]\njob = \"log\"\n");
    place.ok(["dlq", "replay", "invoice", "--all", "--yes"]);
    assert_eq!((place.figure("invoice", "ready"), place.figure("invoice", "dead")), (4.into(), 0.into()));
}

#[test]
fn what_cannot_be_read_is_found_by_the_id_that_its_publisher_was_told() {
    let place = Place::new();
    let id = place.feed(["publish", "reports.finalized", "--bare"], b"\xff\xfe").out;
    place.ok(["run", "--burst", "--linger", "1s"]);
    let letters = place.json(["dlq", "list", "invoice", "--event", id.trim()]);
    assert_eq!((letters.len(), &letters[0]["reason"]), (1, &"malformed".into()), "{id}: {letters:?}");
}

#[test]
fn selectors_select() {
    let place = place();
    let list = |arguments: &[&str]| {
        let all: Vec<&str> = ["dlq", "list", "invoice"].iter().chain(arguments).copied().collect();
        ids(&place.json(all)).join(" ")
    };
    assert_eq!(list(&["--error", "NO REPORT"]), "aa2 aa1");
    assert_eq!(list(&["--event", "evt-3"]), "bb4 ab3");
    assert_eq!(list(&["--reason", "permanent", "--limit", "1"]), "bb4");
    assert_eq!(list(&["--reason", "expired"]), "");
    assert_eq!(list(&["--job", "log", "--topic", "reports.finalized", "--limit", "2"]), "bb4 ab3");
    assert_eq!(list(&["--topic", "other"]), "");
    assert_eq!(list(&["--since", "2026-11-01T11:00:02Z"]), "bb4 ab3");
    assert_eq!(list(&["--until", "2026-11-01T11:00:02Z"]), "aa2 aa1");
    assert_eq!(list(&["--since", "1m"]), "");
    assert_eq!(list(&["--key", "k"]), "");
    let groups = place.json(["dlq", "groups"]);
    let print = groups[0]["fingerprint"].as_str().expect("text").to_owned();
    assert_eq!(list(&["--fingerprint", &print]), "bb4 ab3");
}

#[test]
fn a_long_list_says_how_many_more() {
    let place = Place::new();
    let many: Vec<(String, String)> = (0..130).map(|n| (format!("L{n:03}"), format!("evt-{n}"))).collect();
    let letters: Vec<(&str, &str, &str)> = many.iter().map(|(id, event)| (id.as_str(), event.as_str(), "x")).collect();
    place.letters("invoice", &letters);
    let left = place.run(["dlq", "list"]);
    assert_eq!(left.out.lines().count(), 101, "a heading and 100 rows");
    assert!(left.err.contains("30 more"), "{}", left.err);
    assert_eq!(place.ok(["dlq", "list", "--limit", "120"]).lines().count(), 121);
    assert_eq!(place.dead("invoice"), 130);
}

#[test]
fn groups_have_the_shape() {
    let place = place();
    let text = place.ok(["dlq", "groups", "invoice", "--json"]);
    assert_eq!(
        keys(text.lines().next().expect("a line")),
        ["fingerprint", "queue", "job", "count", "reason", "error_type", "error", "first", "last", "example"]
    );
    let groups = objects(&text);
    let seen: Vec<_> = groups.iter().map(|g| (g["count"].clone(), g["example"].clone())).collect();
    assert_eq!(seen, [(2.into(), "bb4".into()), (2.into(), "aa2".into())]);
    assert!(place.ok(["dlq", "groups"]).contains("disk full"));
}

#[test]
fn show_takes_ids_beginnings_and_event_ids() {
    let place = place();
    for id in ["aa1", "evt-1"] {
        let shown = place.ok(["dlq", "show", "invoice", id]);
        assert!(
            shown.contains("no report 17") && shown.contains("ce-id: evt-1") && shown.contains("\"n\": 0"),
            "{shown}"
        );
    }
    assert!(place.ok(["dlq", "show", "invoice", "b"]).contains("bb4"));
    let raw = place.run(["dlq", "show", "invoice", "aa1", "--raw"]);
    assert_eq!(raw.raw, b"{\"n\":0}");
    let json = place.json(["dlq", "show", "invoice", "aa1"]);
    assert_eq!(json, [objects(&place.ok(["dlq", "export", "invoice"]))[0].clone()]);
    assert_eq!(json[0]["headers"]["ce-id"], "evt-1");
    assert_eq!(json[0]["body"], "{\"n\":0}");
    // Several: an event's letters, and what is the beginning of several ids.
    for several in ["evt-3", "aa"] {
        let left = place.run(["dlq", "show", "invoice", several]);
        assert_eq!((left.code, left.out.lines().count()), (1, 3), "{left:?}");
    }
    let absent = place.run(["dlq", "show", "invoice", "zz"]);
    assert_eq!((absent.code, absent.out.as_str()), (1, ""), "{absent:?}");
    assert_eq!(place.run(["dlq", "show", "invoice"]).code, 2);
}

#[test]
fn the_queue_may_be_left_out_where_there_is_one() {
    let one = "broker = \"sqlite://windlass.db\"\n[queues.invoice]\ntopics = [\"reports.finalized\"]\njob = \"log\"\n";
    let place = Place::with(one);
    place.letters("invoice", LETTERS);
    assert!(place.ok(["dlq", "show", "aa1"]).contains("no report 17"));
    assert!(place.ok(["dlq", "show", "invoice", "aa1"]).contains("no report 17"));
    assert_eq!(place.json(["dlq", "replay", "aa1"])[0]["done"], 1);
    assert_eq!(place.json(["dlq", "purge", "--all", "--yes"])[0]["done"], 3);
    // With three queues a first word that is none is a fault.
    let place = super::dead::place();
    let left = place.run(["dlq", "show", "aa1"]);
    assert_eq!(left.code, 1, "{left:?}");
    let typo = place.run(["dlq", "replay", "invioce", "--all"]);
    assert_eq!(typo.code, 1);
    assert!(typo.err.contains("did you mean \"invoice\"?"), "{typo:?}");
    assert_eq!(place.run(["dlq", "replay", "--all"]).code, 2);
}

#[test]
fn replay_puts_letters_back() {
    let place = place();
    assert_eq!(place.figure("invoice", "ready"), 1);
    let dry = place.ok(["dlq", "replay", "invoice", "--all", "--dry-run", "--json"]);
    assert_eq!(dry, "{\"selected\":4,\"done\":0,\"failed\":0,\"dry_run\":true}\n");
    assert_eq!(place.dead("invoice"), 4);
    let done = place.ok(["dlq", "replay", "invoice", "--error", "no report", "--json"]);
    assert_eq!(done, "{\"selected\":2,\"done\":2,\"failed\":0,\"dry_run\":false}\n");
    assert_eq!((place.dead("invoice"), place.figure("invoice", "ready")), (2, 3.into()));
    // An event id that names two takes both.
    assert_eq!(place.json(["dlq", "retry", "invoice", "evt-3"])[0]["done"], 2);
    assert_eq!((place.dead("invoice"), place.figure("invoice", "ready")), (0, 5.into()));
    assert_eq!(place.figure("analytics", "ready"), 1, "a replay goes to its own queue alone");
    // Nothing left is no fault of a selector, but of an id.
    assert_eq!(place.json(["dlq", "redrive", "invoice", "--all"])[0]["selected"], 0);
    assert_eq!(place.run(["dlq", "replay", "invoice", "aa1"]).code, 1);
}

#[test]
fn what_is_meant_must_be_said() {
    let place = place();
    for verb in ["replay", "purge"] {
        let left = place.run(["dlq", verb, "invoice", "--yes"]);
        assert_eq!(left.code, 2, "{left:?}");
        assert_eq!(place.run(["dlq", verb, "invoice", "aa1", "--all", "--yes"]).code, 2);
        // The beginning of several ids is the id of none.
        let left = place.run(["dlq", verb, "invoice", "aa", "--yes", "--json"]);
        assert_eq!((left.code, &objects(&left.out)[0]["selected"]), (1, &0.into()), "{left:?}");
        assert!(left.err.contains("2 dead letters begin with aa"), "{left:?}");
    }
    assert_eq!(place.dead("invoice"), 4);
}

#[test]
fn ids_come_from_lines_too() {
    let place = place();
    place.write("ids", "aa1\n\nevt-2\n");
    let left = place.run(["dlq", "replay", "invoice", "@ids", "--json", "--rate", "none"]);
    assert_eq!((left.code, &objects(&left.out)[0]["done"]), (0, &2.into()), "{left:?}");
    let listing = place.ok(["dlq", "list", "--json"]);
    let left = place.feed(["dlq", "rm", "invoice", "-", "--json", "--yes"], listing.as_bytes());
    assert_eq!((left.code, &objects(&left.out)[0]["done"]), (0, &2.into()), "{left:?}");
    // One that is gone is said, and the others are done: so a killed run is resumed.
    place.letters("invoice", LETTERS);
    let left = place.feed(["dlq", "replay", "invoice", "-", "--json"], b"aa1\nzz9\naa2\n");
    assert_eq!((left.code, &objects(&left.out)[0]["done"]), (1, &2.into()), "{left:?}");
    assert!(left.err.contains("zz9"), "{left:?}");
    // No ids at all is nothing to do.
    assert_eq!(place.feed(["dlq", "replay", "invoice", "-"], b"").code, 0);
}

#[test]
fn purge_asks() {
    let place = place();
    let left = place.run(["dlq", "purge", "invoice", "aa1"]);
    assert_eq!(left.code, 2, "nobody is here to answer: {left:?}");
    assert!(left.err.contains("--yes"), "{left:?}");
    assert_eq!(place.json(["dlq", "purge", "invoice", "aa1", "--yes"])[0]["done"], 1);
    place.ok(["dlq", "purge", "invoice", "--all", "--dry-run"]);
    assert_eq!(place.dead("invoice"), 3);
    assert_eq!(place.json(["dlq", "purge", "invoice", "--all", "--limit", "1", "--yes"])[0]["done"], 1);
    // The oldest went first.
    assert_eq!(ids(&place.json(["dlq", "list"])), ["bb4", "ab3"]);
}

#[test]
fn a_letter_is_replayed_mended() {
    let place = place();
    place.write("mended.json", "{\"mended\":true}");
    assert_eq!(place.run(["dlq", "replay", "invoice", "--all", "--body", "@mended.json"]).code, 2);
    assert_eq!(place.run(["dlq", "replay", "invoice", "evt-3", "--as-job", "sleep"]).code, 1);
    assert_eq!(place.run(["dlq", "replay", "invoice", "aa1", "--to", "absent"]).code, 1);
    assert_eq!(place.run(["dlq", "replay", "invoice", "aa1", "--body", "mended.json"]).code, 2);
    let arguments =
        ["dlq", "replay", "invoice", "aa1", "--body", "@mended.json", "--as-job", "fail", "--to", "nightly"];
    assert_eq!(place.json(arguments)[0]["done"], 1);
    assert_eq!((place.dead("invoice"), place.figure("nightly", "ready")), (3, 1.into()));
}

#[test]
fn export_and_import_keep_letters_whole() {
    let place = place();
    let binary = serde_json::json!({
        "id": "bin", "event_id": null, "job": "log", "reason": "malformed", "error": "not UTF-8",
        "headers": {"x-a": "1", "x-b:base64": "/w=="}, "body_base64": "/wAB", "key": "k", "attempts": 0,
    });
    assert_eq!(place.feed(["dlq", "import", "invoice", "-"], binary.to_string().as_bytes()).code, 0);
    let exported = place.ok(["dlq", "export", "invoice"]);
    let lines = objects(&exported);
    assert_eq!(ids(&lines), ["aa1", "aa2", "ab3", "bb4", "bin"], "the oldest first");
    assert_eq!((&lines[4]["body_base64"], &lines[4]["headers"]["x-b:base64"]), (&"/wAB".into(), &"/w==".into()));
    assert_eq!(place.run(["dlq", "show", "invoice", "bin", "--raw"]).raw, b"\xff\x00\x01");
    // Importing what is there replaces it.
    place.write("all.ndjson", &exported);
    let again = place.json(["dlq", "import", "invoice", "@all.ndjson"]);
    assert_eq!(again[0], serde_json::json!({"selected": 5, "done": 5, "failed": 0, "dry_run": false}));
    assert_eq!(place.ok(["dlq", "export", "invoice"]), exported);
    // Into another broker.
    let other = Place::new();
    other.ok(["publish", "reports.finalized", "1"]);
    let dry = other.feed(["dlq", "import", "invoice", "-", "--dry-run"], exported.as_bytes());
    assert_eq!((dry.code, other.dead("invoice")), (0, 0), "{dry:?}");
    assert_eq!(other.feed(["dlq", "import", "invoice", "-"], exported.as_bytes()).code, 0);
    assert_eq!(other.ok(["dlq", "export"]), exported);
}

#[test]
fn a_bad_line_is_named_and_the_others_are_stored() {
    let place = place();
    let text = "{\"id\":\"n1\",\"reason\":\"permanent\",\"body\":\"1\"}\nnonsense\n{\"id\":\"n 2\",\"reason\":\"permanent\"}\n";
    let left = place.feed(["dlq", "import", "invoice", "-", "--json"], text.as_bytes());
    assert_eq!(left.code, 1, "{left:?}");
    assert_eq!(objects(&left.out)[0], serde_json::json!({"selected": 3, "done": 1, "failed": 2, "dry_run": false}));
    assert!(left.err.contains("line 2: ") && left.err.contains("line 3: id: "), "{left:?}");
    assert!(left.err.contains("not JSON from column 2 on") && !left.err.contains("at line 1"), "{left:?}");
    assert_eq!(place.run(["dlq", "import", "absent", "-"]).code, 1);
    assert_eq!(place.run(["dlq", "import", "invoice", "{}"]).code, 2);
}
