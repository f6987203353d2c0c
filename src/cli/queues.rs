//! `queues list` and `queues forget QUEUE`

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::Done;
use super::output::Paint;
use super::session::{Connection, Session};
use super::shape::{Forgotten, KnownQueue};
use super::table::{Table, count, counted, cut, number, text};
use crate::broker::Role;
use crate::message::{QueueName, Topic};

/// The verbs of `queues`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the queues that the broker knows of this namespace
    #[command(
        alias = "ls",
        after_help = "\
Examples:
  windlass queues list
  windlass queues list --json | jq -r .name"
    )]
    List,
    /// Remove a queue's consumer and work records; its dead letters stay
    #[command(alias = "rm")]
    Forget(ForgetArguments),
}

/// Flags of `queues forget`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass queues forget old_invoice
  windlass queues forget old_invoice --yes   # although jobs are left: they are gone with it

Not while workers are attached. What is published from then on no longer goes to this queue.")]
struct ForgetArguments {
    /// The queue
    queue: QueueName,
    /// Although jobs are left in it
    #[arg(short, long)]
    yes: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out.
pub fn run(session: Session, arguments: Arguments) -> Done {
    match arguments.verb {
        Verb::List => list(session),
        Verb::Forget(arguments) => forget(session, arguments),
    }
}

fn list(session: Session) -> Done {
    session.with_broker(Role::Reader, "queues list", async |connection: Connection| {
        let mut queues = connection.broker.inspect().queues().await?;
        queues.sort_by(|a, b| a.name.cmp(&b.name));
        let mut out = session.output();
        if session.json() {
            for queue in queues {
                out.json(&KnownQueue { name: queue.name.to_string(), topics: queue.topics, workers: queue.workers })?;
            }
        } else if queues.is_empty() {
            session.note("the broker knows no queue yet; `windlass run` makes those of the configuration known");
        } else {
            let mut table = Table::new(&[text("QUEUE"), number("WORKERS"), cut("TOPICS")]);
            for queue in queues {
                let configured = connection.config.queues.get(&queue.name).map_or(&[][..], |queue| &queue.topics);
                let topics = match (queue.topics.is_empty(), configured) {
                    (true, []) => ("(only what is enqueued)".to_owned(), Some(Paint::Dim)),
                    // The configuration's, and the broker has nothing of it yet.
                    (true, topics) => {
                        let topics: Vec<&str> = topics.iter().map(Topic::as_str).collect();
                        (format!("(none yet; `windlass run` makes it hear {})", topics.join(", ")), Some(Paint::Dim))
                    }
                    (false, _) => (queue.topics.join(", "), None),
                };
                table.row(vec![(queue.name.to_string(), Some(Paint::Bold)), count(queue.workers, None), topics]);
            }
            out.line(table)?;
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    })
}

fn forget(session: Session, arguments: ForgetArguments) -> Done {
    session.with_broker(Role::Reader, "queues forget", async |connection: Connection| {
        let queue = &arguments.queue;
        let inspect = connection.broker.inspect();
        let jobs = if arguments.dry_run {
            // An unknown queue is an error here too.
            let held = inspect.status(std::slice::from_ref(queue)).await?;
            for status in &held {
                let jobs = [status.ready, status.running, status.retrying, status.scheduled];
                let jobs: u64 = jobs.into_iter().flatten().sum();
                if jobs > 0 {
                    session.note(format_args!(
                        "note: {queue} holds {}, which would be lost; without --yes it is not forgotten",
                        counted(jobs, "job")
                    ));
                }
            }
            None
        } else {
            Some(inspect.forget(queue, arguments.yes).await?)
        };
        let mut out = session.output();
        if session.json() {
            out.json(&Forgotten { queue: queue.as_str(), jobs, dry_run: arguments.dry_run })?;
        } else {
            match jobs {
                None => session.note(format_args!("dry run: {queue} would be forgotten")),
                Some(0) => session.note(format_args!("{queue} is forgotten")),
                Some(jobs) => session.note(format_args!("{queue} is forgotten, and {} with it", counted(jobs, "job"))),
            }
        }
        out.flush()?;
        if connection.config.queues.contains_key(queue) {
            session.note(format_args!(
                "note: {queue} is still in the configuration; the next `windlass run`, `publish` or `enqueue` makes it known again"
            ));
        }
        Ok(ExitCode::SUCCESS)
    })
}
