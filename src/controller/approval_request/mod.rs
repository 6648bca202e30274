//! The controller of `ApprovalRequests`: counts decisions, and moves each request on as `domain/approval/course` says. Also what a
//! rollback needs of approval: the policy that applies, the question, and the facts and the latch of the gate.

mod ask;
mod gate;
mod gather;
mod status;

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::{
        controller::{Action, Config, Controller},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;

use self::gather::Observed;
pub use self::{
    ask::{Asked, Asking, ask, choose},
    gate::{ApprovalFacts, close, consume, facts, named, objection},
};
use crate::{
    api::{ApprovalDecision, ApprovalPolicy, ApprovalRequest, RollbackRequest, approval_request::ApprovalPhase},
    cluster::{self, Class, call, clock},
    controller::context::Context,
    domain::approval::{
        course::{self, Facts, Step},
        tally::deadlines,
    },
    telemetry::metrics::ReconcileError,
};

/// `ApprovalRequests` reconciled at once.
const CONCURRENCY: u16 = 8;
/// How old one without a status gets until its maker is taken for dead.
const NO_STATUS_FOR: Duration = Duration::from_secs(60);

/// What a reconcile is given.
struct Approvals {
    context: Arc<Context>,
    store: Store<ApprovalRequest>,
}

/// Runs the controller until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let all = || watcher::Config::default().page_size(500).any_semantic();
    let client = || context.client.clone();
    let controller = Controller::new(Api::<ApprovalRequest>::all(client()), all());
    let store = controller.store();
    let (of_requests, of_policies) = (store.clone(), store.clone());
    let guard = WatchStream::from_changes(context.guard.changes()).map(drop);
    controller
        .with_config(Config::default().concurrency(CONCURRENCY))
        .watches(Api::<ApprovalDecision>::all(client()), all(), |decision| {
            let namespace = decision.namespace()?;
            Some(ObjectRef::new(&decision.spec.request_ref.name).within(&namespace))
        })
        .watches(Api::<RollbackRequest>::all(client()), all(), move |request| {
            concerned(&of_requests, |approval| {
                approval.namespace() == request.namespace() && approval.spec.request_ref.name == request.name_any()
            })
        })
        .watches(Api::<ApprovalPolicy>::all(client()), all(), move |policy| {
            concerned(&of_policies, |approval| approval.spec.policy.name == policy.name_any())
        })
        .reconcile_all_on(guard)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, on_error, Arc::new(Approvals { context, store }))
        .for_each(|_| futures::future::ready(()))
        .await;
}

fn concerned(store: &Store<ApprovalRequest>, is: impl Fn(&ApprovalRequest) -> bool) -> Vec<ObjectRef<ApprovalRequest>> {
    let known = store.state();
    known
        .iter()
        .filter(|approval| is(approval))
        .map(|approval| ObjectRef::from_obj(approval.as_ref()))
        .collect()
}

async fn reconcile(seen: Arc<ApprovalRequest>, approvals: Arc<Approvals>) -> Result<Action, cluster::Error> {
    let context = &approvals.context;
    count_phases(&approvals);
    let (namespace, name) = (seen.namespace().unwrap_or_default(), seen.name_any());
    let api: Api<ApprovalRequest> = Api::namespaced(context.client.clone(), &namespace);
    let what = format!("get approvalrequest {namespace}/{name}");
    let Some(approval) = call::repeat(&what, call::DEADLINE, || api.get_opt(&name)).await? else {
        return Ok(Action::await_change());
    };
    if approval.meta().deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let Some(phase) = approval.status.as_ref().and_then(|status| status.phase) else {
        return without_status(context, &approval).await;
    };
    if course_is_over(phase) {
        return Ok(Action::await_change());
    }
    let mut observed = gather::observe(context, &approval).await?;
    let request = gather::request_fact(&approval.spec, observed.request.as_ref());
    if !gather::still_counts(phase, request) {
        return Ok(Action::await_change());
    }
    let mut step = next(&approval, phase, &observed);
    if matches!(
        step,
        Step::Move {
            to: ApprovalPhase::Approved,
            ..
        }
    ) {
        // Looked at after the decisions were listed: an epoch that is equal now was equal when they were made.
        observed.guard = context.look_at_guard().await;
        step = next(&approval, phase, &observed);
    }
    status::publish(&approval, &observed, step, context).await
}

