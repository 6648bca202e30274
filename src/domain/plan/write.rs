//! Which calls bring an item about so that its former owners can apply again without a conflict and without a difference
//! (`rollback.md` §5).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    Action, Content, Desired, Item, LiveState,
    desired::{RESTARTED_AT, owner_id},
    fields::{self, Set},
    json, workload,
};
use crate::{
    api::names::FIELD_MANAGER,
    domain::object::{Digest, ObjectId, canonical},
};

/// Field manager between a write and the return of the captured owners; an object that carries it is not done.
pub const RESTORING: &str = "backstep-restoring";
/// As `kubectl rollout restart` calls itself.
const ROLLOUT: &str = "kubectl-rollout";
/// Annotations that the Deployment controller writes through the status.
const OF_DEPLOYMENTS: &str = "deployment.kubernetes.io/";

/// What calls need besides the item.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// UIDs of owners that this execution created.
    pub owners: &'a BTreeMap<ObjectId, String>,
    /// Time of restarts and of the owners that come back; the same after a crash, so that calls may be repeated.
    pub restarted_at: Timestamp,
}

/// One call to the API server. Bodies never show in `Debug`: they may be Secrets.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Server-side apply. Forced where it updates; then the body holds UID and resourceVersion.
    Apply {
        /// Field manager.
        manager: String,
        /// What the manager owns, and nothing else.
        body: Content,
        /// Of an update, [`state`] of the object that is replaced; `None` creates: not forced, and 200 is drift.
        replaces: Option<Digest>,
    },
    /// Replaces the object; the body holds UID and resourceVersion.
    Put {
        /// Field manager.
        manager: String,
        /// The whole object.
        body: Content,
        /// [`state`] of the object that is replaced.
        replaces: Digest,
    },
    /// Creates the object.
    Post {
        /// Field manager.
        manager: String,
        /// The whole object.
        body: Content,
    },
    /// Sets `metadata.managedFields`, in which [`restored`] keeps what others wrote meanwhile.
    Fields {
        /// The captured owners, with times, without the status subresource.
        managed_fields: Vec<Value>,
        /// The object as it was planned against, where no call before this one returns it.
        from: Option<Box<LiveState>>,
    },
    /// A merge patch that may be repeated.
    Merge {
        /// Field manager.
        manager: String,
        /// The patch; holds the UID.
        body: Content,
    },
    /// Deletes the object; its dependents follow in the background.
    Delete {
        /// UID that it must have.
        uid: String,
        /// resourceVersion that it must have.
        resource_version: String,
        /// [`state`] of the object that goes.
        deletes: Digest,
    },
}

/// Why an item cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteRefusal {
    /// An owner that the plan creates is not there.
    #[error(
        "its owner {0} was not created, and without its UID the garbage collector would delete it; see the failure of {0}"
    )]
    OwnerMissing(ObjectId),
    /// Deleting and creating again.
    #[error(
        "deleting and creating again is not available yet; preserve it with objects.exclude, or delete it by hand first"
    )]
    RecreateNotAvailable,
    /// The item lacks its live or its future state.
    #[error("the plan does not say what it is or becomes; make a new request")]
    Incomplete,
}

/// The calls that bring `item` about, in order; empty where there is nothing to do.
///
/// # Errors
/// The item cannot be written; nothing was.
pub fn calls(item: &Item, around: &Around<'_>) -> Result<Vec<Call>, WriteRefusal> {
    match &item.action {
        Action::Keep(_) | Action::Skip(_) => Ok(Vec::new()),
        Action::Recreate(_) => Err(WriteRefusal::RecreateNotAvailable),
        Action::Delete => {
            let live = item.live.as_ref().ok_or(WriteRefusal::Incomplete)?;
            Ok(vec![Call::Delete {
                uid: live.uid.clone(),
                resource_version: live.resource_version.clone(),
                deletes: live.state,
            }])
        }
        Action::Restart(_) => {
            let live = item.live.as_ref().ok_or(WriteRefusal::Incomplete)?;
            Ok(vec![restart(&live.uid, around.restarted_at)])
        }
        Action::Create => content_calls(item, None, around),
        Action::Update => {
            let live = item.live.as_ref().ok_or(WriteRefusal::Incomplete)?;
            content_calls(item, Some(live), around)
        }
    }
}

