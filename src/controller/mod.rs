//! The operator: one controller a kind, and what they share.

pub mod context;
pub mod operator;
pub mod snapshot;
pub mod store;
