//! What happens next to a Snapshot.

use std::time::Duration;

use jiff::Timestamp;

use super::rollback;
use crate::api::{
    RollbackRequestStatus, duration, reasons,
    snapshot::{SnapshotPhase, SnapshotSpec, SnapshotStatus},
};

/// A capture that has not succeeded after this long fails: what it would capture is no longer what was asked for.
pub const CAPTURE_DEADLINE: Duration = Duration::from_secs(15 * 60);

/// What is known of a Snapshot and its surroundings.
#[derive(Clone, Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "four things that are so or not, and none rules another out"
)]
pub struct Facts<'a> {
    /// Its spec.
    pub spec: &'a SnapshotSpec,
    /// Its status.
    pub status: &'a SnapshotStatus,
    /// Namespace of the Snapshot.
    pub namespace: &'a str,
    /// Namespace of the operator.
    pub operator_namespace: &'a str,
    /// It is being deleted.
    pub deleting: bool,
    /// What is missing of CRDs and admission policies; empty is healthy.
    pub guard_missing: &'a [String],
    /// Whether the repository is there.
    pub store: StoreFact<'a>,
    /// Where its capture stands.
    pub capture: CaptureFact<'a>,
    /// Its label `backstep.dev/pinned` is `"true"`.
    pub pinned: bool,
    /// No other Ready snapshot of its lineage exists.
    pub last_of_lineage: bool,
    /// A rollback that is not finished needs it; see [`is_needed`].
    pub referenced: bool,
    /// Now.
    pub now: Timestamp,
}

