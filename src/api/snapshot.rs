//! `Snapshot`: one point to return to.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
pub use super::{
    hook::Hooks,
    reference::{Identity, ObjectFilter, OnBehalfOf},
};

/// One point to return to: what runs in this namespace, captured once. Immutable.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "backstep.dev",
    version = "v1alpha1",
    kind = "Snapshot",
    plural = "snapshots",
    shortname = "bsnap",
    category = "backstep",
    namespaced,
    status = "SnapshotStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "One point to return to: what runs in this namespace, captured once. Immutable.",
    selectable = ".spec.lineage",
    selectable = ".status.phase",
    printcolumn(name = "Lineage", type_ = "string", json_path = ".spec.lineage"),
    printcolumn(name = "Version", type_ = "integer", json_path = ".status.version"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Objects", type_ = "integer", json_path = ".status.objects.captured"),
    printcolumn(name = "Size", type_ = "integer", json_path = ".status.size.logicalBytes", priority = 1),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.digest", priority = 1),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.requestedBy.username", priority = 1),
    printcolumn(name = "Expires", type_ = "date", json_path = ".status.expiresAt", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = (schema::STATUS_STAYS, "status may not be removed")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self == oldSelf", "spec is immutable; create a new Snapshot instead"))]
pub struct SnapshotSpec {
    /// Line of versions this snapshot belongs to; one application is one lineage. A DNS label.
    #[schemars(schema_with = "schema::dns_label", extend("default" = "default"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<String>,
    /// For people, at most 1024 characters.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// First tags, at most 16, each as a label name may be; more by label `tag.backstep.dev/<name>`.
    #[schemars(schema_with = "schema::tags")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What is captured; absent is everything but `Databases` and `Infrastructure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<Capture>,
    /// How volume data is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<VolumeCapture>,
    /// Hooks around the capture; refused until they exist.
    #[x_kube(validation = (
        "(!has(self.before) || self.before.size() == 0) && (!has(self.after) || self.after.size() == 0)",
        "hooks are not run yet; remove spec.hooks"
    ))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Name of a `SnapshotStore`; empty is the operator's built-in store, the only one yet.
    #[schemars(length(max = 253))]
    #[x_kube(validation = (
        "self == ''",
        "SnapshotStore objects are not available yet; leave spec.store empty to use the operator's built-in store"
    ))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// How long the snapshot is kept, e.g. `720h`, at most 10 years; absent is until it is deleted. It never expires while
    /// pinned, referenced, or the last good one of its lineage.
    #[schemars(schema_with = "schema::duration::<87600>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Whether deleting the Snapshot frees its contents.
    #[schemars(extend("default" = "Delete"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// Act as this `ServiceAccount` of the namespace; refused until it exists.
    #[schemars(length(max = 253))]
    #[x_kube(validation = (
        "self == ''",
        "acting as a ServiceAccount is not available yet; leave spec.serviceAccountName empty"
    ))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// Who asked: the user of the API call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<Identity>,
    /// Whom the operator acts for; set only by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<OnBehalfOf>,
}

impl SnapshotSpec {
    /// Whether the operator took it right before a rollback; `onBehalfOf.source` is then `RollbackRequest/<name>/Safety`.
    pub fn is_safety(&self) -> bool {
        self.of_rollback().is_some_and(|source| source.ends_with("/Safety"))
    }

    /// Whether the operator takes it for a rollback, before the first write or after success.
    pub fn is_of_rollback(&self) -> bool {
        self.of_rollback().is_some()
    }

    fn of_rollback(&self) -> Option<&str> {
        let source = self.on_behalf_of.as_ref().and_then(|by| by.source.as_deref());
        source.filter(|source| source.starts_with("RollbackRequest/"))
    }
}

