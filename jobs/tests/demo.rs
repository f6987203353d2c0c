//! The demonstration as a person runs it, in a folder where one was before, and then the commands that it prints.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const LAB: &str = env!("CARGO_BIN_EXE_windlass-lab");

/// A program in the laboratory's `folder`, with nothing of the caller's environment that could change what it does.
fn command(program: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WINDLASS_")) {
        command.env_remove(name);
    }
    command.env("LAB_FOLDER", folder).env_remove("LAB_SMTP").current_dir(folder);
    command
}

#[track_caller]
fn text(output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

/// Files of this kind; not what a killed worker left unfinished.
fn count(folder: &Path, end: &str) -> usize {
    let files = std::fs::read_dir(folder).expect("the folder is there").flatten();
    files.filter(|file| file.path().extension().is_some_and(|found| found == end)).count()
}

/// What an earlier demonstration leaves, or one that was killed.
fn leave_something(folder: &Path) {
    for name in ["archive/ab", "mail", "pages", "server"] {
        std::fs::create_dir_all(folder.join(name)).expect("a folder for the test");
    }
    for name in
        ["archive/ab/old.json", "mail/old.eml", "queue.db", "queue.db-wal", "billing.db", "ledger", "reports.toml"]
    {
        std::fs::write(folder.join(name), "old").expect("a folder for the test");
    }
}

#[test]
fn it_tells_the_truth_and_its_commands_work() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let folder = folder.path();
    leave_something(folder);
    let demo = command(env!("CARGO_BIN_EXE_demo"), folder).output().expect("the program starts");
    let told = text(&demo);
    for expected in [
        "569 invoices, one for each report, none billed twice; 38369.00 in all",
        "212 malignant, 357 benign",
        "mean radius 6.981 to 28.11, as published",
        "mean area 143.5 to 2501, as published",
        "worst area 185.2 to 4254, as published",
        "569 PDFs",
        "569 mails",
        "kill -9 ",
        "5690 jobs, 0 lost; ",
        "each of them by that kill",
        "1138 invoices, one for each report, none billed twice",
        "the mail server is being repaired",
        "patient P-9999 is not in the register",
        "8 replayed: 4 billed, 4 mails taken; the undecodable one is left",
        "99 done, 1 dead letter",
    ] {
        assert!(told.contains(expected), "no {expected:?} in\n{told}");
    }
    assert!(!told.contains("WRONG"), "{told}");
    assert!(!told.contains('\u{1b}'), "colours or bars off a terminal:\n{told}");
    assert_eq!(count(&folder.join("pages"), "pdf"), 1_138);

    as_in_the_readme(&told);
    paste(folder, &told);
}

/// What README.md shows: `...` stands for any text within a line, and on a line of its own for any lines.
fn as_in_the_readme(told: &str) {
    let readme = include_str!("../../README.md");
    let block = readme.split("<!-- demo prints -->\n```text\n").nth(1).expect("README.md shows the demonstration");
    let block = block.split("\n```").next().expect("a block ends");
    let mut lines = told.lines();
    let mut skip = true;
    for expected in block.lines() {
        if expected == "..." {
            skip = true;
            continue;
        }
        // The folder is another one here.
        let expected = expected.replace("target/demo/", "...");
        let fits = |line: &&str| fits(&expected, line.trim_end());
        let found = if skip { lines.find(fits) } else { lines.next().filter(fits) };
        assert!(found.is_some(), "README.md says {expected:?}, and that is not what comes in\n{told}");
        skip = false;
    }
}

/// Whether `text` is what `pattern` says, `...` standing for any text.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split("...");
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    // Behind the last dots anything may stand.
    rest.is_empty() || last == Some("")
}

