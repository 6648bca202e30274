//! What happens next to a `RollbackRequest`.

use std::time::Duration;

pub use crate::api::approval_request::ApprovalPhase;
use crate::api::{reasons, rollback_request::RollbackPhase};

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is one field of the spec")]
pub struct Facts<'a> {
    /// Where it stands.
    pub phase: RollbackPhase,
    /// It is being deleted.
    pub deleting: bool,
    /// `spec.cancel`.
    pub cancelled: bool,
    /// `spec.suspend`.
    pub suspended: bool,
    /// `spec.dryRun`.
    pub dry_run: bool,
    /// `spec.timeouts.approval` is over, counted from the creation of the request.
    pub overdue: bool,
    /// What is missing of CRDs and admission policies; empty is healthy.
    pub guard_missing: &'a [String],
    /// Where its plan stands.
    pub plan: PlanFact,
    /// Where its approval stands.
    pub approval: ApprovalFact,
    /// Where its execution stands.
    pub execution: ExecutionFact,
}

/// Where a plan stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanFact {
    /// Not asked for in this process.
    Unknown,
    /// Being made.
    UnderWay,
    /// Written, nothing stands in its way, and a policy says how it is approved.
    Clear,
    /// Written, nothing stands in its way, but no policy matches: nobody can approve it yet.
    NoPolicy,
    /// Written, nothing stands in its way, but its policy refuses it: no other one is asked.
    Unapprovable,
    /// Written, and there is nothing to write to the target.
    Empty,
    /// Written, and something stands in its way.
    Obstructed,
    /// Could not be made, but may be when tried again.
    Retryable,
    /// Cannot be made.
    Failed,
}

/// Where the approval stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovalFact {
    /// None was asked for.
    None,
    /// It was asked for and its object is not there any more.
    Gone,
    /// Its phase, as read just now.
    Is(ApprovalPhase),
}

/// Where the execution stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecutionFact {
    /// Not begun in this process.
    Unknown,
    /// Under way.
    UnderWay,
    /// The gate did not open, or the target is held by another one: nothing is lost, try again.
    Held,
    /// The approval is void: plan again and ask again.
    Void,
    /// It has come to an end, good or bad.
    Ended,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until something changes.
    Rest,
    /// Something else has to happen first.
    Wait {
        /// Reason of the condition.
        reason: &'static str,
        /// What for.
        message: String,
        /// When to look again.
        again: Duration,
    },
    /// Record that planning began, and make the plan.
    Begin,
    /// Make the plan (again).
    Plan,
    /// Say why the plan is not there yet, and make it again.
    Retry,
    /// Publish the plan: a dry run is done.
    Finish,
    /// Publish why there is no plan, or what stands in its way.
    Fail,
    /// Say that no policy matches, and look again until the time is over.
    Hold,
    /// Publish the plan and ask for approval.
    Ask,
    /// Say for whom it waits.
    Await,
    /// Let the approval that does not fit any more go, plan again and ask again.
    Again,
    /// Pass the gate and execute; after a crash, go on.
    Execute,
    /// Nothing to write: prove it.
    Prove,
    /// Publish how far the execution is, and pass on that it was cancelled.
    Report,
    /// Say what the gate waits for, and try it again.
    Recheck,
    /// Publish what came of the execution.
    Conclude,
    /// The approval ended without one.
    Close(RollbackPhase),
    /// Withdrawn before anything was written.
    Cancel,
    /// Being deleted before anything was written: let it go.
    Release,
}

/// Decides, in this order:
/// 1. in a final phase: nothing;
/// 2. the approval is used, or tests run: execute or prove, go on after a crash, report, conclude;
/// 3. being deleted: let it go, once a gate that is being passed has looked; in the middle (2) it is cancelled first;
/// 4. cancelled: say so, once a gate that is being passed has looked;
/// 5. the guard is not complete: wait;
/// 6. asked for: wait for the decision; approved and not suspended: execute; ended without: close; void: plan and ask again;
/// 7. the plan: finish a dry run, prove what is empty unless suspended, ask, hold, fail, retry or wait for it; not asked for:
///    begin, or ask again after a crash. A suspended request is planned and approved, not executed.
pub fn next(facts: &Facts<'_>) -> Step {
    if is_final(facts.phase) {
        return Step::Rest;
    }
    if let Some(step) = under_way(facts) {
        return step;
    }
    if facts.deleting {
        return match facts.execution {
            ExecutionFact::UnderWay => Step::Report,
            ExecutionFact::Unknown | ExecutionFact::Held | ExecutionFact::Void => Step::Release,
            ExecutionFact::Ended => Step::Conclude,
        };
    }
    if facts.cancelled {
        return match facts.execution {
            ExecutionFact::UnderWay => Step::Report,
            ExecutionFact::Unknown | ExecutionFact::Held | ExecutionFact::Void => Step::Cancel,
            ExecutionFact::Ended => Step::Conclude,
        };
    }
    if !facts.guard_missing.is_empty() {
        return Step::Wait {
            reason: reasons::GUARD_UNHEALTHY,
            message: format!("nothing runs until this is mended: {}", facts.guard_missing.join("; ")),
            again: Duration::from_secs(5),
        };
    }
    if !facts.dry_run
        && let Some(step) = asked(facts)
    {
        return step;
    }
    match (facts.plan, facts.phase) {
        (PlanFact::Clear | PlanFact::NoPolicy | PlanFact::Unapprovable | PlanFact::Empty, _) if facts.dry_run => {
            Step::Finish
        }
        (PlanFact::Clear, _) => Step::Ask,
        (PlanFact::NoPolicy, _) if facts.overdue => Step::Close(RollbackPhase::Expired),
        (PlanFact::NoPolicy, _) => Step::Hold,
        (PlanFact::Empty, _) if facts.suspended => suspended(),
        (PlanFact::Empty, _) => Step::Prove,
        (PlanFact::Obstructed | PlanFact::Unapprovable | PlanFact::Failed, _) => Step::Fail,
        (PlanFact::Retryable, _) => Step::Retry,
        (PlanFact::UnderWay, _) => Step::Rest,
        (PlanFact::Unknown, RollbackPhase::Pending) => Step::Begin,
        (PlanFact::Unknown, _) => Step::Plan,
    }
}

