//! The kinds of `backstep.dev/v1alpha1` as users write them. CRDs are generated from here.

pub mod conditions;
pub mod duration;
pub mod names;
pub mod reference;
pub mod snapshot;

pub use snapshot::{Snapshot, SnapshotSpec, SnapshotStatus};
