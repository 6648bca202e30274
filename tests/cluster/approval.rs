//! Approval through the custom resources, with real users: who counts, what ends a request, and that it is used once.

use anyhow::{Result, ensure};
use backstep::{
    api::{
        ApprovalDecision, ApprovalRequest, RollbackRequest,
        approval_request::{ApprovalPhase, Decision},
    },
    controller::approval_request::{self, consume, facts},
    domain::approval::{
        Verdict,
        gate::{Hold, Known},
        permit::Latch,
    },
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
};
use serde_json::json;
use testbed::{User, wait_until};

use crate::{
    court::{Court, SHOP, alice, condition, decisions, lead, owner},
    support::PATIENCE,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_of_distinct_people_approves_and_the_approval_is_used_once() -> Result<()> {
    let mut court = Court::open("quorum", &[]).await?;
    let mut two = crate::court::prod();
    let owners = json!({"name": "owners", "required": 2, "approvers": {"groups": ["owners"]}});
    two["stages"]
        .as_array_mut()
        .into_iter()
        .for_each(|stages| stages.push(owners.clone()));
    court.policy("prod", &two).await?;
    let (request, approval) = court.opened("undo", &json!({})).await?;
    let name = approval.name_any();
    ensure!(name.starts_with("undo-"), "{name}");

    let waiting = court
        .until(&name, "waiting for sre", |now| {
            condition(now, "Reconciling").2.contains("stage sre;")
        })
        .await?;
    let (value, reason, message) = condition(&waiting, "Approved");
    ensure!(
        (value.as_str(), reason.as_str()) == ("False", "AwaitingApproval"),
        "{waiting:?}"
    );
    ensure!(
        message.starts_with("0 of 1 approvals of stage sre; gil, group sre-leads, service account ci/robot")
            && message.contains("kubectl backstep approve undo -n shop")
            && message.ends_with("; then stage owners"),
        "{message}"
    );

    court
        .decide(&lead("bob"), &approval, "sre", "Approve", &json!({}))
        .await?;
    court
        .until(&name, "at the second stage", |now| {
            now.status.as_ref().and_then(|status| status.current_stage.as_deref()) == Some("owners")
        })
        .await?;
    court
        .decide(&owner("carol"), &approval, "owners", "Approve", &json!({}))
        .await?;
    court
        .until(&name, "half approved", |now| {
            condition(now, "Approved")
                .2
                .starts_with("1 of 2 approvals of stage owners")
        })
        .await?;
    // The same person once more is still one.
    court
        .decide(&owner("carol"), &approval, "owners", "Approve", &json!({}))
        .await?;
    let recorded = court.recorded(&approval, 3).await?;
    ensure!(
        recorded.iter().filter(|one| one.counted == Some(true)).count() == 2,
        "{recorded:#?}"
    );
    court
        .decide(&owner("dave"), &approval, "owners", "Approve", &json!({}))
        .await?;
    let approved = court.phase(&approval, ApprovalPhase::Approved).await?;
    let status = approved.status.clone().unwrap_or_default();
    let (Some(at), Some(end)) = (status.approved_at, status.approval_expires_at) else {
        anyhow::bail!("no times: {approved:?}");
    };
    ensure!(end.0.duration_since(at.0).as_secs() == 30 * 60, "{at:?} {end:?}");
    ensure!(condition(&approved, "Ready").0 == "True" && status.seal.is_some());
    court
        .event(&name, "Approved: approved: 1 of 1 in stage sre, 2 of 2 in stage owners")
        .await?;

    // Nobody else uses it up: a latch closes once.
    court.installed.kill_operator();
    let (first, second) = (
        facts(&court.context, &request, &name).await,
        facts(&court.context, &request, &name).await,
    );
    ensure!(first.verdict == Known::Is(Verdict::Approved), "{first:?}");
    let (Known::Is(guard), Known::Is(seen)) = (&first.guard, &first.approval) else {
        anyhow::bail!("{first:?}");
    };
    ensure!(
        guard.healthy && Some(&guard.epoch) == seen.epoch.as_ref() && seen.seal_is_ours,
        "{first:?}"
    );
    ensure!(first.hold == Hold::None && first.policy_digest == Known::Is(Some(seen.policy_digest)));
    let latch = consume(&court.context, &first, ApprovalPhase::Consumed, "execution-1").await;
    let taken = Latch::Taken {
        phase: ApprovalPhase::Consumed,
        execution: "execution-1".into(),
    };
    ensure!(latch == taken, "{latch:?}");
    for stale in [&second, &first] {
        let lost = consume(&court.context, stale, ApprovalPhase::Consumed, "execution-2").await;
        ensure!(lost == Latch::Lost, "{lost:?}");
    }
    let again = facts(&court.context, &request, &name).await;
    let lost = consume(&court.context, &again, ApprovalPhase::Consumed, "execution-3").await;
    ensure!(lost == Latch::Lost, "a consumed approval was consumed again: {lost:?}");
    let used = court.phase(&approval, ApprovalPhase::Consumed).await?;
    let status = used.status.clone().unwrap_or_default();
    ensure!(status.execution_id.as_deref() == Some("execution-1"), "{status:?}");
    court.installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_decide_is_recorded_with_the_reason_and_counts_for_nothing() -> Result<()> {
    let court = Court::open("counts", &[]).await?;
    let (_, approval) = court.opened("undo", &json!({})).await?;
    let name = approval.name_any();
    let stale = json!({"planDigest": format!("sha256:{}", "a".repeat(64))});
    let cases = [
        (
            alice(),
            "Approve",
            json!({}),
            "the requester does not decide on its own request",
        ),
        (
            lead("oidc:alice"),
            "Approve",
            json!({}),
            "the requester does not decide on its own request",
        ),
        (
            User::new("eve", ["visitors"]),
            "Approve",
            json!({}),
            "the stage does not list the author",
        ),
        (lead("bob"), "Approve", stale, "it is about another plan"),
        (lead("fay"), "Acknowledge", json!({}), "nothing ran without approval"),
    ];
    for (at, (user, decision, more, reason)) in cases.iter().enumerate() {
        court.decide(user, &approval, "sre", decision, more).await?;
        let recorded = court.recorded(&approval, at + 1).await?;
        let own = recorded.iter().find(|one| one.username == user.name);
        let said = own.and_then(|one| one.reason.as_deref()).unwrap_or_default();
        ensure!(
            said.contains(reason) && own.is_some_and(|one| one.counted == Some(false)),
            "{user}: {recorded:#?}"
        );
        court.event(&name, reason).await?;
    }
    court.decide_as_robot("shop", &approval, "sre").await?;
    let recorded = court.recorded(&approval, cases.len() + 1).await?;
    let own = recorded
        .iter()
        .find(|one| one.username == "system:serviceaccount:shop:robot");
    ensure!(
        own.and_then(|one| one.reason.as_deref())
            .is_some_and(|why| why.contains("own namespace never counts")),
        "{recorded:#?}"
    );
    // Of another request of the same name: not even seen.
    let other = json!({"requestRef": {"name": name, "uid": "00000000-0000-0000-0000-000000000000"}});
    court.decide(&lead("hal"), &approval, "sre", "Approve", &other).await?;
    // A robot of elsewhere counts, by its own verb; and then everything above was still recorded as it was.
    court.decide_as_robot("ci", &approval, "sre").await?;
    let approved = court.phase(&approval, ApprovalPhase::Approved).await?;
    let counted: Vec<String> = decisions(&approved)
        .into_iter()
        .filter(|one| one.counted == Some(true))
        .map(|one| one.username)
        .collect();
    ensure!(counted == ["system:serviceaccount:ci:robot"], "{approved:?}");
    ensure!(
        decisions(&approved).iter().all(|one| one.username != "hal"),
        "{approved:?}"
    );

    // Whom the operator asks for is excluded like one who asks.
    let api: Api<RollbackRequest> = Api::namespaced(court.context.client.clone(), SHOP);
    let served: RollbackRequest = serde_json::from_value(json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest",
        "metadata": {"name": "served", "namespace": SHOP},
        "spec": {"target": {"snapshot": "before"}, "suspend": true,
                 "requestedBy": {"username": "system:serviceaccount:backstep-system:backstep"},
                 "onBehalfOf": {"username": "bob", "groups": ["sre-leads"], "source": "RollbackGuard/web"}},
    }))?;
    api.create(&PostParams::default(), &served).await?;
    let (_, approval) = court.asked("served", None).await?;
    court
        .decide(&lead("bob"), &approval, "sre", "Approve", &json!({}))
        .await?;
    let recorded = court.recorded(&approval, 1).await?;
    ensure!(
        recorded[0].reason.as_deref() == Some("the request was made on behalf of this person"),
        "{recorded:#?}"
    );
    // A service account that asks is no person: one approval more than the policy says.
    let robot = court.installed.cluster.service_account_client("ci", "robot").await?;
    let api: Api<RollbackRequest> = Api::namespaced(robot, SHOP);
    let gitops: RollbackRequest = serde_json::from_value(json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest",
        "metadata": {"name": "gitops", "namespace": SHOP},
        "spec": {"target": {"snapshot": "before"}, "suspend": true,
                 "requestedBy": {"username": "system:serviceaccount:ci:robot"}},
    }))?;
    api.create(&PostParams::default(), &gitops).await?;
    let (_, approval) = court.asked("gitops", None).await?;
    ensure!(approval.spec.stages[0].required == 2, "{:?}", approval.spec.stages);
    court.installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_ends_by_rejection_revocation_time_withdrawal_and_changes() -> Result<()> {
    let court = Court::open("endings", &[]).await?;
    let nothing = json!({});
    let open = async |name: &str| court.opened(name, &nothing).await;
    let approve = async |approval: &ApprovalRequest| {
        court.decide(&lead("bob"), approval, "sre", "Approve", &nothing).await?;
        court.phase(approval, ApprovalPhase::Approved).await
    };

    let (_, rejected) = open("rejected").await?;
    court.decide(&lead("bob"), &rejected, "sre", "Reject", &nothing).await?;
    let rejected = court.phase(&rejected, ApprovalPhase::Rejected).await?;
    ensure!(
        condition(&rejected, "Stalled").2 == "rejected in stage sre by bob",
        "{rejected:?}"
    );
    // Too late for a change of mind.
    court
        .decide(&lead("bob"), &rejected, "sre", "Approve", &nothing)
        .await?;

    let (_, revoked) = open("revoked").await?;
    approve(&revoked).await?;
    court.decide(&lead("bob"), &revoked, "sre", "Revoke", &nothing).await?;
    let revoked = court.phase(&revoked, ApprovalPhase::Revoked).await?;
    ensure!(condition(&revoked, "Approved").0 == "False", "{revoked:?}");

    let (request, lost) = open("lost").await?;
    let gil = User::new("gil", ["visitors"]);
    court.decide(&gil, &lost, "sre", "Approve", &nothing).await?;
    court.phase(&lost, ApprovalPhase::Approved).await?;
    let delete = ["delete", "clusterrolebinding", "approve-gil"];
    court
        .installed
        .cluster
        .kubectl(&User::admin(), &delete, None)
        .await?
        .success()?;
    wait_until(PATIENCE, "the gate to miss gil's right", async || {
        let now = facts(&court.context, &request, &lost.name_any()).await;
        ensure!(now.verdict == Known::Is(Verdict::Revoked), "{:?}", now.verdict);
        Ok::<_, anyhow::Error>(Some(()))
    })
    .await?;

    let short = json!({"priority": 20, "match": {"reasons": ["Security"]}, "requestTTL": "3s",
                       "stages": [{"name": "sre", "approvers": {"groups": ["sre-leads"]}}]});
    court.policy("short", &short).await?;
    let security = json!({"reason": {"type": "Security"}});
    let (_, expired) = court.opened("expired", &security).await?;
    let expired = court.phase(&expired, ApprovalPhase::Expired).await?;
    let message = condition(&expired, "Stalled").2;
    ensure!(
        message.contains("time is over with 0 of 1 approvals of stage sre"),
        "{message}"
    );
    let quick = json!({"priority": 20, "match": {"reasons": ["Compliance"]}, "approvalTTL": "2s",
                       "stages": [{"name": "sre", "approvers": {"groups": ["sre-leads"]}}]});
    court.policy("quick", &quick).await?;
    let compliance = json!({"reason": {"type": "Compliance"}});
    let (_, unused) = court.opened("unused", &compliance).await?;
    approve(&unused).await?;
    let unused = court.phase(&unused, ApprovalPhase::Expired).await?;
    ensure!(
        condition(&unused, "Stalled").2.contains("not used in time"),
        "{unused:?}"
    );

    let (_, cancelled) = open("cancelled").await?;
    court.cancel("cancelled").await?;
    court.phase(&cancelled, ApprovalPhase::Cancelled).await?;

    let (_, closed) = open("closed").await?;
    let name = closed.name_any();
    approval_request::close(
        &court.context,
        SHOP,
        &name,
        ApprovalPhase::Superseded,
        "the plan changed",
    )
    .await?;
    approval_request::close(&court.context, SHOP, &name, ApprovalPhase::Cancelled, "too late").await?;
    let closed = court.phase(&closed, ApprovalPhase::Superseded).await?;
    ensure!(condition(&closed, "Stalled").2 == "the plan changed", "{closed:?}");

    // Somebody with the operator's rights who adds a decision has no seal.
    let (_, forged) = open("forged").await?;
    let api: Api<ApprovalRequest> = Api::namespaced(court.context.client.clone(), SHOP);
    wait_until(PATIENCE, "a forged decision to be written", async || {
        let mut now = api.get(&forged.name_any()).await?;
        now.status.get_or_insert_default().decisions = Some(vec![serde_json::from_value(json!({
            "uid": "u", "name": "d", "username": "bob", "stage": "sre", "decision": Decision::Approve,
            "at": "2026-01-02T03:04:05Z", "counted": true,
        }))?]);
        api.replace_status(&forged.name_any(), &PostParams::default(), &now)
            .await?;
        Ok::<_, anyhow::Error>(Some(()))
    })
    .await?;
    let forged = court.phase(&forged, ApprovalPhase::Superseded).await?;
    ensure!(condition(&forged, "Stalled").2.contains("seal"), "{forged:?}");
    // The same plan in the same epoch is asked for again under the next number, and nothing is carried over.
    let (_, again) = court.asked("forged", Some(&forged)).await?;
    ensure!(
        again.name_any() == format!("{}-2", forged.name_any()),
        "{}",
        again.name_any()
    );
    ensure!(decisions(&again).is_empty(), "{again:?}");

    // A changed policy: whatever was approved under the old one is void, and asked for again under another name.
    let (_, before) = open("changed").await?;
    approve(&before).await?;
    let mut stricter = crate::court::prod();
    stricter["requireComment"] = json!(true);
    court.policy("prod", &stricter).await?;
    let superseded = court.phase(&before, ApprovalPhase::Superseded).await?;
    ensure!(
        condition(&superseded, "Stalled").2.contains("ApprovalPolicy changed"),
        "{superseded:?}"
    );
    let (_, after) = court.asked("changed", Some(&before)).await?;
    ensure!(after.spec.plan_digest != before.spec.plan_digest, "{after:?}");
    court
        .decide(&lead("bob"), &after, "sre", "Approve", &json!({"comment": ""}))
        .await?;
    let recorded = court.recorded(&after, 1).await?;
    ensure!(
        recorded[0].reason.as_deref() == Some("it must say why, in comment"),
        "{recorded:#?}"
    );

    // A request that goes takes its approvals and nothing else along.
    let delete = ["delete", "rollbackrequest", "changed", "-n", SHOP, "--wait=false"];
    court
        .installed
        .cluster
        .kubectl(&alice(), &delete, None)
        .await?
        .success()?;
    let api: Api<ApprovalRequest> = Api::namespaced(court.installed.admin().await?, SHOP);
    wait_until(PATIENCE, "the approvals of a deleted request to go", async || {
        let left = api.get_opt(&after.name_any()).await?;
        ensure!(left.is_none(), "{left:?}");
        let decisions: Api<ApprovalDecision> = Api::namespaced(court.installed.admin().await?, SHOP);
        let left = decisions.list(&ListParams::default()).await?.items;
        let of_it = left.iter().filter(|one| one.spec.request_ref.name == after.name_any());
        ensure!(of_it.count() == 0, "{left:?}");
        Ok::<_, anyhow::Error>(Some(()))
    })
    .await?;
    let rejected = court.phase(&rejected, ApprovalPhase::Rejected).await?;
    ensure!(
        decisions(&rejected).len() == 1,
        "a final request counted on: {rejected:?}"
    );
    court.installed.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn break_glass_is_reviewed_policies_approve_by_themselves_and_limits_hold() -> Result<()> {
    let mut court = Court::open("routes", &[]).await?;
    let nothing = json!({});
    let stage = json!([{"name": "sre", "approvers": {"groups": ["sre-leads"]}}]);
    // A policy may approve small things by itself; its people may still object.
    let auto =
        json!({"priority": 20, "match": {"reasons": ["Policy"]}, "stages": stage, "autoApprove": {"maxRisk": "Low"}});
    court.policy("auto", &auto).await?;
    let by_policy = json!({"reason": {"type": "Policy"}});
    let (_, small) = court.opened("small", &by_policy).await?;
    let small = court.phase(&small, ApprovalPhase::Approved).await?;
    ensure!(condition(&small, "Approved").2.contains("autoApprove"), "{small:?}");
    court.decide(&lead("bob"), &small, "sre", "Reject", &nothing).await?;
    court.phase(&small, ApprovalPhase::Revoked).await?;
    // Limits: what is open counts.
    let few = json!({"priority": 20, "match": {"reasons": ["ResourceLimit"]}, "stages": stage,
                     "limits": {"openPerNamespace": 1}});
    court.policy("few", &few).await?;
    let limited = json!({"reason": {"type": "ResourceLimit"}});
    let (_, first) = court.opened("limited-1", &limited).await?;
    court.request(&alice(), "limited-2", &limited).await?;
    let api: Api<RollbackRequest> = Api::namespaced(court.installed.admin().await?, SHOP);
    wait_until(PATIENCE, "the limit to hold the second request", async || {
        let status = api.get("limited-2").await?.status.unwrap_or_default();
        let held = |condition: &Condition| {
            condition.reason == "LimitReached" && condition.message.contains("allows 1 open requests in a namespace")
        };
        ensure!(
            status.approval.is_none() && status.conditions.iter().any(held),
            "{status:#?}"
        );
        Ok::<_, anyhow::Error>(Some(()))
    })
    .await?;
    court.cancel("limited-1").await?;
    court.phase(&first, ApprovalPhase::Cancelled).await?;
    court.asked("limited-2", None).await?;

    // A stage that takes too long asks more people, and never fewer of them.
    let late = json!({"priority": 20, "match": {"reasons": ["Error"]}, "stages": [
        {"name": "sre", "approvers": {"users": ["nobody"]}, "timeout": "3s",
         "onTimeout": {"action": "Escalate", "approvers": {"groups": ["owners"]}}}]});
    court.policy("late", &late).await?;
    let (_, escalated) = court.opened("escalated", &json!({"reason": {"type": "Error"}})).await?;
    court
        .decide(&owner("carol"), &escalated, "sre", "Approve", &nothing)
        .await?;
    let recorded = court.recorded(&escalated, 1).await?;
    ensure!(
        recorded[0]
            .reason
            .as_deref()
            .is_some_and(|why| why.contains("does not list")),
        "{recorded:#?}"
    );
    court
        .until(&escalated.name_any(), "escalated", |now| {
            condition(now, "Approved").2.contains("(escalated: ")
        })
        .await?;
    court
        .decide(&owner("dave"), &escalated, "sre", "Approve", &nothing)
        .await?;
    court.phase(&escalated, ApprovalPhase::Approved).await?;

    // A policy says by itself whether it can be met.
    let impossible =
        json!({"priority": -5, "stages": [{"name": "sre", "required": 2, "approvers": {"users": ["bob"]}}]});
    court.policy("impossible", &impossible).await?;
    for (name, expected) in [("impossible", "False Unsatisfiable"), ("prod", "True Satisfiable")] {
        let path = r#"{.status.conditions[?(@.type=="Ready")].status} {.status.conditions[?(@.type=="Ready")].reason}"#;
        let get = ["get", "approvalpolicy", name, "-o", &format!("jsonpath={path}")];
        wait_until(PATIENCE, &format!("the status of policy {name}"), async || {
            let ran = court.installed.cluster.kubectl(&User::admin(), &get, None).await?;
            ensure!(ran.stdout == expected, "{ran}");
            Ok::<_, anyhow::Error>(Some(()))
        })
        .await?;
    }
    let glass = json!({"priority": 20, "match": {"reasons": ["HealthCheck"]}, "stages": stage,
                       "emergency": {"allowed": true, "reviewWithin": "4s"}});
    court.policy("glass", &glass).await?;

    // Break-glass: no quorum, the same latch, and somebody else looks at it afterwards.
    let emergency = json!({"reason": {"type": "HealthCheck"}, "emergency": {"justification": "checkout is down"}});
    let (request, approval) = court.opened("emergency", &emergency).await?;
    ensure!(
        approval.status.as_ref().and_then(|s| s.phase) == Some(ApprovalPhase::BreakGlass),
        "{approval:?}"
    );
    ensure!(
        approval.spec.reason.as_deref() == Some("checkout is down"),
        "{approval:?}"
    );
    court.installed.kill_operator();
    let now = facts(&court.context, &request, &approval.name_any()).await;
    let latch = consume(&court.context, &now, ApprovalPhase::AwaitingReview, "execution-1").await;
    let taken = Latch::Taken {
        phase: ApprovalPhase::AwaitingReview,
        execution: "execution-1".into(),
    };
    ensure!(latch == taken, "{latch:?}");
    court.installed.start_operator().await?;
    court
        .decide(&alice(), &approval, "sre", "Acknowledge", &nothing)
        .await?;
    let recorded = court.recorded(&approval, 1).await?;
    ensure!(
        recorded[0].reason.as_deref() == Some("the requester does not decide on its own request"),
        "{recorded:#?}"
    );
    let overdue = court.phase(&approval, ApprovalPhase::ReviewOverdue).await?;
    ensure!(condition(&overdue, "Stalled").1 == "ReviewOverdue", "{overdue:?}");
    court
        .decide(&lead("bob"), &approval, "sre", "Acknowledge", &nothing)
        .await?;
    let reviewed = court.phase(&approval, ApprovalPhase::Reviewed).await?;
    ensure!(condition(&reviewed, "Ready").0 == "True", "{reviewed:?}");
    court.installed.cluster.stop().await
}
