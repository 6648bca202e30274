//! What came of a finished request, kept in the repository: it outlives the request.

use std::collections::BTreeMap;

use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Preconditions},
};

use super::execute::Reporter;
use crate::{
    api::{
        ApprovalRequest, RollbackRequest, RollbackRequestStatus,
        rollback_request::{ItemFailure, TestResult},
    },
    cluster::call,
    controller::context::Context,
    domain::{
        record::{self, Record},
        rollback,
    },
    repository::Room,
};

/// What an execution has to say beyond what a status holds.
#[derive(Default)]
pub(super) struct Whole {
    failures: Vec<ItemFailure>,
    results: Vec<TestResult>,
    notes: Vec<String>,
}

impl Whole {
    /// What `reporter` has collected; nothing without one.
    pub(super) fn of(reporter: Option<&Reporter>) -> Self {
        reporter.map_or_else(Self::default, |reporter| Self {
            failures: reporter.failures(),
            results: reporter.results(),
            notes: reporter.notes(),
        })
    }
}

/// Keeps the record of `request`, which ended with `status`, and lets the oldest finished requests beyond the limit go. What
/// cannot be kept is said in a log line and an Event; the request itself still holds it.
pub(super) async fn keep(context: &Context, request: &RollbackRequest, status: &RollbackRequestStatus, whole: &Whole) {
    // A dry run changed nothing: there is nothing to remember, and its plan goes with it.
    if request.spec.dry_run {
        return;
    }
    if let Err(why) = write(context, request, status, whole).await {
        tracing::warn!(namespace = request.namespace(), name = request.name_any(), %why, "the record was not kept");
        let note = format!(
            "the record was not kept in the repository: {why}; do not delete the request before you have read it"
        );
        context.event(request, true, "RecordNotKept", "Record", &note).await;
        return;
    }
    if let Err(error) = thin(context, request).await {
        tracing::warn!(namespace = request.namespace(), %error, "finished requests beyond the limit stay for now");
    }
}

async fn write(
    context: &Context,
    request: &RollbackRequest,
    status: &RollbackRequestStatus,
    whole: &Whole,
) -> Result<(), String> {
    let repository = super::repository(context).map_err(|failure| failure.message)?;
    let namespace = request.namespace().unwrap_or_default();
    let uid = request.uid().unwrap_or_default();
    let decisions = match &status.approval {
        Some(approval) => {
            let api: Api<ApprovalRequest> = Api::namespaced(context.client.clone(), &namespace);
            let what = format!("get approvalrequest {namespace}/{}", approval.request);
            let found = call::repeat(&what, call::DEADLINE, || api.get_opt(&approval.request)).await;
            let found = found.map_err(|error| error.to_string())?;
            found.and_then(|found| found.status?.decisions).unwrap_or_default()
        }
        None => Vec::new(),
    };
    let created = request.creation_timestamp().map_or(0, |time| time.0.as_millisecond());
    let record = Record {
        namespace: namespace.clone(),
        name: request.name_any(),
        uid: uid.clone(),
        spec: request.spec.clone(),
        status: status.clone(),
        decisions,
        // Where the status has them all, they are not kept twice.
        failures: match &status.items {
            Some(items) if items.failures_omitted.is_some() => {
                whole.failures.iter().take(record::MOST_FAILURES).cloned().collect()
            }
            _ => Vec::new(),
        },
        results: match &status.verification {
            Some(verification) if verification.results_omitted.is_some() => whole.results.clone(),
            _ => Vec::new(),
        },
        notes: whole.notes.clone(),
    };
    let name = record::name(&namespace, created, &uid);
    // Written once: after a crash the same end is found again.
    let put = repository.put_document(Room::History, &name, &record).await;
    put.map(drop).map_err(|error| error.to_string())
}

/// Deletes the oldest finished requests of the namespace beyond the limit; their records stay.
async fn thin(context: &Context, request: &RollbackRequest) -> crate::cluster::Result<()> {
    let namespace = request.namespace().unwrap_or_default();
    let api: Api<RollbackRequest> = Api::namespaced(context.client.clone(), &namespace);
    let what = format!("list rollbackrequests in {namespace}");
    let every = ListParams::default();
    let all = call::repeat(&what, call::PAGE_DEADLINE, || api.list(&every)).await?;
    let finished: BTreeMap<_, _> = all
        .iter()
        .filter_map(|one| {
            let status = one.status.as_ref()?;
            rollback::is_final(status.phase?).then_some(())?;
            let ended = status.completed_at.as_ref()?.0;
            Some(((ended, one.uid()?), one.name_any()))
        })
        .collect();
    let beyond = finished.len().saturating_sub(context.options.history_limit);
    for ((_, uid), name) in finished.into_iter().take(beyond) {
        let exactly = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        let what = format!("delete the finished rollbackrequest {namespace}/{name}");
        match call::repeat(&what, call::DEADLINE, || api.delete(&name, &exactly)).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
