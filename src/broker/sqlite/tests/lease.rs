//! Leases and crashes: who may run what, and what counts against a job.
//!
//! Two connections of this process stand for two processes. A kill is played by giving the worker's row the birth
//! of another process; a freeze by letting its lease run out under it.

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::*;

const KILLED: &str = "UPDATE worker SET born = born - 1 WHERE name = 'one'";
const FROZEN: &str = "UPDATE worker SET lease = 0 WHERE name = 'one'";
const FROZEN_OUT_OF_SIGHT: &str = "UPDATE worker SET lease = 0, pidns = 1 WHERE name = 'one'";

async fn named(path: &Path, name: &str, queue: &Queue) -> (Arc<dyn Broker>, Opened) {
    let mut options = options(Role::Worker, std::slice::from_ref(queue));
    options.worker = name.into();
    let broker = connect(path, options).await;
    let opened = broker.open(queue).await.expect("opens");
    (broker, opened)
}

async fn crash_count(path: &Path) -> i64 {
    beside(path, "SELECT coalesce(sum(crashes), 0) FROM record").await
}

/// One delivery that was given back once, and whose start is stored since.
async fn begun_again(opened: &mut Opened) -> Vec<Delivery> {
    let held = receive(opened, 1).await;
    assert_eq!(settle(opened, held, &Disposition::Release).await, [Settled::Stored]);
    let held = receive(opened, 1).await;
    assert_eq!(opened.settler.mark(&[&held[0]]).await, [true]);
    held
}

#[tokio::test]
async fn what_a_killed_worker_ran_goes_to_another_at_once_and_is_marked_from_then_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let (one, mut first) = named(&path, "one", &q).await;
    let (_two, mut second) = named(&path, "two", &q).await;
    publish(&one, "t", &["a", "b"]).await;
    let mut held = receive(&mut first, 2).await;
    let lost = held[0].lost();
    assert!(!lost.is_cancelled());
    beside(&path, KILLED).await;
    let again = receive(&mut second, 2).await;
    assert_eq!(bodies(&again), ["a", "b"]);
    assert!(again.iter().all(|delivery| delivery.needs_mark && !delivery.suspect && !delivery.condemned));
    // The first one is still there, and learns it when it next writes.
    let late = held.pop().expect("two");
    assert_eq!(settle(&first, vec![late], &Disposition::Ack).await, [Settled::Stale]);
    assert!(lost.is_cancelled());
    assert_eq!(settle(&second, again, &Disposition::Ack).await, [Settled::Stored, Settled::Stored]);
    assert_eq!(beside(&path, "SELECT count(*) FROM event").await, 0);
}

#[tokio::test]
async fn a_crash_is_counted_up_to_suspicion_isolation_and_condemnation() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let (one, mut first) = named(&path, "one", &q).await;
    publish(&one, "t", &["a", "b", "c"]).await;
    let held = receive(&mut first, 2).await;
    assert!(held.iter().all(|delivery| !delivery.needs_mark));
    beside(&path, KILLED).await;
    // The first goes uncounted: it may have been in hand and not begun.
    let (mut workers, mut dropped) = (vec![one], vec![held]);
    for crashes in 0..2 {
        let (two, mut second) = named(&path, "one", &q).await;
        let held = receive(&mut second, 2).await;
        assert_eq!(bodies(&held), ["a", "b"]);
        assert_eq!(crash_count(&path).await, crashes);
        // Only one of them is marked: the other never began.
        let a = &held[0];
        assert!(a.needs_mark && !a.suspect);
        assert_eq!(second.settler.mark(&[a]).await, [true]);
        beside(&path, "UPDATE worker SET born = born - 1 WHERE id = (SELECT max(id) FROM worker)").await;
        workers.push(two);
        dropped.push(held);
    }
    let (_three, mut third) = named(&path, "three", &q).await;
    let shy = Credit { suspect: false, ..credit(8) };
    let got =
        tokio::time::timeout(Duration::from_secs(5), third.source.receive(shy)).await.expect("b and c").expect("ok");
    assert_eq!(bodies(&got), ["b", "c"]);
    let suspect = receive(&mut third, 8).await;
    assert_eq!(bodies(&suspect), ["a"]);
    assert!(suspect[0].suspect && suspect[0].needs_mark && !suspect[0].condemned);
    assert_eq!(suspect[0].lane(), crate::broker::Lane::Fresh);
    assert_eq!(third.settler.mark(&[&suspect[0]]).await, [true]);
    beside(&path, "UPDATE worker SET born = born - 1 WHERE name = 'three'").await;
    let (_four, mut fourth) = named(&path, "four", &q).await;
    let got = receive(&mut fourth, 8).await;
    assert_eq!(bodies(&got), ["a", "b", "c"]);
    assert!(got[0].condemned && !got[0].suspect);
    assert!(!got[1].condemned && !got[1].suspect);
    drop((dropped, suspect, workers));
}

