//! Who may ask.

use windlass::admin;

use super::Fixture;

fn listening(address: [u8; 4], token_file: Option<std::path::PathBuf>) -> Fixture {
    let fixture = Fixture::with(&admin::Config { listen: Some((address, 0).into()), listen_set: true, token_file });
    fixture.connect();
    fixture
}

#[test]
fn pages_of_others_drive_nothing() {
    let fixture = Fixture::working();
    let evil = [("origin", "https://evil.example")];
    let detail = fixture.call("POST", "/api/v1/drain", &evil, b"").problem(403);
    assert!(detail.contains("Origin"), "{detail}");
    let rebound = [("host", "evil.example:7464")];
    let detail = fixture.call("POST", "/api/v1/drain", &rebound, b"").problem(403);
    assert!(detail.contains("Host"), "{detail}");
    assert!(!fixture.shutdown.intake.is_cancelled());
    for path in ["/health", "/ready", "/metrics"] {
        fixture.call("GET", path, &[evil[0], rebound[0]], b"").ok(200);
    }
    let own = format!("http://localhost:{}", fixture.port());
    let host = format!("localhost:{}", fixture.port());
    fixture.call("GET", "/api/v1/status", &[("host", &host), ("origin", &own)], b"").ok(200);
}

#[test]
fn tokens_are_needed_where_they_are_set_and_off_loopback() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tokens");
    std::fs::write(&file, "one\ntwo\n").expect("written");
    let status = |fixture: &Fixture, token: &str| {
        fixture.call("GET", "/api/v1/status", &[("authorization", &format!("Bearer {token}"))], b"").status
    };

    let local = listening([127, 0, 0, 1], Some(file.clone()));
    let refused = local.get("/api/v1/status");
    refused.problem(401);
    assert!(refused.head.contains("www-authenticate: bearer"), "{}", refused.head);
    assert_eq!((status(&local, "one"), status(&local, "two"), status(&local, "three")), (200, 200, 401));
    std::fs::write(&file, "two\nthree\n").expect("written");
    assert_eq!((status(&local, "one"), status(&local, "two"), status(&local, "three")), (401, 200, 200));
    local.get("/health").ok(200);

    let everywhere = listening([0, 0, 0, 0], None);
    everywhere.get("/api/v1/status").problem(403);
    assert_eq!(status(&everywhere, "two"), 403, "none is set");
    everywhere.get("/ready").ok(200);
    everywhere.get("/metrics").ok(200);

    let closed = listening([0, 0, 0, 0], Some(file));
    assert_eq!((status(&closed, "two"), status(&closed, "one")), (200, 401));
    let named = [("host", "worker.example"), ("authorization", "Bearer two")];
    closed.call("GET", "/api/v1/status", &named, b"").ok(200);
}

#[test]
fn a_token_file_without_tokens_keeps_the_port_shut() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tokens");
    std::fs::write(&file, "\n").expect("written");
    let context = Fixture::starting().context.clone();
    let config = admin::Config { listen: Some(([127, 0, 0, 1], 0).into()), listen_set: true, token_file: Some(file) };
    let error = admin::start(&config, context).err().expect("refused");
    assert_eq!(error.exit_code(), 78);
}
