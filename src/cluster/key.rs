//! The installation's own key: made once, kept in a Secret of the operator's namespace.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use super::{
    call,
    error::{Error, Result},
};
use crate::api::names;

/// Secret that holds the key.
pub const KEY_SECRET: &str = "backstep-fingerprint-key";
const FIELD: &str = "key";

/// The 32 bytes of the key; made and stored when there is none.
pub async fn installation_key(client: &Client, namespace: &str) -> Result<[u8; 32]> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let what = format!("read the key in secret {namespace}/{KEY_SECRET}");
    if let Some(found) = call::repeat(&what, call::DEADLINE, || api.get_opt(KEY_SECRET)).await? {
        return key_of(&found, &what);
    }
    let key: [u8; 32] = rand::random();
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(KEY_SECRET.into()),
            labels: Some(BTreeMap::from([(names::PART_OF_LABEL.into(), names::PART_OF.into())])),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        data: Some(BTreeMap::from([(FIELD.to_owned(), ByteString(key.to_vec()))])),
        ..Secret::default()
    };
    let params = PostParams::default();
    let create = format!("create secret {namespace}/{KEY_SECRET}");
    match call::repeat(&create, call::DEADLINE, || api.create(&params, &secret)).await {
        Ok(_) => Ok(key),
        // Another process was first: its key is the key.
        Err(error) if error.is_conflict() => {
            let found = call::repeat(&what, call::DEADLINE, || api.get(KEY_SECRET)).await?;
            key_of(&found, &what)
        }
        Err(error) => Err(error),
    }
}

fn key_of(secret: &Secret, what: &str) -> Result<[u8; 32]> {
    secret
        .data
        .as_ref()
        .and_then(|data| data.get(FIELD))
        .and_then(|bytes| <[u8; 32]>::try_from(bytes.0.as_slice()).ok())
        .ok_or_else(|| Error::Config(format!("{what}: the field `{FIELD}` does not hold 32 bytes; restore the Secret from a backup, or delete it to start with a new key")))
}
