//! Waiting for an object to get where it goes.

use std::{fmt::Debug, pin::pin, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{Resource, ResourceExt as _, runtime::watcher};
use serde::de::DeserializeOwned;

use super::{Class, Error, Result, Session, reference};
use crate::api::{Snapshot, conditions, snapshot::SnapshotPhase};
use crate::cluster;

/// Waits until the snapshot `name` is Ready and returns it; `seen` is called with each state on the way.
///
/// # Errors
/// `Failed` when the operator gave up, `NotFound` when the snapshot is gone, `TimedOut` after `deadline` with what was seen last.
pub async fn ready(
    session: &Session,
    name: &str,
    deadline: Duration,
    mut seen: impl FnMut(&Snapshot),
) -> Result<Snapshot> {
    let seen = |snapshot: &Snapshot| {
        seen(snapshot);
        match verdict(snapshot) {
            Verdict::Ready => Some(Ok(snapshot.clone())),
            Verdict::Failed(error) => Some(Err(error)),
            Verdict::Working => None,
        }
    };
    until(session, name, deadline, seen, |last| timed_out(name, deadline, last)).await
}

/// Watches one object of the session's namespace until `seen` says how it ended; `late` tells what was seen last.
pub(super) async fn until<K, T>(
    session: &Session,
    name: &str,
    deadline: Duration,
    mut seen: impl FnMut(&K) -> Option<Result<T>>,
    late: impl FnOnce(Option<&K>) -> Error,
) -> Result<T>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut last: Option<K> = None;
    let kind = K::kind(&()).to_lowercase();
    let outcome = tokio::time::timeout(deadline, async {
        let mut states = pin!(watcher::watch_object(session.api_in::<K>(&session.namespace), name));
        let mut failures = 0_u32;
        while let Some(state) = states.next().await {
            match state {
                Ok(Some(object)) => {
                    if let Some(end) = seen(&object) {
                        return end;
                    }
                    last = Some(object);
                }
                Ok(None) => {
                    return Err(Error::not_found(format!("{kind} {name} is gone"))
                        .because(format!("somebody deleted it from namespace {}", session.namespace)));
                }
                Err(error) => {
                    failures += 1;
                    watch_failed(&format!("watch {kind} {name}"), failures, error)?;
                    tokio::time::sleep(Duration::from_millis(200 * u64::from(failures.min(10)))).await;
                }
            }
        }
        Err(Error::internal("the watch ended"))
    })
    .await;
    outcome.unwrap_or_else(|_| Err(late(last.as_ref())))
}

/// Errors that a watch does not get over by itself end the wait.
fn watch_failed(what: &str, failures: u32, error: watcher::Error) -> Result<()> {
    let source = match error {
        watcher::Error::InitialListFailed(source)
        | watcher::Error::WatchStartFailed(source)
        | watcher::Error::WatchFailed(source) => source,
        watcher::Error::WatchError(status) => kube::Error::Api(status),
        watcher::Error::NoResourceVersion if failures <= 10 => return Ok(()),
        watcher::Error::NoResourceVersion => {
            return Err(
                Error::internal(format!("cannot {what}")).because("the server's answers have no resourceVersion")
            );
        }
    };
    let error = cluster::Error::api(what, source);
    let lasting = matches!(error.class(), cluster::Class::Forbidden | cluster::Class::Invalid) && !error.is_expired();
    if lasting { Err(error.into()) } else { Ok(()) }
}

enum Verdict {
    Ready,
    Failed(Error),
    Working,
}

fn condition<'a>(snapshot: &'a Snapshot, type_: &str) -> Option<&'a Condition> {
    snapshot.status.as_ref()?.conditions.iter().find(|c| c.type_ == type_)
}

