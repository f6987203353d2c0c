//! `config`, and where the configuration and the broker come from.

use super::{CONFIG, Place, objects};

#[test]
fn init_writes_a_file_that_is_right_and_never_over_one() {
    let place = Place::empty();
    let first = place.run(["config", "init"]);
    assert_eq!((first.code, first.out.as_str()), (0, ""), "{first:?}");
    let written = std::fs::read_to_string(place.path().join("windlass.toml")).expect("written");
    assert_eq!(place.ok(["config", "init", "-"]), written);
    place.write("windlass.toml", "# mine\n");
    assert_eq!(place.run(["config", "init"]).code, 1);
    assert_eq!(std::fs::read_to_string(place.path().join("windlass.toml")).expect("there"), "# mine\n");
    place.ok(["config", "init", "other.toml", "--dry-run"]);
    assert!(!place.path().join("other.toml").exists());
    place.ok(["config", "init", "other.toml"]);
    let checked = place.run(["config", "check", "other.toml"]);
    assert_eq!(checked.code, 0, "{checked:?}");
    // `run` of this binary has its job.
    assert!(!checked.err.contains("would refuse"), "{checked:?}");
}

#[test]
fn check_says_every_fault_at_once() {
    let place = Place::with("broker = \"sqlite://a.db\"\n[worker]\nconcurrency = 3\ngrace = 5\n[queues.UP]\n");
    let left = place.run(["config", "check"]);
    assert_eq!((left.code, left.out.as_str()), (78, ""), "{left:?}");
    for part in ["windlass.toml:3:", "slots", "windlass.toml:4:", "windlass.toml:5:"] {
        assert!(left.err.contains(part), "{part} is missing: {}", left.err);
    }
    assert!(left.err.lines().all(|line| line.starts_with("error: ")), "{}", left.err);
    let json = place.run(["config", "check", "--json"]);
    assert_eq!(json.code, 78);
    assert!(objects(&json.out).len() >= 3, "{json:?}");
    // So does every other verb.
    assert_eq!(place.run(["status"]).code, 78);
    // A file that is not there.
    assert_eq!(place.run(["config", "check", "absent.toml"]).code, 78);
    assert_eq!(place.run(["status", "--config", "absent.toml"]).code, 78);
}

