//! Builds the manifest of one snapshot while its objects stream by, holding only what differs from the previous one.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::{
    Buffer, ChunkSource, Cursor, Entry, KindHeader, Result, SharedKind, SnapshotDigest,
    reader::AFTER_ALL_NAMES,
    segment::{MAX_ROWS, Row},
    sort_key,
};
use crate::{
    domain::object::Digest,
    repository::{
        Counts, SegmentRef, Sizes, SnapshotRecord,
        error::Error,
        pack::FrameGroup,
        writer::{Known, WriterInner},
    },
};

/// Runs above which a manifest is written anew as one base.
const MAX_RUNS: usize = 32;
/// Deltas of fewer rows than this are never a reason to write the base anew.
const MIN_COMPACTION: u64 = 32;
/// Longest name: twice what an API server can store in its keys.
const MAX_NAME: usize = 1024;

/// Where the walk over the previous snapshot stands for one kind.
struct KindState {
    header: SharedKind,
    last: Option<Box<str>>,
    /// The next entry of the previous snapshot, and the walk it came from; dropped at the last one.
    walk: Option<Box<(Cursor, Entry)>>,
    /// The previous snapshot captured the kind with the same header.
    same_header: bool,
}

/// Takes the entries of one snapshot. Entries of a kind normally come by ascending name; other orders work, only slower.
pub struct ManifestBuilder {
    writer: Arc<WriterInner>,
    previous: Option<Arc<SnapshotRecord>>,
    buffer: Arc<Mutex<Buffer>>,
    states: Vec<KindState>,
    current: usize,
    counts: Counts,
    logical: i64,
    new: u64,
    disordered: bool,
    extras: Option<serde_json::Value>,
    digest_extra: Option<Digest>,
}

/// A finished manifest, to be committed with its draft.
#[derive(Clone, Debug)]
pub struct BuiltManifest {
    /// Digest of the snapshot.
    pub digest: Digest,
    /// Entries, compared with the previous snapshot.
    pub counts: Counts,
    /// Bytes; `stored` is known only after the commit.
    pub sizes: Sizes,
    pub(in crate::repository) segments: Arc<[SegmentRef]>,
    pub(in crate::repository) extras: Option<Digest>,
    pub(in crate::repository) digest_extra: Option<Digest>,
    pub(in crate::repository) manifest_bytes: u64,
    /// UID of the snapshot it was built upon.
    pub(in crate::repository) base: Option<String>,
}

impl ManifestBuilder {
    pub(in crate::repository) fn new(writer: Arc<WriterInner>, previous: Option<Arc<SnapshotRecord>>) -> Self {
        let first_run = previous
            .iter()
            .flat_map(|p| p.segments.iter())
            .map(|s| s.run + 1)
            .max()
            .unwrap_or(0);
        let buffer = Arc::new(Mutex::new(Buffer {
            first_run,
            ..Buffer::default()
        }));
        writer.register(&buffer);
        Self {
            writer,
            buffer,
            logical: previous.as_ref().map_or(0, |p| p.sizes.logical.cast_signed()),
            previous,
            states: Vec::new(),
            current: 0,
            counts: Counts::default(),
            new: 0,
            disordered: false,
            extras: None,
            digest_extra: None,
        }
    }

    /// The entry of the previous snapshot, so that an object with the same UID and resource version need not be parsed.
    /// Call it in the order of [`add`](Self::add), right before it.
    pub async fn previous_entry(&mut self, kind: &KindHeader, name: &str) -> Result<Option<Entry>> {
        if self.previous.is_none() {
            return Ok(None);
        }
        let at = self.state(kind).await?;
        if self.states[at].last.as_deref().is_some_and(|last| name <= last) {
            return self.look_up(at, name).await;
        }
        self.skip_to(at, Some(name)).await?;
        let state = &self.states[at];
        Ok(state
            .walk
            .as_ref()
            .map(|walk| &walk.1)
            .filter(|entry| state.same_header && entry.name == name)
            .cloned())
    }

