//! What Backstep decides. No I/O, no clock, no environment, no randomness.

pub mod component;
pub mod lifecycle;
pub mod object;
pub mod snapshot;
