//! Making a Snapshot.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::Namespace,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta},
};
use kube::{Api, Resource, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};

use super::{Class, Error, Result, Session};
use crate::api::{Snapshot, SnapshotSpec, names, reference::ObjectFilter};

/// What to make.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Name; absent lets the API server make one from the lineage.
    pub name: Option<String>,
    /// The spec; `requested_by` is filled in by [`create`].
    pub spec: SnapshotSpec,
    /// Keep it for ever.
    pub pin: bool,
}

impl Request {
    /// The object as it would be sent, without `requestedBy`.
    pub fn object(&self, namespace: &str) -> Snapshot {
        let mut metadata = ObjectMeta {
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        };
        match &self.name {
            Some(name) => metadata.name = Some(name.clone()),
            None => {
                metadata.generate_name = Some(format!("{}-", self.spec.lineage.as_deref().unwrap_or("snapshot")));
            }
        }
        if self.pin {
            metadata.labels = Some([(names::PINNED_LABEL.to_owned(), "true".to_owned())].into());
        }
        Snapshot {
            metadata,
            spec: self.spec.clone(),
            status: None,
        }
    }
}

/// Creates the Snapshot; with `dry_run` the API server checks it and keeps nothing.
///
/// `requestedBy` is written here whether or not the cluster would stamp it: the admission policies check it on every server, and
/// one request tells who we are, just as one would tell whether the server stamps.
pub async fn create(session: &Session, request: &Request, dry_run: bool) -> Result<Snapshot> {
    let namespace = &session.namespace;
    if *namespace == session.operator_namespace {
        return Err(
            Error::new(Class::Refused, format!("namespace {namespace} is not captured"))
                .because("it is the operator's own")
                .fix("name the namespace of your application with -n"),
        );
    }
    let mut object = request.object(namespace);
    if object.spec.requested_by.is_none() {
        object.spec.requested_by = Some(session.identity().await?);
    }
    let what = format!(
        "create snapshot {}in {namespace}",
        request.name.as_ref().map(|n| format!("{n} ")).unwrap_or_default()
    );
    post(session, &what, &object, dry_run).await
}

/// Creates `object` in the session's namespace, once; says so when it is the namespace that does not exist.
pub(super) async fn post<K>(session: &Session, what: &str, object: &K, dry_run: bool) -> Result<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let namespace = &session.namespace;
    let api: Api<K> = session.api_in(namespace);
    let params = PostParams {
        dry_run,
        field_manager: Some("kubectl-backstep".into()),
    };
    match session.once(what, || api.create(&params, object)).await {
        Err(error) if error.class == Class::NotFound => {
            // The server names the namespace, not the object, in this answer.
            let namespaces: Api<Namespace> = Api::all(session.client.clone());
            match session
                .repeat("read the namespace", || namespaces.get_opt(namespace))
                .await
            {
                Ok(None) => Err(Error::not_found(format!("namespace {namespace} does not exist"))
                    .fix("name an existing namespace with -n, or create it first")),
                _ => Err(error),
            }
        }
        other => other,
    }
}

/// Reads `Kind`, `Kind/name-glob`, `group/Kind/name-glob` (`core` or nothing is the core group, `*` any) or `Kind.group/name-glob`.
pub fn filter(text: &str) -> Result<ObjectFilter> {
    let invalid = || {
        Error::usage(format!("`{text}` picks no objects"))
            .fix("write Kind, Kind/NAME or group/Kind/NAME; NAME may hold * and ?, for example Secret/*-tls or apps/Deployment/web")
    };
    let parts: Vec<&str> = text.split('/').collect();
    let (group, kind, name) = match parts[..] {
        [kind] => (None, kind, None),
        [kind, name] => (None, kind, Some(name)),
        [group, kind, name] => (Some(group), kind, Some(name)),
        _ => return Err(invalid()),
    };
    let (group, kind) = match (group, kind.split_once('.')) {
        (None, Some((kind, group))) => (Some(group), kind),
        (Some(_), Some(_)) => return Err(invalid()),
        (group, None) => (group, kind),
    };
    let kinds = match kind {
        "*" => Vec::new(),
        _ if kind.starts_with(|c: char| c.is_ascii_uppercase()) && kind.chars().all(|c| c.is_ascii_alphanumeric()) => {
            vec![kind.to_owned()]
        }
        _ => {
            return Err(invalid().because(format!(
                "`{kind}` is not a kind: kinds are written as in manifests, for example ConfigMap"
            )));
        }
    };
    let names = match name {
        None | Some("*") => Vec::new(),
        Some("") => return Err(invalid()),
        Some(name) => vec![name.to_owned()],
    };
    let group = match group {
        None | Some("*") => None,
        Some("core" | "") => Some(String::new()),
        Some(group) => Some(group.to_owned()),
    };
    if group.is_none() && kinds.is_empty() && names.is_empty() {
        return Err(invalid().because("it matches everything"));
    }
    Ok(ObjectFilter { group, kinds, names })
}