/// What `kubectl rollout restart` does, to the workload with this UID. The same time gives the same call.
pub fn restart(uid: &str, at: Timestamp) -> Call {
    let body = json!({
        "metadata": {"uid": uid},
        "spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: seconds(at)}}}},
    });
    Call::Merge {
        manager: ROLLOUT.to_owned(),
        body: body.into(),
    }
}

/// RFC 3339 in whole seconds, as the API server writes times.
pub fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn content_calls(item: &Item, live: Option<&LiveState>, around: &Around<'_>) -> Result<Vec<Call>, WriteRefusal> {
    let wanted = item.desired.as_ref().ok_or(WriteRefusal::Incomplete)?;
    let object = with_owners(wanted, around)?;
    let target = owners_afterwards(item, wanted, live, &object);
    let fields = |from: Option<&LiveState>| Call::Fields {
        managed_fields: with_time(&target, around.restarted_at),
        from: from.cloned().map(Box::new),
    };
    let unfinished = live.is_some_and(LiveState::is_unfinished);
    if unfinished && live.is_some_and(|live| live.content == wanted.content) {
        return Ok(vec![fields(live)]);
    }
    if let Some((manager, body)) = apply(&target, &object, wanted, live) {
        return Ok(vec![Call::Apply {
            manager,
            body: body.into(),
            replaces: live.map(|live| live.state),
        }]);
    }
    let write = |manager: &str, body: Content| {
        let manager = manager.to_owned();
        match live {
            Some(live) => Call::Put {
                manager,
                body,
                replaces: live.state,
            },
            None => Call::Post { manager, body },
        }
    };
    // What another applier holds beside it would stay with that one.
    let applied = live.is_some_and(|live| {
        live.managed_fields
            .iter()
            .any(|entry| text(entry, "operation") == "Apply")
    });
    Ok(match only_updater(&target) {
        Some(manager) if !unfinished && !applied => {
            // What the server chose then it chooses again, and it stays nobody's.
            let part = match (live, target.as_slice()) {
                (None, [entry]) => set_of(entry).and_then(|owned| owned_part(&object, owned, true)),
                _ => None,
            };
            vec![write(manager, part.map_or_else(|| object.clone(), Content::from))]
        }
        _ => vec![write(RESTORING, object.clone()), fields(None)],
    })
}

/// The object with the UIDs of owners that were created meanwhile.
fn with_owners(wanted: &Desired, around: &Around<'_>) -> Result<Content, WriteRefusal> {
    let mut object = wanted.object.clone();
    if wanted.pending_owners.is_empty() {
        return Ok(object);
    }
    let references = object
        .edit()
        .pointer_mut("/metadata/ownerReferences")
        .and_then(Value::as_array_mut);
    for reference in references
        .into_iter()
        .flatten()
        .filter(|reference| reference.get("uid").is_none())
    {
        let owner = owner_id(reference).ok_or(WriteRefusal::Incomplete)?;
        let uid = around.owners.get(&owner).ok_or(WriteRefusal::OwnerMissing(owner))?;
        json::put(reference, &["uid"], Some(Value::String(uid.clone())));
    }
    Ok(object)
}

fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    json::text(entry, &[field]).unwrap_or_default()
}

/// What makes two entries of `managedFields` one.
fn identity(entry: &Value) -> [&str; 4] {
    ["manager", "operation", "apiVersion", "subresource"].map(|field| text(entry, field))
}

fn set_of(entry: &Value) -> Option<&Set> {
    entry.get("fieldsV1").and_then(Value::as_object)
}

fn is_status(entry: &Value) -> bool {
    text(entry, "subresource") == "status"
}

