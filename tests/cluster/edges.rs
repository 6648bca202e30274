//! Large, full, gone and broken: what a capture meets at the edges.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use backstep::{
    api::{Snapshot, snapshot::SnapshotPhase},
    repository::{ObjectStoreBackend, Options, Repository, SecretsBackend, SnapshotRecord},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use testbed::{ClusterOptions, User, wait_until};

use crate::support::{Installed, OPERATOR_NAMESPACE, PATIENCE, Store};

/// Opens the store as administrators' tools do.
async fn repository(installed: &Installed, store: Store) -> Result<Repository> {
    let options = Options::new(Timestamp::now);
    Ok(match store {
        Store::Secrets => {
            let backend = SecretsBackend::new(installed.admin().await?, OPERATOR_NAMESPACE, "default", u64::MAX)?;
            Repository::open(Arc::new(backend), options).await?
        }
        Store::Directory => {
            let path = installed.store_directory();
            let backend = ObjectStoreBackend::local(path.to_str().context("path")?)?;
            Repository::open(Arc::new(backend), options).await?
        }
    })
}

async fn records(installed: &Installed, store: Store) -> Result<Vec<Arc<SnapshotRecord>>> {
    Ok(repository(installed, store).await?.snapshots(None))
}

fn status(snapshot: &Snapshot) -> Value {
    serde_json::to_value(&snapshot.status).unwrap_or_default()
}

/// Reason and message of the condition `Ready`.
fn why(snapshot: &Snapshot) -> String {
    let status = status(snapshot);
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|c| c["type"] == "Ready");
    ready.map_or_else(String::new, |c| {
        format!(
            "{} {}",
            c["reason"].as_str().unwrap_or_default(),
            c["message"].as_str().unwrap_or_default()
        )
    })
}

async fn namespace(installed: &Installed, name: &str) -> Result<()> {
    installed
        .given(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}).to_string())
        .await
}

/// Text that does not compress below three quarters of its length.
fn noise(seed: u64, bytes: usize) -> String {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    (0..bytes)
        .map(|_| char::from(b'0' + random.random_range(0..64u8)))
        .collect()
}

fn config_map(name: &str, text: &str) -> Result<ConfigMap> {
    Ok(serde_json::from_value(
        json!({"metadata": {"name": name}, "data": {"text": text}}),
    )?)
}

async fn fill(installed: &Installed, namespace: &str, maps: Vec<ConfigMap>) -> Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(installed.admin().await?, namespace);
    stream::iter(maps)
        .map(|map| {
            let api = api.clone();
            async move { api.create(&PostParams::default(), &map).await.map(drop) }
        })
        .buffer_unordered(32)
        .try_collect::<()>()
        .await?;
    Ok(())
}

