//! What jobs sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde::Serialize;

use crate::broker::{
    Broker, DeadLetters, Destination, Error, Inspect, Opened, Publication, Published, Publisher, Queue,
};
use crate::message::Binding;
use crate::time::Clock;

/// What a job published or enqueued.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    /// The topic of an event; `None` of an enqueued job.
    pub topic: Option<String>,
    /// The queue of an enqueued job; `None` of an event.
    pub queue: Option<String>,
    /// The job that was named, if one was.
    pub job: Option<String>,
    /// The event's id.
    pub id: String,
    /// The ordering key.
    pub key: Option<String>,
    /// How much later an enqueued job is due, if it is for later.
    pub delay: Option<Duration>,
    /// Its data: JSON, or text where it is none.
    pub data: serde_json::Value,
}

impl Sent {
    fn new(publication: &Publication, clock: &Clock) -> Self {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let body = publication.message.body.clone().unwrap_or_default();
        let data = match serde_json::from_slice(&body) {
            Ok(data) => data,
            Err(_) if body.is_empty() => serde_json::Value::Null,
            Err(_) => text(&body).into(),
        };
        let (topic, queue, job, delay) = match &publication.destination {
            Destination::Topic(topic) => (Some(topic.to_string()), None, None, None),
            Destination::Queue { queue, job, not_before } => {
                let delay = not_before.map(|due| clock.now().until(due));
                (None, Some(queue.to_string()), job.as_ref().map(ToString::to_string), delay)
            }
        };
        let key = publication.message.key.as_ref().map(text);
        Self { topic, queue, job, id: publication.id.clone(), key, delay, data }
    }
}

/// Writes down what is sent through it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Outbox {
    behind: Option<Arc<dyn Publisher>>,
    clock: Clock,
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl Outbox {
    /// In front of a broker; `None`: everything is taken, and goes nowhere.
    pub(super) fn before(behind: Option<Arc<dyn Publisher>>, clock: Clock) -> Self {
        Self { behind, clock, sent: Arc::default() }
    }

    /// The same broker, whose workers' jobs send through here.
    pub(super) fn watching(&self, broker: Arc<dyn Broker>) -> Arc<dyn Broker> {
        Arc::new(Watched { broker, outbox: self.clone() })
    }

    pub(super) fn sent(&self) -> Vec<Sent> {
        self.sent.lock().clone()
    }

    #[track_caller]
    pub(super) fn assert_enqueued<T: Serialize + ?Sized>(&self, queue: &str, job: &str, data: &T) {
        let fits = |sent: &Sent| sent.queue.as_deref() == Some(queue) && sent.job.as_deref() == Some(job);
        self.assert(&format!("job {job} was enqueued for queue {queue}"), fits, data);
    }

    #[track_caller]
    pub(super) fn assert_published<T: Serialize + ?Sized>(&self, topic: &str, data: &T) {
        self.assert(&format!("event was published to {topic}"), |sent| sent.topic.as_deref() == Some(topic), data);
    }

    #[track_caller]
    fn assert<T: Serialize + ?Sized>(&self, what: &str, fits: impl Fn(&Sent) -> bool, data: &T) {
        let data = serde_json::to_value(data).unwrap_or_else(|error| panic!("the data cannot be written: {error}"));
        let sent = self.sent.lock();
        let found = sent.iter().any(|sent| fits(sent) && sent.data == data);
        let listed: String = sent.iter().map(|sent| format!("\n  {sent:?}")).collect();
        let listed = if listed.is_empty() { " nothing" } else { &listed };
        assert!(found, "no {what} with {data}; the jobs sent:{listed}");
    }
}

impl Publisher for Outbox {
    fn binding(&self) -> Binding {
        self.behind.as_ref().map_or(Binding::Dash, |behind| behind.binding())
    }

    fn publish(&self, mut batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Published, Error>>> {
        async move {
            let sent: Vec<Sent> = batch.iter().map(|publication| Sent::new(publication, &self.clock)).collect();
            // A test need not have the queues that hear what its job publishes.
            batch.iter_mut().for_each(|publication| publication.allow_unheard = true);
            let answers = match &self.behind {
                Some(behind) => behind.publish(batch).await,
                None => batch.iter().map(|_| Ok(Published { queues: Some(1), id: None })).collect(),
            };
            let stored = sent.into_iter().zip(&answers).filter(|(_, answer)| answer.is_ok());
            self.sent.lock().extend(stored.map(|(sent, _)| sent));
            answers
        }
        .boxed()
    }
}

/// A broker that gives out the outbox as its publisher.
struct Watched {
    broker: Arc<dyn Broker>,
    outbox: Outbox,
}

impl Broker for Watched {
    fn address(&self) -> &str {
        self.broker.address()
    }

    fn connected(&self) -> bool {
        self.broker.connected()
    }

    fn open<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<Opened, Error>> {
        self.broker.open(queue)
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(self.outbox.clone())
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        self.broker.dead_letters()
    }

    fn inspect(&self) -> Arc<dyn Inspect> {
        self.broker.inspect()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.broker.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::message::Namespace;

    #[tokio::test]
    async fn what_was_sent_is_told_and_only_that_is_asserted() {
        let outbox = Outbox::before(None, Clock::System);
        let client = Client::new(Arc::new(outbox.clone()), Namespace::new("test").expect("fits"));
        client.publish("t", &[1, 2]).id("a").key("k").await.expect("taken");
        client.enqueue("q", "j", "x").id("b").in_(Duration::from_secs(60)).await.expect("taken");
        let sent = outbox.sent();
        assert_eq!((sent[0].topic.as_deref(), sent[0].key.as_deref(), &sent[0].id[..]), (Some("t"), Some("k"), "a"));
        assert_eq!((sent[1].queue.as_deref(), sent[1].job.as_deref()), (Some("q"), Some("j")));
        assert!(sent[1].delay.is_some_and(|delay| delay > Duration::from_secs(58)));
        outbox.assert_published("t", &[1, 2]);
        outbox.assert_enqueued("q", "j", "x");
        let missing = |check: &dyn Fn()| {
            let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).expect_err("it must not hold");
            panic.downcast_ref::<String>().cloned().unwrap_or_default()
        };
        for told in [missing(&|| outbox.assert_enqueued("q", "j", "y")), missing(&|| outbox.assert_published("u", "x"))]
        {
            assert!(told.starts_with("no ") && told.contains("\"a\"") && told.contains("\"b\""), "{told}");
        }
    }
}
