//! Leaving: signals become two tokens and a grace period.

use tokio_util::sync::CancellationToken;

/// The stages of leaving. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled by the first signal: take nothing new, give back what has not started.
    pub intake: CancellationToken,
    /// Cancelled when the grace period is over: cancel what runs and give it back.
    pub work: CancellationToken,
    /// Cancelled by the second signal: give back what can be given back within 200 ms, and exit.
    pub now: CancellationToken,
}
