//! `dlq ..`: dead letters. This file says what may be typed; each verb is in a file of its own.

mod groups;
mod list;
mod redrive;
mod show;
mod target;
mod transfer;

use clap::{Args, Subcommand};

use super::Done;
use super::session::Session;
use super::when::{When, whole};
use crate::broker::selector::Selector;
use crate::message::{QueueName, Reason};
use crate::time::Clock;

/// The verbs of `dlq`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List dead letters, the newest first
    #[command(alias = "ls")]
    List(list::Arguments),
    /// Group dead letters that failed alike
    Groups(groups::Arguments),
    /// Show one dead letter: why it is here, its headers, its body
    Show(show::Arguments),
    /// Put dead letters back on their queue, the oldest first
    #[command(aliases = ["retry", "redrive"])]
    Replay(redrive::ReplayArguments),
    /// Remove dead letters for good
    #[command(alias = "rm")]
    Purge(redrive::PurgeArguments),
    /// Write dead letters whole, one JSON object a line
    Export(transfer::ExportArguments),
    /// Store exported dead letters; one whose id exists is replaced
    Import(transfer::ImportArguments),
}

/// Carries the verb out.
pub fn run(session: Session, arguments: Arguments) -> Done {
    match arguments.verb {
        Verb::List(arguments) => list::run(session, arguments),
        Verb::Groups(arguments) => groups::run(session, arguments),
        Verb::Show(arguments) => show::run(session, arguments),
        Verb::Replay(arguments) => redrive::replay(session, arguments),
        Verb::Purge(arguments) => redrive::purge(session, arguments),
        Verb::Export(arguments) => transfer::export(session, arguments),
        Verb::Import(arguments) => transfer::import(session, arguments),
    }
}

/// Which dead letters: all conditions must hold.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Selectors (all must hold)")]
pub struct Selectors {
    /// Why it is here: exhausted, permanent, malformed, unroutable, expired, crashed
    #[arg(long, value_name = "REASON", value_parser = parse_reason)]
    reason: Option<Reason>,
    /// Part of the error, in any case
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Of this group of `dlq groups`
    #[arg(long, value_name = "FINGERPRINT")]
    fingerprint: Option<String>,
    /// Of this job
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Published to this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// With this ordering key
    #[arg(long, short_alias = 'k', value_name = "KEY")]
    key: Option<String>,
    /// Of the event with this id
    #[arg(long, value_name = "ID")]
    event: Option<String>,
    /// Last failed at or after this: 2h (ago), or RFC 3339
    #[arg(long, value_name = "2h|TIME")]
    since: Option<When>,
    /// Last failed before this: 2h (ago), or RFC 3339
    #[arg(long, value_name = "2h|TIME")]
    until: Option<When>,
    /// At most so many: the newest where they are shown, the oldest where something is done with them
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    limit: Option<usize>,
}

fn parse_reason(text: &str) -> Result<Reason, String> {
    Reason::parse(text).ok_or_else(|| {
        let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        format!("expected one of {}", known.join(", "))
    })
}

impl Selectors {
    /// As the broker's side understands them, as of now.
    pub fn selector(&self) -> Selector {
        let now = Clock::System.now();
        Selector {
            reason: self.reason,
            error: self.error.clone(),
            fingerprint: self.fingerprint.clone(),
            job: self.job.clone(),
            topic: self.topic.clone(),
            key: self.key.clone(),
            event: self.event.clone(),
            since: self.since.map(|since| since.before(now)),
            until: self.until.map(|until| until.before(now)),
            limit: self.limit,
        }
    }
}

/// `[QUEUE]`: a positional queue, or all. `-Q` is understood too.
#[derive(Args, Clone, Debug)]
pub struct MaybeQueue {
    /// Only this queue
    queue: Option<QueueName>,
    #[arg(short = 'Q', long = "queue", hide = true, conflicts_with = "queue")]
    queue_flag: Option<QueueName>,
}

impl MaybeQueue {
    /// The queue, where one was named.
    pub fn name(&self) -> Option<&QueueName> {
        self.queue.as_ref().or(self.queue_flag.as_ref())
    }
}
