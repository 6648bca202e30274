//! A rollback from plan to record through `kubectl backstep` and through manifests, with the operator and several users.

use anyhow::{Context as _, Result, ensure};
use backstep::api::RollbackRequest;
use kube::Api;
use serde_json::{Value, json};
use testbed::{Ran, User, wait_until};

use crate::support::{Installed, PATIENCE, Store};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
/// The value of a Secret that no output may ever hold.
const CANARY: &str = "canary-cli-77d1";

fn alice() -> User {
    User::new("alice", ["shop-team"])
}

fn bob() -> User {
    User::new("bob", ["sre-leads"])
}

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web, namespace: shop, labels: {app.kubernetes.io/part-of: shop}}
data: {mode: v1}
---
apiVersion: v1
kind: Secret
metadata: {name: web, namespace: shop, labels: {app.kubernetes.io/part-of: shop}}
stringData: {password: canary-cli-77d1-old}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: flux, namespace: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: flux, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}
subjects: [{kind: ServiceAccount, name: flux, namespace: shop}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop, labels: {app.kubernetes.io/part-of: shop}}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: app, image: "registry.example/web:1", envFrom: [{configMapRef: {name: web}}, {secretRef: {name: web}}]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: team, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: alice}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: approvers, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: backstep-approver}
subjects:
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: alice}
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: bob}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: shop-approves}
rules:
  - {apiGroups: [backstep.dev], resources: [approvalstages], resourceNames: ["default:approval"], verbs: [approve]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: shop-approves}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: shop-approves}
subjects:
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: alice}
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: bob}
"#;

async fn start(name: &str) -> Result<Installed> {
    Installed::start(name, Store::Directory).await
}

/// A shop whose snapshot `good` (version 1, tag `release-1.8`) is followed by a bad release.
async fn shop(name: &str, snapshot: &str) -> Result<Installed> {
    let installed = start(name).await?;
    installed.given(SHOP).await?;
    rolled_out(&installed).await?;
    installed
        .snapshot("shop", snapshot, &json!({"lineage": "shop", "tags": ["release-1.8"]}))
        .await?;
    for arguments in [
        [
            "patch",
            "configmap",
            "web",
            "-n",
            "shop",
            "--type=merge",
            "-p",
            r#"{"data":{"mode":"v2"}}"#,
        ]
        .as_slice(),
        &[
            "patch",
            "secret",
            "web",
            "-n",
            "shop",
            "--type=merge",
            "-p",
            r#"{"stringData":{"password":"canary-cli-77d1-new"}}"#,
        ],
        &[
            "set",
            "image",
            "deployment/web",
            "app=registry.example/web:2",
            "-n",
            "shop",
        ],
        &["create", "configmap", "added", "-n", "shop", "--from-literal=a=b"],
    ] {
        installed.cluster.kubectl(&alice(), arguments, None).await?.success()?;
    }
    rolled_out(&installed).await?;
    Ok(installed)
}

async fn rolled_out(installed: &Installed) -> Result<()> {
    let rollout = ["rollout", "status", "deployment/web", "-n", "shop", "--timeout=60s"];
    installed
        .cluster
        .kubectl(&User::admin(), &rollout, None)
        .await?
        .success()?;
    Ok(())
}

async fn run(installed: &Installed, user: &User, arguments: &[&str], code: i32) -> Result<Ran> {
    let ran = installed.cli(user, &[arguments, &["-n", "shop"]].concat()).await?;
    for output in [&ran.stdout, &ran.stderr] {
        ensure!(!output.contains(CANARY), "{arguments:?} shows a Secret value: {ran}");
    }
    ensure!(
        ran.status.code() == Some(code),
        "`{}` was expected to exit with {code}: {ran}\n{}",
        ran.command,
        installed.log()
    );
    Ok(ran)
}

fn holds(ran: &Ran, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(ran.stdout.contains(part), "`{part}` is missing: {ran}");
    }
    Ok(())
}

async fn get(installed: &Installed, object: &str) -> Result<Value> {
    let arguments = ["get", object, "-n", "shop", "-o", "json", "--ignore-not-found"];
    let ran = installed
        .cluster
        .kubectl(&User::admin(), &arguments, None)
        .await?
        .success()?;
    if ran.stdout.trim().is_empty() {
        return Ok(Value::Null);
    }
    Ok(serde_json::from_str(&ran.stdout)?)
}

