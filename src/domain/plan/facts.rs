//! What a plan is made from: typed observations that the edge gathers. Nothing here is read by the domain itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::Value;

use super::{Content, json};
pub use crate::api::rollback_request::{Conflict, Images, Immutable, Prune, SecretsHandling, Strategy};
use crate::{
    api::snapshot::Component,
    domain::object::{Beside, Digest, ObjectId},
};

/// One object as a snapshot holds it.
#[derive(Clone)]
pub struct Captured<'a> {
    /// Which object.
    pub id: ObjectId,
    /// The component that holds it.
    pub component: Component,
    /// Digest of its canonical content.
    pub digest: Digest,
    /// Its canonical content. May be left out where the live object has the same digest.
    pub content: Option<&'a Content>,
    /// What the snapshot keeps beside the content.
    pub beside: Option<&'a Arc<Beside>>,
    /// Whether its Secret values are fingerprints only, so that they cannot be written back.
    pub fingerprints_only: bool,
    /// For Jobs: whether it was finished when it was captured; `None` is not known.
    pub finished: Option<bool>,
}

/// One object as it is now.
#[derive(Clone)]
pub struct Live<'a> {
    /// Which object.
    pub id: ObjectId,
    /// The component that would hold it.
    pub component: Component,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// Digest of its canonical content.
    pub digest: Digest,
    /// Its canonical content.
    pub content: &'a Content,
    /// The object as the server gave it.
    pub raw: &'a Value,
    /// Whether the snapshot's own capture rules would have taken it in.
    pub in_capture: bool,
}

impl Live<'_> {
    /// Whether another controller answers for it; such objects are never written.
    pub fn has_controller(&self) -> bool {
        json::list(self.raw, &["metadata", "ownerReferences"]).any(|owner| json::is_true(owner, &["controller"]))
    }

    /// Whether it is being deleted.
    pub fn is_terminating(&self) -> bool {
        json::at(self.raw, &["metadata", "deletionTimestamp"]).is_some_and(|time| !time.is_null())
    }

    /// Who owns its fields; none where the server did not say.
    pub fn managed_fields(&self) -> &[Value] {
        json::at(self.raw, &["metadata", "managedFields"])
            .and_then(Value::as_array)
            .map_or(&[], Vec::as_slice)
    }

    /// When it was created, to the second; `None` where the server did not say.
    pub fn created(&self) -> Option<Timestamp> {
        json::text(self.raw, &["metadata", "creationTimestamp"])?.parse().ok()
    }

    /// For Jobs: whether it has finished, well or badly.
    pub fn is_finished_job(&self) -> bool {
        is_finished_job(self.raw)
    }
}

/// Whether `job`, as the server gave it, has finished, well or badly.
pub fn is_finished_job(job: &Value) -> bool {
    json::list(job, &["status", "conditions"]).any(|condition| {
        matches!(json::text(condition, &["type"]), Some("Complete" | "Failed"))
            && json::text(condition, &["status"]) == Some("True")
    })
}

/// What is known of an owner that a captured object refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It lives, under this UID.
    Live(String),
    /// It is absent, and this plan creates it: its UID is known once it is there.
    Planned,
    /// It is absent and stays so.
    Gone,
    /// It could not be read. Not the same as gone.
    Unknown,
    /// It is owned by the object that it owns: neither could be created first.
    Circle,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How much comes back.
    pub strategy: Strategy,
    /// With [`Strategy::Selective`]: the objects that the request's filters select, captured and live ones.
    pub selected: BTreeSet<ObjectId>,
    /// The components that the request names. `Policy`, `Infrastructure` and `Databases` come back only when named.
    pub components: BTreeSet<Component>,
    /// Objects that the request preserves whatever else it says.
    pub preserved: BTreeSet<ObjectId>,
    /// Whether consumers of changed configuration are restarted.
    pub cascade: bool,
    /// Objects created since.
    pub prune: Prune,
    /// Objects that moved since the plan was approved.
    pub conflict: Conflict,
    /// Immutable fields.
    pub immutable: Immutable,
    /// Secrets that changed.
    pub secrets: SecretsHandling,
    /// Images: with `AsCaptured` nothing is pinned.
    pub images: Images,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            strategy: Strategy::Full,
            selected: BTreeSet::new(),
            components: BTreeSet::new(),
            preserved: BTreeSet::new(),
            cascade: true,
            prune: Prune::None,
            conflict: Conflict::Overwrite,
            immutable: Immutable::Fail,
            secrets: SecretsHandling::Restore,
            images: Images::Auto,
        }
    }
}

/// An image reference that a workload must come back with, because its tag has moved since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The workload.
    pub workload: ObjectId,
    /// The container or init container.
    pub container: String,
    /// `repo:tag@sha256:…`
    pub reference: String,
}

/// Everything else that a plan depends on.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// When the snapshot was begun; objects created before it are not pruned. `None` is not known: nothing is pruned.
    pub snapshot_started: Option<Timestamp>,
    /// Group and kind of everything that the capture listed, kinds without objects included.
    pub captured_kinds: BTreeSet<(String, String)>,
    /// Group and kind of captured objects that the server does not serve now.
    pub unserved: BTreeSet<(String, String)>,
    /// Owners that are neither among the live objects nor created by the plan; an owner missing here is [`Owner::Unknown`].
    pub owners: BTreeMap<ObjectId, Owner>,
    /// Images to pin.
    pub pins: Vec<Pin>,
    /// What the server makes of writes whatever they say, as dry runs showed.
    pub put_back: super::PutBack,
    /// With [`Conflict::KeepLive`] and [`Conflict::FailOnDrift`]: the objects that moved since the approved plan.
    pub drifted: BTreeSet<ObjectId>,
}

/// A plan is made from what was captured, what is there now, what was asked for and the rest.
#[derive(Clone)]
pub struct Inputs<'a> {
    /// The snapshot's objects, each identity once.
    pub captured: &'a [Captured<'a>],
    /// The live objects of the same kinds, each identity once.
    pub live: &'a [Live<'a>],
    /// What is asked for.
    pub options: &'a Options,
    /// The rest.
    pub facts: &'a Facts,
}
