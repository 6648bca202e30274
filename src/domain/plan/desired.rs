//! What one object should become: its captured content, merged with what only the live object can know.

use std::{cmp::Ordering, fmt, ops::Deref, sync::Arc};

use serde_json::{Map, Value};

use super::{
    facts::{Live, Owner, Pin},
    json, quantity, workload,
};
use crate::domain::object::{Beside, ObjectId, apply_order};

/// Written by `kubectl rollout restart` on pod templates; the live value stays.
pub const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";
/// Labels that the Job controller generates.
const JOB_LABELS: [&str; 4] = [
    "controller-uid",
    "job-name",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
];

pub(super) type Path = &'static [&'static str];

/// An object's fields, shared until one of its holders changes them. Never shown: it may be a Secret.
#[derive(Clone, PartialEq)]
pub struct Content(Arc<Value>);

impl Content {
    /// The fields, to change them: of what is shared, a copy.
    pub fn edit(&mut self) -> &mut Value {
        Arc::make_mut(&mut self.0)
    }

    /// The fields as a value of its own.
    pub fn into_value(self) -> Value {
        Arc::unwrap_or_clone(self.0)
    }
}

impl From<Value> for Content {
    fn from(value: Value) -> Self {
        Self(Arc::new(value))
    }
}

impl Deref for Content {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Content(..)")
    }
}

/// A captured field that does not come back, or not as it was.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeptField {
    /// `spec.replicas`, `metadata.ownerReferences[Deployment.apps/web]`.
    pub path: String,
    /// Why.
    pub reason: KeptReason,
}

/// Why a captured field does not come back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeptReason {
    /// The API server allocated the live value and does not change it.
    ServerAllocated,
    /// A claim stays with the volume and class that it is bound to.
    ClaimIsBound,
    /// A claim never shrinks.
    ClaimNeverShrinks,
    /// An autoscaler decides it.
    Autoscaled(ObjectId),
    /// The owner no longer exists: a stale UID would make the garbage collector delete the object.
    OwnerGone,
    /// The owner could not be read, and live does not refer to it.
    OwnerUnknown,
    /// The owner is owned by the object itself.
    OwnerCircle,
    /// The server makes it so whatever is written, as a dry run showed.
    KeptByServer,
}

impl fmt::Display for KeptReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServerAllocated => f.write_str("the API server allocated the live value"),
            Self::ClaimIsBound => f.write_str("a claim stays with the volume and class it is bound to"),
            Self::ClaimNeverShrinks => f.write_str("a claim never shrinks"),
            Self::Autoscaled(by) => write!(f, "{by} decides it"),
            Self::OwnerGone => f.write_str("the owner no longer exists"),
            Self::OwnerUnknown => f.write_str("the owner could not be read"),
            Self::OwnerCircle => f.write_str("the owner is owned by the object itself"),
            Self::KeptByServer => f.write_str("the API server or an admission policy makes it so whatever is written"),
        }
    }
}

/// What an object should become.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Canonical content, with what the server is known to make of it; equals the live object's content exactly when there is
    /// nothing to do.
    pub content: Content,
    /// The whole object for a PUT or POST: content and what only the live object knows. `metadata.managedFields` is absent,
    /// which leaves the live ones alone. An owner in `pending_owners` has no UID yet.
    pub object: Content,
    /// Captured fields that do not come back.
    pub kept: Vec<KeptField>,
    /// Containers whose image is pinned.
    pub pinned: Vec<String>,
    /// Owners that this plan creates: their UID is written in once they live.
    pub pending_owners: Vec<ObjectId>,
    /// What the snapshot keeps beside the content; `None` where nothing is known.
    pub beside: Option<Arc<Beside>>,
    /// Whether only images come back, so that all else stays with its owners of now.
    pub(super) only_images: bool,
    /// Fields where live wins; no part of the digests that a plan is bound to.
    pub(super) masked: Vec<Path>,
}

impl Desired {
    /// The live object with the images of the captured `content`, and nothing else of it.
    pub fn images(
        id: &ObjectId,
        content: &Value,
        beside: Option<&Arc<Beside>>,
        live: &Live<'_>,
        around: Context<'_>,
    ) -> Self {
        let with_images = |mut object: Value| {
            workload::set_images(id, &mut object, |container| {
                workload::image(id, content, container).map(str::to_owned)
            });
            let pinned = workload::pin(id, &mut object, around.pins);
            (object, pinned)
        };
        let (wanted, pinned) = with_images((**live.content).clone());
        let mut object = with_images(live.raw.clone()).0;
        json::put(&mut object, &["metadata", "managedFields"], None);
        let masked: Vec<Path> = around.autoscaler.iter().map(|_| &["spec", "replicas"][..]).collect();
        Self {
            content: wanted.into(),
            object: object.into(),
            kept: Vec::new(),
            pinned,
            pending_owners: Vec::new(),
            beside: beside.cloned(),
            only_images: true,
            masked,
        }
    }

