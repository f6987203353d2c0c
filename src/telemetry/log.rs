//! Where log lines go and how they look: stderr, for people or an object a line.
//!
//! The JSON fields are those of INTERFACE 7, flat, in one order: `timestamp level message queue job event_id attempt
//! outcome duration_ms error_type error trace_id worker`, then whatever else a line has. Fields of the spans a line is
//! written in are there too, so that a job that logs within [`Context::span`](crate::Context::span) says which it is.

use std::fmt::{self, Write as _};
use std::io::{IsTerminal, Write as _};
use std::sync::Arc;

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use super::events::{Audience, set_audience};
use crate::time::Clock;

/// `[log]`
#[derive(Clone, Debug)]
pub struct Config {
    /// A level, or a `tracing` filter.
    pub level: String,
    /// Whether somebody set it: where nobody did, `RUST_LOG` comes before the default.
    pub level_set: bool,
    /// How lines look.
    pub format: Format,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// Pretty on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// An object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), level_set: false, format: Format::Auto }
    }
}

/// What keeps logging from being set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `log.level` or `RUST_LOG` is no filter.
    #[error("expected a level (error, warn, info, debug, trace) or a filter such as \"info,sqlx=debug\", found {0:?}")]
    Filter(String),
}

/// Sets logging up for the whole process. `worker` is the field of that name (see [`worker_name`]);
/// `every_outcome` is `run --dev`. A process that has set logging up already keeps what it has.
pub fn install(config: &Config, worker: &str, every_outcome: bool) -> Result<(), Error> {
    let filter = filter(config, std::env::var("RUST_LOG").ok())?;
    let terminal = std::io::stderr().is_terminal();
    let pretty = config.format == Format::Pretty || (config.format == Format::Auto && terminal);
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let look = match pretty {
        true => Look::Pretty { colour },
        false => Look::Json,
    };
    let lines = Lines { look, worker: worker.into(), sink: Arc::new(to_stderr) };
    // An application that embeds us and has a subscriber keeps it.
    let _ = Registry::default().with(filter).with(lines).try_init();
    set_audience(match (every_outcome, pretty && terminal) {
        (true, _) => Audience::Developer,
        (false, true) => Audience::Terminal,
        (false, false) => Audience::Machine,
    });
    Ok(())
}

/// Whether `level` can be used, for the check of a configuration.
pub fn check(level: &str) -> Result<(), Error> {
    parse(level).map(drop)
}

/// Names this process: the host's name (in Kubernetes the pod's) and the process id.
pub fn worker_name() -> String {
    let mut buffer = [0u8; 256];
    // SAFETY: the buffer is writable for its length less one, so what is written is always terminated by a 0.
    let failed = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len() - 1) } != 0;
    let length = buffer.iter().position(|byte| *byte == 0).unwrap_or(0);
    let host = match std::str::from_utf8(&buffer[..length]) {
        Ok(host) if !failed && !host.is_empty() => host,
        _ => "localhost",
    };
    format!("{host}-{}", std::process::id())
}

fn filter(config: &Config, rust_log: Option<String>) -> Result<EnvFilter, Error> {
    match rust_log.filter(|text| !config.level_set && !text.trim().is_empty()) {
        Some(text) => parse(&text),
        None => parse(&config.level),
    }
}

/// What is compiled in with us and logs for its own developers.
const LIBRARIES: [&str; 9] =
    ["async_nats", "h2", "hyper", "hyper_util", "rdkafka", "reqwest", "rustls", "sqlx", "tower"];

fn parse(text: &str) -> Result<EnvFilter, Error> {
    let text = text.trim();
    let wrong = || Error::Filter(text.to_owned());
    if text.is_empty() {
        return Err(wrong());
    }
    let bare: Option<Level> = text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_alphabetic()));
    let full = match bare {
        // Whoever asks for info wants ours and their own, not what a library says of each connection; at debug, not
        // each frame.
        Some(level) if level >= Level::INFO => {
            let most = if level > Level::INFO { "info" } else { "warn" };
            format!("{text},{}", LIBRARIES.map(|library| format!("{library}={most}")).join(","))
        }
        Some(_) => text.to_owned(),
        // `EnvFilter` takes any word for a module's name, so a misspelt level would silence everything.
        None if !text.contains(['=', ',', '[']) && !matches!(text, "off") => return Err(wrong()),
        None => text.to_owned(),
    };
    EnvFilter::try_new(full).map_err(|_| wrong())
}

