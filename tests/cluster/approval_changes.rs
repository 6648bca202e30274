//! What happens to the policy, the time and the approvers' minds between an approval and the end of its execution.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use backstep::api::{
    ApprovalRequest, RollbackRequest, RollbackRequestStatus, approval_request::ApprovalPhase,
    rollback_request::RollbackPhase,
};
use k8s_openapi::{api::core::v1::ConfigMap, jiff::Timestamp};
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use testbed::{ClusterOptions, User, wait_until};

use crate::{
    court::{condition, decisions},
    proxy::{Fault, Proxy},
    rollbacks::{apply, config_map, contents, deployment, ended, go, rolled_out},
    support::{Installed, PATIENCE, Store},
    tampering::{approved, asked_again, held, kubectl, let_go, live, shop},
    team::{ask, bob, given, said, until, until_phase},
};

/// The `ApprovalRequest` `name`, once it is in `phase`.
async fn in_phase(installed: &Installed, namespace: &str, name: &str, phase: ApprovalPhase) -> Result<ApprovalRequest> {
    let api: Api<ApprovalRequest> = Api::namespaced(installed.admin().await?, namespace);
    let what = format!("approvalrequest {namespace}/{name} to be {phase:?}");
    let found = wait_until(PATIENCE, &what, async || {
        let now = api.get(name).await.map_err(|error| error.to_string())?;
        if now.status.as_ref().and_then(|status| status.phase) == Some(phase) {
            Ok(Some(now))
        } else {
            Err(format!("{:#?}", now.status))
        }
    })
    .await;
    found.with_context(|| installed.log_tail())
}

