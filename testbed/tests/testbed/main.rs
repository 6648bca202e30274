//! The test bed tested: one binary, so that it is linked once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod command_line;
mod leftovers;
mod life;
mod pods;
mod support;
mod users;