fn verdict(snapshot: &Snapshot) -> Verdict {
    let name = snapshot.name_any();
    let stalled = condition(snapshot, conditions::STALLED).filter(|c| c.status == "True");
    let failed = |what: String| {
        let mut error = Error::new(Class::Failed, what);
        if let Some(condition) = stalled.or_else(|| condition(snapshot, conditions::READY)) {
            error = error.because(format!("{}: {}", condition.reason, condition.message));
        }
        Verdict::Failed(error.fix(format!(
            "see `kubectl backstep snapshot show {name}`, mend the cause and take a new snapshot: a Snapshot is taken once"
        )))
    };
    match reference::phase(snapshot) {
        SnapshotPhase::Ready => Verdict::Ready,
        SnapshotPhase::Failed => failed(format!("snapshot {name} could not be taken")),
        SnapshotPhase::Expired => failed(format!("snapshot {name} has expired")),
        SnapshotPhase::Pending | SnapshotPhase::Capturing if stalled.is_some() => {
            failed(format!("snapshot {name} does not move"))
        }
        SnapshotPhase::Pending | SnapshotPhase::Capturing => Verdict::Working,
    }
}

/// What the operator says it is doing: reason and message of `Reconciling`, else of `Ready`.
pub fn progress(snapshot: &Snapshot) -> Option<String> {
    told(snapshot.status.as_ref().map_or(&[], |s| &s.conditions))
}

/// The same of conditions.
pub(super) fn told(conditions: &[Condition]) -> Option<String> {
    let find = |type_: &str| conditions.iter().find(|c| c.type_ == type_);
    let condition = find(conditions::RECONCILING)
        .filter(|c| c.status == "True")
        .or_else(|| find(conditions::READY))?;
    Some(if condition.message.is_empty() {
        condition.reason.clone()
    } else {
        format!("{}: {}", condition.reason, condition.message)
    })
}

fn timed_out(name: &str, deadline: Duration, last: Option<&Snapshot>) -> Error {
    let seen = match last {
        None => "it was never seen".to_owned(),
        Some(snapshot) if snapshot.status.is_none() => "no operator has looked at it".to_owned(),
        Some(snapshot) => {
            let phase = reference::phase(snapshot);
            progress(snapshot).map_or_else(|| format!("it is {phase:?}"), |text| format!("it is {phase:?}, {text}"))
        }
    };
    Error::new(
        Class::TimedOut,
        format!(
            "snapshot {name} is not Ready after {}",
            super::duration::kubernetes(deadline)
        ),
    )
    .because(seen)
    .fix("it goes on without this command; is the operator well? kubectl backstep doctor")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SnapshotStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn snapshot(phase: SnapshotPhase, stalled: Option<&str>) -> Snapshot {
        let mut snapshot = Snapshot::new("web", crate::api::SnapshotSpec::default());
        let conditions = stalled.map(|reason| Condition {
            type_: "Stalled".into(),
            status: "True".into(),
            reason: reason.into(),
            message: "no such kind".into(),
            observed_generation: None,
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        });
        snapshot.status = Some(SnapshotStatus {
            phase: Some(phase),
            conditions: conditions.into_iter().collect(),
            ..SnapshotStatus::default()
        });
        snapshot
    }

    #[test]
    fn a_stalled_snapshot_fails_the_wait_with_its_reason() {
        let Verdict::Failed(error) = verdict(&snapshot(SnapshotPhase::Pending, Some("NothingMatched"))) else {
            panic!("went on waiting");
        };
        assert_eq!(error.class, Class::Failed);
        assert!(error.to_string().contains("NothingMatched: no such kind"), "{error}");
    }

    #[test]
    fn a_timeout_says_what_was_seen_last() {
        let last = snapshot(SnapshotPhase::Capturing, None);
        let error = timed_out("web", Duration::from_secs(90), Some(&last));
        assert_eq!(error.class, Class::TimedOut);
        assert!(
            error.to_string().contains("1m30s") && error.to_string().contains("Capturing"),
            "{error}"
        );
        assert!(
            timed_out("web", Duration::from_secs(1), Some(&Snapshot::default()))
                .to_string()
                .contains("no operator")
        );
    }
}
