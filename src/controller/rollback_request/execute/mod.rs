//! From the permit to the end: safety snapshot, writes in order, restarts, health, images, prune, tests, result snapshot; and the
//! way back where that fails. Progress is the live state itself: an execution that was interrupted is run again with what is left.

mod health;
mod images;
mod items;
mod report;
mod restart;
mod snapshots;
mod steps;
mod undo;
mod work;

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use kube::ResourceExt as _;
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    gather,
    plan::{self, Made},
    repository, store_failure,
};
use crate::{
    api::{
        RollbackRequest, reasons,
        reference::ResolvedSnapshot,
        rollback_request::{ItemFailure, OnFailure, RollbackPhase},
    },
    capture::{Catalog, Failure},
    controller::{context::Context, tasks},
    domain::{
        approval::ExecutionPermit,
        object::{Digest, ObjectId},
        plan::{Action, Bound, Item, LiveState, Plan, digest::BoundItem},
        verify::excepted,
    },
};

pub(super) use report::{Report, Reporter};
use steps::Steps;
use work::Work;

/// Most characters of the message of an outcome.
const MESSAGE: usize = 2000;

/// One execution, from the consumed approval on.
pub(super) struct Execution {
    /// What every controller has.
    pub context: Arc<Context>,
    /// What the cluster serves.
    pub catalog: Arc<Mutex<Catalog>>,
    /// The request, as it was when the execution began or went on.
    pub request: Arc<RollbackRequest>,
    /// The target.
    pub resolved: ResolvedSnapshot,
    /// When the approval was consumed; the same after a crash.
    pub started: Timestamp,
    /// End of `timeouts.execution`.
    pub deadline: Instant,
    /// Where it says how far it is.
    pub report: Reporter,
    /// `spec.cancel`, or an objection.
    pub cancel: CancellationToken,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// A final phase.
    pub phase: RollbackPhase,
    /// Reason of the condition.
    pub reason: &'static str,
    /// What, why and how to fix.
    pub message: String,
}

impl Outcome {
    fn new(phase: RollbackPhase, reason: &'static str, message: impl Into<String>) -> Self {
        let message: String = message.into();
        Self {
            phase,
            reason,
            message: message.chars().take(MESSAGE).collect(),
        }
    }
}

/// Why an execution does not go on.
#[derive(Clone, Debug)]
struct Stop {
    reason: &'static str,
    message: String,
    cancelled: bool,
}

impl Stop {
    fn failed(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            cancelled: false,
        }
    }

    fn cancelled() -> Self {
        Self {
            reason: reasons::CANCELLED,
            message: "it was cancelled".into(),
            cancelled: true,
        }
    }

    /// The first of `failures`, and how many there are besides.
    fn of(failures: &[ItemFailure]) -> Option<Self> {
        let first = failures.first()?;
        let more = match failures.len() - 1 {
            0 => String::new(),
            more => format!("; {more} more failed"),
        };
        Some(Self::failed(
            known(&first.reason),
            format!("{}: {}{more}", first.object, first.message.clone().unwrap_or_default()),
        ))
    }
}

/// The reason of an item as the reason of the whole.
fn known(reason: &str) -> &'static str {
    const REASONS: [&str; 7] = [
        reasons::DRIFT,
        reasons::FORBIDDEN,
        reasons::ROLLOUT_FAILED,
        reasons::IMAGES_DIFFER,
        reasons::DEADLINE_EXCEEDED,
        reasons::API_UNAVAILABLE,
        reasons::VERIFICATION_FAILED,
    ];
    let found = REASONS.iter().find(|known| **known == reason);
    found.copied().unwrap_or(reasons::WRITE_REFUSED)
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::failed(failure.reason, failure.message)
    }
}

/// What was done before this process took the execution over.
struct Before {
    /// Objects that were brought to their target.
    done: BTreeSet<ObjectId>,
    /// These, and objects whose write was cut short.
    wrote: BTreeSet<ObjectId>,
    /// The way back was under way.
    undoing: bool,
    /// Something may have been written.
    begun: bool,
}

impl Before {
    fn of(request: &RollbackRequest, plan: &Plan<Bound>, approved: &[BoundItem], kept: &[ObjectId]) -> Self {
        let left: HashSet<&ObjectId> = plan.writes().map(|item| &item.id).collect();
        let done: BTreeSet<ObjectId> = approved
            .iter()
            .filter(|item| item.action != Action::Restart(Vec::new()).name())
            .map(|item| &item.object)
            .filter(|id| !left.contains(id) && !kept.contains(id))
            .cloned()
            .collect();
        let cut_short = |item: &&Item| item.live.as_ref().is_some_and(LiveState::is_unfinished);
        let unfinished = plan.writes().filter(cut_short).map(|item| item.id.clone());
        let wrote = done.iter().cloned().chain(unfinished).collect::<BTreeSet<_>>();
        let steps = request
            .status
            .as_ref()
            .map(|status| status.steps.as_slice())
            .unwrap_or_default();
        Self {
            undoing: steps.iter().any(|step| step.name == steps::UNDO),
            begun: !wrote.is_empty() || steps.iter().any(steps::is_after_safety),
            done,
            wrote,
        }
    }
}

