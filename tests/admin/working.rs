//! The port of a real worker on `memory://`, up to its leaving.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use windlass::config::{Source, load};
use windlass::shutdown::Shutdown;
use windlass::{App, Registry};

use super::{Answer, call};
use crate::support::{port, wait};

/// How long anything may take.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn it_answers_while_rude_jobs_block_and_drains_when_told() {
    let port = port::free();
    let text = format!(
        "broker = \"memory://\"\n[worker]\nslots = 4\n[queues.rude]\ntopics = [\"rude\"]\nslots = 4\n[admin]\nlisten = \"127.0.0.1:{port}\"\n"
    );
    let config = load(Source::new().text("test.toml", text)).expect("a configuration").config;
    let (held, running) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let job = {
        let (held, running) = (held.clone(), running.clone());
        move |_: Value| {
            let (held, running) = (held.clone(), running.clone());
            async move {
                running.fetch_add(1, Ordering::SeqCst);
                // A handler as rude as can be: it blocks a thread of the runtime.
                while held.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok::<_, windlass::Error>(())
            }
        }
    };
    let app = App::new(config, Registry::new().job("rude", job));
    let worker = std::thread::spawn(move || app.run(Shutdown::default()));
    let get = |path: &str| -> Answer { call(port, "GET", path, &[], b"") };

    wait::until("the port is open", SOON, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    wait::until("an idle worker is ready", SOON, || get("/ready").status == 200);
    for _ in 0..4 {
        call(port, "POST", "/api/v1/topics/rude", &[], b"1").ok(202);
    }
    // How many threads of the worker's it then holds is the engine's affair; the port has one of its own.
    wait::until("a job holds its thread", SOON, || running.load(Ordering::SeqCst) > 0);
    let asked = Instant::now();
    get("/health").ok(200);
    get("/ready").ok(200);
    let metrics = get("/metrics").ok(200);
    let status = get("/api/v1/status").ok(200).json();
    assert!(asked.elapsed() < Duration::from_secs(2), "four answers took {:?}", asked.elapsed());
    assert!(metrics.text().contains("windlass_slots{queue=\"rude\"} 4"), "{}", metrics.text());
    assert_eq!(status["worker"]["queues"][0]["name"], "rude");

    let paused = call(port, "POST", "/api/v1/queues/rude/pause", &[], b"").ok(200).json();
    assert_eq!(paused["paused"], json!(["operator"]));
    get("/ready").ok(200);
    call(port, "POST", "/api/v1/queues/rude/resume", &[], b"").ok(200);
    let slots = call(port, "PUT", "/api/v1/queues/rude/slots", &[], br#"{"slots": 2}"#).ok(200).json();
    assert_eq!(slots["slots"], 2);

    call(port, "POST", "/api/v1/drain", &[], b"").ok(202);
    get("/ready").ok(503);
    get("/health").ok(200);
    held.store(false, Ordering::SeqCst);
    let tally = worker.join().expect("no panic").expect("it left well");
    assert!(tally.done > 0, "{tally:?}");
}
