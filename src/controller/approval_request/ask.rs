//! The question: which policy applies, and the `ApprovalRequest` that asks its people.

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ListParams, ObjectMeta, PostParams},
};

use super::{gather, status};
use crate::{
    api::{
        ApprovalPolicy, ApprovalRequest, ApprovalRequestSpec, ApprovalRequestStatus, RollbackPlan, RollbackRequest,
        approval_request::{ApprovalPhase, RequestKind, RequestReference},
        duration, names, reasons,
        reference::{Principal, ResolvedSnapshot, RiskLevel},
        snapshot::Component,
    },
    capture::Failure,
    cluster::{Class, Result as CallResult, call, clock},
    controller::context::Context,
    domain::approval::{
        Chosen, Exclusions, NoRoute, People, Route, choose as choose_policy,
        policy::{Candidate, Requests, Subject, Traits, within},
        state,
    },
};

/// Most `ApprovalRequests` of one plan in one guard epoch.
const MOST_TRIES: u32 = 32;
/// Longest part of an `ApprovalRequest`'s name that comes from its request.
const NAME_LENGTH: usize = 220;

/// What the policies look at, beside the request itself.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// Risk of the plan.
    pub risk: RiskLevel,
    /// What in the plan must not be approved by itself.
    pub traits: Traits,
    /// Components that come back.
    pub components: &'a BTreeSet<Component>,
    /// The snapshot that is gone back to.
    pub snapshot: &'a ResolvedSnapshot,
}

/// What came of asking.
#[derive(Clone, Debug)]
pub enum Asked {
    /// It is asked; where the answer stands is in its status.
    There(Box<ApprovalRequest>),
    /// Admission policies or kinds changed a moment ago; nobody is asked before this time.
    Settling {
        /// When to ask again.
        until: Timestamp,
    },
    /// Something else has to happen first.
    Held {
        /// Reason of the condition.
        reason: &'static str,
        /// What, why and how to fix.
        message: String,
    },
}

/// Chooses the policy for a request and its plan.
///
/// # Errors
/// Policies, namespace or snapshot cannot be read.
pub async fn choose(
    context: &Context,
    request: &RollbackRequest,
    asking: &Asking<'_>,
) -> Result<Result<Chosen, NoRoute>, Failure> {
    let namespace = request.namespace().unwrap_or_default();
    let policies: Api<ApprovalPolicy> = Api::all(context.client.clone());
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(context.client.clone());
    let every = ListParams::default();
    let what = format!("get namespace {namespace}");
    let (policies, found, author) = tokio::try_join!(
        call::repeat("list approvalpolicies", call::DEADLINE, || policies.list(&every)),
        call::repeat(&what, call::DEADLINE, || namespaces.get(&namespace)),
        gather::snapshot_author(context, &namespace, &asking.snapshot.name, &asking.snapshot.uid),
    )?;
    let spec = &request.spec;
    let asked_by = spec.requested_by.clone().unwrap_or_default();
    let groups = match &spec.on_behalf_of {
        Some(served) => served.groups.clone(),
        None => asked_by.groups,
    };
    let exclusions = Exclusions {
        namespace,
        requested_by: asked_by.username.unwrap_or_default(),
        on_behalf_of: spec.on_behalf_of.as_ref().map(|served| served.username.clone()),
        runs_as: spec.service_account_name.clone(),
        snapshot_author: author,
    };
    let candidates: Vec<Candidate<'_>> = policies
        .items
        .iter()
        .filter(|policy| policy.metadata.deletion_timestamp.is_none())
        .map(|policy| Candidate {
            name: policy.metadata.name.as_deref().unwrap_or_default(),
            uid: policy.metadata.uid.as_deref().unwrap_or_default(),
            generation: policy.metadata.generation.unwrap_or_default(),
            spec: &policy.spec,
        })
        .collect();
    Ok(choose_policy(
        &candidates,
        &Subject {
            namespace_labels: found.labels(),
            risk: asking.risk,
            components: asking.components,
            strategy: spec.strategy,
            reason: spec.reason.as_ref().map(|reason| reason.type_).unwrap_or_default(),
            requester_groups: groups.as_deref().unwrap_or_default(),
            exclusions: &exclusions,
            traits: asking.traits,
            emergency: spec.emergency.is_some(),
        },
    ))
}

