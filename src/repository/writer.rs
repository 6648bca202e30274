//! Writing: one writer a capture pass, shared by all its streams and snapshots.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::{
    codec::Malformed,
    core::{MAX_RACES, Repository},
    error::{Error, Result},
    index::{Address, Index, Key, key_of},
    journal::{Op, WireSnapshot},
    manifest::{Buffer, KindHeader, ManifestBuilder, SPILL_ROW_BYTES, SharedKind},
    model::{FORMAT_VERSION, LineageKey, ParentHint, SnapshotDraft, SnapshotRecord},
    pack::{Frame, FrameGroup, MAX_CHUNK, OpenFrame, PackBody, PackId, PackRecord, Unpacked, lock},
    packer::Packer,
    shared::Touched,
    state::State,
};
use crate::domain::object::Digest;

/// Memory for frames that are not full yet; above it the largest is closed early.
const OPEN_FRAMES: usize = 3 << 20;
/// Longest life of a writer. Condemned packs are remembered for longer than that.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(3 * 24);

/// Where a chunk is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Committed,
    Writing,
}

pub(super) struct WriterInner {
    pub repository: Repository,
    started: Timestamp,
    touched: Arc<Touched>,
    packer: Mutex<Packer>,
    upload: tokio::sync::Mutex<()>,
    buffers: Mutex<Vec<Weak<tokio::sync::Mutex<Buffer>>>>,
    buffered: AtomicUsize,
    /// One copy of each kind for all builders.
    kinds: Mutex<HashSet<SharedKind>>,
}

/// Writes contents and commits snapshots. `put` and `contains` may be called from several tasks at once.
///
/// Dropped without a commit, it leaves packs that maintenance collects after a grace.
pub struct Writer {
    inner: Arc<WriterInner>,
}

impl Writer {
    pub(super) fn new(inner: WriterInner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Stores content unless the repository has it; returns its address and whether it was new. At most 16 MiB.
    pub async fn put(&self, group: FrameGroup, bytes: &[u8]) -> Result<(Digest, bool)> {
        self.inner.put(group, bytes).await
    }

    /// Whether content is stored, or was put before. What this confirms stays available to this writer's snapshots.
    pub fn contains(&self, address: &impl Address) -> bool {
        self.inner.known(address).is_some()
    }

    /// Begins the manifest of one snapshot. `previous`, normally the newest of its lineage, makes it cheap; one that was deleted
    /// meanwhile is ignored.
    #[allow(clippy::unused_async, reason = "the interface leaves room for reading ahead")]
    pub async fn manifest(&self, previous: Option<&SnapshotRecord>) -> Result<ManifestBuilder> {
        let previous = previous
            .and_then(|previous| self.inner.repository.snapshot(&previous.uid))
            .filter(|previous| previous.segments.iter().all(|segment| self.contains(&segment.digest)));
        Ok(ManifestBuilder::new(self.inner.clone(), previous))
    }

    /// Writes what is left and commits all snapshots in one journal record: all of them or none. Versions are given here.
    /// A snapshot whose UID is committed already is returned as it is.
    ///
    /// Errors: [`Error::needs_new_capture`] when contents were collected meanwhile.
    pub async fn commit(self, drafts: Vec<SnapshotDraft>) -> Result<Vec<Arc<SnapshotRecord>>> {
        let inner = self.inner;
        inner.finish().await?;
        // Whatever was put is on the backend; the journal's own index takes over from here.
        lock(&inner.packer).index = Index::default();
        let records = inner.commit(&drafts).await;
        inner.repository.drop_frames();
        records
    }
}

impl WriterInner {
    pub fn new(repository: Repository) -> Self {
        let touched = Arc::new(Touched::default());
        repository.register(&touched);
        Self {
            started: repository.now(),
            repository,
            touched,
            packer: Mutex::default(),
            upload: tokio::sync::Mutex::default(),
            buffers: Mutex::default(),
            buffered: AtomicUsize::new(0),
            kinds: Mutex::default(),
        }
    }

    pub fn known(&self, address: &impl Address) -> Option<Known> {
        let key = address.key();
        if self.repository.touch(&key, &self.touched) {
            return Some(Known::Committed);
        }
        let packer = lock(&self.packer);
        (packer.unplaced.contains(&key) || packer.index.ordinals(&key).next().is_some()).then_some(Known::Writing)
    }

    /// Like [`known`](Self::known), for content that `what` needs.
    pub fn require(&self, address: &impl Address, what: impl FnOnce() -> String) -> Result<Known> {
        self.known(address).ok_or_else(|| {
            if self.is_lost(&address.key()) {
                Error::PackCondemned {
                    what: format!("chunk {address}"),
                }
            } else {
                Error::MissingChunk {
                    digest: address.to_string(),
                    what: what(),
                }
            }
        })
    }

