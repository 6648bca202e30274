//! Nothing outlives the owner of a cluster, however it ends.

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::{Cluster, ClusterOptions, wait_until};

use crate::support::{DEADLINE, cluster, nothing_left, processes_of};

/// A process that owns a cluster, its folder for named clusters, and the cluster's directory.
struct Owner {
    process: tokio::process::Child,
    directory: PathBuf,
    runtime: tempfile::TempDir,
}

impl Owner {
    /// What the command line prints about this owner's clusters.
    fn command(&self, arguments: &[&str]) -> String {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_testbed"));
        let output = command
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

async fn owner() -> Option<Owner> {
    // Tells where programs are missing, before another process says it less clearly.
    for (_, path) in tokio::task::spawn_blocking(testbed::binaries::build_all)
        .await
        .unwrap()
        .unwrap()
    {
        if let Err(skipped) = path {
            eprintln!("{skipped}");
            return None;
        }
    }
    let runtime = tempfile::tempdir().unwrap();
    let directory = runtime.path().join("backstep-testbed").join("owned");
    let process = tokio::process::Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["supervise", "--name", "owned"])
        .env("XDG_RUNTIME_DIR", runtime.path())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let ready = directory.join("ready");
    wait_until(DEADLINE, "the cluster to start", async || {
        if ready.exists() {
            Ok(Some(()))
        } else {
            Err(format!("{:?}", processes_of(&directory)))
        }
    })
    .await
    .unwrap();
    assert_eq!(processes_of(&directory).len(), 5, "four components and the helper");
    Some(Owner {
        process,
        directory,
        runtime,
    })
}

#[tokio::test]
async fn a_killed_owner_leaves_no_process_and_no_directory() {
    let Some(mut owner) = owner().await else { return };
    owner.process.kill().await.unwrap();
    wait_until(DEADLINE, "everything to be gone", async || {
        nothing_left(&owner.directory)
    })
    .await
    .unwrap();
    let listed = owner.command(&["list"]);
    assert!(listed.contains("ended by itself"), "{listed}");
    assert!(owner.command(&["down", "--name", "owned"]).contains("does not run"));
    assert_eq!(owner.command(&["list"]), "");
}

#[tokio::test]
async fn an_interrupted_owner_ends_its_cluster() {
    let Some(mut owner) = owner().await else { return };
    let id = owner.process.id().unwrap().cast_signed();
    kill(Pid::from_raw(id), Signal::SIGINT).unwrap();
    let status = tokio::time::timeout(DEADLINE, owner.process.wait())
        .await
        .unwrap()
        .unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(nothing_left(&owner.directory), Ok(Some(())));
}

#[test]
fn a_panicking_owner_leaves_nothing() {
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let Some(cluster) = cluster("panics").await else { return };
            send.send(cluster.directory().to_owned()).unwrap();
            panic!("as a test that fails does");
        });
    });
    let panicked = thread.join().is_err();
    let Ok(directory) = receive.recv() else { return };
    assert!(panicked);
    assert_eq!(nothing_left(&directory), Ok(Some(())));
}

#[tokio::test]
async fn a_cluster_outlives_the_runtime_that_started_it() {
    let start = || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime
            .block_on(Cluster::start_or_skip(ClusterOptions::named("shared")))
            .unwrap()
    };
    let Some(cluster) = tokio::task::spawn_blocking(start).await.unwrap() else {
        return;
    };
    for arguments in [
        ["run", "late", "--image=registry.example/web:1", "--quiet"],
        ["wait", "pod/late", "--for=condition=Ready", "--timeout=60s"],
    ] {
        let ran = cluster.kubectl(&testbed::User::admin(), &arguments, None).await;
        ran.unwrap().success().unwrap();
    }
}
