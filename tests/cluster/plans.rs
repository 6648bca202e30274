//! What a rollback would do, planned through the custom resource as several users.

use anyhow::{Context as _, Result, ensure};
use backstep::api::RollbackRequest;
use kube::Api;
use serde_json::{Value, json};
use testbed::{User, wait_until};

use crate::support::{Installed, PATIENCE, Store};

const CANARY: &str = "canary-plan-51c0";

fn alice() -> User {
    User::new("alice", ["shop-team"])
}

/// alice may edit the namespace; mallory may only ask.
async fn shop(installed: &Installed) -> Result<()> {
    let manifest = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: team, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: alice}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: asker, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: backstep-requester}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: mallory}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web, namespace: shop}
data: {mode: v1}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: gone, namespace: shop}
data: {x: "1"}
---
apiVersion: v1
kind: Secret
metadata: {name: web, namespace: shop}
stringData: {password: canary-plan-51c0-old}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: app, image: registry.example/web:1, envFrom: [{configMapRef: {name: web}}]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reader, namespace: shop}
spec:
  selector: {matchLabels: {app: reader}}
  template:
    metadata: {labels: {app: reader}}
    spec:
      containers: [{name: app, image: registry.example/reader:1, envFrom: [{configMapRef: {name: web}}]}]
"#;
    installed.given(manifest).await?;
    for name in ["web", "reader"] {
        let arguments = [
            "rollout",
            "status",
            &format!("deployment/{name}"),
            "-n",
            "shop",
            "--timeout=60s",
        ];
        installed
            .cluster
            .kubectl(&User::admin(), &arguments, None)
            .await?
            .success()?;
    }
    Ok(())
}

pub async fn asked(installed: &Installed, user: &User, name: &str, spec: &Value) -> Result<Value> {
    let manifest = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest",
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
    });
    installed.apply(user, &manifest.to_string()).await?.success()?;
    let api: Api<RollbackRequest> = Api::namespaced(installed.admin().await?, "shop");
    let ended = wait_until(PATIENCE, &format!("rollbackrequest {name} to end"), async || {
        let status = serde_json::to_value(api.get(name).await.map_err(|e| e.to_string())?.status).unwrap_or_default();
        match status["phase"].as_str() {
            Some("Planned" | "Failed" | "Cancelled") => Ok(Some(status)),
            _ => Err(status.to_string()),
        }
    })
    .await;
    ended.with_context(|| installed.log())
}

pub fn said(status: &Value) -> String {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions
        .iter()
        .find(|c| c["type"] == "Ready")
        .cloned()
        .unwrap_or_default();
    format!(
        "{} {}",
        ready["reason"].as_str().unwrap_or_default(),
        ready["message"].as_str().unwrap_or_default()
    )
}

pub async fn plan(installed: &Installed, status: &Value) -> Result<Value> {
    let name = status["plan"]["name"].as_str().context("a plan")?;
    installed
        .cluster
        .kubectl(
            &User::admin(),
            &["get", "rollbackplan", name, "-n", "shop", "-o", "json"],
            None,
        )
        .await?
        .json()
}

