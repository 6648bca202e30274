//! Blobs as files or objects, through the `object_store` crate.

use std::{
    ops::Range,
    path::{Path as FsPath, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use jiff::Timestamp;
use object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, local::LocalFileSystem,
    path::Path,
};

use super::{Backend, BlobInfo, Call, Put};
use crate::repository::error::{Error, Result};

/// A backend over any [`ObjectStore`] that supports create-if-absent.
#[derive(Debug)]
pub struct ObjectStoreBackend {
    store: Arc<dyn ObjectStore>,
    name: String,
    /// Where staged files of torn writes lie, for the local file system only.
    directory: Option<PathBuf>,
    quota: Option<u64>,
}

impl ObjectStoreBackend {
    /// A directory, given as a path or a `file://` URL; it is made when missing.
    pub fn local(location: &str) -> Result<Self> {
        let name = format!("directory {location}");
        let call = Call {
            backend: &name,
            operation: "open",
            key: location,
        };
        let path = match location.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => PathBuf::from(path),
            Some(_) => return Err(call.failed(&"a file URL is written `file:///absolute/path`", false)),
            None => PathBuf::from(location),
        };
        std::fs::create_dir_all(&path).map_err(|e| call.failed(&e, false))?;
        let path = path.canonicalize().map_err(|e| call.failed(&e, false))?;
        let store = LocalFileSystem::new_with_prefix(&path)
            .map_err(|e| call.failed(&e, false))?
            .with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
            name,
            directory: Some(path),
            quota: None,
        })
    }

    /// Any store that the `object_store` crate speaks; `name` is how messages call it.
    pub fn new(store: Arc<dyn ObjectStore>, name: impl Into<String>) -> Self {
        Self {
            store,
            name: name.into(),
            directory: None,
            quota: None,
        }
    }

    /// Limits the bytes that the repository reports as its quota; the store itself enforces its own.
    #[must_use]
    pub fn with_quota(mut self, bytes: u64) -> Self {
        self.quota = Some(bytes);
        self
    }

    fn call<'a>(&'a self, operation: &'static str, key: &'a str) -> Call<'a> {
        Call {
            backend: &self.name,
            operation,
            key,
        }
    }
}

fn failure(call: &Call<'_>, error: &StoreError) -> Error {
    match error {
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => call.forbidden(error),
        StoreError::Generic { .. } | StoreError::JoinError { .. } => call.failed(error, !is_permanent_io(error)),
        _ => call.failed(error, false),
    }
}

/// A full or read-only disk does not heal within a retry.
fn is_permanent_io(error: &StoreError) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                std::io::ErrorKind::StorageFull
                    | std::io::ErrorKind::ReadOnlyFilesystem
                    | std::io::ErrorKind::PermissionDenied
                    | std::io::ErrorKind::QuotaExceeded
            );
        }
        source = inner.source();
    }
    false
}

