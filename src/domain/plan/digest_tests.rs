use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::domain::plan::{
    Facts, Options,
    testing::{World, autoscaler, config_map, deployment, everything, facts, id},
};

const KEY: FingerprintKey = FingerprintKey::new([7; 32]);

fn binding() -> Binding {
    Binding {
        cluster: "cluster".to_owned(),
        request_uid: "request".to_owned(),
        request_digest: Digest::of(b"request"),
        snapshot_uid: "snapshot".to_owned(),
        snapshot_digest: Digest::of(b"snapshot"),
        acting_user: "ada".to_owned(),
        policy_digest: Some(Digest::of(b"policy")),
        hooks: Value::Null,
        tests: Value::Null,
    }
}

fn cfg(name: &str) -> ObjectId {
    id("", "ConfigMap", name)
}

/// `a` and `b` differ, a Deployment reads neither.
fn worlds() -> (World, World) {
    let mut then = World::default();
    then.put(&cfg("a"), config_map("1"));
    then.put(&cfg("b"), config_map("1"));
    let then = then.aged();
    let mut now = then.clone();
    now.set(&cfg("a"), &["data", "mode"], json!("2"));
    now.set(&cfg("b"), &["data", "mode"], json!("2"));
    (then, now)
}

fn bound(now: &World, then: &World, options: &Options, facts: Facts) -> Plan<Bound> {
    now.plan_with(then, options, facts).unwrap().bind(binding(), &KEY)
}

#[test]
fn the_same_plan_has_the_same_digest_and_everything_bound_moves_it() {
    let (then, now) = worlds();
    let plan = bound(&now, &then, &everything(), facts(&then));
    assert_eq!(plan.digest(), bound(&now, &then, &everything(), facts(&then)).digest());

    let changes: [fn(&mut Binding); 9] = [
        |binding| binding.cluster.push('x'),
        |binding| binding.request_uid.push('x'),
        |binding| binding.request_digest = Digest::of(b"x"),
        |binding| binding.snapshot_uid.push('x'),
        |binding| binding.snapshot_digest = Digest::of(b"x"),
        |binding| binding.acting_user.push('x'),
        |binding| binding.policy_digest = None,
        |binding| binding.hooks = json!([1]),
        |binding| binding.tests = json!([1]),
    ];
    let mut seen = BTreeSet::from([plan.digest()]);
    for change in changes {
        let mut other = binding();
        change(&mut other);
        assert!(seen.insert(now.plan(&then, &everything()).unwrap().bind(other, &KEY).digest()));
    }
}

#[test]
fn a_live_change_of_what_is_written_moves_the_digest() {
    let (then, now) = worlds();
    let before = bound(&now, &then, &everything(), facts(&then)).digest();
    let mut edited = now.clone();
    edited.set(&cfg("a"), &["data", "mode"], json!("3"));
    assert_ne!(bound(&edited, &then, &everything(), facts(&then)).digest(), before);
    let mut recreated = now.clone();
    recreated.set(&cfg("a"), &["metadata", "uid"], json!("another"));
    assert_ne!(bound(&recreated, &then, &everything(), facts(&then)).digest(), before);
}

#[test]
fn what_the_rollback_does_not_touch_may_change_without_voiding_an_approval() {
    let (then, now) = worlds();
    let options = Options {
        preserved: BTreeSet::from([cfg("b")]),
        ..Options::default()
    };
    let before = bound(&now, &then, &options, facts(&then)).digest();
    let mut moved = now.clone();
    moved.set(&cfg("b"), &["data", "mode"], json!("9"));
    moved.put(&cfg("new"), config_map("n"));
    moved.set(&cfg("a"), &["metadata", "resourceVersion"], json!("77"));
    moved.set(&cfg("a"), &["status"], json!({"seen": true}));
    assert_eq!(bound(&moved, &then, &options, facts(&then)).digest(), before);
}

#[test]
fn an_autoscaler_does_not_move_the_digest() {
    let web = id("apps", "Deployment", "web");
    let mut then = World::default();
    then.put(&web, deployment("web:1", 1));
    then.put(&id("autoscaling", "HorizontalPodAutoscaler", "web"), autoscaler("web"));
    let mut now = then.aged();
    let then = now.clone();
    now.set(&web, &["metadata", "labels"], json!({"new": "label"}));
    let digests: BTreeSet<Digest> = (1..4)
        .map(|replicas| {
            now.set(&web, &["spec", "replicas"], json!(replicas));
            bound(&now, &then, &everything(), facts(&then)).digest()
        })
        .collect();
    assert_eq!(digests.len(), 1);
}

#[test]
fn digests_of_secrets_are_keyed() {
    let secret = id("", "Secret", "db");
    let mut then = World::default();
    then.put(&secret, json!({"data": {"password": "YQ=="}}));
    let plan = World::default().plan(&then, &everything()).unwrap();
    let plain = plan.items()[0].target_digest;
    let with = |key: [u8; 32]| {
        let plan = plan.clone().bind(binding(), &FingerprintKey::new(key));
        plan.bound_items()[0].target_digest
    };
    assert_ne!(with([1; 32]), plain);
    assert_ne!(with([1; 32]), with([2; 32]));
    assert_eq!(item_digest(&cfg("a"), Digest::of(b"x"), &KEY), Digest::of(b"x"));
}

#[test]
fn keeping_what_drifted_is_the_approved_plan_doing_less() {
    let (then, now) = worlds();
    let options = Options {
        conflict: Conflict::KeepLive,
        ..Options::default()
    };
    let approved = bound(&now, &then, &options, facts(&then));
    let (digest, items) = (approved.digest(), approved.bound_items().to_vec());
    assert_eq!(approved.compare(digest, &items, Conflict::KeepLive), Match::Same);

    let mut moved = now.clone();
    moved.set(&cfg("b"), &["data", "mode"], json!("9"));
    let again = bound(&moved, &then, &options, facts(&then));
    let drifted = again.drifted_since(&items);
    assert_eq!(drifted, [cfg("b")]);
    assert_eq!(
        again.compare(digest, &items, Conflict::KeepLive),
        Match::Different(vec![cfg("b")]),
        "not before it is kept"
    );
    let with_drift = Facts {
        drifted: drifted.into_iter().collect(),
        ..facts(&then)
    };
    let kept = bound(&moved, &then, &options, with_drift);
    assert_eq!(
        kept.compare(digest, &items, Conflict::KeepLive),
        Match::Narrower(vec![cfg("b")])
    );
    assert_eq!(
        kept.compare(digest, &items, Conflict::Overwrite),
        Match::Different(vec![cfg("b")])
    );
}

#[test]
fn items_that_do_not_prove_to_be_the_approved_ones_prove_nothing() {
    let (then, now) = worlds();
    let approved = bound(&now, &then, &Options::default(), facts(&then));
    let mut moved = now.clone();
    moved.set(&cfg("b"), &["data", "mode"], json!("9"));
    let again = bound(&moved, &then, &Options::default(), facts(&then));
    let forged = again.bound_items().to_vec();
    assert_eq!(
        again.compare(approved.digest(), &forged, Conflict::KeepLive),
        Match::Different(Vec::new())
    );
}
