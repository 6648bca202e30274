//! The one gate before every write. An [`ExecutionPermit`] exists only because this file said so, and is used up by the
//! executor that takes it: it cannot be made elsewhere, and not be copied.
//!
//! ```compile_fail
//! fn twice(permit: backstep::domain::approval::ExecutionPermit) {
//!     let copy = permit.clone();
//! }
//! ```
//!
//! ```compile_fail
//! use backstep::domain::approval::ExecutionPermit;
//! let forged = ExecutionPermit { execution: String::new(), ..todo!() };
//! ```

use std::collections::BTreeSet;

use super::{
    gate::{Approval, Gate, Hold, Known, Target},
    refusal::Refusal,
    state,
    tally::Verdict,
};
use crate::{
    api::approval_request::ApprovalPhase,
    domain::{
        object::{Digest, ObjectId},
        plan::{
            Bound, Plan,
            digest::{BoundItem, Match, plan_digest},
        },
    },
};

/// Everything but the latch is as it must be: steps 1 to 9 are passed. What is left is to consume the approval.
#[derive(Debug)]
#[must_use = "a clearance that is not latched permits nothing"]
pub struct Clearance {
    consumes_to: ApprovalPhase,
    permit: ExecutionPermit,
}

/// How the compare-and-swap on the `ApprovalRequest` went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Latch {
    /// The API server took the new phase and this `executionID`, at the resource version that was read in step 3.
    Taken {
        /// The phase as stored.
        phase: ApprovalPhase,
        /// `status.executionID` as stored.
        execution: String,
    },
    /// Somebody else changed it first.
    Lost,
    /// No answer. It may have been taken: read it again and resume.
    Unknown(String),
}

/// The right to execute one plan, once. Taken by value by the executor.
#[derive(Debug)]
#[must_use = "a permit that is not used up leaves a consumed approval behind"]
pub struct ExecutionPermit {
    execution: String,
    request_uid: String,
    plan_digest: Digest,
    plan: Plan<Bound>,
    approved: Vec<BoundItem>,
    kept: Vec<ObjectId>,
}

/// What a resumed execution is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The rest of the approved plan.
    Continue,
    /// Back to the safety snapshot; only these objects, which this execution wrote.
    Undo(BTreeSet<ObjectId>),
}

/// Steps 1 to 9 of the gate, in order:
///
/// 1. the guard is healthy and its epoch is that of the approval ·
/// 2. namespace and request are the same (UID), not terminating, suspended or cancelled ·
/// 3. the approval is `Approved` or `BreakGlass`, of this request, not expired, `notBefore` is past, nothing holds, the seal is
///    ours ·
/// 4. the policy is as it was ·
/// 5. the decisions still add up to an approval ·
/// 6. the Snapshot is the same (UID, digest) ·
/// 7. `plan`, made again from live, has the approved digest (or, with `KeepLive`, does less), its risk is not higher, and nothing
///    in it is refused ·
/// 8. the acting user has every right ·
/// 9. the ledger holds no execution.
///
/// # Errors
/// The first thing that is not so; nothing may be written.
pub fn clear(gate: &Gate, plan: Plan<Bound>) -> Result<Clearance, Refusal> {
    let approval = gate.approval.or(Refusal::ApprovalUnknown);
    guard(
        gate,
        approval.as_ref().ok().and_then(|approval| approval.epoch.as_deref()),
    )?;
    let target = same_target(gate)?;
    if target.suspended {
        return Err(Refusal::Suspended);
    }
    let approval = approval?;
    usable(gate, approval)?;
    match gate.policy_digest.or(Refusal::PolicyUnknown)? {
        Some(digest) if *digest == approval.policy_digest => {}
        Some(_) | None => return Err(Refusal::PolicyChanged),
    }
    if approval.phase == ApprovalPhase::Approved {
        match gate.verdict.or(Refusal::CountUnknown)? {
            Verdict::Approved => {}
            Verdict::Undetermined => return Err(Refusal::CountUnknown("an objection could not be checked".to_owned())),
            verdict @ (Verdict::Pending(_)
            | Verdict::Rejected(_)
            | Verdict::Revoked
            | Verdict::Expired
            | Verdict::AwaitingReview
            | Verdict::Reviewed) => return Err(Refusal::NotApprovedAnyMore(verdict.clone())),
        }
    }
    same_snapshot(gate, &plan)?;
    let kept = same_plan(gate, approval, &plan)?;
    has_rights(gate)?;
    if let Some(execution) = gate.executed.or(Refusal::LedgerUnknown)? {
        return Err(Refusal::AlreadyExecuted(execution.clone()));
    }
    let emergency = approval.phase == ApprovalPhase::BreakGlass;
    Ok(Clearance {
        consumes_to: if emergency {
            ApprovalPhase::AwaitingReview
        } else {
            ApprovalPhase::Consumed
        },
        permit: ExecutionPermit {
            execution: String::new(),
            request_uid: gate.request_uid.clone(),
            plan_digest: approval.plan_digest,
            plan,
            approved: gate.approved_items.clone(),
            kept,
        },
    })
}

