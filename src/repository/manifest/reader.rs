//! Reading the manifest of a committed snapshot.

use std::sync::Arc;

use futures::{Stream, stream};

use super::{Cursor, Entry, KindHeader, Result, SharedKind};
use crate::{
    domain::object::ObjectId,
    repository::{SnapshotRecord, core::Repository, error::Error},
};

/// Reads the entries of one snapshot. Holds one segment a run in memory, whatever the size of the snapshot.
#[derive(Clone)]
pub struct ManifestReader {
    repository: Repository,
    record: Arc<SnapshotRecord>,
}

impl ManifestReader {
    pub(in crate::repository) fn new(repository: Repository, record: Arc<SnapshotRecord>) -> Self {
        Self { repository, record }
    }

    /// What the journal says of the snapshot.
    pub fn record(&self) -> &SnapshotRecord {
        &self.record
    }

    fn cursor(&self) -> Cursor {
        Cursor::of(&self.repository, &self.record, false)
    }

    /// All entries, in identity order.
    pub fn entries(&self) -> impl Stream<Item = Result<(SharedKind, Entry)>> + Send + use<> {
        stream::try_unfold(self.cursor(), |mut cursor| async move {
            Ok(cursor.next().await?.map(|entry| (entry, cursor)))
        })
    }

    /// The entries of one kind, by name. Reads only the segments that hold them.
    pub fn entries_of(
        &self,
        group: &str,
        kind: &str,
    ) -> impl Stream<Item = Result<(SharedKind, Entry)>> + Send + use<> {
        let start = (self.cursor(), false, group.to_owned(), kind.to_owned());
        stream::try_unfold(start, |(mut cursor, sought, group, kind)| async move {
            if !sought {
                cursor.seek((&group, &kind, "")).await?;
            }
            let next = cursor
                .next()
                .await?
                .filter(|(found, _)| found.group == group && found.kind == kind);
            Ok(next.map(|entry| (entry, (cursor, true, group, kind))))
        })
    }

    /// One entry, `None` when the snapshot does not hold the object.
    pub async fn get(&self, id: &ObjectId) -> Result<Option<(SharedKind, Entry)>> {
        let mut cursor = self.cursor();
        cursor.seek((&id.group, &id.kind, &id.name)).await?;
        let next = cursor.next().await?;
        Ok(next.filter(|(kind, entry)| kind.group == id.group && kind.kind == id.kind && entry.name == id.name))
    }

    /// The kinds that the snapshot holds, in order. Reads one segment a kind at most.
    pub async fn kinds(&self) -> Result<Vec<KindHeader>> {
        let mut cursor = self.cursor();
        let mut kinds: Vec<KindHeader> = Vec::new();
        while let Some((kind, _)) = cursor.next().await? {
            cursor.seek((&kind.group, &kind.kind, AFTER_ALL_NAMES)).await?;
            kinds.push(KindHeader::clone(&kind));
        }
        Ok(kinds)
    }

    /// What was given to [`set_extras`](super::ManifestBuilder::set_extras).
    pub async fn extras(&self) -> Result<Option<serde_json::Value>> {
        let Some(digest) = self.record.extras else {
            return Ok(None);
        };
        let bytes = self.repository.read_chunk(&digest).await?;
        let json = serde_json::from_slice(&bytes);
        json.map(Some)
            .map_err(|e| Error::corrupt(format!("extras {digest}"), e.to_string()))
    }
}

/// Sorts after every name: U+10FFFF is no character that a name may hold.
pub(super) const AFTER_ALL_NAMES: &str = "\u{10FFFF}";
