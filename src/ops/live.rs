//! Compares a snapshot with what is live now, read through the same rules by which the snapshot was taken.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use super::{
    Class, Error, Result, Session,
    contents::{Contents, extras},
    diff::{Report, Shapes, content, next, random_key},
};
use crate::{
    api::snapshot::{Capture, SecretsMode},
    capture::{self, Catalog, Failure, Observed, Pass, Sink, Target, WantedKind},
    cluster::{self, key},
    domain::{
        object::{Digest, FingerprintKey, ObjectId},
        snapshot::Selection,
    },
    repository::ManifestReader,
};

/// Kinds listed at once.
const CONCURRENCY: usize = 4;

/// What the live side turned out to be.
enum Live {
    /// Same digest as captured.
    Equal,
    /// Another content, kept until it is compared.
    Different(Vec<u8>),
}

struct Comparison {
    captured: BTreeMap<ObjectId, Digest>,
    live: Mutex<BTreeMap<ObjectId, Live>>,
}

#[async_trait]
impl Sink for Comparison {
    async fn take(&self, kind: &WantedKind, objects: Vec<Observed>) -> Result<(), Failure> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        for Observed { object, .. } in objects {
            let id = ObjectId::new(&kind.info.group, &kind.info.kind, &object.name);
            let equal = self.captured.get(&id).is_some_and(|digest| *digest == object.digest());
            live.insert(
                id,
                if equal {
                    Live::Equal
                } else {
                    Live::Different(object.content)
                },
            );
        }
        Ok(())
    }
}

/// Compares the snapshot behind `manifest` (old) with its namespace as it is now (new), by the snapshot's own selection.
///
/// Reads every kind with the user's own rights: what may not be listed is an error, never "removed".
pub async fn against_live(session: &Session, contents: &Contents, manifest: &ManifestReader) -> Result<Report> {
    let extras = extras(manifest).await?;
    let capture = extras.capture.clone().unwrap_or_default();
    let selection = Selection::compile(&capture).map_err(|error| {
        Error::new(Class::Unavailable, "the selection of this snapshot cannot be read")
            .because(error.to_string())
            .fix("upgrade kubectl-backstep to the version of the operator")
    })?;
    let mut captured = BTreeMap::new();
    let mut entries = pin!(manifest.entries());
    while let Some((id, digest)) = next(&mut entries).await? {
        captured.insert(id, digest);
    }
    let comparison = Comparison {
        captured,
        live: Mutex::default(),
    };
    let catalog = tokio::sync::Mutex::new(Catalog::default());
    let pass = Pass {
        client: &session.client,
        catalog: &catalog,
        options: capture::Options {
            concurrency: CONCURRENCY,
        },
    };
    let namespace = manifest.record().namespace.clone();
    let target = [Target::new(
        namespace,
        selection,
        fingerprint_key(session, &capture).await?,
    )];
    let reports = capture::run(&pass, &target, &comparison).await.map_err(unreadable)?;
    let seen = match reports.into_iter().next().map(|report| report.outcome) {
        Some(Ok(seen)) => seen,
        // Everything that the selection names is gone: that is a difference, not a failure.
        Some(Err(failure)) if failure.reason == crate::api::reasons::NOTHING_MATCHED => capture::Captured::default(),
        Some(Err(failure)) => return Err(unreadable(failure)),
        None => return Err(Error::internal("the live namespace was not read")),
    };
    let mut report = Report::default();
    let (shapes, hide) = (Shapes::new(session), random_key());
    let Comparison { captured, live } = comparison;
    let mut live = live.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (id, digest) in captured {
        let after = match live.remove(&id) {
            Some(Live::Equal) => {
                report.unchanged += 1;
                continue;
            }
            Some(Live::Different(bytes)) => Some(parse(&bytes, &id)?),
            None => None,
        };
        let before = content(contents, Some(digest), &id).await?;
        let shape = shapes.of(&id.group, &id.kind).await;
        report.add(id, before.as_ref(), after.as_ref(), &shape, &hide);
    }
    for (id, state) in live {
        if let Live::Different(bytes) = state {
            let after = parse(&bytes, &id)?;
            let shape = shapes.of(&id.group, &id.kind).await;
            report.add(id, None, Some(&after), &shape, &hide);
        }
    }
    report.objects.sort_by(|a, b| a.id.cmp(&b.id));
    report.compare_images(&extras.images, &seen.images);
    Ok(report)
}

fn parse(bytes: &[u8], id: &ObjectId) -> Result<serde_json::Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::internal(format!("the content of {id} cannot be read back: {e}")))
}

fn unreadable(failure: Failure) -> Error {
    let class = match failure.class {
        cluster::Class::Forbidden => Class::Forbidden,
        cluster::Class::Corrupt => Class::Corrupt,
        cluster::Class::Invalid if failure.message.contains("403") => Class::Forbidden,
        cluster::Class::Invalid => Class::Refused,
        cluster::Class::Transient | cluster::Class::Waiting => Class::Unavailable,
    };
    Error::new(class, "the live namespace cannot be read as the snapshot was").because(failure.message).fix(
        "comparing needs the right to list every captured kind; `diff` of two snapshots does not read the namespace",
    )
}

/// The installation's key; `None` when there is none. Never made here: only the operator makes it.
pub(super) async fn installation_key(session: &Session) -> Result<Option<FingerprintKey>> {
    let namespace = &session.operator_namespace;
    let api: Api<Secret> = Api::namespaced(session.client.clone(), namespace);
    let what = format!("read secret {} in {namespace}", key::KEY_SECRET);
    if session.repeat(&what, || api.get_opt(key::KEY_SECRET)).await?.is_none() {
        return Ok(None);
    }
    let bytes = key::installation_key(&session.client, namespace).await?;
    Ok(Some(FingerprintKey::new(bytes)))
}

/// The key for reading live Secrets as the snapshot holds them.
async fn fingerprint_key(session: &Session, capture: &Capture) -> Result<Option<FingerprintKey>> {
    if capture.secrets != Some(SecretsMode::Fingerprint) {
        return Ok(None);
    }
    if let Some(key) = installation_key(session).await? {
        return Ok(Some(key));
    }
    let place = format!("secret {} of namespace {}", key::KEY_SECRET, session.operator_namespace);
    Err(Error::new(
        Class::Unavailable,
        "the Secrets of this snapshot cannot be compared with live ones",
    )
    .because(format!("it holds fingerprints, and their key, {place}, is gone"))
    .fix("bring the Secret back from a backup, or name the operator's namespace with --operator-namespace"))
}
