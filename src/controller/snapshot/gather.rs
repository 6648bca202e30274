//! What is known of a Snapshot: its own object, the store, and its capture.

use kube::ResourceExt as _;

use super::{
    capture,
    queue::{CaptureFailure, Captured, Progress},
    references,
};
use crate::{
    api::{Snapshot, SnapshotSpec, SnapshotStatus, names, snapshot::SnapshotPhase},
    cluster::{Class, clock},
    controller::context::Context,
    domain::lifecycle::{self, CaptureFact, Facts, StoreFact},
    repository::Repository,
};

/// Owned observations that [`Facts`] borrow from.
pub(super) struct Observed {
    pub status: SnapshotStatus,
    pub repository: Result<Repository, (String, bool)>,
    pub capture: Capture,
    guard_missing: Vec<String>,
    namespace: String,
    last_of_lineage: bool,
    referenced: bool,
}

/// Where the capture stands.
pub(super) enum Capture {
    Unknown,
    UnderWay,
    Committed(Box<Captured>),
    Failed(CaptureFailure),
}

pub(super) async fn observe(snapshot: &Snapshot, context: &Context) -> Observed {
    let uid = snapshot.uid().unwrap_or_default();
    let status = snapshot.status.clone().unwrap_or_default();
    let repository = context.store.repository();
    let open = matches!(
        status.phase.unwrap_or_default(),
        SnapshotPhase::Pending | SnapshotPhase::Capturing
    );
    let capture = match context.captures.progress(&uid) {
        Progress::Waiting | Progress::Running => Capture::UnderWay,
        Progress::Ended(outcome) => match *outcome {
            Ok(captured) => Capture::Committed(Box::new(captured)),
            Err(failure) => Capture::Failed(failure),
        },
        // Committed by a process that did not live to say so.
        Progress::Unknown => match &repository {
            Ok(repository) if open && repository.snapshot(&uid).is_some() => {
                match capture::recall(repository, &uid).await {
                    Ok(captured) => Capture::Committed(Box::new(captured)),
                    Err(failure) => Capture::Failed(failure),
                }
            }
            _ => Capture::Unknown,
        },
    };
    let last_of_lineage = match &repository {
        Ok(repository) => repository.snapshot(&uid).is_some_and(|record| {
            repository
                .snapshots(Some(&record.lineage_key()))
                .iter()
                .all(|other| other.uid == uid)
        }),
        // Not known is never "there are others".
        Err(_) => true,
    };
    let namespace = snapshot.namespace().unwrap_or_default();
    let referenced = lifecycle::may_expire(&status, is_pinned(snapshot), last_of_lineage, clock::now())
        && references::is_needed(&context.client, &namespace, &uid, &snapshot.name_any()).await;
    Observed {
        status,
        repository,
        capture,
        guard_missing: context.guard.missing(),
        namespace,
        last_of_lineage,
        referenced,
    }
}

fn is_pinned(snapshot: &Snapshot) -> bool {
    snapshot
        .labels()
        .get(names::PINNED_LABEL)
        .is_some_and(|value| value == "true")
}

impl Observed {
    pub(super) fn facts<'a>(&'a self, snapshot: &'a Snapshot, context: &'a Context) -> Facts<'a> {
        let spec: &SnapshotSpec = &snapshot.spec;
        Facts {
            spec,
            status: &self.status,
            namespace: &self.namespace,
            operator_namespace: &context.options.namespace,
            deleting: snapshot.metadata.deletion_timestamp.is_some(),
            guard_missing: &self.guard_missing,
            store: match &self.repository {
                Ok(_) => StoreFact::Open,
                Err((why, true)) => StoreFact::Damaged(why),
                Err((why, false)) => StoreFact::Closed(why),
            },
            capture: match &self.capture {
                Capture::Unknown => CaptureFact::Unknown,
                Capture::UnderWay => CaptureFact::UnderWay,
                Capture::Committed(_) => CaptureFact::Committed,
                Capture::Failed(failure) => match failure.class {
                    Class::Transient => CaptureFact::Retryable {
                        reason: failure.reason,
                        message: &failure.message,
                    },
                    Class::Waiting | Class::Invalid | Class::Forbidden | Class::Corrupt => CaptureFact::Failed {
                        reason: failure.reason,
                        message: &failure.message,
                    },
                },
            },
            pinned: is_pinned(snapshot),
            last_of_lineage: self.last_of_lineage,
            referenced: self.referenced,
            now: clock::now(),
        }
    }
}
