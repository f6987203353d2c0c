//! Waiting for a condition, with a deadline: what tests do instead of sleeping.

use std::time::{Duration, Instant};

/// How often a condition is asked for.
const EVERY: Duration = Duration::from_millis(5);

/// Waits until `condition` gives something.
///
/// # Panics
/// After `deadline`, naming `what` was waited for.
#[track_caller]
pub fn until_some<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        std::thread::sleep(EVERY);
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// As [`until_some`].
#[track_caller]
pub fn until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    until_some(what, deadline, || condition().then_some(()));
}

/// [`until`] for a test that runs on tokio: other tasks of its runtime go on meanwhile.
pub async fn until_async(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        tokio::time::sleep(EVERY).await;
    }
}
