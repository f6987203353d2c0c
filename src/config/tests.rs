//! What a file, the environment and flags make together; every fault at its place; the catalogue, the schema and the
//! files of `config/` in step.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::key::{KEYS, Kind};
use super::*;
use crate::broker::Start;
use crate::handler::{Context, Registry};

fn file(text: &str) -> Source {
    Source::new().text("w.toml", text)
}

fn faults(source: Source) -> Vec<String> {
    match load(source) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.0.iter().map(ToString::to_string).collect(),
    }
}

fn name(text: &str) -> QueueName {
    QueueName::new(text).unwrap()
}

#[test]
fn a_file_of_faults_is_told_all_at_once_with_line_and_column() {
    let text = r#"
borker = "nats://127.0.0.1:4222"
namespace = "Lab"

[worker]
slots = "64"
lease = 30
  visibility_timeout = "30s"
bytes_in_flight = "256MB"

[queues.invoice]
concurrency = 4
topics = ["ok", "not ok", 5]
retry = { max_retries = 3, factor = 0.5, jittre = 0.1 }
order = "keys"
rate = "50/s"
max_crashes = 1

[queues.Invoice]

[queues.a-b]
[queues.a_b]

[kafka.options]
"enable.auto.commit" = true
fetch.min.bytes = 1

[metrics]
port = 1
"#;
    let expected = [
        ("w.toml: broker: is missing", ""),
        ("w.toml:2:1: borker: unknown key", "did you mean \"broker\"?"),
        ("w.toml:3:13: namespace: expected a namespace", ""),
        (
            "w.toml:6:9: worker.slots: expected a whole number from 1 to 1000000, found \"64\"",
            "write 64 without quotes",
        ),
        ("w.toml:7:9: worker.lease: expected a duration", "did you mean \"30s\"?"),
        ("w.toml:8:3: worker.visibility_timeout: unknown key", "here it is called \"lease\""),
        ("w.toml:9:19: worker.bytes_in_flight: expected a size", "did you mean \"256MiB\"?"),
        ("w.toml:12:1: queues.invoice.concurrency: unknown key", "here it is called \"slots\""),
        ("w.toml:13:17: queues.invoice.topics: expected a topic", ""),
        ("w.toml:13:27: queues.invoice.topics: expected text in quotes, found the number 5", ""),
        (
            "w.toml:14:11: queues.invoice.retry.max_retries: unknown key",
            "here it is called \"attempts\" (counts the first: 3 retries are 4)",
        ),
        ("w.toml:14:37: queues.invoice.retry.factor: expected a number from 1 to 1000, found the number 0.5", ""),
        ("w.toml:14:42: queues.invoice.retry.jittre: unknown key", "did you mean \"jitter\"?"),
        ("w.toml:15:9: queues.invoice.order: expected \"none\" or \"key\", found \"keys\"", ""),
        ("w.toml:16:1: queues.invoice.rate: this name is reserved for a later version", ""),
        ("w.toml:17:15: queues.invoice.max_crashes: expected a whole number from 2", ""),
        ("w.toml:19:9: queues.Invoice: expected a queue name", "did you mean \"invoice\"?"),
        ("w.toml:22:9: queues.a_b: the environment cannot tell it from queue \"a-b\"", "rename one"),
        ("w.toml:25:1: kafka.options.\"enable.auto.commit\": refused: would lose jobs", ""),
        ("w.toml:28:2: metrics: this name is reserved", ""),
    ];
    let mut found = faults(file(text));
    for (begin, contains) in expected {
        let at = found.iter().position(|fault| fault.starts_with(begin) && fault.contains(contains));
        match at {
            Some(at) => drop(found.remove(at)),
            None => panic!("no {begin:?} with {contains:?} in\n{}", found.join("\n")),
        }
    }
    assert!(found.is_empty(), "more than expected:\n{}", found.join("\n"));
}

#[test]
fn what_is_not_toml_is_told_beside_the_rest() {
    let found = faults(file("broker = \"memory://\"\n[worker]\nslots = = 3\nslotz = 3\n[queues.a]\ntopics = [\n"));
    assert!(found.iter().any(|fault| fault.starts_with("w.toml:3:") && fault.contains("not TOML")), "{found:?}");
    assert!(found.iter().any(|fault| fault.starts_with("w.toml:4:1: worker.slotz")), "{found:?}");
    let twice = faults(file("broker = \"memory://\"\nbroker = \"memory://\""));
    assert!(twice.len() == 1 && twice[0].starts_with("w.toml:2:1: not TOML"), "{twice:?}");
}

