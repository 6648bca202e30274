//! What was seen and left out, counted by kind and reason.

use std::collections::BTreeMap;

use crate::api::snapshot::SkipCount;

/// Counts; bounded by the number of kinds and reasons.
#[derive(Clone, Debug, Default)]
pub struct Skips(BTreeMap<(String, &'static str), i64>);

impl Skips {
    /// Counts one object of `kind`.
    pub fn add(&mut self, kind: &str, reason: &'static str) {
        *self.0.entry((kind.to_owned(), reason)).or_insert(0) += 1;
    }

    /// The counts, by kind and reason.
    pub fn counts(&self) -> Vec<SkipCount> {
        self.0
            .iter()
            .map(|((kind, reason), count)| SkipCount {
                kind: kind.clone(),
                reason: (*reason).to_owned(),
                count: *count,
            })
            .collect()
    }
}
