//! One object: its identity, what of it is content, its digest, and how two of its states differ.

pub mod canonical;
pub mod diff;
pub mod digest;
pub mod identity;
pub mod normalise;
pub mod secret;
pub mod shape;
#[cfg(test)]
pub(crate) mod testing;

pub use diff::{ChangeKind, FieldChange, ObjectDiff, diff, unified};
pub use digest::Digest;
pub use identity::ObjectId;
pub use normalise::{Beside, KindInfo, NormaliseError, Normalised, SecretValues, normalise};
pub use secret::FingerprintKey;
pub use shape::{ListShape, OrderHints, apply_order};
