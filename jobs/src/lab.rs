//! What the jobs share: the laboratory's folder and its databases.

use std::path::{Path, PathBuf};

use sqlx::SqlitePool;
use tokio::sync::OnceCell;

use crate::database;
use crate::notify::Post;
use crate::report::{Findings, Report};

/// The laboratory: `reports/`, `archive/`, `pages/`, `mail/`, `billing.db` and `statistics.db` in one folder. Shared by
/// all jobs.
#[derive(Debug)]
pub struct Lab {
    folder: PathBuf,
    billing: OnceCell<SqlitePool>,
    statistics: OnceCell<SqlitePool>,
    post: Post,
}

impl Lab {
    /// The laboratory in this folder, whose mail goes to `mail/` there. Opens nothing yet.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        let post = Post::folder(folder.join("mail"));
        Self { folder, billing: OnceCell::new(), statistics: OnceCell::new(), post }
    }

    /// The same, whose mail goes to a server: `smtp://HOST:PORT`, `smtps://USER:PASSWORD@HOST`.
    pub fn with_smtp(self, url: &str) -> Result<Self, windlass::Error> {
        Ok(Self { post: Post::smtp(url)?, ..self })
    }

    /// Where mail goes.
    pub fn post(&self) -> &Post {
        &self.post
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Patients and invoices; opened (and made) when they are first needed.
    pub async fn billing(&self) -> Result<&SqlitePool, sqlx::Error> {
        let open = || database::open(self.folder.join("billing.db"), database::BILLING);
        self.billing.get_or_try_init(open).await
    }

    /// The statistics, likewise. A database of their own: billing does not wait for them, nor they for it.
    pub async fn statistics(&self) -> Result<&SqlitePool, sqlx::Error> {
        let open = || database::open(self.folder.join("statistics.db"), database::STATISTICS);
        self.statistics.get_or_try_init(open).await
    }

    /// Puts these reports into `reports/` and their patients into the register.
    pub async fn furnish(&self, reports: &[Findings]) -> Result<(), Box<dyn std::error::Error>> {
        std::fs::create_dir_all(self.folder.join("reports"))?;
        let mut patients = Vec::new();
        for (index, findings) in reports.iter().enumerate() {
            let report = Report { report_id: findings.report_id.clone(), ..Report::new(index + 1, String::new()) };
            let report = Report { location: format!("reports/{}.json", report.report_id), ..report };
            let (path, bytes) = (self.folder.join(&report.location), serde_json::to_vec_pretty(findings)?);
            // What an earlier demonstration left is as good.
            if std::fs::read(&path).ok().as_ref() != Some(&bytes) {
                std::fs::write(path, bytes)?;
            }
            patients.push(report.patient_id);
        }
        self.register(&patients).await
    }

    /// Puts these patients into the register.
    pub async fn register(&self, patients: &[String]) -> Result<(), Box<dyn std::error::Error>> {
        sqlx::query(
            "INSERT INTO patients (patient_id) SELECT value FROM json_each(?) WHERE true ON CONFLICT DO NOTHING",
        )
        .bind(serde_json::to_string(patients)?)
        .execute(self.billing().await?)
        .await?;
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
            let database = self.lab.billing().await.expect("opens");
            sqlx::query_scalar(sql).fetch_one(database).await.expect("counts")
        }
    }
}
