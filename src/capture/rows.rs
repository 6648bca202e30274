//! What is looked at of a listed object before it is read whole.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use super::{Identity, Known, WantedKind};
use crate::{api::reasons, domain::snapshot::ObjectVerdict};

/// From this many objects of a kind that an earlier snapshot holds on, its metadata is listed first.
pub const METADATA_FROM: u64 = 50;

/// How many objects a list of metadata may read singly before whole pages are cheaper: one in twenty, and not much more than 200.
pub fn single_reads(expected: u64) -> usize {
    let most = (expected / 20).max(16).min((expected / 50).max(200));
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// Whether `verdict`, reached by the metadata alone, says that an object is not captured whatever the rest of it is.
pub fn is_settled(kind: &WantedKind, verdict: &ObjectVerdict) -> bool {
    // A Secret's type is no metadata, and is looked at before any selection.
    let is_secret = kind.info.is_secret();
    match verdict {
        ObjectVerdict::Capture | ObjectVerdict::ImagesOnly => false,
        ObjectVerdict::NotSelected => !is_secret,
        ObjectVerdict::Skip(reason) => !is_secret || *reason != reasons::EXCLUDED,
    }
}

/// The last object that was handled; lists are ordered by namespace and name within one server key space.
#[derive(Default, Clone)]
pub(super) struct Position(pub Option<(String, String)>);

impl Position {
    pub fn covers(&self, namespace: &str, name: &str) -> bool {
        // Keys are `<namespace>/<name>`: '/' sorts after '-' and '.', so compare as the server does.
        self.0.as_ref().is_some_and(|(ns, n)| {
            let left = namespace.bytes().chain(*b"/").chain(name.bytes());
            left.le(ns.bytes().chain(*b"/").chain(n.bytes()))
        })
    }
}

/// An object without `metadata.managedFields`, which are half of it and say nothing to selections, references and images.
pub(super) struct Facts(pub Value);

impl<'de> Deserialize<'de> for Facts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The fields of an object, or of its metadata.
        struct Fields {
            are_metadata: bool,
        }

        impl<'de> Visitor<'de> for Fields {
            type Value = Map<String, Value>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
                let mut kept = Map::new();
                while let Some(name) = fields.next_key::<String>()? {
                    if self.are_metadata && name == "managedFields" {
                        fields.next_value::<IgnoredAny>()?;
                    } else if !self.are_metadata && name == "metadata" {
                        kept.insert(name, fields.next_value::<Metadata>()?.0.into());
                    } else {
                        kept.insert(name, fields.next_value()?);
                    }
                }
                Ok(kept)
            }
        }

        struct Metadata(Map<String, Value>);

        impl<'de> Deserialize<'de> for Metadata {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_map(Fields { are_metadata: true }).map(Self)
            }
        }

        let fields = deserializer.deserialize_map(Fields { are_metadata: false })?;
        Ok(Self(fields.into()))
    }
}

/// An object of a page, and what each target that wants it holds of it.
pub(super) struct Row<'a> {
    /// The whole object as the server wrote it; nothing of a page of metadata.
    pub raw: &'a [u8],
    pub namespace: String,
    /// The object as far as selections look at it.
    pub head: Value,
    pub known: Vec<(Identity, Option<Known>)>,
    /// Whether the whole object is needed.
    pub whole: bool,
}

impl Row<'_> {
    pub fn name(&self) -> &str {
        self.head["metadata"]["name"].as_str().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn facts_are_the_object_without_its_managed_fields_and_nothing_else_is_lost() {
        let object = json!({
            "kind": "Deployment", "metadata": {"name": "web", "managedFields": [{"manager": "helm"}], "labels": {"a": "b"}},
            "spec": {"template": {"metadata": {"managedFields": "kept", "labels": {"c": "d"}}}}, "status": null,
        });
        let Facts(read) = serde_json::from_str(&object.to_string()).unwrap();
        let mut expected = object;
        expected["metadata"].as_object_mut().unwrap().remove("managedFields");
        assert_eq!(read, expected);
    }
}