/// Reads a label selector as kubectl does: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
pub fn selector(text: &str) -> Result<LabelSelector> {
    let invalid = |part: &str| {
        Error::usage(format!("`{part}` is not a label requirement"))
            .fix("write key=value, key!=value, key in (a,b), key notin (a,b), key or !key, with commas between")
    };
    let mut selector = LabelSelector::default();
    let mut labels = std::collections::BTreeMap::new();
    let mut expressions = Vec::new();
    for part in split_requirements(text) {
        let part = part.trim();
        let requirement = |key: &str, operator: &str, values: Option<Vec<String>>| LabelSelectorRequirement {
            key: key.trim().to_owned(),
            operator: operator.to_owned(),
            values,
        };
        if let Some(list) = part.strip_suffix(')') {
            let (head, values) = list.split_once('(').ok_or_else(|| invalid(part))?;
            let mut words = head.split_whitespace();
            let (Some(key), Some(operator), None) = (words.next(), words.next(), words.next()) else {
                return Err(invalid(part));
            };
            let operator = match operator {
                "in" => "In",
                "notin" => "NotIn",
                _ => return Err(invalid(part)),
            };
            let values = values.split(',').map(|v| v.trim().to_owned()).collect();
            expressions.push(requirement(key, operator, Some(values)));
        } else if let Some((key, value)) = part.split_once("!=") {
            expressions.push(requirement(key, "NotIn", Some(vec![value.trim().to_owned()])));
        } else if let Some((key, value)) = part.split_once('=') {
            let value = value.strip_prefix('=').unwrap_or(value).trim();
            if let Some(before) = labels.insert(key.trim().to_owned(), value.to_owned())
                && before != value
            {
                return Err(Error::usage(format!("`{text}` can match nothing"))
                    .because(format!("{} cannot be both {before} and {value}", key.trim())));
            }
        } else if let Some(key) = part.strip_prefix('!') {
            expressions.push(requirement(key, "DoesNotExist", None));
        } else {
            expressions.push(requirement(part, "Exists", None));
        }
    }
    let keys = labels
        .keys()
        .map(String::as_str)
        .chain(expressions.iter().map(|e| e.key.as_str()));
    for key in keys {
        let ok = !key.is_empty()
            && key
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'));
        if !ok {
            return Err(invalid(key));
        }
    }
    if labels.is_empty() && expressions.is_empty() {
        return Err(invalid(text));
    }
    if !labels.is_empty() {
        selector.match_labels = Some(labels);
    }
    if !expressions.is_empty() {
        selector.match_expressions = Some(expressions);
    }
    Ok(selector)
}

/// Splits at commas outside of parentheses.
fn split_requirements(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_u32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_from_one_to_three_parts() {
        let of = |group: Option<&str>, kind: &str, name: Option<&str>| ObjectFilter {
            group: group.map(Into::into),
            kinds: vec![kind.into()],
            names: name.map(Into::into).into_iter().collect(),
        };
        assert_eq!(filter("Secret").unwrap(), of(None, "Secret", None));
        assert_eq!(filter("Secret/*-tls").unwrap(), of(None, "Secret", Some("*-tls")));
        assert_eq!(
            filter("apps/Deployment/web").unwrap(),
            of(Some("apps"), "Deployment", Some("web"))
        );
        assert_eq!(filter("core/Service/*").unwrap(), of(Some(""), "Service", None));
        assert_eq!(filter("/Service/web").unwrap(), of(Some(""), "Service", Some("web")));
        assert_eq!(
            filter("Deployment.apps/web").unwrap(),
            of(Some("apps"), "Deployment", Some("web"))
        );
        assert!(filter("apps/*/*").unwrap().kinds.is_empty());
    }

    #[test]
    fn filters_that_mean_nothing_or_everything_are_refused() {
        for text in [
            "",
            "*",
            "*/*",
            "deployments",
            "a/b/c/d",
            "Secret/",
            "apps/Deployment.apps/web",
            "*/*/*",
        ] {
            assert_eq!(filter(text).unwrap_err().class, Class::Usage, "{text}");
        }
    }

    #[test]
    fn selectors_are_read_as_kubectl_reads_them() {
        let read = selector("a=b, c==d,e!=f,g in (h, i),j notin (k),l,!m").unwrap();
        let labels = read.match_labels.unwrap();
        assert_eq!((labels["a"].as_str(), labels["c"].as_str()), ("b", "d"));
        let operators: Vec<_> = read
            .match_expressions
            .unwrap()
            .into_iter()
            .map(|e| (e.key, e.operator, e.values))
            .collect();
        let some = |values: &[&str]| Some(values.iter().map(ToString::to_string).collect::<Vec<_>>());
        let expected = [
            ("e", "NotIn", some(&["f"])),
            ("g", "In", some(&["h", "i"])),
            ("j", "NotIn", some(&["k"])),
            ("l", "Exists", None),
            ("m", "DoesNotExist", None),
        ];
        assert_eq!(operators, expected.map(|(k, o, v)| (k.to_owned(), o.to_owned(), v)));
    }

    #[test]
    fn selectors_that_cannot_match_are_refused() {
        for text in ["", "a=b,a=c", "a in b)", "=x", "a b", "(", "a in (b", "!"] {
            assert!(selector(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_snapshot_without_a_name_gets_one_from_its_lineage() {
        let mut request = Request {
            pin: true,
            ..Request::default()
        };
        request.spec.lineage = Some("shop".into());
        let object = request.object("team");
        assert_eq!(object.metadata.generate_name.as_deref(), Some("shop-"));
        assert_eq!(object.metadata.labels.unwrap()[names::PINNED_LABEL], "true");
    }
}
