//! What is taken away or changed in the middle never lets anything unapproved run, and the request says why.

use anyhow::{Result, ensure};
use backstep::api::rollback_request::RollbackPhase;
use serde_json::{Value, json};
use testbed::User;

use crate::{
    support::{Installed, Store},
    team::{alice, approve, ask, given, said, until, until_phase},
};

/// Holds the power to remove what Backstep owns.
fn janitor() -> User {
    User::new("janitor", ["janitors"])
}

pub async fn kubectl(installed: &Installed, user: &User, arguments: &[&str], input: Option<&str>) -> Result<String> {
    Ok(installed
        .cluster
        .kubectl(user, arguments, input)
        .await?
        .success()?
        .stdout)
}

/// A namespace that was good, was snapshotted, and is not good any more.
pub async fn shop(installed: &Installed, namespace: &str) -> Result<()> {
    given(installed, namespace).await?;
    release(installed, namespace, "good").await?;
    installed.snapshot(namespace, "good", &json!({})).await?;
    release(installed, namespace, "bad").await
}

async fn release(installed: &Installed, namespace: &str, value: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web", "namespace": namespace},
        "data": {"release": value},
    });
    let arguments = [
        "apply",
        "--server-side",
        "--field-manager=ci",
        "--force-conflicts",
        "-f",
        "-",
    ];
    kubectl(installed, &alice(), &arguments, Some(&object.to_string()))
        .await
        .map(drop)
}

pub async fn live(installed: &Installed, namespace: &str) -> Result<String> {
    let arguments = [
        "get",
        "configmap",
        "web",
        "-n",
        namespace,
        "-o",
        "jsonpath={.data.release}",
    ];
    kubectl(installed, &User::admin(), &arguments, None).await
}

/// The rollback, held before its execution.
pub fn held(more: &Value) -> Value {
    let mut spec = json!({"target": {"snapshot": "good"}, "suspend": true});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    spec
}

pub async fn let_go(installed: &Installed, namespace: &str) -> Result<()> {
    let arguments = [
        "patch",
        "rollbackrequest",
        "undo",
        "-n",
        namespace,
        "--type=merge",
        "-p",
        r#"{"spec":{"suspend":false}}"#,
    ];
    kubectl(installed, &alice(), &arguments, None).await.map(drop)
}

/// Asked for, approved, and held; the name of the `ApprovalRequest`.
pub async fn approved(installed: &Installed, namespace: &str, more: &Value) -> Result<String> {
    shop(installed, namespace).await?;
    ask(installed, namespace, "undo", &held(more)).await?;
    until_phase(installed, namespace, "undo", RollbackPhase::AwaitingApproval).await?;
    approve(installed, namespace, "undo").await?;
    let status = until(installed, namespace, "undo", "the approval to be seen", |status| {
        status.approval.as_ref().is_some_and(|a| a.state == "Approved")
    })
    .await?;
    Ok(status.approval.map(|a| a.request).unwrap_or_default())
}

/// Another approval is asked for, and until it is given nothing is written.
pub async fn asked_again(installed: &Installed, namespace: &str, before: &str) -> Result<()> {
    until(
        installed,
        namespace,
        "undo",
        "another approval to be asked for",
        |status| {
            status
                .approval
                .as_ref()
                .is_some_and(|a| a.request != before && a.state == "Pending")
        },
    )
    .await?;
    ensure!(live(installed, namespace).await? != "good", "it ran unapproved");
    approve(installed, namespace, "undo").await?;
    until_phase(installed, namespace, "undo", RollbackPhase::Completed).await?;
    ensure!(live(installed, namespace).await? == "good");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_deleted_or_changed_after_the_approval_nothing_unapproved_runs() -> Result<()> {
    let installed = Installed::start("tampering", Store::Directory).await?;
    let powers = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: purges}
rules:
  - {apiGroups: [backstep.dev], resources: [approvalscopes], verbs: [purge]}
  - {apiGroups: [backstep.dev], resources: ["*"], verbs: [get, list, delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: purges}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: purges}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: janitor}]
