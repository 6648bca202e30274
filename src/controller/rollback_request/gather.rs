//! The two sides of a plan: what the snapshot holds, and what is live.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::TryStreamExt as _;
use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::live::{LiveObject, LiveReader};
use crate::{
    api::{
        reasons,
        snapshot::{Component, SecretsMode},
    },
    capture::{Catalog, Failure, WantedKind},
    cluster::{self, Class, list},
    controller::{context::Context, earlier::Earlier},
    domain::{
        object::{Beside, Digest, FingerprintKey, KindInfo, ListShape, ObjectId, SecretValues},
        plan::{Content, Owner, facts},
        snapshot::{Extras, ObjectVerdict, References, Selection},
    },
    repository::{Address, Entry, ManifestReader, Repository},
};

/// Captured objects whose contents are read before they are parsed together, on every core.
const READ_AT_ONCE: usize = 256;

/// How long contents that were read for a plan are kept for the gate: whoever decides later than this waits a moment longer.
const KEPT: Duration = Duration::from_secs(60);

/// Contents that plans have read, by the UID of the request: the gate compares again soon, and finds them by their digests.
#[derive(Default)]
pub(super) struct ReadBefore(Mutex<HashMap<String, Arc<Vec<CapturedObject>>>>);

impl ReadBefore {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Vec<CapturedObject>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `captured` for some time.
    pub(super) fn keep(self: &Arc<Self>, uid: String, captured: Vec<CapturedObject>) {
        let captured = Arc::new(captured);
        let (kept, until) = (Arc::clone(self), Arc::downgrade(&captured));
        self.lock().insert(uid.clone(), captured);
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            let mut all = kept.lock();
            // Those of a later plan stay.
            if all.get(&uid).is_some_and(|now| until.as_ptr() == Arc::as_ptr(now)) {
                all.remove(&uid);
            }
        });
    }

    /// What was kept for the request `uid`, once.
    pub(super) fn take(&self, uid: &str) -> Option<Arc<Vec<CapturedObject>>> {
        self.lock().remove(uid)
    }
}

/// A captured object; the content is read where live differs.
#[derive(Clone)]
pub(super) struct CapturedObject {
    pub id: ObjectId,
    pub component: Component,
    pub digest: Digest,
    pub content: Option<Content>,
    pub beside: Option<Arc<Beside>>,
    pub fingerprints_only: bool,
    /// For Jobs: whether it had finished; `None` is not known.
    pub finished: Option<bool>,
}

/// Both sides, and what is known of the kinds.
pub(super) struct Sides {
    pub captured: Vec<CapturedObject>,
    pub live: Vec<LiveObject>,
    pub kinds: BTreeMap<(String, String), Arc<WantedKind>>,
    pub unserved: BTreeSet<(String, String)>,
    pub captured_kinds: BTreeSet<(String, String)>,
    pub owners: BTreeMap<ObjectId, Owner>,
    pub key: FingerprintKey,
}

/// Reads both sides: live first and whole, then the contents that differ and are not in `before`. `whole_workloads`: also where
/// nothing differs.
#[allow(clippy::too_many_arguments, reason = "what is read, and from where")]
pub(super) async fn sides(
    context: &Context,
    catalog: &tokio::sync::Mutex<Catalog>,
    repository: &Repository,
    manifest: &ManifestReader,
    extras: &Extras,
    namespace: &str,
    whole_workloads: bool,
    before: &[CapturedObject],
) -> Result<Sides, Failure> {
    let capture = extras.capture.clone().unwrap_or_default();
    let selection = Selection::compile(&capture).map_err(|error| {
        Failure::new(
            Class::Invalid,
            reasons::INVALID_SPEC,
            format!("the snapshot's selection: {error}"),
        )
    })?;
    let key = async {
        let key = cluster::key::installation_key(&context.client, &context.options.namespace).await;
        key.map_err(Failure::from)
    };
    let served = async {
        let mut catalog = catalog.lock().await;
        catalog.refresh(&context.client).await?;
        Ok::<_, Failure>(catalog.kinds())
    };
    let (key, served, entries) = futures::try_join!(Box::pin(key), Box::pin(served), Box::pin(entries(manifest)))?;
    let key = FingerprintKey::new(key);
    let kinds: BTreeMap<(String, String), Arc<WantedKind>> = served
        .into_iter()
        .map(|k| ((k.info.group.clone(), k.info.kind.clone()), k))
        .collect();
    let mut held = BTreeSet::new();
    for kinds in entries.chunk_by(|(a, ..), (b, ..)| (&a.group, &a.kind) == (&b.group, &b.kind)) {
        held.extend(kinds.first().map(|(id, ..)| (id.group.clone(), id.kind.clone())));
    }
    let unserved = held.iter().filter(|kind| !kinds.contains_key(*kind)).cloned().collect();

    let mut wanted: Vec<&Arc<WantedKind>> = kinds
        .iter()
        .filter(|(id, kind)| held.contains(*id) || selection.reads(&kind.rule))
        .map(|(_, kind)| kind)
        .collect();
    // What names others is read before what is named.
    wanted.sort_by_key(|kind| kind.reference_rank());
    let digests: HashMap<&ObjectId, Digest> = entries.iter().map(|(id, _, entry)| (id, entry.content)).collect();
    let secrets = capture.secrets.unwrap_or_default();
    let reader = LiveReader {
        context,
        namespace,
        selection: &selection,
        captured: &digests,
        values: if secrets == SecretsMode::Fingerprint {
            SecretValues::Fingerprint(&key)
        } else {
            SecretValues::Keep
        },
        secrets,
        earlier: earlier(repository, manifest).await,
        whole_workloads,
    };
    let live = reader.every(&wanted).await?;
    let equal: HashSet<&ObjectId> = live
        .iter()
        .filter(|l| digests.get(&l.id) == Some(&l.digest) && !l.unfinished)
        .map(|l| &l.id)
        .collect();
    let captured = captured(repository, &entries, &equal, extras, secrets, before).await?;
    let owners = owners(context, namespace, &kinds, &captured, &live).await?;
    let captured_kinds = wanted
        .iter()
        .map(|k| (k.info.group.clone(), k.info.kind.clone()))
        .collect();
    Ok(Sides {
        captured,
        live,
        kinds,
        unserved,
        captured_kinds,
        owners,
        key,
    })
}

