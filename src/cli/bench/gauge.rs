//! What a process uses, as Linux tells it; elsewhere nothing is known.

/// A process, by its id.
#[derive(Clone, Copy, Debug)]
pub struct Gauge(pub u32);

impl Gauge {
    /// The most memory that it had at once, in MiB (`VmHWM`, proc(5)).
    pub fn peak_mib(self) -> Option<f64> {
        self.status("VmHWM:")
    }

    fn status(self, name: &str) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib / 1_024.0)
    }

    /// Forgets the peak up to now.
    pub fn reset_peak(self) {
        // Where it is refused, the peak is that of all that was done before too.
        let _ = std::fs::write(format!("/proc/{}/clear_refs", self.0), "5");
    }

    /// CPU that its threads have used, in seconds. `schedstat` counts nanoseconds; a thread that has ended is missing
    /// from it, and so from a difference.
    pub fn cpu_s(self) -> Option<f64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0)).ok()?;
        let nanos = tasks.flatten().filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        });
        Some(nanos.sum::<u64>() as f64 / 1e9)
    }
}

/// How many jobs had ended when, and what CPU had been used by then.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    at: u64,
    ended: u64,
    cpu: Option<f64>,
}

/// A rate, taken between a tenth and nine tenths of the jobs, so that neither start nor end counts.
#[derive(Debug, Default)]
pub struct Rate {
    jobs: u64,
    began: Mark,
    tenth: Option<Mark>,
    end: Mark,
    closed: bool,
}

impl Rate {
    /// For so many jobs, from now on.
    pub fn new(jobs: u64, now: u64, cpu: Option<f64>) -> Self {
        let began = Mark { at: now, ended: 0, cpu };
        Self { jobs, began, tenth: None, end: began, closed: false }
    }

    /// So many have ended by now.
    pub fn see(&mut self, ended: u64, now: u64, cpu: impl FnOnce() -> Option<f64>) {
        if self.closed || ended == self.end.ended {
            return;
        }
        let needed = self.tenth.is_none() || ended * 10 >= self.jobs * 9;
        let mark = Mark { at: now, ended, cpu: if needed { cpu() } else { None } };
        if self.tenth.is_none() && ended * 10 >= self.jobs {
            self.tenth = Some(mark);
        }
        self.closed = ended * 10 >= self.jobs * 9;
        self.end = mark;
    }

    /// Where so few were run that the middle was hardly seen, all of it counts.
    fn span(&self) -> (Mark, Mark) {
        match self.tenth {
            Some(tenth) if (self.end.ended - tenth.ended) * 2 >= self.jobs => (tenth, self.end),
            _ => (self.began, self.end),
        }
    }

    /// Jobs a second; 0 where none has ended.
    pub fn per_s(&self) -> f64 {
        let (from, to) = self.span();
        let jobs = (to.ended - from.ended) as f64;
        if to.at > from.at { jobs * 1e9 / (to.at - from.at) as f64 } else { 0.0 }
    }

    /// CPU seconds for 1,000 jobs.
    pub fn cpu_per_1k(&self) -> Option<f64> {
        let (from, to) = self.span();
        let jobs = to.ended.checked_sub(from.ended).filter(|jobs| *jobs > 0)?;
        Some((to.cpu? - from.cpu?).max(0.0) * 1e3 / jobs as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_middle() {
        let mut rate = Rate::new(100, 0, Some(0.0));
        // A slow start, then 1,000 a second, and a slow end.
        for (ended, at, cpu) in
            [(1, 5_000, 5.0), (10, 5_100, 5.1), (50, 5_140, 5.2), (90, 5_180, 5.3), (100, 9_000, 9.0)]
        {
            rate.see(ended, at * 1_000_000, || Some(cpu));
        }
        assert!((rate.per_s() - 1_000.0).abs() < 1e-6, "{rate:?}");
        assert!((rate.cpu_per_1k().expect("known") - 0.2 / 80.0 * 1e3).abs() < 1e-9);
    }

    #[test]
    fn where_the_middle_was_not_seen_all_counts() {
        let mut rate = Rate::new(100, 0, None);
        rate.see(100, 500_000_000, || None);
        assert!((rate.per_s() - 200.0).abs() < 1e-6);
        assert_eq!(rate.cpu_per_1k(), None);
        assert_eq!(Rate::new(100, 0, None).per_s(), 0.0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_is_measured() {
        let own = Gauge(std::process::id());
        assert!(own.peak_mib().expect("known") >= 1.0);
        assert!(own.cpu_s().expect("known") > 0.0);
    }
}
