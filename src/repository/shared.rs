//! What all clones of a repository see: the state, where every chunk lies, and who relies on what.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{Arc, Mutex, Weak},
};

use super::{
    error::Result,
    index::{Bits, Index, Key},
    pack::{Footer, Frame, PackId, Unpacked, lock},
    state::State,
};

/// A pack whose footer was read.
pub(super) struct Loaded {
    pub id: PackId,
    pub ordinals: Range<u32>,
    pub frames: Vec<Frame>,
}

/// What all clones see.
#[derive(Default)]
pub(super) struct Shared {
    pub state: State,
    pub index: Index,
    /// By ascending ordinals, which is the order they were added to the journal.
    pub packs: Vec<Loaded>,
    next_ordinal: u32,
    /// How often packs went out of use or were found damaged: what was resolved to a place before then may resolve elsewhere now.
    pub moves: u64,
    /// Packs whose footer cannot be read, and why.
    pub unreadable: HashMap<PackId, String>,
    /// Packs in which damage was found: read only where there is no other copy.
    pub quarantined: HashSet<PackId>,
    /// Packs of writers in this process that did not commit yet.
    pub in_flight: HashSet<PackId>,
    pub writers: Vec<Weak<Touched>>,
    /// Bytes of the journal since the checkpoint, of the checkpoint, and its sequence number.
    pub journal_bytes: u64,
    pub checkpoint_bytes: u64,
    pub checkpoint: u64,
}

/// What a writer relies on: committed chunks, and those of them whose pack went away meanwhile.
#[derive(Default)]
pub(super) struct Touched {
    pub bits: Mutex<Bits>,
    pub displaced: Mutex<HashSet<Key>>,
}

/// Where a chunk is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Location {
    pub pack: PackId,
    pub frame: Frame,
    pub slot: u32,
}

impl Shared {
    pub fn pack_of(&self, ordinal: u32) -> Option<&Loaded> {
        let at = self.packs.partition_point(|pack| pack.ordinals.end <= ordinal);
        self.packs.get(at).filter(|pack| pack.ordinals.contains(&ordinal))
    }

    fn location(&self, ordinal: u32) -> Option<Location> {
        let pack = self.pack_of(ordinal)?;
        let (frame, slot) = frame_of(&pack.frames, ordinal - pack.ordinals.start)?;
        Some(Location {
            pack: pack.id,
            frame,
            slot,
        })
    }

    /// The copy that counts: the oldest outside of damaged packs, else the oldest.
    pub fn resolve(&self, key: &Key) -> Option<u32> {
        if self.quarantined.is_empty() {
            return self.index.ordinals(key).next();
        }
        self.sound(key).or_else(|| self.index.ordinals(key).next())
    }

    pub fn sound(&self, key: &Key) -> Option<u32> {
        self.index.ordinals(key).find(|at| {
            self.pack_of(*at)
                .is_some_and(|pack| !self.quarantined.contains(&pack.id))
        })
    }

    /// All copies, those outside of damaged packs first.
    pub fn locations(&self, key: &Key) -> Vec<Location> {
        let mut found: Vec<_> = self.index.ordinals(key).filter_map(|at| self.location(at)).collect();
        found.sort_by_key(|location| self.quarantined.contains(&location.pack));
        found
    }

    /// Notes damage in a pack.
    pub fn quarantine(&mut self, id: PackId) {
        self.moves += u64::from(self.quarantined.insert(id));
    }

    /// Brings packs and index in line with the state.
    pub fn adopt(&mut self, mut footers: HashMap<PackId, Result<Footer, String>>) {
        let known: HashSet<PackId> = self.state.packs.values().map(|pack| pack.id).collect();
        let gone: Vec<_> = self.packs.extract_if(.., |pack| !known.contains(&pack.id)).collect();
        self.moves += u64::from(!gone.is_empty());
        self.writers.retain(|writer| writer.strong_count() > 0);
        let writers: Vec<_> = self.writers.iter().filter_map(Weak::upgrade).collect();
        for pack in gone {
            let touched: Vec<_> = writers.iter().map(|writer| (lock(&writer.bits), writer)).collect();
            self.index.remove(&pack.ordinals, |key, ordinal| {
                for (bits, writer) in &touched {
                    if bits.contains(ordinal) {
                        lock(&writer.displaced).insert(*key);
                    }
                }
            });
        }
        self.unreadable.retain(|id, _| known.contains(id));
        self.quarantined.retain(|id| known.contains(id));
        for record in self.state.packs.values() {
            match footers.remove(&record.id) {
                Some(Ok(footer)) => {
                    let first = self.next_ordinal;
                    // 2^32 chunks in one process' life; beyond, a pack reads as unreadable until the restart.
                    let Some(end) = first.checked_add(record.chunks) else {
                        self.unreadable
                            .insert(record.id, "too many chunks for one process".to_owned());
                        continue;
                    };
                    self.index.extend(&footer.keys, first);
                    self.packs.push(Loaded {
                        id: record.id,
                        ordinals: first..end,
                        frames: footer.frames,
                    });
                    self.next_ordinal = end;
                }
                Some(Err(problem)) => {
                    self.unreadable.insert(record.id, problem);
                }
                None => {}
            }
        }
    }
}

/// The frame that holds the `slot`-th chunk of a pack, and its number within the frame.
pub(super) fn frame_of(frames: &[Frame], slot: u32) -> Option<(Frame, u32)> {
    let at = frames.partition_point(|frame| frame.first + frame.chunks <= slot);
    let frame = frames.get(at)?;
    Some((*frame, slot.checked_sub(frame.first)?))
}

/// Recently used decompressed frames, bounded by bytes.
#[derive(Default)]
pub(super) struct FrameCache {
    entries: Vec<((PackId, u32), Arc<Unpacked>)>,
    bytes: usize,
}

impl FrameCache {
    pub fn get(&mut self, key: (PackId, u32)) -> Option<Arc<Unpacked>> {
        let at = self.entries.iter().position(|(other, _)| *other == key)?;
        let entry = self.entries.remove(at);
        let unpacked = Arc::clone(&entry.1);
        self.entries.push(entry);
        Some(unpacked)
    }

    pub fn forget(&mut self, key: (PackId, u32)) {
        if let Some(at) = self.entries.iter().position(|(other, _)| *other == key) {
            self.bytes -= self.entries.remove(at).1.len();
        }
    }

    pub fn put(&mut self, key: (PackId, u32), unpacked: &Arc<Unpacked>, limit: usize) {
        if unpacked.len() > limit / 2 || self.entries.iter().any(|(other, _)| *other == key) {
            return;
        }
        self.bytes += unpacked.len();
        self.entries.push((key, Arc::clone(unpacked)));
        let excess = self.entries.iter().scan(self.bytes, |bytes, (_, unpacked)| {
            let over = *bytes > limit;
            *bytes -= unpacked.len();
            over.then_some(unpacked.len())
        });
        let freed: Vec<usize> = excess.collect();
        self.entries.drain(..freed.len());
        self.bytes -= freed.iter().sum::<usize>();
    }
}
