use proptest::prelude::*;

use super::{
    tests::{Setting, at, stage, vote},
    *,
};
use crate::{
    api::{approval_policy::Alias, approval_request::OnTimeout},
    domain::approval::identity::People,
};

/// `(voter, stage, decision, minute, access)`.
type Cast = (usize, usize, usize, i64, u8);

const VOTERS: [&str; 6] = ["ada", "bob", "carl", "dora", "oidc:ada", "requester"];
const STAGES: [&str; 3] = ["one", "two", "three"];

fn any_cast(decisions: std::ops::Range<usize>) -> impl Strategy<Value = Cast> {
    // Mostly decisions that count, or hardly anything would ever be approved.
    let decision = prop_oneof![40 => Just(decisions.start), 1 => decisions];
    (0..VOTERS.len(), 0..STAGES.len(), decision, 0..58i64, 0..60u8)
}

fn cast(index: usize, (voter, stage, decision, minute, access): Cast, uids: &[String]) -> Vote<'_> {
    const DECISIONS: [Decision; 3] = [Decision::Approve, Decision::Reject, Decision::Revoke];
    Vote {
        uid: &uids[index],
        access: match access {
            0 => Access::Denied,
            1 => Access::Unknown,
            _ => Access::Allowed,
        },
        ..vote(VOTERS[voter], STAGES[stage], DECISIONS[decision], minute)
    }
}

fn any_setting() -> impl Strategy<Value = Setting> {
    let stage_of = (
        0..3i32,
        1..3i32,
        prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(0..VOTERS.len(), 1..4)],
        prop_oneof![6 => Just(0), 1 => 1..40u32],
        any::<bool>(),
    );
    (prop::collection::vec(stage_of, 1..4), any::<bool>(), 0..60i64).prop_map(|(stages, approved, minute)| {
        let stages = stages
            .iter()
            .enumerate()
            .map(|(index, (required, deny, users, timeout, escalate))| {
                let users: Vec<&str> = users.iter().map(|user| VOTERS[*user]).collect();
                let mut one = stage(STAGES[index], *required, &users);
                one.rejections_to_deny = *deny;
                one.timeout = (*timeout > 0).then(|| format!("{timeout}m"));
                one.on_timeout = escalate.then(|| OnTimeout {
                    action: TimeoutAction::Escalate,
                    approvers: stage("x", 1, &["dora"]).approvers,
                });
                one
            })
            .collect();
        let mut setting = Setting::new(stages);
        setting.people = People::new(&[Alias {
            name: "ada".to_owned(),
            identities: vec!["ada".to_owned(), "oidc:ada".to_owned()],
        }]);
        if approved {
            setting.phase = ApprovalPhase::Approved;
            setting.approved = Some(at(minute));
        }
        setting
    })
}

fn is_approved(setting: &Setting, casts: &[Cast], now: i64) -> bool {
    let uids: Vec<String> = (0..casts.len()).map(|index| format!("v{index:03}")).collect();
    let votes: Vec<Vote<'_>> = casts
        .iter()
        .enumerate()
        .map(|(index, one)| cast(index, *one, &uids))
        .collect();
    tally(&setting.ballot(), &votes, at(now)).verdict == Verdict::Approved
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn another_approval_never_makes_it_less_approved(
        setting in any_setting(), casts in prop::collection::vec(any_cast(0..3), 0..7), more in any_cast(0..1), now in 0..62i64
    ) {
        if is_approved(&setting, &casts, now) {
            let mut all = casts.clone();
            all.push(more);
            prop_assert!(is_approved(&setting, &all, now));
        }
    }

    #[test]
    fn another_objection_never_makes_it_more_approved(
        setting in any_setting(), casts in prop::collection::vec(any_cast(0..3), 0..7), more in any_cast(1..3), now in 0..62i64
    ) {
        if !is_approved(&setting, &casts, now) {
            let mut all = casts.clone();
            all.push(more);
            prop_assert!(!is_approved(&setting, &all, now));
        }
    }

    #[test]
    fn the_order_in_which_decisions_are_listed_means_nothing(
        setting in any_setting(), casts in prop::collection::vec(any_cast(0..3), 0..7), now in 0..62i64
    ) {
        let uids: Vec<String> = (0..casts.len()).map(|index| format!("v{index:03}")).collect();
        let votes: Vec<Vote<'_>> = casts.iter().enumerate().map(|(index, one)| cast(index, *one, &uids)).collect();
        let mut reversed = votes.clone();
        reversed.reverse();
        let (forth, mut back) = (tally(&setting.ballot(), &votes, at(now)), tally(&setting.ballot(), &reversed, at(now)));
        back.votes.reverse();
        prop_assert_eq!(forth.votes, back.votes);
        prop_assert_eq!(forth.verdict, back.verdict);
    }

    #[test]
    fn no_excluded_person_and_no_one_without_rights_ever_counts(
        setting in any_setting(), casts in prop::collection::vec(any_cast(0..3), 0..7), now in 0..62i64
    ) {
        let uids: Vec<String> = (0..casts.len()).map(|index| format!("v{index:03}")).collect();
        let votes: Vec<Vote<'_>> = casts.iter().enumerate().map(|(index, one)| cast(index, *one, &uids)).collect();
        let tally = tally(&setting.ballot(), &votes, at(now));
        for (vote, (_, counted)) in votes.iter().zip(&tally.votes) {
            if counted.is_ok() {
                prop_assert!(vote.username != "requester" && vote.access == Access::Allowed);
            }
        }
        for stage in &tally.stages {
            prop_assert!(stage.approved <= stage.required);
        }
    }
}
