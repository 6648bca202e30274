//! One segment: rows in identity order, column by column, so that alike bytes lie together.
//!
//! A row of a base segment is a whole entry. A row of a delta holds only what differs from the runs below it, or says that the entry is gone.

use std::{collections::HashMap, sync::Arc};

use super::{Entry, KindHeader, SharedKind, SortKey, sort_key};
use crate::{
    domain::object::Digest,
    repository::{
        codec::{Decoded, Reader, Write as _, malformed, unzigzag, zigzag},
        index::ShortDigest,
    },
};

/// Format byte of a segment.
const FORMAT: u8 = 1;
/// Most rows of a segment.
pub(in crate::repository) const MAX_ROWS: usize = 1024;

const REMOVED: u8 = 1;
const CONTENT: u8 = 2;
const BESIDE_SET: u8 = 4;
const BESIDE: u8 = 8;
const UID: u8 = 16;
const UID_TEXT: u8 = 32;
const REVISION: u8 = 64;
const REVISION_TEXT: u8 = 128;

/// What tells an object from another one of its name: 4 bytes when it is spelled as 8 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::repository) enum Uid {
    Mark([u8; 4]),
    Text(Box<str>),
}

impl Uid {
    fn parse(text: &str) -> Self {
        let mut bytes = [0; 4];
        if hex::decode_to_slice(text, &mut bytes).is_ok() && hex::encode(bytes) == text {
            Self::Mark(bytes)
        } else {
            Self::Text(text.into())
        }
    }

    pub fn text(&self) -> String {
        match self {
            Self::Mark(bytes) => hex::encode(bytes),
            Self::Text(text) => text.to_string(),
        }
    }
}

/// A resource version: a number in all servers that use etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::repository) enum Revision {
    Number(u64),
    Text(Box<str>),
}

impl Revision {
    fn parse(text: &str) -> Self {
        match text.parse::<u64>() {
            Ok(number) if number.to_string() == text => Self::Number(number),
            _ => Self::Text(text.into()),
        }
    }

    pub fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.to_string(),
        }
    }
}

/// What a row says about its entry; `None` = as below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::option_option, reason = "not said, said to be none, said to be this")]
pub(in crate::repository) struct Row {
    pub kind: u32,
    pub name: Box<str>,
    pub removed: bool,
    pub content: Option<(Digest, u32)>,
    pub beside: Option<Option<ShortDigest>>,
    pub uid: Option<Uid>,
    pub revision: Option<Revision>,
}

impl Row {
    /// A whole entry.
    pub fn whole(kind: u32, entry: &Entry) -> Self {
        Self {
            kind,
            name: entry.name.as_str().into(),
            removed: false,
            content: Some((entry.content, entry.size)),
            beside: Some(entry.beside),
            uid: Some(Uid::parse(&entry.uid)),
            revision: Some(Revision::parse(&entry.resource_version)),
        }
    }

    /// The end of an entry.
    pub fn removed(kind: u32, name: &str) -> Self {
        Self {
            kind,
            name: name.into(),
            removed: true,
            ..Self::default()
        }
    }

    /// What `entry` changes about `before`; `None` when nothing.
    pub fn difference(kind: u32, before: &Entry, entry: &Entry) -> Option<Self> {
        if before == entry {
            return None;
        }
        let mut row = Self::whole(kind, entry);
        if before.content == entry.content && before.size == entry.size {
            row.content = None;
        }
        if before.beside == entry.beside {
            row.beside = None;
        }
        if before.uid == entry.uid {
            row.uid = None;
        }
        if before.resource_version == entry.resource_version {
            row.revision = None;
        }
        Some(row)
    }

