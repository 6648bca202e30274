//! The API server's audit log: who asked for what, and what was answered.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// What the API server writes to its audit log.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Audit {
    /// Nothing.
    #[default]
    Off,
    /// Every completed request without its bodies.
    Metadata,
    /// Every completed request with its bodies.
    RequestResponse,
    /// What this `audit.k8s.io/v1` Policy says.
    Policy(Value),
}

impl Audit {
    /// The policy, or `None` where nothing is audited.
    pub(crate) fn policy(&self) -> Option<Value> {
        let level = match self {
            Self::Off => return None,
            Self::Metadata => "Metadata",
            Self::RequestResponse => "RequestResponse",
            Self::Policy(policy) => return Some(policy.clone()),
        };
        Some(json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": level}],
        }))
    }
}

/// A request that the API server completed (an `audit.k8s.io/v1` Event).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// `ResponseComplete`, or `ResponseStarted` for a watch that goes on, or `Panic`.
    pub stage: String,
    /// In small letters: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// The path and query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// Who asked.
    pub user: AuditUser,
    /// On whose behalf, where the asker impersonated somebody.
    pub impersonated_user: Option<AuditUser>,
    /// How the client calls itself.
    #[serde(default)]
    pub user_agent: String,
    /// What it was about; `None` for requests that are about no resource.
    pub object_ref: Option<ObjectReference>,
    /// The answer; see [`AuditEvent::code`].
    pub response_status: Option<Value>,
    /// The request's body, at the level `RequestResponse`.
    pub request_object: Option<Value>,
    /// The answer's body, at the level `RequestResponse`.
    pub response_object: Option<Value>,
    /// What authorisation and admission noted.
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
}

impl AuditEvent {
    /// The HTTP status of the answer.
    pub fn code(&self) -> Option<u16> {
        self.response_status.as_ref()?.get("code")?.as_u64()?.try_into().ok()
    }
}

/// Who asked.
#[derive(Clone, Debug, Deserialize)]
pub struct AuditUser {
    /// The user name.
    #[serde(default)]
    pub username: String,
    /// The groups.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// What a request was about; parts that it did not name are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectReference {
    /// The API group; empty for the core group.
    pub api_group: String,
    /// The API version.
    pub api_version: String,
    /// The resource in plural.
    pub resource: String,
    /// The subresource.
    pub subresource: String,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The UID, where the request named one.
    pub uid: String,
}

/// Where the log of the cluster in `directory` is.
pub(crate) fn log_path(directory: &Path) -> PathBuf {
    directory.join("audit.jsonl")
}

/// Reads the log of the cluster in `directory`.
pub(crate) fn read(directory: &Path) -> Result<Vec<AuditEvent>> {
    let path = log_path(directory);
    let content = fs::read_to_string(&path).with_context(|| {
        format!(
            "there is no audit log at {}: start the cluster with ClusterOptions::audit",
            path.display()
        )
    })?;
    // A line without its end is still being written.
    let whole = content.rfind('\n').map_or("", |end| &content[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not an audit event: {line}")))
        .collect()
}
