//! What the operator last saw of the guard, published for people and their tools in its namespace.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde::{Deserialize, Serialize};

use super::expected::Installation;
use crate::{
    api::names,
    cluster::{call, error::Result},
};

/// Key of the `ConfigMap` that also says where the store is.
const KEY: &str = "guard";
/// Its own manager: the location of the store is written by itself.
const MANAGER: &str = "backstep-guard";

/// What the operator saw, and for which installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// Who is who.
    pub installation: Installation,
    /// What was missing or changed; empty is healthy.
    #[serde(default)]
    pub missing: Vec<String>,
    /// The epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// From when on somebody may be asked for approval; absent while something is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<Timestamp>,
}

/// Publishes it in the operator's namespace.
///
/// # Errors
/// Those of the API server.
pub async fn publish(client: &Client, published: &Published) -> Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &published.installation.namespace);
    let text = serde_json::to_string(published).unwrap_or_default();
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(names::STORE_CONFIG_MAP.into()),
            labels: Some(BTreeMap::from([(names::PART_OF_LABEL.into(), names::PART_OF.into())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(KEY.to_owned(), text)])),
        ..ConfigMap::default()
    };
    let (params, patch) = (PatchParams::apply(MANAGER).force(), Patch::Apply(&map));
    call::repeat("publish the state of the guard", call::DEADLINE, || {
        api.patch(names::STORE_CONFIG_MAP, &params, &patch)
    })
    .await
    .map(drop)
}

/// What the operator in `namespace` published; `None` where it did not, or this release cannot read it.
///
/// # Errors
/// Those of the API server.
pub async fn read(client: &Client, namespace: &str) -> Result<Option<Published>> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let what = format!("read configmap {} in {namespace}", names::STORE_CONFIG_MAP);
    let found = call::repeat(&what, call::DEADLINE, || api.get_opt(names::STORE_CONFIG_MAP)).await?;
    let text = found
        .and_then(|map| map.data)
        .and_then(|mut data| data.remove(KEY))
        .unwrap_or_default();
    Ok(serde_json::from_str(&text).ok())
}
