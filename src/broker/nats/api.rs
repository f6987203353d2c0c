//! JetStream's own API, as far as it is needed: requests in JSON, and errors by their codes.
//!
//! Configurations are kept whole ([`Stream::config`] is JSON), so that what is sent back is what the server said,
//! with one thing changed, and what a server does not know shows in its echo.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::link::{Link, RequestError};
use super::wire::{self, header};
use crate::broker;
use crate::time::Timestamp;

/// Codes of the server's errors that mean something here. Source: server/errors.json of nats-server.
pub mod code {
    /// No such message.
    pub const NO_MESSAGE: u64 = 10_037;
    /// No such consumer.
    pub const NO_CONSUMER: u64 = 10_014;
    /// No such stream.
    pub const NO_STREAM: u64 = 10_059;
    /// A consumer of a work queue overlaps another.
    pub const NOT_UNIQUE: [u64; 2] = [10_099, 10_100];
    /// A work queue delivers all or nothing.
    pub const DELIVER_ALL: u64 = 10_101;
    /// JetStream is not enabled, for the server or this account.
    pub const NOT_ENABLED: [u64; 2] = [10_039, 10_076];
    /// More replicas than there are servers to hold them.
    pub const NO_PEERS: [u64; 2] = [10_005, 10_074];
    /// A configuration that the server does not take.
    pub const INVALID: u64 = 10_052;
    /// The stream's name is taken by another configuration.
    pub const STREAM_EXISTS: u64 = 10_058;
    /// The stream is full and refuses new messages.
    pub const FULL: u64 = 10_077;
    /// Somebody else was faster (compare and set).
    pub const WRONG_SEQUENCE: [u64; 2] = [10_071, 10_164];
}

/// Subjects that a server lists, to say how many they are, without noticeable effort.
const MANY: u64 = 10_000;

/// Why a request to JetStream failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server says why.
    #[error("{description} ({err_code})")]
    Server {
        /// As in HTTP.
        code: u64,
        /// See [`code`].
        err_code: u64,
        /// For people.
        description: String,
    },
    /// There was no answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The answer is not what was expected.
    #[error("an answer of the server cannot be read: {0}")]
    Answer(String),
}

impl Error {
    /// The server's code, where it gave one.
    pub fn err_code(&self) -> u64 {
        match self {
            Self::Server { err_code, .. } => *err_code,
            _ => 0,
        }
    }

    /// As the broker's error, `doing` what.
    pub fn into_broker(self, doing: &str) -> broker::Error {
        let text = format!("failed to {doing}: {self}");
        match &self {
            Self::Server { err_code, .. } if code::NOT_ENABLED.contains(err_code) => broker::Error::Refused(format!(
                "failed to {doing}: JetStream is not enabled for this account; enable it in the server's configuration"
            )),
            Self::Server { err_code, .. } if *err_code == code::INVALID => broker::Error::Refused(text),
            Self::Server { code, .. } if *code == 503 || *code == 429 || *code == 500 => {
                broker::Error::Unavailable(text)
            }
            Self::Server { .. } | Self::Request(RequestError::Denied(_)) => broker::Error::Refused(text),
            Self::Request(RequestError::TooLarge(_)) => broker::Error::Rejected(text),
            Self::Request(_) | Self::Answer(_) => broker::Error::Unavailable(text),
        }
    }
}

/// A stream as the server describes it.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// Its configuration, whole.
    pub config: Value,
    /// Its state.
    pub state: Value,
    /// When it was made.
    pub created: Timestamp,
    /// Which server has it, where that is said.
    pub host: Host,
    /// How many subjects there are, where that was asked.
    pub total: u64,
}

/// Which server has a stream or a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// Nothing is said of it: the only one.
    Only,
    /// This one, by its name, and no other can take its place.
    Named(String),
    /// One of a cluster.
    Cluster,
}

