//! The single exit: what an `ApprovalRequest`'s status says, and who is told.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    runtime::controller::Action,
};
use serde_json::json;

use super::gather::{Observed, seal_of};
use crate::{
    api::{
        ApprovalDecision, ApprovalRequest, ApprovalRequestStatus,
        approval_request::{ApprovalPhase, RecordedDecision},
        conditions::{self, NewCondition},
        duration, reasons,
        rollback_request::Priority,
    },
    cluster::{Result, call, clock},
    controller::context::Context,
    domain::approval::{
        NotCounted, Tally,
        course::{GuardFact, Step},
        hold::Calendar,
        vote::stage_key,
    },
    telemetry::metrics::Outcome,
};

/// Most decisions that a status records, the bound of its field.
const MOST_RECORDED: usize = 64;
/// Most of them that do not count, so that nobody can crowd out those who do.
const MOST_NOT_COUNTED: usize = 32;
/// Most characters of a recorded reason, the bound of its field.
const REASON_LENGTH: usize = 256;
/// Looked at again at the latest after this time: rights change without a word.
const AGAIN_AT_LATEST: Duration = Duration::from_secs(300);
/// The same while somebody's decision does not count for want of a right, or that is not known.
const AGAIN_FOR_RIGHTS: Duration = Duration::from_secs(20);

/// Merges what was decided into what is recorded: nothing that was recorded goes, and nobody who does not count crowds out who
/// does. Says whether every decision that counts is recorded.
pub(super) fn record(
    recorded: Vec<RecordedDecision>,
    decisions: &[ApprovalDecision],
    tally: &Tally,
    epoch: Option<&str>,
) -> (Vec<RecordedDecision>, bool) {
    let mut results: BTreeMap<&str, Result<(), NotCounted>> = tally
        .votes
        .iter()
        .map(|(uid, result)| (uid.as_str(), *result))
        .collect();
    let mut merged = recorded;
    for known in &mut merged {
        let result = results.remove(known.uid.as_str());
        known.counted = Some(result == Some(Ok(())));
        known.reason = match result {
            Some(Ok(())) => None,
            Some(Err(why)) => Some(shortened(&why.to_string())),
            None => Some("the ApprovalDecision is gone".to_owned()),
        };
    }
    let mut fresh: Vec<&ApprovalDecision> = decisions
        .iter()
        .filter(|decision| results.contains_key(decision.metadata.uid.as_deref().unwrap_or_default()))
        .collect();
    let counts = |decision: &ApprovalDecision| {
        let uid = decision.metadata.uid.as_deref().unwrap_or_default();
        results.get(uid).copied().unwrap_or(Err(NotCounted::OtherRequest))
    };
    fresh.sort_by_key(|decision| (counts(decision).is_err(), decision.metadata.creation_timestamp.clone()));
    let mut complete = true;
    for decision in fresh {
        let result = counts(decision);
        let not_counted = merged.iter().filter(|known| known.counted == Some(false)).count();
        if merged.len() >= MOST_RECORDED || (result.is_err() && not_counted >= MOST_NOT_COUNTED) {
            complete &= result.is_err();
            continue;
        }
        let approver = decision.spec.approver.as_ref();
        merged.push(RecordedDecision {
            uid: decision.uid().unwrap_or_default(),
            name: decision.name_any(),
            username: approver.and_then(|by| by.username.clone()).unwrap_or_default(),
            stage: decision.spec.stage.clone(),
            decision: decision.spec.decision,
            at: decision
                .metadata
                .creation_timestamp
                .clone()
                .unwrap_or(Time(Timestamp::UNIX_EPOCH)),
            guard_epoch: epoch.map(ToOwned::to_owned),
            counted: Some(result.is_ok()),
            reason: result.err().map(|why| shortened(&why.to_string())),
        });
    }
    (merged, complete)
}

fn shortened(text: &str) -> String {
    text.chars().take(REASON_LENGTH).collect()
}

