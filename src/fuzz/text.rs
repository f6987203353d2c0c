//! What people write: addresses, configuration, durations, conditions; and what HTTP jobs answer.

use crate::broker::shown_address;
use crate::config::{self, Source};
use crate::time::{Timestamp, format_duration, parse_duration};

/// An address: no password is ever shown.
pub fn address(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let shown = shown_address(text);
    assert!(shown.len() <= text.len() + 16);
    crate::broker::fuzz::address(text);
    // A password that is nowhere else in the address.
    let secret = "Xq7Zw3";
    if !text.contains(secret) && !text.contains(['@', '\n']) {
        for scheme in ["nats", "kafka", "nats+tls", "kafka+tls"] {
            let whole = format!("{scheme}://user:{secret}@{text}");
            assert!(!shown_address(&whole).contains(secret), "{whole:?}");
            let quoted = toml::Value::String(whole).to_string();
            if let Err(faults) = config::load(Source::new().text("f.toml", format!("broker = {quoted}\n"))) {
                assert!(!faults.to_string().contains(secret), "{faults}");
            }
        }
    }
}

/// A configuration file: every fault has its place, and there are no more of them than the file has room for.
pub fn configuration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Err(faults) = config::load(Source::new().text("f.toml", text)) {
        let said = faults.to_string();
        assert!(!said.trim().is_empty(), "a refusal says why");
        assert!(said.len() <= 4_096 + 1_024 * text.len(), "{} bytes became {}", text.len(), said.len());
    }
}

/// Durations and times.
pub fn duration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(duration) = parse_duration(text) {
        assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }
    if let Some(at) = Timestamp::parse_rfc3339(text) {
        assert_eq!(Timestamp::parse_rfc3339(&at.to_rfc3339()), Some(at));
    }
}

/// Conditions of `status --fail-if`, and moments as selectors write them.
pub fn condition(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    crate::cli::fuzz::condition(text);
}

/// A job's answer over HTTP: the error is short, and the same each time.
pub fn http_answer(input: &[u8]) {
    crate::handler::http::fuzz::answer(input);
}
