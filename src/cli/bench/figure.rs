//! What is told of a measurement: as JSON, and as a table with a small histogram.

use std::io::IsTerminal;

use serde::Serialize;

use super::board::Waits;
use super::plan::{Kind, Plan};
use super::round::{Round, Turn};
use crate::cli::fault::Fault;
use crate::cli::output::{Output, Paint};
use crate::cli::table::{Table, counted, grouped, number, plain, text};

/// `bench --format json`. The first nine are the contract; what follows is for whoever wants more.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The address without passwords.
    pub broker: String,
    /// Jobs of a round.
    pub jobs: u64,
    /// The worker's jobs a second; medians of the rounds, here and below.
    pub per_s: f64,
    /// The raw loop's; `null` where a rate was asked for.
    pub raw_per_s: Option<f64>,
    /// The first of these by the second.
    pub ratio: Option<f64>,
    /// From publishing to starting, of what was published at a gentle or given rate; over all rounds.
    pub start_ms: Start,
    /// Ids that were published and never ran.
    pub lost: u64,
    /// Runs beyond the first of each id. Nothing was killed, so that none is expected.
    pub duplicates: u64,
    /// The most memory that the worker's process had at once.
    pub rss_peak_mib: Option<f64>,
    /// CPU of the worker's process, not of the broker's.
    pub cpu_s_per_1k: Option<f64>,
    /// What a job did.
    pub kind: Kind,
    /// Bytes of an argument.
    pub payload: usize,
    /// Slots of the worker.
    pub slots: usize,
    /// Rounds.
    pub rounds: usize,
    /// The lowest and the highest rate of the rounds.
    pub per_s_range: [f64; 2],
    /// Published and confirmed a second.
    pub published_per_s: Option<f64>,
    /// From the start of the worker's process to that of its first job.
    pub first_job_ms: Option<f64>,
    /// The raw loops, the one of `raw_per_s` first.
    pub raw: Vec<Raw>,
    /// How late this machine woke a thread that slept, while the waits were measured.
    pub machine_late_ms: Start,
    /// What the broker still held in the end, though it had run.
    pub unsettled: u64,
    /// Starts before an earlier job of the same key.
    pub out_of_order: u64,
}

/// Waits, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Start {
    /// Half of them did not exceed this.
    pub p50: Option<f64>,
    /// 99 of 100 did not.
    pub p99: Option<f64>,
    /// The longest.
    pub max: Option<f64>,
}

/// A raw loop.
#[derive(Clone, Debug, Serialize)]
pub struct Raw {
    /// What it is.
    pub name: String,
    /// Jobs a second.
    pub per_s: f64,
    /// CPU seconds for 1,000.
    pub cpu_s_per_1k: Option<f64>,
    /// The most memory at once.
    pub rss_peak_mib: Option<f64>,
}

impl Start {
    fn new(waits: &Waits) -> Self {
        let known = |figure: f64| (waits.count() > 0).then(|| tidy(figure));
        Self { p50: known(waits.quantile_ms(0.5)), p99: known(waits.quantile_ms(0.99)), max: known(waits.max_ms()) }
    }
}

