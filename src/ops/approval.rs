//! What waits for approval, who may decide, and deciding.

use std::time::Duration;

use k8s_openapi::{
    api::{
        authentication::v1::UserInfo,
        authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
};

use super::{Class, Error, Result, Session, create, list::Scope, rollback, wait};
use crate::api::{
    ApprovalDecision, ApprovalDecisionSpec, ApprovalRequest,
    approval_decision::Approver,
    approval_request::{ApprovalPhase, Approvers, Decision, RecordedDecision, RequestStage},
    names,
    reference::UidReference,
};

/// Kinds that name an `ApprovalRequest`.
const KINDS: [&str; 4] = ["approvalrequest", "apr", "rollbackrequest", "rbr"];

/// Where an approval stands; `Pending` before the operator has counted.
pub fn phase(approval: &ApprovalRequest) -> ApprovalPhase {
    approval.status.as_ref().and_then(|s| s.phase).unwrap_or_default()
}

/// Whether somebody is asked to decide or to look at it afterwards.
pub const fn waits(phase: ApprovalPhase) -> bool {
    matches!(
        phase,
        ApprovalPhase::Pending | ApprovalPhase::AwaitingReview | ApprovalPhase::ReviewOverdue
    )
}

/// Whether `decision` can still change something in `phase`.
pub const fn accepts(phase: ApprovalPhase, decision: Decision) -> bool {
    match decision {
        Decision::Approve => matches!(phase, ApprovalPhase::Pending),
        Decision::Acknowledge => matches!(phase, ApprovalPhase::AwaitingReview | ApprovalPhase::ReviewOverdue),
        // During an execution an objection cancels it.
        Decision::Reject | Decision::Revoke => matches!(
            phase,
            ApprovalPhase::Pending | ApprovalPhase::Approved | ApprovalPhase::Consumed | ApprovalPhase::AwaitingReview
        ),
    }
}

/// The `ApprovalRequests` of one or all namespaces, newest last.
pub async fn list(session: &Session, scope: Scope, params: &ListParams) -> Result<Vec<ApprovalRequest>> {
    let (api, what): (Api<ApprovalRequest>, _) = match scope {
        Scope::Namespace => (
            session.api_in(&session.namespace),
            format!("list approvalrequests in {}", session.namespace),
        ),
        Scope::All => (
            Api::all(session.client.clone()),
            "list approvalrequests in all namespaces".to_owned(),
        ),
    };
    let mut all = super::list::every(session, &what, &api, params).await?;
    all.sort_by_key(|a| (a.creation_timestamp().map(|t| t.0), a.namespace(), a.name_any()));
    Ok(all)
}

/// The `ApprovalRequest` `name` of the session's namespace.
pub async fn read(session: &Session, name: &str) -> Result<Option<ApprovalRequest>> {
    let api: Api<ApprovalRequest> = session.api_in(&session.namespace);
    let what = format!("read approvalrequest {name} in {}", session.namespace);
    session.repeat(&what, || api.get_opt(name)).await
}

/// The `ApprovalRequest` that `name` means for `decision`: its own name, or that of the `RollbackRequest` it belongs to.
///
/// # Errors
/// `NotFound`, or `Refused` where there are some and none can be decided any more.
pub async fn find(session: &Session, name: &str, decision: Decision) -> Result<ApprovalRequest> {
    let bare = rollback::bare_name(name, &KINDS)?;
    let namespace = &session.namespace;
    let names_request = name.starts_with('r');
    let by_name = if name != bare && names_request {
        None
    } else {
        read(session, bare).await?
    };
    let candidates = if let Some(found) = by_name {
        vec![found]
    } else {
        let params = ListParams::default().fields(&format!("spec.requestRef.name={bare}"));
        list(session, Scope::Namespace, &params).await?
    };
    let open = candidates.iter().rfind(|a| accepts(phase(a), decision)).cloned();
    if let Some(open) = open {
        return Ok(open);
    }
    let Some(last) = candidates.last() else {
        let request: Api<crate::api::RollbackRequest> = session.api_in(namespace);
        let what = format!("read rollbackrequest {bare} in {namespace}");
        return Err(match session.repeat(&what, || request.get_opt(bare)).await? {
            Some(request) => {
                let stands = rollback::progress(&request).unwrap_or_else(|| "no operator has looked at it".to_owned());
                Error::new(Class::Refused, format!("rollbackrequest {bare} waits for no approval"))
                    .because(format!("it is {:?}: {stands}", rollback::phase(&request)))
                    .fix(format!("follow it: kubectl backstep watch {bare} -n {namespace}"))
            }
            None => Error::not_found(format!(
                "there is no rollbackrequest and no approvalrequest {bare} in namespace {namespace}"
            ))
            .fix(format!(
                "list what waits: kubectl backstep approvals --pending -n {namespace}"
            )),
        });
    };
    let phase = phase(last);
    Err(Error::new(
        Class::Refused,
        format!("approvalrequest {} cannot be decided any more", last.name_any()),
    )
    .because(format!("it is {phase:?}"))
    .fix(match phase {
        ApprovalPhase::Approved => "to take an approval back: kubectl backstep revoke",
        ApprovalPhase::Superseded => {
            "the plan is asked for again under another name: kubectl backstep approvals --pending"
        }
        _ => "a new rollback needs a new request",
    }))
}

/// The stage that `decision` of `username` is about when none is named: the one that is open; once none is, that of the user's own
/// earlier decision, else the last.
pub fn stage_of(approval: &ApprovalRequest, decision: Decision, username: &str) -> Option<String> {
    let status = approval.status.clone().unwrap_or_default();
    let own = status
        .decisions
        .unwrap_or_default()
        .into_iter()
        .rev()
        .find(|d| d.username == username && d.decision == Decision::Approve)
        .map(|d| d.stage);
    let last = approval.spec.stages.last().map(|s| s.name.clone());
    let first = approval.spec.stages.first().map(|s| s.name.clone());
    match decision {
        Decision::Approve => status.current_stage.or(first),
        Decision::Reject | Decision::Revoke => own.or(status.current_stage).or(last),
        Decision::Acknowledge => last,
    }
}

/// The stage `name` of an approval.
pub fn stage<'a>(approval: &'a ApprovalRequest, name: &str) -> Option<&'a RequestStage> {
    approval.spec.stages.iter().find(|s| s.name == name)
}

