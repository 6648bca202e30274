//! From a request to a written plan: resolve, compare, rate, check, write.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ObjectMeta, PostParams},
};
use serde_json::Value;
use tokio::sync::Mutex;

use super::{
    gather::{self, Sides},
    preflight,
};
use crate::{
    api::{
        RollbackPlan, RollbackPlanSpec, RollbackRequest, Snapshot, names, reasons,
        reference::{ObjectReference, ResolvedSnapshot, Risk, UidReference},
        rollback_plan::{PlanAction, PlanItem, PlanSummary, PlanTarget, PreflightOutcome, PreflightResult},
        rollback_request::{Images, Strategy},
        snapshot::{Capture, Component, SnapshotPhase},
    },
    capture::{Catalog, Failure},
    cluster::{Class, call, clock, list},
    controller::context::Context,
    domain::{
        object::{Digest, ObjectId, canonical, diff},
        plan::{self, Action, Binding, Bound, Facts, Inputs, Item, Options, Pin, Plan, risk},
        snapshot::{Extras, Selection},
        target::{self, Candidate, DEFAULT_LINEAGE},
    },
    repository::{Repository, SnapshotDigest},
};

/// Most bytes of a written plan.
const PLAN_BYTES: usize = 256 * 1024;
/// Most bytes of one diff.
const DIFF_BYTES: usize = 16 * 1024;

/// A plan that was written.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// What the target meant.
    pub resolved: ResolvedSnapshot,
    /// The object.
    pub plan: RollbackPlan,
    /// What stands in the way; empty is nothing.
    pub obstacles: Vec<PreflightResult>,
}

/// Makes and writes the plan of `request`.
pub(super) async fn make(
    context: &Context,
    catalog: &Mutex<Catalog>,
    request: &RollbackRequest,
) -> Result<Written, Failure> {
    let repository = context.store.repository().map_err(|(message, corrupt)| {
        let (class, reason) = if corrupt {
            (Class::Corrupt, reasons::CORRUPT)
        } else {
            (Class::Transient, reasons::STORE_UNAVAILABLE)
        };
        Failure::new(class, reason, message)
    })?;
    repository.refresh().await.map_err(|e| super::store_failure(&e))?;
    let resolved = match request.status.as_ref().and_then(|s| s.resolved.clone()) {
        Some(resolved) => resolved,
        None => resolve(context, catalog, &repository, request).await?,
    };
    let manifest = repository
        .manifest(&resolved.uid)
        .await
        .map_err(|e| super::store_failure(&e))?;
    let record = manifest.record().clone();
    if record.digest.to_string() != resolved.digest {
        let message = format!(
            "the stored contents of snapshot {} have another digest than its status; nothing is restored from them",
            resolved.name
        );
        return Err(Failure::new(Class::Corrupt, reasons::CORRUPT, message));
    }
    let extras: Extras = match manifest.extras().await.map_err(|e| super::store_failure(&e))? {
        Some(value) => serde_json::from_value(value).unwrap_or_default(),
        None => Extras::default(),
    };
    let namespace = request.namespace().unwrap_or_default();
    let sides = gather::sides(context, catalog, &repository, &manifest, &extras, &namespace).await?;
    let options = options(request, &extras, &sides)?;
    let facts = Facts {
        snapshot_started: Some(record.created_at),
        captured_kinds: sides.captured_kinds.clone(),
        unserved: sides.unserved.clone(),
        owners: sides.owners.clone(),
        pins: pins(request, &extras),
        drifted: std::collections::BTreeSet::new(),
    };
    let (captured, live) = (sides.captured(), sides.live());
    let drafted = plan::build(&Inputs {
        captured: &captured,
        live: &live,
        options: &options,
        facts: &facts,
    })
    .map_err(|e| Failure::new(Class::Invalid, reasons::PREFLIGHT_FAILED, e.to_string()))?;
    let age = clock::now().duration_since(record.created_at);
    let rating = risk::rate(
        &drafted,
        &risk::RiskFacts {
            snapshot_age: if age.is_negative() {
                Duration::ZERO
            } else {
                age.unsigned_abs()
            },
            ready_pods: ready_pods(&sides),
            image_digests: image_digests(&extras),
            ..risk::RiskFacts::default()
        },
    );
    let bound = drafted.bind(binding(context, request, &resolved).await?, &sides.key);
    let checks = preflight::check(context, request, &repository, &resolved, &sides, &bound).await?;
    let readable = preflight::readable(context, request, &sides, &bound).await?;
    let obstacles = checks
        .iter()
        .filter(|c| c.result == PreflightOutcome::Failed)
        .cloned()
        .collect();
    let plan = write(context, request, &resolved, &bound, rating, checks, &sides, &readable).await?;
    Ok(Written {
        resolved,
        plan,
        obstacles,
    })
}

