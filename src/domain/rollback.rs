//! What happens next to a `RollbackRequest`.

use std::time::Duration;

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
    /// What is missing of CRDs and admission policies; empty is healthy.
    pub guard_missing: &'a [String],
    /// Where its plan stands.
    pub plan: PlanFact,
}

/// Where a plan stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanFact {
    /// Not asked for in this process.
    Unknown,
    /// Being made.
    UnderWay,
    /// Written, and nothing stands in its way.
    Clear,
    /// Written, and something does.
    Obstructed,
    /// Could not be made, but may be when tried again.
    Retryable,
    /// Cannot be made.
    Failed,
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
    /// This release does not execute.
    Refuse,
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
    /// Withdrawn before anything was written.
    Cancel,
}

/// Decides, in this order:
/// 1. being deleted, or in a final phase: nothing;
/// 2. cancelled: say so;
/// 3. the guard is not complete: wait;
/// 4. not a dry run: refuse, for execution comes with a later release;
/// 5. suspended: wait;
/// 6. the plan: finish, fail, retry or wait for it; not asked for: begin, or ask again after a crash.
pub fn next(facts: &Facts<'_>) -> Step {
    if facts.deleting || is_final(facts.phase) {
        return Step::Rest;
    }
    if facts.cancelled {
        return Step::Cancel;
    }
    if !facts.guard_missing.is_empty() {
        return Step::Wait {
            reason: reasons::GUARD_UNHEALTHY,
            message: format!(
                "Backstep is not installed completely: {}",
                facts.guard_missing.join("; ")
            ),
            again: Duration::from_secs(5),
        };
    }
    if !facts.dry_run {
        return Step::Refuse;
    }
    if facts.suspended {
        return Step::Wait {
            reason: reasons::SUSPENDED,
            message: "spec.suspend is true; set it to false to go on".into(),
            again: Duration::from_secs(600),
        };
    }
    match (facts.plan, facts.phase) {
        (PlanFact::Clear, _) => Step::Finish,
        (PlanFact::Obstructed | PlanFact::Failed, _) => Step::Fail,
        (PlanFact::Retryable, _) => Step::Retry,
        (PlanFact::UnderWay, _) => Step::Rest,
        (PlanFact::Unknown, RollbackPhase::Pending) => Step::Begin,
        (PlanFact::Unknown, _) => Step::Plan,
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
mod tests {
    use super::*;

    fn facts<'a>() -> Facts<'a> {
        Facts {
            phase: RollbackPhase::Pending,
            deleting: false,
            cancelled: false,
            suspended: false,
            dry_run: true,
            guard_missing: &[],
            plan: PlanFact::Unknown,
        }
    }

    #[test]
    fn a_dry_run_is_planned_and_a_plan_lost_in_a_crash_is_made_again() {
        assert_eq!(next(&facts()), Step::Begin);
        let planning = Facts {
            phase: RollbackPhase::Planning,
            ..facts()
        };
        assert_eq!(next(&planning), Step::Plan);
        assert_eq!(
            next(&Facts {
                plan: PlanFact::Clear,
                ..planning
            }),
            Step::Finish
        );
        assert_eq!(
            next(&Facts {
                plan: PlanFact::Obstructed,
                ..planning
            }),
            Step::Fail
        );
        assert_eq!(
            next(&Facts {
                plan: PlanFact::Retryable,
                ..planning
            }),
            Step::Retry
        );
    }

    #[test]
    fn a_request_that_would_write_is_refused_until_execution_exists() {
        assert_eq!(
            next(&Facts {
                dry_run: false,
                ..facts()
            }),
            Step::Refuse
        );
    }

    #[test]
    fn nothing_moves_when_cancelled_suspended_unguarded_or_final() {
        assert_eq!(
            next(&Facts {
                cancelled: true,
                ..facts()
            }),
            Step::Cancel
        );
        assert!(matches!(
            next(&Facts {
                suspended: true,
                ..facts()
            }),
            Step::Wait { .. }
        ));
        let missing = vec!["a policy".to_owned()];
        assert!(matches!(
            next(&Facts {
                guard_missing: &missing,
                ..facts()
            }),
            Step::Wait { .. }
        ));
        assert_eq!(
            next(&Facts {
                phase: RollbackPhase::Planned,
                plan: PlanFact::Clear,
                ..facts()
            }),
            Step::Rest
        );
        assert_eq!(
            next(&Facts {
                deleting: true,
                ..facts()
            }),
            Step::Rest
        );
    }
}
