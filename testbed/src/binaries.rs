//! The programs a cluster is made of: built once from their Go modules and kept by version in the user's cache folder.

use std::fmt;
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Names the directory that holds `etcd`, `kube-apiserver` and `kubectl` to use instead of building them.
pub const ASSETS_VARIABLE: &str = "KUBEBUILDER_ASSETS";
/// Names the directory that binaries are kept in, instead of the user's cache folder.
pub const CACHE_VARIABLE: &str = "BACKSTEP_TESTBED_CACHE";
/// Names the minor of Kubernetes to run, such as `1.34`, instead of the newest.
pub const KUBERNETES_VARIABLE: &str = "BACKSTEP_TESTBED_KUBERNETES";

/// What the names of the directories start with that programs are built in, beside the built ones.
const BUILD_PREFIX: &str = "building-";

/// A Go module whose programs are built with one `go.mod`: the families' dependencies clash in a common one.
struct Family {
    name: &'static str,
    module: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
}

const ETCD: Family = Family {
    name: "etcd",
    module: "go.etcd.io/etcd/server/v3",
    go_mod: include_str!("../go/etcd/go.mod"),
    go_sum: include_str!("../go/etcd/go.sum"),
};
const KUBERNETES_MODULE: &str = "k8s.io/kubernetes";
/// Every minor that can be built; the first one is taken unless `BACKSTEP_TESTBED_KUBERNETES` names another.
const KUBERNETES: [Family; 4] = [
    Family {
        name: "kubernetes",
        module: KUBERNETES_MODULE,
        go_mod: include_str!("../go/kubernetes/go.mod"),
        go_sum: include_str!("../go/kubernetes/go.sum"),
    },
    Family {
        name: "kubernetes",
        module: KUBERNETES_MODULE,
        go_mod: include_str!("../go/kubernetes-1.35/go.mod"),
        go_sum: include_str!("../go/kubernetes-1.35/go.sum"),
    },
    Family {
        name: "kubernetes",
        module: KUBERNETES_MODULE,
        go_mod: include_str!("../go/kubernetes-1.34/go.mod"),
        go_sum: include_str!("../go/kubernetes-1.34/go.sum"),
    },
    Family {
        name: "kubernetes",
        module: KUBERNETES_MODULE,
        go_mod: include_str!("../go/kubernetes-1.33/go.mod"),
        go_sum: include_str!("../go/kubernetes-1.33/go.sum"),
    },
];
const HELM: Family = Family {
    name: "helm",
    module: "helm.sh/helm/v4",
    go_mod: include_str!("../go/helm/go.mod"),
    go_sum: include_str!("../go/helm/go.sum"),
};

impl Family {
    /// The version its `go.mod` requires, such as `v1.36.3`.
    fn version(&self) -> Result<&'static str> {
        self.go_mod
            .lines()
            .filter_map(|line| line.trim().trim_start_matches("require ").strip_prefix(self.module))
            .find_map(|rest| rest.strip_prefix(' ').filter(|rest| rest.starts_with('v')))
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("testbed/go/{}/go.mod requires no version of {}", self.name, self.module))
    }

    /// Whether its version is one of `minor`, such as `1.34`.
    fn is_minor(&self, minor: &str) -> bool {
        self.version().is_ok_and(|version| {
            version
                .strip_prefix('v')
                .and_then(|version| version.strip_prefix(minor))
                .is_some_and(|rest| rest.starts_with('.'))
        })
    }

    /// Without these the programs report themselves as v0.0.0, and clients refuse to work with such a server.
    fn link_flags(&self) -> Result<String> {
        let version = self.version()?;
        let mut parts = version.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or("0"), parts.next().unwrap_or("0"));
        Ok(match self.name {
            "kubernetes" => {
                let package = "k8s.io/component-base/version";
                format!(
                    "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} \
                     -X {package}.gitMinor={minor} -X {package}.gitTreeState=clean"
                )
            }
            "helm" => format!("-s -w -X helm.sh/helm/v4/internal/version.version={version}"),
            _ => "-s -w".to_owned(),
        })
    }
}

/// A program of the test bed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Component {
    /// The store behind the API server.
    Etcd,
    /// The API server.
    ApiServer,
    /// The controllers for Deployments, Jobs, namespaces, garbage collection and the rest.
    ControllerManager,
    /// The scheduler.
    Scheduler,
    /// The command line client.
    Kubectl,
    /// The package manager.
    Helm,
}

impl Component {
    /// Every program, in the order in which building them shares the most work.
    pub const ALL: [Self; 6] = [
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubectl,
        Self::Helm,
    ];

