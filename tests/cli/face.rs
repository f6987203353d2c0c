//! What needs no broker: help, versions, wrong usage, completions, `try`, `ready`.

use super::Place;

#[test]
fn help_goes_to_stdout_and_wrong_usage_to_stderr() {
    let place = Place::empty();
    for arguments in [&["--help"][..], &["help"], &["-h"], &["publish", "--help"], &["dlq", "replay", "--help"]] {
        let left = place.run(arguments);
        assert_eq!((left.code, left.err.as_str()), (0, ""), "{arguments:?}");
        assert!(left.out.contains("Examples:"), "{arguments:?}: {}", left.out);
    }
    let version = place.run(["--version"]);
    assert_eq!((version.code, version.out.trim()), (0, concat!("windlass ", env!("CARGO_PKG_VERSION"))));
    for arguments in [
        &[][..],
        &["dlq"],
        &["frobnicate"],
        &["status", "--frobnicate"],
        &["publish"],
        &["status", "UPPER"],
        &["status", "--watch=soon"],
        &["status", "--timeout", "0s"],
        &["status", "-q", "-v"],
        &["status", "--fail-if", "dead"],
        &["enqueue", "invoice", "1", "--in", "1m", "--at", "2026-12-01T06:00:00Z"],
        &["publish", "t", "1", "--lines", "--id", "x"],
        &["publish", "t", "1", "--skip", "3"],
        &["publish", "t", "1", "--empty"],
        &["publish", "t", "1", "--bare", "--type", "x"],
        &["publish", "t", "1", "-H", "nonsense"],
        &["run", "--topic", "t"],
        &["run", "--linger", "1m"],
        &["run", "--slots", "0"],
        &["dlq", "replay", "q", "--rate", "fast"],
        &["dlq", "list", "--reason", "bad"],
        &["dlq", "list", "--since", "yesterday"],
        &["completions", "tcsh"],
    ] {
        let left = place.run(arguments);
        assert_eq!((left.code, left.out.as_str()), (2, ""), "{arguments:?}: {}", left.err);
        assert!(!left.err.is_empty(), "{arguments:?}");
    }
}

#[test]
fn reserved_verbs_are_unknown_with_a_hint() {
    let place = Place::empty();
    for arguments in [&["jobs", "list"][..], &["queues", "pause", "invoice"], &["dlq", "adopt", "invoice"]] {
        let left = place.run(arguments);
        assert_eq!(left.code, 2, "{arguments:?}");
        assert!(left.err.contains("reserved for a later version"), "{arguments:?}: {}", left.err);
    }
}

