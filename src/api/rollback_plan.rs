//! `RollbackPlan`: what one request would do, item by item. Written by the operator alone; what approvers read.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    reference::{ObjectReference, Risk, UidReference},
    schema,
};

/// What one request would do. Immutable, owned by its request. At most 256 KiB and 2,000 items; above that it is `truncated`.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "backstep.dev",
    version = "v1alpha1",
    kind = "RollbackPlan",
    plural = "rollbackplans",
    shortname = "bplan",
    category = "backstep",
    namespaced,
    derive = "PartialEq",
    doc = "What one RollbackRequest would do, item by item with diffs. Written by the operator alone; what approvers read.",
    selectable = ".spec.requestRef.name",
    selectable = ".spec.requestRef.uid",
    printcolumn(name = "Request", type_ = "string", json_path = ".spec.requestRef.name"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.target.snapshot"),
    printcolumn(name = "Risk", type_ = "string", json_path = ".spec.risk.level"),
    printcolumn(name = "Create", type_ = "integer", json_path = ".spec.summary.create"),
    printcolumn(name = "Update", type_ = "integer", json_path = ".spec.summary.update"),
    printcolumn(name = "Delete", type_ = "integer", json_path = ".spec.summary.delete"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self == oldSelf", "spec is immutable; a changed plan is a new RollbackPlan"))]
pub struct RollbackPlanSpec {
    /// The `RollbackRequest`.
    pub request_ref: UidReference,
    /// The Snapshot that is gone back to.
    pub target: PlanTarget,
    /// SHA-256 over everything that the plan would do; what an approval is bound to.
    #[schemars(schema_with = "schema::digest")]
    pub digest: String,
    /// How much it could hurt; not part of the digest.
    pub risk: Risk,
    /// Counts of items.
    pub summary: PlanSummary,
    /// Checks made before any write, at most 64.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preflight: Vec<PreflightResult>,
    /// Items in order, at most 2000.
    #[schemars(length(max = 2000))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<PlanItem>,
    /// Whether items or diffs were cut; the whole report is in the repository. Of more than 2,000 items 500 are here, deletions first
    /// among them, in their order.
    #[serde(default)]
    pub truncated: bool,
}

/// The Snapshot that is gone back to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanTarget {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub snapshot: String,
    /// Its version, from 1.
    #[schemars(range(min = 1))]
    pub version: i64,
    /// Its digest.
    #[schemars(schema_with = "schema::digest")]
    pub digest: String,
}

/// Counts of items.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanSummary {
    /// Captured, absent now.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub create: i64,
    /// Different now.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub update: i64,
    /// Different in a field that cannot change.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub recreate: i64,
    /// Created since.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub delete: i64,
    /// Different and left as they are.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub keep: i64,
    /// Not restorable.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub skip: i64,
    /// Consumers that are restarted.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub restart: i64,
    /// Equal; not touched at all.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub unchanged: i64,
}

/// One check made before any write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreflightResult {
    /// `CamelCase`, e.g. `QuotaSum`.
    #[schemars(length(min = 1, max = 63))]
    pub check: String,
    /// How it went.
    pub result: PreflightOutcome,
    /// Object, reason and fix.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PreflightOutcome {
    /// Nothing stands in the way.
    Passed,
    /// The rollback would fail.
    Failed,
    /// Worth reading.
    Warning,
    /// Could not be checked beforehand.
    NotCheckable,
}

/// One thing that a rollback would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanItem {
    /// What is done.
    pub action: PlanAction,
    /// Step of the order, low first, 0 to 1000.
    #[schemars(range(min = 0, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<i32>,
    /// The object.
    pub object: ObjectReference,
    /// Digest of the live object; absent where there is none.
    #[schemars(schema_with = "schema::digest")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_digest: Option<String>,
    /// Digest of the captured object; absent where there is none.
    #[schemars(schema_with = "schema::digest")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_digest: Option<String>,
    /// Unified diff from live to target; Secret values as fingerprints.
    #[schemars(length(max = 65536))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
    /// Why, `CamelCase`.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why, for people.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PlanAction {
    /// Captured, absent now.
    Create,
    /// Different.
    Update,
    /// Deleted and created, because a field cannot change.
    Recreate,
    /// Created since the snapshot.
    Delete,
    /// Different and left as it is.
    Keep,
    /// Not restorable.
    Skip,
    /// A consumer of changed configuration.
    Restart,
}
