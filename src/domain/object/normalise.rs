//! What of an object is content: everything that its authors said, nothing that the server, its controllers or the
//! moment added. The reasons are in `docs/adr/0003-what-is-content.md`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    canonical,
    digest::Digest,
    secret::{self, FingerprintKey},
    shape::{ListShape, OrderHints},
};
use owned::Owned;

mod kinds;
mod owned;

/// The kind that an object was listed as. Items of a typed list carry neither `apiVersion` nor `kind`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KindInfo {
    /// API group; empty for the core group.
    pub group: String,
    /// Version that the list was read in.
    pub version: String,
    /// Kind, `CamelCase`.
    pub kind: String,
}

impl KindInfo {
    /// A kind from its three parts.
    pub fn new(group: impl Into<String>, version: impl Into<String>, kind: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
        }
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Whether this is the core Secret.
    pub fn is_secret(&self) -> bool {
        self.group.is_empty() && self.kind == "Secret"
    }
}

/// What happens to the values of Secrets. Leaving Secrets out altogether is decided before an object gets here.
#[derive(Clone, Copy, Debug)]
pub enum SecretValues<'a> {
    /// Values are content.
    Keep,
    /// A keyed fingerprint stands for each value.
    Fingerprint(&'a FingerprintKey),
}

/// An object as it goes into a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Normalised {
    /// Canonical JSON of the content; equal for equal states.
    pub content: Vec<u8>,
    /// Canonical JSON of a [`Beside`]: kept with the content, outside its digest. `None` where there is nothing to keep.
    pub beside: Option<Vec<u8>>,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; empty where the server gave none.
    pub uid: String,
    /// `metadata.resourceVersion`; empty where the server gave none.
    pub resource_version: String,
}

impl Normalised {
    /// Content address.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.content)
    }
}

/// What a restore needs besides the content.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Beside {
    /// Who owned which field, without times and without the entries of the status subresource.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub managed_fields: Vec<Value>,
    /// How lists were ordered that the canonical form sorted.
    #[serde(default, skip_serializing_if = "OrderHints::is_empty")]
    pub order: OrderHints,
}

/// Why an object cannot be normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NormaliseError {
    /// It is not a JSON object.
    #[error("an item of the list is not an object: the server or a proxy before it answered with something else")]
    NotAnObject,
    /// It has no `metadata.name`.
    #[error(
        "an item of the list has no metadata.name: the kind is served by an API that does not persist objects; exclude it"
    )]
    NoName,
}

/// The content of `raw`, an object as the API server listed it.
///
/// Idempotent: normalised content normalises to itself. Without `managedFields` nothing is taken for server-chosen.
pub fn normalise(
    raw: Value,
    kind: &KindInfo,
    shape: &ListShape,
    secrets: SecretValues<'_>,
) -> Result<Normalised, NormaliseError> {
    let Value::Object(mut object) = raw else {
        return Err(NormaliseError::NotAnObject);
    };
    let Some(Value::Object(metadata)) = object.get_mut("metadata") else {
        return Err(NormaliseError::NoName);
    };
    let name = metadata
        .get("name")
        .and_then(Value::as_str)
        .ok_or(NormaliseError::NoName)?
        .to_owned();
    let uid = take_text(metadata, "uid");
    let resource_version = take_text(metadata, "resourceVersion");
    let managed_fields = match metadata.remove("managedFields") {
        Some(Value::Array(entries)) => entries.into_iter().filter(|entry| !is_status_entry(entry)).collect(),
        _ => Vec::new(),
    };
    strip_metadata(metadata);
    object.remove("status");
    object.entry("apiVersion").or_insert_with(|| kind.api_version().into());
    object.entry("kind").or_insert_with(|| kind.kind.clone().into());

    kinds::strip(&mut object, kind, &Owned::new(&managed_fields));
    drop_empty_metadata(&mut object);
    match secrets {
        SecretValues::Fingerprint(key) if kind.is_secret() => secret::fingerprint_values(&mut object, key),
        SecretValues::Fingerprint(_) | SecretValues::Keep => {}
    }

    let mut content = Value::Object(object);
    let order = shape.sort(&mut content);
    Ok(Normalised {
        content: canonical::to_bytes(&content),
        beside: beside_bytes(managed_fields, order),
        name,
        uid,
        resource_version,
    })
}

fn take_text(map: &mut Map<String, Value>, key: &str) -> String {
    match map.remove(key) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    }
}

fn is_status_entry(entry: &Value) -> bool {
    entry.get("subresource").and_then(Value::as_str) == Some("status")
}

/// What the server alone writes, on every kind. Finalizers go because the live ones always win.
fn strip_metadata(metadata: &mut Map<String, Value>) {
    const SERVER_SET: [&str; 6] = [
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "finalizers",
    ];
    for field in SERVER_SET {
        metadata.remove(field);
    }
    if let Some(Value::Array(owners)) = metadata.get_mut("ownerReferences") {
        for owner in owners.iter_mut().filter_map(Value::as_object_mut) {
            owner.remove("uid");
        }
    }
}

/// Maps that are empty, from the start or because of what was taken out of them, say nothing.
fn drop_empty_metadata(object: &mut Map<String, Value>) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        for field in ["annotations", "labels", "ownerReferences"] {
            kinds::remove_if_empty(metadata, field);
        }
    }
}

fn beside_bytes(mut managed_fields: Vec<Value>, order: OrderHints) -> Option<Vec<u8>> {
    if managed_fields.is_empty() && order.is_empty() {
        return None;
    }
    for entry in managed_fields.iter_mut().filter_map(Value::as_object_mut) {
        entry.remove("time");
    }
    // The server orders entries by time, which is no part of what is kept.
    managed_fields.sort_by(|a, b| {
        let key = |entry: &Value, field| entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        ["manager", "operation", "apiVersion", "subresource"]
            .iter()
            .map(|field| key(a, *field).cmp(&key(b, *field)))
            .find(|order| order.is_ne())
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    let mut map = Map::new();
    if !managed_fields.is_empty() {
        map.insert("managedFields".to_owned(), Value::Array(managed_fields));
    }
    if !order.is_empty() {
        let hints = order.0.into_iter().map(|(pointer, order)| (pointer, order.into()));
        map.insert("order".to_owned(), Value::Object(hints.collect()));
    }
    Some(canonical::to_bytes(&Value::Object(map)))
}

#[cfg(test)]
mod tests;
