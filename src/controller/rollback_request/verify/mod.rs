//! Proves a rollback: looks at every test until all of them passed and held for the stability window, or the time is over.

mod expression;
mod object_exists;
mod object_matches;
mod rollout_status;
mod snapshot_matches;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use kube::ResourceExt as _;
use serde_json::Value;
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

use super::preflight;
use crate::{
    api::{
        RollbackRequest, duration, names,
        reference::{ObjectReference, ResolvedSnapshot},
        rollback_plan::{PreflightOutcome, PreflightResult},
        rollback_request::{TestResult, VerificationStatus},
        verify::{Verify, VerifyCheck, VerifyOutcome, VerifyTest},
    },
    capture::{Catalog, Failure, WantedKind},
    cluster::{
        self,
        access::{self, Question},
        list,
    },
    controller::context::Context,
    domain::{
        object::ObjectId,
        verify::{self, Checked, Course, Next, Seen, Verdict},
    },
    telemetry::metrics::Verified,
};

/// Tests looked at together.
const TOGETHER: usize = 4;
/// Shortest and longest pause between two attempts at a test.
const ATTEMPT_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(8)];
/// Names in one detail of preflight.
const SHOWN: usize = 8;

type Kinds = BTreeMap<(String, String), Arc<WantedKind>>;

/// What is verified.
pub(super) struct Subject<'a> {
    pub context: &'a Context,
    pub catalog: &'a Mutex<Catalog>,
    pub request: &'a RollbackRequest,
    pub resolved: &'a ResolvedSnapshot,
    /// Objects that `snapshotMatches` lets differ even where a plan made now would write them: those of [`verify::excepted`], drifted ones
    /// that `conflict: KeepLive` left alone, and workloads whose image was pinned.
    pub excepted: &'a BTreeSet<ObjectId>,
}

/// One look at one test.
struct Look<'a> {
    subject: &'a Subject<'a>,
    kinds: &'a Kinds,
    namespace: &'a str,
    /// When this attempt has to be over.
    until: Instant,
}

/// Runs every test of the request, until `deadline` or its own time is over, or `cancel`. Without tests there is nothing to hold: `Passed`.
/// What could not be read is `Inconclusive`. Returns the status, and every result whole.
pub(super) async fn run(
    subject: &Subject<'_>,
    deadline: Instant,
    cancel: &CancellationToken,
) -> (VerificationStatus, Vec<TestResult>) {
    let spec = subject.request.spec.verify.clone().unwrap_or_default();
    if spec.tests.is_empty() {
        return (verify::status(&[], None), Vec::new());
    }
    let (results, window) = rounds(subject, &spec, deadline, cancel).await;
    let every = verify::every(&results, window.as_ref());
    let status = verify::status(&results, window);
    let labels = Verified::of(status.status);
    subject.context.metrics.verifications.get_or_create(&labels).inc();
    (status, every)
}

async fn rounds(
    subject: &Subject<'_>,
    spec: &Verify,
    deadline: Instant,
    cancel: &CancellationToken,
) -> (Vec<Checked>, Option<Checked>) {
    let start = Instant::now();
    // Admission lets only durations through.
    let timeout = duration::parse(&spec.timeout).unwrap_or(Duration::from_secs(600));
    let stabilize = duration::parse(&spec.stabilize).unwrap_or(Duration::from_secs(30));
    let deadline = deadline.min(start + timeout);
    let mut course = Course::new(stabilize, deadline.saturating_duration_since(start));
    let namespace = subject.request.namespace().unwrap_or_default();
    let nothing = |why: &str| {
        let of = |test| checked(test, Seen::inconclusive(why));
        spec.tests.iter().map(of).collect::<Vec<_>>()
    };
    let kinds = tokio::select! {
        kinds = kinds(subject) => kinds,
        () = tokio::time::sleep_until(deadline) => Err("what the server serves was not read in time".into()),
        () = cancel.cancelled() => Err(CANCELLED.into()),
    };
    let kinds = match kinds {
        Ok(kinds) => kinds,
        Err(why) => return (nothing(&why), None),
    };
    loop {
        let began = start.elapsed();
        // Made one by one: a lazy iterator over borrowed tests could not be sent to another thread.
        let mut looks = Vec::with_capacity(spec.tests.len());
        for test in &spec.tests {
            looks.push(attempts(subject, &kinds, &namespace, test, deadline, cancel));
        }
        let seen: Vec<Seen> = stream::iter(looks).buffered(TOGETHER).collect().await;
        let results: Vec<Checked> = spec
            .tests
            .iter()
            .zip(seen)
            .map(|(test, seen)| checked(test, seen))
            .collect();
        match course.after(verify::all_in_all(&results), began, start.elapsed()) {
            Next::Over(Verdict::AsSeen) => return (results, None),
            Next::Over(Verdict::WindowCutShort(held)) => {
                let why = format!("held for {} s, and the time for verification is over", held.as_secs());
                return (results, Some(window(spec, why)));
            }
            Next::Again(pause) => {
                let ended = tokio::select! {
                    () = tokio::time::sleep(pause) => None,
                    () = tokio::time::sleep_until(deadline) => Some("the time for verification is over"),
                    () = cancel.cancelled() => Some(CANCELLED),
                };
                if let Some(why) = ended {
                    return (results, Some(window(spec, why)));
                }
            }
        }
    }
}

