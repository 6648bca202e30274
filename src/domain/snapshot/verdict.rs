//! Which kinds and objects can belong to a snapshot at all.

use serde_json::Value;

use crate::{
    api::{names, reasons},
    domain::{component, object::KindInfo},
};

/// What is known of a capturable kind before any of its objects is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindRule {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Its objects tell which images really ran.
    pub image_evidence: bool,
}

/// Whether a served resource is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its objects may belong to a snapshot.
    Capture(KindRule),
    /// They never do.
    Skip(&'static str),
}

/// Whether an object belongs to a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectVerdict {
    /// It does.
    Capture,
    /// Only the digests of its images do.
    ImagesOnly,
    /// The selection leaves it out.
    NotSelected,
    /// It never does, or was excluded; the reason is counted.
    Skip(&'static str),
}

/// Groups that compute what they serve.
const COMPUTED_GROUPS: [&str; 3] = ["metrics.k8s.io", "custom.metrics.k8s.io", "external.metrics.k8s.io"];

/// Kinds that the cluster keeps for itself: `(group, kind)`.
const CLUSTER_KINDS: [(&str, &str); 9] = [
    ("", "Event"),
    ("events.k8s.io", "Event"),
    ("coordination.k8s.io", "Lease"),
    ("coordination.k8s.io", "LeaseCandidate"),
    // Made from EndpointSlices or mirrored into them; deprecated since 1.33.
    ("", "Endpoints"),
    ("apps", "ControllerRevision"),
    ("storage.k8s.io", "CSIStorageCapacity"),
    ("", "ComponentStatus"),
    ("", "Binding"),
];

/// Whether the objects of a served resource can belong to a snapshot: namespaced, persisted (listed and created), user-authored.
pub fn resource_verdict(group: &str, kind: &str, plural: &str, namespaced: bool, verbs: &[String]) -> Verdict {
    let has = |verb: &str| verbs.iter().any(|v| v == verb);
    if group == names::GROUP {
        return Verdict::Skip(reasons::OWN_OBJECT);
    }
    if !namespaced {
        return Verdict::Skip(reasons::COMPONENT_NOT_CAPTURED);
    }
    let computed =
        COMPUTED_GROUPS.contains(&group) || plural.contains('/') || !has("list") || !has("create") || !has("delete");
    if computed || CLUSTER_KINDS.contains(&(group, kind)) {
        return Verdict::Skip(reasons::CLUSTER_MANAGED);
    }
    Verdict::Capture(KindRule {
        group: group.to_owned(),
        kind: kind.to_owned(),
        image_evidence: matches!((group, kind), ("", "Pod") | ("apps", "ReplicaSet") | ("batch", "Job")),
    })
}

/// Whether a group of which discovery knows nothing (its server does not answer) could hold something of a snapshot.
pub(super) fn group_may_matter(group: &str) -> bool {
    group != names::GROUP && !COMPUTED_GROUPS.contains(&group)
}

/// Why an object never belongs to a snapshot, whatever was selected.
pub(super) fn never(info: &KindInfo, object: &Value) -> Option<&'static str> {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    let label = |key: &str| metadata["labels"][key].as_str();
    // An object on its way out is no state to return to.
    if metadata["deletionTimestamp"].is_string() {
        return Some(reasons::BEING_DELETED);
    }
    if metadata["ownerReferences"]
        .as_array()
        .is_some_and(|owners| owners.iter().any(|o| o["controller"] == Value::Bool(true)))
    {
        return Some(reasons::CONTROLLED);
    }
    if label(names::PART_OF_LABEL) == Some(names::PART_OF) {
        return Some(reasons::OWN_OBJECT);
    }
    let cluster_managed = match (info.group.as_str(), info.kind.as_str()) {
        ("", "ConfigMap") => name == "kube-root-ca.crt",
        ("", "ServiceAccount") => name == "default",
        // Tokens that the control plane issued: one that expired or was revoked must not come back.
        ("", "Secret") => matches!(
            object["type"].as_str(),
            Some("kubernetes.io/service-account-token" | "bootstrap.kubernetes.io/token")
        ),
        // The API server's own Service and slices.
        ("", "Service") => name == "kubernetes" && label("provider") == Some("kubernetes"),
        ("discovery.k8s.io", "EndpointSlice") => {
            label("endpointslice.kubernetes.io/managed-by").is_some_and(|by| by.ends_with(".k8s.io"))
                || (name == "kubernetes" && label("kubernetes.io/service-name") == Some("kubernetes"))
        }
        _ => false,
    };
    cluster_managed.then_some(reasons::CLUSTER_MANAGED)
}

/// Whether the kind's own images are part of `Images`.
pub(super) fn runs_images(info: &KindInfo) -> bool {
    component::runs_images(&info.group, &info.kind)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn verbs(list: &[&str]) -> Vec<String> {
        list.iter().map(|v| (*v).to_owned()).collect()
    }

    fn reason(group: &str, kind: &str, object: &Value) -> Option<&'static str> {
        never(&KindInfo::new(group, "v1", kind), object)
    }

    #[test]
    fn only_persisted_namespaced_kinds_of_others_are_read() {
        let all = verbs(&["create", "delete", "get", "list", "watch"]);
        let captured = |group: &str, kind: &str, namespaced: bool, verbs: &[String]| {
            matches!(
                resource_verdict(group, kind, "things", namespaced, verbs),
                Verdict::Capture(_)
            )
        };
        assert!(captured("", "ConfigMap", true, &all));
        assert!(captured("example.com", "Widget", true, &all));
        assert!(!captured("", "Event", true, &all));
        assert!(!captured("backstep.dev", "Snapshot", true, &all));
        assert!(!captured("", "Namespace", false, &all));
        assert!(!captured("metrics.k8s.io", "PodMetrics", true, &all));
        assert!(!captured(
            "packages.example.com",
            "Package",
            true,
            &verbs(&["get", "list"])
        ));
    }

    #[test]
    fn what_controllers_and_the_cluster_make_is_never_captured() {
        let owned = json!({"metadata": {"name": "x", "ownerReferences": [{"kind": "ReplicaSet", "controller": true}]}});
        assert_eq!(reason("", "Pod", &owned), Some(reasons::CONTROLLED));
        let blocked = json!({"metadata": {"name": "x", "ownerReferences": [{"kind": "ConfigMap"}]}});
        assert_eq!(reason("", "Pod", &blocked), None);
        assert_eq!(
            reason("", "ConfigMap", &json!({"metadata": {"name": "kube-root-ca.crt"}})),
            Some(reasons::CLUSTER_MANAGED)
        );
        assert_eq!(
            reason("", "ServiceAccount", &json!({"metadata": {"name": "default"}})),
            Some(reasons::CLUSTER_MANAGED)
        );
        let token = json!({"metadata": {"name": "t"}, "type": "kubernetes.io/service-account-token"});
        assert_eq!(reason("", "Secret", &token), Some(reasons::CLUSTER_MANAGED));
        let slice = json!({"metadata": {"name": "s", "labels": {"endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io"}}});
        assert_eq!(
            reason("discovery.k8s.io", "EndpointSlice", &slice),
            Some(reasons::CLUSTER_MANAGED)
        );
        let own = json!({"metadata": {"name": "s"}});
        assert_eq!(reason("discovery.k8s.io", "EndpointSlice", &own), None);
    }
}
