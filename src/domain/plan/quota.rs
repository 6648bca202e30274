//! Whether everything that a plan adds fits the namespace's quotas. A dry run does not add usage up.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Action, Item, json, quantity, workload};
use crate::domain::object::ObjectId;

const NANO: i128 = 1_000_000_000;

/// A quota that the plan would exceed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exceeded {
    /// The `ResourceQuota`.
    pub quota: String,
    /// `requests.cpu`, `count/deployments.apps` …
    pub resource: String,
    /// What is allowed, as the quota says it.
    pub hard: String,
    /// What is used now, likewise.
    pub used: String,
    /// What the plan adds.
    pub added: String,
}

impl std::fmt::Display for Exceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            quota,
            resource,
            hard,
            used,
            added,
        } = self;
        write!(f, "{quota}: {resource} {used} of {hard} used, {added} more needed")
    }
}

/// What came of the comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Quotas that do not suffice.
    pub exceeded: Vec<Exceeded>,
    /// Quotas for some Pods only (scopes), which were not compared.
    pub scoped: Vec<String>,
    /// Pods that a quota of what Pods use does not have in its sum, by what runs them.
    pub left_out: Vec<String>,
}

/// Compares what the items of a plan add with `quotas`, raw `ResourceQuota`s. `plural` names the resource of a kind.
///
/// Deletes free nothing, as they come last. Pods count with the replicas of their workload; those of `DaemonSets` and `CronJobs` and
/// a rollout's surge do not, and are named where a quota limits what Pods use; the defaults of a `LimitRange` do not count.
pub fn compare(quotas: &[Value], items: &[Item], plural: impl Fn(&ObjectId) -> Option<String>) -> Compared {
    let mut added: BTreeMap<String, i128> = BTreeMap::new();
    for item in items {
        let wanted = item.desired.as_ref().map(|wanted| &*wanted.content);
        match (&item.action, wanted) {
            (Action::Create, Some(wanted)) => {
                if let Some(plural) = plural(&item.id) {
                    count(&mut added, &item.id, &plural);
                }
                usage(&mut added, &item.id, wanted, 1);
            }
            (Action::Update | Action::Recreate(_), Some(wanted)) => {
                usage(&mut added, &item.id, wanted, 1);
                if let Some(live) = &item.live {
                    usage(&mut added, &item.id, &live.content, -1);
                }
            }
            _ => {}
        }
    }
    let mut compared = Compared::default();
    let mut limits_pods = false;
    for quota in quotas {
        let name = json::text(quota, &["metadata", "name"]).unwrap_or_default();
        let is_scoped = json::list(quota, &["spec", "scopes"]).next().is_some()
            || json::at(quota, &["spec", "scopeSelector"]).is_some();
        if is_scoped {
            compared.scoped.push(name.to_owned());
            continue;
        }
        let hard = json::at(quota, &["spec", "hard"]).and_then(Value::as_object);
        for (resource, hard) in hard.into_iter().flatten() {
            let hard = hard.as_str().unwrap_or_default();
            limits_pods |= is_used_by_pods(resource);
            let used = json::text(quota, &["status", "used", resource]).unwrap_or("0");
            let more = added.get(canonical_name(resource)).copied().unwrap_or_default();
            let (Some(limit), Some(now)) = (quantity::nanos(hard), quantity::nanos(used)) else {
                continue;
            };
            if more > 0 && now.saturating_add(more) > limit {
                compared.exceeded.push(Exceeded {
                    quota: name.to_owned(),
                    resource: resource.clone(),
                    hard: hard.to_owned(),
                    used: used.to_owned(),
                    added: shown(more),
                });
            }
        }
    }
    if limits_pods {
        compared.left_out = items.iter().filter_map(left_out).collect();
    }
    compared
}

/// Whether Pods use it up.
fn is_used_by_pods(resource: &str) -> bool {
    let name = canonical_name(resource);
    matches!(name, "pods" | "count/pods")
        || name.starts_with("limits.")
        || (name.starts_with("requests.") && name != "requests.storage")
}

