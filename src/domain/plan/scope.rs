//! Which objects a request is about, and which ones nothing may touch.

use serde_json::Value;

use super::{
    KeepReason,
    facts::{Live, Options, Strategy},
    json, workload,
};
use crate::{
    api::{names::GROUP, snapshot::Component},
    domain::object::ObjectId,
};

/// How much of an object comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it.
    Whole,
    /// Its images.
    Images,
    /// Nothing.
    Out(KeepReason),
}

/// How much of the object `id` of `component` comes back. Decided in this order: preserved objects stay; a Selective request
/// is about what it selects; Policy, Infrastructure and Databases, and every kind that grants power, must be named; a Partial
/// request is about its components, where `Images` without `Workloads` means the images of workloads.
pub fn scope(id: &ObjectId, component: Component, options: &Options) -> Scope {
    let named = |component| options.components.contains(&component);
    if options.preserved.contains(id) {
        return Scope::Out(KeepReason::Excluded);
    }
    if options.strategy == Strategy::Selective && !options.selected.contains(id) {
        return Scope::Out(KeepReason::NotSelected);
    }
    let needs_a_name = match component {
        Component::Policy | Component::Infrastructure | Component::Databases => !named(component),
        Component::Configuration | Component::Workloads | Component::Images | Component::Volumes | Component::Git => {
            is_powerful(id) && !named(Component::Policy) && !named(Component::Infrastructure)
        }
    };
    if needs_a_name {
        return Scope::Out(KeepReason::ComponentNotNamed);
    }
    match options.strategy {
        Strategy::Full | Strategy::Selective => Scope::Whole,
        Strategy::Partial if named(component) => Scope::Whole,
        Strategy::Partial
            if component == Component::Workloads && named(Component::Images) && workload::runs_pods(id) =>
        {
            Scope::Images
        }
        Strategy::Partial => Scope::Out(KeepReason::ComponentNotNamed),
    }
}

/// Whether this kind grants power over others: RBAC, admission, API registration, definitions, Namespaces, volumes.
pub fn is_powerful(id: &ObjectId) -> bool {
    matches!(
        id.group.as_str(),
        "rbac.authorization.k8s.io"
            | "admissionregistration.k8s.io"
            | "apiextensions.k8s.io"
            | "apiregistration.k8s.io"
    ) || (id.group.is_empty() && matches!(id.kind.as_str(), "Namespace" | "PersistentVolume"))
}

/// Whether this is one of Helm's records of a release.
pub fn is_helm_history(id: &ObjectId) -> bool {
    id.group.is_empty() && id.kind == "Secret" && id.name.starts_with("sh.helm.release.v1.")
}

/// Whether the captured object grants rights on Backstep's kinds, or is one of Backstep's own policies.
pub fn is_backsteps_own(id: &ObjectId, content: &Value) -> bool {
    let grants = || {
        json::list(content, &["rules"])
            .flat_map(|rule| json::list(rule, &["apiGroups"]))
            .any(|group| group.as_str() == Some(GROUP))
    };
    match id.group.as_str() {
        "rbac.authorization.k8s.io" => grants(),
        "admissionregistration.k8s.io" => id.name.ends_with(".backstep.dev"),
        GROUP => true,
        _ => false,
    }
}

/// Whether a live object may never be pruned: its kind holds data or other objects, or a tool's annotation keeps it.
pub fn is_protected(live: &Live<'_>) -> bool {
    let kind = matches!(
        (live.id.group.as_str(), live.id.kind.as_str()),
        ("", "PersistentVolumeClaim" | "PersistentVolume" | "Namespace")
            | ("apiextensions.k8s.io", "CustomResourceDefinition")
    );
    let says = |name: &str, values: &[&str]| {
        json::annotation(live.raw, name).is_some_and(|text| text.split(',').any(|part| values.contains(&part.trim())))
    };
    kind || says(
        "argocd.argoproj.io/sync-options",
        &["Prune=false", "Delete=false", "Prune=confirm", "Delete=confirm"],
    ) || says("kustomize.toolkit.fluxcd.io/prune", &["disabled", "Disabled"])
        || says("helm.sh/resource-policy", &["keep"])
}
