//! Which Snapshot a target means.

use std::collections::BTreeMap;

use futures::TryStreamExt as _;
use kube::{Api, ResourceExt as _};
use tokio::sync::Mutex;

use super::gather;
use crate::{
    api::{RollbackRequest, Snapshot, names, reference::ResolvedSnapshot, snapshot::SnapshotPhase},
    capture::{Catalog, Failure},
    cluster::{Class, call},
    controller::context::Context,
    domain::{
        object::{Digest, ObjectId},
        snapshot::Extras,
        target::{self, Candidate, DEFAULT_LINEAGE},
    },
    repository::{Repository, SnapshotDigest},
};

/// Resolves the target among the Snapshots of the namespace.
pub(super) async fn resolve(
    context: &Context,
    catalog: &Mutex<Catalog>,
    repository: &Repository,
    request: &RollbackRequest,
) -> Result<ResolvedSnapshot, Failure> {
    let namespace = request.namespace().unwrap_or_default();
    let api: Api<Snapshot> = Api::namespaced(context.client.clone(), &namespace);
    let what = format!("list snapshots in {namespace}");
    let every = kube::api::ListParams::default();
    let snapshots = call::repeat(&what, call::PAGE_DEADLINE, || api.list(&every)).await?;
    let candidates: Vec<Candidate> = snapshots.iter().map(candidate).collect();
    let target = &request.spec.target;
    let live_version = if target.previous == Some(true) {
        let lineage = target.lineage.as_deref().unwrap_or(DEFAULT_LINEAGE);
        live_version(context, catalog, repository, &namespace, lineage, &candidates).await?
    } else {
        None
    };
    target::resolve(target, &candidates, live_version)
        .map_err(|error| Failure::new(Class::Invalid, error.reason(), error.to_string()))
}

fn candidate(snapshot: &Snapshot) -> Candidate {
    let status = snapshot.status.clone().unwrap_or_default();
    let labelled = snapshot
        .labels()
        .keys()
        .filter_map(|key| key.strip_prefix(names::TAG_LABEL_PREFIX))
        .map(ToOwned::to_owned);
    Candidate {
        name: snapshot.name_any(),
        uid: snapshot.uid().unwrap_or_default(),
        lineage: snapshot
            .spec
            .lineage
            .clone()
            .unwrap_or_else(|| DEFAULT_LINEAGE.to_owned()),
        phase: status.phase.unwrap_or(SnapshotPhase::Pending),
        version: status.version,
        parent: status.parent.as_ref().map(|p| p.version),
        digest: status.digest,
        started_at: status.started_at.map(|t| t.0),
        tags: snapshot.spec.tags.iter().cloned().chain(labelled).collect(),
        safety: snapshot.spec.is_safety(),
    }
}

/// The Ready version of the lineage that live is equal to, looked at through the newest one's selection.
async fn live_version(
    context: &Context,
    catalog: &Mutex<Catalog>,
    repository: &Repository,
    namespace: &str,
    lineage: &str,
    candidates: &[Candidate],
) -> Result<Option<i64>, Failure> {
    let newest = candidates
        .iter()
        .filter(|c| c.lineage == lineage && c.phase == SnapshotPhase::Ready)
        .max_by_key(|c| c.version);
    let Some(newest) = newest else { return Ok(None) };
    let manifest = repository
        .manifest(&newest.uid)
        .await
        .map_err(|e| super::store_failure(&e))?;
    let extras: Extras = match manifest.extras().await.map_err(|e| super::store_failure(&e))? {
        Some(value) => serde_json::from_value(value).unwrap_or_default(),
        None => Extras::default(),
    };
    let sides = gather::sides(context, catalog, repository, &manifest, &extras, namespace, false, &[]).await?;
    let entries: BTreeMap<&ObjectId, Digest> = sides
        .live
        .iter()
        .filter(|l| l.in_capture)
        .map(|l| (&l.id, l.digest))
        .collect();
    // Digests of images are left out of this comparison: a restarted Pod with a moved tag is still the same release.
    let of_entries = |entries: &BTreeMap<&ObjectId, Digest>| {
        let mut digest = SnapshotDigest::new();
        for (id, content) in entries {
            digest.entry(&id.group, &id.kind, &id.name, content);
        }
        digest.finish(None)
    };
    let live = of_entries(&entries);
    let mut versions: Vec<_> = candidates
        .iter()
        .filter(|c| c.lineage == lineage && c.phase == SnapshotPhase::Ready)
        .collect();
    versions.sort_by_key(|c| std::cmp::Reverse(c.version));
    for candidate in versions {
        let manifest = repository
            .manifest(&candidate.uid)
            .await
            .map_err(|e| super::store_failure(&e))?;
        let mut digest = SnapshotDigest::new();
        let mut stream = std::pin::pin!(manifest.entries());
        while let Some((kind, entry)) = stream.try_next().await.map_err(|e| super::store_failure(&e))? {
            digest.entry(&kind.group, &kind.kind, &entry.name, &entry.content);
        }
        if digest.finish(None) == live {
            return Ok(candidate.version);
        }
    }
    Ok(None)
}
