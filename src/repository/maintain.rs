//! Maintenance: collecting what nothing refers to, merging packs, checkpoints. Safe beside captures in this and other processes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    backend::Put,
    core::{MAX_RACES, Repository},
    error::{Error, Result},
    index::{Address, Bits, Key},
    journal::{Envelope, Op},
    manifest::Cursor,
    model::SnapshotRecord,
    pack::{PackId, PackRecord, read_whole},
    shared::Shared,
    writer::WriterInner,
};
use crate::domain::object::Digest;

/// Packs merged in one round, so that a round stays short and its journal record small.
const MERGED_AT_ONCE: usize = 64;

/// What maintenance did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaintenanceReport {
    /// Packs taken out of use because nothing refers to their contents.
    pub condemned: usize,
    /// Packs that crashed captures left behind, taken out of use.
    pub orphans: usize,
    /// Packs whose live contents were copied into fewer ones.
    pub repacked: usize,
    /// Pack blobs deleted.
    pub deleted: usize,
    /// Bytes that the deleted packs took.
    pub freed_bytes: u64,
    /// Pieces of torn writes removed.
    pub swept: u64,
    /// Sequence number of the checkpoint written.
    pub checkpoint: Option<u64>,
    /// Journal records and checkpoints that a checkpoint made needless.
    pub pruned: usize,
    /// Why nothing was collected: a snapshot that cannot be read may need anything.
    pub skipped: Option<String>,
}

/// Which chunks live snapshots need, and where they are. Good only while [`Marks::hold`].
#[derive(Default)]
struct Marks {
    live: Bits,
    /// [`Shared::moves`] when marking began.
    moves: u64,
    /// Snapshots walked.
    snapshots: HashSet<String>,
    /// Chunks that are in no readable pack.
    missing: HashSet<Key>,
}

impl Marks {
    fn mark(&mut self, shared: &Shared, address: &impl Address) {
        let key = address.key();
        match shared.resolve(&key) {
            Some(ordinal) => {
                self.live.insert(ordinal);
            }
            None => {
                self.missing.insert(key);
            }
        }
    }

    /// Whether what was marked is still where it was: no pack went out of use or was found damaged, and no chunk turned up that was
    /// nowhere. It was nowhere when another process had moved it already, and the record that says where to was not read yet.
    fn hold(&self, shared: &Shared) -> bool {
        self.moves == shared.moves && self.missing.iter().all(|key| shared.resolve(key).is_none())
    }

    /// Whether they hold, and no snapshot is there that was not walked.
    fn are_complete(&self, shared: &Shared) -> bool {
        self.hold(shared) && shared.state.snapshots.keys().all(|uid| self.snapshots.contains(uid))
    }
}

impl Repository {
    /// Collects garbage and leftovers, merges packs, writes a checkpoint when it pays. One at a time in a process; any number of processes.
    pub async fn maintain(&self) -> Result<MaintenanceReport> {
        let _one_at_a_time = self.inner.maintenance.lock().await;
        let mut report = MaintenanceReport::default();
        self.refresh().await?;
        let mut marks = Marks::default();
        match self.mark(&mut marks).await {
            Ok(()) => {
                self.collect(&mut marks, &mut report).await?;
                self.repack(&mut marks, &mut report).await?;
            }
            Err(error) if error.is_corrupt() => report.skipped = Some(error.to_string()),
            Err(error) => return Err(error),
        }
        self.delete_condemned(&mut report).await?;
        let grace = self.inner.options.orphan_grace;
        let before = self.now().checked_sub(grace).unwrap_or(Timestamp::MIN);
        report.swept = self.inner.backend.sweep(before).await?;
        self.checkpoint(&mut report).await?;
        self.drop_frames();
        Ok(report)
    }

    /// Walks every live snapshot that was not walked yet, or all of them when the marks do not hold any more. Versions that share all
    /// segments are walked once.
    async fn mark(&self, marks: &mut Marks) -> Result<()> {
        {
            let shared = self.shared();
            if !marks.hold(&shared) {
                *marks = Marks {
                    moves: shared.moves,
                    ..Marks::default()
                };
            }
        }
        let mut walked: HashMap<Digest, Vec<Arc<SnapshotRecord>>> = HashMap::new();
        for record in self.snapshots(None) {
            if !marks.snapshots.insert(record.uid.clone()) {
                continue;
            }
            {
                let shared = self.shared();
                for digest in record
                    .segments
                    .iter()
                    .map(|segment| &segment.digest)
                    .chain(&record.extras)
                {
                    marks.mark(&shared, digest);
                }
            }
            let Some(last) = record.segments.last() else { continue };
            let same = walked.entry(last.digest).or_default();
            if same.iter().any(|other| other.segments == record.segments) {
                continue;
            }
            let mut cursor = Cursor::of(self, &record, false);
            loop {
                let entry = match cursor.next().await {
                    Ok(Some((_, entry))) => entry,
                    Ok(None) => {
                        same.push(record.clone());
                        break;
                    }
                    // Deleted by another process while we walked it.
                    Err(Error::SnapshotNotFound(_)) => break,
                    Err(error) => return Err(error),
                };
                let shared = self.shared();
                marks.mark(&shared, &entry.content);
                if let Some(beside) = &entry.beside {
                    marks.mark(&shared, beside);
                }
            }
        }
        Ok(())
    }