fn absent<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[async_trait]
impl Backend for ObjectStoreBackend {
    async fn put_new(&self, key: &str, blob: Vec<Bytes>) -> Result<Put> {
        let call = self.call("write", key);
        let (path, payload) = (Path::from(key), PutPayload::from_iter(blob));
        call.attempt(|| {
            let options = PutOptions {
                mode: PutMode::Create,
                ..PutOptions::default()
            };
            let (path, payload) = (path.clone(), payload.clone());
            async move {
                match self.store.put_opts(&path, payload, options).await {
                    Ok(_) => Ok(Put::Created),
                    Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(Put::AlreadyExists),
                    Err(error) => Err(failure(&call, &error)),
                }
            }
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let call = self.call("read", key);
        let path = Path::from(key);
        call.attempt(|| async {
            let whole = async { self.store.get(&path).await?.bytes().await };
            absent(whole.await).map_err(|e| failure(&call, &e))
        })
        .await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        let call = self.call("read", key);
        let path = Path::from(key);
        call.attempt(|| async {
            absent(self.store.get_range(&path, range.clone()).await).map_err(|e| failure(&call, &e))
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobInfo>> {
        let call = self.call("list", prefix);
        let path = (!prefix.is_empty()).then(|| Path::from(prefix.trim_end_matches('/')));
        call.attempt(|| async {
            let found: Vec<_> = self
                .store
                .list(path.as_ref())
                .try_collect()
                .await
                .map_err(|e| failure(&call, &e))?;
            found
                .into_iter()
                .map(|meta| {
                    let modified =
                        Timestamp::from_second(meta.last_modified.timestamp()).map_err(|e| call.failed(&e, false))?;
                    Ok(BlobInfo {
                        key: meta.location.to_string(),
                        size: meta.size,
                        modified,
                    })
                })
                .collect()
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let call = self.call("delete", key);
        let path = Path::from(key);
        call.attempt(|| async {
            absent(self.store.delete(&path).await)
                .map(drop)
                .map_err(|e| failure(&call, &e))
        })
        .await
    }

    async fn sweep(&self, older_than: Timestamp) -> Result<u64> {
        let Some(directory) = self.directory.clone() else {
            return Ok(0);
        };
        let call = self.call("delete", "staged files");
        tokio::task::spawn_blocking(move || sweep_staged(&directory, older_than))
            .await
            .map_err(|e| call.failed(&e, true))?
            .map_err(|e| call.failed(&e, true))
    }

    fn quota(&self) -> Option<u64> {
        self.quota
    }
}

/// A write that died leaves its staged file `<blob>#<number>` beside the blobs, which listings hide.
fn sweep_staged(directory: &FsPath, older_than: Timestamp) -> std::io::Result<u64> {
    let mut removed = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            removed += sweep_staged(&path, older_than)?;
            continue;
        }
        let name = entry.file_name();
        let staged = name
            .to_str()
            .and_then(|name| name.rsplit_once('#'))
            .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
        let modified = Timestamp::try_from(entry.metadata()?.modified()?).map_err(std::io::Error::other)?;
        if staged && modified < older_than {
            match std::fs::remove_file(&path) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_is_written_once_read_in_parts_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let backend = ObjectStoreBackend::local(&format!("file://{}", dir.path().display())).unwrap();
        let blob = vec![Bytes::from_static(b"hello "), Bytes::from_static(b"world")];
        assert_eq!(backend.put_new("packs/a", blob.clone()).await.unwrap(), Put::Created);
        assert_eq!(backend.put_new("packs/a", blob).await.unwrap(), Put::AlreadyExists);
        assert_eq!(backend.get("packs/a").await.unwrap().unwrap(), "hello world");
        assert_eq!(backend.get_range("packs/a", 6..11).await.unwrap().unwrap(), "world");
        assert_eq!(backend.get("packs/b").await.unwrap(), None);
        assert_eq!(backend.get_range("packs/b", 0..1).await.unwrap(), None);
        let listed = backend.list("packs/").await.unwrap();
        assert_eq!((listed[0].key.as_str(), listed[0].size), ("packs/a", 11));
        assert!(backend.list("journal/").await.unwrap().is_empty());
        backend.delete("packs/a").await.unwrap();
        backend.delete("packs/a").await.unwrap();
        assert!(backend.list("").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_staged_file_of_a_dead_writer_is_swept_and_a_fresh_one_kept() {
        let dir = tempfile::tempdir().unwrap();
        let backend = ObjectStoreBackend::local(dir.path().to_str().unwrap()).unwrap();
        std::fs::create_dir(dir.path().join("packs")).unwrap();
        std::fs::write(dir.path().join("packs/a#1"), b"torn").unwrap();
        assert_eq!(backend.sweep(Timestamp::UNIX_EPOCH).await.unwrap(), 0);
        assert_eq!(backend.sweep(Timestamp::MAX).await.unwrap(), 1);
        assert_eq!(backend.sweep(Timestamp::MAX).await.unwrap(), 0);
    }
}
