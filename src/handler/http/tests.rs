//! Against real servers on loopback.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::handler::{Verdict, fixture};

const DEADLINE: Duration = Duration::from_secs(20);

/// What a server saw of one request.
#[derive(Clone, Debug)]
struct Seen {
    peer: SocketAddr,
    line: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// A server that answers every request as told, and remembers them.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    async fn new(answer: impl Fn(&Seen) -> Response + Clone + Send + Sync + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let serve = move |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request| {
            let (log, answer) = (log.clone(), answer.clone());
            async move {
                let line = format!("{} {}", request.method(), request.uri());
                let headers = request.headers().clone();
                let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.expect("a whole body").to_vec();
                let seen = Seen { peer, line, headers, body };
                let answer = answer(&seen);
                log.lock().push(seen);
                answer
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let app = Router::new().fallback(serve).into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, seen }
    }

    fn config(&self) -> Config {
        config(&format!("http://{}/jobs/invoice", self.address))
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }
}

fn config(url: &str) -> Config {
    Config { url: url.to_owned(), headers: Vec::new(), bearer_file: None, ca_file: None }
}

fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let builder =
        headers.iter().fold(Response::builder().status(status), |builder, (name, value)| builder.header(*name, *value));
    builder.body(body.into()).expect("valid")
}

const EVENT: [(&str, &str); 6] = [
    ("ce-specversion", "1.0"),
    ("ce-id", "a1"),
    ("ce-source", "/lab"),
    ("ce-type", "report.done"),
    ("ce-datacontenttype", "application/json"),
    ("ce-attempt", "99"),
];

async fn call(handler: &Arc<dyn Handler>, attempt: u32) -> Result<Output, Error> {
    let cx = fixture::context(fixture::event(&EVENT, b"{}"), attempt, false).await;
    tokio::time::timeout(DEADLINE, handler.call(cx)).await.expect("an answer in time")
}

async fn call_at(config: &Config) -> Result<Output, Error> {
    call(&handler(config).expect("a good configuration"), 1).await
}

#[tokio::test]
async fn an_attempt_is_one_cloudevent_in_binary_mode() {
    let server = Server::new(|_| answer(202, &[], "accepted")).await;
    let mut config = server.config();
    config.headers = vec![("x-team".to_owned(), "billing".to_owned())];
    let job = handler(&config).expect("a good configuration");
    let headers = [
        &EVENT[..],
        &[
            ("ce-subject", "p%C3%A4t%20ient"),
            ("ce-partitionkey", "k"),
            ("ce-expirytime", "2036-01-01T00:00:00Z"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("tracestate", "a=b"),
            ("authorization", "Bearer of-the-producer"),
        ],
    ]
    .concat();
    let body = br#"{ "report_id": 1.50 }"#;
    let cx = fixture::context(fixture::event(&headers, body), 3, false).await;
    assert_eq!(job.call(cx).await.expect("202 is done"), None);

    let seen = server.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((&*seen[0].line, &*seen[0].body), ("POST /jobs/invoice", &body[..]));
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "a1"),
        ("ce-source", "/lab"),
        ("ce-type", "report.done"),
        ("ce-subject", "p%C3%A4t%20ient"),
        ("ce-partitionkey", "k"),
        ("ce-expirytime", "2036-01-01T00:00:00Z"),
        ("ce-attempt", "3"),
        ("content-type", "application/json"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "a=b"),
        ("x-team", "billing"),
        ("content-length", "21"),
    ] {
        assert_eq!(seen[0].headers.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
    }
    assert!(!seen[0].headers.contains_key("authorization") && !seen[0].headers.contains_key("ce-datacontenttype"));
}

#[tokio::test]
async fn bodies_are_called_what_they_are() {
    let server = Server::new(|_| answer(200, &[], "")).await;
    let job = handler(&server.config()).expect("a good configuration");
    let structured = br#"{"specversion":"1.0","id":"i","source":"/s","type":"t","data":{ "a" :1 },"urgent":true}"#;
    for (headers, body, content_type, sent) in [
        (&[][..], &b"{\"a\":1}"[..], Some("application/json"), &b"{\"a\":1}"[..]),
        (&[], b"hello", Some("text/plain; charset=utf-8"), b"hello"),
        (&[], b"", None, b""),
        (&[("content-type", "image/png")], b"\xff", Some("image/png"), b"\xff"),
        (&[("content-type", "application/cloudevents+json")], structured, Some("application/json"), b"{ \"a\" :1 }"),
    ] {
        let cx = fixture::context(fixture::event(headers, body), 1, false).await;
        job.call(cx).await.expect("200 is done");
        let seen = server.seen().pop().expect("a request");
        assert_eq!(seen.headers.get("content-type").map(|value| value.to_str().expect("ASCII")), content_type);
        assert_eq!(seen.body, sent);
        assert!(seen.headers.contains_key("ce-id") && seen.headers.contains_key("ce-source"));
    }
    assert_eq!(
        server.seen().pop().expect("a request").headers.get("ce-urgent"),
        Some(&HeaderValue::from_static("true"))
    );

    // A plain message's is sent too.
    let plain = fixture::event(&[("expirytime", "2036-01-01T00:00:00.000Z")], b"{}");
    job.call(fixture::context(plain, 1, false).await).await.expect("200 is done");
    let sent = server.seen().pop().expect("a request").headers.get("ce-expirytime").cloned();
    assert_eq!(sent, Some(HeaderValue::from_static("2036-01-01T00:00:00.000Z")));

    let cx = fixture::context(fixture::event(&[("content-type", "application/json")], b"{"), 1, false).await;
    assert_eq!(job.call(cx).await.expect_err("malformed").verdict(), Verdict::Malformed);
    assert_eq!(server.seen().len(), 6, "a malformed event must not be sent");
}

