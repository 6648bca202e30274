//! The `RollbackPlan` that people read, and its whole in the repository where it is longer than an object may be.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ObjectMeta, PostParams},
};
use rayon::prelude::*;
use tokio_util::task::AbortOnDropHandle;

use super::{gather::Sides, plan::Made, preflight};
use crate::{
    api::{
        RollbackPlan, RollbackPlanSpec, RollbackRequest, names, reasons,
        reference::{ObjectReference, UidReference},
        rollback_plan::{PlanAction, PlanItem, PlanSummary, PlanTarget, PreflightResult},
    },
    capture::Failure,
    cluster::{Class, call},
    controller::context::Context,
    domain::{
        object::{Digest, diff},
        plan::{self, Action, Bound, Item, Plan},
        report,
    },
    repository::{self, Repository, Room},
};

/// Most bytes of a written plan.
const PLAN_BYTES: usize = 256 * 1024;
/// Most bytes of one diff in it.
const DIFF_BYTES: usize = 16 * 1024;
/// Most characters of a detail in it.
const DETAIL: usize = 1000;
/// Most items in it.
const ITEMS: usize = 2000;
/// Items in one that cannot hold all of them: those that matter most, so that there is room for differences.
const FEW: usize = 500;
/// Items whose differences are made at once, on every core.
const SHOWN_AT_ONCE: usize = 256;
/// Bytes of JSON after which a part of a whole plan is written: that much is held at once, and one item more.
const PART_BYTES: usize = 4 << 20;

/// Writes the plan; the same plan of the same request is written once. What does not fit is kept in the repository.
pub(super) async fn write(
    context: &Context,
    repository: &Repository,
    request: &RollbackRequest,
    bound: &Plan<Bound>,
    made: &Made,
    preflight: Vec<PreflightResult>,
    readable: &preflight::Readable,
) -> Result<RollbackPlan, Failure> {
    let (resolved, sides) = (&made.resolved, &made.sides);
    let digest = bound.digest();
    let chosen = chosen(bound.items().iter().map(|item| &item.action));
    let mut truncated = chosen.len() < bound.items().len();
    let mut items = Vec::with_capacity(chosen.len());
    let mut chosen = chosen.into_iter().peekable();
    let mut parts = Parts::new(repository, request.uid().unwrap_or_default());
    let mut at = 0..;
    for some in bound.items().chunks(SHOWN_AT_ONCE) {
        let shown: Vec<PlanItem> = some.par_iter().map(|item| shown(item, sides, readable)).collect();
        for (mut item, at) in shown.into_iter().zip(&mut at) {
            parts.add(&item).await.map_err(|e| super::store_failure(&e))?;
            if chosen.next_if_eq(&at).is_some() {
                truncated |= cut_short(&mut item);
                items.push(item);
            }
        }
    }
    truncated |= fit(&mut items);
    let summary = bound.summary();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let plan = RollbackPlan {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}-{}",
                request.name_any(),
                digest.to_hex().chars().take(8).collect::<String>()
            )),
            namespace: request.namespace(),
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
            risk: made.risk.clone(),
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
    // Nobody is asked before both are there.
    let kept = async {
        if truncated {
            parts.keep(&plan, bound).await.map_err(|e| super::store_failure(&e))?;
        }
        Ok(())
    };
    let (written, ()) = tokio::try_join!(create(context, &plan), kept)?;
    Ok(written)
}

/// Which items the object holds, in their order: all, or of too many those that matter most.
fn chosen<'a>(actions: impl ExactSizeIterator<Item = &'a Action>) -> Vec<usize> {
    if actions.len() <= ITEMS {
        return (0..actions.len()).collect();
    }
    let mut weighed: Vec<(u8, usize)> = actions.map(weight).zip(0..).collect();
    weighed.sort_unstable();
    let mut chosen: Vec<usize> = weighed.into_iter().take(FEW).map(|(_, at)| at).collect();
    chosen.sort_unstable();
    chosen
}

/// What takes something away comes first, what does nothing last.
const fn weight(action: &Action) -> u8 {
    match action {
        Action::Delete => 0,
        Action::Recreate(_) => 1,
        Action::Restart(_) => 2,
        Action::Update => 3,
        Action::Create => 4,
        Action::Skip(_) => 5,
        Action::Keep(_) => 6,
    }
}

