//! Waiting for the file's write lock: as often the longer it takes as at the beginning.
//!
//! SQLite's own waiting asks again after 1 ms, then ever later, and at last each 100 ms. Where several processes always
//! have something to write, whoever just came is then more likely to meet the lock free than whoever has waited longest:
//! of three that hold it for 0.1 s at a time one waited for 7 s, and for 0.8 s where all asked each 5 ms, at the same
//! throughput. A job that has ended waits as long to be settled.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

use libsqlite3_sys::{SQLITE_OK, sqlite3_busy_handler};
use sqlx::sqlite::SqliteConnection;

/// Between the first askings, so that a short transaction of somebody else costs no more than it lasts.
const SOON: Duration = Duration::from_millis(1);
/// So many of those.
const SOONS: c_int = 10;
/// Between all others: a call of the kernel each, whoever waits for how long.
const STEP: Duration = Duration::from_millis(5);

thread_local! {
    /// Since when this connection's thread waits. By the clock: where the machine is busy a nap lasts longer than it was
    /// asked to, and many short ones add up.
    static SINCE: Cell<Instant> = Cell::new(Instant::now());
}

/// How long to wait after having asked so often again.
fn step(asked: c_int) -> Duration {
    if asked < SOONS { SOON } else { STEP }
}

/// SQLite calls it where the lock is taken, with how often it did for this lock; 0: it is to give up.
extern "C" fn wait(most: *mut c_void, asked: c_int) -> c_int {
    if asked == 0 {
        SINCE.set(Instant::now());
    }
    if SINCE.get().elapsed() >= Duration::from_millis(most.addr() as u64) {
        return 0;
    }
    std::thread::sleep(step(asked));
    1
}

/// Has this connection wait so, for so long at the most, in place of what its options say.
pub async fn wait_evenly(connection: &mut SqliteConnection, most: Duration) -> Result<(), sqlx::Error> {
    let mut handle = connection.lock_handle().await?;
    // A number that travels as a pointer, which nobody follows.
    let most = std::ptr::without_provenance_mut(most.as_millis() as usize);
    // SAFETY: the handle is open and locked for the call; the function stays for as long as the program, and its
    // argument is a number.
    let status = unsafe { sqlite3_busy_handler(handle.as_raw_handle().as_ptr(), Some(wait), most) };
    assert_eq!(status, SQLITE_OK, "an open connection takes a busy handler");
    Ok(())
}

#[cfg(test)]
mod tests {
    use sqlx::ConnectOptions;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;
    use crate::broker::sqlite::fault;

    #[test]
    fn whoever_waits_long_asks_as_often() {
        for asked in SOONS..10_000 {
            assert_eq!(step(asked), STEP);
        }
        assert!((0..SOONS).all(|asked| step(asked) < STEP), "and who just came a little more often");
    }

    #[tokio::test]
    async fn the_lock_is_waited_for_and_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(dir.path().join("queue.db"))
            .create_if_missing(true)
            .busy_timeout(Duration::ZERO);
        let [mut one, mut two] = [options.connect().await.unwrap(), options.connect().await.unwrap()];
        sqlx::query("BEGIN IMMEDIATE").execute(&mut one).await.unwrap();

        wait_evenly(&mut two, Duration::from_millis(40)).await.unwrap();
        let begun = Instant::now();
        let error = sqlx::query("BEGIN IMMEDIATE").execute(&mut two).await.unwrap_err();
        assert!(fault::is_busy(&error), "{error}");
        assert!(begun.elapsed() >= Duration::from_millis(40), "it asked again: {:?}", begun.elapsed());

        wait_evenly(&mut two, Duration::from_secs(60)).await.unwrap();
        let waits = tokio::spawn(async move { sqlx::query("BEGIN IMMEDIATE").execute(&mut two).await.map(drop) });
        sqlx::query("ROLLBACK").execute(&mut one).await.unwrap();
        waits.await.unwrap().unwrap();
    }
}
