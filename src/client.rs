//! Publishing events and enqueueing jobs.
//!
//! ```no_run
//! # async fn example() -> Result<(), windlass::broker::Error> {
//! use std::time::Duration;
//! use windlass::Client;
//!
//! #[derive(serde::Serialize)]
//! struct Report { report_id: u64 }
//!
//! let client = Client::connect("sqlite://windlass.db").await?;
//! // An event: every queue that hears the topic gets it.
//! let receipt = client.publish("reports.finalized", &Report { report_id: 842302 }).key("patient-7").await?;
//! println!("{} went to {:?} queues", receipt.id, receipt.queues);
//! // A job: for one queue, which runs `remind` in ten minutes.
//! client.enqueue("invoice", "remind", &Report { report_id: 842302 }).in_(Duration::from_secs(600)).await?;
//! // Many at once: one confirmation each, in the order given.
//! let drafts = (0..100).map(|report_id| client.publish("reports.finalized", &Report { report_id }));
//! for receipt in client.publish_many(drafts).await {
//!     receipt?;
//! }
//! client.close().await;
//! # Ok(()) }
//! ```

use std::borrow::Cow;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Serialize;

use crate::broker::{self, Broker, Destination, Error, Options, Publication, Published, Publisher, Role};
use crate::message::cloudevents::{self, Attributes};
use crate::message::headers::Builder;
use crate::message::{Binding, Headers, JobName, Message, Namespace, QueueName, Topic, attribute};
use crate::time::{Clock, Timestamp};

/// Publishes events and enqueues jobs. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    publisher: Arc<dyn Publisher>,
    namespace: Namespace,
    clock: Clock,
    /// Where [`Client::connect`] made the connection.
    broker: Option<Arc<dyn Broker>>,
}

/// What the broker confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The event's id.
    pub id: String,
    /// To how many queues it went; `None` where the broker cannot know.
    pub queues: Option<u32>,
}

impl Receipt {
    fn confirmed(&mut self, published: Published, is_bare: bool) {
        self.queues = published.queues;
        // What is sent without an id has the one of where it lies.
        if let Some(id) = published.id.filter(|_| is_bare) {
            self.id = id;
        }
    }
}

impl Client {
    /// A client on a connected broker.
    pub fn new(publisher: Arc<dyn Publisher>, namespace: Namespace) -> Self {
        Self { publisher, namespace, clock: Clock::System, broker: None }
    }

