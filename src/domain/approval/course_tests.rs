use super::*;
use crate::domain::approval::tally::Progress;

const EPOCH: &str = "sha256:e";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn stages() -> Vec<RequestStage> {
    ["sre", "owners"]
        .map(|name| RequestStage {
            name: name.into(),
            required: 1,
            rejections_to_deny: 1,
            approvers: Some(Approvers {
                groups: vec![format!("{name}-leads")],
                ..Approvers::default()
            }),
            ..RequestStage::default()
        })
        .to_vec()
}

fn tally(verdict: Verdict, approved: usize, vetoes: &[&str]) -> Tally {
    Tally {
        votes: Vec::new(),
        stages: ["sre", "owners"]
            .into_iter()
            .enumerate()
            .map(|(at, name)| Progress {
                stage: name.into(),
                approved: usize::from(at < approved),
                required: 1,
                rejected: 0,
                escalated: false,
            })
            .collect(),
        verdict,
        vetoes: vetoes.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn facts<'a>(phase: ApprovalPhase, stages: &'a [RequestStage], tally: &'a Tally) -> Facts<'a> {
    Facts {
        phase,
        expires: at(1000),
        over: Some(at(500)),
        epoch: Some(EPOCH),
        seal_is_ours: true,
        guard: GuardFact::Healthy(EPOCH),
        request: RequestFact::Open,
        policy: PolicyFact::Same,
        stages,
        policy_name: "prod",
        tally: Some(tally),
        ends: &[],
        command: "kubectl backstep approve undo -n shop",
        now: at(100),
    }
}

fn moved(step: &Step) -> Option<ApprovalPhase> {
    match step {
        Step::Move { to, .. } => Some(*to),
        Step::Rest | Step::Stay { .. } => None,
    }
}

#[test]
fn every_verdict_brings_a_pending_request_where_the_design_says() {
    use ApprovalPhase::{Approved, Expired, Rejected};
    let stages = stages();
    for (verdict, expected) in [
        (Verdict::Approved, Some(Approved)),
        (Verdict::Rejected(0), Some(Rejected)),
        (Verdict::Expired, Some(Expired)),
        (Verdict::Pending(0), None),
        (Verdict::Undetermined, None),
    ] {
        let tally = tally(verdict.clone(), 0, &[]);
        assert_eq!(
            moved(&next(&facts(ApprovalPhase::Pending, &stages, &tally))),
            expected,
            "{verdict:?}"
        );
    }
}

#[test]
fn an_approval_says_the_same_when_it_is_looked_at_again_so_that_nothing_is_written() {
    let (stages, tally) = (stages(), tally(Verdict::Approved, 2, &[]));
    let Step::Move { reason, message, .. } = next(&facts(ApprovalPhase::Pending, &stages, &tally)) else {
        panic!("it is approved");
    };
    let again = next(&facts(ApprovalPhase::Approved, &stages, &tally));
    assert!(
        matches!(&again, Step::Stay { reason: r, message: m, again: Some(_) } if *r == reason && *m == message),
        "{again:?}"
    );
}

#[test]
fn what_is_approved_is_revoked_by_an_objection_and_by_a_lost_quorum_but_not_by_a_failed_review() {
    let stages = stages();
    let (objected, lost) = (tally(Verdict::Revoked, 2, &["bob"]), tally(Verdict::Revoked, 1, &[]));
    for tally in [&objected, &lost] {
        let step = next(&facts(ApprovalPhase::Approved, &stages, tally));
        assert_eq!(moved(&step), Some(ApprovalPhase::Revoked), "{step:?}");
    }
    let mut unsure = lost.clone();
    unsure.votes.push(("1".into(), Err(NotCounted::AccessUnknown)));
    assert_eq!(moved(&next(&facts(ApprovalPhase::Approved, &stages, &unsure))), None);
}

#[test]
fn nothing_counts_while_the_guard_is_not_in_place_but_time_and_withdrawal_go_on() {
    let (stages, tally) = (stages(), tally(Verdict::Approved, 2, &[]));
    let missing = ["a binding is gone".to_owned()];
    let unhealthy = Facts {
        guard: GuardFact::Unhealthy(&missing),
        ..facts(ApprovalPhase::Pending, &stages, &tally)
    };
    let Step::Stay { reason, message, .. } = next(&unhealthy) else {
        panic!("{:?}", next(&unhealthy));
    };
    assert_eq!(reason, reasons::GUARD_UNHEALTHY);
    assert!(message.contains("a binding is gone"), "{message}");
    let expired = Facts {
        now: at(1000),
        ..unhealthy
    };
    assert_eq!(moved(&next(&expired)), Some(ApprovalPhase::Expired));
    let withdrawn = Facts {
        request: RequestFact::Withdrawn("cancelled"),
        ..unhealthy
    };
    assert_eq!(moved(&next(&withdrawn)), Some(ApprovalPhase::Cancelled));
}

#[test]
fn another_epoch_a_broken_seal_and_a_changed_policy_supersede_whatever_was_decided() {
    let (stages, tally) = (stages(), tally(Verdict::Approved, 2, &[]));
    for phase in [
        ApprovalPhase::Pending,
        ApprovalPhase::Approved,
        ApprovalPhase::BreakGlass,
    ] {
        let sound = facts(phase, &stages, &tally);
        for void in [
            Facts {
                guard: GuardFact::Healthy("sha256:f"),
                ..sound
            },
            Facts { epoch: None, ..sound },
            Facts {
                seal_is_ours: false,
                ..sound
            },
            Facts {
                policy: PolicyFact::Changed,
                ..sound
            },
            Facts {
                policy: PolicyFact::Gone,
                ..sound
            },
        ] {
            assert_eq!(
                moved(&next(&void)),
                Some(ApprovalPhase::Superseded),
                "{phase:?} {void:?}"
            );
        }
    }
}

#[test]
fn an_approval_ends_with_its_own_time_and_without_one_at_once() {
    let (stages, tally) = (stages(), tally(Verdict::Approved, 2, &[]));
    let approved = facts(ApprovalPhase::Approved, &stages, &tally);
    assert_eq!(
        moved(&next(&Facts {
            now: at(499),
            ..approved
        })),
        None
    );
    for over in [
        Facts {
            now: at(500),
            ..approved
        },
        Facts { over: None, ..approved },
    ] {
        assert_eq!(moved(&next(&over)), Some(ApprovalPhase::Expired));
    }
    let unused = Facts {
        now: at(1000),
        ..facts(ApprovalPhase::BreakGlass, &stages, &tally)
    };
    assert_eq!(moved(&next(&unused)), Some(ApprovalPhase::Cancelled));
}

#[test]
fn a_break_glass_that_ran_is_reviewed_or_overdue_and_can_still_be_reviewed_then() {
    let stages = stages();
    let (open, done) = (tally(Verdict::AwaitingReview, 0, &[]), tally(Verdict::Reviewed, 0, &[]));
    let waits = facts(ApprovalPhase::AwaitingReview, &stages, &open);
    assert_eq!(moved(&next(&waits)), None);
    let late = Facts { now: at(500), ..waits };
    assert_eq!(moved(&next(&late)), Some(ApprovalPhase::ReviewOverdue));
    for phase in [ApprovalPhase::AwaitingReview, ApprovalPhase::ReviewOverdue] {
        let reviewed = Facts {
            now: at(900),
            ..facts(phase, &stages, &done)
        };
        assert_eq!(moved(&next(&reviewed)), Some(ApprovalPhase::Reviewed));
    }
    // Its request is over by then, and nothing takes the review back.
    let ended = Facts {
        request: RequestFact::Withdrawn("ended"),
        phase: ApprovalPhase::ReviewOverdue,
        ..late
    };
    assert_eq!(moved(&next(&ended)), None);
}

#[test]
fn the_message_says_who_still_has_to_decide_and_how_and_when_it_is_looked_at_again() {
    let (stages, tally) = (stages(), tally(Verdict::Pending(1), 1, &[]));
    let ends = [at(50), at(300)];
    let waiting = Facts {
        ends: &ends,
        ..facts(ApprovalPhase::Pending, &stages, &tally)
    };
    let Step::Stay { message, again, .. } = next(&waiting) else {
        panic!("{:?}", next(&waiting));
    };
    assert_eq!(
        message,
        "0 of 1 approvals of stage owners; group owners-leads may decide (verb approve on approvalstages prod:owners): \
         kubectl backstep approve undo -n shop"
    );
    assert_eq!(again, Some(at(300)));
}

#[test]
fn a_final_request_rests() {
    let (stages, tally) = (stages(), tally(Verdict::Approved, 2, &[]));
    for phase in [
        ApprovalPhase::Consumed,
        ApprovalPhase::Rejected,
        ApprovalPhase::Reviewed,
    ] {
        assert_eq!(next(&facts(phase, &stages, &tally)), Step::Rest);
    }
}
