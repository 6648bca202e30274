use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::domain::plan::{
    Drafted,
    testing::{World, autoscaler, config_map, deployment, everything, facts, id, labelled},
};

fn order_of(plan: &Plan<Drafted>, kind: &str) -> u16 {
    plan.items().iter().find(|item| item.id.kind == kind).unwrap().order
}

fn namespace() -> World {
    let mut world = World::default();
    let definition = json!({"spec": {"group": "example.org", "names": {"kind": "Widget"}}});
    world.put(
        &id(
            "apiextensions.k8s.io",
            "CustomResourceDefinition",
            "widgets.example.org",
        ),
        definition,
    );
    world.put(&id("example.org", "Widget", "w"), json!({"spec": {}}));
    world.put(&id("", "Namespace", "shop"), json!({}));
    world.put(&id("", "ConfigMap", "cfg"), config_map("a"));
    world.put(&id("", "ServiceAccount", "web"), json!({}));
    world.put(&id("", "PersistentVolumeClaim", "data"), json!({"spec": {}}));
    world.put(&id("", "Service", "web"), json!({"spec": {"ports": []}}));
    world.put(&id("apps", "Deployment", "web"), deployment("web:1", 1));
    world.put(&id("autoscaling", "HorizontalPodAutoscaler", "web"), autoscaler("web"));
    world.put(&id("rbac.authorization.k8s.io", "Role", "r"), json!({"rules": []}));
    world.put(
        &id("rbac.authorization.k8s.io", "RoleBinding", "r"),
        json!({"roleRef": {"name": "r"}}),
    );
    world
}

#[test]
fn a_whole_namespace_comes_back_in_the_order_of_the_design() {
    let plan = World::default().plan(&namespace(), &everything()).unwrap();
    let chain = [
        "CustomResourceDefinition",
        "ConfigMap",
        "PersistentVolumeClaim",
        "Service",
        "Deployment",
        "HorizontalPodAutoscaler",
    ];
    for pair in chain.windows(2) {
        assert!(order_of(&plan, pair[0]) < order_of(&plan, pair[1]), "{pair:?}");
    }
    assert!(order_of(&plan, "CustomResourceDefinition") < order_of(&plan, "Widget"));
    assert!(order_of(&plan, "Role") < order_of(&plan, "RoleBinding"));
    assert_eq!(order_of(&plan, "ServiceAccount"), CONFIG);
    assert_eq!(plan.items()[0].id.kind, "Namespace");
}

#[test]
fn prune_goes_the_other_way_after_everything_else() {
    let then = World::default();
    let mut now = World::default();
    now.put(&id("", "ConfigMap", "cfg"), config_map("a"));
    now.put(&id("apps", "Deployment", "web"), deployment("web:1", 1));
    let plan = now.plan(&then, &everything()).unwrap();
    assert!(
        plan.items()
            .iter()
            .all(|item| item.action == Action::Delete && item.order > RESTART)
    );
    assert!(order_of(&plan, "Deployment") < order_of(&plan, "ConfigMap"));
}

#[test]
fn an_annotation_moves_an_object_and_nonsense_is_named_and_ignored() {
    let mut then = World::default();
    let with = |value: &str| {
        let mut body = config_map("a");
        json::put(
            &mut body,
            &["metadata", "annotations", ORDER_ANNOTATION],
            Some(json!(value)),
        );
        body
    };
    then.put(&id("", "ConfigMap", "late"), with("75"));
    then.put(&id("", "ConfigMap", "odd"), with("soon"));
    let plan = World::default().plan(&then, &everything()).unwrap();
    let find = |name: &str| plan.items().iter().find(|item| item.id.name == name).unwrap();
    assert_eq!((find("late").order, find("late").notes.len()), (75, 0));
    assert_eq!(find("odd").order, CONFIG);
    assert_eq!(find("odd").notes, [Note::OrderIgnored("soon".to_owned())]);
}

#[test]
fn steps_are_numbered_without_gaps_and_named_in_order() {
    let plan = World::default().plan(&namespace(), &everything()).unwrap();
    let extras = Extras {
        gitops: true,
        volumes: true,
        tests: true,
    };
    let steps = plan.steps(extras);
    let numbers: Vec<usize> = steps.iter().map(|step| step.number).collect();
    assert_eq!(numbers, (1..=steps.len()).collect::<Vec<_>>());
    assert!(steps.iter().map(|step| step.step).is_sorted());
    assert_eq!(steps[0].step, Step::PauseGitOps);
    assert_eq!(steps.last().unwrap().step, Step::HandBack);
    let nothing = World::default().plan(&World::default(), &everything()).unwrap();
    assert_eq!(nothing.steps(Extras::default()), []);
}

/// Objects that own each other at random: each is `(kind, name, owner, order annotation)`.
fn any_family() -> impl Strategy<Value = Vec<(bool, u8, Option<u8>, Option<u8>)>> {
    let one = (
        any::<bool>(),
        0..8u8,
        proptest::option::of(0..8u8),
        proptest::option::of(0..120u8),
    );
    prop::collection::vec(one, 0..16)
}

fn family(members: &[(bool, u8, Option<u8>, Option<u8>)]) -> World {
    let mut world = World::default();
    for (map, name, owner, order) in members {
        let mut body = labelled(config_map("a"), "x");
        if let Some(owner) = owner {
            let reference = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": format!("n{owner}"), "uid": "u"}]);
            json::put(&mut body, &["metadata", "ownerReferences"], Some(reference));
        }
        if let Some(order) = order {
            json::put(
                &mut body,
                &["metadata", "annotations", ORDER_ANNOTATION],
                Some(json!(order.to_string())),
            );
        }
        let kind = if *map {
            id("", "ConfigMap", &format!("n{name}"))
        } else {
            id("example.org", "Widget", &format!("n{name}"))
        };
        world.put(&kind, body);
    }
    world
}

proptest! {
    #[test]
    fn order_respects_dependencies(members in any_family()) {
        let mut then = family(&members);
        let definition = id("apiextensions.k8s.io", "CustomResourceDefinition", "widgets.example.org");
        then.put(&definition, json!({"spec": {"group": "example.org", "names": {"kind": "Widget"}}}));
        let mut facts = facts(&then);
        facts.unserved = BTreeSet::from([("example.org".to_owned(), "Widget".to_owned())]);
        let plan = World::default().plan_with(&then, &everything(), facts).unwrap();
        let order = |id: &ObjectId| plan.items().iter().find(|item| item.id == *id).unwrap().order;
        for item in plan.writes() {
            for owner in &item.desired.as_ref().unwrap().pending_owners {
                prop_assert!(order(owner) < item.order, "{owner} before {}", item.id);
            }
            if item.id.kind == "Widget" {
                prop_assert!(order(&definition) < item.order);
            }
            prop_assert!(item.order <= LAST_WRITE);
        }
        prop_assert!(plan.items().iter().map(|item| item.order).is_sorted());
    }
}
