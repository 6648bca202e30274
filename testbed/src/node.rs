//! The stand-ins for kubelet and storage driver at work for one cluster.

use anyhow::{Context as _, Result, anyhow};
use kube::Client;

use crate::access::Access;
use crate::{fake_kubelet, fake_storage};

/// Both on a thread and a runtime of their own: a cluster that several tests share outlives the runtime of the test
/// that started it.
pub struct Node {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Node {
    /// Registers a Node that is Ready and the storage classes, and keeps both working until dropped.
    pub async fn start(access: &Access, admin: &Client) -> Result<Self> {
        let kubelet = access.client_as(&fake_kubelet::user()).await?;
        fake_kubelet::register(&kubelet, admin).await?;
        fake_storage::register(admin).await?;

        let access = access.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (report, reported) = tokio::sync::oneshot::channel();
        let work = move || runtime.block_on(work(access, report, stopped));
        let thread = std::thread::Builder::new()
            .name("testbed-node".to_owned())
            .spawn(work)?;
        let node = Self {
            stop: Some(stop),
            thread: Some(thread),
        };
        reported
            .await
            .map_err(|_| anyhow!("the thread of the fake kubelet ended"))??;
        Ok(node)
    }
}

/// Clients belong to the runtime they are made in, so they are made here; `report` gets whether they could be.
async fn work(
    access: Access,
    report: tokio::sync::oneshot::Sender<Result<()>>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) {
    let clients = async {
        let kubelet = access.client_as(&fake_kubelet::user()).await?;
        anyhow::Ok((kubelet, access.client_as(&fake_storage::user()).await?))
    };
    let outcome = clients.await.context("the fake kubelet has no client");
    let (outcome, clients) = match outcome {
        Ok(clients) => (Ok(()), Some(clients)),
        Err(error) => (Err(error), None),
    };
    let _ = report.send(outcome);
    if let Some((kubelet, storage)) = clients {
        let both = async {
            tokio::join!(
                fake_kubelet::run(kubelet, access.directory().to_owned()),
                fake_storage::run(storage)
            )
        };
        tokio::select! {
            _ = both => {}
            _ = stopped => {}
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
