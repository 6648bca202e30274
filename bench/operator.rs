//! The operator as its users run it: installed with the chart, a process of its own, with its own `ServiceAccount`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use backstep::api::snapshot::{Snapshot, SnapshotSpec};
use http::Request;
use kube::api::PostParams;
use kube::{Api, Client, Config};
use testbed::{Access, User, wait_until};
use tokio::process::{Child, ChildStdin, Command};

/// Where the chart is installed.
pub const NAMESPACE: &str = "backstep-system";
/// Name of the release and of the `ServiceAccount`.
pub const NAME: &str = "backstep";
/// How long the operator may take to start or to stop, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends the program when the pipe on standard input closes, so that it never outlives whoever started it.
const KEEPER: &str =
    r#"exec 3<&0 </dev/null; (trap '' INT TERM; read -r _ <&3; kill -KILL $$ 2>/dev/null) & exec "$@" 3<&-"#;

/// Installs the chart without starting its Deployment (CRDs, rights, admission policies), and waits until Snapshots can be
/// created: kinds that a policy stamps are refused for some seconds after their CRD appeared.
///
/// # Errors
/// What helm prints, or what the API server says to the end.
pub async fn install(cluster: &Access) -> Result<()> {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/backstep");
    let arguments = [
        "install",
        NAME,
        chart,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        "--set",
        "replicas=0",
    ];
    cluster.helm(&User::admin(), &arguments, None).await?.success()?;
    let snapshots: Api<Snapshot> = Api::namespaced(cluster.admin().await?, "default");
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    wait_until(PATIENCE, "Snapshots to be accepted", async || {
        snapshots
            .create(&dry_run, &Snapshot::new("accepted", SnapshotSpec::default()))
            .await
            .map(Some)
    })
    .await?;
    Ok(())
}

/// A running operator; killed when dropped.
pub struct Operator {
    child: Child,
    keeper: Option<ChildStdin>,
    admin: Client,
    log: PathBuf,
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident now.
    pub now: u64,
    /// Most that was ever resident, since the last [`Operator::forget_peak`].
    pub peak: u64,
}

impl Operator {
    /// Starts `program` with contents in `store` and its log in `folder`, and waits until it leads.
    ///
    /// # Errors
    /// With the end of its log, when it ends or does not lead in time.
    pub async fn start(program: &Path, kubeconfig: &Path, folder: &Path, store: &Path) -> Result<Self> {
        std::fs::create_dir_all(store).with_context(|| format!("cannot make {}", store.display()))?;
        let log = folder.join("operator.log");
        let output = std::fs::File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", KEEPER, "keeper"])
            // As the chart sets them.
            .envs([("MIMALLOC_PURGE_DELAY", "0"), ("MIMALLOC_ARENA_EAGER_COMMIT", "0")])
            .arg(program)
            .args([
                "run",
                "--admin-address=127.0.0.1:0",
                "--log-format=text",
                "--store-quota=0",
                "--guard-settle=1s",
            ])
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--namespace={NAMESPACE}"))
            .arg(format!("--service-account={NAME}"))
            .arg(format!("--store=file://{}", store.display()))
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let keeper = child.stdin.take();
        let address = wait_until(PATIENCE, "the operator's admin server", async || {
            if let Some(status) = child.try_wait()? {
                bail!("it ended ({status}); its log:\n{}", tail(&log));
            }
            Ok(admin_address(&std::fs::read_to_string(&log)?))
        })
        .await?;
        let admin = Client::try_from(Config::new(format!("http://{address}").parse()?))?;
        let operator = Self {
            child,
            keeper,
            admin,
            log,
        };
        wait_until(PATIENCE, "the operator to lead", async || {
            let metrics = operator.metrics().await?;
            if metrics.lines().any(|line| line == "backstep_leader 1") {
                return Ok(Some(()));
            }
            bail!("its log:\n{}", tail(&operator.log))
        })
        .await?;
        Ok(operator)
    }

    /// What `/metrics` says.
    ///
    /// # Errors
    /// When the operator does not answer.
    pub async fn metrics(&self) -> Result<String> {
        Ok(self
            .admin
            .request_text(Request::get("/metrics").body(Vec::new())?)
            .await?)
    }

    /// Seconds that its captures took so far, each from the first read to the commit.
    ///
    /// # Errors
    /// When the operator does not answer, or does not count them.
    pub async fn capture_seconds(&self) -> Result<f64> {
        let metrics = self.metrics().await?;
        let sum = metrics
            .lines()
            .find_map(|line| line.strip_prefix("backstep_capture_duration_seconds_sum "));
        let sum = sum.context("the operator's metrics have no backstep_capture_duration_seconds")?;
        Ok(sum.trim().parse()?)
    }

    /// The end of its log, for messages.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    fn proc(&self, file: &str) -> Result<PathBuf> {
        let id = self.child.id().context("the operator has ended")?;
        Ok(PathBuf::from(format!("/proc/{id}/{file}")))
    }

    /// Its memory, as the kernel counts it.
    ///
    /// # Errors
    /// When it has ended, or the kernel has no `/proc`.
    pub fn memory(&self) -> Result<Memory> {
        let status = std::fs::read_to_string(self.proc("status")?).context("cannot read the operator's memory")?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
                .map(|kilobytes| kilobytes * 1024)
                .with_context(|| format!("/proc has no {name}"))
        };
        Ok(Memory {
            now: field("VmRSS:")?,
            peak: field("VmHWM:")?,
        })
    }

    /// Starts the peak anew from what is resident now.
    ///
    /// # Errors
    /// When it has ended, or belongs to somebody else.
    pub fn forget_peak(&self) -> Result<()> {
        std::fs::write(self.proc("clear_refs")?, "5").context("cannot reset the operator's peak of memory")
    }

    /// CPU time it has used, in seconds.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.child.id().context("the operator has ended")?)
    }

    /// Stops it where it is, until [`Operator::resume`]: what happens meanwhile is due at once afterwards.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn pause(&self) -> Result<()> {
        self.signal("-STOP").await
    }

    /// Lets it go on after [`Operator::pause`].
    ///
    /// # Errors
    /// When it has ended.
    pub async fn resume(&self) -> Result<()> {
        self.signal("-CONT").await
    }

    async fn signal(&self, signal: &str) -> Result<()> {
        let id = self.child.id().context("the operator has ended")?;
        let status = Command::new("/bin/sh")
            .args(["-c", "kill \"$1\" \"$2\"", "kill", signal, &id.to_string()])
            .status()
            .await?;
        ensure!(status.success(), "the operator cannot be sent the signal {signal}");
        Ok(())
    }

    /// Ends it at once: what it was doing is lost.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(mut self) -> Result<()> {
        drop(self.keeper.take());
        self.child.start_kill()?;
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ensure!(
            ended.is_ok(),
            "the operator did not end within {} s",
            PATIENCE.as_secs()
        );
        Ok(())
    }
}

/// CPU time that the process `id` has used, in seconds.
///
/// # Errors
/// When it has ended, or the kernel has no `/proc`.
pub fn cpu_seconds(id: u32) -> Result<f64> {
    // Fields 14 and 15 of `stat` in ticks of 1/100 s; the name before them may hold blanks, but ends with `)`.
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))
        .with_context(|| format!("cannot read the CPU time of the process {id}"))?;
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(2);
    Ok(fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0)
}

fn admin_address(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("the admin server listens"))?;
    let address = line.split_once("127.0.0.1:")?.1;
    let port: String = address.chars().take_while(char::is_ascii_digit).collect();
    (!port.is_empty()).then(|| format!("127.0.0.1:{port}"))
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}
