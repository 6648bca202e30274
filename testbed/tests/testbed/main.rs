//! The test bed tested: one binary, so that programs are looked up and linked once.

mod clusters;
mod support;
