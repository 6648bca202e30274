//! Reading everything back and comparing it with its digests.

use std::collections::BTreeSet;

use kube::{ResourceExt as _, api::ListParams};
use serde::Serialize;

use super::{
    Class, Result, Session,
    contents::{Contents, failed},
    list::{self, Scope},
    reference,
};
use crate::{
    api::Snapshot,
    repository::{Progress, VerifyReport},
};

/// Damage, and whom it concerns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    /// The damaged or missing blob, or the Snapshot that has no contents.
    pub blob: String,
    /// What is wrong with it.
    pub problems: Vec<String>,
    /// Snapshots that cannot be brought back whole because of it, as `namespace/name (lineage@version)`; empty: none needs it.
    pub snapshots: BTreeSet<String>,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    /// Blobs read.
    pub blobs: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Contents whose SHA-256 was computed.
    pub contents: u64,
    /// Snapshots whose digest was computed.
    pub snapshots: usize,
    /// Whether the Snapshots of all namespaces were compared with the store, and not only the store with itself.
    pub objects_compared: bool,
    /// Everything that is wrong.
    pub damage: Vec<Damage>,
}

impl Verified {
    fn add(&mut self, contents: &Contents, report: VerifyReport) {
        self.blobs += report.blobs;
        self.bytes += report.bytes;
        self.contents += report.chunks;
        self.snapshots += report.snapshots;
        for finding in report.findings {
            let snapshots = finding.snapshots.iter().map(|uid| describe(contents, uid)).collect();
            let damage = Damage {
                blob: finding.blob,
                problems: finding.problems,
                snapshots,
            };
            if !self.damage.contains(&damage) {
                self.damage.push(damage);
            }
        }
    }
}

fn describe(contents: &Contents, uid: &str) -> String {
    contents.repository().snapshot(uid).map_or_else(
        || format!("uid {uid}"),
        |record| {
            format!(
                "{}/{} ({}@{})",
                record.namespace, record.name, record.lineage, record.version
            )
        },
    )
}

/// Reads the whole store back, and compares the Snapshots of all namespaces with it where the user may list them.
pub async fn all(session: &Session, contents: &Contents, progress: impl FnMut(Progress) + Send) -> Result<Verified> {
    let mut verified = Verified::default();
    let report = contents.repository().verify(progress).await.map_err(|e| failed(&e))?;
    verified.add(contents, report);
    match list::all(session, Scope::All, &ListParams::default()).await {
        Ok(snapshots) => {
            verified.objects_compared = true;
            verified
                .damage
                .extend(snapshots.iter().filter_map(|snapshot| disagreement(contents, snapshot)));
        }
        Err(error) if error.class == Class::Forbidden => {}
        Err(error) => return Err(error),
    }
    Ok(verified)
}

/// Reads back what the named snapshots need; `done` is called after each.
pub async fn some(contents: &Contents, snapshots: &[Snapshot], mut done: impl FnMut(&Snapshot)) -> Result<Verified> {
    let mut verified = Verified {
        objects_compared: true,
        ..Verified::default()
    };
    for snapshot in snapshots {
        if let Some(damage) = disagreement(contents, snapshot) {
            verified.damage.push(damage);
        } else {
            let uid = snapshot.uid().unwrap_or_default();
            let report = contents
                .repository()
                .verify_snapshot(&uid)
                .await
                .map_err(|e| failed(&e))?;
            verified.add(contents, report);
        }
        done(snapshot);
    }
    Ok(verified)
}

/// A snapshot without the contents that it should have, or with others than its status tells. The status is always there first.
fn disagreement(contents: &Contents, snapshot: &Snapshot) -> Option<Damage> {
    if !reference::has_contents(snapshot) {
        return None;
    }
    let told = snapshot.status.as_ref()?.digest.clone().unwrap_or_default();
    let problem = match contents.repository().snapshot(&snapshot.uid()?) {
        None => "the store has no contents for it".to_owned(),
        Some(record) if record.digest.to_string() != told => {
            format!("its status tells of {told}, the store holds {}", record.digest)
        }
        Some(_) => return None,
    };
    let name = format!("{}/{}", snapshot.namespace().unwrap_or_default(), snapshot.name_any());
    let version = reference::versioned(snapshot).map_or_else(String::new, |v| format!(" ({v})"));
    Some(Damage {
        blob: format!("Snapshot {name}"),
        problems: vec![problem],
        snapshots: [format!("{name}{version}")].into(),
    })
}
