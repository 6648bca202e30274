//! Lists of the kinds that Kubernetes serves, from its published `OpenAPI` (`x-kubernetes-list-type`, `-map-keys`).
//!
//! Written `field[key,key]` for a keyed list and `field![key]` where the order is content all the same.
//! Lists that are not here are atomic, as in the schema.

use super::{ListKind, Node};

/// `metadata` of every object. `ownerReferences` are keyed by `uid` in the schema; what is left without it tells them apart.
const METADATA: &[&str] = &["ownerReferences[kind,name,apiVersion]"];

const POD: &[&str] = &[
    "containers[name]",
    "ephemeralContainers[name]",
    "hostAliases[ip]",
    "imagePullSecrets[name]",
    "initContainers![name]",
    "resourceClaims[name]",
    "schedulingGates[name]",
    "topologySpreadConstraints[topologyKey,whenUnsatisfiable]",
    "volumes[name]",
];

const CONTAINER: &[&str] = &[
    "env![name]",
    "ports[containerPort,protocol]",
    "resources.claims[name]",
    "volumeDevices[devicePath]",
    "volumeMounts[mountPath]",
];

/// Groups that Kubernetes itself serves; a kind of theirs that has no row below has only atomic lists.
const GROUPS: &[&str] = &[
    "",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "apps",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
];

pub(super) fn node(group: &str, kind: &str) -> Option<Node> {
    if !GROUPS.contains(&group) {
        return None;
    }
    let mut root = Node::default();
    add_metadata(&mut root);
    match (group, kind) {
        ("", "Pod") => pod(root.at("spec")),
        ("", "PodTemplate") => pod(root.at("template.spec")),
        ("", "ReplicationController")
        | ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job") => {
            pod(root.at("spec.template.spec"));
        }
        ("batch", "CronJob") => pod(root.at("spec.jobTemplate.spec.template.spec")),
        ("", "Service") => add(root.at("spec"), &["ports[port,protocol]"]),
        ("", "ServiceAccount") => add(&mut root, &["secrets[name]"]),
        ("discovery.k8s.io", "EndpointSlice") => root.at("endpoints[].addresses").kind = ListKind::Set,
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration") => {
            // Webhooks of one configuration are called in order.
            add(&mut root, &["webhooks![name]"]);
            add(root.at("webhooks[]"), &["matchConditions[name]"]);
        }
        _ => {}
    }
    Some(root)
}

pub(super) fn add_metadata(root: &mut Node) {
    add(root.at("metadata"), METADATA);
}

fn pod(spec: &mut Node) {
    add(spec, POD);
    for containers in ["containers[]", "initContainers[]", "ephemeralContainers[]"] {
        add(spec.at(containers), CONTAINER);
    }
}

fn add(node: &mut Node, lists: &[&str]) {
    for list in lists {
        let (path, keys) = list.split_once('[').unwrap_or((list, ""));
        let keys = keys.trim_end_matches(']').split(',').map(ToOwned::to_owned).collect();
        match path.strip_suffix('!') {
            Some(path) => node.at(path).kind = ListKind::Ordered(keys),
            None => node.at(path).kind = ListKind::Keyed(keys),
        }
    }
}
