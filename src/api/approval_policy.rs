//! `ApprovalPolicy`: which rollbacks need which stages of approval. Written by the platform team.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub use super::approval_request::TimeoutAction;
use super::{
    approval_request::{Approvers, one},
    reference::RiskLevel,
    rollback_request::{Priority, ReasonType, RollbackComponent, Strategy},
    schema,
};

/// Which rollbacks need which stages of approval; the highest matching priority wins, ties go to the stricter policy.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "backstep.dev",
    version = "v1alpha1",
    kind = "ApprovalPolicy",
    plural = "approvalpolicies",
    shortname = "apol",
    category = "backstep",
    status = "ApprovalPolicyStatus",
    derive = "PartialEq",
    doc = "Which rollbacks need which stages of approval. Written by the platform team; without a matching policy nothing is approved.",
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority"),
    printcolumn(name = "Stages", type_ = "string", json_path = ".spec.stages[*].name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = (
        "self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "the name of a policy is a DNS label of at most 63 characters: rights on its stages are granted as <policy>:<stage>"
    ),
    validation = (schema::STATUS_STAYS, "status may not be removed")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "(has(self.stages) && self.stages.size() > 0) || has(self.autoApprove)",
    "a policy needs at least one stage, or autoApprove"
))]
pub struct ApprovalPolicySpec {
    /// Highest matching policy wins, -1000 to 1000.
    #[schemars(range(min = -1000, max = 1000))]
    #[serde(default)]
    pub priority: i32,
    /// Which rollbacks; absent is every one.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub match_: Option<PolicyMatch>,
    /// Stages in order, at most 8.
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<PolicyStage>,
    /// Approves by itself up to a risk; absent is never. Emergencies, deletes, Secrets, powerful kinds and unknown requesters
    /// are never approved so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_approve: Option<AutoApprove>,
    /// What happens when the requester is no person (a service account).
    #[serde(default)]
    pub unknown_requester: UnknownRequester,
    /// How long a request may wait for approval, at most 7 days.
    #[schemars(schema_with = "schema::duration::<168>", extend("default" = "24h"))]
    #[serde(default = "day", rename = "requestTTL")]
    pub request_ttl: String,
    /// How long an approval may be used, at most 7 days.
    #[schemars(schema_with = "schema::duration::<168>", extend("default" = "1h"))]
    #[serde(default = "hour", rename = "approvalTTL")]
    pub approval_ttl: String,
    /// Execution only inside one of these, at most 16; empty is always.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// No execution inside any of these, at most 16.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freezes: Vec<Freeze>,
    /// How many requests may be open or made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Break-glass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emergency: Option<EmergencyPolicy>,
    /// Whether an approval needs a comment, too.
    #[serde(default)]
    pub require_comment: bool,
    /// Whether who took the snapshot may not approve a rollback to it.
    #[serde(default)]
    pub exclude_snapshot_author: bool,
    /// Images that must not come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_floor: Option<SecurityFloor>,
    /// One person's several identities, at most 256 people.
    #[schemars(
        length(max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Alias>,
}

fn day() -> String {
    "24h".into()
}

fn hour() -> String {
    "1h".into()
}

/// Which rollbacks a policy is for; an empty field is any.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyMatch {
    /// Labels of the namespace.
    #[schemars(schema_with = "schema::selector")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Risk at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_risk: Option<RiskLevel>,
    /// Components that the rollback brings back, any of them.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "set"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<RollbackComponent>,
    /// Strategies.
    #[schemars(length(max = 3), extend("x-kubernetes-list-type" = "set"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strategies: Vec<Strategy>,
    /// Types of reason.
    #[schemars(length(max = 7), extend("x-kubernetes-list-type" = "set"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<ReasonType>,
    /// Who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requesters: Option<Requesters>,
}

/// Who asks; empty is anyone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Requesters {
    /// User names, at most 64.
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)), extend("x-kubernetes-list-type" = "set"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Groups, at most 64.
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)), extend("x-kubernetes-list-type" = "set"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// One stage of approval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStage {
    /// Name, a DNS label; rights are granted on `<policy>:<stage>`.
    #[schemars(schema_with = "schema::dns_label")]
    pub name: String,
    /// The stage is needed from this risk on.
    #[serde(default)]
    pub min_risk: RiskLevel,
    /// Who may approve; empty is anyone who holds the verb.
    #[schemars(schema_with = "policy_approvers")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvers: Option<Approvers>,
    /// How many distinct people must approve, 1 to 16.
    #[schemars(range(min = 1, max = 16))]
    #[serde(default = "one")]
    pub required: i32,
    /// How many rejections deny, 1 to 16.
    #[schemars(range(min = 1, max = 16))]
    #[serde(default = "one")]
    pub rejections_to_deny: i32,
    /// How long the stage may take, at most 7 days; absent is as long as the request.
    #[schemars(schema_with = "schema::duration::<168>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// What happens then; absent is `Expire`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<StageTimeout>,
}

