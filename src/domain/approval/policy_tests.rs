use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    api::{
        approval_policy::{AutoApprove, EmergencyPolicy, Requesters},
        approval_request::Approvers,
        rollback_request::Strategy,
    },
    domain::plan::testing::{World, config_map, everything, id},
};

fn users(names: &[&str]) -> Approvers {
    Approvers {
        users: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Approvers::default()
    }
}

fn stage(name: &str, min_risk: RiskLevel, required: i32) -> PolicyStage {
    PolicyStage {
        name: name.to_owned(),
        min_risk,
        required,
        rejections_to_deny: 1,
        ..PolicyStage::default()
    }
}

fn policy(priority: i32, stages: Vec<PolicyStage>) -> ApprovalPolicySpec {
    ApprovalPolicySpec {
        priority,
        stages,
        request_ttl: "24h".to_owned(),
        approval_ttl: "1h".to_owned(),
        ..ApprovalPolicySpec::default()
    }
}

fn one_stage(priority: i32, required: i32) -> ApprovalPolicySpec {
    policy(priority, vec![stage("sre", RiskLevel::Low, required)])
}

struct Asked {
    labels: BTreeMap<String, String>,
    components: BTreeSet<Component>,
    groups: Vec<String>,
    exclusions: Exclusions,
}

impl Asked {
    fn by(user: &str) -> Self {
        Self {
            labels: BTreeMap::from([("env".to_owned(), "prod".to_owned())]),
            components: BTreeSet::from([Component::Workloads]),
            groups: vec!["shop".to_owned()],
            exclusions: Exclusions {
                namespace: "shop".to_owned(),
                requested_by: user.to_owned(),
                ..Exclusions::default()
            },
        }
    }

    fn subject(&self, risk: RiskLevel) -> Subject<'_> {
        Subject {
            namespace_labels: &self.labels,
            risk,
            components: &self.components,
            strategy: Strategy::Full,
            reason: ReasonType::Manual,
            requester_groups: &self.groups,
            exclusions: &self.exclusions,
            traits: Traits::default(),
            emergency: false,
        }
    }
}

