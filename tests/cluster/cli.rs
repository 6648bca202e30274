//! `kubectl backstep` against a real API server, with real users and no operator: the tests play its part in the status.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use backstep::api::snapshot::SnapshotPhase;
use serde_json::{Value, json};
use testbed::{Cluster, ClusterOptions, Ran, User, wait_until};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::OnceCell;

use crate::support::{Installed, PATIENCE, Store};

const PROGRAM: &str = env!("CARGO_BIN_EXE_kubectl-backstep");
const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds");
/// The value of a Secret that no output may ever hold.
const CANARY: &str = "canary-9f8e7d6c";
const CANARY_BASE64: &str = "Y2FuYXJ5LTlmOGU3ZDZj";

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();

fn alice() -> User {
    User::new("alice", ["shop-team"])
}

fn mallory() -> User {
    User::new("mallory", Vec::<String>::new())
}

/// One cluster for all tests of this file; the test bed ends it with this process.
async fn cluster() -> Result<&'static Cluster> {
    CLUSTER
        .get_or_try_init(|| async {
            let options = ClusterOptions {
                with_scheduler: false,
                with_fake_kubelet: false,
                ..ClusterOptions::named("cli")
            };
            let cluster = Cluster::start(options).await?;
            let admin = User::admin();
            cluster.kubectl(&admin, &["apply", "-f", CRDS], None).await?.success()?;
            let established = ["wait", "--for=condition=Established", "--timeout=60s", "-f", CRDS];
            cluster.kubectl(&admin, &established, None).await?.success()?;
            let role = [
                "create",
                "clusterrole",
                "snapshots",
                "--verb=*",
                "--resource=snapshots.backstep.dev",
            ];
            cluster.kubectl(&admin, &role, None).await?.success()?;
            Ok(cluster)
        })
        .await
}

/// A namespace of its own for each test, where alice may do everything with snapshots.
async fn namespace(name: &str) -> Result<&'static Cluster> {
    let cluster = cluster().await?;
    let admin = User::admin();
    cluster
        .kubectl(&admin, &["create", "namespace", name], None)
        .await?
        .success()?;
    let binding = [
        "create",
        "rolebinding",
        "team",
        "-n",
        name,
        "--clusterrole=snapshots",
        "--user=alice",
    ];
    cluster.kubectl(&admin, &binding, None).await?.success()?;
    let value = format!("--from-literal=password={CANARY}");
    let secret = ["create", "secret", "generic", "canary", "-n", name, &value];
    cluster.kubectl(&admin, &secret, None).await?.success()?;
    Ok(cluster)
}

/// Runs the command line; whatever it does, it never shows the canary.
async fn backstep(user: &User, arguments: &[&str]) -> Result<Ran> {
    let cluster = cluster().await?;
    let ran = cluster
        .run(PROGRAM, &cluster.kubeconfig(user)?, arguments, None)
        .await?;
    for output in [&ran.stdout, &ran.stderr] {
        ensure!(
            !output.contains(CANARY) && !output.contains(CANARY_BASE64),
            "{arguments:?} shows a Secret value: {ran}"
        );
    }
    Ok(ran)
}

fn exits(ran: &Ran, code: i32) -> Result<()> {
    ensure!(
        ran.status.code() == Some(code),
        "`{}` was expected to exit with {code}: {ran}",
        ran.command
    );
    Ok(())
}

/// Writes a status as the operator would; a Ready snapshot has a digest.
async fn play_operator(namespace: &str, name: &str, status: &Value) -> Result<()> {
    let mut status = status.clone();
    if status["phase"] == "Ready" {
        status["digest"] = format!("sha256:{}", "0a".repeat(32)).into();
    }
    let patch = json!({ "status": status }).to_string();
    let arguments = [
        "patch",
        "snapshots.backstep.dev",
        name,
        "-n",
        namespace,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ];
    cluster()
        .await?
        .kubectl(&User::admin(), &arguments, None)
        .await?
        .success()?;
    Ok(())
}

async fn get(namespace: &str, name: &str) -> Result<Value> {
    let arguments = ["get", "snapshots.backstep.dev", name, "-n", namespace, "-o", "json"];
    cluster().await?.kubectl(&User::admin(), &arguments, None).await?.json()
}

