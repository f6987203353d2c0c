//! Time: a wall clock that tests can stop, and the units that configuration is written in.
//!
//! Due times and ages are wall-clock milliseconds ([`Timestamp`]); leases and timeouts use
//! [`tokio::time::Instant`], which a step of the wall clock does not touch.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::seeded;

/// Milliseconds since the Unix epoch, UTC. What every record, header and column of ours stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// The last that RFC 3339 can say in any offset: at the end of the year 9999.
    const LAST: i64 = 253_402_207_200_000;

    /// This time plus `delay`, rounded up to the millisecond so that nothing is ever early; never after the year 9999.
    pub fn after(self, delay: Duration) -> Self {
        let millis = delay.as_nanos().div_ceil(1_000_000);
        let sum = self.0.saturating_add(i64::try_from(millis).unwrap_or(i64::MAX));
        Self(sum.min(Self::LAST.max(self.0)))
    }

    /// How long before `later` this was; zero when it was not.
    pub fn until(self, later: Timestamp) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0).max(0) as u64)
    }

    /// RFC 3339, UTC, milliseconds: `2026-11-21T10:00:00.000Z`.
    pub fn to_rfc3339(self) -> String {
        self.to_string()
    }

    /// Parses RFC 3339 with any offset; sub-millisecond digits round up (never early).
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let instant: jiff::Timestamp = text.trim().parse().ok()?;
        let nanos = instant.as_nanosecond();
        let millis = nanos.div_euclid(1_000_000) + i128::from(nanos.rem_euclid(1_000_000) > 0);
        i64::try_from(millis).ok().map(|millis| Self(millis.min(Self::LAST)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(instant) => write!(f, "{instant:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

/// Where the wall-clock time comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// Follows tokio's clock, which `tokio::time::pause` stops, from a fixed wall time.
    Tokio {
        /// The wall time at `since`.
        base: Timestamp,
        /// When `base` was.
        since: tokio::time::Instant,
    },
    /// Stands still until somebody moves it.
    Stopped(Stopped),
}

/// A wall clock that stands still until it is moved, whatever tokio's does: jobs do their I/O in real time beside it.
/// Cheap to clone; clones are the same clock.
#[derive(Clone, Debug)]
pub struct Stopped(Arc<tokio::sync::watch::Sender<Timestamp>>);

impl Stopped {
    /// A clock that stands at `at`.
    pub fn at(at: Timestamp) -> Self {
        Self(Arc::new(tokio::sync::watch::Sender::new(at)))
    }

    /// What it shows.
    pub fn now(&self) -> Timestamp {
        *self.0.borrow()
    }

    /// Moves it on to `at`; never back.
    pub fn move_to(&self, at: Timestamp) {
        self.0.send_if_modified(|now| std::mem::replace(now, at.max(*now)) < at);
    }
}

impl Clock {
    /// A clock that starts now and follows tokio's.
    pub fn tokio() -> Self {
        Self::Tokio { base: Self::System.now(), since: tokio::time::Instant::now() }
    }

    /// The wall-clock time.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => {
                let now = match SystemTime::now().duration_since(UNIX_EPOCH) {
                    Ok(since) => since.as_millis() as i64,
                    Err(before) => -(before.duration().as_millis() as i64),
                };
                Timestamp(now + seeded::clock_step())
            }
            Self::Tokio { base, since } => base.after(since.elapsed()),
            Self::Stopped(clock) => clock.now(),
        }
    }

    /// Resolves when it shows `due`, or a step of the machine's clock made it show something else meanwhile: look again.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping it.
    pub async fn until(&self, due: Timestamp) {
        match self {
            Self::System | Self::Tokio { .. } => tokio::time::sleep(self.now().until(due)).await,
            Self::Stopped(clock) => {
                // The sender is this very clock, so that it cannot be gone while it is waited for.
                let _ = clock.0.subscribe().wait_for(|now| *now >= due).await;
            }
        }
    }
}

/// Parses a duration as configuration writes it: whole numbers with `ms`, `s`, `m`, `h` or `d`,
/// which add up (`"1h30m"`).
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected a duration such as \"500ms\", \"30s\" or \"1h30m\", found {text:?}");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(expected());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| expected())?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let millis: u64 = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(expected()),
        };
        rest = &rest[letters..];
        // The whole is bounded as each part is: what was read can be written and read again.
        total = number.checked_mul(millis).and_then(|millis| total.checked_add(millis)).ok_or_else(expected)?;
    }
    Ok(Duration::from_millis(total))
}

/// Writes a duration as [`parse_duration`] reads it, in the largest units that are exact.
pub fn format_duration(duration: Duration) -> String {
    let mut millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if millis >= size {
            text.push_str(&format!("{}{unit}", millis / size));
            millis %= size;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_delay_leads_to_a_time_that_cannot_be_written() {
        for delay in [Duration::MAX, Duration::from_secs(9_000 * 366 * 86_400)] {
            let at = Clock::System.now().after(delay);
            assert_eq!(at.to_rfc3339(), "9999-12-30T22:00:00.000Z");
            assert_eq!(Timestamp::parse_rfc3339(&at.to_rfc3339()), Some(at));
        }
    }

    #[test]
    fn durations_add_up() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "5", "s", "1.5s", "-1s", "1w", "1 s", "99999999999999999999d", "1d18446744073709551s"] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[tokio::test]
    async fn a_stopped_clock_wakes_who_waits_and_goes_never_back() {
        let clock = Stopped::at(Timestamp::from_millis(1_000));
        let shown = Clock::Stopped(clock.clone());
        let waiting = tokio::spawn({
            let shown = shown.clone();
            async move { shown.until(Timestamp::from_millis(3_600_000)).await }
        });
        tokio::task::yield_now().await;
        clock.move_to(Timestamp::from_millis(2_000));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        clock.move_to(Timestamp::from_millis(3_600_000));
        waiting.await.expect("it was woken");
        clock.move_to(Timestamp::from_millis(5));
        assert_eq!(shown.now(), Timestamp::from_millis(3_600_000));
    }

    #[test]
    fn rfc3339_is_never_early() {
        let parsed = Timestamp::parse_rfc3339("2026-11-21T12:00:00.0001+02:00").expect("valid");
        assert_eq!(parsed.to_rfc3339(), "2026-11-21T10:00:00.001Z");
    }

    proptest! {
        #[test]
        fn durations_round_trip(millis in 0u64..10_000_000_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn timestamps_round_trip(millis in 0i64..4_000_000_000_000) {
            let at = Timestamp::from_millis(millis);
            prop_assert_eq!(Timestamp::parse_rfc3339(&at.to_rfc3339()), Some(at));
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = parse_duration(&text);
            let _ = Timestamp::parse_rfc3339(&text);
        }
    }
}
