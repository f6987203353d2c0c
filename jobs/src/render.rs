//! Makes a page of a report that a person can read: `pages/R-0001.pdf`, the 30 measurements, each with its place in
//! the range of all 569.
//!
//! A blocking job: it computes, and writes a file, on a thread of its own.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use pdf_writer::{Content, Name, Pdf, Rect, Ref, Str};
use serde::Serialize;
use windlass::{Context, Error};

use crate::Lab;
use crate::file::write_whole;
use crate::report::{self, Findings, Report};

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Page {
    /// Where it lies, in the laboratory's folder.
    pub location: String,
    /// Its size.
    pub bytes: usize,
}

/// The job.
pub fn render(report: Report, cx: Context) -> Result<Page, Error> {
    let lab = cx.state::<Lab>();
    let findings = lab.findings(&report.location)?;
    let location = format!("pages/{}.pdf", findings.report_id);
    let page = draw(&findings);
    write_whole(&lab.folder().join(&location), &page)?;
    Ok(Page { location, bytes: page.len() })
}

/// The width and height of A4, in points.
const A4: (f32, f32) = (595.0, 842.0);
/// Where columns begin: name, value, least, bar, greatest.
const COLUMNS: [f32; 5] = [50.0, 190.0, 260.0, 330.0, 510.0];
/// How long a bar is.
const BAR: f32 = 165.0;
const PLAIN: Name = Name(b"F1");
const BOLD: Name = Name(b"F2");

/// The page, as PDF. The same findings give the same bytes.
pub fn draw(findings: &Findings) -> Vec<u8> {
    let [catalog, pages, page, plain, bold, stream, information] = [1, 2, 3, 4, 5, 6, 7].map(Ref::new);
    let mut pdf = Pdf::new();
    pdf.catalog(catalog).pages(pages);
    pdf.pages(pages).kids([page]).count(1);
    let mut sheet = pdf.page(page);
    sheet.media_box(Rect::new(0.0, 0.0, A4.0, A4.1)).parent(pages).contents(stream);
    sheet.resources().fonts().pair(PLAIN, plain).pair(BOLD, bold);
    drop(sheet);
    // Two of the 14 fonts that every reader has: nothing is embedded.
    pdf.type1_font(plain).base_font(Name(b"Helvetica")).encoding_predefined(Name(b"WinAnsiEncoding"));
    pdf.type1_font(bold).base_font(Name(b"Helvetica-Bold")).encoding_predefined(Name(b"WinAnsiEncoding"));
    pdf.document_info(information).title(pdf_writer::TextStr(&format!("Report {}", findings.report_id)));
    pdf.stream(stream, &contents(findings));
    pdf.finish()
}

fn contents(findings: &Findings) -> pdf_writer::Buf {
    let mut content = Content::new();
    let mut write = |font, size, x, y, text: &str| {
        content.begin_text().set_font(font, size).next_line(x, y);
        content.show(Str(text.as_bytes())).end_text();
    };
    write(BOLD, 18.0, COLUMNS[0], 780.0, &format!("Report {}", findings.report_id));
    write(PLAIN, 11.0, COLUMNS[0], 758.0, &format!("Finding: {}", findings.finding.as_str()));
    for (x, title) in COLUMNS.into_iter().zip(["measurement", "value", "least", "range of 569 reports", "greatest"]) {
        write(BOLD, 9.0, x, 730.0, title);
    }
    let mut rows = Vec::new();
    for (line, (name, value)) in findings.measurements.iter().enumerate() {
        let y = 712.0 - 21.5 * line as f32;
        let (least, greatest) = ranges().get(name).copied().unwrap_or((*value, *value));
        write(PLAIN, 9.0, COLUMNS[0], y, name);
        write(BOLD, 9.0, COLUMNS[1], y, &value.to_string());
        write(PLAIN, 8.0, COLUMNS[2], y, &least.to_string());
        write(PLAIN, 8.0, COLUMNS[4], y, &greatest.to_string());
        let share = if greatest > least { (value - least) / (greatest - least) } else { 0.5 };
        rows.push((y + 3.0, share.clamp(0.0, 1.0) as f32));
    }
    for (y, share) in rows {
        content.set_stroke_gray(0.7).set_line_width(1.0);
        content.move_to(COLUMNS[3], y).line_to(COLUMNS[3] + BAR, y).stroke();
        content.set_fill_rgb(0.1, 0.3, 0.6);
        content.rect(COLUMNS[3] + BAR * share - 1.5, y - 5.0, 3.0, 10.0).fill_nonzero();
    }
    content.finish()
}

/// The least and the greatest value of each measurement, over all reports.
fn ranges() -> &'static BTreeMap<String, (f64, f64)> {
    static RANGES: OnceLock<BTreeMap<String, (f64, f64)>> = OnceLock::new();
    RANGES.get_or_init(|| {
        let mut ranges = BTreeMap::new();
        for (name, value) in report::all().into_iter().flat_map(|findings| findings.measurements) {
            let range = ranges.entry(name).or_insert((value, value));
            *range = (range.0.min(value), range.1.max(value));
        }
        ranges
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::tests::Bench;
    use windlass::testing::Attempt;

    #[tokio::test]
    async fn a_reader_finds_every_measurement_on_one_page() {
        let bench = Bench::new().await;
        let report = bench.report(7);
        let findings = bench.lab.findings(&report.location).expect("reads");
        let folder = bench.lab.folder().to_owned();
        let attempt = Attempt::new().state(bench.lab);
        let page = render(report.clone(), attempt.context()).expect("renders");
        assert_eq!(page, render(report, attempt.context()).expect("renders again, the same"));

        let document = lopdf::Document::load(folder.join(&page.location)).expect("it is a PDF");
        assert_eq!(document.get_pages().len(), 1);
        let text = document.extract_text(&[1]).expect("it has text");
        assert!(text.contains("Report R-0007") && text.contains("Finding: malignant"), "{text}");
        assert_eq!(findings.measurements.len(), 30);
        for (name, value) in &findings.measurements {
            assert!(text.contains(name) && text.contains(&value.to_string()), "no {name} {value} in\n{text}");
        }
        // Published: mean radius 6.981 to 28.11.
        assert!(text.contains("6.981") && text.contains("28.11"), "{text}");
    }
}
