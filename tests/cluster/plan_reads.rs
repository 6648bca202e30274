//! What a plan reads of a namespace that an earlier snapshot knows: metadata, and whole what that does not settle.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testbed::ApiRequests;

use crate::plans::{actions, asked, plan, said};
use crate::support::{Installed, Store};
use crate::team::{alice, given};

/// Objects of each kind: more than a kind must have for its metadata to be listed first.
const OBJECTS: usize = 60;

fn config(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "shop", "labels": {"tier": "config"}}, "data": {"value": value}})
}

fn secret(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "shop"}, "stringData": {"value": value}})
}

/// Without Pods but for the first one, which reads the ConfigMap of its number.
fn deployment(name: &str, image: &str) -> Value {
    let mut container = json!({"name": "app", "image": image});
    if name == "d00" {
        container["envFrom"] = json!([{"configMapRef": {"name": "c00"}}]);
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop", "labels": {"tier": "web"}},
        "spec": {
            "replicas": i32::from(name == "d00"), "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}},
        },
    })
}

async fn write(installed: &Installed, objects: &[Value]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    installed.given(&list.to_string()).await
}

async fn snapshot(installed: &Installed, name: &str) -> Result<()> {
    let arguments = ["snapshot", "create", name, "-n", "shop", "--wait"];
    installed.cli(&alice(), &arguments).await?.success().map(drop)
}

/// Reads of objects, one by one and by lists.
struct Reads(ApiRequests);

impl Reads {
    fn of(&self, verb: &str, resource: &str) -> u64 {
        self.0
            .count(|request| request.verb == verb && request.resource == resource)
    }
}

/// What a dry run against `target` says, and what the operator read for it.
async fn planned(installed: &Installed, name: &str, target: &str) -> Result<(Vec<String>, Reads)> {
    let before = installed.cluster.api_requests().await?;
    let spec = json!({"target": {"snapshot": target}, "dryRun": true, "prune": "Created"});
    let status = asked(installed, &alice(), name, &spec).await?;
    ensure!(status["phase"] == "Planned", "{}", said(&status));
    let reads = Reads(installed.cluster.api_requests().await?.since(&before));
    Ok((actions(&plan(installed, &status).await?), reads))
}

fn expect(what: &str, found: (Vec<String>, Reads), wanted: &[&str], reads: &[(&str, &str, u64)]) -> Result<()> {
    let (actions, counted) = found;
    ensure!(actions == wanted, "{what}: {actions:#?}");
    for (verb, resource, most) in reads {
        let times = counted.of(verb, resource);
        ensure!(
            times == *most,
            "{what}: {times} of {verb} {resource}, not {most}:\n{}",
            counted.0
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_reads_whole_only_what_no_snapshot_knows_or_what_differs() -> Result<()> {
    let installed = Installed::start("plan-reads", Store::Directory).await?;
    given(&installed, "shop").await?;
    let mut objects = Vec::new();
    for number in 0..OBJECTS {
        objects.push(config(&format!("c{number:02}"), "one"));
        objects.push(secret(&format!("s{number:02}"), "one"));
        objects.push(deployment(&format!("d{number:02}"), "registry.example/app:1"));
    }
    write(&installed, &objects).await?;
    let rollout = ["rollout", "status", "deployment/d00", "-n", "shop", "--timeout=60s"];
    let admin = testbed::User::admin();
    installed.cluster.kubectl(&admin, &rollout, None).await?.success()?;
    snapshot(&installed, "one").await?;

    // Nothing differs: nothing is read one by one, and every kind once.
    expect(
        "nothing differs",
        planned(&installed, "nothing", "one").await?,
        &[],
        &[
            ("GET", "configmaps", 0),
            ("GET", "secrets", 1),
            ("LIST", "configmaps", 1),
            ("LIST", "deployments", 1),
        ],
    )?;

    // What was not read whole is picked by its labels all the same.
    for tier in ["config", "web"] {
        let objects = json!({"selector": {"matchLabels": {"tier": tier}}});
        let spec = json!({"target": {"snapshot": "one"}, "dryRun": true, "strategy": "Selective", "objects": objects});
        let status = asked(&installed, &alice(), &format!("only-{tier}"), &spec).await?;
        ensure!(status["phase"] == "Planned", "{tier}: {}", said(&status));
    }

    // What differs is read singly; Deployments are read whole then, for they tell who has to be restarted.
    write(
        &installed,
        &[config("c00", "two"), config("c99", "two"), secret("s01", "two")],
    )
    .await?;
    write(&installed, &[deployment("d01", "registry.example/app:2")]).await?;
    let arguments = ["delete", "configmap", "c02", "-n", "shop"];
    installed.cluster.kubectl(&admin, &arguments, None).await?.success()?;
    let differs = [
        "Create ConfigMap/c02",
        "Delete ConfigMap/c99",
        "Restart Deployment/d00",
        "Update ConfigMap/c00",
        "Update Deployment/d01",
        "Update Secret/s01",
    ];
    let reads = [
        ("GET", "configmaps", 2),
        ("GET", "secrets", 2),
        ("LIST", "configmaps", 1),
        ("LIST", "secrets", 1),
    ];
    expect(
        "some differ",
        planned(&installed, "some", "one").await?,
        &differs,
        &reads,
    )?;

    // A newer snapshot knows all that is live, and that it is not what the older one holds.
    snapshot(&installed, "two").await?;
    expect(
        "known, and not equal",
        planned(&installed, "known", "one").await?,
        &differs,
        &reads,
    )?;
    expect(
        "equal to the newer one",
        planned(&installed, "newer", "two").await?,
        &[],
        &[
            ("GET", "configmaps", 0),
            ("LIST", "configmaps", 1),
            ("LIST", "deployments", 1),
        ],
    )?;

    // Where much differs, whole pages are cheaper than single reads.
    let changed: Vec<Value> = (10..50).map(|number| config(&format!("c{number}"), "three")).collect();
    write(&installed, &changed).await?;
    let wanted: Vec<String> = (10..50).map(|number| format!("Update ConfigMap/c{number}")).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let (found, counted) = planned(&installed, "much", "two").await?;
    let found: Vec<String> = found
        .into_iter()
        .filter(|action| !action.starts_with("Restart"))
        .collect();
    expect(
        "much differs",
        (found, counted),
        &wanted,
        &[("GET", "configmaps", 0), ("LIST", "configmaps", 2)],
    )?;
    installed.cluster.stop().await
}
