//! Fields that the API server refuses to change, so that only deleting and creating again brings them back.

use serde_json::Value;

use super::{desired::is_headless, json, workload};
use crate::domain::object::ObjectId;

type Path = &'static [&'static str];

/// The paths in which `wanted` differs from `live` and that cannot be changed in place; both are canonical contents, `wanted`
/// after the live-wins rules. Sources: the update validations of the API server, 1.33 to 1.37.
pub fn immutable_changes(id: &ObjectId, live: &Value, wanted: &Value) -> Vec<String> {
    match (id.group.as_str(), id.kind.as_str()) {
        ("", "ConfigMap") => frozen_data(live, wanted),
        ("", "Secret") => {
            let mut changes = frozen_data(live, wanted);
            changes.extend(differing(live, wanted, &[&["type"]]));
            changes
        }
        ("", "Service") => service(live, wanted),
        ("", "PersistentVolumeClaim") => {
            let mut changes = differing_but(live, wanted, &["resources", "volumeAttributesClassName"]);
            changes.extend(differing(live, wanted, &[&["spec", "resources", "limits"]]));
            changes
        }
        ("", "PersistentVolume") => differing_but(
            live,
            wanted,
            &[
                "accessModes",
                "capacity",
                "claimRef",
                "mountOptions",
                "nodeAffinity",
                "persistentVolumeReclaimPolicy",
                "storageClassName",
                "volumeAttributesClassName",
            ],
        ),
        ("", "Pod") => pod(id, live, wanted),
        ("", "ResourceQuota") => differing(live, wanted, &[&["spec", "scopes"]]),
        ("apps", "StatefulSet") => differing_but(
            live,
            wanted,
            &[
                "minReadySeconds",
                "ordinals",
                "persistentVolumeClaimRetentionPolicy",
                "replicas",
                "revisionHistoryLimit",
                "template",
                "updateStrategy",
            ],
        ),
        _ => differing(live, wanted, fields(id)),
    }
}

/// Single immutable fields of kinds that need no more than a list.
fn fields(id: &ObjectId) -> &'static [Path] {
    match (id.group.as_str(), id.kind.as_str()) {
        ("apps", "Deployment" | "DaemonSet" | "ReplicaSet") => &[&["spec", "selector"]],
        ("batch", "Job") => &[
            &["spec", "backoffLimitPerIndex"],
            &["spec", "completionMode"],
            &["spec", "completions"],
            &["spec", "managedBy"],
            &["spec", "podFailurePolicy"],
            &["spec", "selector"],
            &["spec", "successPolicy"],
            &["spec", "template"],
        ],
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => &[&["roleRef"]],
        ("storage.k8s.io", "StorageClass") => &[
            &["parameters"],
            &["provisioner"],
            &["reclaimPolicy"],
            &["volumeBindingMode"],
        ],
        ("scheduling.k8s.io", "PriorityClass") => &[&["preemptionPolicy"], &["value"]],
        ("networking.k8s.io", "IngressClass") => &[&["spec", "controller"]],
        ("node.k8s.io", "RuntimeClass") => &[&["handler"]],
        ("discovery.k8s.io", "EndpointSlice") => &[&["addressType"]],
        ("apiextensions.k8s.io", "CustomResourceDefinition") => &[&["spec", "group"], &["spec", "scope"]],
        _ => &[],
    }
}

fn differing(live: &Value, wanted: &Value, paths: &[Path]) -> Vec<String> {
    paths
        .iter()
        .filter(|path| json::at(live, path) != json::at(wanted, path))
        .map(|path| path.join("."))
        .collect()
}

/// Fields of `spec` that differ, but for the `mutable` ones.
fn differing_but(live: &Value, wanted: &Value, mutable: &[&str]) -> Vec<String> {
    let keys = |object| json::at(object, &["spec"]).and_then(Value::as_object);
    let mut names: Vec<&String> = keys(live)
        .into_iter()
        .chain(keys(wanted))
        .flat_map(|spec| spec.keys())
        .filter(|name| !mutable.contains(&name.as_str()))
        .filter(|name| json::at(live, &["spec", name]) != json::at(wanted, &["spec", name]))
        .collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(|name| format!("spec.{name}")).collect()
}

/// `immutable: true` freezes data and itself.
fn frozen_data(live: &Value, wanted: &Value) -> Vec<String> {
    if json::is_true(live, &["immutable"]) {
        differing(
            live,
            wanted,
            &[&["data"], &["binaryData"], &["stringData"], &["immutable"]],
        )
    } else {
        Vec::new()
    }
}

