//! YAML that every reader takes for the same value.

use serde::Serialize;

use super::{Error, Result};

/// No folded lines, and quotes wherever YAML 1.1 would see another type (`yes`, `0x1f`, `12:30`); ends with a newline.
pub fn to_string(value: &impl Serialize) -> Result<String> {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    let mut text = String::new();
    serde_saphyr::to_fmt_writer_with_options(&mut text, value, options)
        .map_err(|e| Error::internal(format!("a result cannot be written as YAML: {e}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn words_that_yaml_takes_for_something_else_are_quoted() {
        let value =
            json!({"a": "yes", "b": "null", "c": "1e3", "d": "", "e": "0x1f", "f": "12:30", "g": "~", "h": "a\nb\n"});
        let text = to_string(&value).unwrap();
        assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), value, "{text}");
        assert!(!text.contains("a: yes"), "{text}");
    }

    proptest! {
        #[test]
        fn yaml_reads_back_as_what_was_written(key in "[a-z.]{1,20}", text in "(?s)[ -~\n\té]{0,200}", number in any::<i64>()) {
            let value = json!({key: {"text": text, "number": number, "list": [text, {}, []]}});
            let written = to_string(&value).unwrap();
            prop_assert_eq!(serde_saphyr::from_str::<Value>(&written).unwrap(), value, "{}", written);
        }
    }
}
