//! `RollbackRequest`: one rollback, from plan to record.

// Each is a switch of its own in the manifest; the derived schema repeats the struct, so an attribute on it is not enough.
#![allow(clippy::struct_excessive_bools)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::snapshot::Component as RollbackComponent;
use super::{
    hook::Hooks,
    reference::{Identity, ObjectFilter, OnBehalfOf, ResolvedSnapshot, Risk},
    schema,
    verify::{Verify, VerifyOutcome},
};

/// One rollback. Immutable but for `suspend` and `cancel` (that rule names every field and is written by [`super::crd`]).
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "backstep.dev",
    version = "v1alpha1",
    kind = "RollbackRequest",
    plural = "rollbackrequests",
    shortname = "rbr",
    category = "backstep",
    namespaced,
    status = "RollbackRequestStatus",
    derive = "PartialEq",
    doc = "One rollback, from plan to record; finished ones are the history. Immutable but for suspend and cancel.",
    selectable = ".status.phase",
    selectable = ".spec.requestId",
    printcolumn(name = "Target", type_ = "string", json_path = ".status.resolved.name"),
    printcolumn(name = "Strategy", type_ = "string", json_path = ".spec.strategy"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Risk", type_ = "string", json_path = ".status.plan.risk.level"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.requestedBy.username", priority = 1),
    printcolumn(name = "Seconds", type_ = "integer", json_path = ".status.durationSeconds", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = (
        "self.metadata.name.size() <= 200",
        "the name may have at most 200 characters: plans and approvals derive theirs from it"
    ),
    validation = (schema::STATUS_STAYS, "status may not be removed")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "(self.strategy == 'Partial') == (has(self.components) && self.components.size() > 0)",
        "components belongs to strategy Partial, which needs it"
    ),
    validation = (
        "(self.strategy == 'Selective') == has(self.objects)",
        "objects belongs to strategy Selective, which needs it"
    ),
    validation = (
        "!(self.dryRun && has(self.emergency))",
        "a dry run writes nothing and needs no emergency; remove one of them"
    ),
    validation = (
        "self.safetySnapshot || self.onFailure != 'Undo'",
        "onFailure: Undo needs the safety snapshot; use Stop or Continue, or leave safetySnapshot on"
    )
)]
pub struct RollbackRequestSpec {
    /// The version to go back to; resolved once, pinned in status, never retargeted.
    pub target: Target,
    /// How much comes back.
    #[serde(default)]
    pub strategy: Strategy,
    /// Components that come back, with strategy `Partial`.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "set"))]
    #[x_kube(
        validation = (
            "!self.exists(c, c == 'Volumes')",
            "Volumes cannot be brought back yet; remove it from components"
        ),
        validation = (
            "!self.exists(c, c == 'Databases')",
            "Databases cannot be brought back yet; remove it from components"
        ),
        validation = ("!self.exists(c, c == 'Git')", "Git cannot be brought back yet; remove it from components"),
        validation = (
            "!self.exists(c, c == 'Infrastructure')",
            "Infrastructure cannot be brought back yet; remove it from components"
        )
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<RollbackComponent>,
    /// Objects that come back, with strategy `Selective`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<Selection>,
    /// Whether what depends on a restored object follows: consumers of a `ConfigMap` are restarted.
    #[serde(default = "schema::yes")]
    pub cascade: bool,
    /// What happens to objects created since.
    #[serde(default)]
    pub prune: Prune,
    /// What happens when live changes after approval.
    #[serde(default)]
    pub conflict: Conflict,
    /// What happens to objects that differ in a field that cannot change; `Recreate` is refused until it exists.
    #[x_kube(validation = ("self != 'Recreate'", "immutable: Recreate is not available yet; use Fail"))]
    #[serde(default)]
    pub immutable: Immutable,
    /// How images come back.
    #[serde(default)]
    pub images: Images,
    /// What happens when Flux or Argo CD owns the target; `Pause` is refused until it exists.
    #[x_kube(validation = ("self != 'Pause'", "gitops: Pause is not available yet; use Block or Ignore"))]
    #[serde(default)]
    pub gitops: Gitops,
    /// When a paused owner takes over again; `Manual` is refused until owners can be paused.
    #[x_kube(validation = (
        "self != 'Manual'",
        "gitopsHandBack: Manual is not available yet, because owners are not paused yet; leave it out"
    ))]
    #[serde(default)]
    pub gitops_hand_back: HandBack,
    /// How much is tried by dry run first.
    #[serde(default)]
    pub preflight: Preflight,
    /// What happens to Secrets changed since the snapshot.
    #[serde(default)]
    pub secrets: SecretsHandling,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<RollbackReason>,
    /// Order in the queue.
    #[serde(default)]
    pub priority: Priority,
    /// Whether to plan, rate and validate, then stop at `Planned`.
    #[serde(default)]
    pub dry_run: bool,
    /// Whether to take a snapshot right before the first write.
    #[serde(default = "schema::yes")]
    pub safety_snapshot: bool,
    /// How the result is proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// Hooks around the rollback; refused until they exist.
    #[x_kube(validation = (
        "(!has(self.before) || self.before.size() == 0) && (!has(self.after) || self.after.size() == 0)",
        "hooks are not run yet; remove spec.hooks"
    ))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Whether to take a snapshot after success, whose digest proves what was reached.
    #[serde(default = "schema::yes")]
    pub result_snapshot: bool,
    /// What happens when it fails in the middle.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Break-glass: runs before approval, is reviewed afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emergency: Option<Emergency>,
    /// Deadlines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// Act as this `ServiceAccount` of the namespace; refused until it exists.
    #[schemars(length(max = 253))]
    #[x_kube(validation = (
        "self == ''",
        "acting as a ServiceAccount is not available yet; leave spec.serviceAccountName empty"
    ))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// The same id never runs twice; at most 128 characters.
    #[schemars(length(max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Holds the request before execution. May change.
    #[serde(default)]
    pub suspend: bool,
    /// Ends the request. May change once, to true.
    #[x_kube(validation = ("self || !oldSelf", "a cancelled request cannot be revived; create a new RollbackRequest instead"))]
    #[serde(default)]
    pub cancel: bool,
    /// Who asked: the user of the API call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<Identity>,
    /// Whom the operator acts for; set only by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<OnBehalfOf>,
}

