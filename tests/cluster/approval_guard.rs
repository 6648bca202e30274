//! The guard of approval: whoever switches it off, weakens or narrows it, even for a moment, voids what was open.

use anyhow::{Result, ensure};
use backstep::{
    api::approval_request::ApprovalPhase,
    controller::approval_request::facts,
    domain::approval::{Verdict, gate::Known},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use testbed::{User, wait_until};

use crate::{
    court::{Court, SHOP, condition, decisions, lead},
    support::{OPERATOR_NAMESPACE, PATIENCE},
};

const DECISIONS: &str = "approvaldecisions.guard.backstep.dev";

/// One way of switching the guard off, and back on.
struct Tampering {
    name: &'static str,
    /// Plural and name of what is changed.
    object: [&'static str; 2],
    /// A JSON patch; `None` deletes it.
    patch: Option<Value>,
    /// What the guard says.
    seen: &'static str,
}

fn tamperings() -> Vec<Tampering> {
    let binding = ["validatingadmissionpolicybindings", DECISIONS];
    let replace = |path: &str, value: Value| Some(json!([{"op": "add", "path": path, "value": value}]));
    vec![
        Tampering {
            name: "deleted",
            object: binding,
            patch: None,
            seen: "the binding of admission policy approvaldecisions.guard.backstep.dev is missing",
        },
        Tampering {
            name: "audit",
            object: binding,
            patch: replace("/spec/validationActions", json!(["Audit"])),
            seen: "spec.validationActions differs",
        },
        Tampering {
            name: "narrowed",
            object: binding,
            patch: replace(
                "/spec/matchResources",
                json!({"namespaceSelector": {"matchLabels": {"env": "test"}}}),
            ),
            seen: "spec.matchResources differs",
        },
        Tampering {
            name: "ignored",
            object: ["validatingadmissionpolicies", DECISIONS],
            patch: replace("/spec/failurePolicy", json!("Ignore")),
            seen: "spec.failurePolicy differs",
        },
        Tampering {
            name: "weakened",
            object: ["customresourcedefinitions", "approvaldecisions.backstep.dev"],
            patch: Some(json!([
                {"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations"}
            ])),
            seen: "the CRD approvaldecisions.backstep.dev is not the one of this release",
        },
        Tampering {
            name: "turning",
            object: ["mutatingadmissionpolicies", "approver.stamp.backstep.dev"],
            patch: replace("/spec/reinvocationPolicy", json!("IfNeeded")),
            seen: "the mutating admission policy approver.stamp.backstep.dev is not the one of this release",
        },
    ]
}

async fn kubectl(court: &Court, arguments: &[&str], stdin: Option<&str>) -> Result<String> {
    let ran = court
        .installed
        .cluster
        .kubectl(&User::admin(), arguments, stdin)
        .await?;
    Ok(ran.success()?.stdout)
}

/// The object as it can be created again, or put back.
async fn kept(court: &Court, [plural, name]: [&str; 2]) -> Result<Value> {
    let text = kubectl(court, &["get", plural, name, "-o", "json"], None).await?;
    let mut object: Value = serde_json::from_str(&text)?;
    for field in [
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "managedFields",
    ] {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove(field);
        }
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    Ok(object)
}

/// Waits until a look with the operator's rights finds nothing missing; gives the epoch.
async fn healthy(court: &Court) -> Result<String> {
    wait_until(PATIENCE, "the guard to be in place", async || {
        let guard = court.context.look_at_guard().await;
        ensure!(guard.missing.is_empty(), "{:#?}", guard.missing);
        Ok::<_, anyhow::Error>(guard.epoch)
    })
    .await
}

/// Waits until the operator says on `/readyz` what it says.
async fn readiness(court: &Court, text: &str) -> Result<()> {
    wait_until(PATIENCE, &format!("the operator to say `{text}`"), async || {
        let address = court.installed.operator()?.admin().await?;
        let answer = crate::snapshots::get(&address, "/readyz")?;
        ensure!(answer.contains(text), "{answer}");
        Ok::<_, anyhow::Error>(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_switches_the_guard_off_for_a_moment_voids_what_was_approved_and_decided() -> Result<()> {
    let court = Court::open("guard", &[]).await?;
    for tampering in tamperings() {
        let epoch = healthy(&court).await?;
        readiness(&court, "ok").await?;
        let (request, approval) = court.opened(tampering.name, &json!({})).await?;
        court
            .decide(&lead("bob"), &approval, "sre", "Approve", &json!({}))
            .await?;
        court.phase(&approval, ApprovalPhase::Approved).await?;

        let whole = kept(&court, tampering.object).await?;
        let [plural, name] = tampering.object;
        match &tampering.patch {
            Some(patch) => {
                let patch = patch.to_string();
                kubectl(&court, &["patch", plural, name, "--type=json", "-p", &patch], None).await?;
            }
            None => drop(kubectl(&court, &["delete", plural, name], None).await?),
        }
        let seen = court.context.look_at_guard().await;
        ensure!(
            seen.missing.iter().any(|missing| missing.contains(tampering.seen)),
            "{}: {seen:#?}",
            tampering.name
        );
        readiness(&court, tampering.seen).await?;
        let gate = facts(&court.context, &request, &approval.name_any()).await;
        ensure!(
            matches!(&gate.guard, Known::Is(guard) if !guard.healthy),
            "{}: {gate:#?}",
            tampering.name
        );
        if tampering.patch.is_none() {
            forge(&court).await?;
        }

        let text = whole.to_string();
        match &tampering.patch {
            Some(_) => {
                let spec = json!([{"op": "replace", "path": "/spec", "value": whole["spec"]}]).to_string();
                kubectl(&court, &["patch", plural, name, "--type=json", "-p", &spec], None).await?;
            }
            None => drop(kubectl(&court, &["create", "-f", "-"], Some(&text)).await?),
        }
        let after = healthy(&court).await?;
        ensure!(after != epoch, "{}: the epoch did not move", tampering.name);
        let void = court.phase(&approval, ApprovalPhase::Superseded).await?;
        ensure!(
            condition(&void, "Stalled").2.contains("nobody vouches"),
            "{}: {void:?}",
            tampering.name
        );
        let (_, again) = court.asked(tampering.name, Some(&void)).await?;
        ensure!(
            again.status.as_ref().and_then(|s| s.guard_epoch.as_deref()) == Some(after.as_str()),
            "{again:?}"
        );
        ensure!(decisions(&again).is_empty(), "{again:?}");
        court.cancel(tampering.name).await?;
    }
    court.installed.cluster.stop().await
}

/// In the gap anybody may decide in anybody's name; of the request that is open then, nothing of it counts.
async fn forge(court: &Court) -> Result<()> {
    let list = kubectl(court, &["get", "approvalrequests", "-n", SHOP, "-o", "json"], None).await?;
    let list: Value = serde_json::from_str(&list)?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let open: Vec<_> = items
        .iter()
        .filter(|one| one["status"]["phase"] == "Approved")
        .collect();
    ensure!(open.len() == 1, "{open:#?}");
    let approval = serde_json::from_value(open[0].clone())?;
    let in_carols_name = json!({"approver": {"username": "carol", "groups": ["sre-leads"]}});
    let manifest = Court::decision(&approval, "sre", "Approve", &in_carols_name).to_string();
    let mallory = User::new("mallory", ["visitors"]);
    wait_until(PATIENCE, "the forged decision to be admitted in the gap", async || {
        let create = ["create", "-f", "-"];
        let ran = court
            .installed
            .cluster
            .kubectl(&mallory, &create, Some(&manifest))
            .await?;
        ran.success().map(Some)
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_labels_and_upgrades_that_change_nothing_keep_the_epoch_and_the_approval() -> Result<()> {
    let mut court = Court::open("epoch", &[]).await?;
    let epoch = healthy(&court).await?;
    let (request, approval) = court.opened("undo", &json!({})).await?;
    court
        .decide(&lead("bob"), &approval, "sre", "Approve", &json!({}))
        .await?;
    court.phase(&approval, ApprovalPhase::Approved).await?;

    kubectl(
        &court,
        &["label", "validatingadmissionpolicies", DECISIONS, "team=platform"],
        None,
    )
    .await?;
    kubectl(
        &court,
        &["annotate", "crd", "approvaldecisions.backstep.dev", "note=seen"],
        None,
    )
    .await?;
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/backstep");
    let upgrade = [
        "upgrade",
        "backstep",
        chart,
        "-n",
        OPERATOR_NAMESPACE,
        "--set",
        "replicas=0,logging.level=debug",
        "--force-conflicts",
    ];
    court
        .installed
        .cluster
        .helm(&User::admin(), &upgrade, None)
        .await?
        .success()?;
    ensure!(
        healthy(&court).await? == epoch,
        "an upgrade that changes no policy moved the epoch"
    );
    court.installed.start_operator().await?;
    readiness(&court, "ok").await?;
    court.installed.cluster.restart_api_server().await?;
    ensure!(healthy(&court).await? == epoch, "a restart moved the epoch");
    let gate = facts(&court.context, &request, &approval.name_any()).await;
    ensure!(gate.verdict == Known::Is(Verdict::Approved), "{gate:#?}");
    let (Known::Is(guard), Known::Is(seen)) = (&gate.guard, &gate.approval) else {
        anyhow::bail!("{gate:#?}");
    };
    ensure!(
        guard.healthy && seen.epoch.as_ref() == Some(&guard.epoch) && seen.seal_is_ours,
        "{gate:#?}"
    );
    let still = court.phase(&approval, ApprovalPhase::Approved).await?;
    ensure!(decisions(&still).len() == 1, "{still:?}");
    court.installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn mutators_of_others_that_see_decisions_are_reported_or_block() -> Result<()> {
    let court = Court::open("mutators", &[]).await?;
    healthy(&court).await?;
    let webhook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "turns-decisions"},
        "webhooks": [{
            "name": "turn.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Ignore", "timeoutSeconds": 1, "clientConfig": {"url": "https://127.0.0.1:9/turn"},
            "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["approvaldecisions"], "operations": ["CREATE"]}],
        }],
    });
    kubectl(&court, &["create", "-f", "-"], Some(&webhook.to_string())).await?;
    // Warned of: counted, and nothing stops.
    let address = court.installed.operator()?.admin().await?;
    wait_until(PATIENCE, "the mutator to be counted", async || {
        let metrics = crate::snapshots::get(&address, "/metrics")?;
        ensure!(metrics.contains("backstep_guard_foreign_mutators 1"), "{metrics}");
        ensure!(metrics.contains("backstep_guard_healthy 1"), "{metrics}");
        Ok::<_, anyhow::Error>(Some(()))
    })
    .await?;
    let strict = Court::context(court.context.client.clone(), &["--foreign-mutators", "block"])?;
    let guard = strict.look_at_guard().await;
    ensure!(
        guard
            .missing
            .iter()
            .any(|missing| missing.contains("the mutating webhook turns-decisions sees ApprovalDecisions")),
        "{guard:#?}"
    );
    court.installed.cluster.stop().await
}