    /// Lays this row over what is below it; `None` = no entry.
    pub fn overlay(&self, below: Option<Entry>) -> Decoded<Option<Entry>> {
        if self.removed {
            return Ok(None);
        }
        let whole = || -> Option<Entry> {
            let (content, size) = self.content?;
            Some(Entry {
                name: self.name.to_string(),
                content,
                size,
                beside: self.beside?,
                uid: self.uid.as_ref()?.text(),
                resource_version: self.revision.as_ref()?.text(),
            })
        };
        if let Some(entry) = whole() {
            return Ok(Some(entry));
        }
        let Some(mut entry) = below else {
            return malformed(format!("row `{}` changes an entry that is not there", self.name));
        };
        if let Some((content, size)) = self.content {
            (entry.content, entry.size) = (content, size);
        }
        if let Some(beside) = self.beside {
            entry.beside = beside;
        }
        if let Some(uid) = &self.uid {
            entry.uid = uid.text();
        }
        if let Some(revision) = &self.revision {
            entry.resource_version = revision.text();
        }
        Ok(Some(entry))
    }

    fn flags(&self) -> u8 {
        let mut flags = 0;
        if self.removed {
            return REMOVED;
        }
        if self.content.is_some() {
            flags |= CONTENT;
        }
        match self.beside {
            Some(Some(_)) => flags |= BESIDE_SET | BESIDE,
            Some(None) => flags |= BESIDE_SET,
            None => {}
        }
        match self.uid {
            Some(Uid::Mark(_)) => flags |= UID,
            Some(Uid::Text(_)) => flags |= UID | UID_TEXT,
            None => {}
        }
        match self.revision {
            Some(Revision::Number(_)) => flags |= REVISION,
            Some(Revision::Text(_)) => flags |= REVISION | REVISION_TEXT,
            None => {}
        }
        flags
    }
}

/// A decoded segment: at most [`MAX_ROWS`] rows in identity order.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::repository) struct Segment {
    pub kinds: Vec<SharedKind>,
    pub rows: Vec<Row>,
}

impl Segment {
    pub fn key(&self, at: usize) -> Option<SortKey<'_>> {
        let row = self.rows.get(at)?;
        Some(sort_key(self.kinds.get(row.kind as usize)?, &row.name))
    }

    /// The first row at or after `key`.
    pub fn seek(&self, key: &SortKey<'_>) -> usize {
        self.rows.partition_point(|row| {
            self.kinds
                .get(row.kind as usize)
                .is_some_and(|kind| sort_key(kind, &row.name) < *key)
        })
    }
}

/// Encodes rows that are sorted by identity; `kinds` are those that their `kind` counts in.
pub(in crate::repository) fn encode(kinds: &[SharedKind], rows: &[Row]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rows.len() * 72 + 128);
    bytes.push(FORMAT);
    let runs: Vec<&[Row]> = rows.chunk_by(|a, b| a.kind == b.kind).collect();
    bytes.size(runs.len());
    for run in &runs {
        let kind = &kinds[run[0].kind as usize];
        for text in [&kind.group, &kind.version, &kind.kind, &kind.plural, &kind.component] {
            bytes.text(text);
        }
        bytes.push(u8::from(kind.namespaced));
        bytes.size(run.len());
    }
    // Numbered as they first occur, so that the numbers of a segment whose objects share none compress to nothing.
    let (mut besides, mut numbers) = (Vec::new(), HashMap::new());
    for digest in rows.iter().filter_map(|row| row.beside.flatten()) {
        numbers.entry(digest).or_insert_with(|| {
            besides.push(digest);
            besides.len() - 1
        });
    }
    bytes.size(besides.len());
    for digest in &besides {
        bytes.extend_from_slice(&digest.0);
    }
    bytes.extend(rows.iter().map(Row::flags));
    for run in &runs {
        let mut before = "";
        for row in *run {
            let shared = before.bytes().zip(row.name.bytes()).take_while(|(a, b)| a == b).count();
            // A prefix must end at a character for the suffix to be text.
            let shared = (0..=shared)
                .rev()
                .find(|at| row.name.is_char_boundary(*at))
                .unwrap_or(0);
            bytes.size(shared);
            bytes.text(&row.name[shared..]);
            before = &row.name;
        }
    }
    for (_, size) in rows.iter().filter_map(|row| row.content) {
        bytes.varint(u64::from(size));
    }
    let mut fresh = 0;
    for digest in rows.iter().filter_map(|row| row.beside.flatten()) {
        let number = numbers[&digest];
        // Against the highest before it: in a segment whose objects share none, every number is the same.
        bytes.size(fresh - number);
        fresh += usize::from(number == fresh);
    }
    let mut before = 0u64;
    for revision in rows.iter().filter_map(|row| row.revision.as_ref()) {
        match revision {
            Revision::Number(number) => {
                bytes.varint(zigzag(number.wrapping_sub(before).cast_signed()));
                before = *number;
            }
            Revision::Text(text) => bytes.text(text),
        }
    }
    for uid in rows.iter().filter_map(|row| row.uid.as_ref()) {
        match uid {
            Uid::Mark(mark) => bytes.extend_from_slice(mark),
            Uid::Text(text) => bytes.text(text),
        }
    }
    for (digest, _) in rows.iter().filter_map(|row| row.content) {
        bytes.extend_from_slice(digest.as_bytes());
    }
    bytes
}

