//! Reads what is live for a plan: what did not change since an earlier snapshot by its metadata alone, everything else whole.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use futures::{StreamExt as _, stream};
use serde_json::Value;

use crate::{
    api::{
        reasons,
        snapshot::{Component, SecretsMode},
    },
    capture::{Failure, METADATA_FROM, WantedKind, is_settled, single_reads},
    cluster::{
        self, Class,
        list::{self, Collection, Pager},
        metadata::Metadata,
    },
    controller::{
        context::Context,
        earlier::{Earlier, Walk, header},
    },
    domain::{
        component,
        object::{Digest, ObjectId, SecretValues, normalise},
        plan::{Content, write},
        snapshot::{ObjectVerdict, References, Selection},
    },
};

/// Kinds that are listed at once.
const LISTS: usize = 4;
/// Objects read singly at once.
const GETS: usize = 8;

/// A live object; `content` and `raw` are `Null` where it equals the captured one and nothing else depends on it.
pub(super) struct LiveObject {
    pub id: ObjectId,
    pub component: Component,
    pub uid: String,
    pub resource_version: String,
    pub digest: Digest,
    /// `metadata.labels`, which selectors look at also where it is equal.
    pub labels: Value,
    pub content: Content,
    pub raw: Value,
    pub in_capture: bool,
    /// An earlier write of it was cut short, so that it is not done though it may be equal.
    pub unfinished: bool,
}

/// What is read, and for what.
pub(super) struct LiveReader<'a> {
    pub context: &'a Context,
    pub namespace: &'a str,
    pub selection: &'a Selection,
    /// The objects that the plan leads to.
    pub captured: &'a HashMap<&'a ObjectId, Digest>,
    pub secrets: SecretsMode,
    pub values: SecretValues<'a>,
    /// Snapshots that may know what is live; the first that knows a kind is asked.
    pub earlier: Vec<Earlier>,
    /// Workloads are read whole even where nothing differs.
    pub whole_workloads: bool,
}

/// What was read so far.
#[derive(Default)]
struct Read {
    references: References,
    live: Vec<LiveObject>,
}

/// One kind's list.
struct Listing<'a> {
    kind: &'a WantedKind,
    collection: Collection,
    pager: Pager,
    /// The snapshot that knows the kind, and how many objects of it.
    known: Option<(&'a Earlier, u64)>,
}