fn logs_no_panic(installed: &Installed) -> Result<()> {
    let log = installed.log();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_objects_with_the_longest_names_and_one_of_900_kb_fit_into_secrets() -> Result<()> {
    let installed = Installed::start("edges-large", Store::Secrets).await?;
    let shop = "s".repeat(63);
    namespace(&installed, &shop).await?;
    // The longest name that the API server takes, with dots and without.
    let name = |i: usize| {
        let fill = if i.is_multiple_of(2) {
            "a".repeat(248)
        } else {
            format!("{}.b", "a".repeat(246))
        };
        format!("{i:04}-{fill}")
    };
    let mut maps = vec![config_map(&"z".repeat(253), &noise(1, 900_000))?];
    for i in 0..4000 {
        maps.push(config_map(&name(i), &noise(i as u64, 100))?);
    }
    fill(&installed, &shop, maps).await?;
    let secrets: Api<Secret> = Api::namespaced(installed.admin().await?, &shop);
    stream::iter(0..999)
        .map(|i| {
            let (secrets, secret) = (
                secrets.clone(),
                json!({"metadata": {"name": name(i)}, "stringData": {"k": noise(i as u64, 40)}}),
            );
            async move {
                secrets
                    .create(&PostParams::default(), &serde_json::from_value(secret)?)
                    .await?;
                Ok::<_, anyhow::Error>(())
            }
        })
        .buffer_unordered(32)
        .try_collect::<()>()
        .await?;

    let taken = installed
        .snapshot(&shop, "large", &json!({"lineage": "l".repeat(63)}))
        .await?;
    ensure!(status(&taken)["phase"] == "Ready", "{:#}", status(&taken));
    ensure!(status(&taken)["objects"]["captured"] == 5000, "{:#}", status(&taken));
    let report = repository(&installed, Store::Secrets).await?.verify(|_| ()).await?;
    ensure!(report.is_clean(), "{report:#?}");
    let again = installed
        .snapshot(&shop, "again", &json!({"lineage": "l".repeat(63)}))
        .await?;
    ensure!(
        status(&again)["digest"] == status(&taken)["digest"],
        "{:#}",
        status(&again)
    );
    ensure!(status(&again)["objects"]["unchanged"] == 5000, "{:#}", status(&again));
    logs_no_panic(&installed)?;
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_fails_the_capture_with_the_figures_keeps_no_half_and_works_again_when_freed() -> Result<()> {
    let arguments = [
        "--store-quota",
        "64Ki",
        "--maintenance-interval",
        "1s",
        "--vanished-grace",
        "1s",
        "--orphan-grace",
        "1s",
    ];
    let installed = Installed::start_with(ClusterOptions::named("edges-quota"), Store::Secrets, &arguments).await?;
    namespace(&installed, "shop").await?;
    fill(&installed, "shop", vec![config_map("small", "one")?]).await?;
    let first = installed.snapshot("shop", "first", &json!({})).await?;
    ensure!(status(&first)["phase"] == "Ready", "{:#}", status(&first));

    fill(&installed, "shop", vec![config_map("large", &noise(7, 200_000))?]).await?;
    let full = installed.snapshot("shop", "full", &json!({})).await?;
    ensure!(status(&full)["phase"] == "Failed", "{:#}", status(&full));
    let message = why(&full);
    ensure!(message.starts_with("QuotaExceeded "), "{message}");
    ensure!(message.contains("65536") && message.contains("bytes used"), "{message}");
    let kept: Vec<_> = records(&installed, Store::Secrets)
        .await?
        .iter()
        .map(|r| r.name.clone())
        .collect();
    ensure!(kept == ["first"], "{kept:?}");

    // What was half written is tidied away, and there is room for what fits.
    let maps: Api<ConfigMap> = Api::namespaced(installed.admin().await?, "shop");
    maps.delete("large", &DeleteParams::default()).await?;
    fill(&installed, "shop", vec![config_map("fits", &noise(8, 20_000))?]).await?;
    wait_until(PATIENCE, "a capture that fits", async || {
        let name = format!("fits-{:x}", rand::rng().random::<u64>());
        let taken = installed
            .snapshot("shop", &name, &json!({}))
            .await
            .map_err(|e| e.to_string())?;
        if status(&taken)["phase"] == "Ready" {
            Ok(Some(taken))
        } else {
            Err(why(&taken))
        }
    })
    .await?;
    let report = repository(&installed, Store::Secrets).await?.verify(|_| ()).await?;
    ensure!(report.is_clean(), "{report:#?}");
    logs_no_panic(&installed)?;
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_deleted_in_the_middle_is_captured_whole_or_not_at_all() -> Result<()> {
    const OBJECTS: u64 = 600;
    let installed = Installed::start("edges-gone", Store::Directory).await?;
    let namespaces: Api<Namespace> = Api::all(installed.admin().await?);
    let mut undisturbed = Duration::ZERO;
    for round in 0..=8u32 {
        let shop = format!("shop-{round}");
        namespace(&installed, &shop).await?;
        let maps = (0..OBJECTS)
            .map(|i| config_map(&format!("m{i}"), &noise(i, 50)))
            .collect::<Result<_>>()?;
        fill(&installed, &shop, maps).await?;
        let spec = serde_json::from_value(json!({"deletionPolicy": "Retain"}))?;
        let snapshots: Api<Snapshot> = Api::namespaced(installed.admin().await?, &shop);
        snapshots
            .create(&PostParams::default(), &Snapshot::new("last", spec))
            .await?;
        // The first tells how long a capture takes, the others are each disturbed at another moment of it.
        if round == 0 {
            let began = std::time::Instant::now();
            let whole = installed.ended(&shop, "last").await?;
            undisturbed = began.elapsed();
            ensure!(status(&whole)["phase"] == "Ready", "{:#}", status(&whole));
        } else {
            let moment = undisturbed * (round - 1) / 8;
            tokio::time::timeout(moment, std::future::pending::<()>()).await.ok();
        }
        namespaces.delete(&shop, &DeleteParams::default()).await?;
    }
    wait_until(PATIENCE, "the namespaces to go", async || {
        let left = namespaces
            .list(&kube::api::ListParams::default())
            .await
            .map_err(|e| e.to_string())?;
        let left: Vec<_> = left
            .items
            .iter()
            .map(ResourceExt::name_any)
            .filter(|n| n.starts_with("shop-"))
            .collect();
        if left.is_empty() {
            Ok(Some(()))
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await?;
    // A later pass ends after those that were under way.
    namespace(&installed, "after").await?;
    let after = installed.snapshot("after", "after", &json!({})).await?;
    ensure!(status(&after)["phase"] == "Ready", "{:#}", status(&after));
    let records = records(&installed, Store::Directory).await?;
    for record in records {
        let whole = record.namespace == "after" || record.counts.captured == OBJECTS;
        ensure!(
            whole,
            "{} of {OBJECTS} objects of {} count as a snapshot",
            record.counts.captured,
            record.namespace
        );
    }
    let log = installed.log();
    ensure!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_is_said_so_and_the_capture_goes_on_when_it_is_back() -> Result<()> {
    let arguments = ["--maintenance-interval", "1s"];
    let installed = Installed::start_with(ClusterOptions::named("edges-store"), Store::Directory, &arguments).await?;
    namespace(&installed, "shop").await?;
    fill(&installed, "shop", vec![config_map("one", &noise(1, 1000))?]).await?;
    let first = installed.snapshot("shop", "first", &json!({})).await?;
    ensure!(status(&first)["phase"] == "Ready", "{:#}", status(&first));

    // A file in its place can be neither read nor written as a directory, whoever tries.
    let (store, away) = (
        installed.store_directory(),
        installed.store_directory().with_extension("away"),
    );
    std::fs::rename(&store, &away)?;
    std::fs::write(&store, "")?;
    fill(&installed, "shop", vec![config_map("two", &noise(2, 1000))?]).await?;
    let snapshot = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "Snapshot",
        "metadata": {"name": "second", "namespace": "shop"}, "spec": {},
    });
    installed.given(&snapshot.to_string()).await?;
    let api: Api<Snapshot> = Api::namespaced(installed.admin().await?, "shop");
    let said = wait_until(PATIENCE, "the condition to name the store", async || {
        let snapshot = api.get("second").await.map_err(|e| e.to_string())?;
        ensure_open(&snapshot)?;
        let why = why(&snapshot);
        if why.starts_with("StoreUnavailable") {
            Ok(Some(why))
        } else {
            Err(why)
        }
    })
    .await?;
    ensure!(said.contains("store"), "{said}");

    std::fs::remove_file(&store)?;
    std::fs::rename(&away, &store)?;
    let second = installed.ended("shop", "second").await?;
    ensure!(
        status(&second)["phase"] == "Ready" && status(&second)["version"] == 2,
        "{:#}",
        status(&second)
    );
    let report = repository(&installed, Store::Directory).await?.verify(|_| ()).await?;
    ensure!(report.is_clean(), "{report:#?}");

    // Emptied underneath: never a new version over the lost ones.
    std::fs::rename(&store, &away)?;
    std::fs::create_dir(&store)?;
    installed
        .given(&snapshot.to_string().replace("second", "third"))
        .await?;
    let said = wait_until(PATIENCE, "the condition to name the loss", async || {
        let snapshot = api.get("third").await.map_err(|e| e.to_string())?;
        let phase = snapshot.status.as_ref().and_then(|s| s.phase);
        if phase == Some(SnapshotPhase::Ready) {
            return Ok(Some(format!("Ready over a lost history: {:#}", status(&snapshot))));
        }
        let why = why(&snapshot);
        if why.starts_with("Corrupt") || why.starts_with("StoreUnavailable") {
            Ok(Some(why))
        } else {
            Err(why)
        }
    })
    .await?;
    ensure!(!said.starts_with("Ready"), "{said}");
    logs_no_panic(&installed)?;
    installed.cluster.stop().await
}

/// A capture that waits for its store has not ended.
fn ensure_open(snapshot: &Snapshot) -> Result<(), String> {
    match snapshot.status.as_ref().and_then(|s| s.phase) {
        Some(SnapshotPhase::Ready | SnapshotPhase::Failed) => Err(format!("ended: {}", why(snapshot))),
        _ => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_of_snapshots_deleted_while_the_operator_was_down_go_unless_they_are_retained() -> Result<()> {
    let arguments = ["--vanished-grace", "1s", "--maintenance-interval", "1s"];
    let mut installed =
        Installed::start_with(ClusterOptions::named("edges-down"), Store::Directory, &arguments).await?;
    namespace(&installed, "shop").await?;
    for (name, policy) in [("goes", "Delete"), ("kept", "Retain"), ("lives", "Delete")] {
        fill(&installed, "shop", vec![config_map(name, &noise(3, 3000))?]).await?;
        let taken = installed
            .snapshot("shop", name, &json!({"deletionPolicy": policy}))
            .await?;
        ensure!(status(&taken)["phase"] == "Ready", "{:#}", status(&taken));
    }
    installed.kill_operator();
    let arguments = ["delete", "snapshot", "goes", "kept", "-n", "shop", "--timeout=60s"];
    installed
        .cluster
        .kubectl(&User::admin(), &arguments, None)
        .await?
        .success()?;
    installed.start_operator().await?;
    wait_until(PATIENCE, "the contents to be freed", async || {
        let mut left: Vec<_> = records(&installed, Store::Directory)
            .await
            .map_err(|e| e.to_string())?
            .iter()
            .map(|r| r.name.clone())
            .collect();
        left.sort();
        if left == ["kept", "lives"] {
            Ok(Some(()))
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await?;
    let report = repository(&installed, Store::Directory).await?.verify(|_| ()).await?;
    ensure!(report.is_clean(), "{report:#?}");
    // Kept contents are a parent like any other.
    let next = installed.snapshot("shop", "next", &json!({})).await?;
    ensure!(
        status(&next)["phase"] == "Ready" && status(&next)["version"] == 4,
        "{:#}",
        status(&next)
    );
    let names: Vec<_> = records(&installed, Store::Directory)
        .await?
        .iter()
        .map(|r| r.name.clone())
        .collect();
    ensure!(names.iter().any(|n| n == "kept"), "{names:?}");
    logs_no_panic(&installed)?;
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_the_crd_of_snapshots_does_not_cost_their_contents() -> Result<()> {
    let arguments = ["--vanished-grace", "1h", "--maintenance-interval", "1s"];
    let installed = Installed::start_with(ClusterOptions::named("edges-crd"), Store::Directory, &arguments).await?;
    namespace(&installed, "shop").await?;
    for name in ["one", "two"] {
        fill(&installed, "shop", vec![config_map(name, &noise(5, 3000))?]).await?;
        let taken = installed.snapshot("shop", name, &json!({})).await?;
        ensure!(status(&taken)["phase"] == "Ready", "{:#}", status(&taken));
    }
    let arguments = ["delete", "crd", "snapshots.backstep.dev", "--timeout=60s"];
    installed
        .cluster
        .kubectl(&User::admin(), &arguments, None)
        .await?
        .success()?;
    wait_until(PATIENCE, "the operator to see that the kind is gone", async || {
        if installed.log().contains("Snapshots are not served") {
            Ok(Some(()))
        } else {
            Err("it did not say so".to_owned())
        }
    })
    .await?;
    installed
        .given(include_str!("../../crds/backstep.dev_snapshots.yaml"))
        .await?;

    // One that is deleted for itself goes at once, which also shows that the operator has looked at all of them since.
    wait_until(PATIENCE, "a snapshot of the new kind", async || {
        let taken = installed.snapshot("shop", "three", &json!({})).await;
        taken.map(Some).map_err(|e| format!("{e:#}"))
    })
    .await?;
    let arguments = ["delete", "snapshot", "three", "-n", "shop", "--timeout=60s"];
    installed
        .cluster
        .kubectl(&User::admin(), &arguments, None)
        .await?
        .success()?;
    wait_until(PATIENCE, "the contents of the deleted one to be freed", async || {
        let stored = records(&installed, Store::Directory).await.map_err(|e| e.to_string())?;
        let mut left: Vec<_> = stored.iter().map(|record| record.name.as_str()).collect();
        left.sort_unstable();
        if left == ["one", "two"] {
            Ok(Some(()))
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await?;
    let report = repository(&installed, Store::Directory).await?.verify(|_| ()).await?;
    ensure!(report.is_clean(), "{report:#?}");
    logs_no_panic(&installed)?;
    installed.cluster.stop().await
}
