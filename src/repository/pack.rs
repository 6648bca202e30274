//! Packs: many chunks in one immutable blob.
//!
//! `BSPK` + format byte, then zstd frames, then a footer, then a trailer. A frame holds chunks of one group, 96 or 232 KiB before
//! compression: their count, their lengths, their bytes. The footer lists the frames (compressed and raw length, chunks, group) and the
//! key of every chunk in order. The trailer is the footer's length (4 bytes), 8 bytes of the footer's SHA-256, and the SHA-256 of all before.

use std::{fmt, str::FromStr, sync::Mutex};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zstd::zstd_safe::{self, CCtx, CParameter};

use super::{
    codec::{Decoded, Malformed, Reader, Write as _, malformed},
    error::{Error, Result},
    index::Key,
};
use crate::domain::object::Digest;

const MAGIC: &[u8; 4] = b"BSPK";
/// Format of packs that this build writes, and the newest it reads.
pub(super) const FORMAT: u8 = 1;
const HEADER: usize = 5;
const TRAILER: usize = 4 + 8 + 32;
/// Raw bytes after which a frame is closed, and the most that several groups share. With the dictionary and one more object it stays
/// below 256 KiB, from which on zstd takes parameters that suit such frames less.
pub(super) const FRAME_TARGET: usize = 232 << 10;
/// The same for manifests, which are mostly digests: larger frames save next to nothing, and whoever reads one object reads one whole.
const MANIFEST_FRAME_TARGET: usize = 96 << 10;
/// Largest chunk: far above what an API server accepts for one object.
pub(super) const MAX_CHUNK: usize = 16 << 20;
/// A frame closes at its target, so it holds less than that plus one chunk and its length table.
const MAX_FRAME: usize = MAX_CHUNK + 2 * FRAME_TARGET;

/// Name of a pack: 16 random bytes, 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub(super) [u8; 16]);

impl PackId {
    /// Key of the pack's blob.
    pub(super) fn blob(self) -> String {
        format!("packs/{self}")
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PackId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl Serialize for PackId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PackId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Which chunks are compressed together: alike ones. A label for locality only; nothing depends on it for correctness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameGroup(pub(super) u32);

impl FrameGroup {
    pub(super) const MANIFEST: Self = Self(2 << 24);
    pub(super) const EXTRAS: Self = Self(3 << 24);

    /// Content, beside, manifest or extras.
    pub(super) fn class(self) -> u32 {
        self.0 >> 24
    }

    /// Raw bytes after which a frame of this group is closed.
    pub(super) fn target(self) -> usize {
        if self == Self::MANIFEST {
            MANIFEST_FRAME_TARGET
        } else {
            FRAME_TARGET
        }
    }

    fn labelled(class: u32, group: &str, kind: &str) -> Self {
        let digest = Digest::of(format!("{group}/{kind}").as_bytes());
        let [a, b, c, ..] = *digest.as_bytes();
        Self(class << 24 | u32::from_le_bytes([a, b, c, 0]))
    }

    /// Normalised objects of a kind.
    pub fn content(group: &str, kind: &str) -> Self {
        Self::labelled(0, group, kind)
    }

    /// What is kept beside the objects of a kind: managed fields, order hints.
    pub fn beside(group: &str, kind: &str) -> Self {
        Self::labelled(1, group, kind)
    }
}

/// What the journal knows of a pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRecord {
    /// Name.
    #[serde(rename = "i")]
    pub id: PackId,
    /// Bytes of the blob.
    #[serde(rename = "s")]
    pub size: u64,
    /// Bytes of its footer.
    #[serde(rename = "f")]
    pub footer: u32,
    /// SHA-256 of the whole blob.
    #[serde(rename = "h")]
    pub sha256: Digest,
    /// Chunks within.
    #[serde(rename = "c")]
    pub chunks: u32,
    /// Bytes of the chunks before compression.
    #[serde(rename = "r")]
    pub raw: u64,
}

/// Where a frame lies in its pack, and which chunks it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    /// Number of its first chunk within the pack.
    pub first: u32,
    pub chunks: u32,
    pub offset: u32,
    pub len: u32,
    pub raw: u32,
    pub group: FrameGroup,
}

/// The frames of a pack and the keys of all chunks, in order.
pub(super) struct Footer {
    pub frames: Vec<Frame>,
    pub keys: Vec<Key>,
}

/// Reused zstd contexts: making one costs more than a small frame.
pub(super) struct Codecs {
    level: i32,
    compressors: Mutex<Vec<CCtx<'static>>>,
    decompressors: Mutex<Vec<zstd::bulk::Decompressor<'static>>>,
}

/// What small frames and records are compressed against: words of Kubernetes objects and of the journal, so that the first object of a
/// kind costs little. Part of format 1: never edit it, add another file for another format.
const DICTIONARY: &[u8] = include_bytes!("dictionary-1.txt");

