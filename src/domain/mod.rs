//! What Backstep decides. No I/O, no clock, no environment, no randomness.

pub mod approval;
pub mod component;
pub mod lifecycle;
pub mod object;
pub mod plan;
pub mod snapshot;