#[test]
fn check_says_what_run_would_refuse_and_no_broker_need_be_asked_about() {
    let place = Place::empty();
    place.write("empty", "\n");
    place.write("not.pem", "certainly no certificate");
    let text = r#"
broker = "nats://10.1.2.3:4222"
[queues.invoice]
topics = ["a..b", "orders.>.new", "orders.>", "orders.*.made"]
[jobs.invoice]
http = "https://127.0.0.1:1/jobs"
bearer_file = "absent-bearer"
ca_file = "not.pem"
[admin]
token_file = "empty"
[nats]
credentials_file = "absent.creds"
tls = { ca_file = "absent-ca.pem", cert_file = "not.pem", key_file = "absent.key" }
[kafka]
sasl = { mechanism = "PLAIN", user = "me", password_file = "absent-password" }
[kafka.options]
bogus = 1
"#;
    place.write("windlass.toml", text);
    let left = place.run(["config", "check"]);
    assert_eq!((left.code, left.out.as_str()), (78, ""), "{left:?}");
    let mut expected = vec![
        "windlass.toml: namespace: must be set",
        "windlass.toml:4:11: queues.invoice.topics: topic \"a..b\"",
        "windlass.toml:4:19: queues.invoice.topics: topic \"orders.>.new\"",
        "windlass.toml:7:15: jobs.invoice.bearer_file: absent-bearer cannot be read: no such file or directory",
        "windlass.toml:8:11: jobs.invoice.ca_file: not.pem is no PEM file",
        "windlass.toml:10:14: admin.token_file: empty is empty",
        "windlass.toml:12:20: nats.credentials_file: absent.creds cannot be read",
        "nats.tls.ca_file: absent-ca.pem cannot be read",
        "nats.tls.cert_file: not.pem is no PEM file",
        "nats.tls.key_file: absent.key cannot be read",
    ];
    if cfg!(feature = "kafka") {
        expected.push("windlass.toml:17:1: kafka.options.bogus: librdkafka has no such property");
    }
    for part in &expected {
        assert!(left.err.contains(part), "{part} is missing:\n{}", left.err);
    }
    assert_eq!(left.err.matches("error: ").count(), expected.len(), "{}", left.err);
    assert!(!left.err.contains("absent-password"), "a table that is not in use refuses nothing: {}", left.err);
    // It warns, and what is in the files is looked at once they are there.
    let mended = text
        .replace("bogus = 1", "")
        .replace("10.1.2.3", "127.0.0.1")
        .replace("\"a..b\", \"orders.>.new\", ", "")
        .replace("ca_file = \"not.pem\"\n", "")
        .lines()
        .filter(|line| !["bearer_file", "token_file", "tls ="].iter().any(|key| line.starts_with(key)))
        .collect::<Vec<_>>()
        .join("\n");
    place.write("windlass.toml", &mended);
    place.write("absent.creds", "no credentials at all");
    let left = place.run(["config", "check"]);
    if cfg!(feature = "nats") {
        assert_eq!(left.code, 78, "{left:?}");
        assert!(left.err.contains("nats.credentials_file: absent.creds is no credentials file"), "{left:?}");
    }
    place.write("windlass.toml", mended.replace("credentials_file", "#"));
    let left = place.run(["config", "check"]);
    assert_eq!(left.code, 0, "{left:?}");
    assert!(left.err.contains("warning: windlass.toml:") && left.err.contains("absent-password"), "{left:?}");
    // Topics that are none are refused by `run` too, before it asks the broker.
    place.write("windlass.toml", "broker = \"nats://127.0.0.1:1\"\n[queues.q]\njob = \"log\"\ntopics = [\"a..b\"]\n");
    let left = place.run(["run", "--burst"]);
    assert_eq!(left.code, 78, "{left:?}");
    assert!(left.err.contains("queues.q.topics") && left.err.contains("a..b"), "{left:?}");
}

#[test]
fn unknown_variables_are_a_fault_for_check_alone() {
    let place = Place::new();
    let with = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        command.env("WINDLASS_WORKER__SLOTZ", "3");
        super::run(command, b"")
    };
    assert_eq!(with(&["config", "check"]).code, 78);
    let show = with(&["config", "show"]);
    assert_eq!(show.code, 0, "{show:?}");
    assert!(show.err.contains("warning: WINDLASS_WORKER__SLOTZ"), "{show:?}");
    // What is meant is named as a variable, by its spelling and by what others call it.
    for (name, meant) in [
        ("WINDLASS_SLOTS", "WINDLASS_WORKER__SLOTS"),
        ("WINDLASS_CONCURRENCY", "WINDLASS_WORKER__SLOTS"),
        ("WINDLASS_LOG_LEVEL", "WINDLASS_LOG__LEVEL"),
    ] {
        let mut command = place.command(["config", "check"]);
        command.env(name, "3");
        let left = super::run(command, b"");
        assert!(left.code == 78 && left.err.contains(&format!("{name}: ")), "{left:?}");
        assert!(left.err.trim_end().trim_end_matches('?').ends_with(meant), "{left:?}");
    }
}

#[test]
fn show_names_where_each_value_came_from() {
    let place = Place::new();
    let mut command = place.command(["config", "show", "--set", "worker.slots=128", "--json"]);
    command.env("WINDLASS_WORKER__GRACE", "9s");
    let left = super::run(command, b"");
    let settings = objects(&left.out);
    let origin = |key: &str| {
        let setting = settings.iter().find(|setting| setting["key"] == key).unwrap_or_else(|| panic!("no {key}"));
        (setting["value"].clone(), setting["origin"].as_str().expect("text").to_owned())
    };
    // Values are JSON's own, not TOML in quotes.
    assert_eq!(origin("worker.slots").0, 128);
    assert_eq!(origin("broker").0, "sqlite://windlass.db");
    assert_eq!(origin("queues.invoice.topics").0, serde_json::json!(["reports.finalized"]));
    assert!(origin("worker.slots").1.contains("--set"));
    assert!(origin("worker.grace").1.contains("WINDLASS_WORKER__GRACE"));
    assert!(origin("broker").1.contains("windlass.toml:2"));
    assert_eq!(origin("worker.lease").1, "default");
    assert!(place.ok(["config", "show"]).contains("slots = 64"));
}