#[tokio::test]
async fn a_snapshot_names_the_one_who_asked_for_it() -> Result<()> {
    namespace("create").await?;
    let made = backstep(
        &alice(),
        &[
            "snapshot",
            "create",
            "before",
            "-n",
            "create",
            "--lineage",
            "shop",
            "--pin",
            "--ttl",
            "30d",
        ],
    )
    .await?
    .success()?;
    ensure!(made.stdout == "snapshot.backstep.dev/before created\n", "{made}");
    let stored = get("create", "before").await?;
    assert_eq!(stored["spec"]["requestedBy"]["username"], "alice");
    assert_eq!(
        stored["spec"]["requestedBy"]["groups"],
        json!(["shop-team", "system:authenticated"])
    );
    assert_eq!(stored["spec"]["ttl"], "720h");
    assert_eq!(stored["metadata"]["labels"]["backstep.dev/pinned"], "true");
    let again = backstep(&alice(), &["snapshot", "create", "before", "-n", "create"]).await?;
    exits(&again, 8)?;
    ensure!(again.stderr.contains("already exists"), "{again}");
    Ok(())
}

#[tokio::test]
async fn impersonation_asks_in_the_name_of_the_other_user() -> Result<()> {
    namespace("impersonate").await?;
    let arguments = [
        "snapshot",
        "create",
        "by-proxy",
        "-n",
        "impersonate",
        "--as",
        "alice",
        "--as-group",
        "shop-team",
        "-o",
        "json",
    ];
    let made = backstep(&User::admin(), &arguments).await?.json()?;
    assert_eq!(made["spec"]["requestedBy"]["username"], "alice");
    assert_eq!(
        (made["apiVersion"].as_str(), made["kind"].as_str()),
        (Some("backstep.dev/v1alpha1"), Some("Snapshot"))
    );
    Ok(())
}

#[tokio::test]
async fn dry_runs_keep_nothing() -> Result<()> {
    namespace("dry").await?;
    let client = backstep(
        &alice(),
        &[
            "snapshot",
            "create",
            "a",
            "-n",
            "dry",
            "--dry-run=client",
            "-o",
            "yaml",
            "--selector",
            "app=web",
        ],
    )
    .await?
    .success()?;
    ensure!(
        client.stdout.contains("app: web") && !client.stdout.contains("requestedBy"),
        "{client}"
    );
    let server = backstep(
        &alice(),
        &["snapshot", "create", "a", "-n", "dry", "--dry-run=server", "-o", "json"],
    )
    .await?
    .json()?;
    assert_eq!(server["spec"]["requestedBy"]["username"], "alice");
    let invalid = backstep(
        &alice(),
        &[
            "snapshot",
            "create",
            "a",
            "-n",
            "dry",
            "--dry-run=server",
            "--lineage",
            "Not-A-Label",
        ],
    )
    .await?;
    exits(&invalid, 8)?;
    let listed = backstep(&alice(), &["snapshot", "list", "-n", "dry"])
        .await?
        .success()?;
    ensure!(
        listed.stdout.is_empty() && listed.stderr.contains("No snapshots found in namespace dry"),
        "{listed}"
    );
    // What the client prints can be applied.
    let applied = cluster()
        .await?
        .kubectl(&alice(), &["apply", "-n", "dry", "-f", "-"], Some(&client.stdout))
        .await?;
    applied.success()?;
    Ok(())
}

#[tokio::test]
async fn lists_come_whole_or_page_by_page() -> Result<()> {
    namespace("list").await?;
    for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
        backstep(
            &alice(),
            &["snapshot", "create", name, "-n", "list", "--lineage", "shop"],
        )
        .await?
        .success()?;
        play_operator("list", name, &json!({"phase": "Ready", "version": 3 - index, "objects": {"captured": 4, "unchanged": 0, "skipped": 0, "failed": 0}})).await?;
    }
    let table = backstep(&alice(), &["snapshot", "list", "-n", "list"])
        .await?
        .success()?;
    let versions: Vec<&str> = table
        .stdout
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(versions, ["shop@1", "shop@2", "shop@3"], "{table}");
    let page = backstep(
        &alice(),
        &["snapshot", "list", "-n", "list", "--limit", "2", "-o", "name"],
    )
    .await?
    .success()?;
    assert_eq!(page.stdout.lines().count(), 2, "{page}");
    let token = page.stderr.split_whitespace().last().context("no token")?.to_owned();
    let rest = backstep(
        &alice(),
        &[
            "snapshot",
            "list",
            "-n",
            "list",
            "--limit",
            "2",
            "--continue",
            &token,
            "-o",
            "name",
        ],
    )
    .await?
    .success()?;
    assert_eq!(rest.stdout, "snapshot.backstep.dev/c\n");
    let everywhere = backstep(&alice(), &["snapshot", "list", "-A"]).await?;
    exits(&everywhere, 4)?;
    let all = backstep(&User::admin(), &["snapshot", "list", "-A", "-o", "json"])
        .await?
        .json()?;
    ensure!(all["items"].as_array().is_some_and(|items| items.len() >= 3), "{all}");
    Ok(())
}

