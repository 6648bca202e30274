use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    api::{rollback_request::Strategy, snapshot::Component},
    domain::plan::{
        Facts, Options,
        testing::{World, autoscaler, config_map, deployment, everything, facts, id, labelled},
    },
};

fn actions(plan: &Plan<Drafted>) -> Vec<(String, Action)> {
    plan.items()
        .iter()
        .map(|item| (item.id.to_string(), item.action.clone()))
        .collect()
}

fn one(plan: &Plan<Drafted>, wanted: &ObjectId) -> Action {
    let found: Vec<_> = plan.items().iter().filter(|item| item.id == *wanted).collect();
    assert_eq!(found.len(), 1, "{wanted} in {:?}", actions(plan));
    found[0].action.clone()
}

fn cfg() -> ObjectId {
    id("", "ConfigMap", "cfg")
}

fn web() -> ObjectId {
    id("apps", "Deployment", "web")
}

/// A world with one object, and the same after `change`.
fn changed(id: &ObjectId, body: Value, change: impl FnOnce(&mut World)) -> (World, World) {
    let mut then = World::default();
    then.put(id, body);
    let then = then.aged();
    let mut now = then.clone();
    change(&mut now);
    (then, now)
}

#[test]
fn a_namespace_that_is_as_it_was_has_nothing_to_do() {
    let (then, now) = changed(&cfg(), config_map("a"), |_| {});
    let plan = now.plan(&then, &everything()).unwrap();
    assert!(plan.is_empty() && plan.items().is_empty());
    assert_eq!(plan.summary().unchanged, 1);
}

#[test]
fn what_differs_is_updated_what_is_gone_comes_back_and_what_is_new_goes() {
    let (then, now) = changed(&cfg(), config_map("a"), |now| {
        now.set(&cfg(), &["data", "mode"], json!("b"));
        now.put(&id("", "ConfigMap", "new"), config_map("n"));
    });
    let mut then = then;
    then.put(&id("", "ConfigMap", "old"), config_map("o"));
    let plan = now.plan(&then, &everything()).unwrap();
    assert_eq!(
        actions(&plan),
        [
            ("ConfigMap/cfg".to_owned(), Action::Update),
            ("ConfigMap/old".to_owned(), Action::Create),
            ("ConfigMap/new".to_owned(), Action::Delete),
        ]
    );
}

#[test]
fn without_prune_what_is_new_is_kept_and_listed() {
    let (then, now) = changed(&cfg(), config_map("a"), |now| {
        now.put(&id("", "ConfigMap", "new"), config_map("n"));
    });
    let plan = now.plan(&then, &Options::default()).unwrap();
    assert_eq!(
        one(&plan, &id("", "ConfigMap", "new")),
        Action::Keep(KeepReason::NotPruned)
    );
    assert!(plan.is_empty());
}

#[test]
fn nothing_older_than_the_snapshot_and_nothing_protected_is_pruned() {
    let annotated = |name: &str, value: &str| {
        let mut body = config_map("n");
        json::put(&mut body, &["metadata", "annotations", name], Some(json!(value)));
        body
    };
    let (then, mut now) = changed(&cfg(), config_map("a"), |_| {});
    let claim = id("", "PersistentVolumeClaim", "data");
    now.put(&claim, json!({"spec": {}}));
    for (name, annotation, value) in [
        ("argo", "argocd.argoproj.io/sync-options", "Validate=false, Prune=false"),
        ("flux", "kustomize.toolkit.fluxcd.io/prune", "disabled"),
        ("helm", "helm.sh/resource-policy", "keep"),
    ] {
        now.put(&id("", "ConfigMap", name), annotated(annotation, value));
    }
    let release = id("", "Secret", "sh.helm.release.v1.web.v2");
    now.put(&release, json!({"data": {}}));
    let mut older = World::default();
    older.put(&id("", "ConfigMap", "older"), config_map("o"));
    now.objects.extend(older.aged().objects);
    let mut gadget = World::default();
    gadget.put(&id("example.org", "Gadget", "g"), json!({}));
    now.objects.extend(gadget.objects);

    let plan = now.plan(&then, &everything()).unwrap();
    for name in ["argo", "flux", "helm"] {
        assert_eq!(
            one(&plan, &id("", "ConfigMap", name)),
            Action::Keep(KeepReason::Protected),
            "{name}"
        );
    }
    assert_eq!(one(&plan, &claim), Action::Keep(KeepReason::Protected));
    assert_eq!(one(&plan, &release), Action::Keep(KeepReason::HelmHistory));
    assert_eq!(
        one(&plan, &id("", "ConfigMap", "older")),
        Action::Keep(KeepReason::NotCreatedSince)
    );
    assert_eq!(
        one(&plan, &id("example.org", "Gadget", "g")),
        Action::Keep(KeepReason::KindNotCaptured)
    );
}

