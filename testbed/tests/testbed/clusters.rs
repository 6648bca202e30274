//! Starting, using and ending clusters.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use testbed::{User, wait_until};

use crate::support::cluster;

const WEB: &str = include_str!("web.yaml");

#[tokio::test]
async fn a_deployment_becomes_available_and_its_pods_report_image_digests() {
    let started = std::time::Instant::now();
    let Some(cluster) = cluster("rollout").await else {
        return;
    };
    println!("started in {:?}", started.elapsed());
    let admin = User::admin();
    cluster
        .kubectl(&admin, &["apply", "-f", "-"], Some(WEB))
        .await
        .unwrap()
        .success()
        .unwrap();
    let client = cluster.admin().await.unwrap();
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "shop");
    wait_until(Duration::from_secs(30), "the Deployment to be available", async || {
        let status = deployments.get("web").await?.status.unwrap_or_default();
        if status.available_replicas == Some(3) {
            Ok(Some(()))
        } else {
            anyhow::bail!("{status:?}")
        }
    })
    .await
    .unwrap();
    println!("available after {:?}", started.elapsed());
    let pods: Api<Pod> = Api::namespaced(client, "shop");
    let pods = pods.list(&kube::api::ListParams::default()).await.unwrap();
    for pod in &pods {
        let status = pod
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.as_ref())
            .unwrap();
        assert!(
            status[0].image_id.starts_with("registry.example/web@sha256:"),
            "{status:?}"
        );
    }
    let started = std::time::Instant::now();
    let directory = cluster.directory().to_owned();
    cluster.stop().await.unwrap();
    println!("stopped in {:?}", started.elapsed());
    assert!(!directory.exists());
}
