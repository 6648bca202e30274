//! The versions of a namespace as the tree that they are: each with the version it was taken after.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde::Serialize;

use super::{
    Class, Result, Session,
    list::{self, Scope},
    reference, rollback,
};
use crate::api::{RollbackRequest, Snapshot, rollback_request::RollbackPhase, snapshot::SnapshotPhase};

/// Why a version was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// Somebody asked for it.
    Asked,
    /// Right before the first write of this `RollbackRequest`.
    Safety(String),
    /// After the success of this `RollbackRequest`.
    Result(String),
}

/// A rollback that went to a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Visit {
    /// Name of the `RollbackRequest`.
    pub request: String,
    /// How it stands.
    pub phase: RollbackPhase,
}

/// One version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// The number; absent for what never got one, which is listed last.
    pub version: Option<i64>,
    /// Name of the Snapshot.
    pub name: String,
    /// The version it was taken after.
    pub parent: Option<i64>,
    /// Where the Snapshot stands.
    pub phase: SnapshotPhase,
    /// Its tags.
    pub tags: Vec<String>,
    /// Why it was taken.
    pub origin: Origin,
    /// Rollbacks that went to it; dry runs are none.
    pub visits: Vec<Visit>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When it was created.
    pub at: Option<Timestamp>,
}

/// One lineage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lineage {
    /// Its name.
    pub name: String,
    /// Its versions, by number.
    pub versions: Vec<Version>,
}

/// The lineages of the session's namespace, or one of them.
pub async fn timeline(session: &Session, lineage: Option<&str>) -> Result<Vec<Lineage>> {
    let params = ListParams {
        field_selector: lineage.map(|lineage| format!("spec.lineage={lineage}")),
        ..ListParams::default()
    };
    let snapshots = list::all(session, Scope::Namespace, &params).await?;
    let api: Api<RollbackRequest> = session.api_in(&session.namespace);
    let what = format!("list rollbackrequests in {}", session.namespace);
    // Whoever may not see rollbacks still sees the versions.
    let requests = match list::every(session, &what, &api, &ListParams::default()).await {
        Err(error) if error.class == Class::Forbidden => Vec::new(),
        other => other?,
    };
    Ok(lineages(&snapshots, &requests))
}

fn lineages(snapshots: &[Snapshot], requests: &[RollbackRequest]) -> Vec<Lineage> {
    let mut visits: BTreeMap<&str, Vec<(Option<Timestamp>, Visit)>> = BTreeMap::new();
    for request in requests.iter().filter(|r| !r.spec.dry_run) {
        let Some(resolved) = request.status.as_ref().and_then(|s| s.resolved.as_ref()) else {
            continue;
        };
        let visit = Visit {
            request: request.name_any(),
            phase: rollback::phase(request),
        };
        let at = request.creation_timestamp().map(|t| t.0);
        visits.entry(&resolved.uid).or_default().push((at, visit));
    }
    let mut lineages: BTreeMap<String, Vec<Version>> = BTreeMap::new();
    for snapshot in snapshots {
        let status = snapshot.status.clone().unwrap_or_default();
        let uid = snapshot.uid().unwrap_or_default();
        let mut visits = visits.remove(uid.as_str()).unwrap_or_default();
        visits.sort_by(|a, b| (a.0, &a.1.request).cmp(&(b.0, &b.1.request)));
        lineages
            .entry(reference::lineage(snapshot).to_owned())
            .or_default()
            .push(Version {
                version: status.version,
                name: snapshot.name_any(),
                parent: status.parent.map(|p| p.version),
                phase: reference::phase(snapshot),
                tags: reference::tags(snapshot),
                origin: origin(snapshot),
                visits: visits.into_iter().map(|(_, visit)| visit).collect(),
                description: snapshot.spec.description.clone(),
                at: snapshot.creation_timestamp().map(|t| t.0),
            });
    }
    lineages
        .into_iter()
        .map(|(name, mut versions)| {
            versions.sort_by_key(|v| (v.version.unwrap_or(i64::MAX), v.at, v.name.clone()));
            Lineage { name, versions }
        })
        .collect()
}

/// `spec.onBehalfOf.source`, which only the operator can write: `RollbackRequest/<name>/Safety`.
fn origin(snapshot: &Snapshot) -> Origin {
    let source = snapshot.spec.on_behalf_of.as_ref().and_then(|o| o.source.as_deref());
    let parts: Option<(&str, &str)> = source
        .and_then(|s| s.strip_prefix("RollbackRequest/"))
        .and_then(|s| s.rsplit_once('/'));
    match parts {
        Some((request, "Safety")) => Origin::Safety(request.to_owned()),
        Some((request, "Result")) => Origin::Result(request.to_owned()),
        _ => Origin::Asked,
    }
}

