//! The two sides of a plan: what the snapshot holds, and what is live.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    pin::pin,
    sync::Arc,
};

use futures::TryStreamExt as _;
use serde_json::Value;

use crate::{
    api::{
        reasons,
        snapshot::{Component, SecretsMode},
    },
    capture::{Catalog, Failure, WantedKind},
    cluster::{
        self, Class,
        list::{self, Collection, Pager},
    },
    controller::context::Context,
    domain::{
        component,
        object::{Beside, Digest, FingerprintKey, KindInfo, ListShape, ObjectId, SecretValues, normalise},
        plan::{Owner, facts, write},
        snapshot::{Extras, ObjectVerdict, References, Selection},
    },
    repository::{Address, ManifestReader, Repository},
};

/// Kinds that are listed at once.
const LISTS: usize = 4;

/// A captured object; the content is read where live differs.
pub(super) struct CapturedObject {
    pub id: ObjectId,
    pub component: Component,
    pub digest: Digest,
    pub content: Option<Value>,
    pub beside: Option<Beside>,
    pub fingerprints_only: bool,
    /// For Jobs: whether it had finished; `None` is not known.
    pub finished: Option<bool>,
}

/// A live object; `content` and `raw` are `Null` where it equals the captured one and nothing else depends on it.
pub(super) struct LiveObject {
    pub id: ObjectId,
    pub component: Component,
    pub uid: String,
    pub resource_version: String,
    pub digest: Digest,
    pub content: Value,
    pub raw: Value,
    pub in_capture: bool,
    /// An earlier write of it was cut short, so that it is not done though it may be equal.
    pub unfinished: bool,
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

/// Reads both sides: live first and whole, then the contents that differ.
pub(super) async fn sides(
    context: &Context,
    catalog: &tokio::sync::Mutex<Catalog>,
    repository: &Repository,
    manifest: &ManifestReader,
    extras: &Extras,
    namespace: &str,
) -> Result<Sides, Failure> {
    let capture = extras.capture.clone().unwrap_or_default();
    let selection = Selection::compile(&capture).map_err(|error| {
        Failure::new(
            Class::Invalid,
            reasons::INVALID_SPEC,
            format!("the snapshot's selection: {error}"),
        )
    })?;
    let key = cluster::key::installation_key(&context.client, &context.options.namespace).await?;
    let key = FingerprintKey::new(key);
    let kinds: BTreeMap<(String, String), Arc<WantedKind>> = {
        let mut catalog = catalog.lock().await;
        catalog.refresh(&context.client).await?;
        catalog
            .kinds()
            .into_iter()
            .map(|k| ((k.info.group.clone(), k.info.kind.clone()), k))
            .collect()
    };
    let mut entries = BTreeMap::new();
    let mut stream = pin!(manifest.entries());
    while let Some((kind, entry)) = stream.try_next().await.map_err(|e| super::store_failure(&e))? {
        let component =
            serde_json::from_value(Value::String(kind.component.clone())).unwrap_or(Component::Configuration);
        entries.insert(ObjectId::new(&kind.group, &kind.kind, &entry.name), (component, entry));
    }
    let held: BTreeSet<(String, String)> = entries.keys().map(|id| (id.group.clone(), id.kind.clone())).collect();
    let unserved = held.iter().filter(|kind| !kinds.contains_key(*kind)).cloned().collect();

    let mut wanted: Vec<&Arc<WantedKind>> = kinds
        .iter()
        .filter(|(id, kind)| held.contains(*id) || selection.reads(&kind.rule))
        .map(|(_, kind)| kind)
        .collect();
    // What names others is read before what is named.
    wanted.sort_by_key(|kind| kind.reference_rank());
    let digests: BTreeMap<&ObjectId, Digest> = entries.iter().map(|(id, (_, entry))| (id, entry.content)).collect();
    let mut reader = LiveReader {
        selection: &selection,
        captured: &digests,
        secrets: if capture.secrets == Some(SecretsMode::Fingerprint) {
            SecretValues::Fingerprint(&key)
        } else {
            SecretValues::Keep
        },
        references: References::default(),
        live: Vec::new(),
    };
    reader.every(context, namespace, &wanted).await?;
    let live = reader.live;
    let equal: HashSet<&ObjectId> = live
        .iter()
        .filter(|l| digests.get(&l.id) == Some(&l.digest) && !l.unfinished)
        .map(|l| &l.id)
        .collect();
    let mut captured = Vec::new();
    for (id, (component, entry)) in &entries {
        let differs = !equal.contains(id);
        let held = if differs {
            Some(read_json(repository, &entry.content).await?)
        } else {
            None
        };
        let beside = match &entry.beside {
            Some(digest) if differs => serde_json::from_value(read_json(repository, digest).await?).ok(),
            _ => None,
        };
        let is_job = id.group == "batch" && id.kind == "Job";
        captured.push(CapturedObject {
            id: id.clone(),
            finished: extras.job_had_finished(&id.name).filter(|_| is_job),
            component: *component,
            digest: entry.content,
            content: held,
            beside,
            fingerprints_only: capture.secrets == Some(SecretsMode::Fingerprint)
                && id.group.is_empty()
                && id.kind == "Secret",
        });
    }
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

async fn read_json(repository: &Repository, address: &impl Address) -> Result<Value, Failure> {
    let bytes = repository
        .read_chunk(address)
        .await
        .map_err(|e| super::store_failure(&e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Failure::new(
            Class::Corrupt,
            reasons::CORRUPT,
            format!("stored content {address} is no JSON: {e}"),
        )
    })
}

struct LiveReader<'a> {
    selection: &'a Selection,
    captured: &'a BTreeMap<&'a ObjectId, Digest>,
    secrets: SecretValues<'a>,
    references: References,
    live: Vec<LiveObject>,
}

impl LiveReader<'_> {
    /// Reads all of `kinds`: some are listed at once, and worked on in order.
    async fn every(&mut self, context: &Context, namespace: &str, kinds: &[&Arc<WantedKind>]) -> Result<(), Failure> {
        let mut waiting = kinds.iter();
        let mut ahead = VecDeque::new();
        loop {
            while ahead.len() < LISTS
                && let Some(kind) = waiting.next()
            {
                let collection = kind.collection(Some(namespace));
                let pager = Pager::start(context.client.clone(), collection.clone(), false);
                ahead.push_back((kind, collection, pager));
            }
            let Some((kind, collection, pager)) = ahead.pop_front() else {
                return Ok(());
            };
            self.kind(kind, &collection, pager).await?;
        }
    }

