//! What the guard must look like: the specs that this release was built with, for one installation.

use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::api::{
    crd,
    names::{self, GROUP},
};

/// Admission policies and bindings with placeholders, written by the generator from the chart's templates.
const POLICIES: &str = include_str!("policies.yaml");
/// Stands for the user name of the operator.
pub const OPERATOR: &str = "@operator@";
/// Stands for the list of the controllers that collect garbage and delete namespaces, as CEL writes it.
pub const CONTROLLERS: &str = "@systemControllers@";
/// Stands for the operator's namespace.
pub const NAMESPACE: &str = "@namespace@";
const CRD: &str = "CustomResourceDefinition";
/// The policy that only some installations have.
pub const CREDENTIAL_POLICY: &str = "credential.guard.backstep.dev";

/// Who is who in one installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Installation {
    /// The operator's namespace.
    pub namespace: String,
    /// Name of the operator's `ServiceAccount`.
    pub service_account: String,
    /// User names of the controllers that collect garbage and delete namespaces.
    pub system_controllers: Vec<String>,
    /// Whether decisions under plain impersonation must be refused.
    pub require_credential_id: bool,
}

impl Default for Installation {
    fn default() -> Self {
        Self {
            namespace: names::DEFAULT_NAMESPACE.into(),
            service_account: names::OPERATOR.into(),
            system_controllers: crate::api::names::SYSTEM_CONTROLLERS.map(String::from).to_vec(),
            require_credential_id: false,
        }
    }
}

impl Installation {
    /// User name of the operator.
    pub fn username(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.service_account)
    }
}

/// One object that must be as it is here.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its kind, for people and for the epoch.
    pub kind: String,
    /// Plural and API of its kind, e.g. `/apis/apiextensions.k8s.io/v1/customresourcedefinitions`.
    pub collection: String,
    /// Its name.
    pub name: String,
    /// Its spec.
    pub spec: Arc<Value>,
    /// Whether it is comfort: a server without its kind does without it.
    pub optional_kind: bool,
}

/// Why there is nothing to compare with.
#[derive(Clone, Debug, thiserror::Error)]
#[error("what this release was built with cannot be read ({0}); this is a mistake in the release")]
pub struct Unreadable(String);

/// What this release was built with, with placeholders; read once, for the guard is looked at in the middle of every rollback.
static BUILT_WITH: LazyLock<Result<Vec<Wanted>, Unreadable>> = LazyLock::new(built_with);

/// Every object of the guard.
///
/// # Errors
/// The compiled-in specs cannot be read.
pub fn wanted(installation: &Installation) -> Result<Vec<Wanted>, Unreadable> {
    let quoted: Vec<String> = installation
        .system_controllers
        .iter()
        .map(|name| format!("'{name}'"))
        .collect();
    let values = [
        (OPERATOR, installation.username()),
        (CONTROLLERS, quoted.join(", ")),
        (NAMESPACE, installation.namespace.clone()),
    ];
    let mut wanted = BUILT_WITH.clone()?;
    wanted.retain(|one| one.name != CREDENTIAL_POLICY || installation.require_credential_id);
    for one in wanted.iter_mut().filter(|one| one.kind != CRD) {
        fill(Arc::make_mut(&mut one.spec), &values);
    }
    Ok(wanted)
}

fn built_with() -> Result<Vec<Wanted>, Unreadable> {
    let mut policies: Vec<Value> = serde_saphyr::from_str(POLICIES).map_err(|error| Unreadable(error.to_string()))?;
    let mut wanted = Vec::new();
    for policy in &mut policies {
        let text = |at: &str| {
            policy
                .pointer(at)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        let plural = match kind.as_str() {
            "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => {
                format!("{}ies", kind.to_lowercase().trim_end_matches('y'))
            }
            _ => format!("{}s", kind.to_lowercase()),
        };
        wanted.push(Wanted {
            collection: format!("/apis/{}/{plural}", text("/apiVersion")),
            optional_kind: kind.starts_with("Mutating"),
            spec: Arc::new(policy["spec"].take()),
            kind,
            name,
        });
    }
    for mut crd in crd::all().map_err(|error| Unreadable(error.to_string()))? {
        wanted.push(Wanted {
            kind: CRD.into(),
            collection: "/apis/apiextensions.k8s.io/v1/customresourcedefinitions".into(),
            name: format!(
                "{}.{GROUP}",
                crd["spec"]["names"]["plural"].as_str().unwrap_or_default()
            ),
            spec: Arc::new(crd["spec"].take()),
            optional_kind: false,
        });
    }
    Ok(wanted)
}