#[tokio::test]
async fn every_status_row_holds() {
    let server = Server::new(|seen| {
        let (status, rest) =
            seen.line.rsplit_once('/').map_or(("", ""), |(_, tail)| tail.split_once('?').unwrap_or((tail, "")));
        let headers: &[_] = match rest {
            "after" => &[("retry-after", "11")],
            "moved" => &[("location", "/200")],
            _ => &[],
        };
        answer(status.parse().expect("a status"), headers, format!("because {status}"))
    })
    .await;
    let at = |path: &str| config(&format!("http://{}/{path}", server.address));
    for status in [200, 201, 202, 204, 299] {
        assert!(call_at(&at(&status.to_string())).await.is_ok(), "{status}");
    }
    for status in [400, 402, 406, 410, 411, 413, 415, 422, 431, 451] {
        for path in [format!("{status}"), format!("{status}?after")] {
            let error = call_at(&at(&path)).await.expect_err("no 2xx");
            assert_eq!((error.verdict(), error.kind()), (Verdict::Permanent, &*format!("http {status}")));
            assert_eq!(error.message(), format!("because {status}"));
        }
    }
    for status in [301, 302, 303, 307, 308, 401, 403, 404, 405, 408, 409, 425, 429, 500, 501, 502, 503, 504, 599] {
        let error = call_at(&at(&status.to_string())).await.expect_err("no 2xx");
        assert_eq!((error.verdict(), error.kind()), (Verdict::Retry, &*format!("http {status}")));
        assert!(error.message().ends_with(&format!("because {status}")), "{}", error.message());
        let error = call_at(&at(&format!("{status}?after"))).await.expect_err("no 2xx");
        assert_eq!(error.verdict(), Verdict::RetryAfter(Duration::from_secs(11)));
    }
    let before = server.seen().len();
    let error = call_at(&at("307?moved")).await.expect_err("no 2xx");
    assert!(error.message().starts_with("307 to /200: "), "{}", error.message());
    assert_eq!(server.seen().len(), before + 1, "the redirect was followed");
}

#[tokio::test]
async fn connections_are_used_again_whatever_was_answered() {
    let count = Arc::new(AtomicUsize::new(0));
    let server = Server::new(move |_| match count.fetch_add(1, Ordering::Relaxed) % 3 {
        0 => answer(200, &[], "x".repeat(20_000)),
        1 => answer(503, &[], "y".repeat(20_000)),
        _ => answer(400, &[], ""),
    })
    .await;
    let job = handler(&server.config()).expect("a good configuration");
    for attempt in 1..=9 {
        let answer = call(&job, attempt).await;
        assert_eq!(answer.is_ok(), attempt % 3 == 1);
        if attempt % 3 == 2 {
            assert_eq!(answer.expect_err("503").message(), "y".repeat(1_024));
        }
    }
    let peers: std::collections::BTreeSet<_> = server.seen().iter().map(|seen| seen.peer).collect();
    assert_eq!((server.seen().len(), peers.len()), (9, 1));
}

#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() {
    let endless =
        || Body::from_stream(futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>("z".repeat(8_192))));
    let server =
        Server::new(move |seen| answer(if seen.line.ends_with("bad") { 500 } else { 200 }, &[], endless())).await;
    assert!(call_at(&config(&format!("http://{}/good", server.address))).await.is_ok());
    let error = call_at(&config(&format!("http://{}/bad", server.address))).await.expect_err("500");
    assert_eq!(error.message(), "z".repeat(1_024));
}

#[tokio::test]
async fn the_status_counts_although_the_body_never_comes() {
    let server = Server::new(|_| {
        answer(
            200,
            &[("content-length", "10")],
            Body::from_stream(futures_util::stream::pending::<Result<&str, std::io::Error>>()),
        )
    })
    .await;
    assert!(call_at(&server.config()).await.is_ok());
}

