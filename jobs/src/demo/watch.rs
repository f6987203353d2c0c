//! Shows how far it is, and says when every event has come to its end in every queue.

use std::error::Error;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use windlass::broker::{Broker, QueueStatus};

use crate::crew::Hand;
use crate::ledger::Ledger;
use crate::stage::{QUEUES, Stage};

/// How often the ledger is read.
const EVERY: Duration = Duration::from_millis(20);
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// After so long something is wrong.
const PATIENCE: Duration = Duration::from_secs(120);

/// Resolves when each queue has done so many more events than at the beginning of this watch.
pub async fn until_done(
    each: u64,
    ledger: &mut Ledger,
    hand: &mut Hand,
    from: [u64; QUEUES.len()],
    all: u64,
    view: &mut View,
) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    loop {
        ledger.read()?;
        let done = std::array::from_fn(|index| ledger.done(QUEUES[index]) - from[index]);
        view.show(done, all);
        if done.iter().all(|count| *count >= each) {
            return Ok(());
        }
        hand.check()?;
        patient(began, || format!("{QUEUES:?} have done {done:?} of {each}"))?;
        tokio::time::sleep(EVERY).await;
    }
}

/// Resolves when the broker has nothing ready, running or to be retried.
pub async fn until_idle(broker: &dyn Broker, stage: &Stage, hand: &mut Hand) -> Result<(), Box<dyn Error>> {
    let names: Vec<_> = stage.config.queues.keys().cloned().collect();
    let began = Instant::now();
    loop {
        let status = broker.inspect().status(&names).await?;
        let idle = |queue: &QueueStatus| {
            [queue.ready, queue.running, queue.retrying].iter().all(|count| count.is_none_or(|count| count == 0))
        };
        if status.iter().all(idle) {
            return Ok(());
        }
        hand.check()?;
        patient(began, || format!("the broker holds {status:#?}"))?;
        tokio::time::sleep(EVERY).await;
    }
}

/// Resolves when each of these queues has so many dead letters.
pub async fn until_dead(
    expected: &[(&str, u64)],
    broker: &dyn Broker,
    stage: &Stage,
    hand: &mut Hand,
) -> Result<(), Box<dyn Error>> {
    let names: Vec<_> = stage.config.queues.keys().cloned().collect();
    let began = Instant::now();
    loop {
        let status = broker.inspect().status(&names).await?;
        let dead = |name: &str| status.iter().find(|queue| queue.name == name).and_then(|queue| queue.dead);
        if expected.iter().all(|(name, count)| dead(name).is_some_and(|dead| dead >= *count)) {
            return Ok(());
        }
        hand.check()?;
        patient(began, || format!("{expected:?} dead letters are expected; the broker holds {status:#?}"))?;
        tokio::time::sleep(EVERY).await;
    }
}

fn patient(began: Instant, what: impl FnOnce() -> String) -> Result<(), Box<dyn Error>> {
    if began.elapsed() < PATIENCE {
        return Ok(());
    }
    Err(format!("not done after {} s: {}", PATIENCE.as_secs(), what()).into())
}

/// Bars on a terminal, plain lines elsewhere.
pub enum View {
    /// One for each queue.
    Bars(Vec<ProgressBar>),
    /// When the last one was written.
    Lines(Instant),
}

impl View {
    pub fn new(all: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines(Instant::now());
        }
        let style = ProgressStyle::with_template("  {prefix:<10} {bar:40} {pos:>4}/{len}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ ");
        let bars = MultiProgress::new();
        let bar = |name| bars.add(ProgressBar::new(all).with_style(style.clone()).with_prefix(name));
        Self::Bars(QUEUES.map(bar).to_vec())
    }

    fn show(&mut self, done: [u64; QUEUES.len()], all: u64) {
        match self {
            Self::Bars(bars) => bars.iter().zip(done).for_each(|(bar, done)| bar.set_position(done)),
            Self::Lines(last) if last.elapsed() >= LINE_EVERY => {
                *last = Instant::now();
                let parts: Vec<String> = QUEUES.iter().zip(done).map(|(name, done)| format!("{name} {done}")).collect();
                println!("  {} of {all}", parts.join(", "));
            }
            Self::Lines(_) => {}
        }
    }

    pub fn finish(self) {
        if let Self::Bars(bars) = self {
            bars.iter().for_each(|bar| bar.finish());
        }
    }
}
