//! Windlass on parallel-consumer's own table, for `scripts/bench-parallel-consumer`, which builds it; `Race.java` is
//! the other side. Works a topic's records once and prints what it took as a line of JSON.
//!
//! `parallel-consumer work BROKER TOPIC JOBS none|key thread|timer`: with the order of a queue, and a job that sleeps
//! on a thread of its own, as parallel-consumer's does, or in tokio's timer.

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::Notify;
use windlass::config::{Source, load};
use windlass::{App, Context, Error, Registry};

const IN_FLIGHT: usize = 100;
const WITHIN: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
struct Wait {
    id: usize,
    ms: u64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [work, broker, topic, jobs, order, kind] = &words[..] else {
        eprintln!("not measured: scripts/bench-parallel-consumer runs this beside parallel-consumer");
        return ExitCode::SUCCESS;
    };
    assert_eq!(work, "work");
    match race(broker, topic, jobs.parse().expect("a number of jobs"), order, kind) {
        Ok(told) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn race(broker: &str, topic: &str, jobs: usize, order: &str, kind: &str) -> Result<String, Box<dyn std::error::Error>> {
    // A queue of its own for each run, which begins at the first record.
    let queue = format!("q{}", std::process::id());
    let text = format!(
        "broker = \"kafka://{broker}\"\nnamespace = \"race\"\nadmin.listen = \"none\"\nlog.level = \"warn\"\n\
         worker.slots = {IN_FLIGHT}\nkafka.partitions = 1\n[queues.{queue}]\ntopics = [\"{topic}\"]\njob = \"{kind}\"\n\
         order = \"{order}\"\nslots = {IN_FLIGHT}\n"
    );
    let config = load(Source::new().text("race", &text))?.config;
    let tally = Arc::new(Tally { jobs, inner: Mutex::default(), all: Notify::new() });
    let registry = Registry::new().blocking("thread", thread).job("timer", timer).state(tally.clone());
    let app = App::new(config, registry);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let all = async {
        // Either way it leaves; what is missing is told below.
        let _ = tokio::time::timeout(WITHIN, tally.all.notified()).await;
    };
    runtime.block_on(app.run_until(all))?;
    tally.told()
}

fn thread(wait: Wait, cx: Context) -> Result<(), Error> {
    let tally: &Arc<Tally> = cx.state();
    tally.began();
    std::thread::sleep(Duration::from_millis(wait.ms));
    tally.ended(wait.id);
    Ok(())
}

async fn timer(wait: Wait, cx: Context) -> Result<(), Error> {
    let tally: &Arc<Tally> = cx.state();
    tally.began();
    tokio::time::sleep(Duration::from_millis(wait.ms)).await;
    tally.ended(wait.id);
    Ok(())
}

/// From the first start to the last end: each job once, how long, and the CPU of this process meanwhile.
struct Tally {
    jobs: usize,
    inner: Mutex<Inner>,
    all: Notify,
}

#[derive(Default)]
struct Inner {
    seen: Vec<bool>,
    ended: usize,
    twice: usize,
    from: Option<(Instant, f64)>,
    to: Option<(Instant, f64)>,
}

impl Tally {
    fn began(&self) {
        self.inner.lock().expect("no job panics").from.get_or_insert_with(|| (Instant::now(), cpu()));
    }

    fn ended(&self, id: usize) {
        let mut inner = self.inner.lock().expect("no job panics");
        inner.seen.resize(self.jobs, false);
        if std::mem::replace(&mut inner.seen[id], true) {
            inner.twice += 1;
            return;
        }
        inner.ended += 1;
        if inner.ended == self.jobs {
            inner.to = Some((Instant::now(), cpu()));
            self.all.notify_one();
        }
    }

    fn told(&self) -> Result<String, Box<dyn std::error::Error>> {
        let inner = self.inner.lock().expect("no job panics");
        let (Some(from), Some(to)) = (inner.from, inner.to) else {
            return Err(format!("{} of {} jobs ended within {WITHIN:?}", inner.ended, self.jobs).into());
        };
        let status = std::fs::read_to_string("/proc/self/status")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        Ok(format!(
            "{{\"seconds\":{:.4},\"cpu_s\":{:.3},\"peak_mib\":{:.1},\"twice\":{}}}",
            to.0.duration_since(from.0).as_secs_f64(),
            to.1 - from.1,
            peak.ok_or("no VmHWM in /proc/self/status")?.trim().parse::<f64>()? / 1024.0,
            inner.twice,
        ))
    }
}

fn cpu() -> f64 {
    // SAFETY: getrusage writes only the struct that it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
