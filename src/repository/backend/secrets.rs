//! Blobs as Secrets of one namespace: the store that every cluster has.
//!
//! A blob is cut into parts of 900 KiB, each an immutable Secret. Part 0 is written last and is the blob: readers find it by the key
//! alone, and it says how many parts belong to it. The others carry the digest of the whole blob in their names, so that two writers of
//! one key never mix their parts.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
    sync::Mutex,
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, PartialObjectMeta, PostParams},
};
use sha2::{Digest as _, Sha256};

use super::{Backend, BlobInfo, Call, Put};
use crate::{
    api::names::FIELD_MANAGER,
    repository::{
        error::{Error, Result},
        pack::lock,
    },
};

/// Raw bytes of a part: an API server takes 1 MiB of data in a Secret.
const PART: usize = 900 << 10;
/// Secrets of a listing page; only their metadata is sent.
const PAGE: u32 = 500;
/// Parts read or written at once.
const PARALLEL: usize = 4;

/// Type of the Secrets.
pub const SECRET_TYPE: &str = "backstep.dev/repository";
const STORE_LABEL: &str = "backstep.dev/repository";
const CLASS_LABEL: &str = "backstep.dev/blob";
const PART_LABEL: &str = "backstep.dev/part";
const KEY_ANNOTATION: &str = "backstep.dev/key";
const SIZE_ANNOTATION: &str = "backstep.dev/size";
const PARTS_ANNOTATION: &str = "backstep.dev/parts";
const CONTENT_ANNOTATION: &str = "backstep.dev/content";
const DATA: &str = "data";

/// A backend over the Secrets of one namespace.
#[derive(Debug)]
pub struct SecretsBackend {
    api: Api<Secret>,
    store: String,
    name: String,
    quota: u64,
    /// Bytes stored, once known.
    used: Mutex<Option<u64>>,
    /// How blobs of several parts are cut, by key; blobs never change.
    layouts: Mutex<HashMap<String, Layout>>,
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes in {} parts", self.size, self.parts)
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Layout {
    parts: usize,
    size: u64,
    content: String,
}

impl SecretsBackend {
    /// Blobs of the store `store` (a DNS label of at most 20 characters) in `namespace`, at most `quota` bytes in all.
    pub fn new(client: Client, namespace: &str, store: &str, quota: u64) -> Result<Self> {
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if store.is_empty() || store.len() > 20 || !store.chars().all(label) {
            return Err(Error::Invalid(format!(
                "`{store}` cannot name a store of Secrets: use 1 to 20 lower-case letters, digits and dashes"
            )));
        }
        Ok(Self {
            api: Api::namespaced(client, namespace),
            store: store.to_owned(),
            name: format!("the Secrets of namespace {namespace} (store {store})"),
            quota,
            used: Mutex::default(),
            layouts: Mutex::default(),
        })
    }

