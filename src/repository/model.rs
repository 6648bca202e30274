//! What the repository remembers of a snapshot.

use std::sync::Arc;

use jiff::Timestamp;

use super::manifest::BuiltManifest;
use crate::domain::object::{Digest, ObjectId};

/// Format of the contents that this build writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Names a line of versions: a namespace by name, and `spec.lineage`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineageKey {
    /// Namespace name.
    pub namespace: String,
    /// Lineage name.
    pub lineage: String,
}

impl LineageKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, lineage: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            lineage: lineage.into(),
        }
    }
}

/// Where a lineage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineageState {
    /// The version that is live: the newest, or the target of the last rollback. `None` before the first.
    pub head: Option<u64>,
    /// The number that the next snapshot gets; never given twice.
    pub next_version: u64,
}

/// The version that a new snapshot descends from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ParentHint {
    /// The head of the lineage at commit.
    #[default]
    Head,
    /// This version.
    Version(u64),
}

/// Entries of a snapshot, by how they compare with the snapshot it was built upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All entries.
    pub captured: u64,
    /// Same content digest as before.
    pub unchanged: u64,
    /// Not there before.
    pub added: u64,
    /// Another content digest than before.
    pub changed: u64,
    /// There before, not any more.
    pub removed: u64,
}

/// Bytes of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Normalised content of all entries.
    pub logical: u64,
    /// Content that no earlier snapshot had, before compression.
    pub new: u64,
    /// Roughly what the snapshot added to the store: new content and manifest, at the compression ratio of its capture pass.
    pub stored: u64,
}

/// One immutable piece of a manifest. Pieces of one run do not overlap; a higher run overlays the lower ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRef {
    /// Address of the segment.
    pub digest: Digest,
    /// 0 is the base.
    pub run: u32,
    /// Rows within.
    pub entries: u32,
    /// Its first identity, so that one object is found without reading all segments.
    pub first: ObjectId,
}

/// A committed snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// UID of the Snapshot object.
    pub uid: String,
    /// Namespace it was taken of.
    pub namespace: String,
    /// UID of that namespace then.
    pub namespace_uid: String,
    /// Name of the Snapshot object.
    pub name: String,
    /// Lineage name.
    pub lineage: String,
    /// Number in its lineage, from 1.
    pub version: u64,
    /// Version that was live when it was taken.
    pub parent: Option<u64>,
    /// When the capture began, to the millisecond.
    pub created_at: Timestamp,
    /// Who asked for it.
    pub author: Option<String>,
    /// Taken right before a rollback.
    pub safety: bool,
    /// Tags given at creation.
    pub tags: Vec<String>,
    /// Over the entries and the digest extra; see [`SnapshotDigest`](super::SnapshotDigest).
    pub digest: Digest,
    /// Format of its contents.
    pub format_version: u32,
    /// Entries.
    pub counts: Counts,
    /// Bytes.
    pub sizes: Sizes,
    /// The manifest, sorted by run, then identity. Shared between versions that do not differ.
    pub segments: Arc<[SegmentRef]>,
    /// Address of the extras (JSON), when there are any.
    pub extras: Option<Digest>,
    /// SHA-256 of the digest extra, when there is one.
    pub digest_extra: Option<Digest>,
}

impl SnapshotRecord {
    /// The line of versions it belongs to.
    pub fn lineage_key(&self) -> LineageKey {
        LineageKey::new(&self.namespace, &self.lineage)
    }
}

/// A snapshot that is ready to be committed.
#[derive(Debug)]
pub struct SnapshotDraft {
    /// UID of the Snapshot object; committing it twice gives the first record back.
    pub uid: String,
    /// Namespace it was taken of.
    pub namespace: String,
    /// UID of that namespace.
    pub namespace_uid: String,
    /// Name of the Snapshot object.
    pub name: String,
    /// Lineage name.
    pub lineage: String,
    /// Its entries.
    pub manifest: BuiltManifest,
    /// When the capture began.
    pub created_at: Timestamp,
    /// Who asked for it.
    pub author: Option<String>,
    /// Taken right before a rollback.
    pub safety: bool,
    /// Tags given at creation.
    pub tags: Vec<String>,
    /// What it descends from.
    pub parent: ParentHint,
}

/// What the repository holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of packs, journal and checkpoint; packs that wait for deletion not counted.
    pub stored_bytes: u64,
    /// Packs.
    pub packs: usize,
    /// Snapshots.
    pub snapshots: usize,
    /// Most bytes the backend allows.
    pub quota: Option<u64>,
}