/// Asks: creates the `ApprovalRequest` of this plan in this guard epoch, or finds it. One that was superseded is followed by
/// another of the next number.
///
/// # Errors
/// The API server cannot be asked.
pub async fn ask(
    context: &Context,
    request: &RollbackRequest,
    plan: &RollbackPlan,
    chosen: &Chosen,
) -> Result<Asked, Failure> {
    let guard = context.look_at_guard().await;
    let (Some(epoch), Some(settled), true) = (&guard.epoch, guard.settled, guard.missing.is_empty()) else {
        return Ok(Asked::Held {
            reason: reasons::GUARD_UNHEALTHY,
            message: format!(
                "nobody is asked until the guard is in place: {}",
                guard.missing.join("; ")
            ),
        });
    };
    let namespace = request.namespace().unwrap_or_default();
    let api: Api<ApprovalRequest> = Api::namespaced(context.client.clone(), &namespace);
    for number in 1..=MOST_TRIES {
        let name = name_of(request, &plan.spec.digest, epoch, number);
        let what = format!("get approvalrequest {namespace}/{name}");
        let Some(found) = call::repeat(&what, call::DEADLINE, || api.get_opt(&name)).await? else {
            if clock::now() < settled {
                return Ok(Asked::Settling { until: settled });
            }
            if let Some(message) = too_many(context, request, chosen).await? {
                return Ok(Asked::Held {
                    reason: reasons::LIMIT_REACHED,
                    message,
                });
            }
            return create(context, request, plan, chosen, epoch, name).await;
        };
        let own = found.spec.request_ref.uid == request.uid().unwrap_or_default()
            && found.spec.plan_digest == plan.spec.digest
            && found.spec.policy == chosen.policy;
        match found.status.as_ref().and_then(|status| status.phase) {
            Some(phase) if own && phase != ApprovalPhase::Superseded => return Ok(Asked::There(Box::new(found))),
            // Its maker did not live to say in which epoch it was made.
            None if own => {
                void(
                    context,
                    &found,
                    "it was created without a guard epoch; it is asked for again",
                )
                .await?;
            }
            _ => {}
        }
    }
    let message = format!("the plan was asked for {MOST_TRIES} times and superseded each time; make a new request");
    Err(Failure::new(Class::Invalid, reasons::SUPERSEDED, message))
}

/// `<request>-<plan>-<epoch>`, from the second on with a number.
fn name_of(request: &RollbackRequest, plan_digest: &str, epoch: &str, number: u32) -> String {
    let start =
        |digest: &str, length: usize| -> String { digest.trim_start_matches("sha256:").chars().take(length).collect() };
    let own: String = request.name_any().chars().take(NAME_LENGTH).collect();
    let name = format!("{own}-{}-{}", start(plan_digest, 8), start(epoch, 6));
    if number > 1 { format!("{name}-{number}") } else { name }
}

