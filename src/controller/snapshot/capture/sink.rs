//! Writes what a pass reads into the repository, and tells the pass what it need not read again.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map},
    sync::Arc,
};

use async_trait::async_trait;
use futures::future;
use tokio::sync::Mutex;

use super::store_failure;
use crate::{
    api::snapshot::SecretsMode,
    capture::{Failure, Identity, Item, Known, Observed, Sink, WantedKind},
    controller::{
        answers::Answers,
        earlier::{Earlier, Walk, header},
    },
    domain::snapshot::KindRead,
    repository::{self, Entry, FrameGroup, KindHeader, ManifestBuilder, ShortDigest, Writer, uid_mark},
};

/// One target: its manifest as it grows, and what is known of its objects.
pub(super) struct Lane {
    builder: Mutex<ManifestBuilder>,
    previous: Option<Earlier>,
    answers: Option<Arc<Answers>>,
    secrets: SecretsMode,
    read: Mutex<BTreeMap<String, KindRead>>,
}

impl Lane {
    /// A manifest, the snapshot before, what a rollback was answered, and what the target does with Secrets.
    pub fn new(
        builder: ManifestBuilder,
        previous: Option<Earlier>,
        answers: Option<Arc<Answers>>,
        secrets: SecretsMode,
    ) -> Self {
        Self {
            builder: Mutex::new(builder),
            previous,
            answers,
            secrets,
            read: Mutex::default(),
        }
    }

    /// What a rollback was answered of objects of `kind`.
    fn answers(&self, kind: &WantedKind) -> Option<&Answers> {
        // They do not say which images they run.
        self.answers.as_deref().filter(|_| !kind.runs_images())
    }

    /// The snapshot before, if it read `kind` by the same rules.
    fn reusable(&self, kind: &WantedKind) -> Option<(&Earlier, u64)> {
        let previous = self.previous.as_ref()?;
        Some((previous, previous.holds(kind, self.secrets)?))
    }
}

/// Walks of one kind, by target; `None` where there is nothing (more) to find.
type Walks = HashMap<usize, Option<Walk>>;

pub(super) struct RepositorySink<'a> {
    writer: &'a Writer,
    lanes: Vec<Lane>,
    walks: Mutex<HashMap<String, Walks>>,
}

impl<'a> RepositorySink<'a> {
    /// One target after the other.
    pub fn new(writer: &'a Writer, lanes: Vec<Lane>) -> Self {
        Self {
            writer,
            lanes,
            walks: Mutex::default(),
        }
    }

    /// The manifests, and how each kind was read.
    pub fn into_targets(self) -> impl Iterator<Item = (ManifestBuilder, BTreeMap<String, KindRead>)> {
        self.lanes
            .into_iter()
            .map(|lane| (lane.builder.into_inner(), lane.read.into_inner()))
    }

    async fn find(
        &self,
        header: &KindHeader,
        lane: &Lane,
        kind: &WantedKind,
        walks: &mut Walks,
        object: &Identity,
    ) -> repository::Result<Option<Known>> {
        // What was lost from the store is read again, which mends it.
        let is_kept = |known: &Known| {
            self.writer.contains(&known.content) && known.beside.is_none_or(|beside| self.writer.contains(&beside))
        };
        let answered = lane
            .answers(kind)
            .and_then(|answers| answers.find(kind, lane.secrets, object));
        if let Some(answered) = answered.filter(|answered| self.writer.contains(&answered.content)) {
            return Ok(Some(Known {
                content: answered.content,
                size: answered.size,
                beside: self.put_beside(kind, answered.beside.as_deref()).await?,
            }));
        }
        let Some((previous, _)) = lane.reusable(kind) else {
            return Ok(None);
        };
        let walk = match walks.entry(object.target) {
            hash_map::Entry::Occupied(walk) => walk.into_mut(),
            hash_map::Entry::Vacant(none) => none.insert(previous.walk(header).await?),
        };
        let Some(walk) = walk else { return Ok(None) };
        if walk.is_past(&object.name) {
            previous.begin_anew(walk, header).await?;
        }
        let found = walk.find(&object.name, &object.uid, &object.resource_version).await?;
        let known = found.map(|entry| Known {
            content: entry.content,
            size: entry.size,
            beside: entry.beside,
        });
        Ok(known.filter(is_kept))
    }

