//! How people name a snapshot: `web-before-1-9`, `shop@7` or `tag:release-1.8`.

use std::{fmt, str::FromStr};

use kube::{ResourceExt as _, api::ListParams};

use super::{Class, Error, Result, Session, list};
use crate::api::{Snapshot, conditions, names, reasons, snapshot::SnapshotPhase};

/// One way to name one snapshot of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// By `metadata.name`.
    Name(String),
    /// By number in a lineage.
    Version {
        /// The lineage.
        lineage: String,
        /// The version, from 1.
        version: i64,
    },
    /// By a tag that one Ready snapshot of the namespace carries.
    Tag(String),
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fix = "name a snapshot as NAME, LINEAGE@VERSION (shop@7) or tag:NAME";
        if let Some(tag) = text.strip_prefix("tag:") {
            return is_tag(tag)
                .then(|| Self::Tag(tag.to_owned()))
                .ok_or_else(|| Error::usage(format!("`{tag}` is not a tag")).fix(fix));
        }
        if let Some((lineage, version)) = text.split_once('@') {
            return match version.parse::<i64>() {
                Ok(version) if version >= 1 && is_dns_name(lineage) => Ok(Self::Version {
                    lineage: lineage.to_owned(),
                    version,
                }),
                _ => Err(Error::usage(format!("`{text}` names no version of a lineage")).fix(fix)),
            };
        }
        // Also what `-o name` prints.
        let name = text.rsplit_once('/').map_or(Ok(text), |(kind, name)| match kind {
            "snapshot" | "snapshots" | "bsnap" | "snapshot.backstep.dev" | "snapshots.backstep.dev" => Ok(name),
            _ => Err(Error::usage(format!("`{text}` is not a snapshot")).fix(fix)),
        })?;
        if is_dns_name(name) {
            Ok(Self::Name(name.to_owned()))
        } else {
            Err(Error::usage(format!("`{text}` cannot be the name of a snapshot")).fix(fix))
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Version { lineage, version } => write!(f, "{lineage}@{version}"),
            Self::Tag(tag) => write!(f, "tag:{tag}"),
        }
    }
}

fn is_dns_name(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= 253
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
}

