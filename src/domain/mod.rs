//! What Backstep decides. No I/O, no clock, no environment, no randomness.

pub mod approval;
pub mod object;
pub mod plan;
