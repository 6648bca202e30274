//! The controller of `RollbackRequests`: plan, ask, pass the gate, execute, record.

mod dry_runs;
mod execute;
mod gate;
mod gather;
mod history;
mod hold;
pub mod leftovers;
mod live;
mod plan;
mod preflight;
mod run;
mod status;
mod target;
mod verify;
mod written;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as Lock, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use kube::{
    Api, ResourceExt as _,
    runtime::{
        controller::{Action, Config, Controller},
        reflector::ObjectRef,
        watcher,
    },
};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{
        ApprovalRequest, RollbackPlan, RollbackRequest, conditions, duration, reasons, rollback_request::RollbackPhase,
    },
    capture::{Catalog, Failure},
    cluster::{self, Class, call, clock},
    controller::{
        approval_request,
        context::Context,
        tasks::{Progress, Tasks},
    },
    domain::{
        approval::NoRoute,
        rollback::{self, ApprovalFact, ExecutionFact, Facts, PlanFact, Step},
    },
    repository::{self, Repository},
    telemetry::metrics::ReconcileError,
};

use execute::{Proof, Reporter};
use run::{EXECUTIONS_AT_ONCE, Queue, Ran, Running};

/// Requests reconciled at once.
const CONCURRENCY: u16 = 8;
/// Plans made at once: each holds the workloads and the differences of a namespace.
pub const PLANS_AT_ONCE: usize = 2;

/// How long a comparison by which nothing differs is taken as the state of now.
const FRESH: Duration = Duration::from_secs(10);

/// What came of planning.
type PlanOutcome = Result<plan::Written, Failure>;

struct Planner {
    context: Arc<Context>,
    catalog: Arc<Mutex<Catalog>>,
    plans: Tasks<PlanOutcome>,
    executions: Tasks<Ran>,
    running: Lock<HashMap<String, Running>>,
    queue: Queue,
    read: Arc<gather::ReadBefore>,
    /// Namespace and name of a request that is to be looked at.
    changed: mpsc::UnboundedSender<(String, String)>,
}

/// Runs the controller until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let (changed, looks) = mpsc::unbounded_channel();
    let api: Api<RollbackRequest> = Api::all(context.client.clone());
    let approvals: Api<ApprovalRequest> = Api::all(context.client.clone());
    let plans: Api<RollbackPlan> = Api::all(context.client.clone());
    let planner = Arc::new(Planner {
        plans: Tasks::new(PLANS_AT_ONCE, changed.clone()),
        executions: Tasks::new(EXECUTIONS_AT_ONCE, changed.clone()),
        context,
        catalog: Arc::default(),
        running: Lock::default(),
        queue: Queue::default(),
        read: Arc::default(),
        changed,
    });
    let looks = UnboundedReceiverStream::new(looks).map(|(namespace, name)| ObjectRef::new(&name).within(&namespace));
    let watch = || watcher::Config::default().page_size(500).any_semantic();
    Controller::new(api, watch())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .owns(approvals, watch())
        .owns(plans, watch())
        .reconcile_on(looks)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, on_error, planner)
        .for_each(|_| futures::future::ready(()))
        .await;
}

async fn reconcile(request: Arc<RollbackRequest>, planner: Arc<Planner>) -> Result<Action, cluster::Error> {
    let uid = request.uid().unwrap_or_default();
    let phase = request.status.as_ref().and_then(|s| s.phase).unwrap_or_default();
    if rollback::is_final(phase) {
        hold::release(&planner.context, &request).await?;
        return Ok(Action::await_change());
    }
    let plan = planner.plans.progress(&uid);
    let executed = planner.executions.progress(&uid);
    let guard_missing = planner.context.guard.missing();
    let Known {
        fact: approval,
        objection,
        said,
    } = approval_of(&request, &planner.context).await?;
    let facts = Facts {
        phase,
        deleting: request.metadata.deletion_timestamp.is_some(),
        cancelled: request.spec.cancel,
        suspended: request.spec.suspend,
        dry_run: request.spec.dry_run,
        overdue: overdue(&request),
        guard_missing: &guard_missing,
        plan: plan_fact(&plan),
        approval,
        execution: execution_fact(&executed),
    };
    let step = rollback::next(&facts);
    let running = planner.running().get(&uid).map(|running| running.report.clone());
    let ends = step == Step::Conclude;
    let mut seen = status::Seen {
        planned: taken(&plan),
        approval: match approval {
            ApprovalFact::Is(phase) => Some(phase),
            ApprovalFact::None | ApprovalFact::Gone => None,
        },
        said,
        asked: None,
        ran: taken(&executed),
        report: running.as_ref().map(Reporter::shown),
        whole: history::Whole::of(running.as_ref().filter(|_| ends)),
    };
    planner.before(&request, &step, &mut seen).await?;
    if step == Step::Report {
        planner.pass_on(&request, objection.as_deref());
    }
    let requeue = status::publish(&request, &step, &seen, &planner.context).await?;
    if step == Step::Again {
        hold::release(&planner.context, &request).await?;
        leftovers::let_go(&planner.context, &request, request.status.as_ref()).await;
    }
    planner.after(&request, &step);
    if step == Step::Release {
        hold::release(&planner.context, &request).await?;
    }
    Ok(requeue)
}

