//! Manifests: which objects a snapshot holds, in identity order, as immutable segments that versions share.

mod buffer;
mod builder;
mod cursor;
mod reader;
pub(super) mod segment;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub(super) use buffer::{Buffer, SPILL_ROW_BYTES};
pub use builder::{BuiltManifest, ManifestBuilder};
pub(super) use cursor::{ChunkSource, Cursor};
pub use reader::ManifestReader;

use super::{
    error::{Error, Result},
    index::ShortDigest,
};
use crate::domain::object::{Digest, ObjectId};

/// A kind as it was served when captured. Group and kind are the identity; the rest is what a restore needs to find it again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KindHeader {
    /// API group, empty for core.
    pub group: String,
    /// Version it was read in.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Resource name in URLs.
    pub plural: String,
    /// Component it belongs to.
    pub component: String,
    /// Whether its objects live in a namespace.
    pub namespaced: bool,
}

/// The first 8 hex digits of a `metadata.uid`. With the name and the resource version, which the API server gives once, they tell an object
/// from a later one even after etcd was restored from a backup and counts again.
pub fn uid_mark(uid: &str) -> String {
    uid.chars().filter(|c| *c != '-').take(8).collect()
}

/// One captured object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `metadata.name`, at most 1,024 bytes.
    pub name: String,
    /// Address of its normalised content.
    pub content: Digest,
    /// Bytes of its normalised content.
    pub size: u32,
    /// Address of what is kept beside it, outside of the snapshot's digest.
    pub beside: Option<ShortDigest>,
    /// What tells the object from another one of its name, see [`uid_mark`]; other texts are kept as they are.
    pub uid: String,
    /// `metadata.resourceVersion` as captured.
    pub resource_version: String,
}

impl Entry {
    /// Its identity, given its kind.
    pub fn id(&self, kind: &KindHeader) -> ObjectId {
        ObjectId::new(&kind.group, &kind.kind, &self.name)
    }
}

/// The digest of a snapshot: SHA-256 over, for each entry in identity order, group, kind and name, each as a 4-byte little-endian length and
/// its bytes, then the 32 bytes of its content digest; and at the end the SHA-256 of the digest extra, where there is one.
///
/// Versions, UIDs, resource versions and what is kept beside are not part of it, nor is the layout of the manifest.
#[derive(Clone, Default)]
pub struct SnapshotDigest(Sha256);

impl SnapshotDigest {
    /// Of no entries yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next entry; the caller keeps the order.
    pub fn entry(&mut self, group: &str, kind: &str, name: &str, content: &Digest) {
        for text in [group, kind, name] {
            self.0
                .update(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            self.0.update(text);
        }
        self.0.update(content.as_bytes());
    }

    /// The digest, given the SHA-256 of the digest extra.
    pub fn finish(mut self, extra: Option<&Digest>) -> Digest {
        if let Some(extra) = extra {
            self.0.update(extra.as_bytes());
        }
        Digest::from_bytes(self.0.finalize().into())
    }
}

/// The key that manifests are sorted by.
pub(super) type SortKey<'a> = (&'a str, &'a str, &'a str);

pub(super) fn sort_key<'a>(kind: &'a KindHeader, name: &'a str) -> SortKey<'a> {
    (&kind.group, &kind.kind, name)
}

/// A kind that is shared by many entries of a stream.
pub type SharedKind = Arc<KindHeader>;

fn damaged(digest: &Digest, problem: &str) -> Error {
    Error::corrupt(format!("manifest segment {digest}"), problem)
}