fn to_stderr(line: &str) {
    // There is nobody left to tell.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Writes lines; a layer of ours because the fields of spans are to be flat and in one order.
struct Lines {
    look: Look,
    worker: Arc<str>,
    sink: Arc<dyn Fn(&str) + Send + Sync>,
}

enum Look {
    Pretty { colour: bool },
    Json,
}

/// Fields in the order they were recorded; a later one of the same name replaces an earlier one.
#[derive(Clone, Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn set(&mut self, name: &'static str, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(known, _)| *known == name)?;
        Some(self.0.remove(at).1)
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field.name(), value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), value.into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), value.into());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field.name(), format!("{value:?}").into());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            for (name, value) in span.extensions().get::<Fields>().into_iter().flat_map(|fields| &fields.0) {
                fields.set(name, value.clone());
            }
        }
        event.record(&mut fields);
        let level = *event.metadata().level();
        let mut line = match self.look {
            Look::Json => self.json(level, fields),
            Look::Pretty { colour } => pretty(level, fields, colour),
        };
        line.push('\n');
        (self.sink)(&line);
    }
}

/// The fields of INTERFACE 7 between `message` and `worker`, in its order.
const ORDER: [&str; 9] =
    ["queue", "job", "event_id", "attempt", "outcome", "duration_ms", "error_type", "error", "trace_id"];

impl Lines {
    fn json(&self, level: Level, mut fields: Fields) -> String {
        let mut line = String::with_capacity(256);
        let mut put = |name: &str, value: &Value| {
            line.push(if line.is_empty() { '{' } else { ',' });
            // Writing to a String cannot fail.
            let _ = write!(line, "{}:{value}", Value::from(name));
        };
        put("timestamp", &Clock::System.now().to_rfc3339().into());
        put("level", &level.as_str().to_ascii_lowercase().into());
        put("message", &fields.take("message").unwrap_or_default());
        for name in ORDER {
            if let Some(value) = fields.take(name) {
                put(name, &value);
            }
        }
        put("worker", &(*self.worker).into());
        for (name, value) in &fields.0 {
            // A name that is taken above would make the object ambiguous.
            match *name {
                "timestamp" | "level" | "worker" => put(&format!("{name}_"), value),
                _ => put(name, value),
            }
        }
        line.push('}');
        line
    }
}

