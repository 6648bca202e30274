//! The repository: state and index in memory, reading chunks, appending to the journal.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};

use super::{
    backend::{Backend, Put},
    error::{Error, Result},
    index::{Address, Bits, Key},
    journal::{Envelope, Op, Record, WireState},
    manifest::ManifestReader,
    model::{LineageKey, LineageState, SnapshotRecord, Usage},
    pack::{self, Codecs, Footer, Frame, PackId, PackRecord, Unpacked, lock},
    shared::{FrameCache, Location, Shared, Touched},
    state::State,
    writer::{Writer, WriterInner},
};
use crate::domain::object::Digest;

/// Lost races for a journal record before giving up.
pub(super) const MAX_RACES: u32 = 50;
/// Requests in flight when many blobs are read.
const PARALLEL: usize = 8;

/// Settings of a repository. Time and randomness come in here.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tells the time.
    pub clock: fn() -> Timestamp,
    /// 16 random bytes, for names that must not collide.
    pub random: fn() -> [u8; 16],
    /// zstd level, 1 to 22.
    pub compression_level: i32,
    /// Compressed bytes after which a pack is closed.
    pub pack_bytes: u64,
    /// How long packs and pieces that nothing refers to may belong to a capture that still runs elsewhere.
    pub orphan_grace: SignedDuration,
    /// Memory for manifest rows of unfinished snapshots, in bytes.
    pub manifest_buffer: usize,
    /// Memory for decompressed frames, in bytes.
    pub frame_cache: usize,
    /// Journal records before a checkpoint is worth its bytes.
    pub checkpoint_records: u64,
    /// Packs smaller than an eighth of `pack_bytes` before they are merged.
    pub small_packs: usize,
}

impl Options {
    /// Defaults: 4 MiB packs, one hour of grace, 18 MiB for rows and 2 MiB for frames, a checkpoint after 64 records.
    pub fn new(clock: fn() -> Timestamp) -> Self {
        Self {
            clock,
            random: rand::random,
            compression_level: 5,
            pack_bytes: 4 << 20,
            orphan_grace: SignedDuration::from_hours(1),
            manifest_buffer: 18 << 20,
            frame_cache: 2 << 20,
            checkpoint_records: 64,
            small_packs: 16,
        }
    }
}

/// A store of snapshot contents. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Repository {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub backend: Arc<dyn Backend>,
    pub options: Options,
    pub codecs: Codecs,
    shared: RwLock<Shared>,
    /// Held while the journal is read or written: one at a time in this process.
    pub journal: tokio::sync::Mutex<()>,
    /// Held by maintenance.
    pub maintenance: tokio::sync::Mutex<()>,
    frames: Mutex<FrameCache>,
}

/// A record of the journal as it was read.
struct Read {
    seq: u64,
    hash: Digest,
    record: Record,
    bytes: u64,
}

impl Repository {
    /// Opens a repository, or begins one in an empty place. Reads the newest checkpoint, the journal since, and the pack footers.
    ///
    /// Errors: `NewerFormat`, `Corrupt` naming a damaged journal blob, or those of the backend. Damaged packs do not hinder opening.
    pub async fn open(backend: Arc<dyn Backend>, options: Options) -> Result<Self> {
        let repository = Self {
            inner: Arc::new(Inner {
                codecs: Codecs::new(options.compression_level),
                backend,
                options,
                shared: RwLock::default(),
                journal: tokio::sync::Mutex::default(),
                maintenance: tokio::sync::Mutex::default(),
                frames: Mutex::default(),
            }),
        };
        repository.refresh().await?;
        repository.check_for_gaps().await?;
        Ok(repository)
    }

    /// A record beyond the last one read means that one between them is lost.
    async fn check_for_gaps(&self) -> Result<()> {
        for _ in 0..MAX_RACES {
            let listed = self.inner.backend.list(Envelope::Record.prefix()).await?;
            let newest = listed
                .iter()
                .filter_map(|blob| Envelope::Record.seq(&blob.key))
                .max()
                .unwrap_or(0);
            let seq = self.shared().state.seq;
            if newest <= seq {
                return Ok(());
            }
            self.refresh().await?;
            if self.shared().state.seq == seq {
                return Err(Error::corrupt(
                    Envelope::Record.blob(seq + 1),
                    "missing, though later records exist",
                ));
            }
        }
        Err(Error::Contended { attempts: MAX_RACES })
    }

