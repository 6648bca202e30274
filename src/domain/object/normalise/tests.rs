use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::domain::object::{
    shape::apply_order,
    testing::{any_json, shuffled},
};

fn shape(kind: &KindInfo) -> ListShape {
    ListShape::builtin(&kind.group, &kind.kind).unwrap_or_default()
}

fn run(raw: Value, kind: &KindInfo) -> Normalised {
    normalise(raw, kind, &shape(kind), SecretValues::Keep).unwrap()
}

fn content(raw: Value, kind: &KindInfo) -> Value {
    serde_json::from_slice(&run(raw, kind).content).unwrap()
}

#[allow(clippy::needless_pass_by_value)]
fn manager(fields: Value) -> Value {
    json!({"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": fields})
}

fn deployment() -> Value {
    json!({
        "metadata": {
            "name": "web", "namespace": "shop", "uid": "u-1", "resourceVersion": "42", "generation": 7,
            "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x/y"], "selfLink": "/old",
            "labels": {"app": "web"},
            "annotations": {"deployment.kubernetes.io/revision": "3"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "root", "uid": "u-0"}],
            "managedFields": [
                {"manager": "z", "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": {}}},
                manager(json!({"f:spec": {"f:replicas": {}}})),
            ],
        },
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"creationTimestamp": null, "labels": {"app": "web"},
                    "annotations": {"kubectl.kubernetes.io/restartedAt": "2026-01-02T00:00:00Z"}},
                "spec": {"containers": [
                    {"name": "web", "image": "web:1", "ports": [{"containerPort": 90, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}]},
                    {"name": "side", "image": "side:1"},
                ]},
            },
        },
        "status": {"replicas": 2},
    })
}

fn deployments() -> KindInfo {
    KindInfo::new("apps", "v1", "Deployment")
}

#[test]
fn a_deployment_keeps_what_its_author_said() {
    assert_eq!(
        content(deployment(), &deployments()),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "root"}]},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
                    {"name": "side", "image": "side:1"},
                    {"name": "web", "image": "web:1", "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 90, "protocol": "TCP"}]},
                ]}},
            },
        })
    );
}

#[test]
fn what_identifies_the_object_is_handed_out_beside_its_content() {
    let normalised = run(deployment(), &deployments());
    assert_eq!(
        (&*normalised.name, &*normalised.uid, &*normalised.resource_version),
        ("web", "u-1", "42")
    );
    let beside: Beside = serde_json::from_slice(&normalised.beside.unwrap()).unwrap();
    assert_eq!(beside.managed_fields.len(), 1, "the status entry is gone");
    assert!(beside.managed_fields[0].get("time").is_none());
    let mut restored = serde_json::from_slice(&normalised.content).unwrap();
    apply_order(&mut restored, &beside.order);
    assert_eq!(restored["spec"]["template"]["spec"]["containers"][0]["name"], "web");
    assert_eq!(
        restored["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"],
        90
    );
}

#[test]
fn beside_data_does_not_depend_on_times_or_on_the_order_they_give() {
    let mut later = deployment();
    let entries = later["metadata"]["managedFields"].as_array_mut().unwrap();
    entries.push(json!({"manager": "a", "operation": "Apply", "time": "2026-03-03T00:00:00Z", "fieldsV1": {}}));
    let mut other = later.clone();
    let entries = other["metadata"]["managedFields"].as_array_mut().unwrap();
    entries.reverse();
    for entry in entries {
        entry["time"] = json!("2027-01-01T00:00:00Z");
    }
    assert_eq!(run(later, &deployments()).beside, run(other, &deployments()).beside);
}

#[test]
fn an_object_without_managed_fields_loses_nothing_an_author_may_have_said() {
    let services = KindInfo::new("", "v1", "Service");
    let raw = json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"],
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
    let content = content(raw.clone(), &services);
    assert_eq!(content["spec"], raw["spec"]);
}

