//! One pass over the kinds of the cluster that serves every target at once.
//!
//! 1. What is served: discovery and the custom resources that changed.
//! 2. The namespaces: gone or terminating ones fail their targets.
//! 3. Each wanted kind is listed, in the namespace of a lone target or once for all. Kinds that name others come first where
//!    a target follows references through a filter.
//! 4. The namespaces again: one that went in the middle makes its targets incomplete.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use futures::{StreamExt as _, stream};
use kube::Client;

use super::{
    Catalog, Sink, WantedKind,
    read::{self, Scope},
    target::{Captured, Failure, Target, TargetReport},
};
use crate::{
    api::reasons,
    cluster::{
        Class,
        list::{self, Collection, Pager},
        metadata::{Head, Metadata},
    },
};

/// From this many namespaces on one list of the whole cluster may be cheaper than one for each.
const SHARE_FROM: usize = 4;
/// A list of the whole cluster is cheaper when at least one in so many of its namespaces is wanted.
const SHARE_PART: usize = 8;

/// How a pass reads.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Kinds listed at once.
    pub concurrency: usize,
}

/// What a pass needs.
pub struct Pass<'a> {
    /// Client to read with.
    pub client: &'a Client,
    /// Kinds, kept between passes.
    pub catalog: &'a tokio::sync::Mutex<Catalog>,
    /// How to read.
    pub options: Options,
}

/// Reads every target into `sink`. The reports are in the order of the targets.
///
/// # Errors
/// Nothing could be read at all; a single target's trouble is in its report.
pub async fn run(pass: &Pass<'_>, targets: &[Target], sink: &dyn Sink) -> Result<Vec<TargetReport>, Failure> {
    let (kinds, stale) = {
        let mut catalog = pass.catalog.lock().await;
        catalog.refresh(pass.client).await?;
        (catalog.kinds(), catalog.stale())
    };
    let mut by_namespace: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, target) in targets.iter().enumerate() {
        by_namespace.entry(&target.namespace).or_default().push(index);
    }
    let before = namespaces(pass.client, by_namespace.keys().copied()).await?;
    for target in targets {
        if let Some(failure) = unusable(&target.namespace, &before.found) {
            target.fail(failure);
        }
        let served = kinds
            .iter()
            .map(|kind| (kind.info.group.as_str(), kind.info.kind.as_str()));
        let unknown = target.selection.unknown_kinds(&served);
        if !unknown.is_empty() {
            target.fail(Failure::new(
                Class::Invalid,
                reasons::UNKNOWN_KIND,
                format!(
                    "spec.capture.include names kinds that this cluster does not serve, or that are never captured: {}; \
                     write kinds in CamelCase as in `kubectl api-resources`, and create a new Snapshot",
                    unknown.join(", ")
                ),
            ));
        }
        // A group that does not answer may hold what belongs to the snapshot.
        for group in stale.iter().filter(|group| target.selection.wants_group(group)) {
            target.fail(Failure::new(
                Class::Transient,
                reasons::CAPTURE_INCOMPLETE,
                format!(
                    "the API group {group} does not answer, so its objects cannot be read; repair its APIService, or exclude \
                     the group in spec.capture.exclude"
                ),
            ));
        }
    }
    let share = by_namespace.len() >= SHARE_FROM && by_namespace.len() * SHARE_PART >= before.total;
    let everybody: Vec<usize> = (0..targets.len()).collect();
    for mut stage in stages(&kinds, targets) {
        // What takes longest begins first.
        stage.sort_by_cached_key(|kind| Reverse(sink.expects(kind, &everybody)));
        let reads = stream::iter(stage).map(|kind| {
            let by_namespace = &by_namespace;
            async move {
                let wanting: Vec<usize> = (0..targets.len())
                    .filter(|i| !targets[*i].has_failed() && targets[*i].selection.reads(&kind.rule))
                    .collect();
                if wanting.is_empty() {
                    return;
                }
                let scope = if share {
                    Scope::Shared(by_namespace)
                } else {
                    Scope::Each(by_namespace)
                };
                read::kind(pass.client, &kind, targets, &wanting, &scope, sink).await;
            }
        });
        reads
            .buffer_unordered(pass.options.concurrency)
            .collect::<Vec<()>>()
            .await;
    }
    let after = namespaces(pass.client, by_namespace.keys().copied()).await?;
    Ok(targets
        .iter()
        .map(|target| report(target, &before.found, &after.found))
        .collect())
}

