//! Everything that can fail, first: all of it is looked at and reported together.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::ResourceExt as _;
use tokio_util::task::AbortOnDropHandle;

use super::{dry_runs, gate, gather::Sides, verify};
use crate::{
    api::{
        RollbackRequest,
        reference::{Identity, ResolvedSnapshot},
        rollback_plan::{PreflightOutcome, PreflightResult},
        rollback_request::Gitops,
    },
    capture::Failure,
    cluster::access::{self, Question},
    controller::context::Context,
    domain::{
        gitops,
        object::ObjectId,
        plan::{Action, Bound, Plan, PutBack, SkipReason},
    },
    repository::Repository,
};

/// Access reviews asked at once.
const REVIEWS: usize = 8;
/// Names in one detail.
const SHOWN: usize = 8;

/// Objects whose difference the requester may read.
pub(super) type Readable = HashSet<ObjectId>;

/// What a look at all stored contents of the target comes to.
pub(super) type Verification = AbortOnDropHandle<PreflightResult>;

/// Begins to work through all stored contents of the target: that needs nothing of what is live.
pub(super) fn verify_contents(repository: &Repository, resolved: &ResolvedSnapshot) -> Verification {
    let (repository, uid) = (repository.clone(), resolved.uid.clone());
    AbortOnDropHandle::new(tokio::spawn(async move { snapshot_verified(&repository, &uid).await }))
}

/// Looks at everything that can be known before a write, and learns what the server puts back whatever is written.
pub(super) async fn check(
    context: &Context,
    request: &RollbackRequest,
    resolved: &ResolvedSnapshot,
    verified: Verification,
    sides: &Sides,
    plan: &Plan<Bound>,
) -> Result<(Vec<PreflightResult>, PutBack), Failure> {
    let (rights, tests, (tried, put_back)) = futures::try_join!(
        rights(context, request, sides, plan),
        verify::preflight(context, request, resolved, &sides.kinds),
        dry_runs::check(context, request, sides, plan)
    )?;
    let mut checks = vec![verified.await.unwrap_or_else(|error| {
        let why = format!("the stored contents were not verified to the end ({error}); try again");
        verification(PreflightOutcome::Failed, Some(why))
    })];
    checks.push(named(
        "KindsServed",
        plan.items()
            .iter()
            .filter(|i| i.action == Action::Skip(SkipReason::KindNotServed))
            .map(|i| i.id.to_string()),
        "the server does not serve the kind of",
        "install their definitions, or leave them out with a Selective request",
    ));
    checks.push(immutable_fields(plan));
    checks.push(rights);
    checks.push(owners_in_git(request, plan));
    checks.extend(tests);
    checks.extend(tried);
    Ok((checks, put_back))
}

/// Looks again at what `plan`, which knows what the server puts back and may write less, can have changed of `checks`.
pub(super) async fn check_less(
    context: &Context,
    request: &RollbackRequest,
    sides: &Sides,
    plan: &Plan<Bound>,
    checks: &mut [PreflightResult],
) -> Result<(), Failure> {
    let fresh = [
        immutable_fields(plan),
        rights(context, request, sides, plan).await?,
        owners_in_git(request, plan),
    ];
    for fresh in fresh {
        if let Some(check) = checks.iter_mut().find(|check| check.check == fresh.check) {
            *check = fresh;
        }
    }
    Ok(())
}

fn immutable_fields(plan: &Plan<Bound>) -> PreflightResult {
    named(
        "ImmutableFields",
        plan.refusals().map(|(id, refusal)| format!("{id} ({refusal})")),
        "cannot be changed in place:",
        "see each item",
    )
}

