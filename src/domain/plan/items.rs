//! From facts to a plan: what to do about every object that differs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::prelude::*;
use serde_json::Value;

use super::{
    Action, Drafted, Item, KeepReason, LiveState, Note, Plan, PlanError, Refusal, SkipReason,
    consumers::{ChangedConfig, must_restart},
    desired::{Context, Desired, KeptReason, desired, owner_id},
    facts::{Captured, Conflict, Images, Immutable, Inputs, Live, Owner, Pin, Prune, SecretsHandling},
    immutable::immutable_changes,
    json, order,
    scope::{self, Scope},
    workload,
    write::{is_unfinished, state},
};
use crate::domain::object::{Digest, ObjectId, canonical};

/// Fewest objects that are worth another core.
pub(super) const AT_ONCE: usize = 64;

/// What a rollback would do. Every object in which live and snapshot differ is an item, whatever happens to it; objects that
/// are equal are only counted.
///
/// # Errors
/// An identity occurs twice, a needed content is missing, or live drifted and the request says `FailOnDrift`.
pub fn build(inputs: &Inputs<'_>) -> Result<Plan<Drafted>, PlanError> {
    let view = View::new(inputs)?;
    if inputs.options.conflict == Conflict::FailOnDrift && !inputs.facts.drifted.is_empty() {
        return Err(PlanError::Drift(inputs.facts.drifted.iter().cloned().collect()));
    }
    let back: Vec<Option<Item>> = view
        .captured
        .sorted
        .par_iter()
        .with_min_len(AT_ONCE)
        .map(|captured| view.back(captured))
        .collect::<Result<_, _>>()?;
    let compared = back.len();
    let mut items: Vec<Item> = back.into_iter().flatten().collect();
    let unchanged = compared - items.len();
    for live in view.live.iter() {
        if !view.captured.contains(&live.id)
            && let Some(action) = view.created_since(live)
        {
            items.push(view.item(action, &live.id, None, Some(live)));
        }
    }
    if inputs.options.cascade {
        let restarts = view.restarts(&items);
        items.extend(restarts);
    }
    order::assign(&mut items);
    Ok(Plan {
        items,
        unchanged,
        state: Drafted,
    })
}

/// Objects that are found by identity, and gone through in its order.
struct ById<'a, T> {
    sorted: Vec<&'a T>,
    found: HashMap<&'a ObjectId, &'a T>,
}

impl<'a, T> ById<'a, T> {
    fn new(objects: &'a [T], id: impl Fn(&'a T) -> &'a ObjectId) -> Result<Self, PlanError> {
        let mut sorted: Vec<&T> = objects.iter().collect();
        sorted.sort_by_key(|object| id(object));
        let mut found = HashMap::with_capacity(sorted.len());
        for object in &sorted {
            if found.insert(id(object), *object).is_some() {
                return Err(PlanError::Duplicate(id(object).clone()));
            }
        }
        Ok(Self { sorted, found })
    }

    fn get(&self, id: &ObjectId) -> Option<&'a T> {
        self.found.get(id).copied()
    }

    fn contains(&self, id: &ObjectId) -> bool {
        self.found.contains_key(id)
    }

    fn iter(&self) -> impl Iterator<Item = &'a T> {
        self.sorted.iter().copied()
    }
}

/// The inputs by identity, and what follows from them as a whole.
struct View<'a> {
    inputs: &'a Inputs<'a>,
    captured: ById<'a, Captured<'a>>,
    live: ById<'a, Live<'a>>,
    /// Absent objects that come back.
    created: BTreeSet<&'a ObjectId>,
    /// Workload → the autoscaler that decides its replicas once the rollback is done.
    autoscalers: BTreeMap<ObjectId, &'a ObjectId>,
    /// Group and kind that the plan makes served again.
    defined: BTreeSet<(String, String)>,
}