/// The stage that is being decided.
pub fn current_stage(approval: &ApprovalRequest) -> Option<&RequestStage> {
    let current = approval.status.as_ref().and_then(|s| s.current_stage.as_deref());
    current.map_or(approval.spec.stages.first(), |name| stage(approval, name))
}

/// How many distinct people's approvals count for a stage so far.
pub fn approved(approval: &ApprovalRequest, stage: &str) -> usize {
    let mut people: Vec<&str> = recorded(approval)
        .filter(|d| d.stage == stage && d.decision == Decision::Approve && d.counted == Some(true))
        .map(|d| d.username.as_str())
        .collect();
    people.sort_unstable();
    people.dedup();
    people.len()
}

/// Every decision that the operator has seen.
pub fn recorded(approval: &ApprovalRequest) -> impl Iterator<Item = &RecordedDecision> {
    approval.status.iter().flat_map(|s| s.decisions.iter().flatten())
}

/// Who may approve a stage, for people: `2 of group shop-owners, user ada`.
pub fn who(approval: &ApprovalRequest, stage: &RequestStage) -> String {
    let named = stage.approvers.as_ref().map(listed).unwrap_or_default();
    let people = if named.is_empty() {
        format!(
            "anyone who holds the verb approve on approvalstages {}:{}",
            approval.spec.policy.name, stage.name
        )
    } else {
        named.join(", ")
    };
    format!("{} of {people}", stage.required)
}

fn listed(approvers: &Approvers) -> Vec<String> {
    let each = |kind: &str, names: &[String]| names.iter().map(|n| format!("{kind} {n}")).collect::<Vec<_>>();
    [
        each("user", &approvers.users),
        each("group", &approvers.groups),
        each("serviceaccount", &approvers.service_accounts),
    ]
    .concat()
}

fn is_service_account(username: &str) -> bool {
    username.starts_with("system:serviceaccount:")
}

/// The verb that `username` needs for a decision.
pub fn verb(decision: Decision, username: &str) -> &'static str {
    match decision {
        Decision::Acknowledge => "review",
        _ if is_service_account(username) => "approve-automated",
        _ => "approve",
    }
}