#[tokio::test]
async fn a_page_of_one_lineage_holds_as_many_as_were_asked_for() -> Result<()> {
    namespace("pages").await?;
    for (name, lineage) in [
        ("a", "other"),
        ("b", "shop"),
        ("c", "other"),
        ("d", "other"),
        ("e", "shop"),
        ("f", "shop"),
    ] {
        let create = ["snapshot", "create", name, "-n", "pages", "--lineage", lineage];
        backstep(&alice(), &create).await?.success()?;
    }
    let list = [
        "snapshot",
        "list",
        "-n",
        "pages",
        "--lineage",
        "shop",
        "--limit",
        "2",
        "-o",
        "name",
    ];
    let page = backstep(&alice(), &list).await?.success()?;
    assert_eq!(
        page.stdout, "snapshot.backstep.dev/b\nsnapshot.backstep.dev/e\n",
        "{page}"
    );
    let token = page.stderr.split_whitespace().last().context("no token")?;
    let rest = backstep(&alice(), &[&list[..], &["--continue", token]].concat())
        .await?
        .success()?;
    assert_eq!(
        (rest.stdout.as_str(), rest.stderr.as_str()),
        ("snapshot.backstep.dev/f\n", ""),
        "{rest}"
    );
    let nonsense = ["snapshot", "list", "-n", "pages", "--lineage", "shop,metadata.name=a"];
    exits(&backstep(&alice(), &nonsense).await?, 2)
}

#[tokio::test]
async fn tags_are_put_on_and_taken_off_and_two_carriers_are_told() -> Result<()> {
    namespace("tags").await?;
    for (version, name) in [(1, "one"), (2, "two")] {
        backstep(
            &alice(),
            &[
                "snapshot",
                "create",
                name,
                "-n",
                "tags",
                "--tag",
                &format!("first-{name}"),
            ],
        )
        .await?
        .success()?;
        play_operator("tags", name, &json!({"phase": "Ready", "version": version})).await?;
    }
    let tagged = backstep(&alice(), &["snapshot", "tag", "default@1", "stable", "-n", "tags"])
        .await?
        .success()?;
    ensure!(
        tagged
            .stdout
            .contains("snapshot.backstep.dev/one has the tags first-one, stable"),
        "{tagged}"
    );
    let second = backstep(&alice(), &["snapshot", "tag", "two", "stable", "-n", "tags"])
        .await?
        .success()?;
    ensure!(
        second
            .stderr
            .contains("snapshot one of the same lineage carries stable too"),
        "{second}"
    );
    let ambiguous = backstep(&alice(), &["snapshot", "tag", "tag:stable", "other", "-n", "tags"]).await?;
    exits(&ambiguous, 8)?;
    ensure!(ambiguous.stderr.contains("ambiguous"), "{ambiguous}");
    backstep(&alice(), &["snapshot", "tag", "two", "stable-", "-n", "tags"])
        .await?
        .success()?;
    backstep(&alice(), &["snapshot", "tag", "tag:stable", "other", "-n", "tags"])
        .await?
        .success()?;
    let fixed = backstep(&alice(), &["snapshot", "tag", "one", "first-one-", "-n", "tags"]).await?;
    exits(&fixed, 8)?;
    Ok(())
}