fn candidates<'a>(specs: &'a [(&'a str, ApprovalPolicySpec)]) -> Vec<Candidate<'a>> {
    specs
        .iter()
        .map(|(name, spec)| Candidate {
            name,
            uid: "uid",
            generation: 1,
            spec,
        })
        .collect()
}

fn chosen(specs: &[(&str, ApprovalPolicySpec)], risk: RiskLevel) -> Result<Chosen, NoRoute> {
    choose(&candidates(specs), &Asked::by("requester").subject(risk))
}

fn names(route: &Route) -> Vec<(&str, i32)> {
    match route {
        Route::Stages(stages) | Route::Automatic(stages) | Route::BreakGlass { stages, .. } => stages
            .iter()
            .map(|stage| (stage.name.as_str(), stage.required))
            .collect(),
    }
}

#[test]
fn without_a_policy_nothing_is_approvable() {
    assert_eq!(chosen(&[], RiskLevel::Low), Err(NoRoute::NoMatchingPolicy));
}

#[test]
fn the_highest_priority_wins_and_of_equals_the_stricter() {
    let of = |specs: &[(&str, ApprovalPolicySpec)]| chosen(specs, RiskLevel::Low).unwrap().policy.name;
    assert_eq!(of(&[("low", one_stage(1, 9)), ("high", one_stage(2, 1))]), "high");
    assert_eq!(of(&[("one", one_stage(1, 1)), ("two", one_stage(1, 2))]), "two");
    let automatic = ApprovalPolicySpec {
        auto_approve: Some(AutoApprove::default()),
        ..one_stage(1, 1)
    };
    assert_eq!(of(&[("auto", automatic), ("by-hand", one_stage(1, 1))]), "by-hand");
    assert_eq!(of(&[("b", one_stage(1, 1)), ("a", one_stage(1, 1))]), "a");
}

#[test]
fn every_field_of_a_match_narrows_it_and_an_empty_one_does_not() {
    let cases: Vec<(PolicyMatch, bool)> = vec![
        (PolicyMatch::default(), true),
        (
            PolicyMatch {
                min_risk: Some(RiskLevel::High),
                ..PolicyMatch::default()
            },
            false,
        ),
        (
            PolicyMatch {
                components: vec![Component::Policy],
                ..PolicyMatch::default()
            },
            false,
        ),
        (
            PolicyMatch {
                components: vec![Component::Policy, Component::Workloads],
                ..PolicyMatch::default()
            },
            true,
        ),
        (
            PolicyMatch {
                strategies: vec![Strategy::Partial],
                ..PolicyMatch::default()
            },
            false,
        ),
        (
            PolicyMatch {
                reasons: vec![ReasonType::Security],
                ..PolicyMatch::default()
            },
            false,
        ),
        (
            PolicyMatch {
                requesters: Some(Requesters::default()),
                ..PolicyMatch::default()
            },
            true,
        ),
        (
            PolicyMatch {
                requesters: Some(Requesters {
                    users: vec!["eve".to_owned()],
                    groups: vec![],
                }),
                ..PolicyMatch::default()
            },
            false,
        ),
        (
            PolicyMatch {
                requesters: Some(Requesters {
                    users: vec![],
                    groups: vec!["shop".to_owned()],
                }),
                ..PolicyMatch::default()
            },
            true,
        ),
    ];
    for (rules, expected) in cases {
        let spec = ApprovalPolicySpec {
            match_: Some(rules.clone()),
            ..one_stage(0, 1)
        };
        assert_eq!(chosen(&[("p", spec)], RiskLevel::Medium).is_ok(), expected, "{rules:?}");
    }
}

#[test]
fn namespaces_match_by_label_and_a_broken_selector_lets_no_weaker_policy_in() {
    let with = |selector: LabelSelector| ApprovalPolicySpec {
        match_: Some(PolicyMatch {
            namespaces: Some(selector),
            ..PolicyMatch::default()
        }),
        ..one_stage(9, 1)
    };
    let label = |value: &str| LabelSelector {
        match_labels: Some(BTreeMap::from([("env".to_owned(), value.to_owned())])),
        ..LabelSelector::default()
    };
    assert!(chosen(&[("p", with(label("prod")))], RiskLevel::Low).is_ok());
    assert_eq!(
        chosen(&[("p", with(label("dev")))], RiskLevel::Low),
        Err(NoRoute::NoMatchingPolicy)
    );
    let broken = LabelSelector {
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: "env".to_owned(),
            operator: "Near".to_owned(),
            values: None,
        }]),
        ..LabelSelector::default()
    };
    let answer = chosen(&[("broken", with(broken)), ("weak", one_stage(0, 1))], RiskLevel::Low);
    assert!(matches!(answer, Err(NoRoute::InvalidPolicy { policy, .. }) if policy == "broken"));
}

#[test]
fn risk_picks_the_stages_and_never_none_of_some() {
    let spec = policy(
        0,
        vec![stage("sre", RiskLevel::Medium, 1), stage("owners", RiskLevel::High, 2)],
    );
    let at = |risk| {
        let chosen = chosen(&[("p", spec.clone())], risk).unwrap();
        names(&chosen.route).len()
    };
    assert_eq!(
        [RiskLevel::Low, RiskLevel::Medium, RiskLevel::High, RiskLevel::Critical].map(at),
        [1, 1, 2, 2]
    );
}