/// Waits until the request is in one of `phases`.
async fn reaches(installed: &Installed, name: &str, phases: &[&str]) -> Result<Value> {
    let api: Api<RollbackRequest> = Api::namespaced(installed.admin().await?, "shop");
    let reached = wait_until(
        PATIENCE,
        &format!("rollbackrequest {name} to be {phases:?}"),
        async || {
            let status =
                serde_json::to_value(api.get(name).await.map_err(|e| e.to_string())?.status).unwrap_or_default();
            let phase = status["phase"].as_str().unwrap_or_default();
            let there = phases.contains(&phase) && (phase != "AwaitingApproval" || status["approval"].is_object());
            if there {
                Ok(Some(status))
            } else {
                Err(status.to_string())
            }
        },
    )
    .await;
    reached.with_context(|| installed.log())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_shown_with_its_diffs_and_leaves_nothing_behind() -> Result<()> {
    let installed = shop("cli-plan", "good").await?;
    let shown = run(&installed, &alice(), &["plan", "good", "--prune", "created"], 0).await?;
    holds(
        &shown,
        &[
            "Back to good (version 1)",
            "Risk: ",
            "~ update ConfigMap/web",
            "-  mode: v2",
            "+  mode: v1",
            "~ update Secret/web",
            "~ update Deployment.apps/web",
            "- delete ConfigMap/added",
            "3 to update, 1 to delete",
        ],
    )?;
    let left = get(&installed, "rollbackrequests").await?;
    ensure!(left.is_null(), "{left}");

    // Each way to name the target means the same snapshot.
    for target in [
        vec!["shop@1"],
        vec!["tag:release-1.8"],
        vec!["--lineage", "shop", "--version", "1"],
        vec!["--lineage", "shop", "--tag", "release-1.8"],
        vec!["--lineage", "shop", "--previous"],
        vec!["--lineage", "shop", "--as-of", "0s"],
    ] {
        let arguments = [&["plan", "--diffs", "none", "-o", "json"], target.as_slice()].concat();
        let plan = run(&installed, &alice(), &arguments, 0).await?.json()?;
        assert_eq!(plan["spec"]["target"]["snapshot"], "good", "{target:?}");
    }
    let partial = run(
        &installed,
        &alice(),
        &["plan", "good", "-c", "configuration", "--diffs=none"],
        0,
    )
    .await?;
    holds(&partial, &["~ update ConfigMap/web"])?;
    ensure!(
        !partial.stdout.contains("mode: v1") && !partial.stdout.contains("update Deployment"),
        "{partial}"
    );
    let selective = ["plan", "good", "--include", "ConfigMap/web", "--no-cascade", "--keep"];
    let selective = run(&installed, &alice(), &selective, 0).await?;
    holds(&selective, &["1 to update"])?;
    let kept = selective
        .stderr
        .split_whitespace()
        .next()
        .context("no name")?
        .to_owned();
    let of = run(&installed, &alice(), &["plan", "--of", &kept], 0).await?;
    assert_eq!(of.stdout, selective.stdout);

    // What would not be carried out says why, and shows the plan all the same.
    let asker = r#"{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "asker", "namespace": "shop"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "backstep-requester"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "mallory"}]}"#;
    installed.given(asker).await?;
    let mallory = User::new("mallory", Vec::<String>::new());
    let refused = run(&installed, &mallory, &["plan", "good"], 9).await?;
    holds(&refused, &["FAILED ", "mallory may not"])?;
    ensure!(refused.stderr.contains("would not be carried out"), "{refused}");
    ensure!(
        !refused.stdout.contains("mode: v2"),
        "what may not be read is shown: {refused}"
    );
    let unknown = run(&installed, &alice(), &["plan", "nowhere"], 9).await?;
    ensure!(
        unknown.stdout.is_empty() && unknown.stderr.contains("TargetNotFound"),
        "{unknown}"
    );
    let nothing = run(&installed, &alice(), &["plan"], 2).await?;
    ensure!(nothing.stderr.contains("not said what to go back to"), "{nothing}");
    run(&installed, &alice(), &["plan", "--of", "nothing"], 3).await?;

    // The glass is not broken by whoever asks.
    let emergency = run(
        &installed,
        &alice(),
        &["rollback", "good", "--emergency", "it burns"],
        8,
    )
    .await?;
    ensure!(emergency.stderr.contains("needs the verb break-glass"), "{emergency}");
    let dry = [
        "rollback",
        "good",
        "--name",
        "dry",
        "--reason",
        "why",
        "--dry-run=server",
        "-o",
        "json",
    ];
    let dry = run(&installed, &alice(), &dry, 0).await?.json()?;
    assert_eq!(dry["spec"]["requestedBy"]["username"], "alice");
    ensure!(get(&installed, "rollbackrequest/dry").await?.is_null());
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_asked_for_approved_followed_recorded_and_undone() -> Result<()> {
    let installed = shop("cli-rollback", "good").await?;
    let rollback = [
        "rollback",
        "good",
        "--name",
        "undo-1-9",
        "--prune",
        "created",
        "--reason",
        "checkout is broken",
        "--ticket",
        "OPS-12",
        "--verify-rollout",
        "Deployment/web",
        "--verify-snapshot",
        "--stabilize",
        "1s",
    ];
    let asked = run(&installed, &alice(), &rollback, 0).await?;
    holds(
        &asked,
        &[
            "rollbackrequest.backstep.dev/undo-1-9 created",
            "3 to update, 1 to delete",
            "AwaitingApproval",
            "Stage approval needs 1 of anyone who holds the verb approve on approvalstages default:approval",
            "kubectl backstep approve undo-1-9 -n shop",
        ],
    )?;
    ensure!(
        get(&installed, "configmap/web").await?["data"]["mode"] == "v2",
        "written before approval"
    );

    // It waits for bob, who holds the verb, and not for alice, who asked.
    let mine = async |user: User| {
        anyhow::Ok(
            run(&installed, &user, &["approvals", "--mine", "-o", "wide"], 0)
                .await?
                .stdout,
        )
    };
    ensure!(mine(alice()).await?.is_empty());
    let waiting = mine(bob()).await?;
    ensure!(
        waiting.contains("undo-1-9") && waiting.contains("0 of 1") && waiting.contains("checkout is broken"),
        "{waiting}"
    );
    let own = run(&installed, &alice(), &["approve", "undo-1-9", "--yes"], 8).await?;
    ensure!(
        own.stderr.contains("the requester does not decide on its own request"),
        "{own}"
    );

    // bob approves while alice watches.
    let (watcher, approver) = (alice(), bob());
    let approve = ["approve", "undo-1-9", "--yes", "--comment", "the release is worse"];
    let (watched, approved) = tokio::join!(
        run(&installed, &watcher, &["watch", "undo-1-9", "--timeout", "90s"], 0),
        run(&installed, &approver, &approve, 0)
    );
    let (watched, approved) = (watched?, approved?);
    holds(
        &approved,
        &[
            "asked for by alice: checkout is broken (OPS-12)",
            "-  mode: v2",
            "It counts: ",
        ],
    )?;
    holds(
        &watched,
        &[
            "Executing",
            "safety snapshot ",
            "0 failed, 0 never touched",
            "verification: 2 of 2 tests passed",
            "Completed",
        ],
    )?;
    ensure!(get(&installed, "configmap/web").await?["data"] == json!({"mode": "v1"}));
    ensure!(
        get(&installed, "configmap/added").await?.is_null(),
        "what was created since is still there"
    );
    let history = run(&installed, &alice(), &["history"], 0).await?;
    let row = history
        .stdout
        .lines()
        .find(|l| l.starts_with("undo-1-9 "))
        .unwrap_or_default();
    for part in ["Completed", "good (1)", "alice", "bob", "checkout is broken"] {
        ensure!(row.contains(part), "`{part}` is missing: {history}");
    }
    let again = run(&installed, &bob(), &["approve", "undo-1-9", "--yes"], 8).await?;
    ensure!(again.stderr.contains("cannot be decided any more"), "{again}");

    // The undo is approved like any other, and brings the release back.
    let (asker, approver) = (alice(), bob());
    let undo = ["undo", "undo-1-9", "--name", "redo", "--stabilize", "1s", "--wait=90s"];
    let approve = async {
        reaches(&installed, "redo", &["AwaitingApproval"]).await?;
        run(
            &installed,
            &approver,
            &["approve", "redo", "--yes", "--diffs", "none"],
            0,
        )
        .await
    };
    let (undone, approved) = tokio::join!(run(&installed, &asker, &undo, 0), approve);
    approved?;
    holds(&undone?, &["rollbackrequest.backstep.dev/redo created", "Completed"])?;
    ensure!(get(&installed, "configmap/web").await?["data"]["mode"] == "v2");
    ensure!(get(&installed, "configmap/added").await?["data"]["a"] == "b");
    let timeline = run(&installed, &alice(), &["timeline", "--lineage", "shop"], 0).await?;
    holds(
        &timeline,
        &[
            "● 1 good",
            "<- undo-1-9 Completed",
            "before rollback undo-1-9",
            "after rollback undo-1-9",
            "after rollback redo",
        ],
    )?;

    // A rejection ends it, and a request that is gone stays in the history of whoever may read the store.
    run(&installed, &alice(), &["rollback", "good", "--name", "no"], 0).await?;
    let (watcher, approver) = (alice(), bob());
    let reject = ["reject", "no", "--yes", "--comment", "fix forward"];
    let (watched, rejected) = tokio::join!(
        run(&installed, &watcher, &["watch", "no", "--timeout", "90s"], 8),
        run(&installed, &approver, &reject, 0)
    );
    rejected?;
    ensure!(watched?.stderr.contains("was rejected"));
    let delete = ["delete", "rollbackrequest", "no", "-n", "shop"];
    installed.cluster.kubectl(&alice(), &delete, None).await?.success()?;
    let gone = run(&installed, &alice(), &["history", "-o", "wide"], 0).await?;
    ensure!(
        !gone.stdout.contains("\nno ") && gone.stderr.contains("Requests that are gone are not listed"),
        "{gone}"
    );
    let store = format!("file://{}", installed.store_directory().display());
    let kept = run(
        &installed,
        &User::admin(),
        &["history", "--store", &store, "-o", "json"],
        0,
    )
    .await?
    .json()?;
    let kept = kept["records"].as_array().cloned().unwrap_or_default();
    let no = kept.iter().find(|r| r["name"] == "no").context("the record is gone")?;
    ensure!(
        no["archived"] == true && no["phase"] == "Rejected" && no["by"] == "alice",
        "{no}"
    );
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_rollback_takes_five_manifests() -> Result<()> {
    let installed = start("cli-first").await?;
    let file = |name: &str| format!("{EXAMPLES}/first-rollback/{name}.yaml");
    let apply = async |user: User, name: &str| {
        let ran = installed
            .cluster
            .kubectl(&user, &["apply", "-f", &file(name)], None)
            .await?;
        ran.success().with_context(|| installed.log())
    };
    apply(User::admin(), "1-team").await?;
    apply(alice(), "2-snapshot").await?;
    installed.ended("shop", "before-release").await?;
    apply(alice(), "3-bad-release").await?;
    apply(alice(), "4-rollback").await?;
    let status = reaches(&installed, "undo-release", &["AwaitingApproval"]).await?;
    let approval = status["approval"]["request"]
        .as_str()
        .context("no approval")?
        .to_owned();
    let template = format!("go-template-file={}", file("5-decision"));
    let fill = ["get", "approvalrequest", &approval, "-n", "shop", "-o", &template];
    let decision = installed.cluster.kubectl(&bob(), &fill, None).await?.success()?.stdout;
    let create = ["create", "-f", "-"];
    installed
        .cluster
        .kubectl(&bob(), &create, Some(&decision))
        .await?
        .success()?;
    let ended = reaches(
        &installed,
        "undo-release",
        &["Completed", "Partial", "Failed", "Undone"],
    )
    .await?;
    ensure!(ended["phase"] == "Completed", "{ended:#}");
    ensure!(get(&installed, "configmap/web").await?["data"] == json!({"checkout": "classic", "timeout": "30s"}));
    ensure!(get(&installed, "configmap/checkout-flags").await?.is_null());
    // The owner notices nothing.
    apply(User::admin(), "1-team").await?;
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_a_rollback_does_what_its_comment_says() -> Result<()> {
    let installed = shop("cli-examples-rb", "shop-before-1-9").await?;
    let example = |name: &str| format!("{EXAMPLES}/{name}.yaml");
    let label = ["label", "namespace", "shop", "env=prod"];
    installed
        .cluster
        .kubectl(&User::admin(), &label, None)
        .await?
        .success()?;

    // Two stages, the second from High on: the policy can be met, and is chosen before the default one.
    let policy = example("policy-two-stages");
    installed
        .cluster
        .kubectl(&User::admin(), &["apply", "-f", &policy], None)
        .await?
        .success()?;
    let ready = ["wait", "approvalpolicy/prod", "--for=condition=Ready", "--timeout=60s"];
    installed
        .cluster
        .kubectl(&User::admin(), &ready, None)
        .await?
        .success()?;

    let rows = async |name: &str| {
        let status = reaches(&installed, name, &["AwaitingApproval", "Failed"]).await?;
        ensure!(status["phase"] == "AwaitingApproval", "{name}: {status:#}");
        let plan = status["plan"]["name"].as_str().context("no plan")?.to_owned();
        let approval = status["approval"]["request"]
            .as_str()
            .context("no approval")?
            .to_owned();
        let approval = get(&installed, &format!("approvalrequest/{approval}")).await?;
        ensure!(approval["spec"]["policy"]["name"] == "prod", "{approval}");
        let items = get(&installed, &format!("rollbackplan/{plan}")).await?["spec"]["items"].clone();
        let rows = items
            .as_array()
            .into_iter()
            .flatten()
            .filter(|i| i["action"] != "Keep" && i["action"] != "Skip");
        let mut rows: Vec<String> = rows
            .map(|i| format!("{} {}/{}", i["action"], i["object"]["kind"], i["object"]["name"]).replace('"', ""))
            .collect();
        rows.sort();
        anyhow::Ok(rows)
    };
    let expected: [(&str, &str, &[&str]); 3] = [
        (
            "rollbackrequest",
            "undo-1-9",
            &[
                "Delete ConfigMap/added",
                "Update ConfigMap/web",
                "Update Deployment/web",
                "Update Secret/web",
            ],
        ),
        (
            "rollback-partial",
            "configuration-and-images",
            &["Update ConfigMap/web", "Update Deployment/web", "Update Secret/web"],
        ),
        (
            "rollback-selective",
            "web-only",
            &["Update ConfigMap/web", "Update Deployment/web"],
        ),
    ];
    for (file, name, actions) in expected {
        let apply = ["apply", "-n", "shop", "-f", &example(file)];
        installed.cluster.kubectl(&alice(), &apply, None).await?.success()?;
        let rows = rows(name).await?;
        ensure!(rows == actions, "{file}: {rows:?}");
    }

    // As GitOps applies it: again and again, without a change and without drift.
    let kubeconfig = installed.cluster.service_account_kubeconfig("shop", "flux").await?;
    let kubectl = tokio::task::spawn_blocking(|| testbed::binaries::path(testbed::Component::Kubectl)).await??;
    let gitops = async |verb: &[&str]| {
        let file = example("gitops-request");
        let arguments = [verb, &["-n", "shop", "-f", &file]].concat();
        anyhow::Ok(installed.cluster.run(&kubectl, &kubeconfig, &arguments, None).await?)
    };
    gitops(&["apply"]).await?.success()?;
    ensure!(rows("undo-2026-11-21").await? == ["Restart Deployment/web", "Update ConfigMap/web"]);
    let again = gitops(&["apply"]).await?.success()?;
    ensure!(again.stdout.contains("unchanged"), "{again}");
    gitops(&["diff"]).await?.success()?;

    let broken = ["apply", "-n", "shop", "-f", &example("break-glass")];
    let broken = installed.cluster.kubectl(&alice(), &broken, None).await?.failure()?;
    let why = r#"spec.emergency needs the verb break-glass on approvalscopes.backstep.dev "shop", granted by a ClusterRoleBinding"#;
    ensure!(broken.stderr.contains(why), "{broken}");
    installed.cluster.stop().await
}
