use super::*;

fn facts<'a>() -> Facts<'a> {
    Facts {
        phase: RollbackPhase::Pending,
        deleting: false,
        cancelled: false,
        suspended: false,
        dry_run: false,
        overdue: false,
        guard_missing: &[],
        plan: PlanFact::Unknown,
        approval: ApprovalFact::None,
        execution: ExecutionFact::Unknown,
    }
}

const PHASES: [RollbackPhase; 14] = [
    RollbackPhase::Pending,
    RollbackPhase::Planning,
    RollbackPhase::Planned,
    RollbackPhase::AwaitingApproval,
    RollbackPhase::Executing,
    RollbackPhase::Verifying,
    RollbackPhase::Completed,
    RollbackPhase::Partial,
    RollbackPhase::Failed,
    RollbackPhase::Undone,
    RollbackPhase::Rejected,
    RollbackPhase::Expired,
    RollbackPhase::Cancelled,
    RollbackPhase::Superseded,
];
const PLANS: [PlanFact; 9] = [
    PlanFact::Unknown,
    PlanFact::UnderWay,
    PlanFact::Clear,
    PlanFact::NoPolicy,
    PlanFact::Unapprovable,
    PlanFact::Empty,
    PlanFact::Obstructed,
    PlanFact::Retryable,
    PlanFact::Failed,
];
const APPROVALS: [ApprovalFact; 14] = [
    ApprovalFact::None,
    ApprovalFact::Gone,
    ApprovalFact::Is(ApprovalPhase::Pending),
    ApprovalFact::Is(ApprovalPhase::Approved),
    ApprovalFact::Is(ApprovalPhase::Rejected),
    ApprovalFact::Is(ApprovalPhase::Expired),
    ApprovalFact::Is(ApprovalPhase::Cancelled),
    ApprovalFact::Is(ApprovalPhase::Superseded),
    ApprovalFact::Is(ApprovalPhase::Revoked),
    ApprovalFact::Is(ApprovalPhase::Consumed),
    ApprovalFact::Is(ApprovalPhase::BreakGlass),
    ApprovalFact::Is(ApprovalPhase::AwaitingReview),
    ApprovalFact::Is(ApprovalPhase::Reviewed),
    ApprovalFact::Is(ApprovalPhase::ReviewOverdue),
];
const EXECUTIONS: [ExecutionFact; 5] = [
    ExecutionFact::Unknown,
    ExecutionFact::UnderWay,
    ExecutionFact::Held,
    ExecutionFact::Void,
    ExecutionFact::Ended,
];

