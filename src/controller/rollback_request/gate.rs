//! What the gate asks, read just now, and the way through it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt as _};
use serde::{Deserialize, Serialize};

use super::{
    plan::{self, Made},
    preflight,
};
use crate::{
    api::{
        RollbackRequest, Snapshot,
        reference::{Identity, ResolvedSnapshot},
        rollback_request::Conflict,
    },
    capture::Failure,
    cluster::{call, clock},
    controller::{approval_request::ApprovalFacts, context::Context},
    domain::{
        approval::gate::{Gate, Known, Target},
        object::{Digest, canonical},
        plan::{Bound, Plan, PutBack, digest::BoundItem, put_back},
    },
    repository::{Put, Repository, Room},
};

/// How long a request without a `requestId` is remembered by namespace, name and spec (`product.md` rule 11).
const REMEMBERED: jiff::SignedDuration = jiff::SignedDuration::from_hours(30 * 24);

/// What an approval is bound to, kept from before anybody was asked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Approved {
    /// UID of the namespace when the plan was made.
    pub namespace_uid: String,
    /// The items of the plan.
    pub items: Vec<BoundItem>,
    /// What the server puts back whatever is written: the plan is the same only where this is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub put_back: Vec<put_back::Entry>,
}

impl Approved {
    /// What the server puts back.
    pub fn put_back(&self) -> PutBack {
        put_back::from_entries(self.put_back.clone())
    }
}

/// One execution that there was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Executed {
    /// Its `executionID`.
    pub execution: String,
    /// UID of the request.
    pub request_uid: String,
    /// When its approval was used up.
    pub at: Timestamp,
}

/// Whose rights a rollback uses: the one it serves, else who asked.
pub(super) fn acting(request: &RollbackRequest) -> Option<Identity> {
    if let Some(whom) = &request.spec.on_behalf_of {
        return Some(Identity {
            username: Some(whom.username.clone()),
            uid: None,
            groups: whom.groups.clone(),
        });
    }
    let by = request.spec.requested_by.clone()?;
    by.username.is_some().then_some(by)
}

/// UID of the namespace of `request` now; `None` where it is gone.
pub(super) async fn namespace_uid(
    context: &Context,
    request: &RollbackRequest,
) -> crate::cluster::Result<Option<String>> {
    let name = request.namespace().unwrap_or_default();
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let what = format!("get namespace {name}");
    let found = call::repeat(&what, call::DEADLINE, || namespaces.get_opt(&name)).await?;
    Ok(found.and_then(|namespace| namespace.uid()))
}

/// Gathers the gate's questions, each by a quorum read.
pub(super) async fn facts(
    context: &Context,
    request: &RollbackRequest,
    made: &Made,
    plan: &Plan<Bound>,
    approval: &ApprovalFacts,
    approved: &Approved,
) -> Gate {
    let executed = match super::repository(context) {
        Ok(repository) => ledger(&repository, request).await.map_err(|e| e.to_string()),
        Err(failure) => Err(failure.message),
    };
    let request_uid = request.uid().unwrap_or_default();
    let executed = match executed {
        Ok(entry) => Known::Is(entry.map(|entry| entry.execution)),
        Err(why) => Known::Unknown(why),
    };
    let (target, snapshot, rights) = tokio::join!(
        target(context, request),
        snapshot(context, request, &made.resolved),
        preflight::missing_rights(context, request, &made.sides, plan)
    );
    Gate {
        now: clock::now(),
        namespace_uid: approved.namespace_uid.clone(),
        request_uid,
        guard: approval.guard.clone(),
        target: known(target),
        approval: approval.approval.clone(),
        hold: approval.hold.clone(),
        policy_digest: approval.policy_digest.clone(),
        verdict: approval.verdict.clone(),
        snapshot: known(snapshot),
        approved_items: approved.items.clone(),
        conflict: request.spec.conflict,
        risk: made.risk.level,
        missing_rights: known(rights),
        executed,
    }
}

fn known<T, E: std::fmt::Display>(answer: Result<T, E>) -> Known<T> {
    match answer {
        Ok(value) => Known::Is(value),
        Err(error) => Known::Unknown(error.to_string()),
    }
}

