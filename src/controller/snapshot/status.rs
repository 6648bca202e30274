//! The single exit: what a Snapshot's status says.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt as _, api::PostParams, runtime::controller::Action};

use super::queue::Captured;
use crate::{
    api::{
        Snapshot, SnapshotSpec, SnapshotStatus,
        conditions::{self, NewCondition},
        duration, reasons,
        snapshot::{ObjectCounts, ParentVersion, SnapshotPhase, SnapshotSize},
    },
    cluster::{Result, call, clock},
    controller::context::Context,
    repository::SnapshotRecord,
};

/// What a step came to.
pub(super) struct Outcome {
    pub status: SnapshotStatus,
    pub requeue: Option<Duration>,
    /// Warning or not, reason, action, note.
    pub event: Option<(bool, &'static str, &'static str, String)>,
    /// What to do once the status is written.
    pub then: Then,
}

/// What follows a written status.
pub(super) enum Then {
    Nothing,
    /// Ask for the capture.
    Submit,
    /// The outcome of the capture was published.
    Forget,
}

/// Writes the status where it changed, then does what follows from it.
pub(super) async fn publish(snapshot: &Arc<Snapshot>, outcome: Outcome, context: &Context) -> Result<Action> {
    let mut status = outcome.status;
    status.observed_generation = snapshot.metadata.generation;
    if snapshot.status.as_ref() != Some(&status) {
        let namespace = snapshot.namespace().unwrap_or_default();
        let name = snapshot.name_any();
        let api: Api<Snapshot> = Api::namespaced(context.client.clone(), &namespace);
        let mut changed = Snapshot::clone(snapshot);
        changed.status = Some(status);
        let params = PostParams::default();
        let what = format!("write the status of snapshot {namespace}/{name}");
        call::repeat(&what, call::DEADLINE, || api.replace_status(&name, &params, &changed)).await?;
        if let Some((warning, reason, action, note)) = outcome.event {
            context.event(snapshot.as_ref(), warning, reason, action, &note).await;
        }
    }
    let uid = snapshot.uid().unwrap_or_default();
    match outcome.then {
        Then::Nothing => {}
        Then::Submit => super::apply::submit(snapshot, context),
        Then::Forget => context.captures.forget(&uid),
    }
    Ok(outcome.requeue.map_or_else(Action::await_change, Action::requeue))
}

fn condition(
    status: &mut SnapshotStatus,
    generation: Option<i64>,
    type_: &'static str,
    value: Option<bool>,
    reason: &str,
    message: &str,
) {
    let new = NewCondition {
        type_,
        status: value,
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    conditions::set(&mut status.conditions, &new, generation, &clock::now_time());
}

/// Work is under way or waits for something.
pub(super) fn reconciling(status: &mut SnapshotStatus, generation: Option<i64>, reason: &str, message: &str) {
    condition(status, generation, conditions::READY, Some(false), reason, message);
    condition(status, generation, conditions::RECONCILING, Some(true), reason, message);
    conditions::remove(&mut status.conditions, conditions::STALLED);
}

/// Nothing moves until somebody does something.
pub(super) fn stalled(status: &mut SnapshotStatus, generation: Option<i64>, reason: &str, message: &str) {
    condition(status, generation, conditions::READY, Some(false), reason, message);
    conditions::remove(&mut status.conditions, conditions::RECONCILING);
    condition(status, generation, conditions::STALLED, Some(true), reason, message);
}

/// What a damaged snapshot says.
pub(super) const DAMAGED: &str = "stored contents are missing or do not match their digests; nothing is restored from them. \
     `kubectl backstep snapshot verify` names what is damaged; bring it back from a backup of the store, or take a new Snapshot";

/// What an expired snapshot says whose contents stay.
pub(super) const RETAINED: &str = "spec.ttl is over; the contents are kept, as spec.deletionPolicy is Retain. Nothing is rolled back to \
     them any more; administrators can read them (kubectl backstep snapshot export), and delete them once this Snapshot is deleted \
     (kubectl backstep snapshot delete --retained)";

/// Whether the last thing said of the contents is that they are damaged.
pub(super) fn is_damaged(status: &SnapshotStatus) -> bool {
    status
        .conditions
        .iter()
        .any(|c| c.type_ == conditions::VERIFIED && c.status == "False")
}

/// Whether the contents match their digests. Returns whether that changed.
pub(super) fn verified(status: &mut SnapshotStatus, generation: Option<i64>, good: bool) -> bool {
    let (reason, message) = if good {
        (
            reasons::DIGESTS_MATCH,
            "what was written was read back and matches its digests",
        )
    } else {
        (reasons::CORRUPT, DAMAGED)
    };
    let new = NewCondition {
        type_: conditions::VERIFIED,
        status: Some(good),
        reason: reason.into(),
        message: message.into(),
    };
    conditions::set(&mut status.conditions, &new, generation, &clock::now_time())
}

/// Everything of a committed snapshot.
pub(super) fn ready(
    status: &mut SnapshotStatus,
    snapshot: &Snapshot,
    captured: &Captured,
    parent: Option<&SnapshotRecord>,
) {
    let record = &captured.record;
    let generation = snapshot.metadata.generation;
    status.phase = Some(SnapshotPhase::Ready);
    status.version = Some(to_i64(record.version));
    // A parent that is gone by now has no name to give.
    status.parent = record.parent.zip(parent).map(|(version, parent)| ParentVersion {
        name: parent.name.clone(),
        version: to_i64(version),
    });
    status.digest = Some(record.digest.to_string());
    status.objects = Some(ObjectCounts {
        captured: to_i64(record.counts.captured),
        unchanged: to_i64(record.counts.unchanged),
        skipped: captured.extras.skipped.iter().map(|s| s.count).sum(),
        failed: 0,
    });
    status.size = Some(SnapshotSize {
        logical_bytes: to_i64(record.sizes.logical),
        stored_bytes: to_i64(record.sizes.stored),
    });
    status.components.clone_from(&captured.extras.components);
    status.set_images(captured.extras.images.iter().cloned());
    status.set_skipped(captured.extras.skipped.iter().cloned());
    status.format_version = i32::try_from(record.format_version).ok();
    let completed = clock::now_time();
    status.expires_at = expires_at(&snapshot.spec, completed.0).map(Time);
    status.completed_at = Some(completed);
    let message = format!(
        "version {} of lineage {} holds {} objects",
        record.version, record.lineage, record.counts.captured
    );
    condition(
        status,
        generation,
        conditions::READY,
        Some(true),
        reasons::CAPTURED,
        &message,
    );
    conditions::remove(&mut status.conditions, conditions::RECONCILING);
    conditions::remove(&mut status.conditions, conditions::STALLED);
    verified(status, generation, true);
}

fn expires_at(spec: &SnapshotSpec, from: Timestamp) -> Option<Timestamp> {
    let ttl = duration::parse(spec.ttl.as_deref()?).ok()?;
    from.checked_add(SignedDuration::try_from(ttl).ok()?).ok()
}

fn to_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
