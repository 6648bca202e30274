//! What is not content on single kinds.

use serde_json::{Map, Value};

use super::{KindInfo, owned::Owned};

/// `kubectl rollout restart` writes it on pod templates; a restart is an event, not a state.
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";
/// Labels that the Job controller generates.
const JOB_LABELS: [&str; 4] = [
    "controller-uid",
    "job-name",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
];
/// Start of the random name of the token volume that admission adds to Pods.
const TOKEN_VOLUME: &str = "kube-api-access-";
/// Seconds of the tolerations that admission adds to Pods by default.
const DEFAULT_TOLERATION_SECONDS: i64 = 300;

type Object = Map<String, Value>;

pub(super) fn strip(object: &mut Object, kind: &KindInfo, owned: &Owned<'_>) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Service") => service(object, owned),
        ("", "PersistentVolumeClaim") => claim(object),
        ("", "Pod") => pod(object, owned),
        ("", "Namespace") => namespace(object),
        ("", "PodTemplate") => template(object.get_mut("template")),
        ("", "ReplicationController") => template(at(object, &["spec", "template"])),
        ("apps", "Deployment" | "ReplicaSet") => {
            strip_annotations(object, |name| name.starts_with("deployment.kubernetes.io/"));
            template(at(object, &["spec", "template"]));
        }
        ("apps", "DaemonSet") => {
            strip_annotations(object, |name| name == "deprecated.daemonset.template.generation");
            template(at(object, &["spec", "template"]));
        }
        ("apps", "StatefulSet") => stateful_set(object),
        ("batch", "Job") => job(object),
        ("batch", "CronJob") => {
            template(at(object, &["spec", "jobTemplate"]));
            template(at(object, &["spec", "jobTemplate", "spec", "template"]));
        }
        ("autoscaling", "HorizontalPodAutoscaler") => {
            // Status of newer versions, as older versions carry it.
            strip_annotations(object, |name| {
                matches!(
                    name,
                    "autoscaling.alpha.kubernetes.io/conditions" | "autoscaling.alpha.kubernetes.io/current-metrics"
                )
            });
        }
        _ => {}
    }
}

/// Removes `field` where it is an empty map or list.
pub(super) fn remove_if_empty(map: &mut Object, field: &str) {
    let empty = match map.get(field) {
        Some(Value::Object(inner)) => inner.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        _ => false,
    };
    if empty {
        map.remove(field);
    }
}

fn at<'a>(object: &'a mut Object, path: &[&str]) -> Option<&'a mut Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(object.get_mut(*first)?, |value, field| value.get_mut(field))
}

fn map_at<'a>(object: &'a mut Object, path: &[&str]) -> Option<&'a mut Object> {
    at(object, path)?.as_object_mut()
}

/// Takes annotations out that are not content; an empty map left behind goes with the rest of the metadata.
fn strip_annotations(object: &mut Object, not_content: impl Fn(&str) -> bool) {
    if let Some(annotations) = map_at(object, &["metadata", "annotations"]) {
        annotations.retain(|name, _| !not_content(name));
    }
}

/// `metadata` of a template: older servers write `creationTimestamp: null`.
fn template(template: Option<&mut Value>) {
    let Some(template) = template.and_then(Value::as_object_mut) else {
        return;
    };
    if let Some(Value::Object(metadata)) = template.get_mut("metadata") {
        metadata.remove("creationTimestamp");
        if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
            annotations.remove(RESTARTED_AT);
        }
        remove_if_empty(metadata, "annotations");
        remove_if_empty(metadata, "labels");
    }
    remove_if_empty(template, "metadata");
}

/// Addresses and ports that the server allocated; `None` (headless) is always a choice of the author.
fn service(object: &mut Object, owned: &Owned<'_>) {
    let Some(spec) = map_at(object, &["spec"]) else {
        return;
    };
    let headless = spec.get("clusterIP").and_then(Value::as_str) == Some("None");
    for (field, path) in [
        ("clusterIP", "f:clusterIP"),
        ("clusterIPs", "f:clusterIPs"),
        ("healthCheckNodePort", "f:healthCheckNodePort"),
    ] {
        let a_choice = headless && field != "healthCheckNodePort";
        if !a_choice && owned.server_chose(&["f:spec", path]) {
            spec.remove(field);
        }
    }
    for port in spec
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        if port.contains_key("nodePort") {
            let number = port.get("port").map(ToString::to_string).unwrap_or_default();
            let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
            let key = format!(r#"k:{{"port":{number},"protocol":"{protocol}"}}"#);
            if owned.server_chose(&["f:spec", "f:ports", &key, "f:nodePort"]) {
                port.remove("nodePort");
            }
        }
    }
}

