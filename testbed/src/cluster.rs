//! A control plane of real components on loopback, and its life.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::access::{Access, User};
use crate::audit::{self, Audit};
use crate::binaries::{self, Component, Skipped};
use crate::layout::{self, copy_directory, etcd_data, etcd_socket, unix_url};
use crate::node::Node;
use crate::process::Process;
use crate::reaper::Reaper;

/// The address of the Service `default/kubernetes`, the first one of the range below.
pub(crate) const FIRST_SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const SERVICE_ADDRESSES: &str = "10.96.0.0/16";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// How long a component may take to serve; a loaded machine is slow.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// How long etcd may take to write what it has and end.
const ETCD_PATIENCE: Duration = Duration::from_secs(10);
/// How long the API server may take to answer what it was asked; watches would hold it for a minute.
const API_SERVER_PATIENCE: Duration = Duration::from_millis(500);
/// How often another port is tried when somebody else took the one that was free.
const PORT_TRIES: usize = 5;
const LOOK: Duration = Duration::from_millis(25);

/// What a cluster is made of. The default has everything and audits nothing.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Part of the directory's name, so letters, digits and `-`.
    pub name: String,
    /// Where the cluster keeps its files, a path that does not exist; `None` takes a fresh one in the temporary folder.
    pub directory: Option<PathBuf>,
    /// What the API server writes to its audit log.
    pub audit: Audit,
    /// More arguments for the API server; they win over the test bed's.
    pub api_server_args: Vec<String>,
    /// Values of `--runtime-config`, such as `api/alpha=true`.
    pub runtime_config: Vec<String>,
    /// Feature gates, such as `CoordinatedLeaderElection=true`.
    pub feature_gates: Vec<String>,
    /// Whether Pods get a Node.
    pub with_scheduler: bool,
    /// Whether workloads, namespaces, garbage collection and so on are worked on.
    pub with_controller_manager: bool,
    /// Whether there is a Node, Pods on it run (see [`crate::fake_kubelet`]), and claims get volumes (see
    /// [`crate::fake_storage`]).
    pub with_fake_kubelet: bool,
    /// The data directory of an etcd that is not running, such as [`Cluster::stop_and_keep_etcd`] leaves; it is copied.
    pub etcd_data_from: Option<PathBuf>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            name: "test".to_owned(),
            directory: None,
            audit: Audit::Off,
            api_server_args: Vec::new(),
            runtime_config: Vec::new(),
            feature_gates: Vec::new(),
            with_scheduler: true,
            with_controller_manager: true,
            with_fake_kubelet: true,
            etcd_data_from: None,
        }
    }
}

impl ClusterOptions {
    /// The default with another name.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Etcd and the API server alone, which start fastest and are all that `KUBEBUILDER_ASSETS` offers. Nothing
    /// is worked on then: there is no service account `default`, and the cluster roles `view`, `edit` and `admin` are
    /// empty, as a controller fills them.
    pub fn api_server_only(name: impl Into<String>) -> Self {
        Self {
            with_scheduler: false,
            with_controller_manager: false,
            with_fake_kubelet: false,
            ..Self::named(name)
        }
    }

    fn components(&self) -> Vec<Component> {
        let mut components = vec![Component::Etcd, Component::ApiServer];
        components.extend(self.with_controller_manager.then_some(Component::ControllerManager));
        components.extend(self.with_scheduler.then_some(Component::Scheduler));
        components
    }
}

/// A running cluster. Its [`Access`] (users, clients, tools) is at hand by dereference.
///
/// Dropping it kills its processes and removes its directory; [`Cluster::stop`] does the same gracefully. When the
/// owning process ends in any other way — a panic, Ctrl-C, SIGKILL, a static that is never dropped — a helper process
/// notices and does it.
pub struct Cluster {
    access: Access,
    options: ClusterOptions,
    node: Option<Node>,
    scheduler: Option<Process>,
    controller_manager: Option<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
    port: u16,
    reaper: Reaper,
}

impl Deref for Cluster {
    type Target = Access;

    fn deref(&self) -> &Access {
        &self.access
    }
}

