//! Tables that fit the terminal: one line a row, numbers to the right, and one column that gives way.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Row, presets};

use super::output::{self, Paint, shown};

/// A table in the making.
pub struct Table {
    inner: comfy_table::Table,
    columns: Vec<Column>,
}

/// How a column looks.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    right: bool,
    gives_way: bool,
}

/// Text that is shown whole.
pub const fn text(title: &'static str) -> Column {
    Column { title, right: false, gives_way: false }
}

/// A number.
pub const fn number(title: &'static str) -> Column {
    Column { title, right: true, gives_way: false }
}

/// Text that is cut where the terminal is too narrow.
pub const fn cut(title: &'static str) -> Column {
    Column { title, right: false, gives_way: true }
}

/// A cell's text and its colour.
pub type Value = (String, Option<Paint>);

impl Table {
    /// With these columns.
    pub fn new(columns: &[Column]) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        // Cells are painted only where there is colour, so that nothing is to be undone elsewhere.
        if output::is_coloured() {
            inner.enforce_styling().style_text_only();
        }
        let header = columns.iter().map(|column| {
            let cell = Cell::new(column.title).set_alignment(alignment(*column));
            if output::is_coloured() { cell.add_attribute(Attribute::Bold) } else { cell }
        });
        inner.set_header(Row::from(header.collect::<Vec<_>>()));
        Self { inner, columns: columns.to_vec() }
    }

    /// Adds a row.
    pub fn row(&mut self, values: Vec<Value>) {
        let cells = values.into_iter().zip(&self.columns).map(|((text, paint), column)| {
            let cell = Cell::new(shown(&text, false)).set_alignment(alignment(*column));
            match paint.filter(|_| output::is_coloured()) {
                Some(Paint::Red) => cell.fg(Color::Red),
                Some(Paint::Yellow) => cell.fg(Color::Yellow),
                Some(Paint::Green) => cell.fg(Color::Green),
                Some(Paint::Bold) => cell.add_attribute(Attribute::Bold),
                Some(Paint::Dim) => cell.add_attribute(Attribute::Dim),
                None => cell,
            }
        });
        let mut row = Row::from(cells.collect::<Vec<_>>());
        row.max_height(1);
        self.inner.add_row(row);
    }
}

fn alignment(column: Column) -> CellAlignment {
    if column.right { CellAlignment::Right } else { CellAlignment::Left }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = self.inner.clone();
        for (index, column) in self.columns.iter().enumerate() {
            if let Some(inner) = table.column_mut(index) {
                inner.set_padding((0, 2));
                if !column.gives_way {
                    inner.set_constraint(ColumnConstraint::ContentWidth);
                }
            }
        }
        let mut first = true;
        for line in table.lines() {
            if !first {
                writeln!(f)?;
            }
            first = false;
            write!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A cell without colour.
pub fn plain(text: impl Into<String>) -> Value {
    (text.into(), None)
}

/// A count; `?` where it cannot be known, and less loud where it is 0.
pub fn count(count: Option<u64>, loud: Option<Paint>) -> Value {
    match count {
        None => ("?".to_owned(), Some(Paint::Dim)),
        Some(0) => ("0".to_owned(), Some(Paint::Dim)),
        Some(count) => (grouped(count), loud),
    }
}

/// `1,204`
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 dead letter`, `1,204 dead letters`
pub fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_one_line_and_fit() {
        let mut table = Table::new(&[text("ID"), number("N"), cut("ERROR")]);
        table.row(vec![plain("L1"), count(Some(1_204), None), plain("no\nreport ".repeat(20))]);
        table.row(vec![plain("L2"), count(None, None), plain("x")]);
        table.inner.set_width(40);
        let shown = table.to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown}");
        assert!(lines.iter().all(|line| line.chars().count() <= 40), "{shown}");
        assert!(lines[1].starts_with("L1  1,204  no report"), "{shown}");
        assert!(lines[2].starts_with("L2      ?  x"), "{shown}");
    }

    #[test]
    fn digits_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!((counted(1, "job"), counted(2_000, "job")), ("1 job".to_owned(), "2,000 jobs".to_owned()));
    }
}