impl Host {
    /// As `cluster` says in what the server knows of it. A server that stands alone calls itself the leader of its
    /// streams; in a cluster there are a name and a group of Raft, too.
    pub fn of(info: &Value) -> Self {
        let cluster = &info["cluster"];
        if ["name", "raft_group"].iter().any(|key| cluster[*key].is_string()) || cluster["replicas"].is_array() {
            return Self::Cluster;
        }
        cluster["leader"].as_str().map_or(Self::Only, |leader| Self::Named(leader.to_owned()))
    }

    /// Whether it is the server of this name and of no other.
    pub fn is_alone(&self, server: &str) -> bool {
        match self {
            Self::Only => true,
            Self::Named(name) => name == server,
            Self::Cluster => false,
        }
    }
}

impl Stream {
    /// The subjects it stores.
    pub fn subjects(&self) -> Vec<&str> {
        self.config["subjects"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// `limits`, `interest` or `workqueue`.
    pub fn retention(&self) -> &str {
        self.config["retention"].as_str().unwrap_or("limits")
    }

    /// A flag of its configuration; absent is false.
    pub fn flag(&self, name: &str) -> bool {
        self.config[name].as_bool().unwrap_or(false)
    }

    fn parse(value: Value) -> Option<Self> {
        Some(Self {
            name: value["config"]["name"].as_str()?.to_owned(),
            created: value["created"].as_str().and_then(Timestamp::parse_rfc3339)?,
            host: Host::of(&value),
            total: value["total"].as_u64().unwrap_or(0),
            config: value.get("config")?.clone(),
            state: value.get("state")?.clone(),
        })
    }
}

/// A message read by its place.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its subject.
    pub subject: String,
    /// Its sequence.
    pub seq: u64,
    /// When it was stored, rounded down.
    pub at: Timestamp,
    /// Its headers.
    pub headers: Option<async_nats::HeaderMap>,
    /// Its payload.
    pub payload: Bytes,
}

/// A message read by its place, its headers as they lie there: what somebody wrote need not be headers at all.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Its subject.
    pub subject: String,
    /// Its sequence.
    pub seq: u64,
    /// When it was stored.
    pub stored: jiff::Timestamp,
    /// `NATS/1.0` and a line for each header; empty where it has none.
    pub headers: Vec<u8>,
    /// Its payload.
    pub payload: Bytes,
}

impl Raw {
    /// When it was stored, rounded down.
    pub fn at(&self) -> Timestamp {
        Timestamp::from_millis(self.stored.as_millisecond())
    }
}

impl From<Raw> for Stored {
    fn from(raw: Raw) -> Self {
        let headers = parse_headers(&raw.headers).filter(|_| !raw.headers.is_empty());
        Self { at: raw.at(), headers, subject: raw.subject, seq: raw.seq, payload: raw.payload }
    }
}

/// JetStream's API over one connection.
#[derive(Clone)]
pub struct Api {
    /// The connection.
    pub link: Arc<Link>,
}

impl Api {
    /// Sends a request to `$JS.API.{verb}`; an error without an answer, or one that waiting may help, is tried again
    /// within the connection's timeout.
    pub async fn call(&self, verb: &str, body: &Value) -> Result<Value, Error> {
        let payload = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let deadline = tokio::time::Instant::now() + self.link.timeout;
        let mut delay = Duration::from_millis(20);
        loop {
            // What is asked here may be asked twice; a question, or its answer, is lost with a connection.
            let error = match self.once(verb, payload.clone(), deadline).await {
                Err(
                    error @ (Error::Request(RequestError::NoResponders(_) | RequestError::TimedOut(_))
                    | Error::Server { code: 503, .. }),
                ) if !code::NOT_ENABLED.contains(&error.err_code()) => error,
                done => return done,
            };
            if tokio::time::Instant::now() + delay >= deadline {
                return Err(error);
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_millis(500));
        }
    }

