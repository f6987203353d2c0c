//! Messages that the client library cannot read. It takes headers apart before anybody sees them, and ends the
//! connection at a line that it does not understand (bytes that are not UTF-8, a space in a name, no colon), so that
//! one message of a careless producer would take every worker off its queue again and again.
//!
//! Where a connection ended they are looked for, by their place, which is answered in JSON: among what the server has
//! handed out since the last message that was read here, and, where connections end one soon after the other, among all
//! that is not settled. What is found becomes a dead letter with all that it holds; a header that NATS cannot carry for
//! us is kept in hexadecimal.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderName;
use bytes::Bytes;

use super::api::{Error, Raw};
use super::context::Context;
use super::topology::Subscription;
use super::wire;
use crate::broker::Lane;
use crate::message::headers::Builder;
use crate::message::{Binding, Headers, Message, Origin, Place};

/// So many places are looked at in one search.
const WINDOW: u64 = 20_000;
/// A header line that cannot be carried is kept under this name, in hexadecimal.
const KEPT: &str = "windlass-hex-header";

/// Where to look, by the sequences of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// What was handed out after this one, the last that was read.
    Behind(u64),
    /// All that is not settled, as far as it is no further back than a search may reach: what lies there was found
    /// when it was new, by whoever it came to then.
    All,
}

/// Looks for them in one consumer and moves each that is not among `known` to the dead letters; their sequences are
/// added there. A stream that keeps what is settled does not say of each message whether it is.
pub async fn bury(
    context: &Context,
    subscription: &Subscription,
    lane: Lane,
    range: Range,
    known: &mut BTreeSet<u64>,
) -> Result<(), Error> {
    let Subscription { stream, durable, .. } = subscription;
    let Some(info) = context.api.consumer(stream, durable).await? else { return Ok(()) };
    if info["num_ack_pending"].as_u64() == Some(0) {
        return Ok(());
    }
    let last = info["delivered"]["stream_seq"].as_u64().unwrap_or(0);
    let settled = info["ack_floor"]["stream_seq"].as_u64().unwrap_or(0);
    let (floor, last) = match range {
        Range::Behind(seq) => (settled.max(seq), last.min(settled.max(seq) + WINDOW)),
        Range::All => (settled.max(last.saturating_sub(WINDOW)), last),
    };
    let config = &info["config"];
    let several = config["filter_subjects"].as_array().into_iter().flatten();
    let mut filters: Vec<&str> = several.chain([&config["filter_subject"]]).filter_map(|f| f.as_str()).collect();
    filters.retain(|filter| !filter.is_empty());
    if filters.is_empty() {
        filters.push(">");
    }
    for filter in filters {
        let mut seq = floor + 1;
        while seq <= last
            && let Some(raw) = context.api.next_raw(stream, seq, filter).await?.filter(|raw| raw.seq <= last)
        {
            seq = raw.seq + 1;
            if let Err(line) = read(&raw.headers)
                && !known.contains(&raw.seq)
            {
                let found = raw.seq;
                bury_one(context, subscription, lane, raw, &line).await?;
                known.insert(found);
            }
        }
    }
    Ok(())
}

async fn bury_one(
    context: &Context,
    subscription: &Subscription,
    lane: Lane,
    raw: Raw,
    line: &str,
) -> Result<(), Error> {
    let Subscription { stream, durable, .. } = subscription;
    let place = Place {
        position: format!("nats:{stream}"),
        source: format!("nats://{stream}"),
        topic: (lane == Lane::Fresh).then(|| Arc::from(raw.subject.as_str())),
        binding: Binding::Dash,
    };
    let origin = Origin { place: &place, seq: raw.seq, at: raw.at() };
    let why = format!("a header cannot be read: {line:?}; a name is ASCII without spaces, a value is UTF-8");
    tracing::error!(queue = %context.queue.name, stream, seq = raw.seq, error = %why, "a message cannot be read");
    let original = Message { headers: carried(&raw.headers), body: Some(raw.payload), key: None };
    context.bury_unreadable(&origin, &original, why).await?;
    // Of a delivery that nobody has seen the server knows itself which it was: it goes by the stream's sequence.
    let reply = format!("$JS.ACK.{stream}.{durable}.1.{}.1.{}.0", raw.seq, raw.stored.as_nanosecond());
    context.link.request(reply, None, Bytes::from_static(b"+ACK"), Duration::from_secs(2)).await?;
    Ok(())
}

/// Whether the client library reads these headers, by its own rules; the first line that it does not, otherwise.
/// Source: `Connection::try_read_op` of async-nats 0.51.
fn read(headers: &[u8]) -> Result<(), String> {
    if headers.is_empty() {
        return Ok(());
    }
    for (index, line) in lines(headers).enumerate() {
        let text = std::str::from_utf8(line).map_err(|_| String::from_utf8_lossy(line).into_owned())?;
        let is_read = match text.split_once(':') {
            _ if index == 0 => text.starts_with("NATS/1.0"),
            // A value goes on in lines that begin with a space.
            _ if index > 1 && text.starts_with(char::is_whitespace) => !text.contains('\r'),
            Some((name, value)) => name.parse::<HeaderName>().is_ok() && !value.contains('\r'),
            None => text.is_empty(),
        };
        if !is_read {
            return Err(text.to_owned());
        }
    }
    Ok(())
}

fn lines(headers: &[u8]) -> impl Iterator<Item = &[u8]> {
    headers.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// What can be carried as it is, and the rest in hexadecimal.
fn carried(headers: &[u8]) -> Headers {
    let mut builder = Builder::default();
    for line in lines(headers).skip(1).filter(|line| !line.is_empty()) {
        let whole = [b"NATS/1.0\r\n", line].concat();
        let pair = std::str::from_utf8(line).ok().and_then(|text| text.split_once(':'));
        match pair.filter(|_| read(&whole).is_ok()) {
            Some((name, value)) => builder.push(name, value.trim().as_bytes()),
            None => builder.push(KEPT, wire::hexadecimal(line).as_bytes()),
        }
    }
    builder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_cannot_read_is_told() {
        for good in [&b""[..], b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\nA: b\r\n c\r\n\r\n", b"NATS/1.0 503\r\n\r\n"] {
            assert_eq!(read(good), Ok(()), "{good:?}");
        }
        for bad in [&b"X Y: a"[..], b"X: \xe9", b"no colon", b"X-\xd0\xaf: a", b"X: a\rb", b" X: a"] {
            let headers = [b"NATS/1.0\r\nA: b\r\n", bad, b"\r\n\r\n"].concat();
            let is_first_told = read(&headers).is_err() || bad.starts_with(b" ");
            assert!(is_first_told, "{bad:?}");
            let kept = carried(&headers);
            assert_eq!(kept.get("A"), Some(&b"b"[..]));
            assert_eq!(kept.get(KEPT).map(<[u8]>::to_vec), Some(wire::hexadecimal(bad).into_bytes()));
        }
        assert!(read(b"SPQR/1.0\r\n\r\n").is_err());
    }
}
