//! When a job runs again: the policy, as data, and the one place where an outcome becomes a disposition.

use std::num::NonZeroU32;
use std::time::Duration;

use super::outcome::Outcome;
use crate::broker::Disposition;
use crate::handler::Verdict;
use crate::message::{Attempt, Failure, JobName, Reason};
use crate::time::{Timestamp, format_duration};

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

impl Policy {
    /// The delay after attempt `attempt` failed; `jitter` is a number from 0 to 1 drawn by the caller.
    pub fn delay(&self, attempt: Attempt, jitter: f64) -> Duration {
        let exponent = i32::try_from(attempt.get() - 1).unwrap_or(i32::MAX);
        let max = self.max.as_secs_f64();
        let grown = self.first.as_secs_f64() * self.factor.powi(exponent);
        // Infinity for large exponents: min() takes it to max. NaN only where 0 * infinity: no delay then.
        let base = if grown.is_nan() { 0.0 } else { grown.min(max) };
        Duration::from_secs_f64(base * (1.0 + self.jitter * jitter.clamp(0.0, 1.0)))
    }
}

/// How long a job that nobody registered here is put back for at a time.
const UNROUTABLE_PAUSE: Duration = Duration::from_secs(2);

/// What [`decide`] knows of a delivery beside its outcome.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The attempt that this was.
    pub attempt: Attempt,
    /// The job's policy.
    pub policy: &'a Policy,
    /// Now.
    pub now: Timestamp,
    /// A number from 0 to 1.
    pub jitter: f64,
    /// When an attempt first failed, if one did before.
    pub first_failure: Option<Timestamp>,
    /// Since when no worker knew the job, if that was so before.
    pub unroutable_since: Option<Timestamp>,
    /// So long that is bearable.
    pub unroutable_after: Duration,
    /// The event's id, where it could be decoded.
    pub event_id: Option<&'a str>,
    /// The job that ran or would have run.
    pub job: &'a JobName,
}

/// What a job may ask for with `Retry-After` or `retry_after`: a hundred years, as a configuration may. What is longer is
/// a mistake, and beyond what a time can be.
const LONGEST: Duration = Duration::from_secs(36_500 * 86_400);

/// What is to be done about an outcome. Pure; the only `match` on [`Outcome`] that decides anything.
pub fn decide(outcome: &Outcome, facts: &Facts<'_>) -> Disposition {
    match outcome {
        Outcome::Done => Disposition::Ack,
        Outcome::Interrupted => Disposition::Release,
        Outcome::Snoozed(delay) => Disposition::Retry {
            at: facts.now.after(*delay),
            attempt: facts.attempt,
            failure: None,
            unroutable_since: None,
        },
        Outcome::Failed(error) => {
            let failure = facts.failure(error.kind(), error.message());
            match error.verdict() {
                Verdict::Permanent => facts.dead(Reason::Permanent, failure, facts.attempt.get()),
                Verdict::RetryAfter(delay) => facts.again(failure, Some(delay)),
                Verdict::Retry | Verdict::Malformed | Verdict::Snooze(_) => facts.again(failure, None),
            }
        }
        Outcome::TimedOut { limit } => {
            facts.again(facts.failure("timeout", format!("timed out after {}", format_duration(*limit))), None)
        }
        Outcome::Panicked { message, place } => {
            facts.again(facts.failure("panic", format!("panicked at {place}: {message}")), None)
        }
        Outcome::Malformed(what) => facts.dead(Reason::Malformed, facts.failure("malformed", what), 0),
        Outcome::Expired => facts.dead(
            Reason::Expired,
            facts.failure("expired", "its expirytime passed before it could start"),
            facts.attempt.get() - 1,
        ),
        Outcome::Crashed => facts.dead(
            Reason::Crashed,
            facts.failure("crash", "its worker died each time it ran, the last time with no other suspect beside it"),
            facts.attempt.get() - 1,
        ),
        Outcome::Unroutable => {
            let since = facts.unroutable_since.unwrap_or(facts.now);
            if since.after(facts.unroutable_after) <= facts.now {
                let what =
                    format!("no worker registered job {} for {}", facts.job, format_duration(facts.unroutable_after));
                return facts.dead(Reason::Unroutable, facts.failure("unroutable", what), facts.attempt.get() - 1);
            }
            let end = since.after(facts.unroutable_after);
            Disposition::Retry {
                at: facts.now.after(UNROUTABLE_PAUSE).min(end),
                attempt: facts.attempt,
                failure: None,
                unroutable_since: Some(since),
            }
        }
    }
}

