//! The CRDs as they are installed: what kube derives, and what no attribute can say.

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use super::{ApprovalDecision, ApprovalPolicy, ApprovalRequest, RollbackPlan, RollbackRequest, Snapshot};

/// Fields of a `RollbackRequest` that may change after creation.
pub const REQUEST_MUTABLE: [&str; 2] = ["suspend", "cancel"];

/// Every CRD, by the order in which people meet the kinds.
///
/// # Errors
/// A derived schema is no JSON, which is a mistake in a kind's definition.
pub fn all() -> Result<Vec<Value>, serde_json::Error> {
    let mut crds = Vec::new();
    for derived in [
        Snapshot::crd(),
        RollbackRequest::crd(),
        RollbackPlan::crd(),
        ApprovalRequest::crd(),
        ApprovalDecision::crd(),
        ApprovalPolicy::crd(),
    ] {
        let mut crd = serde_json::to_value(derived)?;
        complete(&mut crd);
        crds.push(crd);
    }
    Ok(crds)
}

/// The schema of the one version of a CRD.
pub fn schema(crd: &Value) -> &Value {
    &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

fn complete(crd: &mut Value) {
    // The default, written out: the operator compares this spec with the live one.
    crd["spec"]["conversion"] = json!({"strategy": "None"});
    let names = &mut crd["spec"]["names"];
    let kind = names["kind"].as_str().unwrap_or_default().to_owned();
    names["listKind"] = json!(format!("{kind}List"));
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    tidy(schema);
    if let Some(root) = schema.as_object_mut() {
        root.remove("title");
        for (field, of) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
            let at = root.entry("properties").or_insert_with(|| json!({}));
            if at[field].is_null() {
                at[field] = json!({"type": of});
            }
        }
    }
    if kind == "RollbackRequest" {
        freeze_all_but(&mut schema["properties"]["spec"], &REQUEST_MUTABLE);
    }
}

