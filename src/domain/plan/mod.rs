//! What a rollback would do: facts in, a plan out. Nothing here reads or writes a cluster.
//!
//! captured and live objects → [`desired`] (what each should become) → [`items`] (what to do about it) → [`order`] (when) →
//! [`risk`] (how dangerous) → [`digest`] (what an approval is bound to).

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use crate::{
    api::{names, snapshot::Component},
    domain::object::{Digest, FingerprintKey, ListShape, ObjectId, diff},
};

mod again;
pub mod consumers;
pub mod desired;
pub mod digest;
pub mod facts;
mod fields;
pub mod immutable;
pub mod items;
mod json;
pub mod order;
pub mod put_back;
mod quantity;
pub mod quota;
pub mod risk;
pub mod scope;
#[cfg(test)]
pub(crate) mod testing;
pub mod widening;
mod workload;
pub mod write;

pub use again::{Again, Now};
pub use desired::{Content, Desired, KeptField, KeptReason};
pub use digest::{Binding, Bound};
pub use facts::{Captured, Facts, Inputs, Live, Options, Owner, Pin};
pub use items::build;
pub use put_back::PutBack;

/// A plan that is not bound to a cluster, a request and a policy yet: it may be shown and rated, not approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drafted;

/// What a rollback would do, item by item, in order. `State` is [`Drafted`] or [`Bound`].
#[derive(Clone, Debug, PartialEq)]
pub struct Plan<State> {
    items: Vec<Item>,
    unchanged: usize,
    state: State,
}

/// One thing that a rollback does, or does not do although live and target differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// What happens.
    pub action: Action,
    /// To which object.
    pub id: ObjectId,
    /// The component that holds it.
    pub component: Component,
    /// When, 0 to 1000: items of one number may run in parallel, a number starts when the one before is done.
    pub order: u16,
    /// The object as it is now; `None` where it is absent.
    pub live: Option<LiveState>,
    /// What it should become; `None` where nothing is written or it goes.
    pub desired: Option<Desired>,
    /// Digest of the target without the fields in which live wins; `None` where the target holds no such object. A plain
    /// digest: of a Secret it goes nowhere but through [`digest::item_digest`].
    pub target_digest: Option<Digest>,
    /// Why this plan may not run because of this item.
    pub refusal: Option<Refusal>,
    /// What a reader should know besides.
    pub notes: Vec<Note>,
}

impl Item {
    /// The live and the future content of an item that writes content or deletes.
    fn states(&self) -> (Option<&Value>, Option<&Value>) {
        let now = self.live.as_ref().map(|live| &*live.content);
        match &self.action {
            Action::Create | Action::Update | Action::Recreate(_) | Action::Delete => {
                (now, self.desired.as_ref().map(|wanted| &*wanted.content))
            }
            Action::Keep(_) | Action::Skip(_) | Action::Restart(_) => (None, None),
        }
    }

    /// Field by field, from live to target; values of Secrets are fingerprints. Empty where no content is written.
    pub fn diff(&self, shape: &ListShape, key: &FingerprintKey) -> diff::ObjectDiff {
        let (now, then) = self.states();
        diff::diff(now, then, shape, key)
    }

    /// As unified text, from live to target; values of Secrets are fingerprints. Empty where no content is written.
    pub fn unified(&self, shape: &ListShape, key: &FingerprintKey) -> String {
        let (now, then) = self.states();
        diff::unified(now, then, shape, key)
    }
}

/// The live object that an item was planned against.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveState {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// Digest of its content without the fields in which live wins: what an autoscaler does, does not move it. A plain digest:
    /// of a Secret it goes nowhere but through [`digest::item_digest`].
    pub digest: Digest,
    /// Its canonical content.
    pub content: Content,
    /// `metadata.managedFields` as the server gave it.
    pub managed_fields: Vec<Value>,
    /// [`write::state`]: whether it is still the same, status and bookkeeping aside.
    pub state: Digest,
}

/// What happens to an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Captured, absent now.
    Create,
    /// Different.
    Update,
    /// Different in these fields, which cannot be changed.
    Recreate(Vec<String>),
    /// Created since the snapshot.
    Delete,
    /// Different, and left as it is.
    Keep(KeepReason),
    /// Not restorable.
    Skip(SkipReason),
    /// Reads changed configuration, these objects, and would not notice.
    Restart(Vec<ObjectId>),
}

