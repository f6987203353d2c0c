//! What cannot be opened says so in one sentence, with the right exit code, and is left as it was.

use super::*;

async fn refused(path: &Path, role: Role) -> Error {
    let mut options = options(role, &[queue("q", &["t"])]);
    options.timeout = Duration::from_millis(300);
    try_connect(path, options).await.err().expect("it cannot be opened")
}

fn said(error: &Error, code: u8, words: &[&str]) {
    let sentence = error.to_string();
    assert_eq!(error.exit_code(), code, "{sentence}");
    assert!(!sentence.contains('\n'), "{sentence}");
    for word in words {
        assert!(sentence.contains(word), "{sentence:?} says nothing of {word:?}");
    }
}

#[tokio::test]
async fn a_reader_of_a_missing_file_is_told_who_creates_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    said(&refused(&path, Role::Reader).await, 78, &["does not exist yet", "windlass run", "publish"]);
    assert!(!path.exists());
    std::fs::write(&path, b"").expect("written");
    said(&refused(&path, Role::Reader).await, 78, &["does not exist yet"]);
}

#[tokio::test]
async fn a_path_that_was_meant_to_be_relative_is_offered() {
    let error = super::super::connect("sqlite:///no-such-dir-or-file.db", options(Role::Reader, &[])).await;
    said(&error.err().expect("missing"), 78, &["sqlite://no-such-dir-or-file.db"]);
    let error = super::super::connect("sqlite://", options(Role::Reader, &[])).await;
    said(&error.err().expect("no path"), 2, &["sqlite://windlass.db"]);
}

#[tokio::test]
async fn a_missing_directory_and_a_directory_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    said(&refused(&dir.path().join("no/q.db"), Role::Worker).await, 78, &["directory", "create it"]);
    said(&refused(dir.path(), Role::Worker).await, 78, &["is a directory"]);
}

#[tokio::test]
async fn what_is_no_database_and_what_is_another_programs_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("text");
    let bytes = b"this is a text file, and quite a long one, which should rather be left alone".repeat(20);
    std::fs::write(&path, &bytes).expect("written");
    said(&refused(&path, Role::Worker).await, 78, &["not an SQLite database"]);
    assert_eq!(std::fs::read(&path).expect("read"), bytes);

    let path = dir.path().join("foreign.db");
    std::fs::write(&path, b"").expect("written");
    beside(&path, "CREATE TABLE theirs (x)").await;
    let before = std::fs::read(&path).expect("read");
    said(&refused(&path, Role::Worker).await, 78, &["another program"]);
    assert_eq!(std::fs::read(&path).expect("read"), before);
}

#[tokio::test]
async fn a_newer_file_is_refused_unless_it_says_that_we_can_read_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    connect(&path, options(Role::Producer, &[])).await.close().await;
    beside(&path, "PRAGMA user_version = 9").await;
    connect(&path, options(Role::Producer, &[])).await.close().await;
    beside(&path, "UPDATE meta SET oldest_reader = 9").await;
    said(&refused(&path, Role::Worker).await, 78, &["newer windlass", "upgrade"]);
}

#[tokio::test]
async fn a_damaged_file_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    connect(&path, options(Role::Producer, &[queue("q", &["t"])])).await.close().await;
    let mut bytes = std::fs::read(&path).expect("read");
    let end = bytes.len();
    bytes[4_000..end].fill(0xff);
    std::fs::write(&path, &bytes).expect("written");
    said(&refused(&path, Role::Worker).await, 78, &["damaged", "recover"]);
}

#[tokio::test]
async fn a_locked_file_may_be_waited_for() {
    use sqlx::{ConnectOptions, Connection};
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    connect(&path, options(Role::Producer, &[])).await.close().await;
    let mut other = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).connect().await.expect("connects");
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.expect("locks");
    said(&refused(&path, Role::Worker).await, 69, &["locked", "try again"]);
    sqlx::query("ROLLBACK").execute(&mut other).await.expect("unlocks");
    connect(&path, options(Role::Worker, &[queue("q", &["t"])])).await.close().await;
    other.close().await.expect("closes");
}

#[tokio::test]
async fn a_file_that_may_not_be_written_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    connect(&path, options(Role::Producer, &[])).await.close().await;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).expect("set");
    // The superuser may write all the same: then there is nothing to refuse.
    if std::fs::OpenOptions::new().append(true).open(&path).is_ok() {
        connect(&path, options(Role::Producer, &[])).await.close().await;
        return;
    }
    said(&refused(&path, Role::Worker).await, 78, &["cannot be written", "permission"]);
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_is_told_as_trouble_of_the_dead_letter() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let mut options = options(Role::Worker, std::slice::from_ref(&q));
    options.timeout = Duration::from_millis(300);
    let here = super::super::Sqlite::connect(&format!("sqlite://{}", path.display()), options).await.expect("connects");
    let here = Arc::new(here);
    let broker: Arc<dyn Broker> = here.clone();
    let mut opened = broker.open(&q).await.expect("opens");
    publish(&broker, "t", &["a", "b"]).await;
    let mut got = receive(&mut opened, 2).await;
    // SQLite's own limit stands for the disk's: no page more than there are.
    limit(&here, "PRAGMA max_page_count = 1").await;
    let big = "x".repeat(1 << 20);
    let publisher = broker.publisher();
    let refused = publisher.publish(vec![to_topic("t", &big)]);
    let b = got.pop().expect("two");
    let a = got.pop().expect("two");
    let settler = opened.settler.clone();
    let waiting = tokio::spawn(async move { settler.settle(vec![b.settle(dead(Reason::Exhausted, &big))]).await });
    until("the trouble shows", || async {
        matches!(opened.settler.trouble(), Some(crate::broker::Trouble::DeadLetter(said)) if said.contains("full"))
    })
    .await;
    assert_eq!(settle(&opened, vec![a], &Disposition::Ack).await, [Settled::Stored], "others go on");
    assert!(!waiting.is_finished());
    let error = refused.await.pop().expect("one").expect_err("no room");
    said(&error, 69, &["full"]);
    limit(&here, "PRAGMA max_page_count = 1000000").await;
    assert_eq!(waiting.await.expect("ends"), [Settled::Stored]);
    until("the trouble is over", || async { opened.settler.trouble().is_none() }).await;
    broker.close().await;
}

async fn limit(broker: &super::super::Sqlite, pragma: &'static str) {
    let limited = broker.shared.call(move |writer| {
        Box::pin(async move {
            sqlx::query(pragma).execute(&mut writer.connection).await.expect("runs");
            Ok(())
        })
    });
    limited.await.expect("the writer lives");
}
