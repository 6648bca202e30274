//! From an approval that may be used to the end of the execution: the target's Lease, the gate, the ledger, the writer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{Api, ResourceExt as _};
use tokio_util::sync::CancellationToken;

use super::{
    Planner,
    execute::{self, Execution, Outcome, Proof, Reporter},
    gate::{self, Approved, Executed},
    hold::{self, Taken},
    plan::{self, Aim, Made},
};
use crate::{
    api::{
        RollbackRequest, duration, reasons,
        reference::ResolvedSnapshot,
        rollback_request::{Conflict, Priority, RollbackPhase},
    },
    capture::Failure,
    cluster::{
        Class, call, clock,
        lease::{Election, LeaseOptions},
    },
    controller::approval_request::{self, ApprovalFacts},
    domain::{
        approval::{
            Consequence, ExecutionPermit, Refusal, clear,
            gate::{Known, Target},
            permit::Purpose,
            resume, state,
        },
        object::Digest,
        plan::{Bound, Plan, PlanError},
    },
};

/// Executions at once, each of another namespace.
pub(super) const EXECUTIONS_AT_ONCE: usize = 16;
/// A target's Lease runs out this long after its holder stopped.
const LEASE: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(3);
/// How soon a gate that did not open is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What came of an attempt.
#[derive(Clone, Debug)]
pub(super) enum Ran {
    /// The gate did not open, or another one holds the target: nothing is lost.
    Held {
        /// Reason of the condition.
        reason: &'static str,
        /// What it waits for.
        message: String,
        /// When to try again.
        again: Duration,
    },
    /// The approval is void: plan again and ask again, and why.
    Void(String),
    /// The end.
    Ended(Outcome),
}

impl Ran {
    fn ended(phase: RollbackPhase, reason: &'static str, message: impl Into<String>) -> Self {
        Self::Ended(Outcome {
            phase,
            reason,
            message: message.into(),
        })
    }

    fn held(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Held {
            reason,
            message: message.into(),
            again: AGAIN,
        }
    }
}

impl From<Failure> for Ran {
    fn from(failure: Failure) -> Self {
        match failure.class {
            Class::Transient | Class::Waiting => Self::held(failure.reason, failure.message),
            Class::Invalid | Class::Forbidden | Class::Corrupt => {
                Self::ended(RollbackPhase::Failed, failure.reason, failure.message)
            }
        }
    }
}

/// An execution of this process.
#[derive(Clone)]
pub(super) struct Running {
    /// How far it is.
    pub report: Reporter,
    /// Ends it early.
    pub cancel: CancellationToken,
    /// The approver who does not stand by the approval any more.
    pub objection: Arc<OnceLock<String>>,
}

impl Running {
    /// Ends it early, because `who` objects.
    pub(super) fn object(&self, who: &str) {
        self.objection.get_or_init(|| who.to_owned());
        self.cancel.cancel();
    }

    /// The end, and who wanted it.
    fn ended(&self, outcome: Outcome) -> Ran {
        Ran::Ended(match self.objection.get() {
            Some(who) if outcome.reason == reasons::CANCELLED => Outcome {
                message: format!("{who} objected to the approval while it ran: {}", outcome.message),
                ..outcome
            },
            _ => outcome,
        })
    }
}

/// Who waits for which namespace, first come first served within a priority.
#[derive(Default)]
pub(super) struct Queue {
    lines: Mutex<BTreeMap<String, Vec<Waiting>>>,
    /// By UID of the namespace: what was last seen of a Lease that somebody else holds.
    leases: Mutex<BTreeMap<String, (String, Instant)>>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    first: std::cmp::Reverse<Priority>,
    since: Timestamp,
    uid: String,
    name: String,
}

impl Queue {
    fn seen(&self, namespace_uid: &str) -> Option<(String, Instant)> {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.get(namespace_uid).cloned()
    }

    fn saw(&self, namespace_uid: &str, seen: Option<(String, Instant)>) {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        match seen {
            Some(seen) => drop(leases.insert(namespace_uid.to_owned(), seen)),
            None => drop(leases.remove(namespace_uid)),
        }
    }

