//! Which lists have an order that means something, and by which keys the others are told apart.
//!
//! The API server knows three sorts of lists (`x-kubernetes-list-type`): atomic, set, and map (keyed). The order of a set
//! or of a keyed list carries no meaning, so it is sorted in canonical form; the captured order is kept as a hint.

use std::{
    borrow::Cow,
    cmp::Ordering,
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

mod builtin;

/// The lists of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListShape {
    root: Node,
}

/// What the items of a list are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListKind {
    /// One value: its order is content. Also every list that nothing is known about.
    #[default]
    Atomic,
    /// Scalars without an order.
    Set,
    /// Objects told apart by these fields, without an order.
    Keyed(Vec<String>),
    /// Objects told apart by these fields, whose order is content although the schema says keyed.
    Ordered(Vec<String>),
}

/// One place in an object's tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    kind: ListKind,
    fields: BTreeMap<String, Node>,
    /// What is below every other field of a map.
    every: Option<Box<Node>>,
    /// What is below every item of a list.
    items: Option<Box<Node>>,
}

impl Node {
    pub(crate) fn kind(&self) -> &ListKind {
        &self.kind
    }

    pub(crate) fn field(&self, name: &str) -> Option<&Node> {
        self.fields.get(name).or(self.every.as_deref())
    }

    pub(crate) fn items(&self) -> Option<&Node> {
        self.items.as_deref()
    }

    fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// The node at `path`, made where it is missing; `[]` at the end of a segment steps into the items of a list.
    fn at(&mut self, path: &str) -> &mut Node {
        let mut node = self;
        for segment in path.split('.').filter(|segment| !segment.is_empty()) {
            let name = segment.trim_end_matches("[]");
            node = node.fields.entry(name.to_owned()).or_default();
            if segment.ends_with("[]") {
                node = &mut **node.items.get_or_insert_default();
            }
        }
        node
    }
}

/// Order of the captured lists that the canonical form sorted: JSON pointer into the *canonical* content → for each place
/// of the captured list, the index of its item in the canonical list. Holds positions only, never values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OrderHints(pub BTreeMap<String, Vec<u32>>);

impl OrderHints {
    /// Whether every list was in canonical order already.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl ListShape {
    /// Nothing is known: every list keeps its order.
    pub fn atomic() -> Self {
        Self::default()
    }

    /// The lists of a kind that Kubernetes itself serves (any version); `None` for a kind that is not built in.
    pub fn builtin(group: &str, kind: &str) -> Option<Self> {
        builtin::node(group, kind).map(|root| Self { root })
    }

    /// The lists of a custom resource, from `spec.versions[].schema.openAPIV3Schema` of its definition.
    /// Parts that the schema does not describe (`x-kubernetes-preserve-unknown-fields`) keep their order.
    pub fn from_crd_schema(schema: &Value) -> Self {
        let mut root = schema_node(schema, "").unwrap_or_default();
        // Every kind has these, and a definition does not describe `metadata`.
        builtin::add_metadata(&mut root);
        Self { root }
    }

    pub(crate) fn root(&self) -> &Node {
        &self.root
    }

    /// Sorts sets and keyed lists of `content` in place and says how they were ordered before.
    /// Items with equal keys (which a server may let through) keep their relative order.
    pub fn sort(&self, content: &mut Value) -> OrderHints {
        let mut hints = OrderHints::default();
        sort_below(content, &self.root, &Path::Root, &mut hints);
        hints
    }
}

/// Gives the lists of canonical `content` the order they were captured in. Call it before anything else changes
/// `content`; a hint that does not fit the list it names is left out.
pub fn apply_order(content: &mut Value, hints: &OrderHints) {
    // Pointers go through canonical positions, so inner lists first.
    let mut deepest_first: Vec<_> = hints.0.iter().collect();
    deepest_first.sort_by_key(|(pointer, _)| std::cmp::Reverse(pointer.matches('/').count()));
    for (pointer, order) in deepest_first {
        if let Some(Value::Array(items)) = content.pointer_mut(pointer)
            && is_permutation(order, items.len())
        {
            *items = order
                .iter()
                .filter_map(|index| items.get_mut(*index as usize).map(Value::take))
                .collect();
        }
    }
}

