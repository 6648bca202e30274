//! Rows of a manifest that wait to be written as segments.

use std::sync::Arc;

use super::{
    Result, SharedKind, SortKey,
    segment::{self, MAX_ROWS, Row},
    sort_key,
};
use crate::{
    domain::object::ObjectId,
    repository::{SegmentRef, pack::FrameGroup, writer::WriterInner},
};

/// Rough memory of a buffered row, its name included.
pub(in crate::repository) const SPILL_ROW_BYTES: usize = 160;

fn id_key(id: &ObjectId) -> SortKey<'_> {
    (&id.group, &id.kind, &id.name)
}

/// Rows that wait to be written, and the segments written so far.
#[derive(Default)]
pub(in crate::repository) struct Buffer {
    pub kinds: Vec<SharedKind>,
    pub rows: Vec<Row>,
    /// New segments with their last identity.
    pub segments: Vec<(SegmentRef, ObjectId)>,
    /// First run that is not of the previous snapshot.
    pub first_run: u32,
    pub bytes: u64,
    /// Rows that wait, by kind.
    pub waiting: Vec<usize>,
}

impl Buffer {
    /// Adds a row; tells the kind when enough of it wait for a segment of their own.
    pub fn push(&mut self, row: Row) -> Option<u32> {
        let (kind, at) = (row.kind, row.kind as usize);
        // Thousands of builders wait at once: doubling would waste as much as it holds.
        if self.rows.len() == self.rows.capacity() {
            self.rows.reserve_exact(self.rows.len() / 4 + 4);
        }
        self.rows.push(row);
        if self.waiting.len() <= at {
            self.waiting.resize(at + 1, 0);
        }
        self.waiting[at] += 1;
        (self.waiting[at] == MAX_ROWS).then_some(kind)
    }

    pub fn sort(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        self.rows = self.sorted(rows);
    }

    fn sorted(&self, mut rows: Vec<Row>) -> Vec<Row> {
        let mut order: Vec<u32> = (0u32..).take(self.kinds.len()).collect();
        order.sort_by(|a, b| {
            let (a, b) = (&self.kinds[*a as usize], &self.kinds[*b as usize]);
            (&a.group, &a.kind).cmp(&(&b.group, &b.kind))
        });
        let mut rank = vec![0u32; order.len()];
        for (position, kind) in (0u32..).zip(order) {
            rank[kind as usize] = position;
        }
        rows.sort_by(|a, b| (rank[a.kind as usize], &a.name).cmp(&(rank[b.kind as usize], &b.name)));
        // The last word on an identity counts; dedup keeps the first of a group.
        rows.reverse();
        rows.dedup_by(|a, b| a.kind == b.kind && a.name == b.name);
        rows.reverse();
        rows
    }

    /// Writes the waiting rows as segments.
    pub async fn flush(&mut self, writer: &Arc<WriterInner>) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        self.waiting.clear();
        self.write(writer, rows).await
    }

    /// Writes the waiting rows of one kind as segments, so that a large kind does not wait in memory.
    pub async fn flush_kind(&mut self, writer: &Arc<WriterInner>, kind: u32) -> Result<()> {
        let rows = self.rows.extract_if(.., |row| row.kind == kind).collect();
        if let Some(waiting) = self.waiting.get_mut(kind as usize) {
            *waiting = 0;
        }
        self.write(writer, rows).await
    }

    /// Where `rows` are parted so that a segment written before lies between two new ones instead of within one: segments that do not
    /// overlap need no run of their own, and an object is found in one of them.
    fn parts(&self, rows: &[Row]) -> Vec<usize> {
        fn key<'a>(kinds: &'a [SharedKind], row: &'a Row) -> SortKey<'a> {
            sort_key(&kinds[row.kind as usize], &row.name)
        }
        let mut parts: Vec<usize> = self
            .segments
            .iter()
            .filter_map(|(segment, last)| {
                let at = rows.partition_point(|row| key(&self.kinds, row) < id_key(&segment.first));
                (at > 0 && rows.get(at).is_some_and(|row| id_key(last) < key(&self.kinds, row))).then_some(at)
            })
            .chain([0, rows.len()])
            .collect();
        parts.sort_unstable();
        parts.dedup();
        parts
    }

    async fn write(&mut self, writer: &Arc<WriterInner>, rows: Vec<Row>) -> Result<()> {
        writer.unbuffer(rows.len());
        let rows = self.sorted(rows);
        let parts = self.parts(&rows);
        let parts = parts.windows(2).map(|part| &rows[part[0]..part[1]]);
        for rows in parts.flat_map(|part| part.chunks(MAX_ROWS)) {
            let bytes = segment::encode(&self.kinds, rows);
            let (digest, new) = writer.put(FrameGroup::MANIFEST, &bytes).await?;
            if new {
                self.bytes += bytes.len() as u64;
            }
            let id = |row: &Row| {
                let kind = &self.kinds[row.kind as usize];
                ObjectId::new(&kind.group, &kind.kind, &*row.name)
            };
            let (Some(first), Some(last)) = (rows.first().map(id), rows.last().map(id)) else {
                continue;
            };
            let above = self
                .segments
                .iter()
                .filter(|(s, end)| s.first <= last && first <= *end)
                .map(|(s, _)| s.run + 1);
            let run = above.max().unwrap_or(self.first_run);
            let entries = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            self.segments.push((
                SegmentRef {
                    digest,
                    run,
                    entries,
                    first,
                },
                last,
            ));
        }
        self.rows.shrink_to_fit();
        Ok(())
    }

    pub fn layout(&self, below: &[SegmentRef]) -> Vec<SegmentRef> {
        let mut segments = below.to_vec();
        segments.extend(self.segments.iter().map(|(segment, _)| segment.clone()));
        segments.sort_by(|a, b| (a.run, &a.first).cmp(&(b.run, &b.first)));
        segments
    }
}
