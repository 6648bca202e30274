//! The test bed tested: one binary, so that it is linked once.

mod command_line;
mod leftovers;
mod life;
mod pods;
mod support;
mod users;