    /// Adds an entry whose content, and what is kept beside it, were put before. The last of two entries with one identity counts.
    pub async fn add(&mut self, kind: &KindHeader, entry: Entry) -> Result<()> {
        if entry.name.is_empty() || entry.name.len() > MAX_NAME {
            return Err(Error::Invalid(format!(
                "a name has 1 to {MAX_NAME} bytes, not {}",
                entry.name.len()
            )));
        }
        let known = self
            .writer
            .require(&entry.content, || format!("the content of {}", entry.id(kind)))?;
        if let Some(beside) = &entry.beside {
            self.writer
                .require(beside, || format!("what is kept beside {}", entry.id(kind)))?;
        }
        let at = self.state(kind).await?;
        let in_order = self.states[at].last.as_deref().is_none_or(|last| &*entry.name > last);
        let before = if in_order {
            self.skip_to(at, Some(&entry.name)).await?;
            match self.states[at].walk.take() {
                Some(mut walk) if walk.1.name == entry.name => {
                    let kind = &self.states[at].header;
                    match walk
                        .0
                        .next()
                        .await?
                        .filter(|(next, _)| next.group == kind.group && next.kind == kind.kind)
                    {
                        Some((_, next)) => {
                            let before = std::mem::replace(&mut walk.1, next);
                            self.states[at].walk = Some(walk);
                            Some(before)
                        }
                        None => Some(walk.1),
                    }
                }
                walk => {
                    self.states[at].walk = walk;
                    None
                }
            }
        } else {
            self.disordered = true;
            self.look_up(at, &entry.name).await?
        };
        self.counts.captured += 1;
        match &before {
            Some(before) if before.content == entry.content => self.counts.unchanged += 1,
            other => {
                *if other.is_some() {
                    &mut self.counts.changed
                } else {
                    &mut self.counts.added
                } += 1;
                if known == Known::Writing {
                    self.new += u64::from(entry.size);
                }
            }
        }
        self.logical += i64::from(entry.size) - before.as_ref().map_or(0, |before| i64::from(before.size));
        let kind = u32::try_from(at).unwrap_or(u32::MAX);
        let row = match &before {
            // Relative rows rely on what lies below, which disorder may already have overlaid.
            Some(before) if in_order && self.states[at].same_header => Row::difference(kind, before, &entry),
            _ => Some(Row::whole(kind, &entry)),
        };
        if in_order {
            self.states[at].last = Some(entry.name.into());
        }
        match row {
            Some(row) => self.push(row).await,
            None => Ok(()),
        }
    }

    /// What is kept with the snapshot, outside of its digest.
    pub fn set_extras(&mut self, json: serde_json::Value) {
        self.extras = Some(json);
    }

    /// Bytes that the snapshot's digest covers beside the entries: the canonical image digests. Empty = none.
    pub fn set_digest_extra(&mut self, bytes: &[u8]) {
        self.digest_extra = (!bytes.is_empty()).then(|| Digest::of(bytes));
    }

    /// Index of a kind's state; the first call for a kind finds its place in the previous snapshot.
    async fn state(&mut self, kind: &KindHeader) -> Result<usize> {
        if self
            .states
            .get(self.current)
            .is_some_and(|state| *state.header == *kind)
        {
            return Ok(self.current);
        }
        if let Some(at) = self.position(kind) {
            if *self.states[at].header != *kind {
                return Err(Error::Invalid(format!(
                    "kind {}/{} is added with two headers",
                    kind.group, kind.kind
                )));
            }
            self.current = at;
            return Ok(at);
        }
        let (mut walk, mut same_header) = (None, false);
        if let Some(previous) = &self.previous {
            let mut cursor = Cursor::of(&self.writer.repository, previous, true);
            cursor.seek((&kind.group, &kind.kind, "")).await?;
            if let Some((found, entry)) = cursor.next().await?
                && found.group == kind.group
                && found.kind == kind.kind
            {
                same_header = *found == *kind;
                walk = Some(Box::new((cursor, entry)));
            }
        }
        let header = self.writer.shared_kind(kind);
        self.buffer.lock().await.kinds.push(header.clone());
        self.states.push(KindState {
            header,
            last: None,
            walk,
            same_header,
        });
        self.current = self.states.len() - 1;
        Ok(self.current)
    }

    /// A namespace holds a few dozen kinds, and they rarely alternate: a walk is cheaper than a map in each of thousands of builders.
    fn position(&self, kind: &KindHeader) -> Option<usize> {
        self.states
            .iter()
            .position(|state| state.header.group == kind.group && state.header.kind == kind.kind)
    }

    async fn look_up(&self, at: usize, name: &str) -> Result<Option<Entry>> {
        let Some(previous) = &self.previous else {
            return Ok(None);
        };
        let kind = &self.states[at].header;
        let mut cursor = Cursor::of(&self.writer.repository, previous, true);
        cursor.seek((&kind.group, &kind.kind, name)).await?;
        let found = cursor.next().await?;
        Ok(found
            .filter(|(k, e)| e.name == name && k.group == kind.group && k.kind == kind.kind)
            .map(|(_, e)| e))
    }

    /// Entries of the previous snapshot before `name` are gone; without a name all that are left.
    async fn skip_to(&mut self, at: usize, name: Option<&str>) -> Result<()> {
        loop {
            let state = &mut self.states[at];
            let Some(walk) = &mut state.walk else { return Ok(()) };
            if name.is_some_and(|name| &*walk.1.name >= name) {
                return Ok(());
            }
            let kind = state.header.clone();
            let next = walk
                .0
                .next()
                .await?
                .filter(|(next, _)| next.group == kind.group && next.kind == kind.kind);
            let gone = match next {
                Some((_, next)) => std::mem::replace(&mut walk.1, next),
                None => match state.walk.take() {
                    Some(walk) => walk.1,
                    None => return Ok(()),
                },
            };
            self.remove(u32::try_from(at).unwrap_or(u32::MAX), &gone).await?;
        }
    }

