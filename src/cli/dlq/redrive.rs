//! `dlq replay` and `dlq purge`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::target::{Target, Words};
use super::{Selectors, list};
use crate::broker::redrive::{Deed, Ended, Progress, Rate, Selection, carry_out};
use crate::broker::{DeadLetters, Mend, Role};
use crate::cli::Done;
use crate::cli::fault::{FAILED, Fault, INTERRUPTED};
use crate::cli::input;
use crate::cli::output;
use crate::cli::session::{Connection, Session, did_you_mean};
use crate::cli::table::{counted, grouped};
use crate::message::{JobName, QueueName};
use crate::time::Clock;

/// What both verbs take.
#[derive(Args, Debug)]
struct Common {
    #[command(flatten)]
    words: Words,
    /// Every dead letter of the queue
    #[arg(long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    selectors: Selectors,
}

/// Flags of `dlq replay`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass dlq replay invoice 7Fq2
  windlass dlq replay invoice --all --rate 20/s
  windlass dlq replay invoice --error 'no report' --since 2h --dry-run
  windlass dlq replay invoice 7Fq2 --body @mended.json
  windlass dlq list --json invoice | jq 'select(.attempts<3)' -c | windlass dlq replay invoice -

What is replayed is decided once, at the start. Each letter is stored on its queue under the same
event id, at attempt 1, before it is removed. After a kill, run the same command again: what was
replayed is not replayed twice.")]
pub struct ReplayArguments {
    #[command(flatten)]
    common: Common,
    /// How fast: 100/s, 30/m, or none
    #[arg(long, value_name = "RATE", default_value = "100/s", value_parser = parse_rate)]
    rate: RateChoice,
    /// Another body, for one letter
    #[arg(long, value_name = "@FILE", value_parser = input::file_of)]
    body: Option<PathBuf>,
    /// Another job, for one letter
    #[arg(long, value_name = "JOB")]
    as_job: Option<JobName>,
    /// Another queue, for one letter
    #[arg(long, value_name = "QUEUE")]
    to: Option<QueueName>,
}

/// Flags of `dlq purge`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass dlq purge invoice 7Fq2 --yes
  windlass dlq purge invoice --reason expired --until 30d
  windlass dlq purge invoice --all --dry-run

It asks before it removes anything, or needs --yes. `windlass dlq export` keeps a copy.")]
pub struct PurgeArguments {
    #[command(flatten)]
    common: Common,
}

/// A rate, or none.
#[derive(Clone, Copy, Debug)]
struct RateChoice(Option<Rate>);

fn parse_rate(text: &str) -> Result<RateChoice, String> {
    Rate::parse(text).map(RateChoice)
}

/// More than this many are asked about.
const MANY: usize = 1_000;

/// Replays.
pub fn replay(session: Session, arguments: ReplayArguments) -> Done {
    let ReplayArguments { common, rate, body, as_job, to } = arguments;
    let body = body.map(|path| std::fs::read(&path).map_err(|error| Fault::file(&path, &error))).transpose()?;
    session.with_broker(Role::Reader, "dlq replay", async |connection: Connection| {
        let dead = connection.broker.dead_letters();
        let (target, selection) = select(&common, &connection, &*dead).await?;
        let mend = Mend { body: body.map(Into::into), job: as_job, queue: to };
        let mended = mend.body.is_some() || mend.job.is_some() || mend.queue.is_some();
        if mended && target.ids.as_ref().is_none_or(|ids| ids.len() != 1) {
            return Err(Fault::usage("--body, --as-job and --to mend one dead letter: name it by its id"));
        }
        if mended && selection.len() > 1 {
            return Err(Fault::failed(format!(
                "that id names {} dead letters; name one of them by its own id",
                selection.len()
            )));
        }
        if let Some(to) = &mend.queue {
            known_queue(&connection, to).await?;
        }
        if !common.dry_run && !common.yes && selection.len() > MANY {
            ask(&common, &format!("Replay {} of {}?", counted(selection.len() as u64, "dead letter"), target.queue))?;
        }
        carry(&session, &common, &*dead, &selection, &Deed::Replay { rate: rate.0, mend }, "replaying").await
    })
}

/// Purges.
pub fn purge(session: Session, arguments: PurgeArguments) -> Done {
    let common = arguments.common;
    session.with_broker(Role::Reader, "dlq purge", async |connection: Connection| {
        let dead = connection.broker.dead_letters();
        let (target, selection) = select(&common, &connection, &*dead).await?;
        if !common.dry_run && !common.yes && !selection.is_empty() {
            ask(
                &common,
                &format!("Remove {} of {} for good?", counted(selection.len() as u64, "dead letter"), target.queue),
            )?;
        }
        carry(&session, &common, &*dead, &selection, &Deed::Purge, "removing").await
    })
}

