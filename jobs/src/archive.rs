//! Keeps each report for good, under a name made of what is in it: `archive/ab/cdef...json`.
//!
//! A blocking job: it reads, hashes and writes files, on a thread of its own.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::Serialize;
use sha2::{Digest, Sha256};
use windlass::{Context, Error};

use crate::Lab;
use crate::file::write_whole;
use crate::report::Report;

/// Where a report was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// SHA-256 of the report, in hexadecimal.
    pub sha256: String,
    /// Whether it was there already.
    pub stored_before: bool,
}

/// The job.
pub fn archive(report: Report, cx: Context) -> Result<Stored, Error> {
    store(cx.state::<Lab>(), &report)
}

/// Puts the report that `report` names into the archive.
pub fn store(lab: &Lab, report: &Report) -> Result<Stored, Error> {
    let bytes = lab.read(&report.location)?;
    let mut sha256 = String::with_capacity(64);
    for byte in Sha256::digest(&bytes) {
        write!(sha256, "{byte:02x}")?;
    }
    let path = place(lab, &sha256);
    // What is there under this name is this report: names are only given to whole files.
    let stored_before = path.exists();
    if !stored_before {
        write_whole(&path, &bytes)?;
    }
    Ok(Stored { sha256, stored_before })
}

fn place(lab: &Lab, sha256: &str) -> PathBuf {
    let (folder, rest) = sha256.split_at(2);
    lab.folder().join("archive").join(folder).join(format!("{rest}.json"))
}

/// How many reports are in the archive.
pub fn len(lab: &Lab) -> io::Result<usize> {
    let mut count = 0;
    for folder in fs::read_dir(lab.folder().join("archive"))? {
        for file in fs::read_dir(folder?.path())? {
            count += usize::from(file?.path().extension().is_some_and(|extension| extension == "json"));
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::tests::Bench;

    #[tokio::test]
    async fn a_report_is_kept_once_and_whole() {
        let bench = Bench::new().await;
        let report = bench.report(7);
        let first = store(&bench.lab, &report).expect("stores");
        let again = store(&bench.lab, &report).expect("stores");
        assert_eq!((first.stored_before, again.stored_before), (false, true));
        assert_eq!(first.sha256, again.sha256);
        let kept = fs::read(place(&bench.lab, &first.sha256)).expect("reads");
        assert_eq!(kept, bench.lab.read(&report.location).expect("reads"));
        assert_eq!(len(&bench.lab).expect("reads"), 1);
        assert_eq!(
            fs::read_dir(place(&bench.lab, &first.sha256).parent().expect("has one")).expect("reads").count(),
            1
        );
    }

    #[tokio::test]
    async fn many_at_once_leave_one_file() {
        let bench = Bench::new().await;
        let report = bench.report(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| store(&bench.lab, &report).expect("stores"));
            }
        });
        assert_eq!(len(&bench.lab).expect("reads"), 1);
    }
}