const CANCELLED: &str = "the request was cancelled before it could be told";

/// Why the window did not hold to its end.
fn window(spec: &Verify, why: impl Into<String>) -> Checked {
    Checked {
        test: "(stability window)".into(),
        expected: format!("every test holds for {}", spec.stabilize),
        seen: Seen::inconclusive(why),
    }
}

fn checked(test: &VerifyTest, seen: Seen) -> Checked {
    Checked {
        test: test.name.clone(),
        expected: expected(&test.check),
        seen,
    }
}

fn expected(check: &VerifyCheck) -> String {
    match check {
        VerifyCheck::ObjectExists(object) => format!("{} exists", display(object)),
        VerifyCheck::ObjectMatches(test) => format!("{}: {}", display(&test.object), test.expression),
        VerifyCheck::RolloutStatus(test) => format!("the rollout of {} is complete", test.workloads.join(", ")),
        VerifyCheck::SnapshotMatches(test) if test.except_kept => {
            "equal to the snapshot but for what the plan lists".into()
        }
        VerifyCheck::SnapshotMatches(_) => "equal to the snapshot".into(),
        other => format!("{} passes", unavailable(other)),
    }
}

/// Name of a test that is not run yet.
const fn unavailable(check: &VerifyCheck) -> &'static str {
    match check {
        VerifyCheck::Http(_) => "http",
        VerifyCheck::Tcp(_) => "tcp",
        VerifyCheck::Job(_) => "job",
        VerifyCheck::Exec(_) => "exec",
        VerifyCheck::FileExists(_) => "fileExists",
        VerifyCheck::GitRevision(_) => "gitRevision",
        VerifyCheck::Promql(_) => "promql",
        VerifyCheck::ObjectExists(_) => "objectExists",
        VerifyCheck::ObjectMatches(_) => "objectMatches",
        VerifyCheck::RolloutStatus(_) => "rolloutStatus",
        VerifyCheck::SnapshotMatches(_) => "snapshotMatches",
    }
}

/// The first attempt at a test and its retries.
async fn attempts(
    subject: &Subject<'_>,
    kinds: &Kinds,
    namespace: &str,
    test: &VerifyTest,
    deadline: Instant,
    cancel: &CancellationToken,
) -> Seen {
    let timeout = duration::parse(&test.timeout).unwrap_or(Duration::from_secs(30));
    let [mut pause, longest] = ATTEMPT_PAUSES;
    let mut left = test.retries;
    loop {
        let until = deadline.min(Instant::now() + timeout);
        let look = Look {
            subject,
            kinds,
            namespace,
            until,
        };
        let seen = tokio::select! {
            seen = look.at(&test.check) => seen,
            // A test that waits for something says at its time what it waits for.
            () = tokio::time::sleep_until(until + Duration::from_millis(200)) => {
                Seen::inconclusive(format!("could not be told within {}", test.timeout))
            }
            () = cancel.cancelled() => return Seen::inconclusive(CANCELLED),
        };
        if seen.outcome == VerifyOutcome::Passed || left <= 0 || Instant::now() + pause >= deadline {
            return seen;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => return Seen::inconclusive(CANCELLED),
        }
        left -= 1;
        pause = (pause * 2).min(longest);
    }
}

impl Look<'_> {
    async fn at(&self, check: &VerifyCheck) -> Seen {
        match check {
            VerifyCheck::ObjectExists(object) => object_exists::look(self, object).await,
            VerifyCheck::ObjectMatches(test) => object_matches::look(self, test).await,
            VerifyCheck::RolloutStatus(test) => rollout_status::look(self, test).await,
            VerifyCheck::SnapshotMatches(test) => snapshot_matches::look(self, test).await,
            other => Seen::inconclusive(format!("{} tests are not run yet", unavailable(other))),
        }
    }

    /// The live object; `None` where there is none.
    async fn read(&self, id: &ObjectId, metadata_only: bool) -> Result<Option<Value>, Seen> {
        let kind = self.kinds.get(&(id.group.clone(), id.kind.clone()));
        let kind = kind.ok_or_else(|| Seen::inconclusive(not_served(id)))?;
        let path = kind.collection(None).object_path(self.namespace, &id.name);
        let what = format!("get {} {} in {}", kind.display(), id.name, self.namespace);
        let client = &self.subject.context.client;
        let read = if metadata_only {
            list::get_metadata(client, &path, &what).await
        } else {
            list::get_object(client, &path, &what).await
        };
        match read {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|_| Seen::inconclusive(format!("{what}: the server's answer is no JSON"))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(Seen::inconclusive(error.to_string())),
        }
    }
}