"#;
    installed.given(powers).await?;

    // Live changed: planned and asked for again, or it fails, or the object stays, as the request says.
    let first = approved(&installed, "drift", &json!({})).await?;
    release(&installed, "drift", "worse").await?;
    let_go(&installed, "drift").await?;
    asked_again(&installed, "drift", &first).await?;

    approved(&installed, "strict", &json!({"conflict": "FailOnDrift"})).await?;
    release(&installed, "strict", "worse").await?;
    let_go(&installed, "strict").await?;
    let status = until_phase(&installed, "strict", "undo", RollbackPhase::Failed).await?;
    ensure!(
        said(&status).contains("Drift: ConfigMap/web changed"),
        "{}",
        said(&status)
    );
    ensure!(live(&installed, "strict").await? == "worse");

    approved(&installed, "keeps", &json!({"conflict": "KeepLive"})).await?;
    release(&installed, "keeps", "worse").await?;
    let_go(&installed, "keeps").await?;
    until_phase(&installed, "keeps", "undo", RollbackPhase::Completed).await?;
    ensure!(live(&installed, "keeps").await? == "worse");

    // The plan: what was approved is kept elsewhere, and the plan that people read is written again.
    approved(&installed, "plan", &json!({})).await?;
    kubectl(
        &installed,
        &janitor(),
        &["delete", "rollbackplans", "--all", "-n", "plan"],
        None,
    )
    .await?;
    let_go(&installed, "plan").await?;
    until_phase(&installed, "plan", "undo", RollbackPhase::Completed).await?;

    // The ApprovalRequest: it is asked for again, and the old decision does not count for the new one.
    let first = approved(&installed, "approval", &json!({})).await?;
    let arguments = ["delete", "approvalrequest", &first, "-n", "approval"];
    kubectl(&installed, &janitor(), &arguments, None).await?;
    let_go(&installed, "approval").await?;
    until(
        &installed,
        "approval",
        "undo",
        "the approval to be asked for again",
        |status| status.approval.as_ref().is_some_and(|a| a.state == "Pending"),
    )
    .await?;
    ensure!(live(&installed, "approval").await? == "bad", "it ran unapproved");

    // The Snapshot.
    approved(&installed, "snapshot", &json!({})).await?;
    kubectl(
        &installed,
        &alice(),
        &["delete", "snapshot", "good", "-n", "snapshot"],
        None,
    )
    .await?;
    let_go(&installed, "snapshot").await?;
    let status = until_phase(&installed, "snapshot", "undo", RollbackPhase::Failed).await?;
    ensure!(
        said(&status).contains("TargetNotFound: the Snapshot is gone"),
        "{}",
        said(&status)
    );
    ensure!(live(&installed, "snapshot").await? == "bad");

    // The request, created again: the old approval is not its own.
    approved(&installed, "request", &json!({})).await?;
    kubectl(
        &installed,
        &alice(),
        &["delete", "rollbackrequest", "undo", "-n", "request"],
        None,
    )
    .await?;
    ask(&installed, "request", "undo", &json!({"target": {"snapshot": "good"}})).await?;
    until(
        &installed,
        "request",
        "undo",
        "an approval of its own to be asked for",
        |status| status.approval.as_ref().is_some_and(|a| a.state == "Pending"),
    )
    .await?;
    ensure!(live(&installed, "request").await? == "bad", "it ran unapproved");

    // The policy: without one nobody can approve; with a changed one it is asked for again.
    let first = approved(&installed, "policy", &json!({})).await?;
    let policy = kubectl(
        &installed,
        &User::admin(),
        &["get", "approvalpolicy", "default", "-o", "json"],
        None,
    )
    .await?;
    kubectl(
        &installed,
        &User::admin(),
        &["delete", "approvalpolicy", "default"],
        None,
    )
    .await?;
    let_go(&installed, "policy").await?;
    let status = until(
        &installed,
        "policy",
        "undo",
        "the request to miss its policy",
        |status| said(status).contains("NoMatchingPolicy"),
    )
    .await?;
    ensure!(status.phase == Some(RollbackPhase::AwaitingApproval), "{status:?}");
    ensure!(live(&installed, "policy").await? == "bad", "it ran unapproved");
    let mut policy: Value = serde_json::from_str(&policy)?;
    for field in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "managedFields",
    ] {
        if let Some(metadata) = policy["metadata"].as_object_mut() {
            metadata.remove(field);
        }
    }
    installed.given(&policy.to_string()).await?;
    asked_again(&installed, "policy", &first).await?;

    // The admission policies: nothing counts and nothing runs until they are back, and then it is asked for again.
    let first = approved(&installed, "guard", &json!({})).await?;
    let binding = "validatingadmissionpolicybinding/approvaldecisions.guard.backstep.dev";
    let saved = kubectl(&installed, &User::admin(), &["get", binding, "-o", "json"], None).await?;
    kubectl(&installed, &User::admin(), &["delete", binding], None).await?;
    let_go(&installed, "guard").await?;
    until(
        &installed,
        "guard",
        "undo",
        "the request to say that the guard is not whole",
        |status| said(status).contains("GuardUnhealthy"),
    )
    .await?;
    ensure!(live(&installed, "guard").await? == "bad", "it ran unguarded");
    let mut saved: Value = serde_json::from_str(&saved)?;
    for field in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "managedFields",
    ] {
        if let Some(metadata) = saved["metadata"].as_object_mut() {
            metadata.remove(field);
        }
    }
    installed.given(&saved.to_string()).await?;
    asked_again(&installed, "guard", &first).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_runs_once_whatever_is_deleted_and_created_again() -> Result<()> {
    let installed = Installed::start("once", Store::Directory).await?;
    shop(&installed, "shop").await?;
    let spec = json!({"target": {"snapshot": "good"}, "requestId": "release-1-9"});
    ask(&installed, "shop", "undo", &spec).await?;
    until_phase(&installed, "shop", "undo", RollbackPhase::AwaitingApproval).await?;
    approve(&installed, "shop", "undo").await?;
    until_phase(&installed, "shop", "undo", RollbackPhase::Completed).await?;
    ensure!(live(&installed, "shop").await? == "good");
    release(&installed, "shop", "bad").await?;
    kubectl(
        &installed,
        &alice(),
        &["delete", "rollbackrequest", "undo", "-n", "shop"],
        None,
    )
    .await?;
    for name in ["undo", "another-name"] {
        ask(&installed, "shop", name, &spec).await?;
        let status = until_phase(&installed, "shop", name, RollbackPhase::Failed).await?;
        ensure!(
            said(&status).contains("AlreadyExecuted: it ran before"),
            "{}",
            said(&status)
        );
    }
    ensure!(live(&installed, "shop").await? == "bad");
    // The record outlives the request.
    let ran = installed
        .cli(&User::admin(), &["history", "-n", "shop", "-o", "json"])
        .await?
        .success()?;
    ensure!(ran.stdout.contains("Completed"), "{ran}");
    Ok(())
}
