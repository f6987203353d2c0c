//! Everything that is measured, in Prometheus' text format, once per process.
//!
//! Counters and gauges live in the recorder of `metrics-exporter-prometheus`, which is installed as the process'
//! own so that what a job counts with the `metrics` macros is shown too. Histograms and what the broker holds are
//! rendered by us: the first for their memory, the second because a figure that a broker cannot know is absent, and
//! the recorder cannot forget a gauge.

use std::fmt::Write;
use std::sync::{Arc, OnceLock};

use metrics::{Counter, Gauge, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use parking_lot::Mutex;

use super::histogram::Histogram;

/// The kind of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// A gauge of what the broker holds: rendered by us, absent where unknown.
    Depth,
}

/// Every family: name, kind, help.
const FAMILIES: [(&str, Kind, &str); 24] = [
    ("windlass_jobs_total", Kind::Counter, "Attempts that ended, by outcome."),
    ("windlass_job_retries_total", Kind::Counter, "Retries that were stored."),
    ("windlass_dead_letters_total", Kind::Counter, "Dead letters that were stored, by reason."),
    ("windlass_dead_letters_expired_total", Kind::Counter, "Dead letters removed after dead_letter.keep."),
    ("windlass_lost_total", Kind::Counter, "Events that their topic's retention removed before they could run."),
    ("windlass_redeliveries_total", Kind::Counter, "Deliveries of what had been handed out before."),
    ("windlass_in_flight", Kind::Gauge, "Jobs running in this process."),
    ("windlass_slots", Kind::Gauge, "Jobs that may run at once in this process."),
    ("windlass_bytes_in_flight", Kind::Gauge, "Bytes of payload of this queue in hand in this process."),
    ("windlass_unconfirmed", Kind::Gauge, "Jobs that ended and whose settlement the broker has not confirmed."),
    ("windlass_head_age_seconds", Kind::Gauge, "How long the job has been there that everything behind it waits for."),
    ("windlass_head_span", Kind::Gauge, "How far behind that job was read."),
    ("windlass_intake_paused", Kind::Gauge, "1 while nothing more is taken from the broker, by cause."),
    ("windlass_last_success_timestamp_seconds", Kind::Gauge, "When a job last succeeded, in Unix seconds; 0 is never."),
    ("windlass_broker_connected", Kind::Gauge, "1 while the broker answers."),
    ("windlass_build_info", Kind::Gauge, "Always 1; the labels say what runs."),
    ("windlass_queue_ready", Kind::Depth, "Jobs waiting and due, at the broker."),
    ("windlass_queue_retrying", Kind::Depth, "Jobs waiting for their next attempt, at the broker."),
    ("windlass_queue_scheduled", Kind::Depth, "Jobs enqueued for later, at the broker."),
    ("windlass_queue_oldest_age_seconds", Kind::Depth, "Age of the oldest job that is due, at the broker."),
    ("windlass_dead_letter_depth", Kind::Depth, "Dead letters, at the broker."),
    ("windlass_job_duration_seconds", Kind::Histogram, "How long attempts ran."),
    ("windlass_job_wait_seconds", Kind::Histogram, "From when a job could first have started to when it did."),
    ("windlass_settle_duration_seconds", Kind::Histogram, "From the end of an attempt to its confirmed settlement."),
];

/// What the broker holds of one queue; `None` is what it cannot know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Depth {
    /// The queue.
    pub queue: String,
    /// `queue_ready`
    pub ready: Option<u64>,
    /// `queue_retrying`
    pub retrying: Option<u64>,
    /// `queue_scheduled`
    pub scheduled: Option<u64>,
    /// `queue_oldest_age_seconds`
    pub oldest_age: Option<std::time::Duration>,
    /// `dead_letter_depth`
    pub dead: Option<u64>,
}

/// Shows these figures from now on; none at all where the broker could not be asked.
pub fn set_depths(depths: Vec<Depth>) {
    *exposition().depths.lock() = depths;
}

/// `broker_connected`
pub fn set_connected(connected: bool) {
    exposition().connected.set(if connected { 1.0 } else { 0.0 });
}

/// All metrics of this process as text, version 0.0.4.
pub fn render() -> String {
    let exposition = exposition();
    let mut out = exposition.handle.render();
    exposition.render_depths(&mut out);
    exposition.render_histograms(&mut out);
    out
}

