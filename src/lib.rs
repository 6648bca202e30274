//! Backstep.
