//! The controller of `RollbackRequests`. This release makes, rates and checks plans (`dryRun: true`); other requests are told
//! that execution is not available.

mod gather;
mod plan;
mod preflight;
mod status;

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use kube::{
    Api, ResourceExt as _,
    runtime::{
        controller::{Action, Config, Controller},
        reflector::ObjectRef,
        watcher,
    },
};
use tokio::sync::{Mutex, mpsc::UnboundedReceiver};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{RollbackRequest, reasons},
    capture::{Catalog, Failure},
    cluster::{self, Class},
    controller::{
        context::Context,
        tasks::{Progress, Tasks},
    },
    domain::rollback::{self, Facts, PlanFact, Step},
    repository,
    telemetry::metrics::ReconcileError,
};

/// Requests reconciled at once.
const CONCURRENCY: u16 = 8;
/// Plans made at once: each holds the workloads and the differences of a namespace.
pub const PLANS_AT_ONCE: usize = 2;

/// What came of planning.
type PlanOutcome = Result<plan::Written, Failure>;

struct Planner {
    context: Arc<Context>,
    catalog: Arc<Mutex<Catalog>>,
    plans: Tasks<PlanOutcome>,
}

/// Runs the controller until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let (plans, ended): (Tasks<PlanOutcome>, UnboundedReceiver<_>) = Tasks::new(PLANS_AT_ONCE);
    let api: Api<RollbackRequest> = Api::all(context.client.clone());
    let planner = Arc::new(Planner {
        context,
        catalog: Arc::default(),
        plans,
    });
    let ended = UnboundedReceiverStream::new(ended).map(|(namespace, name)| ObjectRef::new(&name).within(&namespace));
    Controller::new(api, watcher::Config::default().page_size(500).any_semantic())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(ended)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, on_error, planner)
        .for_each(|_| futures::future::ready(()))
        .await;
}

async fn reconcile(request: Arc<RollbackRequest>, planner: Arc<Planner>) -> Result<Action, cluster::Error> {
    let uid = request.uid().unwrap_or_default();
    let progress = planner.plans.progress(&uid);
    let guard_missing = planner.context.guard.missing();
    let facts = Facts {
        phase: request.status.as_ref().and_then(|s| s.phase).unwrap_or_default(),
        deleting: request.metadata.deletion_timestamp.is_some(),
        cancelled: request.spec.cancel,
        suspended: request.spec.suspend,
        dry_run: request.spec.dry_run,
        guard_missing: &guard_missing,
        plan: match &progress {
            Progress::Unknown => PlanFact::Unknown,
            Progress::Running => PlanFact::UnderWay,
            Progress::Ended(outcome) => match outcome.as_ref() {
                Ok(written) if written.obstacles.is_empty() => PlanFact::Clear,
                Ok(_) => PlanFact::Obstructed,
                Err(failure) if failure.class == Class::Transient => PlanFact::Retryable,
                Err(_) => PlanFact::Failed,
            },
        },
    };
    let step = rollback::next(&facts);
    let outcome = match &progress {
        Progress::Ended(outcome) => Some(Arc::clone(outcome)),
        Progress::Unknown | Progress::Running => None,
    };
    let requeue = status::publish(&request, &step, outcome.as_deref(), &planner.context).await?;
    match step {
        Step::Begin | Step::Plan => {
            let (worker, job) = (Arc::clone(&planner), Arc::clone(&request));
            planner.plans.start(
                &uid,
                request.namespace().unwrap_or_default(),
                request.name_any(),
                async move { plan::make(&worker.context, &worker.catalog, &job).await },
            );
        }
        Step::Retry | Step::Finish | Step::Fail => planner.plans.forget(&uid),
        Step::Rest | Step::Wait { .. } | Step::Refuse | Step::Cancel => {}
    }
    Ok(requeue)
}

#[allow(clippy::needless_pass_by_value)]
fn on_error(request: Arc<RollbackRequest>, error: &cluster::Error, planner: Arc<Planner>) -> Action {
    let class = error.class();
    let labels = ReconcileError {
        kind: "RollbackRequest",
        class: class.label(),
    };
    planner.context.metrics.reconcile_errors.get_or_create(&labels).inc();
    if !error.is_conflict() && !error.is_not_found() {
        tracing::warn!(namespace = request.namespace(), name = request.name_any(), class = class.label(), %error, "reconcile failed");
    }
    match class {
        Class::Transient => Action::requeue(Duration::from_secs(1)),
        Class::Waiting | Class::Invalid | Class::Forbidden | Class::Corrupt => Action::requeue(Duration::from_secs(30)),
    }
}

/// What a repository's error means for a plan.
fn store_failure(error: &repository::Error) -> Failure {
    let (class, reason) = match error {
        repository::Error::Corrupt { .. } => (Class::Corrupt, reasons::CORRUPT),
        repository::Error::SnapshotNotFound(_) => (Class::Invalid, reasons::TARGET_NOT_FOUND),
        repository::Error::NewerFormat { .. } => (Class::Invalid, reasons::NEWER_FORMAT),
        error if error.is_transient() => (Class::Transient, reasons::STORE_UNAVAILABLE),
        _ => (Class::Invalid, reasons::STORE_UNAVAILABLE),
    };
    Failure::new(class, reason, error.to_string())
}
