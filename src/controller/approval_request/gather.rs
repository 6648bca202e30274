//! What is known of an `ApprovalRequest`: by quorum reads made just now, and fresh access reviews of whoever decided.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use jiff::Timestamp;
use kube::{Api, ResourceExt as _, api::ListParams};

use crate::{
    api::{
        ApprovalDecision, ApprovalPolicy, ApprovalPolicySpec, ApprovalRequest, ApprovalRequestSpec, RollbackRequest,
        Snapshot,
        approval_request::{ApprovalPhase, RecordedDecision},
        names,
        reference::{Identity, Principal},
    },
    cluster::{
        Result,
        access::{self, Question},
        call, clock,
    },
    controller::context::{Context, Guard},
    domain::{
        approval::{
            Ballot, Exclusions, People, Tally, Vote,
            course::{PolicyFact, RequestFact},
            policy::policy_digest,
            seal::{Sealed, seal},
            tally,
            vote::{Access, Evidence, stage_key, verb},
        },
        object::{Digest, FingerprintKey},
        rollback,
    },
};

/// Decisions read at once.
const PAGE: u32 = 500;
/// Access reviews made at once.
const REVIEWS_AT_ONCE: usize = 8;

/// The request that is approved; `None` where there is none of this name.
pub(super) async fn request(context: &Context, namespace: &str, name: &str) -> Result<Option<RollbackRequest>> {
    let api: Api<RollbackRequest> = Api::namespaced(context.client.clone(), namespace);
    let what = format!("get rollbackrequest {namespace}/{name}");
    call::repeat(&what, call::DEADLINE, || api.get_opt(name)).await
}

/// What the request means for its approval.
pub(super) fn request_fact(spec: &ApprovalRequestSpec, request: Option<&RollbackRequest>) -> RequestFact {
    let Some(request) = request else {
        return RequestFact::Withdrawn("the RollbackRequest is gone");
    };
    let phase = request
        .status
        .as_ref()
        .and_then(|status| status.phase)
        .unwrap_or_default();
    if request.uid().as_deref() != Some(spec.request_ref.uid.as_str()) {
        RequestFact::Withdrawn("the RollbackRequest was deleted and created again; the new one needs its own approval")
    } else if request.metadata.deletion_timestamp.is_some() {
        RequestFact::Withdrawn("the RollbackRequest is being deleted")
    } else if rollback::is_final(phase) {
        RequestFact::Withdrawn("the RollbackRequest has ended")
    } else if request.spec.cancel {
        RequestFact::Withdrawn("the RollbackRequest was cancelled")
    } else {
        RequestFact::Open
    }
}

/// The policy of this name now.
pub(super) async fn policy(context: &Context, name: &str) -> Result<Option<ApprovalPolicy>> {
    let api: Api<ApprovalPolicy> = Api::all(context.client.clone());
    let what = format!("get approvalpolicy {name}");
    call::repeat(&what, call::DEADLINE, || api.get_opt(name)).await
}

/// Digest of the policy, where it is the one that was frozen and not another of the same name.
pub(super) fn digest_of(spec: &ApprovalRequestSpec, policy: Option<&ApprovalPolicy>) -> Option<Digest> {
    policy
        .filter(|policy| policy.uid().as_deref() == Some(spec.policy.uid.as_str()))
        .and_then(|policy| policy_digest(&policy.spec).ok())
}

/// What became of the policy since.
pub(super) fn policy_fact(spec: &ApprovalRequestSpec, policy: Option<&ApprovalPolicy>) -> PolicyFact {
    match digest_of(spec, policy) {
        None => PolicyFact::Gone,
        Some(digest) if digest.to_string() == spec.policy.digest => PolicyFact::Same,
        Some(_) => PolicyFact::Changed,
    }
}

/// Every decision that names this `ApprovalRequest` by its UID.
pub(super) async fn decisions(context: &Context, approval: &ApprovalRequest) -> Result<Vec<ApprovalDecision>> {
    let namespace = approval.namespace().unwrap_or_default();
    let uid = approval.uid().unwrap_or_default();
    let api: Api<ApprovalDecision> = Api::namespaced(context.client.clone(), &namespace);
    let what = format!("list approvaldecisions of {namespace}/{}", approval.name_any());
    let mut params = ListParams::default()
        .fields(&format!("spec.requestRef.uid={uid}"))
        .limit(PAGE);
    let mut decisions = Vec::new();
    loop {
        let page = call::repeat(&what, call::PAGE_DEADLINE, || api.list(&params)).await?;
        decisions.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(decisions),
        }
    }
}

