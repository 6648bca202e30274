//! How two states of one object differ: field by field for machines, line by line for approvers.
//!
//! Secret values never appear: a keyed fingerprint stands for each. Who has no installation key passes a random one;
//! its fingerprints compare within one diff only.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use similar::TextDiff;

use super::{
    secret::{self, FingerprintKey},
    shape::{ListKind, ListShape, Node},
};

mod text;

/// Lines that still get a minimal diff; its cost grows with their square. Beyond, the differing block is shown whole.
const MAX_LINES: usize = 4_000;
/// Unchanged lines around a change.
const CONTEXT: usize = 3;

/// Every difference of two states, in the order of their paths.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ObjectDiff {
    /// One entry a field.
    pub changes: Vec<FieldChange>,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FieldChange {
    /// As kubectl writes it: `spec.template.spec.containers[name=app].image`, `metadata.labels["a.b/c"]`, `rules[0]`,
    /// `tags[=x]` for an item of a set. Empty for the object itself.
    pub path: String,
    /// What happened.
    pub kind: ChangeKind,
    /// The value before; a fingerprint where it is `hidden`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// The value after; a fingerprint where it is `hidden`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
    /// Whether it is or holds a Secret value.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
}

/// What happened to a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// Absent before.
    Added,
    /// Absent after.
    Removed,
    /// Another value.
    Changed,
}

impl ObjectDiff {
    /// Whether both states are the same.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// The differences from `old` to `new`; `None` is an absent object. Sets and keyed lists are compared by key, whatever their
/// order; where the order of a keyed list is content, another order is a change of the list, its value the keys in order.
pub fn diff(old: Option<&Value>, new: Option<&Value>, shape: &ListShape, key: &FingerprintKey) -> ObjectDiff {
    let (old, new) = hide(old, new, key);
    let mut changes = Vec::new();
    compare(
        &mut String::new(),
        old.as_deref(),
        new.as_deref(),
        Some(shape.root()),
        &mut changes,
    );
    if [&old, &new].into_iter().flatten().any(|state| secret::is_secret(state)) {
        for change in &mut changes {
            change.hidden = [&change.old, &change.new].into_iter().flatten().any(holds_fingerprint);
        }
    }
    ObjectDiff { changes }
}

/// A unified diff of YAML lines with three lines of context, without file headers; empty for equal states.
/// Both states are put into canonical order first. The text is as long as the change: callers bound what they store.
pub fn unified(old: Option<&Value>, new: Option<&Value>, shape: &ListShape, key: &FingerprintKey) -> String {
    let (old, new) = hide(old, new, key);
    let lines = |state: Option<Cow<'_, Value>>| {
        state.map_or_else(String::new, |state| {
            let mut state = state.into_owned();
            shape.sort(&mut state);
            text::yaml(&state)
        })
    };
    let (old, new) = (lines(old), lines(new));
    if old.is_empty() || new.is_empty() {
        return one_side(&old, &new);
    }
    if changed_lines(&old, &new) > MAX_LINES {
        return whole_block(&old, &new);
    }
    TextDiff::from_lines(&old, &new)
        .unified_diff()
        .context_radius(CONTEXT)
        .to_string()
}

type State<'a> = Option<Cow<'a, Value>>;

fn hide<'a>(old: Option<&'a Value>, new: Option<&'a Value>, key: &FingerprintKey) -> (State<'a>, State<'a>) {
    if ![old, new].into_iter().flatten().any(secret::is_secret) {
        return (old.map(Cow::Borrowed), new.map(Cow::Borrowed));
    }
    let (mut old, mut new) = (old.cloned(), new.cloned());
    secret::fingerprint_both(old.as_mut(), new.as_mut(), key);
    (old.map(Cow::Owned), new.map(Cow::Owned))
}

fn holds_fingerprint(value: &Value) -> bool {
    match value {
        Value::String(text) => secret::is_fingerprint(text),
        Value::Array(items) => items.iter().any(holds_fingerprint),
        Value::Object(map) => map.values().any(holds_fingerprint),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn compare(
    path: &mut String,
    old: Option<&Value>,
    new: Option<&Value>,
    node: Option<&Node>,
    changes: &mut Vec<FieldChange>,
) {
    match (old, new) {
        (None, None) => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) => compare_maps(path, old, new, node, changes),
        (Some(Value::Array(old)), Some(Value::Array(new))) => compare_lists(path, old, new, node, changes),
        (Some(old), Some(new)) if super::canonical::to_bytes(old) == super::canonical::to_bytes(new) => {}
        (old, new) => changes.push(FieldChange {
            path: path.clone(),
            kind: match (old, new) {
                (None, _) => ChangeKind::Added,
                (_, None) => ChangeKind::Removed,
                _ => ChangeKind::Changed,
            },
            old: old.cloned(),
            new: new.cloned(),
            hidden: false,
        }),
    }
}

/// Goes on below `path` with `segment` added, then takes it off again.
fn below(
    path: &mut String,
    segment: &str,
    states: (Option<&Value>, Option<&Value>),
    node: Option<&Node>,
    changes: &mut Vec<FieldChange>,
) {
    let length = path.len();
    path.push_str(segment);
    compare(path, states.0, states.1, node, changes);
    path.truncate(length);
}

fn compare_maps(
    path: &mut String,
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    node: Option<&Node>,
    changes: &mut Vec<FieldChange>,
) {
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let is_plain = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'$'));
        let segment = match (is_plain, path.is_empty()) {
            (true, true) => name.clone(),
            (true, false) => format!(".{name}"),
            (false, _) => format!("[{}]", Value::from(name.as_str())),
        };
        below(
            path,
            &segment,
            (old.get(name), new.get(name)),
            node.and_then(|node| node.field(name)),
            changes,
        );
    }
}

