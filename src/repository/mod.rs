//! Captured contents: content-addressed, deduplicated, verified end to end.
//!
//! Everything is an immutable blob on a [`Backend`]; the one truth is a journal whose next record can be created only once. Knows no custom
//! resource and decides nothing about what to keep. `docs/adr/0002-repository-as-a-journal.md` says why it is built this way.

pub mod backend;
mod codec;
mod core;
mod error;
mod index;
mod journal;
mod maintain;
mod manifest;
mod model;
mod pack;
mod packer;
mod records;
mod shared;
mod state;
mod verify;
mod writer;

pub use self::{
    backend::{Backend, BlobInfo, Put, object_store::ObjectStoreBackend, secrets::SecretsBackend},
    core::{Options, Repository},
    error::{Error, Result},
    index::{Address, ShortDigest},
    maintain::MaintenanceReport,
    manifest::{
        BuiltManifest, Entry, KindHeader, ManifestBuilder, ManifestReader, SharedKind, SnapshotDigest, uid_mark,
    },
    model::{
        Counts, FORMAT_VERSION, LineageKey, LineageState, ParentHint, SegmentRef, Sizes, SnapshotDraft, SnapshotRecord,
        Usage,
    },
    pack::{FrameGroup, PackId, PackRecord},
    records::Room,
    verify::{Finding, Progress, VerifyReport},
    writer::Writer,
};

#[cfg(test)]
#[cfg(feature = "operator")]
mod tests;
