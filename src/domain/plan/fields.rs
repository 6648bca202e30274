//! Sets of fields as `metadata.managedFields` writes them (`fieldsV1`): `f:name` is a field, `k:{…}` an item of a keyed list,
//! `v:…` an item of a set, `.` the thing itself; an empty set is a leaf, owned whole.

use serde_json::{Map, Value};

/// What one manager owns.
pub type Set = Map<String, Value>;

const ITSELF: &str = ".";

/// `f:spec`, `f:replicas` from `spec`, `replicas`.
pub fn path(fields: &[&str]) -> Vec<String> {
    fields.iter().map(|field| format!("f:{field}")).collect()
}

/// The set at `path`; `None` where it is not owned.
pub fn at<'a>(set: &'a Set, path: &[String]) -> Option<&'a Set> {
    path.iter().try_fold(set, |set, segment| set.get(segment)?.as_object())
}

/// Takes `path` out, and what that leaves empty: an empty set would be a leaf that nobody owned.
pub fn remove(set: &mut Set, path: &[String]) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    if rest.is_empty() {
        set.remove(first);
        return;
    }
    let Some(Value::Object(inner)) = set.get_mut(first) else {
        return;
    };
    let was_leaf = inner.is_empty();
    remove(inner, rest);
    if inner.is_empty() && !was_leaf {
        set.remove(first);
    }
}

/// Puts `what` at `path`.
pub fn insert(set: &mut Set, path: &[String], what: Set) {
    match path.split_first() {
        None => unite(set, what),
        Some((first, rest)) => {
            let inner = set.entry(first.clone()).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                insert(inner, rest, what);
            }
        }
    }
}

/// Adds every field of `more`.
pub fn unite(set: &mut Set, more: Set) {
    for (segment, value) in more {
        match (set.get_mut(&segment), value) {
            (Some(Value::Object(inner)), Value::Object(more)) => unite(inner, more),
            (_, value) => {
                set.insert(segment, value);
            }
        }
    }
}

/// The part of `value` that `set` owns, as its manager would write it; `None` where that is nothing.
pub fn project(value: &Value, set: &Set) -> Option<Value> {
    if set.is_empty() {
        return Some(value.clone());
    }
    match value {
        Value::Object(map) => {
            let part: Map<String, Value> = map
                .iter()
                .filter_map(|(name, value)| {
                    let inner = set.get(&format!("f:{name}"))?.as_object()?;
                    Some((name.clone(), project(value, inner)?))
                })
                .collect();
            (!part.is_empty() || set.contains_key(ITSELF)).then_some(Value::Object(part))
        }
        Value::Array(items) => {
            let part: Vec<Value> = items
                .iter()
                .filter_map(|item| {
                    let (_, inner) = set.iter().find(|(segment, _)| names(segment, item))?;
                    project(item, inner.as_object()?)
                })
                .collect();
            (!part.is_empty() || set.contains_key(ITSELF)).then_some(Value::Array(part))
        }
        _ => Some(value.clone()),
    }
}

/// Whether the segment names this item of a list.
fn names(segment: &str, item: &Value) -> bool {
    if let Some(key) = segment.strip_prefix("k:") {
        let Ok(Value::Object(key)) = serde_json::from_str(key) else {
            return false;
        };
        return key.iter().all(|(name, value)| item.get(name) == Some(value));
    }
    segment
        .strip_prefix("v:")
        .and_then(|text| serde_json::from_str::<Value>(text).ok())
        .is_some_and(|value| value == *item)
}

/// One state of a value, and what of it the manager owns (or, of the wanted state, shall own).
#[derive(Clone, Copy)]
pub struct State<'a> {
    /// The value; `None` where it is absent.
    pub value: Option<&'a Value>,
    /// What is owned of it; `None` is nothing.
    pub owned: Option<&'a Set>,
}

impl<'a> State<'a> {
    fn child(self, name: &str) -> Self {
        Self {
            value: self.value.and_then(|value| value.get(name)),
            owned: self
                .owned
                .and_then(|owned| owned.get(&format!("f:{name}")))
                .and_then(Value::as_object),
        }
    }

    /// The item that `segment` names.
    fn item(self, segment: &str) -> Self {
        let items = self.value.and_then(Value::as_array);
        Self {
            value: items.and_then(|items| items.iter().find(|item| names(segment, item))),
            owned: self
                .owned
                .and_then(|owned| owned.get(segment))
                .and_then(Value::as_object),
        }
    }

    fn segments(self) -> impl Iterator<Item = &'a String> {
        self.owned
            .into_iter()
            .flat_map(Map::keys)
            .filter(|segment| segment.starts_with("k:") || segment.starts_with("v:"))
    }
}

