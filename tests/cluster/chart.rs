//! The chart on a real API server: install, upgrade, uninstall, install again.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testbed::{Cluster, ClusterOptions, User, wait_until};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/backstep");
const OPERATOR_NAMESPACE: &str = "backstep-system";
const PATIENCE: Duration = Duration::from_secs(60);

async fn start(name: &str) -> Result<Cluster> {
    let options = ClusterOptions {
        with_scheduler: false,
        with_fake_kubelet: false,
        ..ClusterOptions::named(name)
    };
    Cluster::start(options).await
}

async fn helm(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    Ok(cluster.helm(&User::admin(), arguments, None).await?.success()?.stdout)
}

async fn get(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    cluster
        .kubectl(&User::admin(), &[&["get", "-o", "json"], arguments].concat(), None)
        .await?
        .json()
}

async fn install(cluster: &Cluster, more: &[&str]) -> Result<String> {
    let base = [
        "install",
        "backstep",
        CHART,
        "-n",
        OPERATOR_NAMESPACE,
        "--create-namespace",
        "--set",
        "replicas=0",
    ];
    helm(cluster, &[&base, more].concat()).await
}

async fn names(cluster: &Cluster, resource: &str) -> Result<Vec<String>> {
    let list = get(cluster, &[resource]).await?;
    let items = list["items"].as_array().context("a list")?;
    let mut names: Vec<_> = items
        .iter()
        .filter_map(|i| i["metadata"]["name"].as_str())
        .map(ToOwned::to_owned)
        .collect();
    names.retain(|name| name.contains("backstep"));
    names.sort();
    Ok(names)
}

/// Takes a Snapshot as soon as who asks is stamped: the API server takes new admission policies up some seconds after their creation.
async fn take(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    let snapshot = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "Snapshot",
        "metadata": {"name": name, "namespace": namespace}, "spec": {},
    })
    .to_string();
    let create = async |more: &[&str]| {
        let arguments = [&["create", "-o", "json", "-f", "-"], more].concat();
        cluster
            .kubectl(&User::admin(), &arguments, Some(&snapshot))
            .await?
            .json()
    };
    wait_until(PATIENCE, "a Snapshot to be admitted with its stamp", async || {
        let admitted: Value = create(&["--dry-run=server"]).await?;
        let stamp = &admitted["spec"]["requestedBy"];
        anyhow::Ok(stamp.is_object().then_some(()))
    })
    .await?;
    create(&[]).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_survive_uninstall_and_nothing_left_holds_up_the_cluster() -> Result<()> {
    let cluster = start("chart").await?;
    let admin = User::admin();
    let lint = helm(&cluster, &["lint", "--strict", CHART]).await?;
    ensure!(lint.contains("0 chart(s) failed"), "{lint}");

    let notes = install(&cluster, &[]).await?;
    ensure!(notes.contains("Take a first snapshot"), "{notes}");
    ensure!(names(&cluster, "crd").await?.len() == 6);
    let policies =
        ["approvaldecisions", "operatorowned", "requests", "snapshots"].map(|p| format!("{p}.guard.backstep.dev"));
    ensure!(names(&cluster, "validatingadmissionpolicies").await? == policies);
    ensure!(names(&cluster, "validatingadmissionpolicybindings").await? == policies);
    ensure!(names(&cluster, "mutatingadmissionpolicies").await?.len() == 3);
    let policy = get(&cluster, &["approvalpolicy", "default"]).await?;
    ensure!(policy["spec"]["stages"][0]["name"] == "approval", "{policy}");
    ensure!(policy["spec"]["stages"][0]["required"] == 1, "{policy}");

    cluster
        .kubectl(&admin, &["create", "namespace", "shop"], None)
        .await?
        .success()?;
    take(&cluster, "shop", "kept").await?;
    let stamped = get(&cluster, &["-n", "shop", "snapshot", "kept"]).await?;
    ensure!(stamped["spec"]["requestedBy"]["username"] == "admin", "{stamped}");
    ensure!(stamped["spec"]["lineage"] == "default", "{stamped}");
    ensure!(
        stamped["metadata"]["finalizers"].is_null(),
        "a finalizer would outlive the operator: {stamped}"
    );
    // Applying what was stamped changes nothing, in either way of applying.
    let manifest = r#"{"apiVersion":"backstep.dev/v1alpha1","kind":"Snapshot","metadata":{"name":"applied","namespace":"shop"},"spec":{"lineage":"shop"}}"#;
    for arguments in [
        &["apply", "-f", "-"][..],
        &["apply", "-f", "-"],
        &["apply", "--server-side", "--force-conflicts", "-f", "-"],
    ] {
        cluster.kubectl(&admin, arguments, Some(manifest)).await?.success()?;
    }

    upgrade(&cluster).await?;
    uninstall(&cluster).await?;

    // Back: the kept CRDs are taken over, and a policy that was deleted is made anew only by an installation.
    install(&cluster, &[]).await?;
    get(&cluster, &["approvalpolicy", "default"]).await?;
    helm(&cluster, &["uninstall", "backstep", "-n", OPERATOR_NAMESPACE]).await?;
    let last = r#"{"spec":{"priority":7}}"#;
    cluster
        .kubectl(
            &admin,
            &["patch", "approvalpolicy", "default", "--type=merge", "-p", last],
            None,
        )
        .await?
        .success()?;
    install(&cluster, &[]).await?;
    let policy = get(&cluster, &["approvalpolicy", "default"]).await?;
    ensure!(
        policy["spec"]["priority"] == 7,
        "the installation took a change back: {policy}"
    );
    cluster.stop().await
}

