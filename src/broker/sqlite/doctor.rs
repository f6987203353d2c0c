//! What would lose, double or stall jobs in this file.

use std::path::Path;
use std::time::Duration;

use super::Shared;
use super::inspect::{WORKERS, attached, lives};
use super::machine::{Monotonic, Process};
use super::script::{Script, int, int_or_null, text};
use crate::broker::{Error, Finding, Severity};
use crate::time::{Timestamp, format_duration};

/// Warns so long before letters expire.
const AHEAD: Duration = Duration::from_secs(3 * 86_400);
/// A log larger than this is being kept from folding.
const LARGE_LOG: u64 = 256 << 20;
/// Free space below which a warning, and below which an error is due.
const LITTLE_SPACE: (u64, u64) = (1 << 30, 64 << 20);
/// A job that has been ready for so long is worth a word.
const LONG: Duration = Duration::from_secs(3_600);
/// Files up to this size are checked for damage as a whole.
const CHECKED: u64 = 64 << 20;

/// A sentence about letters that will expire within three days.
pub(super) fn near_expiry(oldest: Option<i64>, keep: Option<i64>, now: Timestamp) -> Option<String> {
    let ends = Timestamp::from_millis(oldest?.saturating_add(keep?));
    let left = now.until(ends);
    (left <= AHEAD).then(|| {
        let minutes = Duration::from_secs(left.as_secs() / 60 * 60);
        format!("the oldest dead letter expires in {}", format_duration(minutes))
    })
}

/// All findings.
pub(super) async fn examine(shared: &Shared) -> Result<Vec<Finding>, Error> {
    let now = shared.clock.now();
    let subject = shared.path.display().to_string();
    let mut findings = file(shared, &subject);
    let mut script = Script::default();
    script.add("BEGIN");
    script.add("SELECT id, name, keep_dead FROM queue WHERE forgotten = 0 ORDER BY name");
    script.add(WORKERS);
    script.add(
        "SELECT f.queue, f.jobs, (SELECT e.at FROM event e WHERE e.id = f.first) \
         FROM (SELECT queue, count(*) AS jobs, min(event) AS first FROM fresh GROUP BY queue) f",
    );
    script.add("SELECT queue, count(*), min(last) FROM dead GROUP BY queue");
    script.add("PRAGMA auto_vacuum");
    script.add("SELECT queue, count(*), min(due) FROM later WHERE kind <> 2 GROUP BY queue");
    script.add("COMMIT");
    let answers = shared.read(script).await?;
    let monotonic = Monotonic::beside(&shared.clock);
    let workers = attached(&answers[2].rows, &monotonic);
    let (this, ticks) = (Process::this(), monotonic.now());
    let mut dead: Vec<(i64, String)> =
        answers[2].rows.iter().filter(|row| !lives(row, &this, ticks)).map(|row| (int(row, 7), text(row, 8))).collect();
    dead.dedup();
    for (_, name) in dead {
        findings.push(Finding {
            severity: Severity::Warn,
            subject: subject.clone(),
            finding: format!("the worker {name} is gone without signing off; what it ran waits for another worker"),
            fix: "start a worker: it gives that back at once".to_owned(),
        });
    }
    for row in &answers[1].rows {
        let (id, name) = (int(row, 0), text(row, 1));
        let of = |statement: usize| answers[statement].rows.iter().find(|row| int(row, 0) == id);
        let ready = of(3).map_or(0, |row| int(row, 1)) + of(6).map_or(0, |row| int(row, 1));
        let oldest = [of(3), of(6)].into_iter().flatten().filter_map(|row| int_or_null(row, 2)).min();
        let waiting = oldest.map_or(Duration::ZERO, |at| Timestamp::from_millis(at).until(now));
        if !workers.contains_key(&id) {
            let (severity, finding) = if ready > 0 {
                (Severity::Warn, format!("{ready} job(s) wait and no worker works the queue {name}"))
            } else {
                (Severity::Info, format!("no worker works the queue {name}"))
            };
            let fix = format!("run a worker with --queue {name}, or remove the queue: windlass queues forget {name}");
            findings.push(Finding { severity, subject: name.clone(), finding, fix });
        } else if waiting > LONG {
            findings.push(Finding {
                severity: Severity::Warn,
                subject: name.clone(),
                finding: format!(
                    "the oldest job has been ready for {}",
                    format_duration(Duration::from_secs(waiting.as_secs()))
                ),
                fix: "give the queue more slots, or run another worker".to_owned(),
            });
        }
        let letters = of(4);
        if let Some(finding) = near_expiry(letters.and_then(|row| int_or_null(row, 2)), int_or_null(row, 2), now) {
            findings.push(Finding {
                severity: Severity::Warn,
                subject: name.clone(),
                finding,
                fix: format!(
                    "look at them: windlass dlq list {name}; or keep them longer: dead_letter = {{ keep = \"90d\" }}"
                ),
            });
        }
    }
    if answers[5].rows.first().is_some_and(|row| int(row, 0) == 0) {
        findings.push(Finding {
            severity: Severity::Info,
            subject: subject.clone(),
            finding: "the file never gives space back (it was made without auto_vacuum)".to_owned(),
            fix: format!("once, with no worker running: sqlite3 {subject} 'PRAGMA auto_vacuum = 2; VACUUM'"),
        });
    }
    findings.extend(damage(shared, &subject).await?);
    findings.sort_by_key(|finding| finding.severity);
    Ok(findings)
}

