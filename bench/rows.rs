//! The measurements behind the rows: each function makes one scene, measures it and adds rows to the report.

mod captures;
mod memory;
mod orientation;
mod rollbacks;
mod scene;

use std::path::PathBuf;
use std::time::Duration;

use super::report::{Goal, Row, Unit};

pub use captures::captures;
pub use memory::memory;
pub use orientation::orientation;
pub use rollbacks::{restores, rollbacks, single};

/// How long a capture may take before the run is given up.
const DEADLINE: Duration = Duration::from_secs(600);
/// Kinds that the operator lists at once by default, and so RAW's connections.
const CONNECTIONS: usize = 4;

/// What is measured, and how often.
pub struct Plan {
    /// The operator's program.
    pub program: PathBuf,
    /// Interleaved pairs.
    pub pairs: usize,
    /// Captures after 1 % changed, one after the other; 0 leaves that row out.
    pub generations: usize,
}

#[expect(clippy::cast_precision_loss, reason = "ratios are shown with two digits")]
fn float(value: u64) -> f64 {
    value as f64
}

/// A row without goals; [`Row::must`] and the others add to it.
fn row(number: u8, data: &str, what: impl Into<String>, measured: f64, unit: Unit) -> Row {
    Row {
        number,
        data: data.to_owned(),
        what: what.into(),
        measured: Ok(measured),
        unit,
        must: None,
        aim: None,
        exact: false,
        note: String::new(),
    }
}

impl Row {
    fn must(self, goal: Goal) -> Self {
        Self {
            must: Some(goal),
            ..self
        }
    }

    fn aim(self, goal: Goal) -> Self {
        Self {
            aim: Some(goal),
            ..self
        }
    }

    /// Counts and sizes, which are the same on every machine.
    fn exact(self) -> Self {
        Self { exact: true, ..self }
    }

    fn note(self, note: impl Into<String>) -> Self {
        Self {
            note: note.into(),
            ..self
        }
    }
}
