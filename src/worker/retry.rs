//! When a job runs again: the policy, as data, and the one place where an outcome becomes a disposition.

use std::num::NonZeroU32;
use std::time::Duration;

/// How often and how long apart a job is tried. Delay before attempt `n + 1`: `first * factor^(n - 1)`, at most
/// `max`, then up to `jitter` of it more (jitter only adds, beyond `max` too).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Attempts in all, the first included.
    pub attempts: NonZeroU32,
    /// Before the second attempt.
    pub first: Duration,
    /// By how much the delay grows from one to the next; at least 1.
    pub factor: f64,
    /// The longest delay before jitter.
    pub max: Duration,
    /// 0 to 1.
    pub jitter: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts: NonZeroU32::new(20).expect("20 is not 0"),
            first: Duration::from_secs(1),
            factor: 2.0,
            max: Duration::from_secs(3_600),
            jitter: 0.2,
        }
    }
}

/// Some of a policy's settings; what is absent comes from the one below it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Partial {
    /// See [`Policy::attempts`].
    pub attempts: Option<NonZeroU32>,
    /// See [`Policy::first`].
    pub first: Option<Duration>,
    /// See [`Policy::factor`].
    pub factor: Option<f64>,
    /// See [`Policy::max`].
    pub max: Option<Duration>,
    /// See [`Policy::jitter`].
    pub jitter: Option<f64>,
}

impl Policy {
    /// This policy with `partial`'s settings where it has any.
    pub fn with(self, partial: &Partial) -> Self {
        Self {
            attempts: partial.attempts.unwrap_or(self.attempts),
            first: partial.first.unwrap_or(self.first),
            factor: partial.factor.unwrap_or(self.factor),
            max: partial.max.unwrap_or(self.max),
            jitter: partial.jitter.unwrap_or(self.jitter),
        }
    }
}