    async fn once(&self, verb: &str, payload: Bytes, deadline: tokio::time::Instant) -> Result<Value, Error> {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now()).max(Duration::from_millis(50));
        let left = left.min((self.link.timeout / 3).max(Duration::from_secs(1)));
        let answer = self.link.request(format!("$JS.API.{verb}"), None, payload, left).await?;
        let value: Value = serde_json::from_slice(&answer.payload).map_err(|e| Error::Answer(e.to_string()))?;
        match value.get("error") {
            Some(error) => Err(server_error(error)),
            None => Ok(value),
        }
    }

    /// The names of streams that store some subject which `subject` covers.
    pub async fn names(&self, subject: &str) -> Result<Vec<String>, Error> {
        let answer = self.call("STREAM.NAMES", &json!({ "subject": subject })).await?;
        let names = answer["streams"].as_array().into_iter().flatten().filter_map(Value::as_str);
        Ok(names.map(str::to_owned).collect())
    }

    /// A stream; `None` where there is none of that name.
    pub async fn stream(&self, name: &str) -> Result<Option<Stream>, Error> {
        self.stream_of(name, &Value::Null).await
    }

    /// How many messages under `filter` a stream of ours holds, each of which has a subject of its own. `stream` is what
    /// the server said of it just before.
    pub async fn count(&self, stream: &Stream, filter: &str) -> Result<u64, Error> {
        // The server copies and sorts all subjects to count them: seconds for a million.
        if stream.state["num_subjects"].as_u64() > Some(MANY) && stream.flag("allow_direct") {
            return self.count_behind(&stream.name, filter).await;
        }
        // An offset behind the last: only the count is wanted.
        let body = json!({ "subjects_filter": filter, "offset": i32::MAX });
        Ok(self.stream_of(&stream.name, &body).await?.map_or(0, |stream| stream.total))
    }

    /// Likewise, by a question for the first of them, whose answer says how many are behind it (2.11, ADR-31).
    async fn count_behind(&self, stream: &str, filter: &str) -> Result<u64, Error> {
        let body = json!({ "seq": 1, "next_by_subj": filter, "batch": 1 });
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        // What follows it, that this was all, is answered to nobody.
        let answer = self.link.request(subject, None, body.to_string().into(), self.link.timeout).await?;
        match answer.status.map(|status| status.as_u16()) {
            None => wire::text(answer.headers.as_ref(), header::BEHIND)
                .and_then(|text| text.parse::<u64>().ok())
                .map(|behind| behind + 1)
                .ok_or_else(|| Error::Answer("a message that does not say how many are behind it".to_owned())),
            Some(404) => Ok(0),
            Some(code) => Err(Error::Server {
                code: code.into(),
                err_code: 0,
                description: answer.description.as_deref().unwrap_or("no reason given").to_owned(),
            }),
        }
    }

    async fn stream_of(&self, name: &str, body: &Value) -> Result<Option<Stream>, Error> {
        match self.call(&format!("STREAM.INFO.{name}"), body).await {
            Ok(value) => stream(value).map(Some),
            Err(error) if error.err_code() == code::NO_STREAM => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates (`CREATE`) or changes (`UPDATE`) a stream.
    pub async fn put_stream(&self, verb: &str, config: &Value) -> Result<Stream, Error> {
        let name = config["name"].as_str().unwrap_or_default();
        stream(self.call(&format!("STREAM.{verb}.{name}"), config).await?)
    }

    /// A consumer; `None` where there is none.
    pub async fn consumer(&self, stream: &str, name: &str) -> Result<Option<Value>, Error> {
        match self.call(&format!("CONSUMER.INFO.{stream}.{name}"), &Value::Null).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if matches!(error.err_code(), code::NO_CONSUMER | code::NO_STREAM) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates or changes a consumer: `action` is `create` or `update`.
    pub async fn put_consumer(&self, stream: &str, action: &str, config: &Value) -> Result<Value, Error> {
        let name = config["durable_name"].as_str().unwrap_or_default();
        let body = json!({ "stream_name": stream, "config": config, "action": action });
        self.call(&format!("CONSUMER.CREATE.{stream}.{name}"), &body).await
    }

    /// Removes a consumer; false where there was none.
    pub async fn delete_consumer(&self, stream: &str, name: &str) -> Result<bool, Error> {
        match self.call(&format!("CONSUMER.DELETE.{stream}.{name}"), &Value::Null).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.err_code(), code::NO_CONSUMER | code::NO_STREAM) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Names of all streams that have a subject under `subject`, or of all.
    pub async fn all_streams(&self) -> Result<Vec<Stream>, Error> {
        let mut all = Vec::new();
        loop {
            let page = self.call("STREAM.LIST", &json!({ "offset": all.len() })).await?;
            let streams = page["streams"].as_array().cloned().unwrap_or_default();
            if streams.is_empty() {
                return Ok(all);
            }
            all.extend(streams.into_iter().filter_map(Stream::parse));
            if all.len() as u64 >= page["total"].as_u64().unwrap_or(0) {
                return Ok(all);
            }
        }
    }

    /// The consumers of a stream.
    pub async fn consumers(&self, stream: &str) -> Result<Vec<Value>, Error> {
        let mut all = Vec::new();
        loop {
            let page = self.call(&format!("CONSUMER.LIST.{stream}"), &json!({ "offset": all.len() })).await?;
            let found = page["consumers"].as_array().cloned().unwrap_or_default();
            if found.is_empty() {
                return Ok(all);
            }
            all.extend(found);
            if all.len() as u64 >= page["total"].as_u64().unwrap_or(0) {
                return Ok(all);
            }
        }
    }

    /// The message with this sequence.
    pub async fn get(&self, stream: &str, seq: u64) -> Result<Option<Stored>, Error> {
        self.get_by(stream, &json!({ "seq": seq })).await
    }

    /// The newest message of a subject.
    pub async fn last(&self, stream: &str, subject: &str) -> Result<Option<Stored>, Error> {
        self.get_by(stream, &json!({ "last_by_subj": subject })).await
    }

    /// The first message at or behind `seq` whose subject `filter` covers.
    pub async fn next(&self, stream: &str, seq: u64, filter: &str) -> Result<Option<Stored>, Error> {
        self.get_by(stream, &json!({ "seq": seq, "next_by_subj": filter })).await
    }

    /// Likewise, its headers unread.
    pub async fn next_raw(&self, stream: &str, seq: u64, filter: &str) -> Result<Option<Raw>, Error> {
        self.raw_by(stream, &json!({ "seq": seq, "next_by_subj": filter })).await
    }

    async fn get_by(&self, stream: &str, body: &Value) -> Result<Option<Stored>, Error> {
        Ok(self.raw_by(stream, body).await?.map(Stored::from))
    }

    async fn raw_by(&self, stream: &str, body: &Value) -> Result<Option<Raw>, Error> {
        let answer = match self.call(&format!("STREAM.MSG.GET.{stream}"), body).await {
            Ok(answer) => answer,
            Err(error) if matches!(error.err_code(), code::NO_MESSAGE | code::NO_STREAM) => return Ok(None),
            Err(error) => return Err(error),
        };
        let message = &answer["message"];
        let bytes = |name: &str| base64_in(message[name].as_str().unwrap_or_default());
        let raw = || {
            Some(Raw {
                subject: message["subject"].as_str()?.to_owned(),
                seq: message["seq"].as_u64()?,
                stored: message["time"].as_str()?.parse().ok()?,
                headers: bytes("hdrs").unwrap_or_default(),
                payload: bytes("data").map(Bytes::from)?,
            })
        };
        raw().map(Some).ok_or_else(|| Error::Answer("a message without subject, sequence or time".to_owned()))
    }

    /// Removes a message; false where it was gone.
    pub async fn delete(&self, stream: &str, seq: u64) -> Result<bool, Error> {
        match self.call(&format!("STREAM.MSG.DELETE.{stream}"), &json!({ "seq": seq, "no_erase": true })).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.err_code(), code::NO_MESSAGE | code::NO_STREAM | 10_043) => Ok(false),
            // "sequence N not found" comes as a plain failure of the deletion (10057).
            Err(Error::Server { err_code: 10_057, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes all messages whose subject `filter` covers; how many.
    pub async fn purge(&self, stream: &str, filter: &str) -> Result<u64, Error> {
        match self.call(&format!("STREAM.PURGE.{stream}"), &json!({ "filter": filter })).await {
            Ok(answer) => Ok(answer["purged"].as_u64().unwrap_or(0)),
            Err(error) if error.err_code() == code::NO_STREAM => Ok(0),
            Err(error) => Err(error),
        }
    }
}

fn stream(value: Value) -> Result<Stream, Error> {
    Stream::parse(value).ok_or_else(|| Error::Answer("a stream without a name, state or time".to_owned()))
}

/// The `error` of an answer.
pub fn server_error(error: &Value) -> Error {
    Error::Server {
        code: error["code"].as_u64().unwrap_or(0),
        err_code: error["err_code"].as_u64().unwrap_or(0),
        description: error["description"].as_str().unwrap_or("no reason given").to_owned(),
    }
}

fn base64_in(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// Headers as they lie in a stream: `NATS/1.0\r\nname: value\r\n\r\n`.
fn parse_headers(raw: &[u8]) -> Option<async_nats::HeaderMap> {
    let text = String::from_utf8_lossy(raw);
    let mut map = async_nats::HeaderMap::new();
    for line in text.split("\r\n").skip(1).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        let name: async_nats::HeaderName = name.parse().ok()?;
        let value: async_nats::HeaderValue = value.trim().parse().ok()?;
        map.append(name, value);
    }
    Some(map)
}

/// What an answer to a publication says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PubAck {
    /// The stream that has it.
    pub stream: String,
    /// Its sequence.
    pub seq: u64,
    /// Its message id was known already, and `seq` is that of the first.
    pub duplicate: bool,
}

/// Reads the answer to a publication.
pub fn pub_ack(payload: &[u8]) -> Result<PubAck, Error> {
    let value: Value = serde_json::from_slice(payload).map_err(|e| Error::Answer(e.to_string()))?;
    if let Some(error) = value.get("error") {
        return Err(server_error(error));
    }
    let stream = value["stream"].as_str().ok_or_else(|| Error::Answer("a publication without a stream".to_owned()))?;
    Ok(PubAck {
        stream: stream.to_owned(),
        seq: value["seq"].as_u64().unwrap_or(0),
        duplicate: value["duplicate"].as_bool().unwrap_or(false),
    })
}

impl Api {
    /// Publishes and waits until it is stored; tries again under the same message id until `deadline`. A subject that
    /// no stream covers answers like an election: [`RequestError::NoResponders`] after the last try.
    pub async fn store(
        &self,
        subject: &str,
        headers: async_nats::HeaderMap,
        payload: Bytes,
        deadline: tokio::time::Instant,
    ) -> Result<PubAck, Error> {
        debug_assert!(headers.get(header::MESSAGE_ID).is_some(), "it could be stored twice");
        let mut delay = Duration::from_millis(20);
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let patience = left.min(Duration::from_secs(2)).max(Duration::from_millis(50));
            let answer = self.link.request(subject, Some(headers.clone()), payload.clone(), patience).await;
            let error = match answer.map_err(Error::from).and_then(|message| pub_ack(&message.payload)) {
                Ok(ack) => return Ok(ack),
                Err(error) => error,
            };
            let again = match &error {
                Error::Request(RequestError::NoResponders(_) | RequestError::TimedOut(_)) => true,
                Error::Server { code, err_code, .. } => (*code == 503 || *code == 429) && *err_code != code::FULL,
                _ => false,
            };
            if !again || tokio::time::Instant::now() + delay >= deadline {
                return Err(error);
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_millis(500));
        }
    }
}
