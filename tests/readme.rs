//! The documentation's commands, run literally.
//!
//! A ```` ```sh ```` block behind a line `<!-- run -->` is run by bash, in one folder for the whole file, with the
//! `windlass` of this build on the path; it must succeed. A ```` ```text ```` or ```` ```json ```` block behind
//! `<!-- prints -->` is what the block before it prints to stdout: `...` stands for any text within a line, and on a
//! line of its own for any lines. A block behind `<!-- file NAME -->` is written to that file.

use std::path::Path;
use std::process::Command;

use crate::support::worker;

struct Block {
    line: usize,
    mark: String,
    text: String,
}

/// Blocks that bear a mark, in order.
fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = document.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let Some(mark) = line.trim().strip_prefix("<!-- ").and_then(|mark| mark.strip_suffix(" -->")) else { continue };
        if !lines.peek().is_some_and(|(_, next)| next.starts_with("```")) {
            continue;
        }
        let block: Vec<&str> = lines.by_ref().skip(1).map(|(_, line)| line).take_while(|line| *line != "```").collect();
        blocks.push(Block { line: number + 2, mark: mark.to_owned(), text: block.join("\n") + "\n" });
    }
    blocks
}

/// Whether `text` is what `pattern` says, `...` standing for any text.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split("...");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

/// Whether the printed lines are the expected ones; a line `...` stands for any lines.
fn all_fit(expected: &[&str], printed: &[&str]) -> bool {
    match (expected, printed) {
        ([], []) => true,
        (["...", after @ ..], _) => (0..=printed.len()).any(|skip| all_fit(after, &printed[skip..])),
        ([expected, after @ ..], [line, rest @ ..]) => {
            fits(expected.trim_end(), line.trim_end()) && all_fit(after, rest)
        }
        _ => false,
    }
}

fn check(document: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = std::fs::read_to_string(&path).expect("the document is there");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).expect("a temporary folder");
    std::os::unix::fs::symlink(worker::BINARY, bin.join("windlass")).expect("a temporary folder");
    let folders = std::env::var("PATH").unwrap_or_default();
    let mut printed = String::new();
    let mut ran = 0;
    for block in blocks(&text) {
        let place = format!("{document}:{}", block.line);
        if block.mark == "run" {
            let mut command = Command::new("bash");
            command.args(["-euo", "pipefail", "-c", &block.text]);
            worker::clean(&mut command, dir.path());
            command.env("PATH", format!("{}:{folders}", bin.display())).env("COLUMNS", "120");
            let output = command.output().expect("bash is there");
            let [stdout, stderr] = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
            assert!(output.status.success(), "{place}: {}\n{stdout}\n{stderr}", output.status);
            printed = stdout;
            ran += 1;
        } else if block.mark == "prints" {
            let (expected, got): (Vec<&str>, Vec<&str>) = (block.text.lines().collect(), printed.lines().collect());
            assert!(all_fit(&expected, &got), "{place}: it says\n{}\nand the command prints\n{printed}", block.text);
        } else if let Some(name) = block.mark.strip_prefix("file ") {
            std::fs::write(dir.path().join(name), &block.text).expect("a temporary folder");
        }
    }
    assert!(ran > 0, "{document} has no block to run");
}

#[test]
fn the_readme_does_what_it_says() {
    check("README.md");
}

#[test]
fn dots_stand_for_anything() {
    assert!(fits("a ... c", "a b c") && fits("a...", "a") && fits("...", "") && fits("plain", "plain"));
    assert!(!fits("a ... c", "a b") && !fits("plain", "plainer") && !fits("a...b...c", "a c"));
    assert!(all_fit(&["a", "...", "d"], &["a", "b", "c", "d"]) && all_fit(&["...", "a"], &["a"]));
    assert!(!all_fit(&["a"], &["a", "b"]) && !all_fit(&["a", "..."], &["b"]));
}
