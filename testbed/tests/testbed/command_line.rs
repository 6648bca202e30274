//! The command line, run as a user runs it.

use std::path::Path;
use std::process::{Command, Output};

fn testbed(runtime: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(arguments)
        .env("XDG_RUNTIME_DIR", runtime)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// What `arguments` print, which must succeed.
fn good(runtime: &Path, arguments: &[&str]) -> String {
    let output = testbed(runtime, arguments);
    assert!(output.status.success(), "testbed {arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Ends the cluster also where the test fails.
struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        testbed(self.0, &["down", "--all"]);
    }
}

#[test]
fn a_cluster_goes_up_is_used_by_users_and_goes_down() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = folder.path();
    let up = testbed(runtime, &["up", "--name", "demo"]);
    if said(&up).contains("skipped:") {
        eprintln!("{}", said(&up));
        return;
    }
    assert!(up.status.success(), "{}", said(&up));
    let _down = Down(runtime);
    assert!(good(runtime, &["list"]).starts_with("demo\thttps://127.0.0.1:"));
    let again = testbed(runtime, &["up", "--name", "demo"]);
    assert!(
        !again.status.success() && said(&again).contains("runs already"),
        "{}",
        said(&again)
    );

    let shell = |arguments: &[&str]| {
        let script = format!(
            "{}\nkubectl auth whoami -o name && kubectl auth whoami",
            good(runtime, arguments)
        );
        said(&Command::new("sh").args(["-c", &script]).output().unwrap())
    };
    assert!(shell(&["env", "--name", "demo"]).contains("system:masters"));
    let alice = shell(&[
        "env",
        "--name",
        "demo",
        "--user",
        "alice",
        "--groups",
        "shop-team,readers",
    ]);
    assert!(alice.contains("[shop-team readers system:authenticated]"), "{alice}");
    let known = shell(&["env", "--name", "demo", "--user", "alice"]);
    assert!(known.contains("shop-team"), "her groups are remembered: {known}");
    assert!(good(runtime, &["env", "--name", "demo"]).contains("export KUBECONFIG_ALICE="));

    let account = good(
        runtime,
        &["kubeconfig", "--name", "demo", "--service-account", "default/default"],
    );
    assert!(Path::new(account.trim()).is_file());
    let digest = format!("sha256:{}", "a".repeat(64));
    good(
        runtime,
        &["move-tag", "--name", "demo", "registry.example/web:1", &digest],
    );

    assert!(good(runtime, &["down", "--name", "demo"]).contains("is down"));
    assert!(good(runtime, &["list"]).is_empty());
    assert!(!runtime.join("backstep-testbed").exists(), "nothing is left");
    let gone = testbed(runtime, &["env", "--name", "demo"]);
    assert!(
        said(&gone).contains("`testbed up --name demo` starts it"),
        "{}",
        said(&gone)
    );
}

#[test]
fn what_the_given_assets_lack_is_skipped_in_clear_words() {
    let folder = tempfile::tempdir().unwrap();
    for program in ["etcd", "kube-apiserver", "kubectl"] {
        std::fs::write(folder.path().join(program), "").unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .arg("build")
        .env("KUBEBUILDER_ASSETS", folder.path())
        .env("BACKSTEP_TESTBED_CACHE", folder.path().join("cache"))
        .output()
        .unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains(&format!("{}\n", folder.path().join("kube-apiserver").display())),
        "{said}"
    );
    assert!(
        said.contains("skipped: kube-scheduler is needed, and KUBEBUILDER_ASSETS="),
        "{said}"
    );
    assert!(said.contains("skipped: helm is needed"), "{said}");
}

#[test]
fn a_missing_compiler_is_told_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .arg("build")
        .env_remove("KUBEBUILDER_ASSETS")
        .env("BACKSTEP_TESTBED_CACHE", folder.path())
        .env("PATH", folder.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(said(&output).contains("install Go"), "{}", said(&output));
    let left: Vec<_> = std::fs::read_dir(folder.path().join("etcd-v3.7.3")).unwrap().collect();
    assert!(left.is_empty(), "no half build is left: {left:?}");
}