/// Why `user` is not asked to decide on `approval`, as far as its own fields tell; `None` where it is.
///
/// The operator knows more: aliases, and people who count in another stage.
pub fn not_mine(approval: &ApprovalRequest, user: &UserInfo) -> Option<&'static str> {
    let me = user.username.as_deref().unwrap_or_default();
    let phase = phase(approval);
    if !waits(phase) {
        return Some("nothing is asked any more");
    }
    let spec = &approval.spec;
    if spec.requester.username == me {
        return Some("the requester does not decide");
    }
    if spec.on_behalf_of.as_ref().is_some_and(|p| p.username == me) {
        return Some("it was made on behalf of this user");
    }
    let own = format!("system:serviceaccount:{}:", approval.namespace().unwrap_or_default());
    if me.starts_with(&own) {
        return Some("a ServiceAccount of the request's namespace never counts");
    }
    if phase != ApprovalPhase::Pending {
        return None;
    }
    let stage = current_stage(approval)?;
    if recorded(approval).any(|d| d.username == me && d.stage == stage.name && d.counted == Some(true)) {
        return Some("decided already");
    }
    let lists = |approvers: &Approvers| {
        let account = me
            .strip_prefix("system:serviceaccount:")
            .map(|rest| rest.replacen(':', "/", 1));
        approvers.users.iter().any(|u| u == me)
            || user
                .groups
                .iter()
                .flatten()
                .any(|group| approvers.groups.contains(group))
            || account.is_some_and(|account| approvers.service_accounts.contains(&account))
    };
    let named = stage.approvers.as_ref().filter(|a| !listed(a).is_empty());
    let later = stage.on_timeout.as_ref().and_then(|t| t.approvers.as_ref());
    if named.is_some_and(|named| !lists(named) && !later.is_some_and(lists)) {
        return Some("the stage does not list this user");
    }
    None
}

/// Whether the caller holds the verb for deciding on a stage of `approval`, checked as admission checks it: cluster-wide.
pub async fn may_decide(session: &Session, approval: &ApprovalRequest, user: &UserInfo) -> Result<bool> {
    let username = user.username.clone().unwrap_or_default();
    let (decision, stage) = if phase(approval) == ApprovalPhase::Pending {
        (Decision::Approve, current_stage(approval).map(|s| s.name.clone()))
    } else {
        (
            Decision::Acknowledge,
            stage_of(approval, Decision::Acknowledge, &username),
        )
    };
    let Some(stage) = stage else { return Ok(false) };
    let api: Api<SelfSubjectAccessReview> = Api::all(session.client.clone());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb(decision, &username).to_owned()),
                group: Some(names::GROUP.to_owned()),
                resource: Some("approvalstages".to_owned()),
                name: Some(format!("{}:{stage}", approval.spec.policy.name)),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let what = format!("ask whether you may decide on {}:{stage}", approval.spec.policy.name);
    let review = session
        .repeat(&what, || async { api.create(&PostParams::default(), &review).await })
        .await?;
    Ok(review.status.is_some_and(|s| s.allowed))
}

/// Records `decision` on exactly the approval that was read: its UID, plan digest, policy and `stage`.
pub async fn decide(
    session: &Session,
    approval: &ApprovalRequest,
    decision: Decision,
    stage: &str,
    comment: Option<String>,
    user: &UserInfo,
) -> Result<ApprovalDecision> {
    let name = approval.name_any();
    let known = approval.spec.stages.iter().any(|s| s.name == stage);
    if !known {
        let names: Vec<&str> = approval.spec.stages.iter().map(|s| s.name.as_str()).collect();
        return Err(Error::usage(format!("approvalrequest {name} has no stage {stage}"))
            .fix(format!("its stages are {}", names.join(", "))));
    }
    let filled = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    // The prefix of a generated name may take 248 characters.
    let prefix: String = name.chars().take(240).collect();
    let object = ApprovalDecision {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", prefix.trim_end_matches(['-', '.']))),
            namespace: Some(session.namespace.clone()),
            ..ObjectMeta::default()
        },
        spec: ApprovalDecisionSpec {
            request_ref: UidReference {
                name: name.clone(),
                uid: approval.uid().unwrap_or_default(),
            },
            plan_digest: approval.spec.plan_digest.clone(),
            policy_name: approval.spec.policy.name.clone(),
            stage: stage.to_owned(),
            decision,
            comment,
            approver: Some(Approver {
                username: filled(&user.username),
                uid: filled(&user.uid),
                groups: user.groups.clone().filter(|g| !g.is_empty() && g.len() <= 256),
                credential_id: None,
            }),
            evidence: None,
        },
    };
    create::post(
        session,
        &format!("record a decision on approvalrequest {name}"),
        &object,
        false,
    )
    .await
}