impl<'a> View<'a> {
    fn new(inputs: &'a Inputs<'a>) -> Result<Self, PlanError> {
        let captured = ById::new(inputs.captured, |captured| &captured.id)?;
        let live = ById::new(inputs.live, |live| &live.id)?;
        let mut view = Self {
            inputs,
            captured,
            live,
            created: BTreeSet::new(),
            autoscalers: BTreeMap::new(),
            defined: BTreeSet::new(),
        };
        view.defined = view.definitions_back();
        view.created = view
            .captured
            .iter()
            .filter(|captured| !view.live.contains(&captured.id) && view.obstacle(captured, None).is_none())
            .map(|captured| &captured.id)
            .collect();
        view.autoscalers = view.autoscalers_afterwards();
        Ok(view)
    }

    fn scope(&self, captured: &Captured<'_>) -> Scope {
        scope::scope(&captured.id, captured.component, self.inputs.options)
    }

    /// Kinds whose definition the plan brings back.
    fn definitions_back(&self) -> BTreeSet<(String, String)> {
        self.captured
            .iter()
            .filter(|captured| captured.id.kind == "CustomResourceDefinition")
            .filter(|captured| !self.live.contains(&captured.id) && self.scope(captured) == Scope::Whole)
            .filter_map(|captured| {
                let content = captured.content?;
                let group = json::text(content, &["spec", "group"])?;
                let kind = json::text(content, &["spec", "names", "kind"])?;
                Some((group.to_owned(), kind.to_owned()))
            })
            .collect()
    }

