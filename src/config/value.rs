//! A value with the place where it was written, and the readers that turn it into what the code wants.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use super::fault::Place;
use super::shown_address;
use crate::broker::Start;
use crate::message::Topic;
use crate::time::{Timestamp, parse_duration};

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub value: Value,
    /// Of the value.
    pub place: Place,
    /// Of its key.
    pub key: Place,
}

/// What TOML can say. Dates are kept as text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Date(String),
    Array(Vec<Node>),
    Table(Table),
    /// A number that does not fit, as it was written.
    Odd(String),
}

pub(super) type Table = BTreeMap<String, Node>;

/// What is wrong with a value: what was expected, and a better spelling where one is plain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub expected: String,
    pub hint: Option<String>,
}

impl Wrong {
    pub fn new(expected: impl Into<String>) -> Self {
        Self { expected: expected.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl Value {
    /// As a message names it. Long text is cut.
    pub fn shown(&self) -> String {
        match self {
            Self::Text(text) if text.chars().count() > 60 => {
                format!("{:?}..", text.chars().take(60).collect::<String>())
            }
            Self::Text(text) => format!("{text:?}"),
            Self::Integer(number) => format!("the number {number}"),
            Self::Float(number) => format!("the number {number}"),
            Self::Bool(flag) => format!("{flag}"),
            Self::Date(text) | Self::Odd(text) => text.clone(),
            Self::Array(_) => "an array".to_owned(),
            Self::Table(_) => "a table".to_owned(),
        }
    }

    fn expected(&self, what: &str) -> Wrong {
        Wrong::new(format!("expected {what}, found {}", self.shown()))
    }

    pub fn table(&self) -> Option<&Table> {
        match self {
            Self::Table(table) => Some(table),
            _ => None,
        }
    }

    pub fn text(&self) -> Result<&str, Wrong> {
        match self {
            Self::Text(text) if text.is_empty() => Err(Wrong::new("expected text, found none")),
            Self::Text(text) => Ok(text),
            _ => Err(self.expected("text in quotes")),
        }
    }

    pub fn bool(&self) -> Result<bool, Wrong> {
        match self {
            Self::Bool(flag) => Ok(*flag),
            _ => Err(self.expected("true or false")),
        }
    }

    pub fn count(&self, min: i64, max: i64) -> Result<i64, Wrong> {
        let what = || match max {
            i64::MAX => format!("a whole number of at least {min}"),
            _ => format!("a whole number from {min} to {max}"),
        };
        match self {
            Self::Integer(number) if (min..=max).contains(number) => Ok(*number),
            Self::Text(text) => {
                let wrong = self.expected(&what());
                Err(match text.trim().parse::<i64>() {
                    Ok(number) if (min..=max).contains(&number) => wrong.hint(format!("write {number} without quotes")),
                    _ => wrong,
                })
            }
            _ => Err(self.expected(&what())),
        }
    }

    pub fn number(&self, min: f64, max: f64) -> Result<f64, Wrong> {
        let found = match self {
            Self::Integer(number) => *number as f64,
            Self::Float(number) => *number,
            _ => f64::NAN,
        };
        // NaN is in no range.
        if (min..=max).contains(&found) {
            return Ok(found);
        }
        Err(self.expected(&format!("a number from {min} to {max}")))
    }

    pub fn duration(&self, min: Duration) -> Result<Duration, Wrong> {
        let what = "a duration such as \"500ms\", \"30s\" or \"1h30m\"";
        match self {
            Self::Text(text) => match parse_duration(text) {
                Ok(found) if found > MOST => Err(self.expected("a duration of at most 36500d")),
                Ok(found) if found >= min => Ok(found),
                Ok(_) => Err(self.expected(&format!("at least {:?}", crate::time::format_duration(min)))),
                Err(_) => Err(self.expected(what)),
            },
            Self::Integer(number) if *number >= 0 => {
                Err(self.expected(what).hint(format!("did you mean \"{number}s\"?")))
            }
            _ => Err(self.expected(what)),
        }
    }

    /// A duration, or `None` for `"forever"`.
    pub fn keep(&self) -> Result<Option<Duration>, Wrong> {
        match self {
            Self::Text(text) if text == "forever" => Ok(None),
            _ => self.duration(Duration::from_secs(1)).map(Some).map_err(|wrong| Wrong {
                expected: wrong.expected.replacen("expected ", "expected \"forever\" or ", 1),
                hint: wrong.hint,
            }),
        }
    }

    pub fn size(&self) -> Result<usize, Wrong> {
        let what = "a size such as \"64KiB\", \"256MiB\" or \"1GiB\"";
        let Self::Text(text) = self else {
            let wrong = self.expected(what);
            return Err(match self {
                Self::Integer(number) => wrong.hint(format!("did you mean \"{number}B\"?")),
                _ => wrong,
            });
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let unit: usize = match text[digits..].trim() {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            other => {
                let hint = match other.to_ascii_lowercase().as_str() {
                    "k" | "kb" | "kib" => Some("KiB"),
                    "m" | "mb" | "mib" => Some("MiB"),
                    "g" | "gb" | "gib" => Some("GiB"),
                    _ => None,
                };
                let wrong = self.expected(what);
                return Err(match hint {
                    Some(unit) if digits > 0 => wrong.hint(format!("did you mean \"{}{unit}\"?", &text[..digits])),
                    _ => wrong,
                });
            }
        };
        let number = text[..digits].parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
        number.filter(|bytes| (1..=MOST_BYTES).contains(bytes)).ok_or_else(|| self.expected(what))
    }

    pub fn choice<'c>(&self, choices: &[&'c str]) -> Result<&'c str, Wrong> {
        let found = match self {
            Self::Text(text) => choices.iter().find(|choice| *choice == text),
            _ => None,
        };
        found.copied().ok_or_else(|| {
            let list: Vec<String> = choices.iter().map(|choice| format!("{choice:?}")).collect();
            self.expected(&list.join(" or "))
        })
    }

    pub fn start(&self) -> Result<Start, Wrong> {
        let text = match self {
            Self::Text(text) | Self::Date(text) => text.as_str(),
            _ => "",
        };
        match text {
            "earliest" => Ok(Start::Earliest),
            "latest" => Ok(Start::Latest),
            _ => Timestamp::parse_rfc3339(text)
                .map(Start::At)
                .ok_or_else(|| self.expected("\"earliest\", \"latest\" or a time such as \"2026-11-21T10:00:00Z\"")),
        }
    }

    pub fn topic(&self) -> Result<Topic, Wrong> {
        Topic::new(self.text()?).map_err(Wrong::new)
    }

    pub fn url(&self) -> Result<String, Wrong> {
        let what = "an address such as \"http://127.0.0.1:8000/jobs/invoice\"";
        let text = self.text()?;
        match reqwest::Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(text.to_owned()),
            _ if text.contains('@') => Err(Wrong::new(format!("expected {what}"))),
            _ if !text.contains("://") => {
                Err(self.expected(what).hint(format!("did you mean {:?}?", format!("http://{text}"))))
            }
            _ => Err(self.expected(what)),
        }
    }

