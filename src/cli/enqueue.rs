//! `enqueue QUEUE [DATA | @FILE | -]`

use std::process::ExitCode;

use clap::Args;

use super::Done;
use super::event::{self, Flags, Sender};
use super::fault::Fault;
use super::publish::count;
use super::session::{Connection, Session, did_you_mean};
use super::table::counted;
use super::when::rfc3339;
use crate::broker::{Role, shape};
use crate::client::Client;
use crate::message::{JobName, QueueName};
use crate::time::{Clock, Timestamp, parse_duration};

/// Flags of `enqueue`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass enqueue invoice '{\"report_id\":17}'
  windlass enqueue invoice @report.json --in 10m
  windlass enqueue invoice --empty --at 2026-12-01T06:00:00Z --job month_end

The queue must be known to the configuration or to the broker. The id of each job is printed once
the broker has confirmed it.")]
pub struct Arguments {
    /// The queue
    queue: QueueName,
    /// The body, @FILE, or - for stdin; without it stdin is read, unless it is a terminal
    #[arg(value_name = "DATA|@FILE|-")]
    data: Option<String>,
    /// The job to run; else the configuration's for this queue, else whatever the worker's says
    #[arg(long, value_name = "JOB")]
    job: Option<JobName>,
    /// Not before so long from now
    #[arg(long = "in", value_name = "DURATION", value_parser = parse_duration)]
    delay: Option<std::time::Duration>,
    /// Not before this time, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = rfc3339, conflicts_with = "delay")]
    at: Option<Timestamp>,
    #[command(flatten)]
    flags: Flags,
}

/// Enqueues.
pub fn run(session: Session, arguments: Arguments) -> Done {
    arguments.flags.check(false)?;
    let bodies = event::bodies(arguments.data.as_deref(), &arguments.flags)?;
    let role = if arguments.flags.dry_run { Role::Reader } else { Role::Producer };
    session.with_broker(role, "enqueue", async |connection: Connection| {
        let queue = &arguments.queue;
        let configured = connection.config.queues.get(queue);
        if configured.is_none() {
            let known = connection.broker.inspect().queues().await?;
            if !known.iter().any(|known| known.name == *queue) {
                let names = known.iter().map(|known| known.name.as_str());
                let near = did_you_mean(queue.as_str(), names.chain(connection.config.queues.keys().map(QueueName::as_str)));
                return Err(Fault::failed(format!(
                    "no queue {queue} in the configuration or at the broker{near}; `windlass queues list` shows those that are known"
                )));
            }
        }
        let job = arguments.job.clone().or_else(|| configured.map(|configured| configured.job.clone()));
        let now = Clock::System.now();
        let not_before = arguments.at.or_else(|| arguments.delay.map(|delay| now.after(delay)));
        if arguments.flags.dry_run {
            let count = count(bodies, arguments.flags.skip)?;
            session.note(format_args!("dry run: {} would be enqueued for {queue}", counted(count, "job")));
            return Ok(ExitCode::SUCCESS);
        }
        let mut out = session.output();
        let publisher = connection.broker.publisher();
        let client = Client::new(publisher.clone(), connection.config.namespace.clone());
        let compose = |body: Vec<u8>| {
            let job = job.as_ref().map(JobName::as_str);
            let mut draft = arguments.flags.apply(client.enqueue_bytes(queue.as_str(), job, body));
            if let Some(not_before) = not_before {
                draft = draft.at(not_before);
            }
            draft.publication()
        };
        let sender = Sender { publisher, compose: &compose };
        event::send(&sender, bodies, arguments.flags.skip, &mut out, session.global.quiet, |out, publication, _| {
            if session.json() {
                let not_before = not_before.map(Timestamp::to_rfc3339);
                out.json(&shape::Enqueued { id: publication.id.clone(), queue: queue.to_string(), not_before })
            } else {
                out.line(&publication.id)
            }
        })
        .await?;
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    })
}
