//! Rows of approval that take more than one object: what the operator owns, what leaves with its owner, what is applied twice.

use anyhow::{Context as _, Result, ensure};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, PropagationPolicy},
};
use serde_json::{Value, json};
use testbed::{User, wait_until};
use tokio::sync::OnceCell;

use crate::{
    cel::{NAMESPACE, Server, answer},
    support::PATIENCE,
};

static SERVER: OnceCell<Server> = OnceCell::const_new();

/// One cluster for all tests of this file; the test bed ends it with this process.
async fn server() -> Result<&'static Server> {
    SERVER.get_or_try_init(|| Server::start("rows")).await
}

fn digest() -> String {
    format!("sha256:{}", "a".repeat(64))
}

fn object(kind: &str, namespace: &str, name: &str) -> Value {
    let of = json!({"name": "undo", "uid": "u1"});
    let spec = match kind {
        "RollbackPlan" => json!({
            "requestRef": of, "digest": digest(), "risk": {"level": "Low", "score": 1}, "summary": {},
            "target": {"snapshot": "good", "version": 1, "digest": digest()},
        }),
        "ApprovalRequest" => json!({
            "requestRef": {"kind": "RollbackRequest", "name": "undo", "uid": "u1"}, "requester": {"username": "alice"},
            "policy": {"name": "prod", "uid": "u2", "generation": 1, "digest": digest()}, "planDigest": digest(),
            "expiresAt": "2036-01-02T03:04:05Z", "stages": [{"name": "sre", "required": 1}],
        }),
        "ApprovalDecision" => json!({
            "requestRef": of, "planDigest": digest(), "policyName": "prod", "stage": "sre", "decision": "Approve",
        }),
        "RollbackRequest" => json!({"target": {"snapshot": "good"}}),
        "ApprovalPolicy" => json!({"stages": [{"name": "sre", "required": 1}]}),
        _ => json!({}),
    };
    json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": {"name": name, "namespace": (kind != "ApprovalPolicy").then_some(namespace)},
    })
}

/// Who may write a kind in the namespace of the tests.
fn author(kind: &str) -> &'static str {
    match kind {
        "RollbackPlan" | "ApprovalRequest" => "operator",
        "ApprovalDecision" => "bob",
        "ApprovalPolicy" => "admin",
        _ => "alice",
    }
}