/// User name of whose wish a snapshot was; `None` where it is gone.
pub(super) async fn snapshot_author(
    context: &Context,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<Option<String>> {
    let api: Api<Snapshot> = Api::namespaced(context.client.clone(), namespace);
    let what = format!("get snapshot {namespace}/{name}");
    let snapshot = call::repeat(&what, call::DEADLINE, || api.get_opt(name)).await?;
    Ok(snapshot
        .filter(|snapshot| snapshot.uid().as_deref() == Some(uid))
        .and_then(|snapshot| {
            let served = snapshot.spec.on_behalf_of.map(|served| served.username);
            served.or(snapshot.spec.requested_by.and_then(|by| by.username))
        }))
}

/// Who may not decide. `Err` says why that is not known, which lets nobody decide.
async fn exclusions(
    context: &Context,
    approval: &ApprovalRequest,
    request: Option<&RollbackRequest>,
    policy: Option<&ApprovalPolicySpec>,
) -> Result<Result<Exclusions, String>> {
    let namespace = approval.namespace().unwrap_or_default();
    let username = |principal: &Principal| principal.username.clone();
    let mut exclusions = Exclusions {
        requested_by: username(&approval.spec.requester),
        on_behalf_of: approval.spec.on_behalf_of.as_ref().map(username),
        runs_as: request.and_then(|request| request.spec.service_account_name.clone()),
        snapshot_author: None,
        namespace,
    };
    if policy.is_some_and(|policy| policy.exclude_snapshot_author) {
        let status = request.and_then(|request| request.status.as_ref());
        let Some(resolved) = status.and_then(|status| status.resolved.as_ref()) else {
            return Ok(Err(
                "the snapshot is not known yet, so its author cannot be excluded".to_owned()
            ));
        };
        exclusions.snapshot_author =
            snapshot_author(context, &exclusions.namespace, &resolved.name, &resolved.uid).await?;
    }
    Ok(Ok(exclusions))
}

/// Counts the decisions at the time `now`; `Err` says why they cannot be counted.
pub(super) async fn count(
    context: &Context,
    approval: &ApprovalRequest,
    request: Option<&RollbackRequest>,
    policy: Option<&ApprovalPolicy>,
    guard: &Guard,
    decisions: &[ApprovalDecision],
    now: Timestamp,
) -> Result<Result<Tally, String>> {
    let spec = &approval.spec;
    let policy = policy.map(|policy| &policy.spec);
    let exclusions = match exclusions(context, approval, request, policy).await? {
        Ok(exclusions) => exclusions,
        Err(why) => return Ok(Err(why)),
    };
    let Ok(plan_digest) = spec.plan_digest.parse() else {
        return Ok(Err("its planDigest is no digest".to_owned()));
    };
    let people = People::new(policy.map_or(&[], |policy| policy.aliases.as_slice()));
    let uid = approval.uid().unwrap_or_default();
    let created = created(approval.metadata.creation_timestamp.as_ref());
    let status = approval.status.clone().unwrap_or_default();
    // Nobody is asked before the epoch has settled, and an equal epoch was not touched in between.
    let epoch = if status.guard_epoch.is_some() && status.guard_epoch == guard.epoch {
        created
    } else {
        guard.settled.unwrap_or(Timestamp::MAX)
    };
    let ballot = Ballot {
        request_uid: &uid,
        plan_digest,
        policy: &spec.policy.name,
        stages: &spec.stages,
        created,
        expires: spec.expires_at.0,
        phase: status.phase.unwrap_or_default(),
        approved: status.approved_at.as_ref().map(|time| time.0),
        epoch,
        exclusions: &exclusions,
        people: &people,
        require_comment: policy.is_some_and(|policy| policy.require_comment),
    };
    let access = reviews(context, spec, decisions).await;
    let votes: Vec<Vote<'_>> = decisions
        .iter()
        .map(|decision| vote(decision, access.get(&asks(decision)).copied()))
        .collect();
    Ok(Ok(tally(&ballot, &votes, now)))
}

/// A server's timestamp; one that is missing is later than any deadline.
fn created(time: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>) -> Timestamp {
    time.map_or(Timestamp::MAX, |time| time.0)
}

fn vote(decision: &ApprovalDecision, access: Option<Access>) -> Vote<'_> {
    let spec = &decision.spec;
    let approver = spec.approver.as_ref();
    Vote {
        uid: decision.metadata.uid.as_deref().unwrap_or_default(),
        username: approver.and_then(|by| by.username.as_deref()).unwrap_or_default(),
        groups: approver.and_then(|by| by.groups.as_deref()).unwrap_or_default(),
        request_uid: &spec.request_ref.uid,
        plan_digest: spec.plan_digest.parse().ok(),
        policy: &spec.policy_name,
        stage: &spec.stage,
        decision: spec.decision,
        has_comment: spec.comment.as_ref().is_some_and(|comment| !comment.trim().is_empty()),
        // No stage can ask for evidence yet: the API server alone vouches for the author.
        evidence: Evidence::None,
        at: created(decision.metadata.creation_timestamp.as_ref()),
        access: access.unwrap_or(Access::Denied),
    }
}

/// Who asks for what: one access review answers all decisions that are equal in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Asks {
    username: Option<String>,
    uid: Option<String>,
    groups: Vec<String>,
    verb: &'static str,
    key: String,
}

fn asks(decision: &ApprovalDecision) -> Asks {
    let spec = &decision.spec;
    let approver = spec.approver.clone().unwrap_or_default();
    Asks {
        verb: verb(spec.decision, approver.username.as_deref().unwrap_or_default()),
        key: stage_key(&spec.policy_name, &spec.stage),
        username: approver.username,
        uid: approver.uid,
        groups: approver.groups.unwrap_or_default(),
    }
}

