//! What an execution has to say while it runs. It writes no status itself: each change has the request looked at, and the
//! controller publishes it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    api::{
        bounded::MAX_ROWS,
        rollback_request::{
            ItemFailure, ItemsStatus, RollbackPhase, RollbackRequestStatus, SnapshotVersion, StepState, StepStatus,
            TestResult, VerificationStatus,
        },
    },
    cluster::clock,
};

/// Counts of items are published at most this often; steps at once.
const COUNTS_EVERY: Duration = Duration::from_millis(500);
/// Most characters of a failure's message.
const MESSAGE: usize = 512;

/// Where an execution stands, as the status shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// `Executing` or `Verifying`.
    pub phase: RollbackPhase,
    /// Steps in order; those that are done stay.
    pub steps: Vec<StepStatus>,
    /// Counts of items and the first failures; absent before they are known.
    pub items: Option<ItemsStatus>,
    /// How verification went.
    pub verification: Option<VerificationStatus>,
    /// The snapshot taken right before the first write.
    pub safety_snapshot: Option<SnapshotVersion>,
    /// The snapshot taken after success.
    pub result_snapshot: Option<SnapshotVersion>,
}

struct Inner {
    report: Report,
    every_failure: Vec<ItemFailure>,
    every_result: Vec<TestResult>,
    notes: Vec<String>,
    counted: Option<Instant>,
    /// The counts as they were announced last.
    shown: Option<ItemsStatus>,
}

/// Collects the report; cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<dyn Fn() + Send + Sync>,
}

