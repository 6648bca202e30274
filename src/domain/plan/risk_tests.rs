use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::domain::plan::testing::{World, config_map, deployment, everything, id};

const HOUR: Duration = Duration::from_secs(3600);

fn web() -> ObjectId {
    id("apps", "Deployment", "web")
}

fn points(risk: &Risk, name: &str) -> Option<i32> {
    risk.factors.iter().find(|factor| factor.name == name)?.points
}

/// The risk of a rollback from `now` to `then`.
fn risk(then: &World, now: &World, facts: &RiskFacts) -> Risk {
    rate(&now.plan(then, &everything()).unwrap(), facts)
}

#[test]
fn a_rollback_that_does_nothing_is_no_risk() {
    let old = RiskFacts {
        snapshot_age: 24 * 30 * HOUR,
        ..RiskFacts::default()
    };
    let risk = risk(&World::default(), &World::default(), &old);
    assert_eq!((risk.level, risk.score, risk.factors.len()), (RiskLevel::Low, 0, 0));
}

#[test]
fn levels_begin_where_the_design_says() {
    let of = |score| level(score);
    assert_eq!(
        [of(0), of(24), of(25), of(49)],
        [RiskLevel::Low, RiskLevel::Low, RiskLevel::Medium, RiskLevel::Medium]
    );
    assert_eq!(
        [of(50), of(74), of(75), of(100)],
        [
            RiskLevel::High,
            RiskLevel::High,
            RiskLevel::Critical,
            RiskLevel::Critical
        ]
    );
}

#[test]
fn restarting_every_workload_counts_whole_and_every_second_half() {
    let mut then = World::default();
    then.put(&web(), deployment("web:1", 1));
    let mut now = World::default();
    now.put(&web(), deployment("web:2", 1));
    let both = RiskFacts {
        ready_pods: BTreeMap::from([(web(), 3), (id("apps", "Deployment", "other"), 1)]),
        ..RiskFacts::default()
    };
    let half = risk(&then, &now, &both);
    assert_eq!(
        (points(&half, "Restarts"), points(&half, "ReadyPods")),
        (Some(6), Some(9))
    );
    let alone = RiskFacts {
        ready_pods: BTreeMap::from([(web(), 3)]),
        ..RiskFacts::default()
    };
    assert_eq!(points(&risk(&then, &now, &alone), "Restarts"), Some(12));
}

#[test]
fn many_deletes_are_a_high_risk_by_themselves() {
    let mut now = World::default();
    for index in 0..=MANY_DELETES {
        now.put(&id("", "ConfigMap", &format!("n{index}")), config_map("a"));
    }
    let many = risk(&World::default(), &now, &RiskFacts::default());
    assert_eq!((many.level, points(&many, "Deletes")), (RiskLevel::High, Some(50)));
    now.objects.pop_last();
    assert_eq!(
        points(&risk(&World::default(), &now, &RiskFacts::default()), "Deletes"),
        Some(40)
    );
}

#[test]
fn data_that_would_be_lost_weighs_most() {
    let facts = RiskFacts {
        volumes: vec![("data-db-0".to_owned(), 3 * HOUR)],
        ..RiskFacts::default()
    };
    let lost = risk(&World::default(), &World::default(), &facts);
    assert_eq!(points(&lost, "DataLoss"), Some(36));
    assert_eq!(lost.factors[0].detail.as_deref(), Some("data-db-0: 3 h of writes"));
}

#[test]
fn rotated_secrets_and_lost_accounts_that_return_are_access_keys() {
    let secret = id("", "Secret", "s");
    let mut then = World::default();
    then.put(&secret, json!({"data": {"k": "YQ=="}}));
    then.put(&id("", "ServiceAccount", "robot"), json!({}));
    let mut now = World::default();
    now.put(&secret, json!({"data": {"k": "Yg=="}}));
    let keys = risk(&then, &now, &RiskFacts::default());
    assert_eq!(points(&keys, "AccessKeysReturn"), Some(20));
    assert_eq!(points(&keys, "SecretsOlderThanLive"), Some(6));
    assert!(!format!("{keys:?}").contains("YQ=="));
}

#[test]
fn an_image_below_the_security_floor_is_a_high_risk() {
    let mut then = World::default();
    then.put(&web(), deployment("registry/web:1.8", 1));
    let mut now = World::default();
    now.put(&web(), deployment("registry/web:1.9", 1));
    let mut facts = RiskFacts::default();
    facts.floor.tags = vec!["registry/web:1.*".to_owned()];
    assert_eq!(risk(&then, &now, &facts).level, RiskLevel::High);
    assert_eq!(
        risk(&then, &then.clone(), &facts).score,
        0,
        "what runs now does not come back"
    );
    facts.floor = SecurityFloor {
        digests: vec!["sha256:bad".to_owned()],
        tags: Vec::new(),
    };
    assert_eq!(risk(&then, &now, &facts).level, RiskLevel::Low);
    facts
        .image_digests
        .insert((web(), "app".to_owned()), "sha256:bad".to_owned());
    assert_eq!(points(&risk(&then, &now, &facts), "ImageBelowFloor"), Some(50));
}

#[test]
fn rights_that_come_back_are_powerful_and_wider() {
    let role = id("rbac.authorization.k8s.io", "Role", "r");
    let mut then = World::default();
    then.put(
        &role,
        json!({"rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]}),
    );
    let rights = risk(&then, &World::default(), &RiskFacts::default());
    assert_eq!(
        (points(&rights, "PowerfulKinds"), points(&rights, "WidensAccess")),
        (Some(15), Some(25))
    );
}

#[test]
fn patterns_match_as_globs() {
    for (pattern, text, expected) in [
        ("*", "", true),
        ("a*c", "abbc", true),
        ("a*c", "abb", false),
        ("a?c", "abc", true),
        ("?", "", false),
        ("*:1.*", "web:1.8", true),
        ("web", "webs", false),
    ] {
        assert_eq!(matches_glob(pattern, text), expected, "{pattern} {text}");
    }
}

proptest! {
    #[test]
    fn a_score_is_the_bounded_sum_of_its_factors(hours in 0..10_000u64, volumes in 0..5usize, days in 0..5_000u32, images in 0..5usize) {
        let facts = RiskFacts {
            snapshot_age: 24 * HOUR * days,
            volumes: (0..volumes).map(|index| (format!("v{index}"), Duration::from_secs(hours * 3600))).collect(),
            unavailable_images: (0..images).map(|index| format!("i{index}")).collect(),
            ..RiskFacts::default()
        };
        let risk = risk(&World::default(), &World::default(), &facts);
        let sum: i32 = risk.factors.iter().filter_map(|factor| factor.points).sum();
        prop_assert_eq!(risk.score, sum.min(100));
        prop_assert_eq!(risk.level, level(risk.score));
        prop_assert!(risk.factors.len() <= 16);
    }
}
