//! Producers that have never heard of us: confluent-kafka, the Java client and kcat publish in every codec what a worker
//! may meet, transactions among it. What is committed runs exactly once, what is aborted never, and what cannot be
//! decoded is a dead letter with its bytes and headers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use windlass::app::RunOptions;
use windlass::broker::Letter;
use windlass::config::{Source, load};
use windlass::handler::{Context, Error, Handler, Output};
use windlass::message::{Event, Headers, Mode, Reason};
use windlass::{App, Registry};

use super::desk::Desk;
use crate::support::{kafka, process, tool};

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

/// Keeps what ran; what asks for it in a header fails for good.
#[derive(Default)]
struct Seen(Mutex<Vec<Event>>);

impl Handler for Seen {
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Output, Error>> {
        let event = cx.event().clone();
        let dead = event.headers.get("fate") == Some(b"dead");
        self.0.lock().push(event);
        Box::pin(async move { if dead { Err(Error::permanent("so it asked")) } else { Ok(None) } })
    }
}

/// What its body says it is, or its key where it has no body.
fn name(event: &Event) -> String {
    match serde_json::from_slice::<serde_json::Value>(&event.data) {
        Ok(body) => body["name"].as_str().unwrap().to_owned(),
        Err(_) => String::from_utf8(event.key.as_deref().unwrap_or_default().to_vec()).unwrap(),
    }
}

fn pairs(headers: &Headers) -> Vec<(&str, &[u8])> {
    headers.iter().collect()
}

/// Publishes by another's program, which ends well.
fn publish(mut command: Command, servers: &str, topic: &str, name: &str) {
    command.args([servers, topic, name]);
    process::output(command);
}

/// By kcat, which has no transactions: so many records of the odd kinds, for each codec. Its header names may be any
/// bytes.
fn kcat(servers: &str, topic: &str) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    for codec in CODECS {
        let of = format!("kcat-{codec}");
        let send = |headers: &[&[u8]], lines: &str| {
            let mut command = Command::new("kcat");
            command.args(["-P", "-q", "-b", servers, "-t", topic, "-z", codec, "-K", "\t", "-Z"]);
            for header in headers {
                command.arg("-H").arg(OsStr::from_bytes(header));
            }
            let mut child = command.stdin(Stdio::piped()).spawn().expect("kcat was found");
            child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("it reads");
            assert!(child.wait().expect("it ends").success(), "kcat cannot publish {of}");
        };
        let json = |what: &str| format!("{{\"name\":\"{of}-{what}\"}}");
        send(&[], &format!("k\t{}\n\t{}\n{of}-tombstone\t\n", json("plain"), json("unkeyed")));
        let id = format!("ce_id={of}-binary");
        let attributes: [&[u8]; 5] = [
            b"ce_specversion=1.0",
            id.as_bytes(),
            b"ce_source=/foreign",
            b"ce_type=made",
            b"content-type=application/json",
        ];
        send(&attributes, &format!("k\t{}\n", json("binary")));
        let odd: [&[u8]; 6] =
            [b"fate=dead", b"bytes=\xff\xfe\x7f", b"empty=", b"twice=1", b"twice=2", b"\xff\xfename=v"];
        send(&odd, &format!("k\t{}\n", json("odd")));
        send(&[b"content-type=application/json"], &format!("k\t{{\"name\":\"{of}-torn\"\n"));
    }
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("not tested: {program} is not here");
    }
    found
}

/// Everybody who is here publishes; their names.
fn publish_all(servers: &str, topic: &str) -> Vec<&'static str> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka/foreign");
    let mut published = Vec::new();
    if let Some(python) = tool::python("tests/kafka/foreign/requirements.txt") {
        let mut command = Command::new(python);
        command.env("PYTHONDONTWRITEBYTECODE", "1").arg(here.join("producer.py"));
        publish(command, servers, topic, "python");
        published.push("python");
    }
    // A runtime alone compiles nothing.
    if let Some(libs) = kafka::libs().filter(|_| has("javac")) {
        let mut command = kafka::java(&libs);
        command.arg(here.join("Producer.java"));
        publish(command, servers, topic, "java");
        published.push("java");
    }
    if has("kcat") {
        kcat(servers, topic);
        published.push("kcat");
    }
    published
}

/// What is to run, and what is to be a dead letter, with the reason and, where it never runs, its body.
fn expected(published: &[&str]) -> (BTreeSet<String>, BTreeMap<Vec<u8>, Reason>) {
    let (mut runs, mut letters) = (BTreeSet::new(), BTreeMap::new());
    for (who, codec) in published.iter().flat_map(|who| CODECS.map(|codec| (who, codec))) {
        let of = format!("{who}-{codec}");
        let complete = *who != "kcat";
        let mut names = vec!["plain", "unkeyed", "tombstone", "binary", "odd"];
        if complete {
            names.push("structured");
        }
        runs.extend(names.iter().map(|what| format!("{of}-{what}")));
        letters.insert(format!("{{\"name\":\"{of}-odd\"}}").into_bytes(), Reason::Permanent);
        letters.insert(format!("{{\"name\":\"{of}-torn\"").into_bytes(), Reason::Malformed);
        if complete {
            let committed = [0, 2].into_iter().flat_map(|number| (0..3).map(move |place| (number, place)));
            runs.extend(committed.map(|(number, place)| format!("{of}-committed-{number}-{place}")));
            letters.insert([b"\xff\x00", format!("{of}-bytes").as_bytes()].concat(), Reason::Malformed);
            letters.insert(format!("{of}-nameless").into_bytes(), Reason::Malformed);
            letters.insert(format!("{of}-envelope").into_bytes(), Reason::Malformed);
        }
    }
    (runs, letters)
}