/// Whether an apply of what the manager owns in `wanted` leads from `live` to `wanted`: everything that changes or comes is owned
/// there, everything that goes is owned now. Fields of a new part that nobody owns are defaults, which the server sets again.
pub fn applies(live: State<'_>, wanted: State<'_>) -> bool {
    if live.value == wanted.value {
        return true;
    }
    match (live.value, wanted.value) {
        (None, None) => true,
        (None, Some(_)) => wanted.owned.is_some(),
        (Some(_), None) => live.owned.is_some(),
        (Some(Value::Object(now)), Some(Value::Object(then))) => {
            let whole = wanted.owned.is_some_and(Map::is_empty) && !then.is_empty();
            // An atomic map is replaced as a whole.
            whole
                || now
                    .keys()
                    .chain(then.keys().filter(|name| !now.contains_key(*name)))
                    .all(|name| applies(live.child(name), wanted.child(name)))
        }
        (Some(Value::Array(now)), Some(Value::Array(then))) => {
            if wanted.owned.is_some_and(Map::is_empty) {
                return true;
            }
            let mut segments: Vec<&String> = live.segments().chain(wanted.segments()).collect();
            segments.sort_unstable();
            segments.dedup();
            // An item that no segment names could not be told from another.
            let told = |items: &[Value]| {
                items
                    .iter()
                    .all(|item| segments.iter().any(|segment| names(segment, item)))
            };
            told(now)
                && told(then)
                && segments
                    .iter()
                    .all(|segment| applies(live.item(segment), wanted.item(segment)))
        }
        (Some(_), Some(_)) => wanted.owned.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(value: Value) -> Set {
        let Value::Object(set) = value else { panic!("no set") };
        set
    }

    #[test]
    fn a_projection_holds_what_the_manager_wrote_and_no_defaults() {
        let value = json!({"spec": {"replicas": 2, "strategy": {"type": "RollingUpdate"}, "selector": {"matchLabels": {"app": "web"}},
            "containers": [{"name": "a", "image": "a:1", "policy": "Always"}, {"name": "b", "image": "b:1"}],
            "finalizers": ["x", "y"]}});
        let owned = set(
            json!({"f:spec": {"f:selector": {}, "f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:image": {}}},
            "f:finalizers": {"v:\"y\"": {}}}}),
        );
        assert_eq!(
            project(&value, &owned).unwrap(),
            json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "containers": [{"name": "a", "image": "a:1"}], "finalizers": ["y"]}})
        );
        assert_eq!(project(&value, &set(json!({"f:status": {}}))), None);
    }

    #[test]
    fn removing_a_field_leaves_no_parent_that_would_own_everything() {
        let mut owned = set(json!({"f:spec": {"f:replicas": {}}, "f:data": {".": {}, "f:a": {}}}));
        remove(&mut owned, &path(&["spec", "replicas"]));
        remove(&mut owned, &path(&["data", "a"]));
        assert_eq!(owned, set(json!({"f:data": {".": {}}})));
        insert(&mut owned, &path(&["spec", "replicas"]), Set::new());
        insert(&mut owned, &path(&["spec", "paused"]), Set::new());
        assert_eq!(
            owned,
            set(json!({"f:data": {".": {}}, "f:spec": {"f:replicas": {}, "f:paused": {}}}))
        );
        assert!(at(&owned, &path(&["spec", "replicas"])).is_some() && at(&owned, &path(&["spec", "x"])).is_none());
    }

    fn case(live: &Value, live_owned: Value, wanted: &Value, wanted_owned: Value) -> bool {
        let (live_owned, wanted_owned) = (set(live_owned), set(wanted_owned));
        applies(
            State {
                value: Some(live),
                owned: Some(&live_owned),
            },
            State {
                value: Some(wanted),
                owned: Some(&wanted_owned),
            },
        )
    }

    #[test]
    fn an_apply_sets_what_its_manager_owns_and_removes_only_what_it_owned() {
        let owned = || json!({"f:data": {".": {}, "f:a": {}}});
        let (now, then) = (json!({"data": {"a": "2"}}), json!({"data": {"a": "1"}}));
        assert!(case(&now, owned(), &then, owned()));
        let more = json!({"data": {"a": "2", "b": "x"}});
        assert!(!case(&more, owned(), &then, owned()), "somebody else's field stays");
        assert!(case(
            &more,
            json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}}),
            &then,
            owned()
        ));
        // A default that differs is nobody's to apply.
        let (now, then) = (json!({"a": 1, "default": 2}), json!({"a": 1, "default": 1}));
        assert!(!case(&now, json!({"f:a": {}}), &then, json!({"f:a": {}})));
    }

    #[test]
    fn items_of_keyed_lists_are_compared_by_their_key() {
        let owned = json!({"f:l": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:image": {}}}});
        let of = |image: &str| json!({"l": [{"name": "a", "image": image, "default": true}]});
        assert!(case(&of("2"), owned.clone(), &of("1"), owned.clone()));
        let two = json!({"l": [{"name": "a", "image": "1", "default": true}, {"name": "b"}]});
        assert!(!case(&two, owned.clone(), &of("1"), owned.clone()));
        // An atomic list is written whole.
        assert!(case(
            &json!({"l": [1, 2]}),
            json!({}),
            &json!({"l": [3]}),
            json!({"f:l": {}})
        ));
    }
}