/// Removes `nullable` (an absent field and a null one would be two states), writes whole bounds as integers, and turns "one
/// of these fields" into a rule, as the server's own message for `oneOf` names neither the fields nor what to do.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("nullable") == Some(&json!(true)) {
                fields.remove("nullable");
            }
            if let Some(choices) = exclusive_fields(fields) {
                fields.remove("oneOf");
                let rules = fields.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
                if let Value::Array(rules) = rules {
                    rules.push(exactly_one(&choices));
                }
            }
            for bound in ["minimum", "maximum"] {
                if let Some(whole) = fields.get(bound).and_then(Value::as_f64).and_then(whole) {
                    fields.insert(bound.to_owned(), json!(whole));
                }
            }
            for value in fields.values_mut() {
                tidy(value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn whole(number: f64) -> Option<i64> {
    #[allow(clippy::cast_possible_truncation)]
    (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
}

fn exclusive_fields(fields: &Map<String, Value>) -> Option<Vec<String>> {
    let choices = fields.get("oneOf")?.as_array()?;
    choices
        .iter()
        .map(|choice| match choice["required"].as_array().map(Vec::as_slice) {
            Some([Value::String(field)]) => Some(field.clone()),
            _ => None,
        })
        .collect()
}

fn exactly_one(fields: &[String]) -> Value {
    let present: Vec<String> = fields.iter().map(|f| format!("has(self.{f})")).collect();
    json!({
        "rule": format!("[{}].filter(x, x).size() == 1", present.join(", ")),
        "message": format!("exactly one of {} is needed", fields.join(", ")),
    })
}

/// Adds the rule that names every field of `spec` but `free`. CEL cannot walk the fields of an object that has a schema.
fn freeze_all_but(spec: &mut Value, free: &[&str]) {
    let fields: Vec<String> = spec["properties"]
        .as_object()
        .map(|p| p.keys().cloned().collect())
        .unwrap_or_default();
    let same: Vec<String> = fields
        .iter()
        .filter(|f| !free.contains(&f.as_str()))
        .map(|f| format!("has(self.{f}) == has(oldSelf.{f}) && (!has(self.{f}) || self.{f} == oldSelf.{f})"))
        .collect();
    let rule = json!({
        "rule": same.join(" && "),
        "message": format!("spec is immutable but for {}; create a new RollbackRequest instead", free.join(" and ")),
    });
    if let Some(spec) = spec.as_object_mut() {
        let rules = spec.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
        if let Value::Array(rules) = rules {
            rules.insert(0, rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd(kind: &str) -> Value {
        let all = all().unwrap();
        all.into_iter().find(|c| c["spec"]["names"]["kind"] == kind).unwrap()
    }

    /// Every schema below `schema`, with its path.
    fn walk<'a>(path: &str, schema: &'a Value, seen: &mut Vec<(String, &'a Value)>) {
        seen.push((path.to_owned(), schema));
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), property, seen);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                walk(&format!("{path}[]"), &schema[inner], seen);
            }
        }
    }

    #[test]
    fn every_text_list_and_map_is_bounded_and_every_integer_has_a_width() {
        for crd in all().unwrap() {
            let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
            let mut seen = Vec::new();
            for part in ["spec", "status"] {
                walk(&format!("{kind}.{part}"), &schema(&crd)["properties"][part], &mut seen);
            }
            for (path, schema) in seen {
                let has = |key: &str| !schema[key].is_null();
                match schema["type"].as_str() {
                    Some("string") => assert!(
                        has("maxLength") || has("enum") || schema["format"] == "date-time",
                        "{path} has no longest length"
                    ),
                    Some("array") => assert!(has("maxItems"), "{path} has no most items"),
                    Some("integer") => assert!(
                        schema["format"] == "int32" || schema["format"] == "int64",
                        "{path} is neither int32 nor int64"
                    ),
                    Some("object") if has("additionalProperties") => {
                        assert!(has("maxProperties"), "{path} has no most entries");
                    }
                    Some("object" | "boolean") => {}
                    None if has("properties") || schema.is_null() => {}
                    other => panic!("{path} has the type {other:?}"),
                }
                assert!(!has("nullable"), "{path} may be null");
                assert!(!has("oneOf") && !has("anyOf"), "{path} is a choice without a message");
            }
        }
    }

    #[test]
    fn every_field_that_people_write_is_described() {
        for crd in all().unwrap() {
            let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
            let mut seen = Vec::new();
            walk(kind, &schema(&crd)["properties"]["spec"], &mut seen);
            for (path, schema) in seen {
                assert!(
                    path.ends_with("[]") || schema["description"].is_string(),
                    "{path} has no description"
                );
            }
        }
    }

    #[test]
    fn every_rule_has_its_own_message_of_one_line() {
        for crd in all().unwrap() {
            let mut seen = Vec::new();
            walk("", schema(&crd), &mut seen);
            for (path, schema) in seen {
                for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                    let message = rule["message"].as_str().unwrap_or_default();
                    assert!(!message.is_empty() && !message.contains('\n'), "{path}: {rule}");
                }
            }
        }
    }

    #[test]
    fn the_rule_of_a_rollback_request_names_every_field_but_suspend_and_cancel() {
        let crd = crd("RollbackRequest");
        let spec = &schema(&crd)["properties"]["spec"];
        let rule = spec["x-kubernetes-validations"][0]["rule"].as_str().unwrap();
        for field in spec["properties"].as_object().unwrap().keys() {
            let named = rule.contains(&format!("has(self.{field}) == has(oldSelf.{field})"));
            assert_eq!(named, !REQUEST_MUTABLE.contains(&field.as_str()), "{field}");
        }
    }

    #[test]
    fn names_and_categories_are_those_that_people_type() {
        let short: Vec<_> = all()
            .unwrap()
            .iter()
            .map(|crd| {
                assert_eq!(crd["spec"]["names"]["categories"], json!(["backstep"]));
                assert_eq!(crd["spec"]["group"], "backstep.dev");
                crd["spec"]["names"]["shortNames"][0].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(short, ["bsnap", "rbr", "bplan", "apr", "apd", "apol"]);
    }
}
