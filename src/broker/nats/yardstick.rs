//! Raw async-nats loops, as plain as they can be: one inbox, pull requests of half the credit, and acknowledgements
//! confirmed one by one through the same inbox, or plain.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use serde_json::json;

use super::address::Address;
use super::api::Api;
use super::link::Link;
use crate::broker::yardstick::{Seen, Yardstick};
use crate::broker::{Error, Options};

/// Messages that the server may send before it is asked again.
const CREDIT: usize = 1_000;
/// Acknowledgements that wait for their confirmation.
const WINDOW: usize = 256;
/// A server that sends nothing for so long has lost something.
const SILENCE: Duration = Duration::from_secs(30);

/// See the module's documentation.
pub struct NatsYardstick {
    address: String,
    shown: String,
    api: Api,
}

impl NatsYardstick {
    /// Connects.
    pub async fn connect(address: &str, options: &Options) -> Result<Self, Error> {
        let shown = crate::broker::shown_address(address);
        let link = Link::connect(&Address::parse(address)?, &shown, options).await?;
        Ok(Self { address: address.to_owned(), shown, api: Api { link } })
    }

    fn link(&self) -> &Arc<Link> {
        &self.api.link
    }

    fn gone(&self, error: impl std::fmt::Display) -> Error {
        Error::Unavailable(format!("{}: {error}", self.shown))
    }

    /// All streams whose names begin so.
    async fn streams(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        loop {
            let page = self.api.call("STREAM.NAMES", &json!({ "offset": names.len() })).await;
            let page = page.map_err(|error| error.into_broker("list the streams"))?;
            let found: Vec<String> = page["streams"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|name| Some(name.as_str()?.to_owned()))
                .collect();
            let total = page["total"].as_u64().unwrap_or(0);
            let ended = found.is_empty();
            names.extend(found);
            if ended || names.len() as u64 >= total {
                names.retain(|name| name.starts_with(prefix));
                return Ok(names);
            }
        }
    }

    async fn drain(&self, topic: &str, confirmed: bool, count: usize, seen: Seen<'_>) -> Result<(), Error> {
        let (stream, client) = (stream(topic), self.link().client());
        let durable = if confirmed { "raw-confirmed" } else { "raw-plain" };
        let consumer = json!({ "stream_name": stream, "action": "create", "config": {
            "durable_name": durable, "ack_policy": "explicit", "deliver_policy": "all", "max_ack_pending": 100_000,
            "ack_wait": 30_000_000_000_u64,
        }});
        let made = self.api.call(&format!("CONSUMER.CREATE.{stream}.{durable}"), &consumer).await;
        made.map_err(|error| error.into_broker("make a consumer"))?;
        let inbox = client.new_inbox();
        let mut replies = client.subscribe(format!("{inbox}.*")).await.map_err(|error| self.gone(error))?;
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}");
        let (pull, confirmation) = (format!("{inbox}.p"), format!("{inbox}.a"));
        let (mut credit, mut came, mut flying, mut done) = (0, 0, 0, 0);
        let mut waiting = VecDeque::new();
        while done < count {
            if credit <= CREDIT / 2 && came < count {
                let batch = CREDIT - credit;
                // Without an end: what is asked for is there.
                let body = format!(r#"{{"batch":{batch}}}"#);
                let asked = client.publish_with_reply(next.clone(), pull.clone(), body.into()).await;
                asked.map_err(|error| self.gone(error))?;
                credit += batch;
            }
            let message = match replies.next().now_or_never() {
                Some(message) => message,
                // A timer for each message would be a tenth of what the loop costs.
                None => tokio::time::timeout(SILENCE, replies.next()).await.ok().flatten(),
            };
            let message = message.ok_or_else(|| self.gone("the server sends nothing more"))?;
            match message.reply {
                Some(reply) => {
                    credit = credit.saturating_sub(1);
                    came += 1;
                    seen(&message.payload);
                    if confirmed {
                        waiting.push_back(reply);
                    } else {
                        client.publish(reply, "+ACK".into()).await.map_err(|error| self.gone(error))?;
                        done += 1;
                    }
                }
                None if message.subject.as_str() == confirmation => {
                    flying -= 1;
                    done += 1;
                }
                None => return Err(self.gone(message.description.as_deref().unwrap_or("the pull request ended"))),
            }
            while flying < WINDOW
                && let Some(reply) = waiting.pop_front()
            {
                let sent = client.publish_with_reply(reply, confirmation.clone(), "+ACK".into()).await;
                sent.map_err(|error| self.gone(error))?;
                flying += 1;
            }
        }
        client.flush().await.map_err(|error| self.gone(error))
    }
}

/// A stream's name has no dots.
fn stream(topic: &str) -> String {
    topic.replace('.', "-")
}

impl Yardstick for NatsYardstick {
    fn loops(&self) -> &'static [&'static str] {
        &["async-nats, confirmed one by one", "async-nats, plain acknowledgements"]
    }

    fn address(&self, _: &str) -> String {
        self.address.clone()
    }

    fn create<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let name = stream(topic);
            let config = json!({
                "name": name, "subjects": [topic], "retention": "limits", "storage": "file", "num_replicas": 1,
                "discard": "new",
            });
            let made = self.api.call(&format!("STREAM.CREATE.{name}"), &config).await;
            made.map(drop).map_err(|error| error.into_broker("make a stream"))
        })
    }

    fn consume<'a>(
        &'a self,
        topic: &'a str,
        index: usize,
        count: usize,
        seen: Seen<'a>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.drain(topic, index == 0, count, seen))
    }

    fn runs<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, Error>> {
        Box::pin(async move {
            // `RUN-rN`, `RUN_work`, `RUN_dead`, `RUN_events`.
            let run = |name: String| match name.rsplit_once('_').or_else(|| name.rsplit_once("-r")) {
                Some((run, _)) => run.to_owned(),
                None => name,
            };
            let runs: BTreeSet<String> = self.streams(prefix).await?.into_iter().map(run).collect();
            Ok(runs.into_iter().collect())
        })
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            for name in self.streams(&stream(name)).await? {
                let removed = self.api.call(&format!("STREAM.DELETE.{name}"), &serde_json::Value::Null).await;
                removed.map_err(|error| error.into_broker("remove a stream"))?;
            }
            Ok(())
        })
    }
}
