//! `DATA | @FILE | -`: where a body or a list of ids comes from.

use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};

use super::fault::Fault;

/// What a `DATA | @FILE | -` argument means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The argument itself.
    Data(Vec<u8>),
    /// `@FILE`
    File(PathBuf),
    /// `-`, or no argument and stdin is no terminal.
    Stdin,
}

impl Input {
    /// Reads the argument. Without one stdin is meant, unless it is a terminal.
    pub fn of(argument: Option<&str>) -> Result<Self, Fault> {
        match argument {
            Some("-") => Ok(Self::Stdin),
            Some(text) => Ok(match text.strip_prefix('@') {
                Some(path) => Self::File(PathBuf::from(path)),
                None => Self::Data(text.as_bytes().to_vec()),
            }),
            None if std::io::stdin().is_terminal() => Err(Fault::usage(
                "no data: give it as an argument, as @FILE, or on stdin; --empty sends an event without a body",
            )),
            None => Ok(Self::Stdin),
        }
    }

    /// All of it.
    pub fn read(self) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        self.open()?.read_to_end(&mut bytes).map_err(|error| Fault::failed(format!("reading the data: {error}")))?;
        Ok(bytes)
    }

    /// To be read line by line.
    pub fn open(self) -> Result<Box<dyn BufRead + Send>, Fault> {
        Ok(match self {
            Self::Data(bytes) => Box::new(std::io::Cursor::new(bytes)),
            Self::File(path) => {
                let file = std::fs::File::open(&path).map_err(|error| Fault::file(&path, &error))?;
                let meta = file.metadata().map_err(|error| Fault::file(&path, &error))?;
                if meta.is_dir() {
                    return Err(Fault::failed(format!("{}: is a directory", path.display())));
                }
                Box::new(BufReader::new(file))
            }
            Self::Stdin => Box::new(BufReader::new(std::io::stdin())),
        })
    }
}

/// `@FILE`, for flags that take nothing else.
pub fn file_of(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix('@') {
        Some(path) if !path.is_empty() => Ok(Path::new(path).to_owned()),
        _ => Err(format!("expected @FILE, found {text:?}")),
    }
}

/// Lines without their line ends (`\n` or `\r\n`), with their numbers from 1; blank ones are left out.
pub fn lines(mut reader: impl BufRead) -> impl Iterator<Item = std::io::Result<(u64, Vec<u8>)>> {
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            let mut line = Vec::new();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
            number += 1;
            if line.last() == Some(&b'\n') {
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
            }
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Some(Ok((number, line)));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_told_apart() {
        let of = |text| Input::of(Some(text)).expect("an input");
        assert_eq!(of("-"), Input::Stdin);
        assert_eq!(of("@a.json"), Input::File("a.json".into()));
        assert_eq!(of("{}"), Input::Data(b"{}".to_vec()));
        assert!(file_of("a.json").is_err() && file_of("@").is_err());
    }

    #[test]
    fn lines_are_numbered_and_blank_ones_left_out() {
        let read: Vec<_> = lines(&b"a\n\n  \nb\r\nc"[..]).map(|line| line.expect("readable")).collect();
        assert_eq!(read, [(1, b"a".to_vec()), (4, b"b".to_vec()), (5, b"c".to_vec())]);
    }
}