    fn call<'a>(&'a self, operation: &'static str, key: &'a str) -> Call<'a> {
        Call {
            backend: &self.name,
            operation,
            key,
        }
    }

    fn secret_name(&self, key: &str, part: usize, content: &str) -> String {
        let hash = hex::encode(&Sha256::digest(key)[..20]);
        if part == 0 {
            format!("backstep-{}-{hash}", self.store)
        } else {
            format!(
                "backstep-{}-{hash}-{part}-{}",
                self.store,
                &content[..content.len().min(16)]
            )
        }
    }

    fn secret(&self, key: &str, part: usize, layout: &Layout, data: Vec<u8>) -> Secret {
        let class = key.split('/').next().unwrap_or_default();
        let labels = [
            (STORE_LABEL, self.store.clone()),
            (CLASS_LABEL, class.to_owned()),
            (PART_LABEL, if part == 0 { "first" } else { "more" }.to_owned()),
        ];
        let size = if part == 0 { layout.size } else { data.len() as u64 };
        let annotations = [
            (KEY_ANNOTATION, key.to_owned()),
            (SIZE_ANNOTATION, size.to_string()),
            (PARTS_ANNOTATION, layout.parts.to_string()),
            (CONTENT_ANNOTATION, layout.content.clone()),
        ];
        let owned = |(name, value): (&str, String)| (name.to_owned(), value);
        Secret {
            metadata: ObjectMeta {
                name: Some(self.secret_name(key, part, &layout.content)),
                labels: Some(labels.map(owned).into()),
                annotations: Some(annotations.map(owned).into()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(DATA.to_owned(), ByteString(data))])),
            type_: Some(SECRET_TYPE.to_owned()),
            immutable: Some(true),
            ..Secret::default()
        }
    }

    async fn create(&self, call: &Call<'_>, secret: &Secret) -> Result<Put> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        call.attempt(|| async {
            match self.api.create(&params, secret).await {
                Ok(_) => Ok(Put::Created),
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(Put::AlreadyExists),
                Err(error) => Err(failure(call, error)),
            }
        })
        .await
    }

    async fn read(&self, call: &Call<'_>, name: &str) -> Result<Option<Secret>> {
        call.attempt(|| async { self.api.get_opt(name).await.map_err(|e| failure(call, e)) })
            .await
    }

    async fn remove(&self, call: &Call<'_>, name: &str) -> Result<()> {
        call.attempt(|| async {
            match self.api.delete(name, &DeleteParams::background()).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                Err(error) => Err(failure(call, error)),
            }
        })
        .await
    }

    /// Metadata of this store's Secrets; without a resource version, so consistent.
    async fn metadata(&self, call: &Call<'_>, selector: &str) -> Result<Vec<PartialObjectMeta<Secret>>> {
        let mut found = Vec::new();
        let mut token = None;
        loop {
            let params = ListParams {
                label_selector: Some(format!("{STORE_LABEL}={}{selector}", self.store)),
                limit: Some(PAGE),
                continue_token: token.take(),
                ..ListParams::default()
            };
            let page = call.attempt(|| async {
                match self.api.list_metadata(&params).await {
                    Ok(page) => Ok(Some(page)),
                    // The page token expired with its snapshot of etcd: only a new list is consistent.
                    Err(kube::Error::Api(status)) if status.code == 410 => Ok(None),
                    Err(error) => Err(failure(call, error)),
                }
            });
            let Some(page) = page.await? else {
                found.clear();
                continue;
            };
            token = page.metadata.continue_.filter(|token| !token.is_empty());
            found.extend(page.items);
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Part 0 of a blob and how it is cut.
    async fn first(&self, call: &Call<'_>, key: &str) -> Result<Option<(Layout, Bytes)>> {
        let Some(secret) = self.read(call, &self.secret_name(key, 0, "")).await? else {
            lock(&self.layouts).remove(key);
            return Ok(None);
        };
        let layout = layout(secret.metadata.annotations.as_ref()).ok_or_else(|| {
            Error::corrupt(
                key,
                "the annotations of its Secret were changed; restore it from a backup of the store",
            )
        })?;
        self.remember(key, &layout);
        let data = data_of(key, secret)?;
        Ok(Some((layout, data)))
    }

    fn remember(&self, key: &str, layout: &Layout) {
        if layout.parts > 1 {
            lock(&self.layouts).insert(key.to_owned(), layout.clone());
        }
    }

    async fn part(&self, call: &Call<'_>, key: &str, part: usize, layout: &Layout) -> Result<Bytes> {
        let Some(secret) = self.read(call, &self.secret_name(key, part, &layout.content)).await? else {
            return Err(Error::corrupt(
                key,
                format!("part {part} of {} is missing", layout.parts),
            ));
        };
        let data = data_of(key, secret)?;
        let expected = part_range(part, layout.size);
        if data.len() as u64 != expected.end - expected.start {
            return Err(Error::corrupt(key, format!("part {part} has {} bytes", data.len())));
        }
        Ok(data)
    }

    async fn used(&self) -> Result<u64> {
        let known = *lock(&self.used);
        match known {
            Some(used) => Ok(used),
            None => self.measure().await,
        }
    }

    async fn measure(&self) -> Result<u64> {
        let call = self.call("list", "");
        // Leftover parts take room too, and part 0 tells the size of the whole: count what each holds.
        let mut used = 0;
        for secret in self.metadata(&call, "").await? {
            let annotations = secret.metadata.annotations.as_ref();
            let Some(layout) = layout(annotations) else { continue };
            let first = secret
                .metadata
                .labels
                .as_ref()
                .and_then(|l| l.get(PART_LABEL))
                .is_some_and(|p| p == "first");
            used += if first {
                layout.size.min(PART as u64)
            } else {
                layout.size
            };
        }
        *lock(&self.used) = Some(used);
        Ok(used)
    }

    async fn make_room(&self, needed: u64) -> Result<()> {
        if self.used().await? + needed <= self.quota {
            return Ok(());
        }
        // Others delete too: look again before refusing.
        let used = self.measure().await?;
        if used + needed <= self.quota {
            return Ok(());
        }
        Err(Error::QuotaExceeded {
            backend: self.name.clone(),
            used,
            needed,
            quota: self.quota,
        })
    }

    fn grew(&self, bytes: u64) {
        if let Some(used) = lock(&self.used).as_mut() {
            *used += bytes;
        }
    }
}

fn layout(annotations: Option<&BTreeMap<String, String>>) -> Option<Layout> {
    let annotations = annotations?;
    let size: u64 = annotations.get(SIZE_ANNOTATION)?.parse().ok()?;
    let parts: usize = annotations.get(PARTS_ANNOTATION)?.parse().ok()?;
    let content = annotations.get(CONTENT_ANNOTATION)?.clone();
    (parts > 0 && content.is_ascii()).then_some(Layout { parts, size, content })
}

fn data_of(key: &str, secret: Secret) -> Result<Bytes> {
    let data = secret.data.and_then(|mut data| data.remove(DATA));
    data.map(|data| Bytes::from(data.0))
        .ok_or_else(|| Error::corrupt(key, "its Secret holds no data"))
}

fn part_range(part: usize, size: u64) -> Range<u64> {
    let (part, len) = (part as u64, PART as u64);
    (part * len).min(size)..((part + 1) * len).min(size)
}

/// What an API server's refusal means for a store.
fn failure(call: &Call<'_>, error: kube::Error) -> Error {
    let kube::Error::Api(status) = error else {
        return call.failed(
            &error,
            !matches!(error, kube::Error::SerdeError(_) | kube::Error::BuildRequest(_)),
        );
    };
    let mut failed = match status.code {
        // A ResourceQuota refuses with 403; only the text tells it from a missing right.
        403 if status.message.contains("exceeded quota") => call.failed(
            &format!(
                "{}; raise the ResourceQuota of the operator's namespace",
                status.message
            ),
            false,
        ),
        401 | 403 => call.forbidden(&status.message),
        413 => call.failed(
            &format!(
                "{}; the API server takes less than usual, raise its request limit",
                status.message
            ),
            false,
        ),
        429 | 500..=599 => call.failed(&status.message, true),
        409 if status.reason == "Conflict" => call.failed(&status.message, true),
        _ => call.failed(&status.message, false),
    };
    if let (Error::Backend { retry_after, .. }, Some(details)) = (&mut failed, &status.details) {
        *retry_after =
            (details.retry_after_seconds > 0).then(|| Duration::from_secs(u64::from(details.retry_after_seconds)));
    }
    failed
}

#[async_trait]
impl Backend for SecretsBackend {
    async fn put_new(&self, key: &str, blob: Vec<Bytes>) -> Result<Put> {
        let call = self.call("write", key);
        let size: u64 = blob.iter().map(|piece| piece.len() as u64).sum();
        self.make_room(size).await?;
        let mut hasher = Sha256::new();
        for piece in &blob {
            hasher.update(piece);
        }
        let content = hex::encode(hasher.finalize());
        let parts = usize::try_from(size).unwrap_or(usize::MAX).div_ceil(PART).max(1);
        let layout = Layout { parts, size, content };
        let secret = |part: usize| self.secret(key, part, &layout, copy(&blob, &part_range(part, size)));
        // All others before part 0; one that exists already has the same bytes.
        stream::iter((1..parts).rev())
            .map(|part| {
                let secret = secret(part);
                async move { self.create(&call, &secret).await }
            })
            .buffer_unordered(PARALLEL)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        let put = self.create(&call, &secret(0)).await?;
        if put == Put::Created {
            self.remember(key, &layout);
            self.grew(size);
        } else if parts > 1 {
            // Somebody else's blob has the key: our parts belong to nothing, unless its content is the same.
            let theirs = self.first(&call, key).await?;
            if theirs.is_some_and(|(theirs, _)| theirs.content != layout.content) {
                for part in 1..parts {
                    self.remove(&call, &self.secret_name(key, part, &layout.content))
                        .await?;
                }
            }
        }
        Ok(put)
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let call = self.call("read", key);
        let Some((layout, first)) = self.first(&call, key).await? else {
            return Ok(None);
        };
        if first.len() as u64 != part_range(0, layout.size).end {
            return Err(Error::corrupt(key, format!("part 0 has {} bytes", first.len())));
        }
        if layout.parts == 1 {
            return Ok(Some(first));
        }
        let rest: Vec<Bytes> = stream::iter(1..layout.parts)
            .map(|part| self.part(&call, key, part, &layout))
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        let mut whole = BytesMut::with_capacity(first.len() + rest.iter().map(Bytes::len).sum::<usize>());
        whole.extend_from_slice(&first);
        for part in rest {
            whole.extend_from_slice(&part);
        }
        Ok(Some(whole.freeze()))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        let call = self.call("read", key);
        let known = lock(&self.layouts).get(key).cloned();
        let (layout, first) = match known {
            // The layout alone does not prove that the blob is still there, but a missing part does tell.
            Some(layout) if range.start >= PART as u64 => (layout, None),
            _ => match self.first(&call, key).await? {
                Some((layout, first)) => (layout, Some(first)),
                None => return Ok(None),
            },
        };
        if range.end > layout.size || range.start > range.end {
            return Err(Error::corrupt(
                key,
                format!("has {} bytes, {} expected", layout.size, range.end),
            ));
        }
        let mut bytes = BytesMut::new();
        for part in 0..layout.parts {
            let held = part_range(part, layout.size);
            let (from, to) = (range.start.max(held.start), range.end.min(held.end));
            if from >= to {
                continue;
            }
            let data = match &first {
                Some(first) if part == 0 => first.clone(),
                _ => match self.part(&call, key, part, &layout).await {
                    // Deleted, or damaged? Part 0 goes first, so it tells.
                    Err(error) if error.is_corrupt() && self.first(&call, key).await?.is_none() => return Ok(None),
                    other => other?,
                },
            };
            let index = |at: u64| usize::try_from(at - held.start).unwrap_or(usize::MAX);
            let Some(slice) = data.get(index(from)..index(to)) else {
                return Err(Error::corrupt(key, format!("part {part} has {} bytes", data.len())));
            };
            bytes.extend_from_slice(slice);
        }
        Ok(Some(bytes.freeze()))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobInfo>> {
        let call = self.call("list", prefix);
        let class = prefix.trim_end_matches('/');
        let class = if class.is_empty() {
            String::new()
        } else {
            format!(",{CLASS_LABEL}={class}")
        };
        let found = self.metadata(&call, &format!(",{PART_LABEL}=first{class}")).await?;
        let mut blobs = Vec::with_capacity(found.len());
        for secret in found {
            let annotations = secret.metadata.annotations.as_ref();
            let (Some(key), Some(layout)) = (annotations.and_then(|a| a.get(KEY_ANNOTATION)), layout(annotations))
            else {
                continue;
            };
            self.remember(key, &layout);
            let modified = secret
                .metadata
                .creation_timestamp
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
            blobs.push(BlobInfo {
                key: key.clone(),
                size: layout.size,
                modified,
            });
        }
        Ok(blobs)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let call = self.call("delete", key);
        let Some((layout, _)) = self.first(&call, key).await? else {
            return Ok(());
        };
        for part in 0..layout.parts {
            self.remove(&call, &self.secret_name(key, part, &layout.content))
                .await?;
        }
        lock(&self.layouts).remove(key);
        if let Some(used) = lock(&self.used).as_mut() {
            *used = used.saturating_sub(layout.size);
        }
        Ok(())
    }

    async fn sweep(&self, older_than: Timestamp) -> Result<u64> {
        let call = self.call("delete", "leftover parts");
        let mut owners: HashSet<(String, String)> = HashSet::new();
        let mut leftovers = Vec::new();
        for secret in self.metadata(&call, "").await? {
            let annotations = secret.metadata.annotations.as_ref();
            let (Some(key), Some(layout)) = (annotations.and_then(|a| a.get(KEY_ANNOTATION)), layout(annotations))
            else {
                continue;
            };
            let owner = (key.clone(), layout.content);
            match secret
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(PART_LABEL))
                .map(String::as_str)
            {
                Some("first") => {
                    owners.insert(owner);
                }
                Some("more") => leftovers.push((owner, secret.metadata)),
                _ => {}
            }
        }
        let mut removed = 0;
        for (owner, metadata) in leftovers {
            let old = metadata.creation_timestamp.is_none_or(|time| time.0 < older_than);
            let Some(name) = metadata.name.filter(|_| old && !owners.contains(&owner)) else {
                continue;
            };
            self.remove(&call, &name).await?;
            removed += 1;
        }
        if removed > 0 {
            *lock(&self.used) = None;
        }
        Ok(removed)
    }

    fn quota(&self) -> Option<u64> {
        Some(self.quota)
    }
}

/// The bytes of a range of a blob in pieces.
fn copy(blob: &[Bytes], range: &Range<u64>) -> Vec<u8> {
    let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let (start, end) = (index(range.start), index(range.end));
    let mut bytes = Vec::with_capacity(end - start);
    let mut at = 0;
    for piece in blob {
        let (from, to) = (start.max(at), end.min(at + piece.len()));
        if from < to {
            bytes.extend_from_slice(&piece[from - at..to - at]);
        }
        at += piece.len();
    }
    bytes
}
