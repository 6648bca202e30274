//! Which Snapshot a target means.

use jiff::Timestamp;

use crate::api::{reasons, reference::ResolvedSnapshot, rollback_request::Target, snapshot::SnapshotPhase};

/// Lineage of Snapshots and targets that name none.
pub const DEFAULT_LINEAGE: &str = "default";

/// A Snapshot of the namespace, as its status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Name of the object.
    pub name: String,
    /// UID of the object.
    pub uid: String,
    /// Lineage.
    pub lineage: String,
    /// Phase.
    pub phase: SnapshotPhase,
    /// Version, once it is Ready.
    pub version: Option<i64>,
    /// Version that was live when it was taken.
    pub parent: Option<i64>,
    /// Digest, once it is Ready.
    pub digest: Option<String>,
    /// When the capture began.
    pub started_at: Option<Timestamp>,
    /// Tags of the spec and of labels.
    pub tags: Vec<String>,
    /// Taken right before a rollback; only its name reaches it.
    pub safety: bool,
}

/// Why a target means nothing; each message says how to fix it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No such Snapshot, version, tag or time.
    #[error("{what}; `kubectl get snapshots` lists what there is")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The Snapshot cannot be gone back to.
    #[error("snapshot {name} is {phase}, not Ready; name a Ready one")]
    NotReady {
        /// Its name.
        name: String,
        /// Its phase.
        phase: String,
    },
    /// Two Ready Snapshots carry the tag.
    #[error("the tag {tag} is carried by {}; take it off all but one, or name a version", names.join(" and "))]
    Ambiguous {
        /// The tag.
        tag: String,
        /// Who carries it.
        names: Vec<String>,
    },
    /// Not exactly one way to name the Snapshot.
    #[error("target needs exactly one of snapshot, version, tag, asOf or previous")]
    Malformed,
}

impl TargetError {
    /// Reason of the condition.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => reasons::TARGET_NOT_FOUND,
            Self::NotReady { .. } => reasons::TARGET_NOT_READY,
            Self::Ambiguous { .. } => reasons::TARGET_AMBIGUOUS,
            Self::Malformed => reasons::INVALID_SPEC,
        }
    }
}

/// The Snapshot that `target` means. `live_version` is the Ready version of the lineage whose digest equals live, where one does:
/// `previous` is its parent, and without one the newest Ready version.
///
/// # Errors
/// See [`TargetError`].
pub fn resolve(
    target: &Target,
    candidates: &[Candidate],
    live_version: Option<i64>,
) -> Result<ResolvedSnapshot, TargetError> {
    if let Some(name) = &target.snapshot {
        let found = candidates.iter().find(|c| c.name == *name);
        let found = found.ok_or_else(|| TargetError::NotFound {
            what: format!("there is no snapshot {name} in this namespace"),
        })?;
        return ready(found);
    }
    let lineage = target.lineage.as_deref().unwrap_or(DEFAULT_LINEAGE);
    let in_lineage = || candidates.iter().filter(|c| c.lineage == lineage);
    let versions = || in_lineage().filter(|c| c.phase == SnapshotPhase::Ready && !c.safety);
    let missing = |what: String| TargetError::NotFound { what };
    let newest = || versions().max_by_key(|c| c.version);
    if let Some(version) = target.version {
        let found = in_lineage().find(|c| c.version == Some(version));
        return ready(found.ok_or_else(|| missing(format!("lineage {lineage} has no version {version}")))?);
    }
    if let Some(tag) = &target.tag {
        let carriers: Vec<_> = versions().filter(|c| c.tags.contains(tag)).collect();
        return match carriers.as_slice() {
            [] => Err(missing(format!(
                "no Ready snapshot of lineage {lineage} carries the tag {tag}"
            ))),
            [one] => ready(one),
            several => Err(TargetError::Ambiguous {
                tag: tag.clone(),
                names: several.iter().map(|c| c.name.clone()).collect(),
            }),
        };
    }
    if let Some(as_of) = &target.as_of {
        let found = versions()
            .filter(|c| c.started_at.is_some_and(|at| at <= as_of.0))
            .max_by_key(|c| (c.started_at, c.version));
        return ready(found.ok_or_else(|| {
            missing(format!(
                "lineage {lineage} has no Ready version begun at or before {}",
                as_of.0
            ))
        })?);
    }
    if target.previous == Some(true) {
        let parent = live_version
            .and_then(|live| versions().find(|c| c.version == Some(live)))
            .map(|live| versions().find(|c| live.parent.is_some() && c.version == live.parent));
        let found = match parent {
            Some(parent) => parent.ok_or_else(|| {
                missing(format!(
                    "what is live has no earlier Ready version in lineage {lineage}"
                ))
            })?,
            None => newest().ok_or_else(|| missing(format!("lineage {lineage} has no Ready version")))?,
        };
        return ready(found);
    }
    Err(TargetError::Malformed)
}

