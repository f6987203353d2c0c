//! How a verb fails: one plain sentence and an exit code.

use std::process::ExitCode;

use crate::{app, broker};

/// Why a verb could not do what was asked.
#[derive(Debug)]
pub enum Fault {
    /// Something to say, and the exit code.
    Said {
        /// 1, 2, 69 or 78: see INTERFACE 5.
        code: u8,
        /// A sentence for people: what, and what to do.
        text: String,
    },
    /// Whoever read stdout has gone: nothing to say, and nobody to say it to.
    Closed,
}

/// Failed at run time, no such id or queue.
pub const FAILED: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// Waiting may help.
pub const UNAVAILABLE: u8 = 69;
/// A person must change something.
pub const CONFIG: u8 = 78;
/// Ended by SIGINT.
pub const INTERRUPTED: u8 = 130;

impl Fault {
    /// With this exit code.
    pub fn new(code: u8, text: impl Into<String>) -> Self {
        Self::Said { code, text: text.into() }
    }

    /// Failed at run time: 1.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(FAILED, text)
    }

    /// Wrong usage: 2.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(USAGE, text)
    }

    /// A file that cannot be read or written: 1, with its name.
    pub fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::failed(format!("{}: {}", path.display(), plain(error)))
    }

    /// Says it on stderr, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Said { code, text } => {
                eprintln!("error: {text}");
                ExitCode::from(*code)
            }
            Self::Closed => ExitCode::SUCCESS,
        }
    }
}

/// An I/O error without its number.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

impl From<broker::Error> for Fault {
    fn from(error: broker::Error) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<app::Error> for Fault {
    fn from(error: app::Error) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

/// Of writing to stdout.
impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::failed(format!("writing to stdout: {}", plain(&error))),
        }
    }
}