async fn upgrade(cluster: &Cluster) -> Result<()> {
    let admin = User::admin();
    // An upgrade upgrades CRDs too, and leaves what the platform team changed.
    let crd = ["crd", "snapshots.backstep.dev"];
    let weaken = r#"[{"op":"remove","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations"}]"#;
    cluster
        .kubectl(&admin, &["patch", crd[0], crd[1], "--type=json", "-p", weaken], None)
        .await?
        .success()?;
    let stricter = r#"{"spec":{"stages":[{"name":"approval","required":2}]}}"#;
    cluster
        .kubectl(
            &admin,
            &["patch", "approvalpolicy", "default", "--type=merge", "-p", stricter],
            None,
        )
        .await?
        .success()?;
    let upgrade = [
        "upgrade",
        "backstep",
        CHART,
        "-n",
        OPERATOR_NAMESPACE,
        "--set",
        "replicas=0,logging.level=debug",
        "--force-conflicts",
    ];
    helm(cluster, &upgrade).await?;
    let restored = get(cluster, &crd).await?;
    let rules =
        &restored["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"];
    ensure!(
        rules.is_array(),
        "the upgrade left the CRD without its rule: {restored}"
    );
    let policy = get(cluster, &["approvalpolicy", "default"]).await?;
    ensure!(
        policy["spec"]["stages"][0]["required"] == 2,
        "the upgrade took a change back: {policy}"
    );
    let deployment = get(cluster, &["-n", OPERATOR_NAMESPACE, "deployment", "backstep"]).await?;
    let arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    ensure!(arguments.contains("--log-level=debug"), "{arguments}");
    Ok(())
}

