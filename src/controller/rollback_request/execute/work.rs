//! What the parts of an execution share.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Before, Execution, Made, Stop,
    health::{Rollout, is_waited_for, revision},
    items::{delays, failure, is_write},
    snapshots::{self, Kind, Taken},
    steps,
};
use crate::{
    api::{
        RollbackRequest, duration, reasons,
        rollback_request::{ItemFailure, OnFailure, StepState},
        verify::VerifyOutcome,
    },
    capture::{Failure, WantedKind},
    cluster::{Class, write::Written},
    controller::{
        answers::Answers,
        rollback_request::{live::LiveObject, repository, store_failure, verify},
    },
    domain::{
        health::{progress, progress_deadline},
        object::ObjectId,
        plan::Item,
        snapshot::Extras,
    },
    repository::LineageKey,
};

type Kinds = BTreeMap<(String, String), Arc<WantedKind>>;

/// One way through a plan: the way to the target, or the way back.
pub(super) struct Work<'a> {
    pub execution: &'a Execution,
    pub namespace: String,
    pub lineage: LineageKey,
    /// What is served.
    pub kinds: Cow<'a, Kinds>,
    /// What was live when the plan was made.
    pub live: HashMap<&'a ObjectId, &'a LiveObject>,
    /// What the snapshot that it leads to holds besides objects.
    pub extras: Cow<'a, Extras>,
    /// The mark of restarts.
    pub restarted_at: Timestamp,
    pub deadline: Instant,
    pub cancel: CancellationToken,
    /// Items of the way back are no items of the plan.
    pub is_back: bool,
    /// For the snapshot afterwards; `None` where there will be none.
    pub answers: Option<Arc<Answers>>,
    on_failure: OnFailure,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// UIDs of objects that this execution brought about: others may name them as owners.
    created: HashMap<ObjectId, String>,
    /// Objects that this execution wrote, or may have written.
    touched: HashSet<ObjectId>,
    /// Workloads that have to become healthy.
    rollouts: BTreeMap<ObjectId, Rollout>,
    /// Workloads as they were when they were healthy.
    healthy: BTreeMap<ObjectId, Value>,
    /// Objects that may differ from the target.
    excepted: BTreeSet<ObjectId>,
}

fn by_id(made: &Made) -> HashMap<&ObjectId, &LiveObject> {
    made.sides.live.iter().map(|live| (&live.id, live)).collect()
}

impl<'a> Work<'a> {
    /// The way to the target.
    pub(super) fn forward(execution: &'a Execution, made: &'a Made) -> Result<Self, Failure> {
        Ok(Self {
            kinds: Cow::Borrowed(&made.sides.kinds),
            live: by_id(made),
            extras: Cow::Borrowed(&made.extras),
            answers: execution.request.spec.result_snapshot.then(Arc::default),
            on_failure: execution.request.spec.on_failure,
            ..Self::bare(execution)?
        })
    }

    /// The way back, all of it, whatever becomes of single items.
    pub(super) fn back(execution: &'a Execution, made: &'a Made, deadline: Instant) -> Result<Self, Failure> {
        Ok(Self {
            kinds: Cow::Borrowed(&made.sides.kinds),
            live: by_id(made),
            extras: Cow::Borrowed(&made.extras),
            // Another mark than on the way there, and the same after a crash.
            restarted_at: execution
                .started
                .saturating_add(SignedDuration::from_secs(1))
                .unwrap_or(execution.started),
            deadline,
            cancel: CancellationToken::new(),
            is_back: true,
            on_failure: OnFailure::Continue,
            ..Self::bare(execution)?
        })
    }

    /// Nothing is to be written.
    pub(super) fn proof(execution: &'a Execution, extras: Extras) -> Result<Self, Failure> {
        Ok(Self {
            extras: Cow::Owned(extras),
            ..Self::bare(execution)?
        })
    }

    fn bare(execution: &'a Execution) -> Result<Self, Failure> {
        let repository = repository(&execution.context)?;
        let record = repository.snapshot(&execution.resolved.uid).ok_or_else(|| {
            let why = "the contents of the target are not in the repository any more";
            Failure::new(Class::Invalid, reasons::TARGET_NOT_FOUND, why)
        })?;
        Ok(Self {
            execution,
            namespace: execution.request.namespace().unwrap_or_default(),
            lineage: record.lineage_key(),
            kinds: Cow::Owned(Kinds::new()),
            live: HashMap::new(),
            extras: Cow::Owned(Extras::default()),
            restarted_at: execution.started,
            deadline: execution.deadline,
            cancel: execution.cancel.clone(),
            is_back: false,
            answers: None,
            on_failure: OnFailure::Stop,
            state: Mutex::default(),
        })
    }