fn is_permutation(order: &[u32], len: usize) -> bool {
    let mut seen = vec![false; len];
    order.len() == len
        && order.iter().all(|index| {
            seen.get_mut(*index as usize)
                .is_some_and(|seen| !std::mem::replace(seen, true))
        })
}

enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Item(parent, index) => write!(f, "{parent}/{index}"),
            Self::Field(parent, name) => {
                write!(f, "{parent}/")?;
                name.chars().try_for_each(|letter| match letter {
                    '~' => f.write_str("~0"),
                    '/' => f.write_str("~1"),
                    other => f.write_char(other),
                })
            }
        }
    }
}

fn sort_below(value: &mut Value, node: &Node, path: &Path<'_>, hints: &mut OrderHints) {
    match value {
        Value::Object(map) => {
            for (name, child) in &node.fields {
                if let Some(value) = map.get_mut(name) {
                    sort_below(value, child, &Path::Field(path, name), hints);
                }
            }
            if let Some(every) = &node.every {
                for (name, value) in map.iter_mut().filter(|(name, _)| !node.fields.contains_key(*name)) {
                    sort_below(value, every, &Path::Field(path, name), hints);
                }
            }
        }
        Value::Array(items) => {
            if let Some(order) = sort_list(items, &node.kind) {
                hints.0.insert(path.to_string(), order);
            }
            if let Some(node) = &node.items {
                for (index, item) in items.iter_mut().enumerate() {
                    sort_below(item, node, &Path::Item(path, index), hints);
                }
            }
        }
        _ => {}
    }
}

/// Sorts `items`; `Some` with the former order where it changed.
fn sort_list(items: &mut Vec<Value>, kind: &ListKind) -> Option<Vec<u32>> {
    let compare = |a: &Value, b: &Value| match kind {
        ListKind::Set => compare_scalars(Some(a), Some(b)),
        ListKind::Keyed(keys) => compare_keys(a, b, keys),
        ListKind::Atomic | ListKind::Ordered(_) => Ordering::Equal,
    };
    if items.is_sorted_by(|a, b| compare(a, b) != Ordering::Greater) {
        return None;
    }
    let mut by_key: Vec<usize> = (0..items.len()).collect();
    by_key.sort_by(|a, b| compare(&items[*a], &items[*b]));
    let mut captured = vec![0; items.len()];
    let mut sorted = Vec::with_capacity(items.len());
    for (canonical, original) in by_key.into_iter().enumerate() {
        captured[original] = u32::try_from(canonical).unwrap_or(u32::MAX);
        sorted.push(items[original].take());
    }
    *items = sorted;
    Some(captured)
}

fn compare_keys(a: &Value, b: &Value, keys: &[String]) -> Ordering {
    keys.iter()
        .map(|key| compare_scalars(a.get(key), b.get(key)))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// A total order over what can be a key; numbers before text, absent first.
fn compare_scalars(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::String(a)), Some(Value::String(b))) => a.cmp(b),
        (Some(Value::Number(a)), Some(Value::Number(b))) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a
                .as_f64()
                .unwrap_or_default()
                .total_cmp(&b.as_f64().unwrap_or_default()),
        },
        _ => text(a).cmp(&text(b)),
    }
}

fn text(value: Option<&Value>) -> Cow<'_, str> {
    match value {
        None => Cow::Borrowed(""),
        Some(Value::String(text)) => Cow::Borrowed(text),
        Some(other) => Cow::Owned(other.to_string()),
    }
}

/// Lists that run or resolve in order, though schemas (also of custom resources that embed pod templates) call them keyed.
fn order_has_meaning(field: &str) -> bool {
    matches!(field, "initContainers" | "env")
}

