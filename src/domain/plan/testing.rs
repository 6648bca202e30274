//! A namespace that can be captured, changed, planned for and rolled back: what the tests of this room share.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    Action, Captured, Content, Facts, Inputs, Live, Options, Plan, PlanError, build,
    desired::{RESTARTED_AT, owner_id},
    json,
};
use crate::{
    api::{rollback_request::Prune, snapshot::Component},
    domain::{
        component,
        object::{Beside, Digest, KindInfo, ListShape, ObjectId, SecretValues, normalise},
        plan::Drafted,
    },
};

/// When the tests' snapshot was begun.
pub const STARTED: &str = "2026-01-02T00:00:00Z";
/// A creation time before it, and one after it.
pub const BEFORE: &str = "2026-01-01T00:00:00Z";
pub const AFTER: &str = "2026-01-03T00:00:00Z";

pub fn id(group: &str, kind: &str, name: &str) -> ObjectId {
    ObjectId::new(group, kind, name)
}

/// The objects of a namespace as a server holds them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    pub objects: BTreeMap<ObjectId, Value>,
    uids: u32,
}

struct Read {
    content: Content,
    beside: Option<Arc<Beside>>,
    digest: Digest,
}

fn read(id: &ObjectId, raw: &Value) -> Read {
    let shape = ListShape::builtin(&id.group, &id.kind).unwrap_or_else(ListShape::atomic);
    let kind = KindInfo::new(id.group.as_str(), "v1", id.kind.as_str());
    let normal = normalise(raw.clone(), &kind, &shape, SecretValues::Keep).unwrap();
    Read {
        content: serde_json::from_slice::<Value>(&normal.content).unwrap().into(),
        beside: normal
            .beside
            .as_ref()
            .map(|bytes| Arc::new(serde_json::from_slice(bytes).unwrap())),
        digest: normal.digest(),
    }
}

impl World {
    /// Creates an object from what a user would write.
    pub fn put(&mut self, id: &ObjectId, body: Value) -> &mut Value {
        self.uids += 1;
        let mut raw = body;
        json::put(&mut raw, &["apiVersion"], Some(json!(api_version(id))));
        json::put(&mut raw, &["kind"], Some(json!(id.kind)));
        json::put(&mut raw, &["metadata", "name"], Some(json!(id.name)));
        json::put(&mut raw, &["metadata", "namespace"], Some(json!("shop")));
        json::put(
            &mut raw,
            &["metadata", "uid"],
            Some(json!(format!("uid-{}", self.uids))),
        );
        json::put(&mut raw, &["metadata", "resourceVersion"], Some(json!("1")));
        json::put(&mut raw, &["metadata", "creationTimestamp"], Some(json!(AFTER)));
        // Somebody owns something, so that what nobody owns is known to be the server's.
        json::put(
            &mut raw,
            &["metadata", "managedFields"],
            Some(json!([{"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:metadata": {}}}])),
        );
        if id.kind == "Service" && json::text(&raw, &["spec", "clusterIP"]) != Some("None") {
            let address = format!("10.0.0.{}", self.uids);
            json::put(&mut raw, &["spec", "clusterIPs"], Some(json!([address])));
            json::put(&mut raw, &["spec", "clusterIP"], Some(json!(address)));
        }
        self.objects.insert(id.clone(), raw);
        self.objects.get_mut(id).unwrap()
    }

    pub fn get(&self, id: &ObjectId) -> &Value {
        &self.objects[id]
    }

    pub fn set(&mut self, id: &ObjectId, path: &[&str], value: Value) {
        json::put(self.objects.get_mut(id).unwrap(), path, Some(value));
    }

    /// Makes every object older than the snapshot.
    pub fn aged(mut self) -> Self {
        for raw in self.objects.values_mut() {
            json::put(raw, &["metadata", "creationTimestamp"], Some(json!(BEFORE)));
        }
        self
    }

    pub fn digests(&self) -> BTreeMap<ObjectId, Digest> {
        self.objects
            .iter()
            .map(|(id, raw)| (id.clone(), read(id, raw).digest))
            .collect()
    }

    /// What a rollback from here to `target` would do.
    pub fn plan(&self, target: &Self, options: &Options) -> Result<Plan<Drafted>, PlanError> {
        self.plan_with(target, options, &facts(target))
    }

    pub fn plan_with(&self, target: &Self, options: &Options, facts: &Facts) -> Result<Plan<Drafted>, PlanError> {
        let then: Vec<_> = target.objects.iter().map(|(id, raw)| (id, read(id, raw))).collect();
        let now: Vec<_> = self.objects.iter().map(|(id, raw)| (id, raw, read(id, raw))).collect();
        let captured: Vec<Captured<'_>> = then
            .iter()
            .map(|(id, read)| Captured {
                id: (*id).clone(),
                component: component::of(&id.group, &id.kind),
                digest: read.digest,
                content: Some(&read.content),
                beside: read.beside.as_ref(),
                fingerprints_only: false,
                finished: Some(false),
            })
            .collect();
        let live: Vec<Live<'_>> = now
            .iter()
            .map(|(id, raw, read)| Live {
                id: (*id).clone(),
                component: component::of(&id.group, &id.kind),
                uid: json::text(raw, &["metadata", "uid"]).unwrap().to_owned(),
                resource_version: json::text(raw, &["metadata", "resourceVersion"]).unwrap().to_owned(),
                digest: read.digest,
                content: &read.content,
                raw,
                in_capture: true,
            })
            .collect();
        build(&Inputs {
            captured: &captured,
            live: &live,
            options,
            facts,
        })
    }

    /// Does what a plan says, as an executor would.
    pub fn apply<State>(&mut self, plan: &Plan<State>) {
        for item in plan.writes() {
            match &item.action {
                Action::Create | Action::Update | Action::Recreate(_) => {
                    let mut object = item.desired.as_ref().unwrap().object.clone().into_value();
                    let references = object
                        .pointer_mut("/metadata/ownerReferences")
                        .and_then(Value::as_array_mut);
                    for reference in references
                        .into_iter()
                        .flatten()
                        .filter(|reference| reference.get("uid").is_none())
                    {
                        let owner = owner_id(reference).unwrap();
                        let uid = self.objects[&owner]["metadata"]["uid"].clone();
                        reference.as_object_mut().unwrap().insert("uid".to_owned(), uid);
                    }
                    if item.action == Action::Update {
                        let fields = self.objects[&item.id]["metadata"]["managedFields"].clone();
                        json::put(&mut object, &["metadata", "managedFields"], Some(fields));
                        self.objects.insert(item.id.clone(), object);
                    } else {
                        self.put(&item.id, object);
                    }
                }
                Action::Delete => drop(self.objects.remove(&item.id)),
                Action::Restart(_) => self.set(
                    &item.id,
                    &["spec", "template", "metadata", "annotations", RESTARTED_AT],
                    json!("now"),
                ),
                Action::Keep(_) | Action::Skip(_) => unreachable!("it writes nothing"),
            }
        }
    }
}

