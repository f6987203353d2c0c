//! `run`: work.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::Done;
use super::fault::Fault;
use super::session::{Session, did_you_mean};
use super::when::{at_least_one, rfc3339};
use crate::app::{App, RunOptions};
use crate::broker::Start;
use crate::config::{self, Config};
use crate::handler::{Registry, http};
use crate::message::{JobName, QueueName, Topic};
use crate::shutdown::Shutdown;
use crate::telemetry::log;
use crate::time::parse_duration;

/// Flags of `run`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass run
  windlass run --queue invoice,analytics --slots 128
  windlass run --burst --json                # until there is nothing left, then one object
  windlass run --topic reports.finalized --http http://127.0.0.1:8000/jobs/invoice
  windlass run --dev                         # while writing a job

SIGTERM and SIGINT drain: running jobs get worker.grace. A second one leaves within 200 ms.")]
pub struct Arguments {
    /// Only these queues; all of the configuration where none is named
    #[arg(short_alias = 'Q', long = "queue", value_name = "QUEUE", value_delimiter = ',')]
    queues: Vec<QueueName>,
    /// Leave once nothing is ready, running or waiting to be retried within --linger
    #[arg(long)]
    burst: bool,
    /// How long --burst waits for retries
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse_duration, requires = "burst")]
    linger: Duration,
    /// Jobs running at once in this process: worker.slots
    #[arg(long, value_name = "N", short_alias = 'c', alias = "concurrency", value_parser = at_least_one::<NonZeroUsize>)]
    slots: Option<NonZeroUsize>,
    /// Hear this topic, without a file; with --http
    #[arg(long, value_name = "TOPIC", requires = "http")]
    topic: Vec<Topic>,
    /// POST each event of --topic to this address
    #[arg(long, value_name = "URL", requires = "topic")]
    http: Option<String>,
    /// Where a queue without a place of its own begins (its offsets expired): earliest, latest or RFC 3339
    #[arg(long, value_name = "earliest|latest|TIME", value_parser = parse_start)]
    from: Option<Start>,
    /// For writing jobs: no grace, retries within 2 s, every outcome a line
    #[arg(long)]
    dev: bool,
}

fn parse_start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        time => rfc3339(time).map(Start::At).map_err(|_| {
            format!("expected earliest, latest or a time such as \"2026-11-21T10:00:00Z\", found {time:?}")
        }),
    }
}

/// The queue of `--topic`, where `--queue` names none.
const DEV_QUEUE: &str = "dev";