/// The request says that it is asked for again because of `why`; the event stays when the status moves on.
async fn told(installed: &Installed, namespace: &str, why: &str) -> Result<()> {
    let get = [
        "get",
        "events",
        "-n",
        namespace,
        "--field-selector",
        "involvedObject.name=undo,reason=Superseded",
        "-o",
        "jsonpath={.items[*].message}",
    ];
    wait_until(PATIENCE, &format!("an event with `{why}`"), async || {
        let said = kubectl(installed, &User::admin(), &get, None).await?;
        ensure!(said.contains(why), "{said}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_replaced_or_upgraded_after_the_approval_voids_it_and_the_request_says_why() -> Result<()> {
    let options = ClusterOptions {
        with_scheduler: false,
        with_fake_kubelet: false,
        ..ClusterOptions::named("policies")
    };
    let mut installed = Installed::start_with(options, Store::Directory, &[]).await?;
    let admin = User::admin();

    // Deleted and created again at once, with the same name and the same rules: another policy all the same.
    let first = approved(&installed, "replaced", &json!({})).await?;
    let get = ["get", "approvalpolicy", "default", "-o", "json"];
    let before: Value = serde_json::from_str(&kubectl(&installed, &admin, &get, None).await?)?;
    let same = json!({
        "apiVersion": before["apiVersion"], "kind": before["kind"], "metadata": {"name": "default"}, "spec": before["spec"],
    });
    let replace = ["replace", "--force", "-f", "-"];
    kubectl(&installed, &admin, &replace, Some(&same.to_string())).await?;
    let after: Value = serde_json::from_str(&kubectl(&installed, &admin, &get, None).await?)?;
    ensure!(
        before["spec"] == after["spec"] && before["metadata"]["uid"] != after["metadata"]["uid"],
        "{after:#}"
    );
    let void = in_phase(&installed, "replaced", &first, ApprovalPhase::Superseded).await?;
    let why = "its ApprovalPolicy was deleted or replaced since it was asked for";
    ensure!(condition(&void, "Stalled").2.contains(why), "{void:#?}");
    told(&installed, "replaced", why).await?;
    let_go(&installed, "replaced").await?;
    asked_again(&installed, "replaced", &first).await?;

    // The platform team's policy comes from a chart, and its next release changes it.
    kubectl(&installed, &admin, &["delete", "approvalpolicy", "default"], None).await?;
    let chart = installed.file("platform");
    std::fs::create_dir_all(chart.join("templates"))?;
    std::fs::write(
        chart.join("Chart.yaml"),
        "apiVersion: v2\nname: platform\nversion: 1.0.0\n",
    )?;
    std::fs::write(chart.join("values.yaml"), "approvalTTL: 30m\n")?;
    std::fs::write(
        chart.join("templates/policy.yaml"),
        "apiVersion: backstep.dev/v1alpha1\nkind: ApprovalPolicy\nmetadata: {name: default}\n\
         spec: {approvalTTL: {{ .Values.approvalTTL }}, stages: [{name: approval, required: 1}]}\n",
    )?;
    let chart = chart.display().to_string();
    let helm = async |arguments: &[&str]| installed.cluster.helm(&admin, arguments, None).await?.success();
    helm(&["install", "platform", &chart, "-n", "default"]).await?;
    let first = approved(&installed, "upgraded", &json!({})).await?;
    helm(&[
        "upgrade",
        "platform",
        &chart,
        "-n",
        "default",
        "--set",
        "approvalTTL=20m",
    ])
    .await?;
    let void = in_phase(&installed, "upgraded", &first, ApprovalPhase::Superseded).await?;
    let why = "its ApprovalPolicy changed since it was asked for";
    ensure!(condition(&void, "Stalled").2.contains(why), "{void:#?}");
    told(&installed, "upgraded", why).await?;
    let_go(&installed, "upgraded").await?;
    asked_again(&installed, "upgraded", &first).await?;

    late(&mut installed).await?;
    installed.cluster.stop().await
}

/// The last decision comes when the time is just over, and the operator reads it before it has said so.
async fn late(installed: &mut Installed) -> Result<()> {
    shop(installed, "late").await?;
    let spec = held(&json!({"suspend": false, "timeouts": {"approval": "8s"}}));
    ask(installed, "late", "undo", &spec).await?;
    let waiting = until_phase(installed, "late", "undo", RollbackPhase::AwaitingApproval).await?;
    let name = waiting.approval.context("an approval")?.request;
    let open = in_phase(installed, "late", &name, ApprovalPhase::Pending).await?;
    let over = open.spec.expires_at.0;
    installed.kill_operator();
    wait_until(PATIENCE, "the time to be over", async || {
        let now = Timestamp::now();
        if now >= over {
            Ok(Some(()))
        } else {
            Err(format!("{now} of {over}"))
        }
    })
    .await?;
    let decision = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "ApprovalDecision",
        "metadata": {"name": "late", "namespace": "late"},
        "spec": {
            "requestRef": {"name": name, "uid": open.metadata.uid}, "planDigest": open.spec.plan_digest,
            "policyName": "default", "stage": "approval", "decision": "Approve",
        },
    });
    kubectl(installed, &bob(), &["create", "-f", "-"], Some(&decision.to_string())).await?;
    installed.start_operator().await?;
    let status = until_phase(installed, "late", "undo", RollbackPhase::Expired).await?;
    ensure!(said(&status).contains("make a new request"), "{}", said(&status));
    let expired = in_phase(installed, "late", &name, ApprovalPhase::Expired).await?;
    let message = condition(&expired, "Stalled").2;
    ensure!(
        message.contains("time is over with 0 of 1 approvals of stage approval"),
        "{message}"
    );
    for recorded in decisions(&expired) {
        ensure!(recorded.at.0 >= over, "made in time: {recorded:?} of {over}");
        ensure!(
            recorded.counted == Some(false) && recorded.reason.as_deref() == Some("the request had expired"),
            "{recorded:?}"
        );
    }
    ensure!(decisions(&expired).len() == 1, "{expired:#?}");
    ensure!(live(installed, "late").await? == "bad", "it ran unapproved");
    Ok(())
}

/// A rollback that waits for a Deployment which does not become ready; how everything was before.
async fn under_way(installed: &Installed, namespace: &str) -> Result<(Value, RollbackRequestStatus)> {
    given(installed, namespace).await?;
    let slow = json!({"testbed.backstep.dev/ready-after": "3600"});
    let release = |mode: &str, annotations: &Value| {
        let image = format!("registry.example/web:{mode}");
        [
            config_map(namespace, "web", &json!({"mode": mode})),
            deployment(namespace, "web", &image, annotations, None),
        ]
    };
    apply(installed, &release("slow", &slow)).await?;
    installed.snapshot(namespace, "slow", &json!({})).await?;
    apply(installed, &release("good", &json!({}))).await?;
    rolled_out(installed, namespace, "web").await?;
    let before = json!(contents(installed, namespace).await?);
    go(installed, namespace, "back", &json!({"target": {"snapshot": "slow"}})).await?;
    let status = until(
        installed,
        namespace,
        "back",
        "the rollback to wait for health",
        |status| {
            let step = status.steps.iter().find(|step| step.name == "WaitForHealth");
            step.is_some_and(|step| format!("{:?}", step.state) == "Running")
        },
    )
    .await?;
    Ok((before, status))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_objects_while_a_rollback_runs_cancels_it_and_the_request_says_who() -> Result<()> {
    let installed = Installed::start_with(ClusterOptions::named("objections"), Store::Directory, &[]).await?;
    for verb in ["reject", "revoke"] {
        let (before, status) = under_way(&installed, verb).await?;
        let arguments = [
            verb,
            "back",
            "-n",
            verb,
            "--comment",
            "stop it",
            "--yes",
            "--diffs",
            "none",
        ];
        let ran = installed.cli(&bob(), &arguments).await?.success()?;
        ensure!(ran.stdout.contains("It counts"), "{ran}");
        let status = RollbackRequestStatus {
            conditions: ended(&installed, verb, "back", RollbackPhase::Undone).await?.conditions,
            ..status
        };
        ensure!(
            said(&status).contains("Cancelled: bob objected to the approval while it ran"),
            "{}",
            said(&status)
        );
        ensure!(json!(contents(&installed, verb).await?) == before, "it did not go back");
        // What was used stays used: the latch holds, and the objection stands in the record.
        let name = status.approval.context("an approval")?.request;
        let used = in_phase(&installed, verb, &name, ApprovalPhase::Consumed).await?;
        ensure!(
            decisions(&used).iter().filter(|one| one.counted == Some(true)).count() >= 1,
            "{used:#?}"
        );
    }
    installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_objects_while_no_operator_runs_is_heard_before_the_next_one_writes_anything() -> Result<()> {
    let options = ClusterOptions {
        with_scheduler: false,
        with_fake_kubelet: false,
        ..ClusterOptions::named("unheard")
    };
    let mut installed = Installed::start_with(options, Store::Directory, &[]).await?;
    given(&installed, "shop").await?;
    let release = async |mode: &str| {
        let maps: Vec<String> = (0..8)
            .map(|n| config_map("shop", &format!("c{n}"), &json!({"mode": mode})))
            .collect();
        apply(&installed, &maps).await
    };
    release("good").await?;
    installed.snapshot("shop", "good", &json!({})).await?;
    release("bad").await?;
    // The first write arrives, and none of the others, until the operator is gone; the next one cannot record who objects.
    let (first, gone) = (AtomicBool::new(true), Arc::new(AtomicBool::new(false)));
    let (proxy, mut stops) = Proxy::start(&installed, {
        let gone = Arc::clone(&gone);
        move |call| {
            let writes = call.writes()
                && call.path.contains("/namespaces/shop/configmaps")
                && !call.path.contains("dryRun=")
                && !gone.load(Ordering::SeqCst);
            let records = call.writes() && call.path.contains("/approvalrequests/") && gone.load(Ordering::SeqCst);
            if writes && !first.swap(false, Ordering::SeqCst) {
                Fault::StopBefore
            } else if records {
                Fault::Before(503)
            } else {
                Fault::None
            }
        }
    })
    .await?;
    installed.through(proxy.kubeconfig(&installed)?).await?;
    let spec = json!({"target": {"snapshot": "good"}, "onFailure": "Stop"});
    go(&installed, "shop", "back", &spec).await?;
    tokio::time::timeout(PATIENCE, stops.recv())
        .await
        .context("no second write")?
        .context("the proxy ended")?;
    installed.kill_operator();
    gone.store(true, Ordering::SeqCst);
    let api: Api<ConfigMap> = Api::namespaced(installed.admin().await?, "shop");
    let good = async || -> Result<usize> {
        let maps = api.list(&ListParams::default()).await?;
        let mode = |map: &ConfigMap| map.data.as_ref().and_then(|data| data.get("mode").cloned());
        Ok(maps.iter().filter(|map| mode(map).as_deref() == Some("good")).count())
    };
    ensure!(good().await? <= 1, "{} were written", good().await?);

    let requests: Api<RollbackRequest> = Api::namespaced(installed.admin().await?, "shop");
    let approval = requests.get("back").await?.status.and_then(|status| status.approval);
    let name = approval.context("an approval")?.request;
    let used = in_phase(&installed, "shop", &name, ApprovalPhase::Consumed).await?;
    let decision = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "ApprovalDecision",
        "metadata": {"name": "no", "namespace": "shop"},
        "spec": {
            "requestRef": {"name": name, "uid": used.metadata.uid}, "planDigest": used.spec.plan_digest,
            "policyName": "default", "stage": "approval", "decision": "Reject", "comment": "stop it",
        },
    });
    kubectl(&installed, &bob(), &["create", "-f", "-"], Some(&decision.to_string())).await?;
    let written = good().await?;
    installed.start_operator().await?;
    let status = ended(&installed, "shop", "back", RollbackPhase::Cancelled).await?;
    ensure!(
        said(&status).contains("Cancelled: bob objected to the approval while it ran"),
        "{}",
        said(&status)
    );
    ensure!(good().await? == written, "it went on: {} of {written}", good().await?);
    installed.cluster.stop().await
}