#[test]
fn of_unknown_age_nothing_is_pruned() {
    let (then, mut now) = changed(&cfg(), config_map("a"), |_| {});
    let new = id("", "ConfigMap", "new");
    now.put(&new, config_map("n"));
    let unknown = Facts {
        snapshot_started: None,
        ..facts(&then)
    };
    let plan = now.plan_with(&then, &everything(), unknown).unwrap();
    assert_eq!(one(&plan, &new), Action::Keep(KeepReason::NotCreatedSince));
}

#[test]
fn policy_comes_back_only_when_named() {
    let role = id("rbac.authorization.k8s.io", "Role", "r");
    let rules = |verb: &str| json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]});
    let (then, now) = changed(&role, rules("get"), |now| {
        now.set(&role, &["rules"], rules("list")["rules"].clone());
    });
    let plan = now.plan(&then, &Options::default()).unwrap();
    assert_eq!(one(&plan, &role), Action::Keep(KeepReason::ComponentNotNamed));
    assert_eq!(one(&now.plan(&then, &everything()).unwrap(), &role), Action::Update);
}

#[test]
fn rights_on_backstep_are_never_restored() {
    let role = id("rbac.authorization.k8s.io", "Role", "r");
    let rules = json!({"rules": [{"apiGroups": ["backstep.dev"], "resources": ["*"], "verbs": ["*"]}]});
    let (then, now) = changed(&role, rules, |now| drop(now.objects.remove(&role)));
    let plan = now.plan(&then, &everything()).unwrap();
    assert_eq!(one(&plan, &role), Action::Keep(KeepReason::BackstepRights));
}

