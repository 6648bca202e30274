//! How the tests of a rollback come to one answer: what a look at each test saw goes in, the status comes out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use super::{
    object::{Digest, ObjectId},
    plan::{Action, Plan},
};
use crate::api::{
    bounded::bounded,
    rollback_request::{TestResult, VerificationStatus},
    snapshot::ImageStatus,
    verify::VerifyOutcome,
};

/// Most characters of `expected` and `actual` of a result.
const TEXT: usize = 256;
/// Most bytes of JSON that the results take in a status.
const RESULT_BYTES: usize = 4096;
/// Shortest pause between two rounds.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest pause between two rounds.
const LONG_PAUSE: Duration = Duration::from_secs(30);
/// Names of objects in one text.
const SHOWN: usize = 3;

/// What a look at one test saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How it went.
    pub outcome: VerifyOutcome,
    /// What was seen, without any content of an object.
    pub actual: String,
}

impl Seen {
    /// As expected.
    pub fn passed(actual: impl Into<String>) -> Self {
        Self {
            outcome: VerifyOutcome::Passed,
            actual: actual.into(),
        }
    }

    /// Not as expected.
    pub fn failed(actual: impl Into<String>) -> Self {
        Self {
            outcome: VerifyOutcome::Failed,
            actual: actual.into(),
        }
    }

    /// Could not be told.
    pub fn inconclusive(actual: impl Into<String>) -> Self {
        Self {
            outcome: VerifyOutcome::Inconclusive,
            actual: actual.into(),
        }
    }
}

/// A test and the last look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Name of the test.
    pub test: String,
    /// What was expected.
    pub expected: String,
    /// What was seen.
    pub seen: Seen,
}

/// All in all: one failure is failure, and what could not be told is never a pass.
pub fn all_in_all(results: &[Checked]) -> VerifyOutcome {
    let any = |outcome| results.iter().any(|result| result.seen.outcome == outcome);
    if any(VerifyOutcome::Failed) {
        VerifyOutcome::Failed
    } else if any(VerifyOutcome::Inconclusive) {
        VerifyOutcome::Inconclusive
    } else {
        VerifyOutcome::Passed
    }
}

/// Every result, in the order of the tests, with its whole texts.
pub fn every(results: &[Checked], window: Option<&Checked>) -> Vec<TestResult> {
    let result = |checked: &Checked| TestResult {
        test: checked.test.clone(),
        expected: checked.expected.clone(),
        actual: checked.seen.actual.clone(),
        passed: checked.seen.outcome == VerifyOutcome::Passed,
    };
    results.iter().chain(window).map(result).collect()
}

/// The status: results that failed come first, then those that could not be told; at most 16, texts of at most 256 characters.
/// `window` is why the stability window did not hold although every test passed.
pub fn status(results: &[Checked], window: Option<Checked>) -> VerificationStatus {
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let passed = |result: &&Checked| result.seen.outcome == VerifyOutcome::Passed;
    let (total, good) = (results.len(), results.iter().filter(passed).count());
    let mut rows: Vec<Checked> = results.to_vec();
    rows.extend(window);
    let outcome = all_in_all(&rows);
    rows.sort_by_key(|row| match row.seen.outcome {
        VerifyOutcome::Failed => 0,
        VerifyOutcome::Inconclusive => 1,
        VerifyOutcome::Passed => 2,
    });
    let rows = rows.into_iter().map(|row| TestResult {
        test: row.test,
        expected: cut(&row.expected),
        actual: cut(&row.seen.actual),
        passed: row.seen.outcome == VerifyOutcome::Passed,
    });
    let (results, results_omitted) = bounded(rows, RESULT_BYTES);
    VerificationStatus {
        status: outcome,
        passed: count(good),
        total: count(total),
        results,
        results_omitted,
    }
}

fn cut(text: &str) -> String {
    if text.chars().count() <= TEXT {
        return text.to_owned();
    }
    text.chars().take(TEXT - 1).chain(['…']).collect()
}