    /// Queues the request; returns the name of the one before it, if any.
    fn enter(&self, request: &RollbackRequest) -> Option<String> {
        let mut queue = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let line = queue.entry(request.namespace().unwrap_or_default()).or_default();
        let uid = request.uid().unwrap_or_default();
        if !line.iter().any(|one| one.uid == uid) {
            line.push(Waiting {
                first: std::cmp::Reverse(request.spec.priority),
                since: request
                    .metadata
                    .creation_timestamp
                    .as_ref()
                    .map_or(Timestamp::MAX, |time| time.0),
                uid: uid.clone(),
                name: request.name_any(),
            });
            line.sort();
        }
        line.first().filter(|one| one.uid != uid).map(|one| one.name.clone())
    }

    /// Takes the request out.
    pub(super) fn leave(&self, request: &RollbackRequest) {
        let mut queue = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let namespace = request.namespace().unwrap_or_default();
        let uid = request.uid().unwrap_or_default();
        if let Some(line) = queue.get_mut(&namespace) {
            line.retain(|one| one.uid != uid);
            if line.is_empty() {
                queue.remove(&namespace);
            }
        }
    }
}

/// Passes the gate and executes; after a crash goes on with what is left.
pub(super) async fn execute(planner: &Planner, request: Arc<RollbackRequest>, running: Running) -> Ran {
    if let Some(before) = planner.queue.enter(&request) {
        return Ran::held(
            reasons::QUEUED,
            format!("rollbackrequest {before} goes first in this namespace"),
        );
    }
    let ran = Box::pin(with_lease(planner, &request, running)).await;
    if let Ran::Held { reason, message, .. } = &ran {
        tracing::info!(
            namespace = request.namespace(),
            name = request.name_any(),
            reason,
            message,
            "held at the gate"
        );
    }
    planner.queue.leave(&request);
    ran
}

/// Holds the Lease of the target meanwhile: one rollback a namespace at a time, whoever runs it.
async fn with_lease(planner: &Planner, request: &Arc<RollbackRequest>, running: Running) -> Ran {
    let context = &planner.context;
    let namespace_uid = match gate::namespace_uid(context, request).await {
        Ok(Some(uid)) => uid,
        Ok(None) => {
            return Ran::ended(
                RollbackPhase::Failed,
                reasons::NAMESPACE_GONE,
                "the namespace does not exist any more",
            );
        }
        Err(error) => return Ran::held(reasons::API_UNAVAILABLE, error.to_string()),
    };
    let lease = Election::new(
        context.client.clone(),
        LeaseOptions {
            namespace: context.options.namespace.clone(),
            name: format!("backstep-target-{namespace_uid}"),
            // The same after a restart: what this request began, it goes on with at once.
            identity: format!(
                "{}/{}/{}",
                request.namespace().unwrap_or_default(),
                request.name_any(),
                request.uid().unwrap_or_default()
            ),
            duration: LEASE,
            renew_every: RENEW,
        },
    );
    let mut lease = lease.having_seen(planner.queue.seen(&namespace_uid));
    match lease.attempt().await {
        Ok(None) => planner.queue.saw(&namespace_uid, None),
        Ok(Some(holder)) => {
            planner.queue.saw(&namespace_uid, lease.seen());
            let message = format!("rollbackrequest {holder} holds the namespace; this one is next");
            return Ran::held(reasons::QUEUED, message);
        }
        Err(error) => return Ran::held(reasons::API_UNAVAILABLE, error.to_string()),
    }
    let ran = {
        let work = pass(planner, request, running);
        tokio::pin!(work);
        tokio::select! {
            ran = &mut work => ran,
            () = lease.hold() => Ran::held(reasons::INTERRUPTED, "the Lease of the namespace was lost; going on once it is held again"),
        }
    };
    lease.release().await;
    ran
}

/// What the gate is asked about.
struct Asked {
    made: Made,
    approval: ApprovalFacts,
    approved: Approved,
    digest: Digest,
}