/// What a foreign event is read as.
fn check_event(name: &str, event: &Event, topic: &str) {
    let what = name.splitn(3, '-').nth(2).unwrap();
    let key = event.key.as_deref();
    match what {
        "binary" | "structured" => {
            let mode = if what == "binary" { Mode::Binary } else { Mode::Structured };
            assert_eq!((event.mode, &*event.id, &*event.kind, &*event.source), (mode, name, "made", "/foreign"));
            assert_eq!(key, Some(&b"k"[..]));
        }
        _ => {
            assert_eq!((event.mode, &*event.kind), (Mode::Plain, topic), "{name}");
            assert!(event.id.starts_with(&format!("kafka:{topic}:")), "{name}: {}", event.id);
            match what {
                "unkeyed" => assert_eq!(key, None, "{name}"),
                "tombstone" => assert_eq!((key, &*event.data), (Some(name.as_bytes()), &b""[..])),
                _ => assert_eq!(key, Some(&b"k"[..]), "{name}"),
            }
        }
    }
}

/// Odd headers are all there, in their order; a name that is not UTF-8 in hexadecimal.
fn check_headers(letter: &Letter, who: &str) {
    let mut odd: Vec<(&str, &[u8])> = vec![
        ("fate", b"dead"),
        ("bytes", b"\xff\xfe\x00"),
        ("empty", b""),
        ("twice", b"1"),
        ("twice", b"2"),
        ("none", b""),
    ];
    if who == "kcat" {
        odd[1].1 = b"\xff\xfe\x7f";
        odd[5] = ("windlass-hex-fffe6e616d65", b"v");
    }
    assert_eq!(pairs(&letter.message.headers), odd, "{who}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_publish_in_every_codec_runs_once_or_is_a_dead_letter_and_what_they_abort_never_runs() {
    let Some(mut desk) = Desk::new() else { return };
    desk.queue("q", &["a"]);
    let topic = desk.topic("a");
    desk.create(&topic, 3, &[]).await;
    let servers = desk.address.trim_start_matches("kafka://").to_owned();
    let published = {
        let (servers, topic) = (servers.clone(), topic.clone());
        tokio::task::spawn_blocking(move || publish_all(&servers, &topic)).await.unwrap()
    };
    if published.is_empty() {
        return;
    }

    let text = format!(
        "broker = \"kafka://{servers}\"\nnamespace = \"{}\"\n[worker]\nlease = \"6s\"\n[admin]\nlisten = \"none\"\n\
         [queues.q]\ntopics = [\"{topic}\"]\njob = \"see\"\n",
        desk.namespace
    );
    let config = load(Source::new().text("test.toml", text)).expect("a configuration").config;
    let seen = Arc::new(Seen::default());
    let app = App::new(config, Registry::new().handler("see", seen.clone()));
    let app = app.with(RunOptions { burst: Some(Duration::ZERO), ..RunOptions::default() });
    let tally = tokio::time::timeout(Duration::from_secs(120), app.run_until(std::future::pending())).await;
    let tally = tally.expect("it has worked everything off").unwrap();

    let (runs, mut reasons) = expected(&published);
    let seen = std::mem::take(&mut *seen.0.lock());
    let mut ran: Vec<String> = seen.iter().map(name).collect();
    ran.sort();
    assert_eq!(ran, runs.into_iter().collect::<Vec<_>>(), "each once, and nothing else");
    for event in seen.iter() {
        check_event(&name(event), event, &topic);
    }
    assert_eq!((tally.retried, tally.dead), (0, reasons.len() as u64), "{tally:?}");
    let broker = desk.connect().await;
    let letters: Vec<Letter> = broker.dead_letters().list(Default::default()).map(Result::unwrap).collect().await;
    for letter in &letters {
        let body = letter.message.body.as_deref().unwrap_or_default();
        let text = String::from_utf8_lossy(body).into_owned();
        assert_eq!(reasons.remove(body), Some(letter.reason), "{text}");
        if letter.reason == Reason::Permanent {
            check_headers(letter, published.iter().find(|who| text.contains(**who)).unwrap());
        }
    }
    assert!(reasons.is_empty(), "these are missing: {reasons:?}");
    let status = broker.inspect().status(&[]).await.unwrap().remove(0);
    assert_eq!((status.ready, status.retrying), (Some(0), Some(0)), "{status:?}");
    broker.close().await;
}
