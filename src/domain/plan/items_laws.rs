use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{tests::actions, *};
use crate::{
    api::{rollback_request::Strategy, snapshot::Component},
    domain::plan::testing::{World, autoscaler, deployment, everything, id, labelled},
};

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
        let references = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": text, "uid": "stale"},
            {"apiVersion": "example.org/v1", "kind": "Gone", "name": kind, "uid": "stale"}]);
        json::put(&mut owned, &["metadata", "ownerReferences"], Some(references));
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