async fn pass(planner: &Planner, request: &Arc<RollbackRequest>, running: Running) -> Ran {
    match Box::pin(permitted(planner, request, &running)).await {
        Err(ran) => ran,
        Ok((permit, made, started)) => {
            let Some(resolved) = request.status.as_ref().and_then(|s| s.resolved.clone()) else {
                return Ran::ended(
                    RollbackPhase::Failed,
                    reasons::INVALID_SPEC,
                    "the target was never resolved",
                );
            };
            let execution = execution(planner, request, &running, resolved, started);
            running.ended(Box::pin(execute::run(&execution, made, permit)).await)
        }
    }
}

fn execution(
    planner: &Planner,
    request: &Arc<RollbackRequest>,
    running: &Running,
    resolved: ResolvedSnapshot,
    started: Timestamp,
) -> Execution {
    let allowed = duration::parse(&timeouts(request).execution).unwrap_or(Duration::from_secs(30 * 60));
    // After a crash only what is left of the time is left.
    let spent = Duration::try_from(clock::now().duration_since(started)).unwrap_or_default();
    Execution {
        context: Arc::clone(&planner.context),
        catalog: Arc::clone(&planner.catalog),
        request: Arc::clone(request),
        resolved,
        started,
        deadline: tokio::time::Instant::now() + allowed.saturating_sub(spent),
        report: running.report.clone(),
        cancel: running.cancel.clone(),
    }
}

pub(super) fn timeouts(request: &RollbackRequest) -> crate::api::rollback_request::Timeouts {
    request.spec.timeouts.clone().unwrap_or_default()
}

/// The permit, the plan it is for, and since when the execution runs.
async fn permitted(
    planner: &Planner,
    request: &Arc<RollbackRequest>,
    running: &Running,
) -> Result<(ExecutionPermit, Made, Timestamp), Ran> {
    let context = &planner.context;
    if request.metadata.deletion_timestamp.is_some() {
        // Neither a store nor a guard that cannot be asked may hold up a namespace that goes.
        let gone = hold::leaves_with_all(context, request).await;
        if let Some(why) = gone.map_err(|e| Ran::held(reasons::API_UNAVAILABLE, e.to_string()))? {
            let message = format!("it was cancelled; {why}, so that what was written until then stays as it is");
            return Err(Ran::ended(RollbackPhase::Cancelled, reasons::CANCELLED, message));
        }
    }
    let repository = super::repository(context)?;
    repository
        .refresh()
        .await
        .map_err(|e| Ran::from(super::store_failure(&e)))?;
    let status = request.status.clone().unwrap_or_default();
    let (Some(resolved), Some(asked)) = (status.resolved, status.approval) else {
        return Err(Ran::Void("the plan is not known any more".into()));
    };
    let (digest, policy, used) = match approval_request::named(context, request, &asked.request).await {
        Ok(Known::Is(found)) => (found.plan_digest, found.policy_digest, state::is_used(found.phase)),
        Ok(Known::Unknown(why)) => return Err(Ran::held(reasons::API_UNAVAILABLE, why)),
        Err(error) => return Err(Ran::held(reasons::API_UNAVAILABLE, error.to_string())),
    };
    let Some(approved) = gate::approved(&repository, request, digest).await? else {
        let why = "what was approved is not in the repository any more";
        return Err(if used {
            Ran::ended(RollbackPhase::Failed, reasons::CORRUPT, why)
        } else {
            Ran::Void(why.into())
        });
    };
    let aim = if used { Aim::Rest(policy) } else { Aim::Target };
    let put_back = approved.put_back();
    let before = planner
        .read
        .take(&request.uid().unwrap_or_default())
        .unwrap_or_default();
    // Neither needs the other, and the list of decisions waits for the server's cache.
    let (approval, live) = tokio::join!(
        approval_request::facts(context, request, &asked.request),
        plan::from_live(context, &planner.catalog, request, &resolved, aim, &put_back, &before)
    );
    match &approval.approval {
        Known::Is(found) if state::is_used(found.phase) == used => {}
        Known::Is(_) => {
            let why = "the approval was used while live was compared; it is looked at again";
            return Err(Ran::held(reasons::API_UNAVAILABLE, why));
        }
        Known::Unknown(why) => return Err(Ran::held(reasons::API_UNAVAILABLE, why.clone())),
    }
    let (made, plan) = live?;
    let asked = Asked {
        made,
        approval,
        approved,
        digest,
    };
    if used {
        go_on(planner, request, running, asked, plan).await
    } else {
        let plan = gate::narrowed(&asked.made, plan, request.spec.conflict, &asked.approved, asked.digest)?;
        Box::pin(consume(planner, request, asked, plan)).await
    }
}

