//! `ApprovalRequest`: what must be approved, by whom, until when, and the tally. Written by the operator alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    reference::{Principal, RiskLevel},
    schema,
};

/// What must be approved, by whom, until when. Immutable.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "backstep.dev",
    version = "v1alpha1",
    kind = "ApprovalRequest",
    plural = "approvalrequests",
    shortname = "apr",
    category = "backstep",
    namespaced,
    status = "ApprovalRequestStatus",
    derive = "PartialEq",
    doc = "What must be approved, by whom, until when, and the tally. Written by the operator alone.",
    selectable = ".status.phase",
    selectable = ".spec.policy.name",
    selectable = ".spec.requestRef.name",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Stage", type_ = "string", json_path = ".status.currentStage"),
    printcolumn(name = "Request", type_ = "string", json_path = ".spec.requestRef.name"),
    printcolumn(name = "Requester", type_ = "string", json_path = ".spec.requester.username"),
    printcolumn(name = "Risk", type_ = "string", json_path = ".spec.risk"),
    printcolumn(name = "Expires", type_ = "date", json_path = ".spec.expiresAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = (schema::STATUS_STAYS, "status may not be removed")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self == oldSelf", "spec is immutable; a changed plan needs a new ApprovalRequest"))]
pub struct ApprovalRequestSpec {
    /// The `RollbackRequest`, bound by UID so that a re-created one of the same name does not inherit the approval.
    pub request_ref: RequestReference,
    /// Who asked; never counts as an approver.
    pub requester: Principal,
    /// Whose guard or schedule made the operator ask; excluded from approving like the requester.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<Principal>,
    /// The policy as it was; a changed policy supersedes this request.
    pub policy: PolicyReference,
    /// Digest of the plan that is approved.
    #[schemars(schema_with = "schema::digest")]
    pub plan_digest: String,
    /// Name of the `RollbackPlan`.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_ref: Option<String>,
    /// Risk of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<RiskLevel>,
    /// Whether it goes first and is reviewed afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emergency: Option<bool>,
    /// The requester's reason, at most 2048 characters.
    #[schemars(length(max = 2048))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The requester's ticket.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// Execution not before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// When an undecided request is over.
    pub expires_at: Time,
    /// Stages in order, 1 to 8.
    #[schemars(
        length(min = 1, max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub stages: Vec<RequestStage>,
}

/// The request that is approved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestReference {
    /// Its kind.
    pub kind: RequestKind,
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its UID.
    #[schemars(length(max = 64))]
    pub uid: String,
}

/// Kinds that need approval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RequestKind {
    /// A rollback.
    #[default]
    RollbackRequest,
}

/// A policy as it was when the request was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyReference {
    /// Name of the `ApprovalPolicy`.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Its UID.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// Digest of its spec.
    #[schemars(schema_with = "schema::digest")]
    pub digest: String,
}

/// One stage, frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestStage {
    /// Name, a DNS label.
    #[schemars(schema_with = "schema::dns_label_short")]
    pub name: String,
    /// How many distinct people must approve, 0 to 16.
    #[schemars(range(min = 0, max = 16))]
    pub required: i32,
    /// How many rejections deny, 1 to 16.
    #[schemars(range(min = 1, max = 16))]
    #[serde(default = "one")]
    pub rejections_to_deny: i32,
    /// Who may approve; empty is anyone who holds the verb.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvers: Option<Approvers>,
    /// How long the stage may take.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// What happens then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<OnTimeout>,
}

pub(super) fn one() -> i32 {
    1
}

/// Who may approve; empty is anyone who holds the verb.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approvers {
    /// User names, at most 64.
    #[schemars(length(max = 64), inner(length(max = 512)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Groups, at most 64.
    #[schemars(length(max = 64), inner(length(max = 512)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// `ServiceAccounts` as `<namespace>/<name>`, at most 64.
    #[schemars(length(max = 64), inner(length(max = 317)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
}

/// What happens when a stage takes too long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OnTimeout {
    /// Expire, or ask more people; the quorum never falls.
    pub action: TimeoutAction,
    /// Who is asked in addition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvers: Option<Approvers>,
}

