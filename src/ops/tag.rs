//! Tags given to a snapshot after it was made: labels `tag.backstep.dev/<name>`.

use std::collections::BTreeMap;

use kube::{
    ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{Class, Error, Reference, Result, Session, list, reference};
use crate::api::{Snapshot, names, snapshot::SnapshotPhase};

/// Tags to put on and to take off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Tags to put on.
    pub add: Vec<String>,
    /// Tags to take off.
    pub remove: Vec<String>,
}

impl Change {
    /// Reads `TAG` (put on) and `TAG-` (take off), as `kubectl label` does.
    pub fn parse(words: &[String]) -> Result<Self> {
        let mut change = Self::default();
        for word in words {
            let (tag, list) = match word.strip_suffix('-') {
                Some(tag) => (tag, &mut change.remove),
                None => (word.as_str(), &mut change.add),
            };
            if !reference::is_tag(tag) {
                return Err(Error::usage(format!("`{tag}` cannot be a tag")).because(
                    "a tag is at most 63 letters, digits, `-`, `_` and `.`, and begins and ends with a letter or digit",
                ));
            }
            list.push(tag.to_owned());
        }
        if change.add.iter().any(|tag| change.remove.contains(tag)) {
            return Err(Error::usage("a tag cannot be put on and taken off at once"));
        }
        if change == Self::default() {
            return Err(Error::usage("no tag is named").fix("name tags to put on, or TAG- to take one off"));
        }
        Ok(change)
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Tagged {
    /// The snapshot afterwards.
    pub snapshot: Snapshot,
    /// Tags that another Ready snapshot of the lineage carries too, with its name: such a tag names nothing.
    pub ambiguous: Vec<(String, String)>,
}

/// Applies `change` to the snapshot that `reference` names.
pub async fn tag(session: &Session, reference: &Reference, change: &Change) -> Result<Tagged> {
    let snapshot = reference::resolve(session, reference).await?;
    let name = snapshot.name_any();
    for tag in &change.remove {
        if snapshot.spec.tags.contains(tag) {
            return Err(
                Error::new(Class::Refused, format!("tag {tag} cannot be taken off snapshot {name}"))
                    .because("it is in spec.tags, and the spec of a Snapshot never changes")
                    .fix("take a new snapshot, and put tags on with `kubectl backstep snapshot tag`"),
            );
        }
    }
    let key = |tag: &String| format!("{}{tag}", names::TAG_LABEL_PREFIX);
    let labels: BTreeMap<String, Value> = change
        .add
        .iter()
        .map(|tag| (key(tag), json!("true")))
        .chain(change.remove.iter().map(|tag| (key(tag), Value::Null)))
        .collect();
    // The uid makes the server refuse when another snapshot has taken the name meanwhile.
    let patch = Patch::Merge(json!({"metadata": {"uid": snapshot.uid(), "labels": labels}}));
    let api = session.snapshots();
    let params = PatchParams {
        field_manager: Some("kubectl-backstep".into()),
        ..PatchParams::default()
    };
    let snapshot = session
        .repeat(&format!("tag snapshot {name}"), || api.patch(&name, &params, &patch))
        .await?;
    let mut ambiguous = Vec::new();
    if !change.add.is_empty() {
        for other in list::all(session, list::Scope::Namespace, &ListParams::default()).await? {
            let rival = other.uid() != snapshot.uid()
                && reference::phase(&other) == SnapshotPhase::Ready
                && reference::lineage(&other) == reference::lineage(&snapshot);
            if rival {
                let tags = reference::tags(&other);
                ambiguous.extend(
                    change
                        .add
                        .iter()
                        .filter(|tag| tags.contains(tag))
                        .map(|tag| (tag.clone(), other.name_any())),
                );
            }
        }
    }
    Ok(Tagged { snapshot, ambiguous })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailing_dash_takes_a_tag_off() {
        let change = Change::parse(&["stable".into(), "old-".into()]).unwrap();
        assert_eq!(
            change,
            Change {
                add: vec!["stable".into()],
                remove: vec!["old".into()]
            }
        );
    }

    #[test]
    fn contradictions_and_impossible_tags_are_refused() {
        for words in [vec!["a", "a-"], vec!["-"], vec!["a b"], vec![], vec!["_x"]] {
            let words: Vec<String> = words.into_iter().map(Into::into).collect();
            assert_eq!(Change::parse(&words).unwrap_err().class, Class::Usage, "{words:?}");
        }
    }
}
