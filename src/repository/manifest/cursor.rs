//! Walks a manifest in identity order, one decoded segment a run in memory.

use std::sync::Arc;

use bytes::Bytes;

use super::{Entry, Result, SharedKind, SortKey, damaged, segment, segment::Segment};
use crate::{
    domain::object::Digest,
    repository::{SegmentRef, SnapshotRecord, core::Repository, error::Error, writer::WriterInner},
};

/// Where segments are read from: committed contents, or those of a writer that has not committed yet.
#[derive(Clone)]
pub(in crate::repository) enum ChunkSource {
    Committed(Repository),
    /// Of a snapshot that may be deleted meanwhile, which is no damage: read for itself, or to build the next one upon it.
    Snapshot {
        repository: Repository,
        uid: Arc<str>,
        building: bool,
    },
    Writing(Arc<WriterInner>),
}

impl ChunkSource {
    pub async fn read(&self, digest: &Digest) -> Result<Bytes> {
        match self {
            Self::Committed(repository) => repository.read_chunk(digest).await,
            Self::Snapshot {
                repository,
                uid,
                building,
            } => match repository.read_chunk(digest).await {
                Err(error) if error.is_corrupt() && repository.snapshot(uid).is_none() => Err(if *building {
                    Error::PackCondemned {
                        what: format!("snapshot {uid}"),
                    }
                } else {
                    Error::SnapshotNotFound(uid.to_string())
                }),
                other => other,
            },
            Self::Writing(writer) => writer.read(digest).await,
        }
    }
}

/// One run: its segments, and the position within.
struct Run {
    segments: Vec<SegmentRef>,
    at: usize,
    loaded: Option<Segment>,
    row: usize,
}

impl Run {
    async fn load(&mut self, source: &ChunkSource) -> Result<()> {
        while self.at < self.segments.len() {
            if self.loaded.is_none() {
                let digest = self.segments[self.at].digest;
                let bytes = source.read(&digest).await?;
                self.loaded = Some(segment::decode(&bytes).map_err(|e| damaged(&digest, &e.0))?);
            }
            if self
                .loaded
                .as_ref()
                .is_some_and(|segment| self.row < segment.rows.len())
            {
                return Ok(());
            }
            self.loaded = None;
            self.at += 1;
            self.row = 0;
        }
        Ok(())
    }

    fn key(&self) -> Option<SortKey<'_>> {
        self.loaded.as_ref()?.key(self.row)
    }
}

/// A merged walk over the runs of a manifest.
pub(in crate::repository) struct Cursor {
    source: ChunkSource,
    runs: Vec<Run>,
}

impl Cursor {
    /// Over a committed snapshot, `building` the next one upon it or reading it for itself.
    pub fn of(repository: &Repository, record: &SnapshotRecord, building: bool) -> Self {
        let uid = record.uid.as_str().into();
        Self::new(
            ChunkSource::Snapshot {
                repository: repository.clone(),
                uid,
                building,
            },
            &record.segments,
        )
    }

    /// At the first entry.
    pub fn new(source: ChunkSource, segments: &[SegmentRef]) -> Self {
        let runs = segments
            .chunk_by(|a, b| a.run == b.run)
            .map(|run| Run {
                segments: run.to_vec(),
                at: 0,
                loaded: None,
                row: 0,
            })
            .collect();
        Self { source, runs }
    }

    /// Moves to the first entry at or after `key`.
    pub async fn seek(&mut self, key: SortKey<'_>) -> Result<()> {
        for run in &mut self.runs {
            let after = run
                .segments
                .partition_point(|s| (&*s.first.group, &*s.first.kind, &*s.first.name) <= key);
            let at = after.saturating_sub(1);
            if at != run.at {
                (run.at, run.loaded) = (at, None);
            }
            run.row = 0;
            run.load(&self.source).await?;
            if run.at == at
                && let Some(segment) = &run.loaded
            {
                run.row = segment.seek(&key);
            }
        }
        Ok(())
    }

    /// The next entry that is there, and moves on.
    pub async fn next(&mut self) -> Result<Option<(SharedKind, Entry)>> {
        loop {
            for run in &mut self.runs {
                run.load(&self.source).await?;
            }
            let Some((first, _)) = self
                .runs
                .iter()
                .enumerate()
                .filter_map(|(at, run)| Some((at, run.key()?)))
                .reduce(|best, other| if other.1 < best.1 { other } else { best })
            else {
                return Ok(None);
            };
            let (at_first, rest) = self.runs.split_at_mut(first + 1);
            let Some(run) = at_first.last_mut() else {
                return Ok(None);
            };
            let key = run.key();
            let (mut kind, mut entry) = (None, None);
            // Higher runs win; those below `first` are further on already.
            let same: Vec<usize> = rest
                .iter()
                .enumerate()
                .filter(|(_, r)| r.key() == key)
                .map(|(at, _)| at)
                .collect();
            for run in std::iter::once(&*run).chain(same.iter().map(|at| &rest[*at])) {
                let Some(segment) = &run.loaded else { continue };
                let row = &segment.rows[run.row];
                entry = row
                    .overlay(entry)
                    .map_err(|e| damaged(&run.segments[run.at].digest, &e.0))?;
                kind = segment.kinds.get(row.kind as usize).cloned();
            }
            run.row += 1;
            for at in same {
                rest[at].row += 1;
            }
            if let (Some(kind), Some(entry)) = (kind, entry) {
                return Ok(Some((kind, entry)));
            }
        }
    }
}
