//! The contents of snapshots, read with the user's own rights.

use std::sync::Arc;

use kube::ResourceExt as _;
use serde_json::Value;

use super::{
    Class, Error, Result, Session, reference, status,
    store::{self, Location},
};
use crate::{
    api::{Snapshot, names},
    cluster::clock,
    domain::{
        object::{Beside, Digest, FingerprintKey, ObjectId, apply_order, secret},
        snapshot::Extras,
    },
    repository::{self, Address, Backend, Entry, KindHeader, ManifestReader, ObjectStoreBackend, Repository, backend},
};

/// What stands for a Secret value that is not shown. No base64, so that applying it by mistake is refused.
pub const HIDDEN: &str = "<hidden>";

/// An open repository.
#[derive(Clone)]
pub struct Contents {
    repository: Repository,
    location: Location,
}

/// What a failure of the repository means for the user.
pub fn failed(error: &repository::Error) -> Error {
    let class = match error {
        _ if error.is_corrupt() => Class::Corrupt,
        repository::Error::Forbidden { .. } => return store::not_for_everybody(error.to_string()),
        repository::Error::SnapshotNotFound(_) => Class::NotFound,
        repository::Error::NewerFormat { .. } => Class::Unavailable,
        _ if error.is_transient() => Class::Unavailable,
        _ => Class::Internal,
    };
    // The repository's messages say why and how to fix by themselves.
    Error::new(class, error.to_string())
}

impl Contents {
    /// Opens the operator's store; changes nothing in it.
    pub async fn open(session: &Session, chosen: Option<&Location>) -> Result<Self> {
        let published = store::locate(session, chosen).await?;
        let location = published.location;
        let backend: Arc<dyn Backend> = match &location {
            Location::Secrets { namespace } => {
                let namespace = namespace.as_deref().unwrap_or(&session.operator_namespace);
                let quota = published.quota.unwrap_or(u64::MAX);
                let client = session.client.clone();
                let secrets = backend::secrets::SecretsBackend::new(client, namespace, names::BUILT_IN_STORE, quota);
                Arc::new(secrets.map_err(|e| failed(&e))?)
            }
            Location::Directory(path) => {
                if !path.is_dir() {
                    return Err(Error::new(Class::Unavailable, format!("the store {location} cannot be read here"))
                        .because("this machine has no such directory")
                        .fix("run this command where the operator's volume is mounted, and name the mount with --store file:///path"));
                }
                let directory = ObjectStoreBackend::local(&path.to_string_lossy()).map_err(|e| failed(&e))?;
                Arc::new(directory.with_quota(published.quota.unwrap_or(u64::MAX)))
            }
        };
        let options = repository::Options::new(clock::now);
        let repository = Repository::open(backend, options).await.map_err(|e| failed(&e))?;
        Ok(Self { repository, location })
    }

    /// The repository itself.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Use of the store.
    pub fn usage(&self) -> status::Repository {
        let usage = self.repository.usage();
        status::Repository {
            store: self.location.to_string(),
            stored_bytes: usage.stored_bytes,
            packs: usage.packs as u64,
            snapshots: usage.snapshots as u64,
            quota_bytes: usage.quota.filter(|quota| *quota < u64::MAX),
        }
    }

    /// The manifest of `snapshot`, which must be the one that its status tells of.
    ///
    /// # Errors
    /// `Refused` before it is Ready and once its contents are freed, `NotFound` without contents, `Corrupt` when store and status disagree.
    pub async fn manifest(&self, snapshot: &Snapshot) -> Result<ManifestReader> {
        let name = snapshot.name_any();
        if !reference::has_contents(snapshot) {
            let phase = reference::phase(snapshot);
            return Err(
                Error::new(Class::Refused, format!("snapshot {name} has no contents to read"))
                    .because(format!("it is {phase:?}"))
                    .fix("wait until it is Ready, or name another: kubectl backstep snapshot list"),
            );
        }
        let uid = snapshot.uid().unwrap_or_default();
        let manifest = self.repository.manifest(&uid).await.map_err(|e| match failed(&e) {
            missing if missing.class == Class::NotFound => Error::not_found(format!(
                "the store {} has no contents of snapshot {name}",
                self.location
            ))
            .because("they belong to another store, or were taken away behind Backstep's back")
            .fix("name the store with --store; `kubectl backstep snapshot verify` tells what is damaged"),
            other => other,
        })?;
        let told = snapshot
            .status
            .as_ref()
            .and_then(|s| s.digest.clone())
            .unwrap_or_default();
        let stored = manifest.record().digest.to_string();
        if told != stored {
            return Err(Error::new(
                Class::Corrupt,
                format!("the contents of snapshot {name} are not what its status says"),
            )
            .because(format!("status.digest is {told}, the store holds {stored}"))
            .fix("trust neither: find out who changed the status or the store, and take a new snapshot"));
        }
        Ok(manifest)
    }

