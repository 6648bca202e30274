//! Where the Pods of a workload are described.

use serde_json::Value;

use super::{facts::Pin, json};
use crate::domain::object::ObjectId;

/// Path of the pod template (`metadata` and `spec` of the Pods) in an object of this kind; a Pod is its own.
pub(super) fn template_path(id: &ObjectId) -> Option<&'static [&'static str]> {
    match (id.group.as_str(), id.kind.as_str()) {
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job")
        | ("", "ReplicationController") => Some(&["spec", "template"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template"]),
        ("", "PodTemplate") => Some(&["template"]),
        ("", "Pod") => Some(&[]),
        _ => None,
    }
}

/// Whether `kubectl rollout restart` works on this kind.
pub(super) fn restartable(id: &ObjectId) -> bool {
    id.group == "apps" && matches!(id.kind.as_str(), "Deployment" | "StatefulSet" | "DaemonSet")
}

/// Whether this kind runs Pods.
pub(super) fn runs_pods(id: &ObjectId) -> bool {
    template_path(id).is_some() && id.kind != "PodTemplate"
}

/// The pod template of `object`.
pub(super) fn template<'a>(id: &ObjectId, object: &'a Value) -> Option<&'a Value> {
    json::at(object, template_path(id)?)
}

/// The pod spec of `object`.
pub(super) fn pod_spec<'a>(id: &ObjectId, object: &'a Value) -> Option<&'a Value> {
    template(id, object)?.get("spec")
}

/// Containers and init containers of a pod spec.
pub(super) fn containers(pod_spec: &Value) -> impl Iterator<Item = &Value> {
    json::list(pod_spec, &["containers"]).chain(json::list(pod_spec, &["initContainers"]))
}

/// Gives every container of `object` the image that `image` names for it. Says which containers changed.
pub(super) fn set_images(id: &ObjectId, object: &mut Value, image: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut changed = Vec::new();
    let Some(path) = template_path(id) else {
        return changed;
    };
    let Some(spec) = path
        .iter()
        .chain(&["spec"])
        .try_fold(object, |value, key| value.get_mut(*key))
    else {
        return changed;
    };
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let Some(name) = json::text(container, &["name"]).map(str::to_owned) else {
                continue;
            };
            if let Some(new) = image(&name)
                && json::text(container, &["image"]) != Some(new.as_str())
            {
                json::put(container, &["image"], Some(Value::String(new)));
                changed.push(name);
            }
        }
    }
    changed
}

/// Pins the images of `object` that `pins` name. Says which containers changed.
pub(super) fn pin(id: &ObjectId, object: &mut Value, pins: &[Pin]) -> Vec<String> {
    set_images(id, object, |container| {
        pins.iter()
            .find(|pin| pin.workload == *id && pin.container == container)
            .map(|pin| pin.reference.clone())
    })
}

/// The image of `container` in `object`.
pub(super) fn image<'a>(id: &ObjectId, object: &'a Value, container: &str) -> Option<&'a str> {
    containers(pod_spec(id, object)?)
        .find(|item| json::text(item, &["name"]) == Some(container))
        .and_then(|item| json::text(item, &["image"]))
}

/// The workloads whose `replicas` the autoscaler `object` decides: `HorizontalPodAutoscaler` and KEDA's `ScaledObject`.
pub(super) fn autoscaled_by(id: &ObjectId, object: &Value) -> Option<ObjectId> {
    let target = &["spec", "scaleTargetRef"];
    let (default_group, default_kind) = match (id.group.as_str(), id.kind.as_str()) {
        ("autoscaling", "HorizontalPodAutoscaler") => ("", ""),
        ("keda.sh", "ScaledObject") => ("apps", "Deployment"),
        _ => return None,
    };
    let target = json::at(object, target)?;
    Some(ObjectId::new(
        json::text(target, &["apiVersion"]).map_or(default_group, json::group_of),
        json::text(target, &["kind"]).unwrap_or(default_kind),
        json::text(target, &["name"])?,
    ))
}
