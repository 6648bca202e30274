//! Hooks around a capture or a rollback, and what they can run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// Hooks before and after the work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Run before the first read or write, at most 8.
    #[schemars(length(max = 8))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Hook>,
    /// Run after the last read or write, at most 8.
    #[schemars(length(max = 8))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Hook>,
}

/// One hook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    /// Name in status and errors, a DNS label.
    #[schemars(schema_with = "schema::dns_label")]
    pub name: String,
    /// How long it may take, at most 24h.
    #[schemars(schema_with = "schema::duration::<24>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// What its failure means.
    #[serde(default)]
    pub on_error: OnError,
    /// What it runs; exactly one.
    #[serde(flatten)]
    pub action: HookAction,
}

/// What the failure of a hook means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnError {
    /// The work fails too.
    #[default]
    Fail,
    /// The failure is recorded and the work goes on.
    Continue,
}

/// What a hook runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum HookAction {
    /// A command in a running Pod.
    Exec(Exec),
    /// A Pod that must succeed.
    Job(JobRun),
    /// A `CloudEvent` to a URL.
    Http(HttpCall),
}

/// A command in a running Pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Exec {
    /// Name of the Pod, or a workload such as `Deployment/web` (its first ready Pod).
    #[schemars(length(min = 1, max = 317))]
    pub pod: String,
    /// Container; absent is the first.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Command and arguments, at most 64.
    #[schemars(length(min = 1, max = 64), inner(length(max = 4096)))]
    pub command: Vec<String>,
    /// Expected exit code.
    #[schemars(range(min = 0, max = 255))]
    #[serde(default)]
    pub exit_code: i32,
    /// Regular expression (RE2) that the output must match.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_matches: Option<String>,
}

/// A Pod that must succeed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobRun {
    /// The Pod template.
    #[schemars(schema_with = "schema::pod_template")]
    pub template: serde_json::Map<String, serde_json::Value>,
}

/// A call to a Service of the namespace or to an allowed host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpCall {
    /// `http` or `https` URL.
    #[schemars(length(min = 8, max = 2048), regex(pattern = "^https?://"))]
    pub url: String,
    /// Method.
    #[serde(default)]
    pub method: HttpMethod,
    /// Expected status.
    #[schemars(range(min = 100, max = 599))]
    #[serde(default = "ok_status")]
    pub status: i32,
    /// Regular expression (RE2) that the body must match.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_matches: Option<String>,
}

fn ok_status() -> i32 {
    200
}

/// HTTP method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HttpMethod {
    /// Read.
    #[default]
    #[serde(rename = "GET")]
    Get,
    /// Read the headers.
    #[serde(rename = "HEAD")]
    Head,
    /// Send.
    #[serde(rename = "POST")]
    Post,
    /// Replace.
    #[serde(rename = "PUT")]
    Put,
}