impl Clearance {
    /// The phase to write, with a fresh `executionID`, by compare-and-swap at the resource version of step 3.
    pub const fn consumes_to(&self) -> ApprovalPhase {
        self.consumes_to
    }

    /// Step 10: the permit, where the compare-and-swap was taken with `execution`.
    ///
    /// # Errors
    /// It was lost, its outcome is not known, or something else was stored.
    pub fn permit(self, execution: &str, latch: Latch) -> Result<ExecutionPermit, Refusal> {
        match latch {
            Latch::Taken {
                phase,
                execution: stored,
            } if phase == self.consumes_to && stored == execution && !execution.is_empty() => Ok(ExecutionPermit {
                execution: stored,
                ..self.permit
            }),
            Latch::Taken { .. } | Latch::Lost => Err(Refusal::LatchLost),
            Latch::Unknown(why) => Err(Refusal::LatchUnknown(why)),
        }
    }
}

/// The permit of an execution that was interrupted: only the same `execution` of the same approved plan goes on.
///
/// 1 and 2 as in [`clear`], but that a suspended request goes on, and a cancelled or deleted one may be undone · 3 the approval was used by
/// this execution · 6 as in [`clear`] · 7 `gate.approved_items` prove to be the approved ones, and `plan` (what is left, or the
/// way back) stays within them · 8 as in [`clear`] · 9 the ledger holds this execution or none. What was approved is not counted
/// again: an objection during an execution cancels it.
///
/// # Errors
/// The first thing that is not so; nothing may be written.
pub fn resume(gate: &Gate, execution: &str, purpose: &Purpose, plan: Plan<Bound>) -> Result<ExecutionPermit, Refusal> {
    let approval = gate.approval.or(Refusal::ApprovalUnknown);
    guard(
        gate,
        approval.as_ref().ok().and_then(|approval| approval.epoch.as_deref()),
    )?;
    match same_target(gate) {
        Err(Refusal::Cancelled | Refusal::RequestTerminating) if matches!(purpose, Purpose::Undo(_)) => {}
        other => drop(other?),
    }
    let approval = approval?;
    if approval.request_uid != gate.request_uid {
        return Err(Refusal::OtherRequest);
    }
    if !state::is_used(approval.phase) {
        return Err(Refusal::NotApproved(approval.phase));
    }
    if approval.execution.as_deref() != Some(execution) || execution.is_empty() {
        return Err(Refusal::AlreadyExecuted(approval.execution.clone().unwrap_or_default()));
    }
    if !approval.seal_is_ours {
        return Err(Refusal::BrokenSeal);
    }
    if *purpose == Purpose::Continue {
        same_snapshot(gate, &plan)?;
        if plan_digest(plan.binding(), &gate.approved_items) != approval.plan_digest {
            return Err(Refusal::PlanChanged(Vec::new()));
        }
    }
    let outside: BTreeSet<ObjectId> = plan
        .bound_items()
        .iter()
        .filter(|item| {
            !gate.approved_items.iter().any(|approved| match purpose {
                Purpose::Continue => approved.object == item.object && approved.target_digest == item.target_digest,
                Purpose::Undo(wrote) => approved.object == item.object && wrote.contains(&item.object),
            })
        })
        .map(|item| item.object.clone())
        .collect();
    if !outside.is_empty() {
        return Err(Refusal::PlanChanged(outside.into_iter().collect()));
    }
    has_rights(gate)?;
    match gate.executed.or(Refusal::LedgerUnknown)? {
        Some(other) if other != execution => return Err(Refusal::AlreadyExecuted(other.clone())),
        Some(_) | None => {}
    }
    Ok(ExecutionPermit {
        execution: execution.to_owned(),
        request_uid: gate.request_uid.clone(),
        plan_digest: approval.plan_digest,
        plan,
        approved: gate.approved_items.clone(),
        kept: Vec::new(),
    })
}

/// Step 1. An approval without an epoch was made in none.
fn guard(gate: &Gate, epoch: Option<&str>) -> Result<(), Refusal> {
    let guard = gate.guard.or(Refusal::GuardUnknown)?;
    if !guard.healthy {
        return Err(Refusal::GuardUnhealthy);
    }
    // Where the approval could not be read, step 3 says so.
    if matches!(gate.approval, Known::Is(_)) && epoch != Some(guard.epoch.as_str()) {
        return Err(Refusal::EpochChanged);
    }
    Ok(())
}