pub fn facts(target: &World) -> Facts {
    Facts {
        snapshot_started: Some(STARTED.parse::<Timestamp>().unwrap()),
        captured_kinds: KINDS
            .iter()
            .map(|(group, kind)| ((*group).to_owned(), (*kind).to_owned()))
            .collect(),
        owners: target
            .objects
            .keys()
            .map(|id| id.kind.as_str())
            .collect::<BTreeSet<_>>()
            .iter()
            .map(|kind| (id("example.org", "Gone", kind), super::Owner::Gone))
            .collect(),
        ..Facts::default()
    }
}

pub const KINDS: &[(&str, &str)] = &[
    ("", "ConfigMap"),
    ("", "Secret"),
    ("", "Service"),
    ("", "PersistentVolumeClaim"),
    ("apps", "Deployment"),
    ("apps", "StatefulSet"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("batch", "Job"),
    ("rbac.authorization.k8s.io", "Role"),
    ("example.org", "Widget"),
];

fn api_version(id: &ObjectId) -> String {
    KindInfo::new(id.group.as_str(), "v1", id.kind.as_str()).api_version()
}

/// Full, with prune and every component named.
pub fn everything() -> Options {
    Options {
        prune: Prune::Created,
        components: BTreeSet::from([Component::Policy, Component::Infrastructure]),
        ..Options::default()
    }
}

pub fn config_map(data: &str) -> Value {
    json!({"data": {"mode": data}})
}

/// A Deployment that reads the ConfigMap `cfg` from its environment.
pub fn deployment(image: &str, replicas: u32) -> Value {
    json!({"spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "image": image, "envFrom": [{"configMapRef": {"name": "cfg"}}]}]}}}})
}

pub fn autoscaler(target: &str) -> Value {
    json!({"spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}, "maxReplicas": 9}})
}

pub fn labelled(mut body: Value, label: &str) -> Value {
    let mut labels = Map::new();
    labels.insert("tier".to_owned(), json!(label));
    json::put(&mut body, &["metadata", "labels"], Some(Value::Object(labels)));
    body
}
