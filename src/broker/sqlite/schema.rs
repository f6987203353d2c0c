//! The file's form: whose it is, which version, and how an older one becomes this one.

use sqlx::sqlite::SqliteConnection;

use super::super::Error;
use super::file::Target;
use super::machine::{Life, Monotonic, Process};
use super::script::{self, Script, int, text};
use super::{fault, script::rollback};

/// `PRAGMA application_id` of our files: "Wndl".
pub const APPLICATION_ID: i64 = 0x576e_646c;

/// One step from a version to the next.
#[derive(Clone, Copy)]
pub struct Migration {
    /// What it does.
    pub sql: &'static str,
    /// The oldest version of this program's schema that can work on the result.
    pub oldest_reader: i64,
}

/// All steps; a file's version is how many were taken.
pub const MIGRATIONS: [Migration; 1] = [Migration { sql: include_str!("migrations/0001.sql"), oldest_reader: 1 }];

/// What is in a file before anything is done to it.
struct Found {
    application_id: i64,
    version: i64,
    tables: i64,
}

/// Makes sure that the file is ours and of a form that we know; creates and migrates where `may_write`.
pub async fn prepare(
    connection: &mut SqliteConnection,
    target: &Target,
    may_create: bool,
    migrations: &[Migration],
) -> Result<(), Error> {
    if examine(connection, target, may_create, migrations).await? == Next::Nothing {
        return Ok(());
    }
    // Under the write lock everything is looked at again: another process may have been quicker.
    let result = migrate(connection, target, may_create, migrations).await;
    if result.is_err() {
        rollback(connection).await;
    }
    result
}

/// What a file needs before it can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Nothing,
    /// To be created or migrated.
    Migrate,
}

/// Whose the file is and what it needs; changes nothing.
pub async fn examine(
    connection: &mut SqliteConnection,
    target: &Target,
    may_create: bool,
    migrations: &[Migration],
) -> Result<Next, Error> {
    let found = look(connection).await.map_err(|error| fault::explain(&error, &target.path))?;
    check(&found, target, migrations.len() as i64, may_create, connection).await
}

async fn check(
    found: &Found,
    target: &Target,
    known: i64,
    may_create: bool,
    connection: &mut SqliteConnection,
) -> Result<Next, Error> {
    let file = target.path.display();
    if found.application_id != APPLICATION_ID {
        if found.application_id != 0 || found.tables > 0 {
            return Err(Error::Refused(format!(
                "{file} is a database of another program; name another file in the broker's address"
            )));
        }
        return if may_create { Ok(Next::Migrate) } else { Err(target.missing()) };
    }
    if found.version > known {
        let oldest = oldest_reader(connection).await.map_err(|error| fault::explain(&error, &target.path))?;
        if oldest > known {
            return Err(Error::Refused(format!(
                "{file} was written by a newer windlass (its schema is {}, this one knows {known}); upgrade this one",
                found.version
            )));
        }
        return Ok(Next::Nothing);
    }
    Ok(if found.version < known { Next::Migrate } else { Next::Nothing })
}

async fn migrate(
    connection: &mut SqliteConnection,
    target: &Target,
    may_create: bool,
    migrations: &[Migration],
) -> Result<(), Error> {
    let said = |error: sqlx::Error| fault::explain(&error, &target.path);
    let known = migrations.len() as i64;
    Script::begin().run(connection).await.map_err(said)?;
    if examine(connection, target, may_create, migrations).await? == Next::Nothing {
        rollback(connection).await;
        return Ok(());
    }
    let found = look(connection).await.map_err(said)?;
    let pending = &migrations[found.version as usize..];
    if found.version > 0 && pending.iter().any(|step| step.oldest_reader > found.version) {
        refuse_while_attached(connection, target, found.version).await?;
    }
    for step in pending {
        sqlx::raw_sql(step.sql).execute(&mut *connection).await.map_err(said)?;
    }
    let oldest = migrations.last().map_or(1, |step| step.oldest_reader);
    let mut script = Script::default();
    script.add(&format!("PRAGMA application_id = {APPLICATION_ID}"));
    script.add(&format!("PRAGMA user_version = {known}"));
    script.add("UPDATE meta SET oldest_reader = max(oldest_reader, ?)");
    script.bind(oldest);
    script.commit();
    script.run(connection).await.map_err(said)?;
    Ok(())
}

