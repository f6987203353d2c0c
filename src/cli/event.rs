//! What `publish` and `enqueue` have in common: flags, bodies, headers, and sending one event or a line an event.

use std::io::BufRead;
use std::sync::Arc;

use clap::Args;

use super::fault::{Fault, USAGE};
use super::input::{self, Input};
use super::output::{self, Output};
use super::when::{When, whole};
use crate::broker::{self, Publication, Published, Publisher};
use crate::client::{Address, Draft};
use crate::message::is_json;
use crate::time::Clock;

/// Flags of both verbs.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Ordering key: events of one key run in order where the queue asks for it
    #[arg(short_alias = 'k', long, value_name = "KEY")]
    pub key: Option<String>,
    /// The event's id; else a new UUID (version 7)
    #[arg(long, value_name = "ID", conflicts_with = "lines")]
    pub id: Option<String>,
    /// A header, K=V or 'K: V'; may be repeated
    #[arg(short = 'H', long = "header", value_name = "K=V", value_parser = parse_header)]
    pub headers: Vec<(String, String)>,
    /// Media type of the body; else application/json where it is JSON, text/plain where it is text
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,
    /// Do not start it after this: a duration from now, or RFC 3339
    #[arg(long, value_name = "1h|TIME")]
    pub expires: Option<When>,
    /// One event a line of the data; blank lines are left out; stops at the first failure
    #[arg(long, conflicts_with = "empty")]
    pub lines: bool,
    /// Leave out the first N lines: go on after a failure
    #[arg(long, value_name = "N", default_value_t = 0, requires = "lines", value_parser = whole::<u64>)]
    pub skip: u64,
    /// An empty body
    #[arg(long, conflicts_with = "data")]
    pub empty: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let colon = text.find(':');
    let equals = text.find('=');
    let (at, value) = match (colon, equals) {
        (Some(colon), equals) if equals.is_none_or(|equals| colon < equals) => (colon, text[colon + 1..].trim()),
        (_, Some(equals)) => (equals, &text[equals + 1..]),
        _ => return Err(format!("expected K=V or \"K: V\", found {text:?}")),
    };
    let name = text[..at].trim();
    let is_name = |b: u8| b.is_ascii_graphic() && !matches!(b, b':' | b'=' | b'"' | b'(' | b')' | b',' | b';');
    if name.is_empty() || !name.bytes().all(is_name) {
        return Err(format!("expected a header's name of visible ASCII characters, found {name:?}"));
    }
    if value.contains(['\r', '\n', '\0']) {
        return Err(format!("the value of header {name} has a line end in it"));
    }
    if name.eq_ignore_ascii_case("content-type") {
        return Err("the media type is --content-type".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// The flag that says what this header would: an attribute that an event of ours has anyway.
fn flag(header: &str) -> Option<&'static str> {
    let name = header.to_ascii_lowercase();
    match name.strip_prefix("ce-").or_else(|| name.strip_prefix("ce_"))? {
        "id" => Some("--id"),
        "type" => Some("--type"),
        "source" => Some("--source"),
        "partitionkey" => Some("--key"),
        "expirytime" => Some("--expires"),
        _ => None,
    }
}

impl Flags {
    /// Refuses headers that would be sent beside what an event has anyway; a bare one has nothing.
    pub fn check(&self, bare: bool) -> Result<(), Fault> {
        match self.headers.iter().find_map(|(name, _)| Some((name, flag(name)?))) {
            Some((name, flag)) if !bare => Err(Fault::usage(format!(
                "{name} is an attribute that every event may have: publish {flag} sets it; --bare sends headers as they are"
            ))),
            _ => Ok(()),
        }
    }

    /// A draft with what the flags say.
    pub fn apply<'c, To: Address>(&self, mut draft: Draft<'c, To>) -> Draft<'c, To> {
        if let Some(id) = &self.id {
            draft = draft.id(id);
        }
        if let Some(key) = &self.key {
            draft = draft.key(key);
        }
        if let Some(content_type) = &self.content_type {
            draft = draft.content_type(content_type);
        }
        if let Some(expires) = self.expires {
            draft = draft.expires(expires.after(Clock::System.now()));
        }
        for (name, value) in &self.headers {
            draft = draft.header(name, value);
        }
        draft
    }
}

/// Where events go.
pub struct Sender<'a> {
    /// For the broker.
    pub publisher: Arc<dyn Publisher>,
    /// The event of one body.
    pub compose: &'a dyn Fn(Vec<u8>) -> Result<Publication, broker::Error>,
}

/// The bodies that the flags ask for, read before anything is sent; or lines, read while they are sent.
pub enum Bodies {
    /// One event.
    One(Vec<u8>),
    /// An event a line.
    Lines(Box<dyn BufRead + Send>),
}

