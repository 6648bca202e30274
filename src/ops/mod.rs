//! What a verb of the command line and a test both need. Nothing here prints or parses arguments.

pub mod approval;
pub mod contents;
pub mod create;
pub mod delete;
pub mod diff;
pub mod doctor;
pub mod duration;
pub mod error;
pub mod export;
pub mod facts;
pub mod history;
pub mod list;
pub mod live;
pub mod reference;
pub mod report;
pub mod retained;
pub mod rollback;
pub mod session;
pub mod show;
pub mod status;
pub mod store;
pub mod tag;
pub mod timeline;
pub mod verify;
pub mod wait;
pub mod yaml;

pub use error::{Class, Error, Result};
pub use reference::{Reference, resolve};
pub use session::{ConnectOptions, Session};
