//! The fingerprint of a dead letter: letters that failed in the same way share one.
//!
//! It is the 64-bit FNV-1a hash (as sixteen hexadecimal digits) of queue, job, reason, error type and the error text
//! in its normal form, each followed by the byte 0x1f. It is the same in every version, process and broker, so that
//! a runbook may name it. The normal form of a text ([`normalise`]) drops what differs from one failure to the next:
//!
//! - what stands in quotes (`'..'`, `".."`, `` `..` ``) becomes `?`;
//! - UUIDs, words of eight or more hexadecimal digits, `0x..`, and words that mix letters and digits as ids do (two
//!   or more runs of digits) become `#`;
//! - every other run of digits becomes `#`, and `#.#`, `#,#`, `#:#` become one `#`: numbers, clock times, addresses;
//! - white space becomes one space; the first 300 characters count.

use super::Letter;
use crate::message::{JobName, QueueName, Reason};

/// The fingerprint of a dead letter.
pub fn fingerprint(letter: &Letter) -> String {
    of(&letter.queue, &letter.job, letter.reason, &letter.failure.error_type, &letter.failure.error)
}

/// The fingerprint made of these.
pub fn of(queue: &QueueName, job: &JobName, reason: Reason, error_type: &str, error: &str) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in [queue.as_str(), job.as_str(), reason.as_str(), error_type, &normalise(error)] {
        for byte in part.bytes().chain([0x1f]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

/// The longest normal form, in characters: a text that was cut at its end still groups with its like.
const LONGEST: usize = 300;

/// The normal form of an error text (see the module's documentation).
pub fn normalise(error: &str) -> String {
    let mut out = Normal::default();
    let mut rest = error;
    let mut before = ' ';
    while let Some(first) = rest.chars().next() {
        if out.length >= LONGEST {
            break;
        }
        let taken = if let Some(length) = quoted(rest, before) {
            out.push('?');
            length
        } else if is_word(first) {
            let length = rest.find(|c| !is_word(c) && c != '-').unwrap_or(rest.len());
            out.word(&rest[..length]);
            length
        } else {
            out.push(if first.is_whitespace() { ' ' } else { first });
            first.len_utf8()
        };
        before = rest[..taken].chars().next_back().unwrap_or(' ');
        rest = &rest[taken..];
    }
    out.text.trim_end().to_owned()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of the quoted part that `rest` begins with. An apostrophe within a word (`don't`) quotes nothing.
fn quoted(rest: &str, before: char) -> Option<usize> {
    let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"' | '`'))?;
    if before.is_alphanumeric() {
        return None;
    }
    let end = rest[1..].find(quote)?;
    Some(end + 2)
}

#[derive(Default)]
struct Normal {
    text: String,
    length: usize,
}

impl Normal {
    fn push(&mut self, c: char) {
        if c == ' ' && (self.text.is_empty() || self.text.ends_with(' ')) {
            return;
        }
        if c == '#' {
            // `12.5`, `10.0.0.1:80` and `10:00:07` are each one number.
            let joined = ["#.", "#,", "#:"].iter().any(|tail| self.text.ends_with(tail));
            if joined {
                self.text.pop();
                self.length -= 1;
            }
            if self.text.ends_with('#') {
                return;
            }
        }
        self.text.push(c);
        self.length += 1;
    }

    /// A run of word characters and `-`.
    fn word(&mut self, word: &str) {
        if is_uuid(word) {
            return self.push('#');
        }
        for (index, part) in word.split(['-', '_']).enumerate() {
            if index > 0 {
                self.push('-');
            }
            if is_id(part) {
                self.push('#');
            } else {
                for c in part.chars() {
                    self.push(if c.is_ascii_digit() { '#' } else { c });
                }
            }
        }
    }
}

fn is_uuid(word: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    word.split('-').map(str::len).eq(lengths) && word.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

fn is_id(part: &str) -> bool {
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let digit_runs = part.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty()).count();
    digit_runs >= 2 || (part.len() >= 8 && hex(part)) || part.strip_prefix("0x").is_some_and(hex)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_differs_from_one_failure_to_the_next_is_dropped() {
        let cases = [
            ("report 17 is missing", "report # is missing"),
            ("no report \"r-9\" in 'eu'", "no report ? in ?"),
            ("can't read `a b`", "can't read ?"),
            ("row 0193b1a0-7d4c-7cc3-98c4-dc0c0c07398f locked", "row # locked"),
            ("commit 9fceb02d0ae598e9 and 0xFF", "commit # and #"),
            ("evt_01HXK3ZV7R2 failed", "evt-# failed"),
            ("10.0.0.17:5432 refused after 1.5s", "# refused after #s"),
            ("at 10:00:07,123:\n  timed out", "at #: timed out"),
            ("sha256 and md5 differ", "sha# and md# differ"),
            ("an 'open quote", "an 'open quote"),
        ];
        for (text, expected) in cases {
            assert_eq!(normalise(text), expected, "{text:?}");
        }
    }

    #[test]
    fn it_never_changes() {
        let queue = QueueName::new("invoice").expect("a queue");
        let job = JobName::new("invoice").expect("a job");
        let one = of(&queue, &job, Reason::Permanent, "io::Error", "no report 17");
        assert_eq!(one, of(&queue, &job, Reason::Permanent, "io::Error", "no report 18"));
        assert_ne!(one, of(&queue, &job, Reason::Exhausted, "io::Error", "no report 17"));
        // Golden: runbooks name fingerprints.
        assert_eq!(one, "68fc522700d637ea");
    }

    proptest! {
        #[test]
        fn numbers_do_not_matter(a in any::<u32>(), b in any::<u32>(), word in "[g-z]{1,12}") {
            prop_assert_eq!(normalise(&format!("{word} {a} failed")), normalise(&format!("{word} {b} failed")));
        }

        #[test]
        fn any_text_is_taken(text in ".{0,400}") {
            let normal = normalise(&text);
            prop_assert!(normal.chars().count() <= LONGEST + 400);
            prop_assert!(!normal.chars().any(|c| c.is_ascii_digit()));
        }
    }
}
