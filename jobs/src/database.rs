//! The application's own databases. They have nothing to do with the queue's.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

/// Who is known, and what was billed.
pub(crate) const BILLING: &str = "
CREATE TABLE IF NOT EXISTS patients (
    patient_id TEXT PRIMARY KEY
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS invoices (
    event_id   TEXT PRIMARY KEY, -- one event, one invoice, however often the job runs
    report_id  TEXT NOT NULL,
    patient_id TEXT NOT NULL REFERENCES patients,
    cents      INTEGER NOT NULL
);
";

/// What was counted, and what came of it.
pub(crate) const STATISTICS: &str = "
CREATE TABLE IF NOT EXISTS counted (
    report_id TEXT PRIMARY KEY,
    finding   TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS statistics (
    measurement TEXT PRIMARY KEY,
    n    INTEGER NOT NULL,
    mean REAL NOT NULL,
    min  REAL NOT NULL,
    max  REAL NOT NULL
) WITHOUT ROWID;
";

/// Opens a database, and makes it with these tables where it is not there yet.
pub(crate) async fn open(path: PathBuf, tables: &'static str) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // The queue forgets a job once it is done: what it did must be as durable.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5));
    // SQLite has one writer: one connection queues here, where waiting is fair, instead of at the file's lock.
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    sqlx::raw_sql(tables).execute(&pool).await?;
    Ok(pool)
}
