//! `dlq show QUEUE ID [--raw]`

use std::process::ExitCode;

use clap::Args;
use futures_util::StreamExt;

use super::list;
use super::target::Words;
use crate::broker::letter::{HeaderObject, Line, Row};
use crate::broker::redrive::Selection;
use crate::broker::selector::Selector;
use crate::broker::{Letter, Role};
use crate::cli::Done;
use crate::cli::fault::{FAILED, Fault};
use crate::cli::output::{Output, Paint, shown};
use crate::cli::session::{Connection, Session};
use crate::cli::when;
use crate::time::{Clock, Timestamp};

/// Flags of `dlq show`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass dlq show invoice 7Fq2          # the beginning of an id is enough
  windlass dlq show invoice evt-17        # so is an event's id
  windlass dlq show invoice 7Fq2 --raw > body.json
  windlass dlq show invoice 7Fq2 --json   # a line of `windlass dlq export`")]
pub struct Arguments {
    #[command(flatten)]
    words: Words,
    /// Write exactly the bytes that were published, and nothing else
    #[arg(long)]
    raw: bool,
}

/// Shows one.
pub fn run(session: Session, arguments: Arguments) -> Done {
    session.with_broker(Role::Reader, "dlq show", async |connection: Connection| {
        let target = arguments.words.resolve(&connection).await?;
        let Some([id]) = target.ids.as_deref() else {
            return Err(Fault::usage("expected the id of one dead letter; `windlass dlq list` shows them"));
        };
        let dead = connection.broker.dead_letters();
        let selection = Selection::decide(&*dead, &target.queue, Some(vec![id.clone()]), &Selector::default()).await?;
        let letters: Vec<Letter> =
            selection.letters(&*dead).collect::<Vec<_>>().await.into_iter().collect::<Result<_, _>>()?;
        let mut out = session.output();
        let result = match &letters[..] {
            [letter] if arguments.raw => {
                out.bytes(letter.message.body.as_deref().unwrap_or_default())?;
                Ok(ExitCode::SUCCESS)
            }
            [letter] if session.json() => {
                out.json(&Line::from(letter))?;
                Ok(ExitCode::SUCCESS)
            }
            [letter] => {
                show(&mut out, letter)?;
                Ok(ExitCode::SUCCESS)
            }
            [] => Err(match selection.unresolved.ambiguous.first() {
                Some((_, several)) => {
                    let prefixed = several_of(&*dead, &target.queue, id).await?;
                    list_several(&session, &mut out, &prefixed)?;
                    Fault::new(
                        FAILED,
                        format!("{several} dead letters of {} begin with {id}; type more of it", target.queue),
                    )
                }
                None => Fault::failed(format!(
                    "no dead letter {id} in queue {}; `windlass dlq list {}` shows them",
                    target.queue, target.queue
                )),
            }),
            several => {
                list_several(&session, &mut out, several)?;
                Err(Fault::new(
                    FAILED,
                    format!("event {id} has {} dead letters; name one of them by its own id", several.len()),
                ))
            }
        };
        out.flush()?;
        result
    })
}

/// The first letters whose id begins with `id`.
async fn several_of(
    dead: &dyn crate::broker::DeadLetters,
    queue: &crate::message::QueueName,
    id: &str,
) -> Result<Vec<Letter>, Fault> {
    let mut found = Vec::new();
    let mut letters = dead.list(Selector::default().query(Some(queue), false));
    while found.len() < 20
        && let Some(letter) = letters.next().await.transpose()?
    {
        if letter.id.starts_with(id) {
            found.push(letter);
        }
    }
    Ok(found)
}

fn list_several(session: &Session, out: &mut Output, letters: &[Letter]) -> Result<(), Fault> {
    if session.json() {
        return letters.iter().try_for_each(|letter| out.json(&Row::from(letter)));
    }
    let mut table = list::table(false);
    let now = Clock::System.now();
    letters.iter().for_each(|letter| list::row(&mut table, letter, false, now));
    out.line(table)
}

fn show(out: &mut Output, letter: &Letter) -> Result<(), Fault> {
    let row = Row::from(letter);
    let now = Clock::System.now();
    let time = |at: Timestamp| format!("{at} ({})", when::ago(at, now));
    let mut line = |name: &str, value: &str| {
        out.line(format_args!("{}{}", Paint::Bold.on(&format!("{name:<13}")), shown(value, false)))
    };
    line("id", &row.id)?;
    line("queue", &row.queue)?;
    line("event", row.event_id.as_deref().unwrap_or("-"))?;
    line("job", &row.job)?;
    line("topic", row.topic.as_deref().unwrap_or("- (enqueued for this queue)"))?;
    if let Some(key) = &row.key {
        line("key", key)?;
    }
    line("reason", &row.reason)?;
    line("error type", &row.error_type)?;
    line("error", &row.error)?;
    line("attempts", &row.attempts.to_string())?;
    line("first failed", &time(letter.failure.first))?;
    line("last failed", &time(letter.failure.last))?;
    line("fingerprint", &row.fingerprint)?;
    line("replays", &row.replays.to_string())?;
    let (HeaderObject(headers), _) = HeaderObject::of(&letter.message.headers);
    if !headers.is_empty() {
        out.line(format_args!("\n{}", Paint::Bold.on("headers")))?;
        for (name, value) in headers {
            out.line(format_args!("  {}: {}", shown(&name, false), shown(&value, false)))?;
        }
    }
    out.line(format_args!("\n{}", Paint::Bold.on("body")))?;
    let body = letter.message.body.as_deref();
    match body.map(|body| (body, std::str::from_utf8(body))) {
        None => out.line(Paint::Dim.on("  (none)")),
        Some(([], _)) => out.line(Paint::Dim.on("  (empty)")),
        Some((body, Ok(text))) => {
            // JSON is laid out for reading; `--raw` has the bytes.
            let laid_out = serde_json::from_slice::<Box<serde_json::value::RawValue>>(body)
                .ok()
                .and_then(|_| serde_json::from_slice::<serde_json::Value>(body).ok())
                .and_then(|value| serde_json::to_string_pretty(&value).ok());
            out.line(shown(laid_out.as_deref().unwrap_or(text), true))
        }
        Some((body, Err(_))) => {
            out.line(Paint::Dim.on(&format!("  ({} bytes that are not UTF-8; --raw writes them)", body.len())))
        }
    }
}
