//! Snapshots through the custom resource, on a real API server.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use backstep::{
    api::{Snapshot, names, snapshot::SnapshotPhase},
    domain::object::ObjectId,
    repository::{ObjectStoreBackend, Options, Repository, SecretsBackend},
};
use futures::TryStreamExt as _;
use jiff::Timestamp;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use testbed::{User, wait_until};

use crate::support::{Installed, OPERATOR_NAMESPACE, PATIENCE, Store};

const CRDS: &str = include_str!("fixtures/crds.yaml");
const KINDS: &str = include_str!("fixtures/kinds.yaml");

/// Opens the filesystem store as administrators' tools do.
async fn repository(installed: &Installed) -> Result<Repository> {
    let backend = ObjectStoreBackend::local(installed.store_directory().to_str().context("path")?)?;
    Ok(Repository::open(Arc::new(backend), Options::new(Timestamp::now)).await?)
}

/// Content digests of a snapshot, by identity.
pub async fn entries(installed: &Installed, snapshot: &Snapshot) -> Result<BTreeMap<ObjectId, String>> {
    let repository = repository(installed).await?;
    let reader = repository.manifest(&snapshot.uid().context("uid")?).await?;
    let rows: Vec<_> = reader.entries().try_collect().await?;
    Ok(rows
        .into_iter()
        .map(|(kind, entry)| {
            (
                ObjectId::new(kind.group.clone(), kind.kind.clone(), entry.name),
                entry.content.to_string(),
            )
        })
        .collect())
}

fn status(snapshot: &Snapshot) -> Value {
    serde_json::to_value(&snapshot.status).unwrap_or_default()
}

fn reason(snapshot: &Snapshot) -> String {
    let status = status(snapshot);
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions
        .iter()
        .find(|c| c["type"] == "Ready")
        .map(|c| {
            format!(
                "{} {}",
                c["reason"].as_str().unwrap_or_default(),
                c["message"].as_str().unwrap_or_default()
            )
        })
        .unwrap_or_default()
}

/// The fixture of every kind in `namespace`, rolled out.
pub async fn settled_shop(installed: &Installed, namespace: &str) -> Result<()> {
    installed
        .given(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}).to_string())
        .await?;
    installed.given(CRDS).await?;
    wait_until(PATIENCE, "the fixture", async || {
        let ran = installed
            .cluster
            .kubectl(&User::admin(), &["apply", "-n", namespace, "-f", "-"], Some(KINDS))
            .await
            .map_err(|e| e.to_string())?;
        if ran.status.success() {
            Ok(Some(()))
        } else {
            Err(ran.stderr)
        }
    })
    .await?;
    for workload in ["deployment/web", "statefulset/db", "daemonset/agent"] {
        installed
            .cluster
            .kubectl(
                &User::admin(),
                &["rollout", "status", workload, "-n", namespace, "--timeout=60s"],
                None,
            )
            .await?
            .success()?;
    }
    let arguments = [
        "wait",
        "pod/lone",
        "--for=condition=Ready",
        "-n",
        namespace,
        "--timeout=60s",
    ];
    installed
        .cluster
        .kubectl(&User::admin(), &arguments, None)
        .await?
        .success()?;
    Ok(())
}

