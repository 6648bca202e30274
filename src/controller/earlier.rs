//! What an earlier snapshot holds of objects that did not change since: they need not be read again.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::Arc,
};

use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};

use crate::{
    api::snapshot::SecretsMode,
    capture::WantedKind,
    domain::snapshot::{Extras, KindRead},
    repository::{self, Entry, KindHeader, ManifestReader, Repository, SharedKind, SnapshotRecord, uid_mark},
};

/// What earlier snapshots say of themselves is read this many at once.
const READ_AHEAD: usize = 16;
/// How often a walk may begin anew: a page can be asked for twice.
const RESTARTS: u8 = 4;

/// A snapshot that others are compared with, or built upon.
pub struct Earlier {
    reader: ManifestReader,
    read: BTreeMap<String, KindRead>,
    secrets: SecretsMode,
    /// By workload: containers and images.
    images: HashMap<String, Vec<(String, String)>>,
}

impl Earlier {
    /// `records`, with what they say of how they were read; `None` where that is not known, so that nothing is reused.
    pub async fn all(repository: &Repository, records: &[Option<Arc<SnapshotRecord>>]) -> Vec<Option<Self>> {
        let uids: Vec<Option<String>> = records
            .iter()
            .map(|record| Some(record.as_ref()?.uid.clone()))
            .collect();
        stream::iter(uids)
            .map(|uid| async move {
                match Self::open(repository, &uid?).await {
                    Ok(earlier) => earlier,
                    Err(error) => {
                        tracing::debug!(%error, "an earlier snapshot is not reused");
                        None
                    }
                }
            })
            .buffered(READ_AHEAD)
            .collect()
            .await
    }

    async fn open(repository: &Repository, uid: &str) -> repository::Result<Option<Self>> {
        let reader = repository.manifest(uid).await?;
        let Some(extras) = reader
            .extras()
            .await?
            .and_then(|json| serde_json::from_value::<Extras>(json).ok())
        else {
            return Ok(None);
        };
        let secrets = extras.capture.and_then(|capture| capture.secrets).unwrap_or_default();
        let mut images: HashMap<String, Vec<(String, String)>> = HashMap::new();
        for image in extras.images {
            let of = images.entry(image.workload).or_default();
            of.push((image.container, image.image));
        }
        Ok(Some(Self {
            reader,
            read: extras.read,
            secrets,
            images,
        }))
    }

    /// Containers and images of a workload, as [`ImageStatus::workload`](crate::api::snapshot::ImageStatus) names it.
    pub fn images(&self, workload: &str) -> Option<&[(String, String)]> {
        self.images.get(workload).map(Vec::as_slice)
    }

    /// How many objects of `kind` it holds, if it read them by the same rules, and their Secret values as `secrets` says.
    pub fn holds(&self, kind: &WantedKind, secrets: SecretsMode) -> Option<u64> {
        let read = self.read.get(&kind.display())?;
        // Fingerprints depend on a key as well, which may have been replaced.
        let values = !kind.info.is_secret() || (secrets, self.secrets) == (SecretsMode::Include, SecretsMode::Include);
        (kind.rules.as_ref() == Some(&read.rules) && values).then_some(read.objects)
    }

    /// A walk over its entries of one kind, if it holds any in the version of `header`.
    ///
    /// # Errors
    /// The manifest cannot be read.
    pub async fn walk(&self, header: &KindHeader) -> repository::Result<Option<Walk>> {
        let mut entries = Box::pin(self.reader.entries_of(&header.group, &header.kind));
        let first = entries.try_next().await?;
        // One header for all entries of a kind: another version gave other contents.
        Ok(first.filter(|(found, _)| **found == *header).map(|(_, entry)| Walk {
            entries,
            next: Some(entry),
            at: String::new(),
            restarts: RESTARTS,
        }))
    }

    /// Begins `walk` anew, unless that was done too often.
    ///
    /// # Errors
    /// The manifest cannot be read.
    pub async fn begin_anew(&self, walk: &mut Walk, header: &KindHeader) -> repository::Result<()> {
        if walk.restarts > 0
            && let Some(again) = self.walk(header).await?
        {
            *walk = Walk {
                restarts: walk.restarts - 1,
                ..again
            };
        }
        Ok(())
    }
}

/// A kind as manifests name it.
pub fn header(kind: &WantedKind) -> KindHeader {
    KindHeader {
        group: kind.info.group.clone(),
        version: kind.info.version.clone(),
        kind: kind.info.kind.clone(),
        plural: kind.plural.clone(),
        component: format!("{:?}", kind.component),
        namespaced: true,
    }
}

type Entries = Pin<Box<dyn Stream<Item = repository::Result<(SharedKind, Entry)>> + Send>>;

/// A walk over the entries of one kind of one snapshot, beside the list of the same kind.
pub struct Walk {
    entries: Entries,
    next: Option<Entry>,
    /// The name that was asked for last.
    at: String,
    /// How often it may still begin anew.
    restarts: u8,
}

impl Walk {
    /// Whether a name that comes after `name` was asked for.
    pub fn is_past(&self, name: &str) -> bool {
        *name < *self.at
    }

    /// The entry of the same object at the same resource version. Names come in ascending order; one that does not is not found.
    ///
    /// # Errors
    /// The manifest cannot be read.
    pub async fn find(&mut self, name: &str, uid: &str, resource_version: &str) -> repository::Result<Option<&Entry>> {
        while self.next.as_ref().is_some_and(|entry| *entry.name < *name) {
            self.next = self.entries.try_next().await?.map(|(_, entry)| entry);
        }
        name.clone_into(&mut self.at);
        Ok(self.next.as_ref().filter(|entry| {
            entry.name == name
                && !uid.is_empty()
                && entry.uid == uid_mark(uid)
                && entry.resource_version == resource_version
        }))
    }
}