#[test]
fn addresses_and_ports_that_the_server_chose_are_not_content() {
    let services = KindInfo::new("", "v1", "Service");
    let raw = |fields| {
        json!({"metadata": {"name": "web", "managedFields": [manager(fields)]}, "spec": {
            "type": "LoadBalancer", "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"], "healthCheckNodePort": 31000,
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 81, "protocol": "UDP", "nodePort": 30081}]}})
    };
    let chosen = content(raw(json!({"f:spec": {"f:type": {}}})), &services);
    assert_eq!(
        chosen["spec"],
        json!({"type": "LoadBalancer", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "UDP"}]})
    );
    let said = content(
        raw(
            json!({"f:spec": {"f:clusterIP": {}, "f:ports": {"k:{\"port\":81,\"protocol\":\"UDP\"}": {"f:nodePort": {}}}}}),
        ),
        &services,
    );
    assert_eq!(
        said["spec"],
        json!({"type": "LoadBalancer", "clusterIP": "10.0.0.7",
        "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "UDP", "nodePort": 30081}]})
    );
}

#[test]
fn a_headless_service_stays_headless_whoever_owns_the_field() {
    let raw = json!({"metadata": {"name": "db", "managedFields": [manager(json!({"f:spec": {"f:selector": {}}}))]},
        "spec": {"clusterIP": "None", "clusterIPs": ["None"]}});
    assert_eq!(
        content(raw, &KindInfo::new("", "v1", "Service"))["spec"],
        json!({"clusterIP": "None", "clusterIPs": ["None"]})
    );
}

#[test]
fn a_claim_forgets_its_binding_and_the_source_of_its_data() {
    let raw = json!({"metadata": {"name": "data", "annotations": {
            "pv.kubernetes.io/bind-completed": "yes", "volume.kubernetes.io/selected-node": "n1",
            "volume.beta.kubernetes.io/storage-provisioner": "csi", "volume.beta.kubernetes.io/storage-class": "fast"}},
        "spec": {"volumeName": "pv-1", "dataSource": {"name": "s"}, "dataSourceRef": {"name": "s"}, "storageClassName": "fast"}});
    let content = content(raw, &KindInfo::new("", "v1", "PersistentVolumeClaim"));
    assert_eq!(content["spec"], json!({"storageClassName": "fast"}));
    assert_eq!(
        content["metadata"]["annotations"],
        json!({"volume.beta.kubernetes.io/storage-class": "fast"})
    );
}

#[test]
fn a_job_loses_its_generated_selector_but_not_one_that_its_author_wrote() {
    let jobs = KindInfo::new("batch", "v1", "Job");
    let raw = |manual: bool| {
        json!({"metadata": {"name": "j", "labels": {"batch.kubernetes.io/controller-uid": "u"}}, "spec": {
            "manualSelector": manual, "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}},
            "template": {"metadata": {"labels": {"controller-uid": "u", "job-name": "j"}}, "spec": {"containers": []}}}})
    };
    let generated = content(raw(false), &jobs);
    assert_eq!(generated["metadata"], json!({"name": "j"}));
    assert_eq!(
        generated["spec"],
        json!({"manualSelector": false, "template": {"spec": {"containers": []}}})
    );
    assert_eq!(content(raw(true), &jobs)["spec"], raw(true)["spec"]);
}

#[test]
fn an_ownerless_pod_loses_what_scheduling_and_admission_added() {
    let raw = json!({"metadata": {"name": "p", "managedFields": [manager(json!({"f:spec": {"f:tolerations": {}}}))]}, "spec": {
        "nodeName": "n1", "priority": 0, "preemptionPolicy": "PreemptLowerPriority",
        "containers": [{"name": "c", "volumeMounts": [{"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}],
        "volumes": [{"name": "kube-api-access-x7k2p", "projected": {"sources": []}}],
        "tolerations": [
            {"key": "dedicated", "operator": "Exists"},
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]}});
    assert_eq!(
        content(raw, &KindInfo::new("", "v1", "Pod"))["spec"],
        json!({"containers": [{"name": "c"}], "tolerations": [
            {"key": "dedicated", "operator": "Exists"},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]})
    );
}

#[test]
fn claim_templates_of_a_stateful_set_lose_their_status() {
    let raw = json!({"metadata": {"name": "db"}, "spec": {"volumeClaimTemplates": [
        {"metadata": {"name": "data", "creationTimestamp": null}, "spec": {"volumeMode": "Filesystem"}, "status": {"phase": "Pending"}}]}});
    assert_eq!(
        content(raw, &KindInfo::new("apps", "v1", "StatefulSet"))["spec"]["volumeClaimTemplates"],
        json!([{"metadata": {"name": "data"}, "spec": {"volumeMode": "Filesystem"}}])
    );
}

#[test]
fn fingerprinted_secrets_hold_no_value_in_content_or_beside() {
    let secrets = KindInfo::new("", "v1", "Secret");
    let raw = json!({"metadata": {"name": "db", "managedFields": [manager(json!({"f:data": {"f:password": {}}}))]},
        "data": {"password": "aHVudGVyMg=="}});
    let key = FingerprintKey::new([1; 32]);
    let normalised = normalise(raw, &secrets, &shape(&secrets), SecretValues::Fingerprint(&key)).unwrap();
    let stored = String::from_utf8([normalised.content, normalised.beside.unwrap()].concat()).unwrap();
    assert!(
        !stored.contains("aHVudGVyMg") && stored.contains("hmac-sha256:") && stored.contains("f:password"),
        "{stored}"
    );
}

#[test]
fn what_is_not_an_object_with_a_name_is_an_error() {
    let kind = deployments();
    assert_eq!(
        normalise(json!([]), &kind, &shape(&kind), SecretValues::Keep),
        Err(NormaliseError::NotAnObject)
    );
    assert_eq!(
        normalise(json!({"metadata": {}}), &kind, &shape(&kind), SecretValues::Keep),
        Err(NormaliseError::NoName)
    );
}

fn kinds() -> impl Strategy<Value = KindInfo> {
    prop::sample::select(vec![
        ("apps", "Deployment"),
        ("apps", "StatefulSet"),
        ("batch", "Job"),
        ("batch", "CronJob"),
        ("", "Pod"),
        ("", "Secret"),
        ("", "Service"),
        ("", "PersistentVolumeClaim"),
        ("", "Namespace"),
        ("example.com", "Thing"),
    ])
    .prop_map(|(group, kind)| KindInfo::new(group, "v1", kind))
}

/// Objects whose fields are those that the rules look at, filled with anything.
fn any_object() -> impl Strategy<Value = Value> {
    let spec_fields = prop::sample::select(vec![
        "clusterIP",
        "ports",
        "volumeName",
        "selector",
        "tolerations",
        "volumes",
        "containers",
        "nodeName",
        "finalizers",
        "x",
    ]);
    let spec = prop::collection::btree_map(spec_fields, any_json(), 0..6);
    let template = prop::option::of(any_json());
    let managed = prop::option::of(prop_oneof![
        any_json(),
        Just(json!([manager(json!({"f:spec": {"f:nodeName": {}}}))]))
    ]);
    (
        spec,
        template,
        managed,
        any_json(),
        any_json(),
        prop::option::of(any_json()),
    )
        .prop_map(|(spec, template, managed, annotations, labels, data)| {
            let mut raw =
                json!({"metadata": {"name": "n", "annotations": annotations, "labels": labels}, "spec": spec});
            if let Some(template) = template {
                raw["spec"]["template"] = json!({"metadata": template});
            }
            if let Some(managed) = managed {
                raw["metadata"]["managedFields"] = managed;
            }
            if let Some(data) = data {
                raw["data"] = data;
            }
            raw
        })
}

proptest! {
    #[test]
    fn normalising_twice_is_normalising_once(raw in any_object(), kind in kinds(), hide in any::<bool>()) {
        let key = FingerprintKey::new([3; 32]);
        let secrets = if hide { SecretValues::Fingerprint(&key) } else { SecretValues::Keep };
        let once = normalise(raw, &kind, &shape(&kind), secrets).unwrap();
        let again = serde_json::from_slice(&once.content).unwrap();
        let twice = normalise(again, &kind, &shape(&kind), secrets).unwrap();
        prop_assert_eq!(String::from_utf8(once.content), String::from_utf8(twice.content));
    }

    #[test]
    fn nothing_that_a_server_could_send_panics(raw in any_json(), kind in kinds()) {
        let _ = normalise(raw, &kind, &shape(&kind), SecretValues::Keep);
    }

    #[test]
    fn the_same_state_in_another_order_has_the_same_digest(seed in any::<u64>()) {
        let kind = deployments();
        let other = shuffled(deployment(), &shape(&kind), seed);
        prop_assert_eq!(run(other, &kind).digest(), run(deployment(), &kind).digest());
    }

    #[test]
    fn the_captured_order_can_always_be_given_back(seed in any::<u64>()) {
        let kind = deployments();
        let captured = shuffled(deployment(), &shape(&kind), seed);
        let normalised = run(captured.clone(), &kind);
        let beside: Beside = serde_json::from_slice(&normalised.beside.unwrap()).unwrap();
        let mut restored: Value = serde_json::from_slice(&normalised.content).unwrap();
        apply_order(&mut restored, &beside.order);
        prop_assert_eq!(&restored["spec"]["template"]["spec"], &captured["spec"]["template"]["spec"]);
    }
}
