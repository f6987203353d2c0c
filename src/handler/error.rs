//! What a handler may answer instead of success.

use std::time::Duration;

/// A handler's error. Any `std::error::Error` becomes a retryable one by `?`.
///
/// It does not itself implement `std::error::Error`, so that the conversion can exist.
#[derive(Debug)]
pub struct Error {
    pub(crate) verdict: Verdict,
    pub(crate) kind: String,
    pub(crate) message: String,
}

/// What an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again by the queue's policy.
    Retry,
    /// Try again after this; uses an attempt, may exceed the policy's `max`.
    RetryAfter(Duration),
    /// Trying again is of no use: dead letter, `permanent`.
    Permanent,
    /// The arguments do not fit: dead letter, `malformed`.
    Malformed,
    /// Again after this, without using an attempt.
    Snooze(Duration),
}

impl Error {
    /// Tried again by the policy. `kind` is a low-cardinality name, such as a type's.
    pub fn retry(kind: impl Into<String>, message: impl std::fmt::Display) -> Self {
        Self { verdict: Verdict::Retry, kind: kind.into(), message: message.to_string() }
    }

    /// Never tried again: a dead letter, `permanent`.
    pub fn permanent(message: impl std::fmt::Display) -> Self {
        Self { verdict: Verdict::Permanent, kind: "permanent".to_owned(), message: message.to_string() }
    }

    /// The longest delay that is obeyed, 100 years: longer ones mean never, and delays are added to times.
    pub const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

    /// Tried again no earlier than after `delay`. Uses an attempt; may exceed the policy's `max`.
    pub fn retry_after(delay: Duration, message: impl std::fmt::Display) -> Self {
        let delay = delay.min(Self::LONGEST);
        Self { verdict: Verdict::RetryAfter(delay), kind: "retry_after".to_owned(), message: message.to_string() }
    }

    /// Again after `delay`, without using an attempt: "not yet".
    pub fn snooze(delay: Duration) -> Self {
        let delay = delay.min(Self::LONGEST);
        Self { verdict: Verdict::Snooze(delay), kind: "snooze".to_owned(), message: "snoozed".to_owned() }
    }

    /// The arguments do not fit the job: a dead letter, `malformed`.
    pub fn malformed(message: impl std::fmt::Display) -> Self {
        Self { verdict: Verdict::Malformed, kind: "malformed".to_owned(), message: message.to_string() }
    }

    /// Gives the error a low-cardinality name for grouping.
    pub fn with_kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }

    /// What it asks for.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The low-cardinality name.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The message, with the chain of causes.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl<E: std::error::Error + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = inner.source();
        }
        Self { verdict: Verdict::Retry, kind: type_name::<E>(), message }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

/// `std::io::error::Error` -> `io::Error`: the last two path segments, without generics and without the module that
/// errors often live in.
fn type_name<T>() -> String {
    let full = std::any::type_name::<T>();
    let plain = full.split('<').next().unwrap_or(full);
    let segments: Vec<&str> = plain.split("::").filter(|segment| !matches!(*segment, "error" | "errors")).collect();
    segments[segments.len().saturating_sub(2)..].join("::")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot print")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn any_error_becomes_a_retryable_one() {
        fn fails() -> Result<(), Error> {
            Err(Outer(std::io::Error::other("no paper")))?;
            Ok(())
        }
        let error = fails().expect_err("it fails");
        assert_eq!(
            (error.verdict(), error.kind(), error.message()),
            (Verdict::Retry, "tests::Outer", "cannot print: no paper")
        );
        assert_eq!(Error::from(std::io::Error::other("x")).kind(), "io::Error");
        assert_eq!(error.to_string(), "cannot print: no paper");
        assert_eq!(Error::snooze(Duration::MAX).verdict(), Verdict::Snooze(Error::LONGEST));
        assert_eq!(Error::retry_after(Duration::MAX, "").verdict(), Verdict::RetryAfter(Error::LONGEST));
    }
}
