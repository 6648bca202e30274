//! Waits until the workloads that were written or restarted are healthy. By watches: no list is made.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future;
use serde_json::Value;
use tokio::time::Instant;

use super::{Stop, Work, items::failure, steps};
use crate::{
    api::{
        reasons,
        rollback_request::{ItemFailure, StepState},
    },
    capture::WantedKind,
    cluster::watch::{self, Seen, Subject},
    domain::{
        health::{Health, health_after, motion},
        object::ObjectId,
    },
};

/// A workload that has to become healthy.
#[derive(Clone, Debug)]
pub(super) struct Rollout {
    /// UID of the object that was written.
    pub uid: String,
    /// Its generation then: what an older one says is of no interest.
    pub generation: i64,
    /// The resourceVersion at which it was healthy; 0 before. A watch may begin with an older state.
    pub healthy_at: u64,
    /// What it said of its rollout in the answer to the write, which is about the rollout before.
    pub progress: Option<Value>,
    /// How long nothing of it may move.
    pub progress_deadline: Option<Duration>,
}

impl Rollout {
    /// Whether `object` is the one that was written, and no older state of it.
    fn is_about(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        metadata["uid"] == self.uid.as_str()
            && metadata["generation"]
                .as_i64()
                .is_none_or(|seen| seen >= self.generation)
            && revision(object) >= self.healthy_at
    }
}

