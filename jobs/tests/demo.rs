//! The demonstration as a person runs it: twice in a row, and then what it says to type next.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a program of this package in `folder`, as the laboratory's.
fn run(program: &str, arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WINDLASS_")) {
        command.env_remove(name);
    }
    command.args(arguments).env("LAB_FOLDER", folder).current_dir(folder).output().expect("the program starts")
}

fn text(output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

#[test]
fn it_tells_the_truth_twice_and_its_commands_work() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let folder = folder.path();
    let demo = || text(&run(env!("CARGO_BIN_EXE_demo"), &[], folder));
    demo();
    let told = demo();
    for expected in [
        "1709 of 1709 that can succeed",
        "569 invoices, one for each report; 38369.00 in all",
        "212 malignant, 357 benign",
        "mean radius 6.981 to 28.11, as published",
        "mean area 143.5 to 2501, as published",
        "worst area 185.2 to 4254, as published",
        "569 files",
        "7 dead letters of 3 bad events (7 expected)",
    ] {
        assert!(told.contains(expected), "no {expected:?} in\n{told}");
    }
    assert!(!told.contains("WRONG"), "{told}");
    let rows = told.lines().filter(|line| line.starts_with("  report-"));
    let table = |reason: &str| rows.clone().filter(|row| row.contains(&format!(" {reason} "))).count();
    assert_eq!((table("permanent"), table("malformed"), table("exhausted")), (1, 3, 3), "{told}");

    // In the folder that the commands name; `cargo lab` is the laboratory's binary.
    let commands: Vec<&str> =
        told.lines().map(str::trim).filter(|line| line.starts_with("cargo lab") || line.starts_with("cp ")).collect();
    assert_eq!(commands.len(), 6, "{told}");
    let mut last = String::new();
    for command in commands {
        let mut words: Vec<&str> = command.split(' ').collect();
        let program = if words[0] == "cp" { "cp" } else { env!("CARGO_BIN_EXE_windlass-lab") };
        words.drain(..if words[0] == "cp" { 1 } else { 2 });
        // The admin port of a worker that runs on this machine is no matter of ours.
        if words[0] == "run" {
            words.extend(["--set", "admin.listen=none", "--format", "json"]);
        }
        last = text(&run(program, &words, folder));
    }
    assert!(last.contains("{\"done\":1,\"retried\":0,\"dead\":0}"), "{last}");
    let config = folder.join("reports.toml").display().to_string();
    let status = run(
        env!("CARGO_BIN_EXE_windlass-lab"),
        &["status", "invoice", "--format", "json", "--config", &config],
        folder,
    );
    assert!(text(&status).contains("\"dead\":2"));
}
