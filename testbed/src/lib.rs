//! A real Kubernetes for tests and the demo: etcd, API server, controller-manager and scheduler on loopback, and a
//! stand-ins for the kubelet and for a storage driver that finish rollouts without running containers.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use testbed::{Cluster, ClusterOptions, User};
//!
//! let cluster = Cluster::start(ClusterOptions::default()).await?;
//! let alice = User::new("alice", ["shop-team"]);
//! cluster.kubectl(&User::admin(), &["create", "namespace", "shop"], None).await?.success()?;
//! let client = cluster.client_as(&alice).await?;
//! # drop(client);
//! cluster.stop().await
//! # }
//! ```
//!
//! Nothing outlives the process that started a [`Cluster`], however that process ends (see [`Cluster`]).

mod access;
mod audit;
pub mod binaries;
mod cluster;
pub mod fake_kubelet;
pub mod fake_storage;
mod layout;
pub mod named;
mod node;
mod pki;
mod process;
mod reaper;
mod requests;
mod wait;

pub use access::{Access, Ran, User};
pub use audit::{Audit, AuditEvent, ObjectReference};
pub use binaries::{Component, Skipped, binary};
pub use cluster::{Cluster, ClusterOptions};
pub use requests::{ApiRequest, ApiRequests};
pub use wait::wait_until;