async fn reviews(
    context: &Context,
    spec: &ApprovalRequestSpec,
    decisions: &[ApprovalDecision],
) -> BTreeMap<Asks, Access> {
    let here = |decision: &&ApprovalDecision| {
        decision.spec.policy_name == spec.policy.name
            && spec.stages.iter().any(|stage| stage.name == decision.spec.stage)
            && decision.spec.approver.as_ref().is_some_and(|by| by.username.is_some())
    };
    let mut questions: Vec<Asks> = decisions.iter().filter(here).map(asks).collect();
    questions.sort();
    questions.dedup();
    futures::stream::iter(questions)
        .map(|asks: Asks| async move {
            let who = Identity {
                username: asks.username.clone(),
                uid: asks.uid.clone(),
                groups: (!asks.groups.is_empty()).then(|| asks.groups.clone()),
            };
            let question = Question {
                verb: asks.verb,
                group: names::GROUP.into(),
                resource: "approvalstages".into(),
                // Cluster-wide, as admission asks: "*" in a namespace does not include it.
                namespace: String::new(),
                name: Some(asks.key.clone()),
            };
            let access = match access::may(&context.client, &who, &question).await {
                Ok(Some(true)) => Access::Allowed,
                Ok(Some(false)) => Access::Denied,
                Ok(None) => Access::Unknown,
                Err(error) => {
                    tracing::warn!(%error, "an approver's right could not be reviewed");
                    Access::Unknown
                }
            };
            (asks, access)
        })
        .buffer_unordered(REVIEWS_AT_ONCE)
        .collect()
        .await
}

/// The seal over what a status says was counted.
pub(super) fn seal_of(
    key: &FingerprintKey,
    approval: &ApprovalRequest,
    epoch: &str,
    decisions: &[RecordedDecision],
) -> Option<String> {
    let counted: Vec<Sealed<'_>> = decisions
        .iter()
        .filter(|decision| decision.counted == Some(true))
        .map(|decision| Sealed {
            uid: &decision.uid,
            username: &decision.username,
            stage: &decision.stage,
            decision: decision.decision,
            at: decision.at.0,
        })
        .collect();
    let uid = approval.metadata.uid.as_deref()?;
    let plan = approval.spec.plan_digest.parse().ok()?;
    Some(seal(key, uid, plan, epoch, &counted))
}

/// Whether a status carries the seal that this operator makes.
pub(super) fn is_sealed(key: &FingerprintKey, approval: &ApprovalRequest) -> bool {
    let Some(status) = &approval.status else {
        return false;
    };
    let (Some(epoch), Some(found)) = (&status.guard_epoch, &status.seal) else {
        return false;
    };
    let recorded = status.decisions.as_deref().unwrap_or_default();
    seal_of(key, approval, epoch, recorded).as_ref() == Some(found)
}

/// Everything that the next step of one `ApprovalRequest` depends on.
pub(super) struct Observed {
    pub request: Option<RollbackRequest>,
    pub policy: Option<ApprovalPolicy>,
    pub decisions: Vec<ApprovalDecision>,
    pub guard: Guard,
    pub seal_is_ours: bool,
    /// The count, or why there is none.
    pub tally: Result<Tally, String>,
    pub now: Timestamp,
}

/// Reads everything; the guard as it was seen last.
pub(super) async fn observe(context: &Context, approval: &ApprovalRequest) -> Result<Observed> {
    let namespace = approval.namespace().unwrap_or_default();
    let spec = &approval.spec;
    let (request, policy, decisions) = tokio::try_join!(
        request(context, &namespace, &spec.request_ref.name),
        policy(context, &spec.policy.name),
        decisions(context, approval)
    )?;
    // Another request of the same name says nothing about this one.
    let same = |request: &RollbackRequest| request.uid().as_deref() == Some(spec.request_ref.uid.as_str());
    let (guard, now) = (context.guard.seen(), clock::now());
    let own = request.as_ref().filter(|request| same(request));
    let tally = count(context, approval, own, policy.as_ref(), &guard, &decisions, now).await?;
    let key = context.key().await?;
    Ok(Observed {
        seal_is_ours: is_sealed(&key, approval),
        request,
        policy,
        decisions,
        guard,
        tally,
        now,
    })
}

/// Whether decisions still matter: nothing follows a final phase, but one who objects to a running execution cancels it.
pub(super) fn still_counts(phase: ApprovalPhase, request: RequestFact) -> bool {
    match phase {
        ApprovalPhase::Consumed => request == RequestFact::Open,
        phase => !crate::domain::approval::state::is_final(phase),
    }
}

/// The `ApprovalRequests` of one namespace, or of all.
pub(super) async fn approvals(context: &Context, namespace: Option<&str>) -> Result<Vec<ApprovalRequest>> {
    let api: Api<ApprovalRequest> = match namespace {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    };
    let mut found = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let what = "list approvalrequests";
        let page = call::repeat(what, call::PAGE_DEADLINE, || api.list(&params)).await?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = ListParams::default().limit(PAGE).continue_token(&token),
            None => return Ok(found),
        }
    }
}
