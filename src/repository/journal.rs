//! The journal: the only truth. A record is `BSJR`, a format byte, the SHA-256 of the record before it, zstd-compressed JSON, and the
//! SHA-256 of all that. Checkpoints (`BSCP`) have the same envelope around the whole state.

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    error::{Error, Result},
    model::{Counts, FORMAT_VERSION, LineageKey, SegmentRef, Sizes, SnapshotRecord},
    pack::{Codecs, PackId, PackRecord},
};
use crate::domain::object::{Digest, ObjectId};

/// Largest decompressed record or checkpoint: half a million snapshots.
const MAX_JSON: usize = 256 << 20;
const HASH: usize = 32;
const PREFIX: usize = 4 + 1 + HASH;

/// What an envelope holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Envelope {
    Record,
    Checkpoint,
}

impl Envelope {
    fn magic(self) -> &'static [u8; 4] {
        match self {
            Self::Record => b"BSJR",
            Self::Checkpoint => b"BSCP",
        }
    }

    pub fn blob(self, seq: u64) -> String {
        match self {
            Self::Record => format!("journal/{seq:016}"),
            Self::Checkpoint => format!("checkpoints/{seq:016}"),
        }
    }

    pub fn prefix(self) -> &'static str {
        match self {
            Self::Record => "journal/",
            Self::Checkpoint => "checkpoints/",
        }
    }

    /// The sequence number in a key.
    pub fn seq(self, key: &str) -> Option<u64> {
        let number = key.strip_prefix(self.prefix())?;
        (number.len() == 16 && number.bytes().all(|b| b.is_ascii_digit())).then(|| number.parse().ok())?
    }

    /// Wraps a body. `previous` is the hash of the record before, or for a checkpoint of the last record that it contains.
    pub fn seal(self, codecs: &Codecs, previous: &Digest, body: &impl Serialize) -> Result<(Vec<u8>, Digest)> {
        let json = serde_json::to_vec(body).map_err(|e| Error::Invalid(format!("record cannot be written: {e}")))?;
        let mut bytes = [self.magic().as_slice(), &[1], previous.as_bytes()].concat();
        bytes.extend(u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(codecs.compress(&json)?);
        let hash = Digest::of(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        Ok((bytes, hash))
    }

    /// Unwraps; returns the previous hash, the own hash and the body.
    pub fn open<T: DeserializeOwned>(self, codecs: &Codecs, blob: &str, bytes: &[u8]) -> Result<(Digest, Digest, T)> {
        let corrupt = |problem: &str| Error::corrupt(blob, problem);
        if bytes.len() < PREFIX + 4 + HASH {
            return Err(corrupt("truncated"));
        }
        let (content, trailer) = bytes.split_at(bytes.len() - HASH);
        let hash = Digest::of(content);
        if hash.as_bytes() != trailer {
            return Err(corrupt("its SHA-256 does not match"));
        }
        if &content[..4] != self.magic() {
            return Err(corrupt("not a blob of this kind"));
        }
        if u32::from(content[4]) > FORMAT_VERSION {
            return Err(Error::NewerFormat {
                blob: blob.to_owned(),
                found: content[4].into(),
                supported: FORMAT_VERSION,
            });
        }
        let mut previous = [0; HASH];
        previous.copy_from_slice(&content[5..PREFIX]);
        let mut len = [0; 4];
        len.copy_from_slice(&content[PREFIX..PREFIX + 4]);
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_JSON {
            return Err(corrupt("announces more than 256 MiB"));
        }
        let json = codecs
            .decompress(&content[PREFIX + 4..], len)
            .map_err(|e| corrupt(&e.0))?;
        let body = serde_json::from_slice(&json).map_err(|e| corrupt(&format!("cannot be understood: {e}")))?;
        Ok((Digest::from_bytes(previous), hash, body))
    }
}

/// One entry of the journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// Random, so that a writer recognises its own record after a lost answer.
    pub nonce: String,
    #[serde(flatten)]
    pub op: Op,
}

/// What a record does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Op {
    /// Adds packs and snapshots.
    Commit {
        snapshots: Vec<WireSnapshot>,
        packs: Vec<PackRecord>,
    },
    /// Forgets snapshots.
    Delete { uids: Vec<String> },
    /// Says which version is live.
    SetHead {
        namespace: String,
        lineage: String,
        version: u64,
    },
    /// Takes packs out of use, which may be deleted from now on; `add` holds copies of what was live in them.
    Collect { add: Vec<PackRecord>, condemn: Vec<PackId> },
}

/// The whole state, in the order that [`super::state::State::restore`] needs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireState {
    pub seq: u64,
    pub lineages: Vec<(String, String, Option<u64>, u64)>,
    pub snapshots: Vec<WireSnapshot>,
    pub packs: Vec<PackRecord>,
    pub condemned: Vec<(PackId, Timestamp)>,
}

/// A snapshot as the difference to its base, a former version of its lineage: an unchanged one takes a few dozen bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct WireSnapshot {
    #[serde(rename = "u")]
    pub uid: String,
    #[serde(rename = "ns")]
    pub namespace: String,
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<String>,
    #[serde(rename = "n")]
    pub name: String,
    #[serde(rename = "v")]
    pub version: u64,
    /// Version of the base.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    base: Option<u64>,
    #[serde(rename = "nu", default, skip_serializing_if = "Option::is_none")]
    namespace_uid: Option<String>,
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    parent: Option<u64>,
    /// Milliseconds since the epoch.
    #[serde(rename = "t")]
    created: i64,
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    author: Option<String>,
    #[serde(rename = "s", default, skip_serializing_if = "std::ops::Not::not")]
    safety: bool,
    #[serde(rename = "g", default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    digest: Option<WireDigest>,
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    extras: Option<WireDigest>,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    digest_extra: Option<WireDigest>,
    #[serde(rename = "c")]
    counts: [u64; 5],
    #[serde(rename = "z")]
    sizes: [u64; 3],
    /// Segments of the base that stay, from its first on.
    #[serde(rename = "k", default, skip_serializing_if = "is_zero")]
    keep: usize,
    #[serde(rename = "m", default, skip_serializing_if = "Vec::is_empty")]
    segments: Vec<WireSegment>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// Run, rows, digest, group, kind, name.