async fn made(server: &Server, user: &str, object: &Value) -> Result<DynamicObject> {
    let api = server.api(user, object).await?;
    let object: DynamicObject = serde_json::from_value(object.clone())?;
    api.create(&PostParams::default(), &object)
        .await
        .with_context(|| format!("{user} creates {object:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_operator_writes_what_it_owns_whatever_their_rights() -> Result<()> {
    let server = server().await?;
    for (kind, plural) in [
        ("ApprovalRequest", "approvalrequests"),
        ("RollbackPlan", "rollbackplans"),
    ] {
        let there = object(kind, NAMESPACE, "owned");
        made(server, "operator", &there).await?;
        for user in ["owner", "steward", "admin"] {
            let api = server.api(user, &there).await?;
            let merge = async |patch: Value| {
                let patched = api.patch("owned", &PatchParams::default(), &Patch::Merge(patch)).await;
                answer(patched.map(drop))
            };
            let mut tried = vec![
                (
                    "create",
                    server.create(user, &object(kind, NAMESPACE, "forged"), false).await?,
                ),
                ("spec", merge(json!({"spec": {"requestRef": {"uid": "u9"}}})).await?),
                ("label", merge(json!({"metadata": {"labels": {"a": "b"}}})).await?),
                (
                    "annotation",
                    merge(json!({"metadata": {"annotations": {"a": "b"}}})).await?,
                ),
                (
                    "finalizer",
                    merge(json!({"metadata": {"finalizers": ["example.com/hold"]}})).await?,
                ),
            ];
            // Who holds every verb on everything holds `purge` too.
            if user != "admin" {
                let deleted = api.delete("owned", &DeleteParams::default()).await;
                tried.push(("delete", answer(deleted.map(drop))?));
            }
            if kind == "ApprovalRequest" {
                let status = Patch::Merge(json!({"status": {"phase": "Approved"}}));
                let patched = api.patch_status("owned", &PatchParams::default(), &status).await;
                tried.push(("status", answer(patched.map(drop))?));
            }
            for (what, answer) in tried {
                // A spec is frozen for everybody, by the kind itself.
                let (code, expected) = match what {
                    "spec" => (422, "spec is immutable".to_owned()),
                    "status" => (
                        403,
                        format!("{plural}/status are written only by the Backstep operator"),
                    ),
                    _ => (403, format!("{plural} are written only by the Backstep operator")),
                };
                match answer {
                    Err((refusal, message)) if refusal == code && message.contains(&expected) => {}
                    other => anyhow::bail!("{user}, {what} of {kind}: {other:?}, not {code} `{expected}`"),
                }
            }
        }
        let left = server.api("admin", &there).await?.get("owned").await?;
        ensure!(left.data["spec"]["requestRef"]["uid"] == "u1", "{left:?}");
        let metadata = &left.metadata;
        ensure!(
            metadata.labels.is_none() && metadata.annotations.is_none() && metadata.finalizers.is_none(),
            "{metadata:?}"
        );
        ensure!(
            metadata.deletion_timestamp.is_none() && left.data["status"].is_null(),
            "{left:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_somebody_writes_along_with_an_object_is_dropped() -> Result<()> {
    let server = server().await?;
    for (kind, status) in [
        ("Snapshot", json!({"phase": "Ready", "version": 1, "digest": digest()})),
        ("RollbackRequest", json!({"phase": "Completed"})),
        ("ApprovalRequest", json!({"phase": "Approved"})),
        (
            "ApprovalPolicy",
            json!({"conditions": [{"type": "Ready", "status": "True", "reason": "Satisfiable", "message": "",
                                    "lastTransitionTime": "2026-01-02T03:04:05Z"}]}),
        ),
    ] {
        let user = author(kind);
        let mut with_status = object(kind, NAMESPACE, "with-status");
        with_status["status"] = status;
        let mut live = made(server, user, &with_status).await?;
        ensure!(
            live.data["status"].is_null(),
            "{kind} was created with a status: {live:?}"
        );
        live.data["status"] = with_status["status"].clone();
        live.labels_mut().insert("a".into(), "b".into());
        let api = server.api(user, &with_status).await?;
        let replaced = api.replace("with-status", &PostParams::default(), &live).await?;
        ensure!(replaced.labels().contains_key("a"), "{kind}: {replaced:?}");
        ensure!(
            replaced.data["status"].is_null(),
            "a PUT wrote the status of {kind}: {replaced:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_is_applied_again_in_either_way_stays_as_it_is() -> Result<()> {
    let server = server().await?;
    let bob = User::new("bob", ["sre-leads"]);
    let client = &["apply", "-f", "-"][..];
    let serverside = &["apply", "--server-side", "-f", "-"][..];
    for (name, ways) in [
        ("applied", [client, client]),
        ("applied-by-the-server", [serverside, serverside]),
    ] {
        let manifest = object("ApprovalDecision", NAMESPACE, name).to_string();
        let mut seen = Vec::new();
        for way in ways {
            server.cluster.kubectl(&bob, way, Some(&manifest)).await?.success()?;
            let get = ["get", "approvaldecision", name, "-n", NAMESPACE, "-o", "json"];
            seen.push(server.cluster.kubectl(&bob, &get, None).await?.json()?);
        }
        ensure!(seen[0]["spec"]["approver"]["username"] == "bob", "{:#}", seen[0]);
        let [first, second] = [0, 1].map(|at| &seen[at]["metadata"]["resourceVersion"]);
        ensure!(first == second && first.is_string(), "{seen:#?}");
        let diff = ["diff", "-f", "-"];
        server.cluster.kubectl(&bob, &diff, Some(&manifest)).await?.success()?;
    }
    Ok(())
}

/// A request in `namespace` with everything that hangs on it, its children owned as the operator owns them.
async fn family(server: &Server, namespace: &str, name: &str) -> Result<()> {
    let parent = made(server, "admin", &object("RollbackRequest", namespace, name)).await?;
    let owner = json!([{
        "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest", "name": name, "uid": parent.uid(),
        "controller": true, "blockOwnerDeletion": true,
    }]);
    for kind in ["RollbackPlan", "ApprovalRequest"] {
        let mut child = object(kind, namespace, name);
        child["metadata"]["ownerReferences"] = owner.clone();
        made(server, "operator", &child).await?;
    }
    // The author writes the decision, and the operator says whose it is.
    let decision = object("ApprovalDecision", namespace, name);
    made(server, "bob", &decision).await?;
    let owned = Patch::Merge(json!({"metadata": {"ownerReferences": owner}}));
    let api = server.api("operator", &decision).await?;
    api.patch(name, &PatchParams::default(), &owned).await?;
    Ok(())
}

/// What of the family is there, with its owners.
async fn children(server: &Server, namespace: &str, name: &str) -> Result<Vec<(&'static str, DynamicObject)>> {
    let mut found = Vec::new();
    for kind in ["RollbackPlan", "ApprovalRequest", "ApprovalDecision"] {
        let api = server.api("admin", &object(kind, namespace, name)).await?;
        found.extend(api.get_opt(name).await?.map(|child| (kind, child)));
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_collection_namespace_deletion_and_migration_pass_the_guard() -> Result<()> {
    let server = server().await?;
    for (name, policy) in [
        ("background", PropagationPolicy::Background),
        ("foreground", PropagationPolicy::Foreground),
        ("orphan", PropagationPolicy::Orphan),
    ] {
        family(server, NAMESPACE, name).await?;
        ensure!(children(server, NAMESPACE, name).await?.len() == 3);
        let requests = server.api("alice", &object("RollbackRequest", NAMESPACE, name)).await?;
        let params = DeleteParams {
            propagation_policy: Some(policy.clone()),
            ..DeleteParams::default()
        };
        requests.delete(name, &params).await?;
        wait_until(PATIENCE, &format!("the {name} collection"), async || {
            let parent = requests.get_opt(name).await?;
            ensure!(parent.is_none(), "{parent:?}");
            let left = children(server, NAMESPACE, name).await?;
            if policy == PropagationPolicy::Orphan {
                ensure!(left.len() == 3, "an orphan is gone: {left:?}");
                ensure!(
                    left.iter().all(|(_, one)| one.owner_references().is_empty()),
                    "{left:?}"
                );
            } else {
                ensure!(left.is_empty(), "{left:?}");
            }
            Ok(Some(()))
        })
        .await?;
    }

    // Storage migration writes every object as it is, whoever runs it.
    for (kind, mut stored) in children(server, NAMESPACE, "orphan").await? {
        stored.metadata.managed_fields = None;
        for user in ["owner", "admin"] {
            let api = server.api(user, &object(kind, NAMESPACE, "orphan")).await?;
            let rewritten = api.replace("orphan", &PostParams::default(), &stored).await?;
            ensure!(rewritten.data == stored.data, "{user}: {rewritten:?}");
        }
    }

    let leaving = r"
apiVersion: v1
kind: Namespace
metadata: {name: leaving}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: approvers, namespace: leaving}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: backstep-approver}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: bob}]
";
    let admin = User::admin();
    server
        .cluster
        .kubectl(&admin, &["apply", "-f", "-"], Some(leaving))
        .await?
        .success()?;
    wait_until(PATIENCE, "bob's right to count", async || {
        let decision = object("ApprovalDecision", "leaving", "probe");
        let answer = server.create("bob", &decision, true).await?;
        ensure!(answer.is_ok(), "{answer:?}");
        Ok(Some(()))
    })
    .await?;
    family(server, "leaving", "whole").await?;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(server.client("admin").await?);
    namespaces.delete("leaving", &DeleteParams::default()).await?;
    wait_until(PATIENCE, "the namespace to go", async || {
        let left = namespaces.get_opt("leaving").await?;
        ensure!(left.is_none(), "{:?}", left.and_then(|one| one.status));
        Ok(Some(()))
    })
    .await
}
