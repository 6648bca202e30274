//! How an object is doing, by the rules of kstatus: from its status alone, whatever its kind.

use std::time::Duration;

use serde_json::Value;

use crate::domain::object::ObjectId;

/// How an object is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// As its spec says.
    Current,
    /// On its way; what is missing.
    InProgress(String),
    /// It does not get there by itself; why.
    Failed(String),
    /// It says nothing that could be understood.
    Unknown,
}

impl Health {
    /// Whether nothing is left to wait for.
    pub const fn is_current(&self) -> bool {
        matches!(self, Self::Current)
    }
}

fn waits(what: impl Into<String>) -> Health {
    Health::InProgress(what.into())
}

/// The health of `object`, as the server gave it.
///
/// In this order: being deleted · a status that is older than the spec · what the kind says. A paused Deployment, and sets that
/// update on delete, are current: somebody wants them to stand still. Kinds without rules of their own go by their conditions
/// `Reconciling`, `Stalled` and `Ready`; without these they are current.
pub fn health(id: &ObjectId, object: &Value) -> Health {
    if !object.is_object() {
        return Health::Unknown;
    }
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return waits("it is being deleted");
    }
    let status = &object["status"];
    let generation = object["metadata"]["generation"].as_i64();
    if let (Some(seen), Some(wanted)) = (status["observedGeneration"].as_i64(), generation)
        && seen < wanted
    {
        return waits("its controller has not seen the change yet");
    }
    match (id.group.as_str(), id.kind.as_str()) {
        ("apps", "Deployment") => deployment(object),
        ("apps", "StatefulSet") => stateful_set(object),
        ("apps", "DaemonSet") => daemon_set(object),
        ("apps", "ReplicaSet") => replica_set(object),
        ("batch", "Job") => job(object),
        ("", "Pod") => pod(object),
        ("", "PersistentVolumeClaim") => match status["phase"].as_str() {
            Some("Bound") => Health::Current,
            phase => waits(format!("the claim is {}", phase.unwrap_or("not bound yet"))),
        },
        ("", "Service") => service(object),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition(object),
        _ => by_conditions(object),
    }
}

/// The health of `object` after a change, given what [`progress`] was in the answer to that change.
///
/// A Deployment whose rollout had failed keeps saying so after its spec changed, until something moves: those words are not about
/// the new rollout.
pub fn health_after(id: &ObjectId, progress_then: Option<&Value>, object: &Value) -> Health {
    match health(id, object) {
        Health::Failed(_) if progress_then.is_some() && progress_then == progress(id, object) => {
            waits("the rollout has not moved yet")
        }
        now => now,
    }
}

/// What a Deployment says of its rollout: its condition `Progressing`.
pub fn progress<'a>(id: &ObjectId, object: &'a Value) -> Option<&'a Value> {
    (id.kind == "Deployment").then(|| condition(object, "Progressing"))?
}

/// `progressDeadlineSeconds` of a Deployment; `None` where it has none.
pub fn progress_deadline(id: &ObjectId, object: &Value) -> Option<Duration> {
    if id.kind != "Deployment" {
        return None;
    }
    let seconds = u64::try_from(object["spec"]["progressDeadlineSeconds"].as_i64()?).ok()?;
    // The largest number stands for none, as the Deployment controller has it.
    (seconds < i32::MAX.unsigned_abs().into()).then(|| Duration::from_secs(seconds))
}

/// What changes of a rollout while it moves: how many replicas exist, are updated, ready and available, and the word on progress.
pub fn motion(id: &ObjectId, object: &Value) -> ([i64; 4], Option<Value>) {
    let counts = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"];
    (counts.map(|field| count(object, field)), progress(id, object).cloned())
}

fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == name)
}

fn is(condition: Option<&Value>, status: &str) -> bool {
    condition.is_some_and(|condition| condition["status"] == status)
}