    /// Takes packs out of use that hold nothing live, and those that nobody committed.
    async fn collect(&self, marks: &mut Marks, report: &mut MaintenanceReport) -> Result<()> {
        let listed = self.inner.backend.list("packs/").await?;
        let grace = self.inner.options.orphan_grace;
        let old: Vec<PackId> = listed
            .iter()
            .filter(|blob| self.now().duration_since(blob.modified) >= grace)
            .filter_map(|blob| blob.key.strip_prefix("packs/")?.parse().ok())
            .collect();
        for _ in 0..MAX_RACES {
            self.mark(marks).await?;
            let _journal = self.inner.journal.lock().await;
            self.catch_up().await?;
            if !marks.are_complete(&self.shared()) {
                continue;
            }
            let touched = self.touched();
            let (dead, orphans) = {
                let shared = self.shared();
                let dead = shared.packs.iter().filter(|pack| {
                    !pack
                        .ordinals
                        .clone()
                        .any(|at| marks.live.contains(at) || touched.contains(at))
                });
                let mut dead: Vec<PackId> = dead.map(|pack| pack.id).collect();
                if marks.missing.is_empty() {
                    dead.extend(shared.unreadable.keys());
                }
                let committed: HashSet<PackId> = shared.state.packs.values().map(|pack| pack.id).collect();
                let orphan = |id: &&PackId| {
                    !committed.contains(id)
                        && !shared.in_flight.contains(id)
                        && !shared.state.condemned.contains_key(id)
                };
                (dead, old.iter().filter(orphan).copied().collect::<Vec<_>>())
            };
            if dead.is_empty() && orphans.is_empty() {
                return Ok(());
            }
            let condemn = dead.iter().chain(&orphans).copied().collect();
            if self
                .append(Op::Collect {
                    add: Vec::new(),
                    condemn,
                })
                .await?
            {
                (report.condemned, report.orphans) = (dead.len(), orphans.len());
                return Ok(());
            }
        }
        Err(Error::Contended { attempts: MAX_RACES })
    }

    /// Copies what is live out of packs that are mostly dead, and merges small ones.
    async fn repack(&self, marks: &mut Marks, report: &mut MaintenanceReport) -> Result<()> {
        let chosen = self.choose(marks);
        if chosen.is_empty() {
            return Ok(());
        }
        let writer = Arc::new(WriterInner::new(self.clone()));
        let mut copied = Bits::default();
        for id in &chosen {
            self.copy_live(*id, marks, &writer, &mut copied).await?;
        }
        writer.finish().await?;
        let add = writer.packs();
        for _ in 0..MAX_RACES {
            self.mark(marks).await?;
            let _journal = self.inner.journal.lock().await;
            self.catch_up().await?;
            if !marks.are_complete(&self.shared()) {
                continue;
            }
            let touched = self.touched();
            let condemn: Vec<PackId> = {
                let shared = self.shared();
                if add.iter().any(|pack| shared.state.condemned.contains_key(&pack.id)) {
                    return Ok(());
                }
                if add
                    .iter()
                    .any(|pack| shared.state.packs.values().any(|other| other.id == pack.id))
                {
                    report.repacked = chosen.len();
                    return Ok(());
                }
                // Whoever relied meanwhile on a chunk that was not copied keeps its pack.
                let whole = |at| copied.contains(at) || !(marks.live.contains(at) || touched.contains(at));
                let packs = shared.packs.iter().filter(|pack| chosen.contains(&pack.id));
                packs
                    .filter(|pack| pack.ordinals.clone().all(whole))
                    .map(|pack| pack.id)
                    .collect()
            };
            if condemn.is_empty() {
                return Ok(());
            }
            let repacked = condemn.len();
            if self
                .append(Op::Collect {
                    add: add.clone(),
                    condemn,
                })
                .await?
            {
                report.repacked = repacked;
                return Ok(());
            }
        }
        Err(Error::Contended { attempts: MAX_RACES })
    }

