//! What reads bytes of others, one function a format: `fuzz/` hands it to libFuzzer, and a test to a loop that mutates
//! examples. Compiled for tests, and with the feature `fuzz`, which no release enables.
//!
//! Each function panics where a promise is broken: that nothing panics, that what was read comes back when it is
//! written and read again, that no secret is shown, and that an answer is no longer than a constant times the input.

mod message;
#[cfg(test)]
mod mutate;
mod text;

/// A format: its name, what looks at it, and examples to begin with.
pub struct Target {
    /// As `fuzz/fuzz_targets` calls it.
    pub name: &'static str,
    /// Looks at one input.
    pub look: fn(&[u8]),
    /// Examples.
    pub examples: &'static [&'static [u8]],
}

/// All formats.
pub const TARGETS: &[Target] = &[
    Target {
        name: "message",
        look: message::message,
        examples: &[
            b"D k=7\nce-specversion: 1.0\nce-id: 1\nce-source: s\nce-type: t\ncontent-type: application/json\n\n{\"a\":1}",
            b"K\nce_specversion: 1.0\nce_id: a%20b\nce_source: s\nce_type: t\nce_expirytime: 2026-11-21T10:00:00Z\n\n1",
            b"D\ncontent-type: application/cloudevents+json\n\n{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"s\",\"type\":\"t\",\"data\":{\"a\":[1,\"\\u00e9\"]},\"x\":true}",
            b"D\ncontent-type: application/cloudevents+json; charset=utf-8\n\n{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"s\",\"type\":\"t\",\"data_base64\":\"AAEC\",\"partitionkey\":\"k\"}",
            b"K\nb3: 80f198ee56343ba8\nexpirytime: 2026-11-21T10:00:00+02:00\npartitionkey: k\n\nplain text",
            b"D\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n\n\xff\xfe",
        ],
    },
    Target {
        name: "record",
        look: message::record,
        examples: &[
            b"D\nce-windlassrecord: 1\nce-job: j\nce-attempt: 3\nce-notbefore: 2026-11-21T10:00:00.000Z\nwindlass-orig-ce-job: x\n\n",
            b"K\nce_windlassrecord: 1\nce_dlqreason: permanent\nce_dlqattempts: 2\nce_dlqjob: j\nce_dlqgroup: q\nce_dlqerror: e\nkafka_dlt-original-topic: t\n\n",
            b"K\nce_windlassrecord: 2\nretry_topic-attempts: 1\n__connect.errors.topic: t\n__streams.errors.exception: e\n\n",
        ],
    },
    Target { name: "headers", look: message::headers, examples: &[b"\x01\x00\x02\x00\x00\x00abb", b"\x00\x00\x00\x00\x00\x00"] },
    Target {
        name: "letter",
        look: message::letter,
        examples: &[
            br#"{"id":"m1","queue":"q","event_id":"e","job":"j","topic":"t","key":null,"reason":"permanent","error_type":"E","error":"x","attempts":5,"first_failed":"2026-11-21T10:00:00.000Z","last_failed":"2026-11-21T10:00:01.000Z","fingerprint":"f","replays":0,"headers":{"a":"b","c:base64":"/w=="},"body":"{}","record":{"binding":"kafka","key_base64":"aw=="}}"#,
            br#"{"id":"a","reason":"expired","body_base64":"AAE="}"#,
            br#"{"id":"a","reason":"crashed","body":"","record":{"headers":[["a","Yg=="],["a","Yw=="]]}}"#,
        ],
    },
    #[cfg(any(feature = "kafka", feature = "fuzz"))]
    Target {
        name: "commit_metadata",
        look: crate::broker::fuzz::commit_metadata,
        examples: &[b"windlass1:AAAAAAcBAA", b"windlass1:", b"someone else's"],
    },
    #[cfg(any(feature = "kafka", feature = "fuzz"))]
    Target {
        name: "kafka_headers",
        look: crate::broker::fuzz::kafka_headers,
        examples: &[
            b"kafka:reports.finalized:3:17:1763719200000\nkafka_dlt-original-topic: t\nce_id: 1\n\n1",
            b"kafka:a:b:c:1:2:3\nx: y\n\n",
        ],
    },
    #[cfg(feature = "nats")]
    Target {
        name: "nats_replies",
        look: crate::broker::fuzz::nats_replies,
        examples: &[
            b"$JS.ACK.S.C.1.2.3.1763719200000000000.0",
            b"$JS.ACK._.acc.S.C.1.2.3.1763719200000000000.0.tok",
            br#"{"stream":"S","seq":12,"duplicate":true}"#,
            br#"{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"}}"#,
            b"a.*.b.>\na.x.b.c",
            b"a.*.b.>\na.*.b.>.x.j.c",
        ],
    },
    Target {
        name: "address",
        look: text::address,
        examples: &[
            b"nats://user:p%40ss@a.example:4223,b.example,[::1]:5",
            b"nats+tls://t0ken@h/",
            b"kafka://u:p@h:9092,i:9093",
            b"sqlite:///var/lib/w@x.db",
            b"memory://",
            b"nats+tls://t0/://t0/@@h",
        ],
    },
    Target {
        name: "configuration",
        look: text::configuration,
        examples: &[
            b"broker = \"nats://127.0.0.1:4222\"\nnamespace = \"n\"\n[worker]\nslots = 64\nbytes_in_flight = \"256MiB\"\ngrace = \"25s\"\n",
            b"[queues.invoice]\ntopics = [\"a\"]\nretry = { attempts = 20, first = \"1s\", factor = 2.0, max = \"1h\" }\nstart = \"2026-11-21T10:00:00Z\"\ndead_letter = { keep = \"forever\" }\n",
            b"[jobs.invoice]\nhttp = \"http://127.0.0.1:8000/x\"\nheaders = { a = \"b\" }\n[kafka.options]\n\"enable.auto.commit\" = true\n",
            b"borker = 1\n[worker]\nconcurrency = \"x\"\n[[queues]]\n",
        ],
    },
    Target {
        name: "duration",
        look: text::duration,
        examples: &[b"1h30m", b"250ms", b"99999999999999999999d", b"2026-11-21T12:00:00.0001+02:00", b"-1s", b"0001d", b"1d18446744073709551s"],
    },
    Target {
        name: "condition",
        look: text::condition,
        examples: &[b"dead>0", b"age>=5m", b"workers != 1e3", b"ready<nan", b"2h", b"2026-11-21T10:00:00Z"],
    },
    Target {
        name: "http_answer",
        look: text::http_answer,
        examples: &[
            b"503\nretry-after: 30\n\nbusy",
            b"429\nretry-after: Sat, 21 Nov 2026 10:00:00 GMT\ndate: Sat, 21 Nov 2026 09:59:00 GMT\n\n",
            b"301\nlocation: /jobs/x/\n\n",
            b"400\ncontent-type: application/json\n\n{\"detail\":\"no\"}",
            b"405\nallow: GET\n\n\xff",
        ],
    },
    Target {
        name: "admin_body",
        look: crate::admin::fuzz::body,
        examples: &[
            b"ce-specversion: 1.0\nce-id: 1\nce-source: s\nce-type: t\nidempotency-key: \"1\"\n\n{}",
            b"content-type: application/cloudevents+json\n\n{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"s\",\"type\":\"t\",\"data\":1}",
            b"content-type: application/json\nidempotency-key: k\nexpirytime: 2026-11-21T10:00:00Z\n\n{\"a\":1}",
            b"content-type: application/cloudevents-batch+json\n\n[]",
            b"content-type:  application/cloudevents+json\n\n{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"s\",\"type\":\"t\"}",
        ],
    },
];

