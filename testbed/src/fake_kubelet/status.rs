//! The statuses that the stand-in reports: pure, so that the same Pod always gets the same next status.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{FAIL, KEEP_RUNNING, NODE, READY_AFTER, image};

const HOST_ADDRESS: &str = "10.89.0.1";

/// What to do about a Pod.
pub(super) struct Next {
    /// The status to report, or `None` where the reported one is right.
    pub status: Option<PodStatus>,
    /// When time alone will change it.
    pub look_again: Option<Duration>,
}

/// What a Pod's containers are doing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act<'a> {
    /// Running; ready or not yet.
    Run { ready: bool },
    /// Ended well.
    Succeed,
    /// Ended badly, for good.
    Fail,
    /// Ended badly and started again and again.
    Crash,
    /// Not started, for this reason.
    Wait { reason: &'a str },
}

/// The status of `pod` at `now`, given the tags that were `moved`; `address` gives a new Pod its address.
pub(super) fn next(
    pod: &Pod,
    now: Timestamp,
    moved: &BTreeMap<String, String>,
    address: impl FnOnce() -> String,
) -> Next {
    let before = pod.status.clone().unwrap_or_default();
    if matches!(before.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Next {
            status: None,
            look_again: None,
        };
    }
    let started = before.start_time.as_ref().map_or(now, |time| time.0);
    let (act, look_again) = act(pod, &before, started, now);

    let spec = pod.spec.clone().unwrap_or_default();
    let mut status = before.clone();
    status.phase = Some(
        match act {
            Act::Run { .. } | Act::Crash => "Running",
            Act::Succeed => "Succeeded",
            Act::Fail => "Failed",
            Act::Wait { .. } => "Pending",
        }
        .to_owned(),
    );
    status.start_time.get_or_insert(Time(started));
    status.host_ip = Some(HOST_ADDRESS.to_owned());
    status.host_ips = Some(vec![HostIP {
        ip: HOST_ADDRESS.to_owned(),
    }]);
    if status.pod_ip.is_none() {
        let own = if spec.host_network == Some(true) {
            HOST_ADDRESS.to_owned()
        } else {
            address()
        };
        status.pod_ips = Some(vec![PodIP { ip: own.clone() }]);
        status.pod_ip = Some(own);
    }
    let container = |container: &Container, known: &Option<Vec<ContainerStatus>>, act: Act<'_>| {
        let known = known.iter().flatten().find(|status| status.name == container.name);
        container_status(pod, container, known, act, now, moved)
    };
    let (mut sidecars, mut first): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
    for init in spec.init_containers.iter().flatten() {
        let sidecar = init.restart_policy.as_deref() == Some("Always");
        let own = match act {
            Act::Wait { .. } => act,
            _ if sidecar => Act::Run { ready: true },
            _ => Act::Succeed,
        };
        first.push(container(init, &before.init_container_statuses, own));
        sidecars.push(sidecar);
    }
    status.init_container_statuses = (!first.is_empty()).then_some(first);
    status.container_statuses = Some(
        spec.containers
            .iter()
            .map(|one| container(one, &before.container_statuses, act))
            .collect(),
    );
    set_conditions(&mut status, pod, act, now);
    Next {
        status: (status != before).then_some(status),
        look_again,
    }
}

/// What the Pod's containers do at `now`, and when time alone will change that.
fn act<'a>(pod: &'a Pod, before: &PodStatus, started: Timestamp, now: Timestamp) -> (Act<'a>, Option<Duration>) {
    let policy = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref())
        .unwrap_or("Always");
    match pod.annotations().get(FAIL).map(String::as_str) {
        Some("Error") if policy == "Never" => return (Act::Fail, None),
        Some("CrashLoopBackOff" | "Error") => return (Act::Crash, None),
        Some(reason) if !reason.is_empty() => return (Act::Wait { reason }, None),
        _ => {}
    }
    let delay = pod
        .annotations()
        .get(READY_AFTER)
        .and_then(|text| text.parse::<f64>().ok())
        .unwrap_or(0.0);
    let delay = SignedDuration::try_from_secs_f64(delay.clamp(0.0, 86_400.0)).unwrap_or_default();
    let left = delay - now.duration_since(started);
    if left.is_positive() {
        return (Act::Run { ready: false }, Some(left.unsigned_abs()));
    }
    // Seen running first, as a real one would be.
    let ran = before.phase.as_deref() == Some("Running");
    let stays = policy == "Always" || pod.annotations().get(KEEP_RUNNING).is_some_and(|value| value == "true");
    if ran && !stays {
        (Act::Succeed, None)
    } else {
        (Act::Run { ready: true }, None)
    }
}