    pub(super) fn shared(&self) -> RwLockReadGuard<'_, Shared> {
        self.inner.shared.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn shared_mut(&self) -> RwLockWriteGuard<'_, Shared> {
        self.inner.shared.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Timestamp {
        (self.inner.options.clock)()
    }

    /// Reads what others committed since.
    pub async fn refresh(&self) -> Result<()> {
        let _journal = self.inner.journal.lock().await;
        self.catch_up().await
    }

    /// What the repository holds.
    pub fn usage(&self) -> Usage {
        let shared = self.shared();
        let packs: u64 = shared.state.packs.values().map(|pack| pack.size).sum();
        Usage {
            stored_bytes: packs + shared.journal_bytes + shared.checkpoint_bytes,
            packs: shared.state.packs.len(),
            snapshots: shared.state.snapshots.len(),
            quota: self.inner.backend.quota(),
        }
    }

    /// A snapshot by the UID of its object.
    pub fn snapshot(&self, uid: &str) -> Option<Arc<SnapshotRecord>> {
        self.shared().state.snapshots.get(uid).cloned()
    }

    /// The snapshots of a lineage, or all, by lineage and ascending version.
    pub fn snapshots(&self, lineage: Option<&LineageKey>) -> Vec<Arc<SnapshotRecord>> {
        let shared = self.shared();
        match lineage {
            Some(key) => shared.state.lineage(key).cloned().collect(),
            None => shared.state.versions.values().cloned().collect(),
        }
    }

    /// Where a lineage stands; `None` before its first snapshot.
    pub fn lineage(&self, key: &LineageKey) -> Option<LineageState> {
        self.shared().state.lineages.get(key).copied()
    }

    /// Begins a capture pass.
    pub async fn writer(&self) -> Result<Writer> {
        self.refresh().await?;
        Ok(Writer::new(WriterInner::new(self.clone())))
    }

    /// Opens the manifest of a snapshot.
    pub async fn manifest(&self, uid: &str) -> Result<ManifestReader> {
        if self.snapshot(uid).is_none() {
            self.refresh().await?;
        }
        let record = self
            .snapshot(uid)
            .ok_or_else(|| Error::SnapshotNotFound(uid.to_owned()))?;
        Ok(ManifestReader::new(self.clone(), record))
    }

    /// Forgets snapshots; their space comes back with [`maintain`](Self::maintain). UIDs that are not there are fine.
    pub async fn delete(&self, uids: &[String]) -> Result<()> {
        let _journal = self.inner.journal.lock().await;
        for _ in 0..MAX_RACES {
            self.catch_up().await?;
            let uids: Vec<_> = {
                let shared = self.shared();
                uids.iter()
                    .filter(|uid| shared.state.snapshots.contains_key(*uid))
                    .cloned()
                    .collect()
            };
            if uids.is_empty() || self.append(Op::Delete { uids }).await? {
                return Ok(());
            }
        }
        Err(Error::Contended { attempts: MAX_RACES })
    }

    /// Says that a version is live, as after a rollback to it: the next snapshot descends from it.
    pub async fn set_head(&self, key: &LineageKey, version: u64) -> Result<()> {
        let _journal = self.inner.journal.lock().await;
        for _ in 0..MAX_RACES {
            self.catch_up().await?;
            let head = {
                let shared = self.shared();
                let exists = shared.state.versions.contains_key(&(key.clone(), version));
                exists.then(|| shared.state.lineages.get(key).and_then(|lineage| lineage.head))
            };
            let Some(head) = head else {
                let LineageKey { namespace, lineage } = key.clone();
                return Err(Error::VersionNotFound {
                    namespace,
                    lineage,
                    version,
                });
            };
            let LineageKey { namespace, lineage } = key.clone();
            if head == Some(version)
                || self
                    .append(Op::SetHead {
                        namespace,
                        lineage,
                        version,
                    })
                    .await?
            {
                return Ok(());
            }
        }
        Err(Error::Contended { attempts: MAX_RACES })
    }

