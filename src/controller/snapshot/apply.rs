//! Carries a step out.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::{
    gather::{Capture, Observed},
    queue::CaptureRequest,
    status::{self, Outcome, Then},
};
use crate::{
    api::{
        Snapshot, reasons,
        snapshot::{DeletionPolicy, SnapshotPhase},
    },
    cluster::{Result, clock},
    controller::{context::Context, store::Verdict},
    domain::lifecycle::Step,
    telemetry::metrics,
};

/// Carries `step` out and says what the status becomes.
#[allow(clippy::too_many_lines, reason = "one arm a step")]
pub(super) async fn step(
    step: Step,
    observed: Observed,
    snapshot: &Arc<Snapshot>,
    context: &Context,
) -> Result<Outcome> {
    let generation = snapshot.metadata.generation;
    let mut outcome = Outcome {
        status: observed.status,
        requeue: None,
        event: None,
        then: Then::Nothing,
    };
    let status = &mut outcome.status;
    match step {
        Step::Rest(again) => {
            if status.phase == Some(SnapshotPhase::Ready) {
                let uid = snapshot.uid().unwrap_or_default();
                match context.store.verdict(&uid) {
                    // Nobody has looked since the start: what was found before stays until somebody has.
                    Verdict::Unknown if status::is_damaged(status) => {
                        if context.store.remember_damaged(&uid) {
                            context.metrics.repository_corrupt.set(1);
                        }
                    }
                    Verdict::Unknown => {}
                    verdict => {
                        let damaged = verdict == Verdict::Damaged;
                        if status::verified(status, generation, !damaged) && damaged {
                            outcome.event = Some((true, reasons::CORRUPT, "Verify", status::DAMAGED.into()));
                        }
                    }
                }
            }
            outcome.requeue = again;
        }
        Step::Wait {
            reason,
            message,
            stalled,
            again,
        } => {
            status.phase.get_or_insert(SnapshotPhase::Pending);
            if stalled {
                status::stalled(status, generation, reason, &message);
            } else {
                status::reconciling(status, generation, reason, &message);
            }
            outcome.requeue = Some(again);
        }
        Step::Begin => {
            status.phase = Some(SnapshotPhase::Capturing);
            status.started_at.get_or_insert_with(clock::now_time);
            status::reconciling(status, generation, reasons::CAPTURING, "objects are being read");
            outcome.then = Then::Submit;
        }
        Step::Submit { retry } => {
            match retry {
                Some((reason, message)) => {
                    // The queue keeps the failed outcome until it is asked again.
                    context.captures.forget(&snapshot.uid().unwrap_or_default());
                    status::reconciling(status, generation, reason, &format!("{message}; trying again"));
                }
                None => status::reconciling(status, generation, reasons::CAPTURING, "objects are being read"),
            }
            outcome.then = Then::Submit;
            outcome.requeue = Some(Duration::from_secs(60));
        }
        Step::Finish => {
            let Capture::Committed(captured) = observed.capture else {
                // `next` finishes only what was committed.
                outcome.requeue = Some(Duration::from_secs(1));
                return Ok(outcome);
            };
            let parent = match &observed.repository {
                Ok(repository) => repository
                    .snapshots(Some(&captured.record.lineage_key()))
                    .into_iter()
                    .find(|other| Some(other.version) == captured.record.parent),
                Err(_) => None,
            };
            status::ready(status, snapshot, &captured, parent.as_deref());
            context
                .metrics
                .snapshots
                .get_or_create(&metrics::Outcome { outcome: "ready" })
                .inc();
            if let Ok(repository) = &observed.repository {
                super::maintenance::show_usage(context, repository);
            }
            let note = format!(
                "captured {} objects as version {}",
                captured.record.counts.captured, captured.record.version
            );
            outcome.event = Some((false, reasons::CAPTURED, "Capture", note));
            outcome.then = Then::Forget;
            // The expiry is looked at when the written status comes back.
        }
        Step::Fail { reason, message } => {
            status.phase = Some(SnapshotPhase::Failed);
            status.completed_at = Some(clock::now_time());
            status::stalled(status, generation, reason, &message);
            context
                .metrics
                .snapshots
                .get_or_create(&metrics::Outcome { outcome: "failed" })
                .inc();
            outcome.event = Some((true, reason, "Capture", message));
            outcome.then = Then::Forget;
        }
        Step::Expire => {
            let retained = snapshot.spec.deletion_policy == Some(DeletionPolicy::Retain);
            if !retained
                && let Ok(repository) = &observed.repository
                && let Err(error) = repository.delete(&[snapshot.uid().unwrap_or_default()]).await
            {
                tracing::warn!(%error, "the contents of an expired snapshot cannot be freed; trying again");
                outcome.requeue = Some(Duration::from_secs(60));
                return Ok(outcome);
            }
            status.phase = Some(SnapshotPhase::Expired);
            let (reason, message) = if retained {
                (reasons::RETAINED, status::RETAINED)
            } else {
                (reasons::EXPIRED, "spec.ttl is over; the contents are freed")
            };
            status::stalled(status, generation, reason, message);
            outcome.event = Some((false, reason, "Expire", message.into()));
            context.store.want_maintenance();
        }
    }
    Ok(outcome)
}

/// Asks for the capture.
pub(super) fn submit(snapshot: &Snapshot, context: &Context) {
    context.captures.submit(CaptureRequest {
        uid: snapshot.uid().unwrap_or_default(),
        name: snapshot.name_any(),
        namespace: snapshot.namespace().unwrap_or_default(),
        spec: Arc::new(snapshot.spec.clone()),
        urgent: snapshot.spec.is_of_rollback(),
    });
    context
        .metrics
        .captures_waiting
        .set(i64::try_from(context.captures.waiting()).unwrap_or(i64::MAX));
}

/// Notes that a Snapshot that was just seen will ask for its capture.
pub(super) fn expected(context: &Context, snapshot: &Snapshot) {
    let phase = snapshot
        .status
        .as_ref()
        .and_then(|status| status.phase)
        .unwrap_or_default();
    if phase == SnapshotPhase::Pending
        && let Some(uid) = snapshot.uid()
    {
        context.captures.expect(&uid);
    }
}

/// Notes that a Snapshot was seen to go; maintenance lets its contents go once that is proven.
pub(super) fn released(context: &Arc<Context>, snapshot: &Snapshot) {
    let Some(uid) = snapshot.uid() else { return };
    context.captures.forget(&uid);
    if snapshot.spec.deletion_policy == Some(DeletionPolicy::Retain) {
        return;
    }
    let created = snapshot.creation_timestamp().map_or(Timestamp::MIN, |at| at.0);
    context.store.release(uid, created);
}