impl Action {
    /// Whether anything is written.
    pub const fn writes(&self) -> bool {
        match self {
            Self::Create | Self::Update | Self::Recreate(_) | Self::Delete | Self::Restart(_) => true,
            Self::Keep(_) | Self::Skip(_) => false,
        }
    }

    /// `Create`, `Update` …: without reasons.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Create => "Create",
            Self::Update => "Update",
            Self::Recreate(_) => "Recreate",
            Self::Delete => "Delete",
            Self::Keep(_) => "Keep",
            Self::Skip(_) => "Skip",
            Self::Restart(_) => "Restart",
        }
    }

    /// The reason, `CamelCase`, of an item that does nothing.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Keep(reason) => Some(format!("{reason:?}")),
            Self::Skip(reason) => Some(format!("{reason:?}")),
            Self::Create | Self::Update | Self::Recreate(_) | Self::Delete | Self::Restart(_) => None,
        }
    }
}

/// Why an object that differs stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeepReason {
    /// The request preserves it.
    Excluded,
    /// The request's filters do not select it.
    NotSelected,
    /// The request does not name its component.
    ComponentNotNamed,
    /// It differs only in fields in which live wins.
    LiveWins,
    /// It differs only in what the API server puts back whatever is written.
    KeptByServer,
    /// It runs the captured images, pinned.
    Pinned,
    /// Helm's own record of its releases.
    HelmHistory,
    /// A Secret that changed since; `secrets: KeepLive`.
    SecretKeptLive,
    /// It moved since the plan was approved; `conflict: KeepLive`.
    Drifted,
    /// Created since; `prune: None`.
    NotPruned,
    /// Created since, and its kind or an annotation forbids to prune it.
    Protected,
    /// Not captured although older than the snapshot, or of unknown age.
    NotCreatedSince,
    /// Created since, of a kind that the snapshot did not look at.
    KindNotCaptured,
    /// It grants rights on Backstep itself, or is one of its policies.
    BackstepRights,
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Excluded => "the request preserves it",
            Self::NotSelected => "the request's objects do not select it",
            Self::ComponentNotNamed => "the request does not name its component; add it to components to bring it back",
            Self::LiveWins => "it differs only in fields in which the live value wins",
            Self::KeptByServer => "it differs only in what the API server or an admission policy puts back",
            Self::Pinned => "it runs the captured images already, pinned by digest",
            Self::HelmHistory => "Helm's own record of its releases is never written",
            Self::SecretKeptLive => "the Secret changed since the snapshot and secrets is KeepLive",
            Self::Drifted => "it changed after the plan was approved and conflict is KeepLive",
            Self::NotPruned => "it was created since the snapshot; set prune: Created to delete it",
            Self::Protected => "it was created since the snapshot, and its kind or an annotation forbids pruning",
            Self::NotCreatedSince => {
                "the snapshot does not hold it, and it is not known to be younger; delete it by hand"
            }
            Self::KindNotCaptured => "the snapshot did not look at its kind",
            Self::BackstepRights => "rights on Backstep and its own policies are never restored",
        })
    }
}

/// Why an object cannot be brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SkipReason {
    /// A Job that has finished, or is not known not to have: it would run again.
    FinishedJob,
    /// The server does not serve the kind, and the plan does not bring its definition back.
    KindNotServed,
    /// A controller owns the live object; bring back its owner.
    ControllerOwned,
    /// It is being deleted.
    Terminating,
    /// The snapshot holds only fingerprints of its values.
    ValuesNotCaptured,
    /// Only images come back, and there is no such workload now.
    WorkloadAbsent,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FinishedJob => {
                "the Job has finished, or is not known not to have: bringing it back would run it again"
            }
            Self::KindNotServed => {
                "the server no longer serves its kind; install its definition, or exclude the object"
            }
            Self::ControllerOwned => "a controller owns the live object now; bring back its owner",
            Self::Terminating => "it is being deleted; wait until it is gone, or release its finalizers",
            Self::ValuesNotCaptured => "the snapshot holds fingerprints of its values only (secrets: Fingerprint)",
            Self::WorkloadAbsent => "only images come back, and the workload is gone; add Workloads to components",
        })
    }
}