fn report(target: &Target, before: &Namespaces, after: &Namespaces) -> TargetReport {
    if let Some(failure) = unusable(&target.namespace, after) {
        return TargetReport { outcome: Err(failure) };
    }
    if before.get(&target.namespace).map(|n| &n.uid) != after.get(&target.namespace).map(|n| &n.uid) {
        let message = format!(
            "the namespace {} was deleted and created again during the capture; take a new Snapshot",
            target.namespace
        );
        return TargetReport {
            outcome: Err(Failure::new(Class::Invalid, reasons::NAMESPACE_GONE, message)),
        };
    }
    let mut seen = target.seen();
    if let Some(failure) = seen.failure.take() {
        return TargetReport { outcome: Err(failure) };
    }
    let captured: i64 = seen.captured.iter().map(|(_, n)| n).sum();
    let images = if target.selection.wants_images() {
        seen.images.resolve()
    } else {
        Vec::new()
    };
    if captured == 0 && images.is_empty() && target.selection.is_filtered() {
        let message = "spec.capture selects no object of the namespace; compare its selector and include with \
                       `kubectl get all --show-labels`, and create a new Snapshot"
            .to_owned();
        return TargetReport {
            outcome: Err(Failure::new(Class::Invalid, reasons::NOTHING_MATCHED, message)),
        };
    }
    let namespace_uid = after.get(&target.namespace).map(|n| n.uid.clone()).unwrap_or_default();
    let mut components = BTreeMap::new();
    for (component, count) in &seen.captured {
        *components.entry(*component).or_insert(0) += count;
    }
    TargetReport {
        outcome: Ok(Captured {
            namespace_uid,
            components: components.into_iter().collect(),
            skipped: seen.skips.counts(),
            images,
            unfinished_jobs: std::mem::take(&mut seen.unfinished_jobs),
        }),
    }
}

/// Kinds whose objects name others come before those that are named, where a filter makes the difference.
fn stages(kinds: &[Arc<WantedKind>], targets: &[Target]) -> Vec<Vec<Arc<WantedKind>>> {
    if !targets.iter().any(|t| t.selection.follows_through_filter()) {
        return vec![kinds.to_vec()];
    }
    let mut stages = vec![Vec::new(), Vec::new(), Vec::new()];
    for kind in kinds {
        stages[usize::from(kind.reference_rank())].push(Arc::clone(kind));
    }
    stages
}

type Namespaces = HashMap<String, Namespace>;

struct Namespace {
    uid: String,
    terminating: bool,
}

struct Found {
    found: Namespaces,
    /// How many namespaces the cluster has, as far as it matters.
    total: usize,
}

/// The wanted namespaces: one GET each for a few, one metadata list for many.
async fn namespaces(client: &Client, wanted: impl Iterator<Item = &str> + Clone) -> Result<Found, Failure> {
    let collection = Collection {
        group: String::new(),
        version: "v1".into(),
        plural: "namespaces".into(),
        namespace: None,
    };
    let mut found = Namespaces::new();
    let few = wanted.clone().count() < SHARE_FROM;
    if few {
        for name in wanted {
            let uri = format!("/api/v1/namespaces/{name}");
            match list::get_metadata(client, &uri, &format!("get namespace {name}")).await {
                Ok(bytes) => {
                    let Head { metadata } = serde_json::from_slice(&bytes).map_err(|e| {
                        let message = format!("the namespace {name} cannot be read from the server's answer: {e}");
                        Failure::new(Class::Transient, reasons::API_UNAVAILABLE, message)
                    })?;
                    add(&mut found, metadata);
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        return Ok(Found {
            found,
            total: usize::MAX,
        });
    }
    let mut total = 0;
    let mut pager = Pager::start(client.clone(), collection, true);
    while let Some(mut page) = pager.next().await? {
        for metadata in page.take_metadata().into_iter().flatten() {
            total += 1;
            add(&mut found, metadata);
        }
    }
    Ok(Found { found, total })
}

fn add(found: &mut Namespaces, metadata: Metadata) {
    found.insert(
        metadata.name,
        Namespace {
            uid: metadata.uid,
            terminating: metadata.deletion_timestamp.is_some(),
        },
    );
}

fn unusable(name: &str, namespaces: &Namespaces) -> Option<Failure> {
    match namespaces.get(name) {
        None => Some(Failure::new(
            Class::Invalid,
            reasons::NAMESPACE_GONE,
            format!("the namespace {name} does not exist any more"),
        )),
        Some(namespace) if namespace.terminating => Some(Failure::new(
            Class::Invalid,
            reasons::NAMESPACE_TERMINATING,
            format!("the namespace {name} is being deleted, so it cannot be captured whole"),
        )),
        Some(_) => None,
    }
}
