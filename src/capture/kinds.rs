//! The kinds that a pass may read, kept between passes.

use std::sync::Arc;

use kube::Client;

use crate::{
    api::snapshot::Component,
    cluster::{self, call, crds::CrdCatalog, discovery, list::Collection},
    domain::{
        component,
        object::{KindInfo, ListShape},
        snapshot::{KindRule, Selection, Verdict, resource_verdict},
    },
};

/// Raise it whenever the same stored object gives other content than before: normalisation, the lists of a built-in kind, which
/// Secrets are never captured. Contents of earlier snapshots are not reused across it.
const REVISION: u32 = 1;

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
    /// What its content depends on besides the stored object: this program, the server (which fills in defaults) and the kind's
    /// definition. `None`: not known, so that every object is read each time.
    pub rules: Option<String>,
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

    /// Whether its objects say more to `selection` than their content and metadata: evidence of images, references, or whether a Job
    /// has finished.
    pub fn gives_facts(&self, selection: &Selection) -> bool {
        // A StatefulSet alone names its revision in its status.
        let is_stateful_set = (self.info.group.as_str(), self.info.kind.as_str()) == ("apps", "StatefulSet");
        let evidence = self.rule.image_evidence || is_stateful_set;
        evidence && selection.wants_images() || self.names_others(selection) || self.is_job()
    }

    /// Whether its objects have containers.
    pub fn runs_images(&self) -> bool {
        component::runs_images(&self.info.group, &self.info.kind)
    }

    /// Whether `selection` takes in what its objects name.
    pub fn names_others(&self, selection: &Selection) -> bool {
        let refers = self.reference_rank() == 1
            || self.reference_rank() == 0 && matches!(self.info.group.as_str(), "" | "apps" | "batch");
        refers && selection.follows_through_filter()
    }

    /// Whether its objects are Jobs, which run once.
    pub fn is_job(&self) -> bool {
        self.info.group == "batch" && self.info.kind == "Job"
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
    /// Reads what changed: two discovery requests, the server's version, one metadata list of CRDs, and each CRD that changed.
    pub async fn refresh(&mut self, client: &Client) -> cluster::Result<()> {
        let version = call::repeat("read the server's version", call::DEADLINE, || {
            client.apiserver_version()
        });
        let (discovered, version, crds) = futures::join!(
            Box::pin(discovery::discover(client)),
            version,
            Box::pin(self.crds.refresh(client))
        );
        crds?;
        let served = discovered?.served(&self.crds.storage_versions());
        // Without it nothing is reused, which is only slower.
        let api_server = version
            .inspect_err(|error| tracing::debug!(%error, "every object is read in full"))
            .ok();
        self.stale = served.stale;
        self.kinds = served
            .kinds
            .into_iter()
            .filter_map(|kind| {
                let rule = match resource_verdict(&kind.group, &kind.kind, &kind.plural, kind.namespaced, &kind.verbs) {
                    Verdict::Capture(rule) => rule,
                    Verdict::Skip(_) => return None,
                };
                let builtin = ListShape::builtin(&kind.group, &kind.kind);
                let definition = self
                    .crds
                    .revision(&kind.group, &kind.plural)
                    .or(builtin.as_ref().map(|_| ""));
                let rules = api_server.as_ref().zip(definition).map(|(version, definition)| {
                    format!("{REVISION} {} {definition}", version.git_version)
                        .trim_end()
                        .to_owned()
                });
                let shape = self
                    .crds
                    .shape(&kind.group, &kind.plural)
                    .unwrap_or_else(|| Arc::new(builtin.unwrap_or_else(ListShape::atomic)));
                Some(Arc::new(WantedKind {
                    component: component::of(&kind.group, &kind.kind),
                    info: KindInfo::new(kind.group, kind.version, kind.kind),
                    plural: kind.plural,
                    rule,
                    shape,
                    rules,
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