#[test]
fn each_source_lies_over_the_one_below() {
    let source = || {
        file(
            "broker = \"nats://a:4222\"\n[worker]\nslots = 2\ngrace = \"1s\"\nconnect = \"2s\"\n[queues.a-b]\ntopics = [\"t\"]\nretry = { attempts = 3, first = \"2s\" }",
        )
    };
    let env = [
        ("WINDLASS_BROKER", "kafka://b:9092"),
        ("WINDLASS_WORKER__SLOTS", "3"),
        ("WINDLASS_WORKER__GRACE", "3s"),
        ("WINDLASS_QUEUES__A_B__RETRY__FIRST", "9s"),
        ("WINDLASS_QUEUES__A_B__TOPICS", "x, y"),
        ("WINDLASS_QUEUES__NEW__RETRY", "{ attempts = 7 }"),
        ("WINDLASS_KAFKA__OPTIONS__FETCH_MIN_BYTES", "5"),
        ("WINDLASS_JOBS__J__HTTP", "http://127.0.0.1/j"),
        ("WINDLASS_JOBS__J__HEADERS__X_TEAM", "billing"),
        ("WINDLASS_NATS__USER", ""),
        ("PATH", "/bin"),
    ];
    let loaded = load(source().env(env).sets(["worker.slots=4", "kafka.options.debug=cgrp"])).unwrap();
    let config = &loaded.config;
    assert_eq!(config.broker, "kafka://b:9092");
    assert_eq!(config.worker.slots.get(), 4);
    assert_eq!(config.worker.grace, Duration::from_secs(3));
    assert_eq!(config.worker.connect, Duration::from_secs(2));
    assert_eq!(config.worker.lease, Duration::from_secs(30));
    let queue = &config.queues["a-b"];
    assert_eq!(queue.retry.attempts, NonZeroU32::new(3));
    assert_eq!(queue.retry.first, Some(Duration::from_secs(9)));
    assert_eq!(queue.topics.iter().map(Topic::as_str).collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(config.queues["new"].retry.attempts, NonZeroU32::new(7));
    let options = [("debug", "cgrp"), ("fetch.min.bytes", "5")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(config.kafka.options, options);
    let http = config.jobs["j"].http.as_ref().unwrap();
    assert_eq!(http.headers, [("x-team".to_owned(), "billing".to_owned())]);
    assert_eq!(config.nats.user, None);
    assert_eq!(loaded.unknown, []);
    let origin = |key: &str| loaded.origins.get(key).map(ToString::to_string);
    assert_eq!(origin("worker.slots").as_deref(), Some("--set worker.slots"));
    assert_eq!(origin("worker.grace").as_deref(), Some("WINDLASS_WORKER__GRACE"));
    assert_eq!(origin("worker.connect").as_deref(), Some("w.toml:5:11"));
    assert_eq!(origin("worker.lease"), None);
    let flag = load(source().env(env).flag("--broker", "broker", "sqlite://x.db")).unwrap();
    assert_eq!(flag.config.broker, "sqlite://x.db");
}

#[test]
fn faults_of_variables_and_flags_name_them() {
    let source = Source::new()
        .env([("WINDLASS_WORKER__SLOTS", "many"), ("WINDLASS_QUEUES__A__TIMEOUT", "5")])
        .sets(["worker.grace", "worker.leese=1s", "worker..x=1", "queues.a=5"])
        .flag("--broker", "broker", "nats://me:geheim@");
    let found = faults(source);
    for expected in [
        "WINDLASS_WORKER__SLOTS: worker.slots: expected a whole number from 1 to 1000000, found \"many\"",
        "WINDLASS_QUEUES__A__TIMEOUT: queues.a.timeout: expected a duration",
        "--set worker.grace: expected KEY=VALUE",
        "--set worker.leese: worker.leese: unknown key; did you mean \"lease\"?",
        "--set worker..x: worker..x: expected a dotted key",
        "--set queues.a: queues.a: expected a table, found the number 5",
        "--broker: broker: expected nats://HOST:PORT",
    ] {
        assert!(found.iter().any(|fault| fault.starts_with(expected)), "no {expected:?} in\n{}", found.join("\n"));
    }
    assert_eq!(found.len(), 7, "{}", found.join("\n"));
    assert!(!found.concat().contains("geheim"));
}

#[test]
fn an_unknown_variable_is_a_fault_for_check_alone() {
    let source = || {
        Source::new().env([
            ("WINDLASS_WORKER__SLOTZ", "3"),
            ("WINDLASS_WORKER_LEASE", "3s"),
            ("WINDLASS_CONCURRENCY", "3"),
            ("WINDLASS_CONFIG", "x.toml"),
            ("WINDLASS_SERVICE_HOST", "10.0.0.1"),
            ("WINDLASS_PORT_7464_TCP_ADDR", "10.0.0.1"),
        ])
    };
    let loaded = load(source()).unwrap();
    let unknown: Vec<String> = loaded.unknown.iter().map(ToString::to_string).collect();
    assert_eq!(
        unknown,
        [
            "WINDLASS_CONCURRENCY: no such variable; here it is called WINDLASS_WORKER__SLOTS",
            "WINDLASS_WORKER_LEASE: no such variable; did you mean WINDLASS_WORKER__LEASE?",
            "WINDLASS_WORKER__SLOTZ: no such variable; did you mean WINDLASS_WORKER__SLOTS?",
        ]
    );
    assert_eq!(check(source()).unwrap_err().0.len(), 3);
}

#[test]
fn a_missing_broker_is_a_fault_only_with_a_file() {
    let loaded = load(Source::new()).unwrap();
    assert_eq!((loaded.config.broker.as_str(), loaded.config.broker_set), ("sqlite://windlass.db", false));
    let found = faults(file("[worker]\nslots = 1"));
    assert!(found.len() == 1 && found[0].starts_with("w.toml: broker: is missing"), "{found:?}");
    assert!(load(file("").env([("WINDLASS_BROKER", "memory://")])).unwrap().config.broker_set);
}

#[test]
fn a_file_that_cannot_be_read_is_one_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.toml");
    let found = faults(Source::new().file(Some(path.clone())));
    assert!(found.len() == 1 && found[0].contains("none.toml: cannot be read"), "{found:?}");
    std::fs::write(&path, b"broker = \"memory://\"\n# \xff").unwrap();
    let found = faults(Source::new().file(Some(path.clone())));
    assert!(found.len() == 1 && found[0].contains("none.toml:2:3: not TOML: expected UTF-8"), "{found:?}");
    assert_eq!(find(Some("a".into()), Some("b".into())), Some(PathBuf::from("a")));
    assert_eq!(find(None, Some("b".into())), Some(PathBuf::from("b")));
}

#[test]
fn addresses_are_checked_and_shown_without_passwords() {
    for good in [
        "sqlite://a.db",
        "sqlite:///a.db",
        "memory://",
        "nats://h",
        "nats://u:p@h:4222,i:4222",
        "tls://h:1",
        "kafka+tls://[::1]:9092",
    ] {
        assert!(load(Source::new().flag("--broker", "broker", good)).is_ok(), "{good}");
    }
    for bad in
        ["", "a.db", "sqlite://", "redis://h", "nats://", "nats://h:x", "kafka://h:1,", "kafka://h:0", "nats://h:1/x"]
    {
        assert!(load(Source::new().flag("--broker", "broker", bad)).is_err(), "{bad}");
    }
    assert_eq!(shown_address("nats://u:p@h:4222"), "nats://u@h:4222");
    // A name alone is a token on NATS, and a name on Kafka.
    assert_eq!(shown_address("nats://token@h:4222"), "nats://***@h:4222");
    assert_eq!(shown_address("kafka://u@h:9092"), "kafka://u@h:9092");
}

#[test]
fn retry_and_timeout_are_merged_key_by_key() {
    async fn job(_: serde_json::Value, _: Context) -> Result<(), crate::Error> {
        Ok(())
    }
    let text = r#"
broker = "memory://"
[worker]
slots = 20
[queues.a]
job = "j"
timeout = "1s"
retry = { attempts = 2, first = "2s", max = "3s", jitter = 0.5 }
[queues.h]
[jobs.h]
http = "http://127.0.0.1:1/"
[jobs.j]
retry = { first = "9s" }
"#;
    let config = load(file(text)).unwrap().config;
    let own = retry::Partial { first: Some(Duration::ZERO), max: Some(Duration::from_secs(8)), ..Default::default() };
    let registry = Registry::new().job("j", job).retry("j", own).timeout("j", Duration::from_secs(7));
    let (queue, job) = (name("a"), JobName::new("j").unwrap());
    let entry = registry.get("j");
    let policy = config.policy(&queue, &job, entry.as_ref());
    let expected = retry::Policy {
        attempts: NonZeroU32::new(2).unwrap(),
        first: Duration::from_secs(9),
        factor: 2.0,
        max: Duration::from_secs(8),
        jitter: 0.5,
    };
    assert_eq!(policy, expected);
    assert_eq!(config.timeout(&queue, &job, entry.as_ref()), Duration::from_secs(7));
    assert_eq!(config.timeout(&queue, &job, None), Duration::from_secs(1));
    assert_eq!(config.slots(&queue).get(), 20);
    assert_eq!(config.slots(&name("h")).get(), 8);
}

#[test]
fn a_worker_is_told_what_it_lacks() {
    let told = |text: &str, selected: &[&str]| {
        let config = load(file(text)).unwrap().config;
        let selected: Vec<QueueName> = selected.iter().map(|text| name(text)).collect();
        check_run(&config, &selected, &|job| job == "log").err().map(|faults| faults.to_string()).unwrap_or_default()
    };
    let none = told("broker = \"memory://\"", &[]);
    assert!(none.contains("config init") && none.contains("run --topic"), "{none}");
    let two = "broker = \"memory://\"\nworker.slots = 1\n[queues.a]\njob = \"log\"\n[queues.b]\n";
    let all = told(two, &[]);
    assert!(all.contains("queues.b.job: job \"b\" is not compiled") && all.contains("1 slots for 2 queues"), "{all}");
    assert_eq!(told(two, &["a"]), "");
    assert!(told(two, &["aa"]).contains("did you mean \"a\"?"));
    let far = "broker = \"nats://u:p@example.org\"\n[queues.a]\njob = \"log\"\n";
    assert!(told(far, &[]).contains("namespace: must be set where the broker is shared (nats://u@example.org)"));
    assert_eq!(told(&format!("namespace = \"windlass\"\n{far}"), &[]), "");
    assert_eq!(told("broker = \"kafka://localhost:9092,127.0.0.1:9093,[::1]:1\"\nqueues.log = {}", &[]), "");
}

#[test]
fn what_is_probably_not_meant_is_a_warning_of_check() {
    let loaded = load(file("broker = \"memory://\"\nworker.slots = 1\n[queues.a]\ntimeout = \"26s\"\nslots = 2\n[queues.b]\ntimeout = \"25s\"")).unwrap();
    let cautions: Vec<String> = loaded.cautions.iter().map(ToString::to_string).collect();
    assert_eq!(cautions.len(), 3, "{cautions:?}");
    assert!(cautions[0].starts_with("w.toml:4:11: queues.a.timeout: a job that runs longer"), "{cautions:?}");
    assert!(load(Source::new()).unwrap().cautions.is_empty());
}

#[test]
fn settings_that_need_others_say_so() {
    let found = faults(file(
        "broker = \"memory://\"\n[jobs.a]\nheaders = { ce-id = \"1\", x = \"y\" }\n[nats]\ntoken_file = \"a\"\nnkey_file = \"b\"\ntls.cert_file = \"c\"\n[kafka.sasl]\nmechanism = \"OAUTHBEARER\"\nuser = \"me\"",
    ));
    for expected in [
        "w.toml:3:1: jobs.a.headers: is of no use without `http`",
        "w.toml:3:13: jobs.a.headers.ce-id: names that begin with `ce-`",
        "w.toml:6:1: nats.nkey_file: cannot be used together with `token_file`",
        "w.toml:7:5: nats.tls.cert_file: is of no use without `key_file`",
        "w.toml:9:13: kafka.sasl.mechanism: OAUTHBEARER needs `token_command`",
    ] {
        assert!(found.iter().any(|fault| fault.starts_with(expected)), "no {expected:?} in\n{}", found.join("\n"));
    }
    assert_eq!(found.len(), 5, "{}", found.join("\n"));
}

#[test]
fn what_is_in_force_is_shown_without_secrets_and_reads_back_the_same() {
    let text = r#"
broker = "nats://me:geheim@h:4222"
namespace = "lab"
[queues.invoice]
topics = ["a", "b.>"]
start = 2026-11-21T10:00:00Z
dead_letter = { keep = "forever" }
[jobs."app.tasks.render"]
http = "https://me:geheim@h/x"
headers = { Authorization = "geheim", x-team = "billing" }
[kafka.options]
"ssl.key.password" = "geheim"
linger.ms = 5
"#;
    let loaded = load(file(text).env([("WINDLASS_WORKER__SLOTS", "5")])).unwrap();
    let shown = show(&loaded);
    assert!(!shown.contains("geheim"), "{shown}");
    for line in [
        "slots = 5                                         # WINDLASS_WORKER__SLOTS",
        "job = \"invoice\"                                   # default",
        "retry.attempts = 20                               # default",
        "dead_letter.keep = \"forever\"                      # w.toml:7:24",
        "[jobs.\"app.tasks.render\"]",
        "headers.x-team = \"billing\"                        # w.toml:10:48",
    ] {
        assert!(shown.contains(line), "no {line:?} in\n{shown}");
    }
    assert!(matches!(loaded.config.queues["invoice"].start, Start::At(_)));
    let again = load(file(&shown)).unwrap();
    // Without its password the name would be a token.
    let settings = |loaded: &Loaded| settings(loaded).into_iter().filter(|setting| setting.key != "broker");
    let values = |loaded: &Loaded| settings(loaded).map(|s| (s.key, s.value)).collect::<Vec<_>>();
    assert_eq!(values(&loaded), values(&again));
}

/// The file of `config/`, which must be `expected`; with `BLESS=1` it is made so.
fn golden(name: &str, expected: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "config/{name} is behind the code: run this test with BLESS=1");
    found
}