    /// The same with another clock, which tests can stop.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Connects as a producer, in the namespace `WINDLASS_NAMESPACE` or, where that is not set, `windlass`. Reads no
    /// configuration file. Must be called within a tokio runtime.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let set = std::env::var("WINDLASS_NAMESPACE").ok();
        let name = set.as_deref().unwrap_or("windlass");
        let namespace = Namespace::new(name).map_err(|error| Error::Refused(format!("WINDLASS_NAMESPACE: {error}")))?;
        Self::connect_with(url, namespace, set.is_some()).await
    }

    /// Connects as a producer in `namespace`.
    pub async fn connect_in(url: &str, namespace: Namespace) -> Result<Self, Error> {
        Self::connect_with(url, namespace, true).await
    }

    async fn connect_with(url: &str, namespace: Namespace, namespace_set: bool) -> Result<Self, Error> {
        let options = Options {
            namespace: namespace.clone(),
            namespace_set,
            role: Role::Producer,
            timeout: Duration::from_secs(5),
            lease: Duration::from_secs(30),
            grace: Duration::from_secs(25),
            queues: Vec::new(),
            worker: format!("client-{}", std::process::id()).into(),
            clock: Clock::System,
            sqlite: broker::SqliteOptions::default(),
            nats: broker::NatsOptions::default(),
            kafka: broker::KafkaOptions::default(),
        };
        let broker = broker::connect(url, options).await?;
        Ok(Self { publisher: broker.publisher(), namespace, clock: Clock::System, broker: Some(broker) })
    }

    /// Flushes and closes the connection that [`Client::connect`] made; of a client on somebody else's connection,
    /// such as a handler's, nothing. Nothing may be sent afterwards, by a clone neither.
    pub async fn close(&self) {
        if let Some(broker) = &self.broker {
            broker.close().await;
        }
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// An event for every queue that hears `topic`, with `data` as JSON. Await it to publish it.
    pub fn publish<T: Serialize + ?Sized>(&self, topic: &str, data: &T) -> Draft<'_, ToTopic> {
        self.draft(topic, json(data), Some("application/json")).to(ToTopic { allow_unheard: false, bare: false })
    }

    /// The same with these bytes; see [`Draft::content_type`].
    pub fn publish_bytes(&self, topic: &str, data: impl Into<Bytes>) -> Draft<'_, ToTopic> {
        self.draft(topic, Ok(data.into()), None).to(ToTopic { allow_unheard: false, bare: false })
    }

    /// A job for one queue alone, with `data` as its JSON argument. Await it to enqueue it.
    pub fn enqueue<T: Serialize + ?Sized>(&self, queue: &str, job: &str, data: &T) -> Draft<'_, ToQueue> {
        self.draft(queue, json(data), Some("application/json"))
            .to(ToQueue { job: Some(job.to_owned()), not_before: None })
    }

    /// The same with these bytes. Where no job is named, the queue's own runs.
    pub fn enqueue_bytes(&self, queue: &str, job: Option<&str>, data: impl Into<Bytes>) -> Draft<'_, ToQueue> {
        self.draft(queue, Ok(data.into()), None).to(ToQueue { job: job.map(str::to_owned), not_before: None })
    }

    /// Publishes or enqueues many, which the broker may store together; results in the order given.
    pub async fn publish_many<'c, To: Address>(
        &self,
        drafts: impl IntoIterator<Item = Draft<'c, To>>,
    ) -> Vec<Result<Receipt, Error>> {
        let mut results = Vec::new();
        let mut batch = Vec::new();
        let mut bare = Vec::new();
        for draft in drafts {
            let is_bare = draft.to.is_bare();
            match draft.publication() {
                Ok(publication) => {
                    bare.push(is_bare);
                    results.push(Ok(Receipt { id: publication.id.clone(), queues: None }));
                    batch.push(publication);
                }
                Err(error) => results.push(Err(error)),
            }
        }
        if !batch.is_empty() {
            let confirmed = self.publisher.publish(batch).await;
            let waiting = results.iter_mut().filter(|result| result.is_ok());
            for ((result, confirmed), is_bare) in waiting.zip(confirmed).zip(bare) {
                match confirmed {
                    Ok(published) => {
                        if let Ok(receipt) = result {
                            receipt.confirmed(published, is_bare);
                        }
                    }
                    Err(error) => *result = Err(error),
                }
            }
        }
        results
    }

    /// Publishes what [`Draft::publication`] made; results in the order given.
    pub(crate) async fn publish_all(&self, batch: Vec<Publication>) -> Vec<Result<broker::Published, Error>> {
        self.publisher.publish(batch).await
    }

    fn draft(&self, to: &str, data: Result<Bytes, Error>, content_type: Option<&str>) -> Draft<'_, ()> {
        Draft {
            client: self,
            address: to.to_owned(),
            to: (),
            data,
            id: None,
            kind: None,
            source: None,
            content_type: content_type.map(|content_type| Cow::Owned(content_type.to_owned())),
            key: None,
            expires: None,
            traceparent: None,
            extensions: Vec::new(),
            headers: Vec::new(),
        }
    }
}

fn json<T: Serialize + ?Sized>(data: &T) -> Result<Bytes, Error> {
    serde_json::to_vec(data)
        .map(Bytes::from)
        .map_err(|error| Error::Rejected(format!("the data cannot be written as JSON: {error}")))
}

/// What is about to be sent; awaiting it sends it, and resolves when the broker has confirmed it.
#[must_use = "a draft does nothing until it is awaited"]
pub struct Draft<'c, To> {
    client: &'c Client,
    address: String,
    to: To,
    data: Result<Bytes, Error>,
    id: Option<String>,
    kind: Option<String>,
    source: Option<String>,
    content_type: Option<Cow<'static, str>>,
    key: Option<String>,
    expires: Option<Timestamp>,
    traceparent: Option<String>,
    extensions: Vec<(String, String)>,
    headers: Vec<(String, String)>,
}

/// To every queue that hears a topic.
pub struct ToTopic {
    allow_unheard: bool,
    bare: bool,
}

/// To one queue alone.
pub struct ToQueue {
    job: Option<String>,
    not_before: Option<Timestamp>,
}

/// Where a [`Draft`] goes: [`ToTopic`] or [`ToQueue`].
pub trait Address: Send + sealed::Address {}
impl Address for ToTopic {}
impl Address for ToQueue {}

mod sealed {
    use super::{Destination, Error, Namespace};

    /// What an address decides.
    pub struct Addressed {
        pub destination: Destination,
        pub kind: String,
        pub source: String,
        pub allow_unheard: bool,
        pub bare: bool,
    }