impl Planner {
    fn running(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has to be done before the status says so.
    async fn before(
        &self,
        request: &RollbackRequest,
        step: &Step,
        seen: &mut status::Seen,
    ) -> Result<(), cluster::Error> {
        let context = &self.context;
        match step {
            Step::Cancel => {
                if let Some(approval) = request.status.as_ref().and_then(|s| s.approval.as_ref()) {
                    let why = "the RollbackRequest was cancelled";
                    self.close(request, &approval.request, rollback::ApprovalPhase::Cancelled, why)
                        .await?;
                }
            }
            Step::Again => {
                if let Some(approval) = request.status.as_ref().and_then(|s| s.approval.as_ref()) {
                    let why = match seen.ran.as_deref() {
                        Some(Ran::Void(why)) => why.as_str(),
                        _ => "the plan is made and asked for again",
                    };
                    self.close(request, &approval.request, rollback::ApprovalPhase::Superseded, why)
                        .await?;
                }
            }
            Step::Ask => {
                if let Some(Ok(plan::Written {
                    plan,
                    route: Ok(chosen),
                    ..
                })) = seen.planned.as_deref()
                {
                    seen.asked = Some(approval_request::ask(context, request, plan, chosen).await);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends the execution that is under way where the request, or an approver, takes it back.
    fn pass_on(&self, request: &RollbackRequest, objection: Option<&str>) {
        let running = self.running();
        let Some(running) = running.get(&request.uid().unwrap_or_default()) else {
            return;
        };
        if let Some(who) = objection {
            running.object(who);
        } else if request.spec.cancel || request.metadata.deletion_timestamp.is_some() {
            running.cancel.cancel();
        }
    }

    async fn close(
        &self,
        request: &RollbackRequest,
        approval: &str,
        phase: rollback::ApprovalPhase,
        why: &str,
    ) -> Result<(), cluster::Error> {
        let namespace = request.namespace().unwrap_or_default();
        match approval_request::close(&self.context, &namespace, approval, phase, why).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// What is done once the status says so.
    fn after(self: &Arc<Self>, request: &Arc<RollbackRequest>, step: &Step) {
        let uid = request.uid().unwrap_or_default();
        match step {
            Step::Begin | Step::Plan => self.plan(request),
            Step::Retry | Step::Finish | Step::Fail | Step::Hold => self.plans.forget(&uid),
            Step::Again => {
                self.plans.forget(&uid);
                self.executions.forget(&uid);
                self.running().remove(&uid);
            }
            Step::Execute => {
                self.plans.forget(&uid);
                self.execute(request, None);
            }
            Step::Prove => {
                let proof = match taken(&self.plans.progress(&uid)).as_deref() {
                    Some(Ok(plan)) if plan.empty && plan.compared.elapsed() < FRESH => Proof::Compared,
                    _ => Proof::Compare,
                };
                self.plans.forget(&uid);
                self.execute(request, Some(proof));
            }
            Step::Recheck => {
                self.executions.forget(&uid);
            }
            Step::Cancel | Step::Close(_) | Step::Conclude | Step::Release => {
                self.plans.forget(&uid);
                self.executions.forget(&uid);
                self.running().remove(&uid);
                self.queue.leave(request);
            }
            Step::Rest | Step::Wait { .. } | Step::Ask | Step::Await | Step::Report => {}
        }
    }

    fn plan(self: &Arc<Self>, request: &Arc<RollbackRequest>) {
        let (planner, job) = (Arc::clone(self), Arc::clone(request));
        self.plans.start(
            &request.uid().unwrap_or_default(),
            request.namespace().unwrap_or_default(),
            request.name_any(),
            async move { Box::pin(plan::make(&planner.context, &planner.catalog, &planner.read, &job)).await },
        );
    }

    /// Executes the plan, or proves that there is nothing to execute.
    fn execute(self: &Arc<Self>, request: &Arc<RollbackRequest>, proof: Option<Proof>) {
        let uid = request.uid().unwrap_or_default();
        let (namespace, name) = (request.namespace().unwrap_or_default(), request.name_any());
        let (look, of) = (self.changed.clone(), (namespace.clone(), name.clone()));
        let running = Running {
            // The receiver lives as long as the operator.
            report: Reporter::new(Arc::new(move || drop(look.send(of.clone())))),
            cancel: CancellationToken::new(),
            objection: Arc::default(),
        };
        let running = self.running().entry(uid.clone()).or_insert(running).clone();
        let (planner, job) = (Arc::clone(self), Arc::clone(request));
        self.executions.start(&uid, namespace, name, async move {
            match proof {
                Some(proof) => Box::pin(run::prove(&planner, job, running, proof)).await,
                None => Box::pin(run::execute(&planner, job, running)).await,
            }
        });
    }
}

/// What is known of the approval that the status names.
struct Known {
    fact: ApprovalFact,
    /// Who objects to it by now.
    objection: Option<String>,
    /// Why it came to its end.
    said: Option<String>,
}

impl From<ApprovalFact> for Known {
    fn from(fact: ApprovalFact) -> Self {
        Self {
            fact,
            objection: None,
            said: None,
        }
    }
}

async fn approval_of(request: &RollbackRequest, context: &Context) -> Result<Known, cluster::Error> {
    let Some(asked) = request.status.as_ref().and_then(|s| s.approval.as_ref()) else {
        return Ok(ApprovalFact::None.into());
    };
    let namespace = request.namespace().unwrap_or_default();
    let api: Api<ApprovalRequest> = Api::namespaced(context.client.clone(), &namespace);
    let what = format!("get approvalrequest {namespace}/{}", asked.request);
    let found = call::repeat(&what, call::DEADLINE, || api.get_opt(&asked.request)).await?;
    Ok(match found {
        Some(found) if Some(&found.spec.request_ref.uid) == request.uid().as_ref() => {
            let status = found.status.unwrap_or_default();
            let stalled = status.conditions.iter().find(|c| c.type_ == conditions::STALLED);
            Known {
                fact: ApprovalFact::Is(status.phase.unwrap_or_default()),
                objection: approval_request::objection(&status).map(ToOwned::to_owned),
                said: stalled.map(|condition| condition.message.clone()),
            }
        }
        Some(_) | None => ApprovalFact::Gone.into(),
    })
}

fn plan_fact(progress: &Progress<PlanOutcome>) -> PlanFact {
    match progress {
        Progress::Unknown => PlanFact::Unknown,
        Progress::Running => PlanFact::UnderWay,
        Progress::Ended(outcome) => match outcome.as_ref() {
            Ok(written) if !written.obstacles.is_empty() => PlanFact::Obstructed,
            Ok(written) if written.empty => PlanFact::Empty,
            Ok(written) => match &written.route {
                Ok(_) => PlanFact::Clear,
                Err(NoRoute::NoMatchingPolicy | NoRoute::InvalidPolicy { .. }) => PlanFact::NoPolicy,
                // No other policy would be asked, and this one says no.
                Err(_) => PlanFact::Unapprovable,
            },
            Err(failure) if matches!(failure.class, Class::Transient | Class::Waiting) => PlanFact::Retryable,
            Err(_) => PlanFact::Failed,
        },
    }
}

fn execution_fact(progress: &Progress<Ran>) -> ExecutionFact {
    match progress {
        Progress::Unknown => ExecutionFact::Unknown,
        Progress::Running => ExecutionFact::UnderWay,
        Progress::Ended(ran) => match ran.as_ref() {
            Ran::Held { .. } => ExecutionFact::Held,
            Ran::Void(_) => ExecutionFact::Void,
            Ran::Ended(_) => ExecutionFact::Ended,
        },
    }
}

fn taken<T>(progress: &Progress<T>) -> Option<Arc<T>> {
    match progress {
        Progress::Ended(outcome) => Some(Arc::clone(outcome)),
        Progress::Unknown | Progress::Running => None,
    }
}

/// When the time for approval is over, counted from the creation of the request.
fn approval_ends(request: &RollbackRequest) -> Option<jiff::Timestamp> {
    let created = request.metadata.creation_timestamp.as_ref()?.0;
    let allowed = duration::parse(&run::timeouts(request).approval).ok()?;
    created.checked_add(allowed).ok()
}

fn overdue(request: &RollbackRequest) -> bool {
    approval_ends(request).is_some_and(|end| clock::now() >= end)
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

/// The repository, or why nothing can be planned or executed.
fn repository(context: &Context) -> Result<Repository, Failure> {
    context.store.repository().map_err(|(message, corrupt)| {
        let (class, reason) = if corrupt {
            (Class::Corrupt, reasons::CORRUPT)
        } else {
            (Class::Transient, reasons::STORE_UNAVAILABLE)
        };
        Failure::new(class, reason, message)
    })
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

/// Whether a phase comes before the first write.
const fn is_before_execution(phase: RollbackPhase) -> bool {
    matches!(
        phase,
        RollbackPhase::Pending | RollbackPhase::Planning | RollbackPhase::AwaitingApproval
    )
}
