//! Reads live objects through the rules of the domain and hands them to a sink: the repository's writer when a Snapshot is
//! taken, a comparison when one is held against live. Nothing is ever held whole.

mod kinds;
mod pass;
mod read;
mod rows;
mod target;

pub use kinds::{Catalog, WantedKind};
pub use pass::{Options, Pass, run};
pub use rows::{METADATA_FROM, is_settled, single_reads};
pub use target::{Captured, Failure, Target, TargetReport};

use async_trait::async_trait;

use crate::{
    domain::object::{Digest, Normalised},
    repository::ShortDigest,
};

/// An object that belongs to a target, as it was read.
#[derive(Debug)]
pub struct Observed {
    /// Index of the target that it belongs to.
    pub target: usize,
    /// Its content.
    pub object: Normalised,
}

/// An object as a list's metadata names it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Index of the target that it may belong to.
    pub target: usize,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
}

/// What a sink holds of an object from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Address of its normalised content.
    pub content: Digest,
    /// Bytes of its normalised content.
    pub size: u32,
    /// Address of what is kept beside it.
    pub beside: Option<ShortDigest>,
}

/// An object that belongs to a target.
#[derive(Debug)]
pub enum Item {
    /// It was read.
    Read(Observed),
    /// It did not change since the sink took it.
    Same(Identity, Known),
}

/// Where captured objects go.
///
/// A sink that holds objects from before spares the pass to read them: [`expects`](Self::expects) and [`known`](Self::known) say what
/// it holds, and [`take_all`](Self::take_all) takes it over. By default a sink knows nothing, and everything is read.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Takes objects of one kind, at most a page of them; a target's objects of a kind come in the server's order.
    ///
    /// # Errors
    /// The pass ends with this failure.
    async fn take(&self, kind: &WantedKind, objects: Vec<Observed>) -> Result<(), Failure>;

    /// How many objects of `kind` the sink holds for `targets`, roughly.
    fn expects(&self, _kind: &WantedKind, _targets: &[usize]) -> u64 {
        0
    }

    /// What the sink holds of each object, if it is the same object at the same resourceVersion, read by the same rules. A target's
    /// objects of a kind come in the server's order.
    ///
    /// # Errors
    /// The pass ends with this failure.
    async fn known(&self, _kind: &WantedKind, objects: &[Identity]) -> Result<Vec<Option<Known>>, Failure> {
        Ok(vec![None; objects.len()])
    }

    /// Containers and images of a workload that the sink said to know, as [`ImageStatus::workload`](crate::api::snapshot::ImageStatus)
    /// names it. `None`: they are not known, so that it is read whole where images are wanted.
    fn images(&self, _target: usize, _workload: &str) -> Option<&[(String, String)]> {
        None
    }

    /// As [`take`](Self::take), with objects among them that the sink said to know.
    ///
    /// # Errors
    /// The pass ends with this failure.
    async fn take_all(&self, kind: &WantedKind, items: Vec<Item>) -> Result<(), Failure> {
        let read = items.into_iter().filter_map(|item| match item {
            Item::Read(observed) => Some(observed),
            Item::Same(..) => None,
        });
        self.take(kind, read.collect()).await
    }
}
