//! Clusters that keep running in the background, by name, until they are taken down.
//!
//! Each has a supervisor process that holds a lock on `<name>.lock` for as long as it lives, so that whether a cluster
//! runs is never a matter of belief.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use crate::access::Access;
use crate::cluster::{Cluster, ClusterOptions};

/// How long a cluster may take to start.
const UP_DEADLINE: Duration = Duration::from_secs(180);
/// How long a cluster may take to end before its supervisor is killed.
const DOWN_PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// How often the supervisor looks whether every component runs.
const CHECK: Duration = Duration::from_secs(1);
const READY_FILE: &str = "ready";

/// A cluster by name.
#[derive(Debug, Clone)]
pub struct Named {
    name: String,
    root: PathBuf,
}

impl Named {
    /// The cluster called `name` (1 to 40 letters, digits and `-`), whether it runs or not.
    pub fn new(name: &str) -> Result<Self> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
        ensure!(
            (1..=40).contains(&name.len()) && name.chars().all(good),
            "{name:?} cannot name a cluster: use 1 to 40 letters, digits and hyphens"
        );
        Ok(Self {
            name: name.to_owned(),
            root: root(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn directory(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.root.join(format!("{}.{kind}", self.name))
    }

    /// Starts it in the background, supervised by `program` (this crate's command line) called with `arguments`, and
    /// returns once it is ready.
    pub fn up(&self, program: &Path, arguments: &[&str]) -> Result<Access> {
        ensure_root(&self.root)?;
        if let Lock::Held(id) = self.lock()? {
            bail!(
                "the cluster {:?} runs already (process {id}); `testbed down --name {0}` ends it",
                self.name
            );
        }
        let log = File::create(self.file("log"))?;
        let mut supervisor = Command::new(program)
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let outcome = self.wait_until_ready(&mut supervisor);
        if outcome.is_err() {
            let _ = supervisor.kill();
            let _ = supervisor.wait();
            self.forget();
        }
        outcome
    }

    fn wait_until_ready(&self, supervisor: &mut Child) -> Result<Access> {
        let until = Instant::now() + UP_DEADLINE;
        while !self.directory().join(READY_FILE).is_file() {
            let problem = match supervisor.try_wait()? {
                Some(status) => Some(format!("its supervisor ended ({status})")),
                None if Instant::now() >= until => Some(format!("not ready within {} s", UP_DEADLINE.as_secs())),
                None => None,
            };
            if let Some(problem) = problem {
                let log = fs::read_to_string(self.file("log")).unwrap_or_default();
                let said = crate::process::last_lines(&log, 40);
                bail!("the cluster {:?} did not start: {problem}. It said:\n{said}", self.name);
            }
            std::thread::sleep(LOOK);
        }
        Access::open(&self.directory())
    }

    /// Runs the cluster in this process until it is told to end (SIGTERM, SIGINT) or a component fails.
    pub async fn supervise(&self, options: ClusterOptions) -> Result<()> {
        // Nothing to do where it leads a session already.
        let _ = nix::unistd::setsid();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let Lock::Free(mut lock) = self.lock()? else {
            bail!("another process runs the cluster {:?}", self.name)
        };
        lock.set_len(0)?;
        write!(lock, "{}", std::process::id())?;
        // Left by a supervisor that was killed together with its helper.
        let directory = self.directory();
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        let start = Cluster::start(ClusterOptions {
            directory: Some(directory.clone()),
            ..options
        });
        let mut cluster = tokio::select! {
            cluster = start => cluster?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        File::create(directory.join(READY_FILE))?;
        let failed = loop {
            tokio::select! {
                _ = terminate.recv() => break None,
                _ = interrupt.recv() => break None,
                () = tokio::time::sleep(CHECK) => if let Err(error) = cluster.check() { break Some(error) },
            }
        };
        cluster.stop().await?;
        failed.map_or(Ok(()), Err)
    }

    /// Ends it and removes everything it left; `false` where it did not run.
    pub fn down(&self) -> Result<bool> {
        let Lock::Held(id) = self.lock()? else {
            self.forget();
            return Ok(false);
        };
        let pid = Pid::from_raw(id);
        for (signal, patience) in [(Signal::SIGTERM, DOWN_PATIENCE), (Signal::SIGKILL, DOWN_PATIENCE)] {
            let _ = kill(pid, signal);
            let until = Instant::now() + patience;
            while Instant::now() < until {
                // After a kill, the helper process still has to remove the directory.
                if matches!(self.lock()?, Lock::Free(_)) && !self.directory().exists() {
                    self.forget();
                    return Ok(true);
                }
                std::thread::sleep(LOOK);
            }
        }
        bail!(
            "the cluster {:?} (process {id}) does not end; look into {}",
            self.name,
            self.root.display()
        );
    }

    /// Opens it for use.
    pub fn open(&self) -> Result<Access> {
        ensure!(
            self.file("lock").exists(),
            "no cluster called {:?} runs; `testbed up --name {0}` starts it",
            self.name
        );
        ensure!(
            matches!(self.lock()?, Lock::Held(_)),
            "the cluster {:?} ended by itself; {} may say why, and `testbed down --name {0}` forgets it",
            self.name,
            self.file("log").display()
        );
        ensure!(
            self.directory().join(READY_FILE).is_file(),
            "the cluster {:?} is still starting",
            self.name
        );
        Access::open(&self.directory())
    }

    /// Removes the files of a cluster that does not run.
    fn forget(&self) {
        for kind in ["lock", "log"] {
            let _ = fs::remove_file(self.file(kind));
        }
        // Only where it is empty.
        let _ = fs::remove_dir(&self.root);
    }

    fn lock(&self) -> Result<Lock> {
        let path = self.file("lock");
        if !self.root.exists() {
            ensure_root(&self.root)?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock::Free(file)),
            Err(fs::TryLockError::WouldBlock) => {
                let content = fs::read_to_string(&path)?;
                let id = content
                    .trim()
                    .parse()
                    .with_context(|| format!("{} names no process yet", path.display()))?;
                Ok(Lock::Held(id))
            }
            Err(fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }
}

/// Whether a supervisor runs.
enum Lock {
    /// None does, and none can while this is kept.
    Free(File),
    /// This process does.
    Held(i32),
}

/// The clusters that were started and not taken down, by name; [`Named::open`] tells which of them run no more.
pub fn list() -> Result<Vec<Named>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root()) else {
        return Ok(Vec::new());
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "lock")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            found.push(name.to_owned());
        }
    }
    found.sort();
    found.iter().map(|name| Named::new(name)).collect()
}

/// Where named clusters live: `$XDG_RUNTIME_DIR/backstep-testbed`, else `backstep-testbed-<uid>` in the temporary
/// folder.
fn root() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|runtime| runtime.is_dir())
    {
        Some(runtime) => runtime.join("backstep-testbed"),
        None => std::env::temp_dir().join(format!("backstep-testbed-{}", nix::unistd::getuid())),
    }
}

/// Makes the directory for the user alone, and refuses one that somebody else put there.
fn ensure_root(root: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(root) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(root)?;
            ensure!(
                found.is_dir() && found.uid() == nix::unistd::getuid().as_raw() && found.mode() & 0o777 == 0o700,
                "{} is not a directory of yours that is closed to others (mode 700); remove it",
                root.display()
            );
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("cannot make the directory {}", root.display())),
    }
}