/// Contexts kept for reuse; more exist only while more threads are at it.
const KEPT: usize = 2;

impl Codecs {
    pub fn new(level: i32) -> Self {
        Self {
            level,
            compressors: Mutex::default(),
            decompressors: Mutex::default(),
        }
    }

    pub fn compress(&self, raw: &[u8]) -> Result<Vec<u8>> {
        let failed = |code| {
            let why = zstd_safe::get_error_name(code);
            Error::Invalid(format!("zstd cannot compress at level {}: {why}", self.level))
        };
        let pooled = lock(&self.compressors).pop();
        let mut context = match pooled {
            Some(context) => context,
            None => self.context().map_err(failed)?,
        };
        // As a prefix and not as a prepared dictionary, whose parameters are those of its own size: six times slower on whole frames.
        context.ref_prefix(DICTIONARY).map_err(failed)?;
        let mut compressed = Vec::with_capacity(zstd_safe::compress_bound(raw.len()));
        context.compress2(&mut compressed, raw).map_err(failed)?;
        compressed.shrink_to_fit();
        let mut pool = lock(&self.compressors);
        if pool.len() < KEPT {
            pool.push(context);
        }
        Ok(compressed)
    }

    fn context(&self) -> std::result::Result<CCtx<'static>, zstd_safe::ErrorCode> {
        let mut context = CCtx::create();
        context.set_parameter(CParameter::CompressionLevel(self.level))?;
        Ok(context)
    }

    /// Decompresses at most `limit` bytes.
    pub fn decompress(&self, compressed: &[u8], limit: usize) -> Decoded<Vec<u8>> {
        let failed = |e: std::io::Error| Malformed(format!("zstd: {e}"));
        let pooled = lock(&self.decompressors).pop();
        let mut decompressor = pooled
            .map_or_else(|| zstd::bulk::Decompressor::with_dictionary(DICTIONARY), Ok)
            .map_err(failed)?;
        let raw = decompressor.decompress(compressed, limit).map_err(failed)?;
        let mut pool = lock(&self.decompressors);
        if pool.len() < KEPT {
            pool.push(decompressor);
        }
        Ok(raw)
    }
}

/// A poisoned lock guards data that no panic can leave half changed here: every critical section is short and total.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Chunks gathered for one frame.
pub(super) struct OpenFrame {
    pub group: FrameGroup,
    pub keys: Vec<Key>,
    lengths: Vec<u32>,
    data: Vec<u8>,
}

impl OpenFrame {
    pub fn new(group: FrameGroup) -> Self {
        Self {
            group,
            keys: Vec::new(),
            lengths: Vec::new(),
            data: Vec::new(),
        }
    }

    pub fn push(&mut self, key: Key, bytes: &[u8]) {
        if self.data.len() + bytes.len() > self.data.capacity() {
            self.data.reserve_exact(bytes.len().max(self.data.len() / 4).max(1024));
        }
        self.keys.push(key);
        self.lengths.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.data.extend_from_slice(bytes);
    }

    pub fn absorb(&mut self, other: Self) {
        self.keys.extend(other.keys);
        self.lengths.extend(other.lengths);
        self.data.extend(other.data);
    }

    pub fn len(&self) -> usize {
        self.data.len()
    }

    pub fn chunk(&self, key: &Key) -> Option<&[u8]> {
        let at = self.keys.iter().position(|other| other == key)?;
        let start: usize = self.lengths[..at].iter().map(|len| *len as usize).sum();
        self.data.get(start..start + self.lengths[at] as usize)
    }

    /// The frame's bytes before compression.
    pub fn raw(&self) -> Vec<u8> {
        let mut raw = Vec::with_capacity(self.data.len() + 3 * self.lengths.len() + 5);
        raw.size(self.lengths.len());
        for len in &self.lengths {
            raw.varint(u64::from(*len));
        }
        raw.extend_from_slice(&self.data);
        raw
    }
}

/// A decompressed frame, and where its chunks lie.
pub(super) struct Unpacked {
    raw: Bytes,
    ranges: Vec<std::ops::Range<usize>>,
}

impl Unpacked {
    pub fn new(raw: Bytes) -> Decoded<Self> {
        let ranges = chunk_ranges(&raw)?;
        Ok(Self { raw, ranges })
    }

    /// Bytes, chunks and lengths together.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// The chunk in this slot.
    pub fn chunk(&self, slot: u32) -> Decoded<Bytes> {
        let range = self.ranges.get(slot as usize).cloned();
        range
            .map(|range| self.raw.slice(range))
            .ok_or_else(|| Malformed(format!("frame has no chunk {slot}")))
    }

    /// Every chunk, in order.
    pub fn chunks(&self) -> impl Iterator<Item = Bytes> {
        self.ranges.iter().map(|range| self.raw.slice(range.clone()))
    }
}