/// Whether the repository is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFact<'a> {
    /// It is.
    Open,
    /// It is not, and why.
    Closed(&'a str),
    /// It is damaged as a whole.
    Damaged(&'a str),
}

/// Where a capture stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureFact<'a> {
    /// Not asked for in this process.
    Unknown,
    /// Waits or runs.
    UnderWay,
    /// Committed.
    Committed,
    /// Failed, but may succeed when tried again.
    Retryable {
        /// Reason.
        reason: &'static str,
        /// What, why, how to fix.
        message: &'a str,
    },
    /// Failed for good.
    Failed {
        /// Reason.
        reason: &'static str,
        /// What, why, how to fix.
        message: &'a str,
    },
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do until then, or until something changes.
    Rest(Option<Duration>),
    /// Something else has to happen first.
    Wait {
        /// Reason of `Reconciling`, or of `Stalled` where somebody has to act.
        reason: &'static str,
        /// What for.
        message: String,
        /// Somebody has to act.
        stalled: bool,
        /// Look again after.
        again: Duration,
    },
    /// Record the start, then ask for the capture.
    Begin,
    /// Ask for the capture (again).
    Submit {
        /// Why it is asked for again.
        retry: Option<(&'static str, String)>,
    },
    /// Publish what was committed.
    Finish,
    /// Publish why there is no capture.
    Fail {
        /// Reason.
        reason: &'static str,
        /// What, why, how to fix.
        message: String,
    },
    /// Free the contents and say so.
    Expire,
}

/// Decides, in this order:
/// 1. being deleted: nothing (contents are let go when the object is gone);
/// 2. `Failed` and `Expired` are final;
/// 3. `Ready`: expiry;
/// 4. the guard is not complete: wait;
/// 5. a Snapshot of the operator's own namespace, or a `ttl` that is no duration: fail;
/// 6. committed: finish; failed for good: fail;
/// 7. the store is not there: wait, until the deadline;
/// 8. may succeed when tried again: until the deadline;
/// 9. not begun: begin; begun but unknown to this process: ask again.
pub fn next(facts: &Facts<'_>) -> Step {
    if facts.deleting {
        return Step::Rest(None);
    }
    let phase = facts.status.phase.unwrap_or_default();
    match phase {
        SnapshotPhase::Failed | SnapshotPhase::Expired => return Step::Rest(None),
        SnapshotPhase::Ready => return expiry(facts),
        SnapshotPhase::Pending | SnapshotPhase::Capturing => {}
    }
    if !facts.guard_missing.is_empty() {
        return Step::Wait {
            reason: reasons::GUARD_UNHEALTHY,
            message: format!(
                "Backstep is not installed completely: {}",
                facts.guard_missing.join("; ")
            ),
            stalled: true,
            again: Duration::from_secs(5),
        };
    }
    if facts.namespace == facts.operator_namespace {
        return Step::Fail {
            reason: reasons::OPERATOR_NAMESPACE,
            message: format!(
                "{} is Backstep's own namespace and holds the contents of all snapshots; take Snapshots of application namespaces only",
                facts.namespace
            ),
        };
    }
    if let Some(Err(error)) = facts.spec.ttl.as_deref().map(duration::parse) {
        return Step::Fail {
            reason: reasons::INVALID_SPEC,
            message: format!("spec.ttl: {error}"),
        };
    }
    match facts.capture {
        CaptureFact::Committed => return Step::Finish,
        CaptureFact::Failed { reason, message } => {
            return Step::Fail {
                reason,
                message: message.to_owned(),
            };
        }
        CaptureFact::Unknown | CaptureFact::UnderWay | CaptureFact::Retryable { .. } => {}
    }
    let late = facts
        .status
        .started_at
        .as_ref()
        .is_some_and(|started| older_than(started.0, CAPTURE_DEADLINE, facts.now));
    match facts.store {
        StoreFact::Open => {}
        StoreFact::Damaged(why) => {
            return Step::Wait {
                reason: reasons::CORRUPT,
                message: why.to_owned(),
                stalled: true,
                again: Duration::from_secs(30),
            };
        }
        StoreFact::Closed(why) if late => {
            return Step::Fail {
                reason: reasons::STORE_UNAVAILABLE,
                message: why.to_owned(),
            };
        }
        StoreFact::Closed(why) => {
            return Step::Wait {
                reason: reasons::STORE_UNAVAILABLE,
                message: why.to_owned(),
                stalled: false,
                again: Duration::from_secs(1),
            };
        }
    }
    match (facts.capture, phase) {
        (CaptureFact::Retryable { reason, message }, _) if late => Step::Fail {
            reason,
            message: format!("{message}; tried for {} minutes", CAPTURE_DEADLINE.as_secs() / 60),
        },
        (CaptureFact::Retryable { reason, message }, _) => Step::Submit {
            retry: Some((reason, message.to_owned())),
        },
        (CaptureFact::UnderWay, _) => Step::Rest(Some(Duration::from_secs(60))),
        (CaptureFact::Unknown, SnapshotPhase::Capturing) => Step::Submit { retry: None },
        (
            CaptureFact::Unknown | CaptureFact::Committed | CaptureFact::Failed { .. },
            SnapshotPhase::Pending
            | SnapshotPhase::Capturing
            | SnapshotPhase::Ready
            | SnapshotPhase::Failed
            | SnapshotPhase::Expired,
        ) => Step::Begin,
    }
}

/// Whether one of the rollbacks that `statuses` tell of is not finished and goes back to the Snapshot, or could be undone with it.
pub fn is_needed<'a>(uid: &str, name: &str, statuses: impl IntoIterator<Item = &'a RollbackRequestStatus>) -> bool {
    statuses
        .into_iter()
        .filter(|status| !rollback::is_final(status.phase.unwrap_or_default()))
        .any(|status| {
            let target = status.resolved.as_ref().is_some_and(|to| to.uid == uid);
            // The safety snapshot is recorded by name; names of safety snapshots derive from the request's UID.
            let safety = status
                .safety_snapshot
                .as_ref()
                .is_some_and(|safety| safety.name == name);
            target || safety
        })
}

/// Whether the Snapshot is past its time and nothing but a rollback under way could keep it: the one case in which that has to be known.
pub fn may_expire(status: &SnapshotStatus, pinned: bool, last_of_lineage: bool, now: Timestamp) -> bool {
    status.phase == Some(SnapshotPhase::Ready)
        && !pinned
        && !last_of_lineage
        && status.expires_at.as_ref().is_some_and(|expires| expires.0 <= now)
}

