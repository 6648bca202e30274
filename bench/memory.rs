//! What a capture of very many objects takes, without writing them first.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use testbed::Cluster;

use super::capture::{self, Arrival, capture};
use super::generated::GeneratedApi;
use super::load::{self, Stored};
use super::operator::{self, Operator};

/// How long the capture may take.
const DEADLINE: Duration = Duration::from_secs(300);

/// Peak of memory above idle while one namespace of `count` `ConfigMaps` is captured for the first time.
///
/// # Errors
/// Whatever keeps the capture from becoming Ready.
pub async fn memory_of(program: &Path, cluster: &Cluster, namespace: &str, count: usize) -> Result<Peak> {
    let folder = tempfile::tempdir()?;
    let upstream = cluster
        .service_account_client(operator::NAMESPACE, operator::NAME)
        .await?;
    let client = cluster.admin().await?;
    let body = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    load::call(
        &client,
        http::Method::POST,
        "/api/v1/namespaces",
        "application/json",
        &body,
    )
    .await?;
    let api = GeneratedApi::start(upstream, namespace, count).await?;
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig())?;
    let operator = Operator::start(program, &kubeconfig, folder.path(), &folder.path().join("store")).await?;
    let idle = operator.memory()?;
    let captured = capture(
        cluster,
        &client,
        &[namespace.to_owned()],
        "large",
        Arrival::Created,
        DEADLINE,
    )
    .await
    .with_context(|| format!("the operator's log ends with:\n{}", operator.log_tail()))?;
    let memory = operator.memory()?;
    let (pages, listed) = api.served();
    let stored = load::stored(&folder.path().join("store"))?;
    operator.kill().await?;
    capture::delete_all(&client).await?;
    let status = captured
        .snapshots
        .get(namespace)
        .and_then(|snapshot| snapshot.status.clone())
        .unwrap_or_default();
    Ok(Peak {
        idle: idle.now,
        most: memory.peak,
        pages,
        listed,
        stored: stored.bytes(),
        writes: stored.written_since(&Stored::default()).0,
        captured: status.objects.map_or(0, |objects| objects.captured),
        wall: captured.wall,
    })
}

/// What a large capture took.
#[derive(Clone, Debug)]
pub struct Peak {
    /// Resident before, in bytes.
    pub idle: u64,
    /// Most that was resident, in bytes.
    pub most: u64,
    /// Pages that were asked for.
    pub pages: u64,
    /// Their bytes.
    pub listed: u64,
    /// Bytes in the store afterwards.
    pub stored: u64,
    /// Files in the store afterwards.
    pub writes: u64,
    /// Objects captured, as the Snapshot says.
    pub captured: i64,
    /// Time that it took.
    pub wall: Duration,
}

impl Peak {
    /// Memory above idle, in bytes.
    pub fn above(&self) -> u64 {
        self.most.saturating_sub(self.idle)
    }
}