fn container_status(
    pod: &Pod,
    container: &Container,
    known: Option<&ContainerStatus>,
    act: Act<'_>,
    now: Timestamp,
    moved: &BTreeMap<String, String>,
) -> ContainerStatus {
    let reference = container.image.clone().unwrap_or_default();
    let image = image::qualified(&reference);
    // An image is resolved when the container starts, and stays what it is while the container lives.
    let image_id = known
        .filter(|known| known.image == image && !known.image_id.is_empty())
        .map_or_else(|| image::identity(&reference, moved), |known| known.image_id.clone());
    let state_before = known.and_then(|known| known.state.clone()).unwrap_or_default();
    let started_at = state_before
        .running
        .as_ref()
        .and_then(|running| running.started_at.clone())
        .or_else(|| {
            state_before
                .terminated
                .as_ref()
                .and_then(|ended| ended.started_at.clone())
        })
        .unwrap_or(Time(now));
    let ended = |code: i32, reason: &str| {
        let finished = state_before
            .terminated
            .as_ref()
            .and_then(|ended| ended.finished_at.clone());
        ContainerStateTerminated {
            exit_code: code,
            reason: Some(reason.to_owned()),
            started_at: Some(started_at.clone()),
            finished_at: Some(finished.unwrap_or(Time(now))),
            ..ContainerStateTerminated::default()
        }
    };
    let waiting = |reason: &str, message: String| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: Some(message),
        }),
        ..ContainerState::default()
    };
    let terminated = |ended| ContainerState {
        terminated: Some(ended),
        ..ContainerState::default()
    };
    let (state, last_state) = match act {
        Act::Run { .. } => {
            let running = ContainerStateRunning {
                started_at: Some(started_at.clone()),
            };
            (
                ContainerState {
                    running: Some(running),
                    ..ContainerState::default()
                },
                None,
            )
        }
        Act::Succeed => (terminated(ended(0, "Completed")), None),
        Act::Fail => (terminated(ended(1, "Error")), None),
        Act::Crash => {
            let last = known
                .and_then(|known| known.last_state.clone())
                .filter(|last| last.terminated.is_some())
                .unwrap_or_else(|| terminated(ended(1, "Error")));
            (
                waiting(
                    "CrashLoopBackOff",
                    format!("back-off restarting failed container {}", container.name),
                ),
                Some(last),
            )
        }
        Act::Wait { reason } => (waiting(reason, format!("{reason}: {reference}")), None),
    };
    let exists = !matches!(act, Act::Wait { .. });
    let crashed = i32::from(act == Act::Crash);
    ContainerStatus {
        name: container.name.clone(),
        image: if exists { image } else { reference },
        image_id: if exists { image_id } else { String::new() },
        container_id: exists.then(|| format!("testbed://{}/{}", pod.uid().unwrap_or_default(), container.name)),
        ready: matches!(act, Act::Run { ready: true }) || (act == Act::Succeed && is_init(pod, container)),
        started: Some(matches!(act, Act::Run { .. })),
        restart_count: known.map_or(0, |known| known.restart_count).max(crashed),
        state: Some(state),
        last_state,
        ..ContainerStatus::default()
    }
}

fn is_init(pod: &Pod, container: &Container) -> bool {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.init_containers.as_ref())
        .is_some_and(|init| init.iter().any(|init| init.name == container.name))
}

fn set_conditions(status: &mut PodStatus, pod: &Pod, act: Act<'_>, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let generation = pod.metadata.generation;
    let mut set = |kind: &str, holds: bool, reason: Option<&str>| {
        let value = if holds { "True" } else { "False" };
        let known = conditions.iter().position(|condition| condition.type_ == kind);
        let since = known
            .map(|index| &conditions[index])
            .filter(|condition| condition.status == value)
            .and_then(|condition| condition.last_transition_time.clone());
        let condition = PodCondition {
            type_: kind.to_owned(),
            status: value.to_owned(),
            reason: reason.map(str::to_owned),
            last_transition_time: Some(since.unwrap_or(Time(now))),
            observed_generation: generation,
            ..PodCondition::default()
        };
        match known {
            Some(index) => conditions[index] = condition,
            None => conditions.push(condition),
        }
    };
    let ready = matches!(act, Act::Run { ready: true });
    let waits = matches!(act, Act::Wait { .. });
    let reason = match act {
        Act::Succeed => Some("PodCompleted"),
        Act::Fail => Some("PodFailed"),
        _ if ready => None,
        _ => Some("ContainersNotReady"),
    };
    let ended = matches!(act, Act::Succeed | Act::Fail);
    set("PodReadyToStartContainers", !ended, None);
    set("Initialized", !waits, waits.then_some("ContainersNotInitialized"));
    set("ContainersReady", ready, reason);
    let gates: Vec<_> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.readiness_gates.iter().flatten())
        .map(|gate| &gate.condition_type)
        .collect();
    let open = gates.iter().all(|gate| {
        let known = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        known
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == **gate && condition.status == "True")
    });
    let reason = if ready && !open {
        Some("ReadinessGatesNotReady")
    } else {
        reason
    };
    set("Ready", ready && open, reason);
}

