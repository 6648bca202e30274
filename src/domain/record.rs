//! What came of a finished request, as the repository keeps it.

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        RollbackRequestSpec, RollbackRequestStatus,
        approval_request::RecordedDecision,
        rollback_request::{ItemFailure, TestResult},
    },
    domain::object::Digest,
};

/// Most failures that a record holds: with the longest names and messages they stay within 32 MiB.
pub const MOST_FAILURES: usize = 30_000;

/// A finished request: who, why, what, by whose leave, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Namespace of the request.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// What was asked for, and by whom.
    pub spec: RollbackRequestSpec,
    /// What came of it.
    pub status: RollbackRequestStatus,
    /// The decisions on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<RecordedDecision>,
    /// Every failure of its items, where the status holds the first ones only; at most [`MOST_FAILURES`], of which `status.items.failed`
    /// tells the number there were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<ItemFailure>,
    /// Every result of verification, where the status holds the first ones only; texts are whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<TestResult>,
    /// What else a reader should know: objects that stayed as they are, images that were pinned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Record {
    /// Every failure that is known of.
    pub fn every_failure(&self) -> &[ItemFailure] {
        let first = self.status.items.as_ref().map_or(&[][..], |items| &items.failures);
        if self.failures.len() > first.len() {
            &self.failures
        } else {
            first
        }
    }
}

/// Where the records of one namespace begin: 16 hexadecimal digits and `-`.
pub fn place(namespace: &str) -> String {
    let place: String = Digest::of(namespace.as_bytes()).to_hex().chars().take(16).collect();
    format!("{place}-")
}

/// Name of the record of a request that was created at `millis` (Unix time): those of one namespace sort together and by time.
pub fn name(namespace: &str, millis: i64, uid: &str) -> String {
    format!("{}{millis:014}-{uid}", place(namespace))
}

/// When the request of a record was created (Unix time in milliseconds) and its UID, read from the record's name.
pub fn parse(name: &str) -> Option<(i64, &str)> {
    let (_, rest) = name.split_once('-')?;
    let (millis, uid) = rest.split_once('-')?;
    Some((millis.parse().ok()?, uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_the_namespace_the_time_and_the_request() {
        let name = name("shop", 1_795_000_000_123, "5f8c2f5e-2f0e-4a55-9d1f-5b8a3d1c7e11");
        assert!(name.starts_with(&place("shop")) && !name.starts_with(&place("shop-2")));
        assert_eq!(
            parse(&name),
            Some((1_795_000_000_123, "5f8c2f5e-2f0e-4a55-9d1f-5b8a3d1c7e11"))
        );
        for text in ["", "abc", "abc-def-g", "abc-1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