/// What happens when a stage takes too long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "(self.action == 'Escalate') == has(self.approvers)",
    "Escalate names the approvers that are asked in addition; Expire names none"
))]
pub struct StageTimeout {
    /// Expire, or ask more people; the quorum never falls.
    pub action: TimeoutAction,
    /// Who is asked in addition.
    #[schemars(schema_with = "policy_approvers")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvers: Option<Approvers>,
}

/// [`Approvers`] with `<namespace>/<name>` checked where people write it.
fn policy_approvers(_: &mut SchemaGenerator) -> Schema {
    let names = |what: &str| {
        json_schema!({
            "description": what, "type": "array", "maxItems": 64, "x-kubernetes-list-type": "set",
            "items": {"type": "string", "minLength": 1, "maxLength": 512},
        })
    };
    json_schema!({
        "type": "object",
        "properties": {
            "users": names("User names, at most 64."),
            "groups": names("Groups, at most 64."),
            "serviceAccounts": {
                "description": "ServiceAccounts as `<namespace>/<name>`, at most 64. One of the request's own namespace never counts.",
                "type": "array", "maxItems": 64, "x-kubernetes-list-type": "set",
                "items": {
                    "type": "string", "maxLength": 317,
                    "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
                },
            },
        },
    })
}

/// Approves by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AutoApprove {
    /// Up to this risk.
    pub max_risk: RiskLevel,
}

/// What happens when the requester is no person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UnknownRequester {
    /// The request is refused.
    Deny,
    /// One more approval than the stages ask for.
    #[default]
    RequireExtraApproval,
    /// As any other.
    Allow,
}

/// A recurring stretch of time in which rollbacks may execute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// When it opens, five cron fields.
    #[schemars(schema_with = "cron")]
    pub cron: String,
    /// How long it is open, at most 7 days.
    #[schemars(schema_with = "schema::duration::<168>")]
    pub duration: String,
    /// IANA time zone.
    #[schemars(schema_with = "time_zone")]
    #[serde(default = "utc")]
    pub time_zone: String,
}

/// A recurring stretch of time in which nothing executes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Freeze {
    /// When it begins, five cron fields.
    #[schemars(schema_with = "cron")]
    pub cron: String,
    /// How long it lasts, at most 31 days.
    #[schemars(schema_with = "schema::duration::<744>")]
    pub duration: String,
    /// IANA time zone.
    #[schemars(schema_with = "time_zone")]
    #[serde(default = "utc")]
    pub time_zone: String,
    /// What it does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub except: Option<FreezeException>,
}

/// What a freeze does not hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FreezeException {
    /// Requests of this priority and above.
    pub min_priority: Priority,
}

fn utc() -> String {
    "UTC".into()
}

fn cron(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 9, "maxLength": 128, "pattern": r"^\S+( \S+){4}$"})
}

fn time_zone(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "minLength": 1, "maxLength": 64, "default": "UTC",
        "pattern": "^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$",
    })
}

/// How many requests may be open or made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Open requests in one namespace, 1 to 1000.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_per_namespace: Option<i32>,
    /// Open requests of one requester, 1 to 1000.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_per_requester: Option<i32>,
    /// Requests in an hour, 1 to 10000.
    #[schemars(range(min = 1, max = 10000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_hour: Option<i32>,
}

/// Break-glass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmergencyPolicy {
    /// Whether it is allowed at all.
    #[serde(default)]
    pub allowed: bool,
    /// How soon others must acknowledge it, at most 31 days.
    #[schemars(schema_with = "schema::duration::<744>", extend("default" = "24h"))]
    #[serde(default = "day")]
    pub review_within: String,
}

/// Images that must not come back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecurityFloor {
    /// Image digests, at most 64.
    #[schemars(schema_with = "schema::digests")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub digests: Vec<String>,
    /// Image references with a tag, globs, at most 64.
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)), extend("x-kubernetes-list-type" = "set"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// One person, several identities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Alias {
    /// The person, for people.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// User names of that person, 1 to 16.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 512)), extend("x-kubernetes-list-type" = "set"))]
    pub identities: Vec<String>,
}

/// Observed state; written by the operator alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalPolicyStatus {
    /// Generation that this status describes.
    #[schemars(range(min = 0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: whether the policy can be met.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