/// A Node that is Ready and has room for thousands of Pods.
pub(super) fn node_status(version: &str, now: Timestamp) -> Value {
    let room = json!({"cpu": "4000", "memory": "16Ti", "pods": "20000", "ephemeral-storage": "16Ti"});
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": "reported by the test bed",
            "lastHeartbeatTime": Time(now), "lastTransitionTime": Time(now),
        })
    };
    json!({
        "capacity": room,
        "allocatable": room,
        "addresses": [{"type": "InternalIP", "address": HOST_ADDRESS}, {"type": "Hostname", "address": NODE}],
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID"),
            condition("Ready", "True", "KubeletReady"),
        ],
        "nodeInfo": {
            "architecture": "amd64", "operatingSystem": "linux", "osImage": "test bed", "kernelVersion": "test bed",
            "containerRuntimeVersion": "testbed://1", "kubeletVersion": version, "kubeProxyVersion": version,
            "machineID": "testbed", "systemUUID": "testbed", "bootID": "testbed",
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: &str = "2026-01-01T12:00:00Z";

    fn pod(annotations: &Value, spec: &Value) -> Pod {
        let mut spec = spec.clone();
        spec["containers"] = json!([{"name": "main", "image": "registry.example/web:1"}]);
        serde_json::from_value(json!({"metadata": {"name": "web", "annotations": annotations}, "spec": spec})).unwrap()
    }

    /// The pod with the status that follows `seconds` after noon, and whether there was a new one.
    fn later(mut pod: Pod, seconds: i64) -> (Pod, Next) {
        let now: Timestamp = NOON.parse().unwrap();
        let now = now + SignedDuration::from_secs(seconds);
        let next = next(&pod, now, &BTreeMap::new(), || "10.244.0.9".to_owned());
        if let Some(status) = &next.status {
            pod.status = Some(status.clone());
        }
        (pod, next)
    }

    fn phase(pod: &Pod) -> &str {
        pod.status.as_ref().unwrap().phase.as_deref().unwrap()
    }

    fn is(pod: &Pod, kind: &str) -> bool {
        let conditions = pod.status.as_ref().unwrap().conditions.as_ref().unwrap();
        conditions
            .iter()
            .any(|condition| condition.type_ == kind && condition.status == "True")
    }

    #[test]
    fn a_running_pod_has_nothing_more_to_report() {
        let (pod, _) = later(pod(&json!({}), &json!({})), 0);
        assert!(phase(&pod) == "Running" && is(&pod, "Ready"));
        let (_, next) = later(pod, 60);
        assert!(next.status.is_none() && next.look_again.is_none());
    }

    #[test]
    fn a_pod_that_does_not_restart_runs_and_then_succeeds_for_good() {
        let (pod, _) = later(pod(&json!({}), &json!({"restartPolicy": "Never"})), 0);
        assert_eq!(phase(&pod), "Running");
        let (pod, _) = later(pod, 1);
        assert_eq!(phase(&pod), "Succeeded");
        assert!(later(pod, 2).1.status.is_none());
    }

    #[test]
    fn a_pod_that_is_ready_later_is_looked_at_again_in_time() {
        let (pod, next) = later(pod(&json!({READY_AFTER: "2"}), &json!({})), 0);
        assert_eq!(next.look_again, Some(Duration::from_secs(2)));
        assert!(!is(&pod, "Ready"));
        assert!(is(&later(pod, 2).0, "Ready"));
    }

    #[test]
    fn a_readiness_gate_holds_the_pod_back_until_its_condition_is_true() {
        let gated = pod(
            &json!({}),
            &json!({"readinessGates": [{"conditionType": "example.com/gate"}]}),
        );
        let (mut pod, _) = later(gated, 0);
        assert!(!is(&pod, "Ready") && is(&pod, "ContainersReady"));
        let gate = PodCondition {
            type_: "example.com/gate".into(),
            status: "True".into(),
            ..PodCondition::default()
        };
        pod.status.as_mut().unwrap().conditions.as_mut().unwrap().push(gate);
        assert!(is(&later(pod, 1).0, "Ready"));
    }

    #[test]
    fn a_crashing_pod_is_steady_and_recovers() {
        let (mut pod, _) = later(pod(&json!({FAIL: "CrashLoopBackOff"}), &json!({})), 0);
        assert!(!is(&pod, "Ready"));
        assert!(
            later(pod.clone(), 5).1.status.is_none(),
            "the same failure is reported once"
        );
        pod.metadata.annotations = None;
        assert!(is(&later(pod, 6).0, "Ready"));
    }
}