#[test]
fn only_a_policy_approves_by_itself_and_never_what_is_dangerous() {
    let spec = ApprovalPolicySpec {
        auto_approve: Some(AutoApprove {
            max_risk: RiskLevel::Medium,
        }),
        ..one_stage(0, 1)
    };
    let specs = [("p", spec)];
    let candidates = candidates(&specs);
    let asked = Asked::by("requester");
    let tame = asked.subject(RiskLevel::Medium);
    let route = choose(&candidates, &tame).unwrap().route;
    assert_eq!(
        (matches!(route, Route::Automatic(_)), names(&route)),
        (true, vec![("sre", 0)])
    );
    for traits in [
        Traits {
            deletes: true,
            ..Traits::default()
        },
        Traits {
            secrets: true,
            ..Traits::default()
        },
        Traits {
            powerful: true,
            ..Traits::default()
        },
    ] {
        let wild = Subject { traits, ..tame.clone() };
        assert!(
            matches!(choose(&candidates, &wild).unwrap().route, Route::Stages(_)),
            "{traits:?}"
        );
    }
    let risky = asked.subject(RiskLevel::High);
    assert!(matches!(choose(&candidates, &risky).unwrap().route, Route::Stages(_)));
    let robot = Asked::by("system:serviceaccount:flux:controller");
    assert!(matches!(
        choose(&candidates, &robot.subject(RiskLevel::Low)).unwrap().route,
        Route::Stages(_)
    ));
}

#[test]
fn an_unknown_requester_needs_one_more_is_refused_or_allowed() {
    let with = |mode| ApprovalPolicySpec {
        unknown_requester: mode,
        ..one_stage(0, 1)
    };
    let robot = Asked::by("system:serviceaccount:flux:controller");
    let of = |mode| choose(&candidates(&[("p", with(mode))]), &robot.subject(RiskLevel::Low));
    assert_eq!(
        names(&of(UnknownRequester::RequireExtraApproval).unwrap().route),
        [("sre", 2)]
    );
    assert_eq!(names(&of(UnknownRequester::Allow).unwrap().route), [("sre", 1)]);
    assert_eq!(
        of(UnknownRequester::Deny),
        Err(NoRoute::UnknownRequester("p".to_owned()))
    );
    let mut served = Asked::by("system:serviceaccount:backstep-system:backstep");
    served.exclusions.on_behalf_of = Some("ada".to_owned());
    let specs = [("p", with(UnknownRequester::Deny))];
    assert!(
        choose(&candidates(&specs), &served.subject(RiskLevel::Low)).is_ok(),
        "the person is known"
    );
}

#[test]
fn the_extra_approval_goes_where_somebody_can_give_it() {
    let mut first = stage("one", RiskLevel::Low, 1);
    first.approvers = Some(users(&["ada"]));
    let spec = policy(0, vec![first, stage("two", RiskLevel::Low, 1)]);
    let robot = Asked::by("system:serviceaccount:flux:controller");
    let specs = [("p", spec)];
    let route = choose(&candidates(&specs), &robot.subject(RiskLevel::Low))
        .unwrap()
        .route;
    assert_eq!(names(&route), [("one", 1), ("two", 2)]);
}

#[test]
fn emergencies_run_first_where_the_policy_allows_them() {
    let mut asked = Asked::by("requester");
    asked.groups.clear();
    let emergency = Subject {
        emergency: true,
        ..asked.subject(RiskLevel::Critical)
    };
    let plain = [("p", one_stage(0, 1))];
    assert_eq!(
        choose(&candidates(&plain), &emergency),
        Err(NoRoute::EmergencyNotAllowed("p".to_owned()))
    );
    let spec = ApprovalPolicySpec {
        emergency: Some(EmergencyPolicy {
            allowed: true,
            review_within: "2h".to_owned(),
        }),
        ..one_stage(0, 1)
    };
    let specs = [("p", spec)];
    let route = choose(&candidates(&specs), &emergency).unwrap().route;
    assert!(matches!(route, Route::BreakGlass { review_within, .. } if review_within == Duration::from_secs(7200)));
}