    async fn put_beside(&self, kind: &WantedKind, bytes: Option<&[u8]>) -> repository::Result<Option<ShortDigest>> {
        let Some(bytes) = bytes else { return Ok(None) };
        let group = FrameGroup::beside(&kind.info.group, &kind.info.kind);
        Ok(Some(self.writer.put(group, bytes).await?.0.into()))
    }

    async fn entry(&self, kind: &WantedKind, item: Item) -> repository::Result<(usize, Entry)> {
        let Observed { target, object } = match item {
            Item::Read(observed) => observed,
            Item::Same(
                Identity {
                    target,
                    name,
                    uid,
                    resource_version,
                },
                Known { content, size, beside },
            ) => {
                return Ok((
                    target,
                    Entry {
                        name,
                        content,
                        size,
                        beside,
                        uid: uid_mark(&uid),
                        resource_version,
                    },
                ));
            }
        };
        let (group, name) = (&kind.info.group, &kind.info.kind);
        let (content, _) = self
            .writer
            .put(FrameGroup::content(group, name), &object.content)
            .await?;
        let beside = self.put_beside(kind, object.beside.as_deref()).await?;
        let entry = Entry {
            name: object.name,
            content,
            beside,
            uid: uid_mark(&object.uid),
            resource_version: object.resource_version,
            size: u32::try_from(object.content.len()).unwrap_or(u32::MAX),
        };
        Ok((target, entry))
    }
}

#[async_trait]
impl Sink for RepositorySink<'_> {
    async fn take(&self, kind: &WantedKind, objects: Vec<Observed>) -> Result<(), Failure> {
        self.take_all(kind, objects.into_iter().map(Item::Read).collect()).await
    }

    fn expects(&self, kind: &WantedKind, targets: &[usize]) -> u64 {
        targets
            .iter()
            .map(|target| {
                let lane = &self.lanes[*target];
                let before = lane.reusable(kind).map_or(0, |(_, objects)| objects);
                let answers = lane
                    .answers(kind)
                    .map_or(0, |answers| answers.holds(kind, lane.secrets));
                before.max(answers)
            })
            .sum()
    }

    async fn known(&self, kind: &WantedKind, objects: &[Identity]) -> Result<Vec<Option<Known>>, Failure> {
        // Taken out while it is worked with: only one list of a kind runs at a time.
        let mut walks = self.walks.lock().await.remove(&kind.display()).unwrap_or_default();
        let targets: HashSet<usize> = objects.iter().map(|object| object.target).collect();
        walks.retain(|target, _| targets.contains(target));
        let header = header(kind);
        let mut known = Vec::with_capacity(objects.len());
        for object in objects {
            let found = match self
                .find(&header, &self.lanes[object.target], kind, &mut walks, object)
                .await
            {
                Ok(found) => found,
                Err(error) if error.is_transient() => return Err(store_failure(&error)),
                // Deleted meanwhile, or damaged: everything is read, and the manifest's builder says what is wrong with it.
                Err(error) => {
                    tracing::debug!(%error, "the snapshot before is not reused");
                    walks.insert(object.target, None);
                    None
                }
            };
            known.push(found);
        }
        self.walks.lock().await.insert(kind.display(), walks);
        Ok(known)
    }

    fn images(&self, target: usize, workload: &str) -> Option<&[(String, String)]> {
        self.lanes[target].previous.as_ref()?.images(workload)
    }

    async fn take_all(&self, kind: &WantedKind, items: Vec<Item>) -> Result<(), Failure> {
        let mut entries: HashMap<usize, Vec<Entry>> = HashMap::new();
        for item in items {
            let (target, entry) = self.entry(kind, item).await.map_err(|e| store_failure(&e))?;
            entries.entry(target).or_default().push(entry);
        }
        let header = header(kind);
        let adds = entries.into_iter().map(|(target, entries)| {
            let (header, lane) = (&header, &self.lanes[target]);
            async move {
                if let Some(rules) = &kind.rules {
                    let mut read = lane.read.lock().await;
                    let read = read.entry(kind.display()).or_default();
                    read.objects += entries.len() as u64;
                    read.rules.clone_from(rules);
                }
                let mut builder = lane.builder.lock().await;
                for entry in entries {
                    builder.add(header, entry).await?;
                }
                Ok::<_, repository::Error>(())
            }
        });
        future::try_join_all(adds)
            .await
            .map(drop)
            .map_err(|e| store_failure(&e))
    }
}
