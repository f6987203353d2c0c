//! `run`, as far as the command line goes.

use std::time::Duration;

use super::{Place, keys, objects};
use crate::support::process::Process;

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

/// A worker in the background, ended by the test.
fn worker(place: &Place, arguments: &[&str]) -> Process {
    let set = ["--set", "log.format=json", "--set", "admin.listen=none"];
    let command = place.command(["run"].iter().chain(arguments).chain(&set));
    Process::spawn("worker", command, place.path()).expect("it starts")
}

const SLEEPER: &str = "broker = \"sqlite://windlass.db\"\n[queues.sleeper]\njob = \"sleep\"\n";

#[test]
fn signals_end_it_in_two_ways() {
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
        let place = Place::with(SLEEPER);
        place.ok(["enqueue", "sleeper", "{\"for\":\"1h\"}"]);
        let mut worker = worker(&place, &[]);
        worker.until("it runs the job", Duration::from_secs(20), |_| place.figure("sleeper", "running") == 1);
        worker.signal(signal);
        worker.until("it drains", Duration::from_secs(10), |worker| worker.stderr().contains("drain"));
        worker.signal(signal);
        assert_eq!(worker.code(Duration::from_secs(10)), code);
        assert_eq!(worker.stdout(), "");
        // What it gave back is there.
        assert_eq!(place.figure("sleeper", "ready"), 1);
    }
    let place = Place::with(SLEEPER);
    place.ok(["enqueue", "sleeper", "{\"for\":\"1ms\"}"]);
    let mut worker = worker(&place, &[]);
    worker.until("it is done", Duration::from_secs(20), |_| place.figure("sleeper", "ready") == 0);
    worker.signal(libc::SIGTERM);
    assert_eq!(worker.code(Duration::from_secs(10)), 0);
    assert_eq!(place.figure("sleeper", "workers"), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn an_idle_worker_does_not_keep_what_its_start_needed() {
    let place = Place::with(SLEEPER);
    let mut worker = worker(&place, &[]);
    worker.until("it is smaller than it was", Duration::from_secs(60), |worker| {
        let (now, peak) = (worker.rss().expect("it runs"), worker.peak_rss().expect("it runs"));
        now < peak - peak / 4
    });
    place.ok(["enqueue", "sleeper", "{\"for\":\"1ms\"}"]);
    let ended = |key| place.figure("sleeper", key) == 0;
    worker.until("it is done", Duration::from_secs(20), |_| ended("ready") && ended("running"));
    worker.signal(libc::SIGTERM);
    assert_eq!(worker.code(Duration::from_secs(10)), 0);
}

#[test]
fn a_topic_and_an_address_need_no_file() {
    let place = Place::empty();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/jobs/dev", listener.local_addr().expect("bound"));
    let mut worker = worker(&place, &["--topic", "reports.finalized", "--http", &url, "--dev"]);
    worker.until("the queue is there", Duration::from_secs(20), |_| {
        place.run(["queues", "list", "--json"]).out.contains("\"dev\"")
    });
    place.ok(["publish", "reports.finalized", "{\"a\":1}", "--id", "evt-1"]);
    let (mut stream, _) = listener.accept().expect("an attempt");
    let mut request = String::new();
    let mut buffer = [0; 4_096];
    while !request.ends_with("{\"a\":1}") {
        let length = std::io::Read::read(&mut stream, &mut buffer).expect("a request");
        assert_ne!(length, 0, "{request}");
        request.push_str(std::str::from_utf8(&buffer[..length]).expect("UTF-8"));
    }
    assert!(request.starts_with("POST /jobs/dev HTTP/1.1"), "{request}");
    let lower = request.to_lowercase();
    assert!(lower.contains("ce-attempt: 1") && lower.contains("ce-id: evt-1"), "{request}");
    std::io::Write::write_all(&mut stream, b"HTTP/1.1 204 No Content\r\n\r\n").expect("answered");
    worker.until("it is done", Duration::from_secs(20), |worker| worker.stderr().contains("\"outcome\":\"done\""));
    worker.signal(libc::SIGTERM);
    assert_eq!(worker.code(Duration::from_secs(10)), 0);
    // The name is taken where the file has such a queue.
    let taken = Place::with("broker = \"sqlite://windlass.db\"\n[queues.dev]\njob = \"log\"\n");
    assert_eq!(taken.run(["run", "--topic", "t", "--http", "http://127.0.0.1:1/"]).code, 2);
}

#[test]
fn dev_does_not_wait_an_hour_for_a_retry() {
    let place = Place::with(
        "broker = \"sqlite://windlass.db\"\n[queues.hopeless]\njob = \"fail\"\nretry = { attempts = 2, first = \"1h\" }\n",
    );
    place.ok(["enqueue", "hopeless", "{}"]);
    let left = place.run(["run", "--dev", "--burst", "--linger", "5s", "--json"]);
    assert_eq!(left.out.trim(), "{\"done\":0,\"retried\":1,\"dead\":1}", "{left:?}");
    // Without it the retry lies beyond the linger.
    place.ok(["enqueue", "hopeless", "{}"]);
    let left = place.run(["run", "--burst", "--linger", "1s", "--json"]);
    assert_eq!(left.out.trim(), "{\"done\":0,\"retried\":1,\"dead\":0}", "{left:?}");
    assert_eq!(place.figure("hopeless", "retrying"), 1);
}

#[test]
fn a_retry_that_is_due_is_ready_and_ages() {
    let place = Place::with(
        "broker = \"sqlite://windlass.db\"\n[queues.hopeless]\njob = \"fail\"\nretry = { attempts = 3, first = \"2s\", jitter = 0.0 }\n",
    );
    place.ok(["enqueue", "hopeless", "{}"]);
    place.ok(["run", "--burst", "--linger", "0s"]);
    assert_eq!((place.figure("hopeless", "ready"), place.figure("hopeless", "retrying")), (0.into(), 1.into()));
    crate::support::wait::until("it is due", std::time::Duration::from_secs(30), || {
        place.figure("hopeless", "ready") == 1
    });
    assert_eq!(place.figure("hopeless", "retrying"), 0);
    let aged = || place.run(["status", "hopeless", "--fail-if", "age>1s"]).code == 1;
    crate::support::wait::until("it ages", std::time::Duration::from_secs(30), aged);
}

/// A killed worker's job is running for as long as its lease lasts, and then ready for whoever comes.
#[test]
fn what_a_killed_worker_ran_is_ready_once_its_lease_has_ended() {
    let place = Place::with(&format!("{SLEEPER}[worker]\nlease = \"1s\"\n"));
    place.ok(["enqueue", "sleeper", "{\"for\":\"1h\"}"]);
    let mut worker = worker(&place, &[]);
    let figures = || (place.figure("sleeper", "ready"), place.figure("sleeper", "running"));
    worker.until("it runs the job", Duration::from_secs(60), |_| figures() == (0.into(), 1.into()));
    worker.signal(libc::SIGKILL);
    crate::support::wait::until("its lease has ended", Duration::from_secs(60), || figures() == (1.into(), 0.into()));
    let aged = || place.run(["status", "sleeper", "--fail-if", "age>1s"]).code == 1;
    crate::support::wait::until("it ages", Duration::from_secs(60), aged);
}

/// A queue has several lanes, of which each waits for room: the log has one line of it.
#[test]
fn a_full_queue_is_said_once_each_time() {
    let place = Place::with(&format!("{SLEEPER}[worker]\nslots = 2\n"));
    let jobs = "{\"for\":\"300ms\"}\n".repeat(6);
    assert_eq!(place.feed(["enqueue", "sleeper", "-", "--lines"], jobs.as_bytes()).code, 0);
    let left = place.run(["run", "--burst", "--set", "log.format=json", "--set", "admin.listen=none"]);
    assert_eq!(left.code, 0, "{left:?}");
    let said = objects(&left.err).into_iter().filter_map(|line| {
        let message = line["message"].as_str()?.to_owned();
        (line["why"] == "full").then_some(message)
    });
    let said: Vec<String> = said.collect();
    assert!(!said.is_empty(), "it was full: {}", left.err);
    for (number, message) in said.iter().enumerate() {
        assert_eq!(message, ["intake is paused", "intake goes on"][number % 2], "{}", left.err);
    }
}

/// Whoever has left in good order is counted no more.
#[cfg(feature = "nats")]
#[test]
fn bursts_leave_no_workers_behind() {
    let Some(server) = crate::support::nats::Nats::start(crate::support::nats::Release::New) else { return };
    let place = Place::with(&format!("broker = \"{}\"\n[queues.log]\n", server.url()));
    for _ in 0..8 {
        place.ok(["run", "--burst", "--linger", "0s", "-q"]);
        assert_eq!(place.figure("log", "workers"), 0);
    }
}

#[cfg(feature = "nats")]
#[test]
fn what_waits_for_the_first_worker_is_ready_and_ages() {
    let Some(server) = crate::support::nats::Nats::start(crate::support::nats::Release::New) else { return };
    let queues = "[queues.enqueued]\njob = \"log\"\n[queues.heard]\ntopics = [\"made\"]\njob = \"log\"\n";
    let place = Place::with(&format!("broker = \"{}\"\n{queues}", server.url()));
    place.ok(["enqueue", "enqueued", "{}"]);
    place.ok(["publish", "made", "{}"]);
    for queue in ["enqueued", "heard"] {
        assert_eq!(place.figure(queue, "ready"), 1, "{queue}");
        let aged = || place.run(["status", queue, "--fail-if", "age>1s"]).code == 1;
        crate::support::wait::until("it ages", std::time::Duration::from_secs(30), aged);
    }
}