/// Executes the plan of `permit`, and uses it up.
pub(super) async fn run(execution: &Execution, made: Made, permit: ExecutionPermit) -> Outcome {
    let request = &execution.request;
    if let Some(status) = &request.status {
        execution.report.resume(status);
    }
    let approved = permit.approved().to_vec();
    let id = permit.execution().to_owned();
    let kept = permit.kept().to_vec();
    let plan = permit.into_plan();
    let before = Before::of(request, &plan, &approved, &kept);
    let work = match Work::forward(execution, &made) {
        Ok(work) => work,
        Err(failure) => return Outcome::new(RollbackPhase::Failed, failure.reason, failure.message),
    };
    tracing::info!(
        namespace = request.namespace(),
        name = request.name_any(),
        execution = id,
        items = approved.len(),
        done = before.done.len(),
        undoing = before.undoing,
        "executing"
    );
    for kept in kept {
        execution
            .report
            .note(format!("{kept} stays as it is: it changed after the approval"));
    }
    let stop = if before.undoing {
        Some(Stop::failed(
            reasons::INTERRUPTED,
            "the operator stopped while it went back; the first cause is in status.items",
        ))
    } else {
        forward(&work, &plan, &approved, &before).await.err()
    };
    let outcome = match stop {
        None => reached(&work).await,
        Some(stop) => not_reached(&work, &stop, &approved, before, &id).await,
    };
    drop(work);
    tasks::let_go((made, plan));
    execution.report.skip_the_rest();
    tracing::info!(
        namespace = request.namespace(),
        name = request.name_any(),
        execution = id,
        phase = ?outcome.phase,
        reason = outcome.reason,
        "executed"
    );
    outcome
}

/// What is known when there is nothing to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// Live was compared a moment ago.
    Compared,
    /// It has to be compared (again).
    Compare,
}

/// Nothing differs, so nothing is written: the tests are run, and the target is the version that is live.
pub(super) async fn prove(execution: &Execution, proof: Proof) -> Outcome {
    let report = &execution.report;
    if let Some(status) = &execution.request.status {
        report.resume(status);
    }
    let outcome = match proof {
        // Tests have to be told what the plan leaves as it is.
        Proof::Compared if execution.request.spec.verify.is_none() => as_compared(execution).await,
        Proof::Compared | Proof::Compare => comparing(execution).await,
    };
    report.skip_the_rest();
    outcome.unwrap_or_else(|failure| Outcome::new(RollbackPhase::Failed, failure.reason, failure.message))
}

/// Without tests there is nothing to do but to say so.
async fn as_compared(execution: &Execution) -> Result<Outcome, Failure> {
    let repository = repository(&execution.context)?;
    let manifest = repository.manifest(&execution.resolved.uid).await;
    let extras = gather::extras(&manifest.map_err(|error| store_failure(&error))?).await?;
    let work = Work::proof(execution, extras)?;
    execution.report.expect(&Steps::to_prove(&execution.request), 0);
    Ok(reached(&work).await)
}

async fn comparing(execution: &Execution) -> Result<Outcome, Failure> {
    let (context, catalog, request) = (&execution.context, &execution.catalog, &execution.request);
    // It is not executed, so what it would be approved by does not matter.
    let aim = plan::Aim::Rest(Digest::of(&[]));
    let put_back = plan::put_back(&repository(context)?, request).await?;
    let (made, plan) = plan::from_live(context, catalog, request, &execution.resolved, aim, &put_back, &[]).await?;
    if let Some(item) = plan.writes().next() {
        let message = format!("{} changed since it was planned; make a new request", item.id);
        return Ok(Outcome::new(RollbackPhase::Failed, reasons::DRIFT, message));
    }
    let work = Work::forward(execution, &made)?;
    work.except(excepted(&plan));
    execution.report.expect(&Steps::to_prove(request), 0);
    Ok(match work.verify().await {
        Ok(()) => reached(&work).await,
        Err(stop) if stop.cancelled => Outcome::new(RollbackPhase::Cancelled, stop.reason, stop.message),
        Err(stop) => Outcome::new(
            RollbackPhase::Failed,
            stop.reason,
            format!(
                "{}; nothing was written, for nothing differs from the snapshot",
                stop.message
            ),
        ),
    })
}

