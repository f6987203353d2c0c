//! The argument of a job: JSON of fixed width, so that a raw loop reads its id without parsing, and of the size that
//! was asked for.

use bytes::Bytes;
use serde::Deserialize;

/// As typed jobs read it.
#[derive(Debug, Deserialize)]
pub struct Body {
    n: u64,
    sent: u64,
}

/// What is added to numbers, for all to have as many digits.
const BASE_ID: u64 = 1_000_000_000;
const BASE_TIME: u64 = 1_000_000_000_000_000_000;
/// `{"n":1000000000,"sent":1000000000000000000}`
pub const LEAST: usize = 43;
/// The most ids that fit.
pub const MOST: u64 = 8_000_000_000;
/// `,"pad":""`
const PAD: usize = 9;

/// Writes a body of `size` bytes; `sent`: when it is published, where its wait counts.
pub fn write(id: u64, sent: Option<u64>, size: usize) -> Bytes {
    let sent = sent.map_or(0, |sent| sent + 1);
    let mut text = format!(r#"{{"n":{},"sent":{}"#, BASE_ID + id, BASE_TIME + sent);
    match size.saturating_sub(LEAST) {
        room if room >= PAD => {
            text.push_str(r#","pad":""#);
            text.extend(std::iter::repeat_n('x', room - PAD));
            text.push('"');
        }
        room => text.extend(std::iter::repeat_n(' ', room)),
    }
    text.push('}');
    text.into()
}

impl Body {
    /// The id.
    pub fn id(&self) -> u64 {
        self.n.wrapping_sub(BASE_ID)
    }

    /// When it was published, where its wait counts.
    pub fn sent(&self) -> Option<u64> {
        self.sent.checked_sub(BASE_TIME + 1)
    }

    /// What a raw loop reads of a body that [`write`] wrote.
    pub fn peek(text: &[u8]) -> Option<Self> {
        // Cheaper than parsing, which would be a fourth of what Kafka's loop costs. No number has 20 digits.
        let number = |from: usize, digits: usize| {
            let mut digits = text.get(from..from + digits)?.iter();
            digits.try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0')))
        };
        Some(Self { n: number(5, 10)?, sent: number(23, 19)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read_back_both_ways_and_are_as_large_as_asked() {
        for (id, sent) in [(0, None), (7, Some(0)), (MOST - 1, Some(u64::from(u32::MAX) << 20))] {
            for size in [LEAST, LEAST + 1, LEAST + PAD - 1, LEAST + PAD, 200] {
                let text = write(id, sent, size);
                assert_eq!(text.len(), size, "{text:?}");
                let parsed: Body = serde_json::from_slice(&text).expect("JSON");
                let peeked = Body::peek(&text).expect("of fixed width");
                assert_eq!((parsed.id(), parsed.sent()), (id, sent));
                assert_eq!((peeked.id(), peeked.sent()), (id, sent));
            }
        }
        assert!(Body::peek(b"{}").is_none());
    }
}
