//! What the stand-in for the kubelet makes of workloads.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use testbed::{Cluster, User, fake_kubelet, wait_until};

use crate::support::{DEADLINE, apply, cluster};

const WORKLOADS: &str = include_str!("workloads.yaml");
const NEW_DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Waits until `wanted` accepts what kubectl reads of `what`.
async fn until(cluster: &Cluster, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait_until(DEADLINE, what, async || {
        let arguments = ["get", "--namespace", "shop", what, "-o", "json"];
        let seen = cluster.kubectl(&User::admin(), &arguments, None).await?.json()?;
        ensure!(wanted(&seen), "{}", seen["status"]);
        Ok::<_, anyhow::Error>(Some(seen))
    })
    .await
    .unwrap()
}

async fn pod_of(client: &kube::Client, app: &str) -> Result<Pod> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
    let found = pods.list(&ListParams::default().labels(&format!("app={app}"))).await?;
    let alive = found
        .items
        .into_iter()
        .find(|pod| pod.metadata.deletion_timestamp.is_none());
    alive.ok_or_else(|| anyhow::anyhow!("no pod of {app}"))
}

fn image_id(pod: &Pod) -> String {
    let status = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    status.map(|statuses| statuses[0].image_id.clone()).unwrap_or_default()
}

#[tokio::test]
async fn workloads_of_every_kind_finish_their_rollouts() {
    let Some(cluster) = cluster("workloads").await else {
        return;
    };
    apply(&cluster, WORKLOADS).await;
    until(&cluster, "deployment/web", |seen| {
        seen["status"]["availableReplicas"] == 3
    })
    .await;
    until(&cluster, "statefulset/data", |seen| {
        seen["status"]["readyReplicas"] == 2
    })
    .await;
    for claim in ["pvc/now-data-1", "pvc/late-data-1"] {
        until(&cluster, claim, |seen| seen["status"]["phase"] == "Bound").await;
    }
    until(&cluster, "daemonset/agent", |seen| seen["status"]["numberReady"] == 1).await;
    until(&cluster, "job/migrate", |seen| seen["status"]["succeeded"] == 1).await;
    until(&cluster, "job/broken", |seen| seen["status"]["failed"] == 1).await;
    let crash = until(&cluster, "pod/crashing", |seen| {
        seen["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })
    .await;
    assert_eq!(crash["status"]["containerStatuses"][0]["ready"], false);
    let pull = until(&cluster, "pod/unpullable", |seen| {
        seen["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff"
    })
    .await;
    assert_eq!(pull["status"]["phase"], "Pending");

    let delete = [
        "delete",
        "--namespace",
        "shop",
        "statefulset,pvc",
        "--all",
        "--timeout=60s",
    ];
    cluster
        .kubectl(&User::admin(), &delete, None)
        .await
        .unwrap()
        .success()
        .unwrap();
    let volumes: Api<PersistentVolume> = Api::all(cluster.admin().await.unwrap());
    wait_until(DEADLINE, "the volumes to go with their claims", async || {
        let left = volumes.list(&ListParams::default()).await?.items;
        ensure!(left.is_empty(), "{left:?}");
        Ok::<_, anyhow::Error>(Some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn pods_report_digests_and_a_moved_tag_reaches_only_new_pods() {
    let Some(cluster) = cluster("tags").await else { return };
    apply(&cluster, WORKLOADS).await;
    until(&cluster, "deployment/web", |seen| {
        seen["status"]["availableReplicas"] == 3
    })
    .await;
    let client = cluster.admin().await.unwrap();
    let before = pod_of(&client, "web").await.unwrap();
    assert!(
        image_id(&before).starts_with("registry.example/web@sha256:"),
        "{}",
        image_id(&before)
    );

    cluster.move_tag("registry.example/web:1.8", NEW_DIGEST).unwrap();
    cluster
        .move_tag("registry.example/web:1.8", "sha256:short")
        .unwrap_err();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
    let touch = json!({"metadata": {"annotations": {"touched": "yes"}}});
    pods.patch(&before.name_any(), &PatchParams::default(), &Patch::Merge(touch))
        .await
        .unwrap();
    let restart = ["rollout", "restart", "--namespace", "shop", "statefulset/data"];
    cluster
        .kubectl(&User::admin(), &restart, None)
        .await
        .unwrap()
        .success()
        .unwrap();
    wait_until(DEADLINE, "a new pod with the new digest", async || {
        let found = image_id(&pod_of(&client, "data").await?);
        ensure!(found == format!("registry.example/web@{NEW_DIGEST}"), "{found}");
        Ok(Some(()))
    })
    .await
    .unwrap();
    assert_eq!(
        image_id(&pods.get(&before.name_any()).await.unwrap()),
        image_id(&before),
        "a running pod keeps its own"
    );
}

#[tokio::test]
async fn a_running_pod_fails_and_recovers_with_its_annotation() {
    let Some(cluster) = cluster("faults").await else { return };
    apply(&cluster, WORKLOADS).await;
    until(&cluster, "deployment/web", |seen| {
        seen["status"]["availableReplicas"] == 3
    })
    .await;
    let client = cluster.admin().await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
    let name = pod_of(&client, "web").await.unwrap().name_any();
    for (reason, available) in [(json!("CrashLoopBackOff"), 2), (Value::Null, 3)] {
        let annotate = json!({"metadata": {"annotations": {fake_kubelet::FAIL: reason}}});
        pods.patch(&name, &PatchParams::default(), &Patch::Merge(annotate))
            .await
            .unwrap();
        until(&cluster, "deployment/web", |seen| {
            seen["status"]["availableReplicas"] == available
        })
        .await;
    }
}

#[tokio::test]
async fn readiness_comes_late_where_it_is_asked_to() {
    let Some(cluster) = cluster("late").await else { return };
    apply(&cluster, WORKLOADS).await;
    let late = until(&cluster, "pod/late", |seen| {
        let conditions = seen["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
    .await;
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let conditions = late["status"]["conditions"].as_array().unwrap();
    let ready = conditions
        .iter()
        .find(|condition| condition["type"] == "Ready")
        .unwrap();
    let delay = time(&ready["lastTransitionTime"]).duration_since(time(&late["status"]["startTime"]));
    assert!(delay.as_secs() >= 1, "ready {delay:?} after the start");
}
