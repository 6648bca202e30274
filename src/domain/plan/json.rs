//! Small readers and writers over JSON objects that never panic on a shape they did not expect.

use serde_json::{Map, Value};

/// The value at `path`.
pub(super) fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(*key))
}

/// The text at `path`.
pub(super) fn text<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    at(value, path).and_then(Value::as_str)
}

/// Whether `path` holds `true`.
pub(super) fn is_true(value: &Value, path: &[&str]) -> bool {
    at(value, path).and_then(Value::as_bool) == Some(true)
}

/// The items of the list at `path`; none where there is no list.
pub(super) fn list<'a>(value: &'a Value, path: &[&str]) -> impl Iterator<Item = &'a Value> + use<'a> {
    at(value, path).and_then(Value::as_array).into_iter().flatten()
}

/// The map at `path`, made where it is missing; `None` where something else stands in the way.
pub(super) fn map_mut<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Map<String, Value>> {
    let mut here = value;
    for key in path {
        here = here
            .as_object_mut()?
            .entry(*key)
            .or_insert_with(|| Value::Object(Map::new()));
    }
    here.as_object_mut()
}

/// Puts `new` at `path`, or takes what is there away where `new` is `None`. Parents are made only for a value.
pub(super) fn put(value: &mut Value, path: &[&str], new: Option<Value>) {
    let Some((last, parents)) = path.split_last() else {
        return;
    };
    match new {
        Some(new) => {
            if let Some(map) = map_mut(value, parents) {
                map.insert((*last).to_owned(), new);
            }
        }
        None => {
            let parent = parents.iter().try_fold(value, |value, key| value.get_mut(*key));
            if let Some(map) = parent.and_then(Value::as_object_mut) {
                map.remove(*last);
            }
        }
    }
}

/// The annotation `name`.
pub(super) fn annotation<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    text(value, &["metadata", "annotations", name])
}

/// `v1` → core, `apps/v1` → `apps`.
pub(super) fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}