async fn target(context: &Context, request: &RollbackRequest) -> Result<Target, crate::cluster::Error> {
    let name = request.namespace().unwrap_or_default();
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let requests: Api<RollbackRequest> = Api::namespaced(context.client.clone(), &name);
    let what = format!("get namespace {name}");
    let namespace = call::repeat(&what, call::DEADLINE, || namespaces.get_opt(&name)).await?;
    let of = request.name_any();
    let what = format!("get rollbackrequest {name}/{of}");
    let live = call::repeat(&what, call::DEADLINE, || requests.get_opt(&of)).await?;
    // An absent one has no UID, which is never the one that was asked for.
    Ok(Target {
        namespace_uid: namespace.as_ref().and_then(kube::ResourceExt::uid).unwrap_or_default(),
        namespace_terminating: namespace.is_some_and(|n| n.metadata.deletion_timestamp.is_some()),
        request_uid: live.as_ref().and_then(kube::ResourceExt::uid).unwrap_or_default(),
        request_terminating: live.as_ref().is_some_and(|r| r.metadata.deletion_timestamp.is_some()),
        suspended: live.as_ref().is_some_and(|r| r.spec.suspend),
        cancelled: live.as_ref().is_some_and(|r| r.spec.cancel),
    })
}

/// UID and digest of the Snapshot as it is now.
async fn snapshot(
    context: &Context,
    request: &RollbackRequest,
    resolved: &ResolvedSnapshot,
) -> Result<Option<(String, Digest)>, crate::cluster::Error> {
    let namespace = request.namespace().unwrap_or_default();
    let api: Api<Snapshot> = Api::namespaced(context.client.clone(), &namespace);
    let what = format!("get snapshot {namespace}/{}", resolved.name);
    let found = call::repeat(&what, call::DEADLINE, || api.get_opt(&resolved.name)).await?;
    Ok(found.and_then(|snapshot| {
        let digest = snapshot.status.as_ref()?.digest.as_ref()?.parse().ok()?;
        Some((snapshot.uid()?, digest))
    }))
}

/// The items that the approval of the plan `digest` is bound to.
pub(super) async fn approved(
    repository: &Repository,
    request: &RollbackRequest,
    digest: Digest,
) -> Result<Option<Approved>, Failure> {
    let name = plan::items_name(request, digest);
    repository
        .document(Room::Plans, &name)
        .await
        .map_err(|e| super::store_failure(&e))
}

/// Name under which an execution of `request` is remembered, and whether for ever.
fn ledger_name(request: &RollbackRequest) -> (String, bool) {
    let namespace = request.namespace().unwrap_or_default();
    let (key, for_ever) = match request.spec.request_id.as_deref().filter(|id| !id.is_empty()) {
        Some(id) => (serde_json::json!(["requestId", namespace, id]), true),
        None => (
            serde_json::json!(["spec", namespace, request.name_any(), plan::bound_spec(request)]),
            false,
        ),
    };
    (canonical::digest(&key).to_hex(), for_ever)
}

/// The execution that the ledger holds under the name of `request`: its own, or one that it repeats.
pub(super) async fn ledger(
    repository: &Repository,
    request: &RollbackRequest,
) -> Result<Option<Executed>, crate::repository::Error> {
    let (name, for_ever) = ledger_name(request);
    let entry: Option<Executed> = repository.document(Room::Ledger, &name).await?;
    Ok(entry.filter(|entry| {
        for_ever
            || Some(&entry.request_uid) == request.uid().as_ref()
            || clock::now().duration_since(entry.at) < REMEMBERED
    }))
}

/// Enters `execution` into the ledger; returns the entry that is there now, which may be another's.
pub(super) async fn enter(
    repository: &Repository,
    request: &RollbackRequest,
    execution: &str,
) -> Result<Executed, crate::repository::Error> {
    let (name, _) = ledger_name(request);
    if let Some(entry) = ledger(repository, request).await? {
        return Ok(entry);
    }
    let entry = Executed {
        execution: execution.to_owned(),
        request_uid: request.uid().unwrap_or_default(),
        at: clock::now(),
    };
    // One that is too old to count makes way.
    repository.delete_document(Room::Ledger, &name).await?;
    match repository.put_document(Room::Ledger, &name, &entry).await? {
        Put::Created => Ok(entry),
        Put::AlreadyExists => Ok(ledger(repository, request).await?.unwrap_or(entry)),
    }
}

/// The plan that may still be the approved one: with `KeepLive`, objects that moved since stay as they are.
pub(super) fn narrowed(
    made: &Made,
    plan: Plan<Bound>,
    conflict: Conflict,
    approved: &Approved,
    digest: Digest,
) -> Result<Plan<Bound>, Failure> {
    if conflict != Conflict::KeepLive || plan.digest() == digest {
        return Ok(plan);
    }
    let drifted: BTreeSet<_> = plan.drifted_since(&approved.items).into_iter().collect();
    if drifted.is_empty() {
        return Ok(plan);
    }
    made.keeping(drifted)
}
