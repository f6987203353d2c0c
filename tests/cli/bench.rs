//! `bench`: what it tells, what it leaves behind, and that its audit finds a job that did not run.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{Left, Place, keys, objects, run};
use crate::support::process::Process;
use crate::support::wait;

/// In a place whose folder for temporary files is its own.
fn bench(place: &Place, arguments: &[&str], bug: Option<&str>) -> Left {
    let mut command = place.command(["bench", "--repeat", "1"].iter().chain(arguments));
    command.env("TMPDIR", place.path());
    if let Some(bug) = bug {
        command.env("WINDLASS_SEEDED_BUG", bug);
    }
    run(command, b"")
}

#[track_caller]
fn measured(place: &Place, arguments: &[&str]) -> Value {
    let left = bench(place, &[arguments, &["--json"]].concat(), None);
    assert_eq!(left.code, 0, "{left:?}");
    assert_eq!(
        keys(left.out.trim())[..10].join(" "),
        "broker jobs per_s raw_per_s ratio start_ms lost duplicates rss_peak_mib cpu_s_per_1k",
        "{left:?}"
    );
    objects(&left.out).remove(0)
}

fn entries(place: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(place).expect("a directory").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[track_caller]
fn nothing_amiss(figures: &Value, jobs: u64) {
    assert_eq!(
        (&figures["jobs"], &figures["lost"], &figures["duplicates"], &figures["unsettled"]),
        (&jobs.into(), &0.into(), &0.into(), &0.into()),
        "{figures}"
    );
    assert!(figures["per_s"].as_f64() > Some(0.0) && figures["start_ms"]["p99"].as_f64() > Some(0.0), "{figures}");
}

#[test]
fn the_worker_is_measured_beside_a_raw_loop() {
    for broker in ["memory://", "sqlite://own.db"] {
        let place = Place::empty();
        let figures = measured(&place, &["--jobs", "300", "--broker", broker]);
        nothing_amiss(&figures, 300);
        let of = |name: &str| figures[name].as_f64().unwrap_or_default();
        assert!((of("ratio") - of("per_s") / of("raw_per_s")).abs() <= 0.01 * of("ratio").max(1.0), "{figures}");
        assert_eq!(figures["broker"], broker);
        assert!(of("rss_peak_mib") > 1.0, "{figures}");
        assert_eq!(entries(place.path()), Vec::<String>::new(), "nothing is left, and own.db was never made");
    }
}

#[test]
fn jobs_can_do_something_and_come_at_a_rate() {
    let place = Place::empty();
    for kind in [&["--kind", "sleep", "--for", "2ms"][..], &["--kind", "spin", "--for", "100us"], &["--kind", "http"]] {
        let figures = measured(&place, &[kind, &["--jobs", "100"]].concat());
        nothing_amiss(&figures, 100);
        assert_eq!(figures["raw"].as_array().map(Vec::len), Some(2), "a raw loop and bare tasks: {figures}");
    }
    let figures = measured(&place, &["--rate", "200", "--jobs", "100", "--bare", "--payload", "1KiB"]);
    nothing_amiss(&figures, 100);
    assert_eq!((&figures["ratio"], &figures["raw_per_s"]), (&Value::Null, &Value::Null), "{figures}");
    let ordered = measured(&place, &["--keys", "7", "--jobs", "200", "--set", "sqlite.synchronous=normal"]);
    nothing_amiss(&ordered, 200);
    assert_eq!(ordered["out_of_order"], 0, "{ordered}");
}

#[test]
fn a_person_reads_a_table() {
    let left = bench(&Place::empty(), &["--jobs", "200", "--producers", "8", "--slots", "8"], None);
    assert_eq!(left.code, 0, "{left:?}");
    for part in ["200 jobs of 200 B that do nothing, 8 slots", "sqlx", "windlass", "of 400 jobs published, 0 lost"] {
        assert!(left.out.contains(part), "{part} is not in {}", left.out);
    }
}

#[test]
#[cfg(feature = "seeded-bugs")]
fn a_job_that_did_not_run_is_lost() {
    let place = Place::empty();
    let left = bench(&place, &["--jobs", "300", "--json"], Some("success-without-run"));
    assert_eq!(left.code, 1, "{left:?}");
    let figures = &objects(&left.out)[0];
    assert!(figures["lost"].as_u64() > Some(0) && figures["unsettled"] == 0, "{figures}");
    let twice = bench(&place, &["--jobs", "300", "--json"], Some("success-released"));
    assert!(objects(&twice.out)[0]["duplicates"].as_u64() > Some(0), "{twice:?}");
}

#[test]
fn a_killed_run_is_cleared_up_by_the_next_and_an_interrupted_one_by_itself() {
    let place = Place::empty();
    let begin = |name: &str| {
        let mut command =
            place.command(["bench", "--rate", "10", "--jobs", "10000", "--broker", "sqlite://x/own.db", "-q"]);
        command.env("TMPDIR", place.path());
        let process = Process::spawn(name, command, place.path()).expect("the binary can be run");
        let made = || entries(&place.path().join("x")).into_iter().any(|name| name.starts_with("windlass-bench-"));
        wait::until("something is made", Duration::from_secs(60), made);
        process
    };
    std::fs::create_dir(place.path().join("x")).expect("a directory");
    begin("killed").kill();
    assert_eq!(entries(&place.path().join("x")).len(), 1, "left behind");
    let mut running = begin("running");
    let left = bench(&place, &["--jobs", "100", "--broker", "sqlite://x/other.db"], None);
    assert_eq!(left.code, 0, "{left:?}");
    assert_eq!(entries(&place.path().join("x")).len(), 1, "what still runs is let alone: {left:?}");
    running.signal(libc::SIGINT);
    assert_eq!(running.code(Duration::from_secs(60)), 130);
    assert_eq!(entries(&place.path().join("x")), Vec::<String>::new());
    assert!(!entries(place.path()).iter().any(|name| name.starts_with("windlass-bench-")), "nor in the other folder");
}

/// What holds on every server: figures, an audit that finds a loss, and that nothing is left.
#[cfg(any(feature = "nats", feature = "kafka"))]
fn on_a_server(address: &str, loops: usize) {
    let place = Place::empty();
    let figures = measured(&place, &["--jobs", "300", "--broker", address]);
    nothing_amiss(&figures, 300);
    assert_eq!(figures["raw"].as_array().map(Vec::len), Some(loops), "{figures}");
    let mut command = place.command(["bench", "--rate", "10", "--jobs", "10000", "--broker", address, "-q"]);
    command.env("TMPDIR", place.path());
    let mut killed = Process::spawn("killed", command, place.path()).expect("the binary can be run");
    let begun = || {
        let runs = entries(place.path()).into_iter().filter(|name| name.starts_with("windlass-bench-"));
        runs.into_iter().any(|run| place.path().join(run).join("part.json").exists())
    };
    wait::until("the worker is started", Duration::from_secs(60), begun);
    killed.kill();
    let arguments = ["--jobs", "100", "--json", "--broker", address];
    let lossy: &[Option<&str>] = if cfg!(feature = "seeded-bugs") { &[Some("success-without-run")] } else { &[None] };
    let next = bench(&place, &arguments, lossy[0]);
    assert!(next.err.contains("removing what was left by windlass-bench-"), "{next:?}");
    if cfg!(feature = "seeded-bugs") {
        assert_eq!(next.code, 1, "{next:?}");
        assert!(objects(&next.out)[0]["lost"].as_u64() > Some(0), "{next:?}");
    }
    // The worker of the killed one leaves in its own time.
    wait::until("nothing is left", Duration::from_secs(60), || {
        let left = bench(&place, &arguments, None);
        assert_eq!(left.code, 0, "{left:?}");
        left.err.is_empty()
    });
}

#[test]
#[cfg(feature = "nats")]
fn on_nats() {
    let Some(server) = crate::support::nats::Nats::start(crate::support::nats::Release::New) else { return };
    on_a_server(&server.url(), 2);
}

#[test]
#[cfg(feature = "kafka")]
fn on_kafka() {
    let Some(broker) = crate::support::kafka::Kafka::start() else { return };
    on_a_server(&broker.url(), 1);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let place = Place::new();
    for (arguments, code, says) in [
        (&["--config", "windlass.toml"][..], 2, "--broker"),
        (&["--for", "5ms"], 2, "--kind"),
        (&["--payload", "1"], 2, "at least"),
        (&["--broker", "nats://192.0.2.1:4222"], 2, "--yes"),
        (&["--broker", "sqlite://absent/x.db"], 78, "does not exist"),
        (&["--set", "worker.slotz=1"], 78, "slots"),
        (&["--broker", "http://x"], 78, "expected"),
    ] {
        let left = bench(&place, arguments, None);
        assert_eq!(left.code, code, "{arguments:?}: {left:?}");
        assert!(left.err.contains(says), "{arguments:?}: {left:?}");
    }
}
