//! The verbs around a rollback against a real API server, with real users and no operator: the tests play its part in the status,
//! so that every state can be shown.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testbed::{Cluster, ClusterOptions, Ran, User, wait_until};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::OnceCell;

use crate::support::PATIENCE;

const PROGRAM: &str = env!("CARGO_BIN_EXE_kubectl-backstep");
const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds");

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();

fn alice() -> User {
    User::new("alice", ["shop-team"])
}

fn bob() -> User {
    User::new("bob", ["sre-leads"])
}

fn digest(byte: &str) -> String {
    format!("sha256:{}", byte.repeat(32))
}

/// One cluster for all tests of this file: alice and carol may read and write every kind, bob may decide the stage `sre` as well.
async fn cluster() -> Result<&'static Cluster> {
    CLUSTER
        .get_or_try_init(|| async {
            let cluster = Cluster::start(ClusterOptions::api_server_only("cli-decide")).await?;
            let admin = User::admin();
            cluster.kubectl(&admin, &["apply", "-f", CRDS], None).await?.success()?;
            let established = ["wait", "--for=condition=Established", "--timeout=60s", "-f", CRDS];
            cluster.kubectl(&admin, &established, None).await?.success()?;
            let rules = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: kinds}
rules:
  - apiGroups: [backstep.dev]
    resources: [snapshots, rollbackrequests, rollbackplans, approvalrequests, approvaldecisions]
    verbs: ["*"]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kinds}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kinds}
subjects:
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: alice}
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: bob}
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: carol}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: decides}
rules:
  - {apiGroups: [backstep.dev], resources: [approvalstages], resourceNames: ["prod:sre"], verbs: [approve, review]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: decides}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: decides}
subjects:
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: alice}
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: bob}
"#;
            cluster
                .kubectl(&admin, &["apply", "-f", "-"], Some(rules))
                .await?
                .success()?;
            Ok(cluster)
        })
        .await
}

async fn namespace(name: &str) -> Result<()> {
    let create = ["create", "namespace", name];
    cluster()
        .await?
        .kubectl(&User::admin(), &create, None)
        .await?
        .success()?;
    Ok(())
}

async fn create(object: &Value) -> Result<Value> {
    let create = ["create", "-o", "json", "-f", "-"];
    cluster()
        .await?
        .kubectl(&User::admin(), &create, Some(&object.to_string()))
        .await?
        .json()
}

