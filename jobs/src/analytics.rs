//! Running statistics over all reports, each counted once.

use windlass::{Context, Error};

use crate::Lab;
use crate::report::{Finding, Report};

/// The job.
pub async fn analytics(report: Report, cx: Context) -> Result<(), Error> {
    count(cx.state::<Lab>(), &report).await
}

/// Adds `report` to the statistics, unless it is in them already.
pub async fn count(lab: &Lab, report: &Report) -> Result<(), Error> {
    let findings = lab.findings(&report.location)?;
    let measurements = serde_json::to_string(&findings.measurements)?;

    let mut transaction = lab.statistics().await?.begin_with("BEGIN IMMEDIATE").await?;
    let counted = sqlx::query("INSERT INTO counted (report_id, finding) VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(&findings.report_id)
        .bind(findings.finding.as_str())
        .execute(&mut *transaction)
        .await?;
    if counted.rows_affected() > 0 {
        sqlx::query(
            "INSERT INTO statistics (measurement, n, mean, min, max)
             SELECT key, 1, value, value, value FROM json_each(?) WHERE true
             ON CONFLICT (measurement) DO UPDATE SET
                 n = n + 1,
                 mean = mean + (excluded.mean - mean) / (n + 1),
                 min = min(min, excluded.min),
                 max = max(max, excluded.max)",
        )
        .bind(measurements)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// How many reports with this finding were counted.
pub async fn counted(lab: &Lab, finding: Finding) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) FROM counted WHERE finding = ?")
        .bind(finding.as_str())
        .fetch_one(lab.statistics().await?)
        .await
}

/// The least and the greatest value of a measurement; `None` where nothing was counted.
pub async fn range(lab: &Lab, measurement: &str) -> Result<Option<(f64, f64)>, sqlx::Error> {
    sqlx::query_as("SELECT min, max FROM statistics WHERE measurement = ?")
        .bind(measurement)
        .fetch_optional(lab.statistics().await?)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::tests::Bench;
    use crate::report;

    #[tokio::test]
    async fn the_published_figures_come_out_though_every_report_comes_twice() {
        let bench = Bench::new().await;
        for number in (1..=569).chain(1..=569) {
            count(&bench.lab, &bench.report(number)).await.expect("counts");
        }
        assert_eq!(counted(&bench.lab, Finding::Malignant).await.expect("reads"), 212);
        assert_eq!(counted(&bench.lab, Finding::Benign).await.expect("reads"), 357);
        for (name, published) in
            [("mean radius", (6.981, 28.11)), ("mean area", (143.5, 2501.0)), ("worst area", (185.2, 4254.0))]
        {
            assert_eq!(range(&bench.lab, name).await.expect("reads"), Some(published), "{name}");
        }
        let reports = report::all();
        let mean = reports.iter().map(|report| report.measurements["mean radius"]).sum::<f64>() / 569.0;
        let running: f64 = sqlx::query_scalar("SELECT mean FROM statistics WHERE measurement = 'mean radius'")
            .fetch_one(bench.lab.statistics().await.expect("opens"))
            .await
            .expect("reads");
        assert!((running - mean).abs() < 1e-9, "{running} is not {mean}");
    }
}