/// What a snapshot takes in. An object is captured when (`selector` matches and (`include` is empty or matches)) or a
/// captured object refers to it, and `exclude` does not match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capture {
    /// Layers to capture; absent is all but `Databases` and `Infrastructure`. `Databases`, `Git` and `Infrastructure` are
    /// refused by name until they are captured.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "set"))]
    #[x_kube(
        validation = ("self.size() > 0", "an empty list captures nothing; leave components out to capture everything"),
        validation = ("!self.exists(c, c == 'Databases')", "Databases is not captured yet; remove it from components"),
        validation = ("!self.exists(c, c == 'Git')", "Git is not captured yet; remove it from components"),
        validation = (
            "!self.exists(c, c == 'Infrastructure')",
            "Infrastructure is not captured yet; remove it from components"
        )
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub components: Option<Vec<Component>>,
    /// Label selector; absent is everything, an empty one is refused.
    #[schemars(schema_with = "schema::selector")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Objects to take, at most 64 filters; empty is all.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<ObjectFilter>,
    /// Objects to leave out, at most 64 filters; wins over everything else.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<ObjectFilter>,
    /// Whether what captured pod templates name (`ConfigMaps`, Secrets, claims, `ServiceAccounts`) comes along.
    #[schemars(extend("default" = true))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow_references: Option<bool>,
    /// What happens to Secret values.
    #[schemars(extend("default" = "Include"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<SecretsMode>,
}

/// A layer of what is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Component {
    /// Everything that no other component holds, custom resources too.
    Configuration,
    /// Workloads, autoscalers and disruption budgets.
    Workloads,
    /// The digests behind the workloads' images.
    Images,
    /// Claims and their data.
    Volumes,
    /// Logical dumps by recipe.
    Databases,
    /// The revision that GitOps labels and annotations name.
    Git,
    /// Namespaced policy: roles, network policies, quotas.
    Policy,
    /// The Namespace object and cluster-scoped dependencies.
    Infrastructure,
}

/// What happens to Secret values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SecretsMode {
    /// Values are kept and can be restored.
    #[default]
    Include,
    /// A keyed HMAC of each value is kept: rotation is detected, values are never stored.
    Fingerprint,
    /// Secrets are left out.
    Exclude,
}

/// How volume data is captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeCapture {
    /// Which mechanism; absent is `Auto`: claims are captured, data that no method can capture yet is listed as skipped.
    #[x_kube(validation = (
        "self == 'Auto' || self == 'Skip'",
        "volume data is not captured yet; use Auto (lists the data as skipped) or Skip"
    ))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<VolumeMethod>,
    /// Whether claims are captured at one moment where the driver allows; default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<bool>,
}

/// Mechanism of a volume capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VolumeMethod {
    /// The best that the driver offers.
    #[default]
    Auto,
    /// CSI volume snapshots.
    #[serde(rename = "CSI")]
    Csi,
    /// Copies of files.
    Files,
    /// No volume data.
    Skip,
}

/// Whether deleting a Snapshot frees its contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// What no other snapshot refers to is freed.
    #[default]
    Delete,
    /// The contents stay in the repository.
    Retain,
}

