//! Bodies at the server's limit: our own headers push such a message over it, so the end of the body goes before it,
//! in a message of its own.
//!
//! What was taken by the server once is at most its limit long, and our headers are small beside it: two messages
//! hold it. The first says by a header that a part belongs to it; it is stored last, so that whoever reads it finds
//! the part.

use async_nats::HeaderMap;
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::api::{Api, Error, PubAck};
use super::wire::{self, header};

/// What the server adds to a message of a schedule, and room for what it may add later.
const ROOM: usize = 1_024;

/// Stores a message, its body's end in a part where the whole is too large.
pub async fn store(
    api: &Api,
    subject: &str,
    part: &str,
    mut headers: HeaderMap,
    mut body: Bytes,
    deadline: Instant,
) -> Result<PubAck, Error> {
    let limit = api.link.client().max_payload().saturating_sub(ROOM);
    let size: usize = headers
        .iter()
        .flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(move |value| name.len() + value.as_str().len() + 4)
        })
        .sum();
    if body.len() + size > limit && size < limit {
        let tail = body.split_off(limit - size);
        let mut about = HeaderMap::new();
        let id = headers.get(header::MESSAGE_ID).map(|id| id.as_str().to_owned()).unwrap_or_default();
        about.insert(header::MESSAGE_ID, format!("{id}:part").as_str());
        headers.insert(header::PART, part);
        api.store(part, about, tail, deadline).await?;
    }
    api.store(subject, headers, body, deadline).await
}

/// The body as it was; `None` where its part is gone.
pub async fn whole(api: &Api, stream: &str, headers: Option<&HeaderMap>, body: Bytes) -> Result<Option<Bytes>, Error> {
    let Some(part) = wire::text(headers, header::PART) else { return Ok(Some(body)) };
    let Some(tail) = api.last(stream, part).await? else { return Ok(None) };
    let mut whole = BytesMut::with_capacity(body.len() + tail.payload.len());
    whole.extend_from_slice(&body);
    whole.extend_from_slice(&tail.payload);
    Ok(Some(whole.freeze()))
}
