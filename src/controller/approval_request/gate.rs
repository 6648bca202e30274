//! What the gate asks of approval, by quorum reads made just now, and the latch that uses an approval once.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt as _, api::PostParams};

use super::{gather, status};
use crate::{
    api::{
        ApprovalDecision, ApprovalPolicy, ApprovalRequest, ApprovalRequestStatus, RollbackRequest,
        approval_request::{ApprovalPhase, Decision},
        duration, reasons,
        reference::RiskLevel,
    },
    cluster::{self, Result, call, clock},
    controller::context::{self, Context},
    domain::{
        approval::{
            Tally, Verdict,
            gate::{Approval, Guard, Hold, Known},
            hold::Calendar,
            permit::Latch,
            state,
        },
        object::Digest,
    },
};

/// Tries of a write that others may come before.
const TRIES: usize = 5;
const GONE: &str = "there is no ApprovalRequest of this name";

/// What the gate asks of approval (steps 1, 3, 4, 5), read just now.
#[derive(Clone, Debug)]
pub struct ApprovalFacts {
    /// 1: the guard.
    pub guard: Known<Guard>,
    /// 3: the approval.
    pub approval: Known<Approval>,
    /// 3: windows and freezes.
    pub hold: Hold,
    /// 4: digest of the policy now.
    pub policy_digest: Known<Option<Digest>>,
    /// 5: the decisions, counted again.
    pub verdict: Known<Verdict>,
    /// Who objects, recorded or not, with a decision that counts and came after the approval: that ends an execution.
    pub objection: Option<String>,
    /// As it was read: the latch closes at this resource version.
    object: Option<ApprovalRequest>,
    review_within: Option<SignedDuration>,
}

impl ApprovalFacts {
    fn unknown(why: &str) -> Self {
        Self {
            guard: Known::Unknown(why.to_owned()),
            approval: Known::Unknown(why.to_owned()),
            hold: Hold::NoEnd,
            policy_digest: Known::Unknown(why.to_owned()),
            verdict: Known::Unknown(why.to_owned()),
            objection: None,
            object: None,
            review_within: None,
        }
    }

    /// The `ApprovalRequest` as it was read.
    pub fn object(&self) -> Option<&ApprovalRequest> {
        self.object.as_ref()
    }
}

/// The approval as it is now, without whether it still counts.
///
/// # Errors
/// The API server cannot be asked.
pub async fn named(context: &Context, request: &RollbackRequest, approval_name: &str) -> Result<Known<Approval>> {
    let namespace = request.namespace().unwrap_or_default();
    let Some(object) = get(context, &namespace, approval_name).await? else {
        return Ok(Known::Unknown(GONE.to_owned()));
    };
    let key = context.key().await?;
    Ok(approval(&object, gather::is_sealed(&key, &object)))
}

async fn get(context: &Context, namespace: &str, name: &str) -> Result<Option<ApprovalRequest>> {
    let api: Api<ApprovalRequest> = Api::namespaced(context.client.clone(), namespace);
    let what = format!("get approvalrequest {namespace}/{name}");
    call::repeat(&what, call::DEADLINE, || api.get_opt(name)).await
}

/// Reads everything that the gate asks of approval. What cannot be read is [`Known::Unknown`], never an answer.
pub async fn facts(context: &Context, request: &RollbackRequest, approval_name: &str) -> ApprovalFacts {
    let namespace = request.namespace().unwrap_or_default();
    let mut facts = match read(context, request, &namespace, approval_name).await {
        Ok(facts) => facts,
        Err(error) => ApprovalFacts::unknown(&error.to_string()),
    };
    // An approval that could not be read is no reason not to name what is wrong with the guard.
    if facts.object.is_none() {
        facts.guard = known_guard(&context.look_at_guard().await);
    }
    facts
}

fn known_guard(seen: &context::Guard) -> Known<Guard> {
    match &seen.epoch {
        Some(epoch) => Known::Is(Guard {
            healthy: seen.missing.is_empty(),
            epoch: epoch.clone(),
        }),
        None => Known::Unknown(seen.missing.join("; ")),
    }
}

