//! Ten thousand dead letters: listed, grouped, replayed at a rate, killed, and replayed to the end.

use std::collections::HashSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::{Place, objects};
use crate::support::wait;

const MANY: usize = 10_000;

fn place() -> Place {
    // A short lease, so that what a killed replay held is free again soon.
    let place = Place::with(&super::CONFIG.replace("[queues.invoice]", "[worker]\nlease = \"1s\"\n\n[queues.invoice]"));
    place.ok(["enqueue", "nightly", "1", "-q"]);
    let letters: String = (0..MANY)
        .map(|n| {
            let error = if n % 4 == 0 { format!("no report {n}") } else { format!("disk {n} is full") };
            let letter = serde_json::json!({
                "id": format!("L{n:05}"), "event_id": format!("evt-{n}"), "reason": "permanent", "error": error,
                "body": format!("{{\"n\":{n}}}"), "topic": "reports.finalized", "job": "log",
                "headers": {"ce-specversion": "1.0", "ce-id": format!("evt-{n}"), "ce-type": "t", "ce-source": "s"},
                "last_failed": format!("2026-11-01T{:02}:{:02}:{:02}Z", n / 3_600, n / 60 % 60, n % 60),
            });
            format!("{letter}\n")
        })
        .collect();
    let left = place.feed(["dlq", "import", "invoice", "-"], letters.as_bytes());
    assert_eq!(left.code, 0, "{left:?}");
    place
}

#[test]
fn ten_thousand_letters() {
    let place = place();
    let listed = place.json(["dlq", "list", "invoice"]);
    assert_eq!((listed.len(), &listed[0]["id"]), (MANY, &"L09999".into()));
    let text = place.run(["dlq", "list", "invoice"]);
    assert!(text.err.contains("9,900 more"), "{}", text.err);
    let groups = place.json(["dlq", "groups"]);
    let counts: Vec<_> = groups.iter().map(|group| group["count"].clone()).collect();
    assert_eq!(counts, [MANY * 3 / 4, MANY / 4]);

    // More than a thousand asks, and nobody is here.
    let asked = place.run(["dlq", "replay", "invoice", "--all"]);
    assert_eq!(asked.code, 2, "{asked:?}");
    assert!(asked.err.contains("10,000") && asked.err.contains("--yes"), "{asked:?}");
    assert_eq!(place.dead("invoice"), MANY);

    // Killed on its way.
    let mut child = place
        .command(["dlq", "replay", "invoice", "--all", "--yes", "--rate", "1000/s"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let ready = || place.figure("invoice", "ready").as_u64().expect("a number") as usize;
    wait::until("a part is replayed", Duration::from_secs(30), || ready() > 500);
    // A second one is refused while it runs.
    let second = place.run(["dlq", "replay", "invoice", "--all", "--yes"]);
    assert_eq!((second.code, second.out.contains("done 0")), (69, true), "{second:?}");
    child.kill().expect("killed");
    child.wait().expect("reaped");
    let (dead, replayed) = (place.dead("invoice"), ready());
    assert!(dead > 0 && replayed > 0, "killed on its way: {dead} dead, {replayed} replayed");
    assert!((MANY..=MANY + 1).contains(&(dead + replayed)), "none lost, at most the one on its way twice");

    // Its claim ends with the lease; the same command goes on.
    let left = wait::until_some("the claim of the killed one ends", Duration::from_secs(20), || {
        let left = place.run(["dlq", "replay", "invoice", "--all", "--yes", "--rate", "none", "--json"]);
        (left.code != 69).then_some(left)
    });
    assert_eq!((left.code, &objects(&left.out)[0]["done"]), (0, &dead.into()), "{left:?}");
    assert_eq!((place.dead("invoice"), place.dead("nightly")), (0, 0));

    // Every event runs, and none twice but for that one.
    let run = place.run(["run", "--burst", "--queue", "invoice", "--json", "--set", "log.format=json"]);
    assert_eq!(run.code, 0, "{}", run.out);
    let done = objects(&run.out)[0]["done"].as_u64().expect("a number") as usize;
    assert!((MANY..=MANY + 1).contains(&done), "{done}");
    let events: HashSet<&str> =
        run.err.split("\\\"id\\\":\\\"evt-").skip(1).filter_map(|rest| rest.split('\\').next()).collect();
    assert_eq!(events.len(), MANY, "{}", &run.err[..run.err.len().min(600)]);
}

#[test]
fn a_rate_takes_its_time_and_an_interruption_says_how_far_it_came() {
    let place = Place::new();
    let many: Vec<(String, String)> = (0..120).map(|n| (format!("L{n:03}"), format!("evt-{n}"))).collect();
    let letters: Vec<(&str, &str, &str)> = many.iter().map(|(id, event)| (id.as_str(), event.as_str(), "x")).collect();
    place.letters("invoice", &letters);
    let began = Instant::now();
    assert_eq!(place.json(["dlq", "replay", "invoice", "--limit", "60"])[0]["done"], 60);
    assert!(began.elapsed() >= Duration::from_millis(500), "100 a second: {:?}", began.elapsed());
    let child = place
        .command(["dlq", "replay", "invoice", "--all", "--rate", "10/s", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    wait::until("a part is replayed", Duration::from_secs(20), || place.dead("invoice") < 58);
    // SAFETY: the child was not waited for yet, so its pid is its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    let output = child.wait_with_output().expect("it ends");
    let progress = &objects(&String::from_utf8_lossy(&output.stdout))[0];
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(progress["selected"], 60);
    let done = progress["done"].as_u64().expect("a number") as usize;
    assert_eq!(place.dead("invoice"), 60 - done);
    // It gave the queue free at once.
    assert_eq!(place.json(["dlq", "purge", "invoice", "--all", "--yes"])[0]["failed"], 0);
    assert_eq!(place.json(["dlq", "replay", "invoice", "--all"])[0]["selected"], 0);
}
