//! Reads live objects through the rules of the domain and hands them to a sink: the repository's writer when a Snapshot is
//! taken, a comparison when one is held against live. Nothing is ever held whole.

mod kinds;
mod pass;
mod read;
mod target;

pub use kinds::{Catalog, WantedKind};
pub use pass::{Options, Pass, run};
pub use target::{Captured, Failure, Target, TargetReport};

use async_trait::async_trait;

use crate::domain::object::Normalised;

/// An object that belongs to a target.
#[derive(Debug)]
pub struct Observed {
    /// Index of the target that it belongs to.
    pub target: usize,
    /// Its content.
    pub object: Normalised,
}

/// Where captured objects go.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Takes objects of one kind, at most a page of them; a target's objects of a kind come in the server's order.
    ///
    /// # Errors
    /// The pass ends with this failure.
    async fn take(&self, kind: &WantedKind, objects: Vec<Observed>) -> Result<(), Failure>;
}