#[test]
fn the_file_that_lists_every_key_is_the_catalogue() {
    let found = golden("windlass.toml", &template());
    load(file(&found)).unwrap();

    // With every setting uncommented it is still sound, but for ways to log in that exclude each other.
    let all: String = found
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with([' ', '#']) && !setting.is_empty() => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let found = faults(file(&all));
    assert!(found.iter().all(|fault| fault.contains("cannot be used together")), "{}", found.join("\n"));
    let config = toml::from_str::<toml::Table>(&all).unwrap();
    for key in KEYS.iter().filter(|key| key.kind != Kind::Reserved) {
        let mut at = Some(toml::Value::Table(config.clone()));
        for part in key.path.split('.') {
            at = at.and_then(|value| match part {
                "*" => value.as_table().and_then(|table| table.values().next()).cloned(),
                part => value.get(part).cloned(),
            });
        }
        assert!(at.is_some(), "{} is not in the file", key.path);
    }
}

#[test]
fn the_defaults_of_the_catalogue_are_those_of_the_code() {
    let mut text = String::from("broker = \"memory://\"\n[queues.q]\n[queues.d]\n");
    for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
        match key.path.strip_prefix("queues.*.") {
            Some(rest) => text.insert_str(text.find("[queues.d]").unwrap(), &format!("{rest} = {}\n", key.default)),
            None => text.insert_str(0, &format!("{} = {}\n", key.path, key.default)),
        }
    }
    let mut written = load(file(&text)).unwrap().config;
    let default = load(file("broker = \"memory://\"\n[queues.q]\n[queues.d]\n")).unwrap().config;
    let policy = |config: &Config, queue| config.policy(&name(queue), &JobName::new("x").unwrap(), None);
    assert_eq!(policy(&written, "q"), policy(&default, "d"));
    written.queues.get_mut("q").unwrap().retry = retry::Partial::default();
    (written.namespace_set, written.admin.listen_set) = (false, false);
    written.log.level_set = false;
    (written.nats.keep, written.kafka.in_place) = (None, None);
    assert_eq!(format!("{written:?}"), format!("{default:?}"));
}

