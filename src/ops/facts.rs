//! What can be seen of Backstep and of the cluster through the API server, with the user's own rights.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    coordination::v1::Lease,
};
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams},
    client::Body,
};
use serde_json::Value;

use super::{Result, Session};
use crate::{
    api::names,
    cluster::{self, clock},
};

/// Supported minors of Kubernetes 1.x.
pub const SUPPORTED_MINORS: std::ops::RangeInclusive<u32> = 33..=37;
/// First minor whose API server can fill in who asks.
pub const STAMPING_SINCE: u32 = 36;

/// The API server and its clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// As the server writes it: `v1.36.3`.
    pub version: String,
    /// Minor version; `None` where it cannot be read.
    pub minor: Option<u32>,
    /// Server time minus local time, seconds; exact to about one second.
    pub skew: Option<i64>,
}

/// Version and clock of the API server.
pub async fn server(session: &Session) -> Result<Server> {
    let (version, date) = session
        .repeat("read the server's version", || async {
            let request = http::Request::get("/version")
                .body(Body::empty())
                .map_err(kube::Error::HttpError)?;
            let response = session.client.send(request).await?;
            let status = response.status();
            let date = response
                .headers()
                .get(http::header::DATE)
                .and_then(|d| d.to_str().ok())
                .map(str::to_owned);
            let body = http_body_util::BodyExt::collect(response.into_body()).await?.to_bytes();
            if !status.is_success() {
                let text = String::from_utf8_lossy(&body).chars().take(200).collect::<String>();
                return Err(kube::Error::Api(
                    kube::core::Status::failure(&text, "")
                        .with_code(status.as_u16())
                        .boxed(),
                ));
            }
            let info: Value = serde_json::from_slice(&body).map_err(kube::Error::SerdeError)?;
            Ok((info, date))
        })
        .await?;
    let minor = version["minor"]
        .as_str()
        .map(|m| m.trim_end_matches(|c: char| !c.is_ascii_digit()))
        .and_then(|m| m.parse().ok());
    let skew = date
        .and_then(|text| jiff::fmt::rfc2822::parse(&text).ok())
        .map(|there| there.timestamp().as_second() - clock::now().as_second());
    Ok(Server {
        version: version["gitVersion"].as_str().unwrap_or("unknown").to_owned(),
        minor,
        skew,
    })
}

/// The operator's leader, as its Lease tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Which process; absent when none holds the Lease.
    pub holder: Option<String>,
    /// When it last said so.
    pub renewed: Option<Timestamp>,
    /// How long ago, seconds.
    pub age_seconds: Option<i64>,
    /// Whether the renewal is younger than the Lease's own duration.
    pub fresh: bool,
}

/// The operator's Lease; `None` when there is none.
pub async fn leader(session: &Session) -> Result<Option<Leader>> {
    let namespace = &session.operator_namespace;
    let api: Api<Lease> = Api::namespaced(session.client.clone(), namespace);
    let what = format!("read lease {} in {namespace}", names::OPERATOR);
    let lease = session.repeat(&what, || api.get_opt(names::OPERATOR)).await?;
    Ok(lease.map(|lease| {
        let spec = lease.spec.unwrap_or_default();
        let holder = spec.holder_identity.filter(|h| !h.is_empty());
        let renewed = spec.renew_time.map(|t| t.0);
        let age = renewed.map(|t| clock::now().as_second() - t.as_second());
        let duration = i64::from(spec.lease_duration_seconds.unwrap_or(15));
        let fresh = holder.is_some() && age.is_some_and(|age| age <= duration);
        Leader {
            holder,
            renewed,
            age_seconds: age,
            fresh,
        }
    }))
}

/// Kinds of `backstep.dev` that the server serves, by discovery, which every authenticated user may read.
pub async fn served_kinds(session: &Session) -> Result<BTreeSet<String>> {
    let version = format!("{}/{}", names::GROUP, names::VERSION);
    let call = cluster::call::repeat("discover backstep.dev", session.deadline(), || {
        session.client.list_api_group_resources(&version)
    });
    match call.await {
        Ok(list) => Ok(list
            .resources
            .into_iter()
            .map(|r| r.name)
            .filter(|name| !name.contains('/'))
            .collect()),
        // A group that is not served is an answer, not an error.
        Err(error) if error.is_not_found() => Ok(BTreeSet::new()),
        Err(error) => Err(error.into()),
    }
}

/// The installed CRD `plural.backstep.dev`; `None` when there is none.
pub async fn crd(session: &Session, plural: &str) -> Result<Option<Value>> {
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let resource = ApiResource::from_gvk_with_plural(&kind, "customresourcedefinitions");
    let api: Api<DynamicObject> = Api::all_with(session.client.clone(), &resource);
    let name = format!("{plural}.{}", names::GROUP);
    let crd = session
        .repeat(&format!("read CRD {name}"), || api.get_opt(&name))
        .await?;
    Ok(crd.map(|crd| crd.data))
}

