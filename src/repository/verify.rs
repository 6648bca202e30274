//! Verification, end to end: every blob, every frame, every chunk, every snapshot. One pack in memory at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{
    backend::BlobInfo,
    core::Repository,
    error::{Error, Result},
    index::{Address, Bits, Key, key_of},
    journal::{Envelope, Record, WireState},
    maintain::check_pack,
    manifest::{Cursor, SnapshotDigest},
    model::SnapshotRecord,
    pack::{self, PackId, PackRecord, read_whole},
    records::Room,
};
use crate::domain::object::Digest;

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Blobs read.
    pub blobs: usize,
    /// Blobs to read.
    pub blobs_total: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Bytes to read.
    pub bytes_total: u64,
    /// Snapshots checked; this begins after the blobs.
    pub snapshots: usize,
    /// Snapshots to check.
    pub snapshots_total: usize,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Key of the blob, or what is missing.
    pub blob: String,
    /// What is wrong, all of it.
    pub problems: Vec<String>,
    /// UIDs of the snapshots that cannot be restored whole because of it. Empty: nothing needs the damaged bytes.
    pub snapshots: BTreeSet<String>,
}

/// What a verification saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Blobs read.
    pub blobs: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Chunks whose SHA-256 was computed.
    pub chunks: u64,
    /// Snapshots whose digest was computed.
    pub snapshots: usize,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Problems a finding lists; a pack full of damage does not need a line for each chunk.
const MAX_PROBLEMS: usize = 16;

#[derive(Default)]
struct Findings(BTreeMap<String, Finding>);

impl Findings {
    fn add(&mut self, blob: &str, problem: impl Into<String>) {
        let finding = self.at(blob);
        let problem = problem.into();
        if finding.problems.len() < MAX_PROBLEMS && !finding.problems.contains(&problem) {
            finding.problems.push(problem);
        }
    }

    fn at(&mut self, blob: &str) -> &mut Finding {
        self.0.entry(blob.to_owned()).or_insert_with(|| Finding {
            blob: blob.to_owned(),
            problems: Vec::new(),
            snapshots: BTreeSet::new(),
        })
    }

