//! The rows: what was measured beside what must be and what is aimed at.

use std::fmt;

/// How a measured value compares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

impl Goal {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

/// What follows the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Times,
    Percent,
    Number,
    Bytes,
}

impl Unit {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes are whole and not negative"
    )]
    fn format(self, value: f64) -> String {
        match self {
            Self::Times => format!("{value:.2}×"),
            Self::Percent => format!("{:.1} %", value * 100.0),
            Self::Number if value.fract() == 0.0 => format!("{value:.0}"),
            Self::Number => format!("{value:.2}"),
            Self::Bytes => bytes(value.max(0.0) as u64),
        }
    }
}

/// Bytes for people.
pub fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = count as f64;
    match count {
        0..10_240 => format!("{count} B"),
        10_240..10_485_760 => format!("{:.1} KiB", value / 1024.0),
        _ => format!("{:.1} MiB", value / (1024.0 * 1024.0)),
    }
}

/// One line of the report.
pub struct Row {
    /// Number in the table of goals.
    pub number: u8,
    /// The data set.
    pub data: String,
    /// What is measured.
    pub what: String,
    /// The value, or why there is none.
    pub measured: Result<f64, String>,
    /// Unit of all three values.
    pub unit: Unit,
    /// What must be; `None` is for information.
    pub must: Option<Goal>,
    /// What is aimed at.
    pub aim: Option<Goal>,
    /// A count or a size, the same on every machine; times are not.
    pub exact: bool,
    /// How the value came about.
    pub note: String,
}

impl Row {
    /// Whether it misses what must be, or could not be measured at all.
    pub fn fails(&self) -> bool {
        match (&self.measured, self.must) {
            (Ok(value), Some(must)) => !must.met(*value),
            (Err(_), _) => true,
            (Ok(_), None) => false,
        }
    }

    fn verdict(&self) -> &'static str {
        match (&self.measured, self.must, self.aim) {
            (Err(_), ..) => "not yet",
            (Ok(_), None, _) => "",
            (Ok(value), Some(must), _) if !must.met(*value) => "MISSED",
            (Ok(value), _, Some(aim)) if aim.met(*value) => "aim",
            _ => "ok",
        }
    }
}

/// Every row, in the order of measuring.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds and prints a row.
    pub fn add(&mut self, row: Row) {
        eprintln!("{}", Line(&row));
        self.rows.push(row);
    }

    /// Rows that miss what must be: those with exact figures, and those with times.
    pub fn missed(&self) -> (usize, usize) {
        let missed = || self.rows.iter().filter(|row| row.fails());
        let exact = missed().filter(|row| row.exact || row.measured.is_err()).count();
        (exact, missed().count() - exact)
    }
}

struct Line<'a>(&'a Row);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.0;
        let goal = |goal: Option<Goal>| match goal {
            Some(Goal::AtMost(limit)) => format!("≤ {}", row.unit.format(limit)),
            Some(Goal::AtLeast(limit)) => format!("≥ {}", row.unit.format(limit)),
            None => "–".to_owned(),
        };
        let (value, reason) = match &row.measured {
            Ok(value) => (row.unit.format(*value), String::new()),
            Err(reason) => ("–".to_owned(), reason.clone()),
        };
        write!(
            f,
            "| {:>2} | {:<6} | {:<52} | {value:>10} | {:>10} | {:>10} | {:<7} | {}{reason}",
            row.number,
            row.data,
            row.what,
            goal(row.must),
            goal(row.aim),
            row.verdict(),
            row.note,
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "|  # | data   | {:<52} | {:>10} | {:>10} | {:>10} | {:<7} | how",
            "what", "measured", "must", "aim", ""
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{}", Line(row)))
    }
}

/// The middle one of `values`; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}
