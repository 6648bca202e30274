use serde_json::json;

use super::*;
use crate::domain::plan::{
    Plan,
    testing::{World, deployment, everything, id},
};

const AT: &str = "2026-05-06T07:08:09Z";

fn around(owners: &BTreeMap<ObjectId, String>) -> Around<'_> {
    Around {
        owners,
        restarted_at: AT.parse().unwrap(),
    }
}

fn of_one<State>(plan: &Plan<State>, object: &ObjectId) -> Vec<Call> {
    let item = plan.items().iter().find(|item| item.id == *object).unwrap();
    calls(item, &around(&BTreeMap::new())).unwrap()
}

fn entry(manager: &str, operation: &str, fields: Value) -> Value {
    let mut entry = json!({"manager": manager, "operation": operation, "apiVersion": "v1", "fieldsType": "FieldsV1"});
    json::put(&mut entry, &["fieldsV1"], Some(fields));
    entry
}

fn data(keys: &[&str]) -> Value {
    let mut set = Map::from_iter([(".".to_owned(), json!({}))]);
    set.extend(keys.iter().map(|key| (format!("f:{key}"), json!({}))));
    json!({ "f:data": set })
}

#[allow(clippy::needless_pass_by_value, reason = "a test writes both in place")]
fn config(owners: Value, body: Value) -> World {
    let mut world = World::default();
    world.put(&id("", "ConfigMap", "cfg"), json!({ "data": body }));
    world.set(&id("", "ConfigMap", "cfg"), &["metadata", "managedFields"], owners);
    world.aged()
}

fn back(now: &World, then: &World) -> Vec<Call> {
    of_one(&now.plan(then, &everything()).unwrap(), &id("", "ConfigMap", "cfg"))
}

#[test]
fn the_only_applier_applies_again_what_it_owned_and_no_more() {
    let then = config(json!([entry("helm", "Apply", data(&["a"]))]), json!({"a": "1"}));
    let mut now = then.clone();
    let cfg = id("", "ConfigMap", "cfg");
    now.set(&cfg, &["data"], json!({"a": "2", "b": "x"}));
    now.set(
        &cfg,
        &["metadata", "managedFields"],
        json!([entry("helm", "Apply", data(&["a", "b"]))]),
    );
    now.set(&cfg, &["status"], json!({"seen": true}));
    let [
        Call::Apply {
            manager,
            body,
            replaces: Some(_),
        },
    ] = &back(&now, &then)[..]
    else {
        panic!("{:?}", back(&now, &then));
    };
    assert_eq!(manager, "helm");
    assert_eq!(
        **body,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"},
            "metadata": {"name": "cfg", "namespace": "shop", "uid": "uid-1", "resourceVersion": "1"}})
    );
    let [
        Call::Apply {
            body, replaces: None, ..
        },
    ] = &back(&World::default(), &then)[..]
    else {
        panic!("a create is no apply");
    };
    assert_eq!(body["metadata"], json!({"name": "cfg", "namespace": "shop"}));
}

#[test]
fn what_somebody_else_added_is_removed_by_a_replacement_and_the_owners_come_back() {
    let then = config(json!([entry("helm", "Apply", data(&["a"]))]), json!({"a": "1"}));
    let mut now = then.clone();
    let cfg = id("", "ConfigMap", "cfg");
    now.set(&cfg, &["data"], json!({"a": "1", "b": "x"}));
    now.set(
        &cfg,
        &["metadata", "managedFields"],
        json!([
            entry("helm", "Apply", data(&["a"])),
            entry("kubectl-edit", "Update", json!({"f:data": {"f:b": {}}}))
        ]),
    );
    let calls = back(&now, &then);
    let [
        Call::Put { manager, body, .. },
        Call::Fields {
            managed_fields,
            from: None,
        },
    ] = &calls[..]
    else {
        panic!("{calls:?}");
    };
    assert_eq!(manager, RESTORING);
    assert_eq!(body["data"], json!({"a": "1"}));
    assert_eq!(body["metadata"]["resourceVersion"], "1");
    let mut expected = entry("helm", "Apply", data(&["a"]));
    json::put(&mut expected, &["time"], Some(json!(AT)));
    assert_eq!(managed_fields, &[expected]);
}

