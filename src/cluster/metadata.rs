//! Metadata of listed objects: in protobuf, which costs the server and us half of what JSON does, or in JSON from servers that
//! have no protobuf. Only what somebody looks at is decoded; numbers of fields are those of `generated.proto` of apimachinery.

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Value, json};

/// What a body in the server's protobuf begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Lists as metadata, in protobuf where the server has it.
pub(super) const ACCEPT_LIST: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
                                      application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// What is looked at of `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: Option<String>,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.labels`.
    pub labels: Option<Value>,
    /// `metadata.ownerReferences`, of each kind, name, UID, `apiVersion` and `controller`.
    pub owner_references: Option<Value>,
    /// `metadata.deletionTimestamp`.
    pub deletion_timestamp: Option<Value>,
    /// What `metadata.annotations` say of revisions.
    pub annotations: Option<Revisions>,
    /// Managers of `metadata.managedFields`.
    #[serde(rename = "managedFields", deserialize_with = "managers")]
    pub managers: Vec<Bytes>,
}

/// Annotations in which controllers say which revision of a workload is the present one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Revisions {
    /// Of a Deployment.
    #[serde(
        rename = "deployment.kubernetes.io/revision",
        skip_serializing_if = "Option::is_none"
    )]
    pub deployment: Option<String>,
    /// Of a `DaemonSet`.
    #[serde(
        rename = "deprecated.daemonset.template.generation",
        skip_serializing_if = "Option::is_none"
    )]
    pub daemon_set: Option<String>,
}

fn managers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Bytes>, D::Error> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        manager: String,
    }
    let entries = Option::<Vec<Entry>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(entries.into_iter().map(|entry| entry.manager.into()).collect())
}

/// An object of which only this is read.
#[derive(Deserialize)]
pub struct Head {
    /// Its metadata.
    pub metadata: Metadata,
}

impl Metadata {
    /// The object as far as selections, and the revisions of workloads, look at it.
    pub fn into_object(self) -> Value {
        json!({"metadata": {
            "name": self.name,
            "uid": self.uid,
            "annotations": self.annotations,
            "labels": self.labels,
            "ownerReferences": self.owner_references,
            "deletionTimestamp": self.deletion_timestamp,
        }})
    }
}

/// The objects of a list of metadata, and the token of the next page.
pub(super) fn list(body: &Bytes) -> serde_json::Result<(Vec<Metadata>, Option<String>)> {
    if let Some(envelope) = body.strip_prefix(MAGIC) {
        let decoded = Envelope::decode(body.slice_ref(envelope)).and_then(|envelope| List::decode(envelope.raw));
        let list = decoded.map_err(serde_json::Error::custom)?;
        let token = list.metadata.map(|metadata| metadata.continue_token);
        let objects = list
            .items
            .into_iter()
            .map(|item| item.metadata.unwrap_or_default().into());
        return Ok((objects.collect(), token.filter(|token| !token.is_empty())));
    }
    let list: JsonList = serde_json::from_slice(body)?;
    let objects = list.items.unwrap_or_default().into_iter().map(|head| head.metadata);
    Ok((
        objects.collect(),
        list.metadata.continue_token.filter(|token| !token.is_empty()),
    ))
}

#[derive(Deserialize)]
struct JsonList {
    /// Metadata lists say `null` where there is none.
    #[serde(default)]
    items: Option<Vec<Head>>,
    metadata: JsonListMeta,
}

#[derive(Default, Deserialize)]
struct JsonListMeta {
    #[serde(rename = "continue")]
    continue_token: Option<String>,
}

/// `runtime.Unknown`.
#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(bytes = "bytes", tag = "2")]
    raw: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ListMeta>,
    #[prost(message, repeated, tag = "2")]
    items: Vec<Item>,
}

#[derive(Clone, PartialEq, Message)]
struct ListMeta {
    #[prost(string, tag = "3")]
    continue_token: String,
}

#[derive(Clone, PartialEq, Message)]
struct Item {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
}

#[derive(Clone, PartialEq, Message)]
struct ObjectMeta {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(string, tag = "5")]
    uid: String,
    #[prost(string, tag = "6")]
    resource_version: String,
    #[prost(message, optional, tag = "9")]
    deletion_timestamp: Option<Time>,
    #[prost(message, repeated, tag = "11")]
    labels: Vec<Pair>,
    #[prost(message, repeated, tag = "12")]
    annotations: Vec<Pair>,
    #[prost(message, repeated, tag = "13")]
    owner_references: Vec<OwnerReference>,
    #[prost(message, repeated, tag = "17")]
    managed_fields: Vec<ManagedFields>,
}

/// An entry of a map; the value is a part of the page until somebody needs it.
#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
}

