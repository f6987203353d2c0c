//! The documentation: every link leads somewhere, the book has every page, blocks are what they say they are, and
//! pasted output is what commands print. Rust is compiled as documentation tests (`src/lib.rs`), README's commands are
//! run by `readme`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::{tool, worker};

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
    let listed = links(&read(&root().join("docs/SUMMARY.md")));
    for page in pages().iter().filter_map(|page| page.strip_prefix(root().join("docs")).ok()) {
        let name = page.display().to_string();
        assert!(name == "SUMMARY.md" || listed.contains(&name), "docs/{name} is not in docs/SUMMARY.md");
    }
    let book: toml::Table = read(&root().join("docs/book.toml")).parse().expect("docs/book.toml is TOML");
    assert_eq!((book["book"]["src"].as_str(), book["build"]["build-dir"].as_str()), (Some("."), Some("../book")));
}

/// mdBook itself, from where `scripts/test --full` put it, or installed; the links as it wrote them.
#[test]
fn the_book_is_built_and_its_links_lead_somewhere() {
    let cached = tool::cache().join(format!("mdbook-{}/bin/mdbook", tool::version("MDBOOK")));
    let program = if cached.exists() { cached } else { "mdbook".into() };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut build = std::process::Command::new(program);
    let Ok(output) = build.arg("build").arg(root().join("docs")).arg("--dest-dir").arg(dir.path()).output() else {
        eprintln!("not here: mdbook, to build the book; ./scripts/test --full fetches it");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("WARN") && !said.contains("ERROR"), "{said}");

    let (mut dead, mut seen) = (Vec::new(), 0);
    for page in html(dir.path()) {
        let text = read(&page);
        for link in text.split([' ', '\n']).filter_map(|word| word.strip_prefix("href=\"")?.split('"').next()) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            if path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            let target = if path.is_empty() { page.clone() } else { built(dir.path(), &page, path) };
            let found = target.exists() && (anchor.is_empty() || read(&target).contains(&format!("id=\"{anchor}\"")));
            if !found {
                dead.push(format!("{}: {link}", page.display()));
            }
            seen += 1;
        }
    }
    assert!(seen > 500, "{seen} links");
    assert!(dead.is_empty(), "these links lead nowhere:\n{}", dead.join("\n"));
}

/// The pages of a built book. The one to print repeats all of them; the one for what is not found is at no certain place.
fn html(folder: &Path) -> Vec<PathBuf> {
    let entries = [folder.to_owned(), folder.join("decisions")]
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(folder).expect("the folder is there").flatten().map(|entry| entry.path()));
    let page = |path: &PathBuf| path.extension().is_some_and(|end| end == "html");
    entries.filter(|path| page(path) && !path.ends_with("print.html") && !path.ends_with("404.html")).collect()
}

/// Where `link` on `page` leads: within the book, or, the book being in the checkout as `docs/book.toml` says, there.
fn built(book: &Path, page: &Path, link: &str) -> PathBuf {
    let folder = page.parent().and_then(|folder| folder.strip_prefix(book).ok()).expect("in the book");
    let mut path = PathBuf::from("book").join(folder);
    for part in Path::new(link).components() {
        match part {
            std::path::Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
    }
    path.strip_prefix("book").map_or_else(|_| root().join(&path), |within| book.join(within))
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
                "sh" => wrong.extend(refused(&place, "bash", &["-n"], &text)),
                "python" => {
                    let compile = "import sys; compile(sys.stdin.read(), 'block', 'exec')";
                    wrong.extend(refused(&place, "python3", &["-c", compile], &text));
                }
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a language's own reader has against the text; nothing where that is not on this machine.
fn refused(place: &str, program: &str, arguments: &[&str], text: &str) -> Option<String> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut reader = Command::new(program).args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
    reader.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads all");
    let output = reader.wait_with_output().expect("it ends");
    (!output.status.success()).then(|| format!("{place}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Commands within a sentence or a table, and those in blocks for a shell: their verbs and flags are there.
#[test]
fn commands_that_are_only_named_exist() {
    let mut named = BTreeSet::new();
    for page in pages() {
        let (prose, blocks) = split(&read(&page));
        let inline = prose.split('`').skip(1).step_by(2).map(str::to_owned);
        let shell = blocks.into_iter().filter(|(language, ..)| language == "sh").flat_map(|(_, _, text)| {
            text.lines().map(|line| line.split(" #").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        });
        let commands = inline.chain(shell).flat_map(|text| text.split('|').map(str::to_owned).collect::<Vec<_>>());
        named.extend(commands.filter_map(|command| Some(command.trim().strip_prefix("windlass ")?.to_owned())));
    }
    let mut wrong = Vec::new();
    for command in &named {
        let words: Vec<&str> = command.split_whitespace().collect();
        let verbs = words.iter().take_while(|word| word.bytes().all(|byte| byte.is_ascii_lowercase())).take(2);
        let verbs: Vec<&str> = verbs.copied().collect();
        // The second word is a verb only of some: `run --help` answers `run hello --help` too.
        let help = worker::run(root(), &[&verbs[..], &["--help"]].concat());
        let told = String::from_utf8_lossy(&help.stdout).into_owned();
        let flags =
            words.iter().filter(|word| word.starts_with("--")).map(|flag| flag.split('=').next().unwrap_or(flag));
        let missing: Vec<&str> = flags.filter(|flag| !told.contains(flag)).collect();
        if !help.status.success() || !missing.is_empty() {
            wrong.push(format!("windlass {command}: {missing:?}"));
        }
    }
    assert!(named.len() > 25, "{named:?}");
    assert!(wrong.is_empty(), "no such verb or flag:\n{}", wrong.join("\n"));
}

/// What stands below a command was pasted by `scripts/paste`, which ran it, and not by hand.
#[test]
fn whatever_is_printed_was_pasted() {
    let mut by_hand = Vec::new();
    for page in pages() {
        let text = read(&page);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (number, pair) in lines.windows(2).enumerate() {
            if pair[1] == "```console" && !pair[0].starts_with("<!-- pasted") {
                by_hand.push(format!("{}:{}", page.display(), number + 2));
            }
        }
    }
    assert!(by_hand.is_empty(), "no `<!-- pasted -->` stands above these: {}", by_hand.join(", "));
}

/// The pages whose commands are run again, and what they print held against what the page says.
#[cfg(feature = "sqlite")]
const RUN_AGAIN: [&str; 7] =
    ["first-minute", "writing-a-job", "retries-and-dead-letters", "order", "configuration", "scaling-out", "operating"];

#[cfg(feature = "sqlite")]
#[test]
fn commands_print_what_is_pasted_below_them() {
    let mut paste = std::process::Command::new(root().join("scripts/paste"));
    worker::clean(&mut paste, root());
    paste.arg("--check").args(RUN_AGAIN.map(|page| format!("docs/{page}.md"))).env("WINDLASS", worker::BINARY);
    match paste.output() {
        Ok(output) if output.status.code() == Some(127) => eprintln!("not here: python3, to run the pages' commands"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
        }
        Err(error) => panic!("scripts/paste: {error}"),
    }
}