    /// Captured `metadata.managedFields`, without times and the status subresource; empty where nothing is known.
    pub(super) fn managed_fields(&self) -> &[Value] {
        self.beside.as_ref().map_or(&[], |beside| &beside.managed_fields)
    }

    /// Fields where live wins.
    pub(super) fn masked_paths(&self) -> impl Iterator<Item = Path> + use<> {
        self.masked.clone().into_iter()
    }

    /// `content` without the fields in which live wins, whatever their value: two such forms are equal where a rollback
    /// has nothing to write.
    pub fn masked(&self, content: &Value) -> Value {
        let mut content = content.clone();
        for path in &self.masked {
            json::put(&mut content, path, None);
        }
        content
    }
}

/// What [`desired`] needs besides the object.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// What is known of an owner.
    pub owner: &'a dyn Fn(&ObjectId) -> Owner,
    /// The live autoscaler that targets the object.
    pub autoscaler: Option<&'a ObjectId>,
    /// Images to pin.
    pub pins: &'a [Pin],
}

/// What `id` should become, given its captured canonical `content`, what was kept beside it, the object as it is now, and the
/// around.
///
/// Live wins for the fields of `rollback.md` §1: identity, finalizers, owner UIDs, `status`, allocated addresses and ports, a
/// claim's volume, class and size, `replicas` under an autoscaler, and the time of the last restart.
pub fn desired(
    id: &ObjectId,
    content: &Content,
    beside: Option<&Arc<Beside>>,
    live: Option<&Live<'_>>,
    around: Context<'_>,
) -> Desired {
    let wanted = Wanted::of(id, content.clone(), live, around);
    let mut object = match beside.filter(|beside| !beside.order.is_empty()) {
        // Lists go back in the order they were written in, which the canonical form does not have.
        Some(beside) => {
            let mut ordered = content.clone();
            apply_order(ordered.edit(), &beside.order);
            Wanted::of(id, ordered, live, around).content
        }
        None => wanted.content.clone(),
    };
    if !wanted.owners.uids.is_empty() {
        wanted.owners.write_uids(object.edit());
    }
    if let Some(live) = live {
        add_what_only_live_knows(id, object.edit(), live.raw);
    }
    Desired {
        content: wanted.content,
        object,
        kept: wanted.kept,
        pinned: wanted.pinned,
        pending_owners: wanted.owners.pending,
        beside: beside.cloned(),
        only_images: false,
        masked: wanted.masked,
    }
}

struct Wanted {
    content: Content,
    kept: Vec<KeptField>,
    masked: Vec<Path>,
    pinned: Vec<String>,
    owners: Owners,
}

/// Owners by identity: the UIDs of those that live, and those that are still to come.
#[derive(Default)]
struct Owners {
    uids: Vec<(ObjectId, String)>,
    pending: Vec<ObjectId>,
}

impl Owners {
    fn write_uids(&self, object: &mut Value) {
        let references = object
            .pointer_mut("/metadata/ownerReferences")
            .and_then(Value::as_array_mut);
        for reference in references.into_iter().flatten() {
            let owner = owner_id(reference);
            if let Some((_, uid)) = self.uids.iter().find(|(id, _)| Some(id) == owner.as_ref()) {
                json::put(reference, &["uid"], Some(Value::String(uid.clone())));
            }
        }
    }
}

/// Which object an owner reference names.
pub(super) fn owner_id(reference: &Value) -> Option<ObjectId> {
    Some(ObjectId::new(
        json::group_of(json::text(reference, &["apiVersion"])?),
        json::text(reference, &["kind"])?,
        json::text(reference, &["name"])?,
    ))
}

impl Wanted {
    fn of(id: &ObjectId, content: Content, live: Option<&Live<'_>>, around: Context<'_>) -> Self {
        let mut wanted = Self {
            content,
            kept: Vec::new(),
            masked: Vec::new(),
            pinned: Vec::new(),
            owners: Owners::default(),
        };
        for field in ["uid", "resourceVersion", "finalizers", "managedFields"] {
            if json::at(&wanted.content, &["metadata", field]).is_some() {
                json::put(wanted.content.edit(), &["metadata", field], None);
            }
        }
        wanted.resolve_owners(live, around.owner);
        if let Some(live) = live {
            match (id.group.as_str(), id.kind.as_str()) {
                ("", "Service") => wanted.service(live),
                ("", "PersistentVolumeClaim") => wanted.claim(live),
                _ => {}
            }
            if let Some(autoscaler) = around.autoscaler {
                wanted.masked.push(&["spec", "replicas"]);
                wanted.keep(live, &["spec", "replicas"], KeptReason::Autoscaled(autoscaler.clone()));
            }
        }
        if !around.pins.is_empty() {
            wanted.pinned = workload::pin(id, wanted.content.edit(), around.pins);
        }
        wanted
    }