/// Entries that tell of the content and of nobody's unfinished write.
fn settled(entries: &[Value]) -> impl Iterator<Item = &Value> {
    entries
        .iter()
        .filter(|entry| !is_status(entry) && text(entry, "manager") != RESTORING)
}

impl LiveState {
    /// Whether a write of it was cut short before its owners came back.
    pub fn is_unfinished(&self) -> bool {
        is_unfinished(&self.managed_fields)
    }
}

/// Whether [`RESTORING`] is among the owners.
pub fn is_unfinished(managed_fields: &[Value]) -> bool {
    managed_fields.iter().any(|entry| text(entry, "manager") == RESTORING)
}

/// Who shall own which field: those who did, but for fields in which live wins, images that are pinned, and, where only images
/// come back, everything else.
fn owners_afterwards(item: &Item, wanted: &Desired, live: Option<&LiveState>, object: &Value) -> Vec<Value> {
    let mut captured: Vec<Value> = settled(wanted.managed_fields()).cloned().collect();
    follow_owner_uids(&mut captured, object);
    let now: Vec<Value> = live
        .into_iter()
        .flat_map(|live| settled(&live.managed_fields))
        .cloned()
        .collect();
    let mut target = if wanted.only_images {
        let mut target = now;
        for path in image_paths(&item.id, object, |_| true) {
            hand_over(&mut target, &path, &captured);
        }
        target
    } else {
        if live.is_some() {
            let mut lives: Vec<Vec<String>> = wanted.masked.iter().map(|path| fields::path(path)).collect();
            lives.push(fields::path(&["metadata", "finalizers"]));
            if let Some(template) = workload::template_path(&item.id) {
                let path: Vec<&str> = template
                    .iter()
                    .copied()
                    .chain(["metadata", "annotations", RESTARTED_AT])
                    .collect();
                lives.push(fields::path(&path));
            }
            for path in lives {
                hand_over(&mut captured, &path, &now);
            }
        }
        captured
    };
    let pinned = image_paths(&item.id, object, |container| {
        wanted.pinned.iter().any(|name| name == container)
    });
    if !pinned.is_empty() {
        let mut ours = Set::new();
        for path in &pinned {
            fields::insert(&mut ours, path, Set::new());
        }
        let entry = json!({"manager": FIELD_MANAGER, "operation": "Update", "apiVersion": text(object, "apiVersion"),
            "fieldsType": "FieldsV1", "fieldsV1": ours});
        for path in &pinned {
            hand_over(&mut target, path, std::slice::from_ref(&entry));
        }
    }
    target.retain(|entry| set_of(entry).is_some_and(|set| !set.is_empty()));
    target
}

/// Takes `path` from everybody in `target`, and gives it to those who have it in `from`.
fn hand_over(target: &mut Vec<Value>, path: &[String], from: &[Value]) {
    for entry in target.iter_mut() {
        if let Some(Value::Object(set)) = entry.get_mut("fieldsV1") {
            fields::remove(set, path);
        }
    }
    for entry in from {
        let Some(owned) = set_of(entry).and_then(|set| fields::at(set, path)).cloned() else {
            continue;
        };
        give(target, entry, |set| fields::insert(set, path, owned));
    }
}

/// Adds to what the manager of `entry` owns in `target`.
fn give(target: &mut Vec<Value>, entry: &Value, add: impl FnOnce(&mut Set)) {
    let found = target.iter_mut().find(|other| identity(other) == identity(entry));
    if let Some(found) = found {
        if let Some(Value::Object(set)) = found.get_mut("fieldsV1") {
            add(set);
        }
        return;
    }
    let mut new = entry.clone();
    let mut set = Set::new();
    add(&mut set);
    json::put(&mut new, &["fieldsV1"], Some(Value::Object(set)));
    target.push(new);
}