/// Resolves the target among the Snapshots of the namespace.
async fn resolve(
    context: &Context,
    catalog: &Mutex<Catalog>,
    repository: &Repository,
    request: &RollbackRequest,
) -> Result<ResolvedSnapshot, Failure> {
    let namespace = request.namespace().unwrap_or_default();
    let api: Api<Snapshot> = Api::namespaced(context.client.clone(), &namespace);
    let what = format!("list snapshots in {namespace}");
    let every = kube::api::ListParams::default();
    let snapshots = call::repeat(&what, call::PAGE_DEADLINE, || api.list(&every)).await?;
    let candidates: Vec<Candidate> = snapshots.iter().map(candidate).collect();
    let target = &request.spec.target;
    let live_version = if target.previous == Some(true) {
        let lineage = target.lineage.as_deref().unwrap_or(DEFAULT_LINEAGE);
        live_version(context, catalog, repository, &namespace, lineage, &candidates).await?
    } else {
        None
    };
    target::resolve(target, &candidates, live_version)
        .map_err(|error| Failure::new(Class::Invalid, error.reason(), error.to_string()))
}

fn candidate(snapshot: &Snapshot) -> Candidate {
    let status = snapshot.status.clone().unwrap_or_default();
    let labelled = snapshot
        .labels()
        .keys()
        .filter_map(|key| key.strip_prefix(names::TAG_LABEL_PREFIX))
        .map(ToOwned::to_owned);
    Candidate {
        name: snapshot.name_any(),
        uid: snapshot.uid().unwrap_or_default(),
        lineage: snapshot
            .spec
            .lineage
            .clone()
            .unwrap_or_else(|| DEFAULT_LINEAGE.to_owned()),
        phase: status.phase.unwrap_or(SnapshotPhase::Pending),
        version: status.version,
        parent: status.parent.as_ref().map(|p| p.version),
        digest: status.digest,
        started_at: status.started_at.map(|t| t.0),
        tags: snapshot.spec.tags.iter().cloned().chain(labelled).collect(),
        safety: false,
    }
}

/// The Ready version of the lineage that live is equal to, looked at through the newest one's selection.
async fn live_version(
    context: &Context,
    catalog: &Mutex<Catalog>,
    repository: &Repository,
    namespace: &str,
    lineage: &str,
    candidates: &[Candidate],
) -> Result<Option<i64>, Failure> {
    let newest = candidates
        .iter()
        .filter(|c| c.lineage == lineage && c.phase == SnapshotPhase::Ready)
        .max_by_key(|c| c.version);
    let Some(newest) = newest else { return Ok(None) };
    let manifest = repository
        .manifest(&newest.uid)
        .await
        .map_err(|e| super::store_failure(&e))?;
    let extras: Extras = match manifest.extras().await.map_err(|e| super::store_failure(&e))? {
        Some(value) => serde_json::from_value(value).unwrap_or_default(),
        None => Extras::default(),
    };
    let sides = gather::sides(context, catalog, repository, &manifest, &extras, namespace).await?;
    let entries: BTreeMap<&ObjectId, Digest> = sides
        .live
        .iter()
        .filter(|l| l.in_capture)
        .map(|l| (&l.id, l.digest))
        .collect();
    // Digests of images are left out of this comparison: a restarted Pod with a moved tag is still the same release.
    let of_entries = |entries: &BTreeMap<&ObjectId, Digest>| {
        let mut digest = SnapshotDigest::new();
        for (id, content) in entries {
            digest.entry(&id.group, &id.kind, &id.name, content);
        }
        digest.finish(None)
    };
    let live = of_entries(&entries);
    let mut versions: Vec<_> = candidates
        .iter()
        .filter(|c| c.lineage == lineage && c.phase == SnapshotPhase::Ready)
        .collect();
    versions.sort_by_key(|c| std::cmp::Reverse(c.version));
    for candidate in versions {
        let manifest = repository
            .manifest(&candidate.uid)
            .await
            .map_err(|e| super::store_failure(&e))?;
        let mut digest = SnapshotDigest::new();
        let mut stream = std::pin::pin!(manifest.entries());
        while let Some((kind, entry)) = futures::TryStreamExt::try_next(&mut stream)
            .await
            .map_err(|e| super::store_failure(&e))?
        {
            digest.entry(&kind.group, &kind.kind, &entry.name, &entry.content);
        }
        if digest.finish(None) == live {
            return Ok(candidate.version);
        }
    }
    Ok(None)
}