impl Cluster {
    /// Starts a cluster and returns once it serves, its Node is Ready and namespaces get their service account.
    ///
    /// Takes about 3 s; the very first time, building the programs takes minutes. The error is a [`Skipped`] where
    /// `KUBEBUILDER_ASSETS` lacks a program.
    pub async fn start(options: ClusterOptions) -> Result<Self> {
        let wanted = options.components();
        tokio::task::spawn_blocking(move || {
            wanted
                .into_iter()
                .try_for_each(|component| binaries::path(component).map(drop))
        })
        .await??;

        let directory = match &options.directory {
            Some(directory) => std::path::absolute(directory)?,
            None => layout::fresh_directory(&options.name),
        };
        layout::check(&directory)?;
        let reaper = Reaper::start(&directory)?;
        let authority = Arc::new(layout::prepare(&directory, &options)?);

        let mut cluster = Self {
            access: Access::create(&directory, String::new(), Arc::clone(&authority))?,
            options,
            node: None,
            scheduler: None,
            controller_manager: None,
            api_server: None,
            etcd: None,
            port: 0,
            reaper,
        };
        cluster.start_etcd()?;
        for last in (0..PORT_TRIES).map(|index| index + 1 == PORT_TRIES) {
            cluster.port = free_port()?;
            let server = format!("https://127.0.0.1:{}", cluster.port);
            cluster.access = Access::create(&directory, server, Arc::clone(&authority))?;
            match cluster.start_api_server().await {
                Err(error) if !last && error.is::<PortTaken>() => {}
                outcome => {
                    outcome?;
                    break;
                }
            }
        }
        cluster.start_the_rest().await?;
        Ok(cluster)
    }

    /// As [`Self::start`], but where `KUBEBUILDER_ASSETS` lacks a program, tells so on standard error and returns
    /// `None`: what needs the cluster is then to be skipped.
    pub async fn start_or_skip(options: ClusterOptions) -> Result<Option<Self>> {
        match Self::start(options).await {
            Ok(cluster) => Ok(Some(cluster)),
            Err(error) => match error.downcast::<Skipped>() {
                Ok(skipped) => {
                    eprintln!("{skipped}");
                    Ok(None)
                }
                Err(error) => Err(error),
            },
        }
    }

    /// A way into the cluster that does not keep it alive.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The process ids of the components that were started, for tests that harm them.
    pub fn process_ids(&self) -> Vec<(&'static str, u32)> {
        [&self.etcd, &self.api_server, &self.controller_manager, &self.scheduler]
            .into_iter()
            .flatten()
            .map(|process| (process.name(), process.id()))
            .collect()
    }