/// 2: what was let through the gate goes on, whatever the spec says now; it looks at `cancel` itself.
fn under_way(facts: &Facts<'_>) -> Option<Step> {
    use ApprovalPhase::{AwaitingReview, Consumed, ReviewOverdue, Reviewed};
    let used = matches!(
        facts.approval,
        ApprovalFact::Is(Consumed | AwaitingReview | ReviewOverdue | Reviewed)
    );
    let working = matches!(facts.phase, RollbackPhase::Executing | RollbackPhase::Verifying);
    if !used && !working {
        return None;
    }
    Some(match facts.execution {
        ExecutionFact::Unknown if facts.phase == RollbackPhase::Verifying && facts.approval == ApprovalFact::None => {
            Step::Prove
        }
        ExecutionFact::Unknown => Step::Execute,
        ExecutionFact::UnderWay => Step::Report,
        ExecutionFact::Held => Step::Recheck,
        ExecutionFact::Void | ExecutionFact::Ended => Step::Conclude,
    })
}

/// 6: what the approval says; nothing where none was asked for. Whoever is at the gate is heard first, whatever became of the
/// approval meanwhile: what came of it is that approval's, and must not be taken for the next one's.
fn asked(facts: &Facts<'_>) -> Option<Step> {
    match (facts.approval, facts.execution) {
        (ApprovalFact::None, _) => return None,
        (_, ExecutionFact::UnderWay) => return Some(Step::Report),
        (_, ExecutionFact::Ended) => return Some(Step::Conclude),
        (_, ExecutionFact::Unknown | ExecutionFact::Held | ExecutionFact::Void) => {}
    }
    let ApprovalFact::Is(phase) = facts.approval else {
        return Some(Step::Again);
    };
    Some(match phase {
        ApprovalPhase::Pending => Step::Await,
        ApprovalPhase::Approved | ApprovalPhase::BreakGlass => match facts.execution {
            ExecutionFact::Unknown if facts.suspended => suspended(),
            ExecutionFact::Held => Step::Recheck,
            ExecutionFact::Void => Step::Again,
            _ => Step::Execute,
        },
        ApprovalPhase::Rejected | ApprovalPhase::Revoked => Step::Close(RollbackPhase::Rejected),
        ApprovalPhase::Expired => Step::Close(RollbackPhase::Expired),
        ApprovalPhase::Cancelled => Step::Close(RollbackPhase::Cancelled),
        ApprovalPhase::Superseded => Step::Again,
        // Decided by `under_way`.
        ApprovalPhase::Consumed
        | ApprovalPhase::AwaitingReview
        | ApprovalPhase::ReviewOverdue
        | ApprovalPhase::Reviewed => Step::Execute,
    })
}

fn suspended() -> Step {
    Step::Wait {
        reason: reasons::SUSPENDED,
        message: "spec.suspend is true; set it to false to go on".into(),
        again: Duration::from_secs(600),
    }
}

/// Whether a phase has no way out.
pub const fn is_final(phase: RollbackPhase) -> bool {
    match phase {
        RollbackPhase::Pending
        | RollbackPhase::Planning
        | RollbackPhase::AwaitingApproval
        | RollbackPhase::Executing
        | RollbackPhase::Verifying => false,
        RollbackPhase::Planned
        | RollbackPhase::Completed
        | RollbackPhase::Partial
        | RollbackPhase::Failed
        | RollbackPhase::Undone
        | RollbackPhase::Rejected
        | RollbackPhase::Expired
        | RollbackPhase::Cancelled
        | RollbackPhase::Superseded => true,
    }
}

#[cfg(test)]
#[path = "rollback_tests.rs"]
mod tests;
