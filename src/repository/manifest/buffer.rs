//! Rows of a manifest that wait to be written as segments.

use std::sync::Arc;

use super::{
    Result, SharedKind,
    segment::{self, MAX_ROWS, Row},
};
use crate::{
    domain::object::ObjectId,
    repository::{SegmentRef, pack::FrameGroup, writer::WriterInner},
};

/// Rough memory of a buffered row, its name included.
pub(in crate::repository) const SPILL_ROW_BYTES: usize = 192;
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
}

impl Buffer {
    pub fn sort(&mut self) {
        let mut order: Vec<u32> = (0u32..).take(self.kinds.len()).collect();
        order.sort_by(|a, b| {
            let (a, b) = (&self.kinds[*a as usize], &self.kinds[*b as usize]);
            (&a.group, &a.kind).cmp(&(&b.group, &b.kind))
        });
        let mut rank = vec![0u32; order.len()];
        for (position, kind) in (0u32..).zip(order) {
            rank[kind as usize] = position;
        }
        self.rows
            .sort_by(|a, b| (rank[a.kind as usize], &a.name).cmp(&(rank[b.kind as usize], &b.name)));
        // The last word on an identity counts; dedup keeps the first of a group.
        self.rows.reverse();
        self.rows.dedup_by(|a, b| a.kind == b.kind && a.name == b.name);
        self.rows.reverse();
    }

    /// Writes the waiting rows as segments.
    pub async fn flush(&mut self, writer: &Arc<WriterInner>) -> Result<()> {
        self.sort();
        let rows = std::mem::take(&mut self.rows);
        writer.unbuffer(rows.len());
        for rows in rows.chunks(MAX_ROWS) {
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
