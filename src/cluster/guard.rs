//! What must be in place before Backstep acts: its CRDs, its admission policies, and identity stamping where the server has it.

use std::collections::HashSet;

use jiff::Timestamp;
use k8s_openapi::{
    api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Client, api::ListParams};
use serde::Deserialize;

use super::{
    call,
    error::Result,
    list::{Collection, Pager},
};
use crate::api::names::GROUP;

/// Plurals of the kinds that must be served.
pub const REQUIRED_KINDS: [&str; 6] = [
    "snapshots",
    "rollbackrequests",
    "rollbackplans",
    "approvalrequests",
    "approvaldecisions",
    "approvalpolicies",
];
/// Validating policies; each has a binding of the same name that denies.
pub const REQUIRED_POLICIES: [&str; 4] = [
    "approvaldecisions.guard.backstep.dev",
    "operatorowned.guard.backstep.dev",
    "requests.guard.backstep.dev",
    "snapshots.guard.backstep.dev",
];
/// Mutating policies, where the server has them (1.36 and later).
pub const STAMPING_POLICIES: [&str; 2] = ["approver.stamp.backstep.dev", "requester.stamp.backstep.dev"];

#[derive(Deserialize)]
struct Named {
    metadata: Name,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

/// What is missing, one sentence each; empty when everything is in place.
///
/// # Errors
/// The server cannot be asked: not known is never "in place".
pub async fn missing(client: &Client) -> Result<Vec<String>> {
    let (mut missing, policies, stamping) = tokio::try_join!(
        missing_kinds(client),
        missing_policies(client),
        missing_stamping(client)
    )?;
    missing.extend(policies);
    missing.extend(stamping);
    Ok(missing)
}

/// When the kind `plural` was defined; `None` unless its CRD is there, established, and not being deleted.
pub async fn served_since(client: &Client, plural: &str) -> Result<Option<Timestamp>> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = format!("{plural}.{GROUP}");
    let what = format!("get customresourcedefinition {name}");
    let crd = call::repeat(&what, call::DEADLINE, || api.get_opt(&name)).await?;
    Ok(crd
        .filter(|crd| crd.metadata.deletion_timestamp.is_none() && is_established(crd))
        .and_then(|crd| Some(crd.metadata.creation_timestamp?.0)))
}

fn is_established(crd: &CustomResourceDefinition) -> bool {
    crd.status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|cs| cs.iter().any(|c| c.type_ == "Established" && c.status == "True"))
}

async fn missing_kinds(client: &Client) -> Result<Vec<String>> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut missing = Vec::new();
    for plural in REQUIRED_KINDS {
        let name = format!("{plural}.{GROUP}");
        let what = format!("get customresourcedefinition {name}");
        let crd = call::repeat(&what, call::DEADLINE, || api.get_opt(&name)).await?;
        let established = crd.as_ref().is_some_and(is_established);
        if !established {
            missing.push(format!(
                "the CRD {name} is not established; install or upgrade the chart"
            ));
        }
    }
    Ok(missing)
}

async fn missing_policies(client: &Client) -> Result<Vec<String>> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let every = ListParams::default();
    let (policies, bindings) = tokio::try_join!(
        call::repeat("list validatingadmissionpolicies", call::DEADLINE, || policies
            .list(&every)),
        call::repeat("list validatingadmissionpolicybindings", call::DEADLINE, || bindings
            .list(&every)),
    )?;
    let failing: HashSet<String> = policies
        .iter()
        .filter(|p| {
            p.spec
                .as_ref()
                .is_some_and(|s| s.failure_policy.as_deref() == Some("Fail"))
        })
        .map(kube::ResourceExt::name_any)
        .collect();
    let denying: HashSet<&str> = bindings
        .iter()
        .filter_map(|b| b.spec.as_ref())
        .filter(|s| {
            s.validation_actions
                .as_ref()
                .is_some_and(|a| a.iter().any(|a| a == "Deny"))
        })
        .filter_map(|s| s.policy_name.as_deref())
        .collect();
    let mut missing = Vec::new();
    for name in REQUIRED_POLICIES {
        if !failing.contains(name) {
            missing.push(format!(
                "the admission policy {name} is missing or does not fail closed; install or upgrade the chart"
            ));
        } else if !denying.contains(name) {
            missing.push(format!(
                "the binding of admission policy {name} is missing or does not deny; install or upgrade the chart"
            ));
        }
    }
    Ok(missing)
}

async fn missing_stamping(client: &Client) -> Result<Vec<String>> {
    let collection = Collection {
        group: "admissionregistration.k8s.io".into(),
        version: "v1".into(),
        plural: "mutatingadmissionpolicies".into(),
        namespace: None,
    };
    let mut found = HashSet::new();
    let mut pager = Pager::start(client.clone(), collection, true);
    loop {
        match pager.next().await {
            Ok(Some(page)) => {
                for raw in page.items()?.items {
                    if let Ok(named) = serde_json::from_str::<Named>(raw.get()) {
                        found.insert(named.metadata.name);
                    }
                }
            }
            Ok(None) => break,
            // Before 1.36 the kind is not served, and clients fill in the names.
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    Ok(STAMPING_POLICIES
        .iter()
        .filter(|name| !found.contains(**name))
        .map(|name| format!("the mutating admission policy {name} is missing; install or upgrade the chart"))
        .collect())
}
