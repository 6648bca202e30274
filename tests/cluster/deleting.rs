//! Deleting a request, or its namespace, while it executes.

use anyhow::{Context as _, Result, ensure};
use backstep::api::{RollbackRequest, names};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use testbed::{ClusterOptions, User, wait_until};

use crate::{
    support::{Installed, PATIENCE, Store},
    team::{alice, approve, ask, given, until},
};

async fn kubectl(installed: &Installed, user: &User, arguments: &[&str]) -> Result<String> {
    Ok(installed
        .cluster
        .kubectl(user, arguments, None)
        .await?
        .success()?
        .stdout)
}

/// A rollback of `namespace` to a release that does not become ready for an hour, which waits for that.
async fn waiting_for_health(installed: &Installed, namespace: &str) -> Result<()> {
    given(installed, namespace).await?;
    let release = |mode: &str, ready_after: &str| {
        let annotations = json!({"testbed.backstep.dev/ready-after": ready_after});
        let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web", "namespace": namespace}, "data": {"mode": mode}});
        let web = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": namespace},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 3000, "template": {
                "metadata": {"labels": {"app": "web"}, "annotations": annotations},
                "spec": {"containers": [{"name": "app", "image": format!("registry.example/web:{mode}")}]}}},
        });
        format!("{config}\n---\n{web}")
    };
    installed.apply(&alice(), &release("slow", "3600")).await?.success()?;
    installed.snapshot(namespace, "slow", &json!({})).await?;
    installed.apply(&alice(), &release("good", "0")).await?.success()?;
    let rollout = ["rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s"];
    kubectl(installed, &User::admin(), &rollout).await?;
    ask(installed, namespace, "back", &json!({"target": {"snapshot": "slow"}})).await?;
    until(
        installed,
        namespace,
        "back",
        "the rollback to wait for approval",
        |status| status.approval.is_some(),
    )
    .await?;
    approve(installed, namespace, "back").await?;
    until(
        installed,
        namespace,
        "back",
        "the rollback to wait for health",
        |status| {
            let step = status.steps.iter().find(|step| step.name == "WaitForHealth");
            step.is_some_and(|step| format!("{:?}", step.state) == "Running")
        },
    )
    .await?;
    ensure!(mode(installed, namespace).await? == "slow", "nothing was written yet");
    Ok(())
}

async fn mode(installed: &Installed, namespace: &str) -> Result<String> {
    let get = [
        "get",
        "configmap",
        "web",
        "-n",
        namespace,
        "-o",
        "jsonpath={.data.mode}",
    ];
    kubectl(installed, &User::admin(), &get).await
}

async fn until_gone(installed: &Installed, namespace: &str) -> Result<()> {
    let api: Api<RollbackRequest> = Api::namespaced(installed.admin().await?, namespace);
    let what = format!("rollbackrequest {namespace}/back to go");
    let gone = wait_until(PATIENCE, &what, async || {
        match api.get_opt("back").await.map_err(|e| e.to_string())? {
            None => Ok(Some(())),
            Some(request) => Err(format!("{:?} {:#?}", request.finalizers(), request.status)),
        }
    })
    .await;
    gone.map_err(|error| error.context(installed.log_tail()))
}

/// What the repository keeps of it.
async fn record(installed: &Installed, namespace: &str) -> Result<Value> {
    let store = format!("file://{}", installed.store_directory().display());
    let arguments = ["history", "back", "-n", namespace, "-o", "json", "--store", &store];
    installed.cli(&User::admin(), &arguments).await?.json()
}