fn fill(value: &mut Value, values: &[(&str, String)]) {
    match value {
        Value::String(text) => {
            for (placeholder, with) in values {
                if text.contains(placeholder) {
                    *text = text.replace(placeholder, with);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, values)),
        Value::Object(fields) => fields.values_mut().for_each(|field| fill(field, values)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Where `live` first differs from `wanted`, as a path; `None` where they say the same. Numbers are compared by value, and a
/// field that is absent equals an empty one: nothing that a server fills in by itself is a change.
pub fn difference(wanted: &Value, live: &Value) -> Option<String> {
    fn differs(path: &str, wanted: &Value, live: &Value) -> Option<String> {
        match (wanted, live) {
            (Value::Object(a), Value::Object(b)) => fields_differ(path, a, b),
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
                .iter()
                .zip(b)
                .enumerate()
                .find_map(|(at, (a, b))| differs(&format!("{path}[{at}]"), a, b)),
            (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
            (a, b) if a == b => None,
            _ => Some(path.to_owned()),
        }
    }
    fn fields_differ(path: &str, wanted: &Map<String, Value>, live: &Map<String, Value>) -> Option<String> {
        let names: std::collections::BTreeSet<&String> = wanted.keys().chain(live.keys()).collect();
        names.into_iter().find_map(|name| {
            let at = format!("{path}.{name}");
            match (wanted.get(name), live.get(name)) {
                (Some(a), Some(b)) => differs(&at, a, b),
                (Some(only), None) | (None, Some(only)) => (!says_nothing(only)).then_some(at),
                (None, None) => None,
            }
        })
    }
    fn says_nothing(value: &Value) -> bool {
        *value == Value::Null || *value == json!("")
    }
    differs("spec", wanted, live)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_has_a_binding_and_no_placeholder_is_left() {
        let installation = Installation {
            namespace: "elsewhere".into(),
            service_account: "other".into(),
            require_credential_id: true,
            ..Installation::default()
        };
        let all = wanted(&installation).unwrap();
        let named =
            |kind: &str| -> Vec<&str> { all.iter().filter(|w| w.kind == kind).map(|w| w.name.as_str()).collect() };
        for kind in ["ValidatingAdmissionPolicy", "MutatingAdmissionPolicy"] {
            assert_eq!(named(kind), named(&format!("{kind}Binding")));
            assert!(named(kind).len() >= 3, "{:?}", named(kind));
        }
        assert_eq!(named("CustomResourceDefinition").len(), 6);
        for one in &all {
            let text = one.spec.to_string();
            for placeholder in [OPERATOR, CONTROLLERS, NAMESPACE, "{{"] {
                assert!(!text.contains(placeholder), "{}: {placeholder}", one.name);
            }
            assert!(
                !text.contains("backstep-system"),
                "{} names another namespace",
                one.name
            );
            assert!(!one.collection.ends_with("policys"), "{}", one.collection);
        }
        let decisions = all
            .iter()
            .find(|w| w.name == "approvaldecisions.guard.backstep.dev")
            .unwrap();
        assert!(
            decisions
                .spec
                .to_string()
                .contains("system:serviceaccount:elsewhere:other")
        );
        assert!(
            wanted(&Installation::default())
                .unwrap()
                .iter()
                .all(|w| w.name != CREDENTIAL_POLICY)
        );
    }

    #[test]
    fn a_difference_is_named_by_its_path_and_what_says_nothing_is_none() {
        let wanted = json!({"failurePolicy": "Fail", "rules": [{"operations": ["CREATE"]}], "minimum": 1});
        let same =
            json!({"failurePolicy": "Fail", "rules": [{"operations": ["CREATE"]}], "minimum": 1.0, "extra": null});
        assert_eq!(difference(&wanted, &same), None);
        for (change, path) in [
            (json!({"failurePolicy": "Ignore"}), "spec.failurePolicy"),
            (
                json!({"rules": [{"operations": ["UPDATE"]}]}),
                "spec.rules[0].operations[0]",
            ),
            (json!({"rules": []}), "spec.rules"),
            (
                json!({"matchConditions": [{"expression": "false"}]}),
                "spec.matchConditions",
            ),
        ] {
            let mut live = wanted.clone();
            for (field, value) in change.as_object().unwrap() {
                live[field] = value.clone();
            }
            assert_eq!(difference(&wanted, &live).as_deref(), Some(path));
        }
        let mut less = wanted.clone();
        less.as_object_mut().unwrap().remove("failurePolicy");
        assert_eq!(difference(&wanted, &less).as_deref(), Some("spec.failurePolicy"));
    }
}
