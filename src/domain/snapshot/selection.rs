//! What a snapshot takes in: `spec.capture`, compiled once.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use super::{
    References,
    verdict::{self, KindRule, ObjectVerdict},
};
use crate::{
    api::{
        reasons,
        reference::ObjectFilter,
        snapshot::{Capture, Component, SecretsMode},
    },
    domain::{component, object::KindInfo},
};

/// Why `spec.capture` cannot work.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SelectionError {
    /// An operator that label selectors do not have.
    #[error("spec.capture.selector: `{0}` is not an operator; use In, NotIn, Exists or DoesNotExist")]
    Operator(String),
    /// `In` and `NotIn` need values.
    #[error("spec.capture.selector: {0} on `{1}` needs at least one value")]
    NoValues(String, String),
}

/// A compiled `spec.capture`.
#[derive(Clone, Debug)]
pub struct Selection {
    components: Vec<Component>,
    selector: Option<Selector>,
    include: Vec<ObjectFilter>,
    exclude: Vec<ObjectFilter>,
    follow_references: bool,
    secrets: SecretsMode,
}

#[derive(Clone, Debug, Default)]
struct Selector {
    labels: BTreeMap<String, String>,
    expressions: Vec<(String, Operator)>,
}

#[derive(Clone, Debug)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl Selection {
    /// Compiles `capture`; defaults as in its documentation.
    ///
    /// # Errors
    /// The label selector cannot work.
    pub fn compile(capture: &Capture) -> Result<Self, SelectionError> {
        Ok(Self {
            components: capture
                .components
                .clone()
                .unwrap_or_else(|| component::DEFAULT.to_vec()),
            selector: capture.selector.as_ref().map(Selector::compile).transpose()?,
            include: capture.include.clone(),
            exclude: capture.exclude.clone(),
            follow_references: capture.follow_references.unwrap_or(true),
            secrets: capture.secrets.unwrap_or_default(),
        })
    }

    /// What happens to Secret values.
    pub fn secrets(&self) -> SecretsMode {
        self.secrets
    }

    /// Whether the digests of images are wanted.
    pub fn wants_images(&self) -> bool {
        self.components.contains(&Component::Images)
    }

    /// Whether objects are picked by label or name, so that matching none is a mistake.
    pub fn is_filtered(&self) -> bool {
        self.selector.is_some() || !self.include.is_empty()
    }

    /// Whether what is named by captured objects can only be known after those were read.
    pub fn follows_through_filter(&self) -> bool {
        self.follow_references && self.is_filtered()
    }

    /// Whether a group that does not answer (`group/version`) could hold something of this selection.
    pub fn wants_group(&self, group_version: &str) -> bool {
        let group = group_version.split('/').next().unwrap_or_default();
        let excluded = self
            .exclude
            .iter()
            .any(|f| f.group.as_deref() == Some(group) && f.kinds.is_empty() && f.names.is_empty());
        let included = self.include.is_empty()
            || self
                .include
                .iter()
                .any(|f| f.group.as_deref().is_none_or(|g| g == group));
        verdict::group_may_matter(group) && included && !excluded
    }

    /// Kinds that `include` names and that are not among `served` (group and kind).
    pub fn unknown_kinds<'a>(&self, served: &(impl Iterator<Item = (&'a str, &'a str)> + Clone)) -> Vec<String> {
        self.include
            .iter()
            .flat_map(|filter| filter.kinds.iter().map(move |kind| (filter.group.as_deref(), kind)))
            .filter(|(group, kind)| {
                !served
                    .clone()
                    .any(|(g, k)| k == kind.as_str() && group.is_none_or(|group| group == g))
            })
            .map(|(group, kind)| match group {
                Some("") | None => kind.clone(),
                Some(group) => format!("{kind}.{group}"),
            })
            .collect()
    }

    /// Whether objects of the kind have to be read.
    pub fn reads(&self, rule: &KindRule) -> bool {
        if self.wants_images() && (rule.image_evidence || component::runs_images(&rule.group, &rule.kind)) {
            return true;
        }
        let of_kind = |filter: &ObjectFilter| filter_kind(filter, &rule.group, &rule.kind);
        let excluded = self
            .exclude
            .iter()
            .any(|filter| of_kind(filter) && filter.names.is_empty());
        let secrets_excluded = self.secrets == SecretsMode::Exclude && rule.group.is_empty() && rule.kind == "Secret";
        let referable = self.follow_references
            && rule.group.is_empty()
            && matches!(
                rule.kind.as_str(),
                "ConfigMap" | "Secret" | "PersistentVolumeClaim" | "ServiceAccount"
            );
        let included = self.include.is_empty() || self.include.iter().any(of_kind) || referable;
        self.has_component(component::of(&rule.group, &rule.kind)) && included && !excluded && !secrets_excluded
    }

    /// Whether `object` belongs: (`selector` matches and (`include` is empty or matches)) or a captured object refers to it, and
    /// `exclude` does not match, and its component is wanted.
    pub fn verdict(&self, info: &KindInfo, of: Component, object: &Value, references: &References) -> ObjectVerdict {
        if let Some(reason) = verdict::never(info, object) {
            return ObjectVerdict::Skip(reason);
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let matches = |filter: &ObjectFilter| filter_object(filter, &info.group, &info.kind, name);
        let picked = self
            .selector
            .as_ref()
            .is_none_or(|selector| selector.matches(&object["metadata"]["labels"]))
            && (self.include.is_empty() || self.include.iter().any(matches));
        let referred = self.follow_references && references.contains(&info.group, &info.kind, name);
        if !picked && !referred {
            return ObjectVerdict::NotSelected;
        }
        if self.exclude.iter().any(matches) || (self.secrets == SecretsMode::Exclude && info.is_secret()) {
            return ObjectVerdict::Skip(reasons::EXCLUDED);
        }
        if self.has_component(of) {
            ObjectVerdict::Capture
        } else if self.wants_images() && verdict::runs_images(info) {
            ObjectVerdict::ImagesOnly
        } else {
            ObjectVerdict::NotSelected
        }
    }

    fn has_component(&self, component: Component) -> bool {
        self.components.contains(&component)
    }
}

