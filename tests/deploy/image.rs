//! The image: what the Dockerfile does, as far as it goes without an engine.

use std::path::Path;
use std::process::Command;

use super::root;
use crate::support::{process, worker};

/// The words of the Dockerfile, comments left out and continued lines joined.
fn instructions() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("Dockerfile")).expect("the Dockerfile is there");
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    lines.join("\n").replace("\\\n", " ").lines().map(str::to_owned).filter(|line| !line.trim().is_empty()).collect()
}

#[test]
fn dependencies_can_be_built_before_there_are_sources() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(dir.path().join("jobs")).expect("a temporary folder");
    for file in ["Cargo.toml", "Cargo.lock", "jobs/Cargo.toml"] {
        std::fs::copy(root().join(file), dir.path().join(file)).expect("a temporary folder");
    }
    let mut skeleton = Command::new(root().join("scripts/skeleton"));
    skeleton.arg(dir.path());
    process::output(skeleton);
    // It reads the manifests as a build does: a target without a source is an error.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"]).current_dir(dir.path());
    let metadata: serde_json::Value = serde_json::from_str(&process::output(cargo)).expect("metadata are JSON");
    let targets = metadata["packages"].as_array().expect("packages").iter().flat_map(|package| {
        package["targets"].as_array().expect("targets").iter().map(|target| target["src_path"].to_string())
    });
    let targets: Vec<String> = targets.map(|path| path.trim_matches('"').to_owned()).collect();
    assert!(targets.iter().any(|path| path.ends_with("benches/kafka.rs")), "{targets:?}");
    assert!(targets.iter().all(|path| Path::new(path).exists()), "{targets:?}");
}

#[test]
fn the_dockerfile_copies_what_is_there_and_ends_without_root() {
    let instructions = instructions();
    let of = |word: &str| instructions.iter().filter_map(move |line| line.strip_prefix(word)).collect::<Vec<_>>();
    for copy in of("COPY ") {
        let words: Vec<&str> = copy.split_whitespace().collect();
        let (_, sources) = words.split_last().expect("COPY has words");
        for source in sources.iter().filter(|_| !words[0].starts_with("--from")) {
            assert!(root().join(source).exists(), "the Dockerfile copies {source}, which is not there");
        }
    }
    // What the sources include lies beside them: the build must have it.
    let copied = of("COPY ").join(" ");
    for (file, text) in included() {
        let held = copied.split_whitespace().any(|source| file.starts_with(source));
        assert!(held, "{text} includes {}, which the Dockerfile does not copy", file.display());
    }
    assert_eq!(of("USER "), ["10001:10001"], "not root, and by number");
    assert_eq!(of("STOPSIGNAL "), ["SIGTERM"]);
    assert!(of("FROM ").last().is_some_and(|from| *from == "scratch"), "nothing else is in it");
    assert!(of("LABEL ").iter().any(|label| label.contains("dev.windlass.sbom=") && label.contains("licenses=")));
    assert!(of("HEALTHCHECK ").iter().all(|check| check.contains("\"/usr/local/bin/windlass\", \"ready\"")));
}

/// Files outside `src` that a source of the library includes, with that source.
fn included() -> Vec<(std::path::PathBuf, String)> {
    let mut folders = vec![root().join("src")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).expect("a folder of the sources").flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            let text = text.split("#[cfg(doctest)]").next().unwrap_or_default();
            let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            for rest in code.join("\n").split("include_str!(\"").skip(1) {
                let target = path.parent().expect("in a folder").join(rest.split('"').next().unwrap_or_default());
                let target = target.canonicalize().expect("what is included is there");
                let relative = target.strip_prefix(root()).expect("within the checkout").to_owned();
                if !relative.starts_with("src") && !path.ends_with("tests.rs") {
                    found.push((relative, path.display().to_string()));
                }
            }
        }
    }
    found
}

#[test]
fn the_binary_runs_with_nothing_around_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let image = |limit: &str| {
        let mut script = Command::new(root().join("scripts/image"));
        worker::clean(&mut script, root());
        script.arg("sqlite,nats,kafka").arg(dir.path().join("image"));
        script.env("BINARY", worker::BINARY).env("LIMIT_MIB", limit).output().expect("bash is there")
    };
    // The tests' binary is not optimised, and large.
    let output = image("4000");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("done 1, retried 0, dead 0") || said.contains("not run: "), "{said}");
    let sbom = std::fs::read_to_string(dir.path().join("image/usr/share/windlass/sbom.spdx")).expect("an SBOM");
    for part in ["SPDXVersion: SPDX-2.3", "PackageName: tokio\n", "PackageName: rdkafka\n", "pkg:cargo/serde@"] {
        assert!(sbom.contains(part), "no {part:?} in the SBOM");
    }
    assert!(!dir.path().join("image/bin/sh").exists());
    let output = image("1");
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("too large"));
}