/// A snapshot never expires while it is pinned, needed by a rollback, or the last good one of its lineage.
fn expiry(facts: &Facts<'_>) -> Step {
    let Some(expires) = facts.status.expires_at.as_ref() else {
        return Step::Rest(None);
    };
    let left = expires.0.duration_since(facts.now);
    if left.is_positive() {
        return Step::Rest(Some(left.unsigned_abs()));
    }
    if facts.referenced {
        // The end of a rollback is no event of this object.
        return Step::Rest(Some(Duration::from_secs(30)));
    }
    if facts.pinned || facts.last_of_lineage {
        // A label or another snapshot may change that without an event of this object.
        return Step::Rest(Some(Duration::from_secs(600)));
    }
    match facts.store {
        StoreFact::Open => Step::Expire,
        StoreFact::Closed(_) | StoreFact::Damaged(_) => Step::Rest(Some(Duration::from_secs(60))),
    }
}

/// What is known of a Snapshot that has contents and is not on the server.
#[derive(Clone, Copy, Debug)]
pub struct Vanished {
    /// Its deletion was seen, and it had been made at this time.
    pub seen_to_go: Option<Timestamp>,
    /// When the kind that is served now was defined.
    pub kind_since: Timestamp,
    /// For how long it has been found missing without a break, while the kind was served.
    pub missing_for: Duration,
}

/// Whether its contents may go: at once when it was deleted for itself, else after `grace`. A Snapshot that is older than its kind
/// went away with the kind that was there before, which nobody may have meant.
pub fn is_gone(vanished: &Vanished, grace: Duration) -> bool {
    vanished.seen_to_go.is_some_and(|made| vanished.kind_since <= made) || vanished.missing_for >= grace
}