/// Whether `text` can be a tag: it must be the name part of a label key.
pub fn is_tag(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Lineage of a snapshot.
pub fn lineage(snapshot: &Snapshot) -> &str {
    snapshot.spec.lineage.as_deref().unwrap_or("default")
}

/// Tags of a snapshot: those it was made with and those given later, in order, each once.
pub fn tags(snapshot: &Snapshot) -> Vec<String> {
    let given = snapshot
        .labels()
        .keys()
        .filter_map(|key| key.strip_prefix(names::TAG_LABEL_PREFIX));
    let mut tags: Vec<String> = snapshot
        .spec
        .tags
        .iter()
        .map(String::as_str)
        .chain(given)
        .map(str::to_owned)
        .collect();
    tags.sort();
    tags.dedup();
    tags
}

/// Phase of a snapshot; `Pending` before the operator has seen it.
pub fn phase(snapshot: &Snapshot) -> SnapshotPhase {
    snapshot.status.as_ref().and_then(|s| s.phase).unwrap_or_default()
}

/// Whether there are contents to read: it is Ready, or expired and its contents are retained.
pub fn has_contents(snapshot: &Snapshot) -> bool {
    match phase(snapshot) {
        SnapshotPhase::Ready => true,
        SnapshotPhase::Expired => snapshot.status.as_ref().is_some_and(|status| {
            let mut conditions = status.conditions.iter();
            conditions.any(|c| c.type_ == conditions::READY && c.reason == reasons::RETAINED)
        }),
        SnapshotPhase::Pending | SnapshotPhase::Capturing | SnapshotPhase::Failed => false,
    }
}

/// `lineage@version` where the version is known.
pub fn versioned(snapshot: &Snapshot) -> Option<String> {
    let version = snapshot.status.as_ref()?.version?;
    Some(format!("{}@{version}", lineage(snapshot)))
}

/// The one snapshot of the session's namespace that `reference` names.
///
/// # Errors
/// `NotFound`, or `Refused` when a tag is on several.
pub async fn resolve(session: &Session, reference: &Reference) -> Result<Snapshot> {
    let namespace = &session.namespace;
    let missing = |why: String| {
        Error::not_found(format!("there is no snapshot {reference} in namespace {namespace}"))
            .because(why)
            .fix(format!(
                "list what there is: kubectl backstep snapshot list -n {namespace}"
            ))
    };
    match reference {
        Reference::Name(name) => {
            let api = session.snapshots();
            let found = session
                .repeat(&format!("read snapshot {name} in {namespace}"), || api.get_opt(name))
                .await?;
            found.ok_or_else(|| missing("no object has this name".into()))
        }
        Reference::Version {
            lineage: wanted,
            version,
        } => {
            let all = list::all(session, list::Scope::Namespace, &ListParams::default()).await?;
            let known: Vec<i64> = all
                .iter()
                .filter(|s| lineage(s) == wanted)
                .filter_map(|s| s.status.as_ref().and_then(|s| s.version))
                .collect();
            all.into_iter()
                .find(|s| lineage(s) == wanted && s.status.as_ref().and_then(|s| s.version) == Some(*version))
                .ok_or_else(|| match (known.iter().min(), known.iter().max()) {
                    (Some(first), Some(last)) => {
                        missing(format!("lineage {wanted} has versions between {first} and {last}; this one was deleted or never existed"))
                    }
                    _ => missing(format!("lineage {wanted} has no version")),
                })
        }
        Reference::Tag(tag) => {
            let all = list::all(session, list::Scope::Namespace, &ListParams::default()).await?;
            let mut carriers: Vec<Snapshot> = all.into_iter().filter(|s| tags(s).iter().any(|t| t == tag)).collect();
            // Only Ready snapshots compete for a tag; without one, say what the others are.
            let ready = carriers.iter().filter(|s| phase(s) == SnapshotPhase::Ready).count();
            if ready > 0 {
                carriers.retain(|s| phase(s) == SnapshotPhase::Ready);
            }
            match carriers.len() {
                0 => Err(missing("no snapshot carries this tag".into())),
                1 => carriers
                    .pop()
                    .ok_or_else(|| missing("no snapshot carries this tag".into())),
                _ => {
                    let names: Vec<String> = carriers
                        .iter()
                        .map(|s| versioned(s).map_or_else(|| s.name_any(), |v| format!("{} ({v})", s.name_any())))
                        .collect();
                    Err(Error::new(
                        Class::Refused,
                        format!("tag {tag} is ambiguous in namespace {namespace}"),
                    )
                    .because(format!("{} snapshots carry it: {}", names.len(), names.join(", ")))
                    .fix(format!(
                        "name one of them, or take the tag off the others: kubectl backstep snapshot tag NAME {tag}-"
                    )))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_ways_to_name_a_snapshot_are_told_apart() {
        assert_eq!("web-1".parse(), Ok(Reference::Name("web-1".into())));
        assert_eq!(
            "shop@7".parse(),
            Ok(Reference::Version {
                lineage: "shop".into(),
                version: 7
            })
        );
        assert_eq!("tag:release-1.8".parse(), Ok(Reference::Tag("release-1.8".into())));
        assert_eq!(
            "snapshot.backstep.dev/web-1".parse(),
            Ok(Reference::Name("web-1".into()))
        );
    }

    #[test]
    fn what_names_nothing_is_a_usage_error() {
        for text in [
            "", "shop@", "shop@0", "shop@-1", "@3", "tag:", "tag:-x", "Upper", "a/b", "pod/web", "a b", "shop@x",
        ] {
            assert_eq!(text.parse::<Reference>().unwrap_err().class, Class::Usage, "{text}");
        }
    }

    #[test]
    fn tags_come_from_spec_and_labels_once() {
        let mut snapshot = Snapshot::default();
        snapshot.spec.tags = vec!["b".into(), "a".into()];
        snapshot.labels_mut().insert("tag.backstep.dev/b".into(), "true".into());
        snapshot.labels_mut().insert("tag.backstep.dev/c".into(), "true".into());
        assert_eq!(tags(&snapshot), ["a", "b", "c"]);
    }
}