/// Keeps the recorder from growing by what jobs themselves record; to be called every few seconds.
pub fn upkeep() {
    exposition().handle.run_upkeep();
}

pub(super) fn counter(name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
    exposition().recorder.register_counter(&key(name, labels), &METADATA)
}

pub(super) fn gauge(name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
    let gauge = exposition().recorder.register_gauge(&key(name, labels), &METADATA);
    // Registering alone shows it, at 0.
    gauge.increment(0.0);
    gauge
}

/// The histogram of this family and these labels, the same one for everybody who asks.
pub(super) fn histogram(name: &'static str, labels: &[(&'static str, &str)]) -> Arc<Histogram> {
    let text = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect::<Vec<_>>().join(",");
    let mut series = exposition().series.lock();
    if let Some(found) = series.iter().find(|series| series.name == name && series.labels == text) {
        return found.histogram.clone();
    }
    let histogram = Arc::new(Histogram::default());
    series.push(Series { name, labels: text, histogram: histogram.clone() });
    histogram
}

struct Exposition {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    connected: Gauge,
    series: Mutex<Vec<Series>>,
    depths: Mutex<Vec<Depth>>,
}

struct Series {
    name: &'static str,
    labels: String,
    histogram: Arc<Histogram>,
}

static METADATA: Metadata<'static> = Metadata::new("windlass", Level::INFO, Some("windlass"));

fn exposition() -> &'static Exposition {
    static EXPOSITION: OnceLock<Exposition> = OnceLock::new();
    EXPOSITION.get_or_init(Exposition::install)
}

impl Exposition {
    fn install() -> Self {
        let recorder = Arc::new(PrometheusBuilder::new().build_recorder());
        for (name, kind, help) in FAMILIES {
            match kind {
                Kind::Counter => recorder.describe_counter(KeyName::from(name), None, help.into()),
                Kind::Gauge => recorder.describe_gauge(KeyName::from(name), None, help.into()),
                Kind::Depth | Kind::Histogram => {}
            }
        }
        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("revision", option_env!("WINDLASS_REVISION").unwrap_or("unknown")),
        ];
        recorder.register_gauge(&key("windlass_build_info", &build), &METADATA).set(1.0);
        let connected = recorder.register_gauge(&key("windlass_broker_connected", &[]), &METADATA);
        connected.set(0.0);
        // An application that has installed a recorder keeps it; ours still shows what is ours.
        let _ = metrics::set_global_recorder(recorder.clone());
        let handle = recorder.handle();
        Self { recorder, handle, connected, series: Mutex::default(), depths: Mutex::default() }
    }

    fn render_depths(&self, out: &mut String) {
        let depths = self.depths.lock();
        for (name, kind, help) in FAMILIES {
            if kind != Kind::Depth {
                continue;
            }
            head(name, "gauge", help, out);
            for depth in depths.iter() {
                let value = match name {
                    "windlass_queue_ready" => depth.ready.map(|n| n as f64),
                    "windlass_queue_retrying" => depth.retrying.map(|n| n as f64),
                    "windlass_queue_scheduled" => depth.scheduled.map(|n| n as f64),
                    "windlass_queue_oldest_age_seconds" => depth.oldest_age.map(|age| age.as_secs_f64()),
                    _ => depth.dead.map(|n| n as f64),
                };
                if let Some(value) = value {
                    // Writing to a String cannot fail.
                    let _ = writeln!(out, "{name}{{queue=\"{}\"}} {value}", escape(&depth.queue));
                }
            }
            out.push('\n');
        }
    }

    fn render_histograms(&self, out: &mut String) {
        let series = self.series.lock();
        for (name, kind, help) in FAMILIES {
            if kind != Kind::Histogram {
                continue;
            }
            head(name, "histogram", help, out);
            for series in series.iter().filter(|series| series.name == name) {
                series.histogram.snapshot().render(name, &series.labels, out);
            }
            out.push('\n');
        }
    }
}

fn head(name: &str, kind: &str, help: &str, out: &mut String) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    Key::from_parts(name, labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect::<Vec<_>>())
}

/// A label's value as the text format wants it.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
#[path = "exposition_tests.rs"]
mod tests;
