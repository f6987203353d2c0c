//! What an answer, or none, means: the table in the documentation of [`http`](super).

use std::error::Error as _;
use std::io;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{ALLOW, DATE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use serde_json::Value;

use crate::handler::Error;
use crate::time::{Clock, Timestamp};

/// The error that an answer other than 2xx is.
pub fn error(status: StatusCode, headers: &HeaderMap, body: &[u8], url: &Url, bearer_file: Option<&Path>) -> Error {
    let text = text(body);
    let message = match (hint(status, headers, &text, url, bearer_file), text.is_empty()) {
        (Some(hint), true) => hint,
        (Some(hint), false) => format!("{hint}; it answered: {text}"),
        (None, false) => text,
        (None, true) => status.to_string(),
    };
    let kind = format!("http {}", status.as_u16());
    if is_permanent(status) {
        return Error::permanent(message).with_kind(kind);
    }
    match retry_after(headers, Clock::System.now()) {
        Some(delay) => Error::retry_after(delay, message).with_kind(kind),
        None => Error::retry(kind, message),
    }
}

fn is_permanent(status: StatusCode) -> bool {
    status.is_client_error() && !matches!(status.as_u16(), 401 | 403 | 404 | 405 | 408 | 409 | 425 | 429)
}

/// The result of a successful attempt, for `windlass try`.
pub fn result(body: &[u8]) -> Value {
    if body.is_empty() {
        return Value::Null;
    }
    serde_json::from_slice(body).unwrap_or_else(|_| text(body).into())
}

/// The error where there was no answer.
pub fn transport(error: &reqwest::Error, shown: &str) -> Error {
    let mut cause = error.source();
    let mut io = None;
    while let Some(inner) = cause {
        io = io.or(inner.downcast_ref::<io::Error>().map(io::Error::kind));
        cause = inner.source();
    }
    let (kind, what) = match io {
        Some(io::ErrorKind::ConnectionRefused) => {
            ("http refused", "refused the connection; is the server running?".to_owned())
        }
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            ("http reset", "reset the connection".to_owned())
        }
        _ if error.is_connect() && error.is_timeout() => {
            ("http connect", "did not accept the connection in time".to_owned())
        }
        _ if error.is_connect() => ("http connect", format!("cannot be reached: {}", chain(error))),
        _ => ("http broken", format!("broke off before it answered: {}", chain(error))),
    };
    Error::retry(kind, format_args!("{shown} {what}"))
}

/// An error's causes, without the URL that reqwest puts before them.
pub fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let part = inner.to_string();
        if !text.ends_with(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        cause = inner.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

/// What a person should know about this answer.
fn hint(status: StatusCode, headers: &HeaderMap, body: &str, url: &Url, bearer_file: Option<&Path>) -> Option<String> {
    let header = |name| headers.get(name).and_then(|value: &reqwest::header::HeaderValue| value.to_str().ok());
    let code = status.as_u16();
    match code {
        300..=399 => {
            let location = header(LOCATION)?;
            Some(format!("{code} to {location}: {}", redirect(location, url)))
        }
        401 => Some(match bearer_file {
            Some(file) => {
                format!("401: the token in {} was refused; the file is read again at the next attempt", file.display())
            }
            None => "401: the endpoint wants credentials; give the job a bearer_file".to_owned(),
        }),
        403 if body.contains("CSRF") => {
            Some("403: the endpoint wants a CSRF token; exempt it (csrf_exempt)".to_owned())
        }
        404 => Some(format!("404: there is no {} on the server", url.path())),
        405 => Some(match header(ALLOW) {
            Some(allowed) => format!("405: {} takes {allowed}, not POST", url.path()),
            None => format!("405: {} does not take POST", url.path()),
        }),
        _ => None,
    }
}

/// What to do about a redirect, which is never followed: a POST may lose its body by it.
fn redirect(location: &str, url: &Url) -> &'static str {
    let Ok(target) = url.join(location) else { return "redirects are not followed" };
    let here = url.path();
    let there = target.path();
    if target.host_str() != url.host_str() {
        "redirects are not followed; set http to that address"
    } else if target.scheme() == "https" && url.scheme() == "http" {
        "use https"
    } else if there.strip_suffix('/') == Some(here) {
        "add the slash"
    } else if here.strip_suffix('/') == Some(there) {
        "leave out the slash at the end"
    } else if there.contains("login") || there.contains("signin") {
        "the endpoint wants a login; exempt it, or give the job a bearer_file"
    } else {
        "redirects are not followed; set http to that address"
    }
}

/// RFC 9110, 10.2.3: seconds, or a date, which counts by the server's own clock where it says its time. `None` where
/// there is none, where it cannot be read, and where it is no time at all: the policy's delay is the better one then.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let delay = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let server_now = headers.get(DATE).and_then(|date| date.to_str().ok()).and_then(http_date);
        server_now.unwrap_or(now).until(http_date(text)?)
    };
    Some(delay).filter(|delay| !delay.is_zero())
}