    pub trait Address {
        fn resolve(&self, address: &str, namespace: &Namespace) -> Result<Addressed, Error>;

        /// Whether it is sent without an id, and gets one from where it then lies.
        fn is_bare(&self) -> bool {
            false
        }
    }
}

impl sealed::Address for ToTopic {
    fn resolve(&self, address: &str, namespace: &Namespace) -> Result<sealed::Addressed, Error> {
        let topic = Topic::new(address).map_err(Error::Usage)?;
        Ok(sealed::Addressed {
            kind: address.to_owned(),
            source: format!("windlass://{namespace}"),
            destination: Destination::Topic(topic),
            allow_unheard: self.allow_unheard,
            bare: self.bare,
        })
    }

    fn is_bare(&self) -> bool {
        self.bare
    }
}

impl sealed::Address for ToQueue {
    fn resolve(&self, address: &str, namespace: &Namespace) -> Result<sealed::Addressed, Error> {
        let queue = QueueName::new(address).map_err(Error::Usage)?;
        let job = self.job.as_deref().map(JobName::new).transpose().map_err(Error::Usage)?;
        Ok(sealed::Addressed {
            kind: job.as_ref().map_or(address, JobName::as_str).to_owned(),
            source: format!("windlass://{namespace}/{queue}"),
            destination: Destination::Queue { queue, job, not_before: self.not_before },
            allow_unheard: false,
            bare: false,
        })
    }
}

impl<'c> Draft<'c, ()> {
    fn to<To>(self, to: To) -> Draft<'c, To> {
        Draft {
            client: self.client,
            address: self.address,
            to,
            data: self.data,
            id: self.id,
            kind: self.kind,
            source: self.source,
            content_type: self.content_type,
            key: self.key,
            expires: self.expires,
            traceparent: self.traceparent,
            extensions: self.extensions,
            headers: self.headers,
        }
    }
}

impl<To: Address> Draft<'_, To> {
    /// The event's id; a UUIDv7 where none is given. It names the event for its consumers: it is the same at each
    /// attempt and after a replay.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The ordering key: `partitionkey`, and the record's key where the broker has one.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The media type of the data: `application/json` of what was serialised; of bytes what they look like (JSON,
    /// UTF-8 text or binary), unless it is said here.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(Cow::Owned(content_type.into()));
        self
    }

    /// Not to be started after this; it then becomes a dead letter, `expired`.
    pub fn expires(mut self, at: Timestamp) -> Self {
        self.expires = Some(at);
        self
    }

    /// W3C trace context.
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = Some(traceparent.into());
        self
    }

    /// A further CloudEvents attribute (`subject`, an extension): lower-case letters and digits.
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.extensions.push((name.into(), value.into()));
        self
    }

    /// A header that is no attribute, passed on as it is: a name of visible ASCII without `:`, a value without line
    /// breaks.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// What would be sent: for `--dry-run`, and to send it by a [`Publisher`] of one's own.
    pub fn publication(self) -> Result<Publication, Error> {
        let addressed = self.to.resolve(&self.address, &self.client.namespace)?;
        let data = self.data?;
        for (name, value) in &self.headers {
            check_header(name, value)?;
        }
        for (name, value) in &self.extensions {
            check_attribute(name, value)?;
        }
        let id = match self.id {
            Some(id) if id.is_empty() => return Err(Error::Usage("an event's id must not be empty".to_owned())),
            Some(id) => id,
            None => uuid::Uuid::now_v7().to_string(),
        };
        let binding = self.client.publisher.binding();
        let key = self.key.as_deref();
        let headers = if addressed.bare {
            bare_headers(
                binding,
                key,
                self.expires,
                self.content_type.as_deref(),
                self.traceparent.as_deref(),
                &self.headers,
            )
        } else {
            let guessed = || crate::message::guess_content_type(&data).map(Cow::Borrowed);
            let content_type = self.content_type.or_else(guessed);
            let attributes = Attributes {
                id: &id,
                source: self.source.as_deref().unwrap_or(&addressed.source),
                kind: self.kind.as_deref().unwrap_or(&addressed.kind),
                content_type: content_type.as_deref(),
                time: Some(self.client.clock.now()),
                key,
                expires: self.expires,
                traceparent: self.traceparent.as_deref(),
                extensions: &self.extensions,
                headers: &self.headers,
            };
            cloudevents::write(&attributes, binding)
        };
        let key = self.key.map(Bytes::from);
        Ok(Publication {
            destination: addressed.destination,
            message: Message { headers, body: Some(data), key },
            id,
            allow_unheard: addressed.allow_unheard,
        })
    }

    async fn send(self) -> Result<Receipt, Error> {
        let publisher = self.client.publisher.clone();
        let is_bare = self.to.is_bare();
        let publication = self.publication()?;
        let mut receipt = Receipt { id: publication.id.clone(), queues: None };
        let mut confirmed = publisher.publish(vec![publication]).await;
        let published =
            confirmed.pop().unwrap_or_else(|| Err(Error::Unavailable("the broker gave no answer".to_owned())))?;
        receipt.confirmed(published, is_bare);
        Ok(receipt)
    }
}