impl Reporter {
    /// Tells `changed` of every change.
    pub fn new(changed: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                report: Report {
                    phase: RollbackPhase::Executing,
                    ..Report::default()
                },
                every_failure: Vec::new(),
                every_result: Vec::new(),
                notes: Vec::new(),
                counted: None,
                shown: None,
            })),
            changed,
        }
    }

    /// Goes on from what an execution that was interrupted had published. What this process reported itself is newer.
    pub fn resume(&self, status: &RollbackRequestStatus) {
        if !self.lock().report.steps.is_empty() {
            return;
        }
        self.change(|report| {
            report.steps.clone_from(&status.steps);
            report.verification.clone_from(&status.verification);
            report.safety_snapshot.clone_from(&status.safety_snapshot);
            report.result_snapshot.clone_from(&status.result_snapshot);
            if status.phase == Some(RollbackPhase::Verifying) {
                report.phase = RollbackPhase::Verifying;
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Report)) {
        {
            let inner = &mut *self.lock();
            change(&mut inner.report);
            inner.shown.clone_from(&inner.report.items);
        }
        (self.changed)();
    }

    fn count(&self, change: impl FnOnce(&mut Inner)) {
        let due = {
            let inner = &mut *self.lock();
            change(inner);
            let due = inner.counted.is_none_or(|last| last.elapsed() >= COUNTS_EVERY);
            if due {
                inner.counted = Some(Instant::now());
                inner.shown.clone_from(&inner.report.items);
            }
            due
        };
        if due {
            (self.changed)();
        }
    }

    /// The report as it is now.
    pub fn read(&self) -> Report {
        self.lock().report.clone()
    }

    /// The report with the counts as they were announced last: what is published causes the next look, so that fresher ones would be
    /// written again and again.
    pub fn shown(&self) -> Report {
        let inner = self.lock();
        Report {
            items: inner.shown.clone(),
            ..inner.report.clone()
        }
    }

    /// Every failure, however many: the status holds the first ones.
    pub fn failures(&self) -> Vec<ItemFailure> {
        self.lock().every_failure.clone()
    }

    /// Every result of verification, whole.
    pub fn results(&self) -> Vec<TestResult> {
        self.lock().every_result.clone()
    }

    /// What a reader should know besides: images pinned, objects kept.
    pub fn notes(&self) -> Vec<String> {
        self.lock().notes.clone()
    }

    /// Announces steps that are still to come, and how many items there are to do.
    pub fn expect(&self, steps: &[&str], items: usize) {
        self.change(|report| {
            // After a crash: what is not among them is done.
            for step in report
                .steps
                .iter_mut()
                .filter(|step| !steps.contains(&step.name.as_str()))
            {
                if step.state == StepState::Running {
                    step.state = StepState::Done;
                    step.finished_at = Some(clock::now_time());
                }
            }
            for name in steps {
                if !report.steps.iter().any(|step| step.name == *name) {
                    report.steps.push(StepStatus {
                        name: (*name).to_owned(),
                        state: StepState::Waiting,
                        started_at: None,
                        finished_at: None,
                    });
                }
            }
            report.items = Some(ItemsStatus {
                untouched: i64::try_from(items).unwrap_or(i64::MAX),
                ..ItemsStatus::default()
            });
        });
    }

    /// A step begins.
    pub fn begin(&self, name: &str) {
        self.change(|report| {
            let step = entry(report, name);
            step.state = StepState::Running;
            step.started_at.get_or_insert_with(clock::now_time);
            step.finished_at = None;
        });
    }

    /// A step ends as `state`.
    pub fn end(&self, name: &str, state: StepState) {
        self.change(|report| {
            let step = entry(report, name);
            step.state = state;
            step.finished_at = Some(clock::now_time());
        });
    }

    /// Steps that never began are not needed any more.
    pub fn skip_the_rest(&self) {
        self.change(|report| {
            for step in &mut report.steps {
                if step.state == StepState::Waiting {
                    step.state = StepState::Skipped;
                }
            }
        });
    }

    /// An item is done.
    pub fn item_done(&self) {
        self.count(|inner| {
            let items = inner.report.items.get_or_insert_default();
            items.done += 1;
            items.untouched = (items.untouched - 1).max(0);
        });
    }

    /// An item failed.
    pub fn item_failed(&self, failure: ItemFailure) {
        self.count(|inner| {
            let items = inner.report.items.get_or_insert_default();
            items.untouched = (items.untouched - 1).max(0);
        });
        self.failed(failure);
    }

    /// Something else failed, of an object whose item is done.
    pub fn failed(&self, mut failure: ItemFailure) {
        failure.message = failure.message.map(|text| text.chars().take(MESSAGE).collect());
        self.count(|inner| {
            inner.every_failure.push(failure.clone());
            let items = inner.report.items.get_or_insert_default();
            items.failed += 1;
            if items.failures.len() < MAX_ROWS {
                items.failures.push(failure);
            } else {
                let more = items.failures_omitted.get_or_insert(0);
                *more = more.saturating_add(1);
            }
        });
    }

    /// Something that a reader should know.
    pub fn note(&self, note: String) {
        let mut inner = self.lock();
        if !inner.notes.contains(&note) {
            inner.notes.push(note);
        }
    }

    /// From now on what was written is proven; there is no way back to writing.
    pub fn verifying(&self) {
        self.change(|report| report.phase = RollbackPhase::Verifying);
    }

    /// How verification went, and every result of it.
    pub fn verified(&self, verification: VerificationStatus, every: Vec<TestResult>) {
        self.lock().every_result = every;
        self.change(|report| report.verification = Some(verification));
    }

    /// The safety snapshot is there.
    pub fn safety(&self, snapshot: SnapshotVersion) {
        self.change(|report| report.safety_snapshot = Some(snapshot));
    }

    /// The result snapshot is there.
    pub fn result(&self, snapshot: SnapshotVersion) {
        self.change(|report| report.result_snapshot = Some(snapshot));
    }
}

fn entry<'a>(report: &'a mut Report, name: &str) -> &'a mut StepStatus {
    let index = report.steps.iter().position(|step| step.name == name);
    let index = index.unwrap_or_else(|| {
        report.steps.push(StepStatus {
            name: name.to_owned(),
            state: StepState::Waiting,
            started_at: None,
            finished_at: None,
        });
        report.steps.len() - 1
    });
    &mut report.steps[index]
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn reporter() -> (Reporter, Arc<AtomicUsize>) {
        let pings = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&pings);
        let reporter = Reporter::new(Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        (reporter, pings)
    }

    #[tokio::test]
    async fn a_thousand_items_in_a_moment_are_no_thousand_status_writes() {
        let (reporter, pings) = reporter();
        reporter.expect(&["WriteConfiguration"], 1000);
        for _ in 0..1000 {
            reporter.item_done();
        }
        let items = reporter.read().items.unwrap();
        assert_eq!((items.done, items.untouched), (1000, 0));
        assert!(pings.load(Ordering::Relaxed) < 10, "{pings:?}");
        // Whoever looks in between sees the same, or would be looking for ever.
        let shown = reporter.shown().items.unwrap();
        assert!(shown.done < 1000, "{shown:?}");
        reporter.skip_the_rest();
        assert_eq!(reporter.shown(), reporter.read());
    }

    #[tokio::test]
    async fn failures_beyond_the_bound_are_counted_and_kept_for_the_whole_report() {
        let (reporter, _) = reporter();
        reporter.expect(&[], 20);
        for n in 0..20 {
            reporter.item_failed(ItemFailure {
                object: format!("ConfigMap/{n}"),
                reason: "Drift".into(),
                message: Some("x".repeat(1000)),
            });
        }
        let items = reporter.read().items.unwrap();
        assert_eq!(
            (items.failed, items.failures.len(), items.failures_omitted),
            (20, 16, Some(4))
        );
        assert_eq!(items.failures[0].message.as_ref().map(String::len), Some(MESSAGE));
        assert_eq!(reporter.failures().len(), 20);
    }

    #[tokio::test]
    async fn a_step_that_goes_on_after_a_crash_keeps_the_time_it_began() {
        let (first, _) = reporter();
        first.begin("TakeSafetySnapshot");
        let (again, _) = reporter();
        again.resume(&RollbackRequestStatus {
            steps: first.read().steps,
            ..RollbackRequestStatus::default()
        });
        again.begin("TakeSafetySnapshot");
        again.end("TakeSafetySnapshot", StepState::Done);
        let steps = again.read().steps;
        assert_eq!(steps.len(), 1);
        assert_eq!(steps[0].started_at, first.read().steps[0].started_at);
    }

    #[tokio::test]
    async fn a_step_that_was_under_way_in_a_crash_and_has_nothing_left_is_done() {
        let (reporter, _) = reporter();
        reporter.begin("WriteConfiguration");
        reporter.expect(&["WriteWorkloads"], 3);
        let steps = reporter.read().steps;
        assert_eq!((steps[0].state, steps[1].state), (StepState::Done, StepState::Waiting));
    }
}
