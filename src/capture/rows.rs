//! What is looked at of a listed object before it is read whole.

use serde::Deserialize;
use serde_json::Value;

use super::{Identity, Known};

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

/// The part of an object that tells whether it is known and whether it is selected.
#[derive(Deserialize)]
pub(super) struct Head {
    pub metadata: HeadMetadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct HeadMetadata {
    pub name: String,
    pub namespace: Option<String>,
    pub uid: String,
    pub resource_version: String,
    pub labels: Option<Value>,
    pub owner_references: Option<Value>,
    pub deletion_timestamp: Option<Value>,
}

/// An object of a page, and what each target that wants it holds of it.
pub(super) struct Row<'a> {
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