    async fn kind(&mut self, kind: &WantedKind, collection: &Collection, mut pager: Pager) -> Result<(), Failure> {
        loop {
            let page = match pager.next().await {
                Ok(Some(page)) => page,
                Ok(None) => return Ok(()),
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => {
                    let message = format!("{} cannot be read, so there is no plan: {error}", kind.display());
                    return Err(Failure::new(error.class(), reasons::PREFLIGHT_FAILED, message));
                }
            };
            for text in page.objects() {
                self.object(kind, collection, text)?;
            }
        }
    }

    fn object(&mut self, kind: &WantedKind, collection: &Collection, text: &[u8]) -> Result<(), Failure> {
        let parse = || -> Result<Value, cluster::Error> {
            serde_json::from_slice(text).map_err(|source| cluster::Error::Unreadable {
                what: collection.to_string(),
                source,
            })
        };
        let raw = parse()?;
        let name = raw["metadata"]["name"].as_str().unwrap_or_default();
        let id = ObjectId::new(&kind.info.group, &kind.info.kind, name);
        let verdict = self
            .selection
            .verdict(&kind.info, kind.component, &raw, &self.references);
        let in_capture = verdict == ObjectVerdict::Capture;
        let held = self.captured.get(&id);
        if in_capture {
            self.references.collect(&kind.info, &raw);
        }
        if !in_capture && held.is_none() {
            return Ok(());
        }
        let unfinished = raw["metadata"]["managedFields"]
            .as_array()
            .is_some_and(|entries| write::is_unfinished(entries));
        let object = normalise(raw, &kind.info, &kind.shape, self.secrets)
            .map_err(|e| Failure::new(Class::Invalid, reasons::PREFLIGHT_FAILED, format!("{id}: {e}")))?;
        let digest = object.digest();
        // Workloads tell who reads what, how many Pods are ready and who is scaled; the rest matters only where it differs.
        let needed = held != Some(&digest) || unfinished || kind.component == Component::Workloads;
        let (content, raw) = if needed {
            let content = serde_json::from_slice(&object.content).map_err(|source| cluster::Error::Unreadable {
                what: id.to_string(),
                source,
            })?;
            // Most objects are equal: parsing the few again costs less than a copy of each.
            (content, parse()?)
        } else {
            (Value::Null, Value::Null)
        };
        self.live.push(LiveObject {
            component: component::of(&id.group, &id.kind),
            id,
            uid: object.uid,
            resource_version: object.resource_version,
            digest,
            content,
            raw,
            in_capture,
            unfinished,
        });
        Ok(())
    }
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
            .filter_map(|c| Some((&c.id, c.component, c.content.as_ref()?)));
        let live = self.live.iter().map(|l| (&l.id, l.component, &l.content));
        captured
            .chain(live)
            .filter(|(id, component, content)| {
                // Equal objects are not held; their name is enough for filters by name.
                let stand_in = serde_json::json!({"metadata": {"name": id.name}});
                let object = if content.is_null() { &stand_in } else { content };
                let info = KindInfo::new(&id.group, "", &id.kind);
                selection.verdict(&info, *component, object, &none) == ObjectVerdict::Capture
            })
            .map(|(id, _, _)| id.clone())
            .collect()
    }

    /// Keyed lists of a kind.
    pub(super) fn shape(&self, id: &ObjectId) -> Arc<ListShape> {
        self.kinds
            .get(&(id.group.clone(), id.kind.clone()))
            .map_or_else(|| Arc::new(ListShape::atomic()), |kind| Arc::clone(&kind.shape))
    }
}
