//! Bytes and headers to an event.
use super::{Event, Message, Origin, record::Record};

/// Why bytes are not what they say they are: a lower-case fragment for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

/// Decodes.
pub fn decode(_message: &Message, _origin: &Origin, _record: Option<&Record>) -> Result<Event, Malformed> {
    Err(Malformed(String::new()))
}
