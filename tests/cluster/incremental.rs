//! Captures read little when little changed, and give just what a full capture gives.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use backstep::{
    api::Snapshot,
    domain::object::ObjectId,
    repository::{ObjectStoreBackend, Options, Repository},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use testbed::{User, wait_until};

use crate::support::{Installed, PATIENCE, Store};

async fn repository(installed: &Installed) -> Result<Repository> {
    let backend = ObjectStoreBackend::local(installed.store_directory().to_str().context("path")?)?;
    Ok(Repository::open(Arc::new(backend), Options::new(Timestamp::now)).await?)
}

/// Everything that a snapshot keeps of each object.
async fn entries(installed: &Installed, snapshot: &Snapshot) -> Result<BTreeMap<ObjectId, Value>> {
    let reader = repository(installed)
        .await?
        .manifest(&snapshot.uid().context("uid")?)
        .await?;
    let rows: Vec<_> = reader.entries().try_collect().await?;
    let row = |entry: &backstep::repository::Entry| {
        json!([
            entry.content.to_string(),
            entry.size,
            entry.beside.map(|digest| digest.to_string()),
            entry.uid,
            entry.resource_version
        ])
    };
    Ok(rows.iter().map(|(kind, entry)| (entry.id(kind), row(entry))).collect())
}

fn status(snapshot: &Snapshot) -> Value {
    serde_json::to_value(&snapshot.status).unwrap_or_default()
}

/// LISTs and GETs of `resource` that a capture made, and the snapshot.
async fn counted(installed: &Installed, name: &str, spec: &Value, resource: &str) -> Result<(u64, u64, Snapshot)> {
    let before = installed.cluster.api_requests().await?;
    let snapshot = installed.snapshot("shop", name, spec).await?;
    ensure!(status(&snapshot)["phase"] == "Ready", "{name}: {:#}", status(&snapshot));
    let made = installed.cluster.api_requests().await?.since(&before);
    let lists = made.count(|r| r.verb == "LIST" && r.resource == resource && r.scope == "namespace");
    let gets = made.count(|r| r.verb == "GET" && r.resource == resource && r.scope == "resource");
    Ok((lists, gets, snapshot))
}

/// A snapshot of a lineage of its own reads everything; `snapshot` must hold the same.
async fn equals_a_full_capture(installed: &Installed, snapshot: &Snapshot, capture: &Value) -> Result<()> {
    let name = format!("full-{}", snapshot.name_any());
    let full = installed
        .snapshot("shop", &name, &json!({"lineage": name, "capture": capture}))
        .await?;
    let (left, right) = (entries(installed, snapshot).await?, entries(installed, &full).await?);
    let differs: Vec<_> = left
        .keys()
        .chain(right.keys())
        .filter(|id| left.get(id) != right.get(id))
        .map(|id| (id, left.get(id), right.get(id)))
        .collect();
    ensure!(differs.is_empty(), "{differs:#?}");
    let (left, right) = (status(snapshot), status(&full));
    for field in ["digest", "components", "images"] {
        ensure!(
            left[field] == right[field],
            "{field}: {:#} is not {:#}",
            left[field],
            right[field]
        );
    }
    for field in ["captured", "skipped"] {
        ensure!(
            left["objects"][field] == right["objects"][field],
            "{field}: {left:#} is not {right:#}"
        );
    }
    Ok(())
}

