use serde_json::json;

use super::*;
use crate::domain::plan::{
    Action, KeepReason, Note,
    testing::{World, deployment, everything, id},
};

/// The single item of a rollback of `kind` from `now` to `then`, and what it would write.
fn item(object: &ObjectId, then: Value, now: impl FnOnce(&mut World)) -> (Action, Vec<Note>, Value) {
    let mut target = World::default();
    target.put(object, then);
    let target = target.aged();
    let mut world = target.clone();
    now(&mut world);
    let plan = world.plan(&target, &everything()).unwrap();
    let item = plan.items().iter().find(|item| item.id == *object).unwrap();
    let written = item
        .desired
        .as_ref()
        .map_or(Value::Null, |wanted| wanted.object.clone().into_value());
    (item.action.clone(), item.notes.clone(), written)
}

fn kept(path: &str, reason: KeptReason) -> Note {
    Note::Kept(KeptField {
        path: path.to_owned(),
        reason,
    })
}

#[test]
fn a_recreated_service_keeps_its_address_and_allocated_ports() {
    let service = id("", "Service", "web");
    let body =
        |port: u16| json!({"spec": {"type": "NodePort", "ports": [{"port": 80}], "sessionAffinity": port.to_string()}});
    let (action, notes, written) = item(&service, body(1), |now| {
        let raw = now.put(&service, body(2));
        json::put(raw, &["spec", "clusterIP"], Some(json!("10.9.9.9")));
        json::put(
            raw,
            &["spec", "ports"],
            Some(json!([{"port": 80, "protocol": "TCP", "nodePort": 30123}])),
        );
    });
    assert_eq!((action, notes), (Action::Update, vec![]));
    assert_eq!(written["spec"]["clusterIP"], "10.9.9.9");
    assert_eq!(written["spec"]["ports"][0]["nodePort"], 30123);
    assert_eq!(written["spec"]["sessionAffinity"], "1");
}

#[test]
fn an_address_that_its_author_chose_stays_as_it_is_now() {
    let service = id("", "Service", "web");
    let owned = json!([{"manager": "m", "operation": "Apply", "fieldsV1": {"f:spec": {"f:clusterIP": {}}}}]);
    let mut then = World::default();
    let raw = then.put(&service, json!({"spec": {"ports": []}}));
    json::put(raw, &["metadata", "managedFields"], Some(owned));
    let mut now = then.clone();
    now.set(&service, &["spec", "clusterIP"], json!("10.9.9.9"));
    let plan = now.plan(&then, &everything()).unwrap();
    assert_eq!(plan.items()[0].action, Action::Keep(KeepReason::LiveWins));
    assert_eq!(
        plan.items()[0].notes,
        [kept("spec.clusterIP", KeptReason::ServerAllocated)]
    );
}

#[test]
fn a_claim_never_shrinks_and_never_moves() {
    let claim = id("", "PersistentVolumeClaim", "data");
    let body = |size: &str, class: &str| json!({"spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}});
    let (action, notes, _) = item(&claim, body("8Gi", "fast"), |now| {
        now.put(&claim, body("10Gi", "slow"));
        now.set(&claim, &["spec", "volumeName"], json!("pv-1"));
    });
    assert_eq!(action, Action::Keep(KeepReason::LiveWins));
    assert_eq!(
        notes,
        [
            kept("spec.storageClassName", KeptReason::ClaimIsBound),
            kept("spec.resources.requests.storage", KeptReason::ClaimNeverShrinks),
        ]
    );
    let (action, notes, written) = item(&claim, body("20Gi", "fast"), |now| {
        now.put(&claim, body("10Gi", "fast"));
        now.set(&claim, &["spec", "volumeName"], json!("pv-1"));
    });
    assert_eq!((action, notes), (Action::Update, vec![]), "it grows");
    assert_eq!(written["spec"]["volumeName"], "pv-1");
}

#[test]
fn owners_are_written_with_their_live_uid_and_never_with_a_stale_one() {
    let (parent, child) = (id("", "ConfigMap", "parent"), id("", "ConfigMap", "child"));
    let owned = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "parent", "uid": "stale"},
        {"apiVersion": "example.org/v1", "kind": "Gone", "name": "ConfigMap", "uid": "stale"},
        {"apiVersion": "example.org/v1", "kind": "Elsewhere", "name": "x", "uid": "stale"}]}, "data": {}});
    let mut then = World::default();
    then.put(&parent, json!({"data": {}}));
    then.put(&child, owned);
    let mut now = then.clone();
    now.objects.remove(&child);
    now.set(&parent, &["metadata", "uid"], json!("new-uid"));
    let plan = now.plan(&then, &everything()).unwrap();
    let wanted = plan.items()[0].desired.as_ref().unwrap();
    let references = wanted.object["metadata"]["ownerReferences"].as_array().unwrap();
    assert_eq!(references.len(), 1);
    assert_eq!(references[0]["uid"], "new-uid");
    assert!(plan.items()[0].notes.contains(&kept(
        "metadata.ownerReferences[Gone.example.org/ConfigMap]",
        KeptReason::OwnerGone
    )));
    assert!(plan.items()[0].notes.contains(&kept(
        "metadata.ownerReferences[Elsewhere.example.org/x]",
        KeptReason::OwnerUnknown
    )));

    now.objects.clear();
    let plan = now.plan(&then, &everything()).unwrap();
    let child = plan.items().iter().find(|item| item.id == child).unwrap();
    let wanted = child.desired.as_ref().unwrap();
    assert_eq!(wanted.pending_owners, [parent]);
    assert!(wanted.object["metadata"]["ownerReferences"][0].get("uid").is_none());
    assert_eq!(plan.items().last().unwrap().id.name, "child");
}