/// `kubectl patch` of one field in each kind of the fixture.
pub const CHANGES: [(&str, &str, &str); 26] = [
    ("configmap", "web", r#"{"data":{"mode":"v2"}}"#),
    ("secret", "web", r#"{"stringData":{"password":"rotated"}}"#),
    ("service", "web", r#"{"spec":{"sessionAffinity":"ClientIP"}}"#),
    (
        "serviceaccount",
        "web",
        r#"{"metadata":{"annotations":{"note":"two"}}}"#,
    ),
    (
        "persistentvolumeclaim",
        "data",
        r#"{"metadata":{"labels":{"note":"two"}}}"#,
    ),
    (
        "limitrange",
        "limits",
        r#"{"spec":{"limits":[{"type":"Container","max":{"memory":"5Gi"}}]}}"#,
    ),
    ("resourcequota", "quota", r#"{"spec":{"hard":{"pods":"101"}}}"#),
    ("podtemplate", "template", r#"{"metadata":{"labels":{"note":"two"}}}"#),
    ("replicationcontroller", "legacy", r#"{"spec":{"minReadySeconds":3}}"#),
    ("pod", "lone", r#"{"metadata":{"labels":{"note":"two"}}}"#),
    ("deployment", "web", r#"{"spec":{"revisionHistoryLimit":3}}"#),
    ("statefulset", "db", r#"{"spec":{"revisionHistoryLimit":3}}"#),
    ("daemonset", "agent", r#"{"spec":{"revisionHistoryLimit":3}}"#),
    ("replicaset", "bare", r#"{"spec":{"minReadySeconds":3}}"#),
    ("job", "migrate", r#"{"metadata":{"labels":{"note":"two"}}}"#),
    ("cronjob", "nightly", r#"{"spec":{"schedule":"0 4 * * *"}}"#),
    ("horizontalpodautoscaler", "web", r#"{"spec":{"maxReplicas":6}}"#),
    ("poddisruptionbudget", "web", r#"{"spec":{"minAvailable":2}}"#),
    ("ingress", "web", r#"{"metadata":{"annotations":{"note":"two"}}}"#),
    ("networkpolicy", "web", r#"{"spec":{"policyTypes":["Egress"]}}"#),
    (
        "role",
        "reader",
        r#"{"rules":[{"apiGroups":[""],"resources":["configmaps"],"verbs":["list"]}]}"#,
    ),
    ("rolebinding", "reader", r#"{"metadata":{"labels":{"note":"two"}}}"#),
    (
        "endpointslice",
        "external",
        r#"{"endpoints":[{"addresses":["192.0.2.2"]}]}"#,
    ),
    (
        "resourceclaimtemplate",
        "gpu",
        r#"{"metadata":{"labels":{"note":"two"}}}"#,
    ),
    ("widget", "one", r#"{"spec":{"size":2}}"#),
    ("route", "main", r#"{"spec":{"to":"admin"}}"#),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_namespace_gives_the_same_snapshot_and_each_changed_field_exactly_one_new_object() -> Result<()> {
    let installed = Installed::start("kinds", Store::Directory).await?;
    settled_shop(&installed, "shop").await?;

    let one = installed.snapshot("shop", "one", &json!({"lineage": "shop"})).await?;
    ensure!(status(&one)["phase"] == "Ready", "{:#}", status(&one));
    let first = entries(&installed, &one).await?;
    ensure!(first.len() >= 26, "only {} objects: {:#?}", first.len(), first.keys());
    ensure!(
        first
            .keys()
            .map(|id| (&id.group, &id.kind))
            .collect::<std::collections::BTreeSet<_>>()
            .len()
            >= 25
    );
    let before = repository(&installed).await?.usage().stored_bytes;
    let two = installed.snapshot("shop", "two", &json!({"lineage": "shop"})).await?;
    let written = repository(&installed).await?.usage().stored_bytes - before;
    ensure!(written <= 4096, "{written} bytes written although nothing changed");
    ensure!(status(&two)["digest"] == status(&one)["digest"], "the digest moved");
    ensure!(entries(&installed, &two).await? == first);
    ensure!(status(&two)["objects"]["unchanged"] == status(&two)["objects"]["captured"]);
    ensure!(
        status(&two)["version"] == 2 && status(&two)["parent"] == json!({"name": "one", "version": 1}),
        "{:#}",
        status(&two)
    );
    ensure!(serde_json::to_vec(&status(&two))?.len() <= 4096);

    let mut last = first;
    for (index, (kind, name, patch)) in CHANGES.into_iter().enumerate() {
        installed
            .cluster
            .kubectl(
                &User::admin(),
                &["patch", kind, name, "-n", "shop", "--type=merge", "-p", patch],
                None,
            )
            .await?
            .success()?;
        let snapshot = installed
            .snapshot("shop", &format!("change-{index}"), &json!({"lineage": "shop"}))
            .await?;
        ensure!(status(&snapshot)["phase"] == "Ready", "{kind}: {:#}", status(&snapshot));
        let now = entries(&installed, &snapshot).await?;
        let changed: Vec<_> = now
            .iter()
            .filter(|(id, digest)| last.get(*id) != Some(digest))
            .map(|(id, _)| id.kind.to_lowercase())
            .collect();
        ensure!(
            changed == [kind] && now.len() == last.len(),
            "after {kind}: {changed:?}"
        );
        last = now;
    }
    let report = repository(&installed).await?.verify(|_| {}).await?;
    ensure!(report.is_clean(), "{report:?}");
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_the_digests_that_ran_and_references_come_along_through_a_selector() -> Result<()> {
    let installed = Installed::start("images", Store::Directory).await?;
    settled_shop(&installed, "shop").await?;
    let all = installed.snapshot("shop", "all", &json!({})).await?;
    let images = status(&all)["images"].clone();
    let web = images
        .as_array()
        .context("images")?
        .iter()
        .find(|i| i["workload"] == "Deployment/web" && i["container"] == "app")
        .context("web")?
        .clone();
    ensure!(
        web["image"] == "registry.example/web:1.8" && web["digest"].as_str().is_some_and(|d| d.starts_with("sha256:")),
        "{web}"
    );

    // The tag moves: what ran stays what it was until the Pods are new.
    let moved = format!("sha256:{}", "7".repeat(64));
    installed.cluster.move_tag("registry.example/web:1.8", &moved)?;
    let same = installed.snapshot("shop", "same", &json!({})).await?;
    ensure!(status(&same)["digest"] == status(&all)["digest"]);
    for arguments in [
        ["rollout", "restart", "deployment/web", "-n", "shop"].as_slice(),
        &["rollout", "status", "deployment/web", "-n", "shop", "--timeout=60s"],
    ] {
        installed
            .cluster
            .kubectl(&User::admin(), arguments, None)
            .await?
            .success()?;
    }
    let after = wait_until(PATIENCE, "the moved digest", async || {
        let name = format!("moved-{:x}", rand_name());
        let snapshot = installed
            .snapshot("shop", &name, &json!({}))
            .await
            .map_err(|e| e.to_string())?;
        let images = status(&snapshot)["images"].clone();
        let found = images
            .as_array()
            .is_some_and(|rows| rows.iter().any(|i| i["digest"] == moved.as_str()));
        if found {
            Ok(Some(snapshot))
        } else {
            Err(images.to_string())
        }
    })
    .await?;
    ensure!(
        status(&after)["digest"] != status(&all)["digest"],
        "a moved tag is a changed state"
    );

    let picked = json!({"lineage": "web", "capture": {"include": [{"group": "apps", "kinds": ["Deployment"], "names": ["w?b"]}]}});
    let picked = installed.snapshot("shop", "picked", &picked).await?;
    let kinds: Vec<_> = entries(&installed, &picked)
        .await?
        .into_keys()
        .map(|id| id.to_string())
        .collect();
    ensure!(
        kinds
            == [
                "ConfigMap/web",
                "Secret/web",
                "ServiceAccount/web",
                "Deployment.apps/web"
            ],
        "{kinds:?}"
    );
    let alone =
        json!({"lineage": "web2", "capture": {"selector": {"matchLabels": {"app": "web"}}, "followReferences": false}});
    let alone = installed.snapshot("shop", "alone", &alone).await?;
    let kinds: Vec<_> = entries(&installed, &alone)
        .await?
        .into_keys()
        .map(|id| id.to_string())
        .collect();
    ensure!(kinds == ["ConfigMap/web"], "{kinds:?}");
    installed.cluster.stop().await
}

fn rand_name() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_captured_is_refused_with_what_why_and_how_to_fix() -> Result<()> {
    let installed = Installed::start("refused", Store::Secrets).await?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}).to_string();
    installed.given(&namespace).await?;

    let empty = installed.snapshot("shop", "empty", &json!({})).await?;
    ensure!(
        status(&empty)["phase"] == "Ready" && status(&empty)["objects"]["captured"] == 0,
        "{:#}",
        status(&empty)
    );

    let nothing = installed
        .snapshot(
            "shop",
            "nothing",
            &json!({"capture": {"selector": {"matchLabels": {"a": "b"}}}}),
        )
        .await?;
    ensure!(
        status(&nothing)["phase"] == "Failed" && reason(&nothing).starts_with("NothingMatched"),
        "{:#}",
        status(&nothing)
    );
    let unknown = installed
        .snapshot(
            "shop",
            "unknown",
            &json!({"capture": {"include": [{"kinds": ["Deploymint"]}]}}),
        )
        .await?;
    ensure!(
        reason(&unknown).starts_with("UnknownKind") && reason(&unknown).contains("Deploymint"),
        "{}",
        reason(&unknown)
    );

    for (name, spec, expected) in [
        ("zero", json!({"ttl": "0s"}), "ttl"),
        ("store", json!({"store": "nowhere"}), "store"),
        ("hooks", json!({"hooks": {"before": [{"name": "x"}]}}), "hooks"),
        (
            "database",
            json!({"capture": {"components": ["Databases"]}}),
            "components",
        ),
    ] {
        let manifest = json!({"apiVersion": "backstep.dev/v1alpha1", "kind": "Snapshot", "metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        let ran = installed
            .apply(&User::admin(), &manifest.to_string())
            .await?
            .failure()?;
        ensure!(ran.stderr.contains(expected), "{name}: {}", ran.stderr);
    }
    let own = json!({"apiVersion": "backstep.dev/v1alpha1", "kind": "Snapshot", "metadata": {"name": "own", "namespace": "backstep-system"}, "spec": {}});
    let ran = installed.apply(&User::admin(), &own.to_string()).await?.failure()?;
    ensure!(ran.stderr.contains("own namespace"), "{}", ran.stderr);

    // A kind whose conversion fails: named, and can be excluded.
    installed.given(include_str!("fixtures/broken-conversion.yaml")).await?;
    let made = json!({"apiVersion": "broken.example/v1", "kind": "Gadget", "metadata": {"name": "g", "namespace": "shop"}, "spec": {}});
    wait_until(PATIENCE, "the gadget", async || {
        let ran = installed
            .cluster
            .kubectl(&User::admin(), &["apply", "-f", "-"], Some(&made.to_string()))
            .await
            .map_err(|e| e.to_string())?;
        if ran.status.success() {
            Ok(Some(()))
        } else {
            Err(ran.stderr)
        }
    })
    .await?;
    let patch = r#"[{"op":"replace","path":"/spec/versions/0/storage","value":false},{"op":"replace","path":"/spec/versions/1/storage","value":true}]"#;
    let arguments = ["patch", "crd", "gadgets.broken.example", "--type=json", "-p", patch];
    installed
        .cluster
        .kubectl(&User::admin(), &arguments, None)
        .await?
        .success()?;
    let broken = wait_until(PATIENCE, "the broken conversion to show", async || {
        let name = format!("broken-{:x}", rand_name());
        let snapshot = installed
            .snapshot("shop", &name, &json!({}))
            .await
            .map_err(|e| e.to_string())?;
        if status(&snapshot)["phase"] == "Failed" {
            Ok(Some(snapshot))
        } else {
            Err(status(&snapshot).to_string())
        }
    })
    .await?;
    ensure!(
        reason(&broken).starts_with("CaptureIncomplete") && reason(&broken).contains("Gadget"),
        "{}",
        reason(&broken)
    );
    let spec = json!({"capture": {"exclude": [{"group": "broken.example", "kinds": ["Gadget"]}]}});
    let without = installed.snapshot("shop", "without", &spec).await?;
    ensure!(status(&without)["phase"] == "Ready", "{:#}", status(&without));
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_operator_and_running_two_never_gives_two_snapshots_one_version_or_loses_one() -> Result<()> {
    let mut installed = Installed::start("killed", Store::Directory).await?;
    settled_shop(&installed, "shop").await?;
    let other = installed.another_operator("other").await?;
    let names: Vec<String> = (0..24).map(|i| format!("s{i:02}")).collect();
    for (index, name) in names.iter().enumerate() {
        let manifest = json!({"apiVersion": "backstep.dev/v1alpha1", "kind": "Snapshot", "metadata": {"name": name, "namespace": "shop"}, "spec": {"lineage": "shop"}});
        installed.given(&manifest.to_string()).await?;
        // At moments that differ from round to round.
        if index % 4 == 3 {
            tokio::time::timeout(Duration::from_millis(7 * index as u64), std::future::pending::<()>())
                .await
                .ok();
            installed.kill_operator();
            installed.start_operator().await?;
        }
    }
    let mut versions = BTreeMap::new();
    for name in &names {
        let snapshot = installed.ended("shop", name).await?;
        ensure!(status(&snapshot)["phase"] == "Ready", "{name}: {:#}", status(&snapshot));
        let version = status(&snapshot)["version"].as_i64().context("version")?;
        ensure!(
            versions.insert(version, name.clone()).is_none(),
            "two snapshots have version {version}"
        );
        // Every Ready snapshot can be read.
        ensure!(entries(&installed, &snapshot).await?.len() >= 26);
    }
    let report = repository(&installed).await?.verify(|_| {}).await?;
    ensure!(report.is_clean(), "{report:?}");
    drop(other);
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_snapshot_frees_its_contents_unless_they_are_retained_or_shared() -> Result<()> {
    let installed = Installed::start_with(
        testbed::ClusterOptions::named("freed"),
        Store::Secrets,
        &["--vanished-grace", "1s", "--maintenance-interval", "2s"],
    )
    .await?;
    installed
        .given(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}).to_string())
        .await?;
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(installed.admin().await?, "backstep-system");
    let stored = async || -> Result<usize> {
        Ok(secrets
            .list(&kube::api::ListParams::default())
            .await?
            .items
            .iter()
            .filter(|s| s.type_.as_deref() == Some("backstep.dev/repository"))
            .count())
    };

    for name in ["a", "b"] {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "shop"}, "data": {"x": name.repeat(2000)}});
        installed.given(&map.to_string()).await?;
        installed.snapshot("shop", name, &json!({})).await?;
    }
    let retained = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "shop"}, "data": {"x": "c"}});
    installed.given(&retained.to_string()).await?;
    let kept = installed
        .snapshot("shop", "kept", &json!({"deletionPolicy": "Retain"}))
        .await?;
    let before = stored().await?;
    installed
        .cluster
        .kubectl(
            &User::admin(),
            &["delete", "snapshot", "a", "b", "kept", "-n", "shop"],
            None,
        )
        .await?
        .success()?;
    wait_until(PATIENCE, "the contents to be freed", async || {
        let client = installed.admin().await.map_err(|e| e.to_string())?;
        let backend = SecretsBackend::new(client, OPERATOR_NAMESPACE, names::BUILT_IN_STORE, u64::MAX)
            .map_err(|e| e.to_string())?;
        let repository = Repository::open(Arc::new(backend), Options::new(Timestamp::now))
            .await
            .map_err(|e| e.to_string())?;
        let left: Vec<_> = repository.snapshots(None).iter().map(|r| r.name.clone()).collect();
        if left == ["kept"] {
            Ok(Some(()))
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await?;
    ensure!(stored().await? <= before + 4, "the store only grows");

    // What is kept is found, read and freed from the command line.
    let admin = User::admin();
    let kept_version = format!(
        "default@{}",
        kept.status.as_ref().and_then(|s| s.version).context("version")?
    );
    let cli = async |verb: &[&str]| {
        let arguments = [&["snapshot"], verb, &["--retained", "-n", "shop"]].concat();
        installed.cli(&admin, &arguments).await
    };
    let listed: Value = serde_json::from_str(&cli(&["list", "-o", "json"]).await?.success()?.stdout)?;
    let listed = listed["items"].as_array().context("items")?;
    ensure!(
        listed.len() == 1 && listed[0]["metadata"]["name"] == "kept" && listed[0]["spec"]["deletionPolicy"] == "Retain",
        "{listed:?}"
    );
    let shown = cli(&["show", "kept"]).await?.success()?.stdout;
    ensure!(shown.contains("Retained") && shown.contains("ConfigMap"), "{shown}");
    let exported: Value =
        serde_json::from_str(&cli(&["export", &kept_version, "-f", "json"]).await?.success()?.stdout)?;
    let exported = exported["items"].as_array().context("items")?;
    ensure!(
        exported
            .iter()
            .any(|o| o["metadata"]["name"] == "c" && o["data"]["x"] == "c"),
        "{exported:?}"
    );
    cli(&["verify", "kept"]).await?.success()?;
    let same = cli(&["diff", "kept", "--against", "live"]).await?.success()?;
    ensure!(same.stdout.contains("0 changed"), "{same}");
    let changed = retained.to_string().replace(r#""x":"c""#, r#""x":"d""#);
    installed.given(&changed).await?;
    let differs = cli(&["diff", "kept", "--against", "live"]).await?;
    ensure!(
        differs.status.code() == Some(1) && differs.stdout.contains(r#"data.x: "c" → "d""#),
        "{differs}"
    );
    let unknown = ["snapshot", "diff", "kept", "--against", "live", "-n", "shop"];
    let unknown = installed.cli(&admin, &unknown).await?;
    ensure!(unknown.status.code() == Some(3), "{unknown}");
    let gone = cli(&["export", "a"]).await?;
    ensure!(!gone.status.success() && gone.stderr.contains("--retained"), "{gone}");
    let alice = User::new("alice", ["developers"]);
    let refused = installed
        .cli(&alice, &["snapshot", "list", "--retained", "-n", "shop"])
        .await?;
    ensure!(!refused.status.success() && refused.stdout.is_empty(), "{refused}");
    cli(&["delete", "kept", "--yes"]).await?.success()?;
    let left = cli(&["list"]).await?.success()?;
    ensure!(left.stderr.contains("No retained contents"), "{left}");

    // ttl: expires while a newer one of the lineage exists, never the last or a pinned one.
    let ttl = json!({"lineage": "short", "ttl": "1s"});
    let api: Api<Snapshot> = Api::namespaced(installed.admin().await?, "shop");
    installed.snapshot("shop", "t1", &ttl).await?;
    installed
        .cluster
        .kubectl(
            &User::admin(),
            &["label", "snapshot", "t1", "backstep.dev/pinned=true", "-n", "shop"],
            None,
        )
        .await?
        .success()?;
    installed.snapshot("shop", "t2", &ttl).await?;
    let ttl_retained = json!({"lineage": "short", "ttl": "1s", "deletionPolicy": "Retain"});
    installed.snapshot("shop", "retained", &ttl_retained).await?;
    installed.snapshot("shop", "t3", &json!({"lineage": "short"})).await?;
    let retained = wait_until(PATIENCE, "the retained one to expire", async || {
        let snapshot = api.get("retained").await.map_err(|e| e.to_string())?;
        if snapshot.status.as_ref().and_then(|s| s.phase) == Some(SnapshotPhase::Expired) {
            Ok(Some(snapshot))
        } else {
            Err(format!("{:?}", snapshot.status))
        }
    })
    .await?;
    let said = reason(&retained);
    ensure!(said.starts_with("Retained ") && said.contains("are kept"), "{said}");
    wait_until(PATIENCE, "t2 to expire", async || {
        let phase = api
            .get("t2")
            .await
            .map_err(|e| e.to_string())?
            .status
            .and_then(|s| s.phase);
        if phase == Some(SnapshotPhase::Expired) {
            Ok(Some(()))
        } else {
            Err(format!("{phase:?}"))
        }
    })
    .await?;
    ensure!(
        api.get("t1").await?.status.and_then(|s| s.phase) == Some(SnapshotPhase::Ready),
        "a pinned snapshot expired"
    );
    let backend = SecretsBackend::new(
        installed.admin().await?,
        OPERATOR_NAMESPACE,
        names::BUILT_IN_STORE,
        u64::MAX,
    )?;
    let repository = Repository::open(Arc::new(backend), Options::new(Timestamp::now)).await?;
    let uid = retained.uid().context("uid")?;
    ensure!(
        repository.verify_snapshot(&uid).await?.is_clean(),
        "the retained contents are not whole"
    );
    installed.cluster.stop().await
}

/// The status line and body of a GET.
pub fn get(address: &str, path: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: backstep\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_is_ready_only_while_its_policies_are_in_place_and_counts_what_it_does() -> Result<()> {
    let installed = Installed::start("admin", Store::Directory).await?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    installed.given(&namespace.to_string()).await?;
    installed.snapshot("shop", "one", &json!({})).await?;
    let address = installed.operator()?.admin().await?;
    ensure!(
        get(&address, "/livez")?.starts_with("HTTP/1.1 200") && get(&address, "/readyz")?.starts_with("HTTP/1.1 200")
    );
    let metrics = get(&address, "/metrics")?;
    for line in [
        "backstep_snapshots_total{outcome=\"ready\"} 1",
        "backstep_leader 1",
        "backstep_guard_healthy 1",
        "backstep_repository_corrupt 0",
    ] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    ensure!(!metrics.contains("shop"), "names are no labels");

    // Nothing is captured while a policy is missing, and the Snapshot says why.
    let policy = "requests.guard.backstep.dev";
    let yaml = installed
        .cluster
        .kubectl(
            &User::admin(),
            &["get", "validatingadmissionpolicy", policy, "-o", "json"],
            None,
        )
        .await?
        .success()?
        .stdout;
    installed
        .cluster
        .kubectl(&User::admin(), &["delete", "validatingadmissionpolicy", policy], None)
        .await?
        .success()?;
    wait_until(PATIENCE, "the operator to miss its policy", async || {
        let answer = get(&address, "/readyz").map_err(|e| e.to_string())?;
        if answer.starts_with("HTTP/1.1 503") && answer.contains(policy) {
            Ok(Some(()))
        } else {
            Err(answer)
        }
    })
    .await?;
    let manifest = json!({"apiVersion": "backstep.dev/v1alpha1", "kind": "Snapshot", "metadata": {"name": "held", "namespace": "shop"}, "spec": {}});
    installed.given(&manifest.to_string()).await?;
    let api: Api<Snapshot> = Api::namespaced(installed.admin().await?, "shop");
    wait_until(PATIENCE, "the Snapshot to say what is missing", async || {
        let held = api.get("held").await.map_err(|e| e.to_string())?;
        if reason(&held).starts_with("GuardUnhealthy") {
            Ok(Some(()))
        } else {
            Err(status(&held).to_string())
        }
    })
    .await?;
    let mut again: Value = serde_json::from_str(&yaml)?;
    again["metadata"] = json!({"name": policy});
    installed.given(&again.to_string()).await?;
    let held = installed.ended("shop", "held").await?;
    ensure!(status(&held)["phase"] == "Ready", "{:#}", status(&held));
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_store_is_found_by_itself_and_said_on_each_affected_snapshot() -> Result<()> {
    let arguments = ["--verify-interval", "1s", "--maintenance-interval", "1s"];
    let mut installed =
        Installed::start_with(testbed::ClusterOptions::named("damaged"), Store::Directory, &arguments).await?;
    installed
        .given(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}).to_string())
        .await?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "shop"}, "data": {"x": "a".repeat(3000)}});
    installed.given(&map.to_string()).await?;
    let taken = installed.snapshot("shop", "taken", &json!({})).await?;
    ensure!(
        status(&taken)["conditions"]
            .as_array()
            .is_some_and(|cs| cs.iter().any(|c| c["type"] == "Verified" && c["status"] == "True"))
    );
    let pack = std::fs::read_dir(installed.store_directory().join("packs"))?
        .next()
        .context("a pack")??
        .path();
    let mut bytes = std::fs::read(&pack)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes)?;
    let api: Api<Snapshot> = Api::namespaced(installed.admin().await?, "shop");
    let verified = async || -> Result<Value, String> {
        let seen = status(&api.get("taken").await.map_err(|e| e.to_string())?);
        let conditions = seen["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|c| c["type"] == "Verified");
        found.ok_or_else(|| seen.to_string())
    };
    let damaged = wait_until(PATIENCE, "the damage to be said", async || {
        let seen = verified().await?;
        if seen["status"] == "False" && seen["reason"] == "Corrupt" {
            Ok(Some(seen))
        } else {
            Err(seen.to_string())
        }
    })
    .await?;

    // The next process knows of it before it could look for itself: the store cannot be opened.
    installed.kill_operator();
    let (store, away) = (
        installed.store_directory(),
        installed.store_directory().with_extension("away"),
    );
    std::fs::rename(&store, &away)?;
    std::fs::write(&store, "no directory")?;
    let next = installed.another_operator("next").await?;
    let address = next.admin().await?;
    let remembered = "backstep_repository_corrupt 1";
    wait_until(PATIENCE, "the damage to be remembered", async || {
        let metrics = get(&address, "/metrics").map_err(|e| e.to_string())?;
        if metrics.lines().any(|line| line == remembered) {
            Ok(Some(()))
        } else {
            Err(metrics)
        }
    })
    .await?;
    ensure!(
        verified().await.map_err(anyhow::Error::msg)? == damaged,
        "it was taken back unseen"
    );
    // Brought back from a copy, it is sound again once it was verified.
    std::fs::remove_file(&store)?;
    std::fs::rename(&away, &store)?;
    let mut bytes = std::fs::read(&pack)?;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes)?;
    wait_until(PATIENCE, "the snapshot to be verified again", async || {
        let seen = verified().await?;
        if seen["status"] == "True" {
            Ok(Some(()))
        } else {
            Err(seen.to_string())
        }
    })
    .await?;
    drop(next);
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_value_appears_nowhere_and_with_fingerprint_not_even_in_the_repository() -> Result<()> {
    const CANARY: &str = "canary-7d1f3b";
    let installed = Installed::start("canary", Store::Directory).await?;
    installed
        .given(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}).to_string())
        .await?;
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: web, namespace: shop}}\nstringData: {{a: {CANARY}-one}}\ndata: {{b: {}}}\n",
        base64(&format!("{CANARY}-two"))
    );
    installed.given(&secret).await?;
    let snapshot = installed
        .snapshot("shop", "print", &json!({"capture": {"secrets": "Fingerprint"}}))
        .await?;
    ensure!(status(&snapshot)["phase"] == "Ready", "{:#}", status(&snapshot));
    let encoded = base64(CANARY);
    let encoded = encoded
        .trim_end_matches('=')
        .get(..12)
        .context("long enough")?
        .to_owned();
    let repository = repository(&installed).await?;
    let reader = repository.manifest(&snapshot.uid().context("uid")?).await?;
    let rows: Vec<_> = reader.entries().try_collect().await?;
    for (_, entry) in rows {
        let mut stored = vec![repository.read_chunk(&entry.content).await?];
        if let Some(beside) = &entry.beside {
            stored.push(repository.read_chunk(beside).await?);
        }
        for bytes in stored {
            let text = String::from_utf8(bytes.to_vec())?;
            ensure!(!text.contains(CANARY) && !text.contains(&encoded), "{text}");
        }
    }
    let rotated = secret.replace("-one", "-rotated");
    installed.given(&rotated).await?;
    let after = installed
        .snapshot("shop", "after", &json!({"capture": {"secrets": "Fingerprint"}}))
        .await?;
    ensure!(
        status(&after)["digest"] != status(&snapshot)["digest"],
        "a rotation goes unseen"
    );
    installed.snapshot("shop", "with", &json!({"lineage": "with"})).await?;
    let dump = installed
        .cluster
        .kubectl(&User::admin(), &["get", "snapshots,events", "-A", "-o", "json"], None)
        .await?
        .success()?
        .stdout;
    ensure!(!dump.contains(CANARY) && !installed.log().contains(CANARY));
    ensure!(!dump.contains(&encoded) && !installed.log().contains(&encoded));
    installed.cluster.stop().await
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
