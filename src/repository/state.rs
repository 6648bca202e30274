//! The state: the journal folded, record by record. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    journal::{Op, Record, WireSnapshot, WireState},
    model::{LineageKey, LineageState, SnapshotRecord},
    pack::{PackId, PackRecord},
};
use crate::domain::object::Digest;

/// How long a condemned pack is remembered, so that nobody can still commit upon it. Writers live shorter than that.
const REMEMBER_CONDEMNED: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Everything that the journal says up to `seq`.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Last record folded in; 0 = none.
    pub seq: u64,
    /// Its hash, which the next record names.
    pub hash: Digest,
    pub lineages: BTreeMap<LineageKey, LineageState>,
    pub snapshots: HashMap<String, Arc<SnapshotRecord>>,
    pub versions: BTreeMap<(LineageKey, u64), Arc<SnapshotRecord>>,
    /// In the order they were added, which decides which copy of a chunk counts.
    pub packs: BTreeMap<u64, PackRecord>,
    pub condemned: BTreeMap<PackId, Timestamp>,
    next_pack: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            seq: 0,
            hash: Digest::from_bytes([0; 32]),
            lineages: BTreeMap::new(),
            snapshots: HashMap::new(),
            versions: BTreeMap::new(),
            packs: BTreeMap::new(),
            condemned: BTreeMap::new(),
            next_pack: 0,
        }
    }
}

impl State {
    /// Folds one record in; an error names what cannot be.
    pub fn apply(&mut self, seq: u64, hash: Digest, record: &Record) -> Result<(), String> {
        if seq != self.seq + 1 {
            return Err(format!("record {seq} follows record {}", self.seq));
        }
        match &record.op {
            Op::Commit { snapshots, packs } => {
                self.add_packs(packs)?;
                for snapshot in snapshots {
                    self.add_snapshot(snapshot)?;
                }
            }
            Op::Delete { uids } => {
                for uid in uids {
                    if let Some(gone) = self.snapshots.remove(uid) {
                        self.versions.remove(&(gone.lineage_key(), gone.version));
                    }
                }
            }
            Op::SetHead {
                namespace,
                lineage,
                version,
            } => {
                let key = LineageKey::new(namespace, lineage);
                let state = self
                    .lineages
                    .get_mut(&key)
                    .ok_or_else(|| format!("no lineage {key:?}"))?;
                state.head = Some(*version);
            }
            Op::Collect { add, condemn } => {
                self.packs.retain(|_, pack| !condemn.contains(&pack.id));
                self.condemned.extend(condemn.iter().map(|id| (*id, record.at)));
                self.add_packs(add)?;
            }
        }
        self.condemned
            .retain(|_, at| record.at.duration_since(*at) < REMEMBER_CONDEMNED);
        self.seq = seq;
        self.hash = hash;
        Ok(())
    }

    fn add_packs(&mut self, packs: &[PackRecord]) -> Result<(), String> {
        for pack in packs {
            if self.condemned.contains_key(&pack.id) {
                return Err(format!("pack {} was condemned before", pack.id));
            }
            self.packs.insert(self.next_pack, pack.clone());
            self.next_pack += 1;
        }
        Ok(())
    }

    fn add_snapshot(&mut self, wire: &WireSnapshot) -> Result<(), String> {
        let key = wire.lineage_key();
        let base = wire
            .base()
            .and_then(|version| self.versions.get(&(key.clone(), version)).cloned());
        let record = Arc::new(wire.read(base.as_deref())?);
        let lineage = self.lineages.entry(key.clone()).or_insert(LineageState {
            head: None,
            next_version: 1,
        });
        if record.version < lineage.next_version || self.snapshots.contains_key(&record.uid) {
            return Err(format!("version {} of {key:?} is given twice", record.version));
        }
        lineage.next_version = record.version + 1;
        lineage.head = Some(record.version);
        self.versions.insert((key, record.version), record.clone());
        self.snapshots.insert(record.uid.clone(), record);
        Ok(())
    }

    /// The snapshots of a lineage, by version.
    pub fn lineage(&self, key: &LineageKey) -> impl DoubleEndedIterator<Item = &Arc<SnapshotRecord>> {
        self.versions
            .range((key.clone(), 0)..=(key.clone(), u64::MAX))
            .map(|(_, record)| record)
    }

    /// For a checkpoint.
    pub fn save(&self) -> WireState {
        let mut before: Option<&Arc<SnapshotRecord>> = None;
        let mut snapshots = Vec::with_capacity(self.versions.len());
        for ((key, _), record) in &self.versions {
            let base = before.filter(|base| base.namespace == key.namespace && base.lineage == key.lineage);
            snapshots.push(WireSnapshot::write(record, base.map(AsRef::as_ref)));
            before = Some(record);
        }
        WireState {
            seq: self.seq,
            lineages: self
                .lineages
                .iter()
                .map(|(key, state)| {
                    (
                        key.namespace.clone(),
                        key.lineage.clone(),
                        state.head,
                        state.next_version,
                    )
                })
                .collect(),
            snapshots,
            packs: self.packs.values().cloned().collect(),
            condemned: self.condemned.iter().map(|(id, at)| (*id, *at)).collect(),
        }
    }

    /// From a checkpoint whose last record has this hash.
    pub fn restore(wire: WireState, hash: Digest) -> Result<Self, String> {
        let mut state = Self::default();
        state.add_packs(&wire.packs)?;
        for snapshot in &wire.snapshots {
            state.add_snapshot(snapshot)?;
        }
        for (namespace, lineage, head, next_version) in wire.lineages {
            state
                .lineages
                .insert(LineageKey { namespace, lineage }, LineageState { head, next_version });
        }
        state.condemned = wire.condemned.into_iter().collect();
        state.seq = wire.seq;
        state.hash = hash;
        Ok(state)
    }
}