    /// The file name of the program.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubectl => "kubectl",
            Self::Helm => "helm",
        }
    }

    /// The version that is built, such as `v1.36.3`.
    pub fn version(self) -> Result<&'static str> {
        self.family()?.version()
    }

    fn family(self) -> Result<&'static Family> {
        match self {
            Self::Etcd => Ok(&ETCD),
            Self::ApiServer | Self::ControllerManager | Self::Scheduler | Self::Kubectl => {
                kubernetes(std::env::var(KUBERNETES_VARIABLE).ok().as_deref())
            }
            Self::Helm => Ok(&HELM),
        }
    }

    fn package(self) -> String {
        match self {
            Self::Etcd => ETCD.module.to_owned(),
            Self::Helm => format!("{}/cmd/helm", HELM.module),
            _ => format!("{KUBERNETES_MODULE}/cmd/{}", self.name()),
        }
    }
}

/// The Kubernetes of a minor, such as `1.34`; the newest where none is asked for.
fn kubernetes(minor: Option<&str>) -> Result<&'static Family> {
    let Some(minor) = minor.filter(|minor| !minor.is_empty()) else {
        return Ok(&KUBERNETES[0]);
    };
    KUBERNETES
        .iter()
        .find(|family| family.is_minor(minor))
        .with_context(|| {
            let known: Vec<_> = KUBERNETES.iter().filter_map(|family| family.version().ok()).collect();
            format!(
                "{KUBERNETES_VARIABLE}={minor} is none of the minors that can be built: {}",
                known.join(", ")
            )
        })
}

/// A program that `KUBEBUILDER_ASSETS` does not offer; what needs it is to be skipped, saying so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// What is missing.
    pub component: &'static str,
    /// Where it was looked for.
    pub assets: PathBuf,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "skipped: {} is needed, and {ASSETS_VARIABLE}={} does not hold it; unset {ASSETS_VARIABLE} to build it",
            self.component,
            self.assets.display()
        )
    }
}

impl std::error::Error for Skipped {}

/// The path of the program called `name` (see [`Component::name`]), built first where the cache lacks it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let component = Component::ALL
        .into_iter()
        .find(|component| component.name() == name)
        .with_context(|| {
            let known: Vec<_> = Component::ALL.iter().map(|component| component.name()).collect();
            format!("the test bed has no program {name:?}; it has {}", known.join(", "))
        })?;
    path(component)
}

/// The path of `component`, built first where the cache lacks it. Blocks for minutes on the first build.
///
/// With `KUBEBUILDER_ASSETS` set, etcd and everything of Kubernetes come from that directory and Helm from the cache,
/// and nothing is built: what is missing is the error [`Skipped`].
pub fn path(component: Component) -> Result<PathBuf> {
    let cached = cached(component)?;
    if let Some(assets) = std::env::var_os(ASSETS_VARIABLE).filter(|assets| !assets.is_empty()) {
        let assets = PathBuf::from(assets);
        let offered = assets.join(component.name());
        if offered.is_file() {
            return Ok(offered);
        }
        // A client of another version works with any server; a control plane of two versions does not.
        if component == Component::Helm && cached.is_file() {
            return Ok(cached);
        }
        return Err(Skipped {
            component: component.name(),
            assets,
        }
        .into());
    }
    if !cached.is_file() {
        build(component, &cached)?;
    }
    Ok(cached)
}

/// Where `component` is kept once built.
fn cached(component: Component) -> Result<PathBuf> {
    let family = component.family()?;
    Ok(cache_directory()?
        .join(format!("{}-{}", family.name, family.version()?))
        .join(component.name()))
}

/// The directory binaries are kept in: `$BACKSTEP_TESTBED_CACHE`, else `$XDG_CACHE_HOME/backstep`, else
/// `~/.cache/backstep`.
pub fn cache_directory() -> Result<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(own) = variable(CACHE_VARIABLE) {
        return std::path::absolute(&own).with_context(|| format!("{CACHE_VARIABLE}={} is no path", own.display()));
    }
    if let Some(cache) = variable("XDG_CACHE_HOME").filter(|cache| cache.is_absolute()) {
        return Ok(cache.join("backstep"));
    }
    let home = std::env::home_dir()
        .with_context(|| format!("there is no home directory to cache in; set {CACHE_VARIABLE}"))?;
    Ok(home.join(".cache").join("backstep"))
}

/// Builds every program that is missing and returns their paths; those that are to be skipped come as the reason.
pub fn build_all() -> Result<Vec<(Component, Result<PathBuf, Skipped>)>> {
    Component::ALL
        .into_iter()
        .map(|component| match path(component) {
            Ok(path) => Ok((component, Ok(path))),
            Err(error) => error.downcast::<Skipped>().map(|skipped| (component, Err(skipped))),
        })
        .collect()
}