/// The way from the first round of looks to the end; times are since verification began.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// How long everything must hold after the first pass.
    pub stabilize: Duration,
    /// How long all of it may take.
    pub timeout: Duration,
    first_pass: Option<Duration>,
}

/// What comes after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: the answer is there.
    Over(Verdict),
    /// Another round, after this pause.
    Again(Duration),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The last round says it.
    AsSeen,
    /// Everything passed, but the time is over before it could hold for the whole window; it held this long.
    WindowCutShort(Duration),
}

impl Course {
    /// A course of which nothing is seen.
    pub const fn new(stabilize: Duration, timeout: Duration) -> Self {
        Self {
            stabilize,
            timeout,
            first_pass: None,
        }
    }

    /// Decides after a round that began and ended then, in this order:
    /// 1. a test failed: over, whether before the first pass or inside the window;
    /// 2. all passed, in a round that began after the window: over;
    /// 3. what could not be told, or a window that the time does not allow: over when the time is;
    /// 4. another round; the longer one takes, the longer the pause.
    pub fn after(&mut self, outcome: VerifyOutcome, began: Duration, ended: Duration) -> Next {
        let pause = (ended.saturating_sub(began) * 10).clamp(PAUSE, LONG_PAUSE);
        match outcome {
            VerifyOutcome::Failed => Next::Over(Verdict::AsSeen),
            VerifyOutcome::Passed => {
                let first = *self.first_pass.get_or_insert(ended);
                let holds_at = first.saturating_add(self.stabilize);
                if began >= holds_at {
                    return Next::Over(Verdict::AsSeen);
                }
                if holds_at >= self.timeout {
                    return Next::Over(Verdict::WindowCutShort(ended.saturating_sub(first)));
                }
                Next::Again(pause.min(holds_at.saturating_sub(ended)))
            }
            VerifyOutcome::Inconclusive if ended.saturating_add(pause) >= self.timeout => Next::Over(Verdict::AsSeen),
            VerifyOutcome::Inconclusive => Next::Again(pause),
        }
    }
}

/// Objects that differ from the target after `plan`: kept, skipped, pinned, or with fields in which live wins.
pub fn excepted<State>(plan: &Plan<State>) -> BTreeSet<ObjectId> {
    plan.items()
        .iter()
        .filter(|item| {
            let left = matches!(item.action, Action::Keep(_) | Action::Skip(_));
            let other = item
                .desired
                .as_ref()
                .is_some_and(|desired| !desired.kept.is_empty() || !desired.pinned.is_empty());
            left || other
        })
        .map(|item| item.id.clone())
        .collect()
}

/// How live differs from the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// In the target, not live.
    pub missing: Vec<ObjectId>,
    /// With another content.
    pub changed: Vec<ObjectId>,
    /// Live, not in the target.
    pub added: Vec<ObjectId>,
    /// Workloads whose containers run other digests.
    pub images: BTreeSet<String>,
    /// Differences that were expected.
    pub expected: usize,
}

impl Differences {
    /// Compares contents by digest.
    pub fn between(target: &BTreeMap<ObjectId, Digest>, live: &BTreeMap<ObjectId, Digest>) -> Self {
        let mut found = Self::default();
        for (id, digest) in target {
            match live.get(id) {
                Some(now) if now == digest => {}
                Some(_) => found.changed.push(id.clone()),
                None => found.missing.push(id.clone()),
            }
        }
        found.added = live.keys().filter(|id| !target.contains_key(id)).cloned().collect();
        found
    }

