//! A raw sqlx loop on a table as plain as it can be: 100 rows are claimed and the 100 before them deleted in one
//! transaction, with the same `synchronous` as the worker's.
//!
//! A measurement has files of its own: `DIRECTORY/RUN/rN.db` for the worker and `rN-raw.db` for the loop, in the
//! directory of the file that the address names, and so on the same disk. The file itself is never touched.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};

use super::fault;
use super::file::Target;
use crate::broker::yardstick::{Seen, Yardstick};
use crate::broker::{Error, Options};

/// See the module's documentation.
pub struct SqliteYardstick {
    directory: PathBuf,
    normal: bool,
}

impl SqliteYardstick {
    /// Beside the file that the address names.
    pub fn new(address: &str, options: &Options) -> Result<Self, Error> {
        let target = Target::parse(address, options)?;
        let directory = match target.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        if !directory.is_dir() {
            return Err(Error::Refused(format!("the directory {} does not exist; create it", directory.display())));
        }
        Ok(Self { directory, normal: target.normal })
    }

    fn file(&self, topic: &str, end: &str) -> PathBuf {
        let (run, round) = topic.split_once('.').unwrap_or((topic, "r0"));
        self.directory.join(run).join(format!("{round}{end}"))
    }

    async fn open(&self, path: &Path) -> Result<SqliteConnection, Error> {
        let synchronous = if self.normal { SqliteSynchronous::Normal } else { SqliteSynchronous::Full };
        SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .disable_statement_logging()
            .connect()
            .await
            .map_err(|error| fault::explain(&error, path))
    }

    async fn drain(&self, connection: &mut SqliteConnection, count: usize, seen: Seen<'_>) -> Result<(), sqlx::Error> {
        let mut done = 0;
        let mut finished = String::from("[]");
        loop {
            sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
            sqlx::query("DELETE FROM job WHERE id IN (SELECT value FROM json_each(?))")
                .bind(&finished)
                .execute(&mut *connection)
                .await?;
            let rows = sqlx::query(
                "UPDATE job SET state = 1 WHERE id IN (SELECT id FROM job WHERE state = 0 ORDER BY id LIMIT 100)
                 RETURNING id, payload",
            )
            .fetch_all(&mut *connection)
            .await?;
            sqlx::query("COMMIT").execute(&mut *connection).await?;
            // What ends here was deleted above.
            if rows.is_empty() && done >= count {
                return Ok(());
            }
            finished.clear();
            for row in &rows {
                finished.push(if finished.is_empty() { '[' } else { ',' });
                finished.push_str(&row.get::<i64, _>(0).to_string());
                seen(row.get::<&[u8], _>(1));
            }
            finished.push(']');
            done += rows.len();
        }
    }
}

impl Yardstick for SqliteYardstick {
    fn loops(&self) -> &'static [&'static str] {
        &["sqlx, 100 a transaction"]
    }

    fn address(&self, topic: &str) -> String {
        format!("sqlite://{}", self.file(topic, ".db").display())
    }

    fn create<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let path = self.file(topic, "-raw.db");
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)
                    .map_err(|error| Error::Refused(format!("{} cannot be made: {error}", folder.display())))?;
            }
            let mut connection = self.open(&path).await?;
            sqlx::raw_sql(
                "CREATE TABLE job (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, payload BLOB NOT NULL);
                 CREATE INDEX ready ON job (id) WHERE state = 0;",
            )
            .execute(&mut connection)
            .await
            .map_err(|error| fault::explain(&error, &path))?;
            connection.close().await.map_err(|error| fault::explain(&error, &path))
        })
    }

    fn fill<'a>(&'a self, topic: &'a str, bodies: Vec<Bytes>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let path = self.file(topic, "-raw.db");
            let mut connection = self.open(&path).await?;
            let stored = async {
                sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await?;
                for body in &bodies {
                    sqlx::query("INSERT INTO job (state, payload) VALUES (0, ?)")
                        .bind(&body[..])
                        .execute(&mut connection)
                        .await?;
                }
                sqlx::query("COMMIT").execute(&mut connection).await?;
                connection.close().await
            };
            stored.await.map_err(|error| fault::explain(&error, &path))
        })
    }

    fn consume<'a>(
        &'a self,
        topic: &'a str,
        _: usize,
        count: usize,
        seen: Seen<'a>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let path = self.file(topic, "-raw.db");
            let mut connection = self.open(&path).await?;
            self.drain(&mut connection, count, seen).await.map_err(|error| fault::explain(&error, &path))
        })
    }

    fn runs<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, Error>> {
        let read = || {
            let entries = std::fs::read_dir(&self.directory)
                .map_err(|error| Error::Refused(format!("{} cannot be read: {error}", self.directory.display())))?;
            let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            Ok(names.filter(|name| name.starts_with(prefix)).collect())
        };
        Box::pin(std::future::ready(read()))
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        let remove = || match name.split_once('.') {
            None => std::fs::remove_dir_all(self.directory.join(name)),
            Some((run, round)) => {
                for entry in std::fs::read_dir(self.directory.join(run))?.flatten() {
                    let file = entry.file_name().into_string().unwrap_or_default();
                    if [".db", "-raw.db"].iter().any(|end| file.starts_with(&format!("{round}{end}"))) {
                        std::fs::remove_file(entry.path())?;
                    }
                }
                Ok(())
            }
        };
        let removed = match remove() {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Refused(format!("{} in {} cannot be removed: {error}", name, self.directory.display())))
            }
            _ => Ok(()),
        };
        Box::pin(std::future::ready(removed))
    }
}