impl Draft<'_, ToTopic> {
    /// The event's `type`: the topic, unless it is said here.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    /// The event's `source`: `windlass://NAMESPACE`, unless it is said here.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Store it although no queue hears the topic (SQLite knows).
    pub fn allow_unheard(mut self) -> Self {
        self.to.allow_unheard = true;
        self
    }

    /// The bytes as they are, without attributes, as somebody publishes who has never heard of us. Key, expiry,
    /// content type and headers are written only where they were given. Its id is made of where it comes to lie, so
    /// that the receipt's means nothing.
    pub fn bare(mut self) -> Self {
        self.to.bare = true;
        self
    }
}

impl Draft<'_, ToQueue> {
    /// Not before so long from now.
    pub fn in_(mut self, delay: Duration) -> Self {
        self.to.not_before = Some(self.client.clock.now().after(delay));
        self
    }

    /// Not before this.
    pub fn at(mut self, at: Timestamp) -> Self {
        self.to.not_before = Some(at);
        self
    }
}

impl<'c, To: Address + 'c> IntoFuture for Draft<'c, To> {
    type Output = Result<Receipt, Error>;
    type IntoFuture = BoxFuture<'c, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// What a bare message has: only what was asked for, in plain headers. On Kafka the key is the record's own.
fn bare_headers(
    binding: Binding,
    key: Option<&str>,
    expires: Option<Timestamp>,
    content_type: Option<&str>,
    traceparent: Option<&str>,
    headers: &[(String, String)],
) -> Headers {
    let mut builder = Builder::default();
    if let Some(content_type) = content_type {
        builder.push(attribute::CONTENT_TYPE, content_type.as_bytes());
    }
    if let Some(key) = key.filter(|_| binding == Binding::Dash) {
        builder.push(attribute::PARTITIONKEY, cloudevents::encode(key).as_bytes());
    }
    if let Some(expires) = expires {
        builder.push(attribute::EXPIRYTIME, expires.to_rfc3339().as_bytes());
    }
    if let Some(traceparent) = traceparent {
        builder.push(attribute::TRACEPARENT, traceparent.as_bytes());
    }
    for (name, value) in headers {
        builder.push(name, value.as_bytes());
    }
    builder.finish()
}

fn check_header(name: &str, value: &str) -> Result<(), Error> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
        return Err(Error::Usage(format!("expected a header's name of visible ASCII without \":\", found {name:?}")));
    }
    if value.contains(['\r', '\n', '\0']) {
        return Err(Error::Usage(format!("the value of header {name} has a line break; encode it, such as in base64")));
    }
    Ok(())
}