    /// An error that names the component that ended without being asked to, with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        for process in [
            &mut self.etcd,
            &mut self.api_server,
            &mut self.controller_manager,
            &mut self.scheduler,
        ] {
            if let Some(process) = process
                && let Some(status) = process.ended()
            {
                bail!(
                    "{} ended ({status}); its log ends with:\n{}",
                    process.name(),
                    process.log_tail(30)
                );
            }
        }
        Ok(())
    }

    /// Ends the API server and starts it again at the same address; returns once it serves.
    pub async fn restart_api_server(&mut self) -> Result<()> {
        self.stop_api_server().await;
        self.resume_api_server().await
    }

    /// Ends the API server: clients see refused connections until [`Self::resume_api_server`].
    pub async fn stop_api_server(&mut self) {
        if let Some(mut process) = self.api_server.take() {
            process.terminate();
            process.wait_or_kill(API_SERVER_PATIENCE).await;
        }
    }

    /// Starts the API server again at the same address, after [`Self::stop_api_server`]; returns once it serves.
    pub async fn resume_api_server(&mut self) -> Result<()> {
        ensure!(self.api_server.is_none(), "the API server runs already");
        let end = Instant::now() + START_DEADLINE;
        loop {
            match self.start_api_server().await {
                // Its own connections linger for a moment, or somebody else's took the port.
                Err(error) if error.is::<PortTaken>() && Instant::now() < end => tokio::time::sleep(LOOK).await,
                outcome => return outcome,
            }
        }
    }

    /// Ends every component in order and removes the directory.
    pub async fn stop(mut self) -> Result<()> {
        self.end().await;
        self.remove()
    }

    /// As [`Self::stop`], and moves etcd's data to the new directory `target`, for [`ClusterOptions::etcd_data_from`].
    pub async fn stop_and_keep_etcd(mut self, target: &Path) -> Result<()> {
        self.end().await;
        copy_directory(&etcd_data(self.reaper.directory()), target)?;
        self.remove()
    }

    async fn end(&mut self) {
        self.node = None;
        // They keep nothing, and would wait for each other.
        self.scheduler = None;
        self.controller_manager = None;
        self.api_server = None;
        if let Some(etcd) = &mut self.etcd {
            etcd.terminate();
            etcd.wait_or_kill(ETCD_PATIENCE).await;
        }
    }

    fn remove(mut self) -> Result<()> {
        let directory = self.reaper.directory().to_owned();
        self.reaper.finish();
        ensure!(
            !directory.exists(),
            "the directory {} cannot be removed",
            directory.display()
        );
        Ok(())
    }

    fn start_process(&self, component: Component, arguments: &[String]) -> Result<Process> {
        let program = binaries::path(component)?;
        Process::start(
            component.name(),
            &program,
            arguments,
            self.reaper.directory(),
            self.reaper.group(),
        )
    }

    fn start_etcd(&mut self) -> Result<()> {
        let directory = self.reaper.directory();
        // Unix sockets take no port and are the owner's alone.
        let (clients, peers) = (
            unix_url(&etcd_socket(directory)),
            unix_url(&directory.join("peer.sock")),
        );
        let mut arguments = vec![
            "--name=testbed".to_owned(),
            format!("--data-dir={}", etcd_data(directory).display()),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=testbed={peers}"),
            "--unsafe-no-fsync".to_owned(),
            "--quota-backend-bytes=8589934592".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        if self.options.etcd_data_from.is_some() {
            // Its member was another cluster's, with other addresses.
            arguments.push("--force-new-cluster".to_owned());
        }
        self.etcd = Some(self.start_process(Component::Etcd, &arguments)?);
        Ok(())
    }

    async fn start_api_server(&mut self) -> Result<()> {
        let arguments = self.api_server_arguments();
        self.api_server = Some(self.start_process(Component::ApiServer, &arguments)?);
        let admin = self.access.admin().await?;
        let outcome = self.serves(&admin).await;
        if outcome.is_err()
            && let Some(mut process) = self.api_server.take()
        {
            process.kill();
        }
        outcome
    }

    fn api_server_arguments(&self) -> Vec<String> {
        let directory = self.reaper.directory();
        let file = |name: &str| directory.join(name).display().to_string();
        let mut arguments = vec![
            format!("--etcd-servers={}", unix_url(&etcd_socket(directory))),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.port),
            "--advertise-address=127.0.0.1".to_owned(),
            // A loopback address is no valid endpoint of the Service.
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--cert-dir={}", file("certificates")),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--service-account-issuer={ISSUER}"),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_ADDRESSES}"),
            "--allow-privileged=true".to_owned(),
            "--profiling=false".to_owned(),
        ];
        if self.options.audit != Audit::Off {
            arguments.extend([
                format!("--audit-policy-file={}", file("audit-policy.json")),
                format!("--audit-log-path={}", audit::log_path(directory).display()),
                // Written before the answer is sent, in one file whatever its size (in megabytes).
                "--audit-log-mode=blocking-strict".to_owned(),
                "--audit-log-maxsize=1000000".to_owned(),
            ]);
        }
        if !self.options.runtime_config.is_empty() {
            arguments.push(format!("--runtime-config={}", self.options.runtime_config.join(",")));
        }
        self.add_feature_gates(&mut arguments);
        arguments.extend(self.options.api_server_args.iter().cloned());
        arguments
    }

    fn add_feature_gates(&self, arguments: &mut Vec<String>) {
        if !self.options.feature_gates.is_empty() {
            arguments.push(format!("--feature-gates={}", self.options.feature_gates.join(",")));
        }
    }

    /// Waits until the API server says that it is ready.
    async fn serves(&mut self, admin: &Client) -> Result<()> {
        let end = Instant::now() + START_DEADLINE;
        loop {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            let look = tokio::time::timeout(Duration::from_secs(2), admin.request_text(request));
            let seen = match look.await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            if let Some(process) = &mut self.api_server
                && let Some(status) = process.ended()
            {
                let log = process.log_tail(30);
                if log.contains("address already in use") {
                    return Err(PortTaken(self.port).into());
                }
                bail!("the API server ended ({status}); its log ends with:\n{log}");
            }
            self.check()?;
            if Instant::now() >= end {
                let log = self
                    .api_server
                    .as_ref()
                    .map(|process| process.log_tail(30))
                    .unwrap_or_default();
                let seconds = START_DEADLINE.as_secs();
                bail!("the API server was not ready within {seconds} s; last seen: {seen}; its log ends with:\n{log}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What the API server's own clients share.
    fn client_arguments(&self, user: &str) -> Result<Vec<String>> {
        let kubeconfig = self.access.kubeconfig(&User {
            name: user.to_owned(),
            groups: Vec::new(),
        })?;
        let mut arguments = vec![
            format!("--kubeconfig={}", kubeconfig.display()),
            // The defaults make a test wait for the client's own rate limit.
            "--kube-api-qps=2000".to_owned(),
            "--kube-api-burst=4000".to_owned(),
            "--leader-elect=false".to_owned(),
            "--profiling=false".to_owned(),
            "--secure-port=0".to_owned(),
        ];
        self.add_feature_gates(&mut arguments);
        Ok(arguments)
    }

    async fn start_the_rest(&mut self) -> Result<()> {
        let directory = self.reaper.directory().to_owned();
        let file = |name: &str| directory.join(name).display().to_string();
        if self.options.with_controller_manager {
            let mut arguments = self.client_arguments("system:kube-controller-manager")?;
            arguments.extend([
                "--use-service-account-credentials=true".to_owned(),
                format!("--service-account-private-key-file={}", file("accounts.key")),
                format!("--root-ca-file={}", file("ca.crt")),
                format!("--cluster-signing-cert-file={}", file("ca.crt")),
                format!("--cluster-signing-key-file={}", file("ca.key")),
                // The default one is made outside of the cluster's directory.
                format!("--flex-volume-plugin-dir={}", file("flexvolume")),
                // A machine that sleeps, or a stopped API server, must not evict every Pod.
                "--node-monitor-grace-period=30m".to_owned(),
            ]);
            self.controller_manager = Some(self.start_process(Component::ControllerManager, &arguments)?);
        }
        if self.options.with_scheduler {
            let arguments = self.client_arguments("system:kube-scheduler")?;
            self.scheduler = Some(self.start_process(Component::Scheduler, &arguments)?);
        }
        let admin = self.access.admin().await?;
        if self.options.with_fake_kubelet {
            self.node = Some(Node::start(&self.access, &admin).await?);
        }
        if self.options.with_controller_manager {
            self.accounts_are_made(&admin).await?;
        }
        Ok(())
    }

    /// Waits for the first service account: without it no Pod is admitted.
    async fn accounts_are_made(&mut self, admin: &Client) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "default");
        let end = Instant::now() + START_DEADLINE;
        while accounts.get_opt("default").await?.is_none() {
            self.check()?;
            if Instant::now() >= end {
                let log = self
                    .controller_manager
                    .as_ref()
                    .map(|process| process.log_tail(30))
                    .unwrap_or_default();
                bail!("the controller-manager made no service account in time; its log ends with:\n{log}");
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.node = None;
        self.scheduler = None;
        self.controller_manager = None;
        self.api_server = None;
        self.etcd = None;
        self.reaper.finish();
    }
}

/// Somebody else listens on the port that was free a moment ago.
#[derive(Debug)]
struct PortTaken(u16);

impl std::fmt::Display for PortTaken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "port {} is taken by another process", self.0)
    }
}

impl std::error::Error for PortTaken {}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}
