//! `status [QUEUE].. [--watch[=2s]] [--fail-if CONDITIONS]`

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::Done;
use super::condition::Condition;
use super::fault::{FAILED, Fault};
use super::output::{Output, Paint};
use super::session::{Connection, Session};
use super::shape;
use super::table::{Table, count, number, plain, text};
use super::when;
use crate::broker::{self, QueueStatus, Role};
use crate::message::QueueName;
use crate::time::parse_duration;

/// Flags of `status`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass status
  windlass status invoice --watch
  windlass status --fail-if 'dead>0,age>5m,ready>10000,workers<1'
  windlass status --json | jq '.queues[] | select(.dead > 0)'

Figures of --fail-if: ready, running, retrying, scheduled, dead, age, dead_age, workers, slots.
A `?` (JSON: null) is what this broker cannot know; a condition on it fails.")]
pub struct Arguments {
    /// Only these queues
    #[arg(value_name = "QUEUE")]
    queues: Vec<QueueName>,
    /// Show it again and again, until interrupted (with --fail-if: until a condition holds)
    #[arg(long, value_name = "DURATION", value_parser = parse_interval, num_args = 0..=1, require_equals = true, default_missing_value = "2s")]
    watch: Option<Duration>,
    /// Leave with 1 where one of these holds for one of the queues
    #[arg(long, value_name = "CONDITIONS", value_delimiter = ',')]
    fail_if: Vec<Condition>,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        short if short < Duration::from_millis(100) => Err("expected at least 100ms".to_owned()),
        interval => Ok(interval),
    }
}

/// Shows what the broker holds.
pub fn run(session: Session, arguments: Arguments) -> Done {
    session.with_broker(Role::Reader, "status", async |connection: Connection| {
        let mut out = session.output();
        loop {
            let inspect = connection.broker.inspect();
            let mut queues = inspect.status(&arguments.queues).await?;
            queues.sort_by(|a, b| a.name.cmp(&b.name));
            let status = shape::Status {
                broker: connection.broker.address().to_owned(),
                queues: queues.iter().map(broker::shape::QueueStatus::from).collect(),
            };
            if session.json() {
                out.json(&status)?;
            } else {
                show(&session, &mut out, &status, &queues, arguments.watch)?;
            }
            out.flush()?;
            let conditions = arguments.fail_if.iter();
            let failures: Vec<String> = conditions
                .flat_map(|condition| status.queues.iter().filter_map(|queue| condition.failure(queue)))
                .collect();
            if !failures.is_empty() {
                return Err(Fault::new(FAILED, failures.join("; ")));
            }
            match arguments.watch {
                Some(interval) => tokio::time::sleep(interval).await,
                None => return Ok(ExitCode::SUCCESS),
            }
        }
    })
}

fn show(
    session: &Session,
    out: &mut Output,
    status: &shape::Status,
    queues: &[QueueStatus],
    watch: Option<Duration>,
) -> Result<(), Fault> {
    if watch.is_some() && std::io::stdout().is_terminal() {
        // Home, and clear to the end: the picture is drawn over the last one.
        out.bytes(b"\x1b[H\x1b[2J")?;
    }
    if queues.is_empty() {
        session.note(format_args!(
            "{} knows no queue yet; `windlass run` makes those of the configuration known",
            status.broker
        ));
        return Ok(());
    }
    let mut table = Table::new(&[
        text("QUEUE"),
        number("READY"),
        number("RUNNING"),
        number("RETRYING"),
        number("SCHEDULED"),
        number("DEAD"),
        number("OLDEST"),
        number("WORKERS"),
        number("SLOTS"),
    ]);
    for queue in queues {
        let age = match (queue.oldest_age, queue.ready) {
            (None, _) => ("?".to_owned(), Some(Paint::Dim)),
            (Some(age), _) if age.is_zero() => ("-".to_owned(), Some(Paint::Dim)),
            (Some(age), _) => plain(when::span(age)),
        };
        let workers = match queue.workers {
            Some(0) => ("0".to_owned(), Some(Paint::Yellow)),
            workers => count(workers, None),
        };
        table.row(vec![
            (queue.name.clone(), Some(Paint::Bold)),
            count(queue.ready, None),
            count(queue.running, Some(Paint::Green)),
            count(queue.retrying, Some(Paint::Yellow)),
            count(queue.scheduled, None),
            count(queue.dead, Some(Paint::Red)),
            age,
            workers,
            count(queue.slots, None),
        ]);
    }
    out.line(Paint::Dim.on(&status.broker))?;
    out.line(table)?;
    for queue in queues {
        for note in &queue.notes {
            session.note(format_args!("{}: {note}", queue.name));
        }
    }
    Ok(())
}
