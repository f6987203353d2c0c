//! Many small publications in one command to the client.
//!
//! The client takes publications one by one: a message in its channel, a reference to each subject and a formatted line
//! for each, which costs more than an acknowledgement itself. It writes a subject as it stands (its validation is
//! switched off, see [`super::link`]), so a subject may hold whole publications and the beginning of the last one:
//! `PUB ` goes before it and ` LENGTH\r\nPAYLOAD\r\n` after it. All of a bundle is one piece in the client's hands: it
//! goes out on one connection, or on none.

use async_nats::{Client, Subject};
use bytes::{BufMut, Bytes, BytesMut};

/// Publications without headers, in their order.
#[derive(Default)]
pub struct Bundle {
    /// All before the last publication, and its subject.
    text: BytesMut,
    /// Its reply subject and payload.
    last: Option<(Option<Subject>, Bytes)>,
}

impl Bundle {
    /// Adds one.
    pub fn push(&mut self, subject: &str, reply: Option<Subject>, payload: Bytes) {
        let text = &mut self.text;
        if let Some((reply, payload)) = self.last.replace((reply, payload)) {
            if let Some(reply) = reply {
                text.put_u8(b' ');
                text.put_slice(reply.as_bytes());
            }
            text.put_u8(b' ');
            put_number(text, payload.len());
            text.put_slice(b"\r\n");
            text.put_slice(&payload);
            text.put_slice(b"\r\nPUB ");
        }
        text.put_slice(subject.as_bytes());
    }

    /// Hands all of them over.
    pub async fn send(&mut self, client: &Client) {
        let Some((reply, payload)) = self.last.take() else { return };
        let subject = Subject::from_utf8(self.text.split().freeze()).expect("subjects and what we say are UTF-8");
        // What fails was not sent, and whoever needs an answer asks again.
        let _ = match reply {
            Some(reply) => client.publish_with_reply(subject, reply, payload).await,
            None => client.publish(subject, payload).await,
        };
    }
}

fn put_number(into: &mut BytesMut, number: usize) {
    if number >= 10 {
        put_number(into, number / 10);
    }
    into.put_u8(b'0' + (number % 10) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_before_the_last_is_whole() {
        let mut bundle = Bundle::default();
        let text = |text: &'static str| Subject::from_static(text);
        bundle.push("a.b", None, Bytes::from_static(b"+ACK"));
        assert_eq!(&bundle.text[..], b"a.b", "one alone is a publication like any other");
        bundle.push("c", Some(text("r")), Bytes::from_static(b"-NAK {\"delay\":0}"));
        bundle.push("d", Some(text("r")), Bytes::new());
        assert_eq!(&bundle.text[..], b"a.b 4\r\n+ACK\r\nPUB c r 16\r\n-NAK {\"delay\":0}\r\nPUB d");
    }
}
