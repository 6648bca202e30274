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

/// Removes `nullable` (an absent field and a null one would be two states), and turns "one of these fields" into a rule that
/// says so, as the server's own message for `oneOf` names neither the fields nor what to do.
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
            for value in fields.values_mut() {
                tidy(value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
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
    let fields: Vec<String> = spec["properties"].as_object().map(|p| p.keys().cloned().collect()).unwrap_or_default();
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
