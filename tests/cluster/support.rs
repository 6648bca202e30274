//! A cluster with Backstep installed by its chart, and the operator running with its own `ServiceAccount`'s token.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use backstep::api::{Snapshot, snapshot::SnapshotPhase};
use kube::{Api, Client};
use testbed::{Cluster, ClusterOptions, Ran, User, wait_until};

/// Namespace that the chart is installed into.
pub const OPERATOR_NAMESPACE: &str = "backstep-system";
/// How long anything may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Where the operator keeps contents.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Secrets in its namespace.
    Secrets,
    /// A directory beside the cluster's files.
    Directory,
}

/// A cluster with Backstep.
pub struct Installed {
    /// The cluster.
    pub cluster: Cluster,
    operator: Option<Operator>,
    store: Store,
    files: tempfile::TempDir,
    arguments: Vec<String>,
    /// Another way to the API server than the straight one.
    kubeconfig: Option<PathBuf>,
}

/// A running operator; killed when dropped.
pub struct Operator {
    child: Child,
    log: PathBuf,
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Operator {
    /// Address of its admin server.
    pub async fn admin(&self) -> Result<String> {
        wait_until(PATIENCE, "the operator's admin address", async || {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            // The last one that was started.
            let found = text.lines().rev().find_map(|line| {
                let rest = line.split_once("the admin server listens")?.1.split_once("address=")?.1;
                rest.split_whitespace().next().map(ToOwned::to_owned)
            });
            found.map(Some).ok_or(text)
        })
        .await
    }

    /// Ends it without warning.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Installed {
    /// A cluster, the chart, and a running operator.
    pub async fn start(name: &str, store: Store) -> Result<Self> {
        Self::start_with(ClusterOptions::named(name), store, &[]).await
    }

    /// The same with options of one's own.
    pub async fn start_with(options: ClusterOptions, store: Store, arguments: &[&str]) -> Result<Self> {
        let cluster = Cluster::start(options).await?;
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/backstep");
        let install = [
            "install",
            "backstep",
            chart,
            "--namespace",
            OPERATOR_NAMESPACE,
            "--create-namespace",
            "--set",
            "replicas=0",
        ];
        cluster.helm(&User::admin(), &install, None).await?.success()?;
        let mut installed = Self {
            cluster,
            operator: None,
            store,
            files: tempfile::tempdir()?,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            kubeconfig: None,
        };
        installed.start_operator().await?;
        // Stamped kinds answer 503 for some seconds after their CRD appears.
        let probe = r#"{"apiVersion":"backstep.dev/v1alpha1","kind":"Snapshot","metadata":{"name":"probe","namespace":"default"},"spec":{}}"#;
        wait_until(PATIENCE, "Snapshots to be served", async || {
            let ran = installed
                .cluster
                .kubectl(&User::admin(), &["create", "--dry-run=server", "-f", "-"], Some(probe))
                .await?;
            ran.success().map(|_| Some(()))
        })
        .await?;
        Ok(installed)
    }

    /// Directory of the filesystem store.
    pub fn store_directory(&self) -> PathBuf {
        self.files.path().join("store")
    }

    /// One more operator process.
    pub async fn another_operator(&self, identity: &str) -> Result<Operator> {
        let kubeconfig = match &self.kubeconfig {
            Some(other) => other.clone(),
            None => {
                self.cluster
                    .service_account_kubeconfig(OPERATOR_NAMESPACE, "backstep")
                    .await?
            }
        };
        let store = match self.store {
            Store::Secrets => "secrets".to_owned(),
            Store::Directory => format!("file://{}", self.store_directory().display()),
        };
        let log = self.files.path().join(format!("{identity}.log"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let child = Command::new(env!("CARGO_BIN_EXE_backstep"))
            // As the chart sets them.
            .envs([("MIMALLOC_PURGE_DELAY", "0"), ("MIMALLOC_ARENA_EAGER_COMMIT", "0")])
            .arg("run")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args([
                "--namespace",
                OPERATOR_NAMESPACE,
                "--admin-address",
                "127.0.0.1:0",
                "--log-level",
                "info,backstep=debug",
            ])
            .args(["--store", &store, "--identity", identity, "--guard-settle", "1s"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()?;
        Ok(Operator { child, log })
    }

    /// Starts the operator (again).
    pub async fn start_operator(&mut self) -> Result<()> {
        self.operator = None;
        self.operator = Some(self.another_operator("operator").await?);
        Ok(())
    }

    /// Starts the operator again, with another way to the API server.
    pub async fn through(&mut self, kubeconfig: PathBuf) -> Result<()> {
        self.kubeconfig = Some(kubeconfig);
        self.start_operator().await
    }

    /// A path for a file that goes with the cluster.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The last lines that the operator logged.
    pub fn log_tail(&self) -> String {
        tail(&self.log())
    }

    /// Ends the operator without warning.
    pub fn kill_operator(&mut self) {
        if let Some(operator) = self.operator.take() {
            operator.kill();
        }
    }

    /// The running operator.
    pub fn operator(&self) -> Result<&Operator> {
        self.operator.as_ref().context("the operator does not run")
    }

    /// What the operator logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.files.path().join("operator.log")).unwrap_or_default()
    }

    /// Client with all rights.
    pub async fn admin(&self) -> Result<Client> {
        self.cluster.admin().await
    }

    /// `kubectl apply -f -` as `user`.
    pub async fn apply(&self, user: &User, manifest: &str) -> Result<Ran> {
        // Stamped kinds answer 503 for some seconds after their CRD appears.
        wait_until(PATIENCE, "kubectl apply", async || {
            let ran = self
                .cluster
                .kubectl(user, &["apply", "-f", "-"], Some(manifest))
                .await?;
            if ran.stderr.contains("ServiceUnavailable") || ran.stderr.contains("not yet synced") {
                bail!("{ran}");
            }
            Ok(Some(ran))
        })
        .await
    }

    /// Applies as the administrator, who may do everything but approve.
    pub async fn given(&self, manifest: &str) -> Result<()> {
        self.apply(&User::admin(), manifest).await?.success().map(drop)
    }

    /// Takes a snapshot with `spec` (JSON) and waits until it is Ready or Failed.
    pub async fn snapshot(&self, namespace: &str, name: &str, spec: &serde_json::Value) -> Result<Snapshot> {
        let manifest = serde_json::json!({
            "apiVersion": "backstep.dev/v1alpha1", "kind": "Snapshot",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        });
        self.given(&manifest.to_string()).await?;
        self.ended(namespace, name).await
    }

    /// Waits until the snapshot is Ready or Failed.
    pub async fn ended(&self, namespace: &str, name: &str) -> Result<Snapshot> {
        let api: Api<Snapshot> = Api::namespaced(self.admin().await?, namespace);
        let ended = wait_until(PATIENCE, &format!("snapshot {namespace}/{name} to end"), async || {
            let snapshot = api.get(name).await.map_err(|e| e.to_string())?;
            match snapshot.status.as_ref().and_then(|s| s.phase) {
                Some(SnapshotPhase::Ready | SnapshotPhase::Failed) => Ok(Some(snapshot)),
                _ => Err(format!("{:?}", snapshot.status)),
            }
        })
        .await;
        ended.with_context(|| format!("operator log:\n{}", tail(&self.log())))
    }

    /// Runs `kubectl-backstep` as `user`.
    pub async fn cli(&self, user: &User, arguments: &[&str]) -> Result<Ran> {
        self.cluster
            .run(
                Path::new(env!("CARGO_BIN_EXE_kubectl-backstep")),
                &self.cluster.kubeconfig(user)?,
                arguments,
                None,
            )
            .await
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