fn service(live: &Value, wanted: &Value) -> Vec<String> {
    let external = |service: &Value| json::text(service, &["spec", "type"]) == Some("ExternalName");
    if external(live) || external(wanted) {
        return Vec::new();
    }
    let mut changes = Vec::new();
    if is_headless(live) != is_headless(wanted) {
        changes.push("spec.clusterIP".to_owned());
    }
    let first_family = |service| json::list(service, &["spec", "ipFamilies"]).next();
    if let (Some(now), Some(then)) = (first_family(live), first_family(wanted))
        && now != then
    {
        changes.push("spec.ipFamilies".to_owned());
    }
    let balanced = |service: &Value| json::text(service, &["spec", "type"]) == Some("LoadBalancer");
    if balanced(live) && balanced(wanted) {
        changes.extend(differing(live, wanted, &[&["spec", "loadBalancerClass"]]));
    }
    changes
}

/// Of a running Pod the images can change, and little else worth restoring.
fn pod(id: &ObjectId, live: &Value, wanted: &Value) -> Vec<String> {
    let mut same_images = wanted.clone();
    workload::set_images(id, &mut same_images, |container| {
        workload::image(id, live, container).map(str::to_owned)
    });
    differing_but(live, &same_images, &["activeDeadlineSeconds"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changes(group: &str, kind: &str, live: &Value, wanted: &Value) -> Vec<String> {
        immutable_changes(&ObjectId::new(group, kind, "x"), live, wanted)
    }

    #[test]
    fn what_the_server_refuses_to_change_is_named_kind_by_kind() {
        let spec = |field: &str, value: Value| json!({"spec": {field: value, "replicas": 1}});
        for (group, kind, field) in [
            ("apps", "Deployment", "selector"),
            ("apps", "StatefulSet", "serviceName"),
            ("apps", "StatefulSet", "volumeClaimTemplates"),
            ("apps", "StatefulSet", "selector"),
            ("batch", "Job", "template"),
            ("", "PersistentVolumeClaim", "accessModes"),
            ("", "Pod", "hostNetwork"),
            ("networking.k8s.io", "IngressClass", "controller"),
        ] {
            let found = changes(group, kind, &spec(field, json!("a")), &spec(field, json!("b")));
            assert_eq!(found, [format!("spec.{field}")], "{kind}");
        }
        let role = |name: &str| json!({"roleRef": {"name": name}});
        let found = changes("rbac.authorization.k8s.io", "RoleBinding", &role("a"), &role("b"));
        assert_eq!(found, ["roleRef"]);
    }

    #[test]
    fn what_the_server_lets_change_is_no_recreate() {
        let spec = |field: &str, value: Value| json!({"spec": {field: value}});
        for (group, kind, field) in [
            ("apps", "Deployment", "template"),
            ("apps", "StatefulSet", "template"),
            ("apps", "StatefulSet", "updateStrategy"),
            ("batch", "Job", "parallelism"),
            ("batch", "CronJob", "jobTemplate"),
            ("", "Service", "ports"),
            ("example.org", "Widget", "selector"),
        ] {
            let found = changes(group, kind, &spec(field, json!("a")), &spec(field, json!("b")));
            assert_eq!(found, [""; 0], "{kind}.{field}");
        }
    }

    #[test]
    fn only_an_immutable_config_map_freezes_its_data() {
        let map = |data: &str, immutable: bool| json!({"data": {"k": data}, "immutable": immutable});
        assert_eq!(changes("", "ConfigMap", &map("a", true), &map("b", true)), ["data"]);
        assert_eq!(
            changes("", "ConfigMap", &map("a", true), &map("a", false)),
            ["immutable"]
        );
        assert_eq!(changes("", "ConfigMap", &map("a", false), &map("b", true)), [""; 0]);
        let typed = |kind: &str| json!({"type": kind});
        assert_eq!(
            changes("", "Secret", &typed("Opaque"), &typed("kubernetes.io/tls")),
            ["type"]
        );
    }

    #[test]
    fn a_service_changes_between_headless_and_not_only_when_created_again() {
        let service = |spec: Value| json!({ "spec": spec });
        let (headless, normal) = (service(json!({"clusterIP": "None"})), service(json!({})));
        assert_eq!(changes("", "Service", &headless, &normal), ["spec.clusterIP"]);
        assert_eq!(changes("", "Service", &normal, &headless), ["spec.clusterIP"]);
        let external = service(json!({"type": "ExternalName"}));
        assert_eq!(changes("", "Service", &external, &headless), [""; 0]);
    }

    #[test]
    fn images_of_a_running_pod_change_in_place() {
        let pod = |image: &str, command: &str| json!({"spec": {"containers": [{"name": "a", "image": image, "command": [command]}]}});
        assert_eq!(changes("", "Pod", &pod("a:1", "x"), &pod("a:2", "x")), [""; 0]);
        assert_eq!(
            changes("", "Pod", &pod("a:1", "x"), &pod("a:1", "y")),
            ["spec.containers"]
        );
    }
}
