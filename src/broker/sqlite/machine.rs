//! This machine and this process, as others on the same file can recognise them.

use std::time::Duration;

use crate::time::Clock;

/// A process, such that it can be told from any other that ever ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The machine's boot.
    pub boot: String,
    /// The pid namespace in which `pid` counts; 0 where it cannot be read.
    pub pidns: i64,
    /// Its number there.
    pub pid: i64,
    /// When it was started, in clock ticks since the boot: tells it from a later process of the same number.
    pub born: i64,
}

/// Whether another process still lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs, or is stopped.
    Alive,
    /// It does not exist any more.
    Gone,
    /// It is in another pid namespace: only its lease tells.
    Unknown,
}

impl Process {
    /// This process.
    pub fn this() -> Self {
        let pid = i64::from(std::process::id());
        Self { boot: boot_id(), pidns: pid_namespace(), pid, born: born(pid).unwrap_or(0) }
    }

    /// Whether `other` lives, as far as this process can see.
    pub fn sees(&self, other: &Self) -> Life {
        if self.boot != other.boot {
            return Life::Gone;
        }
        if self.pidns == 0 || self.pidns != other.pidns {
            return Life::Unknown;
        }
        match born(other.pid) {
            Some(born) if born == other.born => Life::Alive,
            _ => Life::Gone,
        }
    }
}

/// What leases are measured by. No step of the wall clock touches it, and it goes on while the machine sleeps.
#[derive(Clone, Debug)]
pub enum Monotonic {
    /// `CLOCK_BOOTTIME`.
    Machine,
    /// tokio's, which tests can stop.
    Tokio(tokio::time::Instant),
}

impl Monotonic {
    /// The one that belongs to this wall clock.
    pub fn beside(clock: &Clock) -> Self {
        match clock {
            // The test kit's clock is for `memory://`; here leases must go on.
            Clock::System | Clock::Stopped(_) => Self::Machine,
            Clock::Tokio { since, .. } => Self::Tokio(*since),
        }
    }

    /// Milliseconds since the boot.
    pub fn now(&self) -> i64 {
        match self {
            Self::Machine => boot_time().as_millis() as i64,
            Self::Tokio(since) => since.elapsed().as_millis() as i64,
        }
    }
}

#[cfg(target_os = "linux")]
fn boot_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the length of the call.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    assert_eq!(status, 0, "every Linux since 2.6.39 has CLOCK_BOOTTIME");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(not(target_os = "linux"))]
fn boot_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the length of the call.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(status, 0, "POSIX has CLOCK_MONOTONIC");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".to_owned(), |id| id.trim().to_owned())
}

fn pid_namespace() -> i64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino() as i64)
}

/// Field 22 of `/proc/PID/stat`, unless the process is gone or only waits to be reaped. The second field is the
/// program's name in parentheses and may hold anything, so that counting begins behind the last parenthesis.
fn born(pid: i64) -> Option<i64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_alive_and_a_dead_one_gone() {
        let this = Process::this();
        assert_eq!(this.sees(&this), Life::Alive);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = i64::from(child.id());
        let other = Process { pid, born: born(pid).expect("it runs"), ..this.clone() };
        assert_eq!(this.sees(&other), Life::Alive);
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert_eq!(this.sees(&other), Life::Gone);
    }

    #[test]
    fn a_number_that_was_given_to_another_process_is_not_it() {
        let this = Process::this();
        let before = Process { born: this.born - 1, ..this.clone() };
        assert_eq!(this.sees(&before), Life::Gone);
    }

    #[test]
    fn another_boot_is_gone_and_another_namespace_unknown() {
        let this = Process::this();
        assert_eq!(this.sees(&Process { boot: "before".into(), ..this.clone() }), Life::Gone);
        assert_eq!(this.sees(&Process { pidns: 1, ..this.clone() }), Life::Unknown);
    }
}
