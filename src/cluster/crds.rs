//! What custom resources are stored as, and which of their lists are keyed. Kept between captures; a CRD is read again only when it changed.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use serde_json::Value;

use super::{
    call,
    error::Result,
    list::{Collection, Pager},
};
use crate::{api::names::GROUP, domain::object::shape::ListShape};

/// When Backstep's kind `plural` was defined; `None` unless its CRD is there, established, and not being deleted.
pub async fn served_since(client: &Client, plural: &str) -> Result<Option<Timestamp>> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = format!("{plural}.{GROUP}");
    let what = format!("get customresourcedefinition {name}");
    let crd = call::repeat(&what, call::DEADLINE, || api.get_opt(&name)).await?;
    Ok(crd
        .filter(|crd| crd.metadata.deletion_timestamp.is_none() && is_established(crd))
        .and_then(|crd| Some(crd.metadata.creation_timestamp?.0)))
}

fn is_established(crd: &CustomResourceDefinition) -> bool {
    crd.status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|cs| cs.iter().any(|c| c.type_ == "Established" && c.status == "True"))
}

/// One custom resource.
#[derive(Clone, Debug)]
pub struct CustomResource {
    resource_version: String,
    /// The version that objects are stored in, where it is served.
    pub storage_version: Option<String>,
    /// Keyed lists of the storage version's schema.
    pub shape: Arc<ListShape>,
}

/// Custom resources by `<plural>.<group>`.
#[derive(Debug, Default)]
pub struct CrdCatalog {
    by_name: HashMap<String, CustomResource>,
}

impl CrdCatalog {
    /// Reads what changed since the last call: one metadata list, and one GET for each changed CRD.
    pub async fn refresh(&mut self, client: &Client) -> Result<()> {
        let collection = Collection {
            group: "apiextensions.k8s.io".into(),
            version: "v1".into(),
            plural: "customresourcedefinitions".into(),
            namespace: None,
        };
        let mut current: HashMap<String, String> = HashMap::new();
        let mut pager = Pager::start(client.clone(), collection, true);
        while let Some(mut page) = pager.next().await? {
            let found = page.take_metadata().into_iter().flatten();
            current.extend(found.map(|metadata| (metadata.name, metadata.resource_version)));
        }
        self.by_name.retain(|name, known| {
            current
                .get(name)
                .is_some_and(|version| *version == known.resource_version)
        });
        for (name, _) in current {
            if self.by_name.contains_key(&name) {
                continue;
            }
            if let Some(read) = read_crd(client, &name).await? {
                self.by_name.insert(name, read);
            }
        }
        Ok(())
    }

    /// Storage version by `<plural>.<group>`, for discovery.
    pub fn storage_versions(&self) -> HashMap<String, String> {
        self.by_name
            .iter()
            .filter_map(|(name, crd)| crd.storage_version.clone().map(|version| (name.clone(), version)))
            .collect()
    }

    /// Changes whenever its definition does, and with it perhaps what the server makes of stored objects; `None` for built-in kinds.
    pub fn revision(&self, group: &str, plural: &str) -> Option<&str> {
        let crd = self.by_name.get(&format!("{plural}.{group}"))?;
        Some(&crd.resource_version)
    }

    /// Keyed lists of a custom resource; `None` for built-in kinds.
    pub fn shape(&self, group: &str, plural: &str) -> Option<Arc<ListShape>> {
        self.by_name
            .get(&format!("{plural}.{group}"))
            .map(|crd| Arc::clone(&crd.shape))
    }
}

async fn read_crd(client: &Client, name: &str) -> Result<Option<CustomResource>> {
    let what = format!("get customresourcedefinition {name}");
    let uri = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
    let read = call::repeat(&what, call::DEADLINE, || async {
        let request = http::Request::get(&uri)
            .body(Vec::new())
            .map_err(kube::Error::HttpError)?;
        client.request::<Value>(request).await
    })
    .await;
    let crd = match read {
        Ok(crd) => crd,
        // Deleted since the list: discovery will not name it either.
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    let resource_version = crd["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let empty = Vec::new();
    let versions = crd["spec"]["versions"].as_array().unwrap_or(&empty);
    let storage = versions.iter().find(|v| v["storage"] == Value::Bool(true));
    let storage_version = storage
        .filter(|v| v["served"] == Value::Bool(true))
        .and_then(|v| v["name"].as_str())
        .map(ToOwned::to_owned);
    // Where the storage version is not served the served ones describe the same lists by convention.
    let schema = storage.or(versions.first()).map(|v| &v["schema"]["openAPIV3Schema"]);
    let shape = schema.map_or_else(ListShape::default, ListShape::from_crd_schema);
    Ok(Some(CustomResource {
        resource_version,
        storage_version,
        shape: Arc::new(shape),
    }))
}
