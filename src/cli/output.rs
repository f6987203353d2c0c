//! Stdout for data; what terminals are told apart for: colour, width, progress, questions.

use std::io::{BufRead, BufWriter, IsTerminal, Stdout, Write};

use serde::Serialize;

use super::fault::Fault;

/// Buffered stdout. Writing to a pipe that was closed is [`Fault::Closed`].
pub struct Output(BufWriter<Stdout>);

impl Output {
    /// Stdout.
    pub fn stdout() -> Self {
        Self(BufWriter::new(std::io::stdout()))
    }

    /// Text and a line feed.
    pub fn line(&mut self, text: impl std::fmt::Display) -> Result<(), Fault> {
        Ok(writeln!(self.0, "{text}")?)
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        Ok(self.0.write_all(bytes)?)
    }

    /// A JSON value and a line feed.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Fault> {
        let text = serde_json::to_vec(value).map_err(|error| Fault::failed(format!("writing JSON: {error}")))?;
        self.0.write_all(&text)?;
        Ok(self.0.write_all(b"\n")?)
    }

    /// What was written so far is shown.
    pub fn flush(&mut self) -> Result<(), Fault> {
        Ok(self.0.flush()?)
    }
}

/// Whether stdout gets colour: on a terminal unless `NO_COLOR` (no-color.org), elsewhere by `CLICOLOR_FORCE`
/// (bixense.com/clicolors).
pub fn is_coloured() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if set("NO_COLOR") {
        return false;
    }
    if set("CLICOLOR_FORCE") && std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let off = std::env::var_os("CLICOLOR").is_some_and(|value| value == "0");
    std::io::stdout().is_terminal() && !dumb && !off
}

/// A colour, where stdout gets one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Something is wrong.
    Red,
    /// Something may be wrong.
    Yellow,
    /// All is well.
    Green,
    /// A heading.
    Bold,
    /// Less important.
    Dim,
}

impl Paint {
    /// The text, painted where stdout gets colour.
    pub fn on(self, text: &str) -> String {
        let code = match self {
            Self::Red => 31,
            Self::Yellow => 33,
            Self::Green => 32,
            Self::Bold => 1,
            Self::Dim => 2,
        };
        if is_coloured() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Text from elsewhere (an error, a body, a header), safe to show: control characters, which could steer the terminal,
/// are written as escapes. Line feeds and tabs stay where `lines` are wanted.
pub fn shown(text: &str, lines: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' if lines => out.push(c),
            '\n' | '\r' | '\t' if !lines => out.push(' '),
            c if c.is_control() || is_bidi(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// Characters that reorder what stands beside them.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Asks a person. Without one (stdin is no terminal), a usage error that names `--yes`.
pub fn confirm(question: &str) -> Result<(), Fault> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Fault::usage(format!("{question} Nobody is here to answer: say --yes")));
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Fault::failed(format!("reading the answer: {error}")))?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Fault::failed("nothing was done")),
    }
}

/// A bar on stderr where that is a terminal; else nothing is shown.
pub fn progress(total: u64, doing: &str, quiet: bool) -> indicatif::ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let bar = indicatif::ProgressBar::new(total);
    let template = "{msg} {wide_bar} {human_pos}/{human_len}  {per_sec}  {eta} left";
    // The template is a constant, checked by a test.
    if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(doing.to_owned());
    bar
}

/// A count on stderr where that is a terminal, for work whose size is not known.
pub fn counter(doing: &str, quiet: bool) -> indicatif::ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let bar = indicatif::ProgressBar::new_spinner();
    if let Ok(style) = indicatif::ProgressStyle::with_template("{spinner} {msg} {human_pos}  {per_sec}") {
        bar.set_style(style);
    }
    bar.set_message(doing.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_not_steered() {
        assert_eq!(shown("a\x1b[31mb\nc\u{202e}", false), "a\\u{1b}[31mb c\\u{202e}");
        assert_eq!(shown("a\nb\tc", true), "a\nb\tc");
    }

    #[test]
    fn progress_templates_are_valid() {
        for template in [
            "{msg} {wide_bar} {human_pos}/{human_len}  {per_sec}  {eta} left",
            "{spinner} {msg} {human_pos}  {per_sec}",
        ] {
            assert!(indicatif::ProgressStyle::with_template(template).is_ok());
        }
    }
}