#[tokio::test]
async fn a_release_and_a_drain_count_nothing_and_are_prompt() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let (one, mut first) = named(&path, "one", &q).await;
    let (_two, mut second) = named(&path, "two", &q).await;
    publish(&one, "t", &["a", "b"]).await;
    let held = receive(&mut first, 1).await;
    assert_eq!(settle(&first, held, &Disposition::Release).await, [Settled::Stored]);
    let held = receive(&mut first, 2).await;
    first.source.stop().await;
    drop(held);
    one.close().await;
    let got = receive(&mut second, 2).await;
    assert_eq!(bodies(&got), ["a", "b"]);
    assert!(got.iter().all(|delivery| !delivery.suspect && delivery.attempt().get() == 1));
    assert_eq!(crash_count(&path).await, 0);
    assert_eq!(beside(&path, "SELECT count(*) FROM worker").await, 1);
}

#[tokio::test]
async fn a_worker_frozen_past_its_lease_did_not_crash_and_its_late_success_ends_a_waiting_job() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let (one, mut first) = named(&path, "one", &q).await;
    publish(&one, "t", &["a", "b", "c"]).await;
    let held = receive(&mut first, 3).await;
    beside(&path, FROZEN).await;
    let (_two, mut second) = named(&path, "two", &q).await;
    let taken = receive(&mut second, 1).await;
    assert_eq!(bodies(&taken), ["a"]);
    assert_eq!(crash_count(&path).await, 0);
    let mut held = held.into_iter();
    let (a, b, c) = (held.next().expect("a"), held.next().expect("b"), held.next().expect("c"));
    // `a` runs elsewhere: it stays theirs. `b` waits: a success ends it. A failure of `c` changes nothing.
    assert_eq!(settle(&first, vec![a, b], &Disposition::Ack).await, [Settled::Stale, Settled::Stale]);
    let late = retry_at(Clock::System.now(), 2);
    let settled = settle(&first, vec![c], &late).await;
    assert!(settled == [Settled::Stale] || settled == [Settled::Stored], "{settled:?}");
    assert_eq!(settle(&second, taken, &Disposition::Ack).await, [Settled::Stored]);
    assert_eq!(beside(&path, "SELECT count(*) FROM event").await, 1);
}

#[tokio::test]
async fn a_worker_that_others_cannot_see_is_doubted_and_takes_the_crash_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let (one, mut first) = named(&path, "one", &q).await;
    publish(&one, "t", &["a"]).await;
    let held = begun_again(&mut first).await;
    beside(&path, FROZEN_OUT_OF_SIGHT).await;
    let (two, mut second) = named(&path, "two", &q).await;
    let taken = receive(&mut second, 1).await;
    assert_eq!(crash_count(&path).await, 1, "it is counted, in doubt");
    publish(&one, "t", &["b"]).await;
    let failed = settle(&first, held, &retry_at(Clock::System.now(), 2)).await;
    assert_eq!(failed, [Settled::Stale]);
    assert_eq!(crash_count(&path).await, 0);
    drop(taken);
    two.close().await;
}

#[tokio::test]
async fn what_this_process_still_runs_joins_that_run() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let (one, mut first) = named(&path, "one", &q).await;
    publish(&one, "t", &["a"]).await;
    let held = receive(&mut first, 1).await;
    beside(&path, FROZEN).await;
    let (two, second) = named(&path, "two", &q).await;
    two.close().await;
    drop(second);
    assert_eq!(beside(&path, "SELECT count(*) FROM fresh").await, 1);
    // The first one wakes, finds its own job waiting, and does not run it twice.
    publish(&one, "t", &["b"]).await;
    let more = receive(&mut first, 8).await;
    assert_eq!(bodies(&more), ["b"]);
    assert_eq!(settle(&first, held, &Disposition::Ack).await, [Settled::Stored]);
    assert_eq!(settle(&first, more, &Disposition::Ack).await, [Settled::Stored]);
    assert_eq!(beside(&path, "SELECT count(*) FROM event").await, 0);
}

#[tokio::test]
async fn leases_are_renewed_while_their_worker_lives() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let mut options = options(Role::Worker, std::slice::from_ref(&q));
    options.lease = Duration::from_millis(300);
    let broker = connect(&path, options).await;
    let before = beside(&path, "SELECT lease FROM worker").await;
    until("the lease is renewed", || async { beside(&path, "SELECT lease FROM worker").await > before }).await;
    broker.close().await;
}

#[tokio::test]
async fn a_dropped_receive_loses_nothing_and_the_credit_is_never_exceeded() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let (broker, mut opened) = worker(&path, &queue("q", &["t"])).await;
    let all: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    publish(&broker, "t", &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut got = Vec::new();
    while got.len() < 50 {
        tokio::select! {
            biased;
            received = opened.source.receive(credit(7)) => {
                let received = received.expect("works");
                assert!(received.len() <= 7);
                got.extend(received);
            }
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(bodies(&got), all);
    assert_eq!(settle(&opened, got, &Disposition::Ack).await, vec![Settled::Stored; 50]);
}

#[tokio::test]
async fn a_suspect_comes_as_soon_as_the_credit_allows_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = Queue { max_crashes: 2, ..queue("q", &["t"]) };
    let (one, mut first) = named(&path, "one", &q).await;
    publish(&one, "t", &["a"]).await;
    let held = begun_again(&mut first).await;
    beside(&path, KILLED).await;
    let (_two, mut second) = named(&path, "two", &q).await;
    let shy = Credit { suspect: false, ..credit(8) };
    assert!(tokio::time::timeout(Duration::from_millis(100), second.source.receive(shy)).await.is_err());
    let suspect = receive(&mut second, 8).await;
    assert!(suspect[0].suspect);
    drop((held, suspect));
}

#[tokio::test]
async fn a_broker_that_is_dropped_gives_back_what_it_held() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let (one, mut first) = named(&path, "one", &q).await;
    let (_two, mut second) = named(&path, "two", &q).await;
    publish(&one, "t", &["a"]).await;
    let held = receive(&mut first, 1).await;
    assert!(nothing(&mut second).await);
    drop((one, first));
    assert_eq!(bodies(&receive(&mut second, 1).await), ["a"]);
    assert!(held[0].lost().is_cancelled());
}

