//! What several tests need.

use std::fs;
use std::path::Path;
use std::time::Duration;

use testbed::{Cluster, ClusterOptions, User};

/// How long anything may take on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A cluster, or `None` (said on standard error) where `KUBEBUILDER_ASSETS` lacks a program.
pub async fn cluster(name: &str) -> Option<Cluster> {
    started(ClusterOptions::named(name)).await
}

/// As [`cluster`], with options.
pub async fn started(options: ClusterOptions) -> Option<Cluster> {
    Cluster::start_or_skip(options).await.unwrap()
}

/// Applies `manifests` as admin.
pub async fn apply(cluster: &Cluster, manifests: &str) {
    let applied = cluster
        .kubectl(&User::admin(), &["apply", "-f", "-"], Some(manifests))
        .await;
    applied.unwrap().success().unwrap();
}

/// The living processes whose command line names `directory`.
pub fn processes_of(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        // A process that ends meanwhile cannot be read; one that ended and is not waited for has no command line.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(directory) {
            found.push(format!(
                "{} {}",
                entry.file_name().to_string_lossy(),
                line.chars().take(80).collect::<String>()
            ));
        }
    }
    found
}

/// Whether neither a process nor the directory is left; what is left otherwise.
pub fn nothing_left(directory: &Path) -> Result<Option<()>, String> {
    let processes = processes_of(directory);
    match (processes.is_empty(), directory.exists()) {
        (true, false) => Ok(Some(())),
        (_, exists) => Err(format!(
            "{} exists: {exists}; processes: {processes:?}",
            directory.display()
        )),
    }
}