/// Every row of the manifest, with what it is a row of.
async fn entries(manifest: &ManifestReader) -> Result<Vec<(ObjectId, Component, Entry)>, Failure> {
    let mut entries = Vec::new();
    let mut stream = pin!(manifest.entries());
    while let Some((kind, entry)) = stream.try_next().await.map_err(|e| super::store_failure(&e))? {
        let component =
            serde_json::from_value(Value::String(kind.component.clone())).unwrap_or(Component::Configuration);
        entries.push((ObjectId::new(&kind.group, &kind.kind, &entry.name), component, entry));
    }
    Ok(entries)
}

/// The captured objects, those with their contents that are not `equal` live.
async fn captured(
    repository: &Repository,
    entries: &[(ObjectId, Component, Entry)],
    equal: &HashSet<&ObjectId>,
    extras: &Extras,
    secrets: SecretsMode,
    before: &[CapturedObject],
) -> Result<Vec<CapturedObject>, Failure> {
    let mut captured = Vec::with_capacity(entries.len());
    // Contents have no other address than their digest: what was read under it, and compared with it, is what it is.
    let read_before = |at: usize, id: &ObjectId, digest: &Digest| {
        let found = before
            .get(at)
            .filter(|found| found.digest == *digest && found.id == *id);
        found.filter(|found| found.content.is_some()).cloned()
    };
    for (some, from) in entries.chunks(READ_AT_ONCE).zip((0..).step_by(READ_AT_ONCE)) {
        let mut read = Vec::with_capacity(some.len());
        for ((id, component, entry), at) in some.iter().zip(from..) {
            let differs = !equal.contains(id);
            if let Some(found) = read_before(at, id, &entry.content).filter(|_| differs) {
                read.push((found, None));
                continue;
            }
            let is_job = id.group == "batch" && id.kind == "Job";
            let is_secret = id.group.is_empty() && id.kind == "Secret";
            let object = CapturedObject {
                id: id.clone(),
                finished: extras.job_had_finished(&id.name).filter(|_| is_job),
                component: *component,
                digest: entry.content,
                content: None,
                beside: None,
                fingerprints_only: secrets == SecretsMode::Fingerprint && is_secret,
            };
            let bytes = if differs {
                let beside = match &entry.beside {
                    Some(address) => Some((*address, read_chunk(repository, address).await?)),
                    None => None,
                };
                Some((read_chunk(repository, &entry.content).await?, beside))
            } else {
                None
            };
            read.push((object, bytes));
        }
        // Where nothing is to be parsed no core need be woken.
        if read.iter().all(|(_, bytes)| bytes.is_none()) {
            captured.extend(read.into_iter().map(|(object, _)| object));
            continue;
        }
        let parsed = read.into_par_iter().map(|(mut object, bytes)| {
            if let Some((content, beside)) = bytes {
                object.content = Some(Content::from(parse::<Value>(&content, &object.digest)?));
                let beside = beside.map(|(address, bytes)| parse(&bytes, &address));
                object.beside = beside.transpose()?.map(Arc::new);
            }
            Ok(object)
        });
        captured.extend(parsed.collect::<Result<Vec<_>, Failure>>()?);
    }
    Ok(captured)
}

/// The snapshots that are likely to hold what is live: the newest of the lineage, and the target.
async fn earlier(repository: &Repository, manifest: &ManifestReader) -> Vec<Earlier> {
    let target = manifest.record();
    let newest = repository.snapshots(Some(&target.lineage_key())).pop();
    let records = [
        newest.filter(|newest| newest.uid != target.uid),
        Some(Arc::new(target.clone())),
    ];
    Earlier::all(repository, &records).await.into_iter().flatten().collect()
}

