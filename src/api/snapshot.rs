//! `Snapshot`: one point to return to.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::reference::{Identity, ObjectFilter};

/// One point to return to: what runs in this namespace, captured once. Immutable.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSpec {
    /// Line of versions this snapshot belongs to; one application is one lineage. A DNS label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<String>,
    /// For people, at most 1024 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// First tags; more by label `tag.backstep.dev/<name>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What is captured; absent is everything but `Databases` and `Infrastructure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<Capture>,
    /// How volume data is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<VolumeCapture>,
    /// Hooks around the capture; refused until they exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Name of a `SnapshotStore`; empty is the operator's built-in store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// How long the snapshot is kept, e.g. `720h`; absent is until it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Whether deleting the Snapshot frees its contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// Act as this `ServiceAccount` of the namespace; refused until it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// Who asked: the user of the API call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<Identity>,
    /// Whom the operator acts for; set only by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<OnBehalfOf>,
}

/// Whom an automatic object serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OnBehalfOf {
    /// User name.
    pub username: String,
    /// Groups of that user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// What made the operator act, e.g. `RollbackGuard/web`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// What a snapshot takes in. An object is captured when (`selector` matches and (`include` is empty or matches)) or a
/// captured object refers to it, and `exclude` does not match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capture {
    /// Layers to capture; absent is all but `Databases` and `Infrastructure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub components: Option<Vec<Component>>,
    /// Label selector; absent is everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Objects to take; empty is all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<ObjectFilter>,
    /// Objects to leave out; wins over everything else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<ObjectFilter>,
    /// Whether what captured pod templates name comes along; default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow_references: Option<bool>,
    /// What happens to Secret values; default `Include`.
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeCapture {
    /// Which mechanism; default `Auto`.
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

/// Hooks before and after the capture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Run before the first read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Hook>,
    /// Run after the last read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Hook>,
}

/// One hook; its shape is settled with the feature, until then any hook is refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    /// Name in status and errors.
    pub name: String,
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    /// Generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the snapshot stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<SnapshotPhase>,
    /// Number in the lineage, from 1, given once and never reused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// The version that was live when this one was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentVersion>,
    /// SHA-256 over the captured entries in canonical order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Counts of objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<ObjectCounts>,
    /// What was left out, by kind and reason; at most 16 rows, the rest is in the manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkipCount>,
    /// How many rows of `skipped` are only in the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped_omitted: Option<i32>,
    /// Bytes as captured and as stored for this snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<SnapshotSize>,
    /// Items by component.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<ComponentCount>,
    /// Images that ran; at most 16, the rest is in the manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImageStatus>,
    /// How many images are only in the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_omitted: Option<i32>,
    /// Volumes captured; empty until volume data is captured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeStatus>,
    /// Format of the contents; readers refuse a newer one.
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
    pub name: String,
    /// Its version.
    pub version: i64,
}

/// Counts of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ObjectCounts {
    /// Objects in the manifest.
    pub captured: i64,
    /// Of these, equal to the parent's.
    pub unchanged: i64,
    /// Objects seen and left out.
    pub skipped: i64,
    /// Objects that could not be read.
    pub failed: i64,
}

/// Objects of one kind left out for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SkipCount {
    /// Kind, with its group where there is one: `Pod`, `Deployment.apps`.
    pub kind: String,
    /// Why, `CamelCase`.
    pub reason: String,
    /// How many.
    pub count: i64,
}

/// Bytes of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSize {
    /// Normalised contents, uncompressed.
    pub logical_bytes: i64,
    /// Bytes that this snapshot added to the repository.
    pub stored_bytes: i64,
}

/// Items of one component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ComponentCount {
    /// Which component.
    pub name: Component,
    /// How many items.
    pub items: i64,
}

/// An image of one container and the digest that really ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageStatus {
    /// `Deployment/web`.
    pub workload: String,
    /// Container name.
    pub container: String,
    /// The reference in the pod template.
    pub image: String,
    /// `sha256:…` that ran; absent with a `reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Why there is no digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The data of one claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// Name of the claim.
    pub claim: String,
    /// Name of the `VolumeSnapshot`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Smallest size it restores into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<String>,
    /// Whether it can be restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
}