/// Through the gate for the first time: all ten steps, then the ledger.
async fn consume(
    planner: &Planner,
    request: &Arc<RollbackRequest>,
    asked: Asked,
    plan: Plan<Bound>,
) -> Result<(ExecutionPermit, Made, Timestamp), Ran> {
    let context = &planner.context;
    let gate = gate::facts(context, request, &asked.made, &plan, &asked.approval, &asked.approved).await;
    let clearance = clear(&gate, plan).map_err(|refusal| refused(request, &refusal))?;
    match hold::take(context, request).await {
        Ok(Taken::Held) => {}
        Ok(Taken::Leaving) => return Err(refused(request, &Refusal::RequestTerminating)),
        Err(error) => return Err(Ran::held(reasons::API_UNAVAILABLE, error.to_string())),
    }
    let execution = format!("{:032x}", rand::random::<u128>());
    let latch = approval_request::consume(context, &asked.approval, clearance.consumes_to(), &execution).await;
    let permit = clearance
        .permit(&execution, latch)
        .map_err(|refusal| refused(request, &refusal))?;
    let entry = enter(planner, request, &execution).await?;
    Ok((permit, asked.made, entry.at))
}

/// Through the gate again after a crash, with what is left of the plan.
async fn go_on(
    planner: &Planner,
    request: &Arc<RollbackRequest>,
    running: &Running,
    asked: Asked,
    plan: Plan<Bound>,
) -> Result<(ExecutionPermit, Made, Timestamp), Ran> {
    let context = &planner.context;
    let gate = gate::facts(context, request, &asked.made, &plan, &asked.approval, &asked.approved).await;
    let id = match &gate.approval {
        Known::Is(approval) => approval.execution.clone().unwrap_or_default(),
        Known::Unknown(_) => String::new(),
    };
    if let Some(who) = &asked.approval.objection {
        running.object(who);
    }
    let withdrawn = |target: &Target| target.cancelled || target.request_terminating;
    if running.cancel.is_cancelled() || matches!(&gate.target, Known::Is(target) if withdrawn(target)) {
        let entry = enter(planner, request, &id).await?;
        let execution = execution(planner, request, running, asked.made.resolved.clone(), entry.at);
        let outcome = execute::withdraw(&execution, &asked.made, &plan, &asked.approved.items, &id).await;
        return Err(running.ended(outcome));
    }
    let permit = resume(&gate, &id, &Purpose::Continue, plan).map_err(|refusal| stopped(&refusal))?;
    let entry = enter(planner, request, &id).await?;
    Ok((permit, asked.made, entry.at))
}

/// Enters the execution into the ledger; a re-created request that ran under the same name before is refused here at the latest.
async fn enter(planner: &Planner, request: &RollbackRequest, execution: &str) -> Result<Executed, Ran> {
    let repository = super::repository(&planner.context)?;
    let entry = gate::enter(&repository, request, execution)
        .await
        .map_err(|e| Ran::from(super::store_failure(&e)))?;
    if entry.execution == execution {
        return Ok(entry);
    }
    Err(Ran::ended(
        RollbackPhase::Failed,
        reasons::ALREADY_EXECUTED,
        Refusal::AlreadyExecuted(entry.execution).to_string(),
    ))
}

