use super::*;
use crate::{
    api::{ApprovalDecisionSpec, approval_decision::Approver, approval_request::Decision, reference::UidReference},
    domain::approval::Verdict,
};

fn decision(uid: &str, second: i64) -> ApprovalDecision {
    let mut decision = ApprovalDecision::new(
        uid,
        ApprovalDecisionSpec {
            request_ref: UidReference::default(),
            plan_digest: String::new(),
            policy_name: "prod".into(),
            stage: "sre".into(),
            decision: Decision::Approve,
            comment: None,
            approver: Some(Approver {
                username: Some(uid.to_owned()),
                ..Approver::default()
            }),
            evidence: None,
        },
    );
    decision.metadata.uid = Some(uid.to_owned());
    decision.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
    decision
}

fn tally(votes: &[(&ApprovalDecision, Result<(), NotCounted>)]) -> Tally {
    Tally {
        votes: votes
            .iter()
            .map(|(decision, result)| (decision.uid().unwrap(), *result))
            .collect(),
        stages: Vec::new(),
        verdict: Verdict::Pending(0),
        vetoes: Vec::new(),
    }
}

fn brief(recorded: &[RecordedDecision]) -> Vec<(&str, bool, Option<&str>)> {
    recorded
        .iter()
        .map(|one| (one.uid.as_str(), one.counted == Some(true), one.reason.as_deref()))
        .collect()
}

#[test]
fn what_was_recorded_stays_and_says_what_it_counts_as_now() {
    let (ada, bob) = (decision("ada", 1), decision("bob", 2));
    let both = [ada.clone(), bob.clone()];
    let (first, complete) = record(
        Vec::new(),
        &both,
        &tally(&[(&ada, Err(NotCounted::StageNotOpen)), (&bob, Ok(()))]),
        Some("e"),
    );
    assert!(complete);
    let early = NotCounted::StageNotOpen.to_string();
    assert_eq!(
        brief(&first),
        [("bob", true, None), ("ada", false, Some(early.as_str()))]
    );
    // Later ada counts, and bob's decision was purged.
    let (second, _) = record(first, &both[..1], &tally(&[(&ada, Ok(()))]), Some("e"));
    assert_eq!(
        brief(&second),
        [
            ("bob", false, Some("the ApprovalDecision is gone")),
            ("ada", true, None)
        ]
    );
}

#[test]
fn who_does_not_count_never_crowds_out_who_does() {
    let noise: Vec<ApprovalDecision> = (0..200_i64).map(|at| decision(&format!("noise-{at}"), at)).collect();
    let ada = decision("ada", 1000);
    let mut votes: Vec<_> = noise.iter().map(|one| (one, Err(NotCounted::NotAllowed))).collect();
    let (recorded, complete) = record(Vec::new(), &noise, &tally(&votes), None);
    assert!(complete);
    assert_eq!(recorded.len(), MOST_NOT_COUNTED);
    let mut all = noise.clone();
    all.push(ada.clone());
    votes.push((&ada, Ok(())));
    let (recorded, complete) = record(recorded, &all, &tally(&votes), None);
    assert!(complete && recorded.iter().any(|one| one.uid == "ada" && one.counted == Some(true)));
}

#[test]
fn more_that_count_than_can_be_recorded_are_noticed() {
    let many: Vec<ApprovalDecision> = (0..70_i64).map(|at| decision(&format!("p-{at}"), at)).collect();
    let votes: Vec<_> = many.iter().map(|one| (one, Ok(()))).collect();
    let (recorded, complete) = record(Vec::new(), &many, &tally(&votes), None);
    assert_eq!((recorded.len(), complete), (MOST_RECORDED, false));
}