type WireSegment = (u32, u32, WireDigest, String, String, String);

/// 64 hex digits; empty where the base has a value and the snapshot has none.
type WireDigest = String;

const DEFAULT_LINEAGE: &str = "default";

impl WireSnapshot {
    pub fn lineage_key(&self) -> LineageKey {
        LineageKey::new(&self.namespace, self.lineage.as_deref().unwrap_or(DEFAULT_LINEAGE))
    }

    /// Version of the base, which [`Self::read`] wants.
    pub fn base(&self) -> Option<u64> {
        self.base
    }

    pub fn write(record: &SnapshotRecord, base: Option<&SnapshotRecord>) -> Self {
        let keep = base.map_or(0, |base| {
            base.segments
                .iter()
                .zip(record.segments.iter())
                .take_while(|(a, b)| a == b)
                .count()
        });
        let optional = |value: Option<Digest>, before: Option<Option<Digest>>| match before {
            Some(before) if before == value => None,
            Some(Some(_)) if value.is_none() => Some(String::new()),
            _ => value.map(|digest| digest.to_hex()),
        };
        let Counts {
            captured,
            unchanged,
            added,
            changed,
            removed,
        } = record.counts;
        let Sizes { logical, new, stored } = record.sizes;
        Self {
            uid: record.uid.clone(),
            namespace: record.namespace.clone(),
            lineage: (record.lineage != DEFAULT_LINEAGE).then(|| record.lineage.clone()),
            name: record.name.clone(),
            version: record.version,
            base: base.map(|base| base.version),
            namespace_uid: (base.map(|base| &base.namespace_uid) != Some(&record.namespace_uid))
                .then(|| record.namespace_uid.clone()),
            parent: record.parent,
            created: record.created_at.as_millisecond(),
            author: record.author.clone(),
            safety: record.safety,
            tags: record.tags.clone(),
            digest: optional(Some(record.digest), base.map(|base| Some(base.digest))),
            extras: optional(record.extras, base.map(|base| base.extras)),
            digest_extra: optional(record.digest_extra, base.map(|base| base.digest_extra)),
            counts: [captured, unchanged, added, changed, removed],
            sizes: [logical, new, stored],
            keep,
            segments: record.segments[keep..]
                .iter()
                .map(|s| {
                    let ObjectId { group, kind, name } = s.first.clone();
                    (s.run, s.entries, s.digest.to_hex(), group, kind, name)
                })
                .collect(),
        }
    }

    /// Fills in what the base knows.
    pub fn read(&self, base: Option<&SnapshotRecord>) -> Result<SnapshotRecord, String> {
        if self.base.is_some() != base.is_some() {
            return Err(format!(
                "snapshot {} builds upon version {:?}, which is not there",
                self.uid, self.base
            ));
        }
        let digest = |hex: &str| format!("sha256:{hex}").parse::<Digest>().map_err(|e| e.to_string());
        let optional = |value: &Option<WireDigest>, before: Option<Option<Digest>>| match value.as_deref() {
            None => Ok(before.flatten()),
            Some("") => Ok(None),
            Some(hex) => digest(hex).map(Some),
        };
        let kept = base.map_or(&[][..], |base| &base.segments);
        let Some(kept) = kept.get(..self.keep) else {
            return Err(format!("snapshot {} keeps more segments than its base has", self.uid));
        };
        let segments = match base {
            Some(base) if kept.len() == base.segments.len() && self.segments.is_empty() => base.segments.clone(),
            _ => {
                let mut segments = kept.to_vec();
                for (run, entries, hex, group, kind, name) in &self.segments {
                    let first = ObjectId::new(group, kind, name);
                    segments.push(SegmentRef {
                        digest: digest(hex)?,
                        run: *run,
                        entries: *entries,
                        first,
                    });
                }
                segments.into()
            }
        };
        let [captured, unchanged, added, changed, removed] = self.counts;
        let [logical, new, stored] = self.sizes;
        let key = self.lineage_key();
        Ok(SnapshotRecord {
            uid: self.uid.clone(),
            namespace: key.namespace,
            namespace_uid: self
                .namespace_uid
                .clone()
                .or_else(|| base.map(|base| base.namespace_uid.clone()))
                .unwrap_or_default(),
            name: self.name.clone(),
            lineage: key.lineage,
            version: self.version,
            parent: self.parent,
            created_at: Timestamp::from_millisecond(self.created).map_err(|e| e.to_string())?,
            author: self.author.clone(),
            safety: self.safety,
            tags: self.tags.clone(),
            digest: optional(&self.digest, base.map(|base| Some(base.digest)))?
                .ok_or_else(|| format!("snapshot {} has no digest", self.uid))?,
            format_version: FORMAT_VERSION,
            counts: Counts {
                captured,
                unchanged,
                added,
                changed,
                removed,
            },
            sizes: Sizes { logical, new, stored },
            segments,
            extras: optional(&self.extras, base.map(|base| base.extras))?,
            digest_extra: optional(&self.digest_extra, base.map(|base| base.digest_extra))?,
        })
    }
}