#[test]
fn every_key_of_the_catalogue_changes_something() {
    let base = || file("broker = \"sqlite://a.db\"\n[queues.q]\n[jobs.j]\nhttp = \"http://h/\"");
    // Beside the key itself a second one may be needed; faults of that kind are no matter here.
    let config = |source| format!("{:?}", super::load::read(source).0.map(|loaded| loaded.config));
    let before = config(base());
    for key in KEYS.iter().filter(|key| key.kind != Kind::Reserved) {
        let path = key.path.replacen("queues.*", "queues.q", 1).replacen("jobs.*", "jobs.j", 1);
        // A property must be one that the client knows, a header may have any name.
        let path = path.replacen("options.*", "options.client.rack", 1).replacen('*', "x-y", 1);
        let value = match key.kind {
            Kind::Address => "memory://",
            Kind::Count(..) => "5",
            Kind::Number(..) => "1.0",
            Kind::Size => "1MiB",
            Kind::Duration(_) => "17s",
            Kind::Choice(choices) => choices.iter().find(|choice| !key.default.contains(*choice)).unwrap(),
            Kind::Start => "latest",
            Kind::Keep => "forever",
            Kind::Url => "http://other/",
            Kind::Listen => "none",
            Kind::Level => "debug",
            Kind::Bool if key.default == "true" => "false",
            Kind::Bool => "true",
            _ => "other",
        };
        let after = config(base().sets([format!("{path}={value}")]));
        assert_ne!(before, after, "{} is not read", key.path);
    }
}

