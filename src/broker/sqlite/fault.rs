//! What SQLite says, in a sentence that says what to do.

use std::path::Path;

use super::super::Error;

/// SQLite's primary result codes that mean something to a person (<https://www.sqlite.org/rescode.html>).
/// An ordinary error of a statement; what a guard of a script fails with.
pub const ERROR: i32 = 1;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READONLY: i32 = 8;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const PERM: i32 = 3;
const AUTH: i32 = 23;
const NOTADB: i32 = 26;

/// SQLite's primary result code.
pub fn code(error: &sqlx::Error) -> Option<i32> {
    let extended: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(extended & 0xff)
}

/// Somebody else holds the write lock.
pub fn is_busy(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(BUSY | LOCKED))
}

/// The disk is full, or refuses.
pub fn is_full(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(FULL | IOERR))
}

/// As the rest of the program understands it.
pub fn explain(error: &sqlx::Error, path: &Path) -> Error {
    let file = path.display();
    match code(error) {
        Some(BUSY | LOCKED) => Error::Unavailable(format!(
            "{file} is locked by another process; try again, and look for a program that holds it open (`fuser {file}`)"
        )),
        Some(FULL) => Error::Unavailable(format!("the disk that holds {file} is full; free some space")),
        Some(IOERR) => {
            Error::Unavailable(format!("the disk that holds {file} does not do what it is asked ({})", said(error)))
        }
        Some(READONLY) => Error::Refused(format!(
            "{file} cannot be written; give this user permission to write the file and its directory"
        )),
        Some(CANTOPEN | PERM | AUTH) => Error::Refused(format!(
            "{file} cannot be opened; the file and its directory must be readable and writable for this user"
        )),
        Some(CORRUPT) => Error::Refused(format!(
            "{file} is damaged ({}); restore it from a copy, or save what can be read with `sqlite3 {file} .recover`",
            said(error)
        )),
        Some(NOTADB) => Error::Refused(format!("{file} is not an SQLite database; name another file")),
        _ => Error::Unavailable(format!("{file}: {}", said(error))),
    }
}

fn said(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |database| database.message().to_owned())
}
