use proptest::prelude::*;

use super::*;
use crate::api::{approval_policy::Alias, approval_request::OnTimeout};

fn at(minutes: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + 60 * minutes).unwrap()
}

fn plan() -> Digest {
    Digest::of(b"plan")
}

fn stage(name: &str, required: i32, users: &[&str]) -> RequestStage {
    RequestStage {
        name: name.to_owned(),
        required,
        rejections_to_deny: 1,
        approvers: (!users.is_empty()).then(|| Approvers {
            users: users.iter().map(|user| (*user).to_owned()).collect(),
            ..Approvers::default()
        }),
        ..RequestStage::default()
    }
}

/// A world around a ballot, each part of which a test may change.
#[derive(Debug)]
struct Setting {
    stages: Vec<RequestStage>,
    exclusions: Exclusions,
    people: People,
    phase: ApprovalPhase,
    approved: Option<Timestamp>,
    epoch: Timestamp,
    require_comment: bool,
}

impl Setting {
    fn new(stages: Vec<RequestStage>) -> Self {
        Self {
            stages,
            exclusions: Exclusions {
                namespace: "shop".to_owned(),
                requested_by: "requester".to_owned(),
                ..Exclusions::default()
            },
            people: People::default(),
            phase: ApprovalPhase::Pending,
            approved: None,
            epoch: at(-10),
            require_comment: false,
        }
    }

    fn ballot(&self) -> Ballot<'_> {
        Ballot {
            request_uid: "request",
            plan_digest: plan(),
            policy: "prod",
            stages: &self.stages,
            created: at(0),
            expires: at(60),
            phase: self.phase,
            approved: self.approved,
            epoch: self.epoch,
            exclusions: &self.exclusions,
            people: &self.people,
            require_comment: self.require_comment,
        }
    }

    fn count(&self, votes: &[Vote<'_>]) -> Tally {
        tally(&self.ballot(), votes, at(30))
    }

    /// Why the single vote does not count.
    fn reason(&self, vote: Vote<'_>) -> Option<NotCounted> {
        self.count(&[vote]).votes[0].1.err()
    }
}

fn vote<'a>(username: &'a str, stage: &'a str, decision: Decision, minute: i64) -> Vote<'a> {
    Vote {
        uid: username,
        username,
        groups: &[],
        request_uid: "request",
        plan_digest: Some(plan()),
        policy: "prod",
        stage,
        decision,
        has_comment: true,
        evidence: Evidence::None,
        at: at(minute),
        access: Access::Allowed,
    }
}

fn yes<'a>(username: &'a str, stage: &'a str, minute: i64) -> Vote<'a> {
    vote(username, stage, Decision::Approve, minute)
}

fn no<'a>(username: &'a str, stage: &'a str, minute: i64) -> Vote<'a> {
    vote(username, stage, Decision::Reject, minute)
}

#[test]
fn one_approval_of_one_is_approved() {
    let setting = Setting::new(vec![stage("sre", 1, &["ada"])]);
    assert_eq!(setting.count(&[]).verdict, Verdict::Pending(0));
    let tally = setting.count(&[yes("ada", "sre", 1)]);
    assert_eq!(
        (tally.verdict, tally.votes),
        (Verdict::Approved, vec![("ada".to_owned(), Ok(()))])
    );
}

#[test]
fn every_rule_that_a_decision_breaks_has_its_reason() {
    let setting = Setting::new(vec![stage(
        "sre",
        1,
        &["ada", "requester", "system:serviceaccount:shop:robot"],
    )]);
    let ada = || yes("ada", "sre", 1);
    let cases = [
        (
            Vote {
                request_uid: "earlier",
                ..ada()
            },
            NotCounted::OtherRequest,
        ),
        (
            Vote {
                plan_digest: Some(Digest::of(b"old")),
                ..ada()
            },
            NotCounted::StalePlan,
        ),
        (
            Vote {
                plan_digest: None,
                ..ada()
            },
            NotCounted::StalePlan,
        ),
        (Vote { policy: "dev", ..ada() }, NotCounted::OtherPolicy),
        (
            Vote {
                stage: "owners",
                ..ada()
            },
            NotCounted::UnknownStage,
        ),
        (Vote { at: at(-1), ..ada() }, NotCounted::BeforeRequest),
        (Vote { at: at(60), ..ada() }, NotCounted::AfterExpiry),
        (yes("eve", "sre", 1), NotCounted::NotListed),
        (
            Vote {
                access: Access::Denied,
                ..ada()
            },
            NotCounted::NotAllowed,
        ),
        (
            Vote {
                access: Access::Unknown,
                ..ada()
            },
            NotCounted::AccessUnknown,
        ),
        (yes("requester", "sre", 1), NotCounted::Excluded(Exclusion::Requester)),
        (
            yes("system:serviceaccount:shop:robot", "sre", 1),
            NotCounted::Excluded(Exclusion::OwnServiceAccount),
        ),
        (
            Vote {
                has_comment: false,
                decision: Decision::Reject,
                ..ada()
            },
            NotCounted::NoComment,
        ),
        (
            Vote {
                evidence: Evidence::Invalid,
                ..ada()
            },
            NotCounted::InvalidEvidence,
        ),
        (
            vote("ada", "sre", Decision::Acknowledge, 1),
            NotCounted::NothingToReview,
        ),
    ];
    for (vote, expected) in cases {
        assert_eq!(setting.reason(vote), Some(expected));
        assert!(!expected.to_string().is_empty());
    }
    assert_eq!(setting.reason(ada()), None);
    assert_eq!(
        setting.reason(Vote {
            has_comment: false,
            ..ada()
        }),
        None
    );
}

