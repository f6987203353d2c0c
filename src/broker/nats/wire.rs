//! Between NATS headers and ours, and what an acknowledgement subject says.

use async_nats::{HeaderMap, HeaderName, HeaderValue, Subject};

use crate::message::Headers;
use crate::message::headers::Builder;
use crate::time::Timestamp;

/// The names of headers that this adapter writes into its records, beside those of `message::record`. All begin with
/// `Nats-`, which a record reserves: an original's header of such a name is kept under another.
pub mod header {
    /// The acknowledgement subject of the delivery that a record replaces, and when its message was stored (ms).
    pub const REPLACES: &str = "Nats-Windlass-Replaces";
    /// How many records of this job came before it: with the origin it names the record.
    pub const HOP: &str = "Nats-Windlass-Hop";
    /// So many bytes of the body lie in a part of their own, because the whole would exceed the server's limit.
    pub const PART: &str = "Nats-Windlass-Part";
    /// De-duplication by the server.
    pub const MESSAGE_ID: &str = "Nats-Msg-Id";
    /// When the server is to publish it (2.12).
    pub const SCHEDULE: &str = "Nats-Schedule";
    /// Where to.
    pub const TARGET: &str = "Nats-Schedule-Target";
    /// For how long it is kept (2.11).
    pub const TTL: &str = "Nats-TTL";
    /// The sequence of the subject's last message, or nothing is stored.
    pub const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
    /// `sub`: what lay under the subject before is removed.
    pub const ROLLUP: &str = "Nats-Rollup";
    /// How many messages are behind the one that was asked for (2.11).
    pub const BEHIND: &str = "Nats-Num-Pending";
    /// Unused credit of a pull request that ended.
    pub const UNUSED: &str = "Nats-Pending-Messages";
}

/// Ours from theirs. The client keeps headers in no order, so they are put into that of their names.
pub fn headers_in(map: Option<&HeaderMap>, builder: &mut Builder) -> Headers {
    let Some(map) = map.filter(|map| !map.is_empty()) else { return Headers::new() };
    let mut names: smallvec::SmallVec<[(&str, &Vec<HeaderValue>); 12]> =
        map.iter().map(|(name, values)| (name.as_ref(), values)).collect();
    names.sort_unstable_by_key(|(name, _)| *name);
    let sizes = names
        .iter()
        .flat_map(|(name, values)| values.iter().map(|value| Builder::size_of(name, value.as_str().as_bytes())));
    builder.reserve(sizes.sum());
    for (name, values) in names {
        for value in values {
            builder.push(name, value.as_str().as_bytes());
        }
    }
    builder.finish()
}

/// Theirs from ours. What a NATS header cannot carry (a name with a colon or a space, a value with a line break or
/// bytes that are not UTF-8) is named in the error.
pub fn headers_out(headers: &Headers) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter() {
        let text = std::str::from_utf8(value).map_err(|_| format!("header {name:?} is not UTF-8"))?;
        let parsed: HeaderName = name.parse().map_err(|_| format!("{name:?} is no name of a NATS header"))?;
        let value: HeaderValue =
            text.parse().map_err(|_| format!("header {name:?} has a line break, which NATS headers cannot carry"))?;
        map.append(parsed, value);
    }
    Ok(map)
}

/// A header's value as text.
pub fn text<'a>(map: Option<&'a HeaderMap>, name: &'static str) -> Option<&'a str> {
    map?.get(name).map(HeaderValue::as_str)
}

/// What an acknowledgement subject says about the delivery. Source: ADR-15; nine tokens, or eleven and more with
/// domain and account behind `$JS.ACK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered<'a> {
    /// The stream.
    pub stream: &'a str,
    /// The durable.
    pub consumer: &'a str,
    /// How often this message was delivered, this time included.
    pub count: u64,
    /// Its sequence in the stream.
    pub seq: u64,
    /// How many deliveries the consumer had made, this one included.
    pub sequence: u64,
    /// When the server stored it, in nanoseconds since the epoch.
    pub stored: i64,
    /// Messages that wait behind it.
    pub pending: u64,
}

impl Delivered<'_> {
    /// When the server stored it; rounded down, as the `origin` of the message has it.
    pub fn at(&self) -> Timestamp {
        Timestamp::from_millis(self.stored / 1_000_000)
    }
}