/// Waits until the operator has counted the decision `uid`; `None` when it has not within `deadline`.
pub async fn counted(
    session: &Session,
    approval: &str,
    uid: &str,
    deadline: Duration,
) -> Result<Option<(ApprovalRequest, RecordedDecision)>> {
    let seen = |approval: &ApprovalRequest| {
        let found = recorded(approval)
            .find(|d| d.uid == uid && d.counted.is_some())
            .cloned();
        found.map(|found| Ok(Some((approval.clone(), found))))
    };
    let late = |_: Option<&ApprovalRequest>| Error::new(Class::TimedOut, "the decision is not counted yet");
    match wait::until(session, approval, deadline, seen, late).await {
        Err(error) if error.class == Class::TimedOut => Ok(None),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ApprovalRequestStatus;
    use serde_json::json;

    fn approval(phase: ApprovalPhase) -> ApprovalRequest {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let mut approval: ApprovalRequest = serde_json::from_value(json!({
            "apiVersion": "backstep.dev/v1alpha1", "kind": "ApprovalRequest",
            "metadata": {"name": "undo-1", "namespace": "shop"},
            "spec": {
                "requestRef": {"kind": "RollbackRequest", "name": "undo", "uid": "u"},
                "requester": {"username": "alice"},
                "policy": {"name": "prod", "uid": "p", "generation": 1, "digest": digest},
                "planDigest": digest,
                "expiresAt": "2030-01-01T00:00:00Z",
                "stages": [
                    {"name": "sre", "required": 1, "approvers": {"groups": ["sre-leads"]}},
                    {"name": "owners", "required": 2},
                ],
            },
        }))
        .unwrap();
        approval.status = Some(ApprovalRequestStatus {
            phase: Some(phase),
            current_stage: Some("sre".into()),
            ..ApprovalRequestStatus::default()
        });
        approval
    }

    fn user(name: &str, groups: &[&str]) -> UserInfo {
        UserInfo {
            username: Some(name.into()),
            groups: Some(groups.iter().map(ToString::to_string).collect()),
            ..UserInfo::default()
        }
    }

    #[test]
    fn who_is_asked_is_neither_the_requester_nor_unlisted_nor_done() {
        let mut approval = approval(ApprovalPhase::Pending);
        assert_eq!(not_mine(&approval, &user("bob", &["sre-leads"])), None);
        assert!(not_mine(&approval, &user("alice", &["sre-leads"])).is_some());
        assert!(not_mine(&approval, &user("bob", &["others"])).is_some());
        assert!(not_mine(&approval, &user("system:serviceaccount:shop:robot", &["sre-leads"])).is_some());
        approval.status.as_mut().unwrap().current_stage = Some("owners".into());
        assert_eq!(not_mine(&approval, &user("carol", &[])), None);
        approval.status.as_mut().unwrap().phase = Some(ApprovalPhase::Rejected);
        assert!(not_mine(&approval, &user("bob", &["sre-leads"])).is_some());
    }

    #[test]
    fn a_decision_is_about_the_open_stage_and_an_objection_about_ones_own() {
        let mut approval = approval(ApprovalPhase::Approved);
        let status = approval.status.as_mut().unwrap();
        status.current_stage = None;
        status.decisions = Some(vec![
            serde_json::from_value(json!({
                "uid": "1", "name": "d", "username": "bob", "stage": "sre", "decision": "Approve",
                "at": "2029-01-01T00:00:00Z", "counted": true,
            }))
            .unwrap(),
        ]);
        assert_eq!(stage_of(&approval, Decision::Revoke, "bob").as_deref(), Some("sre"));
        assert_eq!(
            stage_of(&approval, Decision::Reject, "carol").as_deref(),
            Some("owners")
        );
        assert_eq!(approved(&approval, "sre"), 1);
        assert_eq!(approved(&approval, "owners"), 0);
    }

    #[test]
    fn people_are_told_whose_approval_is_needed() {
        let approval = approval(ApprovalPhase::Pending);
        assert_eq!(who(&approval, &approval.spec.stages[0]), "1 of group sre-leads");
        assert!(who(&approval, &approval.spec.stages[1]).contains("approvalstages prod:owners"));
    }

    #[test]
    fn an_approval_is_used_once_and_an_objection_is_heard_until_the_end() {
        assert!(
            accepts(ApprovalPhase::Pending, Decision::Approve) && !accepts(ApprovalPhase::Approved, Decision::Approve)
        );
        assert!(
            accepts(ApprovalPhase::Consumed, Decision::Reject) && !accepts(ApprovalPhase::Rejected, Decision::Reject)
        );
        assert!(accepts(ApprovalPhase::ReviewOverdue, Decision::Acknowledge));
    }
}
