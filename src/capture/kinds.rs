//! The kinds that a pass may read, kept between passes.

use std::sync::Arc;

use kube::Client;

use crate::{
    api::snapshot::Component,
    cluster::{self, crds::CrdCatalog, discovery, list::Collection},
    domain::{
        component,
        object::{KindInfo, ListShape},
        snapshot::{KindRule, Verdict, resource_verdict},
    },
};

/// A served kind that may belong to a snapshot.
#[derive(Clone, Debug)]
pub struct WantedKind {
    /// Group, version and kind.
    pub info: KindInfo,
    /// Plural resource name.
    pub plural: String,
    /// Layer that its objects belong to.
    pub component: Component,
    /// What the domain says of the kind.
    pub rule: KindRule,
    /// Which of its lists are keyed.
    pub shape: Arc<ListShape>,
}

impl WantedKind {
    /// Its objects in one namespace, or in all.
    pub fn collection(&self, namespace: Option<&str>) -> Collection {
        Collection {
            group: self.info.group.clone(),
            version: self.info.version.clone(),
            plural: self.plural.clone(),
            namespace: namespace.map(ToOwned::to_owned),
        }
    }

    /// `ConfigMap`, `Deployment.apps`.
    pub fn display(&self) -> String {
        if self.info.group.is_empty() {
            self.info.kind.clone()
        } else {
            format!("{}.{}", self.info.kind, self.info.group)
        }
    }

    /// 0: names others in a pod template; 1: service accounts, which name Secrets; 2: is only named.
    pub fn reference_rank(&self) -> u8 {
        match (self.info.group.as_str(), self.info.kind.as_str()) {
            ("", "ServiceAccount") => 1,
            ("", "ConfigMap" | "Secret" | "PersistentVolumeClaim") => 2,
            _ => 0,
        }
    }
}

/// What the cluster serves.
#[derive(Default)]
pub struct Catalog {
    crds: CrdCatalog,
    kinds: Vec<Arc<WantedKind>>,
    stale: Vec<String>,
}

impl Catalog {
    /// Reads what changed: two discovery requests, one metadata list of CRDs, and each CRD that changed.
    pub async fn refresh(&mut self, client: &Client) -> cluster::Result<()> {
        self.crds.refresh(client).await?;
        let served = discovery::served(client, &self.crds.storage_versions()).await?;
        self.stale = served.stale;
        self.kinds = served
            .kinds
            .into_iter()
            .filter_map(|kind| {
                let rule = match resource_verdict(&kind.group, &kind.kind, &kind.plural, kind.namespaced, &kind.verbs) {
                    Verdict::Capture(rule) => rule,
                    Verdict::Skip(_) => return None,
                };
                let shape = self.crds.shape(&kind.group, &kind.plural).unwrap_or_else(|| {
                    Arc::new(ListShape::builtin(&kind.group, &kind.kind).unwrap_or_else(ListShape::atomic))
                });
                Some(Arc::new(WantedKind {
                    component: component::of(&kind.group, &kind.kind),
                    info: KindInfo::new(kind.group, kind.version, kind.kind),
                    plural: kind.plural,
                    rule,
                    shape,
                }))
            })
            .collect();
        Ok(())
    }

    /// Kinds that may belong to a snapshot, by group and plural.
    pub fn kinds(&self) -> Vec<Arc<WantedKind>> {
        self.kinds.clone()
    }

    /// Groups that did not answer, as `group/version`.
    pub fn stale(&self) -> Vec<String> {
        self.stale.clone()
    }
}