impl Facts<'_> {
    fn failure(&self, error_type: &str, error: impl Into<String>) -> Failure {
        Failure::new(error_type, error, self.first_failure.unwrap_or(self.now), self.now)
    }

    fn again(&self, failure: Failure, after: Option<Duration>) -> Disposition {
        if self.attempt.get() >= self.policy.attempts.get() {
            return self.dead(Reason::Exhausted, failure, self.attempt.get());
        }
        let delay = match after {
            // "No earlier than": jitter adds here too, so that those refused together do not return together.
            Some(after) => after.min(LONGEST).mul_f64(1.0 + 0.1 * self.policy.jitter * self.jitter.clamp(0.0, 1.0)),
            None => self.policy.delay(self.attempt, self.jitter),
        };
        Disposition::Retry {
            at: self.now.after(delay),
            attempt: self.attempt.next(),
            failure: Some(failure),
            unroutable_since: None,
        }
    }

    fn dead(&self, reason: Reason, failure: Failure, attempts: u32) -> Disposition {
        Disposition::DeadLetter {
            reason,
            failure,
            attempts,
            event_id: self.event_id.map(ToOwned::to_owned),
            job: self.job.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::Error;
    use proptest::prelude::*;

    #[test]
    fn whatever_a_server_asks_for_is_a_time_that_can_be_stored() {
        let (policy, job) = (Policy::default(), JobName::new("j").expect("a name"));
        for after in [Duration::MAX, Duration::from_secs(u64::MAX), Duration::from_secs(365 * 86_400)] {
            let outcome = Outcome::Failed(Error::retry_after(after, "later"));
            let Disposition::Retry { at, .. } = decide(&outcome, &facts(&policy, &job, 1)) else {
                panic!("it is tried again")
            };
            assert_eq!(Timestamp::parse_rfc3339(&at.to_rfc3339()), Some(at), "{after:?}");
        }
    }

    fn facts<'a>(policy: &'a Policy, job: &'a JobName, attempt: u32) -> Facts<'a> {
        Facts {
            attempt: Attempt::new(attempt).expect("not 0"),
            policy,
            now: Timestamp::from_millis(1_000_000),
            jitter: 0.0,
            first_failure: None,
            unroutable_since: None,
            unroutable_after: Duration::from_secs(900),
            event_id: Some("e"),
            job,
        }
    }

    fn retry_at(disposition: &Disposition) -> (i64, u32) {
        match disposition {
            Disposition::Retry { at, attempt, .. } => (at.as_millis() - 1_000_000, attempt.get()),
            other => panic!("expected a retry, found {other:?}"),
        }
    }

    fn reason(disposition: &Disposition) -> (Reason, u32) {
        match disposition {
            Disposition::DeadLetter { reason, attempts, .. } => (*reason, *attempts),
            other => panic!("expected a dead letter, found {other:?}"),
        }
    }

    #[test]
    fn the_table_of_outcomes() {
        let policy = Policy::default();
        let job = JobName::new("invoice").expect("valid");
        let at = |attempt| facts(&policy, &job, attempt);
        let fail = || Outcome::Failed(Error::retry("io", "no"));
        assert_eq!(decide(&Outcome::Done, &at(1)), Disposition::Ack);
        assert_eq!(decide(&Outcome::Interrupted, &at(20)), Disposition::Release);
        assert_eq!(retry_at(&decide(&fail(), &at(1))), (1_000, 2));
        assert_eq!(retry_at(&decide(&fail(), &at(5))), (16_000, 6));
        assert_eq!(retry_at(&decide(&fail(), &at(19))), (3_600_000, 20));
        assert_eq!(reason(&decide(&fail(), &at(20))), (Reason::Exhausted, 20));
        assert_eq!(reason(&decide(&Outcome::Failed(Error::permanent("no")), &at(2))), (Reason::Permanent, 2));
        let after = Outcome::Failed(Error::retry_after(Duration::from_secs(7_200), "busy"));
        assert_eq!(retry_at(&decide(&after, &at(1))), (7_200_000, 2));
        assert_eq!(reason(&decide(&after, &at(20))), (Reason::Exhausted, 20));
        assert_eq!(retry_at(&decide(&Outcome::Snoozed(Duration::from_secs(5)), &at(20))), (5_000, 20));
        assert_eq!(reason(&decide(&Outcome::Malformed("x".into()), &at(1))), (Reason::Malformed, 0));
        assert_eq!(reason(&decide(&Outcome::Expired, &at(1))), (Reason::Expired, 0));
        assert_eq!(reason(&decide(&Outcome::Crashed, &at(3))), (Reason::Crashed, 2));
        let limit = Duration::from_secs(300);
        assert_eq!(retry_at(&decide(&Outcome::TimedOut { limit }, &at(2))), (2_000, 3));
    }

    #[test]
    fn an_unroutable_job_is_put_back_and_then_dead() {
        let policy = Policy::default();
        let job = JobName::new("new").expect("valid");
        let mut facts = facts(&policy, &job, 1);
        assert_eq!(retry_at(&decide(&Outcome::Unroutable, &facts)), (2_000, 1));
        facts.unroutable_since = Some(Timestamp::from_millis(1_000_000 - 899_500));
        assert_eq!(retry_at(&decide(&Outcome::Unroutable, &facts)), (500, 1));
        facts.unroutable_since = Some(Timestamp::from_millis(1_000_000 - 900_000));
        assert_eq!(reason(&decide(&Outcome::Unroutable, &facts)), (Reason::Unroutable, 0));
    }

    proptest! {
        /// Jitter only adds, and the delay never shrinks from one attempt to the next.
        #[test]
        fn delays_grow_and_jitter_only_adds(
            first in 0u64..100_000, factor in 1.0f64..10.0, max in 0u64..10_000_000,
            jitter in 0.0f64..=1.0, draw in 0.0f64..=1.0, attempt in 1u32..5_000,
        ) {
            let policy = Policy {
                attempts: NonZeroU32::MAX,
                first: Duration::from_millis(first),
                factor,
                max: Duration::from_millis(max),
                jitter,
            };
            let at = |n| Attempt::new(n).expect("not 0");
            let bare = policy.delay(at(attempt), 0.0);
            let drawn = policy.delay(at(attempt), draw);
            prop_assert!(bare <= policy.max);
            prop_assert!(drawn >= bare);
            prop_assert!(drawn.as_secs_f64() <= bare.as_secs_f64() * (1.0 + jitter) + 1e-6);
            prop_assert!(policy.delay(at(attempt + 1), 0.0) >= bare);
        }
    }
}
