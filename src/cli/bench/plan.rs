//! What is to be measured: the flags, checked.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::body;
use crate::cli::fault::Fault;
use crate::cli::when::at_least_one;
use crate::time::parse_duration;

/// Flags of `bench`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass bench                                         # SQLite, in a temporary folder
  windlass bench --broker nats://127.0.0.1:4222 --jobs 400000 --repeat 5
  windlass bench --broker memory:// --jobs 4000000
  windlass bench --kind sleep --for 10ms --slots 1000
  windlass bench --kind http --for 5ms --slots 200 --jobs 20000
  windlass bench --rate 500 --jobs 10000                 # from publishing to starting

First a backlog is drained, by a raw loop of the broker's own client and by the worker in turn;
then some jobs are published at a gentle rate, to see how long they wait. Each job that was
published is looked up in the end: one that was lost ends with 1. What it makes at the broker
bears a name of its own and is removed; a run that was killed is cleared up by the next. With
--set, settings of the broker: --set sqlite.synchronous=normal.")]
pub struct Arguments {
    /// Jobs of a round; 100,000, and fewer where each takes time
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZeroU64>)]
    jobs: Option<NonZeroU64>,
    /// Bytes of each job's argument: 200, 1KiB
    #[arg(long, value_name = "SIZE", default_value = "200", value_parser = size)]
    payload: usize,
    /// Jobs running at once; 64, and 1,000 on NATS, where the raw loop has 1,000 in hand
    #[arg(long, value_name = "N", short_alias = 'c', alias = "concurrency", value_parser = at_least_one::<NonZeroUsize>)]
    slots: Option<NonZeroUsize>,
    /// What a job does: nothing, give way once, wait, use CPU, or be a POST to an endpoint in this process
    #[arg(long, value_enum, default_value_t = Kind::Noop)]
    kind: Kind,
    /// How long it does that: 20us, 5ms, 1s; 5ms of sleep and http, 1ms of spin
    #[arg(long = "for", value_name = "DURATION", value_parser = time)]
    for_: Option<Duration>,
    /// Publish so many a second while the worker works, and measure only that
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZeroU32>)]
    rate: Option<NonZeroU32>,
    /// Publish by so many producers, each of which awaits each confirmation; else in bulk
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZeroUsize>)]
    producers: Option<NonZeroUsize>,
    /// Rounds, of each of which the raw loop and the worker have a turn; figures are medians
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZeroUsize>)]
    repeat: Option<NonZeroUsize>,
    /// Give the jobs so many keys, and work in the order of each
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZeroU32>)]
    keys: Option<NonZeroU32>,
    /// Publish plain bytes, without attributes
    #[arg(long)]
    bare: bool,
    /// Do not ask before loading a broker on another machine
    #[arg(long)]
    pub yes: bool,
    /// What a process that is measured reads; for this program's own use
    #[arg(long, value_name = "FILE", hide = true)]
    pub part: Option<std::path::PathBuf>,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    // Without help of their own: the flag's says it.
    #[allow(missing_docs)]
    Noop,
    #[allow(missing_docs)]
    Yield,
    #[allow(missing_docs)]
    Sleep,
    #[allow(missing_docs)]
    Spin,
    #[allow(missing_docs)]
    Http,
}

impl Kind {
    /// Whether a job takes a time that was said.
    pub fn takes_time(self) -> bool {
        !matches!(self, Self::Noop | Self::Yield)
    }
}

/// The flags, checked and with their defaults.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Jobs of a round that are counted by it.
    pub jobs: u64,
    /// Bytes of an argument.
    pub payload: usize,
    /// Slots of the worker.
    pub slots: usize,
    /// What a job does.
    pub kind: Kind,
    /// For how long.
    pub takes: Duration,
    /// Published a second, where that is all that is measured.
    pub rate: Option<f64>,
    /// Producers that await each confirmation.
    pub producers: Option<usize>,
    /// Rounds.
    pub repeat: usize,
    /// Keys, worked in order.
    pub keys: usize,
    /// Without attributes.
    pub bare: bool,
    /// Jobs that are published at a gentle rate once the backlog is gone, and that rate.
    pub gentle: (u64, f64),
}

/// A gentle rate, and for how many seconds.
const GENTLE: (f64, f64) = (500.0, 2.0);

