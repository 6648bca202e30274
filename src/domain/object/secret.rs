//! Which parts of a Secret are values, and what stands for them where they must not be shown or stored.
//!
//! `data`, `stringData`, `kubectl.kubernetes.io/last-applied-configuration` (it holds `stringData` in clear) and every
//! annotation that contains a value of `data`, plain or base64, are values.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use k8s_openapi::ByteString;
use serde_json::{Map, Value};
use sha2::Sha256;

/// What every fingerprint starts with. No value of `data` does: a colon is not base64.
const PREFIX: &str = "hmac-sha256:";

/// The annotation in which `kubectl apply` keeps the whole object that it sent.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Key of the fingerprints of one installation: 32 bytes, never shown. Only fingerprints made with one key compare.
#[derive(Clone)]
pub struct FingerprintKey([u8; 32]);

impl FingerprintKey {
    /// A key from 32 random bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// `hmac-sha256:<64 hex digits>` over the name of a key and its value, so that equal values of two keys do not show.
    pub fn fingerprint(&self, name: &str, value: &[u8]) -> String {
        let mut block = [0; 64];
        block[..32].copy_from_slice(&self.0);
        let mut mac = Hmac::<Sha256>::new(&block.into());
        mac.update(name.as_bytes());
        // A name holds no NUL, so name and value cannot be shifted against each other.
        mac.update(&[0]);
        mac.update(value);
        format!("{PREFIX}{}", hex::encode(mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintKey(..)")
    }
}

/// Whether `content` is a core Secret.
pub fn is_secret(content: &Value) -> bool {
    content.get("kind").and_then(Value::as_str) == Some("Secret")
        && content.get("apiVersion").and_then(Value::as_str) == Some("v1")
}

/// Whether `text` is what [`FingerprintKey::fingerprint`] writes.
pub fn is_fingerprint(text: &str) -> bool {
    text.strip_prefix(PREFIX).is_some_and(|digits| {
        digits.len() == 64
            && digits
                .bytes()
                .all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
    })
}

/// Replaces every value of the Secret `object` by its fingerprint. Values that are fingerprints already stay.
pub fn fingerprint_values(object: &mut Map<String, Value>, key: &FingerprintKey) {
    let needles = Needles::of(object);
    fingerprint(object, &needles, key);
}

/// Two states of one Secret with fingerprints for values. What is a value in one is hidden in both: an annotation may
/// still hold what `data` held before a rotation.
pub(crate) fn fingerprint_both(old: Option<&mut Value>, new: Option<&mut Value>, key: &FingerprintKey) {
    let mut states: Vec<_> = [old, new]
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
        .collect();
    let mut needles: Vec<_> = states.iter().map(|state| Needles::of(state)).collect();
    let texts: Vec<String> = needles.iter().flat_map(|needles| needles.texts.clone()).collect();
    // A capture that is fingerprinted still says which annotations held values.
    let hidden = |(state, needles): (&&mut Map<String, Value>, &Needles)| needles.hidden_annotations(state);
    let names: Vec<String> = states.iter().zip(&needles).flat_map(hidden).collect();
    for (state, needles) in states.iter_mut().zip(&mut needles) {
        needles.texts.clone_from(&texts);
        needles.names.clone_from(&names);
        fingerprint(state, needles, key);
    }
}

fn fingerprint(object: &mut Map<String, Value>, needles: &Needles, key: &FingerprintKey) {
    replace_values(object, needles, |name, value| match value {
        Hidden::Text(text) if is_fingerprint(text) => text.to_owned(),
        Hidden::Text(text) => key.fingerprint(name, text.as_bytes()),
        Hidden::Bytes(bytes) => key.fingerprint(name, bytes),
    });
}

/// A value on its way out: bytes where base64 was decoded, text otherwise.
enum Hidden<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

/// Replaces every value of the Secret `object` by what `stand_in` says of (key, value).
fn replace_values(object: &mut Map<String, Value>, needles: &Needles, stand_in: impl Fn(&str, Hidden<'_>) -> String) {
    if let Some(annotations) = object
        .get_mut("metadata")
        .and_then(|meta| meta.get_mut("annotations"))
        .and_then(Value::as_object_mut)
    {
        for (name, value) in annotations.iter_mut() {
            if let Value::String(text) = value
                && needles.makes_a_value(name, text)
            {
                // An annotation of a Secret in clear may look like a fingerprint and be a value all the same.
                let hidden = if needles.fingerprinted {
                    Hidden::Text(text)
                } else {
                    Hidden::Bytes(text.as_bytes())
                };
                *value = Value::String(stand_in(name, hidden));
            }
        }
    }
    for part in ["data", "stringData"] {
        let Some(Value::Object(values)) = object.get_mut(part) else {
            // No server sends anything but a map here; what it is all the same is hidden whole.
            if let Some(value) = object.get_mut(part).filter(|value| !value.is_null()) {
                let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
                *value = Value::String(stand_in(part, Hidden::Text(&text)));
            }
            continue;
        };
        for (name, value) in values.iter_mut() {
            let text = match &*value {
                Value::Null => continue,
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let decoded = if part == "data" { decode(&text) } else { None };
            let hidden = decoded
                .as_ref()
                .map_or(Hidden::Text(&text), |bytes| Hidden::Bytes(bytes));
            *value = Value::String(stand_in(name, hidden));
        }
    }
}

fn decode(base64: &str) -> Option<Vec<u8>> {
    if is_fingerprint(base64) {
        return None;
    }
    serde_json::from_value::<ByteString>(Value::String(base64.to_owned()))
        .ok()
        .map(|bytes| bytes.0)
}

/// What gives a value away when an annotation contains it.
struct Needles {
    texts: Vec<String>,
    /// Annotations that are values whatever they contain.
    names: Vec<String>,
    /// No value is in clear: the Secret went through [`fingerprint_values`].
    fingerprinted: bool,
}

impl Needles {
    fn of(object: &Map<String, Value>) -> Self {
        let mut needles = Self {
            texts: Vec::new(),
            names: Vec::new(),
            fingerprinted: true,
        };
        for part in ["data", "stringData"] {
            for value in object
                .get(part)
                .and_then(Value::as_object)
                .into_iter()
                .flat_map(Map::values)
            {
                let Some(text) = value.as_str().filter(|text| !is_fingerprint(text)) else {
                    continue;
                };
                needles.fingerprinted = false;
                needles.add(text.trim_end_matches('='));
                let plain = if part == "data" {
                    decode(text).and_then(|bytes| String::from_utf8(bytes).ok())
                } else {
                    Some(text.to_owned())
                };
                if let Some(plain) = plain {
                    // A trailing newline of a file rarely travels along; quotes are escaped inside JSON.
                    needles.add(plain.trim());
                    let escaped = Value::from(plain.trim()).to_string();
                    needles.add(escaped.trim_matches('"'));
                }
            }
        }
        needles
    }

    fn add(&mut self, text: &str) {
        if !text.is_empty() && !self.texts.iter().any(|known| known == text) {
            self.texts.push(text.to_owned());
        }
    }

    fn hidden_annotations(&self, object: &Map<String, Value>) -> Vec<String> {
        let annotations = object
            .get("metadata")
            .and_then(|meta| meta.get("annotations"))
            .and_then(Value::as_object);
        let hidden = annotations.into_iter().flatten();
        let hidden = hidden.filter(|(name, value)| value.as_str().is_some_and(|text| self.makes_a_value(name, text)));
        hidden.map(|(name, _)| name.clone()).collect()
    }

    fn makes_a_value(&self, annotation: &str, text: &str) -> bool {
        annotation == LAST_APPLIED
            || self.names.iter().any(|name| name == annotation)
            || (self.fingerprinted && is_fingerprint(text))
            || self.texts.iter().any(|needle| text.contains(needle.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: FingerprintKey = FingerprintKey::new([7; 32]);

    fn fingerprinted(mut value: Value) -> Value {
        fingerprint_values(value.as_object_mut().unwrap(), &KEY);
        value
    }

    fn secret() -> Value {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db", "annotations": {
            LAST_APPLIED: "{\"stringData\":{\"password\":\"hunter2\"}}",
            "tool/copy": "the password is hunter2!", "tool/base64": "aHVudGVyMg", "tool/harmless": "team shop"}},
            "data": {"password": "aHVudGVyMg==", "twin": "aHVudGVyMg==", "empty": ""}})
    }

    #[test]
    fn no_value_is_left_in_a_fingerprinted_secret() {
        let hidden = fingerprinted(secret());
        let text = hidden.to_string();
        assert!(!text.contains("hunter2") && !text.contains("aHVudGVyMg"), "{text}");
        assert_eq!(hidden["metadata"]["annotations"]["tool/harmless"], "team shop");
        assert_ne!(
            hidden["data"]["password"], hidden["data"]["twin"],
            "equal values of two keys do not show"
        );
        assert!(is_fingerprint(hidden["data"]["empty"].as_str().unwrap()));
    }

    #[test]
    fn fingerprints_show_a_rotation_and_nothing_else() {
        let mut rotated = secret();
        rotated["data"]["password"] = json!("bmV3");
        let (before, after) = (fingerprinted(secret()), fingerprinted(rotated));
        assert_ne!(before["data"]["password"], after["data"]["password"]);
        assert_eq!(before["data"]["twin"], after["data"]["twin"]);
    }

    #[test]
    fn fingerprinting_twice_is_fingerprinting_once() {
        let once = fingerprinted(secret());
        assert_eq!(fingerprinted(once.clone()), once);
    }

    #[test]
    fn an_annotation_that_only_looks_like_a_fingerprint_is_hidden_too() {
        let lookalike = format!("{PREFIX}{}", "a".repeat(64));
        let mut value = secret();
        value["stringData"] = json!({"odd": lookalike});
        value["metadata"]["annotations"]["copy"] = json!(format!("{lookalike} hunter2"));
        assert!(!fingerprinted(value).to_string().contains("hunter2"));
    }

    #[test]
    fn the_key_is_not_shown() {
        assert_eq!(format!("{KEY:?}"), "FingerprintKey(..)");
    }
}
