//! The admin port over real HTTP: requests are written byte by byte, so that `Host` and `Origin` are what a test says.
//! The broker is `memory://`; the worker is a stand-in that remembers what it was told.

mod dead_letters;
mod guard;
mod health;
mod publish;
mod steer;
mod working;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use windlass::admin::{self, Context, Running};
use windlass::broker::{self, Broker, Options, Queue, Role, Start};
use windlass::message::{JobName, Namespace, QueueName, Topic};
use windlass::shutdown::Shutdown;
use windlass::time::Clock;
use windlass::worker::handle::{Control, QueueState, Running as RunningJob};

/// What a test configures: the queue `invoice`, which hears `reports.finalized` and runs `bill`.
struct Fixture {
    context: Context,
    shutdown: Shutdown,
    broker: Arc<dyn Broker>,
    worker: Arc<StandIn>,
    running: Running,
    runtime: tokio::runtime::Runtime,
}

impl Fixture {
    /// Before broker and worker are there.
    fn starting() -> Self {
        Self::with(&admin::Config { listen: Some(([127, 0, 0, 1], 0).into()), listen_set: true, token_file: None })
    }

    /// Everything is there.
    fn working() -> Self {
        let fixture = Self::starting();
        fixture.connect();
        fixture
    }

    fn with(config: &admin::Config) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let broker = runtime.block_on(broker::connect("memory://", options())).expect("memory needs nothing");
        let shutdown = Shutdown::default();
        let jobs = BTreeMap::from([(queue_name("invoice"), JobName::new("bill").expect("a job"))]);
        let context = Context::new(Namespace::new("windlass").expect("a namespace"), jobs, shutdown.clone());
        let running = admin::start(config, context.clone()).expect("the port opens").expect("it is not turned off");
        let worker = Arc::new(StandIn { queues: Mutex::new(vec![state("invoice")]), told: Mutex::default() });
        Self { context, shutdown, broker, worker, running, runtime }
    }

    fn connect(&self) {
        self.context.set_broker(self.broker.clone());
        self.context.set_worker(self.worker.clone());
    }

    fn port(&self) -> u16 {
        self.running.address().port()
    }

    fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], b"")
    }

    fn post(&self, path: &str, body: &str) -> Answer {
        self.call("POST", path, &[], body.as_bytes())
    }

    fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        call(self.port(), method, path, headers, body)
    }
}

fn queue_name(name: &str) -> QueueName {
    QueueName::new(name).expect("a queue")
}

fn options() -> Options {
    Options {
        namespace: Namespace::new("windlass").expect("a namespace"),
        namespace_set: false,
        role: Role::Worker,
        timeout: Duration::from_secs(5),
        lease: Duration::from_secs(30),
        grace: Duration::from_secs(25),
        queues: vec![spec()],
        worker: "test".into(),
        clock: Clock::System,
        sqlite: broker::SqliteOptions::default(),
        nats: broker::NatsOptions::default(),
        kafka: broker::KafkaOptions::default(),
    }
}

fn spec() -> Queue {
    Queue {
        name: queue_name("invoice"),
        topics: vec![Topic::new("reports.finalized").expect("a topic")],
        job: JobName::new("bill").expect("a job"),
        slots: NonZeroUsize::new(4).expect("not 0"),
        ordered: false,
        start: Start::Earliest,
        max_crashes: 3,
        keep_dead: None,
    }
}

fn state(name: &str) -> QueueState {
    QueueState {
        name: queue_name(name),
        slots: 4,
        in_flight: 1,
        bytes_in_flight: 10,
        unconfirmed: 0,
        paused: Vec::new(),
        consuming: true,
        trouble: None,
        last_success: None,
    }
}

/// A worker that does nothing and remembers what it was told.
struct StandIn {
    queues: Mutex<Vec<QueueState>>,
    told: Mutex<Vec<String>>,
}

impl StandIn {
    /// Changes what the worker says of its queue.
    fn set(&self, change: impl FnOnce(&mut QueueState)) {
        let mut queues = self.queues.lock().expect("no test panics within");
        queues[0] = state("invoice");
        change(&mut queues[0]);
    }

    fn tell(&self, queue: &str, what: String) -> bool {
        self.told.lock().expect("no test panics within").push(what);
        self.queues().iter().any(|state| state.name.as_str() == queue)
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock().expect("no test panics within"))
    }
}