fn filter_kind(filter: &ObjectFilter, group: &str, kind: &str) -> bool {
    filter.group.as_deref().is_none_or(|g| g == group)
        && (filter.kinds.is_empty() || filter.kinds.iter().any(|k| k == kind))
}

fn filter_object(filter: &ObjectFilter, group: &str, kind: &str, name: &str) -> bool {
    filter_kind(filter, group, kind)
        && (filter.names.is_empty() || filter.names.iter().any(|glob| matches_glob(glob, name)))
}

/// `*` is any run of characters, `?` is one. At most `glob.len() × name.len()` steps.
pub(in crate::domain) fn matches_glob(glob: &str, name: &str) -> bool {
    let (glob, name) = (glob.as_bytes(), name.as_bytes());
    let (mut g, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, n));
                g += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                g += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    g = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|c| *c == b'*')
}

impl Selector {
    fn compile(selector: &LabelSelector) -> Result<Self, SelectionError> {
        let mut expressions = Vec::new();
        for requirement in selector.match_expressions.iter().flatten() {
            let values = requirement.values.clone().unwrap_or_default();
            let operator = match requirement.operator.as_str() {
                "In" | "NotIn" if values.is_empty() => {
                    return Err(SelectionError::NoValues(
                        requirement.operator.clone(),
                        requirement.key.clone(),
                    ));
                }
                "In" => Operator::In(values),
                "NotIn" => Operator::NotIn(values),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(SelectionError::Operator(other.to_owned())),
            };
            expressions.push((requirement.key.clone(), operator));
        }
        Ok(Self {
            labels: selector.match_labels.clone().unwrap_or_default(),
            expressions,
        })
    }

