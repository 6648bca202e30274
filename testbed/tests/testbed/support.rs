//! What several tests need.

use testbed::{Cluster, ClusterOptions};

/// A cluster, or `None` (said on standard error) where `KUBEBUILDER_ASSETS` lacks a program.
pub async fn cluster(name: &str) -> Option<Cluster> {
    Cluster::start_or_skip(ClusterOptions::named(name)).await.unwrap()
}