    /// Packs worth copying: less than half live, or many small ones.
    fn choose(&self, marks: &Marks) -> Vec<PackId> {
        let shared = self.shared();
        let small = self.inner.options.pack_bytes / 8;
        let (mut sparse, mut tiny) = (Vec::new(), Vec::new());
        let sizes: HashMap<PackId, u64> = shared.state.packs.values().map(|pack| (pack.id, pack.size)).collect();
        for pack in shared
            .packs
            .iter()
            .filter(|pack| !shared.quarantined.contains(&pack.id))
        {
            let (mut live, mut all) = (0u64, 0u64);
            for frame in &pack.frames {
                let first = pack.ordinals.start + frame.first;
                let kept = (first..first + frame.chunks)
                    .filter(|at| marks.live.contains(*at))
                    .count() as u64;
                // Chunks of a frame are taken to be alike in size.
                live += u64::from(frame.raw) * kept / u64::from(frame.chunks.max(1));
                all += u64::from(frame.raw);
            }
            if live * 2 < all {
                sparse.push(pack.id);
            } else if sizes.get(&pack.id).is_some_and(|size| *size < small) {
                tiny.push(pack.id);
            }
        }
        if tiny.len() >= self.inner.options.small_packs {
            sparse.extend(tiny);
        }
        sparse.truncate(MERGED_AT_ONCE);
        sparse
    }

    async fn copy_live(&self, id: PackId, marks: &Marks, writer: &Arc<WriterInner>, copied: &mut Bits) -> Result<()> {
        let (first, frames) = {
            let shared = self.shared();
            let Some(pack) = shared.packs.iter().find(|pack| pack.id == id) else {
                return Ok(());
            };
            (pack.ordinals.start, pack.frames.clone())
        };
        for frame in frames {
            let first = first + frame.first;
            if !(first..first + frame.chunks).any(|at| marks.live.contains(at)) {
                continue;
            }
            let Some(unpacked) = self.frame(id, &frame).await? else {
                return Ok(());
            };
            for (chunk, at) in unpacked.chunks().zip(first..) {
                if !marks.live.contains(at) {
                    continue;
                }
                let digest = Digest::of(&chunk);
                // A damaged chunk must stay where it is found and named, not be copied under another address.
                if self.shared().resolve(&digest.key()) == Some(at) {
                    writer.put_here(frame.group, &digest, &chunk).await?;
                    copied.insert(at);
                }
            }
        }
        Ok(())
    }

    /// Deletes the blobs of condemned packs: the journal forbids everybody to rely on them.
    async fn delete_condemned(&self, report: &mut MaintenanceReport) -> Result<()> {
        for blob in self.inner.backend.list("packs/").await? {
            let id: Option<PackId> = blob.key.strip_prefix("packs/").and_then(|id| id.parse().ok());
            let condemned = id.is_some_and(|id| self.shared().state.condemned.contains_key(&id));
            if condemned {
                self.inner.backend.delete(&blob.key).await?;
                report.deleted += 1;
                report.freed_bytes += blob.size;
            }
        }
        Ok(())
    }

    /// Writes the whole state when the journal outgrew it, then removes what came before.
    async fn checkpoint(&self, report: &mut MaintenanceReport) -> Result<()> {
        let _journal = self.inner.journal.lock().await;
        self.catch_up().await?;
        let (state, hash, seq) = {
            let shared = self.shared();
            let seq = shared.state.seq;
            let due = seq - shared.checkpoint >= self.inner.options.checkpoint_records.max(1)
                && shared.journal_bytes > shared.checkpoint_bytes;
            (due.then(|| shared.state.save()), shared.state.hash, seq)
        };
        if let Some(state) = state {
            let (bytes, _) = Envelope::Checkpoint.seal(&self.inner.codecs, &hash, &state)?;
            let size = bytes.len() as u64;
            // Pays only when it is smaller than what it replaces.
            if size < self.shared().journal_bytes {
                let blob = Envelope::Checkpoint.blob(seq);
                let put = self.inner.backend.put_new(&blob, vec![bytes.into()]).await?;
                if put == Put::Created {
                    report.checkpoint = Some(seq);
                }
                let mut shared = self.shared_mut();
                (shared.checkpoint, shared.checkpoint_bytes, shared.journal_bytes) = (seq, size, 0);
            }
        }
        report.pruned = self.prune().await?;
        Ok(())
    }

    /// Records and checkpoints before the newest checkpoint. Oldest checkpoints first: there is always one to start from.
    async fn prune(&self) -> Result<usize> {
        let checkpoint = self.shared().checkpoint;
        let mut pruned = 0;
        for (kind, last) in [
            (Envelope::Checkpoint, checkpoint.saturating_sub(1)),
            (Envelope::Record, checkpoint),
        ] {
            let mut keys: Vec<_> = self.inner.backend.list(kind.prefix()).await?;
            keys.retain(|blob| kind.seq(&blob.key).is_some_and(|seq| seq <= last));
            keys.sort_by(|a, b| a.key.cmp(&b.key));
            for blob in keys {
                self.inner.backend.delete(&blob.key).await?;
                pruned += 1;
            }
        }
        Ok(pruned)
    }
}

/// A pack as it lies on the backend, checked against what the journal says of it.
pub(super) fn check_pack(record: &PackRecord, blob: &[u8]) -> Result<()> {
    if blob.len() as u64 != record.size || Digest::of(blob) != record.sha256 {
        read_whole(record.id, blob)?;
        return Err(Error::corrupt(record.id.blob(), "another pack than the journal names"));
    }
    Ok(())
}
