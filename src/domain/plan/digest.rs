//! What an approval is bound to.

use std::collections::{BTreeSet, HashMap};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Action, Drafted, Item, Plan, items::AT_ONCE};
use crate::{
    api::rollback_request::Conflict,
    domain::object::{Digest, FingerprintKey, ObjectId, canonical},
};

/// Version of the form that is digested; a change of it voids what was approved before.
pub const SCHEMA_VERSION: u32 = 1;

/// What a plan is a plan of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// UID of the cluster (that of the namespace `kube-system`).
    pub cluster: String,
    /// UID of the `RollbackRequest`.
    pub request_uid: String,
    /// Digest of its spec, without `requestedBy`, `suspend` and `cancel`.
    pub request_digest: Digest,
    /// UID of the Snapshot.
    pub snapshot_uid: String,
    /// Digest of the Snapshot.
    pub snapshot_digest: Digest,
    /// The user whose rights the rollback uses.
    pub acting_user: String,
    /// Digest of the `ApprovalPolicy`; `None` where none matches (nothing is approved then).
    pub policy_digest: Option<Digest>,
    /// Hooks, as canonical JSON of the request's spec; `Null` without.
    pub hooks: Value,
    /// Verification, likewise.
    pub tests: Value,
}

/// State of a plan that an approval can be bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    digest: Digest,
    binding: Binding,
    items: Vec<BoundItem>,
}

/// What of an item an approval is bound to. Digests of Secrets are keyed: they are no oracle for guesses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BoundItem {
    /// The object.
    pub object: ObjectId,
    /// What happens to it.
    pub action: String,
    /// Immutable fields of a Recreate, causes of a Restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<String>,
    /// When.
    pub order: u16,
    /// UID of the live object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_uid: Option<String>,
    /// Digest of the live object, after the live-wins rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_digest: Option<Digest>,
    /// Digest of what it becomes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_digest: Option<Digest>,
}

/// The digest of an object as plans show it: keyed for Secrets, whose plain digest would let anybody test guesses.
pub fn item_digest(id: &ObjectId, digest: Digest, key: &FingerprintKey) -> Digest {
    if !id.group.is_empty() || id.kind != "Secret" {
        return digest;
    }
    let keyed = key.fingerprint("backstep.dev/plan", digest.as_bytes());
    let text = keyed.rsplit_once(':').map_or(keyed.as_str(), |(_, digits)| digits);
    // A fingerprint is 64 hex digits; anything else would still be keyed.
    format!("sha256:{text}")
        .parse()
        .unwrap_or_else(|_| Digest::of(keyed.as_bytes()))
}

impl BoundItem {
    /// Whether `self` does no more than `approved`: it is the same, or a restart for fewer causes.
    fn is_within(&self, approved: &Self) -> bool {
        self == approved
            || (self.action == "Restart"
                && self.because.iter().all(|cause| approved.because.contains(cause))
                && Self {
                    because: approved.because.clone(),
                    ..self.clone()
                } == *approved)
    }

    fn of(item: &Item, key: &FingerprintKey) -> Self {
        let because = match &item.action {
            Action::Recreate(fields) => fields.clone(),
            Action::Restart(causes) => causes.iter().map(ToString::to_string).collect(),
            Action::Create | Action::Update | Action::Delete | Action::Keep(_) | Action::Skip(_) => Vec::new(),
        };
        let shown = |digest| item_digest(&item.id, digest, key);
        Self {
            object: item.id.clone(),
            action: item.action.name().to_owned(),
            because,
            order: item.order,
            live_uid: item.live.as_ref().map(|live| live.uid.clone()),
            live_digest: item.live.as_ref().map(|live| shown(live.digest)),
            target_digest: item.target_digest.map(shown),
        }
    }
}

/// `planDigest` of `approval.md` §5: SHA-256 over canonical JSON of the schema version, the binding and every item that writes.
///
/// Items that do nothing are no part of it: they follow from the request, the snapshot and the live state, and an object that
/// the rollback does not touch may change without voiding an approval. One that becomes something to do enters the digest.
pub fn plan_digest(binding: &Binding, items: &[BoundItem]) -> Digest {
    canonical::digest(&json!({
        "schemaVersion": SCHEMA_VERSION,
        "cluster": binding.cluster,
        "request": {"uid": binding.request_uid, "digest": binding.request_digest},
        "snapshot": {"uid": binding.snapshot_uid, "digest": binding.snapshot_digest},
        "actingUser": binding.acting_user,
        "policyDigest": binding.policy_digest,
        "hooks": binding.hooks,
        "tests": binding.tests,
        "items": items.par_iter().with_min_len(AT_ONCE).map(|item| json!(item)).collect::<Vec<_>>(),
    }))
}

