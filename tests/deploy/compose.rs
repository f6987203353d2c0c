//! `docker-compose.yml`, read as far as that goes without an engine, and its twin, `scripts/up`.

use std::collections::BTreeMap;
use std::process::Command;

use super::root;
use crate::support::worker;

type Section = BTreeMap<String, Vec<String>>;

/// The lines of each entry of a top-level section (`services:`), by name, without comments.
fn section(text: &str, name: &str) -> Section {
    let mut entries = Section::new();
    let inside = text.lines().skip_while(|line| *line != format!("{name}:")).skip(1);
    let mut current = None;
    for line in inside.take_while(|line| line.is_empty() || line.starts_with(' ')) {
        if let Some(entry) = line.strip_prefix("  ").filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())) {
            let entry = entry.trim_end_matches(':').to_owned();
            current = Some(entry.clone());
            entries.entry(entry).or_default();
        } else if let Some(lines) = current.as_ref().and_then(|entry| entries.get_mut(entry)) {
            lines.push(line.trim().to_owned());
        }
    }
    entries
}

#[test]
fn every_service_leans_on_what_is_there() {
    let text = std::fs::read_to_string(root().join("docker-compose.yml")).expect("the file is there");
    let text: String =
        text.lines().filter(|line| !line.trim_start().starts_with('#')).map(|line| format!("{line}\n")).collect();
    let (services, volumes) = (section(&text, "services"), section(&text, "volumes"));
    for needed in ["nats", "worker", "producer", "handler", "mail", "kafka"] {
        assert!(services.contains_key(needed), "no service {needed}");
    }
    for (service, lines) in &services {
        let has = |line: &str| lines.iter().any(|found| found == line);
        if let Some(at) = lines.iter().position(|line| line == "depends_on:") {
            let names = lines[at + 1..].iter().filter_map(|line| line.strip_suffix(':'));
            for other in names {
                assert!(services.contains_key(other), "{service} depends on {other}, which is no service");
            }
        }
        for mount in lines.iter().filter_map(|line| line.strip_prefix("- ")).filter(|line| line.contains(":/")) {
            let from = mount.split(':').next().unwrap_or_default();
            let there = if from.starts_with('.') { root().join(from).exists() } else { volumes.contains_key(from) };
            assert!(there, "{service} mounts {from}, which is not there");
        }
        if service.contains("kafka") {
            assert!(has("profiles: [\"kafka\"]"), "{service} is not only in the profile kafka");
        }
        if service.starts_with("worker") {
            assert!(
                has("<<: *worker") && !lines.iter().any(|line| line.starts_with("container_name")),
                "{service} scales"
            );
        }
    }
    for needed in ["stop_grace_period: 30s", "test: [\"CMD\", \"/usr/local/bin/windlass\", \"ready\"]"] {
        assert!(text.contains(needed), "no {needed}");
    }
    assert!(!text.contains('\t'), "a tab is no indentation in YAML");

    let output = worker::run(root(), &["config", "check", "config/compose.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // Where Compose is installed it has the last word.
    let compose = Command::new("docker")
        .args(["compose", "--profile", "kafka", "config", "--quiet"])
        .current_dir(root())
        .output();
    match compose {
        Ok(output) if !String::from_utf8_lossy(&output.stderr).contains("unknown") => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        _ => eprintln!("not here: docker compose, to read docker-compose.yml"),
    }
}

#[cfg(feature = "nats")]
#[test]
fn the_same_runs_as_local_processes_and_leaves_at_one_signal() {
    use std::time::Duration;

    use crate::support::nats::Release;
    use crate::support::process::Process;
    use crate::support::{http, port, tool, wait};

    let (Some(_), Some(_)) = (Release::New.binary(), super::python()) else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let [nats, producer, handler, mail] = std::array::from_fn(|_| port::free());
    let mut command = Command::new(root().join("scripts/up"));
    worker::clean(&mut command, root());
    command.args(["--scale", "worker=2"]).env("UP_FOLDER", dir.path()).env("WINDLASS", worker::BINARY);
    command.env("WINDLASS_TEST_CACHE", tool::cache());
    for (name, port) in [("NATS", nats), ("PRODUCER", producer), ("HANDLER", handler), ("MAIL", mail)] {
        command.env(format!("{name}_PORT"), port.to_string());
    }
    let mut up = Process::spawn("up", command, dir.path()).expect("bash is there");
    let minute = Duration::from_secs(60);
    up.until("says that everything is up", minute, |up| up.stdout().contains("everything is up"));

    let body = b"{\"report_id\": \"R-0001\", \"patient_id\": \"P-0001\"}";
    let (status, answer) =
        http::request(producer, "POST", "/reports", &[("content-type", "application/json")], body).expect("it answers");
    assert_eq!(status, 202, "{answer}");
    let mails = || std::fs::read_dir(dir.path().join("mail")).map_or(0, |mails| mails.flatten().count());
    wait::until("a mail is delivered", minute, || mails() == 1);

    up.signal(libc::SIGINT);
    assert_eq!(up.code(minute), 0, "{}", up.tail());
    // What it wrote last passes through filters that end after it.
    wait::until("all have left", minute, || {
        let said = up.stdout();
        ["nats", "mail", "handler", "worker-1", "worker-2", "producer"].iter().all(|name| {
            said.contains(&format!("up         | {name} has left")) && said.contains(&format!("{name:<10} | "))
        })
    });
    assert_eq!(up.stdout().matches("worker-1 has left with 0").count(), 1, "a drain: {}", up.tail());
    assert!(
        [nats, producer, handler, mail].iter().all(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_err())
    );
}