/// What of an item comes besides what [`usage`] has.
fn left_out(item: &Item) -> Option<String> {
    let wanted = &*item.desired.as_ref()?.content;
    let live = item.live.as_ref().map(|live| &*live.content);
    if !matches!(item.action, Action::Create | Action::Update) {
        return None;
    }
    let kind = (item.id.group.as_str(), item.id.kind.as_str());
    let rolls_out = live.is_some_and(|live| workload::pod_spec(&item.id, live) != workload::pod_spec(&item.id, wanted));
    let surges = json::text(wanted, &["spec", "strategy", "type"]) != Some("Recreate")
        && json::at(wanted, &["spec", "strategy", "rollingUpdate", "maxSurge"])
            .is_none_or(|surge| *surge != 0 && surge.as_str() != Some("0%"));
    match kind {
        ("batch", "CronJob") if !json::is_true(wanted, &["spec", "suspend"]) => {
            Some(format!("the Pods of {}, when it runs", item.id))
        }
        ("apps", "DaemonSet") if live.is_none() || rolls_out => Some(format!("the Pods of {}, one a node", item.id)),
        ("apps", "Deployment") if rolls_out && surges => Some(format!(
            "the Pods that {} runs beside the old ones while it rolls out",
            item.id
        )),
        _ => None,
    }
}

/// `cpu` is short for `requests.cpu`.
fn canonical_name(resource: &str) -> &str {
    match resource {
        "cpu" => "requests.cpu",
        "memory" => "requests.memory",
        "ephemeral-storage" => "requests.ephemeral-storage",
        other => other,
    }
}

fn shown(nanos: i128) -> String {
    if nanos % NANO == 0 {
        (nanos / NANO).to_string()
    } else {
        format!("{}m", nanos / (NANO / 1000) + i128::from(nanos % (NANO / 1000) != 0))
    }
}

fn add(added: &mut BTreeMap<String, i128>, resource: String, amount: i128) {
    let sum = added.entry(resource).or_default();
    *sum = sum.saturating_add(amount);
}

/// One object more.
fn count(added: &mut BTreeMap<String, i128>, id: &ObjectId, plural: &str) {
    if id.group.is_empty() && id.kind == "Pod" {
        return; // As part of what workloads run.
    }
    let dot = if id.group.is_empty() { "" } else { "." };
    add(added, format!("count/{plural}{dot}{}", id.group), NANO);
    // Kinds that were counted before `count/` was.
    if id.group.is_empty() {
        add(added, plural.to_owned(), NANO);
    }
}

/// What `content` uses, `sign` times.
fn usage(added: &mut BTreeMap<String, i128>, id: &ObjectId, content: &Value, sign: i128) {
    match (id.group.as_str(), id.kind.as_str()) {
        ("", "PersistentVolumeClaim") => {
            let size = json::text(content, &["spec", "resources", "requests", "storage"]).and_then(quantity::nanos);
            let size = sign.saturating_mul(size.unwrap_or_default());
            add(added, "requests.storage".into(), size);
            if let Some(class) = json::text(content, &["spec", "storageClassName"]) {
                let of_class = format!("{class}.storageclass.storage.k8s.io/");
                add(added, format!("{of_class}requests.storage"), size);
                add(added, format!("{of_class}persistentvolumeclaims"), sign * NANO);
            }
        }
        ("", "Service") => {
            let ports = i128::try_from(json::list(content, &["spec", "ports"]).count()).unwrap_or_default();
            let kind = json::text(content, &["spec", "type"]).unwrap_or_default();
            if kind == "LoadBalancer" {
                add(added, "services.loadbalancers".into(), sign * NANO);
            }
            if matches!(kind, "LoadBalancer" | "NodePort") {
                add(added, "services.nodeports".into(), sign * NANO * ports);
            }
        }
        _ => pods(added, id, content, sign),
    }
}

