//! What a commit says beside the offset: the metadata that the next owner of a partition reads.
//!
//! `windlass1:` and base64 of: a checksum, the offset that it belongs to, flags, runs of what is finished above that
//! offset, the retries that wait in place, and the starts that were stored; then `;` and who wrote it. At most 4,096
//! characters, which is what a broker takes by default (`offset.metadata.max.bytes`). Metadata of others is ignored; of
//! ours, what is torn or belongs to another offset is not believed: the records then run again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;

use super::span::Spans;
use crate::message::Attempt;
use crate::time::Timestamp;

const MARK: &str = "windlass1:";

/// The longest metadata that a broker takes unless it is told otherwise.
pub const LIMIT: usize = 4_096;
/// Percent of the metadata's limit at which a partition takes nothing new.
pub const NARROW: usize = 75;

/// A retry that waits with its offset held open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its record.
    pub offset: i64,
    /// The attempt that runs then.
    pub attempt: Attempt,
    /// Not before this.
    pub due: Timestamp,
    /// When its first failure was; `None`: it has not failed (a snooze).
    pub first_failed: Option<Timestamp>,
}

/// A start that was stored because an owner before died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its record.
    pub offset: i64,
    /// The short names of the owners that died under it, as far as is known.
    pub died: Vec<u16>,
    /// It is about to run or runs.
    pub running: bool,
}

/// What an owner is called in its client id and among the dead. Where two have one name, a crash may go uncounted.
pub fn short_name(owner: u32) -> u16 {
    owner as u16
}

/// What the next owner must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memo {
    /// Who wrote it: a member of the group that gets its own back has not died in between. 0: nobody knows.
    pub owner: u32,
    /// The owner left in good order: nothing was running.
    pub clean: bool,
    /// Starts below this offset are stored before they begin; 0: none.
    pub guarded_to: i64,
    /// Finished above the offset.
    pub finished: Spans,
    /// Retries that wait in place, ascending.
    pub waiting: Vec<Waiting>,
    /// Stored starts, ascending.
    pub started: Vec<Started>,
}

/// Metadata, and what of the memo it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The text.
    pub text: String,
    /// Everything finished below this is in it.
    pub covers: i64,
    /// How much of the limit it takes, in percent.
    pub used: usize,
}

impl Memo {
    /// Writes it for a commit of `offset` in at most `limit` characters. Retries and starts come first: they are few
    /// and bounded by their owner; of what is finished, as much as fits from below. A limit of 0 writes nothing.
    pub fn write(&self, offset: i64, limit: usize) -> Written {
        let owner = format!(";{}", self.owner);
        let room = limit.min(LIMIT).saturating_sub(MARK.len() + owner.len()) / 4 * 3;
        let mut head = Vec::with_capacity(64);
        put(&mut head, offset as u64);
        head.push(u8::from(self.clean));
        put(&mut head, (self.guarded_to - offset).max(0) as u64);
        put(&mut head, self.waiting.len() as u64);
        let mut last = offset;
        for waiting in &self.waiting {
            put(&mut head, (waiting.offset - last).max(0) as u64);
            put(&mut head, u64::from(waiting.attempt.get()));
            put(&mut head, waiting.due.as_millis().max(0) as u64);
            // 0 is none; else one more than how long before the due time.
            let since = waiting.first_failed.map_or(0, |first| first.until(waiting.due).as_millis() as u64 + 1);
            put(&mut head, since);
            last = waiting.offset;
        }
        put(&mut head, self.started.len() as u64);
        let mut last = offset;
        for started in &self.started {
            put(&mut head, (started.offset - last).max(0) as u64);
            put(&mut head, (started.died.len() as u64) << 1 | u64::from(started.running));
            head.extend(started.died.iter().flat_map(|name| name.to_le_bytes()));
            last = started.offset;
        }
        const FRAME: usize = 4 + 1;
        if room < head.len() + FRAME {
            let text = String::new();
            return Written { text, covers: offset, used: 100 };
        }
        let (form, body, covers) = write_spans(&self.finished, offset, room - head.len() - FRAME);
        let mut bytes = vec![0; 4];
        bytes.append(&mut head);
        bytes.push(form);
        bytes.extend(body);
        let sum = checksum(&bytes[4..]) ^ scattered(self.owner);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        let used = bytes.len() * 100 / room.max(1);
        let text = format!("{MARK}{}{owner}", BASE64.encode(bytes));
        Written { text, covers, used }
    }

