//! The jobs that every binary has: `log`, `sleep` and `fail`.
//!
//! | job | argument | what it does |
//! |---|---|---|
//! | `log` | anything | writes the event to the log, level info, target `windlass::job::log`, field `event`: CloudEvents JSON |
//! | `sleep` | `1500`, `"1m30s"`, `{"ms": 1500}`, `{"for": "1m30s"}`, nothing (1 s) | sleeps |
//! | `fail` | nothing, or see [`Fail`] | fails |
//!
//! `sleep` and `fail` take further keys in their objects and do not read them, so that any event can carry what they
//! need. A job of the same name in the registry comes before these.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::{Value, json};

use super::{Context, Entry, Error, Handler, IntoHandler, Threading};
use crate::message::Event;
use crate::time::parse_duration;

/// Names of the built-in jobs.
pub const NAMES: [&str; 3] = ["fail", "log", "sleep"];

/// A built-in job.
pub fn get(job: &str) -> Option<Entry> {
    static JOBS: LazyLock<[Arc<dyn Handler>; 3]> =
        LazyLock::new(|| [Arc::new(fail.into_handler()), Arc::new(log.into_handler()), Arc::new(sleep.into_handler())]);
    let place = NAMES.iter().position(|name| *name == job)?;
    Some(Entry { handler: JOBS[place].clone(), threading: Threading::Async, timeout: None, retry: None })
}

async fn log(event: Event, cx: Context) -> Result<Value, Error> {
    tracing::info!(
        target: "windlass::job::log",
        queue = %cx.queue(),
        attempt = cx.attempt(),
        event = %event.to_json(),
        "event"
    );
    Ok(if cx.wants_result() { event.to_json() } else { Value::Null })
}

async fn sleep(Sleep(time): Sleep) -> Result<Value, Error> {
    tokio::time::sleep(time).await;
    Ok(json!({ "slept_ms": u64::try_from(time.as_millis()).unwrap_or(u64::MAX) }))
}

async fn fail(fail: Option<Fail>, cx: Context) -> Result<Value, Error> {
    let fail = fail.unwrap_or_default();
    if fail.times.is_some_and(|times| cx.attempt() > times) {
        return Ok(json!({ "attempt": cx.attempt() }));
    }
    let error = fail.error;
    let time = fail.time.unwrap_or(Duration::from_secs(1));
    Err(match fail.kind {
        Kind::Retry => Error::retry("fail", error),
        Kind::Permanent => Error::permanent(error),
        Kind::Malformed => Error::malformed(error),
        Kind::RetryAfter => Error::retry_after(time, error),
        Kind::Snooze => Error::snooze(time),
        Kind::Panic => panic!("{error}"),
        Kind::Timeout => std::future::pending().await,
    })
}

/// The argument of `fail`.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct Fail {
    /// The error's text; `failed on purpose` where there is none.
    error: String,
    /// How it fails; `retry` where it is not said.
    kind: Kind,
    /// After so many attempts it succeeds; never where it is not said.
    times: Option<u32>,
    /// Of `retry_after` and `snooze`: `"5s"`, or a number of milliseconds; 1 s where it is not said.
    #[serde(rename = "for", alias = "ms", deserialize_with = "optional_time")]
    time: Option<Duration>,
}

impl Default for Fail {
    fn default() -> Self {
        Self { error: "failed on purpose".to_owned(), kind: Kind::Retry, times: None, time: None }
    }
}

/// How `fail` fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// A retryable error.
    #[default]
    Retry,
    /// A dead letter, `permanent`.
    Permanent,
    /// A dead letter, `malformed`.
    Malformed,
    /// Not before `for`.
    RetryAfter,
    /// After `for`, without using an attempt: `times` is never reached.
    Snooze,
    /// Panics.
    Panic,
    /// Never ends by itself.
    Timeout,
}

/// The argument of `sleep`.
#[derive(Debug)]
struct Sleep(Duration);