fn pods(added: &mut BTreeMap<String, i128>, id: &ObjectId, content: &Value, sign: i128) {
    let number = |path: &[&str]| i128::from(json::at(content, path).and_then(Value::as_u64).unwrap_or(1));
    let pods = match (id.group.as_str(), id.kind.as_str()) {
        ("", "Pod") => 1,
        ("apps", "Deployment" | "StatefulSet" | "ReplicaSet") | ("", "ReplicationController") => {
            number(&["spec", "replicas"])
        }
        ("batch", "Job") if !json::is_true(content, &["spec", "suspend"]) => number(&["spec", "parallelism"]),
        _ => return,
    };
    let Some(spec) = workload::pod_spec(id, content) else {
        return;
    };
    let pods = sign.saturating_mul(pods);
    for resource in ["pods", "count/pods"] {
        add(added, resource.into(), pods.saturating_mul(NANO));
    }
    for (part, amounts) in [
        ("requests", of_pod(spec, "requests")),
        ("limits", of_pod(spec, "limits")),
    ] {
        for (resource, amount) in amounts {
            add(added, format!("{part}.{resource}"), amount.saturating_mul(pods));
        }
    }
}

/// What one Pod asks for: its containers together, or its largest init container, whichever is more, and its overhead.
fn of_pod(spec: &Value, part: &str) -> BTreeMap<String, i128> {
    let of = |container: &Value| -> BTreeMap<String, i128> {
        let own = json::at(container, &["resources", part]).and_then(Value::as_object);
        let limits = json::at(container, &["resources", "limits"]).and_then(Value::as_object);
        // A request that is not said is the limit.
        let mut amounts = BTreeMap::new();
        for (resource, amount) in limits.filter(|_| part == "requests").into_iter().chain(own).flatten() {
            if let Some(amount) = amount.as_str().and_then(quantity::nanos) {
                amounts.insert(resource.clone(), amount);
            }
        }
        amounts
    };
    let mut sum: BTreeMap<String, i128> = BTreeMap::new();
    for container in json::list(spec, &["containers"]) {
        for (resource, amount) in of(container) {
            add(&mut sum, resource, amount);
        }
    }
    for container in json::list(spec, &["initContainers"]) {
        let beside = json::text(container, &["restartPolicy"]) == Some("Always");
        for (resource, amount) in of(container) {
            if beside {
                add(&mut sum, resource, amount);
            } else {
                let most = sum.entry(resource).or_default();
                *most = amount.max(*most);
            }
        }
    }
    for (resource, amount) in json::at(spec, &["overhead"])
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        if let Some(amount) = amount.as_str().and_then(quantity::nanos) {
            add(&mut sum, resource.clone(), amount);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::plan::testing::{World, deployment, everything, id};

    fn quota(name: &str, hard: &Value, used: &Value) -> Value {
        json!({"metadata": {"name": name}, "spec": {"hard": hard}, "status": {"used": used}})
    }

    fn sized(replicas: u32, resources: Value) -> Value {
        let mut body = deployment("app:1", replicas);
        body["spec"]["template"]["spec"]["containers"][0]["resources"] = resources;
        body
    }

    fn compared(now: &World, then: &World, quotas: &[Value]) -> Compared {
        let plan = now.plan(then, &everything()).unwrap();
        compare(quotas, plan.items(), |id| Some(format!("{}s", id.kind.to_lowercase())))
    }

    #[test]
    fn each_item_fits_and_all_together_do_not() {
        let mut then = World::default();
        for name in ["a", "b"] {
            then.put(
                &id("apps", "Deployment", name),
                sized(2, json!({"requests": {"cpu": "300m"}, "limits": {"memory": "1Gi"}})),
            );
        }
        let then = then.aged();
        let quotas = [quota(
            "q",
            &json!({"cpu": "1", "limits.memory": "4Gi", "requests.memory": "3Gi", "pods": "4", "count/deployments.apps": "2"}),
            &json!({"cpu": "0"}),
        )];
        let found = compared(&World::default(), &then, &quotas).exceeded;
        let names: Vec<_> = found.iter().map(|e| (e.resource.as_str(), e.added.as_str())).collect();
        assert_eq!(names, [("cpu", "1200m"), ("requests.memory", "4294967296")]);
        assert_eq!(found[0].to_string(), "q: cpu 0 of 1 used, 1200m more needed");
    }

    #[test]
    fn an_update_adds_only_the_difference_and_a_delete_frees_nothing_in_time() {
        let web = id("apps", "Deployment", "web");
        let mut then = World::default();
        then.put(&web, sized(4, json!({"requests": {"cpu": "1"}})));
        let then = then.aged();
        let mut now = then.clone();
        now.set(&web, &["spec", "replicas"], json!(3));
        now.put(
            &id("apps", "Deployment", "new"),
            sized(1, json!({"requests": {"cpu": "1"}})),
        );
        let at = |hard: &str| quota("q", &json!({"requests.cpu": hard}), &json!({"requests.cpu": "4"}));
        assert_eq!(compared(&now, &then, &[at("5")]).exceeded, []);
        assert_eq!(compared(&now, &then, &[at("4")]).exceeded.len(), 1);
    }

    #[test]
    fn claims_services_and_counts_are_compared_and_scoped_quotas_are_named() {
        let mut then = World::default();
        then.put(
            &id("", "PersistentVolumeClaim", "data"),
            json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "8Gi"}}}}),
        );
        then.put(
            &id("", "Service", "web"),
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80}, {"port": 81}]}}),
        );
        then.put(&id("", "ConfigMap", "cfg"), json!({}));
        let then = then.aged();
        let hard = json!({"requests.storage": "4Gi", "fast.storageclass.storage.k8s.io/requests.storage": "4Gi",
            "services.nodeports": "1", "configmaps": "0", "services": "1", "services.loadbalancers": "0"});
        let mut scoped = quota("scoped", &json!({"pods": "0"}), &json!({}));
        scoped["spec"]["scopes"] = json!(["BestEffort"]);
        let found = compared(&World::default(), &then, &[quota("q", &hard, &json!({})), scoped]);
        let mut names: Vec<_> = found.exceeded.iter().map(|e| e.resource.as_str()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "configmaps",
                "fast.storageclass.storage.k8s.io/requests.storage",
                "requests.storage",
                "services.nodeports"
            ]
        );
        assert_eq!(found.scoped, ["scoped"]);
    }

    #[test]
    fn what_is_not_in_the_sum_is_named_where_a_quota_limits_what_pods_use() {
        let (web, nightly) = (id("apps", "Deployment", "web"), id("batch", "CronJob", "nightly"));
        let cron = json!({"spec": {"schedule": "0 0 * * *", "jobTemplate": {"spec": {"template": {"spec": {
            "containers": [{"name": "app", "image": "app:1"}]}}}}}});
        let (mut now, mut then) = (World::default(), World::default());
        then.put(&nightly, cron);
        now.put(&web, deployment("app:2", 1));
        then.put(&web, deployment("app:1", 1));
        let plan = now.aged().plan(&then.aged(), &everything()).unwrap();
        let left_out = |hard: &Value| compare(&[quota("q", hard, &json!({}))], plan.items(), |_| None).left_out;
        for hard in [
            json!({"pods": "10"}),
            json!({"cpu": "10"}),
            json!({"limits.memory": "1Gi"}),
        ] {
            let named = left_out(&hard);
            assert_eq!(named.len(), 2, "{named:?}");
            assert!(named.iter().any(|what| what.contains("CronJob")), "{named:?}");
            assert!(
                named.iter().any(|what| what.contains("Deployment.apps/web")),
                "{named:?}"
            );
        }
        for hard in [json!({"count/configmaps": "10"}), json!({"requests.storage": "1Gi"})] {
            assert_eq!(left_out(&hard), Vec::<String>::new(), "{hard}");
        }
    }
}