/// One line of a drawing: what stands before the version, and the version.
pub struct Drawn<'a> {
    /// Branches that pass by, and the mark of this version.
    pub prefix: String,
    /// The version.
    pub version: &'a Version,
}

/// Draws a lineage, oldest first. The newest child goes on in the column of its parent, all others branch off to the right.
pub fn draw(lineage: &Lineage) -> Vec<Drawn<'_>> {
    let known: BTreeSet<i64> = lineage.versions.iter().filter_map(|v| v.version).collect();
    let mut children: BTreeMap<Option<i64>, Vec<&Version>> = BTreeMap::new();
    for version in &lineage.versions {
        // A parent must be older: a status that says otherwise must not make a circle.
        let parent = version
            .parent
            .filter(|p| known.contains(p) && version.version.is_some_and(|v| *p < v));
        children.entry(parent).or_default().push(version);
    }
    let mut drawn = Vec::new();
    let mut open: Vec<(&Version, String, bool)> = Vec::new();
    let roots = children.get(&None).cloned().unwrap_or_default();
    for root in roots.into_iter().rev() {
        open.push((root, String::new(), false));
    }
    while let Some((version, column, branches)) = open.pop() {
        let mark = if branches { "├─" } else { "" };
        drawn.push(Drawn {
            prefix: format!("{column}{mark}●"),
            version,
        });
        let below = if branches { format!("{column}│ ") } else { column };
        let mut next = version
            .version
            .and_then(|v| children.get(&Some(v)).cloned())
            .unwrap_or_default();
        // Last in, first drawn: the branches come before the line that goes on.
        if let Some(newest) = next.pop() {
            open.push((newest, below.clone(), false));
        }
        for branch in next.into_iter().rev() {
            open.push((branch, below.clone(), true));
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(version: i64, parent: Option<i64>) -> Version {
        Version {
            version: Some(version),
            name: format!("v{version}"),
            parent,
            phase: SnapshotPhase::Ready,
            tags: Vec::new(),
            origin: Origin::Asked,
            visits: Vec::new(),
            description: None,
            at: None,
        }
    }

    fn lines(versions: Vec<Version>) -> Vec<String> {
        let lineage = Lineage {
            name: "shop".into(),
            versions,
        };
        draw(&lineage)
            .iter()
            .map(|d| format!("{} {}", d.prefix, d.version.name))
            .collect()
    }

    #[test]
    fn a_straight_line_stays_in_its_column() {
        assert_eq!(
            lines(vec![version(1, None), version(2, Some(1)), version(3, Some(2))]),
            ["● v1", "● v2", "● v3"]
        );
    }

    #[test]
    fn what_was_left_behind_by_a_rollback_is_a_branch() {
        let tree = vec![
            version(1, None),
            version(2, Some(1)),
            version(3, Some(2)),
            version(4, Some(1)),
            version(5, Some(4)),
        ];
        assert_eq!(lines(tree), ["● v1", "├─● v2", "│ ● v3", "● v4", "● v5"]);
    }

    #[test]
    fn the_source_tells_safety_and_result_snapshots() {
        let mut snapshot = Snapshot::new("a", crate::api::SnapshotSpec::default());
        let of = |source: &str| crate::api::reference::OnBehalfOf {
            username: "alice".into(),
            source: Some(source.into()),
            ..Default::default()
        };
        assert_eq!(origin(&snapshot), Origin::Asked);
        snapshot.spec.on_behalf_of = Some(of("RollbackRequest/undo/Safety"));
        assert_eq!(origin(&snapshot), Origin::Safety("undo".into()));
        snapshot.spec.on_behalf_of = Some(of("RollbackRequest/undo/Result"));
        assert_eq!(origin(&snapshot), Origin::Result("undo".into()));
        snapshot.spec.on_behalf_of = Some(of("SnapshotSchedule/nightly"));
        assert_eq!(origin(&snapshot), Origin::Asked);
    }

    proptest! {
        #[test]
        fn every_version_is_drawn_exactly_once(parents in proptest::collection::vec(proptest::option::of(0_i64..12), 0..12)) {
            let versions: Vec<Version> = parents.iter().enumerate().map(|(n, p)| version(i64::try_from(n).unwrap() + 1, *p)).collect();
            let mut names: Vec<String> = versions.iter().map(|v| v.name.clone()).collect();
            let mut drawn: Vec<String> = lines(versions).iter().filter_map(|l| l.rsplit(' ').next().map(str::to_owned)).collect();
            names.sort();
            drawn.sort();
            prop_assert_eq!(names, drawn);
        }
    }
}
