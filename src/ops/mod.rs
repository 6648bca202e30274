//! What a verb of the command line and a test both need. Nothing here prints or parses arguments.

pub mod create;
pub mod delete;
pub mod doctor;
pub mod duration;
pub mod error;
pub mod facts;
pub mod list;
pub mod reference;
pub mod repository;
pub mod session;
pub mod status;
pub mod store;
pub mod tag;
pub mod wait;

pub use error::{Class, Error, Result};
pub use reference::{Reference, resolve};
pub use session::{ConnectOptions, Session};