fn every(mut look: impl FnMut(&Facts<'_>)) {
    for phase in PHASES {
        for plan in PLANS {
            for approval in APPROVALS {
                for execution in EXECUTIONS {
                    for bits in 0..32_u8 {
                        look(&Facts {
                            phase,
                            plan,
                            approval,
                            execution,
                            deleting: bits & 1 != 0,
                            cancelled: bits & 2 != 0,
                            suspended: bits & 4 != 0,
                            dry_run: bits & 8 != 0,
                            overdue: bits & 16 != 0,
                            guard_missing: &[],
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_is_begun_without_an_approval_that_may_be_used() {
    every(|facts| {
        if next(facts) != Step::Execute {
            return;
        }
        let usable = matches!(
            facts.approval,
            ApprovalFact::Is(
                ApprovalPhase::Approved
                    | ApprovalPhase::BreakGlass
                    | ApprovalPhase::Consumed
                    | ApprovalPhase::AwaitingReview
                    | ApprovalPhase::Reviewed
                    | ApprovalPhase::ReviewOverdue
            )
        );
        // What was executing before a restart passes the gate again, which looks at the approval itself.
        let resumes = matches!(facts.phase, RollbackPhase::Executing | RollbackPhase::Verifying);
        assert!(usable || resumes, "{facts:?}");
    });
}

#[test]
fn a_final_request_never_moves() {
    every(|facts| {
        if is_final(facts.phase) {
            assert_eq!(next(facts), Step::Rest, "{facts:?}");
        }
    });
}

#[test]
fn a_withdrawn_or_deleted_request_asks_for_nothing_and_begins_nothing() {
    every(|facts| {
        let used = under_way(facts).is_some();
        if (facts.cancelled || facts.deleting) && !used {
            let step = next(facts);
            assert!(
                matches!(
                    step,
                    Step::Rest | Step::Cancel | Step::Release | Step::Report | Step::Conclude
                ),
                "{step:?} {facts:?}"
            );
        }
    });
}

#[test]
fn a_deleted_request_goes_at_once_before_its_execution_and_is_ended_first_in_the_middle() {
    let waiting = Facts {
        phase: RollbackPhase::AwaitingApproval,
        approval: ApprovalFact::Is(ApprovalPhase::Approved),
        deleting: true,
        ..facts()
    };
    assert_eq!(next(&waiting), Step::Release);
    for (execution, step) in [
        (ExecutionFact::UnderWay, Step::Report),
        (ExecutionFact::Unknown, Step::Execute),
        (ExecutionFact::Ended, Step::Conclude),
    ] {
        let executing = Facts {
            phase: RollbackPhase::Executing,
            approval: ApprovalFact::Is(ApprovalPhase::Consumed),
            execution,
            ..waiting
        };
        assert_eq!(next(&executing), step);
    }
}

#[test]
fn a_dry_run_never_asks_and_never_executes_before_it_was_let_through() {
    every(|facts| {
        if facts.dry_run && under_way(facts).is_none() {
            let step = next(facts);
            assert!(
                !matches!(step, Step::Ask | Step::Execute | Step::Prove),
                "{step:?} {facts:?}"
            );
        }
    });
}

#[test]
fn a_suspended_request_is_held_before_execution_and_not_in_the_middle() {
    let approved = Facts {
        phase: RollbackPhase::AwaitingApproval,
        approval: ApprovalFact::Is(ApprovalPhase::Approved),
        suspended: true,
        ..facts()
    };
    assert!(matches!(next(&approved), Step::Wait { reason, .. } if reason == reasons::SUSPENDED));
    let executing = Facts {
        phase: RollbackPhase::Executing,
        approval: ApprovalFact::Is(ApprovalPhase::Consumed),
        ..approved
    };
    assert_eq!(next(&executing), Step::Execute);
}

#[test]
fn a_void_or_vanished_approval_is_asked_for_again() {
    for (approval, execution) in [
        (ApprovalFact::Gone, ExecutionFact::Unknown),
        (ApprovalFact::Is(ApprovalPhase::Superseded), ExecutionFact::Unknown),
        (ApprovalFact::Is(ApprovalPhase::Approved), ExecutionFact::Void),
    ] {
        let facts = Facts {
            phase: RollbackPhase::AwaitingApproval,
            approval,
            execution,
            ..facts()
        };
        assert_eq!(next(&facts), Step::Again);
    }
}

#[test]
fn what_came_of_one_approval_is_heard_before_another_is_asked_for() {
    every(|facts| {
        let at_the_gate = matches!(facts.execution, ExecutionFact::UnderWay | ExecutionFact::Ended);
        if at_the_gate && facts.approval != ApprovalFact::None {
            assert!(!matches!(next(facts), Step::Again | Step::Close(_)), "{facts:?}");
        }
    });
    for approval in [ApprovalFact::Gone, ApprovalFact::Is(ApprovalPhase::Superseded)] {
        let at = |execution| {
            next(&Facts {
                phase: RollbackPhase::AwaitingApproval,
                approval,
                execution,
                ..facts()
            })
        };
        assert_eq!(at(ExecutionFact::UnderWay), Step::Report);
        assert_eq!(at(ExecutionFact::Void), Step::Again);
    }
}

#[test]
fn the_guard_holds_everything_that_was_not_let_through() {
    let missing = vec!["a policy".to_owned()];
    let approved = Facts {
        phase: RollbackPhase::AwaitingApproval,
        approval: ApprovalFact::Is(ApprovalPhase::Approved),
        guard_missing: &missing,
        ..facts()
    };
    assert!(matches!(next(&approved), Step::Wait { reason, .. } if reason == reasons::GUARD_UNHEALTHY));
}

#[test]
fn a_plan_is_made_again_after_a_crash_and_without_a_policy_waits_until_its_time_is_over() {
    assert_eq!(next(&facts()), Step::Begin);
    let planning = Facts {
        phase: RollbackPhase::Planning,
        ..facts()
    };
    assert_eq!(next(&planning), Step::Plan);
    let none = Facts {
        plan: PlanFact::NoPolicy,
        ..planning
    };
    assert_eq!(next(&none), Step::Hold);
    assert_eq!(
        next(&Facts { overdue: true, ..none }),
        Step::Close(RollbackPhase::Expired)
    );
}