    fn list_kept(&mut self, path: String, reason: KeptReason) {
        self.kept.push(KeptField { path, reason });
    }

    /// Takes the live value of `path` where it differs, and lists it.
    fn keep(&mut self, live: &Live<'_>, path: Path, reason: KeptReason) {
        let now = json::at(live.content, path);
        if json::at(&self.content, path) == now {
            return;
        }
        json::put(self.content.edit(), path, now.cloned());
        self.list_kept(path.join("."), reason);
        if !self.masked.contains(&path) {
            self.masked.push(path);
        }
    }

    /// Resolves owner references; those without a live owner go.
    fn resolve_owners(&mut self, live: Option<&Live<'_>>, lookup: &dyn Fn(&ObjectId) -> Owner) {
        let references = self.content.pointer("/metadata/ownerReferences").cloned();
        let Some(Value::Array(references)) = references else {
            return;
        };
        let mut stay = Vec::new();
        for mut reference in references {
            json::put(&mut reference, &["uid"], None);
            let Some(id) = owner_id(&reference) else {
                continue;
            };
            let owner = match lookup(&id) {
                Owner::Unknown => live
                    .and_then(|live| live_owner_uid(live.raw, &id))
                    .map_or(Owner::Unknown, Owner::Live),
                known => known,
            };
            let path = format!("metadata.ownerReferences[{id}]");
            match owner {
                Owner::Live(uid) => {
                    self.owners.uids.push((id, uid));
                    stay.push(reference);
                }
                Owner::Planned => {
                    self.owners.pending.push(id);
                    stay.push(reference);
                }
                Owner::Gone => self.list_kept(path, KeptReason::OwnerGone),
                Owner::Unknown => self.list_kept(path, KeptReason::OwnerUnknown),
                Owner::Circle => self.list_kept(path, KeptReason::OwnerCircle),
            }
        }
        let stay = (!stay.is_empty()).then_some(Value::Array(stay));
        json::put(self.content.edit(), &["metadata", "ownerReferences"], stay);
    }

    fn service(&mut self, live: &Live<'_>) {
        let external = |service: &Value| json::text(service, &["spec", "type"]) == Some("ExternalName");
        if external(&self.content) || external(live.content) {
            return;
        }
        // A change from or to headless is no kept address but another Service: it shows as immutable.
        if is_headless(&self.content) == is_headless(live.content) {
            self.keep(live, &["spec", "clusterIP"], KeptReason::ServerAllocated);
            self.keep(live, &["spec", "clusterIPs"], KeptReason::ServerAllocated);
        }
        if needs_health_port(&self.content) && needs_health_port(live.raw) {
            self.keep(live, &["spec", "healthCheckNodePort"], KeptReason::ServerAllocated);
        }
    }

    fn claim(&mut self, live: &Live<'_>) {
        const STORAGE: Path = &["spec", "resources", "requests", "storage"];
        self.keep(live, &["spec", "storageClassName"], KeptReason::ClaimIsBound);
        self.keep(live, &["spec", "volumeName"], KeptReason::ClaimIsBound);
        let captured = json::text(&self.content, STORAGE).unwrap_or_default();
        let now = json::text(live.content, STORAGE).unwrap_or_default();
        // What does not compare is not known to grow.
        if !matches!(
            quantity::compare(captured, now),
            Some(Ordering::Equal | Ordering::Greater)
        ) {
            self.keep(live, STORAGE, KeptReason::ClaimNeverShrinks);
        }
    }
}

fn live_owner_uid(raw: &Value, owner: &ObjectId) -> Option<String> {
    json::list(raw, &["metadata", "ownerReferences"])
        .find(|reference| owner_id(reference).as_ref() == Some(owner))
        .and_then(|reference| json::text(reference, &["uid"]))
        .map(str::to_owned)
}

/// Whether a Service has no address of its own.
pub(super) fn is_headless(service: &Value) -> bool {
    json::text(service, &["spec", "clusterIP"]) == Some("None")
}

fn needs_health_port(service: &Value) -> bool {
    json::text(service, &["spec", "type"]) == Some("LoadBalancer")
        && json::text(service, &["spec", "externalTrafficPolicy"]) == Some("Local")
}

