//! Finds, reads and lays over each other what makes a configuration: defaults < file < environment < flags.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fault::{Fault, Faults, Place};
use super::refusal::{self, Refusals};
use super::value::{Node, Table};
use super::{Config, build, document, environment, walk};

/// The file that is read where nobody names one.
pub const FILE: &str = "windlass.toml";

/// What a configuration is made of.
#[derive(Clone, Debug, Default)]
pub struct Source {
    file: Option<PathBuf>,
    text: Option<(Arc<str>, String)>,
    env: Vec<(String, String)>,
    sets: Vec<(String, Option<(String, String)>)>,
}

impl Source {
    /// Defaults alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// With this file; see [`find`].
    pub fn file(mut self, file: Option<PathBuf>) -> Self {
        self.file = file;
        self
    }

    /// With this text instead of a file, called `name` in messages.
    pub fn text(mut self, name: &str, text: impl Into<String>) -> Self {
        self.text = Some((name.into(), text.into()));
        self
    }

    /// With these variables; all but `WINDLASS_*` are ignored. Give it [`std::env::vars_os`].
    pub fn env<K: Into<OsString>, V: Into<OsString>>(mut self, vars: impl IntoIterator<Item = (K, V)>) -> Self {
        let text = |os: OsString| os.to_string_lossy().into_owned();
        self.env.extend(vars.into_iter().map(|(name, value)| (text(name.into()), text(value.into()))));
        self.env.sort();
        self
    }

    /// With `--set KEY=VALUE`s, of which a later one comes before an earlier one.
    pub fn sets<S: AsRef<str>>(mut self, sets: impl IntoIterator<Item = S>) -> Self {
        for set in sets {
            let pair =
                set.as_ref().split_once('=').map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()));
            let name = pair.as_ref().map_or(set.as_ref(), |(key, _)| key);
            self.sets.push((format!("--set {name}"), pair));
        }
        self
    }

    /// With a key that a flag of its own sets: `flag("--broker", "broker", url)`. `value` is read as by `--set`.
    pub fn flag(mut self, flag: &str, key: &str, value: impl Into<String>) -> Self {
        self.sets.push((flag.to_owned(), Some((key.to_owned(), value.into()))));
        self
    }
}

/// A configuration and what is to be said about it.
#[derive(Debug)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// Variables that name no key: a fault for `config check`, a warning elsewhere.
    pub unknown: Vec<Fault>,
    /// Warnings of `config check`; nothing elsewhere.
    pub cautions: Vec<Fault>,
    /// Where each key's value came from, by dotted key; what is absent is the default.
    pub origins: BTreeMap<String, Place>,
    /// What was written, over all sources.
    pub(super) values: Table,
}

/// Which file to read: `--config`, else `WINDLASS_CONFIG`, else [`FILE`] in the working directory if it is there.
pub fn find(flag: Option<PathBuf>, env: Option<OsString>) -> Option<PathBuf> {
    flag.or_else(|| env.filter(|name| !name.is_empty()).map(PathBuf::from))
        .or_else(|| Path::new(FILE).exists().then(|| PathBuf::from(FILE)))
}

/// Reads and checks a configuration, or says every fault at once. Unknown variables are no faults here.
pub fn load(source: Source) -> Result<Loaded, Faults> {
    let (loaded, faults, _) = read(source);
    loaded.filter(|_| faults.is_empty()).ok_or_else(|| Faults::of(faults))
}

/// As [`load`], for `config check`: unknown variables are faults, and so is what only `run` would refuse.
pub fn check(source: Source) -> Result<Loaded, Faults> {
    let (mut loaded, mut faults, unknown) = read(source);
    faults.extend(unknown);
    if let Some(loaded) = &mut loaded {
        let Refusals { faults: refused, cautions } = refusal::find(&loaded.values, &loaded.config, !faults.is_empty());
        faults.extend(refused);
        loaded.cautions.extend(cautions);
    }
    loaded.filter(|_| faults.is_empty()).ok_or_else(|| Faults::of(faults))
}

/// What could be made of it, its faults, and the variables that name no key.
pub(super) fn read(source: Source) -> (Option<Loaded>, Vec<Fault>, Vec<Fault>) {
    let mut faults = Vec::new();
    let mut tree = Table::new();
    let mut broken = false;

    let (name, text) = match (&source.text, &source.file) {
        (Some((name, text)), _) => (Some(name.clone()), Some(text.clone())),
        (None, Some(path)) => {
            let name: Arc<str> = path.to_string_lossy().into();
            (Some(name.clone()), open(path, &name, &mut faults))
        }
        (None, None) => (None, None),
    };
    broken |= name.is_some() && text.is_none();
    if let (Some(name), Some(text)) = (&name, &text) {
        let (found, syntax) = document::parse(name, text);
        tree = found;
        let mut inside = Vec::new();
        walk::check(&mut tree, &mut inside);
        // What was recovered of a line that is not TOML says nothing about what was meant.
        inside.retain(|fault| !syntax.iter().any(|other| line(&fault.place) == line(&other.place)));
        broken |= !syntax.is_empty();
        faults.extend(syntax);
        faults.extend(inside);
    }

    let mut flags = Table::new();
    for (flag, pair) in &source.sets {
        match pair {
            Some((key, text)) => environment::set(&mut flags, flag, key, text, &mut faults),
            None => faults.push(Fault::new(&Place::Flag(flag.as_str().into()), "", "expected KEY=VALUE")),
        }
    }
    walk::check(&mut flags, &mut faults);

    let mut below = tree.clone();
    walk::lay_over(&mut below, flags.clone());
    let (mut variables, unknown) = environment::read(&source.env, &below, &mut faults);
    walk::check(&mut variables, &mut faults);

    walk::lay_over(&mut tree, variables);
    walk::lay_over(&mut tree, flags);

    let file = name.as_ref().map(|name| PathBuf::from(&**name));
    // Faults of the whole are of no use while a part of the file could not be read.
    let built = build::build(&tree, file, &mut faults, broken);
    let loaded = built.map(|(config, cautions)| {
        let mut origins = BTreeMap::new();
        places(&tree, "", &mut origins);
        Loaded { config, unknown: unknown.clone(), cautions, origins, values: tree.clone() }
    });
    (loaded, faults, unknown)
}

fn open(path: &Path, name: &Arc<str>, faults: &mut Vec<Fault>) -> Option<String> {
    let whole = Place::Whole(name.clone());
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            let fault = Fault::new(&whole, "", format!("cannot be read: {error}"));
            faults.push(match error.kind() {
                std::io::ErrorKind::NotFound => fault.hint("`windlass config init` writes one to begin with"),
                _ => fault,
            });
            return None;
        }
    };
    String::from_utf8(bytes)
        .map_err(|error| {
            let good = error.utf8_error().valid_up_to();
            let before = &error.as_bytes()[..good];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
            let place = Place::File { path: name.clone(), line, column };
            faults.push(Fault::new(&place, "", "not TOML: expected UTF-8 text"));
        })
        .ok()
}

fn line(place: &Place) -> Option<usize> {
    match place {
        Place::File { line, .. } => Some(*line),
        _ => None,
    }
}

/// Where each leaf of the tree was written.
fn places(table: &Table, path: &str, origins: &mut BTreeMap<String, Place>) {
    for (name, Node { value, place, .. }) in table {
        let here = super::key::join(path, &walk::quoted(name));
        match value.table() {
            Some(inner) => places(inner, &here, origins),
            None => {
                origins.insert(here, place.clone());
            }
        }
    }
}
