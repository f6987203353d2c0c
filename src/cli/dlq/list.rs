//! `dlq list [QUEUE]`

use std::process::ExitCode;

use clap::Args;
use futures_util::StreamExt;

use super::{MaybeQueue, Selectors, target};
use crate::broker::letter::Row;
use crate::broker::{Letter, Role};
use crate::cli::Done;
use crate::cli::output::Paint;
use crate::cli::session::{Connection, Session};
use crate::cli::table::{Table, cut, grouped, number, plain, text};
use crate::cli::when;
use crate::message::Reason;
use crate::time::{Clock, Timestamp};

/// Flags of `dlq list`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass dlq list
  windlass dlq list invoice --since 2h --error 'no report'
  windlass dlq list invoice --json | jq -r .id | windlass dlq replay invoice -

Shows 100 and how many more there are, unless --limit says otherwise; JSON shows all.")]
pub struct Arguments {
    #[command(flatten)]
    queue: MaybeQueue,
    #[command(flatten)]
    selectors: Selectors,
}

/// How many rows a person gets.
const ROWS: usize = 100;

/// Lists.
pub fn run(session: Session, arguments: Arguments) -> Done {
    session.with_broker(Role::Reader, "dlq list", async |connection: Connection| {
        let selector = arguments.selectors.selector();
        let queue = arguments.queue.name();
        let dead = connection.broker.dead_letters();
        let mut letters = dead.list(selector.query(queue, false));
        let mut out = session.output();
        let now = Clock::System.now();
        let limit = selector.limit.unwrap_or(usize::MAX);
        let shown = selector.limit.unwrap_or(ROWS);
        let mut table = table(queue.is_none());
        let mut found = 0;
        while found < limit
            && let Some(letter) = letters.next().await.transpose()?
        {
            if !selector.matches(&letter) {
                continue;
            }
            found += 1;
            if session.json() {
                out.json(&Row::from(&letter))?;
            } else if found <= shown {
                row(&mut table, &letter, queue.is_none(), now);
            }
        }
        if !session.json() && found > 0 {
            out.line(table)?;
        }
        out.flush()?;
        if found == 0 {
            target::check_known(&connection, queue).await?;
            session.note("no dead letters");
        } else if !session.json() && found > shown {
            session.note(format_args!("{} more; --limit shows them", grouped((found - shown) as u64)));
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The columns of a listing.
pub fn table(with_queue: bool) -> Table {
    let mut columns = vec![text("ID")];
    if with_queue {
        columns.push(text("QUEUE"));
    }
    columns.extend([text("JOB"), text("REASON"), number("ATTEMPTS"), text("FAILED"), cut("EVENT"), cut("ERROR")]);
    Table::new(&columns)
}

/// A letter in a listing.
pub fn row(table: &mut Table, letter: &Letter, with_queue: bool, now: Timestamp) {
    let mut values = vec![(letter.id.clone(), Some(Paint::Bold))];
    if with_queue {
        values.push(plain(letter.queue.as_str()));
    }
    values.extend([
        plain(letter.job.as_str()),
        (letter.reason.as_str().to_owned(), colour(letter.reason)),
        plain(letter.attempts.to_string()),
        plain(when::ago(letter.failure.last, now)),
        plain(letter.event_id.clone().unwrap_or_else(|| "-".to_owned())),
        plain(match letter.failure.error_type.as_str() {
            "" => letter.failure.error.clone(),
            kind => format!("{kind}: {}", letter.failure.error),
        }),
    ]);
    table.row(values);
}

/// A crash is worse than an expiry.
pub fn colour(reason: Reason) -> Option<Paint> {
    match reason {
        Reason::Exhausted | Reason::Permanent | Reason::Crashed => Some(Paint::Red),
        Reason::Malformed | Reason::Unroutable | Reason::Expired => Some(Paint::Yellow),
    }
}
