//! Producers that have never heard of us, and what else lies in streams.

use std::io::{Read, Write};
use std::time::Duration;

use serde_json::{Value, json};
use windlass::broker::Disposition;
use windlass::message::{Mode, Reason, decode};

use super::kit::{self, Behind, invoicing, run};
use crate::support::nats::{Nats, Release};
use crate::support::tool;

/// Publishes raw bytes of the protocol: headers as no client would let us write them.
fn publish_raw(server: &Nats, subject: &str, headers: &[u8], body: &[u8]) {
    let mut socket = std::net::TcpStream::connect(server.host()).expect("the server listens");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let mut head = b"NATS/1.0\r\n".to_vec();
    head.extend_from_slice(headers);
    head.extend_from_slice(b"\r\n");
    let (from, all) = (head.len(), head.len() + body.len());
    socket.write_all(b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n").expect("sent");
    socket.write_all(format!("HPUB {subject} {from} {all}\r\n").as_bytes()).expect("sent");
    socket.write_all(&[&head, body, b"\r\nPING\r\n"].concat()).expect("sent");
    let mut answer = Vec::new();
    let mut buffer = [0; 4_096];
    while !answer.windows(6).any(|window| window == b"PONG\r\n") {
        let count = socket.read(&mut buffer).expect("the server answers");
        assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..count]);
    }
}

#[test]
fn odd_messages_block_nothing() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        Behind::with_orders(&server.url(), "orders").await;
        let (broker, mut work) = invoicing(&server.url(), "orders").await;
        // No body and no headers; headers without values, twice, with colons, of many bytes; bytes that are no text.
        publish_raw(&server, "orders", b"", b"");
        publish_raw(&server, "orders", b"X-Empty:\r\nX-Twice: a\r\nX-Twice: b\r\nX-Colon: a:b: c\r\n", b"{}");
        publish_raw(&server, "orders", &[b"X-Long: ", &[b'x'; 9_000][..], b"\r\n"].concat(), b"{}");
        publish_raw(&server, "orders", b"X-Text: ok\r\n", b"\xff\xfe");
        let deliveries = work.take(4).await;
        let headers: Vec<_> = deliveries.iter().map(|delivery| delivery.message.headers.clone()).collect();
        assert!(headers[0].is_empty());
        assert_eq!(headers[1].get("X-Colon"), Some(&b"a:b: c"[..]));
        assert_eq!(headers[1].get("X-Empty"), Some(&b""[..]));
        let twice: Vec<_> = headers[1].iter().filter(|(name, _)| *name == "X-Twice").map(|(_, value)| value).collect();
        assert_eq!(twice, [b"a", b"b"]);
        assert_eq!(headers[2].get("X-Long").map(<[u8]>::len), Some(9_000));
        assert_eq!(deliveries[3].message.body.as_deref(), Some(&b"\xff\xfe"[..]));
        for delivery in deliveries {
            work.stored(delivery, Disposition::Ack).await;
        }
        broker.close().await;
    });
}

