//! What is captured for one Snapshot (or one comparison), and what came of it.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use crate::{
    api::snapshot::{Component, ImageStatus, SkipCount},
    cluster::{self, Class},
    domain::{
        object::FingerprintKey,
        snapshot::{ImageResolver, References, Selection, Skips},
    },
};

/// One namespace through one selection.
pub struct Target {
    /// The namespace.
    pub namespace: String,
    /// What of it.
    pub selection: Selection,
    /// Key for `secrets: Fingerprint`.
    pub fingerprint_key: Option<FingerprintKey>,
    /// Whether claims are listed as skipped because their data is not captured.
    pub lists_volume_data: bool,
    pub(super) seen: Mutex<Seen>,
}

/// What has been seen of a target so far.
#[derive(Default)]
pub(super) struct Seen {
    pub skips: Skips,
    pub references: References,
    pub images: ImageResolver,
    pub captured: Vec<(Component, i64)>,
    pub unfinished_jobs: BTreeSet<String>,
    pub failure: Option<Failure>,
}

/// What became of a target.
#[derive(Debug)]
pub struct TargetReport {
    /// Everything was read, or why not.
    pub outcome: Result<Captured, Failure>,
}

/// Counts and images of a target that was read whole.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    /// UID of the namespace.
    pub namespace_uid: String,
    /// Objects handed to the sink, by component.
    pub components: Vec<(Component, i64)>,
    /// What was left out.
    pub skipped: Vec<SkipCount>,
    /// What really ran.
    pub images: Vec<ImageStatus>,
    /// Captured Jobs that have not finished, by name.
    pub unfinished_jobs: BTreeSet<String>,
}

/// Why something could not be captured.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Whether to try again.
    pub class: Class,
    /// Reason of the condition.
    pub reason: &'static str,
    /// What, why and how to fix.
    pub message: String,
}

impl Failure {
    /// A failure of `class`.
    pub fn new(class: Class, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            class,
            reason,
            message: message.into(),
        }
    }
}

impl From<cluster::Error> for Failure {
    fn from(error: cluster::Error) -> Self {
        Self::new(error.class(), crate::api::reasons::API_UNAVAILABLE, error.to_string())
    }
}

impl Target {
    /// A target of which nothing has been seen.
    pub fn new(namespace: impl Into<String>, selection: Selection, fingerprint_key: Option<FingerprintKey>) -> Self {
        Self {
            namespace: namespace.into(),
            selection,
            fingerprint_key,
            lists_volume_data: true,
            seen: Mutex::default(),
        }
    }

    pub(super) fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the first failure; the rest of the target is not read.
    pub(super) fn fail(&self, failure: Failure) {
        self.seen().failure.get_or_insert(failure);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.seen().failure.is_some()
    }
}