/// The limit of the policy that is reached, for people. Requests that were superseded and asked for again are one.
async fn too_many(context: &Context, request: &RollbackRequest, chosen: &Chosen) -> CallResult<Option<String>> {
    let Some(limits) = &chosen.limits else {
        return Ok(None);
    };
    let everywhere = limits.open_per_requester.is_some();
    let namespace = request.namespace().unwrap_or_default();
    let all = gather::approvals(context, (!everywhere).then_some(namespace.as_str())).await?;
    let policy = gather::policy(context, &chosen.policy.name).await?;
    let people = People::new(policy.as_ref().map_or(&[], |policy| policy.spec.aliases.as_slice()));
    let own = request.uid().unwrap_or_default();
    let effective =
        |requester: Option<&str>, served: Option<&str>| people.person(served.or(requester).unwrap_or_default());
    let me = effective(
        request.spec.requested_by.as_ref().and_then(|by| by.username.as_deref()),
        request
            .spec
            .on_behalf_of
            .as_ref()
            .map(|served| served.username.as_str()),
    );
    let hour_ago = clock::now()
        .checked_sub(SignedDuration::from_hours(1))
        .unwrap_or(Timestamp::MIN);
    let (mut open, mut of_requester, mut recent) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for approval in all.iter().filter(|approval| approval.spec.request_ref.uid != own) {
        let spec = &approval.spec;
        let phase = approval
            .status
            .as_ref()
            .and_then(|status| status.phase)
            .unwrap_or_default();
        let is_open = !state::is_final(phase) && !state::is_used(phase);
        let here = approval.namespace().as_deref() == Some(namespace.as_str());
        let served = spec.on_behalf_of.as_ref().map(|served| served.username.as_str());
        let uid = spec.request_ref.uid.as_str();
        if is_open && here {
            open.insert(uid);
        }
        if is_open && effective(Some(&spec.requester.username), served) == me {
            of_requester.insert(uid);
        }
        let created = approval.metadata.creation_timestamp.as_ref();
        if here && created.is_some_and(|created| created.0 > hour_ago) {
            recent.insert(uid);
        }
    }
    let requests = Requests {
        open_in_namespace: open.len(),
        open_of_requester: of_requester.len(),
        in_last_hour: recent.len(),
    };
    Ok(within(Some(limits), requests)
        .err()
        .map(|reached| format!("ApprovalPolicy {}: {reached}", chosen.policy.name)))
}