fn ask(common: &Common, question: &str) -> Result<(), Fault> {
    if common.words.reads_stdin() {
        return Err(Fault::usage(format!("{question} Stdin held the ids, so nobody can answer: say --yes")));
    }
    output::confirm(question)
}

async fn select(
    common: &Common,
    connection: &Connection,
    dead: &dyn DeadLetters,
) -> Result<(Target, Selection), Fault> {
    let selector = common.selectors.selector();
    let target = common.words.resolve(connection).await?;
    match (&target.ids, common.all) {
        (None, false) if selector.is_empty() => {
            return Err(Fault::usage("which dead letters? Name ids, a selector (--error, --since ..), or --all"));
        }
        (Some(_), true) => return Err(Fault::usage("--all and ids exclude each other")),
        _ => {}
    }
    let selection = Selection::decide(dead, &target.queue, target.ids.clone(), &selector).await?;
    Ok((target, selection))
}

async fn known_queue(connection: &Connection, queue: &QueueName) -> Result<(), Fault> {
    let known = connection.broker.inspect().queues().await?;
    if connection.config.queues.contains_key(queue) || known.iter().any(|known| known.name == *queue) {
        return Ok(());
    }
    let near = did_you_mean(queue.as_str(), known.iter().map(|known| known.name.as_str()));
    Err(Fault::failed(format!("no queue {queue}{near}")))
}

/// How many letters a dry run shows.
const EXAMPLES: usize = 20;

async fn carry(
    session: &Session,
    common: &Common,
    dead: &dyn DeadLetters,
    selection: &Selection,
    deed: &Deed,
    doing: &str,
) -> Done {
    let unresolved = &selection.unresolved;
    for (id, several) in &unresolved.ambiguous {
        eprintln!("error: {several} dead letters begin with {id}; type more of it");
    }
    for id in unresolved.missing.iter().take(EXAMPLES) {
        eprintln!("error: no dead letter {id} in queue {}", selection.queue());
    }
    let unknown = unresolved.missing.len() + unresolved.ambiguous.len();
    let mut out = session.output();
    if common.dry_run {
        let progress = Progress { selected: selection.len() as u64, dry_run: true, ..Progress::default() };
        if session.json() {
            out.json(&progress)?;
        } else {
            let mut table = list::table(false);
            let mut letters = selection.letters(dead).take(EXAMPLES);
            let now = Clock::System.now();
            while let Some(letter) = letters.next().await.transpose()? {
                list::row(&mut table, &letter, false, now);
            }
            if !selection.is_empty() {
                out.line(table)?;
            }
            session.note(format_args!("dry run: {} selected, nothing done", grouped(progress.selected)));
        }
        out.flush()?;
        return Ok(ExitCode::from(if unknown > 0 { FAILED } else { 0 }));
    }
    let stop = CancellationToken::new();
    let ended = {
        let bar = output::progress(selection.len() as u64, doing, session.global.quiet);
        let mut report = |progress: &Progress| bar.set_position(progress.done + progress.failed);
        let work = carry_out(dead, selection, deed, &stop, &mut report);
        tokio::pin!(work);
        let ended = loop {
            tokio::select! {
                // The work first: an interruption only asks it to end after its batch.
                biased;
                ended = &mut work => break ended,
                _ = tokio::signal::ctrl_c(), if !stop.is_cancelled() => stop.cancel(),
            }
        };
        bar.finish_and_clear();
        ended
    };
    if session.json() {
        out.json(&ended.progress)?;
    } else {
        let Progress { selected, done, failed, .. } = ended.progress;
        out.line(format_args!("selected {}, done {}, failed {}", grouped(selected), grouped(done), grouped(failed)))?;
    }
    out.flush()?;
    verdict(session, ended, unknown)
}

/// What went wrong, and the exit code.
fn verdict(session: &Session, ended: Ended, unknown: usize) -> Done {
    if ended.gone > 0 {
        session.note(format_args!("{} were gone already: somebody else replayed or removed them", grouped(ended.gone)));
    }
    for (id, error) in &ended.failures {
        eprintln!("error: {id}: {error}");
    }
    if let Some(error) = ended.stopped {
        return Err(error.into());
    }
    if ended.interrupted {
        session.note("interrupted; run the same command again to go on");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::from(if ended.progress.failed > 0 || unknown > 0 { FAILED } else { 0 }))
}
