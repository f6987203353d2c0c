//! Bills a report, once: the invoice and the fact that this event was billed are one row of one transaction.

use serde::Serialize;
use windlass::{Context, Error};

use crate::Lab;
use crate::report::{Finding, Findings, Report};

/// What was billed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The report.
    pub report_id: String,
    /// The price, in cents.
    pub cents: i64,
    /// Whether an earlier run of the same event had billed it.
    pub billed_before: bool,
}

/// The job.
pub async fn invoice(report: Report, cx: Context) -> Result<Receipt, Error> {
    bill(cx.state::<Lab>(), cx.event_id(), &report).await
}

/// Bills `report` for the event `event_id`.
pub async fn bill(lab: &Lab, event_id: &str, report: &Report) -> Result<Receipt, Error> {
    // A report that is not there yet may still come: an I/O error is tried again.
    let cents = price(&lab.findings(&report.location)?);

    let mut transaction = lab.billing().await?.begin_with("BEGIN IMMEDIATE").await?;
    let known = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM patients WHERE patient_id = ?")
        .bind(&report.patient_id)
        .fetch_one(&mut *transaction)
        .await?;
    if known == 0 {
        // Trying again would not help: somebody must look.
        return Err(Error::permanent(format_args!("patient {} is not in the register", report.patient_id)));
    }
    let written = sqlx::query(
        "INSERT INTO invoices (event_id, report_id, patient_id, cents) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(event_id)
    .bind(&report.report_id)
    .bind(&report.patient_id)
    .bind(cents)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Receipt { report_id: report.report_id.clone(), cents, billed_before: written.rows_affected() == 0 })
}

/// 45.00 for the reading, 0.40 a measurement, 28.00 for the second opinion that a malignant finding needs.
fn price(findings: &Findings) -> i64 {
    let second_opinion = if findings.finding == Finding::Malignant { 2_800 } else { 0 };
    4_500 + 40 * findings.measurements.len() as i64 + second_opinion
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::tests::Bench;

    #[tokio::test]
    async fn one_event_is_billed_once() {
        let bench = Bench::new().await;
        let report = bench.report(1);
        let first = bill(&bench.lab, "e-1", &report).await.expect("bills");
        let again = bill(&bench.lab, "e-1", &report).await.expect("bills");
        assert_eq!(first, Receipt { report_id: "R-0001".to_owned(), cents: 8_500, billed_before: false });
        assert_eq!(again, Receipt { billed_before: true, ..first });
        assert_eq!(bench.count("SELECT count(*) FROM invoices").await, 1);
    }

    #[tokio::test]
    async fn an_unknown_patient_is_not_tried_again_and_not_billed() {
        let bench = Bench::new().await;
        let stranger = Report { patient_id: "P-9999".to_owned(), ..bench.report(1) };
        let error = bill(&bench.lab, "e-1", &stranger).await.expect_err("refuses");
        assert_eq!(error.verdict(), windlass::handler::Verdict::Permanent);
        assert!(error.message().contains("P-9999"));
        assert_eq!(bench.count("SELECT count(*) FROM invoices").await, 0);
        // The refusal left no transaction open.
        bill(&bench.lab, "e-2", &bench.report(1)).await.expect("bills");
    }

    #[tokio::test]
    async fn a_report_that_is_not_there_is_tried_again() {
        let bench = Bench::new().await;
        let missing = Report { location: "reports/none.json".to_owned(), ..bench.report(1) };
        let error = bill(&bench.lab, "e-1", &missing).await.expect_err("fails");
        assert_eq!(error.verdict(), windlass::handler::Verdict::Retry);
        assert!(error.message().contains("reports/none.json"), "{}", error.message());
    }

    #[tokio::test]
    async fn a_location_stays_in_the_folder() {
        let bench = Bench::new().await;
        for location in ["../secret", "/etc/passwd", "reports/../../x"] {
            let outside = Report { location: location.to_owned(), ..bench.report(1) };
            let error = bill(&bench.lab, "e-1", &outside).await.expect_err("refuses");
            assert!(error.message().contains("leads out"), "{}", error.message());
        }
    }
}