#[test]
fn a_decision_of_before_the_guard_epoch_does_not_count() {
    let mut setting = Setting::new(vec![stage("sre", 1, &[])]);
    setting.epoch = at(5);
    assert_eq!(setting.reason(yes("ada", "sre", 4)), Some(NotCounted::BeforeEpoch));
    assert_eq!(setting.reason(yes("ada", "sre", 5)), None);
}

#[test]
fn a_policy_may_ask_for_a_comment_on_approvals_too() {
    let mut setting = Setting::new(vec![stage("sre", 1, &[])]);
    setting.require_comment = true;
    let silent = Vote {
        has_comment: false,
        ..yes("ada", "sre", 1)
    };
    assert_eq!(setting.reason(silent), Some(NotCounted::NoComment));
}

#[test]
fn approvers_are_listed_by_user_by_group_and_by_service_account() {
    let mut one = stage("sre", 1, &["ada"]);
    let list = one.approvers.as_mut().unwrap();
    list.groups = vec!["leads".to_owned()];
    list.service_accounts = vec!["ci/robot".to_owned()];
    let setting = Setting::new(vec![one]);
    let groups = ["leads".to_owned()];
    let bob = Vote {
        groups: &groups,
        ..yes("bob", "sre", 1)
    };
    assert_eq!(setting.reason(bob), None);
    assert_eq!(setting.reason(yes("system:serviceaccount:ci:robot", "sre", 1)), None);
    assert_eq!(setting.reason(yes("ci/robot", "sre", 1)), Some(NotCounted::NotListed));
}

#[test]
fn two_identities_of_one_person_are_one_approval() {
    let mut setting = Setting::new(vec![stage("sre", 2, &[])]);
    setting.people = People::new(&[Alias {
        name: "ada".to_owned(),
        identities: vec!["ada".to_owned(), "oidc:ada".to_owned()],
    }]);
    let tally = setting.count(&[yes("ada", "sre", 1), yes("oidc:ada", "sre", 2)]);
    assert_eq!((tally.verdict, tally.stages[0].approved), (Verdict::Pending(0), 1));
    assert_eq!(tally.votes[0].1, Err(NotCounted::Replaced));
    assert_eq!(
        setting.count(&[yes("ada", "sre", 1), yes("bob", "sre", 2)]).verdict,
        Verdict::Approved
    );
}

#[test]
fn stages_run_in_order_and_an_early_approval_waits_for_its_stage() {
    let setting = Setting::new(vec![stage("sre", 1, &["ada"]), stage("owners", 1, &["bob"])]);
    let early = setting.count(&[yes("bob", "owners", 1)]);
    assert_eq!(
        (early.verdict, early.votes[0].1),
        (Verdict::Pending(0), Err(NotCounted::StageNotOpen))
    );
    let half = setting.count(&[yes("ada", "sre", 1)]);
    assert_eq!(half.verdict, Verdict::Pending(1));
    let both = setting.count(&[yes("bob", "owners", 1), yes("ada", "sre", 2)]);
    assert_eq!(both.verdict, Verdict::Approved);
}