/// Owner references are keyed by UID: who owned the one to the former owner owns the one to the present.
fn follow_owner_uids(entries: &mut [Value], object: &Value) {
    let path = fields::path(&["metadata", "ownerReferences"]);
    let key = |uid: &str| format!("k:{}", json!({ "uid": uid }));
    let present: Vec<String> = json::list(object, &["metadata", "ownerReferences"])
        .filter_map(|reference| json::text(reference, &["uid"]))
        .map(key)
        .collect();
    let mut former: Vec<String> = entries
        .iter()
        .filter_map(|entry| fields::at(set_of(entry)?, &path))
        .flat_map(Map::keys)
        .filter(|segment| segment.starts_with("k:"))
        .cloned()
        .collect();
    former.sort_unstable();
    former.dedup();
    let gone: Vec<&String> = former.iter().filter(|key| !present.contains(key)).collect();
    let new: Vec<&String> = present.iter().filter(|key| !former.contains(key)).collect();
    for entry in entries.iter_mut() {
        let Some(Value::Object(set)) = entry.get_mut("fieldsV1") else {
            continue;
        };
        for key in &gone {
            let path: Vec<String> = path.iter().chain([*key]).cloned().collect();
            let Some(owned) = fields::at(set, &path).cloned() else {
                continue;
            };
            fields::remove(set, &path);
            // Of several it is not known which became which; what nobody owns conflicts with nobody.
            if let ([_], [present]) = (gone.as_slice(), new.as_slice()) {
                let path: Vec<String> = path[..path.len() - 1].iter().chain([*present]).cloned().collect();
                fields::insert(set, &path, owned);
            }
        }
    }
}

/// Paths of the images of the containers that `which` picks.
fn image_paths(id: &ObjectId, object: &Value, which: impl Fn(&str) -> bool) -> Vec<Vec<String>> {
    let (Some(template), Some(spec)) = (workload::template_path(id), workload::pod_spec(id, object)) else {
        return Vec::new();
    };
    ["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| {
            json::list(spec, &[list])
                .filter_map(|container| json::text(container, &["name"]))
                .filter(|name| which(name))
                .map(move |name| {
                    let fields: Vec<&str> = template.iter().copied().chain(["spec", list]).collect();
                    let mut path = fields::path(&fields);
                    path.extend([format!("k:{}", json!({ "name": name })), "f:image".to_owned()]);
                    path
                })
        })
        .collect()
}

fn with_time(entries: &[Value], at: Timestamp) -> Vec<Value> {
    let mut entries = entries.to_vec();
    for entry in &mut entries {
        json::put(entry, &["time"], Some(Value::String(seconds(at))));
    }
    entries
}

/// The one manager of an object that is only ever updated. Backstep itself where nothing is known of the owners.
fn only_updater(target: &[Value]) -> Option<&str> {
    let Some(first) = target.first() else {
        return Some(FIELD_MANAGER);
    };
    target
        .iter()
        .all(|entry| {
            text(entry, "operation") == "Update"
                && text(entry, "subresource").is_empty()
                && text(entry, "manager") == text(first, "manager")
        })
        .then(|| text(first, "manager"))
}

/// Manager and body of the one apply that does it all; `None` where none does.
fn apply(target: &[Value], object: &Value, wanted: &Desired, live: Option<&LiveState>) -> Option<(String, Value)> {
    let [entry] = target else { return None };
    let owned = set_of(entry)?;
    if text(entry, "operation") != "Apply"
        || !text(entry, "subresource").is_empty()
        || text(entry, "apiVersion") != text(object, "apiVersion")
    {
        return None;
    }
    if let Some(live) = live {
        let mut others = live.managed_fields.iter().filter(|entry| !is_status(entry));
        let now = others.next().filter(|now| identity(now) == identity(entry))?;
        if others.next().is_some() || is_unfinished(&live.managed_fields) {
            return None;
        }
        let state = |content, owned| fields::State {
            value: Some(content),
            owned: Some(owned),
        };
        if !fields::applies(state(&*live.content, set_of(now)?), state(&*wanted.content, owned)) {
            return None;
        }
    }
    let body = owned_part(object, owned, live.is_none())?;
    Some((text(entry, "manager").to_owned(), body))
}