async fn create(context: &Context, plan: &RollbackPlan) -> Result<RollbackPlan, Failure> {
    let namespace = plan.namespace().unwrap_or_default();
    let api: Api<RollbackPlan> = Api::namespaced(context.client.clone(), &namespace);
    let name = plan.name_any();
    let what = format!("create rollbackplan {namespace}/{name}");
    let params = PostParams {
        field_manager: Some(names::FIELD_MANAGER.into()),
        ..PostParams::default()
    };
    match call::repeat(&what, call::DEADLINE, || api.create(&params, plan)).await {
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

/// Every item with its whole difference, part by part, and then what names the parts: without it there is no report.
struct Parts<'a> {
    repository: &'a Repository,
    uid: String,
    /// Names of the parts that are written.
    written: Vec<String>,
    /// The part that is being written while the next one grows.
    writing: Option<AbortOnDropHandle<repository::Result<()>>>,
    /// The part that grows, as JSON.
    json: Vec<u8>,
}

impl<'a> Parts<'a> {
    const START: &'static [u8] = br#"{"items":["#;
    const END: &'static [u8] = b"]}";

    fn new(repository: &'a Repository, uid: String) -> Self {
        Self {
            repository,
            uid,
            written: Vec::new(),
            writing: None,
            json: Self::START.to_vec(),
        }
    }

    async fn add(&mut self, item: &PlanItem) -> repository::Result<()> {
        if self.json.len() > Self::START.len() {
            self.json.push(b',');
        }
        serde_json::to_writer(&mut self.json, item)
            .map_err(|e| repository::Error::Invalid(format!("{} is no JSON: {e}", item.object.name)))?;
        // More than an object holds, so that it is needed whatever follows.
        if self.json.len() >= PART_BYTES {
            self.write().await?;
        }
        Ok(())
    }

    async fn write(&mut self) -> repository::Result<()> {
        self.wait().await?;
        let mut json = std::mem::replace(&mut self.json, Self::START.to_vec());
        json.extend_from_slice(Self::END);
        let repository = self.repository.clone();
        let name = report::part(&self.uid, Digest::of(&json));
        self.written.push(name.clone());
        let write = async move { repository.put_json(Room::Reports, &name, &json).await.map(drop) };
        self.writing = Some(AbortOnDropHandle::new(tokio::spawn(write)));
        Ok(())
    }

    /// Until the part before is written.
    async fn wait(&mut self) -> repository::Result<()> {
        match self.writing.take() {
            Some(writing) => writing.await.unwrap_or_else(|error| {
                Err(repository::Error::Invalid(format!(
                    "a part of the report was not written to the end: {error}"
                )))
            }),
            None => Ok(()),
        }
    }

    async fn keep(mut self, plan: &RollbackPlan, bound: &Plan<Bound>) -> repository::Result<()> {
        if self.json.len() > Self::START.len() {
            self.write().await?;
        }
        self.wait().await?;
        let head = report::Head {
            namespace: plan.namespace().unwrap_or_default(),
            name: plan.name_any(),
            spec: RollbackPlanSpec {
                items: Vec::new(),
                truncated: false,
                ..plan.spec.clone()
            },
            items: bound.items().len() as u64,
            parts: self.written,
        };
        let name = report::name(&self.uid, bound.digest());
        self.repository
            .put_document(Room::Reports, &name, &head)
            .await
            .map(drop)
    }
}

/// One item, whole.
fn shown(item: &Item, sides: &Sides, readable: &preflight::Readable) -> PlanItem {
    let keyed = |digest| plan::digest::item_digest(&item.id, digest, &sides.key).to_string();
    let may_read = readable.contains(&item.id);
    let differs = matches!(
        item.action,
        Action::Create | Action::Update | Action::Recreate(_) | Action::Delete
    );
    let text = (differs && may_read).then(|| {
        let live = item.live.as_ref().map(|l| &*l.content);
        let wanted = item.desired.as_ref().map(|d| &*d.content);
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
        diff: text.filter(|t| !t.is_empty()),
        reason: item.action.reason(),
        detail: (!details.is_empty()).then(|| details.join("; ")),
    }
}

/// Cuts what is too long for an object; returns whether anything was.
fn cut_short(item: &mut PlanItem) -> bool {
    let mut any = false;
    for (text, most) in [(&mut item.diff, DIFF_BYTES), (&mut item.detail, DETAIL)] {
        if let Some(long) = text.as_mut().filter(|text| text.len() > most) {
            *long = cut(long, most);
            any = true;
        }
    }
    any
}

/// Bytes of JSON of an item in a list.
fn size(item: &PlanItem) -> usize {
    serde_json::to_string(item).map_or(0, |text| text.len() + 1)
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
    let mut total: usize = items.iter().map(size).sum();
    let mut truncated = false;
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
    while total > PLAN_BYTES {
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
    fn of_too_many_items_those_that_take_something_away_are_shown_and_the_order_stays() {
        let mut actions = vec![Action::Create; ITEMS];
        assert_eq!(chosen(actions.iter()), (0..ITEMS).collect::<Vec<_>>());
        actions.extend([Action::Delete, Action::Update]);
        let shown = chosen(actions.iter());
        assert_eq!(shown.len(), FEW);
        assert_eq!(shown[..FEW - 2], (0..FEW - 2).collect::<Vec<_>>());
        assert_eq!(shown[FEW - 2..], [ITEMS, ITEMS + 1]);
    }

    #[test]
    fn cutting_respects_characters() {
        assert_eq!(cut("äöü", 3), "ä\n… cut");
    }
}