fn ready(candidate: &Candidate) -> Result<ResolvedSnapshot, TargetError> {
    match (candidate.phase, candidate.version, &candidate.digest) {
        (SnapshotPhase::Ready, Some(version), Some(digest)) => Ok(ResolvedSnapshot {
            name: candidate.name.clone(),
            uid: candidate.uid.clone(),
            version,
            digest: digest.clone(),
        }),
        (phase, _, _) => Err(TargetError::NotReady {
            name: candidate.name.clone(),
            phase: format!("{phase:?}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn candidate(name: &str, version: i64, parent: Option<i64>) -> Candidate {
        Candidate {
            name: name.into(),
            uid: format!("uid-{name}"),
            lineage: "shop".into(),
            phase: SnapshotPhase::Ready,
            version: Some(version),
            parent,
            digest: Some(format!("sha256:{version}")),
            started_at: Timestamp::from_second(version * 100).ok(),
            tags: Vec::new(),
            safety: false,
        }
    }

    fn line() -> Vec<Candidate> {
        let mut line = vec![
            candidate("a", 1, None),
            candidate("b", 2, Some(1)),
            candidate("c", 3, Some(2)),
        ];
        line[1].tags = vec!["good".into()];
        line.push(Candidate {
            safety: true,
            ..candidate("safety", 4, Some(3))
        });
        line.push(Candidate {
            phase: SnapshotPhase::Failed,
            version: None,
            digest: None,
            ..candidate("broken", 0, None)
        });
        line
    }

    fn in_shop(target: Target) -> Target {
        Target {
            lineage: Some("shop".into()),
            ..target
        }
    }

    fn name(target: &Target, live: Option<i64>) -> Result<String, &'static str> {
        resolve(target, &line(), live).map(|r| r.name).map_err(|e| e.reason())
    }

    #[test]
    fn each_way_to_name_a_version_finds_it() {
        assert_eq!(
            name(
                &Target {
                    snapshot: Some("b".into()),
                    ..Target::default()
                },
                None
            ),
            Ok("b".into())
        );
        assert_eq!(
            name(
                &in_shop(Target {
                    version: Some(3),
                    ..Target::default()
                }),
                None
            ),
            Ok("c".into())
        );
        assert_eq!(
            name(
                &in_shop(Target {
                    tag: Some("good".into()),
                    ..Target::default()
                }),
                None
            ),
            Ok("b".into())
        );
        let at = |second| Some(Time(Timestamp::from_second(second).unwrap()));
        assert_eq!(
            name(
                &in_shop(Target {
                    as_of: at(250),
                    ..Target::default()
                }),
                None
            ),
            Ok("b".into())
        );
        assert_eq!(
            name(
                &in_shop(Target {
                    as_of: at(50),
                    ..Target::default()
                }),
                None
            ),
            Err(reasons::TARGET_NOT_FOUND)
        );
    }

    #[test]
    fn previous_is_the_parent_of_what_is_live_and_the_newest_when_live_is_no_version() {
        let previous = in_shop(Target {
            previous: Some(true),
            ..Target::default()
        });
        assert_eq!(name(&previous, Some(3)), Ok("b".into()));
        assert_eq!(name(&previous, None), Ok("c".into()));
        assert_eq!(name(&previous, Some(1)), Err(reasons::TARGET_NOT_FOUND));
    }

    #[test]
    fn unknown_failed_and_ambiguous_targets_are_refused_with_their_reason() {
        assert_eq!(
            name(
                &Target {
                    snapshot: Some("x".into()),
                    ..Target::default()
                },
                None
            ),
            Err(reasons::TARGET_NOT_FOUND)
        );
        assert_eq!(
            name(
                &Target {
                    snapshot: Some("broken".into()),
                    ..Target::default()
                },
                None
            ),
            Err(reasons::TARGET_NOT_READY)
        );
        assert_eq!(
            name(
                &Target {
                    version: Some(3),
                    ..Target::default()
                },
                None
            ),
            Err(reasons::TARGET_NOT_FOUND)
        );
        let mut line = line();
        line[2].tags = vec!["good".into()];
        let tagged = in_shop(Target {
            tag: Some("good".into()),
            ..Target::default()
        });
        assert_eq!(
            resolve(&tagged, &line, None).unwrap_err().reason(),
            reasons::TARGET_AMBIGUOUS
        );
    }
}
