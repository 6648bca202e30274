//! Ways into a running cluster, from the process that started it or from another: users, clients, command line tools.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::binaries::{self, Component};
use crate::pki::{Authority, write_private};
use crate::{ApiRequests, AuditEvent, audit};

/// How long a command line tool may take.
const TOOL_DEADLINE: Duration = Duration::from_secs(180);
/// How long service account tokens are good for, in seconds.
const TOKEN_SECONDS: i64 = 24 * 3600;
const ADMIN_GROUP: &str = "system:masters";

/// Somebody who uses the cluster, known to it by a client certificate. The test bed grants nothing to anybody but
/// [`User::admin`]: rights are given with real RBAC.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct User {
    /// The user name as RBAC sees it.
    pub name: String,
    /// The groups as RBAC sees them (`system:authenticated` comes by itself).
    pub groups: Vec<String>,
}

impl User {
    /// A user `name` who is a member of `groups`.
    pub fn new<G: Into<String>>(name: impl Into<String>, groups: impl IntoIterator<Item = G>) -> Self {
        Self {
            name: name.into(),
            groups: groups.into_iter().map(Into::into).collect(),
        }
    }

    /// The one who may do everything (`admin`, group `system:masters`).
    pub fn admin() -> Self {
        Self::new("admin", [ADMIN_GROUP])
    }

    /// A file name that no other user has: two users of one name and different groups are two.
    fn file_name(&self) -> String {
        let mut hash = Sha256::new();
        for part in std::iter::once(&self.name).chain(&self.groups) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        file_name(&self.name, &hash.finalize())
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn file_name(name: &str, hash: &[u8]) -> String {
    let readable: String = name
        .chars()
        .take(60)
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
        .collect();
    let short = hash
        .iter()
        .take(4)
        .fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    format!("{readable}-{short:08x}.kubeconfig")
}

/// What a command line tool did.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed to standard output.
    pub stdout: String,
    /// What it printed to standard error.
    pub stderr: String,
}

impl Ran {
    /// The result itself where the tool succeeded; else an error with everything it printed.
    pub fn success(self) -> Result<Self> {
        ensure!(self.status.success(), "`{}` failed: {self}", self.command);
        Ok(self)
    }

    /// The result itself where the tool failed; else an error with everything it printed.
    pub fn failure(self) -> Result<Self> {
        ensure!(
            !self.status.success(),
            "`{}` was expected to fail: {self}",
            self.command
        );
        Ok(self)
    }

    /// Standard output as JSON, of a tool that succeeded.
    pub fn json(self) -> Result<Value> {
        let ran = self.success()?;
        serde_json::from_str(&ran.stdout).with_context(|| format!("`{}` printed no JSON: {ran}", ran.command))
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}\nstdout: {}\nstderr: {}",
            self.status,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// A running cluster as seen from outside. Cheap to clone; does not keep the cluster alive.
#[derive(Clone)]
pub struct Access {
    directory: PathBuf,
    server: String,
    authority: Arc<Authority>,
}

const SERVER_FILE: &str = "server";
const USERS_FILE: &str = "users.json";
const TAGS_FILE: &str = "tags.json";

impl Access {
    pub(crate) fn create(directory: &Path, server: String, authority: Arc<Authority>) -> Result<Self> {
        write_private(&directory.join(SERVER_FILE), &server)?;
        Ok(Self {
            directory: directory.to_owned(),
            server,
            authority,
        })
    }

    /// Opens a cluster that another process runs in `directory`.
    pub fn open(directory: &Path) -> Result<Self> {
        let server = fs::read_to_string(directory.join(SERVER_FILE))
            .with_context(|| format!("no cluster runs in {}", directory.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
            server,
            authority: Arc::new(Authority::load(directory)?),
        })
    }

    /// The address of the API server, such as `https://127.0.0.1:41234`.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The cluster's directory: logs (`<component>.log`), kubeconfigs, certificates, data. It goes with the cluster.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The certificate that the API server's and every user's are signed with, PEM.
    pub fn ca_certificate(&self) -> &str {
        self.authority.certificate()
    }

    /// The path of a kubeconfig file (mode 0600) for `user`; its certificate is made at the first call.
    pub fn kubeconfig(&self, user: &User) -> Result<PathBuf> {
        let path = self.directory.join(user.file_name());
        if !path.is_file() {
            let identity = self.authority.client(&user.name, &user.groups)?;
            let credentials = json!({
                "client-certificate-data": base64(&identity.certificate),
                "client-key-data": base64(&identity.key),
            });
            self.write_kubeconfig(&path, &user.name, "default", &credentials)?;
            if !user.name.starts_with("system:") {
                let _lock = self.lock()?;
                let mut users = self.users()?;
                if !users.contains(user) {
                    users.push(user.clone());
                }
                write_private(&self.directory.join(USERS_FILE), &serde_json::to_string(&users)?)?;
            }
        }
        Ok(path)
    }

