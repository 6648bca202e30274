//! `ApprovalDecision`: one person's one decision, its author vouched for by admission.
//!
//! There is no status: what a decision was counted as is the operator's business and lives in the `ApprovalRequest`.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::approval_request::Decision;
use super::{reference::UidReference, schema};

/// One person's one decision. Immutable.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "backstep.dev",
    version = "v1alpha1",
    kind = "ApprovalDecision",
    plural = "approvaldecisions",
    shortname = "apd",
    category = "backstep",
    namespaced,
    derive = "PartialEq",
    doc = "One immutable Approve, Reject, Revoke or Acknowledge, written by one approver, once.",
    selectable = ".spec.requestRef.name",
    selectable = ".spec.requestRef.uid",
    selectable = ".spec.decision",
    printcolumn(name = "Request", type_ = "string", json_path = ".spec.requestRef.name"),
    printcolumn(name = "Stage", type_ = "string", json_path = ".spec.stage"),
    printcolumn(name = "Decision", type_ = "string", json_path = ".spec.decision"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.approver.username"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self == oldSelf", "spec is immutable; create another ApprovalDecision instead"),
    validation = (
        "self.decision == 'Approve' || (has(self.comment) && self.comment.size() > 0)",
        "comment is required unless decision is Approve"
    ),
    validation = (
        "!has(self.evidence)",
        "evidence is not available yet, because no stage can ask for it: nobody would verify it; leave it out"
    )
)]
pub struct ApprovalDecisionSpec {
    /// The `ApprovalRequest` in this namespace. The UID makes it this one, not a later one of the same name.
    pub request_ref: UidReference,
    /// What the approver read. The decision does not count for any other plan.
    #[schemars(schema_with = "schema::digest")]
    pub plan_digest: String,
    /// Name of the `ApprovalPolicy`.
    #[schemars(schema_with = "schema::dns_label_short")]
    pub policy_name: String,
    /// Stage that is decided.
    #[schemars(schema_with = "schema::dns_label_short")]
    pub stage: String,
    /// What is decided.
    pub decision: Decision,
    /// Why, at most 2048 characters; needed unless the decision is `Approve`.
    #[schemars(length(max = 2048))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Who decides. Filled in by the cluster (1.36 and later) or by the client; always verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approver: Option<Approver>,
    /// Signature made outside the cluster over `planDigest`. Not available yet: refused, for nobody would verify it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// Who decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approver {
    // Not required: the admission policy's refusal says what to write, the schema's would only say "Required value".
    /// User name as the API server authenticated it, 1 to 512 characters.
    #[schemars(length(min = 1, max = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// UID of the user where the authenticator gives one.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Groups of the user, at most 256.
    #[schemars(length(max = 256), inner(length(max = 512)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// Credential that authenticated the call.
    #[schemars(length(max = 256))]
    #[serde(default, rename = "credentialID", skip_serializing_if = "Option::is_none")]
    pub credential_id: Option<String>,
}

/// A signature made outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// How it was made.
    #[serde(rename = "type")]
    pub type_: EvidenceType,
    /// Who made it.
    #[schemars(length(max = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The signed statement, at most 8192 characters.
    #[schemars(length(max = 8192))]
    pub statement: String,
}

/// How evidence was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EvidenceType {
    /// `ssh-keygen -Y sign`.
    #[serde(rename = "SSHSignature")]
    SshSignature,
    /// A statement bound to an OIDC identity.
    #[serde(rename = "OIDC")]
    Oidc,
    /// Another system's statement.
    External,
}