/// The version to go back to: exactly one of `snapshot`, `version`, `tag`, `asOf`, `previous`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "[has(self.snapshot), has(self.version), has(self.tag), has(self.asOf), has(self.previous)].filter(x, x).size() == 1",
        "target needs exactly one of snapshot, version, tag, asOf or previous"
    ),
    validation = (
        "!(has(self.snapshot) && has(self.lineage))",
        "target.snapshot names one Snapshot; remove target.lineage"
    )
)]
pub struct Target {
    /// Name of a Snapshot.
    #[schemars(schema_with = "schema::object_name")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Lineage that `version`, `tag`, `asOf` and `previous` look in; absent is `default`.
    #[schemars(schema_with = "schema::dns_label")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<String>,
    /// Version in the lineage, from 1.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// Tag that one Ready snapshot of the lineage carries.
    #[schemars(schema_with = "schema::tag")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The newest version begun at or before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Time>,
    /// The version before what is live.
    #[x_kube(validation = ("self", "target.previous is true or absent"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<bool>,
}

/// How much comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Strategy {
    /// Configuration, Workloads, Images and Volumes.
    #[default]
    Full,
    /// The named components.
    Partial,
    /// The named objects.
    Selective,
}

/// Objects of a Selective rollback.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "(has(self.include) && self.include.size() > 0) || (has(self.exclude) && self.exclude.size() > 0) || has(self.selector)",
    "objects selects nothing; name include, exclude or selector"
))]
pub struct Selection {
    /// Objects that come back, at most 64 filters; empty is all.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<ObjectFilter>,
    /// Objects that stay as they are, at most 64 filters.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<ObjectFilter>,
    /// Label selector; absent is everything, an empty one is refused.
    #[schemars(schema_with = "schema::selector")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// What happens to objects created since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Prune {
    /// They stay.
    #[default]
    None,
    /// Those of captured kinds and selector are deleted.
    Created,
}

/// What happens when live changes after approval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Conflict {
    /// Plan again, and ask again where the digest differs.
    #[default]
    Overwrite,
    /// Fail with reason `Drift`.
    FailOnDrift,
    /// Keep that object.
    KeepLive,
}

/// What happens to objects that differ in a field that cannot change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Immutable {
    /// The plan fails.
    #[default]
    Fail,
    /// Delete and create.
    Recreate,
}