/// What happens when a stage takes too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TimeoutAction {
    /// The request expires.
    #[default]
    Expire,
    /// More approvers are asked.
    Escalate,
}

/// The tally; written by the operator alone. Rules bind the operator too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "!has(oldSelf.phase) || (has(self.phase) && (self.phase == oldSelf.phase || \
         (oldSelf.phase == 'Pending' && self.phase in ['Approved', 'Rejected', 'Expired', 'Cancelled', 'Superseded', 'BreakGlass']) || \
         (oldSelf.phase == 'Approved' && self.phase in ['Consumed', 'Revoked', 'Expired', 'Cancelled', 'Superseded']) || \
         (oldSelf.phase == 'BreakGlass' && self.phase in ['AwaitingReview', 'Cancelled', 'Superseded']) || \
         (oldSelf.phase == 'AwaitingReview' && self.phase in ['Reviewed', 'ReviewOverdue']) || \
         (oldSelf.phase == 'ReviewOverdue' && self.phase == 'Reviewed')))",
        "this phase transition is not allowed"
    ),
    validation = (
        "!has(oldSelf.executionID) || (has(self.executionID) && self.executionID == oldSelf.executionID)",
        "an approval is used once: executionID is set once"
    ),
    validation = (
        "!has(self.phase) || !(self.phase in ['Consumed', 'AwaitingReview']) || has(self.executionID)",
        "a used approval names its execution"
    ),
    validation = ("!has(oldSelf.decisions) || has(self.decisions)", "recorded decisions may not be removed")
)]
pub struct ApprovalRequestStatus {
    /// Generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the request stands; final phases have no way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ApprovalPhase>,
    /// The stage that is being decided.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_stage: Option<String>,
    /// When the last stage was approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_at: Option<Time>,
    /// When the approval is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_expires_at: Option<Time>,
    /// The execution that used the approval; set once.
    #[schemars(length(max = 64))]
    #[serde(default, rename = "executionID", skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<String>,
    /// The guard epoch that decisions count in.
    #[schemars(length(max = 71))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard_epoch: Option<String>,
    /// Keyed seal over the counted decisions.
    #[schemars(length(max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<String>,
    /// Every decision seen, append-only, at most 64.
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uid"])
    )]
    #[x_kube(validation = (
        "oldSelf.all(o, self.exists(n, n.uid == o.uid && n.username == o.username && \
         n.stage == o.stage && n.decision == o.decision))",
        "recorded decisions are append-only"
    ))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decisions: Option<Vec<RecordedDecision>>,
    /// `Ready`, `Reconciling`, `Stalled`, `Approved`.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Where an `ApprovalRequest` stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApprovalPhase {
    /// Waits for decisions.
    #[default]
    Pending,
    /// Enough people approved.
    Approved,
    /// Denied; final.
    Rejected,
    /// Not decided or not used in time; final.
    Expired,
    /// Withdrawn; final.
    Cancelled,
    /// Plan, policy or guard changed; another request took over; final.
    Superseded,
    /// An approver took it back; final.
    Revoked,
    /// Used by one execution; final.
    Consumed,
    /// Runs before approval.
    BreakGlass,
    /// Ran; others must acknowledge.
    AwaitingReview,
    /// Acknowledged; final.
    Reviewed,
    /// Not acknowledged in time.
    ReviewOverdue,
}

/// One decision as the operator saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordedDecision {
    /// UID of the `ApprovalDecision`.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its author.
    #[schemars(length(max = 512))]
    pub username: String,
    /// Its stage.
    #[schemars(length(max = 63))]
    pub stage: String,
    /// What was decided.
    pub decision: Decision,
    /// When, by the server's clock.
    pub at: Time,
    /// The guard epoch it was made in.
    #[schemars(length(max = 71))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard_epoch: Option<String>,
    /// Whether it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<bool>,
    /// Why it does not count.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What an approver decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Decision {
    /// Yes.
    Approve,
    /// No.
    Reject,
    /// An earlier yes is taken back.
    Revoke,
    /// A break-glass execution was looked at.
    Acknowledge,
}