/// Every field of a CRD's served version, as `spec.capture.secrets`; two CRDs with the same fields are of one generation.
pub fn schema_fields(crd: &Value) -> BTreeSet<String> {
    fn walk(schema: &Value, path: &str, out: &mut BTreeSet<String>) {
        if let Some(properties) = schema["properties"].as_object() {
            for (name, property) in properties {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                walk(property, &path, out);
                out.insert(path);
            }
        }
        if schema["items"].is_object() {
            walk(&schema["items"], &format!("{path}[]"), out);
        }
        if schema["additionalProperties"].is_object() {
            walk(&schema["additionalProperties"], &format!("{path}{{}}"), out);
        }
    }
    let mut fields = BTreeSet::new();
    for version in crd["spec"]["versions"].as_array().into_iter().flatten() {
        if version["name"] == names::VERSION {
            walk(&version["schema"]["openAPIV3Schema"], "", &mut fields);
        }
    }
    // What the API server gives every object is not the CRD's.
    fields.retain(|f| !matches!(f.as_str(), "apiVersion" | "kind" | "metadata"));
    fields
}

/// Backstep's admission policies as installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// Validating policies whose failure refuses the request.
    pub failing_closed: BTreeSet<String>,
    /// All validating policies of the group.
    pub present: BTreeSet<String>,
    /// Validating policies with a binding that denies.
    pub denying: BTreeSet<String>,
}

/// Validating policies named `*.backstep.dev`.
pub async fn policies(session: &Session) -> Result<Policies> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(session.client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(session.client.clone());
    let every = ListParams::default();
    let policies = session
        .repeat("list validatingadmissionpolicies", || policies.list(&every))
        .await?;
    let bindings = session
        .repeat("list validatingadmissionpolicybindings", || bindings.list(&every))
        .await?;
    let ours = |name: &str| name.ends_with(".backstep.dev");
    let mut seen = Policies::default();
    for policy in policies {
        let name = policy.name_any();
        if ours(&name) {
            if policy
                .spec
                .is_some_and(|s| s.failure_policy.as_deref().unwrap_or("Fail") == "Fail")
            {
                seen.failing_closed.insert(name.clone());
            }
            seen.present.insert(name);
        }
    }
    for binding in bindings {
        let Some(spec) = binding.spec else { continue };
        let denies = spec.validation_actions.unwrap_or_default().iter().any(|a| a == "Deny");
        if let Some(name) = spec.policy_name.filter(|name| denies && ours(name)) {
            seen.denying.insert(name);
        }
    }
    Ok(seen)
}

/// Names of the mutating admission policies `*.backstep.dev`; `None` where the server does not serve the kind.
pub async fn stamping(session: &Session) -> Result<Option<BTreeSet<String>>> {
    let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicy");
    let resource = ApiResource::from_gvk_with_plural(&kind, "mutatingadmissionpolicies");
    let api: Api<DynamicObject> = Api::all_with(session.client.clone(), &resource);
    let every = ListParams::default();
    match cluster::call::repeat("list mutatingadmissionpolicies", session.deadline(), || {
        api.list_metadata(&every)
    })
    .await
    {
        Ok(list) => Ok(Some(
            list.items
                .iter()
                .map(kube::ResourceExt::name_any)
                .filter(|n| n.ends_with(".backstep.dev"))
                .collect(),
        )),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether this user may do `verb` on `resource` (`namespace` absent: cluster-wide or cluster-scoped).
pub async fn may(session: &Session, verb: &str, group: &str, resource: &str, namespace: Option<&str>) -> Result<bool> {
    let api: Api<SelfSubjectAccessReview> = Api::all(session.client.clone());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                namespace: namespace.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let review = session
        .repeat(&format!("ask whether you may {verb} {resource}"), || async {
            api.create(&PostParams::default(), &review).await
        })
        .await?;
    Ok(review.status.is_some_and(|s| s.allowed))
}

/// Counts by a key.
pub fn tally<K: Ord>(keys: impl IntoIterator<Item = K>) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    for key in keys {
        *counts.entry(key).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_a_crd_include_those_inside_lists() {
        let fields = schema_fields(&crate::api::crd::all().unwrap()[0]);
        for field in [
            "spec.capture.secrets",
            "spec.capture.include[].kinds",
            "status.conditions[].reason",
        ] {
            assert!(fields.contains(field), "{field} is not among {fields:?}");
        }
        assert!(!fields.contains("metadata"));
    }
}