#[tokio::test]
async fn a_token_is_read_again_when_it_was_refused() {
    let server = Server::new(|seen| {
        let known = seen.headers.get("authorization").is_some_and(|value| value == "Bearer new");
        answer(if known { 200 } else { 401 }, &[], "")
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "old\n").expect("written");
    let mut config = server.config();
    config.bearer_file = Some(file.clone());
    let job = handler(&config).expect("a good configuration");
    std::fs::write(&file, "new\n").expect("written");

    let error = call(&job, 1).await.expect_err("the old token");
    assert_eq!((error.verdict(), error.kind()), (Verdict::Retry, "http 401"));
    assert!(error.message().contains("token"), "{}", error.message());
    assert!(call(&job, 2).await.is_ok());
    std::fs::remove_file(&file).expect("removed");
    assert!(call(&job, 3).await.is_ok(), "the file is read again only when a token was refused");
    assert_eq!(server.seen().len(), 3, "one POST an attempt");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_tried_again() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let error = call_at(&config(&format!("http://user:secret@{unused}/x"))).await.expect_err("nobody listens");
    assert_eq!((error.verdict(), error.kind()), (Verdict::Retry, "http refused"));
    assert_eq!(error.message(), format!("http://{unused}/x refused the connection; is the server running?"));

    for (reset, kind) in [(true, "http reset"), (false, "http broken")] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut buffer = [0; 4_096];
            let read = stream.read(&mut buffer).await.expect("a request");
            assert!(read > 0);
            if reset {
                stream.set_zero_linger().expect("set");
            } else {
                stream.write_all(b"HTTP/1.1 2").await.expect("written");
            }
        });
        let error = call_at(&config(&format!("http://{address}/x"))).await.expect_err("no answer");
        assert_eq!((error.verdict(), error.kind()), (Verdict::Retry, kind), "{}", error.message());
    }
}

#[tokio::test]
async fn a_dropped_attempt_closes_its_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let job = handler(&config(&format!("http://{}/x", listener.local_addr().expect("bound")))).expect("good");
    let cx = fixture::context(fixture::event(&EVENT, b"{}"), 1, false).await;
    let attempt = tokio::spawn(job.call(cx));
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut buffer = [0; 4_096];
    assert!(stream.read(&mut buffer).await.expect("a request") > 0);
    attempt.abort();
    let closed = async { while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {} };
    tokio::time::timeout(DEADLINE, closed).await.expect("the connection is closed");
}

#[tokio::test]
async fn results_are_there_for_who_asks() {
    for (body, expected) in
        [("{\"a\":1}", serde_json::json!({ "a": 1 })), ("text", "text".into()), ("", serde_json::Value::Null)]
    {
        let server = Server::new(move |_| answer(200, &[], body)).await;
        let cx = fixture::context(fixture::event(&EVENT, b"{}"), 1, true).await;
        assert_eq!(handler(&server.config()).expect("good").call(cx).await.expect("200"), Some(expected));
    }
}

#[tokio::test]
async fn tls_trusts_the_configured_authority() {
    // Installs the process's provider, which the server below needs too.
    let _ = handler(&config("http://127.0.0.1:1/")).expect("good");
    let folder = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, made.cert.pem()).expect("written");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a good key");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let server = Arc::new(server);
    let serving = std::thread::spawn(move || {
        for _ in 0..2 {
            let (stream, _) = listener.accept().expect("a connection");
            let connection = rustls::ServerConnection::new(server.clone()).expect("a connection");
            let mut tls = rustls::StreamOwned::new(connection, stream);
            let mut buffer = [0; 4_096];
            // The client that does not trust us breaks off here.
            if tls.read(&mut buffer).is_ok_and(|read| read > 0) {
                tls.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").expect("written");
            }
        }
    });
    let mut config = config(&format!("https://localhost:{port}/x"));
    let error = call_at(&config).await.expect_err("an unknown authority");
    assert_eq!((error.verdict(), error.kind()), (Verdict::Retry, "http connect"), "{}", error.message());
    assert!(error.message().contains("certificate"), "{}", error.message());
    config.ca_file = Some(file);
    assert!(call_at(&config).await.is_ok());
    serving.join().expect("the server ended well");
}

#[test]
fn a_bad_configuration_is_told_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "\n").expect("written");
    let good = config("http://127.0.0.1:8000/x");
    assert!(handler(&good).is_ok());
    for (bad, word) in [
        (config("127.0.0.1:8000"), "127.0.0.1:8000"),
        (config("ftp://host/x"), "http://"),
        (Config { headers: vec![("ce-id".to_owned(), "x".to_owned())], ..good.clone() }, "ce-id"),
        (Config { headers: vec![("a b".to_owned(), "x".to_owned())], ..good.clone() }, "a b"),
        (Config { headers: vec![("a".to_owned(), "x\ny".to_owned())], ..good.clone() }, "value"),
        (Config { bearer_file: Some(folder.path().join("absent")), ..good.clone() }, "absent"),
        (Config { bearer_file: Some(empty.clone()), ..good.clone() }, "token"),
        (Config { ca_file: Some(empty), ..good.clone() }, "certificate"),
    ] {
        let error = handler(&bad).err().expect("a fault");
        assert!(error.contains(word), "{error}");
    }
}
