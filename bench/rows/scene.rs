//! One cluster with one data set, and what all its measurements share.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use kube::Client;
use testbed::{Audit, Cluster};

use super::{CONNECTIONS, DEADLINE, Plan};
use crate::capture::{self, Arrival, Captured, capture};
use crate::data::{DataSet, Object};
use crate::load;
use crate::operator::{self, Operator};
use crate::random::Random;
use crate::raw::{self, Resource};

/// A namespace with nothing in it, captured before every measurement: the operator is then known to work.
const WARM_UP: &str = "warm-up";

/// What something took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Took {
    /// Seconds on the clock.
    pub wall: f64,
    /// Seconds of the reading itself: of a capture, from its first read to its commit.
    pub pass: f64,
    /// Seconds of CPU, of the reader and of the servers.
    pub cpu: f64,
}

/// One cluster with one data set.
pub(super) struct Scene<'a> {
    pub plan: &'a Plan,
    pub set: &'a DataSet,
    pub cluster: Cluster,
    pub client: Client,
    pub namespaces: Vec<String>,
    kubeconfig: PathBuf,
    folder: tempfile::TempDir,
    round: usize,
}

impl<'a> Scene<'a> {
    /// The cluster from the copy of the data, with the chart installed.
    pub async fn start(plan: &'a Plan, set: &'a DataSet) -> Result<Self> {
        Self::start_with(plan, set, Audit::Off).await
    }

    /// As [`Self::start`], with an audit log.
    pub async fn start_with(plan: &'a Plan, set: &'a DataSet, audit: Audit) -> Result<Self> {
        let cluster = load::audited_cluster_with(std::slice::from_ref(set), audit).await?;
        operator::install(&cluster).await?;
        let client = cluster.admin().await?;
        let body = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": WARM_UP}});
        load::call(
            &client,
            http::Method::POST,
            "/api/v1/namespaces",
            "application/json",
            &body,
        )
        .await?;
        let kubeconfig = cluster
            .service_account_kubeconfig(operator::NAMESPACE, operator::NAME)
            .await?;
        Ok(Self {
            plan,
            set,
            client,
            kubeconfig,
            folder: tempfile::tempdir()?,
            namespaces: (0..set.namespaces).map(|index| set.namespace(index)).collect(),
            cluster,
            round: 0,
        })
    }

    /// Goes with the scene.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Namespace to list: a Snapshot that is alone lists its own one, many share one pass over the cluster.
    pub fn scope(&self) -> Option<&str> {
        match self.namespaces.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// An operator with an empty store, which has captured an empty namespace.
    pub async fn fresh(&mut self) -> Result<(Operator, PathBuf)> {
        capture::delete_all(&self.client).await?;
        self.round += 1;
        let store = self.folder.path().join(format!("store-{}", self.round));
        let operator = Operator::start(&self.plan.program, &self.kubeconfig, self.folder.path(), &store).await?;
        self.warm(&operator, "first").await?;
        Ok((operator, store))
    }

    /// Captures the empty namespace.
    pub async fn warm(&self, operator: &Operator, name: &str) -> Result<()> {
        let namespaces = [WARM_UP.to_owned()];
        let name = format!("warm-up-{name}");
        self.capture_in(operator, &namespaces, &name, Arrival::Created)
            .await
            .map(drop)
    }

    /// Captures every namespace of the data.
    pub async fn capture(&self, operator: &Operator, name: &str) -> Result<(Captured, Took)> {
        self.arriving(operator, name, Arrival::Created).await
    }

    /// As [`Self::capture`], with Snapshots that come as `arrival` says.
    pub async fn arriving(&self, operator: &Operator, name: &str, arrival: Arrival<'_>) -> Result<(Captured, Took)> {
        let passes = operator.capture_seconds().await?;
        let before = self.servers()? + operator.cpu_seconds()?;
        let captured = self.capture_in(operator, &self.namespaces, name, arrival).await?;
        let took = Took {
            wall: captured.wall.as_secs_f64(),
            cpu: self.servers()? + operator.cpu_seconds()? - before,
            pass: operator.capture_seconds().await? - passes,
        };
        Ok((captured, took))
    }

    async fn capture_in(
        &self,
        operator: &Operator,
        namespaces: &[String],
        name: &str,
        arrival: Arrival<'_>,
    ) -> Result<Captured> {
        capture(&self.cluster, &self.client, namespaces, name, arrival, DEADLINE)
            .await
            .with_context(|| format!("the operator's log ends with:\n{}", operator.log_tail()))
    }

    /// Changes every hundredth object, others each time.
    pub async fn churn(&mut self) -> Result<()> {
        self.round += 1;
        let mut random = Random::new(self.set.seed, 1 << 40 | self.round as u64);
        let first = random.below(100);
        let objects = (0..self.set.namespaces).flat_map(|index| self.set.objects(index));
        let chosen: Vec<Object> = objects.skip(first).step_by(100).collect();
        let writes = chosen
            .iter()
            .map(|object| async { load::touch(&self.client, object, &DataSet::churn(object, self.round)).await });
        load::all(writes).await
    }

    /// RAW's lists of `resources`.
    pub async fn raw(&self, resources: &[Resource]) -> Result<(raw::Read, Took)> {
        let own = || operator::cpu_seconds(std::process::id());
        let before = self.servers()? + own()?;
        let started = Instant::now();
        let read = raw::list(&self.client, resources, self.scope(), CONNECTIONS).await?;
        let wall = started.elapsed().as_secs_f64();
        let cpu = self.servers()? + own()? - before;
        Ok((read, Took { wall, pass: wall, cpu }))
    }

    /// CPU seconds of etcd and the API server so far.
    fn servers(&self) -> Result<f64> {
        self.cluster
            .process_ids()
            .into_iter()
            .map(|(_, id)| operator::cpu_seconds(id))
            .sum()
    }
}
