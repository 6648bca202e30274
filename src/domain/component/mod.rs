//! Layers of what is captured: one file a component, and the registry that picks one for a kind.

mod policy;
mod volumes;
mod workloads;

use crate::api::snapshot::Component;

/// A component and the kinds that belong to it.
type Row = (Component, fn(&str, &str) -> bool);

/// The first row that holds a kind wins; `Configuration` holds the rest. `Images`, `Git` and `Databases` hold no kinds of their own.
const REGISTRY: [Row; 3] = [
    (Component::Workloads, workloads::holds),
    (Component::Volumes, volumes::holds),
    (Component::Policy, policy::holds),
];

/// Components that are captured when the spec names none.
pub const DEFAULT: [Component; 6] = [
    Component::Configuration,
    Component::Workloads,
    Component::Images,
    Component::Volumes,
    Component::Git,
    Component::Policy,
];

/// The component of a namespaced kind.
pub fn of(group: &str, kind: &str) -> Component {
    REGISTRY
        .iter()
        .find(|(_, holds)| holds(group, kind))
        .map_or(Component::Configuration, |(component, _)| *component)
}

/// Whether the kind has a pod template, or is a Pod: its images belong to `Images`.
pub fn runs_images(group: &str, kind: &str) -> bool {
    workloads::runs_images(group, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_component_and_unknown_ones_are_configuration() {
        assert_eq!(of("apps", "Deployment"), Component::Workloads);
        assert_eq!(of("autoscaling", "HorizontalPodAutoscaler"), Component::Workloads);
        assert_eq!(of("", "PersistentVolumeClaim"), Component::Volumes);
        assert_eq!(of("rbac.authorization.k8s.io", "Role"), Component::Policy);
        assert_eq!(of("example.com", "Deployment"), Component::Configuration);
        assert_eq!(of("", "ConfigMap"), Component::Configuration);
    }
}
