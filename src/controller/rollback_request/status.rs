//! The single exit: what a request's status says.

use std::{sync::Arc, time::Duration};

use kube::{Api, ResourceExt as _, api::PostParams, runtime::controller::Action};

use super::{
    PlanOutcome,
    execute::{Outcome, Report},
    history, leftovers,
    plan::Written,
    run::Ran,
};
use crate::{
    api::{
        ApprovalRequest, RollbackRequest, RollbackRequestStatus,
        approval_request::ApprovalPhase,
        bounded::bounded,
        conditions::{self, NewCondition},
        reasons,
        rollback_plan::PlanAction,
        rollback_request::{ApprovalStatus, PlanStatus, RollbackPhase},
    },
    capture::Failure,
    cluster::{Result, call, clock},
    controller::{approval_request::Asked, context::Context},
    domain::rollback::{self, Step},
    telemetry::metrics::RollbackEnded,
};

/// How long until a plan is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long until policies are looked at again where none matches.
const HOLD_FOR: Duration = Duration::from_secs(15);
/// Most bytes of JSON that `restarts` takes.
const RESTART_BYTES: usize = 512;

/// What the step is published with.
#[derive(Default)]
pub(super) struct Seen {
    /// What came of planning.
    pub planned: Option<Arc<PlanOutcome>>,
    /// The phase of the approval, as read just now.
    pub approval: Option<ApprovalPhase>,
    /// Why it came to its end.
    pub said: Option<String>,
    /// What came of asking.
    pub asked: Option<std::result::Result<Asked, Failure>>,
    /// How far the execution is.
    pub report: Option<Report>,
    /// What came of it.
    pub ran: Option<Arc<Ran>>,
    /// All that an execution that has ended has to say, for its record.
    pub whole: history::Whole,
}

