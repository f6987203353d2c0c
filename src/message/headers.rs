//! Headers as they were on the wire: an ordered list of names and bytes, kept in one buffer.
//!
//! The buffer is a sequence of `name length: u16 LE, value length: u32 LE, name, value`. It is what an
//! adapter fills from the broker's own form, what SQLite stores, and what decode reads, without an
//! allocation a header.

use bytes::{BufMut, Bytes, BytesMut};

/// An ordered multimap of header names (UTF-8, case kept) to bytes; cheap to clone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Bytes);

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self(Bytes::new())
    }

    /// Takes a buffer in the form described in the module's documentation, or says that it is torn.
    pub fn from_buffer(buffer: Bytes) -> Option<Self> {
        let mut rest = &buffer[..];
        while !rest.is_empty() {
            let (name, _, tail) = split_first(rest)?;
            std::str::from_utf8(name).ok()?;
            rest = tail;
        }
        Some(Self(buffer))
    }

    /// The buffer, to be stored and given to [`Headers::from_buffer`] again.
    pub fn as_buffer(&self) -> &Bytes {
        &self.0
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values in the order they were written.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (name, value, tail) = split_first(rest)?;
            rest = tail;
            // Both constructors admit only UTF-8 names, so the default is never taken.
            Some((std::str::from_utf8(name).unwrap_or_default(), value))
        })
    }

    /// Names and where their values stand in the buffer; for decode, which shares some of them.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (&[u8], Span)> {
        let mut rest = &self.0[..];
        let mut offset = 0;
        std::iter::from_fn(move || {
            let (name, value, tail) = split_first(rest)?;
            let start = offset + PREFIX + name.len();
            offset = start + value.len();
            rest = tail;
            // Buffers of 4 GiB and more do not come from a broker; what lies behind is not seen.
            Some((name, Span { start: u32::try_from(start).ok()?, end: u32::try_from(offset).ok()? }))
        })
    }

    /// The bytes of a value.
    pub(crate) fn value(&self, span: Span) -> &[u8] {
        &self.0[span.start as usize..span.end as usize]
    }

    /// The same, sharing the buffer.
    pub(crate) fn share(&self, span: Span) -> Bytes {
        self.0.slice(span.start as usize..span.end as usize)
    }

    /// The first value under `name`, which is compared exactly.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// The first value under `name` whatever its case, where it is UTF-8.
    pub fn get_str_ignore_case(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).and_then(|(_, v)| std::str::from_utf8(v).ok())
    }

    /// Bytes used.
    pub fn size(&self) -> usize {
        self.0.len()
    }
}

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter().map(|(n, v)| (n, String::from_utf8_lossy(v).into_owned()))).finish()
    }
}

impl<N: AsRef<str>, V: AsRef<[u8]>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut builder = Builder::default();
        for (name, value) in pairs {
            builder.push(name.as_ref(), value.as_ref());
        }
        builder.finish()
    }
}

/// Where a value stands in the buffer of [`Headers`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// No value stands at the buffer's beginning: there is a prefix before each. So the default means none.
    pub(crate) fn is_none(self) -> bool {
        self.start == 0
    }

    /// This one, or `other` where it is none.
    pub(crate) fn or(self, other: Self) -> Self {
        if self.is_none() { other } else { self }
    }

    /// The span where there is one.
    pub(crate) fn found(self) -> Option<Self> {
        (!self.is_none()).then_some(self)
    }
}

/// Fills [`Headers`]. An adapter may fill many from one buffer: [`Builder::finish`] splits off what was
/// pushed since the last call, so that a whole batch shares one allocation, if it has room.
#[derive(Default)]
pub struct Builder(BytesMut);

impl Builder {
    /// A builder with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(BytesMut::with_capacity(bytes))
    }

    /// Bytes that it still has room for. What outgrows it is moved to a larger buffer.
    pub fn room(&self) -> usize {
        self.0.capacity() - self.0.len()
    }

    /// Makes room for so many bytes; where there is none, in one allocation with some of what is filled next.
    pub fn reserve(&mut self, bytes: usize) {
        if self.room() < bytes {
            self.0.reserve(bytes.max(SHARED));
        }
    }

    /// Bytes that a header takes.
    pub fn size_of(name: &str, value: &[u8]) -> usize {
        PREFIX + name.len() + value.len()
    }

    /// Begins its buffer anew where nobody refers to what was filled of it, and it has room for so many bytes.
    pub fn reclaim(&mut self, bytes: usize) -> bool {
        self.0.try_reclaim(bytes)
    }

    /// Keeps other bytes beside the headers, in the same buffer where it has room. Not before [`Builder::finish`] has
    /// taken what was pushed.
    pub fn keep(&mut self, bytes: &[u8]) -> Bytes {
        debug_assert!(self.0.is_empty(), "headers that nobody took");
        if bytes.len() > self.room() {
            return Bytes::copy_from_slice(bytes);
        }
        if bytes.is_empty() {
            return Bytes::new();
        }
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }

    /// Adds a header. A name longer than 65,535 bytes is cut at a character; nobody writes such.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        let mut end = name.len().min(usize::from(u16::MAX));
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let value = &value[..value.len().min(u32::MAX as usize)];
        self.0.put_u16_le(end as u16);
        self.0.put_u32_le(value.len() as u32);
        self.0.put_slice(&name.as_bytes()[..end]);
        self.0.put_slice(value);
    }

    /// What was pushed since the last call.
    pub fn finish(&mut self) -> Headers {
        // What refers to no buffer costs no counting of who does.
        if self.0.is_empty() { Headers::new() } else { Headers(self.0.split().freeze()) }
    }
}

const PREFIX: usize = 6;
/// An allocation that several share: as little as keeps it cheap, since each of them keeps all of it.
const SHARED: usize = 4_096;

fn split_first(rest: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (prefix, tail) = rest.split_first_chunk::<PREFIX>()?;
    let name_len = usize::from(u16::from_le_bytes([prefix[0], prefix[1]]));
    let value_len = u32::from_le_bytes([prefix[2], prefix[3], prefix[4], prefix[5]]) as usize;
    let (name, tail) = tail.split_at_checked(name_len)?;
    let (value, tail) = tail.split_at_checked(value_len)?;
    Some((name, value, tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pairs_round_trip(pairs in proptest::collection::vec((".{0,20}", proptest::collection::vec(any::<u8>(), 0..30)), 0..8)) {
            let headers: Headers = pairs.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
            let again = Headers::from_buffer(headers.as_buffer().clone()).expect("whole");
            let read: Vec<_> = again.iter().map(|(n, v)| (n.to_owned(), v.to_vec())).collect();
            prop_assert_eq!(read, pairs);
        }

        #[test]
        fn torn_buffers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(headers) = Headers::from_buffer(Bytes::from(bytes)) {
                for _ in headers.iter() {}
                for (_, span) in headers.spans() {
                    prop_assert_eq!(&headers.share(span)[..], headers.value(span));
                }
            }
        }
    }
}