/// Why a plan may not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// An immutable field differs and the request says `immutable: Fail`.
    ImmutableField,
    /// The request says `immutable: Recreate`, which does not exist yet.
    RecreateNotAvailable,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ImmutableField => "it differs in a field that cannot be changed; preserve it with objects.exclude, or delete it by hand first",
            Self::RecreateNotAvailable => {
                "deleting and creating again is not available yet; preserve it with objects.exclude, or delete it by hand first"
            }
        })
    }
}

/// What a reader of a plan should know about an item.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// This captured field does not come back.
    Kept(KeptField),
    /// The image of this container is pinned by digest; the owner's next apply may conflict on that field.
    Pinned(String),
    /// `backstep.dev/restore-order` holds something else than a number from 0 to 99; the kind's own place is used.
    OrderIgnored(String),
    /// The live Secret is newer than the snapshot in these keys.
    SecretKeysChanged(Vec<String>),
    /// A write of it was cut short before its former owners came back.
    Unfinished,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept(field) => write!(f, "{} stays: {}", field.path, field.reason),
            Self::Pinned(container) => write!(f, "the image of container {container} is pinned by digest"),
            Self::OrderIgnored(text) => {
                write!(
                    f,
                    "{} is `{text}`, not a number from 0 to 99: ignored",
                    names::ORDER_ANNOTATION
                )
            }
            Self::SecretKeysChanged(keys) => write!(f, "live is newer than the snapshot in {}", keys.join(", ")),
            Self::Unfinished => {
                f.write_str("an earlier rollback was cut short before the owners of its fields came back")
            }
        }
    }
}

/// How many objects each action is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Objects that come back.
    pub create: usize,
    /// Objects that change.
    pub update: usize,
    /// Objects that are deleted and created.
    pub recreate: usize,
    /// Objects that go.
    pub delete: usize,
    /// Objects that differ and stay.
    pub keep: usize,
    /// Objects that cannot be brought back.
    pub skip: usize,
    /// Workloads that restart.
    pub restart: usize,
    /// Objects that are as they were.
    pub unchanged: usize,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// One identity twice.
    #[error("{0} is listed twice; the snapshot's manifest or the list of live objects is damaged")]
    Duplicate(ObjectId),
    /// A content that the plan needs was not given.
    #[error(
        "the content of {0} is needed, because live differs from the snapshot, and was not read from the repository"
    )]
    ContentMissing(ObjectId),
    /// Live moved since the approved plan, and the request says `FailOnDrift`.
    #[error("{} changed since the plan was approved and conflict is FailOnDrift; make a new request, or use Overwrite or KeepLive", listed(.0.iter()))]
    Drift(Vec<ObjectId>),
}

/// The first five names, and how many there are besides.
pub(crate) fn listed(names: impl ExactSizeIterator<Item = impl ToString>) -> String {
    const SHOWN: usize = 5;
    let more = names.len().saturating_sub(SHOWN);
    let text = names
        .take(SHOWN)
        .map(|name| name.to_string())
        .collect::<Vec<_>>()
        .join(", ");
    if more > 0 {
        format!("{text} and {more} more")
    } else {
        text
    }
}

impl<State> Plan<State> {
    /// What happens, in order; within one order number by identity.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Items that write something.
    pub fn writes(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.action.writes())
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.writes().next().is_none()
    }

    /// Why the plan may not run, item by item; it may where this is empty.
    pub fn refusals(&self) -> impl Iterator<Item = (&ObjectId, Refusal)> {
        self.items.iter().filter_map(|item| Some((&item.id, item.refusal?)))
    }

    /// Counts by action.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary {
            unchanged: self.unchanged,
            ..Summary::default()
        };
        for item in &self.items {
            *match &item.action {
                Action::Create => &mut summary.create,
                Action::Update => &mut summary.update,
                Action::Recreate(_) => &mut summary.recreate,
                Action::Delete => &mut summary.delete,
                Action::Keep(_) => &mut summary.keep,
                Action::Skip(_) => &mut summary.skip,
                Action::Restart(_) => &mut summary.restart,
            } += 1;
        }
        summary
    }

    /// Items by what they write to; the restart of an updated workload is another item of the same object.
    pub fn by_object(&self) -> BTreeMap<&ObjectId, Vec<&Item>> {
        let mut map: BTreeMap<&ObjectId, Vec<&Item>> = BTreeMap::new();
        for item in &self.items {
            map.entry(&item.id).or_default().push(item);
        }
        map
    }
}
