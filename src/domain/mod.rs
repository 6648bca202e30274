//! What Backstep decides. No I/O, no clock, no environment, no randomness.

pub mod object;
