//! What Backstep decides. No I/O, no clock, no environment, no randomness.

pub mod approval;
pub mod component;
pub mod gitops;
pub mod health;
pub mod lifecycle;
pub mod object;
pub mod plan;
pub mod record;
pub mod report;
pub mod rollback;
pub mod snapshot;
pub mod target;
pub mod verify;