#[test]
fn a_partial_request_is_about_its_components_and_images_alone_about_images() {
    let (mut then, mut now) = changed(&web(), labelled(deployment("web:1", 1), "a"), |now| {
        now.put(&web(), labelled(deployment("web:2", 5), "b"));
    });
    then.put(&cfg(), config_map("a"));
    now.put(&cfg(), config_map("b"));
    let images = Options {
        strategy: Strategy::Partial,
        components: BTreeSet::from([Component::Images]),
        ..Options::default()
    };
    let plan = now.plan(&then, &images).unwrap();
    assert_eq!(one(&plan, &cfg()), Action::Keep(KeepReason::ComponentNotNamed));
    assert_eq!(one(&plan, &web()), Action::Update);
    now.apply(&plan);
    let container = &now.get(&web())["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "web:1");
    assert_eq!(now.get(&web())["spec"]["replicas"], 5);
    assert_eq!(now.get(&web())["metadata"]["labels"]["tier"], "b");
    assert!(now.plan(&then, &images).unwrap().is_empty());
}

#[test]
fn a_selective_request_leaves_the_rest_alone() {
    let other = id("", "ConfigMap", "other");
    let (mut then, mut now) = changed(&cfg(), config_map("a"), |now| {
        now.set(&cfg(), &["data", "mode"], json!("b"))
    });
    then.put(&other, config_map("a"));
    now.put(&other, config_map("b"));
    let mut options = Options {
        strategy: Strategy::Selective,
        selected: BTreeSet::from([cfg()]),
        ..Options::default()
    };
    let plan = now.plan(&then, &options).unwrap();
    assert_eq!(one(&plan, &cfg()), Action::Update);
    assert_eq!(one(&plan, &other), Action::Keep(KeepReason::NotSelected));
    options.preserved.insert(cfg());
    assert_eq!(
        one(&now.plan(&then, &options).unwrap(), &cfg()),
        Action::Keep(KeepReason::Excluded)
    );
}

#[test]
fn consumers_that_would_not_notice_restart_and_those_that_roll_anyway_do_not() {
    let (mut then, mut now) = changed(&web(), deployment("web:1", 1), |_| {});
    then.put(&cfg(), config_map("a"));
    now.put(&cfg(), config_map("b"));
    let plan = now.plan(&then, &Options::default()).unwrap();
    assert_eq!(one(&plan, &web()), Action::Restart(vec![cfg()]));
    assert_eq!(
        plan.items().last().unwrap().id,
        web(),
        "restarts come after what they are for"
    );

    let calm = Options {
        cascade: false,
        ..Options::default()
    };
    assert_eq!(now.plan(&then, &calm).unwrap().summary().restart, 0);

    let mut scaled = now.clone();
    scaled.set(&web(), &["spec", "replicas"], json!(3));
    let plan = scaled.plan(&then, &Options::default()).unwrap();
    assert_eq!(
        (plan.summary().update, plan.summary().restart),
        (2, 1),
        "no new template, no new Pods"
    );

    now.put(&web(), deployment("web:2", 1));
    let plan = now.plan(&then, &Options::default()).unwrap();
    assert_eq!((plan.summary().update, plan.summary().restart), (2, 0));
}

#[test]
fn replicas_belong_to_a_live_autoscaler_and_do_not_move_the_plan() {
    let scaler = id("autoscaling", "HorizontalPodAutoscaler", "web");
    let (mut then, _) = changed(&web(), deployment("web:1", 2), |_| {});
    then.put(&scaler, autoscaler("web"));
    let mut now = then.clone();
    now.set(&web(), &["spec", "replicas"], json!(7));
    let plan = now.plan(&then, &everything()).unwrap();
    assert_eq!(one(&plan, &web()), Action::Keep(KeepReason::LiveWins));

    let preserved = Options {
        preserved: BTreeSet::from([web()]),
        ..everything()
    };
    assert!(
        now.plan(&then, &preserved).unwrap().items().is_empty(),
        "a scaled workload is no difference"
    );

    now.objects.remove(&scaler);
    let plan = now.plan(&then, &everything()).unwrap();
    assert_eq!(
        one(&plan, &web()),
        Action::Update,
        "without one the captured count comes back"
    );
}

#[test]
fn immutable_fields_make_a_recreate_that_is_refused_and_hide_nothing_else() {
    let (mut then, mut now) = changed(&web(), deployment("web:1", 1), |now| {
        now.set(&web(), &["spec", "selector", "matchLabels", "app"], json!("other"));
    });
    then.put(&cfg(), config_map("a"));
    now.put(&cfg(), config_map("b"));
    let plan = now.plan(&then, &Options::default()).unwrap();
    assert_eq!(one(&plan, &web()), Action::Recreate(vec!["spec.selector".to_owned()]));
    assert_eq!(one(&plan, &cfg()), Action::Update);
    assert_eq!(plan.refusals().collect::<Vec<_>>(), [(&web(), Refusal::ImmutableField)]);
    let recreate = Options {
        immutable: Immutable::Recreate,
        ..Options::default()
    };
    let plan = now.plan(&then, &recreate).unwrap();
    assert_eq!(
        plan.refusals().collect::<Vec<_>>(),
        [(&web(), Refusal::RecreateNotAvailable)]
    );
}

#[test]
fn secrets_kept_live_come_back_only_when_absent() {
    let secret = |name: &str| id("", "Secret", name);
    let (mut then, mut now) = changed(&secret("rotated"), json!({"data": {"k": "YQ=="}}), |now| {
        now.set(&secret("rotated"), &["data", "k"], json!("Yg=="));
    });
    then.put(&secret("lost"), json!({"data": {"k": "YQ=="}}));
    let options = Options {
        secrets: SecretsHandling::KeepLive,
        ..Options::default()
    };
    let plan = now.plan(&then, &options).unwrap();
    assert_eq!(one(&plan, &secret("rotated")), Action::Keep(KeepReason::SecretKeptLive));
    assert_eq!(one(&plan, &secret("lost")), Action::Create);

    let plan = now.plan(&then, &Options::default()).unwrap();
    let rotated = plan.items().iter().find(|item| item.id.name == "rotated").unwrap();
    assert_eq!(rotated.notes, [Note::SecretKeysChanged(vec!["k".to_owned()])]);
    assert!(!format!("{plan:?}").contains("Yg=="), "values are never shown");
    now.apply(&plan);
    assert!(now.plan(&then, &Options::default()).unwrap().is_empty());
}

#[test]
fn helms_own_records_are_never_written_back() {
    let release = id("", "Secret", "sh.helm.release.v1.web.v1");
    let (then, now) = changed(&release, json!({"data": {"release": "YQ=="}}), |now| {
        drop(now.objects.remove(&release))
    });
    let plan = now.plan(&then, &everything()).unwrap();
    assert_eq!(one(&plan, &release), Action::Keep(KeepReason::HelmHistory));
}

#[test]
fn objects_that_cannot_come_back_are_skipped_with_the_reason() {
    let (then, mut now) = changed(&web(), deployment("web:1", 1), |now| {
        now.put(&web(), deployment("web:2", 1));
    });
    now.set(
        &web(),
        &["metadata", "deletionTimestamp"],
        json!("2026-01-04T00:00:00Z"),
    );
    let plan = now.plan(&then, &everything()).unwrap();
    assert_eq!(one(&plan, &web()), Action::Skip(SkipReason::Terminating));

    let widget = id("example.org", "Widget", "w");
    let (then, now) = changed(&widget, json!({}), |now| drop(now.objects.remove(&widget)));
    let unserved = Facts {
        unserved: BTreeSet::from([("example.org".to_owned(), "Widget".to_owned())]),
        ..facts(&then)
    };
    let plan = now.plan_with(&then, &everything(), unserved.clone()).unwrap();
    assert_eq!(one(&plan, &widget), Action::Skip(SkipReason::KindNotServed));

    let mut with_definition = then.clone();
    let definition = id(
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        "widgets.example.org",
    );
    with_definition.put(
        &definition,
        json!({"spec": {"group": "example.org", "names": {"kind": "Widget"}}}),
    );
    let plan = now.plan_with(&with_definition, &everything(), unserved).unwrap();
    assert_eq!(
        one(&plan, &widget),
        Action::Create,
        "the plan brings its definition back"
    );
    assert_eq!(plan.items()[0].id, definition);
}

#[test]
fn drift_after_approval_fails_or_keeps_as_the_request_says() {
    let (then, now) = changed(&cfg(), config_map("a"), |now| {
        now.set(&cfg(), &["data", "mode"], json!("b"))
    });
    let drifted = Facts {
        drifted: BTreeSet::from([cfg()]),
        ..facts(&then)
    };
    let with = |conflict| Options {
        conflict,
        ..Options::default()
    };
    assert_eq!(
        now.plan_with(&then, &with(Conflict::FailOnDrift), drifted.clone()),
        Err(PlanError::Drift(vec![cfg()]))
    );
    let plan = now
        .plan_with(&then, &with(Conflict::KeepLive), drifted.clone())
        .unwrap();
    assert_eq!(one(&plan, &cfg()), Action::Keep(KeepReason::Drifted));
    let plan = now.plan_with(&then, &with(Conflict::Overwrite), drifted).unwrap();
    assert_eq!(one(&plan, &cfg()), Action::Update);
}

#[test]
fn a_pinned_image_is_written_once_and_then_listed() {
    let (then, mut now) = changed(&web(), deployment("web:1", 1), |now| {
        now.put(&web(), deployment("web:2", 1));
    });
    let pinned = Facts {
        pins: vec![Pin {
            workload: web(),
            container: "app".to_owned(),
            reference: "web:1@sha256:abc".to_owned(),
        }],
        ..facts(&then)
    };
    let plan = now.plan_with(&then, &Options::default(), pinned.clone()).unwrap();
    assert_eq!(plan.items()[0].notes, [Note::Pinned("app".to_owned())]);
    now.apply(&plan);
    assert_eq!(
        now.get(&web())["spec"]["template"]["spec"]["containers"][0]["image"],
        "web:1@sha256:abc"
    );
    let again = now.plan_with(&then, &Options::default(), pinned.clone()).unwrap();
    assert_eq!(one(&again, &web()), Action::Keep(KeepReason::Pinned));
    let as_captured = Options {
        images: Images::AsCaptured,
        ..Options::default()
    };
    let plan = now.plan_with(&then, &as_captured, pinned).unwrap();
    assert!(plan.items()[0].notes.is_empty());
}

/// Bodies that an object of each kind may have.
fn body(kind: &str, variant: u8) -> Value {
    let text = ["a", "b", "c"][usize::from(variant % 3)];
    let body = match kind {
        "ConfigMap" => json!({"data": {"mode": text}, "immutable": variant == 5}),
        "Secret" => json!({"data": {"k": text}, "type": "Opaque"}),
        "Service" => json!({"spec": {"type": if variant > 3 { "NodePort" } else { "ClusterIP" },
            "ports": [{"port": 80 + u16::from(variant % 2)}, {"port": 7}]}}),
        "PersistentVolumeClaim" => json!({"spec": {"storageClassName": text, "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": format!("{}Gi", variant + 1)}}}}),
        "Deployment" => deployment(text, u32::from(variant)),
        "StatefulSet" => json!({"spec": {"serviceName": if variant == 5 { "x" } else { "y" }, "replicas": variant,
            "template": {"spec": {"containers": [{"name": "app", "image": text}]}}}}),
        "HorizontalPodAutoscaler" => autoscaler(text),
        "Job" => {
            json!({"spec": {"parallelism": variant, "template": {"spec": {"containers": [{"name": "a", "image": "j"}]}}}})
        }
        "Role" => json!({"rules": [{"apiGroups": [""], "resources": [text], "verbs": ["get"]}]}),
        _ => json!({"spec": {"size": variant}}),
    };
    if variant % 4 == 1 {
        let mut owned = labelled(body, text);
        let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": text, "uid": "stale"},
            {"apiVersion": "example.org/v1", "kind": "Gone", "name": kind, "uid": "stale"}]);
        json::put(&mut owned, &["metadata", "ownerReferences"], Some(owner));
        return owned;
    }
    body
}

