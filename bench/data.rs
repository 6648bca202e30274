//! The data sets: made-up objects as teams really write them, the same ones at every run.

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use serde_json::{Value, json};

use super::objects::{self, Place};
use super::random::Random;
use super::raw::Resource;
use super::words;

/// Part of the name under which written data sets are kept; raise it when an object changes.
pub const VERSION: u32 = 3;

/// How many objects of each kind a namespace has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSet {
    /// `s`, `l` and so on; part of the names of the namespaces.
    pub name: String,
    /// Namespaces.
    pub namespaces: usize,
    /// Objects a namespace, by kind.
    pub mix: Vec<(Kind, usize)>,
    /// How much text `ConfigMaps` hold: 1 for a mean of 1 KB, 6 for 6 KB.
    pub bulk: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// Who owns the fields of its objects.
    pub owners: Owners,
}

/// Who owns the fields of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// One, but for some that people changed since.
    Usual,
    /// One, whoever writes its status.
    One,
}

/// The kinds of the data sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ConfigMap,
    Secret,
    Deployment,
    StatefulSet,
    CronJob,
    Service,
    ServiceAccount,
    Ingress,
    NetworkPolicy,
    HorizontalPodAutoscaler,
    PodDisruptionBudget,
    Role,
    RoleBinding,
    PersistentVolumeClaim,
}

impl Kind {
    /// Group and version, as in `apiVersion`.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::ConfigMap | Self::Secret | Self::Service | Self::ServiceAccount | Self::PersistentVolumeClaim => "v1",
            Self::Deployment | Self::StatefulSet => "apps/v1",
            Self::CronJob => "batch/v1",
            Self::Ingress | Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::HorizontalPodAutoscaler => "autoscaling/v2",
            Self::PodDisruptionBudget => "policy/v1",
            Self::Role | Self::RoleBinding => "rbac.authorization.k8s.io/v1",
        }
    }

    /// The resource's name in paths.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::Deployment => "deployments",
            Self::StatefulSet => "statefulsets",
            Self::CronJob => "cronjobs",
            Self::Service => "services",
            Self::ServiceAccount => "serviceaccounts",
            Self::Ingress => "ingresses",
            Self::NetworkPolicy => "networkpolicies",
            Self::HorizontalPodAutoscaler => "horizontalpodautoscalers",
            Self::PodDisruptionBudget => "poddisruptionbudgets",
            Self::Role => "roles",
            Self::RoleBinding => "rolebindings",
            Self::PersistentVolumeClaim => "persistentvolumeclaims",
        }
    }

    /// The kind as the API serves it.
    pub fn resource(self) -> Resource {
        let (group, version) = self.api_version().split_once('/').unwrap_or(("", self.api_version()));
        Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: self.plural().to_owned(),
        }
    }

    /// The path of the collection in `namespace`.
    pub fn collection(self, namespace: &str) -> String {
        self.resource().path(Some(namespace))
    }
}

/// One object to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The whole of it.
    pub body: Value,
    /// Who writes it first.
    pub manager: &'static str,
    /// Whether the first writer applies it (server-side), as GitOps tools do.
    pub applied: bool,
    /// What somebody else writes afterwards.
    pub touch: Option<Touch>,
}

/// A merge patch by another field manager.
#[derive(Clone, Debug, PartialEq)]
pub struct Touch {
    /// Who.
    pub manager: &'static str,
    /// `/status`, or empty.
    pub subresource: &'static str,
    /// The merge patch.
    pub patch: Value,
}

impl DataSet {
    /// **S**, the daily size: one namespace with `size` ConfigMaps and Secrets (3 of 5 are ConfigMaps) of 6 KB and 200
    /// Deployments.
    pub fn s(size: usize) -> Self {
        let config_maps = size * 3 / 5;
        Self {
            name: format!("s{size}"),
            namespaces: 1,
            mix: vec![
                (Kind::ConfigMap, config_maps),
                (Kind::Secret, size - config_maps),
                (Kind::Deployment, 200),
            ],
            bulk: 8,
            seed: 1,
            owners: Owners::Usual,
        }
    }

