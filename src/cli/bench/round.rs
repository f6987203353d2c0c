//! One round: publish, a turn of each raw loop, a turn of the worker, some jobs at a gentle rate, and the audit.

use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::Instant;

use super::board::{Board, Waits, now};
use super::body;
use super::endpoint::Endpoint;
use super::gauge::Rate;
use super::load::Load;
use super::metronome::Metronome;
use super::plan::Plan;
use super::play::{self, Inside, JOB, Order, Part, Who};
use super::process::Process;
use crate::app;
use crate::broker::yardstick::Yardstick;
use crate::broker::{self, Broker, Role};
use crate::cli::fault::Fault;
use crate::cli::output;
use crate::cli::session::Session;
use crate::client::Client;
use crate::message::QueueName;

/// How often it is looked how far the jobs are.
const LOOK: Duration = Duration::from_millis(2);
/// Where no job has ended for so long, the broker is asked whether there are any left ..
const QUIET: Duration = Duration::from_millis(1_500);
/// .. and after so long they are given up, whatever it says.
const STALLED: Duration = Duration::from_secs(60);
/// Bodies that are stored at once for a raw loop.
const FILL: u64 = 1_000;

/// What a measurement has for all of its rounds.
pub struct Scene<'a> {
    /// The flags of every verb.
    pub session: &'a Session,
    /// What is to be done.
    pub plan: &'a Plan,
    /// The measurement's name.
    pub run: &'a str,
    /// A folder of its own.
    pub scratch: &'a std::path::Path,
    /// The raw loops.
    pub yardstick: &'a Arc<dyn Yardstick>,
    /// The address that was asked for.
    pub address: &'a str,
    /// Where HTTP jobs go.
    pub endpoint: Option<&'a Endpoint>,
}

/// A turn of one of those that are measured.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// Jobs a second.
    pub per_s: f64,
    /// CPU seconds for 1,000 jobs.
    pub cpu_per_1k: Option<f64>,
    /// The most memory at once.
    pub peak_mib: Option<f64>,
    /// From the start of the process to that of its first job.
    pub first_ms: Option<f64>,
}

/// What a round found out.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// Published a second; `None` where a rate was asked for.
    pub published_per_s: Option<f64>,
    /// Turns of the raw loops, with their names.
    pub raw: Vec<(String, Turn)>,
    /// The worker's turn.
    pub worker: Turn,
    /// From publishing to starting.
    pub waits: Waits,
    /// How late a thread that slept was woken meanwhile.
    pub late: Waits,
    /// Ids that never ran.
    pub lost: u64,
    /// Runs that were one too many.
    pub duplicates: u64,
    /// Starts before an earlier one of the same key.
    pub disorder: u64,
    /// What the broker still holds, though all has run.
    pub left: u64,
}

