//! What a person at a terminal gets: colour, tables that fit, questions. The terminal is a real one (a pty).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use super::Place;

/// What a terminal of `columns` columns showed, and the exit code; `typed` is what a person typed.
fn at_terminal(mut command: Command, columns: u16, typed: &str) -> (i32, String) {
    let (mut master, mut slave) = (0, 0);
    let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: both descriptors and the size are ours; the name and the settings may be null.
    let opened = unsafe { libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), &size) };
    assert_eq!(opened, 0, "a pty");
    // SAFETY: openpty gave both, and nobody else has them.
    let (master, slave) = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
    command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm-256color");
    let mut child = command.spawn().expect("the binary starts");
    // The command holds the other end of the pty until it is dropped.
    drop(command);
    drop(slave);
    let mut file = File::from(master);
    assert!(file.as_raw_fd() >= 0);
    file.write_all(typed.as_bytes()).expect("typed");
    let mut shown = Vec::new();
    // The end of a pty is an error (EIO) on Linux.
    let _ = file.read_to_end(&mut shown);
    let status = child.wait().expect("it ends");
    (status.code().unwrap_or(-1), String::from_utf8_lossy(&shown).replace("\r\n", "\n"))
}

const LETTERS: &[(&str, &str, &str)] =
    &[("aa1", "evt-1", "a long error \x1b[31mthat would paint the terminal and does not fit into eighty columns")];

#[test]
fn tables_fit_the_terminal_and_are_painted() {
    let place = Place::new();
    place.letters("invoice", LETTERS);
    let (code, shown) = at_terminal(place.command(["dlq", "list"]), 80, "");
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("\x1b["), "colour: {shown:?}");
    assert!(!shown.contains("\x1b[31mthat"), "an error paints nothing: {shown:?}");
    for line in strip(&shown).lines() {
        assert!(line.chars().count() <= 80, "{line:?}");
    }
    assert_eq!(strip(&shown).lines().count(), 2, "{shown}");
    assert!(strip(&shown).contains("aa1"), "{shown}");
    let mut plain = place.command(["dlq", "list"]);
    plain.env("NO_COLOR", "1");
    let (_, shown) = at_terminal(plain, 80, "");
    assert!(!shown.contains('\x1b'), "{shown:?}");
}

#[test]
fn colour_can_be_forced() {
    let place = Place::new();
    place.letters("invoice", LETTERS);
    let mut forced = place.command(["dlq", "list"]);
    forced.env("CLICOLOR_FORCE", "1");
    assert!(super::run(forced, b"").out.contains("\x1b["));
    assert!(!place.ok(["dlq", "list"]).contains("\x1b["));
}

#[test]
fn a_person_is_asked() {
    let place = Place::new();
    place.letters("invoice", LETTERS);
    let (code, shown) = at_terminal(place.command(["dlq", "purge", "invoice", "aa1"]), 80, "n\n");
    assert!(shown.contains("Remove 1 dead letter of invoice for good? [y/N]"), "{shown}");
    assert_eq!((code, place.dead("invoice")), (1, 1), "{shown}");
    let (code, shown) = at_terminal(place.command(["dlq", "purge", "invoice", "aa1"]), 80, "y\n");
    assert_eq!((code, place.dead("invoice")), (0, 0), "{shown}");
}

#[test]
fn without_data_a_terminal_is_not_read() {
    let place = Place::new();
    let (code, shown) = at_terminal(place.command(["publish", "reports.finalized"]), 80, "");
    assert_eq!(code, 2, "{shown}");
    assert!(shown.contains("no data"), "{shown}");
}

/// Without escape sequences.
fn strip(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("\x1b[") {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 2..];
        let end = tail.find(|c: char| c.is_ascii_alphabetic()).map_or(tail.len(), |end| end + 1);
        rest = &tail[end..];
    }
    out + rest
}