/// What binds a claim to its volume, and where its data once came from.
fn claim(object: &mut Object) {
    strip_annotations(object, |name| {
        name.starts_with("pv.kubernetes.io/")
            || name.starts_with("volume.kubernetes.io/")
            || name == "volume.beta.kubernetes.io/storage-provisioner"
    });
    if let Some(spec) = map_at(object, &["spec"]) {
        for field in ["volumeName", "dataSource", "dataSourceRef"] {
            spec.remove(field);
        }
    }
}

fn stateful_set(object: &mut Object) {
    template(at(object, &["spec", "template"]));
    let claims = at(object, &["spec", "volumeClaimTemplates"]).and_then(Value::as_array_mut);
    for claim in claims.into_iter().flatten().filter_map(Value::as_object_mut) {
        // The server writes `status: {phase: Pending}` into the template.
        claim.remove("status");
        if let Some(Value::Object(metadata)) = claim.get_mut("metadata") {
            metadata.remove("creationTimestamp");
        }
    }
}

fn job(object: &mut Object) {
    let manual = at(object, &["spec", "manualSelector"]).and_then(|manual| manual.as_bool()) == Some(true);
    if !manual {
        if let Some(spec) = map_at(object, &["spec"]) {
            spec.remove("selector");
        }
        for path in [
            &["metadata", "labels"][..],
            &["spec", "template", "metadata", "labels"][..],
        ] {
            if let Some(labels) = map_at(object, path) {
                labels.retain(|label, _| !JOB_LABELS.contains(&label.as_str()));
            }
        }
    }
    template(at(object, &["spec", "template"]));
}

/// A Pod without an owner: what scheduling and admission added. Owned Pods are never captured.
fn pod(object: &mut Object, owned: &Owned<'_>) {
    let Some(spec) = map_at(object, &["spec"]) else {
        return;
    };
    for (field, path) in [
        ("nodeName", "f:nodeName"),
        ("priority", "f:priority"),
        ("preemptionPolicy", "f:preemptionPolicy"),
    ] {
        if owned.server_chose(&["f:spec", path]) {
            spec.remove(field);
        }
    }
    // Debug containers are attached to a running Pod and refused in a new one.
    spec.remove("ephemeralContainers");
    // Who switched the token off and mounts one by that name all the same means it.
    if spec.get("automountServiceAccountToken") != Some(&Value::Bool(false)) {
        strip_token_volume(spec);
    }
    let tolerations_added = owned.server_chose(&["f:spec", "f:tolerations"]);
    remove_items(spec, "tolerations", |toleration| {
        is_default_toleration(toleration, tolerations_added)
    });
}

fn strip_token_volume(spec: &mut Object) {
    let name_of = |item: &Value| item.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let injected: Vec<String> = spec
        .get("volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|volume| volume.get("projected").is_some())
        .map(name_of)
        .filter(|name| name.starts_with(TOKEN_VOLUME))
        .collect();
    if injected.is_empty() {
        return;
    }
    let is_injected = |item: &Value| injected.contains(&name_of(item));
    remove_items(spec, "volumes", is_injected);
    for containers in ["containers", "initContainers"] {
        let containers = spec.get_mut(containers).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            remove_items(container, "volumeMounts", is_injected);
        }
    }
}

fn is_default_toleration(toleration: &Value, whatever_seconds: bool) -> bool {
    let is = |field: &str, expected: &[&str]| {
        toleration
            .get(field)
            .and_then(Value::as_str)
            .is_some_and(|text| expected.contains(&text))
    };
    is(
        "key",
        &["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"],
    ) && is("operator", &["Exists"])
        && is("effect", &["NoExecute"])
        && toleration
            .get("tolerationSeconds")
            .and_then(Value::as_i64)
            .is_some_and(|seconds| whatever_seconds || seconds == DEFAULT_TOLERATION_SECONDS)
}

/// Takes items out of a list, and the list where that leaves none.
fn remove_items(map: &mut Object, field: &str, gone: impl Fn(&Value) -> bool) {
    if let Some(Value::Array(items)) = map.get_mut(field) {
        let before = items.len();
        items.retain(|item| !gone(item));
        if items.is_empty() && before > 0 {
            map.remove(field);
        }
    }
}

/// The finalizer that the server puts into every Namespace.
fn namespace(object: &mut Object) {
    if let Some(spec) = map_at(object, &["spec"]) {
        remove_items(spec, "finalizers", |finalizer| finalizer == "kubernetes");
    }
    remove_if_empty(object, "spec");
}