fn check_attribute(name: &str, value: &str) -> Result<(), Error> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err(Error::Usage(format!(
            "expected an attribute's name of lower-case letters and digits, found {name:?}"
        )));
    }
    let own = [attribute::SPECVERSION, attribute::ID, attribute::SOURCE, attribute::TYPE, attribute::DATACONTENTTYPE];
    if own.contains(&name) {
        return Err(Error::Usage(format!("the attribute {name} is set by its own method, not as a further attribute")));
    }
    if value.chars().any(char::is_control) {
        return Err(Error::Usage(format!("the value of attribute {name} has a control character")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Event, Mode, Origin, Place, decode};

    async fn client() -> Client {
        Client::connect_in("memory://", Namespace::new("lab").expect("fits")).await.expect("memory is there")
    }

    fn decoded(publication: &Publication) -> Event {
        let place = Place { position: "p".to_owned(), source: "s".to_owned(), topic: None, binding: Binding::Dash };
        let origin = Origin { place: &place, seq: 1, at: Timestamp::from_millis(0) };
        decode(&publication.message, &origin, None).expect("just written")
    }

    #[tokio::test]
    async fn an_event_says_what_it_is() {
        let client = client().await;
        let publication = client
            .publish("reports.finalized", &[1, 2])
            .key("pät")
            .expires(Timestamp::from_millis(5_000))
            .attribute("subject", "a b")
            .header("x-team", "billing")
            .publication()
            .expect("valid");
        let event = decoded(&publication);
        assert_eq!((event.mode, &*event.kind, &*event.source), (Mode::Binary, "reports.finalized", "windlass://lab"));
        assert_eq!(
            (&*event.id, uuid::Uuid::parse_str(&event.id).expect("a UUID").get_version_num()),
            (&*publication.id, 7)
        );
        assert_eq!((event.content_type.as_deref(), &event.data[..]), (Some("application/json"), &b"[1,2]"[..]));
        assert_eq!((event.key.as_deref(), event.attribute("subject")), (Some("pät".as_bytes()), Some("a b")));
        assert_eq!(publication.message.key.as_deref(), Some("pät".as_bytes()));
        assert_eq!(
            (event.expires, event.headers.get("x-team")),
            (Some(Timestamp::from_millis(5_000)), Some(&b"billing"[..]))
        );
        assert!(event.attribute("time").is_some_and(|time| Timestamp::parse_rfc3339(time).is_some()));
    }

    #[tokio::test]
    async fn bytes_are_called_what_they_look_like() {
        let client = client().await;
        for (data, content_type) in [
            (&b"{}"[..], Some("application/json")),
            (b"hello", Some("text/plain; charset=utf-8")),
            (b"\xff", Some("application/octet-stream")),
            (b"", None),
        ] {
            let publication = client.publish_bytes("t", data).publication().expect("valid");
            assert_eq!(decoded(&publication).content_type.as_deref(), content_type);
        }
    }

    #[tokio::test]
    async fn bare_bytes_carry_only_what_was_asked_for() {
        let client = client().await;
        let publication = client.publish_bytes("t", "hello").bare().publication().expect("valid");
        assert!(publication.message.headers.is_empty());
        let publication =
            client.publish_bytes("t", "hello").bare().key("k").content_type("text/csv").publication().expect("valid");
        let event = decoded(&publication);
        assert_eq!(
            (event.mode, event.key.as_deref(), event.content_type.as_deref()),
            (Mode::Plain, Some(&b"k"[..]), Some("text/csv"))
        );
    }

    #[tokio::test]
    async fn a_job_names_itself_and_its_queue() {
        let client = client().await;
        let at = Timestamp::from_millis(9_000);
        let publication = client.enqueue("invoice", "remind", &()).id("i").at(at).publication().expect("valid");
        let event = decoded(&publication);
        assert_eq!((&*event.kind, &*event.source, &*event.id), ("remind", "windlass://lab/invoice", "i"));
        assert!(matches!(
            publication.destination,
            Destination::Queue { queue, job: Some(job), not_before: Some(due) }
                if queue.as_str() == "invoice" && job.as_str() == "remind" && due == at
        ));
        let publication = client.enqueue_bytes("invoice", None, "1").publication().expect("valid");
        assert_eq!(&*decoded(&publication).kind, "invoice");
        assert!(matches!(publication.destination, Destination::Queue { job: None, not_before: None, .. }));
    }

    #[tokio::test]
    async fn mistakes_are_told_before_anything_is_sent() {
        let client = client().await;
        for draft in [
            client.publish("two words", &1),
            client.publish("t", &1).id(""),
            client.publish("t", &1).header("a b", "x"),
            client.publish("t", &1).header("a", "x\ny"),
            client.publish("t", &1).attribute("Subject", "x"),
            client.publish("t", &1).attribute("id", "x"),
        ] {
            assert!(matches!(draft.await, Err(Error::Usage(_))));
        }
        assert!(matches!(client.enqueue("Invoice", "j", &1).await, Err(Error::Usage(_))));
        assert!(matches!(client.enqueue("invoice", "", &1).await, Err(Error::Usage(_))));
    }

    #[tokio::test]
    async fn many_are_answered_in_order() {
        let client = client().await;
        let drafts = [
            client.publish("t", &1).id("a").allow_unheard(),
            client.publish("no topic", &2).id("b"),
            client.publish("t", &3).id("c").allow_unheard(),
        ];
        let answers = client.publish_many(drafts).await;
        assert_eq!(answers.len(), 3);
        assert_eq!(answers[0].as_ref().map(|receipt| &*receipt.id).ok(), Some("a"));
        assert!(matches!(answers[1], Err(Error::Usage(_))));
        assert_eq!(answers[2].as_ref().map(|receipt| &*receipt.id).ok(), Some("c"));
    }
}
