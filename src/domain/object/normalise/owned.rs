//! Which fields somebody said, as `managedFields` tell.

use serde_json::{Map, Value};

/// The fields that managers own, without those of the status subresource.
pub struct Owned<'a> {
    /// `fieldsV1` of each entry; `None` where the object has no entries, so nothing is known.
    fields: Option<Vec<&'a Map<String, Value>>>,
}

impl<'a> Owned<'a> {
    /// From entries of `managedFields`; those of the status subresource must be gone.
    pub fn new(entries: &'a [Value]) -> Self {
        let fields: Vec<_> = entries
            .iter()
            .filter_map(|entry| entry.get("fieldsV1")?.as_object())
            .collect();
        Self {
            fields: (!fields.is_empty()).then_some(fields),
        }
    }

    /// Whether nobody owns the field at `path` (`f:spec`, `f:clusterIP`), so that the server chose its value.
    /// Never true where nothing is known: what may be an author's is kept.
    pub fn server_chose(&self, path: &[&str]) -> bool {
        self.fields.as_ref().is_some_and(|managers| {
            !managers.iter().any(|fields| {
                let (first, rest) = path.split_first().map_or(("", path), |(first, rest)| (*first, rest));
                let mut found = fields.get(first);
                for segment in rest {
                    found = found.and_then(|value| value.get(segment));
                }
                found.is_some()
            })
        })
    }
}
