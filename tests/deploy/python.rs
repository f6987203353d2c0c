//! The FastAPI examples: a producer on all three brokers, with ordinary clients, and a handler as a job over HTTP.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{python, root};
use crate::support::kafka::Kafka;
use crate::support::nats::{Nats, Release};
use crate::support::process::Process;
use crate::support::worker::{self, Worker};
use crate::support::{http, port, wait};

const MINUTE: Duration = Duration::from_secs(60);

/// A FastAPI application of the examples, ready to answer.
fn serve(python: &Path, app: &str, dir: &Path, env: &[(&str, &str)]) -> (Process, u16) {
    let port = port::free();
    let mut command = Command::new(python);
    worker::clean(&mut command, dir);
    command.args(["-u", "-m", "uvicorn", "--app-dir"]).arg(root().join("examples/fastapi"));
    command.arg(format!("{app}:app")).args(["--port", &port.to_string()]).env("PYTHONDONTWRITEBYTECODE", "1");
    command.envs(env.iter().copied());
    let mut process = Process::spawn(app, command, dir).expect("python starts");
    process.until("answers", MINUTE, |_| http::get(port, "/openapi.json").is_some_and(|(status, _)| status == 200));
    (process, port)
}

/// A report that is posted to the producer comes to the handler: at once, after a retry, or as a dead letter.
fn through(python: &Path, broker: &str) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (_handler, handler) = serve(python, "handler", dir.path(), &[]);
    let text = format!(
        "broker = \"{broker}\"\nnamespace = \"lab\"\nqueues.notify.topics = [\"reports.finalized\"]\n\
         jobs.notify.http = \"http://127.0.0.1:{handler}/jobs/notify\"\n"
    );
    std::fs::write(dir.path().join("windlass.toml"), text).expect("a temporary file");
    if broker.starts_with("kafka") {
        // The producer's topic: there first, as anywhere else.
        worker::succeed(dir.path(), &["publish", "reports.finalized", "{}", "--id", "first"]);
    }
    let mut worker = Worker::start(dir.path(), "worker", &[]);
    worker.ready();
    let admin = format!("http://127.0.0.1:{}", worker.admin());
    let to = if broker.starts_with("sqlite") { &admin } else { broker };
    let (_producer, producer) = serve(python, "producer", dir.path(), &[("BROKER", to)]);

    let post = |body: &str| {
        let json = [("content-type", "application/json")];
        let (status, answer) =
            http::request(producer, "POST", "/reports", &json, body.as_bytes()).expect("the producer answers");
        assert_eq!(status, 202, "{broker}: {answer}");
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        answer["event_id"].as_str().expect("an id").to_owned()
    };
    let at_once = post("{\"report_id\": \"R-0001\", \"patient_id\": \"P-0001\"}");
    let again = post("{\"report_id\": \"R-0002\", \"patient_id\": \"P-BUSY\"}");
    let handled = || -> serde_json::Value {
        let (_, body) = http::get(handler, "/handled").expect("the handler answers");
        serde_json::from_str(&body).expect("JSON")
    };
    wait::until(&format!("{broker}: both are handled"), MINUTE, || {
        let handled = handled();
        handled[&at_once]["attempt"] == 1 && handled[&again]["attempt"] == 2
    });
    if broker.starts_with("kafka") {
        // What does not fit is answered with 422.
        wait::until("a dead letter", MINUTE, || {
            worker::succeed(dir.path(), &["dlq", "list", "--format", "json"]).contains("\"permanent\"")
        });
    }
    assert_eq!(worker.drain(MINUTE), 0, "{}", worker.process.tail());
}

#[test]
fn a_fastapi_producer_and_handler_on_the_embedded_queue() {
    if let Some(python) = python() {
        through(&python, "sqlite://queue.db");
    }
}

#[test]
fn a_fastapi_producer_and_handler_on_nats() {
    let (Some(python), Some(server)) = (python(), Nats::start(Release::New)) else { return };
    through(&python, &server.url());
}

#[test]
fn a_fastapi_producer_and_handler_on_kafka() {
    let (Some(python), Some(server)) = (python(), Kafka::start()) else { return };
    through(&python, &server.url());
}

#[test]
fn the_shell_lines_and_the_embedded_worker_do_what_they_say() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let text = "broker = \"sqlite://q.db\"\nqueues.q = { topics = [\"reports.finalized\"], job = \"log\" }\n";
    std::fs::write(dir.path().join("windlass.toml"), text).expect("a temporary file");
    let folder = Path::new(worker::BINARY).parent().expect("in a folder");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let mut worker = Worker::start(dir.path(), "worker", &[]);
    worker.ready();
    let mut script = Command::new(root().join("examples/publish.sh"));
    worker::clean(&mut script, dir.path());
    script.env("PATH", path).env("WORKER", format!("http://127.0.0.1:{}", worker.admin()));
    let said = crate::support::process::output(script);
    assert!(said.starts_with("report-R-0001\n") && said.contains("\"id\":\"report-R-0004\""), "{said}");
    wait::until("four events are done", MINUTE, || {
        worker.metric("windlass_jobs_total{queue=\"q\",job=\"log\",outcome=\"done\"}") == Some(4.0)
    });
    assert_eq!(worker.drain(MINUTE), 0);

    // Cargo builds the examples of this package with its tests.
    let mut embed = Command::new(folder.join("examples/embed"));
    worker::clean(&mut embed, dir.path());
    let said = crate::support::process::output(embed);
    assert_eq!(said, "invoice for report 842302, attempt 1\ndone 1, retried 0, dead 0\n");
}