/// The target of this name.
///
/// # Panics
/// Where there is none: a mistake in `fuzz/`.
pub fn look(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("fuzz/ names targets of this list");
    (target.look)(input);
}

/// Lines `name: value` up to an empty one, and what follows it.
pub(crate) fn head_and_body(input: &[u8]) -> (Vec<(&str, &[u8])>, &[u8]) {
    let (mut pairs, mut rest) = (Vec::new(), input);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, tail) = (&rest[..end], &rest[end + 1..]);
        rest = tail;
        if line.is_empty() {
            break;
        }
        let middle = line.windows(2).position(|pair| pair == b": ").unwrap_or(line.len());
        let value = line.get(middle + 2..).unwrap_or_default();
        pairs.extend(std::str::from_utf8(&line[..middle]).ok().map(|name| (name, value)));
    }
    (pairs, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs of each target by default: some seconds in all in a debug build. `WINDLASS_FUZZ_INPUTS` says another
    /// number; docs/reliability.md says what a million found.
    const INPUTS: usize = 1_500;

    #[test]
    fn no_input_breaks_a_promise() {
        let inputs = std::env::var("WINDLASS_FUZZ_INPUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(INPUTS);
        let only = std::env::var("WINDLASS_FUZZ_TARGET").ok();
        let mut broken: Vec<String> = Vec::new();
        for target in TARGETS.iter().filter(|target| only.as_ref().is_none_or(|only| only == target.name)) {
            let began = std::time::Instant::now();
            let mut mutator = mutate::Mutator::new(7, target.examples);
            for count in 0..inputs {
                let input = mutator.next();
                if std::panic::catch_unwind(|| (target.look)(&input)).is_err() {
                    broken.push(format!("{} by input {count}: {}", target.name, input.escape_ascii()));
                    break;
                }
            }
            eprintln!("{}: {inputs} inputs in {:.1?}", target.name, began.elapsed());
        }
        assert!(broken.is_empty(), "broken:\n{}", broken.join("\n"));
    }

    #[test]
    fn the_examples_are_read_as_what_they_are() {
        for target in TARGETS {
            target.examples.iter().for_each(|example| (target.look)(example));
        }
        let (head, body) = head_and_body(b"a: b\nc: d: e\n\nf\n\ng");
        assert_eq!((head, body), (vec![("a", &b"b"[..]), ("c", b"d: e")], &b"f\n\ng"[..]));
    }
}