/// Writes what `step` comes to, where that changes the status, and says when to look again.
pub(super) async fn publish(
    approval: &ApprovalRequest,
    observed: &Observed,
    mut step: Step,
    context: &Context,
) -> Result<Action> {
    let before = approval.status.clone().unwrap_or_default();
    let mut status = before.clone();
    let phase = before.phase.unwrap_or_default();
    let mut again = None;
    // Nothing counts while the guard is not in place, and what was made in another epoch is not this operator's to seal.
    let same_epoch = before.guard_epoch.is_some() && before.guard_epoch == observed.guard.epoch;
    if let (Ok(tally), true) = (
        &observed.tally,
        observed.guard.missing.is_empty() && same_epoch && observed.seal_is_ours,
    ) {
        let recorded = status.decisions.take().unwrap_or_default();
        let (recorded, complete) = record(recorded, &observed.decisions, tally, before.guard_epoch.as_deref());
        if !complete
            && matches!(
                step,
                Step::Move {
                    to: ApprovalPhase::Approved,
                    ..
                }
            )
        {
            step = Step::Stay {
                reason: reasons::TOO_MANY_DECISIONS,
                message: format!(
                    "more than {MOST_RECORDED} decisions count, which is more than can be recorded; make a new request"
                ),
                again: Some(approval.spec.expires_at.0),
            };
        }
        let key = context.key().await?;
        let epoch = before.guard_epoch.clone().unwrap_or_default();
        status.seal = seal_of(&key, approval, &epoch, &recorded);
        status.decisions = (!recorded.is_empty()).then_some(recorded);
        status.current_stage = match phase {
            ApprovalPhase::Pending => tally.open().map(|stage| stage.stage.clone()),
            _ => None,
        };
        let rights =
            |result: &Result<(), NotCounted>| matches!(result, Err(NotCounted::NotAllowed | NotCounted::AccessUnknown));
        if tally.votes.iter().any(|(_, result)| rights(result)) {
            again = Some(AGAIN_FOR_RIGHTS);
        }
    }
    match &step {
        Step::Rest => {}
        Step::Stay {
            reason,
            message,
            again: at,
        } => {
            describe(&mut status, approval, phase, reason, message);
            let wait = at.map_or(AGAIN_AT_LATEST, |at| until(at, observed.now));
            again = Some(again.unwrap_or(AGAIN_AT_LATEST).min(wait).min(AGAIN_AT_LATEST));
        }
        Step::Move { to, reason, message } => {
            status.phase = Some(*to);
            if *to == ApprovalPhase::Approved {
                let (at, end) = usable(approval, observed);
                status.approved_at = Some(at);
                status.approval_expires_at = end;
            }
            if *to != ApprovalPhase::Pending {
                status.current_stage = None;
            }
            describe(&mut status, approval, *to, reason, message);
        }
    }
    status.observed_generation = approval.metadata.generation;
    if status != before {
        replace(context, approval, status.clone()).await?;
        tell(context, approval, &before, &status, &step).await;
    }
    adopt(context, approval, &observed.decisions).await?;
    Ok(again.map_or_else(Action::await_change, Action::requeue))
}

