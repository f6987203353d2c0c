//! What the jobs share: the laboratory's folder and its database.

use std::path::{Path, PathBuf};

use sqlx::SqlitePool;
use tokio::sync::OnceCell;

use crate::database;
use crate::report::{Findings, Report};

/// The laboratory: `reports/`, `archive/` and `lab.db` in one folder. Shared by all jobs.
#[derive(Debug)]
pub struct Lab {
    folder: PathBuf,
    database: OnceCell<SqlitePool>,
}

impl Lab {
    /// The laboratory in this folder. Opens nothing yet.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), database: OnceCell::new() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The application's own database, opened (and made) when it is first needed.
    pub async fn database(&self) -> Result<&SqlitePool, sqlx::Error> {
        self.database.get_or_try_init(|| database::open(self.folder.join("lab.db"))).await
    }

    /// Puts these reports into `reports/` and their patients into the register.
    pub async fn furnish(&self, reports: &[Findings]) -> Result<(), Box<dyn std::error::Error>> {
        std::fs::create_dir_all(self.folder.join("reports"))?;
        let mut transaction = self.database().await?.begin().await?;
        for (index, findings) in reports.iter().enumerate() {
            let report = Report::new(index + 1, String::new());
            std::fs::write(self.folder.join(&report.location), serde_json::to_vec_pretty(findings)?)?;
            sqlx::query("INSERT INTO patients (patient_id) VALUES (?) ON CONFLICT DO NOTHING")
                .bind(&report.patient_id)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// The bytes of a report that lies at `location` in the folder.
    pub fn read(&self, location: &str) -> std::io::Result<Vec<u8>> {
        let path = Path::new(location);
        if path.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            return Err(std::io::Error::other(format!("{location} leads out of the laboratory's folder")));
        }
        std::fs::read(self.folder.join(path))
            .map_err(|error| std::io::Error::new(error.kind(), format!("{location}: {error}")))
    }

    /// A report, read.
    pub fn findings(&self, location: &str) -> Result<Findings, windlass::Error> {
        serde_json::from_slice(&self.read(location)?)
            .map_err(|error| windlass::Error::permanent(format_args!("{location} is no report: {error}")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report;

    /// A laboratory in a folder that is gone afterwards, with all reports and their patients.
    pub(crate) struct Bench {
        pub lab: Lab,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        pub async fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder for the test");
            let lab = Lab::at(folder.path());
            lab.furnish(&report::all()).await.expect("furnishes");
            Self { lab, _folder: folder }
        }

        pub fn report(&self, number: usize) -> Report {
            Report::new(number, "2026-11-21T10:00:00.000Z".to_owned())
        }

        pub async fn count(&self, sql: &'static str) -> i64 {
            let database = self.lab.database().await.expect("opens");
            sqlx::query_scalar(sql).fetch_one(database).await.expect("counts")
        }
    }
}