    pub async fn put(self: &Arc<Self>, group: FrameGroup, bytes: &[u8]) -> Result<(Digest, bool)> {
        let digest = Digest::of(bytes);
        if self.repository.touch(&key_of(&digest), &self.touched) {
            return Ok((digest, false));
        }
        let new = self.put_here(group, &digest, bytes).await?;
        Ok((digest, new))
    }

    /// Stores content in this writer's packs even when the repository has it elsewhere.
    pub async fn put_here(self: &Arc<Self>, group: FrameGroup, digest: &Digest, bytes: &[u8]) -> Result<bool> {
        if bytes.len() > MAX_CHUNK {
            return Err(Error::Invalid(format!(
                "content of {} bytes; one chunk holds at most {MAX_CHUNK}",
                bytes.len()
            )));
        }
        let key = key_of(digest);
        let full = {
            let mut packer = lock(&self.packer);
            if packer.unplaced.contains(&key) || packer.index.ordinals(&key).next().is_some() {
                return Ok(false);
            }
            packer.unplaced.insert(key);
            packer.open_bytes += bytes.len();
            packer.raw += bytes.len() as u64;
            let frame = packer.open.entry(group).or_insert_with(|| OpenFrame::new(group));
            frame.push(key, bytes);
            let full = if frame.len() >= group.target() {
                Some(group)
            } else if packer.open_bytes > OPEN_FRAMES {
                packer
                    .open
                    .values()
                    .max_by_key(|frame| frame.len())
                    .map(|frame| frame.group)
            } else {
                None
            };
            full.and_then(|group| packer.take_open(group))
        };
        if let Some(frame) = full
            && self.place(&frame)?
        {
            self.upload().await?;
        }
        Ok(true)
    }

    /// Compresses a frame into the current pack; true when that closed a pack.
    fn place(&self, frame: &Arc<OpenFrame>) -> Result<bool> {
        let raw = frame.raw();
        let compressed = self.repository.inner.codecs.compress(&raw)?;
        let raw = raw.len();
        let options = &self.repository.inner.options;
        let mut packer = lock(&self.packer);
        let packer = &mut *packer;
        let body = packer.body.get_or_insert_with(|| {
            let id = PackId((options.random)());
            // Known as ours before its blob exists, so that maintenance never takes it for a leftover.
            self.repository.shared_mut().in_flight.insert(id);
            PackBody::new(id)
        });
        let first = packer.body_first + body.push(frame, compressed, raw)?;
        for (key, ordinal) in frame.keys.iter().zip(first..) {
            packer.index.insert(*key, ordinal);
            packer.unplaced.remove(key);
        }
        packer.closing.retain(|other| !Arc::ptr_eq(other, frame));
        if body.size < options.pack_bytes {
            return Ok(false);
        }
        packer.seal();
        Ok(true)
    }

    /// Uploads all finished packs; whoever filled one waits, so that few are in memory. Their names are random, so one that exists already is ours, from a try whose answer was lost.
    async fn upload(&self) -> Result<()> {
        let _one_at_a_time = self.upload.lock().await;
        loop {
            let next = {
                let packer = lock(&self.packer);
                packer
                    .sealed
                    .iter()
                    .find_map(|(_, pack)| Some((pack.record.id, pack.blob.clone()?)))
            };
            let Some((id, blob)) = next else { return Ok(()) };
            self.repository.inner.backend.put_new(&id.blob(), blob).await?;
            for (_, pack) in &mut lock(&self.packer).sealed {
                if pack.record.id == id {
                    pack.blob = None;
                }
            }
        }
    }

    /// Closes all frames and packs and uploads them.
    pub async fn finish(&self) -> Result<()> {
        loop {
            let frame = {
                let mut packer = lock(&self.packer);
                let Some((&group, _)) = packer.open.first_key_value() else {
                    break;
                };
                let mut taken = packer.open.remove(&group);
                // Small rests compress better together, but digests among text only spoil its code.
                while let Some(frame) = &mut taken {
                    let Some((&next, more)) = packer.open.first_key_value() else {
                        break;
                    };
                    if frame.group.class() != next.class() || frame.len() + more.len() > frame.group.target() {
                        break;
                    }
                    if let Some(more) = packer.open.remove(&next) {
                        frame.absorb(more);
                    }
                }
                taken.map(|frame| packer.close(frame))
            };
            if let Some(frame) = frame
                && self.place(&frame)?
            {
                self.upload().await?;
            }
        }
        lock(&self.packer).seal();
        self.upload().await
    }

    /// Records of all packs written.
    pub fn packs(&self) -> Vec<PackRecord> {
        lock(&self.packer)
            .sealed
            .iter()
            .map(|(_, pack)| pack.record.clone())
            .collect()
    }