#[derive(Clone, PartialEq, Message)]
struct OwnerReference {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    uid: String,
    #[prost(string, tag = "5")]
    api_version: String,
    #[prost(bool, optional, tag = "6")]
    controller: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct ManagedFields {
    #[prost(bytes = "bytes", tag = "1")]
    manager: Bytes,
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl From<OwnerReference> for Value {
    fn from(owner: OwnerReference) -> Self {
        let mut value = json!({
            "apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid,
        });
        if let Some(controller) = owner.controller {
            value["controller"] = controller.into();
        }
        value
    }
}

impl From<ObjectMeta> for Metadata {
    fn from(meta: ObjectMeta) -> Self {
        let annotation = |name: &str| {
            let found = meta.annotations.iter().find(|pair| pair.key == name.as_bytes());
            found.map(|pair| text(&pair.value))
        };
        let revisions = Revisions {
            deployment: annotation("deployment.kubernetes.io/revision"),
            daemon_set: annotation("deprecated.daemonset.template.generation"),
        };
        let labels: serde_json::Map<String, Value> = meta
            .labels
            .iter()
            .map(|pair| (text(&pair.key), text(&pair.value).into()))
            .collect();
        Self {
            annotations: (!meta.annotations.is_empty()).then_some(revisions),
            labels: (!labels.is_empty()).then(|| labels.into()),
            owner_references: (!meta.owner_references.is_empty()).then(|| meta.owner_references.into()),
            // Out of range is no time, but still one at which it is deleted.
            deletion_timestamp: meta.deletion_timestamp.map(|time| {
                let at = Timestamp::from_second(time.seconds).unwrap_or(Timestamp::MAX);
                at.to_string().into()
            }),
            managers: meta.managed_fields.into_iter().map(|entry| entry.manager).collect(),
            namespace: Some(meta.namespace).filter(|namespace| !namespace.is_empty()),
            name: meta.name,
            uid: meta.uid,
            resource_version: meta.resource_version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protobuf(items: Vec<ObjectMeta>, token: &str) -> Bytes {
        let list = List {
            metadata: Some(ListMeta {
                continue_token: token.into(),
            }),
            items: items.into_iter().map(|meta| Item { metadata: Some(meta) }).collect(),
        };
        let envelope = Envelope {
            raw: list.encode_to_vec().into(),
        };
        [MAGIC, &envelope.encode_to_vec()].concat().into()
    }

    fn pair(key: &'static str, value: &'static str) -> Pair {
        Pair {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(value.as_bytes()),
        }
    }

    #[test]
    fn protobuf_and_json_of_the_same_list_read_the_same() {
        let meta = ObjectMeta {
            name: "web".into(),
            namespace: "shop".into(),
            uid: "1-2".into(),
            resource_version: "7".into(),
            deletion_timestamp: Some(Time { seconds: 1_700_000_000 }),
            labels: vec![pair("app", "web"), pair("tier", "front")],
            annotations: vec![pair("note", "long"), pair("deployment.kubernetes.io/revision", "3")],
            owner_references: vec![OwnerReference {
                kind: "Shop".into(),
                name: "shop".into(),
                uid: "3-4".into(),
                api_version: "example.com/v1".into(),
                controller: Some(true),
            }],
            managed_fields: vec![ManagedFields { manager: "helm".into() }],
        };
        let json = json!({"metadata": {"continue": "more", "resourceVersion": "9"}, "items": [
            {"metadata": {
                "name": "web", "namespace": "shop", "uid": "1-2", "resourceVersion": "7", "deletionTimestamp": "2023-11-14T22:13:20Z",
                "labels": {"app": "web", "tier": "front"}, "annotations": {"note": "long", "deployment.kubernetes.io/revision": "3"},
                "ownerReferences": [{"apiVersion": "example.com/v1", "kind": "Shop", "name": "shop", "uid": "3-4", "controller": true}],
                "managedFields": [{"manager": "helm", "operation": "Update", "fieldsV1": {"f:data": {}}}],
            }},
            {"metadata": {"name": "bare"}},
        ]});
        let bare = ObjectMeta {
            name: "bare".into(),
            ..ObjectMeta::default()
        };
        let of_json = list(&Bytes::from(json.to_string())).unwrap();
        assert_eq!(list(&protobuf(vec![meta, bare], "more")).unwrap(), of_json);
        assert_eq!(of_json.1.as_deref(), Some("more"));
        assert_eq!(of_json.0.len(), 2);
    }

    #[test]
    fn a_list_without_objects_is_read_whether_it_says_null_or_nothing() {
        for body in [
            Bytes::from_static(br#"{"metadata":{},"items":null}"#),
            Bytes::from_static(br#"{"metadata":{},"items":[]}"#),
            protobuf(Vec::new(), ""),
        ] {
            assert_eq!(list(&body).unwrap(), (Vec::new(), None));
        }
    }

    #[test]
    fn what_is_cut_short_or_something_else_is_an_error() {
        let whole = protobuf(
            vec![ObjectMeta {
                name: "web".into(),
                ..ObjectMeta::default()
            }],
            "",
        );
        assert!(list(&whole.slice(..whole.len() - 1)).is_err());
        assert!(list(&Bytes::from_static(b"<html>")).is_err());
    }
}
