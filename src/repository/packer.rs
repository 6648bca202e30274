//! Packs in the making: open frames, the pack being filled, finished packs.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    index::{Index, Key},
    pack::{Frame, FrameGroup, OpenFrame, PackBody, PackId, SealedPack},
    shared::frame_of,
};

/// Packs in the making.
#[derive(Default)]
pub(super) struct Packer {
    pub open: BTreeMap<FrameGroup, OpenFrame>,
    pub open_bytes: usize,
    /// Full frames that are being compressed.
    pub closing: Vec<Arc<OpenFrame>>,
    /// Chunks in open and closing frames.
    pub unplaced: HashSet<Key>,
    pub body: Option<PackBody>,
    /// Number of the body's first chunk within this writer.
    pub body_first: u32,
    /// Finished packs and the number of their first chunk.
    pub sealed: Vec<(u32, SealedPack)>,
    pub index: Index,
    pub raw: u64,
}

impl Packer {
    pub fn take_open(&mut self, group: FrameGroup) -> Option<Arc<OpenFrame>> {
        let frame = self.open.remove(&group)?;
        Some(self.close(frame))
    }

    pub fn close(&mut self, frame: OpenFrame) -> Arc<OpenFrame> {
        self.open_bytes -= frame.len();
        let frame = Arc::new(frame);
        self.closing.push(frame.clone());
        frame
    }

    pub fn seal(&mut self) {
        if let Some(body) = self.body.take_if(|body| !body.is_empty()) {
            let first = self.body_first;
            let pack = body.seal();
            self.body_first += pack.record.chunks;
            self.sealed.push((first, pack));
        }
    }

    /// Pack, frame and slot of a placed chunk, and the frame's bytes while they are in memory.
    pub fn find(&self, ordinal: u32) -> Option<(PackId, Frame, u32, Option<Bytes>)> {
        if let Some(body) = self.body.as_ref().filter(|_| ordinal >= self.body_first) {
            let (frame, slot) = frame_of(&body.frames, ordinal - self.body_first)?;
            let at = body.frames.partition_point(|other| other.offset < frame.offset);
            return Some((body.id, frame, slot, body.piece(at)));
        }
        let at = self
            .sealed
            .partition_point(|(first, _)| *first <= ordinal)
            .checked_sub(1)?;
        let (first, pack) = self.sealed.get(at)?;
        let (frame, slot) = frame_of(&pack.frames, ordinal - first)?;
        let at = pack.frames.partition_point(|other| other.offset < frame.offset);
        let piece = pack.blob.as_ref().and_then(|blob| blob.get(at + 1).cloned());
        Some((pack.record.id, frame, slot, piece))
    }
}