    /// A chunk of this writer or of the repository.
    pub async fn read(&self, digest: &Digest) -> Result<Bytes> {
        enum Place {
            Here(Bytes),
            Frame(PackId, Frame, u32, Option<Bytes>),
        }
        let key = key_of(digest);
        let place = {
            let packer = lock(&self.packer);
            let mut open = packer.open.values().chain(packer.closing.iter().map(AsRef::as_ref));
            if packer.unplaced.contains(&key) {
                open.find_map(|frame| frame.chunk(&key))
                    .map(|bytes| Place::Here(Bytes::copy_from_slice(bytes)))
            } else {
                packer
                    .index
                    .ordinals(&key)
                    .next()
                    .and_then(|ordinal| packer.find(ordinal))
                    .map(|(id, frame, slot, piece)| Place::Frame(id, frame, slot, piece))
            }
        };
        let bytes = match place {
            None => return self.read_committed(digest, &key).await,
            Some(Place::Here(bytes)) => bytes,
            Some(Place::Frame(id, frame, slot, piece)) => {
                let damaged = |damage: Malformed| Error::corrupt(id.blob(), damage.0);
                let unpacked = if let Some(piece) = piece {
                    let raw = self.repository.unpack(id, &frame, &piece)?;
                    Arc::new(Unpacked::new(raw).map_err(damaged)?)
                } else {
                    let unpacked = self.repository.frame(id, &frame).await?;
                    unpacked.ok_or_else(|| Error::PackCondemned {
                        what: format!("pack {id}"),
                    })?
                };
                unpacked.chunk(slot).map_err(damaged)?
            }
        };
        if Digest::of(&bytes) != *digest {
            return Err(Error::corrupt(format!("chunk {digest}"), "does not match its digest"));
        }
        Ok(bytes)
    }

    async fn read_committed(&self, digest: &Digest, key: &Key) -> Result<Bytes> {
        match self.repository.read_chunk(digest).await {
            // It was there when this writer began to rely on it: collected by another process since, which is no damage.
            Err(error) if error.is_corrupt() && self.is_lost(key) => Err(Error::PackCondemned {
                what: format!("chunk {digest}"),
            }),
            other => other,
        }
    }

    /// Whether this writer relies on a chunk of a pack that went out of use, without a sound copy elsewhere.
    fn is_lost(&self, key: &Key) -> bool {
        lock(&self.touched.displaced).contains(key) && self.repository.shared().sound(key).is_none()
    }

    pub fn register(&self, buffer: &Arc<tokio::sync::Mutex<Buffer>>) {
        let mut buffers = lock(&self.buffers);
        if buffers.len() == buffers.capacity() {
            buffers.retain(|buffer| buffer.strong_count() > 0);
        }
        buffers.push(Arc::downgrade(buffer));
    }

    pub fn shared_kind(&self, kind: &KindHeader) -> SharedKind {
        let mut kinds = lock(&self.kinds);
        if let Some(known) = kinds.get(kind) {
            return known.clone();
        }
        let shared = SharedKind::new(kind.clone());
        kinds.insert(shared.clone());
        shared
    }

    /// Counts one more waiting row; true when there are too many.
    pub fn buffer_grew(&self) -> bool {
        let rows = self.buffered.fetch_add(1, Ordering::Relaxed) + 1;
        rows * SPILL_ROW_BYTES > self.repository.inner.options.manifest_buffer
    }

    pub fn unbuffer(&self, rows: usize) {
        self.buffered.fetch_sub(rows, Ordering::Relaxed);
    }

    /// Writes the rows of the fullest builders until half of the memory is free.
    pub async fn spill(self: &Arc<Self>) -> Result<()> {
        let buffers: Vec<_> = lock(&self.buffers).iter().filter_map(Weak::upgrade).collect();
        let mut by_rows: Vec<_> = buffers
            .into_iter()
            .filter_map(|buffer| {
                let rows = buffer.try_lock().ok()?.rows.len();
                (rows > 0).then_some((rows, buffer))
            })
            .collect();
        by_rows.sort_by_key(|(rows, _)| std::cmp::Reverse(*rows));
        let target = self.repository.inner.options.manifest_buffer / 2;
        for (_, buffer) in by_rows {
            if self.buffered.load(Ordering::Relaxed) * SPILL_ROW_BYTES <= target {
                break;
            }
            if let Ok(mut buffer) = buffer.try_lock() {
                buffer.flush(self).await?;
            }
        }
        Ok(())
    }