/// How images come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Images {
    /// As captured; pinned by digest where the tag has moved since.
    #[default]
    Auto,
    /// As captured; a moved tag is only reported.
    AsCaptured,
    /// Pinned by digest at once.
    Pin,
}

/// What happens when a GitOps tool owns the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Gitops {
    /// The request fails and names the owner.
    #[default]
    Block,
    /// The owner is suspended for the time.
    Pause,
    /// Goes on and warns.
    Ignore,
}

/// When a paused owner takes over again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HandBack {
    /// After verification.
    #[default]
    AfterVerify,
    /// When somebody says so.
    Manual,
}

/// How much is tried by dry run first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Preflight {
    /// Items whose acceptance is not certain.
    #[default]
    Auto,
    /// Every item.
    Always,
}

/// What happens to Secrets changed since the snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SecretsHandling {
    /// They come back.
    #[default]
    Restore,
    /// They stay; absent ones come back.
    KeepLive,
}

/// Why a rollback is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollbackReason {
    /// What kind of reason.
    #[serde(rename = "type", default)]
    pub type_: ReasonType,
    /// For people, at most 1024 characters.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// More facts, e.g. `ticket`; at most 16.
    #[schemars(schema_with = "metadata")]
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub metadata: std::collections::BTreeMap<String, String>,
}

fn metadata(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object", "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 256},
    })
}

/// What kind of reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReasonType {
    /// Somebody wants it.
    #[default]
    Manual,
    /// Errors rose.
    Error,
    /// A health check failed.
    HealthCheck,
    /// A resource limit was hit.
    ResourceLimit,
    /// Security.
    Security,
    /// Compliance.
    Compliance,
    /// A policy demands it.
    Policy,
}

/// Order in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Priority {
    /// After all others.
    Low,
    /// As they come.
    #[default]
    Normal,
    /// Before these.
    High,
    /// First.
    Urgent,
}

/// What happens when a rollback fails in the middle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnFailure {
    /// Leaves everything and reports.
    Stop,
    /// Does all other items.
    Continue,
    /// Goes back to the safety snapshot.
    #[default]
    Undo,
}

/// Break-glass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Emergency {
    /// Why it cannot wait, 1 to 1024 characters.
    #[schemars(length(min = 1, max = 1024))]
    pub justification: String,
}

/// Deadlines of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// For approval, at most 7 days; the shorter of this and the policy's counts.
    #[schemars(schema_with = "schema::duration::<168>", extend("default" = "24h"))]
    #[serde(default = "day")]
    pub approval: String,
    /// For execution, at most 24h.
    #[schemars(schema_with = "schema::duration::<24>", extend("default" = "30m"))]
    #[serde(default = "half_an_hour")]
    pub execution: String,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            approval: day(),
            execution: half_an_hour(),
        }
    }
}

fn day() -> String {
    "24h".into()
}

fn half_an_hour() -> String {
    "30m".into()
}

/// Observed state; written by the operator alone. Rules bind the operator too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "!has(oldSelf.phase) || (has(self.phase) && (self.phase == oldSelf.phase || oldSelf.phase == 'Pending' || \
         (oldSelf.phase == 'Planning' && self.phase != 'Pending') || \
         (oldSelf.phase == 'AwaitingApproval' && !(self.phase in ['Pending', 'Planning', 'Planned'])) || \
         (oldSelf.phase == 'Executing' && self.phase in ['Verifying', 'Completed', 'Partial', 'Failed', 'Undone', 'Cancelled']) || \
         (oldSelf.phase == 'Verifying' && self.phase in ['Completed', 'Partial', 'Failed', 'Undone', 'Cancelled'])))",
        "this phase transition is not allowed: phases go forward, and a final one has no way out"
    ),
    validation = (
        "!has(oldSelf.resolved) || (has(self.resolved) && self.resolved == oldSelf.resolved)",
        "a target is resolved once and never retargeted"
    ),
    validation = (
        "!has(oldSelf.safetySnapshot) || (has(self.safetySnapshot) && self.safetySnapshot == oldSelf.safetySnapshot)",
        "the safety snapshot is recorded once"
    )
)]
pub struct RollbackRequestStatus {
    /// Generation that this status describes.
    #[schemars(range(min = 0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the request stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<RollbackPhase>,
    /// The Snapshot that the target meant; set once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<ResolvedSnapshot>,
    /// The plan in short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanStatus>,
    /// Approval in short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalStatus>,
    /// Steps in order, at most 16.
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepStatus>,
    /// Counts of items and the first failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<ItemsStatus>,
    /// How verification went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationStatus>,
    /// The snapshot taken right before the first write; set once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety_snapshot: Option<SnapshotVersion>,
    /// The snapshot taken after success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_snapshot: Option<SnapshotVersion>,
    /// When execution began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Seconds from start to end.
    #[schemars(range(min = 0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<i64>,
    /// `Ready`, `Reconciling`, `Stalled`, `Approved`, `GitOpsPaused`.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RollbackPhase {
    /// Waits for its turn.
    #[default]
    Pending,
    /// Target, diff, risk and preflight.
    Planning,
    /// A dry run is done; final.
    Planned,
    /// Waits for approval.
    AwaitingApproval,
    /// Writes.
    Executing,
    /// Tests.
    Verifying,
    /// Reached and proven; final.
    Completed,
    /// Reached but for some items; final.
    Partial,
    /// Not reached; final.
    Failed,
    /// Back at the safety snapshot; final.
    Undone,
    /// Denied; final.
    Rejected,
    /// Not approved in time; final.
    Expired,
    /// Withdrawn; final.
    Cancelled,
    /// Another request took over; final.
    Superseded,
}