/// Step 2, without `suspend`.
fn same_target(gate: &Gate) -> Result<&Target, Refusal> {
    let target = gate.target.or(Refusal::TargetUnknown)?;
    if target.namespace_uid != gate.namespace_uid {
        return Err(Refusal::NamespaceReplaced);
    }
    if target.namespace_terminating {
        return Err(Refusal::NamespaceTerminating);
    }
    if target.request_uid != gate.request_uid {
        return Err(Refusal::RequestReplaced);
    }
    if target.request_terminating {
        return Err(Refusal::RequestTerminating);
    }
    if target.cancelled {
        return Err(Refusal::Cancelled);
    }
    Ok(target)
}

/// Step 3.
fn usable(gate: &Gate, approval: &Approval) -> Result<(), Refusal> {
    let expires = match approval.phase {
        ApprovalPhase::Approved => Some(approval.usable_until.ok_or(Refusal::ApprovalExpired)?),
        ApprovalPhase::BreakGlass => approval.usable_until,
        used if state::is_used(used) => {
            return Err(Refusal::AlreadyExecuted(approval.execution.clone().unwrap_or_default()));
        }
        phase => return Err(Refusal::NotApproved(phase)),
    };
    if approval.request_uid != gate.request_uid {
        return Err(Refusal::OtherRequest);
    }
    if let Some(execution) = &approval.execution {
        return Err(Refusal::AlreadyExecuted(execution.clone()));
    }
    if expires.is_some_and(|end| gate.now >= end) {
        return Err(Refusal::ApprovalExpired);
    }
    if let Some(start) = approval.not_before.filter(|start| gate.now < *start) {
        return Err(Refusal::TooEarly(start));
    }
    match gate.hold {
        Hold::None => {}
        Hold::Until(end) => return Err(Refusal::Held(Some(end))),
        Hold::NoEnd => return Err(Refusal::Held(None)),
    }
    if approval.seal_is_ours {
        Ok(())
    } else {
        Err(Refusal::BrokenSeal)
    }
}

/// Step 6: the Snapshot is the one that the plan is bound to.
fn same_snapshot(gate: &Gate, plan: &Plan<Bound>) -> Result<(), Refusal> {
    let (uid, digest) = gate
        .snapshot
        .or(Refusal::SnapshotUnknown)?
        .as_ref()
        .ok_or(Refusal::SnapshotGone)?;
    let binding = plan.binding();
    if *uid == binding.snapshot_uid && *digest == binding.snapshot_digest {
        Ok(())
    } else {
        Err(Refusal::SnapshotChanged)
    }
}

/// Step 7; the objects that moved and stay as they are.
fn same_plan(gate: &Gate, approval: &Approval, plan: &Plan<Bound>) -> Result<Vec<ObjectId>, Refusal> {
    let binding = plan.binding();
    if binding.request_uid != gate.request_uid || binding.policy_digest != Some(approval.policy_digest) {
        return Err(Refusal::PlanChanged(Vec::new()));
    }
    let kept = match plan.compare(approval.plan_digest, &gate.approved_items, gate.conflict) {
        Match::Same => Vec::new(),
        Match::Narrower(kept) => kept,
        Match::Different(objects) => return Err(Refusal::PlanChanged(objects)),
    };
    if gate.risk > approval.risk {
        return Err(Refusal::RiskHigher {
            approved: approval.risk,
            now: gate.risk,
        });
    }
    let refused: Vec<ObjectId> = plan.refusals().map(|(id, _)| id.clone()).collect();
    if refused.is_empty() {
        Ok(kept)
    } else {
        Err(Refusal::PlanRefused(refused))
    }
}

/// Step 8.
fn has_rights(gate: &Gate) -> Result<(), Refusal> {
    let missing = gate.missing_rights.or(Refusal::RightsUnknown)?;
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Refusal::MissingRights(missing.clone()))
    }
}

impl ExecutionPermit {
    /// `executionID`: every write of this execution carries it.
    pub fn execution(&self) -> &str {
        &self.execution
    }

    /// UID of the request that it executes.
    pub fn request_uid(&self) -> &str {
        &self.request_uid
    }

    /// Digest of the approved plan.
    pub const fn plan_digest(&self) -> Digest {
        self.plan_digest
    }

    /// What to do; after a crash what is left of it.
    pub const fn plan(&self) -> &Plan<Bound> {
        &self.plan
    }

    /// All items of the approved plan, done ones included: restarts among them are due although their causes are done.
    pub fn approved(&self) -> &[BoundItem] {
        &self.approved
    }

    /// Objects that moved since the approval and stay as they are.
    pub fn kept(&self) -> &[ObjectId] {
        &self.kept
    }

    /// Uses the permit up.
    pub fn into_plan(self) -> Plan<Bound> {
        self.plan
    }
}

#[cfg(test)]
#[path = "permit_tests.rs"]
mod tests;