    fn matches(&self, labels: &Value) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels[key.as_str()] == value.as_str())
            && self.expressions.iter().all(|(key, operator)| {
                let label = labels[key.as_str()].as_str();
                match operator {
                    Operator::In(values) => label.is_some_and(|l| values.iter().any(|v| v == l)),
                    Operator::NotIn(values) => label.is_none_or(|l| values.iter().all(|v| v != l)),
                    Operator::Exists => label.is_some(),
                    Operator::DoesNotExist => label.is_none(),
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn compile(capture: Value) -> Selection {
        Selection::compile(&serde_json::from_value(capture).unwrap()).unwrap()
    }

    fn look(selection: &Selection, group: &str, kind: &str, object: &Value, references: &References) -> ObjectVerdict {
        selection.verdict(
            &KindInfo::new(group, "v1", kind),
            component::of(group, kind),
            object,
            references,
        )
    }

    #[test]
    fn an_object_is_captured_when_picked_or_referred_to_and_not_excluded() {
        let selection = compile(json!({
            "selector": {"matchLabels": {"app": "web"}},
            "exclude": [{"kinds": ["Secret"], "names": ["*-tls"]}]
        }));
        let none = References::default();
        let web = json!({"metadata": {"name": "web", "labels": {"app": "web"}}});
        assert_eq!(
            look(&selection, "apps", "Deployment", &web, &none),
            ObjectVerdict::Capture
        );
        let other = json!({"metadata": {"name": "conf"}});
        assert_eq!(
            look(&selection, "", "ConfigMap", &other, &none),
            ObjectVerdict::NotSelected
        );
        let mut references = References::default();
        references.collect(
            &KindInfo::new("", "v1", "Pod"),
            &json!({"spec": {"volumes": [{"configMap": {"name": "conf"}}, {"secret": {"secretName": "web-tls"}}]}}),
        );
        assert_eq!(
            look(&selection, "", "ConfigMap", &other, &references),
            ObjectVerdict::Capture
        );
        let tls = json!({"metadata": {"name": "web-tls"}});
        assert_eq!(
            look(&selection, "", "Secret", &tls, &references),
            ObjectVerdict::Skip(reasons::EXCLUDED)
        );
    }

    #[test]
    fn the_core_group_is_empty_and_an_absent_group_is_any() {
        let core = compile(json!({"include": [{"group": "", "kinds": ["Service"]}]}));
        let any = compile(json!({"include": [{"kinds": ["Service"]}]}));
        let service = json!({"metadata": {"name": "web"}});
        let none = References::default();
        assert_eq!(look(&core, "", "Service", &service, &none), ObjectVerdict::Capture);
        assert_eq!(
            look(&core, "serving.knative.dev", "Service", &service, &none),
            ObjectVerdict::NotSelected
        );
        assert_eq!(
            look(&any, "serving.knative.dev", "Service", &service, &none),
            ObjectVerdict::Capture
        );
    }

    #[test]
    fn images_alone_read_workloads_but_do_not_capture_them() {
        let selection = compile(json!({"components": ["Images"]}));
        let web = json!({"metadata": {"name": "web"}});
        assert_eq!(
            look(&selection, "apps", "Deployment", &web, &References::default()),
            ObjectVerdict::ImagesOnly
        );
        assert_eq!(
            look(&selection, "", "ConfigMap", &web, &References::default()),
            ObjectVerdict::NotSelected
        );
    }

    #[test]
    fn unknown_kinds_of_include_are_named() {
        let selection = compile(
            json!({"include": [{"kinds": ["Deploymnt", "Service"]}, {"group": "x.dev", "kinds": ["Service"]}]}),
        );
        let served = [("", "Service"), ("apps", "Deployment")];
        assert_eq!(
            selection.unknown_kinds(&served.iter().copied()),
            ["Deploymnt", "Service.x.dev"]
        );
    }

    #[test]
    fn expressions_follow_the_label_selector_rules() {
        let selection = compile(json!({"selector": {"matchExpressions": [
            {"key": "tier", "operator": "NotIn", "values": ["cache"]}, {"key": "app", "operator": "Exists"}
        ]}}));
        let none = References::default();
        let with = |labels: Value| {
            look(
                &selection,
                "",
                "ConfigMap",
                &json!({"metadata": {"name": "c", "labels": labels}}),
                &none,
            )
        };
        assert_eq!(with(json!({"app": "a"})), ObjectVerdict::Capture);
        assert_eq!(with(json!({"app": "a", "tier": "cache"})), ObjectVerdict::NotSelected);
        assert_eq!(with(json!({})), ObjectVerdict::NotSelected);
        let broken =
            serde_json::from_value(json!({"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}))
                .unwrap();
        assert!(matches!(Selection::compile(&broken), Err(SelectionError::NoValues(..))));
    }

    fn filters() -> impl Strategy<Value = Value> {
        let filter = (prop::sample::select(vec!["ConfigMap", "Secret"]), "[ab*?]{1,3}");
        let filters = prop::collection::vec(filter, 0..3);
        filters.prop_map(|list| {
            list.into_iter()
                .map(|(kind, name)| json!({"kinds": [kind], "names": [name]}))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_reference_only_adds_and_exclude_only_takes_away(
            include in filters(), exclude in filters(), label in prop::option::of("[xy]"), name in "[ab]{1,3}", secret: bool,
        ) {
            let kind = if secret { "Secret" } else { "ConfigMap" };
            let selector = label.map(|label| json!({"matchLabels": {"app": label}}));
            let object = json!({"metadata": {"name": name, "labels": {"app": "x"}}});
            let mut named = References::default();
            named.collect(&KindInfo::new("", "v1", "Pod"), &json!({"spec": {"volumes": [
                {"configMap": {"name": name}}, {"secret": {"secretName": name}}]}}));
            let none = References::default();
            let captured = |exclude: &Value, references: &References| {
                let selection = compile(json!({"selector": selector, "include": include, "exclude": exclude}));
                look(&selection, "", kind, &object, references) == ObjectVerdict::Capture
            };
            prop_assert!(captured(&exclude, &named) || !captured(&exclude, &none));
            prop_assert!(captured(&json!([]), &none) || !captured(&exclude, &none));
            prop_assert!(captured(&json!([]), &named));
        }

        #[test]
        fn a_glob_without_wildcards_matches_only_itself(name in "[a-z0-9.-]{0,20}", other in "[a-z0-9.-]{0,20}") {
            prop_assert!(matches_glob(&name, &name));
            prop_assert_eq!(matches_glob(&name, &other), name == other);
        }

        #[test]
        fn a_star_matches_any_run(head in "[a-z]{0,8}", middle in "[a-z-]{0,12}", tail in "[a-z]{0,8}") {
            let (glob, name) = (format!("{head}*{tail}"), format!("{head}{middle}{tail}"));
            prop_assert!(matches_glob(&glob, &name));
            let marks = "?".repeat(name.len());
            prop_assert!(matches_glob(&marks, &name));
        }
    }
}
