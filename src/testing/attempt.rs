//! One attempt alone: what a handler is given, without a worker.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::sent::{Outbox, Sent};
use crate::client::Client;
use crate::handler::{Context, Shared};
use crate::message::{self, Binding, JobName, Namespace, Origin, Place, QueueName};
use crate::time::Clock;

impl Context {
    /// A context for calling a handler in a test: the first attempt at an event without data, with nothing shared.
    /// What the handler sends is taken and goes nowhere. Say more with [`testing::Attempt`](Attempt).
    pub fn test() -> Self {
        Attempt::new().context()
    }
}

/// What a handler is to be given; see the [module](super). [`Attempt::context`] makes the [`Context`].
///
/// Where nothing else is said: event `test`, published to topic `test`, run by job `test` of queue `test`, attempt 1
/// of 20, no deadline.
#[must_use = "nothing is called by itself: give `context()` to the handler"]
pub struct Attempt {
    event_id: String,
    topic: String,
    queue: String,
    job: String,
    number: u32,
    of: u32,
    key: Option<String>,
    content_type: Option<String>,
    body: Bytes,
    headers: Vec<(String, String)>,
    time_left: Option<Duration>,
    state: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
    outbox: Outbox,
    context: OnceLock<Context>,
}

impl Default for Attempt {
    fn default() -> Self {
        Self {
            event_id: "test".to_owned(),
            topic: "test".to_owned(),
            queue: "test".to_owned(),
            job: "test".to_owned(),
            number: 1,
            of: 20,
            key: None,
            content_type: None,
            body: Bytes::new(),
            headers: Vec::new(),
            time_left: None,
            state: HashMap::new(),
            outbox: Outbox::before(None, Clock::System),
            context: OnceLock::new(),
        }
    }
}

impl Attempt {
    /// The first attempt at an event without data.
    pub fn new() -> Self {
        Self::default()
    }

    /// The event's id.
    pub fn event_id(mut self, id: impl Into<String>) -> Self {
        self.event_id = id.into();
        self
    }

    /// The topic that the event was published to.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = topic.into();
        self
    }

    /// The queue that runs it.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = queue.into();
        self
    }

    /// The job's name.
    pub fn job(mut self, job: impl Into<String>) -> Self {
        self.job = job.into();
        self
    }

    /// Which attempt it is, from 1.
    pub fn number(mut self, number: u32) -> Self {
        self.number = number;
        self
    }

    /// How many attempts there are.
    pub fn of(mut self, attempts: u32) -> Self {
        self.of = attempts;
        self
    }

    /// The ordering key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// A header of the event.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The event's data, as JSON: for what reads it from the context. Typed arguments are given to the handler itself.
    ///
    /// # Panics
    /// Where it cannot be written as JSON.
    pub fn data<T: Serialize + ?Sized>(self, data: &T) -> Self {
        let body = serde_json::to_vec(data).unwrap_or_else(|error| panic!("the data cannot be written: {error}"));
        self.body(body).content_type("application/json")
    }

    /// The event's bytes.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// What its bytes are.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// How long it has until its deadline. Nothing cancels it then: that is the worker's part. Needs a tokio runtime.
    pub fn time_left(mut self, time_left: Duration) -> Self {
        self.time_left = Some(time_left);
        self
    }

    /// State that the application shares, as by [`Registry::state`](crate::Registry::state).
    pub fn state<T: Send + Sync + 'static>(mut self, state: T) -> Self {
        self.state.insert(TypeId::of::<T>(), Arc::new(state));
        self
    }

    /// The context, the same one each time.
    ///
    /// # Panics
    /// Where a name is none, or the event is malformed: what a worker would never give to a handler.
    pub fn context(&self) -> Context {
        self.context.get_or_init(|| self.build()).clone()
    }

    /// Tells the handler that it should end, as a timeout, a shutdown or a lost lease does.
    pub fn cancel(&self) {
        self.context().cancellation().cancel();
    }

    /// What the handler published and enqueued, in order.
    pub fn sent(&self) -> Vec<Sent> {
        self.outbox.sent()
    }

    /// That the handler enqueued `job` for `queue` with exactly this argument.
    ///
    /// # Panics
    /// Where it did not, with what it sent instead.
    #[track_caller]
    pub fn assert_enqueued<T: Serialize + ?Sized>(&self, queue: &str, job: &str, data: &T) {
        self.outbox.assert_enqueued(queue, job, data);
    }

    /// That the handler published an event to `topic` with exactly this data.
    ///
    /// # Panics
    /// Where it did not, with what it sent instead.
    #[track_caller]
    pub fn assert_published<T: Serialize + ?Sized>(&self, topic: &str, data: &T) {
        self.outbox.assert_published(topic, data);
    }

    fn build(&self) -> Context {
        let named = "a test gives names that are names";
        let client = Client::new(Arc::new(self.outbox.clone()), Namespace::new("test").expect("it fits"));
        let mut draft = client.publish_bytes(&self.topic, self.body.clone()).id(&self.event_id);
        draft = self.headers.iter().fold(draft, |draft, (name, value)| draft.header(name, value));
        if let Some(key) = &self.key {
            draft = draft.key(key);
        }
        if let Some(content_type) = &self.content_type {
            draft = draft.content_type(content_type);
        }
        let publication = draft.publication().unwrap_or_else(|error| panic!("{error}"));
        let place = Place {
            position: "test".to_owned(),
            source: "windlass://test".to_owned(),
            topic: Some(self.topic.as_str().into()),
            binding: Binding::Dash,
        };
        let origin = Origin { place: &place, seq: 1, at: Clock::System.now() };
        let event = message::decode(&publication.message, &origin, None).unwrap_or_else(|error| panic!("{error}"));
        let shared = Shared {
            queue: QueueName::new(&self.queue).expect(named),
            job: JobName::new(&self.job).expect(named),
            attempts: self.of,
            client,
            state: Arc::new(self.state.clone()),
        };
        Context::new(
            event,
            message::Attempt::new(self.number).expect("attempts are counted from 1"),
            self.time_left.map(|left| tokio::time::Instant::now() + left),
            true,
            Arc::new(shared),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_what_was_asked_for() {
        let plain = Context::test();
        assert_eq!((plain.event_id(), plain.attempt(), plain.attempts_allowed()), ("test", 1, 20));
        assert!(!plain.is_cancelled() && plain.deadline().is_none() && plain.try_state::<u8>().is_none());

        let attempt = Attempt::new().event_id("e").topic("t").queue("q").job("j").number(3).of(5).key("k");
        let attempt = attempt.header("x-team", "billing").data(&[1]).state(7_u8);
        let cx = attempt.context();
        assert_eq!((cx.event_id(), cx.topic(), cx.queue().as_str(), cx.job().as_str()), ("e", Some("t"), "q", "j"));
        assert_eq!((cx.attempt(), cx.attempts_allowed(), cx.key()), (3, 5, Some(&b"k"[..])));
        assert_eq!((cx.event().headers.get("x-team"), &cx.event().data[..]), (Some(&b"billing"[..]), &b"[1]"[..]));
        assert_eq!(*cx.state::<u8>(), 7);
        attempt.cancel();
        assert!(cx.is_cancelled());
    }
}