/// Where each chunk of a decompressed frame lies.
pub(super) fn chunk_ranges(raw: &[u8]) -> Decoded<Vec<std::ops::Range<usize>>> {
    let mut reader = Reader::new(raw);
    let count = reader.count(1)?;
    let mut lengths = Vec::with_capacity(count);
    for _ in 0..count {
        lengths.push(reader.u32()? as usize);
    }
    let mut start = raw.len() - reader.remaining();
    let mut ranges = Vec::with_capacity(count);
    for len in lengths {
        reader.take(len)?;
        ranges.push(start..start + len);
        start += len;
    }
    reader.end()?;
    Ok(ranges)
}

/// A pack that is being filled.
pub(super) struct PackBody {
    pub id: PackId,
    hasher: Sha256,
    /// The header, then one piece a frame.
    pieces: Vec<Bytes>,
    pub frames: Vec<Frame>,
    keys: Vec<Key>,
    pub size: u64,
    raw: u64,
}

impl PackBody {
    pub fn new(id: PackId) -> Self {
        let header = Bytes::from([MAGIC.as_slice(), &[FORMAT]].concat());
        Self {
            id,
            hasher: Sha256::new_with_prefix(&header),
            size: header.len() as u64,
            pieces: vec![header],
            frames: Vec::new(),
            keys: Vec::new(),
            raw: 0,
        }
    }

    /// Adds a compressed frame; returns the number of its first chunk within the pack.
    pub fn push(&mut self, frame: &OpenFrame, compressed: Vec<u8>, raw: usize) -> Result<u32> {
        let too_large = |_| Error::Invalid("a pack cannot hold more than 4 GiB".to_owned());
        let first = u32::try_from(self.keys.len()).map_err(too_large)?;
        self.frames.push(Frame {
            first,
            chunks: u32::try_from(frame.keys.len()).map_err(too_large)?,
            offset: u32::try_from(self.size).map_err(too_large)?,
            len: u32::try_from(compressed.len()).map_err(too_large)?,
            raw: u32::try_from(raw).map_err(too_large)?,
            group: frame.group,
        });
        self.hasher.update(&compressed);
        self.size += compressed.len() as u64;
        self.raw += frame.len() as u64;
        self.pieces.push(compressed.into());
        self.keys.extend_from_slice(&frame.keys);
        Ok(first)
    }

