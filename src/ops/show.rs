//! What a snapshot holds: its entries, and the content of one object.

use futures::TryStreamExt as _;
use serde::Serialize;
use serde_json::Value;

use super::{
    Class, Error, Result,
    contents::{Contents, failed, hide_secret_values},
};
use crate::repository::{Entry, KindHeader, ManifestReader};

/// One captured object, for people and machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Captured {
    /// API group; empty for core.
    pub group: String,
    /// Version it was read in.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Component it belongs to.
    pub component: String,
    /// SHA-256 of its normalised content.
    pub digest: String,
}

/// The entries of a manifest in identity order.
pub async fn entries(manifest: &ManifestReader) -> Result<Vec<Captured>> {
    manifest
        .entries()
        .map_ok(|(kind, entry)| Captured {
            group: kind.group.clone(),
            version: kind.version.clone(),
            kind: kind.kind.clone(),
            name: entry.name,
            component: kind.component.clone(),
            digest: entry.content.to_string(),
        })
        .try_collect()
        .await
        .map_err(|e| failed(&e))
}

/// How people name an object of a snapshot: `Kind/NAME`, `Kind.group/NAME` or `group/Kind/NAME`; kinds and plurals in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    group: Option<String>,
    kind: String,
    name: String,
}

impl std::str::FromStr for ObjectName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let (group, kind, name) = match parts[..] {
            [kind, name] => match kind.split_once('.') {
                Some((kind, group)) => (Some(group), kind, name),
                None => (None, kind, name),
            },
            [group, kind, name] => (Some(if group == "core" { "" } else { group }), kind, name),
            _ => (None, "", ""),
        };
        if kind.is_empty() || name.is_empty() {
            return Err(Error::usage(format!("`{text}` names no object"))
                .fix("write Kind/NAME, Kind.group/NAME or group/Kind/NAME, for example Deployment/web or apps/Deployment/web"));
        }
        Ok(Self {
            group: group.map(str::to_owned),
            kind: kind.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.group.as_deref() {
            Some(group) if !group.is_empty() => write!(f, "{}.{group}/{}", self.kind, self.name),
            _ => write!(f, "{}/{}", self.kind, self.name),
        }
    }
}

impl ObjectName {
    fn is(&self, kind: &KindHeader) -> bool {
        let same = |text: &str| text.eq_ignore_ascii_case(&self.kind);
        self.group.as_ref().is_none_or(|group| *group == kind.group) && (same(&kind.kind) || same(&kind.plural))
    }
}

/// The one entry that `name` means.
///
/// # Errors
/// `NotFound`, or `Refused` when several kinds of that name hold it.
pub async fn find(manifest: &ManifestReader, name: &ObjectName) -> Result<(KindHeader, Entry)> {
    let mut found: Vec<(KindHeader, Entry)> = Vec::new();
    for kind in manifest.kinds().await.map_err(|e| failed(&e))? {
        if !name.is(&kind) {
            continue;
        }
        let id = crate::domain::object::ObjectId::new(&kind.group, &kind.kind, &name.name);
        if let Some((_, entry)) = manifest.get(&id).await.map_err(|e| failed(&e))? {
            found.push((kind, entry));
        }
    }
    let snapshot = &manifest.record().name;
    match found.len() {
        0 => Err(Error::not_found(format!("snapshot {snapshot} does not hold {name}"))
            .fix(format!("list what it holds: kubectl backstep snapshot show {snapshot}"))),
        1 => found.pop().ok_or_else(|| Error::internal("an entry was lost")),
        _ => {
            let names: Vec<String> = found.iter().map(|(kind, entry)| entry.id(kind).to_string()).collect();
            Err(Error::new(
                Class::Refused,
                format!("{name} means several objects of snapshot {snapshot}"),
            )
            .because(names.join(", "))
            .fix("name its group: Kind.group/NAME"))
        }
    }
}

/// The content of one object; values of Secrets are hidden unless `reveal`.
pub async fn object(contents: &Contents, manifest: &ManifestReader, name: &ObjectName, reveal: bool) -> Result<Value> {
    let (kind, entry) = find(manifest, name).await?;
    let mut content = contents.object(&kind, &entry).await?;
    if !reveal {
        hide_secret_values(&mut content);
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(group: &str, kind: &str, plural: &str) -> KindHeader {
        KindHeader {
            group: group.into(),
            version: "v1".into(),
            kind: kind.into(),
            plural: plural.into(),
            component: "Workloads".into(),
            namespaced: true,
        }
    }

    #[test]
    fn objects_are_named_by_kind_or_plural_with_or_without_a_group() {
        let deployment = kind("apps", "Deployment", "deployments");
        for text in [
            "Deployment/web",
            "deployment/web",
            "deployments/web",
            "Deployment.apps/web",
            "apps/Deployment/web",
        ] {
            assert!(text.parse::<ObjectName>().unwrap().is(&deployment), "{text}");
        }
        for text in ["core/Deployment/web", "Deployment.extensions/web", "deploy/web"] {
            assert!(!text.parse::<ObjectName>().unwrap().is(&deployment), "{text}");
        }
        assert!(
            "core/Service/web"
                .parse::<ObjectName>()
                .unwrap()
                .is(&kind("", "Service", "services"))
        );
    }

    #[test]
    fn half_a_name_is_a_usage_error() {
        for text in ["web", "Deployment/", "/web", "a/b/c/d", ""] {
            assert_eq!(text.parse::<ObjectName>().unwrap_err().class, Class::Usage, "{text}");
        }
    }
}