/// Everything up to the tests.
async fn forward(work: &Work<'_>, plan: &Plan<Bound>, approved: &[BoundItem], before: &Before) -> Result<(), Stop> {
    let report = &work.execution.report;
    let steps = Steps::of(plan, approved, work.request());
    report.expect(&steps.names(), approved.len());
    for id in &before.done {
        report.item_done();
        work.was_written(id);
    }
    if work.request().spec.safety_snapshot {
        work.step(steps::SAFETY, work.safety(&steps.written(), before)).await?;
    }
    for group in &steps.groups {
        work.step(group.name, async {
            for items in &group.numbers {
                work.write(items).await?;
            }
            Ok(())
        })
        .await?;
    }
    if !steps.restarts.is_empty() {
        work.step(steps::RESTART, work.restart(&steps.restarts)).await?;
    }
    if work.rolls_anything_out() {
        work.step(steps::HEALTH, work.healthy()).await?;
        work.step(steps::IMAGES, work.images()).await?;
    }
    if !steps.prune.is_empty() {
        work.step(steps::PRUNE, async {
            for items in &steps.prune {
                work.write(items).await?;
            }
            Ok(())
        })
        .await?;
        if work.rolls_anything_out() {
            work.step(steps::HEALTH_AGAIN, work.healthy()).await?;
        }
    }
    work.verify().await
}

/// The target is reached: it is the version that is live now, and a snapshot proves it. Where items failed it is neither.
async fn reached(work: &Work<'_>) -> Outcome {
    let report = &work.execution.report;
    let items = report.read().items.unwrap_or_default();
    if items.failed > 0 {
        let phase = if items.done > 0 {
            RollbackPhase::Partial
        } else {
            RollbackPhase::Failed
        };
        let first = Stop::of(&report.failures())
            .map(|stop| stop.message)
            .unwrap_or_default();
        let message = format!("{} done, {} failed: {first}", items.done, items.failed);
        return Outcome::new(phase, reasons::PARTIAL, with_notes(message, work));
    }
    let resolved = &work.execution.resolved;
    let recorded = work.conclude().await;
    let message = with_notes(
        format!("back at version {} ({})", resolved.version, resolved.name),
        work,
    );
    match recorded {
        Ok(()) => Outcome::new(RollbackPhase::Completed, reasons::COMPLETED, message),
        Err(stop) => Outcome::new(
            RollbackPhase::Partial,
            stop.reason,
            format!("{message}, but: {}; take a Snapshot to record it", stop.message),
        ),
    }
}

fn with_notes(message: String, work: &Work<'_>) -> String {
    let notes = work.execution.report.notes();
    notes
        .into_iter()
        .fold(message, |message, note| format!("{message}; {note}"))
}

/// Cancelled while nobody was there to see it: what was written until then is left or taken back, as the request wants.
pub(super) async fn withdraw(
    execution: &Execution,
    made: &Made,
    plan: &Plan<Bound>,
    approved: &[BoundItem],
    id: &str,
) -> Outcome {
    let request = &execution.request;
    if let Some(status) = &request.status {
        execution.report.resume(status);
    }
    let work = match Work::forward(execution, made) {
        Ok(work) => work,
        Err(failure) => return Outcome::new(RollbackPhase::Failed, failure.reason, failure.message),
    };
    let before = Before::of(request, plan, approved, &[]);
    let outcome = not_reached(&work, &Stop::cancelled(), approved, before, id).await;
    execution.report.skip_the_rest();
    outcome
}

/// What `onFailure` makes of it.
async fn not_reached(work: &Work<'_>, stop: &Stop, approved: &[BoundItem], before: Before, id: &str) -> Outcome {
    let ended = if stop.cancelled {
        RollbackPhase::Cancelled
    } else {
        RollbackPhase::Failed
    };
    let wrote: BTreeSet<ObjectId> = before.wrote.into_iter().chain(work.touched()).collect();
    if wrote.is_empty() && !before.undoing {
        return Outcome::new(ended, stop.reason, format!("{}; nothing was written", stop.message));
    }
    let items = work.execution.report.read().items.unwrap_or_default();
    let so_far = format!(
        "{} done, {} failed, {} not touched",
        items.done, items.failed, items.untouched
    );
    match work.request().spec.on_failure {
        OnFailure::Stop | OnFailure::Continue => {
            Outcome::new(ended, stop.reason, format!("{}; {so_far}", stop.message))
        }
        OnFailure::Undo => {
            let gone = super::hold::leaves_with_all(&work.execution.context, work.request()).await;
            if let Ok(Some(why)) = gone {
                let message = format!("{}; {so_far}; nothing is taken back, for {why}", stop.message);
                return Outcome::new(ended, stop.reason, message);
            }
            let undone = work.undo(wrote, approved, id).await;
            match undone {
                Ok(()) => Outcome::new(
                    RollbackPhase::Undone,
                    stop.reason,
                    with_notes(format!("{}; {so_far}; all is as it was before", stop.message), work),
                ),
                Err(why) => Outcome::new(
                    RollbackPhase::Failed,
                    stop.reason,
                    format!("{}; {so_far}; going back failed, too: {}", stop.message, why.message),
                ),
            }
        }
    }
}