    /// The compressed bytes of the `at`-th frame.
    pub fn piece(&self, at: usize) -> Option<Bytes> {
        self.pieces.get(at + 1).cloned()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Writes footer and trailer.
    pub fn seal(self) -> SealedPack {
        let mut footer = Vec::with_capacity(self.keys.len() * size_of::<Key>() + self.frames.len() * 12 + 8);
        footer.size(self.frames.len());
        for frame in &self.frames {
            footer.varint(u64::from(frame.len));
            footer.varint(u64::from(frame.raw));
            footer.varint(u64::from(frame.chunks));
            footer.extend_from_slice(&frame.group.0.to_le_bytes());
        }
        for key in &self.keys {
            footer.extend_from_slice(key);
        }
        let footer_len = u32::try_from(footer.len()).unwrap_or(u32::MAX);
        let mut tail = footer;
        let check = Digest::of(&tail);
        tail.extend_from_slice(&footer_len.to_le_bytes());
        tail.extend_from_slice(&check.as_bytes()[..8]);
        let mut hasher = self.hasher;
        hasher.update(&tail);
        let inner: [u8; 32] = hasher.clone().finalize().into();
        tail.extend_from_slice(&inner);
        hasher.update(inner);
        let mut pieces = self.pieces;
        let size = self.size + tail.len() as u64;
        pieces.push(tail.into());
        let record = PackRecord {
            id: self.id,
            size,
            footer: footer_len,
            sha256: Digest::from_bytes(hasher.finalize().into()),
            chunks: u32::try_from(self.keys.len()).unwrap_or(u32::MAX),
            raw: self.raw,
        };
        SealedPack {
            record,
            frames: self.frames,
            blob: Some(pieces),
        }
    }
}

/// A finished pack; `blob` until it is uploaded.
pub(super) struct SealedPack {
    pub record: PackRecord,
    pub frames: Vec<Frame>,
    pub blob: Option<Vec<Bytes>>,
}

/// The bytes of the blob that hold footer and trailer.
pub(super) fn tail_range(record: &PackRecord) -> std::ops::Range<u64> {
    record.size.saturating_sub(u64::from(record.footer) + TRAILER as u64)..record.size
}

/// Reads footer and trailer, given the last bytes of a pack.
pub(super) fn read_tail(tail: &[u8], size: u64) -> Decoded<Footer> {
    let Some(at) = tail.len().checked_sub(TRAILER) else {
        return malformed("shorter than a trailer");
    };
    let mut trailer = Reader::new(&tail[at..]);
    let len = u32::from_le_bytes(trailer.array()?) as usize;
    let check: [u8; 8] = trailer.array()?;
    let Some(start) = at.checked_sub(len) else {
        return malformed("footer does not fit");
    };
    let footer = &tail[start..at];
    if Digest::of(footer).as_bytes()[..8] != check {
        return malformed("footer does not match its checksum");
    }
    let mut reader = Reader::new(footer);
    let count = reader.count(7)?;
    let mut frames = Vec::with_capacity(count);
    let (mut first, mut offset) = (0u32, HEADER as u64);
    for _ in 0..count {
        let (len, raw, chunks) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let group = FrameGroup(u32::from_le_bytes(reader.array()?));
        if raw as usize > MAX_FRAME {
            return malformed(format!("frame of {raw} bytes"));
        }
        let start = u32::try_from(offset).or_else(|_| malformed("pack is too long"))?;
        frames.push(Frame {
            first,
            chunks,
            offset: start,
            len,
            raw,
            group,
        });
        first = first
            .checked_add(chunks)
            .ok_or_else(|| Malformed("too many chunks".to_owned()))?;
        offset += u64::from(len);
    }
    if offset + (tail.len() - start) as u64 != size {
        return malformed("frames do not add up to the size");
    }
    if reader.remaining() != (first as usize).saturating_mul(size_of::<Key>()) {
        return malformed("keys do not match the chunks");
    }
    let mut keys = Vec::with_capacity(first as usize);
    for _ in 0..first {
        keys.push(reader.array()?);
    }
    Ok(Footer { frames, keys })
}

/// Checks a whole pack against its own trailer and reads its footer; `NewerFormat` when a newer build wrote it.
pub(super) fn read_whole(id: PackId, blob: &[u8]) -> Result<Footer> {
    let corrupt = |problem: String| Error::corrupt(id.blob(), problem);
    let Some(at) = blob.len().checked_sub(32) else {
        return Err(corrupt("truncated".to_owned()));
    };
    if Digest::of(&blob[..at]).as_bytes() != &blob[at..] {
        return Err(corrupt("its SHA-256 does not match its trailer".to_owned()));
    }
    if blob.len() < HEADER || &blob[..4] != MAGIC {
        return Err(corrupt("not a pack".to_owned()));
    }
    if blob[4] > FORMAT {
        return Err(Error::NewerFormat {
            blob: id.blob(),
            found: blob[4].into(),
            supported: FORMAT.into(),
        });
    }
    read_tail(blob, blob.len() as u64).map_err(|e| corrupt(e.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text that looks like objects, with numbers that do not repeat.
    fn objects(bytes: usize) -> Vec<u8> {
        let object = |n: u64| {
            let digest = Digest::of(&n.to_le_bytes());
            format!(
                r#"{{"apiVersion":"v1","data":{{"{n}":"{digest}"}},"kind":"ConfigMap","metadata":{{"name":"settings-{n}"}}}}"#
            )
        };
        let mut text: Vec<u8> = (0..).flat_map(|n| object(n).into_bytes()).take(bytes).collect();
        text.shrink_to_fit();
        text
    }

    #[test]
    fn frames_of_every_size_and_level_come_back_as_they_were() {
        for level in [1, 5, 9] {
            let codecs = Codecs::new(level);
            for bytes in [0, 1, 20, 1_000, DICTIONARY.len(), FRAME_TARGET, 1 << 20] {
                let raw = objects(bytes);
                let compressed = codecs.compress(&raw).unwrap();
                assert_eq!(
                    codecs.decompress(&compressed, bytes).unwrap(),
                    raw,
                    "{bytes} bytes at {level}"
                );
            }
        }
    }

    #[test]
    fn frames_that_were_written_against_a_prepared_dictionary_are_still_read() {
        for bytes in [1, 1_000, FRAME_TARGET] {
            let raw = objects(bytes);
            let mut earlier = zstd::bulk::Compressor::with_dictionary(9, DICTIONARY).unwrap();
            let compressed = earlier.compress(&raw).unwrap();
            assert_eq!(
                Codecs::new(5).decompress(&compressed, bytes).unwrap(),
                raw,
                "{bytes} bytes"
            );
        }
    }

    #[test]
    fn the_first_object_of_a_kind_costs_less_than_half_of_what_it_would_without_the_dictionary() {
        let raw = br#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"labels":{"app.kubernetes.io/managed-by":"Helm"},"name":"web"}}"#;
        let with = Codecs::new(5).compress(raw).unwrap().len();
        let without = zstd::bulk::compress(raw, 5).unwrap().len();
        assert!(2 * with < without, "{with} bytes with it and {without} without");
    }
}
