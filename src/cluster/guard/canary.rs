//! Decisions that must be refused, tried as dry runs: a policy that is there and still lets them pass is no guard.

use kube::Client;
use serde_json::{Value, json};

use super::{super::call, expected::Installation};

/// The policy that must refuse.
const POLICY: &str = "approvaldecisions.guard.backstep.dev";

/// What is wrong; empty where both are refused, by the policy's name and for the right reason.
pub(super) async fn problems(client: &Client, installation: &Installation) -> Vec<String> {
    let own = installation.username();
    let (other, powerless) = tokio::join!(
        tried(client, installation, "guard-canary", "must be your own"),
        tried(client, installation, &own, "may not decide here"),
    );
    let mut problems = Vec::new();
    for (what, problem) in [("in another's name", other), ("without the verb approve", powerless)] {
        problems.extend(problem.map(|problem| format!("a decision {what} is not refused as it must be: {problem}")));
    }
    problems
}

async fn tried(client: &Client, installation: &Installation, username: &str, reason: &str) -> Option<String> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let decision = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "ApprovalDecision",
        "metadata": {"name": "guard-canary", "namespace": installation.namespace},
        "spec": {
            "requestRef": {"name": "guard-canary", "uid": "guard-canary"}, "planDigest": digest,
            "policyName": "guard-canary", "stage": "guard-canary", "decision": "Approve", "approver": {"username": username},
        },
    });
    let uri = format!(
        "/apis/backstep.dev/v1alpha1/namespaces/{}/approvaldecisions?dryRun=All",
        installation.namespace
    );
    let answer = call::repeat("try a decision that must be refused", call::DEADLINE, || async {
        let body = serde_json::to_vec(&decision).map_err(kube::Error::SerdeError)?;
        let request = http::Request::post(&uri)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(kube::Error::HttpError)?;
        client.request::<Value>(request).await
    })
    .await;
    match answer {
        Ok(_) => Some("it was admitted".to_owned()),
        Err(error) if error.code() == Some(403) => {
            let said = error.to_string();
            (!said.contains(POLICY) || !said.contains(reason)).then_some(said)
        }
        Err(error) => Some(error.to_string()),
    }
}