    async fn remove(&mut self, kind: u32, gone: &Entry) -> Result<()> {
        self.counts.removed += 1;
        self.logical -= i64::from(gone.size);
        self.push(Row::removed(kind, &gone.name)).await
    }

    async fn push(&mut self, row: Row) -> Result<()> {
        let spill = self.writer.buffer_grew();
        {
            let mut buffer = self.buffer.lock().await;
            if let Some(kind) = buffer.push(row) {
                buffer.flush_kind(&self.writer, kind).await?;
            }
        }
        if spill { self.writer.spill().await } else { Ok(()) }
    }

    /// Kinds of the previous snapshot that no entry was added of.
    async fn remove_unseen_kinds(&mut self) -> Result<()> {
        let Some(previous) = self.previous.clone() else {
            return Ok(());
        };
        let mut cursor = Cursor::of(&self.writer.repository, &previous, true);
        while let Some((kind, entry)) = cursor.next().await? {
            if self.position(&kind).is_some() {
                cursor.seek((&kind.group, &kind.kind, AFTER_ALL_NAMES)).await?;
                continue;
            }
            let at = self.states.len();
            self.buffer.lock().await.kinds.push(kind.clone());
            self.states.push(KindState {
                header: kind.clone(),
                last: None,
                walk: None,
                same_header: true,
            });
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            self.remove(at, &entry).await?;
            while let Some((next, entry)) = cursor.next().await? {
                if next.group != kind.group || next.kind != kind.kind {
                    cursor.seek((&next.group, &next.kind, &entry.name)).await?;
                    break;
                }
                self.remove(at, &entry).await?;
            }
        }
        Ok(())
    }

    /// Writes what is left and computes the digest. Entries of the previous snapshot that were not added are gone from this one.
    pub async fn finish(mut self) -> Result<BuiltManifest> {
        for at in 0..self.states.len() {
            self.skip_to(at, None).await?;
        }
        self.remove_unseen_kinds().await?;
        let extras = match self.extras.take() {
            None => None,
            Some(json) => {
                let bytes = serde_json::to_vec(&json).map_err(|e| Error::Invalid(format!("extras: {e}")))?;
                Some(self.writer.put(FrameGroup::EXTRAS, &bytes).await?.0)
            }
        };
        let buffer = self.buffer.clone();
        let mut buffer = buffer.lock().await;
        let previous = self.previous.clone();
        let below = previous.as_ref().map_or(&[][..], |p| &p.segments);
        let touched = !buffer.rows.is_empty() || !buffer.segments.is_empty();
        let same_content = !self.disordered && self.counts.added + self.counts.changed + self.counts.removed == 0;
        let same_digest = previous
            .as_ref()
            .filter(|p| same_content && p.digest_extra == self.digest_extra);
        let mut digest = same_digest.map(|p| p.digest);
        let mut segments: Arc<[SegmentRef]> = previous.as_ref().map_or_else(|| Arc::from([]), |p| p.segments.clone());
        if touched {
            if previous.is_none() && buffer.segments.is_empty() {
                buffer.sort();
                digest = Some(self.digest_of_rows(&buffer));
                if self.disordered {
                    self.counts.captured = buffer.rows.len() as u64;
                    self.counts.added = self.counts.captured;
                    self.logical = buffer
                        .rows
                        .iter()
                        .filter_map(|row| row.content)
                        .map(|(_, size)| i64::from(size))
                        .sum();
                }
            }
            buffer.flush(&self.writer).await?;
            segments = buffer.layout(below).into();
        }
        let compact = touched && previous.is_some() && wants_compaction(&segments);
        if digest.is_none() || compact {
            let (walked, compacted) = self.walk(&segments, compact.then_some(&mut *buffer)).await?;
            digest = Some(walked);
            segments = compacted.unwrap_or(segments);
        }
        let sizes = Sizes {
            logical: self.logical.max(0).cast_unsigned(),
            new: self.new,
            stored: 0,
        };
        Ok(BuiltManifest {
            digest: digest.unwrap_or_else(|| SnapshotDigest::new().finish(self.digest_extra.as_ref())),
            counts: self.counts,
            sizes,
            segments,
            extras,
            digest_extra: self.digest_extra,
            manifest_bytes: buffer.bytes,
            base: previous.as_ref().map(|p| p.uid.clone()),
        })
    }