pub fn actions(plan: &Value) -> Vec<String> {
    let items = plan["spec"]["items"].as_array().cloned().unwrap_or_default();
    let mut rows: Vec<String> = items
        .iter()
        .map(|i| {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            format!(
                "{} {}/{}",
                text(&i["action"]),
                text(&i["object"]["kind"]),
                text(&i["object"]["name"])
            )
        })
        .collect();
    rows.sort();
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_lists_exactly_what_a_rollback_would_do_and_writes_nothing() -> Result<()> {
    let installed = Installed::start("plans", Store::Directory).await?;
    shop(&installed).await?;
    installed
        .snapshot("shop", "good", &json!({"lineage": "shop", "tags": ["stable"]}))
        .await?;

    // Nothing to do yet.
    let nothing = asked(
        &installed,
        &alice(),
        "nothing",
        &json!({"dryRun": true, "target": {"snapshot": "good"}}),
    )
    .await?;
    ensure!(nothing["phase"] == "Planned", "{nothing:#}");
    ensure!(
        actions(&plan(&installed, &nothing).await?).is_empty(),
        "{:#}",
        plan(&installed, &nothing).await?
    );

    for arguments in [
        [
            "patch",
            "configmap",
            "web",
            "-n",
            "shop",
            "--type=merge",
            "-p",
            r#"{"data":{"mode":"v2","extra":"1"}}"#,
        ]
        .as_slice(),
        &["delete", "configmap", "gone", "-n", "shop"],
        &[
            "set",
            "image",
            "deployment/web",
            "app=registry.example/web:2",
            "-n",
            "shop",
        ],
        &["create", "configmap", "new", "-n", "shop", "--from-literal=a=b"],
        &[
            "patch",
            "secret",
            "web",
            "-n",
            "shop",
            "--type=merge",
            "-p",
            r#"{"stringData":{"password":"canary-plan-51c0-new"}}"#,
        ],
    ] {
        installed
            .cluster
            .kubectl(&User::admin(), arguments, None)
            .await?
            .success()?;
    }
    let before = installed
        .cluster
        .kubectl(
            &User::admin(),
            &["get", "configmaps,secrets,deployments", "-n", "shop", "-o", "json"],
            None,
        )
        .await?
        .json()?;

    let spec = json!({"dryRun": true, "prune": "Created", "target": {"lineage": "shop", "tag": "stable"}});
    let status = asked(&installed, &alice(), "back", &spec).await?;
    ensure!(status["phase"] == "Planned", "{status:#}");
    ensure!(status["resolved"]["name"] == "good" && status["resolved"]["version"] == 1);
    let made = plan(&installed, &status).await?;
    let expected = [
        "Create ConfigMap/gone",
        "Delete ConfigMap/new",
        "Restart Deployment/reader",
        "Update ConfigMap/web",
        "Update Deployment/web",
        "Update Secret/web",
    ];
    ensure!(actions(&made) == expected, "{:#?}", actions(&made));
    let text = made.to_string();
    ensure!(
        text.contains("-  mode: v2") && text.contains("+  mode: v1") && text.contains("-  extra:"),
        "{text}"
    );
    ensure!(!text.contains(CANARY) && !status.to_string().contains(CANARY) && !installed.log().contains(CANARY));
    ensure!(
        !text.contains("Y2FuYXJ5"),
        "a Secret value stands in the plan in base64"
    );
    ensure!(
        status["plan"]["risk"]["score"].as_i64().is_some_and(|score| score > 0),
        "{status:#}"
    );
    let after = installed
        .cluster
        .kubectl(
            &User::admin(),
            &["get", "configmaps,secrets,deployments", "-n", "shop", "-o", "json"],
            None,
        )
        .await?
        .json()?;
    let versions = |list: &Value| {
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items
            .iter()
            .map(|i| i["metadata"]["generation"].clone())
            .collect::<Vec<_>>()
    };
    ensure!(versions(&before) == versions(&after), "a dry run wrote something");

    // Partial and selective requests, and `previous`.
    let partial =
        json!({"dryRun": true, "strategy": "Partial", "components": ["Configuration"], "target": {"snapshot": "good"}});
    let partial = asked(&installed, &alice(), "partial", &partial).await?;
    let rows = actions(&plan(&installed, &partial).await?);
    ensure!(
        rows.contains(&"Keep Deployment/web".into()) && rows.contains(&"Update ConfigMap/web".into()),
        "{rows:?}"
    );
    let selective = json!({"dryRun": true, "strategy": "Selective", "cascade": false,
        "objects": {"include": [{"kinds": ["ConfigMap"], "names": ["web"]}]}, "target": {"lineage": "shop", "previous": true}});
    let selective = asked(&installed, &alice(), "selective", &selective).await?;
    let rows = actions(&plan(&installed, &selective).await?);
    ensure!(
        rows.iter().filter(|r| !r.starts_with("Keep")).collect::<Vec<_>>() == ["Update ConfigMap/web"],
        "{rows:?}"
    );
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_work_says_what_why_and_how_to_fix() -> Result<()> {
    let installed = Installed::start("noplans", Store::Secrets).await?;
    shop(&installed).await?;
    installed.snapshot("shop", "good", &json!({"lineage": "shop"})).await?;
    installed
        .cluster
        .kubectl(
            &User::admin(),
            &[
                "patch",
                "configmap",
                "web",
                "-n",
                "shop",
                "--type=merge",
                "-p",
                r#"{"data":{"mode":"v2"}}"#,
            ],
            None,
        )
        .await?
        .success()?;

    for (name, target, expected) in [
        ("unknown", json!({"snapshot": "nowhere"}), "TargetNotFound"),
        ("version", json!({"lineage": "shop", "version": 9}), "TargetNotFound"),
        ("tag", json!({"lineage": "shop", "tag": "none"}), "TargetNotFound"),
    ] {
        let status = asked(&installed, &alice(), name, &json!({"dryRun": true, "target": target})).await?;
        ensure!(
            status["phase"] == "Failed" && said(&status).starts_with(expected),
            "{name}: {}",
            said(&status)
        );
    }
    let nothing = json!({"dryRun": true, "strategy": "Selective", "objects": {"include": [{"kinds": ["Widget"]}]}, "target": {"snapshot": "good"}});
    let nothing = asked(&installed, &alice(), "none", &nothing).await?;
    ensure!(said(&nothing).starts_with("NothingSelected"), "{}", said(&nothing));

    // Who may not change the objects gets no clear plan, and who may not read them does not see them.
    let mallory = asked(
        &installed,
        &User::new("mallory", ["outsiders"]),
        "mallory",
        &json!({"dryRun": true, "target": {"snapshot": "good"}}),
    )
    .await?;
    ensure!(mallory["phase"] == "Failed", "{mallory:#}");
    ensure!(
        said(&mallory).starts_with("PreflightFailed")
            && said(&mallory).contains("mallory may not")
            && said(&mallory).contains("update configmaps"),
        "{}",
        said(&mallory)
    );
    let text = plan(&installed, &mallory).await?.to_string();
    ensure!(!text.contains("mode: v2") && text.contains("may not read"), "{text}");

    // What Git owns is refused by default.
    installed
        .cluster
        .kubectl(
            &User::admin(),
            &[
                "label",
                "configmap",
                "web",
                "-n",
                "shop",
                "kustomize.toolkit.fluxcd.io/name=shop",
                "kustomize.toolkit.fluxcd.io/namespace=flux-system",
            ],
            None,
        )
        .await?
        .success()?;
    let owned = asked(
        &installed,
        &alice(),
        "owned",
        &json!({"dryRun": true, "target": {"snapshot": "good"}}),
    )
    .await?;
    ensure!(
        said(&owned).starts_with("GitOpsManaged") && said(&owned).contains("Kustomization flux-system/shop"),
        "{}",
        said(&owned)
    );
    let ignored = asked(
        &installed,
        &alice(),
        "ignored",
        &json!({"dryRun": true, "gitops": "Ignore", "target": {"snapshot": "good"}}),
    )
    .await?;
    ensure!(ignored["phase"] == "Planned", "{}", said(&ignored));
    installed.cluster.stop().await
}
