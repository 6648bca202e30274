//! Names that other parties see: groups, labels, annotations, finalizers, field managers.

/// API group of every kind.
pub const GROUP: &str = "backstep.dev";
/// Served and stored version.
pub const VERSION: &str = "v1alpha1";
/// Category: `kubectl get backstep` lists every kind.
pub const CATEGORY: &str = "backstep";
/// Field manager of every write that is Backstep's own.
pub const FIELD_MANAGER: &str = "backstep";
/// Finalizer of a `RollbackRequest` from the moment its approval is used until it is over: deleting it cancels it first.
pub const EXECUTION_FINALIZER: &str = "backstep.dev/execution";
/// Label: `"true"` keeps a snapshot for ever.
pub const PINNED_LABEL: &str = "backstep.dev/pinned";
/// Prefix of tag labels: `tag.backstep.dev/<name>`.
pub const TAG_LABEL_PREFIX: &str = "tag.backstep.dev/";
/// Label that every object of Backstep's own chart carries; such objects are never captured.
pub const PART_OF_LABEL: &str = "app.kubernetes.io/part-of";
/// Value of [`PART_OF_LABEL`] on Backstep's own objects.
pub const PART_OF: &str = "backstep";
/// Name of the chart's `ServiceAccount` and of the leader-election Lease.
pub const OPERATOR: &str = "backstep";
/// Namespace that the chart's manifests are written for; `helm --namespace` changes it.
pub const DEFAULT_NAMESPACE: &str = "backstep-system";
/// `ConfigMap` in the operator's namespace that says where its store is: keys `store`, `namespace` and, when limited, `quota` in bytes;
/// and what it sees of the guard: key `guard`, JSON.
pub const STORE_CONFIG_MAP: &str = "backstep-store";
/// Name of the operator's built-in store among the stores of a namespace; its Secrets carry it.
pub const BUILT_IN_STORE: &str = "default";
/// User names that standard clusters collect garbage and delete namespaces under; the chart's `systemControllers`.
pub const SYSTEM_CONTROLLERS: [&str; 3] = [
    "system:serviceaccount:kube-system:generic-garbage-collector",
    "system:serviceaccount:kube-system:namespace-controller",
    "system:kube-controller-manager",
];
/// A number from 0 to 99 on an object puts it there in the order of a rollback instead of at its kind's place. What cannot exist
/// without another object (an owned one without its owner, a custom resource without its definition) still follows it.
pub const ORDER_ANNOTATION: &str = "backstep.dev/restore-order";