#[tokio::test]
async fn waiting_ends_when_the_snapshot_is_ready() -> Result<()> {
    let cluster = namespace("ready").await?;
    let kubeconfig = cluster.kubeconfig(&alice())?;
    let waiting = tokio::spawn(async move {
        let arguments = ["snapshot", "create", "w", "-n", "ready", "--wait=60s"];
        cluster.run(PROGRAM, &kubeconfig, &arguments, None).await
    });
    wait_until(Duration::from_secs(30), "the snapshot", async || {
        get("ready", "w").await.map(Some)
    })
    .await?;
    play_operator("ready", "w", &json!({"phase": "Capturing"})).await?;
    play_operator(
        "ready",
        "w",
        &json!({"phase": "Ready", "version": 1, "objects": {"captured": 7, "unchanged": 5, "skipped": 0, "failed": 0}}),
    )
    .await?;
    let ran = waiting.await??.success()?;
    ensure!(
        ran.stdout.contains("is ready: default@1, 7 objects, 5 unchanged"),
        "{ran}"
    );
    Ok(())
}

#[tokio::test]
async fn waiting_in_vain_says_what_was_seen() -> Result<()> {
    namespace("vain").await?;
    let ran = backstep(&alice(), &["snapshot", "create", "v", "-n", "vain", "--wait=1s"]).await?;
    exits(&ran, 5)?;
    ensure!(
        ran.stderr.contains("no operator has looked at it") && ran.stderr.contains("doctor"),
        "{ran}"
    );
    Ok(())
}