/// Writes a status as the operator would.
async fn play(namespace: &str, object: &str, status: &Value) -> Result<()> {
    let patch = json!({ "status": status }).to_string();
    let arguments = [
        "patch",
        object,
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

async fn backstep(user: &User, namespace: &str, arguments: &[&str], code: i32) -> Result<Ran> {
    let cluster = cluster().await?;
    let arguments = [arguments, &["-n", namespace]].concat();
    let ran = cluster
        .run(PROGRAM, &cluster.kubeconfig(user)?, &arguments, None)
        .await?;
    ensure!(
        ran.status.code() == Some(code),
        "`{}` was expected to exit with {code}: {ran}",
        ran.command
    );
    Ok(ran)
}

async fn list(namespace: &str, kind: &str) -> Result<Vec<Value>> {
    let get = ["get", kind, "-n", namespace, "-o", "json"];
    let all = cluster().await?.kubectl(&User::admin(), &get, None).await?.json()?;
    Ok(all["items"].as_array().cloned().unwrap_or_default())
}

fn object(kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

async fn request(namespace: &str, name: &str, spec: &Value, status: &Value) -> Result<Value> {
    let mut spec = spec.clone();
    spec["requestedBy"] = json!({"username": "alice"});
    let made = create(&object("RollbackRequest", namespace, name, &spec)).await?;
    if !status.is_null() {
        play(namespace, &format!("rollbackrequest/{name}"), status).await?;
    }
    Ok(made)
}

/// A request that waits for the stages `sre` and `owners`, with a plan that tries to move the terminal's cursor.
async fn asked(namespace: &str, name: &str, plan_digest: &str) -> Result<Value> {
    let status = json!({"phase": "AwaitingApproval", "approval": {"request": format!("{name}-1"), "state": "Pending"}});
    let made = request(namespace, name, &json!({"target": {"snapshot": "good"}}), &status).await?;
    let uid = made["metadata"]["uid"].clone();
    let plan = json!({
        "requestRef": {"name": name, "uid": uid},
        "target": {"snapshot": "good", "version": 7, "digest": digest("01")},
        "digest": plan_digest,
        "risk": {"level": "High", "score": 62, "factors": [{"name": "Restarts", "points": 12, "detail": "2 of 2 workloads"}]},
        "summary": {"update": 1, "keep": 1, "unchanged": 36},
        "preflight": [{"check": "QuotaSum", "result": "Passed"}, {"check": "Admission", "result": "Warning", "detail": "one webhook"}],
        "items": [
            {"action": "Keep", "object": {"group": "autoscaling", "kind": "HorizontalPodAutoscaler", "name": "web"}, "reason": "LiveWins", "detail": "replicas"},
            {"action": "Update", "order": 30, "object": {"group": "", "kind": "ConfigMap", "name": "web"}, "diff": "-  mode: v2\u{1b}[1A\u{1b}[2K\n+  mode: v1"},
        ],
    });
    create(&object("RollbackPlan", namespace, &format!("{name}-plan"), &plan)).await?;
    let approval = json!({
        "requestRef": {"kind": "RollbackRequest", "name": name, "uid": uid},
        "requester": {"username": "alice"},
        "policy": {"name": "prod", "uid": "p", "generation": 1, "digest": digest("02")},
        "planDigest": digest("0a"), "planRef": format!("{name}-plan"), "risk": "High",
        "reason": "checkout is broken", "expiresAt": "2099-01-01T00:00:00Z",
        "stages": [{"name": "sre", "required": 1, "approvers": {"groups": ["sre-leads"]}}, {"name": "owners", "required": 2}],
    });
    let approval = create(&object("ApprovalRequest", namespace, &format!("{name}-1"), &approval)).await?;
    play(
        namespace,
        &format!("approvalrequest/{name}-1"),
        &json!({"phase": "Pending", "currentStage": "sre"}),
    )
    .await?;
    Ok(approval)
}

/// Counts the first decision that appears, as the operator would, and moves the approval to `phase`.
async fn count(namespace: &str, approval: &str, counted: bool, phase: &str) -> Result<Value> {
    let decision = wait_until(PATIENCE, "a decision", async || {
        let decisions = list(namespace, "approvaldecisions").await?;
        decisions.first().cloned().map(Some).context("none yet")
    })
    .await?;
    let spec = &decision["spec"];
    let recorded = json!({
        "uid": decision["metadata"]["uid"], "name": decision["metadata"]["name"], "username": spec["approver"]["username"],
        "stage": spec["stage"], "decision": spec["decision"], "at": decision["metadata"]["creationTimestamp"], "counted": counted,
        "reason": if counted { Value::Null } else { json!("the requester does not decide on its own request") },
    });
    let stage = if phase == "Pending" { "owners" } else { "sre" };
    let status = json!({"phase": phase, "currentStage": stage, "decisions": [recorded]});
    play(namespace, &format!("approvalrequest/{approval}"), &status).await?;
    Ok(decision)
}

#[tokio::test]
async fn an_approver_reads_the_plan_decides_once_and_is_told_that_it_counts() -> Result<()> {
    namespace("approve").await?;
    let approval = asked("approve", "undo", &digest("0a")).await?;
    let silent = backstep(&bob(), "approve", &["approve", "undo"], 2).await?;
    ensure!(silent.stderr.contains("pass --yes"), "{silent}");
    ensure!(list("approve", "approvaldecisions").await?.is_empty());

    let approver = bob();
    let approve = ["approve", "undo", "--comment", "rollout is worse", "--yes"];
    let (ran, decision) = tokio::join!(
        backstep(&approver, "approve", &approve, 0),
        count("approve", "undo-1", true, "Pending")
    );
    let (ran, decision) = (ran?, decision?);
    for part in [
        "asked for by alice: checkout is broken",
        "> stage sre: 0 approved, needs 1 of group sre-leads",
        "stage owners: 0 approved, needs 2 of anyone who holds the verb approve on approvalstages prod:owners",
        "Back to good (version 7)",
        "Risk: High (62 of 100)",
        "+12  Restarts  2 of 2 workloads",
        "~ update ConfigMap/web",
        "+  mode: v1",
        "= keep HorizontalPodAutoscaler.autoscaling/web  (LiveWins: replicas)",
        "WARNING Admission: one webhook",
        "1 to update, 1 kept, 36 as they are",
        "Approve for stage sre",
        "It counts: approvalrequest undo-1 is Pending, stage owners has 0 of 2",
    ] {
        ensure!(ran.stdout.contains(part), "`{part}` is missing: {ran}");
    }
    ensure!(!ran.stdout.contains('\u{1b}'), "the plan moved the cursor: {ran}");
    let spec = &decision["spec"];
    assert_eq!(
        spec["requestRef"],
        json!({"name": "undo-1", "uid": approval["metadata"]["uid"]})
    );
    assert_eq!(
        (
            spec["planDigest"].clone(),
            spec["policyName"].clone(),
            spec["stage"].clone()
        ),
        (json!(digest("0a")), json!("prod"), json!("sre"))
    );
    assert_eq!(spec["approver"]["username"], "bob");
    assert_eq!(spec["comment"], "rollout is worse");

    // Its own name reaches it, too; a stage that there is not does not.
    let stage = ["approve", "apr/undo-1", "--stage", "nobody", "--yes"];
    let unknown = backstep(&bob(), "approve", &stage, 2).await?;
    ensure!(unknown.stderr.contains("its stages are sre, owners"), "{unknown}");
    Ok(())
}

#[tokio::test]
async fn a_decision_that_does_not_count_is_an_error_with_the_reason() -> Result<()> {
    namespace("uncounted").await?;
    asked("uncounted", "undo", &digest("0a")).await?;
    let reject = ["reject", "undo", "--yes"];
    let mute = backstep(&alice(), "uncounted", &reject, 2).await?;
    ensure!(mute.stderr.contains("reject needs a reason"), "{mute}");
    let requester = alice();
    let reject = ["reject", "undo", "--comment", "no", "--yes", "-o", "name"];
    let (ran, decision) = tokio::join!(
        backstep(&requester, "uncounted", &reject, 8),
        count("uncounted", "undo-1", false, "Rejected")
    );
    let (ran, decision) = (ran?, decision?);
    let name = decision["metadata"]["name"].as_str().unwrap_or_default();
    ensure!(ran.stdout == format!("approvaldecision.backstep.dev/{name}\n"), "{ran}");
    ensure!(
        ran.stderr.contains("does not count") && ran.stderr.contains("the requester does not decide"),
        "{ran}"
    );
    let late = backstep(&bob(), "uncounted", &["approve", "undo", "--yes"], 8).await?;
    ensure!(late.stderr.contains("it is Rejected"), "{late}");
    Ok(())
}

#[tokio::test]
async fn an_approval_is_taken_back_in_the_stage_in_which_it_was_given() -> Result<()> {
    namespace("revoke").await?;
    asked("revoke", "undo", &digest("0a")).await?;
    let given = json!({"uid": "1", "name": "d", "username": "bob", "stage": "sre", "decision": "Approve",
        "at": "2026-01-01T00:00:00Z", "counted": true});
    play(
        "revoke",
        "approvalrequest/undo-1",
        &json!({"phase": "Approved", "currentStage": "owners", "decisions": [given]}),
    )
    .await?;
    let approver = bob();
    let revoke = [
        "revoke",
        "undo",
        "--comment",
        "wrong version",
        "--yes",
        "-o",
        "json",
        "--request-timeout",
        "30s",
    ];
    let seen = async {
        let decision = wait_until(PATIENCE, "a decision", async || {
            let decisions = list("revoke", "approvaldecisions").await?;
            decisions.first().cloned().map(Some).context("none yet")
        })
        .await?;
        let recorded = json!({"uid": decision["metadata"]["uid"], "name": decision["metadata"]["name"], "username": "bob",
            "stage": "sre", "decision": "Revoke", "at": "2026-01-01T00:00:01Z", "counted": true});
        let status = json!({"phase": "Revoked", "decisions": [given, recorded]});
        play("revoke", "approvalrequest/undo-1", &status).await?;
        anyhow::Ok(decision)
    };
    let (ran, decision) = tokio::join!(backstep(&approver, "revoke", &revoke, 0), seen);
    let (printed, decision) = (ran?.json()?, decision?);
    assert_eq!(printed["spec"]["decision"], "Revoke");
    assert_eq!(decision["spec"]["stage"], "sre");
    Ok(())
}

#[tokio::test]
async fn nobody_is_led_to_approve_a_plan_that_is_not_the_one_asked_for() -> Result<()> {
    namespace("swapped").await?;
    asked("swapped", "undo", &digest("0b")).await?;
    let swapped = backstep(&bob(), "swapped", &["approve", "undo", "--yes"], 8).await?;
    ensure!(
        swapped.stderr.contains("is not the plan that is to be approved"),
        "{swapped}"
    );
    let delete = ["delete", "rollbackplan", "undo-plan", "-n", "swapped"];
    cluster()
        .await?
        .kubectl(&User::admin(), &delete, None)
        .await?
        .success()?;
    let gone = backstep(&bob(), "swapped", &["approve", "undo", "--yes"], 3).await?;
    ensure!(
        gone.stderr.contains("nobody should approve what cannot be read"),
        "{gone}"
    );
    ensure!(list("swapped", "approvaldecisions").await?.is_empty());
    let nothing = backstep(&bob(), "swapped", &["approve", "nothing", "--yes"], 3).await?;
    ensure!(nothing.stderr.contains("there is no rollbackrequest"), "{nothing}");
    request(
        "swapped",
        "early",
        &json!({"target": {"previous": true}}),
        &json!({"phase": "Planning"}),
    )
    .await?;
    let early = backstep(&bob(), "swapped", &["approve", "early", "--yes"], 8).await?;
    ensure!(
        early.stderr.contains("waits for no approval") && early.stderr.contains("it is Planning"),
        "{early}"
    );
    Ok(())
}

#[tokio::test]
async fn approvals_show_what_waits_and_for_whom() -> Result<()> {
    namespace("approvals").await?;
    let none = backstep(&bob(), "approvals", &["approvals"], 0).await?;
    ensure!(
        none.stdout.is_empty() && none.stderr.contains("No approvals found"),
        "{none}"
    );
    asked("approvals", "undo", &digest("0a")).await?;
    asked("approvals", "done", &digest("0a")).await?;
    play("approvals", "approvalrequest/done-1", &json!({"phase": "Rejected"})).await?;
    let names = async |user: User, arguments: &[&str]| {
        let arguments = [&["approvals", "-o", "name"], arguments].concat();
        anyhow::Ok(backstep(&user, "approvals", &arguments, 0).await?.stdout)
    };
    let undo = "approvalrequest.backstep.dev/undo-1\n";
    assert_eq!(names(bob(), &[]).await?.lines().count(), 2);
    assert_eq!(names(bob(), &["--pending"]).await?, undo);
    assert_eq!(names(bob(), &["--mine"]).await?, undo);
    // alice holds the verb and asked; carol is in the group and holds no verb; dave holds nothing and may not even look.
    assert_eq!(names(alice(), &["--mine"]).await?, "");
    assert_eq!(names(User::new("carol", ["sre-leads"]), &["--mine"]).await?, "");
    assert_eq!(names(bob(), &["--type", "emergency"]).await?, "");
    assert_eq!(names(bob(), &["--pending", "--type", "rollback"]).await?, undo);
    backstep(&User::new("dave", ["sre-leads"]), "approvals", &["approvals"], 4).await?;
    let table = backstep(&bob(), "approvals", &["approvals", "--pending", "-o", "wide"], 0).await?;
    let row = table.stdout.lines().nth(1).unwrap_or_default();
    for part in [
        "undo",
        "Pending",
        "sre",
        "0 of 1",
        "High",
        "alice",
        "prod",
        "1 of group sre-leads",
        "checkout is broken",
    ] {
        ensure!(row.contains(part), "`{part}` is missing: {table}");
    }
    Ok(())
}

#[tokio::test]
async fn a_watch_writes_a_line_for_each_change_and_exits_by_the_outcome() -> Result<()> {
    namespace("watch").await?;
    request("watch", "undo", &json!({"target": {"snapshot": "good"}}), &Value::Null).await?;
    let cluster = cluster().await?;
    let mut child = cluster
        .command(PROGRAM, &cluster.kubeconfig(&alice())?)
        .args(["watch", "undo", "-n", "watch", "--timeout", "2m"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let condition = |type_: &str, reason: &str, message: &str| {
        json!({"type": type_, "status": "True", "reason": reason,
        "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let plan = json!({"name": "undo-plan", "digest": digest("0a"), "update": 2, "unchanged": 3, "risk": {"level": "Low", "score": 3}});
    let states = [
        (
            json!({"phase": "AwaitingApproval", "plan": plan, "approval": {"request": "undo-1", "state": "Pending"},
            "conditions": [condition("Reconciling", "AwaitingApproval", "stage sre is open")]}),
            vec![
                "Plan undo-plan: 2 to update, 3 as they are, risk Low (3 of 100)",
                "Approval undo-1 is Pending",
                "AwaitingApproval: stage sre is open",
            ],
        ),
        (
            json!({"phase": "Executing", "approval": {"request": "undo-1", "state": "Consumed"}, "conditions": [],
            "steps": [{"name": "TakeSafetySnapshot", "state": "Running"}]}),
            vec!["Approval undo-1 is Consumed", "Executing", "  TakeSafetySnapshot runs"],
        ),
        (
            json!({"phase": "Failed", "safetySnapshot": {"name": "safety", "version": 8},
            "steps": [{"name": "TakeSafetySnapshot", "state": "Done"}, {"name": "RestoreConfiguration", "state": "Failed"}],
            "items": {"done": 1, "failed": 1, "untouched": 0, "failures": [{"object": "ConfigMap/web", "reason": "Denied", "message": "quota"}]},
            "conditions": [condition("Stalled", "ItemsFailed", "one item failed")]}),
            vec![
                "Failed",
                "  TakeSafetySnapshot is done",
                "  RestoreConfiguration FAILED",
                "  safety snapshot safety (version 8)",
                "  items: 1 done, 1 failed, 0 never touched",
                "  ConfigMap/web Denied: quota",
            ],
        ),
    ];
    let mut next = async || {
        anyhow::Ok(
            tokio::time::timeout(PATIENCE, lines.next_line())
                .await??
                .unwrap_or_default(),
        )
    };
    ensure!(next().await? == "Pending");
    for (state, expected) in states {
        play("watch", "rollbackrequest/undo", &state).await?;
        for expected in expected {
            let line = next().await?;
            ensure!(line == expected, "`{line}` instead of `{expected}`");
        }
    }
    let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await??;
    let errors = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        ended.status.code() == Some(9) && errors.contains("ItemsFailed: one item failed"),
        "{}: {errors}",
        ended.status
    );
    let later = backstep(&alice(), "watch", &["watch", "rbr/undo", "-o", "json"], 9).await?;
    ensure!(later.stdout.contains("\"phase\": \"Failed\""), "{later}");
    request("watch", "stuck", &json!({"target": {"snapshot": "good"}}), &Value::Null).await?;
    let stuck = backstep(&alice(), "watch", &["watch", "stuck", "--timeout", "1s"], 5).await?;
    ensure!(stuck.stderr.contains("no operator has looked at it"), "{stuck}");
    backstep(&alice(), "watch", &["watch", "nothing"], 3).await?;
    Ok(())
}

async fn snapshot(
    namespace: &str,
    name: &str,
    version: i64,
    parent: Option<i64>,
    source: Option<&str>,
) -> Result<Value> {
    let mut spec = json!({"lineage": "shop", "requestedBy": {"username": "alice"}});
    if let Some(source) = source {
        spec["onBehalfOf"] = json!({"username": "alice", "source": source});
    }
    let made = create(&object("Snapshot", namespace, name, &spec)).await?;
    let mut status = json!({"phase": "Ready", "version": version, "digest": digest("0c")});
    if let Some(parent) = parent {
        status["parent"] = json!({"name": format!("v{parent}"), "version": parent});
    }
    play(namespace, &format!("snapshots.backstep.dev/{name}"), &status).await?;
    Ok(made)
}

#[tokio::test]
async fn the_timeline_is_a_tree_with_its_rollbacks_and_history_lists_them_newest_first() -> Result<()> {
    namespace("story").await?;
    let good = snapshot("story", "good", 1, None, None).await?;
    snapshot("story", "bad", 2, Some(1), None).await?;
    snapshot("story", "safety", 3, Some(2), Some("RollbackRequest/undo/Safety")).await?;
    snapshot("story", "result", 4, Some(1), Some("RollbackRequest/undo/Result")).await?;
    let resolved = json!({"name": "good", "uid": good["metadata"]["uid"], "version": 1, "digest": digest("0c")});
    let plan = json!({"name": "p", "digest": digest("0a"), "create": 1, "update": 2});
    asked("story", "undo", &digest("0a")).await?;
    play(
        "story",
        "rollbackrequest/undo",
        &json!({"phase": "Completed", "resolved": resolved, "plan": plan, "safetySnapshot": {"name": "safety", "version": 3},
            "completedAt": "2026-01-02T00:00:00Z", "durationSeconds": 75}),
    )
    .await?;
    let counted = json!({"uid": "1", "name": "d", "username": "bob", "stage": "sre", "decision": "Approve",
        "at": "2026-01-01T00:00:00Z", "counted": true});
    play(
        "story",
        "approvalrequest/undo-1",
        &json!({"phase": "Approved", "decisions": [counted]}),
    )
    .await?;
    for (name, status, spec) in [
        (
            "older",
            json!({"phase": "Failed", "completedAt": "2026-01-01T00:00:00Z"}),
            json!({"target": {"snapshot": "bad"}, "reason": {"message": "first try"}}),
        ),
        (
            "what-if",
            json!({"phase": "Planned", "completedAt": "2026-01-03T00:00:00Z"}),
            json!({"target": {"snapshot": "good"}, "dryRun": true}),
        ),
        (
            "open",
            json!({"phase": "AwaitingApproval"}),
            json!({"target": {"snapshot": "good"}}),
        ),
    ] {
        request("story", name, &spec, &status).await?;
    }

    let tree = backstep(&alice(), "story", &["timeline", "--lineage", "shop"], 0).await?;
    let lines: Vec<&str> = tree.stdout.lines().collect();
    ensure!(lines.len() == 5 && lines[0] == "shop", "{tree}");
    for (line, (start, part)) in lines[1..].iter().zip([
        ("● 1 good", "<- undo Completed"),
        ("├─● 2 bad", "bad"),
        ("│ ● 3 safety", "before rollback undo"),
        ("● 4 result", "after rollback undo"),
    ]) {
        ensure!(line.starts_with(start) && line.contains(part), "`{line}`: {tree}");
    }
    let machine = backstep(&alice(), "story", &["timeline", "-o", "json"], 0)
        .await?
        .json()?;
    assert_eq!(
        machine["lineages"][0]["versions"][2]["origin"],
        json!({"safety": "undo"})
    );

    let history = backstep(&alice(), "story", &["history"], 0).await?;
    let rows: Vec<&str> = history.stdout.lines().skip(1).collect();
    let row = |name: &str| rows.iter().find(|r| r.starts_with(name)).copied().unwrap_or_default();
    ensure!(rows.len() == 2, "{history}");
    for part in ["Completed", "good (1)", "alice", "bob", "3", "75s", "Manual"] {
        ensure!(row("undo ").contains(part), "`{part}` is missing: {history}");
    }
    ensure!(row("older ").contains("first try"), "{history}");
    // Page by page it is the same, newest first.
    let mut expected: Vec<(String, String, String)> = list("story", "rollbackrequests")
        .await?
        .iter()
        .filter(|r| r["metadata"]["name"] != "open")
        .map(|r| {
            let text = |field: &str| r["metadata"][field].as_str().unwrap_or_default().to_owned();
            (
                text("creationTimestamp"),
                text("uid"),
                format!("rollbackrequest.backstep.dev/{}", text("name")),
            )
        })
        .collect();
    expected.sort();
    expected.reverse();
    let page = ["history", "--dry-runs", "--limit", "2", "-o", "name"];
    let first = backstep(&alice(), "story", &page, 0).await?;
    let token = first.stderr.split_whitespace().last().context("no token")?.to_owned();
    let rest = backstep(&alice(), "story", &[&page[..], &["--continue", &token]].concat(), 0).await?;
    let seen: Vec<&str> = first.stdout.lines().chain(rest.stdout.lines()).collect();
    ensure!(
        first.stdout.lines().count() == 2 && !rest.stderr.contains("--continue"),
        "{first} {rest}"
    );
    ensure!(
        seen == expected.iter().map(|(_, _, name)| name.as_str()).collect::<Vec<_>>(),
        "{seen:?} {expected:?}"
    );

    // An undo is an ordinary request; where there is nothing to go back to, it says why.
    let undo = ["undo", "undo", "--dry-run=client", "-o", "json"];
    let undo = backstep(&alice(), "story", &undo, 0).await?.json()?;
    assert_eq!(
        (
            undo["spec"]["target"].clone(),
            undo["spec"]["prune"].clone(),
            undo["spec"]["dryRun"].clone()
        ),
        (json!({"snapshot": "safety"}), json!("Created"), json!(false))
    );
    assert_eq!(undo["spec"]["reason"]["message"], "undo of undo");
    for (name, why) in [
        ("older", "it ended as Failed before its safety snapshot was taken"),
        ("what-if", "it was a dry run"),
        ("open", "it is AwaitingApproval and has no safety snapshot yet"),
    ] {
        let refused = backstep(&alice(), "story", &["undo", name], 8).await?;
        ensure!(refused.stderr.contains(why), "{refused}");
    }
    let delete = ["delete", "snapshots.backstep.dev", "safety", "-n", "story"];
    cluster()
        .await?
        .kubectl(&User::admin(), &delete, None)
        .await?
        .success()?;
    let gone = backstep(&alice(), "story", &["undo", "undo"], 8).await?;
    ensure!(gone.stderr.contains("its safety snapshot safety was deleted"), "{gone}");
    Ok(())
}
