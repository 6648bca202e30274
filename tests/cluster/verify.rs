//! What a rollback is held against: tests of the request, which Jobs had finished, which snapshots stay while they are needed, and
//! which snapshot a target means.

use anyhow::{Context as _, Result, bail, ensure};
use backstep::api::{RollbackRequest, Snapshot};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use testbed::{User, wait_until};

use crate::support::{Installed, PATIENCE, Store};

/// In no status, event or log, ever.
const CANARY: &str = "canary-verify-9b2e";

fn alice() -> User {
    User::new("alice", ["shop-team"])
}

fn mallory() -> User {
    User::new("mallory", ["outsiders"])
}

/// alice may do everything in the namespace; mallory may only ask.
async fn shop(installed: &Installed) -> Result<()> {
    let manifest = format!(
        r"
apiVersion: v1
kind: Namespace
metadata: {{name: shop}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: team, namespace: shop}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}}
subjects: [{{kind: User, apiGroup: rbac.authorization.k8s.io, name: alice}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: asker, namespace: shop}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: backstep-requester}}
subjects: [{{kind: User, apiGroup: rbac.authorization.k8s.io, name: mallory}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: web, namespace: shop}}
data: {{mode: v1, note: {CANARY}}}
"
    );
    installed.given(&manifest).await
}

async fn kubectl(installed: &Installed, arguments: &[&str]) -> Result<String> {
    let ran = installed.cluster.kubectl(&User::admin(), arguments, None).await?;
    ran.success().map(|ran| ran.stdout.clone())
}

async fn mode(installed: &Installed, mode: &str) -> Result<()> {
    let patch = json!({"data": {"mode": mode}}).to_string();
    let arguments = ["patch", "configmap", "web", "-n", "shop", "--type=merge", "-p", &patch];
    kubectl(installed, &arguments).await.map(drop)
}

async fn ask(installed: &Installed, user: &User, name: &str, spec: &Value) -> Result<()> {
    let manifest = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest",
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
    });
    installed.apply(user, &manifest.to_string()).await?.success().map(drop)
}

async fn requests(installed: &Installed) -> Result<Api<RollbackRequest>> {
    Ok(Api::namespaced(installed.admin().await?, "shop"))
}

/// Waits until the request is at its end, and gives its status.
async fn ended(installed: &Installed, name: &str) -> Result<Value> {
    let api = requests(installed).await?;
    let ended = wait_until(PATIENCE, &format!("rollbackrequest {name} to end"), async || {
        let status = serde_json::to_value(api.get(name).await.map_err(|e| e.to_string())?.status).unwrap_or_default();
        match status["phase"].as_str() {
            None | Some("Pending" | "Planning" | "AwaitingApproval" | "Executing" | "Verifying") => {
                Err(status.to_string())
            }
            Some(_) => Ok(Some(status)),
        }
    })
    .await;
    ended.with_context(|| installed.log())
}

async fn planned(
    installed: &Installed,
    user: &User,
    name: &str,
    target: &Value,
    verify: Option<&Value>,
) -> Result<Value> {
    let mut spec = json!({"dryRun": true, "target": target});
    if let Some(verify) = verify {
        spec["verify"] = verify.clone();
    }
    ask(installed, user, name, &spec).await?;
    ended(installed, name).await
}

fn said(status: &Value) -> String {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions
        .iter()
        .find(|c| c["type"] == "Ready")
        .cloned()
        .unwrap_or_default();
    let text = |field: &str| ready[field].as_str().unwrap_or_default().to_owned();
    format!("{} {}", text("reason"), text("message"))
}

async fn items(installed: &Installed, status: &Value) -> Result<Vec<Value>> {
    let name = status["plan"]["name"]
        .as_str()
        .with_context(|| format!("a plan in {status}"))?;
    let arguments = ["get", "rollbackplan", name, "-n", "shop", "-o", "json"];
    let plan: Value = serde_json::from_str(&kubectl(installed, &arguments).await?)?;
    Ok(plan["spec"]["items"].as_array().cloned().unwrap_or_default())
}