#[test]
fn finalizers_restarts_and_identity_stay_as_they_are_now() {
    let web = id("apps", "Deployment", "web");
    let (action, _, written) = item(&web, deployment("web:1", 1), |now| {
        now.put(&web, deployment("web:2", 1));
        now.set(&web, &["metadata", "uid"], json!("now"));
        now.set(&web, &["metadata", "finalizers"], json!(["example.org/hold"]));
        now.set(
            &web,
            &["metadata", "annotations"],
            json!({"deployment.kubernetes.io/revision": "7", "mine": "x"}),
        );
        now.set(
            &web,
            &["spec", "template", "metadata", "annotations"],
            json!({RESTARTED_AT: "yesterday"}),
        );
        now.set(&web, &["status"], json!({"replicas": 1}));
    });
    assert_eq!(action, Action::Update);
    let metadata = &written["metadata"];
    assert_eq!(metadata["uid"], "now");
    assert_eq!(metadata["finalizers"], json!(["example.org/hold"]));
    assert_eq!(
        metadata["annotations"],
        json!({"deployment.kubernetes.io/revision": "7"})
    );
    assert_eq!(
        written["spec"]["template"]["metadata"]["annotations"][RESTARTED_AT],
        "yesterday"
    );
    assert_eq!(written["status"], json!({"replicas": 1}));
    assert!(metadata.get("managedFields").is_none());
}

#[test]
fn lists_go_back_in_the_order_they_were_captured_in() {
    let web = id("apps", "Deployment", "web");
    let mut body = deployment("web:1", 1);
    let containers = json!([{"name": "z", "image": "z:1"}, {"name": "a", "image": "a:1"}]);
    json::put(&mut body, &["spec", "template", "spec", "containers"], Some(containers));
    let (_, _, written) = item(&web, body, |now| {
        now.put(&web, deployment("web:2", 1));
    });
    assert_eq!(written["spec"]["template"]["spec"]["containers"][0]["name"], "z");
}

#[test]
fn a_job_keeps_what_its_controller_generated() {
    let job = id("batch", "Job", "j");
    let body = |parallelism: u8| json!({"spec": {"parallelism": parallelism, "template": {"metadata": {"labels": {"app": "j"}}, "spec": {}}}});
    let (action, _, written) = item(&job, body(1), |now| {
        let raw = now.put(&job, body(2));
        json::put(
            raw,
            &["spec", "selector"],
            Some(json!({"matchLabels": {"controller-uid": "u"}})),
        );
        json::put(
            raw,
            &["spec", "template", "metadata", "labels"],
            Some(json!({"app": "j", "job-name": "j"})),
        );
    });
    assert_eq!(action, Action::Update);
    assert_eq!(written["spec"]["selector"]["matchLabels"]["controller-uid"], "u");
    assert_eq!(
        written["spec"]["template"]["metadata"]["labels"],
        json!({"app": "j", "job-name": "j"})
    );
}