async fn namespace(installed: &Installed) -> Result<()> {
    installed
        .given(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}).to_string())
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_change_is_read_as_metadata_and_each_changed_object_by_one_get() -> Result<()> {
    let installed = Installed::start("incremental", Store::Directory).await?;
    namespace(&installed).await?;
    let maps: Api<ConfigMap> = Api::namespaced(installed.admin().await?, "shop");
    let map = |name: &str, value: &str| -> Result<ConfigMap> {
        Ok(serde_json::from_value(
            json!({"metadata": {"name": name}, "data": {"v": value, "pad": name.repeat(20)}}),
        )?)
    };
    stream::iter(0..1990)
        .map(|i| {
            let made = map(&format!("m{i:04}"), "one");
            let maps = maps.clone();
            async move {
                maps.create(&PostParams::default(), &made?)
                    .await
                    .map_err(anyhow::Error::from)
            }
        })
        .buffer_unordered(32)
        .try_collect::<Vec<_>>()
        .await?;
    let change = async |name: String, value: &'static str| -> Result<()> {
        let patch = Patch::Merge(json!({"data": {"v": value}}));
        maps.patch(&name, &PatchParams::default(), &patch).await?;
        Ok(())
    };

    let (lists, gets, one) = counted(&installed, "one", &json!({}), "configmaps").await?;
    ensure!(
        (lists, gets) == (4, 0),
        "a first capture made {lists} LISTs and {gets} GETs"
    );

    let before = repository(&installed).await?.usage().stored_bytes;
    let (lists, gets, two) = counted(&installed, "two", &json!({}), "configmaps").await?;
    ensure!(
        (lists, gets) == (1, 0),
        "{lists} LISTs and {gets} GETs although nothing changed"
    );
    let written = repository(&installed).await?.usage().stored_bytes - before;
    ensure!(written <= 4096, "{written} bytes written although nothing changed");
    ensure!(entries(&installed, &two).await? == entries(&installed, &one).await?);
    ensure!(status(&two)["digest"] == status(&one)["digest"], "{:#}", status(&two));
    ensure!(
        status(&two)["objects"]["unchanged"] == status(&two)["objects"]["captured"],
        "{:#}",
        status(&two)
    );

    change("m1000".into(), "two").await?;
    let (lists, gets, three) = counted(&installed, "three", &json!({}), "configmaps").await?;
    ensure!(
        (lists, gets) == (1, 1),
        "{lists} LISTs and {gets} GETs for one changed object"
    );
    equals_a_full_capture(&installed, &three, &json!({})).await?;

    // Gone, new, and made again under the same name.
    maps.delete("m0007", &DeleteParams::default()).await?;
    maps.delete("m0008", &DeleteParams::default()).await?;
    maps.create(&PostParams::default(), &map("m0008", "one")?).await?;
    maps.create(&PostParams::default(), &map("a-new-one", "one")?).await?;
    let (lists, gets, four) = counted(&installed, "four", &json!({}), "configmaps").await?;
    ensure!(
        (lists, gets) == (1, 2),
        "{lists} LISTs and {gets} GETs for two new objects"
    );
    equals_a_full_capture(&installed, &four, &json!({})).await?;

    // Too many to read singly: the kind is listed whole after all.
    for i in 0..150 {
        change(format!("m{:04}", 100 + i), "three").await?;
    }
    let (lists, gets, five) = counted(&installed, "five", &json!({}), "configmaps").await?;
    ensure!(
        lists == 5 && gets == 0,
        "{lists} LISTs and {gets} GETs for 150 changed objects"
    );
    equals_a_full_capture(&installed, &five, &json!({})).await?;

    // A selection that changed takes over what both select.
    let some = json!({"exclude": [{"kinds": ["ConfigMap"], "names": ["m00*"]}]});
    let (_, gets, six) = counted(&installed, "six", &json!({"capture": some}), "configmaps").await?;
    ensure!(gets == 0, "{gets} GETs of objects that are left out");
    equals_a_full_capture(&installed, &six, &some).await?;
    let (_, _, seven) = counted(&installed, "seven", &json!({}), "configmaps").await?;
    equals_a_full_capture(&installed, &seven, &json!({})).await?;
    ensure!(!installed.log().contains("panicked"), "{}", installed.log());
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_never_taken_over_from_values_to_fingerprints_or_back() -> Result<()> {
    let installed = Installed::start("modes", Store::Directory).await?;
    namespace(&installed).await?;
    let secrets: Api<Secret> = Api::namespaced(installed.admin().await?, "shop");
    for i in 0..70 {
        let made = json!({"metadata": {"name": format!("s{i:02}")}, "stringData": {"password": format!("canary-{i}")}});
        secrets
            .create(&PostParams::default(), &serde_json::from_value(made)?)
            .await?;
    }
    let token = json!({
        "metadata": {"name": "token", "annotations": {"kubernetes.io/service-account.name": "default"}},
        "type": "kubernetes.io/service-account-token",
    });
    secrets
        .create(&PostParams::default(), &serde_json::from_value(token)?)
        .await?;
    wait_until(PATIENCE, "the token to be issued", async || {
        let token = secrets.get("token").await.map_err(|e| e.to_string())?;
        if token.data.is_some() {
            Ok(Some(()))
        } else {
            Err("no data".to_owned())
        }
    })
    .await?;

    // Values, then fingerprints, then values again: never one for the other; a token is left out each time.
    let (include, print) = (json!({}), json!({"secrets": "Fingerprint"}));
    for (index, capture) in [&include, &include, &print, &print, &include].into_iter().enumerate() {
        let name = format!("secrets-{index}");
        let (lists, gets, snapshot) = counted(&installed, &name, &json!({"capture": capture}), "secrets").await?;
        equals_a_full_capture(&installed, &snapshot, capture).await?;
        // Of metadata the token, whose type that does not tell; for fingerprints the key alone.
        let singly = u64::from(matches!(index, 1..=3));
        ensure!((lists, gets) == (1, singly), "{name}: {lists} LISTs and {gets} GETs");
    }

    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_that_a_definition_fills_in_is_seen_although_no_resource_version_moves() -> Result<()> {
    let installed = Installed::start("defaults", Store::Directory).await?;
    namespace(&installed).await?;
    let definition = |properties: Value| {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "gears.incremental.example"},
            "spec": {
                "group": "incremental.example", "scope": "Namespaced",
                "names": {"kind": "Gear", "plural": "gears", "singular": "gear"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"spec": {"type": "object", "properties": properties}},
                }}}],
            },
        })
        .to_string()
    };
    installed
        .given(&definition(json!({"teeth": {"type": "integer"}})))
        .await?;
    let gears: Vec<Value> = (0..70)
        .map(|i| {
            json!({
                "apiVersion": "incremental.example/v1", "kind": "Gear",
                "metadata": {"name": format!("g{i}"), "namespace": "shop"}, "spec": {"teeth": i},
            })
        })
        .collect();
    let gears = json!({"apiVersion": "v1", "kind": "List", "items": gears}).to_string();
    wait_until(PATIENCE, "the gears", async || {
        let ran = installed
            .cluster
            .kubectl(&User::admin(), &["apply", "-f", "-"], Some(&gears))
            .await
            .map_err(|e| e.to_string())?;
        if ran.status.success() {
            Ok(Some(()))
        } else {
            Err(ran.stderr)
        }
    })
    .await?;
    let (_, _, plain) = counted(&installed, "plain", &json!({}), "gears").await?;
    equals_a_full_capture(&installed, &plain, &json!({})).await?;
    installed
        .given(&definition(
            json!({"teeth": {"type": "integer"}, "shape": {"type": "string", "default": "round"}}),
        ))
        .await?;
    wait_until(PATIENCE, "the default to be served", async || {
        let arguments = ["get", "gear", "g1", "-n", "shop", "-o", "jsonpath={.spec.shape}"];
        let ran = installed
            .cluster
            .kubectl(&User::admin(), &arguments, None)
            .await
            .map_err(|e| e.to_string())?;
        if ran.stdout == "round" {
            Ok(Some(()))
        } else {
            Err(ran.stdout)
        }
    })
    .await?;
    let (_, _, filled) = counted(&installed, "filled", &json!({}), "gears").await?;
    ensure!(
        status(&filled)["digest"] != status(&plain)["digest"],
        "the default goes unseen"
    );
    equals_a_full_capture(&installed, &filled, &json!({})).await?;
    let (lists, gets, again) = counted(&installed, "again", &json!({}), "gears").await?;
    ensure!(
        (lists, gets) == (1, 0) && status(&again)["digest"] == status(&filled)["digest"],
        "{:#}",
        status(&again)
    );
    installed.cluster.stop().await
}
