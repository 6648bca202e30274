//! What the server serves: one entry a resource, in the version to read it in.

use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, core::discovery::v2::APIGroupDiscoveryList};

use super::{call, error::Result};

/// A resource as the server serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedKind {
    /// API group; empty for core.
    pub group: String,
    /// The version to read it in: storage version of a custom resource, else the group's preferred one that has it.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Plural resource name as in URLs.
    pub plural: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs of the resource itself.
    pub verbs: Vec<String>,
}

/// Everything that is served.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// One entry a resource, ordered by group and plural.
    pub kinds: Vec<ServedKind>,
    /// Groups whose server did not answer (aggregated APIs), as `group/version`.
    pub stale: Vec<String>,
}

/// What the server says of itself.
#[derive(Debug)]
pub struct Discovered([APIGroupDiscoveryList; 2]);

/// Aggregated discovery: two requests whatever the number of groups (Kubernetes 1.30 and later).
pub async fn discover(client: &Client) -> Result<Discovered> {
    let (core, groups) = tokio::try_join!(
        call::repeat("discover the core API", call::DEADLINE, || client
            .list_core_api_versions_aggregated()),
        call::repeat("discover the API groups", call::DEADLINE, || client
            .list_api_groups_aggregated()),
    )?;
    Ok(Discovered([core, groups]))
}

impl Discovered {
    /// Each kind once: a custom resource in its storage version (of `<plural>.<group>`), every other in the preferred one.
    #[allow(clippy::implicit_hasher, reason = "one map, made by the catalog of custom resources")]
    pub fn served(&self, storage_versions: &HashMap<String, String>) -> Served {
        let mut served = Served::default();
        for list in &self.0 {
            collect(list, storage_versions, &mut served);
        }
        served
            .kinds
            .sort_by(|a, b| (&a.group, &a.plural).cmp(&(&b.group, &b.plural)));
        served
    }
}

fn collect(list: &APIGroupDiscoveryList, storage_versions: &HashMap<String, String>, out: &mut Served) {
    for group in &list.items {
        let name = group
            .metadata
            .as_ref()
            .and_then(|m: &ObjectMeta| m.name.as_deref())
            .unwrap_or_default();
        let mut found: HashMap<&str, usize> = HashMap::new();
        for version in &group.versions {
            let Some(version_name) = version.version.as_deref() else {
                continue;
            };
            if version.freshness.as_deref() == Some("Stale") {
                out.stale.push(format!("{name}/{version_name}"));
            }
            for resource in &version.resources {
                let (Some(plural), Some(kind)) = (resource.resource.as_deref(), resource.response_kind.as_ref()) else {
                    continue;
                };
                let entry = ServedKind {
                    group: name.to_owned(),
                    version: version_name.to_owned(),
                    kind: kind.kind.clone().unwrap_or_default(),
                    plural: plural.to_owned(),
                    namespaced: resource.scope.as_deref() == Some("Namespaced"),
                    verbs: resource.verbs.clone(),
                };
                // Versions come in order of preference; only the storage version of a custom resource is better than the first.
                match found.get(plural) {
                    None => {
                        found.insert(plural, out.kinds.len());
                        out.kinds.push(entry);
                    }
                    Some(&at) => {
                        let is_storage = storage_versions
                            .get(&format!("{plural}.{name}"))
                            .is_some_and(|v| v == version_name);
                        if is_storage {
                            out.kinds[at] = entry;
                        }
                    }
                }
            }
        }
    }
}
