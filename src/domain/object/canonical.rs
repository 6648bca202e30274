//! Canonical JSON: one byte sequence for one state, whatever the order a server or a parser gave.

use serde_json::{Map, Number, Value};

use super::digest::Digest;

/// Largest integer that every `f64` below it represents exactly (2^53).
const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;

/// The canonical bytes of `value`: object keys in byte order, no white space, shortest numbers (`1.0` is `1`, as the API
/// server stores it), only the escapes that JSON demands. Lists keep their order; [`super::shape`] sorts those without one.
pub fn to_bytes(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write(value, &mut out);
    out
}

/// Digest of the canonical bytes of `value`.
pub fn digest(value: &Value) -> Digest {
    Digest::of(&to_bytes(value))
}

/// Appends the canonical bytes of `value` to `out`.
pub fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => write_number(number, out),
        Value::String(text) => write_text(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(item, out);
            }
            out.push(b']');
        }
        Value::Object(map) => write_map(map, out),
    }
}

fn write_map(map: &Map<String, Value>, out: &mut Vec<u8>) {
    // Another crate of the build may switch serde_json's `preserve_order` on, so the map's own order is only a hint.
    if map.keys().is_sorted() {
        write_entries(map.iter(), out);
    } else {
        let mut entries: Vec<_> = map.iter().collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        write_entries(entries.into_iter(), out);
    }
}

fn write_entries<'a>(entries: impl Iterator<Item = (&'a String, &'a Value)>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (index, (key, value)) in entries.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(key, out);
        out.push(b':');
        write(value, out);
    }
    out.push(b'}');
}

fn write_number(number: &Number, out: &mut Vec<u8>) {
    let integral = number
        .as_f64()
        .filter(|_| number.is_f64())
        .filter(|float| float.fract() == 0.0 && float.abs() < EXACT_INTEGERS);
    match integral {
        // In range and without a fraction: the conversion is exact.
        #[allow(clippy::cast_possible_truncation)]
        Some(float) => out.extend_from_slice((float as i64).to_string().as_bytes()),
        None => out.extend_from_slice(number.to_string().as_bytes()),
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut done = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[done..index]);
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            control => out.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
        }
        done = index + 1;
    }
    out.extend_from_slice(&bytes[done..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::domain::object::testing::any_json;

    #[test]
    fn keys_are_sorted_and_nothing_is_padded() {
        let value = json!({"b": [1, {"z": null, "a": true}], "a": "x"});
        assert_eq!(to_bytes(&value), br#"{"a":"x","b":[1,{"a":true,"z":null}]}"#);
    }

    #[test]
    fn integral_floats_are_written_as_the_server_stores_them() {
        assert_eq!(
            to_bytes(&json!([1.0, -0.0, 2.5, 1e300, u64::MAX])),
            b"[1,0,2.5,1e+300,18446744073709551615]"
        );
    }

    #[test]
    fn control_characters_and_quotes_are_escaped() {
        assert_eq!(
            to_bytes(&json!("a\"b\\c\n\u{1}é")),
            "\"a\\\"b\\\\c\\n\\u0001é\"".as_bytes()
        );
    }

    proptest! {
        #[test]
        fn canonical_bytes_are_json_of_the_same_value(value in any_json()) {
            let read: Value = serde_json::from_slice(&to_bytes(&value)).unwrap();
            prop_assert_eq!(to_bytes(&read), to_bytes(&value));
            prop_assert_eq!(read, value);
        }
    }
}
