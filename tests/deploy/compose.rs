//! `docker-compose.yml`, as the reference reader of such files has it, and its twin, `scripts/up`.

use std::process::Command;

use serde_json::Value;

use super::root;
use crate::support::{process, tool, worker};

/// `tests/deploy/compose`, which reads as `docker compose config` does.
fn reader() -> Option<Command> {
    tool::find("the reader of Compose files", "COMPOSE_READER", "compose/compose").map(Command::new)
}

#[test]
fn compose_takes_the_file_and_every_service_is_as_it_should_be() {
    let output = worker::run(root(), &["config", "check", "config/compose.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let Some(mut reader) = reader() else { return };
    reader.arg("docker-compose.yml").current_dir(root());
    let model: Value = serde_json::from_str(&process::output(reader)).expect("a project is JSON");
    let services = model["services"].as_object().expect("services");
    for needed in ["nats", "worker", "producer", "handler", "mail", "kafka"] {
        assert!(services.contains_key(needed), "no service {needed}");
    }
    for (name, service) in services {
        for mount in service["volumes"].as_array().into_iter().flatten().filter(|mount| mount["type"] == "bind") {
            let from = mount["source"].as_str().expect("a source");
            assert!(std::path::Path::new(from).exists(), "{name} mounts {from}, which is not there");
        }
        if let Some(build) = service["build"].as_object() {
            let file = std::path::Path::new(build["context"].as_str().expect("a context"))
                .join(build["dockerfile"].as_str().expect("a Dockerfile"));
            assert!(file.is_file(), "{name} is built by {}, which is not there", file.display());
        }
        assert_eq!(service["profiles"] == serde_json::json!(["kafka"]), name.contains("kafka"), "{name}: its profile");
        if name.starts_with("worker") {
            assert_eq!(service["stop_grace_period"], "30s", "{name}");
            let health = serde_json::json!(["CMD", "/usr/local/bin/windlass", "ready"]);
            assert_eq!(service["healthcheck"]["test"], health, "{name}");
            let scales = service["container_name"].is_null() && service["ports"].is_null();
            assert!(scales, "{name}: several can run beside each other");
        }
        if name.starts_with("producer") {
            let worker = name.replace("producer", "worker");
            assert_eq!(
                service["depends_on"][&worker]["condition"], "service_healthy",
                "{name}: its topic is the worker's"
            );
        }
    }

    // Where Compose itself is installed it has the last word.
    let compose = Command::new("docker")
        .args(["compose", "--profile", "kafka", "config", "--quiet"])
        .current_dir(root())
        .output();
    match compose {
        Ok(output) if !String::from_utf8_lossy(&output.stderr).contains("unknown") => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        _ => eprintln!("not here: docker compose, to read docker-compose.yml once more"),
    }
}

#[test]
fn compose_refuses_what_is_wrong() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let text = std::fs::read_to_string(root().join("docker-compose.yml")).expect("the file is there");
    for (right, wrong) in [
        ("stop_grace_period:", "stop_grace:"),
        ("- nats:/data", "- natz:/data"),
        ("      nats:\n        condition", "      natz:\n        condition"),
    ] {
        let mended = text.replacen(right, wrong, 1);
        assert_ne!(mended, text, "{right:?} is in it");
        std::fs::write(dir.path().join("docker-compose.yml"), mended).expect("a temporary file");
        let Some(mut reader) = reader() else { return };
        let output = reader.arg("docker-compose.yml").current_dir(dir.path()).output();
        assert!(!output.expect("it starts").status.success(), "{wrong:?} is taken");
    }
}

#[cfg(feature = "nats")]
#[test]
fn the_same_runs_as_local_processes_and_leaves_at_one_signal() {
    use std::time::Duration;

    use crate::support::nats::Release;
    use crate::support::process::Process;
    use crate::support::{http, port, wait};

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