fn not_served(id: &ObjectId) -> String {
    format!(
        "the server does not serve {} in namespaces, or Backstep never reads it",
        kind_of(id)
    )
}

fn kind_of(id: &ObjectId) -> String {
    if id.group.is_empty() {
        id.kind.clone()
    } else {
        format!("{}.{}", id.kind, id.group)
    }
}

fn id_of(object: &ObjectReference) -> ObjectId {
    ObjectId::new(&object.group, &object.kind, &object.name)
}

fn display(object: &ObjectReference) -> String {
    id_of(object).to_string()
}

async fn kinds(subject: &Subject<'_>) -> Result<Kinds, String> {
    let mut catalog = subject.catalog.lock().await;
    // The rollback may have changed what is served.
    catalog
        .refresh(&subject.context.client)
        .await
        .map_err(|error| error.to_string())?;
    let kinds = catalog.kinds().into_iter();
    Ok(kinds
        .map(|kind| ((kind.info.group.clone(), kind.info.kind.clone()), kind))
        .collect())
}

/// What is wrong with the tests of a request, each with its name and how to fix it. Reads nothing.
pub(super) fn check(spec: &Verify) -> Vec<String> {
    let mut problems = Vec::new();
    let mut time = |what: String, text: &str| match duration::parse(text) {
        Ok(time) => Some(time),
        Err(error) => {
            problems.push(format!("{what}: {error}"));
            None
        }
    };
    let timeout = time("verify.timeout".into(), &spec.timeout);
    let stabilize = time("verify.stabilize".into(), &spec.stabilize);
    for test in &spec.tests {
        time(format!("test {}: timeout", test.name), &test.timeout);
    }
    if let (Some(timeout), Some(stabilize)) = (timeout, stabilize)
        && stabilize >= timeout
        && !spec.tests.is_empty()
    {
        problems.push(format!(
            "verify.stabilize ({}) leaves no time within verify.timeout ({}); make one shorter or the other longer",
            spec.stabilize, spec.timeout
        ));
    }
    for test in &spec.tests {
        let problem = match &test.check {
            VerifyCheck::ObjectMatches(matches)
                if matches.object.group.is_empty() && matches.object.kind == "Secret" =>
            {
                Some("objectMatches does not read Secrets; use objectExists".into())
            }
            VerifyCheck::ObjectMatches(matches) => expression::problem(&matches.expression),
            VerifyCheck::RolloutStatus(rollout) => rollout
                .workloads
                .iter()
                .find(|workload| rollout_status::workload(workload).is_none())
                .map(|workload| {
                    format!("`{workload}` is no Deployment, StatefulSet or DaemonSet; write Deployment/web")
                }),
            VerifyCheck::ObjectExists(_) | VerifyCheck::SnapshotMatches(_) => None,
            other => Some(format!("{} tests are not run yet; remove the test", unavailable(other))),
        };
        problems.extend(problem.map(|problem| format!("test {}: {problem}", test.name)));
    }
    problems
}

/// Whether every test reads a kind that is served and that the requester may `get`.
pub(super) async fn rights(
    context: &Context,
    request: &RollbackRequest,
    resolved: &ResolvedSnapshot,
    kinds: &Kinds,
) -> Result<PreflightResult, Failure> {
    let spec = request.spec.verify.clone().unwrap_or_default();
    let namespace = request.namespace().unwrap_or_default();
    let get = |group: &str, resource: &str, name: &str| Question {
        verb: "get",
        group: group.to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.clone(),
        name: Some(name.to_owned()),
    };
    let (mut questions, mut problems) = (BTreeSet::new(), Vec::new());
    for test in &spec.tests {
        let reads = match &test.check {
            VerifyCheck::ObjectExists(object) => vec![id_of(object)],
            VerifyCheck::ObjectMatches(test) => vec![id_of(&test.object)],
            VerifyCheck::RolloutStatus(test) => test
                .workloads
                .iter()
                .filter_map(|workload| rollout_status::workload(workload))
                .collect(),
            VerifyCheck::SnapshotMatches(_) => {
                questions.insert(get(names::GROUP, "snapshots", &resolved.name));
                continue;
            }
            // Refused by `check`.
            _ => continue,
        };
        for id in reads {
            match kinds.get(&(id.group.clone(), id.kind.clone())) {
                Some(kind) => {
                    questions.insert(get(&id.group, &kind.plural, &id.name));
                }
                None => problems.push(format!("test {}: {}", test.name, not_served(&id))),
            }
        }
    }
    let who = request.spec.requested_by.clone().filter(|by| by.username.is_some());
    match who {
        _ if questions.is_empty() => {}
        None => problems.push("spec.requestedBy names nobody, so no rights can be looked at".into()),
        Some(who) => {
            let user = who.username.clone().unwrap_or_default();
            let asked = stream::iter(questions).map(|question| {
                let who = &who;
                async move {
                    let allowed = access::allowed(&context.client, who, &question).await?;
                    Ok::<_, cluster::Error>((!allowed).then(|| question.to_string()))
                }
            });
            let answers: Vec<_> = asked.buffered(TOGETHER).collect().await;
            for answer in answers {
                problems.extend(answer?.map(|refused| format!("{user} may not {refused}, which a test reads")));
            }
        }
    }
    Ok(outcome("VerifyRights", problems))
}

