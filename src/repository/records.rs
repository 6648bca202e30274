//! Documents beside the snapshots: what was approved, what came of it, and that it ran. Each is written once under a key of its
//! own and never changed; it lives as long as nobody deletes it. What a plan is bound to goes when its request is over.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    backend::Put,
    core::Repository,
    error::{Error, Result},
};
use crate::domain::object::Digest;

const MAGIC: &[u8; 4] = b"BSD1";
/// Most bytes of JSON in one document.
const MOST: usize = 64 << 20;

/// Where documents of one sort live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Items of a plan that was asked for: what an approval is bound to.
    Plans,
    /// Which executions there were: one key for each, taken once.
    Ledger,
    /// What came of finished requests.
    History,
    /// Plans that are longer than their object may be, whole.
    Reports,
}

impl Room {
    const ALL: [Self; 4] = [Self::Plans, Self::Ledger, Self::History, Self::Reports];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Plans => "plans/",
            Self::Ledger => "ledger/",
            Self::History => "history/",
            Self::Reports => "reports/",
        }
    }

    /// Whether `key` is a document's.
    pub(super) fn holds(key: &str) -> bool {
        Self::ALL.iter().any(|room| key.starts_with(room.prefix()))
    }
}

impl Repository {
    /// Writes `document` as `name` (lower-case letters, digits and `-`), unless there is one: the first writer wins.
    ///
    /// # Errors
    /// Those of the backend; `Invalid` above 64 MiB.
    pub async fn put_document(&self, room: Room, name: &str, document: &impl Serialize) -> Result<Put> {
        let raw = serde_json::to_vec(document).map_err(|e| Error::Invalid(format!("{name} is no JSON: {e}")))?;
        self.put_json(room, name, &raw).await
    }

    /// The same for a document that is JSON already.
    ///
    /// # Errors
    /// Those of [`put_document`](Self::put_document).
    pub async fn put_json(&self, room: Room, name: &str, raw: &[u8]) -> Result<Put> {
        if raw.len() > MOST {
            return Err(Error::Invalid(format!(
                "{name} has {} bytes, {MOST} are the most",
                raw.len()
            )));
        }
        let mut body = (raw.len() as u64).to_le_bytes().to_vec();
        body.extend_from_slice(&self.inner.codecs.compress(raw)?);
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(Digest::of(&body).as_bytes());
        let key = format!("{}{name}", room.prefix());
        self.inner
            .backend
            .put_new(&key, vec![Bytes::from(head), Bytes::from(body)])
            .await
    }

    /// The document `name`, `None` where there is none.
    ///
    /// # Errors
    /// `Corrupt` where it is damaged or has another shape; those of the backend.
    pub async fn document<T: DeserializeOwned>(&self, room: Room, name: &str) -> Result<Option<T>> {
        let key = format!("{}{name}", room.prefix());
        let Some(blob) = self.inner.backend.get(&key).await? else {
            return Ok(None);
        };
        let raw = self.open_document(&key, &blob)?;
        serde_json::from_slice(&raw)
            .map(Some)
            .map_err(|e| Error::corrupt(key, format!("not what it should hold: {e}")))
    }

    /// Names of the documents of a room, in ascending order.
    ///
    /// # Errors
    /// Those of the backend.
    pub async fn documents(&self, room: Room) -> Result<Vec<String>> {
        let mut names: Vec<String> = self
            .inner
            .backend
            .list(room.prefix())
            .await?
            .into_iter()
            .filter_map(|blob| blob.key.strip_prefix(room.prefix()).map(ToOwned::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Removes a document; one that is not there is fine.
    ///
    /// # Errors
    /// Those of the backend.
    pub async fn delete_document(&self, room: Room, name: &str) -> Result<()> {
        self.inner.backend.delete(&format!("{}{name}", room.prefix())).await
    }

    /// Reads the document at `key` back and compares its digest.
    pub(super) async fn check_document(&self, key: &str) -> Result<()> {
        match self.inner.backend.get(key).await? {
            Some(blob) => self.open_document(key, &blob).map(drop),
            // Removed since it was listed.
            None => Ok(()),
        }
    }

    fn open_document(&self, key: &str, blob: &[u8]) -> Result<Vec<u8>> {
        let damaged = |why: &str| Error::corrupt(key.to_owned(), why);
        let rest = blob.strip_prefix(MAGIC).ok_or_else(|| damaged("not a document"))?;
        let (digest, rest) = rest.split_at_checked(32).ok_or_else(|| damaged("cut off"))?;
        if Digest::of(rest).as_bytes().as_slice() != digest {
            return Err(damaged("its digest is another"));
        }
        let (length, body) = rest.split_at_checked(8).ok_or_else(|| damaged("cut off"))?;
        let length = length.try_into().map_or(u64::MAX, u64::from_le_bytes);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MOST {
            return Err(damaged("its length is impossible"));
        }
        self.inner.codecs.decompress(body, length).map_err(|e| damaged(&e.0))
    }
}