fn options(request: &RollbackRequest, extras: &Extras, sides: &Sides) -> Result<Options, Failure> {
    let spec = &request.spec;
    let captured = extras.capture.as_ref().and_then(|c| c.components.clone());
    for component in &spec.components {
        if captured.as_ref().is_some_and(|list| !list.contains(component)) {
            let message = format!(
                "components: the snapshot did not capture {component:?}; remove it, or name a snapshot that did"
            );
            return Err(Failure::new(Class::Invalid, reasons::INVALID_SPEC, message));
        }
    }
    let mut options = Options {
        strategy: spec.strategy,
        components: spec.components.iter().copied().collect(),
        cascade: spec.cascade,
        prune: spec.prune,
        conflict: spec.conflict,
        immutable: spec.immutable,
        secrets: spec.secrets,
        images: spec.images,
        ..Options::default()
    };
    if let (Strategy::Selective, Some(objects)) = (spec.strategy, &spec.objects) {
        let every = vec![
            Component::Configuration,
            Component::Workloads,
            Component::Volumes,
            Component::Policy,
            Component::Infrastructure,
        ];
        let pick = |include: &[_], selector: Option<_>| {
            let capture = Capture {
                components: Some(every.clone()),
                include: include.to_vec(),
                selector,
                follow_references: Some(false),
                ..Capture::default()
            };
            Selection::compile(&capture)
                .map(|selection| sides.picked(&selection))
                .map_err(|e| Failure::new(Class::Invalid, reasons::INVALID_SPEC, format!("objects: {e}")))
        };
        options.selected = pick(&objects.include, objects.selector.clone())?;
        if !objects.exclude.is_empty() {
            options.preserved = pick(&objects.exclude, None)?;
        }
        if options.selected.is_empty() {
            let message = "objects selects nothing that the snapshot holds or that is live; `kubectl backstep snapshot show` lists what it holds";
            return Err(Failure::new(Class::Invalid, reasons::NOTHING_SELECTED, message));
        }
    }
    Ok(options)
}

/// With `images: Pin`, the captured digest of each image that can be pulled by it.
fn pins(request: &RollbackRequest, extras: &Extras) -> Vec<Pin> {
    if request.spec.images != Images::Pin {
        return Vec::new();
    }
    extras
        .images
        .iter()
        .filter(|image| image.reason.is_none() && !image.image.contains('@'))
        .filter_map(|image| {
            let reference = format!("{}@{}", image.image, image.digest.as_ref()?);
            Some(Pin {
                workload: workload_id(&image.workload)?,
                container: image.container.clone(),
                reference,
            })
        })
        .collect()
}

/// `Deployment/web` as an identity.
fn workload_id(display: &str) -> Option<ObjectId> {
    let (kind, name) = display.split_once('/')?;
    let group = match kind {
        "Pod" => "",
        "Job" | "CronJob" => "batch",
        _ => "apps",
    };
    Some(ObjectId::new(group, kind, name))
}

fn image_digests(extras: &Extras) -> BTreeMap<(ObjectId, String), String> {
    extras
        .images
        .iter()
        .filter_map(|image| {
            Some((
                (workload_id(&image.workload)?, image.container.clone()),
                image.digest.clone()?,
            ))
        })
        .collect()
}

fn ready_pods(sides: &Sides) -> BTreeMap<ObjectId, u32> {
    sides
        .live
        .iter()
        .filter(|l| l.component == Component::Workloads)
        .filter_map(|l| {
            let status = &l.raw["status"];
            let ready = status["readyReplicas"]
                .as_u64()
                .or_else(|| status["numberReady"].as_u64())?;
            Some((l.id.clone(), u32::try_from(ready).unwrap_or(u32::MAX)))
        })
        .collect()
}