async fn snapshot_verified(repository: &Repository, uid: &str) -> PreflightResult {
    let (result, detail) = match repository.verify_snapshot(uid).await {
        Ok(report) if report.is_clean() => (PreflightOutcome::Passed, None),
        Ok(report) => {
            let damaged: Vec<_> = report.findings.iter().take(SHOWN).map(|f| f.blob.clone()).collect();
            (
                PreflightOutcome::Failed,
                Some(format!(
                    "stored contents are damaged: {}; name another snapshot",
                    damaged.join(", ")
                )),
            )
        }
        Err(error) => (PreflightOutcome::Failed, Some(format!("{error}"))),
    };
    verification(result, detail)
}

fn verification(result: PreflightOutcome, detail: Option<String>) -> PreflightResult {
    PreflightResult {
        check: "SnapshotVerified".into(),
        result,
        detail: detail.map(bounded),
    }
}

pub(super) fn named(check: &str, objects: impl Iterator<Item = String>, what: &str, fix: &str) -> PreflightResult {
    let objects: Vec<String> = objects.collect();
    if objects.is_empty() {
        return PreflightResult {
            check: check.into(),
            result: PreflightOutcome::Passed,
            detail: None,
        };
    }
    let shown = objects.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = objects.len().saturating_sub(SHOWN);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    PreflightResult {
        check: check.into(),
        result: PreflightOutcome::Failed,
        detail: Some(bounded(format!("{what} {shown}{more}; {fix}"))),
    }
}

pub(super) fn bounded(text: String) -> String {
    if text.chars().count() <= 1000 {
        text
    } else {
        text.chars().take(1000).collect()
    }
}

/// The rights that the plan uses, each asked for the whole resource, and by name where that is refused.
async fn rights(
    context: &Context,
    request: &RollbackRequest,
    sides: &Sides,
    plan: &Plan<Bound>,
) -> Result<PreflightResult, Failure> {
    let Some(who) = gate::acting(request) else {
        return Ok(PreflightResult {
            check: "RequesterRights".into(),
            result: PreflightOutcome::Failed,
            detail: Some(
                "spec.requestedBy names nobody, so no rights can be looked at; create the request again".into(),
            ),
        });
    };
    let refused = missing_rights(context, request, sides, plan).await?;
    let user = who.username.unwrap_or_default();
    Ok(named(
        "RequesterRights",
        refused.into_iter(),
        &format!("{user} may not"),
        "a rollback does nothing that its requester could not do by hand; grant these, or have somebody ask who holds them",
    ))
}

/// What the acting user may not do of what the plan does, as verb and resource.
pub(super) async fn missing_rights(
    context: &Context,
    request: &RollbackRequest,
    sides: &Sides,
    plan: &Plan<Bound>,
) -> Result<Vec<String>, Failure> {
    let Some(who) = gate::acting(request) else {
        return Ok(vec!["anything: spec.requestedBy names nobody".into()]);
    };
    let namespace = request.namespace().unwrap_or_default();
    let mut wanted = Wanted::new();
    for item in plan.items() {
        let verbs: &[&'static str] = match &item.action {
            Action::Create => &["create"],
            Action::Update => &["update"],
            Action::Recreate(_) => &["delete", "create"],
            Action::Delete => &["delete"],
            Action::Restart(_) => &["patch"],
            Action::Keep(_) | Action::Skip(_) => &[],
        };
        let Some(kind) = sides.kinds.get(&(item.id.group.clone(), item.id.kind.clone())) else {
            continue;
        };
        for verb in verbs {
            let right = (*verb, item.id.group.as_str(), kind.plural.as_str());
            wanted.entry(right).or_default().push(&item.id.name);
        }
    }
    refused(context, Some(&who), &namespace, wanted).await
}

async fn allowed(context: &Context, who: Option<&Identity>, question: &Question) -> crate::cluster::Result<bool> {
    match who {
        Some(who) => access::allowed(&context.client, who, question).await,
        None => access::allowed_here(&context.client, question).await,
    }
}

/// Rights by verb, group and resource, and the names of the objects that they are needed for.
pub(super) type Wanted<'a> = BTreeMap<(&'static str, &'a str, &'a str), Vec<&'a str>>;