#[test]
fn the_schema_knows_every_key() {
    let schema: serde_json::Value = serde_json::from_str(&golden("windlass.schema.json", &schema())).unwrap();
    for key in KEYS {
        let mut at = Some(&schema);
        for part in key.path.split('.') {
            at = at.and_then(|table| match part {
                "*" => table.get("additionalProperties"),
                part => table.get("properties").and_then(|properties| properties.get(part)),
            });
        }
        assert_eq!(at.is_some(), key.kind != Kind::Reserved, "{}", key.path);
    }
}

#[test]
fn what_init_writes_runs_as_it_is() {
    let config = load(file(init())).unwrap().config;
    assert!(check_run(&config, &[], &|job| job == "log").is_ok());
    assert!(config.queues.contains_key("hello"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("windlass.toml");
    write_new(&path, init()).unwrap();
    assert_eq!(write_new(&path, "x").unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), init());
}

#[test]
fn the_files_of_the_project_are_sound() {
    for name in ["reports.toml", "nats.toml", "kafka.toml"] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
        let found = faults(Source::new().file(Some(path)));
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

/// Text that looks like a configuration, with slips in it.
fn near_toml() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("worker"),
        Just("queues"),
        Just("queues.a"),
        Just("jobs.j"),
        Just("retry"),
        Just("slots"),
        Just("topics"),
        Just("kafka.options"),
        Just("broker"),
        Just("\"\""),
        Just("\"a.b\""),
        Just("*"),
        Just("é"),
    ];
    let value = prop_oneof![
        Just("1"),
        Just("-1"),
        Just("99999999999999999999"),
        Just("0x_f"),
        Just("nan"),
        Just("\"30s\""),
        Just("\"é\""),
        Just("[1, \"a\"]"),
        Just("{ a = 1 }"),
        Just("{}"),
        Just("[]"),
        Just("2026-11-21"),
        Just("true"),
        Just("\"\"\"\n"),
        Just(""),
    ];
    let line = prop_oneof![
        (word.clone(), value).prop_map(|(key, value)| format!("{key} = {value}")),
        word.prop_map(|table| format!("[{table}]")),
        ".{0,12}",
    ];
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in prop_oneof![".{0,200}", near_toml()], variable in "[A-Z_]{0,30}", value in ".{0,20}", set in ".{0,30}") {
        let source = file(&text).env([(format!("WINDLASS_{variable}"), value)]).sets([set]);
        match load(source) {
            Ok(loaded) => prop_assert!(show(&loaded).contains("broker = ")),
            Err(faults) => prop_assert!(!faults.0.is_empty() && !faults.to_string().is_empty()),
        }
    }

    #[test]
    fn every_fault_of_a_file_is_inside_it(text in near_toml()) {
        if let Err(faults) = load(file(&text)) {
            for fault in faults.0 {
                if let Place::File { line, column, .. } = fault.place {
                    let found = text.split('\n').nth(line - 1);
                    prop_assert!(found.is_some_and(|found| column <= found.chars().count() + 1), "{line}:{column}");
                }
            }
        }
    }
}