/// What can be said of the file from outside.
fn file(shared: &Shared, subject: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if shared.normal {
        findings.push(Finding {
            severity: Severity::Warn,
            subject: subject.to_owned(),
            finding: "synchronous = \"normal\": a power cut may lose what was confirmed last".to_owned(),
            fix: "[sqlite] synchronous = \"full\", if that matters".to_owned(),
        });
    }
    if let Some(free) = free_space(&shared.path)
        && free < LITTLE_SPACE.0
    {
        findings.push(Finding {
            severity: if free < LITTLE_SPACE.1 { Severity::Error } else { Severity::Warn },
            subject: subject.to_owned(),
            finding: format!(
                "{} MiB are free on its disk; when it is full nothing can be published or finished",
                free >> 20
            ),
            fix: "free some space".to_owned(),
        });
    }
    let mut log = shared.path.clone().into_os_string();
    log.push("-wal");
    if let Ok(meta) = std::fs::metadata(Path::new(&log))
        && meta.len() > LARGE_LOG
    {
        findings.push(Finding {
            severity: Severity::Warn,
            subject: subject.to_owned(),
            finding: format!("its log has grown to {} MiB: some program reads without ending", meta.len() >> 20),
            fix: format!("find it (`fuser {subject}`) and end its transaction"),
        });
    }
    findings
}

async fn damage(shared: &Shared, subject: &str) -> Result<Vec<Finding>, Error> {
    if std::fs::metadata(&shared.path).map_or(true, |meta| meta.len() > CHECKED) {
        return Ok(Vec::new());
    }
    let mut script = Script::default();
    script.add("PRAGMA quick_check(3)");
    let answers = shared.read(script).await?;
    let said: Vec<String> = answers[0].rows.iter().map(|row| text(row, 0)).filter(|line| line != "ok").collect();
    Ok(said
        .into_iter()
        .map(|line| Finding {
            severity: Severity::Error,
            subject: subject.to_owned(),
            finding: format!("the file is damaged: {line}"),
            fix: format!("stop every worker, then save what can be read: sqlite3 {subject} .recover"),
        })
        .collect())
}

#[cfg(unix)]
fn free_space(path: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: statvfs is plain integers, for which zeroes are a value.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the length of the call.
    let status = unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) };
    (status == 0).then(|| stat.f_bavail as u64 * stat.f_frsize as u64)
}