    fn digest_of_rows(&self, buffer: &Buffer) -> Digest {
        let mut digest = SnapshotDigest::new();
        for row in &buffer.rows {
            let kind = &buffer.kinds[row.kind as usize];
            if let Some((content, _)) = &row.content {
                let (group, kind, name) = sort_key(kind, &row.name);
                digest.entry(group, kind, name, content);
            }
        }
        digest.finish(self.digest_extra.as_ref())
    }

    /// Walks the finished manifest for its digest; recounts after disorder; writes it as one base into `rewrite`.
    async fn walk(
        &mut self,
        segments: &[SegmentRef],
        mut rewrite: Option<&mut Buffer>,
    ) -> Result<(Digest, Option<Arc<[SegmentRef]>>)> {
        if let Some(buffer) = rewrite.as_deref_mut() {
            (buffer.segments, buffer.kinds, buffer.first_run) = (Vec::new(), Vec::new(), 0);
        }
        let source = ChunkSource::Writing(self.writer.clone());
        let mut cursor = Cursor::new(source, segments);
        let mut before = self.disordered.then(|| {
            let committed = || ChunkSource::Committed(self.writer.repository.clone());
            let none = || Cursor::new(committed(), &[]);
            Recount::new(
                self.previous
                    .as_ref()
                    .map_or_else(none, |p| Cursor::of(&self.writer.repository, p, true)),
            )
        });
        let mut digest = SnapshotDigest::new();
        while let Some((kind, entry)) = cursor.next().await? {
            digest.entry(&kind.group, &kind.kind, &entry.name, &entry.content);
            if let Some(recount) = &mut before {
                recount.entry(&kind, &entry).await?;
            }
            let Some(buffer) = rewrite.as_deref_mut() else { continue };
            if buffer.kinds.last() != Some(&kind) {
                buffer.kinds.push(kind);
            }
            buffer.rows.push(Row::whole(
                u32::try_from(buffer.kinds.len() - 1).unwrap_or(u32::MAX),
                &entry,
            ));
            self.writer.buffer_grew();
            if buffer.rows.len() == MAX_ROWS {
                buffer.flush(&self.writer).await?;
            }
        }
        if let Some(recount) = before {
            (self.counts, self.logical) = recount.finish().await?;
        }
        let compacted = match rewrite {
            None => None,
            Some(buffer) => {
                buffer.flush(&self.writer).await?;
                Some(buffer.layout(&[]).into())
            }
        };
        Ok((digest.finish(self.digest_extra.as_ref()), compacted))
    }
}

impl Drop for ManifestBuilder {
    fn drop(&mut self) {
        // An abandoned builder must not count against the writer's buffer for ever.
        if let Ok(mut buffer) = self.buffer.try_lock() {
            self.writer.unbuffer(buffer.rows.len());
            buffer.rows.clear();
        }
    }
}

fn wants_compaction(segments: &[SegmentRef]) -> bool {
    let runs = segments.chunk_by(|a, b| a.run == b.run).count();
    let (mut base, mut deltas) = (0u64, 0u64);
    for segment in segments {
        *if segment.run == 0 { &mut base } else { &mut deltas } += u64::from(segment.entries);
    }
    runs > MAX_RUNS || deltas > (base / 2).max(MIN_COMPACTION)
}

/// Compares two walks, for when entries came in no order.
struct Recount {
    cursor: Cursor,
    next: Option<(SharedKind, Entry)>,
    started: bool,
    counts: Counts,
    logical: i64,
}

impl Recount {
    fn new(cursor: Cursor) -> Self {
        Self {
            cursor,
            next: None,
            started: false,
            counts: Counts::default(),
            logical: 0,
        }
    }

    async fn entry(&mut self, kind: &KindHeader, entry: &Entry) -> Result<()> {
        if !self.started {
            (self.next, self.started) = (self.cursor.next().await?, true);
        }
        let key = sort_key(kind, &entry.name);
        while self
            .next
            .as_ref()
            .is_some_and(|(kind, before)| sort_key(kind, &before.name) < key)
        {
            self.counts.removed += 1;
            self.next = self.cursor.next().await?;
        }
        self.counts.captured += 1;
        self.logical += i64::from(entry.size);
        match self.next.take_if(|(kind, before)| sort_key(kind, &before.name) == key) {
            Some((_, before)) => {
                *if before.content == entry.content {
                    &mut self.counts.unchanged
                } else {
                    &mut self.counts.changed
                } += 1;
                self.next = self.cursor.next().await?;
            }
            None => self.counts.added += 1,
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<(Counts, i64)> {
        if !self.started {
            self.next = self.cursor.next().await?;
        }
        while self.next.take().is_some() {
            self.counts.removed += 1;
            self.next = self.cursor.next().await?;
        }
        Ok((self.counts, self.logical))
    }
}