/// RFC 9110, 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`, and the two obsolete forms that must be understood.
fn http_date(text: &str) -> Option<Timestamp> {
    const FORMS: [&str; 3] = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    FORMS.iter().find_map(|form| {
        let time = jiff::civil::DateTime::strptime(form, text.trim()).ok()?;
        let instant = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
        Some(Timestamp::from_millis(instant.as_millisecond()))
    })
}

/// The answer as text, without the half of a character at which it was cut.
fn text(body: &[u8]) -> String {
    let whole = match std::str::from_utf8(body) {
        Err(error) if error.error_len().is_none() => &body[..error.valid_up_to()],
        _ => body,
    };
    String::from_utf8_lossy(whole).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::Verdict;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&str, &str)| {
            (name.parse::<reqwest::header::HeaderName>().expect("name"), value.parse().expect("value"))
        };
        pairs.iter().map(parse).collect()
    }

    fn answered(status: u16, pairs: &[(&str, &str)], body: &str) -> Error {
        let url = "http://127.0.0.1:8000/jobs/invoice".parse().expect("a URL");
        error(StatusCode::from_u16(status).expect("a status"), &headers(pairs), body.as_bytes(), &url, None)
    }

    #[test]
    fn every_status_has_its_meaning() {
        for status in (100..=599).filter(|status| !(200..=299).contains(status)) {
            let retried =
                matches!(status, 401 | 403 | 404 | 405 | 408 | 409 | 425 | 429) || !(400..=499).contains(&status);
            let error = answered(status, &[], "why");
            assert_eq!(error.verdict(), if retried { Verdict::Retry } else { Verdict::Permanent }, "{status}");
            assert_eq!(error.kind(), format!("http {status}"));
            assert!(error.message().ends_with("why"), "{}", error.message());
            let after = answered(status, &[("retry-after", "7")], "");
            let expected = if retried { Verdict::RetryAfter(Duration::from_secs(7)) } else { Verdict::Permanent };
            assert_eq!(after.verdict(), expected, "{status}");
        }
        assert_eq!(answered(503, &[], "").message(), "503 Service Unavailable");
    }

    #[test]
    fn hints_say_what_to_do() {
        for (status, pairs, body, message) in [
            (301, &[("location", "/jobs/invoice/")][..], "", "301 to /jobs/invoice/: add the slash"),
            (
                308,
                &[("location", "http://127.0.0.1:8000/jobs/invoice/")],
                "",
                "308 to http://127.0.0.1:8000/jobs/invoice/: add the slash",
            ),
            (
                302,
                &[("location", "/accounts/login/?next=/x")],
                "",
                "302 to /accounts/login/?next=/x: the endpoint wants a login; exempt it, or give the job a bearer_file",
            ),
            (
                301,
                &[("location", "https://127.0.0.1:8000/jobs/invoice")],
                "",
                "301 to https://127.0.0.1:8000/jobs/invoice: use https",
            ),
            (
                307,
                &[("location", "http://elsewhere/")],
                "",
                "307 to http://elsewhere/: redirects are not followed; set http to that address",
            ),
            (304, &[], "", "304 Not Modified"),
            (401, &[], "", "401: the endpoint wants credentials; give the job a bearer_file"),
            (
                403,
                &[],
                "<p>CSRF verification failed</p>",
                "403: the endpoint wants a CSRF token; exempt it (csrf_exempt); it answered: <p>CSRF verification failed</p>",
            ),
            (404, &[], "Not Found", "404: there is no /jobs/invoice on the server; it answered: Not Found"),
            (405, &[("allow", "GET, HEAD")], "", "405: /jobs/invoice takes GET, HEAD, not POST"),
            (422, &[], "{\"detail\":\"x\"}", "{\"detail\":\"x\"}"),
        ] {
            assert_eq!(answered(status, pairs, body).message(), message);
        }
    }

    #[test]
    fn retry_after_is_read_in_all_its_forms() {
        let now = Timestamp::parse_rfc3339("1994-11-06T08:49:30Z").expect("a time");
        for (value, expected) in [
            ("120", Some(120)),
            (" 3 ", Some(3)),
            ("0", None),
            ("-1", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(7)),
            ("Sun Nov  6 08:49:37 1994", Some(7)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", None),
            ("99999999999999999999999", Some(u64::MAX)),
        ] {
            assert_eq!(
                retry_after(&headers(&[("retry-after", value)]), now),
                expected.map(Duration::from_secs),
                "{value}"
            );
        }
        let skewed =
            headers(&[("retry-after", "Sun, 06 Nov 1994 10:00:05 GMT"), ("date", "Sun, 06 Nov 1994 10:00:00 GMT")]);
        assert_eq!(retry_after(&skewed, now), Some(Duration::from_secs(5)));
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn an_answer_is_cut_between_characters() {
        assert_eq!(text(&"aä".as_bytes()[..2]), "a");
        assert_eq!(text(b"a\xff b"), "a\u{fffd} b");
    }
}
