//! Durations in fixed buckets: a batch is counted in a [`Local`] without atomics and added to a [`Histogram`] at once.
//!
//! Of our own because the exporter keeps every sample until its upkeep (3 million jobs held 47 MiB).

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds in seconds, as the label `le` spells them; one more bucket is without a bound.
const LABELS: [&str; 20] = [
    "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "0.75", "1", "2.5", "5", "7.5",
    "10", "30", "60", "300", "1800",
];

/// The same in nanoseconds.
const BOUNDS: [u64; 20] = [
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    75_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    750_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    7_500_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
    300_000_000_000,
    1_800_000_000_000,
];

const BUCKETS: usize = BOUNDS.len() + 1;

/// Which bucket a duration falls into. Most jobs are quick, so the first bucket is tried first.
fn bucket(nanos: u64) -> usize {
    if nanos <= BOUNDS[0] { 0 } else { BOUNDS.partition_point(|bound| *bound < nanos) }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

/// Counts shared by all threads. Buckets are not cumulative here.
#[derive(Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    /// Overflows after 584 years of accumulated duration.
    nanos: AtomicU64,
}

impl Histogram {
    /// Counts `count` events that took this long each.
    pub fn observe(&self, took: Duration, count: u64) {
        let nanos = nanos(took);
        self.buckets[bucket(nanos)].fetch_add(count, Relaxed);
        self.nanos.fetch_add(nanos.saturating_mul(count), Relaxed);
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { buckets: std::array::from_fn(|n| self.buckets[n].load(Relaxed)), nanos: self.nanos.load(Relaxed) }
    }
}

/// Counts of one task, without atomics.
#[derive(Default)]
pub struct Local {
    buckets: [u32; BUCKETS],
    /// A bit for each bucket that is not 0, so that a flush after one job is as cheap as one.
    touched: u32,
    nanos: u64,
}

impl Local {
    /// Counts one duration.
    #[inline]
    pub fn record(&mut self, took: Duration) {
        let nanos = nanos(took);
        let bucket = bucket(nanos);
        self.buckets[bucket] += 1;
        self.touched |= 1 << bucket;
        self.nanos = self.nanos.saturating_add(nanos);
    }

    /// Adds what was counted to `to` and begins anew.
    pub fn flush(&mut self, to: &Histogram) {
        if self.touched == 0 {
            return;
        }
        let mut touched = std::mem::take(&mut self.touched);
        while touched != 0 {
            let bucket = touched.trailing_zeros() as usize;
            touched &= touched - 1;
            to.buckets[bucket].fetch_add(u64::from(std::mem::take(&mut self.buckets[bucket])), Relaxed);
        }
        to.nanos.fetch_add(std::mem::take(&mut self.nanos), Relaxed);
    }
}

/// What a histogram held at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    buckets: [u64; BUCKETS],
    nanos: u64,
}

impl Snapshot {
    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            buckets: std::array::from_fn(|n| self.buckets[n].saturating_sub(earlier.buckets[n])),
            nanos: self.nanos.saturating_sub(earlier.nanos),
        }
    }

    /// The counts of both.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            buckets: std::array::from_fn(|n| self.buckets[n] + other.buckets[n]),
            nanos: self.nanos.saturating_add(other.nanos),
        }
    }

    /// The duration that `quantile` (0 to 1) of them did not exceed, interpolated within its bucket as Prometheus'
    /// `histogram_quantile` does; `None` where nothing was counted. Beyond the last bound it is that bound.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = quantile.clamp(0.0, 1.0) * count as f64;
        let mut below = 0u64;
        for (n, in_bucket) in self.buckets.iter().enumerate() {
            if (below + in_bucket) as f64 >= rank && *in_bucket > 0 {
                let Some(&upper) = BOUNDS.get(n) else { break };
                let lower = if n == 0 { 0 } else { BOUNDS[n - 1] };
                let share = (rank - below as f64).max(0.0) / *in_bucket as f64;
                return Some(Duration::from_nanos(lower + ((upper - lower) as f64 * share) as u64));
            }
            below += in_bucket;
        }
        Some(Duration::from_nanos(BOUNDS[BOUNDS.len() - 1]))
    }

    /// Writes the samples of a Prometheus histogram; `labels` is `queue="a",job="b"`.
    pub(super) fn render(&self, name: &str, labels: &str, out: &mut String) {
        let mut cumulative = 0;
        for (n, count) in self.buckets.iter().enumerate() {
            cumulative += count;
            let bound = LABELS.get(n).copied().unwrap_or("+Inf");
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {cumulative}");
        }
        // As above.
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.nanos as f64 / 1e9);
        let _ = writeln!(out, "{name}_count{{{labels}}} {cumulative}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_say_what_bounds_are() {
        for (label, bound) in LABELS.iter().zip(BOUNDS) {
            let seconds: f64 = label.parse().expect("a number");
            assert_eq!((seconds * 1e9).round() as u64, bound);
        }
    }

    #[test]
    fn quantiles_are_interpolated() {
        let histogram = Histogram::default();
        assert_eq!(histogram.snapshot().quantile(0.5), None);
        histogram.observe(Duration::from_millis(2), 100);
        assert_eq!(histogram.snapshot().quantile(0.5), Some(Duration::from_micros(1_750)));
        histogram.observe(Duration::from_secs(9_999), 1_000);
        assert_eq!(histogram.snapshot().quantile(0.99), Some(Duration::from_secs(1_800)));
    }

    proptest! {
        #[test]
        fn local_and_shared_agree_with_a_naive_count(micros in proptest::collection::vec(0u64..4_000_000_000, 0..200)) {
            let (through_local, direct) = (Histogram::default(), Histogram::default());
            let mut local = Local::default();
            for (n, micros) in micros.iter().enumerate() {
                let took = Duration::from_micros(*micros);
                local.record(took);
                direct.observe(took, 1);
                if n % 7 == 0 {
                    local.flush(&through_local);
                }
            }
            local.flush(&through_local);
            let snapshot = through_local.snapshot();
            prop_assert_eq!(&snapshot, &direct.snapshot());
            let mut cumulative = 0;
            for (n, label) in LABELS.iter().enumerate() {
                cumulative += snapshot.buckets[n];
                let bound: f64 = label.parse().expect("a number");
                let naive = micros.iter().filter(|m| **m as f64 / 1e6 <= bound).count() as u64;
                prop_assert_eq!(cumulative, naive, "le {}", label);
            }
            prop_assert_eq!(snapshot.count(), micros.len() as u64);
        }
    }
}