fn pretty(level: Level, mut fields: Fields, colour: bool) -> String {
    let (dim, end) = if colour { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    let tint = match level {
        _ if !colour => "",
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[34m",
    };
    let now = Clock::System.now().to_rfc3339();
    let time = now.get(11..23).unwrap_or(&now);
    let message = fields.take("message").unwrap_or_default();
    let mut line = format!("{dim}{time}{end} {tint}{level:>5}{end} {}", text(&message));
    for (name, value) in &fields.0 {
        // Writing to a String cannot fail.
        let _ = write!(line, "  {dim}{name}={end}{}", text(value));
    }
    line
}

/// A value for people; what would break the line or the terminal is escaped.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().any(char::is_control) => text.escape_debug().to_string(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What this thread logs until the guard is dropped, as JSON, for tests.
#[cfg(test)]
pub(crate) fn capture(level: &str) -> (tracing::subscriber::DefaultGuard, Arc<parking_lot::Mutex<Vec<String>>>) {
    let written = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let sink = {
        let written = written.clone();
        move |line: &str| written.lock().push(line.to_owned())
    };
    let lines = Lines { look: Look::Json, worker: "host-1".into(), sink: Arc::new(sink) };
    let subscriber = Registry::default().with(parse(level).expect("a filter")).with(lines);
    (tracing::subscriber::set_default(subscriber), written)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;
    use crate::broker::Disposition;
    use crate::message::{Attempt, Failure, JobName, QueueName};
    use crate::telemetry::events::{Concluded, Done, Run, done_enabled, trace_id};
    use crate::telemetry::meter::OutcomeLabel;
    use crate::time::Timestamp;

    /// What `body` logs.
    fn lines(look: Look, level: &str, body: impl FnOnce()) -> Vec<String> {
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let written = written.clone();
            move |line: &str| written.lock().push(line.to_owned())
        };
        let lines = Lines { look, worker: "host-1".into(), sink: Arc::new(sink) };
        let subscriber = Registry::default().with(parse(level).expect("a filter")).with(lines);
        tracing::subscriber::with_default(subscriber, body);
        std::mem::take(&mut *written.lock())
    }

    fn retry(queue: &str) {
        let failed = Timestamp::from_millis(1_763_719_200_000);
        Concluded {
            queue: &QueueName::new(queue).expect("valid"),
            job: &JobName::new("render").expect("valid"),
            event_id: "e-1",
            attempt: 2,
            outcome: OutcomeLabel::Failed,
            took: Duration::from_micros(1_500),
            trace_id: trace_id("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            disposition: &Disposition::Retry {
                at: failed,
                attempt: Attempt::FIRST,
                failure: Some(Failure::new("io::Error", "line one\nline \"two\"", failed, failed)),
                unroutable_since: None,
            },
        }
        .emit();
    }

    #[test]
    fn done_jobs_are_debug() {
        let run = Run {
            queue: &QueueName::new("log-done").expect("valid"),
            job: &JobName::new("render").expect("valid"),
            event_id: "e-1",
            attempt: 1,
            trace_id: trace_id("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        };
        let done = || {
            if done_enabled() {
                Done { run, took: Duration::from_micros(1_500) }.emit();
            }
        };
        assert_eq!(lines(Look::Json, "info", done), Vec::<String>::new());
        let lines = lines(Look::Json, "debug", done);
        let object: Value = serde_json::from_str(&lines[0]).expect("an object");
        assert_eq!(object["duration_ms"], 1.5);
        assert_eq!(object["outcome"], "done");
        assert_eq!(object["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    }

    #[test]
    fn json_has_the_fields_of_the_contract_in_order() {
        let lines = lines(Look::Json, "info", || retry("log-json"));
        assert_eq!(lines.len(), 1);
        let line = &lines[0];
        let object: serde_json::Map<String, Value> = serde_json::from_str(line).expect("an object a line");
        let expected = [
            "timestamp",
            "level",
            "message",
            "queue",
            "job",
            "event_id",
            "attempt",
            "outcome",
            "duration_ms",
            "error_type",
            "error",
            "trace_id",
            "worker",
        ];
        let places: Vec<_> = expected.iter().map(|name| line.find(&format!("\"{name}\":")).expect(name)).collect();
        assert!(places.is_sorted(), "{line}");
        assert_eq!(object["level"], "warn");
        assert_eq!(object["attempt"], 2);
        assert_eq!(object["error"], "line one\nline \"two\"");
        assert_eq!(object["worker"], "host-1");
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn a_line_of_a_job_says_which_job() {
        let lines = lines(Look::Json, "info", || {
            let span = tracing::info_span!("job", queue = "q", event_id = "e", attempt = 3);
            let _entered = span.enter();
            tracing::info!(worker = "mine", attempt = 4, "hello");
        });
        let object: Value = serde_json::from_str(&lines[0]).expect("an object");
        assert_eq!((&object["queue"], &object["event_id"]), (&"q".into(), &"e".into()));
        assert_eq!(object["attempt"], 4, "the line's own field counts");
        assert_eq!((&object["worker"], &object["worker_"]), (&"host-1".into(), &"mine".into()));
    }

    #[test]
    fn people_get_one_line_without_escapes_unless_they_want_colour() {
        let plain = lines(Look::Pretty { colour: false }, "info", || retry("log-pretty"));
        assert!(!plain[0].contains('\x1b'), "{}", plain[0]);
        assert!(plain[0].contains(" WARN job failed and is tried again  queue=log-pretty"), "{}", plain[0]);
        assert_eq!(plain[0].matches('\n').count(), 1, "{}", plain[0]);
        let coloured = lines(Look::Pretty { colour: true }, "info", || retry("log-colour"));
        assert!(coloured[0].contains("\x1b[33m"));
    }

    #[test]
    fn a_storm_of_retries_is_a_few_lines() {
        let lines = lines(Look::Json, "info", || (0..50_000).for_each(|_| retry("log-storm")));
        // Ten a second; a slow machine may need more than one second for the storm.
        assert!((10..=200).contains(&lines.len()), "{}", lines.len());
    }

    #[test]
    fn rust_log_counts_where_nobody_set_a_level() {
        let config = |level: &str, level_set| Config { level: level.to_owned(), level_set, format: Format::Auto };
        let shown =
            |config, rust_log: Option<&str>| filter(&config, rust_log.map(str::to_owned)).map(|f| f.to_string());
        assert_eq!(shown(config("info", false), Some("warn")).expect("valid"), "warn");
        for set in [shown(config("info", true), Some("warn")), shown(config("info", false), Some("  "))] {
            assert!(set.expect("valid").ends_with(",info"));
        }
        assert!(shown(config("info", false), Some("inof")).is_err());
    }

    #[test]
    fn libraries_are_heard_when_they_warn() {
        let said = || {
            tracing::info!(target: "async_nats::connector", "event: connected");
            tracing::warn!(target: "async_nats::connector", "event: slow consumer");
            tracing::info!(target: "their_jobs::invoice", "rendered");
        };
        assert_eq!(lines(Look::Json, "info", said).len(), 2);
        assert_eq!(lines(Look::Json, "debug", said).len(), 3);
        assert_eq!(lines(Look::Json, "error", said).len(), 0);
        assert_eq!(lines(Look::Json, "info,async_nats=info", said).len(), 3, "who names it gets it");
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        for good in ["info", "DEBUG", "off", "info,sqlx=debug", "windlass=trace"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "  ", "inof", "verbose", "windlass=loud"] {
            assert!(check(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