/// What of `object` is owned, and which object it is; `None` where that would lose something that does not come by itself.
fn owned_part(object: &Value, owned: &Set, is_new: bool) -> Option<Value> {
    let mut body = fields::project(object, owned).unwrap_or_else(|| json!({}));
    json::put(&mut body, &["status"], None);
    // Without an owner reference the object would outlive its owner; and these have no defaults that would come back.
    let left_out = |path: &[&str]| json::at(object, path).is_some() && json::at(&body, path) != json::at(object, path);
    let without_default = [
        &["metadata", "labels"][..],
        &["metadata", "annotations"],
        &["data"],
        &["binaryData"],
    ];
    if left_out(&["metadata", "ownerReferences"]) || (is_new && without_default.into_iter().any(left_out)) {
        return None;
    }
    for path in [
        &["apiVersion"][..],
        &["kind"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "uid"],
        &["metadata", "resourceVersion"],
    ] {
        json::put(&mut body, path, json::at(object, path).cloned());
    }
    Some(body)
}

/// Digest of what of a raw object only its authors change: two equal ones differ in status and bookkeeping alone.
pub fn state(raw: &Value) -> Digest {
    let mut raw = raw.clone();
    for path in [
        &["status"][..],
        &["apiVersion"],
        &["kind"],
        &["metadata", "resourceVersion"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
    ] {
        json::put(&mut raw, path, None);
    }
    if let Some(annotations) = raw.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.retain(|name, _| !name.starts_with(OF_DEPLOYMENTS));
        if annotations.is_empty() {
            json::put(&mut raw, &["metadata", "annotations"], None);
        }
    }
    canonical::digest(&raw)
}

/// `body` of a replacement, now of `current`, which differs from what it was made for in status and bookkeeping alone. A `whole`
/// one would take away what it does not hold; of an apply body everything is its manager's.
pub fn refreshed(body: &Value, current: &Value, whole: bool) -> Value {
    let mut body = body.clone();
    json::put(
        &mut body,
        &["metadata", "resourceVersion"],
        json::at(current, &["metadata", "resourceVersion"]).cloned(),
    );
    if !whole {
        return body;
    }
    json::put(&mut body, &["status"], current.get("status").cloned());
    let theirs = json::at(current, &["metadata", "annotations"]).and_then(Value::as_object);
    for (name, value) in theirs
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with(OF_DEPLOYMENTS))
    {
        json::put(&mut body, &["metadata", "annotations", name], Some(value.clone()));
    }
    body
}

/// Whether `current` holds every field of `body`, bookkeeping aside: a write whose answer was lost has arrived.
pub fn holds(body: &Value, current: &Value) -> bool {
    let mut body = body.clone();
    for path in [
        &["status"][..],
        &["metadata", "resourceVersion"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
    ] {
        json::put(&mut body, path, None);
    }
    within(&body, current)
}

fn within(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => part
            .iter()
            .all(|(name, value)| whole.get(name).is_some_and(|other| within(value, other))),
        (Value::Array(part), Value::Array(whole)) => {
            part.len() == whole.len() && part.iter().zip(whole).all(|(part, whole)| within(part, whole))
        }
        _ => part == whole,
    }
}

/// `managedFields` with the captured owners, what the status subresource owns in `current`, and what others wrote after `base`,
/// the object as our own write left it.
pub fn restored(target: &[Value], base: &[Value], current: &[Value]) -> Vec<Value> {
    let mut entries = target.to_vec();
    for entry in current {
        if is_status(entry) {
            entries.push(entry.clone());
            continue;
        }
        let known = text(entry, "manager") == RESTORING
            || base
                .iter()
                .any(|before| identity(before) == identity(entry) && set_of(before) == set_of(entry));
        if !known && let Some(owned) = set_of(entry).cloned() {
            give(&mut entries, entry, |set| fields::unite(set, owned));
        }
    }
    if entries.is_empty() {
        // An empty list would leave everything as it is; one empty entry says nobody.
        entries.push(json!({}));
    }
    entries
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
