//! What a worker asks of the system it runs on: many open files, and no memory for what only its start needed.

#[cfg(target_os = "linux")]
use std::time::Duration;

/// When a start is over: credentials are read, connections made, the first jobs begun.
#[cfg(target_os = "linux")]
const STARTED: Duration = Duration::from_secs(1);

/// Thousands of HTTP jobs need thousands of sockets: raises the soft limit of open files to the hard one.
pub(crate) fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write only the struct that they are given, which outlives them.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            // Where it is refused the limit stays as it was, and a socket too many is an ordinary error.
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Unmaps, a second from now, the code that has run so far: reading a configuration and making connections is most of
/// what an idle worker would have in memory. What is needed again is mapped again, from the page cache, 64 KiB at a time.
#[cfg(target_os = "linux")]
pub(crate) async fn forget_start() {
    tokio::time::sleep(STARTED).await;
    // A debugger's breakpoints are written into the code.
    let traced = |status: String| !status.lines().any(|line| line == "TracerPid:\t0");
    if std::fs::read_to_string("/proc/self/status").map_or(true, traced) {
        return;
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, end) in maps.lines().filter_map(code) {
        // SAFETY: a private mapping of a file that may be executed and not written holds what the file holds: code is
        // not relocated. Its pages come back as they were.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// First and last address of a mapping of code from a file, of a line of `/proc/self/maps` (proc_pid_maps(5)).
#[cfg(target_os = "linux")]
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions, file) = (fields.next()?, fields.next()?, fields.nth(3)?);
    if permissions != "r-xp" || !file.starts_with('/') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::code;

    #[test]
    fn only_code_of_files_is_forgotten() {
        let text = "555d03fa3000-555d05372000 r-xp 00656000 fe:00 9980177                    /usr/bin/windlass";
        assert_eq!(code(text), Some((0x555d_03fa_3000, 0x555d_0537_2000)));
        for other in [
            "555d05372000-555d05495000 r--p 01a24000 fe:00 9980177                    /usr/bin/windlass",
            "555d05495000-555d054a2000 rwxp 01b46000 fe:00 9980177                    /usr/bin/windlass",
            "7ffc0b5c9000-7ffc0b5cb000 r-xp 00000000 00:00 0                          [vdso]",
            "7f0000000000-7f0000001000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
    }
}