/// As when a process is frozen while it writes: nobody can renew, and nobody is to lose a job by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_outlasts_every_lease_takes_no_job_away() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let short = |name: &str| Options {
        worker: name.into(),
        lease: Duration::from_secs(3),
        timeout: Duration::from_secs(30),
        ..options(Role::Worker, std::slice::from_ref(&q))
    };
    let one = connect(&path, short("one")).await;
    let mut first = one.open(&q).await.expect("opens");
    publish(&one, "t", &["a", "b"]).await;
    let held = receive(&mut first, 2).await;
    let mut others = Vec::new();
    for name in ["two", "three", "four", "five", "six"] {
        let broker = connect(&path, short(name)).await;
        let opened = broker.open(&q).await.expect("opens");
        others.push((broker, opened));
    }
    let mut holder = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.expect("opens");
    sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.expect("takes the lock");
    let clock = super::super::machine::Monotonic::Machine;
    let last: i64 =
        sqlx::query_scalar("SELECT max(lease) FROM worker").fetch_one(&mut holder).await.expect("reads its own");
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while clock.now() < last + 300 {
        assert!(std::time::Instant::now() < deadline, "the clock of leases stands still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sqlx::query("COMMIT").execute(&mut holder).await.expect("gives it back");
    assert_eq!(settle(&first, held, &Disposition::Ack).await, [Settled::Stored, Settled::Stored]);
    assert_eq!(beside(&path, "SELECT count(*) FROM worker").await, 6);
    for (broker, _) in others {
        broker.close().await;
    }
}

/// The lock was given back a moment ago, and who was kept from renewing has not done so yet.
#[tokio::test]
async fn who_has_just_come_takes_no_job_from_who_may_have_been_kept_from_renewing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let (one, mut first) = named(&path, "one", &q).await;
    publish(&one, "t", &["a"]).await;
    let held = receive(&mut first, 1).await;
    // Ran out a second ago.
    beside(&path, "UPDATE worker SET lease = lease - 31000 WHERE name = 'one'").await;
    let (two, mut second) = named(&path, "two", &q).await;
    assert!(tokio::time::timeout(Duration::from_millis(600), second.source.receive(credit(8))).await.is_err());
    assert_eq!(settle(&first, held, &Disposition::Ack).await, [Settled::Stored]);
    two.close().await;
}

#[tokio::test]
async fn a_late_success_ends_a_retry_that_waits_among_many() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let (one, mut first) = named(&path, "one", &q).await;
    publish(&one, "t", &["a"]).await;
    let held = receive(&mut first, 1).await;
    settle(&first, held, &retry_at(Clock::System.now(), 2)).await;
    let held = receive(&mut first, 1).await;
    assert_eq!((held[0].attempt().get(), held[0].redelivered), (2, false));
    beside(&path, FROZEN).await;
    let (two, mut second) = named(&path, "two", &q).await;
    publish(&two, "t", &["b"]).await;
    let taken = receive(&mut second, 1).await;
    // Whichever it took, the other waits.
    let (b, a) = if bodies(&taken) == ["b"] { (taken, None) } else { (receive(&mut second, 1).await, Some(taken)) };
    assert_eq!(bodies(&b), ["b"]);
    assert_eq!(settle(&first, held, &Disposition::Ack).await, [Settled::Stale]);
    match a {
        Some(a) => assert!(a[0].redelivered && a[0].attempt().get() == 2),
        None => assert_eq!(beside(&path, "SELECT count(*) FROM later").await, 0, "it ended where it waited"),
    }
    settle(&second, b, &Disposition::Ack).await;
}

#[tokio::test]
async fn the_last_word_on_a_queue_counts() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("q.db");
    let q = queue("q", &["t"]);
    let (broker, mut opened) = named(&path, "one", &q).await;
    publish(&broker, "t", &["a"]).await;
    opened.source.stop().await;
    let mut opened = broker.open(&Queue { ordered: true, max_crashes: 2, ..q }).await.expect("opens again");
    let held = receive(&mut opened, 1).await;
    assert!(held[0].needs_mark, "a queue in key order marks its starts");
    assert_eq!(settle(&opened, held, &Disposition::Ack).await, [Settled::Stored]);
    broker.close().await;
}