/// Reads the data that the arguments name.
pub fn bodies(data: Option<&str>, flags: &Flags) -> Result<Bodies, Fault> {
    if flags.empty {
        return Ok(Bodies::One(Vec::new()));
    }
    let input = Input::of(data)?;
    if flags.lines {
        return Ok(Bodies::Lines(input.open()?));
    }
    let body = input.read()?;
    if body.is_empty() {
        return Err(Fault::new(USAGE, "the data is empty; say --empty if an event without a body is meant"));
    }
    Ok(Bodies::One(body))
}

/// A word on a body that a typed job would refuse.
pub fn doubt(body: &[u8], flags: &Flags, bare: bool) -> Option<&'static str> {
    let looks_like_json = body.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| matches!(b, b'{' | b'['));
    let parses = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
    if bare && flags.content_type.is_none() && std::str::from_utf8(body).is_err() {
        Some("warning: the body is not UTF-8; without a --content-type a worker calls it malformed")
    } else if flags.content_type.as_deref().is_some_and(is_json) && !parses {
        Some("warning: the body is not JSON, which its --content-type says; a worker makes it a dead letter")
    } else if looks_like_json && !parses {
        Some("warning: the body looks like JSON and is not; it is sent as text")
    } else {
        None
    }
}

/// How many lines are given to the broker at once.
const BATCH: usize = 64;

/// Sends, and calls `written` for each event that the broker has confirmed, in order.
pub async fn send(
    sender: &Sender<'_>,
    bodies: Bodies,
    skip: u64,
    out: &mut Output,
    quiet: bool,
    mut written: impl FnMut(&mut Output, &Publication, Published) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let reader = match bodies {
        Bodies::One(body) => {
            let publication = (sender.compose)(body)?;
            let published = one(&*sender.publisher, publication.clone()).await?;
            written(out, &publication, published)?;
            return out.flush();
        }
        Bodies::Lines(reader) => reader,
    };
    let bar = output::counter("events", quiet);
    let mut lines = follow(reader, skip);
    let mut sent = 0_u64;
    let mut last = skip;
    let mut listened_to = true;
    loop {
        let Batch { lines, broken } = lines.next().await;
        if lines.is_empty() && broken.is_none() {
            bar.finish_and_clear();
            return Ok(());
        }
        let mut numbers = Vec::with_capacity(lines.len());
        let mut publications = Vec::with_capacity(lines.len());
        for (number, body) in lines {
            numbers.push(number);
            publications.push((sender.compose)(body)?);
        }
        last = numbers.last().copied().unwrap_or(last);
        let results = sender.publisher.publish(publications.clone()).await;
        let mut failed: Vec<(u64, broker::Error)> = Vec::new();
        let mut stored = Vec::new();
        for ((number, publication), result) in numbers.iter().zip(&publications).zip(results) {
            match result {
                Ok(published) => {
                    stored.push(*number);
                    bar.inc(1);
                    if listened_to {
                        listened_to = still_open(written(out, publication, published))?;
                    }
                }
                Err(error) => failed.push((*number, error)),
            }
        }
        sent += stored.len() as u64;
        if listened_to {
            listened_to = still_open(out.flush())?;
        }
        if let Some(stopped) = stopped(&failed, &stored, sent) {
            bar.abandon();
            return Err(Fault::failed(stopped));
        }
        if let Some(error) = broken {
            bar.abandon();
            let plain = super::fault::plain(&error);
            return Err(Fault::failed(format!(
                "reading what is behind line {last}: {plain}; stored: {sent}; go on with --skip {last}"
            )));
        }
    }
}