#[test]
fn a_person_counts_in_one_stage_and_in_the_one_that_needs_it() {
    let setting = Setting::new(vec![stage("sre", 1, &[]), stage("owners", 1, &[])]);
    let ada_twice = [
        yes("ada", "sre", 1),
        Vote {
            uid: "ada-2",
            ..yes("ada", "owners", 2)
        },
    ];
    let tally = setting.count(&ada_twice);
    assert_eq!(tally.verdict, Verdict::Pending(1));
    assert_eq!(tally.votes[1].1, Err(NotCounted::CountsElsewhere));
    let [first, second] = ada_twice;
    let with_bob = setting.count(&[first, second, yes("bob", "sre", 3)]);
    assert_eq!(with_bob.verdict, Verdict::Approved, "bob makes room for ada");
}

#[test]
fn one_rejection_vetoes_and_a_policy_may_ask_for_more() {
    let mut setting = Setting::new(vec![stage("sre", 1, &[]), stage("owners", 1, &[])]);
    let votes = [yes("ada", "sre", 1), yes("bob", "owners", 2), no("carl", "owners", 3)];
    assert_eq!(setting.count(&votes).verdict, Verdict::Rejected(1));
    assert_eq!(setting.count(&votes).vetoes, ["carl"]);
    setting.stages[1].rejections_to_deny = 2;
    assert_eq!(setting.count(&votes).verdict, Verdict::Approved);
}

#[test]
fn the_latest_decision_of_a_person_stands_and_of_two_at_once_the_more_cautious() {
    let setting = Setting::new(vec![stage("sre", 1, &[])]);
    let twice = |first: Decision, second: Decision, minute: i64| {
        let votes = [
            vote("ada", "sre", first, 1),
            Vote {
                uid: "ada-2",
                ..vote("ada", "sre", second, minute)
            },
        ];
        setting.count(&votes).verdict
    };
    assert_eq!(twice(Decision::Approve, Decision::Reject, 2), Verdict::Rejected(0));
    assert_eq!(twice(Decision::Reject, Decision::Approve, 2), Verdict::Approved);
    assert_eq!(twice(Decision::Approve, Decision::Revoke, 2), Verdict::Pending(0));
    assert_eq!(twice(Decision::Revoke, Decision::Approve, 1), Verdict::Pending(0));
    assert_eq!(twice(Decision::Reject, Decision::Approve, 1), Verdict::Rejected(0));
    assert_eq!(
        twice(Decision::Reject, Decision::Revoke, 2),
        Verdict::Rejected(0),
        "a rejection is not taken back"
    );
}

#[test]
fn after_the_approval_every_objection_revokes_it() {
    let mut setting = Setting::new(vec![stage("sre", 1, &[])]);
    setting.stages[0].rejections_to_deny = 2;
    setting.phase = ApprovalPhase::Approved;
    setting.approved = Some(at(10));
    let early = [yes("ada", "sre", 1), no("bob", "sre", 2)];
    assert_eq!(
        setting.count(&early).verdict,
        Verdict::Approved,
        "it was too few then, too"
    );
    let late = [yes("ada", "sre", 1), no("bob", "sre", 10)];
    assert_eq!(setting.count(&late).verdict, Verdict::Revoked);
    let back = [
        yes("ada", "sre", 1),
        yes("carl", "sre", 2),
        vote("bob", "sre", Decision::Revoke, 11),
    ];
    assert_eq!(setting.count(&back).verdict, Verdict::Revoked);
    let after_expiry = [yes("ada", "sre", 1), no("bob", "sre", 70)];
    assert_eq!(
        tally(&setting.ballot(), &after_expiry, at(71)).verdict,
        Verdict::Revoked
    );
}

#[test]
fn an_approval_that_lost_its_quorum_is_revoked() {
    let mut setting = Setting::new(vec![stage("sre", 1, &[])]);
    setting.phase = ApprovalPhase::Approved;
    setting.approved = Some(at(10));
    let dismissed = Vote {
        access: Access::Denied,
        ..yes("ada", "sre", 1)
    };
    assert_eq!(setting.count(&[dismissed]).verdict, Verdict::Revoked);
}

#[test]
fn an_objection_of_unknown_standing_is_neither_yes_nor_no() {
    let setting = Setting::new(vec![stage("sre", 1, &[])]);
    let unknown = Vote {
        access: Access::Unknown,
        ..no("bob", "sre", 2)
    };
    assert_eq!(
        setting.count(&[yes("ada", "sre", 1), unknown]).verdict,
        Verdict::Undetermined
    );
}

