//! Deleting Snapshots. The operator frees the contents that no other snapshot needs.

use kube::{
    ResourceExt as _,
    api::{DeleteParams, Preconditions},
};

use super::{Result, Session};
use crate::api::{Snapshot, names};

/// Whether the label says to keep it for ever.
pub fn is_pinned(snapshot: &Snapshot) -> bool {
    snapshot
        .labels()
        .get(names::PINNED_LABEL)
        .is_some_and(|value| value == "true")
}

/// Deletes exactly this snapshot: one that took its name since is left alone.
pub async fn delete(session: &Session, snapshot: &Snapshot) -> Result<()> {
    let name = snapshot.name_any();
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: snapshot.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let api = session.snapshots();
    session
        .repeat(&format!("delete snapshot {name}"), || api.delete(&name, &params))
        .await?;
    Ok(())
}
