//! `dlq groups [QUEUE]`

use std::process::ExitCode;

use clap::Args;

use super::{MaybeQueue, Selectors, list, target};
use crate::broker::{Role, selector};
use crate::cli::Done;
use crate::cli::output::Paint;
use crate::cli::session::{Connection, Session};
use crate::cli::table::{Table, count, cut, number, plain, text};
use crate::cli::when;
use crate::time::{Clock, Timestamp};

/// Flags of `dlq groups`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass dlq groups
  windlass dlq groups invoice --since 2h
  windlass dlq replay invoice --fingerprint 68fc522700d637ea

Letters of one group share queue, job, reason, error type, and the error's text without numbers,
ids and quoted parts. The largest group comes first; EXAMPLE is the one that failed last.")]
pub struct Arguments {
    #[command(flatten)]
    queue: MaybeQueue,
    #[command(flatten)]
    selectors: Selectors,
}

/// Groups.
pub fn run(session: Session, arguments: Arguments) -> Done {
    session.with_broker(Role::Reader, "dlq groups", async |connection: Connection| {
        let dead = connection.broker.dead_letters();
        let groups = selector::groups(&*dead, arguments.queue.name(), &arguments.selectors.selector()).await?;
        if groups.is_empty() {
            target::check_known(&connection, arguments.queue.name()).await?;
        }
        let mut out = session.output();
        if session.json() {
            for group in &groups {
                out.json(group)?;
            }
        } else if groups.is_empty() {
            session.note("no dead letters");
        } else {
            let now = Clock::System.now();
            let ago = |text: &str| Timestamp::parse_rfc3339(text).map_or_else(String::new, |at| when::ago(at, now));
            let mut table = Table::new(&[
                text("FINGERPRINT"),
                number("COUNT"),
                text("QUEUE"),
                text("JOB"),
                text("REASON"),
                text("FIRST"),
                text("LAST"),
                text("EXAMPLE"),
                cut("ERROR"),
            ]);
            for group in &groups {
                table.row(vec![
                    plain(&group.fingerprint),
                    count(Some(group.count), Some(Paint::Bold)),
                    plain(group.queue.as_str()),
                    plain(&group.job),
                    (group.reason.as_str().to_owned(), list::colour(group.reason)),
                    plain(ago(&group.first)),
                    plain(ago(&group.last)),
                    plain(&group.example),
                    plain(match group.error_type.as_str() {
                        "" => group.error.clone(),
                        kind => format!("{kind}: {}", group.error),
                    }),
                ]);
            }
            out.line(table)?;
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    })
}