    /// The content of one object, with its lists in the order in which they were captured.
    pub async fn object(&self, kind: &KindHeader, entry: &Entry) -> Result<Value> {
        let id = entry.id(kind);
        let mut content = self.json(&entry.content, &id).await?;
        if let Some(beside) = &entry.beside
            && let Ok(beside) = serde_json::from_value::<Beside>(self.json(beside, &id).await?)
        {
            apply_order(&mut content, &beside.order);
        }
        Ok(content)
    }

    /// The content of one object in canonical order, as it is compared.
    pub async fn canonical(&self, digest: &Digest, id: &ObjectId) -> Result<Value> {
        self.json(digest, id).await
    }

    async fn json(&self, address: &impl Address, id: &ObjectId) -> Result<Value> {
        let bytes = self.repository.read_chunk(address).await.map_err(|e| failed(&e))?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Error::new(Class::Corrupt, format!("the content of {id} cannot be read")).because(e.to_string())
        })
    }
}

/// Use of the operator's store.
pub async fn usage(session: &Session, chosen: Option<&Location>) -> Result<status::Repository> {
    Ok(Contents::open(session, chosen).await?.usage())
}

/// What a snapshot tells beside its objects: capture, skips, images.
pub async fn extras(manifest: &ManifestReader) -> Result<Extras> {
    let json = manifest.extras().await.map_err(|e| failed(&e))?;
    json.map_or_else(
        || Ok(Extras::default()),
        |json| {
            serde_json::from_value(json).map_err(|e| {
                Error::new(Class::Unavailable, "the notes beside the manifest cannot be read")
                    .because(e.to_string())
                    .fix("upgrade kubectl-backstep to the version of the operator")
            })
        },
    )
}

/// Hides every value of a Secret; anything else stays as it is. Says whether it was a Secret.
pub fn hide_secret_values(object: &mut Value) -> bool {
    if !secret::is_secret(object) {
        return false;
    }
    if let Some(fields) = object.as_object_mut() {
        // The domain knows what is a value; a key that nobody keeps makes each of them recognisable and nothing more.
        secret::fingerprint_values(fields, &FingerprintKey::new(rand::random()));
    }
    hide_fingerprints(object);
    true
}

fn hide_fingerprints(value: &mut Value) {
    match value {
        Value::String(text) if secret::is_fingerprint(text) => HIDDEN.clone_into(text),
        Value::Array(items) => items.iter_mut().for_each(hide_fingerprints),
        Value::Object(fields) => fields.values_mut().for_each(hide_fingerprints),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn no_form_of_a_secret_value_survives_hiding() {
        let applied = json!({"stringData": {"password": "canary"}}).to_string();
        let mut secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "db", "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": applied, "copy": "pw=canary", "note": "keep me",
            }},
            "data": {"password": "Y2FuYXJ5", "empty": ""},
        });
        assert!(hide_secret_values(&mut secret));
        let text = secret.to_string();
        assert!(!text.contains("canary") && !text.contains("Y2FuYXJ5"), "{text}");
        assert!(text.contains("keep me") && text.contains("password"), "{text}");
    }

    #[test]
    fn what_is_no_secret_stays_as_it_is() {
        let mut map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}});
        let before = map.clone();
        assert!(!hide_secret_values(&mut map));
        assert_eq!(map, before);
    }
}
