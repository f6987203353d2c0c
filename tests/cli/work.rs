//! `run`, as far as the command line goes.

use super::{Place, keys, objects};

#[test]
fn a_burst_works_everything_off() {
    let place = Place::new();
    for n in 0..10 {
        place.ok(["publish", "reports.finalized", &n.to_string()]);
    }
    let left = place.run(["run", "--burst", "--queue", "invoice", "--json"]);
    assert_eq!(left.code, 0, "{left:?}");
    assert_eq!(left.out.trim(), "{\"done\":10,\"retried\":0,\"dead\":0}", "{left:?}");
    assert_eq!(keys(left.out.trim()), ["done", "retried", "dead"]);
    assert_eq!((place.figure("invoice", "ready"), place.figure("analytics", "ready")), (0.into(), 10.into()));
    assert_eq!(place.run(["worker", "--burst", "-Q", "analytics", "-c", "3"]).code, 0);
    assert_eq!(place.figure("analytics", "ready"), 0);
}

#[test]
fn a_failure_becomes_a_dead_letter_that_can_be_replayed_mended() {
    let place = Place::with(
        "broker = \"sqlite://windlass.db\"\n[queues.hopeless]\njob = \"fail\"\ntopics = [\"t\"]\nretry = { attempts = 2, first = \"10ms\", jitter = 0.0 }\n",
    );
    place.ok(["publish", "t", "{}", "--id", "evt-1", "--key", "k1", "-H", "x-team: billing"]);
    let left = place.run(["run", "--burst", "--json"]);
    assert_eq!(left.out.trim(), "{\"done\":0,\"retried\":1,\"dead\":1}", "{left:?}");
    let letters = objects(&place.ok(["dlq", "export"]));
    let letter = &letters[0];
    assert_eq!(
        (&letter["event_id"], &letter["reason"], &letter["attempts"]),
        (&"evt-1".into(), &"exhausted".into(), &2.into())
    );
    assert_eq!(
        (&letter["key"], &letter["headers"]["x-team"], &letter["body"]),
        (&"k1".into(), &"billing".into(), &"{}".into())
    );
    assert_eq!(place.json(["dlq", "list", "--key", "k1"]).len(), 1);
    assert_eq!(place.json(["dlq", "replay", "evt-1", "--as-job", "log"])[0]["done"], 1);
    let left = place.run(["run", "--burst", "--json"]);
    assert_eq!(left.out.trim(), "{\"done\":1,\"retried\":0,\"dead\":0}", "{left:?}");
}

#[test]
fn run_refuses_what_it_cannot_work() {
    let place = Place::empty();
    let none = place.run(["run", "--burst"]);
    assert_eq!(none.code, 78, "{none:?}");
    assert!(none.err.contains("config init") && none.err.contains("--http"), "{none:?}");
    let unknown = Place::with("broker = \"sqlite://windlass.db\"\n[queues.q]\njob = \"absent\"\n");
    assert_eq!(unknown.run(["run", "--burst"]).code, 78);
    let other = Place::new().run(["run", "--burst", "--queue", "absent"]);
    assert_eq!(other.code, 1, "{other:?}");
    assert_eq!(Place::new().run(["run", "--burst", "--slots", "2"]).code, 78, "fewer slots than queues");
}