fn older_than(then: Timestamp, age: Duration, now: Timestamp) -> bool {
    let passed = now.duration_since(then);
    passed.is_positive() && passed.unsigned_abs() > age
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::api::{
        reference::ResolvedSnapshot,
        rollback_request::{RollbackPhase, SnapshotVersion},
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn facts<'a>(spec: &'a SnapshotSpec, status: &'a SnapshotStatus) -> Facts<'a> {
        Facts {
            spec,
            status,
            namespace: "shop",
            operator_namespace: "backstep-system",
            deleting: false,
            guard_missing: &[],
            store: StoreFact::Open,
            capture: CaptureFact::Unknown,
            pinned: false,
            last_of_lineage: false,
            referenced: false,
            now: at(10_000),
        }
    }

    fn status(phase: SnapshotPhase) -> SnapshotStatus {
        SnapshotStatus {
            phase: Some(phase),
            started_at: Some(Time(at(9_990))),
            ..SnapshotStatus::default()
        }
    }

    #[test]
    fn a_new_snapshot_begins_and_one_left_behind_by_a_crash_is_asked_for_again() {
        let spec = SnapshotSpec::default();
        assert_eq!(next(&facts(&spec, &SnapshotStatus::default())), Step::Begin);
        assert_eq!(
            next(&facts(&spec, &status(SnapshotPhase::Capturing))),
            Step::Submit { retry: None }
        );
    }

    #[test]
    fn nothing_is_captured_while_the_installation_is_incomplete() {
        let spec = SnapshotSpec::default();
        let status = SnapshotStatus::default();
        let missing = vec!["a policy".to_owned()];
        let step = next(&Facts {
            guard_missing: &missing,
            ..facts(&spec, &status)
        });
        assert!(matches!(step, Step::Wait { stalled: true, .. }));
    }

    #[test]
    fn the_operators_own_namespace_is_refused() {
        let spec = SnapshotSpec::default();
        let status = SnapshotStatus::default();
        let step = next(&Facts {
            namespace: "backstep-system",
            ..facts(&spec, &status)
        });
        assert!(matches!(
            step,
            Step::Fail {
                reason: reasons::OPERATOR_NAMESPACE,
                ..
            }
        ));
    }

    #[test]
    fn a_capture_that_keeps_failing_is_tried_until_its_deadline() {
        let spec = SnapshotSpec::default();
        let mut status = status(SnapshotPhase::Capturing);
        let capture = CaptureFact::Retryable {
            reason: "ApiUnavailable",
            message: "busy",
        };
        assert!(matches!(
            next(&Facts {
                capture,
                ..facts(&spec, &status)
            }),
            Step::Submit { retry: Some(_) }
        ));
        status.started_at = Some(Time(at(10_000 - 3600)));
        assert!(matches!(
            next(&Facts {
                capture,
                ..facts(&spec, &status)
            }),
            Step::Fail {
                reason: "ApiUnavailable",
                ..
            }
        ));
    }

    #[test]
    fn an_expired_snapshot_stays_while_it_is_pinned_or_the_last_of_its_lineage() {
        let spec = SnapshotSpec::default();
        let mut status = status(SnapshotPhase::Ready);
        status.expires_at = Some(Time(at(9_999)));
        assert_eq!(next(&facts(&spec, &status)), Step::Expire);
        assert!(matches!(
            next(&Facts {
                pinned: true,
                ..facts(&spec, &status)
            }),
            Step::Rest(Some(_))
        ));
        assert!(matches!(
            next(&Facts {
                last_of_lineage: true,
                ..facts(&spec, &status)
            }),
            Step::Rest(Some(_))
        ));
    }

    #[test]
    fn an_expired_snapshot_stays_while_a_rollback_that_is_not_finished_needs_it() {
        let spec = SnapshotSpec::default();
        let mut status = status(SnapshotPhase::Ready);
        status.expires_at = Some(Time(at(9_999)));
        assert!(may_expire(&status, false, false, at(10_000)));
        assert!(!may_expire(&status, true, false, at(10_000)));
        assert!(!may_expire(&status, false, false, at(9_998)));
        let step = next(&Facts {
            referenced: true,
            ..facts(&spec, &status)
        });
        assert!(matches!(step, Step::Rest(Some(_))), "{step:?}");

        let request = |phase| RollbackRequestStatus {
            phase: Some(phase),
            resolved: Some(ResolvedSnapshot {
                name: "good".into(),
                uid: "u-1".into(),
                version: 1,
                digest: String::new(),
            }),
            safety_snapshot: Some(SnapshotVersion {
                name: "undo-safety".into(),
                version: 2,
            }),
            ..RollbackRequestStatus::default()
        };
        let under_way = [request(RollbackPhase::AwaitingApproval)];
        assert!(is_needed("u-1", "good", &under_way));
        assert!(is_needed("u-2", "undo-safety", &under_way));
        assert!(!is_needed("u-3", "good", &under_way), "another object of the same name");
        assert!(!is_needed("u-1", "good", &[request(RollbackPhase::Completed)]));
        assert!(!is_needed("u-1", "good", &[RollbackRequestStatus::default()]));
    }

    #[test]
    fn contents_go_at_once_after_a_deletion_but_not_after_that_of_the_kind() {
        let grace = Duration::from_secs(60);
        let deleted = Vanished {
            seen_to_go: Some(at(100)),
            kind_since: at(50),
            missing_for: Duration::ZERO,
        };
        assert!(is_gone(&deleted, grace));
        let with_its_kind = Vanished {
            kind_since: at(200),
            ..deleted
        };
        assert!(!is_gone(&with_its_kind, grace));
        let unseen = Vanished {
            seen_to_go: None,
            ..deleted
        };
        assert!(!is_gone(&unseen, grace));
        for vanished in [with_its_kind, unseen] {
            assert!(is_gone(
                &Vanished {
                    missing_for: grace,
                    ..vanished
                },
                grace
            ));
        }
    }

    #[test]
    fn final_phases_and_deletion_rest() {
        let spec = SnapshotSpec::default();
        for phase in [SnapshotPhase::Failed, SnapshotPhase::Expired] {
            assert_eq!(next(&facts(&spec, &status(phase))), Step::Rest(None));
        }
        let ready = status(SnapshotPhase::Capturing);
        assert_eq!(
            next(&Facts {
                deleting: true,
                ..facts(&spec, &ready)
            }),
            Step::Rest(None)
        );
    }
}
