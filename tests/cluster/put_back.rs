//! What the server puts back whatever is written: no difference that a rollback could bring about, and no drift for ever.

use anyhow::{Context as _, Result, ensure};
use backstep::api::{RollbackPlan, RollbackRequestStatus, rollback_request::RollbackPhase};
use kube::Api;
use serde_json::{Value, json};
use testbed::{ClusterOptions, User, wait_until};

use crate::{
    support::{Installed, PATIENCE, Store},
    team::{alice, approve, ask, given, said, until, until_phase},
};

/// Everything of the team gets a label and, where it is a Deployment, another setting.
const STAMPS: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: team-label}
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [configmaps]}
    - {apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments]}
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration: {expression: "Object{metadata: Object.metadata{labels: {'example.org/team': 'shop'}}}"}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: team-label}
spec: {policyName: team-label, matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: patience}
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments]}]
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration: {expression: "Object{spec: Object.spec{minReadySeconds: 1}}"}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: patience}
spec: {policyName: patience, matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}}
"#;

fn release(mode: &str) -> String {
    let config = |name: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "shop"}, "data": {"mode": mode}})
            .to_string()
    };
    let web = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "app", "image": format!("registry.example/web:{mode}")}]}}},
    });
    [config("web"), config("gone"), web.to_string()].join("\n---\n")
}

async fn plan_of(installed: &Installed, status: &RollbackRequestStatus) -> Result<RollbackPlan> {
    let plans: Api<RollbackPlan> = Api::namespaced(installed.admin().await?, "shop");
    Ok(plans.get(&status.plan.as_ref().context("a plan")?.name).await?)
}

async fn ended(installed: &Installed, name: &str) -> Result<RollbackRequestStatus> {
    let what = format!("rollbackrequest {name} to end");
    let status = until(installed, "shop", name, &what, |status| status.completed_at.is_some()).await?;
    ensure!(
        status.phase == Some(RollbackPhase::Completed),
        "{}\n{status:#?}",
        said(&status)
    );
    Ok(status)
}

async fn get(installed: &Installed, kind: &str, name: &str) -> Result<Value> {
    let arguments = ["get", kind, name, "-n", "shop", "-o", "json"];
    installed
        .cluster
        .kubectl(&User::admin(), &arguments, None)
        .await?
        .json()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_admission_puts_back_is_told_kept_and_no_drift_for_ever() -> Result<()> {
    let installed = Installed::start_with(ClusterOptions::named("put-back"), Store::Directory, &[]).await?;
    given(&installed, "shop").await?;
    installed.apply(&alice(), &release("v1")).await?.success()?;
    installed.snapshot("shop", "good", &json!({})).await?;
    // What the snapshot holds was never looked at by these.
    installed.given(STAMPS).await?;
    wait_until(PATIENCE, "the policies to be in force", async || {
        let probe = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"probe","namespace":"shop"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"a","image":"a"}]}}}}"#;
        let create = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        let ran = installed.cluster.kubectl(&alice(), &create, Some(probe)).await.map_err(|e| e.to_string())?;
        let both = ran.stdout.contains("example.org/team") && ran.stdout.contains("minReadySeconds");
        if both { Ok(Some(())) } else { Err(ran.to_string()) }
    })
    .await?;
    installed.apply(&alice(), &release("v2")).await?.success()?;
    let delete = ["delete", "configmap", "gone", "-n", "shop"];
    installed.cluster.kubectl(&alice(), &delete, None).await?.success()?;

    let spec = json!({
        "target": {"snapshot": "good"}, "onFailure": "Stop",
        "verify": {"tests": [{"name": "as-captured", "snapshotMatches": {}}], "stabilize": "1s", "timeout": "5s"},
    });
    ask(&installed, "shop", "back", &spec).await?;
    let status = until_phase(&installed, "shop", "back", RollbackPhase::AwaitingApproval).await?;
    let plan = plan_of(&installed, &status).await?;
    ensure!(
        (plan.spec.summary.update, plan.spec.summary.create) == (2, 1),
        "{:#?}",
        plan.spec
    );
    for item in &plan.spec.items {
        let detail = item.detail.clone().unwrap_or_default();
        ensure!(detail.contains("metadata.labels"), "{item:#?}");
        ensure!(
            item.object.kind != "Deployment" || detail.contains("spec.minReadySeconds"),
            "{item:#?}"
        );
        // It is not announced as something that goes.
        ensure!(
            !item.diff.clone().unwrap_or_default().contains("-    example.org/team"),
            "{item:#?}"
        );
    }
    approve(&installed, "shop", "back").await?;
    let status = ended(&installed, "back").await?;
    ensure!(
        status.verification.as_ref().is_some_and(|v| v.passed == 1),
        "{:#?}",
        status.verification
    );
    for (kind, name) in [("configmap", "web"), ("configmap", "gone"), ("deployment", "web")] {
        let object = get(&installed, kind, name).await?;
        ensure!(object["metadata"]["labels"]["example.org/team"] == "shop", "{object:#}");
        ensure!(kind != "configmap" || object["data"]["mode"] == "v1", "{object:#}");
    }

    // Nothing is left that could be brought back: no approval, no write, and the test holds.
    let before = get(&installed, "configmap", "web").await?;
    ask(&installed, "shop", "again", &spec).await?;
    let status = ended(&installed, "again").await?;
    ensure!(status.approval.is_none(), "{:#?}", status.approval);
    ensure!(
        status.verification.as_ref().is_some_and(|v| v.passed == 1),
        "{:#?}",
        status.verification
    );
    let plan = plan_of(&installed, &status).await?;
    let reasons: Vec<_> = plan.spec.items.iter().filter_map(|item| item.reason.clone()).collect();
    ensure!(
        reasons == ["KeptByServer", "KeptByServer", "KeptByServer"],
        "{:#?}",
        plan.spec.items
    );
    ensure!(get(&installed, "configmap", "web").await? == before, "it was written");
    Ok(())
}