    /// Damage becomes a finding; anything else ends the verification.
    fn note<T>(&mut self, blob: &str, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Error::Corrupt { problem, .. }) => {
                self.add(blob, problem);
                Ok(None)
            }
            Err(error @ Error::NewerFormat { .. }) => {
                self.add(blob, error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// The number of a pack's first chunk, and its frames.
type Numbered = (u32, Vec<pack::Frame>);

/// A verification on its way.
struct Verification {
    repository: Repository,
    findings: Findings,
    bad: Bits,
    report: VerifyReport,
}

impl Repository {
    /// Reads everything and checks everything. Damage is in the report, not an error; errors are those of the backend.
    pub async fn verify(&self, mut progress: impl FnMut(Progress) + Send) -> Result<VerifyReport> {
        let mut run = Verification::new(self);
        if let Err(error) = self.refresh().await {
            if !error.is_corrupt() {
                return Err(error);
            }
            run.findings.note("journal", Err::<(), _>(error))?;
        }
        let blobs = self.inner.backend.list("").await?;
        let mut seen = Progress {
            blobs_total: blobs.len(),
            bytes_total: blobs.iter().map(|b| b.size).sum(),
            ..Progress::default()
        };
        run.journal(&blobs, &mut |bytes| {
            seen.blobs += 1;
            seen.bytes += bytes;
            progress(seen);
        })
        .await?;
        for blob in &blobs {
            if Envelope::Record.seq(&blob.key).is_some() || Envelope::Checkpoint.seq(&blob.key).is_some() {
                continue;
            }
            match blob.key.strip_prefix("packs/").and_then(|id| id.parse::<PackId>().ok()) {
                Some(id) => run.pack(id).await?,
                None if Room::holds(&blob.key) => {
                    let checked = self.check_document(&blob.key).await;
                    run.findings.note(&blob.key, checked)?;
                }
                None => run.findings.add(&blob.key, "not a blob of this repository"),
            }
            seen.blobs += 1;
            seen.bytes += blob.size;
            progress(seen);
        }
        run.missing_packs(&blobs).await?;
        let snapshots = self.snapshots(None);
        seen.snapshots_total = snapshots.len();
        run.snapshots(&snapshots, &mut || {
            seen.snapshots += 1;
            progress(seen);
        })
        .await?;
        Ok(run.finish())
    }

    /// The same for one snapshot: the packs it needs, its manifest, its digest.
    pub async fn verify_snapshot(&self, uid: &str) -> Result<VerifyReport> {
        let record = self.manifest(uid).await?.record().clone();
        let mut run = Verification::new(self);
        let mut packs: BTreeSet<PackId> = BTreeSet::new();
        let mut need = |key: Key| {
            let shared = self.shared();
            let ordinals = shared.index.ordinals(&key);
            packs.extend(ordinals.filter_map(|at| shared.pack_of(at)).map(|pack| pack.id));
        };
        for digest in record
            .segments
            .iter()
            .map(|segment| &segment.digest)
            .chain(&record.extras)
        {
            need(digest.key());
        }
        let mut cursor = Cursor::of(self, &record, false);
        loop {
            match cursor.next().await {
                Ok(Some((_, entry))) => {
                    need(entry.content.key());
                    if let Some(beside) = &entry.beside {
                        need(beside.key());
                    }
                }
                Ok(None) => break,
                // Found again, and named, below.
                Err(error) if error.is_corrupt() => break,
                Err(error) => return Err(error),
            }
        }
        for id in packs {
            run.pack(id).await?;
        }
        run.snapshots(&[Arc::new(record)], &mut || {}).await?;
        // Damage in a pack that this snapshot does not need is not its own.
        run.findings.0.retain(|_, finding| !finding.snapshots.is_empty());
        Ok(run.finish())
    }
}

impl Verification {
    fn new(repository: &Repository) -> Self {
        Self {
            repository: repository.clone(),
            findings: Findings::default(),
            bad: Bits::default(),
            report: VerifyReport::default(),
        }
    }

    fn finish(mut self) -> VerifyReport {
        self.report.findings = self.findings.0.into_values().collect();
        self.report
    }

    fn count(&mut self, bytes: usize) {
        self.report.blobs += 1;
        self.report.bytes += bytes as u64;
    }

    /// Every record and checkpoint by itself, the chain of those that count, and that none of them is missing.
    async fn journal(&mut self, blobs: &[BlobInfo], each: &mut (impl FnMut(u64) + Send)) -> Result<()> {
        let repository = self.repository.clone();
        let inner = &repository.inner;
        let listed = |kind: Envelope| -> BTreeMap<u64, &BlobInfo> {
            blobs
                .iter()
                .filter_map(|blob| Some((kind.seq(&blob.key)?, blob)))
                .collect()
        };
        let (checkpoints, records) = (listed(Envelope::Checkpoint), listed(Envelope::Record));
        let mut hash = Some((0, Digest::from_bytes([0; 32])));
        for (seq, blob) in &checkpoints {
            each(blob.size);
            let Some(bytes) = inner.backend.get(&blob.key).await? else {
                continue;
            };
            self.count(bytes.len());
            let opened = Envelope::Checkpoint.open::<WireState>(&inner.codecs, &blob.key, &bytes);
            hash = self.findings.note(&blob.key, opened)?.map(|(last, ..)| (*seq, last));
        }
        let first = checkpoints.last_key_value().map_or(0, |(seq, _)| *seq);
        for (seq, blob) in &records {
            each(blob.size);
            let Some(bytes) = inner.backend.get(&blob.key).await? else {
                continue;
            };
            self.count(bytes.len());
            let opened = Envelope::Record.open::<Record>(&inner.codecs, &blob.key, &bytes);
            let opened = self.findings.note(&blob.key, opened)?;
            if *seq <= first {
                continue;
            }
            // After damage the chain begins anew: one flipped bit is one finding.
            let continues = match (hash, &opened) {
                (Some((before, hash)), Some((previous, ..))) => before + 1 != *seq || *previous == hash,
                _ => true,
            };
            if !continues {
                self.findings.add(&blob.key, "does not continue the record before it");
            }
            hash = opened.map(|(_, own, _)| (*seq, own));
        }
        let (checkpoint, last) = {
            let shared = repository.shared();
            (shared.checkpoint, shared.state.seq)
        };
        if checkpoint > first {
            self.missing(&Envelope::Checkpoint.blob(checkpoint)).await?;
        }
        for seq in first.max(checkpoint) + 1..=last {
            if !records.contains_key(&seq) {
                self.missing(&Envelope::Record.blob(seq)).await?;
            }
        }
        Ok(())
    }

    /// A blob that was not listed: a finding unless it came since, or maintenance made it needless.
    async fn missing(&mut self, key: &str) -> Result<()> {
        if self.repository.inner.backend.get(key).await?.is_some() {
            return Ok(());
        }
        self.repository.refresh().await?;
        let checkpoint = self.repository.shared().checkpoint;
        let replaced = |kind: Envelope, slack| kind.seq(key).is_some_and(|seq| seq < checkpoint + slack);
        if !replaced(Envelope::Record, 1) && !replaced(Envelope::Checkpoint, 0) {
            self.findings.add(key, "missing");
        }
        Ok(())
    }

    async fn missing_packs(&mut self, blobs: &[BlobInfo]) -> Result<()> {
        let listed: BTreeSet<&str> = blobs.iter().map(|blob| blob.key.as_str()).collect();
        let records: Vec<PackId> = {
            let shared = self.repository.shared();
            let packs = shared.state.packs.values().map(|pack| pack.id);
            packs.filter(|id| !listed.contains(id.blob().as_str())).collect()
        };
        for id in records {
            self.pack(id).await?;
        }
        Ok(())
    }

    /// What the journal says of a pack, and where its chunks are numbered.
    fn committed(&self, id: PackId) -> Option<(PackRecord, Option<Numbered>)> {
        let shared = self.repository.shared();
        let record = shared.state.packs.values().find(|pack| pack.id == id)?.clone();
        let loaded = shared.packs.iter().find(|pack| pack.id == id);
        Some((record, loaded.map(|pack| (pack.ordinals.start, pack.frames.clone()))))
    }

    /// A pack as a whole, then each frame and chunk.
    async fn pack(&mut self, id: PackId) -> Result<()> {
        let name = id.blob();
        let blob = self.repository.inner.backend.get(&name).await;
        let blob = match blob {
            Err(error) if error.is_corrupt() => self.findings.note(&name, Err(error))?,
            other => other?,
        };
        let Some((record, loaded)) = self.committed(id) else {
            // A leftover: its own trailer must do.
            if let Some(blob) = blob {
                self.count(blob.len());
                self.findings.note(&name, read_whole(id, &blob).map(drop))?;
            }
            return Ok(());
        };
        let Some(blob) = blob else {
            self.repository.refresh().await?;
            if self.committed(id).is_some() {
                self.findings.add(&name, "missing");
                if let Some((first, frames)) = loaded {
                    self.condemn(first, &frames);
                }
            }
            return Ok(());
        };
        self.count(blob.len());
        let whole = check_pack(&record, &blob);
        self.findings.note(&name, whole)?;
        // Unreadable when the repository was opened; whoever needs its chunks finds them missing.
        let Some((first, frames)) = loaded else { return Ok(()) };
        for frame in &frames {
            let piece = blob.get(frame.offset as usize..frame.offset as usize + frame.len as usize);
            let raw = self
                .repository
                .unpack(id, frame, piece.unwrap_or_default())
                .and_then(|raw| {
                    let ranges = pack::chunk_ranges(&raw).map_err(|e| Error::corrupt(&name, e.0))?;
                    if ranges.len() != frame.chunks as usize {
                        return Err(Error::corrupt(&name, format!("frame at {} lost chunks", frame.offset)));
                    }
                    Ok((raw, ranges))
                });
            let Some((raw, ranges)) = self.findings.note(&name, raw)? else {
                self.condemn(first, std::slice::from_ref(frame));
                continue;
            };
            for (range, at) in ranges.into_iter().zip(first + frame.first..) {
                let key = key_of(&Digest::of(&raw[range]));
                self.report.chunks += 1;
                let sound = self.repository.shared().index.ordinals(&key).any(|other| other == at);
                // Maintenance may have taken the pack out of use while we read it.
                if !sound && self.committed(id).is_some() {
                    self.bad.insert(at);
                    self.findings
                        .add(&name, format!("chunk {} does not match its digest", at - first));
                }
            }
        }
        Ok(())
    }

    fn condemn(&mut self, first: u32, frames: &[pack::Frame]) {
        for frame in frames {
            for at in frame.first..frame.first + frame.chunks {
                self.bad.insert(first + at);
            }
        }
    }

    /// Whether a chunk can be read; if not, the blobs to blame.
    fn blame(&self, address: &impl Address) -> Vec<String> {
        let shared = self.repository.shared();
        let copies: Vec<u32> = shared.index.ordinals(&address.key()).collect();
        if copies.iter().any(|at| !self.bad.contains(*at)) {
            return Vec::new();
        }
        let packs: Vec<String> = copies
            .iter()
            .filter_map(|at| shared.pack_of(*at))
            .map(|p| p.id.blob())
            .collect();
        if !packs.is_empty() {
            return packs;
        }
        let unreadable: Vec<String> = shared.unreadable.keys().map(|id| id.blob()).collect();
        if unreadable.is_empty() {
            vec![format!("chunk {address}")]
        } else {
            unreadable
        }
    }

    async fn snapshots(&mut self, records: &[Arc<SnapshotRecord>], each: &mut (impl FnMut() + Send)) -> Result<()> {
        // Versions that share all segments are walked once; their verdict is the same.
        let mut walked: HashMap<Vec<Digest>, (BTreeSet<String>, Option<SnapshotDigest>)> = HashMap::new();
        for record in records {
            let key: Vec<Digest> = record.segments.iter().map(|segment| segment.digest).collect();
            let (mut blamed, digest) = if let Some(known) = walked.get(&key) {
                known.clone()
            } else {
                let verdict = self.walk(record).await?;
                // Only the newest verdict is kept: equal manifests are neighbours.
                walked.clear();
                walked.insert(key, verdict.clone());
                verdict
            };
            if let Some(digest) = &record.extras {
                blamed.extend(self.blame(digest));
            }
            self.report.snapshots += 1;
            each();
            // Deleted while we looked: nobody misses its contents.
            if self.repository.snapshot(&record.uid).is_none() {
                continue;
            }
            let name = format!("snapshot {}", record.uid);
            let actual = digest.map(|digest| digest.finish(record.digest_extra.as_ref()));
            if blamed.is_empty() && actual.is_some_and(|actual| actual != record.digest) {
                self.findings.add(&name, "its entries do not have its digest");
                blamed.insert(name);
            }
            for blob in blamed {
                let finding = self.findings.at(&blob);
                finding.snapshots.insert(record.uid.clone());
                if finding.problems.is_empty() {
                    finding.problems.push("missing".to_owned());
                }
            }
        }
        Ok(())
    }

    /// Walks a manifest: the blobs to blame for what is missing, and the digest over the entries when none is.
    async fn walk(&mut self, record: &SnapshotRecord) -> Result<(BTreeSet<String>, Option<SnapshotDigest>)> {
        let mut blamed = BTreeSet::new();
        for segment in record.segments.iter() {
            blamed.extend(self.blame(&segment.digest));
        }
        if !blamed.is_empty() {
            return Ok((blamed, None));
        }
        let mut digest = SnapshotDigest::new();
        let mut cursor = Cursor::of(&self.repository, record, false);
        loop {
            match cursor.next().await {
                Ok(None) => return Ok((blamed, Some(digest))),
                Ok(Some((kind, entry))) => {
                    digest.entry(&kind.group, &kind.kind, &entry.name, &entry.content);
                    blamed.extend(self.blame(&entry.content));
                    if let Some(beside) = &entry.beside {
                        blamed.extend(self.blame(beside));
                    }
                }
                Err(Error::SnapshotNotFound(_)) => return Ok((BTreeSet::new(), None)),
                Err(Error::Corrupt { blob, problem }) => {
                    self.findings.add(&blob, problem);
                    blamed.insert(blob);
                    return Ok((blamed, None));
                }
                Err(error) => return Err(error),
            }
        }
    }
}
