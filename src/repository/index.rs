//! Which chunk lies where: 16 bytes a chunk, no matter how large the chunk is.
//!
//! A chunk is known by the first 12 bytes of its SHA-256; whoever reads it compares all 32. Making two contents that share 12 bytes
//! takes 2^48 hashes and harms only their author, whose second object then reads as damaged.

use std::{fmt, ops::Range};

use crate::domain::object::Digest;

/// The first 12 bytes of a chunk's digest.
pub(super) type Key = [u8; 12];

/// The key of a digest.
pub(super) fn key_of(digest: &Digest) -> Key {
    let mut key = [0; 12];
    key.copy_from_slice(&digest.as_bytes()[..12]);
    key
}

/// The first 12 bytes of a SHA-256: the address of what no snapshot's digest covers, and so no approval relies on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortDigest(pub(super) Key);

impl From<Digest> for ShortDigest {
    fn from(digest: Digest) -> Self {
        Self(key_of(&digest))
    }
}

impl fmt::Display for ShortDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}…", hex::encode(self.0))
    }
}

impl fmt::Debug for ShortDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a chunk is asked for by.
pub trait Address: fmt::Display + Copy + Send + Sync {
    /// The 12 bytes that say where it lies.
    fn key(&self) -> [u8; 12];
    /// Whether it is the address of a chunk with this digest.
    fn is_of(&self, digest: &Digest) -> bool;
}

impl Address for Digest {
    fn key(&self) -> Key {
        key_of(self)
    }

    fn is_of(&self, digest: &Digest) -> bool {
        self == digest
    }
}

impl Address for ShortDigest {
    fn key(&self) -> Key {
        self.0
    }

    fn is_of(&self, digest: &Digest) -> bool {
        self.0 == key_of(digest)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    key: Key,
    ordinal: u32,
}

/// Sorted shards by the first byte: exact capacity, and growth copies one shard at a time.
pub(super) struct Index {
    shards: Vec<Vec<Slot>>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            shards: vec![Vec::new(); 256],
        }
    }
}

impl Index {
    /// Adds the chunks of a pack, whose ordinals are above all others.
    pub fn extend(&mut self, keys: &[Key], first: u32) {
        for (key, ordinal) in keys.iter().zip(first..) {
            self.shards[usize::from(key[0])].push(Slot { key: *key, ordinal });
        }
        for shard in &mut self.shards {
            // Almost sorted: the stable sort finds the long run and merges the rest into it.
            shard.sort();
        }
    }

    /// Adds one chunk.
    pub fn insert(&mut self, key: Key, ordinal: u32) {
        let shard = &mut self.shards[usize::from(key[0])];
        let slot = Slot { key, ordinal };
        let at = shard.partition_point(|other| *other < slot);
        if shard.len() == shard.capacity() {
            shard.reserve_exact(shard.len() / 8 + 4);
        }
        shard.insert(at, slot);
    }

    /// Where copies of a chunk are, oldest first.
    pub fn ordinals(&self, key: &Key) -> impl Iterator<Item = u32> + '_ {
        let shard = &self.shards[usize::from(key[0])];
        let start = shard.partition_point(|slot| slot.key < *key);
        let key = *key;
        shard[start..]
            .iter()
            .take_while(move |slot| slot.key == key)
            .map(|slot| slot.ordinal)
    }

    /// Forgets a pack; `each` sees every chunk that goes.
    pub fn remove(&mut self, ordinals: &Range<u32>, mut each: impl FnMut(&Key, u32)) {
        for shard in &mut self.shards {
            shard.retain(|slot| {
                let gone = ordinals.contains(&slot.ordinal);
                if gone {
                    each(&slot.key, slot.ordinal);
                }
                !gone
            });
        }
    }
}

/// A growing set of ordinals, one bit each.
#[derive(Clone, Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// Adds; tells whether it was absent.
    pub fn insert(&mut self, ordinal: u32) -> bool {
        let (word, bit) = (ordinal as usize / 64, 1u64 << (ordinal % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let absent = self.0[word] & bit == 0;
        self.0[word] |= bit;
        absent
    }

    pub fn contains(&self, ordinal: u32) -> bool {
        self.0
            .get(ordinal as usize / 64)
            .is_some_and(|word| word & (1 << (ordinal % 64)) != 0)
    }

    pub fn union(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_copy_comes_first_and_removal_uncovers_the_next() {
        let keys: Vec<Key> = (0..1000u32).map(|n| key_of(&Digest::of(&n.to_le_bytes()))).collect();
        let mut index = Index::default();
        index.extend(&keys, 0);
        index.extend(&keys[..10], 1000);
        index.insert(keys[0], 1010);
        assert_eq!(index.ordinals(&keys[0]).collect::<Vec<_>>(), [0, 1000, 1010]);
        let mut gone = 0;
        index.remove(&(0..1000), |_, _| gone += 1);
        assert_eq!(gone, 1000);
        assert_eq!(index.ordinals(&keys[0]).collect::<Vec<_>>(), [1000, 1010]);
        assert_eq!(index.ordinals(&keys[10]).count(), 0);
    }

    #[test]
    fn a_hundred_thousand_chunks_take_less_than_three_mebibytes() {
        let mut index = Index::default();
        for n in 0..100_000u32 {
            index.insert(key_of(&Digest::of(&n.to_le_bytes())), n);
        }
        let bytes: usize = index
            .shards
            .iter()
            .map(|shard| shard.capacity() * size_of::<Slot>())
            .sum();
        assert!(bytes < 3 << 20, "{bytes} bytes");
    }
}
