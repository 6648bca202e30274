//! What can go wrong with a repository, and what to do about it.

use std::time::Duration;

use crate::domain::object::digest::InvalidDigest;

/// The single error of this module. Messages say what failed, why, and how to fix it; none holds captured content.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the backend failed; retried already when `transient`.
    #[error("cannot {operation} `{key}` in {backend}: {reason}{}", hint(*transient))]
    Backend {
        /// Which backend, as an operator would name it.
        backend: String,
        /// `write`, `read`, `list` or `delete`.
        operation: &'static str,
        /// Blob key or prefix.
        key: String,
        /// What the backend said.
        reason: String,
        /// Whether trying again later may help.
        transient: bool,
        /// How long the server asked to wait (429, 503).
        retry_after: Option<Duration>,
    },
    /// The operator lacks a right on the backend.
    #[error(
        "not allowed to {operation} `{key}` in {backend}: {reason}; grant the operator this right on the store and it will continue by itself"
    )]
    Forbidden {
        /// Which backend.
        backend: String,
        /// `write`, `read`, `list` or `delete`.
        operation: &'static str,
        /// Blob key or prefix.
        key: String,
        /// What the backend said.
        reason: String,
    },
    /// The store is full by its own limit.
    #[error(
        "the repository in {backend} is full: {used} bytes used, {needed} more needed, {quota} allowed; delete snapshots, raise the quota of the store, or use a SnapshotStore outside of the cluster"
    )]
    QuotaExceeded {
        /// Which backend.
        backend: String,
        /// Bytes stored now.
        used: u64,
        /// Bytes that did not fit.
        needed: u64,
        /// The limit in bytes.
        quota: u64,
    },
    /// Content is damaged or missing. Nothing is restored from it.
    #[error(
        "the repository is damaged: `{blob}`: {problem}; run `kubectl backstep snapshot verify` to see which snapshots are affected and restore the blob from a backup of the store"
    )]
    Corrupt {
        /// Key of the blob.
        blob: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A newer Backstep wrote this repository.
    #[error(
        "`{blob}` has repository format {found}, this Backstep reads up to {supported}; upgrade Backstep to the version that wrote it"
    )]
    NewerFormat {
        /// Key of the blob.
        blob: String,
        /// Format found.
        found: u32,
        /// Newest format this build reads.
        supported: u32,
    },
    /// Garbage collection removed contents that a capture relied on; capturing again stores them anew.
    #[error("contents that this capture relied on were collected meanwhile ({what}); capture again")]
    PackCondemned {
        /// The pack or chunk.
        what: String,
    },
    /// An entry names content that was never put.
    #[error("content {digest} of {what} is not in the repository; put it before adding its entry")]
    MissingChunk {
        /// Address of the content.
        digest: String,
        /// What refers to it.
        what: String,
    },
    /// No snapshot has this UID.
    #[error("the repository has no contents of snapshot {0}; they were deleted, or belong to another store")]
    SnapshotNotFound(String),
    /// The lineage does not have this version.
    #[error("lineage `{lineage}` of namespace `{namespace}` has no version {version}")]
    VersionNotFound {
        /// Namespace of the lineage.
        namespace: String,
        /// Name of the lineage.
        lineage: String,
        /// The missing version.
        version: u64,
    },
    /// Other writers kept winning the race for the next journal record.
    #[error(
        "the journal moved on {attempts} times while this record was being written; another writer is very busy, try again"
    )]
    Contended {
        /// Lost races.
        attempts: u32,
    },
    /// The writer lived too long for garbage collection to still know what it relies on.
    #[error("this capture was open for longer than {limit_hours} hours; capture again")]
    WriterExpired {
        /// Longest life of a writer, in hours.
        limit_hours: i64,
    },
    /// The caller broke a rule of the interface.
    #[error("invalid use of the repository: {0}")]
    Invalid(String),
}

fn hint(transient: bool) -> &'static str {
    if transient { "; it will be tried again" } else { "" }
}

impl Error {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Backend { transient, .. } => *transient,
            Self::Contended { .. } | Self::PackCondemned { .. } | Self::WriterExpired { .. } => true,
            _ => false,
        }
    }

    /// Whether stored content is damaged: nothing may be restored from it.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt { .. })
    }

    /// Whether the whole capture has to be done again (its contents were collected meanwhile).
    pub fn needs_new_capture(&self) -> bool {
        matches!(self, Self::PackCondemned { .. } | Self::WriterExpired { .. })
    }

    pub(super) fn corrupt(blob: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Corrupt {
            blob: blob.into(),
            problem: problem.into(),
        }
    }

    /// How long the server asked to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Backend { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<InvalidDigest> for Error {
    fn from(error: InvalidDigest) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// Result with the repository's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