/// Final, and no execution is under way that an objection could cancel.
fn course_is_over(phase: ApprovalPhase) -> bool {
    phase != ApprovalPhase::Consumed && crate::domain::approval::state::is_final(phase)
}

fn next(approval: &ApprovalRequest, phase: ApprovalPhase, observed: &Observed) -> Step {
    let spec = &approval.spec;
    let status = approval.status.as_ref();
    let created = approval
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(observed.now, |time| time.0);
    let ends = deadlines(&spec.stages, created, spec.expires_at.0);
    let command = format!(
        "kubectl backstep approve {} -n {}",
        spec.request_ref.name,
        approval.namespace().unwrap_or_default()
    );
    course::next(&Facts {
        phase,
        expires: spec.expires_at.0,
        over: status
            .and_then(|status| status.approval_expires_at.as_ref())
            .map(|time| time.0),
        epoch: status.and_then(|status| status.guard_epoch.as_deref()),
        seal_is_ours: observed.seal_is_ours,
        guard: status::guard_fact(observed),
        request: gather::request_fact(spec, observed.request.as_ref()),
        policy: gather::policy_fact(spec, observed.policy.as_ref()),
        stages: &spec.stages,
        policy_name: &spec.policy.name,
        tally: observed.tally.as_ref().ok(),
        ends: &ends,
        command: &command,
        now: observed.now,
    })
}

/// Created, but whoever created it has not recorded the guard epoch: without that nothing counts.
async fn without_status(context: &Context, approval: &ApprovalRequest) -> Result<Action, cluster::Error> {
    let created = approval
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(clock::now(), |time| time.0);
    let age = Duration::try_from(created.duration_until(clock::now())).unwrap_or_default();
    if age < NO_STATUS_FOR {
        return Ok(Action::requeue(NO_STATUS_FOR.saturating_sub(age)));
    }
    let message = "it was created without a guard epoch, so nothing counts on it; it is asked for again";
    ask::void(context, approval, message).await?;
    Ok(Action::await_change())
}

/// Keeps the gauges up to date.
fn count_phases(approvals: &Approvals) {
    let (mut pending, mut overdue) = (0_i64, 0_i64);
    for approval in approvals.store.state() {
        match approval.status.as_ref().and_then(|status| status.phase) {
            Some(ApprovalPhase::Pending) => pending += 1,
            Some(ApprovalPhase::ReviewOverdue) => overdue += 1,
            _ => {}
        }
    }
    approvals.context.metrics.approvals_pending.set(pending);
    approvals.context.metrics.reviews_overdue.set(overdue);
}

#[allow(clippy::needless_pass_by_value)]
fn on_error(approval: Arc<ApprovalRequest>, error: &cluster::Error, approvals: Arc<Approvals>) -> Action {
    let class = error.class();
    let labels = ReconcileError {
        kind: "ApprovalRequest",
        class: class.label(),
    };
    approvals.context.metrics.reconcile_errors.get_or_create(&labels).inc();
    if !error.is_conflict() && !error.is_not_found() {
        tracing::warn!(namespace = approval.namespace(), name = approval.name_any(), class = class.label(), %error, "reconcile failed");
    }
    match class {
        Class::Transient => Action::requeue(Duration::from_secs(1)),
        Class::Waiting | Class::Invalid | Class::Forbidden | Class::Corrupt => Action::requeue(Duration::from_secs(30)),
    }
}