/// A Job that runs until it is told otherwise, or one that ends at once.
fn job(name: &str, keeps_running: bool) -> Value {
    let annotations = if keeps_running {
        json!({"testbed.backstep.dev/keep-running": "true"})
    } else {
        json!({})
    };
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"template": {
            "metadata": {"annotations": annotations},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "registry.example/migrate:1"}]},
        }},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_under_way_comes_back_and_a_finished_one_does_not_run_again() -> Result<()> {
    let installed = Installed::start("verifyjobs", Store::Secrets).await?;
    shop(&installed).await?;
    for (name, keeps_running) in [("running", true), ("finished", false)] {
        installed.given(&job(name, keeps_running).to_string()).await?;
    }
    kubectl(
        &installed,
        &[
            "wait",
            "job/finished",
            "-n",
            "shop",
            "--for=condition=complete",
            "--timeout=60s",
        ],
    )
    .await?;
    wait_until(PATIENCE, "the other Job to run", async || {
        let active = kubectl(
            &installed,
            &["get", "job", "running", "-n", "shop", "-o", "jsonpath={.status.active}"],
        )
        .await?;
        if active == "1" {
            Ok(Some(()))
        } else {
            bail!("active: {active:?}")
        }
    })
    .await?;
    installed.snapshot("shop", "first", &json!({})).await?;
    // The second one is built upon the first: what did not change is not read again, and says the same.
    let second = installed.snapshot("shop", "second", &json!({})).await?;
    ensure!(
        second.status.as_ref().and_then(|s| s.version) == Some(2),
        "{:?}",
        second.status
    );
    kubectl(
        &installed,
        &[
            "delete",
            "job",
            "running",
            "finished",
            "-n",
            "shop",
            "--wait=true",
            "--cascade=foreground",
        ],
    )
    .await?;

    for snapshot in ["first", "second"] {
        let status = planned(
            &installed,
            &alice(),
            &format!("to-{snapshot}"),
            &json!({"snapshot": snapshot}),
            None,
        )
        .await?;
        let items = items(&installed, &status).await?;
        let of = |name: &str| {
            let item = items
                .iter()
                .find(|i| i["object"]["kind"] == "Job" && i["object"]["name"] == name);
            item.map(|i| {
                format!(
                    "{} {}",
                    i["action"].as_str().unwrap_or_default(),
                    i["reason"].as_str().unwrap_or_default()
                )
            })
        };
        ensure!(
            of("running").as_deref() == Some("Create "),
            "{snapshot}: {:?} of {items:#?}",
            of("running")
        );
        ensure!(
            of("finished").as_deref() == Some("Skip FinishedJob"),
            "{snapshot}: {:?} of {items:#?}",
            of("finished")
        );
    }
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_a_rollback_under_way_needs_neither_expires_nor_loses_its_contents() -> Result<()> {
    let often = ["--maintenance-interval", "1s", "--vanished-grace", "1s"];
    let options = testbed::ClusterOptions::named("verifyheld");
    let installed = Installed::start_with(options, Store::Directory, &often).await?;
    shop(&installed).await?;
    installed.snapshot("shop", "needed", &json!({"ttl": "20s"})).await?;
    installed.snapshot("shop", "deleted", &json!({})).await?;
    mode(&installed, "v2").await?;
    // Both have something to do, so they wait, their target resolved.
    for (request, target) in [("waits", "needed"), ("waits-too", "deleted")] {
        let spec = json!({"target": {"snapshot": target}, "suspend": true});
        ask(&installed, &alice(), request, &spec).await?;
        resolved(&installed, request).await?;
    }
    // Taken later with a shorter life: once it is gone, the other's time is over as well.
    let until = |snapshot: &Snapshot| snapshot.status.as_ref().and_then(|s| s.expires_at.clone()).map(|t| t.0);
    let api: Api<Snapshot> = Api::namespaced(installed.admin().await?, "shop");
    let sibling = installed.snapshot("shop", "sibling", &json!({"ttl": "20s"})).await?;
    ensure!(
        until(&api.get("needed").await?) <= until(&sibling),
        "the one that is needed expires first"
    );
    installed.snapshot("shop", "last", &json!({})).await?;
    phase(&api, "sibling", "Expired")
        .await
        .with_context(|| installed.log())?;
    let held = api.get("needed").await?.status.context("a status")?;
    ensure!(format!("{:?}", held.phase) == "Some(Ready)", "{:?}", held.phase);

    // Deleted by hand: the contents stay for the rollback, sweep after sweep, while those of one that nobody needs are let go.
    let before = stored(&installed).await?;
    kubectl(&installed, &["delete", "snapshot", "deleted", "-n", "shop"]).await?;
    for name in ["free", "free-too"] {
        installed.snapshot("shop", name, &json!({})).await?;
        kubectl(&installed, &["delete", "snapshot", name, "-n", "shop"]).await?;
        holds(&installed, before).await?;
    }
    let requests = requests(&installed).await?;
    let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
    requests.patch("waits-too", &PatchParams::default(), &cancel).await?;
    holds(&installed, before - 1).await?;
    requests.patch("waits", &PatchParams::default(), &cancel).await?;
    phase(&api, "needed", "Expired")
        .await
        .with_context(|| installed.log())?;
    installed.cluster.stop().await
}

/// Waits until the target of the request is resolved.
async fn resolved(installed: &Installed, name: &str) -> Result<()> {
    let api = requests(installed).await?;
    wait_until(PATIENCE, &format!("the target of {name} to be resolved"), async || {
        let status = api.get(name).await.map_err(|e| e.to_string())?.status;
        let known = status.as_ref().is_some_and(|s| s.resolved.is_some());
        if known {
            Ok(Some(()))
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await
}

/// Waits until so many snapshots are stored.
async fn holds(installed: &Installed, wanted: u64) -> Result<()> {
    wait_until(PATIENCE, &format!("{wanted} snapshots to be stored"), async || {
        let now = stored(installed).await?;
        if now == wanted {
            Ok(Some(()))
        } else {
            bail!("{now} are stored")
        }
    })
    .await
    .with_context(|| installed.log())
}

/// Snapshots whose contents are stored.
async fn stored(installed: &Installed) -> Result<u64> {
    let metrics = crate::snapshots::get(&installed.operator()?.admin().await?, "/metrics")?;
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("backstep_repository_snapshots "));
    Ok(line.context("the metric")?.trim().parse()?)
}

async fn phase(api: &Api<Snapshot>, name: &str, wanted: &str) -> Result<()> {
    wait_until(PATIENCE, &format!("snapshot {name} to be {wanted}"), async || {
        let status = api.get(name).await.map_err(|e| e.to_string())?.status;
        let phase = status.as_ref().and_then(|s| s.phase).map(|p| format!("{p:?}"));
        if phase.as_deref() == Some(wanted) {
            Ok(Some(()))
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_by_version_tag_time_and_lineage_means_the_snapshot_that_it_says() -> Result<()> {
    let installed = Installed::start("verifytarget", Store::Directory).await?;
    shop(&installed).await?;
    let one = installed
        .snapshot("shop", "one", &json!({"lineage": "shop", "tags": ["stable"]}))
        .await?;
    mode(&installed, "v2").await?;
    let two = installed.snapshot("shop", "two", &json!({"lineage": "shop"})).await?;
    installed
        .snapshot("shop", "other", &json!({"tags": ["stable"]}))
        .await?;
    let started = |snapshot: &Snapshot| snapshot.status.as_ref().and_then(|s| s.started_at.clone()).map(|t| t.0);
    let (first, second) = (started(&one).context("a start")?, started(&two).context("a start")?);
    ensure!(first <= second, "{first} {second}");

    let lineage = |extra: Value| {
        let mut target = json!({"lineage": "shop"});
        if let (Some(to), Some(from)) = (target.as_object_mut(), extra.as_object()) {
            to.extend(from.clone());
        }
        target
    };
    for (name, target, expected) in [
        ("version", lineage(json!({"version": 1})), "one"),
        ("tag", lineage(json!({"tag": "stable"})), "one"),
        ("tag-of-default", json!({"tag": "stable"}), "other"),
        ("as-of-second", lineage(json!({"asOf": second.to_string()})), "two"),
        // Live equals two, whose parent is one.
        ("previous", lineage(json!({"previous": true})), "one"),
        ("version-of-default", json!({"version": 1}), "other"),
    ] {
        let status = planned(&installed, &alice(), name, &target, None).await?;
        ensure!(status["resolved"]["name"] == expected, "{name}: {status:#}");
    }
    // Live is no version any more: the newest is the one to go back to.
    mode(&installed, "v3").await?;
    let status = planned(
        &installed,
        &alice(),
        "previous-of-nothing",
        &lineage(json!({"previous": true})),
        None,
    )
    .await?;
    ensure!(status["resolved"]["name"] == "two", "{status:#}");

    kubectl(
        &installed,
        &["label", "snapshot", "two", "-n", "shop", "tag.backstep.dev/stable="],
    )
    .await?;
    for (name, target, reason) in [
        ("ambiguous", lineage(json!({"tag": "stable"})), "TargetAmbiguous"),
        (
            "before-all",
            lineage(json!({"asOf": "2001-01-01T00:00:00Z"})),
            "TargetNotFound",
        ),
        (
            "no-lineage",
            json!({"lineage": "nowhere", "previous": true}),
            "TargetNotFound",
        ),
    ] {
        let status = planned(&installed, &alice(), name, &target, None).await?;
        ensure!(
            status["phase"] == "Failed" && said(&status).starts_with(reason),
            "{name}: {}",
            said(&status)
        );
    }
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn tests_that_cannot_work_or_read_what_the_requester_may_not_are_refused_with_the_plan() -> Result<()> {
    let installed = Installed::start("verifyplans", Store::Secrets).await?;
    shop(&installed).await?;
    installed.snapshot("shop", "good", &json!({})).await?;
    let good = json!({"snapshot": "good"});
    let web = json!({"kind": "ConfigMap", "name": "web"});
    let works = json!({"tests": [
        {"name": "mode", "objectMatches": {"object": web, "expression": "object.data.mode == 'v1'"}},
        {"name": "there", "objectExists": web},
        {"name": "same", "snapshotMatches": {}},
    ]});
    let status = planned(&installed, &alice(), "works", &good, Some(&works)).await?;
    ensure!(status["phase"] == "Planned", "{}", said(&status));

    let broken = json!({"tests": [
        {"name": "mode", "objectMatches": {"object": web, "expression": "data.mode == 'v1'"}},
        {"name": "kind", "objectExists": {"group": "example.com", "kind": "Widget", "name": "a"}},
    ]});
    let status = planned(&installed, &alice(), "broken", &good, Some(&broken)).await?;
    for part in [
        "PreflightFailed",
        "test mode",
        "`data`",
        "test kind",
        "does not serve Widget.example.com",
    ] {
        ensure!(said(&status).contains(part), "{part} is missing in {}", said(&status));
    }
    let status = planned(&installed, &mallory(), "foreign", &good, Some(&works)).await?;
    ensure!(
        said(&status).contains("mallory may not get configmaps/web in shop, which a test reads"),
        "{}",
        said(&status)
    );
    installed.cluster.stop().await
}

/// Spec of a request to `good` with these tests; what is live equals it, so nothing has to be approved or written.
fn proven_by(tests: &Value, stabilize: &str, timeout: &str) -> Value {
    json!({
        "target": {"snapshot": "good"}, "onFailure": "Stop", "resultSnapshot": false, "safetySnapshot": false,
        "verify": {"tests": tests, "stabilize": stabilize, "timeout": timeout},
    })
}

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "app", "image": format!("registry.example/{name}:1")}]},
        }},
    })
}