async fn create(
    context: &Context,
    request: &RollbackRequest,
    plan: &RollbackPlan,
    chosen: &Chosen,
    epoch: &str,
    name: String,
) -> Result<Asked, Failure> {
    let spec = &request.spec;
    let asked_by = spec.requested_by.clone().unwrap_or_default();
    let own_time = spec
        .timeouts
        .as_ref()
        .and_then(|times| duration::parse(&times.approval).ok());
    let time = own_time.map_or(chosen.request_ttl, |own| own.min(chosen.request_ttl));
    let (stages, emergency) = match &chosen.route {
        Route::Stages(stages) | Route::Automatic(stages) => (stages.clone(), false),
        Route::BreakGlass { stages, .. } => (stages.clone(), true),
    };
    let reason = spec.reason.clone().unwrap_or_default();
    let why = spec.emergency.as_ref().map(|emergency| emergency.justification.clone());
    let approval = ApprovalRequest {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: request.namespace(),
            owner_references: Some(vec![OwnerReference {
                api_version: RollbackRequest::api_version(&()).into_owned(),
                kind: RollbackRequest::kind(&()).into_owned(),
                name: request.name_any(),
                uid: request.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: ApprovalRequestSpec {
            request_ref: RequestReference {
                kind: RequestKind::RollbackRequest,
                name: request.name_any(),
                uid: request.uid().unwrap_or_default(),
            },
            requester: Principal {
                username: asked_by.username.unwrap_or_default(),
                uid: asked_by.uid,
                groups: asked_by.groups,
            },
            on_behalf_of: spec.on_behalf_of.as_ref().map(|served| Principal {
                username: served.username.clone(),
                uid: None,
                groups: served.groups.clone(),
            }),
            policy: chosen.policy.clone(),
            plan_digest: plan.spec.digest.clone(),
            plan_ref: Some(plan.name_any()),
            risk: Some(plan.spec.risk.level),
            emergency: emergency.then_some(true),
            ticket: reason.metadata.get("ticket").cloned(),
            reason: why.or(reason.message),
            not_before: None,
            expires_at: later(time),
            stages,
        },
        status: None,
    };
    let namespace = request.namespace().unwrap_or_default();
    let api: Api<ApprovalRequest> = Api::namespaced(context.client.clone(), &namespace);
    let params = PostParams {
        field_manager: Some(names::FIELD_MANAGER.into()),
        ..PostParams::default()
    };
    let what = format!("create approvalrequest {namespace}/{name}");
    // Not repeated blindly: one that is there by now is found, and voided, at the next look.
    let created = call::once(&what, call::DEADLINE, api.create(&params, &approval)).await?;
    let asked = begin(context, &created, epoch, emergency).await?;
    Ok(Asked::There(Box::new(asked)))
}

/// Whole seconds from now.
fn later(time: Duration) -> Time {
    let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
    let now = clock::now_time();
    Time(now.0.checked_add(time).unwrap_or(Timestamp::MAX))
}

/// Writes the first status: the epoch that decisions count in, sealed, and who is to decide first.
async fn begin(
    context: &Context,
    created: &ApprovalRequest,
    epoch: &str,
    emergency: bool,
) -> Result<ApprovalRequest, Failure> {
    let key = context.key().await?;
    let (phase, reason, message) = if emergency {
        let message = "break-glass: it may run at once, and others must acknowledge it afterwards";
        (ApprovalPhase::BreakGlass, reasons::BREAK_GLASS, message)
    } else {
        let message = "asked for approval; nobody has decided yet";
        (ApprovalPhase::Pending, reasons::AWAITING_APPROVAL, message)
    };
    let mut status = ApprovalRequestStatus {
        observed_generation: created.metadata.generation,
        phase: Some(phase),
        guard_epoch: Some(epoch.to_owned()),
        seal: gather::seal_of(&key, created, epoch, &[]),
        current_stage: first_stage(created, phase),
        ..ApprovalRequestStatus::default()
    };
    status::describe(&mut status, created, phase, reason, message);
    let asked = status::replace(context, created, status).await?;
    status::moved(context, &asked, phase, reason, message).await;
    Ok(asked)
}

/// The stage that is decided first: whoever sees that approval is awaited finds it, before any decision was counted.
fn first_stage(created: &ApprovalRequest, phase: ApprovalPhase) -> Option<String> {
    let mut waiting = created.spec.stages.iter().filter(|stage| stage.required > 0);
    let first = waiting.next().map(|stage| stage.name.clone());
    first.filter(|_| phase == ApprovalPhase::Pending)
}

/// Ends one that nobody can decide on, because it has no status.
pub(super) async fn void(context: &Context, approval: &ApprovalRequest, message: &str) -> CallResult<()> {
    let phase = ApprovalPhase::Superseded;
    let mut status = ApprovalRequestStatus {
        observed_generation: approval.metadata.generation,
        phase: Some(phase),
        ..approval.status.clone().unwrap_or_default()
    };
    status::describe(&mut status, approval, phase, reasons::SUPERSEDED, message);
    status::replace(context, approval, status).await.map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked_of(stages: &serde_json::Value) -> ApprovalRequest {
        serde_json::from_value(json!({
            "apiVersion": "backstep.dev/v1alpha1", "kind": "ApprovalRequest", "metadata": {"name": "undo", "namespace": "shop"},
            "spec": {
                "requestRef": {"kind": "RollbackRequest", "name": "undo", "uid": "1"},
                "requester": {"username": "alice"}, "policy": {"name": "p", "uid": "2", "generation": 1, "digest": "sha256:0"},
                "planDigest": "sha256:0", "expiresAt": "2026-01-01T00:00:00Z", "stages": stages,
            },
        }))
        .unwrap()
    }

    #[test]
    fn the_first_status_names_the_stage_that_is_decided_first() {
        let two = asked_of(&json!([{"name": "owners", "required": 1}, {"name": "sre", "required": 2}]));
        assert_eq!(first_stage(&two, ApprovalPhase::Pending).as_deref(), Some("owners"));
        assert_eq!(
            first_stage(&two, ApprovalPhase::BreakGlass),
            None,
            "nobody is waited for"
        );
        let automatic = asked_of(&json!([{"name": "owners", "required": 0}]));
        assert_eq!(first_stage(&automatic, ApprovalPhase::Pending), None);
    }
}
