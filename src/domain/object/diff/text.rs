//! JSON as YAML lines, for people to read in a diff.

use serde_json::{Map, Value};

use super::super::canonical;

/// Block-style YAML: keys in canonical order, two spaces a level, texts of several lines as blocks.
pub(super) fn yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => write_map(map, 0, "", &mut out),
        Value::Array(items) if !items.is_empty() => write_list(items, 0, &mut out),
        scalar => {
            out.push_str(&inline(scalar));
            out.push('\n');
        }
    }
    out
}

/// `first` stands before the first key, in place of its indentation: the dash of a list.
fn write_map(map: &Map<String, Value>, level: usize, first: &str, out: &mut String) {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    for (index, (key, value)) in entries.into_iter().enumerate() {
        if index == 0 && !first.is_empty() {
            out.push_str(first);
        } else {
            indent(level, out);
        }
        out.push_str(&scalar(key));
        out.push(':');
        write_after_key(value, level, out);
    }
}

fn write_after_key(value: &Value, level: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            write_map(map, level + 1, "", out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            write_list(items, level, out);
        }
        Value::String(text) if is_block(text) => {
            // The last line break of the text decides which of the two block marks keeps it exact.
            out.push_str(if text.ends_with('\n') { " |\n" } else { " |-\n" });
            for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
                if !line.is_empty() {
                    indent(level + 1, out);
                    out.push_str(line);
                }
                out.push('\n');
            }
        }
        other => {
            out.push(' ');
            out.push_str(&inline(other));
            out.push('\n');
        }
    }
}

fn write_list(items: &[Value], level: usize, out: &mut String) {
    for item in items {
        let mut dash = "  ".repeat(level);
        dash.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => write_map(map, level + 1, &dash, out),
            other => {
                out.push_str(&dash);
                out.push_str(&inline(other));
                out.push('\n');
            }
        }
    }
}

fn indent(level: usize, out: &mut String) {
    for _ in 0..level {
        out.push_str("  ");
    }
}

/// Scalars, empty maps and lists, and lists in lists, on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        other => String::from_utf8_lossy(&canonical::to_bytes(other)).into_owned(),
    }
}

/// Plain where YAML reads it back as the same text, quoted otherwise.
fn scalar(text: &str) -> String {
    let plain_start = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'/' | b'.' | b'_'));
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_./:@+=,$() ".contains(&byte));
    let misread = text.contains(": ")
        || text.ends_with([':', ' '])
        || matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "yes" | "no" | "on" | "off" | "null" | "y" | "n"
        )
        || text.starts_with('.') && text.parse::<f64>().is_ok()
        || matches!(text.to_ascii_lowercase().as_str(), ".inf" | ".nan");
    if plain_start && plain && !misread {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

/// Whether `text` reads better and stays exact as a block.
fn is_block(text: &str) -> bool {
    let body = text.strip_suffix('\n').unwrap_or(text);
    body.contains('\n')
        && !body.ends_with('\n')
        && !body.starts_with([' ', '\n', '\t'])
        && !body
            .chars()
            .any(|letter| letter.is_control() && !matches!(letter, '\n' | '\t'))
}