impl Figures {
    /// Of these rounds, of which there is at least one.
    pub fn new(broker: &str, plan: &Plan, rounds: &[Round]) -> Self {
        let of = |figure: &dyn Fn(&Round) -> Option<f64>| median(rounds.iter().filter_map(figure).collect());
        let worker = |figure: &dyn Fn(&Turn) -> Option<f64>| of(&|round| figure(&round.worker));
        let names = rounds.first().map(|round| round.raw.iter().map(|(name, _)| name.clone())).into_iter().flatten();
        let raw: Vec<Raw> = names
            .enumerate()
            .map(|(index, name)| {
                let turn = |figure: &dyn Fn(&Turn) -> Option<f64>| of(&|round| figure(&round.raw.get(index)?.1));
                Raw {
                    name,
                    per_s: tidy(turn(&|turn| Some(turn.per_s)).unwrap_or(0.0)),
                    cpu_s_per_1k: turn(&|turn| turn.cpu_per_1k).map(tidy),
                    rss_peak_mib: turn(&|turn| turn.peak_mib).map(tidy),
                }
            })
            .collect();
        // Where jobs take time, tasks that do nothing else are the limit too, and stand last.
        let limits = match plan.kind {
            Kind::Noop | Kind::Yield => raw.first().into_iter().chain(None),
            _ => raw.first().into_iter().chain(raw.last()),
        };
        let raw_per_s = limits.map(|raw| raw.per_s).min_by(f64::total_cmp);
        let per_s = worker(&|turn| Some(turn.per_s)).unwrap_or(0.0);
        let rates = || rounds.iter().map(|round| round.worker.per_s);
        Self {
            broker: broker.to_owned(),
            jobs: plan.jobs,
            per_s: tidy(per_s),
            raw_per_s: raw_per_s.map(tidy),
            ratio: raw_per_s.filter(|raw| *raw > 0.0).map(|raw| (per_s / raw * 1e3).round() / 1e3),
            start_ms: Start::new(&merge(rounds, |round| &round.waits)),
            lost: rounds.iter().map(|round| round.lost).sum(),
            duplicates: rounds.iter().map(|round| round.duplicates).sum(),
            rss_peak_mib: worker(&|turn| turn.peak_mib).map(tidy),
            cpu_s_per_1k: worker(&|turn| turn.cpu_per_1k).map(tidy),
            kind: plan.kind,
            payload: plan.payload,
            slots: plan.slots,
            rounds: rounds.len(),
            per_s_range: [
                tidy(rates().min_by(f64::total_cmp).unwrap_or(0.0)),
                tidy(rates().max_by(f64::total_cmp).unwrap_or(0.0)),
            ],
            published_per_s: of(&|round| round.published_per_s).map(tidy),
            first_job_ms: worker(&|turn| turn.first_ms).map(tidy),
            raw,
            machine_late_ms: Start::new(&merge(rounds, |round| &round.late)),
            unsettled: rounds.iter().map(|round| round.left).sum(),
            out_of_order: rounds.iter().map(|round| round.disorder).sum(),
        }
    }

    /// Whether nothing was lost, left or turned round.
    pub fn passes(&self) -> bool {
        self.lost == 0 && self.unsettled == 0 && self.out_of_order == 0
    }

    /// For people.
    pub fn write(&self, out: &mut Output, plan: &Plan, rounds: &[Round]) -> Result<(), Fault> {
        let times = if self.rounds > 1 { format!(", median of {} rounds", self.rounds) } else { String::new() };
        out.line(format_args!("{}: {}{times}", Paint::Bold.on(&self.broker), plan.told()))?;
        let mut table =
            Table::new(&[text(""), number("JOBS/S"), number("RATIO"), number("CPU-S/1,000"), number("MIB")]);
        let cpu = |cpu: Option<f64>| plain(cpu.map_or("?".to_owned(), |cpu| format!("{cpu:.4}")));
        let mib = |mib: Option<f64>| plain(mib.map_or("?".to_owned(), |mib| format!("{mib:.0}")));
        for raw in &self.raw {
            table.row(vec![
                plain(raw.name.as_str()),
                plain(grouped(raw.per_s as u64)),
                plain(""),
                cpu(raw.cpu_s_per_1k),
                mib(raw.rss_peak_mib),
            ]);
        }
        let ratio = self.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        table.row(vec![
            ("windlass".to_owned(), Some(Paint::Bold)),
            (grouped(self.per_s as u64), Some(Paint::Bold)),
            (ratio, Some(Paint::Bold)),
            cpu(self.cpu_s_per_1k),
            mib(self.rss_peak_mib),
        ]);
        out.line(&table)?;
        if let Some(per_s) = self.published_per_s {
            let by = match plan.producers {
                Some(producers) => format!("by {} that await each confirmation", counted(producers as u64, "producer")),
                None => "in bulk".to_owned(),
            };
            out.line(format_args!("published {} a second, {by}", grouped(per_s as u64)))?;
        }
        if let Some(first) = self.first_job_ms {
            out.line(format_args!("first job {first:.0} ms after the start of the process"))?;
        }
        if let Start { p50: Some(p50), p99: Some(p99), max: Some(max) } = self.start_ms {
            let rate = plan.rate.unwrap_or(plan.gentle.1);
            out.line(format_args!(
                "from publishing to starting, at {rate:.0} a second: half within {p50:.2} ms, 99 % within {p99:.2} ms, \
                 all within {max:.2} ms"
            ))?;
            if std::io::stdout().is_terminal() {
                histogram(out, &merge(rounds, |round| &round.waits))?;
            }
            if let Some(late) = self.machine_late_ms.p99 {
                out.line(format_args!(
                    "  meanwhile this machine woke a sleeping thread up to {late:.2} ms late (99 %)"
                ))?;
            }
        }
        let published = plan.ids() * self.rounds as u64;
        let verdict = if self.passes() { Paint::Green } else { Paint::Red };
        let mut told = vec![format!("{} lost", grouped(self.lost)), format!("{} run twice", grouped(self.duplicates))];
        if plan.keys > 0 {
            told.push(format!("{} out of order", grouped(self.out_of_order)));
        }
        if self.unsettled > 0 {
            told.push(format!("{} run and not settled", grouped(self.unsettled)));
        }
        let told = verdict.on(&told.join(", "));
        out.line(format_args!("audit: of {} published, {told}", counted(published, "job")))
    }
}