/// Works.
pub fn run(mut session: Session, registry: Registry, arguments: Arguments) -> Done {
    if let Some(slots) = arguments.slots {
        session.global.set.push(format!("worker.slots={slots}"));
    }
    let mut queues = arguments.queues.clone();
    let mut config = session.load()?;
    if let Some(url) = &arguments.http {
        let queue = http_queue(&mut queues)?;
        adopt(&mut config, queue, &arguments.topic, url)?;
    }
    if arguments.dev {
        hurry(&mut config, &registry);
    }
    if let Some(absent) = queues.iter().find(|queue| !config.queues.is_empty() && !config.queues.contains_key(*queue)) {
        let near = did_you_mean(absent.as_str(), config.queues.keys().map(QueueName::as_str));
        return Err(Fault::failed(format!("no queue {absent} in the configuration{near}")));
    }
    config::check_run(&config, &queues, &|job| registry.get(job).is_some()).map_err(super::config::refused)?;
    if !config.broker_set {
        session.note(format_args!(
            "note: no broker is set (--broker, WINDLASS_BROKER or a configuration file); using {}",
            config::shown_address(&config.broker)
        ));
    }
    if let Some(level) = session.level() {
        config.log.level = level.to_owned();
        config.log.level_set = true;
    }
    log::install(&config.log, &log::worker_name(), arguments.dev)
        .map_err(|error| Fault::new(super::fault::CONFIG, error.to_string()))?;
    let options = RunOptions {
        queues,
        burst: arguments.burst.then_some(arguments.linger),
        timeout: Some(session.global.timeout),
        from: arguments.from,
        lanes: None,
    };
    let shutdown = Shutdown::default();
    let tally = App::new(config, registry).with(options).run(shutdown.clone())?;
    if let Some(signal) = shutdown.forced_by() {
        return Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)));
    }
    if arguments.burst {
        let mut out = session.output();
        if session.json() {
            out.json(&tally)?;
        } else {
            out.line(format_args!("done {}, retried {}, dead {}", tally.done, tally.retried, tally.dead))?;
        }
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The one queue that `--topic` and `--http` are for.
fn http_queue(queues: &mut Vec<QueueName>) -> Result<QueueName, Fault> {
    match &queues[..] {
        [] => {
            let queue = QueueName::new(DEV_QUEUE).map_err(Fault::usage)?;
            queues.push(queue.clone());
            Ok(queue)
        }
        [queue] => Ok(queue.clone()),
        _ => Err(Fault::usage("--topic and --http make one queue; name one with --queue, or none for \"dev\"")),
    }
}

/// Puts the queue of `--topic` and its job over HTTP into the configuration.
fn adopt(config: &mut Config, queue: QueueName, topics: &[Topic], url: &str) -> Result<(), Fault> {
    if !(url.starts_with("http://") || url.starts_with("https://")) {
        return Err(Fault::usage(format!("--http: expected http://HOST/PATH, found {url:?}")));
    }
    if config.queues.contains_key(&queue) {
        return Err(Fault::usage(format!(
            "queue {queue} is in the configuration already; --topic and --http make a new one: name it with --queue"
        )));
    }
    let job = JobName::new(queue.as_str()).map_err(Fault::usage)?;
    let mut made = config::Queue::new(&queue);
    made.topics = topics.to_vec();
    made.job = job.clone();
    config.queues.insert(queue, made);
    config.jobs.entry(job).or_default().http =
        Some(http::Config { url: url.to_owned(), headers: Vec::new(), bearer_file: None, ca_file: None });
    Ok(())
}

/// `--dev`: whoever waits for a job's next attempt is a person.
fn hurry(config: &mut Config, registry: &Registry) {
    const LONGEST: Duration = Duration::from_secs(2);
    config.worker.grace = Duration::ZERO;
    let compiled = registry.names().into_iter().filter_map(|name| JobName::new(&name).ok());
    let named = config.queues.values().map(|queue| queue.job.clone());
    let jobs: BTreeSet<JobName> = config.jobs.keys().cloned().chain(compiled).chain(named).collect();
    let anyone = config.queues.keys().next().cloned();
    for job in jobs {
        let queue = config.queues.iter().find(|(_, queue)| queue.job == job).map(|(name, _)| name.clone());
        let Some(queue) = queue.or_else(|| anyone.clone()) else { continue };
        let policy = config.policy(&queue, &job, registry.get(job.as_str()).as_ref());
        // What stands under [jobs] comes before what the job says in code, and that before the queue's.
        let retry = &mut config.jobs.entry(job).or_default().retry;
        retry.first = Some(policy.first.min(LONGEST));
        retry.max = Some(policy.max.min(LONGEST));
        retry.jitter = Some(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_read() {
        assert_eq!(parse_start("earliest"), Ok(Start::Earliest));
        assert_eq!(parse_start("latest"), Ok(Start::Latest));
        assert!(matches!(parse_start("2026-11-21T10:00:00Z"), Ok(Start::At(_))));
        assert!(parse_start("yesterday").is_err());
    }

    #[test]
    fn a_topic_and_an_address_make_a_queue() {
        let mut config = config::load(config::Source::new()).expect("the defaults").config;
        let mut queues = Vec::new();
        let queue = http_queue(&mut queues).expect("a queue");
        let topic = Topic::new("reports.finalized").expect("a topic");
        adopt(&mut config, queue.clone(), std::slice::from_ref(&topic), "http://127.0.0.1:1/x").expect("adopted");
        assert_eq!((queue.as_str(), &queues[..]), ("dev", std::slice::from_ref(&queue)));
        assert_eq!(config.queues[&queue].topics, [topic]);
        assert!(config.jobs["dev"].http.is_some());
        assert!(adopt(&mut config, queue, &[], "http://127.0.0.1:1/x").is_err());
        config::check_run(&config, &queues, &|_| false).expect("it can run");
    }

    #[test]
    fn dev_retries_soon() {
        let source = config::Source::new().text(
            "t",
            "broker = \"memory://\"\n[queues.a]\nretry = { first = \"10ms\" }\n[jobs.b]\nretry = { max = \"1s\" }",
        );
        let mut config = config::load(source).expect("a configuration").config;
        hurry(&mut config, &Registry::new());
        let queue = QueueName::new("a").expect("a queue");
        let policy = config.policy(&queue, &config.queues[&queue].job, None);
        assert_eq!((policy.max, policy.jitter, config.worker.grace), (Duration::from_secs(2), 0.0, Duration::ZERO));
        assert_eq!(policy.first, Duration::from_millis(10), "what is sooner stays");
        assert_eq!(config.jobs["b"].retry.max, Some(Duration::from_secs(1)));
    }
}
