//! A measurement's name: a namespace that nobody else has, and by which the next one tells whether it still runs.
//!
//! `windlass-bench-TIME-PLACE-PID`, in base 36: when it began, in seconds; the machine and its space of process ids;
//! the process.

use crate::time::Clock;

/// What all names begin with.
pub const PREFIX: &str = "windlass-bench-";
/// What was begun elsewhere so long ago has ended, whatever became of it.
const LONGEST: u64 = 24 * 3_600;

/// A name for this process.
pub fn new() -> String {
    let time = Clock::System.now().as_millis() as u64 / 1_000;
    format!("{PREFIX}{}-{}-{}", base36(time), place(), base36(u64::from(std::process::id())))
}

/// Whether what bears this name was left behind: its process has ended.
pub fn is_left(name: &str) -> bool {
    let mut parts = name.strip_prefix(PREFIX).unwrap_or_default().split('-');
    let (Some(time), Some(at), Some(pid), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let (Ok(time), Ok(pid)) = (u64::from_str_radix(time, 36), u64::from_str_radix(pid, 36)) else { return false };
    if at == place() {
        return !lives(pid, time);
    }
    Clock::System.now().as_millis() as u64 / 1_000 > time + LONGEST
}

/// Whether this process is there and was there at that time: numbers are given out again.
fn lives(pid: u64, time: u64) -> bool {
    if pid == u64::from(std::process::id()) {
        return true;
    }
    let began = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: u64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        // SAFETY: asks for a constant of the system.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Some(boot + ticks / u64::try_from(per_second).ok()?.max(1))
    };
    match began() {
        Some(began) => began <= time + 2,
        // SAFETY: signal 0 only asks whether the process is there.
        None if cfg!(not(target_os = "linux")) => unsafe { libc::kill(pid as libc::pid_t, 0) == 0 },
        None => false,
    }
}

/// Three digits that name this machine since its start, and within it the space of its process ids.
fn place() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let text = format!(
        "{boot}{}{}",
        space.display(),
        crate::telemetry::log::worker_name().rsplit_once('-').map_or("", |(host, _)| host)
    );
    // FNV-1a, 64 bits.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    base36(36 * 36 + hash % (35 * 36 * 36))
}

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize]);
        number /= 36;
        if number == 0 {
            break;
        }
    }
    digits.reverse();
    String::from_utf8_lossy(&digits).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Namespace;

    #[test]
    fn names_are_namespaces_and_tell_who_has_ended() {
        let own = new();
        assert!(Namespace::new(&own).is_ok(), "{own}");
        assert!(!is_left(&own));
        let (rest, _) = own.rsplit_once('-').expect("parts");
        let mut child = std::process::Command::new("true").spawn().expect("a process");
        let pid = u64::from(child.id());
        child.wait().expect("it ends");
        assert!(is_left(&format!("{rest}-{}", base36(pid))));
        // Process 1 began before, so it is not told from one that runs; elsewhere only time tells.
        let place = place();
        assert!(!is_left(&format!("{PREFIX}zzzzzz-{place}-1")));
        assert!(is_left(&format!("{PREFIX}1-zzzz-1")) && !is_left(&format!("{PREFIX}zzzzzz-zzzz-1")));
        for foreign in
            ["windlass-bench-", "windlass-bench-x", "windlass", "windlass-bench-a-b-c-d", "windlass-bench-?-a-b"]
        {
            assert!(!is_left(foreign), "{foreign}");
        }
        // The longest that there can be.
        assert!(format!("{PREFIX}zzzzzz-zzz-{}", base36(4_194_304)).len() <= 32);
    }
}