/// `false` where nobody reads stdout any more: no reason to leave out what is still to be sent.
fn still_open(result: Result<(), Fault>) -> Result<bool, Fault> {
    match result {
        Ok(()) => Ok(true),
        Err(Fault::Closed) => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// What is said when a line was not stored: which, why, and how to go on so that none is left out and none sent twice.
/// Those of one batch are on their way together: what lies behind the first failure may be stored.
fn stopped(failed: &[(u64, broker::Error)], stored: &[u64], sent: u64) -> Option<String> {
    let (first, error) = failed.first()?;
    let mut said = format!("line {first}: {error}; stored: {sent}");
    let behind: Vec<u64> = stored.iter().copied().filter(|number| number > first).collect();
    let skip = behind.last().copied().unwrap_or(first - 1);
    let left_out: Vec<u64> = failed.iter().map(|(number, _)| *number).filter(|number| *number < skip).collect();
    if !behind.is_empty() {
        said += &format!(", of which behind it {}", listed(&behind));
    }
    said += &format!("; go on with --skip {skip}");
    if !left_out.is_empty() {
        let script: Vec<String> = left_out.iter().map(|number| format!("{number}p")).collect();
        said += &format!(
            ", which leaves out {}: `sed -n '{}'` gives what is to be mended and sent by itself",
            listed(&left_out),
            script.join(";")
        );
    }
    let doubtful = failed.iter().filter(|(_, error)| error.is_transient()).count();
    if doubtful > 0 {
        said += "; what the broker has not confirmed may be stored all the same, and is then sent twice";
    }
    Some(said)
}

/// `line 7`, or `lines 7, 9 and 11-64`.
fn listed(numbers: &[u64]) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == *number => *end = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let shown = |(from, to): &(u64, u64)| if from == to { from.to_string() } else { format!("{from}-{to}") };
    let texts: Vec<String> = ranges.iter().map(shown).collect();
    match texts.as_slice() {
        [] => "none".to_owned(),
        [one] if numbers.len() == 1 => format!("line {one}"),
        [one] => format!("lines {one}"),
        [head @ .., last] => format!("lines {} and {last}", head.join(", ")),
    }
}

async fn one(publisher: &dyn Publisher, publication: Publication) -> Result<Published, Fault> {
    match publisher.publish(vec![publication]).await.pop() {
        Some(result) => Ok(result?),
        None => Err(Fault::failed("the broker did not answer for the event")),
    }
}

/// Lines as they come, up to [`BATCH`] at once: `tail -f | windlass publish` sends each at once, a file in batches.
struct Follow {
    lines: tokio::sync::mpsc::Receiver<std::io::Result<(u64, Vec<u8>)>>,
}

fn follow(reader: Box<dyn BufRead + Send>, skip: u64) -> Follow {
    let (sender, lines) = tokio::sync::mpsc::channel(BATCH);
    // Ends with the input, or once nobody receives; a thread that waits for stdin is left to the process's end.
    std::thread::spawn(move || {
        for line in input::lines(reader) {
            let wanted = line.as_ref().map_or(true, |(number, _)| *number > skip);
            if wanted && sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    Follow { lines }
}

/// Lines that were there, with their numbers; none and nothing broken: that was all.
struct Batch {
    lines: Vec<(u64, Vec<u8>)>,
    /// Why what is behind them cannot be read.
    broken: Option<std::io::Error>,
}

impl Follow {
    async fn next(&mut self) -> Batch {
        let mut read = Vec::with_capacity(BATCH);
        self.lines.recv_many(&mut read, BATCH).await;
        let mut batch = Batch { lines: Vec::with_capacity(read.len()), broken: None };
        for line in read {
            match line {
                Ok(line) => batch.lines.push(line),
                Err(error) => {
                    batch.broken = Some(error);
                    break;
                }
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_in_both_forms() {
        let header = |text| parse_header(text).map(|(name, value)| format!("{name}|{value}"));
        assert_eq!(header("x-a=1").as_deref(), Ok("x-a|1"));
        assert_eq!(header("x-a: 1=2").as_deref(), Ok("x-a|1=2"));
        assert_eq!(header("x-a=http://h: 1").as_deref(), Ok("x-a|http://h: 1"));
        assert_eq!(header("x-a=").as_deref(), Ok("x-a|"));
        for bad in ["x", "=1", ": 1", "a b=1", "a=1\r\nb: 2"] {
            assert!(header(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_stop_says_how_to_go_on() {
        let failed = |numbers: &[u64]| -> Vec<(u64, broker::Error)> {
            numbers.iter().map(|n| (*n, broker::Error::Rejected("too large".to_owned()))).collect()
        };
        assert_eq!(stopped(&failed(&[]), &[9], 9), None);
        assert_eq!(
            stopped(&failed(&[7]), &[5, 6], 6).as_deref(),
            Some("line 7: too large; stored: 6; go on with --skip 6")
        );
        assert_eq!(
            stopped(&failed(&[7, 9, 12]), &[6, 8, 10], 8).as_deref(),
            Some(
                "line 7: too large; stored: 8, of which behind it lines 8 and 10; go on with --skip 10, which leaves \
                 out lines 7 and 9: `sed -n '7p;9p'` gives what is to be mended and sent by itself"
            )
        );
        assert_eq!(
            stopped(&failed(&[1]), &[], 0).as_deref(),
            Some("line 1: too large; stored: 0; go on with --skip 0")
        );
        let unconfirmed = [(3, broker::Error::Unavailable("no answer".to_owned()))];
        assert!(stopped(&unconfirmed, &[], 2).is_some_and(|said| said.contains("may be stored all the same")));
    }

    #[test]
    fn numbers_are_listed_in_ranges() {
        for (numbers, said) in [(&[7][..], "line 7"), (&[7, 8, 9], "lines 7-9"), (&[1, 3, 4, 9], "lines 1, 3-4 and 9")]
        {
            assert_eq!(listed(numbers), said);
        }
    }
}