async fn read(
    context: &Context,
    request: &RollbackRequest,
    namespace: &str,
    approval_name: &str,
) -> Result<ApprovalFacts> {
    let Some(object) = get(context, namespace, approval_name).await? else {
        return Ok(ApprovalFacts::unknown(GONE));
    };
    let (policy, decisions) = tokio::try_join!(
        gather::policy(context, &object.spec.policy.name),
        gather::decisions(context, &object)
    )?;
    let key = context.key().await?;
    // After the decisions were listed: an epoch that is equal now was equal when they were made.
    let (seen, now) = (context.look_at_guard().await, clock::now());
    let own = Some(request).filter(|request| request.uid().as_deref() == Some(object.spec.request_ref.uid.as_str()));
    let tally = gather::count(context, &object, own, policy.as_ref(), &seen, &decisions, now).await?;
    let seal_is_ours = gather::is_sealed(&key, &object);
    Ok(ApprovalFacts {
        guard: known_guard(&seen),
        approval: approval(&object, seal_is_ours),
        hold: hold(policy.as_ref(), request, now),
        policy_digest: Known::Is(gather::digest_of(&object.spec, policy.as_ref())),
        verdict: match &tally {
            Ok(tally) if tally.is_unsure() => Known::Unknown("an approver's right could not be reviewed".to_owned()),
            Ok(tally) => Known::Is(tally.verdict.clone()),
            Err(why) => Known::Unknown(why.clone()),
        },
        objection: tally.ok().and_then(|tally| objection_now(&object, &decisions, &tally)),
        review_within: policy.as_ref().and_then(review_within),
        object: Some(object),
    })
}

fn review_within(policy: &ApprovalPolicy) -> Option<SignedDuration> {
    let time = duration::parse(&policy.spec.emergency.as_ref()?.review_within).ok()?;
    SignedDuration::try_from(time).ok()
}

fn approval(object: &ApprovalRequest, seal_is_ours: bool) -> Known<Approval> {
    let (spec, status) = (&object.spec, object.status.clone().unwrap_or_default());
    let (Ok(plan_digest), Ok(policy_digest)) = (spec.plan_digest.parse(), spec.policy.digest.parse()) else {
        return Known::Unknown("a digest in the ApprovalRequest is none".to_owned());
    };
    let phase = status.phase.unwrap_or_default();
    let end = match phase {
        ApprovalPhase::BreakGlass => Some(&spec.expires_at),
        _ => status.approval_expires_at.as_ref(),
    };
    Known::Is(Approval {
        request_uid: spec.request_ref.uid.clone(),
        phase,
        execution: status.execution_id,
        plan_digest,
        policy_digest,
        epoch: status.guard_epoch,
        usable_until: end.map(|time| time.0),
        not_before: spec.not_before.as_ref().map(|time| time.0),
        // One without a risk was approved for the least.
        risk: spec.risk.unwrap_or(RiskLevel::Low),
        seal_is_ours,
    })
}

/// What the policy's windows and freezes say; one that cannot be read holds.
fn hold(policy: Option<&ApprovalPolicy>, request: &RollbackRequest, now: Timestamp) -> Hold {
    let Some(policy) = policy else {
        // Step 4 refuses a policy that is gone.
        return Hold::None;
    };
    Calendar::new(&policy.spec, request.spec.priority).map_or(Hold::NoEnd, |calendar| calendar.hold(now))
}

/// The latch: writes phase and `executionID` at the resource version that `facts` were read at.
pub async fn consume(context: &Context, facts: &ApprovalFacts, to: ApprovalPhase, execution: &str) -> Latch {
    let Some(object) = &facts.object else {
        return Latch::Lost;
    };
    let mut status = object.status.clone().unwrap_or_default();
    let Ok(phase) = state::transition(status.phase.unwrap_or_default(), to) else {
        return Latch::Lost;
    };
    let (reason, message) = if phase == ApprovalPhase::AwaitingReview {
        let within = facts.review_within.unwrap_or(SignedDuration::from_hours(24));
        let by = clock::now_time().0.checked_add(within).unwrap_or(Timestamp::MAX);
        status.approval_expires_at = Some(Time(by));
        let message = format!("runs without approval as execution {execution}; others must acknowledge it before {by}");
        (reasons::AWAITING_REVIEW, message)
    } else {
        (reasons::CONSUMED, format!("used by execution {execution}"))
    };
    status.phase = Some(phase);
    status.execution_id = Some(execution.to_owned());
    status.current_stage = None;
    status::describe(&mut status, object, phase, reason, &message);
    let latch = close_latch(context, object, status, execution).await;
    if matches!(latch, Latch::Taken { .. }) {
        status::moved(context, object, phase, reason, &message).await;
    }
    latch
}