fn schema_node(schema: &Value, field: &str) -> Option<Node> {
    let keys = || -> Vec<String> {
        let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
        keys.into_iter()
            .flatten()
            .filter_map(|key| key.as_str().map(ToOwned::to_owned))
            .collect()
    };
    let kind = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListKind::Set,
        Some("map") if order_has_meaning(field) => ListKind::Ordered(keys()),
        Some("map") => ListKind::Keyed(keys()),
        _ => ListKind::Atomic,
    };
    let below = |part: &str| {
        schema
            .get(part)
            .and_then(|schema| schema_node(schema, ""))
            .map(Box::new)
    };
    let properties = schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::iter);
    let node = Node {
        kind,
        fields: properties
            .filter_map(|(name, schema)| Some((name.clone(), schema_node(schema, name)?)))
            .collect(),
        every: below("additionalProperties"),
        items: below("items"),
    };
    (!node.is_plain()).then_some(node)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::domain::object::testing::shuffled;

    fn deployment() -> Value {
        json!({"spec": {"template": {"spec": {
            "containers": [
                {"name": "web", "ports": [{"containerPort": 9090, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}],
                 "env": [{"name": "B"}, {"name": "A", "value": "$(B)"}]},
                {"name": "app", "volumeMounts": [{"mountPath": "/b", "name": "v"}, {"mountPath": "/a", "name": "v"}]},
            ],
            "initContainers": [{"name": "second"}, {"name": "first"}],
            "volumes": [{"name": "v"}, {"name": "c"}],
            "tolerations": [{"key": "b"}, {"key": "a"}],
        }}}})
    }

    #[test]
    fn keyed_lists_are_sorted_by_key_and_lists_with_a_meaning_keep_their_order() {
        let mut value = deployment();
        ListShape::builtin("apps", "Deployment").unwrap().sort(&mut value);
        let pod = &value["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["name"], "app");
        assert_eq!(pod["containers"][1]["ports"][0]["containerPort"], 80);
        assert_eq!(
            pod["containers"][1]["env"][0]["name"], "B",
            "env may refer to entries before it"
        );
        assert_eq!(
            pod["initContainers"][0]["name"], "second",
            "init containers run in order"
        );
        assert_eq!(pod["tolerations"][0]["key"], "b", "tolerations are atomic");
    }

    #[test]
    fn the_captured_order_comes_back_from_the_hints() {
        let mut value = deployment();
        let hints = ListShape::builtin("apps", "Deployment").unwrap().sort(&mut value);
        assert_ne!(value, deployment());
        apply_order(&mut value, &hints);
        assert_eq!(value, deployment());
    }

    #[test]
    fn a_hint_that_does_not_fit_changes_nothing() {
        let before = json!({"a": [1, 2]});
        for order in [vec![0, 0], vec![2, 0], vec![0]] {
            let mut value = before.clone();
            apply_order(&mut value, &OrderHints(BTreeMap::from([("/a".to_owned(), order)])));
            assert_eq!(value, before);
        }
    }

    #[test]
    fn lists_of_a_custom_resource_follow_its_schema() {
        let schema = json!({"properties": {"spec": {"properties": {
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "steps": {"type": "array", "items": {"type": "object"}},
            "env": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            "pools": {"additionalProperties": {"properties": {
                "nodes": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["zone", "id"]}}}},
        }}}});
        let mut value = json!({"spec": {
            "tags": ["b", "a"], "steps": [{"n": 2}, {"n": 1}], "env": [{"name": "b"}, {"name": "a"}],
            "pools": {"x/y": {"nodes": [{"zone": "b", "id": 1}, {"zone": "a", "id": 10}, {"zone": "a", "id": 9}]}}}});
        let before = value.clone();
        let hints = ListShape::from_crd_schema(&schema).sort(&mut value);
        assert_eq!(
            value,
            json!({"spec": {
            "tags": ["a", "b"], "steps": [{"n": 2}, {"n": 1}], "env": [{"name": "b"}, {"name": "a"}],
            "pools": {"x/y": {"nodes": [{"zone": "a", "id": 9}, {"zone": "a", "id": 10}, {"zone": "b", "id": 1}]}}}})
        );
        apply_order(&mut value, &hints);
        assert_eq!(value, before);
    }

    proptest! {
        #[test]
        fn any_order_sorts_to_the_same_and_comes_back(seed in any::<u64>()) {
            let shape = ListShape::builtin("apps", "Deployment").unwrap();
            let mut expected = deployment();
            shape.sort(&mut expected);
            let captured = shuffled(deployment(), &shape, seed);
            let mut value = captured.clone();
            let hints = shape.sort(&mut value);
            prop_assert_eq!(&value, &expected);
            apply_order(&mut value, &hints);
            prop_assert_eq!(value, captured);
        }
    }
}