    pub(super) fn request(&self) -> &'a RollbackRequest {
        &self.execution.request
    }

    /// Whether the failure of one item leaves the others to be done.
    pub(super) fn goes_on(&self) -> bool {
        self.on_failure == OnFailure::Continue
    }

    /// What failures, which are reported already, mean for the rest.
    #[allow(clippy::needless_pass_by_value, reason = "what was settled is not settled again")]
    pub(super) fn settle(&self, failures: Vec<ItemFailure>) -> Result<(), Stop> {
        match Stop::of(&failures) {
            Some(stop) if !self.goes_on() => Err(stop),
            _ => Ok(()),
        }
    }

    /// Whether it was cancelled.
    pub(super) fn check(&self) -> Result<(), Stop> {
        if self.cancel.is_cancelled() {
            return Err(Stop::cancelled());
        }
        Ok(())
    }

    /// One step, as the status shows it.
    pub(super) async fn step(&self, name: &str, work: impl Future<Output = Result<(), Stop>>) -> Result<(), Stop> {
        self.check()?;
        let report = &self.execution.report;
        let failed = || report.read().items.map_or(0, |items| items.failed);
        let before = failed();
        report.begin(name);
        let done = work.await;
        let good = done.is_ok() && failed() == before;
        report.end(name, if good { StepState::Done } else { StepState::Failed });
        done
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the server serves the kind of `id`.
    pub(super) fn kind(&self, id: &ObjectId) -> Result<&Arc<WantedKind>, ItemFailure> {
        self.kinds.get(&(id.group.clone(), id.kind.clone())).ok_or_else(|| {
            let why = "the server does not serve its kind; install its definition and make a new request";
            failure(id, reasons::WRITE_REFUSED, why)
        })
    }

    /// UIDs of the owners of `item` that this execution created.
    pub(super) fn owners_of(&self, item: &Item) -> BTreeMap<ObjectId, String> {
        let pending = item.desired.as_ref().map(|wanted| wanted.pending_owners.as_slice());
        let pending = pending.unwrap_or_default();
        if pending.is_empty() {
            return BTreeMap::new();
        }
        let state = self.lock();
        pending
            .iter()
            .filter_map(|owner| Some((owner.clone(), state.created.get(owner)?.clone())))
            .collect()
    }

    /// `id` is about to be written.
    pub(super) fn remember(&self, id: &ObjectId) {
        self.lock().touched.insert(id.clone());
    }

    /// `id` was not written after all.
    pub(super) fn forget(&self, id: &ObjectId) {
        self.lock().touched.remove(id);
    }

    /// Objects that this execution wrote, or may have written.
    pub(super) fn touched(&self) -> BTreeSet<ObjectId> {
        self.lock().touched.iter().cloned().collect()
    }

    /// `item` was brought about.
    pub(super) fn wrote(&self, item: &Item, written: Written) {
        if !is_write(&item.action) {
            return;
        }
        self.lock().created.insert(item.id.clone(), written.uid);
        if is_waited_for(&item.id) {
            // Its controller writes to it at once, so that the answer tells nothing of it as it will be.
            self.rolls_out(&item.id, &written.object);
        } else if let (Some(answers), Ok(kind)) = (&self.answers, self.kind(&item.id)) {
            answers.note(kind, written.object.into_value());
        }
    }

    /// `id` was restarted.
    pub(super) fn restarted(&self, id: &ObjectId, workload: &Value) {
        self.remember(id);
        self.rolls_out(id, workload);
    }

    /// `id` was brought about before a crash.
    pub(super) fn was_written(&self, id: &ObjectId) {
        let Some(live) = self.live.get(id) else {
            return;
        };
        self.lock().created.insert(id.clone(), live.uid.clone());
        if !live.raw.is_null() {
            self.rolls_out(id, &live.raw);
        }
    }

    /// The workload as it was written has to become healthy.
    pub(super) fn rolls_out(&self, id: &ObjectId, workload: &Value) {
        if !is_waited_for(id) {
            return;
        }
        let metadata = &workload["metadata"];
        let rollout = Rollout {
            uid: metadata["uid"].as_str().unwrap_or_default().to_owned(),
            generation: metadata["generation"].as_i64().unwrap_or(0),
            healthy_at: 0,
            progress: progress(id, workload).cloned(),
            progress_deadline: progress_deadline(id, workload),
        };
        let mut state = self.lock();
        state.healthy.remove(id);
        state.rollouts.insert(id.clone(), rollout);
    }

    /// Whether any workload was written or restarted.
    pub(super) fn rolls_anything_out(&self) -> bool {
        !self.lock().rollouts.is_empty()
    }

    /// Workloads that have to become or stay healthy.
    pub(super) fn rollouts(&self) -> BTreeMap<ObjectId, Rollout> {
        self.lock().rollouts.clone()
    }

    /// `id` is healthy.
    pub(super) fn now_healthy(&self, id: &ObjectId, workload: &Value) {
        let mut state = self.lock();
        if let Some(rollout) = state.rollouts.get_mut(id) {
            rollout.healthy_at = revision(workload);
        }
        state.healthy.insert(id.clone(), workload.clone());
    }

    /// The workloads of this execution as they were when they were healthy.
    pub(super) fn workloads(&self) -> BTreeMap<ObjectId, Value> {
        self.lock().healthy.clone()
    }

    /// The snapshot before the first write. One that an interrupted execution took is found; it is never taken a second time.
    pub(super) async fn safety(&self, items: &[&Item], before: &Before) -> Result<(), Stop> {
        if before.begun {
            let found = self.find(Kind::Safety).await;
            let found = found.map_err(|error| Stop::failed(reasons::SAFETY_SNAPSHOT_FAILED, error.to_string()))?;
            if found.is_none() {
                let note = "the safety snapshot was deleted meanwhile: there is no way back any more";
                self.execution.report.note(note.to_owned());
                return Ok(());
            }
        }
        let taken = self.take(Kind::Safety, items, self.deadline).await?;
        self.execution.report.safety(taken.version());
        Ok(())
    }

    /// The safety snapshot as a target.
    pub(super) async fn way_back(&self) -> Result<Taken, String> {
        match self.find(Kind::Safety).await {
            Ok(Some(snapshot)) => snapshots::resolved(&snapshot),
            Ok(None) => Err("there is no safety snapshot".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Runs the tests, and sees that the workloads stay healthy for the stability window meanwhile. Without `spec.verify` there is
    /// nothing to do.
    pub(super) async fn verify(&self) -> Result<(), Stop> {
        let Some(spec) = &self.request().spec.verify else {
            return Ok(());
        };
        let window = duration::parse(&spec.stabilize).unwrap_or_default();
        self.execution.report.verifying();
        let proven = Box::pin(async {
            futures::try_join!(self.tests(), self.stays_healthy(window))?;
            Ok(())
        });
        self.step(steps::VERIFY, proven).await
    }

    async fn tests(&self) -> Result<(), Stop> {
        let excepted = self.lock().excepted.clone();
        let subject = verify::Subject {
            context: &self.execution.context,
            catalog: &self.execution.catalog,
            request: self.request(),
            resolved: &self.execution.resolved,
            excepted: &excepted,
        };
        let (status, every) = verify::run(&subject, self.deadline, &self.cancel).await;
        let report = &self.execution.report;
        report.verified(status.clone(), every);
        self.check()?;
        if status.status == VerifyOutcome::Passed {
            return Ok(());
        }
        let outcome = format!("{:?}", status.status);
        let first = status.results.iter().find(|result| !result.passed);
        let failure = ItemFailure {
            object: first.map_or_else(|| "Verify".to_owned(), |result| result.test.clone()),
            reason: reasons::VERIFICATION_FAILED.to_owned(),
            message: Some(first.map_or(outcome, |result| {
                format!("expected {}, saw: {}", result.expected, result.actual)
            })),
        };
        report.failed(failure.clone());
        self.settle(vec![failure])
    }

    /// `id` may differ from the target.
    pub(super) fn except(&self, ids: impl IntoIterator<Item = ObjectId>) {
        self.lock().excepted.extend(ids);
    }

    async fn head(&self, version: u64) -> Result<(), Failure> {
        let repository = repository(&self.execution.context)?;
        let set = repository.set_head(&self.lineage, version).await;
        set.map_err(|error| store_failure(&error))
    }

    /// Says that the target is live, and takes the snapshot that proves it.
    pub(super) async fn conclude(&self) -> Result<(), Stop> {
        let version = u64::try_from(self.execution.resolved.version).unwrap_or_default();
        let mut delays = delays();
        while let Err(failure) = self.head(version).await {
            let delay = delays.next().unwrap_or_default();
            let waited = tokio::time::timeout_at(self.deadline, tokio::time::sleep(delay)).await;
            if failure.class != Class::Transient || waited.is_err() {
                return Err(failure.into());
            }
        }
        if !self.request().spec.result_snapshot {
            return Ok(());
        }
        self.step(steps::RESULT, async {
            let taken = self.take(Kind::Result, &[], self.deadline).await?;
            self.execution.report.result(taken.version());
            Ok(())
        })
        .await
    }
}