/// What is printed at the end, pasted into a shell.
fn paste(folder: &Path, told: &str) {
    let commands: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("  cargo lab ")).collect();
    assert_eq!(commands.len(), 3, "{told}");

    // `cargo lab` is the laboratory's binary.
    let cargo = folder.join("bin/cargo");
    std::fs::create_dir_all(folder.join("bin")).expect("a folder for the test");
    std::fs::write(&cargo, format!("#!/bin/sh\nshift\nexec {LAB} \"$@\"\n")).expect("a file for the test");
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).expect("a file for the test");
    let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    // The admin port of a worker that runs on this machine is no matter of ours.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("a free port");
    // A machine under load may need longer than two seconds.
    let settled = "for i in $(seq 600); do cargo lab status --fail-if 'ready>0,running>0' --config reports.toml && break; \
                   sleep 0.1; done";
    let run = |command: &str| {
        let line =
            format!("cargo lab {command}").replace("sleep 2", settled).replace("127.0.0.1:7464", &free.to_string());
        let mut shell = self::command("bash", folder);
        shell.args(["-c", &line]).env("PATH", &path).env("WINDLASS_ADMIN__LISTEN", free.to_string());
        text(&shell.output().expect("bash starts"))
    };
    assert!(run(commands[0]).contains("malformed"));
    let replayed = run(commands[1]);
    assert!(replayed.contains("selected 1, done 1, failed 0"), "{replayed}");
    let published = run(commands[2]);
    assert!(published.contains("\"queues\":5"), "{published}");
    let status = command(LAB, folder).args(["status", "--format", "json", "--config", "reports.toml"]).output();
    let status: serde_json::Value =
        serde_json::from_slice(&status.expect("the program starts").stdout).expect("status is JSON");
    let queues = status["queues"].as_array().expect("an array");
    let invoice = queues.iter().find(|queue| queue["name"] == "invoice").expect("the queue");
    assert_eq!(
        (&invoice["dead"], &invoice["ready"], &invoice["running"]),
        (&0.into(), &0.into(), &0.into()),
        "{invoice}"
    );
    // The mended event and the one by curl: two more than the 1,138 and the four of the third act.
    assert_eq!(count(&folder.join("mail"), "eml"), 1_138 + 1, "the worker of the third command wrote one");
}

/// On servers that scripts/test fetched: `scripts/test --full`.
#[test]
fn it_tells_the_same_on_nats_and_kafka() {
    if std::env::var_os("WINDLASS_TEST_FULL").is_none_or(|value| value != "1") {
        return;
    }
    for broker in ["nats", "kafka"] {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let mut demo = command(env!("CARGO_BIN_EXE_demo"), folder.path());
        if let Some(cache) = std::env::var_os("WINDLASS_TEST_CACHE") {
            demo.env("WINDLASS_TEST_CACHE", cache);
        }
        let output = demo.arg(broker).output().expect("the program starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // A workspace is built with every broker; this package alone is not.
        if said.contains("built without") || said.contains("scripts/test fetches") {
            eprintln!("not tested on {broker}: {said}");
            continue;
        }
        let told = text(&output);
        assert!(told.contains("5690 jobs, 0 lost; ") && !told.contains("WRONG"), "{broker}: {told}");
    }
}

/// On a server that is named, twice; and what is printed then names a worker that can reach it. `scripts/test --full`.
#[test]
fn it_tells_the_same_on_a_server_that_is_named() {
    let cache = std::env::var_os("WINDLASS_TEST_CACHE").filter(|_| std::env::var_os("WINDLASS_TEST_FULL").is_some());
    let Some(cache) = cache else { return };
    let mut found = std::fs::read_dir(cache).expect("the cache is there").flatten().map(|entry| entry.path());
    let server = found.find_map(|path| Some(path.join("nats-server")).filter(|path| path.is_file()));
    let Some(server) = server else { return eprintln!("not here: nats-server; ./scripts/test fetches it") };
    let folder = tempfile::tempdir().expect("a folder for the test");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("a free port");
    let mut server = Command::new(server)
        .args(["--jetstream", "--addr", "127.0.0.1", "--port", &free.port().to_string(), "--store_dir"])
        .arg(folder.path().join("server"))
        .spawn()
        .expect("the server starts");
    let stage = folder.path().join("stage");
    std::fs::create_dir(&stage).expect("a folder for the test");
    let began = std::time::Instant::now();
    while std::net::TcpStream::connect(free).is_err() {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "the server does not answer");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let outputs = [0, 1].map(|_| {
        let mut demo = command(env!("CARGO_BIN_EXE_demo"), &stage);
        demo.args(["nats", &format!("nats://{free}")]).output().expect("the program starts")
    });
    server.kill().and_then(|()| server.wait()).expect("the server ends");
    for output in &outputs {
        if String::from_utf8_lossy(&output.stderr).contains("built without") {
            return;
        }
        let told = text(output);
        assert!(told.contains("5690 jobs, 0 lost; ") && !told.contains("WRONG"), "{told}");
        assert_eq!(told.matches("  cargo lab-nats ").count(), 3, "{told}");
    }
    let aliases = include_str!("../../.cargo/config.toml");
    assert!(aliases.contains("lab-nats = ") && aliases.contains("lab-kafka = "), "{aliases}");
}