/// Observed state of a Snapshot; written by the operator alone.
///
/// Rules bind the operator too: phases only forward, and what a version is known by is given once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "!has(oldSelf.phase) || (has(self.phase) && (self.phase == oldSelf.phase || oldSelf.phase == 'Pending' || \
         (oldSelf.phase == 'Capturing' && self.phase in ['Ready', 'Failed', 'Expired']) || \
         (oldSelf.phase in ['Ready', 'Failed'] && self.phase == 'Expired')))",
        "this phase transition is not allowed: Pending, Capturing, then Ready or Failed, then Expired"
    ),
    validation = (
        "!has(oldSelf.version) || (has(self.version) && self.version == oldSelf.version)",
        "a version is given once"
    ),
    validation = (
        "!has(oldSelf.digest) || (has(self.digest) && self.digest == oldSelf.digest)",
        "a digest is given once"
    ),
    validation = (
        "!has(oldSelf.parent) || (has(self.parent) && self.parent == oldSelf.parent)",
        "a parent is given once"
    ),
    validation = (
        "!has(self.phase) || self.phase != 'Ready' || (has(self.version) && has(self.digest))",
        "a Ready snapshot has a version and a digest"
    )
)]
pub struct SnapshotStatus {
    /// Generation that this status describes.
    #[schemars(range(min = 0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the snapshot stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<SnapshotPhase>,
    /// Number in the lineage, from 1, given once and never reused.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// The version that was live when this one was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentVersion>,
    /// SHA-256 over the captured entries in canonical order.
    #[schemars(schema_with = "schema::digest")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Counts of objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<ObjectCounts>,
    /// What was left out, by kind and reason; at most 16 rows, the rest is in the manifest.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkipCount>,
    /// How many rows of `skipped` are only in the manifest.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped_omitted: Option<i32>,
    /// Bytes as captured and as stored for this snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<SnapshotSize>,
    /// Items by component.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<ComponentCount>,
    /// Images that ran; at most 16, the rest is in the manifest.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImageStatus>,
    /// How many images are only in the manifest.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_omitted: Option<i32>,
    /// Volumes captured; empty until volume data is captured.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeStatus>,
    /// Format of the contents; readers refuse a newer one.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format_version: Option<i32>,
    /// When the capture began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the capture ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// When `ttl` ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// `Ready`, `Reconciling`, `Stalled`, `Verified`.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Where a Snapshot stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SnapshotPhase {
    /// Waits for its turn.
    #[default]
    Pending,
    /// Objects are being read.
    Capturing,
    /// Complete and readable.
    Ready,
    /// Could not be taken; conditions say why.
    Failed,
    /// Its time is over; contents are freed.
    Expired,
}

/// A version of the same lineage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ParentVersion {
    /// Name of that Snapshot.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its version.
    #[schemars(range(min = 1))]
    pub version: i64,
}

/// Counts of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ObjectCounts {
    /// Objects in the manifest.
    #[schemars(range(min = 0))]
    pub captured: i64,
    /// Of these, equal to the parent's.
    #[schemars(range(min = 0))]
    pub unchanged: i64,
    /// Objects seen and left out.
    #[schemars(range(min = 0))]
    pub skipped: i64,
    /// Objects that could not be read.
    #[schemars(range(min = 0))]
    pub failed: i64,
}

/// Objects of one kind left out for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SkipCount {
    /// Kind, with its group where there is one: `Pod`, `Deployment.apps`.
    #[schemars(length(min = 1, max = 317))]
    pub kind: String,
    /// Why, `CamelCase`.
    #[schemars(length(min = 1, max = 63))]
    pub reason: String,
    /// How many.
    #[schemars(range(min = 0))]
    pub count: i64,
}

/// Bytes of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSize {
    /// Normalised contents, uncompressed.
    #[schemars(range(min = 0))]
    pub logical_bytes: i64,
    /// Bytes that this snapshot added to the repository.
    #[schemars(range(min = 0))]
    pub stored_bytes: i64,
}

/// Items of one component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ComponentCount {
    /// Which component.
    pub name: Component,
    /// How many items.
    #[schemars(range(min = 0))]
    pub items: i64,
}

/// An image of one container and the digest that really ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageStatus {
    /// `Deployment/web`.
    #[schemars(length(min = 1, max = 317))]
    pub workload: String,
    /// Container name.
    #[schemars(length(min = 1, max = 63))]
    pub container: String,
    /// The reference in the pod template.
    #[schemars(length(max = 2048))]
    pub image: String,
    /// `sha256:…` that ran; absent with a `reason`.
    #[schemars(schema_with = "schema::digest")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Why there is no digest.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The data of one claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim: String,
    /// Name of the `VolumeSnapshot`.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Smallest size it restores into.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<String>,
    /// Whether it can be restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
}
