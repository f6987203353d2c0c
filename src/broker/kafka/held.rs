//! What holds up a partition, as the broker alone knows it: the lowest record that has not ended, and how much behind
//! it has.

use std::time::Duration;

use super::super::{Finding, Severity};
use super::memo;
use crate::time::{Timestamp, format_duration};

/// So many that have ended behind one that has not are worth a word.
const MANY: i64 = 10_000;

/// One record, and what has ended behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub number: i32,
    /// Its offset.
    pub offset: i64,
    /// For how long it has been in its topic.
    pub age: Duration,
    /// When it is tried again, where it waits for that.
    pub due: Option<Timestamp>,
    /// Offsets behind it that have ended.
    pub behind: i64,
}

/// Whether a partition is held up, of which so many have ended beyond the committed offset, and whose commit says so in
/// so many characters.
pub fn is_held_up(behind: i64, metadata: usize) -> bool {
    behind > MANY || behind > 0 && metadata * 100 >= memo::LIMIT * memo::NARROW
}

impl Held {
    /// For `status`.
    pub fn note(&self) -> String {
        let again = if self.due.is_some() { ", which waits for its next attempt" } else { "" };
        format!(
            "{}:{} is held up by offset {}, {} old{again}: {} behind it have ended",
            self.topic,
            self.number,
            self.offset,
            format_duration(Duration::from_secs(self.age.as_secs())),
            self.behind
        )
    }

    /// For `doctor`.
    pub fn finding(&self, queue: &str) -> Finding {
        Finding {
            severity: Severity::Warn,
            subject: format!("queue {queue}"),
            finding: self.note(),
            fix:
                "see what runs for so long (/api/v1/running of the workers) and give its job a timeout: when what was \
                  read ahead is full, its partition stands still until it ends"
                    .to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_behind_one_or_metadata_nearly_full_is_held_up() {
        assert!(!is_held_up(0, memo::LIMIT) && !is_held_up(MANY, 100));
        assert!(is_held_up(MANY + 1, 100) && is_held_up(1, memo::LIMIT * 3 / 4));
    }
}