#[test]
fn one_updater_writes_under_its_own_name_and_two_get_their_fields_back() {
    let one = config(
        json!([entry("kubectl-create", "Update", data(&["a"]))]),
        json!({"a": "1"}),
    );
    let mut now = one.clone();
    now.set(&id("", "ConfigMap", "cfg"), &["data"], json!({"a": "2"}));
    assert!(matches!(&back(&now, &one)[..], [Call::Put { manager, .. }] if manager == "kubectl-create"));
    assert!(matches!(&back(&World::default(), &one)[..], [Call::Post { manager, .. }] if manager == "kubectl-create"));
    let two = config(
        json!([
            entry("kubectl-create", "Update", data(&["a"])),
            entry("kubectl-edit", "Update", json!({"f:data": {"f:b": {}}}))
        ]),
        json!({"a": "1", "b": "1"}),
    );
    let calls = back(&World::default(), &two);
    assert!(
        matches!(&calls[..], [Call::Post { manager, .. }, Call::Fields { managed_fields, .. }] if manager == RESTORING && managed_fields.len() == 2),
        "{calls:?}"
    );
}

#[test]
fn an_interrupted_write_is_an_update_although_nothing_differs() {
    let then = config(
        json!([
            entry("helm", "Apply", data(&["a"])),
            entry("kubectl", "Update", json!({"f:data": {"f:b": {}}}))
        ]),
        json!({"a": "1", "b": "1"}),
    );
    let mut now = then.clone();
    now.set(
        &id("", "ConfigMap", "cfg"),
        &["metadata", "managedFields"],
        json!([entry(RESTORING, "Update", data(&["a", "b"]))]),
    );
    let plan = now.plan(&then, &everything()).unwrap();
    assert_eq!(plan.summary().update, 1);
    let calls = back(&now, &then);
    assert!(
        matches!(&calls[..], [Call::Fields { managed_fields, from: Some(_) }] if managed_fields.len() == 2),
        "{calls:?}"
    );
    // And where it differs besides, the interrupted manager does not stay.
    now.set(&id("", "ConfigMap", "cfg"), &["data"], json!({"a": "2", "b": "1"}));
    assert!(matches!(
        &back(&now, &then)[..],
        [Call::Put { .. }, Call::Fields { .. }]
    ));
}

#[test]
fn replicas_stay_with_the_autoscaler_that_owns_them_now() {
    let web = id("apps", "Deployment", "web");
    let hpa = id("autoscaling", "HorizontalPodAutoscaler", "web");
    let mut then = World::default();
    then.put(&web, deployment("app:1", 2));
    then.put(&hpa, crate::domain::plan::testing::autoscaler("web"));
    let owned = json!({"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {
        "k:{\"name\":\"app\"}": {".": {}, "f:name": {}, "f:image": {}}}}}}});
    then.set(
        &web,
        &["metadata", "managedFields"],
        json!([entry("helm", "Apply", owned.clone())]),
    );
    let then = then.aged();
    let mut now = then.clone();
    now.set(&web, &["spec", "replicas"], json!(7));
    now.set(
        &web,
        &["spec", "template", "spec", "containers"],
        deployment("app:2", 2)["spec"]["template"]["spec"]["containers"].clone(),
    );
    let mut scale = entry(
        "kube-controller-manager",
        "Update",
        json!({"f:spec": {"f:replicas": {}}}),
    );
    json::put(&mut scale, &["subresource"], Some(json!("scale")));
    let mut helm = owned;
    helm["f:spec"].as_object_mut().unwrap().remove("f:replicas");
    now.set(
        &web,
        &["metadata", "managedFields"],
        json!([entry("helm", "Apply", helm.clone()), scale.clone()]),
    );
    let calls = of_one(&now.plan(&then, &everything()).unwrap(), &web);
    let [Call::Put { body, .. }, Call::Fields { managed_fields, .. }] = &calls[..] else {
        panic!("{calls:?}");
    };
    assert_eq!(body["spec"]["replicas"], 7);
    let sets: Vec<_> = managed_fields
        .iter()
        .map(|entry| (text(entry, "manager"), &entry["fieldsV1"]))
        .collect();
    assert_eq!(sets, [("helm", &helm), ("kube-controller-manager", &scale["fieldsV1"])]);
}

