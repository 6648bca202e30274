//! A stand-in for the kubelet: one Node whose Pods run as soon as they are bound, without any container.
//!
//! With the real controller-manager and scheduler, workloads then report their status by themselves. Annotations of a
//! Pod (so of a Pod template) say what differs:
//!
//! | annotation | value | effect |
//! |---|---|---|
//! | [`FAIL`] | `CrashLoopBackOff` | starts and exits with 1, again and again; not ready |
//! | [`FAIL`] | `Error` | exits with 1: the Pod fails where its restart policy is `Never`, else as above |
//! | [`FAIL`] | any other reason, such as `ImagePullBackOff` | waits with that reason; never starts |
//! | [`READY_AFTER`] | seconds, such as `2` or `0.5` | runs at once, but becomes ready that much later |
//! | [`KEEP_RUNNING`] | `true` | does not complete, although its restart policy is `Never` or `OnFailure` |
//!
//! They are followed while a Pod runs: setting [`FAIL`] on a Pod makes it unready, removing it makes it ready again.
//! Pods whose restart policy is `Never` or `OnFailure` succeed once they ran. Deleted Pods are gone at once.

mod image;
mod status;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::controller::{Action, Config as ControllerConfig};
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tracing::{debug, warn};

pub(crate) use image::qualified;

use crate::User;

/// The annotation that makes a Pod fail; its value is the reason.
pub const FAIL: &str = "testbed.backstep.dev/fail";
/// The annotation that delays readiness by a number of seconds.
pub const READY_AFTER: &str = "testbed.backstep.dev/ready-after";
/// The annotation that keeps a Pod running that would complete.
pub const KEEP_RUNNING: &str = "testbed.backstep.dev/keep-running";
/// The name of the Node.
pub const NODE: &str = "testbed-node";

const FIELD_MANAGER: &str = "kubelet";
const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How soon a call that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How many Pods are handled at a time.
const CONCURRENCY: u16 = 16;

/// Who the stand-in is to the API server: a kubelet, with a kubelet's rights.
pub(crate) fn user() -> User {
    User::new(format!("system:node:{NODE}"), ["system:nodes"])
}

/// What the stand-in works with.
struct Kubelet {
    client: Client,
    /// Where the moved tags are.
    directory: PathBuf,
    next_address: AtomicU16,
}

/// Registers the Node as Ready. `admin` lifts the taint that every new Node starts with.
pub(crate) async fn register(client: &Client, admin: &Client) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node = serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE, "labels": {
            "kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        }},
    }))?;
    let posting = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match nodes.create(&posting, &node).await {
        Ok(_) => {}
        // The data of another cluster were taken over.
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => return Err(error).context("the fake kubelet cannot register its node"),
    }
    let patching = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let version = client.apiserver_version().await?.git_version;
    let status = status::node_status(&version, Timestamp::now());
    nodes
        .patch_status(NODE, &patching, &Patch::Strategic(json!({"status": status})))
        .await
        .context("the fake kubelet cannot report its node as ready")?;
    renew_lease(client)
        .await
        .context("the fake kubelet cannot renew its node's lease")?;
    let nodes: Api<Node> = Api::all(admin.clone());
    nodes
        .patch(
            NODE,
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"taints": null}})),
        )
        .await?;
    Ok(())
}

/// Keeps the Node alive and runs its Pods; ends only when it is dropped.
pub(crate) async fn run(client: Client, directory: PathBuf) {
    let kubelet = Arc::new(Kubelet {
        client: client.clone(),
        directory,
        next_address: AtomicU16::new(2),
    });
    tokio::join!(heartbeat(&client), run_pods(kubelet));
}

async fn heartbeat(client: &Client) {
    loop {
        let pause = match renew_lease(client).await {
            Ok(()) => HEARTBEAT,
            Err(error) => {
                debug!("the fake kubelet's lease is not renewed: {error}");
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn renew_lease(client: &Client) -> Result<(), kube::Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": NODE, "namespace": LEASE_NAMESPACE},
        "spec": {
            "holderIdentity": NODE,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": format!("{:.6}", Timestamp::now()),
        },
    });
    leases
        .patch(NODE, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&lease))
        .await?;
    Ok(())
}

async fn run_pods(kubelet: Arc<Kubelet>) {
    let pods: Api<Pod> = Api::all(kubelet.client.clone());
    // A node may list no other Pods.
    let mine = watcher::Config::default().fields(&format!("spec.nodeName={NODE}"));
    Controller::new(pods, mine)
        .with_config(ControllerConfig::default().concurrency(CONCURRENCY))
        .run(settle, |_, _, _| Action::requeue(RETRY), kubelet)
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                debug!("fake kubelet: {error}");
            }
        })
        .await;
}

/// Brings one Pod a step further.
async fn settle(pod: Arc<Pod>, kubelet: Arc<Kubelet>) -> Result<Action, kube::Error> {
    let namespace = pod.namespace().unwrap_or_default();
    let name = pod.name_any();
    let pods: Api<Pod> = Api::namespaced(kubelet.client.clone(), &namespace);
    if pod.metadata.deletion_timestamp.is_some() {
        let preconditions = Preconditions {
            uid: pod.uid(),
            resource_version: None,
        };
        let now = DeleteParams::default().grace_period(0).preconditions(preconditions);
        return match pods.delete(&name, &now).await {
            Ok(_) => Ok(Action::await_change()),
            Err(error) => overtaken(error),
        };
    }

    let moved = crate::access::moved_tags(&kubelet.directory).unwrap_or_else(|error| {
        warn!("the moved tags cannot be read, images keep their first digest: {error:#}");
        std::collections::BTreeMap::new()
    });
    let next = status::next(&pod, Timestamp::now(), &moved, || kubelet.address());
    let wait = next.look_again.map_or_else(Action::await_change, Action::requeue);
    let Some(status) = next.status else { return Ok(wait) };
    let mut changed = (*pod).clone();
    changed.status = Some(status);
    let posting = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match pods.replace_status(&name, &posting, &changed).await {
        Ok(_) => Ok(wait),
        Err(error) => overtaken(error),
    }
}

/// A Pod that is gone or was changed meanwhile needs nothing: what happened to it is on its way.
fn overtaken(error: kube::Error) -> Result<Action, kube::Error> {
    match error {
        kube::Error::Api(status) if status.is_not_found() || status.is_conflict() => Ok(Action::await_change()),
        error => Err(error),
    }
}

impl Kubelet {
    /// The next Pod address; they repeat after 65 thousand Pods.
    fn address(&self) -> String {
        let [high, low] = self.next_address.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        Ipv4Addr::new(10, 244, high, low).to_string()
    }
}
