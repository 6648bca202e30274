//! Whether a rollback would grant more access than there is now.

use serde_json::Value;

use super::{Action, Item, json};
use crate::domain::object::ObjectId;

/// Whether doing `item` grants access that live does not: a Role with more rules, a binding with more subjects or another role,
/// a `NetworkPolicy` that goes, lets more through or selects other Pods. In doubt it does.
pub fn widens(item: &Item) -> bool {
    let live = item.live.as_ref().map(|live| &*live.content);
    match &item.action {
        Action::Create | Action::Update | Action::Recreate(_) => {
            let wanted = item.desired.as_ref().map(|wanted| &*wanted.content);
            wanted.is_some_and(|wanted| grants_more(&item.id, live, wanted))
        }
        // A policy only lets through what others hold back; without it nothing is held back.
        Action::Delete => is_network_policy(&item.id),
        Action::Keep(_) | Action::Skip(_) | Action::Restart(_) => false,
    }
}

fn is_network_policy(id: &ObjectId) -> bool {
    id.group == "networking.k8s.io" && id.kind == "NetworkPolicy"
}

fn grants_more(id: &ObjectId, live: Option<&Value>, wanted: &Value) -> bool {
    let now = live.unwrap_or(&Value::Null);
    match (id.group.as_str(), id.kind.as_str()) {
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => {
            wanted.get("aggregationRule") != now.get("aggregationRule")
                || json::list(wanted, &["rules"]).any(|rule| !is_covered(rule, now))
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            wanted.get("roleRef") != now.get("roleRef") || has_more(wanted, now, &["subjects"])
        }
        _ if is_network_policy(id) => lets_more_through(live, wanted),
        _ => false,
    }
}

/// Whether the list at `path` holds an item that `now` does not.
fn has_more(wanted: &Value, now: &Value, path: &[&str]) -> bool {
    json::list(wanted, path).any(|item| !json::list(now, path).any(|known| known == item))
}

fn lets_more_through(live: Option<&Value>, wanted: &Value) -> bool {
    let more_rules =
        |now: &Value| has_more(wanted, now, &["spec", "ingress"]) || has_more(wanted, now, &["spec", "egress"]);
    let Some(now) = live else {
        // It isolates its Pods; its rules add to what other policies let through to them.
        return more_rules(&Value::Null);
    };
    json::at(wanted, &["spec", "podSelector"]) != json::at(now, &["spec", "podSelector"])
        || has_more(now, wanted, &["spec", "policyTypes"])
        || more_rules(now)
}

/// Whether every single right of `rule` is in some rule of the role `held`.
fn is_covered(rule: &Value, held: &Value) -> bool {
    let urls = words(rule, "nonResourceURLs");
    let verbs = words(rule, "verbs");
    if !urls.is_empty() {
        return urls.iter().all(|url| {
            verbs.iter().all(|verb| {
                json::list(held, &["rules"]).any(|known| {
                    allows(&words(known, "verbs"), verb)
                        && words(known, "nonResourceURLs").iter().any(|pattern| {
                            pattern == url || pattern.strip_suffix('*').is_some_and(|start| url.starts_with(start))
                        })
                })
            })
        });
    }
    let names = words(rule, "resourceNames");
    // Without names a rule is about every name.
    let names: Vec<Option<&str>> = if names.is_empty() {
        vec![None]
    } else {
        names.into_iter().map(Some).collect()
    };
    let right = |group: &str, resource: &str, name: Option<&str>, verb: &str| {
        json::list(held, &["rules"]).any(|known| {
            let known_names = words(known, "resourceNames");
            allows(&words(known, "apiGroups"), group)
                && allows_resource(&words(known, "resources"), resource)
                && allows(&words(known, "verbs"), verb)
                && (known_names.is_empty() || name.is_some_and(|name| known_names.contains(&name)))
        })
    };
    words(rule, "apiGroups").iter().all(|group| {
        words(rule, "resources").iter().all(|resource| {
            names
                .iter()
                .all(|name| verbs.iter().all(|verb| right(group, resource, *name, verb)))
        })
    })
}

fn words<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    json::list(rule, &[field]).filter_map(Value::as_str).collect()
}

fn allows(known: &[&str], word: &str) -> bool {
    known.contains(&word) || known.contains(&"*")
}