/// What a refusal means before the approval was used.
fn refused(request: &RollbackRequest, refusal: &Refusal) -> Ran {
    let message = refusal.to_string();
    match refusal.consequence() {
        Consequence::Wait(until) => Ran::Held {
            reason: match refusal {
                Refusal::GuardUnhealthy | Refusal::GuardUnknown(_) => reasons::GUARD_UNHEALTHY,
                Refusal::Held(_) | Refusal::TooEarly(_) => reasons::HELD,
                Refusal::Suspended => reasons::SUSPENDED,
                _ => reasons::AWAITING_APPROVAL,
            },
            message,
            again: until
                .and_then(|time| Duration::try_from(time.duration_since(clock::now())).ok())
                .unwrap_or(AGAIN)
                .clamp(Duration::from_millis(200), Duration::from_secs(10 * 60)),
        },
        Consequence::Supersede => match (request.spec.conflict, refusal) {
            (Conflict::FailOnDrift, Refusal::PlanChanged(objects)) if !objects.is_empty() => Ran::ended(
                RollbackPhase::Failed,
                reasons::DRIFT,
                PlanError::Drift(objects.clone()).to_string(),
            ),
            _ => Ran::Void(message),
        },
        Consequence::Expire => Ran::ended(RollbackPhase::Expired, reasons::EXPIRED, message),
        Consequence::Revoke => Ran::ended(RollbackPhase::Rejected, reasons::REJECTED, message),
        Consequence::Cancel => Ran::ended(RollbackPhase::Cancelled, reasons::CANCELLED, message),
        Consequence::Fail => Ran::ended(RollbackPhase::Failed, reason_of(refusal), message),
    }
}

/// What a refusal means in the middle of an execution: what can pass is waited for, everything else ends it.
fn stopped(refusal: &Refusal) -> Ran {
    let message = refusal.to_string();
    match refusal.consequence() {
        Consequence::Wait(_) => Ran::held(reasons::GUARD_UNHEALTHY, message),
        Consequence::Cancel => Ran::ended(RollbackPhase::Cancelled, reasons::CANCELLED, message),
        Consequence::Supersede | Consequence::Expire | Consequence::Revoke | Consequence::Fail => {
            Ran::ended(RollbackPhase::Failed, reason_of(refusal), message)
        }
    }
}

const fn reason_of(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NamespaceReplaced => reasons::NAMESPACE_GONE,
        Refusal::NamespaceTerminating => reasons::NAMESPACE_TERMINATING,
        Refusal::SnapshotGone | Refusal::SnapshotChanged => reasons::TARGET_NOT_FOUND,
        Refusal::MissingRights(_) => reasons::FORBIDDEN,
        Refusal::AlreadyExecuted(_) => reasons::ALREADY_EXECUTED,
        Refusal::PlanChanged(_) => reasons::DRIFT,
        Refusal::EpochChanged | Refusal::GuardUnhealthy => reasons::GUARD_UNHEALTHY,
        _ => reasons::PREFLIGHT_FAILED,
    }
}

/// Nothing is written to the target: the tests are run, and the target is the version that is live.
pub(super) async fn prove(planner: &Planner, request: Arc<RollbackRequest>, running: Running, proof: Proof) -> Ran {
    // The status that names the target was written after `request` was read.
    let api: Api<RollbackRequest> =
        Api::namespaced(planner.context.client.clone(), &request.namespace().unwrap_or_default());
    let name = request.name_any();
    let read = call::repeat("read the target of the request", call::DEADLINE, || api.get(&name)).await;
    let request = match read {
        Ok(found) if found.uid() == request.uid() => Arc::new(found),
        Ok(_) => return Ran::Void("the request was replaced by another one".into()),
        Err(error) => return Ran::held(reasons::API_UNAVAILABLE, error.to_string()),
    };
    let Some(resolved) = request.status.as_ref().and_then(|s| s.resolved.clone()) else {
        return Ran::Void("the target is not known any more".into());
    };
    let execution = Execution {
        context: Arc::clone(&planner.context),
        catalog: Arc::clone(&planner.catalog),
        request: Arc::clone(&request),
        resolved,
        started: clock::now(),
        deadline: tokio::time::Instant::now()
            + duration::parse(&timeouts(&request).execution).unwrap_or(Duration::from_secs(30 * 60)),
        report: running.report,
        cancel: running.cancel,
    };
    Ran::Ended(Box::pin(execute::prove(&execution, proof)).await)
}
