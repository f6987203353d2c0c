//! A day's worth of jobs squeezed into minutes: nothing grows that a worker or its broker keeps.
//!
//! `WINDLASS_TEST_FULL=1` only. One worker process runs some 10 jobs a second times 86,400 (`WINDLASS_SOAK_JOBS` says
//! another number), one in a hundred of which fails once and one in a thousand for good; dead letters are purged as an
//! operator would. After a first tenth, and after each further one, memory, file handles, threads and what the broker
//! holds are written down; the last must be what the second was, within what is said below.

use std::path::Path;
use std::time::Duration;

use crate::conformance::subject::{self, Subject};
use crate::support::worker::{self, Worker};
use crate::support::{http, tool, wait};

/// Jobs of a day at ten a second.
const JOBS: usize = 864_000;
/// Messages of one `publish`.
const CHUNK: usize = 10_000;
/// Tenths of it.
const ROUNDS: usize = 10;

/// What is looked at after a round.
#[derive(Clone, Debug)]
struct Sample {
    done: usize,
    /// Resident memory, in KiB.
    memory: u64,
    handles: usize,
    threads: u64,
    /// What the broker keeps for the worker: streams, consumers and messages; topics; pages of a file.
    objects: Vec<(String, u64)>,
}

fn config(address: &str) -> String {
    let queue = |name: &str, job: &str, attempts: u32| {
        format!(
            "[queues.{name}]\ntopics = [\"{name}\"]\njob = \"{job}\"\n\
             retry = {{ attempts = {attempts}, first = \"10ms\", factor = 1.0, max = \"10ms\" }}\n"
        )
    };
    format!(
        "broker = \"{address}\"\nnamespace = \"soak\"\n[worker]\nslots = 64\n[log]\nlevel = \"error\"\n{}{}{}",
        queue("good", "log", 3),
        queue("bad", "fail", 2),
        queue("slow", "sleep", 3),
    )
}

fn publish(dir: &Path, topic: &str, count: usize) {
    let lines: String = (0..count).map(|number| format!("{{\"n\":{number},\"ms\":1}}\n")).collect();
    let file = dir.join("lines");
    std::fs::write(&file, lines).unwrap();
    let file = format!("@{}", file.display());
    worker::succeed(dir, &["publish", topic, &file, "--lines", "-q"]);
}

/// Runs that the worker has ended, by its metrics.
fn ended(worker: &Worker) -> usize {
    let mut body = String::new();
    wait::until("the worker shows its metrics", Duration::from_secs(60), || {
        match http::get(worker.admin(), "/metrics") {
            Some((200, shown)) => {
                body = shown;
                true
            }
            _ => false,
        }
    });
    let lines = body.lines().filter(|line| line.starts_with("windlass_jobs_total{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as usize
}

fn sample<S: Subject>(subject: &S, worker: &Worker, done: usize) -> Sample {
    let process = &worker.process;
    let handles = std::fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().count();
    let (memory, threads) = (process.rss().unwrap() / 1_024, process.threads().unwrap());
    Sample { done, memory, handles, threads, objects: subject.objects() }
}

fn soak<S: Subject>(subject: Option<S>) {
    if !tool::full() {
        return;
    }
    let Some(subject) = subject else { return };
    let of = std::env::var("WINDLASS_SOAK_JOBS").ok();
    let jobs: usize = of.map_or(JOBS, |text| text.parse().expect("WINDLASS_SOAK_JOBS is a number"));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("windlass.toml"), config(&subject.address())).unwrap();
    let mut worker = Worker::start(dir.path(), "soak", &[]);
    worker.ready();
    let mut samples: Vec<Sample> = Vec::new();
    for round in 1..=ROUNDS {
        let share = jobs / ROUNDS;
        let (bad, slow) = ((share / 1_000).max(1), (share / 100).max(1));
        publish(dir.path(), "bad", bad);
        publish(dir.path(), "slow", slow);
        let mut left = share - bad - slow;
        while left > 0 {
            let some = left.min(CHUNK);
            publish(dir.path(), "good", some);
            left -= some;
        }
        wait::until("everything of this round has ended", Duration::from_secs(600), || {
            let status = worker::succeed(dir.path(), &["status", "--json"]);
            let idle = |line: &serde_json::Value| {
                ["ready", "running", "retrying", "scheduled"].iter().all(|key| line[*key].as_u64().unwrap_or(0) == 0)
            };
            let status: serde_json::Value = serde_json::from_str(&status).expect("one object");
            status["queues"].as_array().expect("a list").iter().all(idle)
        });
        worker::succeed(dir.path(), &["dlq", "purge", "bad", "--all", "--yes"]);
        let sample = sample(&subject, &worker, share * round);
        eprintln!("{} after {} jobs: {sample:?}", S::NAME, sample.done);
        samples.push(sample);
    }
    let runs = ended(&worker);
    eprintln!("{}: {runs} runs counted by the worker", S::NAME);
    assert!(runs >= jobs / ROUNDS * ROUNDS, "each job ran, and those that fail ran twice");
    let (early, late) = (&samples[1], &samples[ROUNDS - 1]);
    // An allocator keeps what it had once: a tenth, and four MiB.
    assert!(late.memory <= early.memory + early.memory / 10 + 4 * 1_024, "memory grows: {early:?} {late:?}");
    assert!(late.handles <= early.handles + 2, "file handles grow: {early:?} {late:?}");
    assert!(late.threads <= early.threads + 2, "threads grow: {early:?} {late:?}");
    for ((name, before), (_, after)) in early.objects.iter().zip(&late.objects) {
        assert!(after <= &(before + before / 10 + 2), "{name} grow from {before} to {after}");
    }
    assert_eq!(worker.drain(Duration::from_secs(30)), 0);
}

#[test]
fn sqlite() {
    soak(subject::Sqlite::fresh());
}

#[test]
fn nats() {
    soak(subject::Nats::fresh());
}

#[test]
fn kafka() {
    soak(subject::Kafka::fresh());
}