#[test]
fn completions_know_the_verbs() {
    let place = Place::empty();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = place.ok(["completions", shell]);
        for word in ["enqueue", "replay", "fail-if"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
}

#[test]
fn a_closed_pipe_is_quiet() {
    use std::process::Stdio;
    let place = Place::empty();
    let mut child = place
        .command(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn memory_is_for_one_process() {
    let place = Place::empty();
    for verb in [
        &["status"][..],
        &["publish", "t", "1"],
        &["enqueue", "q", "1"],
        &["dlq", "list"],
        &["queues", "list"],
        &["doctor"],
    ] {
        let left = place.run(verb.iter().chain(&["--broker", "memory://"]));
        assert_eq!(left.code, 2, "{verb:?}: {left:?}");
        assert!(left.err.contains("memory://"), "{left:?}");
    }
}

#[test]
fn addresses_that_are_none_are_refused() {
    let place = Place::empty();
    let left = place.run(["status", "--broker", "redis://h:1"]);
    assert!(matches!(left.code, 2 | 78), "{left:?}");
    assert!(left.err.contains("sqlite://"), "{left:?}");
}

#[test]
fn trying_a_job_needs_no_broker() {
    let place = Place::empty();
    let left = place.run(["try", "sleep", "{\"for\":\"1ms\"}"]);
    assert_eq!(left.code, 0, "{left:?}");
    let failed = place.run(["try", "fail", "{}"]);
    assert_eq!((failed.code, failed.out.as_str()), (1, ""), "{failed:?}");
    assert!(failed.err.starts_with("error: fail: "), "{failed:?}");
    let unknown = place.run(["try", "lgo", "1"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.err.contains("did you mean \"log\"?"), "{unknown:?}");
    let fed = place.feed(["try", "log"], b"{\"a\":1}");
    assert_eq!(fed.code, 0, "{fed:?}");
    assert_eq!(place.run(["try", "log", "--empty"]).code, 0);
    assert_eq!(place.run(["try", "log", "@absent.json"]).code, 1);
}

#[test]
fn trying_a_job_over_http_says_what_the_server_answered() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/jobs/invoice", listener.local_addr().expect("bound"));
    let answers = std::thread::spawn(move || {
        for head in ["422 Unprocessable Content", "503 Service Unavailable\r\nretry-after: 7"] {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request).expect("a request");
            write!(stream, "HTTP/1.1 {head}\r\ncontent-length: 3\r\nconnection: close\r\n\r\nwhy").expect("answered");
        }
    });
    let place = Place::with(&format!("broker = \"sqlite://a.db\"\n[jobs.invoice]\nhttp = \"{url}\"\n"));
    let said = || place.run(["try", "invoice", "{}"]).err;
    assert_eq!(said(), "error: invoice: http 422: why (permanent: a dead letter)\n");
    assert_eq!(said(), "error: invoice: http 503: why (a worker would try again after 7s)\n");
    answers.join().expect("both were asked");
}

#[test]
fn numbers_that_are_none_are_said_in_words() {
    let place = Place::empty();
    for (words, said) in [
        (&["dlq", "list", "--limit", "x"][..], "expected a whole number such as 10, found \"x\""),
        (&["run", "--slots", "0"], "expected a whole number of at least 1, found \"0\""),
        (&["publish", "t", "-", "--lines", "--skip", "1.5"], "expected a whole number such as 10, found \"1.5\""),
        (&["bench", "--jobs", "many"], "expected a whole number of at least 1, found \"many\""),
    ] {
        let left = place.run(words);
        assert_eq!(left.code, 2, "{left:?}");
        assert!(left.err.contains(said), "{left:?}");
    }
}

#[test]
fn ready_says_so_by_its_exit_code() {
    let place = Place::empty();
    let (address, answers) = serve(vec![
        ("200 OK", r#"{"status":"ready","checks":[{"name":"intake","status":"ok","detail":null}]}"#),
        ("200 OK", "Welcome!"),
        (
            "503 Service Unavailable",
            r#"{"status":"not ready","checks":[{"name":"broker","status":"failed","detail":"unreachable"}]}"#,
        ),
    ]);
    let ready = place.run(["ready", &address]);
    assert_eq!((ready.code, ready.out.as_str()), (0, ""), "{ready:?}");
    // Whoever else has the port says nothing of the worker.
    let other = place.run(["ready", &address]);
    assert_eq!(other.code, 1, "{other:?}");
    assert!(other.err.contains("no worker's answer"), "{other:?}");
    let not = place.run(["ready", &format!("http://{address}/ready"), "--json"]);
    assert_eq!(not.code, 1, "{not:?}");
    assert!(not.err.contains("503") && not.err.contains("broker (unreachable)"), "{not:?}");
    assert!(not.out.contains("\"ready\":false"), "{not:?}");
    answers.join().expect("all were asked");
    // Nobody listens there any more.
    assert_eq!(place.run(["ready", &address]).code, 1);
    place.write("windlass.toml", "broker = \"sqlite://a.db\"\n[admin]\nlisten = \"none\"\n");
    assert_eq!(place.run(["ready"]).code, 2);
}

/// Answers each connection with the next of these.
fn serve(answers: Vec<(&'static str, &'static str)>) -> (String, std::thread::JoinHandle<()>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let thread = std::thread::spawn(move || {
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = [0; 1_024];
            let length = stream.read(&mut request).expect("a request");
            assert!(request[..length].starts_with(b"GET /ready HTTP/1.1"));
            let length = body.len();
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
                .expect("answered");
        }
    });
    (address, thread)
}