    /// Everybody who has a kubeconfig by now, without the components of the control plane and service accounts.
    pub fn users(&self) -> Result<Vec<User>> {
        let path = self.directory.join(USERS_FILE);
        match fs::read(&path) {
            Ok(content) => serde_json::from_slice(&content).with_context(|| format!("{} is damaged", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// A client that acts as `user`.
    pub async fn client_as(&self, user: &User) -> Result<Client> {
        client_of(&self.kubeconfig(user)?).await
    }

    /// A client that may do everything.
    pub async fn admin(&self) -> Result<Client> {
        self.client_as(&User::admin()).await
    }

    /// The path of a kubeconfig file (mode 0600) for a service account, with a fresh token that is good for a day and
    /// with the account's namespace as the default one. The service account has to exist.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin().await?, namespace);
        let spec = TokenRequestSpec {
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest {
            spec,
            ..TokenRequest::default()
        };
        let issued = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("no token can be had for the service account {namespace}/{name}"))?;
        let token = issued.status.context("the API server issued no token")?.token;
        let user = format!("system:serviceaccount:{namespace}:{name}");
        let path = self.directory.join(file_name(&user, &Sha256::digest(&user)));
        self.write_kubeconfig(&path, &user, namespace, &json!({"token": token}))?;
        Ok(path)
    }

    /// A client that acts as a service account.
    pub async fn service_account_client(&self, namespace: &str, name: &str) -> Result<Client> {
        client_of(&self.service_account_kubeconfig(namespace, name).await?).await
    }

    /// Holds off other tests and processes that change the same file, until it is dropped.
    fn lock(&self) -> Result<File> {
        let file = File::create(self.directory.join("changes.lock"))?;
        file.lock()?;
        Ok(file)
    }

    fn write_kubeconfig(&self, path: &Path, user: &str, namespace: &str, credentials: &Value) -> Result<()> {
        // JSON is YAML.
        let content = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "testbed", "cluster": {
                "server": self.server,
                "certificate-authority-data": base64(self.authority.certificate()),
            }}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": user, "namespace": namespace}}],
            "current-context": "testbed",
        });
        write_private(path, &serde_json::to_string_pretty(&content)?)
    }

    /// A command for `program` that works with the cluster through `kubeconfig`, and keeps its caches in the cluster's
    /// directory.
    pub fn command(&self, program: impl AsRef<OsStr>, kubeconfig: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("KUBECONFIG", kubeconfig)
            .env("KUBECACHEDIR", self.directory.join("kubectl-cache"));
        for folder in ["CACHE", "CONFIG", "DATA"] {
            command.env(
                format!("HELM_{folder}_HOME"),
                self.directory.join("helm").join(folder.to_lowercase()),
            );
        }
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs `kubectl` as `user`, with `stdin` as its input; ends it after three minutes.
    pub async fn kubectl(&self, user: &User, arguments: &[&str], stdin: Option<&str>) -> Result<Ran> {
        self.tool(Component::Kubectl, user, arguments, stdin).await
    }

    /// Runs `helm` as `user`, with `stdin` as its input; ends it after three minutes.
    pub async fn helm(&self, user: &User, arguments: &[&str], stdin: Option<&str>) -> Result<Ran> {
        self.tool(Component::Helm, user, arguments, stdin).await
    }

    async fn tool(&self, tool: Component, user: &User, arguments: &[&str], stdin: Option<&str>) -> Result<Ran> {
        let program = tokio::task::spawn_blocking(move || binaries::path(tool)).await??;
        self.run(program, &self.kubeconfig(user)?, arguments, stdin).await
    }

    /// Runs any `program` through `kubeconfig`, with `stdin` as its input; ends it after three minutes.
    pub async fn run(
        &self,
        program: impl AsRef<OsStr>,
        kubeconfig: &Path,
        arguments: &[&str],
        stdin: Option<&str>,
    ) -> Result<Ran> {
        let mut command = self.command(&program, kubeconfig);
        command.args(arguments);
        run_captured(command, stdin).await
    }

    /// What the API server counted since it started (see [`ApiRequests`]).
    pub async fn api_requests(&self) -> Result<ApiRequests> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        let text = self
            .admin()
            .await?
            .request_text(request)
            .await
            .context("the API server's metrics cannot be read")?;
        Ok(ApiRequests::parse(&text))
    }

    /// Every completed request so far, oldest first; needs a cluster that was started with an audit policy.
    pub fn audit_events(&self) -> Result<Vec<AuditEvent>> {
        audit::read(&self.directory)
    }

    /// From now on, Pods that start with the image `reference` (such as `registry.example/web:1.8`) run `digest`
    /// (`sha256:` and 64 hexadecimal digits), as if the tag had been pushed again. Running Pods keep theirs.
    pub fn move_tag(&self, reference: &str, digest: &str) -> Result<()> {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64
            || !hex
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        {
            bail!("{digest:?} is no image digest; it must be sha256: and 64 lower-case hexadecimal digits");
        }
        ensure!(
            !reference.contains('@'),
            "{reference} names a digest itself, so its tag cannot move"
        );
        let _lock = self.lock()?;
        let mut tags = moved_tags(&self.directory)?;
        tags.insert(crate::fake_kubelet::qualified(reference), digest.to_owned());
        write_private(&self.directory.join(TAGS_FILE), &serde_json::to_string(&tags)?)
    }
}

/// The tags that were moved, fully qualified, with their digests.
pub(crate) fn moved_tags(directory: &Path) -> Result<BTreeMap<String, String>> {
    let path = directory.join(TAGS_FILE);
    match fs::read(&path) {
        Ok(content) => serde_json::from_slice(&content).with_context(|| format!("{} is damaged", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

async fn run_captured(mut command: Command, stdin: Option<&str>) -> Result<Ran> {
    let shown = {
        let plain = command.as_std();
        let words = std::iter::once(plain.get_program()).chain(plain.get_args());
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    };
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if stdin.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().with_context(|| format!("cannot run `{shown}`"))?;
    let pipe = child.stdin.take();
    let feed = async {
        if let (Some(mut pipe), Some(input)) = (pipe, stdin) {
            // A tool that ends without reading says why itself.
            let _ = pipe.write_all(input.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(TOOL_DEADLINE, both)
        .await
        .with_context(|| format!("`{shown}` did not end within {} s", TOOL_DEADLINE.as_secs()))?
        .with_context(|| format!("cannot hear `{shown}`"))?;
    Ok(Ran {
        command: shown,
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A client from the kubeconfig file at `path`.
async fn client_of(path: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
