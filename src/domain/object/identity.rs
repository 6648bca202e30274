//! What names an object within the namespace it was captured from.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Group, kind and name of an object; the namespace is that of its snapshot. The derived order is the canonical order of manifests.
///
/// `version` is not part of the identity: the same object is served in several versions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId {
    /// API group; empty for the core group.
    pub group: String,
    /// Kind, `CamelCase`.
    pub kind: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectId {
    /// An identity from its three parts.
    pub fn new(group: impl Into<String>, kind: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            kind: kind.into(),
            name: name.into(),
        }
    }
}

/// `ConfigMap/web`, `Deployment.apps/web`: kind, group where there is one, name.
impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            write!(f, "{}/{}", self.kind, self.name)
        } else {
            write!(f, "{}.{}/{}", self.kind, self.group, self.name)
        }
    }
}
