//! Mutators of others that see decisions. Whoever may write one can turn a rejection into an approval before it is stored.

use std::collections::BTreeSet;

use kube::Client;
use serde_json::Value;

use super::{super::error::Result, get};
use crate::api::names::GROUP;

const DECISIONS: &str = "approvaldecisions";

/// One sentence for each mutating webhook and policy that is not ours and matches decisions.
pub(super) async fn foreign(client: &Client, ours: &BTreeSet<String>) -> Result<Vec<String>> {
    let root = "/apis/admissionregistration.k8s.io";
    let mut found = Vec::new();
    let webhooks = get(
        client,
        &format!("{root}/v1/mutatingwebhookconfigurations"),
        "list mutatingwebhookconfigurations",
    )
    .await?;
    for configuration in items(webhooks.as_ref()) {
        for webhook in list(&configuration["webhooks"]) {
            if list(&webhook["rules"]).iter().any(sees_decisions) {
                found.push(sentence("mutating webhook", &configuration["metadata"]["name"]));
                break;
            }
        }
    }
    // Served in v1 from 1.36 on, in older versions where the cluster has switched them on.
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let what = "list mutatingadmissionpolicies";
        let Some(policies) = get(client, &format!("{root}/{version}/mutatingadmissionpolicies"), what).await? else {
            continue;
        };
        for policy in items(Some(&policies)) {
            let name = &policy["metadata"]["name"];
            let is_ours = name.as_str().is_some_and(|name| ours.contains(name));
            let rules = list(&policy["spec"]["matchConstraints"]["resourceRules"]);
            if !is_ours && rules.iter().any(sees_decisions) {
                found.push(sentence("mutating admission policy", name));
            }
        }
        break;
    }
    Ok(found)
}

fn sentence(what: &str, name: &Value) -> String {
    format!(
        "the {what} {} sees ApprovalDecisions and could change them; exclude the group {GROUP} from it",
        name.as_str().unwrap_or_default()
    )
}

fn items(found: Option<&Value>) -> &[Value] {
    found.map_or(&[], |found| list(&found["items"]))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Whether a rule matches the creation or a change of decisions. Selectors are not looked at: they can change any time.
fn sees_decisions(rule: &Value) -> bool {
    let any = |field: &str, wanted: &[&str]| {
        list(&rule[field])
            .iter()
            .filter_map(Value::as_str)
            .any(|value| wanted.contains(&value))
    };
    any("apiGroups", &["*", GROUP])
        && any("resources", &["*", "*/*", DECISIONS, "approvaldecisions/*"])
        && any("operations", &["*", "CREATE", "UPDATE"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_that_match_decisions_in_any_way_are_seen() {
        let rule = |group: &str, resource: &str, operation: &str| json!({"apiGroups": [group], "apiVersions": ["*"], "resources": [resource], "operations": [operation]});
        for seen in [
            rule("backstep.dev", "approvaldecisions", "CREATE"),
            rule("*", "*", "*"),
            rule("*", "*/*", "UPDATE"),
        ] {
            assert!(sees_decisions(&seen), "{seen}");
        }
        for unseen in [
            rule("apps", "*", "*"),
            rule("backstep.dev", "snapshots", "CREATE"),
            rule("backstep.dev", "approvaldecisions", "DELETE"),
            json!({}),
        ] {
            assert!(!sees_decisions(&unseen), "{unseen}");
        }
    }
}
