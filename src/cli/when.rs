//! Moments as people write and read them: `2h`, RFC 3339; "3m ago".

use std::time::Duration;

use crate::time::{Timestamp, parse_duration};

/// A moment, written as a duration from now or as RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So long from now, to the side that the flag means.
    Span(Duration),
    /// Then.
    At(Timestamp),
}

impl std::str::FromStr for When {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(at) = Timestamp::parse_rfc3339(text) {
            return Ok(Self::At(at));
        }
        parse_duration(text).map(Self::Span).map_err(|_| {
            format!("expected a duration such as \"2h\" or a time such as \"2026-11-21T10:00:00Z\", found {text:?}")
        })
    }
}

impl When {
    /// The moment, where a duration means the future.
    pub fn after(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Span(span) => now.after(span),
            Self::At(at) => at,
        }
    }

    /// The moment, where a duration means the past.
    pub fn before(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Span(span) => Timestamp::from_millis(
                now.as_millis().saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
            ),
            Self::At(at) => at,
        }
    }
}

/// A whole number, for clap.
pub fn whole<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("expected a whole number such as 10, found {text:?}"))
}

/// A whole number that is not 0, for clap.
pub fn at_least_one<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("expected a whole number of at least 1, found {text:?}"))
}

/// RFC 3339 alone, for clap.
pub fn rfc3339(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse_rfc3339(text)
        .ok_or_else(|| format!("expected a time such as \"2026-11-21T10:00:00Z\", found {text:?}"))
}

/// How long ago: `3m ago`, `2h ago`, `5d ago`; `now` within a second; `in 3m` of the future.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    if then > now {
        return format!("in {}", span(now.until(then)));
    }
    match then.until(now) {
        short if short < Duration::from_secs(1) => "now".to_owned(),
        long => format!("{} ago", span(long)),
    }
}

/// A duration in its largest unit, or two where the first is small: `45s`, `3m`, `1h 20m`, `5d`.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |large: u64, unit: &str, small: u64, below: &str| {
        if large < 10 && small > 0 { format!("{large}{unit} {small}{below}") } else { format!("{large}{unit}") }
    };
    match seconds {
        0 => format!("{:.1}s", duration.as_secs_f64()),
        1..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read() {
        let now = Timestamp::from_millis(10_000_000);
        let when = |text: &str| text.parse::<When>().expect("a moment");
        assert_eq!(when("2h").before(now).as_millis(), 10_000_000 - 7_200_000);
        assert_eq!(when("1h30m").after(now).as_millis(), 10_000_000 + 5_400_000);
        assert_eq!(when("1970-01-01T00:00:05Z").before(now).as_millis(), 5_000);
        assert!("yesterday".parse::<When>().is_err());
    }

    #[test]
    fn ages_are_short() {
        let now = Timestamp::from_millis(100_000_000);
        let ago = |seconds: i64| super::ago(Timestamp::from_millis(100_000_000 - seconds * 1_000), now);
        let cases =
            [(0, "now"), (45, "45s ago"), (185, "3m 5s ago"), (900, "15m ago"), (4_800, "1h 20m ago"), (-60, "in 1m")];
        for (seconds, expected) in cases {
            assert_eq!(ago(seconds), expected);
        }
        assert_eq!(span(Duration::from_secs(40 * 86_400)), "40d");
    }
}
