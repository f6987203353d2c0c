//! Where log lines go and how they look.

/// `[log]`
#[derive(Clone, Debug)]
pub struct Config {
    /// A level, or a `tracing` filter.
    pub level: String,
    /// Whether somebody set it: where nobody did, `RUST_LOG` comes before the default.
    pub level_set: bool,
    /// How lines look.
    pub format: Format,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// Pretty on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// An object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), level_set: false, format: Format::Auto }
    }
}