/// What `who`, or the operator itself, may not do in `namespace`.
pub(super) async fn refused(
    context: &Context,
    who: Option<&Identity>,
    namespace: &str,
    wanted: Wanted<'_>,
) -> Result<Vec<String>, Failure> {
    let reviews: Vec<_> = wanted
        .into_iter()
        .map(|((verb, group, resource), names)| {
            let question = Question {
                verb,
                group: group.to_owned(),
                resource: resource.to_owned(),
                namespace: namespace.to_owned(),
                name: None,
            };
            refused_one(context, who, question, names)
        })
        .collect();
    let answers: Vec<Vec<String>> = stream::iter(reviews).buffer_unordered(REVIEWS).try_collect().await?;
    let mut refused: Vec<String> = answers.into_iter().flatten().collect();
    refused.sort();
    Ok(refused)
}

/// Asked for the whole resource, and by name where that is refused.
async fn refused_one(
    context: &Context,
    who: Option<&Identity>,
    question: Question,
    names: Vec<&str>,
) -> crate::cluster::Result<Vec<String>> {
    if allowed(context, who, &question).await? {
        return Ok(Vec::new());
    }
    // `create` is never granted by name.
    if question.verb == "create" {
        return Ok(vec![question.to_string()]);
    }
    let mut refused = Vec::new();
    for name in BTreeSet::from_iter(names) {
        let one = Question {
            name: Some(name.to_owned()),
            ..question.clone()
        };
        if !allowed(context, who, &one).await? {
            refused.push(one.to_string());
        }
    }
    Ok(refused)
}

/// Objects that differ and that the requester may `get`: only their differences are shown.
pub(super) async fn readable(
    context: &Context,
    request: &RollbackRequest,
    sides: &Sides,
    plan: &Plan<Bound>,
) -> Result<Readable, Failure> {
    let Some(who) = gate::acting(request) else {
        return Ok(Readable::new());
    };
    let namespace = request.namespace().unwrap_or_default();
    let mut by_kind: BTreeMap<(String, String), Vec<ObjectId>> = BTreeMap::new();
    for item in plan.items() {
        by_kind
            .entry((item.id.group.clone(), item.id.kind.clone()))
            .or_default()
            .push(item.id.clone());
    }
    let mut readable = Readable::new();
    for (kind, ids) in by_kind {
        let Some(served) = sides.kinds.get(&kind) else { continue };
        let question = Question {
            verb: "get",
            group: kind.0,
            resource: served.plural.clone(),
            namespace: namespace.clone(),
            name: None,
        };
        if access::allowed(&context.client, &who, &question).await? {
            readable.extend(ids);
            continue;
        }
        for id in ids {
            let one = Question {
                name: Some(id.name.clone()),
                ..question.clone()
            };
            if access::allowed(&context.client, &who, &one).await? {
                readable.insert(id);
            }
        }
    }
    Ok(readable)
}

fn owners_in_git(request: &RollbackRequest, plan: &Plan<Bound>) -> PreflightResult {
    let owned: BTreeMap<String, String> = plan
        .writes()
        .filter_map(|item| {
            let live = item.live.as_ref().map(|l| &*l.content);
            let object = live.or(item.desired.as_ref().map(|d| &*d.content))?;
            Some((gitops::owner(object)?, item.id.to_string()))
        })
        .collect();
    let shown = owned
        .iter()
        .take(SHOWN)
        .map(|(owner, object)| format!("{owner} owns {object}"));
    match request.spec.gitops {
        Gitops::Ignore if !owned.is_empty() => PreflightResult {
            check: "GitOpsOwners".into(),
            result: PreflightOutcome::Warning,
            detail: Some(bounded(format!(
                "{}; what is rolled back may be put forward again",
                shown.collect::<Vec<_>>().join(", ")
            ))),
        },
        Gitops::Block | Gitops::Pause | Gitops::Ignore => named(
            "GitOpsOwners",
            shown,
            "Git would put it back:",
            "revert in Git, or suspend the owner and set gitops: Ignore",
        ),
    }
}
