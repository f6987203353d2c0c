//! Bearer tokens: one a line, each valid, read again when the file changes. A rotation writes the new token beside
//! the old one, moves the clients, and removes the old line.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::Error;

/// The tokens of a file.
pub(super) struct Tokens {
    file: PathBuf,
    cached: Mutex<Cached>,
}

/// Never shown: it has no `Debug`.
struct Cached {
    stamp: Option<Stamp>,
    tokens: Vec<String>,
}

/// What differs when a file was written again or replaced.
#[derive(PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    length: u64,
    inode: u64,
}

impl Tokens {
    /// Reads the file, if one is configured: one that is missing or empty keeps the worker from starting, for it
    /// would be open where a person thought it closed.
    pub(super) fn open(file: Option<PathBuf>) -> Result<Option<Self>, Error> {
        let Some(file) = file else { return Ok(None) };
        let fault = |what: &dyn std::fmt::Display| Error::Tokens(format!("{}: {what}", file.display()));
        let stamp = stamp(&file).map_err(|error| fault(&error))?;
        let tokens = read(&file).map_err(|error| fault(&error))?;
        if tokens.is_empty() {
            return Err(fault(&"expected a token a line, found none"));
        }
        Ok(Some(Self { cached: Mutex::new(Cached { stamp: Some(stamp), tokens }), file }))
    }

    /// Whether `token` is one of them. A file that has gone or became empty has none: that is how all are revoked.
    pub(super) fn contain(&self, token: &str) -> bool {
        let mut cached = self.cached.lock();
        let stamp = stamp(&self.file).ok();
        if stamp != cached.stamp || stamp.is_none() {
            cached.tokens = match read(&self.file) {
                Ok(tokens) => tokens,
                Err(error) => {
                    tracing::warn!(file = %self.file.display(), error = %error, "admin tokens cannot be read; none is valid");
                    Vec::new()
                }
            };
            cached.stamp = stamp;
        }
        // Every token is looked at to its end, whichever fits: the time tells nothing.
        cached.tokens.iter().fold(false, |found, known| same(known.as_bytes(), token.as_bytes()) | found)
    }
}

/// Compares without telling by its time where the two differ; only the lengths may show.
fn same(known: &[u8], given: &[u8]) -> bool {
    let mut differ = u8::from(known.len() != given.len());
    for (n, byte) in given.iter().enumerate() {
        let other = known.get(n).copied().unwrap_or(!byte);
        differ |= std::hint::black_box(byte ^ other);
    }
    std::hint::black_box(differ) == 0
}

fn stamp(file: &Path) -> std::io::Result<Stamp> {
    let metadata = std::fs::metadata(file)?;
    Ok(Stamp { modified: (metadata.mtime(), metadata.mtime_nsec()), length: metadata.len(), inode: metadata.ino() })
}

fn read(file: &Path) -> std::io::Result<Vec<String>> {
    let text = std::fs::read_to_string(file)?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_rotate_without_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("tokens");
        assert!(Tokens::open(Some(file.clone())).is_err(), "a missing file must not open the port");
        std::fs::write(&file, "\n  \n").expect("written");
        assert!(Tokens::open(Some(file.clone())).is_err(), "an empty file neither");
        std::fs::write(&file, "old\n\n new-one \r\n").expect("written");
        let tokens = Tokens::open(Some(file.clone())).expect("readable").expect("configured");
        assert!(tokens.contain("old") && tokens.contain("new-one"));
        for wrong in ["", "ol", "oldx", "new-on", "OLD"] {
            assert!(!tokens.contain(wrong), "{wrong:?}");
        }
        std::fs::write(&file, "new-one\n").expect("written");
        assert!(!tokens.contain("old") && tokens.contain("new-one"));
        std::fs::remove_file(&file).expect("removed");
        assert!(!tokens.contain("new-one"), "removing the file revokes all");
        std::fs::write(&file, "third\n").expect("written");
        assert!(tokens.contain("third"));
    }

    #[test]
    fn comparing_agrees_with_equality() {
        for (a, b) in [("", ""), ("a", ""), ("", "a"), ("abc", "abc"), ("abc", "abd"), ("abc", "abcd")] {
            assert_eq!(same(a.as_bytes(), b.as_bytes()), a == b, "{a:?} {b:?}");
        }
    }
}
