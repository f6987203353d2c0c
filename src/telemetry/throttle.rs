//! Keeps a storm of equal lines readable: so many a second for each queue, then "and N more".
//!
//! A retry storm of 100,000 a second would otherwise cost more than the jobs, and hide what matters.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines of one kind that each queue may write in [`WINDOW`].
const LINES: u32 = 10;

/// How long a count lasts.
const WINDOW: Duration = Duration::from_secs(1);

/// Which lines are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Failed attempts that are made again.
    Retry,
    /// Dead letters.
    DeadLetter,
    /// Intake paused and resumed.
    Intake,
    /// Leases lost, stale and unconfirmed settlements.
    Settlement,
    /// Suspects.
    Crash,
    /// Jobs that nobody registered here.
    Unroutable,
    /// Receiving that failed.
    Receive,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Retry, Self::DeadLetter, Self::Intake, Self::Settlement, Self::Crash, Self::Unroutable, Self::Receive];

    /// As the line that counts the suppressed ones spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::DeadLetter => "dead_letter",
            Self::Intake => "intake",
            Self::Settlement => "settlement",
            Self::Crash => "crash",
            Self::Unroutable => "unroutable",
            Self::Receive => "receive",
        }
    }
}

/// Lines that were not written, to be said in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressed {
    /// The queue.
    pub queue: String,
    /// Which lines.
    pub kind: Kind,
    /// How many.
    pub count: u64,
}

/// Counts the lines of all queues. Memory is bounded by the number of queues.
#[derive(Default)]
pub struct Throttle {
    queues: Mutex<HashMap<String, [Window; Kind::ALL.len()], foldhash::fast::RandomState>>,
}

#[derive(Clone, Copy, Default)]
struct Window {
    since: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl Throttle {
    /// Whether a line may be written now; if not, it is counted.
    pub fn admits(&self, queue: &str, kind: Kind, now: Instant) -> bool {
        let mut queues = self.queues.lock();
        if !queues.contains_key(queue) {
            queues.insert(queue.to_owned(), Default::default());
        }
        let window = &mut queues.get_mut(queue).expect("inserted above")[kind as usize];
        window.admits(now)
    }

    /// What was suppressed in windows that are over; each is said once. To be called about once a window.
    pub fn take_suppressed(&self, now: Instant) -> Vec<Suppressed> {
        let mut queues = self.queues.lock();
        let mut suppressed = Vec::new();
        for (queue, windows) in queues.iter_mut() {
            for kind in Kind::ALL {
                let window = &mut windows[kind as usize];
                if window.suppressed > 0 && window.is_over(now) {
                    let count = std::mem::take(&mut window.suppressed);
                    suppressed.push(Suppressed { queue: queue.clone(), kind, count });
                }
            }
        }
        suppressed.sort_by(|a, b| (&a.queue, a.kind as usize).cmp(&(&b.queue, b.kind as usize)));
        suppressed
    }
}

impl Window {
    fn is_over(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW)
    }

    fn admits(&mut self, now: Instant) -> bool {
        if self.is_over(now) {
            // The suppressed count stays until it was said.
            (self.since, self.written) = (Some(now), 0);
        }
        if self.written < LINES {
            self.written += 1;
            true
        } else {
            self.suppressed += 1;
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_counted_not_written() {
        let throttle = Throttle::default();
        let start = Instant::now();
        let written = (0..100_000).filter(|_| throttle.admits("a", Kind::Retry, start)).count();
        assert_eq!(written, LINES as usize);
        assert!(throttle.admits("a", Kind::DeadLetter, start), "kinds are counted apart");
        assert!(throttle.admits("b", Kind::Retry, start), "queues are counted apart");
        assert_eq!(throttle.take_suppressed(start), [], "the window is not over");

        let later = start + WINDOW;
        let expected = [Suppressed { queue: "a".to_owned(), kind: Kind::Retry, count: 100_000 - u64::from(LINES) }];
        assert_eq!(throttle.take_suppressed(later), expected);
        assert_eq!(throttle.take_suppressed(later), [], "said once");
        assert!(throttle.admits("a", Kind::Retry, later), "a new window");
    }

    #[test]
    fn nothing_is_forgotten_when_a_window_follows_on_the_last() {
        let throttle = Throttle::default();
        let start = Instant::now();
        let mut written = 0;
        for n in 0..3_000u32 {
            written += u64::from(throttle.admits("a", Kind::Retry, start + Duration::from_millis(n.into())));
        }
        let suppressed: u64 =
            throttle.take_suppressed(start + Duration::from_secs(9)).iter().map(|suppressed| suppressed.count).sum();
        assert_eq!(written + suppressed, 3_000);
        assert_eq!(written, u64::from(LINES) * 3);
    }
}
