//! Contents that are still stored though their Snapshot is gone: `deletionPolicy: Retain`, or a grace that is not over.

use std::collections::HashSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{ResourceExt, api::ListParams};

use super::{
    Class, Error, Reference, Result, Session,
    contents::{Contents, extras, failed},
    list::{self, Scope},
    reference,
};
use crate::{
    api::{
        Snapshot, SnapshotSpec, SnapshotStatus, conditions, reasons,
        reference::Identity,
        snapshot::{DeletionPolicy, ObjectCounts, ParentVersion, SnapshotPhase, SnapshotSize},
    },
    repository::SnapshotRecord,
};

/// Contents whose Snapshot does not exist any more, each as the Snapshot that it was, by lineage and version; labels and annotations
/// are not stored. Its phase is `Expired`, and the condition `Ready` says why the contents are still there.
///
/// # Errors
/// `Forbidden` for whom may not list the snapshots of the scope, or not read the store.
pub async fn all(session: &Session, contents: &Contents, scope: Scope) -> Result<Vec<Snapshot>> {
    // The store is read before the objects: what is committed meanwhile has an object.
    let records = contents.repository().snapshots(None);
    let objects = list::all(session, scope, &ListParams::default()).await?;
    let alive: HashSet<String> = objects.iter().filter_map(ResourceExt::uid).collect();
    let mut found = Vec::new();
    for record in &records {
        let here = scope == Scope::All || record.namespace == session.namespace;
        if here && !alive.contains(&record.uid) {
            let retained = is_retained(contents, record).await?;
            let parent = records
                .iter()
                .find(|other| other.lineage_key() == record.lineage_key() && Some(other.version) == record.parent);
            found.push(restored(record, parent.map(AsRef::as_ref), retained));
        }
    }
    list::sort(&mut found);
    Ok(found)
}

/// Nobody can tell when what says so is damaged.
async fn is_retained(contents: &Contents, record: &SnapshotRecord) -> Result<Option<bool>> {
    let manifest = contents
        .repository()
        .manifest(&record.uid)
        .await
        .map_err(|e| failed(&e))?;
    match extras(&manifest).await {
        Ok(extras) => Ok(Some(extras.retain)),
        Err(error) if error.class == Class::Corrupt => Ok(None),
        Err(error) => Err(error),
    }
}

/// The Snapshot as the store remembers it.
fn restored(record: &SnapshotRecord, parent: Option<&SnapshotRecord>, retained: Option<bool>) -> Snapshot {
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let created = Time(record.created_at);
    let mut snapshot = Snapshot::new(
        &record.name,
        SnapshotSpec {
            lineage: Some(record.lineage.clone()),
            tags: record.tags.clone(),
            deletion_policy: (retained == Some(true)).then_some(DeletionPolicy::Retain),
            requested_by: record.author.clone().map(|username| Identity {
                username: Some(username),
                ..Identity::default()
            }),
            ..SnapshotSpec::default()
        },
    );
    snapshot.metadata.namespace = Some(record.namespace.clone());
    snapshot.metadata.uid = Some(record.uid.clone());
    snapshot.metadata.creation_timestamp = Some(created.clone());
    let message = match retained {
        Some(true) => {
            "the Snapshot is gone; its deletionPolicy was Retain, so that the contents stay until somebody deletes them"
        }
        Some(false) => "the Snapshot is gone; the contents go as well once the operator has made sure of that",
        None => {
            "the Snapshot is gone, and its contents are damaged: it cannot be read whether they are to be retained, so they stay"
        }
    };
    snapshot.status = Some(SnapshotStatus {
        phase: Some(SnapshotPhase::Expired),
        version: Some(count(record.version)),
        parent: parent.map(|parent| ParentVersion {
            name: parent.name.clone(),
            version: count(parent.version),
        }),
        digest: Some(record.digest.to_string()),
        objects: Some(ObjectCounts {
            captured: count(record.counts.captured),
            unchanged: count(record.counts.unchanged),
            ..ObjectCounts::default()
        }),
        size: Some(SnapshotSize {
            logical_bytes: count(record.sizes.logical),
            stored_bytes: count(record.sizes.stored),
        }),
        format_version: i32::try_from(record.format_version).ok(),
        conditions: vec![Condition {
            type_: conditions::READY.into(),
            status: "False".into(),
            reason: reasons::RETAINED.into(),
            message: message.into(),
            observed_generation: None,
            last_transition_time: created,
        }],
        ..SnapshotStatus::default()
    });
    snapshot
}

/// The retained contents of the session's namespace that `reference` names.
///
/// # Errors
/// `NotFound`, or `Refused` when several go by that name.
pub async fn resolve(session: &Session, contents: &Contents, reference: &Reference) -> Result<Snapshot> {
    let all = all(session, contents, Scope::Namespace).await?;
    pick(all, reference, &session.namespace)
}

fn pick(all: Vec<Snapshot>, wanted: &Reference, namespace: &str) -> Result<Snapshot> {
    let mut found: Vec<Snapshot> = all
        .into_iter()
        .filter(|snapshot| match wanted {
            Reference::Name(name) => snapshot.name_any() == *name,
            Reference::Version { .. } => reference::versioned(snapshot) == Some(wanted.to_string()),
            Reference::Tag(tag) => snapshot.spec.tags.contains(tag),
        })
        .collect();
    if found.len() > 1 {
        let versions: Vec<String> = found.iter().filter_map(reference::versioned).collect();
        return Err(Error::new(
            Class::Refused,
            format!("{wanted} is ambiguous among the retained contents of namespace {namespace}"),
        )
        .because(format!("{} go by it: {}", versions.len(), versions.join(", ")))
        .fix("name one of them as LINEAGE@VERSION"));
    }
    found.pop().ok_or_else(|| {
        Error::not_found(format!(
            "there are no retained contents of {wanted} in namespace {namespace}"
        ))
        .because(
            "contents are retained after their Snapshot is gone; one that still exists is named without --retained",
        )
        .fix(format!(
            "list what there is: kubectl backstep snapshot list --retained -n {namespace}"
        ))
    })
}

/// Lets go of retained contents; the operator frees what no other snapshot needs.
pub async fn delete(contents: &Contents, snapshots: &[Snapshot]) -> Result<()> {
    let uids: Vec<String> = snapshots.iter().filter_map(ResourceExt::uid).collect();
    contents.repository().delete(&uids).await.map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retained(name: &str, version: u64) -> Snapshot {
        let mut snapshot = Snapshot::new(name, SnapshotSpec::default());
        snapshot.spec.tags = vec![format!("t{}", version % 2)];
        snapshot.status = Some(SnapshotStatus {
            version: i64::try_from(version).ok(),
            ..SnapshotStatus::default()
        });
        snapshot
    }

    #[test]
    fn retained_contents_are_named_like_snapshots_and_never_by_half() {
        let all = || vec![retained("a", 1), retained("a", 2), retained("b", 3)];
        let picked = |text: &str| pick(all(), &text.parse().unwrap(), "shop");
        assert_eq!(picked("b").unwrap(), retained("b", 3));
        assert_eq!(picked("default@2").unwrap(), retained("a", 2));
        assert_eq!(picked("tag:t0").unwrap(), retained("a", 2));
        assert_eq!(picked("a").unwrap_err().class, Class::Refused);
        assert_eq!(picked("tag:t1").unwrap_err().class, Class::Refused);
        assert_eq!(picked("default@4").unwrap_err().class, Class::NotFound);
    }
}
