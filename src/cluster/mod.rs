//! Every call to the API server. Carries facts in and writes out; decides nothing.

pub mod access;
pub mod call;
pub mod client;
pub mod clock;
pub mod crds;
pub mod discovery;
pub mod error;
pub mod guard;
pub mod key;
pub mod lease;
pub mod list;
pub mod metadata;
pub mod watch;
pub mod write;

pub use error::{Class, Error, Result};
