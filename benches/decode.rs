//! What it costs to make an event of a message: nanoseconds each, dropping included.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use windlass::message::cloudevents::{self, Attributes};
use windlass::message::{Binding, Headers, Message, Origin, Place, decode};
use windlass::time::Timestamp;

const ROUNDS: u32 = 5;

fn main() {
    let body =
        br#"{"report_id":842302,"timestamp":"2026-11-21T10:00:00.000Z","patient_id":"p-000842302","diagnosis":"M"}"#;
    let envelope = br#"{"specversion":"1.0","id":"842302","source":"/lab","type":"reports.finalized","data":{"report_id":842302}}"#;
    let structured = [("content-type", "application/cloudevents+json")].into_iter().collect();
    measure("binary, six attributes, ce-", Binding::Dash, six(Binding::Dash), body);
    measure("binary, six attributes, ce_", Binding::Kafka, six(Binding::Kafka), body);
    measure("plain", Binding::Dash, Headers::new(), body);
    measure("structured", Binding::Dash, structured, envelope);
}

fn six(binding: Binding) -> Headers {
    let attributes = Attributes {
        id: "019a9c4e-7c3e-7f10-8000-0123456789ab",
        source: "windlass://lab",
        kind: "reports.finalized",
        content_type: Some("application/json"),
        time: Some(Timestamp::from_millis(1_763_719_200_000)),
        ..Attributes::default()
    };
    cloudevents::write(&attributes, binding)
}

fn measure(what: &str, binding: Binding, headers: Headers, body: &'static [u8]) {
    let place = Arc::new(Place {
        position: "sqlite:reports.finalized".to_owned(),
        source: "sqlite://reports.finalized".to_owned(),
        topic: Some("reports.finalized".into()),
        binding,
    });
    let message = Message { headers, body: Some(body.into()), key: None };
    // `cargo bench` says so; a test run only sees that it works.
    let events: u32 = if std::env::args().any(|argument| argument == "--bench") { 1_000_000 } else { 10 };
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for seq in 0..events {
            let origin = Origin { place: &place, seq: u64::from(seq), at: Timestamp::from_millis(0) };
            let event = decode(black_box(&message), &origin, None);
            assert!(black_box(&event).is_ok(), "the message is whole");
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(events));
    }
    println!("{what:<30} {best:>7.1} ns");
}
