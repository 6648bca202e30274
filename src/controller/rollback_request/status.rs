//! The single exit: what a request's status says.

use std::{sync::Arc, time::Duration};

use kube::{Api, ResourceExt as _, api::PostParams, runtime::controller::Action};

use super::{PlanOutcome, plan::Written};
use crate::{
    api::{
        RollbackRequest, RollbackRequestStatus,
        bounded::bounded,
        conditions::{self, NewCondition},
        reasons,
        rollback_plan::PlanAction,
        rollback_request::{PlanStatus, RollbackPhase},
    },
    cluster::{Result, call, clock},
    controller::context::Context,
    domain::rollback::Step,
};

/// How long until a plan is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Most bytes of JSON that `restarts` takes.
const RESTART_BYTES: usize = 512;

/// Writes what `step` comes to, where that changes the status.
#[allow(clippy::too_many_lines, reason = "one arm a step")]
pub(super) async fn publish(
    request: &Arc<RollbackRequest>,
    step: &Step,
    planned: Option<&PlanOutcome>,
    context: &Context,
) -> Result<Action> {
    let mut status = request.status.clone().unwrap_or_default();
    let mut event = None;
    let mut requeue = Action::await_change();
    let set = |status: &mut RollbackRequestStatus, stand: Stand, reason: &str, message: &str| {
        stand.write(status, request.metadata.generation, reason, message);
    };
    match (step, planned) {
        (Step::Rest, _) => return Ok(requeue),
        (Step::Wait { reason, message, again }, _) => {
            status.phase.get_or_insert_default();
            set(&mut status, Stand::Working, reason, message);
            requeue = Action::requeue(*again);
        }
        (Step::Begin | Step::Plan, _) => {
            status.phase = Some(RollbackPhase::Planning);
            set(
                &mut status,
                Stand::Working,
                reasons::PLANNING,
                "the snapshot and what is live are compared",
            );
        }
        (Step::Refuse, _) => {
            let message = "this release plans rollbacks but does not execute them; create the request with dryRun: true to see what it would do";
            ended(&mut status, RollbackPhase::Failed);
            set(&mut status, Stand::Stuck, reasons::NOT_AVAILABLE, message);
            event = Some((true, reasons::NOT_AVAILABLE, message.to_owned()));
        }
        (Step::Cancel, _) => {
            ended(&mut status, RollbackPhase::Cancelled);
            set(
                &mut status,
                Stand::Stuck,
                reasons::CANCELLED,
                "withdrawn before anything was written",
            );
        }
        (Step::Retry, Some(Err(failure))) => {
            set(
                &mut status,
                Stand::Working,
                failure.reason,
                &format!("{failure}; trying again"),
            );
            requeue = Action::requeue(RETRY_AFTER);
        }
        (Step::Finish, Some(Ok(written))) => {
            describe(&mut status, written);
            ended(&mut status, RollbackPhase::Planned);
            let summary = &written.plan.spec.summary;
            let message = format!(
                "back to version {}: {} to create, {} to update, {} to delete, {} to restart, {} kept, {} as they were; see rollbackplan {}",
                written.resolved.version,
                summary.create,
                summary.update,
                summary.delete,
                summary.restart,
                summary.keep,
                summary.unchanged,
                written.plan.name_any()
            );
            set(&mut status, Stand::Good, reasons::PLANNED, &message);
            event = Some((false, reasons::PLANNED, message));
        }
        (Step::Fail, Some(Ok(written))) => {
            describe(&mut status, written);
            ended(&mut status, RollbackPhase::Failed);
            let only_git = written.obstacles.iter().all(|o| o.check == "GitOpsOwners");
            let reason = if only_git {
                reasons::GITOPS_MANAGED
            } else {
                reasons::PREFLIGHT_FAILED
            };
            let message: Vec<String> = written
                .obstacles
                .iter()
                .map(|o| format!("{}: {}", o.check, o.detail.clone().unwrap_or_default()))
                .collect();
            let message = message.join(" · ");
            set(&mut status, Stand::Stuck, reason, &message);
            event = Some((true, reason, message));
        }
        (Step::Fail, Some(Err(failure))) => {
            ended(&mut status, RollbackPhase::Failed);
            set(&mut status, Stand::Stuck, failure.reason, &failure.message);
            event = Some((true, failure.reason, failure.message.clone()));
        }
        // The outcome was taken between two looks; the next reconcile sees the new state.
        (Step::Retry | Step::Finish | Step::Fail, _) => return Ok(Action::requeue(Duration::from_secs(1))),
    }
    status.observed_generation = request.metadata.generation;
    if request.status.as_ref() != Some(&status) {
        let namespace = request.namespace().unwrap_or_default();
        let name = request.name_any();
        let api: Api<RollbackRequest> = Api::namespaced(context.client.clone(), &namespace);
        let mut changed = RollbackRequest::clone(request);
        changed.status = Some(status);
        let params = PostParams::default();
        let what = format!("write the status of rollbackrequest {namespace}/{name}");
        call::repeat(&what, call::DEADLINE, || api.replace_status(&name, &params, &changed)).await?;
        if let Some((warning, reason, note)) = event {
            context.event(request.as_ref(), warning, reason, "Plan", &note).await;
        }
    }
    Ok(requeue)
}

fn ended(status: &mut RollbackRequestStatus, phase: RollbackPhase) {
    status.phase = Some(phase);
    status.completed_at.get_or_insert_with(clock::now_time);
}

/// The plan in short.
fn describe(status: &mut RollbackRequestStatus, written: &Written) {
    status.resolved = Some(written.resolved.clone());
    let spec = &written.plan.spec;
    let restarts = spec
        .items
        .iter()
        .filter(|item| item.action == PlanAction::Restart)
        .map(|item| format!("{}/{}", item.object.kind, item.object.name));
    let (restarts, restarts_omitted) = bounded(restarts, RESTART_BYTES);
    status.plan = Some(PlanStatus {
        name: written.plan.name_any(),
        digest: spec.digest.clone(),
        create: spec.summary.create,
        update: spec.summary.update,
        recreate: spec.summary.recreate,
        delete: spec.summary.delete,
        keep: spec.summary.keep,
        unchanged: spec.summary.unchanged,
        restarts,
        restarts_omitted,
        risk: Some(spec.risk.clone()),
    });
}

/// How conditions stand, as kstatus reads them.
#[derive(Clone, Copy)]
enum Stand {
    Good,
    Working,
    Stuck,
}

impl Stand {
    fn write(self, status: &mut RollbackRequestStatus, generation: Option<i64>, reason: &str, message: &str) {
        let now = clock::now_time();
        let mut condition = |type_, value| {
            let new = NewCondition {
                type_,
                status: Some(value),
                reason: reason.to_owned(),
                message: message.to_owned(),
            };
            conditions::set(&mut status.conditions, &new, generation, &now);
        };
        match self {
            Self::Good => condition(conditions::READY, true),
            Self::Working => {
                condition(conditions::READY, false);
                condition(conditions::RECONCILING, true);
            }
            Self::Stuck => {
                condition(conditions::READY, false);
                condition(conditions::STALLED, true);
            }
        }
        if !matches!(self, Self::Working) {
            conditions::remove(&mut status.conditions, conditions::RECONCILING);
        }
        if !matches!(self, Self::Stuck) {
            conditions::remove(&mut status.conditions, conditions::STALLED);
        }
    }
}