#[test]
fn the_schema_is_json() {
    let text = Place::empty().ok(["config", "schema"]);
    let schema: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(schema["properties"]["worker"].is_object());
}

#[test]
fn the_broker_comes_from_the_nearest_place() {
    let place = Place::empty();
    let none = place.run(["publish", "t", "1", "--allow-unheard"]);
    assert_eq!(none.code, 0, "{none:?}");
    assert!(none.err.contains("using sqlite://windlass.db"), "{none:?}");
    assert!(place.path().join("windlass.db").exists());
    // -q silences what is not an error.
    let quiet = place.run(["publish", "t", "1", "--allow-unheard", "-q"]);
    assert_eq!((quiet.code, quiet.err.as_str()), (0, ""), "{quiet:?}");
    let mut command = place.command(["publish", "t", "1", "--allow-unheard"]);
    command.env("WINDLASS_BROKER", "sqlite://env.db");
    let env = super::run(command, b"");
    assert_eq!((env.code, env.err.as_str()), (0, ""), "{env:?}");
    assert!(place.path().join("env.db").exists());
    let flag = place.run(["publish", "t", "1", "--allow-unheard", "--broker", "sqlite://flag.db"]);
    assert_eq!((flag.code, flag.err.as_str()), (0, ""), "{flag:?}");
    assert!(place.path().join("flag.db").exists());
    // A file that a variable names.
    let other = place.write("other.toml", CONFIG.replace("windlass.db", "other.db"));
    let mut command = place.command(["publish", "reports.finalized", "1"]);
    command.env("WINDLASS_CONFIG", &other);
    assert_eq!(super::run(command, b"").code, 0);
    assert!(place.path().join("other.db").exists());
    // With a file a missing broker is a fault of the file.
    place.write("windlass.toml", CONFIG.replace("broker =", "#broker ="));
    assert_eq!(place.run(["status"]).code, 78);
}

#[test]
fn only_verbs_that_write_make_a_file() {
    let place = Place::new();
    for verb in [
        &["status"][..],
        &["dlq", "list"],
        &["queues", "list"],
        &["doctor"],
        &["publish", "reports.finalized", "1", "--dry-run"],
    ] {
        let left = place.run(verb);
        assert!(!place.path().join("windlass.db").exists(), "{verb:?} made the file: {left:?}");
        assert_ne!(left.code, 0, "{verb:?}: {left:?}");
        assert!(left.err.starts_with("error: "), "{verb:?}: {left:?}");
    }
}

#[test]
fn what_a_person_must_change_is_78() {
    let place = Place::new();
    place.write("foreign.db", "this is no database, and long enough to be looked at as one: ".repeat(20));
    let left = place.run(["status", "--broker", "sqlite://foreign.db"]);
    assert_eq!((left.code, left.out.as_str()), (78, ""), "{left:?}");
    // `sqlite:///x.db` is a path from the root.
    let root = place.run(["publish", "t", "1", "--broker", "sqlite:///no/such/x.db"]);
    assert_eq!(root.code, 78, "{root:?}");
}

#[test]
#[cfg(feature = "nats")]
fn an_unreachable_broker_is_69_and_its_password_is_not_shown() {
    let place = Place::empty();
    let left = place.run(["status", "--broker", "nats://user:secret@127.0.0.1:1", "--timeout", "500ms"]);
    assert_eq!((left.code, left.out.as_str()), (69, ""), "{left:?}");
    assert!(left.err.contains("127.0.0.1:1") && !left.err.contains("secret"), "{left:?}");
}

#[test]
#[cfg(feature = "kafka")]
fn an_unreachable_cluster_is_69_and_its_password_is_not_shown() {
    let place = Place::empty();
    let left = place.run(["status", "--broker", "kafka://user:secret@127.0.0.1:1", "--timeout", "500ms"]);
    assert_eq!((left.code, left.out.as_str()), (69, ""), "{left:?}");
    assert!(!left.err.contains("secret"), "{left:?}");
}
