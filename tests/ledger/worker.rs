//! A worker whose one job does as its arguments say and writes down every run: what the ledger in `tests/ledger`
//! judges. Run by the tests, and built with the feature `seeded-bugs` only; with `LEDGER_FILE` naming the file that all workers append to.

use std::fs::File;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use windlass::{Context, Error, Registry};

// What reads records is the judge's.
#[allow(dead_code)]
mod record;

use record::{Record, What};

/// What a job is to do.
#[derive(serde::Deserialize)]
struct Plan {
    /// Its number.
    job: u64,
    /// The attempt that succeeds; those before fail. 0: none does.
    done_at: u32,
    /// How an attempt fails.
    fails: Fails,
    /// How long each attempt takes, in milliseconds; 0 is done at its first poll.
    ms: u64,
}

#[derive(Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Fails {
    Error,
    Permanent,
    Panic,
    Timeout,
    /// It does not: it keeps its thread for `ms`, and everything else that would run there.
    Block,
}

/// Writes the start of a run, and its end however it ends.
struct Run {
    record: Record,
    /// How it ended, once it has.
    ended: Option<What>,
    deadline: Option<tokio::time::Instant>,
}

impl Run {
    fn begin(plan: &Plan, cx: &Context) -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let record = Record {
            what: What::Start,
            job: plan.job,
            queue: cx.queue().to_string(),
            attempt: cx.attempt(),
            pid: std::process::id(),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            at: record::now(),
        };
        write(&record);
        Self { record, ended: None, deadline: cx.deadline() }
    }

    fn end(mut self, what: What) {
        self.ended = Some(what);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let late = self.deadline.is_some_and(|deadline| deadline <= tokio::time::Instant::now());
        let dropped = if late { What::TimedOut } else { What::Cancelled };
        self.record.what = if std::thread::panicking() { What::Panicked } else { self.ended.unwrap_or(dropped) };
        self.record.at = record::now();
        write(&self.record);
    }
}

fn write(record: &Record) {
    static FILE: OnceLock<File> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let path = std::env::var_os("LEDGER_FILE").expect("LEDGER_FILE names the ledger");
        std::fs::OpenOptions::new().append(true).create(true).open(path).expect("the ledger can be opened")
    });
    record.append(file).expect("the ledger can be written");
}

async fn job(plan: Plan, cx: Context) -> Result<(), Error> {
    let run = Run::begin(&plan, &cx);
    let succeeds = cx.attempt() >= plan.done_at && plan.done_at > 0;
    if !succeeds && plan.fails == Fails::Timeout {
        std::future::pending::<()>().await;
    }
    if plan.fails == Fails::Block {
        std::thread::sleep(Duration::from_millis(plan.ms));
    } else if plan.ms > 0 {
        tokio::time::sleep(Duration::from_millis(plan.ms)).await;
    }
    if succeeds {
        run.end(What::Done);
        return Ok(());
    }
    match plan.fails {
        Fails::Panic => panic!("as planned"),
        Fails::Permanent => {
            run.end(What::Refused);
            Err(Error::permanent("as planned"))
        }
        Fails::Error | Fails::Timeout | Fails::Block => {
            run.end(What::Failed);
            Err(Error::retry("ledger::Planned", "as planned"))
        }
    }
}

fn main() -> ExitCode {
    windlass::cli::main(Registry::new().job("ledger", job))
}