/// `*/scale` is the subresource of every resource.
fn allows_resource(known: &[&str], resource: &str) -> bool {
    allows(known, resource)
        || resource
            .split_once('/')
            .is_some_and(|(_, subresource)| known.contains(&format!("*/{subresource}").as_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn more(group: &str, kind: &str, live: Option<&Value>, wanted: &Value) -> bool {
        grants_more(&ObjectId::new(group, kind, "x"), live, wanted)
    }

    fn role(resources: &[&str], verbs: &[&str]) -> Value {
        json!({"rules": [{"apiGroups": [""], "resources": resources, "verbs": verbs}]})
    }

    const RBAC: &str = "rbac.authorization.k8s.io";

    #[test]
    fn a_role_that_grants_more_than_live_widens_access() {
        let few = role(&["pods"], &["get"]);
        let many = role(&["pods", "secrets"], &["get", "list"]);
        let all = role(&["*"], &["*"]);
        assert!(more(RBAC, "Role", Some(&few), &many));
        assert!(!more(RBAC, "Role", Some(&many), &few));
        assert!(!more(RBAC, "Role", Some(&all), &many));
        assert!(more(RBAC, "Role", Some(&many), &all));
        assert!(more(RBAC, "Role", None, &few));
    }

    #[test]
    fn a_rule_split_in_two_grants_the_same() {
        let one = role(&["pods", "secrets"], &["get"]);
        let two = json!({"rules": [role(&["pods"], &["get"])["rules"][0], role(&["secrets"], &["get"])["rules"][0]]});
        assert!(!more(RBAC, "Role", Some(&two), &one) && !more(RBAC, "Role", Some(&one), &two));
    }

    #[test]
    fn names_and_urls_and_subresources_are_looked_at_one_by_one() {
        let named = |names: Value| json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "resourceNames": names, "verbs": ["get"]}]});
        assert!(more(
            RBAC,
            "Role",
            Some(&named(json!(["a"]))),
            &named(json!(["a", "b"]))
        ));
        assert!(more(RBAC, "Role", Some(&named(json!(["a"]))), &named(json!([]))));
        assert!(!more(RBAC, "Role", Some(&named(json!([]))), &named(json!(["a"]))));
        let url = |url: &str| json!({"rules": [{"nonResourceURLs": [url], "verbs": ["get"]}]});
        assert!(!more(
            RBAC,
            "ClusterRole",
            Some(&url("/healthz/*")),
            &url("/healthz/etcd")
        ));
        assert!(more(RBAC, "ClusterRole", Some(&url("/healthz")), &url("/metrics")));
        assert!(!more(
            RBAC,
            "Role",
            Some(&role(&["*/scale"], &["get"])),
            &role(&["pods/scale"], &["get"])
        ));
    }

    #[test]
    fn a_binding_with_more_subjects_or_another_role_widens_access() {
        let binding = |role: &str, subjects: &[&str]| json!({"roleRef": {"name": role}, "subjects": subjects});
        assert!(more(
            RBAC,
            "RoleBinding",
            Some(&binding("r", &["a"])),
            &binding("r", &["a", "b"])
        ));
        assert!(more(
            RBAC,
            "RoleBinding",
            Some(&binding("r", &["a"])),
            &binding("q", &["a"])
        ));
        assert!(!more(
            RBAC,
            "RoleBinding",
            Some(&binding("r", &["a", "b"])),
            &binding("r", &["a"])
        ));
    }

    #[test]
    fn a_network_policy_that_lets_more_through_widens_access() {
        let policy = |ingress: Value, types: &[&str]| json!({"spec": {"podSelector": {}, "ingress": ingress, "policyTypes": types}});
        let deny = policy(json!([]), &["Ingress"]);
        let open = policy(json!([{}]), &["Ingress"]);
        let net = "networking.k8s.io";
        assert!(more(net, "NetworkPolicy", Some(&deny), &open));
        assert!(!more(net, "NetworkPolicy", Some(&open), &deny));
        assert!(!more(net, "NetworkPolicy", None, &deny), "a new wall grants nothing");
        assert!(more(
            net,
            "NetworkPolicy",
            Some(&policy(json!([]), &["Ingress", "Egress"])),
            &deny
        ));
    }
}