impl Plan {
    /// Checks the flags, for the broker at this address.
    pub fn new(arguments: &Arguments, address: &str) -> Result<Self, Fault> {
        let kind = arguments.kind;
        if !kind.takes_time() && arguments.for_.is_some() {
            return Err(Fault::usage(
                "--for says how long a job takes; name one that does: --kind sleep, spin or http",
            ));
        }
        let takes = arguments.for_.unwrap_or(match kind {
            Kind::Noop | Kind::Yield => Duration::ZERO,
            Kind::Spin => Duration::from_millis(1),
            Kind::Sleep | Kind::Http => Duration::from_millis(5),
        });
        let nats = ["nats://", "nats+tls://", "tls://"].iter().any(|scheme| address.starts_with(scheme));
        let slots = arguments.slots.map_or(if nats { 1_000 } else { 64 }, NonZeroUsize::get);
        let at_once = match kind {
            Kind::Spin => std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(slots),
            _ => slots,
        };
        // What the slots can do at most, where jobs take time.
        let limit = if takes.is_zero() { f64::INFINITY } else { at_once as f64 / takes.as_secs_f64() };
        let rate = arguments.rate.map(|rate| f64::from(rate.get()));
        let jobs = match (arguments.jobs, rate) {
            (Some(jobs), _) => jobs.get(),
            (None, Some(rate)) => (rate * 10.0).ceil() as u64,
            (None, None) => (limit * 3.0).clamp(100.0, 100_000.0) as u64,
        };
        if jobs >= body::MOST / 2 {
            return Err(Fault::usage(format!("--jobs: at most {}", body::MOST / 2)));
        }
        if rate.is_some_and(|rate| rate > limit) {
            return Err(Fault::usage(format!(
                "--rate: {slots} slots can run at most {limit:.0} such jobs a second; the rest would only wait"
            )));
        }
        let gentle = GENTLE.0.min(limit / 2.0);
        Ok(Self {
            jobs,
            payload: arguments.payload,
            slots,
            kind,
            takes,
            rate,
            // Messages of one key stay in order only within one producer.
            producers: arguments.producers.map(|producers| if arguments.keys.is_some() { 1 } else { producers.get() }),
            repeat: arguments.repeat.map_or(if rate.is_some() { 1 } else { 3 }, NonZeroUsize::get),
            keys: arguments.keys.map_or(0, |keys| keys.get() as usize),
            bare: arguments.bare,
            gentle: if rate.is_some() { (0, 0.0) } else { (((gentle * GENTLE.1) as u64).clamp(1, jobs), gentle) },
        })
    }

    /// All ids of a round: the backlog, what is published gently, and one that is published first.
    pub fn ids(&self) -> u64 {
        self.jobs + self.gentle.0 + u64::from(self.rate.is_some())
    }

    /// `100,000 jobs of 200 B that sleep 5 ms`
    pub fn told(&self) -> String {
        let what = match self.kind {
            Kind::Noop => "that do nothing",
            Kind::Yield => "that pend once",
            Kind::Sleep => "that sleep",
            Kind::Spin => "that use the CPU",
            Kind::Http => "over HTTP that take",
        };
        let takes = if self.takes.is_zero() { String::new() } else { format!(" {:?}", self.takes) };
        let keys = if self.keys > 0 { format!(", in the order of {} keys", self.keys) } else { String::new() };
        let jobs = crate::cli::table::counted(self.jobs, "job");
        format!("{jobs} of {} B {what}{takes}{keys}, {} slots", self.payload, self.slots)
    }
}

fn size(text: &str) -> Result<usize, String> {
    let expected =
        || format!("expected a size such as \"200\" or \"4KiB\", of at least {}, found {text:?}", body::LEAST);
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: usize = text[..digits].parse().map_err(|_| expected())?;
    let unit = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return Err(expected()),
    };
    number.checked_mul(unit).filter(|size| *size >= body::LEAST && *size <= 1 << 30).ok_or_else(expected)
}

fn time(text: &str) -> Result<Duration, String> {
    match text.trim().strip_suffix("us").and_then(|number| number.trim().parse().ok()) {
        Some(micros) => Ok(Duration::from_micros(micros)),
        None => parse_duration(text).map_err(|error| error.replace("\"500ms\"", "\"20us\", \"500ms\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn plan(address: &str, words: &[&str]) -> Result<Plan, Fault> {
        let line = Line::try_parse_from(["bench"].iter().chain(words)).expect("a command line");
        Plan::new(&line.arguments, address)
    }

    #[test]
    fn defaults_fit_what_a_job_does() {
        let noop = plan("sqlite://x", &[]).expect("a plan");
        assert_eq!((noop.jobs, noop.slots, noop.repeat, noop.gentle), (100_000, 64, 3, (1_000, 500.0)));
        assert_eq!(plan("nats://x", &[]).expect("a plan").slots, 1_000);
        let sleep = plan("sqlite://x", &["--kind", "sleep", "--for", "1s", "--slots", "100"]).expect("a plan");
        assert_eq!((sleep.jobs, sleep.gentle), (300, (100, 50.0)));
        let rate = plan("sqlite://x", &["--rate", "500"]).expect("a plan");
        assert_eq!((rate.jobs, rate.repeat, rate.gentle.0, rate.ids()), (5_000, 1, 0, 5_001));
        let few = plan("sqlite://x", &["--jobs", "10"]).expect("a plan");
        assert_eq!((few.jobs, few.gentle.0, few.ids()), (10, 10, 20));
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        assert!(plan("sqlite://x", &["--for", "1s"]).is_err());
        assert!(plan("sqlite://x", &["--kind", "yield", "--for", "1s"]).is_err());
        assert!(plan("sqlite://x", &["--kind", "sleep", "--for", "1s", "--slots", "10", "--rate", "11"]).is_err());
        assert!(plan("sqlite://x", &["--jobs", "8000000000"]).is_err());
    }

    #[test]
    fn sizes_and_times_are_read() {
        assert_eq!((size("200"), size("4KiB"), size("64 B")), (Ok(200), Ok(4_096), Ok(64)));
        for wrong in ["", "10", "4kb", "x", "99999999999MiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!((time("20us"), time("5ms")), (Ok(Duration::from_micros(20)), Ok(Duration::from_millis(5))));
        assert!(time("5").is_err());
    }
}
