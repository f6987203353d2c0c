//! What is wrong with a configuration, and where it says so.

use std::fmt;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeStruct, Serializer};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the file; line and column count from 1, the column in characters.
    File {
        /// The path as it was given.
        path: Arc<str>,
        /// Line.
        line: usize,
        /// Column, in characters.
        column: usize,
    },
    /// In the file as a whole: it cannot be read, or something is absent from it.
    Whole(Arc<str>),
    /// In an environment variable, by its name.
    Variable(Arc<str>),
    /// On the command line: `--set worker.slots`, `--broker`.
    Flag(Arc<str>),
    /// Nowhere: it is the default.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{path}:{line}:{column}"),
            Self::Whole(path) => f.write_str(path),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One thing that a person must change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it is.
    pub place: Place,
    /// The key it is about, dotted: `queues.invoice.slots`; empty where it is about none.
    pub key: String,
    /// What is wrong and what was expected, as one sentence without a full stop.
    pub message: String,
    /// What to write instead, where we know.
    pub hint: Option<String>,
}

impl Fault {
    pub(super) fn new(place: &Place, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.clone(), key: key.into(), message: message.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Fault {
    /// `windlass.toml:7:1: worker.slotz: unknown key; did you mean "slots"?`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place != Place::Default {
            write!(f, "{}: ", self.place)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Fault {
    /// `{"file","line","column","variable","flag","key","message","hint"}`, null where it does not apply.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (mut file, mut line, mut column, mut variable, mut flag) = (None, None, None, None, None);
        match &self.place {
            Place::File { path, line: at_line, column: at_column } => {
                (file, line, column) = (Some(path), Some(at_line), Some(at_column));
            }
            Place::Whole(path) => file = Some(path),
            Place::Variable(name) => variable = Some(name),
            Place::Flag(name) => flag = Some(name),
            Place::Default => {}
        }
        let mut out = serializer.serialize_struct("Fault", 8)?;
        out.serialize_field("file", &file.map(|text| &**text))?;
        out.serialize_field("line", &line)?;
        out.serialize_field("column", &column)?;
        out.serialize_field("variable", &variable.map(|text| &**text))?;
        out.serialize_field("flag", &flag.map(|text| &**text))?;
        out.serialize_field("key", &self.key)?;
        out.serialize_field("message", &self.message)?;
        out.serialize_field("hint", &self.hint)?;
        out.end()
    }
}

/// Every fault of a configuration, in the order of its places. Exit code 78.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    pub(super) fn of(mut faults: Vec<Fault>) -> Self {
        faults.sort_by(|a, b| a.place.cmp(&b.place));
        Self(faults)
    }
}

impl fmt::Display for Faults {
    /// A fault a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