    /// Adds workloads that run another digest than captured. What only one side knows is no difference: no Pod had reported it.
    pub fn compare_images(&mut self, target: &[ImageStatus], live: &[ImageStatus]) {
        let runs: BTreeMap<(&str, &str), &str> = live
            .iter()
            .filter_map(|image| Some(((&*image.workload, &*image.container), image.digest.as_deref()?)))
            .collect();
        for image in target {
            // Pods of jobs come and go although nobody changed anything.
            if image.workload.starts_with("Job/") || image.workload.starts_with("CronJob/") {
                continue;
            }
            let now = runs.get(&(&*image.workload, &*image.container));
            if let (Some(then), Some(now)) = (image.digest.as_deref(), now)
                && then != *now
            {
                self.images.insert(image.workload.clone());
            }
        }
    }

    /// Objects with another content, missing ones and added ones.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectId> {
        self.missing.iter().chain(&self.changed).chain(&self.added)
    }

    /// Takes out what may differ.
    pub fn except(&mut self, excepted: &BTreeSet<ObjectId>) {
        let count = |found: &Self| found.objects().count() + found.images.len();
        let before = count(self);
        for list in [&mut self.missing, &mut self.changed, &mut self.added] {
            list.retain(|id| !excepted.contains(id));
        }
        let named: BTreeSet<String> = excepted.iter().map(|id| format!("{}/{}", id.kind, id.name)).collect();
        self.images.retain(|workload| !named.contains(workload));
        self.expected += before - count(self);
    }

    /// Whether nothing differs that should not.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.changed.is_empty() && self.added.is_empty() && self.images.is_empty()
    }
}