impl Plan<Drafted> {
    /// Binds the plan to what it is a plan of.
    pub fn bind(self, binding: Binding, key: &FingerprintKey) -> Plan<Bound> {
        let writes: Vec<&Item> = self.writes().collect();
        let bound = writes.par_iter().with_min_len(AT_ONCE);
        let items: Vec<BoundItem> = bound.map(|item| BoundItem::of(item, key)).collect();
        Plan {
            items: self.items,
            unchanged: self.unchanged,
            state: Bound {
                digest: plan_digest(&binding, &items),
                binding,
                items,
            },
        }
    }
}

/// How a plan that was made again compares with the approved one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// It is the same.
    Same,
    /// It does less: these objects moved and stay as they are (`conflict: KeepLive`).
    Narrower(Vec<ObjectId>),
    /// It does something else to these objects, or is bound to something else (then empty): approval is void.
    Different(Vec<ObjectId>),
}

impl Plan<Bound> {
    /// `planDigest`.
    pub const fn digest(&self) -> Digest {
        self.state.digest
    }

    /// What the plan is bound to.
    pub const fn binding(&self) -> &Binding {
        &self.state.binding
    }

    /// What of its items is bound, in order; kept with the approval to compare later.
    pub fn bound_items(&self) -> &[BoundItem] {
        &self.state.items
    }

    /// Objects that moved since `approved` was bound: another UID or live digest, or nothing was planned for them. With
    /// [`Conflict::KeepLive`] the plan is built again with these as [`super::Facts::drifted`].
    pub fn drifted_since(&self, approved: &[BoundItem]) -> Vec<ObjectId> {
        let approved = ByObject::of(approved);
        objects(self.state.items.iter().filter(|now| {
            !approved
                .of_same(now)
                .any(|then| then.live_uid == now.live_uid && then.live_digest == now.live_digest)
        }))
    }

    /// Compares this plan, just made from live, with the approved one: its digest and its items. Doing less is accepted with
    /// [`Conflict::KeepLive`] only, and only where `approved` proves to be what was approved.
    pub fn compare(&self, approved_digest: Digest, approved: &[BoundItem], conflict: Conflict) -> Match {
        if self.digest() == approved_digest {
            return Match::Same;
        }
        if plan_digest(self.binding(), approved) != approved_digest {
            return Match::Different(Vec::new());
        }
        let now = &self.state.items;
        let (by_then, by_now) = (ByObject::of(approved), ByObject::of(now));
        let more = objects(
            now.iter()
                .filter(|item| !by_then.of_same(item).any(|then| item.is_within(then))),
        );
        let less = objects(
            approved
                .iter()
                .filter(|then| !by_now.of_same(then).any(|item| item.is_within(then))),
        );
        match conflict {
            Conflict::KeepLive if more.is_empty() => Match::Narrower(less),
            Conflict::KeepLive => Match::Different(more),
            Conflict::Overwrite | Conflict::FailOnDrift => {
                let both: BTreeSet<ObjectId> = more.into_iter().chain(less).collect();
                Match::Different(both.into_iter().collect())
            }
        }
    }
}

/// Items by their object: one may have several.
struct ByObject<'a>(HashMap<&'a ObjectId, Vec<&'a BoundItem>>);

impl<'a> ByObject<'a> {
    fn of(items: &'a [BoundItem]) -> Self {
        let mut map: HashMap<&ObjectId, Vec<&BoundItem>> = HashMap::with_capacity(items.len());
        for item in items {
            map.entry(&item.object).or_default().push(item);
        }
        Self(map)
    }

    fn of_same(&self, item: &BoundItem) -> impl Iterator<Item = &'a BoundItem> {
        self.0.get(&item.object).into_iter().flatten().copied()
    }
}

fn objects<'a>(items: impl Iterator<Item = &'a BoundItem>) -> Vec<ObjectId> {
    let ids: BTreeSet<&ObjectId> = items.map(|item| &item.object).collect();
    ids.into_iter().cloned().collect()
}

#[cfg(test)]
#[path = "digest_tests.rs"]
mod tests;