fn is_recorded(record: &Value, phase: &str) -> Result<()> {
    let conditions = record["status"]["conditions"].to_string();
    ensure!(record["status"]["phase"] == phase, "{record:#}");
    ensure!(conditions.contains("the request was deleted"), "{record:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_deleted_in_the_middle_is_cancelled_taken_back_and_recorded() -> Result<()> {
    let mut installed = Installed::start_with(ClusterOptions::named("delete-middle"), Store::Directory, &[]).await?;
    let delete = |namespace: &'static str| ["delete", "rollbackrequest", "back", "-n", namespace, "--wait=false"];

    waiting_for_health(&installed, "shop").await?;
    kubectl(&installed, &alice(), &delete("shop")).await?;
    until_gone(&installed, "shop").await?;
    ensure!(mode(&installed, "shop").await? == "good", "it was not taken back");
    is_recorded(&record(&installed, "shop").await?, "Undone")?;

    // The operator is away when it is deleted: it is still there when the operator comes back, and nobody talks it out of that.
    waiting_for_health(&installed, "away").await?;
    installed.kill_operator();
    kubectl(&installed, &alice(), &delete("away")).await?;
    let strip = r#"{"metadata":{"finalizers":null}}"#;
    let patch = [
        "patch",
        "rollbackrequest",
        "back",
        "-n",
        "away",
        "--type=merge",
        "-p",
        strip,
    ];
    let refused = installed.cluster.kubectl(&alice(), &patch, None).await?;
    ensure!(refused.stderr.contains("removed only by the operator"), "{refused}");
    let api: Api<RollbackRequest> = Api::namespaced(installed.admin().await?, "away");
    let left = api.get("back").await?;
    ensure!(
        left.finalizers() == [names::EXECUTION_FINALIZER],
        "{:?}",
        left.finalizers()
    );
    installed.start_operator().await?;
    until_gone(&installed, "away").await?;
    ensure!(mode(&installed, "away").await? == "good", "it was not taken back");
    is_recorded(&record(&installed, "away").await?, "Undone")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_deleted_in_the_middle_goes_with_its_rollback() -> Result<()> {
    let mut installed = Installed::start_with(ClusterOptions::named("delete-namespace"), Store::Directory, &[]).await?;
    let namespaces: Api<Namespace> = Api::all(installed.admin().await?);
    let until_namespace_gone = async |installed: &Installed, name: &str| -> Result<()> {
        let gone = wait_until(PATIENCE, &format!("namespace {name} to go"), async || match namespaces
            .get_opt(name)
            .await
            .map_err(|e| e.to_string())?
        {
            None => Ok(Some(())),
            Some(left) => Err(format!("{:#?}", left.status)),
        })
        .await;
        gone.map_err(|error| error.context(installed.log_tail()))
    };
    let delete = |name: &'static str| ["delete", "namespace", name, "--wait=false"];

    waiting_for_health(&installed, "shop").await?;
    kubectl(&installed, &User::admin(), &delete("shop")).await?;
    until_namespace_gone(&installed, "shop").await?;

    waiting_for_health(&installed, "away").await?;
    installed.kill_operator();
    kubectl(&installed, &User::admin(), &delete("away")).await?;
    let api: Api<RollbackRequest> = Api::namespaced(installed.admin().await?, "away");
    let left = wait_until(PATIENCE, "the request to be deleted with its namespace", async || {
        let left = api.get_opt("back").await.map_err(|e| e.to_string())?;
        match left.filter(|left| left.metadata.deletion_timestamp.is_some()) {
            Some(left) => Ok(Some(left)),
            None => Err("not yet".to_owned()),
        }
    })
    .await?;
    ensure!(
        left.finalizers() == [names::EXECUTION_FINALIZER],
        "{:?}",
        left.finalizers()
    );
    installed.start_operator().await?;
    until_namespace_gone(&installed, "away").await?;

    // The namespaces are gone; what happened in them is not forgotten.
    let store = format!("file://{}", installed.store_directory().display());
    let arguments = ["history", "-A", "-o", "json", "--store", &store];
    let history = installed.cli(&User::admin(), &arguments).await?.json()?;
    let records = history["records"].as_array().context("records")?;
    ensure!(records.len() == 2, "{history:#}");
    for record in records {
        // The workload may go before the request: then that is what ends it.
        let ended = record["phase"] == "Cancelled" || record["phase"] == "Failed";
        ensure!(ended && record["archived"] == true, "{history:#}");
    }
    Ok(())
}