impl LiveReader<'_> {
    /// Reads all of `kinds`. Workloads tell who reads what, how many Pods are ready and who is scaled: where anything differs, they are
    /// read whole.
    pub(super) async fn every(&self, kinds: &[&Arc<WantedKind>]) -> Result<Vec<LiveObject>, Failure> {
        let mut live = self.list(kinds, self.whole_workloads).await?;
        let is_equal = |live: &LiveObject| self.captured.get(&live.id) == Some(&live.digest) && !live.unfinished;
        if live.len() == self.captured.len() && live.iter().all(is_equal) {
            return Ok(live);
        }
        let is_bare = |live: &LiveObject| live.component == Component::Workloads && live.raw.is_null();
        let bare: HashSet<(String, String)> = live
            .iter()
            .filter(|live| is_bare(live))
            .map(|live| (live.id.group.clone(), live.id.kind.clone()))
            .collect();
        if !bare.is_empty() {
            let is_of = |group: &str, kind: &str| bare.contains(&(group.to_owned(), kind.to_owned()));
            live.retain(|live| !is_of(&live.id.group, &live.id.kind));
            let again = kinds
                .iter()
                .copied()
                .filter(|kind| is_of(&kind.info.group, &kind.info.kind));
            live.extend(self.list(&again.collect::<Vec<_>>(), true).await?);
        }
        Ok(live)
    }

    /// Some kinds are listed at once, and worked on in order.
    async fn list(&self, kinds: &[&Arc<WantedKind>], whole_workloads: bool) -> Result<Vec<LiveObject>, Failure> {
        let mut read = Read::default();
        let is_whole = |kind: &WantedKind| {
            whole_workloads && kind.component == Component::Workloads || kind.names_others(self.selection)
        };
        // What takes longest begins first, and is worked on in its turn.
        let large = kinds.iter().enumerate();
        let large = large.filter(|(_, kind)| self.known(kind, is_whole(kind)).is_some());
        let mut begun: HashMap<usize, Listing<'_>> = large
            .take(LISTS)
            .map(|(at, kind)| (at, self.start(kind, is_whole(kind))))
            .collect();
        let mut waiting = kinds.iter().enumerate();
        let mut ahead = VecDeque::new();
        loop {
            while ahead.len() < LISTS
                && let Some((at, kind)) = waiting.next()
            {
                let listing = begun.remove(&at);
                ahead.push_back(listing.unwrap_or_else(|| self.start(kind, is_whole(kind))));
            }
            let Some(listing) = ahead.pop_front() else {
                return Ok(read.live);
            };
            self.kind(listing, &mut read).await?;
        }
    }

    /// The snapshot that knows the kind, where its metadata is worth a look.
    fn known(&self, kind: &WantedKind, whole: bool) -> Option<(&Earlier, u64)> {
        self.earlier
            .iter()
            .filter(|_| !whole)
            .find_map(|earlier| Some((earlier, earlier.holds(kind, self.secrets)?)))
            .filter(|(_, objects)| *objects >= METADATA_FROM)
    }

    fn start<'b>(&'b self, kind: &'b WantedKind, whole: bool) -> Listing<'b> {
        let collection = kind.collection(Some(self.namespace));
        let known = self.known(kind, whole);
        Listing {
            kind,
            pager: Pager::start(self.context.client.clone(), collection.clone(), known.is_some()),
            collection,
            known,
        }
    }

    async fn kind(&self, listing: Listing<'_>, read: &mut Read) -> Result<(), Failure> {
        let Listing {
            kind,
            collection,
            mut pager,
            known,
        } = listing;
        let unreadable = |error: cluster::Error| {
            let message = format!("{} cannot be read, so there is no plan: {error}", kind.display());
            Failure::new(error.class(), reasons::PREFLIGHT_FAILED, message)
        };
        let mut singles = known.map_or(0, |(_, objects)| single_reads(objects));
        let mut walk = match known {
            // One that cannot be read is not asked; whether the target itself can be is found elsewhere.
            Some((earlier, _)) => earlier.walk(&header(kind)).await.ok().flatten(),
            None => None,
        };
        loop {
            let mut page = match pager.next().await {
                Ok(Some(page)) => page,
                Ok(None) => return Ok(()),
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(unreadable(error)),
            };
            let Some(metadata) = page.take_metadata() else {
                for text in page.objects() {
                    self.object(kind, &collection, text, read)?;
                }
                continue;
            };
            let before = read.live.len();
            let changed = self.unchanged(kind, metadata, walk.as_mut(), read).await;
            if changed.len() > singles {
                read.live.truncate(before);
                pager.again_whole();
                continue;
            }
            singles -= changed.len();
            let client = &self.context.client;
            let mut whole = stream::iter(changed)
                .map(|name| {
                    let (uri, what) = (collection.item_path(&name), format!("get {} {name}", kind.display()));
                    async move { list::get_object(client, &uri, &what).await }
                })
                .buffered(GETS);
            while let Some(found) = whole.next().await {
                match found {
                    Ok(text) => self.object(kind, &collection, &text, read)?,
                    // Deleted since it was listed.
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(unreadable(error)),
                }
            }
        }
    }

    /// Takes what of a page of metadata is as an earlier snapshot has it and equal to the captured one; returns the names of what has to be
    /// read whole.
    async fn unchanged(
        &self,
        kind: &WantedKind,
        objects: Vec<Metadata>,
        mut walk: Option<&mut Walk>,
        read: &mut Read,
    ) -> Vec<String> {
        let mut whole = Vec::new();
        for metadata in objects {
            let may_be_unfinished = metadata.managers.iter().any(|manager| manager == write::RESTORING);
            let (name, uid) = (metadata.name.clone(), metadata.uid.clone());
            let resource_version = metadata.resource_version.clone();
            let labels = metadata.labels.clone().unwrap_or_default();
            let id = ObjectId::new(&kind.info.group, &kind.info.kind, &name);
            let held = self.captured.get(&id);
            let known = match walk.as_mut() {
                Some(walk) => walk.find(&name, &uid, &resource_version).await.ok().flatten(),
                None => None,
            };
            let verdict = self
                .selection
                .verdict(&kind.info, kind.component, &metadata.into_object(), &read.references);
            if held.is_none() && is_settled(kind, &verdict) {
                continue;
            }
            let equal = known.map(|entry| entry.content).filter(|digest| Some(digest) == held);
            match equal {
                Some(digest) if !may_be_unfinished => read.live.push(LiveObject {
                    component: component::of(&id.group, &id.kind),
                    id,
                    uid,
                    resource_version,
                    digest,
                    labels,
                    content: Value::Null.into(),
                    raw: Value::Null,
                    in_capture: verdict == ObjectVerdict::Capture,
                    unfinished: false,
                }),
                _ => whole.push(name),
            }
        }
        whole
    }

    fn object(&self, kind: &WantedKind, collection: &Collection, text: &[u8], read: &mut Read) -> Result<(), Failure> {
        let raw: Value = parse(text, collection)?;
        let name = raw["metadata"]["name"].as_str().unwrap_or_default();
        let id = ObjectId::new(&kind.info.group, &kind.info.kind, name);
        let verdict = self
            .selection
            .verdict(&kind.info, kind.component, &raw, &read.references);
        let in_capture = verdict == ObjectVerdict::Capture;
        let held = self.captured.get(&id);
        if in_capture {
            read.references.collect(&kind.info, &raw);
        }
        if !in_capture && held.is_none() {
            return Ok(());
        }
        let unfinished = raw["metadata"]["managedFields"]
            .as_array()
            .is_some_and(|entries| write::is_unfinished(entries));
        let labels = raw["metadata"]["labels"].clone();
        let object = normalise(raw, &kind.info, &kind.shape, self.values)
            .map_err(|e| Failure::new(Class::Invalid, reasons::PREFLIGHT_FAILED, format!("{id}: {e}")))?;
        let digest = object.digest();
        let needed = held != Some(&digest) || unfinished || kind.component == Component::Workloads;
        let (content, raw) = if needed {
            // Most objects are equal: parsing the few again costs less than a copy of each.
            (parse(&object.content, collection)?, parse(text, collection)?)
        } else {
            (Value::Null, Value::Null)
        };
        read.live.push(LiveObject {
            component: component::of(&id.group, &id.kind),
            id,
            uid: object.uid,
            resource_version: object.resource_version,
            digest,
            labels,
            content: content.into(),
            raw,
            in_capture,
            unfinished,
        });
        Ok(())
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: &[u8], collection: &Collection) -> Result<T, cluster::Error> {
    serde_json::from_slice(text).map_err(|source| cluster::Error::Unreadable {
        what: collection.to_string(),
        source,
    })
}