    async fn commit(&self, drafts: &[SnapshotDraft]) -> Result<Vec<Arc<SnapshotRecord>>> {
        if self.repository.now().duration_since(self.started) > MAX_AGE {
            return Err(Error::WriterExpired {
                limit_hours: MAX_AGE.as_hours(),
            });
        }
        let packs = self.packs();
        let ratio = {
            let raw = lock(&self.packer).raw;
            let stored: u64 = packs.iter().map(|pack| pack.size).sum();
            move |bytes: u64| {
                if raw == 0 {
                    0
                } else {
                    u64::try_from(u128::from(bytes) * u128::from(stored) / u128::from(raw)).unwrap_or(u64::MAX)
                }
            }
        };
        let repository = &self.repository;
        let _journal = repository.inner.journal.lock().await;
        for _ in 0..MAX_RACES {
            repository.catch_up().await?;
            let op = {
                let shared = repository.shared();
                let pending: Vec<_> = drafts
                    .iter()
                    .filter(|draft| !shared.state.snapshots.contains_key(&draft.uid))
                    .collect();
                if pending.is_empty() {
                    return drafts
                        .iter()
                        .map(|draft| shared.state.snapshots.get(&draft.uid).cloned())
                        .collect::<Option<_>>()
                        .ok_or_else(|| Error::Invalid("a draft vanished while it was committed".to_owned()));
                }
                if let Some(pack) = packs.iter().find(|pack| shared.state.condemned.contains_key(&pack.id)) {
                    return Err(Error::PackCondemned {
                        what: format!("pack {}", pack.id),
                    });
                }
                let lost = lock(&self.touched.displaced)
                    .iter()
                    .find(|key| shared.sound(key).is_none())
                    .copied();
                if let Some(key) = lost {
                    return Err(Error::PackCondemned {
                        what: format!("chunk {}…", hex::encode(key)),
                    });
                }
                let snapshots = number(&shared.state, &pending, ratio)?;
                Op::Commit {
                    snapshots,
                    packs: packs.clone(),
                }
            };
            // After success the next round finds all of them.
            repository.append(op).await?;
        }
        Err(Error::Contended { attempts: MAX_RACES })
    }
}

/// Gives the versions, in the order of the drafts.
fn number(state: &State, drafts: &[&SnapshotDraft], ratio: impl Fn(u64) -> u64) -> Result<Vec<WireSnapshot>> {
    let mut next: HashMap<LineageKey, (u64, Option<u64>)> = HashMap::new();
    let mut uids = HashSet::new();
    let mut snapshots = Vec::with_capacity(drafts.len());
    for draft in drafts {
        if !uids.insert(&draft.uid) {
            return Err(Error::Invalid(format!("snapshot {} is drafted twice", draft.uid)));
        }
        let key = LineageKey::new(&draft.namespace, &draft.lineage);
        let before = state.lineages.get(&key);
        let (version, head) = next
            .entry(key.clone())
            .or_insert_with(|| before.map_or((1, None), |lineage| (lineage.next_version, lineage.head)));
        let parent = match draft.parent {
            ParentHint::Head => *head,
            ParentHint::Version(parent) if parent < *version && parent > 0 => Some(parent),
            ParentHint::Version(parent) => {
                let LineageKey { namespace, lineage } = key;
                return Err(Error::VersionNotFound {
                    namespace,
                    lineage,
                    version: parent,
                });
            }
        };
        let built = &draft.manifest;
        let mut sizes = built.sizes;
        sizes.stored = ratio(sizes.new + built.manifest_bytes);
        let record = SnapshotRecord {
            uid: draft.uid.clone(),
            namespace: draft.namespace.clone(),
            namespace_uid: draft.namespace_uid.clone(),
            name: draft.name.clone(),
            lineage: draft.lineage.clone(),
            version: *version,
            parent,
            created_at: draft.created_at,
            author: draft.author.clone(),
            safety: draft.safety,
            tags: draft.tags.clone(),
            digest: built.digest,
            format_version: FORMAT_VERSION,
            counts: built.counts,
            sizes,
            segments: built.segments.clone(),
            extras: built.extras,
            digest_extra: built.digest_extra,
        };
        let base = built.base.as_ref().and_then(|uid| state.snapshots.get(uid));
        let base = base.filter(|base| base.namespace == draft.namespace && base.lineage == draft.lineage);
        snapshots.push(WireSnapshot::write(&record, base.map(AsRef::as_ref)));
        *head = Some(*version);
        *version += 1;
    }
    Ok(snapshots)
}

impl Drop for WriterInner {
    fn drop(&mut self) {
        let packer = lock(&self.packer);
        let mut shared = self.repository.shared_mut();
        let ids = packer
            .sealed
            .iter()
            .map(|(_, pack)| pack.record.id)
            .chain(packer.body.iter().map(|body| body.id));
        for id in ids {
            shared.in_flight.remove(&id);
        }
    }
}