async fn uninstall(cluster: &Cluster) -> Result<()> {
    let admin = User::admin();
    // Away: no policy, no right, no workload; the kinds and the Snapshots stay, and can be deleted by anybody who may.
    cluster
        .kubectl(&admin, &["delete", "approvalpolicy", "default"], None)
        .await?
        .success()?;
    helm(cluster, &["uninstall", "backstep", "-n", OPERATOR_NAMESPACE]).await?;
    for resource in [
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicybindings",
        "validatingwebhookconfigurations",
        "mutatingwebhookconfigurations",
        "clusterroles",
        "clusterrolebindings",
    ] {
        let left = names(cluster, resource).await?;
        ensure!(left.is_empty(), "{resource} left behind: {left:?}");
    }
    get(cluster, &["-n", "shop", "snapshot", "kept"]).await?;
    cluster
        .kubectl(&admin, &["delete", "namespace", "shop", "--timeout=60s"], None)
        .await?
        .success()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_holds_no_right_that_it_does_not_need() -> Result<()> {
    let cluster = start("rights").await?;
    install(&cluster, &["--set", "rbac.write=false"]).await?;
    let kubeconfig = cluster
        .service_account_kubeconfig(OPERATOR_NAMESPACE, "backstep")
        .await?;
    let kubectl = testbed::binary("kubectl")?;
    let can = async |arguments: &[&str]| -> Result<bool> {
        let ran = cluster
            .run(&kubectl, &kubeconfig, &[&["auth", "can-i"], arguments].concat(), None)
            .await?;
        Ok(ran.stdout.trim() == "yes")
    };
    for allowed in [
        &["list", "secrets", "-A"][..],
        &["list", "deployments.apps", "-A"],
        &["watch", "snapshots.backstep.dev", "-A"],
        &["patch", "snapshots.backstep.dev", "--subresource=status", "-A"],
        &["create", "secrets", "-n", OPERATOR_NAMESPACE],
        &["update", "leases.coordination.k8s.io", "-n", OPERATOR_NAMESPACE],
        &["update", "configmaps/backstep-store", "-n", OPERATOR_NAMESPACE],
        &["create", "events", "-n", "default"],
        &["create", "subjectaccessreviews.authorization.k8s.io"],
        &["list", "customresourcedefinitions.apiextensions.k8s.io"],
    ] {
        ensure!(can(allowed).await?, "the operator may not {allowed:?}");
    }
    for denied in [
        &["create", "secrets", "-n", "default"][..],
        &["update", "configmaps", "-n", "default"],
        &["update", "configmaps/other", "-n", OPERATOR_NAMESPACE],
        &["patch", "deployments.apps", "-n", "default"],
        &["delete", "pods", "-A"],
        &["create", "pods", "--subresource=exec", "-A"],
        &["create", "clusterroles.rbac.authorization.k8s.io"],
        &["escalate", "clusterroles.rbac.authorization.k8s.io"],
        &["impersonate", "users"],
        &["patch", "customresourcedefinitions.apiextensions.k8s.io"],
        &["delete", "validatingadmissionpolicies.admissionregistration.k8s.io"],
        &["create", "approvaldecisions.backstep.dev", "-n", "default"],
        &["approve", "approvalstages.backstep.dev/prod:sre"],
        &["break-glass", "approvalscopes.backstep.dev/default"],
        &["purge", "approvalscopes.backstep.dev/default"],
    ] {
        ensure!(!can(denied).await?, "the operator may {denied:?}");
    }

    // Rollbacks write; what makes somebody more than they are stays out.
    let upgrade = [
        "upgrade",
        "backstep",
        CHART,
        "-n",
        OPERATOR_NAMESPACE,
        "--set",
        "replicas=0",
    ];
    helm(&cluster, &upgrade).await?;
    for verb in ["create", "update", "patch", "delete"] {
        for kind in ["secrets", "deployments.apps", "widgets.example.org"] {
            ensure!(
                can(&[verb, kind, "-n", "default"]).await?,
                "the operator may not {verb} {kind}"
            );
        }
    }
    for denied in [
        &["escalate", "clusterroles.rbac.authorization.k8s.io"][..],
        &["bind", "clusterroles.rbac.authorization.k8s.io"],
        &["impersonate", "users"],
        &["deletecollection", "secrets", "-n", "default"],
        &["approve", "approvalstages.backstep.dev/prod:sre"],
        &["break-glass", "approvalscopes.backstep.dev/default"],
        &["purge", "approvalscopes.backstep.dev/default"],
    ] {
        ensure!(!can(denied).await?, "the operator may {denied:?}");
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_cannot_work_are_refused_with_a_reason() -> Result<()> {
    let cluster = start("values").await?;
    let template = async |values: &str| {
        cluster
            .helm(
                &User::admin(),
                &["template", "backstep", CHART, "-n", "elsewhere", "--set", values],
                None,
            )
            .await
    };
    for (values, reason) in [
        ("store.type=Filesystem", "store.filesystem.existingClaim"),
        ("store.type=S3", "store"),
        ("store.quota=12MB", "quota"),
        ("logging.format=xml", "format"),
        ("concurrency.captures=0", "captures"),
        ("guard.settle=soon", "settle"),
        ("guard.foreignMutators=Maybe", "foreignMutators"),
        ("historyLimit=0", "historyLimit"),
        ("replicas=-1", "replicas"),
    ] {
        let ran = template(values).await?.failure()?;
        ensure!(ran.stderr.contains(reason), "{values}: {ran}");
    }
    // Namespace and ServiceAccount reach every policy, and optional parts come when asked for.
    let ran = template("serviceAccount.name=other,guard.requireCredentialID=true,store.type=Filesystem,store.filesystem.existingClaim=contents")
        .await?
        .success()?;
    ensure!(ran.stdout.contains("'system:serviceaccount:elsewhere:other'"));
    ensure!(
        !ran.stdout.contains("backstep-system"),
        "the default namespace is written somewhere"
    );
    ensure!(ran.stdout.contains("credential.guard.backstep.dev") && ran.stdout.contains("- --require-credential-id"));
    ensure!(ran.stdout.contains("- --guard-settle=30s") && ran.stdout.contains("- --foreign-mutators=warn"));
    ensure!(
        ran.stdout
            .contains("- --system-controllers=system:serviceaccount:kube-system:generic-garbage-collector,")
    );
    ensure!(ran.stdout.contains("--store=file:///var/lib/backstep") && ran.stdout.contains("claimName: \"contents\""));
    ensure!(
        !ran.stdout.contains("kind: MutatingAdmissionPolicy"),
        "stamping is for servers that have it"
    );
    cluster.stop().await
}