/// What preflight says of the tests: whether they can work, and whether the requester may read what they read.
pub(super) async fn preflight(
    context: &Context,
    request: &RollbackRequest,
    resolved: &ResolvedSnapshot,
    kinds: &Kinds,
) -> Result<Vec<PreflightResult>, Failure> {
    let Some(spec) = request.spec.verify.as_ref().filter(|spec| !spec.tests.is_empty()) else {
        return Ok(Vec::new());
    };
    Ok(vec![
        outcome("VerifyTests", check(spec)),
        rights(context, request, resolved, kinds).await?,
    ])
}

fn outcome(check: &str, problems: Vec<String>) -> PreflightResult {
    let more = problems.len().saturating_sub(SHOWN);
    let shown = problems.into_iter().take(SHOWN).collect::<Vec<_>>().join("; ");
    let text = if more > 0 {
        format!("{shown} and {more} more")
    } else {
        shown
    };
    PreflightResult {
        check: check.into(),
        result: if text.is_empty() {
            PreflightOutcome::Passed
        } else {
            PreflightOutcome::Failed
        },
        detail: (!text.is_empty()).then(|| preflight::bounded(text)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problems(spec: &Value) -> String {
        check(&serde_json::from_value(spec.clone()).unwrap()).join(" · ")
    }

    #[test]
    fn tests_that_cannot_work_are_refused_by_name_when_the_plan_is_made() {
        let web = json!({"group": "apps", "kind": "Deployment", "name": "web"});
        let good = json!({"tests": [
            {"name": "there", "objectExists": web},
            {"name": "ready", "timeout": "2m", "retries": 3, "objectMatches": {"object": web, "expression": "object.status.readyReplicas > 0"}},
            {"name": "rolled", "rolloutStatus": {"workloads": ["Deployment/web", "StatefulSet/db"]}},
            {"name": "same", "snapshotMatches": {}},
        ]});
        assert_eq!(problems(&good), "");
        let bad = json!({"stabilize": "10m", "timeout": "5m", "tests": [
            {"name": "syntax", "objectMatches": {"object": web, "expression": "object.status.readyReplicas >"}},
            {"name": "secret", "objectMatches": {"object": {"kind": "Secret", "name": "web"}, "expression": "true"}},
            {"name": "late", "timeout": "soon", "objectExists": web},
            {"name": "kind", "rolloutStatus": {"workloads": ["ReplicaSet/web"]}},
            {"name": "port", "tcp": {"host": "web", "port": 80}},
        ]});
        let said = problems(&bad);
        for part in [
            "test syntax: the expression is no CEL",
            "test secret: objectMatches does not read Secrets",
            "test late: timeout: `soon` is not a duration",
            "test kind: `ReplicaSet/web` is no Deployment",
            "test port: tcp tests are not run yet",
            "verify.stabilize (10m) leaves no time within verify.timeout (5m)",
        ] {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
    }

    #[test]
    fn a_status_says_what_was_expected_of_each_test() {
        let spec: Verify = serde_json::from_value(json!({"tests": [
            {"name": "a", "objectExists": {"kind": "ConfigMap", "name": "web"}},
            {"name": "b", "objectMatches": {"object": {"kind": "ConfigMap", "name": "web"}, "expression": "object.data.a == 'b'"}},
            {"name": "c", "rolloutStatus": {"workloads": ["Deployment/web"]}},
            {"name": "d", "snapshotMatches": {"exceptKept": false}},
        ]}))
        .unwrap();
        let said: Vec<_> = spec.tests.iter().map(|test| expected(&test.check)).collect();
        assert_eq!(
            said,
            [
                "ConfigMap/web exists",
                "ConfigMap/web: object.data.a == 'b'",
                "the rollout of Deployment/web is complete",
                "equal to the snapshot",
            ]
        );
    }
}