pub(super) fn add_what_only_live_knows(id: &ObjectId, object: &mut Value, raw: &Value) {
    let copy = |object: &mut Value, path: &[&str]| {
        if let Some(value) = json::at(raw, path) {
            json::put(object, path, Some(value.clone()));
        }
    };
    for field in [
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "finalizers",
    ] {
        copy(object, &["metadata", field]);
    }
    // Kinds without a status subresource would lose it in a PUT.
    copy(object, &["status"]);
    match (id.group.as_str(), id.kind.as_str()) {
        ("", "Service") => add_allocations(object, raw),
        ("", "PersistentVolumeClaim") => {
            for field in ["volumeName", "dataSource", "dataSourceRef"] {
                copy(object, &["spec", field]);
            }
            copy_entries(object, raw, &["metadata", "annotations"], |name| {
                name.starts_with("pv.kubernetes.io/")
                    || name.starts_with("volume.kubernetes.io/")
                    || name == "volume.beta.kubernetes.io/storage-provisioner"
            });
        }
        ("", "Namespace") => copy(object, &["spec", "finalizers"]),
        ("", "Pod") => {
            // Of a running Pod only the images can change; the rest was completed by admission and the scheduler.
            let wanted = object.clone();
            copy(object, &["spec"]);
            workload::set_images(id, object, |container| {
                workload::image(id, &wanted, container).map(str::to_owned)
            });
        }
        ("apps", "Deployment" | "ReplicaSet") => copy_entries(object, raw, &["metadata", "annotations"], |name| {
            name.starts_with("deployment.kubernetes.io/")
        }),
        ("apps", "DaemonSet") => copy_entries(object, raw, &["metadata", "annotations"], |name| {
            name == "deprecated.daemonset.template.generation"
        }),
        ("batch", "Job") if !json::is_true(raw, &["spec", "manualSelector"]) => {
            copy(object, &["spec", "selector"]);
            for path in [
                &["metadata", "labels"][..],
                &["spec", "template", "metadata", "labels"][..],
            ] {
                copy_entries(object, raw, path, |name| JOB_LABELS.contains(&name));
            }
        }
        _ => {}
    }
    if let Some(path) = workload::template_path(id).filter(|path| !path.is_empty()) {
        let annotations: Vec<&str> = path.iter().copied().chain(["metadata", "annotations"]).collect();
        copy_entries(object, raw, &annotations, |name| name == RESTARTED_AT);
    }
}

/// Copies the entries of the map at `path` whose name `wins` says is live's.
fn copy_entries(object: &mut Value, raw: &Value, path: &[&str], wins: impl Fn(&str) -> bool) {
    let Some(entries) = json::at(raw, path).and_then(Value::as_object) else {
        return;
    };
    let live: Map<String, Value> = entries
        .iter()
        .filter(|(name, _)| wins(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !live.is_empty()
        && let Some(map) = json::map_mut(object, path)
    {
        map.extend(live);
    }
}

/// Addresses and ports that the server allocated and the capture does not hold.
fn add_allocations(object: &mut Value, raw: &Value) {
    let kind_of = |service: &Value| json::text(service, &["spec", "type"]).unwrap_or("ClusterIP").to_owned();
    let (wanted, now) = (kind_of(object), kind_of(raw));
    if wanted == "ExternalName" || now == "ExternalName" {
        return;
    }
    let mut fields: Vec<&str> = Vec::new();
    if is_headless(object) == is_headless(raw) {
        fields.extend(["clusterIP", "clusterIPs"]);
    }
    if needs_health_port(object) && needs_health_port(raw) {
        fields.push("healthCheckNodePort");
    }
    for field in fields {
        if let Some(value) = json::at(raw, &["spec", field])
            && json::at(object, &["spec", field]).is_none()
        {
            json::put(object, &["spec", field], Some(value.clone()));
        }
    }
    let allocates = json::at(object, &["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false));
    if wanted != "NodePort" && !(wanted == "LoadBalancer" && allocates) {
        return;
    }
    let ports = object.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    for port in ports
        .into_iter()
        .flatten()
        .filter(|port| port.get("nodePort").is_none())
    {
        let given = json::list(raw, &["spec", "ports"])
            .find(|live| same_port(live, port))
            .and_then(|live| live.get("nodePort"));
        if let Some(number) = given {
            json::put(port, &["nodePort"], Some(number.clone()));
        }
    }
}

fn same_port(a: &Value, b: &Value) -> bool {
    let protocol = |port| json::text(port, &["protocol"]).unwrap_or("TCP");
    a.get("port") == b.get("port") && protocol(a) == protocol(b)
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
