//! `publish TOPIC [DATA | @FILE | -]`

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;

use super::Done;
use super::event::{self, Bodies, Flags, Sender};
use super::fault::{FAILED, Fault};
use super::session::{Connection, Session, did_you_mean};
use super::table::counted;
use crate::broker::Role;
use crate::broker::shape;
use crate::client::Client;
use crate::message::Topic;

/// Flags of `publish`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass publish reports.finalized '{\"report_id\":17}'
  windlass publish reports.finalized @report.json --key patient-9 -H 'x-team: billing'
  jq -c '.[]' reports.json | windlass publish reports.finalized - --lines
  windlass publish reports.finalized --empty --id nightly-2026-11-21

The id of each event is printed once the broker has confirmed it.")]
pub struct Arguments {
    /// The topic
    topic: Topic,
    /// The body, @FILE, or - for stdin; without it stdin is read, unless it is a terminal
    #[arg(value_name = "DATA|@FILE|-")]
    data: Option<String>,
    #[command(flatten)]
    flags: Flags,
    /// CloudEvents type; else the topic
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// CloudEvents source; else windlass://NAMESPACE
    #[arg(long, value_name = "URI")]
    source: Option<String>,
    /// The bytes as they are, without attributes
    #[arg(long, conflicts_with_all = ["id", "kind", "source"])]
    bare: bool,
    /// SQLite: store it although no queue hears the topic
    #[arg(long)]
    allow_unheard: bool,
}

/// Publishes.
pub fn run(session: Session, arguments: Arguments) -> Done {
    arguments.flags.check(arguments.bare)?;
    let bodies = event::bodies(arguments.data.as_deref(), &arguments.flags)?;
    if let Bodies::One(body) = &bodies
        && let Some(doubt) = event::doubt(body, &arguments.flags, arguments.bare)
    {
        session.note(doubt);
    }
    if arguments.flags.dry_run {
        return dry_run(&session, &arguments, bodies);
    }
    session.with_broker(Role::Producer, "publish", async |connection: Connection| {
        let mut out = session.output();
        let publisher = connection.broker.publisher();
        let client = Client::new(publisher.clone(), connection.config.namespace.clone());
        let compose = |body: Vec<u8>| {
            let mut draft = arguments.flags.apply(client.publish_bytes(arguments.topic.as_str(), body));
            if let Some(kind) = &arguments.kind {
                draft = draft.kind(kind);
            }
            if let Some(source) = &arguments.source {
                draft = draft.source(source);
            }
            if arguments.bare {
                draft = draft.bare();
            }
            if arguments.allow_unheard {
                draft = draft.allow_unheard();
            }
            draft.publication()
        };
        let sender = Sender { publisher, compose: &compose };
        event::send(
            &sender,
            bodies,
            arguments.flags.skip,
            &mut out,
            session.global.quiet,
            |out, publication, published| {
                // A bare event gets its id from where it lies; what no queue hears lies nowhere.
                let id = if arguments.bare { published.id.as_deref() } else { Some(publication.id.as_str()) };
                if session.json() {
                    out.json(&shape::Published {
                        id: id.map(str::to_owned),
                        topic: arguments.topic.to_string(),
                        queues: published.queues,
                    })
                } else {
                    out.line(id.unwrap_or("-"))
                }
            },
        )
        .await?;
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Says who would hear it. Creates nothing.
fn dry_run(session: &Session, arguments: &Arguments, bodies: Bodies) -> Done {
    let count = count(bodies, arguments.flags.skip)?;
    session.with_broker(Role::Reader, "publish", async |connection: Connection| {
        let known = connection.broker.inspect().queues().await?;
        let topic = arguments.topic.as_str();
        // Those of the configuration are made known by publishing.
        let configured = connection.config.queues.iter().map(|(name, queue)| {
            (name.as_str(), queue.topics.iter().map(crate::message::Topic::as_str).collect::<Vec<_>>())
        });
        let mut queues: BTreeMap<&str, Vec<&str>> = known
            .iter()
            .map(|queue| (queue.name.as_str(), queue.topics.iter().map(String::as_str).collect()))
            .collect();
        queues.extend(configured);
        // Wildcards are the broker's to match.
        let exact = !connection.config.broker.starts_with("nats") && !connection.config.broker.starts_with("tls");
        let hearing = queues.values().filter(|topics| topics.contains(&topic)).count();
        let heard_by = exact.then_some(u32::try_from(hearing).unwrap_or(u32::MAX));
        if exact && hearing == 0 && !arguments.allow_unheard {
            let near = did_you_mean(topic, queues.into_values().flatten());
            return Err(Fault::new(
                FAILED,
                format!("no queue hears topic {topic:?}{near}; --allow-unheard stores it all the same"),
            ));
        }
        session.note(format_args!("dry run: {} would be published to {topic}", counted(count, "event")));
        if session.json() {
            let mut out = session.output();
            out.json(&shape::Published { id: arguments.flags.id.clone(), topic: topic.to_owned(), queues: heard_by })?;
            out.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// How many events there would be.
pub fn count(bodies: Bodies, skip: u64) -> Result<u64, Fault> {
    match bodies {
        Bodies::One(_) => Ok(1),
        Bodies::Lines(reader) => {
            let mut count = 0;
            for line in super::input::lines(reader) {
                let (number, _) = line.map_err(|error| Fault::failed(format!("reading the data: {error}")))?;
                count += u64::from(number > skip);
            }
            Ok(count)
        }
    }
}