fn histogram(out: &mut Output, waits: &Waits) -> Result<(), Fault> {
    const WIDTH: f64 = 40.0;
    let powers = waits.powers();
    let Some(first) = powers.iter().position(|(_, count)| *count > 0) else { return Ok(()) };
    let last = powers.iter().rposition(|(_, count)| *count > 0).unwrap_or(first);
    let most = powers.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    for (bound, count) in &powers[first..=last] {
        let length = (*count as f64 / most as f64 * WIDTH).ceil() as usize;
        let bound = if *bound < 1.0 { format!("{bound:.3}") } else { format!("{bound:.1}") };
        out.line(format_args!("  < {bound:>8} ms  {:<40}  {}", "#".repeat(length), grouped(*count)))?;
    }
    Ok(())
}

fn merge(rounds: &[Round], of: impl Fn(&Round) -> &Waits) -> Waits {
    rounds.iter().fold(Waits::default(), |all, round| all.and(of(round)))
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        count if count % 2 == 0 => Some((figures[middle - 1] + figures[middle]) / 2.0),
        _ => Some(figures[middle]),
    }
}

/// As many digits as mean something.
fn tidy(figure: f64) -> f64 {
    if figure >= 1_000.0 { figure.round() } else { (figure * 1e5).round() / 1e5 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(per_s: f64, raw: f64) -> Round {
        let turn = |per_s| Turn { per_s, cpu_per_1k: Some(0.001), peak_mib: Some(20.0), first_ms: Some(9.0) };
        Round {
            published_per_s: Some(1_000.0),
            raw: vec![("raw".to_owned(), turn(raw))],
            worker: turn(per_s),
            ..Round::default()
        }
    }

    fn plan() -> Plan {
        Plan {
            jobs: 100,
            payload: 200,
            slots: 64,
            kind: Kind::Noop,
            takes: std::time::Duration::ZERO,
            rate: None,
            producers: None,
            repeat: 3,
            keys: 0,
            bare: false,
            gentle: (0, 0.0),
        }
    }

    #[test]
    fn figures_are_medians_and_their_ratio() {
        let rounds = [round(50.0, 100.0), round(60.0, 90.0), round(10.0, 500.0)];
        let figures = Figures::new("memory://", &plan(), &rounds);
        assert_eq!((figures.per_s, figures.raw_per_s, figures.ratio), (50.0, Some(100.0), Some(0.5)));
        assert_eq!((figures.per_s_range, figures.start_ms.p50, figures.lost), ([10.0, 60.0], None, 0));
        assert!(figures.passes());
    }

    #[test]
    fn the_contract_comes_first() {
        let json = serde_json::to_string(&Figures::new("..", &plan(), &[round(50.0, 100.0)])).expect("JSON");
        let begins = r#"{"broker":"..","jobs":100,"per_s":50.0,"raw_per_s":100.0,"ratio":0.5,"start_ms":{"p50":null,"p99":null,"max":null},"lost":0,"duplicates":0,"rss_peak_mib":20.0,"cpu_s_per_1k":0.001,"#;
        assert!(json.starts_with(begins), "{json}");
    }

    #[test]
    fn what_the_tasks_alone_could_do_limits_too() {
        let mut slow = round(40.0, 100.0);
        slow.raw.push(("bare".to_owned(), Turn { per_s: 50.0, ..Turn::default() }));
        let figures = Figures::new("..", &Plan { kind: Kind::Sleep, ..plan() }, &[slow]);
        assert_eq!((figures.raw_per_s, figures.ratio), (Some(50.0), Some(0.8)));
    }

    #[test]
    fn one_lost_job_fails() {
        let lost = Round { lost: 1, ..round(1.0, 1.0) };
        assert!(!Figures::new("..", &plan(), &[round(1.0, 1.0), lost]).passes());
        assert!(!Figures::new("..", &plan(), &[Round { left: 1, ..round(1.0, 1.0) }]).passes());
    }
}