fn build(component: Component, target: &Path) -> Result<()> {
    let family = component.family()?;
    let directory = target.parent().context("a cached program has a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot create the cache {}", directory.display()))?;
    let _lock = lock(&directory.with_file_name(format!("{}-{}.lock", family.name, family.version()?)))?;
    if target.is_file() {
        return Ok(());
    }

    // Nobody else builds now, so these are of a build that was killed.
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(BUILD_PREFIX) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    // Outside of the repository, and so of any go.work above it.
    let source = tempfile::Builder::new()
        .prefix(BUILD_PREFIX)
        .tempdir_in(directory)
        .with_context(|| format!("cannot write into the cache {}", directory.display()))?;
    fs::write(source.path().join("go.mod"), family.go_mod)?;
    fs::write(source.path().join("go.sum"), family.go_sum)?;
    let built = source.path().join(component.name());
    let log = source.path().join("build.log");

    let mut command = Command::new("go");
    command
        .args([
            "build",
            "-mod=readonly",
            "-buildvcs=false",
            "-ldflags",
            &family.link_flags()?,
            "-o",
        ])
        .arg(&built)
        .arg(component.package())
        .current_dir(source.path())
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .stdin(Stdio::null())
        .stdout(File::create(&log)?)
        .stderr(File::options().append(true).open(&log)?);
    let mut child = command.spawn().with_context(|| {
        format!(
            "cannot run `go` to build {}: install Go 1.26 or newer, or set {ASSETS_VARIABLE}",
            component.name()
        )
    })?;
    let mut progress = Progress::new(format!("{} {}", component.name(), family.version()?));
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        progress.tick();
        std::thread::sleep(Duration::from_millis(200));
    };
    if !status.success() {
        let output = fs::read_to_string(&log).unwrap_or_default();
        bail!(
            "building {} {} failed ({status}); modules are fetched as `go env GOPROXY` says. The compiler said:\n{}",
            component.name(),
            family.version()?,
            crate::process::last_lines(&output, 30)
        );
    }
    ensure!(
        built.is_file(),
        "`go build` succeeded without writing {}",
        built.display()
    );
    // Renamed into place, so that a build that is interrupted never leaves half a program behind.
    fs::rename(&built, target).with_context(|| format!("cannot move the built program to {}", target.display()))?;
    progress.finish();
    Ok(())
}

/// Holds a lock on `path` until dropped, so that two callers build once.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create the lock {}", path.display()))?;
    if file.try_lock().is_err() {
        tell(&format!(
            "testbed: waiting for another process that builds ({})\n",
            path.display()
        ));
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Tells what is being built and since when: one line that counts on a terminal, else a line every 20 s.
struct Progress {
    what: String,
    since: Instant,
    told: Instant,
    terminal: bool,
}

impl Progress {
    fn new(what: String) -> Self {
        let terminal = std::io::stderr().is_terminal();
        tell(&format!(
            "testbed: building {what} from its Go module (once; kept in the cache){}",
            end(terminal)
        ));
        Self {
            what,
            since: Instant::now(),
            told: Instant::now(),
            terminal,
        }
    }

    fn tick(&mut self) {
        let pause = if self.terminal {
            Duration::from_secs(1)
        } else {
            Duration::from_secs(20)
        };
        if self.told.elapsed() >= pause {
            self.told = Instant::now();
            let seconds = self.since.elapsed().as_secs();
            self.line(
                &format!("testbed: building {} … {seconds} s", self.what),
                end(self.terminal),
            );
        }
    }

    fn finish(&self) {
        self.line(
            &format!("testbed: built {} in {} s", self.what, self.since.elapsed().as_secs()),
            "\n",
        );
    }

    fn line(&self, text: &str, end: &str) {
        // Over the line before, and what is left of it erased.
        let (start, erase) = if self.terminal { ("\r", "\x1b[K") } else { ("", "") };
        tell(&format!("{start}{text}{erase}{end}"));
    }
}

fn end(terminal: bool) -> &'static str {
    if terminal { "" } else { "\n" }
}

/// Progress goes to standard error; when that is closed there is nobody to tell.
fn tell(text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_names_the_version_it_builds() {
        for component in Component::ALL {
            let version = component.version().unwrap();
            assert!(
                version.starts_with('v') && version.split('.').count() == 3,
                "{component:?}: {version}"
            );
        }
    }

    #[test]
    fn every_program_is_a_tool_of_its_go_module() {
        for component in Component::ALL {
            let go_mod = component.family().unwrap().go_mod;
            assert!(
                go_mod.contains(&component.package()),
                "{component:?} is no tool line of its go.mod"
            );
        }
    }

    #[test]
    fn kubernetes_programs_are_linked_with_their_version() {
        let flags = kubernetes(None).unwrap().link_flags().unwrap();
        assert!(
            flags.contains("gitVersion=v1.36.3") && flags.contains("gitMinor=36"),
            "{flags}"
        );
    }

    #[test]
    fn a_minor_is_chosen_by_its_number_and_an_unknown_one_is_refused() {
        assert!(
            kubernetes(Some("1.33"))
                .unwrap()
                .version()
                .unwrap()
                .starts_with("v1.33.")
        );
        let error = kubernetes(Some("1.3")).err().unwrap().to_string();
        assert!(error.contains("v1.36.3") && error.contains("v1.33."), "{error}");
    }

    #[test]
    fn an_unknown_program_is_refused_with_the_known_ones() {
        let error = binary("kubelet").unwrap_err().to_string();
        assert!(error.contains("kube-scheduler"), "{error}");
    }
}
