//! Exactness: after a rollback live is the target, but for what the plan said it would leave.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use backstep::api::{RollbackPlan, Snapshot, rollback_plan::PlanAction, rollback_request::RollbackPhase};
use kube::Api;
use serde_json::json;
use testbed::User;

use crate::{
    snapshots::{CHANGES, entries, settled_shop},
    support::{Installed, Store},
    team::{approve, ask, given, until_phase},
};

async fn kubectl(installed: &Installed, arguments: &[&str], input: Option<&str>) -> Result<()> {
    let ran = installed.cluster.kubectl(&User::admin(), arguments, input).await?;
    ran.success().map(drop)
}

/// Installs or upgrades the Helm release `extra`, whose one object says `mode`.
async fn helm(installed: &Installed, verb: &str, mode: &str) -> Result<()> {
    let chart = installed.file("extra-chart");
    std::fs::create_dir_all(chart.join("templates"))?;
    std::fs::write(
        chart.join("Chart.yaml"),
        "apiVersion: v2\nname: extra\nversion: 1.0.0\n",
    )?;
    std::fs::write(
        chart.join("templates/extra.yaml"),
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra}\ndata: {mode: \"{{ .Values.mode }}\"}\n",
    )?;
    let chart = chart.to_str().context("path")?.to_owned();
    let mode = format!("mode={mode}");
    let arguments = [verb, "extra", &chart, "--namespace", "shop", "--set", &mode];
    installed
        .cluster
        .helm(&User::admin(), &arguments, None)
        .await?
        .success()
        .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_rollback_of_26_kinds_differs_from_its_target_in_exactly_what_its_plan_keeps() -> Result<()> {
    let installed = Installed::start("exact", Store::Directory).await?;
    given(&installed, "shop").await?;
    // What a rollback brings back, its requester could bring back by hand.
    let all = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "all", "namespace": "shop"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}],
    });
    installed.given(&all.to_string()).await?;
    settled_shop(&installed, "shop").await?;
    let lost = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "lost", "namespace": "shop"}, "data": {"a": "1"}});
    installed.given(&lost.to_string()).await?;
    helm(&installed, "install", "good").await?;
    let good = installed.snapshot("shop", "good", &json!({"lineage": "shop"})).await?;

    for (kind, name, patch) in CHANGES {
        kubectl(
            &installed,
            &["patch", kind, name, "-n", "shop", "--type=merge", "-p", patch],
            None,
        )
        .await?;
    }
    kubectl(&installed, &["delete", "configmap", "lost", "-n", "shop"], None).await?;
    let new = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "new", "namespace": "shop"}, "data": {"a": "1"}});
    installed.given(&new.to_string()).await?;
    helm(&installed, "upgrade", "bad").await?;
    // A scaler's decision is not the rollback's to take back.
    kubectl(
        &installed,
        &["scale", "deployment", "web", "-n", "shop", "--replicas=3"],
        None,
    )
    .await?;

    let spec = json!({"target": {"snapshot": "good"}, "prune": "Created"});
    ask(&installed, "shop", "undo", &spec).await?;
    until_phase(&installed, "shop", "undo", RollbackPhase::AwaitingApproval).await?;
    approve(&installed, "shop", "undo").await?;
    let status = until_phase(&installed, "shop", "undo", RollbackPhase::Completed).await?;

    let client = installed.admin().await?;
    let plans: Api<RollbackPlan> = Api::namespaced(client.clone(), "shop");
    let plan = plans.get(&status.plan.context("a plan")?.name).await?;
    let left: BTreeSet<String> = plan
        .spec
        .items
        .iter()
        .filter(|item| {
            // A field that stays is said on the item that brings the others back.
            let field_stays = item.detail.as_deref().is_some_and(|detail| detail.contains(" stays: "));
            field_stays || matches!(item.action, PlanAction::Keep | PlanAction::Skip)
        })
        .map(|item| format!("{}/{}", item.object.kind, item.object.name))
        .collect();
    ensure!(!plan.spec.truncated && !left.is_empty(), "{plan:#?}");

    let snapshots: Api<Snapshot> = Api::namespaced(client, "shop");
    let result = snapshots
        .get(&status.result_snapshot.context("a result snapshot")?.name)
        .await?;
    let (then, now) = (entries(&installed, &good).await?, entries(&installed, &result).await?);
    let differ: BTreeSet<String> = then
        .keys()
        .chain(now.keys())
        .filter(|id| then.get(*id) != now.get(*id))
        .map(|id| format!("{}/{}", id.kind, id.name))
        .collect();
    ensure!(
        differ == left,
        "differs but was not listed: {:?}\nlisted but does not differ: {:?}\n{:#?}",
        differ.difference(&left).collect::<Vec<_>>(),
        left.difference(&differ).collect::<Vec<_>>(),
        plan.spec.items
    );
    // The owner of the release goes on as if nothing had happened.
    helm(&installed, "upgrade", "next").await?;
    installed.cluster.stop().await
}