/// The plan in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanStatus {
    /// Name of the `RollbackPlan`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its digest.
    #[schemars(schema_with = "schema::digest")]
    pub digest: String,
    /// Objects to create.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub create: i64,
    /// Objects to update.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub update: i64,
    /// Objects to delete and create.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub recreate: i64,
    /// Objects to delete.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub delete: i64,
    /// Objects that differ and stay.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub keep: i64,
    /// Objects that are equal.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub unchanged: i64,
    /// Workloads that restart, at most 16.
    #[schemars(length(max = 16), inner(length(max = 317)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restarts: Vec<String>,
    /// How many restarts are only in the plan.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts_omitted: Option<i32>,
    /// How much it could hurt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<Risk>,
}

/// Approval in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalStatus {
    /// Name of the `ApprovalRequest`.
    #[schemars(length(min = 1, max = 253))]
    pub request: String,
    /// Its phase.
    #[schemars(length(max = 63))]
    pub state: String,
}

/// One step of an execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// `CamelCase`, e.g. `TakeSafetySnapshot`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Where it stands.
    pub state: StepState,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StepState {
    /// Not begun.
    Waiting,
    /// Under way.
    Running,
    /// Complete.
    Done,
    /// Not complete.
    Failed,
    /// Not needed.
    Skipped,
}

/// Counts of items and the first failures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ItemsStatus {
    /// Items done.
    #[schemars(range(min = 0))]
    pub done: i64,
    /// Items that failed.
    #[schemars(range(min = 0))]
    pub failed: i64,
    /// Items never touched.
    #[schemars(range(min = 0))]
    pub untouched: i64,
    /// The first failures, at most 16; the whole report is in the repository.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<ItemFailure>,
    /// How many failures are only in the report.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures_omitted: Option<i32>,
}

/// One item that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ItemFailure {
    /// `Deployment/web`.
    #[schemars(length(min = 1, max = 571))]
    pub object: String,
    /// Why, `CamelCase`.
    #[schemars(length(min = 1, max = 63))]
    pub reason: String,
    /// Why and how to fix, at most 512 characters.
    #[schemars(length(max = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How verification went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerificationStatus {
    /// All in all.
    pub status: VerifyOutcome,
    /// Tests that passed.
    #[schemars(range(min = 0))]
    pub passed: i32,
    /// Tests.
    #[schemars(range(min = 0))]
    pub total: i32,
    /// The first results, failed ones before others, at most 16.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<TestResult>,
    /// How many results are only in the report.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results_omitted: Option<i32>,
}

/// How one test went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TestResult {
    /// Name of the test.
    #[schemars(length(min = 1, max = 63))]
    pub test: String,
    /// What was expected.
    #[schemars(length(max = 256))]
    pub expected: String,
    /// What was seen; never a body or output.
    #[schemars(length(max = 256))]
    pub actual: String,
    /// Whether it passed.
    pub passed: bool,
}

/// A Snapshot and its version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotVersion {
    /// Name of the Snapshot.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its version, from 1.
    #[schemars(range(min = 1))]
    pub version: i64,
}