#[tokio::test]
async fn a_failed_snapshot_ends_the_wait_with_the_operators_reason() -> Result<()> {
    let cluster = namespace("failed").await?;
    let kubeconfig = cluster.kubeconfig(&alice())?;
    let waiting = tokio::spawn(async move {
        cluster
            .run(
                PROGRAM,
                &kubeconfig,
                &["snapshot", "create", "f", "-n", "failed", "--wait"],
                None,
            )
            .await
    });
    wait_until(Duration::from_secs(30), "the snapshot", async || {
        get("failed", "f").await.map(Some)
    })
    .await?;
    let condition = json!({"type": "Stalled", "status": "True", "reason": "NothingMatched", "message": "no object matches", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    play_operator("failed", "f", &json!({"phase": "Failed", "conditions": [condition]})).await?;
    let ran = waiting.await??;
    exits(&ran, 9)?;
    ensure!(ran.stderr.contains("NothingMatched: no object matches"), "{ran}");
    Ok(())
}

#[tokio::test]
async fn deleting_asks_first_and_resolves_every_name_before() -> Result<()> {
    namespace("delete").await?;
    for name in ["x", "y"] {
        backstep(&alice(), &["snapshot", "create", name, "-n", "delete"])
            .await?
            .success()?;
    }
    play_operator("delete", "y", &json!({"phase": "Ready", "version": 2})).await?;
    let unasked = backstep(&alice(), &["snapshot", "delete", "x", "-n", "delete"]).await?;
    exits(&unasked, 2)?;
    ensure!(unasked.stderr.contains("--yes"), "{unasked}");
    let typo = backstep(&alice(), &["snapshot", "delete", "x", "z", "-n", "delete", "--yes"]).await?;
    exits(&typo, 3)?;
    get("delete", "x").await?;
    let done = backstep(
        &alice(),
        &["snapshot", "delete", "x", "default@2", "-n", "delete", "--yes"],
    )
    .await?
    .success()?;
    assert_eq!(
        done.stdout,
        "snapshot.backstep.dev \"x\" deleted\nsnapshot.backstep.dev \"y\" deleted\n"
    );
    let left = backstep(&alice(), &["snapshot", "list", "-n", "delete", "-o", "name"])
        .await?
        .success()?;
    assert_eq!(left.stdout, "");
    Ok(())
}

#[tokio::test]
async fn exit_codes_tell_the_failures_apart() -> Result<()> {
    let cluster = namespace("codes").await?;
    exits(&backstep(&mallory(), &["snapshot", "list", "-n", "codes"]).await?, 4)?;
    let refused = backstep(&mallory(), &["snapshot", "create", "m", "-n", "codes"]).await?;
    exits(&refused, 4)?;
    ensure!(
        refused.stderr.contains("fix:") && refused.stderr.contains("mallory"),
        "{refused}"
    );
    exits(
        &backstep(&alice(), &["snapshot", "delete", "nothing", "-n", "codes", "--yes"]).await?,
        3,
    )?;
    exits(
        &backstep(&alice(), &["snapshot", "delete", "shop@9", "-n", "codes", "--yes"]).await?,
        3,
    )?;
    exits(
        &backstep(&alice(), &["snapshot", "create", "a", "-n", "codes", "--ttl", "soon"]).await?,
        2,
    )?;
    exits(&backstep(&alice(), &["nonsense"]).await?, 2)?;
    exits(
        &backstep(&User::admin(), &["snapshot", "create", "a", "-n", "no-such-namespace"]).await?,
        3,
    )?;
    exits(
        &backstep(&User::admin(), &["snapshot", "create", "a", "-n", "backstep-system"]).await?,
        8,
    )?;
    let nowhere = cluster
        .run(
            PROGRAM,
            &cluster.kubeconfig(&alice())?,
            &["status", "--context", "nowhere"],
            None,
        )
        .await?;
    exits(&nowhere, 7)?;
    let help = backstep(&alice(), &["--help"]).await?.success()?;
    ensure!(
        help.stdout.contains("Exit codes:") && help.stdout.contains("141"),
        "{help}"
    );
    Ok(())
}

#[tokio::test]
async fn doctor_and_status_say_what_is_missing_and_how_to_mend_it() -> Result<()> {
    namespace("health").await?;
    let doctor = backstep(&User::admin(), &["doctor", "-n", "health", "-o", "json"]).await?;
    exits(&doctor, 1)?;
    let checks: Value = serde_json::from_str(&doctor.stdout)?;
    let outcome = |name: &str| {
        checks["checks"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|c| c["name"] == name)
            .map(|c| c["outcome"].clone())
    };
    assert_eq!(outcome("server version"), Some(json!("OK")), "{checks:#}");
    assert_eq!(outcome("kinds"), Some(json!("OK")), "{checks:#}");
    assert_eq!(outcome("generation of kinds"), Some(json!("OK")), "{checks:#}");
    assert_eq!(outcome("clock"), Some(json!("OK")), "{checks:#}");
    assert_eq!(outcome("operator"), Some(json!("FAIL")), "{checks:#}");
    assert_eq!(outcome("admission policies"), Some(json!("FAIL")), "{checks:#}");
    let fixes = checks["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .all(|c| c["outcome"] != "FAIL" || c["fix"].is_string());
    ensure!(fixes, "a failed check does not say how to mend it: {checks:#}");
    // Who may not look gets no false alarm about what he cannot see.
    let limited = backstep(&alice(), &["doctor", "-n", "health", "-o", "json"]).await?;
    let limited: Value = serde_json::from_str(&limited.stdout)?;
    let policies = limited["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["name"] == "admission policies")
        .cloned();
    assert_eq!(
        policies.map(|c| c["outcome"].clone()),
        Some(json!("SKIP")),
        "{limited:#}"
    );
    let status = backstep(&User::admin(), &["status", "-o", "json"]).await?;
    exits(&status, 1)?;
    let status: Value = serde_json::from_str(&status.stdout)?;
    assert_eq!(status["operator"]["known"]["running"], json!(false), "{status:#}");
    Ok(())
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_output_quietly() -> Result<()> {
    let cluster = namespace("pipe").await?;
    let mut child = cluster
        .command(PROGRAM, &cluster.kubeconfig(&alice())?)
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut first = String::new();
    let stdout = child.stdout.take().context("no output")?;
    BufReader::with_capacity(16, stdout).read_line(&mut first).await?;
    let mut errors = String::new();
    child
        .stderr
        .take()
        .context("no errors")?
        .read_to_string(&mut errors)
        .await?;
    let status = tokio::time::timeout(Duration::from_secs(20), child.wait()).await??;
    // The script may fit the pipe's buffer; then nobody noticed, and that is as well.
    ensure!(
        matches!(status.code(), Some(0 | 141)) && errors.is_empty(),
        "{status}: {errors}"
    );
    Ok(())
}

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web, namespace: shop}
data: {mode: v1, keep: "yes"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: app, image: "registry.example/web:1.8"}]
"#;

/// A running operator and a namespace `shop` that holds the canary.
async fn shop(name: &str, store: Store) -> Result<Installed> {
    let installed = Installed::start(name, store).await?;
    let admin = User::admin();
    installed.given(SHOP).await?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db", "namespace": "shop", "annotations": {"copy": CANARY}},
        "stringData": {"password": CANARY},
    });
    // `kubectl apply` keeps the whole Secret in an annotation too.
    installed.given(&secret.to_string()).await?;
    let rollout = ["rollout", "status", "deployment/web", "-n", "shop", "--timeout=60s"];
    installed.cluster.kubectl(&admin, &rollout, None).await?.success()?;
    for arguments in [
        vec![
            "create",
            "clusterrole",
            "snapshots",
            "--verb=*",
            "--resource=snapshots.backstep.dev",
        ],
        vec![
            "create",
            "rolebinding",
            "team",
            "-n",
            "shop",
            "--clusterrole=snapshots",
            "--user=alice",
        ],
        vec![
            "create",
            "rolebinding",
            "edit",
            "-n",
            "shop",
            "--clusterrole=edit",
            "--user=alice",
        ],
    ] {
        installed.cluster.kubectl(&admin, &arguments, None).await?.success()?;
    }
    Ok(installed)
}

/// Runs the command line in `shop`; it must end with `code` and show no Secret value.
async fn run(installed: &Installed, user: &User, arguments: &[&str], code: i32) -> Result<Ran> {
    let ran = installed.cli(user, &[arguments, &["-n", "shop"]].concat()).await?;
    for output in [&ran.stdout, &ran.stderr] {
        ensure!(
            !output.contains(CANARY) && !output.contains(CANARY_BASE64),
            "{arguments:?} shows a Secret value: {ran}"
        );
    }
    ensure!(
        ran.status.code() == Some(code),
        "`{}` was expected to exit with {code}: {ran}\n{}",
        ran.command,
        installed.log()
    );
    Ok(ran)
}

async fn patch(installed: &Installed, object: &str, patch: &str) -> Result<()> {
    let arguments = ["patch", object, "-n", "shop", "--type=merge", "-p", patch];
    installed
        .cluster
        .kubectl(&User::admin(), &arguments, None)
        .await?
        .success()
        .map(drop)
}

#[tokio::test]
async fn contents_are_shown_compared_and_exported_without_a_secret_value() -> Result<()> {
    let installed = shop("cli-contents", Store::Secrets).await?;
    let admin = User::admin();
    let made = run(
        &installed,
        &admin,
        &["snapshot", "create", "one", "--lineage", "shop", "--wait=60s"],
        0,
    )
    .await?;
    ensure!(made.stdout.contains("is ready: shop@1, "), "{made}");

    let shown = run(&installed, &admin, &["snapshot", "show", "shop@1"], 0).await?;
    for part in [
        "ConfigMap",
        "Deployment.apps",
        "Secret",
        "registry.example/web:1.8",
        "Requested by:",
        "admin",
    ] {
        ensure!(shown.stdout.contains(part), "{part} is missing: {shown}");
    }
    let map = run(
        &installed,
        &admin,
        &["snapshot", "show", "one", "configmap/web", "-o", "json"],
        0,
    )
    .await?
    .json()?;
    assert_eq!(map["data"], json!({"mode": "v1", "keep": "yes"}));
    let hidden = run(&installed, &admin, &["snapshot", "show", "one", "Secret/db"], 0).await?;
    ensure!(hidden.stdout.contains("password: <hidden>"), "{hidden}");
    let revealed = installed
        .cli(
            &admin,
            &["snapshot", "show", "one", "Secret/db", "--reveal-secrets", "-n", "shop"],
        )
        .await?;
    ensure!(revealed.stdout.contains(CANARY_BASE64), "{revealed}");
    run(&installed, &admin, &["snapshot", "show", "one", "ConfigMap/nothing"], 3).await?;

    run(&installed, &admin, &["snapshot", "diff", "one", "--against", "live"], 0).await?;
    patch(&installed, "configmap/web", r#"{"data":{"mode":"v2"}}"#).await?;
    patch(
        &installed,
        "secret/db",
        r#"{"stringData":{"password":"canary-9f8e7d6c-rotated"}}"#,
    )
    .await?;
    let live = run(&installed, &admin, &["snapshot", "diff", "one", "--against", "live"], 1).await?;
    ensure!(live.stdout.contains(r#"~ data.mode: "v1" → "v2""#), "{live}");
    ensure!(
        live.stdout.contains("data.password: changed (Secret value, hidden)"),
        "{live}"
    );
    ensure!(live.stdout.contains("0 added, 0 removed, 2 changed"), "{live}");
    run(
        &installed,
        &admin,
        &["snapshot", "create", "two", "--lineage", "shop", "--wait=60s"],
        0,
    )
    .await?;
    run(
        &installed,
        &admin,
        &["snapshot", "diff", "shop@2", "--against", "live"],
        0,
    )
    .await?;
    run(&installed, &admin, &["snapshot", "diff", "one", "one"], 0).await?;
    for format in ["wide", "yaml", "name"] {
        run(&installed, &admin, &["snapshot", "diff", "one", "two", "-o", format], 1).await?;
    }
    let summary = run(&installed, &admin, &["snapshot", "diff", "one", "two", "--summary"], 1).await?;
    ensure!(!summary.stdout.contains("data.mode"), "{summary}");
    let json = run(&installed, &admin, &["snapshot", "diff", "one", "two", "-o", "json"], 1).await?;
    let json: Value = serde_json::from_str(&json.stdout)?;
    assert_eq!(
        (json["changed"].clone(), json["added"].clone()),
        (json!(2), json!(0)),
        "{json:#}"
    );

    let stream = run(&installed, &admin, &["snapshot", "export", "one"], 0).await?;
    ensure!(
        stream.stderr.contains("The values of 1 Secret are <hidden>"),
        "{stream}"
    );
    let included = installed
        .cli(
            &admin,
            &["snapshot", "export", "one", "-n", "shop", "--secrets", "include"],
        )
        .await?;
    ensure!(included.stdout.contains(CANARY_BASE64), "{included}");
    // What was exported is what the API server takes.
    let check = ["apply", "--dry-run=server", "-n", "shop", "-f", "-"];
    installed
        .cluster
        .kubectl(&admin, &check, Some(&included.stdout))
        .await?
        .success()?;
    let files = tempfile::tempdir()?;
    let (directory, archive) = (files.path().join("out"), files.path().join("out.tar"));
    let (directory, archive) = (directory.to_str().context("path")?, archive.to_str().context("path")?);
    run(
        &installed,
        &admin,
        &["snapshot", "export", "one", "--output", directory],
        0,
    )
    .await?;
    let written = std::fs::read_to_string(format!("{directory}/secrets/db.yaml"))?;
    ensure!(
        !written.contains(CANARY) && !written.contains(CANARY_BASE64),
        "{written}"
    );
    run(
        &installed,
        &admin,
        &["snapshot", "export", "one", "--output", directory],
        8,
    )
    .await?;
    run(
        &installed,
        &admin,
        &["snapshot", "export", "one", "--output", archive, "--format", "json"],
        0,
    )
    .await?;
    ensure!(std::fs::metadata(archive)?.len() > 1024);

    run(&installed, &admin, &["snapshot", "verify", "one", "two"], 0).await?;
    let all = run(&installed, &admin, &["snapshot", "verify", "--all", "-o", "json"], 0)
        .await?
        .json()?;
    assert_eq!(
        (
            all["damage"].clone(),
            all["snapshots"].clone(),
            all["objectsCompared"].clone()
        ),
        (json!([]), json!(2), json!(true))
    );
    installed.cluster.stop().await
}

#[tokio::test]
async fn every_example_of_a_snapshot_becomes_ready() -> Result<()> {
    let installed = shop("cli-examples", Store::Secrets).await?;
    let label = ["label", "configmap/web", "-n", "shop", "app.kubernetes.io/part-of=shop"];
    installed
        .cluster
        .kubectl(&User::admin(), &label, None)
        .await?
        .success()?;
    let mut seen = 0;
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples"))? {
        let path = file?.path();
        if path.is_dir() {
            continue;
        }
        let manifest = std::fs::read_to_string(&path)?;
        if !manifest.contains("\nkind: Snapshot\n") {
            continue;
        }
        let create = ["create", "-n", "shop", "-o", "name", "-f", "-"];
        let made = installed
            .cluster
            .kubectl(&alice(), &create, Some(&manifest))
            .await?
            .success()?;
        let (_, name) = made.stdout.trim().split_once('/').context("no name")?;
        let snapshot = installed.ended("shop", name).await?;
        ensure!(
            snapshot.status.as_ref().and_then(|s| s.phase) == Some(SnapshotPhase::Ready),
            "{}: {:?}",
            path.display(),
            snapshot.status
        );
        seen += 1;
    }
    ensure!(seen >= 2, "only {seen} examples of snapshots");
    installed.cluster.stop().await
}

#[tokio::test]
async fn who_may_not_read_the_store_is_told_so_and_still_sees_the_status() -> Result<()> {
    let installed = shop("cli-rights", Store::Secrets).await?;
    run(&installed, &alice(), &["snapshot", "create", "mine", "--wait=60s"], 0).await?;
    let shown = run(&installed, &alice(), &["snapshot", "show", "mine"], 0).await?;
    ensure!(
        shown.stdout.contains("alice") && shown.stderr.contains("The objects are not shown"),
        "{shown}"
    );
    for arguments in [
        vec!["snapshot", "show", "mine", "ConfigMap/web"],
        vec!["snapshot", "diff", "mine", "--against", "live"],
        vec!["snapshot", "export", "mine"],
        vec!["snapshot", "verify", "mine"],
    ] {
        let refused = run(&installed, &alice(), &arguments, 4).await?;
        ensure!(
            refused.stdout.is_empty() && refused.stderr.contains("ask an administrator"),
            "{refused}"
        );
    }
    let healthy = run(&installed, &User::admin(), &["doctor"], 0).await?;
    ensure!(!healthy.stdout.contains("FAIL"), "{healthy}");
    let status = run(&installed, &User::admin(), &["status", "-o", "json"], 0)
        .await?
        .json()?;
    assert_eq!(status["operator"]["known"]["running"], json!(true), "{status:#}");
    assert_eq!(status["repository"]["known"]["snapshots"], json!(1), "{status:#}");
    // The quota is the operator's, of which this command knows only what was published.
    assert_eq!(
        status["repository"]["known"]["quotaBytes"],
        json!(512 << 20),
        "{status:#}"
    );
    let told = run(&installed, &User::admin(), &["status"], 0).await?;
    ensure!(told.stdout.contains(" of 512.00 MiB in "), "{told}");
    installed.cluster.stop().await
}

#[tokio::test]
async fn a_moved_tag_is_a_difference_though_nothing_was_edited() -> Result<()> {
    let installed = shop("cli-images", Store::Secrets).await?;
    let admin = User::admin();
    run(&installed, &admin, &["snapshot", "create", "before", "--wait=60s"], 0).await?;
    let moved = format!("sha256:{}", "5c".repeat(32));
    installed.cluster.move_tag("registry.example/web:1.8", &moved)?;
    installed
        .cluster
        .kubectl(&admin, &["rollout", "restart", "deployment/web", "-n", "shop"], None)
        .await?
        .success()?;
    let rollout = ["rollout", "status", "deployment/web", "-n", "shop", "--timeout=60s"];
    installed.cluster.kubectl(&admin, &rollout, None).await?.success()?;
    let differs = wait_until(PATIENCE, "the moved image", async || {
        let ran = installed
            .cli(
                &admin,
                &["snapshot", "diff", "before", "--against", "live", "-n", "shop"],
            )
            .await?;
        if ran.status.code() == Some(1) {
            Ok(Some(ran))
        } else {
            Err(anyhow::anyhow!("{ran}"))
        }
    })
    .await?;
    ensure!(
        differs.stdout.contains("~ image of Deployment") && differs.stdout.contains(&moved),
        "{differs}"
    );
    ensure!(differs.stdout.contains("0 added, 0 removed, 0 changed"), "{differs}");
    installed.cluster.stop().await
}

#[tokio::test]
async fn damage_in_the_store_is_found_and_named() -> Result<()> {
    let installed = shop("cli-damage", Store::Directory).await?;
    let admin = User::admin();
    run(&installed, &admin, &["snapshot", "create", "one", "--wait=60s"], 0).await?;
    run(&installed, &admin, &["snapshot", "verify", "--all"], 0).await?;
    let packs = installed.store_directory().join("packs");
    let pack = std::fs::read_dir(&packs)?.next().context("no pack")??.path();
    let mut bytes = std::fs::read(&pack)?;
    bytes[100] ^= 0x10;
    std::fs::remove_file(&pack)?;
    std::fs::write(&pack, bytes)?;
    let found = run(&installed, &admin, &["snapshot", "verify", "--all"], 6).await?;
    ensure!(
        found.stdout.contains("DAMAGED") && found.stdout.contains("affects shop/one (default@1)"),
        "{found}"
    );
    run(&installed, &admin, &["snapshot", "verify", "one"], 6).await?;
    installed.cluster.stop().await
}
