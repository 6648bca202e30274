//! What belongs to a snapshot.

mod extras;
mod images;
mod references;
mod selection;
mod skips;
mod verdict;

pub use extras::{Extras, KindRead};
pub use images::{ImageResolver, workload_name};
pub use references::References;
pub(in crate::domain) use selection::matches_glob;
pub use selection::{Selection, SelectionError};
pub use skips::Skips;
pub use verdict::{KindRule, ObjectVerdict, Verdict, resource_verdict};
