//! What may be typed: the verbs, and the flags that all of them have. The flags of one verb are in its file.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::time::parse_duration;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "windlass",
    version,
    about = "A job worker that loses nothing: NATS JetStream, Kafka, or an embedded SQLite queue",
    after_help = AFTER_HELP,
    arg_required_else_help = true,
    disable_help_subcommand = false,
    max_term_width = 110
)]
pub struct Arguments {
    /// Flags of every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const AFTER_HELP: &str = "\
Examples:
  windlass config init && windlass run                   # a queue that works without a server
  windlass publish hello.said '{\"name\":\"Ada\"}'         # for every queue that hears the topic
  windlass enqueue hello '{\"name\":\"Ada\"}' --in 10m     # for one queue, later
  windlass status                                        # what the broker holds
  windlass dlq groups                                    # what failed, by kind of failure
  windlass dlq replay hello --all                        # once it is mended

Exit codes: 0 done, 1 failed, 2 usage, 69 waiting may help, 78 a person must change something.
`windlass VERB --help` shows examples of each verb.";

/// Flags of every verb.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// How to write data on stdout: for people, or JSON (one object, or one a line for lists)
    #[arg(short = 'o', long, global = true, value_enum, value_name = "FORMAT", default_value = "text", help_heading = HEADING)]
    pub format: Format,
    /// The same as --format json
    #[arg(long, global = true, help_heading = HEADING)]
    json: bool,
    /// Configuration file; else WINDLASS_CONFIG, else windlass.toml in the working directory if it is there
    #[arg(long, global = true, value_name = "FILE", help_heading = HEADING)]
    pub config: Option<PathBuf>,
    /// Broker's address: sqlite://PATH, nats://HOST:4222, kafka://HOST:9092; else WINDLASS_BROKER, else the file's
    #[arg(long, global = true, value_name = "URL", help_heading = HEADING)]
    pub broker: Option<String>,
    /// Set any key of the configuration: --set worker.slots=128
    #[arg(long, global = true, value_name = "KEY=VALUE", action = ArgAction::Append, help_heading = HEADING)]
    pub set: Vec<String>,
    /// How long one request to the broker may take
    #[arg(long, global = true, value_name = "DURATION", default_value = "5s", value_parser = parse_timeout, help_heading = HEADING)]
    pub timeout: Duration,
    /// Say nothing on stderr but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = HEADING)]
    pub quiet: bool,
    /// Say more on stderr; twice: everything
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = HEADING)]
    pub verbose: u8,
}

const HEADING: &str = "Flags of every verb";

impl Global {
    /// How data is written on stdout.
    pub fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("expected more than 0".to_owned()),
        timeout => Ok(timeout),
    }
}

/// How data is written on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    // Without help of their own, which would make every verb's --help twice as long.
    #[allow(missing_docs)]
    Text,
    #[allow(missing_docs)]
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Work: run the jobs of the configuration's queues
    #[command(alias = "worker")]
    Run(super::run::Arguments),
    /// Publish an event to every queue that hears its topic
    #[command(alias = "pub")]
    Publish(super::publish::Arguments),
    /// Enqueue a job for one queue, now or later
    Enqueue(super::enqueue::Arguments),
    /// Show what the broker holds, without asking a worker
    Status(super::status::Arguments),
    /// List, show, replay, purge, export and import dead letters
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Dlq(super::dlq::Arguments),
    /// List the queues that the broker knows, or make it forget one
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Queues(super::queues::Arguments),
    /// Run one attempt of a job here, without a broker
    Try(super::attempt::Arguments),
    /// Ask a worker whether it is ready, for container health checks
    Ready(super::ready::Arguments),
    /// Check, show or write a configuration
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Config(super::config::Arguments),
    /// Say what would lose, duplicate or stall jobs
    Doctor(super::doctor::Arguments),
    /// Measure the worker beside the broker's own client, and look up every job
    Bench(super::bench::Arguments),
    /// Write a completion script for a shell
    Completions(super::completions::Arguments),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_verb_has_examples() {
        fn check(command: &clap::Command, path: &str) {
            for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
                let path = format!("{path} {}", verb.get_name());
                if verb.has_subcommands() {
                    check(verb, &path);
                } else {
                    let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(help.contains(&format!("windlass{path}")), "no example of{path}");
                    let wide = help.lines().find(|line| line.chars().count() > 98);
                    assert_eq!(wide, None, "wraps in the help of{path}");
                }
            }
        }
        check(&Arguments::command(), "");
    }

    #[test]
    fn json_is_spelt_in_three_ways() {
        for flags in [["--format", "json"], ["-o", "json"], ["--json", "-q"]] {
            let words = ["windlass", "status"].into_iter().chain(flags);
            let arguments = Arguments::try_parse_from(words).expect("a command line");
            assert_eq!(arguments.global.format(), Format::Json);
        }
    }
}