#[test]
fn an_owner_that_was_just_created_gives_its_uid_and_one_that_was_not_stops_the_write() {
    let (web, cfg) = (id("apps", "Deployment", "web"), id("", "ConfigMap", "cfg"));
    let mut then = World::default();
    then.put(&web, deployment("app:1", 1));
    then.put(&cfg, json!({"data": {}}));
    then.set(
        &cfg,
        &["metadata", "ownerReferences"],
        json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "old"}]),
    );
    then.set(
        &cfg,
        &["metadata", "managedFields"],
        json!([
            entry(
                "a",
                "Apply",
                json!({"f:metadata": {"f:ownerReferences": {"k:{\"uid\":\"old\"}": {}}}})
            ),
            entry("b", "Apply", json!({"f:data": {}}))
        ]),
    );
    let plan = World::default().plan(&then.aged(), &everything()).unwrap();
    let item = plan.items().iter().find(|item| item.id == cfg).unwrap();
    assert_eq!(
        calls(item, &around(&BTreeMap::new())),
        Err(WriteRefusal::OwnerMissing(web.clone()))
    );
    let owners = BTreeMap::from([(web, "new".to_owned())]);
    let made = calls(item, &around(&owners)).unwrap();
    let [Call::Post { body, .. }, Call::Fields { managed_fields, .. }] = &made[..] else {
        panic!("{made:?}");
    };
    assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "new");
    assert_eq!(
        managed_fields[0]["fieldsV1"]["f:metadata"]["f:ownerReferences"],
        json!({"k:{\"uid\":\"new\"}": {}})
    );
}

#[test]
fn a_restart_is_the_same_call_every_time_and_a_delete_has_both_preconditions() {
    let (web, cfg, extra) = (
        id("apps", "Deployment", "web"),
        id("", "ConfigMap", "cfg"),
        id("", "ConfigMap", "extra"),
    );
    let mut then = World::default();
    then.put(&web, deployment("app:1", 1));
    then.put(&cfg, json!({"data": {"a": "1"}}));
    let then = then.aged();
    let mut now = then.clone();
    now.set(&cfg, &["data"], json!({"a": "2"}));
    now.put(&extra, json!({"data": {}}));
    let plan = now.plan(&then, &everything()).unwrap();
    let [Call::Merge { manager, body }] = &of_one(&plan, &web)[..] else {
        panic!("no restart");
    };
    assert_eq!(
        (manager.as_str(), &body["metadata"]["uid"]),
        ("kubectl-rollout", &json!("uid-1"))
    );
    assert_eq!(
        body["spec"]["template"]["metadata"]["annotations"],
        json!({ RESTARTED_AT: AT })
    );
    let [
        Call::Delete {
            uid, resource_version, ..
        },
    ] = &of_one(&plan, &extra)[..]
    else {
        panic!("no delete");
    };
    assert_eq!((uid.as_str(), resource_version.as_str()), ("uid-3", "1"));
}

#[test]
fn only_status_and_bookkeeping_leave_the_state_as_it_is() {
    let raw = json!({"metadata": {"name": "web", "resourceVersion": "1", "generation": 1}, "spec": {"replicas": 1}});
    let mut moved = raw.clone();
    json::put(&mut moved, &["status"], Some(json!({"ready": 1})));
    json::put(&mut moved, &["metadata", "resourceVersion"], Some(json!("2")));
    json::put(
        &mut moved,
        &["metadata", "annotations", "deployment.kubernetes.io/revision"],
        Some(json!("1")),
    );
    assert_eq!(state(&raw), state(&moved));
    json::put(&mut moved, &["metadata", "labels", "a"], Some(json!("b")));
    assert_ne!(state(&raw), state(&moved));
}

#[test]
fn who_wrote_after_us_keeps_what_they_wrote_and_status_stays_with_its_writers() {
    let target = [entry("helm", "Apply", data(&["a"]))];
    let base = [
        entry(RESTORING, "Update", data(&["a"])),
        entry("old", "Update", json!({"f:data": {"f:z": {}}})),
    ];
    let mut status = entry("kubelet", "Update", json!({"f:status": {}}));
    json::put(&mut status, &["subresource"], Some(json!("status")));
    let late = entry("controller", "Update", json!({"f:spec": {"f:volumeName": {}}}));
    let current = [base[0].clone(), base[1].clone(), status.clone(), late.clone()];
    assert_eq!(restored(&target, &base, &current), [target[0].clone(), status, late]);
    assert_eq!(restored(&[], &base, &base), [json!({})]);
}