impl Control for StandIn {
    fn queues(&self) -> Vec<QueueState> {
        self.queues.lock().expect("no test panics within").clone()
    }
    fn running(&self) -> Vec<RunningJob> {
        vec![RunningJob {
            queue: "invoice".to_owned(),
            job: "bill".to_owned(),
            event_id: "e-1".to_owned(),
            attempt: 2,
            for_s: 1.5,
        }]
    }
    fn pause(&self, queue: &str, lasting: Option<Duration>) -> bool {
        self.tell(queue, format!("pause {queue} {lasting:?}"))
    }
    fn resume(&self, queue: &str) -> bool {
        self.tell(queue, format!("resume {queue}"))
    }
    fn set_slots(&self, queue: &str, slots: NonZeroUsize) -> bool {
        self.tell(queue, format!("slots {queue} {slots}"))
    }
}

/// What the port answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    /// A problem document with this status; gives its detail.
    #[track_caller]
    fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert!(self.head.contains("content-type: application/problem+json"), "{}", self.head);
        let problem = self.json();
        assert_eq!((&problem["type"], &problem["status"]), (&"about:blank".into(), &status.into()));
        assert!(problem["title"].is_string());
        problem["detail"].as_str().expect("a detail").to_owned()
    }

    #[track_caller]
    fn ok(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }
}

/// One request on a connection of its own. `Host` is `127.0.0.1:PORT` unless it is among the headers.
fn call(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).expect("the port is open");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("not zero");
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| *name == "host") {
        head.push_str(&format!("host: 127.0.0.1:{port}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).expect("written");
    // A body that is refused for its size may meet a closed connection; the answer is what counts.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer");
    let head = String::from_utf8(answer[..end].to_vec()).expect("ASCII").to_ascii_lowercase();
    let status = head.split_whitespace().nth(1).expect("a status").parse().expect("a number");
    let mut body = answer[end + 4..].to_vec();
    if head.contains("transfer-encoding: chunked") {
        body = unchunk(&body);
    }
    Answer { status, head, body }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).expect("ASCII");
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
    panic!("the answer was cut off after {} bytes", body.len());
}

#[test]
fn an_unknown_path_and_a_wrong_method_are_problems() {
    let fixture = Fixture::working();
    fixture.get("/api/v1/nothing").problem(404);
    fixture.get("/").problem(404);
    fixture.get("/api/v1/drain").problem(405);
    assert!(!fixture.shutdown.intake.is_cancelled());
    let document = fixture.get("/api/v1/openapi.json").ok(200);
    assert_eq!(document.text(), admin::openapi::text());
    assert!(document.head.contains("cache-control: no-store"), "{}", document.head);
}

#[test]
fn every_path_of_the_description_is_there() {
    let fixture = Fixture::working();
    let api: Value = serde_json::from_str(admin::openapi::text()).expect("JSON");
    for (path, methods) in api["paths"].as_object().expect("an object") {
        for method in methods.as_object().expect("an object").keys() {
            let path = path.replace("{queue}", "invoice").replace("{topic}", "reports.finalized").replace("{id}", "x");
            let answer = fixture.call(&method.to_uppercase(), &path, &[], b"");
            let routed = answer.status != 405 && !String::from_utf8_lossy(&answer.body).contains("no such path");
            assert!(routed, "{method} {path}: {answer:?}");
        }
    }
}

#[test]
fn the_default_port_moves_and_a_configured_one_does_not() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound");
    let config = |listen_set| admin::Config { listen: Some(address), listen_set, token_file: None };
    let fixture = Fixture::with(&config(false));
    let moved = fixture.port();
    assert!(moved > address.port() && moved <= address.port() + 100, "{moved} after {address}");
    fixture.get("/health").ok(200);

    let context = fixture.context.clone();
    let error = admin::start(&config(true), context.clone()).err().expect("it is taken");
    assert_eq!(error.exit_code(), 78);
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    let off = admin::Config { listen: None, listen_set: true, token_file: None };
    assert!(admin::start(&off, context).expect("nothing to open").is_none());
}

#[test]
fn a_closed_port_is_free_again() {
    let fixture = Fixture::working();
    let address = fixture.running.address();
    // A connection that is kept alive must not keep the port from closing.
    let _idle = TcpStream::connect(address).expect("open");
    drop(fixture);
    std::net::TcpListener::bind(address).expect("the port is free");
}
