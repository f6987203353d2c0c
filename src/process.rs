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

/// Unmaps, a second from now, the code and constants that were used so far: reading a configuration and making
/// connections is most of what an idle worker would have in memory. What is needed again is mapped again, from the page
/// cache, 64 KiB at a time.
#[cfg(target_os = "linux")]
pub(crate) async fn forget_start() {
    tokio::time::sleep(STARTED).await;
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, end) in unchanged(&maps) {
        // SAFETY: a mapping of a file that nobody may write to and that has no page of its own holds what the file
        // holds. Its pages come back as they were.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// First and last address of each mapping that is its file's content and nothing else, of the text of
/// `/proc/self/smaps` (proc_pid_smaps(5)). What was relocated, or has a debugger's breakpoint in it, is none.
#[cfg(target_os = "linux")]
fn unchanged(maps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut mapping = None;
    let mut own = None;
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (name, value) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        match name {
            "Anonymous:" => own = value.parse().ok(),
            "Swap:" => {
                let swapped: Option<u64> = value.parse().ok();
                let pages: Option<u64> = own.take().zip(swapped).map(|(own, swapped): (u64, u64)| own + swapped);
                found.extend(mapping.take().filter(|_| pages == Some(0)));
            }
            _ if name.ends_with(':') => {}
            range => {
                let file = fields.nth(3).is_some_and(|file| file.starts_with('/'));
                let range = range.split_once('-').filter(|_| file && matches!(value, "r-xp" | "r--p"));
                let address = |text| usize::from_str_radix(text, 16).ok();
                (mapping, own) = (range.and_then(|(start, end)| address(start).zip(address(end))), None);
            }
        }
    }
    found
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::unchanged;

    fn mapping(line: &str, anonymous: u64, swap: u64) -> String {
        format!("{line}\nSize: 8 kB\nRss: 8 kB\nAnonymous: {anonymous} kB\nSwap: {swap} kB\nVmFlags: rd mr mw me\n")
    }

    #[test]
    fn only_what_the_file_still_holds_is_forgotten() {
        const FILE: &str = "fe:00 9980177                    /usr/bin/windlass";
        let text = [
            mapping(&format!("555d0394d000-555d03fa3000 r--p 00000000 {FILE}"), 0, 0),
            mapping(&format!("555d03fa3000-555d05372000 r-xp 00656000 {FILE}"), 0, 0),
            mapping(&format!("555d06000000-555d06001000 r-xp 00656000 {FILE}"), 4, 0),
            mapping(&format!("555d06001000-555d06002000 r--p 01a24000 {FILE}"), 0, 4),
            mapping(&format!("555d06002000-555d06003000 rw-p 01b46000 {FILE}"), 0, 0),
            mapping(&format!("555d06003000-555d06004000 rwxp 01b46000 {FILE}"), 0, 0),
            mapping("7ffc0b5c9000-7ffc0b5cb000 r-xp 00000000 00:00 0                          [vdso]", 0, 0),
            mapping("7f0000000000-7f0000001000 r--p 00000000 00:00 0", 0, 0),
            "7f0000001000-7f0000002000 r--p 00000000 fe:00 1 /lib/cut\nAnonymous: 0 kB\n".to_owned(),
        ];
        let found = [(0x555d_0394_d000, 0x555d_03fa_3000), (0x555d_03fa_3000, 0x555d_0537_2000)];
        assert_eq!(unchanged(&text.concat()), found);
        assert_eq!(unchanged(""), []);
    }

    #[test]
    fn this_program_has_such_mappings() {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux");
        let found = unchanged(&maps);
        let code = only_what_the_file_still_holds_is_forgotten as fn() as usize;
        assert!(found.iter().any(|&(start, end)| (start..end).contains(&code)), "{found:x?}");
    }
}