#[test]
fn a_policy_that_nobody_can_meet_is_unsatisfiable() {
    let mut lonely = stage("sre", RiskLevel::High, 2);
    lonely.approvers = Some(users(&["ada"]));
    let spec = policy(0, vec![stage("first", RiskLevel::Low, 1), lonely]);
    assert_eq!(check(&spec).unwrap_err().stage, "sre");
    assert!(check(&one_stage(0, 16)).is_ok());

    let mut only_me = stage("sre", RiskLevel::Low, 1);
    only_me.approvers = Some(users(&["requester"]));
    let spec = policy(0, vec![only_me]);
    assert!(check(&spec).is_ok(), "somebody else could ask");
    assert!(matches!(
        chosen(&[("p", spec)], RiskLevel::Low),
        Err(NoRoute::Unsatisfiable { policy, .. }) if policy == "p"
    ));
}

#[test]
fn the_author_of_the_snapshot_is_excluded_only_where_the_policy_says_so() {
    let mut asked = Asked::by("requester");
    asked.exclusions.snapshot_author = Some("ada".to_owned());
    let mut only_ada = stage("sre", RiskLevel::Low, 1);
    only_ada.approvers = Some(users(&["ada"]));
    let mut spec = policy(0, vec![only_ada]);
    let of =
        |spec: &ApprovalPolicySpec| choose(&candidates(&[("p", spec.clone())]), &asked.subject(RiskLevel::Low)).is_ok();
    assert!(of(&spec));
    spec.exclude_snapshot_author = true;
    assert!(!of(&spec));
}

#[test]
fn limits_name_what_is_reached() {
    let limits = Limits {
        open_per_namespace: Some(2),
        open_per_requester: None,
        requests_per_hour: Some(3),
    };
    let requests = |open, hour| Requests {
        open_in_namespace: open,
        open_of_requester: 99,
        in_last_hour: hour,
    };
    assert_eq!(within(Some(&limits), requests(1, 2)), Ok(()));
    assert_eq!(
        within(Some(&limits), requests(2, 0)).unwrap_err().what,
        "open requests in a namespace"
    );
    assert_eq!(within(Some(&limits), requests(0, 3)).unwrap_err().most, 3);
    assert_eq!(within(None, requests(99, 99)), Ok(()));
}

#[test]
fn traits_of_a_plan_are_seen() {
    let mut then = World::default();
    then.put(&id("", "Secret", "s"), json!({"data": {}}));
    then.put(&id("rbac.authorization.k8s.io", "Role", "r"), json!({"rules": []}));
    let mut now = World::default();
    now.put(&id("", "ConfigMap", "new"), config_map("n"));
    let all = Traits::of(&now.plan(&then, &everything()).unwrap());
    assert_eq!(
        all,
        Traits {
            deletes: true,
            secrets: true,
            powerful: true
        }
    );
    assert_eq!(
        Traits::of(&now.plan(&now.clone(), &everything()).unwrap()),
        Traits::default()
    );
}

proptest! {
    #[test]
    fn the_choice_does_not_depend_on_the_order_of_the_policies(
        shapes in prop::collection::vec((-2..3i32, 1..4i32, any::<bool>()), 1..6), risk in 0..4usize
    ) {
        let names: Vec<String> = (0..shapes.len()).map(|index| format!("p{index}")).collect();
        let specs: Vec<(&str, ApprovalPolicySpec)> = names
            .iter()
            .zip(&shapes)
            .map(|(name, (priority, required, automatic))| {
                let spec = ApprovalPolicySpec {
                    auto_approve: automatic.then(AutoApprove::default),
                    ..one_stage(*priority, *required)
                };
                (name.as_str(), spec)
            })
            .collect();
        let risk = [RiskLevel::Low, RiskLevel::Medium, RiskLevel::High, RiskLevel::Critical][risk];
        let forth = chosen(&specs, risk);
        let mut reversed = specs.clone();
        reversed.reverse();
        prop_assert_eq!(&forth, &chosen(&reversed, risk));
        let highest = shapes.iter().map(|(priority, ..)| *priority).max().unwrap();
        let name = forth.unwrap().policy.name;
        let winner = names.iter().position(|other| *other == name).unwrap();
        prop_assert_eq!(shapes[winner].0, highest);
    }
}