/// `Reason: message` of a condition.
fn said(condition: Option<&Value>) -> String {
    let text = |field: &str| {
        condition
            .and_then(|condition| condition[field].as_str())
            .unwrap_or_default()
    };
    match (text("reason"), text("message")) {
        ("", message) => message.to_owned(),
        (reason, "") => reason.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

fn count(object: &Value, field: &str) -> i64 {
    object["status"][field].as_i64().unwrap_or(0)
}

fn replicas(object: &Value) -> i64 {
    object["spec"]["replicas"].as_i64().unwrap_or(1)
}

/// The first of `steps` that is not reached: how many there are, of how many, what they are.
fn first_missing(steps: &[(i64, i64, &str)]) -> Option<Health> {
    let (now, wanted, what) = steps.iter().find(|(now, wanted, _)| now < wanted)?;
    Some(waits(format!("{now} of {wanted} replicas {what}")))
}

fn deployment(object: &Value) -> Health {
    let progressing = condition(object, "Progressing");
    if progressing.is_some_and(|condition| condition["reason"] == "ProgressDeadlineExceeded") {
        return Health::Failed(said(progressing));
    }
    if object["status"]["observedGeneration"].is_null() {
        return waits("its controller has not seen it yet");
    }
    if object["spec"]["paused"] == true {
        return Health::Current;
    }
    let (wanted, all, updated) = (
        replicas(object),
        count(object, "replicas"),
        count(object, "updatedReplicas"),
    );
    if let Some(missing) = first_missing(&[(all, wanted, "exist"), (updated, wanted, "updated")]) {
        return missing;
    }
    if all > wanted {
        return waits(format!("{} old replicas still end", all - wanted));
    }
    let steps = [
        (count(object, "availableReplicas"), updated, "available"),
        (count(object, "readyReplicas"), wanted, "ready"),
    ];
    if let Some(missing) = first_missing(&steps) {
        return missing;
    }
    if is(condition(object, "Available"), "False") {
        return waits(said(condition(object, "Available")));
    }
    Health::Current
}

fn stateful_set(object: &Value) -> Health {
    let strategy = &object["spec"]["updateStrategy"];
    if strategy["type"] == "OnDelete" {
        return Health::Current;
    }
    if object["status"]["observedGeneration"].is_null() {
        return waits("its controller has not seen it yet");
    }
    let (wanted, all, updated) = (
        replicas(object),
        count(object, "replicas"),
        count(object, "updatedReplicas"),
    );
    let steps = [
        (all, wanted, "exist"),
        (count(object, "readyReplicas"), wanted, "ready"),
    ];
    if let Some(missing) = first_missing(&steps) {
        return missing;
    }
    if all > wanted {
        return waits(format!("{} replicas too many still end", all - wanted));
    }
    let partition = strategy["rollingUpdate"]["partition"].as_i64().unwrap_or(0);
    if partition > 0 {
        return first_missing(&[(updated, (wanted - partition).max(0), "updated")]).unwrap_or(Health::Current);
    }
    let status = &object["status"];
    if status["currentRevision"] != status["updateRevision"] {
        return waits(format!("{updated} of {wanted} replicas updated"));
    }
    Health::Current
}

fn daemon_set(object: &Value) -> Health {
    if object["spec"]["updateStrategy"]["type"] == "OnDelete" {
        return Health::Current;
    }
    if object["status"]["observedGeneration"].is_null() {
        return waits("its controller has not seen it yet");
    }
    let wanted = count(object, "desiredNumberScheduled");
    let steps = [
        (count(object, "currentNumberScheduled"), wanted, "scheduled"),
        (count(object, "updatedNumberScheduled"), wanted, "updated"),
        (count(object, "numberAvailable"), wanted, "available"),
        (count(object, "numberReady"), wanted, "ready"),
    ];
    first_missing(&steps).unwrap_or(Health::Current)
}

fn replica_set(object: &Value) -> Health {
    let failure = condition(object, "ReplicaFailure");
    if is(failure, "True") {
        return waits(said(failure));
    }
    if object["status"]["observedGeneration"].is_null() {
        return waits("its controller has not seen it yet");
    }
    let (wanted, all) = (replicas(object), count(object, "replicas"));
    let steps = [
        (count(object, "fullyLabeledReplicas"), wanted, "exist"),
        (count(object, "availableReplicas"), wanted, "available"),
        (count(object, "readyReplicas"), wanted, "ready"),
    ];
    match first_missing(&steps) {
        Some(missing) => missing,
        None if all > wanted => waits(format!("{} replicas too many still end", all - wanted)),
        None => Health::Current,
    }
}

/// A Job that runs is where its spec wants it; only one that has not begun is waited for.
fn job(object: &Value) -> Health {
    let failed = condition(object, "Failed");
    if is(failed, "True") {
        return Health::Failed(said(failed));
    }
    let suspended = object["spec"]["suspend"] == true;
    if suspended || is(condition(object, "Complete"), "True") || !object["status"]["startTime"].is_null() {
        return Health::Current;
    }
    waits("the Job has not started")
}

fn pod(object: &Value) -> Health {
    let ready = condition(object, "Ready");
    match object["status"]["phase"].as_str() {
        Some("Succeeded") => Health::Current,
        Some("Failed") => {
            let message = object["status"]["message"].as_str().unwrap_or("the Pod has failed");
            Health::Failed(message.to_owned())
        }
        Some("Running") if is(ready, "True") => Health::Current,
        Some("Running") => crashing(object).unwrap_or_else(|| waits("the Pod is not ready")),
        _ => {
            let scheduled = condition(object, "PodScheduled");
            if is(scheduled, "False") {
                return waits(said(scheduled));
            }
            waits("the Pod has not started")
        }
    }
}

fn crashing(pod: &Value) -> Option<Health> {
    let statuses = pod["status"]["containerStatuses"].as_array()?;
    let container = statuses
        .iter()
        .find(|container| container["state"]["waiting"]["reason"] == "CrashLoopBackOff")?;
    let name = container["name"].as_str().unwrap_or_default();
    Some(Health::Failed(format!("container {name} crashes again and again")))
}

fn service(object: &Value) -> Health {
    let spec = &object["spec"];
    if spec["type"] == "LoadBalancer" && spec["clusterIP"].as_str().unwrap_or_default().is_empty() {
        return waits("the Service has no address yet");
    }
    Health::Current
}

fn definition(object: &Value) -> Health {
    let names = condition(object, "NamesAccepted");
    if is(names, "False") {
        return Health::Failed(said(names));
    }
    let established = condition(object, "Established");
    if is(established, "True") {
        return Health::Current;
    }
    if established.is_some_and(|condition| condition["status"] == "False" && condition["reason"] != "Installing") {
        return Health::Failed(said(established));
    }
    waits("the definition is not served yet")
}

fn by_conditions(object: &Value) -> Health {
    let stalled = condition(object, "Stalled");
    if is(stalled, "True") {
        return Health::Failed(said(stalled));
    }
    let reconciling = condition(object, "Reconciling");
    if is(reconciling, "True") {
        return waits(said(reconciling));
    }
    match condition(object, "Ready") {
        Some(ready) if ready["status"] != "True" => waits(said(Some(ready))),
        _ => Health::Current,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment_at(status: &Value) -> Health {
        let object = json!({"metadata": {"generation": 3}, "spec": {"replicas": 2}, "status": status});
        health(&ObjectId::new("apps", "Deployment", "web"), &object)
    }

    fn waiting_for(health: &Health, what: &str) -> bool {
        matches!(health, Health::InProgress(said) if said.contains(what))
    }

    #[test]
    fn a_deployment_is_current_once_every_replica_is_updated_and_available() {
        let done = json!({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2,
            "readyReplicas": 2, "conditions": [{"type": "Available", "status": "True"}]});
        assert_eq!(deployment_at(&done), Health::Current);
        for (field, value, what) in [
            ("observedGeneration", 2, "not seen"),
            ("replicas", 1, "1 of 2 replicas exist"),
            ("replicas", 3, "1 old replicas"),
            ("updatedReplicas", 1, "1 of 2 replicas updated"),
            ("availableReplicas", 0, "0 of 2 replicas available"),
            ("readyReplicas", 1, "1 of 2 replicas ready"),
        ] {
            let mut status = done.clone();
            status[field] = json!(value);
            assert!(
                waiting_for(&deployment_at(&status), what),
                "{field}: {:?}",
                deployment_at(&status)
            );
        }
        assert!(waiting_for(&deployment_at(&json!({})), "not seen"));
    }

    #[test]
    fn a_rollout_over_its_deadline_has_failed_with_the_controllers_words() {
        let late = json!({"observedGeneration": 3, "conditions": [{"type": "Progressing", "status": "False",
            "reason": "ProgressDeadlineExceeded", "message": "has timed out progressing"}]});
        assert_eq!(
            deployment_at(&late),
            Health::Failed("ProgressDeadlineExceeded: has timed out progressing".into())
        );
        // The words belong to the generation that they were said of.
        let mut older = late;
        older["observedGeneration"] = json!(2);
        assert!(waiting_for(&deployment_at(&older), "not seen"));
    }

    #[test]
    fn what_was_said_of_the_rollout_before_is_not_held_against_the_new_one() {
        let id = ObjectId::new("apps", "Deployment", "web");
        let at = |time: &str| {
            json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2, "conditions": [{"type": "Progressing",
                "status": "False", "reason": "ProgressDeadlineExceeded", "lastUpdateTime": time}]}})
        };
        let (old, new) = (at("2026-01-01T00:00:00Z"), at("2026-01-01T00:10:00Z"));
        let then = progress(&id, &old);
        assert!(waiting_for(&health_after(&id, then, &old), "not moved"));
        assert!(matches!(health_after(&id, then, &new), Health::Failed(_)));
        assert!(matches!(health_after(&id, None, &new), Health::Failed(_)));
    }

    #[test]
    fn a_paused_deployment_is_where_somebody_wants_it() {
        let paused = json!({"metadata": {"generation": 1}, "spec": {"paused": true, "replicas": 2},
            "status": {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 0}});
        assert_eq!(
            health(&ObjectId::new("apps", "Deployment", "web"), &paused),
            Health::Current
        );
    }

    #[test]
    fn a_stateful_set_goes_by_its_revisions_and_its_partition() {
        let id = ObjectId::new("apps", "StatefulSet", "db");
        let set = |partition: i64, updated: i64, current: &str| {
            json!({"metadata": {"generation": 1}, "spec": {"replicas": 3,
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}},
                "status": {"observedGeneration": 1, "replicas": 3, "readyReplicas": 3, "updatedReplicas": updated,
                    "currentRevision": current, "updateRevision": "b"}})
        };
        assert_eq!(health(&id, &set(0, 3, "b")), Health::Current);
        assert!(waiting_for(&health(&id, &set(0, 1, "a")), "1 of 3"));
        assert!(waiting_for(&health(&id, &set(1, 1, "a")), "1 of 2"));
        assert_eq!(health(&id, &set(1, 2, "a")), Health::Current);
        let mut by_hand = set(0, 0, "a");
        by_hand["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
        assert_eq!(health(&id, &by_hand), Health::Current);
    }

    #[test]
    fn a_daemon_set_is_current_on_every_node_it_wants() {
        let id = ObjectId::new("apps", "DaemonSet", "log");
        let set = |updated: i64| {
            json!({"metadata": {"generation": 1}, "spec": {}, "status": {"observedGeneration": 1,
                "desiredNumberScheduled": 2, "currentNumberScheduled": 2, "updatedNumberScheduled": updated,
                "numberAvailable": 2, "numberReady": 2}})
        };
        assert_eq!(health(&id, &set(2)), Health::Current);
        assert!(waiting_for(&health(&id, &set(1)), "1 of 2 replicas updated"));
    }

    #[test]
    fn jobs_pods_and_claims_say_by_themselves_how_they_are() {
        let of = |group: &str, kind: &str, object: Value| health(&ObjectId::new(group, kind, "a"), &object);
        assert!(waiting_for(
            &of("batch", "Job", json!({"spec": {}, "status": {}})),
            "not started"
        ));
        assert_eq!(
            of(
                "batch",
                "Job",
                json!({"spec": {}, "status": {"startTime": "2026-01-01T00:00:00Z"}})
            ),
            Health::Current
        );
        let failed =
            json!({"status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}});
        assert_eq!(
            of("batch", "Job", failed),
            Health::Failed("BackoffLimitExceeded".into())
        );
        let crash = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
            "containerStatuses": [{"name": "app", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}});
        assert!(matches!(of("", "Pod", crash), Health::Failed(why) if why.contains("app")));
        assert_eq!(
            of("", "PersistentVolumeClaim", json!({"status": {"phase": "Bound"}})),
            Health::Current
        );
        assert!(waiting_for(
            &of("", "PersistentVolumeClaim", json!({"status": {"phase": "Pending"}})),
            "Pending"
        ));
    }

    #[test]
    fn other_kinds_go_by_their_conditions_and_are_current_without() {
        let id = ObjectId::new("example.dev", "Widget", "a");
        let with = |conditions: Value| {
            health(
                &id,
                &json!({"metadata": {"generation": 1}, "status": {"conditions": conditions}}),
            )
        };
        assert_eq!(health(&id, &json!({"metadata": {}})), Health::Current);
        assert_eq!(with(json!([{"type": "Ready", "status": "True"}])), Health::Current);
        assert!(waiting_for(
            &with(json!([{"type": "Ready", "status": "False", "message": "no disk"}])),
            "no disk"
        ));
        assert_eq!(
            with(
                json!([{"type": "Stalled", "status": "True", "reason": "BadSpec"}, {"type": "Ready", "status": "False"}])
            ),
            Health::Failed("BadSpec".into())
        );
        assert!(waiting_for(
            &health(&id, &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
            "deleted"
        ));
        assert_eq!(health(&id, &Value::Null), Health::Unknown);
    }
}