    /// The content at an address, compared with the whole of it.
    ///
    /// Errors: `Corrupt` when it is damaged or not there.
    pub async fn read_chunk<A: Address>(&self, address: &A) -> Result<Bytes> {
        let key = address.key();
        let mut problem = None;
        // Each time that the journal has moved on, the chunk may have been moved again.
        for attempt in 1..=MAX_RACES {
            let before = self.shared().state.seq;
            let locations = self.shared().locations(&key);
            for location in locations {
                match self.read_at(&location, address).await {
                    Ok(Some(bytes)) => return Ok(bytes),
                    // Collected by another process; the journal says where the chunk went.
                    Ok(None) => problem = Some(Error::corrupt(location.pack.blob(), "missing")),
                    Err(error) if error.is_corrupt() => {
                        self.shared_mut().quarantine(location.pack);
                        problem = Some(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            if attempt < MAX_RACES {
                self.refresh().await?;
                if attempt > 1 && self.shared().state.seq == before {
                    break;
                }
            }
        }
        Err(problem.unwrap_or_else(|| {
            let shared = self.shared();
            let unreadable: Vec<_> = shared
                .unreadable
                .iter()
                .map(|(id, why)| format!("{} ({why})", id.blob()))
                .collect();
            let hint = if unreadable.is_empty() {
                String::new()
            } else {
                format!("; unreadable: {}", unreadable.join(", "))
            };
            Error::corrupt(format!("chunk {address}"), format!("in no readable pack{hint}"))
        }))
    }

    async fn read_at(&self, location: &Location, address: &impl Address) -> Result<Option<Bytes>> {
        let Some(frame) = self.frame(location.pack, &location.frame).await? else {
            return Ok(None);
        };
        let problem = match frame.chunk(location.slot) {
            Ok(chunk) if address.is_of(&Digest::of(&chunk)) => return Ok(Some(chunk)),
            Ok(_) => format!("chunk {address} does not match its digest"),
            Err(damage) => damage.0,
        };
        // Damage kept in memory would outlive its repair.
        lock(&self.inner.frames).forget((location.pack, location.frame.offset));
        Err(Error::corrupt(location.pack.blob(), problem))
    }

    /// A decompressed frame, `None` when its pack is gone.
    pub(super) async fn frame(&self, id: PackId, frame: &Frame) -> Result<Option<Arc<Unpacked>>> {
        let key = (id, frame.offset);
        if let Some(unpacked) = lock(&self.inner.frames).get(key) {
            return Ok(Some(unpacked));
        }
        let range = u64::from(frame.offset)..u64::from(frame.offset) + u64::from(frame.len);
        let Some(bytes) = self.inner.backend.get_range(&id.blob(), range).await? else {
            return Ok(None);
        };
        let unpacked = Unpacked::new(self.unpack(id, frame, &bytes)?);
        let unpacked = Arc::new(unpacked.map_err(|damage| Error::corrupt(id.blob(), damage.0))?);
        lock(&self.inner.frames).put(key, &unpacked, self.inner.options.frame_cache);
        Ok(Some(unpacked))
    }

    /// Decompresses the bytes of a frame.
    pub(super) fn unpack(&self, id: PackId, frame: &Frame, bytes: &[u8]) -> Result<Bytes> {
        let corrupt = |problem: String| Error::corrupt(id.blob(), format!("frame at {}: {problem}", frame.offset));
        if bytes.len() != frame.len as usize {
            return Err(corrupt(format!("{} bytes instead of {}", bytes.len(), frame.len)));
        }
        let raw = self
            .inner
            .codecs
            .decompress(bytes, frame.raw as usize)
            .map_err(|e| corrupt(e.0))?;
        if raw.len() != frame.raw as usize {
            return Err(corrupt(format!(
                "{} bytes decompressed instead of {}",
                raw.len(),
                frame.raw
            )));
        }
        Ok(raw.into())
    }

    /// Gives the memory of cached frames back.
    pub(super) fn drop_frames(&self) {
        *lock(&self.inner.frames) = FrameCache::default();
    }

    /// A new writer's claims on chunks, which maintenance honours.
    pub(super) fn register(&self, touched: &Arc<Touched>) {
        let mut shared = self.shared_mut();
        shared.writers.retain(|writer| writer.strong_count() > 0);
        shared.writers.push(Arc::downgrade(touched));
    }

    /// Chunks that writers of this process rely on.
    pub(super) fn touched(&self) -> Bits {
        let mut all = Bits::default();
        for writer in self.shared().writers.iter().filter_map(Weak::upgrade) {
            all.union(&lock(&writer.bits));
        }
        all
    }

    /// Whether a sound copy of a chunk is committed; a writer that asks relies on it from now on.
    pub(super) fn touch(&self, key: &Key, touched: &Touched) -> bool {
        let shared = self.shared();
        match shared.sound(key) {
            Some(ordinal) => {
                lock(&touched.bits).insert(ordinal);
                true
            }
            None => false,
        }
    }

    /// What was committed on a store that was emptied or replaced underneath would rely on contents that are gone.
    async fn still_there(&self, seq: u64) -> Result<()> {
        let blob = Envelope::Record.blob(seq);
        if seq == 0 || self.inner.backend.get(&blob).await?.is_some() {
            return Ok(());
        }
        // A checkpoint stands for the records that were pruned behind it.
        if self
            .newest_checkpoint()
            .await?
            .is_none_or(|(checkpoint, _)| checkpoint < seq)
        {
            return Err(Error::corrupt(
                blob,
                "the newest record that was read before is gone: the store was emptied or replaced while it was in use; bring \
                 it back, or restart the operator to begin with what is there now",
            ));
        }
        Ok(())
    }

    /// Sequence number and size of the newest checkpoint.
    async fn newest_checkpoint(&self) -> Result<Option<(u64, u64)>> {
        let listed = self.inner.backend.list(Envelope::Checkpoint.prefix()).await?;
        Ok(listed
            .iter()
            .filter_map(|blob| Some((Envelope::Checkpoint.seq(&blob.key)?, blob.size)))
            .max())
    }

    /// Folds in what the journal holds beyond our state. The caller holds the journal lock.
    pub(super) async fn catch_up(&self) -> Result<()> {
        for _ in 0..MAX_RACES {
            let (seq, hash) = {
                let shared = self.shared();
                (shared.state.seq, shared.state.hash)
            };
            let records = self.read_journal(seq, hash).await?;
            // A record that we read may have been written into a hole that pruning left: only a checkpoint tells, so ask after reading.
            match self.newest_checkpoint().await? {
                Some((checkpoint, bytes)) if checkpoint > seq => {
                    self.restore(checkpoint, bytes).await?;
                }
                _ if records.is_empty() => return Ok(()),
                _ => self.fold(records).await?,
            }
        }
        Err(Error::Contended { attempts: MAX_RACES })
    }

    /// Records after `start` until there is none.
    async fn read_journal(&self, start: u64, mut hash: Digest) -> Result<Vec<Read>> {
        let mut seq = start;
        let mut records = Vec::new();
        let mut window = 1;
        loop {
            let reads = (seq + 1..=seq + window).map(|seq| async move {
                let bytes = self.inner.backend.get(&Envelope::Record.blob(seq)).await?;
                Ok::<_, Error>((seq, bytes))
            });
            let found: Vec<_> = stream::iter(reads).buffered(PARALLEL).try_collect().await?;
            for (at, bytes) in found {
                let Some(bytes) = bytes else { return Ok(records) };
                let blob = Envelope::Record.blob(at);
                let (previous, own, record) = Envelope::Record.open(&self.inner.codecs, &blob, &bytes)?;
                if previous != hash {
                    // Not ours to judge when a checkpoint took our place meanwhile, and we read what was written into the hole behind it.
                    if self
                        .newest_checkpoint()
                        .await?
                        .is_some_and(|(checkpoint, _)| checkpoint > start)
                    {
                        return Ok(records);
                    }
                    return Err(Error::corrupt(blob, "does not continue the record before it"));
                }
                records.push(Read {
                    seq: at,
                    hash: own,
                    record,
                    bytes: bytes.len() as u64,
                });
                (seq, hash) = (at, own);
            }
            window = PARALLEL as u64;
        }
    }

    /// Takes a checkpoint's state; leaves all as it is when a newer one replaced it meanwhile.
    async fn restore(&self, seq: u64, size: u64) -> Result<()> {
        let blob = Envelope::Checkpoint.blob(seq);
        let Some(bytes) = self.inner.backend.get(&blob).await? else {
            return Ok(());
        };
        let (hash, _, wire) = Envelope::Checkpoint.open::<WireState>(&self.inner.codecs, &blob, &bytes)?;
        let state = State::restore(wire, hash).map_err(|e| Error::corrupt(&blob, e))?;
        if state.seq != seq {
            return Err(Error::corrupt(blob, format!("holds the state of record {}", state.seq)));
        }
        let footers = self.read_footers(state.packs.values()).await?;
        let mut shared = self.shared_mut();
        shared.state = state;
        (shared.checkpoint, shared.checkpoint_bytes, shared.journal_bytes) = (seq, size, 0);
        shared.adopt(footers);
        Ok(())
    }

    async fn fold(&self, records: Vec<Read>) -> Result<()> {
        let mut added: BTreeMap<PackId, &PackRecord> = BTreeMap::new();
        for read in &records {
            match &read.record.op {
                Op::Commit { packs, .. } => added.extend(packs.iter().map(|pack| (pack.id, pack))),
                Op::Collect { add, condemn } => {
                    added.retain(|id, _| !condemn.contains(id));
                    added.extend(add.iter().map(|pack| (pack.id, pack)));
                }
                Op::Delete { .. } | Op::SetHead { .. } => {}
            }
        }
        let footers = self.read_footers(added.into_values()).await?;
        let mut shared = self.shared_mut();
        let folded = records.iter().try_for_each(|read| {
            let applied = shared.state.apply(read.seq, read.hash, &read.record);
            shared.journal_bytes += read.bytes;
            applied.map_err(|e| Error::corrupt(Envelope::Record.blob(read.seq), e))
        });
        // Packs of the records before a bad one are known only now.
        shared.adopt(footers);
        folded
    }

    /// Reads the footers of packs that are not loaded yet. One that is damaged or missing is told as such, not an error.
    async fn read_footers(
        &self,
        packs: impl Iterator<Item = &PackRecord>,
    ) -> Result<HashMap<PackId, Result<Footer, String>>> {
        let wanted: Vec<_> = {
            let shared = self.shared();
            let known: HashSet<PackId> = shared.packs.iter().map(|pack| pack.id).collect();
            packs.filter(|pack| !known.contains(&pack.id)).cloned().collect()
        };
        let reads = wanted.into_iter().map(|pack| async move {
            let tail = self
                .inner
                .backend
                .get_range(&pack.id.blob(), pack::tail_range(&pack))
                .await;
            let footer = match tail {
                Ok(Some(tail)) => match pack::read_tail(&tail, pack.size) {
                    Ok(footer) if footer.keys.len() == pack.chunks as usize => Ok(footer),
                    Ok(_) => Err("footer does not hold the chunks that the journal names".to_owned()),
                    Err(malformed) => Err(malformed.0),
                },
                Ok(None) => Err("missing".to_owned()),
                Err(error @ Error::Forbidden { .. }) => return Err(error),
                // Truncated blobs fail here too: the range is not there.
                Err(error) if !error.is_transient() => Err(error.to_string()),
                Err(error) => return Err(error),
            };
            Ok((pack.id, footer))
        });
        stream::iter(reads).buffer_unordered(PARALLEL).try_collect().await
    }

    /// Writes the next record. False when another writer was faster, or when ours fell into a pruned hole: read on and decide again.
    /// The caller holds the journal lock and has caught up.
    pub(super) async fn append(&self, op: Op) -> Result<bool> {
        let (seq, previous) = {
            let shared = self.shared();
            (shared.state.seq + 1, shared.state.hash)
        };
        self.still_there(seq - 1).await?;
        let at = self.now();
        let nonce = hex::encode((self.inner.options.random)());
        let record = Record { at, nonce, op };
        let (bytes, hash) = Envelope::Record.seal(&self.inner.codecs, &previous, &record)?;
        let blob = Envelope::Record.blob(seq);
        let bytes = Bytes::from(bytes);
        if self.inner.backend.put_new(&blob, vec![bytes.clone()]).await? == Put::AlreadyExists {
            // After a lost answer it is our own record that is there.
            let there = self.inner.backend.get(&blob).await?;
            if there.as_ref() != Some(&bytes) {
                return Ok(false);
            }
        }
        if self
            .newest_checkpoint()
            .await?
            .is_some_and(|(checkpoint, _)| checkpoint >= seq)
        {
            self.inner.backend.delete(&blob).await?;
            return Ok(false);
        }
        self.fold(vec![Read {
            seq,
            hash,
            record,
            bytes: bytes.len() as u64,
        }])
        .await?;
        Ok(true)
    }
}
