//! Rollbacks from the request to the end: what is reached, in which order, what is left alone, and the way back.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use backstep::{
    api::{RollbackRequestStatus, Snapshot, rollback_request::RollbackPhase},
    domain::{
        health::{Health, health},
        object::ObjectId,
    },
};
use kube::Api;
use serde_json::{Value, json};
use testbed::{Audit, ClusterOptions, User, wait_until};

use crate::{
    support::{Installed, PATIENCE, Store},
    team::{alice, approve, ask, given, said, until},
};

const OPERATOR: &str = "system:serviceaccount:backstep-system:backstep";

async fn kubectl(installed: &Installed, arguments: &[&str]) -> Result<String> {
    let ran = installed.cluster.kubectl(&User::admin(), arguments, None).await?;
    Ok(ran.success()?.stdout)
}

async fn get(installed: &Installed, namespace: &str, kind: &str, name: &str) -> Result<Value> {
    let arguments = [
        "get",
        kind,
        name,
        "-n",
        namespace,
        "-o",
        "json",
        "--show-managed-fields",
    ];
    installed
        .cluster
        .kubectl(&User::admin(), &arguments, None)
        .await?
        .json()
}

pub fn config_map(namespace: &str, name: &str, data: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data})
        .to_string()
}

/// Only what is meant to fail is late soon: a busy machine is no bad release.
pub fn deployment(namespace: &str, name: &str, image: &str, annotations: &Value, reads: Option<&str>) -> String {
    let fails = annotations.get("testbed.backstep.dev/fail").is_some();
    let deadline = if fails { 5 } else { 600 };
    let from = reads.map_or_else(|| json!([]), |name| json!([{"configMapRef": {"name": name}}]));
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": name}}, "progressDeadlineSeconds": deadline, "template": {
            "metadata": {"labels": {"app": name}, "annotations": annotations},
            "spec": {"containers": [{"name": "app", "image": image, "envFrom": from}]}}},
    })
    .to_string()
}

pub async fn apply(installed: &Installed, manifests: &[String]) -> Result<()> {
    installed
        .apply(&alice(), &manifests.join("\n---\n"))
        .await?
        .success()
        .map(drop)
}

/// `kubectl rollout status` gives up on what a Deployment still says of the release before.
pub async fn rolled_out(installed: &Installed, namespace: &str, name: &str) -> Result<()> {
    let id = ObjectId::new("apps", "Deployment", name);
    wait_until(
        PATIENCE,
        &format!("deployment {namespace}/{name} to be rolled out"),
        async || match health(&id, &get(installed, namespace, "deployment", name).await?) {
            Health::Current => Ok(Some(())),
            other => bail!("{other:?}"),
        },
    )
    .await
}

/// Asks as alice, approves as bob.
pub async fn go(installed: &Installed, namespace: &str, name: &str, spec: &Value) -> Result<()> {
    ask(installed, namespace, name, spec).await?;
    let what = format!("rollbackrequest {namespace}/{name} to wait for approval");
    until(installed, namespace, name, &what, |status| {
        status.phase == Some(RollbackPhase::AwaitingApproval)
    })
    .await?;
    approve(installed, namespace, name).await
}

pub async fn ended(
    installed: &Installed,
    namespace: &str,
    name: &str,
    phase: RollbackPhase,
) -> Result<RollbackRequestStatus> {
    let what = format!("rollbackrequest {namespace}/{name} to end");
    let status = until(installed, namespace, name, &what, |status| {
        status.completed_at.is_some()
    })
    .await?;
    ensure!(
        status.phase == Some(phase),
        "{}\n{status:#?}\n{}",
        said(&status),
        installed.log_tail()
    );
    Ok(status)
}

async fn snapshot(installed: &Installed, namespace: &str, name: &str) -> Result<Snapshot> {
    let api: Api<Snapshot> = Api::namespaced(installed.admin().await?, namespace);
    Ok(api.get(name).await?)
}

