//! The operator: one controller a kind, and what they share.

pub mod answers;
pub mod approval_policy;
pub mod approval_request;
pub mod context;
pub mod earlier;
pub mod operator;
pub mod rollback_request;
pub mod snapshot;
pub mod store;
pub mod tasks;