/// Makes decisions go with the `ApprovalRequest` that they are about, and with nothing else; admission lets nobody else do it.
async fn adopt(context: &Context, approval: &ApprovalRequest, decisions: &[ApprovalDecision]) -> Result<()> {
    let Some(owner) = approval.owner_ref(&()) else {
        return Ok(());
    };
    let namespace = approval.namespace().unwrap_or_default();
    let api: Api<ApprovalDecision> = Api::namespaced(context.client.clone(), &namespace);
    let orphans = decisions
        .iter()
        .filter(|decision| decision.owner_references().is_empty());
    for decision in orphans {
        let name = decision.name_any();
        let patch = Patch::Merge(json!({"metadata": {"uid": decision.uid(), "ownerReferences": [owner]}}));
        let params = PatchParams::default();
        let what = format!("set the owner of approvaldecision {namespace}/{name}");
        match call::repeat(&what, call::DEADLINE, || api.patch_metadata(&name, &params, &patch)).await {
            Ok(_) => {}
            // Purged, or another of the same name.
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A little after `at`, so that it is past then.
fn until(at: Timestamp, now: Timestamp) -> Duration {
    let left = now.duration_until(at).max(SignedDuration::ZERO);
    Duration::try_from(left).unwrap_or_default() + Duration::from_millis(200)
}

/// When an approval begins and ends; without an end it is not usable.
fn usable(approval: &ApprovalRequest, observed: &Observed) -> (Time, Option<Time>) {
    let at = clock::now_time();
    let end = observed.policy.as_ref().and_then(|policy| {
        let priority = observed
            .request
            .as_ref()
            .map_or(Priority::Low, |request| request.spec.priority);
        let calendar = Calendar::new(&policy.spec, priority).ok()?;
        let time = duration::parse(&policy.spec.approval_ttl).ok()?;
        let from = approval
            .spec
            .not_before
            .as_ref()
            .map_or(at.0, |start| start.0.max(at.0));
        let last = calendar.usable_until(from, SignedDuration::try_from(time).ok()?);
        Some(Time(Timestamp::from_second(last.as_second()).unwrap_or(last)))
    });
    (at, end)
}

/// Replaces the status at the resource version that was read.
pub(super) async fn replace(
    context: &Context,
    approval: &ApprovalRequest,
    status: ApprovalRequestStatus,
) -> Result<ApprovalRequest> {
    let namespace = approval.namespace().unwrap_or_default();
    let name = approval.name_any();
    let api: Api<ApprovalRequest> = Api::namespaced(context.client.clone(), &namespace);
    let changed = ApprovalRequest {
        status: Some(status),
        ..approval.clone()
    };
    let params = PostParams::default();
    let what = format!("write the status of approvalrequest {namespace}/{name}");
    call::repeat(&what, call::DEADLINE, || api.replace_status(&name, &params, &changed)).await
}

/// Conditions as kstatus reads them.
pub(super) fn describe(
    status: &mut ApprovalRequestStatus,
    approval: &ApprovalRequest,
    phase: ApprovalPhase,
    reason: &str,
    message: &str,
) {
    use ApprovalPhase::{Approved, AwaitingReview, BreakGlass, Consumed, Pending, Reviewed};
    let now = clock::now_time();
    let generation = approval.metadata.generation;
    let approved = matches!(phase, Approved | Consumed) && !matches!(reason, reasons::GUARD_UNHEALTHY);
    let good = approved || phase == Reviewed;
    let working = !good && matches!(phase, Pending | Approved | Consumed | BreakGlass | AwaitingReview);
    let mut set = |type_, value| {
        let new = NewCondition {
            type_,
            status: Some(value),
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        conditions::set(&mut status.conditions, &new, generation, &now);
    };
    set(conditions::APPROVED, approved);
    set(conditions::READY, good);
    for (type_, holds) in [
        (conditions::RECONCILING, working),
        (conditions::STALLED, !good && !working),
    ] {
        if holds {
            set(type_, true);
        }
    }
    if !working {
        conditions::remove(&mut status.conditions, conditions::RECONCILING);
    }
    if good || working {
        conditions::remove(&mut status.conditions, conditions::STALLED);
    }
}

/// Events and metrics of what was written.
async fn tell(
    context: &Context,
    approval: &ApprovalRequest,
    before: &ApprovalRequestStatus,
    after: &ApprovalRequestStatus,
    step: &Step,
) {
    let known = before.decisions.as_deref().unwrap_or_default();
    for decision in after.decisions.as_deref().unwrap_or_default() {
        let Some(why) = &decision.reason else { continue };
        if known
            .iter()
            .any(|old| old.uid == decision.uid && old.reason == decision.reason)
        {
            continue;
        }
        let key = stage_key(&approval.spec.policy.name, &decision.stage);
        let note = format!(
            "{:?} of {} on {key} ({}) does not count: {why}",
            decision.decision, decision.username, decision.name
        );
        let about = ObjectReference {
            api_version: Some(ApprovalDecision::api_version(&()).into_owned()),
            kind: Some(ApprovalDecision::kind(&()).into_owned()),
            namespace: approval.namespace(),
            name: Some(decision.name.clone()),
            uid: Some(decision.uid.clone()),
            ..ObjectReference::default()
        };
        let (reason, action) = (reasons::NOT_COUNTED, "Count");
        context
            .event_about(approval, Some(about), true, reason, action, &note)
            .await;
    }
    if let Step::Move { to, reason, message } = step {
        moved(context, approval, *to, reason, message).await;
    }
}

/// Says that an `ApprovalRequest` moved on.
pub(super) async fn moved(
    context: &Context,
    approval: &ApprovalRequest,
    phase: ApprovalPhase,
    reason: &str,
    message: &str,
) {
    use ApprovalPhase::{
        Approved, AwaitingReview, BreakGlass, Cancelled, Consumed, Expired, Pending, Rejected, ReviewOverdue, Reviewed,
        Revoked, Superseded,
    };
    let outcome = match phase {
        Pending => "pending",
        Approved => "approved",
        Rejected => "rejected",
        Expired => "expired",
        Cancelled => "cancelled",
        Superseded => "superseded",
        Revoked => "revoked",
        Consumed => "consumed",
        BreakGlass => "break_glass",
        AwaitingReview => "awaiting_review",
        Reviewed => "reviewed",
        ReviewOverdue => "review_overdue",
    };
    context.metrics.approvals.get_or_create(&Outcome { outcome }).inc();
    if let (Approved, Some(created)) = (phase, &approval.metadata.creation_timestamp) {
        let seconds = created.0.duration_until(clock::now()).as_secs_f64();
        context.metrics.approval_seconds.observe(seconds.max(0.0));
    }
    let warning = !matches!(phase, Pending | Approved | Consumed | Reviewed);
    context.event(approval, warning, reason, "Decide", message).await;
}

/// The guard as a fact.
pub(super) fn guard_fact(observed: &Observed) -> GuardFact<'_> {
    match &observed.guard.epoch {
        Some(epoch) if observed.guard.missing.is_empty() => GuardFact::Healthy(epoch),
        _ => GuardFact::Unhealthy(&observed.guard.missing),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