fn compare_lists(path: &mut String, old: &[Value], new: &[Value], node: Option<&Node>, changes: &mut Vec<FieldChange>) {
    let items = node.and_then(Node::items);
    let kind = node.map_or(&ListKind::Atomic, Node::kind);
    let (old_keys, new_keys) = match kind {
        ListKind::Atomic => (None, None),
        ListKind::Set | ListKind::Keyed(_) | ListKind::Ordered(_) => (keys_of(old, kind), keys_of(new, kind)),
    };
    // Items that cannot be told apart are compared by position.
    let (Some(old_keys), Some(new_keys)) = (old_keys, new_keys) else {
        for index in 0..old.len().max(new.len()) {
            below(
                path,
                &format!("[{index}]"),
                (old.get(index), new.get(index)),
                items,
                changes,
            );
        }
        return;
    };
    let by_key = |keys: &[String]| -> BTreeMap<String, usize> { keys.iter().cloned().zip(0..).collect() };
    let (old_at, new_at) = (by_key(&old_keys), by_key(&new_keys));
    let all: std::collections::BTreeSet<&String> = old_at.keys().chain(new_at.keys()).collect();
    for key in all {
        let states = (
            old_at.get(key).and_then(|at| old.get(*at)),
            new_at.get(key).and_then(|at| new.get(*at)),
        );
        below(path, &format!("[{key}]"), states, items, changes);
    }
    if matches!(kind, ListKind::Ordered(_)) {
        let common = |keys: &[String], other: &BTreeMap<String, usize>| -> Vec<Value> {
            keys.iter()
                .filter(|key| other.contains_key(*key))
                .map(|key| Value::from(key.as_str()))
                .collect()
        };
        let (old, new) = (common(&old_keys, &new_at), common(&new_keys, &old_at));
        if old != new {
            let (old, new) = (Some(Value::Array(old)), Some(Value::Array(new)));
            changes.push(FieldChange {
                path: path.clone(),
                kind: ChangeKind::Changed,
                old,
                new,
                hidden: false,
            });
        }
    }
}

/// What tells each item apart, as written in paths; `None` where two items share it.
fn keys_of(list: &[Value], kind: &ListKind) -> Option<Vec<String>> {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
    let keys: Vec<String> = list
        .iter()
        .map(|item| match kind {
            ListKind::Keyed(fields) | ListKind::Ordered(fields) => {
                let mut text = String::new();
                for (index, field) in fields.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    let value = item.get(field).map(plain).unwrap_or_default();
                    // Writing to a String cannot fail.
                    let _ = write!(text, "{comma}{field}={value}");
                }
                text
            }
            ListKind::Set | ListKind::Atomic => format!("={}", plain(item)),
        })
        .collect();
    let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
    (distinct.len() == keys.len()).then_some(keys)
}

/// Lines that are left on both sides without their common start and end.
fn changed_lines(old: &str, new: &str) -> usize {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let (start, end) = common_ends(&old, &new);
    old.len() + new.len() - 2 * (start + end)
}

fn common_ends(old: &[&str], new: &[&str]) -> (usize, usize) {
    let start = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let end = old[start..]
        .iter()
        .rev()
        .zip(new[start..].iter().rev())
        .take_while(|(old, new)| old == new)
        .count();
    (start, end)
}

/// The diff of two texts of which one is empty, as any algorithm would make it.
fn one_side(old: &str, new: &str) -> String {
    let (sign, text) = if old.is_empty() { ('+', new) } else { ('-', old) };
    let range = match text.split_terminator('\n').count() {
        0 => return String::new(),
        1 => "1".to_owned(),
        count => format!("1,{count}"),
    };
    let mut out = match sign {
        '+' => format!("@@ -0,0 +{range} @@\n"),
        _ => format!("@@ -{range} +0,0 @@\n"),
    };
    for line in text.split_terminator('\n') {
        out.push(sign);
        out.push_str(line);
        out.push('\n');
    }
    out
}

fn whole_block(old: &str, new: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let (start, end) = common_ends(&old, &new);
    let (gone, come) = (&old[start..old.len() - end], &new[start..new.len() - end]);
    let mut out = format!("@@ -{},{} +{},{} @@\n", start + 1, gone.len(), start + 1, come.len());
    for (sign, lines) in [('-', gone), ('+', come)] {
        for line in lines {
            out.push(sign);
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests;