/// What the manifest says besides its entries.
pub(super) async fn extras(manifest: &ManifestReader) -> Result<Extras, Failure> {
    let json = manifest.extras().await.map_err(|e| super::store_failure(&e))?;
    json.map_or_else(
        || Ok(Extras::default()),
        |json| {
            serde_json::from_value(json).map_err(|e| {
                let message = format!("what the manifest says besides its entries cannot be read: {e}");
                Failure::new(Class::Corrupt, reasons::CORRUPT, message)
            })
        },
    )
}

async fn read_chunk(repository: &Repository, address: &impl Address) -> Result<Bytes, Failure> {
    let read = repository.read_chunk(address).await;
    read.map_err(|e| super::store_failure(&e))
}

fn parse<T: DeserializeOwned>(bytes: &[u8], address: &impl Address) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|e| {
        Failure::new(
            Class::Corrupt,
            reasons::CORRUPT,
            format!("stored content {address} is not what it should be: {e}"),
        )
    })
}

/// What is known of owners that are neither live in the plan nor part of the snapshot.
async fn owners(
    context: &Context,
    namespace: &str,
    kinds: &BTreeMap<(String, String), Arc<WantedKind>>,
    captured: &[CapturedObject],
    live: &[LiveObject],
) -> Result<BTreeMap<ObjectId, Owner>, Failure> {
    let known: HashSet<&ObjectId> = captured
        .iter()
        .map(|c| &c.id)
        .chain(live.iter().map(|l| &l.id))
        .collect();
    let mut owners = BTreeMap::new();
    for content in captured.iter().filter_map(|c| c.content.as_ref()) {
        for owner in content["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
            let api_version = owner["apiVersion"].as_str().unwrap_or_default();
            let group = api_version.split_once('/').map_or("", |(group, _)| group);
            let (kind, name) = (
                owner["kind"].as_str().unwrap_or_default(),
                owner["name"].as_str().unwrap_or_default(),
            );
            let id = ObjectId::new(group, kind, name);
            if known.contains(&id) || owners.contains_key(&id) {
                continue;
            }
            let found = match kinds.get(&(id.group.clone(), id.kind.clone())) {
                Some(served) => live_uid(context, served, namespace, name).await?,
                None => Owner::Unknown,
            };
            owners.insert(id, found);
        }
    }
    Ok(owners)
}

async fn live_uid(context: &Context, kind: &WantedKind, namespace: &str, name: &str) -> Result<Owner, Failure> {
    let uri = format!("{}/{name}", kind.collection(Some(namespace)).path());
    let what = format!("get {} {namespace}/{name}", kind.plural);
    match list::get_metadata(&context.client, &uri, &what).await {
        Ok(bytes) => {
            let value: Value =
                serde_json::from_slice(&bytes).map_err(|source| cluster::Error::Unreadable { what, source })?;
            Ok(value["metadata"]["uid"]
                .as_str()
                .map_or(Owner::Unknown, |uid| Owner::Live(uid.to_owned())))
        }
        Err(error) if error.is_not_found() => Ok(Owner::Gone),
        Err(error) => Err(error.into()),
    }
}

impl Sides {
    /// The captured side as the domain takes it.
    pub(super) fn captured(&self) -> Vec<facts::Captured<'_>> {
        self.captured
            .iter()
            .map(|c| facts::Captured {
                id: c.id.clone(),
                component: c.component,
                digest: c.digest,
                content: c.content.as_ref(),
                beside: c.beside.as_ref(),
                fingerprints_only: c.fingerprints_only,
                finished: c.finished,
            })
            .collect()
    }

    /// The live side as the domain takes it.
    pub(super) fn live(&self) -> Vec<facts::Live<'_>> {
        self.live
            .iter()
            .map(|l| facts::Live {
                id: l.id.clone(),
                component: l.component,
                uid: l.uid.clone(),
                resource_version: l.resource_version.clone(),
                digest: l.digest,
                content: &l.content,
                raw: &l.raw,
                in_capture: l.in_capture,
            })
            .collect()
    }

    /// Objects, captured or live, that a selection of the request picks.
    pub(super) fn picked(&self, selection: &Selection) -> BTreeSet<ObjectId> {
        let none = References::default();
        let captured = self
            .captured
            .iter()
            .filter_map(|c| Some((&c.id, c.component, &**c.content.as_ref()?, &Value::Null)));
        let live = self.live.iter().map(|l| (&l.id, l.component, &*l.content, &l.labels));
        captured
            .chain(live)
            .filter(|(id, component, content, labels)| {
                // Equal objects are not held; filters ask for no more than this of them.
                let stand_in = serde_json::json!({"metadata": {"name": id.name, "labels": labels}});
                let object = if content.is_null() { &stand_in } else { content };
                let info = KindInfo::new(&id.group, "", &id.kind);
                selection.verdict(&info, *component, object, &none) == ObjectVerdict::Capture
            })
            .map(|(id, ..)| id.clone())
            .collect()
    }

    /// Keyed lists of a kind.
    pub(super) fn shape(&self, id: &ObjectId) -> Arc<ListShape> {
        self.kinds
            .get(&(id.group.clone(), id.kind.clone()))
            .map_or_else(|| Arc::new(ListShape::atomic()), |kind| Arc::clone(&kind.shape))
    }
}
