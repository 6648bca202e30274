//! Tests that prove a rollback.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    hook::{Exec, HttpCall, JobRun},
    reference::ObjectReference,
    schema,
};

/// How a rollback is proven.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verify {
    /// Tests, run after health, at most 32.
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<VerifyTest>,
    /// How long everything must hold after the first pass, at most 24h.
    #[schemars(schema_with = "schema::duration::<24>", extend("default" = "30s"))]
    #[serde(default = "half_a_minute")]
    pub stabilize: String,
    /// How long verification may take, at most 24h.
    #[schemars(schema_with = "schema::duration::<24>", extend("default" = "10m"))]
    #[serde(default = "ten_minutes")]
    pub timeout: String,
}

fn half_a_minute() -> String {
    "30s".into()
}

fn ten_minutes() -> String {
    "10m".into()
}

/// One test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.http)", "http tests are not run yet; remove the test"),
    validation = ("!has(self.tcp)", "tcp tests are not run yet; remove the test"),
    validation = ("!has(self.job)", "job tests are not run yet; remove the test"),
    validation = ("!has(self.exec)", "exec tests are not run yet; remove the test"),
    validation = ("!has(self.fileExists)", "fileExists tests are not run yet; remove the test"),
    validation = ("!has(self.gitRevision)", "gitRevision tests are not run yet; remove the test"),
    validation = ("!has(self.promql)", "promql tests are not run yet; remove the test")
)]
pub struct VerifyTest {
    /// Name in status and errors, a DNS label.
    #[schemars(schema_with = "schema::dns_label")]
    pub name: String,
    /// How long one attempt may take, at most 1h.
    #[schemars(schema_with = "schema::duration::<1>", extend("default" = "30s"))]
    #[serde(default = "half_a_minute")]
    pub timeout: String,
    /// Attempts after the first, 0 to 100.
    #[schemars(range(min = 0, max = 100))]
    #[serde(default)]
    pub retries: i32,
    /// What is tested; exactly one.
    #[serde(flatten)]
    pub check: VerifyCheck,
}

/// What is tested.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum VerifyCheck {
    /// The object is there.
    ObjectExists(ObjectReference),
    /// CEL over the live object holds; refuses Secrets.
    ObjectMatches(ObjectMatches),
    /// The rollout of named workloads is complete.
    RolloutStatus(RolloutStatus),
    /// A URL answers; refused until it exists.
    Http(HttpCall),
    /// A port accepts connections; refused until it exists.
    Tcp(TcpCheck),
    /// A Pod template succeeds; refused until it exists.
    Job(JobRun),
    /// A command in a Pod succeeds; refused until it exists.
    Exec(Exec),
    /// A file is in a Pod; refused until it exists.
    FileExists(FileExists),
    /// The GitOps owner is at a revision; refused until it exists.
    GitRevision(GitRevision),
    /// A Prometheus query holds; refused until it exists.
    Promql(PromqlCheck),
    /// The live digest equals the target's.
    SnapshotMatches(SnapshotMatches),
}

/// CEL over one live object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectMatches {
    /// The object.
    #[x_kube(validation = (
        "self.kind != 'Secret' || (has(self.group) && self.group != '')",
        "objectMatches does not read Secrets"
    ))]
    pub object: ObjectReference,
    /// A CEL expression over `object` that is true when the test passes.
    #[schemars(length(min = 1, max = 4096))]
    pub expression: String,
}

/// Workloads whose rollout must be complete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// `Deployment/web`, `StatefulSet/db`, `DaemonSet/log`; 1 to 64.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(max = 317), regex(pattern = "^(Deployment|StatefulSet|DaemonSet)/[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub workloads: Vec<String>,
}

/// A port that accepts connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TcpCheck {
    /// Service of the namespace, or an allowed host.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Port, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// A file in a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileExists {
    /// Name of the Pod, or a workload such as `Deployment/web`.
    #[schemars(length(min = 1, max = 317))]
    pub pod: String,
    /// Container; absent is the first.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Absolute path.
    #[schemars(length(min = 1, max = 4096), regex(pattern = "^/"))]
    pub path: String,
    /// SHA-256 of the content.
    #[schemars(schema_with = "schema::digest")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// A revision that the GitOps owner must be at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GitRevision {
    /// The owner.
    pub object: ObjectReference,
    /// The revision.
    #[schemars(length(min = 1, max = 256))]
    pub revision: String,
}

/// A Prometheus query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromqlCheck {
    /// URL of the server.
    #[schemars(length(min = 8, max = 2048), regex(pattern = "^https?://"))]
    pub server: String,
    /// A query whose every sample must be other than 0.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
}

/// The live digest equals the target's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotMatches {
    /// Whether what the plan lists as kept, skipped or pinned may differ.
    #[serde(default = "schema::yes")]
    pub except_kept: bool,
}

/// How a test went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VerifyOutcome {
    /// As expected.
    Passed,
    /// Not as expected.
    Failed,
    /// Could not be told.
    Inconclusive,
}
