//! A namespace, its team, and people who may approve.

use anyhow::{Result, ensure};
use backstep::api::{RollbackRequest, RollbackRequestStatus, rollback_request::RollbackPhase};
use kube::Api;
use serde_json::{Value, json};
use testbed::{User, wait_until};

use crate::support::{Installed, PATIENCE};

/// Runs namespaces that [`given`] made; asks for rollbacks.
pub fn alice() -> User {
    User::new("alice", ["shop-team"])
}

/// May approve in the stage `approval` of the policy `default`.
pub fn bob() -> User {
    User::new("bob", ["sre"])
}

/// Makes `namespace`, where alice is admin and bob may approve.
pub async fn given(installed: &Installed, namespace: &str) -> Result<()> {
    let manifest = r#"
apiVersion: v1
kind: Namespace
metadata: {name: NAMESPACE}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: team, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: alice}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: approves}
rules: [{apiGroups: [backstep.dev], resources: [approvalstages], resourceNames: ["default:approval"], verbs: [approve]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: approves}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: approves}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: bob}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: decides}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: backstep-approver}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: bob}]
"#;
    installed.given(&manifest.replace("NAMESPACE", namespace)).await
}

/// Creates the request `name` with `spec` as alice.
pub async fn ask(installed: &Installed, namespace: &str, name: &str, spec: &Value) -> Result<()> {
    let request = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    });
    installed
        .apply(&alice(), &request.to_string())
        .await?
        .success()
        .map(drop)
}

/// Approves the request as bob; it has to count.
pub async fn approve(installed: &Installed, namespace: &str, name: &str) -> Result<()> {
    let arguments = ["approve", name, "-n", namespace, "--yes", "--diffs", "none"];
    let ran = installed.cli(&bob(), &arguments).await?.success()?;
    ensure!(ran.stdout.contains("It counts"), "{ran}");
    Ok(())
}

/// Waits until the status of the request is as `wanted`.
pub async fn until(
    installed: &Installed,
    namespace: &str,
    name: &str,
    what: &str,
    wanted: impl Fn(&RollbackRequestStatus) -> bool,
) -> Result<RollbackRequestStatus> {
    let api: Api<RollbackRequest> = Api::namespaced(installed.admin().await?, namespace);
    let seen = wait_until(PATIENCE, what, async || {
        let status = api
            .get(name)
            .await
            .map_err(|e| e.to_string())?
            .status
            .unwrap_or_default();
        if wanted(&status) {
            Ok(Some(status))
        } else {
            Err(format!("{status:#?}"))
        }
    })
    .await;
    seen.map_err(|error| error.context(installed.log_tail()))
}

/// Waits until the request is in `phase`.
pub async fn until_phase(
    installed: &Installed,
    namespace: &str,
    name: &str,
    phase: RollbackPhase,
) -> Result<RollbackRequestStatus> {
    let what = format!("rollbackrequest {namespace}/{name} to be {phase:?}");
    until(installed, namespace, name, &what, |status| status.phase == Some(phase)).await
}

/// What the conditions say.
pub fn said(status: &RollbackRequestStatus) -> String {
    status
        .conditions
        .iter()
        .map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message))
        .collect::<Vec<_>>()
        .join("\n")
}