/// Parses an acknowledgement subject.
pub fn delivered(reply: &str) -> Option<Delivered<'_>> {
    let rest = reply.strip_prefix("$JS.ACK.")?;
    // Where each token ends; of more than there are names for, only the first matter.
    let (mut ends, mut count) = ([rest.len(); 9], 0);
    for (at, _) in rest.bytes().enumerate().filter(|&(_, byte)| byte == b'.') {
        if count < ends.len() {
            ends[count] = at;
        }
        count += 1;
    }
    let skipped = match count + 1 {
        7 => 0,
        9.. => 2,
        _ => return None,
    };
    let token = |index: usize| {
        let from = if index + skipped == 0 { 0 } else { ends[index + skipped - 1] + 1 };
        rest.get(from..ends[index + skipped])
    };
    let number = |index: usize| token(index)?.parse::<u64>().ok();
    Some(Delivered {
        stream: token(0)?,
        consumer: token(1)?,
        count: number(2)?,
        seq: number(3)?,
        sequence: number(4)?,
        stored: number(5)?.try_into().ok()?,
        pending: number(6)?,
    })
}

/// Bytes as two digits each.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A subject made of text.
pub fn subject(text: String) -> Subject {
    Subject::from(text)
}

/// Whether `pattern`, which may hold wildcards, covers all that `topic` covers.
pub fn covers(pattern: &str, topic: &str) -> bool {
    let (mut pattern, mut topic) = (pattern.split('.'), topic.split('.'));
    loop {
        match (pattern.next(), topic.next()) {
            // Only the last token is a wildcard for many.
            (Some(">"), Some(_)) if pattern.clone().next().is_none() => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(p), Some(t)) if p == t && t != "*" => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

/// Whether some subject is covered by both.
pub fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (Some(">"), Some(_)) if one.clone().next().is_none() => return true,
            (Some(_), Some(">")) if other.clone().next().is_none() => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_of_acknowledgement_subjects_are_read() {
        let expected = Delivered {
            stream: "S",
            consumer: "C",
            count: 2,
            seq: 17,
            sequence: 9,
            stored: 1_763_719_200_123_456_789,
            pending: 5,
        };
        assert_eq!(delivered("$JS.ACK.S.C.2.17.9.1763719200123456789.5"), Some(expected));
        assert_eq!(delivered("$JS.ACK.hub.ACC.S.C.2.17.9.1763719200123456789.5"), Some(expected));
        assert_eq!(delivered("$JS.ACK.hub.ACC.S.C.2.17.9.1763719200123456789.5.rnd"), Some(expected));
        assert_eq!(expected.at(), Timestamp::from_millis(1_763_719_200_123));
        for bad in ["", "$JS.ACK.S.C.2.17", "$JS.ACK.S.C.x.17.9.1.5", "_INBOX.a"] {
            assert_eq!(delivered(bad), None, "{bad:?}");
        }
    }

    fn pattern() -> impl Strategy<Value = String> {
        let token = prop_oneof![Just("a"), Just("b"), Just("*")];
        (proptest::collection::vec(token, 1..4), any::<bool>()).prop_map(|(tokens, tail)| {
            let text = tokens.join(".");
            if tail { format!("{text}.>") } else { text }
        })
    }

    /// Every subject of the tokens a, b, c, up to five of them, that `pattern` covers.
    fn covered(pattern: &str) -> std::collections::BTreeSet<String> {
        let mut all = vec![String::new()];
        let mut found = std::collections::BTreeSet::new();
        for _ in 0..5 {
            all = all
                .iter()
                .flat_map(|s| ["a", "b", "c"].map(|t| if s.is_empty() { t.to_owned() } else { format!("{s}.{t}") }))
                .collect();
            found.extend(all.iter().filter(|subject| covers(pattern, subject)).cloned());
        }
        found
    }

    proptest! {
        #[test]
        fn wildcards_cover_what_their_subjects_say(one in pattern(), other in pattern()) {
            let (a, b) = (covered(&one), covered(&other));
            prop_assert_eq!(covers(&one, &other), b.is_subset(&a), "{} {}", one, other);
            prop_assert_eq!(overlap(&one, &other), !a.is_disjoint(&b), "{} {}", one, other);
        }

        #[test]
        fn headers_round_trip(pairs in proptest::collection::btree_map("[A-Za-z-]{1,12}", "[!-~]{0,12}", 0..6)) {
            let headers: Headers = pairs.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
            let map = headers_out(&headers).expect("plain headers");
            prop_assert_eq!(headers_in(Some(&map), &mut Builder::default()), headers);
        }

        #[test]
        fn acknowledgement_subjects_never_panic(text in ".{0,60}") {
            let _ = delivered(&text);
        }
    }

    #[test]
    fn what_nats_cannot_carry_is_named() {
        for (name, value) in [("a", &b"\xff"[..]), ("a", b"x\r\ny"), ("a b", b"x"), ("a:b", b"x")] {
            let headers: Headers = [(name, value)].into_iter().collect();
            let error = headers_out(&headers).expect_err("cannot be carried");
            assert!(error.contains(name), "{error}");
        }
    }
}