    /// Reads what was committed with `offset`. `None`: nobody's, foreign, torn, or of another offset.
    pub fn read(text: &str, offset: i64) -> Option<Self> {
        let text = text.strip_prefix(MARK)?;
        let (text, owner) = text.split_once(';').unwrap_or((text, "0"));
        let bytes = BASE64.decode(text).ok()?;
        let owner = owner.parse().ok()?;
        let (sum, rest) = bytes.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*sum) != checksum(rest) ^ scattered(owner) {
            return None;
        }
        let mut rest = rest;
        if get(&mut rest)? != offset as u64 {
            return None;
        }
        let (flags, mut rest) = rest.split_first()?;
        let mut memo = Self { owner, clean: flags & 1 == 1, ..Self::default() };
        let guarded = get(&mut rest)? as i64;
        memo.guarded_to = if guarded > 0 { offset.checked_add(guarded)? } else { 0 };
        let mut last = offset;
        for _ in 0..get(&mut rest)? {
            last = last.checked_add(i64::try_from(get(&mut rest)?).ok()?)?;
            let attempt = Attempt::new(u32::try_from(get(&mut rest)?).ok()?)?;
            let due = i64::try_from(get(&mut rest)?).ok()?;
            let since = i64::try_from(get(&mut rest)?).ok()?;
            let first_failed = (since > 0).then(|| Timestamp::from_millis(due - (since - 1)));
            memo.waiting.push(Waiting { offset: last, attempt, due: Timestamp::from_millis(due), first_failed });
        }
        let mut last = offset;
        for _ in 0..get(&mut rest)? {
            last = last.checked_add(i64::try_from(get(&mut rest)?).ok()?)?;
            let word = get(&mut rest)?;
            let died;
            (died, rest) = rest.split_at_checked(usize::try_from(word >> 1).ok()?.checked_mul(2)?)?;
            let died = died.as_chunks().0.iter().map(|name| u16::from_le_bytes(*name)).collect();
            memo.started.push(Started { offset: last, died, running: word & 1 == 1 });
        }
        let (form, rest) = rest.split_first()?;
        memo.finished = read_spans(*form, rest, offset)?;
        Some(memo)
    }
}

/// What an owner adds to the checksum: of each another, and of nobody nothing, as before owners were written.
fn scattered(owner: u32) -> u32 {
    owner.wrapping_mul(0x9e37_79b1)
}

const NONE: u8 = 0;
const RUNS: u8 = 1;
const BITS: u8 = 2;

/// The shorter of two forms: lengths of alternating runs, or a bit an offset; cut where `room` ends.
fn write_spans(spans: &Spans, offset: i64, room: usize) -> (u8, Vec<u8>, i64) {
    let Some((_, end)) = spans.iter().last() else { return (NONE, Vec::new(), i64::MAX) };
    let mut runs = Vec::new();
    let mut runs_cover = i64::MAX;
    let mut last = offset;
    for (from, to) in spans.iter() {
        let whole = runs.len();
        put(&mut runs, (from - last).max(0) as u64);
        put(&mut runs, (to - from) as u64);
        if runs.len() > room {
            runs.truncate(whole);
            runs_cover = from;
            break;
        }
        last = to;
    }
    if runs_cover == i64::MAX && runs.len() as i64 <= (end - offset).div_euclid(8) + 1 {
        return (RUNS, runs, i64::MAX);
    }
    let bytes = (((end - offset) as u64).div_ceil(8) as usize).min(room);
    let bits_end = offset + bytes as i64 * 8;
    let bits_cover = if bits_end >= end { i64::MAX } else { bits_end };
    if bits_cover < runs_cover || bits_cover == runs_cover && bytes >= runs.len() {
        return (RUNS, runs, runs_cover);
    }
    let mut bits = vec![0u8; bytes];
    for (from, to) in spans.iter() {
        for at in from.max(offset)..to.min(bits_end) {
            let at = (at - offset) as usize;
            bits[at / 8] |= 1 << (at % 8);
        }
    }
    (BITS, bits, bits_cover)
}

fn read_spans(form: u8, mut rest: &[u8], offset: i64) -> Option<Spans> {
    let mut spans = Spans::default();
    match form {
        NONE => {}
        RUNS => {
            let mut last = offset;
            while !rest.is_empty() {
                let from = last.checked_add(i64::try_from(get(&mut rest)?).ok()?)?;
                last = from.checked_add(i64::try_from(get(&mut rest)?).ok()?)?;
                spans.push(from, last);
            }
        }
        BITS => {
            for (at, byte) in rest.iter().enumerate() {
                for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                    let from = offset + at as i64 * 8 + bit;
                    spans.push(from, from + 1);
                }
            }
        }
        _ => return None,
    }
    Some(spans)
}

