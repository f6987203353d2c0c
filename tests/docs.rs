//! The documentation: every link leads somewhere, the book has every page, blocks are what they say they are, and
//! pasted output is what commands print. Rust is compiled as documentation tests (`src/lib.rs`), README's commands are
//! run by `readme`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[cfg(feature = "sqlite")]
use crate::support::worker;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and the pages of `docs/`, decisions included.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    for folder in ["docs", "docs/decisions"] {
        let entries = std::fs::read_dir(root().join(folder)).expect("the folder is there");
        pages.extend(
            entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "md")),
        );
    }
    pages.sort();
    pages
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The page without its blocks, and the blocks: language, line, text.
fn split(text: &str) -> (String, Vec<(String, usize, String)>) {
    let (mut prose, mut blocks) = (String::new(), Vec::new());
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        match line.trim_start().strip_prefix("```") {
            Some(language) => {
                let indent = line.len() - line.trim_start().len();
                let block: Vec<&str> =
                    lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```").collect();
                let block: Vec<&str> = block.iter().map(|line| line.get(indent..).unwrap_or("")).collect();
                blocks.push((language.to_owned(), number + 1, block.join("\n")));
            }
            None => prose.push_str(&format!("{line}\n")),
        }
    }
    (prose, blocks)
}

/// What stands in `](..)`, code left out.
fn links(prose: &str) -> Vec<String> {
    let text: String = prose.split('`').enumerate().filter(|(index, _)| index % 2 == 0).map(|(_, part)| part).collect();
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::to_owned).collect()
}

/// The names under which a page's headings can be linked to.
fn anchors(prose: &str) -> BTreeSet<String> {
    let headings =
        prose.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#').trim());
    let slug = |heading: &str| -> String {
        let lower = heading.to_lowercase().replace(' ', "-");
        lower.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
    };
    headings.map(slug).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut dead = Vec::new();
    for page in pages() {
        let (prose, _) = split(&read(&page));
        for link in links(&prose).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (path, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(path, anchor)| (path, Some(anchor)));
            let target = if path.is_empty() { page.clone() } else { page.parent().expect("in a folder").join(path) };
            let found = match anchor {
                Some(anchor) => target.is_file() && anchors(&split(&read(&target)).0).contains(anchor),
                None => target.exists(),
            };
            if !found {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "these links lead nowhere:\n{}", dead.join("\n"));
}

#[test]
fn the_book_has_every_page() {
    let summary = read(&root().join("docs/SUMMARY.md"));
    let readme = read(&root().join("docs/README.md"));
    let listed: Vec<String> = links(&summary).into_iter().chain(links(&readme)).collect();
    for page in pages().iter().filter_map(|page| page.strip_prefix(root().join("docs")).ok()) {
        let name = page.display().to_string();
        // Decisions are listed by their first, which tells where the others are.
        let known = name == "SUMMARY.md" || name.starts_with("decisions/") || listed.contains(&name);
        assert!(known, "docs/{name} is neither in docs/SUMMARY.md nor in docs/README.md");
    }
    let book: toml::Table = read(&root().join("docs/book.toml")).parse().expect("docs/book.toml is TOML");
    assert_eq!(book["book"]["src"].as_str(), Some("."));
}

#[test]
fn blocks_are_what_they_say() {
    let mut wrong = Vec::new();
    for page in pages() {
        let (_, blocks) = split(&read(&page));
        for (language, line, text) in blocks {
            let place = format!("{}:{line}", page.display());
            match language.as_str() {
                // A line each, where there are several.
                "json" if serde_json::from_str::<serde_json::Value>(&text).is_err() => {
                    for object in text.lines().filter(|line| !line.is_empty()) {
                        if let Err(error) = serde_json::from_str::<serde_json::Value>(object) {
                            wrong.push(format!("{place}: not JSON: {error}"));
                        }
                    }
                }
                "toml" if !text.contains("[dependencies]") => {
                    let source = windlass::config::Source::new().text(&place, text.as_str());
                    if let Err(faults) = windlass::config::load(source.flag("--broker", "broker", "memory://")) {
                        wrong.push(faults.to_string());
                    }
                }
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The pages whose commands are run again, and what they print held against what the page says.
#[cfg(feature = "sqlite")]
#[test]
fn commands_print_what_is_pasted_below_them() {
    let run = || {
        let mut paste = std::process::Command::new(root().join("scripts/paste"));
        worker::clean(&mut paste, root());
        paste.arg("--check").args(["docs/first-minute.md", "docs/retries-and-dead-letters.md"]);
        paste.env("WINDLASS", worker::BINARY).output()
    };
    // A status just after a publish may come before the worker has begun: that the page can be printed is what counts.
    let mut told = run();
    for _ in 0..3 {
        if told.as_ref().is_ok_and(|output| output.status.code() == Some(1)) {
            told = run();
        }
    }
    match told {
        Ok(output) if output.status.code() == Some(127) => eprintln!("not here: python3, to run the pages' commands"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
        }
        Err(error) => panic!("scripts/paste: {error}"),
    }
}