impl Scene<'_> {
    /// Runs one round.
    pub async fn round(&self, number: usize) -> Result<Round, Fault> {
        let topic = format!("{}.r{number}", self.run);
        self.yardstick.create(&topic).await?;
        let mut round = Round::default();
        let inside = self.inside(&topic).await?;
        if self.plan.rate.is_none() {
            round.published_per_s = Some(self.publish(&topic, inside.as_ref()).await?);
            self.raw(&topic, inside.as_ref(), &mut round).await?;
        }
        self.worker(&topic, inside, &mut round).await?;
        self.yardstick.remove(&topic).await?;
        Ok(round)
    }

    /// `memory://` is within this process.
    async fn inside(&self, topic: &str) -> Result<Option<Inside>, Fault> {
        if !self.address.starts_with("memory:") {
            return Ok(None);
        }
        let broker = self.connect(topic, Role::Worker).await?;
        Ok(Some(Inside { broker, yardstick: self.yardstick.clone() }))
    }

    async fn connect(&self, topic: &str, role: Role) -> Result<Arc<dyn Broker>, Fault> {
        let part = self.part(Who::Worker, topic);
        let options = app::options(&part.configuration()?, role);
        let options = broker::Options { timeout: self.session.global.timeout, ..options };
        Ok(broker::connect(&part.broker, options).await?)
    }

    async fn load(&self, topic: &str, broker: &Arc<dyn Broker>) -> Result<Load, Fault> {
        let namespace = self.part(Who::Worker, topic).configuration()?.namespace;
        Ok(Load {
            client: Client::new(broker.publisher(), namespace),
            topic: topic.into(),
            size: self.plan.payload,
            keys: self.plan.keys,
            bare: self.plan.bare,
        })
    }

    fn part(&self, who: Who, topic: &str) -> Part {
        let plan = self.plan;
        let address = match who {
            Who::Raw(_) => self.address.to_owned(),
            _ => self.yardstick.address(topic),
        };
        let board = match who {
            Who::Worker => "worker",
            _ => "raw",
        };
        Part {
            who,
            config: configuration(plan, topic, self.endpoint),
            sets: self.session.global.set.clone(),
            timeout: self.session.global.timeout,
            topic: topic.to_owned(),
            jobs: plan.jobs,
            ids: plan.ids(),
            board: self.scratch.join(format!("{}-{board}", topic.rsplit_once('.').map_or("", |(_, round)| round))),
            payload: plan.payload,
            slots: plan.slots,
            kind: plan.kind,
            takes: plan.takes,
            keys: plan.keys,
            bare: plan.bare,
            endpoint: self.endpoint.map(|endpoint| endpoint.url.clone()),
            publishes: address.starts_with("sqlite:") || address.starts_with("memory:"),
            broker: address,
        }
    }

    fn board(&self, part: &Part) -> Result<Arc<Board>, Fault> {
        // Left by the turn before.
        let _ = std::fs::remove_file(&part.board);
        let board = Board::open(&part.board, part.ids as usize, part.keys);
        let board = Arc::new(board.map_err(|error| Fault::file(&part.board, &error))?);
        if let Some(endpoint) = self.endpoint {
            endpoint.count_on(&board);
        }
        Ok(board)
    }

    fn bar(&self, total: u64, doing: &str) -> ProgressBar {
        output::progress(total, doing, self.session.global.quiet)
    }

    async fn publish(&self, topic: &str, inside: Option<&Inside>) -> Result<f64, Fault> {
        let broker = match inside {
            Some(inside) => inside.broker.clone(),
            None => self.connect(topic, Role::Producer).await?,
        };
        let load = self.load(topic, &broker).await?;
        let bar = self.bar(self.plan.jobs, "publishing");
        let began = Instant::now();
        let told = {
            let bar = bar.clone();
            move |count| bar.inc(count)
        };
        match self.plan.producers {
            Some(producers) => load.each(0..self.plan.jobs, producers, told).await?,
            None => load.bulk(0..self.plan.jobs, told).await?,
        }
        let per_s = self.plan.jobs as f64 / began.elapsed().as_secs_f64();
        bar.finish_and_clear();
        if inside.is_none() {
            broker.close().await;
        }
        Ok(per_s)
    }

    /// The raw loops; where jobs take time, also tasks that do the same without a broker.
    async fn raw(&self, topic: &str, inside: Option<&Inside>, round: &mut Round) -> Result<(), Fault> {
        for from in (0..self.plan.jobs).step_by(FILL as usize) {
            let to = self.plan.jobs.min(from + FILL);
            let bodies = (from..to).map(|id| body::write(id, None, self.plan.payload)).collect();
            self.yardstick.fill(topic, bodies).await?;
        }
        let loops = self.yardstick.loops().iter().enumerate().map(|(index, name)| (Who::Raw(index), *name));
        let bare = self.plan.kind.takes_time().then_some((Who::Bare, "the same in bare tasks, no broker"));
        for (who, name) in loops.chain(bare) {
            let part = self.part(who, topic);
            let board = self.board(&part)?;
            let mut process = Process::start(&part, inside.cloned(), self.scratch, self.session)?;
            let bar = self.bar(self.plan.jobs, "raw loop");
            let turn = self.watch(&mut process, &board, &bar, async || false).await?;
            bar.finish_and_clear();
            process.leave().await?;
            round.raw.push((name.to_owned(), turn));
        }
        Ok(())
    }

    async fn worker(&self, topic: &str, inside: Option<Inside>, round: &mut Round) -> Result<(), Fault> {
        let part = self.part(Who::Worker, topic);
        let board = self.board(&part)?;
        let queue = [QueueName::new(queue(topic)).map_err(Fault::usage)?];
        let known = inside.as_ref().map(|inside| inside.broker.clone());
        let mut process = Process::start(&part, inside, self.scratch, self.session)?;
        let plan = self.plan;
        let holds = async || match &known {
            Some(broker) => held(broker, &queue).await,
            None => {
                let Ok(broker) = self.connect(topic, Role::Reader).await else { return None };
                let held = held(&broker, &queue).await;
                broker.close().await;
                held
            }
        };
        let nothing_left = async || holds().await == Some(0);
        let (first, gentle, rate) = match plan.rate {
            Some(rate) => (Some(plan.jobs), 0..plan.jobs, rate),
            None => (None, plan.jobs..plan.ids(), plan.gentle.1),
        };
        if plan.rate.is_none() {
            let bar = self.bar(plan.jobs, "worker");
            round.worker = self.watch(&mut process, &board, &bar, nothing_left).await?;
            bar.finish_and_clear();
        }
        // Published from within the worker's process where the broker is there; else from this one.
        let producer = match part.publishes {
            true => None,
            false => Some(self.connect(topic, Role::Producer).await?),
        };
        if let Some(first) = first {
            let order = Order { ids: first..first + 1, rate: 1_000.0, waits: false };
            self.pace(topic, &mut process, &producer, &board, &order, 1).await?;
        }
        let before = if first.is_some() { 1 } else { plan.jobs };
        let paced = gentle.end - gentle.start;
        let order = Order { ids: gentle, rate, waits: true };
        let (began, cpu) = (now(), process.gauge.cpu_s());
        let metronome = Metronome::start();
        self.pace(topic, &mut process, &producer, &board, &order, before + paced).await?;
        round.late = metronome.stop();
        if first.is_some() {
            let seconds = (now() - began) as f64 / 1e9;
            let used = process.gauge.cpu_s().zip(cpu).map(|(after, before)| (after - before) * 1e3 / paced as f64);
            round.worker = Turn { per_s: paced as f64 / seconds, cpu_per_1k: used, ..Turn::default() };
        }
        round.worker.peak_mib = process.gauge.peak_mib();
        process.leave().await?;
        if let Some(producer) = producer {
            producer.close().await;
        }
        round.waits = board.waits();
        (round.lost, round.duplicates) = board.audit(plan.ids());
        round.disorder = board.disorder();
        // Not from a closed `memory://`, which keeps nothing.
        round.left = holds().await.unwrap_or(0);
        Ok(())
    }

    /// Has jobs published at a rate, and waits until so many have ended in all.
    async fn pace(
        &self,
        topic: &str,
        process: &mut Process,
        producer: &Option<Arc<dyn Broker>>,
        board: &Arc<Board>,
        order: &Order,
        until: u64,
    ) -> Result<(), Fault> {
        let bar = self.bar(until, "at a rate");
        match producer {
            None => process.order(order)?,
            Some(broker) => {
                let load = self.load(topic, broker).await?;
                let order = order.clone();
                tokio::spawn(async move {
                    if let Err(error) = load.pace(order.ids, order.rate, order.waits).await {
                        eprintln!("error: publishing: {error}");
                    }
                });
            }
        }
        let count = order.ids.end - order.ids.start;
        let planned = Duration::from_secs_f64(count as f64 / order.rate);
        let mut last = (board.ended(), Instant::now());
        while board.ended() < until {
            process.check()?;
            tokio::time::sleep(LOOK).await;
            let ended = board.ended();
            bar.set_position(ended);
            if ended != last.0 {
                last = (ended, Instant::now());
            }
            // What was lost does not come; the audit says so.
            if last.1.elapsed() > planned.min(STALLED) + self.plan.takes + QUIET * 6 {
                break;
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Watches until the backlog has been run, or what is left of it was lost.
    async fn watch(
        &self,
        process: &mut Process,
        board: &Board,
        bar: &ProgressBar,
        nothing_left: impl AsyncFn() -> bool,
    ) -> Result<Turn, Fault> {
        let jobs = self.plan.jobs;
        let gauge = process.gauge;
        let mut rate = Rate::new(jobs, process.began, gauge.cpu_s());
        let mut last = (0, Instant::now());
        let mut asked = Instant::now();
        loop {
            let ended = board.ended();
            rate.see(ended, now(), || gauge.cpu_s());
            bar.set_position(ended);
            if ended >= jobs {
                break;
            }
            process.check()?;
            if ended != last.0 {
                last = (ended, Instant::now());
            }
            let quiet = last.1.elapsed();
            if quiet > STALLED + self.plan.takes * 2 {
                break;
            }
            if board.first().is_some() && quiet > QUIET + self.plan.takes && asked.elapsed() > QUIET {
                asked = Instant::now();
                if nothing_left().await && board.ended() == ended {
                    break;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(Turn {
            per_s: rate.per_s(),
            cpu_per_1k: rate.cpu_per_1k(),
            peak_mib: gauge.peak_mib(),
            first_ms: board.first().map(|first| first.saturating_sub(process.began) as f64 / 1e6),
        })
    }
}

/// What the broker holds of a queue, as far as it knows; dead letters too.
async fn held(broker: &Arc<dyn Broker>, queue: &[QueueName]) -> Option<u64> {
    let status = broker.inspect().status(queue).await.ok()?;
    let all = status.iter().flat_map(|queue| [queue.ready, queue.running, queue.retrying, queue.scheduled]);
    Some(all.flatten().sum())
}

fn queue(topic: &str) -> &str {
    topic.rsplit_once('.').map_or(topic, |(_, round)| round)
}

fn configuration(plan: &Plan, topic: &str, endpoint: Option<&Endpoint>) -> String {
    let (run, queue) = topic.rsplit_once('.').unwrap_or((topic, "r0"));
    let order = if plan.keys > 0 { "key" } else { "none" };
    let slots = plan.slots;
    let mut text = format!(
        "namespace = \"{run}\"\n[admin]\nlisten = \"none\"\n[worker]\nslots = {slots}\n[queues.{queue}]\ntopics = \
         [\"{topic}\"]\njob = \"{JOB}\"\nslots = {slots}\norder = \"{order}\"\n"
    );
    if let Some(endpoint) = endpoint {
        text.push_str(&format!("[jobs.{JOB}]\nhttp = \"{}\"\n", endpoint.url));
    }
    text
}

/// The configuration without a round's names, to be checked before anything is made.
pub fn check(plan: &Plan, run: &str, sets: &[String], address: &str) -> Result<crate::config::Config, Fault> {
    play::configuration(&configuration(plan, &format!("{run}.r1"), None), sets, address)
}