    /// `None` turns it off.
    pub fn listen(&self) -> Result<Option<SocketAddr>, Wrong> {
        let what = "an address and a port such as \"127.0.0.1:7464\", or \"none\"";
        let text = match self {
            Self::Text(text) => text.as_str(),
            Self::Integer(port) => return Err(self.expected(what).hint(format!("did you mean \"127.0.0.1:{port}\"?"))),
            _ => return Err(self.expected(what)),
        };
        if text == "none" {
            return Ok(None);
        }
        if let Ok(address) = text.parse() {
            return Ok(Some(address));
        }
        let wrong = self.expected(what);
        Err(match text.rsplit_once(':') {
            Some(("localhost", port)) => wrong.hint(format!("did you mean \"127.0.0.1:{port}\"?")),
            Some(("" | "*", port)) => wrong.hint(format!("did you mean \"0.0.0.0:{port}\"?")),
            _ => wrong,
        })
    }

    /// A level, or a `tracing` filter such as `info,windlass=debug`.
    pub fn level(&self) -> Result<String, Wrong> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let what = "a level (off, error, warn, info, debug, trace) or a filter such as \"info,windlass=debug\"";
        let text = self.text()?;
        // A filter takes a bare word that is no level for the name of a module: here it is a slip.
        let plain = text.split(',').all(|part| part.contains(['=', '[']) || LEVELS.contains(&part.trim()));
        if plain && tracing_subscriber::EnvFilter::try_new(text).is_ok() {
            return Ok(text.to_owned());
        }
        Err(self.expected(what))
    }

    /// A broker's address; messages never show its password.
    pub fn address(&self) -> Result<String, Wrong> {
        let text = self.text()?;
        let shown = shown_address(text);
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(Wrong::new(format!("expected an address such as {ADDRESSES}, found {shown:?}")));
        };
        match scheme {
            "memory" => Ok(text.to_owned()),
            "sqlite" if rest.is_empty() => Err(Wrong::new("expected sqlite://PATH, found no path")),
            "sqlite" => Ok(text.to_owned()),
            "nats" | "nats+tls" | "tls" | "kafka" | "kafka+tls" => {
                let hosts = rest.rsplit_once('@').map_or(rest, |(_, hosts)| hosts);
                match hosts.trim_end_matches('/').split(',').find(|host| !is_host(host)) {
                    Some(bad) => Err(Wrong::new(format!("expected {scheme}://HOST:PORT[,HOST:PORT], found {bad:?}"))),
                    None => Ok(text.to_owned()),
                }
            }
            _ => {
                let nearest = SCHEMES.iter().find(|known| strsim::damerau_levenshtein(known, scheme) <= 2);
                let wrong = Wrong::new(format!("expected {ADDRESSES}, found {shown:?}"));
                Err(match nearest {
                    Some(known) => wrong.hint(format!("did you mean \"{known}://\"?")),
                    None => wrong,
                })
            }
        }
    }
}

fn is_host(host: &str) -> bool {
    if host.contains(char::is_whitespace) || host.contains('/') {
        return false;
    }
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, rest)) => (name, rest.strip_prefix(':').or((!rest.is_empty()).then_some("?"))),
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    !name.is_empty() && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Reads what was checked.
pub(super) fn nonzero(number: i64) -> NonZeroU32 {
    u32::try_from(number).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
}

const SCHEMES: [&str; 7] = ["sqlite", "memory", "nats", "nats+tls", "tls", "kafka", "kafka+tls"];
const ADDRESSES: &str = "\"sqlite://windlass.db\", \"nats://127.0.0.1:4222\" or \"kafka://127.0.0.1:9092\"";
const MOST: Duration = Duration::from_secs(36_500 * 86_400);
const MOST_BYTES: usize = 1 << 42;