/// `metadata.resourceVersion` as a number, which the API promises it to be; 0 where it is none.
pub(super) fn revision(object: &Value) -> u64 {
    let version = object["metadata"]["resourceVersion"].as_str();
    version.and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Whether a rollback waits for objects of this kind.
pub(super) fn is_waited_for(id: &ObjectId) -> bool {
    matches!(
        (id.group.as_str(), id.kind.as_str()),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") | ("batch", "Job") | ("", "Pod")
    )
}

/// The Deployment controller says itself when the time for progress is over, but not always: where a rollout goes back to a
/// `ReplicaSet` that is still there and its first steps are seen at once, it takes the rollout for complete and measures nothing. So
/// much longer it has to say so.
const UNSAID: Duration = Duration::from_secs(30);

/// What is said of a workload that goes meanwhile.
const DELETED: &str = "it was deleted while the rollback waited for it";

/// A workload that is not healthy yet.
struct Waited {
    rollout: Rollout,
    /// What it said last.
    said: String,
    /// What changes while it moves, and when it last did.
    motion: Option<([i64; 4], Option<Value>)>,
    moved: Instant,
}

impl Waited {
    fn new(rollout: Rollout) -> Self {
        Self {
            rollout,
            said: "it was not seen yet".into(),
            motion: None,
            moved: Instant::now(),
        }
    }

    fn see(&mut self, id: &ObjectId, object: &Value) {
        let motion = Some(motion(id, object));
        if self.motion != motion {
            self.motion = motion;
            self.moved = Instant::now();
        }
    }

    /// When it has stood still for too long.
    fn stalls_at(&self) -> Option<Instant> {
        Some(self.moved + self.rollout.progress_deadline? + UNSAID)
    }
}

/// Workloads of one kind that are not healthy yet, by name.
type Waiting = BTreeMap<String, Waited>;

impl Work<'_> {
    /// Waits until every workload of this execution is healthy; the failures are counted.
    pub(super) async fn healthy(&self) -> Result<(), Stop> {
        let failures = self.unhealthy(self.deadline).await?;
        for failure in &failures {
            self.execution.report.failed(failure.clone());
        }
        self.settle(failures)
    }

    /// Waits until what was taken back is healthy, too. It is as it was, so that what is not healthy is noted and fails nothing; who
    /// cancels does not wait for it.
    pub(super) async fn healthy_after_undo(&self) {
        if !self.rolls_anything_out() {
            return;
        }
        let report = &self.execution.report;
        report.begin(steps::UNDO_HEALTH);
        let seen = tokio::select! {
            biased;
            () = self.execution.cancel.cancelled() => None,
            seen = self.unhealthy(self.deadline) => seen.ok(),
        };
        let state = match seen {
            None => StepState::Skipped,
            Some(unhealthy) if unhealthy.is_empty() => StepState::Done,
            Some(unhealthy) => {
                for failure in unhealthy {
                    let why = failure.message.unwrap_or_default();
                    report.note(format!("{} is as it was, but not healthy: {why}", failure.object));
                }
                StepState::Failed
            }
        };
        report.end(steps::UNDO_HEALTH, state);
    }

    /// Waits until all is healthy, one fails, or it is too late; what is not healthy then.
    async fn unhealthy(&self, deadline: Instant) -> Result<Vec<ItemFailure>, Stop> {
        let mut by_kind: BTreeMap<(String, String), Waiting> = BTreeMap::new();
        for (id, rollout) in self.rollouts() {
            by_kind
                .entry((id.group.clone(), id.kind.clone()))
                .or_default()
                .insert(id.name, Waited::new(rollout));
        }
        let waits = by_kind.into_iter().filter_map(|(kind, waiting)| {
            let served = self.kinds.get(&kind)?;
            Some(self.kind_healthy(served, waiting, deadline))
        });
        // One that has failed ends the wait for all: nothing mends itself by waiting for the others.
        let all = future::try_join_all(waits);
        tokio::select! {
            outcome = all => match outcome {
                Ok(late) => Ok(late.into_iter().flatten().collect()),
                Err(failed) => Ok(failed),
            },
            () = self.cancel.cancelled() => Err(Stop::cancelled()),
        }
    }

    /// `Ok`: those that were late, none if all is well. `Err`: those that have failed.
    async fn kind_healthy(
        &self,
        kind: &Arc<WantedKind>,
        mut waiting: Waiting,
        deadline: Instant,
    ) -> Result<Vec<ItemFailure>, Vec<ItemFailure>> {
        let subject = Subject {
            collection: kind.collection(Some(&self.namespace)),
            name: match waiting.keys().next() {
                Some(only) if waiting.len() == 1 => Some(only.clone()),
                _ => None,
            },
            from: None,
        };
        let of = |name: &str| ObjectId::new(&kind.info.group, &kind.info.kind, name);
        let client = &self.execution.context.client;
        loop {
            let stalled_at = waiting.values().filter_map(Waited::stalls_at).min();
            let end = stalled_at.map_or(deadline, |at| at.min(deadline));
            let ended = watch::until(client, &subject, end, |seen| self.see(&mut waiting, kind, &seen)).await;
            if let Some(outcome) = ended {
                return outcome;
            }
            if let Some(outcome) = self.stalled(&mut waiting, kind).await {
                return outcome;
            }
            let now = Instant::now();
            if now >= deadline {
                let late = waiting.iter().map(|(name, waited)| {
                    let why = format!("it was not healthy in time: {}", waited.said);
                    failure(&of(name), reasons::DEADLINE_EXCEEDED, why)
                });
                return Ok(late.collect());
            }
        }
    }

    /// Reads what seems to stand still, for a watch that was interrupted has not seen it move; those that do have failed.
    async fn stalled(
        &self,
        waiting: &mut Waiting,
        kind: &WantedKind,
    ) -> Option<Result<Vec<ItemFailure>, Vec<ItemFailure>>> {
        let now = Instant::now();
        let stands_still = |waited: &Waited| waited.stalls_at().is_some_and(|at| at <= now);
        let names: Vec<String> = waiting
            .iter()
            .filter(|(_, waited)| stands_still(waited))
            .map(|(name, _)| name.clone())
            .collect();
        let mut failures = Vec::new();
        for name in names {
            let id = ObjectId::new(&kind.info.group, &kind.info.kind, &name);
            let read = match self.place(&id) {
                Ok(place) => self.read(&id, &place).await,
                Err(failure) => Err(failure),
            };
            match read {
                Ok(Some(object)) => {
                    if let Some(outcome) = self.see(waiting, kind, &Seen::There(&object)) {
                        return Some(outcome);
                    }
                }
                Ok(None) => {
                    failures.push(failure(&id, reasons::ROLLOUT_FAILED, DELETED));
                    continue;
                }
                Err(failure) => {
                    failures.push(failure);
                    continue;
                }
            }
            if let Some(waited) = waiting.get(&name).filter(|waited| stands_still(waited)) {
                let still = now.duration_since(waited.moved).as_secs();
                let why = format!(
                    "ProgressDeadlineExceeded: nothing of it moved for {still} s: {}",
                    waited.said
                );
                failures.push(failure(&id, reasons::ROLLOUT_FAILED, why));
            }
        }
        (!failures.is_empty()).then_some(Err(failures))
    }

    /// Notes what was seen; the end of the wait, if it is one.
    fn see(
        &self,
        waiting: &mut Waiting,
        kind: &WantedKind,
        seen: &Seen<'_>,
    ) -> Option<Result<Vec<ItemFailure>, Vec<ItemFailure>>> {
        let (object, gone) = match seen {
            Seen::There(object) => (object, false),
            Seen::Gone(object) => (object, true),
        };
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let waited = waiting.get_mut(name)?;
        if !waited.rollout.is_about(object) {
            return None;
        }
        let id = ObjectId::new(&kind.info.group, &kind.info.kind, name);
        waited.see(&id, object);
        if gone {
            return Some(Err(vec![failure(&id, reasons::ROLLOUT_FAILED, DELETED)]));
        }
        match health_after(&id, waited.rollout.progress.as_ref(), object) {
            Health::Current => {
                self.now_healthy(&id, object);
                waiting.remove(name);
            }
            Health::InProgress(what) => waited.said = what,
            Health::Unknown => "its status cannot be read".clone_into(&mut waited.said),
            Health::Failed(why) => return Some(Err(vec![failure(&id, reasons::ROLLOUT_FAILED, why)])),
        }
        waiting.is_empty().then_some(Ok(Vec::new()))
    }

    /// Whether all stays healthy for `window`; what did not.
    pub(super) async fn stays_healthy(&self, window: Duration) -> Result<(), Stop> {
        let end = (Instant::now() + window).min(self.deadline);
        let mut by_kind: BTreeMap<(String, String), BTreeMap<String, Rollout>> = BTreeMap::new();
        for (id, rollout) in self.rollouts() {
            let kind = (id.group.clone(), id.kind.clone());
            by_kind.entry(kind).or_default().insert(id.name, rollout);
        }
        let watches = by_kind.into_iter().filter_map(|(kind, rollouts)| {
            let served = Arc::clone(self.kinds.get(&kind)?);
            Some(self.breaks(served, rollouts, end))
        });
        let broken = tokio::select! {
            broken = future::join_all(watches) => broken,
            () = self.cancel.cancelled() => return Err(Stop::cancelled()),
        };
        // Without workloads nothing is watched, but what the tests saw must still hold for the window.
        tokio::select! {
            () = tokio::time::sleep_until(end) => {}
            () = self.cancel.cancelled() => return Err(Stop::cancelled()),
        }
        let failures: Vec<ItemFailure> = broken.into_iter().flatten().collect();
        for failure in &failures {
            self.execution.report.failed(failure.clone());
        }
        self.settle(failures)
    }

    /// The first of `rollouts` that is not healthy any more before `end`.
    async fn breaks(
        &self,
        kind: Arc<WantedKind>,
        rollouts: BTreeMap<String, Rollout>,
        end: Instant,
    ) -> Option<ItemFailure> {
        let subject = Subject {
            collection: kind.collection(Some(&self.namespace)),
            name: None,
            from: None,
        };
        let client = &self.execution.context.client;
        watch::until(client, &subject, end, |seen| {
            let (object, gone) = match seen {
                Seen::There(object) => (object, false),
                Seen::Gone(object) => (object, true),
            };
            let name = object["metadata"]["name"].as_str()?;
            let rollout = rollouts.get(name)?;
            if !rollout.is_about(object) {
                return None;
            }
            let id = ObjectId::new(&kind.info.group, &kind.info.kind, name);
            let why = match health_after(&id, rollout.progress.as_ref(), object) {
                _ if gone => "it was deleted".to_owned(),
                Health::Current => return None,
                Health::InProgress(why) | Health::Failed(why) => why,
                Health::Unknown => "its status cannot be read".to_owned(),
            };
            let why = format!("it did not stay healthy for the time of verify.stabilize: {why}");
            Some(failure(&id, reasons::ROLLOUT_FAILED, why))
        })
        .await
    }
}