fn any_world() -> impl proptest::strategy::Strategy<Value = Vec<(usize, u8, u8)>> {
    let kinds = crate::domain::plan::testing::KINDS.len();
    prop::collection::vec((0..kinds, 0..3u8, 0..6u8), 0..24)
}

fn world(objects: &[(usize, u8, u8)], older: Option<&World>) -> World {
    let mut world = older.cloned().unwrap_or_default();
    for (kind, name, variant) in objects {
        let (group, kind) = crate::domain::plan::testing::KINDS[*kind];
        let id = id(group, kind, ["a", "b", "c"][usize::from(*name)]);
        if *variant == 0 && older.is_some() {
            world.objects.remove(&id);
        } else {
            world.put(&id, body(kind, *variant));
        }
    }
    world
}

proptest! {
    #[test]
    fn the_plan_of_a_plan_is_empty(then in any_world(), since in any_world(), prune: bool, keep_secrets: bool, images: bool) {
        let then = world(&then, None).aged();
        let mut now = world(&since, Some(&then));
        let mut options = everything();
        options.prune = if prune { Prune::Created } else { Prune::None };
        if keep_secrets {
            options.secrets = SecretsHandling::KeepLive;
        }
        if images {
            options.strategy = Strategy::Partial;
            options.components = BTreeSet::from([Component::Images, Component::Configuration]);
        }
        let plan = now.plan(&then, &options).unwrap();
        now.apply(&plan);
        let again = now.plan(&then, &options).unwrap();
        prop_assert!(again.is_empty(), "{:?}\nafter {:?}", actions(&again), actions(&plan));
    }

    #[test]
    fn after_a_rollback_every_difference_to_the_target_was_listed(then in any_world(), since in any_world(), prune: bool) {
        let then = world(&then, None).aged();
        let mut now = world(&since, Some(&then));
        let mut options = everything();
        options.prune = if prune { Prune::Created } else { Prune::None };
        let plan = now.plan(&then, &options).unwrap();
        now.apply(&plan);
        let (want, have) = (then.digests(), now.digests());
        for id in want.keys().chain(have.keys()) {
            let listed = plan.items().iter().any(|item| item.id == *id && (!item.action.writes() || !item.notes.is_empty()));
            prop_assert!(want.get(id) == have.get(id) || listed, "{id} differs unlisted, {:?}", actions(&plan));
        }
    }

    #[test]
    fn every_object_is_counted_exactly_once(then in any_world(), since in any_world()) {
        let then = world(&then, None).aged();
        let now = world(&since, Some(&then));
        let plan = now.plan(&then, &everything()).unwrap();
        let ids: BTreeSet<_> = then.objects.keys().chain(now.objects.keys()).collect();
        let summary = plan.summary();
        prop_assert_eq!(plan.items().len() - summary.restart + summary.unchanged, ids.len());
    }
}