async fn close_latch(
    context: &Context,
    object: &ApprovalRequest,
    status: ApprovalRequestStatus,
    execution: &str,
) -> Latch {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let api: Api<ApprovalRequest> = Api::namespaced(context.client.clone(), &namespace);
    let changed = ApprovalRequest {
        status: Some(status),
        ..object.clone()
    };
    let params = PostParams::default();
    let what = format!("consume approvalrequest {namespace}/{name}");
    // Tried once: a second try would lose against a first one whose answer was lost.
    let error = match call::once(&what, call::DEADLINE, api.replace_status(&name, &params, &changed)).await {
        Ok(stored) => return taken(&stored),
        Err(error) => error,
    };
    if is_refusal(&error) {
        return Latch::Lost;
    }
    let what = format!("get approvalrequest {namespace}/{name}");
    match call::repeat(&what, call::DEADLINE, || api.get(&name)).await {
        Ok(now) if now.status.as_ref().and_then(|status| status.execution_id.as_deref()) == Some(execution) => {
            taken(&now)
        }
        // Not taken so far, and perhaps still under way.
        Ok(_) => Latch::Unknown(error.to_string()),
        Err(unread) => Latch::Unknown(unread.to_string()),
    }
}

/// Whether the server said no, so that nothing was written.
fn is_refusal(error: &cluster::Error) -> bool {
    error
        .code()
        .is_some_and(|code| (400..500).contains(&code) && code != 408 && code != 429)
}

fn taken(stored: &ApprovalRequest) -> Latch {
    let status = stored.status.clone().unwrap_or_default();
    Latch::Taken {
        phase: status.phase.unwrap_or_default(),
        execution: status.execution_id.unwrap_or_default(),
    }
}

/// Ends an `ApprovalRequest` that will not be used: `to` is `Cancelled`, `Superseded` or `Expired`. One that has ended, was
/// used, or is gone stays as it is.
///
/// # Errors
/// The API server cannot be asked, or others kept changing it.
pub async fn close(context: &Context, namespace: &str, name: &str, to: ApprovalPhase, message: &str) -> Result<()> {
    let mut tries = 0;
    loop {
        let Some(approval) = get(context, namespace, name).await? else {
            return Ok(());
        };
        let mut status = approval.status.clone().unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        if state::is_final(phase) || state::is_used(phase) || state::transition(phase, to).is_err() {
            return Ok(());
        }
        let reason = match to {
            ApprovalPhase::Superseded => reasons::SUPERSEDED,
            ApprovalPhase::Expired => reasons::EXPIRED,
            _ => reasons::CANCELLED,
        };
        status.phase = Some(to);
        status.current_stage = None;
        status::describe(&mut status, &approval, to, reason, message);
        match status::replace(context, &approval, status).await {
            Ok(_) => {
                status::moved(context, &approval, to, reason, message).await;
                return Ok(());
            }
            Err(error) if error.is_conflict() && tries < TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// The same of what was decided by now, whether it is recorded yet or not.
fn objection_now(object: &ApprovalRequest, decisions: &[ApprovalDecision], tally: &Tally) -> Option<String> {
    let mut status = object.status.clone().unwrap_or_default();
    let recorded = status.decisions.take().unwrap_or_default();
    status.decisions = Some(status::record(recorded, decisions, tally, None).0);
    objection(&status).map(ToOwned::to_owned)
}

/// Who objected after the approval was given, with a decision that counts: during an execution that cancels it.
pub fn objection(status: &ApprovalRequestStatus) -> Option<&str> {
    let approved = status.approved_at.as_ref().map_or(Timestamp::MIN, |at| at.0);
    status
        .decisions
        .as_deref()
        .unwrap_or_default()
        .iter()
        .find(|one| {
            one.counted == Some(true)
                && matches!(one.decision, Decision::Reject | Decision::Revoke)
                && one.at.0 >= approved
        })
        .map(|one| one.username.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(decisions: &[[&str; 4]]) -> ApprovalRequestStatus {
        let decisions: Vec<Value> = decisions
            .iter()
            .map(|[who, what, at, counted]| {
                json!({"uid": who, "name": "d", "username": who, "stage": "sre", "decision": what, "at": at,
                       "counted": *counted == "counts"})
            })
            .collect();
        serde_json::from_value(json!({"approvedAt": "2026-01-02T03:04:05Z", "decisions": decisions})).unwrap()
    }

    #[test]
    fn an_objection_is_one_that_counts_and_came_after_the_approval() {
        let (before, after) = ("2026-01-02T03:04:04Z", "2026-01-02T03:04:06Z");
        let none = [
            ["ada", "Reject", before, "counts"],
            ["bob", "Reject", after, "not"],
            ["eve", "Approve", after, "counts"],
        ];
        assert_eq!(objection(&status(&none)), None);
        for decision in ["Reject", "Revoke"] {
            let one = [["eve", "Approve", after, "counts"], ["bob", decision, after, "counts"]];
            assert_eq!(objection(&status(&one)), Some("bob"));
        }
    }
}
