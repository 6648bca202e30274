//! One object: its identity, what of it is content, its digest, and how two of its states differ.

pub mod digest;
pub mod identity;

pub use digest::Digest;
pub use identity::ObjectId;