/// What the `nats` command line publishes: over core and JetStream, plain, with odd headers, as CloudEvents, without a
/// body, many at once.
#[test]
fn what_the_command_line_of_others_publishes_is_read() {
    if !tool::full() {
        return;
    }
    let relative = format!("nats-cli-{}/nats", tool::version("NATS_CLI"));
    let Some(cli) = tool::find("the nats command line", "WINDLASS_TEST_NATS_CLI", &relative) else { return };
    let Some(server) = Nats::start(Release::New) else { return };
    let home = tempfile::tempdir().expect("a folder");
    run(async {
        Behind::with_orders(&server.url(), "orders").await;
        let (broker, mut work) = invoicing(&server.url(), "orders").await;
        let whole = r#"{"specversion":"1.0","id":"s1","type":"made","source":"/shop","data":{"a":3}}"#;
        let binary = ["-H", "ce-specversion:1.0", "-H", "ce-id:b1", "-H", "ce-type:made", "-H", "ce-source:/shop"];
        let publications: [&[&str]; 6] = [
            &[r#"{"a":1}"#],
            &["-J", r#"{"a":2}"#, "-H", "X-Odd:a:b: c", "-H", "X-Empty:"],
            &["-J", "-H", "content-type:application/cloudevents+json; charset=utf-8", whole],
            &[&["-J", r#"{"a":4}"#][..], &binary].concat(),
            &["-J", ""],
            &["--count", "3", r#"{"n":{{Count}}}"#],
        ];
        for words in publications {
            let mut command = std::process::Command::new(&cli);
            command.args(["--no-context", "-s", &server.url(), "pub", "orders"]).args(words).env("HOME", home.path());
            let output = command.output().expect("it can be run");
            assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let mut read = Vec::new();
        for delivery in work.take(8).await {
            let event = decode(&delivery.message, &delivery.origin(), None).expect("whatever it publishes is read");
            let data = String::from_utf8_lossy(&event.data).into_owned();
            read.push((event.id.to_string(), event.kind.to_string(), event.mode, data));
            if delivery.seq == 2 {
                assert_eq!(delivery.message.headers.get("X-Odd"), Some(&b"a:b: c"[..]));
                assert_eq!(delivery.message.headers.get("X-Empty"), Some(&b""[..]));
            }
            work.stored(delivery, Disposition::Ack).await;
        }
        let plain =
            |seq: u64, data: &str| (format!("nats:ORDERS:{seq}"), "orders".to_owned(), Mode::Plain, data.into());
        let event = |id: &str, mode, data: &str| (id.to_owned(), "made".to_owned(), mode, data.into());
        let expected = [
            plain(1, r#"{"a":1}"#),
            plain(2, r#"{"a":2}"#),
            event("s1", Mode::Structured, r#"{"a":3}"#),
            event("b1", Mode::Binary, r#"{"a":4}"#),
            plain(5, ""),
            plain(6, r#"{"n":1}"#),
            plain(7, r#"{"n":2}"#),
            plain(8, r#"{"n":3}"#),
        ];
        assert_eq!(read, expected);
        broker.close().await;
    });
}

/// Bodies with a header each that the client library ends its connection at.
const UNREADABLE: [(&[u8], &str); 4] = [
    (b"X Name: a", "a space in the name"),
    (b"X-Name: \xe9t\xe9", "latin-1"),
    (b"X-N\xc3\xa4me: a", "a name that is not ASCII"),
    (b"no colon", "no header"),
];

#[test]
fn headers_that_the_client_cannot_read_take_no_worker_off_its_queue() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::with_orders(&server.url(), "orders.>").await;
        let (broker, mut work) = invoicing(&server.url(), "orders.new").await;
        // Not heard by this queue, so none of its affair.
        publish_raw(&server, "orders.old", b"X Name: a\r\n", b"{}");
        for (index, (header, body)) in UNREADABLE.iter().enumerate() {
            kit::publish(&broker, "orders.new", &[&index.to_string()]).await;
            publish_raw(&server, "orders.new", &[b"X-Kept: yes\r\n", *header, b"\r\n"].concat(), body.as_bytes());
        }
        kit::publish(&broker, "orders.new", &["4"]).await;
        let mut ran = std::collections::BTreeSet::new();
        while ran.len() < 5 {
            let delivery = work.one().await;
            ran.extend(delivery.message.body.clone());
            work.stored(delivery, Disposition::Ack).await;
        }
        let mut letters = Vec::new();
        while letters.len() < UNREADABLE.len() {
            letters = kit::letters(&broker).await;
        }
        for (letter, (header, body)) in letters.iter().zip(UNREADABLE) {
            assert_eq!((letter.reason, letter.attempts), (Reason::Malformed, 0));
            assert_eq!(letter.message.body.as_deref(), Some(body.as_bytes()));
            assert_eq!(letter.message.headers.get("X-Kept"), Some(&b"yes"[..]));
            let hex: String = header.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(letter.message.headers.get("windlass-hex-header"), Some(hex.as_bytes()), "{body}");
        }
        let unsettled =
            async || behind.api("CONSUMER.INFO.ORDERS.t_invoice", Value::Null).await["num_ack_pending"].clone();
        while unsettled().await != json!(0) {}
        broker.close().await;
    });
}

/// A log does not say of each message whether it is settled; whoever found one remembers it.
#[test]
fn an_unreadable_message_whose_letter_was_removed_is_not_found_again() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        Behind::with_orders(&server.url(), "orders").await;
        let (broker, mut work) = invoicing(&server.url(), "orders").await;
        // While this one runs, nothing behind it is known to be settled.
        kit::publish(&broker, "orders", &["0"]).await;
        let running = work.one().await;
        for body in ["first", "second"] {
            publish_raw(&server, "orders", b"X Name: a\r\n", body.as_bytes());
            let mut letters = Vec::new();
            while letters.is_empty() {
                // What is asked for must be received.
                assert!(work.within(1, Duration::from_millis(20)).await.is_empty(), "it is not handed out");
                letters = kit::letters(&broker).await;
            }
            let bodies: Vec<_> = letters.iter().map(|letter| letter.message.body.clone().unwrap_or_default()).collect();
            assert_eq!(bodies, [body], "one letter each, once");
            let removed = broker.dead_letters().purge(&letters).await;
            assert!(matches!(removed[..], [Ok(true)]), "{removed:?}");
        }
        work.stored(running, Disposition::Ack).await;
        broker.close().await;
    });
}

/// The client library panics at such a value, which ends its task for good.
#[test]
fn headers_that_the_client_panics_at_take_no_worker_off_its_queue() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let behind = Behind::with_orders(&server.url(), "orders").await;
        let (broker, mut work) = invoicing(&server.url(), "orders").await;
        kit::publish(&broker, "orders", &["before"]).await;
        let running = work.one().await;
        for (round, body) in ["first", "second"].into_iter().enumerate() {
            publish_raw(&server, "orders", b"X-Return: a\rb\r\n", body.as_bytes());
            publish_raw(&server, "orders", b"X-Return: a\rb\r\n", body.as_bytes());
            publish_raw(&server, "orders", b"", b"behind");
            let delivery = work.one().await;
            assert_eq!(delivery.message.body.as_deref(), Some(&b"behind"[..]));
            work.stored(delivery, Disposition::Ack).await;
            while kit::letters(&broker).await.len() < 2 * (round + 1) {}
        }
        // What was running meanwhile is still ours.
        work.stored(running, Disposition::Ack).await;
        assert!(broker.connected());
        assert_eq!(work.settler.trouble(), None);
        let letters = kit::letters(&broker).await;
        let bodies: Vec<_> = letters.iter().map(|letter| letter.message.body.clone().unwrap_or_default()).collect();
        assert_eq!(bodies, ["first", "first", "second", "second"]);
        assert!(letters.iter().all(|letter| letter.message.headers.get("windlass-hex-header").is_some()));
        let unsettled =
            async || behind.api("CONSUMER.INFO.ORDERS.t_invoice", Value::Null).await["num_ack_pending"].clone();
        while unsettled().await != json!(0) {}
        broker.close().await;
    });
}

#[test]
fn a_record_that_nobody_can_read_becomes_a_dead_letter_with_its_bytes() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let (broker, mut work) = invoicing(&server.url(), "orders").await;
        let behind = Behind::connect(&server.url()).await;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("ce-windlassrecord", "1");
        headers.insert("ce-attempt", "many");
        headers.insert("x-kept", "yes");
        let subject = "t.work.invoice.run.broken";
        behind.0.publish_with_headers(subject, headers, "the body".into()).await.expect("published");
        behind.0.flush().await.expect("sent");
        // What is behind it is not blocked.
        kit::publish(&broker, "orders", &["1"]).await;
        let delivery = work.one().await;
        work.stored(delivery, Disposition::Ack).await;
        let mut letters = Vec::new();
        while letters.is_empty() {
            letters = kit::letters(&broker).await;
        }
        let letter = &letters[0];
        assert_eq!((letter.reason, letter.attempts), (Reason::Malformed, 0));
        assert_eq!(letter.message.body.as_deref(), Some(&b"the body"[..]));
        assert_eq!(letter.message.headers.get("x-kept"), Some(&b"yes"[..]));
        assert_eq!(letter.message.headers.get("ce-attempt"), Some(&b"many"[..]));
        broker.close().await;
        let info = behind.api("STREAM.INFO.t_work", json!({ "subjects_filter": "t.work.>" })).await;
        assert_eq!(info["state"]["subjects"], Value::Null, "it is gone from the work: {info}");
    });
}
