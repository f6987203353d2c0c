//! Shows how far it is, and says when every event has come to its end in every queue.

use std::cell::Cell;
use std::error::Error;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use windlass::broker::{Broker, QueueStatus};

use crate::meter::Meter;
use crate::stage::{EVENTS, QUEUES, Stage};

/// How often the broker is asked.
const EVERY: Duration = Duration::from_millis(50);
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Resolves when no queue has anything ready, running or to be retried, and each event was done or is a dead letter.
pub async fn until_settled(
    broker: &dyn Broker,
    meter: &Meter,
    stage: &Stage,
    gone: &Cell<bool>,
    patience: Duration,
) -> Result<(), Box<dyn Error>> {
    let names: Vec<_> = stage.config.queues.keys().cloned().collect();
    let inspect = broker.inspect();
    let mut view = View::new();
    let began = Instant::now();
    loop {
        let status = inspect.status(&names).await?;
        let ended = ended(meter, &status);
        view.show(ended);
        let idle = |queue: &QueueStatus| {
            [queue.ready, queue.running, queue.retrying].iter().all(|count| count.is_none_or(|count| count == 0))
        };
        if ended.iter().all(|count| *count >= EVENTS as u64) && status.iter().all(idle) {
            view.finish();
            return Ok(());
        }
        if gone.get() {
            return Err("the worker left before everything was done".into());
        }
        if began.elapsed() > patience {
            return Err(format!("not done after {} s; the broker holds {status:#?}", patience.as_secs()).into());
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Events that have come to their end, by queue: done, or a dead letter.
fn ended(meter: &Meter, status: &[QueueStatus]) -> [u64; QUEUES.len()] {
    let done = meter.done();
    std::array::from_fn(|index| {
        let dead = status.iter().find(|queue| queue.name == QUEUES[index]).and_then(|queue| queue.dead);
        done[index] + dead.unwrap_or(0)
    })
}

/// Bars on a terminal, plain lines elsewhere.
enum View {
    Bars(Vec<ProgressBar>),
    Lines(Instant),
}

impl View {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines(Instant::now());
        }
        let style = ProgressStyle::with_template("  {prefix:<10} {bar:40} {pos:>4}/{len} {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ ");
        let all = MultiProgress::new();
        let bar = |name| all.add(ProgressBar::new(EVENTS as u64).with_style(style.clone()).with_prefix(name));
        Self::Bars(QUEUES.map(bar).to_vec())
    }

    fn show(&mut self, ended: [u64; QUEUES.len()]) {
        match self {
            Self::Bars(bars) => bars.iter().zip(ended).for_each(|(bar, ended)| bar.set_position(ended)),
            Self::Lines(last) if last.elapsed() >= LINE_EVERY => {
                *last = Instant::now();
                let parts: Vec<String> =
                    QUEUES.iter().zip(ended).map(|(name, ended)| format!("{name} {ended}")).collect();
                eprintln!("  {} of {EVENTS}", parts.join(", "));
            }
            Self::Lines(_) => {}
        }
    }

    fn finish(&mut self) {
        if let Self::Bars(bars) = self {
            bars.iter().for_each(|bar| bar.finish());
        }
    }
}
