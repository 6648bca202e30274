//! Live equals the target, read through the snapshot's own selection as a capture would. What differs is held against a plan made anew:
//! nothing may be left to write.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use futures::TryStreamExt as _;

use super::{Look, Subject};
use crate::{
    api::{
        reasons,
        snapshot::{ImageStatus, SecretsMode},
        verify::SnapshotMatches,
    },
    capture::{self, Failure, Observed, Pass, Sink, Target, WantedKind},
    cluster::{self, Class},
    controller::rollback_request::{
        gather,
        plan::{self, Aim},
        repository, store_failure,
    },
    domain::{
        object::{Digest, FingerprintKey, ObjectId},
        snapshot::Selection,
        verify::{Differences, Seen},
    },
};

pub(super) async fn look(look: &Look<'_>, test: &SnapshotMatches) -> Seen {
    match compare(look, test.except_kept).await {
        Ok(differences) if differences.is_empty() => Seen::passed(differences.to_string()),
        Ok(differences) => Seen::failed(differences.to_string()),
        Err(failure) => Seen::inconclusive(failure.message),
    }
}

async fn compare(look: &Look<'_>, except_kept: bool) -> Result<Differences, Failure> {
    let context = look.subject.context;
    let repository = context
        .store
        .repository()
        .map_err(|(message, _)| Failure::new(Class::Transient, reasons::STORE_UNAVAILABLE, message))?;
    let resolved = look.subject.resolved;
    let manifest = repository
        .manifest(&resolved.uid)
        .await
        .map_err(|e| store_failure(&e))?;
    if manifest.record().digest.to_string() != resolved.digest {
        let message = "the stored contents of the target have another digest than its status";
        return Err(Failure::new(Class::Corrupt, reasons::CORRUPT, message));
    }
    let extras = gather::extras(&manifest).await?;
    let mut target = BTreeMap::new();
    let mut entries = pin!(manifest.entries());
    while let Some((kind, entry)) = entries.try_next().await.map_err(|e| store_failure(&e))? {
        target.insert(ObjectId::new(&kind.group, &kind.kind, &entry.name), entry.content);
    }
    let capture = extras.capture.clone().unwrap_or_default();
    let selection = Selection::compile(&capture).map_err(|e| {
        Failure::new(
            Class::Invalid,
            reasons::INVALID_SPEC,
            format!("the snapshot's selection: {e}"),
        )
    })?;
    let key = if capture.secrets == Some(SecretsMode::Fingerprint) {
        let key = cluster::key::installation_key(&context.client, &context.options.namespace).await?;
        Some(FingerprintKey::new(key))
    } else {
        None
    };
    let (live, images) = live(look, selection, key).await?;
    let mut differences = Differences::between(&target, &live);
    differences.compare_images(&extras.images, &images);
    if except_kept && !differences.is_empty() {
        differences.except(&may_differ(look, &differences).await?);
    }
    Ok(differences)
}

/// Of what differs, everything that a plan made now would not write: kept, skipped, decided by the server or an autoscaler, outside of
/// what the request is about. And what this execution left alone or pinned.
async fn may_differ(look: &Look<'_>, differences: &Differences) -> Result<BTreeSet<ObjectId>, Failure> {
    let Subject {
        context,
        catalog,
        request,
        resolved,
        excepted,
    } = *look.subject;
    // The policy is part of what an approval is bound to, and this plan is never approved.
    let aim = Aim::Rest(Digest::of(&[]));
    let put_back = plan::put_back(&repository(context)?, request).await?;
    let (_, plan) = plan::from_live(context, catalog, request, resolved, aim, &put_back, &[]).await?;
    let written: BTreeSet<&ObjectId> = plan.writes().map(|item| &item.id).collect();
    Ok(differences
        .objects()
        .filter(|id| !written.contains(id))
        .chain(excepted)
        .cloned()
        .collect())
}

/// Digests by identity.
#[derive(Default)]
struct Digests(Mutex<BTreeMap<ObjectId, Digest>>);

#[async_trait]
impl Sink for Digests {
    async fn take(&self, kind: &WantedKind, objects: Vec<Observed>) -> Result<(), Failure> {
        let mut digests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for Observed { object, .. } in objects {
            let id = ObjectId::new(&kind.info.group, &kind.info.kind, &object.name);
            digests.insert(id, object.digest());
        }
        Ok(())
    }
}

type Live = (BTreeMap<ObjectId, Digest>, Vec<ImageStatus>);

async fn live(look: &Look<'_>, selection: Selection, key: Option<FingerprintKey>) -> Result<Live, Failure> {
    let context = look.subject.context;
    let pass = Pass {
        client: &context.client,
        catalog: look.subject.catalog,
        options: capture::Options {
            concurrency: usize::from(context.options.captures),
        },
    };
    let (targets, sink) = ([Target::new(look.namespace, selection, key)], Digests::default());
    let report = capture::run(&pass, &targets, &sink).await?.into_iter().next();
    let images = match report.map(|report| report.outcome) {
        Some(Ok(captured)) => captured.images,
        // Everything that the selection names is gone: that is a difference.
        Some(Err(failure)) if failure.reason == reasons::NOTHING_MATCHED => Vec::new(),
        Some(Err(failure)) => return Err(failure),
        None => {
            let message = "the namespace was not read";
            return Err(Failure::new(Class::Transient, reasons::API_UNAVAILABLE, message));
        }
    };
    Ok((sink.0.into_inner().unwrap_or_else(PoisonError::into_inner), images))
}