/// Everything that an approval of this plan would be bound to.
async fn binding(
    context: &Context,
    request: &RollbackRequest,
    resolved: &ResolvedSnapshot,
) -> Result<Binding, Failure> {
    let bytes = list::get_metadata(
        &context.client,
        "/api/v1/namespaces/kube-system",
        "get namespace kube-system",
    )
    .await?;
    let cluster: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let mut spec = serde_json::to_value(&request.spec).unwrap_or_default();
    if let Some(fields) = spec.as_object_mut() {
        for free in ["requestedBy", "suspend", "cancel"] {
            fields.remove(free);
        }
    }
    Ok(Binding {
        cluster: cluster["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
        request_uid: request.uid().unwrap_or_default(),
        request_digest: canonical::digest(&spec),
        snapshot_uid: resolved.uid.clone(),
        snapshot_digest: resolved
            .digest
            .parse()
            .map_err(|e| Failure::new(Class::Corrupt, reasons::CORRUPT, format!("{e}")))?,
        acting_user: request
            .spec
            .requested_by
            .as_ref()
            .and_then(|by| by.username.clone())
            .unwrap_or_default(),
        policy_digest: None,
        hooks: spec.get("hooks").cloned().unwrap_or(Value::Null),
        tests: spec.get("verify").cloned().unwrap_or(Value::Null),
    })
}

/// Writes the plan; the same plan of the same request is written once.
#[allow(clippy::too_many_arguments)]
async fn write(
    context: &Context,
    request: &RollbackRequest,
    resolved: &ResolvedSnapshot,
    bound: &Plan<Bound>,
    risk: Risk,
    preflight: Vec<PreflightResult>,
    sides: &Sides,
    readable: &preflight::Readable,
) -> Result<RollbackPlan, Failure> {
    let digest = bound.digest();
    let mut items: Vec<PlanItem> = bound.items().iter().map(|item| shown(item, sides, readable)).collect();
    let truncated = fit(&mut items);
    let summary = bound.summary();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let namespace = request.namespace().unwrap_or_default();
    let plan = RollbackPlan {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}-{}",
                request.name_any(),
                digest.to_hex().chars().take(8).collect::<String>()
            )),
            namespace: Some(namespace.clone()),
            owner_references: Some(vec![OwnerReference {
                api_version: RollbackRequest::api_version(&()).into_owned(),
                kind: RollbackRequest::kind(&()).into_owned(),
                name: request.name_any(),
                uid: request.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: RollbackPlanSpec {
            request_ref: UidReference {
                name: request.name_any(),
                uid: request.uid().unwrap_or_default(),
            },
            target: PlanTarget {
                snapshot: resolved.name.clone(),
                version: resolved.version,
                digest: resolved.digest.clone(),
            },
            digest: digest.to_string(),
            risk,
            summary: PlanSummary {
                create: count(summary.create),
                update: count(summary.update),
                recreate: count(summary.recreate),
                delete: count(summary.delete),
                keep: count(summary.keep),
                skip: count(summary.skip),
                restart: count(summary.restart),
                unchanged: count(summary.unchanged),
            },
            preflight,
            items,
            truncated,
        },
    };
    let api: Api<RollbackPlan> = Api::namespaced(context.client.clone(), &namespace);
    let name = plan.name_any();
    let what = format!("create rollbackplan {namespace}/{name}");
    let params = PostParams {
        field_manager: Some(names::FIELD_MANAGER.into()),
        ..PostParams::default()
    };
    match call::repeat(&what, call::DEADLINE, || api.create(&params, &plan)).await {
        Ok(written) => Ok(written),
        // Written by a process that did not live to say so: the name holds the digest.
        Err(error) if error.is_conflict() => {
            let found = call::repeat(&what, call::DEADLINE, || api.get(&name)).await?;
            if found.spec.digest == plan.spec.digest && found.spec.request_ref == plan.spec.request_ref {
                return Ok(found);
            }
            let message = format!(
                "another rollbackplan {name} is in the way; delete it (verb purge), or use another name for the request"
            );
            Err(Failure::new(Class::Invalid, reasons::PREFLIGHT_FAILED, message))
        }
        Err(error) => Err(error.into()),
    }
}

fn shown(item: &Item, sides: &Sides, readable: &preflight::Readable) -> PlanItem {
    let keyed = |digest| plan::digest::item_digest(&item.id, digest, &sides.key).to_string();
    let may_read = readable.contains(&item.id);
    let differs = matches!(
        item.action,
        Action::Create | Action::Update | Action::Recreate(_) | Action::Delete
    );
    let text = (differs && may_read).then(|| {
        let live = item.live.as_ref().map(|l| &l.content.0);
        let wanted = item.desired.as_ref().map(|d| &d.content.0);
        diff::unified(live, wanted, &sides.shape(&item.id), &sides.key)
    });
    let mut details: Vec<String> = item.notes.iter().map(ToString::to_string).collect();
    match &item.action {
        Action::Keep(reason) => details.insert(0, reason.to_string()),
        Action::Skip(reason) => details.insert(0, reason.to_string()),
        Action::Recreate(fields) => details.insert(0, format!("cannot be changed: {}", fields.join(", "))),
        Action::Restart(causes) => {
            details.insert(
                0,
                format!(
                    "reads {}",
                    causes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                ),
            );
        }
        Action::Create | Action::Update | Action::Delete => {}
    }
    if let Some(refusal) = &item.refusal {
        details.push(refusal.to_string());
    }
    if differs && !may_read {
        details.push("the difference is hidden, because the requester may not read the object".into());
    }
    PlanItem {
        action: match &item.action {
            Action::Create => PlanAction::Create,
            Action::Update => PlanAction::Update,
            Action::Recreate(_) => PlanAction::Recreate,
            Action::Delete => PlanAction::Delete,
            Action::Keep(_) => PlanAction::Keep,
            Action::Skip(_) => PlanAction::Skip,
            Action::Restart(_) => PlanAction::Restart,
        },
        order: Some(i32::from(item.order)),
        object: ObjectReference {
            group: item.id.group.clone(),
            kind: item.id.kind.clone(),
            name: item.id.name.clone(),
        },
        live_digest: item.live.as_ref().map(|l| keyed(l.digest)),
        target_digest: item.target_digest.map(keyed),
        diff: text.filter(|t| !t.is_empty()).map(|t| cut(&t, DIFF_BYTES)),
        reason: item.action.reason(),
        detail: (!details.is_empty()).then(|| cut(&details.join("; "), 1000)),
    }
}

/// At most `bytes` of `text`, cut at a character and said so.
fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = (0..=bytes).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}\n… cut", &text[..end])
}