/// A worker of a version that cannot read what the file becomes must leave first.
async fn refuse_while_attached(connection: &mut SqliteConnection, target: &Target, version: i64) -> Result<(), Error> {
    let mut script = Script::default();
    script.add("SELECT boot, pidns, pid, born, lease, name FROM worker");
    let answers = script.run(connection).await.map_err(|error| fault::explain(&error, &target.path))?;
    let this = Process::this();
    let now = Monotonic::Machine.now();
    for row in &answers[0].rows {
        let process = Process { boot: text(row, 0), pidns: int(row, 1), pid: int(row, 2), born: int(row, 3) };
        let attached = match this.sees(&process) {
            Life::Alive => true,
            Life::Gone => false,
            Life::Unknown => int(row, 4) > now,
        };
        if attached {
            return Err(Error::Unavailable(format!(
                "{} must be brought to a new form that the worker {} (process {}, schema {version}) cannot read; stop it first",
                target.path.display(),
                text(row, 5),
                process.pid,
            )));
        }
    }
    Ok(())
}

async fn look(connection: &mut SqliteConnection) -> Result<Found, sqlx::Error> {
    let mut script = Script::default();
    script.add("PRAGMA application_id");
    script.add("PRAGMA user_version");
    script.add("SELECT count(*) FROM sqlite_schema");
    let answers = script.run(connection).await?;
    let value = |n: usize| answers[n].rows.first().map_or(0, |row| int(row, 0));
    Ok(Found { application_id: value(0), version: value(1), tables: value(2) })
}

async fn oldest_reader(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    let mut script = Script::default();
    script.add("SELECT oldest_reader FROM meta");
    let answers = script.run(connection).await?;
    Ok(answers[0].rows.first().map_or(i64::MAX, |row| script::int(row, 0)))
}

#[cfg(test)]
mod tests {
    use sqlx::ConnectOptions;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;

    const NEXT: [Migration; 2] =
        [MIGRATIONS[0], Migration { sql: "ALTER TABLE worker ADD COLUMN other INTEGER", oldest_reader: 2 }];

    #[tokio::test]
    async fn a_migration_waits_for_workers_that_could_not_read_the_result() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("q.db");
        let target = Target { path: path.clone(), may_create: true, normal: true, timeout: std::time::Duration::ZERO };
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut connection = options.connect().await.expect("connects");
        prepare(&mut connection, &target, true, &MIGRATIONS).await.expect("created");
        prepare(&mut connection, &target, false, &MIGRATIONS).await.expect("known");

        let this = Process::this();
        let mut script = Script::begin();
        script.add(
            "INSERT INTO worker (name, boot, pidns, pid, born, lease, schema, since) VALUES ('old', ?, ?, ?, ?, 0, 1, 0)",
        );
        script.bind(this.boot).bind(this.pidns).bind(this.pid).bind(this.born);
        script.run_whole(&mut connection).await.expect("stored");
        let refused = prepare(&mut connection, &target, true, &NEXT).await.expect_err("a worker is attached");
        assert_eq!(refused.exit_code(), 69, "{refused}");
        assert!(refused.to_string().contains("stop it first"), "{refused}");
        prepare(&mut connection, &target, false, &MIGRATIONS).await.expect("nothing was changed");

        let mut script = Script::begin();
        script.add("UPDATE worker SET born = born - 1");
        script.run_whole(&mut connection).await.expect("stored");
        prepare(&mut connection, &target, true, &NEXT).await.expect("the worker is gone");
        let newer = prepare(&mut connection, &target, true, &MIGRATIONS).await.expect_err("it is newer now");
        assert_eq!(newer.exit_code(), 78, "{newer}");
    }
}