    /// **L**, or a part of it: `namespaces` (2,000 are the whole) of 50 mixed objects of 2 KB.
    pub fn l(namespaces: usize) -> Self {
        Self {
            name: format!("l{namespaces}"),
            namespaces,
            mix: vec![
                (Kind::ConfigMap, 15),
                (Kind::Secret, 8),
                (Kind::Deployment, 7),
                (Kind::StatefulSet, 1),
                (Kind::CronJob, 2),
                (Kind::Service, 5),
                (Kind::ServiceAccount, 3),
                (Kind::Ingress, 1),
                (Kind::NetworkPolicy, 2),
                (Kind::HorizontalPodAutoscaler, 2),
                (Kind::PodDisruptionBudget, 1),
                (Kind::Role, 1),
                (Kind::RoleBinding, 1),
                (Kind::PersistentVolumeClaim, 1),
            ],
            bulk: 1,
            seed: 2,
            owners: Owners::Usual,
        }
    }

    /// **V**, or a part of it: one namespace with `size` Secrets (31,000 are the whole), each with one owner.
    pub fn v(size: usize) -> Self {
        Self {
            name: format!("v{size}"),
            namespaces: 1,
            mix: vec![(Kind::Secret, size)],
            bulk: 1,
            seed: 3,
            owners: Owners::One,
        }
    }

    /// Objects of one namespace.
    pub fn per_namespace(&self) -> usize {
        self.mix.iter().map(|(_, count)| count).sum()
    }

    /// Objects in all.
    pub fn len(&self) -> usize {
        self.namespaces * self.per_namespace()
    }

    /// The name of the namespace at `index`.
    pub fn namespace(&self, index: usize) -> String {
        let mut random = Random::new(self.seed, index as u64);
        format!("{}-{}-{index:04}", self.name, random.pick(words::TEAMS))
    }

    /// The objects of the namespace at `index`, in the order of kinds.
    pub fn objects(&self, index: usize) -> Vec<Object> {
        let namespace = self.namespace(index);
        let mut random = Random::new(self.seed.wrapping_add(1 << 32), index as u64);
        let place = Place::new(&namespace, self.per_namespace(), &mut random);
        let numbered = self
            .mix
            .iter()
            .flat_map(|&(kind, count)| (0..count).map(move |number| (kind, number)));
        let apps = place.apps();
        numbered
            .map(|(kind, number)| {
                let app = random.below(apps);
                let object = objects::build(kind, &place, (app, number), self.bulk, &mut random);
                self.owned(object)
            })
            .collect()
    }

    fn owned(&self, object: Object) -> Object {
        let touch = match (self.owners, object.touch) {
            (Owners::One, Some(touch)) if touch.subresource.is_empty() => None,
            (_, touch) => touch,
        };
        let mut object = Object { touch, ..object };
        // Who applies `stringData` owns that and not `data`, which it becomes.
        if self.owners == Owners::One
            && let Some(Value::Object(clear)) = object.body.as_object_mut().and_then(|body| body.remove("stringData"))
        {
            let encoded = clear.into_iter().map(|(key, value)| {
                let value = value.as_str().map(|text| BASE64.encode(text));
                (key, Value::from(value))
            });
            object.body["data"] = Value::Object(encoded.collect());
        }
        object
    }

    /// What makes a person a second owner of an object.
    pub fn annotation() -> Touch {
        Touch {
            manager: "kubectl-annotate",
            subresource: "",
            patch: json!({"metadata": {"annotations": {"example.com/owner": "someone@example.com"}}}),
        }
    }

    /// A change of one object by a person, different at each `round`: what 1 % churn is made of.
    pub fn churn(object: &Object, round: usize) -> Touch {
        let patch = match object.kind {
            Kind::ConfigMap => json!({"data": {"changed-by-hand": format!("{} in round {round}", object.name)}}),
            Kind::Secret => json!({"stringData": {"changed-by-hand": format!("{} in round {round}", object.name)}}),
            _ => json!({"metadata": {"annotations": {"example.com/reviewed": format!("round {round}")}}}),
        };
        Touch {
            manager: "kubectl-edit",
            subresource: "",
            patch,
        }
    }
}