/// `1 missing (ConfigMap/web), 2 changed (…)`; names only.
impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = |ids: &[ObjectId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        let parts = [
            ("missing", ids(&self.missing)),
            ("changed", ids(&self.changed)),
            ("not in the snapshot", ids(&self.added)),
            ("with other images", self.images.iter().cloned().collect()),
        ];
        let mut first = true;
        for (what, names) in parts.iter().filter(|(_, names)| !names.is_empty()) {
            if !first {
                f.write_str(", ")?;
            }
            first = false;
            let more = if names.len() > SHOWN { " …" } else { "" };
            let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(" ");
            write!(f, "{} {what} ({shown}{more})", names.len())?;
        }
        if first {
            f.write_str("equal")?;
        }
        if self.expected > 0 {
            write!(f, "; {} differ as the plan says", self.expected)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use VerifyOutcome::{Failed, Inconclusive, Passed};

    use super::*;

    fn checked(test: &str, outcome: VerifyOutcome) -> Checked {
        Checked {
            test: test.into(),
            expected: "x".repeat(300),
            seen: Seen {
                outcome,
                actual: "ü".repeat(300),
            },
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_failure_is_failure_and_what_could_not_be_told_is_never_a_pass() {
        let of = |outcomes: &[VerifyOutcome]| {
            let results: Vec<_> = outcomes.iter().map(|o| checked("t", *o)).collect();
            status(&results, None).status
        };
        assert_eq!(of(&[Passed, Passed]), Passed);
        assert_eq!(of(&[Passed, Inconclusive]), Inconclusive);
        assert_eq!(of(&[Inconclusive, Failed, Passed]), Failed);
    }

    #[test]
    fn a_status_shows_failures_first_and_stays_small() {
        let mut results: Vec<_> = (0..30).map(|n| checked(&format!("good-{n}"), Passed)).collect();
        results.push(checked("unknown", Inconclusive));
        results.push(checked("bad", Failed));
        let status = status(&results, None);
        assert_eq!((status.passed, status.total), (30, 32));
        assert_eq!(status.results[0].test, "bad");
        assert_eq!(status.results[1].test, "unknown");
        assert!(status.results.len() <= 16);
        assert_eq!(
            status.results_omitted,
            Some(i32::try_from(32 - status.results.len()).unwrap())
        );
        for row in &status.results {
            assert!(row.expected.chars().count() <= 256 && row.actual.chars().count() <= 256);
        }
        assert!(serde_json::to_string(&status).unwrap().len() < 6 * 1024);
        let every = every(&results, None);
        assert_eq!((every.len(), every[0].actual.chars().count()), (32, 300));
    }

    #[test]
    fn a_window_that_did_not_hold_is_no_pass_though_every_test_passed() {
        let window = checked("(stability window)", Inconclusive);
        let status = status(&[checked("a", Passed)], Some(window));
        assert_eq!(status.status, Inconclusive);
        assert_eq!((status.passed, status.total), (1, 1));
        assert_eq!(status.results[0].test, "(stability window)");
    }

    #[test]
    fn everything_is_looked_at_again_after_the_window() {
        let mut course = Course::new(s(30), s(600));
        let Next::Again(pause) = course.after(Passed, s(0), s(1)) else {
            panic!("one pass is not enough");
        };
        assert_eq!(pause, s(10));
        // The last pause ends with the window.
        assert_eq!(course.after(Passed, s(28), s(29)), Next::Again(s(2)));
        assert_eq!(course.after(Passed, s(31), s(32)), Next::Over(Verdict::AsSeen));
    }

    #[test]
    fn a_failure_inside_the_window_is_a_failure_at_once() {
        let mut course = Course::new(s(30), s(600));
        course.after(Passed, s(0), s(1));
        assert_eq!(course.after(Failed, s(11), s(12)), Next::Over(Verdict::AsSeen));
    }

    #[test]
    fn what_cannot_be_told_is_looked_at_until_the_time_is_over_and_does_not_end_the_window() {
        let mut course = Course::new(s(10), s(60));
        course.after(Passed, s(0), s(1));
        assert_eq!(course.after(Inconclusive, s(12), s(13)), Next::Again(s(10)));
        assert_eq!(course.after(Passed, s(23), s(24)), Next::Over(Verdict::AsSeen));
        assert_eq!(course.after(Inconclusive, s(57), s(58)), Next::Over(Verdict::AsSeen));
    }

    #[test]
    fn a_window_longer_than_the_time_left_is_said_at_once() {
        let mut course = Course::new(s(30), s(40));
        assert_eq!(
            course.after(Passed, s(11), s(12)),
            Next::Over(Verdict::WindowCutShort(s(0)))
        );
    }

    #[test]
    fn only_what_the_plan_does_not_list_counts_as_a_difference() {
        let id = |name: &str| ObjectId::new("", "ConfigMap", name);
        let digest = |n: u8| Digest::of(&[n]);
        let target = BTreeMap::from([(id("a"), digest(1)), (id("b"), digest(2)), (id("c"), digest(3))]);
        let live = BTreeMap::from([(id("a"), digest(1)), (id("b"), digest(9)), (id("d"), digest(4))]);
        let mut found = Differences::between(&target, &live);
        assert_eq!(
            found.to_string(),
            "1 missing (ConfigMap/c), 1 changed (ConfigMap/b), 1 not in the snapshot (ConfigMap/d)"
        );
        let all = BTreeSet::from([id("b"), id("c"), id("d")]);
        found.except(&all);
        assert!(found.is_empty());
        assert_eq!(found.to_string(), "equal; 3 differ as the plan says");
    }

    #[test]
    fn another_running_digest_is_a_difference_but_an_unknown_one_is_not() {
        let image = |workload: &str, digest: Option<&str>| ImageStatus {
            workload: workload.into(),
            container: "app".into(),
            digest: digest.map(Into::into),
            ..ImageStatus::default()
        };
        let target = [
            image("Deployment/web", Some("sha256:1")),
            image("Deployment/new", None),
            image("Job/once", Some("sha256:2")),
        ];
        let live = [
            image("Deployment/web", Some("sha256:9")),
            image("Deployment/new", Some("sha256:3")),
            image("Job/once", Some("sha256:8")),
        ];
        let mut found = Differences::default();
        found.compare_images(&target, &live);
        assert_eq!(found.to_string(), "1 with other images (Deployment/web)");
        found.except(&BTreeSet::from([ObjectId::new("apps", "Deployment", "web")]));
        assert_eq!(found.to_string(), "equal; 1 differ as the plan says");
    }
}