/// The kinds of a segment, and how many rows each has.
fn read_kinds(reader: &mut Reader<'_>) -> Decoded<(Vec<SharedKind>, Vec<usize>)> {
    let kind_count = reader.count(7)?;
    let (mut kinds, mut lengths) = (Vec::with_capacity(kind_count), Vec::with_capacity(kind_count));
    for _ in 0..kind_count {
        let mut text = || reader.text().map(str::to_owned);
        let (group, version, kind, plural, component) = (text()?, text()?, text()?, text()?, text()?);
        let namespaced = reader.byte()? != 0;
        kinds.push(Arc::new(KindHeader {
            group,
            version,
            kind,
            plural,
            component,
            namespaced,
        }));
        lengths.push(reader.count(1)?);
    }
    Ok((kinds, lengths))
}

/// Decodes any bytes: an error when they are not a segment, never a panic, never more memory than a few times their length.
pub(in crate::repository) fn decode(bytes: &[u8]) -> Decoded<Segment> {
    let mut reader = Reader::new(bytes);
    let format = reader.byte()?;
    if format != FORMAT {
        return malformed(format!("segment format {format}, this build reads {FORMAT}"));
    }
    let (kinds, lengths) = read_kinds(&mut reader)?;
    let total: usize = lengths.iter().sum();
    if total > MAX_ROWS {
        return malformed(format!("{total} rows, at most {MAX_ROWS}"));
    }
    let beside_count = reader.count(12)?;
    let mut besides = Vec::with_capacity(beside_count);
    for _ in 0..beside_count {
        besides.push(ShortDigest(reader.array()?));
    }
    let flags = reader.take(total)?;
    let mut rows = Vec::with_capacity(total);
    for (kind, len) in (0u32..).zip(&lengths) {
        let mut before = String::new();
        for _ in 0..*len {
            let shared = reader.u32()? as usize;
            let suffix = reader.text()?;
            let Some(prefix) = before.get(..shared) else {
                return malformed("name shares more than there is");
            };
            let name = [prefix, suffix].concat();
            rows.push(Row {
                kind,
                name: name.as_str().into(),
                ..Row::default()
            });
            before = name;
        }
    }
    let with = |mask: u8, value: u8| {
        flags
            .iter()
            .enumerate()
            .filter(move |(_, f)| **f & mask == value)
            .map(|(at, _)| at)
    };
    for at in with(REMOVED, REMOVED) {
        rows[at].removed = true;
    }
    let contents: Vec<usize> = with(CONTENT, CONTENT).collect();
    let mut sizes = Vec::with_capacity(contents.len());
    for _ in &contents {
        sizes.push(reader.u32()?);
    }
    for at in with(BESIDE_SET, BESIDE_SET) {
        rows[at].beside = Some(None);
    }
    let mut fresh = 0;
    for at in with(BESIDE, BESIDE) {
        let back = reader.u32()? as usize;
        let Some(digest) = usize::checked_sub(fresh, back).and_then(|number| besides.get(number)) else {
            return malformed("beside is not in the table");
        };
        fresh += usize::from(back == 0);
        rows[at].beside = Some(Some(*digest));
    }
    let mut before = 0u64;
    for at in with(REVISION, REVISION) {
        rows[at].revision = Some(if flags[at] & REVISION_TEXT != 0 {
            Revision::Text(reader.text()?.into())
        } else {
            before = before.wrapping_add_signed(unzigzag(reader.varint()?));
            Revision::Number(before)
        });
    }
    for at in with(UID, UID) {
        rows[at].uid = Some(if flags[at] & UID_TEXT != 0 {
            Uid::Text(reader.text()?.into())
        } else {
            Uid::Mark(reader.array()?)
        });
    }
    for (at, size) in contents.into_iter().zip(sizes) {
        rows[at].content = Some((Digest::from_bytes(reader.array()?), size));
    }
    reader.end()?;
    let segment = Segment { kinds, rows };
    for at in 1..segment.rows.len() {
        if segment.key(at - 1) >= segment.key(at) {
            return malformed("rows are out of order");
        }
    }
    Ok(segment)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(n: u32) -> SharedKind {
        Arc::new(KindHeader {
            group: String::new(),
            version: "v1".to_owned(),
            kind: format!("Kind{n}"),
            plural: format!("kind{n}s"),
            component: "Configuration".to_owned(),
            namespaced: true,
        })
    }

    fn row() -> impl Strategy<Value = Row> {
        let entry = (
            ".{0,12}",
            any::<[u8; 32]>(),
            any::<u32>(),
            any::<Option<[u8; 2]>>(),
            ".{0,6}",
            any::<Option<u64>>(),
        );
        (entry, 0u32..3, any::<u8>()).prop_map(|((name, content, size, beside, uid, revision), kind, mask)| {
            let uid = if mask & 64 == 0 {
                uid
            } else {
                hex::encode(&content[..4])
            };
            let resource_version = revision.map_or_else(|| "x1".to_owned(), |n| n.to_string());
            let beside = beside.map(|b| Digest::of(&b).into());
            let content = Digest::from_bytes(content);
            let mut row = Row::whole(
                kind,
                &Entry {
                    name,
                    content,
                    size,
                    beside,
                    uid,
                    resource_version,
                },
            );
            if mask & 1 != 0 {
                return Row::removed(kind, &row.name);
            }
            if mask & 2 != 0 {
                row.content = None;
            }
            if mask & 4 != 0 {
                row.beside = None;
            }
            if mask & 8 != 0 {
                row.uid = None;
            }
            if mask & 16 != 0 {
                row.revision = None;
            }
            row
        })
    }

    proptest! {
        #[test]
        fn a_segment_reads_back_what_was_written(mut rows in prop::collection::vec(row(), 0..60)) {
            let kinds: Vec<_> = (0..3).map(kind).collect();
            rows.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
            rows.dedup_by(|a, b| (a.kind, &a.name) == (b.kind, &b.name));
            let decoded = decode(&encode(&kinds, &rows)).unwrap();
            prop_assert_eq!(decoded.rows.len(), rows.len());
            for (mut read, row) in decoded.rows.into_iter().zip(rows) {
                prop_assert_eq!(&decoded.kinds[read.kind as usize], &kinds[row.kind as usize]);
                read.kind = row.kind;
                prop_assert_eq!(read, row);
            }
        }

        #[test]
        fn random_bytes_never_panic(mut bytes: Vec<u8>, format: bool) {
            if let Some(first) = bytes.first_mut().filter(|_| format) {
                *first = FORMAT;
            }
            let _ = decode(&bytes);
        }

        #[test]
        fn a_damaged_segment_never_panics(rows in prop::collection::vec(row(), 1..20), at: usize, bit in 0..8) {
            let kinds: Vec<_> = (0..3).map(kind).collect();
            let mut bytes = encode(&kinds, &rows);
            let at = at % bytes.len();
            bytes[at] ^= 1u8 << bit;
            let _ = decode(&bytes);
        }
    }
}