#[test]
fn time_runs_out_for_requests_and_for_stages() {
    let mut setting = Setting::new(vec![stage("sre", 1, &["ada"]), stage("owners", 1, &["bob"])]);
    assert_eq!(tally(&setting.ballot(), &[], at(60)).verdict, Verdict::Expired);
    setting.stages[0].timeout = Some("10m".to_owned());
    setting.stages[1].timeout = Some("10m".to_owned());
    assert_eq!(tally(&setting.ballot(), &[], at(9)).verdict, Verdict::Pending(0));
    assert_eq!(tally(&setting.ballot(), &[], at(10)).verdict, Verdict::Expired);
    let early = [yes("ada", "sre", 1)];
    assert_eq!(
        tally(&setting.ballot(), &early, at(19)).verdict,
        Verdict::Pending(1),
        "what came early is not lost"
    );
    assert_eq!(tally(&setting.ballot(), &early, at(20)).verdict, Verdict::Expired);
    assert_eq!(
        setting.reason(yes("ada", "sre", 10)),
        Some(NotCounted::AfterStageTimeout)
    );
}

#[test]
fn an_escalated_stage_asks_more_people_and_never_fewer_of_them() {
    let mut setting = Setting::new(vec![stage("sre", 1, &["ada"])]);
    setting.stages[0].timeout = Some("10m".to_owned());
    setting.stages[0].on_timeout = Some(OnTimeout {
        action: TimeoutAction::Escalate,
        approvers: stage("x", 1, &["boss"]).approvers,
    });
    assert_eq!(setting.reason(yes("boss", "sre", 9)), Some(NotCounted::NotListed));
    assert_eq!(setting.reason(yes("boss", "sre", 10)), None);
    assert_eq!(setting.reason(yes("ada", "sre", 11)), None);
    let waiting = setting.count(&[]);
    assert!(waiting.stages[0].escalated && waiting.stages[0].required == 1);
    assert_eq!(waiting.verdict, Verdict::Pending(0));
    setting.stages[0].on_timeout.as_mut().unwrap().approvers = None;
    assert_eq!(setting.reason(yes("eve", "sre", 11)), Some(NotCounted::NotListed));
}

#[test]
fn without_stages_nothing_is_approved() {
    let setting = Setting::new(Vec::new());
    assert_eq!(setting.count(&[]).verdict, Verdict::Pending(0));
}

#[test]
fn what_ran_first_is_reviewed_by_somebody_else_at_any_time() {
    let mut setting = Setting::new(vec![stage("sre", 2, &[])]);
    setting.phase = ApprovalPhase::ReviewOverdue;
    let acknowledge = |user| vote(user, "sre", Decision::Acknowledge, 500);
    assert_eq!(setting.count(&[yes("ada", "sre", 1)]).verdict, Verdict::AwaitingReview);
    assert_eq!(
        setting.count(&[acknowledge("requester")]).verdict,
        Verdict::AwaitingReview
    );
    assert_eq!(setting.count(&[acknowledge("bob")]).verdict, Verdict::Reviewed);
}

/// `(voter, stage, decision, minute, access)`.
type Cast = (usize, usize, usize, i64, u8);

const VOTERS: [&str; 6] = ["ada", "bob", "carl", "dora", "oidc:ada", "requester"];
const STAGES: [&str; 3] = ["one", "two", "three"];

fn any_cast(decisions: std::ops::Range<usize>) -> impl Strategy<Value = Cast> {
    (0..VOTERS.len(), 0..STAGES.len(), decisions, 0..70i64, 0..6u8)
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
        prop::collection::vec(0..VOTERS.len(), 0..4),
        0..40u32,
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
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn another_approval_never_makes_it_less_approved(
        setting in any_setting(), casts in prop::collection::vec(any_cast(0..3), 0..10), more in any_cast(0..1), now in 0..80i64
    ) {
        if is_approved(&setting, &casts, now) {
            let mut all = casts.clone();
            all.push(more);
            prop_assert!(is_approved(&setting, &all, now));
        }
    }

    #[test]
    fn another_objection_never_makes_it_more_approved(
        setting in any_setting(), casts in prop::collection::vec(any_cast(0..3), 0..10), more in any_cast(1..3), now in 0..80i64
    ) {
        if !is_approved(&setting, &casts, now) {
            let mut all = casts.clone();
            all.push(more);
            prop_assert!(!is_approved(&setting, &all, now));
        }
    }

    #[test]
    fn the_order_in_which_decisions_are_listed_means_nothing(
        setting in any_setting(), casts in prop::collection::vec(any_cast(0..3), 0..10), now in 0..80i64
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
        setting in any_setting(), casts in prop::collection::vec(any_cast(0..3), 0..10), now in 0..80i64
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
