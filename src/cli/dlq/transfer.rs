//! `dlq export` and `dlq import`: dead letters whole, one JSON object a line.

use std::process::ExitCode;

use clap::Args;
use futures_util::StreamExt;

use super::{MaybeQueue, Selectors, target};
use crate::broker::letter::Line;
use crate::broker::shape::Imported;
use crate::broker::{DeadLetters, Letter, Role};
use crate::cli::Done;
use crate::cli::fault::{FAILED, Fault, UNAVAILABLE};
use crate::cli::input::{self, Input};
use crate::cli::output::{self, shown};
use crate::cli::session::{Connection, Session, did_you_mean};
use crate::cli::table::grouped;
use crate::message::QueueName;
use crate::time::Clock;

/// Flags of `dlq export`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass dlq export > letters.ndjson
  windlass dlq export invoice --reason permanent > invoice.ndjson
  windlass dlq export invoice | jq -r .body

The oldest comes first. A header that is not UTF-8 is base64 and its name ends in :base64; such a
body is body_base64.")]
pub struct ExportArguments {
    #[command(flatten)]
    queue: MaybeQueue,
    #[command(flatten)]
    selectors: Selectors,
}

/// Flags of `dlq import`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass dlq import invoice @invoice.ndjson
  windlass --broker sqlite://old.db dlq export invoice | windlass dlq import invoice -

One whose id exists is replaced, so that an import may be run again.")]
pub struct ImportArguments {
    /// The queue that they become dead letters of
    queue: QueueName,
    /// What `dlq export` wrote
    #[arg(value_name = "@FILE|-")]
    data: String,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Exports.
pub fn export(session: Session, arguments: ExportArguments) -> Done {
    session.with_broker(Role::Reader, "dlq export", async |connection: Connection| {
        let selector = arguments.selectors.selector();
        let dead = connection.broker.dead_letters();
        let mut letters = dead.list(selector.query(arguments.queue.name(), true));
        let mut out = session.output();
        let bar = output::counter("exported", session.global.quiet);
        let mut left = selector.limit.unwrap_or(usize::MAX);
        let mut is_empty = true;
        while left > 0
            && let Some(letter) = letters.next().await.transpose()?
        {
            if selector.matches(&letter) {
                out.json(&Line::from(&letter))?;
                bar.inc(1);
                (left, is_empty) = (left - 1, false);
            }
        }
        if is_empty {
            target::check_known(&connection, arguments.queue.name()).await?;
        }
        out.flush()?;
        bar.finish_and_clear();
        Ok(ExitCode::SUCCESS)
    })
}

/// How many letters are given to the broker at once.
const BATCH: usize = 100;

/// Imports.
pub fn import(session: Session, arguments: ImportArguments) -> Done {
    let input = match Input::of(Some(&arguments.data))? {
        Input::Data(_) => return Err(Fault::usage(format!("expected @FILE or -, found {:?}", arguments.data))),
        input => input,
    };
    let reader = input.open()?;
    session.with_broker(Role::Reader, "dlq import", async |connection: Connection| {
        let queue = &arguments.queue;
        let known = connection.broker.inspect().queues().await?;
        if !connection.config.queues.contains_key(queue) && !known.iter().any(|known| known.name == *queue) {
            let near = did_you_mean(queue.as_str(), known.iter().map(|known| known.name.as_str()));
            return Err(Fault::failed(format!("no queue {queue} in the configuration or at the broker{near}")));
        }
        let dead = connection.broker.dead_letters();
        let now = Clock::System.now();
        let bar = output::counter("imported", session.global.quiet);
        let mut counts = Imported { dry_run: arguments.dry_run, ..Imported::default() };
        let mut stopped = None;
        let mut batch: Vec<(u64, Letter)> = Vec::new();
        let mut lines = input::lines(reader);
        loop {
            let line =
                lines.next().transpose().map_err(|error| Fault::failed(format!("reading the letters: {error}")))?;
            let last = line.is_none();
            if let Some((number, line)) = line {
                counts.selected += 1;
                match read(&line, queue, now) {
                    Ok(letter) => batch.push((number, letter)),
                    Err(error) => {
                        counts.failed += 1;
                        eprintln!("error: line {number}: {}", shown(&error, false));
                    }
                }
            }
            if batch.len() == BATCH || last {
                if !arguments.dry_run {
                    stopped = store(&*dead, &batch, &mut counts).await;
                }
                bar.inc(batch.len() as u64);
                batch.clear();
            }
            if last || stopped.is_some() {
                break;
            }
        }
        bar.finish_and_clear();
        let mut out = session.output();
        if session.json() {
            out.json(&counts)?;
        } else {
            let Imported { selected, done, failed, .. } = counts;
            out.line(format_args!("read {}, stored {}, failed {}", grouped(selected), grouped(done), grouped(failed)))?;
        }
        out.flush()?;
        match stopped {
            Some(fault) => Err(fault),
            None => Ok(ExitCode::from(if counts.failed > 0 { FAILED } else { 0 })),
        }
    })
}

fn read(line: &[u8], queue: &QueueName, now: crate::time::Timestamp) -> Result<Letter, String> {
    let line: Line = serde_json::from_slice(line).map_err(|error| unreadable(&error))?;
    line.into_letter(queue, now)
}

/// Of one line, so that only the column says where.
fn unreadable(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    if error.is_data() {
        format!("no line of `dlq export`: {what} (column {})", error.column())
    } else {
        format!("no line of `dlq export`: not JSON from column {} on ({what})", error.column())
    }
}

/// Stores a batch; a fault where going on is of no use.
async fn store(dead: &dyn DeadLetters, batch: &[(u64, Letter)], counts: &mut Imported) -> Option<Fault> {
    if batch.is_empty() {
        return None;
    }
    let letters: Vec<Letter> = batch.iter().map(|(_, letter)| letter.clone()).collect();
    let mut stopped = None;
    for ((number, _), result) in batch.iter().zip(dead.import(&letters).await) {
        match result {
            Ok(()) => counts.done += 1,
            Err(error) => {
                counts.failed += 1;
                let code = error.exit_code();
                if code >= UNAVAILABLE {
                    stopped = Some(Fault::new(code, format!("line {number}: {error}; run it again to go on")));
                } else {
                    eprintln!("error: line {number}: {error}");
                }
            }
        }
    }
    stopped
}