/// What verification said of each test: `name: actual`.
fn results(status: &Value) -> Vec<String> {
    let rows = status["verification"]["results"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let row = |row: &Value| {
        format!(
            "{}: {}",
            row["test"].as_str().unwrap_or_default(),
            row["actual"].as_str().unwrap_or_default()
        )
    };
    rows.iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_proven_by_its_tests_and_what_cannot_be_told_is_never_a_pass() -> Result<()> {
    let installed = Installed::start("verifytests", Store::Directory).await?;
    shop(&installed).await?;
    for name in ["web", "slow"] {
        installed.given(&deployment(name).to_string()).await?;
        kubectl(
            &installed,
            &[
                "rollout",
                "status",
                &format!("deployment/{name}"),
                "-n",
                "shop",
                "--timeout=60s",
            ],
        )
        .await?;
    }
    kubectl(
        &installed,
        &[
            "create",
            "secret",
            "generic",
            "web",
            "-n",
            "shop",
            &format!("--from-literal=password={CANARY}"),
        ],
    )
    .await?;
    installed.snapshot("shop", "good", &json!({})).await?;
    let object = json!({"kind": "ConfigMap", "name": "web"});
    let matches = |name: &str, expression: &str| json!({"name": name, "objectMatches": {"object": object, "expression": expression}});

    let all = json!([
        {"name": "secret", "objectExists": {"kind": "Secret", "name": "web"}},
        matches("mode", "object.data.mode == 'v1' && !has(object.metadata.ownerReferences)"),
        {"name": "rolled-out", "rolloutStatus": {"workloads": ["Deployment/web", "Deployment/slow"]}},
        {"name": "same", "snapshotMatches": {}},
        {"name": "exactly", "snapshotMatches": {"exceptKept": false}},
    ]);
    ask(&installed, &alice(), "all", &proven_by(&all, "1s", "60s")).await?;
    let status = ended(&installed, "all").await?;
    let verification = &status["verification"];
    ensure!(
        status["phase"] == "Completed" && verification["status"] == "Passed",
        "{status:#}"
    );
    ensure!(
        verification["passed"] == 5 && verification["total"] == 5,
        "{verification:#}"
    );

    let some = json!([
        matches("mode", "object.data.mode == 'v1'"),
        matches("wrong", "object.data.note == 'nothing'"),
        matches("field", "object.data.absent == 'x'"),
        {"name": "absent", "objectExists": {"kind": "ConfigMap", "name": "nowhere"}},
        {"name": "workload", "rolloutStatus": {"workloads": ["Deployment/nowhere"]}},
        {"name": "whole", "timeout": "10s", "objectMatches": {"object": {"kind": "ConfigMap", "name": "nowhere"}, "expression": "true"}},
    ]);
    ask(&installed, &alice(), "some", &proven_by(&some, "1s", "60s")).await?;
    let status = ended(&installed, "some").await?;
    ensure!(
        status["phase"] == "Failed" && status["verification"]["status"] == "Failed",
        "{status:#}"
    );
    ensure!(
        results(&status)
            == [
                "wrong: it does not hold",
                "field: a field that it reads is absent; use has() where that is fine",
                "absent: absent",
                "workload: Deployment/nowhere is absent",
                "whole: absent",
                "mode: it holds",
            ],
        "{:#?}",
        results(&status)
    );

    // Values of different types: neither yes nor no, however long it is looked at.
    let unclear = json!([
        matches("mode", "object.data.mode == 'v1'"),
        matches("types", "object.data.note > 3")
    ]);
    ask(&installed, &alice(), "unclear", &proven_by(&unclear, "1s", "4s")).await?;
    let status = ended(&installed, "unclear").await?;
    ensure!(
        status["phase"] == "Failed" && status["verification"]["status"] == "Inconclusive",
        "{status:#}"
    );
    ensure!(
        results(&status)[0].starts_with("types: the expression compares"),
        "{:?}",
        results(&status)
    );

    // What the request is not about may differ, but not from the whole snapshot.
    mode(&installed, "v2").await?;
    let about = json!([
        {"name": "same", "snapshotMatches": {}},
        {"name": "exactly", "snapshotMatches": {"exceptKept": false}},
    ]);
    let mut spec = proven_by(&about, "1s", "60s");
    spec["strategy"] = json!("Selective");
    spec["objects"] = json!({"include": [{"kinds": ["Secret"]}]});
    ask(&installed, &alice(), "about", &spec).await?;
    let status = ended(&installed, "about").await?;
    ensure!(
        results(&status)
            == [
                "exactly: 1 changed (ConfigMap/web)",
                "same: equal; 1 differ as the plan says"
            ],
        "{status:#}"
    );
    mode(&installed, "v1").await?;

    let seen = kubectl(
        &installed,
        &["get", "rollbackrequests,events", "-n", "shop", "-o", "json"],
    )
    .await?;
    ensure!(
        !seen.contains(CANARY) && !installed.log().contains(CANARY),
        "a value is shown"
    );
    let metrics = crate::snapshots::get(&installed.operator()?.admin().await?, "/metrics")?;
    for line in [
        "backstep_verifications_total{outcome=\"passed\"} 1",
        "backstep_verifications_total{outcome=\"failed\"} 2",
        "backstep_verifications_total{outcome=\"inconclusive\"} 1",
        "backstep_rollbacks_created_total 4",
        "backstep_rollbacks_total{outcome=\"completed\",cause=\"none\"} 1",
    ] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn tests_are_tried_again_hold_for_the_window_and_end_when_the_request_is_cancelled() -> Result<()> {
    let installed = Installed::start("verifywindow", Store::Directory).await?;
    shop(&installed).await?;
    installed.given(&deployment("web").to_string()).await?;
    kubectl(
        &installed,
        &["rollout", "status", "deployment/web", "-n", "shop", "--timeout=60s"],
    )
    .await?;
    installed.snapshot("shop", "good", &json!({})).await?;
    let pod = kubectl(
        &installed,
        &[
            "get",
            "pods",
            "-n",
            "shop",
            "-l",
            "app=web",
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ],
    )
    .await?;
    let fail = format!("{}=CrashLoopBackOff", testbed::fake_kubelet::FAIL);
    let mend = format!("{}-", testbed::fake_kubelet::FAIL);
    let ready = async |wanted: &str| {
        wait_until(PATIENCE, &format!("{wanted:?} ready replicas"), async || {
            let arguments = [
                "get",
                "deployment",
                "web",
                "-n",
                "shop",
                "-o",
                "jsonpath={.status.readyReplicas}",
            ];
            let now = kubectl(&installed, &arguments).await?;
            if now == wanted { Ok(Some(())) } else { bail!("{now:?}") }
        })
        .await
    };
    let breaks = async || -> Result<()> {
        kubectl(
            &installed,
            &["annotate", "pod", &pod, "-n", "shop", "--overwrite", &fail],
        )
        .await?;
        ready("").await
    };
    let mends = async || -> Result<()> {
        kubectl(&installed, &["annotate", "pod", &pod, "-n", "shop", &mend]).await?;
        ready("1").await
    };
    let web = json!({"group": "apps", "kind": "Deployment", "name": "web"});
    let expression = "has(object.status.readyReplicas) && object.status.readyReplicas == 1";
    let retried =
        json!([{"name": "ready", "retries": 100, "objectMatches": {"object": web, "expression": expression}}]);
    let waited = json!([{"name": "rolled-out", "timeout": "80s", "rolloutStatus": {"workloads": ["Deployment/web"]}}]);
    let verifying = async |name: &str| {
        let api = requests(&installed).await?;
        wait_until(PATIENCE, &format!("{name} to be verified"), async || {
            let status = api.get(name).await.map_err(|e| e.to_string())?.status;
            let phase = status.as_ref().and_then(|s| s.phase).map(|p| format!("{p:?}"));
            if phase.as_deref() == Some("Verifying") {
                Ok(Some(()))
            } else {
                Err(format!("{status:?}"))
            }
        })
        .await
    };

    // Not well when it is first looked at: retries and waiting see it become well.
    for (name, tests) in [("retried", &retried), ("waited", &waited)] {
        breaks().await?;
        ask(&installed, &alice(), name, &proven_by(tests, "1s", "85s")).await?;
        verifying(name).await?;
        mends().await?;
        let status = ended(&installed, name).await?;
        ensure!(status["verification"]["status"] == "Passed", "{name}: {status:#}");
    }

    // Well at first, and not any more inside the window.
    let once = json!([{"name": "ready", "objectMatches": {"object": web, "expression": expression}}]);
    ask(&installed, &alice(), "window", &proven_by(&once, "10m", "20m")).await?;
    verifying("window").await?;
    breaks().await?;
    let status = ended(&installed, "window").await?;
    ensure!(results(&status) == ["ready: it does not hold"], "{status:#}");
    mends().await?;

    // A test that does not end by itself ends with its time, and says what it saw.
    breaks().await?;
    let short = json!([{"name": "rolled-out", "timeout": "3s", "rolloutStatus": {"workloads": ["Deployment/web"]}}]);
    ask(&installed, &alice(), "late", &proven_by(&short, "1s", "60s")).await?;
    let status = ended(&installed, "late").await?;
    ensure!(
        status["verification"]["status"] == "Failed" && results(&status)[0].starts_with("rolled-out: Deployment/web: "),
        "{status:#}"
    );
    mends().await?;

    ask(&installed, &alice(), "cancelled", &proven_by(&once, "10m", "20m")).await?;
    verifying("cancelled").await?;
    let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
    requests(&installed)
        .await?
        .patch("cancelled", &PatchParams::default(), &cancel)
        .await?;
    let status = ended(&installed, "cancelled").await?;
    // Cancelled before or after the first look: withdrawn long before the window is over, and never said to have passed.
    ensure!(
        status["phase"] == "Cancelled" && status["verification"]["status"] != "Passed",
        "{status:#}"
    );
    installed.cluster.stop().await
}
