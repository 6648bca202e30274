//! Deleting Snapshots and requests that were only asked. The operator frees the contents that no other snapshot needs.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, Preconditions},
};
use serde::de::DeserializeOwned;

use super::{Result, Session};
use crate::api::{Snapshot, names};

/// Whether the label says to keep it for ever.
pub fn is_pinned(snapshot: &Snapshot) -> bool {
    snapshot
        .labels()
        .get(names::PINNED_LABEL)
        .is_some_and(|value| value == "true")
}

/// Deletes exactly this object of the session's namespace: one that took its name since is left alone.
pub async fn delete<K>(session: &Session, object: &K) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let name = object.name_any();
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: object.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let api: Api<K> = session.api_in(&session.namespace);
    let what = format!("delete {} {name}", K::kind(&()).to_lowercase());
    session.repeat(&what, || api.delete(&name, &params)).await?;
    Ok(())
}