/// Cuts what does not fit: the longest diffs first, then items from the end. Returns whether anything was cut.
fn fit(items: &mut Vec<PlanItem>) -> bool {
    let size = |item: &PlanItem| serde_json::to_string(item).map_or(0, |text| text.len() + 1);
    let mut total: usize = items.iter().map(size).sum();
    let mut truncated = items
        .iter()
        .any(|item| item.diff.as_ref().is_some_and(|d| d.ends_with("… cut")));
    let mut longest: Vec<usize> = (0..items.len()).collect();
    longest.sort_by_key(|i| std::cmp::Reverse(items[*i].diff.as_ref().map_or(0, String::len)));
    for index in longest {
        if total <= PLAN_BYTES {
            break;
        }
        let before = size(&items[index]);
        if items[index].diff.take().is_some() {
            total = total.saturating_sub(before - size(&items[index]));
            truncated = true;
        }
    }
    while total > PLAN_BYTES || items.len() > 2000 {
        let Some(item) = items.pop() else { break };
        total = total.saturating_sub(size(&item));
        truncated = true;
    }
    truncated
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_that_is_too_long_loses_diffs_before_items_and_says_so() {
        let item = |n: usize| PlanItem {
            action: PlanAction::Update,
            order: Some(1),
            object: ObjectReference {
                group: String::new(),
                kind: "ConfigMap".into(),
                name: format!("c{n}"),
            },
            live_digest: None,
            target_digest: None,
            diff: Some("x".repeat(10_000)),
            reason: None,
            detail: None,
        };
        let mut items: Vec<_> = (0..100).map(item).collect();
        assert!(fit(&mut items));
        assert_eq!(items.len(), 100);
        assert!(serde_json::to_vec(&json!(items)).unwrap().len() <= PLAN_BYTES + 1000);
        let mut short: Vec<_> = (0..3).map(item).collect();
        assert!(!fit(&mut short));
    }

    #[test]
    fn cutting_respects_characters() {
        assert_eq!(cut("äöü", 3), "ä\n… cut");
    }
}