impl<'de> Deserialize<'de> for Sleep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let inner = match &value {
            Value::Object(object) => object.get("ms").or_else(|| object.get("for")).unwrap_or(&Value::Null),
            other => other,
        };
        let time = read_time(inner).map_err(D::Error::custom)?;
        Ok(Self(time.unwrap_or(Duration::from_secs(1))))
    }
}

fn optional_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    read_time(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn read_time(value: &Value) -> Result<Option<Duration>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => parse_duration(text).map(Some),
        Value::Number(number) => number
            .as_f64()
            .and_then(|millis| Duration::try_from_secs_f64(millis / 1e3).ok())
            .map(Some)
            .ok_or_else(|| format!("expected a number of milliseconds that is not negative, found {number}")),
        other => Err(format!("expected a number of milliseconds or a duration such as \"5s\", found {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::{Output, Verdict, fixture};

    async fn run(job: &str, body: &str, attempt: u32) -> Result<Output, Error> {
        let handler = get(job).expect("built in").handler;
        handler.call(fixture::context(fixture::event(&[], body.as_bytes()), attempt, true).await).await
    }

    #[tokio::test]
    async fn log_gives_the_event() {
        let event = run("log", "{\"a\":1}", 1).await.expect("done").expect("a result");
        assert_eq!(
            (&event["id"], &event["type"], &event["data"]["a"]),
            (&json!("sqlite:reports:17"), &json!("reports"), &json!(1))
        );
        let event = run("log", "plain text", 1).await.expect("done").expect("a result");
        assert_eq!(event["data"], "plain text");
    }

    #[tokio::test(start_paused = true)]
    async fn sleep_takes_its_time_in_any_form() {
        for (body, millis) in [
            ("250", 250),
            ("\"1m30s\"", 90_000),
            ("{\"ms\": 1.5, \"n\": 7}", 1),
            ("{\"for\": \"5s\"}", 5_000),
            ("{}", 1_000),
            ("", 1_000),
        ] {
            let start = tokio::time::Instant::now();
            assert_eq!(run("sleep", body, 1).await.expect("done"), Some(json!({ "slept_ms": millis })));
            assert!(start.elapsed() >= Duration::from_millis(millis), "{body}");
        }
        for bad in ["-1", "\"soon\"", "[1]", "{\"ms\":true}", "1e300"] {
            assert_eq!(run("sleep", bad, 1).await.expect_err(bad).verdict(), Verdict::Malformed, "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn fail_fails_as_it_is_told() {
        for (body, verdict) in [
            ("", Verdict::Retry),
            ("{\"kind\":\"permanent\"}", Verdict::Permanent),
            ("{\"kind\":\"malformed\"}", Verdict::Malformed),
            ("{\"kind\":\"retry_after\",\"for\":\"7s\"}", Verdict::RetryAfter(Duration::from_secs(7))),
            ("{\"kind\":\"snooze\",\"ms\":20}", Verdict::Snooze(Duration::from_millis(20))),
            ("{\"kind\":\"sideways\"}", Verdict::Malformed),
        ] {
            assert_eq!(run("fail", body, 1).await.expect_err(body).verdict(), verdict, "{body}");
        }
        assert_eq!(run("fail", "{\"error\":\"no paper\",\"n\":1}", 1).await.expect_err("fails").message(), "no paper");
        assert!(run("fail", "{\"times\":2}", 2).await.is_err());
        assert!(run("fail", "{\"times\":2}", 3).await.is_ok());
        let endless = tokio::time::timeout(Duration::from_secs(3_600), run("fail", "{\"kind\":\"timeout\"}", 1));
        assert!(endless.await.is_err());
        let panicked =
            tokio::spawn(run("fail", "{\"kind\":\"panic\",\"error\":\"ouch\"}", 1)).await.expect_err("panics");
        assert_eq!(*panicked.into_panic().downcast::<String>().expect("a text"), "ouch");
    }
}