    /// Autoscalers that live after the rollback, by their target then. One that the rollback creates does not count yet: the
    /// captured replicas are a better start than today's.
    fn autoscalers_afterwards(&self) -> BTreeMap<ObjectId, &'a ObjectId> {
        let mut map = BTreeMap::new();
        for live in self.live.iter() {
            let back = self
                .captured
                .get(&live.id)
                .filter(|captured| captured.digest != live.digest && self.obstacle(captured, Some(live)).is_none());
            if back.is_none() && self.created_since(live) == Some(Action::Delete) && !self.captured.contains(&live.id) {
                continue;
            }
            let content = back.and_then(|captured| captured.content).unwrap_or(live.content);
            if let Some(target) = workload::autoscaled_by(&live.id, content) {
                map.insert(target, &live.id);
            }
        }
        map
    }

    fn pins(&self, id: &ObjectId) -> &'a [Pin] {
        let pinned = self.inputs.options.images != Images::AsCaptured
            && self.inputs.facts.pins.iter().any(|pin| pin.workload == *id);
        if pinned { &self.inputs.facts.pins } else { &[] }
    }

    /// Owners that the captured object names.
    fn captured_owners(&self, id: &ObjectId) -> Vec<ObjectId> {
        let captured = self.captured.get(id);
        let content = captured.and_then(|captured| captured.content).or_else(|| {
            let live = self.live.get(id)?;
            (captured?.digest == live.digest).then_some(live.content)
        });
        content
            .into_iter()
            .flat_map(|content| json::list(content, &["metadata", "ownerReferences"]))
            .filter_map(owner_id)
            .collect()
    }

    /// Whether `owner` is, over however many steps, owned by `object`.
    fn is_owned_by(&self, owner: &ObjectId, object: &ObjectId) -> bool {
        let mut seen = BTreeSet::new();
        let mut next = vec![owner.clone()];
        while let Some(id) = next.pop() {
            if id == *object {
                return true;
            }
            if seen.insert(id.clone()) {
                next.extend(self.captured_owners(&id));
            }
        }
        false
    }

    /// What is known of `id`, which the captured `object` names as an owner.
    fn owner(&self, object: &ObjectId, id: &ObjectId) -> Owner {
        if self.is_owned_by(id, object) {
            return Owner::Circle;
        }
        if let Some(live) = self.live.get(id) {
            return if live.is_terminating() {
                Owner::Gone
            } else {
                Owner::Live(live.uid.clone())
            };
        }
        if self.created.contains(id) {
            return Owner::Planned;
        }
        match self.inputs.facts.owners.get(id) {
            Some(owner) => owner.clone(),
            // It was captured, it is absent, and it does not come back.
            None if self.captured.contains(id) => Owner::Gone,
            None => Owner::Unknown,
        }
    }

    /// What keeps a captured object that differs from coming back, before its fields are looked at. In this order: the request
    /// is not about it · Helm's history · Backstep's own · not served · drifted · controller-owned · being deleted · no
    /// values · a finished Job.
    fn obstacle(&self, captured: &Captured<'_>, live: Option<&Live<'_>>) -> Option<Action> {
        let id = &captured.id;
        let scope = self.scope(captured);
        if let Scope::Out(reason) = scope {
            return Some(Action::Keep(reason));
        }
        if scope::is_helm_history(id) {
            return Some(Action::Keep(KeepReason::HelmHistory));
        }
        if captured
            .content
            .is_some_and(|content| scope::is_backsteps_own(id, content))
        {
            return Some(Action::Keep(KeepReason::BackstepRights));
        }
        let kind = (id.group.clone(), id.kind.clone());
        if self.inputs.facts.unserved.contains(&kind) && !self.defined.contains(&kind) {
            return Some(Action::Skip(SkipReason::KindNotServed));
        }
        if self.inputs.options.conflict == Conflict::KeepLive && self.inputs.facts.drifted.contains(id) {
            return Some(Action::Keep(KeepReason::Drifted));
        }
        match live {
            Some(live) if live.has_controller() => return Some(Action::Skip(SkipReason::ControllerOwned)),
            Some(live) if live.is_terminating() => return Some(Action::Skip(SkipReason::Terminating)),
            None if scope == Scope::Images => return Some(Action::Skip(SkipReason::WorkloadAbsent)),
            _ => {}
        }
        if captured.fingerprints_only {
            return Some(Action::Skip(SkipReason::ValuesNotCaptured));
        }
        let suspended = |content: &Value| json::is_true(content, &["spec", "suspend"]);
        (live.is_none()
            && id.group == "batch"
            && id.kind == "Job"
            && captured.finished != Some(false)
            && !captured.content.is_some_and(|content| suspended(content)))
        .then_some(Action::Skip(SkipReason::FinishedJob))
    }

    /// The item for a captured object; `None` where live is as it was.
    fn back(&self, captured: &Captured<'_>) -> Result<Option<Item>, PlanError> {
        let id = &captured.id;
        let live = self.live.get(id);
        let same = live.filter(|live| live.digest == captured.digest);
        let unfinished = live.is_some_and(|live| is_unfinished(live.managed_fields()));
        if same.is_some() && self.pins(id).is_empty() && !unfinished {
            return Ok(None);
        }
        let content = captured
            .content
            .or(same.map(|live| live.content))
            .ok_or_else(|| PlanError::ContentMissing(id.clone()))?;
        if let Some(action) = self.obstacle(captured, live) {
            if same.is_some() && self.pins(id).is_empty() {
                return Ok(None);
            }
            // What an autoscaler did to an object that the request is not about is no difference.
            let mask = self.mask(id, live);
            if let Some(now) = live.and_then(|live| mask(live.content))
                && Some(now) == mask(content)
            {
                return Ok(None);
            }
            return Ok(Some(self.item(action, id, Some(captured), live)));
        }
        let owner = |owner: &ObjectId| self.owner(id, owner);
        let around = Context {
            owner: &owner,
            autoscaler: self.autoscalers.get(id).copied(),
            pins: self.pins(id),
        };
        let mut wanted = match (self.scope(captured), live) {
            (Scope::Images, Some(live)) => Desired::images(id, content, captured.beside, live, around),
            _ => desired(id, content, captured.beside, live, around),
        };
        if let Some(fields) = self.inputs.facts.put_back.get(id) {
            wanted.accept(fields);
        }
        let Some(live) = live else {
            return Ok(Some(self.written(Action::Create, captured, wanted, None)));
        };
        if wanted.content == *live.content && unfinished {
            let mut item = self.written(Action::Update, captured, wanted, Some(live));
            item.notes.push(Note::Unfinished);
            return Ok(Some(item));
        }
        if wanted.content == *live.content {
            if same.is_some() {
                return Ok(None);
            }
            let reason = if self.scope(captured) == Scope::Images {
                KeepReason::ComponentNotNamed
            } else if wanted.kept.is_empty() {
                KeepReason::Pinned
            } else if wanted.kept.iter().any(|kept| kept.reason == KeptReason::KeptByServer) {
                KeepReason::KeptByServer
            } else {
                KeepReason::LiveWins
            };
            return Ok(Some(self.written(Action::Keep(reason), captured, wanted, Some(live))));
        }
        let is_secret = id.group.is_empty() && id.kind == "Secret";
        if is_secret && self.inputs.options.secrets == SecretsHandling::KeepLive {
            return Ok(Some(self.item(
                Action::Keep(KeepReason::SecretKeptLive),
                id,
                Some(captured),
                Some(live),
            )));
        }
        let action = match immutable_changes(id, live.content, &wanted.content) {
            changes if changes.is_empty() => Action::Update,
            _ if live.is_finished_job() => Action::Skip(SkipReason::FinishedJob),
            changes => Action::Recreate(changes),
        };
        Ok(Some(self.written(action, captured, wanted, Some(live))))
    }

    /// What happens to a live object that the snapshot does not hold; `None` where it is none of its business.
    fn created_since(&self, live: &Live<'_>) -> Option<Action> {
        let options = self.inputs.options;
        if !live.in_capture || live.has_controller() || live.is_terminating() {
            return None;
        }
        let keep = |reason| Some(Action::Keep(reason));
        if scope::is_helm_history(&live.id) {
            return keep(KeepReason::HelmHistory);
        }
        if options.prune == Prune::None {
            return keep(KeepReason::NotPruned);
        }
        match scope::scope(&live.id, live.component, options) {
            Scope::Whole => {}
            Scope::Images => return keep(KeepReason::ComponentNotNamed),
            Scope::Out(reason) => return keep(reason),
        }
        let kind = (live.id.group.clone(), live.id.kind.clone());
        if !self.inputs.facts.captured_kinds.contains(&kind) {
            return keep(KeepReason::KindNotCaptured);
        }
        if scope::is_protected(live) {
            return keep(KeepReason::Protected);
        }
        // Creation times are whole seconds.
        let since = |started: jiff::Timestamp| live.created().is_some_and(|at| at.as_second() >= started.as_second());
        if !self.inputs.facts.snapshot_started.is_some_and(since) {
            return keep(KeepReason::NotCreatedSince);
        }
        if options.conflict == Conflict::KeepLive && self.inputs.facts.drifted.contains(&live.id) {
            return keep(KeepReason::Drifted);
        }
        Some(Action::Delete)
    }

    /// Workloads that read what `items` change, would not notice, and are not replaced by the plan anyway.
    fn restarts(&self, items: &[Item]) -> Vec<Item> {
        let changes: Vec<ChangedConfig> = items
            .iter()
            .filter(|item| matches!(item.action, Action::Create | Action::Update | Action::Recreate(_)))
            .filter_map(|item| {
                let live = item.live.as_ref().map(|live| &*live.content);
                ChangedConfig::between(&item.id, live, item.desired.as_ref().map(|wanted| &*wanted.content))
            })
            .collect();
        if changes.is_empty() {
            return Vec::new();
        }
        let by_id: BTreeMap<&ObjectId, &Item> = items.iter().map(|item| (&item.id, item)).collect();
        let mut restarts = Vec::new();
        for live in self.live.iter() {
            if !workload::restartable(&live.id)
                || live.has_controller()
                || live.is_terminating()
                || self.inputs.options.preserved.contains(&live.id)
            {
                continue;
            }
            let content = match by_id.get(&live.id) {
                Some(item) => match (&item.action, &item.desired) {
                    (Action::Delete | Action::Recreate(_), _) => continue,
                    (Action::Update, Some(wanted)) => {
                        let wanted = &*wanted.content;
                        if workload::template(&live.id, wanted) != workload::template(&live.id, live.content) {
                            continue;
                        }
                        wanted
                    }
                    _ => live.content,
                },
                None => live.content,
            };
            let causes: Vec<ObjectId> = changes
                .iter()
                .filter(|changed| must_restart(&live.id, content, changed))
                .map(|changed| changed.id.clone())
                .collect();
            if !causes.is_empty() {
                restarts.push(self.item(Action::Restart(causes), &live.id, None, Some(live)));
            }
        }
        restarts
    }

    /// Takes out of a content what an autoscaler decides.
    fn mask(&self, id: &ObjectId, live: Option<&Live<'_>>) -> impl Fn(&Value) -> Option<Value> + use<> {
        let masked = live.is_some() && self.autoscalers.contains_key(id);
        move |content| {
            masked.then(|| {
                let mut content = content.clone();
                json::put(&mut content, &["spec", "replicas"], None);
                content
            })
        }
    }

    /// An item that writes no content.
    fn item(&self, action: Action, id: &ObjectId, captured: Option<&Captured<'_>>, live: Option<&Live<'_>>) -> Item {
        let mask = self.mask(id, live);
        let digest = |content: Option<&Value>, whole: Digest| {
            content
                .and_then(&mask)
                .map_or(whole, |content| canonical::digest(&content))
        };
        let component = captured
            .map(|captured| captured.component)
            .or(live.map(|live| live.component));
        Item {
            id: id.clone(),
            component: component.unwrap_or(crate::api::snapshot::Component::Configuration),
            order: 0,
            live: live.map(|live| LiveState {
                uid: live.uid.clone(),
                resource_version: live.resource_version.clone(),
                digest: digest(Some(live.content), live.digest),
                content: live.content.clone(),
                managed_fields: live.managed_fields().to_vec(),
                state: state(live.raw),
            }),
            desired: None,
            target_digest: captured.map(|captured| digest(captured.content.map(|content| &**content), captured.digest)),
            refusal: None,
            notes: Vec::new(),
            action,
        }
    }

    /// An item with a target, and what a reader should know about it.
    fn written(&self, action: Action, captured: &Captured<'_>, wanted: Desired, live: Option<&Live<'_>>) -> Item {
        let mut item = self.item(action, &captured.id, Some(captured), live);
        item.target_digest = Some(match captured.content {
            // Most come back as they were, and what those digest to is known.
            Some(content) if wanted.masked.is_empty() && *content == wanted.content => captured.digest,
            _ => canonical::digest(&wanted.masked(&wanted.content)),
        });
        if let Some(state) = &mut item.live {
            state.digest = canonical::digest(&wanted.masked(&state.content));
        }
        if matches!(item.action, Action::Recreate(_)) {
            item.refusal = Some(match self.inputs.options.immutable {
                Immutable::Fail => Refusal::ImmutableField,
                Immutable::Recreate => Refusal::RecreateNotAvailable,
            });
        }
        item.notes.extend(wanted.kept.iter().cloned().map(Note::Kept));
        item.notes.extend(wanted.pinned.iter().cloned().map(Note::Pinned));
        if item.id.kind == "Secret"
            && let Some(live) = live
            && let Some(change) = ChangedConfig::between(&item.id, Some(live.content), Some(&*wanted.content))
        {
            item.notes
                .push(Note::SecretKeysChanged(change.keys.into_iter().collect()));
        }
        item.desired = item.action.writes().then_some(wanted);
        item
    }
}

#[cfg(test)]
#[path = "items_laws.rs"]
mod laws;
#[cfg(test)]
#[path = "items_tests.rs"]
mod tests;
