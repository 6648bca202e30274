//! What reading one object back from the store takes.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use backstep::cluster::clock;
use backstep::repository::{self, Backend, BlobInfo, ObjectStoreBackend, Options, Put, Repository};
use bytes::Bytes;
use futures::TryStreamExt as _;
use jiff::Timestamp;

/// Objects that are read; the worst one counts.
const SAMPLES: usize = 12;

/// A backend that counts what is read from another.
#[derive(Debug)]
struct Counting {
    inner: ObjectStoreBackend,
    gets: AtomicU64,
    bytes: AtomicU64,
}

impl Counting {
    fn count(&self, blob: Option<Bytes>) -> Option<Bytes> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.bytes
            .fetch_add(blob.as_ref().map_or(0, |blob| blob.len() as u64), Ordering::Relaxed);
        blob
    }

    fn take(&self) -> Reads {
        Reads {
            gets: self.gets.swap(0, Ordering::Relaxed),
            bytes: self.bytes.swap(0, Ordering::Relaxed),
        }
    }
}

#[async_trait]
impl Backend for Counting {
    async fn put_new(&self, key: &str, blob: Vec<Bytes>) -> repository::Result<Put> {
        self.inner.put_new(key, blob).await
    }

    async fn get(&self, key: &str) -> repository::Result<Option<Bytes>> {
        Ok(self.count(self.inner.get(key).await?))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> repository::Result<Option<Bytes>> {
        Ok(self.count(self.inner.get_range(key, range).await?))
    }

    async fn list(&self, prefix: &str) -> repository::Result<Vec<BlobInfo>> {
        self.inner.list(prefix).await
    }

    async fn delete(&self, key: &str) -> repository::Result<()> {
        self.inner.delete(key).await
    }

    async fn sweep(&self, older_than: Timestamp) -> repository::Result<u64> {
        self.inner.sweep(older_than).await
    }
}

/// What was read from the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Requests.
    pub gets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The most that reading one object takes, of several of the newest snapshot in `store`: finding it in the manifest, its content
/// and what is kept beside it. The store is opened afresh for each, and what opening reads is not counted.
///
/// # Errors
/// The store cannot be read, or has no snapshot.
pub async fn worst_object(store: &Path) -> Result<Reads> {
    let backend = || -> Result<Arc<Counting>> {
        let location = store.to_str().context("the store's path is no text")?;
        let inner = ObjectStoreBackend::local(location)?;
        Ok(Arc::new(Counting {
            inner,
            gets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }))
    };
    let whole = Repository::open(backend()?, Options::new(clock::now)).await?;
    let record = whole
        .snapshots(None)
        .into_iter()
        .max_by_key(|record| record.counts.captured);
    let uid = record.context("the store has no snapshot")?.uid.clone();
    let manifest = whole.manifest(&uid).await?;
    let ids: Vec<_> = manifest
        .entries()
        .map_ok(|(kind, entry)| entry.id(&kind))
        .try_collect()
        .await?;
    let step = ids.len().div_ceil(SAMPLES).max(1);
    let mut worst = Reads::default();
    for id in ids.iter().step_by(step) {
        let backend = backend()?;
        let repository = Repository::open(backend.clone(), Options::new(clock::now)).await?;
        backend.take();
        let found = repository.manifest(&uid).await?.get(id).await?;
        let (_, entry) = found.with_context(|| format!("the manifest does not find {id:?}"))?;
        repository.read_chunk(&entry.content).await?;
        if let Some(beside) = &entry.beside {
            repository.read_chunk(beside).await?;
        }
        let reads = backend.take();
        worst = Reads {
            gets: worst.gets.max(reads.gets),
            bytes: worst.bytes.max(reads.bytes),
        };
    }
    Ok(worst)
}