/// LEB128.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn get(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// FNV-1a, 32 bits: enough to know a torn text.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Metadata whose checksum vouches for `bytes`, as a commit of `offset`: for fuzzing what lies behind the checksum.
#[cfg(any(test, feature = "fuzz"))]
pub fn sealed(bytes: &[u8], offset: i64) -> String {
    let mut rest = Vec::new();
    put(&mut rest, offset as u64);
    rest.extend_from_slice(bytes);
    let mut whole = checksum(&rest).to_le_bytes().to_vec();
    whole.append(&mut rest);
    format!("{MARK}{}", BASE64.encode(whole))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn memo(offset: i64) -> impl Strategy<Value = Memo> {
        let runs = proptest::collection::vec((1i64..200, 1i64..200), 0..60);
        let waiting = proptest::collection::vec((0i64..300, 1u32..50, 0i64..1 << 42, any::<bool>()), 0..30);
        let died = proptest::collection::vec(any::<u16>(), 0..5);
        let started = proptest::collection::vec((0i64..300, died, any::<bool>()), 0..30);
        (any::<bool>(), 0i64..1_000, runs, waiting, started).prop_map(
            move |(clean, guarded, runs, waiting, started)| {
                let mut at = offset;
                let finished = runs
                    .into_iter()
                    .map(|(gap, length)| {
                        let from = at + gap;
                        at = from + length;
                        (from, at)
                    })
                    .collect();
                let mut at = offset;
                let waiting = waiting
                    .into_iter()
                    .map(|(gap, attempt, due, failed)| {
                        at += gap;
                        let attempt = Attempt::new(attempt).expect("not 0");
                        let first_failed = failed.then_some(Timestamp::from_millis(due - 7));
                        Waiting { offset: at, attempt, due: Timestamp::from_millis(due), first_failed }
                    })
                    .collect();
                let mut at = offset;
                let started = started
                    .into_iter()
                    .map(|(gap, died, running)| {
                        at += gap;
                        Started { offset: at, died, running }
                    })
                    .collect();
                let guarded_to = if guarded == 0 { 0 } else { offset + guarded };
                Memo { owner: guarded_to as u32, clean, guarded_to, finished, waiting, started }
            },
        )
    }

    proptest! {
        #[test]
        fn comes_back_as_it_was(offset in 0i64..1 << 40, memo in (0i64..1 << 40).prop_flat_map(memo)) {
            let _ = offset;
            let offset = memo.finished.iter().next().map_or(0, |(from, _)| from - 1)
                .min(memo.waiting.first().map_or(i64::MAX, |w| w.offset))
                .min(memo.started.first().map_or(i64::MAX, |s| s.offset))
                .max(0);
            let memo = Memo { guarded_to: 0, ..memo };
            let written = memo.write(offset, LIMIT);
            prop_assert!(written.text.len() <= LIMIT);
            prop_assert_eq!(written.covers, i64::MAX);
            prop_assert_eq!(Memo::read(&written.text, offset), Some(memo.clone()));
            prop_assert_eq!(Memo::read(&written.text, offset + 1), None, "it belongs to one offset");
        }

        #[test]
        fn mode_21_never_longer_than_the_limit_and_says_what_it_covers(
            memo in memo(1_000),
            limit in 0usize..400,
        ) {
            let written = memo.write(1_000, limit);
            prop_assert!(written.text.len() <= limit);
            if written.text.is_empty() {
                prop_assert_eq!(written.covers, 1_000);
            } else {
                let read = Memo::read(&written.text, 1_000).expect("ours");
                prop_assert_eq!(&read.waiting, &memo.waiting);
                prop_assert_eq!(&read.started, &memo.started);
                let set = |spans: &Spans| spans.iter().flat_map(|(from, to)| from..to).collect::<std::collections::BTreeSet<_>>();
                let (read, all) = (set(&read.finished), set(&memo.finished));
                prop_assert!(read.is_subset(&all));
                prop_assert!(all.iter().filter(|offset| **offset < written.covers).all(|offset| read.contains(offset)));
            }
        }

        #[test]
        fn torn_text_is_not_believed(memo in memo(7), cut in any::<usize>(), flip in any::<usize>()) {
            let text = memo.write(7, LIMIT).text;
            let cut = 1 + cut % (text.len() - 1);
            prop_assert_eq!(Memo::read(&text[..cut], 7), None);
            let mut flipped = text.clone().into_bytes();
            let at = flip % flipped.len();
            flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
            let flipped = String::from_utf8(flipped).expect("ASCII");
            prop_assert_ne!(Memo::read(&flipped, 7), Some(memo));
        }

        #[test]
        fn foreign_text_never_panics(text in ".{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(Memo::read(&text, 0), None);
            let mut framed = checksum(&bytes).to_le_bytes().to_vec();
            framed.extend(bytes);
            let _ = Memo::read(&format!("{MARK}{}", BASE64.encode(framed)), 0);
        }
    }

    #[test]
    fn ten_thousand_finished_behind_a_slow_one_fit_with_room_to_spare() {
        // Every twentieth is still running.
        let finished: Spans = (0..500).map(|i| (i * 20 + 1, i * 20 + 20)).collect();
        let written = Memo { finished, ..Memo::default() }.write(0, LIMIT);
        assert_eq!(written.covers, i64::MAX);
        assert!(written.used < 50, "{}", written.used);
    }
}
