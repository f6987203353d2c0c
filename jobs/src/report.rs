//! What the laboratory's system publishes, and what lies where it says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `reports.finalized`: a report is ready. The argument of all three jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `R-0001`.
    pub report_id: String,
    /// When it was finalised: RFC 3339.
    pub timestamp: String,
    /// `P-0001`.
    pub patient_id: String,
    /// Where the report lies, in the laboratory's folder: `reports/R-0001.json`.
    pub location: String,
}

impl Report {
    /// The event of the report with this number.
    pub fn new(number: usize, timestamp: String) -> Self {
        let report_id = format!("R-{number:04}");
        Self {
            location: format!("reports/{report_id}.json"),
            patient_id: format!("P-{number:04}"),
            report_id,
            timestamp,
        }
    }
}

/// A report: what was measured and what was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// `R-0001`.
    pub report_id: String,
    /// Malignant or benign.
    pub finding: Finding,
    /// The 30 measurements by name (`mean radius`, `radius error`, `worst radius`, ..).
    pub measurements: BTreeMap<String, f64>,
}

/// The finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finding {
    /// 0 in the data.
    Malignant,
    /// 1 in the data.
    Benign,
}

impl Finding {
    /// As the database spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malignant => "malignant",
            Self::Benign => "benign",
        }
    }
}

/// What is measured of each nucleus; its mean, its standard error and its worst make 30.
const FEATURES: [&str; 10] = [
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave points",
    "symmetry",
    "fractal dimension",
];

/// The 569 reports of `jobs/data/wdbc.csv`, numbered from `R-0001`.
pub fn all() -> Vec<Findings> {
    let lines = include_str!("../data/wdbc.csv").lines().skip(1);
    lines.enumerate().filter_map(|(index, line)| parse(index + 1, line)).collect()
}

/// A line of the file; `None` where it is none.
fn parse(number: usize, line: &str) -> Option<Findings> {
    let numbers: Vec<f64> = line.split(',').map(|cell| cell.trim().parse().ok()).collect::<Option<_>>()?;
    let (finding, measured) = numbers.split_last()?;
    let names =
        ["mean {}", "{} error", "worst {}"].into_iter().flat_map(|form| FEATURES.map(|f| form.replace("{}", f)));
    let measurements: BTreeMap<String, f64> = names.zip(measured.iter().copied()).collect();
    let finding = if *finding == 0.0 { Finding::Malignant } else { Finding::Benign };
    (measured.len() == 30).then(|| Findings { report_id: format!("R-{number:04}"), finding, measurements })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_is_what_was_published() {
        let reports = all();
        let of = |finding| reports.iter().filter(|report| report.finding == finding).count();
        assert_eq!((reports.len(), of(Finding::Malignant), of(Finding::Benign)), (569, 212, 357));
        assert!(reports.iter().all(|report| report.measurements.len() == 30));
        let range = |name: &str| {
            let values = reports.iter().map(|report| report.measurements[name]);
            (values.clone().fold(f64::MAX, f64::min), values.fold(f64::MIN, f64::max))
        };
        assert_eq!(range("mean radius"), (6.981, 28.11));
        assert_eq!(range("mean area"), (143.5, 2501.0));
        assert_eq!(range("worst area"), (185.2, 4254.0));
    }
}