/// Successful writes of the operator to objects of the namespace that are not Backstep's own: resource and name, with the verbs.
fn written(installed: &Installed, namespace: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut writes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in installed.cluster.audit_events()? {
        let Some(object) = &event.object_ref else { continue };
        let theirs = object.namespace == namespace
            && !["backstep.dev", "events.k8s.io", "coordination.k8s.io"].contains(&object.api_group.as_str());
        let changes = ["create", "update", "patch", "delete"].contains(&event.verb.as_str());
        let stored = event.code().is_some_and(|code| code < 300) && !event.request_uri.contains("dryRun=All");
        if theirs && changes && stored && event.user.username == OPERATOR {
            let name = if object.name.is_empty() {
                let body = event.response_object.as_ref().or(event.request_object.as_ref());
                body.and_then(|body| body["metadata"]["name"].as_str())
                    .unwrap_or_default()
                    .to_owned()
            } else {
                object.name.clone()
            };
            writes
                .entry(format!("{}/{name}", object.resource))
                .or_default()
                .push(event.verb);
        }
    }
    Ok(writes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_rollback_reaches_the_digest_of_its_target_and_touches_nothing_else() -> Result<()> {
    let options = ClusterOptions {
        audit: Audit::RequestResponse,
        ..ClusterOptions::named("rollback-full")
    };
    let installed = Installed::start_with(options, Store::Directory, &[]).await?;
    given(&installed, "shop").await?;
    let mut release: Vec<String> = (0..20)
        .map(|n| config_map("shop", &format!("same-{n:02}"), &json!({"a": "1"})))
        .collect();
    release.extend([
        config_map("shop", "web", &json!({"mode": "v1"})),
        config_map("shop", "gone", &json!({"x": "1"})),
        deployment("shop", "web", "registry.example/web:1", &json!({}), None),
        deployment("shop", "reader", "registry.example/reader:1", &json!({}), Some("web")),
        deployment("shop", "idle", "registry.example/idle:1", &json!({}), None),
    ]);
    apply(&installed, &release).await?;
    for name in ["web", "reader", "idle"] {
        rolled_out(&installed, "shop", name).await?;
    }
    let good = installed
        .snapshot("shop", "good", &json!({"lineage": "shop"}))
        .await?
        .status
        .context("a status")?;

    apply(
        &installed,
        &[
            config_map("shop", "web", &json!({"mode": "v2", "extra": "1"})),
            config_map("shop", "new", &json!({"y": "1"})),
            deployment("shop", "web", "registry.example/web:2", &json!({}), None),
        ],
    )
    .await?;
    kubectl(&installed, &["delete", "configmap", "gone", "-n", "shop"]).await?;
    rolled_out(&installed, "shop", "web").await?;
    let before = get(&installed, "shop", "deployment", "reader").await?;

    let spec = json!({"target": {"snapshot": "good"}, "prune": "Created"});
    go(&installed, "shop", "back", &spec).await?;
    let status = ended(&installed, "shop", "back", RollbackPhase::Completed).await?;

    let result = status.result_snapshot.clone().context("a result snapshot")?;
    let result = snapshot(&installed, "shop", &result.name)
        .await?
        .status
        .context("a status")?;
    ensure!(
        result.digest == good.digest,
        "{:?} is not {:?}",
        result.digest,
        good.digest
    );
    ensure!(
        result.parent.as_ref().map(|parent| parent.version) == good.version,
        "the result descends from {:?}, not from the target {:?}",
        result.parent,
        good.version
    );
    let safety = status.safety_snapshot.clone().context("a safety snapshot")?;
    let safety = snapshot(&installed, "shop", &safety.name).await?;
    ensure!(
        safety
            .spec
            .on_behalf_of
            .as_ref()
            .is_some_and(|by| by.username == "alice"),
        "{:?}",
        safety.spec
    );
    let items = status.items.clone().context("items")?;
    ensure!((items.failed, items.untouched) == (0, 0), "{items:?}");
    let names: Vec<&str> = status.steps.iter().map(|step| step.name.as_str()).collect();
    ensure!(
        names
            == [
                "TakeSafetySnapshot",
                "WriteConfiguration",
                "WriteWorkloads",
                "RestartConsumers",
                "WaitForHealth",
                "CompareImages",
                "Prune",
                "WaitForHealthAgain",
                "TakeResultSnapshot"
            ],
        "{names:?}"
    );
    ensure!(
        status.steps.iter().all(|step| format!("{:?}", step.state) == "Done"),
        "{:?}",
        status.steps
    );

    let writes = written(&installed, "shop")?;
    let wanted: BTreeMap<String, usize> = [
        ("configmaps/web", 1),
        ("configmaps/gone", 1),
        ("configmaps/new", 1),
        ("deployments/web", 1),
        ("deployments/reader", 1),
    ]
    .map(|(name, count)| (name.to_owned(), count))
    .into();
    let counted: BTreeMap<String, usize> = writes.iter().map(|(name, verbs)| (name.clone(), verbs.len())).collect();
    ensure!(counted == wanted, "{writes:#?}");
    // The consumer of the ConfigMap runs again, with a new Pod.
    let reader = get(&installed, "shop", "deployment", "reader").await?;
    ensure!(
        reader["metadata"]["generation"] != before["metadata"]["generation"],
        "{reader:#}"
    );
    // The owner applies again as if nothing had happened.
    let again = installed
        .apply(&alice(), &config_map("shop", "web", &json!({"mode": "v1"})))
        .await?
        .success()?;
    ensure!(again.stdout.contains("unchanged"), "{again}");

    // Nothing to do: proven without a write.
    ask(&installed, "shop", "again", &spec).await?;
    ended(&installed, "shop", "again", RollbackPhase::Completed).await?;
    ensure!(
        written(&installed, "shop")? == writes,
        "{:#?}",
        written(&installed, "shop")?
    );
    Ok(())
}

/// Live objects without what only time and controllers write.
pub async fn contents(installed: &Installed, namespace: &str) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for kind in ["configmaps", "secrets", "deployments"] {
        let list: Value = installed
            .cluster
            .kubectl(&User::admin(), &["get", kind, "-n", namespace, "-o", "json"], None)
            .await?
            .json()?;
        for object in list["items"].as_array().into_iter().flatten() {
            let name = format!("{kind}/{}", object["metadata"]["name"].as_str().unwrap_or_default());
            let mut spec = object["spec"].clone();
            if let Some(annotations) = spec
                .pointer_mut("/template/metadata/annotations")
                .and_then(Value::as_object_mut)
            {
                annotations.remove("kubectl.kubernetes.io/restartedAt");
            }
            if spec.pointer("/template/metadata/annotations") == Some(&json!({}))
                && let Some(metadata) = spec.pointer_mut("/template/metadata").and_then(Value::as_object_mut)
            {
                metadata.remove("annotations");
            }
            let kept = json!({"labels": object["metadata"]["labels"], "data": object["data"], "spec": spec});
            found.insert(name, kept);
        }
    }
    Ok(found)
}

/// A release whose Deployment never gets ready, captured as `bad`; and a good one after it, with other objects.
async fn bad_then_good(installed: &Installed, namespace: &str) -> Result<BTreeMap<String, Value>> {
    given(installed, namespace).await?;
    let fails = json!({"testbed.backstep.dev/fail": "ImagePullBackOff"});
    let bad = [
        config_map(namespace, "web", &json!({"mode": "bad"})),
        config_map(namespace, "back", &json!({"x": "1"})),
        deployment(namespace, "web", "registry.example/web:bad", &fails, None),
        deployment(
            namespace,
            "reader",
            "registry.example/reader:1",
            &json!({}),
            Some("web"),
        ),
    ];
    apply(installed, &bad).await?;
    rolled_out(installed, namespace, "reader").await?;
    installed
        .snapshot(namespace, "bad", &json!({"lineage": "shop"}))
        .await?;
    kubectl(installed, &["delete", "configmap", "back", "-n", namespace]).await?;
    let good = [
        config_map(namespace, "web", &json!({"mode": "good"})),
        config_map(namespace, "added", &json!({"y": "1"})),
        deployment(namespace, "web", "registry.example/web:good", &json!({}), None),
    ];
    apply(installed, &good).await?;
    rolled_out(installed, namespace, "web").await?;
    contents(installed, namespace).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_does_not_become_healthy_does_what_on_failure_says() -> Result<()> {
    let installed = Installed::start_with(ClusterOptions::named("rollback-fails"), Store::Directory, &[]).await?;

    let before = bad_then_good(&installed, "undo").await?;
    let spec = json!({"target": {"snapshot": "bad"}, "prune": "Created", "onFailure": "Undo"});
    go(&installed, "undo", "back", &spec).await?;
    let status = ended(&installed, "undo", "back", RollbackPhase::Undone).await?;
    ensure!(said(&status).contains("RolloutFailed"), "{}", said(&status));
    ensure!(said(&status).contains("ProgressDeadlineExceeded"), "{}", said(&status));
    let after = contents(&installed, "undo").await?;
    ensure!(after == before, "before {before:#?}\nafter {after:#?}");
    let healthy = status.steps.iter().find(|step| step.name == "WaitForHealthAfterUndo");
    ensure!(
        healthy.is_some_and(|step| format!("{:?}", step.state) == "Done"),
        "{:?}",
        status.steps
    );
    // What was restarted on the way there has to read again what is there now.
    let pods = kubectl(
        &installed,
        &["get", "pods", "-n", "undo", "-l", "app=reader", "-o", "name"],
    )
    .await?;
    ensure!(!pods.is_empty(), "no pods");

    let before = bad_then_good(&installed, "stop").await?;
    let spec = json!({"target": {"snapshot": "bad"}, "prune": "Created", "onFailure": "Stop"});
    go(&installed, "stop", "back", &spec).await?;
    let status = ended(&installed, "stop", "back", RollbackPhase::Failed).await?;
    let items = status.items.clone().context("items")?;
    ensure!(items.untouched == 1, "only the prune is left: {items:?}");
    let after = contents(&installed, "stop").await?;
    ensure!(after.contains_key("configmaps/added") && after != before, "{after:#?}");

    bad_then_good(&installed, "continue").await?;
    let spec = json!({"target": {"snapshot": "bad"}, "prune": "Created", "onFailure": "Continue"});
    go(&installed, "continue", "back", &spec).await?;
    let status = ended(&installed, "continue", "back", RollbackPhase::Partial).await?;
    let items = status.items.clone().context("items")?;
    ensure!(items.untouched == 0 && items.failed >= 1, "{items:?}");
    let after = contents(&installed, "continue").await?;
    ensure!(!after.contains_key("configmaps/added"), "{after:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_of_which_nothing_moves_has_failed_though_nobody_says_so() -> Result<()> {
    let options = ClusterOptions {
        with_controller_manager: false,
        ..ClusterOptions::named("rollback-stalls")
    };
    let installed = Installed::start_with(options, Store::Directory, &[]).await?;
    given(&installed, "shop").await?;
    // Nobody aggregates cluster roles here.
    let all = [
        "create",
        "clusterrolebinding",
        "all",
        "--clusterrole=cluster-admin",
        "--user=alice",
        "--user=bob",
    ];
    kubectl(&installed, &all).await?;
    let fails = json!({"testbed.backstep.dev/fail": "ImagePullBackOff"});
    let web = |image: &str| [deployment("shop", "web", image, &fails, None)];
    apply(&installed, &web("registry.example/web:1")).await?;
    installed.snapshot("shop", "old", &json!({"lineage": "shop"})).await?;
    apply(&installed, &web("registry.example/web:2")).await?;
    let spec = json!({"target": {"snapshot": "old"}, "onFailure": "Stop"});
    go(&installed, "shop", "back", &spec).await?;
    let status = ended(&installed, "shop", "back", RollbackPhase::Failed).await?;
    ensure!(said(&status).contains("RolloutFailed"), "{}", said(&status));
    ensure!(said(&status).contains("nothing of it moved"), "{}", said(&status));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_is_cancelled_while_it_waits_goes_back() -> Result<()> {
    let installed = Installed::start_with(ClusterOptions::named("rollback-cancel"), Store::Directory, &[]).await?;
    given(&installed, "shop").await?;
    let slow = json!({"testbed.backstep.dev/ready-after": "3600"});
    let release = |mode: &str, annotations: &Value| {
        [
            config_map("shop", "web", &json!({"mode": mode})),
            deployment(
                "shop",
                "web",
                &format!("registry.example/web:{mode}"),
                annotations,
                None,
            ),
        ]
    };
    apply(&installed, &release("slow", &slow)).await?;
    installed.snapshot("shop", "slow", &json!({"lineage": "shop"})).await?;
    apply(&installed, &release("good", &json!({}))).await?;
    rolled_out(&installed, "shop", "web").await?;
    let before = contents(&installed, "shop").await?;
    go(&installed, "shop", "back", &json!({"target": {"snapshot": "slow"}})).await?;
    until(
        &installed,
        "shop",
        "back",
        "the rollback to wait for health",
        |status| {
            let step = status.steps.iter().find(|step| step.name == "WaitForHealth");
            step.is_some_and(|step| format!("{:?}", step.state) == "Running")
        },
    )
    .await?;
    let patch = [
        "patch",
        "rollbackrequest",
        "back",
        "-n",
        "shop",
        "--type=merge",
        "-p",
        r#"{"spec":{"cancel":true}}"#,
    ];
    installed.cluster.kubectl(&alice(), &patch, None).await?.success()?;
    let status = ended(&installed, "shop", "back", RollbackPhase::Undone).await?;
    ensure!(said(&status).contains("Cancelled"), "{}", said(&status));
    // Who cancels does not wait for more.
    let healthy = status.steps.iter().find(|step| step.name == "WaitForHealthAfterUndo");
    ensure!(
        healthy.is_some_and(|step| format!("{:?}", step.state) == "Skipped"),
        "{:?}",
        status.steps
    );
    let after = contents(&installed, "shop").await?;
    ensure!(after == before, "before {before:#?}\nafter {after:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_runs_again_although_its_tag_has_moved() -> Result<()> {
    let installed = Installed::start_with(ClusterOptions::named("rollback-images"), Store::Directory, &[]).await?;
    for namespace in ["pinned", "reported"] {
        given(&installed, namespace).await?;
        apply(
            &installed,
            &[deployment(namespace, "web", "registry.example/web:1", &json!({}), None)],
        )
        .await?;
        rolled_out(&installed, namespace, "web").await?;
        let good = installed
            .snapshot(namespace, "good", &json!({"lineage": "shop"}))
            .await?;
        let captured = good.status.context("a status")?.images[0]
            .digest
            .clone()
            .context("a digest")?;
        apply(
            &installed,
            &[deployment(namespace, "web", "registry.example/web:2", &json!({}), None)],
        )
        .await?;
        rolled_out(&installed, namespace, "web").await?;
        let moved = format!("sha256:{}", "ab".repeat(32));
        installed.cluster.move_tag("registry.example/web:1", &moved)?;
        let images = if namespace == "pinned" { "Auto" } else { "AsCaptured" };
        go(
            &installed,
            namespace,
            "back",
            &json!({"target": {"snapshot": "good"}, "images": images}),
        )
        .await?;
        let status = ended(&installed, namespace, "back", RollbackPhase::Completed).await?;
        let web = get(&installed, namespace, "deployment", "web").await?;
        let image = web["spec"]["template"]["spec"]["containers"][0]["image"]
            .as_str()
            .unwrap_or_default();
        if namespace == "pinned" {
            ensure!(image == format!("registry.example/web:1@{captured}"), "{image}");
            ensure!(said(&status).contains("pinned"), "{}", said(&status));
            ensure!(
                web["metadata"]["managedFields"].to_string().contains("\"backstep\""),
                "{web:#}"
            );
        } else {
            ensure!(image == "registry.example/web:1", "{image}");
            ensure!(said(&status).contains("its tag has moved"), "{}", said(&status));
        }
        installed.cluster.move_tag("registry.example/web:1", &captured)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_is_killed_while_it_waits_goes_on_and_repeats_no_write() -> Result<()> {
    let options = ClusterOptions {
        audit: Audit::RequestResponse,
        ..ClusterOptions::named("rollback-crash")
    };
    let mut installed = Installed::start_with(options, Store::Directory, &[]).await?;
    given(&installed, "shop").await?;
    let slow = json!({"testbed.backstep.dev/ready-after": "8"});
    let release = |mode: &str, annotations: &Value| {
        let mut all: Vec<String> = (0..40)
            .map(|n| config_map("shop", &format!("c{n:02}"), &json!({"mode": mode})))
            .collect();
        all.push(deployment(
            "shop",
            "web",
            &format!("registry.example/web:{mode}"),
            annotations,
            None,
        ));
        all.push(deployment(
            "shop",
            "reader",
            "registry.example/reader:1",
            &json!({}),
            Some("c00"),
        ));
        all
    };
    apply(&installed, &release("old", &slow)).await?;
    for name in ["web", "reader"] {
        rolled_out(&installed, "shop", name).await?;
    }
    let good = installed.snapshot("shop", "good", &json!({"lineage": "shop"})).await?;
    apply(&installed, &release("new", &json!({}))).await?;
    rolled_out(&installed, "shop", "web").await?;
    go(&installed, "shop", "back", &json!({"target": {"snapshot": "good"}})).await?;
    until(
        &installed,
        "shop",
        "back",
        "the rollback to wait for health",
        |status| {
            let step = status.steps.iter().find(|step| step.name == "WaitForHealth");
            step.is_some_and(|step| format!("{:?}", step.state) == "Running")
        },
    )
    .await?;
    installed.kill_operator();
    let writes = written(&installed, "shop")?;
    installed.start_operator().await?;
    let status = ended(&installed, "shop", "back", RollbackPhase::Completed).await?;
    let after = written(&installed, "shop")?;
    ensure!(after == writes, "before {writes:#?}\nafter {after:#?}");
    ensure!(
        after.len() == 42 && after.values().all(|verbs| verbs.len() == 1),
        "{after:#?}"
    );
    let result = status.result_snapshot.context("a result snapshot")?;
    let result = snapshot(&installed, "shop", &result.name).await?;
    ensure!(
        result.status.and_then(|status| status.digest) == good.status.and_then(|status| status.digest),
        "another digest than the target's"
    );
    let api: Api<Snapshot> = Api::namespaced(installed.admin().await?, "shop");
    let safety = api.list(&kube::api::ListParams::default()).await?;
    let safety: Vec<_> = safety.iter().filter(|snapshot| snapshot.spec.is_safety()).collect();
    ensure!(safety.len() == 1, "{} safety snapshots", safety.len());
    wait_until(PATIENCE, "the Lease of the target to be let go", async || {
        let leases = kubectl(&installed, &["get", "leases", "-n", "backstep-system", "-o", "json"]).await?;
        let leases: Value = serde_json::from_str(&leases)?;
        let held = leases["items"].as_array().into_iter().flatten().any(|lease| {
            let name = lease["metadata"]["name"].as_str().unwrap_or_default();
            name.starts_with("backstep-target-")
                && !lease["spec"]["holderIdentity"].as_str().unwrap_or_default().is_empty()
        });
        Ok::<_, anyhow::Error>((!held).then_some(()))
    })
    .await
}