/// An Event to record: whether it is a warning, reason, note.
type Note = (bool, &'static str, String);

/// What is written, and when to look again.
struct Next {
    status: RollbackRequestStatus,
    requeue: Action,
    event: Option<Note>,
}

impl Next {
    fn stand(&mut self, request: &RollbackRequest, stand: Stand, reason: &str, message: &str) {
        stand.write(&mut self.status, request.metadata.generation, reason, message);
    }

    fn approved(&mut self, request: &RollbackRequest, value: bool, reason: &str, message: &str) {
        let new = NewCondition {
            type_: conditions::APPROVED,
            status: Some(value),
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let generation = request.metadata.generation;
        conditions::set(&mut self.status.conditions, &new, generation, &clock::now_time());
    }

    fn wait(&mut self, request: &RollbackRequest, reason: &str, message: &str, again: Duration) {
        self.status.phase.get_or_insert_default();
        self.stand(request, Stand::Working, reason, message);
        self.requeue = Action::requeue(again);
    }

    /// The end, with an Event.
    fn end(&mut self, request: &RollbackRequest, phase: RollbackPhase, reason: &'static str, message: &str) {
        let good = matches!(phase, RollbackPhase::Completed | RollbackPhase::Planned);
        ended(&mut self.status, phase);
        let stand = if good { Stand::Good } else { Stand::Stuck };
        self.stand(request, stand, reason, message);
        self.event = Some((!good, reason, message.to_owned()));
    }
}

/// Writes what `step` comes to, where that changes the status.
pub(super) async fn publish(
    request: &Arc<RollbackRequest>,
    step: &Step,
    seen: &Seen,
    context: &Context,
) -> Result<Action> {
    let mut next = Next {
        status: request.status.clone().unwrap_or_default(),
        requeue: Action::await_change(),
        event: None,
    };
    if let (Some(phase), Some(approval)) = (seen.approval, &mut next.status.approval) {
        approval.state = format!("{phase:?}");
    }
    match step {
        Step::Rest | Step::Release => {}
        Step::Wait { .. } | Step::Begin | Step::Plan | Step::Retry | Step::Finish | Step::Fail | Step::Hold => {
            planning(&mut next, request, step, seen.planned.as_deref());
        }
        Step::Ask | Step::Await | Step::Again => asking(&mut next, request, step, seen),
        Step::Execute | Step::Prove | Step::Report | Step::Recheck | Step::Conclude => {
            executing(&mut next, request, step, seen);
        }
        Step::Close(phase) => close(&mut next, request, *phase, seen),
        Step::Cancel => next.end(
            request,
            RollbackPhase::Cancelled,
            reasons::CANCELLED,
            "withdrawn before anything was written",
        ),
    }
    write(request, next, seen, context).await
}

async fn write(request: &Arc<RollbackRequest>, next: Next, seen: &Seen, context: &Context) -> Result<Action> {
    let Next {
        mut status,
        requeue,
        event,
    } = next;
    status.observed_generation = request.metadata.generation;
    let phase = status.phase.unwrap_or_default();
    if request.status.as_ref() == Some(&status) {
        return Ok(requeue);
    }
    let is_final = rollback::is_final(phase);
    if is_final {
        // Before the status says that it is over: a crash in between finds the same end again.
        history::keep(context, request, &status, &seen.whole).await;
    }
    let namespace = request.namespace().unwrap_or_default();
    let name = request.name_any();
    let api: Api<RollbackRequest> = Api::namespaced(context.client.clone(), &namespace);
    let mut changed = RollbackRequest::clone(request);
    changed.status = Some(status);
    let params = PostParams::default();
    let what = format!("write the status of rollbackrequest {namespace}/{name}");
    call::repeat(&what, call::DEADLINE, || api.replace_status(&name, &params, &changed)).await?;
    count(context, request, changed.status.as_ref());
    if is_final {
        // Not before: until then an execution that goes on asks what was approved.
        leftovers::let_go(context, request, changed.status.as_ref()).await;
    }
    if let Some((warning, reason, note)) = event {
        context
            .event(request.as_ref(), warning, reason, "Rollback", &note)
            .await;
    }
    Ok(requeue)
}

/// Counts the request when it is taken up, and once more when it ends.
fn count(context: &Context, request: &RollbackRequest, written: Option<&RollbackRequestStatus>) {
    let Some(written) = written else { return };
    if request.status.is_none() && !request.spec.dry_run {
        context.metrics.rollbacks_created.inc();
    }
    let ready = written.conditions.iter().find(|c| c.type_ == conditions::READY);
    let reason = ready.map_or("", |condition| condition.reason.as_str());
    let Some(ended) = RollbackEnded::of(written.phase.unwrap_or_default(), reason) else {
        return;
    };
    context.metrics.rollbacks.get_or_create(&ended).inc();
    if let (Some(began), Some(over)) = (&written.started_at, &written.completed_at) {
        let seconds = over.0.duration_since(began.0).as_secs_f64();
        context.metrics.rollback_seconds.observe(seconds.max(0.0));
    }
}

/// Everything until the plan is there.
fn planning(next: &mut Next, request: &RollbackRequest, step: &Step, planned: Option<&PlanOutcome>) {
    match (step, planned) {
        (Step::Wait { reason, message, again }, _) => next.wait(request, reason, message, *again),
        (Step::Retry, Some(Err(failure))) => {
            next.wait(
                request,
                failure.reason,
                &format!("{failure}; trying again"),
                RETRY_AFTER,
            );
        }
        (Step::Finish, Some(Ok(written))) => {
            describe(&mut next.status, written);
            next.end(request, RollbackPhase::Planned, reasons::PLANNED, &in_short(written));
        }
        (Step::Fail, Some(Ok(written))) => {
            describe(&mut next.status, written);
            let (reason, message) = obstacles(written);
            next.end(request, RollbackPhase::Failed, reason, &message);
        }
        (Step::Fail, Some(Err(failure))) => {
            next.end(request, RollbackPhase::Failed, failure.reason, &failure.message);
        }
        (Step::Hold, Some(Ok(written))) => {
            describe(&mut next.status, written);
            let why = match &written.route {
                Err(why) => why.to_string(),
                Ok(_) => String::new(),
            };
            next.approved(request, false, reasons::NO_MATCHING_POLICY, &why);
            next.wait(request, reasons::NO_MATCHING_POLICY, &why, HOLD_FOR);
        }
        (Step::Begin | Step::Plan, _) => {
            // A plan that is made again while it waits for approval does not go back.
            if matches!(next.status.phase, None | Some(RollbackPhase::Pending)) {
                next.status.phase = Some(RollbackPhase::Planning);
            }
            let message = "the snapshot and what is live are compared";
            next.stand(request, Stand::Working, reasons::PLANNING, message);
        }
        // The outcome was taken between two looks; the next reconcile sees the new state.
        _ => next.requeue = Action::requeue(Duration::from_secs(1)),
    }
}

/// From the plan to a decision.
fn asking(next: &mut Next, request: &RollbackRequest, step: &Step, seen: &Seen) {
    if *step == Step::Await {
        next.requeue = Action::requeue(Duration::from_secs(5 * 60));
        return;
    }
    if *step == Step::Again {
        let why = match seen.ran.as_deref() {
            Some(Ran::Void(why)) => why.clone(),
            _ => seen.said.clone().unwrap_or_else(|| {
                "the approval that was asked for is void; the plan is made and asked for again".into()
            }),
        };
        next.status.approval = None;
        next.approved(request, false, reasons::SUPERSEDED, &why);
        next.stand(request, Stand::Working, reasons::PLANNING, &why);
        next.event = Some((true, reasons::SUPERSEDED, why));
        return;
    }
    let (Some(Ok(written)), Some(asked)) = (seen.planned.as_deref(), &seen.asked) else {
        next.requeue = Action::requeue(Duration::from_secs(1));
        return;
    };
    describe(&mut next.status, written);
    match asked {
        Ok(Asked::There(approval)) => awaiting(next, request, written, approval),
        Ok(Asked::Settling { until }) => {
            let left = Duration::try_from(until.duration_since(clock::now())).unwrap_or_default();
            let message = format!("the guard settles until {until}; then approval is asked for");
            next.wait(
                request,
                reasons::GUARD_UNHEALTHY,
                &message,
                left.max(Duration::from_millis(100)),
            );
        }
        Ok(Asked::Held { reason, message }) => next.wait(request, reason, message, HOLD_FOR),
        Err(failure) => next.wait(
            request,
            failure.reason,
            &format!("{failure}; trying again"),
            RETRY_AFTER,
        ),
    }
}

fn awaiting(next: &mut Next, request: &RollbackRequest, written: &Written, approval: &ApprovalRequest) {
    next.status.phase = Some(RollbackPhase::AwaitingApproval);
    let state = approval.status.as_ref().and_then(|s| s.phase).unwrap_or_default();
    next.status.approval = Some(ApprovalStatus {
        request: approval.name_any(),
        state: format!("{state:?}"),
    });
    let stages: Vec<&str> = approval.spec.stages.iter().map(|stage| stage.name.as_str()).collect();
    let message = format!(
        "{}; policy {}, stage {}: kubectl backstep approve {} -n {}",
        in_short(written),
        approval.spec.policy.name,
        stages.join(", then "),
        request.name_any(),
        request.namespace().unwrap_or_default()
    );
    next.approved(request, false, reasons::AWAITING_APPROVAL, &message);
    next.stand(request, Stand::Working, reasons::AWAITING_APPROVAL, &message);
    next.event = Some((false, reasons::AWAITING_APPROVAL, message));
}

/// From the gate to the end.
fn executing(next: &mut Next, request: &RollbackRequest, step: &Step, seen: &Seen) {
    match (step, seen.ran.as_deref()) {
        (Step::Execute, _) => {
            // A gate that is tried again says what it waits for until it opens.
            let first = !conditions::is_true(&next.status.conditions, conditions::APPROVED);
            if first && super::is_before_execution(next.status.phase.unwrap_or_default()) {
                let message = "approved; the gate is passed and the namespace taken";
                next.approved(request, true, reasons::APPROVED, "every stage has approved");
                next.stand(request, Stand::Working, reasons::EXECUTING, message);
            }
        }
        (Step::Prove, _) => {
            if let Some(Ok(written)) = seen.planned.as_deref() {
                describe(&mut next.status, written);
            }
            next.status.phase = Some(RollbackPhase::Verifying);
            let message = "nothing differs, so nothing is written; the tests are run";
            next.stand(request, Stand::Working, reasons::VERIFYING, message);
        }
        (Step::Report, _) => {
            if let Some(report) = &seen.report {
                show(next, request, report);
            }
        }
        (Step::Recheck, Some(Ran::Held { reason, message, again })) => {
            let again = (*again).min(Duration::from_secs(10 * 60));
            next.wait(request, reason, message, again);
        }
        (Step::Conclude, Some(Ran::Ended(outcome))) => conclude(next, request, outcome, seen.report.as_ref()),
        (Step::Conclude, Some(Ran::Void(why))) => {
            next.end(request, RollbackPhase::Failed, reasons::PREFLIGHT_FAILED, why);
        }
        _ => next.requeue = Action::requeue(Duration::from_secs(1)),
    }
}

/// How far the execution is; nothing before its first step.
fn show(next: &mut Next, request: &RollbackRequest, report: &Report) {
    if report.steps.is_empty() && report.verification.is_none() {
        return;
    }
    let status = &mut next.status;
    status.phase = Some(report.phase);
    status.started_at.get_or_insert_with(clock::now_time);
    status.steps.clone_from(&report.steps);
    status.items.clone_from(&report.items);
    status.verification.clone_from(&report.verification);
    if let Some(safety) = &report.safety_snapshot {
        status.safety_snapshot.get_or_insert_with(|| safety.clone());
    }
    status.result_snapshot.clone_from(&report.result_snapshot);
    let (reason, what) = if report.phase == RollbackPhase::Verifying {
        (reasons::VERIFYING, "the tests are run")
    } else {
        (reasons::EXECUTING, "the approved plan is executed")
    };
    let step = report
        .steps
        .iter()
        .find(|step| step.state == crate::api::rollback_request::StepState::Running);
    let message = step.map_or_else(|| what.to_owned(), |step| format!("{what}: {}", step.name));
    next.stand(request, Stand::Working, reason, &message);
}

fn conclude(next: &mut Next, request: &RollbackRequest, outcome: &Outcome, report: Option<&Report>) {
    if let Some(report) = report {
        show(next, request, report);
    }
    let deleted = if request.metadata.deletion_timestamp.is_some() {
        "; the request was deleted, which cancels it"
    } else {
        ""
    };
    let message = format!("{}{deleted}", outcome.message);
    next.end(request, outcome.phase, outcome.reason, &message);
    let status = &mut next.status;
    if let (Some(start), Some(end)) = (&status.started_at, &status.completed_at) {
        status.duration_seconds = Some(end.0.duration_since(start.0).as_secs().max(0));
    }
}

fn close(next: &mut Next, request: &RollbackRequest, phase: RollbackPhase, seen: &Seen) {
    let why = seen.said.as_deref().unwrap_or("its ApprovalRequest holds who and why");
    let (reason, message) = match phase {
        RollbackPhase::Expired => (
            reasons::EXPIRED,
            "it was not approved in time; make a new request (another name, or another requestId)".to_owned(),
        ),
        RollbackPhase::Cancelled => (
            reasons::CANCELLED,
            format!("its ApprovalRequest was withdrawn ({why}); nothing was written"),
        ),
        _ => (
            reasons::REJECTED,
            format!("an approver said no ({why}); nothing was written"),
        ),
    };
    next.approved(request, false, reason, &message);
    next.end(request, phase, reason, &message);
}

/// What stands in the way, in one reason and one message.
fn obstacles(written: &Written) -> (&'static str, String) {
    if let (true, Err(why)) = (written.obstacles.is_empty(), &written.route) {
        return (reasons::UNSATISFIABLE, why.to_string());
    }
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
    (reason, message.join(" · "))
}

fn in_short(written: &Written) -> String {
    let summary = &written.plan.spec.summary;
    format!(
        "back to version {}: {} to create, {} to update, {} to delete, {} to restart, {} kept, {} as they were; see rollbackplan {}",
        written.resolved.version,
        summary.create,
        summary.update,
        summary.delete,
        summary.restart,
        summary.keep,
        summary.unchanged,
        written.plan.name_any()
    )
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
