//! References and small shapes that several kinds share.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// Who made an API call. Filled in by the cluster (Kubernetes 1.36 and later) or by the client; always verified by admission.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
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
}

/// A user as recorded by the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Principal {
    /// User name, 1 to 512 characters.
    #[schemars(length(min = 1, max = 512))]
    pub username: String,
    /// UID of the user where the authenticator gives one.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Groups of the user, at most 256.
    #[schemars(length(max = 256), inner(length(max = 512)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
}

/// Whom an automatic object serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OnBehalfOf {
    /// User name, 1 to 512 characters.
    #[schemars(length(min = 1, max = 512))]
    pub username: String,
    /// Groups of that user, at most 256.
    #[schemars(length(max = 256), inner(length(max = 512)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// What made the operator act, e.g. `RollbackGuard/web`.
    #[schemars(length(max = 317))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Picks objects by group, kind and name. Every given field must match; an absent field matches anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "has(self.group) || (has(self.kinds) && self.kinds.size() > 0) || (has(self.names) && self.names.size() > 0)",
    "an empty filter matches every object; name a group, kinds or names"
))]
pub struct ObjectFilter {
    /// API group; `""` is the core group, absent is any.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Kinds, `CamelCase`; empty is any.
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
    /// Names; `*` matches any run of characters, `?` one; empty is any.
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// An object of the same namespace, bound by UID so that a re-created one of the same name is another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UidReference {
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// UID.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// An object of the namespace, by kind and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference {
    /// API group; `""` is the core group.
    #[schemars(length(max = 253))]
    #[serde(default)]
    pub group: String,
    /// Kind, `CamelCase`.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A Snapshot as it was when it was chosen; never retargeted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedSnapshot {
    /// Name of the Snapshot.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its UID.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// Its version in the lineage, from 1.
    #[schemars(range(min = 1))]
    pub version: i64,
    /// Its digest.
    #[schemars(schema_with = "schema::digest")]
    pub digest: String,
}

/// How much a rollback could hurt: Low < 25 ≤ Medium < 50 ≤ High < 75 ≤ Critical.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RiskLevel {
    /// Score below 25.
    #[default]
    Low,
    /// Score 25 to 49.
    Medium,
    /// Score 50 to 74.
    High,
    /// Score 75 and more.
    Critical,
}

/// A risk and where it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Risk {
    /// The level that approval policies look at.
    pub level: RiskLevel,
    /// 0 to 100.
    #[schemars(range(min = 0, max = 100))]
    pub score: i32,
    /// What the score is made of, at most 16.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub factors: Vec<RiskFactor>,
}

/// One reason for a risk score.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RiskFactor {
    /// `CamelCase`, e.g. `DataLoss`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Points that this factor adds, 0 to 100.
    #[schemars(range(min = 0, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub points: Option<i32>,
    /// The facts behind it.
    #[schemars(length(max = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
